"""Makes the helpers of the tests of storages importable."""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1] / "storage"))
