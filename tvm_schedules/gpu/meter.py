"""Prices allocations on the card itself: latency by CUDA events over graph replays, energy by its counter."""

import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from wattbit.errors import WattbitError
from wattbit.plan import Allocation, Cost, ExpertId, Workload
from wattbit.tvm_schedules.gpu.bank import Bank, Shape
from wattbit.tvm_schedules.gpu.device import find_card, room_for
from wattbit.tvm_schedules.gpu.energy import EnergyCounter, Power
from wattbit.tvm_schedules.gpu.layer import Layer

DRAWS = 8  # batches of different routing in one graph
CHUNK_S = 0.004  # of work that is queued while the counter is read
WARM_UP_S = 0.5


def graph_of(work: Callable[[], None]) -> torch.cuda.CUDAGraph:
    """`work` as a CUDA graph, run once before, so that kernels are compiled."""
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        work()
    torch.cuda.current_stream().wait_stream(stream)
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        work()
    return graph


def replay_s(graph: torch.cuda.CUDAGraph, repeats: int) -> float:
    """Median seconds of a replay, by events around each, after one to warm up."""
    graph.replay()
    times = []
    for _ in range(repeats):
        begin, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
        begin.record()
        graph.replay()
        end.record()
        end.synchronize()
        times.append(begin.elapsed_time(end) * 1e-3)
    return statistics.median(times)


def busy_power(
    counter: EnergyCounter, graph: torch.cuda.CUDAGraph, replay: float, least_s: float
) -> tuple[Power, float]:
    """Power while the graph is replayed without a gap, and the seconds that a replay then takes.

    One chunk of replays always waits while another runs. replay: about how many seconds one takes.
    """
    count = max(1, round(CHUNK_S / replay))
    queued: list[torch.cuda.Event] = []
    ends: list[float] = []

    def keep_busy() -> None:
        for _ in range(count):
            graph.replay()
        event = torch.cuda.Event()
        event.record()
        queued.append(event)
        if len(queued) > 1:
            queued.pop(0).synchronize()
            ends.append(time.perf_counter())

    power = counter.power(keep_busy, least_s)
    torch.cuda.synchronize()
    return power, (ends[-1] - ends[0]) / (len(ends) - 1) / count


def idle_power(counter: EnergyCounter, least_s: float) -> Power:
    """Power of the idle card, with this process's context on it."""
    torch.cuda.synchronize()
    return counter.power(lambda: time.sleep(CHUNK_S), least_s)


def routed_inputs(
    frequency: Sequence[float], tokens: int, d_model: int, draws: int, seed: int
) -> tuple[Tensor, Tensor]:
    """Inputs x [draws, T, D] and a router [E, D], bfloat16, that send tokens to experts with these shares.

    The router reads the first E numbers of a token; they are log shares plus Gumbel noise, so that the top k of them
    are a draw of k experts without replacement.
    """
    experts = len(frequency)
    if experts > d_model:
        raise WattbitError(f"{experts} experts need a model at least as wide, not {d_model}")
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(draws, tokens, d_model, generator=generator)
    noise = -torch.empty(draws, tokens, experts).exponential_(generator=generator).log()
    x[:, :, :experts] = torch.tensor(frequency).clamp(min=1e-6).log() + noise
    router = torch.zeros(experts, d_model)
    router[:, :experts] = torch.eye(experts)
    return x.to(torch.bfloat16), router.to(torch.bfloat16)


def layer_inputs(shape: Shape, workload: Workload, layer: int, seed: int = 0) -> tuple[Tensor, Tensor]:
    """The inputs [DRAWS, T, D] and the router [E, D] with which a meter of this workload runs a layer."""
    shares = [share for expert, share in sorted(workload.frequency) if expert.layer == layer]
    if len(shares) != shape.experts:
        raise WattbitError(f"layer {layer} has {len(shares)} experts in the workload, not {shape.experts}")
    return routed_inputs(shares, workload.batch, shape.d_model, DRAWS, seed + layer)


