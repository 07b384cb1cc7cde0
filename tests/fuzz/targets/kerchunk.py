"""kerchunk's references, JSON and Parquet. No file that they name is looked at but one."""

from __future__ import annotations

import io
from collections.abc import Sequence
from random import Random
from typing import Any
from unittest import mock

import pyarrow as pa
import pyarrow.parquet as pq

from refindex.errors import NotFoundError
from refindex.interop import assemble, templates
from refindex.interop.kerchunk_reading import from_kerchunk
from refindex.model.manifest import Manifest, Source
from tests.fuzz.mutation import join, mutate_bytes, mutate_json, mutate_parts, split, written
from tests.fuzz.target import FindingError, Target
from tests.fuzz.targets.scratch import folder
from tests.fuzz.targets.zarr_stores import _V2, _V3, _WORDS

SIZE = 1000
FILE = "file:///data/f.nc"


def _look(found: Sequence[str], where: str, *_: Any) -> list[Source]:
    if any(url != FILE for url in found):
        raise NotFoundError(f"{where}: no such file")
    return [Source(url=url, size=SIZE, mtime=0) for url in found]


def _taken(path: str) -> Manifest:
    # Rules may stand for a million references, which is not what is looked for here.
    with mock.patch.object(assemble, "look_at", _look), mock.patch.object(templates, "_MOST", 1000):
        manifest = from_kerchunk(path, absent_partitions=True, allow="*")
    for name, array in manifest.arrays.items():
        table = array.chunks
        for source, offset, length in zip(
            table.source.tolist(), table.offset.tolist(), table.length.tolist(), strict=True
        ):
            if source >= 0 and offset + length > SIZE:
                raise FindingError(f"/{name} refers to byte {offset + length} of {SIZE}")
    return manifest


def run_json(data: bytes) -> Any:
    path = folder("kerchunk") / "refs.json"
    path.write_bytes(data)
    return _taken(str(path))


def run_parquet(data: bytes) -> Any:
    place = folder("kerchunk-parquet")
    lazy, *parts = split(data, 3)
    (place / "a").mkdir(exist_ok=True)
    (place / ".zmetadata").write_bytes(lazy)
    for number, part in enumerate(parts):
        (place / "a" / f"refs.{number}.parq").write_bytes(part)
    return _taken(str(place))


def json_seeds() -> list[bytes]:
    array = written(_V2).decode()
    refs: dict[str, Any] = {
        ".zgroup": '{"zarr_format":2}', ".zattrs": '{"t":1}', "a/.zarray": array,
        "a/.zattrs": '{"_ARRAY_DIMENSIONS":["x","y"]}',
        "a/0.0": ["/data/f.nc", 0, 32], "a/0.1": ["file:///data/f.nc", 32, 32], "a/1.0": "base64:" + "A" * 40 + "AAA=",
        "a/1.1": "b" * 32,
    }  # fmt: skip
    rule = {
        "key": "a/{{i}}.{{j}}", "url": "{{u}}", "offset": "{{i * 64 + j * 32}}", "length": "32",
        "dimensions": {"i": {"stop": 2}, "j": [0, 1]},
    }  # fmt: skip
    documents = {key: value for key, value in refs.items() if "/." in key or key.startswith(".")}
    templated = {**documents, "a/0.0": ["{{u}}", 0, 32], "a/0.1": ["{{f(c='data')}}", 1, 32], "a/1.0": ["{{u}}"]}
    third = {
        "zarr.json": '{"zarr_format":3,"node_type":"group"}',
        "a/zarr.json": written(_V3 | {"attributes": {}}).decode(),
    }
    return [
        written(refs),
        written({"version": 1, "refs": refs}),
        written({"version": 1, "templates": {"u": "/data/f.nc", "f": "/{{c}}/f.nc"}, "refs": templated}),
        written({"version": 1, "templates": {"u": "/data/f.nc"}, "gen": [rule], "refs": documents}),
        written({**third, "a/c/0/0": ["/data/f.nc", 0, 32], "a/c/1/1": ["/data/f.nc", 900, 32]}),
    ]


def parquet_seeds() -> list[bytes]:
    documents = {".zgroup": {"zarr_format": 2}, "a/.zarray": _V2, "a/.zattrs": {}}
    found = []
    for records in (4, 2):
        columns = [
            pa.array(["/data/f.nc", None, "/data/f.nc", None][:records]),
            pa.array([0, 0, 64, 0][:records], type=pa.int64()),
            pa.array([32, 0, 32, 0][:records], type=pa.int64()),
            pa.array([None, bytes(32), None, None][:records], type=pa.binary()),
        ]
        for compression in ("zstd", "none"):
            made = io.BytesIO()
            pq.write_table(
                pa.Table.from_arrays(columns, names=["path", "offset", "size", "raw"]), made, compression=compression
            )
            lazy = written({"metadata": documents, "record_size": records})
            found.append(join([lazy, made.getvalue(), made.getvalue() if records == 2 else b""]))
    return found


_MORE: list[Any] = [
    *_WORDS, ["/data/f.nc"], ["/data/f.nc", 0, 10], ["/data/f.nc", 999, 2], ["/data/f.nc", -1, 5], ["", 0, 1],
    "base64:AAAA", "base64:!", "{{u}}", "{{u * 3}}", "{{ 9 ** 9 ** 9 }}", "{{ 'a' * 10 ** 10 }}",
    "{{ '%1000000000d' % 1 }}", "{{ u.x.y }}",
    "{{ u | center(10 ** 9) }}", "{% for i in range(9999) %}{% for j in range(9999) %}{% endfor %}{% endfor %}",
    "{{ range(10 ** 9) | list }}", "{{ '{:1000000000}'.format(1) }}", "{{ [0] * 10 ** 9 }}",
    {"start": 0, "stop": 3, "step": 1},
    {"stop": 2**62}, "{{ 1 << 10 ** 10 }}", "{{", "{{ u(u=u) }}", "{{ f(c=f) }}", "{{ 10 ** 5000 }}",
]  # fmt: skip


def _json(data: bytes, rng: Random) -> bytes:
    return mutate_json(data, rng, _MORE)


def _part(data: bytes, rng: Random) -> bytes:
    length = min(int.from_bytes(data[-8:-4], "little"), len(data))

    def place(found: bytes | bytearray, r: Random) -> int:
        return max(0, len(found) - 8 - int(r.random() * length)) if r.random() < 0.7 else int(r.random() * len(found))

    return mutate_bytes(data, rng, place, resize=0.05)


_MODULES = (
    "refindex.interop.kerchunk_reading",
    "refindex.interop.assemble",
    "refindex.interop.templates",
    "refindex.interop.declared",
)
TARGETS = [
    Target(name="kerchunk-json", run=run_json, seeds=json_seeds, mutate=_json, modules=_MODULES),
    Target(
        name="kerchunk-parquet",
        run=run_parquet,
        seeds=parquet_seeds,
        mutate=lambda data, rng: mutate_parts((_json, _part, _part), data, rng),
        modules=_MODULES[:2],
    ),
]
