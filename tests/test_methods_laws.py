"""What every method must hold on any model: the budget, its seed, names of experts, JSON; and bad input."""

from dataclasses import replace

import pytest

from tests.methods_support import WIDTHS, FakeSubject, make_subject, relabelled, workload_of
from tests.policy_fakes import AdditiveMeter
from wattbit.errors import WattbitError
from wattbit.plan import ExpertId
from wattbit.policy.methods.registry import METHODS, ON_HARDWARE, ON_WEIGHTS, method
from wattbit.policy.methods.size import budget_bytes
from wattbit.recipe import Budget, Method, Recipe

SEEDS = {"dmpq": 1, "mcmoe": 6, "mcmoe-odp": 6}  # models that a method is tried on, else 12
QUICK = [name for name in METHODS if name != "dmpq"]  # that one trains a policy


def made(name: str, subject: FakeSubject) -> Method:
    found = method(name, AdditiveMeter(), workload_of(subject))
    return replace(found, iterations=4) if name == "dmpq" else found  # type: ignore[type-var]  # a dataclass


def widths(recipe: Recipe) -> list[int]:
    return [p.precision.weight_bits for p in recipe.allocation.placements]


@pytest.mark.parametrize("name", METHODS)
def test_every_recipe_fits_its_budget_and_survives_json(name: str) -> None:
    for seed in range(SEEDS.get(name, 12)):
        subject = make_subject(3 + seed, 1 + seed % 3, seed)
        for mean in (2.0, 2.5, 3.0, 3.7, 4.0, 9.0):
            budget = Budget(mean, WIDTHS, act_bits=4 if seed % 2 else 8, group_size=16 if seed % 3 else None)
            recipe = made(name, subject).decide(subject, budget, seed)
            assert recipe.method == name
            assert recipe.allocation.mean_bits <= mean
            assert [p.expert for p in recipe.allocation.placements] == list(subject.experts)
            assert set(widths(recipe)) <= set(WIDTHS)
            assert {p.precision.act_bits for p in recipe.allocation.placements} == {budget.act_bits}
            assert recipe.group_size == budget.group_size
            assert subject.memory_bytes(recipe) <= budget_bytes(subject, budget, recipe.quantizer)
            assert Recipe.from_json(recipe.to_json()) == recipe


@pytest.mark.parametrize("name", METHODS)
def test_a_method_is_deterministic_in_its_seed(name: str) -> None:
    subject, budget = make_subject(), Budget(3.0)
    first, again = (made(name, subject).decide(subject, budget, seed=5) for _ in range(2))
    assert first == again
    if name == "random":
        assert widths(made(name, subject).decide(subject, budget, seed=6)) != widths(first)


@pytest.mark.parametrize("name", [name for name in QUICK if name != "random"])
@pytest.mark.parametrize("mean", [2.5, 3.2])
def test_names_of_experts_say_nothing(name: str, mean: float) -> None:
    """Experts under other numbers get the same widths and ranks."""
    order = [3, 0, 5, 1, 4, 2]
    subject = make_subject(6, 2, seed=4)
    other = relabelled(subject, order)
    before = made(name, subject).decide(subject, Budget(mean), seed=0)
    after = made(name, other).decide(other, Budget(mean), seed=0)
    for expert in other.experts:
        was = ExpertId(expert.layer, order[expert.expert])
        assert after.allocation.precision(expert) == before.allocation.precision(was)
        assert after.ranks.get(expert) == before.ranks.get(was)


def test_who_is_right_of_frequent_and_infrequent_first() -> None:
    """Where frequent experts changed their router row most, MC-MoE favours what router-norm starves."""
    subject = make_subject(8, 1, seed=2)
    table = tuple(replace(s, router_change=s.frequency, max_variance=1.0) for s in subject.table)
    error = subject.error[:1].repeat(8, axis=0)
    subject = replace(subject, table=table, error=error)
    busiest = max(table, key=lambda s: s.frequency * s.contribution).expert
    rarest = min(table, key=lambda s: s.frequency).expert
    budget = Budget(2.5, (2, 3))
    ours = {name: made(name, subject).decide(subject, budget, seed=0).allocation for name in ("mcmoe", "router-norm-2")}
    assert (ours["mcmoe"].precision(busiest).weight_bits, ours["mcmoe"].precision(rarest).weight_bits) == (3, 2)
    most = max(table, key=lambda s: s.frequency).expert
    assert [ours["router-norm-2"].precision(e).weight_bits for e in (rarest, most)] == [3, 2]


@pytest.mark.parametrize(
    "name", [name for name in QUICK if not name.startswith(("router", "random", "rtn", "gptq", "hqq"))]
)
def test_an_expert_that_saw_no_token_is_narrow(name: str) -> None:
    subject = make_subject(6, 1, seed=1)
    table = list(subject.table)
    table[2] = replace(table[2], frequency=0.0, contribution=0.0, tokens=0, damage=tuple((b, 0.0) for b in range(2, 9)))
    error = subject.error.copy()
    error[2] = 0.0
    starved = replace(subject, table=tuple(table), error=error)
    recipe = made(name, starved).decide(starved, Budget(2.5), seed=0)
    assert recipe.allocation.precision(ExpertId(0, 2)).weight_bits == 2


