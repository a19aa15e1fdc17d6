"""A study's allocations in RTL simulation: milliseconds and millijoules a token of the experts, on the virtual board.

Joules are above idle, by the virtual board's made-up power model, as its agent takes them of simulated launches.
"""

from collections import Counter
from collections.abc import Iterable
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from functools import partial
from multiprocessing import get_context
from pathlib import Path

import numpy as np
import rtl
from rich.progress import track
from study_jobs import BOARD

from wattbit.board.agent.power import PowerModel
from wattbit.board.targets import load
from wattbit.hls.engine_plan import EnginePlan
from wattbit.hls.launches import Launch, launches, timings
from wattbit.hls.planner import plan
from wattbit.hls.traffic import traffic
from wattbit.models.config import ModelConfig
from wattbit.plan import Allocation, Workload
from wattbit.shell import HEADER_BYTES, WORD_BITS

BATCHES = 2  # of the workload's, simulated


@dataclass(frozen=True)
class Simulated:
    """Of the experts, a token."""

    ms: float
    mj: float


def joules(planned: EnginePlan, packets: Launch, cycles: int) -> float:
    """Above idle, of one launch."""
    power, (engine, index) = PowerModel(), packets
    vectors = np.bincount(engine, minlength=len(planned.classes))
    macs: Counter[tuple[int, int]] = Counter()
    for spec, count in zip(planned.classes, vectors.tolist(), strict=True):
        macs[spec.precision.weight_bits, spec.precision.act_bits] += count * planned.shape.weights
    engines, _ = np.unique(np.stack([engine, index]), axis=1)
    words = sum(timings(planned)[i].load for i in engines.tolist())  # a load cycle moves a word
    moved = 8 * len(engine) * (HEADER_BYTES + 2 * planned.shape.d_model) + WORD_BITS * round(words)
    seconds = cycles / (planned.clock_mhz * 1e6)
    return (power.launch_w(macs, seconds, moved) - power.idle_w) * seconds


def simulate(model: ModelConfig, workload: Workload, folder: Path, bits: str) -> Simulated:
    """What experts of these widths, a digit each, take."""
    allocation = Allocation.of(dict(zip(model.expert_ids, map(int, bits), strict=True)))
    planned, sampled = plan(allocation, model.shape, load(BOARD).target, workload), traffic(workload)
    packets = launches(planned, sampled.experts, sampled.counts[:BATCHES])
    taken = rtl.cycles(planned, packets, folder)
    tokens = BATCHES * workload.batch
    energy = sum(joules(planned, *one) for one in zip(packets, taken, strict=True))
    return Simulated(1e3 * sum(taken) / (planned.clock_mhz * 1e6) / tokens, 1e3 * energy / tokens)


def simulations(
    model: ModelConfig, workload: Workload, folder: Path, wanted: Iterable[str], workers: int
) -> dict[str, Simulated]:
    """By widths, side by side."""
    every = sorted(set(wanted))
    with ProcessPoolExecutor(workers, mp_context=get_context("spawn")) as pool:
        found = pool.map(partial(simulate, model, workload, folder), every)
        return dict(zip(every, track(found, "simulating", total=len(every)), strict=True))
