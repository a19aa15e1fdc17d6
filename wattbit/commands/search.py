"""`wattbit search`: the run's own search, or another one beside it, with limits, an algorithm or a trained policy."""

import json
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from math import expm1, inf, isfinite, log1p
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import click

from wattbit.display import Display
from wattbit.errors import WattbitError
from wattbit.files import digest_json, read_json, sha256_file, write_json
from wattbit.metering import both, search_meter
from wattbit.perform import SEED, Host, json_option, one_run, perform, run_option
from wattbit.pipeline import PIPELINE, expert_stats, learner, meter, model_config, workload
from wattbit.plan import Allocation, Engine, ExpertStats, Meter
from wattbit.progress import Progress
from wattbit.run import Run, code_digest

if TYPE_CHECKING:
    from wattbit.models.task_subject import TaskSubject
    from wattbit.policy.agent import Policy
    from wattbit.policy.constrained import Constrained, Limits
    from wattbit.policy.problem import Problem

Quantity = Literal["damage", "latency", "energy"]
QUANTITIES: dict[str, Quantity] = {"perplexity": "damage", "latency": "latency", "energy": "energy"}


@dataclass(frozen=True)
class Asked:
    """A search beside the run's own. max_latency, max_energy: shares of uniform 8 bit's. policy: a file, or None.
    task: the GLUE task whose accuracy counts in perplexity's place, None for perplexity.

    retraining: fine-tuning steps of each allocation that the repair of the damage table is fitted to; 0 for none.
    calibrations: files of `wattbit calibrate` that price in the planner's place. measure: which allocations are really
    measured, every so many; None for none. hosts: boards that measure side by side; none: the calibration's.
    """

    minimise: str | None = None
    max_perplexity_rise: float | None = None
    max_latency: float | None = None
    max_energy: float | None = None
    budget: float | None = None
    algorithm: str = "ppo"
    policy: str | None = None
    task: str | None = None
    retraining: int = 0
    calibrations: tuple[str, ...] = ()
    measure: int | None = None
    hosts: tuple[str, ...] = ()
    seed: int = 0

    @property
    def digest(self) -> str:
        """Of what was asked; another calibration or policy at the same path is another question."""
        files = [*self.calibrations, *([self.policy] if self.policy else [])]
        return digest_json([asdict(self), [sha256_file(Path(path)) for path in files if Path(path).is_file()]])


class Share(click.ParamType[float]):
    """`1%` or `0.01`."""

    name = "share"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> float:
        try:
            share = float(value[:-1]) / 100 if str(value).endswith("%") else float(value)
        except ValueError:
            share = -1.0
        if not 0 <= share < inf:
            self.fail(f"{value!r} is no share; write it like 1% or 0.01", param, ctx)
        return share


@click.command()
@run_option
@json_option
@click.option("--minimise", type=click.Choice(sorted(QUANTITIES)), help="What to make least, within the limits.")
@click.option("--max-perplexity-rise", type=Share(), help="Limit of the predicted rise over float, such as 1%.")
@click.option("--max-latency", type=Share(), help="Limit of the latency, as a share of uniform 8 bit's.")
@click.option("--max-energy", type=Share(), help="Limit of the energy, as a share of uniform 8 bit's.")
@click.option("--budget", type=float, help="Greatest mean weight width, in bits; by default the run's.")
@click.option("--algorithm", type=click.Choice(["ppo", "a2c"]), default="ppo", show_default=True, help="How to learn.")
@click.option(
    "--policy",
    type=click.Path(path_type=Path, dir_okay=False),
    help="A trained policy (policy.safetensors of any search): choose with it, learn nothing.",
)
@click.option(
    "--task",
    help="Preserve the accuracy of a GLUE task in place of perplexity: a folder or glue/TASK. A head is fitted on the "
    "frozen model; an expert's damage is how far its rounding moves the head's predictions.",
)
@click.option(
    "--retraining",
    type=click.IntRange(min=0),
    default=0,
    show_default=True,
    help="Correct the damage by what this many steps of fine-tuning repair at each width.",
)
@click.option(
    "--calibration",
    "calibrations",
    multiple=True,
    type=click.Path(dir_okay=False),
    help="Price with what `wattbit calibrate` wrote; given of engines and of cores, experts get an engine too.",
)
@click.option("--measure", type=click.IntRange(min=1), help="Measure every so many allocations, of calibrated cores.")
@click.option(
    "--host",
    "hosts",
    type=Host(),
    multiple=True,
    help="Boards that --measure side by side, as for ssh; else the calibrated one.",
)
@click.option("--seed", default=0, show_default=True, type=SEED, help="Seed of a search with options.")
def command(folder: Path | None, as_json: bool, policy: Path | None, **options: Any) -> None:
    """Search bit-widths: the PPO policy beside uniform, linear, random and exact allocations.

    With any of the options below it is another search on the same run, kept in searches/DIGEST: its result, the trained
    policy, and every price as it comes, so that the same command goes on after an interruption or a failing meter.
    """
    run = one_run(folder)
    asked = Asked(policy=None if policy is None else str(policy), **options)
    if asked == Asked():
        perform(run, "search", as_json)
        return
    check(asked)
    perform(run, "stats")
    place = run.path("searches", asked.digest)
    with run.lock(), Display() as display:
        display.begin("search", "policy with options")
        result = finished(run, asked, place)
        if result is not None:
            display.say("  search: done already, nothing has changed")
        else:
            with priced(run, asked, place, display) as (price, engines):
                result = look(run, asked, place, price, engines, display)
    if as_json:
        click.echo(json.dumps(result, indent=1))
        return
    click.echo(f"{result['folder']}/search.json: {result['mean_bits']:.2f} bits a weight")
    if result["task"] is None:
        click.echo(f"perplexity {result['perplexity_rise']:+.2%} as predicted")
    else:
        scores = ", ".join(f"{name} {value:.4f}" for name, value in result["task"]["scores"].items())
        click.echo(f"{result['task']['task']}, {result['task']['metric']} as measured: {scores}")
    click.echo(f"latency {result['latency']:.3f} of uniform 8 bit's, {result['provenance']}")


