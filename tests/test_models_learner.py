"""The learner: prices, adapts, describes, saves and restores; the same inputs always give the same results."""

import json
import math
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file

from tests.models_support import TINY_MODEL, TINY_TRAIN
from wattbit import arith
from wattbit.errors import WattbitError
from wattbit.files import read_json
from wattbit.models import learner as learner_module
from wattbit.models.config import ModelConfig
from wattbit.models.learner import MoELearner
from wattbit.models.network import Transformer
from wattbit.models.sample import Samples
from wattbit.models.statistics import some
from wattbit.plan import Allocation, ExpertId, ExpertStats, Learner, Precision

pytest_plugins = ["tests.models_support"]

EXPERTS = TINY_MODEL.expert_ids


def uniform(bits: int, act_bits: int = 8) -> Allocation:
    return Allocation.of(dict.fromkeys(EXPERTS, bits), act_bits)


def mixed() -> Allocation:
    return Allocation.of({e: (2, 3, 4, 8)[i % 4] for i, e in enumerate(EXPERTS)})


@pytest.fixture
def learner(data: Path, model_dir: Path) -> MoELearner:
    return MoELearner.open(data, model_dir)


def test_it_is_a_learner_and_prices_the_model_that_training_wrote(learner: MoELearner, model_dir: Path):
    priced: Learner = learner
    assert priced.perplexity(None) == pytest.approx(read_json(model_dir / "train.json")["valid_perplexity"])


def test_fewer_bits_cost_perplexity_and_eight_cost_almost_none(learner: MoELearner):
    exact, eight, two = learner.perplexity(None), learner.perplexity(uniform(8)), learner.perplexity(uniform(2))
    assert eight == pytest.approx(exact, rel=0.01)
    assert two > eight
    assert learner.perplexity(uniform(8, 4)) == pytest.approx(exact, rel=0.1)
    assert learner.perplexity(mixed()) == learner.perplexity(mixed())


def test_finetuning_repairs_and_is_deterministic(data: Path, model_dir: Path, tmp_path: Path):
    files = []
    for name in ("a", "b"):
        learner = MoELearner.open(data, model_dir)
        learner.perplexity(uniform(4))  # what was asked before leaves no trace
        before = learner.perplexity(uniform(2))
        learner.finetune(uniform(2), steps=8, seed=1)
        assert learner.perplexity(uniform(2)) < before
        learner.save(tmp_path / f"{name}.safetensors")
        files.append((tmp_path / f"{name}.safetensors").read_bytes())
        learner.finetune(uniform(2), steps=1, seed=2)
    assert files[0] == files[1]


def test_finetuning_over_several_allocations_serves_each(learner: MoELearner, tmp_path: Path):
    both = [uniform(2), uniform(3)]
    before = [learner.perplexity(one) for one in both]
    learner.finetune_over(both, steps=12, seed=1)
    assert all(learner.perplexity(one) < old for one, old in zip(both, before, strict=True))
    learner.save(tmp_path / "x.safetensors")
    with safe_open(tmp_path / "x.safetensors", framework="pt") as file:
        kept = {name.rpartition(".")[2] for name in file.keys() if name.startswith("scales")}  # noqa: SIM118
    assert kept == {"w2a8", "w3a8"}


def test_a_saved_learner_comes_back_the_same(learner: MoELearner, data: Path, model_dir: Path, tmp_path: Path):
    learner.finetune(mixed(), steps=3, seed=0)
    learner.save(tmp_path / "x.safetensors")
    other = MoELearner.open(data, model_dir)
    other.finetune(uniform(4), steps=2, seed=5)
    other.load(tmp_path / "x.safetensors")
    other.save(tmp_path / "y.safetensors")
    assert (tmp_path / "x.safetensors").read_bytes() == (tmp_path / "y.safetensors").read_bytes()
    assert other.perplexity(mixed()) == learner.perplexity(mixed())
    assert other.perplexity(uniform(3)) == learner.perplexity(uniform(3))
    other.finetune(mixed(), steps=2, seed=3)
    learner.finetune(mixed(), steps=2, seed=3)
    assert other.perplexity(None) == learner.perplexity(None)


def test_scales_stay_constant_in_finetuning_and_float32_stays_exact(learner: MoELearner):
    before = {e: learner.scales(e, Precision(3, 8)) for e in EXPERTS}
    learner.finetune(uniform(3), steps=3, seed=0)
    for expert in EXPERTS:
        scales = learner.scales(expert, Precision(3, 8))
        np.testing.assert_array_equal(scales.to_array(), before[expert].to_array())
        ints = learner.expert(expert, Precision(3, 8)).ints()
        assert arith.float32_exact(ints.w1, ints.m1, 128)
        assert arith.float32_exact(ints.w2, ints.m2, 255)


def test_an_expert_that_outgrows_its_scales_is_calibrated_anew(learner: MoELearner, monkeypatch: pytest.MonkeyPatch):
    def explode(network: Transformer, *_: object) -> float:
        with torch.no_grad():
            network.layers[0].mixture.w1[1] *= 50
        return 0.0

    monkeypatch.setattr(learner_module, "train_step", explode)
    before = learner.scales(ExpertId(0, 1), Precision(8, 8))
    learner.finetune(uniform(8), steps=1, seed=0)
    after = learner.scales(ExpertId(0, 1), Precision(8, 8))
    assert after.h_exp > before.h_exp
    ints = learner.expert(ExpertId(0, 1), Precision(8, 8)).ints()
    assert arith.float32_exact(ints.w1, ints.m1, 128)


