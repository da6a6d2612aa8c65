"""What the compiler makes of the innermost loop: an error there is silent, and halves the speed."""

import platform
import re
import shutil
import subprocess
from pathlib import Path

import pytest

import d2lops
from d2lops import backends
from tests.device import cpu_only

pytestmark = cpu_only
LIBRARIES = Path(d2lops.__file__).parent / "lib"
VECTOR_ON_STACK = re.compile(r"[yz]mm\d+.*\(%r[bs]p|\(%r[bs]p.*[yz]mm\d+")


def micro_kernels(library: str) -> dict[str, list[str]]:
    """Each instance of micro_kernel, and its instructions."""
    listing = subprocess.run(
        ["objdump", "--disassemble", "--demangle", "--no-show-raw-insn", library],
        capture_output=True,
        text=True,
        check=True,
    ).stdout
    functions = re.split(r"^[0-9a-f]+ <(.*)>:\n", listing, flags=re.MULTILINE)[1:]
    return {
        name: body.splitlines()
        for name, body in zip(functions[::2], functions[1::2], strict=True)
        if "micro_kernel<" in name
    }


@pytest.mark.skipif(not shutil.which("objdump"), reason="there is no objdump")
@pytest.mark.skipif(platform.machine() != "x86_64", reason="looks for x86-64's vectors")
@pytest.mark.parametrize("name", [n for n in backends.CPU_LIBRARIES if n != "generic"])
def test_micro_kernel_keeps_its_sums_in_registers(name: str) -> None:
    """It calls nothing, and keeps no vector on the stack."""
    kernels = micro_kernels(str(LIBRARIES / f"cpu_{name}.so"))
    assert kernels
    for kernel, instructions in kernels.items():
        for instruction in instructions:
            assert "call" not in instruction, f"{kernel}: {instruction}"
            assert not VECTOR_ON_STACK.search(instruction), f"{kernel}: {instruction}"
