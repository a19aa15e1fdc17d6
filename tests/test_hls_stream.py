"""Engines whose weights are streamed: images, whole designs of mixed homes, the port's rules and its use."""

import re
import shutil
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray

from tests.board_stub import StubBoard
from tests.hls_engine_support import KRIA, PART, engine_class, hard_vectors, random_ints
from wattbit.arith import ExpertInts, Int8, forward
from wattbit.board.agent.driver import Driver
from wattbit.errors import WattbitError
from wattbit.hls.accelerator import Accelerator, verilate
from wattbit.hls.compare import images_of
from wattbit.hls.engine import EngineRtl, widths, write_engine
from wattbit.hls.engine_class import EngineClass
from wattbit.hls.memory import BURST_BYTES, Part, expert_image, image_beats, image_parts, image_stride
from wattbit.hls.shell import build_shell
from wattbit.plan import ExpertShape, Precision
from wattbit.shell import STREAM_BYTES, Register, engine_cycles, interleaved, packets

DIGEST = "00112233445566aa"
SHAPE = ExpertShape(24, 32)  # 24: rows of requant words that the words do not fill
needs_host = pytest.mark.skipif(shutil.which("x86_64-linux-gnu-g++") is None, reason="no x86_64-linux-gnu-g++")


@dataclass(frozen=True)
class Design:
    """A shell in simulation with its engines and their experts."""

    library: Path
    engines: list[EngineRtl]
    ints: list[list[ExpertInts]]

    def open(self, stall_seed: int = 0, latency: int | None = None) -> Accelerator:
        accelerator = Accelerator(self.library, stall_seed, images=images_of(self.engines))
        if latency is not None:
            accelerator.set_latency(latency, latency)
        return accelerator

    def expected(self, engine: NDArray[np.int64], sets: NDArray[np.int64], x: Int8) -> Int8:
        rows = zip(engine, sets, x, strict=True)
        return np.concatenate([forward(self.ints[e][s], row[None]) for e, s, row in rows])


