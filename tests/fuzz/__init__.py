"""Fuzzing: whatever the bytes, every parser of refindex gives a model or a RefindexError, in bounded time and memory.

Two engines feed the targets of :mod:`tests.fuzz.targets`: structured mutation, which knows the formats (and repairs
checksums, so that what lies behind them is reached), and atheris (libFuzzer) where it is installed. Neither calls
libhdf5: a crash of it is not ours to find.
"""
