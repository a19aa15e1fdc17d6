"""Every precision method on the same models: perplexity, GLUE, bytes, time, with and without retraining.

    python benchmarks/methods.py --data FOLDER [--task FOLDER ...] [--quick] [--json FILE] [--studies FOLDER]

Models: the presets wt2-e16 and wt2-e64, three training seeds each, a study (`benchmarks/study.py`) for each in a
process of its own; what a study has found stays in --studies and is not redone, so that a GPU machine may take the
studies and another machine the table. The modelled time is the planner's for a virtual-z2, taken here from the
allocations. A ratio is of perplexities, above 1 where DMPQ is better; p is of a paired t-test over the seeds.
"""

import multiprocessing
from collections.abc import Mapping, Sequence
from pathlib import Path
from statistics import fmean, stdev
from typing import Any

import click
import numpy as np
import study
from rows import Benchmark, Row, show, write
from scipy.stats import ttest_rel

from wattbit.board.targets import load
from wattbit.errors import InfeasibleError
from wattbit.files import read_json, write_json, write_text
from wattbit.hls.meter import ModelledMeter
from wattbit.models.data import prepare
from wattbit.plan import Allocation, ExpertStats, Workload
from wattbit.plots import memory_front
from wattbit.presets import PRESETS
from wattbit.report import table
from wattbit.run import cache_folder
from wattbit.tvm_schedules.host_meter import host_meter

SEEDS = (0, 1, 2)
STATIC = "uniform8"
OURS = "dmpq"

Record = dict[str, Any]


def latency(record: Record, allocation: Allocation) -> float | None:
    """Modelled milliseconds a token of a study's experts on the FPGA; None where it cannot hold them."""
    stats = [ExpertStats.from_json(one) for one in record["stats"]]
    model = PRESETS[record["preset"]].model
    try:
        cost = ModelledMeter(model.shape, load(study.BOARD).target).cost(allocation, study.workload(stats, model.top_k))
    except InfeasibleError:
        return None
    return 1e3 * cost.latency_s / study.TOKENS


def shortened(record: Record) -> Record:
    """A study for the results: allocations as widths in the experts' order, no training record, with modelled times."""
    found: Record = {name: record[name] for name in ("preset", "seed", "tasks", "float", "seconds", "stats_s")}
    train = record["train"]
    found["train"] = {
        name: train[name] for name in ("data", "model", "train", "valid_perplexity", "sha256", "device", "loss")
    }
    times: dict[str, float | None] = {}

    def time(allocation: Allocation) -> float | None:
        if allocation.digest not in times:
            times[allocation.digest] = latency(record, allocation)
        return times[allocation.digest]

    for part, key in (("recipes", "recipe"), ("tuned", "allocations")):
        found[part] = {}
        for name, one in sorted(record[part].items()):
            if "refused" in one:
                found[part][name] = one
                continue
            last = one[key]["allocation"] if key == "recipe" else one[key][-1]
            allocation = Allocation.from_json(last)
            kept = {k: v for k, v in one.items() if k != key}
            bits = "".join(str(p.precision.weight_bits) for p in allocation.placements)
            found[part][name] = kept | {
                "bits": bits,
                "mean_bits": allocation.mean_bits,
                "ms_per_token": time(allocation),
            }
    return found


def on_host(record: Record) -> None:
    """Add measured milliseconds a token of the experts' products on this machine, one thread, to a short study."""
    model = PRESETS[record["preset"]].model
    load_of = Workload(study.TOKENS, model.top_k, tuple((e, 1 / model.experts) for e in model.expert_ids))
    times: dict[str, float] = {}
    with host_meter(model.shape, study.WIDTHS, len(model.expert_ids)) as meter:
        for one in [*record["recipes"].values(), *record["tuned"].values()]:
            if "refused" in one:
                continue
            if one["bits"] not in times:
                widths = dict(zip(model.expert_ids, map(int, one["bits"]), strict=True))
                cost = meter.cost(Allocation.of(widths, engine="host"), load_of)
                times[one["bits"]] = 1e3 * cost.latency_s / study.TOKENS
            one["host_ms_per_token"] = times[one["bits"]]


def spread(values: Sequence[float]) -> tuple[float, float]:
    return fmean(values), stdev(values) if len(values) > 1 else 0.0


