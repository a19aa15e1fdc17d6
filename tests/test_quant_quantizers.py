"""What every quantizer guarantees, on matrices of all shapes."""

from dataclasses import replace
from itertools import pairwise

import pytest
import torch
from torch import Tensor

from wattbit.errors import WattbitError
from wattbit.models.expert_model import Matrices
from wattbit.models.quantizers import gptq, hqq, low_rank, rtn
from wattbit.models.quantizers.apply import ExpertRecipe, goes_together, quantize_expert, quantize_together
from wattbit.models.quantizers.grid import Quantized

pytest_plugins = ["tests.models_support"]

BITS = range(2, 9)
SHAPES = [(1, 1), (5, 3), (24, 40), (17, 131)]
GROUPS = [None, 1, 16, 64]


def weights(rows: int, columns: int, seed: int = 0) -> Tensor:
    """Rows that differ in size, with outliers."""
    generator = torch.Generator().manual_seed(seed)
    values = torch.randn(rows, columns, generator=generator).pow(3)
    return values * torch.rand(rows, 1, generator=generator)


def inputs(columns: int, seed: int = 0) -> Tensor:
    """Correlated inputs [300, K], some columns much larger than others."""
    generator = torch.Generator().manual_seed(seed)
    mixing = torch.randn(columns, columns, generator=generator) * torch.rand(columns, generator=generator)
    return torch.randn(300, columns, generator=generator) @ mixing


def error(values: Tensor, found: Quantized) -> float:
    return (values - found.dequantize()).norm().item()


@pytest.mark.parametrize("group", GROUPS)
@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("bits", BITS)
def test_rounding_errs_by_half_a_step_and_all_levels_are_in_reach(bits: int, shape: tuple[int, int], group: int | None):
    values = weights(*shape)
    found = rtn.quantize(values, bits, group)
    assert found.integers.max().item() < 2**bits
    step = found.scale.float().repeat_interleave(found.group, dim=1)[:, : shape[1]]
    limit = 0.5 * step + 2.0**-9 * values.abs().max()  # half a step, and scale and zero point in float16
    assert ((found.dequantize() - values).abs() <= limit).all()
    if shape[1] > 2**bits and group is None:
        assert found.integers.min() == 0
        assert found.integers.max() == 2**bits - 1


def test_symmetric_rounding_keeps_zero_and_sign():
    values = weights(9, 70)
    found = rtn.quantize_symmetric(values, 3, 64)
    assert found.zero is None
    assert torch.equal(rtn.quantize_symmetric(-values, 3, 64).dequantize(), -found.dequantize())
    assert not rtn.quantize_symmetric(torch.zeros(2, 3), 4).dequantize().any()


@pytest.mark.parametrize("value", [0.0, 0.3, -2.0])
def test_a_constant_matrix_is_kept(value: float):
    for found in (rtn.quantize(torch.full((3, 5), value), 2), hqq.quantize(torch.full((3, 5), value), 2)):
        torch.testing.assert_close(found.dequantize(), torch.full((3, 5), value), rtol=1e-3, atol=1e-6)


@pytest.mark.parametrize("group", [None, 64, 50])
@pytest.mark.parametrize("bits", [2, 3, 4, 8])
def test_gptq_never_loses_more_than_rounding(bits: int, group: int | None):
    """In any row, and far less in all: columns make up for each other."""
    values, hessian = weights(24, 200), gptq.hessian(inputs(200))
    ours = gptq.loss(values, gptq.quantize(values, hessian, bits, group), hessian)
    plain = gptq.loss(values, rtn.quantize(values, bits, group), hessian)
    assert (ours <= plain).all()
    assert ours.sum() < 0.8 * plain.sum()


@pytest.mark.parametrize("group", [None, 16])
def test_gptq_is_rounding_where_columns_do_not_correlate(group: int | None):
    values = weights(24, 200)
    hessian = torch.diag(torch.rand(200, generator=torch.Generator().manual_seed(1)))
    hessian[7, 7] = 0  # a column that is never used
    ours, plain = gptq.quantize(values, hessian, 3, group), rtn.quantize(values, 3, group)
    assert torch.equal(ours.dequantize(), plain.dequantize())


