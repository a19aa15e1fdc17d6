"""The methods' rules by hand: ranks, reordering, levels, clusters, channels, steps to a budget, random draws."""

from collections import Counter
from itertools import product

import numpy as np
import pytest

from tests.methods_support import make_subject
from wattbit.errors import WattbitError
from wattbit.plan import ExpertId
from wattbit.policy.methods.clustering import fuzzy_means
from wattbit.policy.methods.inputs import step_to
from wattbit.policy.methods.milo import MiLo, kurtosis_rank
from wattbit.policy.methods.moqa import MoQa, clustered, float_columns, significance
from wattbit.policy.methods.router_norm import ranked, three_levels, two_levels
from wattbit.policy.methods.size import budget_bytes
from wattbit.policy.sampling import draw
from wattbit.recipe import Budget


@pytest.mark.parametrize(
    ("kurtosis", "rank"),
    [(-1.2, 0), (0.99, 0), (1.0, 8), (2.4, 16), (2.6, 32), (7.4, 512), (8.4, 1024), (9.0, 1024), (40.0, 1024)],
)
def test_ranks_from_kurtosis(kurtosis: float, rank: int) -> None:
    assert kurtosis_rank(kurtosis) == rank


@pytest.mark.parametrize("policy", ["kurtosis", "frequency"])
@pytest.mark.parametrize("group_size", [None, 16])
def test_milo_spends_what_its_width_leaves_on_ranks_that_follow_the_policy(policy: str, group_size: int | None) -> None:
    subject = make_subject(8, 2, seed=1)
    budget = Budget(3.5, group_size=group_size)
    made = MiLo(policy).decide(subject, budget, seed=0)  # type: ignore[arg-type]  # one of the two
    assert set(made.allocation.classes) == {made.allocation.precision(ExpertId(0, 0))}
    assert made.allocation.mean_bits == 3
    assert (made.quantizer, made.compensator_bits) == ("hqq", 3)
    allowed = budget_bytes(subject, budget, "hqq")
    assert subject.memory_bytes(made) <= allowed
    assert subject.memory_bytes(made) >= 0.98 * allowed, "bytes were left"
    asked = {s.expert: kurtosis_rank(s.kurtosis) if policy == "kurtosis" else s.frequency for s in subject.table}
    for one, other in product(subject.experts, repeat=2):
        if asked[one] < asked[other]:
            assert made.ranks.get(one, 0) <= made.ranks.get(other, 0)
    assert MiLo(policy).decide(subject, Budget(3.0), seed=0).ranks == {}  # type: ignore[arg-type]


def test_gaussian_experts_get_no_compensators_by_kurtosis() -> None:
    from dataclasses import replace

    subject = make_subject(4, 1)
    gaussian = replace(subject, table=tuple(replace(s, kurtosis=0.0) for s in subject.table))
    assert MiLo("kurtosis").decide(gaussian, Budget(2.5), seed=0).ranks == {}


def test_reordering_by_variance() -> None:
    """Ranks by change: 0 1 2 3. 3 has over 3 times the variance of 1 alone; 2 less than 3 times that of any."""
    change = np.array([0.1, 0.2, 0.3, 0.4])
    assert ranked(change, np.array([2.0, 1.0, 2.5, 4.0])).tolist() == [0, 3, 1, 2]
    assert ranked(change, np.array([1.0, 1.0, 3.0, 3.0])).tolist() == [0, 1, 2, 3], "exactly 3 times does not move"
    assert ranked(change, np.array([1.0, 1.0, 4.0, 13.0])).tolist() == [3, 2, 0, 1]
    assert ranked(change[::-1], np.ones(4)).tolist() == [3, 2, 1, 0]


@pytest.mark.parametrize("seed", range(20))
def test_no_expert_stands_behind_one_of_a_third_of_its_variance(seed: int) -> None:
    random = np.random.default_rng(seed)
    change, variance = random.normal(size=24), random.lognormal(sigma=1.0, size=24)
    order = ranked(change, variance)
    assert sorted(order.tolist()) == list(range(24))
    for place, behind in enumerate(order):
        assert not (3 * variance[order[:place]] < variance[behind]).any()


def test_two_and_three_levels() -> None:
    assert two_levels(8, 20, 2, 3) == [3] * 4 + [2] * 4
    assert two_levels(8, 24, 3, 4) == [3] * 8
    assert two_levels(4, 99, 2, 4) == [4] * 4
    assert three_levels(8, 24, 2, 3, 4) == [4, 4, 3, 3, 3, 3, 2, 2]
    assert three_levels(8, 20, 2, 3, 4) == [3] * 4 + [2] * 4, "a trade would leave more at 2 bits than at 3"
    assert three_levels(8, 28, 2, 3, 4) == [4] * 5 + [3] * 2 + [2]
    assert three_levels(9, 36, 3, 4, 6) == [6] + [4] * 6 + [3] * 2, "two go down for one that goes up"
    for experts, bits in product(range(1, 12), range(80)):
        if bits >= 3 * experts:
            made = three_levels(experts, bits, 3, 4, 6)
            assert len(made) == experts
            assert min(bits, 6 * experts) - 2 < sum(made) <= bits
            assert made == sorted(made, reverse=True)


def naive_fuzzy_means(values: list[float], centres: list[float]) -> tuple[list[float], list[list[float]]]:
    """Bezdek's two updates written out, m = 2, from given centres."""
    shares: list[list[float]] = []
    for _ in range(500):
        shares = [[1 / sum(((x - v) / (x - w)) ** 2 for w in centres) for v in centres] for x in values]
        centres = [
            sum(u[k] ** 2 * x for u, x in zip(shares, values, strict=True)) / sum(u[k] ** 2 for u in shares)
            for k in range(len(centres))
        ]
    return centres, shares


