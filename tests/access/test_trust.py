"""Which places a URL names, and whether they are allowed."""

from __future__ import annotations

import json
import os
import stat
import time
from pathlib import Path
from urllib.parse import quote

import pytest
from hypothesis import given
from hypothesis import strategies as st

from refindex.access import remembered as records
from refindex.access import urls
from refindex.access.remembered import remember, remembered
from refindex.access.trust import Allowed
from refindex.errors import NotAllowedError

OWN = "https://data.example.org/era5/a.refindex"
BUCKET = "s3://bucket/era5/a.refindex"
LOCAL = "file:///data/era5/a.refindex"


@pytest.mark.parametrize(
    ("archive", "url"),
    [
        (LOCAL, "file:///data/era5/x.nc"),
        (LOCAL, "file:///data/era5/deep/er/x.nc"),
        (LOCAL, "file:///data//era5/./x.nc"),
        (LOCAL, "local:///data/era5/x.nc"),
        (LOCAL, "file:///data/era5/..x/a..b.nc"),
        (LOCAL, "file:///data/era5/100%.nc"),
        (LOCAL, "zip://a.nc::file:///data/era5/x.zip"),
        (LOCAL, "zip://../a.nc::/data/era5/x.zip"),
        (LOCAL, "simplecache::zip://a.nc::file:///data/era5/x.zip"),
        (OWN, "https://data.example.org/era5/x.nc"),
        (OWN, "HTTPS://Data.Example.ORG:443/era5/x.nc?a=../b"),
        (OWN, "https://user:password@data.example.org/era5/x%20y.nc"),
        (OWN, "https://data.example.org/%65ra5/x.nc"),
        (OWN, "simplecache::https://data.example.org/era5/x.nc"),
        (BUCKET, "s3://bucket/era5/x.nc"),
        (BUCKET, "s3a://bucket/era5/x.nc"),
        (BUCKET, "tar://a.nc::s3://bucket/era5/x.tar"),
        ("simplecache::s3://bucket/era5/a.sqlite", "s3://bucket/era5/x.nc"),
        ("zip://sub/a.refindex::file:///data/x.zip", "zip://sub/a.nc::file:///data/x.zip"),
        ("memory://a.refindex", "memory:///x.nc"),
        ("https://data.example.org/a.refindex", "https://data.example.org/x.nc"),
    ],
)
def test_beside_the_archive(archive: str, url: str) -> None:
    assert Allowed().beside(archive).admits(url)


