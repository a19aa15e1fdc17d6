"""Steps of a build that appear whole, are not redone from the same inputs, and tell where their log is."""

import os
import shutil
import tempfile
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from wattbit.errors import WattbitError
from wattbit.files import digest_json, read_json, write_json, write_text
from wattbit.processes import execute

STAMP = "inputs.json"


def once(folder: Path, inputs: Any, make: Callable[[Path], None]) -> Path:
    """`folder`, filled by `make` in a temporary sibling unless it was filled from the same `inputs` (JSON) before."""
    key = digest_json(inputs)
    stamp = folder / STAMP
    if not (stamp.is_file() and read_json(stamp) == key):
        folder.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(prefix=f".{folder.name}-", dir=folder.parent) as name:
            work = Path(name) / folder.name
            work.mkdir()
            make(work)
            write_json(work / STAMP, key)
            shutil.rmtree(folder, ignore_errors=True)
            work.rename(folder)
    return folder


def run(
    what: str, command: Sequence[str], folder: Path, log: Path, environment: Mapping[str, str] | None = None
) -> str:
    """Run a program in `folder`, keep what it says in the file `log` and return it.

    Raises WattbitError with its last error and the log's place when it fails.
    """
    done = execute(command, folder, environment or os.environ)
    text = done.stdout + done.stderr
    write_text(log, text)
    if done.returncode:
        lines = [line.strip() for line in text.splitlines() if line.strip()]
        errors = [line for line in lines if "ERROR" in line or "error:" in line] or lines[-1:]
        last = errors[-1] if errors else "no message"
        raise WattbitError(f"{what} failed with exit status {done.returncode}: {last}; its log is {log}")
    return text
