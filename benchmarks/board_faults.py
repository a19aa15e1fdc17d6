"""What happens to a benchmark when the board, the connection, the sensor or the accelerator fails.

`python benchmarks/board_faults.py --json results/board_faults.json` takes 8 to 15 minutes; `--quick` half of it. Each
fault is brought about for real on a virtual board: processes are killed, connections cut, disks filled, sensors
stopped. Then the same benchmark is run again, and it is checked that nothing measured was lost, that nothing is half
installed, and that the figures equal those of an undisturbed run within the intervals. Everything here is simulated.

The design is a small stand-in for a Verilated one, in C, which can hang on demand.
"""

import shutil
import sys
import tempfile
from dataclasses import asdict
from pathlib import Path

import click

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))  # the stand-in is among the tests

from fault_site import CROSS, QUICK
from faults import Faults, Outcome, scenarios
from rows import Benchmark, about

from wattbit.board import virtual
from wattbit.files import write_json, write_text


def row(outcome: Outcome) -> str:
    same = "yes" if outcome.as_undisturbed else "**no**"
    energy = f"{outcome.net_mj_per_token:.4g} ± {outcome.net_mj_per_token_half:.2g}"
    kept = f"{outcome.pairs_kept} of {outcome.pairs_before}" if outcome.failed else "all"
    told = outcome.told.replace("|", "/")
    cells = [outcome.fault, outcome.phase, told, kept, outcome.installed, energy, same]
    return "| " + " | ".join(cells) + " |"


def table(outcomes: list[Outcome]) -> str:
    head = [
        "| fault | phase | what the user was told | pairs kept | on the board | net mJ/token after | as undisturbed |",
        "|---|---|---|---:|---|---:|---|",
    ]
    return "\n".join([*head, *map(row, outcomes)])


@click.command(cls=Benchmark, help=__doc__)
@click.option("--quick", is_flag=True, help="Six of the faults.")
@click.option(
    "--json", "path", type=click.Path(path_type=Path), help="Write the outcomes here, table and machine beside it."
)
def main(quick: bool, path: Path | None) -> None:
    if shutil.which(CROSS) is None or shutil.which(virtual.TOOLS[0][0]) is None:
        raise click.ClickException(f"{CROSS} and proot are needed; `make setup` installs them")
    outcomes = []
    with tempfile.TemporaryDirectory(prefix="wattbit-faults-") as folder:
        faults = Faults(Path(folder))
        for scenario in scenarios(faults, quick):
            outcomes.append(scenario())
            click.echo(row(outcomes[-1]))
    if path is not None:
        command = f"python benchmarks/board_faults.py{' --quick' if quick else ''} --json {path}"
        record = {"command": command, "provenance": "simulated", "tier": "light"}
        write_json(path, record | {"outcomes": [asdict(outcome) for outcome in outcomes]})
        write_text(path.with_suffix(".md"), report(outcomes, command))
        about(path)


def report(outcomes: list[Outcome], command: str) -> str:
    good = sum(outcome.good for outcome in outcomes)
    return f"""# Faults (simulated, light virtual board)

`{command}` ({sum(outcome.seconds for outcome in outcomes):.0f} s)

Each fault is brought about for real on a virtual board, then the same command is run again. {good} of {len(outcomes)}
lost no pair that was measured, left nothing half-installed, and ended in the figures of an undisturbed run: the
same cycles, and net energy within the two intervals.

{table(outcomes)}

- "Pairs kept": pairs of idle and active windows that were measured when the fault came, and are in the final file.
- Windows are {QUICK.window_s:g} s and an interval of {QUICK.width:.0%} is enough here, so that the table takes minutes.
- The design is a stand-in for a Verilated one, in C, since it has to hang on demand; pynq, SSH, the agent and the
  benchmark are the real ones. The sensor of the sensor faults is a file in the guest's /sys, as a driver would show it.
- The guest's clock cannot be set on this tier: `tests/test_board_system.py` sets it on the system tier.
"""


if __name__ == "__main__":
    main()
