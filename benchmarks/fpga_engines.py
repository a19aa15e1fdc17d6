"""Mixed precision on the FPGA against static 8 and 4 bit: tokens a second on the same device, each with its best plan.

    python benchmarks/fpga_engines.py [--quick] [--text FOLDER] [--budget BITS] [--json FILE]

Two models whose experts do not fit on the chip at 8 bits, three training seeds each: 64 experts (64 -> 128 -> 64) and
16 (128 -> 256 -> 128) in each of two layers, top-2. The policy searches for each board and number of tokens a batch;
plans take at most four fifths of a chip's logic, as `make board` with Vivado does. Every allocation is fine-tuned as
long. Everything that takes long is kept in runs/fpga-engines, so an interrupted run goes on where it stopped.
"""

import random
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from statistics import fmean
from typing import Any

import click
import numpy as np
from rows import Benchmark, Row, mean_std, show, write

from wattbit.files import read_json, write_json
from wattbit.plan import Allocation, ExpertShape, ExpertStats, Provenance, Target, Workload

FOLDER = Path("runs/fpga-engines")
WIDTHS = (2, 3, 4, 8)
STATIC = (8, 4, 3, 2)
BUDGET = 3.0  # mean weight bits of the policy's allocations
TARGETS = ("pynq-z2", "kv260")
BATCHES = (1, 16, 256)
SAMPLED = {1: 64, 16: 8, 256: 2}  # batches that are launched, by their tokens
SIMULATED = (("pynq-z2", 1), ("pynq-z2", 256), ("kv260", 16))  # boards and batches in RTL, of the first seed
ROUTED = 1000  # tokens of a workload
SHARES = (
    ("busiest", "cycles", "cycles that the busiest engine computes"),
    ("hottest", "cycles", "cycles that the hottest expert's engine computes it"),
    ("wanted", "vectors", "vectors for the expert that most want"),
    ("products", "possible", "products that the engines make"),
)
LIMIT = 1.01  # perplexity against static 8 bit, both fine-tuned
PRICED = 20  # random allocations of each seed, for the time of a price
PRICES = 200.0  # a second, with which those of the planner's model are compared


@dataclass(frozen=True)
class Case:
    """A model and how long it is trained and fine-tuned."""

    name: str
    experts: int
    d_model: int
    d_hidden: int
    steps: int = 1000
    finetuning: int = 300
    iterations: int = 20


CASES = (Case("E64", 64, 64, 128), Case("E16", 16, 128, 256))
QUICK = (Case("E16-quick", 16, 32, 64, 40, 4, 5),)


def require_same_text(text: str | None, folder: Path) -> None:
    """What was kept in the folder is of one text."""
    stamp = folder / "text.json"
    if stamp.is_file() and read_json(stamp) != text:
        raise click.ClickException(
            f"{folder} is of --text {read_json(stamp)}, not {text}; give that, or move the folder"
        )
    write_json(stamp, text)


def learner(case: Case, seed: int, text: str | None, folder: Path) -> Any:
    """The trained float model, trained if it is not there."""
    from wattbit.models.config import ModelConfig, TrainConfig
    from wattbit.models.data import prepare
    from wattbit.models.learner import MoELearner
    from wattbit.models.train import train

    config = ModelConfig(d_model=case.d_model, d_hidden=case.d_hidden, experts=case.experts)
    if not (folder / "data" / "data.json").is_file():
        prepare(text, folder / "data", config.vocab_size)
    train(folder / "data", folder / "model", config, TrainConfig(steps=case.steps, seed=seed))
    return MoELearner.open(folder / "data", folder / "model")


def usable(board: str) -> Target:
    """A board of whose LUTs, flip-flops and DSPs plans take as large a share as those for Vivado."""
    from wattbit.board.targets import load
    from wattbit.hls.vivado.toolchain import VivadoToolchain
    from wattbit.presets import share

    return share(load(board).target, VivadoToolchain.chip_share)


def workload(stats: Sequence[ExpertStats], batch: int) -> Workload:
    return Workload(ROUTED, 2, tuple((one.expert, one.frequency) for one in stats), batch)


