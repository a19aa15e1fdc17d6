"""Models of one shape side by side, as one with a dimension more: each kernel does the work of all of them.

A GPU runs a model of this size no faster than it is told what to do next, so M models (other seeds, or other widths of
one) take little longer than one. Each gets what it would alone: they share no weight, their gradients are clipped
apart, and AdamW works on single numbers. Letters as in `wattbit.models.network`; M models, T tokens of each.
"""

from collections.abc import Callable, Mapping, Sequence
from typing import Self

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from wattbit.errors import WattbitError
from wattbit.models.config import ModelConfig
from wattbit.models.network import Experts, Routing, Transformer, apply_experts, rotate, token_losses
from wattbit.models.quant import LayerQuantizer
from wattbit.models.train import CLIP, make_optimizer
from wattbit.progress import Progress, silent

Contexts = Callable[[int], Tensor]
"""The contexts [M, B, S + 1] of a step."""


class Stack(nn.Module):
    """Copies of networks of one configuration; `write` puts one's weights back."""

    cos: Tensor
    sin: Tensor

    def __init__(self, config: ModelConfig, tensors: Mapping[str, Tensor], cos: Tensor, sin: Tensor) -> None:
        """tensors: each of a `Transformer`'s by name, [M, ...]. cos, sin: of its positions."""
        super().__init__()
        self.config = config
        self.tensors = nn.ParameterDict({_key(name): nn.Parameter(value) for name, value in tensors.items()})
        self.register_buffer("cos", cos, persistent=False)
        self.register_buffer("sin", sin, persistent=False)

    @classmethod
    def of(cls, networks: Sequence[Transformer]) -> Self:
        states = [network.state_dict() for network in networks]
        attention = networks[0].layers[0].attention
        tensors = {name: torch.stack([state[name] for state in states]) for name in states[0]}
        return cls(networks[0].config, tensors, attention.cos, attention.sin)

    def __len__(self) -> int:
        return len(self["norm.weight"])

    def __getitem__(self, name: str) -> Tensor:
        """The tensor [M, ...] of that name in each model."""
        return self.tensors[_key(name)]

    @property
    def device(self) -> torch.device:
        return self.cos.device

    def select(self, models: Sequence[int]) -> Self:
        """A stack of copies of some of the models, a model once for each time that it is named."""
        index = torch.tensor(models, device=self.device)
        tensors = {name: value.detach().index_select(0, index) for name, value in self.tensors.items()}
        return self.__class__(self.config, tensors, self.cos, self.sin)

    @torch.no_grad()
    def write(self, model: int, network: Transformer) -> None:
        """Copy a model's weights into a network."""
        network.load_state_dict({name: self[name][model] for name in network.state_dict()})

    def experts(self, quantizers: Sequence[LayerQuantizer]) -> list[Experts]:
        """Each layer's M E experts, quantized here; a layer's quantizer has the scales of model after model."""
        return [
            quantizer.experts(self._flat(f"blocks.{i}.mixture.w1"), self._flat(f"blocks.{i}.mixture.w2"))
            for i, quantizer in enumerate(quantizers)
        ]

    def hidden(self, tokens: Tensor, experts: Sequence[Experts] | None = None) -> tuple[Tensor, Tensor]:
        """Normalised stream [M, B, S, D] after the last block for tokens [M, B, S], and the models' load-balancing
        losses [M], summed over the layers. experts: one function a layer, of `experts`; None for the float ones."""
        places = self.config.vocab_size * torch.arange(len(tokens), device=tokens.device)
        x = F.embedding(tokens + places[:, None, None], self._flat("embedding.weight"))
        balance = x.new_zeros(len(tokens))
        for i in range(self.config.layers):
            x = x + self._attend(f"blocks.{i}.attention", self._norm(f"blocks.{i}.norm1", x))
            y, uneven = self._mix(i, self._norm(f"blocks.{i}.norm2", x), experts[i] if experts else None)
            x, balance = x + y, balance + uneven
        return self._norm("norm", x), balance

    def logits(self, hidden: Tensor) -> Tensor:
        """[M, B, S, V] of the normalised stream [M, B, S, D]."""
        return self._linear("embedding.weight", hidden)

    def _flat(self, name: str) -> Tensor:
        return self[name].flatten(0, 1)

    def _linear(self, name: str, x: Tensor) -> Tensor:
        """[M, ..., O] of x [M, ..., I] by each model's weights [O, I]."""
        return torch.bmm(x.flatten(1, -2), self[name].transpose(1, 2)).unflatten(1, x.shape[1:-1])

    def _norm(self, name: str, x: Tensor) -> Tensor:
        return F.layer_norm(x, x.shape[-1:]) * self[f"{name}.weight"][:, None, None]

    def _attend(self, name: str, x: Tensor) -> Tensor:
        models, batch, length, width = x.shape
        qkv = self._linear(f"{name}.qkv.weight", x).view(models * batch, length, 3, self.config.heads, -1)
        q, k, v = qkv.permute(2, 0, 3, 1, 4)  # [M B, heads, S, d]
        cos, sin = self.cos[:length], self.sin[:length]
        y = F.scaled_dot_product_attention(rotate(q, cos, sin), rotate(k, cos, sin), v, is_causal=True)
        return self._linear(f"{name}.out.weight", y.transpose(1, 2).reshape(models, batch, length, width))

    def _mix(self, layer: int, x: Tensor, experts: Experts | None) -> tuple[Tensor, Tensor]:
        """A mixture layer's outputs for x [M, B, S, D], and its load-balancing losses [M]."""
        E, K, name = self.config.experts, self.config.top_k, f"blocks.{layer}.mixture"
        chance = self._linear(f"{name}.router.weight", x).softmax(dim=-1).flatten(1, 2)  # [M, T, E]
        gates, chosen = chance.topk(K, dim=-1)
        gates = gates / gates.sum(dim=-1, keepdim=True)
        own = (chosen + E * torch.arange(len(x), device=x.device)[:, None, None]).flatten(0, 1)  # [M T, K]
        counts = own.flatten().bincount(minlength=len(x) * E)  # [M E]
        balance = E * (counts.view(-1, E) / (chosen[0].numel()) * chance.mean(dim=1)).sum(dim=1)
        routing = Routing(own, gates.flatten(0, 1), own.flatten().argsort(stable=True), counts.tolist(), balance)
        rows = x.flatten(0, 2).index_select(0, routing.tokens)
        if experts is None:
            y = apply_experts(rows, routing.counts, self._flat(f"{name}.w1"), self._flat(f"{name}.w2"))
        else:
            y = experts(rows, routing.counts)
        return routing.combine(y).view_as(x), balance


