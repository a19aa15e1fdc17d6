"""`wattbit bench`: a run's bundle measured on its board, or several runs' on several boards."""

import json
import re
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import click

from wattbit.commands.deploy import board_option, bundle_of, host_option, labelled, on_board
from wattbit.display import Display
from wattbit.perform import json_option, one_run, perform
from wattbit.run import Run, cache_folder

POSITIVE = click.FloatRange(min=0, min_open=True)


@click.command()
@click.option(
    "--run",
    "folders",
    type=click.Path(path_type=Path, file_okay=False),
    multiple=True,
    help="Run folder, by default the last one used; with --host more than one.",
)
@board_option
@host_option
@click.option("--meter", help="External meter: serial:DEVICE, tcp:HOST:PORT or csv:FILE.")
@click.option("--width", type=POSITIVE, help="Half the 95 % interval over net energy that is narrow enough [0.02].")
@click.option("--budget", "budget_s", type=POSITIVE, help="Seconds after which energy is what it is [900].")
@click.option("--window", "window_s", type=POSITIVE, help="Seconds of each idle and each active window [12].")
@json_option
def command(folders: tuple[Path, ...], name: str | None, hosts: tuple[str, ...], as_json: bool, **given: Any) -> None:
    """Run tokens on the board: outputs compared bit by bit, latency, throughput, energy, memory.

    It resumes where it was interrupted. With several boards the runs are spread over them; a board that fails is
    dropped and its work given to the others.
    """
    from wattbit.board.meters import open_meter

    runs = [one_run(folder) for folder in folders or (None,)]
    chosen = {key: value for key, value in given.items() if value is not None}
    there = [on_board(run, name) for run in runs]
    if "meter" in chosen:
        open_meter(chosen["meter"])  # its name alone: what is wrong is said before the stages' minutes
    if not hosts and not chosen and name is None:
        for run in runs:
            perform(run, "bench", as_json)
        return
    for run in runs:
        perform(run, "build")
    results = measure(there, hosts or ("",), chosen)
    if as_json:
        click.echo(json.dumps(results, indent=1))
    else:
        click.echo("\n\n".join(result["summary"] for result in results))


def measure(runs: list[Run], hosts: tuple[str, ...], chosen: dict[str, Any]) -> list[dict[str, Any]]:
    """Results of the runs, which are held meanwhile, measured on these boards; "" is a run's own board."""
    from wattbit.board.bench import Settings, bench
    from wattbit.board.connect import board
    from wattbit.board.fleet import spread

    settings = Settings(**chosen)
    different = {run.folder: run for run in runs}
    with ExitStack() as held, Display() as display:
        for run in different.values():
            held.enter_context(run.lock())
        display.begin("bench", ", ".join(filter(None, hosts)) or "the run's board")
        bundles = {folder: bundle_of(run, display) for folder, run in different.items()}

        def work(run: Run, host: str) -> dict[str, Any]:
            progress = labelled(display, host or run.config.board)
            out = run.path("hosts", re.sub(r"[^\w.@-]", "_", host or Path(run.config.board).stem))
            vectors = run.path("export", "vectors.npz")
            with board(run.config.board, cache_folder(), run.path("board"), progress, host or None) as connection:
                return bench(bundles[run.folder], connection, out, progress, vectors, settings)

        results, failures = spread(runs, hosts, work)
        for host, error in failures.items():
            display.say(f"  {host or 'its own board'} was dropped: {error}")
    return results
