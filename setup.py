"""Builds the kernel libraries: the same sources once per target, with ninja.

Environment:
    D2LOPS_CUDA         auto (default): the CUDA library where nvcc is found; 0: never; 1: insist
    D2LOPS_CUDA_ARCHS   compute capabilities, e.g. "8.0 9.0a" (or TORCH_CUDA_ARCH_LIST)
    CXX, CUDA_HOME      which compilers
    MAX_JOBS            how many of them at once (default: one per core)

A target is one shared library that registers all of its kernels when it is loaded;
`d2lops.backends` decides which one that is. Nothing here depends on what this machine's processor
can run; its GPUs, if there are any, decide which CUDA architectures are built.
"""

import json
import os
import platform
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

from setuptools import Extension, setup
from setuptools.command.build_ext import build_ext

ROOT = Path(__file__).parent.resolve()
# LibTorch Stable ABI of torch 2.11: what is built here runs on that torch and on later ones.
STABLE_ABI = ["-DTORCH_TARGET_VERSION=0x020b000000000000", "-DTORCH_STABLE_ONLY"]
CXX_FLAGS = (
    "-std=c++17 -O3 -fPIC -fvisibility=hidden -fvisibility-inlines-hidden "
    "-fno-math-errno -fno-trapping-math "
    "-Wall -Wextra -Wno-ignored-attributes -Wno-uninitialized -Wno-maybe-uninitialized -Wno-psabi"
)
# Two architectures of a file at a time: the longest file would be compiled alone at the end.
# Compressed, kernels take an eighth of the space. What host and device share has pragmas of GCC's,
# which the warning is about.
NVCC_FLAGS = (
    "-std=c++17 -O3 --threads=2 --compress-mode=size -diag-suppress=1675 "
    "-Xcompiler -fPIC,-fvisibility=hidden,-fvisibility-inlines-hidden"
)
AVX2 = "-mavx2 -mfma -mf16c -mbmi2"
AVX512 = f"-mavx512f -mavx512bw -mavx512dq -mavx512vl {AVX2} -mprefer-vector-width=512"
X86_TARGETS = {
    "cpu_avx2": AVX2,
    "cpu_avx512": AVX512,
    "cpu_avx512_bf16": f"{AVX512} -mavx512bf16",
    "cpu_amx": f"{AVX512} -mavx512bf16 -mamx-tile -mamx-bf16",
}
# Targets that only multiply matrices differently from another one share its other objects.
SHARED = {"cpu_avx512_bf16": "cpu_avx512", "cpu_amx": "cpu_avx512"}
PRODUCTS = ("cpu/corr2d.cpp", "cpu/linear_relu.cpp")
DEFAULT_CUDA_ARCHS = "8.0 8.6 8.9 9.0a 10.0 12.0+PTX"


def cpu_targets() -> dict[str, list[str]]:
    """Instruction-set flags per CPU library; the generic one runs anywhere."""
    targets = {"cpu_generic": []}
    if platform.machine() in ("x86_64", "AMD64"):
        targets |= {name: flags.split() for name, flags in X86_TARGETS.items()}
    return targets


def find_nvcc() -> str | None:
    home = os.environ.get("CUDA_HOME") or os.environ.get("CUDA_PATH")
    return shutil.which("nvcc", path=f"{home}/bin") if home else shutil.which("nvcc")


def decide_cuda() -> tuple[str | None, str]:
    """The nvcc to use, or None, and why. A GPU plays no part in it: builders have none."""
    choice = os.environ.get("D2LOPS_CUDA", "auto")
    if choice not in ("auto", "0", "1"):
        raise SystemExit(f"D2LOPS_CUDA={choice!r}: allowed are 'auto', '0' and '1'")
    if choice == "0":
        return None, "D2LOPS_CUDA=0"
    nvcc = find_nvcc()
    if nvcc and sources("cuda", "*.cu"):
        return nvcc, f"D2LOPS_CUDA={choice}, nvcc is {nvcc}"
    if nvcc:
        reason = f"D2LOPS_CUDA={choice}, nvcc is {nvcc}, but this version has no CUDA kernels yet"
        if choice == "1":
            raise SystemExit(f"{reason}: set D2LOPS_CUDA=0 to build for the CPU alone.")
        return None, reason
    if choice == "1":
        raise SystemExit(
            "D2LOPS_CUDA=1, but no nvcc was found. Install the CUDA toolkit (13.0 or later), put "
            "its bin/ on PATH or set CUDA_HOME; or set D2LOPS_CUDA=0 to build for the CPU alone."
        )
    return None, "D2LOPS_CUDA=auto, no nvcc on PATH or under CUDA_HOME"


