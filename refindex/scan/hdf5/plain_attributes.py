"""Attributes told from their messages (HDF5 File Format Specification 4.0, section IV.A.2.m "The Attribute Message").

Numbers of the usual types, one or a list of them, and strings: that is what nearly all attributes are. The value of any
other is asked of libhdf5. What one message says holds for every message of the same bytes, in whatever file, unless it
names a place in the file.
"""

from __future__ import annotations

import functools
import math
import struct
from dataclasses import dataclass
from typing import Any

import numpy as np
from h5py import h5t

from refindex.model.zarr_v3 import json_value
from refindex.scan.hdf5.plain import Extent, Header, PlainFile, read_extent

_LONGEST = 1 << 10
"""Bytes of a message that is remembered; longer ones are hardly ever the same."""

_MOST = 1 << 13
"""Messages that are remembered."""


NUMBERS = (
    (h5t.IEEE_F32LE, "<f4"),
    (h5t.IEEE_F64LE, "<f8"),
    (h5t.STD_I32LE, "<i4"),
    (h5t.STD_I16LE, "<i2"),
    (h5t.STD_I64LE, "<i8"),
    (h5t.STD_I8LE, "i1"),
    (h5t.STD_U8LE, "u1"),
)
"""Datatypes of most attributes that are numbers, as numpy calls them."""


@functools.cache
def _number_types() -> dict[bytes, np.dtype[Any]]:
    """Numpy types by their datatype messages (section IV.A.2.d) of version 1; later ones differ in the version only.

    Not on import, which must not wait for the lock of h5py (see :mod:`refindex.decode.plugins`).
    """
    return {datatype.encode()[2:]: np.dtype(code) for datatype, code in NUMBERS}


