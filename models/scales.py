"""The scales of one expert at one precision, and how they are chosen.

Activation scales are powers of two, weight scales lie on the grid multiplier * 2^-shift * (scale out / scale in), on
which the integer arithmetic of `wattbit.arith` equals float32 exactly. All are chosen to minimise a squared error on
calibration activations (a clip search, as in OMSE, arXiv 1902.06822) and stay constant in training.

Rules where the data does not decide:
- An expert that saw fewer than `MIN_TOKENS` tokens is calibrated on all tokens of its layer.
- The shift is the largest for which `float32_exact` holds for every channel with a factor of `HEADROOM` to spare, so
  that training may move the weights a little. `still_exact` says whether it moved them too far.
- A channel too fine for that grid takes multiplier 1: its weights then use fewer levels than their width offers.
"""

from dataclasses import dataclass
from typing import Self

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor

from wattbit.arith import MULTIPLIER_MAX, OUT_BITS, Int8, Int32, float32_exact
from wattbit.errors import WattbitError
from wattbit.plan import Precision

MIN_TOKENS = 64
HEADROOM = 1.25
SHIFT_MAX = 31
CLIPS = np.linspace(0.2, 1.0, 25)  # candidate clipping thresholds, as shares of a channel's largest weight
EXPONENTS_DOWN = 4  # powers of two below the unclipped activation scale that are tried

Floats = NDArray[np.float32]


@dataclass(frozen=True, eq=False)
class ExpertScales:
    """m1 [H], m2 [D]: multipliers; shifts and exponents of two as in `wattbit.arith.ExpertInts`."""

    precision: Precision
    m1: Int32
    m2: Int32
    shift1: int
    shift2: int
    x_exp: int
    h_exp: int
    y_exp: int

    def units(self) -> tuple[float, float]:
        """Weight scale of multiplier 1 in each layer."""
        return 2.0 ** (self.h_exp - self.x_exp - self.shift1), 2.0 ** (self.y_exp - self.h_exp - self.shift2)

    def weight_scales(self) -> tuple[Tensor, Tensor]:
        """[H, 1] and [D, 1]."""
        unit1, unit2 = self.units()
        return torch.from_numpy(self.m1).float()[:, None] * unit1, torch.from_numpy(self.m2).float()[:, None] * unit2

    def half_units(self) -> tuple[float, float]:
        """Half a product unit of each layer, which rules out ties."""
        return 2.0 ** (self.h_exp - self.shift1 - 1), 2.0 ** (self.y_exp - self.shift2 - 1)

    def still_exact(self, w1: Floats, w2: Floats) -> bool:
        """Whether weights w1 [H, D] and w2 [D, H] at these scales keep float32 exact."""
        unit1, unit2 = self.units()
        x_max, h_max = _input_max(self.precision)
        return float32_exact(_round(w1, self.m1, unit1, self.precision.weight_bits), self.m1, x_max) and float32_exact(
            _round(w2, self.m2, unit2, self.precision.weight_bits), self.m2, h_max
        )

    def to_array(self) -> Int32:
        """Everything but the precision as one integer vector [5 + H + D]."""
        head = [self.shift1, self.shift2, self.x_exp, self.h_exp, self.y_exp]
        return np.concatenate([np.array(head, dtype=np.int32), self.m1, self.m2])

    @classmethod
    def from_array(cls, precision: Precision, values: Int32, d_hidden: int) -> Self:
        head, m1, m2 = np.split(values, [5, 5 + d_hidden])
        return cls(precision, m1, m2, *(int(v) for v in head))


def _input_max(precision: Precision) -> tuple[int, int]:
    """Largest magnitude of the inputs of fc1 (signed) and fc2 (unsigned)."""
    return 2 ** (precision.act_bits - 1), 2**precision.act_bits - 1


def _round(weights: Floats, multiplier: Int32, unit: float, bits: int) -> Int8:
    """Integers [C, K] of weights at scale multiplier[C] * unit: float32 division and ties to even, as in Brevitas."""
    top = 2 ** (bits - 1) - 1
    scale = multiplier.astype(np.float32)[:, None] * np.float32(unit)
    result: Int8 = np.clip(np.rint(weights / scale), -top, top).astype(np.int8)
    return result


