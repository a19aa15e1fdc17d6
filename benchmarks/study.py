"""One trained model under every method: what `benchmarks/methods.py` runs for each preset and seed.

A study keeps what it has found in one JSON file after every step, and goes on from there when it is started again.
Given a limit it stops in time, what matters most first: the float model, the methods without retraining, then chains
of fine-tuning (static 8 bit, then uniform, exact, random and DMPQ at each budget, all with the same steps and batches).
"""

import copy
import multiprocessing
import time
from collections.abc import Sequence
from concurrent.futures import Future, ProcessPoolExecutor, ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch

from wattbit.board.targets import load
from wattbit.errors import WattbitError
from wattbit.files import read_json, sha256_file, write_json
from wattbit.hls.meter import ModelledMeter
from wattbit.models.corpus import read_test
from wattbit.models.data import encode, load_vocabulary
from wattbit.models.evaluation import Losses, count_words, learner_losses, perplexity
from wattbit.models.learner import MoELearner
from wattbit.models.network import Experts
from wattbit.models.own import OwnModel
from wattbit.models.subject import ModelSubject
from wattbit.models.tasks import Probe, read_task
from wattbit.models.train import train
from wattbit.plan import Allocation, ExpertId, ExpertShape, ExpertStats, Precision, Workload
from wattbit.policy.methods.dmpq import DMPQ
from wattbit.policy.methods.registry import METHODS, method
from wattbit.presets import PRESETS
from wattbit.recipe import Budget, Quantizer, Recipe

BOARD = "virtual-z2"
WIDTHS = (2, 3, 4, 8)
CALIBRATION = 32  # contexts of validation text; perplexity and tasks are of test text
TOKENS = 1000  # of the meter's workload
ROUNDS = 2  # of fine-tuning; before the second DMPQ searches again, at the weights that the first one left
QUANTIZER: Quantizer = "hqq"  # of every method that does not name its own, so that allocations compare
SLOW = ("gptq", "milo-kurtosis", "milo-frequency")  # minutes with 256 experts: last

Record = dict[str, Any]


@dataclass(frozen=True)
class Settings:
    """data: folder of the prepared tokens; text: the corpus' folder; tasks: GLUE folders.

    steps: of a round of fine-tuning. iterations: of DMPQ's policy. searches: of them at a time. seconds: when to stop,
    from the study's start.
    """

    preset: str
    seed: int
    data: Path
    text: str | None
    tasks: tuple[str, ...]
    out: Path
    device: str = "auto"
    budgets: tuple[float, ...] = (2.75, 3.0, 2.5, 2.0, 4.0, 3.5)
    steps: int = 150
    iterations: int = 150
    searches: int = 2
    seconds: float = float("inf")

    @property
    def file(self) -> Path:
        return self.out / f"{self.preset}-{self.seed}.json"


@dataclass(frozen=True)
class Table:
    """The part of a `Subject` that DMPQ asks for, as values that another process can have."""

    experts: tuple[ExpertId, ...]
    top_k: int
    found: tuple[ExpertStats, ...]

    def stats(self, weight_bits: tuple[int, ...]) -> tuple[ExpertStats, ...]:
        return self.found


def workload(stats: Sequence[ExpertStats], top_k: int) -> Workload:
    return Workload(TOKENS, top_k, tuple((s.expert, s.frequency) for s in stats))


def search(table: Table, shape: ExpertShape, budget: float, seed: int, iterations: int) -> tuple[Record, float]:
    """DMPQ's recipe and the seconds that it took."""
    torch.set_num_threads(1)
    start = time.monotonic()
    meter = ModelledMeter(shape, load(BOARD).target)
    policy = DMPQ(meter, workload(table.found, table.top_k), iterations=iterations, quantizer=QUANTIZER)
    found = policy.decide(table, Budget(budget, WIDTHS), seed)  # type: ignore[arg-type]
    return found.to_json(), time.monotonic() - start


