"""Mixed-precision expert kernels on an NVIDIA GPU: bytes a second by width and shape, and peers.

    python benchmarks/gpu_experts.py [--quick] [--json FILE] [--part PART ..]

It needs a CUDA device. Ratios are medians of interleaved repeats. Whole layers and the policy: `gpu_layers.py`.
"""

from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path

import click
import gpu_peers as peers
import torch
from gpu_timing import Call, Reading, bandwidth, routed, row, times
from rows import Benchmark, Row, show, write

from wattbit.tvm_schedules.gpu.bank import Bank, Shape, matrix_bytes
from wattbit.tvm_schedules.gpu.device import find_card
from wattbit.tvm_schedules.gpu.layer import Layer
from wattbit.tvm_schedules.gpu.packing import GPU_WIDTHS, GpuLayout

SHAPES = {  # name: shape, experts a token
    "Mixtral 8x7B": (Shape(8, 4096, 14336), 2),
    "OLMoE": (Shape(64, 2048, 1024), 8),
    "Qwen1.5-MoE-A2.7B": (Shape(60, 2048, 1408), 4),
}
MATRICES = ((14336, 4096), (4096, 14336), (2048, 1024), (1024, 2048))
BIG_LAUNCH = 30e6  # bytes, from which the issue asks for 0.85 of the bandwidth
PARTS = ("widths", "batches", "peers")
BANDWIDTH = "bf16 sum"


def launches(shape: Shape, top_k: int, bits: int) -> tuple[list[Call], list[Call]]:
    """Calls of `up` and of `down` at one token, over experts in turn."""
    bank = Bank.random(shape, (bits,), torch.device("cuda"))
    made = [routed(bank, top_k, first=first) for first in range(0, shape.experts, top_k)]
    return [partial(layer.up, x) for layer, x in made], [layer.down for layer, _ in made]


def width_rows(reading: Reading, repeats: int) -> list[Row]:
    """Bytes a second by width, shape and launch at one token: as a share of the card's read bandwidth, and of what a
    launch that only reads as many bytes reaches."""
    rows = []
    for name, (shape, top_k) in SHAPES.items():
        for bits in GPU_WIDTHS:
            up, down = launches(shape, top_k, bits)
            timed = times({"up": up, "down": down}, repeats)
            for part, (matrix_rows, depth) in (("up", shape.up), ("down", shape.down)):
                size = top_k * matrix_bytes(matrix_rows, GpuLayout(bits, depth, shape.group))
                rate = size / timed[part].us * 1e6
                spread = rate * timed[part].std / timed[part].us
                case = f"{name}, {bits} bit, {part}, {size / 1e6:.1f} MB a launch"
                goal = 0.85 if size >= BIG_LAUNCH else None
                most, floor = reading.sum_bytes_s, size / reading.launch_us(size) * 1e6
                rows.append(row(case, "bytes/s", rate, spread, most, None, BANDWIDTH, rate / most, goal))
                rows.append(row(case, "bytes/s", rate, spread, floor, None, "reading as much", rate / floor, None))
            torch.cuda.empty_cache()
    return rows


def matrix_rows(matrix: int, depth: int, repeats: int, say: Callable[[str], None]) -> list[Row]:
    """One matrix at one token: ours, with a scale a row and in groups of 128, against peers at the same width."""
    rows = []
    x = torch.randn(1, depth, device="cuda").to(torch.bfloat16)
    for bits in (8, 4, 2):
        cases: dict[str, Sequence[Call]] = {}
        for name, group in (("ours", 0), (f"ours g{peers.GROUP}", peers.GROUP)):
            cases[name] = _one_matrix(matrix, depth, bits, group)
        for name, make in _peers(matrix, depth, bits, x).items():
            made_peer = peers.prepare(make)
            if isinstance(made_peer, str):
                say(f"{name} at {matrix}x{depth}: {made_peer}")
            else:
                cases[name] = made_peer
        timed = times(cases, repeats)
        for name in [name for name in cases if not name.startswith("ours")]:
            goal = None
            if name == "gemlite":
                goal = 2.0 if bits < 8 and max(matrix, depth) == 14336 else 1.2
            for own in ("ours", f"ours g{peers.GROUP}"):
                mine, theirs, case = timed[own], timed[name], f"{matrix}x{depth}, {bits} bit, {own}"
                ratio = theirs.us / mine.us
                rows.append(row(case, "us", mine.us, mine.std, theirs.us, theirs.std, name, ratio, goal))
        torch.cuda.empty_cache()
    return rows


def _one_matrix(matrix: int, depth: int, bits: int, group: int) -> list[Call]:
    """Calls on one matrix of an expert: the first of a wide expert, or the second where it has fewer rows."""
    experts = peers.copies(matrix * depth * bits / 8)
    second = matrix < depth
    shape = Shape(experts, matrix if second else depth, depth if second else matrix, swiglu=False, group=group)
    bank = Bank.random(shape, (bits,), torch.device("cuda"))
    made = [routed(bank, 1, first=e) for e in range(experts)]
    return [layer.down if second else partial(layer.up, x) for layer, x in made]


