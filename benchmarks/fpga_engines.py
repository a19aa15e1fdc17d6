"""Mixed precision on the FPGA against static 8 and 4 bit: tokens a second on the same device, each with its best plan.

    python benchmarks/fpga_engines.py [--quick] [--text FOLDER] [--budget BITS ...] [--json FILE]

Two models whose experts do not fit on the chip at 8 bits, three training seeds each: 64 experts (64 -> 128 -> 64) and
16 (128 -> 256 -> 128) in each of two layers, top-2. Every allocation is fine-tuned as long. Everything that takes long
is kept in runs/fpga-engines, so an interrupted run goes on where it stopped.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean, stdev
from typing import Any

import click
import numpy as np
from rows import Benchmark, Row, show, write

from wattbit.files import read_json, write_json
from wattbit.plan import Allocation, ExpertStats, Target, Workload

FOLDER = Path("runs/fpga-engines")
WIDTHS = (2, 3, 4, 8)
BUDGETS = (3.5, 3.0, 2.5)  # mean weight bits of the policy's allocations
TARGETS = ("pynq-z2", "kv260")
SEARCH = ("pynq-z2", 16)  # the policy sees this board and tokens a batch
BATCHES = (1, 16, 256)
SAMPLED = {1: 64, 16: 8, 256: 2}  # batches that are launched, by their tokens
SIMULATED = (("pynq-z2", 1), ("pynq-z2", 16), ("kv260", 16))  # boards and batches in RTL, of the first seed
RTL_BUDGET = 3.0  # of the policy's allocation that is simulated
ROUTED = 1000  # tokens of a workload
LIMIT = 1.01  # perplexity against static 8 bit, both fine-tuned


@dataclass(frozen=True)
class Case:
    """A model and how long it is trained and fine-tuned."""

    name: str
    experts: int
    d_model: int
    d_hidden: int
    steps: int = 1000
    finetuning: int = 300
    iterations: int = 60


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


def workload(stats: Sequence[ExpertStats], batch: int) -> Workload:
    return Workload(ROUTED, 2, tuple((one.expert, one.frequency) for one in stats), batch)


def allocations(
    case: Case, seed: int, budgets: Sequence[float], text: str | None, folder: Path
) -> dict[str, dict[str, Any]]:
    """By name: allocation, mean_bits, perplexity before and after fine-tuning.

    static8, static4 and static3; policy and exact (the optimum of the additive damage table) at each budget, random at
    the first. A model is trained only if something is missing.
    """
    names = ["static8", "static4", "static3", *(f"{n}{b:g}" for b in budgets for n in ("policy", "exact"))]
    names.append(f"random{budgets[0]:g}")
    if not all((folder / f"tuned-{name}.json").is_file() for name in names):
        model = learner(case, seed, text, folder)
        if not (folder / "stats.json").is_file():
            write_json(folder / "stats.json", [one.to_json() for one in model.stats(WIDTHS)])
        known = {f"static{bits}": Allocation.of(dict.fromkeys(model.config.expert_ids, bits)) for bits in (8, 4, 3)}
        for budget in budgets:
            known |= searched(case, seed, budget, folder)
        for name in names:
            tune(model, case, name, known[name], folder)
    return {name: read_json(folder / f"tuned-{name}.json") for name in names}


def searched(case: Case, seed: int, budget: float, folder: Path) -> dict[str, Allocation]:
    """What the policy and its controls choose within a budget of mean weight bits."""
    from wattbit.board.targets import load
    from wattbit.hls.meter import ModelledMeter
    from wattbit.plan import ExpertShape
    from wattbit.policy.search import SearchSettings, search

    path = folder / f"search-{budget:g}.json"
    if not path.is_file():
        stats = [ExpertStats.from_json(one) for one in read_json(folder / "stats.json")]
        meter = ModelledMeter(ExpertShape(case.d_model, case.d_hidden), load(SEARCH[0]).target)
        settings = SearchSettings(
            WIDTHS, budget_bits=budget, seeds=(seed,), random_seeds=(seed,), iterations=case.iterations
        )
        methods = search(stats, meter, workload(stats, SEARCH[1]), settings).methods
        chosen = {
            f"{name}{budget:g}": methods[key][0]
            for name, key in (("policy", "dmpq"), ("exact", "exact"), ("random", "random"))
        }
        write_json(path, {name: outcome.allocation.to_json() for name, outcome in chosen.items()})
    return {name: Allocation.from_json(record) for name, record in read_json(path).items()}


def tune(model: Any, case: Case, name: str, allocation: Allocation, folder: Path) -> None:
    """Write perplexity at the float weights and after fine-tuning at these widths."""
    path = folder / f"tuned-{name}.json"
    if not path.is_file():
        model.load(folder / "model" / "float.safetensors")
        before = model.perplexity(allocation)
        model.finetune(allocation, case.finetuning, 0)
        record = {"before": before, "after": model.perplexity(allocation), "mean_bits": allocation.mean_bits}
        write_json(path, record | {"allocation": allocation.to_json()})


def speeds(
    case: Case, stats: Sequence[ExpertStats], allocation: Allocation, target: Target, batch: int, out: Path | None
) -> dict[str, float]:
    """Tokens a second of the expert layers: as planned, by the cycle model on sampled batches, and in RTL simulation.

    out: a folder for the design, None for no simulation. A batch is one launch for each layer. The RTL's time does not
    depend on the weights' values, so the simulated experts are random ones of the same widths.
    """
    from fpga_models import integers

    from wattbit.hls.accelerator import Accelerator, verilate
    from wattbit.hls.compare import images_of
    from wattbit.hls.cycles import Timing, launch
    from wattbit.hls.engine import write_engine
    from wattbit.hls.planner import plan
    from wattbit.hls.resources import Scales
    from wattbit.hls.shell import build_shell
    from wattbit.hls.traffic import traffic
    from wattbit.plan import ExpertShape
    from wattbit.shell import interleaved

    shape, load = ExpertShape(case.d_model, case.d_hidden), workload(stats, batch)
    planned = plan(allocation, shape, target, load)
    if not planned.fits:
        raise click.ClickException(f"{case.name} does not fit {target.name}: {', '.join(planned.excess)}")
    timings = [Timing.of(spec, shape, Scales.expected(spec.precision, shape).lane_bits) for spec in planned.classes]
    costs = np.array([(timing.per_vector, timing.load) for timing in timings])
    place = {e: (i, k) for i, spec in enumerate(planned.classes) for k, e in enumerate(spec.experts)}
    sampled = traffic(load)
    batches = SAMPLED[batch]
    launches = []
    for counts in sampled.counts[:batches]:
        for layer in range(sampled.layers):
            mine = (sampled.layer == layer).nonzero()[0]
            ids = np.repeat(mine, counts[mine].astype(int))
            launches.append(np.array([place[sampled.experts[i]] for i in ids]).T)
    words = shape.d_model // 8
    modelled = 0.0
    for engine, index in launches:
        order = interleaved(engine, index, costs)
        modelled += launch(timings, engine[order].tolist(), index[order].tolist(), words)
    hertz = planned.clock_mhz * 1e6
    found = {
        "planned": planned.tokens_per_s,
        "modelled": batch * batches * hertz / modelled,
        "dsp": planned.total.dsp,
        "bram18": planned.total.bram18,
        "lut": planned.total.lut,
    }
    if out is not None:
        ints = [integers(spec, shape, i) for i, spec in enumerate(planned.classes)]
        engines = [
            write_engine(own, spec, out / "engines", planned.part)
            for own, spec in zip(ints, planned.classes, strict=True)
        ]
        library = verilate(build_shell(engines, shape.d_model, planned.digest, out / "shell"), out / "acc", "x86_64")
        cycles = 0
        with Accelerator(library, images=images_of(engines)) as accelerator:
            for engine, index in launches:
                x = np.zeros((len(engine), shape.d_model), np.int8)
                cycles += accelerator.run(engine, index, x)[1]
        found["simulated"] = batch * batches * hertz / cycles
    return found | {"engines": len(planned.classes), "streams": sum(spec.streamed for spec in planned.classes)}


def simulated(case: Case, seed: int, name: str, record: dict[str, Any], board: str, batch: int, folder: Path) -> float:
    """Tokens a second in RTL simulation, kept in the run's folder."""
    from wattbit.board.targets import load

    kept = folder / f"rtl-{board}-{batch}-{name}.json"
    if not kept.is_file():
        stats = [ExpertStats.from_json(one) for one in read_json(folder / "stats.json")]
        allocation = Allocation.from_json(record["allocation"])
        out = folder / f"rtl-{board}-{batch}-{name}"
        write_json(kept, speeds(case, stats, allocation, load(board).target, batch, out))
    return float(read_json(kept)["simulated"])


