"""From power samples and windows to energy with an interval. Pure mathematics, on the host.

The protocol: idle and active windows alternate, idle first and last. An active window's energy is the trapezoid of its
samples with interpolated edges; from it goes the power of the idle time right before and right after, times the
window's length. An idle window between two active ones is halved, each half for the active window beside it, so that
the pairs share no sample and a linear drift cancels. A sensor that averages shows an active window's last energy late,
and a step between two samples has no known place: each active window is integrated `margin_s` beyond both its ends,
and idle time keeps that far away.
The interval is Student's t over the pairs.
"""

import math
import statistics
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from wattbit.errors import WattbitError
from wattbit.plan import Measurement, Provenance, Window

MIN_PAIRS = 5
MIN_SAMPLES = 8
MIN_UPDATES = 4
CONFIDENCE = 0.95

Float = NDArray[np.float64]


@dataclass(frozen=True)
class Energy:
    """Energy of one active window, over all pairs.

    net_j: above idle, with `net_half_j`, half of its 95 % interval. absolute_j: with idle, likewise.
    idle_w, active_w: mean powers. active_s: mean length of an active window.
    samples, updates: readings, and how often the reading changed. step_w: the smallest change, or None.
    """

    pairs: int
    net_j: float
    net_half_j: float
    absolute_j: float
    absolute_half_j: float
    idle_w: float
    active_w: float
    active_s: float
    samples: int
    updates: int
    step_w: float | None
    rail: str
    provenance: Provenance

    def to_json(self) -> dict[str, Any]:
        return asdict(self)


def evaluate(measurement: Measurement, margin_s: float = 0.3) -> Energy:
    """The energy of a measurement's active windows; WattbitError when samples, windows or pairs are too few."""
    time_s = np.array([sample.time_s for sample in measurement.samples])
    power_w = np.array([sample.power_w for sample in measurement.samples])
    if len(time_s) and (np.diff(time_s) <= 0).any():
        raise WattbitError("the power samples are not in order of time; take them on one monotonic clock")
    pairs = [_pair(time_s, power_w, *windows, margin_s) for windows in _triples(measurement.windows)]
    net_j = [net for net, _, _ in pairs]
    active = [window for window in measurement.windows if window.kind == "active"]
    active_s = [window.end_s - window.start_s for window in active]
    absolute_j = [net + idle_w * length for (net, idle_w, _), length in zip(pairs, active_s, strict=True)]
    return Energy(
        pairs=len(pairs),
        net_j=statistics.fmean(net_j),
        net_half_j=half_interval(net_j),
        absolute_j=statistics.fmean(absolute_j),
        absolute_half_j=half_interval(absolute_j),
        idle_w=statistics.fmean(idle_w for _, idle_w, _ in pairs),
        active_w=statistics.fmean(active_w for _, _, active_w in pairs),
        active_s=statistics.fmean(active_s),
        samples=len(time_s),
        updates=distinct_updates(power_w),
        step_w=step(power_w),
        rail=measurement.rail,
        provenance=measurement.provenance,
    )


def _triples(windows: Sequence[Window]) -> list[tuple[Window, Window, Window]]:
    """Each active window with the idle time before and after it that belongs to it alone."""
    kinds = [window.kind for window in windows]
    count = len(windows) // 2
    if kinds != ["idle", *["active", "idle"] * count]:
        raise WattbitError(f"windows must alternate, idle first and last, not {', '.join(kinds) or 'none'}")
    if count < MIN_PAIRS:
        raise WattbitError(f"{count} pairs of windows give no interval; take at least {MIN_PAIRS}")
    triples = []
    for place in range(1, len(windows), 2):
        before, active, after = windows[place - 1 : place + 2]
        if place > 1:
            before = Window("idle", (before.start_s + before.end_s) / 2, before.end_s)
        if place + 2 < len(windows):
            after = Window("idle", after.start_s, (after.start_s + after.end_s) / 2)
        triples.append((before, active, after))
    return triples


def _pair(
    time_s: Float, power_w: Float, before: Window, active: Window, after: Window, margin_s: float
) -> tuple[float, float, float]:
    """Net energy in joule, idle power and active power of one active window."""
    _sufficient(time_s, power_w, active.start_s, active.end_s)
    start_s, end_s = active.start_s - margin_s, active.end_s + margin_s
    idle_w = statistics.fmean(
        (
            mean_power(time_s, power_w, before.start_s, min(before.end_s, start_s)),
            mean_power(time_s, power_w, max(after.start_s, end_s), after.end_s),
        )
    )
    net_j = integrate(time_s, power_w, start_s, end_s) - idle_w * (end_s - start_s)
    return net_j, idle_w, idle_w + net_j / (active.end_s - active.start_s)


