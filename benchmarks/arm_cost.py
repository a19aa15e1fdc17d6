"""Cost tables of the cores, and how well this machine's own predicts shapes and mixes that it was not made of.

    python benchmarks/arm_cost.py [--quick] [--threads N ...] [--json FILE]

Rows compare a prediction (ours) with what was measured (peer): the ratio is measured over predicted. The table of
this machine's core is measured, in rounds that take turns with the held-out products; those of other cores are
modelled: instructions counted under qemu and llvm-mca's cycles. FILE.tables.json holds them. Each seed is a calibration
and a draw of mixes of its own. Beside the error stands what the measurement is worth: how far every other round's
median is from that of the rounds between.
"""

import os
import random
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean, median
from typing import Any

import click
from rows import Benchmark, Row, deviation, mean_std, show, write

from wattbit.files import write_json
from wattbit.tvm_schedules.cores import CORES, Core, host_core
from wattbit.tvm_schedules.costs import Calibration, CostTable
from wattbit.tvm_schedules.cycles import cycles_per_mac
from wattbit.tvm_schedules.host_meter import build_library
from wattbit.tvm_schedules.instructions import EMULATORS, instructions
from wattbit.tvm_schedules.timing import Product, Timer
from wattbit.tvm_schedules.toolchain import Kernel, emit_objects

WIDTHS = range(2, 9)
HELD_OUT = ((4096, 1024), (1536, 2048), (5632, 2048), (11008, 4096), (14336, 4096), (4096, 14336))
MIX_SIZE, MIXES, MIX_SHAPES = 8, 6, ((4096, 1024), (1536, 2048), (5632, 2048), (4096, 4096))
COUNTED = (256, 1024)  # rows and depth of the products whose instructions are counted
ERROR_GOAL = 0.05
CALL_BYTES, ROUNDS, SEEDS = 30_000_000, 10, (0, 1, 2)


def held_out(seed: int) -> list[tuple[Product, ...]]:
    """Single products of every width and shape, and mixes of random ones."""
    rng = random.Random(seed)
    single = [(Product(bits, *shape),) for shape in HELD_OUT for bits in WIDTHS]
    mixed = [tuple(Product(rng.choice(WIDTHS), *rng.choice(MIX_SHAPES)) for _ in range(MIX_SIZE)) for _ in range(MIXES)]
    return single + mixed


def kernels() -> tuple[Kernel, ...]:
    return tuple(Kernel(bits, 1, False) for bits in WIDTHS)


@dataclass(frozen=True)
class Tried:
    """A seed's table, and of each held-out mix what it predicts, what was measured, and by every other round."""

    table: CostTable
    mixes: list[tuple[Product, ...]]
    predicted: list[float]
    measured: list[float]
    halves: list[tuple[float, float]]

    @property
    def error(self) -> float:
        pairs = zip(self.predicted, self.measured, strict=True)
        return median(abs(predicted - measured) / measured for predicted, measured in pairs)

    @property
    def repeatability(self) -> float:
        """Of one half of the rounds from the other; the median of all rounds is surer than either."""
        return median(abs(one / other - 1) for one, other in self.halves)


