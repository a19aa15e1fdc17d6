"""Co-training: policy updates and fine-tuning in turn, then every control fine-tuned as long from the same weights.

Each step leaves one file under `out`/steps (see `policy.steps`), so an interrupted run goes on where it stopped and
ends with the same result as one that was not interrupted.

Damage measured before retraining is the wrong table for the retrained model, so each round measures it again at the
weights that the round before left. (Correcting it by what retraining repaired at each width was tried: after 20 steps
the change of single experts' damage was all noise, and the policy took the noise for free bits. One share a width,
fitted to a few fine-tuned allocations, is steadier: `policy.repair`.)

A round fine-tunes at the best allocation that the policy found, at its expectation rounded to widths, or, `sampled`, at
the best and at allocations drawn from the policy in turn, a step each, so that the weights bear a change of widths at
run time. What is priced and kept is the best allocation, or the rounded expectation. The policy reads how the damage of
every expert changed over the rounds so far.

Fair by construction: every method starts from the same float weights and gets `rounds` fine-tuning calls of `steps`
steps with the same seeds (hence the same batches). DMPQ's differ only in their widths, which may change between rounds.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from math import log
from pathlib import Path
from statistics import fmean
from typing import Any, Literal, Self, get_args

from wattbit.errors import WattbitError
from wattbit.files import write_json
from wattbit.plan import Allocation, Cost, ExpertStats, Learner, Meter, Workload
from wattbit.policy.search import POLICY, Outcome, SearchResult, SearchSettings, search, spread
from wattbit.policy.steps import Steps
from wattbit.progress import Progress, silent

Record = dict[str, Any]
Widths = Literal["best", "expected", "sampled"]


@dataclass(frozen=True)
class CotrainSettings:
    """How the policy and the weights take turns."""

    search: SearchSettings = field(default_factory=SearchSettings)
    rounds: int = 2
    """Turns of statistics, policy update and fine-tuning."""
    steps: int = 20
    """Fine-tuning steps a round; every control gets rounds * steps too."""
    seed: int = 0
    """Seed of the first round's fine-tuning; each round takes the next."""
    widths: Widths = "best"
    """What the policy's rounds fine-tune at: its best allocation, its expectation rounded to widths, or its best and
    `search.draws` drawn from it in turn."""
    distillation: float = 0.9
    """Weight of the float model's predictions, as a teacher of every method's fine-tuning, against the text's; 0: none.
    It halves what 3 bits cost after as many steps, see `results/finetuning.md`."""

    def __post_init__(self) -> None:
        if self.rounds < 1 or self.steps < 1:
            raise WattbitError(f"rounds and steps must be at least 1, not {self.rounds} and {self.steps}")
        if not 0 <= self.distillation <= 1:
            raise WattbitError(f"distillation must be within 0..1, not {self.distillation}")
        if self.widths not in get_args(Widths):
            raise WattbitError(f"widths must be one of {', '.join(get_args(Widths))}, not {self.widths!r}")
        if self.widths == "sampled" and not self.search.draws:
            raise WattbitError("co-training at sampled widths needs search.draws above 0, for instance 16")

    def to_json(self) -> Record:
        plain = {name: getattr(self, name) for name in ("rounds", "steps", "seed", "widths", "distillation")}
        return {"search": self.search.to_json()} | plain

    @classmethod
    def from_json(cls, record: Mapping[str, Any]) -> Self:
        return cls(**dict(record) | {"search": SearchSettings.from_json(record["search"])})


