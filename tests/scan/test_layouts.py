"""Data that lies in other files, and files that libhdf5 does not open by itself: equal to h5py, or reported."""

from __future__ import annotations

import contextlib
import io
import os
import resource
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import h5py
import numpy as np
import pytest
import xarray as xr
import zarr
from oracle import compare_file, h5py_datasets, same

import refindex
from refindex import Status
from refindex.scan.hdf5.opening import clear_flags

ROW = np.arange(40_000, dtype="<i4").reshape(100, 400)


@pytest.fixture(autouse=True)
def _rectilinear_chunks() -> Iterator[None]:
    with zarr.config.set({"array.rectilinear_chunks": True}):
        yield


@pytest.fixture
def data(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder for files that is not the current one; no prefixes in the environment."""
    for name in ("HDF5_VDS_PREFIX", "HDF5_EXT_PREFIX", "HDF5_EXTFILE_PREFIX"):
        monkeypatch.delenv(name, raising=False)
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path / "elsewhere")
    (tmp_path / "data").mkdir()
    return tmp_path / "data"


def check(path: Path, tmp_path: Path) -> refindex.Manifest:
    """Everything served equals h5py, read directly and through a saved manifest from another directory."""
    with contextlib.chdir(path.parent):  # where libhdf5 looks for external raw data
        verdict = compare_file(str(path))
        assert verdict.wrong == []
        with h5py.File(path) as file:
            expected = {name: d[()] for name, d, _ in h5py_datasets(file) if d is not None and name in verdict.right}
    manifest = refindex.scan(path)
    saved = tmp_path / "saved" / f"{path.stem}.refindex"
    manifest.save(saved, overwrite=True)
    with refindex.open(saved) as archive:
        for name, values in expected.items():
            assert same(values, zarr.open_array(archive.store, path=name, mode="r")[...]) == ""
        assert set(archive.arrays) == set(manifest.arrays)
    return manifest


def problem(manifest: refindex.Manifest, path: str) -> str:
    """Why something is not served."""
    assert path not in manifest.arrays
    (entry,) = (e for e in manifest.report.problems if e.path == f"/{path}")
    return entry.reason


def status(manifest: refindex.Manifest, path: str) -> Status:
    return next(e.status for e in manifest.report if e.path == f"/{path}" and e.status is not Status.NOTE)


def source_names(manifest: refindex.Manifest) -> list[str]:
    return [s.url.rpartition("/")[2] for s in manifest.sources]


class TestExternal:
    def test_one_file(self, data: Path, tmp_path: Path) -> None:
        (data / "raw.bin").write_bytes(b"header--" + ROW.tobytes())
        with h5py.File(data / "x.h5", "w") as f:
            f.create_dataset("rel", ROW.shape, "<i4", external=[("raw.bin", 8, ROW.nbytes)])
            f.create_dataset("abs", ROW.shape, "<i4", external=[(str(data / "raw.bin"), 8, h5py.h5f.UNLIMITED)])
            f.create_dataset("small", (5,), "<i4", external=[("raw.bin", 8, 20)])
            f.create_dataset("empty", (0, 5), "<i4", external=[("raw.bin", 8, 20)])
            f.create_dataset("pairs", (50,), np.dtype(("<i4", (20, 20))), external=[("raw.bin", 8, ROW.nbytes)])
        manifest = check(data / "x.h5", tmp_path)
        assert manifest.report.problems == ()
        assert status(manifest, "rel") is Status.NATIVE
        assert status(manifest, "small") is Status.INLINED
        assert source_names(manifest) == ["x.h5", "raw.bin"]
        assert set(manifest.arrays["rel"].chunks.source) == {1}
        with refindex.open(data / "x.h5") as archive:
            assert np.array_equal(archive.group["rel"][...], ROW)

    def test_several_files(self, data: Path, tmp_path: Path) -> None:
        (data / "a").write_bytes(ROW[:30].tobytes())
        (data / "b").write_bytes(b"xx" + ROW[30:90].tobytes())
        (data / "c").write_bytes(ROW[90:].tobytes())
        (data / "odd").write_bytes(ROW.tobytes()[1000:])
        with h5py.File(data / "x.h5", "w") as f:
            parts = [("a", 0, 30 * 1600), ("b", 2, 60 * 1600), ("c", 0, h5py.h5f.UNLIMITED)]
            f.create_dataset("rows", ROW.shape, "<i4", external=parts)
            f.create_dataset("seam", ROW.shape, ">i4", external=[("a", 0, 1000), ("odd", 0, ROW.nbytes)])
        manifest = check(data / "x.h5", tmp_path)
        assert manifest.arrays["rows"].grid.edges == (((30, 1), (60, 1), (10, 1)), 400)
        assert manifest.arrays["rows"].chunks.source.tolist() == [1, 2, 3]
        assert status(manifest, "rows") is Status.NATIVE
        assert "kept in the manifest" in next(e.reason for e in manifest.report if e.path == "/seam")

    def test_a_short_file_goes_on_with_zeros_not_with_fill_values(self, data: Path, tmp_path: Path) -> None:
        (data / "raw").write_bytes(ROW[:50].tobytes())
        with h5py.File(data / "x.h5", "w") as f:
            f.create_dataset("d", ROW.shape, "<i4", external=[("raw", 0, ROW.nbytes)], fillvalue=7)
            f.create_dataset("small", (200,), "<i1", external=[("raw", 79_900, 200)], fillvalue=7)
        check(data / "x.h5", tmp_path)
        with refindex.open(data / "x.h5") as archive:
            assert archive.group["d"][49:51, 0].tolist() == [49 * 400, 0]
            assert archive.group["small"][-1] == 0

    def test_large_chunks_at_a_seam(self, data: Path) -> None:
        """A seam within a row keeps one chunk, not the array, in the manifest; a tail that is absent costs nothing."""
        values = np.arange(12 << 20, dtype="<i4")
        (data / "a").write_bytes(values[: 5 << 20].tobytes())
        (data / "b").write_bytes(values[5 << 20 :].tobytes())
        with h5py.File(data / "x.h5", "w") as f:
            f.create_dataset("d", (12, 1 << 20), "<i4", external=[("a", 0, 5 << 22), ("b", 0, 7 << 22)])
            f.create_dataset("t", (12 << 8, 1 << 12), "<i4", external=[("a", 0, 5 << 22), ("b", 0, 7 << 22)])
            f.create_dataset("odd", (2, 6 << 20), "<i4", external=[("a", 0, 5 << 22), ("b", 0, 7 << 22)])
            f.create_dataset("tail", (64 << 20,), "<i4", external=[("a", 0, 256 << 20)])
            f.create_dataset("filled", (64 << 20,), "<i4", external=[("a", 0, 256 << 20)], fillvalue=1)
        manifest = refindex.scan(data / "x.h5")
        assert "16777216 bytes" in problem(manifest, "filled")
        assert len(manifest.arrays["tail"].chunks.data) <= 16 << 20
        with refindex.open(data / "x.h5") as archive:
            for name in ("d", "t", "odd"):
                assert np.array_equal(archive.group[name][...].ravel(), values)
            assert np.array_equal(archive.group["tail"][: 6 << 20], np.r_[values[: 5 << 20], np.zeros(1 << 20, "<i4")])

    def test_missing(self, data: Path) -> None:
        with h5py.File(data / "x.h5", "w") as f:
            f.create_dataset("rel", (10,), "<i4", external=[("gone.bin", 0, 40)])
            f.create_dataset("abs", ROW.shape, "<i4", external=[("/nowhere/gone.bin", 0, ROW.nbytes)])
            f.create_dataset("text", (3,), h5py.string_dtype(), external=[("gone.bin", 0, 48)])
        manifest = refindex.scan(data / "x.h5")
        for name in ("rel", "abs", "text"):
            assert "gone.bin" in problem(manifest, name)

    def test_the_current_directory_does_not_count(
        self, data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """libhdf5 looks for raw files there, and nowhere else: what is in doubt is not served."""
        (data / "both").write_bytes(ROW.tobytes())
        (tmp_path / "elsewhere" / "both").write_bytes((ROW + 1).tobytes())
        (tmp_path / "elsewhere" / "here").write_bytes((ROW + 1).tobytes())
        with h5py.File(data / "x.h5", "w") as f:
            f.create_dataset("both", ROW.shape, "<i4", external=[("both", 0, ROW.nbytes)])
            f.create_dataset("here", ROW.shape, "<i4", external=[("here", 0, ROW.nbytes)])
        manifest = refindex.scan(data / "x.h5")
        assert "scan elsewhere" in problem(manifest, "both")
        assert "current directory" in problem(manifest, "here")
        monkeypatch.chdir(data)
        assert set(refindex.scan(data / "x.h5").arrays) == {"both"}
        monkeypatch.chdir(tmp_path)
        assert set(refindex.scan(data / "x.h5").arrays) == {"both"}
        monkeypatch.setenv("HDF5_EXTFILE_PREFIX", "/tmp")
        assert "HDF5_EXTFILE_PREFIX" in problem(refindex.scan(data / "x.h5"), "both")

    def test_a_raw_file_that_goes_or_changes_later_is_an_error(self, data: Path) -> None:
        (data / "raw").write_bytes(ROW.tobytes())
        with h5py.File(data / "x.h5", "w") as f:
            f.create_dataset("d", ROW.shape, "<i4", external=[("raw", 0, ROW.nbytes)])
        refindex.scan(data / "x.h5").save(data / "m.refindex")
        (data / "raw").write_bytes(ROW[:50].tobytes())
        with refindex.open(data / "m.refindex") as archive, pytest.raises(refindex.StaleSourceError, match="raw"):
            archive.group["d"][...]
        (data / "raw").unlink()
        with refindex.open(data / "m.refindex") as archive, pytest.raises(refindex.SourceError, match="raw"):
            archive.group["d"][...]


def write(path: Path, **datasets: np.ndarray | dict[str, object]) -> Path:
    with h5py.File(path, "w") as f:
        for name, value in datasets.items():
            f.create_dataset(name, **(value if isinstance(value, dict) else {"data": value}))
    return path


def virtual(
    path: Path, name: str, shape: tuple[int, ...], *parts: tuple, dtype: str = "<i4", **options: object
) -> None:
    """Add a virtual dataset of ``(target slices, file, dataset, its shape[, source slices])``."""
    layout = h5py.VirtualLayout(shape, dtype, maxshape=options.pop("maxshape", None))
    for target, filename, dataset, source_shape, *part in parts:
        source = h5py.VirtualSource(filename, dataset, source_shape, dtype)
        layout[target] = source[part[0]] if part else source
    with h5py.File(path, "a") as f:
        f.create_virtual_dataset(name, layout, **{"fillvalue": -5} | options)


class TestVirtual:
    def test_blocks_become_references(self, data: Path, tmp_path: Path) -> None:
        zipped = {"chunks": (10, 100), "compression": "gzip", "shuffle": True}
        for i in range(3):
            write(
                data / f"s{i}.h5",
                plain=ROW + i,
                zipped={"data": ROW + i, **zipped},
                odd={"data": ROW[: 95 + i, :390] + i, **zipped},
                big=(ROW + i).astype(">i4"),
                zero={"shape": ROW.shape, "dtype": "<i4", "fillvalue": -5, **zipped},
            )
            with h5py.File(data / f"s{i}.h5", "a") as f:
                f["zero"][20:30, :100] = 5
        path = data / "v.h5"
        s = [f"s{i}.h5" for i in range(3)]
        for name in ("plain", "zipped", "big", "zero"):
            virtual(path, f"{name}_stack", (3, 100, 400), *((i, s[i], name, (100, 400)) for i in range(3)))
            virtual(
                path,
                f"{name}_concat",
                (300, 400),
                *((np.s_[i * 100 : i * 100 + 100], s[i], name, (100, 400)) for i in range(3)),
            )
            virtual(
                path,
                f"{name}_mosaic",
                (200, 1000),
                (np.s_[:100, :400], s[0], name, (100, 400)),
                (np.s_[100:, 400:800], s[1], name, (100, 400)),
            )
            virtual(
                path,
                f"{name}_part",
                (50, 400),
                (np.s_[:], s[1], name, (100, 400), np.s_[20:70, :]),
                maxshape=(None, 400),
            )
        ends = [0, 95, 191, 288]
        virtual(
            path,
            "unequal",
            (288, 390),
            *((np.s_[ends[i] : ends[i + 1]], s[i], "odd", (95 + i, 390)) for i in range(3)),
        )
        manifest = check(path, tmp_path)
        assert manifest.report.problems == ()
        arrays = manifest.arrays
        assert {path for path in arrays if status(manifest, path) is Status.NATIVE} == {
            f"{name}_{kind}" for name in ("plain", "zipped", "zero") for kind in ("stack", "concat", "mosaic", "part")
        }
        assert all(a.grid.is_regular for path, a in arrays.items() if path != "unequal")
        assert arrays["zipped_stack"].grid.edges == (1, 10, 100)
        assert arrays["zipped_mosaic"].grid.edges == (10, 100)
        assert len(arrays["zipped_mosaic"].chunks) == 80
        assert len(arrays["zero_stack"].chunks) == 3
        assert len(arrays["zipped_part"].chunks) == 20
        assert arrays["unequal"].grid.edges[0] == ((10, 9), (5, 1), (10, 9), (6, 1), (10, 9), (7, 1))
        assert status(manifest, "unequal") is Status.ADAPTED
        assert not any((a.chunks.source == -1).any() for a in arrays.values())
        assert sorted(source_names(manifest)) == [*s, "v.h5"]

    def test_different_encodings_and_the_same_file(self, data: Path, tmp_path: Path) -> None:
        path = write(
            data / "v.h5",
            a={"data": ROW, "chunks": (10, 400), "compression": "gzip"},
            b={"data": ROW + 1, "chunks": (10, 400), "compression": "lzf"},
            c={"data": ROW + 2, "chunks": (10, 400), "fletcher32": True},
        )
        virtual(
            path,
            "v",
            (3, 100, 400),
            *(
                (i, name, dataset, (100, 400))
                for i, (name, dataset) in enumerate([(".", "a"), ("v.h5", "/b"), (".", "c")])
            ),
        )
        manifest = check(path, tmp_path)
        assert status(manifest, "v") is Status.ADAPTED
        assert set(manifest.arrays["v"].chunks.source) == {0}
        assert source_names(manifest) == ["v.h5"]

    def test_what_is_assembled(self, data: Path, tmp_path: Path) -> None:
        chunked = {"data": ROW, "chunks": (30, 400)}
        write(
            data / "s.h5",
            x=chunked,
            f8=ROW.astype("f8"),
            filled={"shape": (100, 400), "dtype": "<i4", "chunks": (10, 400), "fillvalue": 3},
            tall={"data": ROW + 1, "chunks": (10, 400)},
            text=np.array(["a", "bc"], dtype=object),
        )
        with h5py.File(data / "s.h5", "a") as f:
            f["filled"][:10] = 1
            plist = h5py.h5p.create(h5py.h5p.DATASET_CREATE)
            plist.set_layout(h5py.h5d.COMPACT)
            made = h5py.h5d.create(f.id, b"compact", h5py.h5t.STD_I32LE, h5py.h5s.create_simple((10,)), plist)
            h5py.Dataset(made)[...] = np.arange(10)
        path = data / "v.h5"
        whole = (np.s_[:], "s.h5", "x", (100, 400))
        virtual(path, "cut", (50, 400), (np.s_[:], "s.h5", "x", (100, 400), np.s_[5:55]))
        virtual(path, "begins_within", (85, 400), (np.s_[:], "s.h5", "x", (100, 400), np.s_[5:90]))
        virtual(path, "ends_within", (45, 400), (np.s_[:], "s.h5", "x", (100, 400), np.s_[30:75]))
        virtual(path, "strided", (50, 400), (np.s_[:], "s.h5", "x", (100, 400), np.s_[::2]))
        virtual(path, "strided_target", (200, 400), (np.s_[::2], "s.h5", "x", (100, 400)))
        virtual(path, "over", (100, 400), whole, (np.s_[50:], "s.h5", "tall", (100, 400), np.s_[:50]))
        virtual(path, "under", (100, 400), (np.s_[50:], "s.h5", "filled", (100, 400), np.s_[:50]), whole)
        virtual(path, "filled", (100, 400), (np.s_[:], "s.h5", "filled", (100, 400)))
        virtual(path, "compact", (1000,), (np.s_[:10], "s.h5", "compact", (10,)))
        virtual(path, "small", (10,), (np.s_[:], "s.h5", "compact", (10,)))
        virtual(path, "column", (100, 30), (np.s_[:], "s.h5", "x", (100, 400), np.s_[:, 7:37]))
        virtual(
            path,
            "misfit",
            (100, 800),
            (np.s_[:, :400], "s.h5", "x", (100, 400)),
            (np.s_[:, 400:], "s.h5", "tall", (100, 400)),
        )
        with h5py.File(path, "a") as f:
            for name, layout in (("converted", (100, 400)), ("text", (2,))):
                made = h5py.VirtualLayout(layout, "<i4" if name == "converted" else h5py.string_dtype())
                made[:] = h5py.VirtualSource("s.h5", {"converted": "f8"}.get(name, name), layout)
                f.create_virtual_dataset(name, made)
        virtual(data / "nested.h5", "v", (200, 400), (np.s_[:100], "v.h5", "over", (100, 400)))
        manifest = check(path, tmp_path)
        assert manifest.report.problems == ()
        assert {status(manifest, p) for p in manifest.arrays} == {Status.INLINED}
        assert source_names(manifest) == ["v.h5", "s.h5"]
        reasons = {e.path: e.reason for e in manifest.report}
        for name, reason in (
            ("cut", "cuts chunks"),
            ("begins_within", "cuts chunks"),
            ("ends_within", "cuts chunks"),
            ("strided", "strides"),
            ("over", "above the other"),
            ("filled", "another fill value"),
            ("converted", "another type"),
            ("misfit", "do not end at the same places"),
        ):
            assert reason in reasons[f"/{name}"]
        nested = check(data / "nested.h5", tmp_path)
        assert "itself virtual" in next(e.reason for e in nested.report if e.path == "/v")
        assert source_names(nested) == ["nested.h5", "v.h5", "s.h5"]

    def test_numbered_and_growing_sources(self, data: Path, tmp_path: Path) -> None:
        for i in range(3):
            write(data / f"p{i}.h5", x={"data": ROW[:10] + i, "maxshape": (None, 400), "chunks": (10, 400)})
        unlimited = h5py.h5s.UNLIMITED
        with h5py.File(data / "v.h5", "w", libver="latest") as f:
            for name, filename in (("numbered", b"p%b.h5"), ("growing", b"p1.h5")):
                plist = h5py.h5p.create(h5py.h5p.DATASET_CREATE)
                space = h5py.h5s.create_simple((0, 400), (unlimited, 400))
                if name == "numbered":
                    space.select_hyperslab((0, 0), (unlimited, 1), (10, 400), (10, 400))
                    source = h5py.h5s.create_simple((10, 400))
                else:
                    space.select_hyperslab((0, 0), (1, 1), None, (unlimited, 400))
                    source = h5py.h5s.create_simple((0, 400), (unlimited, 400))
                    source.select_hyperslab((0, 0), (1, 1), None, (unlimited, 400))
                plist.set_virtual(space, filename, b"x", source)
                made = h5py.h5s.create_simple((0, 400), (unlimited, 400))
                h5py.h5d.create(f.id, name.encode(), h5py.h5t.STD_I32LE, made, plist)
        manifest = check(data / "v.h5", tmp_path)
        assert manifest.arrays["numbered"].shape == (30, 400)
        assert manifest.arrays["growing"].shape == (10, 400)
        assert sorted(source_names(manifest)) == ["p0.h5", "p1.h5", "p2.h5", "v.h5"]
        for i in range(3):
            (data / f"p{i}.h5").unlink()
        manifest = refindex.scan(data / "v.h5")
        assert "p0.h5" in problem(manifest, "numbered")
        assert "p1.h5" in problem(manifest, "growing")

    def test_missing_sources_are_named(self, data: Path) -> None:
        """h5py reads fill values without a word."""
        write(data / "s.h5", x=ROW)
        path = data / "v.h5"
        virtual(path, "file", (100, 400), (np.s_[:], "gone.h5", "x", (100, 400)))
        virtual(path, "dataset", (100, 400), (np.s_[:], "s.h5", "gone", (100, 400)))
        virtual(path, "small", (5,), (np.s_[:], "gone.h5", "x", (5,)))
        virtual(path, "strided", (50, 400), (np.s_[:], "gone.h5", "x", (100, 400), np.s_[::2]))
        virtual(
            path, "half", (200, 400), (np.s_[:100], "s.h5", "x", (100, 400)), (np.s_[100:], "gone.h5", "x", (100, 400))
        )
        virtual(data / "outer.h5", "v", (100, 400), (np.s_[:], "v.h5", "file", (100, 400)))
        with h5py.File(path, "a") as f:
            layout = h5py.VirtualLayout((3,), h5py.string_dtype())
            layout[:] = h5py.VirtualSource("gone.h5", "x", (3,))
            f.create_virtual_dataset("text", layout)
        (data / "garbage.h5").write_bytes(b"no HDF5 file at all" * 100)
        virtual(path, "garbage", (100, 400), (np.s_[:], "garbage.h5", "x", (100, 400)))
        with h5py.File(path) as f:
            assert f["file"][0, 0] == -5
        manifest = refindex.scan(path)
        assert manifest.arrays == {}
        for name in ("file", "dataset", "small", "strided", "half", "text"):
            assert "gone" in problem(manifest, name)
            assert "fill values" in problem(manifest, name)
        assert "garbage.h5" in problem(manifest, "garbage")
        assert "gone.h5" in problem(refindex.scan(data / "outer.h5"), "v")

    def test_names_are_found_where_libhdf5_finds_them(
        self, data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        (data / "sub").mkdir()
        write(data / "s.h5", x=ROW + 1)
        write(data / "sub" / "s.h5", x=ROW + 2)
        write(data / "only.h5", x=ROW + 3)
        write(tmp_path / "elsewhere" / "s.h5", x=ROW + 4)
        write(tmp_path / "elsewhere" / "here.h5", x=ROW + 5)
        path = write(data / "v.h5", x=ROW)
        names = ["s.h5", "sub/s.h5", "./sub/../s.h5", str(data / "sub" / "s.h5"), "/nowhere/s.h5", "only.h5"]
        for i, name in enumerate(names):
            virtual(path, f"v{i}", (100, 400), (np.s_[:], name, "x", (100, 400)))
            virtual(path, f"w{i}", (50, 400), (np.s_[:], name, "x", (100, 400), np.s_[::2]))
        virtual(path, "here", (100, 400), (np.s_[:], "here.h5", "x", (100, 400)))
        manifest = refindex.scan(path)
        assert "current directory" in problem(manifest, "here")
        with h5py.File(path) as f, refindex.open(path) as archive:
            for i, first in enumerate((1, 2, 1, 2, 1, 3)):
                assert f[f"v{i}"][0, 0] == archive.group[f"v{i}"][0, 0] == first
                assert np.array_equal(f[f"w{i}"][...], archive.group[f"w{i}"][...])
        # The directory of a symbolic link comes first, that of the file it leads to last.
        link = tmp_path / "elsewhere" / "sub"
        link.mkdir()
        (link / "v.h5").symlink_to(path)
        write(link / "s.h5", x=ROW + 6)
        with h5py.File(link / "v.h5") as f, refindex.open(link / "v.h5") as archive:
            for name in ("v0", "v3", "v5", "w0"):
                assert f[name][0, 0] == archive.group[name][0, 0]
        monkeypatch.setenv("HDF5_VDS_PREFIX", str(data / "sub"))
        assert "HDF5_VDS_PREFIX" in problem(refindex.scan(path), "v0")

    def test_too_large_to_assemble(self, data: Path) -> None:
        with h5py.File(data / "s.h5", "w") as f:
            f.create_dataset("x", (20 << 20,), "<i4", chunks=(1 << 20,))
        virtual(data / "v.h5", "v", (17 << 20,), (np.s_[:], "s.h5", "x", (20 << 20,), np.s_[1 : (17 << 20) + 1]))
        assert "cuts chunks" in problem(refindex.scan(data / "v.h5"), "v")

    def test_large_sources(self, data: Path) -> None:
        """Contiguous sources are cut as if they were served themselves; values that are assembled are cut, too."""
        values = np.arange(6 << 20, dtype="<i4").reshape(6, 1 << 20)
        write(data / "s.h5", x=values)
        path = data / "v.h5"
        virtual(path, "rows", (3, 1 << 20), (np.s_[:], "s.h5", "x", values.shape, np.s_[2:5]))
        virtual(path, "assembled", (3, 1 << 20), (np.s_[:], "s.h5", "x", values.shape, np.s_[::2]))
        with refindex.open(path) as archive:
            assert np.array_equal(archive.group["rows"][...], values[2:5])
            assert np.array_equal(archive.group["assembled"][...], values[::2])
            assert archive.group["assembled"].chunks == (1, 1 << 20)

    def test_remote_files_are_never_left_to_libhdf5(self, data: Path) -> None:
        """h5py's driver for Python files hands out the file itself for every name: the same path is in both."""
        import fsspec

        write(data / "s.h5", x=ROW + 1)
        path = write(data / "v.h5", x=ROW)
        virtual(path, "whole", (100, 400), (np.s_[:], "s.h5", "x", (100, 400)))
        virtual(path, "strided", (50, 400), (np.s_[:], "s.h5", "x", (100, 400), np.s_[::2]))
        with h5py.File(path, "a") as f:
            f["link"] = h5py.ExternalLink("s.h5", "/x")
            f["gone"] = h5py.ExternalLink("gone.h5", "/x")
        memory = fsspec.filesystem("memory")
        for name in ("s.h5", "v.h5"):
            memory.pipe(f"/layouts/{name}", (data / name).read_bytes())
        try:
            manifest = refindex.scan("memory://layouts/v.h5")
            assert "cannot reach" in problem(manifest, "strided")
            assert "gone.h5" in problem(manifest, "gone")
            with refindex.open("memory://layouts/v.h5") as archive:
                assert archive.group["whole"][0, 0] == 1
                assert archive.group["link"][0, 0] == 1
                assert archive.group["x"][0, 0] == 0
        finally:
            memory.rm("/layouts", recursive=True)


class TestExternalLinks:
    def test_datasets_groups_and_chains(self, data: Path, tmp_path: Path) -> None:
        (data / "sub").mkdir()
        with h5py.File(data / "sub" / "b.h5", "w") as f:
            f["x"] = ROW + 2
            f["g/y"] = ROW + 3
            f["g/soft"] = h5py.SoftLink("y")
            f["g/abs"] = h5py.SoftLink("/x")
            f["back"] = h5py.ExternalLink("../a.h5", "/x")
            f["up"] = h5py.ExternalLink("../a.h5", "/")
            f["next"] = h5py.ExternalLink("c.h5", "/x")
            f["gone"] = h5py.ExternalLink("gone.h5", "/x")
        with h5py.File(data / "sub" / "c.h5", "w") as f:
            f.create_dataset("x", data=ROW + 4, chunks=(10, 400), compression="lzf")
        with h5py.File(data / "a.h5", "w") as f:
            f["x"], f["g/y"] = ROW, ROW + 1
            f["one"] = h5py.ExternalLink("sub/b.h5", "x")
            f["again"] = h5py.ExternalLink("sub/b.h5", "/x")
            f["all"] = h5py.ExternalLink("sub/b.h5", "/")
            f["group"] = h5py.ExternalLink(str(data / "sub" / "b.h5"), "/g")
            f["chain"] = h5py.ExternalLink("sub/b.h5", "/next")
            f["through"] = h5py.SoftLink("/all/g/y")
            f["loop"] = h5py.ExternalLink("a.h5", "/loop")
            f["noobject"] = h5py.ExternalLink("sub/b.h5", "/nothing")
            f["nofile"] = h5py.ExternalLink("gone.h5", "/x")
            f["behind"] = h5py.SoftLink("/nofile")
        manifest = check(data / "a.h5", tmp_path)
        assert set(manifest.arrays) == {
            *("x", "g/y", "one", "again", "chain", "through", "group/y", "group/soft", "group/abs"),
            *("all/x", "all/g/y", "all/g/soft", "all/g/abs", "all/back", "all/next"),
        }
        with refindex.open(data / "a.h5") as archive:
            first = {path: int(archive.group[path][0, 0]) for path in archive.arrays}
        assert first["x"] == first["all/back"] == 0
        assert first["g/y"] == 1
        assert first["one"] == first["again"] == first["group/abs"] == 2
        assert first["all/g/y"] == first["through"] == first["group/soft"] == 3
        assert first["chain"] == first["all/next"] == 4
        assert sorted(source_names(manifest)) == ["a.h5", "b.h5", "c.h5"]
        assert "contains it" in problem(manifest, "all/up")
        assert "'/nothing'" in problem(manifest, "noobject")
        for path in ("nofile", "behind", "all/gone"):
            assert "gone.h5" in problem(manifest, path)
        assert "circle" in problem(manifest, "loop")
        assert manifest.arrays["one"].chunks is manifest.arrays["again"].chunks

    def test_dimensions_make_sense_within_a_group(self, data: Path, weather: Path) -> None:
        shutil.copy(weather, data / "weather.nc")
        with h5py.File(data / "a.h5", "w") as f:
            f["t2m"] = h5py.ExternalLink("weather.nc", "/t2m")
            f["everything"] = h5py.ExternalLink("weather.nc", "/")
            f["own"] = np.zeros(1000)
        manifest = refindex.scan(data / "a.h5")
        assert manifest.arrays["everything/t2m"].dims == ("time", "lat", "lon")
        assert manifest.arrays["t2m"].dims == ("time", "lat", "lon")
        theirs = xr.open_dataset(weather, engine="refindex").load()
        xr.testing.assert_identical(
            xr.open_dataset(data / "a.h5", engine="refindex", group="everything").load(), theirs
        )
        assert xr.open_dataset(data / "a.h5", engine="refindex").load().sizes["time"] == 6
        alone = write(data / "b.h5", other=np.zeros((7, 300)))
        with h5py.File(alone, "a") as f:
            f["t2m"] = h5py.ExternalLink("weather.nc", "/t2m")
        assert refindex.scan(alone).arrays["t2m"].dims == ("time", "lat", "lon")
        assert set(refindex.scan(data / "a.h5", variables=["everything/t2m"]).arrays) >= {
            "everything/t2m",
            "everything/time",
        }

    def test_addresses_of_two_files_are_not_mixed_up(self, data: Path) -> None:
        """Both files are laid out alike: every object has the same address in both."""
        for name, add in (("a.h5", 0), ("b.h5", 7)):
            with h5py.File(data / name, "w") as f:
                f.create_dataset("x", data=ROW + add, chunks=(1, 400))
                if not add:
                    f["link"] = h5py.ExternalLink("b.h5", "/x")
        with refindex.open(data / "a.h5") as archive:
            assert np.array_equal(archive.group["x"][...], ROW)
            assert np.array_equal(archive.group["link"][...], ROW + 7)

    def test_an_unreadable_file_costs_only_its_links(self, data: Path, tmp_path: Path) -> None:
        (data / "garbage.h5").write_bytes(b"no HDF5 file at all" * 100)
        for name in ("a", "b"):
            write(data / f"{name}.h5", x=ROW)
            with h5py.File(data / f"{name}.h5", "a") as f:
                f["bad"] = h5py.ExternalLink("garbage.h5", "/x")
                f["folder"] = h5py.ExternalLink(".", "/x")
                f["good"] = h5py.ExternalLink("b.h5", "/x")
        manifest = refindex.scan([data / "a.h5", data / "b.h5"], join=False)
        assert set(manifest.arrays) == {"a/x", "a/good", "b/x", "b/good"}
        assert len(manifest.report.problems) == 4
        assert {s.url.rpartition("/")[2] for s in manifest.sources} == {"a.h5", "b.h5"}


def test_more_linked_files_than_may_be_open(data: Path) -> None:
    with h5py.File(data / "a.h5", "w") as f:
        f.create_dataset("z", data=ROW, chunks=(1, 40))
        for i in range(60):
            write(data / f"s{i}.h5", x=ROW[:1] + i)
            f[f"link{i:02}"] = h5py.ExternalLink(f"s{i}.h5", "x")
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (220, hard))
    try:
        manifest = refindex.scan(data / "a.h5")
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
    assert {"z", "link00"} < set(manifest.arrays)
    assert "ulimit" in problem(manifest, "link59")


