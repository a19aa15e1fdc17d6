"""The price of an allocation by the planner's model, thousands of times a second."""

from collections import Counter

from wattbit.errors import InfeasibleError
from wattbit.hls.planner import cycles, plan
from wattbit.plan import Allocation, Cost, ExpertShape, Precision, Target, Workload


class ModelledMeter:
    """Prices allocations of experts of one shape on one target; nothing is measured or simulated.

    latency_s is the planned engines' time for the workload, memory_bytes what the experts' weights and requant words
    take when packed. energy_j is None: the energy models are `policy.cost`'s.
    """

    def __init__(self, shape: ExpertShape, target: Target) -> None:
        self.shape = shape
        self.target = target

    def cost(self, allocation: Allocation, workload: Workload) -> Cost:
        """Modelled cost. Raises InfeasibleError when even the smallest engines do not fit the target."""
        expected = cycles(allocation, self.shape, self.target, workload)
        if expected is None:
            short = ", ".join(plan(allocation, self.shape, self.target, workload).excess)
            raise InfeasibleError(
                f"{self.target.name} cannot hold the allocation ({short}); use fewer bits or another target"
            )
        widths = Counter(placement.precision for placement in allocation.placements)
        memory = sum(number * memory_bytes(precision, self.shape) for precision, number in widths.items())
        return Cost(expected / ((self.target.clock_mhz or 0.0) * 1e6), None, memory, "modelled")


def memory_bytes(precision: Precision, shape: ExpertShape) -> int:
    """Bytes of one expert: its weights, packed, and a requant word of 4 bytes (multiplier, shift) a channel."""
    return -(-shape.weights * precision.weight_bits // 8) + 4 * (shape.d_model + shape.d_hidden)
