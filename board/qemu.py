"""QEMU as the system tier's machine: a Cortex-A53 board with one disk, one network and nothing else.

The guest reaches no network (`restrict=on`); this machine reaches the guest's sshd on a free port of 127.0.0.1 alone.
"""

import json
import shlex
import shutil
import socket
import subprocess
import tempfile
import time
from contextlib import ExitStack
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from wattbit.errors import ToolError, WattbitError
from wattbit.processes import execute, find_program

HOST = "127.0.0.1"
MEMORY_MB = 768
CORES = 2
TOOLS = {
    "qemu-system-aarch64": "qemu-system-arm",
    "qemu-img": "qemu-utils",
    "mke2fs": "e2fsprogs",
    "cpio": "cpio",
    "make": "make",
    "xz": "xz-utils",
    "aarch64-linux-gnu-gcc": "gcc-aarch64-linux-gnu",
    "ssh-keygen": "openssh-client",
}
POLL_S = 0.2
STOP_S = 10.0
SAVE_S = 300.0


def require_tools() -> None:
    for program, package in TOOLS.items():
        if find_program(program) is None:
            raise WattbitError(f"{program} is missing; install the Debian package {package}")


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind((HOST, 0))
        return int(probe.getsockname()[1])


def overlay(base: Path, path: Path) -> None:
    """A disk that starts as `base` and keeps what is written to it to itself."""
    command = ["qemu-img", "create", "-q", "-f", "qcow2", "-b", str(base.resolve()), "-F", "qcow2", str(path)]
    done = execute(command)
    if done.returncode:
        raise ToolError(command, done.returncode, done.stderr)


class Machine:
    """A running machine, as a context manager; its process is ended by its own handle.

    image: folder with kernel and initrd, and `state` where it resumes. disk: what the guest writes to.
    """

    def __init__(self, image: Path, disk: Path, resume: bool = True) -> None:
        self._image = image
        self._disk = disk
        self._resume = resume
        self.port = 0

    def __enter__(self) -> Self:
        with ExitStack() as stack:
            self._folder = Path(tempfile.mkdtemp(prefix="wattbit-qemu-"))
            stack.callback(shutil.rmtree, self._folder, ignore_errors=True)
            self.port = free_port()
            self._log = stack.enter_context((self._folder / "log").open("w+"))
            self._process = subprocess.Popen(
                self._command(), stdin=subprocess.DEVNULL, stdout=self._log, stderr=self._log, start_new_session=True
            )
            stack.callback(self._end)
            self._monitor = stack.enter_context(socket.socket(socket.AF_UNIX))
            self._connect()
            self._lines = stack.enter_context(self._monitor.makefile("r"))
            self._lines.readline()  # its greeting
            self._ask("qmp_capabilities")
            self._held = stack.pop_all()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._held.close()

    @property
    def pid(self) -> int:
        return self._process.pid

    def _command(self) -> list[str]:
        network = f"user,id=net,restrict=on,hostfwd=tcp:{HOST}:{self.port}-:22"
        command = ["qemu-system-aarch64", "-machine", "virt", "-cpu", "cortex-a53", "-smp", str(CORES)]
        command += ["-m", str(MEMORY_MB), "-accel", "tcg,thread=multi", "-nodefaults", "-nographic", "-no-user-config"]
        command += ["-serial", f"file:{self._folder / 'console'}"]
        command += ["-qmp", f"unix:{self._folder / 'monitor'},server=on,wait=off"]
        command += ["-kernel", str(self._image / "kernel"), "-initrd", str(self._image / "initrd")]
        command += ["-append", "console=ttyAMA0 quiet net.ifnames=0 mitigations=off panic=-1"]
        file = str(self._disk).replace(",", ",,")  # a comma ends the option
        command += ["-drive", f"if=none,id=disk,file={file},format=qcow2", "-device", "virtio-blk-device,drive=disk"]
        command += ["-netdev", network, "-device", "virtio-net-device,netdev=net", "-device", "virtio-rng-device"]
        saved = shlex.quote(str(self._image / "state"))  # QEMU gives it to a shell
        return [*command, "-incoming", f"exec:cat {saved}"] if self._resume else command

    def _connect(self) -> None:
        self._monitor.settimeout(SAVE_S)
        while True:
            self._check()
            try:
                self._monitor.connect(str(self._folder / "monitor"))
                return
            except OSError:
                time.sleep(POLL_S)

    def _check(self) -> None:
        if (status := self._process.poll()) is not None:
            self._log.seek(0)
            raise ToolError(["qemu-system-aarch64"], status, self._log.read())

    def _ask(self, command: str, **arguments: Any) -> Any:
        self._monitor.sendall(json.dumps({"execute": command, "arguments": arguments}).encode() + b"\n")
        while line := self._lines.readline():
            reply = json.loads(line)
            if "error" in reply:
                raise WattbitError(f"QEMU refuses {command}: {reply['error']['desc']}")
            if "return" in reply:
                return reply["return"]
        raise WattbitError(f"QEMU ended while it was asked for {command}; see whether memory is short")

    def wait_for_console(self, text: str, timeout_s: float) -> None:
        console = self._folder / "console"
        deadline_s = time.monotonic() + timeout_s
        while not (console.exists() and text in console.read_text(errors="replace")):
            self._check()
            if time.monotonic() > deadline_s:
                last = console.read_text(errors="replace").strip().splitlines()[-1:] if console.exists() else []
                raise WattbitError(f"the virtual board did not boot in {timeout_s:g} s; it last said {last}")
            time.sleep(POLL_S)

    def save(self, path: Path) -> None:
        """Write the machine's memory and devices to a file, and stop it; the disk stays as it is then."""
        self._ask("migrate", uri=f"exec:cat > {shlex.quote(str(path))}")
        deadline_s = time.monotonic() + SAVE_S
        while (status := self._ask("query-migrate")["status"]) != "completed":
            if status in ("failed", "cancelled") or time.monotonic() > deadline_s:
                raise WattbitError(f"QEMU could not save the machine's state ({status}); see whether the disk is full")
            time.sleep(POLL_S)

    def resumed(self, timeout_s: float) -> None:
        """Wait until the saved state is running again."""
        deadline_s = time.monotonic() + timeout_s
        while not self._ask("query-status")["running"]:
            self._check()
            if time.monotonic() > deadline_s:
                raise WattbitError(f"the virtual board did not resume in {timeout_s:g} s; build it again")
            time.sleep(POLL_S)

    def reset(self) -> None:
        """What a reset button does: the guest boots again, with its disk as it was."""
        self._ask("system_reset")

    def _end(self) -> None:
        self._process.terminate()
        try:
            self._process.wait(STOP_S)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
