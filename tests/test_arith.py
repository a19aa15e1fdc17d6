"""The integer arithmetic: requant is its formula, and float32 agrees wherever `float32_exact` says so."""

from fractions import Fraction
from math import floor
from pathlib import Path

import numpy as np
import pytest

from wattbit.arith import ExpertInts, float32_exact, forward, requant, signed_range
from wattbit.errors import WattbitError
from wattbit.plan import ExpertId, Precision


def random_expert(weight_bits: int, act_bits: int, seed: int = 0, d: int = 16, h: int = 24) -> ExpertInts:
    rng = np.random.default_rng(seed)
    top = 2 ** (weight_bits - 1) - 1
    return ExpertInts(
        ExpertId(0, seed),
        Precision(weight_bits, act_bits),
        rng.integers(-top, top + 1, (h, d)).astype(np.int8),
        rng.integers(-top, top + 1, (d, h)).astype(np.int8),
        rng.integers(1, 12, h).astype(np.int32),
        rng.integers(1, 12, d).astype(np.int32),
        shift1=9,
        shift2=10,
        x_exp=-5,
        h_exp=-4,
        y_exp=-6,
    )


def test_requant_is_the_rounded_product() -> None:
    rng = np.random.default_rng(0)
    acc = rng.integers(-(2**20), 2**20, (200, 3))
    multiplier = np.array([1, 37, 65535], dtype=np.int32)
    got = requant(acc, multiplier, 12, -128, 127)
    for row, results in zip(acc, got, strict=True):
        for value, scale, result in zip(row, multiplier, results, strict=True):
            exact = Fraction(int(value) * int(scale), 2**12)
            assert result == min(127, max(-128, floor(exact + Fraction(1, 2))))


def test_ties_go_upwards() -> None:
    acc = np.array([[-3, -1, 1, 3]])
    assert requant(acc, np.ones(4, np.int32), 1, -128, 127).tolist() == [[-1, 0, 1, 2]]


@pytest.mark.parametrize("weight_bits", range(2, 9))
@pytest.mark.parametrize("act_bits", [4, 8])
def test_float32_with_half_a_unit_equals_integers(weight_bits: int, act_bits: int) -> None:
    expert = random_expert(weight_bits, act_bits, seed=weight_bits)
    assert float32_exact(expert.w1, expert.m1, 2 ** (act_bits - 1))
    assert float32_exact(expert.w2, expert.m2, 2**act_bits - 1)
    lo, hi = signed_range(act_bits)
    x = np.random.default_rng(1).integers(lo, hi + 1, (300, 16)).astype(np.int8)
    scale1 = (expert.m1 * 2.0**-expert.shift1).astype(np.float32)
    scale2 = (expert.m2 * 2.0**-expert.shift2).astype(np.float32)
    first = x.astype(np.float32) @ (expert.w1.astype(np.float32) * scale1[:, None]).T
    hidden = np.clip(np.rint(first + np.float32(2.0 ** -(expert.shift1 + 1))), 0, 2**act_bits - 1)
    second = hidden @ (expert.w2.astype(np.float32) * scale2[:, None]).T
    y = np.clip(np.rint(second + np.float32(2.0 ** -(expert.shift2 + 1))), -128, 127)
    assert y.dtype == np.float32
    assert np.array_equal(y, forward(expert, x))


def test_float32_exact_refuses_sums_that_round() -> None:
    weights = np.full((1, 512), 127, dtype=np.int8)
    assert not float32_exact(weights, np.array([1], np.int32), 255)


def test_saved_expert_loads_as_itself(tmp_path: Path) -> None:
    expert = random_expert(4, 8)
    expert.save(tmp_path / "e.npz")
    loaded = ExpertInts.load(tmp_path / "e.npz")
    x = np.random.default_rng(2).integers(-128, 128, (9, 16)).astype(np.int8)
    assert np.array_equal(forward(loaded, x), forward(expert, x))
    for name in ("expert", "precision", "shift1", "shift2", "x_exp", "h_exp", "y_exp"):
        assert getattr(loaded, name) == getattr(expert, name)


def test_truncated_expert_file(tmp_path: Path) -> None:
    random_expert(4, 8).save(tmp_path / "e.npz")
    whole = (tmp_path / "e.npz").read_bytes()
    (tmp_path / "e.npz").write_bytes(whole[: len(whole) // 2])
    with pytest.raises(WattbitError, match="run `wattbit export` again"):
        ExpertInts.load(tmp_path / "e.npz")


def test_weights_outside_the_narrow_range() -> None:
    good = random_expert(4, 8)
    bad = good.w1.copy()
    bad[0, 0] = -8
    with pytest.raises(WattbitError, match=r"w1 leaves the narrow range -7\.\.7 of w4a8"):
        ExpertInts(good.expert, good.precision, bad, good.w2, good.m1, good.m2, 9, 10, 0, 0, 0)
