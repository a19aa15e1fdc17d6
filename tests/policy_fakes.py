"""Small worlds for the policy's tests: experts, meters and a learner whose laws are known."""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np

from wattbit.files import write_json
from wattbit.plan import Allocation, Cost, ExpertId, ExpertStats, Meter, Workload
from wattbit.policy.problem import Problem

WIDTHS = (2, 3, 4, 6, 8)
VECTOR_CYCLES = 16384  # at one product a cycle


def make_stats(experts: int = 16, layers: int = 2, seed: int = 0, noise: float = 2e-5) -> tuple[ExpertStats, ...]:
    """Experts whose damage falls by 4 a bit, grows with frequency, differs by chance, and is measured with noise."""
    random = np.random.default_rng(seed)
    found = []
    for layer in range(layers):
        for expert, share in enumerate(random.dirichlet(np.full(experts, 1.5)).tolist()):
            weight = share**0.7 * float(np.exp(random.normal(0, 0.5)))
            damage = tuple((b, 0.2 * weight * 4.0 ** (2 - b) + float(random.normal(0, noise))) for b in WIDTHS)
            found.append(
                ExpertStats(
                    expert=ExpertId(layer, expert),
                    frequency=share,
                    contribution=share * float(random.uniform(0.7, 1.3)),
                    gradient_norm=weight * float(random.uniform(0.5, 2)),
                    router_change=float(random.normal()),
                    max_variance=float(random.uniform(0.5, 2)),
                    kurtosis=float(random.normal()),
                    damage=damage,
                    tokens=int(1e4 * share),
                )
            )
    return tuple(found)


def make_workload(stats: tuple[ExpertStats, ...]) -> Workload:
    return Workload(1000, 2, tuple((s.expert, s.frequency) for s in stats))


def make_problem(stats: tuple[ExpertStats, ...], meter: Meter, **settings: float) -> Problem:
    return Problem(stats, meter, make_workload(stats), WIDTHS, **settings)  # type: ignore[arg-type]


class AdditiveMeter:
    """Time is proportional to the bits that pass, expert by expert; counts its calls."""

    def __init__(self, energy_j: float | None = None) -> None:
        self.energy_j = energy_j
        self.calls = 0

    def cost(self, allocation: Allocation, workload: Workload) -> Cost:
        self.calls += 1
        share = dict(workload.frequency)
        bits = [p.precision.weight_bits for p in allocation.placements]
        latency = sum(share[p.expert] * b for p, b in zip(allocation.placements, bits, strict=True))
        return Cost(latency * 1e-6, self.energy_j, sum(bits) * 2048, "modelled")


class SharedChipMeter:
    """One engine a width class, side by side on one chip: time is the busiest engine's, and engines share the DSPs.

    The busiest engine doubles its lanes (8 to 64) until it has none left to take or the chip is full.
    """

    def __init__(self, dsp: float = 110.0, lut: float = 24000.0) -> None:
        self.dsp = dsp
        self.lut = lut

    def cost(self, allocation: Allocation, workload: Workload) -> Cost:
        share = dict(workload.frequency)
        load: dict[int, float] = {}
        for placement in allocation.placements:
            bits = placement.precision.weight_bits
            load[bits] = load.get(bits, 0.0) + share[placement.expert]
        lanes = dict.fromkeys(load, 8)
        while True:
            busiest = max(load, key=lambda bits: load[bits] / lanes[bits])
            wider = lanes | {busiest: 2 * lanes[busiest]}
            if wider[busiest] > 64 or not self._fits(wider):
                break
            lanes = wider
        latency = max(load[b] / lanes[b] for b in load) * VECTOR_CYCLES * workload.tokens / 1e8
        memory = sum(p.precision.weight_bits for p in allocation.placements) * 2048
        return Cost(latency, None, memory, "modelled")

    def _fits(self, lanes: Mapping[int, int]) -> bool:
        dsp = sum(n / (3 if bits <= 3 else 2) for bits, n in lanes.items())
        lut = sum(2500 + n * (15 + 6 * bits) for bits, n in lanes.items())
        return dsp <= self.dsp and lut <= self.lut


class FakeLearner:
    """Knows each expert's damage, and that a fine-tuning step at a width repairs a share of it at that width only.

    `calls` names what was done; `interrupt` raises KeyboardInterrupt in the call of that number.
    """

    def __init__(self, stats: tuple[ExpertStats, ...], floor: float = 3.0) -> None:
        self.float_stats = stats
        self.state: dict[str, dict[str, float]] = {}  # of each expert: share of the damage left, by width
        self.floor = floor
        self.calls: list[str] = []
        self.interrupt: int | None = None

    def perplexity(self, allocation: Allocation | None) -> float:
        self._call("perplexity")
        rise = 0.0
        for s in self.float_stats if allocation is not None else ():
            assert allocation is not None
            rise += self._damage(s, allocation.precision(s.expert).weight_bits)
        return float(np.exp(self.floor + rise))

    def finetune(self, allocation: Allocation, steps: int, seed: int) -> None:
        self.finetune_over([allocation], steps, seed)

    def finetune_over(self, allocations: Sequence[Allocation], steps: int, seed: int) -> None:
        self._call(f"finetune {steps} {seed}" + (f" over {len(allocations)}" if len(allocations) > 1 else ""))
        for step in range(steps):
            allocation = allocations[step % len(allocations)]
            for s in self.float_stats:
                width = str(allocation.precision(s.expert).weight_bits)
                left = self.state.setdefault(str(s.expert), {})
                left[width] = left.get(width, 1.0) * 0.97

    def stats(self, weight_bits: tuple[int, ...]) -> tuple[ExpertStats, ...]:
        self._call("stats")
        assert weight_bits == WIDTHS
        records = [s.to_json() | {"damage": {b: self._damage(s, b) for b in weight_bits}} for s in self.float_stats]
        return tuple(ExpertStats.from_json(record) for record in records)

    def save(self, path: Path) -> None:
        self._call("save")
        write_json(path, self.state)

    def load(self, path: Path) -> None:
        self.state = json.loads(path.read_text())

    def _damage(self, s: ExpertStats, bits: int) -> float:
        return s.damage_at(bits) * self.state.get(str(s.expert), {}).get(str(bits), 1.0)

    def _call(self, name: str) -> None:
        self.calls.append(name)
        if self.interrupt is not None and len(self.calls) > self.interrupt:
            raise KeyboardInterrupt