def inputs(design: Design, engine: NDArray[np.int64], seed: int = 0) -> Int8:
    """Inputs [N, D] for engines [N], each within the engine's activation width."""
    rng = np.random.default_rng(seed)
    top = np.array([2 ** (e.spec.precision.act_bits - 1) for e in design.engines])[engine]
    return (rng.integers(-128, 128, (len(engine), SHAPE.d_model)) * top[:, None] // 128).astype(np.int8)


def as_given(accelerator: Accelerator, engine: NDArray[np.int64], sets: NDArray[np.int64], x: Int8) -> tuple[Int8, int]:
    """A launch of packets in this very order."""
    words = packets(engine, sets, x)
    accelerator.memory[: words.size] = words.ravel()
    cycles = accelerator.launch(accelerator.BASE, accelerator.BASE + words.size, len(x))
    return accelerator.memory[words.size : words.size + x.size].copy().view(np.int8).reshape(x.shape), cycles


def build(specs: list[EngineClass], parts: list[str], shape: ExpertShape, out: Path) -> Design:
    ints = [[random_ints(expert, spec.precision, shape) for expert in spec.experts] for spec in specs]
    engines = [write_engine(i, s, out / "engines", part) for i, s, part in zip(ints, specs, parts, strict=True)]
    shell = build_shell(engines, shape.d_model, DIGEST, out / "shell")
    assert shell.streams == sum(spec.streamed for spec in specs)
    return Design(verilate(shell, out, "x86_64"), engines, ints)


@pytest.fixture(scope="module")
def design(tmp_path_factory: pytest.TempPathFactory) -> Design:
    """Four engines: streamed, on the chip, and two more streamed; rows of 1 to 16 words."""
    specs = [
        replace(engine_class(Precision(8, 8), 5, 4, 4), home="stream"),
        engine_class(Precision(3, 8), 3, 2, 4),
        replace(engine_class(Precision(7, 8), 4, 1, 4), home="stream"),
        replace(engine_class(Precision(2, 4), 6, 4, 2), home="stream"),
    ]
    return build(specs, [PART, PART, PART, KRIA], SHAPE, tmp_path_factory.mktemp("design"))


def fields(image: int, part: Part, bits: int) -> list[int]:
    """The fields of `bits` bits in a part at the low end of an image, without the padding."""
    return [image >> at & (1 << bits) - 1 for at in range(0, part.depth * part.width, bits)]


@pytest.mark.parametrize("weight_bits", range(2, 9))
@pytest.mark.parametrize(("pe", "simd"), [(1, 1), (2, 4), (4, 1), (8, 8)])
def test_an_image_holds_the_experts_integers(weight_bits: int, pe: int, simd: int) -> None:
    spec = engine_class(Precision(weight_bits), 3, pe, simd)
    ints = [random_ints(expert, spec.precision, SHAPE) for expert in spec.experts]
    formats = tuple(width.requant_format(16) for width in widths(ints, spec, 1))
    lanes = (formats[0].bits, formats[1].bits)
    for expert in ints:
        data = expert_image(expert, spec, formats)
        assert len(data) == 8 * image_beats(spec, SHAPE, lanes) <= image_stride(len(data) // 8)
        image = int.from_bytes(data, "little")
        parts = image_parts(spec, SHAPE, lanes)
        for n, (weights, multiplier, shift) in enumerate(
            ((expert.w1, expert.m1, expert.shift1), (expert.w2, expert.m2, expert.shift2))
        ):
            requant, weight = parts[2 * n : 2 * n + 2]
            form, (p, s) = formats[n], ((spec.pe1, spec.simd1), (spec.pe2, spec.simd2))[n]
            words = fields(image, requant, form.streamed_bits)
            assert words == [int(m) | (shift - form.shift_min) << 16 for m in multiplier]
            image >>= 64 * requant.beats
            words = fields(image, weight, weight_bits)
            image >>= 64 * weight.beats
            rows, columns = weights.shape
            order = [
                (r * p + i, c * s + k)
                for r in range(rows // p)
                for c in range(columns // s)
                for i in range(p)
                for k in range(s)
            ]
            assert words == [int(weights[at]) % 2**weight_bits for at in order]
        assert image == 0


@pytest.mark.parametrize("weight_bits", range(2, 9))
def test_weights_are_dense_in_an_image(weight_bits: int) -> None:
    """ceil(bits / 64) beats a matrix, at any parallelism."""
    shape = ExpertShape(64, 128)
    for pe in (1, 2, 4, 8):
        for simd in (1, 2, 4, 8):
            parts = image_parts(engine_class(Precision(weight_bits), 3, pe, simd), shape, (18, 18))
            assert parts[1].beats == parts[3].beats == 64 * 128 * weight_bits // 64
            assert sum(part.beats for part in parts[::2]) == (64 + 128) * 20 // 64  # 18 bits in lanes of 20


@needs_host
@pytest.mark.parametrize("stall_seed", [0, 1, 2026])
def test_designs_of_mixed_homes_are_exact(design: Design, stall_seed: int) -> None:
    """Extremes and random vectors for all engines at once, in three launches one after the other."""
    with design.open(stall_seed) as accelerator:
        for seed in range(3):
            vectors = [hard_vectors(ints, 20, seed) for ints in design.ints]
            sets, x, y = (np.concatenate(column) for column in zip(*vectors, strict=True))
            engine = np.repeat(np.arange(len(design.engines)), 20)
            shuffled = np.random.default_rng(seed).permutation(len(x))
            got, _ = accelerator.run(engine[shuffled], sets[shuffled], x[shuffled])
            np.testing.assert_array_equal(got, y[shuffled])


ORDERS = {
    "alternating": lambda sets: np.resize([0, 1], 40),
    "each another": lambda sets: np.arange(40) % sets,
    "backwards": lambda sets: np.arange(40)[::-1] % sets,
    "runs": lambda sets: np.arange(40) // 9 % sets,
    "one": lambda sets: np.full(40, sets - 1),
    "there and back": lambda sets: np.resize([0, 1, 2, 1], 40),
    "random": lambda sets: np.random.default_rng(5).integers(0, sets, 40),
}


@needs_host
@pytest.mark.parametrize("stall_seed", [0, 7])
@pytest.mark.parametrize("order", ORDERS)
def test_every_order_of_experts_is_exact(design: Design, order: str, stall_seed: int) -> None:
    """The engines take turns, each with its experts in the order."""
    count = len(design.engines)
    engine = np.arange(40 * count) % count
    sets = np.empty_like(engine)
    for i, one in enumerate(design.engines):
        sets[engine == i] = ORDERS[order](len(one.spec.experts))
    x = inputs(design, engine)
    with design.open(stall_seed) as accelerator:
        for _ in range(2):  # the last expert of a launch may be the first of the next
            np.testing.assert_array_equal(as_given(accelerator, engine, sets, x)[0], design.expected(engine, sets, x))


@needs_host
@pytest.mark.parametrize("latency", [0, 1, 30, 200])
def test_latency_changes_nothing_but_cycles(design: Design, latency: int) -> None:
    engine = np.arange(80) % len(design.engines)
    sets = np.arange(80) // 7 % 3
    x = inputs(design, engine)
    with design.open(latency=latency) as accelerator:
        np.testing.assert_array_equal(accelerator.run(engine, sets, x)[0], design.expected(engine, sets, x))


@needs_host
@pytest.mark.parametrize("latency", [1, 30, 60])
def test_the_port_is_used_where_it_is_the_limit(design: Design, latency: int) -> None:
    """An expert for each vector, 40 loads: nine beats in ten cycles from start to done; no more than one a cycle."""
    sets = np.arange(40) % 5
    engine = np.zeros(40, np.int64)
    assert design.engines[0].beats > design.engines[0].spec.cycles_per_vector(SHAPE)
    with design.open(latency=latency) as accelerator:
        _, cycles = as_given(accelerator, engine, sets, inputs(design, engine))
    assert 0.9 <= 40 * design.engines[0].beats / cycles < 1


@needs_host
def test_vectors_of_one_expert_load_it_once(design: Design) -> None:
    """100 vectors of one expert take the datapath's cycles, as on the chip; of two in turn, a load each."""
    one, two = np.zeros(100, np.int64), np.arange(100) % 2
    engine = np.zeros(100, np.int64)
    with design.open() as accelerator:
        x = inputs(design, engine)
        same = as_given(accelerator, engine, one, x)[1]
        turns = as_given(accelerator, engine, two, x)[1]
        assert accelerator.run(engine, two, x)[1] < same + 100  # sorted by the host: two loads, one of them hidden
    spec, beats = design.engines[0].spec, design.engines[0].beats
    assert same < 100 * spec.cycles_per_vector(SHAPE) + beats + 150
    assert turns > 100 * beats


@needs_host
@pytest.mark.parametrize("stall_seed", [0, 3])
def test_a_bad_expert_costs_its_own_result_only(design: Design, stall_seed: int) -> None:
    engine = np.arange(30) % len(design.engines)
    sets = np.arange(30) % 3
    x = inputs(design, engine)
    want = design.expected(engine, sets, x)
    with design.open(stall_seed) as accelerator:
        words = packets(engine, np.where(np.arange(30) % 7 == 2, 6, sets), x)  # set 6: beyond all engines'
        accelerator.memory[: words.size] = words.ravel()
        accelerator.memory[words.size : words.size + x.size] = 0x5A
        with pytest.raises(WattbitError, match="a packet names a set that its engine does not have"):
            accelerator.launch(accelerator.BASE, accelerator.BASE + words.size, 30)
        want[np.arange(30) % 7 == 2] = 0x5A
        got = accelerator.memory[words.size : words.size + x.size].view(np.int8).reshape(x.shape)
        np.testing.assert_array_equal(got, want)
        np.testing.assert_array_equal(accelerator.run(engine, sets, x)[0], design.expected(engine, sets, x))


@needs_host
@pytest.mark.parametrize("stall_seed", [0, 4])
def test_weights_outside_the_memory_are_an_error_of_the_launch(design: Design, stall_seed: int) -> None:
    engine = np.arange(12) % len(design.engines)
    x = inputs(design, engine)
    with design.open(stall_seed) as accelerator:
        address = Register.WEIGHTS_ADDR + STREAM_BYTES
        right = accelerator.read(address)
        accelerator.write(address, 0xF000_0000)
        with pytest.raises(WattbitError, match="the memory answered with an AXI error"):
            accelerator.run(engine, 0 * engine, x)
        accelerator.write(address, right)
        np.testing.assert_array_equal(accelerator.run(engine, 0 * engine, x)[0], design.expected(engine, 0 * engine, x))


@needs_host
@pytest.mark.parametrize("offset", [0, 8, 64, 120, 4088])
def test_images_may_lie_anywhere(design: Design, offset: int) -> None:
    """The memory model refuses a burst across 4 KB; here images straddle the line in every way."""
    engine, sets = np.zeros(15, np.int64), np.arange(15) % 5
    x = inputs(design, engine)
    with design.open(5) as accelerator:
        content = np.fromfile(images_of(design.engines)[0], np.uint8)
        at = (1 << 20) + offset
        accelerator.memory[at : at + content.size] = content
        accelerator.write(Register.WEIGHTS_ADDR, accelerator.BASE + at)
        np.testing.assert_array_equal(accelerator.run(engine, sets, x)[0], design.expected(engine, sets, x))


@needs_host
def test_registers_and_ports_of_the_streams(design: Design) -> None:
    streamed = [engine for engine in design.engines if engine.spec.streamed]
    with design.open() as accelerator:
        assert accelerator.read(Register.STREAMS) == len(streamed) == 3
        for i, engine in enumerate(streamed):
            assert accelerator.read(Register.WEIGHTS_STRIDE + STREAM_BYTES * i) == engine.stride
            assert engine.stride % BURST_BYTES == 0
            accelerator.write(Register.WEIGHTS_STRIDE + STREAM_BYTES * i, 1)
            accelerator.write(Register.WEIGHTS_ADDR + STREAM_BYTES * i, 0xFFFFFFFF)
            assert accelerator.read(Register.WEIGHTS_STRIDE + STREAM_BYTES * i) == engine.stride
            assert accelerator.read(Register.WEIGHTS_ADDR + STREAM_BYTES * i) == 0xFFFFFFF8
        assert accelerator.read(Register.WEIGHTS_ADDR + STREAM_BYTES * len(streamed)) == 0
        times = [[e.spec.cycles_per_vector(SHAPE), e.beats] for e in design.engines]
        np.testing.assert_array_equal(engine_cycles(accelerator.read, 4), times)
    top = (design.library.parents[1] / "shell" / "wattbit_shell.v").read_text()
    ports = set(re.findall(r"m_axi_w(\d)_(\w+)", top))
    assert {number for number, _ in ports} == {"0", "1", "2"}
    assert {name[0] for _, name in ports} == {"a", "r"} and not any(name.startswith("aw") for _, name in ports)


@needs_host
def test_the_driver_loads_the_images(design: Design) -> None:
    board = StubBoard(design.library)
    driver = Driver(board, board.allocate, DIGEST, 60.0, images_of(design.engines))
    for seed in range(2):
        engine = np.random.default_rng(seed).integers(0, len(design.engines), 50)
        sets = np.random.default_rng(seed).integers(0, 3, 50)
        x = inputs(design, engine, seed)
        np.testing.assert_array_equal(driver.run(engine, sets, x)[0], design.expected(engine, sets, x))
        experts = {(int(e), int(s)) for e, s in zip(engine, sets, strict=True)}
        assert driver.streamed_bits(engine, sets) == 64 * sum(design.engines[e].beats for e, _ in experts) > 0


@needs_host
def test_images_that_are_not_the_designs_are_refused(design: Design, tmp_path: Path) -> None:
    images = images_of(design.engines)
    with pytest.raises(WattbitError, match="streams the weights of 3 engines, 0 files of images were given"):
        Accelerator(design.library)
    board = StubBoard(design.library)
    with pytest.raises(WattbitError, match="streams the weights of 3 engines, the bundle holds images for 2"):
        Driver(board, board.allocate, DIGEST, 60.0, images[:2])
    short = tmp_path / "short.images"
    short.write_bytes(images[0].read_bytes()[:-8])
    with pytest.raises(WattbitError, match=r"short\.images has \d+ bytes, not whole images of \d+"):
        Driver(board, board.allocate, DIGEST, 60.0, [short, *images[1:]])


@pytest.mark.slow
@needs_host
@pytest.mark.parametrize("act_bits", [8, 4])
@pytest.mark.parametrize("weight_bits", range(2, 9))
def test_every_width_is_exact_in_a_shell(tmp_path: Path, weight_bits: int, act_bits: int) -> None:
    """64 -> 128 -> 64: both homes side by side, the streamed one as parallel as it gets and as little."""
    precision, shape = Precision(weight_bits, act_bits), ExpertShape(64, 128)
    specs = [
        replace(engine_class(precision, 7, 8, 8), home="stream"),
        replace(engine_class(precision, 3, 4, 2), copy=1),
        replace(engine_class(precision, 4, 2, 1), home="stream", copy=2),
    ]
    design = build(specs, [PART, KRIA, KRIA], shape, tmp_path)
    vectors = [hard_vectors(ints, 60, 1) for ints in design.ints]
    sets, x, y = (np.concatenate(column) for column in zip(*vectors, strict=True))
    engine = np.repeat(np.arange(3), 60)
    for seed in (0, 1, 2, 3):
        with design.open(seed) as accelerator:
            np.testing.assert_array_equal(accelerator.run(engine, sets, x)[0], y)


@pytest.mark.slow
@needs_host
def test_wide_experts_are_exact(tmp_path: Path) -> None:
    """256 -> 512 -> 256 and 64 -> 896 -> 64 at W8A8: sums of 25 bits, and what a DSP48E1 has not."""
    for shape, part in ((ExpertShape(256, 512), PART), (ExpertShape(64, 896), PART), (ExpertShape(64, 896), KRIA)):
        spec = replace(engine_class(Precision(8, 8), 3, 4, 4), home="stream")
        design = build([spec], [part], shape, tmp_path / f"{shape.d_model}-{part}")
        sets, x, y = hard_vectors(design.ints[0], 12)
        with design.open(1) as accelerator:
            np.testing.assert_array_equal(accelerator.run(0 * sets, sets, x)[0], y)


@needs_host
def test_packets_are_sent_when_their_engine_is_ready_for_them(design: Design) -> None:
    """Runs of one set and sets of one vector on a streamed engine, as much work elsewhere: both engines stay busy."""
    first, second = design.engines[0], design.engines[1]
    runs = np.concatenate([np.full(80, 0), np.arange(1, 5)])
    busy = 80 * first.spec.cycles_per_vector(SHAPE) + 4 * first.beats
    sets = np.concatenate([runs, np.zeros(busy // second.spec.cycles_per_vector(SHAPE), np.int64)])
    engine = np.repeat([0, 1], [len(runs), len(sets) - len(runs)])
    with design.open() as accelerator:
        x = inputs(design, engine)
        y, cycles = accelerator.run(engine, sets, x)
    np.testing.assert_array_equal(y, design.expected(engine, sets, x))
    assert cycles < 1.1 * busy


def test_the_order_keeps_each_packet_and_sorts_each_engines_by_set() -> None:
    rng = np.random.default_rng(0)
    engine, index = rng.integers(0, 3, 200), rng.integers(0, 9, 200)
    order = interleaved(engine, index, np.array([[10, 0], [10, 500]]))  # engine 2 is unknown, as in a bad packet
    assert sorted(order) == list(range(200))
    for one in range(3):
        mine = order[engine[order] == one]
        assert (np.diff(index[mine]) >= 0).all() and (np.diff(mine)[np.diff(index[mine]) == 0] > 0).all()


def test_homes_are_checked_and_kept() -> None:
    spec = replace(engine_class(Precision(4), 2, 4, 4), home="stream")
    assert EngineClass.from_json(spec.to_json()) == spec and spec.streamed
    old = {key: value for key, value in spec.to_json().items() if key != "home"}
    assert EngineClass.from_json(old) == replace(spec, home="chip")
    with pytest.raises(WattbitError, match="must be one of chip, stream, not flash"):
        EngineClass.from_json(spec.to_json() | {"home": "flash"})


@needs_host
def test_sets_beyond_a_byte(tmp_path: Path) -> None:
    """300 experts on an engine of each home: no index stands for another."""
    specs = [engine_class(Precision(2), 300, 1, 8), replace(engine_class(Precision(3), 300, 1, 8), home="stream")]
    large = build(specs, [PART, PART], ExpertShape(8, 8), tmp_path)
    sets = np.array([0, 255, 256, 299, 44, 1, 257])
    engine = np.repeat([0, 1], len(sets))
    x = np.random.default_rng(0).integers(-128, 128, (2 * len(sets), 8)).astype(np.int8)
    with large.open() as accelerator:
        got, _ = accelerator.run(engine, np.tile(sets, 2), x)
    np.testing.assert_array_equal(got, large.expected(engine, np.tile(sets, 2), x))
