"""Exports read back by refindex: the same references, documents and values."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from foreign import OUTPUTS, foreign_store, reference_filesystem
from hypothesis import given
from hypothesis import strategies as st

import refindex
from refindex import Array, ChunkGrid, ChunkTable, Manifest, Node, Source
from refindex.model.zarr_v3 import array_document, dumps, group_document

REFERENCES = [(to, v) for to, v in OUTPUTS if to != "zarr"]
LAYOUTS = [("kerchunk", 2), ("kerchunk", 3), ("kerchunk-parquet", 2), ("kerchunk-parquet", 3)]


def same_relations(one: Manifest, other: Manifest, *, zarr_format: int) -> None:
    assert set(one.groups) == set(other.groups)
    assert set(one.arrays) == set(other.arrays)
    for path, group in one.groups.items():
        assert group.attributes == other.groups[path].attributes
    for path, array in one.arrays.items():
        again = other.arrays[path]
        left, right = dict(array.json), dict(again.json)
        if zarr_format == 2 and len(array.chunks) == array.grid.size:
            # Nothing reads it: version 2 has none where there is no _FillValue.
            left.pop("fill_value")
            right.pop("fill_value")
        if array.grid.is_regular:
            assert left == right
        else:  # Icechunk has lengths in lists
            assert array.grid.counts == again.grid.counts
        ours, theirs = array.chunks, again.chunks
        np.testing.assert_array_equal(ours.chunk, theirs.chunk)
        inline = ours.source < 0
        np.testing.assert_array_equal(inline, theirs.source < 0)
        np.testing.assert_array_equal(ours.length, theirs.length)
        np.testing.assert_array_equal(ours.offset[~inline], theirs.offset[~inline])
        assert [one.sources[n] for n in ours.source[~inline]] == [other.sources[n] for n in theirs.source[~inline]]
        for row in np.flatnonzero(inline).tolist():
            assert ours.inline_bytes(row) == theirs.inline_bytes(row)


@pytest.mark.parametrize(("to", "zarr_format"), REFERENCES)
def test_a_real_file(to: str, zarr_format: int, weather: Path, tmp_path: Path) -> None:
    if to == "icechunk":
        pytest.importorskip("icechunk")
    ours = refindex.scan(weather)
    refindex.export(ours, tmp_path / "out", to=to, zarr_format=zarr_format)
    again = refindex.import_references(tmp_path / "out")
    same_relations(ours, again, zarr_format=zarr_format)
    assert again.arrays["t2m"].encodings == ours.arrays["t2m"].encodings
    again.save(tmp_path / "again.refindex")
    with refindex.open(weather) as one, refindex.open(tmp_path / "again.refindex") as other:
        for path in one.arrays:
            np.testing.assert_array_equal(one.group[path][...], other.group[path][...])


@st.composite
def manifests(draw: st.DrawFn) -> list[dict[str, Any]]:
    """Arrays of bytes: shape, chunk, which chunks exist, and whether they are inline."""
    arrays = []
    for _ in range(draw(st.integers(1, 3))):
        shape = tuple(draw(st.lists(st.integers(0, 7), max_size=3)))
        chunk = tuple(draw(st.integers(1, 4)) for _ in shape)
        size = ChunkGrid.regular(shape, chunk).size
        there = sorted(draw(st.sets(st.integers(0, size - 1), max_size=12))) if size else []
        arrays.append(
            {
                "shape": shape,
                "chunk": chunk,
                "there": there,
                "source": [draw(st.integers(-1, 2)) for _ in there],
                "offset": [draw(st.integers(0, 1000)) for _ in there],
                "path": draw(st.sampled_from(["", "g/", "g/ü %d {{x}}/"])),
            }
        )
    return arrays


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    """Files with names that want escaping, of bytes that tell where they are from."""
    folder = tmp_path_factory.mktemp("files")
    made = []
    for number, name in enumerate(("plain.bin", "ü 100%d?#.bin", 'quote".bin')):
        made.append(folder / name)
        made[-1].write_bytes(np.random.default_rng(number).bytes(2000))
    return made


def build(arrays: list[dict[str, Any]], files: list[Path]) -> Manifest:
    sources = tuple(Source(url=f"file://{path}", size=2000, mtime=path.stat().st_mtime_ns // 1000) for path in files)
    groups = {"": group_document({"title": "made", "n": [1, 2.5, None, {"a": "%s {{b}}"}]})}
    made: dict[str, Array] = {}
    for number, spec in enumerate(arrays):
        grid = ChunkGrid.regular(spec["shape"], spec["chunk"])
        nbytes = int(np.prod(spec["chunk"], dtype=int))
        source = np.array(spec["source"], dtype=np.int32)
        count = int((source < 0).sum())
        # Text that the reader must not take for an encoding of its own.
        text = (b"base64:AAAA" * 60)[:nbytes] * count
        offset = np.array(spec["offset"], dtype=np.int64)
        offset[source < 0] = np.arange(count) * nbytes
        table = ChunkTable.from_columns(
            chunk=spec["there"], source=source, offset=offset, length=nbytes, encoding=-1, data=text
        )
        document = array_document(
            grid=grid,
            data_type="uint8",
            codecs=[{"name": "bytes"}],
            fill_value=0,
            dimension_names=[f"d{number}{axis}" for axis in range(len(spec["shape"]))],
            attributes={"name": f"a{number} {{{{x}}}}", "%d": 1},
        )
        path = f"{spec['path']}a{number}"
        made[path] = Array(path=path, document=dumps(document), chunks=table)
        while path:
            path = path.rpartition("/")[0]
            groups.setdefault(path, group_document({}))
    nodes = {path: Node(path=path, document=dumps(document)) for path, document in groups.items()}
    return Manifest(groups=dict(sorted(nodes.items())), arrays=made, sources=sources)


@pytest.mark.parametrize(("to", "zarr_format"), LAYOUTS)
@given(arrays=manifests())
def test_any_manifest(
    to: str, zarr_format: int, arrays: list[dict[str, Any]], files: list[Path], tmp_path_factory: pytest.TempPathFactory
) -> None:
    folder = tmp_path_factory.mktemp("out")
    ours = build(arrays, files)
    refindex.export(ours, folder / "out", to=to, zarr_format=zarr_format)
    same_relations(ours, refindex.import_references(folder / "out"), zarr_format=zarr_format)
    # fsspec finds the same bytes, and no other chunks.
    fs = reference_filesystem(folder / "out")
    content = [path.read_bytes() for path in files]
    for path, array in ours.arrays.items():
        scalar = not array.shape
        for number in range(array.grid.size):
            coordinates = [str(n) for n in array.grid.coordinates([number])[0].tolist()]
            if to == "kerchunk" and zarr_format == 3:
                key = "/".join([path, "c", *coordinates])
            else:
                key = f"{path}/{'0' if scalar else '.'.join(coordinates)}"
            row = int(array.chunks.find([number])[0])
            if row < 0:
                with pytest.raises(FileNotFoundError):
                    fs.cat_file(key)
                continue
            source, offset = int(array.chunks.source[row]), int(array.chunks.offset[row])
            expected = array.chunks.inline_bytes(row)
            if source >= 0:
                expected = content[source][offset : offset + int(array.chunks.length[row])]
            assert fs.cat_file(key) == expected


def test_icechunk_takes_many_files_and_gaps(files: list[Path], tmp_path: Path) -> None:
    """References as columns and one by one, with gaps and inline chunks between."""
    pytest.importorskip("icechunk")
    rng = np.random.default_rng(0)
    there = np.flatnonzero(rng.random(1000) < 0.8)
    source = np.where(there < 500, there // 250, rng.integers(-1, 3, len(there)))
    spec = {
        "shape": (20, 100), "chunk": (1, 2), "there": there, "source": source,
        "offset": rng.integers(0, 1900, len(there)), "path": "g/",
    }  # fmt: skip
    ours = build([spec], files)
    refindex.export(ours, tmp_path / "repo", to="icechunk")
    same_relations(ours, refindex.import_references(tmp_path / "repo"), zarr_format=3)
    import zarr

    got = zarr.open_group(foreign_store(tmp_path / "repo", "icechunk"), mode="r")["g/a0"][...]
    with refindex.exchange._opened(ours, None, None) as archive:
        np.testing.assert_array_equal(got, archive.group["g/a0"][...])
