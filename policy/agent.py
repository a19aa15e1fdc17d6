"""Training a policy: draw, price, learn, on one problem or on several in turn.

Gates stay at their start for the first half of the iterations, until experts can use them. The entropy bonus, a mean
over experts, falls linearly to 0. A policy may start warm, from the exact solution of the damage table for the best set
of widths (`exact.solve_shared`): it is offered as a choice, and the network is fitted to it so far that it is the
likeliest, not the only one. Draws of hundreds of experts at once hardly ever hit the one change that is missing, so
a training ends with a local search from its best choice (`annealing.improve`).
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Protocol, Self

import numpy as np
import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor, nn

from wattbit.errors import WattbitError
from wattbit.files import atomic
from wattbit.policy.annealing import improve
from wattbit.policy.critic import Critic
from wattbit.policy.environment import AllocationEnv, observe
from wattbit.policy.exact import solve_shared
from wattbit.policy.network import PolicyNet, of_gates
from wattbit.policy.ppo import PPO
from wattbit.policy.problem import Choice, Problem
from wattbit.policy.rollout import Batch, Best, Prices, draw
from wattbit.progress import Progress, silent

WARM_STEPS = 40
WARM_SHARE = 0.6  # probability that a warm start aims at for the choice that it starts from


class Algorithm(Protocol):
    """How a batch of draws becomes gradient steps: `ppo.PPO` or `a2c.A2C`."""

    @property
    def epochs(self) -> int:
        """Gradient steps a batch."""
        ...

    def loss(self, net: PolicyNet, observation: Tensor, batch: Batch, spread: float, gates: bool) -> Tensor: ...


@dataclass(frozen=True)
class AgentSettings:
    """How long and how fast to learn."""

    algorithm: Algorithm = field(default_factory=PPO)
    iterations: int = 150
    """Policy updates; each prices gate_draws * choice_draws allocations at most."""
    gate_draws: int = 6
    """G, gate settings an iteration."""
    choice_draws: int = 8
    """S, choices of each gate setting."""
    learning_rate: float = 5e-3
    """Of Adam, falling linearly to a tenth."""
    entropy: float = 0.3
    """Weight of the normalised entropy at the start."""
    price_rate: float = 0.3
    """How fast a bit's price follows the bits taken over the budget."""
    hidden: int = 64
    """Width of both networks."""
    warm: bool = True
    """Whether to start from the table's exact solution."""
    local: float = 0.5
    """Evaluations of the local search that ends the training, as a share of those of the updates."""

    @property
    def evaluations(self) -> int:
        """Most allocations that a training prices, but for the repaired ones."""
        return round(self.iterations * self.gate_draws * self.choice_draws * (1 + self.local))


