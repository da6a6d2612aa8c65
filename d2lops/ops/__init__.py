"""The operators, one file each. The one that no public module needs is registered from here."""

from d2lops.ops import fma_chain

__all__ = ["fma_chain"]
