"""Files that many tests share. All data is made here."""

from __future__ import annotations

import sys
from pathlib import Path

import hdf5plugin
import pytest
from hypothesis import HealthCheck, settings

# Tests write with filters of hdf5plugin, too. Those that netCDF4 has put in their place do not work with h5py.
hdf5plugin.register(force=True)

# Machines that run tests are shared: how long an example takes says nothing of the code.
settings.register_profile("refindex", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("refindex")

sys.path.insert(0, str(Path(__file__).parent))  # for `import oracle`

from weather import write_weather  # noqa: E402


@pytest.fixture(scope="session")
def weather(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A NetCDF-4 file that no test changes."""
    return write_weather(tmp_path_factory.mktemp("weather") / "weather.nc")