def test_hard_links_share_one_chunk_table(data: Path, tmp_path: Path) -> None:
    with h5py.File(data / "x.h5", "w") as f:
        f.create_dataset("d", data=ROW, chunks=(1, 4))
        f["g/same"] = f["d"]
        f["soft"] = h5py.SoftLink("/g/same")
        f["time"] = np.arange(100.0)
        f["time"].make_scale()
        f["d"].dims[0].attach_scale(f["time"])
        f["g/clock"] = f["time"]
        f["g/other"] = np.zeros((50, 200))
    manifest = check(data / "x.h5", tmp_path)
    arrays = manifest.arrays
    assert arrays["d"].chunks is arrays["g/same"].chunks is arrays["soft"].chunks
    assert arrays["time"].chunks is not arrays["g/clock"].chunks  # a coordinate, and none
    assert arrays["g/same"].path == "g/same"


@contextlib.contextmanager
def dead_writer(path: Path, *, swmr: bool) -> Iterator[None]:
    """A file whose writer was killed."""
    code = (
        "import h5py, numpy as np, os, sys\n"
        "f = h5py.File(sys.argv[1], 'w', libver='latest')\n"
        "f['c'] = np.arange(1000)\n"
        "d = f.create_dataset('d', (0, 40), 'i4', chunks=(10, 40), maxshape=(None, 40), compression='gzip')\n"
        "e = f.create_dataset('e', (40, 0), 'i4', chunks=(40, 10), maxshape=(40, None))\n"
        "if int(sys.argv[2]): f.swmr_mode = True\n"
        "d.resize((1000, 40)); d[:] = np.arange(40000).reshape(1000, 40); d.flush()\n"
        "e.resize((40, 1000)); e[:] = np.arange(40000).reshape(40, 1000); e.flush()\n"
        "f.flush(); os._exit(0)\n"
    )
    environment = {**os.environ, "HDF5_USE_FILE_LOCKING": "FALSE"}
    subprocess.run([sys.executable, "-c", code, str(path), str(int(swmr))], check=True, timeout=60, env=environment)
    yield


