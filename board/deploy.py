"""Putting a bundle on a board: it lies there whole, under its digest, or not at all.

Bundles lie in `wattbit/DIGEST` in the home folder on the board. An upload goes to `wattbit/.incoming-DIGEST`, is
verified there by the board itself, and is renamed. What an interrupted upload leaves is removed, at the latest by the
next one.
"""

from pathlib import Path, PurePosixPath
from typing import Protocol

from wattbit.board.agent.manifest import verify
from wattbit.board.bundle import bundle_bytes
from wattbit.errors import ToolError, WattbitError
from wattbit.progress import Progress, silent

ROOT = PurePosixPath("wattbit")
NO_SPACE = "no space left on device"


class Board(Protocol):
    """What deployment needs of `wattbit.board.ssh.Connection`."""

    host: str

    def run(self, args: list[str]) -> bytes: ...

    def put(self, local: Path, remote: str, progress: Progress = silent) -> None: ...


def remote_folder(digest: str) -> str:
    """Where the bundle of this digest lies on a board, from its home folder."""
    return str(ROOT / digest)


def deploy(bundle: Path, connection: Board, progress: Progress = silent) -> str:
    """Put a bundle on a board and return its folder there; nothing is sent when it is there already.

    Raises WattbitError when the bundle is broken here or arrives broken, or the board's disk is full.
    """
    manifest = verify(bundle)
    place = remote_folder(manifest["digest"])
    if _is_whole(connection, place):
        progress("deploy: already there", 1, 1)
        return place
    incoming = str(ROOT / f".incoming-{manifest['digest']}")
    connection.run(["rm", "-rf", incoming, place])
    try:
        connection.put(bundle, incoming, progress)
        connection.run(_verification(incoming))
        connection.run(["mv", "-T", incoming, place])
    except BaseException as error:
        _remove(connection, incoming)
        if isinstance(error, ToolError) and NO_SPACE in error.stderr.lower():
            needed_mb = bundle_bytes(manifest) / 1e6
            raise WattbitError(
                f"the disk of {connection.host} is full: the bundle takes {needed_mb:.1f} MB; "
                f"remove bundles in ~/{ROOT} there"
            ) from None
        raise
    return place


def _verification(folder: str) -> list[str]:
    return ["env", f"PYTHONPATH={folder}/code", "python3", "-B", "-m", "wattbit.board.agent.manifest", folder]


def _is_whole(connection: Board, place: str) -> bool:
    try:
        connection.run(["test", "-f", f"{place}/manifest.json"])
        connection.run(_verification(place))
    except ToolError:
        return False
    return True


def _remove(connection: Board, folder: str) -> None:
    """Remove a folder on the board; a board that is lost keeps it until the next deployment."""
    try:
        connection.run(["rm", "-rf", folder])
    except WattbitError:
        return
