"""Storage options by URL prefix, and that they stay where they belong."""

from __future__ import annotations

import json
import logging
import pickle
import shutil
import subprocess
import sys
import traceback
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import fsspec
import netCDF4
import numpy as np
import pytest
from aiohttp import web
from hypothesis import given
from hypothesis import strategies as st
from serving import RangeServer

import refindex
from refindex.access.options import filesystem, lies_below, options_for

SECRET = "S3cr3t-7f1e0c"


@pytest.mark.parametrize(
    ("url", "expected"),
    [
        ("s3://bucket/a.nc", {"key": "bucket"}),
        ("s3://bucket", {"key": "bucket"}),
        ("s3://bucket/deep/a.nc", {"key": "deep"}),
        ("s3://bucket/deeper/a.nc", {"key": "bucket"}),
        ("s3://bucket/deep", {"key": "bucket"}),  # the prefix ends with a slash: what is below it
        ("s3://bucket2/a.nc", {"key": "all of s3"}),
        ("s3a://bucket/a.nc", {"anon": True}),
        ("https://host/a.nc", {"headers": {"a": "1"}}),
        ("https://host?x=1", {"headers": {"a": "1"}}),
        ("https://host.evil/a.nc", {"anon": True}),
        ("https://host:8080/a.nc", {"anon": True}),
        ("https://host@evil/a.nc", {"anon": True}),
        ("https://off/a.nc", {}),
        ("file:///data/a.nc", {"anon": True}),
    ],
)
def test_the_longest_prefix(url: str, expected: dict[str, Any]) -> None:
    options = {
        "anon": True,
        "s3://": {"key": "all of s3"},
        "s3://bucket": {"key": "bucket"},
        "s3://buck": {"key": "wrong"},
        "s3://bucket/deep/": {"key": "deep"},
        "https://host": {"headers": {"a": "1"}},
        "https://off/": {},
    }
    assert options_for(url, options) == expected
    assert options_for(url, dict(reversed(options.items()))) == expected


segments = st.lists(st.text("ab.", min_size=1, max_size=3), min_size=1, max_size=4)


@given(segments, st.lists(segments, max_size=6), st.booleans())
def test_prefixes_are_whole_segments(parts: list[str], prefixes: list[list[str]], slash: bool) -> None:
    """A second way to find the longest: by lists of segments."""
    options = {f"s3://{'/'.join(p)}{'/' if slash else ''}": {"of": p} for p in prefixes}
    below = [p for p in prefixes if parts[: len(p)] == p and len(p) + slash <= len(parts)]
    expected = {"of": max(below, key=len)} if below else {}
    assert options_for(f"s3://{'/'.join(parts)}", options) == expected


@pytest.mark.parametrize(
    ("url", "options", "expected"),
    [
        # As fsspec has it: what is named after a protocol is for its link, the rest for the first.
        ("s3://b/a.nc", {"s3": {"anon": True}}, {"anon": True}),
        ("s3://b/a.nc", {"s3": {"anon": True}, "https": {"headers": {}}}, {"anon": True}),
        ("https://h/a", {"s3": {"anon": True}}, {}),
        ("https://h/a", {"client_kwargs": {"trust_env": True}}, {"client_kwargs": {"trust_env": True}}),
        ("zip://a::s3://b/x", {"s3": {"anon": True}}, {"s3": {"anon": True}}),
        ("zip://a::s3://b/x", {"compression": 0, "s3": {"anon": True}}, {"compression": 0, "s3": {"anon": True}}),
        ("zip://a::s3://b/x", {"s3://b/": {"key": 1}, "s3": {"anon": True}}, {"s3": {"key": 1}}),
        ("zip://a::s3://b/x", {"s3://c/": {"key": 1}, "s3": {"anon": True}}, {"s3": {"anon": True}}),
        ("zip://a::s3://b/x", {"s3://b/": {"key": 1}, "zip://": {"mode": "r"}}, {"mode": "r", "s3": {"key": 1}}),
        (
            "zip://a::simplecache::https://h/x",
            {"simplecache://": {"cache_storage": "/c"}, "https://h": {"headers": {}}},
            {"simplecache": {"cache_storage": "/c"}, "https": {"headers": {}}},
        ),
        ("simplecache::s3://b/x", {"simplecache": {"same_names": True}, "s3://b": {"key": 1}},
         {"same_names": True, "s3": {"key": 1}}),
    ],
)  # fmt: skip
def test_links_of_a_chain(url: str, options: dict[str, Any], expected: dict[str, Any]) -> None:
    found = options_for(url, options)
    assert {k: v for k, v in found.items() if v != {}} == {k: v for k, v in expected.items() if v != {}}