@pytest.mark.parametrize("swmr", [False, True])
def test_a_file_that_its_writer_did_not_close(data: Path, tmp_path: Path, swmr: bool) -> None:
    path = data / "x.h5"
    with dead_writer(path, swmr=swmr):
        before = path.read_bytes()
    with pytest.raises(OSError, match="already open"):
        h5py.File(path)
    manifest = refindex.scan(path)
    assert manifest.report.problems == ()
    (note,) = (e for e in manifest.report.select(Status.NOTE) if e.path == "/")
    assert "without closing it" in note.reason
    manifest.save(tmp_path / "m.refindex")
    with refindex.open(tmp_path / "m.refindex") as archive:
        assert np.array_equal(archive.group["d"][...], np.arange(40000).reshape(1000, 40))
        assert np.array_equal(archive.group["e"][...], np.arange(40000).reshape(40, 1000))
        assert np.array_equal(archive.group["c"][...], np.arange(1000))
    assert path.read_bytes() == before


def test_a_damaged_superblock_is_not_mended(data: Path) -> None:
    with dead_writer(data / "x.h5", swmr=True):
        pass
    raw = bytearray((data / "x.h5").read_bytes())
    raw[11] ^= 0x80  # a flag that means nothing: only the checksum tells
    (data / "x.h5").write_bytes(raw)
    with pytest.raises(refindex.FormatError):
        refindex.scan(data / "x.h5")
    assert clear_flags(io.BytesIO(raw)) is None


