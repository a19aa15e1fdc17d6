"""Does the energy protocol find what was injected? Random power profiles of known energy through a bad sensor.

`python benchmarks/energy_closure.py --json results/energy_closure.json` takes a minute. Each profile (steps, ramps,
stairs; drift; noise; dropped samples; a sensor that averages, rounds and repeats itself) is measured by the same code
that measures a board, and its true net and absolute energy are compared with the stated 95 % intervals. Everything here
is simulated.
"""

from collections import Counter
from dataclasses import asdict, replace
from pathlib import Path
from statistics import median
from typing import Any

import click
from rows import Benchmark, about

from wattbit.board.bench import Settings
from wattbit.board.energy import evaluate
from wattbit.board.profiles import Profile
from wattbit.board.weigh import LOOK_GROWTH
from wattbit.files import write_json, write_text

PROFILES = 120
QUICK = 24
STOPPING_PAIRS = 28
WIDTH = 0.02
INSIDE = (
    "net_inside",
    "absolute_inside",
    "net_inside_of_the_drawn",
    "net_inside_by_scatter_alone",
    "net_inside_when_stopped",
)


def close(profile: Profile) -> dict[str, Any]:
    """One profile: what was injected, what came back, whether the intervals hold."""
    measurement, net_j, absolute_j = profile.measure()
    energy = evaluate(measurement)
    scatter_j = energy.net_half_j - energy.quantisation_j
    return {
        "profile": asdict(profile),
        "injected_net_j": net_j,
        "drawn_net_j": profile.active_w * profile.window_s,
        "injected_absolute_j": absolute_j,
        "measured": energy.to_json(),
        "net_inside": abs(energy.net_j - net_j) <= energy.net_half_j,
        "net_inside_of_the_drawn": abs(energy.net_j - profile.active_w * profile.window_s) <= energy.net_half_j,
        "net_inside_when_stopped": stopped_inside(profile),
        "net_inside_by_scatter_alone": abs(energy.net_j - net_j) <= scatter_j,
        "absolute_inside": abs(energy.absolute_j - absolute_j) <= energy.absolute_half_j,
    }


def stopped_inside(profile: Profile) -> bool:
    """Whether the interval holds when pairs are added until it is narrow, as `wattbit bench` does."""
    measurement, _, _ = replace(profile, pairs=STOPPING_PAIRS).measure()
    look = Settings().pairs
    while True:
        windows = measurement.windows[: 2 * min(look, STOPPING_PAIRS) + 1]
        samples = tuple(s for s in measurement.samples if s.time_s <= windows[-1].end_s + profile.update_s)
        energy = evaluate(replace(measurement, windows=windows, samples=samples))
        if look >= STOPPING_PAIRS or energy.net_half_j <= WIDTH * abs(energy.net_j):
            return abs(energy.net_j - profile.active_w * profile.window_s) <= energy.net_half_j
        look = max(look + 1, round(look * LOOK_GROWTH))


def table(found: list[dict[str, Any]]) -> str:
    """The closure table: one line a shape of profile, then all."""
    groups: dict[str, list[dict[str, Any]]] = {}
    for one in found:
        groups.setdefault(one["profile"]["shape"], []).append(one)
    groups["all"] = found
    lines = [
        "| shape | profiles | net inside | absolute inside | net of the distribution inside | net, scatter alone "
        "| net, stopped when narrow | half interval of net, median (worst) | error of net, median (worst) |",
        "|---|---:|---:|---:|---:|---:|---:|---:|---:|",
    ]
    for name, group in groups.items():
        counts = Counter(key for one in group for key in INSIDE if one[key])
        half = [one["measured"]["net_half_j"] / abs(one["injected_net_j"]) for one in group]
        error = [abs(one["measured"]["net_j"] / one["injected_net_j"] - 1) for one in group]
        cells = [name, str(len(group)), *(str(counts[key]) for key in INSIDE)]
        cells += [f"{median(values):.2%} ({max(values):.2%})" for values in (half, error)]
        lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines)


def report(found: list[dict[str, Any]], command: str) -> str:
    pairs, seeds = found[0]["profile"]["pairs"], [one["profile"]["seed"] for one in found]
    return f"""# Energy closure (simulated)

`{command}`
({len(found)} profiles, seeds {seeds[0]} to {seeds[-1]}, {pairs} pairs of windows each)

A random power profile of known energy goes through a sensor that averages, rounds to steps, updates more slowly than it
is polled, adds noise and drops up to a fifth of its samples. `wattbit.board.energy` gets the samples and the windows,
nothing else. "Inside": the true energy lies within the stated 95 % interval.

{table(found)}

- Windows differ from each other by up to 2 %, as a board's do. "Net inside" is of the energy injected into these very
  windows: their own differences widen the interval without being an error. "Net of the distribution" is of the mean
  that the windows were drawn from, which is what a benchmark wants to know.
- "Scatter alone" is the interval without the term for rounding: what a quiet signal on a coarse sensor hides is no
  scatter.
- "Stopped when narrow": pairs are added, with few looks, until the interval's half is {WIDTH:.0%} of the net energy (at
  most {STOPPING_PAIRS} pairs), as `wattbit bench` does; compared with the mean of the distribution.
- The profiles are made up. That a board's sensor is linear and its clock right is not tested here.
"""


@click.command(cls=Benchmark, help=__doc__)
@click.option("--quick", is_flag=True, help=f"{QUICK} profiles instead of {PROFILES}.")
@click.option("--json", "path", type=click.Path(path_type=Path), help="Write every profile here, a table beside it.")
def main(quick: bool, path: Path | None) -> None:
    found = [close(Profile.random(seed)) for seed in range(QUICK if quick else PROFILES)]
    click.echo(table(found))
    if path is not None:
        command = f"python benchmarks/energy_closure.py{' --quick' if quick else ''} --json {path}"
        write_json(path, {"command": command, "provenance": "simulated", "profiles": found})
        about(path)
        write_text(path.with_suffix(".md"), report(found, command))


if __name__ == "__main__":
    main()
