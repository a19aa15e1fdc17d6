"""Models of one preset and several seeds under every method: what `benchmarks/methods.py` runs for each preset.

A study keeps what it has found of each seed in a JSON file after every step, and goes on from there when it is started
again. Given a limit it stops in time, what matters most first: float models, the methods without retraining,
fine-tuning (static 8 bit, then uniform, exact, random and DMPQ at each budget, all with the same teacher, steps and
batches), GLUE, and what takes minutes to quantize. The seeds' models, and the chains of fine-tuning, run
side by side (`wattbit.models.stack`); searches, scales, GPTQ and MiLo run in other processes.
"""

import multiprocessing
import os
import time
from collections.abc import Mapping, Sequence
from concurrent.futures import Future, ProcessPoolExecutor
from typing import TypeVar

import torch
from study_jobs import QUANTIZER, STUDIED, WIDTHS, Scales, Settings, layer_scales, subject_of
from study_models import Models
from study_recipes import Recipes
from study_records import Records
from study_side_by_side import finetune, train
from study_tasks import Scores, TaskStudy

from wattbit.errors import WattbitError
from wattbit.files import read_json, sha256_file
from wattbit.models.evaluation import learner_losses
from wattbit.plan import Allocation
from wattbit.policy.methods.registry import METHODS, method
from wattbit.recipe import Budget, Recipe

ROUNDS = 2  # of fine-tuning; before the second, DMPQ's co-trained form searches at the weights that the first one left
SLOW = ("gptq", "milo-kurtosis", "milo-frequency")  # minutes with 256 experts
TOGETHER = {16: 5, 64: 3}  # chains a seed side by side, by experts of a layer: what half of a GPU's memory holds
GLUE_KEYS = ("uniform8", "uniform@3.0", "dmpq@2.75", "exact@2.75", "random@2.75", "dmpq@2.5", "uniform@2.0")

Key = TypeVar("Key", str, float)


