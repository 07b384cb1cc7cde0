"""Files made to do harm: little bytes that claim, inflate or lead to much. All answers come in time, in little memory.

Every file is scanned and read in a child process, which a defect may crash, and by the command with ``--isolate``.
"""

from __future__ import annotations

import bz2
import json
import os
import re
import struct
import subprocess
import sys
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest
from h5py import h5a, h5d, h5g, h5p, h5s, h5t, h5z

pytestmark = pytest.mark.timeout(300)

SECONDS, MEGABYTES = 10, 1500
"""What a file may take; a child that does nothing takes about 200 MB. Most bombs below are of 3,000."""

CHILD = """
import json, resource, sys, time
resource.setrlimit(resource.RLIMIT_DATA, (6 << 30, 6 << 30))
resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
import numpy as np
import refindex
def value(array):
    if array.nbytes <= 1 << 24:
        return np.asarray(array[...])
    # The corners of what cannot be read whole.
    return np.array([np.asarray(array[tuple(slice(n - 1, n) if last else slice(0, 1) for n in array.shape)]).ravel()[0]
        for last in (False, True)])
for path in sys.argv[1:]:
    start = time.process_time()
    told = {"file": path, "values": {}, "errors": {}, "report": []}
    print(json.dumps({"begun": path}), flush=True)
    try:
        with refindex.open(path) as archive:
            told["report"] = [(ascii(e.path), e.status, e.reason[:300]) for e in archive.report]
            for name in archive.arrays:
                try:
                    found = value(archive[name])
                    told["values"][name] = [found.dtype.str, found.shape, found.ravel()[:100].tolist()]
                except refindex.RefindexError as error:
                    told["errors"][name] = f"{type(error).__name__}: {error}"
    except refindex.RefindexError as error:
        told["refused"] = f"{type(error).__name__}: {error}"
    told["seconds"] = time.process_time() - start
    told["megabytes"] = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss >> 10
    print(json.dumps(told, default=str), flush=True)
"""

type Maker = Callable[[Path], None]
MAKERS: dict[str, Maker] = {}
EXPECTED: dict[str, tuple[dict[str, Any], str]] = {}
"""Of each file: values by path (``...``: an error, or not served, but never a value), and a pattern for what is said of
what is missing (empty: nothing is)."""


def hostile(values: dict[str, Any], said: str = "") -> Callable[[Maker], Maker]:
    def register(maker: Maker) -> Maker:
        MAKERS[maker.__name__] = maker
        EXPECTED[maker.__name__] = values, said
        return maker

    return register


GOOD = np.arange(5)


