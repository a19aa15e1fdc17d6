"""Depths of the shell's FIFOs, found by simulating one design with each: cycles of a launch against the deepest.

    python benchmarks/fpga_fifos.py [--quick] [--json FILE]

Two streamed engines and one on the chip share a launch of 256 tokens, each routed to two of 32 experts whose
frequencies fall as 1/rank; the RTL is what is deployed, the experts are random. Swept are the vectors that wait for
each engine, and the words that a weight port requests ahead, at several memory latencies. A ratio of 1 means that
deeper brings nothing; `chosen` marks what `hls.shell` takes for this design.
"""

import tempfile
from pathlib import Path

import click
import numpy as np
from rows import Row, show, write

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
TOKENS, TOP_K = 256, 2
LATENCIES = (20, 60, 100)  # cycles to the first beat of a read
SEEDS = (0, 1, 2)  # of the routing


def random_expert(expert: ExpertId, precision: Precision) -> ExpertInts:
    rng = np.random.default_rng(expert.expert)
    top = 2 ** (precision.weight_bits - 1) - 1
    w1, w2 = (
        rng.integers(-top, top + 1, shape).astype(np.int8)
        for shape in ((SHAPE.d_hidden, SHAPE.d_model), (SHAPE.d_model, SHAPE.d_hidden))
    )
    m1, m2 = (rng.integers(1000, 2000, len(w)).astype(np.int32) for w in (w1, w2))
    return ExpertInts(expert, precision, w1, w2, m1, m2, 20, 20, -4, -4, -4)


class Design:
    """Engines of one launch's experts, and shells around them."""

    def __init__(self, parallelism: int, folder: Path) -> None:
        p, experts = parallelism, [ExpertId(0, i) for i in range(32)]
        specs = (
            EngineClass(Precision(8), p, p, p, p, tuple(experts[::4]), home="stream"),
            EngineClass(Precision(4), p, p, p, p, tuple(experts[1::4] + experts[3::4]), home="stream"),
            EngineClass(Precision(2), p // 2, p // 2, p // 2, p // 2, tuple(experts[2::4])),
        )
        self.folder = folder
        self.ints = {e: random_expert(e, spec.precision) for spec in specs for e in spec.experts}
        self.places = {e: (n, i) for n, spec in enumerate(specs) for i, e in enumerate(spec.experts)}
        self.engines = [write_engine([self.ints[e] for e in s.experts], s, folder / "engines", PART) for s in specs]

    def build(self, queues: list[int], ahead: int) -> Path:
        name = "-".join(map(str, (*queues, ahead)))
        shell = build_shell(self.engines, SHAPE.d_model, "0", self.folder / name / "shell", queues, ahead)
        return verilate(shell, self.folder / name, "x86_64", runtime=self.folder)

    def cycles(self, library: Path, latency: int) -> list[int]:
        """Of a launch of each seed's routing; its results are checked."""
        return [self._launch(library, latency, seed) for seed in SEEDS]

    def _launch(self, library: Path, latency: int, seed: int) -> int:
        rng = np.random.default_rng(seed)
        frequency = 1 / np.arange(1, 33)
        frequency = rng.permutation(frequency / frequency.sum())
        routed = np.concatenate([rng.choice(32, TOP_K, replace=False, p=frequency) for _ in range(TOKENS)])
        x = rng.integers(-128, 128, (len(routed), SHAPE.d_model)).astype(np.int8)
        engine, index = np.array([self.places[ExpertId(0, int(e))] for e in routed]).T
        with Accelerator(library, images=images_of(self.engines)) as accelerator:
            accelerator.set_latency(latency, latency)
            y, cycles = accelerator.run(engine, index, x)
        want = np.concatenate(
            [forward(self.ints[ExpertId(0, int(e))], row[None]) for e, row in zip(routed, x, strict=True)]
        )
        assert np.array_equal(y, want)
        return cycles


@click.command(help=__doc__)
@click.option("--quick", is_flag=True, help="Small engines and three depths: some two minutes.")
@click.option("--json", "path", type=click.Path(path_type=Path, dir_okay=False), help="Write the rows to this file.")
def main(quick: bool, path: Path | None) -> None:
    depths = (2, 8, 64) if quick else (2, 4, 8, 16, 64)  # vectors
    aheads = (AHEAD_WORDS,) if quick else (32, 64, 128, 256)
    rows: list[Row] = []
    with tempfile.TemporaryDirectory(prefix="wattbit-fifos-") as name:
        design = Design(4 if quick else 8, Path(name))
        chosen = [queue_words(WORDS, e.spec.cycles_per_vector(SHAPE), e.beats) for e in design.engines]
        tried = {f"{n} vectors wait": ([n * WORDS] * len(chosen), AHEAD_WORDS) for n in depths}
        tried |= {"chosen": (chosen, AHEAD_WORDS)}
        tried |= {f"{n} words ahead": (chosen, n) for n in aheads if n != AHEAD_WORDS}
        deepest = f"{depths[-1]} vectors wait"
        libraries = {}
        for at, (case, (queues, ahead)) in enumerate(tried.items()):
            click.echo(f"{at + 1}/{len(tried)} {case}: queues of {queues} words, {ahead} words ahead", err=True)
            libraries[case] = design.build(queues, ahead)
        for latency in LATENCIES:
            peer = design.cycles(libraries[deepest], latency)
            for case, library in libraries.items():
                rows.append(row(f"memory latency {latency}", case, design.cycles(library, latency), deepest, peer))
    for latency in LATENCIES:
        show([one for one in rows if one.case == f"memory latency {latency}"])
    if path:
        write(rows, path)


def row(case: str, metric: str, ours: list[int], peer_name: str, peer: list[int]) -> Row:
    mean, other = float(np.mean(ours)), float(np.mean(peer))
    stds = (float(np.std(ours, ddof=1)), float(np.std(peer, ddof=1)))
    return Row(
        case, f"cycles, {metric}", mean, stds[0], other, stds[1], peer_name, other / mean, None, "simulated", SEEDS
    )


if __name__ == "__main__":
    main()
