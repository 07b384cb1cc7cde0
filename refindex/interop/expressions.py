"""Jinja for the templates in references, which are data from anyone: expressions only, and none without an end.

Jinja's own sandbox keeps templates from reaching into Python. What it lets them do is take any time and any memory:
``{{ 9 ** 9 ** 9 }}``, ``{{ 'a' * 10 ** 10 }}``, ``{{ '%1000000000d' % 1 }}``, loops within loops.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

import jinja2
from jinja2.exceptions import SecurityError
from jinja2.sandbox import ImmutableSandboxedEnvironment

from refindex.errors import UnsupportedError

_MOST = 1 << 16
"""Characters or items that an operation may make, and the length of a template."""

_MOST_BITS = 1 << 12
"""Bits of a whole number."""

_FILTERS = (
    "abs", "capitalize", "d", "default", "first", "float", "int", "last", "length", "lower", "max", "min", "string",
    "title", "trim", "upper",
)  # fmt: skip
_METHODS = frozenset({"endswith", "lower", "lstrip", "rstrip", "split", "startswith", "strip", "upper"})

_WIDTH = re.compile(r"\d{4,}|\*")
"""A width or a precision of many digits, or one that is given by a value."""


class Expressions(ImmutableSandboxedEnvironment):
    """An environment of bounded expressions."""

    intercepted_binops = frozenset({"**", "*", "%"})

    def __init__(self) -> None:
        super().__init__(undefined=jinja2.StrictUndefined)
        self.globals.clear()
        self.filters = {name: self.filters[name] for name in _FILTERS} | {"format": _formatted}

    def from_string(self, source: Any, *arguments: Any, **options: Any) -> jinja2.Template:
        """Compile a template.

        Raises
        ------
        UnsupportedError
            If it is long, or has statements.
        """
        if "{%" in source or len(source) > _MOST:
            raise UnsupportedError(f"templates with statements, or of more than {_MOST} characters, are not filled in")
        return super().from_string(source, *arguments, **options)

    def call_binop(self, context: Any, operator: str, left: Any, right: Any) -> Any:
        if operator == "%" and not isinstance(left, int | float):
            return _formatted(left, right)
        if operator == "*" and not (isinstance(left, int | float) and isinstance(right, int | float)):
            size, times = (len(left), right) if hasattr(left, "__len__") else (len(right), left)
            if isinstance(times, int) and size * times > _MOST:
                raise SecurityError("the result is too long")
        if isinstance(left, int) and isinstance(right, int):
            bits = left.bit_length() * abs(right) if operator == "**" else left.bit_length() + right.bit_length()
            if bits > _MOST_BITS:
                raise SecurityError("the result is too large")
        return super().call_binop(context, operator, left, right)

    def getattr(self, obj: Any, attribute: str) -> Any:
        return super().getattr(obj, attribute) if _is_plain(obj, attribute) else self.unsafe_undefined(obj, attribute)

    def getitem(self, obj: Any, argument: Any) -> Any:
        plain = _is_plain(obj, argument) if isinstance(argument, str) else True
        return super().getitem(obj, argument) if plain else self.unsafe_undefined(obj, argument)


def _is_plain(obj: Any, attribute: str) -> bool:
    """Whether an attribute is a member of a mapping, or a method of texts that makes none longer."""
    return isinstance(obj, Mapping) or (isinstance(obj, str) and attribute in _METHODS)


def _formatted(template: Any, *values: Any, **named: Any) -> str:
    """``%``, without fields wider than any number is."""
    text = str(template)
    if _WIDTH.search(text):
        raise SecurityError("the format has wide fields")
    given = values[0] if len(values) == 1 and isinstance(values[0], tuple) else values
    return text % (named or given)


def named(environment: Expressions, body: str, values: Mapping[str, Any]) -> str:
    """A template that is called by another one: with texts and numbers, so that it can call none itself.

    Raises
    ------
    UnsupportedError
        If it is called with anything else.
    """
    if not all(isinstance(value, str | int | float) for value in values.values()):
        raise UnsupportedError("a template is called with other values than texts and numbers")
    return str(environment.from_string(body).render(**values))
