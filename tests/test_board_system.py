"""The virtual board's system tier: a real kernel, sshd and INA2xx driver, started from a saved state. Minutes."""

import gzip
import json
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.board_stub import CYCLES_PER_PACKET, TARGET, make_parts
from wattbit.board import system_image, targets
from wattbit.board.agent.power import PowerModel
from wattbit.board.bench import Settings, bench
from wattbit.board.bundle import pack
from wattbit.board.client import AgentClient
from wattbit.board.energy import evaluate
from wattbit.board.ssh import Connection
from wattbit.board.system import Detached, SystemBoard
from wattbit.errors import ToolError, WattbitError
from wattbit.plan import Measurement
from wattbit.run import cache_folder
from wattbit.shell import HEADER_BYTES

pytestmark = pytest.mark.slow

QUICK = Settings(window_s=3.0, pairs=5, width=0.1, budget_s=90.0, latency_s=5.0)


def image_or_skip() -> Path:
    cache = cache_folder()
    if not system_image.path(cache).is_dir():
        pytest.skip(f"the system tier's image is not in {cache}; `make virtual-board` builds it")
    return cache


@pytest.fixture(scope="module")
def board() -> Iterator[SystemBoard]:
    with SystemBoard(image_or_skip()) as running:
        yield running


@pytest.fixture(scope="module")
def connection(board: SystemBoard) -> Iterator[Connection]:
    with board.connection() as opened:
        yield opened


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("run")
    power = targets.load("virtual-z2-system").power
    pack(make_parts(folder, "aarch64-linux-gnu-gcc"), TARGET, folder / "bundle", power=power)
    return folder / "bundle"


def test_it_is_a_machine_with_a_kernel_and_sshd_of_its_own(connection: Connection) -> None:
    system, release, machine = connection.run(["uname", "-s", "-r", "-m"]).decode().split()
    assert (system, machine) == ("Linux", "aarch64") and release.endswith("-arm64")
    assert b"sshd" in connection.run(["sh", "-c", "cat /proc/$PPID/cmdline"])


def test_the_kernels_own_driver_reads_the_sensor(connection: Connection) -> None:
    read = "cd /sys/class/hwmon/hwmon0 && cat name && readlink -f device/driver && "
    read += "for i in 1 2 3 4 5; do cat power1_input; sleep 0.2; done"
    name, driver, *values = connection.run(["sh", "-c", read]).decode().split()
    assert name == "ina226" and driver == "/sys/bus/i2c/drivers/ina2xx"
    powers_w = [int(value) * 1e-6 for value in values]
    assert powers_w == pytest.approx([PowerModel().idle_w] * 5, abs=6 * PowerModel().noise_w)
    assert len(set(values)) > 1, "it is fed"
    assert b"ina226-i2c-0-40" in connection.run(["sensors"]), "libsensors reads it"


def test_pynq_as_published_sees_the_rail(connection: Connection) -> None:
    program = "import json, pynq; print(json.dumps([pynq.__version__, pynq.get_rails()['power1'].power.value]))"
    version, power_w = json.loads(connection.run([*connection.launch, "python3", "-c", program], timeout_s=300))
    assert version == "4.0.0" and power_w == pytest.approx(PowerModel().idle_w, abs=0.1)


def test_the_guest_reaches_no_network(connection: Connection) -> None:
    program = "import socket; socket.create_connection(('10.0.2.2', 22), 5)"
    with pytest.raises(ToolError, match=r"refused|timed out|unreachable"):
        connection.run(["python3", "-c", program], timeout_s=120)


