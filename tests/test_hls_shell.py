"""The AXI shell in simulation, on stub engines: every vector comes back, in its place, and every launch ends."""

import shutil
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray

from tests.hls_shell_support import SETS, D, expected, stubs
from wattbit.errors import WattbitError
from wattbit.hls.accelerator import Accelerator, verilate
from wattbit.hls.shell import build_shell
from wattbit.shell import Register

pytestmark = pytest.mark.skipif(shutil.which("x86_64-linux-gnu-g++") is None, reason="no x86_64-linux-gnu-g++")

DIGEST = "00112233445566aa"
BASE = Accelerator.BASE
Vectors = tuple[NDArray[np.int64], NDArray[np.int64], NDArray[np.int8]]


@pytest.fixture(scope="session")
def library(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("shell")
    return verilate(build_shell(stubs(out / "engines"), D, DIGEST, out / "shell"), out, "x86_64")


@pytest.fixture
def accelerator(library: Path) -> Iterator[Accelerator]:
    with Accelerator(library) as opened:
        yield opened


def vectors(count: int, seed: int = 0) -> Vectors:
    rng = np.random.default_rng(seed)
    x = rng.integers(-128, 128, (count, D)).astype(np.int8)
    return rng.integers(0, 3, count), rng.integers(0, SETS, count), x


def put(
    accelerator: Accelerator, at: int, engine: NDArray[np.int64], sets: NDArray[np.int64], x: NDArray[np.int8]
) -> None:
    """Write packets at offset `at` of the memory."""
    packets = np.zeros((len(x), 8 + D), np.uint8)
    packets[:, 0], packets[:, 1], packets[:, 2], packets[:, 8:] = engine, sets & 255, sets >> 8, x.view(np.uint8)
    accelerator.memory[at : at + packets.size] = packets.ravel()


def results(accelerator: Accelerator, at: int, count: int) -> NDArray[np.int8]:
    return accelerator.memory[at : at + count * D].copy().view(np.int8).reshape(count, D)


def start(accelerator: Accelerator, in_addr: int, out_addr: int, count: int) -> None:
    for register, value in ((Register.IN_ADDR, in_addr), (Register.OUT_ADDR, out_addr), (Register.COUNT, count)):
        accelerator.write(register, value)
    accelerator.write(Register.CTRL, 1)


@pytest.mark.parametrize("stall_seed", [0, 1, 2026])
@pytest.mark.parametrize("count", [1, 2, 9, 200])
def test_every_result_is_exact_and_in_its_place(library: Path, count: int, stall_seed: int) -> None:
    with Accelerator(library, stall_seed) as accelerator:
        for seed in range(3):  # launches one after the other
            engine, sets, x = vectors(count, seed)
            y, cycles = accelerator.run(engine, sets, x)
            np.testing.assert_array_equal(y, expected(engine, sets, x))
            assert cycles >= 9 * count  # a packet is nine words on the port


def test_a_seed_repeats_its_stalls_and_stalls_cost_cycles(library: Path) -> None:
    def cycles(seed: int) -> int:
        with Accelerator(library, seed) as accelerator:
            return accelerator.run(*vectors(40))[1]

    assert cycles(7) == cycles(7)
    assert cycles(7) != cycles(8)
    assert cycles(7) > cycles(0)


def test_two_accelerators_at_once_do_not_mix(library: Path) -> None:
    with Accelerator(library) as one, Accelerator(library, 5) as other:
        first, second = vectors(30, 1), vectors(30, 2)
        np.testing.assert_array_equal(one.run(*first)[0], expected(*first))
        np.testing.assert_array_equal(other.run(*second)[0], expected(*second))
        np.testing.assert_array_equal(one.run(*second)[0], expected(*second))


@pytest.mark.parametrize("latency", [0, 1, 200])
def test_memory_latency_changes_cycles_and_nothing_else(accelerator: Accelerator, latency: int) -> None:
    accelerator.set_latency(latency, latency)
    engine, sets, x = vectors(60)
    np.testing.assert_array_equal(accelerator.run(engine, sets, x)[0], expected(engine, sets, x))


def test_a_fast_engine_is_fed_ten_cycles_a_vector(accelerator: Accelerator) -> None:
    _, sets, x = vectors(200)
    fast = np.zeros(200, np.int64)
    few = accelerator.run(fast[:100], sets[:100], x[:100])[1]
    many = accelerator.run(fast, sets, x)[1]
    assert (many - few) / 100 <= 16 + 1  # what the engine itself takes: 8 beats in, 8 out
    accelerator.set_latency(100, 50)
    slow = accelerator.run(fast, sets, x)[1] - accelerator.run(fast[:100], sets[:100], x[:100])[1]
    assert slow / 100 <= 24  # a slow memory still feeds an engine of 128 cycles a vector five times over


def test_engines_work_in_parallel(accelerator: Accelerator) -> None:
    _, sets, x = vectors(120)
    one = accelerator.run(np.full(40, 2), sets[:40], x[:40])[1]
    mixed = accelerator.run(np.resize([0, 1, 2], 120), sets, x)[1]  # the same 40 for the slow engine, 80 for the others
    assert mixed < one * 1.02


def test_a_result_that_comes_slowly_does_not_hold_the_port(accelerator: Accelerator) -> None:
    _, sets, x = vectors(200)

    def cycles(engine: NDArray[np.int64]) -> int:
        put(accelerator, 0, engine, sets, x)  # in this very order, the slow ones first in each forty
        return accelerator.launch(Accelerator.BASE, Accelerator.BASE + (1 << 16), 200)

    fast = cycles(np.zeros(200, np.int64))
    mixed = cycles(np.where(np.arange(200) % 40 == 0, 2, 0))
    assert mixed < fast * 1.02


def test_a_burst_for_one_engine_does_not_idle_the_others(accelerator: Accelerator) -> None:
    engine, (_, sets, x) = np.repeat([2, 0, 1], 40), vectors(120)
    burst = accelerator.run(engine, sets, x)[1]
    spread = accelerator.run(np.resize([2, 0, 1], 120), sets, x)[1]
    assert burst < spread * 1.05


def test_no_packets_end_at_once(accelerator: Accelerator) -> None:
    before = accelerator.memory.copy()
    assert accelerator.launch(BASE, BASE, 0) < 10
    np.testing.assert_array_equal(accelerator.memory, before)


@pytest.mark.parametrize("stall_seed", [0, 3])
@pytest.mark.parametrize(
    ("column", "value", "code"),
    [("engine", 3, 1), ("engine", 255, 1), ("set", SETS, 3), ("set", 255, 3), ("set", 256, 3)],
)
def test_a_bad_header_costs_its_own_result_only(
    library: Path, column: str, value: int, code: int, stall_seed: int
) -> None:
    engine, sets, x = vectors(20)
    want = expected(engine, sets, x)
    bad = [0, 7, 8, 19]
    (engine if column == "engine" else sets)[bad] = value
    with Accelerator(library, stall_seed) as accelerator:
        put(accelerator, 0, engine, sets, x)
        accelerator.memory[8192 : 8192 + 20 * D] = 0x5A
        want[bad] = 0x5A
        start(accelerator, BASE, BASE + 8192, 20)
        assert accelerator.wait(100_000)
        assert accelerator.read(Register.ERROR) == code
        np.testing.assert_array_equal(results(accelerator, 8192, 20), want)
        with pytest.raises(WattbitError, match="a packet names"):
            accelerator.launch(BASE, BASE + 8192, 20)
        good = vectors(5)
        np.testing.assert_array_equal(accelerator.run(*good)[0], expected(*good))  # and the next launch is clean


@pytest.mark.parametrize("stall_seed", [0, 4])
@pytest.mark.parametrize(("in_addr", "out_addr"), [(BASE - 4096, BASE), (BASE, 0xF000_0000), (0x0, 0x0)])
def test_a_memory_error_ends_the_launch(library: Path, in_addr: int, out_addr: int, stall_seed: int) -> None:
    with Accelerator(library, stall_seed) as accelerator:
        put(accelerator, 0, *vectors(10))
        start(accelerator, in_addr, out_addr, 10)
        assert accelerator.wait(100_000)
        assert accelerator.read(Register.ERROR) == 2
        good = vectors(5)
        np.testing.assert_array_equal(accelerator.run(*good)[0], expected(*good))


@pytest.mark.parametrize("stall_seed", [0, 9])
@pytest.mark.parametrize("before", [8, 24, 64, 72, 120, 4088])
def test_bursts_split_at_4_kb(library: Path, before: int, stall_seed: int) -> None:
    """The memory model refuses a burst across 4 KB; here packets and results straddle the line in every way."""
    engine, sets, x = vectors(70, before)
    at, to = 8192 - before, 65536 - 2 * before
    with Accelerator(library, stall_seed) as accelerator:
        put(accelerator, at, engine, sets, x)
        accelerator.memory[to - 8 : to] = accelerator.memory[to + 70 * D : to + 70 * D + 8] = 0xA5
        accelerator.launch(BASE + at, BASE + to, 70)
        np.testing.assert_array_equal(results(accelerator, to, 70), expected(engine, sets, x))
        assert (accelerator.memory[to - 8 : to] == 0xA5).all()
        assert (accelerator.memory[to + 70 * D : to + 70 * D + 8] == 0xA5).all()


def test_register_map(accelerator: Accelerator) -> None:
    assert accelerator.read(Register.ID) == 0x57423031
    assert accelerator.read(Register.DIGEST) == 0x445566AA
    assert accelerator.read(Register.D_MODEL) == D
    assert accelerator.read(Register.ENGINES) == 3
    assert accelerator.read(Register.CTRL) == 0b100  # idle
    for register, written, read in (
        (Register.COUNT, 0xFFFFFFFF, 0x000FFFFF),
        (Register.IN_ADDR, 0x12345677, 0x12345670),
        (Register.OUT_ADDR, 0xFFFFFFFF, 0xFFFFFFF8),
        (Register.ID, 0, 0x57423031),
        (Register.ERROR, 3, 0),
        (0x100, 1, 0),
    ):
        accelerator.write(register, written)
        assert accelerator.read(register) == read
    assert not accelerator.wait(10)


def test_done_stays_until_cleared_or_started(accelerator: Accelerator) -> None:
    put(accelerator, 0, *vectors(20))
    start(accelerator, BASE, BASE + 8192, 20)
    assert accelerator.read(Register.CTRL) == 0b000  # busy
    accelerator.write(Register.COUNT, 1)
    accelerator.write(Register.CTRL, 1)  # ignored while busy
    assert accelerator.wait(100_000)
    assert accelerator.read(Register.CTRL) == 0b110  # done and idle
    np.testing.assert_array_equal(results(accelerator, 8192, 20), expected(*vectors(20)))
    cycles = accelerator.read(Register.CYCLES_LO)
    assert accelerator.wait(0)
    accelerator.write(Register.CTRL, 2)
    assert accelerator.read(Register.CTRL) == 0b100
    assert not accelerator.wait(100)
    assert accelerator.read(Register.CYCLES_LO) == cycles  # of the last launch, until the next
    accelerator.write(Register.COUNT, 20)
    accelerator.write(Register.CTRL, 1)
    assert accelerator.wait(100_000)
    start(accelerator, BASE, BASE + 8192, 20)
    assert accelerator.read(Register.CTRL) == 0b000  # start cleared done


def test_the_cycle_counter_is_the_time_from_start_to_done(accelerator: Accelerator) -> None:
    put(accelerator, 0, *vectors(50))
    start(accelerator, BASE, BASE + 8192, 50)
    before = accelerator.cycles
    assert accelerator.wait(1_000_000)
    passed = accelerator.cycles - before
    counted = accelerator.read(Register.CYCLES_HI) << 32 | accelerator.read(Register.CYCLES_LO)
    assert abs(counted - passed) <= 3


def test_run_refuses_what_does_not_fit(library: Path, accelerator: Accelerator) -> None:
    engine, sets, x = vectors(4)
    for arguments, message in (
        ((engine, sets, x[:, :32]), "the design takes vectors of 64, not 32"),
        ((engine, sets, x.astype(np.int16)), "not int16"),
        ((engine[:3], sets, x), "an engine and a set each"),
        ((engine, sets - 9, x), "set must be below 65536, not -"),
    ):
        with pytest.raises(WattbitError, match=message):
            accelerator.run(*arguments)
    with (
        Accelerator(library, memory_bytes=1 << 12) as small,
        pytest.raises(WattbitError, match="100 vectors are too many for one launch"),
    ):
        small.run(*vectors(100))
    with pytest.raises(WattbitError, match="did not end within 10 cycles"):
        accelerator.run(engine, sets, x, max_cycles=10)


def test_a_library_of_another_machine_is_refused(tmp_path: Path) -> None:
    (tmp_path / "foreign.so").write_bytes(b"\x7fELF")
    with pytest.raises(WattbitError, match=r"foreign\.so cannot be loaded"):
        Accelerator(tmp_path / "foreign.so")
