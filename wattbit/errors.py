"""The one root of errors that wattbit raises on purpose.

A command prints such an error as one line and exits non-zero; anything else is a bug and keeps its traceback.
"""


class WattbitError(Exception):
    """Bad input or a failed tool; the message names the value and the remedy in one line."""


class InfeasibleError(WattbitError):
    """A meter's answer to an allocation that its hardware cannot hold: a choice to avoid, not a failure."""


class ToolError(WattbitError):
    """A program that wattbit started failed.

    Carries the command, its exit status and the end of what it wrote to stderr.
    """

    def __init__(self, command: list[str], status: int, stderr: str, remedy: str = "") -> None:
        self.command = command
        self.status = status
        self.stderr = stderr
        last = next((line.strip() for line in reversed(stderr.splitlines()) if line.strip()), "no message")
        tail = f"; {remedy}" if remedy else ""
        super().__init__(f"{command[0]} failed with exit status {status}: {last}{tail}")
