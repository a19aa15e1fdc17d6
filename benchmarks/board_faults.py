"""What happens to a benchmark when the board, the connection, the sensor or the accelerator fails.

`python benchmarks/board_faults.py --json results/board_faults.json` takes some 15 minutes; `--quick` half as long. Each
fault is brought about for real on a virtual board: processes are killed, connections cut, disks filled, sensors
stopped. Then the same benchmark is run again, and it is checked that nothing measured was lost, that nothing is half
installed, and that the figures equal those of an undisturbed run within the intervals. Everything here is simulated.

The design is a small stand-in for a Verilated one, in C, which can hang on demand.
"""

import contextlib
import gzip
import json
import re
import shutil
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import click

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))  # the stand-in is among the tests

from tests.board_stub import TARGET, make_parts
from wattbit.board import client, virtual
from wattbit.board.agent.logic import TIMEOUT
from wattbit.board.agent.manifest import verify
from wattbit.board.bench import Settings, bench
from wattbit.board.bundle import pack
from wattbit.board.client import AgentClient
from wattbit.board.deploy import deploy, versions
from wattbit.board.program import Program, running
from wattbit.board.ssh import Connection
from wattbit.board.targets import SIMULATED, Power
from wattbit.board.virtual import VirtualBoard
from wattbit.errors import WattbitError
from wattbit.files import write_json, write_text
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


SURVIVED = "nothing: it went on by itself"
FOLDER = re.compile(r"/\S*/wattbit-board-\w+")


@dataclass(frozen=True)
class Outcome:
    """One fault: what the user was told, what was kept of the pairs measured by then, whether figures are as before."""

    fault: str
    phase: str
    told: str
    pairs_before: int
    pairs_kept: int
    installed: str
    net_mj_per_token: float | None
    net_mj_per_token_half: float | None
    undisturbed_mj_per_token: float | None
    as_undisturbed: bool
    seconds: float

    @property
    def failed(self) -> bool:
        """Whether the benchmark ended and had to be run again."""
        return self.told != SURVIVED

    @property
    def good(self) -> bool:
        """Nothing measured is lost, nothing is half-installed, and the figures are as undisturbed."""
        return self.as_undisturbed and self.pairs_kept == self.pairs_before and not self.installed.startswith("half")


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

    client.AgentClient.request = watched  # type: ignore[method-assign]
    try:
        yield
    finally:
        client.AgentClient.request = request  # type: ignore[method-assign]


