"""Prices an allocation by running its experts' kernels: on this machine, or wherever passes through them are timed.

A pass is a sample of batches, drawn from the workload's routing frequencies: in each, layer after layer, every expert
that some token wants is visited once, with all its tokens. The time of a workload is that of its batches; what is
between the kernels (router, attention, requantisation) is not in it.
"""

import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from statistics import fmean
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from wattbit.errors import WattbitError
from wattbit.plan import Allocation, Cost, Engine, ExpertId, ExpertShape, PowerSample, Provenance, Workload
from wattbit.tvm_schedules.cores import Core, host_core
from wattbit.tvm_schedules.instructions import instructions
from wattbit.tvm_schedules.toolchain import emit_objects, kernels_for, link_library
from wattbit.tvm_schedules.visits import Passes, Visit, memory_for

VISITS = 400  # of experts in a pass, about
BATCHES = (2, 64)  # fewest and most in a pass
SEED = 11
LEAST_S = 0.3  # of repeating a pass
WEIGHED_S = 3.0  # the same where it is weighed
READINGS = 5  # of a power meter, at least
CHANNEL_BYTES = 8  # bias and multiplier


@dataclass(frozen=True, eq=False)
class Routing:
    """Batches of a workload: counts [S, N], tokens that each of `experts` gets in each of them."""

    experts: tuple[ExpertId, ...]
    counts: NDArray[np.float64]


@lru_cache(maxsize=16)
def routing(workload: Workload) -> Routing:
    """The batches that the meters of this folder run, always the same ones of a workload.

    Each token takes top_k different experts of a layer, each as often as its share says: systematic sampling (Madow
    1949), under points 1 apart on a line of the experts in random order. Raises WattbitError without frequencies.
    """
    experts = tuple(sorted(expert for expert, _ in workload.frequency))
    shares = dict(workload.frequency)
    if not experts or min(shares.values()) < 0:
        raise WattbitError("the workload has no frequencies, or one below 0; run `wattbit stats` again")
    layers = sorted({expert.layer for expert in experts})
    visited = len(layers) * min(len(experts) / len(layers), workload.batch * workload.top_k)
    samples = int(np.clip(VISITS / visited, *BATCHES))
    random = np.random.default_rng(SEED)
    counts = np.zeros((samples, len(experts)))
    for layer in layers:
        mine = [i for i, expert in enumerate(experts) if expert.layer == layer]
        length = _inclusion(np.array([shares[experts[i]] for i in mine]), workload.top_k)
        order = random.random((samples * workload.batch, len(mine))).argsort(axis=1)  # [T, E]
        ends = np.cumsum(length[order], axis=1) + random.random((len(order), 1))
        taken = np.diff(np.floor(ends), axis=1, prepend=0.0)
        for s in range(samples):
            rows = slice(s * workload.batch, (s + 1) * workload.batch)
            counts[s, mine] = np.bincount(order[rows].ravel(), taken[rows].ravel(), len(mine))
    return Routing(experts, counts)


def _inclusion(share: NDArray[np.float64], top_k: int) -> NDArray[np.float64]:
    """How likely a token takes each expert: top_k times its share, at most 1, the rest given to the others."""
    if not share.sum() > 0 or top_k > len(share):
        raise WattbitError(f"{top_k} of {len(share)} experts a token cannot be routed by these frequencies")
    likely = np.minimum(share / share.sum() * top_k, 1.0)
    while likely.sum() < top_k - 1e-9:
        free = likely < 1
        room = top_k - float((~free).sum())
        likely[free] = np.minimum(np.maximum(likely[free], 1e-9) * room / np.maximum(likely[free], 1e-9).sum(), 1.0)
    return likely


def visits_of(found: Routing) -> list[Visit]:
    """The visits of a pass: batch after batch, layer after layer."""
    return [(expert, int(tokens)) for batch in found.counts for expert, tokens in enumerate(batch) if tokens]


def expert_bytes(core: Core, bits: int, shape: ExpertShape) -> int:
    """An expert's packed weights, with a bias and a multiplier a channel."""
    layout, D, H = core.layout(bits), shape.d_model, shape.d_hidden
    return layout.matrix_bytes(H, D) + layout.matrix_bytes(D, H) + CHANNEL_BYTES * (D + H)


class Runner(Protocol):
    """Where passes are run: `wattbit.tvm_schedules.visits.Passes` here, or its program on a board."""

    def times(
        self, bits: Sequence[int], d_model: int, d_hidden: int, visits: Sequence[Visit], least_s: float
    ) -> tuple[list[float], float | None]: ...


class PowerMeter(Protocol):
    """An open power meter, as those of `wattbit.board.meters`."""

    rail: str

    def samples(self) -> Sequence[PowerSample]:
        """Readings since the last call."""
        ...


