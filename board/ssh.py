"""A board over SSH: OpenSSH's client as a subprocess, so that ~/.ssh/config, jump hosts and agents work.

The host key is checked strictly. One connection is kept open (ControlMaster) and every command goes through it.
"""

import shlex
import shutil
import subprocess
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType
from typing import IO, Self

from wattbit.errors import ToolError, WattbitError

SSH_FAILED = 255  # OpenSSH's own exit status; everything else is the remote command's
RETRY_S = 1.0
PERSIST_S = 60  # an idle connection closes by itself, should this program be killed
SOCKET_PATH_MAX = 108 - 18  # a socket address has 108 bytes, of which ssh takes 17 for a suffix and 1 for the end
DISK_FULL = ("no space left on device", "disk quota exceeded")
UNREACHABLE = (
    "connection refused",
    "timed out",
    "no route to host",
    "network is unreachable",
    "connection closed",
    "connection reset",
    "could not resolve",
    "broken pipe",
)


@dataclass
class Connection:
    """A board that commands run on; a context manager that connects when entered.

    user, port: None leaves them to ~/.ssh/config and OpenSSH's defaults; so do identity and known_hosts.
    launch: what is put before the arguments of `popen`, for environment and rights on the board.
    config: another file than ~/.ssh/config.
    deadline_s: how long a board that does not answer is tried again when connecting.
    """

    host: str
    port: int | None = None
    user: str | None = None
    identity: Path | None = None
    known_hosts: Path | None = None
    launch: Sequence[str] = ()
    config: Path | None = None
    connect_timeout_s: int = 10
    deadline_s: float = 30.0
    _sockets: tempfile.TemporaryDirectory[str] | None = field(default=None, init=False, repr=False)

    def __enter__(self) -> Self:
        if shutil.which("ssh") is None:
            raise WattbitError("ssh is missing; install the Debian package openssh-client")
        self._sockets = tempfile.TemporaryDirectory(prefix="wattbit-ssh-")
        try:
            self._connect()
        except BaseException:
            self.close()
            raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        if self._sockets is not None:
            subprocess.run([*self._ssh(), "-O", "exit", "--", self.host], capture_output=True, check=False)
            self._sockets.cleanup()
            self._sockets = None

    def run(self, args: Sequence[str], input: bytes = b"", timeout_s: float | None = None) -> bytes:
        """What the command `args` writes to stdout on the board; it is quoted for the remote shell.

        Raises ToolError with its exit status and stderr when it fails, WattbitError when the board is lost or
        the command takes longer than timeout_s.
        """
        try:
            done = subprocess.run(self._command(args), input=input, capture_output=True, timeout=timeout_s, check=False)
        except subprocess.TimeoutExpired:
            raise WattbitError(
                f"{args[0]} on {self.host} did not finish in {timeout_s:g} s; see whether the board hangs"
            ) from None
        self.check(args, done.returncode, done.stderr.decode(errors="replace"))
        return done.stdout

    def popen(self, args: Sequence[str], stderr: int | IO[str] = subprocess.PIPE) -> "subprocess.Popen[str]":
        """Start `args` on the board behind the launch prefix, with pipes of text to its stdin and from its stdout.

        Ctrl-C at the terminal does not reach it; close its stdin and wait for it.
        """
        return subprocess.Popen(
            self._command([*self.launch, *args]),
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=stderr,
            text=True,
            encoding="utf-8",
            start_new_session=True,
        )

    def start(self, args: Sequence[str], stderr: IO[bytes], launch: bool = False) -> "subprocess.Popen[bytes]":
        """Start `args` with pipes of bytes, behind the launch prefix if asked for; else as the user who logs in."""
        return subprocess.Popen(
            self._command([*(self.launch if launch else ()), *args]),
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=stderr,
            start_new_session=True,
        )

    def _connect(self) -> None:
        deadline = time.monotonic() + self.deadline_s
        while True:
            done = subprocess.run(self._command(["true"]), capture_output=True, check=False)
            stderr = done.stderr.decode(errors="replace")
            retry = done.returncode == SSH_FAILED and any(sign in stderr.lower() for sign in UNREACHABLE)
            if not retry or time.monotonic() + RETRY_S > deadline:
                self.check(["true"], done.returncode, stderr)
                return
            time.sleep(RETRY_S)

    def _ssh(self) -> list[str]:
        if self._sockets is None:
            raise WattbitError(f"the connection to {self.host} is not open; use it in a with block")
        options = {
            "BatchMode": "yes",
            "StrictHostKeyChecking": "yes",
            "ConnectTimeout": str(self.connect_timeout_s),
            "ServerAliveInterval": "15",
            "ServerAliveCountMax": "4",
            "ClearAllForwardings": "yes",
            "RequestTTY": "no",
            "LogLevel": "ERROR",
        }
        control = Path(self._sockets.name) / "control"
        if len(bytes(control)) < SOCKET_PATH_MAX:  # below a longer temporary folder each command connects anew
            options |= {"ControlMaster": "auto", "ControlPath": _quoted(control), "ControlPersist": str(PERSIST_S)}
        if self.known_hosts is not None:
            options["UserKnownHostsFile"] = _quoted(self.known_hosts)
        if self.identity is not None:
            options |= {"IdentityFile": _quoted(self.identity), "IdentitiesOnly": "yes"}
        if self.user is not None:
            options["User"] = self.user
        if self.port is not None:
            options["Port"] = str(self.port)
        config = [] if self.config is None else ["-F", str(self.config)]
        return ["ssh", *config, *(part for name, value in options.items() for part in ("-o", f"{name}={value}"))]

    def _command(self, args: Sequence[str]) -> list[str]:
        return [*self._ssh(), "--", self.host, shlex.join(args)]

    def check(self, args: Sequence[str], status: int, stderr: str) -> None:
        """Raise what a command's exit status and stderr mean, unless it succeeded."""
        if status == 0:
            return
        if status == SSH_FAILED:
            self._explain(stderr)
        remedy = f"this was on {self.host}"
        if any(sign in stderr.lower() for sign in DISK_FULL):
            remedy = f"the disk of {self.host} is full, free some space there"
        raise ToolError(list(args), status, stderr, remedy)

    def _explain(self, stderr: str) -> None:
        """Raise what OpenSSH's message means, if it is one of OpenSSH's own."""
        said = stderr.lower()
        name = self.host if self.port in (None, 22) else f"[{self.host}]:{self.port}"
        known_hosts = "~/.ssh/known_hosts" if self.known_hosts is None else shlex.quote(str(self.known_hosts))
        if "identification has changed" in said:
            raise WattbitError(
                f"the host key of {name} does not match {known_hosts}; if the board was re-installed, remove the old "
                f"key with ssh-keygen -f {known_hosts} -R {shlex.quote(name)}"
            )
        if "host key verification failed" in said or "host key is known" in said:
            raise WattbitError(
                f"the host key of {name} is not in {known_hosts}; connect once with ssh, compare the fingerprint "
                "with the board's and accept it"
            )
        if "permission denied (" in said:
            who = "" if self.user is None else f"{self.user}@"
            raise WattbitError(
                f"{who}{name} refused every key offered; install yours with ssh-copy-id or name another identity"
            )
        if any(sign in said for sign in UNREACHABLE):
            last = stderr.strip().splitlines()[-1].strip()
            raise WattbitError(f"{name} cannot be reached ({last}); check its power, network and address")


def _quoted(path: Path) -> str:
    """A path as a value in ssh's configuration, where blanks separate and % starts a token."""
    return '"' + str(path).replace("%", "%%") + '"'