def test_odp_needs_a_second_expert() -> None:
    subject = make_subject(4, 3)
    pruning = made("mcmoe-odp", subject).decide(subject, Budget(2.5), seed=0).pruning
    assert pruning is not None
    assert pruning.ratio == subject.ratios
    assert made("mcmoe", subject).decide(subject, Budget(2.5), seed=0).pruning is None
    lone = make_subject(4, 3, top_k=1)
    with pytest.raises(WattbitError, match=r"mcmoe-odp drops .* top_k 1; use mcmoe"):
        made("mcmoe-odp", lone).decide(lone, Budget(2.5), seed=0)
    broken = replace(subject, ratios=(0.5, float("nan"), 0.5))
    with pytest.raises(WattbitError, match="the gate ratio of layer 1 is nan"):
        made("mcmoe-odp", broken).decide(broken, Budget(2.5), seed=0)


@pytest.mark.parametrize("name", [name for name in METHODS if name not in ("rtn", "gptq", "hqq", "random")])
def test_a_statistic_that_is_no_number_is_named(name: str) -> None:
    subject = make_subject(4, 2)
    table = list(subject.table)
    table[5] = replace(table[5], kurtosis=float("nan"))
    broken = replace(subject, table=tuple(table))
    with pytest.raises(WattbitError, match="the kurtosis of L1E1 is nan"):
        made(name, broken).decide(broken, Budget(3.0), seed=0)


def test_tables_that_are_no_numbers_name_their_expert() -> None:
    subject = make_subject(4, 2)
    error, activity = subject.error.copy(), subject.activity.copy()
    error[6, 1] = activity[6, 3] = float("inf")
    broken = replace(subject, error=error, activity=activity)
    for name in ("mcmoe", "mxmoe"):
        with pytest.raises(WattbitError, match="error of L1E2 at 3 bits is inf"):
            made(name, broken).decide(broken, Budget(3.0), seed=0)
    with pytest.raises(WattbitError, match="the channel activity of L1E2 is no number"):
        made("moqa", broken).decide(broken, Budget(3.0), seed=0)
    damaged = tuple(
        replace(s, damage=((2, float("nan")), *s.damage[1:])) if s.expert == ExpertId(0, 3) else s
        for s in subject.table
    )
    with pytest.raises(WattbitError, match="the damage at 2 bits of L0E3 is nan"):
        made("exact", subject).decide(replace(subject, table=damaged), Budget(3.0), seed=0)


def test_budgets_that_a_methods_widths_cannot_meet() -> None:
    subject = make_subject(4, 1)
    with pytest.raises(WattbitError, match=r"moqa needs a budget of at least 4 mean bits, .* 4, 8, not 3.5"):
        made("moqa", subject).decide(subject, Budget(3.5, (3, 4, 8)), seed=0)
    with pytest.raises(WattbitError, match="moqa has the widths 2, 4, 6, 8, the budget 3, 5"):
        made("moqa", subject).decide(subject, Budget(3.5, (3, 5)), seed=0)
    with pytest.raises(WattbitError, match="router-norm-3 needs three widths"):
        made("router-norm-3", subject).decide(subject, Budget(3.0, (2, 4)), seed=0)
    with pytest.raises(WattbitError, match="below the narrowest width, 2"):
        Budget(1.5)


@pytest.mark.parametrize("name", sorted(METHODS))
def test_more_bits_than_experts_can_use_are_as_good_as_enough(name: str) -> None:
    """An unbounded budget would make tables as long as it."""
    subject = make_subject(2, 4)
    enough, far_more = (made(name, subject).decide(subject, Budget(bits, WIDTHS), 0) for bits in (max(WIDTHS), 1e15))
    assert widths(enough) == widths(far_more)
    with pytest.raises(WattbitError, match="a budget is a number of bits, not inf"):
        Budget(float("inf"))


def test_the_registry() -> None:
    assert len(set(METHODS)) == len(METHODS)
    assert all(found.name == name for name, found in ON_WEIGHTS.items())
    with pytest.raises(WattbitError, match=r"a method is one of rtn, gptq, .* not 'awq'"):
        method("awq")
    for name in ON_HARDWARE:
        with pytest.raises(WattbitError, match=f"{name} prices hardware"):
            method(name)
    subject = make_subject(4, 1)
    for name in QUICK:
        made_by = method(name, AdditiveMeter(), workload_of(subject), quantizer="rtn")
        fixed = {"gptq": "gptq", "hqq": "hqq", "milo-kurtosis": "hqq", "milo-frequency": "hqq"}
        assert made_by.decide(subject, Budget(3.0), seed=0).quantizer == fixed.get(name, "rtn")