def test_gptq_of_inputs_that_are_all_zero_is_rounding():
    values = weights(5, 8)
    found = gptq.quantize(values, torch.zeros(8, 8), 3)
    assert torch.equal(found.dequantize(), rtn.quantize(values, 3).dequantize())


def test_gptq_is_the_best_of_two_columns():
    """By enumeration: of two columns, the second is rounded to what is best after the first's rounding."""
    x = torch.tensor([[1.0, 0.9], [0.5, 0.7], [-1.0, -0.8]])
    values = torch.tensor([[0.31, 0.74, 1.0, -0.5]])[:, :2]
    hessian = gptq.hessian(x)
    found = gptq.quantize(values, hessian, 3)
    step, zero = found.scale.float()[0, 0], found.zero.float()[0, 0]
    first = found.dequantize()[0, 0]
    levels = (torch.arange(8) - zero) * step
    losses = torch.stack([((x @ (values[0] - torch.stack([first, level]))) ** 2).sum() for level in levels])
    assert found.dequantize()[0, 1] == pytest.approx(levels[losses.argmin()].item())


@pytest.mark.parametrize("group", [None, 64, 7])
@pytest.mark.parametrize("bits", [2, 3, 4, 8])
def test_hqqs_objective_never_rises(bits: int, group: int | None):
    values = weights(24, 200)
    path = torch.stack([hqq.objective(values, hqq.quantize(values, bits, group, steps)) for steps in range(12)])
    assert (path.diff(dim=0) <= 0).all()  # in no group
    assert torch.equal(path[0], hqq.objective(values, rtn.quantize(values, bits, group)))
    assert path[-1].sum() < 0.99 * path[0].sum()


def test_hqq_agrees_with_its_authors_library(monkeypatch: pytest.MonkeyPatch):
    """Same objective from the same start, within the rounding of zero points to float16. Theirs (0.2.8) stops on the
    mean over the matrix and leaves beta as it is; ours keeps each group's best, so it may only be lower."""
    optimize = pytest.importorskip("hqq.core.optimize", reason="the hqq package is not installed")
    monkeypatch.setattr(hqq, "BETA_GROWTH", 1.0)
    values = weights(64, 256)
    for bits in (2, 3, 4):
        ours = hqq.quantize(values, bits, 64)
        start = rtn.quantize(values, bits, 64)
        flat = values.view(-1, 64)
        scale = 1 / start.scale.float().view(-1, 1)
        integers, inverse, zero = optimize.optimize_weights_proximal_legacy(
            flat, scale, start.zero.float().view(-1, 1), [0, 2**bits - 1], axis=1, device="cpu"
        )
        theirs = (integers - zero) / inverse
        assert hqq.objective(values, ours).sum() <= 1.001 * (flat - theirs).abs().pow(hqq.NORM).sum()


@pytest.mark.parametrize("shape", [(48, 96), (96, 48), (33, 70)])
def test_compensators_err_less_with_rank_and_not_at_all_at_full_rank(shape: tuple[int, int]):
    values = weights(*shape)

    def quantize(rest: Tensor) -> Quantized:
        return hqq.quantize(rest, 3, 64)

    errors = []
    for rank in (0, 2, 8, 24, min(shape), 1000):
        u, v = low_rank.compensate(values, rank, quantize)
        assert u.shape == (shape[0], min(rank, *shape))
        errors.append((values - quantize(values - u @ v).dequantize() - u @ v).norm().item())
    assert errors[0] == pytest.approx(error(values, quantize(values)))
    assert all(more < less for less, more in pairwise(errors[:5]))
    assert errors[4] < 1e-3 * values.norm().item()
    assert errors[5] == errors[4]


@pytest.mark.parametrize("rank", [3, 20])
def test_the_truncated_svd_is_the_best_approximation_and_the_same_each_time(rank: int):
    """Both ways to compute it, against the singular values that are left out (Eckart and Young)."""
    matrix = weights(60, 50)
    u, v = low_rank.truncated_svd(matrix, rank)
    left = torch.linalg.svdvals(matrix)[rank:].norm()
    torch.testing.assert_close((matrix - u @ v).norm(), left, rtol=2e-2, atol=0)
    torch.rand(3)
    again = low_rank.truncated_svd(matrix, rank)
    assert torch.equal(u, again[0])
    assert torch.equal(v, again[1])


