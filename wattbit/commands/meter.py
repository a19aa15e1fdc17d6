"""`wattbit meter`: a board's rails, or an external meter, as they are read."""

import time
from collections import deque
from collections.abc import Iterator
from contextlib import nullcontext, suppress
from dataclasses import dataclass, field
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import click
from rich.console import Console
from rich.live import Live
from rich.table import Table

from wattbit.display import Display
from wattbit.errors import WattbitError
from wattbit.perform import Host
from wattbit.run import cache_folder

METER = "wattbit.board.agent.meter"
BARS = " ▁▂▃▄▅▆▇█"
SHOWN = 40


@dataclass
class Rail:
    """What was read of one rail so far."""

    count: int = 0
    total_w: float = 0.0
    least_w: float = float("inf")
    greatest_w: float = 0.0
    recent_w: deque[float] = field(default_factory=lambda: deque(maxlen=SHOWN))
    reason: str = ""

    def add(self, power_w: float) -> None:
        self.count += 1
        self.total_w += power_w
        self.least_w, self.greatest_w = min(self.least_w, power_w), max(self.greatest_w, power_w)
        self.recent_w.append(power_w)

    def bars(self) -> str:
        low, high = min(self.recent_w), max(self.recent_w)
        scale = (len(BARS) - 1) / (high - low) if high > low else 0.0
        return "".join(BARS[round((power_w - low) * scale)] for power_w in self.recent_w)


def table(rails: dict[str, Rail], provenance: str, conditions: dict[str, Any]) -> Table:
    """One line a rail."""
    shown = Table(title=f"watts, {provenance}")
    for name in ("rail", "now", "mean", "least", "greatest", "readings", "lately"):
        shown.add_column(name, justify="left" if name in ("rail", "lately") else "right")
    for name, rail in rails.items():
        if not rail.count:
            shown.add_row(name, "-", "-", "-", "-", "0", rail.reason)
            continue
        values = rail.recent_w[-1], rail.total_w / rail.count, rail.least_w, rail.greatest_w
        shown.add_row(name, *(f"{value:.4f}" for value in values), str(rail.count), rail.reason or rail.bars())
    readings = [f"{name} {value:.1f}" for group in conditions.values() for name, value in group.items()]
    shown.caption = ", ".join(readings) or None
    return shown


def external(name: str, interval_s: float) -> Iterator[dict[str, Any]]:
    """Readings of an external meter, in the form of the board's."""
    from wattbit.board.meters import open_meter

    with open_meter(name) as meter:
        while True:
            for sample in meter.samples():
                yield {"power_w": {name: sample.power_w}, "reasons": {}}
            time.sleep(interval_s)


def on_board(name: str, host: str | None, interval_s: float) -> Iterator[dict[str, Any]]:
    """Readings of a board's rails."""
    from wattbit.board.connect import board
    from wattbit.board.program import running
    from wattbit.board.targets import load

    power = load(name).power
    if power.source in ("simulated", "external", "none"):
        raise WattbitError(
            f"{name} has no sensor that can be watched (source {power.source}); name a meter with --meter"
            if power.source != "simulated"
            else f"the rail of {name} is a formula without a clock; watch virtual-z2-system"
        )
    with Display() as display, TemporaryDirectory() as home:
        display.begin("meter", name)
        with (
            board(name, cache_folder(), Path(home), display, host) as connection,
            running(connection, METER, launch=True) as program,
        ):
            program.send({"power": power.to_json(), "interval_s": interval_s})
            while True:
                line = program.read()
                if "error" in line:
                    raise WattbitError(f"{host or name}: {line['error']}")
                yield line


@click.command()
@click.option("--board", "name", default="virtual-z2-system", show_default=True, help="Board: a name or a TOML file.")
@click.option("--host", type=Host(), help="Where the board is, as for ssh: NAME or USER@NAME.")
@click.option("--meter", help="External meter instead: serial:DEVICE, tcp:HOST:PORT or csv:FILE.")
@click.option("--live", is_flag=True, help="Go on until Ctrl-C; otherwise read once.")
@click.option(
    "--interval",
    "interval_s",
    default=0.1,
    show_default=True,
    type=click.FloatRange(min=0, min_open=True),
    help="Seconds between readings.",
)
def command(name: str, host: str | None, meter: str | None, live: bool, interval_s: float) -> None:
    """Show the board's power rails as they are read."""
    from wattbit.board.targets import load

    provenance = "simulated" if meter is None and load(name).tier else "measured"
    source = external(meter, interval_s) if meter else on_board(name, host, interval_s)
    rails: dict[str, Rail] = {}
    console = Console()
    view = Live(console=console, auto_refresh=False) if live and console.is_terminal else None
    # Ctrl-C is how --live ends
    with view or nullcontext(), suppress(KeyboardInterrupt) if live else nullcontext():
        for line in source:
            for rail, power_w in line["power_w"].items():
                found = rails.setdefault(rail, Rail())
                found.reason = line["reasons"].get(rail, "")
                if power_w is not None:
                    found.add(power_w)
            conditions = {group: line.get(group, {}) for group in ("temperature_c", "clock_mhz")}
            if view:
                view.update(table(rails, provenance, conditions), refresh=True)
            elif live:
                shown = (f"{rail} {'-' if w is None else f'{w:.4f}'} W" for rail, w in line["power_w"].items())
                click.echo(f"{'  '.join(shown)}  ({provenance})")
            else:
                console.print(table(rails, provenance, conditions))
                return