class Study:
    """The work on a study's models, in order."""

    def __init__(
        self, records: Records, models: Models, recipes: Recipes, scaling: Mapping[int, Sequence[Future[Scales]]]
    ) -> None:
        """scaling: scales of the deployed arithmetic on their way, by seed."""
        self.settings, self.records, self.models = records.settings, records, models
        self.recipes, self.scaling = recipes, scaling
        self.tasks: list[TaskStudy] = []

    def run(self) -> None:
        quick = [name for name in METHODS if name not in (*SLOW, "dmpq")]
        if self.settings.retrained:
            self.tune_float_on_tasks()
            self.recipes.decided(quick, 0.4)
            self.adopt_scales()
            self.tuned()
            self.tune_on_tasks()
        self.recipes.decided(quick)
        self.recipes.all_searched()
        self.recipes.slow()
        if self.settings.retrained:
            self.cotrained()
        self.recipes.with_gptq()
        self.records.end()

    def adopt_scales(self) -> None:
        """Wait for the scales that the deployed arithmetic is fine-tuned with."""
        for seed, found in self.scaling.items():
            scales: Scales = {}
            for part in found:
                scales |= part.result()
            self.models.learners[seed].adopt(scales)
        self.records.say("scales")

    def tuned(self) -> None:
        """Chains of fine-tuning from the float weights, with the teacher that co-training has by default."""
        first, *rest = self.parts(self.controls())
        between = [f"dmpq@{budget}" for budget in self.settings.above]
        for part in (first, *rest[:1], *self.parts(between), *rest[1:]):  # the searches end meanwhile
            if not self.records.late():
                self.chains({key: {seed: self.chosen(key, seed) for seed in self.settings.seeds} for key in part})

    def controls(self) -> list[str]:
        """Chains beside DMPQ's, budget after budget."""
        found = ["uniform8"]
        for budget in self.settings.budgets:
            found += [f"uniform@{budget}"] if budget == int(budget) else []
            found += [f"{name}@{budget}" for name in ("exact", "random") if budget in self.settings.above]
        return found

    def chosen(self, key: str, seed: int) -> Allocation:
        name, _, budget = key.partition("@")
        if name.startswith("uniform"):
            bits = 8 if name == "uniform8" else int(float(budget))
            return Allocation.of(dict.fromkeys(self.models.config.expert_ids, bits))
        if name == "dmpq":
            return self.recipes.searched(float(budget), seed)
        subject = self.models.subjects[seed]
        return method(name, quantizer=QUANTIZER).decide(subject, Budget(float(budget), WIDTHS), seed).allocation

    def cotrained(self) -> None:
        """DMPQ's chains once more, with a second search between the rounds."""
        for part in self.parts(self.settings.above):
            if not self.records.late(0.9):
                wanted = {
                    f"dmpq-cotrained@{b}": {seed: self.recipes.searched(b, seed) for seed in self.settings.seeds}
                    for b in part
                }
                self.chains(wanted, again=True)

    def parts(self, keys: Sequence[Key]) -> list[Sequence[Key]]:
        """The keys, so many at a time as run side by side."""
        size = TOGETHER.get(self.models.config.experts, 4)
        return [keys[start : start + size] for start in range(0, len(keys), size)]

    def chains(self, wanted: Mapping[str, Mapping[int, Allocation]], again: bool = False) -> None:
        """Fine-tune each seed's model at each allocation; `again`: search between the rounds."""
        seeds, floats = self.settings.seeds, self.models.floats
        wanted = {k: a for k, a in wanted.items() if any(k not in self.records[seed]["tuned"] for seed in seeds)}
        if not wanted or self.records.late():
            return
        self.records.doing = f"fine-tuning at {', '.join(wanted)}"
        chains = [(seed, key) for seed in seeds for key in wanted]  # neighbours share a teacher
        allocations = [[wanted[key][seed]] for seed, key in chains]
        learners = [self.models.learners[seed] for seed, _ in chains]
        stack = floats.select([seeds.index(seed) for seed, _ in chains])
        for turn in range(ROUNDS):
            if turn and again:
                found = [
                    self.recipes.search(
                        subject_of(learner).stats(WIDTHS, QUANTIZER), float(key.partition("@")[2]), seed
                    )
                    for learner, (seed, key) in zip(learners, chains, strict=True)
                ]
                for own, one in zip(allocations, found, strict=True):
                    own.append(Recipe.from_json(one.result()[0]).allocation)
            now, drawn = [own[-1] for own in allocations], [seed + turn for seed, _ in chains]
            learners = finetune(stack, floats, learners, now, drawn, self.settings.steps)
        for learner, own, (seed, key) in zip(learners, allocations, chains, strict=True):
            judged = self.models.judge(learner_losses(learner, own[-1]))
            self.records[seed]["tuned"][key] = judged | {
                "allocations": [one.to_json() for one in own],
                "mean_bits": own[-1].mean_bits,
                "steps": ROUNDS * self.settings.steps,
            }
        self.records.say(f"tuned {', '.join(wanted)}")

    def tune_float_on_tasks(self) -> None:
        """The float models fine-tuned on each task; the first task's also judge what is not retrained."""
        for source in self.settings.tasks:
            self.records.doing = f"fine-tuning on {source}"
            learners = list(self.models.learners.values())
            task = TaskStudy(source, learners, self.models.vocabulary, self.settings.glue_steps)
            self.keep(["float"], task.tune(self.models.floats, self.settings.seeds))
            self.tasks.append(task)
        self.recipes.task = self.tasks[0] if self.tasks else None
        self.records.say("tasks in float")

    def tune_on_tasks(self) -> None:
        """The tasks' float models fine-tuned on at widths, side by side."""
        seeds = self.settings.seeds
        for task in self.tasks:
            done = set.intersection(*(set(self.records[seed]["glue"][task.task.name]) for seed in seeds))
            known = [key for key in GLUE_KEYS if float(key.partition("@")[2] or 2) in (2, *self.settings.budgets)]
            for part in self.parts([key for key in known if key not in done]):
                if self.records.late():
                    return
                self.records.doing = f"{task.task.name} at {', '.join(part)}"
                chains = [(place, self.chosen(key, seed)) for key in part for place, seed in enumerate(seeds)]
                self.keep(part, task.tune_at(chains, [seed + len(seeds) for _ in part for seed in seeds]))
                self.records.say(self.records.doing)

    def keep(self, keys: Sequence[str], scores: Scores) -> None:
        """Scores of models that are ordered by key, then by seed."""
        chains = [(key, seed) for key in keys for seed in self.settings.seeds]
        for split, values in scores.items():
            for (key, seed), value in zip(chains, values, strict=True):
                self.records[seed]["glue"].setdefault(split, {})[key] = value


