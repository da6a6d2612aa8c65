"""The CUDA library for the CPU: `python -m tests.cuda_on_cpu.build` compiles it, and says where.

The files of csrc/cuda, the bindings and the emulator become one library that registers its kernels
as the CPU's: `D2LOPS_CPU=<path>` loads it in place of those. With `--address-sanitizer`, kernels
and bindings are instrumented; with `--debug`, gdb steps through them line by line.
"""

import argparse
import os
import subprocess
import sys
from pathlib import Path

from torch.utils.cpp_extension import include_paths, library_paths

COMPILER = os.environ.get("CXX", "g++")
ROOT = Path(__file__).parents[2]
HERE = Path(__file__).parent.relative_to(ROOT)
# As in setup.py: the stable ABI of torch 2.11.
DEFINES = "-DTORCH_TARGET_VERSION=0x020b000000000000 -DTORCH_STABLE_ONLY -DD2LOPS_CUDA_ON_CPU"
WARNINGS = "-Wall -Wextra -Wno-unknown-pragmas -Wno-attributes"
# Nothing of this leaves the machine. Where it has fused multiply-adds, they are used as nvcc does.
FLAGS = f"-std=c++17 -march=native -fPIC -fvisibility=hidden {WARNINGS} {DEFINES}"
VARIANTS = {
    "plain": "-O2 -g1",
    "address_sanitizer": "-O1 -g1 -fsanitize=address",
    "debug": "-O0 -g",
}


def sources() -> list[Path]:
    csrc = ROOT / "csrc"
    kernels = [*(csrc / "cuda").glob("*.cu"), *(csrc / "bindings").glob("*.cpp")]
    return sorted([*kernels, csrc / "library.cpp", *(ROOT / HERE).glob("*.cpp")])


def ninja_file(folder: Path, flags: str) -> str:
    includes = [f"-I{HERE / 'include'}", "-Icsrc", *(f"-isystem {p}" for p in include_paths())]
    search = " ".join(f"-L{path}" for path in library_paths())
    lines = [
        f"builddir = {folder}",
        "rule compile",
        f"  command = {COMPILER} -x c++ {FLAGS} {' '.join(includes)} $flags -MMD -MF $out.d "
        "-c $in -o $out",
        *("  depfile = $out.d", "  deps = gcc"),
        "rule link",
        f"  command = {COMPILER} -shared {flags} $in {search} -ltorch -ltorch_cpu -o $out",
    ]
    objects = []
    for source in sources():
        path = source.relative_to(ROOT)
        objects.append(f"{folder}/{path.name}.o")
        # The emulator moves between stacks, and tells the sanitizer about it by itself.
        instrumented = path.name != "emulator.cpp"
        lines += [f"build {objects[-1]}: compile {path}"]
        lines += [f"  flags = {flags if instrumented else '-O2 -g1'}"]
    return "\n".join([*lines, f"build {folder}/cuda_on_cpu.so: link {' '.join(objects)}", ""])


def build(variant: str = "plain") -> Path:
    """Compiles what has changed; the path of the library."""
    folder = Path("build", "cuda_on_cpu", *([] if variant == "plain" else [variant]))
    (ROOT / folder).mkdir(parents=True, exist_ok=True)
    (ROOT / folder / "build.ninja").write_text(ninja_file(folder, VARIANTS[variant]))
    command = [sys.executable, "-m", "ninja", "-f", folder / "build.ninja"]
    result = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    if result.returncode != 0:
        raise RuntimeError(result.stdout + result.stderr)
    return ROOT / folder / "cuda_on_cpu.so"


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    choice = parser.add_mutually_exclusive_group()
    for name in list(VARIANTS)[1:]:
        option = "--" + name.replace("_", "-")
        choice.add_argument(option, dest="variant", action="store_const", const=name)
    print(build(parser.parse_args().variant or "plain"))
