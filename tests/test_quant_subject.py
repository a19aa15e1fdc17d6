"""A model as a method sees it: every figure against its definition, and the model untouched afterwards."""

import math
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor

from tests.models_support import TINY_MODEL
from wattbit.errors import WattbitError
from wattbit.models import subject as subject_module
from wattbit.models.expert_model import ExpertModel
from wattbit.models.learner import MoELearner
from wattbit.models.network import Transformer, token_losses
from wattbit.models.own import OwnModel, attention_weights
from wattbit.models.packed import save_experts
from wattbit.models.pruning import prune, token_importance
from wattbit.models.quantizers import rtn
from wattbit.models.quantizers.apply import fallen_back
from wattbit.models.subject import ModelSubject
from wattbit.models.train import perplexity
from wattbit.plan import Allocation, ExpertId
from wattbit.recipe import QUANTIZERS, Pruning, Quantizer, Recipe, Subject

pytest_plugins = ["tests.models_support"]

EXPERTS = TINY_MODEL.expert_ids
OPEN = Pruning((0.0, 0.0))


def uniform(bits: int, quantizer: Quantizer = "rtn", group_size: int | None = None) -> Recipe:
    return Recipe("uniform", Allocation.of(dict.fromkeys(EXPERTS, bits)), quantizer, group_size)


@pytest.fixture
def learner(data: Path, model_dir: Path) -> MoELearner:
    return MoELearner.open(data, model_dir)


@pytest.fixture
def model(learner: MoELearner) -> OwnModel:
    return OwnModel.of(learner)


@pytest.fixture
def subject(learner: MoELearner, model: OwnModel) -> ModelSubject:
    return ModelSubject(model, learner.samples.calibration, learner.samples.valid)


def weights(model: OwnModel) -> list[Tensor]:
    return [value.clone() for value in model.network.state_dict().values()]


def test_own_models_and_subjects_are_what_the_border_says(model: OwnModel, subject: ModelSubject):
    adapter: ExpertModel = model
    seen: Subject = subject
    assert seen.experts == adapter.expert_ids == EXPERTS
    assert seen.top_k == TINY_MODEL.top_k


def test_a_replaced_expert_is_the_networks_and_matrices_are_copies(model: OwnModel):
    before = model.matrices(EXPERTS[5])
    model.matrices(EXPERTS[5])["w1"].zero_()
    assert torch.equal(model.network.layers[1].mixture.w1[1], before["w1"])
    model.replace(EXPERTS[5], {"w1": before["w1"] * 2, "w2": before["w2"]})
    assert torch.equal(model.network.layers[1].mixture.w1[1], before["w1"] * 2)
    assert torch.equal(model.matrices(EXPERTS[5])["w1"], before["w1"] * 2)


def test_gradient_norms_are_autograds(learner: MoELearner, model: OwnModel):
    contexts = learner.samples.calibration[:20]  # more than go through at once
    norms = model.gradient_norms(contexts)
    token_losses(model.network(contexts[:, :-1])[0], contexts[:, 1:]).mean().backward()
    for expert in EXPERTS:
        mixture = model.network.layers[expert.layer].mixture
        parts = [w.grad[expert.expert].flatten() for w in (mixture.w1, mixture.w2) if w.grad is not None]
        assert norms[expert] == pytest.approx(torch.cat(parts).norm().item(), rel=1e-4)


def test_perplexity_of_eight_bits_is_near_float_and_fewer_cost_more(learner: MoELearner, subject: ModelSubject):
    exact = subject.perplexity(None)
    assert exact == pytest.approx(learner.perplexity(None), rel=1e-6)
    for quantizer in QUANTIZERS:
        assert subject.perplexity(uniform(8, quantizer)) == pytest.approx(exact, rel=2e-3)
        assert subject.perplexity(uniform(4, quantizer)) == pytest.approx(exact, rel=2e-2)
        assert subject.perplexity(uniform(2, quantizer)) > subject.perplexity(uniform(4, quantizer))


def test_perplexity_is_the_networks_with_its_experts_replaced(learner: MoELearner, subject: ModelSubject):
    found = subject.perplexity(uniform(3, "rtn", 16))
    for block in learner.network.layers:
        for matrices in (block.mixture.w1.data, block.mixture.w2.data):
            for e in range(TINY_MODEL.experts):
                matrices[e] = rtn.quantize(matrices[e], 3, 16).dequantize()
    assert found == pytest.approx(perplexity(learner.network, learner.samples.valid), rel=1e-6)


