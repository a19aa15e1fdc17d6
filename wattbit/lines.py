"""Files that grow by whole lines, of which a program that is killed leaves a last one unfinished."""

import os
from pathlib import Path


def read_lines(path: Path) -> list[bytes]:
    """The whole lines of a file; an unfinished last one is cut off the file, so that the next begins a line."""
    data = path.read_bytes()
    whole = data[: data.rfind(b"\n") + 1]
    if len(whole) < len(data):
        os.truncate(path, len(whole))
    return whole.splitlines()
