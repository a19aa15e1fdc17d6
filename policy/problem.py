"""What is optimised: experts, widths, their damage table, the memory budget, and the reward, which is stated here only.

A choice a gives every expert i one of K actions, a weight width b(a_i) and, where the target has several engines, the
engine that runs it. Its reward, in nats a token, is

    R(a) = - sum_i d_i(a_i)                                      damage: divergence from the float model
           - p max(0, sum_i b(a_i) / B - 1)                      memory: B is the budget in bits, see below
           - latency_nats * latency(a) / latency(uniform 8 bit)  hardware, as the meter prices it
           - energy_nats  * energy(a)  / energy(uniform 8 bit)   only if energy_nats > 0

`latency_nats` is the rise of the loss that one would accept to save the whole latency of uniform 8 bit: at 0.02, a
perplexity 1 % worse is a fair price for half the latency.

Memory is counted in weight bits an expert, exactly: experts of one model have one shape, so B = budget_bits * N is
proportional to bytes. Damage per bit has a price: with y(W) the least y >= 0 at which experts that each minimise
d_i + y b over the widths W fit the budget (Lagrange's multiplier, found by bisection), overshooting by one bit wins
about y in damage. The penalty is p = 2 y(all widths) B, so it loses twice that. An allocation that the hardware cannot
hold (`InfeasibleError`) loses, instead of what the hardware would cost, latency_nats + p and what the damage can vary
by: it is worse than any that fits the budget and is as fast as uniform 8 bit.
"""

from collections.abc import Mapping, Sequence
from contextlib import suppress
from copy import copy
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from wattbit.errors import InfeasibleError, WattbitError
from wattbit.plan import (
    WEIGHT_BITS,
    Allocation,
    Cost,
    Engine,
    ExpertId,
    ExpertStats,
    Meter,
    Placement,
    Precision,
    Workload,
)
from wattbit.policy.pricing import Price, prices

Floats = NDArray[np.float64]
Choice = NDArray[np.int64]  # [N], index of an action for every expert


def _actions(bits: Sequence[int], engines: Mapping[Engine, Sequence[int]]) -> list[tuple[int, Engine]]:
    """Widths with the engines that run them, narrowest first; raises WattbitError for one that none runs."""
    actions = [(b, engine) for b in bits for engine, runs in engines.items() if b in runs]
    missing = sorted(set(bits) - {b for b, _ in actions})
    if missing:
        able = "; ".join(f"{engine}: {', '.join(map(str, runs)) or 'none'}" for engine, runs in engines.items())
        raise WattbitError(f"the target cannot run {missing[0]} bits ({able}); drop that width or take another target")
    return actions