def pm(values: Sequence[float | None], digits: int = 2, scale: float = 1.0) -> str:
    known = [scale * v for v in values if v is not None]
    if not known:
        return "-"
    mean, std = spread(known)
    return f"{mean:.{digits}f}" + (f" ± {std:.{digits}f}" if len(known) > 1 else "")


def rise(records: Sequence[Record], part: str, key: str, against: str | None) -> list[float]:
    """Percent that perplexity lies above the float model's, or above the chain `against`'s, by seed."""
    found = []
    for record in records:
        base = record["float"] if against is None else record["tuned"][against]
        found.append(100 * (record[part][key]["perplexity"]["token"] / base["perplexity"]["token"] - 1))
    return found


def listed(records: Sequence[Record], part: str) -> list[str]:
    """Keys METHOD@BUDGET that every study has, by budget; those that only some have are left out."""
    keys = set.intersection(*(set(record[part]) for record in records))
    good = [key for key in keys if all("refused" not in record[part][key] for record in records)]
    return sorted(good, key=lambda key: (float(key.partition("@")[2] or 8), key))


def untuned_table(records: Sequence[Record]) -> str:
    tasks = list(records[0]["float"]["glue"])
    header = ["method", "budget", "mean bits", "MB", "perplexity", "above float, %", "word perplexity"]
    header += [*tasks, "ms/token, FPGA (modelled)", "ms/token, host (measured)", "decide, s"]

    def line(name: str, budget: str, cells: Sequence[Record], above: str) -> list[str]:
        return [
            name,
            budget,
            pm([c.get("mean_bits", 16.0) for c in cells]),
            f"{fmean(c['bytes'] for c in cells) / 1e6:.2f}",
            pm([c["perplexity"]["token"] for c in cells]),
            above,
            pm([c["perplexity"]["word"] for c in cells], 1),
            *(pm([c["glue"][task] for c in cells], 3) for task in tasks),
            pm([c.get("ms_per_token") for c in cells], 4),
            pm([cells[0].get("host_ms_per_token")], 4),
            pm([c.get("decide_s") for c in cells], 1),
        ]

    lines = [line("float, 16 bit", "-", [r["float"] for r in records], "-")]
    for key in listed(records, "recipes"):
        name, _, budget = key.partition("@")
        above = pm(rise(records, "recipes", key, None))
        lines.append(line(name, budget, [r["recipes"][key] for r in records], above))
    return table(header, lines)


def tuned_table(records: Sequence[Record]) -> str:
    tasks = list(records[0]["float"]["glue"])
    header = ["allocation", "mean bits", "perplexity", f"above {STATIC}, %", "above float, %", *tasks]
    header += ["ms/token, FPGA (modelled)", "ms/token, host (measured)"]
    lines = []
    for key in listed(records, "tuned"):
        cells = [r["tuned"][key] for r in records]
        lines.append(
            [
                key,
                pm([c["mean_bits"] for c in cells]),
                pm([c["perplexity"]["token"] for c in cells]),
                pm(rise(records, "tuned", key, STATIC)),
                pm(rise(records, "tuned", key, None)),
                *(pm([c["glue"][task] for c in cells], 3) for task in tasks),
                pm([c["ms_per_token"] for c in cells], 4),
                pm([cells[0].get("host_ms_per_token")], 4),
            ]
        )
    return table(header, lines)


def rows(records: Sequence[Record]) -> list[Row]:
    """DMPQ against every method of its budget, and its rise over static 8 bit against the goal of 1 %."""
    preset, seeds = records[0]["preset"], tuple(record["seed"] for record in records)
    found = []
    for part, said in (("recipes", "perplexity, not retrained"), ("tuned", "perplexity, retrained equally")):
        keys = listed(records, part)
        for ours in [key for key in keys if key.partition("@")[0] == OURS]:
            budget = ours.partition("@")[2]
            for peer in [k for k in keys if k != ours and k.partition("@")[2] in (budget, "")]:
                a, b = ([r[part][k]["perplexity"]["token"] for r in records] for k in (ours, peer))
                equal = abs(fmean(r[part][ours]["mean_bits"] - r[part][peer]["mean_bits"] for r in records)) < 0.01
                goal = 1 / 1.01 if peer == STATIC else 1.0 if equal else None  # at unequal bytes there is no goal
                case = f"{preset}, {budget} mean bits"
                ratio = float(np.exp(np.mean(np.log(b)) - np.mean(np.log(a))))
                p = (
                    None
                    if len(seeds) < 2 or np.ptp(np.log(a) - np.log(b)) < 1e-12
                    else ttest_rel(*np.log([a, b])).pvalue
                )
                found.append(
                    Row(case, said, *spread(a), *spread(b), peer, ratio, goal, "measured", seeds, p and float(p))
                )
    return found


