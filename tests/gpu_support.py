"""Experts, inputs and the float64 reference of the GPU kernels' tests; without a card the CPU runs them."""

from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from wattbit.tvm_schedules.gpu.bank import Bank, Expert, Matrix, Shape
from wattbit.tvm_schedules.gpu.layer import Layer

CARD = torch.cuda.is_available()
needs_card = [pytest.mark.gpu, pytest.mark.skipif(not CARD, reason="no CUDA device: PyTorch sees none")]


def matrix(random: np.random.Generator, rows: int, depth: int, bits: int, group: int) -> Matrix:
    """Random codes over the whole narrow range, and positive scales that keep products near 1."""
    top = 2 ** (bits - 1) - 1
    codes = random.integers(-top, top + 1, (rows, depth)).astype(np.int8)
    scales = random.random((rows, -(-depth // group)) if group else rows) + 0.5
    return Matrix(codes, (scales / top / depth**0.5).astype(np.float32), bits, group)


def make_experts(shape: Shape, bits: tuple[int, ...], seed: int) -> list[Expert]:
    """Random experts that take turns in these widths."""
    random = np.random.default_rng(seed)
    model, hidden, group = shape.d_model, shape.d_hidden, shape.group
    experts = []
    for e in range(shape.experts):
        b = bits[e % len(bits)]
        first = [matrix(random, hidden, model, b, group) for _ in range(2 if shape.swiglu else 1)]
        second = matrix(random, model, hidden, b, group)
        experts.append(Expert.gated(*first, second) if shape.swiglu else Expert(first[0], second))
    return experts


def reference(layer: Layer, experts: list[Expert], x: torch.Tensor) -> NDArray[np.float64]:
    """y [T, D] in float64; hidden activations are rounded to bfloat16, as on the card."""
    logits = x.double() @ layer.router.double().T
    share = logits.softmax(dim=-1)
    values, chosen = share.topk(layer.top_k, dim=-1)
    if layer.renormalise:
        values = values / values.sum(dim=-1, keepdim=True)
    y = np.zeros(x.shape)
    for t, given in enumerate(x.double().cpu().numpy()):
        for weight, e in zip(values[t].tolist(), chosen[t].tolist(), strict=True):
            hidden = experts[e].first.real() @ given
            if layer.bank.shape.swiglu:
                gate, linear = hidden[0::2], hidden[1::2]
                hidden = gate / (1 + np.exp(-gate)) * linear
            else:
                hidden = np.maximum(hidden, 0)
            y[t] += weight * (experts[e].second.real() @ torch.from_numpy(hidden).to(torch.bfloat16).double().numpy())
    return y


def run(
    shape: Shape, bits: tuple[int, ...], top_k: int, tokens: int, seed: int = 0, **settings: Any
) -> tuple[Layer, torch.Tensor, float]:
    """A layer whose buffers were all NaN before it ran, its input, and its error: |y - reference| / |reference|."""
    device = torch.device("cuda" if CARD else "cpu")
    experts = make_experts(shape, bits, seed)
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(tokens, shape.d_model, generator=generator).to(torch.bfloat16).to(device)
    router = torch.randn(shape.experts, shape.d_model, generator=generator) / shape.d_model**0.5
    bank = Bank.of(shape, experts, device)
    layer = Layer(bank, router.to(torch.bfloat16).to(device), top_k, tokens, **settings)
    layer.poison()
    y = layer(x).double().cpu().numpy()
    wanted = reference(layer, experts, x)
    return layer, x, float(np.linalg.norm(y - wanted) / np.linalg.norm(wanted))
