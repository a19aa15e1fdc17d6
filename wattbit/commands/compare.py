"""`wattbit compare`: methods x budgets x seeds, one table with paired tests, and the front as a picture."""

import csv
import io
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from statistics import fmean, stdev
from typing import Any

import click

from wattbit.commands.eval import Judge, judge_run
from wattbit.display import Display
from wattbit.errors import WattbitError
from wattbit.files import digest_json, read_json, sha256_file, write_json, write_text
from wattbit.perform import RUNS, model_options, start, writable
from wattbit.pipeline import PIPELINE
from wattbit.presets import run_config
from wattbit.progress import Progress
from wattbit.recipe import Budget
from wattbit.report import figure, significant, table
from wattbit.run import Run

DIGITS = {"mean_bits": 2, "perplexity": 3, "word_perplexity": 2}
HEADS = {
    "mean_bits": "mean bits",
    "expert_MB": "expert MB (packed)",
    "perplexity": "perplexity a token (measured)",
    "word_perplexity": "perplexity a word (measured)",
    "ms_per_token": "ms/token",
    "mj_per_token": "mJ/token above idle",
    "decide_s": "decide, s (measured)",
}
COSTS = ("ms_per_token", "mj_per_token")

Cell = dict[str, Any]


def cell(judge: Judge, method: str, bits: float, seed: int, progress: Progress) -> Cell:
    """One method at one budget on one run: its recipe and what it does, or why the method refuses."""
    start = time.monotonic()
    try:
        recipe = judge.decide(method, Budget(bits), seed)
    except WattbitError as error:
        return {"refused": str(error)}
    decided = time.monotonic()
    return judge.evaluate(recipe, progress) | {"recipe": recipe.to_json(), "decide_s": decided - start}


def inputs_digest(run: Run, tasks: Sequence[str]) -> str:
    """What a run's cells follow from besides method and budget: run, code, the tasks' rows and the test text."""
    from wattbit.models.tasks import read_task

    texts = [Path(run.config.data, "test.txt")] if run.config.data else []
    judging = [sha256_file(path) for path in texts if path.is_file()]
    rows = [asdict(read_task(task)) for task in tasks]
    return digest_json([run.config.digest, PIPELINE.key("search", run), rows, judging])


def metrics(found: Cell) -> dict[str, float | None]:
    """The table's figures of a cell; a task's score is under its name."""
    cost = found["cost"] or {}
    return {
        "mean_bits": found["mean_bits"],
        "expert_MB": found["expert_bytes"] / 1e6,
        "perplexity": found["perplexity"]["token"],
        "word_perplexity": found["perplexity"]["word"],
        **found["glue"],
        **{name: cost.get(name) for name in COSTS},
        "decide_s": found["decide_s"],
    }


@dataclass(frozen=True)
class Line:
    """A method at a budget over the seeds. p: of a paired, two-sided t-test of log perplexity against the reference at
    the same budget; None for the reference itself, for fewer than two seeds and where all differences are alike."""

    method: str
    bits: float
    seeds: int
    values: Mapping[str, tuple[float, float | None] | None]
    p: float | None
    priced: str | None
    """How its time and energy are known: measured or modelled; None where nothing priced it."""


def lines(cells: Mapping[tuple[str, float, int], Cell], reference: str) -> list[Line]:
    """One line a method and budget, budgets together, in the cells' order; what was refused has none."""
    grouped: dict[tuple[float, str], dict[int, dict[str, float | None]]] = {}
    for (method, bits, seed), found in cells.items():
        if "refused" not in found:
            grouped.setdefault((bits, method), {})[seed] = metrics(found)
    made = []
    for (bits, method), by_seed in sorted(grouped.items(), key=lambda item: item[0][0]):
        names = next(iter(by_seed.values()))
        values = {name: spread([each[name] for each in by_seed.values()]) for name in names}
        p = paired(by_seed, grouped.get((bits, reference), {}))
        costs = [cells[method, bits, seed]["cost"] or {} for seed in by_seed]
        priced = next((cost["provenance"] for cost in costs if "provenance" in cost), None)
        made.append(Line(method, bits, len(by_seed), values, p, priced))
    return made


def spread(values: Sequence[float | None]) -> tuple[float, float | None] | None:
    """Mean and standard deviation, which one reading does not have; None where a value is missing."""
    known = [value for value in values if value is not None]
    if len(known) < len(values):
        return None
    return fmean(known), stdev(known) if len(known) > 1 else None


def paired(ours: Mapping[int, dict[str, Any]], theirs: Mapping[int, dict[str, Any]]) -> float | None:
    import numpy as np
    from scipy.stats import ttest_rel

    seeds = sorted(set(ours) & set(theirs))
    a, b = (np.log([side[seed]["perplexity"] for seed in seeds]) for side in (ours, theirs))
    if len(seeds) < 2 or np.ptp(a - b) < 1e-12:
        return None
    return float(ttest_rel(a, b).pvalue)


def markdown(found: Sequence[Line], reference: str) -> str:
    names = [name for name in found[0].values if any(line.values[name] for line in found)]
    priced = next((f" ({line.priced})" for line in found if line.priced), "")
    heads = [HEADS.get(name, f"GLUE {name} (measured)") + priced * (name in COSTS) for name in names]
    header = ["method", "budget, bits", *heads, f"p against {reference}", "seeds"]
    return table(header, [_cells(line, names) for line in found])


