"""Power on the board: sensors that raise, measured and simulated time."""

import itertools
import threading
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from tests.board_stub import (
    CLOCK_MHZ,
)
from wattbit.board.agent import timeline as timeline_module
from wattbit.board.agent.power import PowerModel
from wattbit.board.agent.sensors import HwmonSource, hwmon_sensors, open_source
from wattbit.board.agent.timeline import MeasuredTimeline, SimulatedTimeline, Work
from wattbit.errors import WattbitError


def write_hwmon(root: Path, microwatts: str, name: str = "ina260_u14") -> Path:
    chip = root / "hwmon0"
    chip.mkdir()
    (chip / "name").write_text(name + "\n")
    (chip / "power1_input").write_text(microwatts)
    return chip / "power1_input"


def test_hwmon_reads_microwatts(tmp_path: Path) -> None:
    write_hwmon(tmp_path, "3480000\n")
    source = open_source({"source": "hwmon", "rail": "ina260_u14/power1"}, tmp_path)
    assert source.read()[1] == pytest.approx(3.48) and source.rail == "ina260_u14/power1"


@pytest.mark.parametrize("text", ["", "n/a"])
def test_an_unreadable_sensor_raises(tmp_path: Path, text: str) -> None:
    source = HwmonSource(write_hwmon(tmp_path, text), "12V")
    with pytest.raises(WattbitError, match=f"power sensor 12V reads '{text}', which is no number of microwatts"):
        source.read()
    source.path.unlink()
    with pytest.raises(WattbitError, match="power sensor 12V cannot be read"):
        source.read()


def test_an_absent_sensor_is_refused_by_name(tmp_path: Path) -> None:
    write_hwmon(tmp_path, "1")
    assert list(hwmon_sensors(tmp_path)) == ["ina260_u14/power1"]
    with pytest.raises(WattbitError, match="no sensor 12V; it offers ina260_u14/power1"):
        open_source({"source": "hwmon", "rail": "12V"}, tmp_path)
    with pytest.raises(WattbitError, match="external meter"):
        open_source({"source": "none"}, tmp_path)


class Counting:
    """A sensor that reads 1, 2, 3, ... watts and fails after `lasts` readings."""

    rail = "counter"

    def __init__(self, lasts: int = 10**9) -> None:
        self._readings = itertools.count(1)
        self._lasts = lasts

    def read(self) -> tuple[float, float]:
        value = next(self._readings)
        if value > self._lasts:
            raise WattbitError("power sensor counter cannot be read: gone")
        return time.monotonic(), float(value)


@pytest.fixture
def measured() -> Iterator[MeasuredTimeline]:
    timeline = MeasuredTimeline(Counting())
    yield timeline
    timeline.close()


def test_measured_windows_hold_real_launches_and_samples(measured: MeasuredTimeline) -> None:
    idle = measured.idle(0.1)
    active = measured.active(Work(lambda: 7, {}), 0.1)
    samples = measured.samples()
    assert idle.end_s <= active.start_s and active.end_s - active.start_s >= 0.1
    assert active.launches == active.executed >= 1 and active.cycles == 7 * active.launches
    assert [power_w for _, power_w in samples] == list(range(1, len(samples) + 1)), "none is lost or repeated"
    assert all(a < b for (a, _), (b, _) in itertools.pairwise(samples))


def test_no_reading_is_lost_that_is_taken_while_others_are_asked_for() -> None:
    """The second reading lasts until the first was handed out."""
    begun, handed_out, gone_on = threading.Event(), threading.Event(), threading.Event()

    class Slow(Counting):
        def read(self) -> tuple[float, float]:
            reading = super().read()
            if reading[1] == 2:
                begun.set()
                assert handed_out.wait(20)
            elif reading[1] == 4:
                gone_on.set()
            return reading

    timeline = MeasuredTimeline(Slow())
    assert begun.wait(20)
    samples = list(timeline.samples())  # as it is sent at once
    handed_out.set()
    assert gone_on.wait(20)
    timeline.close()
    samples += timeline.samples()
    assert [power_w for _, power_w in samples] == list(range(1, len(samples) + 1))


