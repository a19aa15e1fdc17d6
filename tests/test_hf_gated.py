"""Checkpoints as the runtime's gated models: the same configuration, the same function."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from tests.hf_support import checkpoint, contexts
from tests.runtime_support import build_host
from wattbit.errors import WattbitError
from wattbit.models.checkpoint import Checkpoint
from wattbit.models.config import GatedConfig
from wattbit.models.families.gated import GatedStream, gated_weights
from wattbit.models.families.open import load_network
from wattbit.models.gated import GatedModel, decoder_config, quantize, rope, shapes
from wattbit.models.portable import Portable
from wattbit.plan import Allocation
from wattbit.tvm_schedules.model.runtime import Decoder

CHANGED: dict[str, dict[str, Any]] = {  # besides the tests' own sizes
    "mixtral": {"rms_norm_eps": 1e-3, "rope_parameters": {"rope_type": "default", "rope_theta": 500.0}},
    "olmoe": {"norm_topk_prob": True},
    "qwen2_moe": {"mlp_only_layers": []},
    "qwen3_moe": {"mlp_only_layers": [], "norm_topk_prob": False},
    "deepseek": {"first_k_dense_replace": 0},
}
EXPECTED = {
    "mixtral": GatedConfig(300, 64, 96, 2, 4, 2, 16, 4, 2, 128, rope_theta=500.0, norm_eps=1e-3),
    "olmoe": GatedConfig(300, 64, 32, 2, 4, 4, 16, 8, 4, 128, renormalize=True, qk_norm="whole"),
    "qwen2_moe": GatedConfig(
        *(300, 64, 32, 3, 4, 2, 16, 6, 3, 128), renormalize=False, qkv_bias=True, shared_hidden=48, norm_eps=1e-6
    ),
    "qwen3_moe": GatedConfig(
        *(300, 64, 32, 3, 4, 2, 24, 6, 3, 128), renormalize=False, qk_norm="head", tied_head=True, norm_eps=1e-6
    ),
    "deepseek": GatedConfig(*(300, 64, 32, 3, 4, 4, 16, 8, 3, 128), renormalize=False, shared_hidden=64, norm_eps=1e-6),
}


@pytest.fixture(scope="module")
def checkpoints(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Checkpoint]:
    folder = tmp_path_factory.mktemp("gated")
    return {name: Checkpoint.open(checkpoint(name, folder / name, **changed)) for name, changed in CHANGED.items()}


def transformers_logits(found: Checkpoint, tokens: torch.Tensor) -> torch.Tensor:
    with torch.no_grad():
        return load_network(found).network.double()(tokens[None]).logits[0]


@pytest.mark.parametrize("name", CHANGED)
def test_the_configuration_is_the_checkpoints(name: str, checkpoints: dict[str, Checkpoint]) -> None:
    assert gated_weights(checkpoints[name])[0] == EXPECTED[name]
    assert gated_weights(checkpoints[name], context=32)[0].context == 32


@pytest.mark.parametrize("name", CHANGED)
def test_every_tensor_is_there_and_of_its_shape(name: str, checkpoints: dict[str, Checkpoint]) -> None:
    config, floats = gated_weights(checkpoints[name])
    assert {key: tuple(value.shape) for key, value in floats.items()} == shapes(config)


@pytest.mark.parametrize("name", CHANGED)
def test_float_weights_give_transformers_logits(name: str, checkpoints: dict[str, Checkpoint]) -> None:
    """The gated reference on weights that are not quantized at all computes the same function."""
    config, floats = gated_weights(checkpoints[name])
    tables = dict(zip(("rope.cos", "rope.sin"), rope(config), strict=True))
    model = GatedModel(config, Portable(decoder_config(config), dict(floats) | tables, {}, {}))
    tokens = contexts(1, 60)[0]
    torch.testing.assert_close(model.logits(tokens), transformers_logits(checkpoints[name], tokens), rtol=0, atol=2e-5)


@pytest.mark.parametrize("name", CHANGED)
def test_eight_bits_are_close_and_two_are_not(name: str, checkpoints: dict[str, Checkpoint]) -> None:
    config, floats = gated_weights(checkpoints[name])
    tokens = contexts(1, 60)[0]
    exact = transformers_logits(checkpoints[name], tokens)

    def error(bits: int) -> float:
        allocation = Allocation.of(dict.fromkeys(config.expert_ids, bits), engine="arm")
        return ((quantize(config, floats, allocation).logits(tokens) - exact).norm() / exact.norm()).item()

    eight = error(8)
    assert eight < 0.05
    assert error(2) > 2 * eight


def test_the_runtime_continues_a_checkpoint(checkpoints: dict[str, Checkpoint], tmp_path: Path) -> None:
    """From a folder of safetensors to the C runtime: its logits are those of the reference."""
    config, floats = gated_weights(checkpoints["qwen3_moe"], context=48)
    allocation = Allocation.of({e: 2 + i % 7 for i, e in enumerate(config.expert_ids)}, engine="arm")
    model = quantize(config, floats, allocation)
    prompt = contexts(1, 12)[0]
    with Decoder(build_host(model.portable, tmp_path), threads=1) as decoder:
        found = decoder.feed(prompt.tolist())
    expected = model.logits(prompt)[-1].numpy()
    np.testing.assert_allclose(found, expected, rtol=0, atol=1e-11 * np.abs(expected).max())


@pytest.mark.parametrize("name", ["layers.1.experts.2.down", "layers.0.norm2", "embedding"])
def test_weights_that_are_no_numbers_are_refused_by_name(name: str, checkpoints: dict[str, Checkpoint]) -> None:
    config, weights = gated_weights(checkpoints["mixtral"])
    floats = {key: value.clone() for key, value in weights.items()}
    floats[name].flatten()[5] = torch.nan
    allocation = Allocation.of(dict.fromkeys(config.expert_ids, 4), engine="arm")
    with pytest.raises(WattbitError, match=f"tensor {name} has weights that are no finite numbers"):
        quantize(config, floats, allocation)
    stream = GatedStream(config, floats, allocation)
    with pytest.raises(WattbitError, match=f"tensor {name} has weights that are no finite numbers"):
        for each in stream.shapes:
            stream.load(each)


@pytest.mark.parametrize(
    ("name", "changed", "words"),
    [
        ("qwen2_moe", {}, "dense layers among its mixtures"),
        ("deepseek_v2", {"first_k_dense_replace": 0}, "attention other than grouped queries"),
        ("switch_transformers", {}, "attention other than grouped queries"),
        ("mixtral", {"sliding_window": 64}, "attention in a sliding window"),
        ("mixtral", {"hidden_act": "gelu"}, "experts with gelu, not silu"),
        ("olmoe", {"clip_qkv": 8.0}, "clipped queries and keys"),
        ("qwen3_moe", {"mlp_only_layers": [], "attention_bias": True}, "biases in attention's output"),
        (
            "mixtral",
            {"rope_parameters": {"rope_type": "linear", "rope_theta": 1e4, "factor": 2.0}},
            "rotary positions of type linear",
        ),
    ],
)
def test_what_the_runtime_cannot_do_is_refused(name: str, changed: dict[str, Any], words: str, tmp_path: Path) -> None:
    found = Checkpoint.open(checkpoint(name, tmp_path, **changed))
    with pytest.raises(WattbitError, match=f"{words}, which the runtime does not"):
        gated_weights(found)
