"""How long a policy takes on large models: one iteration and one whole search at 64 to 6144 experts, time and memory.

    python benchmarks/policy_scale.py [--quick] [--json FILE]

Statistics are drawn at random (their values do not matter for time), 64 experts a layer; the meter is the planner's
model of the KV260. Every size runs in a process of its own, for its peak memory. A ratio above 1 means better than
growing linearly from 64 experts, or, for a search at 2048 experts, faster than the goal of 600 s.
"""

import resource
import time
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path

import click
import numpy as np
from rows import Row, show, write

from wattbit.board.targets import load
from wattbit.hls.meter import ModelledMeter
from wattbit.plan import ExpertId, ExpertShape, ExpertStats, Workload
from wattbit.policy.agent import AgentSettings, train
from wattbit.policy.environment import AllocationEnv
from wattbit.policy.problem import Problem

LAYER = 64
WIDTHS = (2, 3, 4, 6, 8)
GOAL_EXPERTS, GOAL_S = 2048, 600.0
SEEDS = (0, 1, 2)


def statistics(experts: int, seed: int) -> tuple[ExpertStats, ...]:
    """Experts whose damage falls by 4 a bit, busier ones' more."""
    random = np.random.default_rng(seed)
    found = []
    for layer in range(-(-experts // LAYER)):
        shares = random.dirichlet(np.full(LAYER, 1.5))
        for expert, share in enumerate(shares.tolist()):
            weight = share * float(np.exp(random.normal(0, 0.5)))
            damage = tuple((bits, 0.2 * weight * 4.0 ** (2 - bits)) for bits in WIDTHS)
            more = random.normal(0, 1, 4).tolist()
            found.append(ExpertStats(ExpertId(layer, expert), share, share, abs(more[0]), *more[1:], damage, 100))
    return tuple(found)


def measure(experts: int, iterations: int, seed: int) -> tuple[float, float, float]:
    """Seconds of the whole search and of one of its iterations, and the process's peak memory in MB."""
    stats = statistics(experts, seed)
    meter = ModelledMeter(ExpertShape(128, 256), load("kv260").target)
    workload = Workload(1000, 2, tuple((s.expert, s.frequency) for s in stats))
    marks: list[float] = []
    start = time.perf_counter()
    problem = Problem(stats, meter, workload, WIDTHS, budget_bits=3.0, latency_nats=0.02)
    settings = AgentSettings(iterations=iterations)
    train(AllocationEnv(problem), seed, settings, lambda *_: marks.append(time.perf_counter()))
    whole = time.perf_counter() - start
    step = (marks[-1] - marks[0]) / (len(marks) - 1)
    return whole, step, resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e3


def alone(call: Callable[..., tuple[float, float, float]], *arguments: int) -> tuple[float, float, float]:
    with ProcessPoolExecutor(1, get_context("spawn")) as pool:
        return pool.submit(call, *arguments).result()


@click.command(help=__doc__)
@click.option("--quick", is_flag=True, help="Up to 512 experts, few iterations, one seed.")
@click.option("--json", "path", type=click.Path(path_type=Path, dir_okay=False), help="Write the rows to this file.")
def main(quick: bool, path: Path | None) -> None:
    sizes, iterations = ((64, 512), 10) if quick else ((64, 512, 2048, 6144), AgentSettings().iterations)
    seeds = SEEDS[:1] if quick else SEEDS
    rows: list[Row] = []
    base: dict[str, float] = {}
    for experts in sizes:
        before = len(rows)
        # the largest takes minutes a seed: its figures are of one
        used = seeds if experts <= GOAL_EXPERTS else seeds[:1]
        found = np.array([alone(measure, experts, iterations, seed) for seed in used])
        means, stds = found.mean(axis=0), found.std(axis=0, ddof=1) if len(used) > 1 else np.zeros(3)
        names = (f"search of {iterations} iterations, s", "one iteration, s", "peak memory, MB")
        for name, mean, std in zip(names, means.tolist(), stds.tolist(), strict=True):
            linear = base.setdefault(name, mean) * experts / sizes[0]
            case, peer = f"{experts} experts", f"{sizes[0]} experts, scaled"
            rows.append(Row(case, name, mean, std, linear, 0.0, peer, linear / mean, 1.0, "measured", used))
        if experts == GOAL_EXPERTS:
            mean, std = float(means[0]), float(stds[0])
            rows.append(Row(case, names[0], mean, std, GOAL_S, 0.0, "the goal", GOAL_S / mean, 1.0, "measured", used))
        show(rows[before:])
    if path:
        write(rows, path)


if __name__ == "__main__":
    main()
