"""Brevitas, the batched quantizer of training and QONNX compute the deployed integer arithmetic, exactly."""

import numpy as np
import pytest
import torch
from brevitas.export import export_qonnx
from qonnx.core.modelwrapper import ModelWrapper
from qonnx.util.cleanup import cleanup_model

from wattbit import arith
from wattbit.models.expert import BrevitasExpert
from wattbit.models.export import run_qonnx
from wattbit.models.quant import LayerQuantizer, brevitas_experts
from wattbit.models.scales import ExpertScales, Floats, calibrate
from wattbit.plan import ACT_BITS, WEIGHT_BITS, ExpertId, Precision

pytest_plugins = ["tests.models_support"]

D, H = 24, 40
FIRST = ExpertId(0, 0)
PRECISIONS = [Precision(bits, act_bits) for act_bits in ACT_BITS for bits in WEIGHT_BITS]


def random_weights(seed: int, spread: float = 3.0) -> tuple[Floats, Floats, Floats]:
    """w1 [H, D], w2 [D, H] whose channels differ in size by up to `spread`, and inputs x [300, D]."""
    rng = np.random.default_rng(seed)
    w1 = rng.standard_normal((H, D)) * rng.uniform(0.1, 0.1 * spread, (H, 1))
    w2 = rng.standard_normal((D, H)) * rng.uniform(0.1, 0.1 * spread, (D, 1))
    return w1.astype(np.float32), w2.astype(np.float32), rng.standard_normal((300, D)).astype(np.float32)


def build(precision: Precision, seed: int = 0, spread: float = 3.0) -> tuple[BrevitasExpert, Floats]:
    w1, w2, x = random_weights(seed, spread)
    scales = calibrate(w1, w2, x, precision)
    return BrevitasExpert(FIRST, torch.from_numpy(w1), torch.from_numpy(w2), scales), x


@pytest.mark.parametrize("precision", PRECISIONS, ids=str)
def test_brevitas_and_qonnx_equal_the_integer_arithmetic(precision: Precision, tmp_path):
    module, x = build(precision)
    ints = module.ints()
    low, high = arith.signed_range(precision.act_bits)
    inputs = np.concatenate([module.quantize(torch.from_numpy(x)), np.full((1, D), low), np.full((1, D), high)])
    inputs = inputs.astype(np.int8)
    expected = arith.forward(ints, inputs)
    assert len(np.unique(expected)) > 2 * precision.weight_bits  # the outputs are not trivial
    np.testing.assert_array_equal(module.forward_ints(inputs), expected)
    export_qonnx(module, torch.zeros(1, D), export_path=str(tmp_path / "e.onnx"), dynamo=False)
    graph = cleanup_model(ModelWrapper(str(tmp_path / "e.onnx")))
    few = np.concatenate([inputs[:4], inputs[-2:]])
    np.testing.assert_array_equal(run_qonnx(graph, ints, few), arith.forward(ints, few))


@pytest.mark.parametrize("precision", PRECISIONS, ids=str)
def test_float32_is_exact_and_precision_is_not_wasted(precision: Precision):
    module, _ = build(precision, seed=1, spread=30.0)
    ints = module.ints()
    x_max, h_max = 2 ** (precision.act_bits - 1), 2**precision.act_bits - 1
    assert arith.float32_exact(ints.w1, ints.m1, x_max)
    assert arith.float32_exact(ints.w2, ints.m2, h_max)
    for weights, multiplier, top in ((ints.w1, ints.m1, x_max), (ints.w2, ints.m2, h_max)):
        finer = multiplier * 4  # what two more bits of shift would give
        assert finer.max() > arith.MULTIPLIER_MAX or not arith.float32_exact(weights, finer, top)


def test_a_wider_expert_is_closer_to_float():
    errors = []
    for bits in (2, 3, 4, 6, 8):
        module, x = build(Precision(bits, 8))
        w1, w2 = module.fc1.weight.detach().numpy(), module.fc2.weight.detach().numpy()
        with torch.no_grad():
            y = module(torch.from_numpy(x)).numpy()
        expected = np.maximum(x @ w1.T, 0) @ w2.T
        errors.append(float(np.square(y - expected).mean() / np.square(expected).mean()))
    assert errors == sorted(errors, reverse=True)
    assert errors[-1] < 0.002


def test_batched_experts_equal_brevitas_in_value_and_gradient():
    """Sixteen experts of all widths at once, against sixteen modules."""
    precisions = [*PRECISIONS, Precision(4, 8), Precision(2, 4)]
    weights = [random_weights(seed) for seed in range(len(precisions))]
    scales = [calibrate(w1, w2, x, p) for (w1, w2, x), p in zip(weights, precisions, strict=True)]
    w1 = torch.stack([torch.from_numpy(w) for w, _, _ in weights]).requires_grad_()
    w2 = torch.stack([torch.from_numpy(w) for _, w, _ in weights]).requires_grad_()
    modules = {e: BrevitasExpert(ExpertId(0, e), w1[e], w2[e], s) for e, s in enumerate(scales)}
    counts = [7 * e for e in range(len(precisions))]  # expert 0 sees nothing
    x = torch.randn(sum(counts), D, generator=torch.Generator().manual_seed(0)) * 1.5
    rows = x.clone().requires_grad_(), x.clone().requires_grad_()
    batched = LayerQuantizer.of(scales).experts(w1, w2)(rows[0], counts)
    single = brevitas_experts(modules)(rows[1], counts)
    assert torch.equal(batched, single)
    batched.square().sum().backward()
    single.square().sum().backward()
    assert torch.equal(rows[0].grad, rows[1].grad)
    for e, module in modules.items():
        torch.testing.assert_close(w1.grad[e], module.fc1.weight.grad, rtol=1e-5, atol=1e-4)
        torch.testing.assert_close(w2.grad[e], module.fc2.weight.grad, rtol=1e-5, atol=1e-4)


@pytest.mark.parametrize("precision", [Precision(2, 4), Precision(8, 8)], ids=str)
def test_scales_survive_their_array(precision: Precision):
    module, _ = build(precision)
    again = ExpertScales.from_array(precision, module.scales.to_array(), H)
    np.testing.assert_array_equal(again.to_array(), module.scales.to_array())
    assert (again.m1.shape, again.m2.shape) == ((H,), (D,))


def test_an_expert_whose_outputs_vanish_still_gets_scales():
    """A dead hidden layer, and weights of which one channel dwarfs the rest, are calibrated and exact."""
    w1, w2, x = random_weights(0)
    for change in (lambda: w1.__imul__(-1e-3), lambda: w1.__setitem__(0, w1[0] * 1e4), lambda: w2.fill(0)):
        change()
        scales = calibrate(w1, w2, np.abs(x), Precision(4, 8))
        module = BrevitasExpert(FIRST, torch.from_numpy(w1), torch.from_numpy(w2), scales)
        inputs = module.quantize(torch.from_numpy(x))
        np.testing.assert_array_equal(module.forward_ints(inputs), arith.forward(module.ints(), inputs))


def test_weights_that_outgrow_their_scales_are_noticed():
    w1, w2, x = random_weights(0)
    scales = calibrate(w1, w2, x, Precision(8, 8))
    assert scales.still_exact(w1, w2)
    assert not scales.still_exact(np.sign(w1) * np.float32(10), w2)
