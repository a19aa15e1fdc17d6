"""The virtual board: ARM user space, pynq as published, one board apart from another, nothing left behind."""

import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.board_support import cache_or_skip
from wattbit.board import rootfs, virtual
from wattbit.board.connect import board
from wattbit.board.ssh import Connection
from wattbit.board.virtual import VirtualBoard
from wattbit.errors import ToolError, WattbitError


@pytest.fixture(scope="module")
def connection() -> Iterator[Connection]:
    with VirtualBoard(cache_or_skip()) as running, running.connection() as opened:
        yield opened


def test_commands_run_on_arm_in_a_file_system_of_its_own(connection: Connection) -> None:
    assert connection.run(["uname", "-m"]) == b"aarch64\n"
    assert connection.run(["cat", "/etc/hostname"]) == b"virtual\n"
    assert (
        connection.run(["stat", "-c", "%u %F", "/root", "/etc/profile.d/board.sh"]) == b"0 directory\n0 regular file\n"
    )
    # faccessat2 and statx must not see the host's files, see wattbit.board.syscalls
    for path in (__file__, sys.executable):
        with pytest.raises(ToolError):
            connection.run(["bash", "-c", 'test -r "$0" || test -x "$0" || stat "$0"', path])


PYNQ = """
import json, platform, sys
import numpy, pynq
from pynq import MMIO, Device, Overlay, allocate
from pynq.lib.dma import DMA
print(json.dumps([platform.machine(), pynq.__version__, pynq.__file__, numpy.__version__, len(Device.devices)]))
"""


def test_pynq_as_published_imports(connection: Connection) -> None:
    machine, version, place, numpy_version, devices = json.loads(connection.run(["python3", "-c", PYNQ], timeout_s=60))
    assert (machine, version, devices) == ("aarch64", "4.0.0", 0)
    assert place == f"/{rootfs.SITE}/pynq/__init__.py"
    assert numpy_version.startswith("1.")


def test_a_board_keeps_pynqs_state_to_itself(connection: Connection) -> None:
    state = f"{rootfs.SITE}/pynq/pl_server/global_pl_state_.json"  # where pynq 4.0.0 writes it
    connection.run(["touch", f"/{state}"])
    assert not (rootfs.path(cache_or_skip()) / state).exists()


def test_modules_are_compiled_beforehand() -> None:
    pynq = rootfs.path(cache_or_skip()) / rootfs.SITE / "pynq"
    assert [
        path for path in pynq.glob("*.py") if not (pynq / f"__pycache__/{path.stem}.cpython-311.pyc").exists()
    ] == []


def test_two_boards_do_not_see_each_other() -> None:
    cache = cache_or_skip()
    with VirtualBoard(cache) as one, VirtualBoard(cache) as two:
        assert one.port != two.port
        assert one.known_hosts.read_text().split()[2] != two.known_hosts.read_text().split()[2]
        with one.connection() as first, two.connection() as second:
            folders = ("/root", "/tmp", "/run", "/var", "/dev/shm")
            first.run(["touch", *(f"{folder}/mine" for folder in folders)])
            assert first.run(["ls", *folders]).count(b"mine") == len(folders)
            assert b"mine" not in second.run(["ls", *folders])


def test_a_kept_home_is_there_the_next_time(tmp_path: Path) -> None:
    home = tmp_path / "home"
    for run in (1, 2):
        with board("virtual-z2", cache_or_skip(), home) as connection:
            connection.run(["sh", "-c", "echo run >> log"])
            assert connection.run(["cat", "/root/log"]) == b"run\n" * run


def test_a_full_disk_fails_with_its_name() -> None:
    probe = subprocess.run([*virtual.mount_namespace(), "true"], capture_output=True, text=True, check=False)
    if probe.returncode != 0:
        pytest.skip(f"this machine gives no mount namespace: {probe.stderr.strip()}")
    with (
        VirtualBoard(cache_or_skip(), disk_bytes=1 << 20) as small,
        small.connection() as connection,
        pytest.raises(
            ToolError, match=r"^dd failed with exit status 1: .*No space left.*; the disk of 127\.0\.0\.1 is full"
        ),
    ):
        connection.run(["dd", "if=/dev/zero", "of=large", "bs=1M", "count=4", "status=none"])


