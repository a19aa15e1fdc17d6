"""What a cost model misses, learned: a ridge regression of log(real / predicted) on features of the allocation.

Its shrinkage is the one of the least leave-one-out error (closed form: a residual over 1 less its leverage; Allen's
PRESS, Technometrics 1974), among which is no correction at all: on prices that are exchangeable it is not expected to
be worse than the bare model, and with few prices it stays away.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np

from wattbit.plan import WEIGHT_BITS, Allocation, Cost, Workload
from wattbit.policy.cost.fitting import Floats, quantile

PENALTIES = tuple(float(p) for p in np.logspace(-3, 3, 13))
LEAST = 4  # prices below which nothing is learned
GAIN = 0.9  # the leave-one-out error must fall below this share of the bare model's


def features(allocation: Allocation, workload: Workload, predicted: Cost) -> Floats:
    """Features [F]: share of the experts and of the traffic at each width, classes, log of bytes and seconds, 1."""
    share = dict(workload.frequency)
    layers = len({expert.layer for expert in share}) or 1
    by_count, by_share = np.zeros(len(WEIGHT_BITS)), np.zeros(len(WEIGHT_BITS))
    for placement in allocation.placements:
        k = placement.precision.weight_bits - WEIGHT_BITS[0]
        by_count[k] += 1 / len(allocation.placements)
        by_share[k] += share.get(placement.expert, 0.0) / layers
    rest = [len(allocation.classes), np.log(predicted.memory_bytes + 1.0), np.log(predicted.latency_s), 1.0]
    return np.concatenate([by_count, by_share, rest])


@dataclass(eq=False)
class Residual:
    """The learned correction of one quantity; log ratios of what was real to what was predicted."""

    rows: list[Floats] = field(default_factory=list)
    ratios: list[float] = field(default_factory=list)
    penalty: float = float("inf")  # inf is no correction
    error: float = float("nan")  # leave-one-out, root mean square, of the log ratio
    _mean: Floats = field(init=False, default_factory=lambda: np.zeros(0))
    _scale: Floats = field(init=False, default_factory=lambda: np.zeros(0))
    _weights: Floats = field(init=False, default_factory=lambda: np.zeros(0))

    def learn(self, rows: Sequence[Floats], ratios: Sequence[float]) -> None:
        """Take more prices in and fit again to all of them."""
        self.rows += list(rows)
        self.ratios += list(ratios)
        y = np.array(self.ratios)
        self.penalty, self.error = float("inf"), float(np.sqrt(np.square(y).mean()))
        if len(y) < LEAST:
            return
        x = np.stack(self.rows)
        self._mean, self._scale = x.mean(axis=0), x.std(axis=0)
        z = self._standard(x)
        bare = self.error
        for penalty in PENALTIES:
            inverse = np.linalg.inv(z.T @ z + penalty * np.eye(z.shape[1]))
            leverage = np.einsum("nf,fg,ng->n", z, inverse, z)
            weights = inverse @ z.T @ y
            left_out = (y - z @ weights) / np.maximum(1 - leverage, 1e-9)
            error = float(np.sqrt(np.square(left_out).mean()))
            if error < min(self.error, GAIN * bare):
                self.penalty, self.error, self._weights = penalty, error, weights

    def correction(self, row: Floats) -> tuple[float, float | None]:
        """The factor on a prediction with these features, and half its 95 % interval relative to it; None unlearned."""
        if len(self.ratios) < LEAST:
            return 1.0, None
        half = quantile(len(self.ratios) - 1) * self.error
        factor = 0.0 if self.penalty == float("inf") else float(self._standard(row) @ self._weights)
        return float(np.exp(factor)), float(np.expm1(half))

    def _standard(self, x: Floats) -> Floats:
        """Features of mean 0 and deviation 1, those that never varied left out as 0, and a 1."""
        varied = self._scale > 1e-12
        z = np.where(varied, (x - self._mean) / np.where(varied, self._scale, 1.0), 0.0)
        z[..., -1] = 1.0
        return z
