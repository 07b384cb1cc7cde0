"""``python -m refindex.cli``."""

from refindex.cli.app import main

main()
