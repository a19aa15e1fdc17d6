"""What a study of `benchmarks/methods.py` leaves to other processes: searches, scales, and slow quantizers."""

import time
from collections.abc import Sequence
from concurrent.futures import Future
from dataclasses import asdict, dataclass
from functools import cache
from pathlib import Path
from typing import Any

import torch

from wattbit.board.targets import load
from wattbit.files import digest_json, read_json
from wattbit.hls.meter import ModelledMeter
from wattbit.models.config import ModelConfig, TrainConfig
from wattbit.models.corpus import read_test
from wattbit.models.divergence import MEASURE
from wattbit.models.learner import MoELearner
from wattbit.models.own import OwnModel
from wattbit.models.packed import save_experts
from wattbit.models.scales import ExpertScales
from wattbit.models.subject import ModelSubject
from wattbit.models.tasks import read_task
from wattbit.plan import ExpertId, ExpertShape, ExpertStats, Precision, Workload
from wattbit.policy.cotrain import CotrainSettings
from wattbit.policy.methods.dmpq import DMPQ
from wattbit.presets import PRESETS, Preset
from wattbit.recipe import Budget, Quantizer, Recipe

BOARD = "virtual-z2"
WIDTHS = (2, 3, 4, 8)
CALIBRATION = 32  # contexts of validation text; perplexity and tasks are of test text
TOKENS = 1000  # of the meter's workload
STUDIED = PRESETS | {  # and the models of benchmarks/fpga_engines.py, which a CPU trains in minutes
    "small-e16": Preset(ModelConfig(d_model=128, d_hidden=256), TrainConfig(steps=1000), CotrainSettings()),
    "small-e64": Preset(ModelConfig(experts=64), TrainConfig(steps=1000), CotrainSettings()),
}
QUANTIZER: Quantizer = "hqq"  # of every method that does not name its own, so that allocations compare

Record = dict[str, Any]
Scales = dict[tuple[ExpertId, Precision], ExpertScales]


@cache
def corpus_digest(data: Path, text: str | None) -> str:
    """Of the prepared tokens and of the text that judges."""
    return digest_json([read_json(data / "data.json")["digest"], read_test(text)])


@cache
def task_digest(source: str) -> tuple[str, str]:
    """A task's name and the digest of its sentences."""
    task = read_task(source)
    return task.name, digest_json([asdict(split) for split in (task.train, task.dev, task.held) if split])


@dataclass(frozen=True)
class Settings:
    """data: folder of the prepared tokens; text: the corpus' folder; tasks: GLUE folders.

    steps: of a round of fine-tuning. glue_steps: of a task's float fine-tuning. iterations: of DMPQ's policy. workers:
    processes that search, and as many that quantize. judged: tokens of the test text, None for all. seconds: when to
    stop, from the start. retrained: fine-tune too.
    """

    preset: str
    seeds: tuple[int, ...]
    data: Path
    text: str | None
    tasks: tuple[str, ...]
    out: Path
    device: str = "auto"
    budgets: tuple[float, ...] = (2.75, 3.0, 2.5, 2.0, 3.5, 4.0)
    steps: int = 150
    glue_steps: int = 900
    iterations: int = 150
    workers: int = 2
    judged: int | None = None
    seconds: float = float("inf")
    retrained: bool = True

    @property
    def made_with(self) -> Record:
        """What a record's figures depend on beside its seed; records that differ in it do not mix."""
        return {
            "corpus": corpus_digest(self.data, self.text),
            "damage": MEASURE,
            "quantizer": QUANTIZER,
            "widths": list(WIDTHS),
            "steps": self.steps,
            "glue_steps": self.glue_steps,
            "iterations": self.iterations,
            "judged": self.judged,
        }

    @property
    def made_with_tasks(self) -> dict[str, str]:
        """Digests of the tasks, by name: a record may get more tasks, but not others of the same name."""
        return dict(map(task_digest, self.tasks))

    @property
    def asked(self) -> Record:
        """What a study shall find: one that was asked for less, and found it, goes on."""
        return {"budgets": list(self.budgets), "tasks": list(self.made_with_tasks), "retrained": [self.retrained]}

    @property
    def above(self) -> list[float]:
        """Budgets that leave a choice."""
        return [budget for budget in self.budgets if budget > min(WIDTHS)]

    def file(self, seed: int) -> Path:
        return self.out / f"{self.preset}-{seed}.json"

    def model(self, seed: int) -> Path:
        return self.out / f"{self.preset}-{seed}.model"


@dataclass(frozen=True)
class Table:
    """The part of a `Subject` that DMPQ asks for, as values that another process can have."""

    experts: tuple[ExpertId, ...]
    top_k: int
    found: tuple[ExpertStats, ...]

    def stats(self, weight_bits: tuple[int, ...], quantizer: Quantizer = QUANTIZER) -> tuple[ExpertStats, ...]:
        return self.found


def workload(stats: Sequence[ExpertStats], top_k: int) -> Workload:
    return Workload(TOKENS, top_k, tuple((s.expert, s.frequency) for s in stats))


def search(
    table: Table, shape: ExpertShape, budget: float, seed: int, iterations: int, quantizer: Quantizer = QUANTIZER
) -> tuple[Record, float]:
    """DMPQ's recipe and the seconds that it took."""
    torch.set_num_threads(1)
    start = time.monotonic()
    meter = ModelledMeter(shape, load(BOARD).target)
    policy = DMPQ(meter, workload(table.found, table.top_k), iterations=iterations, quantizer=quantizer)
    found = policy.decide(table, Budget(budget, WIDTHS), seed)  # type: ignore[arg-type]
    return found.to_json(), time.monotonic() - start


@cache
def opened(data: Path, model: Path) -> tuple[MoELearner, ModelSubject]:
    """A trained model on the CPU, opened once."""
    learner = MoELearner.open(data, model)
    torch.set_num_threads(1)
    return learner, subject_of(learner)


def subject_of(learner: MoELearner) -> ModelSubject:
    return ModelSubject(OwnModel.of(learner), learner.samples.held[:CALIBRATION], learner.samples.valid)


def layer_scales(data: Path, model: Path, layer: int, bits: int) -> Scales:
    """The scales of a layer's experts at a width."""
    learner, _ = opened(data, model)
    precision = Precision(bits)
    return {(e, precision): learner.scales(e, precision) for e in learner.config.expert_ids if e.layer == layer}


def layer_packed(data: Path, model: Path, recipe: Record, layer: int, path: Path) -> float:
    """A layer's experts quantized, into a file; the seconds that it took."""
    start = time.monotonic()
    if not path.exists():
        save_experts(path, opened(data, model)[1].quantize(Recipe.from_json(recipe), layer))
    return time.monotonic() - start


@dataclass(frozen=True)
class Packing:
    """A slow recipe on its way: files by layer, with the seconds of each."""

    recipe: Recipe
    decide_s: float
    layers: tuple[tuple[Path, "Future[float]"], ...]