def visible_cuda_archs() -> str:
    """Compute capabilities of the GPUs in this machine, "" where there are none."""
    import torch

    if not torch.cuda.is_available():
        return ""
    archs = {torch.cuda.get_device_capability(i) for i in range(torch.cuda.device_count())}
    return " ".join(f"{major}.{minor}" + "a" * (major == 9) for major, minor in sorted(archs))


def cuda_archs() -> list[str]:
    archs = (
        os.environ.get("D2LOPS_CUDA_ARCHS")
        or os.environ.get("TORCH_CUDA_ARCH_LIST")
        or visible_cuda_archs()
        or DEFAULT_CUDA_ARCHS
    )
    return archs.replace(";", " ").split()


def cuda_arch_flags() -> list[str]:
    flags = []
    for arch in cuda_archs():
        number = arch.removesuffix("+PTX").replace(".", "")
        # Hopper's own instructions are in 9.0a, which all GPUs of 9.0 run.
        real = "90a" if number == "90" else number
        flags.append(f"-gencode=arch=compute_{real},code=sm_{real}")
        if arch.endswith("+PTX"):
            flags.append(f"-gencode=arch=compute_{number},code=compute_{number}")
        if real == "90a":
            flags.append("-DD2LOPS_SM90A")
    return flags


def version_line(tool: str) -> str:
    command = [*shlex.split(tool), "--version"]
    lines = subprocess.run(command, check=True, capture_output=True, text=True).stdout
    return lines.strip().splitlines()[-1 if "nvcc" in tool else 0]


def sources(folder: str, pattern: str) -> list[str]:
    return sorted(str(path.relative_to(ROOT)) for path in (ROOT / "csrc" / folder).glob(pattern))


def extensions(nvcc: str | None) -> list[Extension]:
    """`_C` is a Python module, the rest are plain shared libraries under d2lops/lib."""
    found = [Extension("d2lops._C", ["csrc/module.cpp"])]
    bindings = sources("bindings", "*.cpp")
    for target in cpu_targets():
        kernels = sources("cpu", "*.cpp")
        found.append(Extension(f"d2lops.lib.{target}", ["csrc/library.cpp", *bindings, *kernels]))
    if nvcc:
        kernels = [*sources("cuda", "*.cu"), *sources("cuda", "*.cpp")]
        found.append(Extension("d2lops.lib.cuda", [*bindings, *kernels]))
    return found


