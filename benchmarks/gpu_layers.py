"""Whole MoE layers on an NVIDIA GPU under a policy's widths: what a policy chose, time, joules.

    python benchmarks/gpu_layers.py measure [--studies FILE] [--stats FILE ..] [--budget BITS] [--quick] [--json FILE]
    python benchmarks/gpu_layers.py prices STATS --chosen FILE --json FILE

`measure` needs a CUDA device. FILE of --stats is the stats.json of a run; each adds a layer of as many experts on which
policies are trained. FILE of --studies is results/methods.studies.json, whose widths and perplexities are known.
`prices` is the policy without a budget.
"""

import json
import statistics
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import click
import torch
from gpu_timing import bandwidth, row
from rows import Benchmark, Row, show, write

from wattbit.errors import WattbitError
from wattbit.files import read_json, write_json
from wattbit.plan import Allocation, ExpertId, ExpertStats, Meter, Workload
from wattbit.policy.search import SearchResult, SearchSettings, search
from wattbit.presets import PRESETS
from wattbit.tvm_schedules.gpu.bank import Shape
from wattbit.tvm_schedules.gpu.device import find_card
from wattbit.tvm_schedules.gpu.meter import GpuMeter, reached_experts
from wattbit.tvm_schedules.gpu.model import GpuCostModel

LAYERS = {  # by the number of experts in the statistics: shape, experts a token
    16: (Shape(16, 4096, 14336), 2),
    64: (Shape(64, 2048, 1024), 8),
}
STUDY_WIDTHS = (2, 3, 4, 8)  # those of benchmarks/study.py

Keep = Callable[[Mapping[str, Any]], None]


@dataclass(frozen=True)
class Effort:
    """How long the layers' part takes. energy_iterations: of the policy that weighs what it prices; 0 for none."""

    samples: int = 24
    held_out: int = 12
    iterations: int = 20
    energy_iterations: int = 1
    window_s: float = 0.6
    seeds: tuple[int, ...] = (0, 1, 2)
    budget_bits: float = 3.5


def _layer_of(stats: Sequence[ExpertStats]) -> tuple[Shape, Workload]:
    """The layer that stands for a run with these statistics, and one token at a time through it."""
    experts = 1 + max(s.expert.expert for s in stats)
    if experts not in LAYERS:
        raise WattbitError(f"there is a layer of 16 and one of 64 experts, none of {experts}; take another run's stats")
    shape, top_k = LAYERS[experts]
    return shape, Workload(1000, top_k, tuple((s.expert, s.frequency) for s in stats), batch=1)


