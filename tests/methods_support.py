"""Subjects for the methods' tests whose every number is known, and the sizes of their experts as packed."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np

from wattbit.errors import WattbitError
from wattbit.plan import ExpertId, ExpertStats, Workload
from wattbit.recipe import Quantizer, Recipe

WIDTHS = (2, 3, 4, 6, 8)
D_MODEL, D_HIDDEN = 64, 96


@dataclass(frozen=True)
class FakeSubject:
    """table: with damage at 2..8 bits. error: reconstruction [N, 7] at them. activity: [N, D]."""

    table: tuple[ExpertStats, ...]
    error: np.ndarray
    activity: np.ndarray
    ratios: tuple[float, ...] = ()
    top_k: int = 2

    @property
    def experts(self) -> tuple[ExpertId, ...]:
        return tuple(s.expert for s in self.table)

    def stats(self, weight_bits: tuple[int, ...], quantizer: Quantizer = "rtn") -> tuple[ExpertStats, ...]:
        return tuple(replace(s, damage=tuple(d for d in s.damage if d[0] in weight_bits)) for s in self.table)

    def reconstruction(
        self, weight_bits: tuple[int, ...], quantizer: Quantizer = "rtn"
    ) -> Mapping[ExpertId, Mapping[int, float]]:
        rows = zip(self.experts, self.error, strict=True)
        return {expert: {bits: float(row[bits - 2]) for bits in weight_bits} for expert, row in rows}

    def gate_ratios(self) -> tuple[float, ...]:
        if self.top_k == 1:
            raise WattbitError("one expert a token has no second gate")
        return self.ratios

    def channel_activity(self) -> Mapping[ExpertId, tuple[float, ...]]:
        return {e: tuple(row) for e, row in zip(self.experts, self.activity.tolist(), strict=True)}

    def perplexity(self, recipe: Recipe | None) -> float:
        raise NotImplementedError

    def memory_bytes(self, recipe: Recipe | None) -> int:
        """Two matrices an expert; a 16-bit scale a group or row, one more zero point for HQQ."""
        if recipe is None:
            return len(self.table) * 2 * D_MODEL * D_HIDDEN * 2
        return sum(self._bits(p.expert, p.precision.weight_bits, recipe) for p in recipe.allocation.placements) // 8

    def _bits(self, expert: ExpertId, width: int, recipe: Recipe) -> int:
        total = 0
        for rows, columns in ((D_HIDDEN, D_MODEL), (D_MODEL, D_HIDDEN)):
            kept = len(recipe.float_columns.get(expert, ())) if columns == D_MODEL else 0
            groups = -(-columns // (recipe.group_size or columns))
            total += (
                rows * (columns - kept) * width
                + rows * kept * 16
                + rows * groups * 16 * (1 + (recipe.quantizer == "hqq"))
            )
            total += min(recipe.ranks.get(expert, 0), D_MODEL) * (rows + columns) * recipe.compensator_bits
        return total


def make_subject(experts: int = 8, layers: int = 2, seed: int = 0, top_k: int = 2) -> FakeSubject:
    """Experts that differ in everything; damage and error fall with the width."""
    random = np.random.default_rng(seed)
    table, errors = [], []
    for layer in range(layers):
        shares = random.dirichlet(np.full(experts, 1.5))
        gates = shares * random.uniform(0.7, 1.3, experts)
        for e in range(experts):
            scale = 0.2 * float(shares[e]) ** 0.7 * float(np.exp(random.normal(0, 0.5)))
            fall = float(random.uniform(2.5, 5))
            table.append(
                ExpertStats(
                    expert=ExpertId(layer, e),
                    frequency=float(shares[e]),
                    contribution=float(gates[e] / gates.sum()),
                    gradient_norm=scale * float(random.uniform(0.5, 2)),
                    router_change=float(random.normal()),
                    max_variance=float(random.uniform(0.5, 4)),
                    kurtosis=float(random.uniform(-1, 11)),
                    damage=tuple((b, scale * fall ** (2.0 - b)) for b in range(2, 9)),
                    tokens=int(1e5 * shares[e]) + 1,
                )
            )
            errors.append(scale * float(random.uniform(5, 15)) * fall ** (-np.arange(7) / 2.0))
    activity = random.gamma(2.0, size=(experts * layers, D_MODEL))
    return FakeSubject(
        tuple(table), np.array(errors), activity, tuple(random.uniform(0.2, 0.9, layers).tolist()), top_k
    )


def workload_of(subject: FakeSubject) -> Workload:
    return Workload(1000, subject.top_k, tuple((s.expert, s.frequency) for s in subject.table))


def relabelled(subject: FakeSubject, order: Sequence[int]) -> FakeSubject:
    """The same experts under other numbers: expert i of every layer becomes the one that was `order[i]`."""
    layers = len(subject.table) // len(order)
    rows = [layer * len(order) + e for layer in range(layers) for e in order]
    table = tuple(
        replace(subject.table[row], expert=here.expert) for row, here in zip(rows, subject.table, strict=True)
    )
    return replace(subject, table=table, error=subject.error[rows], activity=subject.activity[rows])
