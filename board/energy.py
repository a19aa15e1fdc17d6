"""From power samples and windows to energy with an interval. Pure mathematics, on the host.

The protocol: idle and active windows alternate, idle first and last. An active window's energy is the trapezoid of its
samples with interpolated edges; from it goes the power of the idle time right before and right after, times the
window's length. An idle window between two active ones is halved, each half for the active window beside it, so that
the pairs share no sample and a linear drift cancels. A sensor that averages shows an active window's last energy late,
and a step between two samples has no known place: each active window is integrated a margin beyond both its ends,
and idle time keeps that far away.

The interval is Student's t over the pairs, plus what quantisation can hide. Rounding a quiet signal to steps of q errs
by the same amount in every pair, up to q/2, and scatter does not show it; noise of standard deviation s on the signal
shrinks that to q/pi * exp(-2 (pi s/q)^2) (Widrow and Kollar, Quantization Noise, 2008: the first harmonic).
"""

import math
import statistics
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.stats import t as student

from wattbit.errors import WattbitError
from wattbit.plan import Measurement, Provenance, Window

MIN_PAIRS = 5
MIN_SAMPLES = 4
MIN_UPDATES = 2
MIN_MARGIN_S = 0.3
MARGIN_SHARE = 0.2  # of the shortest window, at most
CONFIDENCE = 0.95

Float = NDArray[np.float64]


@dataclass(frozen=True)
class Energy:
    """Energy of one active window, over all pairs.

    net_j: above idle, with `net_half_j`, half of its 95 % interval. absolute_j: with idle, likewise.
    quantisation_j: the part of `net_half_j` that stands for the sensor's steps.
    idle_w, active_w: mean powers. active_s: mean length of an active window.
    samples, updates: readings, and how often the reading changed. step_w: the smallest change, or None.
    margin_s: how far beyond its ends an active window was integrated.
    """

    pairs: int
    net_j: float
    net_half_j: float
    absolute_j: float
    absolute_half_j: float
    quantisation_j: float
    idle_w: float
    active_w: float
    active_s: float
    samples: int
    updates: int
    step_w: float | None
    margin_s: float
    rail: str
    provenance: Provenance

    def to_json(self) -> dict[str, Any]:
        return asdict(self)


@dataclass(frozen=True)
class _Pair:
    """One active window beside its idle time: net energy, powers, lengths, what quantisation may hide in it."""

    net_j: float
    idle_w: float
    active_s: float
    hidden_j: float

    @property
    def absolute_j(self) -> float:
        return self.net_j + self.idle_w * self.active_s


def evaluate(*measurements: Measurement) -> Energy:
    """The energy of all active windows of one board's measurements, each taken without an interruption.

    Raises WattbitError when samples, windows or pairs are too few, or the sensor stood still in a window.
    """
    if len({(m.target, m.rail, m.provenance) for m in measurements}) != 1:
        raise WattbitError("measurements of several boards or rails have no energy in common; evaluate them apart")
    times_s, powers_w = [], []
    for measurement in measurements:
        times_s.append(np.array([sample.time_s for sample in measurement.samples]))
        powers_w.append(np.array([sample.power_w for sample in measurement.samples]))
        if (np.diff(times_s[-1]) <= 0).any():
            raise WattbitError("the power samples are not in order of time; take them on one monotonic clock")
    step_w = step(np.concatenate(powers_w))
    margin_s = max(
        _margin(time_s, power_w, m.windows) for m, time_s, power_w in zip(measurements, times_s, powers_w, strict=True)
    )
    pairs = [
        _pair(time_s, power_w, *windows, margin_s, step_w or 0.0)
        for measurement, time_s, power_w in zip(measurements, times_s, powers_w, strict=True)
        for windows in _triples(measurement.windows)
    ]
    if len(pairs) < MIN_PAIRS:
        raise WattbitError(f"{len(pairs)} pairs of windows give no interval; take at least {MIN_PAIRS}")
    hidden_j = statistics.fmean(pair.hidden_j for pair in pairs)
    active_s = statistics.fmean(pair.active_s for pair in pairs)
    net_j = statistics.fmean(pair.net_j for pair in pairs)
    idle_w = statistics.fmean(pair.idle_w for pair in pairs)
    return Energy(
        pairs=len(pairs),
        net_j=net_j,
        net_half_j=half_interval([pair.net_j for pair in pairs]) + hidden_j,
        absolute_j=statistics.fmean(pair.absolute_j for pair in pairs),
        absolute_half_j=half_interval([pair.absolute_j for pair in pairs]) + hidden_j,
        quantisation_j=hidden_j,
        idle_w=idle_w,
        active_w=idle_w + net_j / active_s,
        active_s=active_s,
        samples=sum(map(len, times_s)),
        updates=sum(map(distinct_updates, powers_w)),
        step_w=step_w,
        margin_s=margin_s,
        rail=measurements[0].rail,
        provenance=measurements[0].provenance,
    )


