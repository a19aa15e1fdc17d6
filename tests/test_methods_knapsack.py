"""Integer programs against enumeration: the knapsack, MC-MoE's program and MxMoE's product."""

from collections.abc import Iterator
from itertools import product

import numpy as np
import pytest

from tests.methods_support import WIDTHS, make_subject, workload_of
from tests.policy_fakes import AdditiveMeter
from wattbit.errors import InfeasibleError, WattbitError
from wattbit.plan import Allocation, Cost, Workload
from wattbit.policy.methods.inputs import bits_for, problem
from wattbit.policy.methods.knapsack import cheapest
from wattbit.policy.methods.mcmoe import MCMoE
from wattbit.policy.methods.mxmoe import MxMoE, least_product
from wattbit.policy.problem import Choice
from wattbit.recipe import Budget, Recipe

THREE = np.array([2, 3, 4])


def every(experts: int, widths: np.ndarray, bits: int) -> Iterator[Choice]:
    choices = (np.array(one) for one in product(range(len(widths)), repeat=experts))
    return (choice for choice in choices if widths[choice].sum() <= bits)


def total(costs: np.ndarray, choice: Choice) -> float:
    return float(costs[np.arange(len(costs)), choice].sum())


@pytest.mark.parametrize("seed", range(12))
def test_the_knapsack_is_solved_exactly(seed: int) -> None:
    """Costs that fall with the width and costs that do not, down to 1e-9; with and without side constraints."""
    random = np.random.default_rng(seed)
    widths = np.array([2, 3, 5, 8])
    costs = random.exponential(size=(5, 4)) * 10.0 ** -float(random.integers(0, 10))
    costs = np.sort(costs, axis=1)[:, ::-1] if seed % 2 else costs
    bits = int(random.integers(10, 36))
    found = cheapest(costs, widths, bits)
    assert widths[found].sum() <= bits
    assert total(costs, found) == pytest.approx(min(total(costs, c) for c in every(5, widths, bits)), rel=1e-9)
    bits = max(bits, 3 * 2 + 3 + 8)
    found = cheapest(costs, widths, bits, {1: 1, 3: 1})
    inside = [c for c in every(5, widths, bits) if (c == 1).any() and (c == 3).any()]
    assert (found == 1).any()
    assert (found == 3).any()
    assert total(costs, found) == pytest.approx(min(total(costs, c) for c in inside), rel=1e-9)


def test_what_costs_the_same_at_all_widths_is_narrow() -> None:
    costs = np.array([[0.0, 0.0, 0.0], [3.0, 2.0, 2.0], [3.0, 2.0, 1.0]])
    assert cheapest(costs, THREE, 100).tolist() == [0, 1, 2]


def test_an_infeasible_program_names_the_smallest_feasible_budget() -> None:
    costs = np.ones((4, 3))
    with pytest.raises(WattbitError, match=r"4 experts cannot have 7 bits .* the smallest feasible mean is 2 bits"):
        cheapest(costs, THREE, 7)
    with pytest.raises(WattbitError, match=r"the smallest feasible mean is 2.75 bits"):
        cheapest(costs, THREE, 10, {1: 1, 2: 1})
    with pytest.raises(WattbitError, match="4 experts cannot fill 5 places"):
        cheapest(costs, THREE, 99, {2: 5})


def test_without_side_constraints_it_agrees_with_dynamic_programming() -> None:
    from wattbit.policy.exact import solve

    subject = make_subject(32, 2)
    table = problem(subject.table, WIDTHS, 3.3)
    assert cheapest(table.damage, table.widths, table.budget).tolist() == solve(table).tolist()


def widths_of(recipe: Recipe, layer: int) -> list[int]:
    return [p.precision.weight_bits for p in recipe.allocation.placements if p.expert.layer == layer]