class Faults:
    """The scenarios. Each leaves its board as it found it and returns what happened."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.undisturbed: dict[str, dict[str, Any]] = {}

    @contextlib.contextmanager
    def site(self, name: str, power: Power = SIMULATED) -> Iterator[Site]:
        folder = self.folder / name
        folder.mkdir(parents=True)
        site = Site(folder, power)
        try:
            site.start()
            yield site
        finally:
            site.stop()
            shutil.rmtree(folder)

    def reference(self, power: Power) -> dict[str, Any]:
        """The same benchmark undisturbed; once for each sensor."""
        if power.source not in self.undisturbed:
            with (
                self.site(f"undisturbed-{power.source}", power) as site,
                site.connection() as connection,
                self.sensor(site, connection, power),
            ):
                self.undisturbed[power.source] = site.bench(connection, "bench")
        return self.undisturbed[power.source]

    @contextlib.contextmanager
    def sensor(self, site: Site, connection: Connection, power: Power) -> Iterator[int]:
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

    def disturbed(
        self,
        fault: str,
        phase: str,
        disturb: Callable[[Site, Connection, int], contextlib.AbstractContextManager[None]],
        mend: Callable[[Site, Connection, int], None] = lambda site, connection, pid: None,
        power: Power = SIMULATED,
    ) -> Outcome:
        """A benchmark under a fault, then again without; the first may well survive it."""
        reference = self.reference(power)
        begin_s = time.monotonic()
        with self.site(f"{fault}-{phase}".replace(" ", "-"), power) as site:
            told = SURVIVED
            with site.connection() as connection, self.sensor(site, connection, power) as pid:
                try:
                    with disturb(site, connection, pid):
                        result = site.bench(connection, "bench")
                except WattbitError as error:
                    told = FOLDER.sub("FOLDER", str(error))
                kept = [entry for entry in site.journal("bench") if entry.get("kind") == "pair"]
                with contextlib.suppress(WattbitError):
                    mend(site, connection, pid)
            survived = told == SURVIVED
            with site.connection() as connection, self.sensor(site, connection, power):
                if not survived:
                    result = site.bench(connection, "bench")
                installed = site.installed(connection)
            final = site.measured("bench")
            windows = [[list(w) for w in entry["windows"]] for entry in kept]
            return self.outcome(
                fault, phase, told, len(kept), sum(all(w in final for w in pair) for pair in windows), installed,
                result, reference, begin_s,
            )  # fmt: skip

    @staticmethod
    def outcome(
        fault: str, phase: str, told: str, before: int, kept: int, installed: str,
        result: dict[str, Any], reference: dict[str, Any], begin_s: float,
    ) -> Outcome:  # fmt: skip
        energy, other = result["energy"], reference["energy"]
        near = abs(energy["net_mj_per_token"] - other["net_mj_per_token"])
        same = near <= energy["net_mj_per_token_half"] + other["net_mj_per_token_half"]
        same &= result["fpga"]["cycles"] == reference["fpga"]["cycles"] and result["bit_exact"]
        return Outcome(
            fault, phase, told, before, kept, installed, energy["net_mj_per_token"],
            energy["net_mj_per_token_half"], other["net_mj_per_token"], same, round(time.monotonic() - begin_s, 1),
        )  # fmt: skip

    def cut(self, command: str, number: int, phase: str) -> Outcome:
        def disturb(site: Site, connection: Connection, pid: int) -> contextlib.AbstractContextManager[None]:
            return when(command, number, lambda agent: connection.close())

        return self.disturbed("connection cut", phase, disturb)

    def cut_in_upload(self) -> Outcome:
        @contextlib.contextmanager
        def disturb(site: Site, connection: Connection, pid: int) -> Iterator[None]:
            write, vectors = Program.write, (site.bundle / "vectors.npz").read_bytes()

            def watched(self: Program, data: bytes) -> None:
                if data == vectors:
                    connection.close()
                write(self, data)

            Program.write = watched  # type: ignore[method-assign]
            try:
                yield
            finally:
                Program.write = write  # type: ignore[method-assign]

        return self.disturbed("connection cut", "upload", disturb)

    def agent_killed(self) -> Outcome:
        def disturb(site: Site, connection: Connection, pid: int) -> contextlib.AbstractContextManager[None]:
            return when("active", 4, lambda agent: kill(connection, agent.hello["pid"]))

        def kill(connection: Connection, pid: int) -> None:
            connection.run(["kill", "-9", str(pid)])

        return self.disturbed("agent killed", "energy, pair 4", disturb)

    def rebooted(self) -> Outcome:
        def disturb(site: Site, connection: Connection, pid: int) -> contextlib.AbstractContextManager[None]:
            return when("active", 4, lambda agent: site.restart())

        return self.disturbed("board rebooted", "energy, pair 4", disturb)

    def hang(self) -> Outcome:
        """The accelerator never finishes; the agent gives up, loads the design anew, and goes on."""

        @contextlib.contextmanager
        def disturb(site: Site, connection: Connection, pid: int) -> Iterator[None]:
            connection.run(["touch", "wattbit-hang"])
            run = AgentClient.request
            seen: list[str] = []

            def watched(self: AgentClient, cmd: str, **fields: Any) -> dict[str, Any]:
                try:
                    return run(self, cmd, **fields)
                except WattbitError as error:
                    seen.append(str(error))
                    connection.run(["rm", "-f", "wattbit-hang"])
                    raise

            client.AgentClient.request = watched  # type: ignore[method-assign]
            try:
                yield
            finally:
                client.AgentClient.request = run  # type: ignore[method-assign]
            assert len(seen) == 1 and "did not finish" in seen[0], seen

        return self.disturbed("accelerator hangs", "outputs", disturb)

    def sensor_missing(self) -> Outcome:
        @contextlib.contextmanager
        def disturb(site: Site, connection: Connection, pid: int) -> Iterator[None]:
            connection.run(["mv", CHIP, "/sys/hidden"])
            yield

        def mend(site: Site, connection: Connection, pid: int) -> None:
            connection.run(["mv", "/sys/hidden", CHIP])

        return self.disturbed("sensor missing", "energy", disturb, mend, SENSOR)

    def sensor_stuck(self) -> Outcome:
        """It gives the same value again and again."""

        def disturb(site: Site, connection: Connection, pid: int) -> contextlib.AbstractContextManager[None]:
            return when("active", 3, lambda agent: stop(connection, pid))

        def stop(connection: Connection, pid: int) -> None:
            connection.run(["touch", f"{CHIP}/broken"])

        return self.disturbed("sensor stuck", "energy, pair 3", disturb, power=SENSOR)

    def sensor_errors(self, lasting: bool) -> Outcome:
        """A reading that is no number, for a moment or for good."""

        def disturb(site: Site, connection: Connection, pid: int) -> contextlib.AbstractContextManager[None]:
            return when("active", 3, lambda agent: spoil(connection))

        def spoil(connection: Connection) -> None:
            mended = "" if lasting else f"; sleep 0.2; rm {CHIP}/broken"
            connection.run(["sh", "-c", f"touch {CHIP}/broken; echo busy > {CHIP}/power1_input{mended}"])

        phase = "energy, from pair 3 on" if lasting else "energy, a moment in pair 3"
        return self.disturbed("sensor gives errors", phase, disturb, power=SENSOR)

    def corrupted(self) -> Outcome:
        """A bit flips on the way, once."""

        @contextlib.contextmanager
        def disturb(site: Site, connection: Connection, pid: int) -> Iterator[None]:
            write, left = Program.write, [1]

            def watched(self: Program, data: bytes) -> None:
                if left[0] and data.startswith(b"\x7fELF"):
                    left[0], data = 0, data[:-1] + bytes([data[-1] ^ 1])
                write(self, data)

            Program.write = watched  # type: ignore[method-assign]
            try:
                yield
            finally:
                Program.write = write  # type: ignore[method-assign]
            assert left == [0], "nothing was altered"

        return self.disturbed("bundle corrupted in transit", "upload", disturb)

    def two_users(self) -> Outcome:
        @contextlib.contextmanager
        def disturb(site: Site, connection: Connection, pid: int) -> Iterator[None]:
            with running(connection, "wattbit.board.agent.depot") as other:
                other.send({"do": "deploy", "holder": "anna@lab", "manifest": verify(site.folder / "other")})
                other.read()
                yield

        return self.disturbed("two users deploy at once", "upload", disturb)

    def host_key_changed(self) -> Outcome:
        """Another machine answers at the board's address: nothing is sent to it."""

        @contextlib.contextmanager
        def disturb(site: Site, connection: Connection, pid: int) -> Iterator[None]:
            assert site.board is not None
            known = site.board.known_hosts.read_text()
            with tempfile.TemporaryDirectory() as folder:
                key = Path(folder) / "key"
                subprocess.run(["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", str(key)], check=True)
                other = key.with_suffix(".pub").read_text()
                site.board.known_hosts.write_text(f"{known.split()[0]} {other}")
            try:
                with site.connection():
                    yield
            finally:
                site.board.known_hosts.write_text(known)

        return self.disturbed("host key changed", "connect", disturb)

    def disk_full(self) -> Outcome:
        reference = self.reference(SIMULATED)
        begin_s = time.monotonic()
        folder = self.folder / "full"
        folder.mkdir(parents=True)
        site = Site(folder)
        try:
            with VirtualBoard(cache_folder(), disk_bytes=64 << 10) as small, small.connection() as connection:
                try:
                    site.bench(connection, "bench")
                    told = "nothing"
                except WattbitError as error:
                    told = str(error)
                left = connection.run(["sh", "-c", "find wattbit -type f ! -name .lock"]).decode().split()
            site.start()
            with site.connection() as connection:  # with space again
                result = site.bench(connection, "bench")
                installed = site.installed(connection) if not left else f"half: {left}"
        finally:
            site.stop()
            shutil.rmtree(folder)
        return self.outcome("disk full", "upload", told, 0, 0, installed, result, reference, begin_s)


