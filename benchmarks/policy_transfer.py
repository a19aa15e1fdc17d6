"""A policy that is trained once and then asked about other models, budgets and numbers of experts, without retraining.

    python benchmarks/policy_transfer.py [--quick] [--json FILE] [--runs FOLDER]

The models and boards are those of `policy_vs_controls.py`, in the same folder. For each training seed one policy is
trained on the E=16 models of the other seeds, at TRAINED bits each, with the coupled reward. It is then asked at ASKED
bits, none of which it has seen, about the E=16 model and the E=64 model of that seed: the best of its likeliest
allocation and DRAWS drawn ones, repaired to the budget. Annealing and the policy's own local search start from the best
set of widths and may price as many allocations as that took. `exact` and `shared` are the optimum of the table, and
that of the best set of widths, priced.

A ratio is exp(difference of the rewards): above 1 where the policy is better. p is of a paired t-test over the models.
What the training took, once for all questions, is a row too.
"""

import time
from dataclasses import replace
from pathlib import Path
from statistics import fmean, stdev
from typing import Any

import cells
import click
from policy_vs_controls import COUPLED_NATS, OURS, SEEDS, STREAMED, TITLES, Remembered, compare, inputs, world
from rows import Benchmark, Row, show, write

from wattbit.files import read_json, write_json
from wattbit.perform import RUNS
from wattbit.policy.agent import AgentSettings, Policy, train_on
from wattbit.policy.annealing import anneal, improve
from wattbit.policy.environment import AllocationEnv
from wattbit.policy.exact import solve, solve_shared
from wattbit.policy.problem import Problem

WIDTHS = (2, 3, 4, 8)  # those with statistics at both sizes
TRAINED = (2.25, 2.75, 3.25, 3.75)  # bits
ASKED = (2.5, 3.0, 3.5, 4.0)
DRAWS = 64
EFFORT = AgentSettings(iterations=240, gate_draws=4, choice_draws=6, local=0.0)
METRIC = "coupled reward, nats"


class Models:
    """Problems by preset, training seed and budget; their prices are remembered."""

    def __init__(self, presets: tuple[str, ...], root: Path) -> None:
        self.worlds = {(preset, seed): world(preset, seed, True, root) for preset in presets for seed in SEEDS}
        self.meters = {key: Remembered(board) for key, (_, _, board) in self.worlds.items()}

    def problem(self, preset: str, seed: int, budget: float) -> Problem:
        stats, load, _ = self.worlds[preset, seed]
        widths = [bits for bits in WIDTHS if bits in dict(stats[0].damage)]
        meter = self.meters[preset, seed]
        return Problem(stats, meter, load, widths, budget_bits=budget, latency_nats=COUPLED_NATS)

    def inputs(self) -> list[Any]:
        return [inputs(stats, board) for stats, _, board in self.worlds.values()]


def trained(models: Models, preset: str, held: int, iterations: int) -> tuple[Policy, float, int]:
    """A policy of all models but one, the seconds of its training and how many allocations were priced."""
    start = time.process_time()
    problems = [models.problem(preset, other, budget) for other in SEEDS if other != held for budget in TRAINED]
    settings = replace(EFFORT, iterations=iterations)
    found = train_on([AllocationEnv(one) for one in problems], held, settings)[0]
    return found.policy, time.process_time() - start, sum(one.asked for one in problems)


def asked(models: Models, policy: Policy, preset: str, held: int, budget: float) -> dict[str, float]:
    """Rewards by method, and how many allocations the policy had priced."""

    def fresh() -> Problem:
        return models.problem(preset, held, budget)

    ours = fresh()
    found = {OURS: ours.reward(policy.choose(ours, DRAWS, held))}
    for name, search in (("annealing", anneal), ("local search", improve)):
        problem = fresh()
        start = solve_shared(problem)
        left = ours.asked - problem.asked
        found[name] = problem.reward(search(problem, start, left, held) if left > 0 else start)
    problem = fresh()
    found |= {"exact": problem.reward(solve(problem)), "shared": problem.reward(solve_shared(problem))}
    return found | {"prices": float(ours.asked)}


def work(models: Models, presets: tuple[str, ...], held: int, iterations: int, root: Path) -> dict[str, Any]:
    """One policy: its training, and what it was asked; kept in a file of the runs folder."""
    given = [presets, held, iterations, models.inputs()]
    path = cells.cell(root, __file__, given, "policy", "hls")
    if not path.exists():
        policy, seconds, prices = trained(models, presets[0], held, iterations)
        answers = {
            f"{preset} {budget}": asked(models, policy, preset, held, budget) for preset in presets for budget in ASKED
        }
        write_json(path, {"seconds": seconds, "prices": prices, "answers": answers})
    return dict(read_json(path))


@click.command(cls=Benchmark, help=__doc__)
@click.option("--quick", is_flag=True, help="The tiny preset, few steps: figures that mean nothing.")
@click.option("--json", "path", type=click.Path(path_type=Path, dir_okay=False), help="Write the rows to this file.")
@click.option("--runs", "root", default=RUNS, type=click.Path(path_type=Path), help="Folder of runs and of cells done.")
def main(quick: bool, path: Path | None, root: Path) -> None:
    presets, iterations = (("tiny",), 16) if quick else (("demo", STREAMED), EFFORT.iterations)
    models = Models(presets, root)
    found = []
    for held in SEEDS:
        found.append(work(models, presets, held, iterations, root))
        click.echo(f"{len(found)} of {len(SEEDS)} policies", err=True)
    rows: list[Row] = []
    for preset in presets:
        for budget in ASKED:
            answers = [one["answers"][f"{preset} {budget}"] for one in found]
            rewards = {name: [one[name] for one in answers] for name in answers[0] if name != "prices"}
            case = f"{TITLES[preset]}, {budget} bits"
            added = compare(case, METRIC, rewards, goal=True)
            added.append(once(case, "allocations priced", [one["prices"] for one in answers]))
            show(added)
            rows += added
    last = [
        once(f"training, {iterations} iterations", name, [one[name] for one in found]) for name in ("seconds", "prices")
    ]
    show(last)
    if path:
        write(rows + last, path)


def once(case: str, metric: str, values: list[float]) -> Row:
    mean, std = fmean(values), stdev(values)
    return Row(case, metric, mean, std, mean, std, "itself", 1.0, None, "measured", SEEDS)


if __name__ == "__main__":
    main()
