"""A board's own rail as a meter: readings come over SSH as lines and are dated by their arrival on this machine."""

import threading
import time
from contextlib import ExitStack
from types import TracebackType
from typing import Self

from wattbit.board.program import Host, Program, running
from wattbit.board.targets import Power
from wattbit.errors import WattbitError
from wattbit.plan import PowerSample

METER = "wattbit.board.agent.meter"
INTERVAL_S = 0.05
ENDED_S = 5.0


class RailWatch:
    """`wattbit.board.meters.Meter` of a board's sensor; a context manager."""

    def __init__(self, host: Host, power: Power) -> None:
        self.rail = power.rail or ""
        self._host, self._power = host, power
        self._samples: list[PowerSample] = []
        self._failure: WattbitError | None = None

    def __enter__(self) -> Self:
        self._stack = ExitStack()
        program = self._stack.enter_context(running(self._host, METER, launch=True))
        program.send({"power": self._power.to_json(), "interval_s": INTERVAL_S})
        self._thread = threading.Thread(target=self._listen, args=(program,), daemon=True)
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._stack.close()
        self._thread.join(ENDED_S)

    def samples(self) -> list[PowerSample]:
        """Readings since the last call; WattbitError when the rail cannot be read or the board is lost."""
        if self._failure:
            raise self._failure
        taken = self._samples[:]
        del self._samples[: len(taken)]  # the thread's list stays the same: what it appends meanwhile is kept
        return taken

    def _listen(self, program: Program) -> None:
        try:
            while True:
                line = program.read()
                if "error" in line:
                    raise WattbitError(f"{self._host.host}: {line['error']}")
                power_w = line["power_w"].get(self.rail)
                if power_w is not None:
                    self._samples.append(PowerSample(time.monotonic(), power_w))
        except (WattbitError, ValueError) as error:  # the latter of a stream that was closed under it
            self._failure = error if isinstance(error, WattbitError) else WattbitError("the rail is not read any more")
