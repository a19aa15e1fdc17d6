"""What an allocation asks of processor cores, and of cores beside an FPGA that read the same DDR.

An expert's visit is two kernels (up, down) over its n tokens, in tiles of 4 and single ones. Its weights are read once,
which costs by the byte, and multiplied, which costs by the product; products differ by width, for unpacking does. With
b the width,

    seconds = calls * call + bytes * byte + sum_b (single tokens' products_b * single_b + tiles' products_b * tile_b)

What reading takes while products hide it is in the products: for one token this is a roofline whose ceilings were
added, `byte` what memory takes longer. Byte and products are told apart by batches of several sizes and by the widths.
Threads, and a core's place among busy ones, are part of the constants: calibrate for each number of them.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import lru_cache
from typing import Protocol

import numpy as np

from wattbit.errors import WattbitError
from wattbit.plan import Allocation, Engine, ExpertId, ExpertShape, Placement, Workload
from wattbit.policy.cost.fitting import Floats, Work

TILE = 4  # tokens that one kernel call multiplies, see wattbit.tvm_schedules.toolchain
CALL = "call, s"
BYTE = "byte, s"
DDR = "DDR byte, s"


class Routed(Protocol):
    """Sampled batches of a workload: counts [S, N], vectors for each expert of `experts` in each."""

    @property
    def experts(self) -> tuple[ExpertId, ...]: ...
    @property
    def counts(self) -> Floats: ...


Route = Callable[[Workload], Routed]


@dataclass(frozen=True)
class CoresDemand:
    """`wattbit.policy.cost.model.Demand` of cores.

    weight_bytes: those of an expert at each width, as they lie in memory. route: the meter's own draw of batches, so
    that model and meter price the same routing. engine: the placements that it prices, None for all, wherever they are.
    """

    shape: ExpertShape
    weight_bytes: Mapping[int, int]
    route: Route
    engine: Engine | None = None

    @property
    def widths(self) -> tuple[int, ...]:
        return tuple(sorted(self.weight_bytes))

    @property
    def names(self) -> tuple[str, ...]:
        parts = ("single product, s", "tile's product, s")
        return (CALL, BYTE, *(f"w{bits} {part}" for bits in self.widths for part in parts))

    @property
    def energy_names(self) -> tuple[str, ...]:
        return ("byte, J", "product, J")

    def work(self, allocation: Allocation, workload: Workload) -> Work:
        """One lane, one launch: amounts are means over the sampled batches, times the number of batches."""
        visits = self.visits(workload)
        total = self._amounts(allocation, visits, visits.mean)
        return Work.total(total * workload.tokens / workload.batch)

    def launches(self, allocation: Allocation, workload: Workload) -> Floats:
        """Amounts [S, L, F] of every sampled batch in every layer."""
        visits = self.visits(workload)
        own = [visits.each * (visits.layer == layer)[:, None] for layer in range(visits.layers)]
        return np.stack([self._amounts(allocation, visits, each) for each in own], axis=1)

    def energy(self, allocation: Allocation, workload: Workload) -> Floats:
        visits = self.visits(workload)
        bits = self._bits(allocation, visits)
        size = np.array([self.weight_bytes[b] if b else 0 for b in bits.tolist()])
        products = (visits.mean[:, 1] + visits.mean[:, 2])[bits > 0].sum() * self.shape.weights
        moved = np.array([float(visits.mean[:, 0] @ size), float(products)])
        return np.asarray(moved * workload.tokens / workload.batch)

    def memory_bytes(self, allocation: Allocation) -> int:
        return sum(self.weight_bytes[p.precision.weight_bits] for p in allocation.placements if self._mine(p))

    def visits(self, workload: Workload) -> "Visits":
        return _visits(self.route, workload)

    def _mine(self, placement: Placement) -> bool:
        return self.engine in (None, placement.engine)

    def _bits(self, allocation: Allocation, visits: "Visits") -> Floats:
        """Width [N] of each expert that is here, 0 of the others."""
        found = np.zeros(len(visits.index))
        for placement in allocation.placements:
            if not self._mine(placement):
                continue
            bits = placement.precision.weight_bits
            if bits not in self.weight_bytes:
                raise WattbitError(f"no costs of {bits} bits were calibrated; calibrate that width")
            if placement.expert not in visits.index:
                raise WattbitError(f"the workload has no frequency of {placement.expert}; run `wattbit stats` again")
            found[visits.index[placement.expert]] = bits
        return found

    def _amounts(self, allocation: Allocation, visits: "Visits", each: Floats) -> Floats:
        """Amounts [.., F] of visits, tokens in single kernels and tokens in tiles, each [.., N, 3]."""
        bits = self._bits(allocation, visits)
        size = np.array([self.weight_bytes[b] if b else 0 for b in bits.tolist()])
        amounts = [2 * each[..., bits > 0, 0].sum(axis=-1), each[..., 0] @ size]
        for width in self.widths:
            sums = each[..., bits == width, :].sum(axis=-2)
            amounts += [sums[..., 1] * self.shape.weights, sums[..., 2] * self.shape.weights]
        return np.stack(amounts, axis=-1)


@dataclass(frozen=True, eq=False)
class Visits:
    """Of every sampled batch and expert: visits, tokens multiplied one by one, tokens in tiles, each [S, N, 3]."""

    index: Mapping[ExpertId, int]
    layer: Floats  # [N]
    each: Floats  # [S, N, 3]
    mean: Floats  # [N, 3]

    @property
    def layers(self) -> int:
        return int(self.layer.max()) + 1


@lru_cache(maxsize=16)
def _visits(route: Route, workload: Workload) -> Visits:
    routed = route(workload)
    counts = np.asarray(routed.counts, float)  # [S, N]
    single = counts % TILE
    each = np.stack([counts > 0, single, counts - single], axis=2)
    numbers = sorted({expert.layer for expert in routed.experts})
    layer = np.array([numbers.index(expert.layer) for expert in routed.experts], float)
    return Visits({expert: i for i, expert in enumerate(routed.experts)}, layer, each, each.mean(axis=0))
