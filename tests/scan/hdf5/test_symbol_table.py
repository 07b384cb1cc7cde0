"""Damaged groups: found before libhdf5 lists them, some of which crash it."""

from __future__ import annotations

import ctypes
import json
import struct
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import h5py
import numpy as np
import pytest

import refindex
from refindex.access.gather import LocalGatherer
from refindex.errors import FormatError
from refindex.scan.hdf5.object_header import read_messages
from refindex.scan.hdf5.superblock import read_superblock
from refindex.scan.hdf5.symbol_table import LINK_MESSAGE, SYMBOL_TABLE_MESSAGE, GroupChecks

LINKS = 20


@dataclass
class OldGroup:
    """Where the parts of a group are; its B-tree has one level."""

    data: bytearray
    message: int
    tree: int
    heap: int

    def get(self, at):
        return struct.unpack_from("<Q", self.data, at)[0]

    def put(self, at, value):
        if isinstance(value, int):
            value = struct.pack("<Q", value)
        self.data[at : at + len(value)] = value

    @property
    def node(self):
        return self.get(self.tree + 32)

    @property
    def segment(self):
        return self.get(self.heap + 24)

    @property
    def free(self):
        return self.segment + self.get(self.heap + 16)


def locate(data, address):
    gatherer = LocalGatherer(data, name="a.h5")
    superblock = read_superblock(gatherer)
    (message,) = [m for m in read_messages(gatherer, superblock.space, address) if m.kind == SYMBOL_TABLE_MESSAGE]
    return OldGroup(bytearray(data), message.address, *struct.unpack("<QQ", message.body[:16]))


@pytest.fixture
def old(tmp_path):
    """A file with two groups of links beside a dataset: its path, and where its groups are."""
    path = tmp_path / "a.h5"
    with h5py.File(path, "w", libver="earliest") as file:
        file["sound"] = np.arange(3)
        for name in ("one", "two"):
            for i in range(LINKS):
                file[f"{name}/number_{i:02}"] = file["sound"]
            file[f"{name}/z_soft"] = h5py.SoftLink("/sound")
        addresses = {name: h5py.h5o.get_info(file[name].id).addr for name in ("/", "one", "two")}
    return path, addresses


def share_segment(group, other):
    group.put(group.heap + 24, other.segment)


def soft_entry(group):
    """The symbol table entry of the soft link: the last one of the last node, as names are sorted."""
    used = struct.unpack_from("<H", group.data, group.tree + 6)[0]
    node = group.get(group.tree + 32 + 16 * (used - 1))
    return node + 8 + 40 * (struct.unpack_from("<H", group.data, node + 6)[0] - 1)


def unterminated(group):
    size = group.get(group.heap + 8)
    group.put(group.heap + 16, 1)
    group.put(group.segment + size - 40, b"x" * 40)
    group.put(group.node + 8, size - 40)


DAMAGE = {
    "tree: signature": lambda g: g.put(g.tree, b"EERT"),
    "tree: chunks": lambda g: g.put(g.tree + 4, b"\x01"),
    "tree: level": lambda g: g.put(g.tree + 5, b"\x01"),
    "tree: entries": lambda g: g.put(g.tree + 6, b"\x21\x00"),
    "tree: most entries": lambda g: g.put(g.tree + 6, b"\xff\xff"),
    "tree: child outside": lambda g: g.put(g.tree + 32, len(g.data)),
    "tree: child at the end": lambda g: g.put(g.tree + 32, len(g.data) - 8),
    "tree: child twice": lambda g: g.put(g.tree + 48, g.node),
    "tree: child is the tree": lambda g: g.put(g.tree + 32, g.tree),
    "tree: first key": lambda g: g.put(g.tree + 24, 1 << 40),
    "tree: key": lambda g: g.put(g.tree + 40, g.get(g.heap + 8)),
    "tree: undefined": lambda g: g.put(g.message, b"\xff" * 8),
    "tree: outside": lambda g: g.put(g.message, 1 << 50),
    "node: signature": lambda g: g.put(g.node, b"SNOB"),
    "node: version": lambda g: g.put(g.node + 4, b"\x02"),
    "node: entries": lambda g: g.put(g.node + 6, b"\x09\x00"),
    "node: name": lambda g: g.put(g.node + 8, 1 << 63),
    "node: name at the end": lambda g: g.put(g.node + 8, g.get(g.heap + 8)),
    "node: unterminated name": unterminated,
    "node: value of a soft link": lambda g: g.put(soft_entry(g) + 24, b"\xff\xff\xff\xff"),
    "heap: undefined": lambda g: g.put(g.message + 8, b"\xff" * 8),
    "heap: outside": lambda g: g.put(g.message + 8, len(g.data)),
    "heap: signature": lambda g: g.put(g.heap, b"HEEP"),
    "heap: version": lambda g: g.put(g.heap + 4, b"\x01"),
    "heap: empty": lambda g: g.put(g.heap + 8, 0),
    "heap: too small": lambda g: g.put(g.heap + 8, 24),
    "heap: too large": lambda g: g.put(g.heap + 8, len(g.data)),
    "heap: largest": lambda g: g.put(g.heap + 8, 2**64 - 1),
    "heap: free list outside": lambda g: g.put(g.heap + 16, g.get(g.heap + 8)),
    "heap: free list undefined": lambda g: g.put(g.heap + 16, 2**64 - 1),
    "heap: segment outside": lambda g: g.put(g.heap + 24, len(g.data) - 1),
    "heap: segment undefined": lambda g: g.put(g.heap + 24, 2**64 - 1),
    "heap: circle of free blocks": lambda g: g.put(g.free, g.get(g.heap + 16)),
    "heap: next free block": lambda g: g.put(g.free, 1 << 40),
    "heap: free block too long": lambda g: g.put(g.free + 8, 1 << 40),
}


