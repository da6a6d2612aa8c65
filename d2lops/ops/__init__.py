"""The operators, one file each. Importing the package registers the one that no public module needs."""

from d2lops.ops import fma_chain

__all__ = ["fma_chain"]
