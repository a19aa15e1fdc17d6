"""Half-quadratic quantization (Badri and Shaji, 2023; the form that MiLo uses, arXiv 2504.02658): the zero point of
each group minimises sum |w - dequantized w|^p with p < 1, which leaves outliers alone; no calibration data.

The problem is split into W_e = shrink(W - W_r), W_e near the error and sparse, and zero = mean(W_q - (W - W_e) / s).
Where the sources are silent: the grid starts as round to nearest's, and each group keeps the best zero point that it
met, so that its objective never rises. All steps are made, so that a row's result does not depend on its neighbours.
"""

import torch
from torch import Tensor

from wattbit.models.quantizers import rtn
from wattbit.models.quantizers.grid import Quantized, check_bits, expand, group_columns, group_sum, range_grid, round_to

NORM = 0.7  # p
BETA = 10.0
BETA_GROWTH = 1.01
STEPS = 20


def objective(weights: Tensor, found: Quantized) -> Tensor:
    """sum |w - dequantized w|^p of each group [N, G]."""
    return group_sum((weights.float() - found.dequantize()).abs().pow(NORM), found.group)


def quantize(weights: Tensor, bits: int, group_size: int | None = None, steps: int = STEPS) -> Quantized:
    """Weights [N, K]; bits 2 to 8. `steps` of 0 is round to nearest."""
    check_bits(bits)
    rows, columns = weights.shape
    group = group_columns(columns, group_size)
    weights = weights.float()
    scale, zero = range_grid(weights, bits, group)
    sizes = group_sum(torch.ones(1, columns, device=weights.device), group)  # [1, G]
    s = expand(scale, group, columns)
    best, lowest = zero, torch.full((rows, scale.shape[1]), torch.inf, device=weights.device)
    beta = BETA
    for step in range(steps + 1):
        z = expand(zero, group, columns)
        integers = round_to(weights, s, z, bits)
        error = weights - (integers - z) * s
        value = group_sum(error.abs().pow(NORM), group)
        better = value < lowest
        best, lowest = torch.where(better, zero, best), torch.where(better, value, lowest)
        if step == steps:
            break
        sparse = _shrink(error, beta)
        zero = (group_sum(integers - (weights - sparse) / s, group) / sizes).half()
        beta *= BETA_GROWTH
    return rtn.on_grid(weights, scale, best, bits, group)


def _shrink(error: Tensor, beta: float) -> Tensor:
    """Generalised soft thresholding: sign(e) relu(|e| - |e|^(p-1) / beta)."""
    size = error.abs()
    return error.sign() * (size - size.clamp(min=1e-8).pow(NORM - 1) / beta).relu_()
