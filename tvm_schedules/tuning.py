"""Chooses the tilings of a core's kernels from a small grid: `python -m wattbit.tvm_schedules.tuning CORE [FILE]`.

A core that this machine is, is ranked by measured time with the weights in the cache (where they are not, the memory
sets the time of all), any other by the instructions that qemu counts. The result is a file of data, by default
tuned/CORE.toml, which cores.tuned reads: a board's own file replaces it.
"""

import sys
import tempfile
from collections.abc import Callable
from dataclasses import asdict, replace
from itertools import product
from pathlib import Path
from statistics import median

import click

from wattbit.errors import WattbitError
from wattbit.files import write_text
from wattbit.progress import Progress, silent
from wattbit.tvm_schedules.cores import TUNED, Core, Tiling, find_core, host_core
from wattbit.tvm_schedules.instructions import instructions
from wattbit.tvm_schedules.timing import Product, Timer
from wattbit.tvm_schedules.toolchain import Kernel, emit_objects, link_library

WIDTHS = range(2, 9)
GRID = tuple(Tiling(*point) for point in product((1, 2, 4), (1, 8, 16)))
SHAPES = ((128, 64), (256, 1024))  # rows, depth: a small expert's layer, and a piece of a large one's
CALLS, REPEATS = 300, 5

Costs = dict[int, list[float]]  # by weight width, for each of SHAPES


def tune(
    core: Core, measure: Callable[[Core], Costs], progress: Progress = silent
) -> dict[int, dict[Tiling, list[float]]]:
    """What each tiling of the grid costs at each of SHAPES, by weight width."""
    costs: dict[int, dict[Tiling, list[float]]] = {bits: {} for bits in WIDTHS}
    for done, tiling in enumerate(GRID):
        progress(f"tiling of {core.name}", done, len(GRID))
        for bits, found in measure(replace(core, tilings=tuple((bits, tiling) for bits in WIDTHS))).items():
            costs[bits][tiling] = found
    progress(f"tiling of {core.name}", len(GRID), len(GRID))
    return costs


def best(costs: dict[Tiling, list[float]]) -> Tiling:
    """The tiling whose costs, each over the least at its shape, have the least sum; of equals the first of the grid."""
    least = [min(values) for values in zip(*costs.values(), strict=True)]

    def relative(tiling: Tiling) -> float:
        return round(sum(cost / lowest for cost, lowest in zip(costs[tiling], least, strict=True)), 3)

    return min(costs, key=relative)


def count_instructions(core: Core) -> Costs:
    return {bits: [float(count) for count in counts] for bits, counts in instructions(core, WIDTHS, SHAPES).items()}


def time_in_cache(core: Core) -> Costs:
    """Seconds of a product on one thread; the least of the repeats' medians."""
    kernels = tuple(Kernel(bits, 1, False) for bits in WIDTHS)
    with tempfile.TemporaryDirectory() as name:
        library = Path(name) / "kernels.so"
        emit_objects(kernels, core, Path(name))
        link_library(kernels, core, Path(name), library)
        with Timer(library, core.name, threads=1, cold_bytes=0) as timer:
            return {
                bits: [
                    min(median(timer.products(Product(bits, *shape), CALLS)) for _ in range(REPEATS))
                    for shape in SHAPES
                ]
                for bits in WIDTHS
            }


def as_toml(core: Core, how: str, costs: dict[int, dict[Tiling, list[float]]]) -> str:
    lines = [f"# By wattbit.tvm_schedules.tuning for {core.name}: {how}, rows x depth {SHAPES}.", ""]
    for bits, found in costs.items():
        chosen = best(found)
        lines += [f"[widths.{bits}]", *(f"{key} = {value}" for key, value in asdict(chosen).items())]
        lines += [f"# {t.group_vectors}, {t.run_chunks}: {', '.join(f'{c:.4g}' for c in found[t])}" for t in found]
        lines.append("")
    return "\n".join(lines)


@click.command(help=__doc__)
@click.argument("name", metavar="CORE")
@click.argument("out", metavar="[FILE]", required=False, type=click.Path(path_type=Path, dir_okay=False))
def main(name: str, out: Path | None) -> None:
    try:
        core = find_core(name)
    except WattbitError as error:
        raise click.ClickException(str(error)) from None
    here = core == host_core() or (core.arch == "x86_64" and host_core().arch == "x86_64")
    how, measure = ("seconds in cache", time_in_cache) if here else ("instructions under qemu", count_instructions)
    path = out or TUNED / f"{core.name}.toml"
    write_text(path, as_toml(core, how, tune(core, measure, lambda *words: print(*words, file=sys.stderr))))


if __name__ == "__main__":
    main()
