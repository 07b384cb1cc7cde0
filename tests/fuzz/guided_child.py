"""A target under atheris. Nothing of refindex may be imported before atheris looks at what is imported."""

from __future__ import annotations

import importlib
import sys
from random import Random


def main() -> None:
    import atheris

    name, modules, *options = sys.argv[1:]
    # The modules of the target tell their edges; the rest of refindex is imported as it is.
    with atheris.instrument_imports(include=modules.split(",")):
        targets = importlib.import_module("tests.fuzz.targets")
    from tests.fuzz.structured import little_memory
    from tests.fuzz.target import execute

    target = targets.ALL[name]

    def one(data: bytes) -> None:
        execute(target, data)

    def mutate(data: bytes, most: int, seed: int) -> bytes:
        rng = Random(seed)
        if rng.random() < 0.4:
            return bytes(atheris.Mutate(bytes(data), most))
        return target.mutate(bytes(data), rng)[:most]

    atheris.Setup([sys.argv[0], *options], one, custom_mutator=mutate)
    with little_memory(4 << 30):  # libFuzzer itself takes some
        atheris.Fuzz()


if __name__ == "__main__":
    main()
