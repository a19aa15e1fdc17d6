"""Every method on a trained model with real packing: bytes, recipes that quantize, and perplexity of what they made."""

from pathlib import Path

import pytest

from tests.models_support import TINY_MODEL
from tests.policy_fakes import AdditiveMeter
from wattbit.models.learner import MoELearner
from wattbit.models.own import OwnModel
from wattbit.models.subject import ModelSubject
from wattbit.plan import Workload
from wattbit.policy.explain import explain
from wattbit.policy.methods.dmpq import DMPQ
from wattbit.policy.methods.moqa import MoQa
from wattbit.policy.methods.registry import METHODS, method
from wattbit.policy.methods.size import budget_bytes
from wattbit.recipe import Budget, Method

pytest_plugins = ["tests.models_support"]

WIDTHS = (2, 3, 4, 6, 8)


@pytest.fixture
def subject(data: Path, model_dir: Path) -> ModelSubject:
    learner = MoELearner.open(data, model_dir)
    return ModelSubject(OwnModel.of(learner), learner.samples.calibration[:8], learner.samples.valid[:8])


def test_every_method_on_a_model(subject: ModelSubject) -> None:
    """At 2.5 and 3.5 bits: packed bytes as counted and within the budget's, perplexity near the float model's."""
    stats = subject.stats(WIDTHS)
    workload = Workload(1000, TINY_MODEL.top_k, tuple((s.expert, s.frequency) for s in stats))
    hardware = DMPQ(AdditiveMeter(), workload, iterations=3)
    for name in METHODS:
        found: Method = hardware if name == "dmpq" else method(name, AdditiveMeter(), workload)
        for mean in (2.5, 3.5):
            budget = Budget(mean, WIDTHS)
            recipe = found.decide(subject, budget, seed=0)
            assert recipe.allocation.mean_bits <= mean
            packed = subject.quantize(recipe)
            assert sum(expert.bytes for expert in packed.values()) == subject.memory_bytes(recipe)
            assert subject.memory_bytes(recipe) <= budget_bytes(subject, budget, recipe.quantizer)
            assert subject.perplexity(recipe) < 1.5 * subject.perplexity(None)
            explained = explain(stats, recipe.allocation)
            assert explained.damage_nats >= explained.least_damage_nats - 1e-12


def test_channels_of_two_corpora_are_kept_in_float_within_the_budget(data: Path, model_dir: Path) -> None:
    learner = MoELearner.open(data, model_dir)
    samples = learner.samples
    first = ModelSubject(OwnModel.of(learner), samples.calibration[:8], samples.valid[:8])
    other = ModelSubject(OwnModel.of(learner), samples.valid[8:16], samples.valid[:8])
    recipe = MoQa((other,)).decide(first, Budget(4.0, WIDTHS), seed=0)
    assert set(recipe.float_columns) == set(first.experts)
    assert first.memory_bytes(recipe) <= budget_bytes(first, Budget(4.0, WIDTHS), "gptq")
    assert sum(expert.bytes for expert in first.quantize(recipe).values()) == first.memory_bytes(recipe)
