"""An archive after any sequence of appends, replacements, removals and restores is what its files are."""

from __future__ import annotations

import shutil
import tempfile
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import pytest
import xarray as xr
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

import refindex
from refindex import NotFoundError, StaleSourceError
from refindex.join import kept, windows
from tests.join.files import Var, decoded, write

type Content = tuple[int, int]
"""Seed of the values, and the kind of storage."""

SLOTS = 7
LENGTHS = (3, 1, 4, 6, 2, 5, 3)
STARTS = np.cumsum([0, *LENGTHS]).tolist()
SIZE = 180
STORAGE: list[dict[str, Any]] = [
    {"chunksizes": (2, 100), "zlib": True},
    {"chunksizes": (1, 180)},
    {},
    {"chunksizes": (6, 50), "zlib": True, "shuffle": False, "fletcher32": True},
    {"endian": "big", "chunksizes": (2, 100), "zlib": True},
    {"scale": 0.5, "chunksizes": (3, 180)},
    {"scale": 0.25, "zlib": True},
    {"lacks": True},
]
"""The first five are stored otherwise, the others packed otherwise, and of another content."""
slots = st.integers(0, SLOTS - 1)
MASK = np.random.default_rng(99).random((4, SIZE))


def write_slot(folder: Path, slot: int, content: Content) -> Path:
    seed, kind = content
    random = np.random.default_rng((seed, slot))
    length = LENGTHS[slot]
    options = dict(STORAGE[kind])
    scale, lacks = options.pop("scale", None), options.pop("lacks", False)
    options["chunksizes"] = tuple(
        min(n, m) for n, m in zip(options.get("chunksizes", (6, SIZE)), (length, SIZE), strict=True)
    )
    values = random.integers(0, 1000, (length, SIZE)).astype("i2" if scale else "f8")
    variables = {
        "time": Var(dims=("time",), values=np.arange(STARTS[slot], STARTS[slot] + length, dtype="f8")),
        "s": Var(dims=("time",), values=random.random(length)),
        "mask": Var(dims=("lat", "m"), values=MASK),
    }
    if not lacks:
        attrs = {"scale_factor": scale} if scale else {}
        big = {"endian": options.pop("endian")} if "endian" in options else {}
        dtype = ">f8" if big else values.dtype
        variables["x"] = Var(dims=("time", "m"), values=values.astype(dtype), attrs=attrs, options=options)
    return write(folder / f"slot{slot}.nc", variables, {"title": "made up"})