def _act_exponent(values: Floats, levels: int) -> int:
    """Exponent of two that minimises the squared error of `values` quantized to -levels-1..levels (or 0..levels)."""
    peak = float(np.abs(values).max(initial=0.0))
    if peak == 0.0:
        return 0
    widest = int(np.ceil(np.log2(peak / levels)))
    low = -levels - 1 if values.min() < 0 else 0

    def error(exponent: int) -> float:
        scale = np.float32(2.0**exponent)
        return float(np.square(np.clip(np.rint(values / scale), low, levels) * scale - values).mean())

    return min(range(widest, widest - EXPONENTS_DOWN - 1, -1), key=error)


def _multipliers(weights: Floats, energy: Floats, unit: float, bits: int) -> Int32:
    """Multiplier [C] of each channel that minimises its error sum_k energy[k] (w - quantized w)^2."""
    top = 2 ** (bits - 1) - 1
    peak = np.abs(weights).max(axis=1, keepdims=True)  # [C, 1]
    tried = np.clip(np.rint(peak * CLIPS / (top * unit)), 1, MULTIPLIER_MAX).astype(np.float32)  # [C, N]
    scale = tried[:, :, None] * np.float32(unit)
    quantized = np.clip(np.rint(weights[:, None, :] / scale), -top, top) * scale  # [C, N, K]
    error = np.einsum("cnk,k->cn", np.square(quantized - weights[:, None, :]), energy)  # not @: see `calibrate`
    best = error.argmin(axis=1)[:, None]
    result: Int32 = np.take_along_axis(tried, best, axis=1)[:, 0].astype(np.int32)
    return result


def _layer_scales(weights: Floats, energy: Floats, ratio: float, bits: int, input_max: int) -> tuple[Int32, int]:
    """Multipliers and shift of one layer; `ratio` is scale out / scale in."""
    reach = float(np.abs(weights).sum(axis=1).max()) / ratio * input_max  # largest |sum| in output steps
    start = int(np.floor(np.log2(2**23 / max(reach, 2.0**-8)))) + 1
    for shift in range(min(max(start, 1), SHIFT_MAX), 0, -1):
        unit = ratio * 2.0**-shift
        multipliers = _multipliers(weights, energy, unit, bits)
        fits = int(multipliers.max()) < MULTIPLIER_MAX
        if fits and float32_exact(_round(weights, multipliers, unit, bits), multipliers, int(input_max * HEADROOM)):
            return multipliers, shift
    raise WattbitError(f"an expert's weights reach {reach:.3g} times its output scale, beyond float32; train it anew")


def calibrate(w1: Floats, w2: Floats, x: Floats, precision: Precision) -> ExpertScales:
    """Scales for weights w1 [H, D], w2 [D, H] on calibration inputs x [T, D], T >= 1.

    Products run in PyTorch: NumPy's BLAS has threads of its own, which on a busy machine cost 20 times the work.
    """
    bits = precision.weight_bits
    x_max, h_max = _input_max(precision)
    hidden_of = F.linear(torch.from_numpy(x), torch.from_numpy(w1)).relu()
    hidden = hidden_of.numpy()  # [T, H]
    output = F.linear(hidden_of, torch.from_numpy(w2)).numpy()  # [T, D]
    x_exp = _act_exponent(x, x_max - 1)
    h_exp = _act_exponent(hidden, h_max)
    y_exp = _act_exponent(output, 2 ** (OUT_BITS - 1) - 1)
    m1, shift1 = _layer_scales(w1, np.square(x).mean(axis=0), 2.0 ** (h_exp - x_exp), bits, x_max)
    m2, shift2 = _layer_scales(w2, np.square(hidden).mean(axis=0), 2.0 ** (y_exp - h_exp), bits, h_max)
    return ExpertScales(precision, m1, m2, shift1, shift2, x_exp, h_exp, y_exp)
