"""What the cost in the policy's loop may be: this machine's cores measured, a model of them, or both in turn.

    python benchmarks/policy_measured.py [--quick] [--json FILE]

Two layers of 16 experts of 512 to 1024, statistics drawn at random (`policy_scale`), one token at a time on one thread
of this machine. The same search with the same number of prices, four ways:

- `measured`: every allocation is run and timed (TIMED_S each);
- `every 10th`: a calibrated model, of which every tenth price is measured and corrects it (`policy.cost.hybrid`);
- `model`: the calibrated model alone;
- `bits`: time taken for proportional to the bits that pass, which needs no calibration.

What each finds, and the exact optimum of the damage table, is then measured alike: the least of JUDGED passes of each,
in turns. A ratio is exp(difference of the rewards so measured), above 1 where `measured` is better. Seconds are of all
prices, without the calibration's (once for all searches). Run it on a quiet machine.
"""

import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from statistics import fmean, stdev
from tempfile import TemporaryDirectory

import click
import numpy as np
from policy_scale import LAYER, statistics
from policy_vs_controls import Bits
from rows import Benchmark, Row, show, write
from scipy.stats import ttest_rel

from wattbit.plan import Allocation, Cost, ExpertShape, ExpertStats, Meter, Workload
from wattbit.policy.agent import AgentSettings, train
from wattbit.policy.cost.calibration import Origin, calibrate, design, mixed
from wattbit.policy.cost.cores import CoresDemand
from wattbit.policy.cost.hybrid import HybridMeter
from wattbit.policy.cost.model import CostModel
from wattbit.policy.environment import AllocationEnv
from wattbit.policy.exact import solve
from wattbit.policy.problem import Problem
from wattbit.tvm_schedules.host_meter import CoresMeter, expert_bytes, host_meter, routing

SHAPE = ExpertShape(512, 1024)
EXPERTS, LAYERS = 16, 2
WIDTHS = (2, 3, 4, 6, 8)
BUDGET = 3.0  # mean bits
NATS = 0.1  # for the whole time of uniform 8 bit
TIMED_S = 0.03  # of a price
BATCHES = (1, 4, 16)  # calibrated on
ROUNDS = 6  # of the calibration
EVERY = 10
JUDGED = 12
SEEDS = (0, 1, 2)
EFFORT = AgentSettings(iterations=24, gate_draws=4, choice_draws=4, local=2.0)
OURS = "measured"


class Timed:
    """A meter, with the seconds that it took in all."""

    def __init__(self, meter: Meter) -> None:
        self.meter, self.seconds, self.prices = meter, 0.0, 0

    def cost(self, allocation: Allocation, workload: Workload) -> Cost:
        start = time.monotonic()
        cost = self.meter.cost(allocation, workload)
        self.seconds += time.monotonic() - start
        self.prices += 1
        return cost


def world(seed: int) -> tuple[tuple[ExpertStats, ...], Workload]:
    """Drawn statistics of LAYERS layers of EXPERTS, and one token at a time."""
    stats = tuple(s for s in statistics(LAYERS * LAYER, seed) if s.expert.expert < EXPERTS)
    return stats, Workload(1000, 2, tuple((s.expert, s.frequency) for s in stats), batch=1)


def calibrated(meter: CoresMeter, load: Workload) -> tuple[CostModel, float, float]:
    """A model of the meter, the median error of its held-out prices, and the seconds that it took."""
    experts = [e for e, _ in load.frequency]
    demand = CoresDemand(SHAPE, {bits: expert_bytes(meter.core, bits, SHAPE) for bits in WIDTHS}, routing)
    loads = [replace(load, batch=batch) for batch in BATCHES]
    samples = design(experts, WIDTHS, loads, 20, 1, "host"), mixed(experts, WIDTHS, [load], 10, 2, "host")
    start = time.monotonic()
    found = calibrate(demand, [meter] * ROUNDS, *samples, Origin("cores", "host", "", "", {}))
    return found.model(demand), found.latency_errors.median, time.monotonic() - start