def layer_part(
    stats: Sequence[ExpertStats], effort: Effort, bytes_per_s: float, say: Callable[[str], None], found_so_far: Keep
) -> list[Row]:
    """A model's MoE layers at one token: calibration, policies on meter and models, and what each chose, measured.

    found_so_far: is given all that is known after each step, for a card may be gone before the last.
    """
    shape, workload = _layer_of(stats)
    experts = shape.experts
    widths = tuple(bits for bits, _ in stats[0].damage)
    meter = GpuMeter(shape, workload, widths, energy_s=effort.window_s)  # every expert at every width
    reached = reached_experts(shape, workload)
    ids = [s.expert for s in sorted(stats, key=lambda s: s.expert)]
    generator = torch.Generator().manual_seed(1)

    def draw() -> Allocation:
        weights = torch.rand(len(widths), generator=generator) + 0.02
        picks = torch.multinomial(weights, len(ids), replacement=True, generator=generator).tolist()
        return Allocation.of({e: widths[k] for e, k in zip(ids, picks, strict=True)}, 8, "host")

    def sample(count: int) -> list[tuple[Allocation, float, float | None]]:
        drawn = [draw() for _ in range(count)]
        return [(a, reading.latency_s, reading.energy_j) for a in drawn for reading in [meter.read(a)]]

    model = GpuCostModel.calibrate(shape, reached, sample(effort.samples))
    errors = _errors(model, sample(effort.held_out))
    say(f"E={experts}: calibrated model on {effort.held_out} held-out allocations: {json.dumps(errors)}")
    known: dict[str, Any] = {"shape": _name(shape, workload), "held_out_errors": errors, "model": model.to_json()}
    found_so_far(known)
    roofline = GpuCostModel.roofline(shape, reached, bytes_per_s, widths)

    found: dict[str, SearchResult] = {}
    for name, result in _policies(stats, widths, workload, meter, model, roofline, effort):
        found[name] = result
        known |= {
            "rewards": {n: {m: [o.reward for o in r.methods[m]] for m in r.methods} for n, r in found.items()},
            "priced": {n: r.priced for n, r in found.items()},
            "chosen": {n: r.best.allocation.to_json() for n, r in found.items()},
        }
        found_so_far(known)
        say(f"E={experts}: policy on {name}: {result.priced} allocations priced")

    allocations = {f"static {bits} bit": Allocation.of(dict.fromkeys(ids, bits), 8, "host") for bits in (8, 4, 3, 2)}
    allocations |= {f"policy on {name}": result.best.allocation for name, result in found.items()}
    controls = found["measured latency"].methods
    allocations["random, same budget"] = controls["random"][0].allocation
    allocations["exact optimum of the damage"] = controls["exact"][0].allocation
    meter.energy_s, meter.repeats = effort.window_s, 15
    meter.rest(effort.window_s)
    table = {}
    for name, allocation in allocations.items():
        table[name] = _priced(meter, allocation) | {"allocation": allocation.to_json()}
        found_so_far(known | {"table": table})
        say(f"E={experts}: {name}: {json.dumps({key: table[name][key] for key in ('mean_bits', 'us', 'mj')})}")
    base = table["static 8 bit"]
    rows = []
    for name, entry in table.items():
        case, bits = f"{experts} experts, one token, {name}", entry["mean_bits"]
        ours, theirs = entry["us"], base["us"]
        metric = f"us a layer at {bits:.2f} bit"
        rows.append(row(case, metric, ours, None, theirs, None, "static 8 bit", theirs / ours, None))
        if entry["mj"] is not None:
            ours, theirs = entry["mj"], base["mj"]
            metric = "mJ a layer above idle"
            rows.append(row(case, metric, ours, None, theirs, None, "static 8 bit", theirs / ours, None))
    return rows


def _policies(
    stats: Sequence[ExpertStats],
    widths: tuple[int, ...],
    workload: Workload,
    meter: GpuMeter,
    model: Meter,
    roofline: Meter,
    effort: Effort,
) -> Iterator[tuple[str, SearchResult]]:
    """Searches that see the same statistics and differ in who prices the hardware: the card, or a formula."""
    settings = SearchSettings(
        weight_bits=widths, budget_bits=effort.budget_bits, seeds=effort.seeds, iterations=effort.iterations
    )
    yield "calibrated model", search(stats, model, workload, settings)
    yield "roofline", search(stats, roofline, workload, settings)
    meter.energy_s = 0.0
    yield "measured latency", search(stats, meter, workload, settings)
    if meter.counter and effort.energy_iterations:
        meter.energy_s = 0.1
        with_energy = replace(
            settings, seeds=effort.seeds[:1], iterations=effort.energy_iterations, energy_nats=settings.latency_nats
        )
        yield "measured latency and energy", search(stats, meter, workload, with_energy)


def study_part(
    name: str, studies: Sequence[Mapping[str, Any]], effort: Effort, say: Callable[[str], None]
) -> tuple[list[Row], dict[str, Any]]:
    """Layers of Mixtral's shape under the widths of a study's retrained models, whose perplexities it measured.

    Every seed's allocations are timed; each is compared with static 8 bit on the same meter.
    """
    config = PRESETS[preset_of(name)].model
    ids = config.expert_ids
    shape, workload = _study_layer(config.experts, config.top_k, ids)
    meter = GpuMeter(shape, workload, STUDY_WIDTHS, energy_s=effort.window_s, repeats=15)
    static = {bits: _priced(meter, Allocation.of(dict.fromkeys(ids, bits), 8, "host")) for bits in STUDY_WIDTHS}
    for bits, entry in static.items():
        say(f"{name}: static {bits} bit: {json.dumps(entry)}")
    found: dict[str, list[dict[str, Any]]] = {}
    for study in studies:
        base = study["tuned"]["uniform8"]["perplexity"]["token"]
        for recipe, tuned in study["tuned"].items():
            widths = dict(zip(ids, map(int, tuned["bits"]), strict=True))
            entry = _priced(meter, Allocation.of(widths, 8, "host"))
            entry |= {"seed": study["seed"], "perplexity_rise": tuned["perplexity"]["token"] / base - 1}
            found.setdefault(recipe, []).append(entry)
            say(f"{name}, seed {study['seed']}: {recipe}: {json.dumps(entry)}")
    rows = []
    for recipe, entries in found.items():
        rise = statistics.fmean(entry["perplexity_rise"] for entry in entries)
        case = f"{name}, one token, {recipe}, perplexity {100 * rise:+.2f} %"
        seeds = tuple(entry["seed"] for entry in entries)
        for metric, key, goal in (("us a layer", "us", 2.5), ("mJ a layer above idle", "mj", None)):
            if static[8][key] is None:
                continue
            ours = [entry[key] for entry in entries]
            for bits, wanted in ((8, goal if recipe.startswith("dmpq") else None), (4, None)):
                theirs = static[bits][key]
                mean, std = statistics.fmean(ours), statistics.stdev(ours) if len(ours) > 1 else None
                made = row(case, metric, mean, std, theirs, None, f"static {bits} bit", theirs / mean, wanted)
                rows.append(replace(made, seeds=seeds))
    return rows, {"static": static, "recipes": found, "layer": _name(shape, workload)}


