"""Kernels run on the CPU as a GPU runs them, and what is wrong with them shows."""

import functools
import math
import os
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.device import cpu_only

ROOT = Path(__file__).parent / "cuda_on_cpu"
PROGRAMS = ROOT / "programs"
COMPILER = os.environ.get("CXX", "g++")
ORDERS = ["forward", "reverse", "random"]

pytestmark = [
    cpu_only,
    pytest.mark.skipif(not shutil.which(COMPILER), reason="there is no C++ compiler"),
]
in_every_order = pytest.mark.parametrize("order", ORDERS)

Build = Callable[..., Path]


def compile_cuda(source: Path, output: Path, *options: str) -> subprocess.CompletedProcess:
    command = [COMPILER, "-std=c++17", "-O1", "-g", "-rdynamic", "-pthread", "-I", ROOT / "include"]
    command += ["-x", "c++", source, "-x", "none", *options, "-o", output]
    return subprocess.run(command, capture_output=True, text=True)


@pytest.fixture(scope="module")
def build(tmp_path_factory: pytest.TempPathFactory) -> Build:
    """The program of that source file, with a sanitizer or none."""
    folder = tmp_path_factory.mktemp("programs")

    @functools.cache
    def emulator(*options: str) -> Path:
        object_file = folder / "-".join(["emulator.o", *options])
        result = compile_cuda(ROOT / "emulator.cpp", object_file, "-c", *options)
        assert result.returncode == 0, result.stderr
        return object_file

    @functools.cache
    def program(source: str, *options: str, emulator_options: tuple[str, ...] = ()) -> Path:
        output = folder / "-".join([source, *options, *emulator_options])
        result = compile_cuda(
            PROGRAMS / source, output, str(emulator(*emulator_options)), "-Wall", *options
        )
        assert result.returncode == 0, result.stderr
        assert not result.stderr
        return output

    return program


def run(
    program: Path, *arguments: str, order: str = "forward", seed: int = 0
) -> subprocess.CompletedProcess:
    environment = {
        **os.environ,
        "CUDA_ON_CPU_ORDER": order,
        "CUDA_ON_CPU_SEED": str(seed),
        "ASAN_OPTIONS": "detect_leaks=0",
    }
    return subprocess.run([program, *arguments], env=environment, capture_output=True, text=True)


def output(program: Path, *arguments: str, order: str = "forward", seed: int = 0) -> str:
    result = run(program, *arguments, order=order, seed=seed)
    assert result.returncode == 0, result.stderr
    return result.stdout


def numbers(line: str) -> list[float]:
    return [float(word) for word in line.split()]


def error(program: Path, *arguments: str, order: str = "forward") -> str:
    result = run(program, *arguments, order=order)
    assert result.returncode != 0
    return result.stderr


@in_every_order
def test_each_thread_of_each_block_runs_once(build: Build, order: str) -> None:
    *once, last = numbers(output(build("indices.cu"), order=order))
    assert once == [1, 1, 1]
    assert order == "random" or last == {"forward": 4, "reverse": 0}[order]


@in_every_order
def test_product_by_shared_memory(build: Build, order: str) -> None:
    assert output(build("matmul.cu"), "nothing", order=order) == "right\n"


@pytest.mark.parametrize("missing", ["before_use", "after_use"])
def test_missing_barrier_is_found(build: Build, missing: str) -> None:
    assert "wrong\n" in [output(build("matmul.cu"), missing, order=order) for order in ORDERS]


