"""One way to any board: start it if it is virtual, and connect to it."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from wattbit.board.ssh import Connection
from wattbit.board.targets import load
from wattbit.board.virtual import VirtualBoard
from wattbit.progress import Progress, silent


@contextmanager
def board(name: str, cache: Path, home: Path, progress: Progress = silent) -> Iterator[Connection]:
    """A connection to the board that `name` (or the path of a TOML file) stands for.

    A virtual board runs as long as the context; `home` keeps what is put on it for the next time. Raises WattbitError
    for an unknown board, one that cannot be reached, or a missing tool.
    """
    described = load(name)
    if described.ssh is None:
        with VirtualBoard(cache, home=home, progress=progress) as virtual, virtual.connection() as connection:
            yield connection
    else:
        with described.ssh.connection() as connection:
            yield connection
