"""Files for parsers that want files: in memory where the system has such a folder, one set for the process."""

from __future__ import annotations

import atexit
import functools
import shutil
import tempfile
from pathlib import Path


@functools.cache
def folder(name: str) -> Path:
    """A folder of this process, removed at its end."""
    memory = Path("/dev/shm")
    made = Path(tempfile.mkdtemp(prefix=f"refindex-{name}-", dir=memory if memory.is_dir() else None))
    atexit.register(shutil.rmtree, made, ignore_errors=True)
    return made
