"""Every precision method on the same models: perplexity, GLUE, bytes, time, with and without retraining.

    python benchmarks/methods.py --data FOLDER [--task FOLDER ...] [--quick] [--json FILE] [--studies FOLDER]
    python benchmarks/methods.py --kept results/methods.studies.json --json FILE

Models: the presets wt2-e16 and wt2-e64, three training seeds each, a study (`benchmarks/study.py`) for each preset in
a process of its own; what a study has found stays in --studies and is not redone, so that a GPU machine may take the
studies and another machine the table, which follows from --kept too. Time and energy on the FPGA are modelled, the
planner's for a virtual-z2 and its made-up power, and taken here from the allocations. A ratio is of perplexities, or
of scores turned round, above 1 where DMPQ is better; p is of a paired t-test over the seeds.
"""

import multiprocessing
from collections.abc import Mapping, Sequence
from pathlib import Path
from statistics import fmean
from typing import Any, cast

import click
import numpy as np
import study
from rows import Benchmark, Row, mean_std, show, write
from scipy.stats import ttest_rel
from study_jobs import STUDIED, Record, Settings
from study_records import Records
from study_shorts import joined, kept_studies, on_host, on_rtl, price, shortened

from wattbit.errors import WattbitError
from wattbit.files import digest_json, read_json, write_json, write_text
from wattbit.models.corpus import read_corpus
from wattbit.models.data import prepare
from wattbit.plan import Provenance
from wattbit.plots import memory_front
from wattbit.report import table
from wattbit.run import cache_folder

SEEDS = (0, 1, 2)
DEFAULT = ("wt2-e16", "wt2-e64")  # presets
STATIC = "uniform8"
OURS = ("dmpq", "dmpq-gptq", "dmpq-cotrained")
GLUE_DROP = 0.005
SPEED = 2.0  # times that of static 8 bit
QUICK: dict[str, Any] = {"budgets": (2.5,), "steps": 2, "glue_steps": 4, "iterations": 5, "judged": 4000, "workers": 1}


def pm(values: Sequence[float | None], digits: int = 2, scale: float = 1.0) -> str:
    known = [scale * v for v in values if v is not None]
    if not known:
        return "-"
    mean, std = mean_std(known)
    return f"{mean:.{digits}f}" + ("" if std is None else f" ± {std:.{digits}f}")


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


COSTS = {
    "ms/token, FPGA (modelled)": "ms_per_token",
    "ms/token, FPGA (simulated)": "rtl_ms_per_token",
    "mJ/token, FPGA (modelled)": "mj_per_token",
    "mJ/token, FPGA (simulated)": "rtl_mj_per_token",
    "ms/token, host (measured)": "host_ms_per_token",
}


def costs(cells: Sequence[Record]) -> list[str]:
    """The columns of `COSTS`, simulated and measured ones of the first seed; "-" where one seed's allocation does not
    fit the chip."""
    fits = all(c.get("ms_per_token") is not None for c in cells)
    found = []
    for said, name in COSTS.items():
        own = cells if said.endswith("(modelled)") else cells[:1]
        found.append(pm([c.get(name) for c in own] if fits or "FPGA" not in said else [], 4))
    return found


def untuned_table(records: Sequence[Record]) -> str:
    cells_of = {key: [r["recipes"][key] for r in records] for key in listed(records, "recipes")}
    splits = sorted({split for cells in cells_of.values() for split in cells[0].get("glue", {})})
    header = ["method", "budget", "mean bits", "MB", "perplexity", "above float, %", "word perplexity"]
    header += [*splits, *COSTS, "decide, s"]

    def line(name: str, budget: str, cells: Sequence[Record], above: str, scores: Mapping[str, list[Any]]) -> list[str]:
        return [
            name,
            budget,
            pm([c.get("mean_bits", 16.0) for c in cells]),
            f"{fmean(c['bytes'] for c in cells) / 1e6:.2f}",
            pm([c["perplexity"]["token"] for c in cells]),
            above,
            pm([c["perplexity"]["word"] for c in cells], 1),
            *(pm(scores[split], 4) for split in splits),
            *costs(cells),
            pm([c.get("decide_s") for c in cells], 1),
        ]

    floats = {split: [r["glue"].get(split, {}).get("float") for r in records] for split in splits}
    lines = [line("float, 16 bit", "-", [r["float"] for r in records], "-", floats)]
    for key, cells in cells_of.items():
        name, _, budget = key.partition("@")
        scores = {split: [c.get("glue", {}).get(split) for c in cells] for split in splits}
        lines.append(line(name, budget, cells, pm(rise(records, "recipes", key, None)), scores))
    return table(header, lines)


