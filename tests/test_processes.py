"""Programs that wattbit starts end when it is interrupted, with all that they started."""

import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

from wattbit.processes import execute, workers

SLEEPER = ["sh", "-c", 'sleep 60 & echo $! > "$0"; wait']  # as g++ and its cc1plus


def interrupt_when(path: Path) -> None:
    """Ctrl-C for this process once `path` is there."""

    def wait() -> None:
        while not path.is_file() or not path.read_text().strip():
            time.sleep(0.01)
        os.kill(os.getpid(), signal.SIGINT)

    threading.Thread(target=wait, daemon=True).start()


def ended(pid: int) -> bool:
    """Whether a killed process is gone within 5 s, or dead and not yet reaped by the one who has inherited it."""
    deadline = time.monotonic() + 5
    while time.monotonic() < deadline:
        try:
            state = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
        except OSError:
            return True
        if state == "Z":
            return True
        time.sleep(0.01)
    return False


def test_a_program_gives_its_status_and_what_it_wrote(tmp_path: Path) -> None:
    done = execute([sys.executable, "-c", "import os; print(input(), os.getcwd()); exit(3)"], tmp_path, text="hello\n")
    assert (done.returncode, done.stdout.strip()) == (3, f"hello {tmp_path.resolve()}")


def test_an_interrupted_call_ends_the_program_and_its_children(tmp_path: Path) -> None:
    interrupt_when(tmp_path / "pid")
    with pytest.raises(KeyboardInterrupt):
        execute([*SLEEPER, str(tmp_path / "pid")])
    assert ended(int((tmp_path / "pid").read_text()))


def test_interrupted_workers_end_their_programs_and_start_no_other(tmp_path: Path) -> None:
    begin = time.monotonic()
    interrupt_when(tmp_path / "0")
    with pytest.raises(KeyboardInterrupt), workers(1) as pool:
        list(pool.map(lambda i: execute([*SLEEPER, str(tmp_path / str(i))]), range(3)))
    assert time.monotonic() - begin < 30
    assert [path.name for path in tmp_path.iterdir()] == ["0"]
    assert ended(int((tmp_path / "0").read_text()))
    assert execute(["true"]).returncode == 0, "the next call works"


def test_failed_workers_drop_what_is_queued(tmp_path: Path) -> None:
    def fail(_: int) -> "subprocess.CompletedProcess[str]":
        time.sleep(0.1)
        raise ValueError

    with pytest.raises(ValueError), workers(1) as pool:
        futures = [pool.submit(fail, i) for i in range(50)]
        futures[0].result()
    assert sum(future.cancelled() for future in futures) > 40
