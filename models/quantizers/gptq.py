"""GPTQ (Frantar et al., arXiv 2210.17323, algorithm 1): columns are rounded one after the other, and what rounding one
of them changes in the layer's output on calibration inputs is compensated in those that follow.

Where the paper is silent: the grid of a group of columns comes from the weights as they stand when the group is
reached; a row that plain rounding serves better (the order of columns is a heuristic) keeps plain rounding, so that the
loss is never above that of round to nearest. Where one scale serves a row, columns go by falling energy of their inputs
(act-order of the authors' code), which at 2 bits takes about 1 % off the perplexity of a small model; groups stay runs
of neighbouring columns, in their order.
"""

import torch
from torch import Tensor

from wattbit.errors import WattbitError
from wattbit.models.quantizers import rtn
from wattbit.models.quantizers.grid import Quantized, check_bits, group_columns, range_grid, round_to

BLOCK = 128  # columns between two updates of all that follow
DAMP = 0.01  # of the mean diagonal, added to the Hessian's


def hessian(inputs: Tensor) -> Tensor:
    """2 X^T X [K, K] of inputs X [n, K]; Hessians of parts of the inputs add up."""
    x = inputs.float()
    return 2 * x.T @ x


def loss(weights: Tensor, found: Quantized, hessian: Tensor) -> Tensor:
    """Half the squared error of the output on the calibration inputs, by row [N]: dw H dw^T / 2."""
    change = weights.float() - found.dequantize()
    return ((change @ hessian) * change).sum(dim=1) / 2


class Solver:
    """What all matrices that read the same inputs share: the Hessian [K, K], the order of columns and the factor."""

    def __init__(self, hessian: Tensor, group_size: int | None = None) -> None:
        """WattbitError for a Hessian that is not finite."""
        if not bool(hessian.isfinite().all()):
            raise WattbitError("GPTQ's calibration inputs are no finite numbers, or too large; look at the weights")
        columns = len(hessian)
        self._hessian = hessian
        self._group = group_columns(columns, group_size)
        self._order = torch.arange(columns, device=hessian.device)
        if self._group == columns:
            self._order = hessian.diagonal().argsort(descending=True, stable=True)
        seen = bool(hessian.any())
        self._factor = _inverse_factor(hessian[self._order][:, self._order]) if seen else None

    def quantize(self, weights: Tensor, bits: int) -> Quantized:
        """Weights [N, K]; bits 2 to 8. Inputs that are all zero give round to nearest."""
        check_bits(bits)
        plain_scale, plain_zero = range_grid(weights, bits, self._group)  # [N, G]
        plain = rtn.on_grid(weights, plain_scale, plain_zero, bits, self._group)
        if self._factor is None:
            return plain
        integers, scale, zero = _by_columns(weights[:, self._order].float(), self._factor, bits, self._group)
        found = Quantized(integers[:, self._order.argsort()], scale, zero, bits, self._group)
        worse = (loss(weights, found, self._hessian) > loss(weights, plain, self._hessian))[:, None]
        return Quantized(
            torch.where(worse, plain.integers, found.integers),
            torch.where(worse, plain_scale, scale),
            torch.where(worse, plain_zero, zero),
            bits,
            self._group,
        )


def quantize(weights: Tensor, hessian: Tensor, bits: int, group_size: int | None = None) -> Quantized:
    """`Solver.quantize` of one matrix."""
    return Solver(hessian, group_size).quantize(weights, bits)


def _by_columns(rest: Tensor, factor: Tensor, bits: int, group: int) -> tuple[Tensor, Tensor, Tensor]:
    """Integers [N, K], scale and zero point [N, G] of weights `rest` [N, K], which are changed, column by column."""
    columns = rest.shape[1]
    integers = torch.empty_like(rest, dtype=torch.uint8)
    scales, zeros = [], []
    for start in range(0, columns, BLOCK):
        end = min(start + BLOCK, columns)
        errors = torch.empty_like(rest[:, start:end])
        for i in range(start, end):
            if i % group == 0:
                scale, zero = range_grid(rest[:, i : i + group], bits, group)  # [N, 1]
                scales.append(scale)
                zeros.append(zero)
                s, z = scale[:, 0].float(), zero[:, 0].float()
            rounded = round_to(rest[:, i], s, z, bits)
            integers[:, i] = rounded.byte()
            error = (rest[:, i] - (rounded - z) * s) / factor[i, i]
            rest[:, i + 1 : end] -= error[:, None] * factor[i, i + 1 : end]
            errors[:, i - start] = error
        rest[:, end:] -= errors @ factor[start:end, end:]
    return integers, torch.cat(scales, dim=1), torch.cat(zeros, dim=1)


def _inverse_factor(hessian: Tensor) -> Tensor:
    """Upper Cholesky factor [K, K] of the damped Hessian's inverse."""
    damped = hessian.double()
    damped.diagonal().add_(DAMP * hessian.diagonal().mean().item())
    inverse = torch.cholesky_inverse(torch.linalg.cholesky(damped))
    return torch.linalg.cholesky(inverse, upper=True).float()
