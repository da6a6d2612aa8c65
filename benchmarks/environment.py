"""What a measurement depends on besides the code: processor, threads, versions."""

import datetime
import os
import platform
import subprocess
from pathlib import Path

import torch

import d2lops
from benchmarks.device import on_gpu
from d2lops import backends


def environment() -> dict[str, str | int | float]:
    return {
        **(_gpu() if on_gpu() else {}),
        "processor": _processor(),
        "cores": os.cpu_count() or 1,
        "threads": torch.get_num_threads(),
        "load": round(os.getloadavg()[0], 2),  # a busy machine makes every number doubtful
        "library": "cpu_{} ({})".format(*backends.cpu_library),
        "d2lops": d2lops.__version__,
        "commit": _commit(),
        "torch": torch.__version__,
        "python": platform.python_version(),
        "system": platform.platform(),
        "date": datetime.datetime.now(datetime.timezone.utc).isoformat(timespec="minutes"),
    }


def _gpu() -> dict[str, str]:
    """Its clocks, too: some machines keep them low."""
    query = ["nvidia-smi", "--query-gpu=driver_version,clocks.max.sm,clocks.max.mem,power.limit"]
    return {
        "gpu": torch.cuda.get_device_name(),
        "driver, clocks, power": _output([*query, "--format=csv,noheader", "--id=0"]),
        "cuda": f"{torch.version.cuda}, cuDNN {torch.backends.cudnn.version()}",
        "torch's convolutions": "the fastest found (cudnn.benchmark)",
        "TF32": "in the rows that say so, on both sides",
    }


def _processor() -> str:
    """As Linux names it, with the numbers that tell apart what virtual machines call the same."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.processor() or platform.machine()
    fields = {
        key.strip(): value.strip() for key, _, value in (line.partition(":") for line in lines)
    }
    if "model name" not in fields:
        return platform.machine()
    return "{model name} (family {cpu family}, model {model}, stepping {stepping})".format(**fields)


def _commit() -> str:
    return _output(["git", "-C", str(Path(__file__).parent), "describe", "--always", "--dirty"])


def _output(command: list[str]) -> str:
    try:
        return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()
    except (OSError, subprocess.CalledProcessError):
        return f"{command[0]} does not tell"