@dataclass(frozen=True)
class Weighed:
    """A runner whose passes are weighed: joules are the mean power while they run, idle power included, times a pass's
    seconds. A pass must be repeated for some readings of the meter, see WEIGHED_S."""

    runner: Runner
    meter: PowerMeter

    def times(
        self, bits: Sequence[int], d_model: int, d_hidden: int, visits: Sequence[Visit], least_s: float
    ) -> tuple[list[float], float | None]:
        """Raises WattbitError when the meter gave too few readings, and what it raises when it is lost."""
        self.meter.samples()  # what was before is nobody's
        seconds, _ = self.runner.times(bits, d_model, d_hidden, visits, least_s)
        powers = [sample.power_w for sample in self.meter.samples()]
        if len(powers) < READINGS:
            raise WattbitError(
                f"the rail {self.meter.rail} gave {len(powers)} readings in {least_s} s, not {READINGS}; see to it"
            )
        return seconds, fmean(powers) * sum(seconds)


@dataclass(frozen=True)
class CoresMeter:
    """`wattbit.plan.Meter` of the experts that an allocation places on `engine`: those elsewhere take no time.

    engine: None is all experts, wherever they are placed. provenance: what the runner's times are, `simulated` on an
    emulated board. energy_j: of the packages that have a counter, what they take idle included, or None.
    """

    shape: ExpertShape
    core: Core
    runner: Runner
    engine: Engine | None = None
    provenance: Provenance = "measured"
    least_s: float = LEAST_S

    def cost(self, allocation: Allocation, workload: Workload) -> Cost:
        """Raises WattbitError for an expert without a frequency, and when nothing is placed on the engine."""
        bits = {p.expert: p.precision.weight_bits for p in allocation.placements if self.engine in (None, p.engine)}
        found = routing(workload)
        strange = set(bits) - set(found.experts)
        if strange:
            raise WattbitError(f"the workload has no frequency of {min(strange)}; run `wattbit stats` again")
        here = [i for i, expert in enumerate(found.experts) if expert in bits]
        number = {expert: k for k, expert in enumerate(here)}
        visits = [(number[expert], tokens) for expert, tokens in visits_of(found) if expert in number]
        if not visits:
            raise WattbitError("no token of the workload wants any of these experts; place some on this engine")
        widths = [bits[found.experts[i]] for i in here]
        seconds, joules = self.runner.times(widths, self.shape.d_model, self.shape.d_hidden, visits, self.least_s)
        batches = workload.tokens / workload.batch / len(found.counts)
        memory = sum(expert_bytes(self.core, each, self.shape) for each in bits.values())
        energy = None if joules is None else joules * batches
        return Cost(sum(seconds) * batches, energy, memory, self.provenance)


def build_library(core: Core, widths: Sequence[int], path: Path) -> None:
    """Write the kernels of these widths as a shared library for a core."""
    kernels = kernels_for(widths)
    with tempfile.TemporaryDirectory() as folder:
        emit_objects(kernels, core, Path(folder))
        link_library(kernels, core, Path(folder), path)


@contextmanager
def host_meter(
    shape: ExpertShape, widths: Sequence[int], experts: int, threads: int = 1, least_s: float = LEAST_S
) -> Iterator[CoresMeter]:
    """A meter of this machine's cores, for models of so many experts in all, as long as the context lasts.

    Its prices are measured; energy is None where the kernel shows no counter of the processor.
    """
    core = host_core()
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "kernels.so"
        build_library(core, widths, path)
        memory = memory_for(experts * expert_bytes(core, max(widths), shape))
        with Passes(path, core.name, threads, memory) as passes:
            yield CoresMeter(shape, core, passes, least_s=least_s)


class InstructionCounter:
    """A runner that counts instructions of an emulated core in place of seconds: at one a cycle of `clock_mhz`.

    It repeats exactly and knows nothing of pipelines, caches or memory: a proxy, `simulated`.
    """

    def __init__(self, core: Core, widths: Sequence[int], clock_mhz: float) -> None:
        self.core, self.widths, self.hertz = core, tuple(widths), clock_mhz * 1e6
        self._known: dict[tuple[int, int, int], dict[int, int]] = {}

    def times(
        self, bits: Sequence[int], d_model: int, d_hidden: int, visits: Sequence[Visit], least_s: float
    ) -> tuple[list[float], float | None]:
        """Seconds of each visit; `least_s` has no effect, for counts do not scatter."""
        for tokens in {tokens for _, tokens in visits}:
            if (d_model, d_hidden, tokens) not in self._known:
                shapes = ((d_hidden, d_model), (d_model, d_hidden))
                counted = instructions(self.core, self.widths, shapes, tokens)
                self._known[d_model, d_hidden, tokens] = {width: sum(both) for width, both in counted.items()}
        return [self._known[d_model, d_hidden, tokens][bits[expert]] / self.hertz for expert, tokens in visits], None