def test_samples_reach_behind_a_window_whose_last_readings_are_late() -> None:
    """As on a board that is busy: a reading lasts longer than what the energy's edges are interpolated over."""

    class Late(Counting):
        def read(self) -> tuple[float, float]:
            time.sleep(0.2)
            return super().read()

    timeline = MeasuredTimeline(Late())
    assert timeline.idle(0.3).end_s <= timeline.samples()[-1][0]
    assert timeline.active(Work(lambda: 7, {}), 0.3).end_s <= timeline.samples()[-1][0]
    timeline.close()


def test_a_sensor_that_hangs_holds_nobody_up(monkeypatch: pytest.MonkeyPatch) -> None:
    hangs = threading.Event()

    class Hanging(Counting):
        def read(self) -> tuple[float, float]:
            assert hangs.wait(20)
            return super().read()

    monkeypatch.setattr(timeline_module, "LATE_S", 0.05)
    timeline = MeasuredTimeline(Hanging())
    timeline.idle(0.01)
    assert timeline.samples() == []
    hangs.set()
    timeline.close()


def test_a_sensor_that_fails_fails_the_measurement() -> None:
    timeline = MeasuredTimeline(Counting(lasts=2))
    timeline._thread.join(20)  # it ends after so many failures
    with pytest.raises(WattbitError, match="gone"):
        timeline.samples()
    timeline.close()


def test_a_sensor_whose_driver_breaks_fails_the_measurement_with_its_own_error() -> None:
    class Broken(Counting):
        def read(self) -> tuple[float, float]:
            raise OSError("libsensors: no such device")

    timeline = MeasuredTimeline(Broken())
    timeline._thread.join(20)
    with pytest.raises(OSError, match="no such device"):
        timeline.samples()
    timeline.close()


def simulated(noise_w: float = 0.0) -> SimulatedTimeline:
    return SimulatedTimeline(PowerModel(noise_w=noise_w), CLOCK_MHZ, "simulated")


def test_simulated_time_is_cycles_over_clock() -> None:
    timeline = simulated()
    assert timeline.idle(2.0).end_s == 2.0
    window = timeline.active(Work(lambda: 1000, {(4, 8): 10**5}), 1.0)  # 1000 cycles are 10 microseconds
    assert (window.launches, window.executed, window.cycles) == (10**5, 1, 10**8)
    assert window.end_s - window.start_s == pytest.approx(1.0)


def test_simulated_work_whose_cycles_are_known_is_not_executed() -> None:
    timeline, launches = simulated(), itertools.count()
    work = Work(lambda: 1000 + next(launches), {(4, 8): 10**5})
    first = timeline.active(work, 1.0)
    second = timeline.active(replace(work, cycles=1000), 1.0)
    assert (first.executed, second.executed, next(launches)) == (1, 0, 1)
    assert first.cycles == second.cycles and first.launches == second.launches


def test_simulated_power_is_the_models() -> None:
    model, timeline = PowerModel(noise_w=0.0), simulated()
    timeline.idle(1.0)
    timeline.active(Work(lambda: 1000, {(4, 8): 10**6}), 1.0)
    powers = [power_w for _, power_w in timeline.samples()]
    assert powers[:20] == pytest.approx([model.idle_w] * 20, abs=model.step_w)
    expected_w = model.idle_w + model.fabric_w + 10**6 * (model.mac_j + 32 * model.bit_j) / 10e-6
    assert powers[20:] == pytest.approx([expected_w] * 20, abs=model.step_w)


def test_wider_weights_draw_more() -> None:
    model = PowerModel()
    powers = [model.launch_w({(bits, 8): 10**6}, 1e-3) for bits in range(2, 9)]
    assert powers == sorted(powers) and len(set(powers)) == 7 and powers[0] > model.idle_w


def test_simulated_samples_repeat_and_lie_on_the_step() -> None:
    def record() -> list[tuple[float, float]]:
        timeline = simulated(noise_w=0.01)
        timeline.idle(3.0)
        return timeline.samples()

    samples = record()
    assert samples == record() and len(samples) == 60
    assert all(abs(w / PowerModel().step_w - round(w / PowerModel().step_w)) < 1e-6 for _, w in samples)


def test_emulated_cores_have_no_energy() -> None:
    with pytest.raises(WattbitError, match="measure on a real board"):
        simulated().active(Work(lambda: None, {}), 1.0)
