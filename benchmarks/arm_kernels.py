"""Kernels of this machine's core: whether time follows the bits, bandwidth reached, and peers (see kernel_peers.py).

    python benchmarks/arm_kernels.py [--quick] [--json FILE]

Weights are cold, repeats of all candidates are interleaved, figures are medians of single calls. A ratio above 1 means
that ours is better; the peers' weights carry scales for groups of 32 to 256, ours one scale a channel.
"""

import os
import tempfile
from pathlib import Path
from statistics import median, stdev

import click
from kernel_peers import Case, Peer, build_ggml, peers
from rows import Row, show, write

from wattbit.tvm_schedules.cores import Core, host_core
from wattbit.tvm_schedules.timing import Product, Timer
from wattbit.tvm_schedules.toolchain import emit_objects, kernels_for, link_library

SHAPES = ((4096, 1024), (11008, 4096), (14336, 4096))  # rows, depth
WIDTHS = (8, 6, 4, 3, 2)
FOLLOWS, BANDWIDTH, PEER = 0.9, 0.9, 1.0  # the goals
CALL_BYTES = 100_000_000  # a candidate's calls of one repeat read about so much
CACHE = Path(os.environ.get("WATTBIT_CACHE", Path.home() / ".cache" / "wattbit")) / "peers"


def build(core: Core, out: Path) -> None:
    kernels = kernels_for(WIDTHS)
    with tempfile.TemporaryDirectory() as name:
        emit_objects(kernels, core, Path(name))
        link_library(kernels, core, Path(name), out)


def measure(candidates: dict[str, Peer], calls: dict[str, int], repeats: int) -> dict[str, list[float]]:
    """Seconds of each candidate's calls, the candidates in turns."""
    seconds: dict[str, list[float]] = {name: [] for name in candidates}
    for repeat in range(repeats + 1):
        for name, candidate in candidates.items():
            taken = candidate(calls[name])
            seconds[name] += taken if repeat else []  # the first repeat warms up
    return seconds


def row(case: str, metric: str, ours: list[float], peer: list[float], name: str, goal: float | None) -> Row:
    """Times of ours against a peer's: the ratio is how often ours fits into the peer's."""
    mine, other = median(ours), median(peer)
    spread = tuple(stdev(each) if len(each) > 1 else 0.0 for each in (ours, peer))
    return Row(case, metric, mine, spread[0], other, spread[1], name, other / mine, goal, "measured", (0,))


def compare(
    library: Path, core: Core, shape: tuple[int, int], threads: int, repeats: int, ggml: Path | None
) -> list[Row]:
    rows, depth = shape
    case = f"{core.name}, {rows}x{depth}, {threads} thread{'s' * (threads > 1)}"
    with Timer(library, core.name, threads) as timer:
        candidates: dict[str, Peer] = {}
        for bits in WIDTHS:
            product = Product(bits, rows, depth)
            size = timer.weight_bytes(product)
            candidates[f"ours {bits}"] = lambda calls, product=product: timer.products(product, calls)  # type: ignore[misc]
            candidates[f"read {bits}"] = lambda calls, size=size: timer.readings(size, calls)  # type: ignore[misc]
        others = {bits: dict(peers(Case(bits, rows, depth, threads), ggml)) for bits in WIDTHS}
        for each in others.values():
            candidates |= each
        calls = dict.fromkeys(candidates, max(4, CALL_BYTES // (rows * depth)))
        times = measure(candidates, calls, repeats)
    found = []
    for bits in WIDTHS:
        ours = times[f"ours {bits}"]
        if bits < 8:
            found.append(
                row(case, f"time at {bits} bits, s", ours, times["ours 8"], "ours at 8 bits", FOLLOWS * 8 / bits)
            )
        found.append(
            row(case, f"reading {bits}-bit weights, s", ours, times[f"read {bits}"], "reading alone", BANDWIDTH)
        )
        named = {name: times[name] for name in others[bits]}
        best = min(named, key=lambda name: median(named[name]), default=None)
        found += [
            row(
                case,
                f"time at {bits} bits, s",
                ours,
                taken,
                name + " (best)" * (name == best),
                PEER if name == best else None,
            )
            for name, taken in named.items()
        ]
    return found


@click.command(help=__doc__)
@click.option("--quick", is_flag=True, help="The smallest shape and few repeats: a look at what runs here.")
@click.option("--threads", multiple=True, type=int, help="Numbers of threads; one and all cores if not given.")
@click.option("--json", "path", type=click.Path(path_type=Path, dir_okay=False), help="Write the rows to this file.")
def main(quick: bool, threads: tuple[int, ...], path: Path | None) -> None:
    core = host_core()
    ggml = build_ggml(CACHE)
    if isinstance(ggml, str):
        click.echo(ggml)
    rows = []
    with tempfile.TemporaryDirectory() as name:
        library = Path(name) / "kernels.so"
        build(core, library)
        for count in threads or (1, os.cpu_count() or 1):
            for shape in SHAPES[:1] if quick else SHAPES:
                found = compare(
                    library, core, shape, count, 2 if quick else 7, ggml if isinstance(ggml, Path) else None
                )
                show(found)
                rows += found
    if path:
        write(rows, path)


if __name__ == "__main__":
    main()