def allocations(case: Case, seed: int, budget: float, folder: Path) -> dict[str, Allocation]:
    """The static ones, and what the policy (for each board and batch) and its controls choose within the budget.

    exact is the optimum of the additive damage table, random a draw: neither sees a board.
    """
    stats = [ExpertStats.from_json(one) for one in read_json(folder / "stats.json")]
    experts = [one.expert for one in stats]
    found = {f"static{bits}": Allocation.of(dict.fromkeys(experts, bits)) for bits in STATIC}
    for board in TARGETS:
        for batch in BATCHES:
            chosen = searched(case, seed, budget, stats, board, batch, folder)
            found |= {policy(board, batch): chosen["dmpq"], "exact": chosen["exact"], "random": chosen["random"]}
    return found


def policy(board: str, batch: int) -> str:
    return f"policy for {board}, batch {batch}"


def searched(
    case: Case, seed: int, budget: float, stats: Sequence[ExpertStats], board: str, batch: int, folder: Path
) -> dict[str, Allocation]:
    """By method, what is chosen within a budget of mean weight bits when latency is that of a board and batch."""
    from wattbit.hls.meter import ModelledMeter
    from wattbit.policy.search import SearchSettings, search

    path = folder / f"search-{budget:g}-{board}-{batch}.json"
    if not path.is_file():
        meter = ModelledMeter(ExpertShape(case.d_model, case.d_hidden), usable(board))
        settings = SearchSettings(
            WIDTHS, budget_bits=budget, seeds=(seed,), random_seeds=(seed,), iterations=case.iterations
        )
        methods = search(stats, meter, workload(stats, batch), settings).methods
        write_json(path, {name: methods[name][0].allocation.to_json() for name in ("dmpq", "exact", "random")})
    return {name: Allocation.from_json(record) for name, record in read_json(path).items()}


def perplexities(
    case: Case, seed: int, wanted: Mapping[str, Allocation], text: str | None, folder: Path
) -> dict[str, float]:
    """After fine-tuning, by name; what was fine-tuned once, under whatever name, is not again."""
    model = None
    found = {}
    for name, allocation in wanted.items():
        path = folder / f"tuned-{allocation.digest}.json"
        if not path.is_file():
            model = model or learner(case, seed, text, folder)
            model.load(folder / "model" / "float.safetensors")
            model.finetune(allocation, case.finetuning, 0)
            write_json(path, {"perplexity": model.perplexity(allocation), "allocation": allocation.to_json()})
        found[name] = float(read_json(path)["perplexity"])
    return found


def speeds(
    case: Case, stats: Sequence[ExpertStats], allocation: Allocation, target: Target, batch: int, out: Path | None
) -> dict[str, float]:
    """Tokens a second of the expert layers: as planned, by the cycle model on sampled batches, and in RTL simulation.

    Also, of all launches: modelled cycles, those that the busiest engine needs and those of the hottest expert, which
    no other engine can take over; vectors and those for the expert that most want; products and what all engines could
    make in that time. out: a folder for the simulation, None for none. A batch is one launch for each layer.
    """
    import rtl

    from wattbit.hls.cycles import launch
    from wattbit.hls.launches import launches, timings
    from wattbit.hls.planner import plan
    from wattbit.hls.traffic import traffic
    from wattbit.shell import interleaved

    shape, load = ExpertShape(case.d_model, case.d_hidden), workload(stats, batch)
    planned = plan(allocation, shape, target, load)
    if not planned.fits:
        raise click.ClickException(f"{shape} does not fit {target.name}: {', '.join(planned.excess)}")
    times = timings(planned)
    costs = np.array([(timing.per_vector, timing.load) for timing in times])
    sampled, batches = traffic(load), SAMPLED[batch]
    packets = launches(planned, sampled.experts, sampled.counts[:batches])
    words = shape.d_model // 8
    found = dict.fromkeys(("cycles", "busiest", "hottest", "wanted", "vectors"), 0.0)
    for engine, index in packets:
        order = interleaved(engine, index, costs)
        found["cycles"] += launch(times, engine[order].tolist(), index[order].tolist(), words)
        sets, vectors = np.unique(np.stack((engine, index)), axis=1, return_counts=True)
        busy = np.maximum(vectors * costs[sets[0], 0], costs[sets[0], 1])
        found["busiest"] += np.bincount(sets[0], busy).max()
        found["hottest"] += busy.max()
        found["wanted"] += vectors.max()
        found["vectors"] += vectors.sum()
    found["products"] = found["vectors"] * shape.weights
    found["possible"] = found["cycles"] * sum(one.pe1 * one.simd1 + one.pe2 * one.simd2 for one in planned.classes)
    hertz = planned.clock_mhz * 1e6
    found |= {
        "planned": planned.tokens_per_s,
        "modelled": batch * batches * hertz / found["cycles"],
        "logic": sum(spec.products == "logic" for spec in planned.classes),
        "dsp": planned.total.dsp,
        "bram18": planned.total.bram18,
        "lut": planned.total.lut,
    }
    if out is not None:
        found["simulated"] = batch * batches * hertz / sum(rtl.cycles(planned, packets, out))
    return found | {"engines": len(planned.classes), "streams": sum(spec.streamed for spec in planned.classes)}


