"""The policy against every control at equal budgets, on real experts: the reward of what each finds.

    python benchmarks/policy_vs_controls.py [--quick] [--json FILE] [--runs FOLDER] [--preset NAME] [--jobs N]

Statistics come from models with experts in two layers, one run in the runs folder for each training seed; a run that
has statistics is not redone, nor is a cell of the table, kept in FOLDER/policy_vs_controls, of the same statistics and
the same code of policy and planner. E=16 is the preset demo; E=64 the models that `fpga_engines.py` trained (run that
first, with its --text), from FOLDER/fpga-engines, whose weights do not fit on the chip: part of them is streamed. Two
rewards: additive, which is the damage table alone, where the exact optimum cannot be beaten; and coupled, where the
planner's time on the board counts (latency_nats below), which no table sees.

`shared` is the exact optimum of the best set of widths, priced by the meter; annealing starts there, as the policy
does, and may price as many allocations as the policy of the same seed did. `local search` is that with the moves of the
policy's own closing local search: what the policy owes to them, not to learning. At ABLATED bits, E=16: A2C, a cold
start, no local search at the end, the widths 2, 4 and 8 alone, and a search whose hardware cost is the bits that pass,
in place of the planner's time. A ratio is exp(difference of the rewards), that is of perplexities with the hardware's
price included: above 1 where the policy is better. p is of a paired t-test over training seeds times policy seeds,
which are not independent, and beside it over the means of each model's policy seeds. "after N evaluations" is the best
reward among the first N allocations priced.
"""

from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from dataclasses import asdict, dataclass
from itertools import product
from multiprocessing import get_context
from pathlib import Path
from statistics import fmean, stdev
from typing import Any

import cells
import click
import numpy as np
from rows import Benchmark, Row, show, write
from scipy.stats import ttest_rel

from wattbit.board.targets import load as load_board
from wattbit.errors import InfeasibleError, WattbitError
from wattbit.files import read_json, write_json
from wattbit.hls.meter import ModelledMeter
from wattbit.perform import RUNS, perform
from wattbit.pipeline import WORKLOAD_TOKENS, expert_stats, meter, workload
from wattbit.plan import Allocation, Cost, ExpertStats, Meter, Workload
from wattbit.policy.a2c import A2C
from wattbit.policy.agent import AgentSettings, train
from wattbit.policy.annealing import anneal, improve
from wattbit.policy.controls import greedy, linear_in_frequency, random_allocation
from wattbit.policy.environment import AllocationEnv
from wattbit.policy.exact import solve, solve_shared
from wattbit.policy.ppo import PPO
from wattbit.policy.pricing import Price, price
from wattbit.policy.problem import Choice, Problem
from wattbit.policy.smoothing import smoothed
from wattbit.presets import PRESETS, run_config
from wattbit.run import Run

SEEDS = (0, 1, 2)
BUDGETS = {
    "demo": (2.25, 2.5, 2.75, 3.0, 3.5, 4.0),
    "e64": (2.25, 3.0, 4.0),
    "tiny": (3.0, 4.0),
}
TITLES = {"demo": "E=16", "e64": "E=64", "tiny": "E=4"}
FEW_WIDTHS = (2, 4, 8)
STREAMED = "e64"
ABLATED = 3.0  # bits
COUPLED_NATS = 0.1
MARKS = (100, 300, 1000)  # evaluations
OURS = "dmpq (PPO)"
GOAL = "exact"  # of the coupled reward: to be beaten with p < 0.05
AVERAGED = (OURS, GOAL, "annealing", "local search")  # over the policy seeds, too

Solver = Callable[[Problem, int, int], Choice]
"""Of a problem, a seed, and how many allocations may be priced."""


@dataclass(frozen=True)
class Cell:
    """One problem of the table: a trained model, a budget and a price of time."""

    preset: str
    training_seed: int
    budget: float
    nats: float
    iterations: int
    gate_draws: int
    choice_draws: int
    local: float

    @property
    def settings(self) -> dict[str, Any]:
        return {name: getattr(self, name) for name in ("iterations", "gate_draws", "choice_draws", "local")}


