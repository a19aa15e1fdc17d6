"""Decoding a whole model on this machine: mixed widths against static 8 and 4 bits, and against llama.cpp.

    python benchmarks/arm_decode.py [--quick] [--run FOLDER] [--threads N] [--cpu-time] [--json FILE]

Models have the shapes of Mixtral-8x7B and OLMoE-1B-7B with fewer layers, and a vocabulary cut by the same factor, so
that a layer's share of a token's time is the real one; weights are random, far more than the last-level cache holds,
and each token chooses other experts. The mixed allocation is random with a mean width at which the policy's fine-tuned
models are within 1 % of 8 bits' perplexity (2.75 bits: +0.7 % with 16 experts a layer, +0.3 % with 64;
results/methods.md), for random weights have no perplexity to choose by. Attention and output layer stay at 8 bits, or
take narrower ones; with --run, what these cost in perplexity is measured on a run's model, and the policy's own
allocation of it decodes as well, beside its uniform ones; it fits in the cache, where widths save little time. All
variants decode in turn in one run; a ratio above 1 means that mixed is better.
"""

import os
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from functools import partial
from itertools import product
from pathlib import Path
from statistics import median, stdev

import click
import numpy as np
import torch
from rows import Benchmark, Row, show, write

from wattbit.errors import WattbitError
from wattbit.files import read_json
from wattbit.models.config import GatedConfig
from wattbit.models.gated import decoder_config, matrix_bits, quantize_weights, rope, shapes
from wattbit.models.learner import MoELearner
from wattbit.models.portable import decoder
from wattbit.plan import Allocation
from wattbit.run import Run
from wattbit.tvm_schedules.cores import Core, host_core
from wattbit.tvm_schedules.model import format as weights_file
from wattbit.tvm_schedules.model.format import DecoderConfig, Item
from wattbit.tvm_schedules.model.pack import LIBRARY, WEIGHTS, layout_words, link, write_record
from wattbit.tvm_schedules.model.pack import build as build_decoder
from wattbit.tvm_schedules.model.runtime import Decoder
from wattbit.tvm_schedules.model.source import SourceFile
from wattbit.tvm_schedules.toolchain import kernels_for

MIXTRAL = GatedConfig(1000, 4096, 14336, 1, 32, 8, 128, 8, 2, 512)
OLMOE = GatedConfig(9432, 2048, 1024, 3, 16, 16, 128, 64, 8, 512, renormalize=False, qk_norm="whole")
QUICK = GatedConfig(4000, 1024, 1024, 2, 8, 8, 128, 32, 4, 512)
WIDTHS = (2, 3, 4, 6, 8)
MEAN_BITS = 2.75
WIDE, NARROW = (8, 8), (5, 6)
MIXED, NARROWER = "mixed", "mixed, attention 5 and output layer 6 bits"
REPEATS = 7

Step = Callable[[int], int]
"""Takes a token in and returns the likeliest next one."""
Clock = Callable[[], float]


Backbone = tuple[int, int]
"""Bits of attention and of the output layer."""


@dataclass(frozen=True)
class Variant:
    """One model to be timed. token_bytes: weights that a token reads, 0 where that is not told."""

    name: str
    step: Step
    token_bytes: float


def mixed(config: GatedConfig, seed: int) -> Allocation:
    """Random widths of WIDTHS whose mean is MEAN_BITS in every layer."""
    rng = np.random.default_rng(seed)
    bits: list[int] = []
    for _ in range(config.layers):
        layer = rng.choice(WIDTHS, config.experts)
        while layer.mean() != MEAN_BITS:
            layer[rng.integers(config.experts)] = rng.choice(WIDTHS[:2] if layer.mean() > MEAN_BITS else WIDTHS[1:])
        bits += layer.tolist()
    return Allocation.of(dict(zip(config.expert_ids, bits, strict=True)), engine="host")


def uniform(config: GatedConfig, bits: int) -> Allocation:
    return Allocation.of(dict.fromkeys(config.expert_ids, bits), engine="host")


