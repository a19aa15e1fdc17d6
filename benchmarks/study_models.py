"""The float models of a study of `benchmarks/methods.py`, and the text that judges a model."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Self

import torch
from study_jobs import Settings, subject_of
from tokenizers import Tokenizer

from wattbit.models.config import ModelConfig
from wattbit.models.corpus import read_test
from wattbit.models.data import encode, load_vocabulary
from wattbit.models.evaluation import Losses, count_words, perplexity
from wattbit.models.learner import MoELearner
from wattbit.models.own import OwnModel
from wattbit.models.stack import Stack
from wattbit.models.subject import ModelSubject


@dataclass(frozen=True, eq=False)
class Models:
    """By seed: learners, and the same networks as methods see them. floats: all of them side by side.

    test: tokens [n] of the judging text, which are `words` words of the corpus' split `split`.
    """

    learners: Mapping[int, MoELearner]
    own: Mapping[int, OwnModel]
    subjects: Mapping[int, ModelSubject]
    floats: Stack
    vocabulary: Tokenizer
    split: str
    test: torch.Tensor
    words: int

    @classmethod
    def open(cls, settings: Settings) -> Self:
        """The trained models of a study."""
        learners = {
            seed: MoELearner.open(settings.data, settings.model(seed), settings.device) for seed in settings.seeds
        }
        for learner in learners.values():
            learner.network.requires_grad_(True)
        vocabulary = load_vocabulary(settings.data)
        split, texts = read_test(settings.text)
        whole = encode(vocabulary, texts)
        test = whole[: settings.judged]
        return cls(
            learners,
            {seed: OwnModel.of(learner) for seed, learner in learners.items()},
            {seed: subject_of(learner) for seed, learner in learners.items()},
            Stack.of([learner.network for learner in learners.values()]).requires_grad_(False),
            vocabulary,
            split,
            torch.from_numpy(test.astype("int64")),
            round(sum(map(count_words, texts)) * len(test) / len(whole)),
        )

    @property
    def config(self) -> ModelConfig:
        return self.floats.config

    @property
    def device(self) -> torch.device:
        return self.floats.device

    def judge(self, losses: Losses) -> dict[str, Any]:
        """Perplexity on the judging text."""
        found = perplexity(losses, self.test, self.words, self.config.context, self.config.context // 2)
        return {"perplexity": found.to_json() | {"split": self.split}}