def preset_of(study: str) -> str:
    """Studies of one preset are told apart by what follows a point."""
    return study.partition(".")[0]


def _study_layer(experts: int, top_k: int, ids: Sequence[ExpertId]) -> tuple[Shape, Workload]:
    """As many experts of Mixtral's shape, all as frequent: a study keeps no frequencies."""
    shape = Shape(experts, 4096, 14336)
    return shape, Workload(1000, top_k, tuple((e, 1 / experts) for e in ids), batch=1)


def _name(shape: Shape, workload: Workload) -> str:
    return f"{shape.d_model}-{shape.d_hidden}-{shape.d_model} SwiGLU, top {workload.top_k} of {shape.experts}"


def _priced(meter: GpuMeter, allocation: Allocation) -> dict[str, Any]:
    """Microseconds and millijoules of a layer and a batch, measured."""
    reading = meter.read(allocation)
    layers = len(meter.layers)
    return {
        "mean_bits": allocation.mean_bits,
        "us": reading.latency_s / layers * 1e6,
        "mj": None if reading.energy_j is None else reading.energy_j / layers * 1e3,
        "watts": reading.busy.power_w if reading.busy else None,
    }


def _errors(model: GpuCostModel, held_out: Sequence[tuple[Allocation, float, float | None]]) -> dict[str, float]:
    """Mean and greatest relative error of latency and energy."""
    found: dict[str, list[float]] = {"latency": [], "energy": []}
    for allocation, seconds, joules in held_out:
        modelled_s, modelled_j = model.batch(allocation)
        found["latency"].append(abs(modelled_s / seconds - 1))
        if joules and modelled_j is not None:
            found["energy"].append(abs(modelled_j / joules - 1))
    return {f"{k} {n}": f(v) for k, v in found.items() if v for n, f in (("mean", statistics.fmean), ("max", max))}


@click.group(help=__doc__)
def main() -> None:
    pass


@main.command(cls=Benchmark)
@click.option("--quick", is_flag=True, help="Few samples and a short search: under 3 minutes.")
@click.option("--json", "path", type=click.Path(path_type=Path, dir_okay=False), help="Write the rows to this file.")
@click.option(
    "--stats", "runs", type=click.Path(path_type=Path, exists=True), multiple=True, help="Of a run: stats.json."
)
@click.option(
    "--studies", type=click.Path(path_type=Path, exists=True), help="results/methods.studies.json: time its widths."
)
@click.option("--study", "names", multiple=True, help="Of --studies: this one alone; repeatable. By default all.")
@click.option("--budget", default=2.75, help="Greatest mean weight width of the policy, in bits.")
def measure(
    quick: bool, path: Path | None, runs: tuple[Path, ...], studies: Path | None, names: tuple[str, ...], budget: float
) -> None:
    """Time layers under the widths of retrained models; search with the card as the meter."""
    if not runs and studies is None:
        raise WattbitError("there is nothing to measure; give --studies FILE or --stats FILE")
    retrained = _retrained(studies, names) if studies else {}
    find_card()
    effort = Effort(10, 4, 2, 0, 0.3, (0,), budget) if quick else Effort(budget_bits=budget)
    rate = bandwidth(3, ()).sum_bytes_s
    extra: dict[str, Any] = {
        "card": torch.cuda.get_device_name(),
        "read_bytes_per_s": rate,
        "layers": {},
        "studies": {},
    }
    rows: list[Row] = []

    def note() -> None:
        if path:
            write_json(path.with_suffix(".chosen.json"), extra)

    def keep(found: list[Row]) -> None:
        for case in dict.fromkeys(one.case for one in found):
            show([one for one in found if one.case == case])
        rows.extend(found)
        if path:
            write(rows, path)
        note()

    def know(run: Path, about: Mapping[str, Any]) -> None:
        extra["layers"][f"{run.resolve().parent.name}/{run.name}"] = dict(about)
        note()

    for name, seeds in retrained.items():
        found, extra["studies"][name] = study_part(name, seeds, effort, click.echo)
        keep(found)
        torch.cuda.empty_cache()
    for run in runs:
        keep(layer_part(_statistics(run), effort, rate, click.echo, partial(know, run)))


