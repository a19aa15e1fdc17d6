"""The runtime's threads: every part of every run is done once, and no two threads race."""

import subprocess
from pathlib import Path

import pytest

from wattbit.tvm_schedules.toolchain import RUNNER

SOURCE = Path(__file__).with_suffix(".c")


def test_every_part_is_done_once_without_a_race(tmp_path: Path) -> None:
    """Under GCC's thread sanitizer, which fails the program that races."""
    program = str(tmp_path / "pool")
    flags = ["-std=gnu11", "-O1", "-fsanitize=thread", f"-I{RUNNER}", "-pthread"]
    built = subprocess.run(
        ["gcc", *flags, str(SOURCE), str(RUNNER / "pool.c"), "-o", program], capture_output=True, text=True, check=False
    )
    if "cannot find" in built.stderr:
        pytest.skip(f"gcc has no thread sanitizer: {built.stderr.splitlines()[0]}")
    assert built.returncode == 0, built.stderr
    done = subprocess.run([program], capture_output=True, text=True, check=False, timeout=100)
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")