def mean_std(values: Sequence[float]) -> tuple[float, float]:
    return fmean(values), stdev(values) if len(values) > 1 else 0.0


def compare(case: str, metric: str, ours: Sequence[float], peer: Sequence[float], name: str, **more: Any) -> Row:
    """A row whose ratio is the mean over seeds of ours to the peer's, or its inverse where less is better."""
    less = more.pop("less", False)
    ratio = fmean((b / a if less else a / b) for a, b in zip(ours, peer, strict=True))
    seeds = more.pop("seeds", tuple(range(len(ours))))
    return Row(case, metric, *mean_std(ours), *mean_std(peer), name, ratio, more["goal"], more["provenance"], seeds)


def rows_of(case: Case, seeds: Sequence[int], budgets: Sequence[float], text: str | None, rtl: bool) -> list[Row]:
    """Perplexity and tokens a second of every policy allocation against static 8 and 4 bit and the controls."""
    from wattbit.board.targets import load

    folders = [FOLDER / f"{case.name}-seed{seed}" for seed in seeds]
    for folder in folders:
        require_same_text(text, folder)
    found = [allocations(case, seed, budgets, text, f) for seed, f in zip(seeds, folders, strict=True)]
    stats = [[ExpertStats.from_json(one) for one in read_json(f / "stats.json")] for f in folders]
    rows = []
    for budget in budgets:
        ours = f"policy{budget:g}"
        title = f"{case.name} {case.d_model}-{case.d_hidden}, policy at {budget:g} bits"
        after = {name: [one[name]["after"] for one in found] for name in found[0]}
        for peer, goal in (("static8", 1 / LIMIT), ("static4", None), ("static3", None)):
            more = {"goal": goal, "provenance": "measured", "less": True, "seeds": tuple(seeds)}
            rows.append(compare(title, "perplexity", after[ours], after[peer], peer, **more))
        peers = {"static8": 3.0, "static4": 1.3, "static3": None, f"exact{budget:g}": None}
        peers |= {f"random{budget:g}": None} if budget == budgets[0] else {}
        for board in TARGETS:
            target = load(board).target
            for batch in BATCHES:
                speed = {
                    name: [
                        speeds(case, s, Allocation.from_json(one[name]["allocation"]), target, batch, None)["modelled"]
                        for s, one in zip(stats, found, strict=True)
                    ]
                    for name in (ours, *peers)
                }
                for peer, goal in peers.items():
                    more = {"goal": goal, "provenance": "modelled", "seeds": tuple(seeds)}
                    metric = f"tokens/s on {board}, batch {batch}"
                    rows.append(compare(title, metric, speed[ours], speed[peer], peer, **more))
                    if rtl and (board, batch) in SIMULATED and goal and budget == RTL_BUDGET:
                        both = [
                            [simulated(case, seeds[0], name, found[0][name], board, batch, folders[0])]
                            for name in (ours, peer)
                        ]
                        more |= {"provenance": "simulated", "seeds": tuple(seeds[:1])}
                        rows.append(compare(title, metric, both[0], both[1], peer, **more))
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
    from wattbit.plan import ExpertId, ExpertShape, Precision

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
        ("MACs a cycle, of the multiplying DSPs' peak", macs, (dsp - 16) * lanes, 0.9),
        ("MACs a cycle, of all its DSPs' peak", macs, dsp * lanes, 0.9),
        ("bytes a cycle, of the port's peak", experts * engines[1].beats * 8 / stream, 8, 0.9),
        ("weight bytes a cycle, of the port's peak", experts * shape.weights / 2 / stream, 8, 0.9),
    )
    return [Row(title, m, a, 0.0, b, 0.0, "peak", a / b, goal, "simulated", ()) for m, a, b, goal in pairs]


@click.command(cls=Benchmark, help=__doc__)
@click.option("--quick", is_flag=True, help="One tiny model, one seed: minutes, and figures that mean nothing.")
@click.option("--text", help="Folder of WikiText-2 or other text; Python's own sources if not given.")
@click.option("--budget", "budgets", type=float, multiple=True, help="Mean weight bits of the policy; may be repeated.")
@click.option("--rtl/--no-rtl", default=True, help="Simulate the designs of the first seed, some minutes each.")
@click.option("--json", "path", type=click.Path(path_type=Path, dir_okay=False), help="Write the rows to this file.")
def main(quick: bool, text: str | None, budgets: tuple[float, ...], rtl: bool, path: Path | None) -> None:
    cases, seeds = (QUICK, (0,)) if quick else (CASES, (0, 1, 2))
    rows = []
    for case in cases:
        found = rows_of(case, seeds, budgets or BUDGETS, text, rtl and not quick)
        show(found)
        rows += found
    rows += efficiency(FOLDER / "efficiency")
    show(rows[-4:])
    if path:
        write(rows, path)


if __name__ == "__main__":
    main()
