"""Calibrates a demand's constants through any meter, and keeps them as data: with what, on what, when, and how well."""

import contextlib
import datetime
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from statistics import fmean, median
from typing import Any, Self

import numpy as np

from wattbit.errors import InfeasibleError, WattbitError
from wattbit.files import read_json, write_json
from wattbit.plan import Allocation, Cost, Engine, ExpertId, Meter, Provenance, Workload
from wattbit.policy.cost.fitting import Fitted, Work, fit
from wattbit.policy.cost.model import STATIC_W, CostModel, Demand, energy_work
from wattbit.progress import Progress, silent

VERSION = 1
GAIN = 0.9  # of the plainest variant's relative error, which another one must fall below
EXACT = 1e-6  # a relative error that leaves nothing to explain

Sample = tuple[Allocation, Workload]


@dataclass(frozen=True)
class Errors:
    """Relative errors on held-out prices; inside: the share that the 95 % intervals held."""

    count: int
    median: float
    mean: float
    worst: float
    inside: float

    @classmethod
    def of(cls, priced: Sequence[tuple[float, float, float]]) -> Self:
        """Of (predicted, half its interval relative to it, measured)."""
        if not priced:
            raise WattbitError("no held-out allocation could be priced; hold out more")
        errors = [abs(predicted / measured - 1) for predicted, _, measured in priced]
        held = [abs(measured - predicted) <= half * predicted for predicted, half, measured in priced]
        return cls(len(errors), median(errors), fmean(errors), max(errors), fmean(held))


@dataclass(frozen=True)
class Origin:
    """What a calibration is of. settings: what the demand is built with again; JSON."""

    kind: str
    target: str
    machine: str
    meter: str
    settings: Mapping[str, Any]


@dataclass(frozen=True)
class Calibration:
    """Constants with where they come from. provenance: of the prices that they were fitted to."""

    origin: Origin
    provenance: Provenance
    date: str
    latency: Fitted
    joules: Fitted | None
    latency_errors: Errors
    energy_errors: Errors | None

    def model(self, demand: Demand) -> CostModel:
        """Of the demand's variant that was chosen. WattbitError when it has other constants than were calibrated."""
        chosen, settings = demand, self.origin.settings
        for variant in demand.variants:
            if all(settings.get(name) == value for name, value in variant.settings.items()):
                chosen = variant
        if demand.names != self.latency.names:
            raise WattbitError(
                f"the calibration of {self.origin.target} has the constants {', '.join(self.latency.names)}, not "
                f"{', '.join(demand.names)}; calibrate again"
            )
        return CostModel(chosen, self.latency, self.joules)

    def to_json(self) -> dict[str, Any]:
        return {
            "version": VERSION,
            "origin": asdict(self.origin) | {"settings": dict(self.origin.settings)},
            "fitted_on": self.provenance,
            "date": self.date,
            "latency": self.latency.to_json(),
            "energy": self.joules.to_json() if self.joules else None,
            "held_out": {
                "latency": asdict(self.latency_errors),
                "energy": asdict(self.energy_errors) if self.energy_errors else None,
            },
        }

    @classmethod
    def from_json(cls, record: Mapping[str, Any]) -> Self:
        if record.get("version") != VERSION:
            raise WattbitError(f"the calibration has version {record.get('version')}, not {VERSION}; calibrate again")
        held, energy = record["held_out"], record["energy"]
        return cls(
            Origin(**record["origin"]),
            record["fitted_on"],
            record["date"],
            Fitted.from_json(record["latency"]),
            Fitted.from_json(energy) if energy else None,
            Errors(**held["latency"]),
            Errors(**held["energy"]) if held["energy"] else None,
        )

    def save(self, path: Path) -> None:
        write_json(path, self.to_json())

    @classmethod
    def load(cls, path: Path) -> Self:
        """WattbitError when the file is absent, of another version or of no calibration."""
        if not path.is_file():
            raise WattbitError(f"there is no calibration {path}; make one with `wattbit calibrate`")
        record = read_json(path)
        try:
            return cls.from_json(record)
        except WattbitError as error:
            raise WattbitError(f"{path}: {error}") from None
        except (AttributeError, KeyError, TypeError) as error:
            raise WattbitError(f"{path} is no calibration ({error}); make one with `wattbit calibrate`") from None


def design(
    experts: Sequence[ExpertId],
    widths: Sequence[int],
    workloads: Sequence[Workload],
    mixtures: int,
    seed: int,
    engine: Engine,
    act_bits: int = 8,
) -> list[Sample]:
    """Allocations to calibrate on: uniform ones of every width on every workload, then random mixtures in turn."""
    uniform = [Allocation.of(dict.fromkeys(experts, bits), act_bits, engine) for bits in widths]
    found = [(allocation, workload) for workload in workloads for allocation in uniform]
    return found + mixed(experts, widths, workloads, mixtures, seed, engine, act_bits)


def mixed(
    experts: Sequence[ExpertId],
    widths: Sequence[int],
    workloads: Sequence[Workload],
    count: int,
    seed: int,
    engine: Engine,
    act_bits: int = 8,
) -> list[Sample]:
    """Random allocations on the workloads in turn, each with a random preference for the widths."""
    random = np.random.default_rng(seed)
    found = []
    for number in range(count):
        preference = random.dirichlet(np.ones(len(widths)))
        bits = random.choice(np.array(widths), len(experts), p=preference).tolist()
        allocation = Allocation.of(dict(zip(experts, bits, strict=True)), act_bits, engine)
        found.append((allocation, workloads[number % len(workloads)]))
    return found


