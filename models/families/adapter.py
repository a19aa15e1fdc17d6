"""A transformers network of a family as `wattbit.models.expert_model.ExpertModel`."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from wattbit.errors import WattbitError
from wattbit.models.expert_model import LayerTrace, Matrices
from wattbit.models.families.family import Family
from wattbit.models.families.mixture import Call, Mixture, joined, replace
from wattbit.models.pruning import prune, token_importance
from wattbit.plan import ExpertId
from wattbit.recipe import Pruning

BATCH_TOKENS = 2048  # in a pass; the logits of a vocabulary of 150,000 take 1.2 GB at that


class FamilyModel:
    """The network of a checkpoint's folder. Mixture layers are counted from 0 in the order that tokens pass them."""

    def __init__(self, family: Family, network: Any, folder: Path) -> None:
        self.family = family
        self.network = network
        self.folder = folder
        layers = [network.get_submodule(name) for name in family.layers(network)]
        found = [(layer, mixture) for layer in layers if (mixture := family.mixture(layer)) is not None]
        self.mixtures: list[Mixture] = [mixture for _, mixture in found]
        self._depths = [i for i, layer in enumerate(layers) if family.mixture(layer) is not None]
        self._attentions = [family.attention(layer) for layer, _ in found] if self.top_k > 1 else []

    @property
    def expert_ids(self) -> tuple[ExpertId, ...]:
        return tuple(ExpertId(i, e) for i, mixture in enumerate(self.mixtures) for e in range(mixture.count))

    @property
    def top_k(self) -> int:
        return self.family.top_k(self.network.config)

    @property
    def first(self) -> tuple[str, ...]:
        return self.family.first

    @property
    def last(self) -> str:
        return self.family.last

    def matrices(self, expert: ExpertId) -> dict[str, Tensor]:
        found = self.mixtures[expert.layer].matrices(expert.expert)
        return {name: matrix.detach().clone() for name, matrix in found.items()}

    def replace(self, expert: ExpertId, matrices: Matrices) -> None:
        replace(self.mixtures[expert.layer], expert.expert, matrices)

    def router(self, layer: int) -> Tensor:
        return self.mixtures[layer].router().detach().clone()

    def initial_router_norms(self, layer: int) -> Sequence[float] | None:
        """None: checkpoints do not hold the router as it was before training."""
        return None

    def hidden(self, matrices: Mapping[str, Tensor], x: Tensor) -> Tensor:
        return self.mixtures[0].hidden(matrices, x)

    @torch.no_grad()
    def trace(self, contexts: Tensor) -> list[LayerTrace]:
        """One a mixture layer, on contexts [n, S]. A token that no expert saw (Switch, over capacity) is left out."""
        found: list[list[LayerTrace]] = [[] for _ in self.mixtures]

        def record(layer: int, call: Call) -> None:
            found[layer].append(self.mixtures[layer].routed(call))

        with self._watching(record):
            for part in self._batches(contexts):
                self.family.run(self.network, part)
        return [joined(parts) for parts in found]

    def gradient_norms(self, contexts: Tensor) -> dict[ExpertId, float]:
        """L2 norm of the gradient of the mean loss over each expert's weights, on contexts [n, S + 1]."""
        parameters = [parameter for mixture in self.mixtures for parameter in mixture.experts.parameters()]
        for parameter in parameters:
            parameter.requires_grad_(True)
        try:
            for part in self._batches(contexts):
                loss = self.family.losses(self.network, part)
                (loss.mean() * len(part) / len(contexts)).backward()
            return {expert: self._gradient_norm(expert) for expert in self.expert_ids}
        finally:
            for parameter in parameters:
                parameter.requires_grad_(False)
                parameter.grad = None

    def _gradient_norm(self, expert: ExpertId) -> float:
        found = self.mixtures[expert.layer].gradients(expert.expert)
        return float(torch.stack([part.float().norm() for part in found]).norm()) if found else 0.0

    @torch.no_grad()
    def losses(self, contexts: Tensor, pruning: Pruning | None = None) -> Tensor:
        """Cross-entropy in nats [n, S] of the last S tokens of contexts [n, S + 1]; see the family for Switch."""
        with self._pruned(pruning) if pruning else nullcontext():
            return torch.cat([self.family.losses(self.network, part) for part in self._batches(contexts)])

    @torch.no_grad()
    def tail(self, layer: int, contexts: Tensor) -> Callable[[], Tensor]:
        parts = [self.family.tail(self.network, self._depths[layer], part) for part in self._batches(contexts)]

        @torch.no_grad()
        def logits() -> Tensor:
            return torch.cat([part() for part in parts])

        return logits

    def _batches(self, contexts: Tensor) -> Iterator[Tensor]:
        device = next(self.network.parameters()).device
        for part in contexts.split(max(1, BATCH_TOKENS // contexts.shape[1])):
            yield part.long().to(device)

    @contextmanager
    def _watching(self, see: Callable[[int, Call], Call | None]) -> Iterator[None]:
        """`see` is told what each mixture layer's experts are called with, and may say what instead."""
        hooks = [
            mixture.experts.register_forward_pre_hook(lambda _, call, layer=layer: see(layer, call))
            for layer, mixture in enumerate(self.mixtures)
        ]
        try:
            yield
        finally:
            for hook in hooks:
                hook.remove()

    @contextmanager
    def _pruned(self, pruning: Pruning) -> Iterator[None]:
        """Tokens drop experts as `wattbit.models.pruning` says; the experts left share out the gates of the dropped."""
        if self.top_k == 1:
            raise WattbitError("each token of this model has one expert, which pruning would drop; leave pruning out")
        if len(pruning.ratio) != len(self.mixtures):
            raise WattbitError(
                f"pruning has {len(pruning.ratio)} ratios, the model {len(self.mixtures)} mixture layers; make it anew"
            )
        paid: dict[int, Tensor] = {}

        def attended(layer: int, output: tuple[Tensor, Tensor]) -> None:
            paid[layer] = output[1]  # [B, heads, S, S]

        def see(layer: int, call: Call) -> Call:
            routed, attention = self.mixtures[layer].routed(call), paid.pop(layer)
            gates, order = routed.gates.sort(dim=1, descending=True)
            importance = token_importance(routed.inputs.unflatten(0, (len(attention), -1)).float(), attention.float())
            left = prune(gates, pruning.ratio[layer], importance, pruning.protected)
            left = left * (gates.sum(dim=1, keepdim=True) / left.sum(dim=1, keepdim=True))
            experts = routed.experts.gather(1, order)
            return routed.inputs, experts.masked_fill(left == 0, self.mixtures[layer].count), left  # none's, not run

        before = self.network.config._attn_implementation
        self.network.set_attn_implementation("eager")  # the others do not say what was attended to
        hooks = [
            attention.register_forward_hook(lambda _, call, output, layer=layer: attended(layer, output))
            for layer, attention in enumerate(self._attentions)
        ]
        try:
            with self._watching(see):
                yield
        finally:
            for hook in hooks:
                hook.remove()
            self.network.set_attn_implementation(before)
