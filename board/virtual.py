"""A virtual board: emulated ARM user space with Python, numpy and pynq behind a real SSH server on this machine.

To wattbit it is a board like any other: it is reached by `wattbit.board.ssh` alone, with keys of its own and a host
key that is checked. What it lacks is a kernel, an FPGA and sensors of its own; the agent simulates the last two.
"""

import json
import os
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from wattbit.board.rootfs import ensure
from wattbit.board.ssh import Connection
from wattbit.board.virtual_server import HOST
from wattbit.errors import ToolError, WattbitError
from wattbit.progress import Progress, silent

__all__ = ["VirtualBoard", "ensure"]

TOOLS = (("proot", "proot"), ("qemu-aarch64", "qemu-user"), ("ssh", "openssh-client"))
LAUNCH = ("bash", "-lc", 'exec "$0" "$@"')  # a login shell sources /etc/profile.d, as on the boards
MOUNT = 'mount -t tmpfs -o "size=$1,mode=700" tmpfs "$0" && shift && exec "$@"'
STOP_S = 10.0


class VirtualBoard:
    """A running virtual board, as a context manager; several can run at once.

    host, port, user, identity, known_hosts: how to reach it; `connection()` has them filled in.
    home: the folder that is /root in the guest, kept; without it, /root vanishes with the board as /run, /tmp, /var
    and /sys do. The rest of the root file system is shared between boards. It is not a sandbox: a command on the board
    runs with the rights of the user who started it, and can change the shared files and, at /host-rootfs, the host's.
    disk_bytes: size of the file system at /root, to see what happens when it is full; needs a mount namespace, so
    root with CAP_SYS_ADMIN or a kernel that gives them to users.
    """

    host = HOST
    user = "root"

    def __init__(
        self, cache: Path, home: Path | None = None, disk_bytes: int | None = None, progress: Progress = silent
    ) -> None:
        self._cache = cache
        self._home = home
        self._disk_bytes = disk_bytes
        self._progress = progress
        self._server: subprocess.Popen[bytes] | None = None

    def __enter__(self) -> Self:
        for program, package in TOOLS:
            if shutil.which(program) is None:
                raise WattbitError(f"{program} is missing; install the Debian package {package}")
        rootfs = ensure(self._cache, self._progress)
        self._folder = Path(tempfile.mkdtemp(prefix="wattbit-board-"))
        try:
            self.port = self._start(rootfs)
        except BaseException:
            self.close()
            raise
        self.identity = self._folder / "identity"
        self.known_hosts = self._folder / "known_hosts"
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def connection(self) -> Connection:
        """A connection to this board, not yet open; the user's own ~/.ssh/config has no part in it."""
        return Connection(
            self.host,
            self.port,
            self.user,
            identity=self.identity,
            known_hosts=self.known_hosts,
            launch=LAUNCH,
            config=Path(os.devnull),
        )

    def close(self) -> None:
        """End every session and process of the board and remove its files."""
        if self._server is not None:
            end(self._server, STOP_S)
            self._server = None
        shutil.rmtree(self._folder, ignore_errors=True)

    def _start(self, rootfs: Path) -> int:
        home = (self._home or self._folder / "root").resolve()
        if ":" in str(home):
            raise WattbitError(f"the virtual board's home folder {home} has a colon in its path; choose another")
        home.mkdir(parents=True, exist_ok=True)
        command = [sys.executable, "-m", "wattbit.board.virtual_server", str(rootfs), str(self._folder), str(home)]
        if self._disk_bytes is not None:
            command = [*mount_namespace(), "sh", "-c", MOUNT, str(home), str(self._disk_bytes), *command]
        with tempfile.TemporaryFile() as log:
            # a session of its own: Ctrl-C at the terminal reaches us, and we end the server in order
            self._server = subprocess.Popen(
                command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=log, start_new_session=True
            )
            assert self._server.stdout is not None
            ready = self._server.stdout.readline()
            if not ready:
                status = self._server.wait()
                log.seek(0)
                raise ToolError(["the virtual board"], status, log.read().decode(errors="replace"))
        return int(json.loads(ready)["port"])


def mount_namespace() -> list[str]:
    """What a command that mounts is put behind, so that nobody else sees the mount."""
    return ["unshare", "--mount", *([] if os.geteuid() == 0 else ["--map-root-user"])]


def end(server: "subprocess.Popen[Any]", patience_s: float) -> None:
    """End a virtual board's server, which stops the board in order when its standard input closes."""
    assert server.stdin is not None
    server.stdin.close()
    try:
        server.wait(patience_s)
    except subprocess.TimeoutExpired:
        server.kill()
        server.wait()
