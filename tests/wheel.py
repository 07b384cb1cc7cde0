"""Build the wheel, install it in a virtual environment of its own, and use it there: ``make wheel``."""

from __future__ import annotations

import subprocess
import sys
import tempfile
import venv
from pathlib import Path

ROOT = Path(__file__).parents[1]

TRY = """
import h5py, numpy as np, refindex, fsspec, xarray as xr
with h5py.File("x.h5", "w") as f:
    f.create_dataset("d", data=np.arange(5000.0), chunks=(1000,), compression="gzip")
refindex.scan("x.h5").save("x.refindex")
assert xr.open_dataset("x.refindex", engine="refindex")["d"][4999] == 4999
assert fsspec.filesystem("refindex", fo="x.refindex").exists("d/c/4")
print("refindex", refindex.__version__, "works from", refindex.__file__)
"""


def main() -> None:
    with tempfile.TemporaryDirectory(prefix="refindex-wheel-") as name:
        folder = Path(name)
        pip = [sys.executable, "-m", "pip"]
        subprocess.run([*pip, "wheel", "--quiet", "--no-deps", "--wheel-dir", name, str(ROOT)], check=True)
        (wheel,) = folder.glob("refindex-*.whl")
        venv.create(folder / "venv", with_pip=True)
        python = folder / "venv/bin/python"
        subprocess.run([python, "-m", "pip", "install", "--quiet", str(wheel)], check=True)
        subprocess.run([python, "-c", TRY], check=True, cwd=folder)
        subprocess.run([folder / "venv/bin/refindex", "info", "x.refindex"], check=True, cwd=folder)


if __name__ == "__main__":
    main()
