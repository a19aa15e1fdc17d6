"""The policy against its controls, over several training seeds: expert memory, perplexity, time on the accelerator.

    python benchmarks/first_path.py [--quick] [--json FILE]

Each seed is a run of its own in runs/ (a finished one is not redone), up to the fine-tuned controls. Time is modelled,
the planner's expectation over many batches; `wattbit demo` simulates one. A ratio above 1 means that the policy (DMPQ)
is better than the peer. The JSON has rows of all seeds together, then of each.
"""

from pathlib import Path
from typing import Any

import click
from rows import Benchmark, Row, mean_std, show, write

from wattbit.files import read_json
from wattbit.perform import RUNS, perform
from wattbit.pipeline import WORKLOAD_TOKENS
from wattbit.plan import Provenance
from wattbit.presets import run_config
from wattbit.run import Run

OURS = "dmpq"
# Goals of the project against static 8 bit: 40 % less memory, 2x as fast, perplexity less than 1 % higher.
GOALS = {
    ("expert memory, bytes", "uniform8"): 1 / 0.6,
    ("accelerator time a token, s", "uniform8"): 2.0,
    ("perplexity", "uniform8"): 1 / 1.01,
}
Methods = dict[str, Any]
"""What a run's cotrain.json says of each method."""


def readings(method: dict[str, Any]) -> dict[tuple[str, Provenance], float]:
    """What one seed's run says of a method."""
    return {
        ("expert memory, bytes", "modelled"): method["memory_bytes"],
        ("perplexity", "measured"): method["perplexity_after"]["mean"],
        ("accelerator time a token, s", "modelled"): method["cost"]["latency_s"] / WORKLOAD_TOKENS,
    }


def compare(case: str, tables: dict[int, Methods]) -> list[Row]:
    """Rows of DMPQ against each control that the chip holds in every seed; `tables` by seed."""
    seeds, methods = tuple(tables), list(tables.values())
    rows = []
    for peer in [name for name in methods[0] if name != OURS and all(name in table for table in methods)]:
        pairs = [(readings(table[OURS]), readings(table[peer])) for table in methods]
        for metric, provenance in pairs[0][0]:
            ours, ours_std = mean_std([mine[metric, provenance] for mine, _ in pairs])
            theirs, theirs_std = mean_std([other[metric, provenance] for _, other in pairs])
            goal, ratio = GOALS.get((metric, peer)), theirs / ours
            rows.append(Row(case, metric, ours, ours_std, theirs, theirs_std, peer, ratio, goal, provenance, seeds))
    return rows


@click.command(cls=Benchmark, help=__doc__)
@click.option("--quick", is_flag=True, help="The tiny preset: minutes, and figures that mean nothing.")
@click.option("--json", "path", type=click.Path(path_type=Path, dir_okay=False), help="Write the rows to this file.")
def main(quick: bool, path: Path | None) -> None:
    preset, seeds = ("tiny" if quick else "demo"), (0, 1, 2)
    tables: dict[int, Methods] = {}
    for seed in seeds:
        run = Run.create(RUNS, run_config(preset, None, "virtual-z2", seed))
        perform(run, "cotrain")
        tables[seed] = read_json(run.path("cotrain", "cotrain.json"))["methods"]
    case = f"{preset} preset, Python's sources, virtual-z2"
    rows = compare(case, tables)
    show(rows)
    for seed, table in tables.items():
        rows += compare(f"{case}, seed {seed}", {seed: table})
    if path:
        write(rows, path)


if __name__ == "__main__":
    main()