def require_movement(windows: Sequence[Window], samples: Sequence[tuple[float, float]]) -> None:
    """WattbitError unless the sensor moves in all that `evaluate` will look at, whatever its margin."""
    time_s, power_w = np.array(samples, float).reshape(-1, 2).T
    for window in windows:
        length_s = window.end_s - window.start_s
        middle_s = (window.start_s + window.end_s) / 2
        if window.kind == "active":
            _sufficient(time_s, power_w, window.start_s, window.end_s)
        else:
            _sufficient(time_s, power_w, window.start_s + MARGIN_SHARE * length_s, middle_s)
            _sufficient(time_s, power_w, middle_s, window.end_s - MARGIN_SHARE * length_s)


def _margin(time_s: Float, power_w: Float, windows: Sequence[Window]) -> float:
    """As long as nearly every value of the sensor stood, but a fraction of a window at most."""
    changes = time_s[1:][np.diff(power_w) != 0]
    if len(changes) < 2 or not windows:
        return MIN_MARGIN_S
    longest_s = MARGIN_SHARE * min(window.end_s - window.start_s for window in windows)
    return min(longest_s, max(MIN_MARGIN_S, 2 * float(np.quantile(np.diff(changes), 0.99))))


def _triples(windows: Sequence[Window]) -> list[tuple[Window, Window, Window]]:
    """Each active window with the idle time before and after it that belongs to it alone."""
    kinds = [window.kind for window in windows]
    count = len(windows) // 2
    if kinds != ["idle", *["active", "idle"] * count]:
        raise WattbitError(f"windows must alternate, idle first and last, not {', '.join(kinds) or 'none'}")
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
    time_s: Float, power_w: Float, before: Window, active: Window, after: Window, margin_s: float, step_w: float
) -> _Pair:
    _sufficient(time_s, power_w, active.start_s, active.end_s)
    start_s, end_s = active.start_s - margin_s, active.end_s + margin_s
    idle = (before.start_s, min(before.end_s, start_s)), (max(after.start_s, end_s), after.end_s)
    idle_w = statistics.fmean(mean_power(time_s, power_w, *edges) for edges in idle)
    net_j = integrate(time_s, power_w, start_s, end_s) - idle_w * (end_s - start_s)
    # the two idle parts err together at worst
    hidden_w = max(hidden_by_rounding(_inside(time_s, power_w, *edges), step_w) for edges in idle)
    hidden_w += hidden_by_rounding(_inside(time_s, power_w, active.start_s, active.end_s), step_w)
    active_s = active.end_s - active.start_s
    return _Pair(net_j, idle_w, active_s, hidden_w * active_s)


def _inside(time_s: Float, power_w: Float, start_s: float, end_s: float) -> Float:
    return power_w[(time_s >= start_s) & (time_s <= end_s)]


def _sufficient(time_s: Float, power_w: Float, start_s: float, end_s: float) -> None:
    inside = _inside(time_s, power_w, start_s, end_s)
    count, updates = len(inside), distinct_updates(inside)
    if count < MIN_SAMPLES or updates < MIN_UPDATES:
        raise WattbitError(
            f"the window {start_s:.3f}..{end_s:.3f} s holds {count} samples with {updates} distinct updates, fewer "
            f"than {MIN_SAMPLES} and {MIN_UPDATES}; see whether the sensor stands still, or take longer windows"
        )


def hidden_by_rounding(power_w: Float, step_w: float) -> float:
    """Watts by which a mean of readings rounded to `step_w` may be off, from how much the readings move."""
    if not step_w or len(power_w) < 2:
        return 0.0
    moves = np.minimum(np.abs(np.diff(power_w)), 3 * step_w)  # a jump between two levels is no noise
    noise_w = float(moves.mean()) * math.sqrt(math.pi) / 2
    own_w2 = max(0.0, noise_w**2 - step_w**2 / 12)  # without what rounding itself adds
    return min(step_w / 2, step_w / math.pi * math.exp(-2 * math.pi**2 * own_w2 / step_w**2))


def mean_power(time_s: Float, power_w: Float, start_s: float, end_s: float) -> float:
    """Mean watts between two times, of enough samples."""
    _sufficient(time_s, power_w, start_s, end_s)
    return integrate(time_s, power_w, start_s, end_s) / (end_s - start_s)


def integrate(time_s: Float, power_w: Float, start_s: float, end_s: float) -> float:
    """Joule between two times: trapezoids over the samples, the edges interpolated between the samples around them.

    An edge beyond the first or last sample takes that sample's power, for at most two typical sampling intervals.
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
    """Half of Student's interval of the mean of independent values; WattbitError of fewer than two."""
    if len(values) < 2:
        raise WattbitError(f"an interval takes at least 2 values, not {len(values)}; take more pairs")
    quantile = float(student.ppf((1 + confidence) / 2, len(values) - 1))
    return quantile * statistics.stdev(values) / math.sqrt(len(values))