def stacked(layers: Sequence[Sequence[LayerQuantizer]]) -> list[LayerQuantizer]:
    """One quantizer a layer for a stack, from those of each of its models, model after model."""
    return [LayerQuantizer.joined(of_layer) for of_layer in zip(*layers, strict=True)]


def fit(
    stack: Stack,
    contexts: Contexts,
    rates: Sequence[float],
    balance: float,
    weight_decay: float = 0.0,
    quantizers: Sequence[LayerQuantizer] | None = None,
    teacher: Stack | None = None,
    taught: float = 0.0,
    bf16: bool = False,
    progress: Progress = silent,
) -> list[list[float]]:
    """One step a learning rate, as `wattbit.models.train` (float) and `MoELearner.finetune` (with quantizers) make
    them, for all models at once; returns each step's losses [M] in nats a token.

    teacher: a float model for each run of as many neighbours in the stack; taught: its share of the loss.
    """
    optimizer = make_optimizer(stack, rates[0], weight_decay)
    curve = []
    for step, rate in enumerate(rates):
        optimizer.param_groups[0]["lr"] = rate
        text = contexts(step).to(stack.device)
        with torch.autocast(stack.device.type, torch.bfloat16, enabled=bf16):
            hidden, uneven = stack.hidden(text[..., :-1], stack.experts(quantizers) if quantizers else None)
            logits = stack.logits(hidden)
            losses = goal = token_losses(logits, text[..., 1:]).flatten(1).mean(dim=1)  # [M]
            if teacher is not None:
                goal = torch.lerp(losses, divergence(teacher, text, logits), taught)
        descend(stack, optimizer, goal + balance * uneven)
        curve.append(losses.detach())
        progress("fit", step + 1, len(rates))
    found = torch.stack(curve)
    if not bool(found.isfinite().all()):
        raise WattbitError("a loss became no number; lower the learning rate")
    curve_of: list[list[float]] = found.tolist()
    return curve_of


def divergence(teacher: Stack, text: Tensor, logits: Tensor) -> Tensor:
    """Mean KL(teacher || model) in nats a token [M], see `wattbit.models.train.Teacher`; text [M, B, S + 1], logits
    [M, B, S, V] of the models. Neighbours that share a teacher share a text."""
    share = len(text) // len(teacher)
    with torch.no_grad():
        wanted = teacher.logits(teacher.hidden(text[::share, :, :-1])[0]).log_softmax(dim=-1)
    found = []
    for model, own in enumerate(logits):  # one after the other: a vocabulary's worth of each is large
        found.append(F.kl_div(own.log_softmax(dim=-1), wanted[model // share], reduction="none", log_target=True))
    return torch.stack([one.sum(dim=-1).mean() for one in found])


def descend(stack: Stack, optimizer: torch.optim.Optimizer, losses: Tensor) -> None:
    """An optimizer's step on losses [M], the gradients of each model clipped to a norm of `CLIP` together."""
    optimizer.zero_grad()
    losses.sum().backward()
    gradients = [p.grad for group in optimizer.param_groups for p in group["params"] if p.grad is not None]
    norm = torch.stack([g.flatten(1).square().sum(dim=1) for g in gradients]).sum(dim=0).sqrt()  # [M]
    factor = (CLIP / (norm + 1e-6)).clamp(max=1)
    for gradient in gradients:
        gradient.mul_(factor.view(-1, *[1] * (gradient.dim() - 1)))
    optimizer.step()


def falling(rate: float, steps: int) -> list[float]:
    """Learning rates that fall linearly to zero, as fine-tuning's do."""
    return [rate * (1 - step / steps) for step in range(steps)]


def _key(name: str) -> str:
    """A parameter's name may have no dot."""
    return name.replace(".", "/")
