"""What an allocation asks of processor cores, and of cores beside an FPGA that read the same DDR.

An expert's visit is two kernels (up, down) over its n tokens, in tiles of 4 and single ones. Its weights are read once,
which costs by the byte, and multiplied, which costs by the product; products differ by width, for unpacking does. With
b the width,

    seconds = calls * call + bytes * byte + sum_b (single tokens' products_b * single_b + tiles' products_b * tile_b)

What reading takes while products hide it is in the products: for one token this is a roofline whose ceilings were
added, `byte` what memory takes longer. Byte and products are told apart by batches of several sizes and by the widths.
Threads, and a core's place among busy ones, are part of the constants: calibrate for each number of them.

Bytes that a cache still holds are not read: an expert's share of them falls from all to none as the bytes that were
visited since its last visit, its own included, grow from half to one and a half of the cache (a reuse distance, as in
Mattson et al., IBM Systems Journal 1970; the slope stands for replacement that is not the least recently used, and for
neighbours in the cache). The cache's size is chosen, among powers of two and none, by what explains the prices best.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from wattbit.errors import WattbitError
from wattbit.plan import Allocation, Engine, ExpertId, ExpertShape, Placement, Workload
from wattbit.policy.cost.fitting import Floats, Work

TILE = 4  # tokens that one kernel call multiplies, see wattbit.tvm_schedules.toolchain
CALL = "call, s"
BYTE = "byte, s"
DDR = "DDR byte, s"
CACHES = tuple(float(2**k) for k in range(18, 28))  # bytes: 256 KB to 128 MB
SLOPE = 0.5  # of the cache, to both sides of its size


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
    cache_bytes: float = 0.0

    @property
    def settings(self) -> Mapping[str, Any]:
        return {"cache_bytes": self.cache_bytes}

    @property
    def variants(self) -> "Sequence[CoresDemand]":
        """Without a cache first, then with each size."""
        return [replace(self, cache_bytes=size) for size in (0.0, *CACHES)]

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
        bits = self._bits(allocation, visits)
        total = self._amounts(bits, visits.mean, self._reads(bits, visits).mean(axis=0))
        return Work.total(total * workload.tokens / workload.batch)

    def launches(self, allocation: Allocation, workload: Workload) -> Floats:
        """Amounts [S, L, F] of every sampled batch in every layer."""
        visits = self.visits(workload)
        bits = self._bits(allocation, visits)
        reads, own = self._reads(bits, visits), [visits.layer == layer for layer in range(visits.layers)]
        return np.stack([self._amounts(bits, visits.each * mine[:, None], reads * mine) for mine in own], axis=1)

    def energy(self, allocation: Allocation, workload: Workload) -> Floats:
        visits = self.visits(workload)
        bits = self._bits(allocation, visits)
        products = (visits.mean[:, 1] + visits.mean[:, 2])[bits > 0].sum() * self.shape.weights
        moved = np.array([float(self._reads(bits, visits).mean(axis=0) @ self._sizes(bits)), float(products)])
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

    def _sizes(self, bits: Floats) -> Floats:
        """Bytes [N] of each expert that is here, 0 of the others."""
        return np.array([self.weight_bytes[b] if b else 0 for b in bits.tolist()], float)

    def _reads(self, bits: Floats, visits: "Visits") -> Floats:
        """How much of each expert every batch reads from memory [S, N]: 1 is all of it, once."""
        reads: Floats = visits.each[:, :, 0].copy()
        if self.cache_bytes:
            far = visits.distances(self._sizes(bits)) / self.cache_bytes
            reads[visits.sample, visits.expert] *= np.clip((far - 1 + SLOPE) / (2 * SLOPE), 0.0, 1.0)
        return reads

    def _amounts(self, bits: Floats, each: Floats, reads: Floats) -> Floats:
        """Amounts [.., F] of visits, tokens in single kernels and in tiles, each [.., N, 3], and reads [.., N]."""
        amounts = [2 * each[..., bits > 0, 0].sum(axis=-1), reads @ self._sizes(bits)]
        for width in self.widths:
            sums = each[..., bits == width, :].sum(axis=-2)
            amounts += [sums[..., 1] * self.shape.weights, sums[..., 2] * self.shape.weights]
        return np.stack(amounts, axis=-1)


@dataclass(frozen=True, eq=False)
class Visits:
    """Of every sampled batch and expert: visits, tokens multiplied one by one, tokens in tiles, each [S, N, 3].

    sample, expert: of the V visits in their order. before: the visit that was the same expert's last one, counted from
    the pass before on: they go on from V.
    """

    index: Mapping[ExpertId, int]
    layer: Floats  # [N]
    each: Floats  # [S, N, 3]
    mean: Floats  # [N, 3]
    sample: NDArray[np.intp]  # [V]
    expert: NDArray[np.intp]  # [V]
    before: NDArray[np.intp]  # [V]

    def distances(self, size: Floats) -> Floats:
        """Bytes [V] that were visited since the same expert's last visit, its own included, of experts of `size` [N].

        What was visited twice meanwhile counts twice, yet no more than all experts together.
        """
        read = np.concatenate([[0.0], np.tile(size[self.expert], 2).cumsum()])
        since = read[len(self.expert) :][: len(self.expert)] - read[self.before]
        nearest: Floats = np.minimum(since, size[np.unique(self.expert)].sum())
        return nearest

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
    sample, expert = np.nonzero(counts)  # batch after batch, layer after layer: experts are sorted
    last = np.zeros(counts.shape[1], np.intp)
    before = np.zeros(2 * len(expert), np.intp)
    for visit, own in enumerate(np.tile(expert, 2).tolist()):
        before[visit], last[own] = last[own], visit
    index = {expert: i for i, expert in enumerate(routed.experts)}
    return Visits(index, layer, each, each.mean(axis=0), sample, expert, before[len(expert) :])