def cotrain(
    learner: Learner,
    meter: Meter,
    workload: Workload,
    settings: CotrainSettings,
    out: Path,
    progress: Progress = silent,
    stats: Sequence[ExpertStats] | None = None,
    searched: SearchResult | None = None,
) -> Record:
    """Run all rounds and all controls, and return the content of `out`/cotrain.json.

    The learner holds the float weights when called, and the policy's last weights afterwards. stats, searched: the
    first round's, where another stage has made them from the float weights; else they are made here.

    Writes `out`/model.safetensors and `out`/allocation.json (the policy's last weights and widths) and
    `out`/cotrain.json: float_perplexity, settings,

    - rounds, one each: round, allocation, mean_bits, reward, curves, damage {predicted, observed} (in nats a token,
      before the round's fine-tuning; observed is against the float weights), perplexity_before and _after (the
      round's fine-tuning);
    - methods by name: runs (one a random seed, else one: allocation, mean_bits, cost, perplexity_before and _after,
      weights: the file of its fine-tuned weights, relative to `out`), and over the runs allocation (the first's),
      mean_bits, memory_bytes and cost (means), perplexity_before and _after {mean, std, values}, fine_tuning_steps.
      Here before is at the float weights, after is after all rounds;
    - left_out: controls that the hardware cannot hold, by name, with the reason.

    Raises WattbitError if `out` holds steps of other settings or other weights.
    """
    inputs = settings.to_json() | {"workload": _workload_json(workload)}
    chains = 4 + len(settings.search.random_seeds)
    total = 4 * settings.rounds + chains * (settings.rounds + 1) + 1
    loop = _Loop(Steps(learner, out / "steps", inputs, progress, total), meter, workload, settings, out)
    rounds, allocations, left_out = loop.rounds(stats, searched)
    final = allocations[POLICY][0]
    result = {
        "float_perplexity": loop.steps.float_perplexity,
        "settings": settings.to_json(),
        "rounds": rounds,
        "methods": {name: loop.method(name, of_method) for name, of_method in allocations.items()},
        "left_out": left_out,
    }
    loop.steps.at(loop.steps.weights(_chain(POLICY), settings.rounds)).save(out / "model.safetensors")
    write_json(out / "allocation.json", final.to_json())
    write_json(out / "cotrain.json", result)
    return result


def _chain(method: str, number: int = 0) -> str:
    """The name of a method's fine-tunings; the policy has one, a random allocation one a seed."""
    return f"{method}-{number}"