class BuildKernels(build_ext):
    """Writes one build.ninja for all targets: they compile in parallel and incrementally."""

    def get_ext_filename(self, fullname: str) -> str:
        if fullname.endswith("_C"):
            return super().get_ext_filename(fullname)
        return fullname.replace(".", os.sep) + ".so"

    def build_extensions(self) -> None:
        folder = ROOT / "build" / f"ninja-{sys.implementation.cache_tag}"
        folder.mkdir(parents=True, exist_ok=True)
        flags = self.flags_per_target()
        self.write_build_record(folder / "build_record.h", flags)
        (folder / "build.ninja").write_text("\n".join(self.ninja_lines(folder, flags)) + "\n")
        jobs = ["-j", os.environ["MAX_JOBS"]] if "MAX_JOBS" in os.environ else []
        print(f"d2lops: CPU libraries: {', '.join(cpu_targets())}")
        print(f"d2lops: CUDA library: {'yes' if NVCC else 'no'} ({CUDA_REASON})", flush=True)
        subprocess.run([sys.executable, "-m", "ninja", "-C", str(folder), *jobs], check=True)

    def flags_per_target(self) -> dict[str, list[str]]:
        import pybind11

        flags = {name: [*isa, *STABLE_ABI] for name, isa in cpu_targets().items()}
        python_includes = [pybind11.get_include(), *self.include_dirs]
        flags["_C"] = [f"-isystem {path}" for path in python_includes]
        if NVCC:
            flags["cuda"] = [*STABLE_ABI, "-DUSE_CUDA", "-DD2LOPS_CUDA"]
        return flags

    def write_build_record(self, path: Path, flags: dict[str, list[str]]) -> None:
        """What `python -m d2lops.info` prints; rewritten only if it changed, to spare a rebuild."""
        import torch

        record = {
            "torch": torch.__version__,
            "python": platform.python_version(),
            "compiler": version_line(os.environ.get("CXX", "c++")),
            "cuda": f"{version_line(NVCC)}: {' '.join(cuda_archs())}"
            if NVCC
            else f"not built: {CUDA_REASON}",
            "flags": {
                name: " ".join(f for f in flags[name] if f[1] == "m") for name in cpu_targets()
            },
        }
        text = f'R"json({json.dumps(record)})json"\n'
        if not path.exists() or path.read_text() != text:
            path.write_text(text)

    def ninja_lines(self, folder: Path, flags: dict[str, list[str]]) -> list[str]:
        from torch.utils.cpp_extension import include_paths, library_paths

        # Error messages name source files, which should not tell where this machine has them.
        prefix_map = f"-ffile-prefix-map={ROOT}/="
        includes = [f"-I{ROOT / 'csrc'}", f"-I{folder}"]
        includes += [f"-isystem {path}" for path in include_paths()]
        search = " ".join(f"-L{path}" for path in library_paths())
        # nvcc finds the toolkit's headers and libraries by itself, so it compiles all of csrc/cuda,
        # and links. The CUDA runtime that it links is its own, a static one, so that the library
        # runs under any torch: it shares torch's device context, streams and memory all the same.
        archs = " ".join(cuda_arch_flags()) if NVCC else ""
        lines = [
            f"cxx = {os.environ.get('CXX', 'c++')} {CXX_FLAGS} {prefix_map} {' '.join(includes)}",
            f"nvcc = {NVCC} {archs} {NVCC_FLAGS},{prefix_map} {' '.join(includes)}",
            *("rule cxx", "  command = $cxx -MMD -MF $out.d $flags -c $in -o $out"),
            *("  depfile = $out.d", "  deps = gcc"),
            *("rule nvcc", "  command = $nvcc -MD -MF $out.d $flags -c $in -o $out"),
            *("  depfile = $out.d", "  deps = gcc"),
            "rule link",
            f"  command = {os.environ.get('CXX', 'c++')} -shared $in {search} $libraries -o $out",
            # Some functions are in a library that a torch for the CPU does not have; libtorch.so
            # has it in tow where it exists, and must be kept though nothing else refers to it.
            "rule link_cuda",
            f"  command = $nvcc -shared $in {search} -Xlinker --no-as-needed $libraries -o $out",
        ]
        for extension in self.extensions:
            target = extension.name.rsplit(".", 1)[1]
            objects = []
            for source in extension.sources:
                name = source.removeprefix("csrc/")
                if target in SHARED and name not in PRODUCTS:
                    objects.append(f"{folder}/{SHARED[target]}/{name}.o")
                    continue
                compiler = "nvcc" if source.startswith("csrc/cuda/") else "cxx"
                objects.append(f"{folder}/{target}/{name}.o")
                lines += [f"build {objects[-1]}: {compiler} {ROOT / source}"]
                lines += [f"  flags = {' '.join(flags[target])}"]
            output = Path(self.get_ext_fullpath(extension.name)).resolve()
            output.parent.mkdir(parents=True, exist_ok=True)
            linker = "link_cuda" if target == "cuda" else "link"
            lines += [f"build {output}: {linker} {' '.join(objects)}"]
            lines += [f"  libraries = {'' if target == '_C' else '-ltorch -ltorch_cpu'}"]
        return lines


NVCC, CUDA_REASON = decide_cuda()
setup(ext_modules=extensions(NVCC), cmdclass={"build_ext": BuildKernels})
