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
from study_jobs import (
    QUANTIZER,
    STUDIED,
    WIDTHS,
    Scales,
    Settings,
    layer_scales,
    subject_of,
)
from study_recipes import Recipes
from study_side_by_side import finetune, train
from study_tasks import Scores, TaskStudy

from wattbit.errors import WattbitError
from wattbit.files import read_json, sha256_file
from wattbit.models.corpus import read_test
from wattbit.models.data import encode, load_vocabulary
from wattbit.models.evaluation import count_words, learner_losses
from wattbit.models.learner import MoELearner
from wattbit.models.own import OwnModel
from wattbit.models.stack import Stack
from wattbit.plan import Allocation, ExpertStats
from wattbit.policy.methods.registry import METHODS, method
from wattbit.recipe import Budget, Recipe

ROUNDS = 2  # of fine-tuning; before the second, DMPQ's co-trained form searches at the weights that the first one left
SLOW = ("gptq", "milo-kurtosis", "milo-frequency")  # minutes with 256 experts
TOGETHER = {16: 5, 64: 3}  # chains a seed side by side, by experts of a layer: what half of a GPU's memory holds
GLUE_KEYS = ("uniform8", "uniform@3.0", "dmpq@2.75", "exact@2.75", "random@2.75", "dmpq@2.5", "uniform@2.0")

Key = TypeVar("Key", str, float)


