"""Models side by side are each what they would be alone."""

from dataclasses import replace
from pathlib import Path

import pytest
import torch

from tests.models_support import TINY_MODEL, TINY_TRAIN
from wattbit.models.learner import TAUGHT_RATE, MoELearner
from wattbit.models.network import Transformer
from wattbit.models.quant import LayerQuantizer
from wattbit.models.sample import Samples, draw
from wattbit.models.stack import Stack, falling, fit, stacked
from wattbit.models.train import schedule, train
from wattbit.plan import Allocation, ExpertId

pytest_plugins = ["tests.models_support"]

EXPERTS = TINY_MODEL.expert_ids


def mixed(shift: int) -> Allocation:
    return Allocation.of({expert: (2, 3, 4, 8)[(i + shift) % 4] for i, expert in enumerate(EXPERTS)})


def assert_same(stack: Stack, model: int, network: Transformer, tolerance: float = 1e-4) -> None:
    for name, wanted in network.state_dict().items():
        torch.testing.assert_close(stack[name][model].detach(), wanted, rtol=tolerance, atol=tolerance, msg=name)


def test_each_model_of_a_stack_predicts_what_it_predicts_alone(data: Path, model_dir: Path):
    learner = MoELearner.open(data, model_dir)
    torch.manual_seed(1)
    networks = [learner.network, Transformer(TINY_MODEL), Transformer(TINY_MODEL)]
    stack = Stack.of(networks)
    tokens = torch.randint(0, TINY_MODEL.vocab_size, (3, 4, 9))
    with torch.no_grad():
        hidden, balance = stack.hidden(tokens)
        logits = stack.logits(hidden)
        for model, network in enumerate(networks):
            wanted, routings = network(tokens[model])
            torch.testing.assert_close(logits[model], wanted, rtol=1e-4, atol=1e-4)
            torch.testing.assert_close(balance[model], torch.stack([r.balance for r in routings]).sum())
    copy = stack.select([2, 0])
    assert_same(copy, 0, networks[2], 0)
    assert_same(copy, 1, networks[0], 0)


def test_float_models_are_trained_as_alone(data: Path, tmp_path: Path):
    settings = [replace(TINY_TRAIN, seed=seed, steps=12, weight_decay=0.1) for seed in (0, 1)]
    networks, alone = [], []
    for one in settings:
        train(data, tmp_path / str(one.seed), TINY_MODEL, one)
        alone.append(MoELearner.open(data, tmp_path / str(one.seed)).network)
        torch.manual_seed(one.seed)
        networks.append(Transformer(TINY_MODEL))
    tokens, stack = Samples.load(data, TINY_MODEL.context).train, Stack.of(networks)
    fit(
        stack,
        lambda step: torch.stack([draw(tokens, TINY_MODEL.context, 8, one.seed, step) for one in settings]),
        [settings[0].learning_rate * schedule(step, settings[0]) for step in range(12)],
        settings[0].balance,
        weight_decay=0.1,
    )
    for model, network in enumerate(alone):
        assert_same(stack, model, network, 2e-3)


def test_models_are_fine_tuned_as_alone(data: Path, model_dir: Path):
    """With and without the gradient's clipping, which must be each model's own."""
    allocations = [mixed(0), mixed(1), Allocation.of(dict.fromkeys(EXPERTS, 8))]
    learners = [MoELearner.open(data, model_dir, distillation=0.9) for _ in allocations]
    stack = Stack.of([learner.network for learner in learners])
    teacher = Stack.of([learners[0].network])
    quantizers = stacked([one.quantizers(a) for one, a in zip(learners, allocations, strict=True)])
    settings, tokens = learners[0].train_config, learners[0].samples.train
    fit(
        stack,
        lambda step: draw(tokens, TINY_MODEL.context, settings.batch, 3, step).expand(3, -1, -1),
        falling(TAUGHT_RATE, 6),
        settings.balance,
        quantizers=quantizers,
        teacher=teacher,
        taught=0.9,
    )
    for model, (learner, allocation) in enumerate(zip(learners, allocations, strict=True)):
        learner.finetune(allocation, 6, 3)
        assert_same(stack, model, learner.network, 2e-3)


def test_what_float32_computes_exactly_is_found_for_all_experts_at_once(data: Path, model_dir: Path):
    learner = MoELearner.open(data, model_dir)
    allocation = mixed(0)
    for factor in (1.0, 1.3, 2.0, 4.0):
        for layer, quantizer in enumerate(learner.quantizers(allocation)):
            mixture = learner.network.layers[layer].mixture
            w1, w2 = factor * mixture.w1.detach(), factor * mixture.w2.detach()
            found = quantizer.exact(w1, w2).tolist()
            for e in range(TINY_MODEL.experts):
                scales = learner.scales(ExpertId(layer, e), allocation.precision(ExpertId(layer, e)))
                assert found[e] == scales.still_exact(w1[e].numpy(), w2[e].numpy())


def test_quantizers_are_joined_in_order(data: Path, model_dir: Path):
    learner = MoELearner.open(data, model_dir)
    first, second = (learner.quantizers(mixed(shift))[0] for shift in (0, 1))
    both = LayerQuantizer.joined([first, second])
    assert both.weight_bits.flatten().tolist() == pytest.approx([2, 3, 4, 8, 3, 4, 8, 2])
    assert torch.equal(both.scale1[TINY_MODEL.experts :], second.scale1)
