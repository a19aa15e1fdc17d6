"""All experts of a layer under quantization at once, for training and statistics.

The same arithmetic as 32 `BrevitasExpert` modules (a test holds their equality), through Brevitas's own `IntQuant` with
one scale and width for each expert's rows instead of one module for each expert: five elementwise passes a layer
instead of five a module. Gradients pass the rounding straight through, and of the weights the clipping too.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Self

import torch
from brevitas.core.function_wrapper import Identity, TensorClampSte
from brevitas.core.quant import IntQuant
from torch import Tensor

from wattbit.arith import OUT_BITS
from wattbit.models.expert import BrevitasExpert
from wattbit.models.network import Experts, grouped
from wattbit.models.scales import ExpertScales

_SIGNED = IntQuant(narrow_range=False, signed=True, input_view_impl=Identity())
_UNSIGNED = IntQuant(narrow_range=False, signed=False, input_view_impl=Identity())
_WEIGHT = IntQuant(narrow_range=True, signed=True, input_view_impl=Identity(), tensor_clamp_impl=TensorClampSte())


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

    def experts(self, w1: Tensor, w2: Tensor) -> Experts:
        """The layer's experts with weights w1 [E, H, D], w2 [E, D, H], quantized here, once for all calls."""
        zero, out_bits = (torch.tensor(float(value), device=w1.device) for value in (0, OUT_BITS))
        q1 = _WEIGHT(self.scale1, zero, self.weight_bits, w1)
        q2 = _WEIGHT(self.scale2, zero, self.weight_bits, w2)

        def run(x: Tensor, counts: list[int]) -> Tensor:
            rows = torch.tensor(counts, device=x.device)
            owner = torch.repeat_interleave(rows, output_size=len(x))  # [N] expert of each row
            act_bits = self.act_bits[owner]  # [N, 1]
            x = _SIGNED(self.x_scale[owner], zero, act_bits, x)
            h = grouped(x, counts, q1) + self.half1[owner]  # [N, H]
            h = _UNSIGNED(self.h_scale[owner], zero, act_bits, h.relu())
            y = grouped(h, counts, q2) + self.half2[owner]  # [N, D]
            out: Tensor = _SIGNED(self.y_scale[owner], zero, out_bits, y)
            return out

        return run


def brevitas_experts(modules: Mapping[int, BrevitasExpert]) -> Experts:
    """A layer's experts run by their Brevitas modules, each on its own rows."""

    def run(x: Tensor, counts: list[int]) -> Tensor:
        return torch.cat([modules[index](part) for index, part in enumerate(x.split(counts))])

    return run
