"""One search: the policy beside its controls, on one damage table and one meter, and what each of them gives.

Nothing here runs a model: `damage` is the sum of the experts' separately measured damages, less their noise (see
`policy.smoothing`), which predicts the loss of an allocation, and `cost` is the meter's, with its own provenance. What
an allocation really does is `cotrain`'s to see.
"""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from statistics import fmean, stdev
from typing import Any, Self

from wattbit.errors import InfeasibleError
from wattbit.plan import Allocation, Cost, ExpertStats, Meter, Workload
from wattbit.policy.controls import linear_in_frequency, random_allocation
from wattbit.policy.exact import solve
from wattbit.policy.problem import Choice, Problem
from wattbit.policy.smoothing import smoothed
from wattbit.progress import Progress, silent

POLICY = "dmpq"


@dataclass(frozen=True)
class SearchSettings:
    """What to search over, for how long, and at which prices."""

    weight_bits: tuple[int, ...] = (2, 3, 4, 6, 8)
    """Widths to choose from; the controls need 4 and 8 among them."""
    act_bits: int = 8
    """Activation width of every expert."""
    budget_bits: float = 4.0
    """Greatest mean weight width; 4 is the memory of uniform 4 bit."""
    latency_nats: float = 0.02
    """Rise of the loss accepted to save the whole latency of uniform 8 bit; see `policy.problem`."""
    energy_nats: float = 0.0
    """The same for energy; above 0 only with a meter that prices energy."""
    seeds: tuple[int, ...] = (0, 1, 2)
    """One policy is trained from scratch for each."""
    random_seeds: tuple[int, ...] = (0, 1, 2)
    """One random allocation for each."""
    iterations: int = 150
    """Policy updates a seed."""
    draws: int = 0
    """Allocations to draw from the trained policy, beside its best; for co-training at sampled widths."""

    def to_json(self) -> dict[str, Any]:
        return {name: list(value) if isinstance(value, tuple) else value for name, value in asdict(self).items()}

    @classmethod
    def from_json(cls, record: Mapping[str, Any]) -> Self:
        values: dict[str, Any] = {n: tuple(v) if isinstance(v, list) else v for n, v in record.items()}
        return cls(**values)


@dataclass(frozen=True)
class Outcome:
    """An allocation as the search sees it.

    damage: predicted rise of the loss in nats a token, the sum of the experts'. reward: see `policy.problem`; an
    allocation over the budget (uniform 8 bit) pays for it there. cost: the meter's.
    """

    allocation: Allocation
    damage: float
    reward: float
    cost: Cost

    @classmethod
    def of(cls, problem: Problem, choice: Choice) -> Self:
        damage = float(problem.damages(choice).sum())
        return cls(problem.allocation(choice), damage, problem.reward(choice), problem.cost(choice))

    def to_json(self) -> dict[str, Any]:
        return {
            "allocation": self.allocation.to_json(),
            "mean_bits": self.allocation.mean_bits,
            "damage": self.damage,
            "reward": self.reward,
            "cost": self.cost.to_json(),
        }

    @classmethod
    def from_json(cls, record: Mapping[str, Any]) -> Self:
        allocation, cost = Allocation.from_json(record["allocation"]), Cost.from_json(record["cost"])
        return cls(allocation, record["damage"], record["reward"], cost)


@dataclass(frozen=True)
class SearchResult:
    """What a search found.

    methods: outcomes by name: uniform8, uniform4, linear, exact (one each), random and dmpq (one a seed).
    curves: mean reward of each iteration's draws, for every seed. front: the allocations within the budget, among all
    that were priced, that no other beats in both damage and latency, fastest first. priced: how many there were.
    expected: the expectation of the policy of the best seed, rounded to widths within the budget (its best choice where
    the hardware cannot hold that). draws: allocations drawn from it, within the budget. left_out: why the hardware
    cannot hold a control, by name; of random, the draws that it can hold are in `methods`.
    """

    settings: SearchSettings
    methods: Mapping[str, tuple[Outcome, ...]]
    curves: Mapping[int, tuple[float, ...]]
    front: tuple[Outcome, ...]
    priced: int
    expected: Outcome
    draws: tuple[Allocation, ...] = ()
    left_out: Mapping[str, str] = field(default_factory=dict)

    @property
    def best(self) -> Outcome:
        """The policy's outcome of highest reward over the seeds."""
        return max(self.methods[POLICY], key=lambda outcome: outcome.reward)

    def to_json(self) -> dict[str, Any]:
        return {
            "settings": self.settings.to_json(),
            "best": self.best.to_json(),
            "methods": {name: _summary(outcomes) for name, outcomes in self.methods.items()},
            "curves": {str(seed): list(curve) for seed, curve in self.curves.items()},
            "front": [outcome.to_json() for outcome in self.front],
            "priced": self.priced,
            "expected": self.expected.to_json(),
            "draws": [allocation.to_json() for allocation in self.draws],
            "left_out": dict(self.left_out),
        }

    @classmethod
    def from_json(cls, record: Mapping[str, Any]) -> Self:
        return cls(
            SearchSettings.from_json(record["settings"]),
            {n: tuple(Outcome.from_json(o) for o in m["outcomes"]) for n, m in record["methods"].items()},
            {int(seed): tuple(curve) for seed, curve in record["curves"].items()},
            tuple(Outcome.from_json(outcome) for outcome in record["front"]),
            record["priced"],
            Outcome.from_json(record["expected"]),
            tuple(Allocation.from_json(allocation) for allocation in record["draws"]),
            record["left_out"],
        )


