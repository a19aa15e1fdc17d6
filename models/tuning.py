"""GLUE with all weights: a language model and a linear head on the mean of its last hidden states, fine-tuned together.

First in float, then, for a quantized model, on at its widths in the deployed arithmetic (straight through the rounding,
at the scales that the language model has). Every model of a stack takes as many steps of as many sentences, so that
what differs in the end is the widths. `wattbit.models.tasks` has the tasks, their metrics, and a frozen model's heads.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from tokenizers import Tokenizer
from torch import Tensor, nn

from wattbit.errors import WattbitError
from wattbit.models.learner import MoELearner
from wattbit.models.network import Experts
from wattbit.models.quant import LayerQuantizer
from wattbit.models.stack import Stack, descend
from wattbit.models.tasks import BATCH_TOKENS, Split, Task, score
from wattbit.models.train import make_optimizer
from wattbit.plan import Allocation
from wattbit.progress import Progress, silent

BATCH = 64  # sentences in a step
RATE = 3e-4  # rises over WARMUP of the steps, then falls to zero
WARMUP = 0.1
WEIGHT_DECAY = 0.01
BALANCE = 0.01  # weight of the load-balancing loss, as in training
QUANTIZED_SHARE = 1 / 3  # of the steps follow at the widths


@dataclass(frozen=True, eq=False)
class Sentences:
    """Padded tokens [n, S] of texts (the last ones that fit the context), how many of them are real [n], and labels."""

    tokens: Tensor
    lengths: Tensor
    labels: tuple[int, ...]

    @classmethod
    def of(cls, split: Split, tokenizer: Tokenizer, context: int) -> "Sentences":
        encoded = tokenizer.encode_batch_fast(list(split.texts), add_special_tokens=False)
        ids = [torch.tensor(each.ids[-context:] or [0]) for each in encoded]
        lengths = torch.tensor([len(each) for each in ids])
        return cls(nn.utils.rnn.pad_sequence(ids, batch_first=True), lengths, split.labels)


class Classifier:
    """A stack of M models with heads [M, C, D]. quantizers: of each layer; None for float experts."""

    def __init__(self, stack: Stack, classes: int, quantizers: Sequence[LayerQuantizer] | None = None) -> None:
        self.stack = stack
        self.quantizers = quantizers
        shape = (len(stack), classes, stack.config.d_model)
        self.weight = torch.zeros(shape, device=stack.device, requires_grad=True)
        self.bias = torch.zeros(shape[:2], device=stack.device, requires_grad=True)

    def select(self, models: Sequence[int], quantizers: Sequence[LayerQuantizer] | None) -> "Classifier":
        """Copies of some of the models, at the widths of these quantizers."""
        found = Classifier(self.stack.select(models), self.weight.shape[1], quantizers)
        with torch.no_grad():
            found.weight.copy_(self.weight[list(models)])
            found.bias.copy_(self.bias[list(models)])
        return found

    def experts(self) -> list[Experts] | None:
        return self.stack.experts(self.quantizers) if self.quantizers else None

    def logits(self, tokens: Tensor, lengths: Tensor, experts: Sequence[Experts] | None) -> tuple[Tensor, Tensor]:
        """[M, n, C] of tokens [M, n, S], of which the first `lengths` [M, n] count, and load-balancing losses [M]."""
        hidden, balance = self.stack.hidden(tokens, experts)  # no token sees the padding, which follows it
        real = torch.arange(tokens.shape[-1], device=tokens.device) < lengths[..., None]
        mean = (hidden * real[..., None]).sum(dim=2) / lengths[..., None]
        return torch.baddbmm(self.bias[:, None], mean, self.weight.transpose(1, 2)), balance

    def train(
        self, sentences: Sentences, steps: int, rate: float, seeds: Sequence[int], progress: Progress = silent
    ) -> None:
        """seeds: one a model, of the sentences that it draws."""
        if not sentences.labels:
            raise WattbitError("a task without sentences cannot be fine-tuned on; give its whole train.tsv")
        optimizer = make_optimizer(self.stack, rate, WEIGHT_DECAY)
        optimizer.add_param_group({"params": [self.weight, self.bias]})
        labels = torch.tensor(sentences.labels)
        warmup = max(1, round(WARMUP * steps))
        for step in range(steps):
            for group in optimizer.param_groups:
                group["lr"] = rate * min((step + 1) / warmup, 1 - step / steps)
            rows = np.stack([np.random.default_rng([seed, step]).integers(0, len(labels), BATCH) for seed in seeds])
            picked = torch.from_numpy(rows)  # [M, n]
            lengths = sentences.lengths[picked]
            tokens = sentences.tokens[picked][..., : int(lengths.max())]
            tokens, lengths, wanted = (x.to(self.stack.device) for x in (tokens, lengths, labels[picked]))
            found, balance = self.logits(tokens, lengths, self.experts())
            losses = F.cross_entropy(found.flatten(0, 1), wanted.flatten(), reduction="none").view_as(wanted)
            descend(self.stack, optimizer, losses.mean(dim=1) + BALANCE * balance)
            progress("fine-tune", step + 1, steps)

    @torch.no_grad()
    def predict(self, sentences: Sentences) -> Tensor:
        """Classes [M, n]."""
        models, experts = len(self.stack), self.experts()
        order = sentences.lengths.argsort()
        found = torch.empty(models, len(order), dtype=torch.int64, device=self.stack.device)
        longest = int(sentences.lengths.max())
        for part in order.split(max(1, BATCH_TOKENS // longest)):
            lengths = sentences.lengths[part]
            tokens = sentences.tokens[part, : int(lengths.max())].to(self.stack.device)
            lengths = lengths.to(self.stack.device).expand(models, -1)
            logits, _ = self.logits(tokens.expand(models, -1, -1), lengths, experts)
            found[:, part.to(self.stack.device)] = logits.argmax(dim=-1)
        return found

    def scores(self, task: Task, sentences: Sentences) -> list[float]:
        """The task's metric of each model."""
        return [score(task.metric, predicted, sentences.labels) for predicted in self.predict(sentences)]


def tuned_score(
    task: Task,
    learner: MoELearner,
    tokenizer: Tokenizer,
    allocation: Allocation | None,
    steps: int,
    seed: int,
    progress: Progress = silent,
) -> float:
    """The task's score of a copy of the learner's model after `steps` in float and, with an allocation,
    `QUANTIZED_SHARE` as many at its widths."""
    context = learner.config.context
    train, dev = (Sentences.of(split, tokenizer, context) for split in (task.train, task.dev))
    found = Classifier(Stack.of([learner.network]), 1 + max(task.train.labels))
    found.train(train, steps, RATE, [seed], progress)
    if allocation is not None:
        found = found.select([0], learner.quantizers(allocation))
        found.train(train, max(1, round(QUANTIZED_SHARE * steps)), RATE / 2, [seed + 1], progress)
    return found.scores(task, dev)[0]
