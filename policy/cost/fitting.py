"""Constants from prices: non-negative least squares of relative errors.

A target's time is linear in a few constants (seconds a byte, a product, a cycle, a call), but for one thing: what runs
side by side takes as long as its slowest lane. With x[i, r] the amounts that launch i asks of lane r,

    seconds = sum over launches i of times_i * max over lanes r of x[i, r] . theta,        theta >= 0

For given binding lanes that is linear, so the fit alternates between which lane binds and a non-negative least squares
(Lawson and Hanson 1974, by scipy) whose rows are divided by the measured values. Intervals are those of that linear
regression: Student's t on s^2 (A'A)^-1, where A is amounts over measured values; a constant at its bound of 0 keeps the
interval's upper end. Errors are relative and taken as independent, so s is the relative error of one price.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Self

import numpy as np
from numpy.typing import NDArray
from scipy.optimize import nnls
from scipy.stats import t as student

from wattbit.errors import WattbitError

Floats = NDArray[np.float64]

CONFIDENCE = 0.95
ROUNDS = 30  # of choosing the binding lanes; a fit mostly settles in three


@dataclass(frozen=True, eq=False)
class Work:
    """Amounts [I, R, F] of F constants that lane r of launch i takes, and how often each launch happens, times [I]."""

    amounts: Floats
    times: Floats

    @classmethod
    def total(cls, amounts: Floats) -> Self:
        """Work without lanes: amounts [F]."""
        return cls(amounts[None, None, :], np.ones(1))

    def binding(self, theta: Floats) -> Floats:
        """Amounts [F] on the lanes that the launches wait for: the value is their product with theta."""
        slowest = (self.amounts @ theta).argmax(axis=1)
        bound: Floats = self.times @ self.amounts[np.arange(len(slowest)), slowest]
        return bound


def quantile(freedom: int) -> float:
    """Student's t, two-sided, at CONFIDENCE."""
    return float(student.ppf((1 + CONFIDENCE) / 2, freedom))


@dataclass(frozen=True, eq=False)
class Fitted:
    """Constants with their covariance; `sigma` is the relative error of one price, `samples` those of the fit.

    known: constants that were given and not fitted, as a board's peak bandwidth; they have no interval.
    """

    names: tuple[str, ...]
    theta: Floats  # [F]
    covariance: Floats  # [F, F]
    sigma: float
    samples: int
    known: tuple[str, ...] = ()

    @property
    def freedom(self) -> int:
        return max(1, self.samples - len(self.names) + len(self.known))

    @property
    def half(self) -> Floats:
        """Half the interval of each constant [F]."""
        halves: Floats = quantile(self.freedom) * np.sqrt(np.diag(self.covariance))
        return halves

    def value(self, work: Work) -> float:
        return float(work.binding(self.theta) @ self.theta)

    def predict(self, work: Work) -> tuple[float, float]:
        """The value, and half the interval of one price over it."""
        bound = work.binding(self.theta)
        value = float(bound @ self.theta)
        unsure = float(bound @ self.covariance @ bound) / value**2 if value else 0.0
        return value, quantile(self.freedom) * float(np.sqrt(unsure + self.sigma**2))

    def to_json(self) -> dict[str, Any]:
        constants = {
            name: {"value": float(value), "low": float(max(0.0, value - half)), "high": float(value + half)}
            for name, value, half in zip(self.names, self.theta, self.half, strict=True)
        }
        rest = {"covariance": self.covariance.tolist(), "relative_sigma": self.sigma, "samples": self.samples}
        return {"constants": constants, "order": list(self.names), "known": list(self.known)} | rest

    @classmethod
    def from_json(cls, record: Mapping[str, Any]) -> Self:
        names = tuple(record["order"])
        theta = np.array([record["constants"][name]["value"] for name in names])
        covariance = np.array(record["covariance"], float)
        if covariance.shape != (len(names), len(names)) or not np.isfinite(theta).all() or (theta < 0).any():
            raise WattbitError("the calibration's constants are no finite numbers from 0; calibrate again")
        return cls(names, theta, covariance, record["relative_sigma"], record["samples"], tuple(record["known"]))


def fit(
    names: Sequence[str], works: Sequence[Work], values: Sequence[float], known: Mapping[str, float] | None = None
) -> Fitted:
    """Constants `names`, at least 0, that explain the values of the works with the least relative errors.

    known: constants that are given. Raises WattbitError when a value is no positive number, and when the works do not
    tell the constants apart, with the constants concerned.
    """
    given = np.array([(known or {}).get(name, np.nan) for name in names])
    free = np.isnan(given)
    measured = np.array(values, float)
    if not np.isfinite(measured).all() or not (measured > 0).all():
        raise WattbitError("a price to calibrate on is no number above 0; see to the meter and measure again")
    if len(works) <= free.sum():
        raise WattbitError(f"{len(works)} prices cannot calibrate {int(free.sum())} constants; measure more of them")
    amounts = np.stack([work.times @ work.amounts.mean(axis=1) for work in works])  # to begin with, lanes share alike
    best: tuple[float, Floats, Floats] | None = None
    for _ in range(ROUNDS):
        theta = _solve(names, amounts, measured, given)
        amounts = np.stack([work.binding(theta) for work in works])
        error = float(np.square(amounts @ theta / measured - 1).sum())
        if best is not None and error >= best[0] * (1 - 1e-12):
            break
        best = error, theta, amounts
    assert best is not None
    error, theta, amounts = best
    sigma = float(np.sqrt(error / max(1, len(works) - free.sum())))
    relative = amounts[:, free] / measured[:, None]
    covariance = np.zeros((len(names), len(names)))
    covariance[np.ix_(free, free)] = sigma**2 * np.linalg.pinv(relative.T @ relative)
    fixed = tuple(name for name, own in zip(names, free, strict=True) if not own)
    return Fitted(tuple(names), theta, covariance, sigma, len(works), fixed)


def _solve(names: Sequence[str], amounts: Floats, measured: Floats, given: Floats) -> Floats:
    """Theta [F] for amounts [n, F] of the binding lanes; columns are scaled, for bytes and calls differ by 10^9."""
    free = np.isnan(given)
    rest = 1 - amounts[:, ~free] @ given[~free] / measured
    relative = amounts[:, free] / measured[:, None]
    scale = np.linalg.norm(relative, axis=0)
    mine = [name for name, own in zip(names, free, strict=True) if own]
    missing = [name for name, size in zip(mine, scale, strict=True) if size == 0]
    if missing:
        raise WattbitError(f"no price depends on {missing[0]}; measure allocations that use it")
    scaled = relative / scale
    if np.linalg.matrix_rank(scaled, tol=1e-9) < len(mine):
        worst = mine[int(np.abs(np.linalg.svd(scaled)[2][-1]).argmax())]
        raise WattbitError(f"the prices do not tell {worst} from the other constants; measure more widths and batches")
    theta = given.copy()
    theta[free] = nnls(scaled, rest)[0] / scale
    return theta
