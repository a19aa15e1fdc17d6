"""What an allocation costs on a card, by a formula: calibrated on measurements, or the plain roofline.

A batch through a layer takes a fixed time, and for every expert that it reaches a time that depends on its width:

    latency = sum over layers (c + sum_e a_e t[bits_e])

where a_e is the probability that a batch reaches expert e. Energy above idle has the same form. Calibration fits c and
t by least squares of relative errors; the roofline has c = 0 and t = bytes / bandwidth.
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
class Linear:
    """c for a layer, and t for a reached expert at each width; of seconds or joules."""

    layer: float
    expert: Mapping[int, float]

    def total(self, reached: Mapping[int, float], layers: int) -> float:
        return self.layer * layers + sum(self.expert[bits] * count for bits, count in reached.items())


@dataclass(frozen=True)
class GpuCostModel:
    """`wattbit.plan.Meter` by formula. reached: a_e by expert. energy is None where none was measured."""

    shape: Shape
    reached: Mapping[ExpertId, float]
    latency: Linear
    energy: Linear | None

    @classmethod
    def roofline(cls, shape: Shape, reached: Mapping[ExpertId, float], bytes_per_s: float, bits: Sequence[int]) -> Self:
        """The weights' bytes over the card's bandwidth; no energy."""
        return cls(shape, reached, Linear(0.0, {b: shape.weight_bytes(b) / bytes_per_s for b in bits}), None)

    @classmethod
    def calibrate(
        cls, shape: Shape, reached: Mapping[ExpertId, float], samples: Sequence[tuple[Allocation, float, float | None]]
    ) -> Self:
        """Fit to (allocation, seconds a batch, joules a batch). WattbitError if these do not tell widths apart."""
        widths = sorted({p.precision.weight_bits for allocation, _, _ in samples for p in allocation.placements})
        layers = len({expert.layer for expert in reached})
        rows = []
        for allocation, _, _ in samples:
            count = _reached_by_width(allocation, reached)
            rows.append([layers, *(count.get(bits, 0.0) for bits in widths)])
        features = np.array(rows)
        if np.linalg.matrix_rank(features) < features.shape[1]:
            raise WattbitError(
                f"{len(samples)} samples do not tell {len(widths)} widths apart; measure more allocations"
            )
        energies = [joules for _, _, joules in samples if joules is not None]
        latency = _fit(features, np.array([seconds for _, seconds, _ in samples]), widths)
        energy = _fit(features, np.array(energies), widths) if len(energies) == len(samples) else None
        return cls(shape, reached, latency, energy)

    def batch(self, allocation: Allocation) -> tuple[float, float | None]:
        """Seconds and joules of one batch through all layers."""
        count = _reached_by_width(allocation, self.reached)
        layers = len({expert.layer for expert in self.reached})
        return self.latency.total(count, layers), self.energy.total(count, layers) if self.energy else None

    def cost(self, allocation: Allocation, workload: Workload) -> Cost:
        seconds, joules = self.batch(allocation)
        batches = workload.tokens / workload.batch
        memory = sum(self.shape.weight_bytes(p.precision.weight_bits) for p in allocation.placements)
        return Cost(seconds * batches, None if joules is None else joules * batches, memory, "modelled")

    def to_json(self) -> dict[str, Any]:
        def plain(linear: Linear) -> dict[str, Any]:
            return {"layer": linear.layer, "expert": {str(bits): value for bits, value in linear.expert.items()}}

        return {"latency_s": plain(self.latency), "energy_j": plain(self.energy) if self.energy else None}


def _reached_by_width(allocation: Allocation, reached: Mapping[ExpertId, float]) -> dict[int, float]:
    """Expected reached experts of every width, summed over layers."""
    count: dict[int, float] = {}
    for placement in allocation.placements:
        bits = placement.precision.weight_bits
        count[bits] = count.get(bits, 0.0) + reached[placement.expert]
    return count


def _fit(features: Floats, values: Floats, widths: Sequence[int]) -> Linear:
    scaled, *_ = np.linalg.lstsq(features / values[:, None], np.ones(len(values)), rcond=None)
    return Linear(float(scaled[0]), {bits: float(value) for bits, value in zip(widths, scaled[1:], strict=True)})
