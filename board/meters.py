"""External meters, for boards without a sensor: readings on this machine, windows on the board's clock.

A meter is named in one word:

| name | meter |
|---|---|
| `serial:/dev/ttyUSB0` or `serial:/dev/ttyUSB0@9600` | lines from a serial or USB port, 115200 baud if not said |
| `tcp:HOST:PORT` | the same lines from a network socket |
| `csv:FILE` | a file that the meter's own software writes during the measurement |

A line is one reading: watts (`2.093`, `2.093 W`), or fields in any order, `w=2.093` or `v=5.081 a=0.412`, with blanks
or commas between. Its time is that of its arrival; lines that arrive together are spread over the time since those
before. A CSV file has a header: `time_s` (seconds since 1970, UTC) and `power_w`, or `voltage_v` and `current_a`. What
it holds may come late, but by less than SILENT_S: a pair of windows is kept once a reading after its end is there.

The board's clock is tied to this machine's by asking for its time after every pair of windows; half the fastest
answer's way bounds the error, which is far below a window's margin.
"""

import csv
import math
import os
import re
import select
import socket
import termios
import threading
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Protocol, Self

from wattbit.errors import WattbitError
from wattbit.plan import PowerSample

BAUD = 115200
LAST_PORT = 65535
BROKEN_LINES = 20
CONNECT_S = 5.0
SILENT_S = 5.0
POLL_S = 0.1
READ_BYTES = 1 << 16  # more than a port holds: readings that came together are read together
CLOCK_JUMP_S = 0.5
ASKS = 5
NUMBER = r"[-+]?(?:\d+\.?\d*|\.\d+)(?:[eE][-+]?\d+)?"
FIELD = re.compile(rf"([a-z]+)\s*=\s*({NUMBER})\Z")
WATTS = re.compile(rf"({NUMBER})\s*W?\Z", re.IGNORECASE)


class Meter(Protocol):
    """An open meter; a context manager."""

    rail: str

    def __enter__(self) -> Self: ...

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None: ...

    def samples(self) -> list[PowerSample]:
        """Readings since the last call, on this machine's monotonic clock; WattbitError when the meter is lost."""
        ...


def parse_line(line: str) -> float:
    """Watts of one line; WattbitError when it is no reading."""
    text = line.strip()
    power_w = _watts(text)
    if power_w is None or not math.isfinite(power_w):
        raise WattbitError(f"{text[:60]!r} is no reading; a meter's line is like `2.093 W` or `v=5.081 a=0.412`")
    return power_w


def _watts(text: str) -> float | None:
    if match := WATTS.match(text):
        return float(match[1])
    parts = [FIELD.match(part) for part in re.split(r"[\s,;]+", text.lower()) if part]
    fields = {match[1]: float(match[2]) for match in parts if match}
    if None not in parts and "w" in fields:
        return fields["w"]
    if None not in parts and {"v", "a"} <= set(fields):
        return fields["v"] * fields["a"]
    return None


class LineMeter:
    """A meter that sends lines, read by a thread."""

    def __init__(self, rail: str, open_port: Callable[[], int]) -> None:
        """open_port: gives a file descriptor to read from, which the meter closes."""
        self.rail = rail
        self._open = open_port
        self._samples: list[PowerSample] = []
        self._failure: str | None = None
        self._last_s = 0.0
        self._ended = threading.Event()

    def __enter__(self) -> Self:
        try:
            self._port = self._open()
        except (OSError, termios.error) as error:
            raise WattbitError(f"the meter {self.rail} cannot be opened: {error}") from None
        self._last_s = time.monotonic()
        self._thread = threading.Thread(target=self._listen, daemon=True)
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._ended.set()
        self._thread.join()
        os.close(self._port)

    def samples(self) -> list[PowerSample]:
        if self._failure:
            raise WattbitError(f"the meter {self.rail} is lost: {self._failure}")
        if time.monotonic() - self._last_s > SILENT_S:
            raise WattbitError(f"the meter {self.rail} has been silent for {SILENT_S:g} s; check its cable")
        taken = self._samples[:]
        del self._samples[: len(taken)]  # the thread's list stays the same: what it appends meanwhile is kept
        return taken

    def _listen(self) -> None:
        broken, rest, read_s = 0, b"", self._last_s
        try:
            while not self._ended.is_set() and broken < BROKEN_LINES:
                if not select.select([self._port], [], [], POLL_S)[0]:
                    continue
                before_s, read_s = read_s, time.monotonic()
                data = os.read(self._port, READ_BYTES)
                if not data:
                    self._failure = "it has closed the connection"
                    return
                *lines, rest = (rest + data).split(b"\n")
                powers_w = []
                for line in lines:
                    try:
                        powers_w.append(parse_line(line.decode(errors="replace")))
                        broken = 0
                    except WattbitError:
                        broken += 1
                self._take(before_s, read_s, powers_w)
        except OSError as error:
            self._failure = str(error)
        if broken >= BROKEN_LINES:
            self._failure = f"{broken} lines in a row are no reading, the last one {lines[-1][:60]!r}"

    def _take(self, before_s: float, now_s: float, powers_w: Sequence[float]) -> None:
        """Keep readings that came together: the last one at this read's time, the others evenly back to the one before.

        Of one time, they would have no integral.
        """
        if powers_w:
            times_s = [now_s - (now_s - before_s) * k / len(powers_w) for k in reversed(range(len(powers_w)))]
            self._samples.extend([PowerSample(*each) for each in zip(times_s, powers_w, strict=True)])
            self._last_s = now_s