@pytest.mark.parametrize(
    ("archive", "url"),
    [
        # Other places of the same machine.
        (LOCAL, "file:///etc/hostname"),
        (LOCAL, "file:///data/era5"[:-1]),
        (LOCAL, "file:///data/era55/x.nc"),
        (LOCAL, "file:///data/x.nc"),
        (LOCAL, "file:///data/era5/../x.nc"),
        (LOCAL, "file:///data/era5/%2e%2e/x.nc"),
        (LOCAL, "file:///data/era5/%252e%252e/x.nc"),
        (LOCAL, "file:///data/era5/a%2f..%2f..%2fx.nc"),
        (LOCAL, "file:///data/era5/..\\x.nc"),
        (LOCAL, "file:///data/era5/x.nc\0"),
        (LOCAL, "file:///data/era5/\nx.nc"),
        (LOCAL, "file://localhost/data/era5/x.nc"),
        (LOCAL, "file://data/era5/x.nc"),
        (LOCAL, "local://etc/hostname"),
        (LOCAL, "FILE:///etc/hostname"),
        (LOCAL, ""),
        (LOCAL, "file://"),
        (LOCAL, "x.nc"),
        (LOCAL, "memory://x.nc"),
        (LOCAL, "http://localhost/x.nc"),
        (LOCAL, "http://169.254.169.254/latest/meta-data"),
        # What stands before a place that is allowed may be another place.
        (LOCAL, "file:///etc/hostname::file:///data/era5/x.zip"),
        (LOCAL, "http://localhost/x::file:///data/era5/x.nc"),
        (LOCAL, "reference://::file:///data/era5/x.json"),
        (LOCAL, "reference::file:///data/era5/x.json"),
        (LOCAL, "cached::file:///data/era5/x.nc"),
        (LOCAL, "zip://a.nc::file:///etc/x.zip"),
        (LOCAL, "zip://a.nc::/etc/x.zip"),
        (LOCAL, "zip://a.nc::file:/data/era5/x.zip"),
        (LOCAL, "zip://a.nc"),
        # Other hosts, and what looks like the same one.
        (OWN, "file:///era5/x.nc"),
        (OWN, "http://data.example.org/era5/x.nc"),
        (OWN, "https://data.example.org:8443/era5/x.nc"),
        (OWN, "https://data.example.org.evil.org/era5/x.nc"),
        (OWN, "https://data.example.org@evil.org/era5/x.nc"),
        (OWN, "https://data.example.org:443@evil.org/era5/x.nc"),
        (OWN, "https://data.example.org\\@evil.org/era5/x.nc"),
        (OWN, "https://evil.org\\data.example.org/era5/x.nc"),
        (OWN, "https://evil.org#@data.example.org/era5/x.nc"),
        (OWN, "https://evil.org?@data.example.org/era5/x.nc"),
        (OWN, "https://127.0.0.1/era5/x.nc"),
        (OWN, "https://[::1]/era5/x.nc"),
        (OWN, "https://[::1/era5/x.nc"),
        (OWN, "https://2130706433/era5/x.nc"),
        (OWN, "https:///era5/x.nc"),
        (OWN, "https://data.example.org:99999/era5/x.nc"),
        (OWN, "https://data.example.org\t/era5/x.nc"),
        (OWN, "https://data.example.org /era5/x.nc"),
        (OWN, "https://data.example.org/x.nc"),
        (OWN, "https://data.example.org/era5/../x.nc"),
        (OWN, "https://data.example.org/era5/%2E%2e/x.nc"),
        (OWN, "https://data.example.org/era5/..;a=b/x.nc"),
        (OWN, "https://data.example.org/era5%2fx.nc"),
        (OWN, "s3://bucket/x.nc"),
        (BUCKET, "s3://bucket/x.nc"),
        (BUCKET, "s3://Bucket/era5/x.nc"),
        (BUCKET, "s3://bucket2/era5/x.nc"),
        (BUCKET, "s3://bucket/era5/../x.nc"),
        (BUCKET, "s3:///era5/x.nc"),
        ("https://data.example.org", "https://other.org/x.nc"),
        ("s3://bucket", "s3://other/x.nc"),
        ("zip://sub/a.refindex::file:///data/x.zip", "file:///data/x.nc"),
    ],
)
def test_elsewhere(archive: str, url: str) -> None:
    allowed = Allowed().beside(archive)
    assert not allowed.admits(url)
    with pytest.raises(NotAllowedError, match="1|a file") as caught:
        allowed.check([url], "archive")
    assert isinstance(caught.value, PermissionError)
    assert Allowed.of("*").admits(url)
    assert Allowed.of(True).admits(url)


_names = st.text(alphabet="abc.%2eE/\\:@?#;~ ", max_size=12)


@given(_names, st.sampled_from(["file:///data/era5/", "https://data.example.org/era5/", "s3://bucket/era5/"]))
def test_whatever_is_appended_stays_below(name: str, folder: str) -> None:
    """An independent look: no admitted name, decoded as often as one likes, has a part that climbs."""
    if not Allowed.of(folder).admits(folder + name):
        return
    assert "::" not in name or folder.startswith(("file", "https", "s3"))
    if "::" in name:  # every link of its own is a place of its own
        assert all(link for link in (folder + name).split("::"))
        return
    from urllib.parse import unquote

    path = name.partition("?")[0].partition("#")[0] if folder.startswith("https") else name
    for _ in range(4):
        assert ".." not in path.replace("\\", "/").split("/")
        path = unquote(path)


@given(st.text(alphabet="abcäß %+&=", min_size=1, max_size=8))
def test_spellings_of_http_are_one_place(name: str) -> None:
    allowed = Allowed.of(f"https://host/{quote(name)}/")
    assert allowed.admits(f"https://host/{quote(name, safe='+&=')}/x.nc")
    assert allowed.admits(f"https://HOST:443/{quote(name)}/x.nc")


