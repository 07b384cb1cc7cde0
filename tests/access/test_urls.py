"""URLs that manifests store relative to themselves, those of chains among them."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from refindex.access import urls

names = st.text("ab. -%", min_size=1, max_size=3)
folders = st.lists(names, max_size=3).map("/".join)
stores = st.sampled_from(["s3://bucket", "memory://m", "https://host", "file:///data"])
wrappers = st.lists(st.one_of(st.just("simplecache"), names.map("zip://{}".format)), max_size=2)


@given(stores, folders, folders, names, wrappers)
def test_what_lies_below_is_relative_and_found_again(
    store: str, folder: str, deeper: str, name: str, before: list[str]
) -> None:
    base = f"{store}/{folder}".rstrip("/")
    path = f"{deeper}/{name}".lstrip("/")
    url = "::".join([*before, f"{base}/{path}"])
    stored = urls.relative(url, base)
    assert urls.resolve(stored, base) == url
    if ".." in path.split("/"):
        assert stored == url
        return
    assert stored == "::".join([*before, path])
    # Wherever both are moved to, also into a zip.
    assert urls.resolve(stored, "gs://new") == "::".join([*before, f"gs://new/{path}"])
    assert urls.resolve(stored, "zip://::s3://b/x.zip") == "::".join([*before, f"zip://{path}", "s3://b/x.zip"])
    assert urls.resolve(stored, "simplecache::s3://b/d") == "::".join([*before, "simplecache", f"s3://b/d/{path}"])


@given(stores, folders, names, names, wrappers, stores, folders)
def test_whatever_is_stored_is_found_again(
    store: str, folder: str, name: str, other: str, before: list[str], where: str, at: str
) -> None:
    """Also URLs that only look as if they were below."""
    url = "::".join([*before, f"{store}/{folder}/{name}"])
    for base in (f"{where}/{at}", f"{store}/{folder}{other}", f"zip://{other}::{store}/{folder}", f"zip://::{url}"):
        assert urls.resolve(urls.relative(url, base.rstrip("/")), base.rstrip("/")) == url


@pytest.mark.parametrize(
    ("stored", "base", "url"),
    [
        # As manifests have had them from the beginning.
        ("a.nc", "s3://b", "s3://b/a.nc"),
        ("2020/a.nc", "file:///data", "file:///data/2020/a.nc"),
        ("https://host/a.nc", "s3://b", "https://host/a.nc"),
        ("zip://a.nc::s3://b/x.zip", "s3://b", "zip://a.nc::s3://b/x.zip"),
        ("zip://a.nc::/data/x.zip", "s3://b", "zip://a.nc::/data/x.zip"),
        ("/a.nc", "memory://", "memory:///a.nc"),
        ("a.nc", "file://", "file:///a.nc"),
        # Chains below a manifest, and manifests in chains.
        ("zip://a.nc::x.zip", "s3://b", "zip://a.nc::s3://b/x.zip"),
        ("zip://a.nc::zip://in.zip::x.zip", "s3://b", "zip://a.nc::zip://in.zip::s3://b/x.zip"),
        ("a.nc", "zip://d::s3://b/x.zip", "zip://d/a.nc::s3://b/x.zip"),
        ("a.nc", "zip://::s3://b/x.zip", "zip://a.nc::s3://b/x.zip"),
        ("a.nc", "simplecache::s3://b", "simplecache::s3://b/a.nc"),
        ("zip://a.nc::in.zip", "zip://::s3://b/x.zip", "zip://a.nc::zip://in.zip::s3://b/x.zip"),
    ],
)
def test_resolving(stored: str, base: str, url: str) -> None:
    assert urls.resolve(stored, base) == url


@pytest.mark.parametrize(
    ("url", "base"),
    [
        ("zip://d/a.nc::s3://b/x.zip", "zip://d::s3://b/y.zip"),
        ("zip://d/a.nc::s3://b/x.zip", "tar://d::s3://b/x.zip"),
        ("simplecache::s3://b/a.nc", "filecache::s3://b"),
        ("s3://b/a.nc", "simplecache::s3://b"),
        ("zip://a.nc::s3://bb/x.zip", "s3://b"),
        ("zip://a.nc::s3://b/../x.zip", "s3://b"),
        ("s3://b", "s3://b"),
    ],
)
def test_what_does_not_lie_below(url: str, base: str) -> None:
    assert urls.relative(url, base) == url


@pytest.mark.parametrize(
    ("url", "folder", "name"),
    [
        ("file:///data/a.nc", "file:///data", "a.nc"),
        ("file:///a.nc", "file://", "a.nc"),
        ("s3://b/d/a.refindex/", "s3://b/d", "a.refindex"),
        ("memory://a.nc", "memory://", "a.nc"),
        ("zip://d/a.nc::s3://b/x.zip", "zip://d::s3://b/x.zip", "a.nc"),
        ("zip://a.nc::s3://b/x.zip", "zip://::s3://b/x.zip", "a.nc"),
        ("simplecache::https://h/d/a.nc?x=1", "simplecache::https://h/d", "a.nc"),
    ],
)
def test_folder_and_name(url: str, folder: str, name: str) -> None:
    assert urls.parent(url) == folder
    assert urls.name(url) == name


def test_absolute(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    here = f"file://{tmp_path}"
    for spelled, url in (
        ("x.nc", f"{here}/x.nc"),
        ("../x.nc", f"file://{tmp_path.parent}/x.nc"),
        ("local:///d/x.nc", "file:///d/x.nc"),
        ("zip://a.nc::x.zip", f"zip://a.nc::{here}/x.zip"),
        ("zip://a.nc::zip://in.zip::d/../x.zip", f"zip://a.nc::zip://in.zip::{here}/x.zip"),
        ("simplecache::x.nc", f"simplecache::{here}/x.nc"),
        ("zip://a.nc::s3://b/x.zip", "zip://a.nc::s3://b/x.zip"),
        ("s3://b/x.nc", "s3://b/x.nc"),
    ):
        assert urls.absolute(spelled) == url
        assert urls.absolute(url) == url