class Free:
    """Prices nothing: the additive reward has no hardware."""

    def cost(self, allocation: Allocation, workload: Workload) -> Cost:
        return Cost(1.0, None, 0, "modelled")


class Bits:
    """Time proportional to the weight bits that pass: what a search without a model of the board could assume."""

    def cost(self, allocation: Allocation, workload: Workload) -> Cost:
        share = dict(workload.frequency)
        passing = sum(share[p.expert] * p.precision.weight_bits for p in allocation.placements)
        return Cost(passing, None, 0, "modelled")


class Remembered:
    """A meter that is asked once for each allocation, whichever method or seed asks: methods begin alike."""

    def __init__(self, meter: Meter) -> None:
        self.meter = meter
        self.known: dict[tuple[Allocation, Workload], Price] = {}

    def cost(self, allocation: Allocation, workload: Workload) -> Cost:
        key = allocation, workload
        if key not in self.known:
            self.known[key] = price(self.meter, allocation, workload)
        found = self.known[key]
        if isinstance(found, InfeasibleError):
            raise InfeasibleError(str(found))  # a new one, for a traceback of its own
        return found


def solvers(cell: Cell, widths: Sequence[int]) -> dict[str, Solver]:
    """Every method by name, the policy's the first."""

    def agent(**more: Any) -> Solver:
        settings = AgentSettings(**cell.settings | more)
        return lambda problem, seed, _: train(AllocationEnv(problem), seed, settings).choice

    def searched(search: Callable[[Problem, Choice, int, int], Choice]) -> Solver:
        def solver(problem: Problem, seed: int, prices: int) -> Choice:
            start = solve_shared(problem)
            return search(problem, start, prices - problem.asked, seed)

        return solver

    found: dict[str, Solver] = {
        OURS: agent(algorithm=PPO()),
        "annealing": searched(anneal),
        "local search": searched(improve),
        "exact": lambda problem, *_: solve(problem),
        "shared": lambda problem, *_: solve_shared(problem),
        "greedy": lambda problem, *_: greedy(problem),
        "linear": lambda problem, *_: linear_in_frequency(problem),
        "random": lambda problem, seed, _: random_allocation(problem, seed),
    }
    if ablated(cell):
        found |= {
            "A2C": agent(algorithm=A2C()),
            "PPO, cold start": agent(warm=False),
            "PPO, no local search": agent(local=0.0),
        }
    if cell.budget in widths:
        found["uniform"] = lambda problem, *_: problem.uniform(int(cell.budget))
    return found


def work(cell: Cell, root: str) -> dict[str, Any]:
    """Rewards by method, and the policy's at MARKS, a list over SEEDS each; kept in a file of the runs folder."""
    stats, load, board = world(cell.preset, cell.training_seed, cell.nats > 0, Path(root))
    path = cells.cell(Path(root), __file__, [asdict(cell), inputs(stats, board)], "policy", *["hls"] * (cell.nats > 0))
    if path.exists():
        return dict(read_json(path))

    every = tuple(bits for bits, _ in stats[0].damage)
    remembered = Remembered(board)

    def problem(widths: Sequence[int] = every, meter: Meter = remembered) -> Problem:
        return Problem(stats, meter, load, widths, budget_bits=cell.budget, latency_nats=cell.nats)

    rewards: dict[str, list[float]] = {}
    marks: dict[str, list[list[float]]] = {}
    asked: dict[str, list[int]] = {}
    for name, solver in solvers(cell, every).items():
        for place, seed in enumerate(SEEDS):
            fresh = problem()
            prices = 0 if name == OURS else asked[OURS][place]
            rewards.setdefault(name, []).append(fresh.reward(solver(fresh, seed, prices)))
            asked.setdefault(name, []).append(fresh.asked)
            if cell.nats and name in (OURS, "annealing", "A2C", "PPO, cold start"):
                marks.setdefault(name, []).append(progress(fresh))
    if ablated(cell):
        judge, ours = problem(), solvers(cell, every)[OURS]
        for name, other in (("widths 2, 4, 8", problem(FEW_WIDTHS)), ("cost by bits", problem(every, Bits()))):
            chosen = [other.allocation(ours(other, seed, 0)) for seed in SEEDS]
            rewards[name] = [judge.reward(judge.choice(allocation)) for allocation in chosen]
    write_json(path, {"cell": asdict(cell), "rewards": rewards, "marks": marks, "asked": asked})
    return dict(read_json(path))


