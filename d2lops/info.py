"""``python -m d2lops.info``: what was built, what this machine has, and which kernels would run."""

import os
import platform

import torch

SWITCHES = (
    *("D2LOPS_BACKEND", "D2LOPS_CPU", "D2LOPS_CUDA", "D2LOPS_CUDA_ARCHS", "MAX_JOBS"),
    *("D2LOPS_TRITON_TUNE", "TRITON_INTERPRET"),
)


def summary() -> str:
    """The lines that ``python -m d2lops.info`` prints."""
    from d2lops import __version__, backends

    rows = {
        "d2lops": __version__,
        "torch, running": torch.__version__,
        "python": platform.python_version(),
    }
    try:
        from d2lops import _C
    except ImportError as error:
        rows["built"] = f"d2lops._C cannot be imported: {error}"
    else:
        record = _C.build_record
        rows["torch, built with"] = f"{record['torch']} (stable ABI: runs on 2.11 and later)"
        rows["compiler"] = record["compiler"]
        for name, flags in record["flags"].items():
            rows[name] = flags or "the compiler's default instruction set"
        rows["cuda"] = record["cuda"]
        present = [name for name, has in _C.cpu_features().items() if has]
        rows["processor"] = f"{platform.machine()}: {', '.join(present) or 'no extensions known'}"
    if backends.cpu_library:
        rows["loaded"] = "cpu_{} ({})".format(*backends.cpu_library)
        rows["cuda library"] = "{}loaded ({})".format(
            "" if backends.cuda_library[0] else "not ", backends.cuda_library[1]
        )
    else:
        error = backends.load_error
        rows["loaded"] = f"none: {type(error).__name__}: {error}"
    rows["triton"] = backends.triton_version() or "3.6 or later is not installed"
    rows["threads"] = str(torch.get_num_threads())
    for name in SWITCHES:
        rows[name] = os.environ.get(name, "not set")
    width = max(map(len, rows))
    return "\n".join(f"{name:<{width}}  {value}" for name, value in rows.items())


if __name__ == "__main__":
    print(summary())
