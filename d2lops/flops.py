"""What `torch.utils.flop_counter` counts of the raw operators: what it counts of torch's own.

To import that module takes longer than to import d2lops, and few programs need it. So d2lops does
not, but sees when it is imported: the formulas are registered then, or at once if it is there.
"""

import sys
from collections.abc import Callable, Sequence
from importlib.abc import MetaPathFinder
from importlib.machinery import ModuleSpec
from importlib.util import find_spec
from types import ModuleType
from typing import Any

Shape = Sequence[int]
COUNTER = "torch.utils.flop_counter"


def _convolution(x: Shape, weight: Shape, out: Shape, transposed: bool = False) -> int:
    return sys.modules[COUNTER].conv_flop_count(x, weight, out, transposed)


def _swapped(shape: Shape) -> Shape:
    return (shape[1], shape[0], *shape[2:])


def _product(rows: int, inner: int, columns: int) -> int:
    return 2 * rows * inner * columns


def _corr2d(x: Shape, weight: Shape, *_: Any, out_shape: Shape, **__: Any) -> int:
    return _convolution(x, weight, out_shape)


def _corr2d_input_grad(
    g: Shape, y: Any, weight: Shape, *_: Any, out_shape: Shape, **__: Any
) -> int:
    return _convolution(g, weight, out_shape, transposed=True)


def _corr2d_weight_grad(g: Shape, y: Any, x: Shape, *_: Any, out_shape: Shape, **__: Any) -> int:
    """Images and channels change places: the images are what is summed over."""
    return _convolution(*map(_swapped, (x, g, out_shape)))


def _linear(x: Shape, weight: Shape, *_: Any, **__: Any) -> int:
    return _product(*x, weight[0])


def _linear_input_grad(g: Shape, y: Any, weight: Shape, *_: Any, **__: Any) -> int:
    return _product(*g, weight[1])


def _linear_weight_grad(g: Shape, y: Any, x: Shape, *_: Any, **__: Any) -> int:
    return _product(*g, x[1])


FORMULAS: dict[str, Callable[..., int]] = {
    "corr2d": _corr2d,
    "corr2d_input_grad": _corr2d_input_grad,
    "corr2d_weight_grad": _corr2d_weight_grad,
    "linear": _linear,
    "linear_relu": _linear,
    "linear_input_grad": _linear_input_grad,
    "linear_weight_grad": _linear_weight_grad,
}
_waiting: list[tuple[Any, Callable[..., int]]] = []


def count(name: str, operator: Any) -> None:
    """Have the flops of a raw operator counted, if it has any that torch would count."""
    if name in FORMULAS:
        _waiting.append((operator.overloadpacket, FORMULAS[name]))
        if COUNTER in sys.modules:
            _register()


def _register() -> None:
    while _waiting:
        operator, formula = _waiting.pop()
        sys.modules[COUNTER].register_flop_formula(operator)(formula)


class _Importing(MetaPathFinder):
    """Finds no module, but adds to what happens when torch's counter is imported."""

    def find_spec(
        self, name: str, path: Sequence[str] | None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        if name != COUNTER:
            return None
        sys.meta_path.remove(self)
        spec = find_spec(name)
        execute = spec.loader.exec_module

        def execute_and_register(module: ModuleType) -> None:
            execute(module)
            _register()

        spec.loader.exec_module = execute_and_register
        return spec


if COUNTER not in sys.modules:
    sys.meta_path.insert(0, _Importing())