@dataclass(frozen=True)
class Policy:
    """A trained network; it chooses for any number of experts and layers, and any budget, of the same widths."""

    net: PolicyNet
    actions: tuple[str, ...]

    def choose(self, problem: Problem, draws: int = 0, seed: int = 0) -> Choice:
        """The best of the likeliest choice and of `draws` drawn ones, repaired to the budget [N], without learning.

        Raises WattbitError for a problem of other actions, and for a policy of another version's features.
        """
        if problem.actions != self.actions:
            raise WattbitError(
                f"the policy chooses among {', '.join(self.actions)}, the search among {', '.join(problem.actions)}; "
                "search among the policy's, or train another one"
            )
        best = Best(problem)
        best.offer(self.net.mode(self._observation(problem)))
        for choice in self.sample(problem, draws, seed):
            best.offer(choice)
        return best.choice

    @torch.no_grad()
    def expected(self, problem: Problem) -> Choice:
        """Every expert's expected width under the likeliest gates, rounded to the nearest open one [N], and the whole
        repaired to the budget; of several engines with that width the likelier one."""
        observation = self._observation(problem)
        gates = (self.net.gates(observation) > 0).float()[None]
        probs = self.net.experts(observation, gates)[0].exp().double().numpy()  # [N, K], 0 where closed
        off = np.abs(problem.widths - (probs @ problem.widths)[:, None]) - 1e-6 * probs
        return problem.shrink(np.where(probs > 0, off, np.inf).argmin(axis=1))

    def _observation(self, problem: Problem) -> Tensor:
        observation = torch.from_numpy(observe(problem))
        known = self.net.gate[0].in_features
        if observation.shape[1] != known:
            raise WattbitError(
                f"the policy reads {known} features of an expert, this version has {observation.shape[1]}; train again"
            )
        return observation

    @torch.no_grad()
    def sample(self, problem: Problem, draws: int, seed: int) -> list[Choice]:
        """Choices [N] drawn from the policy, gates and widths, each repaired to the budget."""
        observation = self._observation(problem)
        generator = torch.Generator().manual_seed(seed)
        logits = self.net.gates(observation).expand(draws, -1)
        gates = torch.bernoulli(torch.sigmoid(logits), generator=generator)  # [draws, K]
        probs = self.net.experts(observation, gates).exp()  # [draws, N, K]
        drawn = torch.multinomial(probs.flatten(0, 1), 1, generator=generator).view(draws, -1) if draws else gates
        return [problem.shrink(row) for row in drawn.numpy().astype(np.int64)]

    def save(self, path: Path) -> None:
        """Write the weights as safetensors, atomically."""
        with atomic(path) as partial:
            save_file(self.net.state_dict(), partial, {"actions": ", ".join(self.actions)})

    @classmethod
    def load(cls, path: Path) -> Self:
        """Read what `save` wrote; WattbitError when the file is none."""
        try:
            with safe_open(path, "pt") as archive:
                actions = tuple(archive.metadata()["actions"].split(", "))
                state = {name: archive.get_tensor(name) for name in archive.keys()}  # noqa: SIM118, no mapping
            hidden, features = state["gate.0.weight"].shape
            net = PolicyNet(features, len(state["gate.2.bias"]), hidden)
            net.load_state_dict(state)
        except (OSError, SafetensorError, KeyError, TypeError, ValueError, RuntimeError) as error:
            raise WattbitError(f"{path} holds no policy ({error}); train one with `wattbit search`") from None
        return cls(net, actions)


@dataclass(frozen=True)
class Trained:
    """What one seed learned, by problem.

    choice: the best choice [N] that it drew, repaired to fit the budget; reward: of that choice. mode: its likeliest
    choice [N] at the end, not repaired. curve: mean reward of every iteration's draws, not repaired, in nats a token.
    """

    choice: Choice
    reward: float
    mode: Choice
    curve: tuple[float, ...]
    policy: Policy


def train(
    env: AllocationEnv,
    seed: int,
    settings: AgentSettings,
    progress: Progress = silent,
    start: Choice | None = None,
) -> Trained:
    """Learn a policy for one environment's problem. Deterministic in the seed; a few seconds for 32 experts.

    start: the choice [N], within the budget, that a warm policy starts from; by default the table's exact solution.
    """
    return train_on([env], seed, settings, progress, [start])[0]


def train_on(
    envs: Sequence[AllocationEnv],
    seed: int,
    settings: AgentSettings,
    progress: Progress = silent,
    starts: Sequence[Choice | None] = (),
) -> list[Trained]:
    """Learn one policy on several problems of the same actions in turn: what each of them got from it.

    Raises WattbitError, with the iteration, when a reward is no number or the meter fails.
    """
    threads = torch.get_num_threads()
    torch.set_num_threads(1)  # on tensors this small more threads only wait for each other
    try:
        return _train(envs, seed, settings, progress, starts or [None] * len(envs))
    finally:
        torch.set_num_threads(threads)


