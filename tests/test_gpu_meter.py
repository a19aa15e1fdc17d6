"""The meter's arithmetic on counters and formulas that are known, and the card's own readings where there is one."""

import time
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch

from tests.gpu_support import CARD, needs_card
from wattbit.errors import WattbitError
from wattbit.plan import Allocation, ExpertId, Workload
from wattbit.tvm_schedules.gpu.bank import Bank, Shape
from wattbit.tvm_schedules.gpu.device import find_card, room_for
from wattbit.tvm_schedules.gpu.energy import EnergyCounter
from wattbit.tvm_schedules.gpu.meter import GpuMeter, reached_experts, routed_inputs
from wattbit.tvm_schedules.gpu.model import GpuCostModel

WIDTHS = (2, 3, 4, 6, 8)
SHAPE = Shape(4, 64, 32)
IDS = [ExpertId(layer, e) for layer in range(2) for e in range(4)]


class Clock:
    """A counter in steps of 100 ms on a card of so many watts, and the time that it lives in."""

    def __init__(self, watts: float) -> None:
        self.watts, self.now = watts, 0.0

    def perf_counter(self) -> float:
        return self.now

    def work(self) -> None:
        self.now += 0.004

    def nvmlDeviceGetTotalEnergyConsumption(self, _handle: Any) -> int:  # noqa: N802 - NVML's name
        self.now += 0.002
        return int(self.now / 0.1) * round(self.watts * 100)


@pytest.mark.parametrize("watts", [75.0, 361.0])
@pytest.mark.parametrize("least_s", [0.0, 1.0])
def test_power_is_the_cards_between_two_steps(monkeypatch: pytest.MonkeyPatch, watts: float, least_s: float) -> None:
    clock = Clock(watts)
    monkeypatch.setattr("wattbit.tvm_schedules.gpu.energy.time", clock)
    power = EnergyCounter(clock, None).power(clock.work, least_s)
    assert power.seconds >= max(least_s, 0.09)
    assert abs(power.power_w - watts) <= power.error_w
    assert power.error_w < watts * (0.01 if least_s else 0.1)


def test_a_counter_that_stands_still_is_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = Clock(0.0)
    monkeypatch.setattr("wattbit.tvm_schedules.gpu.energy.time", clock)
    with pytest.raises(WattbitError, match=r"did not move in 2\.0 s; measure without energy"):
        EnergyCounter(clock, None).power(clock.work, 0.0)


def test_a_card_without_the_counter_has_none(monkeypatch: pytest.MonkeyPatch) -> None:
    class NVMLError(Exception):
        pass

    def refuse(_uuid: str) -> None:
        raise NVMLError("not supported")

    nvml = SimpleNamespace(NVMLError=NVMLError, nvmlInit=lambda: None, nvmlDeviceGetHandleByUUID=refuse)
    monkeypatch.setitem(__import__("sys").modules, "pynvml", nvml)
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda _: SimpleNamespace(uuid="0"))
    assert EnergyCounter.find(torch.device("cuda")) is None


def test_a_card_too_old_for_the_kernels(monkeypatch: pytest.MonkeyPatch) -> None:
    answers = {
        "is_available": True,
        "device_count": 1,
        "get_device_capability": (8, 6),
        "get_device_name": "NVIDIA A10",
    }
    for name, answer in answers.items():
        monkeypatch.setattr(torch.cuda, name, lambda *_, answer=answer: answer)
    with pytest.raises(WattbitError, match=r"NVIDIA A10 is of compute capability 8.6; use a card of 9.0 or later"):
        find_card()


@pytest.mark.skipif(CARD, reason="there is a CUDA device")
def test_no_card_is_named_and_the_cpu_offered() -> None:
    with pytest.raises(WattbitError, match=r"no CUDA device 0: PyTorch .* sees 0; use the ARM and host kernels"):
        find_card()
    with pytest.raises(WattbitError, match="no CUDA device"):
        GpuMeter(SHAPE, Workload(10, 1, tuple((e, 0.25) for e in IDS), batch=1), WIDTHS)


def test_memory_that_is_missing_is_named() -> None:
    with (
        pytest.raises(WattbitError, match=r"16 experts need 8.10 GB but the card has"),
        room_for("16 experts", 8_100_000_000),
    ):
        raise torch.OutOfMemoryError


def allocations(count: int) -> list[Allocation]:
    random = np.random.default_rng(0)
    return [Allocation.of({e: int(random.choice(WIDTHS)) for e in IDS}) for _ in range(count)]


def test_calibration_finds_the_law_it_was_sampled_from() -> None:
    reached = {e: 0.1 + 0.2 * e.expert for e in IDS}
    law = GpuCostModel(SHAPE, reached, {b: b * 1e-6 + 1e-6 for b in WIDTHS}, {b: b * 2e-4 for b in WIDTHS})
    found = GpuCostModel.calibrate(SHAPE, reached, [(a, *law.batch(a)) for a in allocations(30)])
    workload = Workload(100, 2, (), batch=4)
    for held_out in allocations(60)[30:]:
        cost, wanted = found.cost(held_out, workload), law.cost(held_out, workload)
        assert cost.latency_s == pytest.approx(wanted.latency_s)
        assert cost.energy_j == pytest.approx(wanted.energy_j)
        assert cost.provenance == "modelled"
        assert cost.latency_s == pytest.approx(25 * law.batch(held_out)[0]), "100 tokens are 25 batches of 4"


