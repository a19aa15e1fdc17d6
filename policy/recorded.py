"""A meter that remembers: every price is on disk before it is used, so that a search that stops resumes with it.

What a board took minutes to measure must survive a lost connection. A file holds one JSON object a line (allocation
and workload digests, cost); a line that was cut off by an interruption is measured again.
"""

import json
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from wattbit.errors import InfeasibleError, WattbitError
from wattbit.files import digest_json
from wattbit.lines import read_lines
from wattbit.plan import Allocation, Cost, Meter, Workload
from wattbit.policy.pricing import Price, only, prices, width

RETRIES = 2
PAUSE_S = 5.0


class RecordedMeter:
    """Prices through another meter, once an allocation and workload; a failure is tried RETRIES times more.

    name: what the meter is, down to its settings; the file refuses prices of another. Raises WattbitError, after the
    retries, with the meter's last words; what was priced before is kept and the same search goes on from there.
    """

    def __init__(self, meter: Meter, name: str, path: Path, sleep: Callable[[float], None] = time.sleep) -> None:
        self.meter = meter
        self.path = path
        self._name = name
        self._sleep = sleep
        self._known: dict[str, Cost | str] = {}  # a text is why it is infeasible
        if path.exists():
            self._read(name)

    @property
    def width(self) -> int:
        return width(self.meter)

    def cost(self, allocation: Allocation, workload: Workload) -> Cost:
        return only(self.costs([allocation], workload))

    def costs(self, allocations: Sequence[Allocation], workload: Workload) -> list[Price]:
        """Prices, the new ones side by side where the meter can; each round of its width is kept before the next."""
        load = [[[str(e), share] for e, share in workload.frequency], _sizes(workload)]
        keys = [digest_json([allocation.digest, *load]) for allocation in allocations]
        new = {key: one for key, one in zip(keys, allocations, strict=True) if key not in self._known}
        waiting = list(new.items())
        for some in (waiting[at : at + self.width] for at in range(0, len(waiting), self.width)):
            for (key, _), found in zip(some, self._price([one for _, one in some], workload), strict=True):
                self._known[key] = found if isinstance(found, Cost) else str(found)
                priced = {"cost": found.to_json()} if isinstance(found, Cost) else {"not": str(found)}
                self._append({"key": key} | priced)
        return [known if isinstance(known := self._known[key], Cost) else InfeasibleError(known) for key in keys]

    def _price(self, allocations: Sequence[Allocation], workload: Workload) -> list[Price]:
        for attempt in range(RETRIES + 1):
            try:
                return prices(self.meter, allocations, workload)
            except WattbitError as error:
                if attempt == RETRIES:
                    raise WattbitError(
                        f"the meter failed {RETRIES + 1} times ({error}); {len(self._known)} prices are kept in "
                        f"{self.path}, the same command goes on from there"
                    ) from error
                self._sleep(PAUSE_S * 2**attempt)
        raise AssertionError("the last attempt returns or raises")

    def _read(self, name: str) -> None:
        for line in read_lines(self.path):
            try:
                record = json.loads(line)
                of = record.get("meter", name)
                if "key" in record:
                    self._known[record["key"]] = Cost.from_json(record["cost"]) if "cost" in record else record["not"]
            except (ValueError, KeyError, TypeError, AttributeError):
                raise WattbitError(f"{self.path} has a line that is no price; delete it to measure again") from None
            if of != name:
                raise WattbitError(f"{self.path} holds prices of {of}, not of {name}; delete it")

    def _append(self, record: dict[str, Any]) -> None:
        self.path.parent.mkdir(parents=True, exist_ok=True)
        with self.path.open("a", encoding="utf-8") as file:
            if file.tell() == 0:
                file.write(json.dumps({"meter": self._name}) + "\n")
            file.write(json.dumps(record) + "\n")


def _sizes(workload: Workload) -> dict[str, Any]:
    return {name: value for name, value in asdict(workload).items() if name != "frequency"}
