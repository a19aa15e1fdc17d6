"""The card: which one, and what to say when there is none or it is full."""

from collections.abc import Iterator
from contextlib import contextmanager

import torch

from wattbit.errors import WattbitError


def find_card(index: int = 0) -> torch.device:
    """CUDA device `index`. WattbitError if there is none."""
    seen = torch.cuda.device_count() if torch.cuda.is_available() else 0
    if index >= seen:
        raise WattbitError(
            f"no CUDA device {index}: PyTorch {torch.__version__} sees {seen}; use the ARM and host kernels"
            " (`wattbit build`), or set TRITON_INTERPRET=1 to run these kernels on the CPU, for tests"
        )
    return torch.device("cuda", index)


@contextmanager
def room_for(what: str, size: int) -> Iterator[None]:
    """Turn a failed allocation of about `size` bytes on the card into a WattbitError that names it."""
    try:
        yield
    except torch.OutOfMemoryError:
        free = torch.cuda.mem_get_info()[0] if torch.cuda.is_available() else 0
        raise WattbitError(
            f"{what} need {size / 1e9:.2f} GB but the card has {free / 1e9:.2f} GB free; use fewer experts or widths"
        ) from None
