"""Experts at random whose outputs use the whole range, and the vectors that go through them."""

import numpy as np

from wattbit.arith import ExpertInts, Int8, forward, signed_range
from wattbit.hls.engine_class import EngineClass
from wattbit.plan import ExpertId, ExpertShape, Precision, Target

PART = "xc7z020clg400-1"
KRIA = "xck26-sfvc784-2LV-c"  # with DSP48E2
Z2 = Target("z2", "Zynq 7020", "armv7", "a9", 2, 650, 1e9, PART, 100.0, 53200, 106400, 220, 280)


def random_ints(expert: ExpertId, precision: Precision, shape: ExpertShape, seed: int = 0) -> ExpertInts:
    """An expert of uniform weights; its own multipliers and shifts put some outputs beyond every clip."""
    rng = np.random.default_rng([seed, expert.expert, precision.weight_bits, precision.act_bits])
    top = 2 ** (precision.weight_bits - 1) - 1
    w1 = rng.integers(-top, top + 1, (shape.d_hidden, shape.d_model)).astype(np.int8)
    w2 = rng.integers(-top, top + 1, (shape.d_model, shape.d_hidden)).astype(np.int8)
    m1, shift1 = _scales(rng, w1, 2 ** (precision.act_bits - 1), 2**precision.act_bits)
    m2, shift2 = _scales(rng, w2, 2**precision.act_bits, 256)
    return ExpertInts(expert, precision, w1, w2, m1, m2, shift1, shift2, -4, -4, -4)


def _scales(rng, weights: Int8, input_top: int, levels: int):
    shift = int(rng.integers(11, 17))
    typical = np.sqrt(weights.shape[1]) * np.abs(weights).mean() * input_top / 2
    factor = rng.uniform(0.5, 2, len(weights)) * levels / typical
    return np.clip(np.rint(factor * 2**shift), 1, 2**16 - 1).astype(np.int32), shift


def hard_vectors(ints: list[ExpertInts], count: int, seed: int = 0) -> tuple[np.ndarray, Int8, Int8]:
    """Sets [N], inputs [N, D] with the extremes among them, and the outputs [N, D] that arithmetic demands."""
    rng = np.random.default_rng(seed)
    lo, hi = signed_range(ints[0].precision.act_bits)
    sets = np.concatenate([np.arange(len(ints)), rng.integers(0, len(ints), count - len(ints))])
    x = rng.integers(lo, hi + 1, (count, ints[0].shape.d_model)).astype(np.int8)
    for i, e in enumerate(ints):  # the inputs that drive one hidden and so one output channel as far as they can
        x[i] = np.where(e.w1[i] > 0, hi, lo)
    x[len(ints)], x[len(ints) + 1], x[len(ints) + 2] = lo, hi, 0
    y = np.stack([forward(ints[s], x[i : i + 1])[0] for i, s in enumerate(sets)])
    return sets, x, y


def engine_class(precision: Precision, sets: int, pe1: int, simd1: int) -> EngineClass:
    experts = tuple(ExpertId(0, i) for i in range(sets))
    return EngineClass(precision, pe1, simd1, simd1, pe1, experts)
