"""Triton's interpreter, made fast enough for the operators' tests.

Most of its time goes into what surrounds the arithmetic:

- Around each call of a function within a kernel it replaces all functions of Triton's language, as
  it already did around the kernel. Here, what the kernel's own module sees stays replaced until the
  kernel ends, and what Triton's library sees stays so for good.
- It does every sum and product of integers once more in 64 bits, in search of overflow. That is for
  debugging: GPUs, too, are asked for it only then.
- For each of NumPy's types that it needs it draws up the list of them all.
"""

import functools
from typing import Any

import numpy as np
import triton.language as tl
from triton.runtime import interpreter

_replaced: set[int] = set()
_type_of_numbers = functools.cache(interpreter._get_np_dtype)


def _call(self: interpreter.InterpretedFunction, *arguments: Any, **named: Any) -> Any:
    names = self.fn.__globals__
    if names.get("tl") is not tl and id(names) not in _replaced:
        interpreter._patch_lang(self.fn)
        _replaced.add(id(names))
    return self.rewrite()(*arguments, **named)


def _numpy_type(of: tl.dtype) -> np.dtype:
    return np.dtype(np.uint64) if of.scalar.is_ptr() else _type_of_numbers(of.scalar)


def make_fast() -> None:
    interpreter.InterpretedFunction.__call__ = _call
    interpreter.interpreter_builder.options = interpreter.InterpreterOptions(
        sanitize_overflow=False
    )
    interpreter._get_np_dtype = _numpy_type
