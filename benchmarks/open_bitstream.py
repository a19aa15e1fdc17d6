"""How large a design the open tools place and route on an xc7z020, and how fast it then is.

Each design has engines of two widths, on experts at random: what their weights are changes neither time nor area. It
goes the whole way of toolchain `open`: netlist, gate-level simulation against the RTL, place and route, bitstream.
Tokens a second are those of the FPGA's share of a token, simulated cycles at the clock that the bitstream gets; the
clock is at most 50 MHz and at most nextpnr's estimate.
"""

import json
import resource
import signal
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import FrameType
from typing import Any

import click
import numpy as np
from rows import Benchmark, about

from wattbit.arith import ExpertInts
from wattbit.board.targets import load
from wattbit.errors import WattbitError
from wattbit.files import digest_json, write_json
from wattbit.hls.accelerator import Accelerator, verilate
from wattbit.hls.engine import write_engine
from wattbit.hls.engine_class import EngineClass
from wattbit.hls.open.toolchain import OpenToolchain
from wattbit.hls.shell import ShellRtl, build_shell
from wattbit.plan import ExpertId, ExpertShape, Precision
from wattbit.run import cache_folder

BOARD = "pynq-z2"
LAYERS, TOP_K = 2, 2  # a token goes to two experts in each of two layers, as in the preset `demo`
VECTORS = 64  # a launch, half of them for each engine
SMALL, DEMO = ExpertShape(16, 32), ExpertShape(64, 128)
# shape, experts of each width, and for each of two widths PE x SIMD of fc1 (fc2 has them the other way round)
DESIGNS: dict[str, tuple[ExpertShape, int, dict[str, tuple[int, int]]]] = {
    "w2a8 2x2 + w4a8 2x2, 16-32-16": (SMALL, 4, {"w2a8": (2, 2), "w4a8": (2, 2)}),
    "w2a8 4x4 + w4a8 4x4": (DEMO, 4, {"w2a8": (4, 4), "w4a8": (4, 4)}),
    "w4a8 4x4 + w8a8 4x4": (DEMO, 4, {"w4a8": (4, 4), "w8a8": (4, 4)}),
    "w2a8 8x4 + w4a8 8x4": (DEMO, 4, {"w2a8": (8, 4), "w4a8": (8, 4)}),
    "w2a8 8x8 + w4a8 8x8": (DEMO, 4, {"w2a8": (8, 8), "w4a8": (8, 8)}),
    "w4a8 8x8 + w8a8 8x8": (DEMO, 4, {"w4a8": (8, 8), "w8a8": (8, 8)}),
    "w2a8 16x8 + w4a8 8x8": (DEMO, 4, {"w2a8": (16, 8), "w4a8": (8, 8)}),
}


class TooLong(BaseException):
    """The time that a design gets is over. Like Ctrl-C, it ends the programs that run."""


@contextmanager
def limit(minutes: float) -> Iterator[None]:
    def stop(number: int, frame: FrameType | None) -> None:
        raise TooLong

    before = signal.signal(signal.SIGALRM, stop)
    signal.setitimer(signal.ITIMER_REAL, 60 * minutes)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)


def expert(identity: ExpertId, precision: Precision, shape: ExpertShape) -> ExpertInts:
    """An expert of uniform weights."""
    rng = np.random.default_rng([identity.expert, precision.weight_bits])
    top = 2 ** (precision.weight_bits - 1) - 1
    w1 = rng.integers(-top, top + 1, (shape.d_hidden, shape.d_model)).astype(np.int8)
    w2 = rng.integers(-top, top + 1, (shape.d_model, shape.d_hidden)).astype(np.int8)
    m1, m2 = (rng.integers(2**8, 2**12, len(w)).astype(np.int32) for w in (w1, w2))
    return ExpertInts(identity, precision, w1, w2, m1, m2, 16, 16, -4, -4, -4)


