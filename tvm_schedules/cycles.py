"""Models the cycles of a kernel's innermost loop with llvm-mca: a pipeline without caches or memory.

It is a model, never a measurement; for cores that LLVM has no model of, it takes the one of the core it takes for them.
"""

import re
import shutil
from pathlib import Path

from wattbit.errors import ToolError, WattbitError
from wattbit.processes import execute
from wattbit.tvm_schedules.cores import TRIPLES, Core

ITERATIONS = 100
# the model that stands for a core which llvm-mca 14 does not know, and the features that its parser must know
MODELS = {"x86-64": "btver2", "x86-64-v3": "skylake", "x86-64-v4": "icelake-server"}
# products that one instruction multiplies, by its name and the registers that it names
PRODUCTS = (
    (r"(smull2?|smlal2?|vmull\.s8|vmlal\.s8)\b", 8),
    (r"sdot\b", 16),
    (r"vpdpbusd\b.*zmm", 64),
    (r"vpmaddubsw\b.*ymm", 32),
    (r"v?pmaddwd\b.*xmm", 8),
)


def cycles_per_mac(core: Core, objects: Path, kernel: str) -> tuple[float, float]:
    """Modelled cycles, and instructions, for each product of `objects`/KERNEL.o in its innermost loop.

    Raises WattbitError when llvm-mca or the core's objdump is absent.
    """
    loop = _innermost(_disassembly(core, objects / f"{kernel}.o", kernel))
    products = _products(loop)
    mca = _find("llvm-mca", "llvm")
    command = [mca, f"-mtriple={TRIPLES[core.arch]}", f"-mcpu={MODELS.get(core.cpu, core.cpu)}"]
    command += ["-resource-pressure=false", "-instruction-info=false"]
    command += [f"-mattr={','.join(core.features)}"] * bool(core.features) + [f"-iterations={ITERATIONS}"]
    # without the branch, whose target is not there; llvm-mca knows no cost of ARM's vldmia and vstmia
    known = [re.sub(r"^v(ld|st)mia (\w+), ", r"v\g<1>1.64 ", line) + _memory(line) for line in loop[:-1]]
    done = execute(command, text="\n".join(known))
    found = re.search(r"Total Cycles:\s+(\d+)", done.stdout)
    if found is None:
        raise ToolError(command, done.returncode, done.stderr)
    return int(found[1]) / ITERATIONS / products, len(loop) / products


def _memory(line: str) -> str:
    """The address of a vldmia or vstmia as vld1.64 and vst1.64 are written."""
    found = re.match(r"v(?:ld|st)mia (\w+), ", line)
    return f", [{found[1]}]" if found else ""


def _find(program: str, package: str) -> str:
    if shutil.which(program) is None:
        raise WattbitError(f"{program} is not installed; run `apt-get install {package}`")
    return program


def _disassembly(core: Core, path: Path, kernel: str) -> list[tuple[int, str]]:
    """Addresses and instructions of a kernel."""
    program = _find(core.compiler.removesuffix("gcc") + "objdump", "binutils for that core")
    command = [program, "-d", "--no-show-raw-insn", str(path)]
    done = execute(command)
    function = re.search(rf"<{kernel}_compute_>:\n(.*?)(\n\n|\Z)", done.stdout, re.DOTALL)
    if done.returncode or function is None:
        raise ToolError(command, done.returncode, done.stderr)
    lines = (re.match(r"\s*([0-9a-f]+):\s+(.*)", line) for line in function[1].splitlines())
    return [
        (int(line[1], 16), re.split(r"\s*(?://|@ |#0x|# )", line[2])[0].replace("\t", " ")) for line in lines if line
    ]


def _innermost(lines: list[tuple[int, str]]) -> list[str]:
    """The loop without another in it that has the most products: the one over runs of blocks."""
    best: list[str] = []
    branches = [(address, _target(text)) for address, text in lines]
    loops = [(target, address) for address, target in branches if target is not None and target <= address]
    for first, last in loops:
        if any((first, last) != other and first <= other[0] and other[1] <= last for other in loops):
            continue
        body = [text for address, text in lines if first <= address <= last]
        if _products(body) > _products(best):
            best = body
    return best


def _products(loop: list[str]) -> int:
    return sum(count for line in loop for pattern, count in PRODUCTS if re.match(pattern, line))


def _target(text: str) -> int | None:
    """Where a branch goes, None of any other instruction."""
    found = re.match(r"(?:b|j)\S*\s+(?:\w+,\s*)?(?:#\d+,\s*)?([0-9a-f]+) <", text) or re.match(
        r"(?:cbn?z|tbn?z)\s+\w+,\s*(?:#\d+,\s*)?([0-9a-f]+) <", text
    )
    return int(found[1], 16) if found else None
