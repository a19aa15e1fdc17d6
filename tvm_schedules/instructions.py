"""Counts the instructions that kernels take on a core that is not there: qemu-user with a counting plugin.

A count is a proxy of time that repeats exactly; it knows nothing of pipelines, caches or memory bandwidth.
"""

import re
import shutil
import tempfile
from collections.abc import Iterable, Sequence
from pathlib import Path

from wattbit.errors import ToolError, WattbitError
from wattbit.tvm_schedules.cores import Core, host_core
from wattbit.tvm_schedules.layout import DEPTH_UNIT, padded
from wattbit.tvm_schedules.toolchain import RUNNER, emit_objects, kernels_for, link_program, run_tool

EMULATORS = {"aarch64": "qemu-aarch64", "armv7": "qemu-arm"}
REPEATS = 3


def instructions(
    core: Core, weight_bits: Iterable[int], shapes: Sequence[tuple[int, int]], tokens: int = 1
) -> dict[int, list[int]]:
    """Instructions of one product of a matrix [rows, depth] and `tokens` tokens, for each shape, by weight width.

    The program's start cancels: it is the difference of two runs, one with REPEATS products more. Raises WattbitError
    when the core has no emulator or it is absent, ToolError when something that is run fails.
    """
    emulator = find_emulator(core)
    widths = tuple(weight_bits)
    kernels = tuple(kernel for kernel in kernels_for(widths) if kernel.tokens <= tokens)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        emit_objects(kernels, core, folder)
        link_program(kernels, core, folder, RUNNER / "product.c", folder / "product")
        plugin = folder / "instructions.so"
        run_tool([host_core().compiler, "-O2", "-shared", "-fPIC", str(RUNNER / "instructions.c"), "-o", str(plugin)])
        command = [*emulator, "-plugin", str(plugin), str(folder / "product")]
        return {bits: [_difference(command, folder, core, bits, *shape, tokens) for shape in shapes] for bits in widths}


def _difference(command: list[str], folder: Path, core: Core, bits: int, rows: int, depth: int, tokens: int) -> int:
    weights = padded(core.layout(bits).matrix_bytes(rows, depth), DEPTH_UNIT)
    (folder / "in").write_bytes(bytes(weights + tokens * padded(depth, DEPTH_UNIT)))
    numbers = [str(number) for number in (bits, rows, depth, 0, tokens, 1)]
    files = [str(folder / "in"), str(folder / "out")]
    few, many = (_count([*command, *numbers, str(repeats), *files]) for repeats in (1, 1 + REPEATS))
    return (many - few) // REPEATS


def find_emulator(core: Core) -> list[str]:
    """The words before a program of `core` that run it in emulation."""
    if core.arch not in EMULATORS:
        raise WattbitError(f"{core.name} is not emulated; count instructions on an ARM core")
    if shutil.which(EMULATORS[core.arch]) is None:
        raise WattbitError(f"{EMULATORS[core.arch]} is not installed; run `apt-get install qemu-user`")
    return [EMULATORS[core.arch], "-cpu", core.cpu]


def _count(command: list[str]) -> int:
    said = run_tool(command)
    found = re.search(r"instructions (\d+)", said)
    if found is None:
        raise ToolError(command, 0, said, "this qemu-user has no plugins: use Debian's dynamic one")
    return int(found[1])
