"""Putting a bundle on a board: only files that it lacks are sent, and it switches to the new version in one step.

What the board does about it is in `wattbit.board.agent.depot`.
"""

import getpass
import socket
from pathlib import Path
from typing import Any

from wattbit.board.agent.manifest import verify
from wattbit.board.bundle import bundle_bytes
from wattbit.board.program import Host, Program, running
from wattbit.errors import WattbitError
from wattbit.progress import Progress, silent

DEPOT = "wattbit.board.agent.depot"
BLOCK_BYTES = 1 << 16
TRIES = 2  # a file that arrives altered is sent once more


class AlteredError(WattbitError):
    """A file did not arrive as it was sent."""


def holder() -> str:
    """Who is deploying, for the lock on the board."""
    return f"{getpass.getuser()}@{socket.gethostname()}"


def deploy(bundle: Path, connection: Host, progress: Progress = silent) -> str:
    """Put a bundle on a board, make it current there and return its folder; what is there already is not sent.

    Raises WattbitError when the bundle is broken here or arrives broken, is for another part, the board's disk is full,
    or somebody else is deploying; the board then has what it had before.
    """
    manifest = verify(bundle)
    for attempt in range(TRIES):
        try:
            with running(connection, DEPOT) as program:
                return _deploy(program, bundle, manifest, progress)
        except AlteredError:
            if attempt + 1 == TRIES:
                raise
    raise AssertionError("the last attempt has returned or raised")


def _deploy(program: Program, bundle: Path, manifest: dict[str, Any], progress: Progress) -> str:
    program.send({"do": "deploy", "holder": holder(), "manifest": manifest})
    names = _reply(program, manifest)["missing"]
    sizes = [int(manifest["files"][name]["bytes"]) for name in names]
    sent = 0
    for name in names:
        with (bundle / name).open("rb") as stream:
            while block := stream.read(BLOCK_BYTES):
                progress(f"upload to {program.host.host}", sent, sum(sizes))
                program.write(block)
                sent += len(block)
    progress(f"upload to {program.host.host}" if names else "deploy: already there", 1, 1)
    return str(_reply(program, manifest)["place"])


def rollback(connection: Host) -> dict[str, str]:
    """Switch to the version before the current one: its `place`, and the digests `from` and `to`."""
    with running(connection, DEPOT) as program:
        program.send({"do": "rollback", "holder": holder()})
        return _reply(program, None)


def versions(connection: Host) -> list[str]:
    """Digests of the versions on the board, the current one last."""
    with running(connection, DEPOT) as program:
        program.send({"do": "versions"})
        return list(_reply(program, None)["versions"])


def _reply(program: Program, manifest: dict[str, Any] | None) -> dict[str, Any]:
    reply = program.read()
    if "error" not in reply:
        return reply
    host = program.host.host
    if reply["kind"] == "full" and manifest is not None:
        needed_mb = bundle_bytes(manifest) / 1e6
        raise WattbitError(
            f"the disk of {host} is full: the bundle takes {needed_mb:.1f} MB; free some space there and deploy again"
        )
    kind = AlteredError if reply["kind"] == "altered" else WattbitError
    raise kind(f"{host}: {reply['error']}")
