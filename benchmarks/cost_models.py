"""How far cost models are from what they model, on allocations that they were not calibrated on, for every target.

    python benchmarks/cost_models.py [--quick] [--target NAME ...] [--json FILE]

Each target's constants are fitted to prices of some allocations and tried on others, for three seeds of routing
frequencies and allocations each: `host`, this machine's cores (measured); `arm`, instructions counted under qemu for
two ARM cores (simulated); `fpga`, engines in RTL simulation (simulated). The GPU's errors are those that
benchmarks/gpu_layers.py writes. A row compares the median absolute error (ours) with the goal of 5 %; where a variant
of the model explains the prices better than the plainest, another row compares how far both are from the prices that
they were fitted to. FILE.points.json holds every price, each seed's variant and its worst error; FILE.svg shows
predicted against real prices. Prices are kept in runs/cost-models: an interrupted run goes on where it stopped.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from statistics import fmean, median
from typing import Any

import click
import numpy as np
from rows import Benchmark, Row, mean_std, show, write

from wattbit.errors import InfeasibleError
from wattbit.files import digest_json, write_json
from wattbit.plan import Allocation, Cost, Engine, ExpertId, ExpertShape, Meter, Provenance, Target, Workload
from wattbit.policy.cost.calibration import Sample, best_variant, design, fastest_prices, mixed
from wattbit.policy.cost.cores import CoresDemand
from wattbit.policy.cost.fitting import fit
from wattbit.policy.cost.model import CostModel, Demand
from wattbit.policy.cost.residual import Residual, features
from wattbit.policy.recorded import RecordedMeter

FOLDER = Path("runs/cost-models")
GOAL = 0.05
WIDTHS = (2, 3, 4, 6, 8)
BATCHES = (1, 4, 16)
TOKENS = 1000


@dataclass(frozen=True)
class Case:
    """A model that is priced, and how many mixtures its constants are fitted to, its residual learns, and are left."""

    shape: ExpertShape
    experts: int
    layers: int
    fitted: int
    learned: int
    held_out: int
    rounds: int = 1

    @property
    def ids(self) -> list[ExpertId]:
        return [ExpertId(layer, e) for layer in range(self.layers) for e in range(self.experts)]

    def workloads(self, seed: int, batches: Sequence[int]) -> list[Workload]:
        random = np.random.default_rng(seed)
        shares = [random.dirichlet(np.full(self.experts, 1.5)) for _ in range(self.layers)]
        frequency = tuple((e, float(shares[e.layer][e.expert])) for e in self.ids)
        return [Workload(TOKENS, 2, frequency, batch) for batch in batches]


HOST = Case(ExpertShape(512, 1024), 16, 2, 16, 16, 16, rounds=4)
SMALL = Case(ExpertShape(128, 256), 16, 2, 16, 16, 16, rounds=4)
ARM = Case(ExpertShape(128, 256), 8, 2, 12, 12, 12)
FPGA = Case(ExpertShape(32, 64), 8, 2, 5, 0, 3)
FPGA_WIDTHS, FPGA_BATCH, FPGA_SHARE, LAUNCHED = (2, 4, 8), 16, 1 / 8, 100


@dataclass(frozen=True)
class Found:
    """A target's held-out prices: predicted bare, with the learned residual (None without), half interval, real.

    variant: the settings of the demand's variant. fit_error, plain_fit_error: relative standard error of its fit, and
    of that of the plainest variant. repeat: median difference between the prices of two halves of the rounds, what
    the measurement itself is worth.
    """

    name: str
    provenance: Provenance
    seed: int
    points: tuple[tuple[float, float | None, float, float], ...]
    variant: Mapping[str, Any]
    fit_error: float
    plain_fit_error: float
    repeat: float | None = None

    def errors(self, learned: bool) -> list[float]:
        return [abs((with_residual if learned else bare) / real - 1) for bare, with_residual, _, real in self.points]  # type: ignore[operator]

    @property
    def inside(self) -> float:
        return fmean(abs(real - bare) <= half * bare for bare, _, half, real in self.points)


def tried(
    name: str,
    seed: int,
    case: Case,
    demand: Demand,
    rounds: Sequence[Meter],
    samples: Sequence[Sample],
    learning: Sequence[Sample],
    held_out: Sequence[Sample],
) -> Found:
    """Fit, learn the residual, predict what was held out."""
    found = fastest_prices(rounds, [*samples, *learning, *held_out])
    first, second = len(samples), len(samples) + len(learning)
    fitting = [one for one in found[:first] if one]
    plain = fit(demand.names, [demand.work(a, w) for a, w, _ in fitting], [cost.latency_s for *_, cost in fitting])
    variant, fitted = best_variant(demand, fitting)
    model = CostModel(variant, fitted)
    residual = Residual()
    for allocation, workload, cost in [one for one in found[first:second] if one]:
        bare = model.cost(allocation, workload)
        row = features(allocation, workload, bare)
        residual.learn([row], [float(np.log(cost.latency_s / bare.latency_s))])
    points = []
    provenances = set()
    for allocation, workload, cost in [one for one in found[second:] if one]:
        said = model.predict(allocation, workload)
        factor, _ = residual.correction(features(allocation, workload, said.cost))
        corrected = said.cost.latency_s * factor if learning else None
        points.append((said.cost.latency_s, corrected, said.latency_relative, cost.latency_s))
        provenances.add(cost.provenance)
    (provenance,) = provenances
    return Found(name, provenance, seed, tuple(points), variant.settings, fitted.sigma, plain.sigma)


def recorded(meter: Meter, case: Case, name: str, part: str) -> RecordedMeter:
    key = f"{name}, {case.shape.d_model}-{case.shape.d_hidden}, {case.experts} experts"
    return RecordedMeter(meter, key, FOLDER / f"{part}-{digest_json(key)}.jsonl")


def sets(case: Case, seed: int, widths: Sequence[int], loads: Sequence[Workload], engine: Engine) -> list[list[Sample]]:
    """Samples to fit to, to learn the residual from, and to hold out: three draws."""
    fitting = design(case.ids, widths, loads, case.fitted, 10 * seed, engine)
    more = [
        mixed(case.ids, widths, loads, n, 10 * seed + k, engine) for k, n in ((1, case.learned), (2, case.held_out))
    ]
    return [fitting, *more]


def repeatability(rounds: Sequence[Meter], samples: Sequence[Sample]) -> float:
    """Median relative difference of the samples' prices by the first and by the second half of the rounds."""
    half = len(rounds) // 2
    halves = rounds[:half], rounds[half:]
    first, second = ([one[2].latency_s for one in fastest_prices(part, samples) if one] for part in halves)
    return median(abs(a / b - 1) for a, b in zip(first, second, strict=True))


