"""All experts of a layer under quantization at once, for training and statistics.

The same arithmetic, forward and backward, as a `BrevitasExpert` module for each expert (a test holds their equality),
with one scale and width for each expert's rows and half the elementwise passes. Gradients pass the rounding straight
through, and of the weights the clipping too.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from typing import Any, Self

import torch
from torch import Tensor

from wattbit.arith import OUT_BITS
from wattbit.models.expert import BrevitasExpert
from wattbit.models.network import Experts, grouped
from wattbit.models.scales import ExpertScales


class _Quantize(torch.autograd.Function):
    """x rounded to multiples low to high of a scale; gradients pass the rounding, and the clipping if `through`."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, scale: Tensor, low: Tensor, high: Tensor, through: bool) -> Tensor:
        rounded = (x / scale).round_()
        clipped = torch.minimum(torch.maximum(rounded, low), high)
        ctx.save_for_backward(scale, *(() if through else (clipped == rounded,)))
        return clipped.mul_(scale)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        scale, *inside = ctx.saved_tensors
        gradient = gradients[0] * scale  # times and by the scale again, as autograd does: the last bit depends on it
        for mask in inside:
            gradient.mul_(mask)
        return gradient.div_(scale), None, None, None, None


def _signed(x: Tensor, scale: Tensor, bits: Tensor) -> Tensor:
    half = 2 ** (bits - 1)
    return _quantize(x, scale, -half, half - 1, False)


def _unsigned(x: Tensor, scale: Tensor, bits: Tensor) -> Tensor:
    return _quantize(x, scale, torch.zeros_like(bits), 2**bits - 1, False)


def _weight(weights: Tensor, scale: Tensor, bits: Tensor) -> Tensor:
    """Narrow range: as many steps below zero as above."""
    top = 2 ** (bits - 1) - 1
    return _quantize(weights, scale, -top, top, True)


def _quantize(x: Tensor, scale: Tensor, low: Tensor, high: Tensor, through: bool) -> Tensor:
    found: Tensor = _Quantize.apply(x, scale, low, high, through)
    return found


@dataclass(frozen=True, eq=False)
class LayerQuantizer:
    """The scales of one layer's experts, stacked."""

    weight_bits: Tensor  # [E, 1, 1]
    act_bits: Tensor  # [E, 1]
    scale1: Tensor  # [E, H, 1] of w1
    scale2: Tensor  # [E, D, 1] of w2
    x_scale: Tensor  # [E, 1]
    h_scale: Tensor  # [E, 1]
    y_scale: Tensor  # [E, 1]
    half1: Tensor  # [E, 1] half a product unit
    half2: Tensor  # [E, 1]

    @classmethod
    def of(cls, scales: Sequence[ExpertScales], device: torch.device | str = "cpu") -> Self:
        def column(values: Sequence[float]) -> Tensor:
            return torch.tensor(values, dtype=torch.float32, device=device)[:, None]

        first, second = zip(*(s.weight_scales() for s in scales), strict=True)
        half1, half2 = zip(*(s.half_units() for s in scales), strict=True)
        return cls(
            weight_bits=column([s.precision.weight_bits for s in scales])[:, :, None],
            act_bits=column([s.precision.act_bits for s in scales]),
            scale1=torch.stack(first).to(device),
            scale2=torch.stack(second).to(device),
            x_scale=column([2.0**s.x_exp for s in scales]),
            h_scale=column([2.0**s.h_exp for s in scales]),
            y_scale=column([2.0**s.y_exp for s in scales]),
            half1=column(half1),
            half2=column(half2),
        )

    @classmethod
    def joined(cls, parts: Sequence[Self]) -> Self:
        """Of the experts of several quantizers, one after the other."""
        return cls(*(torch.cat([getattr(part, field.name) for part in parts]) for field in fields(cls)))

    def exact(self, w1: Tensor, w2: Tensor) -> Tensor:
        """`ExpertScales.still_exact` of each expert [E], for weights w1 [E, H, D], w2 [E, D, H]."""
        unit1, unit2 = 2 * self.half1[:, :, None], 2 * self.half2[:, :, None]  # of products, [E, 1, 1]
        x_max = 2 ** (self.act_bits - 1) * self.x_scale  # [E, 1]
        h_max = (2**self.act_bits - 1) * self.h_scale
        reach = []
        for weights, scale, unit, most in ((w1, self.scale1, unit1, x_max), (w2, self.scale2, unit2, h_max)):
            size = _weight(weights, scale, self.weight_bits).abs().double().sum(dim=-1)  # [E, O]
            reach.append((size * most / unit[:, :, 0]).amax(dim=1))
        return 2 * torch.stack(reach).amax(dim=0) + 1 < 2**24

    def experts(self, w1: Tensor, w2: Tensor) -> Experts:
        """The layer's experts with weights w1 [E, H, D], w2 [E, D, H], quantized here, once for all calls."""
        q1 = _weight(w1, self.scale1, self.weight_bits)
        q2 = _weight(w2, self.scale2, self.weight_bits)
        out_bits = torch.tensor(float(OUT_BITS), device=w1.device)

        def run(x: Tensor, counts: list[int]) -> Tensor:
            rows = torch.tensor(counts, device=x.device)
            owner = torch.repeat_interleave(rows, output_size=len(x))  # [N] expert of each row
            act_bits = self.act_bits[owner]  # [N, 1]
            x = _signed(x, self.x_scale[owner], act_bits)
            h = grouped(x, counts, q1) + self.half1[owner]  # [N, H]
            h = _unsigned(h.relu(), self.h_scale[owner], act_bits)
            y = grouped(h, counts, q2) + self.half2[owner]  # [N, D]
            return _signed(y, self.y_scale[owner], out_bits)

        return run


def brevitas_experts(modules: Mapping[int, BrevitasExpert]) -> Experts:
    """A layer's experts run by their Brevitas modules, each on its own rows."""

    def run(x: Tensor, counts: list[int]) -> Tensor:
        return torch.cat([modules[index](part) for index, part in enumerate(x.split(counts))])

    return run