def test_what_fsspec_makes_of_it(tmp_path: Path) -> None:
    """Each filesystem of a chain has its own; and what the caller gave stays as it was."""
    options = {
        "memory://kept/": {"mine": {"a": [1]}},
        "simplecache://": {"cache_storage": str(tmp_path / "cache")},
        "memory": {"mine": "all"},
    }
    before = json.dumps(options)
    outer, path = filesystem("simplecache::memory://kept/x.nc", options)
    assert path == "/kept/x.nc"
    assert outer.storage == [str(tmp_path / "cache")]
    assert outer.fs.storage_options["mine"] == {"a": [1]}
    assert filesystem("simplecache::memory://other/x.nc", options)[0].fs.storage_options["mine"] == "all"
    outer.fs.storage_options["mine"]["a"].append(2)
    assert json.dumps(options) == before


def test_options_of_a_prefix_are_options() -> None:
    for url in ("s3://bucket/a.nc", "https://elsewhere/a.nc"):
        with pytest.raises(ValueError, match=r"storage options for s3://bucket/ must be a mapping .* got str") as error:
            options_for(url, {"s3://bucket/": SECRET})
        assert SECRET not in str(error.value)
    assert lies_below("s3://b/a", "s3://b")
    assert not lies_below("s3://ba", "s3://b")


class Guarded:
    """A server that gives files to those who have the secret, and remembers who said it where."""

    def __init__(self, folder: Path) -> None:
        self.told: list[tuple[str, bool]] = []
        self.server = RangeServer(folder, trouble=self.answer)

    def answer(self, server: RangeServer, request: web.Request, number: int) -> web.Response | None:
        knows = request.headers.get("Authorization") == f"Bearer {SECRET}"
        self.told.append((request.path, knows))
        if request.path.startswith("/broken/"):
            return web.Response(status=403, text="no")
        return None if knows or request.path.startswith("/open/") else web.Response(status=401)


@pytest.fixture
def guarded(weather: Path, tmp_path: Path) -> Iterator[Guarded]:
    folder = tmp_path / "www"
    for name in ("open", "closed", "broken"):
        (folder / name).mkdir(parents=True)
        for number in range(2):
            shutil.copy(weather, folder / name / f"{number}.nc")
    # A mask, too large to be kept in the manifest, that must be the same in all files: joining reads it.
    for seed in range(2):
        with netCDF4.Dataset(folder / "closed" / f"long{seed}.nc", "w") as file:
            for name, size in (("time", 3), ("cell", 200_000)):
                file.createDimension(name, size)
                axis = file.createVariable(name, "f8", (name,))
                axis[:] = np.arange(size) + (3 * seed if name == "time" else 0)
            file.createVariable("v", "f4", ("time", "cell"))[:] = np.random.default_rng(seed).random((3, 200_000))
            file.createVariable("mask", "i4", ("cell",))[:] = np.arange(200_000) % 7
    guarded = Guarded(folder)
    with guarded.server:
        yield guarded


def test_who_gets_them(guarded: Guarded, tmp_path: Path) -> None:
    """Scanning, joining, reading and appending, from two places of one server, of which one gets the secret."""
    url = guarded.server.url
    options = {f"{url}/closed/": {"headers": {"Authorization": f"Bearer {SECRET}"}}}
    files = [f"{url}/closed/long0.nc", f"{url}/closed/long1.nc"]
    for name in ("a.refindex", "a.sqlite"):
        out = tmp_path / name
        refindex.scan([files[0]], storage_options=options).save(out)
        refindex.append(out, files[1], storage_options=options)
        with refindex.open(out, storage_options=options) as archive:
            assert archive.group["v"].shape == (6, 200_000)
            with netCDF4.Dataset(tmp_path / "www/closed/long1.nc") as file:
                assert np.array_equal(archive.group["v"][3:], file["v"][...])
            assert np.array_equal(archive.group["mask"], np.arange(200_000) % 7)
    joined = refindex.scan(files, storage_options=options)
    assert joined.arrays["v"].shape == (6, 200_000)
    refindex.scan(f"{url}/open/0.nc", storage_options=options)
    assert {knows for path, knows in guarded.told if path.startswith("/closed/")} == {True}
    assert {knows for path, knows in guarded.told if path.startswith("/open/")} == {False}
    with pytest.raises(refindex.SourceError, match="401"):
        refindex.scan(files[0])


