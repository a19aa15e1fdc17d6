"""The `wattbit` command."""

import errno
import importlib
import json
import pkgutil
import signal
import sys
import warnings
from pathlib import Path
from typing import Any

import click

from wattbit import __version__, commands
from wattbit.display import Display
from wattbit.doctor import conclusions, examine
from wattbit.errors import WattbitError
from wattbit.perform import json_option, model_options, one_run, perform, run_option, start
from wattbit.presets import run_config
from wattbit.run import cache_folder

WHOLE = 200  # characters: first sentences are not cut off
FULL = ("the disk is full", "free some space and run again")
FORBIDDEN = ("access is refused", "run in a folder that you may write to, or change its rights")
REFUSED = {
    **{errno.ENOSPC: FULL, errno.EDQUOT: FULL},
    **{errno.EACCES: FORBIDDEN, errno.EPERM: FORBIDDEN, errno.EROFS: FORBIDDEN},
    errno.ENOTDIR: ("a file lies in the place of a folder", "move it or run elsewhere"),
}

SECTIONS = {
    "Everything": ("demo",),
    "Its stages": ("train", "stats", "search", "cotrain", "export", "build", "deploy", "bench", "controls", "report"),
    "Boards": ("board", "rollback", "generate", "meter", "calibrate", "tune", "virtual-board"),
    "Models": ("quantize", "compile", "eval", "compare", "explain"),
    "This machine": ("doctor", "setup"),
}
"""The commands as `wattbit --help` lists them."""


class Commands(click.Group):
    """Commands whose expected failures are one line on stderr and a non-zero exit status; listed by SECTIONS."""

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        for title, names in SECTIONS.items():
            with formatter.section(title):
                formatter.write_dl([(name, self.commands[name].get_short_help_str(WHOLE)) for name in names])

    def invoke(self, ctx: click.Context) -> Any:
        try:
            return super().invoke(ctx)
        except WattbitError as error:
            click.echo(f"wattbit: {' '.join(str(error).split())}", err=True)
            ctx.exit(1)
        except KeyboardInterrupt:
            click.echo("wattbit: interrupted; the same command resumes from here", err=True)
            ctx.exit(130)
        except OSError as error:
            if error.errno not in REFUSED:  # a bug, which keeps its traceback, or a closed pipe, which click handles
                raise
            what, remedy = REFUSED[error.errno]
            where = f" at {error.filename}" if error.filename else ""
            click.echo(f"wattbit: {what}{where}; {remedy}", err=True)
            ctx.exit(1)


@click.group(cls=Commands, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(__version__, prog_name="wattbit")
def main() -> None:
    """Mixed-precision Mixture-of-Experts, from PyTorch to FPGA and ARM boards.

    Every stage reads and writes a run folder, runs/DIGEST, and first runs the stages that it needs. A finished stage
    is not redone; an interrupted one resumes.
    """
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    warnings.filterwarnings("ignore", message="fast_hadamard_transform")  # brevitas, of a kernel that nothing here uses


@main.command()
def setup() -> None:
    """Prepare what is slow the first time: yosys' compiled cache and the virtual board's root folder."""
    from wattbit.pipeline import prepare_machine

    with Display() as display:
        display.begin("setup", "machine")
        prepare_machine(cache_folder(), display, display.say)


@main.command()
@json_option
def doctor(as_json: bool) -> None:
    """Say what is installed, what is missing, and what follows."""
    findings = examine()
    follows = conclusions(findings)
    if as_json:
        click.echo(json.dumps({"findings": [f.to_json() for f in findings], "conclusions": list(follows)}, indent=1))
        return
    for finding in findings:
        if finding.found:
            click.echo(f"ok  {finding.name} ({finding.found}): {finding.gives}")
        else:
            click.echo(f"--  {finding.name} is missing: no {finding.gives}; {finding.remedy}")
    for line in follows:
        click.echo(line)


@main.command()
@model_options
@json_option
def train(preset: str, data: str | None, board: str, seed: int, as_json: bool) -> None:
    """Make a run: corpus, vocabulary and the float model."""
    start(run_config(preset, data, board, seed), "train", as_json)


@main.command()
@model_options
@json_option
def demo(preset: str, data: str | None, board: str, seed: int, as_json: bool) -> None:
    """Do everything, from text to an energy report on the virtual board.

    11 to 14 minutes on 2 cores with the default preset. Ctrl-C at any time: the same command goes on from there.
    """
    start(run_config(preset, data, board, seed), "report", as_json)


def stage_command(name: str, text: str) -> None:
    """Add the command of one stage, which works on an existing run."""

    @main.command(name=name, help=text)
    @run_option
    @json_option
    def command(folder: Path | None, as_json: bool) -> None:
        perform(one_run(folder), name, as_json)


for stage_name, stage_help in {
    "stats": "Collect every expert's statistics: frequency, contribution, gradient, damage at each width.",
    "export": "Write one QONNX file per expert and one for router and backbone, checked by executing them.",
    "build": "Build the FPGA engines (FINN RTL, simulated, synthesised) and the ARM kernels.",
    "controls": "Simulate every control's engines with its own fine-tuned weights, for the report's table.",
    "report": "Write report.md and report.html.",
}.items():
    stage_command(stage_name, stage_help)


for module in pkgutil.iter_modules(commands.__path__):
    main.add_command(
        importlib.import_module(f"{commands.__name__}.{module.name}").command, module.name.replace("_", "-")
    )
