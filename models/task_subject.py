"""A GLUE task as what a search preserves: what an expert's rounding does to a head on the frozen model.

Accuracy moves in steps of one sentence, too coarse to tell what one expert at one width costs. So damage is the
divergence KL(float || rounded) of the head's class probabilities, the mean over sentences: what its negative
log-likelihood would rise by if labels were drawn from the float model's own prediction. It is never below 0, and has no
term of first order in the rounding, which on little text is larger than the damage (results/damage.md; for tasks
benchmarks/policy_tasks.py measures it).

Three parts of a task are kept apart: most training sentences fit the head, others measure damage, and the development
split judges what was chosen and chooses nothing.
"""

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import torch
import torch.nn.functional as F
from tokenizers import Tokenizer
from torch import Tensor

from wattbit.errors import WattbitError
from wattbit.models.expert import BrevitasExpert
from wattbit.models.learner import STATS_ACT_BITS, MoELearner
from wattbit.models.network import Experts, MixtureLayer
from wattbit.models.tasks import Probe, Split, Task, features
from wattbit.plan import Allocation, ExpertId, ExpertStats, Precision
from wattbit.progress import Progress, silent

SENTENCES = 1000  # that damage is measured on, at most; and no more than a fifth of the training split
SHARE = 5


class TaskSubject:
    """A learner's model with the head that its float features gave. spare: the rows that measure damage."""

    def __init__(self, learner: MoELearner, task: Task, tokenizer: Tokenizer) -> None:
        """Raises WattbitError for a task with too few training sentences to keep some apart."""
        count = len(task.train.texts)
        if count < SHARE:
            raise WattbitError(f"{task.name} has {count} training sentences, at least {SHARE} are needed; give all")
        step = max(SHARE, -(-count // SENTENCES))
        self.spare = range(0, count, step)  # spread, for a split may have an order
        fitted = [i for i in range(count) if i % step]
        self.learner = learner
        self.texts = [task.train.texts[i] for i in self.spare]
        part = Split(tuple(task.train.texts[i] for i in fitted), tuple(task.train.labels[i] for i in fitted))
        self.probe = Probe.fit(replace(task, train=part), learner.network, tokenizer)

    def stats(self, stats: Sequence[ExpertStats], progress: Progress = silent) -> tuple[ExpertStats, ...]:
        """The statistics with the task's damage, at the same widths, in place of the text's."""
        wanted = self.log_chances(None)
        found = []
        for one in stats:
            damage = []
            for bits, _ in one.damage:
                rise = self.divergence(wanted, self.alone(one.expert, bits))
                damage.append((bits, rise.double().mean().item()))
            found.append(replace(one, damage=tuple(damage)))
            progress(f"damage to {self.probe.task.name}", len(found), len(stats))
        return tuple(found)

    def score(self, allocation: Allocation | None) -> float:
        """The task's metric on its development split, experts at these widths; None is the float model."""
        experts = None if allocation is None else self.learner.quantized_experts(allocation)
        return self.probe.evaluate(self.learner.network, experts)

    def to_json(self) -> dict[str, Any]:
        about = self.probe.to_json()
        return about | {"sentences": about["sentences"] | {"damage": len(self.texts)}}

    @torch.no_grad()
    def log_chances(self, experts: Sequence[Experts] | None) -> Tensor:
        """Log-probabilities [n, C] that the head gives the sentences of the damage."""
        return self.probe.head.logits(
            features(self.learner.network, self.probe.tokenizer, self.texts, experts)
        ).log_softmax(dim=1)

    def alone(self, expert: ExpertId, bits: int) -> Tensor:
        """`log_chances` with one expert at a weight width, all others float."""
        module = self.learner.expert(expert, Precision(bits, STATS_ACT_BITS))
        mixtures = [block.mixture for block in self.learner.network.layers]
        experts: list[Experts] = [mixture.float_experts for mixture in mixtures]
        experts[expert.layer] = _replaced(mixtures[expert.layer], module)
        return self.log_chances(experts)

    @staticmethod
    def divergence(before: Tensor, after: Tensor) -> Tensor:
        """KL(before || after) in nats [n] of log-probabilities [n, C]."""
        return F.kl_div(after, before, reduction="none", log_target=True).sum(dim=1)


def _replaced(mixture: MixtureLayer, module: BrevitasExpert) -> Experts:
    """A layer's float experts with this one in the place of its own."""

    def run(x: Tensor, counts: list[int]) -> Tensor:
        y = mixture.float_experts(x, counts)
        first = sum(counts[: module.expert.expert])
        rows = slice(first, first + counts[module.expert.expert])
        y[rows] = module(x[rows])
        return y

    return run
