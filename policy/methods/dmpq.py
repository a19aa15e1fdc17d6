"""DMPQ: the policy of this project, PPO on the experts' statistics with the hardware's own meter (`policy.agent`).

The post-training form: one policy is trained for the seed (from 512 experts on, on groups of them first, see
`policy.hierarchy`), and its best allocation is the recipe's. The reward (`policy.problem`) is damage, measured with the
recipe's own quantizer, plus latency and energy as the meter prices the whole allocation, so what experts share on the
hardware counts, which no table sees. The co-trained form is `policy.cotrain`'s rounds of search and fine-tuning; its
short version is this recipe with the weights adapted to it, `learner.finetune(recipe.allocation, steps, seed)`.
"""

from dataclasses import dataclass, field

from wattbit.plan import Meter, Workload
from wattbit.policy.methods.inputs import open_widths, recipe, statistics
from wattbit.policy.problem import Problem
from wattbit.policy.smoothing import smoothed
from wattbit.progress import Progress, silent
from wattbit.recipe import Budget, Quantizer, Recipe, Subject


@dataclass(frozen=True)
class DMPQ:
    """latency_nats, energy_nats: prices of the hardware, see `policy.problem`. iterations: policy updates."""

    meter: Meter
    workload: Workload
    latency_nats: float = 0.02
    energy_nats: float = 0.0
    iterations: int = 150
    quantizer: Quantizer = "gptq"
    progress: Progress = field(default=silent, compare=False)
    name = "dmpq"

    def decide(self, subject: Subject, budget: Budget, seed: int) -> Recipe:
        """As `Method.decide`; asks for the damage at every width of the budget."""
        from wattbit.policy.agent import AgentSettings  # torch, needed only here
        from wattbit.policy.hierarchy import learn

        widths = open_widths(self.name, budget)
        problem = Problem(
            smoothed(statistics(subject, widths, self.quantizer)),
            self.meter,
            self.workload,
            widths,
            budget.mean_bits,
            budget.act_bits,
            self.latency_nats,
            self.energy_nats,
        )
        trained = learn(problem, seed, AgentSettings(iterations=self.iterations), self.progress)
        return recipe(self.name, problem.experts, problem.widths[trained.choice].tolist(), self.quantizer, budget)
