"""Mixed-precision experts on an NVIDIA GPU: bytes a second, peers, whole layers, joules, and the policy on the card.

    python benchmarks/gpu_experts.py measure [--quick] [--json FILE] [--stats FILE] ..
    python benchmarks/gpu_experts.py perplexity RUN --chosen FILE --json FILE

`measure` needs a CUDA device. --stats is the stats.json of a run; each adds a layer of as many experts. `perplexity`
needs none: it fine-tunes the run's model at the widths that `measure` chose. Ratios are medians of interleaved repeats.
"""

import json
import statistics
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import click
import gpu_peers as peers
import torch
import triton
import triton.language as tl
from rows import Row, show, write

from wattbit.errors import WattbitError
from wattbit.files import read_json, write_json
from wattbit.plan import Allocation, ExpertStats, Meter, Workload
from wattbit.policy.search import SearchResult, SearchSettings, search
from wattbit.tvm_schedules.gpu.bank import Bank, Shape, matrix_bytes
from wattbit.tvm_schedules.gpu.device import find_card
from wattbit.tvm_schedules.gpu.layer import Layer
from wattbit.tvm_schedules.gpu.meter import GpuMeter, graph_of, reached_experts
from wattbit.tvm_schedules.gpu.model import GpuCostModel
from wattbit.tvm_schedules.gpu.packing import GPU_WIDTHS, GpuLayout

SHAPES = {  # name: shape, experts a token
    "Mixtral 8x7B": (Shape(8, 4096, 14336), 2),
    "OLMoE": (Shape(64, 2048, 1024), 8),
    "Qwen1.5-MoE-A2.7B": (Shape(60, 2048, 1408), 4),
}
MATRICES = ((14336, 4096), (4096, 14336), (2048, 1024), (1024, 2048))
LAYERS = {16: (Shape(16, 4096, 14336), 2), 64: SHAPES["OLMoE"]}  # by the number of experts in the statistics
BIG_LAUNCH = 30e6  # bytes, from which the issue asks for 0.85 of the bandwidth
LAUNCHES = 24  # at least, in one graph
PARTS = ("widths", "layers", "batches", "peers")

Call = Callable[[], object]


@triton.jit
def _read(x, out, SIZE: tl.constexpr):  # type: ignore[no-untyped-def]  # a Triton kernel
    """Reads SIZE words a program and does next to nothing with them."""
    words = tl.load(x + tl.program_id(0).to(tl.int64) * SIZE + tl.arange(0, SIZE))
    top = tl.max(words, axis=0)
    if top == 123456789:
        tl.store(out, top)


@dataclass(frozen=True)
class Timing:
    """Microseconds a call: median and standard deviation over repeats."""

    us: float
    std: float


