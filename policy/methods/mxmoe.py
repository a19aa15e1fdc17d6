"""MxMoE: damage and time of a layer together (Duanmu et al., ICML 2025, arXiv 2505.05799).

For each layer, min L^r T^(1-r) within a memory budget (section 4.2, equations 4 and 7): L is the sum of the Euclidean
distances of the layer's output with one expert alone quantized (equations 5 and 6), T the sum of the experts' metered
times; r = 0.75 (section 5.4; the paper takes r = 1, accuracy alone, for weight-only 2 and 3 bits).

The objective is a product, so the paper's "ILP" is none. r log L + (1 - r) log T is concave in (L, T) and both are
sums over experts, so its minimum is a vertex of the convex hull of all (L, T). The vertices are the exact knapsacks of
weighted sums (`policy.exact`); a triangle between two that cannot hold a better one is not searched. That is exact.

Chosen where the paper is silent or cannot be followed:
- Widths are per expert, not per matrix: an engine or kernel of wattbit runs an expert at one width.
- The paper profiles tiles of its GPU kernels; here an expert's time at a width is its share of its layer's tokens times
  the latency that the meter gives the whole model at that width. Widths that the hardware cannot hold are left out.
- No Hadamard rotation before GPTQ.
- The budget is per layer, as the program is.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from wattbit.errors import InfeasibleError, WattbitError
from wattbit.plan import Allocation, ExpertId, Meter, Workload
from wattbit.policy.exact import cheapest_choice
from wattbit.policy.methods.inputs import bits_for, by_layer, open_widths, recipe, reconstruction, statistics
from wattbit.policy.problem import Choice, Floats
from wattbit.recipe import Budget, Quantizer, Recipe, Subject

Point = tuple[float, float]  # damage, time

TINY = 1e-12  # of the least damage: log 0 is no number


@dataclass(frozen=True)
class MxMoE:
    """meter, workload: what times an expert. accuracy: r."""

    meter: Meter
    workload: Workload
    accuracy: float = 0.75
    quantizer: Quantizer = "gptq"
    name = "mxmoe"

    def __post_init__(self) -> None:
        if not 0 <= self.accuracy <= 1:
            raise WattbitError(f"the weight of accuracy must be within 0..1, not {self.accuracy}")

    def decide(self, subject: Subject, budget: Budget, seed: int) -> Recipe:
        """As `Method.decide`; asks the meter for one allocation a width."""
        stats = statistics(subject)
        experts = [s.expert for s in stats]
        latency = self._latency(experts, open_widths(self.name, budget), budget)
        widths = np.array(open_widths(self.name, budget, tuple(latency)))
        error = reconstruction(subject, experts, widths.tolist(), self.quantizer)
        time = np.outer([s.frequency for s in stats], [latency[int(bits)] for bits in widths])
        chosen = np.zeros(len(experts), dtype=np.int64)
        for members in by_layer(experts):
            bits = bits_for(budget, len(members))
            chosen[members] = least_product(error[members], time[members], widths, bits, self.accuracy)
        return recipe(self.name, experts, widths[chosen].tolist(), self.quantizer, budget)

    def _latency(self, experts: Sequence[ExpertId], widths: Sequence[int], budget: Budget) -> dict[int, float]:
        """Seconds of the workload at each width that the hardware can hold."""
        found = {}
        for bits in widths:
            try:
                found[bits] = self.meter.cost(
                    Allocation.of(dict.fromkeys(experts, bits), budget.act_bits), self.workload
                )
            except InfeasibleError:
                continue
        if not found:
            raise WattbitError(f"the meter's hardware holds all experts at none of the widths {list(widths)}")
        return {bits: cost.latency_s for bits, cost in found.items()}


def least_product(damage: Floats, time: Floats, widths: NDArray[np.int64], bits: int, accuracy: float) -> Choice:
    """Widths (indices) [E] with the least L^r T^(1-r), where damage and time [E, K] sum to L and T.

    Raises WattbitError naming the smallest feasible budget.
    """
    unit = np.array([float(damage.sum(axis=0).max()) or 1.0, float(time.sum(axis=0).max()) or 1.0])
    damage, time = damage / unit[0], time / unit[1]
    rows = np.arange(len(damage))

    def at(choice: Choice) -> Point:
        return float(damage[rows, choice].sum()), float(time[rows, choice].sum())

    def value(point: Point) -> float:
        return accuracy * float(np.log(max(point[0], TINY))) + (1 - accuracy) * float(np.log(max(point[1], TINY)))

    accurate, fast = cheapest_choice(damage, widths, bits), cheapest_choice(time, widths, bits)
    best = min(accurate, fast, key=lambda one: value(at(one)))

    def search(left: Choice, right: Choice, corner: Point) -> None:
        """Look between two vertices of the hull; the hull there is inside the triangle with `corner`."""
        nonlocal best
        a, b = at(left), at(right)
        across = (a[1] - b[1], b[0] - a[0])  # the weights at which a and b weigh the same
        if min(across) <= 0 or value(corner) >= value(at(best)):
            return
        middle = cheapest_choice(across[0] * damage + across[1] * time, widths, bits)
        m = at(middle)
        weight = across[0] * m[0] + across[1] * m[1]
        if weight >= (across[0] * a[0] + across[1] * a[1]) * (1 - 1e-9):
            return
        best = min(best, middle, key=lambda one: value(at(one)))
        search(left, middle, _crossing(a, corner, across, weight))
        search(middle, right, _crossing(b, corner, across, weight))

    search(accurate, fast, (at(accurate)[0], at(fast)[1]))
    return best


def _crossing(end: Point, corner: Point, across: Point, weight: float) -> Point:
    """Where the line from a vertex to the corner meets the line of points of this weight."""
    start = across[0] * end[0] + across[1] * end[1]
    stop = across[0] * corner[0] + across[1] * corner[1]
    part = (start - weight) / (start - stop) if start > stop else 1.0
    part = min(max(part, 0.0), 1.0)
    return end[0] + part * (corner[0] - end[0]), end[1] + part * (corner[1] - end[1])
