"""Variables that are read often, rewritten beside their archive in the chunks that readers want."""

from refindex.optimization.progress import Rewriting, watching
from refindex.optimization.result import Optimized, OptimizedArray
from refindex.optimization.run import Wish, optimize

__all__ = ["Optimized", "OptimizedArray", "Rewriting", "Wish", "optimize", "watching"]
