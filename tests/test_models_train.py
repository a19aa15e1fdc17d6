"""Training: deterministic, resumable to the same bytes, and refusing what does not belong together."""

from dataclasses import replace
from pathlib import Path

import pytest
import torch

from tests.models_support import TINY_MODEL, TINY_TRAIN
from wattbit.errors import WattbitError
from wattbit.files import read_json
from wattbit.models import train as training
from wattbit.models.config import ModelConfig, TrainConfig
from wattbit.models.network import MixtureLayer, Transformer
from wattbit.models.train import train

pytest_plugins = ["tests.models_support"]


class InterruptedRunError(Exception):
    """Stands for Ctrl-C."""


def test_training_learns(model_dir: Path):
    record = read_json(model_dir / "train.json")
    assert record["loss"][0][1] == pytest.approx(5.7, abs=0.5)  # about ln 300
    assert record["valid_perplexity"] < 100
    assert not (model_dir / "checkpoint.safetensors").exists()


def test_an_interrupted_run_ends_with_the_same_bytes(
    data: Path, model_dir: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(training, "CHECKPOINT_STEPS", 10)
    stops = [7, 25, 39]

    def interrupt(what: str, done: int, total: int) -> None:
        if done == stops[0]:
            del stops[0]
            raise InterruptedRunError

    while stops:
        with pytest.raises(InterruptedRunError):
            train(data, tmp_path, TINY_MODEL, TINY_TRAIN, interrupt)
    seen: list[int] = []
    train(data, tmp_path, TINY_MODEL, TINY_TRAIN, lambda what, done, total: seen.append(done))
    assert seen[0] == 31  # resumed at the last checkpoint
    for name in ("float.safetensors", "train.json"):
        assert (tmp_path / name).read_bytes() == (model_dir / name).read_bytes()
    assert sorted(path.name for path in tmp_path.iterdir()) == ["float.safetensors", "train.json"]


def test_a_finished_run_is_not_redone_and_another_is_refused(data: Path, model_dir: Path):
    def forbidden(what: str, done: int, total: int) -> None:
        raise AssertionError("trained again")

    assert train(data, model_dir, TINY_MODEL, TINY_TRAIN, forbidden) == read_json(model_dir / "train.json")
    with pytest.raises(WattbitError, match=r"belongs to another run .* delete it or choose another"):
        train(data, model_dir, TINY_MODEL, replace(TINY_TRAIN, seed=1))


def test_a_checkpoint_of_another_run_or_a_damaged_one_is_refused(data: Path, model_dir: Path, tmp_path: Path):
    (tmp_path / "checkpoint.safetensors").write_bytes((model_dir / "float.safetensors").read_bytes()[:100])
    with pytest.raises(WattbitError, match=r"checkpoint.safetensors cannot be read .* delete it"):
        train(data, tmp_path, TINY_MODEL, TINY_TRAIN)


def test_a_training_that_diverges_says_so(data: Path, tmp_path: Path):
    with pytest.raises(WattbitError, match=r"the loss became nan; lower the learning rate"):
        train(data, tmp_path, TINY_MODEL, replace(TINY_TRAIN, learning_rate=1e20))
    assert list(tmp_path.iterdir()) == []


def test_another_vocabulary_is_refused(data: Path, tmp_path: Path):
    with pytest.raises(WattbitError, match=r"vocab_size is 1024 in the model, 300 in "):
        train(data, tmp_path, ModelConfig(), TINY_TRAIN)


def test_configurations_survive_json_and_refuse_nonsense():
    for config in (TINY_MODEL, TINY_TRAIN):
        assert type(config).from_json(config.to_json()) == config
    assert ModelConfig().digest == ModelConfig().digest != TINY_MODEL.digest
    with pytest.raises(WattbitError, match=r"top_k must be at most experts = 4, not 5"):
        replace(TINY_MODEL, top_k=5)
    with pytest.raises(WattbitError, match=r"d_model must be a multiple of 2 \* heads = 8, not 60"):
        ModelConfig(d_model=60)
    with pytest.raises(WattbitError, match=r"steps must be at least 1, not 0"):
        TrainConfig(steps=0)
    with pytest.raises(WattbitError, match=r"TrainConfig has no field 'step'"):
        TrainConfig.from_json({"step": 1})


def test_a_mixture_layer_equals_its_definition():
    """Each token's output is the gate-weighted sum of its top-k experts, whatever the order of rows."""
    torch.manual_seed(0)
    layer = MixtureLayer(TINY_MODEL)
    x = torch.randn(50, TINY_MODEL.d_model)
    with torch.no_grad():
        y, routing = layer(x)
        chance = layer.router(x).softmax(dim=1)
        for token in range(len(x)):
            chosen = chance[token].topk(TINY_MODEL.top_k).indices.tolist()
            gates = chance[token, chosen] / chance[token, chosen].sum()
            expected = sum(
                g * (layer.w2[e] @ (layer.w1[e] @ x[token]).relu()) for g, e in zip(gates, chosen, strict=True)
            )
            torch.testing.assert_close(y[token], expected)
    assert sum(routing.counts) == len(x) * TINY_MODEL.top_k
    assert routing.balance.item() == pytest.approx(1, abs=0.2)


def test_balance_punishes_a_collapsed_router():
    layer = MixtureLayer(TINY_MODEL)
    with torch.no_grad():
        layer.router.weight.zero_()
        layer.router.weight[:2] = 1.0
        _, routing = layer(torch.ones(10, TINY_MODEL.d_model))
    assert routing.balance.item() == pytest.approx(TINY_MODEL.experts / TINY_MODEL.top_k, rel=0.01)


def test_no_token_sees_the_future():
    torch.manual_seed(0)
    network = Transformer(TINY_MODEL)
    tokens = torch.randint(0, 300, (1, 32))
    later = tokens.clone()
    later[0, 20:] = 0
    with torch.no_grad():
        torch.testing.assert_close(network(tokens)[0][0, :20], network(later)[0][0, :20])