@dataclass(eq=False)
class Problem:
    """N experts with K actions each. Remembers the price of every choice it was asked for.

    stats: one an expert, of one or more layers, in any order. weight_bits: widths to choose from, each with its damage
    in the stats. act_bits: activation width of every expert. budget_bits: greatest mean weight width.
    latency_nats, energy_nats: see the module. engines: the widths that each engine of the target can run; by default
    all are the FPGA's. history: statistics of the same experts from former rounds of co-training, the oldest first.
    Raises WattbitError on a width without damage or that no engine runs, on a budget below the narrowest width, and on
    statistics of other experts than the workload's.
    """

    stats: Sequence[ExpertStats]
    meter: Meter
    workload: Workload
    weight_bits: Sequence[int]
    budget_bits: float = 4.0
    act_bits: int = 8
    latency_nats: float = 0.02
    energy_nats: float = 0.0
    engines: Mapping[Engine, Sequence[int]] | None = None
    history: Sequence[Sequence[ExpertStats]] = ()
    widths: NDArray[np.int64] = field(init=False)  # [K], bits of each action, ascending
    placed: tuple[Engine, ...] = field(init=False)  # [K], engine of each action
    experts: tuple[ExpertId, ...] = field(init=False)
    layer: NDArray[np.int64] = field(init=False)  # [N]
    frequency: Floats = field(init=False)  # [N]
    damage: Floats = field(init=False)  # [N, K], nats a token
    damage_before: Floats = field(init=False)  # [R, N, K], that of the history's rounds
    budget: int = field(init=False)  # bits, summed over the experts, that they can use
    penalty: float = field(init=False)  # p

    def __post_init__(self) -> None:
        if not self.stats:
            raise WattbitError("there are no expert statistics to search over; run stats first")
        bits = tuple(sorted(set(self.weight_bits)))
        if not bits or not set(bits) <= set(WEIGHT_BITS):
            raise WattbitError(f"weight_bits must be a choice of {', '.join(map(str, WEIGHT_BITS))}, not {bits}")
        if not bits[0] <= self.budget_bits:
            raise WattbitError(
                f"a budget of {self.budget_bits} bits is below the narrowest width, {bits[0]}, the smallest feasible"
            )
        if self.latency_nats < 0 or self.energy_nats < 0:
            raise WattbitError(
                f"latency_nats {self.latency_nats} and energy_nats {self.energy_nats} must not be below 0"
            )
        self.stats = sorted(self.stats, key=lambda s: s.expert)
        self.experts = tuple(s.expert for s in self.stats)
        self.layer = np.array([e.layer for e in self.experts])
        self.frequency = np.array([s.frequency for s in self.stats])
        loads = [expert for expert, _ in self.workload.frequency]
        for name, others in (("workload", loads), *(("history", [s.expert for s in one]) for one in self.history)):
            if strange := set(self.experts) ^ set(others):
                raise WattbitError(
                    f"the statistics are of another model than the {name}: only one of them has {min(strange)}; "
                    "run stats again"
                )
        actions = _actions(bits, self.engines or {"fpga": bits})
        self.widths = np.array([b for b, _ in actions])
        self.placed = tuple(engine for _, engine in actions)
        rounds = [*(sorted(one, key=lambda s: s.expert) for one in self.history), self.stats]
        damages = np.array([[[s.damage_at(b) for b, _ in actions] for s in one] for one in rounds])
        if not np.isfinite(damages).all():
            raise WattbitError("a damage in the expert statistics is not a finite number; run stats again")
        self.damage, self.damage_before = damages[-1], damages[:-1]
        self.budget = int(min(self.budget_bits, bits[-1]) * len(self.experts) + 1e-9)
        self.penalty = 2 * self.price(np.ones(len(actions), dtype=np.bool_)) * self.budget
        self._placements = [
            [Placement(e, engine, Precision(b, self.act_bits)) for b, engine in actions] for e in self.experts
        ]
        self._costs: dict[bytes, Price] = {}
        self.reference = self._static()
        if self.reference.energy_j == 0:
            raise WattbitError(
                "the meter gives uniform 8 bit 0 J, which is no reading; see to it or take another meter"
            )
        if self.energy_nats and self.reference.energy_j is None:
            raise WattbitError(
                "energy_nats is above 0 but the meter prices no energy; set it to 0 or take another meter"
            )

    def repriced(self, latency_nats: float, energy_nats: float) -> "Problem":
        """The same problem with other prices of hardware; what the meter has priced is shared between the two."""
        other = copy(self)
        other.latency_nats, other.energy_nats = latency_nats, energy_nats
        return other

    def _static(self) -> Cost:
        """The price of uniform 8 bit on the first engine that holds it."""
        for engine in dict.fromkeys(self.placed):
            uniform = Allocation.of(dict.fromkeys(self.experts, 8), self.act_bits, engine)
            try:
                return self.meter.cost(uniform, self.workload)
            except InfeasibleError as error:
                refused = error
        raise refused

    def uniform_latency(self) -> Floats:
        """Latency [K] of all experts at each action, as a share of uniform 8 bit's; 2 where the hardware cannot."""
        shares = np.full(len(self.widths), 2.0)
        for k in range(len(shares)):
            with suppress(InfeasibleError):
                shares[k] = self.cost(np.full(len(self.experts), k)).latency_s / self.reference.latency_s
        return shares

    @property
    def size(self) -> tuple[int, int]:
        """N experts and K actions."""
        experts, widths = self.damage.shape
        return experts, widths

    @property
    def actions(self) -> tuple[str, ...]:
        """The actions [K] in words, such as `4 bits on fpga`."""
        return tuple(f"{bits} bits on {engine}" for bits, engine in zip(self.widths, self.placed, strict=True))

    @property
    def asked(self) -> int:
        """How many choices the meter has been asked for, those that the hardware cannot hold among them."""
        return len(self._costs)

    @property
    def priced(self) -> tuple[Choice, ...]:
        """Every choice that the meter has priced so far and the hardware can hold, in order."""
        held = (key for key, cost in self._costs.items() if isinstance(cost, Cost))
        return tuple(np.frombuffer(key, np.int8).astype(np.int64) for key in held)

    def allocation(self, choice: Choice) -> Allocation:
        return Allocation(tuple(row[k] for row, k in zip(self._placements, choice.tolist(), strict=True)))

    def choice(self, allocation: Allocation) -> Choice:
        """The inverse of `allocation`; raises WattbitError on an expert or action that the problem does not have."""
        index = {(int(b), engine): k for k, (b, engine) in enumerate(zip(self.widths, self.placed, strict=True))}
        found = {p.expert: (p.precision.weight_bits, p.engine) for p in allocation.placements}
        if set(found) != set(self.experts):
            raise WattbitError("the allocation is of another model than the statistics; take that model's")
        if not set(found.values()) <= set(index):
            used = ", ".join(f"{bits} bits on {engine}" for bits, engine in sorted(set(found.values()) - set(index)))
            known = ", ".join(f"{bits} on {engine}" for bits, engine in sorted(index))
            raise WattbitError(f"the allocation has {used}, the search {known}; take one of the search's")
        return np.array([index[found[e]] for e in self.experts])

    def uniform(self, bits: int) -> Choice:
        """Every expert at one width."""
        found = np.flatnonzero(self.widths == bits)
        if not len(found):
            raise WattbitError(f"uniform {bits} bit needs that width among weight_bits {self.widths.tolist()}; add it")
        return np.full(len(self.experts), found[0])

    def bits(self, choice: Choice) -> NDArray[np.int64]:
        """Weight bits summed over the experts: [...] of choices [..., N]."""
        total: NDArray[np.int64] = self.widths[choice].sum(axis=-1)
        return total

    def fits(self, choice: Choice) -> bool:
        return bool(self.bits(choice) <= self.budget)

    def damages(self, choice: Choice) -> Floats:
        """Damage of every expert in nats a token, the same shape [..., N] as the choices."""
        return self.damage[np.arange(len(self.experts)), choice]

    def memory_penalty(self, bits: NDArray[np.int64]) -> Floats:
        """Nats that allocations of so many bits in all lose for overshooting the budget, elementwise."""
        return self.penalty * np.maximum(0.0, bits / self.budget - 1)

    def price(self, opened: NDArray[np.bool_]) -> float:
        """y(W) in nats a bit for the opened widths [K]; infinite if even their narrowest exceeds the budget."""
        damage, widths = self.damage[:, opened], self.widths[opened]

        def taken(price: float) -> int:
            return int(widths[(damage + price * widths).argmin(axis=1)].sum())

        low, high = 0.0, float(np.ptp(damage, axis=1).max()) + 1e-12
        if int(widths[0]) * len(damage) > self.budget:
            return float("inf")
        if taken(low) <= self.budget:
            return low
        for _ in range(50):
            middle = (low + high) / 2
            low, high = (low, middle) if taken(middle) <= self.budget else (middle, high)
        return high

    def ask(self, choices: Choice) -> None:
        """Have choices [M, N] priced, side by side where the meter can."""
        new = {key: choice for choice in choices if (key := _key(choice)) not in self._costs}
        found = prices(self.meter, [self.allocation(choice) for choice in new.values()], self.workload) if new else ()
        self._costs.update(zip(new, found, strict=True))

    def cost(self, choice: Choice) -> Cost:
        """The meter's price of a choice; raises InfeasibleError when the hardware cannot hold it."""
        self.ask(choice[None])
        cost = self._costs[_key(choice)]
        if isinstance(cost, InfeasibleError):
            raise cost
        if not np.isfinite(cost.latency_s) or not np.isfinite(cost.energy_j or 0.0):
            raise WattbitError(
                f"the meter's {cost.provenance} latency of {cost.latency_s} s and energy of {cost.energy_j} J is price "
                f"{len(self._costs)} of this search and no number; see to the meter and search again"
            )
        return cost

    def hardware(self, choice: Choice) -> float:
        """What the hardware's latency and energy cost in nats, for one choice [N]."""
        try:
            cost = self.cost(choice)
        except InfeasibleError:
            return self.latency_nats + self.penalty + float(np.ptp(self.damage, axis=1).sum())
        nats = self.latency_nats * cost.latency_s / self.reference.latency_s
        if self.energy_nats:
            if cost.energy_j is None or self.reference.energy_j is None:
                raise WattbitError("the meter priced no energy for an allocation; set energy_nats to 0")
            nats += self.energy_nats * cost.energy_j / self.reference.energy_j
        return nats

    def reward(self, choice: Choice) -> float:
        """R of one choice [N]."""
        additive = float(self.damages(choice).sum()) + float(self.memory_penalty(self.bits(choice)))
        return -additive - self.hardware(choice)

    def shrink(self, choice: Choice) -> Choice:
        """Repair a choice so that it satisfies the budget.

        While it is too big, the step to a narrower width that adds least damage per bit saved is taken. Only widths
        already in the choice are used, so that no new class of hardware opens, unless even its narrowest does not fit.
        """
        used = np.isin(np.arange(len(self.widths)), choice)
        if self.widths[used][0] * len(choice) > self.budget:
            used[:] = True
        over = int(self.bits(choice)) - self.budget
        if over <= 0:
            return choice.copy()
        steps = self._steps(choice, used, -1)
        return self._after(choice, steps, int(steps.bits.cumsum().searchsorted(over)) + 1)

    def fit(self, choice: Choice) -> Choice:
        """`shrink` a choice, then spend what is left of the budget.

        While some step to a wider width, among those already used, lowers damage and fits, the one that lowers it most
        per bit is taken. That costs time where the wider class is the slow one, so the shrunk choice may be better.
        """
        fitted = self.shrink(choice)
        used = np.isin(np.arange(len(self.widths)), np.union1d(choice, fitted))
        room = self.budget - int(self.bits(fitted))
        steps = self._steps(fitted, used, 1)
        spare = room - int(np.ptp(self.widths[used]))  # as long as so much is spent, every step fits
        fitted = self._after(fitted, steps, int(steps.bits.cumsum().searchsorted(spare, "right")))
        while (room := self.budget - int(self.bits(fitted))) > 0 and self._widen(fitted, used, room):
            pass
        return fitted

    def _steps(self, choice: Choice, used: NDArray[np.bool_], sign: int) -> "_Steps":
        """All steps narrower (sign -1), or wider while that lowers damage (1), in the order in which they are best.

        An expert's best steps from where it is follow the lower hull of its damage, so their price only rises, and all
        experts' steps merge by it.
        """
        here, found = choice.copy(), []
        price = np.full(len(choice), -np.inf)
        while True:
            change = (self.widths[None, :] - self.widths[here][:, None]) * sign  # [N, K], bits saved or spent
            rise = (self.damage - self.damages(here)[:, None]) / np.maximum(change, 1)  # nats a bit
            rise[~(used[None, :] & (change > 0))] = np.inf
            best = rise.argmin(axis=1)
            own = rise[np.arange(len(here)), best]
            moved = np.flatnonzero(own < (0.0 if sign > 0 else np.inf))
            if not len(moved):
                break
            price[moved] = np.maximum(price[moved], own[moved])  # equal ones may differ in a last bit
            found.append((price[moved], moved, best[moved], change[moved, best[moved]]))
            here[moved] = best[moved]
        columns = zip(*found, strict=True) if found else ([np.zeros(0, np.int64)],) * 4
        prices, experts, to, bits = (np.concatenate(column) for column in columns)
        order = np.lexsort((experts, prices))
        return _Steps(experts[order], to[order], bits[order])

    def _after(self, choice: Choice, steps: "_Steps", count: int) -> Choice:
        """The choice after the first `count` steps."""
        changed = choice.copy()
        changed[steps.experts[:count]] = steps.to[:count]  # of an expert's steps the last one stays
        return changed

    def _widen(self, choice: Choice, used: NDArray[np.bool_], room: int) -> bool:
        """Take the best step of one expert to a wider width in place, by at most `room` bits."""
        change = self.widths[None, :] - self.widths[choice][:, None]  # [N, K]
        rise = (self.damage - self.damages(choice)[:, None]) / np.maximum(change, 1)  # nats a bit
        allowed = used[None, :] & (change > 0) & (change <= room) & (rise < 0)
        if not allowed.any():
            return False
        expert, width = np.unravel_index(np.where(allowed, rise, np.inf).argmin(), rise.shape)
        choice[expert] = width
        return True


def _key(choice: Choice) -> bytes:
    return choice.astype(np.int8).tobytes()


@dataclass(frozen=True, eq=False)
class _Steps:
    """Steps of single experts, the best first: expert, its next action, and the bits that it saves or spends."""

    experts: NDArray[np.int64]
    to: Choice
    bits: NDArray[np.int64]