class RandomWeights:
    """Items of a weights file: random integers, packed without ever being unpacked."""

    def __init__(self, config: GatedConfig, allocation: Allocation, backbone: Backbone, core: Core) -> None:
        self.config = DecoderConfig.from_json(decoder_config(config))
        self.shapes = {name: (shape[0], 1) if len(shape) == 1 else shape for name, shape in shapes(config).items()}
        found = {name: matrix_bits(name, allocation, *backbone) for name in self.shapes}
        self.bits = {name: bits for name, bits in found.items() if bits is not None}
        self._core, self._rope = core, dict(zip(("rope.cos", "rope.sin"), rope(config), strict=True))
        self._rng = np.random.default_rng(0)

    def items(self) -> Iterator[Item]:
        for name, (rows, depth) in self.shapes.items():
            if name not in self.bits:
                yield Item(name, "float32", rows, depth, partial(self._floats, name, rows, depth))
                continue
            bits = self.bits[name]
            size = self._core.layout(bits).matrix_bytes(rows, depth)
            yield Item(name, "packed", rows, depth, partial(self._rng.bytes, size), bits)
            scale = np.full(rows, 1.0 / (2 ** (bits - 1) * depth**0.5), np.float32)
            yield Item(f"{name}.scale", "float32", rows, 1, scale.tobytes)
        for name, table in self._rope.items():
            rows, depth = table.shape
            yield Item(name, "float32", rows, depth, table.numpy().tobytes)

    def _floats(self, name: str, rows: int, depth: int) -> bytes:
        """Routers and embeddings are the same in every variant."""
        if depth == 1:
            return np.ones(rows, np.float32).tobytes()
        rng = np.random.default_rng(list(name.encode()))
        return (rng.standard_normal((rows, depth), np.float32) * np.float32(3 * depth**-0.5)).tobytes()


def build_random(config: GatedConfig, allocation: Allocation, backbone: Backbone, out: Path) -> Path:
    """A folder with a model of random weights for this machine."""
    core = host_core()
    source = RandomWeights(config, allocation, backbone, core)
    out.mkdir()
    link(kernels_for(source.bits.values(), grouped=False), core, out / LIBRARY)
    weights_file.write(out / WEIGHTS, source.config, layout_words(core), list(source.items()))
    write_record(core, out)
    return out


def token_bytes(config: GatedConfig, allocation: Allocation, backbone: Backbone) -> float:
    """Weights that a token reads, in bytes, on average over the experts."""
    found = 0.0
    for name, shape in shapes(config).items():
        bits = matrix_bits(name, allocation, *backbone)
        share = config.top_k / config.experts if ".experts." in name else 0 if name == "embedding" else 1
        found += share * float(np.prod(shape)) * (bits or 32) / 8
    return found


def ours(opened: Decoder) -> Step:
    def step(token: int) -> int:
        if opened.position == opened.config.context:
            opened.reset()
        return int(opened.feed([token]).argmax())

    return step


def llama_variants(config: GatedConfig, threads: int, folder: Path) -> list[Variant]:
    """The same shape in llama.cpp's formats; none where it is not installed."""
    try:
        from llama_cpp_peer import peer
    except ImportError as error:
        click.echo(f"no llama.cpp ({error}); pip install llama-cpp-python==0.3.36 gguf==0.19.0", err=True)
        return []
    formats = ("Q8_0", "Q4_0")
    return [Variant(f"llama.cpp {name}", peer(config, name, threads, folder / f"{name}.gguf"), 0) for name in formats]


def measure(case: str, config: GatedConfig, threads: int, tokens: int, clock: Clock, folder: Path) -> list[Row]:
    """Rows of a model of random weights."""
    with ExitStack() as stack:
        variants = []
        for name, allocation, backbone in (
            (MIXED, mixed(config, 0), WIDE),
            (NARROWER, mixed(config, 0), NARROW),
            ("static 8 bits", uniform(config, 8), WIDE),
            ("static 4 bits", uniform(config, 4), WIDE),
        ):
            built = build_random(config, allocation, backbone, folder / name.replace(" ", "-"))
            opened = stack.enter_context(Decoder(built, threads, check=False))
            variants.append(Variant(name, ours(opened), token_bytes(config, allocation, backbone)))
        variants += llama_variants(config, threads, folder)
        found = in_turn(variants, config.vocab_size, tokens, clock)
    return compare(case, MIXED, found) + compare(case, NARROWER, found)


def measure_run(run: Run, threads: int, tokens: int, clock: Clock, folder: Path) -> list[Row]:
    """Rows of a run's model: the policy's allocation against the uniform ones, each with its fine-tuned weights."""
    learner = MoELearner.open(run.path("data"), run.path("model"))
    methods = read_json(run.path("cotrain", "cotrain.json"))["methods"]
    perplexity = {}
    with ExitStack() as stack:
        variants = []
        for name, method in ((MIXED, "dmpq"), ("static 8 bits", "uniform8"), ("static 4 bits", "uniform4")):
            first = methods[method]["runs"][0]
            learner.load(run.path("cotrain", first["weights"]))
            out = folder / method
            decoder(learner, Allocation.from_json(first["allocation"])).save(out / "decoder.safetensors")
            build_decoder(SourceFile(out / "decoder.safetensors"), host_core().name, out)
            variants.append(Variant(name, ours(stack.enter_context(Decoder(out, threads))), 0))
            perplexity[name] = first["perplexity_after"]
            if name == MIXED:
                narrow = narrowed_perplexity(learner, Allocation.from_json(first["allocation"]))
        found = in_turn(variants, learner.config.vocab_size, tokens, clock)
    case = f"{run.config.preset} preset, its own text, {threads} threads"
    rows, seeds = compare(case, MIXED, found), (run.config.seed,)
    mine = perplexity.pop(MIXED)
    for (peer, theirs), (name, own) in product(perplexity.items(), ((MIXED, mine), (NARROWER, narrow))):
        goal = 1 / 1.01 if peer == "static 8 bits" else None
        metric = f"{name}: perplexity"
        rows.append(Row(case, metric, own, None, theirs, None, peer, theirs / own, goal, "measured", seeds))
    return rows