def scenarios(faults: Faults, quick: bool) -> list[Callable[[], Outcome]]:
    """All of them, or those that --quick and the tests take."""
    few = [
        faults.cut_in_upload,
        lambda: faults.cut("active", 4, "energy, pair 4"),
        faults.agent_killed,
        faults.rebooted,
        faults.hang,
        faults.sensor_stuck,
    ]
    if quick:
        return few
    return [
        few[0],
        lambda: faults.cut("load", 1, "load"),
        lambda: faults.cut("run", 1, "outputs"),
        lambda: faults.cut("latency", 1, "latency"),
        *few[1:5],
        faults.disk_full,
        faults.sensor_missing,
        faults.sensor_stuck,
        lambda: faults.sensor_errors(lasting=False),
        lambda: faults.sensor_errors(lasting=True),
        faults.corrupted,
        faults.two_users,
        faults.host_key_changed,
    ]


def row(outcome: Outcome) -> str:
    same = "yes" if outcome.as_undisturbed else "**no**"
    energy = f"{outcome.net_mj_per_token:.4g} ± {outcome.net_mj_per_token_half:.2g}"
    kept = f"{outcome.pairs_kept} of {outcome.pairs_before}" if outcome.failed else "all"
    told = outcome.told.replace("|", "/")
    cells = [outcome.fault, outcome.phase, told, kept, outcome.installed, energy, same]
    return "| " + " | ".join(cells) + " |"


