"""How far a changed model's predictions are from the float model's: what an expert's damage is measured by.

The divergence of a token is KL(float || changed): what the changed model's cross-entropy would rise by if the next
token were drawn from the float model's own prediction. It is never below 0 and has no term of first order in the
change. The rise of the cross-entropy on the text itself has one, which averages out over texts but not over a few
thousand tokens: for one expert at 3 bits and more it is larger than the damage (results/damage.md).
"""

from collections.abc import Callable
from typing import Self

import torch
from torch import Tensor

CHUNK = 2**24  # logits that a head makes at a time

MEASURE = "KL(float || changed), nats a token"
"""What a table of damage that is kept says of itself."""

Head = Callable[[Tensor], Tensor]
"""Logits [n, V] of rows [n, D]."""


class Predictions:
    """A float model's predictions of n tokens among V words: probabilities [n, V] and entropies [n] in nats."""

    def __init__(self, chance: Tensor, entropy: Tensor) -> None:
        self._chance, self._entropy = chance, entropy

    @classmethod
    def of(cls, head: Head, x: Tensor) -> Self:
        """Of rows x [n, D]."""
        size = max(1, CHUNK // head(x[:1]).shape[-1])
        chance = torch.cat([head(part).float().softmax(dim=-1) for part in x.split(size)])
        return cls(chance, cls(chance, chance.new_zeros(len(chance))).divergence(head, x))

    def divergence(self, head: Head, x: Tensor, tokens: Tensor | None = None) -> Tensor:
        """Nats [n] of a changed model's rows x [n, D], which are all tokens, or these of them [n]."""
        chance = self._chance if tokens is None else self._chance[tokens]
        entropy = self._entropy if tokens is None else self._entropy[tokens]
        size = max(1, CHUNK // chance.shape[1])
        found = []
        for rows, chances in zip(x.split(size), chance.split(size), strict=True):
            found.append(-torch.linalg.vecdot(chances, head(rows).float().log_softmax(dim=-1)))
        return torch.cat(found) - entropy
