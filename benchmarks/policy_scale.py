"""How long a policy takes on large models: one iteration and one whole search at 64 to 6144 experts, time and memory.

    python benchmarks/policy_scale.py [--quick] [--json FILE] [--runs FOLDER]

Statistics are drawn at random (their values do not matter for time), 64 experts a layer. No board's engines tell more
than some hundreds of experts apart, so layers are spread over as many KV260s as it takes, LAYERS each, whose times by
the planner's model add up; a board whose experts all kept their widths is not priced again. A search is what `wattbit
search` does on so many experts (from 512 on, groups first), at EFFORT. Every size runs in a process of its own, for its
peak memory and its processor time (on one thread, so that it is the time on a machine that does nothing else), and is
kept in FOLDER/policy_scale: an interrupted run goes on. A ratio above 1 means better than growing linearly from 64
experts, or, for a search at 2048 experts, faster than the goal of 600 s; for rewards it is exp(difference) to the exact
(or, for many experts, relaxed) optimum of the best set of widths.
"""

import resource
import time
from concurrent.futures import ProcessPoolExecutor
from dataclasses import replace
from multiprocessing import get_context
from pathlib import Path

import cells
import click
import numpy as np
from policy_vs_controls import Remembered
from rows import Benchmark, Row, show, write

from wattbit.board.targets import load
from wattbit.files import read_json, write_json
from wattbit.hls.meter import ModelledMeter
from wattbit.perform import RUNS
from wattbit.plan import Allocation, Cost, ExpertId, ExpertShape, ExpertStats, Meter, Placement, Workload
from wattbit.policy.agent import AgentSettings
from wattbit.policy.exact import solve_shared
from wattbit.policy.hierarchy import learn
from wattbit.policy.problem import Problem

LAYER = 64  # experts
LAYERS = 4  # of a board
WIDTHS = (2, 3, 4, 6, 8)
GOAL_EXPERTS, GOAL_S = 2048, 600.0
SEEDS = (0, 1, 2)
EFFORT = AgentSettings(iterations=20, gate_draws=4, choice_draws=6, local=2.0)