def front(records: Sequence[Record], path: Path) -> None:
    points: dict[str, list[tuple[float, float, float]]] = {}
    for key in listed(records, "recipes"):
        cells = [r["recipes"][key] for r in records]
        ppl = spread([c["perplexity"]["token"] for c in cells])
        points.setdefault(key.partition("@")[0], []).append((cells[0]["bytes"] / 1e6, *ppl))
    memory_front({name: sorted(set(line)) for name, line in points.items()}, path)


def studied(settings: Sequence[study.Settings], at_once: int) -> None:
    """Run studies in processes of their own, so many at a time."""
    context = multiprocessing.get_context("spawn")
    waiting = list(settings)
    running: list[Any] = []
    while waiting or running:
        while waiting and len(running) < at_once:
            running.append(context.Process(target=study.run, args=(waiting.pop(0),)))
            running[-1].start()
        running[0].join()
        if (status := running.pop(0).exitcode) != 0:
            raise click.ClickException(f"a study ended with {status}; its process has said why")


def write_tables(studies: Mapping[str, Sequence[Record]], path: Path) -> None:
    parts = []
    for preset, records in studies.items():
        front(records, path.with_suffix(f".{preset}.svg"))
        parts.append(f"### {preset}, without retraining\n\n{untuned_table(records)}\n")
        if listed(records, "tuned"):
            parts.append(f"### {preset}, retrained equally\n\n{tuned_table(records)}\n")
    write_text(path.with_suffix(".tables.md"), "\n".join(parts))
    write_json(path.with_suffix(".studies.json"), {name: list(records) for name, records in studies.items()})


@click.command(cls=Benchmark, help=__doc__)
@click.option("--data", help="Corpus of the models, as `wattbit train` takes it; WikiText-2 for the published table.")
@click.option("--task", "tasks", multiple=True, help="GLUE task: a folder or glue/TASK; repeatable.")
@click.option("--quick", is_flag=True, help="The tiny preset, two seeds, one budget: figures that mean nothing.")
@click.option("--device", default="auto", show_default=True, help="cpu, cuda or auto.")
@click.option("--at-once", default=1, show_default=True, help="Studies at a time.")
@click.option("--seconds", default=float("inf"), help="When a study stops; started again, it goes on.")
@click.option("--host", is_flag=True, help="Measure the first seed's allocations on this machine; keep it quiet.")
@click.option("--studies", type=click.Path(path_type=Path, file_okay=False), help="Where studies are kept.")
@click.option("--json", "path", type=click.Path(path_type=Path, dir_okay=False), help="Write rows and tables there.")
def main(
    data: str | None,
    tasks: tuple[str, ...],
    quick: bool,
    device: str,
    at_once: int,
    seconds: float,
    host: bool,
    studies: Path | None,
    path: Path | None,
) -> None:
    presets, seeds = (("tiny",), (0, 1)) if quick else (("wt2-e16", "wt2-e64"), SEEDS)
    out = studies or cache_folder() / ("methods-quick" if quick else "methods")
    more: Record = {"budgets": (2.5,), "steps": 2, "iterations": 5} if quick else {}
    wanted = []
    for preset in presets:
        vocabulary = PRESETS[preset].model.vocab_size
        prepared = out / f"data-{vocabulary}"
        for seed in seeds:
            one = study.Settings(preset, seed, prepared, data, tasks, out, device, seconds=seconds, **more)
            finished = one.file.exists() and "end" in read_json(one.file)["seconds"]
            if not finished and not (prepared / "data.json").exists():
                prepare(data, prepared, vocabulary)
            wanted += [] if finished else [one]
    studied(wanted, at_once)
    found = {p: [shortened(read_json(out / f"{p}-{seed}.json")) for seed in seeds] for p in presets}
    if host:
        for records in found.values():
            on_host(records[0])
    every = [row for records in found.values() for row in rows(records)]
    show(every)
    if path:
        write(every, path)
        write_tables(found, path)


if __name__ == "__main__":
    main()