def judged(meter: Meter, problem: Problem, allocations: dict[str, Allocation]) -> dict[str, float]:
    """The reward of each by the least of JUDGED measurements, taken in turns with those of uniform 8 bit."""
    eight = Allocation.of(dict.fromkeys(problem.experts, 8))
    least = dict.fromkeys([*allocations, "eight"], np.inf)
    for _ in range(JUDGED):
        for name, allocation in (allocations | {"eight": eight}).items():
            least[name] = min(least[name], meter.cost(allocation, problem.workload).latency_s)
    damage = {name: float(problem.damages(problem.choice(one)).sum()) for name, one in allocations.items()}
    return {name: -damage[name] - NATS * least[name] / least["eight"] for name in allocations}


def compare(case: str, metric: str, ours: Sequence[float], peer: str, theirs: Sequence[float], ratio: float) -> Row:
    p = float(ttest_rel(ours, theirs).pvalue) if "reward" in metric and not np.allclose(ours, theirs) else None
    means, stds = (fmean(ours), fmean(theirs)), (stdev(ours), stdev(theirs))
    return Row(case, metric, means[0], stds[0], means[1], stds[1], peer, ratio, None, "measured", SEEDS, p)


@click.command(cls=Benchmark, help=__doc__)
@click.option("--quick", is_flag=True, help="A few iterations: figures that mean nothing.")
@click.option("--json", "path", type=click.Path(path_type=Path, dir_okay=False), help="Write the rows to this file.")
def main(quick: bool, path: Path | None) -> None:
    effort = replace(EFFORT, iterations=3) if quick else EFFORT
    rewards: dict[str, list[float]] = {}
    seconds: dict[str, list[float]] = {}
    measured: dict[str, list[float]] = {}
    with (
        TemporaryDirectory() as folder,
        host_meter(SHAPE, WIDTHS, EXPERTS * LAYERS, least_s=TIMED_S) as real,
    ):
        model, off, spent = calibrated(real, world(0)[1])
        click.echo(f"the model is off by {off:.1%} (median of held-out prices); calibrated in {spent:.0f} s", err=True)
        for seed in SEEDS:
            stats, load = world(seed)
            timers = {name: Timed(real) for name in (OURS, "every 10th")}
            hybrid = HybridMeter(model, timers["every 10th"], EVERY, Path(folder) / f"{seed}.jsonl")
            ways: dict[str, Meter] = {OURS: timers[OURS], "every 10th": hybrid, "model": model, "bits": Bits()}
            chosen: dict[str, Allocation] = {}
            for name, meter in ways.items():
                timed = Timed(meter)
                problem = Problem(stats, timed, load, WIDTHS, budget_bits=BUDGET, latency_nats=NATS)
                chosen[name] = problem.allocation(train(AllocationEnv(problem), seed, effort).choice)
                seconds.setdefault(name, []).append(timed.seconds)
                measured.setdefault(name, []).append(float(timers[name].prices if name in timers else 0))
            chosen["exact"] = problem.allocation(solve(problem))
            for name, reward in judged(real, problem, chosen).items():
                rewards.setdefault(name, []).append(reward)
            click.echo(f"seed {seed}: { {name: values[-1] for name, values in rewards.items()} }", err=True)
    case = f"{LAYERS} x {EXPERTS} experts 512-1024, {BUDGET} bits, {effort.evaluations} prices"
    rows = []
    for peer in [name for name in rewards if name != OURS]:
        ratio = float(np.exp(fmean(rewards[OURS]) - fmean(rewards[peer])))
        rows.append(compare(case, "reward as measured, nats", rewards[OURS], peer, rewards[peer], ratio))
    for peer in [name for name in seconds if name != OURS]:
        ratio = fmean(seconds[peer]) / fmean(seconds[OURS])
        rows.append(compare(case, "seconds of all prices", seconds[OURS], peer, seconds[peer], ratio))
        ratio = fmean(measured[peer]) / fmean(measured[OURS])
        rows.append(compare(case, "prices measured", measured[OURS], peer, measured[peer], ratio))
    for what, value in (("error of the model's held-out prices, median", off), ("seconds of the calibration", spent)):
        rows.append(Row(case, what, value, 0.0, value, 0.0, "itself, once", 1.0, None, "measured", SEEDS[:1]))
    show(rows)
    if path:
        write(rows, path)


if __name__ == "__main__":
    main()
