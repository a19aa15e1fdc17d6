"""What holds for every test.

The first of it must be so before any test imports Triton, which others than the GPU kernels' tests do through PyTorch.
"""

import os
import signal
from collections.abc import Iterator

import pytest
import torch

if not torch.cuda.is_available():
    os.environ["TRITON_INTERPRET"] = "1"  # kernels, and Triton's own library, run in its interpreter


@pytest.fixture(autouse=True)
def keep_sigterm() -> Iterator[None]:
    """The command line's handler of SIGTERM, which a test that calls it installs, ends with the test."""
    before = signal.getsignal(signal.SIGTERM)
    yield
    signal.signal(signal.SIGTERM, before)