def tuned_table(records: Sequence[Record]) -> str:
    splits = sorted(records[0]["glue"])
    header = ["allocation", "mean bits", "perplexity", f"above {STATIC}, %", "above float, %", *splits, *COSTS]
    floats = [r["float"]["perplexity"]["token"] for r in records]
    scores = [pm([r["glue"].get(split, {}).get("float") for r in records], 4) for split in splits]
    lines = [["float, not fine-tuned on text", "16.00", pm(floats), "-", "-", *scores, *("-" for _ in COSTS)]]
    for key in listed(records, "tuned"):
        cells = [r["tuned"][key] for r in records]
        lines.append(
            [
                key,
                pm([c["mean_bits"] for c in cells]),
                pm([c["perplexity"]["token"] for c in cells]),
                pm(rise(records, "tuned", key, STATIC)),
                pm(rise(records, "tuned", key, None)),
                *(pm([r["glue"].get(split, {}).get(key) for r in records], 4) for split in splits),
                *costs(cells),
            ]
        )
    return table(header, lines)


def row(
    records: Sequence[Record],
    case: str,
    said: str,
    ours: Sequence[float],
    peer: Sequence[float],
    name: str,
    goal: Any,
    provenance: Provenance = "measured",
) -> Row:
    """ours, peer: what is better the lower it is, by seed."""
    a, b = np.log(ours), np.log(peer)
    alone = len(ours) < 2 or np.ptp(a - b) < 1e-12
    p = None if alone else float(ttest_rel(a, b).pvalue)
    seeds = tuple(record["seed"] for record in records)
    ratio = float(np.exp(np.mean(b) - np.mean(a)))
    return Row(case, said, *mean_std(ours), *mean_std(peer), name, ratio, goal, provenance, seeds, p)


def speed_rows(study_name: str, records: Sequence[Record]) -> list[Row]:
    """How long DMPQ's retrained allocations take against static 8 bit's and the exact optimum's."""
    found = []
    keys = listed(records, "tuned")
    for ours in [key for key in keys if key.partition("@")[0] in OURS]:
        name, _, budget = ours.partition("@")
        for peer in [key for key in (STATIC, f"exact@{budget}") if key in keys]:
            for said, own in COSTS.items():
                what, _, provenance = said.rstrip(")").partition(" (")
                some = records if provenance == "modelled" else records[:1]
                a, b = ([r["tuned"][key].get(own) for r in some] for key in (ours, peer))
                if None not in (*a, *b):
                    goal = SPEED if peer == STATIC and what.startswith("ms") else None
                    case = f"{study_name}, {name} at {budget} mean bits"
                    found.append(row(some, case, what, a, b, peer, goal, cast(Provenance, provenance)))
    return found


def by_gptq(key: str) -> bool:
    """Whether experts are quantized by GPTQ, which is worth more than their widths: compared among themselves."""
    return key.partition("@")[0].endswith("gptq")