class Study(Recipes):
    """All of it, in order."""

    def run(self) -> None:
        quick = [name for name in METHODS if name not in (*SLOW, "dmpq")]
        self.open()
        self.describe()
        if self.settings.retrained:
            self.tune_float_on_tasks()
            self.untuned(quick, 0.4)
            self.adopt_scales()
            self.tuned()
            self.tune_on_tasks()
        self.untuned(quick)
        if self.settings.retrained:
            self.cotrained()
        for seed, budget in self.searches:
            if not self.late():
                self.searched(budget, seed)
        self.slow()
        self.with_gptq()
        self.say("end" if not self.late() else "stopped")

    def open(self) -> None:
        """Train, take what judges a model, and judge the float models."""
        s = self.settings
        missing = [seed for seed in s.seeds if not (s.model(seed) / "train.json").exists()]
        if missing:
            train([(seed, s.model(seed)) for seed in missing], s.data, STUDIED[s.preset], s.device)
            print(f"{time.monotonic() - self.start:6.1f} s {s.preset} trained", flush=True)
        self.learners = {seed: MoELearner.open(s.data, s.model(seed), s.device) for seed in s.seeds}
        for learner in self.learners.values():
            learner.network.requires_grad_(True)
        some = self.learners[s.seeds[0]]
        self.device, self.config = some.network.device, some.config
        self.floats = Stack.of([learner.network for learner in self.learners.values()]).requires_grad_(False)
        self.models = {seed: OwnModel.of(learner) for seed, learner in self.learners.items()}
        self.subjects = {seed: subject_of(learner) for seed, learner in self.learners.items()}
        self.vocabulary = load_vocabulary(s.data)
        self.split, texts = read_test(s.text)
        test = encode(self.vocabulary, texts)[: s.judged]
        self.words = round(sum(map(count_words, texts)) * len(test) / len(encode(self.vocabulary, texts)))
        self.test = torch.from_numpy(test.astype("int64"))
        for seed, record in self.records.items():
            digest = sha256_file(s.model(seed) / "float.safetensors")
            about = {"sha256": digest, "device": str(self.device)}
            record["train"] = read_json(s.model(seed) / "train.json") | about
            if "float" not in record:
                losses = learner_losses(self.learners[seed], None)
                record["float"] = self.judge(losses) | {"bytes": self.subjects[seed].memory_bytes(None)}
        self.say("float")

    def describe(self) -> None:
        """Statistics; searches, scales and slow quantizers start in the other processes."""
        s = self.settings
        self.stats = {}
        self.scaling: dict[int, list[Future[Scales]]] = {}
        for seed, record in self.records.items():
            start = time.monotonic()
            if "stats" not in record:
                record["stats"] = [one.to_json() for one in self.subjects[seed].stats(WIDTHS, QUANTIZER)]
                record["stats_s"] = time.monotonic() - start
            self.stats[seed] = tuple(ExpertStats.from_json(one) for one in record["stats"])
            self.scaling[seed] = [
                self.pool.submit(layer_scales, s.data, s.model(seed), layer, bits)
                for layer in range(self.config.layers if s.retrained else 0)
                for bits in WIDTHS
            ]
        for seed in s.seeds:
            for budget in s.budgets:
                if f"dmpq@{budget}" not in self.records[seed]["recipes"] and budget > min(WIDTHS):
                    self.searches[seed, budget] = self.search(self.stats[seed], budget, seed)
        for name in SLOW:
            for budget in s.budgets:
                for seed in s.seeds:
                    self.pack(name, budget, seed)
        self.say("statistics")

    def adopt_scales(self) -> None:
        """Wait for the scales that the deployed arithmetic is fine-tuned with."""
        for seed, found in self.scaling.items():
            scales: Scales = {}
            for part in found:
                scales |= part.result()
            self.learners[seed].adopt(scales)
        self.say("scales")

    def tuned(self) -> None:
        """Chains of fine-tuning from the float weights, with the teacher that co-training has by default."""
        first, *rest = self.parts(self.controls())
        between = [f"dmpq@{budget}" for budget in self.settings.budgets if budget > min(WIDTHS)]
        for part in (first, *rest[:1], *self.parts(between), *rest[1:]):  # the searches end meanwhile
            if not self.late():
                self.chains({key: {seed: self.chosen(key, seed) for seed in self.settings.seeds} for key in part})

    def controls(self) -> list[str]:
        """Chains beside DMPQ's, budget after budget."""
        found = ["uniform8"]
        for budget in self.settings.budgets:
            found += [f"uniform@{budget}"] if budget == int(budget) else []
            found += [f"{name}@{budget}" for name in ("exact", "random") if budget > min(WIDTHS)]
        return found

    def chosen(self, key: str, seed: int) -> Allocation:
        name, _, budget = key.partition("@")
        if name.startswith("uniform"):
            bits = 8 if name == "uniform8" else int(float(budget))
            return Allocation.of(dict.fromkeys(self.config.expert_ids, bits))
        if name == "dmpq":
            return self.searched(float(budget), seed)
        decided = method(name, quantizer=QUANTIZER).decide(self.subjects[seed], Budget(float(budget), WIDTHS), seed)
        return decided.allocation

    def cotrained(self) -> None:
        """DMPQ's chains once more, with a second search between the rounds."""
        seeds, budgets = self.settings.seeds, [b for b in self.settings.budgets if b > min(WIDTHS)]
        for part in self.parts(budgets):
            if not self.late(0.9):
                wanted = {f"dmpq-cotrained@{b}": {seed: self.searched(b, seed) for seed in seeds} for b in part}
                self.chains(wanted, again=True)

    def parts(self, keys: Sequence[Key]) -> list[Sequence[Key]]:
        """The keys, so many at a time as run side by side."""
        size = TOGETHER.get(self.config.experts, 4)
        return [keys[start : start + size] for start in range(0, len(keys), size)]

    def chains(self, wanted: Mapping[str, Mapping[int, Allocation]], again: bool = False) -> None:
        """Fine-tune each seed's model at each allocation; `again`: search between the rounds."""
        seeds = self.settings.seeds
        wanted = {k: a for k, a in wanted.items() if any(k not in self.records[seed]["tuned"] for seed in seeds)}
        if not wanted or self.late():
            return
        self.doing = f"fine-tuning at {', '.join(wanted)}"
        chains = [(seed, key) for seed in seeds for key in wanted]  # neighbours share a teacher
        allocations = [[wanted[key][seed]] for seed, key in chains]
        places = [seeds.index(seed) for seed, _ in chains]
        learners = [self.learners[seed] for seed, _ in chains]
        stack = self.floats.select(places)
        for turn in range(ROUNDS):
            if turn and again:
                found = [
                    self.search(subject_of(learner).stats(WIDTHS, QUANTIZER), float(key.partition("@")[2]), seed)
                    for learner, (seed, key) in zip(learners, chains, strict=True)
                ]
                for own, one in zip(allocations, found, strict=True):
                    own.append(Recipe.from_json(one.result()[0]).allocation)
            now, drawn = [own[-1] for own in allocations], [seed + turn for seed, _ in chains]
            learners = finetune(stack, self.floats, learners, now, drawn, self.settings.steps)
        for learner, own, (seed, key) in zip(learners, allocations, chains, strict=True):
            judged = self.judge(learner_losses(learner, own[-1]))
            self.records[seed]["tuned"][key] = judged | {
                "allocations": [one.to_json() for one in own],
                "mean_bits": own[-1].mean_bits,
                "steps": ROUNDS * self.settings.steps,
            }
        self.say(f"tuned {', '.join(wanted)}")

    def tune_float_on_tasks(self) -> None:
        """The float models fine-tuned on each task; the first task's also judge what is not retrained."""
        for source in self.settings.tasks:
            self.doing = f"fine-tuning on {source}"
            task = TaskStudy(source, list(self.learners.values()), self.vocabulary, self.settings.glue_steps)
            self.keep(["float"], task.tune(self.floats, self.settings.seeds))
            self.tasks.append(task)
        self.say("tasks in float")

    def tune_on_tasks(self) -> None:
        """The tasks' float models fine-tuned on at widths, side by side."""
        seeds = self.settings.seeds
        for task in self.tasks:
            done = set.intersection(*(set(self.records[seed]["glue"][task.task.name]) for seed in seeds))
            known = [key for key in GLUE_KEYS if float(key.partition("@")[2] or 2) in (2, *self.settings.budgets)]
            for part in self.parts([key for key in known if key not in done]):
                if self.late():
                    return
                self.doing = f"{task.task.name} at {', '.join(part)}"
                chains = [(place, self.chosen(key, seed)) for key in part for place, seed in enumerate(seeds)]
                self.keep(part, task.tune_at(chains, [seed + len(seeds) for _ in part for seed in seeds]))
                self.say(self.doing)

    def keep(self, keys: Sequence[str], scores: Scores) -> None:
        """Scores of models that are ordered by key, then by seed."""
        chains = [(key, seed) for key in keys for seed in self.settings.seeds]
        for split, values in scores.items():
            for (key, seed), value in zip(chains, values, strict=True):
                self.records[seed]["glue"].setdefault(split, {})[key] = value


def run(settings: Settings) -> None:
    """The whole study, in this process and others."""
    spawn = multiprocessing.get_context("spawn")
    pool = ProcessPoolExecutor(settings.workers, mp_context=spawn)
    slow_pool = ProcessPoolExecutor(settings.workers, mp_context=spawn, initializer=os.nice, initargs=(15,))
    study = Study(settings, pool, slow_pool)
    try:
        study.run()
    except (WattbitError, RuntimeError, OSError) as error:  # RuntimeError: out of the GPU's memory, or a lost worker
        raise SystemExit(f"{settings.preset}, {study.doing}: {' '.join(str(error).split())}") from None
    finally:
        for each in (pool, slow_pool):
            each.shutdown(wait=False, cancel_futures=True)
