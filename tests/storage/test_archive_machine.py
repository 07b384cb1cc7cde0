"""An archive after any sequence of operations, and all who have it open meanwhile, against a dictionary of arrays."""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

import numpy as np
from grown import STEPS, SUFFIXES, Values, write_source, x_of
from hypothesis import HealthCheck, Phase, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

import refindex
from refindex import storage
from refindex.storage.parquet import checkpoint, merge

SLOTS = 6
slots = st.integers(0, SLOTS - 1)


@dataclass
class Held:
    """Somebody who has an archive open."""

    archive: refindex.Archive
    version: int
    state: tuple[int, ...]


class Machine(RuleBasedStateMachine):
    """``versions`` has the slots of each version that has not expired; files never change."""

    suffix: ClassVar[str] = ".refindex"

    def __init__(self) -> None:
        super().__init__()
        self.folder = Path(tempfile.mkdtemp(prefix="machine-"))
        self.archive = self.folder / f"archive{self.suffix}"
        self.x = [x_of(write_source(self.path(slot), STEPS * slot)) for slot in range(SLOTS)]
        self.versions: dict[int, tuple[int, ...]] = {}
        self.copies: dict[Path, tuple[int, ...]] = {}
        self.held: list[Held] = []
        self.known = merge.FILES, checkpoint.EVERY
        merge.FILES, checkpoint.EVERY = 3, 3

    def teardown(self) -> None:
        merge.FILES, checkpoint.EVERY = self.known
        for held in self.held:
            held.archive.close()
        shutil.rmtree(self.folder)

    def path(self, slot: int) -> Path:
        return self.folder / f"{slot}.h5"

    @property
    def newest(self) -> int:
        return max(self.versions)

    @property
    def now(self) -> tuple[int, ...]:
        return self.versions[self.newest]

    def expected(self, state: Sequence[int]) -> Values:
        return np.concatenate([self.x[slot] for slot in state])

    def committed(self, state: Sequence[int]) -> None:
        version = refindex.log(self.archive)[0].version
        assert version == self.newest + 1
        self.versions[version] = tuple(sorted(state))

    @initialize(some=st.sets(slots, min_size=1, max_size=3))
    def save(self, some: set[int]) -> None:
        refindex.scan([self.path(slot) for slot in sorted(some)], workers=1).save(self.archive)
        self.versions[0] = tuple(sorted(some))

    @rule(some=st.sets(slots, min_size=1, max_size=4))
    def scan(self, some: set[int]) -> None:
        manifest = refindex.scan([self.path(slot) for slot in sorted(some)], workers=1)
        manifest.save(self.archive, overwrite=True)
        self.committed(tuple(some))

    @precondition(lambda self: len(self.now) < SLOTS)
    @rule(data=st.data())
    def append(self, data: st.DataObject) -> None:
        missing = [slot for slot in range(SLOTS) if slot not in self.now]
        some = data.draw(st.sets(st.sampled_from(missing), min_size=1, max_size=2))
        refindex.append(self.archive, [self.path(slot) for slot in some], workers=1)
        self.committed((*self.now, *some))

    @precondition(lambda self: len(self.now) > 1)
    @rule(data=st.data())
    def remove(self, data: st.DataObject) -> None:
        gone = data.draw(st.sampled_from(self.now))
        refindex.remove(self.archive, self.path(gone))
        self.committed([slot for slot in self.now if slot != gone])

    @rule(data=st.data())
    def restore(self, data: st.DataObject) -> None:
        version = data.draw(st.sampled_from(sorted(self.versions)))
        refindex.restore(self.archive, version)
        self.committed(self.versions[version])

    @rule(keep=st.integers(1, 3), at_once=st.booleans())
    def vacuum(self, keep: int, at_once: bool) -> None:
        grace = storage.GRACE * (not at_once)
        storage.vacuum(str(self.archive), keep_versions=keep, grace=grace)
        self.versions = {version: self.versions[version] for version in sorted(self.versions)[-keep:]}
        for held in self.held:
            self.check_held(held)

    @rule(chunks=st.sampled_from(["time-series", "map"]))
    def optimize(self, chunks: str) -> None:
        done = refindex.optimize(self.archive, "x", chunks=chunks, workers=1)  # type: ignore[arg-type]
        assert done is not None
        if refindex.log(self.archive)[0].version != self.newest:
            self.committed(self.now)

    @rule(data=st.data(), suffix=st.sampled_from(SUFFIXES))
    def publish(self, data: st.DataObject, suffix: str) -> None:
        version = data.draw(st.sampled_from(sorted(self.versions)))
        copy = self.folder / f"copy{suffix}"
        refindex.publish(self.archive, copy, version=version, overwrite=True, allow_local=True)
        self.copies[copy] = self.versions[version]

    @rule(data=st.data())
    def hold(self, data: st.DataObject) -> None:
        version = data.draw(st.sampled_from(sorted(self.versions)))
        opened = refindex.open(self.archive, version=version)
        self.held.append(Held(archive=opened, version=version, state=self.versions[version]))
        if len(self.held) > 3:
            self.held.pop(0).archive.close()

    @precondition(lambda self: self.held)
    @rule(data=st.data())
    def read_held(self, data: st.DataObject) -> None:
        self.check_held(data.draw(st.sampled_from(self.held)))

    def check_held(self, held: Held) -> None:
        # If a vacuum has removed its version, it is right, or it says so.
        with suppress(*(() if held.version in self.versions else (refindex.ManifestError,))):
            np.testing.assert_array_equal(held.archive.group["x"][...], self.expected(held.state))

    @rule(data=st.data())
    def read_old(self, data: st.DataObject) -> None:
        version = data.draw(st.sampled_from(sorted(self.versions)))
        self.check(self.archive, self.versions[version], version)

    @invariant()
    def all_is_as_it_must_be(self) -> None:
        if not self.versions:
            return
        assert [commit.version for commit in refindex.log(self.archive)] == sorted(self.versions, reverse=True)
        self.check(self.archive, self.now)
        for copy, state in self.copies.items():
            self.check(copy, state)

    def check(self, archive: Path, state: Sequence[int], version: int | None = None) -> None:
        with refindex.open(archive, version=version) as opened:
            np.testing.assert_array_equal(opened.group["x"][...], self.expected(state))
            times = np.concatenate([np.arange(STEPS * slot, STEPS * (slot + 1.0)) for slot in state])
            np.testing.assert_array_equal(opened.group["time"][...], times)


class SQLiteMachine(Machine):
    suffix = ".sqlite"


OPTIONS = settings(
    max_examples=8,
    stateful_step_count=12,
    phases=(Phase.explicit, Phase.reuse, Phase.generate),  # shrinking takes minutes here
    deadline=None,
    suppress_health_check=list(HealthCheck),
    print_blob=True,
)
TestParquet = Machine.TestCase
TestParquet.settings = OPTIONS
TestSQLite = SQLiteMachine.TestCase
TestSQLite.settings = OPTIONS