def narrowed_perplexity(learner: MoELearner, allocation: Allocation) -> float:
    """Perplexity with attention and embedding, which is the output layer too, rounded to NARROW, a scale a row."""
    network, (attention, head) = learner.network, NARROW
    widths = {part.weight: attention for block in network.layers for part in (block.attention.qkv, block.attention.out)}
    widths[network.embedding.weight] = head
    with torch.no_grad():
        for weight, bits in widths.items():
            integers, scale = quantize_weights(weight, bits, weight.shape[1])
            weight.copy_(integers.float() * scale)
    return learner.perplexity(allocation)


def in_turn(variants: list[Variant], vocabulary: int, tokens: int, clock: Clock) -> dict[str, list[float]]:
    """Seconds a token of every variant in every repeat, on the same random tokens: all experts are called for.

    The first repeat is not counted: it reads the weights from the disk.
    """
    found: dict[str, list[float]] = {variant.name: [] for variant in variants}
    rng = np.random.default_rng(1)
    for repeat in range(REPEATS + 1):
        given = [int(token) for token in rng.integers(vocabulary, size=tokens)]
        for variant in variants:
            begin_s = clock()
            for token in given:
                variant.step(token)
            if repeat:
                found[variant.name].append((clock() - begin_s) / tokens)
    for variant in variants:
        seconds = median(found[variant.name])
        rate = f", {variant.token_bytes / seconds / 1e9:.1f} GB/s of weights" if variant.token_bytes else ""
        click.echo(f"  {variant.name}: {1 / seconds:.2f} tokens/s{rate}")
    return found


def compare(case: str, mine: str, found: dict[str, list[float]]) -> list[Row]:
    """A mixed variant against each that is not, medians over the repeats."""
    rows = []
    for peer, seconds in found.items():
        if not peer.startswith("mixed"):
            a, b = median(found[mine]), median(seconds)
            goal = 2.0 if peer == "static 8 bits" else 1.0 if peer.startswith("llama.cpp") else None
            metric = f"{mine}: decode, s/token"
            rows.append(Row(case, metric, a, stdev(found[mine]), b, stdev(seconds), peer, b / a, goal, "measured", ()))
    return rows


@click.command(cls=Benchmark, help=__doc__)
@click.option("--quick", is_flag=True, help="A small model and few tokens.")
@click.option("--run", "folder", type=click.Path(path_type=Path, file_okay=False), help="Run to decode as well.")
@click.option("--threads", default=len(os.sched_getaffinity(0)), show_default=True, help="Threads of every variant.")
@click.option("--cpu-time", is_flag=True, help="Count CPU time: on a busy machine, with --threads 1.")
@click.option("--json", "path", type=click.Path(path_type=Path, dir_okay=False), help="Write the rows to this file.")
def main(quick: bool, folder: Path | None, threads: int, cpu_time: bool, path: Path | None) -> None:
    try:
        run = Run.open(folder) if folder else None
    except WattbitError as error:
        raise click.ClickException(str(error)) from None
    clock, time_is = (time.process_time, "of CPU time") if cpu_time else (time.perf_counter, "of wall time")
    cases = {"a small model": QUICK} if quick else {"Mixtral-8x7B, 1 layer": MIXTRAL, "OLMoE-1B-7B, 3 layers": OLMOE}
    tokens = 8 if quick else 24
    rows: list[Row] = []
    for name, config in cases.items():
        with tempfile.TemporaryDirectory() as scratch:
            case = f"{name}, {threads} threads, {time_is}"
            found = measure(case, config, threads, tokens, clock, Path(scratch))
        show(found)
        rows += found
    if run:
        with tempfile.TemporaryDirectory() as scratch:
            found = measure_run(run, threads, 10 * tokens, clock, Path(scratch))
        show(found)
        rows += found
    if path:
        write(rows, path)


if __name__ == "__main__":
    main()