def all_bytes(folder: Path) -> bytes:
    return b"".join(path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file())


def test_they_are_written_nowhere(
    guarded: Guarded, tmp_path: Path, caplog: pytest.LogCaptureFixture, capsys: pytest.CaptureFixture[str]
) -> None:
    """Not into archives, reports, histories, messages, tracebacks, logs; not where an archive is shown."""
    caplog.set_level(logging.DEBUG)
    url = guarded.server.url
    options = {"headers": {"Authorization": f"Bearer {SECRET}"}, "s3://other/": {"secret": SECRET}}
    out = tmp_path / "out"
    out.mkdir()
    said = []
    for name in ("a.refindex", "a.sqlite"):
        places = [f"{url}/closed/0.nc", f"{url}/broken/0.nc", f"{url}/closed/gone.nc"]
        found = refindex.scan(places, storage_options=options, join=False)
        assert len(found.report.select(refindex.Status.FAILED)) == 2
        found.save(out / name, storage_options=options)
        refindex.append(out / name, f"{url}/closed/1.nc", storage_options=options)
        said += [repr(found), str(found.report), repr(found.report), repr(refindex.log(out / name))]
        with refindex.open(out / name, storage_options=options) as archive:
            said += [repr(archive), str(archive), repr(archive.store), str(archive.group.info), repr(archive.report)]
            dataset = archive.to_datatree()
            said += [repr(dataset), dataset._repr_html_(), repr(archive.store.__dict__)]
            assert pickle.loads(pickle.dumps(archive.store)) == archive.store
    for bad in (f"{url}/broken/0.nc", f"{url}/closed/gone.nc", "http://127.0.0.1:9/a.nc"):
        with pytest.raises(refindex.RefindexError) as error:
            refindex.scan(bad, storage_options=options)
        said += ["".join(traceback.format_exception(error.value)), repr(error.value)]
    captured = capsys.readouterr()
    said += [caplog.text, captured.out, captured.err]
    assert len(all_bytes(out)) > 10_000
    assert any("403" in text for text in said)
    assert SECRET.encode() not in all_bytes(out)
    assert not [text for text in said if SECRET in text]


def test_the_command_says_them_nowhere(guarded: Guarded, tmp_path: Path) -> None:
    url = guarded.server.url
    value = json.dumps({f"{url}/": {"headers": {"Authorization": f"Bearer {SECRET}"}}})
    for name in ("a.refindex", "a.sqlite"):
        done = subprocess.run(
            [
                *(sys.executable, "-m", "refindex.cli", "scan", f"{url}/closed/0.nc", f"{url}/broken/0.nc"),
                *("--no-join", "--debug", "--storage-options", value, "-o", tmp_path / name, "--progress"),
            ],
            capture_output=True, timeout=120, check=False, cwd=tmp_path,
        )  # fmt: skip
        assert done.returncode == 3, done.stderr
        assert b"403" in done.stderr
        assert SECRET.encode() not in done.stdout + done.stderr
    failed = subprocess.run(
        [
            *(sys.executable, "-m", "refindex.cli", "ls", "--debug", f"{url}/broken/0.nc"),
            *("--storage-options", value),
        ],
        capture_output=True, timeout=120, check=False, cwd=tmp_path,
    )  # fmt: skip
    assert failed.returncode == 1
    assert b"Traceback" in failed.stderr
    assert SECRET.encode() not in failed.stdout + failed.stderr
    (tmp_path / "www").rename(tmp_path.parent / f"{tmp_path.name}-www")
    assert SECRET.encode() not in all_bytes(tmp_path)


def test_fsspec_has_a_configuration_of_its_own(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(fsspec.config.conf, "memory", {"from": "fsspec"})
    assert filesystem("memory://x")[0].storage_options == {"from": "fsspec"}
    assert filesystem("memory://x", {"memory://": {"from": "us"}})[0].storage_options == {"from": "us"}
