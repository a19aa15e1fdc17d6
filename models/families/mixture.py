"""One mixture layer of a transformers network: its experts' matrices, its router and what it is called with.

T tokens, K experts of each, E experts, D model width, H hidden width.
"""

from collections.abc import Mapping, Sequence
from typing import Any, Protocol

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from wattbit.models.expert_model import LayerTrace

Call = tuple[Any, ...]
"""Positional arguments of the experts module."""


class Mixture(Protocol):
    """What a family's adapter needs of a mixture layer. experts: the module that is called with tokens and routing."""

    experts: nn.Module

    @property
    def count(self) -> int: ...

    def matrices(self, expert: int) -> dict[str, Tensor]:
        """Views of the weights by name."""
        ...

    def gradients(self, expert: int) -> list[Tensor]:
        """Gradients of the weights; none where the expert had no token."""
        ...

    def router(self) -> Tensor: ...

    def hidden(self, matrices: Mapping[str, Tensor], x: Tensor) -> Tensor: ...

    def routed(self, call: Call) -> LayerTrace:
        """What the experts module was called with."""
        ...


class FusedMixture:
    """Experts in two parameters: gate_up_proj [E, 2 H, D], the gates' rows first, and down_proj [E, D, H].

    The module is called with tokens [T, D], experts [T, K] and gates [T, K].
    """

    def __init__(self, block: nn.Module) -> None:
        self.experts: Any = block.experts
        self.gate: Any = block.gate

    @property
    def count(self) -> int:
        return len(self.experts.down_proj)

    def matrices(self, expert: int) -> dict[str, Tensor]:
        gate, up = self.experts.gate_up_proj[expert].chunk(2)
        return {"gate": gate, "up": up, "down": self.experts.down_proj[expert]}

    def gradients(self, expert: int) -> list[Tensor]:
        found = (self.experts.gate_up_proj.grad, self.experts.down_proj.grad)
        return [grad[expert] for grad in found if grad is not None]

    def router(self) -> Tensor:
        return self.gate.weight

    def hidden(self, matrices: Mapping[str, Tensor], x: Tensor) -> Tensor:
        return self.experts.act_fn(F.linear(x, matrices["gate"])) * F.linear(x, matrices["up"])

    def routed(self, call: Call) -> LayerTrace:
        inputs, experts, gates = call
        return LayerTrace(inputs, experts, gates)


class SwitchMixture:
    """Experts in a module each, which a token reaches by a one-hot row [T, 1, E]; it is zero for a token over capacity,
    which no expert sees and which the trace therefore leaves out."""

    def __init__(self, block: nn.Module) -> None:
        self.experts: Any = block.experts
        self.classifier: Any = block.router

    @property
    def count(self) -> int:
        return len(self.experts)

    def matrices(self, expert: int) -> dict[str, Tensor]:
        module = self.experts[f"expert_{expert}"]
        return {"w1": module.wi.weight, "w2": module.wo.weight}

    def gradients(self, expert: int) -> list[Tensor]:
        return [p.grad for p in self.experts[f"expert_{expert}"].parameters() if p.grad is not None]

    def router(self) -> Tensor:
        return self.classifier.classifier.weight

    def hidden(self, matrices: Mapping[str, Tensor], x: Tensor) -> Tensor:
        return self.experts["expert_0"].act(F.linear(x, matrices["w1"]))

    def routed(self, call: Call) -> LayerTrace:
        inputs, chosen, gates = call
        kept = chosen.any(dim=-1).squeeze(1)  # [T]
        return LayerTrace(inputs[kept], chosen[kept].argmax(dim=-1), gates[kept])


@torch.no_grad()
def replace(mixture: Mixture, expert: int, matrices: Mapping[str, Tensor]) -> None:
    """Write an expert's weights in place."""
    for name, parameter in mixture.matrices(expert).items():
        parameter.copy_(matrices[name])


def joined(parts: Sequence[LayerTrace]) -> LayerTrace:
    """One trace of several after each other."""
    inputs, experts, gates = (torch.cat([getattr(p, name) for p in parts]) for name in ("inputs", "experts", "gates"))
    return LayerTrace(inputs, experts, gates)
