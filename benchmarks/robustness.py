"""Perplexity after widths are switched at run time without retraining, before and after co-training at sampled widths.

    python benchmarks/robustness.py [--quick] [--json FILE] [--runs FOLDER]

For each training seed (one run each in the runs folder, kept) a policy is trained at BUDGET bits, and the float weights
are fine-tuned for the same steps in two ways: `fixed`, at the policy's best allocation, and `sampled`, at that one and
at allocations drawn from the policy, one a step. Then the weights are read at widths that neither was tuned at: uniform
8, 4 and 3 bits and random allocations of the budget. A ratio is a peer's perplexity over that of `sampled`, above 1
where sampled co-training is better; p is of a paired t-test over training seeds (times allocations, if several).
"""

from collections.abc import Sequence
from pathlib import Path
from statistics import fmean, stdev

import click
import numpy as np
from policy_vs_controls import SEEDS, run_of
from rows import Benchmark, Row, show, write
from scipy.stats import ttest_rel

from wattbit.files import digest_json, read_json, write_json
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
PEERS = ("fixed", "not fine-tuned")

Found = dict[str, dict[str, list[float]]]
"""Perplexities by weights, then by what they were read at."""


def read(preset: str, seed: int, steps: int, iterations: int, root: Path) -> Found:
    """One training seed's perplexities; kept in a file of the runs folder."""
    kept = root / "robustness" / f"{digest_json([preset, seed, steps, iterations])}.json"
    if kept.exists():
        return dict(read_json(kept))
    run = run_of(preset, seed, root)
    stats = smoothed(expert_stats(run))
    widths = tuple(bits for bits, _ in stats[0].damage)
    problem = Problem(stats, meter(run), workload(run), widths, budget_bits=BUDGET)
    trained = train(AllocationEnv(problem), seed, AgentSettings(iterations=iterations))
    best = problem.allocation(trained.choice)
    draws = [problem.allocation(choice) for choice in trained.policy.sample(problem, DRAWS, seed)]
    switched: dict[str, list[Allocation]] = {
        f"uniform {bits} bit": [problem.allocation(problem.uniform(bits))] for bits in (8, 4, 3) if bits in widths
    }
    switched["random of the budget"] = [problem.allocation(random_allocation(problem, s)) for s in RANDOM_SEEDS]
    model = learner(run)
    start = kept.with_suffix(".safetensors")
    model.save(start)
    found: Found = {}
    for name, over in (("not fine-tuned", []), ("fixed", [best]), (OURS, [best, *draws])):
        model.load(start)
        if over:
            model.finetune_over(over, steps, seed)
        found[name] = {"the policy's best": [model.perplexity(best)]}
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
@click.option("--steps", default=40, show_default=True, help="Fine-tuning steps.")
def main(quick: bool, path: Path | None, root: Path, steps: int) -> None:
    preset, steps, iterations = ("tiny", 4, 5) if quick else ("demo", steps, 40)
    seeds = [read(preset, seed, steps, iterations, root) for seed in SEEDS]
    case = f"{preset}, {BUDGET} bits, {steps} steps of fine-tuning"
    rows = []
    for what in seeds[0][OURS]:
        values = {name: [v for one in seeds for v in one[name][what]] for name in (OURS, *PEERS)}
        rows += [compare(case, what, values[OURS], peer, values[peer]) for peer in PEERS]
    show(rows)
    if path:
        write(rows, path)


if __name__ == "__main__":
    main()