@pytest.mark.parametrize("damage", DAMAGE.values(), ids=DAMAGE)
@pytest.mark.parametrize("name", ["/", "two"])
def test_damage(old, name, damage):
    path, addresses = old
    with h5py.File(path, "a") as file:
        for i in range(LINKS):
            file[f"number_{i:02}"] = file["sound"]
        file["z_soft"] = h5py.SoftLink("/sound")
    group = locate(path.read_bytes(), addresses[name])
    damage(group)
    path.write_bytes(group.data)
    if name == "/":
        with pytest.raises(FormatError, match=r"a\.h5"):
            refindex.scan(str(path))
        return
    found = refindex.scan(str(path))
    assert {"sound", "one/number_00", "one/z_soft"} <= set(found.arrays)
    assert not [p for p in found.arrays if p.startswith("two/")]
    (entry,) = [e for e in found.report.entries if e.path == "/two"]
    assert entry.status == "unserved"
    assert entry.reason.startswith("damaged: ")


def test_two_heaps_with_one_segment(old):
    """This crashes libhdf5 2.0.0, which keeps the segment in its cache for the heap that came first."""
    path, addresses = old
    data = path.read_bytes()
    group = locate(data, addresses["two"])
    share_segment(group, locate(data, addresses["one"]))
    path.write_bytes(group.data)
    found = refindex.scan(str(path))
    assert "one/number_00" in found.arrays
    assert [e.reason for e in found.report.entries if e.path == "/two" and "a data segment of its own" in e.reason]


def test_link_message(tmp_path):
    path = tmp_path / "a.h5"
    with h5py.File(path, "w", libver="latest") as file:
        file.create_group("one/two")
        file["sound"] = 1
        address = h5py.h5o.get_info(file["one"].id).addr
    data = bytearray(path.read_bytes())
    gatherer = LocalGatherer(data, name="a.h5")
    superblock = read_superblock(gatherer)
    (message,) = [m for m in read_messages(gatherer, superblock.space, address) if m.kind == LINK_MESSAGE]
    GroupChecks(gatherer, superblock).check(address)
    assert message.body[2:6] == b"\x03two"
    data[message.address + 2] = 200
    checks = GroupChecks(LocalGatherer(data, name="a.h5"), superblock)
    for _ in range(2):
        with pytest.raises(FormatError, match="link message"):
            checks.check(address)


def set_sym_k(plist, internal, leaf):
    """Which h5py does not offer; the library that it has loaded does."""
    maps = Path("/proc/self/maps").read_text() if Path("/proc/self/maps").exists() else ""
    libraries = [line.split()[-1] for line in maps.splitlines() if "libhdf5-" in line or "libhdf5.so" in line]
    # netCDF4 may have brought another one.
    library = next((path for path in libraries if "h5py" in path), libraries[0] if libraries else None)
    if library is None:
        pytest.skip("libhdf5 is linked statically here: H5Pset_sym_k cannot be called")
    function = ctypes.CDLL(library).H5Pset_sym_k
    function.argtypes = [ctypes.c_int64, ctypes.c_uint, ctypes.c_uint]
    assert function(plist.id, internal, leaf) >= 0


