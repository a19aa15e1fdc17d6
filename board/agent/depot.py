"""The board's end of deployment: bundles made of content-addressed files, one of them current.

It runs from memory, sent over SSH by `wattbit.board.program`; nothing of wattbit needs to be on the board before. Below
the home folder:

| path | content |
|---|---|
| `wattbit/DIGEST/` | a bundle, whole; its files are hard links to objects |
| `wattbit/current` | symbolic link to the bundle in use |
| `wattbit/.objects/SHA256` | files by their content |
| `wattbit/.history` | digests of the versions kept |
| `wattbit/.lock` | held while something changes, with its holder's name |

The lock is the kernel's: it falls when this process ends, however it ends. Objects that arrived whole before a
connection was cut are kept, so that the next deployment sends the rest.
"""

import errno
import fcntl
import hashlib
import json
import os
import re
import shutil
import sys
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, BinaryIO

from wattbit.board.agent.manifest import NAME, verify
from wattbit.board.agent.part import board_part, check_part
from wattbit.errors import WattbitError
from wattbit.files import sha256_file, write_json, write_text

ROOT = Path("wattbit")
KEPT = 2
BLOCK_BYTES = 1 << 20
DIGEST = re.compile(r"[0-9a-f]{16}\Z")

Reply = dict[str, Any]


class AlteredError(WattbitError):
    """A file did not arrive as it was sent."""