def test_calibration_without_energy_prices_none() -> None:
    reached = dict.fromkeys(IDS, 0.5)
    samples = [(a, 1e-5 * a.mean_bits, None) for a in allocations(30)]
    assert GpuCostModel.calibrate(SHAPE, reached, samples).cost(samples[0][0], Workload(1, 1, (), 1)).energy_j is None


def test_samples_that_do_not_tell_widths_apart_are_refused() -> None:
    same = Allocation.of({e: 2 if e.expert < 2 else 8 for e in IDS})
    with pytest.raises(WattbitError, match="3 samples do not tell 2 widths apart"):
        GpuCostModel.calibrate(SHAPE, dict.fromkeys(IDS, 0.5), [(same, 1.0, None)] * 3)


def test_the_roofline_is_bytes_over_bandwidth() -> None:
    model = GpuCostModel.roofline(SHAPE, dict.fromkeys(IDS, 1.0), 1e9, WIDTHS)
    cost = model.cost(Allocation.of(dict.fromkeys(IDS, 4)), Workload(1, 4, (), batch=1))
    assert cost.latency_s == pytest.approx(cost.memory_bytes / 1e9)
    assert cost.energy_j is None


def test_routing_follows_the_shares() -> None:
    shares = [0.5, 0.3, 0.15, 0.05]
    x, router = routed_inputs(shares, 1, 64, draws=4000, seed=0)
    assert router.shape == (4, 64)
    found = torch.bincount((x[:, 0].double() @ router.double().T).argmax(dim=1), minlength=4) / len(x)
    np.testing.assert_allclose(found, shares, atol=0.03)
    twice, _ = routed_inputs(shares, 1, 64, draws=4000, seed=0)
    assert torch.equal(x, twice)


@pytest.mark.parametrize(("top_k", "batch"), [(1, 1), (2, 1), (4, 3)])
def test_a_batch_reaches_as_many_experts_as_its_tokens_choose(top_k: int, batch: int) -> None:
    workload = Workload(10, top_k, tuple((e, 0.1 + 0.1 * e.expert) for e in IDS), batch=batch)
    reached = reached_experts(SHAPE, workload)
    for layer in range(2):
        total = sum(share for expert, share in reached.items() if expert.layer == layer)
        assert total == pytest.approx(top_k) if batch == 1 else top_k <= total <= 4


def test_a_workload_of_other_experts_is_refused() -> None:
    workload = Workload(10, 1, tuple((e, 0.5) for e in IDS if e.expert < 2), batch=1)
    with pytest.raises(WattbitError, match="layer 0 has 2 experts in the workload, not 4"):
        reached_experts(SHAPE, workload)


def test_more_experts_than_the_model_is_wide_are_refused() -> None:
    with pytest.raises(WattbitError, match="65 experts need a model at least as wide, not 64"):
        routed_inputs([1 / 65] * 65, 1, 64, draws=1, seed=0)


class TestOnTheCard:
    pytestmark = needs_card

    def test_a_reading_is_a_measured_one(self) -> None:
        workload = Workload(1000, 2, tuple((ExpertId(0, e), 0.25) for e in range(4)), batch=1)
        meter = GpuMeter(Shape(4, 2048, 4096), workload, (2, 8), energy_s=0.3)
        allocation = Allocation.of({ExpertId(0, e): 2 if e < 2 else 8 for e in range(4)})
        begin = time.perf_counter()
        reading = meter.read(allocation)
        assert 0 < reading.latency_s < time.perf_counter() - begin
        if meter.counter:
            assert reading.busy is not None and reading.idle is not None and reading.energy_j is not None
            assert 0 < reading.energy_j < np.inf
            for power in (reading.busy, reading.idle):
                assert power.seconds >= 0.3
                assert 0 <= power.error_w < power.power_w, "the window is too short for the counter's steps"
        cost = meter.cost(allocation, workload)
        assert cost.provenance == "measured"
        assert 0 < cost.latency_s < np.inf
        assert (cost.energy_j is None) == (meter.counter is None)
        with pytest.raises(WattbitError, match="built for another workload"):
            meter.cost(allocation, Workload(1, 2, workload.frequency, 1))

    def test_a_full_card_names_the_size(self) -> None:
        free, _ = torch.cuda.mem_get_info()
        rows = int(free / 4096 / 4)
        with pytest.raises(WattbitError, match=r"GB but the card has .* GB free"):
            Bank.random(Shape(8, 4096, rows), (8,), find_card())

    def test_without_energy_there_is_a_latency_alone(self) -> None:
        workload = Workload(10, 2, tuple((ExpertId(0, e), 0.25) for e in range(4)), batch=2)
        meter = GpuMeter(Shape(4, 2048, 4096), workload, (4,), energy_s=0)
        cost = meter.cost(Allocation.of({ExpertId(0, e): 4 for e in range(4)}), workload)
        assert 0 < cost.latency_s < np.inf
        assert cost.energy_j is None