def design(name: str, out: Path, part: str) -> ShellRtl:
    shape, experts, widths = DESIGNS[name]
    engines = []
    for text, (pe, simd) in widths.items():
        precision = Precision.parse(text)
        ids = tuple(ExpertId(0, i) for i in range(experts))
        spec = EngineClass(precision, pe, simd, simd, pe, ids)
        engines.append(write_engine([expert(i, precision, shape) for i in ids], spec, out / "engines", part))
    return build_shell(engines, shape.d_model, digest_json(name), out / "shell")


def cycles_per_vector(shell: ShellRtl, out: Path, experts: int) -> float:
    """Simulated cycles a vector of a launch that keeps both engines busy."""
    engine = np.arange(VECTORS) % len(shell.engines)
    index = np.arange(VECTORS) // len(shell.engines) % experts
    x = np.random.default_rng(0).integers(-128, 128, (VECTORS, shell.d_model)).astype(np.int8)
    with Accelerator(verilate(shell, out / "accelerator", "x86_64")) as accelerator:
        return accelerator.run(engine, index, x)[1] / VECTORS


def measure(name: str, out: Path, minutes: float) -> dict[str, Any]:
    """Build one design; what came out, or why nothing did."""
    target = load(BOARD).target
    shell = design(name, out, target.part or "")
    started, used = time.monotonic(), resource.getrusage(resource.RUSAGE_CHILDREN)
    result: dict[str, Any] = {"design": name, "bitstream": False}
    try:
        with limit(minutes):
            built = OpenToolchain(cache_folder()).build(shell, target, out / "open", say)
    except TooLong:
        result["why_not"] = f"stopped after {minutes:g} minutes"
    except WattbitError as error:
        result["why_not"] = str(error)
    else:
        cycles = cycles_per_vector(shell, out, DESIGNS[name][1])
        result |= built.to_json(out / "open") | {
            "bitstream": True,
            "cycles_per_vector": cycles,  # simulated
            "tokens_per_s": built.clock_mhz * 1e6 / (cycles * LAYERS * TOP_K),
        }
    now = resource.getrusage(resource.RUSAGE_CHILDREN)
    return result | {
        "wall_s": round(time.monotonic() - started),
        "cpu_s": round(now.ru_utime + now.ru_stime - used.ru_utime - used.ru_stime),
        "peak_memory_mb": round(now.ru_maxrss / 1024),
    }


def say(what: str, done: int, total: int) -> None:
    click.echo(f"  {what} {done}/{total}", err=True)


@click.command(cls=Benchmark)
@click.option("--quick", is_flag=True, help="The smallest design only.")
@click.option("--only", multiple=True, help="A design by the beginning of its name; several times for several.")
@click.option("--minutes", default=120.0, help="What a design gets at most.")
@click.option("--work", type=click.Path(path_type=Path), default=Path("build/open_bitstream"), help="Where to build.")
@click.option("--json", "path", type=click.Path(path_type=Path), help="Add the results to this file.")
def main(quick: bool, only: tuple[str, ...], minutes: float, work: Path, path: Path | None) -> None:
    """Build designs of growing size with the open tools and show what each takes and gives."""
    names = list(DESIGNS)[:1] if quick else [n for n in DESIGNS if not only or n.startswith(only)]
    found: dict[str, dict[str, Any]] = {}
    if path is not None and path.is_file():
        found = {record["design"]: record for record in json.loads(path.read_text(encoding="utf-8"))}
    for name in names:
        click.echo(name, err=True)
        record = measure(name, work / name.replace(" ", "_"), minutes)
        found[name] = record
        if path is not None:
            write_json(path, [found[n] for n in DESIGNS if n in found])
            about(path)
        if record["bitstream"]:
            used = ", ".join(f"{count} {kind}" for kind, count in record["utilisation"].items())
            click.echo(
                f"{name}: {used}; {record['fmax_mhz']} MHz (estimate), {record['clock_mhz']:g} MHz used; "
                f"{record['cycles_per_vector']:.0f} cycles a vector (simulated), {record['tokens_per_s']:.0f} tokens/s"
                f"; {record['cpu_s']} s CPU, {record['peak_memory_mb']} MB"
            )
        else:
            click.echo(f"{name}: no bitstream, {record['why_not']}; {record['cpu_s']} s CPU")


if __name__ == "__main__":
    main()
