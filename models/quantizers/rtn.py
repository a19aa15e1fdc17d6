"""Round to nearest on the range of each group: q = clamp(round(w / s + z), 0, 2^b - 1)."""

from torch import Tensor

from wattbit.models.quantizers.grid import (
    Quantized,
    check_bits,
    expand,
    group_columns,
    range_grid,
    round_to,
    split_groups,
    stored_scale,
)


def quantize(weights: Tensor, bits: int, group_size: int | None = None) -> Quantized:
    """Weights [N, K] with s = (max - min) / (2^b - 1), z = -min / s of each group; bits 2 to 8."""
    check_bits(bits)
    group = group_columns(weights.shape[1], group_size)
    scale, zero = range_grid(weights, bits, group)
    return on_grid(weights, scale, zero, bits, group)


def quantize_symmetric(weights: Tensor, bits: int, group_size: int | None = None) -> Quantized:
    """Weights [N, K] with s = max |w| / (2^(b-1) - 1) of each group and no zero point; bits 2 to 8."""
    check_bits(bits)
    group = group_columns(weights.shape[1], group_size)
    peak = split_groups(weights.float(), group).abs().amax(dim=-1)
    return on_grid(weights, stored_scale(peak / (2 ** (bits - 1) - 1)), None, bits, group)


def on_grid(weights: Tensor, scale: Tensor, zero: Tensor | None, bits: int, group: int) -> Quantized:
    """Weights [N, K] rounded on a given grid, scale and zero [N, G]."""
    columns = weights.shape[1]
    shift = 2 ** (bits - 1) if zero is None else expand(zero, group, columns)
    integers = round_to(weights.float(), expand(scale, group, columns), shift, bits)
    return Quantized(integers.byte(), scale, zero, bits, group)
