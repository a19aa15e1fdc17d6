"""Energy from samples: closure against an injected profile, edges, intervals, refusals."""

import math
from collections.abc import Callable

import numpy as np
import pytest
from numpy.typing import NDArray
from scipy import stats

from wattbit.board.energy import distinct_updates, evaluate, half_interval, integrate, step
from wattbit.errors import WattbitError
from wattbit.plan import Measurement, PowerSample, Window

IDLE_W, ACTIVE_W = 2.0, 2.5
Float = NDArray[np.float64]


def windows(pairs: int = 6, seconds: float = 10.0) -> tuple[Window, ...]:
    kinds = ["idle", *["active", "idle"] * pairs]
    return tuple(
        Window("active" if kind == "active" else "idle", i * seconds, (i + 1) * seconds) for i, kind in enumerate(kinds)
    )


def measurement(power: Callable[[Float], Float], rate_hz: float = 20.0, pairs: int = 6) -> Measurement:
    """A sensor that reads `power` at `rate_hz` through all windows."""
    spans = windows(pairs)
    time_s = np.arange(0, spans[-1].end_s + 0.1, 1 / rate_hz)
    samples = tuple(PowerSample(float(t), float(w)) for t, w in zip(time_s, power(time_s), strict=True))
    return Measurement("board", "0" * 16, "12V", "measured", samples, spans, tokens=1, cycles=None)


def profile(seed: int = 0, noise_w: float = 0.01, drift_w_s: float = 0.0) -> Callable[[Float], Float]:
    """Power of alternating windows of 10 s, idle first, with noise and a drift of the whole board."""
    rng = np.random.default_rng(seed)

    def power(time_s: Float) -> Float:
        active = (time_s // 10 % 2 == 1) & (time_s < 120)
        return np.where(active, ACTIVE_W, IDLE_W) + drift_w_s * time_s + rng.normal(0, noise_w, len(time_s))

    return power


def test_energy_closes_within_its_interval() -> None:
    injected_j = (ACTIVE_W - IDLE_W) * 10
    inside = 0
    for seed in range(40):
        energy = evaluate(measurement(profile(seed)))
        inside += abs(energy.net_j - injected_j) <= energy.net_half_j
        assert energy.net_half_j < 0.05
        assert energy.absolute_j == pytest.approx(ACTIVE_W * 10, abs=0.1)
        assert (energy.idle_w, energy.active_w) == pytest.approx((IDLE_W, ACTIVE_W), abs=0.01)
    assert inside >= 34  # 95 % of 40 is 38; 34 or more have probability 0.998


def test_linear_drift_cancels() -> None:
    energy = evaluate(measurement(profile(noise_w=1e-3, drift_w_s=0.01)))
    assert energy.net_j == pytest.approx(5.0, abs=0.01)


def test_a_sensor_that_averages_loses_nothing() -> None:
    def late(time_s: Float) -> Float:
        """The mean over the last 0.2 s, as an INA226 gives it."""
        lags = np.linspace(0, 0.2, 20)
        return np.asarray(np.mean([profile(1)(time_s - lag) for lag in lags], axis=0))

    assert evaluate(measurement(late)).net_j == pytest.approx(5.0, abs=0.02)


def test_a_larger_difference_is_measured_larger() -> None:
    def more(time_s: Float) -> Float:
        return 2 * profile()(time_s)

    assert evaluate(measurement(more)).net_j == pytest.approx(2 * evaluate(measurement(profile())).net_j)


def test_integral_of_a_line_is_exact_between_samples() -> None:
    time_s = np.array([0.0, 1.0, 3.0, 4.0])
    power_w = 2 * time_s + 1
    assert integrate(time_s, power_w, 0.5, 3.25) == pytest.approx(3.25**2 + 3.25 - 0.5**2 - 0.5)


def test_integral_is_additive() -> None:
    rng = np.random.default_rng(0)
    time_s, power_w = np.sort(rng.uniform(0, 10, 50)), rng.uniform(1, 2, 50)
    parts = integrate(time_s, power_w, 1, 4.2) + integrate(time_s, power_w, 4.2, 9)
    assert parts == pytest.approx(integrate(time_s, power_w, 1, 9), rel=1e-12)


def test_a_window_without_samples_around_it_is_refused() -> None:
    time_s = np.arange(0, 5, 0.1)
    with pytest.raises(WattbitError, match="do not cover the window"):
        integrate(time_s, time_s, 1.0, 6.0)


def test_too_few_samples_are_refused() -> None:
    with pytest.raises(WattbitError, match=r"holds \d samples with \d distinct updates.*longer windows"):
        evaluate(measurement(profile(), rate_hz=0.5))


def test_a_stuck_sensor_is_refused() -> None:
    with pytest.raises(WattbitError, match="1 distinct updates"):
        evaluate(measurement(lambda time_s: np.full_like(time_s, 2.0)))


@pytest.mark.parametrize("pairs", [0, 1, 4])
def test_too_few_pairs_are_refused(pairs: int) -> None:
    with pytest.raises(WattbitError, match="take at least 5"):
        evaluate(measurement(profile(), pairs=pairs))


def test_windows_out_of_turn_are_refused() -> None:
    good = measurement(profile())
    record = good.to_json() | {"windows": good.to_json()["windows"][1:]}
    with pytest.raises(WattbitError, match="alternate"):
        evaluate(Measurement.from_json(record))


def test_samples_out_of_order_are_refused() -> None:
    record = measurement(profile()).to_json()
    record["samples"][5], record["samples"][6] = record["samples"][6], record["samples"][5]
    with pytest.raises(WattbitError, match="not in order"):
        evaluate(Measurement.from_json(record))


def test_polling_faster_than_the_sensor_adds_no_updates() -> None:
    slow = np.array([1.0, 1.1, 1.0, 1.3])
    assert distinct_updates(np.repeat(slow, 5)) == distinct_updates(slow) == 4
    assert distinct_updates(np.array([])) == 0


def test_step_is_the_quantisation() -> None:
    assert step(np.array([1.00, 1.25, 2.00, 1.25])) == pytest.approx(0.25)
    assert step(np.array([1.0, 1.0])) is None


def test_interval_is_students() -> None:
    values = [3.0, 3.2, 2.9, 3.1, 3.05]
    low, high = stats.t.interval(0.95, len(values) - 1, np.mean(values), stats.sem(values))
    assert 2 * half_interval(values) == pytest.approx(high - low)


def test_one_value_has_no_interval() -> None:
    with pytest.raises(WattbitError, match="at least 2 values, not 1"):
        half_interval([1.0])


def test_result_goes_to_json() -> None:
    record = evaluate(measurement(profile())).to_json()
    assert record["provenance"] == "measured" and record["rail"] == "12V" and record["pairs"] == 6
    assert all(math.isfinite(value) for value in record.values() if isinstance(value, float))
