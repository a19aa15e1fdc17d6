"""Which tokens a step, a validation or a calibration sees. All are functions of the corpus and a seed alone."""

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from wattbit.models.data import Tokens, load_tokens

VALID_CONTEXTS = 384  # two thirds of them price a model in perplexity, one third gives the statistics
CALIBRATION_CONTEXTS = 32
CALIBRATION_SEED = 2**31  # apart from training's seeds


@dataclass(frozen=True, eq=False)
class Samples:
    """Contexts are [n, S + 1]: inputs and, one further, targets.

    train: all training tokens.
    valid: fixed contexts for perplexity.
    held: other fixed contexts of the validation text, for statistics, so that what chooses widths does not judge them.
    calibration: contexts of the training text, for the scales.
    """

    train: Tokens
    valid: Tensor
    held: Tensor
    calibration: Tensor

    @classmethod
    def load(cls, data: Path, context: int) -> "Samples":
        train = load_tokens(data, "train", context + 1)
        tokens = load_tokens(data, "valid", 3 * context + 1)
        spread = _spread(tokens, context)
        held = torch.zeros(len(spread), dtype=torch.bool)
        held[1::3] = True
        calibration = draw(train, context, CALIBRATION_CONTEXTS, CALIBRATION_SEED, 0)
        return cls(train, spread[~held], spread[held], calibration)


def draw(tokens: Tokens, context: int, batch: int, seed: int, step: int) -> Tensor:
    """Contexts [batch, context + 1] of one step: a function of seed and step, so that resuming needs no state."""
    starts = np.random.default_rng([seed, step]).integers(0, len(tokens) - context, size=batch)
    return _contexts(tokens, starts, context)


def _spread(tokens: Tokens, context: int) -> Tensor:
    """Contexts spread evenly over all tokens, without overlap."""
    count = min(VALID_CONTEXTS, (len(tokens) - 1) // context)
    return _contexts(tokens, np.linspace(0, len(tokens) - context - 1, count).astype(np.int64), context)


def _contexts(tokens: Tokens, starts: np.ndarray[tuple[int], np.dtype[np.int64]], context: int) -> Tensor:
    return torch.from_numpy(tokens[starts[:, None] + np.arange(context + 1)].astype(np.int64))