def spread(values: Sequence[float]) -> dict[str, Any]:
    """Mean and standard deviation (None of a single value) beside the values."""
    return {"mean": fmean(values), "std": stdev(values) if len(values) > 1 else None, "values": list(values)}


def search(
    stats: Sequence[ExpertStats],
    meter: Meter,
    workload: Workload,
    settings: SearchSettings,
    progress: Progress = silent,
    save: Path | None = None,
    history: Sequence[Sequence[ExpertStats]] = (),
) -> SearchResult:
    """Train one policy a seed on the experts' statistics and the meter, and price the controls beside them.

    save: where the policy of the best seed goes, for `wattbit.policy.agent.Policy.load`. history: statistics of former
    rounds of co-training, the oldest first. Deterministic in the settings' seeds. For 32 experts and 5 widths some 4000
    allocations a seed are priced: 4 s with a meter of 0.5 ms; from `hierarchy.LARGE` experts on, groups of them come
    first.
    """
    from wattbit.policy.agent import AgentSettings  # torch, needed only here
    from wattbit.policy.hierarchy import learn

    problem = Problem(
        stats=smoothed(stats),
        meter=meter,
        workload=workload,
        weight_bits=settings.weight_bits,
        budget_bits=settings.budget_bits,
        act_bits=settings.act_bits,
        latency_nats=settings.latency_nats,
        energy_nats=settings.energy_nats,
        history=[smoothed(one) for one in history],
    )
    controls = {
        "uniform8": [problem.uniform(8)],
        "uniform4": [problem.uniform(4)],
        "linear": [linear_in_frequency(problem)],
        "random": [random_allocation(problem, seed) for seed in settings.random_seeds],
        "exact": [solve(problem)],
    }
    agent = AgentSettings(iterations=settings.iterations)
    trained = {seed: learn(problem, seed, agent, progress) for seed in settings.seeds}
    outcomes, left_out = _outcomes(problem, controls)
    outcomes[POLICY] = tuple(Outcome.of(problem, policy.choice) for policy in trained.values())
    ahead = max(trained.values(), key=lambda policy: policy.reward)
    if save is not None:
        ahead.policy.save(save)
    drawn = ahead.policy.sample(problem, settings.draws, settings.seeds[0])
    return SearchResult(
        settings,
        outcomes,
        {seed: policy.curve for seed, policy in trained.items()},
        tuple(Outcome.of(problem, choice) for choice in _front(problem)),
        len(problem.priced),
        _held(problem, ahead.policy.expected(problem), ahead.choice),
        tuple(problem.allocation(choice) for choice in drawn),
        left_out,
    )


def _outcomes(
    problem: Problem, controls: Mapping[str, Sequence[Choice]]
) -> tuple[dict[str, tuple[Outcome, ...]], dict[str, str]]:
    """Outcomes of the choices that the hardware can hold, by name; for the names that have none, why."""
    found: dict[str, tuple[Outcome, ...]] = {}
    left_out: dict[str, str] = {}
    for name, choices in controls.items():
        held = []
        for choice in choices:
            try:
                held.append(Outcome.of(problem, choice))
            except InfeasibleError as error:
                left_out[name] = str(error)
        if held:
            left_out.pop(name, None)
            found[name] = tuple(held)
    return found, left_out


def _held(problem: Problem, choice: Choice, instead: Choice) -> Outcome:
    """The outcome of a choice, or of another one where the hardware cannot hold it."""
    try:
        return Outcome.of(problem, choice)
    except InfeasibleError:
        return Outcome.of(problem, instead)


def _front(problem: Problem) -> list[Choice]:
    """The priced choices within the budget that no other beats in both latency and damage, fastest first."""
    fitting = [choice for choice in problem.priced if problem.fits(choice)]
    points = sorted((problem.cost(c).latency_s, float(problem.damages(c).sum()), i) for i, c in enumerate(fitting))
    front: list[Choice] = []
    least = float("inf")
    for _, damage, i in points:
        if damage < least:
            least = damage
            front.append(fitting[i])
    return front


def _summary(outcomes: Sequence[Outcome]) -> dict[str, Any]:
    return {
        "outcomes": [outcome.to_json() for outcome in outcomes],
        "mean_bits": fmean(outcome.allocation.mean_bits for outcome in outcomes),
        "damage": spread([outcome.damage for outcome in outcomes]),
        "reward": spread([outcome.reward for outcome in outcomes]),
    }
