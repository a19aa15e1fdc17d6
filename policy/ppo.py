"""Proximal policy optimisation over experts (Schulman et al., arXiv 1707.06347, section 3).

The clipped surrogate has one ratio per expert and one per gate: a joint ratio over 512 experts leaves the clip range at
once. One step is an episode and the baselines of `policy.rollout` are exact in an expert's own share, so there is no
value network.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from wattbit.policy.network import PolicyNet, entropy, of_actions, of_gates
from wattbit.policy.rollout import Batch


@dataclass(frozen=True)
class PPO:
    """Several gradient steps on each batch of draws."""

    epochs: int = 2
    clip: float = 0.2
    """A ratio beyond 1 +- clip stops pulling."""

    def loss(self, net: PolicyNet, observation: Tensor, batch: Batch, spread: float, gates: bool) -> Tensor:
        """To be minimised. spread: weight of the entropy. gates: whether the gates learn."""
        gate_logits = net.gates(observation)
        log_probs = net.experts(observation, batch.gates)
        experts = self._surrogate(of_actions(log_probs, batch.actions), batch.log_probs, batch.advantage)
        opened = self._surrogate(of_gates(gate_logits, batch.gates), batch.gate_log_probs, batch.gate_advantage)
        return -experts - opened * gates - spread * entropy(gate_logits, log_probs)

    def _surrogate(self, log_probs: Tensor, old: Tensor, advantage: Tensor) -> Tensor:
        """The clipped objective, with one ratio per element."""
        ratio = (log_probs - old).exp()
        clipped = ratio.clamp(1 - self.clip, 1 + self.clip)
        objective: Tensor = torch.minimum(ratio * advantage, clipped * advantage).mean()
        return objective
