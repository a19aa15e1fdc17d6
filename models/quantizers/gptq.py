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
    """Half the squared error of the output on the calibration inputs, by row [..., N]: dw H dw^T / 2. Weights
    [..., N, K] and their Hessians [..., K, K]; `found` has all rows of all matrices."""
    change = weights.float() - found.dequantize().view_as(weights)
    return ((change @ hessian) * change).sum(dim=-1) / 2


class Solver:
    """The Hessians [E, K, K] of E sets of inputs, the order of columns and the factor of each: what all matrices that
    read the same inputs share. Matrices of different inputs go side by side, each as if it were alone."""

    def __init__(self, hessians: Tensor, group_size: int | None = None) -> None:
        """WattbitError for a Hessian that is not finite."""
        if not bool(hessians.isfinite().all()):
            raise WattbitError("GPTQ's calibration inputs are no finite numbers, or too large; look at the weights")
        columns = hessians.shape[-1]
        self._hessians = hessians
        self._group = group_columns(columns, group_size)
        self._seen = hessians.flatten(1).any(dim=1)
        self._order = torch.arange(columns, device=hessians.device).expand(len(hessians), columns)
        if self._group == columns:
            self._order = hessians.diagonal(dim1=1, dim2=2).argsort(dim=1, descending=True, stable=True)
        rows = hessians.gather(1, self._order[:, :, None].expand_as(hessians))
        self._factor = _inverse_factor(rows.gather(2, self._order[:, None].expand_as(hessians)), self._seen)

    def quantize(self, weights: Tensor, bits: int) -> Quantized:
        """All rows [E * N, K] of weights [E, N, K]; bits 2 to 8. Inputs that are all zero give round to nearest."""
        check_bits(bits)
        rows = weights.flatten(0, 1)
        plain_scale, plain_zero = range_grid(rows, bits, self._group)  # [E * N, G]
        plain = rtn.on_grid(rows, plain_scale, plain_zero, bits, self._group)
        order = self._order[:, None].expand_as(weights)
        integers, scale, zero = _by_columns(weights.float().gather(2, order), self._factor, bits, self._group)
        integers = torch.empty_like(integers).scatter_(2, order, integers)
        found = Quantized(integers.flatten(0, 1), scale, zero, bits, self._group)
        worse = loss(weights, found, self._hessians) > loss(weights, plain, self._hessians)  # [E, N]
        worse = (worse | ~self._seen[:, None]).flatten()[:, None]
        return Quantized(
            torch.where(worse, plain.integers, found.integers),
            torch.where(worse, plain_scale, scale),
            torch.where(worse, plain_zero, zero),
            bits,
            self._group,
        )


def quantize(weights: Tensor, hessian: Tensor, bits: int, group_size: int | None = None) -> Quantized:
    """`Solver.quantize` of one matrix [N, K]."""
    return Solver(hessian[None], group_size).quantize(weights[None], bits)


def _by_columns(rest: Tensor, factor: Tensor, bits: int, group: int) -> tuple[Tensor, Tensor, Tensor]:
    """Integers [E, N, K], scale and zero point [E * N, G] of weights `rest` [E, N, K], which are changed, column by
    column; factor [E, K, K]."""
    columns = rest.shape[2]
    integers = torch.empty_like(rest, dtype=torch.uint8)
    scales, zeros = [], []
    for start in range(0, columns, BLOCK):
        end = min(start + BLOCK, columns)
        errors = torch.empty_like(rest[:, :, start:end])
        for i in range(start, end):
            if i % group == 0:
                scale, zero = range_grid(rest[:, :, i : i + group].flatten(0, 1), bits, group)  # [E * N, 1]
                scales.append(scale)
                zeros.append(zero)
                s, z = scale.float().view(rest.shape[:2]), zero.float().view(rest.shape[:2])
            rounded = round_to(rest[:, :, i], s, z, bits)
            integers[:, :, i] = rounded.byte()
            error = (rest[:, :, i] - (rounded - z) * s) / factor[:, i, i, None]
            rest[:, :, i + 1 : end] -= error[:, :, None] * factor[:, None, i, i + 1 : end]
            errors[:, :, i - start] = error
        rest[:, :, end:] -= errors @ factor[:, start:end, end:]
    return integers, torch.cat(scales, dim=1), torch.cat(zeros, dim=1)


def _inverse_factor(hessians: Tensor, seen: Tensor) -> Tensor:
    """Upper Cholesky factors [E, K, K] of the damped Hessians' inverses; of the identity where nothing was seen [E]."""
    damped = hessians.double()
    diagonal = damped.diagonal(dim1=1, dim2=2)
    diagonal.add_(torch.where(seen, DAMP * diagonal.mean(dim=1), 1.0)[:, None])
    inverse = torch.cholesky_inverse(torch.linalg.cholesky(damped))
    return torch.linalg.cholesky(inverse, upper=True).float()
