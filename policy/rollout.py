"""Draws of a policy and the credit that each expert and each gate gets for them.

An iteration draws G gate settings and S choices of each. While learning, memory is not the hinge of the reward but a
price, y_g nats a bit: under a hinge any choice that just fits is a local optimum, for an expert can't take the bit that
another gives up; under a price each decides alone. y_g starts as `Problem.price` of the open widths and follows the
bits that their choices take (dual ascent), for hardware pulls widths too. So

    R_g(a) = -sum_i d_i(a_i) - y_g (sum_i b(a_i) - B) - H(a)

and only the meter's H is joint. With g_i(a_i) the share of it that `policy.critic` has learned to be expert i's, and
J(a) = H(a) - sum_i g_i(a_i) what is left, expert i's advantage is

    A_i = E_pi [c_i] - c_i(a_i),  c_i = d_i + y_g b + g_i    its own share, E_pi over its K widths in closed form
          + (mean_s J - J(a)) S / (S - 1)                    joint, against the other choices of the same gate setting

divided by its root mean square over the batch, expert by expert, so that a rare expert's small damage moves its choice
as surely as a busy one's (not by its standard deviation, which is 0 where all draws agree). A gate setting's advantage
is its mean R_g against that of the other settings, standardised.
"""

from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from wattbit.policy.critic import Critic
from wattbit.policy.environment import AllocationEnv
from wattbit.policy.network import PolicyNet, of_actions, of_gates
from wattbit.policy.problem import Choice, Floats, Problem


class Prices:
    """What a bit costs in nats under each gate setting."""

    def __init__(self, problem: Problem, rate: float) -> None:
        self.problem = problem
        self.rate = rate
        self._known: dict[bytes, float] = {}

    def of(self, gates: NDArray[np.bool_]) -> float:
        """y_g of gates [K]; at most twice the price of all widths, which is where it starts if no choice fits."""
        key = gates.tobytes()
        if key not in self._known:
            opened = gates if gates.any() else np.ones_like(gates)
            self._known[key] = min(self.problem.price(opened), self.problem.penalty / self.problem.budget)
        return self._known[key]

    def adapt(self, gates: NDArray[np.bool_], bits: float) -> None:
        """Raise the price if these gates' choices took more bits than the budget, else lower it."""
        price = self.of(gates) * float(np.exp(self.rate * (bits / self.problem.budget - 1)))
        self._known[gates.tobytes()] = min(price, self.problem.penalty / self.problem.budget)


class Best:
    """The best choice offered so far, after its repair to the budget."""

    def __init__(self, problem: Problem) -> None:
        self.problem = problem
        self.choice: Choice = np.zeros(0, dtype=np.int64)
        self.reward = -np.inf

    def offer_uniform(self) -> None:
        """Every action alone, which the observation has had priced."""
        experts, actions = self.problem.size
        for k in range(actions):
            choice = np.full(experts, k)
            if self.problem.fits(choice):
                self.offer(choice)

    def offer(self, choice: Choice) -> None:
        for repaired in (self.problem.fit(choice), self.problem.shrink(choice)):
            reward = self.problem.reward(repaired)
            if reward > self.reward:
                self.choice, self.reward = repaired, reward


@dataclass(frozen=True, eq=False)
class Batch:
    """Draws of one iteration under the policy that drew them."""

    gates: Tensor  # [G, K], 0 or 1
    actions: Tensor  # [G, S, N]
    gate_log_probs: Tensor  # [G, K]
    log_probs: Tensor  # [G, S, N]
    gate_advantage: Tensor  # [G, 1]
    advantage: Tensor  # [G, S, N]
    choices: Choice  # [G, S, N], the actions
    rewards: Floats  # [G, S], R in nats a token


@torch.no_grad()
def draw(
    net: PolicyNet,
    env: AllocationEnv,
    prices: Prices,
    critic: Critic,
    gate_draws: int,
    choice_draws: int,
    generator: torch.Generator,
) -> Batch:
    """`choice_draws` (at least 2) choices under each of `gate_draws` gate settings, priced; prices and critic learn."""
    problem = env.problem
    observation = torch.from_numpy(env.observation)
    gate_logits = net.gates(observation)
    gates = torch.bernoulli(torch.sigmoid(gate_logits).expand(gate_draws, -1), generator=generator)  # [G, K]
    log_probs = net.experts(observation, gates)  # [G, N, K]
    G, N, K = log_probs.shape
    flat = torch.multinomial(log_probs.exp().view(G * N, K), choice_draws, True, generator=generator)
    actions = flat.view(G, N, -1).transpose(1, 2)  # [G, S, N]
    choices: Choice = actions.numpy()
    problem.ask(choices.reshape(-1, N))
    steps = [[env.step(choice) for choice in row] for row in choices]
    rewards = np.array([[reward for _, reward, *_ in row] for row in steps])
    hardware = np.array([[info["hardware_nats"] for *_, info in row] for row in steps])
    opened = gates.bool().numpy()
    price = np.array([prices.of(row) for row in opened])[:, None, None]  # [G, 1, 1]
    own = problem.damage + critic.shares
    priced = own + price[..., None] * problem.widths  # [G, 1, N, K]
    paid = own[np.arange(N), choices] + price * problem.widths[choices]  # [G, S, N]
    expected = (log_probs.exp().double().numpy()[:, None] * priced).sum(axis=-1)  # [G, 1, N]
    left = hardware - critic.shares[np.arange(N), choices].sum(axis=-1)  # [G, S]
    joint = (left.mean(axis=1, keepdims=True) - left) * choice_draws / (choice_draws - 1)
    advantage = expected - paid + joint[..., None]
    critic.learn(choices, hardware)  # for the next draws: a baseline fitted to these would be biased by them
    for row, bits in zip(opened, problem.bits(choices).mean(axis=1), strict=True):
        prices.adapt(row, bits)
    values = price[..., 0] * problem.budget - paid.sum(axis=-1) - left  # [G, S], R_g
    means = values.mean(axis=1, keepdims=True)  # [G, 1]
    return Batch(
        gates=gates,
        actions=actions,
        gate_log_probs=of_gates(gate_logits, gates),
        log_probs=of_actions(log_probs, actions),
        gate_advantage=torch.from_numpy((means - means.mean()) / (means.std() + 1e-12)).float(),
        advantage=torch.from_numpy(advantage / (np.sqrt((advantage**2).mean(axis=(0, 1))) + 1e-12)).float(),
        choices=choices,
        rewards=rewards,
    )
