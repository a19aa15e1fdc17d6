"""The manifest of a bundle: what the files are, and whether they are still that.

`python3 -m wattbit.board.agent.manifest FOLDER` checks a bundle where it lies, by hand.
"""

import hashlib
import json
import sys
from pathlib import Path, PurePosixPath
from typing import Any

from wattbit.errors import WattbitError
from wattbit.files import digest_json

NAME = "manifest.json"
FORMAT = 2  # since it names the clock that a design was built for


def file_record(path: Path) -> dict[str, Any]:
    data = path.read_bytes()
    return {"sha256": hashlib.sha256(data).hexdigest(), "bytes": len(data)}


def seal(content: dict[str, Any]) -> dict[str, Any]:
    """The manifest of a content: the content and its own digest."""
    return content | {"digest": digest_json(content)}


def read_manifest(folder: Path) -> dict[str, Any]:
    """The manifest of a bundle; WattbitError when it is missing, altered or of another format."""
    try:
        manifest: dict[str, Any] = json.loads((folder / NAME).read_text(encoding="utf-8"))
        content = {key: value for key, value in manifest.items() if key != "digest"}
        if manifest["digest"] != digest_json(content):
            raise WattbitError(f"{folder / NAME} was altered; deploy the bundle again")
        for name in manifest["files"]:
            path = PurePosixPath(name)
            if path.is_absolute() or ".." in path.parts:
                raise WattbitError(f"{folder / NAME} names {name}, which is outside of the bundle; do not use it")
    except FileNotFoundError:
        raise WattbitError(f"{folder} holds no {NAME}; deploy a bundle there") from None
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise WattbitError(f"{folder / NAME} is truncated or no manifest ({error}); deploy the bundle again") from None
    if manifest.get("format") != FORMAT:
        raise WattbitError(f"{folder} has bundle format {manifest.get('format')}, not {FORMAT}; build and deploy again")
    return manifest


def verify(folder: Path) -> dict[str, Any]:
    """The manifest of a bundle whose files all are what it says; WattbitError naming the first one that is not."""
    manifest = read_manifest(folder)
    for name, expected in manifest["files"].items():
        path = folder / name
        if not path.is_file():
            raise WattbitError(f"the bundle lacks {name}; deploy it again")
        found = file_record(path)
        if found != expected:
            what = "truncated" if found["bytes"] < expected["bytes"] else "altered"
            raise WattbitError(
                f"{name} in the bundle is {what} ({found['bytes']} of {expected['bytes']} bytes); deploy it again"
            )
    return manifest


def main(arguments: list[str]) -> int:
    try:
        print(verify(Path(arguments[0]))["digest"])
    except (WattbitError, OSError) as error:
        print(error, file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