def _sufficient(time_s: Float, power_w: Float, start_s: float, end_s: float) -> None:
    inside = (time_s >= start_s) & (time_s <= end_s)
    count, updates = int(inside.sum()), distinct_updates(power_w[inside])
    if count < MIN_SAMPLES or updates < MIN_UPDATES:
        raise WattbitError(
            f"the window {start_s:.3f}..{end_s:.3f} s holds {count} samples with {updates} distinct updates, fewer "
            f"than {MIN_SAMPLES} and {MIN_UPDATES}; take longer windows"
        )


def mean_power(time_s: Float, power_w: Float, start_s: float, end_s: float) -> float:
    """Mean watts between two times, of enough samples."""
    _sufficient(time_s, power_w, start_s, end_s)
    return integrate(time_s, power_w, start_s, end_s) / (end_s - start_s)


def integrate(time_s: Float, power_w: Float, start_s: float, end_s: float) -> float:
    """Joule between two times: trapezoids over the samples, the edges interpolated between the samples around them.

    An edge beyond the first or last sample takes that sample's power, for at most one typical sampling interval.
    """
    if len(time_s) < 2 or end_s <= start_s:
        raise WattbitError(f"{len(time_s)} power samples cannot be integrated over {start_s:.3f}..{end_s:.3f} s")
    slack_s = 2 * float(np.median(np.diff(time_s)))
    if start_s < time_s[0] - slack_s or end_s > time_s[-1] + slack_s:
        raise WattbitError(
            f"samples from {time_s[0]:.3f} to {time_s[-1]:.3f} s do not cover the window {start_s:.3f}..{end_s:.3f} s"
        )
    inside = (time_s > start_s) & (time_s < end_s)
    edges = np.interp([start_s, end_s], time_s, power_w)
    times = np.concatenate(([start_s], time_s[inside], [end_s]))
    powers = np.concatenate((edges[:1], power_w[inside], edges[1:]))
    return float(np.sum((powers[1:] + powers[:-1]) / 2 * np.diff(times)))


def distinct_updates(power_w: Float) -> int:
    """How often a reading differs from the one before, the first one counted: polling faster adds none."""
    return 0 if not len(power_w) else 1 + int(np.count_nonzero(np.diff(power_w)))


def step(power_w: Float) -> float | None:
    """The smallest difference between two different readings: the quantisation, or None when all are equal."""
    levels = np.unique(np.round(power_w, 6))
    return float(np.diff(levels).min()) if len(levels) > 1 else None


def half_interval(values: Sequence[float], confidence: float = CONFIDENCE) -> float:
    """Half of Student's interval of the mean of independent values."""
    quantile = student_quantile((1 + confidence) / 2, len(values) - 1)
    return quantile * statistics.stdev(values) / math.sqrt(len(values))


def student_quantile(probability: float, freedom: int) -> float:
    """Quantile above the median of Student's t distribution with `freedom` degrees, by bisection of its integral."""
    if freedom < 1 or not 0.5 <= probability < 1:
        raise WattbitError(f"no t quantile at {probability} with {freedom} degrees of freedom; take more pairs")
    log_scale = math.lgamma((freedom + 1) / 2) - math.lgamma(freedom / 2) - math.log(freedom * math.pi) / 2

    def above_median(x: float) -> float:
        # with x = sqrt(freedom) tan(angle) the density becomes cos(angle)^(freedom - 1), smooth on a finite range
        angles = np.linspace(0, math.atan(x / math.sqrt(freedom)), 2001)
        values = np.cos(angles) ** (freedom - 1)
        simpson = values[0] + values[-1] + 4 * values[1:-1:2].sum() + 2 * values[2:-1:2].sum()
        return math.exp(log_scale) * math.sqrt(freedom) * float(simpson) * float(angles[1]) / 3

    low, high = 0.0, 1.0
    while above_median(high) < probability - 0.5:
        high *= 2
    for _ in range(60):
        middle = (low + high) / 2
        low, high = (middle, high) if above_median(middle) < probability - 0.5 else (low, middle)
    return high