def table(outcomes: list[Outcome]) -> str:
    head = [
        "| fault | phase | what the user was told | pairs kept | on the board | net mJ/token after | as undisturbed |",
        "|---|---|---|---:|---|---:|---|",
    ]
    return "\n".join([*head, *map(row, outcomes)])


@click.command(help=__doc__)
@click.option("--quick", is_flag=True, help="Six of the faults.")
@click.option("--json", "path", type=click.Path(path_type=Path), help="Write the outcomes here, a table beside it.")
def main(quick: bool, path: Path | None) -> None:
    if shutil.which(CROSS) is None or shutil.which(virtual.TOOLS[0][0]) is None:
        raise click.ClickException(f"{CROSS} and proot are needed; `make setup` installs them")
    outcomes = []
    with tempfile.TemporaryDirectory(prefix="wattbit-faults-") as folder:
        faults = Faults(Path(folder))
        for scenario in scenarios(faults, quick):
            outcomes.append(scenario())
            click.echo(row(outcomes[-1]))
    if path is not None:
        command = f"python benchmarks/board_faults.py{' --quick' if quick else ''} --json {path}"
        record = {"command": command, "provenance": "simulated", "tier": "light"}
        write_json(path, record | {"outcomes": [asdict(outcome) for outcome in outcomes]})
        write_text(path.with_suffix(".md"), report(outcomes, command))


def report(outcomes: list[Outcome], command: str) -> str:
    good = sum(outcome.good for outcome in outcomes)
    return f"""# Faults (simulated, light virtual board)

`{command}` ({sum(outcome.seconds for outcome in outcomes):.0f} s)

Each fault is brought about for real on a virtual board, then the same command is run again. {good} of {len(outcomes)}
lost no pair that was measured, left nothing half-installed, and ended in the figures of an undisturbed run: the
same cycles, and net energy within the two intervals.

{table(outcomes)}

- "Pairs kept": pairs of idle and active windows that were measured when the fault came, and are in the final file.
- Windows are {QUICK.window_s:g} s and an interval of {QUICK.width:.0%} is enough here, so that the table takes minutes.
- The design is a stand-in for a Verilated one, in C, since it has to hang on demand; pynq, SSH, the agent and the
  benchmark are the real ones. The sensor of the sensor faults is a file in the guest's /sys, as a driver would show it.
- The guest's clock cannot be set on this tier: `tests/test_board_system.py` sets it on the system tier.
"""


if __name__ == "__main__":
    main()