def calibrate(
    demand: Demand,
    rounds: Sequence[Meter],
    samples: Sequence[Sample],
    held_out: Sequence[Sample],
    origin: Origin,
    known: Mapping[str, float] | None = None,
    progress: Progress = silent,
) -> Calibration:
    """Price the samples and what is held out through the meter, fit to the samples, and see how well it does.

    rounds: the meter, once for each round; a price is the least of its rounds, for what disturbs a machine makes it
    slower. Every round is in another random order, so that a disturbance is no allocation's own. What the hardware
    cannot hold is left out. The demand's variant is the one that fits best, see best_variant; the origin's settings say
    which. Energy is fitted where every price has it. A meter that fails ends the calibration; with a
    `wattbit.policy.recorded.RecordedMeter` the next one goes on from there.
    """
    found = fastest_prices(rounds, [*samples, *held_out], progress)
    priced = [one for one in found[: len(samples)] if one is not None]
    tests = [one for one in found[len(samples) :] if one is not None]
    sources = {cost.provenance for _, _, cost in (*priced, *tests)}
    if len(sources) != 1:
        raise WattbitError(f"prices to calibrate on are {' and '.join(sorted(sources)) or 'none'}; take them from one")
    demand, latency = best_variant(demand, priced, known)
    origin = replace(origin, settings={**origin.settings, **demand.settings})
    joules = None
    energies = [cost.energy_j for *_, cost in priced if cost.energy_j is not None]
    if len(energies) == len(priced):
        loads = [energy_work(cost.latency_s, demand.energy(a, w)) for a, w, cost in priced]
        names = (STATIC_W, *demand.energy_names)
        joules = fit(names, loads, energies, _not_told_apart(names, loads, energies))
    model = CostModel(demand, latency, joules)
    seconds, spent = [], []
    for allocation, workload, cost in tests:
        said = model.predict(allocation, workload)
        seconds.append((said.cost.latency_s, said.latency_relative, cost.latency_s))
        if said.cost.energy_j is not None and said.energy_relative is not None and cost.energy_j is not None:
            spent.append((said.cost.energy_j, said.energy_relative, cost.energy_j))
    today = datetime.datetime.now(datetime.UTC).date().isoformat()
    of_energy = Errors.of(spent) if spent else None
    return Calibration(origin, sources.pop(), today, latency, joules, Errors.of(seconds), of_energy)


def _not_told_apart(names: Sequence[str], loads: Sequence[Work], energies: Sequence[float]) -> dict[str, float]:
    """Constants that the prices show nothing of beside those before them, as 0: one design on a board has one width
    of packets, and reads nothing where its weights are on the chip."""
    columns = np.stack([load.amounts[0, 0] for load in loads]) / np.array(energies)[:, None]
    largest = np.abs(columns).max(axis=0)
    columns = columns / np.where(largest > 0, largest, 1.0)
    kept: list[int] = []
    for k in range(len(names)):
        if np.linalg.matrix_rank(columns[:, [*kept, k]], tol=1e-6 * len(energies) ** 0.5) > len(kept):
            kept.append(k)
    return {name: 0.0 for k, name in enumerate(names) if k not in kept}


def best_variant(
    demand: Demand, priced: Sequence[tuple[Allocation, Workload, Cost]], known: Mapping[str, float] | None = None
) -> tuple[Demand, Fitted]:
    """The variant whose constants explain prices best, and these; the plainest where none is clearly better (GAIN)."""
    values = [cost.latency_s for *_, cost in priced]
    plain, *others = demand.variants
    found = plain, fit(plain.names, [plain.work(a, w) for a, w, _ in priced], values, known)
    least = GAIN * found[1].sigma
    for variant in others if least > EXACT else ():
        with contextlib.suppress(WattbitError):  # what is never read from memory has no price a byte
            fitted = fit(variant.names, [variant.work(a, w) for a, w, _ in priced], values, known)
            if fitted.sigma < least:
                found, least = (variant, fitted), fitted.sigma
    return found


def fastest_prices(
    rounds: Sequence[Meter], samples: Sequence[Sample], progress: Progress = silent
) -> list[tuple[Allocation, Workload, Cost] | None]:
    """The fastest price of each sample over the rounds; None of one that the hardware cannot hold."""
    found: list[list[Cost]] = [[] for _ in samples]
    for number, meter in enumerate(rounds):
        order = np.random.default_rng(number).permutation(len(samples)).tolist()
        for done, sample in enumerate(order):
            progress("calibrate", number * len(samples) + done, len(rounds) * len(samples))
            with contextlib.suppress(InfeasibleError):
                found[sample].append(meter.cost(*samples[sample]))
    progress("calibrate", len(rounds) * len(samples), len(rounds) * len(samples))
    fastest = [min(costs, key=lambda cost: cost.latency_s) if costs else None for costs in found]
    return [(*sample, cost) if cost else None for sample, cost in zip(samples, fastest, strict=True)]