@pytest.mark.parametrize("seed", range(5))
def test_fuzzy_means_agree_with_a_reference_and_are_a_fixed_point(seed: int) -> None:
    values = np.random.default_rng(seed).gamma(2.0, size=40)
    centres, memberships = fuzzy_means(values, 4)
    start = np.quantile(values, [0.125, 0.375, 0.625, 0.875]).tolist()
    expected, shares = naive_fuzzy_means(values.tolist(), start)
    assert centres == pytest.approx(sorted(expected), rel=1e-6)
    assert memberships == pytest.approx(np.array(shares)[:, np.argsort(expected)], abs=1e-6)
    assert memberships.sum(axis=1) == pytest.approx(np.ones(40))
    weights = memberships**2
    assert centres == pytest.approx((weights * values[:, None]).sum(axis=0) / weights.sum(axis=0), rel=1e-6)


def test_clusters_of_what_is_apart_of_few_values_and_of_one_value() -> None:
    assert clustered(np.array([0.9, 0.1, 0.11, 0.5, 0.52, 0.3, 0.29]), 4).tolist() == [3, 0, 0, 2, 2, 1, 1]
    assert clustered(np.full(5, 0.2), 4).tolist() == [0] * 5, "a tie goes to the lower precision"
    assert np.isfinite(fuzzy_means(np.array([0.0, 1.0]), 4)[1]).all()


def test_moqa_scores_by_the_share_of_a_layers_channel_activity() -> None:
    subject = make_subject(4, 2)
    scores = significance(subject, subject.channel_activity())
    by_hand = np.array([s.tokens for s in subject.table]) * subject.activity.sum(axis=1)
    assert scores[:4] == pytest.approx(by_hand[:4] / by_hand[:4].sum())
    assert scores[4:].sum() == pytest.approx(1.0)


def test_channels_that_vary_between_data_sets_are_cached_and_paid_for() -> None:
    expert = ExpertId(0, 0)
    calm = tuple(1.0 for _ in range(200))
    moved = tuple(9.0 if c in (7, 31) else 1.0 for c in range(200))
    assert float_columns([{expert: calm}, {expert: moved}]) == {expert: (7, 31)}
    doubled = tuple(2.0 * a for a in calm)
    assert float_columns([{expert: doubled}, {expert: moved}, {expert: calm}]) == {expert: (7, 31)}, "scale is none"
    with pytest.raises(WattbitError, match="at least 2 data sets, not 1"):
        float_columns([{expert: calm}])
    subject, other = make_subject(8, 2, seed=0), make_subject(8, 2, seed=1)
    budget = Budget(4.0)
    made = MoQa((other,)).decide(subject, budget, seed=0)
    assert set(made.float_columns) == set(subject.experts)
    assert all(len(columns) == 1 for columns in made.float_columns.values()), "1 % of 64 columns, at least one"
    assert subject.memory_bytes(made) <= budget_bytes(subject, budget, "gptq")
    assert made.allocation.mean_bits > 3.5
    with pytest.raises(WattbitError, match=r"float channels do not fit a budget of 2.0 bits; .* about 2\.\d+ bits"):
        MoQa((other,)).decide(subject, Budget(2.0), seed=0)


@pytest.mark.parametrize("seed", range(10))
def test_steps_to_a_budget_keep_the_order_and_leave_no_room(seed: int) -> None:
    random = np.random.default_rng(seed)
    widths = np.array([2, 4, 6, 8])
    start = np.sort(random.integers(4, size=30))
    order = np.arange(30)
    bits = int(random.integers(60, 250))
    found = step_to(start, order, widths, bits)
    assert widths[found].sum() <= bits
    assert (np.diff(found) >= 0).all()
    assert widths[found].sum() > bits - 2 or (found == 3).all()
    assert (step_to(found, order, widths, bits) == found).all()


def drawn(experts: int, widths: tuple[int, ...], bits: int, seed: int) -> tuple[int, ...]:
    return tuple(np.array(widths)[draw(experts, np.array(widths), bits, seed)].tolist())


def test_random_draws_are_uniform_over_all_that_spend_the_budget() -> None:
    """3 experts with 2, 3, 5 bits within 11: the greatest reachable sum is 11 (3 + 3 + 5), in 3 orders."""
    seen = Counter(drawn(3, (2, 3, 5), 11, seed) for seed in range(200))
    assert set(seen) == {(3, 3, 5), (3, 5, 3), (5, 3, 3)}
    seen = Counter(drawn(3, (2, 3, 4), 9, seed) for seed in range(1400))
    assert set(seen) == {c for c in product((2, 3, 4), repeat=3) if sum(c) == 9}
    expected = 1400 / len(seen)
    chi_square = sum((count - expected) ** 2 / expected for count in seen.values())
    assert chi_square < 22.5, "0.1 % of uniform draws exceed this with 6 degrees of freedom"


def test_random_draws_spend_all_that_widths_allow() -> None:
    assert sum(drawn(4, (2, 4), 11, 0)) == 10
    assert drawn(5, (3,), 17, 0) == (3,) * 5
    assert drawn(3, (2, 8), 99, 0) == (8,) * 3
    assert drawn(3, (2, 8), 11, 0) == (2,) * 3
    assert sum(drawn(2000, (2, 3, 4, 6, 8), 7000, 1)) == 7000