class Boards:
    """Layers on several boards, which a token passes one after the other: their times and bytes add up.

    seconds: the processor's, of all prices.
    """

    def __init__(self, meter: Meter, workload: Workload) -> None:
        self.meter, self.seconds = meter, 0.0
        frequency: dict[int, list[tuple[ExpertId, float]]] = {}
        for expert, share in workload.frequency:
            frequency.setdefault(expert.layer // LAYERS, []).append((expert, share))
        self.loads = {board: replace(workload, frequency=tuple(own)) for board, own in frequency.items()}

    def cost(self, allocation: Allocation, workload: Workload) -> Cost:
        start = time.process_time()
        placed: dict[int, list[Placement]] = {board: [] for board in self.loads}
        for placement in allocation.placements:
            placed[placement.expert.layer // LAYERS].append(placement)
        costs = [self.meter.cost(Allocation(tuple(own)), self.loads[board]) for board, own in placed.items()]
        self.seconds += time.process_time() - start
        return Cost(sum(c.latency_s for c in costs), None, sum(c.memory_bytes for c in costs), "modelled")


def statistics(experts: int, seed: int) -> tuple[ExpertStats, ...]:
    """Experts whose damage falls by 4 a bit, busier ones' more."""
    random = np.random.default_rng(seed)
    found = []
    for layer in range(-(-experts // LAYER)):
        shares = random.dirichlet(np.full(LAYER, 1.5))
        for expert, share in enumerate(shares.tolist()):
            weight = share * float(np.exp(random.normal(0, 0.5)))
            damage = tuple((bits, 0.2 * weight * 4.0 ** (2 - bits)) for bits in WIDTHS)
            a, b, c, d = random.normal(0, 1, 4).tolist()  # gradient norm, router's change, largest variance, kurtosis
            found.append(ExpertStats(ExpertId(layer, expert), share, share, abs(a), b, c, d, damage, 100))
    return tuple(found)


Measured = tuple[float, float, float, float, float, float]


def measure(experts: int, iterations: int, seed: int) -> Measured:
    """Processor seconds of the whole search and of one of its iterations, peak memory in MB, the meter's share of the
    seconds, reward, the start's."""
    stats = statistics(experts, seed)
    workload = Workload(1000, 2, tuple((s.expert, s.frequency) for s in stats))
    meter = Boards(Remembered(ModelledMeter(ExpertShape(128, 256), load("kv260").target)), workload)
    marks: list[float] = []
    start = time.process_time()
    problem = Problem(stats, meter, workload, WIDTHS, budget_bits=3.0, latency_nats=0.1)
    settings = replace(EFFORT, iterations=iterations)

    def mark(what: str, done: int, total: int) -> None:
        marks.append(time.process_time())

    reward = learn(problem, seed, settings, mark).reward
    whole, spent = time.process_time() - start, meter.seconds
    step = float(np.median(np.diff(marks)))
    memory = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e3
    return whole, step, memory, spent / whole, reward, problem.reward(solve_shared(problem))


def alone(experts: int, iterations: int, seed: int, root: Path) -> list[float]:
    """`measure` in a process of its own; kept in a file of the runs folder."""
    path = cells.cell(root, __file__, [experts, iterations, seed], "policy", "hls")
    if not path.exists():
        with ProcessPoolExecutor(1, get_context("spawn")) as pool:
            write_json(path, pool.submit(measure, experts, iterations, seed).result())
    return list(read_json(path))


@click.command(cls=Benchmark, help=__doc__)
@click.option("--quick", is_flag=True, help="Up to 512 experts, few iterations, one seed.")
@click.option("--json", "path", type=click.Path(path_type=Path, dir_okay=False), help="Write the rows to this file.")
@click.option("--runs", "root", default=RUNS, type=click.Path(path_type=Path), help="Folder of what is done.")
def main(quick: bool, path: Path | None, root: Path) -> None:
    sizes, iterations = ((64, 512), 6) if quick else ((64, 512, 2048, 6144), EFFORT.iterations)
    seeds = SEEDS[:1] if quick else SEEDS
    rows: list[Row] = []
    base: dict[str, float] = {}
    for experts in sizes:
        before = len(rows)
        used = seeds if experts < GOAL_EXPERTS else seeds[:1]  # minutes a seed: figures of one
        found = np.array([alone(experts, iterations, seed, root) for seed in used])
        means = found.mean(axis=0).tolist()
        stds: list[float | None] = found.std(axis=0, ddof=1).tolist() if len(used) > 1 else [None] * len(means)
        names = (f"search of {iterations} iterations, s", "one iteration, s", "peak memory, MB")
        case = f"{experts} experts"
        for name, mean, std in zip(names, means, stds, strict=False):
            linear = base.setdefault(name, mean) * experts / sizes[0]
            peer = f"{sizes[0]} experts, scaled"
            rows.append(Row(case, name, mean, std, linear, 0.0, peer, linear / mean, 1.0, "measured", used))
        if experts == GOAL_EXPERTS:
            ratio = GOAL_S / means[0]
            rows.append(Row(case, names[0], means[0], stds[0], GOAL_S, 0.0, "the goal", ratio, 1.0, "measured", used))
        name = "the meter's share of the search's seconds"
        rows.append(Row(case, name, means[3], stds[3], 1.0, 0.0, "the whole", 1 / means[3], None, "measured", used))
        better = float(np.exp(means[4] - means[5]))
        name, peer = "coupled reward, nats", "best set of widths"
        rows.append(Row(case, name, means[4], stds[4], means[5], stds[5], peer, better, None, "modelled", used))
        show(rows[before:])
        if path:
            write(rows, path)


if __name__ == "__main__":
    main()
