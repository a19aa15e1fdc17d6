"""Kernels of this machine's core: whether time follows the bits, bandwidth reached, and peers (see kernel_peers.py).

    python benchmarks/arm_kernels.py [--quick] [--json FILE]

One token first; then, at one shape, several tokens of one expert together (prefill, batched routing) against as many
products of one. Weights are cold, times are medians of single calls. A width, 8 bits and reading as much memory take
turns within milliseconds, for the memory's speed is the neighbours' too; their ratios are the medians of the turns'.
Reading is the fastest of four ways (timing.WAYS). Weights lie in pages of 4 KB and, measured again, of 2 MB, as the
runtime's do where it can; beside peers in those of 4 KB, as theirs. Peers take turns with ours in another measurement:
some of their threads keep spinning after a call, so that there is a pause before each turn, and as the pause lets the
cores fall asleep, calls for WARM_S seconds that do not count. A ratio above 1 means that ours is better, a goal stands
at the best peer only. The peers' weights carry scales for groups of 32 to 256, ours one scale a channel. It needs a
quiet machine: a call that is preempted takes milliseconds more.
"""

import os
import tempfile
import time
from dataclasses import asdict, replace
from functools import partial
from itertools import product
from pathlib import Path
from statistics import median

import click
from kernel_peers import COLD_BYTES, Case, Peer, build_ggml, missing_torchao, peers
from rows import Benchmark, Row, deviation, show, write

from wattbit.files import write_json
from wattbit.tvm_schedules.cores import host_core
from wattbit.tvm_schedules.host_meter import build_library
from wattbit.tvm_schedules.timing import WAYS, Product, Timer, gives_large_pages

SHAPES = ((4096, 1024), (11008, 4096), (14336, 4096))  # rows, depth
WIDTHS = (8, 6, 4, 3, 2)
TOGETHER, TOGETHER_SHAPE, TOGETHER_WIDTHS = (4, 16), (11008, 4096), (8, 4, 2)
FOLLOWS, BANDWIDTH, PEER = 0.9, 0.9, 1.0  # the goals
CALL_BYTES = 50_000_000  # a candidate's calls of one repeat read about so much
TURN_BYTES, TURNS = 8_000_000, 80  # the same of a turn without pauses
SETTLE_S, WARM_S = 0.02, 0.02
CACHE = Path(os.environ.get("WATTBIT_CACHE", Path.home() / ".cache" / "wattbit")) / "peers"


def measure(candidates: dict[str, Peer], calls: int, repeats: int) -> dict[str, list[float]]:
    """Seconds of each candidate's calls, the candidates in turns."""
    seconds: dict[str, list[float]] = {name: [] for name in candidates}
    for repeat in range(repeats + 1):
        for name, candidate in candidates.items():
            time.sleep(SETTLE_S)
            warm_s = time.perf_counter() + WARM_S
            while time.perf_counter() < warm_s:
                candidate(2)
            taken = candidate(calls)
            seconds[name] += taken if repeat else []  # the first repeat warms up
    return seconds


