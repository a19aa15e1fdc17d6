"""What Vivado's reports say: clock, slack, resources, its version, and the error that it stopped at."""

import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from xml.etree import ElementTree

from wattbit.errors import WattbitError
from wattbit.hls.vivado.processor import Processor

# Site types of 7 series and UltraScale+ in `report_utilization`; a block RAM tile is two of 18 Kb.
SITES = {
    "lut": (("Slice LUTs", "CLB LUTs"), 1),
    "ff": (("Slice Registers", "CLB Registers"), 1),
    "dsp": (("DSPs",), 1),
    "bram18": (("Block RAM Tile",), 2),
}


@dataclass(frozen=True)
class Timing:
    """Worst slacks in ns: negative where a setup or hold requirement is missed."""

    setup_ns: float
    hold_ns: float

    def fmax_mhz(self, clock_mhz: float) -> float:
        """The highest clock whose setup requirement is met, given that the design was constrained to `clock_mhz`."""
        return 1000.0 / (1000.0 / clock_mhz - self.setup_ns)


def clock(handoff: str, ps: Processor) -> tuple[float, float]:
    """PL clock 0 and the PLL that it is divided from, in MHz, from Vivado's `.hwh`.

    The PS has few frequencies near the one that was asked for; this is the one that Vivado constrained the design to.
    """
    try:
        found = {one.get("NAME"): one.get("VALUE") for one in ElementTree.fromstring(handoff).iter("PARAMETER")}
        clock_mhz, first, second = (float(found[name] or "") for name in (ps.delivered, *ps.divisors))
    except (ElementTree.ParseError, KeyError, ValueError):
        raise WattbitError(
            f"Vivado's handoff names no {ps.delivered} with its dividers; its format is unknown"
        ) from None
    return clock_mhz, clock_mhz * first * second


def timing(report: str) -> Timing:
    """The design's worst slacks from a `report_timing_summary`; WattbitError when there is none."""
    lines = iter(report.splitlines())
    for line in lines:
        names = re.split(r"\s{2,}", line.strip())
        if names[:1] == ["WNS(ns)"] and "WHS(ns)" in names:
            next(lines, None)  # dashes
            values = dict(zip(names, next(lines, "").split(), strict=False))
            try:
                return Timing(float(values["WNS(ns)"]), float(values["WHS(ns)"]))
            except (KeyError, ValueError):
                break
    raise WattbitError("Vivado's timing report has no slack; its clock is unconstrained or its format is unknown")


def utilisation(report: str) -> dict[str, int]:
    """`lut`, `ff`, `dsp` and `bram18` in use from a `report_utilization`; WattbitError when one is missing."""
    rows: dict[str, float] = {}
    for line in report.splitlines():
        cells = [cell.strip() for cell in line.strip().strip("|").split("|")]
        if line.startswith("|") and len(cells) > 2 and re.fullmatch(r"[\d.]+", cells[1]):
            rows.setdefault(cells[0].rstrip("*"), float(cells[1]))  # the first is the summary
    found = {}
    for name, (sites, factor) in SITES.items():
        used = next((rows[site] for site in sites if site in rows), None)
        if used is None:
            raise WattbitError(f"Vivado's utilisation report has no row {' or '.join(sites)}; its format is unknown")
        found[name] = round(used * factor)
    return found


def version(text: str) -> str | None:
    """Vivado's version, for instance 2023.2, from what `vivado -version` says."""
    match = re.search(r"(?i)\bvivado v(\d{4}\.\d)", text)
    return match and match.group(1)


def last_error(logs: Sequence[Path]) -> str:
    """The last line that starts with `ERROR:` in the first of the logs that has one."""
    for log in (log for log in logs if log.is_file()):
        errors = [line for line in log.read_text("utf-8", "replace").splitlines() if line.startswith("ERROR:")]
        if errors:
            return errors[-1].strip()
    return "no ERROR in its log"