def expected_w(result: dict[str, Any]) -> float:
    """What the model adds to idle during the bundle's launches."""
    model, packets = PowerModel(), result["packets"]
    launch_s = CYCLES_PER_PACKET * packets / 100e6
    moved = 8 * packets * (HEADER_BYTES + 2 * 16)
    narrow, wide = (2 * 16 * 8 * n for n in (packets // 2, packets - packets // 2))  # nearly: fabric and port lead
    return model.launch_w({(4, 8): narrow, (8, 8): wide}, launch_s, moved) - model.idle_w


def test_a_benchmark_closes_through_driver_and_bus(connection: Connection, bundle: Path, tmp_path: Path) -> None:
    """Injected watts come back as energy through register, I2C, ina2xx, hwmon, agent, SSH and protocol."""
    result = bench(bundle, connection, tmp_path / "bench", settings=QUICK)
    energy = result["energy"]
    assert result["bit_exact"] and energy["provenance"] == "simulated" and energy["rail"] == "ina226/power1"
    assert energy["step_w"] == pytest.approx(0.00125, rel=0.1)
    expected_j = expected_w(result) * energy["active_s"]
    assert energy["net_j"] == pytest.approx(expected_j, abs=energy["net_half_j"] + 0.03 * expected_j)
    assert result["agent"]["part"] == "xc7z020clg400-1"


def test_a_clock_that_jumps_changes_nothing(connection: Connection, bundle: Path, tmp_path: Path) -> None:
    def jump() -> None:
        for _ in range(4):
            time.sleep(8)
            connection.run(["date", "-s", "+3 hours"])
            time.sleep(4)
            connection.run(["date", "-s", "-5 hours"])

    jumper = threading.Thread(target=jump, daemon=True)
    jumper.start()
    result = bench(bundle, connection, tmp_path / "bench", settings=QUICK)
    jumper.join(120)
    energy = result["energy"]
    expected_j = expected_w(result) * energy["active_s"]
    assert energy["segments"] == 1
    assert energy["net_j"] == pytest.approx(expected_j, abs=energy["net_half_j"] + 0.03 * expected_j)


def test_a_benchmark_goes_on_after_a_reset_button(
    bundle: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    request, windows = AgentClient.request, [0]
    with SystemBoard(image_or_skip()) as board:

        def reset(self: AgentClient, cmd: str, **fields: Any) -> dict[str, Any]:
            windows[0] += cmd == "active"
            if cmd == "active" and windows[0] == 3:
                board.reset()
            return request(self, cmd, **fields)

        with monkeypatch.context() as patched, board.connection() as opened:
            patched.setattr(AgentClient, "request", reset)
            with pytest.raises(WattbitError):
                bench(bundle, opened, tmp_path / "bench", settings=QUICK)
        with board.connection() as opened:  # waits for the boot
            result = bench(bundle, opened, tmp_path / "bench", settings=QUICK)
    assert result["energy"]["segments"] == 2 and result["energy"]["pairs"] >= 5
    raw = tmp_path / "bench" / "raw.json.gz"
    records = json.loads(gzip.decompress(raw.read_bytes()))["measurements"]
    assert evaluate(*map(Measurement.from_json, records)).net_j == result["energy"]["net_j"]


def test_boards_have_disks_of_their_own(connection: Connection) -> None:
    connection.run(["touch", "/root/mine"])
    with SystemBoard(image_or_skip()) as other, other.connection() as second:
        assert b"mine" not in second.run(["ls", "/root"])


OWNER = """
import sys, time
from pathlib import Path
from wattbit.board.system import SystemBoard
with SystemBoard(Path(sys.argv[1])) as board:
    print(board._folder, flush=True)
    time.sleep(1000)
"""


def test_the_machine_ends_with_the_program_that_started_it() -> None:
    command = [sys.executable, "-c", OWNER, str(image_or_skip())]
    owner = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    assert owner.stdout is not None
    folder = Path(owner.stdout.readline().strip())
    owner.send_signal(signal.SIGKILL)
    owner.wait()
    deadline_s = time.monotonic() + 60
    while folder.exists() and time.monotonic() < deadline_s:
        time.sleep(0.2)
    assert not folder.exists()
    assert not [path for path in Path("/proc").glob("[0-9]*/cmdline") if str(folder).encode() in _words(path)], (
        "QEMU is gone too"
    )


def _words(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError:
        return b""


def test_one_can_be_left_running_and_is_stopped_by_its_process() -> None:
    cache = image_or_skip()
    board = Detached.start(cache)
    try:
        with pytest.raises(WattbitError, match=f"runs already, as process {board.pid}; stop it first"):
            Detached.start(cache)
        assert subprocess.check_output(["ssh", "-F", board.config, "wattbit-virtual", "hostname"]) == b"virtual\n"
    finally:
        board.stop()
    deadline_s = time.monotonic() + 60
    while Detached.running(cache) is not None and time.monotonic() < deadline_s:
        time.sleep(0.2)
    assert Detached.running(cache) is None and not board.folder.exists()