def prices(case: Case, seed: int, stats: Sequence[ExpertStats], target: Target, batch: int) -> float:
    """Allocations that the planner's model prices in a second of CPU time, none of them for the second time."""
    from wattbit.hls.meter import ModelledMeter

    rng, load = random.Random(seed), workload(stats, batch)
    meter = ModelledMeter(ExpertShape(case.d_model, case.d_hidden), target)
    drawn = [Allocation.of({one.expert: rng.choice(WIDTHS) for one in stats}) for _ in range(PRICED + 1)]
    meter.cost(drawn.pop(), load)  # samples the workload and remembers the chip's datapaths
    start = time.process_time()
    for allocation in drawn:
        meter.cost(allocation, load)
    return PRICED / (time.process_time() - start)


def compare(
    case: str,
    metric: str,
    ours: Sequence[float],
    peer: Sequence[float],
    name: str,
    goal: float | None,
    provenance: Provenance,
) -> Row:
    """A row whose ratio is the mean over seeds of ours to the peer's."""
    ratio = fmean(a / b for a, b in zip(ours, peer, strict=True))
    seeds = tuple(range(len(ours)))
    return Row(case, metric, *mean_std(ours), *mean_std(peer), name, ratio, goal, provenance, seeds)


def rows_of(case: Case, seeds: Sequence[int], budget: float, text: str | None, rtl: bool) -> list[Row]:
    """Perplexity and tokens a second of the policy's allocations and of the controls against static 8 and 4 bit."""
    folders = [FOLDER / f"{case.name}-seed{seed}" for seed in seeds]
    for seed, folder in zip(seeds, folders, strict=True):
        require_same_text(text, folder)
        if not (folder / "stats.json").is_file():
            model = learner(case, seed, text, folder)
            write_json(folder / "stats.json", [one.to_json() for one in model.stats(WIDTHS)])
    stats = [[ExpertStats.from_json(one) for one in read_json(f / "stats.json")] for f in folders]
    found = [allocations(case, seed, budget, folder) for seed, folder in zip(seeds, folders, strict=True)]
    after = [perplexities(case, s, one, text, f) for s, one, f in zip(seeds, found, folders, strict=True)]
    title = f"{case.name} {case.d_model}-{case.d_hidden}, {budget:g} bits"
    rows = []
    for name in found[0]:
        if name != "static8":
            goal = 1 / LIMIT if name.startswith("policy") else None
            both = [[1 / one[key] for one in after] for key in (name, "static8")]
            row = compare(title, f"perplexity, {name}", both[0], both[1], "static8", goal, "measured")
            means = [mean_std([one[key] for one in after]) for key in (name, "static8")]
            rows.append(replace(row, ours=means[0][0], ours_std=means[0][1], peer=means[1][0], peer_std=means[1][1]))
    for board in TARGETS:
        target = usable(board)
        for batch in BATCHES:
            metric = f"tokens/s on {board}, batch {batch}"
            names = [policy(board, batch), *(n for n in found[0] if not n.startswith("policy"))]
            speed = {
                name: [speeds(case, s, one[name], target, batch, None) for s, one in zip(stats, found, strict=True)]
                for name in names
            }
            for name in names:
                for peer, goal in (("static8", 3.0), ("static4", 1.3)):
                    if name not in ("static8", peer):
                        ours, theirs = ([one["modelled"] for one in speed[key]] for key in (name, peer))
                        wanted = goal if name.startswith("policy") else None
                        what = f"{metric}, {name.split()[0]}"
                        rows.append(compare(title, what, ours, theirs, peer, wanted, "modelled"))
            rates = [prices(case, seed, one, target, batch) for seed, one in zip(seeds, stats, strict=True)]
            what = f"prices a CPU second, {board}, batch {batch}"
            rows.append(compare(title, what, rates, [PRICES] * len(rates), "5 ms each", None, "measured"))
            if batch == BATCHES[-1]:
                for name in (names[0], "static8"):
                    for part, whole, words in SHARES:
                        ours, theirs = ([one[key] for one in speed[name]] for key in (part, whole))
                        what = f"{words} on {board}, batch {batch}, {name.split()[0]}"
                        rows.append(compare(title, what, ours, theirs, f"all {whole}", None, "modelled"))
            if rtl and (board, batch) in SIMULATED:
                runs = {}
                for name in (names[0], "static8", "static4"):
                    out = folders[0] / f"rtl-{board}-{batch}-{name.split()[0]}"
                    runs[name] = speeds(case, stats[0], found[0][name], target, batch, out)["simulated"]
                for peer, goal in (("static8", 3.0), ("static4", 1.3)):
                    rows.append(
                        compare(title, f"{metric}, policy", [runs[names[0]]], [runs[peer]], peer, goal, "simulated")
                    )
    return rows


