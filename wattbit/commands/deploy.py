"""`wattbit deploy`: the run's bundle on its board, or on boards named with --host."""

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar

import click

from wattbit.display import Display
from wattbit.perform import Host, json_option, one_run, perform, run_option
from wattbit.pipeline import target
from wattbit.presets import PRESETS, share
from wattbit.progress import Progress
from wattbit.run import Run, cache_folder

if TYPE_CHECKING:
    from wattbit.board.ssh import Connection

Result = TypeVar("Result")

host_option = click.option(
    "--host",
    "hosts",
    type=Host(),
    multiple=True,
    help="Board to use in place of the run's own, as for ssh: NAME or USER@NAME; may be given more than once.",
)

board_option = click.option(
    "--board", "name", help="Board to use in place of the run's own: what `wattbit board` built last for it."
)


def on_board(run: Run, name: str | None) -> Run:
    """The run as it is on another board than its own, for what becomes of its bundle there."""
    from wattbit.board.targets import load

    if name is None:
        return run
    part = PRESETS[run.config.preset].chip_share
    settings = dict(run.config.settings) | {"target": share(load(name).target, part).to_json()}
    return replace(run, config=replace(run.config, board=name, settings=settings))


def bundle_of(run: Run, progress: Progress) -> Path:
    """The run's bundle, made from what `wattbit build` or `wattbit board` left; it is deployed by whoever asks."""
    from wattbit.board.bundle import make_bundle
    from wattbit.board.targets import load

    out = run.path("hosts", "bundle")
    make_bundle(run.folder, target(run), out, progress, load(run.config.board).power)
    return out


def labelled(display: Display, host: str) -> Progress:
    """Progress that says which board it is of."""

    def progress(what: str, done: int, total: int) -> None:
        display(f"{host}: {what}", done, total)

    return progress


def each(run: Run, hosts: tuple[str, ...], work: "Callable[[Connection, str, Progress], Result]") -> dict[str, Result]:
    """What `work` gives for a connection to every host, one after the other; "" is the run's own board."""
    from wattbit.board.connect import board

    found: dict[str, Result] = {}
    with Display() as display:
        for host in hosts:
            label = host or run.config.board
            display.begin("deploy", label)
            progress = labelled(display, label)
            with board(run.config.board, cache_folder(), run.path("board"), progress, host or None) as connection:
                found[label] = work(connection, host, progress)
    return found


@click.command()
@run_option
@board_option
@host_option
@json_option
def command(folder: Path | None, name: str | None, hosts: tuple[str, ...], as_json: bool) -> None:
    """Pack the bundle and put it on the board over SSH; only files that changed are sent.

    The board switches to the new version in one step and keeps the one before for `wattbit rollback`.
    """
    from wattbit.board.deploy import deploy

    run = one_run(folder)
    there = on_board(run, name)
    if not hosts and name is None:
        perform(run, "deploy", as_json)
        if not as_json:
            click.echo(f"{run.config.board}: {(run.record('deploy') or {})['result']['place']}")
        return
    perform(run, "build")
    with run.lock():
        bundle = bundle_of(there, lambda what, done, total: None)
        places = each(there, hosts or ("",), lambda connection, host, progress: deploy(bundle, connection, progress))
    if as_json:
        click.echo(json.dumps({"run": str(run.folder), "places": places}, indent=1))
    else:
        click.echo("\n".join(f"{host}: {place}" for host, place in places.items()))
