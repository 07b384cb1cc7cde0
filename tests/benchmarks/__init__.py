"""Benchmarks: scanning, storing, opening and reading, beside bare libraries, kerchunk and VirtualiZarr.

``python -m tests.benchmarks`` prints ratios to a baseline that is measured in the same run, in turns with everything
else, because absolute times of a shared machine mean little. See ``python -m tests.benchmarks --help``.
"""
