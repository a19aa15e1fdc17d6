"""Every family through transformers' own classes: the same floats, and what the adapter says of them."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from tests.hf_support import CONFIGS, FAMILIES, checkpoint, contexts, transformers_model
from wattbit.errors import WattbitError
from wattbit.files import read_json, write_json
from wattbit.models.expert_model import ExpertModel
from wattbit.models.families import adapter
from wattbit.models.families.adapter import FamilyModel
from wattbit.models.families.open import open_network
from wattbit.models.network import token_losses
from wattbit.models.subject import ModelSubject
from wattbit.plan import Allocation, ExpertId
from wattbit.recipe import Pruning, Recipe

EXPERTS = {  # of each family's mixture layers, dense ones left out
    "mixtral": [4, 4],
    "olmoe": [8, 8],
    "qwen2_moe": [6, 6],
    "qwen3_moe": [6, 6],
    "deepseek": [8, 8],
    "deepseek_v2": [8, 8],
    "deepseek_v3": [8, 8],
    "switch_transformers": [4, 4, 4],
}


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> dict[str, FamilyModel]:
    folder = tmp_path_factory.mktemp("checkpoints")
    return {name: open_network(checkpoint(name, folder / name)) for name in FAMILIES}


def transformers_losses(model_type: str, network: Any, tokens: Tensor) -> Tensor:
    """What transformers' class computes by itself, with its own loss and choice of kernels."""
    with torch.no_grad():
        if model_type == "switch_transformers":
            half = tokens.shape[1] // 2
            labels = tokens[:, half:].contiguous()
            logits = network(input_ids=tokens[:, :half], labels=labels).logits
        else:
            labels, logits = tokens[:, 1:], network(tokens).logits[:, :-1]
    return F.cross_entropy(logits.flatten(0, 1), labels.flatten(), reduction="none").view_as(labels)


@pytest.mark.parametrize("name", FAMILIES)
def test_losses_are_transformers_own(name: str, models: dict[str, FamilyModel]) -> None:
    tokens = contexts()
    if name == "deepseek":
        network = transformers_model(name)
    else:
        network = type(models[name].network).from_pretrained(models[name].folder).eval()
    expected = transformers_losses(name, network, tokens)
    torch.testing.assert_close(models[name].losses(tokens), expected, rtol=0, atol=5e-6)


@pytest.mark.parametrize("name", CONFIGS)
def test_weights_are_those_that_were_saved(name: str, models: dict[str, FamilyModel]) -> None:
    saved = transformers_model(name).state_dict()
    loaded = models[name].network.state_dict()
    assert saved.keys() == loaded.keys()
    assert all(torch.equal(saved[key], loaded[key]) for key in saved)


@pytest.mark.parametrize("name", FAMILIES)
def test_experts_are_found(name: str, models: dict[str, FamilyModel]) -> None:
    model: ExpertModel = models[name]
    assert model.expert_ids == tuple(ExpertId(i, e) for i, count in enumerate(EXPERTS[name]) for e in range(count))
    for expert in model.expert_ids:
        matrices = model.matrices(expert)
        assert set(matrices) == {*model.first, model.last}
        width = matrices[model.first[0]].shape[1]
        assert matrices[model.last].shape == (width, matrices[model.first[0]].shape[0])
        assert model.router(expert.layer).shape == (EXPERTS[name][expert.layer], width)
    assert model.initial_router_norms(0) is None


