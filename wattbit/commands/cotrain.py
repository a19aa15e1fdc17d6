"""`wattbit cotrain`: the run's own co-training, or another one beside it; alone, or with torchrun's processes."""

import json
import os
from dataclasses import replace
from pathlib import Path
from typing import Any

import click

from wattbit import summary
from wattbit.display import Display
from wattbit.errors import WattbitError
from wattbit.files import digest_json
from wattbit.perform import SEED, json_option, one_run, perform, run_option
from wattbit.pipeline import PIPELINE, cotrain_at, team_learner

DRAWS = 16  # of the policy, where --widths sampled asks for some and the run says none


@click.command()
@run_option
@json_option
@click.option("--rounds", type=click.IntRange(min=1), help="Turns of statistics, search and fine-tuning.")
@click.option("--steps", type=click.IntRange(min=1), help="Fine-tuning steps a round.")
@click.option(
    "--widths",
    type=click.Choice(["best", "expected", "sampled"]),
    help="Fine-tune at the policy's best allocation, at its rounded expectation, or at allocations drawn from it.",
)
@click.option("--seed", type=SEED, help="Seed of the fine-tuning.")
def command(folder: Path | None, as_json: bool, **options: Any) -> None:
    """Alternate policy updates and fine-tuning at the chosen widths; fine-tune the controls equally.

    With any of the options below it is another co-training beside the run's own, kept in cotrainings/DIGEST. Under
    torchrun (`torchrun --nproc-per-node 2 --no-python -- wattbit cotrain`), on one machine or several that see the
    run's folder, fine-tuning is shared by all processes.
    """
    from wattbit.policy.cotrain import CotrainSettings

    run = one_run(folder)
    asked = {name: value for name, value in options.items() if value is not None}
    if "LOCAL_RANK" in os.environ:
        missing = [stage.name for stage in PIPELINE.pending("cotrain", run) if stage.name != "cotrain"]
        if missing:
            raise WattbitError(f"{', '.join(missing)} must be done before torchrun's processes; run `wattbit search`")
        if os.environ["RANK"] != "0":
            if asked or PIPELINE.pending("cotrain", run):
                with team_learner(run).together():
                    pass
            return
    if not asked:
        perform(run, "cotrain", as_json)
        return
    perform(run, "search")
    settings = CotrainSettings.from_json(run.config.settings["cotrain"])
    if asked.get("widths") == "sampled" and not settings.search.draws:
        settings = replace(settings, search=replace(settings.search, draws=DRAWS))
    settings = replace(settings, **asked)
    made_by = PIPELINE.key("cotrain", run)  # other statistics or other code begin another co-training
    place = run.path("cotrainings", digest_json([settings.to_json(), made_by]))
    with run.lock(), Display() as display:
        display.begin("cotrain", "co-training with options")
        result = cotrain_at(run, settings, place, display)
    if as_json:
        click.echo(json.dumps({"folder": str(place), "result": result}, indent=1))
        return
    click.echo(f"{place}/cotrain.json\n{summary.cotrained(result)}")
