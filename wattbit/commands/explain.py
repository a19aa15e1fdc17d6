"""`wattbit explain`: which experts got which widths, and why."""

import json
from pathlib import Path
from typing import Any

import click

from wattbit.commands.quantize import recipe_record
from wattbit.errors import WattbitError
from wattbit.files import read_json, write_json, write_text
from wattbit.perform import json_option, one_run, run_option, writable
from wattbit.plan import Allocation, ExpertStats
from wattbit.recipe import Recipe
from wattbit.report import significant, table


def read_allocation(path: Path) -> Allocation:
    """Of a recipe's or an allocation's JSON file, or of what `wattbit compare` or `wattbit eval --json` gave."""
    record = recipe_record(path)
    recipe = isinstance(record, dict) and "allocation" in record
    try:
        return Recipe.from_json(record).allocation if recipe else Allocation.from_json(record)
    except WattbitError as error:
        raise WattbitError(f"{path}: {error}") from None


def rows(found: dict[str, Any]) -> str:
    """Every expert's width beside its features and its damage a bit."""
    names = ["frequency", "contribution", "gradient_norm", "router_change", "max_variance", "kurtosis"]
    more = ["damage_nats", "kept_nats_per_bit", "offered_nats_per_bit"]
    header = ["expert", "bits", "tokens", *(name.replace("_", " ") for name in (*names, *more)), "verdict"]
    lines = [
        [e["expert"], str(e["weight_bits"]), str(e["tokens"])]
        + [significant(e[name]) if name != "damage_nats" else f"{e[name]:.1e}" for name in names]
        + ["-" if e[name] is None else f"{e[name]:.1e}" for name in more]
        + [e["verdict"]]
        for e in found["experts"]
    ]
    return table(header, lines)


def text(found: dict[str, Any], sentences: list[str]) -> str:
    known = {name: value for name, value in found["correlations"].items() if value is not None}
    ranked = sorted(known.items(), key=lambda pair: -abs(pair[1]))
    said = ", ".join(f"{name.replace('_', ' ')} {value:+.2f}" for name, value in ranked)
    excess = found["damage_nats"] - found["least_damage_nats"]
    odd = [line for line in sentences if line.endswith("says")]
    parts = [
        f"Rank correlation of the width with: {said or 'nothing, for all widths are the same'}.",
        f"Damage {found['damage_nats']:.4f} nats a token, {excess:.4f} above the table's optimum of the same bits; "
        f"a bit costs {found['price_nats_per_bit']:.2e} nats.",
        rows(found),
    ]
    if found["unseen"]:
        parts.append(f"No calibration token reached {', '.join(found['unseen'])}.")
    if odd:
        parts.append("Not by its damage alone:\n\n" + "\n".join(f"- {line}" for line in odd))
    return "\n\n".join(parts) + "\n"


@click.command()
@run_option
@click.option(
    "--recipe",
    type=click.Path(path_type=Path, exists=True, dir_okay=False),
    help="JSON file of a recipe or an allocation, or of `wattbit compare` (OUT/cells) or `wattbit eval --json`; by "
    "default what the run's policy found.",
)
@click.option(
    "--out",
    type=click.Path(path_type=Path, file_okay=False),
    help="Folder of explain.md, explain.json and widths.svg; by default explain/ in the run.",
)
@json_option
def command(folder: Path | None, recipe: Path | None, out: Path | None, as_json: bool) -> None:
    """Say which experts of a run got which widths and why: features, damage, price of a bit, calibration tokens."""
    from wattbit import plots
    from wattbit.policy.explain import explain
    from wattbit.policy.smoothing import smoothed

    run = one_run(folder)
    for stage, lacks in (("stats", "statistics"), *([] if recipe else [("cotrain", "allocation of its own")])):
        if run.record(stage) is None:
            raise WattbitError(f"{run.folder} has no {lacks}; run `wattbit {stage}` with its options")
    stats = [ExpertStats.from_json(record) for record in read_json(run.path("stats", "stats.json"))["experts"]]
    allocation = read_allocation(recipe or run.path("cotrain", "allocation.json"))
    explained = explain(stats, allocation)
    found = explained.to_json()
    out = writable(out or run.path("explain"))
    sentences = [row.sentence(explained.price_nats_per_bit) for row in explained.experts]
    said = text(found, sentences)
    plots.reasons(smoothed(stats), allocation, out / "widths.svg")
    write_text(out / "explain.md", "![widths](widths.svg)\n\n" + said)
    write_json(out / "explain.json", found | {"sentences": sentences})
    click.echo(json.dumps(found, indent=1) if as_json else said)
    click.echo(f"kept in {out}: explain.md, explain.json, widths.svg", err=True)
