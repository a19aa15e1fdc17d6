"""Cost tables of the cores, and how well this machine's own predicts shapes and mixes that it was not made of.

    python benchmarks/arm_cost.py [--quick] [--json FILE]

Rows compare a prediction (ours) with what was measured (peer): the ratio is measured over predicted. The table of
this machine's core is measured, in rounds that take turns with the held-out products; those of other cores are
modelled: instructions counted under qemu and llvm-mca's cycles. FILE.tables.json holds them.
"""

import os
import random
import tempfile
from pathlib import Path
from statistics import median, stdev
from typing import Any

import click
from rows import Benchmark, Row, show, write

from wattbit.files import write_json
from wattbit.tvm_schedules.cores import CORES, Core, host_core
from wattbit.tvm_schedules.costs import Calibration, CostTable
from wattbit.tvm_schedules.cycles import cycles_per_mac
from wattbit.tvm_schedules.instructions import EMULATORS, instructions
from wattbit.tvm_schedules.timing import Product, Timer
from wattbit.tvm_schedules.toolchain import Kernel, emit_objects, link_library

WIDTHS = range(2, 9)
HELD_OUT = ((4096, 1024), (1536, 2048), (5632, 2048), (11008, 4096), (14336, 4096), (4096, 14336))
MIX_SIZE, MIXES, MIX_SHAPES = 8, 6, ((4096, 1024), (1536, 2048), (5632, 2048), (4096, 4096))
COUNTED = (256, 1024)  # rows and depth of the products whose instructions are counted
ERROR_GOAL = 0.05
CALL_BYTES, ROUNDS = 30_000_000, 10


def held_out(seed: int) -> list[tuple[Product, ...]]:
    """Single products of every width and shape, and mixes of random ones."""
    rng = random.Random(seed)
    single = [(Product(bits, *shape),) for shape in HELD_OUT for bits in WIDTHS]
    mixed = [tuple(Product(rng.choice(WIDTHS), *rng.choice(MIX_SHAPES)) for _ in range(MIX_SIZE)) for _ in range(MIXES)]
    return single + mixed


def kernels() -> tuple[Kernel, ...]:
    return tuple(Kernel(bits, 1, False) for bits in WIDTHS)


def predict(core: Core, threads: int, rounds: int) -> tuple[CostTable, list[Row]]:
    """This machine's table and the rows of what it predicts."""
    tries = held_out(seed=0)
    seconds: dict[int, list[float]] = {i: [] for i in range(len(tries))}
    with tempfile.TemporaryDirectory() as name:
        library = Path(name) / "kernels.so"
        emit_objects(kernels(), core, Path(name))
        link_library(kernels(), core, Path(name), library)
        with Timer(library, core.name, threads) as cold, Timer(library, core.name, threads, cold_bytes=0) as warm:
            calibration = Calibration(core, threads, WIDTHS, cold, warm)
            for _ in range(rounds):
                calibration.round()
                for i, mix in enumerate(tries):
                    size = sum(cold.weight_bytes(product) for product in mix)
                    seconds[i] += cold.mixes(mix, max(3, CALL_BYTES // size))
            calibration.round()
    table = calibration.table()
    case = f"{core.name}, {threads} thread{'s' * (threads > 1)}, {rounds} rounds"
    rows, errors = [], []
    for i, mix in enumerate(tries):
        predicted, measured = sum(table.seconds(product) for product in mix), median(seconds[i])
        errors.append(abs(predicted - measured) / measured)
        one = (
            f"{mix[0].rows}x{mix[0].depth} at {mix[0].weight_bits} bits" if len(mix) == 1 else f"mix {i} of {len(mix)}"
        )
        spread = stdev(seconds[i])
        rows.append(
            Row(
                case, one, predicted, 0.0, measured, spread, "measured, s", measured / predicted, None, "modelled", (0,)
            )
        )
    error = median(errors)
    metric = "median absolute error of prediction"
    rows.append(Row(case, metric, error, 0.0, ERROR_GOAL, 0.0, "goal", ERROR_GOAL / error, 1.0, "measured", (0,)))
    return table, rows


def describe(core: Core, table: CostTable | None) -> dict[str, Any]:
    """A core's table for each width: instructions and cycles of a product, bytes of a weight, and what was measured."""
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
        if table:
            entry["seconds_per_mac_measured"] = table.widths[bits].seconds_per_product
            entry["bytes_per_s_measured"] = table.widths[bits].bytes_per_s
        entries[str(bits)] = entry
    return {"widths": entries} | ({"call_s_measured": table.call_s, "threads": table.threads} if table else {})


@click.command(cls=Benchmark, help=__doc__)
@click.option("--quick", is_flag=True, help="One round and one thread, and only this machine's core.")
@click.option("--threads", type=int, default=os.cpu_count() or 1, show_default=True, help="Threads beside one alone.")
@click.option("--json", "path", type=click.Path(path_type=Path, dir_okay=False), help="Write the rows to this file.")
def main(quick: bool, threads: int, path: Path | None) -> None:
    core = host_core()
    table, rows = predict(core, 1, 1 if quick else ROUNDS)
    show(rows)
    if threads > 1 and not quick:
        _, more = predict(core, threads, ROUNDS)
        show(more)
        rows += more
    tables = {core.name: describe(core, table)}
    for other in () if quick else CORES.values():
        if other != core:
            tables[other.name] = describe(other, None)
    for name, entry in tables.items():
        for bits, values in entry["widths"].items():
            click.echo(f"{name} {bits} bits: " + ", ".join(f"{key} {value:.4g}" for key, value in values.items()))
    if path:
        write(rows, path)
        write_json(path.with_suffix(".tables.json"), tables)


if __name__ == "__main__":
    main()