@dataclass(frozen=True)
class _Loop:
    """The rounds and the rows of the table, made of steps."""

    steps: Steps
    meter: Meter
    workload: Workload
    settings: CotrainSettings
    out: Path

    def rounds(
        self, given: Sequence[ExpertStats] | None, searched: SearchResult | None
    ) -> tuple[list[Record], dict[str, list[Allocation]], dict[str, str]]:
        """A record of each round, the allocations of each method, and why the hardware cannot hold other controls: the
        policy's allocation is the last round's, the controls' are of the first search, whose statistics are of the
        weights that they start from."""
        if searched is not None and searched.settings != self.settings.search:
            raise WattbitError("the search was made with other settings than co-training's; search again")
        allocations: dict[str, list[Allocation]] = {}
        tables = [self._stats(0, given)]
        found = self._search(0, tables, searched)
        left_out = dict(found.left_out)
        for name, outcomes in found.methods.items():
            allocations[name] = [outcome.allocation for outcome in outcomes]
        records = [self._round(0, found)]
        for turn in range(1, self.settings.rounds):
            tables.append(self._stats(turn, None))
            found = self._search(turn, tables, None)
            records.append(self._round(turn, found))
        allocations[POLICY] = [self._taken(found).allocation]
        return records, allocations, left_out

    def method(self, name: str, allocations: Sequence[Allocation]) -> Record:
        """One row of the table: fine-tune each allocation as long as the policy was, and take its perplexity."""
        runs = [self._run(_chain(name, number), allocation) for number, allocation in enumerate(allocations)]
        cost = _mean([Cost.from_json(run["cost"]) for run in runs])
        return {
            "runs": runs,
            "allocation": runs[0]["allocation"],
            "mean_bits": fmean(run["mean_bits"] for run in runs),
            "memory_bytes": cost.memory_bytes,
            "cost": cost.to_json(),
            "perplexity_before": spread([run["perplexity_before"] for run in runs]),
            "perplexity_after": spread([run["perplexity_after"] for run in runs]),
            "fine_tuning_steps": self.settings.rounds * self.settings.steps,
        }

    def _stats(self, turn: int, given: Sequence[ExpertStats] | None) -> list[ExpertStats]:
        """The experts' statistics at the weights that a round starts from."""

        def make() -> list[Record]:
            learner = self.steps.at(self.steps.weights(_chain(POLICY), turn))
            return [s.to_json() for s in given or learner.stats(self.settings.search.weight_bits)]

        return [ExpertStats.from_json(record) for record in self.steps.step(f"stats-{turn}", make)]

    def _search(
        self, turn: int, tables: Sequence[Sequence[ExpertStats]], searched: SearchResult | None
    ) -> SearchResult:
        """The round's policy update, by the statistics of all rounds so far."""

        def make() -> Record:
            *history, table = tables
            settings = self.settings.search
            return (searched or search(table, self.meter, self.workload, settings, history=history)).to_json()

        return SearchResult.from_json(self.steps.step(f"search-{turn}", make))

    def _taken(self, found: SearchResult) -> Outcome:
        """What a round keeps of its search."""
        return found.expected if self.settings.widths == "expected" else found.best

    def _round(self, turn: int, found: SearchResult) -> Record:
        """Fine-tune at the widths that the policy found."""
        best = self._taken(found)
        start = self.steps.weights(_chain(POLICY), turn)
        widths = (best.allocation, *found.draws) if self.settings.widths == "sampled" else (best.allocation,)
        end = self._finetune(_chain(POLICY), turn, widths)
        seen: Record = self.steps.step(f"round-{turn}", lambda: self._before_and_after(best.allocation, start, end))
        return seen | {
            "round": turn,
            "allocation": best.allocation.to_json(),
            "mean_bits": best.allocation.mean_bits,
            "reward": best.reward,
            "curves": found.to_json()["curves"],
            "damage": {
                "predicted": best.damage,
                "observed": log(seen["perplexity_before"] / self.steps.float_perplexity),
            },
        }

    def _run(self, chain: str, allocation: Allocation) -> Record:
        """Fine-tune a chain to its end (the policy's rounds have done that) and take its perplexity."""
        if chain != _chain(POLICY):
            for turn in range(self.settings.rounds):
                self._finetune(chain, turn, (allocation,))
        start, end = self.steps.weights(chain, 0), self.steps.weights(chain, self.settings.rounds)
        seen: Record = self.steps.step(f"method-{chain}", lambda: self._before_and_after(allocation, start, end))
        return seen | {
            "allocation": allocation.to_json(),
            "mean_bits": allocation.mean_bits,
            "cost": self.meter.cost(allocation, self.workload).to_json(),
            "weights": str(end.relative_to(self.out)),
        }

    def _finetune(self, chain: str, turn: int, allocations: Sequence[Allocation]) -> Path:
        return self.steps.finetune(chain, turn + 1, allocations, self.settings.steps, self.settings.seed + turn)

    def _before_and_after(self, allocation: Allocation, start: Path, end: Path) -> Record:
        return {
            "perplexity_before": self.steps.at(start).perplexity(allocation),
            "perplexity_after": self.steps.at(end).perplexity(allocation),
        }


def _mean(costs: Sequence[Cost]) -> Cost:
    """The mean of costs of one provenance."""
    energies = [cost.energy_j for cost in costs if cost.energy_j is not None]
    return Cost(
        latency_s=fmean(cost.latency_s for cost in costs),
        energy_j=fmean(energies) if len(energies) == len(costs) else None,
        memory_bytes=round(fmean(cost.memory_bytes for cost in costs)),
        provenance=costs[0].provenance,
    )


def _workload_json(workload: Workload) -> Record:
    shares = {str(expert): share for expert, share in workload.frequency}
    return {"tokens": workload.tokens, "top_k": workload.top_k, "batch": workload.batch, "frequency": shares}
