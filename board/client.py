"""The host's end of the agent: one request, one reply."""

import contextlib
import json
import subprocess
import tempfile
from pathlib import PurePosixPath
from types import TracebackType
from typing import IO, Any, Protocol, Self

from wattbit.board.agent.session import PROTOCOL
from wattbit.board.ssh import SSH_FAILED
from wattbit.errors import ToolError, WattbitError

STOP_S = 10.0
HURRIED_S = 1.0  # after Ctrl-C or a failure


class Launcher(Protocol):
    """What the client needs of `wattbit.board.ssh.Connection`."""

    host: str

    def popen(self, args: list[str], stderr: int | IO[str] = ...) -> "subprocess.Popen[str]": ...


class AgentClient:
    """A running agent on a deployed bundle, as a context manager.

    hello: what it says of itself and its board. WattbitError when it speaks another version of the protocol.
    """

    def __init__(self, connection: Launcher, folder: str) -> None:
        self._connection = connection
        self._folder = PurePosixPath(folder)

    def __enter__(self) -> Self:
        self._stderr = tempfile.TemporaryFile("w+", encoding="utf-8", errors="replace")
        code = self._folder / "code"
        # pynq looks for its device when it is imported: remote devices are not this agent's way to a board
        self._command = ["env", "-u", "PYNQ_REMOTE_DEVICES", f"PYTHONPATH={code}", "python3", "-B", "-m"]
        self._command += ["wattbit.board.agent", str(self._folder)]
        self._process = self._connection.popen(self._command, stderr=self._stderr)
        try:
            self.hello = self.request("hello")
            if self.hello["protocol"] != PROTOCOL:
                raise WattbitError(
                    f"the agent on {self._connection.host} speaks protocol {self.hello['protocol']}, "
                    f"not {PROTOCOL}; deploy again"
                )
        except BaseException as error:
            self.__exit__(type(error), error, None)
            raise
        return self

    def request(self, cmd: str, **fields: Any) -> dict[str, Any]:
        """The reply to one command; WattbitError when the agent refuses it, ToolError when the agent has ended."""
        assert self._process.stdin is not None and self._process.stdout is not None
        line = ""
        if not self._process.stdin.closed:  # it has not ended before
            with contextlib.suppress(BrokenPipeError):
                self._process.stdin.write(json.dumps({"cmd": cmd, **fields}) + "\n")
                self._process.stdin.flush()
                line = self._process.stdout.readline()
        if not line:
            raise self._ended()
        try:
            reply = json.loads(line)
        except ValueError:
            raise WattbitError(f"the agent on {self._connection.host} wrote {line[:80]!r}, which is no reply") from None
        if "error" in reply:
            raise WattbitError(f"{self._connection.host}: {reply['error']}")
        return dict(reply)

    def _ended(self) -> ToolError:
        status = self._stop(STOP_S)
        self._stderr.seek(0)
        lost = " or the connection to it was lost" if status == SSH_FAILED else ""
        command = [f"the agent on {self._connection.host}", *self._command]
        return ToolError(command, status, self._stderr.read(), f"it ended{lost}; the same command resumes")

    def _stop(self, patience_s: float) -> int:
        """End the agent by the end of its input, or else the connection to it; its exit status."""
        with contextlib.suppress(BrokenPipeError):
            assert self._process.stdin is not None
            self._process.stdin.close()
        try:
            return self._process.wait(patience_s)
        except subprocess.TimeoutExpired:
            self._process.kill()
            return self._process.wait()

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._stop(STOP_S if error is None else HURRIED_S)
        assert self._process.stdout is not None
        self._process.stdout.close()
        self._stderr.close()
