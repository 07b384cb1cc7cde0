"""Dimension names with which xarray can open every group."""

from __future__ import annotations

from collections.abc import Callable, Iterable


class DimensionNames:
    """The names of one hierarchy's axes.

    xarray needs a name to stand for one length within a group, and to occur once in an array; neither HDF5 nor
    NetCDF demands it. Where a file breaks that, the axis gets a name of its own. What comes first decides what
    length a name has.
    """

    def __init__(self) -> None:
        self._lengths: dict[tuple[str, str], int] = {}

    def hold(self, group: str, name: str, extent: int) -> None:
        """Let a name stand for a length, before any array uses it."""
        self._lengths[group, name] = extent

    def of(self, group: str, axes: Iterable[tuple[str, int]], note: Callable[[str], None]) -> tuple[str, ...]:
        """The names for an array's axes, given as ``(name, extent)``; ``note`` is told of each that is changed."""
        names: list[str] = []
        for name, extent in axes:
            chosen, attempt = name, 1
            while chosen in names or self._lengths.get((group, chosen), extent) != extent:
                chosen = f"{name}_{extent}" if attempt == 1 and f"{name}_{extent}" not in names else f"{name}_{attempt}"
                attempt += 1
            if chosen != name:
                note(
                    f"dimension {name!r} is called {chosen!r} here: within a group a name has one length, "
                    "and within an array it occurs once"
                )
            self._lengths[group, chosen] = extent
            names.append(chosen)
        return tuple(names)
