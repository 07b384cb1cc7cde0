"""Archives for others: a compact copy of one version, a page, and a STAC item."""

from __future__ import annotations

from refindex.publication.publishing import Published, Wish, publish, watching

__all__ = ["Published", "Wish", "publish", "watching"]
