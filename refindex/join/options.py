"""How files are to be joined."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any, Literal, get_args

from refindex.errors import FormatError

type Overlap = Literal["error", "first", "last"]
type OnDifference = Literal["error", "first", "stack"]

_STRPTIME = {"Y": r"\d{4}", "m": r"\d{2}", "d": r"\d{2}", "H": r"\d{2}", "M": r"\d{2}", "S": r"\d{2}", "j": r"\d{3}"}


@dataclass(frozen=True, kw_only=True)
class JoinOptions:
    """How files are to be joined.

    Parameters
    ----------
    concat_dim:
        Dimensions along which to concatenate, by name; empty: those whose coordinates differ.
    stack:
        New dimensions along which files are stacked, and for each where a file's value comes from: a regular
        expression with one group, or a date pattern (``%Y%m%d``), that is looked for in its name; ``@NAME`` for a
        global attribute; empty: a scalar variable of that name, else the file's name.
    merge:
        Whether files at the same place may hold different variables.
    overlap:
        What to do where files have the same coordinates: an error, or take the first or the last of them.
    on_difference:
        What to do where a variable without the joined dimension differs between files: an error, take the first
        file's, or stack all along that dimension.

    Raises
    ------
    ValueError
        If an option is none of those that there are.
    """

    concat_dim: tuple[str, ...] = ()
    stack: Mapping[str, str] = field(default_factory=dict)
    merge: bool = False
    overlap: Overlap = "error"
    on_difference: OnDifference = "error"

    def __post_init__(self) -> None:
        for name, value, kind in (
            ("overlap", self.overlap, Overlap),
            ("on_difference", self.on_difference, OnDifference),
        ):
            choices = get_args(kind.__value__)
            if value not in choices:
                raise ValueError(f"{name} must be one of {', '.join(map(repr, choices))}; got {value!r}")
        for name, pattern in self.stack.items():
            if not name or "/" in name:
                raise ValueError(f"a new dimension needs a name without slashes; got {name!r}")
            _compile(name, pattern)

    @classmethod
    def of(
        cls,
        *,
        concat_dim: str | Iterable[str] = "auto",
        stack: str | Iterable[str] | Mapping[str, str] | None = None,
        merge: bool = False,
        overlap: Overlap = "error",
        on_difference: OnDifference = "error",
    ) -> JoinOptions:
        """From what people pass: ``"auto"``, one name, or several; ``"member"`` or ``"member=_r(\\d+)"``."""
        dims = [concat_dim] if isinstance(concat_dim, str) else list(concat_dim)
        if stack is None:
            stack = {}
        elif not isinstance(stack, Mapping):
            several = [stack] if isinstance(stack, str) else list(stack)
            stack = {name: pattern for name, _, pattern in (text.partition("=") for text in several)}
        return cls(
            concat_dim=tuple(dim for dim in dims if dim != "auto"),
            stack=dict(stack),
            merge=merge,
            overlap=overlap,
            on_difference=on_difference,
        )

    def to_json(self) -> dict[str, Any]:
        return {
            "concat_dim": list(self.concat_dim),
            "stack": dict(self.stack),
            "merge": self.merge,
            "overlap": self.overlap,
            "on_difference": self.on_difference,
        }

    @classmethod
    def from_json(cls, document: Any) -> JoinOptions:
        """Inverse of :meth:`to_json`.

        Raises
        ------
        FormatError
            If the JSON is not what was written.
        """
        try:
            return cls(
                concat_dim=tuple(str(dim) for dim in document["concat_dim"]),
                stack={str(name): str(pattern) for name, pattern in document["stack"].items()},
                merge=bool(document["merge"]),
                overlap=document["overlap"],
                on_difference=document["on_difference"],
            )
        except (KeyError, TypeError, ValueError, AttributeError) as error:
            raise FormatError(f"join options: cannot read {document!r}: {error}") from error


def _compile(name: str, pattern: str) -> re.Pattern[str] | None:
    """A pattern for file names; dates as ``%Y%m%d`` become the digits that they stand for."""
    if not pattern or pattern.startswith("@"):
        return None
    text = pattern
    if "%" in pattern:
        pieces = re.split(r"%([A-Za-z])", pattern)
        unknown = sorted({code for code in pieces[1::2] if code not in _STRPTIME})
        if unknown:
            raise ValueError(f"stack {name}: date codes are %{', %'.join(_STRPTIME)}; got %{', %'.join(unknown)}")
        text = "(" + "".join(re.escape(p) if i % 2 == 0 else _STRPTIME[p] for i, p in enumerate(pieces)) + ")"
    try:
        compiled = re.compile(text)
    except re.error as error:
        raise ValueError(f"stack {name}: {pattern!r} is not a regular expression: {error}") from error
    if compiled.groups != 1:
        raise ValueError(f"stack {name}: {pattern!r} needs exactly one group in parentheses")
    return compiled


def value_from_name(dim: str, pattern: str, name: str) -> str | int | float | datetime | None:
    """The value that a pattern finds in a file name, as a number or a date where it is one; None if it finds none."""
    compiled = _compile(dim, pattern)
    if compiled is None:
        return None
    match = compiled.search(name)
    if match is None:
        return None
    if "%" in pattern:
        try:
            return datetime.strptime(match[1], pattern).replace(tzinfo=UTC)
        except ValueError:
            return None
    for kind in (int, float):
        try:
            return kind(match[1])
        except ValueError:
            continue
    return match[1]