def test_the_model_has_its_weights_back_after_every_question(
    model: OwnModel, subject: ModelSubject, monkeypatch: pytest.MonkeyPatch
):
    before = weights(model)
    subject.perplexity(uniform(2))
    subject.stats((2, 3))
    subject.reconstruction((2,))

    def fail(contexts: Tensor, pruning: Pruning | None = None) -> Tensor:
        raise WattbitError("interrupted")

    monkeypatch.setattr(model, "losses", fail)
    with pytest.raises(WattbitError):
        subject.perplexity(uniform(3))
    assert all(torch.equal(a, b) for a, b in zip(before, weights(model), strict=True))


def test_nothing_is_computed_twice(model: OwnModel, subject: ModelSubject, monkeypatch: pytest.MonkeyPatch):
    first = (
        subject.stats((2, 3)),
        subject.reconstruction((2, 3)),
        subject.perplexity(uniform(3)),
        subject.perplexity(None),
    )

    def forbidden(*_: object) -> None:
        raise AssertionError("computed again")

    for name in ("losses", "trace", "gradient_norms"):
        monkeypatch.setattr(model, name, forbidden)
    monkeypatch.setattr(subject_module, "quantize_expert", forbidden)
    other_name = replace(uniform(3), method="linear")
    again = (
        subject.stats((2, 3)),
        subject.reconstruction((3,)),
        subject.perplexity(other_name),
        subject.perplexity(None),
    )
    assert again[0] == first[0]
    assert all(again[1][e][3] == first[1][e][3] for e in EXPERTS)
    assert again[2:] == first[2:]
    subject.memory_bytes(uniform(7, "gptq"))  # and bytes need no quantizing


def test_statistics_are_what_they_say(learner: MoELearner, subject: ModelSubject):
    stats = {one.expert: one for one in subject.stats((2, 4))}
    assert tuple(stats) == EXPERTS
    theirs = {
        one.expert: one for one in learner.stats((2,))
    }  # of other text, so only what weights alone decide is equal
    for expert, one in stats.items():
        for name in ("max_variance", "kurtosis", "router_change"):
            assert getattr(one, name) == pytest.approx(getattr(theirs[expert], name), rel=1e-4), name
        assert one.tokens == subject.tokens()[expert]
        assert one.frequency == pytest.approx(one.tokens / (learner.samples.calibration[:, 1:].numel() * 2))
    for layer in range(TINY_MODEL.layers):
        assert sum(one.contribution for e, one in stats.items() if e.layer == layer) == pytest.approx(1)
    with pytest.raises(WattbitError, match=r"weight_bits must be one of 2, 3, 4, 5, 6, 7, 8, not 9"):
        subject.stats((2, 9))


@pytest.mark.parametrize("expert", [ExpertId(0, 1), ExpertId(1, 2)], ids=str)
def test_damage_is_the_divergence_from_the_float_model_with_that_expert_alone(
    learner: MoELearner, subject: ModelSubject, expert: ExpertId, monkeypatch: pytest.MonkeyPatch
):
    """Also with the text in many parts."""
    monkeypatch.setattr(subject_module, "LOGITS", 3 * TINY_MODEL.context * TINY_MODEL.vocab_size)
    damage = next(one for one in subject.stats((2,)) if one.expert == expert).damage_at(2)
    tokens = learner.samples.calibration[:, :-1]
    with torch.no_grad():
        before = learner.network(tokens)[0].double().softmax(dim=-1)
        mixture = learner.network.layers[expert.layer].mixture
        for matrices in (mixture.w1.data, mixture.w2.data):
            matrices[expert.expert] = rtn.quantize(matrices[expert.expert], 2).dequantize()
        after = learner.network(tokens)[0].double().log_softmax(dim=-1)
    expected = (before * (before.log() - after)).sum(dim=-1).mean().item()
    assert damage == pytest.approx(expected, rel=1e-3)
    assert damage > 0


def test_reconstruction_is_the_change_of_the_layers_output(learner: MoELearner, model: OwnModel, subject: ModelSubject):
    errors = subject.reconstruction((3,))
    traced = model.trace(learner.samples.calibration[:, :-1])
    for expert in (ExpertId(0, 0), ExpertId(1, 3)):
        mixture = learner.network.layers[expert.layer].mixture
        x = traced[expert.layer].inputs
        with torch.no_grad():
            before, _ = mixture(x)
            for matrices in (mixture.w1.data, mixture.w2.data):
                matrices[expert.expert] = rtn.quantize(matrices[expert.expert], 3).dequantize()
            after, _ = mixture(x)
        assert errors[expert][3] == pytest.approx((after - before).norm().item(), rel=1e-4)


