"""The policy against its controls, over several training seeds: expert memory, perplexity, time on the accelerator.

    python benchmarks/first_path.py [--quick] [--json FILE]

Each seed is a whole demo, a run of its own in runs/ (a finished one is not redone). Time is given twice: modelled, the
planner's expectation over many batches, which the search priced, and simulated, of one batch in RTL. A ratio above 1
means that the policy (DMPQ) is better than the peer. The JSON has rows of all seeds together, then of each.
"""

from pathlib import Path
from statistics import fmean, stdev
from typing import Any

import click
from rows import Benchmark, Row, show, write

from wattbit.files import read_json
from wattbit.perform import RUNS, perform
from wattbit.plan import Provenance
from wattbit.presets import run_config
from wattbit.run import Run

OURS = "dmpq"
METRICS: dict[str, tuple[str, Provenance]] = {
    "memory_bytes": ("expert memory, bytes", "modelled"),
    "perplexity": ("perplexity", "measured"),
    "planned_cycles_per_token": ("cycles a token, any batch", "modelled"),
    "cycles_per_token": ("cycles a token, one batch", "simulated"),
}
"""What is compared, by its name in a run's report.json."""
# Goals of the project against static 8 bit: 40 % less memory, 2x as fast, perplexity less than 1 % higher.
GOALS = {
    ("memory_bytes", "uniform8"): 1 / 0.6,
    ("perplexity", "uniform8"): 1 / 1.01,
    ("planned_cycles_per_token", "uniform8"): 2.0,
    ("cycles_per_token", "uniform8"): 2.0,
}
Table = dict[str, dict[str, Any]]
"""The rows of a run's report by method."""


def spread(values: list[float]) -> tuple[float, float]:
    return fmean(values), stdev(values) if len(values) > 1 else 0.0


def compare(case: str, tables: dict[int, Table]) -> list[Row]:
    """Rows of DMPQ against each control; `tables` by seed."""
    seeds, found = tuple(tables), list(tables.values())
    rows = []
    for peer in [name for name in found[0] if name != OURS]:
        for name, (metric, provenance) in METRICS.items():
            ours, ours_std = spread([table[OURS][name] for table in found])
            theirs, theirs_std = spread([table[peer][name] for table in found])
            goal, ratio = GOALS.get((name, peer)), theirs / ours
            rows.append(Row(case, metric, ours, ours_std, theirs, theirs_std, peer, ratio, goal, provenance, seeds))
    return rows


@click.command(cls=Benchmark, help=__doc__)
@click.option("--quick", is_flag=True, help="One seed of the tiny preset: minutes, and figures that mean nothing.")
@click.option("--json", "path", type=click.Path(path_type=Path, dir_okay=False), help="Write the rows to this file.")
def main(quick: bool, path: Path | None) -> None:
    preset, seeds = ("tiny", (0,)) if quick else ("demo", (0, 1, 2))
    tables: dict[int, Table] = {}
    for seed in seeds:
        run = Run.create(RUNS, run_config(preset, None, "virtual-z2", seed))
        perform(run, "report", as_json=False)
        tables[seed] = {row["method"]: row for row in read_json(run.path("report", "report.json"))}
    case = f"{preset} preset, Python's sources, virtual-z2"
    rows = compare(case, tables)
    show(rows)
    for seed, table in tables.items():
        rows += compare(f"{case}, seed {seed}", {seed: table})
    if path:
        write(rows, path)


if __name__ == "__main__":
    main()