def host(case: Case, seeds: Sequence[int], threads: int) -> list[Found]:
    """This machine's cores, measured: the fastest of some rounds, each in another order."""
    from wattbit.tvm_schedules.host_meter import expert_bytes, host_meter, routing

    found = []
    with host_meter(case.shape, WIDTHS, len(case.ids), threads, least_s=0.06) as meter:
        sizes = {bits: expert_bytes(meter.core, bits, case.shape) for bits in WIDTHS}
        demand = CoresDemand(case.shape, sizes, routing)
        name = f"{meter.core.name}, {threads} thread{'s' * (threads > 1)}, {case.shape.d_model}-{case.shape.d_hidden}"
        for seed in seeds:
            loads = case.workloads(seed, BATCHES)
            rounds = [recorded(meter, case, f"{name}, seed {seed}", f"host-{k}") for k in range(case.rounds)]
            drawn = sets(case, seed, WIDTHS, loads, "host")
            own = tried(name, seed, case, demand, rounds, *drawn)
            found.append(replace(own, repeat=repeatability(rounds, drawn[2])))
    return found


def arm(case: Case, seeds: Sequence[int], core_name: str) -> list[Found]:
    """An ARM core's instructions, simulated by qemu."""
    from wattbit.tvm_schedules.cores import find_core
    from wattbit.tvm_schedules.host_meter import CoresMeter, InstructionCounter, expert_bytes, routing

    core = find_core(core_name)
    meter = CoresMeter(case.shape, core, InstructionCounter(core, WIDTHS, 1000.0), provenance="simulated")
    sizes = {bits: expert_bytes(core, bits, case.shape) for bits in WIDTHS}
    demand = CoresDemand(case.shape, sizes, routing)
    name = f"{core_name}, instructions, {case.shape.d_model}-{case.shape.d_hidden}"
    return [
        tried(
            name,
            seed,
            case,
            demand,
            [recorded(meter, case, name, "arm")],
            *sets(case, seed, WIDTHS, case.workloads(seed, BATCHES), "host"),
        )
        for seed in seeds
    ]


