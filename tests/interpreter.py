"""Triton's interpreter, made fast enough for the operators' tests.

Around each call of a function within a kernel it replaces all functions of Triton's language, as it
already did around the kernel: most of the time goes there. What the kernel's own module sees stays
replaced until the kernel ends, and what Triton's library sees stays so for good.
"""

from typing import Any

import triton.language as tl
from triton.runtime import interpreter

_replaced: set[int] = set()


def _call(self: interpreter.InterpretedFunction, *arguments: Any, **named: Any) -> Any:
    names = self.fn.__globals__
    if names.get("tl") is not tl and id(names) not in _replaced:
        interpreter._patch_lang(self.fn)
        _replaced.add(id(names))
    return self.rewrite()(*arguments, **named)


def make_fast() -> None:
    interpreter.InterpretedFunction.__call__ = _call
