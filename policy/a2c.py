"""Advantage actor-critic over experts (Mnih et al., arXiv 1602.01783, section 4, synchronous).

The plain policy gradient: one step on each batch, each expert and each gate with its own advantage. The critic is that
of `policy.rollout`: exact in an expert's own share, the other draws' mean in what is joint.
"""

from dataclasses import dataclass

from torch import Tensor

from wattbit.policy.network import PolicyNet, entropy, of_actions, of_gates
from wattbit.policy.rollout import Batch


@dataclass(frozen=True)
class A2C:
    """One gradient step on each batch of draws."""

    epochs: int = 1

    def loss(self, net: PolicyNet, observation: Tensor, batch: Batch, spread: float, gates: bool) -> Tensor:
        """To be minimised. spread: weight of the entropy. gates: whether the gates learn."""
        gate_logits = net.gates(observation)
        log_probs = net.experts(observation, batch.gates)
        experts = (of_actions(log_probs, batch.actions) * batch.advantage).mean()
        opened = (of_gates(gate_logits, batch.gates) * batch.gate_advantage).mean()
        return -experts - opened * gates - spread * entropy(gate_logits, log_probs)