class Growth(RuleBasedStateMachine):
    """Compared with the files themselves, as xarray reads them."""

    suffix: ClassVar[str] = ".refindex"
    kinds: ClassVar[int] = 5
    tile: ClassVar[bool] = False

    def __init__(self) -> None:
        super().__init__()
        self.folder = Path(tempfile.mkdtemp())
        self.archive = self.folder / f"archive{self.suffix}"
        self.disk: dict[int, Content] = {}
        self.state: dict[int, Content] = {}
        self.versions: dict[int, dict[int, Content]] = {}
        self.read: dict[tuple[int, Content], xr.Dataset] = {}
        self.clock = 0
        self.rows = kept.ROWS, windows.ROWS

    def teardown(self) -> None:
        kept.ROWS, windows.ROWS = self.rows
        if self.versions and self.current():
            with refindex.open(self.archive) as archive:
                self.like_a_fresh_scan(archive, self.state)
        shutil.rmtree(self.folder)

    def path(self, slot: int) -> Path:
        return self.folder / f"slot{slot}.nc"

    def make(self, slot: int, kind: int) -> Path:
        """Write a file with values that none had before."""
        self.clock += 1
        self.disk[slot] = (self.clock, kind % self.kinds)
        return write_slot(self.folder, slot, self.disk[slot])

    def committed(self, version: int) -> None:
        self.versions[version] = dict(self.state)

    @initialize(first=st.lists(slots, min_size=1, max_size=4, unique=True), kind=st.integers(0, 9))
    def start(self, first: list[int], kind: int) -> None:
        if kind % 2:  # as a hundred million references are joined
            kept.ROWS = windows.ROWS = 5
        paths = [self.make(slot, kind + slot) for slot in first]
        self.state = {slot: self.disk[slot] for slot in first}
        self.committed(refindex.scan(paths, workers=1).save(self.archive))

    @rule(some=st.lists(slots, min_size=1, max_size=3, unique=True), kind=st.integers(0, 9))
    def append(self, some: list[int], kind: int) -> None:
        if not self.current():  # what is compared with a new file may lie in one that is another one by now
            some = [slot for slot in some if slot in self.state]
        if not some:
            return
        new = [slot for slot in some if slot not in self.state]
        for slot in new:
            self.make(slot, kind + slot)
        stale = [slot for slot in some if slot in self.state and self.state[slot] != self.disk[slot]]
        paths = [self.path(slot) for slot in some]
        if stale:
            with pytest.raises(StaleSourceError):
                refindex.append(self.archive, paths, workers=1)
            for slot in new:
                del self.disk[slot]
            return
        done = refindex.append(self.archive, paths, workers=1)
        assert len(done.added) == len(new)
        assert len(done.skipped) == len(some) - len(new)
        assert (done.version in self.versions) == (not new)
        self.state |= {slot: self.disk[slot] for slot in new}
        self.committed(done.version)

    @precondition(lambda self: self.state)
    @rule(data=st.data(), kind=st.integers(0, 9))
    def replace(self, data: st.DataObject, kind: int) -> None:
        some = data.draw(st.lists(st.sampled_from(sorted(self.state)), min_size=1, max_size=2, unique=True))
        paths = [self.make(slot, kind + slot) for slot in some]
        with pytest.raises(StaleSourceError, match="replace=True"):
            refindex.append(self.archive, paths, workers=1)
        done = refindex.append(self.archive, paths, workers=1, replace=True)
        assert len(done.replaced) == len(some)
        self.state |= {slot: self.disk[slot] for slot in some}
        self.committed(done.version)

    def current(self) -> bool:
        return all(self.disk.get(slot) == content for slot, content in self.state.items())

    @precondition(lambda self: len(self.state) > 1 and self.current())
    @rule(data=st.data())
    def remove(self, data: st.DataObject) -> None:
        some = data.draw(
            st.lists(st.sampled_from(sorted(self.state)), min_size=1, max_size=len(self.state) - 1, unique=True)
        )
        done = refindex.remove(self.archive, [self.path(slot) for slot in some])
        for slot in some:
            del self.state[slot]
        self.committed(done.version)

    @rule(data=st.data())
    def restore(self, data: st.DataObject) -> None:
        version = data.draw(st.sampled_from(sorted(self.versions)))
        made = refindex.restore(self.archive, version)
        self.state = dict(self.versions[version])
        self.committed(made)

    @rule(keep=st.none() | st.integers(1, 3))
    def vacuum(self, keep: int | None) -> None:
        refindex.vacuum(self.archive, keep_versions=keep)
        left = {commit.version for commit in refindex.log(self.archive)}
        for version in [v for v in self.versions if v not in left]:
            with pytest.raises(NotFoundError):
                refindex.open(self.archive, version=version)
            del self.versions[version]
        assert keep is None or len(left) <= keep
        assert max(self.versions) in left

    @rule(data=st.data())
    def open_an_old_version(self, data: st.DataObject) -> None:
        version = data.draw(st.sampled_from(sorted(self.versions)))
        self.compare(version, self.versions[version])

    @invariant()
    def newest_is_what_its_files_are(self) -> None:
        if self.versions:
            assert [c.version for c in refindex.log(self.archive)] == sorted(self.versions, reverse=True)
            self.compare(None, self.state)

    def compare(self, version: int | None, state: dict[int, Content]) -> None:
        with refindex.open(self.archive, version=version) as archive, archive.to_xarray() as actual:
            assert sorted(Path(s.url).name for s in archive.sources) == sorted(f"slot{slot}.nc" for slot in state)
            at = 0
            for slot in sorted(state):
                part = actual.isel(time=slice(at, at + LENGTHS[slot]))
                at += LENGTHS[slot]
                if self.disk.get(slot) != state[slot]:
                    continue  # the file is another one by now
                self.same(part, self.own(slot))
            assert actual.sizes["time"] == at
            if version is None and self.current():
                np.testing.assert_array_equal(actual["mask"].values, MASK)

    def own(self, slot: int) -> xr.Dataset:
        """A file as xarray reads it, once for each content."""
        key = (slot, self.disk[slot])
        if key not in self.read:
            self.read[key] = decoded(self.path(slot))
        return self.read[key]

    def same(self, part: xr.Dataset, own: xr.Dataset) -> None:
        for name in ("time", "s", "x"):
            if name not in own:
                assert name not in part or bool(np.isnan(part[name].values).all())
                continue
            np.testing.assert_array_equal(part[name].values, own[name].values, err_msg=name)

    def like_a_fresh_scan(self, archive: refindex.Archive, state: dict[int, Content]) -> None:
        fresh = refindex.scan([self.path(slot) for slot in sorted(state)], workers=1)
        if self.kinds > 5:
            return  # what was once served unpacked stays so
        assert {p: n.attributes for p, n in archive.nodes.items()} == {p: n.attributes for p, n in fresh.nodes.items()}
        for path, node in fresh.arrays.items():
            assert node.shape == archive.nodes[path].shape
            mine, theirs = archive.nodes[path].dtype, node.dtype
            assert mine is not None
            assert theirs is not None
            assert mine.newbyteorder("=") == theirs.newbyteorder("=")


class InSQLite(Growth):
    suffix = ".sqlite"


class OfOtherContent(Growth):
    kinds = len(STORAGE)


STEPS = settings(max_examples=6, stateful_step_count=8, deadline=None)
TestParquet = Growth.TestCase
TestParquet.settings = STEPS
TestSQLite = InSQLite.TestCase
TestSQLite.settings = STEPS
TestOfOtherContent = OfOtherContent.TestCase
TestOfOtherContent.settings = STEPS
