"""External meters and the kernel's sensors: what they read, and what they say when they cannot."""

import os
import pty
import socket
import threading
import time
from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path

import pytest

from wattbit.board import meters
from wattbit.board.agent import sensors
from wattbit.board.agent.conditions import conditions
from wattbit.board.agent.sensors import RaplSource, hwmon_sensors, open_source
from wattbit.board.meters import ClockTie, open_meter, parse_line, read_csv
from wattbit.errors import WattbitError
from wattbit.plan import PowerSample


@pytest.mark.parametrize(
    ("line", "power_w"),
    [
        ("2.093", 2.093),
        ("2.093 W\r\n", 2.093),
        ("w=2.5", 2.5),
        ("v=5.0 a=0.5", 2.5),
        ("A=.5, V=5", 2.5),
        ("t=3 v=5.0, a=5e-1", 2.5),
    ],
)
def test_a_line_is_a_reading(line: str, power_w: float) -> None:
    assert parse_line(line) == pytest.approx(power_w)


@pytest.mark.parametrize(
    "line", ["", "hello", "v=5.0", "v=5.0 a=", "5.0 0.4", "v=5 a=0.4 ok", "1e999", "w=-1e999", "v=1e200 a=1e200"]
)
def test_a_line_that_is_none_is_refused(line: str) -> None:
    with pytest.raises(WattbitError, match="is no reading; a meter's line is like"):
        parse_line(line)


@pytest.fixture
def port() -> Iterator[tuple[int, str]]:
    master, slave = pty.openpty()
    yield master, os.ttyname(slave)
    for end in (master, slave):
        os.close(end)


def wait_for(meter: meters.Meter, count: int) -> list[PowerSample]:
    found: list[PowerSample] = []
    deadline_s = time.monotonic() + 5
    while len(found) < count and time.monotonic() < deadline_s:
        found += meter.samples()
        time.sleep(0.01)
    return found


def test_a_serial_meter_is_read_as_its_lines_arrive(port: tuple[int, str]) -> None:
    master, name = port
    before_s = time.monotonic()
    with open_meter(f"serial:{name}@9600") as meter:
        for line in (b"1.5 W\n", b"noise\n", b"v=5 a=0.4\n"):
            os.write(master, line)
        found = wait_for(meter, 2)
    assert [sample.power_w for sample in found] == [1.5, 2.0]
    assert before_s <= found[0].time_s <= found[1].time_s <= time.monotonic()


def test_lines_that_come_together_are_spread_over_the_time_since_those_before(port: tuple[int, str]) -> None:
    master, name = port
    with open_meter(f"serial:{name}") as meter:
        for burst in range(3):
            time.sleep(0.1)
            os.write(master, b"".join(b"%d.%d\n" % (burst, k) for k in range(4)))
        found = wait_for(meter, 12)
    times_s = [sample.time_s for sample in found]
    assert [sample.power_w for sample in found] == [burst + k / 10 for burst in range(3) for k in range(4)]
    gaps_s = [b - a for a, b in pairwise(times_s)]
    assert min(gaps_s) > 0, "none has another's time, as integrals need"
    for burst in range(1, 3):
        assert gaps_s[4 * burst - 1 : 4 * burst + 3] == pytest.approx([gaps_s[4 * burst]] * 4, abs=1e-6)


def test_a_meter_that_talks_nonsense_is_lost(port: tuple[int, str]) -> None:
    master, name = port
    with open_meter(f"serial:{name}") as meter:
        os.write(master, b"nonsense\n" * meters.BROKEN_LINES)
        with pytest.raises(
            WattbitError, match=r"the meter serial:.* is lost: 20 lines in a row are no reading, .*nonsense"
        ):
            wait_for(meter, 1)


