"""Keys in a dictionary, so that contract suites, which fill a store first, can drive our store and filesystem."""

from __future__ import annotations

from collections.abc import Iterator

from refindex.serve.resolver import WHOLE, ByteRange


class ScratchKeys:
    """A :class:`refindex.serve.keys.KeySpace` that can be filled."""

    def __init__(self) -> None:
        self.data: dict[str, bytes] = {}

    def read(self, key: str, part: ByteRange = WHOLE) -> bytes | None:
        value = self.data.get(key)
        return None if value is None else value[slice(*part.within(len(value)))]

    async def read_async(self, key: str, part: ByteRange = WHOLE) -> bytes | None:
        return self.read(key, part)

    def size(self, key: str) -> int | None:
        value = self.data.get(key)
        return None if value is None else len(value)

    def exists(self, key: str) -> bool:
        return key in self.data

    def keys(self, prefix: str = "") -> Iterator[str]:
        yield from (key for key in self.data if key.startswith(prefix))

    def children(self, folder: str) -> Iterator[tuple[str, bool]]:
        prefix = f"{folder}/" if folder else ""
        names: dict[str, bool] = {}
        for key in self.data:
            if key.startswith(prefix):
                head, slash, _ = key[len(prefix) :].partition("/")
                names[head] = names.get(head, False) or bool(slash)
        yield from names.items()
