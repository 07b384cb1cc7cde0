"""Bytes and JSON that are nearly what they were."""

from __future__ import annotations

import copy
import json
from collections.abc import Callable, Sequence
from random import Random
from typing import Any

from tests.fuzz.target import LONGEST, Mutate

type Places = Callable[[bytes | bytearray, Random], int]
"""Where in some bytes a change is worth making."""

_WIDTHS = (1, 1, 2, 4, 4, 8, 8)
_CORNERS = {
    width: sorted({
        *range(9), 10, 16, 31, 32, 33, 63, 64, 65, 100, 127, 128, 255, 256, 1000, 4096,
        *((1 << (8 * width)) - n for n in (1, 2, 3, 8, 16, 256) if (1 << (8 * width)) > n),
        *((1 << (8 * width - 1)) + n for n in (-2, -1, 0, 1)),
        *(1 << bit for bit in range(8 * width)),
    })
    for width in (1, 2, 4, 8)
}  # fmt: skip
_CORNERS = {width: [n for n in found if 0 <= n < 1 << (8 * width)] for width, found in _CORNERS.items()}


def anywhere(data: bytes | bytearray, rng: Random) -> int:
    return int(rng.random() * len(data))


def mutate_bytes(data: bytes, rng: Random, places: Places = anywhere, *, resize: float = 0.1) -> bytes:
    """One change or a few; ``resize`` is the share of changes that move what follows."""
    found = bytearray(data)
    for _ in range(1 + int(rng.expovariate(1.0))):
        if not found:
            return rng.randbytes(int(rng.random() * 16))
        at = min(places(found, rng), len(found) - 1)
        if rng.random() < resize:
            _resize(found, at, rng)
        else:
            _overwrite(found, at, rng)
    return bytes(found[:LONGEST])


def _overwrite(data: bytearray, at: int, rng: Random) -> None:
    match int(rng.random() * 7):
        case 0:
            data[at] ^= 1 << int(rng.random() * 8)
        case 1:
            data[at] = int(rng.random() * 256)
        case 2 | 3:
            width = _WIDTHS[int(rng.random() * len(_WIDTHS))]
            corners = _CORNERS[width]
            _put(data, at, corners[int(rng.random() * len(corners))], width, rng)
        case 4:
            width = _WIDTHS[int(rng.random() * len(_WIDTHS))]
            number = int.from_bytes(data[at : at + width], "little") + int(rng.random() * 33) - 16
            _put(data, at, number % (1 << 8 * width), width, rng, little=True)
        case 5:
            length = 1 + int(rng.expovariate(0.1))
            start = int(rng.random() * len(data))
            piece = data[start : start + length]
            data[at : at + len(piece)] = piece[: len(data) - at]
        case _:
            # What an address or a length of the file itself could be.
            width = _WIDTHS[int(rng.random() * len(_WIDTHS))]
            _put(data, at, int(rng.random() * (len(data) + 2)) % (1 << 8 * width), width, rng, little=True)


def _put(data: bytearray, at: int, number: int, width: int, rng: Random, *, little: bool = False) -> None:
    field = number.to_bytes(width, "little" if little or rng.random() < 0.7 else "big")
    data[at : at + width] = field[: len(data) - at]


def _resize(data: bytearray, at: int, rng: Random) -> None:
    length = 1 + int(rng.expovariate(0.1))
    match int(rng.random() * 4):
        case 0:
            del data[at:]
        case 1:
            del data[at : at + length]
        case 2:
            data[at:at] = rng.randbytes(length)
        case _:
            start = int(rng.random() * len(data))
            data[at:at] = data[start : start + length]


# JSON

_ODD: list[Any] = [
    None, True, False, 0, 1, -1, 2, 3, 7, 31, 2**31 - 1, 2**31, 2**32, 2**53, 2**60, 2**62, 2**63 - 1, 2**63, 2**64 - 1,
    2**64, 10**30, -(2**63), -(2**63) - 1, 0.5, 1e308, -0.0, float("nan"), float("inf"), "", "a", "/", "..", "\0",
    "\ud800", "é", "NaN", "0x7fc00000", "c", "name", "a" * 300, [], {}, [[]], [{}], [0], [1, 2, 3], [None], ["a"],
    {"a": 1}, {"": None}, [2**60] * 2, [2**40] * 70, [1] * 70,
]  # fmt: skip


def parsed(data: bytes) -> Any:
    """JSON, None if it is none; so deep that Python does not read it, it is none."""
    try:
        return json.loads(data)
    except (ValueError, RecursionError):
        return None


def written(value: Any) -> bytes:
    return json.dumps(value, separators=(",", ":")).encode("utf-8", "surrogatepass")


