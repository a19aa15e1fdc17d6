"""What calibration text says of each expert: `wattbit.plan.ExpertStats`."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor

from wattbit.models.divergence import Predictions
from wattbit.models.expert import BrevitasExpert
from wattbit.models.network import Routing, Transformer, token_losses
from wattbit.plan import ExpertId, ExpertStats
from wattbit.progress import Progress, silent

GRADIENT_CONTEXTS = 16  # that go through the network together
DAMAGE_CONTEXTS = 64  # that damage is measured on: so few tell experts apart (results/damage.md)

Quantized = Callable[[ExpertId, int], BrevitasExpert]
"""The expert at a weight width."""


def expert_stats(
    network: Transformer,
    contexts: Tensor,
    initial_router_norms: Sequence[Sequence[float]],
    weight_bits: Sequence[int],
    quantized: Quantized,
    progress: Progress = silent,
) -> tuple[ExpertStats, ...]:
    """Statistics on contexts [n, S + 1], with each expert alone quantized at each width on `some` of them."""
    gradients = gradient_norms(network, contexts)
    with torch.no_grad():
        trace, part = _Trace.of(network, contexts), _Trace.of(network, some(contexts))
        found = []
        for identity in network.config.expert_ids:
            damage = tuple((bits, part.damage(quantized(identity, bits))) for bits in sorted(weight_bits))
            found.append(_describe(network, trace, identity, initial_router_norms, gradients[identity], damage))
            progress("damage", len(found), len(network.config.expert_ids))
    return tuple(found)


def some(contexts: Tensor) -> Tensor:
    """At least `DAMAGE_CONTEXTS` of the contexts, spread over them; all where there are fewer."""
    return contexts[:: max(1, len(contexts) // DAMAGE_CONTEXTS)]


def _describe(
    network: Transformer,
    trace: "_Trace",
    identity: ExpertId,
    initial_router_norms: Sequence[Sequence[float]],
    gradient_norm: float,
    damage: tuple[tuple[int, float], ...],
) -> ExpertStats:
    layer, e = identity.layer, identity.expert
    mixture, routing = network.layers[layer].mixture, trace.layers[layer].routing
    weights = torch.cat([mixture.w1[e].flatten(), mixture.w2[e].flatten()]).double()
    centred = weights - weights.mean()
    return ExpertStats(
        expert=identity,
        frequency=routing.counts[e] / routing.experts.numel(),
        contribution=(routing.gates[routing.experts == e].sum() / routing.gates.sum()).item(),
        gradient_norm=gradient_norm,
        router_change=mixture.router.weight[e].norm().item() - initial_router_norms[layer][e],
        max_variance=mixture.w1[e].var(dim=1).max().item(),
        kurtosis=(centred.pow(4).mean() / centred.pow(2).mean().square() - 3).item(),
        damage=damage,
        tokens=routing.counts[e],
    )


def gradient_norms(network: Transformer, contexts: Tensor) -> dict[ExpertId, float]:
    """L2 norm of the gradient of the mean loss over each expert's weights, on contexts [n, S + 1]."""
    network.zero_grad()
    for part in contexts.split(GRADIENT_CONTEXTS):
        loss = token_losses(network(part[:, :-1])[0], part[:, 1:])
        (loss.sum() / contexts[:, 1:].numel()).backward()
    norms = {}
    for identity in network.config.expert_ids:
        mixture = network.layers[identity.layer].mixture
        parts = [w.grad[identity.expert].norm() for w in (mixture.w1, mixture.w2) if w.grad is not None]
        norms[identity] = torch.stack(parts).norm().item()
    network.zero_grad()
    return norms


@dataclass(frozen=True, eq=False)
class _LayerTrace:
    """A mixture layer of the float model. stream, inputs and the sorted rows' outputs, with what routed them."""

    stream: Tensor  # [B, S, D] after attention
    inputs: Tensor  # [N, D] sorted by expert
    outputs: Tensor  # [N, D]
    combined: Tensor  # [T, D]
    routing: Routing


@dataclass(frozen=True, eq=False)
class _Trace:
    """The float model's activations on the contexts, so that a changed expert costs only what follows from it."""

    network: Transformer
    stream: Tensor  # [T, D] after the last block
    layers: list[_LayerTrace]

    @cached_property
    def predictions(self) -> Predictions:
        return Predictions.of(self.network.head, self.stream)

    @classmethod
    def of(cls, network: Transformer, contexts: Tensor) -> "_Trace":
        x = network.embedding(contexts[:, :-1])
        layers = []
        for block in network.layers:
            x, inputs = block.attend(x)
            routing = block.mixture.route(inputs)
            rows = inputs.index_select(0, routing.tokens)
            outputs = block.mixture.float_experts(rows, routing.counts)
            combined = routing.combine(outputs)
            layers.append(_LayerTrace(x, rows, outputs, combined, routing))
            x = x + combined.view_as(x)
        return cls(network, x.flatten(0, 1), layers)

    def damage(self, expert: BrevitasExpert) -> float:
        """Mean divergence from the float model with this expert in place of its float weights, in nats a token."""
        index, layer = expert.expert.layer, self.layers[expert.expert.layer]
        first = sum(layer.routing.counts[: expert.expert.expert])
        rows = slice(first, first + layer.routing.counts[expert.expert.expert])
        if rows.start == rows.stop:
            return 0.0
        tokens = layer.routing.tokens[rows]
        gates = layer.routing.gates.flatten()[layer.routing.order[rows]]
        change = gates[:, None] * (expert(layer.inputs[rows]) - layer.outputs[rows])  # [n, D]
        x = (layer.stream.flatten(0, 1) + layer.combined).index_add(0, tokens, change)  # [T, D]
        if index == len(self.layers) - 1:  # nothing mixes tokens any more
            divergence = self.predictions.divergence(self.network.head, x[tokens], tokens)
            return divergence.double().sum().item() / len(x)
        x = x.view_as(layer.stream)
        for block in self.network.layers[index + 1 :]:
            x, _ = block(x)
        return self.predictions.divergence(self.network.head, x.flatten(0, 1)).double().mean().item()
