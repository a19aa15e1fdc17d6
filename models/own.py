"""wattbit's own transformer as an `ExpertModel`."""

from collections.abc import Callable, Sequence
from typing import Self

import torch
import torch.nn.functional as F
from torch import Tensor

from wattbit.errors import WattbitError
from wattbit.models.expert_model import LayerTrace, Matrices
from wattbit.models.learner import MoELearner
from wattbit.models.network import Block, MixtureLayer, Transformer, rotate, token_losses
from wattbit.models.pruning import prune, token_importance
from wattbit.models.statistics import gradient_norms
from wattbit.plan import ExpertId
from wattbit.recipe import Pruning


class OwnModel:
    """Implements `ExpertModel`; works where the network's tensors are."""

    first = ("w1",)
    last = "w2"

    def __init__(self, network: Transformer, initial_router_norms: Sequence[Sequence[float]] | None = None) -> None:
        self.network = network
        self._initial_router_norms = initial_router_norms

    @classmethod
    def of(cls, learner: MoELearner) -> Self:
        """The learner's own network, not a copy."""
        return cls(learner.network, learner.initial_router_norms)

    @property
    def expert_ids(self) -> tuple[ExpertId, ...]:
        return self.network.config.expert_ids

    @property
    def top_k(self) -> int:
        return self.network.config.top_k

    def matrices(self, expert: ExpertId) -> dict[str, Tensor]:
        return {name: weights.detach().clone() for name, weights in self._weights(expert).items()}

    @torch.no_grad()
    def replace(self, expert: ExpertId, matrices: Matrices) -> None:
        for name, weights in self._weights(expert).items():
            weights.copy_(matrices[name])

    def router(self, layer: int) -> Tensor:
        return self.network.layers[layer].mixture.router.weight.detach()

    def initial_router_norms(self, layer: int) -> Sequence[float] | None:
        return None if self._initial_router_norms is None else self._initial_router_norms[layer]

    def hidden(self, matrices: Matrices, x: Tensor) -> Tensor:
        return F.linear(x, matrices["w1"]).relu()

    @torch.no_grad()
    def trace(self, contexts: Tensor) -> list[LayerTrace]:
        found = []
        x = self.network.embedding(contexts.to(self.network.device))
        for block in self.network.layers:
            x, inputs = block.attend(x)
            y, routing = block.mixture(inputs)
            found.append(LayerTrace(inputs, routing.experts, routing.gates))
            x = x + y.view_as(x)
        return found

    def gradient_norms(self, contexts: Tensor) -> dict[ExpertId, float]:
        return gradient_norms(self.network, contexts.to(self.network.device))

    @torch.no_grad()
    def losses(self, contexts: Tensor, pruning: Pruning | None = None) -> Tensor:
        contexts = contexts.to(self.network.device)
        if pruning is None:
            logits, _ = self.network(contexts[:, :-1])
        else:
            logits = self._pruned(contexts[:, :-1], pruning)
        return token_losses(logits, contexts[:, 1:])

    @torch.no_grad()
    def tail(self, layer: int, contexts: Tensor) -> Callable[[], Tensor]:
        contexts = contexts.to(self.network.device)
        x = self.network.embedding(contexts[:, :-1])
        for block in self.network.layers[:layer]:
            x, _ = block(x)
        first, *later = self.network.layers[layer:]
        attended, inputs = first.attend(x)

        @torch.no_grad()
        def logits() -> Tensor:
            y = attended + first.mixture(inputs)[0].view_as(attended)
            for block in later:
                y, _ = block(y)
            return self.network.head(y)

        return logits

    def _weights(self, expert: ExpertId) -> dict[str, Tensor]:
        mixture = self.network.layers[expert.layer].mixture
        return {"w1": mixture.w1[expert.expert], "w2": mixture.w2[expert.expert]}

    def _pruned(self, tokens: Tensor, pruning: Pruning) -> Tensor:
        """Logits [B, S, V]."""
        if len(pruning.ratio) != len(self.network.layers):
            raise WattbitError(f"pruning has {len(pruning.ratio)} ratios, the model {len(self.network.layers)} layers")
        x = self.network.embedding(tokens)
        for block, ratio in zip(self.network.layers, pruning.ratio, strict=True):
            attention = attention_weights(block, x)
            x, inputs = block.attend(x)
            gates, experts, _ = block.mixture.choose(inputs)
            gates = prune(gates, ratio, token_importance(inputs.view_as(x), attention), pruning.protected)
            x = x + kept_experts(block.mixture, inputs, gates / gates.sum(dim=-1, keepdim=True), experts).view_as(x)
        return self.network.head(x)


def kept_experts(mixture: MixtureLayer, x: Tensor, gates: Tensor, experts: Tensor) -> Tensor:
    """A mixture layer's outputs [T, D] for x [T, D] by gates and experts [T, K]; where a gate is 0 no expert runs."""
    top_k = experts.shape[1]
    order = experts.flatten().argsort(stable=True)
    order = order[gates.flatten()[order] > 0]  # [N] the routed rows t * K + k that are left
    counts = experts.flatten()[order].bincount(minlength=len(mixture.w1)).tolist()
    y = mixture.float_experts(x.index_select(0, order // top_k), counts) * gates.flatten()[order, None]
    return torch.zeros_like(x).index_add(0, order // top_k, y)


def attention_weights(block: Block, x: Tensor) -> Tensor:
    """Attention weights [B, heads, S, S] of a block on its stream x [B, S, D]."""
    attention = block.attention
    batch, length, _ = x.shape
    q, k, _ = attention.qkv(block.norm1(x)).view(batch, length, 3, attention.heads, -1).permute(2, 0, 3, 1, 4)
    cos, sin = attention.cos[:length], attention.sin[:length]
    q, k = rotate(q, cos, sin), rotate(k, cos, sin)
    scores = q @ k.transpose(-1, -2) * q.shape[-1] ** -0.5
    later = torch.ones(length, length, dtype=torch.bool, device=x.device).triu(1)
    return scores.masked_fill(later, -torch.inf).softmax(dim=-1)
