"""Depths of the shell's FIFOs, found by simulating one design with each; and how near ports and engines are to a peak.

    python benchmarks/fpga_fifos.py [--quick] [--json FILE]

Two streamed engines and one on the chip share a launch of 256 tokens, each routed to two of 32 experts whose
frequencies fall as 1/rank; the RTL is what is deployed, the experts are random. Swept are the vectors that wait for
each engine, and the words that a weight port requests ahead, at several memory latencies. `chosen` is what `hls.shell`
takes for this design. A ratio is the least possible number of cycles over that of the simulation: the longest that any
datapath computes, at a weight word a cycle, or any weight port loads, at a beat a cycle, start and end not counted.
"""

import tempfile
from collections.abc import Sequence
from pathlib import Path

import click
import numpy as np
from numpy.typing import NDArray
from rows import Benchmark, Row, mean_std, show, write

from wattbit.arith import ExpertInts, forward
from wattbit.hls.accelerator import Accelerator, verilate
from wattbit.hls.compare import images_of
from wattbit.hls.engine import write_engine
from wattbit.hls.engine_class import EngineClass
from wattbit.hls.shell import AHEAD_WORDS, build_shell, queue_words
from wattbit.plan import ExpertId, ExpertShape, Precision

PART = "xc7z020clg400-1"
SHAPE = ExpertShape(64, 64)
WORDS = SHAPE.d_model // 8
TOKENS, TOP_K, EXPERTS = 256, 2, 32
LATENCIES = (1, 30, 60, 100)  # cycles to the first beat of a read
SEEDS = (0, 1, 2)  # of the routing
GOAL = 0.9

Indices = NDArray[np.int64]
Launch = tuple[Indices, Indices]
"""Engine and set of each vector."""


def random_expert(expert: ExpertId, precision: Precision) -> ExpertInts:
    rng = np.random.default_rng(expert.expert)
    top = 2 ** (precision.weight_bits - 1) - 1
    w1 = rng.integers(-top, top + 1, (SHAPE.d_hidden, SHAPE.d_model)).astype(np.int8)
    w2 = rng.integers(-top, top + 1, (SHAPE.d_model, SHAPE.d_hidden)).astype(np.int8)
    m1, m2 = (rng.integers(1000, 2000, len(w)).astype(np.int32) for w in (w1, w2))
    return ExpertInts(expert, precision, w1, w2, m1, m2, 20, 20, -4, -4, -4)


class Design:
    """Engines of one launch's experts, and shells around them."""

    def __init__(self, parallelism: int, folder: Path) -> None:
        p, ids = parallelism, [ExpertId(0, i) for i in range(EXPERTS)]
        specs = (
            EngineClass(Precision(8), p, p, p, p, tuple(ids[::4]), home="stream"),
            EngineClass(Precision(4), p, p, p, p, tuple(ids[1::2]), home="stream"),
            EngineClass(Precision(2), p, p, p, p, tuple(ids[2::4])),
        )
        self.folder = folder
        self.ints = [[random_expert(expert, spec.precision) for expert in spec.experts] for spec in specs]
        self.engines = [write_engine(i, s, folder / "engines", PART) for i, s in zip(self.ints, specs, strict=True)]
        self.times = [(engine.spec.cycles_per_vector(SHAPE), engine.beats) for engine in self.engines]
        self.chosen = [queue_words(WORDS, *times) for times in self.times]

    def build(self, queues: list[int], ahead: int) -> Path:
        name = "-".join(map(str, (*queues, ahead)))
        shell = build_shell(self.engines, SHAPE.d_model, "0", self.folder / name / "shell", queues, ahead)
        return verilate(shell, self.folder / name, "x86_64", runtime=self.folder)

    def cycles(self, library: Path, latency: int, launch: Launch) -> int:
        """Of a launch of random vectors; its results are checked."""
        x = np.random.default_rng(0).integers(-128, 128, (len(launch[0]), SHAPE.d_model)).astype(np.int8)
        with Accelerator(library, images=images_of(self.engines)) as accelerator:
            accelerator.set_latency(latency, latency)
            y, cycles = accelerator.run(*launch, x)
        want = [forward(self.ints[e][i], row[None])[0] for e, i, row in zip(*launch, x, strict=True)]
        assert np.array_equal(y, want)
        return cycles

    def least(self, launch: Launch) -> int:
        """Cycles that no launch can beat: each expert in use is loaded, each vector computed."""
        engine, index = launch
        busy = [0]
        for n, (vector, load) in enumerate(self.times):
            mine = index[engine == n]
            busy += [vector * len(mine), load * len(np.unique(mine))]
        return max(busy)

    def routed(self, seed: int) -> Launch:
        rng = np.random.default_rng(seed)
        frequency = rng.permutation(1 / np.arange(1, EXPERTS + 1))
        frequency /= frequency.sum()
        drawn = np.concatenate([rng.choice(EXPERTS, TOP_K, replace=False, p=frequency) for _ in range(TOKENS)])
        experts = [engine.spec.experts for engine in self.engines]
        places = {one.expert: (e, i) for e, ids in enumerate(experts) for i, one in enumerate(ids)}
        engine, index = np.array([places[int(one)] for one in drawn]).T
        return engine, index

    def visit(self, engine: int, each: int) -> Launch:
        """`each` vectors for every expert of an engine."""
        index = np.repeat(np.arange(len(self.engines[engine].spec.experts)), each)
        return np.full_like(index, engine), index