def predict(library: Path, core: Core, threads: int, rounds: int, seed: int) -> Tried:
    """This machine's table and what it predicts."""
    mixes = held_out(seed)
    seconds: list[list[list[float]]] = [[] for _ in mixes]
    with Timer(library, core.name, threads) as cold, Timer(library, core.name, threads, cold_bytes=0) as warm:
        calibration = Calibration(core, threads, WIDTHS, cold, warm)
        for _ in range(rounds):
            calibration.round()
            for i, mix in enumerate(mixes):
                size = sum(cold.weight_bytes(product) for product in mix)
                seconds[i].append(cold.mixes(mix, max(3, CALL_BYTES // size)))
        calibration.round()
    table = calibration.table()
    predicted = [sum(table.seconds(product) for product in mix) for mix in mixes]
    halves = [(_middle(each[::2]), _middle(each[1::2])) for each in seconds]
    return Tried(table, mixes, predicted, [_middle(each) for each in seconds], halves)


def _middle(rounds: Sequence[Sequence[float]]) -> float:
    return median(each for one in rounds for each in one)


def rows_of(case: str, tries: Sequence[Tried], seeds: tuple[int, ...]) -> list[Row]:
    """Each product's and mix's prediction against its time, then the error and the repeatability over the seeds."""
    rows = []
    for i, mix in enumerate(tries[0].mixes):
        name = (
            f"{mix[0].rows}x{mix[0].depth} at {mix[0].weight_bits} bits" if len(mix) == 1 else f"mix {i} of {len(mix)}"
        )
        predicted, measured = [one.predicted[i] for one in tries], [one.measured[i] for one in tries]
        ours, peer = fmean(predicted), fmean(measured)
        a, b = deviation(predicted), deviation(measured)
        rows.append(Row(case, name, ours, a, peer, b, "measured, s", peer / ours, None, "modelled", seeds))
    for metric, values, goal in (
        ("median absolute error of prediction", [one.error for one in tries], 1.0),
        ("the measurement from itself, every other round", [one.repeatability for one in tries], None),
    ):
        mean, std = mean_std(values)
        rows.append(Row(case, metric, mean, std, ERROR_GOAL, None, "goal", ERROR_GOAL / mean, goal, "measured", seeds))
    return rows


def describe(core: Core, measured: Mapping[int, CostTable]) -> dict[str, Any]:
    """A core's table for each width: instructions and cycles of a product, bytes of a weight; measured, by threads."""
    depth = 4096
    with tempfile.TemporaryDirectory() as name:
        emit_objects(kernels(), core, Path(name))
        modelled = {kernel.weight_bits: cycles_per_mac(core, Path(name), kernel.name) for kernel in kernels()}
    counted = instructions(core, WIDTHS, [COUNTED]) if core.arch in EMULATORS else {}
    entries = {}
    for bits in WIDTHS:
        cycles, loop = modelled[bits]
        entry = {"cycles_per_mac_modelled": cycles, "loop_instructions_per_mac": loop}
        entry["bytes_per_weight"] = core.layout(bits).matrix_bytes(depth, depth) / depth**2
        if counted:
            entry["instructions_per_mac_counted"] = counted[bits][0] / (COUNTED[0] * COUNTED[1])
        entries[str(bits)] = entry
    return {"widths": entries, "measured": {str(threads): table.to_json() for threads, table in measured.items()}}


@click.command(cls=Benchmark, help=__doc__)
@click.option("--quick", is_flag=True, help="Two rounds, one thread and seed, and only this machine's core.")
@click.option("--threads", multiple=True, type=int, help="Numbers of threads; 1, 2 and all cores if not given.")
@click.option("--json", "path", type=click.Path(path_type=Path, dir_okay=False), help="Write the rows to this file.")
def main(quick: bool, threads: tuple[int, ...], path: Path | None) -> None:
    core = host_core()
    counts = threads or ((1,) if quick else tuple(sorted({1, 2, os.cpu_count() or 1})))
    rounds, seeds = (2, (0,)) if quick else (ROUNDS, SEEDS)
    rows, measured = [], {}
    with tempfile.TemporaryDirectory() as folder:
        library = Path(folder) / "kernels.so"
        build_library(core, WIDTHS, library)
        for count in counts:
            tries = [predict(library, core, count, rounds, seed) for seed in seeds]
            case = f"{core.name}, {count} thread{'s' * (count > 1)}, {rounds} rounds"
            found = rows_of(case, tries, seeds)
            show(found)
            rows += found
            measured[count] = tries[0].table
    tables = {core.name: describe(core, measured)}
    for other in () if quick else CORES.values():
        if other != core:
            tables[other.name] = describe(other, {})
    for name, entry in tables.items():
        for bits, values in entry["widths"].items():
            said = (f"{key} {value:.4g}" for key, value in values.items() if isinstance(value, float))
            click.echo(f"{name} {bits} bits: {', '.join(said)}")
    if path:
        write(rows, path)
        write_json(path.with_suffix(".tables.json"), tables)


if __name__ == "__main__":
    main()
