"""A reward that sees retraining: widths chosen by damage before it, by a learned repair, and by short retraining.

    python benchmarks/policy_retraining.py [--quick] [--json FILE] [--runs FOLDER]

For each training seed (one run each in the runs folder, kept) and at BUDGET bits:

- `table`: the exact optimum of the damage measured before retraining;
- `learned`: that of the table corrected by `policy.repair`, fitted to short fine-tunings of uniform widths and of two
  random allocations, once a model;
- `short`: the best of both, the uniform width and the policy's best on the corrected table, after a short fine-tuning
  of each;
- `uniform`: the widest within the budget, and `random`: one allocation of the budget.

All of them are then fine-tuned alike from the float weights, and a ratio is a peer's perplexity over that of `learned`,
on validation text; the short fine-tunings are judged on the text that the statistics are of. Whether retraining turns
the table's order is a row of its own: `table` over `uniform`.
The seconds of each form are what it takes beside the table: fitting the repair, or fine-tuning the candidates.
"""

import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from statistics import fmean, stdev
from typing import Any

import cells
import click
import numpy as np
from policy_vs_controls import SEEDS, Free, run_of
from rows import Benchmark, Row, show, write
from scipy.stats import ttest_rel

from wattbit.files import read_json, sha256_file, write_json
from wattbit.perform import RUNS
from wattbit.pipeline import expert_stats, learner, workload
from wattbit.policy.agent import AgentSettings, train
from wattbit.policy.controls import random_allocation
from wattbit.policy.environment import AllocationEnv
from wattbit.policy.exact import solve
from wattbit.policy.problem import Problem
from wattbit.policy.repair import learn, shortlist, tuned
from wattbit.policy.smoothing import smoothed

BUDGET = 3.0  # bits: of uniform 3, which 400 steps of fine-tuning were seen to put before a greedy mix
OURS = "learned"
PEERS = ("table", "short", "uniform", "random")


def read(preset: str, seed: int, short: int, steps: int, iterations: int, root: Path) -> dict[str, Any]:
    """One training seed: perplexities after the whole fine-tuning, seconds, repair; kept in the runs folder."""
    run = run_of(preset, seed, root)
    stats = smoothed(expert_stats(run))
    weights = sha256_file(run.path("model", "float.safetensors"))
    given = [seed, short, steps, iterations, weights, [one.to_json() for one in stats]]
    kept = cells.cell(root, __file__, given, "policy", "models")
    if kept.exists():
        return dict(read_json(kept))
    widths = tuple(bits for bits, _ in stats[0].damage)
    settings: dict[str, Any] = {"budget_bits": BUDGET, "latency_nats": 0.0}
    problem = Problem(stats, Free(), workload(run), widths, **settings)
    model = learner(run)
    start = kept.with_suffix(".safetensors")
    model.save(start)
    judging = model.samples
    model.samples = replace(judging, valid=judging.held)  # what chooses does not judge
    begin = time.monotonic()
    repair, record = learn(problem, model, start, short, seed)
    learned_s = time.monotonic() - begin
    corrected = Problem(repair.of(stats), Free(), workload(run), widths, **settings)
    chosen = {
        "table": problem.allocation(solve(problem)),
        OURS: problem.allocation(solve(corrected)),
        "uniform": problem.allocation(problem.uniform(max(bits for bits in widths if bits <= BUDGET))),
        "policy": problem.allocation(
            train(AllocationEnv(corrected), seed, AgentSettings(iterations=iterations)).choice
        ),
    }
    begin = time.monotonic()
    best, shortly = shortlist(model, start, chosen, short, seed)
    short_s = time.monotonic() - begin
    chosen["random"] = problem.allocation(random_allocation(problem, seed))
    wanted = {name: chosen[name] for name in {"table", OURS, "uniform", "random", best}}
    model.samples = judging
    distinct = {allocation.digest: allocation for allocation in wanted.values()}
    after = tuned(model, start, distinct, steps, seed)
    start.unlink()
    record |= {
        "left": {str(bits): share for bits, share in repair.left.items()},
        "perplexity": {name: after[allocation.digest] for name, allocation in wanted.items()},
        "short": best,
        "shortly": shortly,
        "seconds": {OURS: learned_s, "short": short_s},
        "bits": {name: allocation.mean_bits for name, allocation in wanted.items()},
    }
    record["perplexity"]["short"] = after[chosen[best].digest]
    write_json(kept, record)
    click.echo(f"seed {seed}: {record}", err=True)
    return record


def compare(case: str, metric: str, ours: Sequence[float], peer: str, theirs: Sequence[float]) -> Row:
    """Values over SEEDS."""
    mean, other = fmean(ours), fmean(theirs)
    p = None if np.allclose(ours, theirs) else float(ttest_rel(ours, theirs).pvalue)
    ratio = other / max(mean, 1e-9)
    return Row(case, metric, mean, stdev(ours), other, stdev(theirs), peer, ratio, None, "measured", SEEDS, p)


@click.command(cls=Benchmark, help=__doc__)
@click.option("--quick", is_flag=True, help="The tiny preset, few steps: figures that mean nothing.")
@click.option("--json", "path", type=click.Path(path_type=Path, dir_okay=False), help="Write the rows to this file.")
@click.option("--runs", "root", default=RUNS, type=click.Path(path_type=Path), help="Folder of runs and of seeds done.")
@click.option("--short", default=10, show_default=True, help="Steps of a short fine-tuning.")
@click.option("--steps", default=40, show_default=True, help="Steps of the whole fine-tuning.")
def main(quick: bool, path: Path | None, root: Path, short: int, steps: int) -> None:
    preset, short, steps, iterations = ("tiny", 2, 4, 5) if quick else ("demo", short, steps, 40)
    found = [read(preset, seed, short, steps, iterations, root) for seed in SEEDS]
    case = f"{preset}, {BUDGET} bits, {short} and {steps} steps"
    after = {name: [one["perplexity"][name] for one in found] for name in (OURS, *PEERS)}
    times = {name: [one["seconds"][name] for one in found] for name in (OURS, "short")}
    rows = [compare(case, "perplexity after fine-tuning", after[OURS], peer, after[peer]) for peer in PEERS]
    rows.append(compare(case, "perplexity after fine-tuning, uniform", after["uniform"], "table", after["table"]))
    rows.append(compare(case, "seconds beside the table's", times[OURS], "short", times["short"]))
    for bits in found[0]["left"]:
        left = [one["left"][bits] for one in found]
        rows.append(compare(case, f"share of the damage left at {bits} bits", left, "no repair", [1.0] * len(found)))
    show(rows)
    if path:
        write(rows, path)


if __name__ == "__main__":
    main()
