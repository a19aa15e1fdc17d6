"""What the commands share: their options, and how a run's stages are performed."""

import json
import os
import shutil
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import click
from click.core import ParameterSource

from wattbit.display import Display
from wattbit.errors import WattbitError
from wattbit.pipeline import PIPELINE, check
from wattbit.presets import PRESETS
from wattbit.run import Run, RunConfig

SEED = click.IntRange(0, 2**32 - 1)
RUNS = Path("runs")


class Host(click.ParamType[str]):
    """A board as for ssh; an empty one, as of an unset variable, would mean the run's own board."""

    name = "host"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> str:
        if not value or str(value).startswith("-") or any(letter.isspace() for letter in value):
            self.fail(f"{value!r} is no host; write it as for ssh, NAME or USER@NAME, or leave it out", param, ctx)
        return str(value)


run_option = click.option(
    "--run",
    "folder",
    type=click.Path(path_type=Path, file_okay=False),
    help="Run folder; by default the last one used.",
)
json_option = click.option("--json", "as_json", is_flag=True, help="Print the result as JSON.")


def model_options(command: Callable[..., None]) -> Callable[..., None]:
    """The options that make a run."""
    for option in (
        click.option("--seed", default=0, show_default=True, type=SEED, help="Seed of training and search."),
        click.option("--board", default="virtual-z2", show_default=True, help="Target board: a name or a TOML file."),
        click.option(
            "--data",
            default=None,
            help="Corpus: a folder, wikitext-2, wikitext-103, c4, glue/TASK; by default Python's sources.",
        ),
        click.option(
            "--preset",
            type=click.Choice(sorted(PRESETS)),
            default="demo",
            show_default=True,
            help="Sizes of model and training: tiny for a try, wt2-* for a GPU.",
        ),
    ):
        command = option(command)
    return command


def device_option(default: str, what: str) -> Callable[[Callable[..., None]], Callable[..., None]]:
    """--device as `models.distributed.choose_device` takes it; what: is computed there."""
    return click.option(
        "--device",
        type=click.Choice(["cpu", "cuda", "auto"]),
        default=default,
        show_default=True,
        help=f"Where {what}; auto: on a GPU where there is one.",
    )


def one_run(folder: Path | None) -> Run:
    """The run of `run_option`."""
    return Run.open(folder) if folder else Run.latest(RUNS)


def writable(out: Path) -> Path:
    """The folder of an --out; WattbitError, before any work, where it can be neither made nor written to."""
    missing: list[Path] = []
    try:
        missing = [folder for folder in (out, *out.parents) if not folder.exists()]
        out.mkdir(parents=True, exist_ok=True)
        refused = None if os.access(out, os.W_OK) else "access is refused"
    except OSError as error:
        refused = error.strerror
    for folder in missing:
        if folder.is_dir():
            folder.rmdir()
    if refused:
        raise WattbitError(f"{out} cannot be written to ({refused}); give another --out")
    return out


def refuse_given(names: Sequence[str], other: str) -> None:
    """UsageError where one of these options was given, which mean nothing without the other one."""
    context = click.get_current_context()
    for name in names:
        if context.get_parameter_source(name) is not ParameterSource.DEFAULT:
            raise click.UsageError(f"--{name.replace('_', '-')} needs {other}")


def perform(run: Run, last: str, as_json: bool | None = None) -> None:
    """Run what is missing up to the stage `last`, showing progress; then say what it found.

    as_json: None where another command needs the stage and speaks for itself.
    """
    with run.lock():
        _perform(run, last)
    _say(run, last, as_json)


def start(config: RunConfig, last: str, as_json: bool | None = None) -> None:
    """`perform` on the run of a configuration; a new run whose first stage fails leaves no folder."""
    new = not (RUNS / config.digest).exists()
    run = Run.create(RUNS, config)
    with run.lock():  # whose holder alone may remove the folder
        try:
            _perform(run, last)
        except WattbitError:
            if new and not any(run.path("stages").glob("*.json")):
                shutil.rmtree(run.folder)
            raise
    _say(run, last, as_json)


def _perform(run: Run, last: str) -> None:
    check(run)
    with Display() as display:
        pending = PIPELINE.pending(last, run)
        display.say(f"run {run.folder}")
        for stage in pending:
            display.begin(stage.name, stage.title)
            record = PIPELINE.execute(stage, run, display)
            display.heed()
            display.say(f"  {stage.name:<8} {stage.title}: {record['seconds']:.1f} s")
        if not pending:
            display.say(f"  {last}: done already, nothing has changed")


def _say(run: Run, last: str, as_json: bool | None) -> None:
    if as_json is None:
        return
    result = (run.record(last) or {})["result"]
    if as_json:
        click.echo(json.dumps({"run": str(run.folder), "stage": last, "result": result}, indent=1))
    elif "summary" in result:
        click.echo(result["summary"])
