"""A search reports every method within the same budget, and its record survives JSON."""

import json
from dataclasses import replace

import numpy as np
import pytest

from tests.policy_fakes import WIDTHS, AdditiveMeter, SharedChipMeter, make_stats, make_workload
from wattbit.errors import WattbitError
from wattbit.plan import Allocation, ExpertStats
from wattbit.policy.repair import retrained_damage
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


def test_retrained_damage_scales_what_was_not_retrained() -> None:
    at_float = make_stats(4, noise=0.0)
    widths = {s.expert: 4 if s.expert.expert % 2 else 3 for s in at_float}
    share = {3: 0.5, 4: 0.25}

    def now(s: ExpertStats) -> ExpertStats:
        damage = {b: d * (share[b] if b == widths[s.expert] else 1.0) for b, d in s.damage}
        return ExpertStats.from_json(s.to_json() | {"damage": damage, "tokens": 7})

    expected = retrained_damage(at_float, [now(s) for s in at_float], Allocation.of(widths))
    before = {b: sum(s.damage_at(b) for s in at_float if widths[s.expert] == b) for b in (3, 4)}
    overall = sum(share[b] * before[b] for b in (3, 4)) / sum(before.values())
    for s, e in zip(at_float, expected, strict=True):
        assert e.tokens == 7
        for bits, damage in s.damage:
            assert e.damage_at(bits) == pytest.approx(share.get(bits, overall) * damage)


def test_retraining_is_never_expected_to_do_harm_or_wonders() -> None:
    at_float = make_stats(4, noise=0.0)
    widths = Allocation.of({s.expert: 4 for s in at_float})
    for scale, left in ((3.0, 1.0), (-2.0, 0.0)):
        now = [ExpertStats.from_json(s.to_json() | {"damage": {b: scale * d for b, d in s.damage}}) for s in at_float]
        for s, e in zip(at_float, retrained_damage(at_float, now, widths), strict=True):
            assert e.damage_at(2) == pytest.approx(left * s.damage_at(2))
            assert e.damage_at(4) == pytest.approx(scale * s.damage_at(4))
    with pytest.raises(WattbitError, match="different models"):
        retrained_damage(at_float, make_stats(5), widths)


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