def check(asked: Asked) -> None:
    """WattbitError, before any stage, for options that do not go together and files that hold not what they should."""
    from wattbit.policy.agent import Policy
    from wattbit.policy.cost.calibration import Calibration

    if asked.budget is not None and not isfinite(asked.budget):
        raise WattbitError(f"--budget is a mean weight width in bits, for instance 3.5, not {asked.budget}")
    if asked.task == "":
        raise WattbitError("--task '' names no task; give a folder or glue/TASK, or leave it out")
    if asked.hosts and not asked.measure:
        raise WattbitError("--host is where --measure measures; give both")
    if asked.measure and len(asked.calibrations) != 1:
        raise WattbitError("--measure needs one --calibration, of the cores that measure; see `wattbit calibrate`")
    limits_of(asked)
    for path in asked.calibrations:
        Calibration.load(Path(path))
    if asked.policy:
        Policy.load(Path(asked.policy))


def key(run: Run, asked: Asked) -> str:
    """Of everything that a search's result follows from: what was asked, the statistics, the code, a task's rows."""
    from wattbit.models.tasks import read_task

    rows = asdict(read_task(asked.task)) if asked.task else None
    return digest_json([asked.digest, PIPELINE.key("search", run), rows])


def finished(run: Run, asked: Asked, place: Path) -> dict[str, Any] | None:
    """What search.json holds if it is of the same key and its files are there; None where there is still to search."""
    path = place / "search.json"
    record: dict[str, Any] = read_json(path) if path.is_file() else {}
    if record.get("key") != key(run, asked) or not all((place / name).is_file() for name in record["files"]):
        return None
    return record


@contextmanager
def priced(
    run: Run, asked: Asked, place: Path, display: Display
) -> Iterator[tuple[Meter, Mapping[Engine, Sequence[int]] | None]]:
    """What prices the search, and the widths that each engine runs where there is a choice of engines.

    Raises WattbitError for calibrations that do not go together.
    """
    from wattbit.policy.cost.calibration import Calibration
    from wattbit.policy.recorded import RecordedMeter

    shape, files = model_config(run).shape, [Path(path) for path in asked.calibrations]
    if not files:
        config = {name: run.config.settings[name] for name in ("model", "target")}
        name = f"the planner, {digest_json(config | {'code': code_digest('hls')})}"
        yield RecordedMeter(meter(run), name, place / "prices.jsonl"), None
    elif len(files) == 1:
        log = place / "measured.jsonl"
        experts = len(expert_stats(run))
        with search_meter(files[0], asked.measure, shape, experts, log, display, asked.hosts) as found:
            yield found, None
    else:
        made = {found.origin.kind: found for found in map(Calibration.load, files)}
        if len(files) != 2 or set(made) != {"fpga", "cores"}:
            raise WattbitError("two calibrations are one of engines (--engine fpga) and one of the cores beside them")
        widths = tuple(int(bits) for bits in made["cores"].origin.settings["weight_bytes"])
        search = run.config.settings["cotrain"]["search"]["weight_bits"]
        yield both(made["fpga"], made["cores"], shape), {"fpga": search, "arm": widths}


