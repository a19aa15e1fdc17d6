"""Integers on a grid for each group of columns, which every quantizer of this folder returns. N rows out, K columns in,
G groups of columns in a row."""

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from wattbit.errors import WattbitError

SMALLEST_SCALE = 2.0**-24  # of float16


@dataclass(frozen=True, eq=False)
class Quantized:
    """A matrix [N, K] as (integers - zero) * scale. The last group of a row is shorter where `group` does not divide K.

    Scales and zero points are stored in float16, and the integers were rounded with the stored values.
    """

    integers: Tensor  # [N, K] uint8, 0 to 2^bits - 1
    scale: Tensor  # [N, G] float16
    zero: Tensor | None  # [N, G] float16; None: 2^(bits - 1) everywhere
    bits: int
    group: int

    def dequantize(self) -> Tensor:
        """[N, K] float32."""
        zero = 2 ** (self.bits - 1) if self.zero is None else expand(self.zero, self.group, self.integers.shape[1])
        return (self.integers.float() - zero) * expand(self.scale, self.group, self.integers.shape[1])

    def split(self, parts: int) -> "list[Quantized]":
        """So many matrices of as many rows each, of which this is all rows."""
        rows = len(self.integers) // parts
        zeros = [None] * parts if self.zero is None else self.zero.split(rows)
        each = zip(self.integers.split(rows), self.scale.split(rows), zeros, strict=True)
        return [Quantized(*one, self.bits, self.group) for one in each]


def group_columns(columns: int, group_size: int | None) -> int:
    """Columns of a group; a group_size of None or beyond the matrix gives one group a row."""
    return columns if group_size is None else min(group_size, columns)


def split_groups(weights: Tensor, group: int) -> Tensor:
    """[N, G, group] of weights [N, K]; a short last group is filled up with its last column."""
    missing = -weights.shape[1] % group
    filled = torch.cat([weights, weights[:, -1:].expand(-1, missing)], dim=1) if missing else weights
    return filled.view(len(weights), -1, group)


def expand(values: Tensor, group: int, columns: int) -> Tensor:
    """Values of groups [N, G] for each column [N, K], in float32."""
    return values.float().repeat_interleave(group, dim=1)[:, :columns]


def group_sum(values: Tensor, group: int) -> Tensor:
    """Sums [N, G] over the groups of values [N, K]."""
    return F.pad(values, (0, -values.shape[1] % group)).view(len(values), -1, group).sum(dim=-1)


def range_grid(weights: Tensor, bits: int, group: int) -> tuple[Tensor, Tensor]:
    """Scale and zero point [N, G], float16: s = (max - min) / (2^b - 1), z = -min / s, over a range that holds 0.

    Raises WattbitError for weights that are not finite, or too large for a scale in float16.
    """
    parts = split_groups(weights.float(), group)
    low, high = parts.amin(dim=-1).clamp(max=0), parts.amax(dim=-1).clamp(min=0)
    scale = stored_scale((high - low) / (2**bits - 1))
    return scale, (-low / scale.float()).half()


def stored_scale(scale: Tensor) -> Tensor:
    """Scales as float16 that can be divided by."""
    found = scale.clamp(min=SMALLEST_SCALE).half()
    if not bool(found.isfinite().all()):
        raise WattbitError(f"weights need a scale of {scale.max().item():.3g}, beyond float16; check the checkpoint")
    return found


def round_to(weights: Tensor, scale: Tensor, zero: Tensor | float, bits: int) -> Tensor:
    """Integers (float32) of weights with scale and zero point, float32 tensors that broadcast."""
    return (weights / scale + zero).round_().clamp_(0, 2**bits - 1)


def check_bits(bits: int) -> None:
    if not 2 <= bits <= 8:
        raise WattbitError(f"weight_bits must be within 2..8, not {bits}")
