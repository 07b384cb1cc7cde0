"""Scan files and read all their values, and print what came of each, as JSON lines. Runs as a child process."""

from __future__ import annotations

import hashlib
import json
import resource
import sys
import time
from pathlib import Path

import refindex
from refindex.model.manifest import Manifest

MOST = 1 << 28
"""Bytes of an array that is read whole."""


def digest(manifest: Manifest) -> str:
    """The same for manifests with the same nodes and references."""
    found = hashlib.blake2b()
    for path, group in sorted(manifest.groups.items()):
        found.update(repr((path, group.document)).encode(errors="surrogateescape"))
    for path, array in sorted(manifest.arrays.items()):
        table = array.chunks
        found.update(repr((path, array.document, array.encodings)).encode(errors="surrogateescape"))
        for column in (table.chunk, table.source, table.offset, table.length, table.encoding):
            found.update(column.tobytes())
        for row in range(len(table)):
            if table.source[row] < 0:
                found.update(table.inline_bytes(row))
    return found.hexdigest()


def main(paths: list[str]) -> None:
    for path in paths:
        print(json.dumps({"begun": path}), flush=True)
        told: dict[str, object] = {"file": path}
        start = time.process_time()
        try:
            manifest = refindex.scan(path)
            told["digest"] = digest(manifest)
            manifest.save(Path(sys.argv[1]) / "one.sqlite", overwrite=True)
            errors = []
            with refindex.open(Path(sys.argv[1]) / "one.sqlite") as archive:
                for name in archive.arrays:
                    try:
                        if archive[name].nbytes <= MOST:
                            archive[name][...]
                    except refindex.RefindexError as error:
                        errors.append((name, str(error)))
            told["errors"] = errors
        except refindex.RefindexError as error:
            told["refused"] = f"{type(error).__name__}: {error}"
        told["seconds"] = time.process_time() - start
        told["megabytes"] = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss >> 10
        print(json.dumps(told), flush=True)


if __name__ == "__main__":
    main(sys.argv[2:])
