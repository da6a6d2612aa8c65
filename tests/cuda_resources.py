"""What the kernels of the CUDA library take, and their machine code.

    python -m tests.cuda_resources          a table, with all instances of a kernel in one line
    python -m tests.cuda_resources gemm     each instance of the kernels whose names have that

Read by cuobjdump: the CUDA toolkit's, or that of the package nvidia-cuda-cuobjdump or of triton.
"""

import functools
import os
import re
import shutil
import subprocess
import sys
import sysconfig
from itertools import groupby
from pathlib import Path
from typing import NamedTuple

import d2lops

LIBRARY = Path(d2lops.__file__).parent / "lib" / "cuda.so"
REGISTERS, WARPS = 65536, 64  # of a multiprocessor: sm_80, sm_90, sm_100


class Kernel(NamedTuple):
    architecture: str
    symbol: str
    name: str
    registers: int
    stack: int  # bytes of a thread's local memory
    shared: int  # static ones
    threads: int  # of a block, as __launch_bounds__ says; 0 if it does not

    @property
    def warps(self) -> int:
        """Those that a multiprocessor has registers for, in whole blocks."""
        of_block = max(-(-self.threads // 32), 1)
        allocated = -(-self.registers // 8) * 8 * 32
        return min(REGISTERS // allocated, WARPS) // of_block * of_block


@functools.cache
def find_cuobjdump() -> Path | None:
    """One that has nvdisasm beside it, which it calls."""
    packages = Path(sysconfig.get_path("purelib"))
    on_path = shutil.which("cuobjdump")
    folders = [
        *([Path(on_path).parent] if on_path else []),
        Path(os.environ.get("CUDA_HOME", "/usr/local/cuda"), "bin"),
        *packages.glob("nvidia/cu*/bin"),
        packages / "triton/backends/nvidia/bin",
    ]
    tools = (folder / "cuobjdump" for folder in folders if (folder / "nvdisasm").exists())
    return next((tool for tool in tools if tool.exists()), None)


def dump(*options: str) -> str:
    tool = find_cuobjdump()
    path = f"{tool.parent}{os.pathsep}{os.environ['PATH']}"
    command = [tool, *options, LIBRARY]
    result = subprocess.run(
        command, check=True, capture_output=True, text=True, env={**os.environ, "PATH": path}
    )
    return result.stdout


def demangled(symbols: list[str]) -> list[str]:
    """Without what all of them have in common."""
    names = subprocess.run(
        ["c++filt"], input="\n".join(symbols), check=True, capture_output=True, text=True
    ).stdout
    names = re.sub(r"^void |d2lops::|\(anonymous namespace\)::|const__", "", names, flags=re.M)
    # The parameters are a bracket at the end, which may have others in it.
    return [re.sub(r"(?<=>)\(.*\)$|\((?!.*>\().*\)$", "", name) for name in names.splitlines()]


def by_architecture(text: str) -> list[tuple[str, str]]:
    parts = re.split(r"^arch = (\w+)$", text, flags=re.M)
    return list(zip(parts[1::2], parts[2::2], strict=True))


def thread_limits() -> dict[tuple[str, str], int]:
    pattern = r"^\.nv\.info\.(\w+)$|EIATTR_MAX_THREADS\s+Format:\s+\S+\s+Value:\s+(0x\w+)"
    limits = {}
    for architecture, part in by_architecture(dump("--dump-elf")):
        symbol = ""
        for match in re.finditer(pattern, part, re.M):
            if match[1]:
                symbol = match[1]
            else:
                limits[architecture, symbol] = int(match[2], 16)
    return limits


def kernels(limits: dict[tuple[str, str], int] | None = None) -> list[Kernel]:
    pattern = r"Function (\w+):\s+REG:(\d+) STACK:(\d+) SHARED:(\d+)"
    found = [
        (architecture, *match.groups())
        for architecture, part in by_architecture(dump("--dump-resource-usage"))
        for match in re.finditer(pattern, part)
    ]
    names = demangled([symbol for _, symbol, *_ in found])
    return [
        Kernel(arch, symbol, name, *map(int, numbers), (limits or {}).get((arch, symbol), 0))
        for (arch, symbol, *numbers), name in zip(found, names, strict=True)
    ]


def machine_code(chosen: list[Kernel]) -> dict[Kernel, list[str]]:
    """The opcodes of kernels, all of one architecture: half a second for each."""
    architecture, symbols = chosen[0].architecture, ",".join(kernel.symbol for kernel in chosen)
    text = dump("--dump-sass", "--gpu-architecture", architecture, "--function", symbols)
    parts = re.split(r"^\s+Function : (\w+)$", text, flags=re.M)
    listings = dict(zip(parts[1::2], parts[2::2], strict=True))
    pattern = re.compile(r"^\s+/\*[0-9a-f]{4,}\*/\s+(?:@\S+ )?([^ ;]+)", re.M)
    return {kernel: pattern.findall(listings[kernel.symbol]) for kernel in chosen}


def straight_stretches(opcodes: list[str]) -> list[list[str]]:
    """The code, cut where it jumps."""
    jumps = re.compile(r"BRA|BRX|CALL|RET|EXIT|BSYNC|BAR")
    grouped = groupby(opcodes, lambda opcode: bool(jumps.match(opcode)))
    return [list(stretch) for jumps_here, stretch in grouped if not jumps_here]


def main(wanted: str = "") -> None:
    from rich.console import Console
    from rich.table import Table

    table = Table(caption="Dynamic shared memory, which launchers ask for, is not counted.")
    titles = ("kernel", "architecture", "instances", "registers", "stack", "shared", "threads")
    for title in (*titles, "warps by registers"):
        table.add_column(title, justify="left" if title == "kernel" else "right", no_wrap=True)

    def line(kernel: Kernel) -> tuple[str, str]:
        name = kernel.name if wanted else kernel.name.partition("<")[0]
        return name, kernel.architecture

    def span(numbers: list[int]) -> str:
        return "-".join(str(n) for n in sorted({min(numbers), max(numbers)}))

    chosen = [kernel for kernel in kernels(thread_limits()) if wanted in kernel.name]
    for (name, architecture), instances in groupby(sorted(chosen, key=line), line):
        *numbers, warps = zip(*((*k[3:], k.warps) for k in instances), strict=True)
        table.add_row(name, architecture, str(len(warps)), *map(span, numbers), span(warps))
    Console().print(table)


if __name__ == "__main__":
    main(*sys.argv[1:2])