@pytest.mark.parametrize(
    ("allow", "admitted", "refused"),
    [
        ("/data", "file:///data/x.nc", "file:///database/x.nc"),
        ("/data/", "file:///data/x.nc", "file:///x.nc"),
        ("/data/x.nc", "file:///data/x.nc", "file:///data/y.nc"),
        ("/", "file:///etc/x", "memory:///x"),
        (["/a", "s3://b"], "s3://b/x", "s3://c/x"),
        ("s3://", "s3://any/x", "gs://any/x"),
        ("https://h", "https://h/x", "https://h.org/x"),
        (Path("/data"), "file:///data/x", "file:///x"),
        (["/a", "*"], "gs://b/c", None),
        ([], None, "file:///x"),
        ("~", f"file://{Path.home()}/x", "file:///x"),
        ("zip://::s3://b/x.zip", "zip://a::s3://b/x.zip", "s3://b/y.zip"),
        ("simplecache::https://h/a", "https://h/a/x", "https://h/b"),
    ],
)
def test_what_people_allow(allow: object, admitted: str | None, refused: str | None) -> None:
    allowed = Allowed.of(allow)  # type: ignore[arg-type]
    assert admitted is None or allowed.admits(admitted)
    assert refused is None or not allowed.admits(refused)


@pytest.mark.parametrize("allow", ["https://[", "https://a\\b/", "s3://b/../c", ["/a", "https://h:x/"]])
def test_what_is_no_prefix(allow: object) -> None:
    with pytest.raises(ValueError, match=r"allow: .* is no prefix"):
        Allowed.of(allow)  # type: ignore[arg-type]


def test_the_message_can_be_followed() -> None:
    """What it says to pass allows what it refuses."""
    for found in (
        ["file:///etc/hostname"],
        [f"file:///data/{year}/x{n}.nc" for year in range(20) for n in range(20)],
        ["s3://a/x.nc", "s3://b/y.nc", "https://h/z.nc", "file:///x.nc"],
        ["zip://a.nc::s3://b/x.zip"],
    ):
        with pytest.raises(NotAllowedError) as caught:
            Allowed().beside("file:///archives/a.refindex").check(found, "a.refindex")
        said = str(caught.value)
        assert "a.refindex" in said
        assert "/archives" in said
        assert urls.display(found[0]) in said
        named = json.loads(said.partition("allow=")[2].partition("]")[0].replace("'", '"') + "]")
        assert all(f"--allow {name}" in said for name in named)
        Allowed.of(named).check(found, "a.refindex")
        assert len(said) < 900


def test_ten_thousand_sources_take_milliseconds() -> None:
    allowed = Allowed.of(["s3://other/x", "/mnt"]).beside(LOCAL)
    found = [f"file:///data/era5/{n // 100}/t2m_{n}.nc" for n in range(10_000)]
    best = 1.0
    for _ in range(5):
        start = time.perf_counter()
        allowed.check(found, "archive")
        best = min(best, time.perf_counter() - start)
    assert best < 0.05  # 4 ms on a quiet machine


def test_where_links_lead(tmp_path: Path) -> None:
    own, other = tmp_path / "own", tmp_path / "other"
    for folder in (own, other):
        folder.mkdir()
        (folder / "x.nc").touch()
    (own / "inside.nc").symlink_to("x.nc")
    (own / "out.nc").symlink_to(other / "x.nc")
    (own / "folder").symlink_to(other)
    (tmp_path / "alias").symlink_to(own)
    allowed = Allowed().beside(f"file://{own}/a.refindex")
    for name in ("x.nc", "inside.nc", "missing.nc"):
        assert allowed.leads_out(f"file://{own}/{name}") is None
    for name in ("out.nc", "folder/x.nc"):
        url = f"file://{own}/{name}"
        assert allowed.admits(url)
        for spelled in (url, f"local://{own}/{name}", f"zip://a::{url}", f"simplecache::{own}/{name}"):
            assert allowed.leads_out(spelled) == f"file://{other}/x.nc"
        assert allowed.adding([f"file://{other}"]).leads_out(url) is None
        assert Allowed.of("*").leads_out(url) is None
        with pytest.raises(NotAllowedError, match=f"--allow {other}/x.nc"):
            allowed.check([url], "archive", links=True)
        allowed.check([url], "archive")
    # A root that is itself reached through a link.
    through = Allowed().beside(f"file://{tmp_path}/alias/a.refindex")
    assert through.leads_out(f"file://{tmp_path}/alias/x.nc") is None
    assert through.leads_out(f"file://{tmp_path}/alias/out.nc") == f"file://{other}/x.nc"


