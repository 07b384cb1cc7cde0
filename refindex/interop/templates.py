"""Version 0 and 1 of kerchunk's JSON as one flat mapping: templates filled in, generated references spelled out.

Plain ``{{name}}`` is filled in here. Whatever else Jinja can do is left to Jinja, in its sandbox.
"""

from __future__ import annotations

import itertools
import re
from collections.abc import Callable, Mapping
from typing import Any

from refindex.errors import FormatError, UnsupportedError
from refindex.interop.assemble import refuse_strays
from refindex.scan.zarr.plan import members, shortened

_MEMBERS = {"version", "templates", "gen", "refs"}
_RULE = {"key", "url", "offset", "length", "dimensions"}
_PLAIN = re.compile(r"\{\{\s*([A-Za-z_]\w*)\s*\}\}", re.ASCII)
_MOST = 1_000_000
"""References that a rule may stand for."""


def expand(references: Mapping[str, Any], where: str) -> dict[str, Any]:
    """Keys and values without templates and rules.

    Raises
    ------
    FormatError
        If it is of another version, has members that are not known, or templates that cannot be filled in.
    UnsupportedError
        If Jinja is needed and not installed.
    """
    if "version" not in references:
        return dict(references)
    if references["version"] != 1:
        raise FormatError(f"{where}: kerchunk's references of version {shortened(references['version'])}; expected 1")
    refuse_strays(where, sorted(set(references) - _MEMBERS))
    refs = dict(members(references.get("refs", {}), f"{where}: refs"))
    templates = _Templates(members(references.get("templates", {}), f"{where}: templates"), where)
    if templates:
        for key, value in refs.items():
            if isinstance(value, list) and value and isinstance(value[0], str) and "{{" in value[0]:
                refs[key] = [templates.fill(value[0]), *value[1:]]
    rules = references.get("gen", [])
    if not isinstance(rules, list):
        raise FormatError(f"{where}: gen is {shortened(rules)}; expected a list")
    for rule in rules:
        generated = _generate(members(rule, f"{where}: gen"), templates, where)
        twice = next((key for key in generated if key in refs), None)
        if twice is not None:
            raise FormatError(f"{where}: {shortened(twice)} is there twice, generated and otherwise")
        refs |= generated
    return refs


class _Templates:
    """Named texts, and what has them in it."""

    def __init__(self, named: Mapping[str, Any], where: str) -> None:
        self._where = where
        self._texts: dict[str, str] = {}
        self._environment: Any = None
        self._compiled: dict[str, Any] = {}
        for name, text in named.items():
            if not isinstance(text, str):
                raise FormatError(f"{where}: template {name!r} is {shortened(text)}; expected text")
            self._texts[name] = text

    def __bool__(self) -> bool:
        return bool(self._texts)

    def fill(self, text: str, values: Mapping[str, Any] | None = None) -> str:
        """A text with the values of names in place of the names."""
        known = values or {}
        pieces = _PLAIN.findall(text)
        rest = _PLAIN.sub("", text)
        plain = "{{" not in rest and "{%" not in rest
        if plain and all(n in known or ("{{" not in self._texts.get(n, "{{")) for n in pieces):
            return _PLAIN.sub(lambda m: str(known[m[1]] if m[1] in known else self._texts[m[1]]), text)
        return self._jinja(text, known)

    def _jinja(self, text: str, values: Mapping[str, Any]) -> str:
        try:
            import jinja2

            from refindex.interop import expressions
        except ImportError as error:
            raise UnsupportedError(
                f"{self._where}: the template {shortened(text)} needs jinja2, which is not installed"
            ) from error
        if self._environment is None:
            self._environment = expressions.Expressions()
        try:
            if text not in self._compiled:
                self._compiled[text] = self._environment.from_string(text)
            named = {name: self._named(body) for name, body in self._texts.items()}
            return str(self._compiled[text].render(**{**named, **values}))
        except (jinja2.TemplateError, ValueError, TypeError, LookupError, ArithmeticError, RecursionError) as error:
            raise FormatError(f"{self._where}: the template {shortened(text)} cannot be filled in: {error}") from error

    def _named(self, body: str) -> str | Callable[..., str]:
        """A template that has others in it is called, with their values."""
        if "{{" not in body:
            return body
        from refindex.interop import expressions

        return lambda **values: expressions.named(self._environment, body, values)


def _generate(rule: Mapping[str, Any], templates: _Templates, where: str) -> dict[str, Any]:
    """The references that a rule stands for: one for each combination of its dimensions."""
    refuse_strays(f"{where}: gen", sorted(set(rule) - _RULE))
    for name in ("key", "url"):
        if not isinstance(rule.get(name), str):
            raise FormatError(f"{where}: gen has {name} {shortened(rule.get(name))}; expected text")
    if ("offset" in rule) != ("length" in rule):
        raise FormatError(f"{where}: gen has one of offset and length; expected both or none")
    dimensions = {
        name: _values(value, where) for name, value in members(rule.get("dimensions"), f"{where}: dimensions").items()
    }
    total = 1
    for values in dimensions.values():
        total *= _count(values)
    if total > _MOST:
        raise UnsupportedError(f"{where}: gen stands for {total} references; at most {_MOST} are spelled out")
    if not total:  # though another dimension has numbers without an end
        return {}
    found: dict[str, Any] = {}
    for combination in itertools.product(*dimensions.values()):
        known = dict(zip(dimensions, combination, strict=True))
        reference: list[Any] = [templates.fill(rule["url"], known)]
        if "offset" in rule:
            reference += [
                _integer(templates.fill(str(rule[name]), known), name, where) for name in ("offset", "length")
            ]
        key = templates.fill(rule["key"], known)
        if key in found:
            raise FormatError(f"{where}: gen makes {shortened(key)} twice")
        found[key] = reference
    return found


def _values(value: Any, where: str) -> range | list[Any]:
    """The values of a dimension: a list, or a range by start, stop and step."""
    if isinstance(value, list):
        return value
    numbers = members(value, f"{where}: a dimension of gen")
    refuse_strays(f"{where}: a dimension of gen", sorted(set(numbers) - {"start", "stop", "step"}))
    if not all(type(n) is int for n in numbers.values()) or "stop" not in numbers or numbers.get("step") == 0:
        raise FormatError(f"{where}: a dimension of gen is {shortened(value)}; expected start, stop and step")
    return range(numbers.get("start", 0), numbers["stop"], numbers.get("step", 1))


def _count(values: range | list[Any]) -> int:
    """How many values there are; a range may have more than Python counts by ``len``."""
    if isinstance(values, list):
        return len(values)
    return max(0, -(-(values.stop - values.start) // values.step))


def _integer(text: str, name: str, where: str) -> int:
    try:
        return int(text)
    except ValueError as error:
        raise FormatError(f"{where}: gen has {name} {text!r}; expected an integer") from error
