"""What an allocation asks of FPGA engines, alone or beside cores that read the same DDR.

Cycles come from whoever plans the engines (`wattbit.hls.planner`), which this folder does not see: it takes a function.
What the model adds is what a board adds: seconds a cycle that is not quite its clock's, the software and the registers
of a launch, and the DDR that two readers share.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from wattbit.plan import Allocation, Precision, Workload
from wattbit.policy.cost.cores import BYTE, DDR, CoresDemand
from wattbit.policy.cost.fitting import Floats, Work

CYCLE = "cycle, s"
LAUNCH = "launch, s"


@dataclass(frozen=True)
class EngineWork:
    """A batch through all layers on the engines that an allocation gets.

    cycles: expected clock cycles. launches: how many, one a layer that has work. read_bytes: streamed weights.
    products: multiplied; bit_products: the same, times weight and activation bits.
    """

    cycles: float
    launches: float
    read_bytes: float
    products: float
    bit_products: float


Plan = Callable[[Allocation, Workload], EngineWork]
"""Raises InfeasibleError when the target cannot hold the allocation."""


@dataclass(frozen=True)
class FpgaDemand:
    """`wattbit.policy.cost.model.Demand` of the engines alone. bytes_of: an expert's at a precision."""

    plan: Plan
    bytes_of: Callable[[Precision], int]

    @property
    def variants(self) -> "Sequence[FpgaDemand]":
        return [self]

    @property
    def settings(self) -> Mapping[str, Any]:
        return {}

    @property
    def names(self) -> tuple[str, ...]:
        return (CYCLE, LAUNCH)

    @property
    def energy_names(self) -> tuple[str, ...]:
        return ("byte, J", "product, J", "bit product, J")

    def work(self, allocation: Allocation, workload: Workload) -> Work:
        batch = self.plan(allocation, workload)
        return Work.total(np.array([batch.cycles, batch.launches]) * workload.tokens / workload.batch)

    def energy(self, allocation: Allocation, workload: Workload) -> Floats:
        batch = self.plan(allocation, workload)
        moved = np.array([batch.read_bytes, batch.products, batch.bit_products])
        return np.asarray(moved * workload.tokens / workload.batch)

    def memory_bytes(self, allocation: Allocation) -> int:
        return sum(self.bytes_of(p.precision) for p in allocation.placements if p.engine == "fpga")


@dataclass(frozen=True)
class SharedDemand:
    """Engines and cores at once: each layer takes as long as the slower of them, or as all their bytes take from DDR.

    Experts placed on `fpga` are the engines', those on the cores' own engine the cores'. Batches are the cores' sampled
    ones; the engines' cycles, which are known for a whole batch, are spread evenly over its layers.
    """

    engines: FpgaDemand
    cores: CoresDemand

    @property
    def variants(self) -> "Sequence[SharedDemand]":
        return [self]

    @property
    def settings(self) -> Mapping[str, Any]:
        return self.cores.settings

    @property
    def names(self) -> tuple[str, ...]:
        return (*self.engines.names, *self.cores.names, DDR)

    @property
    def energy_names(self) -> tuple[str, ...]:
        return (*self.engines.energy_names, *(f"core {name}" for name in self.cores.energy_names))

    def work(self, allocation: Allocation, workload: Workload) -> Work:
        launches = self.cores.launches(allocation, workload)  # [S, L, F]
        samples, layers, width = launches.shape
        own = len(self.engines.names)
        amounts = np.zeros((samples, layers, 3, own + width + 1))
        read = 0.0
        if any(p.engine == "fpga" for p in allocation.placements):
            batch = self.engines.plan(allocation, workload)
            amounts[:, :, 0, :own] = np.array([batch.cycles, batch.launches]) / layers
            read = batch.read_bytes / layers
        amounts[:, :, 1, own:-1] = launches
        amounts[:, :, 2, -1] = read + launches[:, :, self.cores.names.index(BYTE)]
        times = np.full(samples * layers, workload.tokens / workload.batch / samples)
        return Work(amounts.reshape(samples * layers, 3, -1), times)

    def energy(self, allocation: Allocation, workload: Workload) -> Floats:
        found = np.zeros(len(self.engines.energy_names))
        if any(p.engine == "fpga" for p in allocation.placements):
            found = self.engines.energy(allocation, workload)
        return np.concatenate([found, self.cores.energy(allocation, workload)])

    def memory_bytes(self, allocation: Allocation) -> int:
        return self.engines.memory_bytes(allocation) + self.cores.memory_bytes(allocation)
