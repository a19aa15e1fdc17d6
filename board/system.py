"""The virtual board's system tier: a whole machine in QEMU, with Debian's kernel and sshd and a sensor of its own.

It starts from a saved state in seconds. To wattbit it is a board like any other; what it lacks is an FPGA, which the
agent simulates as on the light tier. Its INA226 is emulated, the driver that reads it is the kernel's own.
"""

import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import IO, Self

from wattbit.board.qemu import HOST
from wattbit.board.ssh import Connection
from wattbit.board.system_image import ensure
from wattbit.board.virtual import LAUNCH, end
from wattbit.errors import ToolError, WattbitError
from wattbit.files import read_json, write_json, write_text
from wattbit.progress import Progress, silent

CONNECT_S = 180.0  # a machine that boots anew on a busy host takes its time
STOP_S = 20.0
NAME = "wattbit-virtual"


class SystemBoard:
    """A running board, as a context manager; several can run at once, each with a disk of its own that goes with it."""

    user = "root"

    def __init__(self, cache: Path, progress: Progress = silent) -> None:
        self._cache = cache
        self._progress = progress
        self._server: subprocess.Popen[str] | None = None

    def __enter__(self) -> Self:
        image = ensure(self._cache, self._progress)
        self._folder = Path(tempfile.mkdtemp(prefix="wattbit-board-"))
        try:
            self.port = self._start(image)
        except BaseException:
            self.close()
            raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _start(self, image: Path) -> int:
        command = [sys.executable, "-m", "wattbit.board.system_server", str(image), str(self._folder)]
        with tempfile.TemporaryFile("w+") as log:
            # a session of its own: Ctrl-C at the terminal reaches us, and we end the server in order
            self._server = subprocess.Popen(
                command,
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=log,
                text=True,
                start_new_session=True,
            )
            return _port(self._server, log)

    def connection(self) -> Connection:
        """A connection to this board, not yet open; the user's own ~/.ssh/config has no part in it."""
        return _connection(self._folder, self.port)

    def reset(self) -> None:
        """Press the reset button: the board boots again, with its disk as it was."""
        assert self._server is not None and self._server.stdin is not None and self._server.stdout is not None
        self._server.stdin.write("reset\n")
        self._server.stdin.flush()
        self._server.stdout.readline()

    def close(self) -> None:
        """End the machine and remove its files."""
        if self._server is not None:
            end(self._server, STOP_S)
            self._server = None
        shutil.rmtree(self._folder, ignore_errors=True)


def _port(server: "subprocess.Popen[str]", log: IO[str]) -> int:
    assert server.stdout is not None
    ready = server.stdout.readline()
    if not ready:
        status = server.wait()
        log.seek(0)
        raise ToolError(["the virtual board"], status, log.read())
    return int(json.loads(ready)["port"])


def _connection(folder: Path, port: int) -> Connection:
    return Connection(
        HOST,
        port,
        SystemBoard.user,
        identity=folder / "identity",
        known_hosts=folder / "known_hosts",
        launch=LAUNCH,
        config=Path(os.devnull),
        deadline_s=CONNECT_S,
    )


@dataclass(frozen=True)
class Detached:
    """A board that keeps running after the program that started it, until it is stopped by its own process id."""

    folder: Path
    port: int
    pid: int

    @property
    def config(self) -> Path:
        return self.folder / "config"

    @classmethod
    def start(cls, cache: Path, progress: Progress = silent) -> Self:
        """Start one; WattbitError when one of this cache runs already."""
        if (running := cls.running(cache)) is not None:
            raise WattbitError(f"the virtual board runs already, as process {running.pid}; stop it first")
        image = ensure(cache, progress)
        folder = Path(tempfile.mkdtemp(prefix="wattbit-board-"))
        command = [sys.executable, "-m", "wattbit.board.system_server", str(image), str(folder), "--detached"]
        with tempfile.TemporaryFile("w+") as log:
            server = subprocess.Popen(
                command,
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE,
                stderr=log,
                text=True,
                start_new_session=True,
            )
            try:
                board = cls(folder, _port(server, log), server.pid)
                write_text(board.config, board.ssh_config())
                write_json(_record(cache), {"folder": str(folder), "port": board.port, "pid": board.pid})
            except BaseException:  # one without a record could not be stopped
                server.terminate()
                server.wait()
                shutil.rmtree(folder, ignore_errors=True)
                raise
        return board

    @classmethod
    def running(cls, cache: Path) -> Self | None:
        """The one that runs, None when there is none or its process is somebody else's by now."""
        if not _record(cache).exists():
            return None
        record = read_json(_record(cache))
        try:
            words = Path(f"/proc/{record['pid']}/cmdline").read_bytes()
        except OSError:
            return None
        if record["folder"].encode() not in words:
            return None
        return cls(Path(record["folder"]), record["port"], record["pid"])

    def stop(self) -> None:
        os.kill(self.pid, signal.SIGTERM)

    def connection(self) -> Connection:
        return _connection(self.folder, self.port)

    def ssh_config(self) -> str:
        """A file for `ssh -F`, or to be included in ~/.ssh/config."""
        lines = {
            "HostName": HOST,
            "Port": self.port,
            "User": SystemBoard.user,
            "IdentityFile": f'"{self.folder / "identity"}"',
            "IdentitiesOnly": "yes",
            "UserKnownHostsFile": f'"{self.folder / "known_hosts"}"',
        }
        return f"Host {NAME}\n" + "".join(f"  {name} {value}\n" for name, value in lines.items())


def _record(cache: Path) -> Path:
    return cache / "virtual-board.json"
