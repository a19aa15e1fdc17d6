"""What an allocation costs on a card, by a formula: calibrated on measurements, or the plain roofline.

A batch takes, for every expert that it reaches, a time that depends on the expert's width:

    latency = sum over layers and experts of a_e t[bits_e]

where a_e is the probability that a batch reaches expert e. What a launch costs whatever the widths is part of every t:
a workload reaches the same number of experts at all allocations. Energy above idle has the same form. Calibration fits
t by least squares of relative errors; in the roofline t is bytes / bandwidth.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Self

import numpy as np
from numpy.typing import NDArray

from wattbit.errors import WattbitError
from wattbit.plan import Allocation, Cost, ExpertId, Workload
from wattbit.tvm_schedules.gpu.bank import Shape

Floats = NDArray[np.float64]


@dataclass(frozen=True)
class GpuCostModel:
    """`wattbit.plan.Meter` by formula.

    reached: a_e by expert. latency_s, energy_j: t by width, of a batch; energy_j is None where none was measured.
    """

    shape: Shape
    reached: Mapping[ExpertId, float]
    latency_s: Mapping[int, float]
    energy_j: Mapping[int, float] | None

    @classmethod
    def roofline(cls, shape: Shape, reached: Mapping[ExpertId, float], bytes_per_s: float, bits: Sequence[int]) -> Self:
        """The weights' bytes over the card's bandwidth; no energy."""
        return cls(shape, reached, {b: shape.weight_bytes(b) / bytes_per_s for b in bits}, None)

    @classmethod
    def calibrate(
        cls, shape: Shape, reached: Mapping[ExpertId, float], samples: Sequence[tuple[Allocation, float, float | None]]
    ) -> Self:
        """Fit to (allocation, seconds a batch, joules a batch). WattbitError if these do not tell widths apart."""
        widths = sorted({p.precision.weight_bits for allocation, _, _ in samples for p in allocation.placements})
        counts = [_reached_by_width(allocation, reached) for allocation, _, _ in samples]
        features = np.array([[count.get(bits, 0.0) for bits in widths] for count in counts])
        if np.linalg.matrix_rank(features) < len(widths):
            raise WattbitError(f"{len(samples)} samples do not tell {len(widths)} widths apart; measure more of them")
        energies = [joules for _, _, joules in samples if joules is not None]
        latency = _fit(features, np.array([seconds for _, seconds, _ in samples]), widths)
        energy = _fit(features, np.array(energies), widths) if len(energies) == len(samples) else None
        return cls(shape, reached, latency, energy)

    def batch(self, allocation: Allocation) -> tuple[float, float | None]:
        """Seconds and joules of one batch through all layers."""
        count = _reached_by_width(allocation, self.reached)
        return _total(self.latency_s, count), _total(self.energy_j, count) if self.energy_j else None

    def cost(self, allocation: Allocation, workload: Workload) -> Cost:
        seconds, joules = self.batch(allocation)
        batches = workload.tokens / workload.batch
        memory = sum(self.shape.weight_bytes(p.precision.weight_bits) for p in allocation.placements)
        return Cost(seconds * batches, None if joules is None else joules * batches, memory, "modelled")

    def to_json(self) -> dict[str, Any]:
        """Microseconds and millijoules that a reached expert takes, by width."""
        return {
            "us": {str(bits): 1e6 * value for bits, value in self.latency_s.items()},
            "mj": {str(bits): 1e3 * value for bits, value in self.energy_j.items()} if self.energy_j else None,
        }


def _total(table: Mapping[int, float], count: Mapping[int, float]) -> float:
    return sum(table[bits] * reached for bits, reached in count.items())


def _reached_by_width(allocation: Allocation, reached: Mapping[ExpertId, float]) -> dict[int, float]:
    """Expected reached experts of every width, summed over layers."""
    count: dict[int, float] = {}
    for placement in allocation.placements:
        bits = placement.precision.weight_bits
        count[bits] = count.get(bits, 0.0) + reached[placement.expert]
    return count


def _fit(features: Floats, values: Floats, widths: Sequence[int]) -> dict[int, float]:
    found, *_ = np.linalg.lstsq(features / values[:, None], np.ones(len(values)), rcond=None)
    return {bits: float(value) for bits, value in zip(widths, found, strict=True)}
