"""`wattbit tune`: the kernels' tilings that are fastest on a board's cores, or on this machine's."""

from collections.abc import Sequence
from contextlib import ExitStack
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

import click

from wattbit.display import Display
from wattbit.files import write_text
from wattbit.perform import RUNS, Host, writable
from wattbit.pipeline import THIS_MACHINE
from wattbit.run import Run, cache_folder, tilings_file

if TYPE_CHECKING:
    from wattbit.board.ssh import Connection
    from wattbit.tvm_schedules.tuning import Run as RunProgram


@click.command()
@click.option("--board", "name", help="Board to tune for: a name or a TOML file; by default that of the last run.")
@click.option(
    "--host", type=Host(), help="Time on this board over SSH, USER@BOARD; localhost is this machine, without SSH."
)
@click.option("--core", "core_name", help="Core to tune for, where it is not the board's own.")
@click.option("--out", type=click.Path(path_type=Path, dir_okay=False), help="Another file than the board's own.")
def command(name: str | None, host: str | None, core_name: str | None, out: Path | None) -> None:
    """Choose the kernels' tilings for a board by trying a small grid of them.

    With --host they are ranked by their time on the board (measured), else by the instructions that qemu counts (a
    proxy: it knows no caches). The result is a file of data, which builds for that board read from then on.
    """
    from wattbit.board.connect import board as connect
    from wattbit.board.targets import load
    from wattbit.tvm_schedules import tuning
    from wattbit.tvm_schedules.cores import find_core, host_core

    if host == THIS_MACHINE:
        board, core = THIS_MACHINE, find_core(core_name or host_core().name)
    else:
        name = name or Run.latest(RUNS).config.board
        target = load(name).target
        board, core = target.name, find_core(core_name or target.core)
    path = out or tilings_file(board)
    writable(path.parent)
    with ExitStack() as stack:
        display = stack.enter_context(Display())
        display.begin("tune", board)
        how, measure = "instructions under qemu", tuning.count_instructions
        if host == THIS_MACHINE:
            how, measure = "seconds on this machine", partial(tuning.time_products, run=tuning.run_here)
        elif host is not None:
            connection = stack.enter_context(connect(str(name), cache_folder(), Path.cwd(), display, host))
            how, measure = f"seconds on {host}", partial(tuning.time_products, run=over(connection))
        costs = tuning.tune(core, measure, display)
    write_text(path, tuning.as_toml(core, how, costs))
    for bits, found in costs.items():
        chosen = tuning.best(found)
        click.echo(f"{bits} bits: {chosen.group_vectors} row vectors at once, {chosen.run_chunks} chunks in a row")
    click.echo(f"by {how}: {path}")


def over(connection: "Connection") -> "RunProgram":
    """Runs a program on the board, which keeps nothing of it."""

    def run(program: Path, arguments: Sequence[str]) -> str:
        folder = connection.run(["mktemp", "-d"]).decode().strip()
        try:
            path = f"{folder}/{program.name}"
            connection.run(["sh", "-c", 'cat > "$0" && chmod 700 "$0"', path], input=program.read_bytes())
            return connection.run([path, *arguments]).decode()
        finally:
            connection.run(["rm", "-r", "--", folder])

    return run