@dataclass(eq=False)
class Study:
    settings: Settings
    pool: ProcessPoolExecutor
    record: Record = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.start = time.monotonic()
        if self.settings.file.exists():
            self.record = read_json(self.settings.file)
        self.record |= {"preset": self.settings.preset, "seed": self.settings.seed}
        for part in ("recipes", "tuned", "seconds"):
            self.record.setdefault(part, {})

    def keep(self) -> None:
        write_json(self.settings.file, self.record)

    def late(self, share: float = 1.0) -> bool:
        return time.monotonic() - self.start > share * self.settings.seconds

    def say(self, what: str) -> None:
        self.record["seconds"][what] = round(time.monotonic() - self.start, 1)
        self.keep()
        print(f"{time.monotonic() - self.start:6.1f} s {self.settings.preset} {self.settings.seed} {what}", flush=True)

    def run(self) -> None:
        self.open()
        self.describe()
        self.untuned([name for name in METHODS if name not in (*SLOW, "dmpq")], 0.5)
        self.tuned()
        self.untuned([name for name in METHODS if name != "dmpq"], 1.0)
        self.say("end")

    def open(self) -> None:
        """Train, take what judges a model, and judge the float model."""
        s, preset = self.settings, PRESETS[self.settings.preset]
        folder = s.out / f"{s.preset}-{s.seed}.model"
        torch.backends.cuda.matmul.allow_tf32 = True
        about = train(s.data, folder, preset.model, replace(preset.train, seed=s.seed, device=s.device))
        torch.backends.cuda.matmul.allow_tf32 = False
        self.learner = MoELearner.open(s.data, folder, s.device)
        self.learner.network.requires_grad_(True)
        digest = sha256_file(folder / "float.safetensors")
        self.record["train"] = about | {"sha256": digest, "device": str(self.learner.network.device)}
        vocabulary = load_vocabulary(s.data)
        split, texts = read_test(s.text)
        self.words, self.split = sum(map(count_words, texts)), split
        self.test = torch.from_numpy(encode(vocabulary, texts).astype("int64"))
        network = self.learner.network
        self.tasks = [(read_task(source), vocabulary) for source in s.tasks]
        self.probes = [Probe.fit(task, network, words) for task, words in self.tasks]
        self.record["tasks"] = [probe.to_json() for probe in self.probes]
        self.say("trained")
        self.model = OwnModel.of(self.learner)
        samples = self.learner.samples
        self.subject = ModelSubject(self.model, samples.held[:CALIBRATION], samples.valid)
        if "float" not in self.record:
            judged = self.judge(learner_losses(self.learner, None), self.probes, None)
            self.record["float"] = judged | {"bytes": self.subject.memory_bytes(None)}

    def judge(self, losses: Losses, probes: Sequence[Probe], experts: Sequence[Experts] | None) -> Record:
        context = self.learner.config.context
        found = perplexity(losses, self.test, self.words, context, context // 2)
        glue = {probe.task.name: probe.evaluate(self.learner.network, experts) for probe in probes}
        return {"perplexity": found.to_json() | {"split": self.split}, "glue": glue}

    def describe(self) -> None:
        """Statistics, and DMPQ's searches, which run beside what follows; scales in threads beside both."""
        learner = self.learner
        learner.calibration_inputs(learner.config.expert_ids[0])
        wanted = [(e, Precision(b)) for b in WIDTHS for e in learner.config.expert_ids]
        threads = ThreadPoolExecutor(2)
        self.scales = threads.map(lambda pair: learner.scales(*pair), wanted)
        start = time.monotonic()
        self.stats = self.subject.stats(WIDTHS)
        self.record["stats"] = [s.to_json() for s in self.stats]
        self.record["stats_s"] = time.monotonic() - start
        self.searches = {
            budget: self.search(self.stats, budget, self.settings.seed)
            for budget in self.settings.budgets
            if f"dmpq@{budget}" not in self.record["recipes"] and budget > min(WIDTHS)
        }
        self.say("statistics")

    def search(self, stats: tuple[ExpertStats, ...], budget: float, seed: int) -> "Future[tuple[Record, float]]":
        table = Table(self.learner.config.expert_ids, self.learner.config.top_k, stats)
        return self.pool.submit(search, table, self.learner.config.shape, budget, seed, self.settings.iterations)

    def untuned(self, names: Sequence[str], share: float) -> None:
        """Every method's recipe and what it does to the model, without retraining."""
        meter = ModelledMeter(self.learner.config.shape, load(BOARD).target)
        load_of = workload(self.stats, self.learner.config.top_k)
        for budget in self.settings.budgets:
            for name in names:
                key = f"{name}@{budget}"
                if key in self.record["recipes"] or self.late(share):
                    continue
                start = time.monotonic()
                try:
                    one = method(name, meter, load_of, QUANTIZER)
                    recipe = one.decide(self.subject, Budget(budget, WIDTHS), self.settings.seed)
                except WattbitError as error:
                    self.record["recipes"][key] = {"refused": str(error)}
                    continue
                self.quantized(key, recipe, time.monotonic() - start)
        self.say(f"without retraining to {share}")

    def quantized(self, key: str, recipe: Recipe, decide_s: float) -> None:
        """Judge the model with its experts as a recipe says."""
        same = str(recipe.to_json() | {"method": ""})
        for other in self.record["recipes"].values():
            if other.get("recipe") and str(other["recipe"] | {"method": ""}) == same:
                self.record["recipes"][key] = other | {"recipe": recipe.to_json(), "decide_s": decide_s}
                return
        start = time.monotonic()
        packed = self.subject.quantize(recipe)
        floats = {expert: self.model.matrices(expert) for expert in packed}
        for expert, found in packed.items():
            self.model.replace(expert, found.dequantize())
        try:
            judged = self.judge(lambda contexts: self.model.losses(contexts, recipe.pruning), self.probes, None)
        finally:
            for expert, matrices in floats.items():
                self.model.replace(expert, matrices)
        about = {
            "recipe": recipe.to_json(),
            "bytes": sum(expert.bytes for expert in packed.values()),
            "rounded_to_nearest": sum(expert.quantizer != recipe.quantizer for expert in packed.values()),
            "decide_s": decide_s,
            "quantize_s": time.monotonic() - start,
        }
        self.record["recipes"][key] = judged | about
        self.keep()

    def tuned(self) -> None:
        """Chains of fine-tuning from the float weights."""
        list(self.scales)
        self.say("scales")
        ids, seed = self.learner.config.expert_ids, self.settings.seed
        self.chain("uniform8", Allocation.of(dict.fromkeys(ids, 8)))
        for budget in self.settings.budgets:
            if budget == int(budget):
                self.chain(f"uniform@{budget}", Allocation.of(dict.fromkeys(ids, int(budget))))
            if budget == min(WIDTHS):
                continue
            for name in ("exact", "random"):
                if not self.late():
                    chosen = method(name).decide(self.subject, Budget(budget, WIDTHS), seed)
                    self.chain(f"{name}@{budget}", chosen.allocation)
            if not self.late():
                self.chain(f"dmpq@{budget}", self.searched(budget))
        for budget in self.settings.budgets:
            if budget > min(WIDTHS) and not self.late():
                self.chain(f"dmpq-cotrained@{budget}", self.searched(budget), budget)

    def searched(self, budget: float) -> Allocation:
        """DMPQ's recipe, judged without retraining too."""
        key = f"dmpq@{budget}"
        if key not in self.record["recipes"]:
            found, seconds = self.searches[budget].result()
            self.quantized(key, Recipe.from_json(found), seconds)
        return Recipe.from_json(self.record["recipes"][key]["recipe"]).allocation

    def chain(self, key: str, allocation: Allocation, again: float | None = None) -> None:
        """Fine-tune at an allocation; with a budget, search `again` between the rounds."""
        if key in self.record["tuned"] or self.late():
            return
        learner = copy.deepcopy(self.learner)
        before = learner.perplexity(allocation)
        allocations = [allocation]
        for turn in range(ROUNDS):
            if turn and again is not None:
                held = learner.samples.held[:CALIBRATION]
                stats = ModelSubject(OwnModel.of(learner), held, held).stats(WIDTHS)
                found, _ = self.search(stats, again, self.settings.seed).result()
                allocation = Recipe.from_json(found).allocation
                allocations.append(allocation)
            torch.backends.cuda.matmul.allow_tf32 = True
            learner.finetune(allocation, self.settings.steps, self.settings.seed + turn)
            torch.backends.cuda.matmul.allow_tf32 = False
        whole, self.learner = self.learner, learner
        try:
            experts = learner.quantized_experts(allocation)
            probes = [Probe.fit(task, learner.network, words, experts) for task, words in self.tasks]
            judged = self.judge(learner_losses(learner, allocation), probes, experts)
        finally:
            self.learner = whole
        about = {
            "allocations": [one.to_json() for one in allocations],
            "mean_bits": allocation.mean_bits,
            "valid_before": before,
            "valid_after": learner.perplexity(allocation),
            "steps": ROUNDS * self.settings.steps,
        }
        self.record["tuned"][key] = judged | about
        self.say(f"tuned {key}: {judged['perplexity']['token']:.3f}")


def run(settings: Settings) -> None:
    """The whole study, in this process and in `settings.searches` others for the searches."""
    torch.manual_seed(settings.seed)
    spawn = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(settings.searches, mp_context=spawn) as pool:
        try:
            Study(settings, pool).run()
        finally:
            pool.shutdown(wait=False, cancel_futures=True)