@in_every_order
@pytest.mark.parametrize("dtype", ["int", "float", "double", "long long"])
def test_shuffles(build: Build, dtype: str, order: str) -> None:
    threads = range(40)  # the second warp has eight lanes
    expected = [
        [t // 32 * 32 + (t % 32 + 1) % (32 if t < 32 else 8) for t in threads],
        [t - 3 if t % 8 >= 3 else t for t in threads],
        [t + 2 if t % 4 < 2 else t for t in threads],
        [t ^ 5 for t in threads],
        [t // 8 * 8 + 1 for t in threads],
    ]
    lines = output(build("warps.cu"), dtype, order=order).splitlines()
    assert [numbers(line) for line in lines] == expected


@in_every_order
def test_votes(build: Build, order: str) -> None:
    lines = output(build("warps.cu"), "votes", order=order).splitlines()
    ballots, any_lane, all_lanes = (numbers(line) for line in lines)
    assert ballots == [0xAAAAAAAA] * 32 + [0xAA] * 8
    assert any_lane == [0] * 32 + [1] * 8
    assert all_lanes == [1] * 40


@in_every_order
def test_block_sums(build: Build, order: str) -> None:
    sums = numbers(output(build("warps.cu"), "sum", order=order))
    assert sums == [n * (n - 1) / 2 for n in (1, 31, 32, 33, 100, 1000, 1024)]


@in_every_order
@pytest.mark.parametrize("what", ["votes", "early_exit", "named"])
def test_barriers(build: Build, what: str, order: str) -> None:
    assert output(build("barriers.cu"), what, order=order) == "100\n"


@in_every_order
def test_divergent_barrier_is_a_deadlock(build: Build, order: str) -> None:
    message = error(build("barriers.cu"), "divergent", order=order)
    assert "deadlock" in message
    assert "in divergent(int*), block (0, 0, 0)" in message
    assert "56 of 64 threads at __syncthreads (barrier 0), the first is (4, 0, 0)" in message
    assert (
        "4 of 64 threads at an exchange (shuffle, vote, mma) of warp 1, the first is (0, 1, 0)"
        in (message)
    )


@in_every_order
def test_barrier_of_too_few_threads_is_a_deadlock(build: Build, order: str) -> None:
    message = error(build("barriers.cu"), "too_few", order=order)
    assert "64 of 100 threads at barrier 3, the first is (0, 0, 0)" in message


@in_every_order
def test_threads_that_disagree_about_a_barrier(build: Build, order: str) -> None:
    message = error(build("barriers.cu"), "disagreement", order=order)
    assert "wait for different numbers of threads" in message


def test_part_of_a_warp_is_refused(build: Build) -> None:
    message = error(build("barriers.cu"), "part_of_a_warp")
    assert "every live lane" in message
    assert "thread (0, 0, 0)" in message


@in_every_order
def test_exchanges(build: Build, order: str) -> None:
    assert output(build("exchanges.cpp"), order=order) == "256\n"


def sums_of_tiles(size: int) -> list[float]:
    """Per thread, over five tiles of 64 times four: its float and its neighbour's."""
    x = [i if i < size else 0 for i in range(5 * 256)]
    return [
        sum(x[256 * t + 4 * i] + x[256 * t + 4 * (i + 1) % 256] for t in range(5))
        for i in range(64)
    ]


@in_every_order
@pytest.mark.parametrize("what, size", [("right", 1280), ("zeros", 1003)])
def test_asynchronous_copies(build: Build, what: str, size: int, order: str) -> None:
    assert numbers(output(build("async_copy.cu"), what, order=order)) == sums_of_tiles(size)


@pytest.mark.parametrize("mistake", ["too_many_pending", "no_barrier"])
def test_mistake_about_asynchronous_copies_is_found(build: Build, mistake: str) -> None:
    results = [numbers(output(build("async_copy.cu"), mistake, order=order)) for order in ORDERS]
    assert any(result != sums_of_tiles(1280) for result in results)


def test_addresses_of_asynchronous_copies_are_checked(build: Build) -> None:
    assert "from an address that is not aligned" in error(build("async_copy.cu"), "misaligned")
    assert "outside shared memory" in error(build("async_copy.cu"), "outside")


@in_every_order
def test_bulk_copies(build: Build, order: str) -> None:
    sums = [sum(64 * t + (i + t) % 64 for t in range(7)) for i in range(64)]
    assert numbers(output(build("bulk_copy.cpp"), "none", order=order)) == sums


@pytest.mark.parametrize("mistake", ["not_full", "not_empty", "store_and_exit"])
def test_mistake_about_bulk_copies_is_found(build: Build, mistake: str) -> None:
    right = {"store_and_exit": [1.0]}.get(mistake, numbers(output(build("bulk_copy.cpp"), "none")))
    results = [numbers(output(build("bulk_copy.cpp"), mistake, order=order)) for order in ORDERS]
    assert any(result != right for result in results)


def test_condition_that_never_holds_is_a_deadlock(build: Build) -> None:
    assert "threads at a condition (mbarrier)" in error(build("bulk_copy.cpp"), "never")


def test_random_order_is_reproducible(build: Build) -> None:
    def result(seed: int) -> str:
        return output(build("async_copy.cu"), "no_barrier", order="random", seed=seed)

    assert [result(seed) for seed in range(5)] == [result(seed) for seed in range(5)]
    assert len({result(seed) for seed in range(5)}) > 1


def test_unknown_order_is_refused(build: Build) -> None:
    assert "must be forward, reverse or random" in error(build("indices.cu"), order="backward")


@in_every_order
def test_unwritten_shared_memory_is_not_a_number(build: Build, order: str) -> None:
    first, second = numbers(output(build("shared_memory.cu"), "8", order=order))
    assert math.isnan(first)
    assert math.isnan(second), "what another block left is still there"


def test_shared_memory_of_a_thread_of_its_own_is_refused(tmp_path: Path) -> None:
    source = tmp_path / "static.cu"
    source.write_text("#include <cuda_runtime.h>\n__global__ void f() { __shared__ float x[4]; }\n")
    assert "error" in compile_cuda(source, tmp_path / "static.o", "-c").stderr


def test_launches_that_no_gpu_runs_are_refused(build: Build) -> None:
    possible, *refused, shared = output(build("launches.cu")).splitlines()
    assert possible == "no error"
    assert refused == ["invalid configuration argument"] * 6 + ["invalid argument"]
    assert shared == "0 1 1"


def test_launches_from_several_threads(build: Build) -> None:
    assert output(build("host_threads.cu")) == "400\n"


def test_conversions(build: Build) -> None:
    assert output(build("conversions.cu")) == "0 0\n"


def test_intrinsics(build: Build) -> None:
    counts = [8, 16, 0, 4, 32, 31]
    bits = [0x60000000, 0xFFFFFFFE, 0x3F800000, -0x40800000, 1, 2]
    once_rounded = 2.0**-11 + 2.0**-24
    others = [once_rounded, 0, 0.25, 1, 0, 8, -1, 2, 2, 2**40, 2, 3]
    assert numbers(output(build("intrinsics.cu"))) == counts + bits + others


@in_every_order
def test_other_processors(build: Build, order: str) -> None:
    """Their fibers are ucontext's."""
    options = ("-DCUDA_ON_CPU_UCONTEXT",)
    products = build("matmul.cu", emulator_options=options)
    assert output(products, "nothing", order=order) == "right\n"


def skip_without_sanitizer(name: str, folder: Path) -> None:
    program = folder / "empty"
    (folder / "empty.cpp").write_text("int main() {}")
    result = compile_cuda(folder / "empty.cpp", program, f"-fsanitize={name}")
    if result.returncode != 0 or run(program).returncode != 0:
        pytest.skip(f"there is no {name} sanitizer")


def line(source: str, text: str) -> str:
    """Where it says that, as sanitizers say it."""
    lines = (PROGRAMS / source).read_text().splitlines()
    return f"{source}:{next(i for i, code in enumerate(lines, 1) if text in code)}"


@in_every_order
def test_address_sanitizer(build: Build, order: str, tmp_path: Path) -> None:
    """Names the line that leaves the shared memory that was asked for, and no other."""
    skip_without_sanitizer("address", tmp_path)
    program = build("shared_memory.cu", "-fsanitize=address")
    output(program, "8", order=order)
    for beyond in ("9", "10000"):
        message = error(program, beyond, order=order)
        assert "use-after-poison" in message
        assert line("shared_memory.cu", "out[blockIdx.x] =") in message
    for source, what in [("matmul.cu", "nothing"), ("async_copy.cu", "right"), ("warps.cu", "sum")]:
        output(build(source, "-fsanitize=address"), what, order=order)


def test_thread_sanitizer(build: Build, tmp_path: Path) -> None:
    """Names the lines between which a barrier is missing, and nothing where none is."""
    skip_without_sanitizer("thread", tmp_path)
    program = build("matmul.cu", "-fsanitize=thread")
    output(program, "nothing")
    message = error(program, "before_use")
    assert line("matmul.cu", "a_tile[i] =") in message
    assert line("matmul.cu", "sums[i][j] += a_tile") in message
    assert "data race" in error(build("async_copy.cu", "-fsanitize=thread"), "no_barrier")
    output(build("async_copy.cu", "-fsanitize=thread"), "right")
    output(build("warps.cu", "-fsanitize=thread"), "sum")
