"""The reward is the documented one, and a repaired choice satisfies the budget."""

import numpy as np
import pytest

from tests.policy_fakes import WIDTHS, AdditiveMeter, SharedChipMeter, make_problem, make_stats, make_workload
from wattbit.errors import WattbitError
from wattbit.plan import Allocation
from wattbit.policy.exact import solve
from wattbit.policy.problem import Problem


def test_reward_is_damage_memory_and_hardware() -> None:
    stats = make_stats(4)
    workload = make_workload(stats)
    meter = SharedChipMeter()
    problem = make_problem(stats, meter, latency_nats=0.05)
    choice = np.array([4, 3, 2, 4, 1, 4, 4, 4])  # 55 bits of 32
    bits = {s.expert: WIDTHS[k] for s, k in zip(stats, choice, strict=True)}
    damage = sum(s.damage_at(bits[s.expert]) for s in stats)
    price = problem.price(np.ones(5, dtype=np.bool_))
    memory = 2 * price * 32 * (sum(bits.values()) / 32 - 1)
    here = meter.cost(Allocation.of(bits), workload).latency_s
    reference = meter.cost(Allocation.of(dict.fromkeys(bits, 8)), workload).latency_s
    assert problem.reward(choice) == pytest.approx(-damage - memory - 0.05 * here / reference)


def test_energy_counts_when_it_is_priced() -> None:
    stats = make_stats(4)
    choice = np.full(8, 2)
    without = make_problem(stats, AdditiveMeter(energy_j=3.0))
    with_energy = make_problem(stats, AdditiveMeter(energy_j=3.0), energy_nats=0.25)
    assert without.reward(choice) - with_energy.reward(choice) == pytest.approx(0.25)
    with pytest.raises(WattbitError, match="prices no energy"):
        make_problem(stats, AdditiveMeter(), energy_nats=0.25)
    with pytest.raises(WattbitError, match="gives uniform 8 bit 0 J, which is no reading"):
        make_problem(stats, AdditiveMeter(energy_j=0.0))


def test_overshooting_the_budget_never_pays() -> None:
    for seed in range(5):
        problem = make_problem(make_stats(8, seed=seed), AdditiveMeter(), latency_nats=0.0)
        best = problem.reward(solve(problem))
        draws = np.random.default_rng(seed).integers(0, len(WIDTHS), (300, 16))
        assert max(problem.reward(draw) for draw in draws) < best
        assert problem.reward(problem.damage.argmin(axis=1)) < best  # least damage at any size


@pytest.mark.parametrize("budget_bits", [2.0, 2.1, 3.3, 4.0, 7.9, 9.0])
def test_a_repaired_choice_fits_and_wastes_nothing(budget_bits: float) -> None:
    problem = make_problem(make_stats(8), AdditiveMeter(), budget_bits=budget_bits)
    for choice in np.random.default_rng(0).integers(0, len(WIDTHS), (40, 16)):
        before = choice.copy()
        fitted = problem.fit(choice)
        assert (choice == before).all()
        assert problem.fits(fitted)
        assert (problem.fit(fitted) == fitted).all()
        narrowest = min(WIDTHS[k] for k in choice)
        if 16 * narrowest <= problem.budget:
            assert set(fitted) <= set(choice)
        room = problem.budget - int(problem.bits(fitted))
        wider = [
            (WIDTHS[k] - WIDTHS[taken], problem.damage[i, k] - problem.damage[i, taken])
            for i, taken in enumerate(fitted)
            for k in set(choice) & set(range(taken + 1, len(WIDTHS)))
        ]
        assert not [step for step in wider if step[0] <= room and step[1] < 0]


def test_price_is_where_the_budget_starts_to_hold() -> None:
    problem = make_problem(make_stats(16), AdditiveMeter())
    for opened in ([1, 1, 1, 1, 1], [1, 0, 1, 0, 1], [0, 1, 0, 1, 0]):
        mask = np.array(opened, dtype=np.bool_)
        price, widths = problem.price(mask), problem.widths[mask]

        def bits(price: float, mask: np.ndarray = mask, widths: np.ndarray = widths) -> int:
            return int(widths[(problem.damage[:, mask] + price * widths).argmin(axis=1)].sum())

        assert bits(price) <= problem.budget < bits(price * 0.999)
    assert problem.price(np.array([False, False, False, True, True])) == np.inf


def test_choice_and_allocation_are_inverse_and_each_is_priced_once() -> None:
    meter = AdditiveMeter()
    problem = make_problem(make_stats(8), meter)
    choice = np.random.default_rng(1).integers(0, len(WIDTHS), 16)
    assert (problem.choice(problem.allocation(choice)) == choice).all()
    calls = meter.calls
    assert problem.cost(choice) == problem.cost(choice.copy())
    assert meter.calls == calls + 1
    assert len(problem.priced) == 1


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"budget_bits": 1.5}, "a budget of 1.5 bits is below the narrowest width, 2"),
        ({"weight_bits": (2, 9)}, "weight_bits must be a choice of 2, 3, 4, 5, 6, 7, 8"),
        ({"weight_bits": (4, 5)}, "has damage measured at 2, 3, 4, 6, 8 bits, not 5"),
        ({"latency_nats": -1.0}, "must not be below 0"),
        ({"stats": ()}, "no expert statistics"),
    ],
)
def test_bad_input_is_named(settings: dict[str, object], message: str) -> None:
    stats = make_stats(4)
    given: dict[str, object] = {"stats": stats, "weight_bits": WIDTHS} | settings
    with pytest.raises(WattbitError, match=message):
        Problem(meter=AdditiveMeter(), workload=make_workload(stats), **given)  # type: ignore[arg-type]
