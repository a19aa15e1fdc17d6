"""Perplexity after widths are switched at run time without retraining, and what co-training is worth.

    python benchmarks/robustness.py [--quick] [--json FILE] [--runs FOLDER]

For each training seed (one run each in the runs folder, kept) a policy is trained at BUDGET bits, and the float weights
are fine-tuned in two calls of half the steps each, in four ways: `fixed`, at the policy's best allocation; `expected`,
at its expectation rounded to widths; `sampled`, at the best and at allocations drawn from the policy, one a step; and
`alternating`, the second half at what the policy finds by statistics of the weights after the first.

Then the weights are read at widths that none was tuned at: uniform 8, 4 and 3 bits and random allocations of the
budget. There a ratio is a peer's perplexity over that of `sampled`. Each is also read at its own widths; there a ratio
is a peer's over that of `alternating`: against `fixed` and `expected` the worth of searching again, against `not
fine-tuned` that of fine-tuning. p is of a paired t-test over training seeds (times allocations, if several).
"""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from statistics import fmean, stdev

import cells
import click
import numpy as np
from policy_vs_controls import SEEDS, inputs, run_of
from rows import Benchmark, Row, show, write
from scipy.stats import ttest_rel

from wattbit.files import read_json, sha256_file, write_json
from wattbit.perform import RUNS
from wattbit.pipeline import expert_stats, learner, meter, workload
from wattbit.plan import Allocation
from wattbit.policy.agent import AgentSettings, train
from wattbit.policy.controls import random_allocation
from wattbit.policy.environment import AllocationEnv
from wattbit.policy.problem import Problem
from wattbit.policy.smoothing import smoothed

BUDGET = 3.0
DRAWS = 16
RANDOM_SEEDS = (10, 11, 12, 13)
OURS = "sampled"
PEERS = ("fixed", "expected", "alternating", "not fine-tuned")
CO = "alternating"
CO_PEERS = ("fixed", "expected", "sampled", "not fine-tuned")
OWN = "its own widths"

Found = dict[str, dict[str, list[float]]]
"""Perplexities by weights, then by what they were read at."""


def read(preset: str, seed: int, steps: int, iterations: int, root: Path) -> Found:
    """One training seed's perplexities; kept in a file of the runs folder."""
    run = run_of(preset, seed, root)
    stats = smoothed(expert_stats(run))
    weights = sha256_file(run.path("model", "float.safetensors"))
    given = [seed, steps, iterations, weights, inputs(stats, meter(run))]
    kept = cells.cell(root, __file__, given, "policy", "models", "hls")
    if kept.exists():
        return dict(read_json(kept))
    widths = tuple(bits for bits, _ in stats[0].damage)
    problem = Problem(stats, meter(run), workload(run), widths, budget_bits=BUDGET)
    settings = AgentSettings(iterations=iterations)
    trained = train(AllocationEnv(problem), seed, settings)
    best = problem.allocation(trained.choice)
    expected = problem.allocation(trained.policy.expected(problem))
    draws = [problem.allocation(choice) for choice in trained.policy.sample(problem, DRAWS, seed)]
    switched: dict[str, list[Allocation]] = {
        f"uniform {bits} bit": [problem.allocation(problem.uniform(bits))] for bits in (8, 4, 3) if bits in widths
    }
    switched["random of the budget"] = [problem.allocation(random_allocation(problem, s)) for s in RANDOM_SEEDS]
    model = learner(run)
    start = kept.with_suffix(".safetensors")
    model.save(start)
    found: Found = {}
    ways = {"not fine-tuned": [], "fixed": [best], "expected": [expected], OURS: [best, *draws], CO: [best]}
    for name, over in ways.items():
        model.load(start)
        taken = over
        for turn in range(2 if over else 0):
            if turn and name == CO:
                now = replace(problem, stats=smoothed(model.stats(widths)), history=[stats])
                taken = [problem.allocation(train(AllocationEnv(now), seed, settings).choice)]
            model.finetune_over(taken, (steps + 1 - turn) // 2, seed + turn)
        own = taken[0] if taken else best
        found[name] = {OWN: [model.perplexity(own)], "the policy's best": [model.perplexity(best)]}
        for what, allocations in switched.items():
            found[name][what] = [model.perplexity(allocation) for allocation in allocations]
        click.echo(f"seed {seed}, {name}: {found[name]}", err=True)
    start.unlink()
    write_json(kept, found)
    return found


def compare(case: str, what: str, ours: Sequence[float], peer: str, theirs: Sequence[float]) -> Row:
    means, stds = (fmean(ours), fmean(theirs)), (stdev(ours), stdev(theirs))
    p = None if np.allclose(ours, theirs) else float(ttest_rel(ours, theirs).pvalue)
    metric = f"perplexity at {what}"
    return Row(
        case, metric, means[0], stds[0], means[1], stds[1], peer, means[1] / means[0], None, "measured", SEEDS, p
    )


@click.command(cls=Benchmark, help=__doc__)
@click.option("--quick", is_flag=True, help="The tiny preset, few steps: figures that mean nothing.")
@click.option("--json", "path", type=click.Path(path_type=Path, dir_okay=False), help="Write the rows to this file.")
@click.option("--runs", "root", default=RUNS, type=click.Path(path_type=Path), help="Folder of runs and of seeds done.")
@click.option("--steps", type=click.IntRange(2), default=40, show_default=True, help="Steps of both fine-tunings.")
def main(quick: bool, path: Path | None, root: Path, steps: int) -> None:
    preset, steps, iterations = ("tiny", 4, 5) if quick else ("demo", steps, 40)
    seeds = [read(preset, seed, steps, iterations, root) for seed in SEEDS]
    case = f"{preset}, {BUDGET} bits, {steps} steps of fine-tuning"
    rows = []
    for what in seeds[0][OURS]:
        ours, peers = (CO, CO_PEERS) if what == OWN else (OURS, PEERS)
        values = {name: [v for one in seeds for v in one[name][what]] for name in (ours, *peers)}
        title = f"{case}, {ours}"
        rows += [compare(title, what, values[ours], peer, values[peer]) for peer in peers]
    show(rows)
    if path:
        write(rows, path)


if __name__ == "__main__":
    main()