def test_statistics_are_what_they_say(learner: MoELearner, model_dir: Path):
    stats = {one.expert: one for one in learner.stats((2, 4, 8))}
    assert tuple(stats) == EXPERTS
    assert all(ExpertStats.from_json(json.loads(json.dumps(one.to_json()))) == one for one in stats.values())
    inputs = learner.samples.held[:, :-1]
    for layer in range(TINY_MODEL.layers):
        ours = [one for e, one in stats.items() if e.layer == layer]
        assert sum(one.frequency for one in ours) == pytest.approx(1)
        assert sum(one.contribution for one in ours) == pytest.approx(1)
        assert sum(one.tokens for one in ours) == inputs.numel() * TINY_MODEL.top_k
    assert all(one.gradient_norm > 0 for one in stats.values())
    initial = read_json(model_dir / "train.json")["initial_router_norms"]
    weights = load_file(model_dir / "float.safetensors")
    row = weights["network.blocks.1.mixture.router.weight"][2]
    assert stats[ExpertId(1, 2)].router_change == pytest.approx(row.norm().item() - initial[1][2], abs=1e-6)


@pytest.mark.parametrize("expert", [ExpertId(0, 1), ExpertId(1, 2)], ids=str)
def test_damage_is_the_divergence_from_the_float_model_with_that_expert_alone(learner: MoELearner, expert: ExpertId):
    """Against the whole network run again with one Brevitas expert among the float ones."""
    damage = next(one for one in learner.stats((2,)) if one.expert == expert).damage_at(2)
    module = learner.expert(expert, Precision(2, 8))

    def one_quantized(layer: int):
        mixture = learner.network.layers[layer].mixture

        def run(x: torch.Tensor, counts: list[int]) -> torch.Tensor:
            parts = list(mixture.float_experts(x, counts).split(counts))
            if layer == expert.layer:
                parts[expert.expert] = module(x.split(counts)[expert.expert])
            return torch.cat(parts)

        return run

    tokens = some(learner.samples.held)[:, :-1]
    with torch.no_grad():
        before = learner.network(tokens)[0].double().softmax(dim=-1)
        changed = learner.network(tokens, [one_quantized(layer) for layer in range(TINY_MODEL.layers)])[0].double()
    expected = (before * (before.log() - changed.log_softmax(dim=-1))).sum(dim=-1).mean().item()
    assert damage == pytest.approx(expected, rel=1e-3)
    assert damage > 0


def test_experts_that_no_token_reaches_are_calibrated_on_their_layer_and_cost_nothing(learner: MoELearner):
    with torch.no_grad():
        learner.network.layers[1].norm2.weight.zero_()  # all inputs equal: every token takes the same two experts
    stats = {one.expert: one for one in learner.stats((2,))}
    starved = [e for e in EXPERTS if e.layer == 1 and stats[e].tokens == 0]
    assert len(starved) == TINY_MODEL.experts - TINY_MODEL.top_k
    for expert in starved:
        assert (stats[expert].frequency, stats[expert].damage_at(2)) == (0, 0)
        assert len(learner.calibration_inputs(expert)) == learner.samples.calibration[:, 1:].numel() * TINY_MODEL.top_k
    assert math.isfinite(learner.perplexity(uniform(2)))


def test_what_does_not_belong_together_is_refused(learner: MoELearner, data: Path, model_dir: Path, tmp_path: Path):
    (tmp_path / "x.safetensors").write_bytes((model_dir / "float.safetensors").read_bytes()[:500])
    with pytest.raises(WattbitError, match=r"x.safetensors cannot be read .* run its stage again"):
        learner.load(tmp_path / "x.safetensors")
    with pytest.raises(WattbitError, match=r"none.safetensors does not exist; run the stage that writes it"):
        learner.load(tmp_path / "none.safetensors")
    other = ModelConfig(vocab_size=300, d_model=8, d_hidden=8, layers=1, heads=2, experts=4, context=32)
    stranger = MoELearner(Transformer(other), Samples.load(data, 32), TINY_TRAIN, [])
    stranger.save(tmp_path / "other.safetensors")
    with pytest.raises(
        WattbitError, match=f"holds model {other.digest}, not {TINY_MODEL.digest}; it belongs to another"
    ):
        learner.load(tmp_path / "other.safetensors")
    record: Mapping[str, object] = read_json(data / "data.json")
    (tmp_path / "data.json").write_text(json.dumps({**record, "digest": "0"}))
    with pytest.raises(WattbitError, match=r"was trained on other data than"):
        MoELearner.open(tmp_path, model_dir)
    with pytest.raises(WattbitError, match=r"L0E1 is not in the allocation; it belongs to another model"):
        learner.perplexity(Allocation.of({EXPERTS[0]: 4}))
    with pytest.raises(WattbitError, match=r"weight_bits must be one of 2, 3, 4, 5, 6, 7, 8, not 9"):
        learner.stats((2, 9))