def _cells(line: Line, names: Sequence[str]) -> list[str]:
    shown = []
    for name in names:
        value = line.values[name]
        digits = DIGITS.get(name)
        if value is None:
            shown.append("-")
        elif digits is None:
            shown.append(significant(value[0]))
        else:
            shown.append(figure(value[0], digits) + ("" if value[1] is None else f" ± {figure(value[1], digits)}"))
    return [line.method, f"{line.bits:g}", *shown, "-" if line.p is None else f"{line.p:.2g}", str(line.seeds)]


def as_csv(found: Sequence[Line]) -> str:
    stream = io.StringIO()
    writer = csv.writer(stream, lineterminator="\n")
    names = list(found[0].values)
    writer.writerow(
        ["method", "budget_bits", "seeds", *(f"{n}_{part}" for n in names for part in ("mean", "std")), "p", "priced"]
    )
    for line in found:
        pairs = [line.values[name] or ("", "") for name in names]
        values = [value for pair in pairs for value in pair]
        p = "" if line.p is None else line.p
        writer.writerow([line.method, line.bits, line.seeds, *values, p, line.priced or ""])
    return stream.getvalue()


def numbers(text: str) -> tuple[float, ...]:
    try:
        return tuple(float(part) for part in text.split(","))
    except ValueError:
        raise WattbitError(f"a list of numbers is written like 2.5,3,4, not {text!r}") from None


def known(methods: str, reference: str) -> tuple[str, ...]:
    """The methods of a list; all without one. The reference is among them."""
    from wattbit.policy.methods.registry import METHODS, check_name

    chosen = tuple(methods.split(",")) if methods else METHODS
    for name in (*chosen, reference):
        check_name(name)
    return tuple(dict.fromkeys((reference, *chosen)))


@click.command()
@model_options
@click.option(
    "--methods", default="", help="Methods with commas between, for instance gptq,mcmoe,dmpq; by default all."
)
@click.option("--budgets", default="2.5,3,4", show_default=True, help="Mean weight bits with commas between.")
@click.option(
    "--seeds", default=3, show_default=True, type=click.IntRange(1), help="Trainings: --seed and those after."
)
@click.option("--reference", default="random", show_default=True, help="Method that the tests compare with.")
@click.option("--task", "tasks", multiple=True, help="GLUE task: a folder or glue/TASK; repeatable.")
@click.option(
    "--out",
    required=True,
    type=click.Path(path_type=Path, file_okay=False),
    help="Folder of the cells, table.csv, table.md and front.svg.",
)
def command(
    preset: str,
    data: str | None,
    board: str,
    seed: int,
    methods: str,
    budgets: str,
    seeds: int,
    reference: str,
    tasks: tuple[str, ...],
    out: Path,
) -> None:
    """Compare precision methods at equal budgets on models of several training seeds.

    Each seed is a run of its own, each method at each budget a file under OUT/cells; what is there is not redone while
    code, tasks and test text are the same.
    """
    from wattbit import plots

    chosen, wanted = known(methods, reference), numbers(budgets)
    for bits in wanted:
        Budget(bits)
    writable(out)
    cells: dict[tuple[str, float, int], Cell] = {}
    for each in range(seed, seed + seeds):
        config = run_config(preset, data, board, each)
        inputs = inputs_digest(Run(RUNS / config.digest, config), tasks)
        paths = {(m, b): out / "cells" / f"{inputs}-{m}-{b!r}.json" for m in chosen for b in wanted}
        if not all(path.exists() for path in paths.values()):
            start(config, "train")
            _fill(Run.create(RUNS, config), paths, each, tasks)
        cells |= {(m, b, each): read_json(path) for (m, b), path in paths.items()}
    found = lines(cells, reference)
    if not found:
        raise WattbitError(f"every method refuses the budgets {budgets}; give larger ones")
    write_text(out / "table.csv", as_csv(found))
    write_text(out / "table.md", markdown(found, reference) + "\n")
    points: dict[str, list[tuple[float, float, float | None]]] = {}
    for line in found:
        size, perplexity = line.values["expert_MB"], line.values["perplexity"]
        if size and perplexity:
            points.setdefault(line.method, []).append((size[0], *perplexity))
    plots.memory_front(points, out / "front.svg")
    click.echo(markdown(found, reference))
    for (method, bits, each), found_cell in cells.items():
        refused = found_cell.get("refused") or (found_cell["cost"] or {}).get("refused")
        if refused:
            click.echo(f"{method} at {bits:g} bits, seed {each}: {refused}")


def _fill(run: Run, paths: Mapping[tuple[str, float], Path], seed: int, tasks: Sequence[str]) -> None:
    with Display() as display:
        display.begin("open", f"run {run.folder}")
        judge = judge_run(run, tasks, None, display)
        for (method, bits), path in paths.items():
            display.begin("compare", f"{method} at {bits:g} bits, seed {seed}")
            if not path.exists():
                write_json(path, cell(judge, method, bits, seed, display))
