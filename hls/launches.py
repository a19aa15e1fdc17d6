"""What a batch of tokens asks of an engine plan: for a plan as it stands, under any routing, and for cost models.

`wattbit.hls.planner` prices thousands of plans by a sum; here a plan's launches are followed packet by packet
(`wattbit.hls.cycles`), which is slower and within a few per cent of RTL simulation.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from wattbit.errors import WattbitError
from wattbit.hls.cycles import Port, Timing, launch
from wattbit.hls.engine_plan import EnginePlan
from wattbit.hls.resources import Scales
from wattbit.plan import ExpertId
from wattbit.shell import WORD_BITS, interleaved

Batches = NDArray[np.floating[Any]]  # [S, N], vectors for each expert in each batch

Launch = tuple[NDArray[np.int64], NDArray[np.int64]]
"""Engine and set of every packet."""


def launches(plan: EnginePlan, experts: Sequence[ExpertId], counts: Batches) -> list[Launch]:
    """The packets of every batch's launches, one a layer that any of the plan's experts is wanted in."""
    place = {e: (i, k) for i, spec in enumerate(plan.classes) for k, e in enumerate(spec.experts)}
    layers = sorted({expert.layer for expert in experts})
    found = []
    for batch in counts:
        for layer in layers:
            packets = [
                place[expert]
                for expert, vectors in zip(experts, batch, strict=True)
                if expert.layer == layer and expert in place
                for _ in range(int(vectors))
            ]
            if packets:
                engine, index = np.array(packets).T
                found.append((engine, index))
    return found


def timings(plan: EnginePlan) -> list[Timing]:
    return [Timing.of(s, plan.shape, Scales.expected(s.precision, plan.shape).lane_bits) for s in plan.classes]


def cycles(plan: EnginePlan, packets: Sequence[Launch], port: Port | None = None) -> float:
    """Modelled clock cycles of launches, one after the other."""
    own = timings(plan)
    costs = np.array([(timing.per_vector, timing.load) for timing in own])
    total = 0.0
    for engine, index in packets:
        order = interleaved(engine, index, costs)
        total += launch(own, engine[order].tolist(), index[order].tolist(), plan.shape.d_model // 8, port)
    return total


@dataclass(frozen=True)
class Moved:
    """Of one batch, expected: bytes of streamed weights, products, and those times weight and activation bits."""

    read_bytes: float
    products: float
    bit_products: float


def moved(plan: EnginePlan, experts: Sequence[ExpertId], counts: Batches) -> Moved:
    """What a batch moves and multiplies, the mean over the sampled ones. WattbitError for an expert without a count."""
    index = {expert: i for i, expert in enumerate(experts)}
    vectors, reached = counts.mean(axis=0), (counts > 0).mean(axis=0)
    read = products = bit_products = 0.0
    for spec, timing in zip(plan.classes, timings(plan), strict=True):
        strange = [expert for expert in spec.experts if expert not in index]
        if strange:
            raise WattbitError(f"the workload has no frequency of {strange[0]}; run `wattbit stats` again")
        mine = [index[expert] for expert in spec.experts]
        own = float(vectors[mine].sum()) * plan.shape.weights
        read += float(reached[mine].sum()) * timing.load * WORD_BITS / 8
        products += own
        bit_products += own * spec.precision.weight_bits * spec.precision.act_bits
    return Moved(read, products, bit_products)
