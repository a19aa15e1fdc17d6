"""Why an expert has its width: slopes, price, verdicts and rank correlations on tables small enough to do by hand."""

import json

import numpy as np
import pytest

from tests.methods_support import make_subject
from wattbit.errors import WattbitError
from wattbit.plan import Allocation, ExpertId, ExpertStats
from wattbit.policy.exact import solve
from wattbit.policy.explain import FEATURES, explain, rank_correlation
from wattbit.policy.methods.inputs import problem


def expert(number: int, damage: dict[int, float], tokens: int = 100) -> ExpertStats:
    return ExpertStats(ExpertId(0, number), 0.25, 0.25, 1.0 + number, 0.0, 1.0, 0.0, tuple(damage.items()), tokens)


def test_slopes_and_price_by_hand() -> None:
    """Damage halves a bit and experts differ by a factor: smoothing changes nothing. 2 4 3 3 is not optimal."""
    factors = (1.0, 2.0, 4.0, 8.0)
    stats = [expert(i, {2: 4.0 * f, 3: 2.0 * f, 4: 1.0 * f}) for i, f in enumerate(factors)]
    allocation = Allocation.of({ExpertId(0, i): bits for i, bits in enumerate((2, 4, 3, 3))})
    found = explain(stats, allocation)
    kept = [row.kept_nats_per_bit for row in found.experts]
    offered = [row.offered_nats_per_bit for row in found.experts]
    assert kept == pytest.approx([None, 2.0, 8.0, 16.0])
    assert offered == pytest.approx([2.0, None, 4.0, 8.0])
    assert found.price_nats_per_bit == pytest.approx(4.0)
    assert [row.verdict for row in found.experts] == ["priced", "wider", "priced", "narrower"]
    assert found.damage_nats == pytest.approx(4 + 2 + 8 + 16)
    assert found.least_damage_nats == pytest.approx(4 + 4 + 8 + 8)
    assert found.experts[1].sentence(4.0) == (
        "L0E1 has 4 bits; its last ones keep 2.00e+00 nats a bit; the price is 4.00e+00; wider than its damage says"
    )


def test_the_tables_optimum_is_priced_but_for_its_last_bits() -> None:
    """At most one expert of a knapsack's optimum is off the price by more than the rounding of the budget."""
    subject = make_subject(32, 2)
    widths = (2, 3, 4)
    stats = subject.stats(widths)
    table = problem(stats, widths, 3.0)
    found = explain(stats, table.allocation(solve(table)))
    assert found.damage_nats == pytest.approx(found.least_damage_nats)
    assert sum(row.verdict != "priced" for row in found.experts) <= 2
    correlation = found.correlations["damage"]
    assert correlation is not None
    assert correlation > 0.8


def test_what_does_not_vary_has_no_correlation_and_who_saw_nothing_is_named() -> None:
    stats = [expert(i, {2: 1.0, 4: 0.5}, tokens=0 if i == 1 else 10) for i in range(3)]
    uniform = explain(stats, Allocation.of({s.expert: 2 for s in stats}))
    assert set(uniform.correlations) == {*FEATURES, "damage"}
    assert set(uniform.correlations.values()) == {None}
    assert uniform.unseen == (ExpertId(0, 1),)
    assert "saw no calibration token" in uniform.experts[1].sentence(uniform.price_nats_per_bit)
    mixed = explain(stats, Allocation.of({s.expert: b for s, b in zip(stats, (2, 2, 4), strict=True)}))
    assert mixed.correlations["gradient_norm"] == pytest.approx(np.sqrt(3) / 2)
    assert mixed.correlations["kurtosis"] is None
    assert json.loads(json.dumps(mixed.to_json()))["experts"][2]["weight_bits"] == 4


def test_rank_correlation_against_scipy() -> None:
    from scipy.stats import spearmanr

    random = np.random.default_rng(0)
    first, second = random.integers(5, size=50).astype(float), random.normal(size=50)
    assert rank_correlation(first, second) == pytest.approx(float(spearmanr(first, second).statistic))


def test_statistics_and_allocations_of_other_models() -> None:
    stats = [expert(i, {2: 1.0, 4: 0.5}) for i in range(2)]
    with pytest.raises(WattbitError, match="L0E1 is in the statistics or the allocation alone"):
        explain(stats, Allocation.of({ExpertId(0, 0): 2}))
    with pytest.raises(WattbitError, match=r"damage at \[2, 4\] bits, not 8"):
        explain(stats, Allocation.of({s.expert: 8 for s in stats}))