def test_channel_activity_and_gate_ratios_follow_their_definition(
    learner: MoELearner, model: OwnModel, subject: ModelSubject
):
    layer = model.trace(learner.samples.calibration[:, :-1])[1]
    total, seen = torch.zeros(TINY_MODEL.d_model), 0
    for t in range(len(layer.inputs)):
        for k in range(TINY_MODEL.top_k):
            if layer.experts[t, k] == 2:
                total += layer.gates[t, k] * layer.inputs[t].abs()
                seen += 1
    norm = model.matrices(ExpertId(1, 2))["w1"].norm(dim=0)
    activity = torch.tensor(subject.channel_activity()[ExpertId(1, 2)])
    torch.testing.assert_close(activity, total / seen * norm, rtol=1e-4, atol=1e-6)
    ratios = sorted((g[1] / g[0]).item() for g in layer.gates)
    assert subject.gate_ratios()[1] == pytest.approx(ratios[(len(ratios) - 1) // 2])


@pytest.mark.parametrize(
    "recipe", [uniform(3), uniform(5, "gptq", 12), replace(uniform(3, "hqq", 16), ranks={e: e.expert for e in EXPERTS})]
)
def test_memory_is_what_a_file_of_the_experts_holds(subject: ModelSubject, recipe: Recipe, tmp_path: Path):
    save_experts(tmp_path / "x.safetensors", subject.quantize(recipe))
    stored = sum(tensor.nbytes for tensor in load_file(tmp_path / "x.safetensors").values())
    assert subject.memory_bytes(recipe) == stored
    assert subject.memory_bytes(None) == 2 * len(EXPERTS) * TINY_MODEL.shape.weights


def test_experts_without_tokens_are_named_and_rounded(learner: MoELearner):
    with torch.no_grad():
        learner.network.layers[1].norm2.weight.zero_()  # all inputs equal: every token takes the same two experts
    subject = ModelSubject(OwnModel.of(learner), learner.samples.calibration, learner.samples.valid)
    tokens = subject.tokens()
    starved = tuple(e for e in EXPERTS if tokens[e] == 0)
    assert len(starved) == TINY_MODEL.experts - TINY_MODEL.top_k
    recipe = uniform(3, "gptq")
    assert fallen_back(recipe, subject.quantize(recipe)) == starved
    assert math.isfinite(subject.perplexity(recipe))
    stats = {one.expert: one for one in subject.stats((2,))}
    for expert in starved:
        assert (stats[expert].frequency, stats[expert].damage_at(2)) == (0, 0)
        assert not any(subject.channel_activity()[expert])
        assert subject.reconstruction((2,))[expert][2] == 0


def test_pruning_that_drops_nothing_changes_nothing(learner: MoELearner, model: OwnModel):
    contexts = learner.samples.held[:8]
    exact = model.losses(contexts)
    torch.testing.assert_close(model.losses(contexts, OPEN), exact, rtol=1e-5, atol=1e-5)
    spared = Pruning((math.inf, math.inf), protected=1.0)
    torch.testing.assert_close(model.losses(contexts, spared), exact, rtol=1e-5, atol=1e-5)


def test_pruning_without_limit_is_top_one(learner: MoELearner, model: OwnModel):
    one = Transformer(replace(TINY_MODEL, top_k=1))
    one.load_state_dict(learner.network.state_dict())
    contexts = learner.samples.held[:8]
    pruned = model.losses(contexts, Pruning((math.inf, math.inf), protected=0.0))
    torch.testing.assert_close(pruned, OwnModel(one).losses(contexts), rtol=1e-5, atol=1e-5)
    assert not torch.allclose(pruned, model.losses(contexts), rtol=1e-3)


def test_a_recipe_of_another_model_is_refused(subject: ModelSubject):
    more = Allocation.of(dict.fromkeys((*subject.experts, ExpertId(5, 0)), 4))
    for recipe, said in (
        (Recipe("x", more), "L5E0 is in the recipe, but not in the model"),
        (replace(uniform(3), ranks={ExpertId(5, 0): 1}), "ranks or float_columns of L5E0, which the model lacks"),
        (replace(uniform(3), float_columns={ExpertId(0, 0): (10**6,)}), "must leave some of the columns"),
    ):
        with pytest.raises(WattbitError, match=said):
            subject.perplexity(recipe)


def test_what_is_pruned_is_not_computed(learner: MoELearner, model: OwnModel, monkeypatch: pytest.MonkeyPatch):
    contexts, rows = learner.samples.held[:8], []
    for block in learner.network.layers:
        whole = block.mixture.float_experts
        monkeypatch.setattr(
            block.mixture, "float_experts", lambda x, counts, whole=whole: rows.append(len(x)) or whole(x, counts)
        )
    tokens = contexts[:, 1:].numel() * TINY_MODEL.layers
    for pruning, experts in ((OPEN, 2), (Pruning((math.inf, math.inf), protected=0.0), 1)):
        rows.clear()
        model.losses(contexts, pruning)
        assert sum(rows) == experts * tokens


def test_logits_from_a_layer_on_are_those_of_the_whole_model(learner: MoELearner, model: OwnModel):
    contexts = learner.samples.held[:8]
    for layer in range(TINY_MODEL.layers):
        tail, expert = model.tail(layer, contexts), ExpertId(layer, 0)
        assert torch.equal(token_losses(tail(), contexts[:, 1:]), model.losses(contexts))
        model.replace(expert, {name: 0.5 * matrix for name, matrix in model.matrices(expert).items()})
        assert torch.equal(token_losses(tail(), contexts[:, 1:]), model.losses(contexts))


def test_median_pruning_lies_between(subject: ModelSubject):
    def priced(pruning: Pruning | None) -> float:
        return subject.perplexity(replace(uniform(8), pruning=pruning))

    ratios = subject.gate_ratios()
    everything = priced(Pruning((math.inf, math.inf), 0.0))
    assert priced(None) == pytest.approx(priced(OPEN), rel=1e-6)
    assert priced(None) != priced(Pruning(ratios)) != everything
    with pytest.raises(WattbitError, match=r"pruning has 1 ratios, the model 2 layers"):
        priced(Pruning((0.5,)))


def test_the_second_gate_goes_below_the_ratio_unless_the_token_is_protected():
    gates = torch.tensor([[0.9, 0.1], [0.6, 0.4], [0.8, 0.2], [0.5, 0.5]])
    importance = torch.tensor([[1.0, 5.0, 3.0, 2.0]])
    assert prune(gates, 0.3, importance, 0.0)[:, 1].tolist() == pytest.approx([0, 0.4, 0, 0.5])
    assert prune(gates, 0.3, importance, 0.5)[:, 1].tolist() == pytest.approx([0, 0.4, 0.2, 0.5])
    assert torch.equal(prune(gates, 9.0, importance, 0.0)[:, 0], gates[:, 0])


def test_importance_follows_its_formula():
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(2, 5, 3, generator=generator)
    attention = torch.rand(2, 4, 5, 5, generator=generator).tril()
    found = token_importance(x, attention)
    for b in range(2):
        for j in range(5):
            received = sum(attention[b, :, i, j].mean().item() for i in range(j, 5)) / (5 - j)
            assert found[b, j].item() == pytest.approx(x[b, j].abs().sum().item() * received, rel=1e-5)


def test_attention_weights_are_those_that_the_network_uses(learner: MoELearner):
    block = learner.network.layers[0]
    with torch.no_grad():
        x = learner.network.embedding(learner.samples.held[:2, :-1])
        found = attention_weights(block, x)
        batch, length, width = x.shape
        v = block.attention.qkv(block.norm1(x)).view(batch, length, 3, TINY_MODEL.heads, -1)[:, :, 2].transpose(1, 2)
        y = block.attention.out((found @ v).transpose(1, 2).reshape(batch, length, width))
        torch.testing.assert_close(y, block.attention(block.norm1(x)), rtol=1e-4, atol=1e-5)


def test_a_model_of_one_expert_a_token_has_no_second_gate(learner: MoELearner):
    one = Transformer(replace(TINY_MODEL, top_k=1))
    subject = ModelSubject(OwnModel(one), learner.samples.calibration, learner.samples.valid)
    with pytest.raises(WattbitError, match=r"sends each token to one expert has no second gate; leave pruning out"):
        subject.gate_ratios()
    assert subject.stats((2,))[0].router_change > 0  # the final norm, for the first is unknown
