"""The deployed arithmetic, defined once, on integers. NumPy only, so that it also runs on the board.

An expert is y = requant2(W2 . requant1(W1 . x)) with

    requant(acc) = clip((acc * multiplier + 2^(shift-1)) >> shift, lo, hi)          >> is floor division by 2^shift

which is what finn-rtllib's `requant_decoupled` computes: int32 sums, one multiplier a channel, one shift a layer,
ties upwards. x and y are signed, the hidden activations unsigned (their clip at 0 is the ReLU).

In real numbers the input scale is 2^x_exp, the output scale 2^y_exp and the hidden scale 2^h_exp; the weight scale of
channel c is multiplier[c] * 2^-shift * (scale out / scale in). PyTorch and ONNX compute that in float32, exactly:

1. `float32_exact` bounds every partial sum: 2 * sum_k |w[c, k]| * max|x| * multiplier[c] + 1 < 2^24, so that no
   float32 operation rounds, in whatever order it sums.
2. The layer adds a bias of half a product unit, 2^-(shift+1) * scale out. It never moves a result of `requant`, and
   it makes ties impossible, so that round-half-even (Brevitas, QONNX) and round-half-up (the RTL) are the same.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Any
from zipfile import BadZipFile

import numpy as np
from numpy.typing import NDArray

from wattbit.errors import WattbitError
from wattbit.files import atomic
from wattbit.plan import ExpertId, ExpertShape, Precision

OUT_BITS = 8
MULTIPLIER_MAX = 2**16 - 1  # an 18-bit signed DSP operand holds it

Int8 = NDArray[np.int8]
Int32 = NDArray[np.int32]
Int64 = NDArray[np.int64]


@dataclass(frozen=True, eq=False)
class ExpertInts:
    """One expert as the hardware sees it.

    w1 [H, D] and w2 [D, H]: narrow-range signed weights, |w| <= 2^(weight_bits-1) - 1.
    m1 [H] and m2 [D]: multipliers, 1..MULTIPLIER_MAX. shift1, shift2: 1..31.
    x_exp, h_exp, y_exp: the scales' exponents of two.
    """

    expert: ExpertId
    precision: Precision
    w1: Int8
    w2: Int8
    m1: Int32
    m2: Int32
    shift1: int
    shift2: int
    x_exp: int
    h_exp: int
    y_exp: int

    def __post_init__(self) -> None:
        hidden, model = self.w1.shape
        if self.w2.shape != (model, hidden) or self.m1.shape != (hidden,) or self.m2.shape != (model,):
            raise WattbitError(f"{self.expert}: shapes {self.w1.shape}, {self.w2.shape} do not form an MLP")
        top = 2 ** (self.precision.weight_bits - 1) - 1
        for name, weights in (("w1", self.w1), ("w2", self.w2)):
            if np.abs(weights.astype(np.int32)).max(initial=0) > top:
                raise WattbitError(f"{self.expert}: {name} leaves the narrow range -{top}..{top} of {self.precision}")
        for name, multiplier, shift in (("1", self.m1, self.shift1), ("2", self.m2, self.shift2)):
            if multiplier.min() < 1 or multiplier.max() > MULTIPLIER_MAX or not 1 <= shift <= 31:
                raise WattbitError(f"{self.expert}: requant {name} has a multiplier or shift out of range")

    @property
    def shape(self) -> ExpertShape:
        hidden, model = self.w1.shape
        return ExpertShape(model, hidden)

    def save(self, path: Path) -> None:
        with atomic(path) as temporary, temporary.open("wb") as stream:
            np.savez(
                stream,
                header=np.array(
                    [
                        self.expert.layer,
                        self.expert.expert,
                        self.precision.weight_bits,
                        self.precision.act_bits,
                        self.shift1,
                        self.shift2,
                        self.x_exp,
                        self.h_exp,
                        self.y_exp,
                    ],
                    dtype=np.int32,
                ),
                w1=self.w1,
                w2=self.w2,
                m1=self.m1,
                m2=self.m2,
            )

    @classmethod
    def load(cls, path: Path) -> "ExpertInts":
        try:
            with np.load(path, allow_pickle=False) as archive:
                layer, expert, weight_bits, act_bits, *rest = (int(v) for v in archive["header"])
                arrays = [archive[name] for name in ("w1", "w2", "m1", "m2")]
        except FileNotFoundError:
            raise WattbitError(f"{path} does not exist; run `wattbit export`") from None
        except (ValueError, KeyError, OSError, EOFError, BadZipFile) as error:
            raise WattbitError(f"{path} is not an expert's integers ({error}); run `wattbit export` again") from None
        return cls(ExpertId(layer, expert), Precision(weight_bits, act_bits), *arrays, *rest)


def load_vectors(path: Path) -> dict[str, NDArray[Any]]:
    """The routed vectors of an export: layer, expert [N]; x, y [N, D] int8. WattbitError if there are none."""
    try:
        with np.load(path, allow_pickle=False) as archive:
            return {name: archive[name] for name in ("layer", "expert", "x", "y")}
    except (ValueError, KeyError, OSError, EOFError, BadZipFile) as error:
        raise WattbitError(f"{path} holds no expected outputs ({error}); run `wattbit export` again") from None


def requant(acc: Int64, multiplier: Int32, shift: int, lo: int, hi: int) -> Int64:
    """Scale int32 sums [..., C] by multiplier[C] * 2^-shift, ties upwards, and clip to lo..hi."""
    product = acc.astype(np.int64) * multiplier.astype(np.int64) + (1 << (shift - 1))
    result: Int64 = np.clip(product >> shift, lo, hi)
    return result


def signed_range(bits: int) -> tuple[int, int]:
    return -(2 ** (bits - 1)), 2 ** (bits - 1) - 1


def quantize_input(x: NDArray[np.float32], x_exp: int, act_bits: int) -> Int8:
    """Round real activations to act_bits signed integers of scale 2^x_exp, ties to even (as Brevitas and QONNX)."""
    result: Int8 = np.clip(np.rint(x * np.float32(2.0**-x_exp)), *signed_range(act_bits)).astype(np.int8)
    return result


def hidden(expert: ExpertInts, x: Int8) -> Int64:
    """Hidden activations [T, H], unsigned act_bits, of quantized inputs [T, D]."""
    acc = x.astype(np.int64) @ expert.w1.astype(np.int64).T  # [T, H]
    return requant(acc, expert.m1, expert.shift1, 0, 2**expert.precision.act_bits - 1)


def forward(expert: ExpertInts, x: Int8) -> Int8:
    """Outputs [T, D], signed 8 bit, of quantized inputs [T, D]: the reference of every back end."""
    acc = hidden(expert, x) @ expert.w2.astype(np.int64).T  # [T, D]
    return requant(acc, expert.m2, expert.shift2, *signed_range(OUT_BITS)).astype(np.int8)


def float32_exact(weights: Int8, multiplier: Int32, input_max: int) -> bool:
    """Whether float32 sums w[c, k] x[k] multiplier[c] over k, plus half a unit, exactly for all |x| <= input_max."""
    bound = np.abs(weights.astype(np.int64)).sum(axis=1) * input_max * multiplier.astype(np.int64)
    return bool(2 * int(bound.max(initial=0)) + 1 < 2**24)