def rows(study_name: str, records: Sequence[Record]) -> list[Row]:
    """DMPQ against every method of its budget and quantizer, its rise over static 8 bit against the goal of 1 %, and
    what it loses on tasks against the goal of 0.5 points."""
    found = []
    for part, said in (("recipes", "perplexity, not retrained"), ("tuned", "perplexity, retrained equally")):
        keys = listed(records, part)
        for ours in [key for key in keys if key.partition("@")[0] in OURS]:
            name, _, budget = ours.partition("@")
            for peer in [
                k for k in keys if k != ours and k.partition("@")[2] in (budget, "") and by_gptq(k) == by_gptq(ours)
            ]:
                a, b = ([r[part][k]["perplexity"]["token"] for r in records] for k in (ours, peer))
                sizes = [
                    fmean(r[part][k].get("bytes") or r[part][k]["mean_bits"] for r in records) for k in (ours, peer)
                ]
                fair = sizes[0] <= 1.005 * sizes[1]  # where DMPQ has more bytes there is no goal
                goal = 1 / 1.01 if peer == STATIC else 1.0 if fair else None
                found.append(row(records, f"{study_name}, {name} at {budget} mean bits", said, a, b, peer, goal))
    for split in sorted(records[0]["glue"]):
        scores = [r["glue"][split] for r in records]
        untuned = [
            {k: c["glue"][split] for k, c in r["recipes"].items() if split in c.get("glue", {})} for r in records
        ]
        for said, ours_of, peer in (("retrained", scores, STATIC), ("not retrained", untuned, "float")):
            for ours in [key for key in ours_of[0] if key.partition("@")[0] in OURS]:
                if all(ours in a and peer in b for a, b in zip(ours_of, scores, strict=True)):
                    a, b = [1 - one[ours] for one in ours_of], [1 - one[peer] for one in scores]
                    goal = fmean(b) / (fmean(b) + GLUE_DROP)
                    found.append(row(records, f"{study_name}, {ours}: {split}", f"1 - score, {said}", a, b, peer, goal))
    return found


def front(records: Sequence[Record], path: Path) -> None:
    """Draw perplexity over bytes, not retrained, where there are methods to compare."""
    points: dict[str, list[tuple[float, float, float | None]]] = {}
    for key in listed(records, "recipes"):
        cells = [r["recipes"][key] for r in records]
        ppl = mean_std([c["perplexity"]["token"] for c in cells])
        points.setdefault(key.partition("@")[0], []).append((cells[0]["bytes"] / 1e6, *ppl))
    if len(points) > 1:
        memory_front({name: sorted(set(line)) for name, line in points.items()}, path)


def studied(settings: Sequence[Settings], at_once: int) -> None:
    """Run studies in processes of their own, so many at a time."""
    context = multiprocessing.get_context("spawn")
    waiting = list(settings)
    running: list[tuple[Settings, Any]] = []
    while waiting or running:
        while waiting and len(running) < at_once:
            running.append((waiting[0], context.Process(target=study.run, args=(waiting.pop(0),))))
            running[-1][1].start()
        one, process = running.pop(0)
        process.join()
        if process.exitcode != 0:
            raise WattbitError(
                f"the study of {one.preset}, seeds {one.seeds}, ended with {process.exitcode}; see above"
            )


def write_tables(studies: Mapping[str, Sequence[Record]], path: Path) -> None:
    parts = []
    for preset, records in studies.items():
        front(records, path.with_suffix(f".{preset}.svg"))
        damage = " and ".join(sorted({r.get("made_with", {}).get("damage", "not recorded") for r in records}))
        if listed(records, "recipes"):
            parts.append(f"### {preset}, without retraining\n\nDamage: {damage}.\n\n{untuned_table(records)}\n")
        if listed(records, "tuned"):
            parts.append(f"### {preset}, retrained equally\n\nDamage: {damage}.\n\n{tuned_table(records)}\n")
    write_text(path.with_suffix(".tables.md"), "\n".join(parts))
    write_json(path.with_suffix(".studies.json"), {name: list(records) for name, records in studies.items()})


