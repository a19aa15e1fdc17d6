"""The card: which one, and what to say when there is none or it is full."""

from collections.abc import Iterator
from contextlib import contextmanager

import torch

from wattbit.errors import WattbitError

CAPABILITY = (9, 0)  # launches that overlap, see on_card.h


def find_card(index: int = 0) -> torch.device:
    """CUDA device `index`. WattbitError if there is none, or one that the kernels are not for."""
    seen = torch.cuda.device_count() if torch.cuda.is_available() else 0
    if index >= seen:
        raise WattbitError(
            f"no CUDA device {index}: PyTorch {torch.__version__} sees {seen}; use the ARM and host kernels"
            " (`wattbit build`)"
        )
    if (found := torch.cuda.get_device_capability(index)) < CAPABILITY:
        has, needed = (".".join(map(str, version)) for version in (found, CAPABILITY))
        raise WattbitError(
            f"{torch.cuda.get_device_name(index)} is of compute capability {has}; use a card of {needed} or later"
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