def _retrained(path: Path, names: Sequence[str] = ()) -> dict[str, list[dict[str, Any]]]:
    """The studies of a file that have retrained models of a preset's sizes, by name; all, or those of these names."""
    try:
        found = {
            name: seeds
            for name, seeds in read_json(path).items()
            if preset_of(name) in PRESETS and all("uniform8" in one["tuned"] for one in seeds)
        }
    except (AttributeError, KeyError, TypeError):
        found = {}
    if not found:
        raise WattbitError(f"{path} has no retrained models; give results/methods.studies.json")
    missing = [name for name in names if name not in found]
    if missing:
        raise WattbitError(f"{path} has no retrained models {missing[0]}; it has {', '.join(found)}")
    return {name: seeds for name, seeds in found.items() if name in (names or found)}


def _statistics(path: Path) -> tuple[ExpertStats, ...]:
    """The experts' statistics in a run's stats.json, or in a benchmark's. WattbitError for another file."""
    record = read_json(path)
    try:
        found = record["experts"] if isinstance(record, dict) else record
        return tuple(ExpertStats.from_json(one) for one in found)
    except (KeyError, TypeError, ValueError) as error:
        raise WattbitError(f"{path} does not hold experts' statistics ({error!r}); give a run's stats.json") from None


@main.command(cls=Benchmark)
@click.argument("stats", type=click.Path(path_type=Path, exists=True))
@click.option(
    "--chosen", type=click.Path(path_type=Path, exists=True), required=True, help="measure's FILE.chosen.json"
)
@click.option("--json", "path", type=click.Path(path_type=Path, dir_okay=False), help="Write the table to this file.")
def prices(stats: Path, chosen: Path, path: Path | None) -> None:
    """The policy without a memory budget, on the measured time of each width and on the roofline, at three prices."""
    experts = _statistics(stats)
    shape, workload = _layer_of(experts)
    reached = reached_experts(shape, workload)
    record = read_json(chosen)
    name = _name(shape, workload)
    studies = record.get("studies", {}) if isinstance(record, dict) else {}
    static = next((found["static"] for found in studies.values() if found["layer"] == name), None)
    if static is None:
        raise WattbitError(f"{chosen} has no layer {name}; measure one with --studies")
    each = {int(bits): 1e-6 * entry["us"] / workload.top_k for bits, entry in static.items()}
    measured = GpuCostModel(shape, reached, each, None)
    roofline = GpuCostModel.roofline(shape, reached, record["read_bytes_per_s"], STUDY_WIDTHS)
    layers = len({s.expert.layer for s in experts})
    table = []
    for nats in (0.02, 0.1, 0.3):
        for by, model in (("measured", measured), ("roofline", roofline)):
            settings = SearchSettings(weight_bits=STUDY_WIDTHS, budget_bits=8.0, latency_nats=nats, iterations=60)
            best = search(experts, model, workload, settings).best
            table.append(
                {
                    "latency_nats": nats,
                    "priced by": by,
                    "widths": {str(p.weight_bits): len(of) for p, of in best.allocation.classes.items()},
                    "damage_nats": best.damage,
                    "us a layer": measured.batch(best.allocation)[0] / layers * 1e6,
                }
            )
            click.echo(json.dumps(table[-1]))
    if path:
        write_json(path, table)


if __name__ == "__main__":
    main()