@dataclass(frozen=True)
class RtlMeter:
    """Prices the plan of an allocation in RTL simulation: LAUNCHED batches of the planner's own sample."""

    shape: ExpertShape
    target: Target
    folder: Path

    def cost(self, allocation: Allocation, workload: Workload) -> Cost:
        from fpga_models import integers

        from wattbit.hls.accelerator import Accelerator, verilate
        from wattbit.hls.compare import images_of
        from wattbit.hls.engine import write_engine
        from wattbit.hls.launches import launches
        from wattbit.hls.planner import plan
        from wattbit.hls.shell import build_shell
        from wattbit.hls.traffic import traffic

        planned = plan(allocation, self.shape, self.target, workload)
        if not planned.fits:
            raise InfeasibleError(f"{self.target.name}: {', '.join(planned.excess)}")
        out = self.folder / planned.digest
        ints = [integers(spec, self.shape, i) for i, spec in enumerate(planned.classes)]
        engines = [
            write_engine(own, spec, out / "engines", planned.part)
            for own, spec in zip(ints, planned.classes, strict=True)
        ]
        shell = build_shell(engines, self.shape.d_model, planned.digest, out / "shell")
        library = verilate(shell, out / "accelerator", "x86_64", runtime=self.folder)
        sampled = traffic(workload)
        counts = np.asarray(sampled.counts[:LAUNCHED], float)
        cycles = 0
        with Accelerator(library, images=images_of(engines)) as accelerator:
            for engine, index in launches(planned, sampled.experts, counts):
                x = np.zeros((len(engine), self.shape.d_model), np.int8)
                cycles += accelerator.run(engine, index, x)[1]
        batches = workload.tokens / workload.batch / len(counts)
        return Cost(cycles * batches / (planned.clock_mhz * 1e6), None, 0, "simulated")


def fpga(case: Case, seeds: Sequence[int]) -> list[Found]:
    """Engines on a part of a PYNQ-Z2, the planner's expectation against RTL simulation.

    A launch takes the same registers whatever the design: one batch size tells them not from cycles, so two are used.
    """
    from wattbit.board.targets import load
    from wattbit.metering import planned_demand
    from wattbit.presets import share

    target = share(load("pynq-z2").target, FPGA_SHARE)
    demand = planned_demand(case.shape, target)
    name = f"FPGA engines, an eighth of a PYNQ-Z2, {case.shape.d_model}-{case.shape.d_hidden}"
    meter = recorded(RtlMeter(case.shape, target, FOLDER / "rtl"), case, name, "fpga")
    found = []
    for seed in seeds:
        loads = case.workloads(seed, (FPGA_BATCH, 1))
        fitting, _, held_out = (
            mixed(case.ids, FPGA_WIDTHS, loads, n, 10 * seed + k, "fpga")
            for k, n in enumerate((case.fitted, 0, case.held_out))
        )
        found.append(tried(name, seed, case, demand, [meter], fitting, [], held_out))
    return found