@pytest.mark.parametrize("name", FAMILIES)
def test_a_trace_explains_what_its_layer_adds(name: str, models: dict[str, FamilyModel]) -> None:
    """Gate-weighted outputs of a layer's experts, from the trace, `matrices` and `hidden`, are the layer's own."""
    model, tokens, outputs = models[name], contexts(), []
    hooks = [m.experts.register_forward_hook(lambda _, call, output: outputs.append(output)) for m in model.mixtures]
    traces = model.trace(tokens)
    for hook in hooks:
        hook.remove()
    assert len(traces) == len(EXPERTS[name])
    for layer, (trace, whole) in enumerate(zip(traces, outputs, strict=True)):
        assert trace.experts.shape == trace.gates.shape == (len(trace.inputs), model.top_k)
        expected = torch.zeros_like(trace.inputs)
        for e in range(EXPERTS[name][layer]):
            token, gates = trace.rows(e)
            matrices = model.matrices(ExpertId(layer, e))
            y = F.linear(model.hidden(matrices, trace.inputs[token]), matrices[model.last])
            expected.index_add_(0, token, y * gates[:, None])
        # Switch's tokens over capacity are in no trace, and get nothing
        output = whole[whole.abs().sum(dim=1) > 0] if name == "switch_transformers" else whole
        torch.testing.assert_close(expected, output, rtol=1e-5, atol=1e-5)


def test_tokens_over_a_switchs_capacity_are_left_out(models: dict[str, FamilyModel]) -> None:
    model, tokens = models["switch_transformers"], contexts(6, 64)
    capacity = CONFIGS["switch_transformers"]["expert_capacity"]
    first = model.trace(tokens)[0]
    assert len(first.inputs) < 6 * 32, "some expert had more than its capacity"
    assert first.experts.flatten().bincount().max() <= 6 * capacity


@pytest.mark.parametrize("name", FAMILIES)
def test_replacing_an_expert_changes_that_one_alone(name: str, tmp_path: Path) -> None:
    model, tokens = open_network(checkpoint(name, tmp_path)), contexts()
    before = model.losses(tokens)
    busy = int(model.trace(tokens)[0].experts.flatten().bincount().argmax())
    chosen = ExpertId(0, busy)
    kept = {expert: model.matrices(expert) for expert in model.expert_ids}
    model.replace(chosen, {key: -2 * matrix for key, matrix in kept[chosen].items()})
    for expert in model.expert_ids:
        factor = -2 if expert == chosen else 1
        assert all(torch.equal(m, factor * kept[expert][key]) for key, m in model.matrices(expert).items())
    assert not torch.equal(model.losses(tokens), before)
    model.replace(chosen, kept[chosen])
    assert torch.equal(model.losses(tokens), before)


@pytest.mark.parametrize("name", FAMILIES)
def test_gradient_norms_are_autograds(
    name: str, models: dict[str, FamilyModel], monkeypatch: pytest.MonkeyPatch
) -> None:
    model, tokens = models[name], contexts(5)
    network = transformers_model(name)
    if name == "switch_transformers":
        half = tokens.shape[1] // 2
        network(input_ids=tokens[:, :half], labels=tokens[:, half:].contiguous()).loss.backward()
    else:
        network(tokens, labels=tokens).loss.backward()
    gradients = {key: p.grad for key, p in network.named_parameters() if p.grad is not None}
    monkeypatch.setattr(adapter, "BATCH_TOKENS", 70)  # two contexts at a time, then one
    found = model.gradient_norms(tokens)
    for expert in model.expert_ids:
        parts = expert_gradients(name, model, gradients, expert)
        expected = torch.cat([part.flatten() for part in parts]).norm().item() if parts else 0.0
        assert found[expert] == pytest.approx(expected, rel=1e-3, abs=1e-7)
    assert not any(p.requires_grad or p.grad is not None for p in model.network.parameters())


def expert_gradients(name: str, model: FamilyModel, gradients: dict[str, Tensor], expert: ExpertId) -> list[Tensor]:
    layers = [
        path
        for path in model.family.layers(model.network)
        if any(f"{path}." in k and ".experts." in k for k in gradients)
    ]
    prefix = layers[expert.layer]
    if name == "switch_transformers":
        return [g for key, g in gradients.items() if key.startswith(prefix) and f"expert_{expert.expert}." in key]
    return [g[expert.expert] for key, g in gradients.items() if key.startswith(f"{prefix}.mlp.experts.")]


