"""How kernels are launched: with one of a few configurations, the fastest where that can be told.

Not by `triton.autotune`, which the interpreter cannot run, and which measures anew for each batch
size and in each process. Here sizes count by their powers of two, problems that are over at once
are not measured, and what was found out is kept on disk.
"""

import hashlib
import json
import os
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
import triton
import triton.testing
from torch import Tensor
from torch.library import wrap_triton
from triton import Config

from d2lops.triton_kernels.device import INTERPRETED

_fastest: dict[tuple, Config] = {}


def is_traced(x: Tensor) -> bool:
    """Whether it only stands for a tensor, of which torch's compiler wants to know what is done."""
    return type(x) not in (Tensor, torch.nn.Parameter)


def launch(
    kernel: Any, grid: tuple[int, ...], *arguments: Any, config: Config, **constants: Any
) -> None:
    """Start `kernel`; `constants` and those of `config` are its constexpr arguments."""
    constants |= config.kwargs
    if INTERPRETED:
        kernel[grid](*arguments, **constants)
        return
    options = {"num_warps": config.num_warps, "num_stages": config.num_stages}
    started = wrap_triton(kernel)
    if started is kernel:  # not traced, where this has no place; Triton's own default changes
        options["enable_fp_fusion"] = True
    started[grid](*arguments, **constants, **options)


def launch_fastest(
    run: Callable[[Config], None],
    configs: Sequence[Config],
    kernel: Any,
    problem: Sequence[int | str],
    x: Tensor,
) -> None:
    """Call `run`, which launches `kernel`, with the fastest of its configurations.

    Which one that is, is measured once for each kind of `problem` (its sizes count by their powers
    of two), on a GPU of the kind that `x` is on. Where measuring is out of the question, in the
    interpreter, in graphs that are captured or compiled, and with ``D2LOPS_TRITON_TUNE=0``, it is
    what was found before, or the first: the best guess.

    `run` may be called many times, so it must not read what it writes. Configurations must not
    differ in the order of sums, so that the choice does not show in the results.
    """
    chosen = configs[0]
    if len(configs) > 1 and x.is_cuda and all(type(size) in (int, str) for size in problem):
        kind = tuple(size.bit_length() if isinstance(size, int) else size for size in problem)
        key = (kernel, x.device, x.dtype, kind, *configs)
        if key not in _fastest:
            _look_up(key, run, configs, x)
        chosen = _fastest.get(key, chosen)
    run(chosen)


def _look_up(
    key: tuple, run: Callable[[Config], None], configs: Sequence[Config], x: Tensor
) -> None:
    kernel, device, dtype, kind, *_ = key
    names = [str(config) for config in configs]
    gpu = torch.cuda.get_device_name(device)
    identity = [kernel.cache_key, triton.__version__, gpu, str(dtype), *map(str, kind), *names]
    digest = hashlib.sha256("\n".join(identity).encode()).hexdigest()
    path = Path(triton.knobs.cache.dir) / "d2lops" / f"{kernel.__name__}-{digest[:16]}.json"
    if path.exists():
        times = json.loads(path.read_text())
    elif _may_measure(x):
        times = {str(config): _milliseconds(run, config) for config in configs}
        path.parent.mkdir(parents=True, exist_ok=True)
        unfinished = path.with_suffix(f".{os.getpid()}")  # other processes may be at it, too
        unfinished.write_text(json.dumps(times, indent=1))
        unfinished.replace(path)
    else:
        return
    _fastest[key] = min(configs, key=lambda config: times[str(config)])


def _may_measure(x: Tensor) -> bool:
    allowed = os.environ.get("D2LOPS_TRITON_TUNE") != "0"
    return allowed and not is_traced(x) and not torch.cuda.is_current_stream_capturing()


def _milliseconds(run: Callable[[Config], None], config: Config) -> float:
    """Infinity for a configuration that this GPU cannot run, or that Triton cannot compile."""
    try:
        return triton.testing.do_bench(lambda: run(config), warmup=5, rep=20, return_mode="median")
    except Exception:
        return float("inf")
