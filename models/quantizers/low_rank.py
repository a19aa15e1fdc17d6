"""Low-rank compensators (MiLo, arXiv 2504.02658, algorithm 1): W = dequantized + U V, found by turns of quantizing
W - U V and the truncated SVD of what is left.

Where the paper is silent: the turns end when the error's mean over `WINDOW` turns falls by less than `TOLERANCE` of
itself, or after `TURNS`, and the turn with the least error is kept.
"""

from collections.abc import Callable
from statistics import fmean

import torch
from torch import Tensor

from wattbit.models.quantizers.grid import Quantized

TURNS = 20
WINDOW = 3
TOLERANCE = 1e-4
EXACT_SHARE = 4  # a rank above this part of the smaller side takes the exact SVD
OVERSAMPLING, POWER_STEPS = 8, 4  # of the randomised SVD


def compensate(weights: Tensor, rank: int, quantize: Callable[[Tensor], Quantized]) -> tuple[Tensor, Tensor]:
    """U [N, r] and V [r, K] in float32 for weights [N, K]; r is `rank` or the matrix's smaller side.

    quantize: how W - U V becomes integers.
    """
    weights = weights.float()
    rank = min(rank, *weights.shape)
    u, v = weights.new_zeros(len(weights), rank), weights.new_zeros(rank, weights.shape[1])
    best, errors = (u, v), [float("inf")]
    for _ in range(TURNS):
        rest = weights - quantize(weights - u @ v).dequantize()
        u, v = truncated_svd(rest, rank)
        error = (rest - u @ v).norm().item()
        if error < min(errors):
            best = u, v
        errors.append(error)
        if len(errors) > 2 * WINDOW:
            before, now = fmean(errors[-2 * WINDOW : -WINDOW]), fmean(errors[-WINDOW:])
            if before - now < TOLERANCE * before:
                break
    return best


def truncated_svd(matrix: Tensor, rank: int) -> tuple[Tensor, Tensor]:
    """U sqrt(S) [N, r] and sqrt(S) V^T [r, K] of the best approximation of that rank; the same on each call."""
    if rank * EXACT_SHARE > min(matrix.shape):
        u, s, vt = torch.linalg.svd(matrix, full_matrices=False)
    else:
        devices = [matrix.device] if matrix.device.type == "cuda" else []
        with torch.random.fork_rng(devices):
            torch.manual_seed(0)
            u, s, v = torch.svd_lowrank(matrix, q=rank + OVERSAMPLING, niter=POWER_STEPS)
        vt = v.T
    root = s[:rank].sqrt()
    return u[:, :rank] * root, root[:, None] * vt[:rank]
