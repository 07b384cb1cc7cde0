"""hdf5plugin's filters, and when they are registered."""

from __future__ import annotations

import subprocess
import sys

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
