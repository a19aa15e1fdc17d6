"""Proximal policy optimisation over experts, in one file, read from top to bottom.

Policy. First K gates say which widths are open, then every expert takes one of the open widths:

    pi(g, a) = prod_k Bernoulli(g_k; gate network on the mean observation) * prod_i Categorical(a_i; open widths)

One network serves every expert: it reads that expert's row of the observation and the gates, so the same weights work
for 8 and for 512 experts, and all experts are one batched Categorical. The environment sees a, the gates are the
policy's own. Dropping a width class frees its hardware only once its last expert leaves, which independent draws would
hardly ever try; a gate tries it in one draw. Without any open gate all widths are open.

Credit. An iteration draws G gate settings and S choices of each. While learning, memory is not the hinge of the reward
but a price, y_g nats a bit: under a hinge any choice that just fits is a local optimum, for an expert can't take the
bit that another gives up; under a price each decides alone. y_g starts as `Problem.price` of the open widths and
follows the bits that their choices take (dual ascent), for hardware pulls widths too. So

    R_g(a) = -sum_i d_i(a_i) - y_g (sum_i b(a_i) - B) - H(a)

and only the meter's H is joint. Expert i's advantage is

    A_i = E_pi [d_i + y_g b] - (d_i(a_i) + y_g b(a_i))    its own share, E_pi over its K widths in closed form
          + (mean_s H - H(a)) S / (S - 1)                 joint, against the other choices of the same gate setting

divided by its standard deviation over the batch, expert by expert, so that a rare expert's small damage moves its
choice as surely as a busy one's. A gate setting's advantage is its mean R_g against that of the other settings,
standardised; gates stay at their start for the first half of the iterations, until experts can use them.

Update. The clipped surrogate, with one ratio per expert and one per gate (a joint ratio over 512 experts leaves the
clip range at once), plus an entropy bonus that is a mean over experts, falling linearly to 0. One step is an episode
and the baselines above are exact, so there is no value network.
"""

from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn.functional import logsigmoid

from wattbit.policy.environment import AllocationEnv
from wattbit.policy.problem import Choice, Floats, Problem
from wattbit.progress import Progress, silent


@dataclass(frozen=True)
class PPOSettings:
    """How long and how fast to learn."""

    iterations: int = 150
    """Policy updates; each prices gate_draws * choice_draws allocations at most."""
    gate_draws: int = 6
    """G, gate settings an iteration."""
    choice_draws: int = 8
    """S, choices of each gate setting."""
    epochs: int = 2
    """Gradient steps on each iteration's draws."""
    clip: float = 0.2
    """A ratio beyond 1 +- clip stops pulling."""
    learning_rate: float = 5e-3
    """Of Adam, falling linearly to a tenth."""
    entropy: float = 0.3
    """Weight of the normalised entropy at the start."""
    price_rate: float = 0.3
    """How fast a bit's price follows the bits taken over the budget."""
    hidden: int = 64
    """Width of both networks."""


@dataclass(frozen=True)
class Trained:
    """What one seed learned.

    choice: the best choice [N] that it drew, repaired to fit the budget; reward: of that choice. mode: its likeliest
    choice [N] at the end, not repaired. curve: mean reward of every iteration's draws, not repaired, in nats a token.
    """

    choice: Choice
    reward: float
    mode: Choice
    curve: tuple[float, ...]


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
        """Log-probabilities [G, N, K] of an observation [N, F] under gate settings [G, K]; closed widths are -inf."""
        rows = observation.expand(len(gates), -1, -1)
        columns = gates[:, None, :].expand(-1, rows.shape[1], -1)
        logits: Tensor = self.expert(torch.cat([rows, columns], dim=-1))
        opened = torch.where(gates.any(dim=1, keepdim=True), gates, 1.0)[:, None, :]
        return logits.masked_fill(opened == 0, -1e9).log_softmax(dim=-1)


