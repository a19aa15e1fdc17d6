"""Memory and time of quantizing a checkpoint layer by layer.

    python benchmarks/streaming.py [--quick] [--json FILE]

The checkpoint has OLMoE-1B-7B's widths in bfloat16, random weights, and fewer layers and experts: what is asked is that
memory does not grow with the layers. Each run has a process of its own; its peak is the largest anonymous memory
(RssAnon, read every 5 ms) above what the imports took, so that mapped pages of the shards, which the kernel can drop,
do not count. It is held against the size of the weights, which is the least that a model in memory takes.
"""

import multiprocessing
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from statistics import fmean, stdev
from tempfile import TemporaryDirectory

import click
import torch
import transformers
from rows import Benchmark, Row, show, write
from safetensors.torch import save_file
from torch import Tensor, nn

from wattbit.files import write_json
from wattbit.models.checkpoint import INDEX, Checkpoint
from wattbit.models.families.streaming import checkpoint_experts, quantize_checkpoint
from wattbit.plan import Allocation
from wattbit.recipe import Quantizer, Recipe

SEEDS = (0, 1, 2)
BITS, GROUP = 4, 128
CONTEXTS, LENGTH = 8, 256  # of GPTQ's calibration text
QUICK: tuple[tuple[Quantizer, int, int], ...] = (("rtn", 2, 4), ("rtn", 4, 4))  # layers, experts of each
CASES: tuple[tuple[Quantizer, int, int], ...] = (("rtn", 2, 16), ("rtn", 8, 16), ("gptq", 2, 4))


def make_checkpoint(folder: Path, layers: int, experts: int, seed: int) -> int:
    """Write a checkpoint in bfloat16, a shard a layer, and return the bytes of its weights."""
    torch.manual_seed(seed)
    config = transformers.OlmoeConfig(
        num_hidden_layers=layers, num_experts=experts, num_experts_per_tok=min(8, experts), dtype="bfloat16"
    )
    config.save_pretrained(folder)
    with torch.device("meta"):
        network = transformers.OlmoeForCausalLM(config)
    weight_map: dict[str, str] = {}
    total = 0
    parts = ["model.embed_tokens", "lm_head", "model.norm", *(f"model.layers.{i}" for i in range(layers))]
    for i, part in enumerate(parts):
        tensors = {name: draw(shape) for name, shape in stored(part, network.get_submodule(part), experts)}
        save_file(tensors, folder / f"model-{i:05}.safetensors", metadata={"format": "pt"})
        weight_map |= dict.fromkeys(tensors, f"model-{i:05}.safetensors")
        total += sum(tensor.nbytes for tensor in tensors.values())
    write_json(folder / INDEX, {"metadata": {"total_size": total}, "weight_map": weight_map})
    return total


def stored(prefix: str, module: nn.Module, experts: int) -> Iterator[tuple[str, tuple[int, ...]]]:
    """Names and shapes of a module's tensors as checkpoints have them."""
    for own, parameter in module.named_parameters():
        name, shape = f"{prefix}.{own}", tuple(parameter.shape)
        if own == "mlp.experts.gate_up_proj":
            for e in range(experts):
                for part in ("gate", "up"):
                    yield f"{prefix}.mlp.experts.{e}.{part}_proj.weight", (shape[1] // 2, shape[2])
        elif own == "mlp.experts.down_proj":
            yield from ((f"{prefix}.mlp.experts.{e}.down_proj.weight", shape[1:]) for e in range(experts))
        else:
            yield name, shape


def draw(shape: tuple[int, ...]) -> Tensor:
    found = torch.empty(shape, dtype=torch.bfloat16)
    return found.fill_(1) if len(shape) == 1 else found.uniform_(-0.03, 0.03)


def anonymous_bytes() -> int:
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith("RssAnon")) * 1024


@contextmanager
def watched() -> Iterator[Callable[[], int]]:
    """Greatest anonymous memory in the block above that at its begin."""
    begin, found, done = anonymous_bytes(), [0], threading.Event()

    def watch() -> None:
        while not done.wait(0.005):
            found[0] = max(found[0], anonymous_bytes() - begin)

    thread = threading.Thread(target=watch)
    thread.start()
    try:
        yield lambda: found[0]
    finally:
        done.set()
        thread.join()


def stream(folder: Path, out: Path, quantizer: Quantizer) -> tuple[int, float]:
    """Peak bytes and seconds of quantizing."""
    torch.set_num_threads(1)
    checkpoint = Checkpoint.open(folder)
    allocation = Allocation.of(dict.fromkeys(checkpoint_experts(checkpoint), BITS), engine="arm")
    text = torch.randint(0, checkpoint.config["vocab_size"], (CONTEXTS, LENGTH)) if quantizer == "gptq" else None
    begin_s = time.monotonic()
    with watched() as peak:
        quantize_checkpoint(checkpoint, Recipe("uniform", allocation, quantizer, GROUP), out, text)
    return peak(), time.monotonic() - begin_s


def apart(function: Callable[..., tuple[int, float]], *arguments: object) -> tuple[int, float]:
    """What a function returns in a new process."""
    with ProcessPoolExecutor(1, multiprocessing.get_context("spawn")) as pool:
        return pool.submit(function, *arguments).result()


@click.command(cls=Benchmark)
@click.option("--quick", is_flag=True, help="Small cases only.")
@click.option("--json", "path", type=click.Path(path_type=Path), help="Write the rows to this file.")
def main(quick: bool, path: Path | None) -> None:
    """Peak memory of quantizing layer by layer."""
    rows = []
    for quantizer, layers, experts in QUICK if quick else CASES:
        rows.append(measure(quantizer, layers, experts))
        show(rows[-1:])
    if path:
        write(rows, path)


def measure(quantizer: Quantizer, layers: int, experts: int) -> Row:
    peaks, seconds, total = [], [], 0
    for seed in SEEDS:
        with TemporaryDirectory() as name:
            folder = Path(name) / "model"
            folder.mkdir()
            total = make_checkpoint(folder, layers, experts, seed)
            peak, took_s = apart(stream, folder, Path(name) / "out", quantizer)
        peaks.append(peak / 1e6)
        seconds.append(took_s / layers)
    return Row(
        case=f"{quantizer} at {BITS} bits, {layers} layers of {experts} experts: {fmean(seconds):.1f} s a layer",
        metric="peak memory, MB",
        ours=fmean(peaks),
        ours_std=stdev(peaks),
        peer=total / 1e6,
        peer_std=None,
        peer_name="the weights' size",
        ratio=total / 1e6 / fmean(peaks),
        goal=None,
        provenance="measured",
        seeds=SEEDS,
    )


if __name__ == "__main__":
    main()
