"""Counts the instructions that kernels take on a core that is not there: qemu-user with a counting plugin.

A count is a proxy of time that repeats exactly; it knows nothing of pipelines, caches or memory bandwidth.
"""

import re
import shutil
import tempfile
from collections.abc import Iterable
from pathlib import Path

import numpy as np

from wattbit.arith import ExpertInts
from wattbit.errors import ToolError, WattbitError
from wattbit.plan import ExpertId, ExpertShape, Precision
from wattbit.tvm_schedules.cores import Core, host_core
from wattbit.tvm_schedules.packing import expert_file
from wattbit.tvm_schedules.toolchain import RUNNER, emit_objects, kernels_for, link_program, run_tool

EMULATORS = {"aarch64": "qemu-aarch64", "armv7": "qemu-arm"}
TOKENS = 16


def instructions_per_token(core: Core, shape: ExpertShape, weight_bits: Iterable[int]) -> dict[int, int]:
    """Instructions of a whole expert (both GEMVs and requants) on one token, at each weight width.

    The program's start cancels: it is the difference of two runs, one with TOKENS tokens more. Raises WattbitError when
    the core has no emulator or it is absent, ToolError when something that is run fails.
    """
    emulator = find_emulator(core)
    widths = tuple(weight_bits)
    kernels = kernels_for(widths)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        emit_objects(kernels, core, folder)
        link_program(kernels, core, folder, RUNNER / "forward.c", folder / "forward")
        plugin = folder / "instructions.so"
        run_tool([host_core().compiler, "-O2", "-shared", "-fPIC", str(RUNNER / "instructions.c"), "-o", str(plugin)])
        command = [*emulator, "-plugin", str(plugin), str(folder / "forward")]
        counts = {}
        for bits in widths:
            (folder / "expert").write_bytes(expert_file(_zeros(Precision(bits), shape), core.layout(bits)))
            few, many = (_count(command, folder, tokens * shape.d_model) for tokens in (1, 1 + TOKENS))
            counts[bits] = (many - few) // TOKENS
    return counts


def find_emulator(core: Core) -> list[str]:
    """The words before a program of `core` that run it in emulation."""
    if core.arch not in EMULATORS:
        raise WattbitError(f"{core.name} is not emulated; count instructions on an ARM core")
    if shutil.which(EMULATORS[core.arch]) is None:
        raise WattbitError(f"{EMULATORS[core.arch]} is not installed; run `apt-get install qemu-user`")
    return [EMULATORS[core.arch], "-cpu", core.cpu]


def _zeros(precision: Precision, shape: ExpertShape) -> ExpertInts:
    D, H = shape.d_model, shape.d_hidden
    w1, w2 = np.zeros((H, D), np.int8), np.zeros((D, H), np.int8)
    return ExpertInts(ExpertId(0, 0), precision, w1, w2, np.ones(H, np.int32), np.ones(D, np.int32), 1, 1, 0, 0, 0)


def _count(command: list[str], folder: Path, input_bytes: int) -> int:
    (folder / "x").write_bytes(bytes(input_bytes))
    said = run_tool([*command, *(str(folder / name) for name in ("expert", "x", "y"))])
    found = re.search(r"instructions (\d+)", said)
    if found is None:
        raise ToolError(command, 0, said, "this qemu-user has no plugins: use Debian's dynamic one")
    return int(found[1])