def efficiency(folder: Path) -> list[Row]:
    """How much of the DSPs' and of the memory port's peak one engine uses, 8 x 8 products a layer, at 4 bits."""
    from fpga_models import integers

    from wattbit.hls.accelerator import Accelerator, verilate
    from wattbit.hls.compare import images_of
    from wattbit.hls.engine import write_engine
    from wattbit.hls.engine_class import EngineClass
    from wattbit.hls.resources import dsp_lanes, model
    from wattbit.hls.shell import build_shell
    from wattbit.plan import ExpertId, Precision

    shape, precision, experts, vectors = ExpertShape(64, 128), Precision(4), 16, 128
    ids = tuple(ExpertId(0, i) for i in range(experts))
    specs = [EngineClass(precision, 8, 8, 8, 8, ids, 0, "chip"), EngineClass(precision, 8, 8, 8, 8, ids, 1, "stream")]
    engines = [write_engine(integers(s, shape, 0), s, folder / "engines", "xc7z020clg400-1") for s in specs]
    library = verilate(build_shell(engines, shape.d_model, "0", folder / "shell"), folder / "acc", "x86_64")
    with Accelerator(library, images=images_of(engines)) as accelerator:
        zeros, every = np.zeros((vectors, shape.d_model), np.int8), np.arange(vectors) % experts
        chip = accelerator.run(np.zeros(vectors, int), every, zeros)[1]
        stream = accelerator.run(np.ones(experts, int), np.arange(experts), zeros[:experts])[1]
    dsp = model(specs[0], shape, 1).dsp
    lanes = dsp_lanes(precision.weight_bits, precision.act_bits, 1)
    macs = vectors * shape.weights / chip
    title = f"engine w4a8, 8 x 8, 64 -> 128 -> 64, {vectors} vectors"
    pairs = (
        ("MACs a cycle, of the multiplying DSPs' peak", macs, (dsp - sum(specs[0].requant_lanes(shape))) * lanes, 0.9),
        ("MACs a cycle, of all its DSPs' peak", macs, dsp * lanes, 0.9),
        ("bytes a cycle, of the port's peak", experts * engines[1].beats * 8 / stream, 8, 0.9),
        ("weight bytes a cycle, of the port's peak", experts * shape.weights / 2 / stream, 8, 0.9),
    )
    return [Row(title, m, a, 0.0, b, 0.0, "peak", a / b, goal, "simulated", ()) for m, a, b, goal in pairs]


@click.command(cls=Benchmark, help=__doc__)
@click.option("--quick", is_flag=True, help="One tiny model, one seed: minutes, and figures that mean nothing.")
@click.option("--text", help="Folder of WikiText-2 or other text; Python's own sources if not given.")
@click.option("--budget", type=float, default=BUDGET, show_default=True, help="Mean weight bits of the policy.")
@click.option("--rtl/--no-rtl", default=True, help="Simulate the designs of the first seed, some minutes each.")
@click.option("--json", "path", type=click.Path(path_type=Path, dir_okay=False), help="Write the rows to this file.")
def main(quick: bool, text: str | None, budget: float, rtl: bool, path: Path | None) -> None:
    cases, seeds = (QUICK, (0,)) if quick else (CASES, (0, 1, 2))
    rows = []
    for case in cases:
        found = rows_of(case, seeds, budget, text, rtl and not quick)
        show(found)
        rows += found
    rows += efficiency(FOLDER / "efficiency")
    show(rows[-4:])
    if path:
        write(rows, path)


if __name__ == "__main__":
    main()