class Depot:
    """The bundles below one folder."""

    def __init__(self, root: Path = ROOT) -> None:
        self.root = root
        self.objects = root / ".objects"

    @contextmanager
    def lock(self, holder: str) -> Iterator[None]:
        """Hold the board for one change; WattbitError naming who does already."""
        self.objects.mkdir(parents=True, exist_ok=True)
        with (self.root / ".lock").open("a+") as stream:
            try:
                fcntl.flock(stream, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except OSError:
                stream.seek(0)
                raise WattbitError(
                    f"{stream.read() or 'somebody'} is changing what is deployed here; wait until that is done"
                ) from None
            stream.truncate(0)
            stream.write(holder)
            stream.flush()
            yield

    def history(self) -> list[str]:
        """The versions kept, the current one last: what the link says, also where a switch was cut short after it."""
        path, link = self.root / ".history", self.root / "current"
        names = path.read_text(encoding="utf-8").split() if path.is_file() else []
        if link.is_symlink():
            current = str(link.readlink())
            names = [*(name for name in names if name != current), current]
        return [name for name in names if (self.root / name).is_dir()]

    def is_whole(self, digest: str) -> bool:
        try:
            return bool(verify(self.root / digest)["digest"] == digest)
        except (WattbitError, OSError):
            return False

    def missing(self, files: Mapping[str, Mapping[str, Any]]) -> list[str]:
        """Names of files whose content is not here, one name a content."""
        wanted = {str(record["sha256"]): name for name, record in files.items()}
        return [name for sha256, name in wanted.items() if not self._has(sha256)]

    def _has(self, sha256: str) -> bool:
        path = self.objects / sha256
        return path.is_file() and sha256_file(path) == sha256

    def receive(self, name: str, record: Mapping[str, Any], stream: BinaryIO) -> None:
        """Take one file's content from a stream."""
        partial = self.objects / ".partial"
        total, left = hashlib.sha256(), int(record["bytes"])
        try:
            with partial.open("wb") as out:
                while left:
                    block = stream.read(min(BLOCK_BYTES, left))
                    if not block:
                        raise WattbitError(f"the connection ended within {name}; deploy again")
                    total.update(block)
                    out.write(block)
                    left -= len(block)
            if total.hexdigest() != record["sha256"]:
                raise AlteredError(f"{name} arrived altered; deploy again")
            partial.replace(self.objects / str(record["sha256"]))
        finally:
            partial.unlink(missing_ok=True)

    def install(self, manifest: Mapping[str, Any]) -> str:
        """Make the bundle of objects that are all here, verify it, switch to it; its folder."""
        digest = str(manifest["digest"])
        incoming = self.root / f".incoming-{digest}"
        place = self.root / digest
        shutil.rmtree(incoming, ignore_errors=True)
        try:
            for name, record in manifest["files"].items():
                path = incoming / name
                path.parent.mkdir(parents=True, exist_ok=True)
                _link(self.objects / str(record["sha256"]), path)
            write_json(incoming / NAME, manifest)
            verify(incoming)
            os.sync()
            shutil.rmtree(place, ignore_errors=True)
            incoming.rename(place)
        finally:
            shutil.rmtree(incoming, ignore_errors=True)
        self.switch([*(kept for kept in self.history() if kept != digest), digest])
        return str(place)

    def switch(self, history: list[str]) -> None:
        """Make the last of `history` current, in one step, and remove what is older than KEPT versions."""
        history = history[-KEPT:]
        link = self.root / ".current"
        link.unlink(missing_ok=True)
        link.symlink_to(history[-1])
        link.replace(self.root / "current")
        write_text(self.root / ".history", "".join(f"{digest}\n" for digest in history))
        for path in self.root.iterdir():
            if DIGEST.match(path.name) and path.name not in history:
                shutil.rmtree(path)
        self.sweep()

    def sweep(self) -> None:
        """Remove objects that no version is made of."""
        for path in self.objects.iterdir():
            if path.stat().st_nlink == 1:
                path.unlink()


def _link(source: Path, target: Path) -> None:
    try:
        os.link(source, target)
    except OSError as error:
        if error.errno not in (errno.EPERM, errno.EOPNOTSUPP, errno.EMLINK, errno.EXDEV):
            raise
        shutil.copyfile(source, target)  # a file system without hard links


def deploy(depot: Depot, request: Reply, stream: BinaryIO, say: "Say") -> Reply:
    """Take a bundle: say what is missing of it, receive that, install it."""
    manifest = request["manifest"]
    digest = str(manifest["digest"])
    if part := board_part():
        check_part(manifest, part)
    with depot.lock(request["holder"]):
        if depot.is_whole(digest):
            if depot.history()[-1:] != [digest]:
                depot.switch([*(kept for kept in depot.history() if kept != digest), digest])
            say({"missing": []})
            return {"place": str(depot.root / digest), "installed": False}
        names = depot.missing(manifest["files"])
        say({"missing": names})
        try:
            for name in names:
                depot.receive(name, manifest["files"][name], stream)
            return {"place": depot.install(manifest), "installed": True}
        except OSError:
            depot.sweep()  # a full disk shall not stay full of what no version is made of
            raise


def rollback(depot: Depot, request: Reply, stream: BinaryIO, say: "Say") -> Reply:
    """Go back to the version before the current one, which stays, so that a second rollback undoes the first."""
    with depot.lock(request["holder"]):
        history = depot.history()
        if len(history) < KEPT:
            raise WattbitError("there is no earlier version on the board; deploy one")
        before, current = history[-2:]
        verify(depot.root / before)
        depot.switch([current, before])
        return {"place": str(depot.root / before), "from": current, "to": before}


def versions(depot: Depot, request: Reply, stream: BinaryIO, say: "Say") -> Reply:
    """What is deployed, the current version last."""
    return {"versions": depot.history(), "part": board_part()}


class Say:
    """Replies, one JSON object a line."""

    def __init__(self, stream: BinaryIO) -> None:
        self._stream = stream

    def __call__(self, reply: Reply) -> None:
        self._stream.write(json.dumps(reply).encode() + b"\n")
        self._stream.flush()


COMMANDS = {"deploy": deploy, "rollback": rollback, "versions": versions}


def main(arguments: Iterable[str]) -> int:
    """Answer one request; a failure is a reply with `error`, and `kind` where the host can do something about it."""
    say, stream = Say(sys.stdout.buffer), sys.stdin.buffer
    request = json.loads(stream.readline())
    try:
        say(COMMANDS[request["do"]](Depot(), request, stream, say))
    except AlteredError as error:
        say({"error": str(error), "kind": "altered"})
    except WattbitError as error:
        say({"error": str(error), "kind": "refused"})
    except OSError as error:
        kind = "full" if error.errno in (errno.ENOSPC, errno.EDQUOT) else "failed"
        say({"error": str(error), "kind": kind})
    return 0