_STRING, _VLEN = 3, 9
_NULL_TERMINATED, _NULL_PADDED = 0, 1
_REFERENCE_8 = b"\x07\x00\x00\x00\x08\x00\x00\x00"
"""An object reference of 8 bytes, version 1 but for the version."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Message:
    """The parts of one attribute message; ``head`` is all but the data, ``text`` the name, empty if not UTF-8."""

    body: bytes
    head: bytes
    name: bytes
    text: str
    datatype: bytes
    extent: Extent
    data: bytes

    @property
    def size(self) -> int:
        return math.prod(self.extent.shape)

    @property
    def kind(self) -> bytes:
        """The datatype as version 1 would write it."""
        return bytes((self.datatype[0] & 0x0F | 0x10,)) + self.datatype[1:]


@dataclass(frozen=True, slots=True, kw_only=True)
class Value:
    """The value of an attribute as JSON holds it, its numpy type, and whether it had to be changed for JSON."""

    value: Any
    dtype: str | None = None
    changed: bool = False

    def copy(self) -> Any:
        """The value, which its owner may change."""
        return list(self.value) if isinstance(self.value, list) else self.value


type Messages = dict[bytes, tuple[Message, Value | None]]
"""Attributes by name, each with its value if nothing but the message says it."""


class PlainAttributes:
    """What is known of attribute messages by their bytes; owned by one scan of any number of files."""

    __slots__ = ("_known", "_sound")

    def __init__(self) -> None:
        self._known: dict[bytes, tuple[Message | None, Value | None]] = {}
        self._sound: set[bytes] = set()

    def are_sound(self, messages: Messages) -> bool:
        """Whether libhdf5 has decoded messages like all of these: it refuses an object for one that it cannot decode.

        Whether it can does not depend on the data.
        """
        return all(message.head in self._sound for message, _ in messages.values())

    def found_sound(self, messages: Messages) -> None:
        """Remember what libhdf5 has decoded."""
        if len(self._sound) >= _MOST:
            self._sound.clear()
        self._sound.update(message.head for message, _ in messages.values() if len(message.head) <= _LONGEST)

    def look(self, body: bytes) -> tuple[Message | None, Value | None]:
        """The parts of a message, and its value if nothing but the message says it."""
        found = self._known.get(body)
        if found is None:
            message = split(body)
            found = message, None if message is None else _value(message)
            if len(body) <= _LONGEST:
                if len(self._known) >= _MOST:
                    self._known.clear()
                self._known[body] = found
        return found


def by_name(header: Header, known: PlainAttributes) -> Messages | None:
    """The attributes of an object; None if libhdf5 must be asked."""
    if header.attributes is None:
        return None
    found: Messages = {}
    for body in header.attributes:
        message, value = known.look(body)
        if message is None or message.name in found:
            return None
        found[message.name] = message, value
    return found


def split(body: bytes) -> Message | None:
    """The parts of an attribute message of version 1, 2 or 3 of which no part is shared."""
    if len(body) < 9:
        return None
    version, flags, name_size, type_size, space_size = struct.unpack_from("<BBHHH", body)
    if version not in (1, 2, 3) or (flags and version != 1):
        return None
    at = 9 if version == 3 else 8
    parts = []
    for size in (name_size, type_size, space_size):
        parts.append(body[at : at + size])
        at += (size + 7) // 8 * 8 if version == 1 else size
    name, datatype, space = parts
    extent = read_extent(space)
    if len(space) != space_size or extent is None or len(datatype) < 8 or name.find(b"\0") != name_size - 1:
        return None
    element = int.from_bytes(datatype[4:8], "little")
    size = element * math.prod(extent.shape)
    data = body[at : at + size]
    if len(data) != size or not size:
        return None
    try:
        decoded = name[:-1].decode()
    except UnicodeDecodeError:
        decoded = ""
    return Message(body=body, head=body[:at], name=name[:-1], text=decoded, datatype=datatype, extent=extent, data=data)


def _value(message: Message) -> Value | None:
    if message.datatype[0] & 0x0F == _STRING:
        plain = message.size == 1 and fixed_text(message)
        return None if not isinstance(plain, bytes) else Value(value=text(plain))
    numbers = _numbers(message)
    if numbers is None or numbers.ndim > 1:
        return None
    raw = numbers.item() if numbers.size == 1 else numbers.tolist()
    value, changed = json_value(raw)
    return Value(value=value, dtype=numbers.dtype.name, changed=changed)


def fixed_text(message: Message) -> bytes | None:
    """The bytes of one string of fixed size, up to the first NUL; None for another type, or blanks for padding."""
    datatype = message.datatype
    if datatype[0] & 0x0F != _STRING or message.size != 1 or len(datatype) != 8:
        return None
    if datatype[0] >> 4 not in (1, 2, 3) or datatype[1] & 0x0F not in (_NULL_TERMINATED, _NULL_PADDED):
        return None
    return message.data.partition(b"\0")[0]


def _numbers(message: Message) -> np.ndarray[Any, Any] | None:
    if message.datatype[0] >> 4 not in (1, 2, 3):
        return None
    dtype = _number_types().get(message.kind)
    return None if dtype is None else np.frombuffer(message.data, dtype).reshape(message.extent.shape)


def integers(message: Message) -> tuple[int, ...] | None:
    """One or more numbers of a plain integer type."""
    numbers = _numbers(message)
    return None if numbers is None or numbers.dtype.kind not in "iu" else tuple(numbers.reshape(-1).tolist())


def text(raw: bytes) -> str:
    """Bytes of a string as text: UTF-8, and Latin-1 for what older tools wrote."""
    try:
        return raw.decode()
    except UnicodeDecodeError:
        return raw.decode("latin-1")


def heap_texts(message: Message, file: PlainFile) -> Value | None:
    """Null-terminated strings of variable length, one or a list of them; None for other types."""
    datatype = message.datatype
    # The lowest bits: a string, and how it is padded (section IV.A.2.d, class 9).
    if datatype[0] & 0x0F != _VLEN or datatype[0] >> 4 not in (1, 2, 3) or datatype[1] != 0x01:
        return None
    if len(message.extent.shape) > 1:
        return None
    parts = _heap_parts(message, file)
    if parts is None:
        return None
    texts = [text(data[:length].partition(b"\0")[0]) for length, data in parts if length <= len(data)]
    if len(texts) != len(parts):
        return None
    return Value(value=texts[0] if len(texts) == 1 else texts)


def _heap_parts(message: Message, file: PlainFile) -> list[tuple[int, bytes]] | None:
    """Length and bytes of each element of variable length (section IV.B, "Data elements of variable length")."""
    if len(message.data) != 16 * message.size:
        return None
    found = []
    for length, address, number in struct.iter_unpack("<IQI", message.data):
        data = file.heap_object(address, number) if length else b"" if not address else None
        if data is None:
            return None
        found.append((length, data))
    return found


def scale_addresses(message: Message, ndim: int, file: PlainFile) -> list[int | None] | None:
    """For each axis, the address of the first scale in ``DIMENSION_LIST`` (HDF5 dimension scale specification).

    None for an axis without one; None altogether where the message does not tell it plainly.
    """
    # A sequence, not a string, of object references.
    if message.kind[:4] != b"\x19\0\0\0" or message.extent.shape != (ndim,) or len(message.datatype) != 16:
        return None
    base = message.datatype[8:]
    if bytes((base[0] & 0x0F,)) + base[1:] != _REFERENCE_8 or message.datatype[0] >> 4 not in (1, 2, 3):
        return None
    parts = _heap_parts(message, file)
    if parts is None or any(len(data) != 8 * length for length, data in parts):
        return None
    return [int.from_bytes(data[:8], "little") if length else None for length, data in parts]
