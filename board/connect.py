"""One way to any board: start it if it is virtual, and connect to it."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from wattbit.board.ssh import Connection
from wattbit.board.system import SystemBoard
from wattbit.board.targets import Ssh, load
from wattbit.board.virtual import LAUNCH, VirtualBoard
from wattbit.progress import Progress, silent


@contextmanager
def board(
    name: str, cache: Path, home: Path, progress: Progress = silent, host: str | None = None
) -> Iterator[Connection]:
    """A connection to the board that `name` (or the path of a TOML file) stands for, at `host` if that is given.

    A virtual board runs as long as the context; `home` keeps what is put on a light one for the next time. Raises
    WattbitError for an unknown board, one that cannot be reached, or a missing tool.
    """
    described = load(name)
    if described.ssh is not None or host is not None:
        ssh = described.ssh or Ssh(host or "", launch=LAUNCH)
        with ssh.connection(host) as connection:
            yield connection
    elif described.tier == "system":
        with SystemBoard(cache, progress) as system, system.connection() as connection:
            yield connection
    else:
        with VirtualBoard(cache, home=home, progress=progress) as virtual, virtual.connection() as connection:
            yield connection
