"""Place and route with nextpnr: FASM, and what its timing analysis estimates."""

import re
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from wattbit.errors import WattbitError
from wattbit.files import read_json, sha256_file, write_json
from wattbit.hls.open.steps import once, run
from wattbit.hls.open.tools import PACKAGES, Tools

NEXTPNR = PACKAGES[0]
FASM, REPORT = "design.fasm", "report.json"
SEEDS = (1, 2, 3)
HOLD = "Hold/min time violation for clock"
PHASES = re.compile(r"Info: +(Packing|Running main analytical placer|Running router2|iter=(\d+).* overused=(\d+))")
LOOK_S = 2.0
BELS = ("SLICE_LUTX", "SLICE_FFX", "CARRY4", "DSP48E1_DSP48E1", "RAMB18E1_RAMB18E1", "RAMB36E1_RAMB36E1")


@dataclass(frozen=True)
class Routed:
    """A routed design. fmax_mhz is an estimate: DSP48E1 and PS7 have no timing there, those of LUTs are rough.

    bels: of each of the kinds `BELS`, how many are in use and how many there are. hold_violations: seeds that were
    given up for them.
    """

    fasm: Path
    fmax_mhz: float
    seed: int
    bels: dict[str, tuple[int, int]]
    hold_violations: tuple[int, ...]


def route(
    design: Path, part: str, clock_mhz: float, tools: Tools, out: Path, say: Callable[[str], None] = lambda text: None
) -> Routed:
    """Place and route yosys' JSON for a part, in folders of `out` by seed, until no path misses its hold time.

    nextpnr does not repair hold times, but another seed may have none. say: told how far it is. Raises WattbitError
    when nextpnr fails (a design too large among others) or every seed misses hold times.
    """
    missed: list[int] = []
    for seed in SEEDS:
        log = out / f"nextpnr-{seed}.log"

        def make(folder: Path, seed: int = seed, log: Path = log) -> None:
            log.unlink(missing_ok=True)
            with followed(log, say):
                _nextpnr(design, part, clock_mhz, seed, tools, folder, log)

        inputs = [sha256_file(design), part, clock_mhz, seed, tools.versions[NEXTPNR]]
        folder = once(out / f"routed-{seed}", inputs, make)
        report = read_json(folder / REPORT)
        if report["hold_violations"]:
            missed.append(seed)
            continue
        bels = {name: (bel["used"], bel["available"]) for name in BELS for bel in [report["utilization"][name]]}
        fmax_mhz = min(clock["achieved"] for clock in report["fmax"].values())
        return Routed(folder / FASM, round(fmax_mhz, 1), seed, bels, tuple(missed))
    raise WattbitError(f"with seeds {missed} paths miss their hold times; take a smaller engine, or vivado; see {log}")


def _nextpnr(design: Path, part: str, clock_mhz: float, seed: int, tools: Tools, folder: Path, log: Path) -> None:
    (folder / "empty.xdc").touch()  # the design has no pins of its own
    options: dict[str, str | Path] = {
        "--device": part,
        "--chipdb": tools.chip(part[: len("xc7z020")]),
        "--json": design.absolute(),
        "--freq": str(clock_mhz),
        "--seed": str(seed),
        "--report": "nextpnr.json",
        "--log": log.absolute(),
    }
    arguments = [argument for option in options.items() for argument in option]
    arguments += ["-o", "xdc=empty.xdc", "-o", f"fasm={FASM}", "--timing-allow-fail"]
    text = run("nextpnr", tools.command(NEXTPNR, *arguments), folder, log, tools.environment())
    report = read_json(folder / "nextpnr.json")
    kept = {name: report[name] for name in ("fmax", "utilization")}
    write_json(folder / REPORT, kept | {"hold_violations": text.count(HOLD)})
    for name in ("nextpnr.json", "empty.xdc"):
        (folder / name).unlink()


@contextmanager
def followed(log: Path, say: Callable[[str], None]) -> Iterator[None]:
    """While the block runs, tell what nextpnr's growing log says of its progress."""
    ended = threading.Event()

    def follow() -> None:
        told = ""
        while not ended.wait(LOOK_S):
            text = phase(log.read_text(encoding="utf-8", errors="replace")) if log.is_file() else ""
            if text != told:
                say(text)
            told = text

    thread = threading.Thread(target=follow, daemon=True)
    thread.start()
    try:
        yield
    finally:
        ended.set()
        thread.join()


def phase(log: str) -> str:
    """What a log's last phase is; empty before the first."""
    found = list(PHASES.finditer(log))
    if not found:
        return ""
    words, turn, wires = found[-1].groups()
    if turn:
        return f"routing, turn {turn}: {wires} wires used twice"
    return {"Packing": "packing", "Running router2": "routing"}.get(words, "placing")
