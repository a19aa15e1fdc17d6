"""A search reports every method within the same budget, and its record survives JSON."""

import json
from dataclasses import replace

import numpy as np
import pytest

from tests.policy_fakes import WIDTHS, AdditiveMeter, SharedChipMeter, make_stats, make_workload
from wattbit.errors import InfeasibleError, WattbitError
from wattbit.plan import Allocation, Cost, ExpertStats, Workload
from wattbit.policy.search import SearchResult, SearchSettings, search, spread
from wattbit.policy.smoothing import smoothed

STATS = make_stats(8)
SETTINGS = SearchSettings(iterations=30, latency_nats=0.05)


@pytest.fixture(scope="module")
def result() -> SearchResult:
    return search(STATS, SharedChipMeter(), make_workload(STATS), SETTINGS)


def test_search_has_all_methods_and_seeds(result: SearchResult) -> None:
    runs = {"uniform8": 1, "uniform4": 1, "linear": 1, "random": 3, "exact": 1, "dmpq": 3}
    assert {name: len(outcomes) for name, outcomes in result.methods.items()} == runs
    for name, outcomes in result.methods.items():
        for outcome in outcomes:
            assert outcome.allocation.mean_bits <= 4.0 or name == "uniform8"
            assert outcome.cost.provenance == "modelled"
    assert set(result.curves) == {0, 1, 2}
    assert all(len(curve) == 30 for curve in result.curves.values())
    assert result.best.reward == max(o.reward for o in result.methods["dmpq"])
    (exact,) = result.methods["exact"]
    rivals = [o for name, outcomes in result.methods.items() if name != "uniform8" for o in outcomes]
    assert exact.damage == min(o.damage for o in rivals)


def test_front_holds_what_nothing_beats(result: SearchResult) -> None:
    points = [(o.cost.latency_s, o.damage) for o in result.front]
    assert points == sorted(points)
    assert [damage for _, damage in points] == sorted((damage for _, damage in points), reverse=True)
    for name, outcomes in result.methods.items():
        for o in outcomes if name != "uniform8" else ():
            assert any(latency <= o.cost.latency_s and damage <= o.damage for latency, damage in points)


def test_search_survives_json_and_repeats(result: SearchResult) -> None:
    record = json.loads(json.dumps(result.to_json()))
    assert SearchResult.from_json(record) == result
    assert record["methods"]["random"]["reward"]["std"] > 0
    assert record["methods"]["exact"]["reward"]["std"] is None
    again = search(tuple(reversed(STATS)), SharedChipMeter(), make_workload(STATS), SETTINGS)
    assert again == result


def test_controls_need_their_widths() -> None:
    settings = SearchSettings(weight_bits=(2, 3, 6, 8), iterations=1)
    with pytest.raises(WattbitError, match="uniform 4 bit needs that width"):
        search(STATS, AdditiveMeter(), make_workload(STATS), settings)


def test_spread_of_one_value_has_no_deviation() -> None:
    assert spread([2.0]) == {"mean": 2.0, "std": None, "values": [2.0]}
    assert spread([1.0, 3.0])["std"] == pytest.approx(2**0.5)


def table(stats: tuple[ExpertStats, ...]) -> np.ndarray:
    return np.array([[d for _, d in s.damage] for s in stats])


def test_smoothing_keeps_what_has_no_noise() -> None:
    clean = make_stats(16, noise=0.0)
    assert table(smoothed(clean)) == pytest.approx(table(clean))
    assert table(smoothed(smoothed(clean))) == pytest.approx(table(clean))


def test_smoothing_comes_closer_to_the_truth() -> None:
    for seed in range(5):
        truth = table(make_stats(16, seed=seed, noise=0.0))
        random = np.random.default_rng(seed)
        noisy = truth + random.normal(0, 1, truth.shape) * np.sqrt(5e-4 * truth.mean(axis=0))
        stats = tuple(
            replace(s, damage=tuple(zip(WIDTHS, row.tolist(), strict=True)))
            for s, row in zip(make_stats(16, seed=seed), noisy, strict=True)
        )
        found = table(smoothed(stats))
        assert (found >= 0).all()
        assert (np.diff(found, axis=1) <= 0).all()
        error = np.square(found - truth).sum(axis=0) / np.square(noisy - truth).sum(axis=0)
        assert (error[1:] < 0.7).all()


def test_smoothing_needs_one_set_of_widths() -> None:
    odd = replace(STATS[0], damage=STATS[0].damage[1:])
    with pytest.raises(WattbitError, match="damage at the same widths"):
        smoothed((odd, *STATS[1:]))


class OneClassMeter(AdditiveMeter):
    """A chip with room for a single engine."""

    def cost(self, allocation: Allocation, workload: Workload) -> Cost:
        if len(allocation.classes) > 1:
            raise InfeasibleError("the chip cannot hold the allocation (lut: 2 of 1)")
        return super().cost(allocation, workload)


def test_a_control_that_the_chip_cannot_hold_is_left_out_and_why() -> None:
    settings = replace(SETTINGS, iterations=4, seeds=(0,), budget_bits=4.5)
    found = search(STATS, OneClassMeter(), make_workload(STATS), settings)
    assert set(found.methods) == {"uniform8", "uniform4", "dmpq"}
    assert set(found.left_out) == {"linear", "random", "exact"}
    assert found.left_out["exact"] == "the chip cannot hold the allocation (lut: 2 of 1)"
    assert SearchResult.from_json(json.loads(json.dumps(found.to_json()))) == found