def mutate_json(data: bytes, rng: Random, words: Sequence[Any] = ()) -> bytes:
    """JSON with values replaced, moved, removed, doubled or nested; now and then damaged as text."""
    chosen = rng.random()
    if chosen < 0.08:
        return mutate_bytes(data, rng, resize=0.5)
    if chosen < 0.085:
        return _nested(data, rng)[:LONGEST]
    value = parsed(data)
    if value is None:
        return mutate_bytes(data, rng, resize=0.5)
    try:
        for _ in range(1 + int(rng.expovariate(1.2))):
            value = mutate_value(value, rng, words)
        return written(value)[:LONGEST]
    except RecursionError:  # it is nested deeply already
        return mutate_bytes(data, rng, resize=0.5)


def mutate_value(value: Any, rng: Random, words: Sequence[Any] = ()) -> Any:
    """A JSON value with one change; the value itself may change, too."""
    places = _places(value)
    if not places:
        return odd(rng, words)
    holder, key = places[int(rng.random() * len(places))]
    match int(rng.random() * 9):
        case 0 | 1 | 2:
            holder[key] = odd(rng, words)
        case 3 | 4:
            holder[key] = _nearly(holder[key], rng, words)
        case 5:
            del holder[key]
        case 6:
            other, name = places[int(rng.random() * len(places))]
            holder[key] = copy.deepcopy(other[name])
        case 7:
            if isinstance(holder, list):
                holder.insert(key, copy.deepcopy(holder[key]))
            else:
                holder[str(odd(rng, words))[:40]] = copy.deepcopy(holder[key])
        case _:
            holder[key] = [holder[key]] if rng.random() < 0.5 else {"a": holder[key]}
    return value


def _nested(data: bytes, rng: Random) -> bytes:
    """JSON text with a member that is nested deeply: made as text, as Python's own reader does not get so deep."""
    members = [at for at, byte in enumerate(data) if byte == ord(":")]
    if not members:
        return data
    at, depth = members[int(rng.random() * len(members))] + 1, 1 + int(rng.random() * 3000)
    opened, closed = (b"[", b"]") if rng.random() < 0.5 else (b'{"a":', b"}")
    return data[:at] + opened * depth + b"1" + closed * depth + b',"":' + data[at:]


def odd(rng: Random, words: Sequence[Any] = ()) -> Any:
    """A value that hardly belongs where it comes."""
    if words and rng.random() < 0.6:
        return copy.deepcopy(words[int(rng.random() * len(words))])
    return copy.deepcopy(_ODD[int(rng.random() * len(_ODD))])


def _nearly(value: Any, rng: Random, words: Sequence[Any]) -> Any:
    if isinstance(value, bool) or value is None:
        return not value
    if isinstance(value, int | float):
        return rng.choice([value + 1, value - 1, -value, value * 2, value * 2**32, float(value), str(value), [value]])
    if isinstance(value, str):
        if value[:1] in ("{", "["):  # JSON in JSON
            inner = parsed(value.encode("utf-8", "surrogatepass"))
            if inner is not None:
                return written(mutate_value(inner, rng, words)).decode("utf-8", "surrogatepass")
        return mutate_bytes(value.encode("utf-8", "surrogatepass"), rng, resize=0.4).decode("latin-1")
    return odd(rng, words)


def _places(value: Any) -> list[tuple[Any, Any]]:
    """Every value within a value, as what holds it and its key."""
    found: list[tuple[Any, Any]] = []
    waiting = [value]
    while waiting and len(found) < 4000:
        holder = waiting.pop()
        keys = list(holder) if isinstance(holder, dict) else range(len(holder)) if isinstance(holder, list) else ()
        for key in keys:
            found.append((holder, key))
            if isinstance(holder[key], dict | list):
                waiting.append(holder[key])
    return found


# Several parts in one input


def join(parts: Sequence[bytes]) -> bytes:
    """Parts as one input: each behind its length."""
    return b"".join(len(part).to_bytes(4, "little") + part for part in parts)


def split(data: bytes, count: int) -> list[bytes]:
    """So many parts of any input: what is missing is empty."""
    found = []
    for _ in range(count):
        length = int.from_bytes(data[:4], "little")
        found.append(data[4 : 4 + length])
        data = data[4 + length :]
    return found


def mutate_parts(mutators: Sequence[Mutate], data: bytes, rng: Random) -> bytes:
    """Change one part, or a few."""
    parts = split(data, len(mutators))
    for _ in range(1 + (rng.random() < 0.2)):
        number = int(rng.random() * len(parts))
        parts[number] = mutators[number](parts[number], rng)
    return join(parts)