def alongside(timer: Timer, product: Product, case: str) -> list[Row]:
    """A width against 8 bits, and against the fastest reading of as much memory, in turns right after one another."""
    size, bits = timer.weight_bytes(product), product.weight_bits
    wide, calls = replace(product, weight_bits=8), max(1, TURN_BYTES // size)
    turns = [
        (
            timer.products(product, calls),
            timer.products(wide, max(1, calls * bits // 8)),
            *(timer.readings(size, calls, *way) for way in WAYS),
        )
        for _ in range(TURNS)
    ][1:]
    best = min(range(2, 2 + len(WAYS)), key=lambda place: median(each for turn in turns for each in turn[place]))
    metric, found = f"time at {bits} bits, s", []
    for place, name, goal in ((1, "ours at 8 bits", FOLLOWS * 8 / bits), (best, "reading alone", BANDWIDTH)):
        if bits < 8 or place == best:
            ratio = median(median(turn[place]) / median(turn[0]) for turn in turns)
            ours, other = ([each for turn in turns for each in turn[i]] for i in (0, place))
            found.append(replace(row(case, metric, ours, other, name, goal), ratio=ratio))
    return found


def row(case: str, metric: str, ours: list[float], peer: list[float], name: str, goal: float | None) -> Row:
    """Times of ours against a peer's: the ratio is how often ours fits into the peer's."""
    mine, other = median(ours), median(peer)
    spread = deviation(ours), deviation(peer)
    return Row(case, metric, mine, spread[0], other, spread[1], name, other / mine, goal, "measured", (0,))


def compare(timer: Timer, case: str, peer: Case, repeats: int, ggml: Path | None) -> list[Row]:
    """One width of one shape against the peers; the timer's weights come again as often as theirs."""
    one, found = Product(peer.bits, peer.rows, peer.cols), []
    others = dict(peers(peer, ggml))
    candidates: dict[str, Peer] = {"ours": lambda calls: timer.products(one, calls), **others}
    times = measure(candidates, max(4, CALL_BYTES // timer.weight_bytes(one)), repeats)
    ours, metric = times.pop("ours"), f"time at {peer.bits} bits, s"
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
    times = measure(candidates, max(4, CALL_BYTES // timer.weight_bytes(several)), repeats)
    ours = times.pop("ours")
    best = min(others, key=lambda name: median(times[name]), default=None)
    metric = f"{peer.tokens} tokens together at {peer.bits} bits, s"
    return [row(case, metric, ours, found, name, PEER if name == best else None) for name, found in times.items()]


@click.command(cls=Benchmark, help=__doc__)
@click.option("--quick", is_flag=True, help="The smallest shape and few repeats: a look at what runs here.")
@click.option("--threads", multiple=True, type=int, help="Numbers of threads; one and all cores if not given.")
@click.option(
    "--json",
    "path",
    type=click.Path(path_type=Path, dir_okay=False),
    help="Write the rows here when all are there; until then they are in arm_kernels.part.json of the peers' cache.",
)
def main(quick: bool, threads: tuple[int, ...], path: Path | None) -> None:
    core = host_core()
    ggml = build_ggml(CACHE)
    pages = (False, True) if gives_large_pages() else (False,)
    large_missing = None if len(pages) == 2 else "pages of 2 MB: this kernel gives none"
    for reason in (ggml, missing_torchao(), large_missing):
        if isinstance(reason, str):
            click.echo(f"left out: {reason}")
    library_of_ggml = ggml if isinstance(ggml, Path) else None
    counts, repeats = threads or (1, os.cpu_count() or 1), 2 if quick else 4
    rows: list[Row] = []
    part = CACHE / "arm_kernels.part.json"  # what is interrupted leaves its rows here, and `path` as it was

    def add(found: list[Row]) -> None:
        if not found:  # no peers
            return
        show(found)
        rows.extend(found)
        if path:
            write_json(part, [asdict(each) for each in rows])

    with tempfile.TemporaryDirectory() as name:
        library = Path(name) / "kernels.so"
        build_library(core, WIDTHS, library)
        peerlike = partial(Timer, library, core.name, cold_bytes=COLD_BYTES)
        for count in counts:
            for shape in SHAPES[:1] if quick else SHAPES:
                case = f"{core.name}, {shape[0]}x{shape[1]}, {count} thread{'s' * (count > 1)}"
                for large in pages:
                    with Timer(library, core.name, count, large_pages=large) as timer:
                        for bits in WIDTHS:
                            add(alongside(timer, Product(bits, *shape), case + ", pages of 2 MB" * large))
                with peerlike(count) as timer:
                    for bits in WIDTHS:
                        add(compare(timer, case, Case(bits, *shape, count), repeats, library_of_ggml))
        shape = SHAPES[0] if quick else TOGETHER_SHAPE
        case = f"{core.name}, {shape[0]}x{shape[1]}, {counts[-1]} threads"
        with peerlike(counts[-1]) as timer:
            for tokens, bits in product(TOGETHER, TOGETHER_WIDTHS):
                add(compare_together(timer, case, Case(bits, *shape, counts[-1], tokens), repeats, library_of_ggml))
    if path:
        write(rows, path)
        part.unlink(missing_ok=True)


if __name__ == "__main__":
    main()