def ablated(cell: Cell) -> bool:
    return cell.budget == ABLATED and cell.nats > 0 and cell.preset != STREAMED


def world(preset: str, seed: int, coupled: bool, root: Path) -> tuple[tuple[ExpertStats, ...], Workload, Meter]:
    """A trained model's statistics, workload and meter."""
    if preset == STREAMED:
        found = streamed(seed, root)
        stats = smoothed(tuple(ExpertStats.from_json(one) for one in read_json(found)))
        sizes = PRESETS["e64"].model
        load = Workload(WORKLOAD_TOKENS, sizes.top_k, tuple((s.expert, s.frequency) for s in stats))
        return stats, load, ModelledMeter(sizes.shape, load_board("virtual-z2").target) if coupled else Free()
    run = run_of(preset, seed, root)
    return smoothed(expert_stats(run)), workload(run), meter(run) if coupled else Free()


def inputs(stats: Sequence[ExpertStats], board: Meter) -> list[Any]:
    """What a problem is made of, as JSON: for the names of cells."""
    hardware = [board.target.to_json(), asdict(board.shape)] if isinstance(board, ModelledMeter) else None
    return [[one.to_json() for one in stats], hardware]


def streamed(seed: int, root: Path) -> Path:
    """The statistics of a model that `fpga_engines.py` trained."""
    path = root / "fpga-engines" / f"E64-seed{seed}" / "stats.json"
    if not path.is_file():
        raise WattbitError(f"there is no {path}; run benchmarks/fpga_engines.py first, it trains the models of E=64")
    return path


def progress(problem: Problem) -> list[float]:
    """The best reward within the budget among the first allocations priced, at each of MARKS."""
    rewards = [problem.reward(choice) if problem.fits(choice) else -np.inf for choice in problem.priced]
    return [float(max(rewards[:mark], default=-np.inf)) for mark in MARKS]


def run_of(preset: str, seed: int, root: Path) -> Run:
    """The run of a training seed, with its statistics."""
    run = Run.create(root, run_config(preset, None, "virtual-z2", seed))
    if not run.path("stages", "stats.json").exists():
        perform(run, "stats")
    return run


def compare(case: str, metric: str, found: Mapping[str, Sequence[float]], goal: bool) -> list[Row]:
    rows = []
    ours = found[OURS]
    for peer, theirs in found.items():
        if peer == OURS:
            continue
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


def evaluations(case: str, found: Sequence[Mapping[str, Any]]) -> Row:
    """How many allocations the policy and annealing had priced."""
    ours, theirs = ([float(n) for one in found for n in one["asked"][name]] for name in (OURS, "annealing"))
    means, stds = (fmean(ours), fmean(theirs)), (stdev(ours), stdev(theirs))
    metric, ratio = "allocations priced, coupled", means[1] / means[0]
    return Row(case, metric, means[0], stds[0], means[1], stds[1], "annealing", ratio, None, "modelled", SEEDS)


def sample_efficiency(case: str, found: Sequence[Mapping[str, Any]]) -> list[Row]:
    """The policy against annealing and its other forms after the same number of allocations priced."""
    rows = []
    for at, mark in enumerate(MARKS):
        after = {
            name: [values[at] for one in found for values in one["marks"][name]]
            for name in (OURS, "annealing", "A2C", "PPO, cold start")
            if all(name in one["marks"] for one in found)
        }
        if all(np.isfinite(values).all() for values in after.values()):
            rows += compare(case, f"coupled reward after {mark} evaluations, nats", after, goal=False)
    return rows


