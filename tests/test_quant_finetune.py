"""Fine-tuning with the float model as its teacher, and the same learner on a GPU."""

from pathlib import Path

import pytest
import torch

from tests.models_support import TINY_MODEL
from wattbit.models.learner import MoELearner
from wattbit.models.network import Transformer, grouped
from wattbit.models.own import OwnModel
from wattbit.models.quant import LayerQuantizer
from wattbit.models.subject import ModelSubject
from wattbit.models.train import Teacher
from wattbit.plan import Allocation, Precision
from wattbit.recipe import QUANTIZERS, Pruning, Recipe

pytest_plugins = ["tests.models_support"]

EXPERTS = TINY_MODEL.expert_ids
needs_card = pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device: PyTorch sees none")


def uniform(bits: int) -> Allocation:
    return Allocation.of(dict.fromkeys(EXPERTS, bits))


def divergence(learner: MoELearner, float_network: Transformer, allocation: Allocation) -> float:
    """KL of the quantized model from the float one on validation text."""
    contexts = learner.samples.held
    with torch.no_grad():
        logits, _ = learner.network(contexts[:, :-1], learner._experts(allocation))
        return Teacher(float_network, 1.0).divergence(contexts, logits).item()


def test_the_divergence_is_that_of_two_distributions():
    torch.manual_seed(0)
    network = Transformer(TINY_MODEL)
    contexts = torch.randint(0, TINY_MODEL.vocab_size, (2, 9))
    with torch.no_grad():
        own, _ = network(contexts[:, :-1])
        other = torch.randn_like(own)
    teacher = Teacher(network, 0.5)
    assert teacher.divergence(contexts, own).item() == pytest.approx(0, abs=1e-6)
    p = torch.distributions.Categorical(logits=own)
    q = torch.distributions.Categorical(logits=other)
    expected = torch.distributions.kl_divergence(p, q).mean().item()
    assert teacher.divergence(contexts, other).item() == pytest.approx(expected, rel=1e-4)


def test_a_teacher_keeps_the_model_nearer_to_the_float_one(data: Path, model_dir: Path):
    """Of two equal fine-tunings the one with a teacher ends nearer to it, and the teacher stays as it is."""
    found = []
    for weight in (0.0, 1.0):
        learner = MoELearner.open(data, model_dir, distillation=weight)
        original = MoELearner.open(data, model_dir).network
        learner.finetune(uniform(2), steps=12, seed=1)
        found.append(divergence(learner, original, uniform(2)))
        if learner.teacher is not None:
            for ours, theirs in zip(learner.teacher.network.parameters(), original.parameters(), strict=True):
                assert torch.equal(ours, theirs)
    assert found[1] < found[0]


@pytest.mark.gpu
@needs_card
def test_a_learner_on_a_gpu_is_the_one_on_the_cpu(data: Path, model_dir: Path, tmp_path: Path):
    """Perplexities, statistics and what fine-tuning does, within rounding; its file comes back on the CPU."""
    cpu, gpu = MoELearner.open(data, model_dir), MoELearner.open(data, model_dir, device="cuda", distillation=0.5)
    assert gpu.network.device.type == "cuda"
    for allocation in (None, uniform(8), uniform(3)):
        assert gpu.perplexity(allocation) == pytest.approx(cpu.perplexity(allocation), rel=1e-2)
    for ours, theirs in zip(gpu.stats((2, 4)), cpu.stats((2, 4)), strict=True):
        assert ours.gradient_norm == pytest.approx(theirs.gradient_norm, rel=0.05)
        assert ours.damage_at(2) == pytest.approx(theirs.damage_at(2), abs=1e-2)
    before = gpu.perplexity(uniform(2))
    gpu.finetune(uniform(2), steps=12, seed=1)
    assert gpu.perplexity(uniform(2)) < before
    gpu.save(tmp_path / "x.safetensors")
    cpu.load(tmp_path / "x.safetensors")
    assert cpu.perplexity(uniform(2)) == pytest.approx(gpu.perplexity(uniform(2)), rel=1e-2)


@pytest.mark.gpu
@needs_card
def test_experts_on_a_gpu_are_the_loops(data: Path, model_dir: Path):
    learner = MoELearner.open(data, model_dir)
    counts = [7, 0, 30, 1]
    x = torch.randn(sum(counts), TINY_MODEL.d_model)
    mixture = learner.network.layers[0].mixture
    scales = [learner.scales(e, Precision(4, 8)) for e in EXPERTS if e.layer == 0]
    with torch.no_grad():
        product = grouped(x.cuda(), counts, mixture.w1.cuda()).cpu()
        torch.testing.assert_close(product, grouped(x, counts, mixture.w1), rtol=1e-5, atol=1e-5)
        ours = LayerQuantizer.of(scales, "cuda").experts(mixture.w1.cuda(), mixture.w2.cuda())(x.cuda(), counts)
        assert torch.equal(ours.cpu(), LayerQuantizer.of(scales).experts(mixture.w1, mixture.w2)(x, counts))


@pytest.mark.gpu
@needs_card
def test_a_subject_on_a_gpu_sees_what_one_on_the_cpu_sees(data: Path, model_dir: Path):
    subjects = []
    for device in ("cpu", "cuda"):
        learner = MoELearner.open(data, model_dir, device)
        subjects.append(ModelSubject(OwnModel.of(learner), learner.samples.calibration, learner.samples.valid))
    cpu, gpu = subjects
    for quantizer in QUANTIZERS:
        for ranks in ({}, dict.fromkeys(EXPERTS, 4)):
            recipe = Recipe("x", uniform(3), quantizer, 16, ranks, pruning=Pruning(cpu.gate_ratios()))
            assert gpu.perplexity(recipe) == pytest.approx(cpu.perplexity(recipe), rel=1e-2)
            assert gpu.memory_bytes(recipe) == cpu.memory_bytes(recipe)
    for ours, theirs in zip(gpu.stats((2,)), cpu.stats((2,)), strict=True):
        assert ours.kurtosis == pytest.approx(theirs.kurtosis, rel=1e-3)
        assert ours.damage_at(2) == pytest.approx(theirs.damage_at(2), abs=1e-3)
    for expert, errors in gpu.reconstruction((2,)).items():
        assert errors[2] == pytest.approx(cpu.reconstruction((2,))[expert][2], rel=1e-2, abs=1e-4)
        assert gpu.channel_activity()[expert] == pytest.approx(cpu.channel_activity()[expert], rel=1e-2, abs=1e-4)
