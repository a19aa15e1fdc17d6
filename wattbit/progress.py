"""How long work says how far it is, without knowing who listens."""

from typing import Protocol


class Progress(Protocol):
    def __call__(self, what: str, done: int, total: int) -> None:
        """Say that `done` of `total` steps of `what` are finished."""
        ...


def silent(what: str, done: int, total: int) -> None:
    """Say nothing: the default of library calls."""