def test_a_silent_meter_is_said(port: tuple[int, str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(meters, "SILENT_S", 0.1)
    with open_meter(f"serial:{port[1]}") as meter, pytest.raises(WattbitError, match="has been silent for"):
        wait_for(meter, 1)


def test_a_network_meter_that_goes_away_is_said() -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:

        def serve() -> None:
            connection, _ = server.accept()
            connection.sendall(b"1.0\n2.0\n")
            connection.close()

        threading.Thread(target=serve, daemon=True).start()
        with (
            open_meter(f"tcp:127.0.0.1:{server.getsockname()[1]}") as meter,
            pytest.raises(WattbitError, match="it has closed the connection"),
        ):
            wait_for(meter, 3)


@pytest.mark.parametrize("name", ["", "usb", "serial:", "tcp:host", "tcp:host:port", "csv:"])
def test_a_meter_of_no_kind_is_refused(name: str) -> None:
    with pytest.raises(WattbitError, match="a meter is named serial:DEVICE, serial:DEVICE@BAUD, tcp:HOST:PORT or csv"):
        open_meter(name)


@pytest.mark.parametrize("port", ["0", "65536", "99999"])
def test_a_port_that_there_is_not_is_refused(port: str) -> None:
    with pytest.raises(
        WattbitError, match=rf"^{port} is no port; the meter 'tcp:localhost:{port}' needs one from 1 to 65535"
    ):
        open_meter(f"tcp:localhost:{port}")


def test_an_absent_port_is_said() -> None:
    with (
        pytest.raises(WattbitError, match=r"the meter serial:/nowhere cannot be opened"),
        open_meter("serial:/nowhere"),
    ):
        pass


def test_a_csv_file_is_read_while_it_grows(tmp_path: Path) -> None:
    path = tmp_path / "meter.csv"
    before_s, epoch_s = time.monotonic(), time.time()
    path.write_text(f"time_s,voltage_v,current_a\n{epoch_s},5.0,0.4\n{epoch_s + 1},5.0,")
    with open_meter(f"csv:{path}") as meter:
        opened_s = time.monotonic()
        assert [sample.power_w for sample in meter.samples()] == [2.0], "the last line is still being written"
        with path.open("a") as stream:
            stream.write("0.6\n")
        (second,) = meter.samples()
    assert second.power_w == 3.0
    rounding_s = 1e-5  # of seconds since 1970
    assert before_s - rounding_s <= second.time_s - 1 <= opened_s + rounding_s, "its time, on the monotonic clock"


def test_a_jump_of_the_time_of_day_is_found(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "meter.csv"
    path.write_text(f"time_s,power_w\n{time.time()},2.0\n")
    real = time.time
    with open_meter(f"csv:{path}") as meter:
        monkeypatch.setattr(time, "time", lambda: real() + 3600)
        with pytest.raises(WattbitError, match=r"time of day jumped by 3600\.0 s"):
            meter.samples()


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("a,b\n1,2\n", "needs the columns time_s and power_w"),
        ("time_s,power_w\n1,x\n", "line 2 of .* is no reading"),
        ("time_s,power_w\n1,2\n2,nan\n", "line 3 of .* is no reading"),
        ("time_s,power_w\n1,2\nnan,2\n", "line 3 of .* is no reading"),
    ],
)
def test_a_csv_file_of_another_form_is_refused(tmp_path: Path, text: str, message: str) -> None:
    path = tmp_path / "meter.csv"
    path.write_text(text)
    with pytest.raises(WattbitError, match=message):
        read_csv(path)


def test_a_meters_readings_go_onto_the_boards_clock() -> None:
    tie = ClockTie.of(lambda: time.monotonic() - 1000.0)
    assert tie.error_s >= 0 and tie.offset_s == pytest.approx(1000.0, abs=tie.error_s + 1e-9)
    (sample,) = tie.on_board([PowerSample(1005.0, 2.0)])
    assert sample == PowerSample(1005.0 - tie.offset_s, 2.0)


def chip(root: Path, number: int, address: str, microwatts: int) -> None:
    folder = root / f"hwmon{number}"
    folder.mkdir()
    device = root / "devices" / address
    device.mkdir(parents=True)
    (folder / "device").symlink_to(device)
    (folder / "name").write_text("ina226\n")
    (folder / "power1_input").write_text(f"{microwatts}\n")


def test_two_chips_of_one_name_are_told_apart(tmp_path: Path) -> None:
    chip(tmp_path, 0, "0-0040", 1_000_000)
    assert set(hwmon_sensors(tmp_path)) == {"ina226/power1"}
    chip(tmp_path, 1, "0-0041", 2_000_000)
    assert set(hwmon_sensors(tmp_path)) == {"ina226@0-0040/power1", "ina226@0-0041/power1"}
    settings = {"source": "hwmon", "rail": "INT", "rails": {"INT": "ina226@0-0041/power1"}}
    source = open_source(settings, tmp_path)
    assert source.rail == "INT" and source.read()[1] == 2.0


def rapl(root: Path, joule: float) -> None:
    domain = root / "intel-rapl:0"
    domain.mkdir(exist_ok=True)
    (domain / "name").write_text("package-0\n")
    (domain / "max_energy_range_uj").write_text("262143328850\n")
    (domain / "energy_uj").write_text(f"{round(joule * 1e6)}\n")


@pytest.mark.parametrize("start_j", [10.0, 262143.0])
def test_rapl_gives_the_power_between_two_readings(tmp_path: Path, start_j: float) -> None:
    rapl(tmp_path, start_j)
    before_s = time.monotonic()
    source = RaplSource("package-0", tmp_path)
    time.sleep(0.05)
    rapl(tmp_path, (start_j + 1.0) % 262143.328850)  # the counter wraps around
    time_s, power_w = source.read()
    assert before_s < time_s < time.monotonic()
    assert 1.0 / (time.monotonic() - before_s) < power_w < 1.0 / 0.05
    with pytest.raises(WattbitError, match="stands still"):
        source.read()
    with pytest.raises(WattbitError, match="has no domain dram; it has package-0"):
        RaplSource("dram", tmp_path)


def test_a_machine_without_nvml_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sensors, "NVML", "libno-such-thing.so.1")
    with pytest.raises(WattbitError, match=r"NVML cannot be opened: .*install NVIDIA's driver"):
        open_source({"source": "nvml", "rail": "gpu0"})
    with pytest.raises(WattbitError, match="written like gpu0, not 'card'"):
        open_source({"source": "nvml", "rail": "card"})


def test_temperature_and_clocks_are_read_where_they_are(tmp_path: Path) -> None:
    assert conditions(tmp_path) == {"temperature_c": {}, "clock_mhz": {}}
    zone, core = tmp_path / "class/thermal/thermal_zone0", tmp_path / "devices/system/cpu/cpu0/cpufreq"
    for folder in (zone, core):
        folder.mkdir(parents=True)
    (zone / "type").write_text("cpu-thermal\n")
    (zone / "temp").write_text("48312\n")
    (core / "scaling_cur_freq").write_text("1333333\n")
    found = conditions(tmp_path)
    assert found["temperature_c"] == {"cpu-thermal": pytest.approx(48.312)}
    assert found["clock_mhz"] == {"cpu0": pytest.approx(1333.333)}