class CsvMeter:
    """A file with the time of day of each reading. That clock may jump: a jump is found and refused."""

    def __init__(self, rail: str, path: Path) -> None:
        self.rail = rail
        self._path = path
        self._seen = 0

    def __enter__(self) -> Self:
        self._offset_s = _epoch_offset()
        read_csv(self._path)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Nothing is open."""

    def samples(self) -> list[PowerSample]:
        jump_s = _epoch_offset() - self._offset_s
        if abs(jump_s) > CLOCK_JUMP_S:
            raise WattbitError(f"this machine's time of day jumped by {jump_s:.1f} s, and {self._path} goes by it")
        found = read_csv(self._path)
        new, self._seen = found[self._seen :], len(found)
        return [PowerSample(sample.time_s - self._offset_s, sample.power_w) for sample in new]


def _epoch_offset() -> float:
    return time.time() - time.monotonic()


def read_csv(path: Path) -> list[PowerSample]:
    """Readings of a CSV file, `time_s` as it stands there; a last line that is still being written is left out."""
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise WattbitError(f"the meter's file {path} cannot be read: {error}") from None
    whole = text[: text.rfind("\n") + 1]
    rows = csv.DictReader(whole.splitlines())
    names = set(rows.fieldnames or ())
    if "time_s" not in names or not ({"power_w"} <= names or {"voltage_v", "current_a"} <= names):
        found = ", ".join(sorted(names)) or "none"
        raise WattbitError(f"{path} needs the columns time_s and power_w, or voltage_v and current_a, not {found}")
    try:
        return [_reading(row) for row in rows]
    except (TypeError, ValueError):
        raise WattbitError(f"line {rows.line_num} of {path} is no reading; repair or remove it") from None


def _reading(row: dict[str, str]) -> PowerSample:
    power_w = float(row["power_w"]) if "power_w" in row else float(row["voltage_v"]) * float(row["current_a"])
    sample = PowerSample(float(row["time_s"]), power_w)
    if not (math.isfinite(sample.time_s) and math.isfinite(power_w)):
        raise ValueError("nan and inf are no readings")
    return sample


def open_meter(name: str) -> Meter:
    """The meter of this name, not yet open."""
    kind, _, rest = name.partition(":")
    if kind == "csv" and rest:
        return CsvMeter(name, Path(rest))
    if kind == "serial" and rest:
        path, _, baud = rest.partition("@")
        if baud and not hasattr(termios, f"B{baud}"):
            raise WattbitError(f"{baud} is no baud rate of a serial port; try 9600 or 115200")
        return LineMeter(name, lambda: _serial(path, int(baud or BAUD)))
    host, separator, port = rest.rpartition(":")
    if kind == "tcp" and separator and port.isdigit():
        if not 0 < int(port) <= LAST_PORT:
            raise WattbitError(f"{port} is no port; the meter {name!r} needs one from 1 to {LAST_PORT}")
        return LineMeter(name, lambda: _socket(host, int(port)))
    raise WattbitError(f"a meter is named serial:DEVICE, serial:DEVICE@BAUD, tcp:HOST:PORT or csv:FILE, not {name!r}")


def _serial(path: str, baud: int) -> int:
    """A port in raw mode, 8 bits, no parity."""
    port = os.open(path, os.O_RDONLY | os.O_NOCTTY)
    try:
        settings = termios.tcgetattr(port)
        settings[0] = termios.IGNPAR
        settings[1] = settings[3] = 0
        settings[2] = termios.CS8 | termios.CREAD | termios.CLOCAL
        settings[4] = settings[5] = getattr(termios, f"B{baud}")
        termios.tcsetattr(port, termios.TCSANOW, settings)
        termios.tcflush(port, termios.TCIFLUSH)
    except BaseException:
        os.close(port)
        raise
    return port


def _socket(host: str, port: int) -> int:
    with socket.create_connection((host, port), timeout=CONNECT_S) as connection:
        connection.settimeout(None)
        return connection.detach()


@dataclass(frozen=True)
class ClockTie:
    """This machine's monotonic clock less the board's, and by how much that may be off."""

    offset_s: float
    error_s: float

    @classmethod
    def of(cls, board_time: Callable[[], float]) -> "ClockTie":
        """From the fastest of a few questions for the board's time."""
        asked = []
        for _ in range(ASKS):
            before_s = time.monotonic()
            board_s = board_time()
            after_s = time.monotonic()
            asked.append(((after_s - before_s) / 2, (before_s + after_s) / 2 - board_s))
        error_s, offset_s = min(asked)
        return cls(offset_s, error_s)

    def on_board(self, samples: Iterable[PowerSample]) -> list[PowerSample]:
        """The same readings on the board's clock."""
        return [PowerSample(sample.time_s - self.offset_s, sample.power_w) for sample in samples]
