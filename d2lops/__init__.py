"""Hand-written kernels for the four operators that *Dive into Deep Learning* builds networks from.

Cross-correlation, pooling, dropout and fused linear-ReLU, as `d2lops.functional` and `d2lops.nn`,
which stand in for `torch.nn.functional` and `torch.nn`; and `d2lops.convert`, for models that are
there already. ``python -m d2lops.info`` says what is installed.
"""

from d2lops import functional, nn
from d2lops.backends import backend
from d2lops.convert import convert, revert
from d2lops.memory import keep_freed_memory

__all__ = ["backend", "convert", "functional", "keep_freed_memory", "nn", "revert"]
__version__ = "0.1.0"