def zeros_deflated(nbytes: int) -> bytes:
    """A deflate stream of many zeros; the same piece again and again, so that it is made at once."""
    piece = bytes(1 << 20)
    stream = zlib.compressobj(9)
    first = stream.compress(piece) + stream.flush(zlib.Z_FULL_FLUSH)
    again = stream.compress(piece) + stream.flush(zlib.Z_FULL_FLUSH)
    return first + again * (nbytes // len(piece) - 1) + stream.flush()


def zeros_zstd(nbytes: int) -> bytes:
    """A Zstandard frame of many zeros (RFC 8878): single segment, its size in 8 bytes, blocks of one repeated byte."""
    blocks = nbytes >> 17
    block, last = ((1 << 17) << 3 | 1 << 1).to_bytes(3, "little"), ((1 << 17) << 3 | 1 << 1 | 1).to_bytes(3, "little")
    head = struct.pack("<IBQ", 0xFD2FB528, 0xE0, nbytes)
    return head + (block + b"\0") * (blocks - 1) + last + b"\0"


def chunk_of(path: Path, filters: list[tuple[int, tuple[int, ...]]], data: bytes, *, small: bool) -> None:
    """A dataset of one chunk with bytes of our own: a coordinate, which a scan reads, or one that it does not."""
    shape = (8,) if small else (500, 500)
    with h5py.File(path, "w") as file:
        file["good"] = GOOD
        creation = h5p.create(h5p.DATASET_CREATE)
        creation.set_chunk(shape)
        for number, values in filters:
            creation.set_filter(number, h5z.FLAG_OPTIONAL, values)
        made = h5d.create(file.id, b"x", h5t.STD_I64LE, h5s.create_simple(shape), creation)
        made.write_direct_chunk((0,) * len(shape), data)
        h5py.Dataset(made).make_scale("x")


LZF, DEFLATE, SHUFFLE = (32000, (4, 261, 64)), (1, (6,)), (2, (8,))
DEFLATED = zeros_deflated(3 << 30)
BZIPPED = bz2.compress(bytes(1 << 28))
BOMBS: dict[str, tuple[list[tuple[int, tuple[int, ...]]], Callable[[], bytes]]] = {
    "deflate": ([DEFLATE], lambda: DEFLATED),
    "shuffle_deflate": ([SHUFFLE, DEFLATE], lambda: DEFLATED),
    "deflate_twice": ([DEFLATE, DEFLATE], lambda: zlib.compress(DEFLATED)),
    "lzf_deflate": ([LZF, DEFLATE], lambda: DEFLATED),
    "bzip2": ([(307, (9,))], lambda: BZIPPED),
    "zstd": ([(32015, (3,))], lambda: zeros_zstd(3 << 30)),
    "lz4": ([(32004, (0,))], lambda: struct.pack(">QII", 1 << 33, 1 << 30, 100) + bytes(100)),
    "szip": ([(4, (141, 8, 64, 64))], lambda: struct.pack("<I", 2**32 - 1) + bytes(100)),
    "bitshuffle": ([(32008, (0, 5, 8, 0, 2))], lambda: struct.pack(">QI", 1 << 33, 1 << 13) + bytes(100)),
    "blosc": ([(32001, (2, 2, 8, 64, 5, 1, 1))], lambda: bytes([2, 1, 0, 8]) + struct.pack("<III", 2**31, 2**30, 99)),
}


def _bomb(name: str, *, small: bool) -> None:
    filters, data = BOMBS[name]

    def make(path: Path) -> None:
        chunk_of(path, filters, data(), small=small)

    make.__name__ = f"bomb_{name}{'_coordinate' if small else ''}"
    hostile({"good": GOOD, "x": ...}, "x")(make)


for _name in BOMBS:
    _bomb(_name, small=True)
    _bomb(_name, small=False)


@hostile({"good": GOOD}, "text.*longer")
def bomb_of_strings(path: Path) -> None:
    with h5py.File(path, "w") as file:
        file["good"] = GOOD
        made = file.create_dataset("text", (8,), dtype=h5py.string_dtype(), chunks=(8,), compression="gzip")
        made.id.write_direct_chunk((0,), DEFLATED)


@hostile({"a/v": np.arange(4)}, "left out")
def paths_without_end(path: Path) -> None:
    """40 groups, and 2 ** 40 paths."""
    with h5py.File(path, "w") as file:
        group = file.create_group("a")
        group["v"] = np.arange(4)
        for _ in range(40):
            below = group.create_group("a")
            group["b"] = below
            group = below


@hostile({}, "contains it")
def everybody_in_everybody(path: Path) -> None:
    with h5py.File(path, "w") as file:
        groups = [file.create_group(f"g{number}") for number in range(30)]
        for group in groups:
            for number, other in enumerate(groups):
                group[f"l{number}"] = other


@hostile({"v": np.arange(4)}, "contains it")
def circles(path: Path) -> None:
    with h5py.File(path, "w") as file:
        file["v"] = np.arange(4)
        file["me"] = file["/"]
        group = file.create_group("a/b/c")
        group["up"] = file["a"]
        file["a/b/root"] = file["/"]


@hostile({"v": np.arange(4)}, "")
def soft_circles(path: Path) -> None:
    with h5py.File(path, "w") as file:
        file["v"] = np.arange(4)
        for name, target in {"x": "/y", "y": "/x", "z": "/z", "g/up": "/g", "deep": "/g/up/up/up/up"}.items():
            file[name] = h5py.SoftLink(target)


@hostile({"v": np.arange(4)}, "")
def external_circles(path: Path) -> None:
    other = path.with_name("external_circles_2.h5")
    for here, there in ((path, other), (other, path)):
        with h5py.File(here, "w") as file:
            file["v"] = np.arange(4)
            for name, target in {"other": "/", "same": "/same", "far": "/other/other/other"}.items():
                file[name] = h5py.ExternalLink(there.name, target)
            file["self"] = h5py.ExternalLink(here.name, "/self")


DEPTH = 10_000


def _deep(libver: str | None) -> Maker:
    def make(path: Path) -> None:
        with h5py.File(path, "w", libver=libver) as file:
            group = file.id
            for _ in range(DEPTH):
                group = h5g.create(group, b"g")
            h5py.Group(group)["v"] = np.arange(4)

    make.__name__ = f"deep_{libver}"
    return make


for _libver in (None, "latest"):
    hostile({"g/" * DEPTH + "v": np.arange(4)})(_deep(_libver))


@hostile({"good": GOOD, "filled": [0, 0], "late": [0, 0], "wide": [0, 0], "prime": [0, 0], "sparse": [3, 0]}, "")
def little_that_claims_much(path: Path) -> None:
    with h5py.File(path, "w") as file:
        file["good"] = GOOD
        file.create_dataset("filled", (2**40,), "u1", chunks=(1,))
        file.create_dataset("late", (2**62,), "u1")
        file.create_dataset("wide", (2**31, 2**31), "u1")
        file.create_dataset("prime", (2**61 - 1,), "u1")
        file.create_dataset("sparse", (2**40,), "u1", chunks=(1,))[0] = 3


@hostile({"good": GOOD}, "text.*claims|claims.*stored")
def strings_and_wide_numbers_of_which_nothing_is_stored(path: Path) -> None:
    with h5py.File(path, "w") as file:
        file["good"] = GOOD
        for name, length in {"text": 2**28, "texts": 2**40}.items():
            file.create_dataset(name, (length,), h5py.string_dtype())
        file.create_dataset("wide", (2**40,), np.longdouble)


@hostile({"good": GOOD, "x": ...}, "x")
def stored_and_claimed(path: Path) -> None:
    """Values are there, but not as many as the dataspace says."""
    with h5py.File(path, "w") as file:
        file["good"] = GOOD
        file["x"] = np.zeros(12345, "u1")
    patch(path, struct.pack("<Q", 12345), struct.pack("<Q", 2**44))


@hostile({"good": GOOD, "x": ...}, "")
def an_index_of_2_to_the_40(path: Path) -> None:
    """A fixed array of 1,236 chunks; the dataspace says that there are more than 2 ** 40."""
    with h5py.File(path, "w", libver="v110") as file:
        file["good"] = GOOD
        file.create_dataset("x", (12345,), "u1", chunks=(10,))[...] = 1
    raw = bytearray(path.read_bytes())
    for at in places(raw, struct.pack("<Q", 12345)):
        raw[at : at + 8] = struct.pack("<Q", 2**44)
    for at in places(raw, struct.pack("<Q", 1235)):
        raw[at : at + 8] = struct.pack("<Q", 2**41)
    path.write_bytes(raw)


@hostile({"good": GOOD, "x": np.tile(np.arange(10), 4)})
def chunks_on_top_of_each_other(path: Path) -> None:
    """Four chunks at one address, which is as good as any other."""
    with h5py.File(path, "w") as file:
        file["good"] = GOOD
        made = file.create_dataset("x", data=np.arange(40) % 10, chunks=(10,))
        offsets = [made.id.get_chunk_info(n).byte_offset for n in range(4)]
    raw = path.read_bytes()
    for offset in offsets[1:]:
        raw = raw.replace(struct.pack("<Q", offset), struct.pack("<Q", offsets[0]))
    path.write_bytes(raw)


@hostile({"other": GOOD, "good": ...}, "good.*attributes")
def attributes_that_claim_much(path: Path) -> None:
    with h5py.File(path, "w") as file:
        file["other"] = GOOD
        made = file.create_dataset("good", data=GOOD)
        made.attrs["numbers"] = np.zeros(1234, "u1")
        made.attrs["texts"] = np.array(["a"] * 1239, dtype=object)
    raw = path.read_bytes()
    for length in (1234, 1239):
        assert raw.count(struct.pack("<Q", length))
        raw = raw.replace(struct.pack("<Q", length), struct.pack("<Q", 2**40))
    path.write_bytes(raw)


@hostile({"other": GOOD, "good": ...}, "good.*attributes")
def a_string_that_claims_much(path: Path) -> None:
    with h5py.File(path, "w") as file:
        kind = h5t.C_S1.copy()
        kind.set_size(1235)
        file["other"] = GOOD
        made = file.create_dataset("good", data=GOOD)
        attribute = h5a.create(made.id, b"text", kind, h5s.create(h5s.SCALAR))
        attribute.write(np.array(b"a" * 1235, "S1235"))
    raw = path.read_bytes()
    assert raw.count(struct.pack("<I", 1235))
    path.write_bytes(raw.replace(struct.pack("<I", 1235), struct.pack("<I", 2**31 - 1)))


NAMES = (
    b"\xff\xfe", b"a\nb", b"zarr.json", b"c", b"x" * 60000, "\u202eevil".encode(), b"%2e%2e", b" ", b"C:", b"\x01",
    b"\xc3\xa9t\xc3\xa9", b"\x1b[31m", b"~", b"*", b"-",
)  # fmt: skip


@hostile(
    {n.decode(errors="backslashreplace"): np.arange(3) for n in NAMES if n != b"\xff\xfe"}
    | {"..": ..., "\\xff\\xfe": ...},
    "a name that Zarr does not allow",
)
def names(path: Path) -> None:
    with h5py.File(path, "w") as file:
        for name in (*NAMES, b".."):
            made = h5d.create(file.id, name, h5t.STD_I64LE, h5s.create_simple((3,)))
            made.write(h5s.ALL, h5s.ALL, np.arange(3))


def places(raw: bytes | bytearray, pattern: bytes) -> list[int]:
    found = [at for at in range(len(raw) - len(pattern) + 1) if raw[at : at + len(pattern)] == pattern]
    assert found
    return found


def patch(path: Path, old: bytes, new: bytes) -> None:
    raw = path.read_bytes()
    assert raw.count(old) == 1 or len(places(raw, old)) >= 1
    path.write_bytes(raw.replace(old, new))


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("hostile")
    for name, make in MAKERS.items():
        make(folder / f"{name}.h5")
    return folder


@pytest.fixture(scope="module")
def told(folder: Path) -> dict[str, dict[str, Any]]:
    """What became of each file, scanned and read without isolation; of one that ends its child, how."""
    found: dict[str, dict[str, Any]] = {}
    left = [str(folder / f"{name}.h5") for name in MAKERS]
    while left:
        try:
            done = subprocess.run(
                [sys.executable, "-c", CHILD, *left],
                capture_output=True,
                text=True,
                timeout=60 + SECONDS * len(left),
                check=False,
                env={**os.environ, "PYTHONWARNINGS": "ignore"},
            )
            out, how = done.stdout, f"exit {done.returncode}: {done.stderr[-500:]}"
        except subprocess.TimeoutExpired as error:
            out, how = (error.stdout or b"").decode(), "no end"
        lines = [json.loads(line) for line in out.splitlines() if line.endswith("}")]
        for line in lines:
            name = Path(line.get("file", line.get("begun"))).stem
            found[name] = line if "file" in line else {"ended": how}
        begun = {line["begun"] for line in lines if "begun" in line}
        assert begun, how
        left = [path for path in left if path not in begun]
    return found


@pytest.mark.parametrize("name", list(MAKERS))
def test_scanned_and_read_in_time(name: str, told: dict[str, dict[str, Any]]) -> None:
    found = told[name]
    assert "ended" not in found, found["ended"]
    assert found["seconds"] < SECONDS
    assert found["megabytes"] < MEGABYTES
    values, said = EXPECTED[name]
    assert "refused" not in found, found["refused"]
    for path, expected in values.items():
        if expected is ...:
            assert path not in found["values"], found["values"][path]
        else:
            assert found["values"][path][2] == np.asarray(expected).tolist()
    problems = [f"{path}: {reason}" for path, status, reason in found["report"] if status == "unserved"]
    problems += [f"{path}: {error}" for path, error in found["errors"].items()]
    assert not said or any(re.search(said, problem) for problem in problems), problems


def test_the_command_survives_them_all(folder: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "refindex.cli", "scan", str(folder), "--dry-run", "--no-join", "--isolate", "--json"],
        capture_output=True,
        text=True,
        timeout=200,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert len(json.loads(done.stdout)["sources"]) >= len(MAKERS)
