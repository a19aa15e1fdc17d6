"""Weighing a board: pairs of idle and active windows until the interval is narrow enough or the time is up.

The interval is looked at after 5, 7, 10, 14, ... pairs, not after each: who stops at the first narrow one of many looks
states too narrow an interval.
"""

import time
from collections.abc import Callable, Iterable
from contextlib import AbstractContextManager, nullcontext
from itertools import groupby
from typing import Any, Literal, Protocol

from wattbit.board.bundle import engine_of
from wattbit.board.client import AgentClient
from wattbit.board.energy import MIN_PAIRS, Energy, evaluate, require_movement
from wattbit.board.journal import Journal
from wattbit.board.meters import POLL_S, SILENT_S, ClockTie, Meter, open_meter
from wattbit.errors import ToolError, WattbitError
from wattbit.plan import Measurement, PowerSample, Window

LOOK_GROWTH = 1.4
TRIES = 2

Stop = Literal["interval", "time"]


class Settings(Protocol):
    """What weighing needs of `wattbit.board.bench.Settings`."""

    @property
    def window_s(self) -> float: ...

    @property
    def pairs(self) -> int: ...

    @property
    def width(self) -> float: ...

    @property
    def budget_s(self) -> float: ...

    @property
    def meter(self) -> str | None: ...


class Weighing:
    """The energy part of one benchmark, on top of what a journal has of it already.

    Entries are pairs; those of one `segment` were taken without an interruption and share their idle windows.
    reason: why there is no energy figure, None where there is one. stopped: what ended the measurement.
    """

    def __init__(self, journal: Journal, agent: AgentClient, manifest: dict[str, Any], settings: Settings) -> None:
        self._journal = journal
        self._agent = agent
        self._manifest = manifest
        self._settings = settings
        self._power = manifest["power"]
        self.energy: Energy | None = None
        self.stopped: Stop | None = None
        self.reason = self._why_not()

    def _why_not(self) -> str | None:
        source = self._power["source"]
        if self._settings.meter and self._manifest["toolchain"] == "virtual":
            raise WattbitError("a meter sees nothing of a virtual board; leave --meter out")
        if source == "external" and not self._settings.meter:
            return "the board has no sensor; name an external meter with --meter"
        return "its target asks for no energy figure (source none)" if source == "none" else None

    def run(self, progress: Callable[[int], None]) -> None:
        """Take pairs until it is enough; WattbitError when the sensor or the board is lost."""
        if self.reason:
            return
        meter = open_meter(self._settings.meter) if self._settings.meter else None
        opened: AbstractContextManager[Any] = meter if meter else nullcontext()
        with opened:
            engine = engine_of(self._manifest)
            times_s = self._settings.window_s, self._power["settle_s"]
            segment = _Segment(self._journal, self._agent, engine, *times_s, meter)
            look = fewest = max(MIN_PAIRS, self._settings.pairs)
            while True:
                pairs = self._journal.all("pair")
                progress(len(pairs))
                spent_s = sum(pair["board_s"] for pair in pairs)
                over = spent_s + 2 * self._settings.window_s > self._settings.budget_s
                if len(pairs) >= look or (over and len(pairs) >= fewest):
                    self.energy = evaluate(*self.measurements())
                    narrow = self.energy.net_half_j <= self._settings.width * abs(self.energy.net_j)
                    if narrow or over:
                        self.stopped = "interval" if narrow else "time"
                        return
                    look = max(len(pairs) + 1, round(look * LOOK_GROWTH))
                segment.take()

    @property
    def pairs(self) -> list[dict[str, Any]]:
        return self._journal.all("pair")

    def measurements(self) -> list[Measurement]:
        """All that was weighed, a measurement for each segment."""
        found = []
        for _, group in groupby(self._journal.all("pair"), key=lambda entry: entry["segment"]):
            entries = list(group)
            per_token = self._manifest["model"]["layers"] * self._manifest["model"]["top_k"]
            cycles = [entry["cycles"] for entry in entries]
            found.append(
                Measurement(
                    target=self._manifest["target"]["name"],
                    allocation_digest=self._manifest["allocation_digest"],
                    rail=entries[0]["rail"],
                    provenance=entries[0]["provenance"],
                    samples=_in_order(PowerSample(*sample) for entry in entries for sample in entry["samples"]),
                    windows=tuple(Window(*window) for entry in entries for window in entry["windows"]),
                    tokens=sum(entry["packets"] for entry in entries) // per_token,
                    cycles=None if None in cycles else sum(cycles),
                )
            )
        return found


