"""Files that many tests share. All data is made here."""

from __future__ import annotations

import atexit
import os
import shutil
import sys
import tempfile
from pathlib import Path

import hdf5plugin
import pytest
from hypothesis import HealthCheck, settings

# Tests write with filters of hdf5plugin, too. Those that netCDF4 has put in their place do not work with h5py.
hdf5plugin.register(force=True)

# Machines that run tests are shared: how long an example takes says nothing of the code.
settings.register_profile("refindex", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("refindex")

# Archives that tests make leave nothing in the home folder; child processes, as workers of pytest-xdist, inherit it.
if "refindex-state-" not in os.environ.get("XDG_STATE_HOME", ""):
    os.environ["XDG_STATE_HOME"] = tempfile.mkdtemp(prefix="refindex-state-")
    atexit.register(shutil.rmtree, os.environ["XDG_STATE_HOME"], ignore_errors=True)

sys.path.insert(0, str(Path(__file__).parent))  # for `import oracle`

from weather import write_weather  # noqa: E402


@pytest.fixture(scope="session")
def weather(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A NetCDF-4 file that no test changes."""
    return write_weather(tmp_path_factory.mktemp("weather") / "weather.nc")
