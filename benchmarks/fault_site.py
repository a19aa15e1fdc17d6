"""The virtual board that faults are brought about on: its disk outlives restarts, and one sensor of it is a file."""

import contextlib
import gzip
import json
import threading
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any
from unittest import mock

from tests.board_stub import TARGET, make_parts
from wattbit.board.agent.logic import TIMEOUT
from wattbit.board.bench import Settings, bench
from wattbit.board.bundle import pack
from wattbit.board.client import AgentClient
from wattbit.board.deploy import deploy, versions
from wattbit.board.ssh import Connection
from wattbit.board.targets import SIMULATED, Power
from wattbit.board.virtual import VirtualBoard
from wattbit.errors import WattbitError
from wattbit.plan import Measurement
from wattbit.run import cache_folder

CROSS = "aarch64-linux-gnu-gcc"
HANG_S = 3
SENSOR = Power("hwmon", rail="filed/power1", settle_s=0.5)
QUICK = Settings(window_s=1.5, pairs=5, width=0.2, budget_s=60.0)
CHIP = "/sys/class/hwmon/hwmon0"
# a sensor that is a file: the model of the rail, written into it as a driver would show it
FEEDER = """
import os, random, sys, time, json
from pathlib import Path
sys.path.insert(0, sys.argv[1] + "/code")
from wattbit.board.agent.activity import ACTIVITY, Activity
from wattbit.board.agent.power import PowerModel
chip = Path("/sys/class/hwmon/hwmon0")
chip.mkdir(parents=True, exist_ok=True)
(chip / "name").write_text("filed\\n")
model, noise = PowerModel(), random.Random(3)
while True:
    watts = model.idle_w
    try:
        a = Activity.from_json(json.loads(ACTIVITY.read_text()))
        watts = model.launch_w(a.macs, a.launch_s, a.moved_bits)
    except (FileNotFoundError, ValueError):
        pass
    (chip / "new").write_text(str(round((watts + noise.gauss(0, model.noise_w)) * 1e6)) + "\\n")
    if not (chip / "broken").exists():
        os.replace(chip / "new", chip / "power1_input")
    if not (chip / "told").exists():
        (chip / "told").write_text("")
        print(os.getpid(), flush=True)
    time.sleep(0.04)
"""


class Site:
    """A virtual board whose disk outlives its restarts, and the bundle that is measured on it."""

    def __init__(self, folder: Path, power: Power = SIMULATED, settings: Settings = QUICK) -> None:
        self.folder = folder
        self.settings = settings
        self.bundle = folder / "bundle"
        parts = make_parts(folder, CROSS)
        pack(parts, TARGET, self.bundle, power=power)
        pack(replace(parts, top_k=1), TARGET, folder / "other", power=power)
        self.board: VirtualBoard | None = None

    def start(self) -> None:
        self.board = VirtualBoard(cache_folder(), home=self.folder / "home").__enter__()

    def stop(self) -> None:
        if self.board is not None:
            self.board.close()
        self.board = None

    def restart(self) -> None:
        """A reboot: everything that ran is gone, the disk is not."""
        self.stop()
        self.start()

    @contextlib.contextmanager
    def connection(self) -> Iterator[Connection]:
        assert self.board is not None
        launch = ("bash", "-lc", f'export {TIMEOUT}={HANG_S}; exec "$0" "$@"')
        # the port changes with a restart, a board's name does not
        with replace(self.board.connection(), launch=launch, deadline_s=20.0) as connection:
            yield connection

    def bench(self, connection: Connection, name: str) -> dict[str, Any]:
        return bench(self.bundle, connection, self.folder / name, settings=self.settings)

    def journal(self, name: str) -> list[dict[str, Any]]:
        path = self.folder / name / "journal.jsonl"
        return [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []

    def measured(self, name: str) -> list[list[Any]]:
        """Windows of the pairs that are in the final file."""
        raw = json.loads(gzip.decompress((self.folder / name / "raw.json.gz").read_bytes()))
        return [list(w) for record in raw["measurements"] for w in Measurement.from_json(record).to_json()["windows"]]

    def installed(self, connection: Connection) -> str:
        """Whether what is on the board is whole: its versions, and whether anything else lies there."""
        found = connection.run(["sh", "-c", "cd wattbit && ls -A"]).decode().split()
        whole = versions(connection)
        strange = set(found) - {".objects", ".history", ".lock", "current", *whole}
        for digest in whole:
            connection.run(["env", f"PYTHONPATH=wattbit/{digest}/code", "python3", "-B", "-m",
                            "wattbit.board.agent.manifest", f"wattbit/{digest}"])  # fmt: skip
        return f"{len(whole)} whole" if not strange else f"half: {', '.join(sorted(strange))}"


@contextlib.contextmanager
def sensor(site: Site, connection: Connection, power: Power) -> Iterator[int]:
    """The process of the sensor that is a file, where the board has one."""
    if power.source == "simulated":
        yield 0
        return
    place = deploy(site.bundle, connection)
    connection.run(["rm", "-rf", CHIP])
    process = connection.popen(["python3", "-B", "-c", FEEDER, place])
    assert process.stdout is not None and process.stdin is not None
    pid = int(process.stdout.readline())
    try:
        yield pid
    finally:
        with contextlib.suppress(WattbitError):
            connection.run(["kill", "-9", str(pid)])
        process.kill()
        process.wait()


@contextlib.contextmanager
def when(command: str, number: int, action: Callable[[AgentClient], None]) -> Iterator[None]:
    """Let `action` happen in the `number`th request of a command, a moment after it was sent."""
    request = AgentClient.request
    count = [0]

    def watched(self: AgentClient, cmd: str, **fields: Any) -> dict[str, Any]:
        count[0] += cmd == command
        if cmd != command or count[0] != number:
            return request(self, cmd, **fields)
        timer = threading.Timer(0.3 if command == "active" else 0.0, action, [self])
        timer.start()
        try:
            return request(self, cmd, **fields)
        finally:
            timer.join()

    with mock.patch.object(AgentClient, "request", watched):
        yield
