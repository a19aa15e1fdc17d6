"""GLUE in a study of `benchmarks/methods.py`: all weights of the seeds' models fine-tuned on a task, side by side."""

import copy
from collections.abc import Sequence
from dataclasses import dataclass, field

import torch
from study_side_by_side import fast
from tokenizers import Tokenizer

from wattbit.models.learner import MoELearner
from wattbit.models.own import OwnModel
from wattbit.models.stack import Stack, stacked
from wattbit.models.subject import ModelSubject
from wattbit.models.tasks import read_task
from wattbit.models.tuning import QUANTIZED_SHARE, RATE, Classifier, Sentences
from wattbit.plan import Allocation
from wattbit.recipe import Recipe

Scores = dict[str, list[float]]
"""Of several models, by split."""


@dataclass(eq=False)
class TaskStudy:
    """A task and the float models of `learners` fine-tuned on it for `steps`, which `tune` makes."""

    source: str
    learners: Sequence[MoELearner]
    vocabulary: Tokenizer
    steps: int
    packers: list[ModelSubject] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.task = read_task(self.source)
        context = self.learners[0].config.context
        self.train = Sentences.of(self.task.train, self.vocabulary, context)
        splits = {self.task.name: self.task.dev, f"{self.task.name}, held out": self.task.held}
        self.splits = {name: Sentences.of(one, self.vocabulary, context) for name, one in splits.items() if one}

    def tune(self, floats: Stack, seeds: Sequence[int]) -> Scores:
        """floats: the learners' networks, one a seed."""
        self.models = Classifier(floats.select(range(len(seeds))), 1 + max(self.task.train.labels))
        with fast():
            self.models.train(self.train, self.steps, RATE, seeds)
        held = self.learners[0].samples.held[:1]  # what packs them reads no text
        for i, learner in enumerate(self.learners):
            network = copy.deepcopy(learner.network)
            self.models.stack.write(i, network)
            self.packers.append(ModelSubject(OwnModel(network), held, held))
        return self.scores(self.models)

    def rounded(self, place: int, recipe: Recipe) -> dict[str, float]:
        """Scores of one float model with its experts quantized so, without retraining."""
        one = self.models.select([place], None)
        with torch.no_grad():
            for expert, packed in self.packers[place].quantize(recipe).items():
                for name, weights in packed.dequantize().items():
                    one.stack[f"blocks.{expert.layer}.mixture.{name}"][0, expert.expert].copy_(weights)
        return {split: scores[0] for split, scores in self.scores(one).items()}

    def tune_at(self, chains: Sequence[tuple[int, Allocation]], seeds: Sequence[int]) -> Scores:
        """Float models, by place, fine-tuned on at the widths of an allocation. seeds: of the sentences drawn."""
        quantizers = stacked([self.learners[place].quantizers(allocation) for place, allocation in chains])
        found = self.models.select([place for place, _ in chains], quantizers)
        with fast():
            found.train(self.train, max(1, round(QUANTIZED_SHARE * self.steps)), RATE / 2, seeds)
        return self.scores(found)

    def scores(self, found: Classifier) -> Scores:
        return {split: found.scores(self.task, sentences) for split, sentences in self.splits.items()}