def plot(rows: Sequence[Row], path: Path) -> None:
    """Ratio of every control to the policy over the budget, coupled reward, one panel a model."""
    import matplotlib.pyplot as plt

    from wattbit.plots import COLOURS, save

    shown = [row for row in rows if row.metric == "coupled reward, nats"]
    models = sorted({row.case.split(",")[0] for row in shown})
    figure, panels = plt.subplots(1, len(models), figsize=(5.2 * len(models), 3.6), squeeze=False)
    for panel, model in zip(panels[0], models, strict=True):
        for colour, peer in zip(COLOURS, ("exact", "shared", "annealing", "greedy", "linear", "random"), strict=False):
            points = [
                (float(row.case.split(", ")[1].split()[0]), 100 * np.log(row.ratio))
                for row in shown
                if row.peer_name == peer and row.case.startswith(f"{model},")
            ]
            panel.plot(*zip(*sorted(points), strict=True), marker="o", markersize=3, label=peer, color=colour)
        panel.set_title(model)
        panel.set_xlabel("budget, mean bits")
        panel.set_yscale("symlog", linthresh=0.1)
        panel.grid(alpha=0.3)
    panels[0][0].set_ylabel("policy's reward over the control's, 0.01 nats")
    panels[0][0].legend(frameon=False, fontsize=8)
    save(figure, path)


@click.command(cls=Benchmark, help=__doc__)
@click.option("--quick", is_flag=True, help="The tiny preset, two budgets: figures that mean nothing.")
@click.option("--json", "path", type=click.Path(path_type=Path, dir_okay=False), help="Write rows here, a plot beside.")
@click.option("--runs", "root", default=RUNS, type=click.Path(path_type=Path), help="Folder of runs and of cells done.")
@click.option("--preset", "presets", multiple=True, help="demo or e64; by default both.")
@click.option("--jobs", default=1, show_default=True, help="Processes side by side.")
def main(quick: bool, path: Path | None, root: Path, presets: tuple[str, ...], jobs: int) -> None:
    # a price of E=64 takes ten times as long as one of E=16
    efforts = {"tiny": (5, 4, 4, 0.5), "demo": (15, 4, 6, 2.0), STREAMED: (10, 4, 6, 1.0)}
    names = ("tiny",) if quick else presets or ("demo", STREAMED)
    for name, seed in product(names, SEEDS):
        (streamed(seed, root) if name == STREAMED else run_of(name, seed, root))
    wanted = [
        Cell(name, seed, budget, nats, *efforts[name])
        for name in names
        for nats in (COUPLED_NATS, 0.0)
        for budget in BUDGETS[name]
        for seed in SEEDS
    ]
    with ProcessPoolExecutor(jobs, get_context("spawn")) as pool:
        futures = {pool.submit(work, cell, str(root)): cell for cell in wanted}
        for number, done in enumerate(as_completed(futures)):
            click.echo(f"{number + 1} of {len(wanted)}: {futures[done]}", err=True)
        found = {cell: future.result() for future, cell in futures.items()}
    rows: list[Row] = []
    for name in names:
        for budget in BUDGETS[name]:
            for metric, nats in (("additive reward, nats", 0.0), ("coupled reward, nats", COUPLED_NATS)):
                here = [
                    one for cell, one in found.items() if (cell.preset, cell.budget, cell.nats) == (name, budget, nats)
                ]
                common = [m for m in here[0]["rewards"] if all(m in one["rewards"] for one in here)]
                methods = {m: [v for one in here for v in one["rewards"][m]] for m in common}
                case = f"{TITLES[name]}, {budget} bits"
                added = compare(case, metric, methods, goal=nats > 0)
                if nats:
                    means = {m: np.reshape(methods[m], (-1, len(SEEDS))).mean(axis=1).tolist() for m in AVERAGED}
                    added += compare(case, f"{metric}, a mean a model", means, goal=False)
                    added.append(evaluations(case, here))
                if nats and budget == ABLATED:
                    added += sample_efficiency(case, here)
                show(added)
                rows += added
    if path:
        write(rows, path)
        plot(rows, path.with_suffix(".svg"))


if __name__ == "__main__":
    main()
