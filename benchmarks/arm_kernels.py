"""Kernels of this machine's core: whether time follows the bits, bandwidth reached, and peers (see kernel_peers.py).

    python benchmarks/arm_kernels.py [--quick] [--json FILE]

One token first; then, at one shape, several tokens of one expert together (prefill, batched routing) against as many
products of one. Weights are cold, repeats of a width's candidates are interleaved, figures are medians of single calls.
Some libraries' threads keep spinning after a call: before each candidate's turn there is a pause, then a few calls that
do not count. A ratio above 1 means that ours is better, a goal stands at the best peer only. The peers' weights carry
scales for groups of 32 to 256, ours one scale a channel. It needs a quiet machine: a call that is preempted takes
milliseconds more.
"""

import os
import tempfile
import time
from itertools import product
from pathlib import Path
from statistics import median, stdev

import click
from kernel_peers import Case, Peer, build_ggml, missing_torchao, peers
from rows import Benchmark, Row, show, write

from wattbit.tvm_schedules.cores import Core, host_core
from wattbit.tvm_schedules.timing import Product, Timer
from wattbit.tvm_schedules.toolchain import emit_objects, kernels_for, link_library

SHAPES = ((4096, 1024), (11008, 4096), (14336, 4096))  # rows, depth
WIDTHS = (8, 6, 4, 3, 2)
TOGETHER, TOGETHER_SHAPE, TOGETHER_WIDTHS = (4, 16), (11008, 4096), (8, 4, 2)
FOLLOWS, BANDWIDTH, PEER = 0.9, 0.9, 1.0  # the goals
CALL_BYTES = 100_000_000  # a candidate's calls of one repeat read about so much
SETTLE_S, WARM_CALLS = 0.02, 2
CACHE = Path(os.environ.get("WATTBIT_CACHE", Path.home() / ".cache" / "wattbit")) / "peers"


def build(core: Core, out: Path) -> None:
    kernels = kernels_for(WIDTHS)
    with tempfile.TemporaryDirectory() as name:
        emit_objects(kernels, core, Path(name))
        link_library(kernels, core, Path(name), out)


def measure(candidates: dict[str, Peer], calls: int, repeats: int) -> dict[str, list[float]]:
    """Seconds of each candidate's calls, the candidates in turns."""
    seconds: dict[str, list[float]] = {name: [] for name in candidates}
    for repeat in range(repeats + 1):
        for name, candidate in candidates.items():
            time.sleep(SETTLE_S)
            candidate(WARM_CALLS)
            taken = candidate(calls)
            seconds[name] += taken if repeat else []  # the first repeat warms up
    return seconds


def row(case: str, metric: str, ours: list[float], peer: list[float], name: str, goal: float | None) -> Row:
    """Times of ours against a peer's: the ratio is how often ours fits into the peer's."""
    mine, other = median(ours), median(peer)
    spread = tuple(stdev(each) if len(each) > 1 else 0.0 for each in (ours, peer))
    return Row(case, metric, mine, spread[0], other, spread[1], name, other / mine, goal, "measured", (0,))


def compare(timer: Timer, case: str, peer: Case, repeats: int, ggml: Path | None) -> list[Row]:
    """One width of one shape: against our 8 bits, against reading as much memory, and against the peers."""
    one = Product(peer.bits, peer.rows, peer.cols)
    wide = Product(8, peer.rows, peer.cols)
    size = timer.weight_bytes(one)
    others = dict(peers(peer, ggml))
    candidates: dict[str, Peer] = {
        "ours": lambda calls: timer.products(one, calls),
        "ours at 8 bits": lambda calls: timer.products(wide, calls),
        "reading alone": lambda calls: timer.readings(size, calls),
        **others,
    }
    times = measure(candidates, max(4, CALL_BYTES // (peer.rows * peer.cols)), repeats)
    ours = times.pop("ours")
    metric, found = f"time at {peer.bits} bits, s", []
    if peer.bits < 8:
        found.append(row(case, metric, ours, times["ours at 8 bits"], "ours at 8 bits", FOLLOWS * 8 / peer.bits))
    found.append(row(case, metric, ours, times["reading alone"], "reading alone", BANDWIDTH))
    best = min(others, key=lambda name: median(times[name]), default=None)
    for name in others:
        found.append(row(case, metric, ours, times[name], name, PEER if name == best else None))
    return found


def compare_together(timer: Timer, case: str, peer: Case, repeats: int, ggml: Path | None) -> list[Row]:
    """One width of one shape with several tokens: against as many products of one token, and against the peers."""
    one, several = Product(peer.bits, peer.rows, peer.cols), Product(peer.bits, peer.rows, peer.cols, peer.tokens)
    others = dict(peers(peer, ggml))
    candidates: dict[str, Peer] = {
        "ours": lambda calls: timer.products(several, calls),
        f"{peer.tokens} products of one": lambda calls: [peer.tokens * each for each in timer.products(one, calls)],
        **others,
    }
    times = measure(candidates, max(4, CALL_BYTES // (peer.rows * peer.cols) // 2), repeats)
    ours = times.pop("ours")
    best = min(others, key=lambda name: median(times[name]), default=None)
    metric = f"{peer.tokens} tokens together at {peer.bits} bits, s"
    return [row(case, metric, ours, found, name, PEER if name == best else None) for name, found in times.items()]


@click.command(cls=Benchmark, help=__doc__)
@click.option("--quick", is_flag=True, help="The smallest shape and few repeats: a look at what runs here.")
@click.option("--threads", multiple=True, type=int, help="Numbers of threads; one and all cores if not given.")
@click.option("--json", "path", type=click.Path(path_type=Path, dir_okay=False), help="Write the rows to this file.")
def main(quick: bool, threads: tuple[int, ...], path: Path | None) -> None:
    core = host_core()
    ggml = build_ggml(CACHE)
    for reason in (ggml, missing_torchao()):
        if isinstance(reason, str):
            click.echo(f"left out: {reason}")
    library_of_ggml = ggml if isinstance(ggml, Path) else None
    counts, repeats = threads or (1, os.cpu_count() or 1), 2 if quick else 7
    rows: list[Row] = []

    def add(found: list[Row]) -> None:
        show(found)
        rows.extend(found)

    with tempfile.TemporaryDirectory() as name:
        library = Path(name) / "kernels.so"
        build(core, library)
        for count in counts:
            for shape in SHAPES[:1] if quick else SHAPES:
                case = f"{core.name}, {shape[0]}x{shape[1]}, {count} thread{'s' * (count > 1)}"
                with Timer(library, core.name, count) as timer:
                    for bits in WIDTHS:
                        add(compare(timer, case, Case(bits, *shape, count), repeats, library_of_ggml))
        shape = SHAPES[0] if quick else TOGETHER_SHAPE
        case = f"{core.name}, {shape[0]}x{shape[1]}, {counts[-1]} threads"
        with Timer(library, core.name, counts[-1]) as timer:
            for tokens, bits in product(TOGETHER, TOGETHER_WIDTHS):
                add(compare_together(timer, case, Case(bits, *shape, counts[-1], tokens), repeats, library_of_ggml))
    if path:
        write(rows, path)


if __name__ == "__main__":
    main()
