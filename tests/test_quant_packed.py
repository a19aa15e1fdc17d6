"""Packed experts: every bit comes back, and bytes are what the file holds."""

from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from safetensors.torch import load_file, save_file
from torch import Tensor

from wattbit.errors import WattbitError
from wattbit.models.packed import load_experts, pack, save_experts, to_tensors, unpack
from wattbit.models.quantizers import rtn
from wattbit.models.quantizers.apply import (
    MIN_TOKENS,
    ExpertRecipe,
    expert_bytes,
    fallen_back,
    quantize_expert,
    tokens_needed,
)
from wattbit.plan import Allocation, ExpertId
from wattbit.recipe import QUANTIZERS, Recipe

pytest_plugins = ["tests.models_support"]

D, H = 36, 50
RECIPES = [
    *(ExpertRecipe(bits, "rtn", group) for bits in range(2, 9) for group in (None, 16)),
    *(ExpertRecipe(3, quantizer, 32) for quantizer in QUANTIZERS),
    ExpertRecipe(3, "hqq", 64, rank=4),
    ExpertRecipe(2, "gptq", None, rank=7, compensator_bits=4),
    ExpertRecipe(4, "gptq", 16, float_columns=(3, 17, 35)),
    ExpertRecipe(2, "rtn", None, rank=100, float_columns=(0,)),
]


class Gated:
    """A SwiGLU expert: what quantize_expert asks of a model."""

    first = ("gate", "up")
    last = "down"

    def hidden(self, matrices, x: Tensor) -> Tensor:
        return F.silu(F.linear(x, matrices["gate"])) * F.linear(x, matrices["up"])


def matrices(seed: int = 0) -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    shapes = {"gate": (H, D), "up": (H, D), "down": (D, H)}
    return {name: torch.randn(*shape, generator=generator) for name, shape in shapes.items()}


def calibration(tokens: int = 200) -> Tensor:
    return torch.randn(tokens, D, generator=torch.Generator().manual_seed(9))


@pytest.mark.parametrize("count", [1, 7, 8, 9, 1001])
@pytest.mark.parametrize("bits", range(2, 9))
def test_packing_is_a_stream_of_bits(bits: int, count: int):
    """Against the definition, written bit by bit; and back."""
    values = torch.from_numpy(np.random.default_rng(bits).integers(0, 2**bits, count).astype(np.uint8))
    stream = [(int(v) >> i) & 1 for v in values for i in range(bits)]
    expected = np.packbits(np.array(stream, dtype=np.uint8), bitorder="little")
    packed = pack(values, bits)
    np.testing.assert_array_equal(packed.numpy(), expected)
    assert torch.equal(unpack(packed, bits, count), values)


@pytest.mark.parametrize("how", RECIPES, ids=str)
def test_an_expert_comes_back_bit_for_bit_and_its_bytes_are_the_files(how: ExpertRecipe, tmp_path: Path):
    experts = {ExpertId(0, e): quantize_expert(Gated(), matrices(e), how, calibration()) for e in range(2)}
    save_experts(tmp_path / "x.safetensors", experts)
    again = load_experts(tmp_path / "x.safetensors")
    assert list(again) == list(experts)
    for identity, expert in experts.items():
        found = again[identity]
        assert (found.quantizer, found.tokens, found.header()) == (expert.quantizer, 200, expert.header())
        assert found.tensors().keys() == expert.tensors().keys()
        assert all(torch.equal(found.tensors()[name], tensor) for name, tensor in expert.tensors().items())
        for name, weights in expert.dequantize().items():
            assert weights.shape == matrices()[name].shape
            assert torch.equal(found.dequantize()[name], weights)
    stored = sum(tensor.nbytes for tensor in load_file(tmp_path / "x.safetensors").values())
    shapes = {name: tuple(weights.shape) for name, weights in matrices().items()}
    assert stored == sum(e.bytes for e in experts.values()) == 2 * expert_bytes(Gated(), shapes, how)
    save_experts(tmp_path / "y.safetensors", again)
    assert (tmp_path / "x.safetensors").read_bytes() == (tmp_path / "y.safetensors").read_bytes()


