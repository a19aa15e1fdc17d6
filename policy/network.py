"""The policy: one network for every expert, under gates that say which widths are open.

    pi(g, a) = prod_k Bernoulli(g_k; gate network on the mean observation) * prod_i Categorical(a_i; open widths)

The expert network reads one expert's row of the observation and the gates, so the same weights work for 8 and for 512
experts, in any order, and all experts are one batched Categorical. The environment sees a, the gates are the policy's
own. Dropping a width class frees its hardware only once its last expert leaves, which independent draws would hardly
ever try; a gate tries it in one draw. Without any open gate all widths are open.
"""

import torch
from torch import Tensor, nn
from torch.nn.functional import logsigmoid

from wattbit.policy.problem import Choice


class PolicyNet(nn.Module):
    """Logits of the gates and of every expert's widths, for any number of experts N."""

    def __init__(self, features: int, widths: int, hidden: int) -> None:
        super().__init__()
        self.gate = nn.Sequential(nn.Linear(features, hidden), nn.Tanh(), nn.Linear(hidden, widths))
        self.expert = nn.Sequential(
            nn.Linear(features + widths, hidden),
            nn.Tanh(),
            nn.Linear(hidden, hidden),
            nn.Tanh(),
            nn.Linear(hidden, widths),
        )

    def start(self, generator: torch.Generator) -> None:
        """Draw orthogonal weights; small last layers, so that every width starts about as likely."""
        for network in (self.gate, self.expert):
            linear = [layer for layer in network if isinstance(layer, nn.Linear)]
            for layer in linear:
                gain = 0.01 if layer is linear[-1] else 1.0
                nn.init.orthogonal_(layer.weight, gain, generator=generator)
                nn.init.zeros_(layer.bias)

    def gates(self, observation: Tensor) -> Tensor:
        """Logits [K] of an observation [N, F]."""
        logits: Tensor = self.gate(observation.mean(dim=0))
        return logits

    def experts(self, observation: Tensor, gates: Tensor) -> Tensor:
        """Log-probabilities [G, N, K] of an observation [N, F] under gate settings [G, K]; closed widths are -1e9."""
        rows = observation.expand(len(gates), -1, -1)
        columns = gates[:, None, :].expand(-1, rows.shape[1], -1)
        logits: Tensor = self.expert(torch.cat([rows, columns], dim=-1))
        opened = torch.where(gates.any(dim=1, keepdim=True), gates, 1.0)[:, None, :]
        return logits.masked_fill(opened == 0, -1e9).log_softmax(dim=-1)

    @torch.no_grad()
    def mode(self, observation: Tensor) -> Choice:
        """The likeliest choice [N] under the likeliest gates."""
        gates = (self.gates(observation) > 0).float()[None]
        choice: Choice = self.experts(observation, gates)[0].argmax(dim=-1).numpy()
        return choice


def of_gates(logits: Tensor, gates: Tensor) -> Tensor:
    """Log-probabilities [G, K] of gates [G, K], each 0 or 1, under logits [K]."""
    return logsigmoid((2 * gates - 1) * logits)


def of_actions(log_probs: Tensor, actions: Tensor) -> Tensor:
    """Log-probabilities [G, S, N] of actions [G, S, N] under [G, N, K]."""
    rows = log_probs[:, None].expand(-1, actions.shape[1], -1, -1)
    return rows.gather(-1, actions[..., None])[..., 0]


def entropy(gate_logits: Tensor, log_probs: Tensor) -> Tensor:
    """Mean entropy in nats of an expert's choice, given log-probabilities [G, N, K], plus that of a gate [K]."""
    both = torch.stack([logsigmoid(gate_logits), logsigmoid(-gate_logits)], dim=-1)  # [K, 2]
    return _mean_entropy(log_probs) + _mean_entropy(both)


def _mean_entropy(log_probs: Tensor) -> Tensor:
    return -(log_probs.exp() * log_probs).sum(dim=-1).mean()
