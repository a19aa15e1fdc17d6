"""Chooses the tilings of a core's kernels from a small grid; `wattbit tune` is its command.

Where the core is there, on this machine or on a board, tilings are ranked by measured time: with the weights in the
cache, where the arithmetic sets it, and without, where how the memory is read does. Where it is not, they are ranked by
the instructions that qemu counts. The result is a file of data that cores.find_core reads: tuned/CORE.toml for every
machine of that core, or one of a board's own.
"""

import math
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import asdict, replace
from itertools import product
from pathlib import Path
from statistics import median

from wattbit.errors import ToolError
from wattbit.processes import execute
from wattbit.progress import Progress, silent
from wattbit.tvm_schedules.cores import Core, Tiling
from wattbit.tvm_schedules.instructions import instructions
from wattbit.tvm_schedules.toolchain import RUNNER, Kernel, emit_objects, link_program

WIDTHS = range(2, 9)
GRID = tuple(Tiling(*point) for point in product((1, 2, 4), (1, 8, 16)))
SHAPES = ((128, 64), (256, 1024))  # rows, depth: a small expert's layer, and a piece of a large one's
COLD_SHAPE, COLD_BYTES = (1024, 2048), 64 << 20  # a layer that is read from copies which no cache holds
CALLS, REPEATS = 100, 5

Costs = dict[int, list[float]]  # by weight width, for each shape
Measure = Callable[[Sequence[Core], Progress], list[Costs]]
"""The costs of each of some cores, which differ in their tilings."""
Run = Callable[[Path, Sequence[str]], str]
"""Runs the program at a path, where the core is, with these arguments; what it writes to stdout."""


def tune(core: Core, measure: Measure, progress: Progress = silent) -> dict[int, dict[Tiling, list[float]]]:
    """What each tiling of the grid costs at each shape, by weight width."""
    tried = [replace(core, tilings=tuple((bits, tiling) for bits in WIDTHS)) for tiling in GRID]
    found = measure(tried, progress)
    return {bits: {tiling: costs[bits] for tiling, costs in zip(GRID, found, strict=True)} for bits in WIDTHS}


def best(costs: dict[Tiling, list[float]]) -> Tiling:
    """The tiling whose costs, each over the least at its shape, have the least sum; of equals the first of the grid."""
    least = [min(values) for values in zip(*costs.values(), strict=True)]

    def relative(tiling: Tiling) -> float:
        return round(sum(cost / lowest for cost, lowest in zip(costs[tiling], least, strict=True)), 3)

    return min(costs, key=relative)


def count_instructions(cores: Sequence[Core], progress: Progress = silent) -> list[Costs]:
    found: list[Costs] = []
    for core in cores:
        progress(f"counts of {core.name}", len(found), len(cores))
        counts = instructions(core, WIDTHS, SHAPES)
        found.append({bits: [float(count) for count in each] for bits, each in counts.items()})
    return found


def time_products(cores: Sequence[Core], progress: Progress = silent, *, run: Run) -> list[Costs]:
    """Seconds of a product on one thread, at SHAPES in the cache and at COLD_SHAPE; the least of the repeats' medians.

    The cores take turns, so that what else the machine does meets all of them. Raises WattbitError or ToolError when a
    program that takes times cannot be built or `run`.
    """
    shapes = (*((*shape, 0) for shape in SHAPES), (*COLD_SHAPE, COLD_BYTES))
    wanted = [(bits, *shape) for bits in WIDTHS for shape in shapes]
    words = [str(CALLS), *(str(number) for each in wanted for number in each)]
    least = [[math.inf] * len(wanted) for _ in cores]
    steps = len(cores) * (1 + REPEATS)
    with tempfile.TemporaryDirectory() as name:
        programs = [Path(name) / str(i) for i in range(len(cores))]
        for i, (core, program) in enumerate(zip(cores, programs, strict=True)):
            progress(f"programs for {core.name}", i, steps)
            _build(core, program)
        for repeat, i in product(range(REPEATS), range(len(cores))):
            progress(f"times of {cores[i].name}", (1 + repeat) * len(cores) + i, steps)
            medians = [median(float(word) for word in line.split()) for line in run(programs[i], words).splitlines()]
            least[i] = [min(pair) for pair in zip(least[i], medians, strict=True)]
    return [
        {bits: values[i * len(shapes) : (i + 1) * len(shapes)] for i, bits in enumerate(WIDTHS)} for values in least
    ]


def _build(core: Core, program: Path) -> None:
    kernels = tuple(Kernel(bits, 1, False) for bits in WIDTHS)
    with tempfile.TemporaryDirectory() as name:
        emit_objects(kernels, core, Path(name))
        link_program(kernels, core, Path(name), RUNNER / "times.c", program)


def run_here(program: Path, arguments: Sequence[str]) -> str:
    """Run a program of time_products on this machine."""
    command = [str(program), *arguments]
    done = execute(command)
    if done.returncode:
        raise ToolError(command, done.returncode, done.stderr)
    return done.stdout


def as_toml(core: Core, how: str, costs: dict[int, dict[Tiling, list[float]]]) -> str:
    """The file of a core's tilings, each width's candidates beside the one that was chosen."""
    shapes = f"rows x depth {SHAPES}, where timed also {COLD_SHAPE} from memory"
    lines = [f"# By `wattbit tune` for {core.name}: {how} at {shapes}.", f'core = "{core.name}"', ""]
    for bits, found in costs.items():
        chosen = best(found)
        lines += [f"[widths.{bits}]", *(f"{key} = {value}" for key, value in asdict(chosen).items())]
        lines += [f"# {t.group_vectors}, {t.run_chunks}: {', '.join(f'{c:.4g}' for c in found[t])}" for t in found]
        lines.append("")
    return "\n".join(lines)
