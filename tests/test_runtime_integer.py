"""The trained model with integer experts decodes as PyTorch's, wherever its experts run."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
import torch

from tests.models_support import TINY_MODEL
from tests.runtime_support import agreement, allocations, build_host, mixed_engines
from wattbit import arith
from wattbit.arith import Int8
from wattbit.models.decode import reference
from wattbit.models.learner import MoELearner
from wattbit.models.portable import decoder
from wattbit.plan import Allocation, ExpertId
from wattbit.tvm_schedules.model.runtime import Decoder

pytest_plugins = ["tests.models_support"]

EXPERTS = TINY_MODEL.expert_ids
ALLOCATIONS = allocations(EXPERTS) | {
    "mixed engines": mixed_engines(EXPERTS),
    "narrow activations": Allocation.of(dict.fromkeys(EXPERTS, 6), act_bits=4, engine="arm"),
}


@pytest.fixture(scope="module")
def learner(data: Path, model_dir: Path) -> MoELearner:
    return MoELearner.open(data, model_dir)


def prompts(learner: MoELearner, length: int) -> list[list[int]]:
    """Beginnings of held-out text."""
    return [row.tolist() for row in learner.samples.valid[:, :length]]


def compare(learner: MoELearner, allocation: Allocation, tokens: int, out: Path) -> None:
    """Decode `tokens` tokens from several prompts; every one must be PyTorch's."""
    logits = reference(learner, allocation)
    compared = 0
    with Decoder(build_host(decoder(learner, allocation), out), threads=2) as runtime:
        for prompt in prompts(learner, 2):
            runtime.reset()
            found = list(runtime.generate(prompt, TINY_MODEL.context))
            assert len(found) == TINY_MODEL.context - len(prompt) + 1
            assert agreement(logits, prompt, found) == len(found)
            compared += len(found)
            if compared >= tokens:
                return
    pytest.fail(f"the text has prompts for {compared} tokens only")


@pytest.mark.parametrize("name", ["mixed", "narrow activations"])
def test_tokens_equal_pytorchs(learner: MoELearner, name: str, tmp_path: Path) -> None:
    compare(learner, ALLOCATIONS[name], 60, tmp_path)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["uniform8", "uniform4", "mixed"])
def test_a_thousand_tokens_equal_pytorchs(learner: MoELearner, name: str, tmp_path: Path) -> None:
    compare(learner, ALLOCATIONS[name], 1000, tmp_path)


def test_the_deployed_arithmetic_is_the_trained_models(learner: MoELearner) -> None:
    """In double or in float32: but for a rare activation on the edge of two integers the logits are the same."""
    allocation = ALLOCATIONS["mixed"]
    tokens = learner.samples.valid[0, :-1]
    modules = learner._experts(allocation)
    with torch.no_grad():
        trained = learner.network(tokens[None], modules)[0][0].double()
    difference = (reference(learner, allocation)(tokens) - trained).abs().amax(dim=-1)
    assert float(difference.median()) < 1e-4


@pytest.fixture(scope="module")
def folder(learner: MoELearner, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return build_host(decoder(learner, ALLOCATIONS["mixed engines"]), tmp_path_factory.mktemp("decoder"))


def test_experts_elsewhere_change_no_bit(learner: MoELearner, folder: Path) -> None:
    """Each layer's rows come in one call, sorted by expert, and those of other experts do not come."""
    allocation = ALLOCATIONS["mixed engines"]
    away = {p.expert for p in allocation.placements if p.engine == "fpga"}
    ints = {e: learner.expert(e, allocation.precision(e)).ints() for e in EXPERTS}
    calls: list[Sequence[ExpertId]] = []

    def accelerator(experts: Sequence[ExpertId], x: Int8) -> Int8:
        calls.append(experts)
        return np.concatenate([arith.forward(ints[e], row[None]) for e, row in zip(experts, x, strict=True)])

    (prompt,) = prompts(learner, 20)[:1]
    with Decoder(folder, threads=2) as here, Decoder(folder, threads=2) as there:
        there.place(away, accelerator)
        np.testing.assert_array_equal(here.feed(prompt), there.feed(prompt))
        np.testing.assert_array_equal(here.feed([3]), there.feed([3]))
    assert {expert for call in calls for expert in call} <= away
    assert all(len({expert.layer for expert in call}) == 1 and list(call) == sorted(call) for call in calls)
    assert len(calls[0]) > 2


def test_what_fails_elsewhere_comes_out_of_feed(folder: Path) -> None:
    def broken(experts: Sequence[ExpertId], x: Int8) -> Int8:
        raise ValueError("the accelerator is gone")

    with Decoder(folder, threads=1) as runtime:
        runtime.place(EXPERTS, broken)
        with pytest.raises(ValueError, match="the accelerator is gone"):
            runtime.feed([1, 2, 3])