def look(
    run: Run,
    asked: Asked,
    place: Path,
    price: Meter,
    engines: Mapping[Engine, Sequence[int]] | None,
    progress: Progress,
) -> dict[str, Any]:
    """Search as asked; writes search.json (and policy.safetensors) and returns what search.json holds.

    Raises WattbitError for limits that contradict each other or cannot be met, and for a policy of other actions.
    """
    from wattbit.policy.agent import Policy
    from wattbit.policy.problem import Problem
    from wattbit.policy.search import SearchSettings
    from wattbit.policy.smoothing import smoothed

    limits = limits_of(asked)
    trained = Policy.load(Path(asked.policy)) if asked.policy else None
    subject = task_subject(run, asked.task) if asked.task else None
    stats = expert_stats(run) if subject is None else task_stats(run, subject, progress)
    own = SearchSettings.from_json(run.config.settings["cotrain"]["search"])
    problem = Problem(
        stats=smoothed(stats),
        meter=price,
        workload=workload(run),
        weight_bits=own.weight_bits,
        budget_bits=own.budget_bits if asked.budget is None else asked.budget,
        act_bits=own.act_bits,
        latency_nats=own.latency_nats,
        energy_nats=own.energy_nats,
        engines=engines,
    )
    record: dict[str, Any] = {"asked": asdict(asked), "folder": str(place), "task": None}
    if asked.retraining:
        problem, record["retraining"] = retrained(run, asked, problem, place, progress)
    found = choose(asked, limits, trained, problem, own.iterations, place, progress)
    allocation = problem.allocation(found.choice)
    if subject is not None:
        judged = {
            "float": None,
            "uniform 8 bit": Allocation.of(dict.fromkeys(problem.experts, 8)),
            "chosen": allocation,
        }
        scores = {name: subject.score(widths) for name, widths in judged.items()}
        record["task"] = subject.to_json() | {"damage_nats": found.damage, "scores": scores}
    record |= {
        "allocation": allocation.to_json(),
        "mean_bits": allocation.mean_bits,
        "perplexity_rise": expm1(found.damage) if subject is None else None,
        "latency": found.latency,
        "energy": found.energy,
        "provenance": problem.cost(found.choice).provenance,
        "priced": len(problem.priced),
        "key": key(run, asked),
        "files": sorted(path.name for path in place.glob("*.safetensors")),
    }
    write_json(place / "search.json", record)
    return record


def limits_of(asked: Asked) -> "Limits":
    """What the allocation must keep; WattbitError for options that do not go together."""
    from wattbit.policy.constrained import Limits

    rise = None if asked.max_perplexity_rise is None else log1p(asked.max_perplexity_rise)
    limits = Limits(rise, asked.max_latency, asked.max_energy)
    if limits != Limits() and asked.policy:
        raise WattbitError("a trained policy has learned its own prices; search with limits without --policy")
    if asked.minimise and limits == Limits():
        raise WattbitError(f"the least {asked.minimise} needs a limit, for instance --max-perplexity-rise 1%")
    if asked.task and (asked.retraining or asked.max_perplexity_rise is not None or asked.minimise == "perplexity"):
        raise WattbitError("--task counts in perplexity's place; leave out what is about perplexity, and --retraining")
    return limits


def retrained(
    run: Run, asked: Asked, problem: "Problem", place: Path, progress: Progress
) -> tuple["Problem", dict[str, Any]]:
    """The problem with the damage that retraining leaves, as learned from the run's model, and what was learned."""
    from wattbit.policy.repair import learn

    weights = place / "float.safetensors"
    model = learner(run)
    model.samples = replace(model.samples, valid=model.samples.held)  # what chooses does not judge
    model.save(weights)
    repair, record = learn(problem, model, weights, asked.retraining, asked.seed, progress)
    left = {str(bits): share for bits, share in repair.left.items()}
    return replace(problem, stats=repair.of(problem.stats)), record | {"left": left}


def choose(
    asked: Asked,
    limits: "Limits",
    trained: "Policy | None",
    problem: "Problem",
    iterations: int,
    place: Path,
    progress: Progress,
) -> "Constrained":
    """The search: within limits, by a trained policy, or by one that is trained here and kept in policy.safetensors."""
    from wattbit.policy import hierarchy
    from wattbit.policy.a2c import A2C
    from wattbit.policy.agent import AgentSettings
    from wattbit.policy.constrained import Limits, best, weigh
    from wattbit.policy.ppo import PPO

    settings = AgentSettings(algorithm=A2C() if asked.algorithm == "a2c" else PPO(), iterations=iterations)
    if limits != Limits():
        least = QUANTITIES[asked.minimise or "perplexity"]
        short = replace(settings, iterations=min(60, iterations))
        return best(problem, least, limits, asked.seed, short, progress=progress)
    if trained:
        return weigh(problem, trained.choose(problem, draws=64, seed=asked.seed))
    learned = hierarchy.learn(problem, asked.seed, settings, progress)
    learned.policy.save(place / "policy.safetensors")
    return weigh(problem, learned.choice)


def task_subject(run: Run, source: str) -> "TaskSubject":
    """The run's float model with a head for a task; WattbitError where the task cannot be read."""
    from wattbit.models.data import load_vocabulary
    from wattbit.models.task_subject import TaskSubject
    from wattbit.models.tasks import read_task

    return TaskSubject(learner(run), read_task(source), load_vocabulary(run.path("data")))


def task_stats(run: Run, subject: "TaskSubject", progress: Progress) -> tuple[ExpertStats, ...]:
    """The run's statistics with a task's damage, kept beside its searches: named by the sentences that the head and the
    damage are of, by the model's own statistics, and by the code."""
    text = expert_stats(run)
    given = [asdict(subject.probe.task.train), subject.texts, [one.to_json() for one in text], code_digest("models")]
    kept = run.path("searches", f"task-{digest_json(given)}.json")
    if not kept.exists():
        write_json(kept, {"experts": [one.to_json() for one in subject.stats(text, progress)]})
    return tuple(ExpertStats.from_json(one) for one in read_json(kept)["experts"])
