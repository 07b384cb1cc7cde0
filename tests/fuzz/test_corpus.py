"""All that failed once, and some mutations of each target: a model or a RefindexError, within the bounds."""

from __future__ import annotations

import tracemalloc
from pathlib import Path

import numpy as np
import pytest

from refindex.access import urls
from refindex.errors import DecodeError, FormatError, UnsupportedError
from refindex.interop.kerchunk_reading import from_kerchunk
from refindex.interop.templates import expand
from refindex.scan.hdf5.plain import Leaf
from tests.fuzz import structured
from tests.fuzz.mutation import written
from tests.fuzz.target import FindingError, Target, execute
from tests.fuzz.targets import ALL, decoding
from tests.fuzz.targets.hdf5 import check_leaf
from tests.fuzz.targets.zarr_stores import _V2

CORPUS = Path(__file__).parent / "corpus"
KEPT = sorted(path for path in CORPUS.rglob("*.bin"))


@pytest.mark.parametrize("path", KEPT, ids=lambda path: f"{path.parent.name}-{path.stem}")
def test_what_failed_once(path: Path) -> None:
    structured.replay(ALL[path.parent.name], path.read_bytes())


@pytest.mark.parametrize("name", ALL)
def test_mutations(name: str) -> None:
    target = ALL[name]
    for data in target.seeds():
        assert execute(target, data), "a sound input is refused: nothing behind what refuses it would be reached"
    result = structured.fuzz(target, seconds=3.0, executions=300, seed=1)
    assert not result.findings, result.findings[0].text
    # Some are refused, and some lines are reached: it does what it is for.
    assert result.accepted < result.executions or name.startswith("zarr")
    assert result.lines[0] > 10


@pytest.mark.parametrize("data", decoding.bombs(), ids=["deflate", "bzip2", "bzip2 in deflate", "zstd", "blosc"])
@pytest.mark.parametrize("run", [decoding.run, decoding.run_many], ids=["one", "many"])
def test_what_a_chunk_has_no_room_for_is_not_made(data: bytes, run: object) -> None:
    tracemalloc.start()
    try:
        with pytest.raises(DecodeError):
            run(data)  # type: ignore[operator]
        assert tracemalloc.get_traced_memory()[1] < decoding.BOMB // 8
    finally:
        tracemalloc.stop()


@pytest.mark.parametrize(
    "attributes",
    ['{"a":' + "[" * 1000 + "]" * 1000 + "}", '{"a":' * 1000 + "1" + "}" * 1000, '{"a":"\\ud800"}', '{"\\ud800":1}'],
    ids=["deep lists", "deep objects", "a value", "a name"],
)
def test_attributes_that_no_document_can_have(attributes: str) -> None:
    array = written(_V2).decode()
    for references in (
        {".zgroup": '{"zarr_format":2}', ".zattrs": attributes},
        {".zgroup": '{"zarr_format":2}', "a/.zarray": array, "a/.zattrs": attributes},
    ):
        try:
            manifest = from_kerchunk(references)
        except FormatError:
            continue
        assert not manifest.arrays
        assert manifest.report.problems


@pytest.mark.parametrize(
    "template",
    [
        "{{ 9 ** (9 ** 9) }}", "{{ 'a' * 10 ** 9 }}", "{{ [0] * 10 ** 9 }}", "{{ '%1000000000d' % 1 }}",
        "{{ '%1000000000d' | format(1) }}", "{{ '{:1000000000}'.format(1) }}", "{{ 'a'.center(10 ** 9) }}",
        "{{ 'a' | center(10 ** 9) }}", "{{ f(f=f) }}", "{{ f(x=[f]) }}", "{{ range(10 ** 9) | list }}",
        "{{u}}{% for i in range(10 ** 5) %}{% for j in range(10 ** 5) %}{% endfor %}{% endfor %}",
        "{{ u.__class__ }}", "{{ 7 | round(-10 ** 9) }}", "{{ 'a' | replace('a', 'aa') }}",
    ],
)  # fmt: skip
def test_templates_come_to_an_end(template: str) -> None:
    pytest.importorskip("jinja2")
    references = {"version": 1, "templates": {"u": "x", "f": "{{f(f=f)}}{{f(f=f)}}"}, "refs": {"a": [template, 0, 1]}}
    with pytest.raises((FormatError, UnsupportedError)):
        expand(references, "refs.json")


@pytest.mark.parametrize(
    ("template", "expected"),
    [
        ("{{u}}/a", "x/a"), ("{{ u.upper() }}", "X"), ("{{ '%03d' % 7 }}", "007"), ("{{ '%03d' | format(7) }}", "007"),
        ("{{ 2 ** 10 + 3 * 4 }}", "1036"), ("{{ g(c='y') }}", "<y>"), ("{{ u ~ 1 }}", "x1"), ("{{ 'ab' * 2 }}", "abab"),
    ],
)  # fmt: skip
def test_templates_that_are_used(template: str, expected: str) -> None:
    pytest.importorskip("jinja2")
    references = {"version": 1, "templates": {"u": "x", "g": "<{{c}}>"}, "refs": {"a": [template, 0, 1]}}
    assert expand(references, "refs.json")["a"][0] == expected


@pytest.mark.parametrize("piece", ["?token", "?sig=", "?a=", "&token=a", "://a:", ";x=?", "?sig=.", "?" + "a" * 50])
def test_urls_of_any_length_are_shown_soon(piece: str) -> None:
    clock = structured.Clock()
    with clock.running():
        urls.masked("https://host/" + piece * 40_000)


@pytest.mark.parametrize(("offset", "length"), [(2**63 - 1, 1), (2**63 - 8, 2**32 - 1), (999, 2), (1001, 0)])
def test_a_chunk_whose_end_no_number_holds(offset: int, length: int) -> None:
    zero, one = np.zeros((1, 1), dtype=np.int64), np.array([offset], dtype=np.int64)
    leaf = Leaf(scaled=zero, offset=one, length=np.array([length], dtype=np.int64), mask=zero[0])
    with pytest.raises(FormatError, match=f"data ends at byte {offset + length} of a file of 1000 bytes"):
        check_leaf(leaf, 1000)


def test_the_engine_finds_what_is_wrong(monkeypatch: pytest.MonkeyPatch) -> None:
    """A parser with four faults: each is found once, made smaller, and told apart."""
    monkeypatch.setattr(structured, "SECONDS", 0.2)
    monkeypatch.setattr(structured, "_SHRINK", 0.5)

    def run(data: bytes) -> None:
        if data[:1] == b"A":
            raise KeyError("not an error of ours")
        if data[:1] == b"B":
            raise FormatError("too large") from MemoryError()
        if data[:1] == b"C":
            while True:
                pass
        if data[:1] == b"D":
            bytearray(1 << 40)
        raise FormatError("an error of ours")

    tried = iter([b"A12345678", b"B1", b"C1", b"D1", b"A2", b"E"] * 2)
    target = Target(name="x", run=run, seeds=lambda: [b""], mutate=lambda data, rng: next(tried), modules=())
    result = structured.fuzz(target, seconds=30.0, executions=7)
    found = {finding.signature.partition(" ")[0]: finding for finding in result.findings}
    assert set(found) == {"KeyError", "FindingError", "TooSlowError", "MemoryError"}
    assert found["KeyError"].data == b"A"
    assert result.repeated == 1
    assert isinstance(FindingError("x"), AssertionError)
