"""Compare files with h5py and print a verdict each, as JSON lines. Runs as a child process of the corpus test."""

import contextlib
import json
import resource
import sys
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))

import h5py
import oracle

import refindex


def main(paths: list[str]) -> None:
    for path in paths:
        verdict: dict[str, object] = {"file": path}
        start = time.process_time()
        with contextlib.suppress(refindex.RefindexError):
            refindex.scan(path)
        verdict["seconds"] = time.process_time() - start
        print(f"scanned {path}", flush=True)  # what crashes from here on is h5py's own reading
        try:
            found = oracle.compare_file(path)
            verdict |= {"right": len(found.right), "reported": found.reported, "wrong": found.wrong}
        except refindex.RefindexError as error:
            verdict["error"] = f"{type(error).__name__}: {error}"
        except Exception as error:
            try:
                with h5py.File(path) as file:
                    list(oracle.h5py_datasets(file))
                verdict["error"] = f"{type(error).__name__}: {error}"
            except Exception as theirs:  # h5py itself cannot walk through the file
                verdict["error"] = f"h5py: {theirs}"
        verdict["megabytes"] = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024
        print(json.dumps(verdict), flush=True)


main(sys.argv[1:])