def test_bytes_follow_the_width():
    """3 bits a weight and a scale and a zero point of 2 bytes for each group of 10."""
    weights = torch.randn(8, 40)
    expert = quantize_expert(
        Gated(), {"gate": weights, "up": weights, "down": weights}, ExpertRecipe(3, "rtn", 10), weights
    )
    assert expert.bytes == 3 * (8 * 40 * 3 // 8 + 8 * 40 // 10 * 4)


def test_float_columns_are_exact_and_help_nothing_else():
    how = ExpertRecipe(2, float_columns=(1, 30))
    found = quantize_expert(Gated(), matrices(), how, calibration()).dequantize()
    for name in ("gate", "up"):
        kept = [1, 30]
        torch.testing.assert_close(found[name][:, kept], matrices()[name][:, kept], rtol=1e-3, atol=0)
        rest = [c for c in range(D) if c not in kept]
        plain = rtn.quantize(matrices()[name][:, rest], 2).dequantize()
        assert torch.equal(found[name][:, rest], plain)
    assert torch.equal(found["down"], rtn.quantize(matrices()["down"], 2).dequantize())


def test_stored_compensators_bring_the_expert_closer():
    errors = []
    for rank in (0, 4, 16):
        found = quantize_expert(Gated(), matrices(), ExpertRecipe(3, "hqq", 64, rank), calibration()).dequantize()
        errors.append(sum((found[name] - w).square().sum().item() for name, w in matrices().items()))
    assert errors == sorted(errors, reverse=True)
    assert errors[-1] < 0.8 * errors[0]


def test_gptq_without_enough_tokens_is_round_to_nearest_by_name():
    assert tokens_needed(matrices()) == MIN_TOKENS
    assert tokens_needed({"w1": torch.zeros(2, 99), "w2": torch.zeros(99, 2)}) == 99
    few = quantize_expert(Gated(), matrices(), ExpertRecipe(3, "gptq"), calibration(MIN_TOKENS - 1))
    none = quantize_expert(Gated(), matrices(), ExpertRecipe(3, "gptq"), calibration(0))
    plain = quantize_expert(Gated(), matrices(), ExpertRecipe(3, "rtn"), calibration(0))
    enough = quantize_expert(Gated(), matrices(), ExpertRecipe(3, "gptq"), calibration(MIN_TOKENS))
    assert [e.quantizer for e in (few, none, plain, enough)] == ["rtn", "rtn", "rtn", "gptq"]
    assert (few.tokens, none.tokens) == (MIN_TOKENS - 1, 0)
    for name, weights in plain.dequantize().items():
        assert torch.equal(few.dequantize()[name], weights)
        assert not torch.equal(enough.dequantize()[name], weights)
    experts = {ExpertId(0, 0): few, ExpertId(0, 1): enough, ExpertId(1, 0): none}
    recipe = Recipe("uniform", Allocation.of(dict.fromkeys(experts, 3)), "gptq")
    assert fallen_back(recipe, experts) == (ExpertId(0, 0), ExpertId(1, 0))


def test_what_is_no_file_of_experts_is_refused(tmp_path: Path):
    path = tmp_path / "x.safetensors"
    with pytest.raises(WattbitError, match=r"x.safetensors does not exist; save a quantized model there"):
        load_experts(path)
    path.write_bytes(b"no safetensors")
    with pytest.raises(WattbitError, match=r"x.safetensors cannot be read .* save the experts again"):
        load_experts(path)
    save_file({"a": torch.zeros(1)}, path)
    with pytest.raises(WattbitError, match=r"experts are of format None, not 1; save them again"):
        load_experts(path)
    experts = {ExpertId(0, 0): quantize_expert(Gated(), matrices(), ExpertRecipe(4), calibration())}
    tensors, metadata = to_tensors(experts)
    del tensors["L0E0.up.scale"]
    save_file(tensors, path, metadata)
    with pytest.raises(WattbitError, match=r"has no 'L0E0.up.scale', which its header names; save the experts again"):
        load_experts(path)