@pytest.fixture
def state(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    folder = tmp_path / "state"
    monkeypatch.setenv("XDG_STATE_HOME", str(folder))
    return folder


def test_records(state: Path, tmp_path: Path) -> None:
    archive = f"file://{tmp_path}/own/a.refindex"
    assert remembered(archive) == ()
    remember(archive, [f"file://{tmp_path}/own/sub/x.nc"], new=True)
    assert not state.exists()  # what lies beside it needs none
    remember(archive, ["file:///data/x/1.nc", "file:///data/x/2.nc", "s3://b/y/1.nc", "zip://a::s3://c/x.zip"])
    assert set(remembered(archive)) == {"file:///data/x", "s3://b/y", "s3://c/x.zip"}
    (path,) = (state / "refindex/allowed").iterdir()
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert json.loads(path.read_text())["archive"] == archive
    remember(archive, ["file:///more/1.nc"])
    assert {"file:///data/x", "file:///more"} <= set(remembered(archive))
    assert remembered(f"file://{tmp_path}/own/b.refindex") == ()
    # Another archive at the same place is another one.
    remember(archive, ["file:///else/1.nc"], new=True)
    assert remembered(archive) == ("file:///else",)
    remember(archive, [], new=True)
    assert remembered(archive) == ()


def test_a_record_is_found_through_links(state: Path, tmp_path: Path) -> None:
    (tmp_path / "own").mkdir()
    (tmp_path / "alias").symlink_to(tmp_path / "own")
    remember(f"file://{tmp_path}/alias/a.refindex", ["file:///data/x.nc"])
    assert remembered(f"file://{tmp_path}/own/a.refindex") == ("file:///data",)
    assert len(list((state / "refindex/allowed").iterdir())) == 1


def test_records_have_what_links_lead_to(state: Path, tmp_path: Path) -> None:
    own, pool, folders = tmp_path / "own", tmp_path / "pool", tmp_path / "folders"
    for folder in (own, pool, folders):
        folder.mkdir()
        (folder / "x.nc").touch()
    (own / "link.nc").symlink_to(pool / "x.nc")
    (own / "sub").symlink_to(folders)
    archive = f"file://{own}/a.refindex"
    found = [f"file://{own}/link.nc", f"file://{own}/sub/x.nc", f"file://{own}/x.nc"]
    remember(archive, found, within=Allowed().beside(archive).adding([f"file://{pool}"]))
    assert remembered(archive) == (f"file://{pool}",)
    remember(archive, found)
    assert set(remembered(archive)) == {f"file://{pool}", f"file://{folders}"}
    Allowed().beside(archive).adding(remembered(archive)).check(found, "archive", links=True)


@pytest.mark.parametrize(
    "content", [b"", b"{", b"[]", b'{"prefixes": "/"}', b'{"archive": "x", "prefixes": ["/"]}', b"\xff"]
)
def test_damaged_records_say_nothing(content: bytes, state: Path) -> None:
    archive = "file:///own/a.refindex"
    remember(archive, ["file:///data/x.nc"])
    (path,) = (state / "refindex/allowed").iterdir()
    path.write_bytes(content)
    assert remembered(archive) == ()
    remember(archive, ["file:///data/x.nc"])
    assert remembered(archive) == ("file:///data",)


def test_nothing_is_said_where_nothing_can_be_written(state: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    state.write_text("a file where a folder should be")
    remember("file:///own/a.refindex", ["file:///data/x.nc"])
    assert remembered("file:///own/a.refindex") == ()
    monkeypatch.setenv("XDG_STATE_HOME", "relative")
    monkeypatch.setenv("HOME", str(state.parent / "home"))
    remember("file:///own/a.refindex", ["file:///data/x.nc"])
    assert (state.parent / "home/.local/state/refindex/allowed").is_dir()
    assert not Path("relative").exists()


def test_many_folders_become_those_above_them(state: Path) -> None:
    found = [f"file:///data/{n % 7}/{n}/x.nc" for n in range(records._MOST * 2)]
    remember("file:///own/a.refindex", found)
    prefixes = remembered("file:///own/a.refindex")
    assert len(prefixes) == 7
    Allowed().adding(prefixes).check(found, "archive")
    assert not Allowed().adding(prefixes).admits("file:///data/x.nc")
    assert os.listdir(state / "refindex/allowed")
