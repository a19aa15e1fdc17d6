"""Idle and active windows and the power samples in them, on the board's clock.

On a board that clock is the monotonic one, a thread samples, and an active window launches until its time is up.

Emulated cores take far longer over a simulated launch than the accelerator would, so on a virtual board an active
window stands for as many launches as fill it, each of cycles / clock seconds. The accelerator is deterministic: where
one launch of the same work was simulated already, its cycles are taken. Two timelines do so. `PacedTimeline` tells
what is going on to the model behind a sensor and reads that sensor as on a board. `SimulatedTimeline` needs no sensor:
its time is *synthesised* too, a window advances a virtual clock, and samples follow the power model on that clock with
noise of a fixed seed. Everything from either is flagged `simulated`.
"""

import random
import threading
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Protocol

from wattbit.board.agent.activity import Activity, announced
from wattbit.board.agent.power import PowerModel, PowerSource
from wattbit.errors import WattbitError

SAMPLE_INTERVAL_S = 0.02
FAILURES = 20  # readings that fail in a row before the sensor counts as lost
LATE_S = 2.0  # that a reading behind a window's end is waited for
NOISE_SEED = 1


@dataclass(frozen=True)
class Work:
    """What an active window repeats, and what one launch of it multiplies, by (weight, activation) bits, and moves.

    launch returns its cycles, None without an accelerator. cycles: those of an earlier launch, if there was one.
    """

    launch: Callable[[], int | None]
    macs: Mapping[tuple[int, int], int]
    moved_bits: int = 0
    cycles: int | None = None


@dataclass(frozen=True)
class Window:
    """One window from start_s to end_s on the board's clock.

    launches that were done or, on a virtual board, stood for; `executed` ones really ran. cycles of all launches.
    """

    start_s: float
    end_s: float
    launches: int = 0
    executed: int = 0
    cycles: int | None = None


class Timeline(Protocol):
    """The board's clock with its rail; `rail` is None where the board has no sensor."""

    rail: str | None
    provenance: str

    def idle(self, seconds: float) -> Window: ...

    def active(self, work: Work, seconds: float) -> Window: ...

    def samples(self) -> list[tuple[float, float]]:
        """(time_s, power_w) since the last call."""
        ...

    def close(self) -> None: ...


class MeasuredTimeline:
    """A physical sensor, sampled by a thread; without one, windows alone, for a meter beside the board.

    A reading that fails is a sample less; FAILURES in a row are the end of the measurement, any other error is at once.
    """

    provenance = "measured"

    def __init__(self, source: PowerSource | None) -> None:
        self.rail = source.rail if source else None
        self._source = source
        self._samples: list[tuple[float, float]] = []
        self._latest_s = self._end_s = float("-inf")  # of the samples, of the windows
        self._failure: Exception | None = None
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._sample, daemon=True)
        self._thread.start()

    def _sample(self) -> None:
        failures = 0
        while self._source and not self._ended.wait(SAMPLE_INTERVAL_S):
            try:
                sample = self._source.read()
                self._samples.append(sample)
                self._latest_s = sample[0]
                failures = 0
            except WattbitError as error:
                failures += 1
                if failures == FAILURES:
                    self._failure = error
                    return
            except Exception as error:  # noqa: BLE001  (raised again where the samples are asked for)
                self._failure = error
                return

    def idle(self, seconds: float) -> Window:
        start_s = time.monotonic()
        time.sleep(seconds)
        self._end_s = time.monotonic()
        return Window(start_s, self._end_s)

    def active(self, work: Work, seconds: float) -> Window:
        start_s = time.monotonic()
        launches, cycles = 0, 0
        while time.monotonic() - start_s < seconds:
            cycles += work.launch() or 0
            launches += 1
        self._end_s = time.monotonic()
        return Window(start_s, self._end_s, launches, launches, cycles or None)

    def samples(self) -> list[tuple[float, float]]:
        """They reach behind the last window's end, for which a busy board's thread may be late."""
        deadline_s = time.monotonic() + LATE_S
        while self._latest_s < self._end_s and self._thread.is_alive() and time.monotonic() < deadline_s:
            time.sleep(SAMPLE_INTERVAL_S)
        if self._failure:
            raise self._failure
        taken = self._samples[:]
        del self._samples[: len(taken)]  # the thread's list stays the same: what it appends meanwhile is kept
        return taken

    def close(self) -> None:
        self._ended.set()
        self._thread.join()


class PacedTimeline(MeasuredTimeline):
    """A virtual board's sensor, whose model is told what the accelerator would be doing."""

    provenance = "simulated"

    def __init__(self, source: PowerSource, clock_mhz: float) -> None:
        super().__init__(source)
        self._clock_hz = clock_mhz * 1e6

    def active(self, work: Work, seconds: float) -> Window:
        cycles, executed = _cycles(work)
        launch_s = cycles / self._clock_hz
        with announced(Activity(work.macs, work.moved_bits, launch_s)):
            window = self.idle(seconds)
        launches = max(1, round((window.end_s - window.start_s) / launch_s))
        return Window(window.start_s, window.end_s, launches, executed, launches * cycles)


class SimulatedTimeline:
    """A virtual clock and a modelled rail."""

    provenance = "simulated"

    def __init__(self, model: PowerModel, clock_mhz: float, rail: str) -> None:
        self.rail: str | None = rail
        self._model = model
        self._clock_hz = clock_mhz * 1e6
        self._now_s = 0.0
        self._taken = 0
        self._random = random.Random(NOISE_SEED)
        self._samples: list[tuple[float, float]] = []

    def _advance(self, seconds: float, power_w: float) -> None:
        self._now_s += seconds
        while (time_s := (self._taken + 0.5) / self._model.rate_hz) < self._now_s:
            reading_w = power_w + self._random.gauss(0, self._model.noise_w)
            self._samples.append((time_s, round(reading_w / self._model.step_w) * self._model.step_w))
            self._taken += 1

    def idle(self, seconds: float) -> Window:
        start_s = self._now_s
        self._advance(seconds, self._model.idle_w)
        return Window(start_s, self._now_s)

    def active(self, work: Work, seconds: float) -> Window:
        cycles, executed = _cycles(work)
        launch_s = cycles / self._clock_hz
        launches = max(1, round(seconds / launch_s))
        start_s = self._now_s
        self._advance(launches * launch_s, self._model.launch_w(work.macs, launch_s, work.moved_bits))
        return Window(start_s, self._now_s, launches, executed, launches * cycles)

    def samples(self) -> list[tuple[float, float]]:
        taken, self._samples = self._samples, []
        return taken

    def close(self) -> None:
        """Nothing runs."""


def _cycles(work: Work) -> tuple[int, int]:
    """Cycles of one launch, and how many launches it took to know."""
    executed = int(work.cycles is None)
    cycles = work.launch() if work.cycles is None else work.cycles
    if not cycles:
        raise WattbitError("only the accelerator has simulated time; on ARM cores measure on a real board")
    return cycles, executed