class _Segment:
    """Pairs taken one after the other by one agent."""

    def __init__(
        self, journal: Journal, agent: AgentClient, engine: str, window_s: float, settle_s: float, meter: Meter | None
    ) -> None:
        self._journal = journal
        self._agent = agent
        self._engine = engine
        self._window_s = window_s
        self._settle_s = settle_s
        self._meter = meter
        self._number = 0
        self._begun = False

    def take(self) -> None:
        """One more pair, into the journal; after a failure that the agent survived one more try, with new idle time."""
        for attempt in range(TRIES):
            try:
                self._pair()
                return
            except ToolError:
                raise
            except WattbitError:
                self._begun = False
                if attempt + 1 == TRIES:
                    raise

    def _pair(self) -> None:
        windows: list[Window] = []
        conditions: list[dict[str, Any]] = []

        def window(kind: Literal["idle", "active"], **fields: str) -> dict[str, Any]:
            reply = self._agent.request(kind, seconds=self._window_s, **fields)
            windows.append(Window(kind, reply["start_s"], reply["end_s"]))
            conditions.append(reply["conditions"])
            return reply

        settle_s = 0.0 if self._begun else self._settle_s
        if not self._begun:
            self._number = len({entry["segment"] for entry in self._journal.all("pair")})
            self._agent.request("idle", seconds=settle_s)
            self._samples()  # what was before is nobody's
            window("idle")
        active = window("active", engine=self._engine)
        window("idle")
        samples, rail, provenance = self._samples(windows[-1].end_s)
        _require_movement(windows, samples, rail)
        self._journal.add(
            "pair",
            segment=self._number,
            board_s=settle_s + sum(window.end_s - window.start_s for window in windows),
            windows=[[window.kind, window.start_s, window.end_s] for window in windows],
            samples=samples,
            rail=rail,
            provenance=provenance,
            packets=active["packets"] * active["launches"],
            launches=active["launches"],
            executed=active["executed"],
            cycles=active["cycles"],
            conditions=conditions,
        )
        self._begun = True

    def _samples(self, until_s: float | None = None) -> tuple[list[tuple[float, float]], str, str]:
        """Readings since the last call, on the board's clock, with their rail and provenance.

        A meter is waited for until it has come to `until_s`, on the board's clock; WattbitError when it does not.
        """
        if self._meter is None:
            reply = self._agent.request("power")
            return reply["samples"], reply["rail"], reply["provenance"]
        tie = ClockTie.of(lambda: float(self._agent.request("clock")["time_s"]))
        readings = tie.on_board(self._meter.samples())
        deadline_s = time.monotonic() + SILENT_S
        while until_s is not None and not (readings and readings[-1].time_s >= until_s):
            if time.monotonic() > deadline_s:
                raise WattbitError(
                    f"the meter {self._meter.rail} has no reading of the window's end after {SILENT_S:g} s; "
                    "let its software write each reading at once"
                )
            time.sleep(POLL_S)
            readings += tie.on_board(self._meter.samples())
        return [(sample.time_s, sample.power_w) for sample in readings], self._meter.rail, "measured"


def _in_order(samples: Iterable[PowerSample]) -> tuple[PowerSample, ...]:
    """The samples less those that are not later than all before: each pair ties the clocks anew, so that the readings
    of two may overlap by the ties' error."""
    kept: list[PowerSample] = []
    for sample in samples:
        if not kept or sample.time_s > kept[-1].time_s:
            kept.append(sample)
    return tuple(kept)


def _require_movement(windows: list[Window], samples: list[tuple[float, float]], rail: str) -> None:
    """Refuse a pair in which the sensor stood still, before it is kept beside good ones."""
    try:
        require_movement(windows, samples)
    except WattbitError as error:
        raise WattbitError(f"the power sensor {rail} stands still or is lost: {error}") from None