def _train(
    envs: Sequence[AllocationEnv],
    seed: int,
    settings: AgentSettings,
    progress: Progress,
    given: Sequence[Choice | None],
) -> list[Trained]:
    generator = torch.Generator().manual_seed(seed)
    observations = [torch.from_numpy(env.reset(seed=seed)[0]) for env in envs]
    net = PolicyNet(observations[0].shape[1], envs[0].problem.size[1], settings.hidden)
    net.start(generator)
    bests = [Best(env.problem) for env in envs]
    for best in bests:
        best.offer_uniform()
    prices = [Prices(env.problem, settings.price_rate) for env in envs]
    critics = [Critic(env.problem) for env in envs]
    curves: list[list[float]] = [[] for _ in envs]
    if settings.warm:
        starts = [solve_shared(env.problem) if start is None else start for env, start in zip(envs, given, strict=True)]
        for best, start in zip(bests, starts, strict=True):
            best.offer(start)
        _warm(net, observations, starts)
    optimizer = torch.optim.Adam(net.parameters(), lr=settings.learning_rate)
    for iteration in range(settings.iterations):
        left = 1 - iteration / settings.iterations
        turn = iteration % len(envs)
        optimizer.param_groups[0]["lr"] = settings.learning_rate * max(left, 0.1)
        try:
            draws = settings.gate_draws, settings.choice_draws
            batch = draw(net, envs[turn], prices[turn], critics[turn], *draws, generator)
            bests[turn].offer(batch.choices[np.unravel_index(batch.rewards.argmax(), batch.rewards.shape)])
        except WattbitError as error:
            raise WattbitError(f"policy seed {seed}, iteration {iteration + 1}: {error}") from error
        curves[turn].append(float(batch.rewards.mean()))
        for _ in range(settings.algorithm.epochs):
            gates = iteration * 2 >= settings.iterations
            _step(
                net,
                optimizer,
                settings.algorithm.loss(net, observations[turn], batch, settings.entropy * left, gates),
            )
        progress(f"policy seed {seed}", iteration + 1, settings.iterations)
    modes = [net.mode(observation) for observation in observations]
    for best, mode in zip(bests, modes, strict=True):
        best.offer(mode)
    moves = round(settings.evaluations * settings.local / (1 + settings.local) / len(envs))
    for best in bests if moves else ():
        best.offer(improve(best.problem, best.choice, moves, seed))
    return [
        Trained(best.choice, best.reward, mode, tuple(curve), Policy(net, best.problem.actions))
        for best, mode, curve in zip(bests, modes, curves, strict=True)
    ]


def _step(net: PolicyNet, optimizer: torch.optim.Optimizer, loss: Tensor) -> None:
    optimizer.zero_grad()
    loss.backward()  # type: ignore[no-untyped-call]
    nn.utils.clip_grad_norm_(net.parameters(), 1.0)
    optimizer.step()


def _warm(net: PolicyNet, observations: Sequence[Tensor], starts: Sequence[Choice]) -> None:
    """Fit the network to choices, gates open where a choice uses a width, by cross-entropy with smoothed labels."""
    optimizer = torch.optim.Adam(net.parameters(), lr=1e-2)
    for step in range(WARM_STEPS * len(starts)):
        observation, start = observations[step % len(starts)], torch.from_numpy(starts[step % len(starts)])
        logits = net.gates(observation)
        gates = torch.zeros_like(logits)
        gates[torch.from_numpy(np.unique(starts[step % len(starts)]))] = 1.0
        log_probs = net.experts(observation, torch.stack([gates, torch.ones_like(gates)]))  # [2, N, K]
        opened = log_probs > -1e8
        uniform = torch.where(opened, log_probs, 0.0).sum(dim=-1) / opened.sum(dim=-1)  # [2, N]
        taken = log_probs.gather(-1, start.expand(2, -1)[..., None])[..., 0]
        fit = WARM_SHARE * taken.mean() + (1 - WARM_SHARE) * uniform.mean()
        aimed = WARM_SHARE * of_gates(logits, gates[None]) + (1 - WARM_SHARE) * of_gates(logits, 1 - gates[None])
        _step(net, optimizer, -fit - aimed.mean())