@pytest.mark.parametrize("libver", ["earliest", "v110", "latest"])
@pytest.mark.parametrize("pattern", ["x%d.h5", "run1_%05d_a.h5"])
def test_a_family_of_files(data: Path, tmp_path: Path, libver: str, pattern: str) -> None:
    with h5py.File(data / pattern, "w", driver="family", memb_size=1 << 14, libver=libver) as f:
        f["contiguous"] = ROW
        f.create_dataset("chunked", data=ROW, chunks=(10, 30), compression="gzip")
        f.create_dataset("growing", data=ROW, chunks=(10, 30), maxshape=(None, 400))
        f.create_dataset("lzf", data=ROW, chunks=(10, 30), compression="lzf")
        f["text"] = "variable"
        f["same"] = f["chunked"]
        expected = {name: f[name][()] for name in f}
    path = data / (pattern % 0)
    manifest = refindex.scan(path)
    assert manifest.report.problems == ()
    assert len(manifest.sources) > 20
    assert (manifest.arrays["chunked"].chunks.source > 0).any()
    assert (manifest.arrays["lzf"].chunks.source == -1).any()
    manifest.save(tmp_path / "m.refindex")
    with refindex.open(tmp_path / "m.refindex") as archive:
        for name, values in expected.items():
            assert same(values, zarr.open_array(archive.store, path=name, mode="r")[...]) == ""
    (data / (pattern % 3)).unlink()
    with pytest.raises(refindex.RefindexError):
        refindex.scan(path)