def _peers(matrix: int, depth: int, bits: int, x: torch.Tensor) -> dict[str, Callable[[], list[Call]]]:
    found: dict[str, Callable[[], list[Call]]] = {"gemlite": partial(peers.gemlite, matrix, depth, x, bits)}
    if bits == 8:
        found["torch int8"] = partial(peers.torch_int8, matrix, depth, x)
        found["torch bf16"] = partial(peers.bf16, matrix, depth, x)
    if bits == 4:
        found["torch int4"] = partial(peers.torch_int4, matrix, depth, x)
    return found


def batch_rows(repeats: int, batches: Sequence[int], say: Callable[[str], None]) -> list[Row]:
    """First and second product of a layer at several batches against torch's bfloat16 grouped product."""
    rows = []
    for name in ("Mixtral 8x7B", "OLMoE"):
        shape, top_k = SHAPES[name]
        for bits in (8, 4, 2):
            bank = Bank.random(shape, (bits,), torch.device("cuda"))
            for tokens in batches:
                layers = []
                for seed in range(4):
                    torch.manual_seed(seed)
                    router = torch.randn(shape.experts, shape.d_model, device="cuda").to(torch.bfloat16)
                    x = torch.randn(tokens, shape.d_model, device="cuda").to(torch.bfloat16)
                    layer = Layer(bank, router, top_k, tokens)
                    layer(x)
                    layers.append((layer, x))
                counts = (layers[0][0].slot_pairs >= 0).sum(dim=1).tolist()
                counts += [0] * (shape.experts - len(counts))
                ours = [partial(_experts, layer, x) for layer, x in layers]
                grouped_up = peers.prepare(partial(peers.grouped, shape.experts, *shape.up, counts))
                grouped_down = peers.prepare(partial(peers.grouped, shape.experts, *shape.down, counts))
                if isinstance(grouped_up, str) or isinstance(grouped_down, str):
                    say(f"grouped_mm at {tokens} tokens: {grouped_up}, {grouped_down}")
                    continue
                both = [partial(_both, a, b) for a, b in zip(grouped_up, grouped_down, strict=True)]
                timed = times({"ours": ours, "grouped": both}, repeats)
                case, mine, theirs = f"{name}, {bits} bit, {tokens} tokens", timed["ours"], timed["grouped"]
                ratio = theirs.us / mine.us
                rows.append(
                    row(case, "us", mine.us, mine.std, theirs.us, theirs.std, "torch bf16 grouped_mm", ratio, None)
                )
                del layers, ours, grouped_up, grouped_down, both
                torch.cuda.empty_cache()
    return rows


def _experts(layer: Layer, x: torch.Tensor) -> None:
    layer.up(x)
    layer.down()


def _both(first: Call, second: Call) -> None:
    first()
    second()


def plot(rows: Sequence[Row], path: Path) -> None:
    """Share of the read bandwidth over the bytes of a launch, by width."""
    from matplotlib import pyplot as plt

    from wattbit.plots import COLOURS, save

    figure, panel = plt.subplots(figsize=(5.8, 3.8))
    for place, bits in enumerate(GPU_WIDTHS):
        mine = [one for one in rows if f", {bits} bit, " in one.case and one.peer_name == BANDWIDTH]
        sizes = [float(one.case.rsplit(", ", 1)[1].split()[0]) for one in mine]
        panel.scatter(sizes, [one.ratio for one in mine], label=f"{bits} bit", color=COLOURS[place])
    panel.axhline(0.85, color="black", linewidth=0.8, linestyle="--")
    panel.set_xscale("log")
    panel.set_xlabel("MB a launch")
    panel.set_ylabel("bytes/s over the read bandwidth (measured)")
    panel.legend(frameon=False)
    panel.grid(alpha=0.3)
    save(figure, path)


@click.command(cls=Benchmark, help=__doc__)
@click.option("--quick", is_flag=True, help="Few repeats: under 3 minutes.")
@click.option("--json", "path", type=click.Path(path_type=Path, dir_okay=False), help="Write the rows to this file.")
@click.option("--part", "parts", type=click.Choice(PARTS), multiple=True, default=PARTS, help="Only these parts.")
def main(quick: bool, path: Path | None, parts: tuple[str, ...]) -> None:
    find_card()
    repeats = 3 if quick else 15
    reading = bandwidth(repeats)
    click.echo(f"{torch.cuda.get_device_name()} reads a bfloat16 sum at {reading.sum_bytes_s / 1e9:.0f} GB/s")
    for size, us in reading.us.items():
        click.echo(f"a launch that only reads {size / 1e6:.1f} MB: {us:.2f} us, {size / us / 1e3:.0f} GB/s")
    rows: list[Row] = []

    def keep(found: list[Row]) -> None:
        for case in dict.fromkeys(one.case for one in found):
            show([one for one in found if one.case == case])
        rows.extend(found)
        if path:
            write(rows, path)

    if "widths" in parts:
        keep(width_rows(reading, repeats))
        if path:
            plot(rows, path.with_suffix(".svg"))
    if "batches" in parts:
        keep(batch_rows(repeats, (1, 64) if quick else (1, 4, 16, 64), click.echo))
    if "peers" in parts:
        for matrix, depth in MATRICES:
            keep(matrix_rows(matrix, depth, repeats, click.echo))


if __name__ == "__main__":
    main()
