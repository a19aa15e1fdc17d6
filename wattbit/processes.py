"""Programs that wattbit starts, and the threads that start them: none of them outlives Ctrl-C.

A program gets a process group of its own, so that the one who started it ends it and all that it started in turn (g++
its cc1plus, for example), and gives it time to remove its temporary files.
"""

import fcntl
import os
import shutil
import signal
import subprocess
import threading
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from pathlib import Path

from wattbit.errors import WattbitError

GRACE_S = 2.0

_interrupted = threading.Event()
_running: set["subprocess.Popen[str]"] = set()
_lock = threading.Lock()


def execute(
    command: Sequence[str], folder: Path | None = None, environment: Mapping[str, str] | None = None, text: str = ""
) -> "subprocess.CompletedProcess[str]":
    """Run a program in `folder` with `text` as its input; its exit status and what it wrote.

    However the call ends, the program and what it started have ended too. Raises WattbitError in a thread of `workers`
    that were interrupted.
    """
    with _lock:
        if _interrupted.is_set():
            raise WattbitError(f"{command[0]} was not started: interrupted")
        process = subprocess.Popen(
            command,
            cwd=folder,
            env=environment,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            errors="replace",
            process_group=0,
        )
        _running.add(process)
    try:
        stdout, stderr = process.communicate(text)
    except BaseException:
        _end(process)
        raise
    finally:
        with _lock:
            _running.discard(process)
    return subprocess.CompletedProcess(command, process.returncode, stdout, stderr)


def find_program(name: str) -> str | None:
    """Path of a program, also in the system folders that a user's PATH may lack."""
    return shutil.which(name) or shutil.which(name, path="/usr/sbin:/sbin:/usr/local/sbin")


@contextmanager
def alone(lock: Path) -> Iterator[None]:
    """Hold a lock file, which is made: of processes that would do the same work, one does it and the others wait."""
    with lock.open("w") as stream:
        fcntl.flock(stream, fcntl.LOCK_EX)
        yield


@contextmanager
def workers(count: int) -> Iterator[ThreadPoolExecutor]:
    """Threads that run programs. When the block fails, what is queued is dropped; on Ctrl-C running programs end too.

    Ctrl-C reaches the main thread only; so it is there that `workers` which shall heed it are made.
    """
    with ThreadPoolExecutor(count) as pool:
        try:
            yield pool
        except Exception:
            pool.shutdown(wait=False, cancel_futures=True)
            raise
        except BaseException:
            pool.shutdown(wait=False, cancel_futures=True)
            with _lock:
                _interrupted.set()
                running = tuple(_running)
            for process in running:
                _signal(process, signal.SIGTERM)
            try:
                pool.shutdown()
            finally:
                _interrupted.clear()
            raise


def _end(process: "subprocess.Popen[str]") -> None:
    _signal(process, signal.SIGTERM)
    with suppress(subprocess.TimeoutExpired):
        process.communicate(timeout=GRACE_S)
    _signal(process, signal.SIGKILL)
    process.wait()


def _signal(process: "subprocess.Popen[str]", number: signal.Signals) -> None:
    """Signal a program and all that it started, whether or not it has ended itself."""
    with suppress(ProcessLookupError):
        os.killpg(process.pid, number)