def row(case: str, metric: str, cycles: Sequence[int], least: Sequence[int], goal: float | None = None) -> Row:
    (ours, ours_std), (peer, peer_std), seeds = mean_std(cycles), mean_std(least), SEEDS[: len(cycles)]
    return Row(case, metric, ours, ours_std, peer, peer_std, "the least", peer / ours, goal, "simulated", seeds)


def measure(design: Design, libraries: dict[str, Path], latency: int) -> list[Row]:
    case = f"memory latency of {latency} cycles"
    launches = [design.routed(seed) for seed in SEEDS]
    least = [design.least(launch) for launch in launches]
    rows = [
        row(case, f"cycles of a launch, {tried}", [design.cycles(library, latency, one) for one in launches], least)
        for tried, library in libraries.items()
    ]
    for n, (engine, (_, load)) in enumerate(zip(design.engines, design.times, strict=True)):
        launch = design.visit(n, 1 if load else 20)
        what = f"a weight port at its limit, {len(launch[0])} loads" if load else f"an engine, {len(launch[0])} vectors"
        cycles = design.cycles(libraries["chosen"], latency, launch)
        rows.append(row(case, f"cycles of {what}, {engine.module}", [cycles], [design.least(launch)], GOAL))
    return rows


@click.command(cls=Benchmark, help=__doc__)
@click.option("--quick", is_flag=True, help="Small engines and two depths: some two minutes.")
@click.option("--json", "path", type=click.Path(path_type=Path, dir_okay=False), help="Write the rows to this file.")
def main(quick: bool, path: Path | None) -> None:
    depths = (2,) if quick else (2, 4, 8, 64)  # vectors
    aheads = () if quick else (32, 64)  # words
    with tempfile.TemporaryDirectory(prefix="wattbit-fifos-") as name:
        design = Design(4 if quick else 8, Path(name))
        tried = {f"{n} vectors wait": ([n * WORDS] * len(design.engines), AHEAD_WORDS) for n in depths}
        tried |= {"chosen": (design.chosen, AHEAD_WORDS)}
        tried |= {f"{n} words ahead": (design.chosen, n) for n in aheads}
        libraries = {}
        for at, (case, (queues, ahead)) in enumerate(tried.items()):
            click.echo(f"{at + 1}/{len(tried)} {case}: queues of {queues} words, {ahead} words ahead", err=True)
            libraries[case] = design.build(queues, ahead)
        found = [measure(design, libraries, latency) for latency in LATENCIES]
    for rows in found:
        show(rows)
    if path:
        write([one for rows in found for one in rows], path)


if __name__ == "__main__":
    main()