def rows_of(found: Sequence[Found]) -> list[Row]:
    """A target's errors over the seeds, bare and with the learned residual, against the goal."""
    seeds = tuple(one.seed for one in found)
    rows = []
    kinds = [(False, "bare model"), (True, "with the residual")]
    for learned, what in kinds if found[0].points[0][1] is not None else kinds[:1]:
        mean, spread = mean_std([median(one.errors(learned)) for one in found])
        metric = f"median absolute error, {what}"
        rows.append(Row(found[0].name, metric, mean, spread, GOAL, None, "goal", GOAL / mean, 1.0, "modelled", seeds))
    if any(one.fit_error < one.plain_fit_error for one in found):
        own, other = mean_std([one.fit_error for one in found]), mean_std([one.plain_fit_error for one in found])
        metric, peer = "relative error of the fit, best variant", "the plainest variant"
        rows.append(Row(found[0].name, metric, *own, *other, peer, other[0] / own[0], None, "modelled", seeds))
    if found[0].repeat is not None:
        mean, spread = mean_std([one.repeat or 0.0 for one in found])
        metric = "difference between two halves of the rounds"
        rows.append(Row(found[0].name, metric, mean, spread, GOAL, None, "goal", GOAL / mean, None, "measured", seeds))
    return rows


def plot(found: Sequence[Sequence[Found]], path: Path) -> None:
    """Predicted against real seconds, one panel a target, one colour a seed."""
    from matplotlib import pyplot as plt

    from wattbit.plots import COLOURS, save

    figure, panels = plt.subplots(1, len(found), figsize=(4.2 * len(found), 3.8), squeeze=False)
    for panel, group in zip(panels[0], found, strict=True):
        for one in group:
            real, bare = [point[3] for point in one.points], [point[0] for point in one.points]
            panel.scatter(real, bare, s=14, color=COLOURS[one.seed], label=f"seed {one.seed}")
        low, high = min(panel.get_xlim()), max(panel.get_xlim())
        panel.plot([low, high], [low, high], color="black", linewidth=0.8)
        panel.set(xscale="log", yscale="log", xlabel=f"s ({group[0].provenance})", ylabel="s (modelled)")
        panel.set_title(group[0].name, fontsize=8)
        panel.legend(frameon=False, fontsize=8)
    save(figure, path)


@click.command(cls=Benchmark, help=__doc__)
@click.option("--quick", is_flag=True, help="One seed, fewer prices, no RTL: under 3 minutes.")
@click.option("--target", "targets", type=click.Choice(("host", "arm", "fpga")), multiple=True, help="Only these.")
@click.option("--json", "path", type=click.Path(path_type=Path, dir_okay=False), help="Write the rows to this file.")
def main(quick: bool, targets: tuple[str, ...], path: Path | None) -> None:
    seeds = (0,) if quick else (0, 1, 2)
    chosen = targets or (("host", "arm") if quick else ("host", "arm", "fpga"))
    found: list[list[Found]] = []
    if "host" in chosen:
        cases = [(replace(SMALL, rounds=2), 1)] if quick else [(SMALL, 1), (HOST, 1), (HOST, 2)]
        found += [host(case, seeds, threads) for case, threads in cases]
    if "arm" in chosen:
        found += [arm(ARM, seeds, core) for core in (("cortex-a53",) if quick else ("cortex-a53", "cortex-a76"))]
    if "fpga" in chosen:
        found.append(fpga(FPGA, seeds))
    rows = []
    for group in found:
        rows += rows_of(group)
        show(rows_of(group))
        inside, worst = fmean(one.inside for one in group), max(max(one.errors(False)) for one in group)
        click.echo(f"        {inside:.0%} of prices within their 95 % intervals, worst {worst:.1%} off")
    if path:
        write(rows, path)
        record: list[dict[str, Any]] = [
            {
                "target": one.name,
                "real": one.provenance,
                "seed": one.seed,
                "variant": dict(one.variant),
                "fit_error": one.fit_error,
                "plain_fit_error": one.plain_fit_error,
                "inside": one.inside,
                "worst": max(one.errors(False)),
                "repeat": one.repeat,
                "points": one.points,
            }
            for group in found
            for one in group
        ]
        write_json(path.with_suffix(".points.json"), record)
        plot(found, path.with_suffix(".svg"))


if __name__ == "__main__":
    main()
