"""`wattbit virtual-board`: the virtual board's system tier, by itself."""

import click

from wattbit.display import Display
from wattbit.errors import WattbitError
from wattbit.run import cache_folder


@click.group()
def command() -> None:
    """Build, start or stop a virtual board with a kernel, sshd and power sensor of its own, in QEMU."""


@command.command()
def build() -> None:
    """Build its image from Debian packages, boot it once and save its state; minutes, once."""
    from wattbit.board.system_image import ensure

    with Display() as display:
        display.begin("setup", "virtual board")
        click.echo(ensure(cache_folder(), display))


@command.command()
def start() -> None:
    """Start it from its saved state, build it first if need be, and say how to reach it."""
    from wattbit.board.system import NAME, Detached

    with Display() as display:
        display.begin("setup", "virtual board")
        board = Detached.start(cache_folder(), display)
    click.echo(f"process {board.pid}; ssh -F {board.config} {NAME}")


@command.command()
def stop() -> None:
    """Stop the one that `start` started, by its own process id."""
    from wattbit.board.system import Detached

    board = Detached.running(cache_folder())
    if board is None:
        raise WattbitError("no virtual board runs; start one with `wattbit virtual-board start`")
    board.stop()
    click.echo(f"process {board.pid} was told to end")