@pytest.mark.parametrize("bits", [0, 1, 9])
def test_other_widths_are_refused(bits: int):
    for quantize in (rtn.quantize, rtn.quantize_symmetric, hqq.quantize):
        with pytest.raises(WattbitError, match=f"weight_bits must be within 2..8, not {bits}"):
            quantize(weights(2, 4), bits)
    with pytest.raises(WattbitError, match=f"not {bits}"):
        gptq.quantize(weights(2, 4), torch.eye(4), bits)


@pytest.mark.parametrize("bad", [float("nan"), float("inf"), 1e9])
def test_weights_beyond_float16_scales_are_refused(bad: float):
    values = weights(3, 8)
    values[1, 2] = bad
    for quantize in (rtn.quantize, rtn.quantize_symmetric, hqq.quantize):
        with pytest.raises(WattbitError, match=r"beyond float16; check the checkpoint"):
            quantize(values, 4)


@pytest.mark.parametrize("bad", [float("nan"), float("inf"), 1e30])
def test_gptq_refuses_inputs_that_are_no_numbers_or_too_large(bad: float):
    seen = inputs(8)
    seen[7, 3] = bad
    with pytest.raises(WattbitError, match="calibration inputs are no finite numbers"):
        gptq.quantize(weights(3, 8), gptq.hessian(seen), 4)


class Kind:
    """What `quantize_expert` asks of a model: an expert with two ways in, whose hidden layer adds them."""

    first, last = ("w1", "w3"), "w2"

    def hidden(self, matrices: Matrices, x: torch.Tensor) -> torch.Tensor:
        return (x @ matrices["w1"].T).relu() + x @ matrices["w3"].T


def experts(count: int) -> list[Matrices]:
    return [{"w1": torch.randn(12, 7), "w2": torch.randn(7, 12), "w3": torch.randn(12, 7)} for _ in range(count)]


@pytest.mark.parametrize("how", [ExpertRecipe(3), ExpertRecipe(2, "hqq"), ExpertRecipe(4, "hqq", 5)])
def test_experts_quantized_together_are_those_quantized_alone(how: ExpertRecipe):
    some, seen = experts(5), [torch.zeros(n, 7) for n in range(5)]
    for ours, matrices, x in zip(quantize_together(Kind(), some, how, seen), some, seen, strict=True):
        assert goes_together(how, len(x), matrices)
        theirs = quantize_expert(Kind(), matrices, how, x)
        assert (ours.header(), ours.quantizer, ours.tokens) == (theirs.header(), theirs.quantizer, len(x))
        for name, tensor in theirs.tensors().items():
            assert torch.equal(ours.tensors()[name], tensor)
    assert not goes_together(replace(how, rank=2), 100, some[0])
    assert not goes_together(replace(how, float_columns=(1,)), 100, some[0])


@pytest.mark.parametrize("how", [ExpertRecipe(2, "gptq"), ExpertRecipe(4, "gptq", 5)])
def test_gptq_of_many_experts_serves_each_as_well_as_alone(how: ExpertRecipe):
    some, seen = experts(5), [torch.randn(64 + n, 7) for n in range(4)] + [torch.zeros(64, 7)]
    for ours, matrices, x in zip(quantize_together(Kind(), some, how, seen), some, seen, strict=True):
        assert goes_together(how, len(x), matrices) and not goes_together(how, 63, matrices)
        theirs = quantize_expert(Kind(), matrices, how, x)
        assert (ours.header(), ours.quantizer, ours.tokens) == (theirs.header(), "gptq", len(x))
        found, alone = ours.dequantize(), theirs.dequantize()
        for name in ("w1", "w3"):  # sums of several matrices may round otherwise than those of one
            wrong, wrong_alone = (((one[name] - matrices[name]) @ x.T).norm() for one in (found, alone))
            torch.testing.assert_close(wrong, wrong_alone, rtol=0.02, atol=1e-6)
            assert (found[name] == alone[name]).float().mean() > 0.95
        if not x.any():
            plain = quantize_expert(Kind(), matrices, replace(how, quantizer="rtn"), x)
            assert all(torch.equal(plain.dequantize()[name], found[name]) for name in found)
