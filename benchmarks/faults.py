"""The faults, each brought about for real, and what became of the benchmark that was under way."""

import contextlib
import re
import shutil
import subprocess
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from unittest import mock

from fault_site import CHIP, SENSOR, Site, sensor, when

from wattbit.board.agent.manifest import verify
from wattbit.board.client import AgentClient
from wattbit.board.program import Program, running
from wattbit.board.ssh import Connection
from wattbit.board.targets import SIMULATED, Power
from wattbit.board.virtual import VirtualBoard
from wattbit.errors import WattbitError
from wattbit.run import cache_folder

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
                sensor(site, connection, power),
            ):
                self.undisturbed[power.source] = site.bench(connection, "bench")
        return self.undisturbed[power.source]

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
            with site.connection() as connection, sensor(site, connection, power) as pid:
                try:
                    with disturb(site, connection, pid):
                        result = site.bench(connection, "bench")
                except WattbitError as error:
                    told = FOLDER.sub("FOLDER", str(error))
                kept = [entry for entry in site.journal("bench") if entry.get("kind") == "pair"]
                with contextlib.suppress(WattbitError):
                    mend(site, connection, pid)
            survived = told == SURVIVED
            with site.connection() as connection, sensor(site, connection, power):
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

            with mock.patch.object(Program, "write", watched):
                yield

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

            with mock.patch.object(AgentClient, "request", watched):
                yield
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
            mended = "" if lasting else f"; rm {CHIP}/broken"  # to start rm takes some samples' time in emulation
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

            with mock.patch.object(Program, "write", watched):
                yield
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
