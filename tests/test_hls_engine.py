"""RTL == arithmetic: every width in each home, every clip, with and without stalls, and the modelled cycles."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from tests.hls_engine_support import KRIA, PART, engine_class, hard_vectors, random_ints
from wattbit.arith import ExpertInts, forward, hidden
from wattbit.errors import WattbitError
from wattbit.hls.engine import EngineRtl, layer_widths, widths, write_engine
from wattbit.hls.engine_class import Home, Products
from wattbit.hls.memory import RequantFormat, hexadecimal, requant_fields, weight_words
from wattbit.hls.simulate import Stimulus, build_simulator, simulate
from wattbit.plan import ExpertId, ExpertShape, Precision

SMALL = ExpertShape(16, 16)
FOLDINGS = {  # PE1, SIMD1
    **{Precision(2): (4, 2), Precision(3): (1, 4), Precision(4): (2, 8), Precision(5): (2, 1), Precision(6): (1, 2)},
    **{Precision(7): (4, 1), Precision(8): (2, 4), Precision(3, 4): (2, 2), Precision(6, 4): (4, 2)},
}
VARIANTS: list[tuple[Home, Products]] = [("chip", "dsp"), ("stream", "dsp"), ("chip", "logic"), ("stream", "logic")]
PRECISIONS = list(FOLDINGS) * len(VARIANTS)
PARTS = [PART if p.weight_bits % 3 else KRIA for p in PRECISIONS]  # DSP48E1, DSP48E2
VECTORS = 24


@pytest.fixture(scope="module")
def classes() -> list[list[ExpertInts]]:
    """Three experts of every precision."""
    return [[random_ints(ExpertId(0, i), p, SMALL) for i in range(3)] for p in PRECISIONS]


@pytest.fixture(scope="module")
def engines(classes: list[list[ExpertInts]], tmp_path_factory: pytest.TempPathFactory) -> list[EngineRtl]:
    """An engine of every precision in each home, multiplying in DSP slices and in logic; each has its own name."""
    out = tmp_path_factory.mktemp("engines")
    specs = [
        replace(engine_class(p, 3, *FOLDINGS[p]), copy=copy, home=home, products=products)
        for copy, (home, products) in enumerate(VARIANTS)
        for p in FOLDINGS
    ]
    return [write_engine(*one[:2], out, one[2]) for one in zip(classes, specs, PARTS, strict=True)]


@pytest.fixture(scope="module")
def simulations(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("simulations")


@pytest.mark.parametrize("stall_seed", [0, 1, 2])
def test_every_width_is_bit_exact(
    classes: list[list[ExpertInts]], engines: list[EngineRtl], simulations: Path, stall_seed: int
) -> None:
    vectors = [hard_vectors(ints, VECTORS) for ints in classes]
    stimuli = [Stimulus(sets, x) for sets, x, _ in vectors]
    results = simulate(engines, stimuli, simulations, stall_seed)
    for engine, (_, _, expected), result in zip(engines, vectors, results, strict=True):
        assert np.array_equal(result.y, expected), engine.module
        modelled = engine.spec.cycles_per_vector(engine.shape)
        if stall_seed:
            assert result.cycles > 1.2 * VECTORS * modelled, engine.module
        elif not engine.spec.streamed:
            assert result.cycles_per_vector == modelled, engine.module
            assert result.cycles == result.latency_cycles + (VECTORS - 1) * modelled, engine.module


def test_the_vectors_reach_every_clip(classes: list[list[ExpertInts]]) -> None:
    """The vectors of the test above saturate hidden and output channels at both ends, and round negative sums."""
    for ints in classes:
        sets, x, y = hard_vectors(ints, VECTORS)
        h = np.concatenate([hidden(ints[s], x[i : i + 1]) for i, s in enumerate(sets)])
        assert h.min() == 0 and h.max() == 2 ** ints[0].precision.act_bits - 1
        assert y.min() == -128 and y.max() == 127
        assert x.min() == -(2 ** (ints[0].precision.act_bits - 1))


def test_memories_do_not_rebuild_the_simulator(
    classes: list[list[ExpertInts]], engines: list[EngineRtl], simulations: Path
) -> None:
    """Other weights of the same widths run in the same program, and give their own results."""
    program = build_simulator(engines, simulations)
    changed = [[replace(e, w1=-e.w1) for e in ints] for ints in classes]
    folder = engines[0].sources[-1].parent.parent
    again = [write_engine(ints, e.spec, folder, part) for ints, e, part in zip(changed, engines, PARTS, strict=True)]
    vectors = [hard_vectors(ints, VECTORS) for ints in changed]
    results = simulate(again, [Stimulus(sets, x) for sets, x, _ in vectors], simulations)
    assert build_simulator(again, simulations) == program
    assert all(np.array_equal(result.y, y) for result, (_, _, y) in zip(results, vectors, strict=True))


def test_extremes_of_the_scales(tmp_path: Path) -> None:
    """A class of one expert, shifts 1 and 31 in one class, multipliers 1 and 65535, hidden values all 0 or all 255."""
    shape, precision = ExpertShape(8, 8), Precision(8, 8)
    full = np.full((8, 8), 127, dtype=np.int8)
    small, large = np.full(8, 1, dtype=np.int32), np.full(8, 65535, dtype=np.int32)
    zero, one = ExpertId(0, 0), ExpertId(0, 1)
    wide = [
        ExpertInts(zero, precision, full, full, large, small, 1, 1, 0, 0, 0),
        ExpertInts(one, precision, -full, full, large, large, 31, 31, 0, 0, 0),
    ]
    alone = [replace(random_ints(zero, Precision(2, 8), shape), shift1=1, shift2=1)]
    engines = [
        write_engine(wide, engine_class(precision, 2, 2, 2), tmp_path, PART),
        write_engine(alone, engine_class(Precision(2, 8), 1, 2, 2), tmp_path, PART),
    ]
    x = np.array([[-128] * 8, [127] * 8, [1] * 8, [-1] * 8, [0] * 8] * 2, dtype=np.int8)
    sets = np.repeat([0, 1], 5)
    stimuli = [Stimulus(sets, x), Stimulus(np.zeros(10, dtype=np.int64), x)]
    for seed in (0, 1):
        first, second = simulate(engines, stimuli, tmp_path, seed)
        assert np.array_equal(first.y, np.concatenate([forward(e, x[:5]) for e in wide]))
        assert np.array_equal(second.y, forward(alone[0], x))


def test_weight_words_hold_rows_of_a_beat() -> None:
    weights = np.arange(-8, 8, dtype=np.int8).reshape(4, 4)  # [MH, MW]
    words = [int(word, 16) for word in weight_words(weights, pe=2, simd=2, bits=5)]
    assert len(words) == 4
    assert [(words[1] >> 5 * i) & 31 for i in range(4)] == [w & 31 for w in (-6, -5, -2, -1)]  # rows 0, 1; columns 2, 3


def test_requant_words_hold_shift_above_multiplier() -> None:
    form = RequantFormat(shift_min=11, multiplier_bits=4, shift_bits=1)
    fields = requant_fields(np.array([3, 5, 7, 9], dtype=np.int32), shift=12, form=form, lanes=2)
    words = hexadecimal(fields, form.bits)
    assert [int(word, 16) for word in words] == [(16 + 5) << 5 | 16 + 3, (16 + 9) << 5 | 16 + 7]


def test_accumulators_beyond_the_dsp_are_refused() -> None:
    assert layer_widths(21, [14, 16], 8, version=1).acc_bits == 21
    with pytest.raises(WattbitError, match="need 26 bits, the DSP takes 25; use fewer bits or a narrower layer"):
        layer_widths(26, [14], 8, version=1)
    assert layer_widths(26, [14], 8, version=2).acc_bits == 26


def test_wide_layers_have_the_accumulators_of_their_weights() -> None:
    """896 hidden values of 8 bits could sum to 26 bits at W8; the weights of real experts never do."""
    precision, shape = Precision(8, 8), ExpertShape(64, 896)
    spec = engine_class(precision, 1, 4, 4)
    ints = [random_ints(ExpertId(0, 0), precision, shape)]
    assert spec.accumulators(shape) == (21, 26)
    assert [w.acc_bits for w in widths(ints, spec, 2)] == [21, 26]
    assert [w.acc_bits for w in widths(ints, spec, 1)] == [21, 25]
    assert np.abs(ints[0].w2.astype(int)).sum(axis=1).max() * 255 < 2**24
    full = [replace(ints[0], w2=np.full_like(ints[0].w2, 127))]
    with pytest.raises(WattbitError, match="need 26 bits"):
        widths(full, spec, 1)


def test_wrong_experts_are_refused(tmp_path: Path) -> None:
    spec = engine_class(Precision(4, 8), 2, 4, 4)
    ints = [random_ints(ExpertId(0, i), Precision(4, 8), SMALL) for i in (1, 0)]
    with pytest.raises(WattbitError, match="engine_w4a8 expects L0E0 at w4a8, got L0E1 at w4a8"):
        write_engine(ints, spec, tmp_path, PART)
    with pytest.raises(WattbitError, match="part xc6slx9 is unknown"):
        write_engine(ints[::-1], spec, tmp_path, "xc6slx9")


@pytest.mark.slow
@pytest.mark.parametrize(("home", "products"), VARIANTS)
@pytest.mark.parametrize("act_bits", [8, 4])
def test_full_size_engines_are_bit_exact(tmp_path: Path, act_bits: int, home: Home, products: Products) -> None:
    """64 -> 128 -> 64 at full parallelism, all widths, 40 vectors."""
    shape = ExpertShape(64, 128)
    classes = [[random_ints(ExpertId(0, i), Precision(w, act_bits), shape) for i in range(5)] for w in range(2, 9)]
    specs = [replace(engine_class(ints[0].precision, 5, 8, 8), home=home, products=products) for ints in classes]
    engines = [write_engine(ints, spec, tmp_path, PART) for ints, spec in zip(classes, specs, strict=True)]
    vectors = [hard_vectors(ints, 40) for ints in classes]
    for seed in (0, 1):
        results = simulate(engines, [Stimulus(sets, x) for sets, x, _ in vectors], tmp_path, seed)
        for engine, (_, _, y), result in zip(engines, vectors, results, strict=True):
            assert np.array_equal(result.y, y), engine.module
            assert seed or home == "stream" or result.cycles_per_vector == 128
