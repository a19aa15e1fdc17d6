"""Random power profiles of known energy, and a sensor that reads them: what the energy protocol is held against.

A profile is a board's true power: an idle level that drifts and wanders, and in each active window a shape of its own
on top of it: a step, a ramp, or steps within. The sensor averages, rounds, updates at its own rate, is polled faster
than that, adds noise and drops samples.
"""

from dataclasses import dataclass
from typing import Literal, get_args

import numpy as np
from numpy.typing import NDArray

from wattbit.plan import Measurement, PowerSample, Window

Shape = Literal["step", "ramp", "stairs"]
GRID_S = 0.002

Float = NDArray[np.float64]


@dataclass(frozen=True)
class Profile:
    """One random profile and its sensor.

    idle_w: level at the start; drift_w_s: its drift; wander_w: standard deviation of a wander from pair to pair.
    active_w: mean height of the active windows; shape: how they run; spread: relative deviation from window to window.
    update_s: between two values of the sensor, each the mean over that time. poll_s: between two readings.
    noise_w, step_w: of a value. dropped: share of readings that fail.
    """

    seed: int
    pairs: int
    window_s: float
    idle_w: float
    drift_w_s: float
    wander_w: float
    active_w: float
    shape: Shape
    spread: float
    update_s: float
    poll_s: float
    noise_w: float
    step_w: float
    dropped: float

    @classmethod
    def random(cls, seed: int, pairs: int = 8) -> "Profile":
        rng = np.random.default_rng(seed)
        idle_w = float(rng.uniform(1, 12))
        step_w = float(rng.choice([0.00125, 0.00625, 0.01, 0.025]))
        update_s = float(rng.choice([0.02, 0.036, 0.07, 0.15]))
        return cls(
            seed=seed,
            pairs=pairs,
            window_s=float(rng.uniform(10, 25)),
            idle_w=idle_w,
            drift_w_s=float(rng.normal(0, 2e-4)) * idle_w,
            wander_w=float(rng.choice([0.0, 0.002])) * idle_w,
            active_w=float(rng.uniform(0.05, 0.6)) * idle_w,
            shape=get_args(Shape)[seed % len(get_args(Shape))],
            spread=float(rng.choice([0.0, 0.02])),
            update_s=update_s,
            poll_s=float(rng.choice([0.25, 0.45])) * update_s,
            noise_w=float(rng.uniform(0.3, 2.0)) * step_w,
            step_w=step_w,
            dropped=float(rng.choice([0.0, 0.02, 0.2])),
        )

    def measure(self) -> tuple[Measurement, float, float]:
        """What the sensor gives, and the true net and absolute energy in joule of a mean active window."""
        rng = np.random.default_rng([self.seed, 1])
        windows = self._windows()
        time_s = np.arange(windows[0].start_s - 1, windows[-1].end_s + 1, GRID_S)
        idle_w = self.idle_w + self.drift_w_s * time_s
        wander_w = rng.normal(0, self.wander_w, self.pairs + 1)
        idle_w += np.interp(time_s, [window.start_s for window in windows[::2]], wander_w)
        extra_w = np.zeros_like(time_s)
        for window in windows[1::2]:
            inside = (time_s >= window.start_s) & (time_s < window.end_s)
            extra_w[inside] = self._shape(rng, int(inside.sum()))
        active = (np.array([w.start_s for w in windows[1::2]]), np.array([w.end_s for w in windows[1::2]]))
        in_active = ((time_s[:, None] >= active[0]) & (time_s[:, None] < active[1])).any(axis=1)
        net_j = float(extra_w.sum()) * GRID_S / self.pairs
        absolute_j = float((idle_w + extra_w)[in_active].sum()) * GRID_S / self.pairs
        samples = self._sensor(rng, time_s, idle_w + extra_w)
        measured = Measurement("profile", "0" * 16, "rail", "simulated", samples, windows, tokens=1, cycles=None)
        return measured, net_j, absolute_j

    def _windows(self) -> tuple[Window, ...]:
        def window(place: int) -> Window:
            return Window("active" if place % 2 else "idle", place * self.window_s, (place + 1) * self.window_s)

        return tuple(window(place) for place in range(2 * self.pairs + 1))

    def _shape(self, rng: np.random.Generator, length: int) -> Float:
        """Watts above idle within one active window."""
        height_w = self.active_w * (1 + rng.normal(0, self.spread))
        if self.shape == "ramp":
            return height_w * np.linspace(0.5, 1.5, length)
        if self.shape == "stairs":
            levels = rng.uniform(0.5, 1.5, 8)
            return height_w * np.repeat(levels / levels.mean(), -(-length // 8))[:length]
        return np.full(length, height_w)

    def _sensor(self, rng: np.random.Generator, time_s: Float, power_w: Float) -> tuple[PowerSample, ...]:
        """Readings: the last finished value of the chip at each poll, as far as it does not fail."""
        each = round(self.update_s / GRID_S)
        count = len(time_s) // each
        values_w = power_w[: count * each].reshape(count, each).mean(axis=1) + rng.normal(0, self.noise_w, count)
        values_w = np.round(values_w / self.step_w) * self.step_w
        polls_s = np.arange(time_s[0] + 2 * self.update_s, time_s[count * each - 1], self.poll_s)
        polls_s += rng.uniform(0, 0.2 * self.poll_s, len(polls_s))  # a scheduler's jitter
        last = np.minimum(((polls_s - time_s[0]) / self.update_s).astype(int) - 1, count - 1)
        kept = rng.random(len(polls_s)) >= self.dropped
        return tuple(PowerSample(float(t), float(w)) for t, w in zip(polls_s[kept], values_w[last[kept]], strict=True))
