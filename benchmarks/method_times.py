"""How long each method takes to decide, from 384 to 6144 experts, once the model's statistics are there.

    python benchmarks/method_times.py [--quick] [--json FILE]

Statistics are drawn at random, 64 experts a layer, at 3 mean bits of the widths 2, 3, 4, 6 and 8; only the decision is
timed, on one core. Times are measured; what the methods ask of the model before (damage, reconstruction) is the model's
time, and DMPQ's is in `policy_scale.py`. A ratio above 1 means better than growing linearly with the experts.
"""

import time
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from statistics import fmean, stdev

import click
import numpy as np
from rows import Benchmark, Row, show, write

from wattbit.plan import Allocation, Cost, ExpertId, ExpertStats, Workload
from wattbit.policy.methods.registry import METHODS, method
from wattbit.recipe import Budget, Quantizer, Recipe, Subject

LAYER = 64  # experts
WIDTHS = (2, 3, 4, 6, 8)
CHANNELS = 64
WEIGHTS = 2 * CHANNELS * 128  # of an expert
SEEDS = (0, 1, 2)


@dataclass(frozen=True)
class Drawn:
    """A `Subject` of random experts, busier ones with more damage; a compensator costs 3 bits a value."""

    table: tuple[ExpertStats, ...]
    activity: Mapping[ExpertId, tuple[float, ...]]
    top_k: int = 2

    @property
    def experts(self) -> tuple[ExpertId, ...]:
        return tuple(s.expert for s in self.table)

    def stats(self, weight_bits: tuple[int, ...], quantizer: Quantizer = "rtn") -> tuple[ExpertStats, ...]:
        return tuple(replace(s, damage=tuple(d for d in s.damage if d[0] in weight_bits)) for s in self.table)

    def reconstruction(
        self, weight_bits: tuple[int, ...], quantizer: Quantizer = "rtn"
    ) -> Mapping[ExpertId, Mapping[int, float]]:
        return {s.expert: {bits: s.damage_at(bits) ** 0.5 for bits in weight_bits} for s in self.table}

    def gate_ratios(self) -> tuple[float, ...]:
        return (0.5,) * (self.experts[-1].layer + 1)

    def channel_activity(self) -> Mapping[ExpertId, tuple[float, ...]]:
        return self.activity

    def perplexity(self, recipe: Recipe | None) -> float:
        raise NotImplementedError("the time of a decision needs no perplexity")

    def memory_bytes(self, recipe: Recipe | None) -> int:
        bits = 16 * WEIGHTS * len(self.table)
        if recipe is not None:
            bits = sum(p.precision.weight_bits for p in recipe.allocation.placements) * WEIGHTS
            bits += 2 * 3 * (CHANNELS + 128) * sum(recipe.ranks.values())
        return bits // 8


class Bits:
    """Time proportional to the bits that pass."""

    def cost(self, allocation: Allocation, workload: Workload) -> Cost:
        share = dict(workload.frequency)
        latency = sum(share[p.expert] * p.precision.weight_bits for p in allocation.placements)
        return Cost(latency * 1e-6, None, 1, "modelled")


def subject(experts: int, seed: int) -> Drawn:
    random = np.random.default_rng(seed)
    table = []
    for layer in range(experts // LAYER):
        for expert, share in enumerate(random.dirichlet(np.full(LAYER, 1.5)).tolist()):
            weight, fall = share * float(np.exp(random.normal(0, 0.5))), float(random.uniform(2.5, 5))
            damage = tuple((bits, 0.2 * weight * fall ** (2.0 - bits)) for bits in WIDTHS)
            change, variance, kurtosis = (
                float(random.normal()),
                float(random.uniform(1, 4)),
                float(random.uniform(-1, 9)),
            )
            name = ExpertId(layer, expert)
            table.append(
                ExpertStats(name, share, share, weight, change, variance, kurtosis, damage, round(1e5 * share))
            )
    activity = {s.expert: tuple(random.gamma(2.0, size=CHANNELS).tolist()) for s in table}
    return Drawn(tuple(table), activity)


def seconds(name: str, model: Subject, seed: int) -> float:
    workload = Workload(1000, model.top_k, tuple((s.expert, s.frequency) for s in model.stats(())))
    found = method(name, Bits(), workload)
    start = time.perf_counter()
    found.decide(model, Budget(3.0, WIDTHS), seed)
    return time.perf_counter() - start


@click.command(cls=Benchmark)
@click.option("--quick", is_flag=True, help="384 and 1536 experts only.")
@click.option("--json", "path", type=click.Path(path_type=Path), help="Where to write the rows.")
def main(quick: bool, path: Path | None) -> None:
    """Seconds of each method's decision by number of experts."""
    sizes = (384, 1536) if quick else (384, 1536, 6144)
    models = {(size, seed): subject(size, seed) for size in sizes for seed in SEEDS}
    rows: list[Row] = []
    for name in (name for name in METHODS if name != "dmpq"):
        taken = {size: [seconds(name, models[size, seed], seed) for seed in SEEDS] for size in sizes}
        least = [size / sizes[0] * one for size in sizes[1:] for one in taken[sizes[0]]]
        for k, size in enumerate(sizes):
            linear = taken[size] if k == 0 else least[(k - 1) * len(SEEDS) : k * len(SEEDS)]
            rows.append(
                Row(
                    case=name,
                    metric=f"seconds of a decision for {size} experts",
                    ours=fmean(taken[size]),
                    ours_std=stdev(taken[size]),
                    peer=fmean(linear),
                    peer_std=stdev(linear),
                    peer_name=f"linear growth from {sizes[0]}",
                    ratio=fmean(linear) / fmean(taken[size]),
                    goal=None,
                    provenance="measured",
                    seeds=SEEDS,
                )
            )
        show(rows[-len(sizes) :])
    if path is not None:
        write(rows, path)


if __name__ == "__main__":
    main()