def train(env: AllocationEnv, seed: int, settings: PPOSettings, progress: Progress = silent) -> Trained:
    """Learn a policy for the environment's problem. Deterministic in the seed; a few seconds for 32 experts."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)  # on tensors this small more threads only wait for each other
    try:
        return _train(env, seed, settings, progress)
    finally:
        torch.set_num_threads(threads)


def _train(env: AllocationEnv, seed: int, settings: PPOSettings, progress: Progress) -> Trained:
    generator = torch.Generator().manual_seed(seed)
    observation = torch.from_numpy(env.reset(seed=seed)[0])
    net = PolicyNet(observation.shape[1], env.problem.size[1], settings.hidden)
    net.start(generator)
    optimizer = torch.optim.Adam(net.parameters(), lr=settings.learning_rate)
    best, prices, curve = _Best(env.problem), _Prices(env.problem, settings.price_rate), []
    for iteration in range(settings.iterations):
        left = 1 - iteration / settings.iterations
        optimizer.param_groups[0]["lr"] = settings.learning_rate * max(left, 0.1)
        batch = _draw(net, env, observation, prices, settings, generator)
        best.offer(batch.choices[np.unravel_index(batch.rewards.argmax(), batch.rewards.shape)])
        curve.append(float(batch.rewards.mean()))
        for _ in range(settings.epochs):
            loss = _loss(
                net, observation, batch, settings, settings.entropy * left, iteration * 2 >= settings.iterations
            )
            optimizer.zero_grad()
            loss.backward()  # type: ignore[no-untyped-call]
            nn.utils.clip_grad_norm_(net.parameters(), 1.0)
            optimizer.step()
        progress(f"policy seed {seed}", iteration + 1, settings.iterations)
    mode = _mode(net, observation)
    best.offer(mode)
    return Trained(best.choice, best.reward, mode, tuple(curve))


class _Prices:
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


class _Best:
    """The best choice offered so far, after its repair to the budget."""

    def __init__(self, problem: Problem) -> None:
        self.problem = problem
        self.choice: Choice = np.zeros(0, dtype=np.int64)
        self.reward = -np.inf

    def offer(self, choice: Choice) -> None:
        for repaired in (self.problem.fit(choice), self.problem.shrink(choice)):
            reward = self.problem.reward(repaired)
            if reward > self.reward:
                self.choice, self.reward = repaired, reward


@dataclass(frozen=True, eq=False)
class _Batch:
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
def _draw(
    net: PolicyNet,
    env: AllocationEnv,
    observation: Tensor,
    prices: _Prices,
    settings: PPOSettings,
    generator: torch.Generator,
) -> _Batch:
    problem = env.problem
    gate_probs = torch.sigmoid(net.gates(observation)).expand(settings.gate_draws, -1)
    gates = torch.bernoulli(gate_probs, generator=generator)  # [G, K]
    expert_log_probs = net.experts(observation, gates)  # [G, N, K]
    G, N, K = expert_log_probs.shape
    flat = torch.multinomial(expert_log_probs.exp().view(G * N, K), settings.choice_draws, True, generator=generator)
    actions = flat.view(G, N, -1).transpose(1, 2)  # [G, S, N]
    choices: Choice = actions.numpy()
    steps = [[env.step(choice) for choice in row] for row in choices]
    rewards = np.array([[reward for _, reward, *_ in row] for row in steps])
    hardware = np.array([[info["hardware_nats"] for *_, info in row] for row in steps])
    opened = gates.bool().numpy()
    price = np.array([prices.of(row) for row in opened])[:, None, None]  # [G, 1, 1]
    priced = problem.damage + price[..., None] * problem.widths  # [G, 1, N, K]
    paid = problem.damages(choices) + price * problem.widths[choices]  # [G, S, N]
    expected = (expert_log_probs.exp().double().numpy()[:, None] * priced).sum(axis=-1)  # [G, 1, N]
    draws = settings.choice_draws
    joint = (hardware.mean(axis=1, keepdims=True) - hardware) * draws / (draws - 1)  # [G, S]
    advantage = expected - paid + joint[..., None]
    for row, bits in zip(opened, problem.bits(choices).mean(axis=1), strict=True):
        prices.adapt(row, bits)
    values = price[..., 0] * problem.budget - paid.sum(axis=-1) - hardware  # [G, S], R_g
    means = values.mean(axis=1, keepdims=True)  # [G, 1]
    return _Batch(
        gates=gates,
        actions=actions,
        gate_log_probs=_gate_log_prob(net.gates(observation), gates),
        log_probs=_taken(expert_log_probs, actions),
        gate_advantage=torch.from_numpy((means - means.mean()) / (means.std() + 1e-12)).float(),
        advantage=torch.from_numpy(advantage / (advantage.std(axis=(0, 1)) + 1e-12)).float(),
        choices=choices,
        rewards=rewards,
    )


def _loss(
    net: PolicyNet, observation: Tensor, batch: _Batch, settings: PPOSettings, entropy: float, learn_gates: bool
) -> Tensor:
    gate_logits = net.gates(observation)
    gate_log_probs = _gate_log_prob(gate_logits, batch.gates)
    expert_log_probs = net.experts(observation, batch.gates)
    experts = _surrogate(_taken(expert_log_probs, batch.actions), batch.log_probs, batch.advantage, settings.clip)
    gates = _surrogate(gate_log_probs, batch.gate_log_probs, batch.gate_advantage, settings.clip)
    both = torch.stack([logsigmoid(gate_logits), logsigmoid(-gate_logits)], dim=-1)  # [K, 2]
    spread = _entropy(expert_log_probs) + _entropy(both)
    return -experts - gates * learn_gates - entropy * spread


def _surrogate(log_probs: Tensor, old: Tensor, advantage: Tensor, clip: float) -> Tensor:
    """PPO's clipped objective, with one ratio per element."""
    ratio = (log_probs - old).exp()
    objective: Tensor = torch.minimum(ratio * advantage, ratio.clamp(1 - clip, 1 + clip) * advantage).mean()
    return objective


def _gate_log_prob(logits: Tensor, gates: Tensor) -> Tensor:
    """Log-probabilities [G, K] of gates [G, K], each 0 or 1, under logits [K]."""
    return logsigmoid((2 * gates - 1) * logits)


def _entropy(log_probs: Tensor) -> Tensor:
    """Entropy in nats of distributions [..., K], averaged over all of them."""
    return -(log_probs.exp() * log_probs).sum(dim=-1).mean()


def _taken(log_probs: Tensor, actions: Tensor) -> Tensor:
    """Log-probabilities [G, S, N] of actions [G, S, N] under [G, N, K]."""
    rows = log_probs[:, None].expand(-1, actions.shape[1], -1, -1)
    return rows.gather(-1, actions[..., None])[..., 0]


@torch.no_grad()
def _mode(net: PolicyNet, observation: Tensor) -> Choice:
    """The likeliest choice [N] under the likeliest gates."""
    gates = (net.gates(observation) > 0).float()[None]
    choice: Choice = net.experts(observation, gates)[0].argmax(dim=-1).numpy()
    return choice
