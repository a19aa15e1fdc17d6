"""What holds for every test.

The environment's part must be so before any test imports PyTorch, and Triton, which others than the GPU kernels' tests
do through PyTorch.
"""

import os
import shutil
import signal
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.temporary import left_in

# Models are tiny and tests run side by side: more threads, and those that spin while they wait, take others' time.
os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")

import torch

if not torch.cuda.is_available():
    os.environ["TRITON_INTERPRET"] = "1"  # kernels, and Triton's own library, run in its interpreter


@pytest.fixture(autouse=True)
def keep_sigterm() -> Iterator[None]:
    """The command line's handler of SIGTERM, which a test that calls it installs, ends with the test."""
    before = signal.getsignal(signal.SIGTERM)
    yield
    signal.signal(signal.SIGTERM, before)


LINGER_S = 10
"""How long what a process that was killed leaves to its watchers may stay in the temporary folder."""


@pytest.fixture(scope="session", autouse=True)
def temporary(tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, str]]:
    """A temporary folder of this run's own for tests and all that they start, in which nothing may be left.

    It is not below pytest's, for sockets' paths must be short. Yields the test during which each name was first seen.
    """
    tmp_path_factory.getbasetemp()  # stays where it is
    folder, before = Path(tempfile.mkdtemp(prefix="wattbit-tests-")), os.environ.get("TMPDIR")
    os.environ["TMPDIR"], tempfile.tempdir = str(folder), None
    seen: dict[str, str] = {}
    yield seen
    deadline = time.monotonic() + LINGER_S
    while (left := left_in(folder)) and time.monotonic() < deadline:
        time.sleep(0.1)
    shutil.rmtree(folder, ignore_errors=True)
    tempfile.tempdir = None
    os.environ.pop("TMPDIR") if before is None else os.environ.update(TMPDIR=before)
    assert not left, "left in the temporary folder: " + ", ".join(f"{name} (by {seen.get(name)})" for name in left)


@pytest.fixture(autouse=True)
def name_what_is_temporary(temporary: dict[str, str], request: pytest.FixtureRequest) -> Iterator[None]:
    yield
    for name in left_in(Path(tempfile.gettempdir())):
        temporary.setdefault(name, request.node.nodeid)
