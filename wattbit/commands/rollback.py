"""`wattbit rollback`: boards go back to the version before the current one."""

import json
from pathlib import Path

import click

from wattbit.commands.deploy import each, host_option
from wattbit.errors import WattbitError
from wattbit.perform import json_option, one_run, run_option


@click.command()
@run_option
@host_option
@json_option
def command(folder: Path | None, hosts: tuple[str, ...], as_json: bool) -> None:
    """Go back to the bundle that was deployed before the current one; a second time undoes the first."""
    from wattbit.board.deploy import rollback
    from wattbit.board.targets import load

    run = one_run(folder)
    described = load(run.config.board)
    if not hosts and described.tier == "system":
        raise WattbitError("a board of the system tier is made anew each time; name a board with --host")
    names = hosts or ((described.ssh.host,) if described.ssh else ("",))  # "": the light tier's, whose disk is kept
    found = each(run, names, lambda connection, host, progress: rollback(connection))
    if as_json:
        click.echo(json.dumps(found, indent=1))
    else:
        click.echo("\n".join(f"{host}: from {one['from']} back to {one['to']}" for host, one in found.items()))