@pytest.mark.parametrize("mean", [2.5, 3.0, 3.5])
def test_mcmoe_minimises_its_objective_in_every_layer(mean: float) -> None:
    subject = make_subject(5, 2, seed=3)
    budget = Budget(mean, (2, 3, 4))
    made = MCMoE().decide(subject, budget, seed=0)
    bits = bits_for(budget, 5)
    for layer in range(2):
        rows = [i for i, e in enumerate(subject.experts) if e.layer == layer]
        worth = np.array([s.frequency * s.contribution for s in subject.table])[rows]
        costs = worth[:, None] * subject.error[rows][:, :3] ** 2
        ours = np.array(widths_of(made, layer)) - 2
        if mean == 2.5:  # the paper's own widths, as far as there are any: 2 and 3
            rivals = [c for c in every(5, THREE[:2], bits) if (c == 1).any()]
        else:
            rivals = [c for c in every(5, THREE, bits) if (c == 1).any() and (c == 2).any()]
        assert THREE[ours].sum() <= bits
        assert total(costs, ours) == pytest.approx(min(total(costs, c) for c in rivals))


@pytest.mark.parametrize(("experts", "mean", "widest"), [(4, 2.0, 2), (4, 2.25, 3), (2, 3.25, 3)])
def test_mcmoe_drops_guarantees_that_the_budget_cannot_hold(experts: int, mean: float, widest: int) -> None:
    made = MCMoE().decide(make_subject(experts, 1), Budget(mean, (2, 3, 4)), seed=0)
    assert made.allocation.mean_bits <= mean
    assert max(widths_of(made, 0)) == widest


@pytest.mark.parametrize("accuracy", [0.0, 0.3, 0.75, 1.0])
@pytest.mark.parametrize("seed", range(4))
def test_the_product_of_damage_and_time_is_least(accuracy: float, seed: int) -> None:
    """Times fall with the width but for one width that the hardware does badly."""
    random = np.random.default_rng(seed)
    widths = np.array([2, 3, 4, 8])
    damage = np.sort(random.exponential(size=(5, 4)), axis=1)[:, ::-1] * 1e-3
    time = random.dirichlet(np.ones(5))[:, None] * np.array([1.0, 2.5, 1.6, 4.0]) * 1e-4
    found = least_product(damage, time, widths, 20, accuracy)

    def value(choice: Choice) -> float:
        return accuracy * np.log(total(damage, choice)) + (1 - accuracy) * np.log(total(time, choice))

    assert widths[found].sum() <= 20
    assert value(found) == pytest.approx(min(value(c) for c in every(5, widths, 20)), abs=1e-9)


class NoThreeBits(AdditiveMeter):
    """Hardware that holds no 3-bit expert."""

    def cost(self, allocation: Allocation, workload: Workload) -> Cost:
        if any(p.precision.weight_bits == 3 for p in allocation.placements):
            raise InfeasibleError("3 bits do not fit")
        return super().cost(allocation, workload)


def test_mxmoe_times_a_width_once_and_leaves_out_what_the_hardware_cannot_hold() -> None:
    subject, meter = make_subject(8, 2), NoThreeBits()
    made = MxMoE(meter, workload_of(subject)).decide(subject, Budget(3.0, WIDTHS), seed=0)
    used = {p.precision.weight_bits for p in made.allocation.placements}
    assert 3 not in used
    assert meter.calls == len(WIDTHS) - 1
    with pytest.raises(WattbitError, match=r"holds all experts at none of the widths \[3\]"):
        MxMoE(meter, workload_of(subject)).decide(subject, Budget(3.0, (3,)), seed=0)


def test_with_accuracy_alone_mxmoe_is_the_knapsack_of_reconstruction_errors() -> None:
    subject = make_subject(8, 1)
    made = MxMoE(AdditiveMeter(), workload_of(subject), accuracy=1.0).decide(subject, Budget(3.0, (2, 3, 4)), seed=0)
    assert widths_of(made, 0) == (cheapest(subject.error[:, :3], THREE, 24) + 2).tolist()