def trained(settings: Settings) -> Models:
    """The float models; those that are not there yet are trained first, side by side."""
    missing = [seed for seed in settings.seeds if not (settings.model(seed) / "train.json").exists()]
    if missing:
        folders = [(seed, settings.model(seed)) for seed in missing]
        train(folders, settings.data, STUDIED[settings.preset], settings.device)
    return Models.open(settings)


def describe(records: Records, models: Models) -> None:
    """What the records say of their float models: training, perplexity, statistics."""
    settings = records.settings
    for seed in settings.seeds:
        record, folder, learner = records[seed], settings.model(seed), models.learners[seed]
        on_card = models.device.type == "cuda"
        about = {
            "sha256": sha256_file(folder / "float.safetensors"),
            "device": torch.cuda.get_device_name(models.device) if on_card else str(models.device),
            "torch": torch.__version__,
        }
        record["train"] = read_json(folder / "train.json") | about
        if "float" not in record:
            judged = models.judge(learner_losses(learner, None))
            record["float"] = judged | {"bytes": models.subjects[seed].memory_bytes(None)}
    records.say("float")
    for seed in settings.seeds:
        record, start = records[seed], time.monotonic()
        if "stats" not in record:
            record["stats"] = [one.to_json() for one in models.subjects[seed].stats(WIDTHS, QUANTIZER)]
            record["stats_s"] = time.monotonic() - start
    records.say("statistics")


def run(settings: Settings) -> None:
    """The whole study, in this process and others; where it fails it ends with one line."""
    try:
        records = Records(settings)
    except (WattbitError, OSError) as error:
        raise SystemExit(f"{settings.preset}: {' '.join(str(error).split())}") from None
    spawn = multiprocessing.get_context("spawn")
    # this process, which feeds the GPU, goes first
    pool = ProcessPoolExecutor(settings.workers, mp_context=spawn, initializer=os.nice, initargs=(10,))
    slow_pool = ProcessPoolExecutor(settings.workers, mp_context=spawn, initializer=os.nice, initargs=(15,))
    try:
        for seed in settings.seeds:
            records.save(seed)  # before the weights, which do not say what they were trained for
        models = trained(settings)
        describe(records, models)
        layers = range(models.config.layers if settings.retrained else 0)
        scaling = {
            seed: [
                pool.submit(layer_scales, settings.data, settings.model(seed), layer, bits)
                for layer in layers
                for bits in WIDTHS
            ]
            for seed in settings.seeds
        }
        recipes = Recipes(records, models, pool, slow_pool)
        recipes.start(SLOW)
        Study(records, models, recipes, scaling).run()
    except (WattbitError, RuntimeError, OSError) as error:  # RuntimeError: out of the GPU's memory, or a lost worker
        raise SystemExit(f"{settings.preset}, {records.doing}: {' '.join(str(error).split())}") from None
    finally:
        for each in (pool, slow_pool):
            each.shutdown(cancel_futures=True)  # unwaited, the exit of this process could keep the end from a worker
