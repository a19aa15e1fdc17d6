"""Cost models find the law they were sampled from, say how sure they are, and never claim to have measured."""

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from tests.policy_fakes import WIDTHS, make_stats, make_workload
from wattbit.errors import InfeasibleError, WattbitError
from wattbit.plan import Allocation, Cost, ExpertShape, Workload
from wattbit.policy.cost.calibration import Calibration, Origin, Sample, calibrate, design, mixed
from wattbit.policy.cost.cores import CACHES, CoresDemand
from wattbit.policy.cost.fitting import Fitted, Work, fit
from wattbit.policy.cost.fpga import EngineWork, FpgaDemand, SharedDemand
from wattbit.policy.cost.model import CautiousMeter, CostModel
from wattbit.policy.recorded import RecordedMeter
from wattbit.tvm_schedules.host_meter import routing

STATS = make_stats(8)
IDS = [s.expert for s in STATS]
FREQUENCY = make_workload(STATS).frequency
LOADS = [Workload(1000, 2, FREQUENCY, batch) for batch in (1, 4, 16)]
SHAPE = ExpertShape(64, 128)
CORES = CoresDemand(SHAPE, {bits: SHAPE.weights * bits // 8 for bits in WIDTHS}, routing)
HOST = replace(CORES, engine="host")
ORIGIN = Origin("cores", "test", "a fake", "a fake", {})
LAW = np.array([2e-6, 1e-11, *(1e-12 * (3 + k % 5) for k in range(2 * len(WIDTHS)))])


def samples(count: int = 20, seed: int = 1) -> list[Sample]:
    return design(IDS, WIDTHS, LOADS, count, seed, "host")


class LawMeter:
    """Prices by known constants with relative noise; joules by known ones too."""

    def __init__(self, noise: float = 0.0, seed: int = 0, energy: bool = True) -> None:
        self.noise, self.energy, self.random, self.calls = noise, energy, np.random.default_rng(seed), 0

    def cost(self, allocation: Allocation, workload: Workload) -> Cost:
        self.calls += 1
        seconds = float(CORES.work(allocation, workload).binding(LAW) @ LAW)
        read, products = CORES.energy(allocation, workload)
        joules = 2.5 * seconds + 4e-11 * float(read) + 1e-12 * float(products)
        by = 1 + self.noise * float(self.random.normal())
        memory = CORES.memory_bytes(allocation)
        return Cost(seconds * by, joules * by if self.energy else None, memory, "simulated")


def fitted(noise: float = 0.0, seed: int = 0, energy: bool = True) -> Calibration:
    meter = LawMeter(noise, seed, energy)
    return calibrate(CORES, [meter], samples(), mixed(IDS, WIDTHS, LOADS, 12, 2, "host"), ORIGIN)


def test_without_noise_the_constants_come_back() -> None:
    found = fitted()
    np.testing.assert_allclose(found.latency.theta, LAW, rtol=1e-6)
    assert found.joules is not None
    np.testing.assert_allclose(found.joules.theta, [2.5, 4e-11, 1e-12], rtol=1e-6)
    assert found.latency_errors.worst < 1e-9 and found.provenance == "simulated"


def test_binding_lanes_are_found() -> None:
    """Each launch waits for the slower of two lanes; which one differs between the samples."""
    random = np.random.default_rng(0)
    theta = np.array([3.0, 0.02, 1.5])
    works = []
    for _ in range(40):
        amounts = np.zeros((6, 2, 3))
        amounts[:, 0, 0] = random.uniform(0, 2, 6)
        amounts[:, 1, 1] = random.uniform(0, 300, 6)
        amounts[:, :, 2] = 1.0
        works.append(Work(amounts, random.uniform(1, 3, 6)))
    values = [float(work.binding(theta) @ theta) for work in works]
    np.testing.assert_allclose(fit(("a", "b", "c"), works, values).theta, theta, rtol=1e-6)
    given = fit(("a", "b", "c"), works, values, {"b": 0.02})
    np.testing.assert_allclose(given.theta, theta, rtol=1e-6)
    assert given.half[1] == 0 and given.known == ("b",)


def test_intervals_cover_as_often_as_they_say() -> None:
    """95 % intervals of the constants and of a price, over 60 calibrations with 3 % of noise."""
    constants, prices = [], []
    for seed in range(60):
        found = fitted(0.03, seed, energy=False)
        constants.append(np.abs(found.latency.theta - LAW) <= found.latency.half)
        prices.append(found.latency_errors.inside)
    assert 0.90 <= np.mean(constants) <= 1.0
    assert 0.91 <= np.mean(prices) <= 0.985


def test_a_model_is_modelled_whatever_it_was_fitted_on() -> None:
    model = fitted(0.02).model(CORES)
    for allocation, workload in samples(3):
        found = model.predict(allocation, workload)
        assert found.cost.provenance == "modelled"
        assert found.latency_relative > 0
        cautious = CautiousMeter(model).cost(allocation, workload)
        assert cautious.latency_s == pytest.approx(found.cost.latency_s * (1 + found.latency_relative))
        assert cautious.energy_j is not None and found.cost.energy_j is not None
        assert cautious.energy_j > found.cost.energy_j and cautious.provenance == "modelled"


def test_more_bytes_never_cost_less() -> None:
    model = fitted().model(CORES)
    larger = CoresDemand(SHAPE, {bits: 2 * size for bits, size in CORES.weight_bytes.items()}, routing)
    for allocation, workload in samples(5):
        small, large = (CostModel(d, model.latency, model.joules).cost(allocation, workload) for d in (CORES, larger))
        assert large.latency_s > small.latency_s
        assert large.energy_j is not None and small.energy_j is not None and large.energy_j > small.energy_j


def test_no_energy_is_none() -> None:
    found = fitted(energy=False)
    assert found.joules is None and found.energy_errors is None
    assert found.model(CORES).cost(*samples()[0]).energy_j is None


def test_what_prices_do_not_tell_apart_is_named() -> None:
    with pytest.raises(WattbitError, match=r"no price depends on w2 tile's product, s; measure allocations that use"):
        calibrate(CORES, [LawMeter()], design(IDS, WIDTHS, LOADS[:1], 20, 1, "host"), samples(), ORIGIN)
    with pytest.raises(WattbitError, match="5 prices cannot calibrate 12 constants"):
        calibrate(CORES, [LawMeter()], samples()[:5], samples(), ORIGIN)
    twice = [Work.total(np.array([k, 2.0 * k])) for k in range(1, 9)]
    with pytest.raises(WattbitError, match=r"do not tell . from the other constants"):
        fit(("a", "b"), twice, [float(k) for k in range(1, 9)])
    with pytest.raises(WattbitError, match="no number above 0"):
        fit(("a",), twice[:3], [1.0, float("nan"), 2.0])


def test_a_calibration_is_data(tmp_path: Path) -> None:
    found = fitted(0.02)
    path = tmp_path / "cores.json"
    found.save(path)
    again = Calibration.load(path)
    assert again.to_json() == found.to_json()
    here, there = (one.model(CORES).predict(*samples()[4]) for one in (found, again))
    assert here.cost.latency_s == pytest.approx(there.cost.latency_s, rel=1e-12)
    record = json.loads(path.read_text())
    assert record["fitted_on"] == "simulated" and set(record["latency"]["constants"]) == set(CORES.names)
    for change, words in (
        ({"version": 0}, "has version 0, not 1; calibrate again"),
        ({"latency": {}}, "is no calibration"),
    ):
        path.write_text(json.dumps(record | change))
        with pytest.raises(WattbitError, match=words):
            Calibration.load(path)
    narrower = CoresDemand(SHAPE, {2: 100}, routing)
    with pytest.raises(WattbitError, match="has the constants call, s"):
        found.model(narrower)


def test_what_a_design_does_not_show_costs_nothing_and_the_energy_is_still_found() -> None:
    """On one design all weights are on the chip and every product is as wide: joules of two constants, not of four."""
    demand = FpgaDemand(
        lambda a, w: EngineWork(100.0 * w.batch + 50, 2, 0.0, 1e4 * w.batch, 3.2e5 * w.batch), lambda p: p.weight_bits
    )

    class Board:
        def cost(self, allocation: Allocation, workload: Workload) -> Cost:
            seconds = float(demand.work(allocation, workload).binding(law := np.array([1e-8, 1e-6])) @ law)
            joules = 1.5 * seconds + 2e-12 * float(demand.energy(allocation, workload)[1])
            return Cost(seconds, joules, 1, "simulated")

    loads = [Workload(1000, 2, FREQUENCY, batch) for batch in (1, 2, 4, 8, 16)] * 2
    drawn = [(Allocation.of(dict.fromkeys(IDS, 4)), load) for load in loads]
    found = calibrate(demand, [Board()], drawn, drawn, ORIGIN)
    assert found.joules is not None and set(found.joules.known) == {"byte, J", "bit product, J"}
    np.testing.assert_allclose(found.joules.theta, [1.5, 0.0, 2e-12, 0.0], rtol=1e-6)
    assert found.energy_errors is not None and found.energy_errors.worst < 1e-6
    unsure = CostModel(demand, replace(found.latency, sigma=0.03), found.joules).predict(*drawn[0])
    share = 1.5 * unsure.cost.latency_s / (unsure.cost.energy_j or 0.0)
    assert unsure.energy_relative == pytest.approx(share * unsure.latency_relative, rel=1e-3), (
        "joules of unsure seconds"
    )


def test_a_visits_distance_is_what_was_read_since_the_last_one() -> None:
    visits, random = HOST.visits(LOADS[0]), np.random.default_rng(0)
    size = random.integers(1, 100, len(visits.index)).astype(float)
    order = visits.expert.tolist()
    total = sum(size[e] for e in set(order))
    for k, own in enumerate(order):
        since, at = 0.0, k
        while True:
            since += size[order[at]]
            at = (at - 1) % len(order)  # the pass before ends where this one begins
            if order[at] == own:
                break
        assert visits.distances(size)[k] == pytest.approx(min(since, total))


@pytest.mark.parametrize("cache_bytes", [0.0, 2.0**18, 2.0**19])
def test_a_cache_is_found_where_there_is_one(cache_bytes: float) -> None:
    """Experts of 256 KB at 8 bits: what a cache holds of them costs no byte."""
    shape = ExpertShape(256, 512)
    plain = CoresDemand(shape, {bits: shape.weights * bits // 8 for bits in WIDTHS}, routing)
    truth, random = replace(plain, cache_bytes=cache_bytes), np.random.default_rng(0)
    law = LAW.copy()
    law[1] = 1e-10
    drawn = samples(40)

    class Board:
        def cost(self, allocation: Allocation, workload: Workload) -> Cost:
            seconds = float(truth.work(allocation, workload).binding(law) @ law)
            return Cost(seconds * (1 + 0.005 * random.normal()), None, 1, "simulated")

    found = Calibration.from_json(calibrate(plain, [Board()], drawn, drawn[::5], ORIGIN).to_json())
    assert found.origin.settings == {"cache_bytes": cache_bytes} and found.latency_errors.median < 0.02
    assert found.latency.theta[1] == pytest.approx(1e-10, rel=0.05)
    assert found.model(plain).demand == truth, "a model is of the variant that its constants were fitted to"
    reads = [replace(plain, cache_bytes=size).energy(*drawn[8])[0] for size in (0.0, *CACHES)]
    assert reads == sorted(reads, reverse=True) and reads[0] > 0 == reads[-1], "a larger cache reads no more"


def test_the_fastest_round_counts_and_provenances_must_agree() -> None:
    class Disturbed(LawMeter):
        def cost(self, allocation: Allocation, workload: Workload) -> Cost:
            cost = super().cost(allocation, workload)
            return Cost(cost.latency_s * (1 + self.random.exponential()), 1e9, cost.memory_bytes, "simulated")

    found = calibrate(CORES, [Disturbed(), LawMeter(), Disturbed()], samples(), samples(seed=2), ORIGIN)
    np.testing.assert_allclose(found.latency.theta, LAW, rtol=1e-6)

    class Sometimes(LawMeter):
        def cost(self, allocation: Allocation, workload: Workload) -> Cost:
            cost = super().cost(allocation, workload)
            return cost if self.calls % 2 else Cost(cost.latency_s, None, 0, "measured")

    with pytest.raises(WattbitError, match="prices to calibrate on are measured and simulated"):
        calibrate(CORES, [Sometimes()], samples(), samples(), ORIGIN)


def test_a_meter_that_fails_is_tried_again_and_the_calibration_resumes(tmp_path: Path) -> None:
    class Flaky(LawMeter):
        def __init__(self, *bad: int) -> None:
            super().__init__()
            self.bad = set(bad)

        def cost(self, allocation: Allocation, workload: Workload) -> Cost:
            cost = super().cost(allocation, workload)
            if self.calls in self.bad:
                raise WattbitError("the board does not answer")
            return cost

    meter, path = Flaky(3, *range(20, 23)), tmp_path / "prices.jsonl"
    with pytest.raises(WattbitError, match=r"failed 3 times \(the board does not answer\); 18 prices are kept"):
        calibrate(CORES, [RecordedMeter(meter, "m", path, lambda _: None)], samples(), samples(seed=2), ORIGIN)
    calls = meter.calls
    found = calibrate(CORES, [RecordedMeter(meter, "m", path, lambda _: None)], samples(), samples(seed=2), ORIGIN)
    np.testing.assert_allclose(found.latency.theta, LAW, rtol=1e-6)
    distinct = {(a.digest, w.batch) for a, w in samples() + samples(seed=2)}
    assert meter.calls - calls == len(distinct) - 18


def test_infeasible_stays_infeasible() -> None:
    def planned(allocation: Allocation, workload: Workload) -> EngineWork:
        if allocation.mean_bits > 6:
            raise InfeasibleError("too big; use fewer bits")
        return EngineWork(100 * allocation.mean_bits, 2, 1e4, 1e5, 1e6)

    demand = FpgaDemand(planned, lambda precision: precision.weight_bits)

    class Board:
        def cost(self, allocation: Allocation, workload: Workload) -> Cost:
            batch = planned(allocation, workload)
            seconds = (1e-8 * batch.cycles + 1e-6 * batch.launches) * workload.tokens / workload.batch
            return Cost(seconds, None, 1, "simulated")

    mixtures = mixed(IDS, WIDTHS, LOADS, 30, 3, "fpga")
    found = calibrate(demand, [Board()], mixtures, mixtures, ORIGIN)
    np.testing.assert_allclose(found.latency.theta, [1e-8, 1e-6], rtol=1e-6)
    model = found.model(demand)
    with pytest.raises(InfeasibleError, match="too big"):
        CautiousMeter(model).cost(Allocation.of(dict.fromkeys(IDS, 8)), LOADS[0])


class TestSharedMemory:
    """Engines and cores side by side, reading one DDR."""

    bytes_read = 5e6

    def model(self, ddr_bytes_per_s: float) -> CostModel:
        engines = FpgaDemand(lambda a, w: EngineWork(4000.0, 2, self.bytes_read, 1e5, 1e6), lambda p: p.weight_bits)
        demand = SharedDemand(engines, HOST)
        theta = np.array([1e-8, 1e-6, *LAW, 1 / ddr_bytes_per_s])
        return CostModel(demand, Fitted(demand.names, theta, np.zeros((len(theta),) * 2), 0.02, 50))

    def split(self, on_fpga: int) -> Allocation:
        parts = [(IDS[:on_fpga], "fpga"), (IDS[on_fpga:], "host")]
        placed = [p for ids, engine in parts if ids for p in Allocation.of(dict.fromkeys(ids, 4), 8, engine).placements]  # type: ignore[arg-type]
        return Allocation(tuple(placed))

    def test_a_layer_takes_as_long_as_the_slower(self) -> None:
        model = self.model(1e15)
        cores_alone = CostModel(HOST, Fitted(CORES.names, LAW, np.zeros((len(LAW),) * 2), 0.02, 50))
        both, load = self.split(8), LOADS[2]
        seconds = model.cost(both, load).latency_s
        engines = (1e-8 * 4000 + 2e-6) * load.tokens / load.batch
        cores = cores_alone.cost(both, load).latency_s
        assert max(engines, cores) - 1e-15 <= seconds <= engines + cores
        assert model.cost(self.split(0), load).latency_s == pytest.approx(
            cores_alone.cost(self.split(0), load).latency_s
        )

    def test_a_slower_memory_slows_both(self) -> None:
        seconds = [self.model(rate).cost(self.split(8), LOADS[0]).latency_s for rate in (1e12, 1e9, 1e8)]
        assert seconds[0] < seconds[1] < seconds[2]
        least = self.bytes_read / 1e8 * LOADS[0].tokens
        assert seconds[2] >= least