OWNER = """
import sys, time
from pathlib import Path
from wattbit.board.virtual import VirtualBoard
daemon = "import os, time\\nif os.fork() == 0:\\n os.setsid()\\n os.fork()\\n time.sleep(1000)\\n"
with VirtualBoard(Path(sys.argv[1])) as board, board.connection() as connection:
    running = connection.popen(["python3", "-c", daemon + "print('up', flush=True); time.sleep(1000)"])
    running.stdout.readline()
    print(board.identity.parent, flush=True)
    time.sleep(1000)
"""


def processes_of(folder: str) -> list[str]:
    """Command lines of all processes that carry the board's folder in command line or environment."""
    found = []
    for process in Path("/proc").glob("[0-9]*"):
        try:
            words = (process / "cmdline").read_bytes() + (process / "environ").read_bytes()
        except OSError:
            continue
        if folder.encode() in words:
            found.append((process / "comm").read_text().strip())
    return found


@pytest.mark.parametrize("sent", [signal.SIGINT, signal.SIGTERM, signal.SIGKILL])
def test_nothing_outlives_the_program_that_started_the_board(sent: signal.Signals) -> None:
    command = [sys.executable, "-c", OWNER, str(cache_or_skip())]
    with tempfile.TemporaryDirectory() as temporary:
        environment = os.environ | {"TMPDIR": temporary}
        owner = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True, env=environment)
        assert owner.stdout is not None
        folder = owner.stdout.readline().strip()
        assert any("qemu" in name or name.startswith("python3") for name in processes_of(folder))
        owner.send_signal(sent)
        owner.wait(20)
        deadline = time.monotonic() + 15
        while (processes_of(folder) or Path(folder).exists()) and time.monotonic() < deadline:
            time.sleep(0.05)
        assert processes_of(folder) == []
        assert not Path(folder).exists()
        left = [path.name for path in Path(temporary).iterdir()]
        assert all(name.startswith("wattbit-ssh-") for name in left), "but for the folder of a dead program's socket"
        assert not left or sent is not signal.SIGINT


def test_a_missing_tool_is_said_with_its_package(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("PATH", os.devnull)
    with (
        pytest.raises(WattbitError, match=r"proot is missing; install the Debian package proot"),
        VirtualBoard(tmp_path),
    ):
        pass


def test_a_server_that_does_not_start_says_why(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    cache_or_skip()
    monkeypatch.setattr(virtual, "ensure", lambda cache, progress: tmp_path)  # without pynq
    with (
        pytest.raises(ToolError, match=r"^the virtual board failed with exit status 1: .*No such file.*pl_server"),
        VirtualBoard(tmp_path),
    ):
        pass


def test_the_root_file_system_is_named_by_what_is_in_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    before = rootfs.path(tmp_path)
    assert rootfs.path(tmp_path) == before
    monkeypatch.setattr(rootfs, "WHEELS", (*rootfs.WHEELS, "more==1"))
    assert rootfs.path(tmp_path) != before


def test_a_failed_build_leaves_no_root_file_system(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(partial: Path, *arguments: str) -> str:
        raise ToolError(["apt-get"], 100, "E: no network")

    monkeypatch.setattr(rootfs, "apt", fail)
    with pytest.raises(ToolError, match="no network"):
        rootfs.ensure(tmp_path)
    assert not rootfs.path(tmp_path).exists()


def test_apt_without_debian_12_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(rootfs, "_tool", lambda command, remedy: "trixie main /etc/apt/sources.list:1\n")
    with pytest.raises(WattbitError, match="apt has no source of Debian 12"):
        rootfs._apt_sources()


@pytest.mark.slow
def test_a_root_file_system_is_built_from_nothing(tmp_path: Path) -> None:
    cache_or_skip()
    with board("virtual-z2", tmp_path / "cache", tmp_path / "home") as connection:
        connection.run(["python3", "-c", "import pynq"])
    assert [path.name for path in (tmp_path / "cache").iterdir() if path.is_dir()] == [rootfs.path(tmp_path).name]