def test_what_is_not_served_of_a_family_is_reported(data: Path) -> None:
    for libver in ("earliest", "latest"):
        name = f"{libver}%d.h5"
        with h5py.File(data / name, "w", driver="family", memb_size=8 << 20, libver=libver) as f:
            f["x"] = ROW
            f["large"] = np.arange(10 << 20, dtype="<i4")
        assert "h5repart" in problem(refindex.scan(data / (name % 0)), "large")
        (data / (name % 0)).rename(data / f"{libver}_alone.h5")
        with pytest.raises(refindex.UnsupportedError, match="h5repart"):
            refindex.scan(data / f"{libver}_alone.h5")


def test_a_truncated_file_is_not_taken_for_a_family(data: Path) -> None:
    """Old families have no mark: what follows must be of the right size, and no file of its own."""
    for i in range(3):
        write(data / f"run{i}.h5", x=ROW + i)
    whole = (data / "run0.h5").read_bytes()
    (data / "run0.h5").write_bytes(whole[:90_000])
    with pytest.raises(refindex.FormatError, match="truncated"):
        refindex.scan(data / "run0.h5")
    (data / "run2.h5").unlink()
    other = (data / "run1.h5").read_bytes()
    (data / "run1.h5").write_bytes(other[: len(whole) - 90_000])
    with pytest.raises(refindex.FormatError, match="file of its own"):
        refindex.scan(data / "run0.h5")
    (data / "run1.h5").write_bytes(whole[90_000:])
    with refindex.open(data / "run0.h5") as archive:
        assert np.array_equal(archive.group["x"][...], ROW)


def test_user_blocks_and_small_addresses(data: Path, tmp_path: Path) -> None:
    plist = h5py.h5p.create(h5py.h5p.FILE_CREATE)
    plist.set_userblock(1024)
    plist.set_sizes(4, 4)
    file = h5py.h5f.create(bytes(data / "x.h5"), h5py.h5f.ACC_TRUNC, plist)
    with h5py.File(file) as f:
        f["contiguous"] = ROW
        f.create_dataset("chunked", data=ROW, chunks=(3, 50), compression="gzip", maxshape=(None, 400))
        f.create_dataset("sparse", (100, 400), "i4", chunks=(3, 50))[5, 5] = 1
    manifest = check(data / "x.h5", tmp_path)
    assert manifest.report.problems == ()
    assert len(manifest.arrays["chunked"].chunks) == 34 * 8