def test_losses_do_not_depend_on_the_batch(models: dict[str, FamilyModel], monkeypatch: pytest.MonkeyPatch) -> None:
    model, tokens = models["mixtral"], contexts(7)
    together = model.losses(tokens)
    monkeypatch.setattr(adapter, "BATCH_TOKENS", 40)
    torch.testing.assert_close(model.losses(tokens), together, rtol=1e-5, atol=1e-5)
    assert len(model.trace(tokens)[0].inputs) == tokens.numel()


WINDOWED = {"use_sliding_window": True, "sliding_window": 4, "max_window_layers": 1}  # of Qwen's later layers


@pytest.mark.parametrize(("name", "changed"), [*((name, {}) for name in CONFIGS), ("qwen2_moe", WINDOWED)])
def test_logits_from_a_layer_on_are_those_of_the_whole_model(
    name: str, changed: dict[str, Any], tmp_path: Path
) -> None:
    """Also after an expert has changed, and with what is before it computed once."""
    model, tokens = open_network(checkpoint(name, tmp_path, **changed)), contexts(5)
    for layer in range(len(model.mixtures)):
        tail, expert = model.tail(layer, tokens), ExpertId(layer, 0)
        predicted = tokens[:, 1:] if model.top_k > 1 else tokens[:, tokens.shape[1] // 2 :]  # Switch: the second half
        assert torch.equal(token_losses(tail(), predicted), model.losses(tokens))
        model.replace(expert, {name: 0.5 * matrix for name, matrix in model.matrices(expert).items()})
        assert torch.equal(token_losses(tail(), predicted), model.losses(tokens))
        assert torch.equal(tail(), tail()), "the network is whole again"


@pytest.mark.parametrize("name", ["mixtral", "olmoe", "qwen3_moe", "deepseek_v3"])
def test_what_is_pruned_is_not_computed(name: str, models: dict[str, FamilyModel]) -> None:
    model, tokens, rows = models[name], contexts(), []
    hooks = [
        mixture.experts.act_fn.register_forward_hook(lambda _, call, y: rows.append(len(y)))
        for mixture in model.mixtures
    ]
    passed = tokens[:, :-1].numel() * len(model.mixtures)
    for ratio, experts in ((0.0, model.top_k), (2.0, 1)):
        rows.clear()
        model.losses(tokens, Pruning((ratio,) * len(model.mixtures), protected=0.0))
        assert sum(rows) == experts * passed
    for hook in hooks:
        hook.remove()


def test_pruning_every_second_expert_is_the_model_with_one(models: dict[str, FamilyModel], tmp_path: Path) -> None:
    """Mixtral's gates sum to one, so a token whose second expert goes has the first at gate one."""
    tokens = contexts()
    one = open_network(checkpoint("mixtral", tmp_path, num_experts_per_tok=1)).losses(tokens)
    pruned = models["mixtral"].losses(tokens, Pruning((2.0, 2.0), protected=0.0))
    torch.testing.assert_close(pruned, one, rtol=0, atol=5e-6)
    assert (pruned - models["mixtral"].losses(tokens)).abs().max() > 0.01


@pytest.mark.parametrize("pruning", [Pruning((0.0, 0.0)), Pruning((2.0, 2.0), protected=1.0)])
def test_pruning_nothing_changes_nothing(pruning: Pruning, models: dict[str, FamilyModel]) -> None:
    model, tokens = models["mixtral"], contexts()
    before = model.losses(tokens)
    torch.testing.assert_close(model.losses(tokens, pruning), before, rtol=0, atol=5e-6)
    assert torch.equal(model.losses(tokens), before), "no hook stays"


def test_pruning_protects_more_tokens_with_a_larger_share(models: dict[str, FamilyModel]) -> None:
    model, tokens = models["mixtral"], contexts(20)
    before = model.losses(tokens)
    change = [
        (model.losses(tokens, Pruning((2.0, 2.0), protected=share)) - before).abs().mean() for share in (0.0, 0.3, 0.9)
    ]
    assert change[0] > change[1] > change[2] > 0


def test_pruning_that_does_not_fit(models: dict[str, FamilyModel]) -> None:
    with pytest.raises(WattbitError, match="one expert"):
        models["switch_transformers"].losses(contexts(), Pruning((0.5, 0.5, 0.5)))
    with pytest.raises(WattbitError, match="3 ratios, the model 2 mixture layers"):
        models["mixtral"].losses(contexts(), Pruning((0.5, 0.5, 0.5)))


def test_deepseek_moe_16b_of_other_kinds_is_refused(tmp_path: Path) -> None:
    folder = checkpoint("deepseek", tmp_path)
    config = read_json(folder / "config.json")
    for strange in ({"rope_scaling": {"type": "linear"}}, {"scoring_func": "sigmoid"}, {"attention_bias": True}):
        write_json(folder / "config.json", config | strange)
        with pytest.raises(WattbitError, match="wattbit knows a DeepSeek-MoE without"):
            open_network(folder)


def test_fused_experts_on_disk_are_read_too(tmp_path: Path, models: dict[str, FamilyModel]) -> None:
    network = transformers_model("mixtral")
    network.save_pretrained(tmp_path, save_original_format=False)
    tokens = contexts()
    assert torch.equal(open_network(tmp_path).losses(tokens), models["mixtral"].losses(tokens))


def test_half_precision_is_transformers_own(tmp_path: Path) -> None:
    network = transformers_model("olmoe").to(torch.bfloat16)
    network.save_pretrained(tmp_path)
    model, tokens = open_network(tmp_path), contexts()
    assert {p.dtype for p in model.network.parameters()} == {torch.bfloat16}
    own = type(network).from_pretrained(tmp_path, dtype="auto", experts_implementation="eager").eval()
    with torch.no_grad():
        logits = own(tokens[:, :-1]).logits.float()
    expected = F.cross_entropy(logits.flatten(0, 1), tokens[:, 1:].flatten(), reduction="none")
    assert torch.equal(model.losses(tokens).flatten(), expected)


@pytest.mark.parametrize("name", ["mixtral", "switch_transformers", "deepseek"])
def test_methods_see_a_family_as_any_model(name: str, models: dict[str, FamilyModel]) -> None:
    """Statistics, perplexity and bytes through `ModelSubject`, and the float model back after it."""
    model = models[name]
    before = model.losses(contexts())
    subject = ModelSubject(model, contexts(12, 33, seed=3), contexts())
    stats = subject.stats((2, 8))
    for layer, count in enumerate(EXPERTS[name]):
        assert sum(s.frequency for s in stats if s.expert.layer == layer) == pytest.approx(1)
        assert len([s for s in stats if s.expert.layer == layer]) == count
    assert sum(abs(s.damage_at(2)) for s in stats) > sum(abs(s.damage_at(8)) for s in stats)
    recipe = Recipe("uniform", Allocation.of(dict.fromkeys(model.expert_ids, 3), engine="arm"), "rtn", 16)
    assert subject.perplexity(recipe) != subject.perplexity(None) == pytest.approx(before.double().mean().exp().item())
    assert subject.memory_bytes(recipe) < subject.memory_bytes(None)
    assert len(subject.channel_activity()) == len(model.expert_ids)
    if model.top_k > 1:
        assert subject.perplexity(replace(recipe, pruning=Pruning(subject.gate_ratios()))) > 1
    assert torch.equal(model.losses(contexts()), before)


@pytest.mark.parametrize("name", sorted({*FAMILIES} - {"switch_transformers"}))
def test_half_of_the_tokens_are_below_the_gate_ratio(name: str, models: dict[str, FamilyModel]) -> None:
    """Of each layer's largest and second largest gate, in whatever order a family's router has them."""
    model, tokens = models[name], contexts(12, 33, seed=3)
    ratios = ModelSubject(model, tokens, contexts()).gate_ratios()
    for ratio, trace in zip(ratios, model.trace(tokens[:, :-1]), strict=True):
        assert 0 < ratio <= 1
        gates = trace.gates.sort(dim=1).values
        assert (gates[:, -2] < ratio * gates[:, -1]).float().mean() == pytest.approx(0.5, abs=0.01)
