"""Gated models decode as PyTorch's quantized model does, token for token, at any number of threads and chunk size."""

from pathlib import Path

import numpy as np
import pytest
import torch

from tests.runtime_support import FAMILIES, agreement, allocations, build_host, gated_model, random_weights
from wattbit.errors import WattbitError
from wattbit.models.config import GatedConfig
from wattbit.models.decode import greedy
from wattbit.models.gated import GatedModel, quantize
from wattbit.plan import Allocation
from wattbit.tvm_schedules.model.runtime import Decoder

PROMPT = [5, 17, 2, 250, 8, 8, 131, 64, 77, 12, 0, 299, 45, 81, 3, 9, 27, 14, 200, 19]  # more than one chunk


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """The families' models for this machine."""
    return {name: build_host(chosen(name).portable, tmp_path_factory.mktemp(name)) for name in FAMILIES}


def chosen(family: str) -> GatedModel:
    """One family has experts of every width; the slow tests have all in all."""
    return gated_model(family, "mixed" if family == "mixtral" else "uniform4")


@pytest.mark.parametrize("family", FAMILIES)
def test_logits_and_tokens_equal_pytorchs(family: str, folders: dict[str, Path]) -> None:
    model = chosen(family)
    expected = model.logits(torch.tensor(PROMPT))[-1].numpy()
    with Decoder(folders[family], threads=2) as decoder:
        found = decoder.feed(PROMPT)
        np.testing.assert_allclose(found, expected, rtol=0, atol=1e-12 * np.abs(expected).max())
        decoder.reset()
        tokens = list(decoder.generate(PROMPT, 60))
    assert agreement(model.logits, PROMPT, tokens) == len(tokens) == 60
    assert greedy(model.logits, PROMPT, 5) == tokens[:5]


def test_an_agreement_ends_at_the_first_other_token() -> None:
    model = gated_model("mixtral")
    tokens = greedy(model.logits, PROMPT, 6)
    tokens[3] = (tokens[3] + 1) % 300
    assert agreement(model.logits, PROMPT, tokens) == 3


@pytest.mark.parametrize("family", FAMILIES)
def test_threads_and_chunks_change_no_bit(family: str, folders: dict[str, Path]) -> None:
    with Decoder(folders[family], threads=1) as one, Decoder(folders[family], threads=3) as three:
        at_once = one.feed(PROMPT)
        for token in PROMPT:
            one_by_one = three.feed([token])
        assert one.position == three.position == len(PROMPT)
        np.testing.assert_array_equal(at_once, one_by_one)
        np.testing.assert_array_equal(one.feed([7]), three.feed([7]))


def test_parts_that_begin_and_end_within_products_change_no_bit(tmp_path: Path) -> None:
    """The experts' products, of every width, are 0.8 MB: several parts a thread, see runner/pool.h."""
    config = GatedConfig(2000, 192, 488, 1, 8, 2, 24, 7, 2, 160)
    allocation = allocations(config.expert_ids)["mixed"]
    model = quantize(config, random_weights(config, 0), allocation)
    expected = model.logits(torch.tensor(PROMPT))[-1].numpy()
    folder = build_host(model.portable, tmp_path)
    with Decoder(folder, threads=1) as one, Decoder(folder, threads=3) as three:
        found = three.feed(PROMPT)
        np.testing.assert_array_equal(found, one.feed(PROMPT))
        np.testing.assert_allclose(found, expected, rtol=0, atol=1e-12 * np.abs(expected).max())


@pytest.mark.slow
@pytest.mark.parametrize("name", ["uniform8", "uniform4", "mixed"])
@pytest.mark.parametrize("family", FAMILIES)
def test_a_thousand_tokens_equal_pytorchs(family: str, name: str, tmp_path: Path) -> None:
    """Over several prompts, for the context ends a continuation."""
    model = gated_model(family, name)
    compared = 0
    with Decoder(build_host(model.portable, tmp_path), threads=2) as decoder:
        while compared < 1000:
            decoder.reset()
            prompt = [compared % 300, 11, compared // 7 % 300]
            tokens = list(decoder.generate(prompt, 160))
            assert agreement(model.logits, prompt, tokens) == len(tokens) == 160 - len(prompt) + 1
            compared += len(tokens)


def test_attention_and_the_output_layer_have_widths_of_their_own(tmp_path: Path) -> None:
    config, _ = FAMILIES["mixtral"]
    allocation = allocations(config.expert_ids)["uniform4"]
    model = quantize(config, random_weights(config, 0), allocation, backbone_bits=5, head_bits=6)
    widths = {name.rpartition(".")[2]: bits for name, bits in model.portable.bits.items()}
    assert widths == dict.fromkeys(("q", "k", "v", "o"), 5) | {"head": 6} | dict.fromkeys(("gate", "up", "down"), 4)
    expected = model.logits(torch.tensor(PROMPT))[-1].numpy()
    with Decoder(build_host(model.portable, tmp_path), threads=2) as decoder:
        np.testing.assert_allclose(decoder.feed(PROMPT), expected, rtol=0, atol=1e-12 * np.abs(expected).max())


def test_strange_weights_are_refused() -> None:
    config, _ = FAMILIES["mixtral"]
    floats = random_weights(config, 0)
    chosen = allocations(config.expert_ids)["mixed"]
    del floats["layers.1.router"]
    with pytest.raises(WattbitError, match=r"tensor layers.1.router is missing, not \[4, 64\]"):
        quantize(config, floats, chosen)
    floats["layers.1.router"] = torch.zeros(5, 64)
    with pytest.raises(WattbitError, match=r"tensor layers.1.router is of shape \[5, 64\], not \[4, 64\]"):
        quantize(config, floats, chosen)
    floats["layers.1.router"] = torch.zeros(4, 64)
    with pytest.raises(WattbitError, match=r"group_size must be a multiple of 32 that divides 64 columns, not 24"):
        quantize(config, floats, chosen, group_size=24)
    with pytest.raises(WattbitError, match="L1E3 is not in the allocation"):
        quantize(config, floats, Allocation(chosen.placements[:-1]))


def test_narrower_weights_are_further_from_the_float_model() -> None:
    """Scales of groups are nearer than scales of rows, too."""
    config, _ = FAMILIES["mixtral"]
    floats = random_weights(config, 1)
    exact = floats["layers.0.experts.0.up"].double()

    def error(bits: int, group_size: int | None) -> float:
        uniform = Allocation.of(dict.fromkeys(config.expert_ids, bits), engine="arm")
        tensors = quantize(config, floats, uniform, group_size=group_size).portable.tensors
        name = "layers.0.experts.0.up"
        scale = tensors[f"{name}.scale"].repeat_interleave(64 // tensors[f"{name}.scale"].shape[1], dim=1)
        return float((tensors[name] * scale - exact).square().mean())

    assert error(2, None) > error(4, None) > error(8, None)
    assert error(4, 32) < error(4, None)