def times(cases: Mapping[str, Sequence[Call]], repeats: int) -> dict[str, Timing]:
    """Time each case's calls, replayed in turn from a graph of its own; the cases are interleaved."""
    graphs = {}
    for name, calls in cases.items():
        rounds = -(-LAUNCHES // len(calls))

        def run(calls: Sequence[Call] = calls, rounds: int = rounds) -> None:
            for _ in range(rounds):
                for call in calls:
                    call()

        graphs[name] = graph_of(run), rounds * len(calls)
    found: dict[str, list[float]] = {name: [] for name in cases}
    for repeat in range(repeats + 1):
        for name, (graph, calls_in_graph) in graphs.items():
            begin, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
            begin.record()
            graph.replay()
            end.record()
            end.synchronize()
            if repeat:  # the first warms up
                found[name].append(begin.elapsed_time(end) * 1e3 / calls_in_graph)
    return {name: Timing(statistics.median(us), statistics.stdev(us)) for name, us in found.items()}


def bandwidth(repeats: int) -> dict[str, float]:
    """Bytes a second that the card reads: a bfloat16 sum, and a kernel that only reads, by bytes a launch."""
    data = torch.randn(2**31, dtype=torch.bfloat16, device="cuda")
    words, out = data.view(torch.int32), torch.zeros(1, dtype=torch.int32, device="cuda")
    found = {"sum": 2 * data.numel() / times({"sum": [data.sum]}, 3)["sum"].us * 1e6}
    for megabytes in (8, 15, 30, 60, 120, 240):
        count = megabytes * 250000 // 4096
        parts = [words[i * count * 4096 :] for i in range(max(1, min(16, words.numel() // (count * 4096))))]
        calls = [partial(_read[(count,)], part, out, SIZE=4096, num_warps=8) for part in parts]
        found[f"{megabytes} MB"] = count * 16384 / times({"read": calls}, repeats)["read"].us * 1e6
    return found


def routed(bank: Bank, top_k: int, tokens: int = 1, first: int = 0) -> tuple[Layer, torch.Tensor]:
    """A layer and an input that sends every token to experts first .. first + top_k - 1 of the bank."""
    shape = bank.shape
    router = torch.zeros(shape.experts, shape.d_model, device="cuda", dtype=torch.bfloat16)
    router[:, : shape.experts] = torch.eye(shape.experts)
    x = torch.randn(tokens, shape.d_model, device="cuda").to(torch.bfloat16)
    x[:, : shape.experts] = 0
    x[:, [(first + j) % shape.experts for j in range(top_k)]] = 8
    layer = Layer(bank, router, top_k, tokens)
    layer(x)
    return layer, x


def launches(shape: Shape, top_k: int, bits: int) -> tuple[list[Call], list[Call]]:
    """Calls of `up` and of `down` at one token, over experts in turn."""
    bank = Bank.random(shape, (bits,), torch.device("cuda"))
    made = [routed(bank, top_k, first=first) for first in range(0, shape.experts, top_k)]
    return [partial(layer.up, x) for layer, x in made], [layer.down for layer, _ in made]


def width_rows(sum_bytes_s: float, repeats: int) -> list[Row]:
    """Bytes a second by width, shape and launch at one token, as a share of the card's read bandwidth."""
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
                rows.append(_row(case, "bytes/s", rate, spread, sum_bytes_s, 0, "bf16 sum", rate / sum_bytes_s, goal))
            torch.cuda.empty_cache()
    return rows


def matrix_rows(repeats: int, say: Callable[[str], None]) -> list[Row]:
    """One matrix at one token: ours, with a scale a row and in groups of 128, against peers at the same width."""
    rows = []
    for matrix, depth in MATRICES:
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
                    rows.append(_row(case, "us", mine.us, mine.std, theirs.us, theirs.std, name, ratio, goal))
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
                    _row(case, "us", mine.us, mine.std, theirs.us, theirs.std, "torch bf16 grouped_mm", ratio, None)
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


def _row(
    case: str, metric: str, ours: float, std: float, peer: float, peer_std: float, name: str, ratio: float, goal: Any
) -> Row:
    return Row(case, metric, ours, std, peer, peer_std, name, ratio, goal, "measured", ())


@dataclass(frozen=True)
class Effort:
    """How long the layers' part takes."""

    samples: int = 36
    held_out: int = 18
    iterations: int = 30
    energy_iterations: int = 4
    window_s: float = 0.6
    seeds: tuple[int, ...] = (0, 1, 2)
    budget_bits: float = 3.5


def _layer_of(stats: Sequence[ExpertStats]) -> tuple[Shape, Workload]:
    """The layer that stands for a run with these statistics, and one token at a time through it."""
    experts = 1 + max(s.expert.expert for s in stats)
    if experts not in LAYERS:
        raise WattbitError(f"there is a layer of 16 and one of 64 experts, none of {experts}; take another run's stats")
    shape, top_k = LAYERS[experts]
    return shape, Workload(1000, top_k, tuple((s.expert, s.frequency) for s in stats), batch=1)


def layer_part(
    stats: Sequence[ExpertStats], effort: Effort, bytes_per_s: float, say: Callable[[str], None]
) -> tuple[list[Row], dict[str, Any]]:
    """A model's MoE layers at one token: calibration, policies on meter and models, and what each chose, measured."""
    shape, workload = _layer_of(stats)
    experts, top_k = shape.experts, workload.top_k
    meter = GpuMeter(shape, workload, GPU_WIDTHS, energy_s=0.3)  # every expert at every width
    reached = reached_experts(shape, workload)
    ids = [s.expert for s in sorted(stats, key=lambda s: s.expert)]
    generator = torch.Generator().manual_seed(1)

    def draw() -> Allocation:
        weights = torch.rand(len(GPU_WIDTHS), generator=generator) + 0.02
        picks = torch.multinomial(weights, len(ids), replacement=True, generator=generator).tolist()
        return Allocation.of({e: GPU_WIDTHS[k] for e, k in zip(ids, picks, strict=True)}, 8, "host")

    def sample(count: int) -> list[tuple[Allocation, float, float | None]]:
        drawn = [draw() for _ in range(count)]
        return [(a, reading.latency_s, reading.energy_j) for a in drawn for reading in [meter.read(a)]]

    model = GpuCostModel.calibrate(shape, reached, sample(effort.samples))
    errors = _errors(model, sample(effort.held_out))
    say(f"E={experts}: calibrated model on {effort.held_out} held-out allocations: {json.dumps(errors)}")
    roofline = GpuCostModel.roofline(shape, reached, bytes_per_s, GPU_WIDTHS)

    found = _policies(stats, workload, meter, model, roofline, effort)
    for name, result in found.items():
        say(f"E={experts}: policy on {name}: {result.priced} allocations priced")

    allocations = {f"static {bits} bit": Allocation.of(dict.fromkeys(ids, bits), 8, "host") for bits in (8, 4, 3, 2)}
    allocations |= {f"policy on {name}": result.best.allocation for name, result in found.items()}
    controls = found["measured latency"].methods
    allocations["random, same budget"] = controls["random"][0].allocation
    allocations["exact optimum of the damage"] = controls["exact"][0].allocation
    table = {name: _deployed(allocation, shape, workload, effort) for name, allocation in allocations.items()}
    base = table["static 8 bit"]
    rows = []
    for name, entry in table.items():
        case, bits = f"{experts} experts, one token, {name}", entry["mean_bits"]
        goal = 2.5 if name.startswith("policy on measured") else None
        ours, theirs = entry["us"], base["us"]
        rows.append(
            _row(case, f"us a layer at {bits:.2f} bit", ours, 0, theirs, 0, "static 8 bit", theirs / ours, goal)
        )
        if entry["mj"] is not None:
            ours, theirs = entry["mj"], base["mj"]
            rows.append(_row(case, "mJ a layer above idle", ours, 0, theirs, 0, "static 8 bit", theirs / ours, None))
    extra = {
        "shape": f"{shape.d_model}-{shape.d_hidden}-{shape.d_model} SwiGLU, top {top_k} of {experts}",
        "held_out_errors": errors,
        "model": model.to_json(),
        "table": table,
        "rewards": {n: {m: [o.reward for o in r.methods[m]] for m in r.methods} for n, r in found.items()},
        "priced": {name: result.priced for name, result in found.items()},
    }
    return rows, extra


def _policies(
    stats: Sequence[ExpertStats], workload: Workload, meter: GpuMeter, model: Meter, roofline: Meter, effort: Effort
) -> dict[str, SearchResult]:
    """Searches that see the same statistics and differ in who prices the hardware: the card, or a formula."""
    settings = SearchSettings(
        weight_bits=GPU_WIDTHS, budget_bits=effort.budget_bits, seeds=effort.seeds, iterations=effort.iterations
    )
    found = {"calibrated model": search(stats, model, workload, settings)}
    found["roofline"] = search(stats, roofline, workload, settings)
    meter.energy_s = 0.0
    found["measured latency"] = search(stats, meter, workload, settings)
    if meter.counter:
        meter.energy_s = 0.1
        with_energy = replace(
            settings, seeds=effort.seeds[:1], iterations=effort.energy_iterations, energy_nats=settings.latency_nats
        )
        found["measured latency and energy"] = search(stats, meter, workload, with_energy)
    return found


def _deployed(allocation: Allocation, shape: Shape, workload: Workload, effort: Effort) -> dict[str, Any]:
    """An allocation as it would run: a card that holds each expert at widths in use only, and kernels for these."""
    widths = sorted({p.precision.weight_bits for p in allocation.placements})
    own = GpuMeter(shape, workload, widths, energy_s=effort.window_s, repeats=15)
    reading = own.read(allocation)
    layers = len(own.layers)
    after = own.rest(effort.window_s / 2)
    watts = None
    if reading.busy and reading.idle and after:
        watts = {"busy": reading.busy.power_w, "idle before": reading.idle.power_w, "idle after": after.power_w}
    del own
    torch.cuda.empty_cache()
    return {
        "mean_bits": allocation.mean_bits,
        "us": reading.latency_s / layers * 1e6,
        "mj": None if reading.energy_j is None else reading.energy_j / layers * 1e3,
        "memory_bytes": sum(shape.weight_bytes(p.precision.weight_bits) for p in allocation.placements),
        "watts": watts,
        "allocation": allocation.to_json(),
    }


def _errors(model: GpuCostModel, held_out: Sequence[tuple[Allocation, float, float | None]]) -> dict[str, float]:
    """Mean and greatest relative error of latency and energy."""
    found: dict[str, list[float]] = {"latency": [], "energy": []}
    for allocation, seconds, joules in held_out:
        modelled_s, modelled_j = model.batch(allocation)
        found["latency"].append(abs(modelled_s / seconds - 1))
        if joules and modelled_j is not None:
            found["energy"].append(abs(modelled_j / joules - 1))
    return {f"{k} {n}": f(v) for k, v in found.items() if v for n, f in (("mean", statistics.fmean), ("max", max))}


def plot(rows: Sequence[Row], path: Path) -> None:
    """Share of the read bandwidth over the bytes of a launch, by width."""
    from matplotlib import pyplot as plt

    from wattbit.plots import COLOURS, save

    figure, panel = plt.subplots(figsize=(5.8, 3.8))
    for place, bits in enumerate(GPU_WIDTHS):
        mine = [row for row in rows if f", {bits} bit, " in row.case]
        sizes = [float(row.case.rsplit(", ", 1)[1].split()[0]) for row in mine]
        panel.scatter(sizes, [row.ratio for row in mine], label=f"{bits} bit", color=COLOURS[place])
    panel.axhline(0.85, color="black", linewidth=0.8, linestyle="--")
    panel.set_xscale("log")
    panel.set_xlabel("MB a launch")
    panel.set_ylabel("bytes/s over the read bandwidth (measured)")
    panel.legend(frameon=False)
    panel.grid(alpha=0.3)
    save(figure, path)


@click.group(help=__doc__)
def main() -> None:
    pass


@main.command()
@click.option("--quick", is_flag=True, help="Few repeats and a short search: under 3 minutes.")
@click.option("--json", "path", type=click.Path(path_type=Path, dir_okay=False), help="Write the rows to this file.")
@click.option(
    "--stats", "runs", type=click.Path(path_type=Path, exists=True), multiple=True, help="Of a run: stats.json."
)
@click.option("--budget", default=3.5, help="Greatest mean weight width of the policy, in bits.")
@click.option("--part", "parts", type=click.Choice(PARTS), multiple=True, default=PARTS, help="Only these parts.")
def measure(quick: bool, path: Path | None, runs: tuple[Path, ...], budget: float, parts: tuple[str, ...]) -> None:
    """Time kernels, layers and peers on the card."""
    find_card()
    repeats = 3 if quick else 15
    effort = Effort(10, 4, 2, 1, 0.2, (0,), budget) if quick else Effort(budget_bits=budget)
    rates = bandwidth(repeats)
    name = torch.cuda.get_device_name()
    click.echo(f"{name} reads " + ", ".join(f"{what} {rate / 1e9:.0f} GB/s" for what, rate in rates.items()))
    rows: list[Row] = []
    extra: dict[str, Any] = {"card": name, "read_bytes_per_s": rates, "layers": {}}

    def keep(found: list[Row]) -> None:
        for case in dict.fromkeys(row.case for row in found):
            show([row for row in found if row.case == case])
        rows.extend(found)
        if path:
            write(rows, path)
            write_json(path.with_suffix(".layers.json"), extra)

    if "widths" in parts:
        keep(width_rows(rates["sum"], repeats))
        if path:
            plot(rows, path.with_suffix(".svg"))
    for run in runs if "layers" in parts else ():
        stats = tuple(ExpertStats.from_json(record) for record in read_json(run)["experts"])
        found, about = layer_part(stats, effort, rates["sum"], click.echo)
        extra["layers"][about["shape"]] = about
        keep(found)
    if "batches" in parts:
        keep(batch_rows(repeats, (1, 64) if quick else (1, 4, 16, 64), click.echo))
    if "peers" in parts:
        keep(matrix_rows(repeats, click.echo))


@main.command()
@click.argument("run", type=click.Path(path_type=Path, exists=True))
@click.option(
    "--chosen", type=click.Path(path_type=Path, exists=True), required=True, help="FILE.layers.json of measure."
)
@click.option("--steps", default=300, help="Fine-tuning steps of every allocation.")
@click.option("--json", "path", type=click.Path(path_type=Path, dir_okay=False), help="Write the table to this file.")
def perplexity(run: Path, chosen: Path, steps: int, path: Path | None) -> None:
    """Fine-tune a run's model at every allocation that `measure` timed for as many experts; its perplexity."""
    from wattbit.models.learner import MoELearner

    learner = MoELearner.open(run / "data", run / "model")
    tables = [
        found["table"]
        for shape, found in read_json(chosen)["layers"].items()
        if f" of {learner.config.experts}" in shape
    ]
    if not tables:
        raise WattbitError(f"{chosen} has no layer of {learner.config.experts} experts; measure with this run's stats")
    result: dict[str, Any] = {"float": learner.perplexity(None), "steps": steps, "perplexity": {}}
    known: dict[str, float] = {}  # methods often choose the same
    for name, entry in tables[0].items():
        allocation = Allocation.from_json(entry["allocation"])
        widths = json.dumps([p.precision.weight_bits for p in allocation.placements])
        if widths not in known:
            learner.load(run / "model" / "float.safetensors")
            learner.finetune(allocation, steps, seed=0)
            known[widths] = learner.perplexity(allocation)
        result["perplexity"][name] = known[widths]
        click.echo(f"{name}, {allocation.mean_bits:.2f} bit: {result['perplexity'][name]:.3f}")
        if path:
            write_json(path, result)


@main.command()
@click.argument("stats", type=click.Path(path_type=Path, exists=True))
@click.option("--chosen", type=click.Path(path_type=Path, exists=True), required=True, help="measure's .layers.json")
@click.option("--json", "path", type=click.Path(path_type=Path, dir_okay=False), help="Write the table to this file.")
def prices(stats: Path, chosen: Path, path: Path | None) -> None:
    """The policy without a memory budget, on the calibrated model and on the roofline, at three prices of latency."""
    experts = tuple(ExpertStats.from_json(record) for record in read_json(stats)["experts"])
    shape, workload = _layer_of(experts)
    reached = reached_experts(shape, workload)
    record = read_json(chosen)
    name = next(name for name in record["layers"] if name.endswith(f" of {shape.experts}"))
    fitted = {int(bits): us * 1e-6 for bits, us in record["layers"][name]["model"]["us"].items()}
    calibrated = GpuCostModel(shape, reached, fitted, None)
    roofline = GpuCostModel.roofline(shape, reached, record["read_bytes_per_s"]["sum"], GPU_WIDTHS)
    table = []
    for nats in (0.02, 0.1, 0.3):
        for by, model in (("calibrated model", calibrated), ("roofline", roofline)):
            settings = SearchSettings(weight_bits=GPU_WIDTHS, budget_bits=8.0, latency_nats=nats, iterations=60)
            best = search(experts, model, workload, settings).best
            layers = len({s.expert.layer for s in experts})
            table.append(
                {
                    "latency_nats": nats,
                    "priced by": by,
                    "widths": {str(p.weight_bits): len(of) for p, of in best.allocation.classes.items()},
                    "damage_nats": best.damage,
                    "us a layer by the calibrated model": calibrated.batch(best.allocation)[0] / layers * 1e6,
                }
            )
            click.echo(json.dumps(table[-1]))
    if path:
        write_json(path, table)


if __name__ == "__main__":
    try:
        main()
    except WattbitError as error:
        raise SystemExit(f"error: {error}") from None
