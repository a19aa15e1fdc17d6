"""What the GPU benchmarks share: times of calls in graphs, the card's read bandwidth, layers with a given routing."""

import statistics
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
import torch
from rows import Row

from wattbit.tvm_schedules.gpu.bank import Bank
from wattbit.tvm_schedules.gpu.layer import Layer
from wattbit.tvm_schedules.gpu.meter import graph_of

LAUNCHES = 24  # at least, in one graph

Call = Callable[[], object]


@dataclass(frozen=True)
class Timing:
    """Microseconds a call: median and standard deviation over repeats."""

    us: float
    std: float


def times(cases: Mapping[str, Sequence[Call]], repeats: int) -> dict[str, Timing]:
    """Time each case's calls, replayed in turn from a graph of its own; the cases are interleaved."""
    graphs = {}
    for name, calls in cases.items():
        rounds = -(-LAUNCHES // len(calls))

        def run(calls: Sequence[Call] = calls, rounds: int = rounds) -> None:
            for _ in range(rounds):
                for call in calls:
                    call()

        graphs[name] = graph_of(run), rounds * len(calls)
    found: dict[str, list[float]] = {name: [] for name in cases}
    for repeat in range(repeats + 1):
        for name, (graph, calls_in_graph) in graphs.items():
            begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))  # type: ignore[no-untyped-call]
            begin.record()
            graph.replay()
            end.record()
            end.synchronize()
            if repeat:  # the first warms up
                found[name].append(begin.elapsed_time(end) * 1e3 / calls_in_graph)
    return {name: Timing(statistics.median(us), statistics.stdev(us)) for name, us in found.items()}


@dataclass(frozen=True)
class Reading:
    """How fast the card reads. sum_bytes_s: a large bfloat16 sum. us: a launch that only reads, by bytes."""

    sum_bytes_s: float
    us: Mapping[int, float]

    def launch_us(self, size: float) -> float:
        """Microseconds of a launch that only reads so many bytes, between those measured."""
        sizes = sorted(self.us)
        return float(np.interp(size, sizes, [self.us[one] for one in sizes]))


def bandwidth(repeats: int, megabytes: Sequence[int] = (3, 8, 15, 30, 45, 60, 90, 120, 240)) -> Reading:
    """Measure how fast the card reads, from more memory than its cache holds."""
    from gpu_read import read  # Triton, which comes with PyTorch for CUDA

    data = torch.randn(2**31, dtype=torch.bfloat16, device="cuda")
    words, out = data.view(torch.int32), torch.zeros(1, dtype=torch.int32, device="cuda")
    rate = 2 * data.numel() / times({"sum": [data.sum]}, 3)["sum"].us * 1e6
    found = {}
    for size in megabytes:
        count = size * 250000 // 4096
        parts = [words[i * count * 4096 :] for i in range(max(1, min(128, words.numel() // (count * 4096))))]
        calls = [partial(read[(count,)], part, out, SIZE=4096, num_warps=8) for part in parts]
        found[count * 16384] = times({"read": calls}, repeats)["read"].us
    return Reading(rate, found)


def routed(bank: Bank, top_k: int, tokens: int = 1, first: int = 0) -> tuple[Layer, torch.Tensor]:
    """A layer and an input that sends every token to experts first .. first + top_k - 1 of the bank."""
    shape = bank.shape
    router = torch.zeros(shape.experts, shape.d_model, device="cuda", dtype=torch.bfloat16)
    router[:, : shape.experts] = torch.eye(shape.experts)
    x = torch.randn(tokens, shape.d_model, device="cuda").to(torch.bfloat16)
    x[:, : shape.experts] = 0
    x[:, [(first + j) % shape.experts for j in range(top_k)]] = 8
    layer = Layer(bank, router, top_k, tokens)
    layer(x)
    return layer, x


def row(
    case: str,
    metric: str,
    ours: float,
    std: float | None,
    peer: float,
    peer_std: float | None,
    name: str,
    ratio: float,
    goal: Any,
) -> Row:
    return Row(case, metric, ours, std, peer, peer_std, name, ratio, goal, "measured", ())
