"""What a benchmark has finished so far, a line each: nothing measured is lost, and the next run goes on there."""

import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from wattbit.errors import WattbitError
from wattbit.lines import read_lines


class Journal:
    """A file of JSON lines. The first holds the key that the entries belong to; another key starts it anew."""

    def __init__(self, path: Path, key: Mapping[str, Any]) -> None:
        self._path = path
        self.entries: list[dict[str, Any]] = []
        records = _read(path)
        if records and records[0] == {"key": dict(key)}:
            self.entries = records[1:]
            return
        path.parent.mkdir(parents=True, exist_ok=True)
        path.unlink(missing_ok=True)
        self._write({"key": dict(key)})

    def find(self, kind: str) -> dict[str, Any] | None:
        """The entry of a kind that comes once."""
        return next((entry for entry in self.entries if entry["kind"] == kind), None)

    def all(self, kind: str) -> list[dict[str, Any]]:
        return [entry for entry in self.entries if entry["kind"] == kind]

    def add(self, kind: str, **fields: Any) -> dict[str, Any]:
        """Keep an entry: it is on the disk when this returns."""
        entry = {"kind": kind, **fields}
        self._write(entry)
        self.entries.append(entry)
        return entry

    def remove(self) -> None:
        self._path.unlink(missing_ok=True)

    def _write(self, record: dict[str, Any]) -> None:
        """Append a whole line; what a full disk lets through of it is taken away again."""
        line = json.dumps(record, allow_nan=False).encode() + b"\n"
        with self._path.open("ab") as stream:
            start = stream.tell()
            try:
                stream.write(line)
                stream.flush()
                os.fsync(stream.fileno())
            except OSError as error:
                os.truncate(self._path, start)
                raise WattbitError(f"{self._path} cannot be written: {error}; what is in it is kept") from None


def _read(path: Path) -> list[dict[str, Any]]:
    """The whole lines of a journal; one that a killed program left unfinished is cut off."""
    if not path.is_file():
        return []
    try:
        return [json.loads(line) for line in read_lines(path)]
    except ValueError as error:
        raise WattbitError(f"{path} is damaged ({error}); delete it to measure anew") from None