def reached_experts(shape: Shape, workload: Workload, seed: int = 0) -> dict[ExpertId, float]:
    """The share of the meter's batches that reach each expert."""
    found: dict[ExpertId, float] = {}
    for layer in sorted({expert.layer for expert, _ in workload.frequency}):
        x, _ = layer_inputs(shape, workload, layer, seed)
        chosen = x[:, :, : shape.experts].float().topk(workload.top_k, dim=-1).indices.flatten(1)  # [draws, T K]
        reached = torch.zeros(len(x), shape.experts).scatter_(1, chosen, 1.0)
        found |= {ExpertId(layer, e): share for e, share in enumerate(reached.mean(dim=0).tolist())}
    return found


@dataclass(frozen=True)
class Reading:
    """A batch through all layers, the mean over the draws of routing. Energy is above idle; None without a counter."""

    latency_s: float
    energy_j: float | None
    busy: Power | None
    idle: Power | None


class GpuMeter:
    """`wattbit.plan.Meter` on a card: the MoE layers of a model, all experts at all widths in its memory.

    One graph serves every allocation, because an expert's width is an entry of a table on the card. Weights are random:
    neither time nor, beyond what bits flip, energy depends on them. Every layer has the same weights but its own widths
    and routing. Energy is that above the idle card; it is None where the card has no counter or `energy_s` is 0.
    """

    def __init__(
        self,
        shape: Shape,
        workload: Workload,
        widths: Sequence[int],
        energy_s: float = 0.2,
        repeats: int = 3,
        seed: int = 0,
    ) -> None:
        """energy_s: least length of a window of the energy counter. WattbitError without a card or with too small a
        one."""
        self.shape, self.workload = shape, workload
        self.energy_s, self.repeats = energy_s, repeats
        self.device = find_card()
        self.counter = EnergyCounter.find(self.device) if energy_s else None
        self.layers = sorted({expert.layer for expert, _ in workload.frequency})
        bank = Bank.random(shape, widths, self.device, seed)
        self._banks = [bank.view() for _ in self.layers]
        work: list[tuple[Layer, Tensor]] = []
        for layer, own in zip(self.layers, self._banks, strict=True):
            x, router = layer_inputs(shape, workload, layer, seed)
            with room_for("the layer's buffers", 4 * workload.batch * workload.top_k * shape.d_model * 5):
                module = Layer(own, router.to(self.device), workload.top_k, workload.batch)
            work += [(module, batch) for batch in x.to(self.device)]

        def run() -> None:
            for module, batch in work:
                module(batch)

        self._graph = graph_of(run)
        self._idle: Power | None = None
        if self.counter:  # idle as between two batches: on a card that has worked
            busy_power(self.counter, self._graph, replay_s(self._graph, repeats), max(energy_s, WARM_UP_S))
            self.rest(max(energy_s, WARM_UP_S))

    def cost(self, allocation: Allocation, workload: Workload) -> Cost:
        """Latency and energy of `workload.tokens` tokens, batch after batch. The workload's routing is the meter's."""
        if workload != self.workload:
            raise WattbitError("the meter was built for another workload; build one for this")
        reading = self.read(allocation)
        batches = workload.tokens / workload.batch
        energy = None if reading.energy_j is None else reading.energy_j * batches
        memory = sum(self.shape.weight_bytes(p.precision.weight_bits) for p in allocation.placements)
        return Cost(reading.latency_s * batches, energy, memory, "measured")

    def read(self, allocation: Allocation) -> Reading:
        """One batch through all layers, the mean over the draws of routing."""
        for layer, bank in zip(self.layers, self._banks, strict=True):
            bank.choose([allocation.precision(ExpertId(layer, e)).weight_bits for e in range(self.shape.experts)])
        replay = replay_s(self._graph, self.repeats)
        if self.counter is None or self._idle is None or not self.energy_s:
            return Reading(replay / DRAWS, None, None, None)
        busy, period = busy_power(self.counter, self._graph, replay, self.energy_s)
        above = busy.power_w - self._idle.power_w
        return Reading(replay / DRAWS, above * period / DRAWS, busy, self._idle)

    def rest(self, least_s: float = 0.5) -> Power | None:
        """Measure idle power again, for what is measured from now on; returns it."""
        if self.counter:
            self._idle = idle_power(self.counter, least_s)
        return self._idle
