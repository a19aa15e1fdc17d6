"""A wattbit module run on a board from memory: its sources go over SSH, and nothing is left there."""

import contextlib
import json
import subprocess
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import IO, Any, Protocol

from wattbit.board.carried import carried_files
from wattbit.board.ssh import SSH_FAILED
from wattbit.errors import WattbitError

# Runs on the board: imports what the first line of its input holds, then the named module's main().
BOOT = """
import importlib, importlib.util, json, sys
sources = json.loads(sys.stdin.buffer.readline())
class Sent:
    @classmethod
    def find_spec(cls, name, path=None, target=None):
        if name in sources:
            return importlib.util.spec_from_loader(name, cls, is_package=sources[name][1])
    @staticmethod
    def create_module(spec):
        return None
    @staticmethod
    def exec_module(module):
        exec(compile(sources[module.__name__][0], module.__name__, "exec"), module.__dict__)
sys.meta_path.insert(0, Sent)
sys.exit(importlib.import_module(sys.argv[1]).main(sys.argv[2:]))
"""
STOP_S = 10.0


class Host(Protocol):
    """What a program needs of `wattbit.board.ssh.Connection`."""

    host: str

    def start(self, args: list[str], stderr: IO[bytes], launch: bool = False) -> "subprocess.Popen[bytes]": ...

    def check(self, args: list[str], status: int, stderr: str) -> None: ...


@dataclass
class Program:
    """A running program; lines of JSON go both ways."""

    host: Host
    module: str
    process: "subprocess.Popen[bytes]"
    stderr: IO[bytes]

    def send(self, value: Any) -> None:
        """Send one line; a program that has ended says why when it is read from."""
        self.write(json.dumps(value).encode() + b"\n")

    def write(self, data: bytes) -> None:
        assert self.process.stdin is not None
        with contextlib.suppress(BrokenPipeError):
            self.process.stdin.write(data)
            self.process.stdin.flush()

    def read(self) -> dict[str, Any]:
        """The next line; WattbitError when the program or the connection to it has ended."""
        assert self.process.stdout is not None
        line = self.process.stdout.readline()
        try:
            return dict(json.loads(line))
        except ValueError:
            raise self._ended() from None

    def _ended(self) -> WattbitError:
        try:
            status = self.process.wait(STOP_S)
        except subprocess.TimeoutExpired:
            self.process.kill()
            status = self.process.wait()
        self.stderr.seek(0)
        words = self.stderr.read().decode(errors="replace")
        if status == SSH_FAILED and not words.strip():
            return WattbitError(f"the connection to {self.host.host} was lost; run again")
        try:
            self.host.check([self.module], status, words)
        except WattbitError as error:
            return error
        return WattbitError(f"{self.module} on {self.host.host} ended without an answer; run again")


@contextmanager
def running(host: Host, module: str, *arguments: str, launch: bool = False) -> Iterator[Program]:
    """Run `main(arguments)` of a module on the board as long as the block lasts; `launch`: with the agent's rights."""
    sources = {}
    for name, path in carried_files([module]).items():
        dotted = name.removesuffix(".py").removesuffix("/__init__").replace("/", ".")
        sources[dotted] = path.read_text(encoding="utf-8"), path.name == "__init__.py"
    with tempfile.TemporaryFile() as stderr:
        command = ["python3", "-B", "-c", BOOT, module, *arguments]
        process = host.start(command, stderr, launch)
        program = Program(host, module, process, stderr)
        try:
            program.send(sources)
            yield program
        finally:
            _stop(process)


def _stop(process: "subprocess.Popen[bytes]") -> None:
    """End a program by the end of its input, or else the connection to it."""
    assert process.stdin is not None and process.stdout is not None
    with contextlib.suppress(BrokenPipeError):
        process.stdin.close()
    try:
        process.wait(STOP_S)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()
    process.stdout.close()
