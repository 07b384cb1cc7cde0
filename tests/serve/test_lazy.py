"""Lazy arrays select what numpy selects, read nothing before, and travel as JSON."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

import refindex
from refindex.access.files import SourcePool

SHAPE = (7, 6, 5)
VALUES = np.arange(np.prod(SHAPE), dtype="i8").reshape(SHAPE)


@pytest.fixture(scope="module")
def archive(tmp_path_factory: pytest.TempPathFactory) -> Iterator[refindex.Archive]:
    path = tmp_path_factory.mktemp("lazy") / "a.h5"
    with h5py.File(path, "w") as file:
        data = file.create_dataset("x", data=VALUES, chunks=(2, 4, 5), compression="gzip")
        file["scalar"] = 2.5
        for axis, name in enumerate("abc"):
            file[name] = np.arange(SHAPE[axis])
            file[name].make_scale(name)
            data.dims[axis].attach_scale(file[name])
        data.attrs["units"] = "K"
    with refindex.open(path) as opened:
        yield opened


def steps(shape: tuple[int, ...]) -> st.SearchStrategy[tuple[str, Any]]:
    """One selection in an array of this shape."""
    basic = hnp.basic_indices(shape, allow_newaxis=True, allow_ellipsis=True).map(lambda s: ("basic", s))
    kinds = [basic]
    if shape and all(shape):
        outer = st.tuples(
            *(
                st.lists(st.integers(0, n - 1), min_size=1, max_size=4).map(np.array)
                | hnp.basic_indices((n,)).map(_one)
                for n in shape
            )
        )
        points = st.integers(1, 4).flatmap(
            lambda count: st.tuples(*(st.lists(st.integers(0, n - 1), min_size=count, max_size=count) for n in shape))
        )
        kinds += [outer.map(lambda s: ("outer", s)), points.map(lambda s: ("points", s))]
    return st.one_of(kinds)


def _one(selection: Any) -> Any:
    """A basic selection of one dimension as a slice or an integer."""
    chosen = selection[0] if isinstance(selection, tuple) and selection else selection
    return slice(None) if chosen in ((), Ellipsis) else chosen


def apply(values: np.ndarray[Any, Any], kind: str, selection: Any) -> np.ndarray[Any, Any]:
    """What numpy makes of a selection."""
    if kind == "outer":
        whole = [np.atleast_1d(np.arange(n)[s]) for n, s in zip(values.shape, selection, strict=True)]
        drop = tuple(axis for axis, s in enumerate(selection) if isinstance(s, int | np.integer))
        return values[np.ix_(*whole)].squeeze(axis=drop)
    if kind == "points":
        return values[tuple(np.array(s) for s in selection)]
    return values[selection]


@given(data=st.data())
def test_selections_compose(archive: refindex.Archive, data: st.DataObject) -> None:
    view, wanted = archive["x"], VALUES
    for _ in range(data.draw(st.integers(0, 3))):
        kind, selection = data.draw(steps(wanted.shape))
        if kind == "outer":
            view = view.oindex[selection]
        elif kind == "points":
            view = view.vindex[selection]
        else:
            view = view[selection]
        wanted = np.asarray(apply(wanted, kind, selection))
        assert view.shape == wanted.shape
    np.testing.assert_array_equal(view.compute(), wanted)
    again = archive.view(json.loads(json.dumps(view.to_json())))
    np.testing.assert_array_equal(np.asarray(again), wanted)


def test_nothing_is_read_before(archive: refindex.Archive, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*arguments: Any, **options: Any) -> Any:
        raise AssertionError("a source is read")

    for name in ("read", "read_async", "reader"):
        monkeypatch.setattr(SourcePool, name, refuse)
    view = archive["x"][::2].isel(b=slice(1, 3), c=0).oindex[[2, 0], :]
    assert view.shape == (2, 2)
    assert "x (a: 2, b: 2) int64" in repr(view)
    monkeypatch.undo()
    np.testing.assert_array_equal(view.compute(), VALUES[::2][:, 1:3, 0][[2, 0]])


def test_what_a_view_knows(archive: refindex.Archive) -> None:
    view = archive["x"]
    assert (view.path, view.shape, view.dims, view.dtype) == ("x", SHAPE, ("a", "b", "c"), np.dtype("i8"))
    assert view.attrs["units"] == "K"
    assert view.chunks == ((2, 2, 2, 1), (4, 2), (5,))
    assert (view.size, view.nbytes, len(view), view.ndim) == (210, 1680, 7, 3)
    assert view.isel(b=1).dims == ("a", "c")
    assert view.vindex[[1, 2], [1, 2], [0, 0]].dims == (None,)
    assert view.isel(a=[3, 1]).dims == ("a", "b", "c")
    assert archive["scalar"].compute() == 2.5
    with pytest.raises(TypeError, match="no length"):
        len(archive["scalar"])
    assert np.asarray(view, dtype="f8").dtype == np.dtype("f8")


def test_mistakes(archive: refindex.Archive, tmp_path: Path) -> None:
    with pytest.raises(refindex.NotFoundError, match="no group or array /y"):
        archive["y"]
    with pytest.raises(refindex.NotFoundError, match="is a group"):
        archive[""]
    with pytest.raises(KeyError, match="no dimension time"):
        archive["x"].isel(time=0)
    with pytest.raises(IndexError):
        archive["x"][99]
    with pytest.raises(ValueError, match="copy"):
        np.array(archive["x"], copy=False)
    document = archive["x"][1:3].to_json()
    with pytest.raises(refindex.FormatError, match="it selects in 3 dimensions"):
        archive.view({**document, "array": "a"})
    with pytest.raises(refindex.FormatError, match="cannot read"):
        archive.view({"array": "x", "transform": {"input_rank": 2}})
