"""What is measured, one module for each library, so that a process imports no other.

Each function takes the data and the numbers that its maker returned, sets up (not measured), and returns what is
measured: a function of an empty folder. That returns a number, or a function that counts it afterwards, and the name
of the expected number that it must equal.
"""

from collections.abc import Callable, Mapping
from pathlib import Path

type Expected = Mapping[str, int]
type Found = tuple[int | Callable[[], int], str]
type Measured = Callable[[Path], Found]
