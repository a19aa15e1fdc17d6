"""The policy against every control at equal budgets, on real experts: the reward of what each finds.

    python benchmarks/policy_vs_controls.py [--quick] [--json FILE] [--data FOLDER]

Statistics come from models with 16 and 64 experts a layer, one run in runs/ for each training seed (a finished one is
not redone). Two rewards: additive, which is the damage table alone, where the exact optimum cannot be beaten; and
coupled, where the planner's time on the board counts (latency_nats below), which no table sees. `shared` is the exact
optimum of the best set of widths, priced by the meter; annealing gets as many evaluations as the policy. A ratio is
exp(difference of the rewards), that is of perplexities with the hardware's price included: above 1 where the policy is
better. p is of a paired t-test over training seeds times policy seeds.
"""

from collections.abc import Callable
from pathlib import Path
from statistics import fmean, stdev

import click
import numpy as np
from rows import Row, show, write
from scipy.stats import ttest_rel

from wattbit.perform import RUNS, perform
from wattbit.pipeline import expert_stats, meter, workload
from wattbit.policy.a2c import A2C
from wattbit.policy.agent import AgentSettings, train
from wattbit.policy.annealing import anneal
from wattbit.policy.controls import greedy, linear_in_frequency, random_allocation
from wattbit.policy.environment import AllocationEnv
from wattbit.policy.exact import solve, solve_shared
from wattbit.policy.problem import Choice, Problem
from wattbit.policy.smoothing import smoothed
from wattbit.presets import run_config
from wattbit.run import Run

SEEDS = (0, 1, 2)
BUDGETS = (2.25, 2.5, 2.75, 3.0, 3.5, 4.0)
COUPLED_NATS = 0.1
OURS = "dmpq (PPO)"
GOAL = "exact"  # of the coupled reward: to be beaten with p < 0.05

Solver = Callable[[Problem, int], Choice]


def solvers(iterations: int) -> dict[str, Solver]:
    """Every method by name: the choice that it makes for a problem with a seed."""
    settings = AgentSettings(iterations=iterations)
    evaluations = iterations * settings.gate_draws * settings.choice_draws

    def agent(settings: AgentSettings) -> Solver:
        return lambda problem, seed: train(AllocationEnv(problem), seed, settings).choice

    return {
        OURS: agent(settings),
        "A2C": agent(AgentSettings(algorithm=A2C(), iterations=iterations)),
        "PPO, cold start": agent(AgentSettings(iterations=iterations, warm=False)),
        "annealing": lambda problem, seed: anneal(problem, solve(problem), evaluations, seed),
        "exact": lambda problem, _: solve(problem),
        "shared": lambda problem, _: solve_shared(problem),
        "greedy": lambda problem, _: greedy(problem),
        "linear": lambda problem, _: linear_in_frequency(problem),
        "random": random_allocation,
    }


def rewards(runs: list[Run], budget: float, nats: float, iterations: int) -> dict[str, list[float]]:
    """Each method's rewards, training seed by training seed and policy seed by policy seed."""
    found: dict[str, list[float]] = {}
    for run in runs:
        stats, price, load = smoothed(expert_stats(run)), meter(run), workload(run)
        widths = run.config.settings["cotrain"]["search"]["weight_bits"]
        for name, solver in solvers(iterations).items():
            problem = Problem(stats, price, load, widths, budget_bits=budget, latency_nats=nats)
            found.setdefault(name, []).extend(problem.reward(solver(problem, seed)) for seed in SEEDS)
    return found


def compare(case: str, metric: str, found: dict[str, list[float]], goal: bool) -> list[Row]:
    rows = []
    ours = found[OURS]
    for peer in [name for name in found if name != OURS]:
        theirs = found[peer]
        same = np.allclose(ours, theirs, rtol=0, atol=1e-12)
        rows.append(
            Row(
                case,
                metric,
                fmean(ours),
                stdev(ours),
                fmean(theirs),
                stdev(theirs),
                peer,
                float(np.exp(fmean(ours) - fmean(theirs))),
                1.0 if goal and peer == GOAL else None,
                "modelled",
                SEEDS,
                None if same else float(ttest_rel(ours, theirs).pvalue),
            )
        )
    return rows


@click.command(help=__doc__)
@click.option("--quick", is_flag=True, help="The tiny preset, two budgets: figures that mean nothing.")
@click.option("--json", "path", type=click.Path(path_type=Path, dir_okay=False), help="Write the rows to this file.")
@click.option("--data", default=None, help="Corpus, as `wattbit demo --data` takes it.")
def main(quick: bool, path: Path | None, data: str | None) -> None:
    presets = {"tiny": 4} if quick else {"demo": 16, "e64": 64}
    rows: list[Row] = []
    for preset, experts in presets.items():
        runs = [Run.create(RUNS, run_config(preset, data, "virtual-z2", seed)) for seed in SEEDS]
        for run in runs:
            perform(run, "stats", as_json=False)
        for budget in (3.0, 4.0) if quick else BUDGETS:
            for metric, nats in (("additive reward, nats", 0.0), ("coupled reward, nats", COUPLED_NATS)):
                found = rewards(runs, budget, nats, 10 if quick else AgentSettings().iterations)
                rows += compare(f"E={experts}, {budget} bits", metric, found, goal=nats > 0)
                show(rows[-(len(found) - 1) :])
    if path:
        write(rows, path)


if __name__ == "__main__":
    main()
