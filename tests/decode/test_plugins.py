"""hdf5plugin's filters, and when they are registered."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

UNDER_THE_LOCK = """
import threading
import h5py

def load():
    # What zarr-python does in its own thread, when it is first used.
    from importlib.metadata import entry_points
    for point in entry_points(group="zarr.codec_pipeline"):
        point.load()

with h5py._hl.base.phil:
    thread = threading.Thread(target=load, daemon=True)
    thread.start()
    thread.join(30)
    print("waits" if thread.is_alive() else "loaded")
"""


def test_the_entry_point_loads_while_another_thread_holds_the_lock_of_h5py() -> None:
    done = subprocess.run(
        [sys.executable, "-c", UNDER_THE_LOCK], capture_output=True, text=True, timeout=90, check=True
    )
    assert done.stdout.strip() == "loaded"


OPEN = """
import sys
from pathlib import Path
import h5py, hdf5plugin
import numpy as np
path = sys.argv[1]
with h5py.File(path, "w") as file:
    file.create_dataset("a", data=np.arange(5000), chunks=(100,), **hdf5plugin.LZ4())
    file.create_dataset("b", data=np.arange(5000), chunks=(100,), **hdf5plugin.Bitshuffle())
with h5py.File(path) as file:
    dataset = file["a"]
    assert dataset[7] == 7
    import refindex
    with refindex.open(path) as archive:
        for name in ("a", "b"):
            assert (np.asarray(archive[name][...]) == np.arange(5000)).all()
    assert dataset[4999] == 4999
print("right")
"""


def test_while_a_dataset_that_uses_one_is_open(tmp_path: Path) -> None:
    """libhdf5 does not let go of a filter then."""
    done = subprocess.run(
        [sys.executable, "-W", "error", "-c", OPEN, tmp_path / "a.h5"],
        capture_output=True,
        text=True,
        check=False,
        timeout=120,
    )
    assert done.stdout == "right\n", done.stderr
