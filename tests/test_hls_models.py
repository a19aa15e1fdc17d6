"""The models behind the planner: fits are what their data gives, cycles follow the RTL, batches the frequencies."""

from dataclasses import replace

import numpy as np
import pytest

from wattbit.errors import WattbitError
from wattbit.hls.calibration import fit, load
from wattbit.hls.cycles import Port, Timing, launch
from wattbit.hls.engine_class import EngineClass
from wattbit.hls.resources import FF_FIT, LUT_FIT, Scales, shell
from wattbit.hls.traffic import traffic
from wattbit.plan import ExpertId, ExpertShape, Precision, Workload

SHAPE = ExpertShape(64, 128)


def engine(home: str = "chip", pe: int = 8, simd: int = 8, bits: int = 8) -> EngineClass:
    ids = tuple(ExpertId(0, i) for i in range(8))
    return EngineClass(Precision(bits), pe, simd, simd, pe, ids, 0, home)  # type: ignore[arg-type]


@pytest.mark.parametrize(("resource", "coefficients"), [("lut", LUT_FIT), ("ff", FF_FIT)])
def test_coefficients_are_what_their_data_gives(resource: str, coefficients: dict[str, float]) -> None:
    points = load()
    counted = np.array([getattr(resources, resource) for _, resources in points])
    features = [layer.features() for layer, _ in points]

    def error(fitted: dict[str, float]) -> float:
        modelled = np.array([sum(value * f[name] for name, value in fitted.items()) for f in features])
        return float(np.abs(modelled / counted - 1).mean())

    assert error(coefficients) < 0.05
    assert error(coefficients) == pytest.approx(error(fit(points, tuple(coefficients), resource)), abs=1e-3)


def test_dsp_and_block_ram_are_exact_on_all_calibration_layers() -> None:
    for layer, counted in load():
        assert (layer.dsp, layer.features()["bram18"]) == (counted.dsp, counted.bram18), layer


def test_cycles_of_launches_that_were_simulated() -> None:
    """64 -> 128 -> 64: cycles that a design of three engines took, on chip, streamed, with 32 x 8 products in logic."""
    specs = (engine(), engine("stream"), replace(engine(pe=32, bits=2), products="logic"))
    timings = [Timing.of(spec, SHAPE, (7, 7)) for spec in specs]
    assert timings[1].image == (16, 1024, 8, 1024)

    def modelled(one: int, sets: list[int], port: Port | None = None) -> float:
        return launch(timings, [one] * len(sets), sets, 8, port)

    for vectors, cycles in ((1, 346), (2, 475), (4, 731), (64, 8410)):
        assert modelled(0, [0] * vectors) == pytest.approx(cycles, abs=2)
    assert modelled(1, [0]) == pytest.approx(2172, abs=2)
    assert modelled(1, [0, 1]) == pytest.approx(4244, abs=2)
    for vectors, cycles in ((1, 161), (4, 257), (64, 2176)):
        assert modelled(2, [0] * vectors) == pytest.approx(cycles, abs=2)
    assert modelled(0, [0], Port(read_latency=60, write_latency=30)) == pytest.approx(406, abs=2)


def test_fc1_waits_for_room_while_fc2_loads() -> None:
    """128 -> 64 and 64 -> 128, streamed: cycles of simulated launches of many vectors an expert."""
    wide, narrow = ExpertShape(128, 64), SHAPE
    ids = tuple(ExpertId(0, i) for i in range(8))
    launches = (
        (wide, EngineClass(Precision(8), 8, 4, 8, 8, ids, 0, "stream"), (8, 8), [24], 7794),
        (wide, EngineClass(Precision(8), 8, 4, 8, 8, ids, 0, "stream"), (8, 8), [5, 5, 5, 9], 10170),
        (wide, EngineClass(Precision(8), 8, 4, 8, 8, ids, 0, "stream"), (8, 8), [9, 9, 3, 3], 8651),
        (
            narrow,
            EngineClass(Precision(8), 2, 8, 8, 2, ids, 0, "stream", "logic"),
            (7, 7),
            [1, 1, 0, 3, 9, 9, 1, 16],
            26217,
        ),
    )
    for shape, spec, lane_bits, vectors, cycles in launches:
        sets = [expert for expert, count in enumerate(vectors) for _ in range(count)]
        timing = Timing.of(spec, shape, lane_bits)
        assert launch([timing], [0] * len(sets), sets, shape.d_model // 8) == pytest.approx(cycles, abs=4)


def test_streamed_time_falls_with_the_bits() -> None:
    times = []
    for bits in (8, 4, 2):
        spec = engine("stream", bits=bits)
        timing = Timing.of(spec, SHAPE, Scales.expected(spec.precision, SHAPE).lane_bits)
        times.append(launch([timing], [0] * 8, list(range(8)), 8))
    assert times[0] > 1.8 * times[1] > 1.8 * 1.6 * times[2]


def test_shell_grows_with_engines_and_streams() -> None:
    one, two, streamed = (
        shell(engines, SHAPE, 1) for engines in ([engine()], [engine(), engine()], [engine("stream")])
    )
    assert two.lut > one.lut and two.ff > one.ff and streamed.lut > one.lut
    assert streamed.bram18 == 4  # words ahead, and the queue of vectors that come while an expert is loaded
    assert not one.bram18 and shell([engine()], ExpertShape(256, 256), 1).bram18 == 2


@pytest.mark.parametrize("batch", [1, 32])
def test_sampled_batches_keep_the_frequencies(batch: int) -> None:
    shares = [0.4, 0.3, 0.15, 0.1, 0.05]
    load_ = Workload(10, 2, tuple((ExpertId(layer, i), s) for layer in (0, 1) for i, s in enumerate(shares)), batch)
    sampled = traffic(load_)
    assert (sampled.counts.reshape(len(sampled.counts), 2, 5).sum(axis=2) == 2 * batch).all()
    assert sampled.counts.max() <= batch  # a token takes an expert once
    assert sampled.vectors[:5] / (2 * batch) == pytest.approx(shares, abs=0.02)


def test_frequencies_that_are_no_shares_are_refused() -> None:
    with pytest.raises(WattbitError, match="layer 0 are no shares"):
        traffic(Workload(10, 1, ((ExpertId(0, 0), 0.0),)))
