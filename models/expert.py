"""One expert as Brevitas modules: the reference that is exported, and that every back end is compared with."""

import numpy as np
import torch
from brevitas.core.scaling import ConstScaling
from brevitas.core.utils import SingleArgStatelessBuffer
from brevitas.inject import ExtendedInjector
from brevitas.nn import QuantIdentity, QuantLinear, QuantReLU
from brevitas.quant import Int8ActPerTensorFloat, Int8WeightPerChannelFloat, Uint8ActPerTensorFloat
from torch import Tensor, nn

from wattbit.arith import OUT_BITS, ExpertInts, Int8, quantize_input
from wattbit.models.scales import ExpertScales
from wattbit.plan import ExpertId


def _constant(base: type[ExtendedInjector], scale: Tensor, bits: int) -> type[ExtendedInjector]:
    """Brevitas's quantizer `base` with constant scales, taken as they are (its integer threshold is set to 1)."""

    class ConstantScale(base):
        bit_width = bits
        scaling_impl = ConstScaling(scale)
        int_scaling_impl = SingleArgStatelessBuffer(1.0)

    return ConstantScale


def _weight_quant(scale: Tensor, bits: int) -> type[ExtendedInjector]:
    """Signed narrow-range weights with one scale a channel, `scale` [C, 1]."""
    return _constant(Int8WeightPerChannelFloat, scale, bits)


def _act_quant(exponent: int, bits: int, signed: bool) -> type[ExtendedInjector]:
    """Activations of scale 2^exponent."""
    return _constant(Int8ActPerTensorFloat if signed else Uint8ActPerTensorFloat, torch.tensor(2.0**exponent), bits)


class BrevitasExpert(nn.Module):
    """fc2(relu(fc1(x))) from w1 [H, D], w2 [D, H] in float and the constant scales of one precision.

    forward: x [T, D] float to y [T, D] float, a multiple of 2^y_exp. Both layers add half a product unit, see
    `wattbit.arith`.
    """

    def __init__(self, expert: ExpertId, w1: Tensor, w2: Tensor, scales: ExpertScales) -> None:
        super().__init__()
        self.expert = expert
        self.scales = scales
        hidden, model = w1.shape
        bits = scales.precision
        s1, s2 = scales.weight_scales()  # [H, 1], [D, 1]
        self.quant_in = QuantIdentity(
            act_quant=_act_quant(scales.x_exp, bits.act_bits, signed=True), return_quant_tensor=True
        )
        self.fc1 = QuantLinear(model, hidden, bias=False, weight_quant=_weight_quant(s1, bits.weight_bits))
        self.relu = QuantReLU(act_quant=_act_quant(scales.h_exp, bits.act_bits, signed=False), return_quant_tensor=True)
        self.fc2 = QuantLinear(hidden, model, bias=False, weight_quant=_weight_quant(s2, bits.weight_bits))
        self.quant_out = QuantIdentity(
            act_quant=_act_quant(scales.y_exp, OUT_BITS, signed=True), return_quant_tensor=False
        )
        half1, half2 = scales.half_units()
        self.register_buffer("half1", torch.full((hidden,), half1))
        self.register_buffer("half2", torch.full((model,), half2))
        with torch.no_grad():
            self.fc1.weight.copy_(w1)
            self.fc2.weight.copy_(w2)
        self.eval()

    def forward(self, x: Tensor) -> Tensor:
        h = self.relu(self.fc1(self.quant_in(x)) + self.half1)
        y: Tensor = self.quant_out(self.fc2(h) + self.half2)
        return y

    def quantize(self, x: Tensor) -> Int8:
        """The integers [T, D] that the expert reads float inputs [T, D] as."""
        return quantize_input(x.numpy(), self.scales.x_exp, self.scales.precision.act_bits)

    @torch.no_grad()
    def forward_ints(self, x: Int8) -> Int8:
        """Integer outputs [T, D] of integer inputs [T, D], computed by Brevitas in float."""
        y = self(torch.from_numpy(x).float() * 2.0**self.scales.x_exp)
        result: Int8 = (y * 2.0**-self.scales.y_exp).numpy().astype(np.int8)
        return result

    def ints(self) -> ExpertInts:
        """The integers that Brevitas rounds this expert's weights to, with the scales they belong to."""
        w1, w2 = (layer.quant_weight().int().numpy().astype(np.int8) for layer in (self.fc1, self.fc2))
        s = self.scales
        return ExpertInts(self.expert, s.precision, w1, w2, s.m1, s.m2, s.shift1, s.shift2, s.x_exp, s.h_exp, s.y_exp)
