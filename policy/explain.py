"""Why an allocation gave an expert its width, in numbers: the experts' features, and damage per bit against its price.

The price y of a bit (Lagrange's multiplier, `Problem.price`) is what the last bits of an allocation of this size buy
where damage is all that counts. Then every expert's last bits keep at least y nats a bit, and its next bits would save
at most y. An expert that breaks the first rule is "wider" than its damage says, one that breaks the second "narrower":
the method saw something else there (hardware, frequency, a rule of its own) or did badly. Damage is smoothed as
`policy.search` does. Pure functions of statistics and an allocation.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from scipy.stats import rankdata

from wattbit.errors import WattbitError
from wattbit.plan import Allocation, ExpertId, ExpertStats
from wattbit.policy.exact import solve
from wattbit.policy.methods.inputs import problem
from wattbit.policy.problem import Floats

FEATURES = ("frequency", "contribution", "gradient_norm", "router_change", "max_variance", "kurtosis")
TOLERANCE = 1e-6  # of the price

Verdict = Literal["priced", "wider", "narrower"]


@dataclass(frozen=True)
class ExpertReason:
    """One row. kept: damage in nats that the step down from its width would add, per bit of it (of the cheapest such
    step; None at the narrowest width). offered: damage that the best step up would save per bit (None at the widest).
    """

    stats: ExpertStats
    weight_bits: int
    damage_nats: float
    kept_nats_per_bit: float | None
    offered_nats_per_bit: float | None
    verdict: Verdict

    def sentence(self, price: float) -> str:
        """The row's reason as one line."""
        said = [f"{self.stats.expert} has {self.weight_bits} bits"]
        if self.stats.tokens == 0:
            said.append("it saw no calibration token")
        if self.kept_nats_per_bit is not None:
            said.append(f"its last ones keep {self.kept_nats_per_bit:.2e} nats a bit")
        if self.offered_nats_per_bit is not None:
            said.append(f"the next ones would save {self.offered_nats_per_bit:.2e}")
        said.append(f"the price is {price:.2e}")
        if self.verdict != "priced":
            said.append(f"{self.verdict} than its damage says")
        return "; ".join(said)


@dataclass(frozen=True)
class Explanation:
    """experts: rows, ordered. price_nats_per_bit: y. correlations: Spearman's rank correlation of the width with every
    feature and with `damage` (at the narrowest width), None where one of the two is the same for all. damage_nats: of
    the allocation, summed; least_damage_nats: of the table's optimum with as many bits. unseen: experts without a
    calibration token.
    """

    experts: tuple[ExpertReason, ...]
    price_nats_per_bit: float
    correlations: Mapping[str, float | None]
    damage_nats: float
    least_damage_nats: float
    unseen: tuple[ExpertId, ...]

    def to_json(self) -> dict[str, Any]:
        return {
            "price_nats_per_bit": self.price_nats_per_bit,
            "correlations": dict(self.correlations),
            "damage_nats": self.damage_nats,
            "least_damage_nats": self.least_damage_nats,
            "unseen": [str(expert) for expert in self.unseen],
            "experts": [
                {name: getattr(row.stats, name) for name in ("tokens", *FEATURES)}
                | {
                    "expert": str(row.stats.expert),
                    "weight_bits": row.weight_bits,
                    "damage_nats": row.damage_nats,
                    "kept_nats_per_bit": row.kept_nats_per_bit,
                    "offered_nats_per_bit": row.offered_nats_per_bit,
                    "verdict": row.verdict,
                }
                for row in self.experts
            ],
        }


def explain(stats: Sequence[ExpertStats], allocation: Allocation) -> Explanation:
    """Statistics beside an allocation of the same experts, with damage at least at its widths.

    Raises WattbitError for an expert that one of the two does not have, and for a width without damage.
    """
    ordered = sorted(stats, key=lambda s: s.expert)
    bits = {p.expert: p.precision.weight_bits for p in allocation.placements}
    strange = sorted({s.expert for s in ordered} ^ set(bits))
    if strange:
        raise WattbitError(f"{strange[0]} is in the statistics or the allocation alone; explain both of one model")
    measured = [width for width, _ in ordered[0].damage]
    missing = sorted(set(bits.values()) - set(measured))
    if missing:
        raise WattbitError(f"the statistics have damage at {measured} bits, not {missing[0]}; run stats again")
    table = problem(ordered, measured, allocation.mean_bits)
    choice = table.choice(allocation)
    price = table.price(np.ones(len(table.widths), dtype=np.bool_))
    rows = tuple(
        _reason(s, table.damage[i], table.widths.tolist(), int(choice[i]), price) for i, s in enumerate(ordered)
    )
    features = {name: np.array([getattr(s, name) for s in ordered]) for name in FEATURES}
    features["damage"] = table.damage[:, 0]
    width = table.widths[choice].astype(float)
    return Explanation(
        rows,
        price,
        {name: rank_correlation(width, values) for name, values in features.items()},
        float(table.damages(choice).sum()),
        float(table.damages(solve(table)).sum()),
        tuple(s.expert for s in ordered if s.tokens == 0),
    )


def rank_correlation(first: Floats, second: Floats) -> float | None:
    """Spearman's, ties at their mean rank; None where one of the two is constant."""
    if np.ptp(first) == 0 or np.ptp(second) == 0:
        return None
    return float(np.corrcoef(rankdata(first), rankdata(second))[0, 1])


def _reason(s: ExpertStats, damage: Floats, widths: Sequence[int], here: int, price: float) -> ExpertReason:
    """A row from one expert's damage [K] at all widths [K]."""
    slopes = [
        (float(damage[k]) - float(damage[here])) / (widths[here] - widths[k]) if k != here else 0.0
        for k in range(len(widths))
    ]
    kept = min(slopes[:here], default=None)
    offered = max(slopes[here + 1 :], default=None)
    verdict: Verdict = "priced"
    if kept is not None and kept < price * (1 - TOLERANCE):
        verdict = "wider"
    elif offered is not None and offered > price * (1 + TOLERANCE):
        verdict = "narrower"
    return ExpertReason(s, widths[here], float(damage[here]), kept, offered, verdict)
