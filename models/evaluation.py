"""Perplexity of a whole text by a sliding window, by token and by word.

Every token but the first is predicted once, from at least context - stride tokens before it (fewer only at the text's
beginning). The value depends on context and stride, so a result carries both. By word: the same nats over the words of
the text, which makes models with different vocabularies comparable; words are what white space parts, and each line's
end is one more, as WikiText counts them (245,569 in WikiText-2's test text).
"""

import math
from collections.abc import Callable
from dataclasses import asdict, dataclass
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor

from wattbit.errors import WattbitError
from wattbit.models.learner import MoELearner
from wattbit.models.network import token_losses
from wattbit.plan import Allocation
from wattbit.progress import Progress, silent

MAX_NATS = 700  # whose exp is a double
BATCH_TOKENS = 16384  # that go through the model together

Losses = Callable[[Tensor], Tensor]
"""Cross-entropy in nats [n, S] of the last S tokens of contexts [n, S + 1]."""


@dataclass(frozen=True)
class Perplexity:
    """token, word: exp of the mean nats a token and a word. tokens: predicted ones. context, stride: of the window.

    word is None where it is beyond a double, as of a text without white space, which is one word.
    """

    token: float
    word: float | None
    tokens: int
    words: int
    context: int
    stride: int

    def to_json(self) -> dict[str, Any]:
        return asdict(self)


def count_words(text: str) -> int:
    return sum(len(line.split()) + 1 for line in text.splitlines())


def windows(tokens: Tensor, context: int, stride: int) -> tuple[Tensor, Tensor]:
    """Contexts [n, S + 1] of a text [N] and which of their predictions count [n, S], S = min(context, N - 1)."""
    if not 1 <= stride <= context:
        raise WattbitError(f"the stride must be within 1..{context}, the context's tokens, not {stride}")
    if len(tokens) < 2:
        raise WattbitError(f"the text has {len(tokens)} tokens, at least 2 are needed; give more text")
    last = len(tokens) - 1
    length = min(context, last)
    ends = [*range(length, last, stride), last]
    news = [length, *(end - before for before, end in pairwise(ends))]
    place = torch.arange(length + 1)
    contexts = tokens[torch.tensor(ends)[:, None] - length + place]
    return contexts, place[:length] >= length - torch.tensor(news)[:, None]


@torch.no_grad()
def perplexity(
    losses: Losses, tokens: Tensor, words: int, context: int, stride: int, progress: Progress = silent
) -> Perplexity:
    """Of a text's tokens [N] with `words` words; raises WattbitError where the loss is no number."""
    contexts, counted = windows(tokens, context, stride)
    size = max(1, BATCH_TOKENS // contexts.shape[1])
    nats = 0.0
    for start in range(0, len(contexts), size):
        rows = slice(start, start + size)
        found = losses(contexts[rows])
        nats += (found.double() * counted[rows].to(found.device)).sum().item()
        progress("perplexity", min(start + size, len(contexts)), len(contexts))
    predicted = len(tokens) - 1
    if not nats / predicted < MAX_NATS:  # NaN too
        raise WattbitError(f"the loss is {nats / predicted:g} nats a token; look at the model's weights")
    by_word = math.exp(nats / words) if nats / words < MAX_NATS else None
    return Perplexity(math.exp(nats / predicted), by_word, predicted, words, context, stride)


def learner_losses(learner: MoELearner, allocation: Allocation | None) -> Losses:
    """Of a learner's network with its experts at the widths of an allocation, None for float."""
    network = learner.network
    experts = None if allocation is None else learner.quantized_experts(allocation)

    def losses(contexts: Tensor) -> Tensor:
        contexts = contexts.to(network.device)
        return token_losses(network(contexts[:, :-1], experts)[0], contexts[:, 1:])

    return losses