@click.command(cls=Benchmark, help=__doc__)
@click.option("--data", help="Corpus of the models, as `wattbit train` takes it; WikiText-2 for the published table.")
@click.option("--task", "tasks", multiple=True, help="GLUE task: a folder or glue/TASK; repeatable.")
@click.option("--quick", is_flag=True, help="The tiny preset, two seeds, one budget: figures that mean nothing.")
@click.option(
    "--preset",
    "presets",
    multiple=True,
    type=click.Choice(sorted(STUDIED)),
    help=f"Models; repeatable. By default {' and '.join(DEFAULT)}, or none where --also or --kept is given.",
)
@click.option("--also", multiple=True, help="Studies NAME-SEED.json in --studies, as they are; repeatable.")
@click.option(
    "--kept",
    type=click.Path(path_type=Path, dir_okay=False),
    help="A table's NAME.studies.json: its studies at today's prices, with what new ones of the same models found.",
)
@click.option("--device", default="auto", show_default=True, help="cpu, cuda or auto.")
@click.option("--untuned", is_flag=True, help="Without retraining.")
@click.option("--budget", "budgets", multiple=True, type=click.FloatRange(2, 8), help="Mean bits.")
@click.option("--judged", type=click.IntRange(2), help="Tokens of the test text that judge; by default all.")
@click.option("--iterations", default=150, show_default=True, help="Of DMPQ's policy.")
@click.option("--steps", default=150, show_default=True, help="Of a round of fine-tuning; there are two.")
@click.option("--at-once", default=1, show_default=True, help="Studies at a time.")
@click.option("--workers", default=Settings.workers, show_default=True, help="Processes a study searches with.")
@click.option("--seconds", default=float("inf"), help="When a study stops; started again, it goes on.")
@click.option("--host", is_flag=True, help="Measure the first seed's allocations on this machine; keep it quiet.")
@click.option(
    "--rtl", multiple=True, help="Study whose first seed's allocations are simulated on the FPGA, a minute each."
)
@click.option("--studies", type=click.Path(path_type=Path, file_okay=False), help="Where studies are kept.")
@click.option("--json", "path", type=click.Path(path_type=Path, dir_okay=False), help="Write rows and tables there.")
def main(
    data: str | None,
    tasks: tuple[str, ...],
    quick: bool,
    presets: tuple[str, ...],
    also: tuple[str, ...],
    kept: Path | None,
    device: str,
    untuned: bool,
    budgets: tuple[float, ...],
    judged: int | None,
    iterations: int,
    steps: int,
    at_once: int,
    workers: int,
    seconds: float,
    host: bool,
    rtl: tuple[str, ...],
    studies: Path | None,
    path: Path | None,
) -> None:
    presets, seeds = (("tiny",), (0, 1)) if quick else (presets or (() if also or kept else DEFAULT), SEEDS)
    out = studies or cache_folder() / ("methods-quick" if quick else "methods")
    more: Record = {"judged": judged, "iterations": iterations, "steps": steps, "retrained": not untuned}
    more["workers"] = workers
    more |= {"budgets": budgets} if budgets else {}
    more |= QUICK if quick else {}
    names = sorted({*presets, *also})
    found = kept_studies(kept) if kept else {}
    strange = [name for name in rtl if name not in (*found, *names)]
    if strange:
        raise WattbitError(f"--rtl names {strange[0]}, which is no study here; there are {', '.join((*found, *names))}")
    wanted = []
    for preset in presets:
        vocabulary, corpus = STUDIED[preset].model.vocab_size, read_corpus(data)
        prepared = out / f"data-{vocabulary}-{digest_json([corpus.train, corpus.valid])}"
        if not (prepared / "data.json").exists():
            prepare(data, prepared, vocabulary)
        one = Settings(preset, seeds, prepared, data, tasks, out, device, seconds=seconds, **more)
        wanted += [] if Records(one).finished else [one]
    studied(wanted, at_once)
    for name in names:
        records = [shortened(read_json(out / f"{name}-{seed}.json")) for seed in seeds]
        found[name] = joined(found[name], records) if name in found else records
    for records in found.values():
        for record in records:
            price(record)
    if host:
        for records in found.values():
            on_host(records[0])
    for name in rtl:
        on_rtl(found[name][0], out / "rtl", workers)
    every = [row for name, records in found.items() for row in [*rows(name, records), *speed_rows(name, records)]]
    show(every)
    if path:
        write(every, path)
        write_tables(found, path)


if __name__ == "__main__":
    main()