@pytest.mark.parametrize("count", [0, 1, 2, 7, 8, 9, 63, 64, 65, 300, 3000])
@pytest.mark.parametrize("variant", ["earliest", "latest", "user block", "narrow", "k", "extension"])
def test_sound_groups_pass(tmp_path, gather, count, variant):
    path = tmp_path / "a.h5"
    plist = h5py.h5p.create(h5py.h5p.FILE_CREATE)
    if variant == "user block":
        plist.set_userblock(1024)
    if variant == "narrow":
        plist.set_sizes(4, 2)
    if variant in ("k", "extension"):
        set_sym_k(plist, 3, 2)
    if variant == "extension":
        plist.set_file_space_strategy(h5py.h5f.FSPACE_STRATEGY_PAGE, False, 1)
    access = h5py.h5p.create(h5py.h5p.FILE_ACCESS)
    lowest = h5py.h5f.LIBVER_LATEST if variant == "latest" else h5py.h5f.LIBVER_EARLIEST
    access.set_libver_bounds(lowest, h5py.h5f.LIBVER_LATEST)
    if variant == "narrow":
        count = min(count, 300)
    with h5py.File(h5py.h5f.create(str(path).encode(), h5py.h5f.ACC_TRUNC, plist, access)) as file:
        base = file.userblock_size
        for name in ("full", "thinned", "emptied"):
            group = file.create_group(name)
            for i in range(count):
                group[f"{'n' * (i % 13)}_{i}"] = group if i % 3 else h5py.SoftLink(f"/full/{i}")
            if name != "full":
                for i in range(count):
                    if name == "emptied" or i % 5:
                        del group[f"{'n' * (i % 13)}_{i}"]
            if name == "thinned":
                group["after"] = group
        addresses = [h5py.h5o.get_info(file[name].id).addr for name in ("/", "full", "thinned", "emptied")]
    gatherer = gather(path.read_bytes(), "a.h5")
    superblock = read_superblock(gatherer)
    assert superblock.base_address == base
    assert (superblock.version >= 2) == (variant in ("latest", "extension"))
    checks = GroupChecks(gatherer, superblock)
    for address in addresses:
        checks.check(address)
        old_style = {m.kind for m in read_messages(gatherer, superblock.space, address + base)}
        assert (SYMBOL_TABLE_MESSAGE in old_style) == (variant != "latest")


CHILD = """
import json, random, resource, sys
import refindex
from refindex.scan.hdf5 import walk
path, spans, checked, seeds = json.loads(sys.argv[1])
resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
resource.setrlimit(resource.RLIMIT_AS, (4 << 30, 4 << 30))
resource.setrlimit(resource.RLIMIT_CPU, (20, 20))
if not checked:
    walk._check = lambda *args: None
data = open(path, "rb").read()
for seed in seeds:
    made = random.Random(seed)
    changed = bytearray(data)
    copied = made.random() < 0.5
    for _ in range(0 if copied else made.choice((1, 1, 2, 4))):
        start, length = made.choice(spans)
        at = start + made.randrange(length)
        changed[at] = made.choice((changed[at] ^ 1 << made.randrange(8), made.randrange(256), 0, 255))
    if copied:
        # A field of a structure in another of the same kind.
        one = made.randrange(len(spans))
        (start, length), (other, width) = spans[one], spans[made.randrange(one % 3, len(spans), 3)]
        at = made.randrange(0, min(length, width) - 7, 8)
        changed[start + at:start + at + 8] = data[other + at:other + at + 8]
    open(path + ".changed", "wb").write(changed)
    try:
        refindex.scan(path + ".changed")
        print(seed, "passed", flush=True)
    except refindex.RefindexError as error:
        print(seed, type(error).__name__, flush=True)
"""


def mutate(path, spans, seeds, *, checked):
    """The outcomes by seed of scanning damaged copies; a number is the signal that ended the child."""
    outcomes = {}
    left = list(seeds)
    while left:
        done = subprocess.run(
            [sys.executable, "-c", CHILD, json.dumps([str(path), spans, checked, left])],
            capture_output=True,
            text=True,
            check=False,
            cwd=Path(refindex.__file__).parents[1],
        )
        for line in done.stdout.splitlines():
            seed, outcome = line.split()
            outcomes[int(seed)] = outcome
        left = [seed for seed in left if seed not in outcomes]
        if left:
            assert done.returncode < 0, done.stderr
            outcomes[left.pop(0)] = done.returncode
    return outcomes


@pytest.mark.timeout(300)
def test_mutations_crash_no_more_than_without_the_check(old, capsys):
    path, addresses = old
    data = path.read_bytes()
    spans = []
    for address in addresses.values():
        group = locate(data, address)
        # Three a group, so that every third is of one kind.
        used = struct.unpack_from("<H", data, group.tree + 6)[0]
        spans += [(group.tree, 32 + 16 * used), (group.heap, 32), (group.node, 8 + 8 * 40)]
    counts = []
    for checked in (False, True):
        outcomes = mutate(path, spans, range(300), checked=checked).values()
        counts.append(sum(isinstance(outcome, int) for outcome in outcomes))
    with capsys.disabled():
        print(f"\ndamaged groups: {counts[0]} of 300 files crash libhdf5, {counts[1]} with the check")
    assert counts[1] <= counts[0]
