"""What a virtual board's accelerator is doing, where the model of its rail reads it.

The emulated cores take far longer over a simulated launch than an accelerator would: so an active window stands for
launches back to back, and says so here for as long as it lasts.
"""

import json
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from wattbit.files import write_text

ACTIVITY = Path("/run/wattbit-activity.json")


@dataclass(frozen=True)
class Activity:
    """Launches back to back: macs by (weight, activation) bits in one, bits that it moves, and how long it takes."""

    macs: Mapping[tuple[int, int], int]
    moved_bits: int
    launch_s: float

    def to_json(self) -> dict[str, Any]:
        macs = [[weight, act, count] for (weight, act), count in self.macs.items()]
        return {"macs": macs, "moved_bits": self.moved_bits, "launch_s": self.launch_s}

    @classmethod
    def from_json(cls, record: Mapping[str, Any]) -> "Activity":
        macs = {(weight, act): count for weight, act, count in record["macs"]}
        return cls(macs, record["moved_bits"], record["launch_s"])


@contextmanager
def announced(activity: Activity, path: Path = ACTIVITY) -> Iterator[None]:
    """The rail's model sees the activity while the block runs."""
    write_text(path, json.dumps(activity.to_json()))
    try:
        yield
    finally:
        path.unlink(missing_ok=True)
