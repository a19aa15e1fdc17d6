"""The virtual board's SSH server: a process of its own, started by `wattbit.board.virtual`.

It serves SSH on a free port of 127.0.0.1. Every command runs in an emulated ARM user space: proot stands for chroot
and for binfmt_misc, so no privilege is needed. When its stdin closes, for whatever reason, it ends every session,
removes the board's folder and exits: no process outlives the program that started the board.
"""

import asyncio
import contextlib
import json
import os
import shutil
import signal
import sys
from pathlib import Path

import asyncssh

from wattbit.board.agent.part import VARIABLE
from wattbit.board.rootfs import SITE
from wattbit.board.syscalls import hide_from_proot
from wattbit.errors import WattbitError

HOST = "127.0.0.1"
CHUNK = 1 << 16
GRACE_S = 2.0
PART = "xc7z020clg400-1"  # what the virtual boards stand for
ENVIRONMENT = {  # what OpenSSH's sshd gives a command of root
    "HOME": "/root",
    "USER": "root",
    "LOGNAME": "root",
    "SHELL": "/bin/bash",
    "PATH": "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin",
    "LANG": "C.UTF-8",
    VARIABLE: PART,
    "PYTHONDONTWRITEBYTECODE": "1",  # the root file system is shared by all boards
}
OWN = {  # guest path -> this board's own folder, as is /root; the rest of the root file system is shared
    "/run": "run",
    "/tmp": "tmp",
    "/var": "var",
    "/dev/shm": "shm",
    "/sys": "sys",
    f"/{SITE}/pynq/pl_server": "pl_server",  # pynq keeps its state beside its own modules
}
SHARED = ("/proc", "/dev/null", "/dev/zero", "/dev/full", "/dev/random", "/dev/urandom")


class Board:
    """One board: its folder, and the command line that enters its user space."""

    def __init__(self, rootfs: Path, folder: Path, home: Path) -> None:
        self.folder = folder
        shutil.copytree(rootfs / SITE / "pynq/pl_server", folder / "pl_server")
        for name in OWN.values():
            (folder / name).mkdir(exist_ok=True)
        binds = [f"{home}:/root", *(f"{folder / name}:{guest}" for guest, name in OWN.items()), *SHARED]
        proot, qemu = (shutil.which(program) or program for program in ("proot", "qemu-aarch64"))
        self._enter = [proot, "-0", "-q", qemu, "-r", str(rootfs), "-w", "/root"]
        self._enter += [part for bind in binds for part in ("-b", bind)]

    async def session(self, process: "asyncssh.SSHServerProcess[bytes]") -> None:
        """Run one SSH session's command and give its exit status to the client."""
        shell = ["/bin/bash", "-l"] if process.command is None else ["/bin/bash", "-c", process.command]
        child = await asyncio.create_subprocess_exec(
            *self._enter,
            *shell,
            stdin=asyncio.subprocess.PIPE,
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.PIPE,
            env=ENVIRONMENT | {"PROOT_TMP_DIR": str(self.folder)},
            start_new_session=True,
        )
        assert child.stdin and child.stdout and child.stderr
        feed = asyncio.create_task(_feed(process.stdin, child.stdin))
        try:
            await asyncio.gather(_copy(child.stdout, process.stdout), _copy(child.stderr, process.stderr))
            status = await child.wait()
            process.exit(status if status >= 0 else 128 - status)
        except (OSError, asyncssh.Error):
            pass  # the client has gone
        finally:
            feed.cancel()
            await _end(child)


async def _feed(source: "asyncssh.SSHReader[bytes]", sink: asyncio.StreamWriter) -> None:
    with contextlib.suppress(OSError, asyncssh.Error):  # the client breaks off, or the command reads no more
        while data := await source.read(CHUNK):
            sink.write(data)
            await sink.drain()
    sink.close()


async def _copy(source: asyncio.StreamReader, sink: "asyncssh.SSHWriter[bytes]") -> None:
    while data := await source.read(CHUNK):
        sink.write(data)
        await sink.drain()


async def _end(child: asyncio.subprocess.Process) -> None:
    if child.returncode is not None:
        return
    child.send_signal(signal.SIGQUIT)  # proot takes all that it traces with it
    try:
        await asyncio.wait_for(child.wait(), GRACE_S)
    except TimeoutError:
        os.killpg(child.pid, signal.SIGKILL)
        await child.wait()


async def serve(rootfs: Path, folder: Path, home: Path) -> None:
    board = Board(rootfs, folder, home)
    host_key = asyncssh.generate_private_key("ssh-ed25519")
    client_key = asyncssh.generate_private_key("ssh-ed25519")
    client_key.write_private_key(str(folder / "identity"))
    (folder / "identity").chmod(0o600)
    sessions: set[asyncio.Task[None]] = set()

    async def session(process: "asyncssh.SSHServerProcess[bytes]") -> None:
        task = asyncio.current_task()
        assert task is not None
        sessions.add(task)
        try:
            await board.session(process)
        finally:
            sessions.discard(task)

    authorized = asyncssh.import_authorized_keys(client_key.export_public_key().decode())
    server = await asyncssh.listen(
        HOST,
        0,
        server_host_keys=[host_key],
        authorized_client_keys=authorized,
        process_factory=session,
        encoding=None,
        allow_pty=False,
    )
    port = server.get_port()
    public = host_key.export_public_key().decode().strip()
    (folder / "known_hosts").write_text(f"[{HOST}]:{port} {public}\n", encoding="utf-8")
    print(json.dumps({"port": port}), flush=True)
    await asyncio.to_thread(sys.stdin.read)
    server.close()
    for task in tuple(sessions):
        task.cancel()
    await asyncio.gather(*sessions, return_exceptions=True)


def main() -> None:
    rootfs, folder, home = map(Path, sys.argv[1:])
    try:
        hide_from_proot()
        asyncio.run(serve(rootfs, folder, home))
    except WattbitError as error:
        sys.exit(str(error))
    finally:
        shutil.rmtree(folder, ignore_errors=True)


if __name__ == "__main__":
    main()
