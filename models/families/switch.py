"""Switch Transformer: an encoder and a decoder as T5's, one ReLU expert for a token, every other layer dense.

It is no causal language model: it was trained to fill in spans. Its losses here are those of a sequence to sequence
model without spans: the encoder reads a context's first half and the decoder, teacher-forced, predicts the second from
that and from the tokens of the second half so far. They compare widths of one model with each other, not Switch with a
decoder-only model, and a checkpoint that was only pretrained on spans has a high perplexity by them.
"""

from collections.abc import Callable
from typing import Any

from torch import Tensor, nn

from wattbit.models.families.family import Family
from wattbit.models.families.mixture import Mixture, SwitchMixture
from wattbit.models.network import token_losses

PREFIX = 2  # a context of n tokens is read up to n // PREFIX


class Switch(Family):
    """Mixture layers are counted through the encoder, then through the decoder."""

    first = ("w1",)
    last = "w2"

    def layers(self, network: nn.Module) -> list[str]:
        return [
            f"{part}.block.{i}"
            for part in ("encoder", "decoder")
            for i, _ in enumerate(network.get_submodule(f"{part}.block").children())
        ]

    def block(self, layer: Any) -> nn.Module:
        return layer.layer[-1].mlp

    def mixture(self, layer: nn.Module) -> Mixture | None:
        block = self.block(layer)
        return SwitchMixture(block) if hasattr(block, "experts") else None

    def top_k(self, config: Any) -> int:
        return 1

    def losses(self, network: Any, contexts: Tensor) -> Tensor:
        """[n, S + 1 - (S + 1) // 2] of the second half of contexts [n, S + 1]."""
        return token_losses(self._logits(network, contexts), _halves(contexts)[1])

    def tail(self, network: Any, depth: int, contexts: Tensor) -> Callable[[], Tensor]:
        """Nothing is computed beforehand: blocks take positions from the first, and the decoder reads the encoder."""
        return lambda: self._logits(network, contexts)

    def run(self, network: Any, contexts: Tensor) -> None:
        self.losses(network, contexts)

    def _logits(self, network: Any, contexts: Tensor) -> Tensor:
        """[n, S + 1 - (S + 1) // 2, V] of the second half of contexts [n, S + 1]."""
        first, second = _halves(contexts)
        logits: Tensor = network(first, decoder_input_ids=network._shift_right(second), use_cache=False).logits
        return logits

    def buffers(self, network: Any, device: str) -> None:
        """It has none: positions are learned."""


def _halves(contexts: Tensor) -> tuple[Tensor, Tensor]:
    """What the encoder reads of contexts [n, S + 1], and what the decoder predicts."""
    first, second = contexts.tensor_split([contexts.shape[1] // PREFIX], dim=1)
    return first, second


SWITCH = Switch(classes={"switch_transformers": "SwitchTransformersForConditionalGeneration"})
