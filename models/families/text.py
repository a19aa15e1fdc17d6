"""Text as a checkpoint's own tokens."""

from collections.abc import Iterable
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from wattbit.errors import WattbitError

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


def first_contexts(tokenizer: "PreTrainedTokenizerBase", texts: Iterable[str], count: int, length: int) -> Tensor:
    """The first count * length tokens of texts that follow each other, as contexts [count, length] int64."""
    found: list[int] = []
    for text in texts:
        found += tokenizer(text, add_special_tokens=False, verbose=False)["input_ids"]
        if len(found) >= count * length:
            return torch.tensor(found[: count * length]).view(count, length)
    raise WattbitError(f"the text has {len(found)} tokens, {count * length} are needed; give more or ask for fewer")
