"""The driver of the shell, over a stub accelerator without pynq."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.board_stub import (
    CYCLES_PER_PACKET,
    DIGEST,
    D,
    ShadowBuffer,
    StubBoard,
    build_stub,
    stub_outputs,
)
from wattbit.board.agent.driver import Driver
from wattbit.errors import WattbitError
from wattbit.shell import packets

RNG = np.random.default_rng(0)


@pytest.fixture(scope="module")
def library(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return build_stub(tmp_path_factory.mktemp("stub") / "accel.so")


def driver(library: Path, timeout_s: float = 5.0) -> Driver:
    board = StubBoard(library)
    return Driver(board, board.allocate, DIGEST, timeout_s)


def inputs(n: int) -> tuple[Any, Any, Any]:
    return RNG.integers(0, 2, n), RNG.integers(0, 8, n), RNG.integers(-128, 128, (n, D)).astype(np.int8)


@pytest.mark.parametrize("n", [1, 2, 100])
def test_driver_gives_the_designs_outputs_and_cycles(library: Path, n: int) -> None:
    engine, index, x = inputs(n)
    y, cycles = driver(library).run(engine, index, x)
    assert (y == stub_outputs(engine, index, x)).all() and y.dtype == np.int8
    assert cycles == CYCLES_PER_PACKET * n


def test_driver_runs_again_and_again(library: Path) -> None:
    shell = driver(library)
    for n in (3, 1, 7):
        engine, index, x = inputs(n)
        assert (shell.run(engine, index, x)[0] == stub_outputs(engine, index, x)).all()


@pytest.mark.parametrize("forgotten", ["flush", "invalidate"])
def test_forgotten_cache_work_shows_as_wrong_data(
    library: Path, forgotten: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(ShadowBuffer, forgotten, lambda self: None)
    engine, index, x = inputs(4)
    assert (driver(library).run(engine, index, x)[0] != stub_outputs(engine, index, x)).any()


def test_driver_refuses_another_design(library: Path) -> None:
    board = StubBoard(library)
    with pytest.raises(WattbitError, match="the loaded design is 89abcdef, not 00000001 of the manifest"):
        Driver(board, board.allocate, "0" * 15 + "1", 5.0)


def test_driver_refuses_other_logic() -> None:
    class Nothing:
        def read(self, offset: int) -> int:
            return 0xFFFFFFFF

        def write(self, offset: int, value: int) -> None: ...

    with pytest.raises(WattbitError, match="no wattbit shell answers: ID is 0xffffffff"):
        Driver(Nothing(), lambda *_: None, DIGEST, 5.0)


def test_driver_names_the_shells_error(library: Path) -> None:
    engine, index, x = inputs(4)
    with pytest.raises(WattbitError, match="error 1: a packet names an engine that the design does not have"):
        driver(library).run(engine + 2, index, x)


def test_driver_gives_up_on_a_hung_launch(library: Path) -> None:
    board = StubBoard(library)
    shell = Driver(board, board.allocate, DIGEST, timeout_s=0.05)
    board.simulation.run = lambda max_cycles: False  # type: ignore[method-assign]
    with pytest.raises(WattbitError, match=r"did not finish 4 packets in 0\.05 s"):
        shell.run(*inputs(4))


def test_driver_refuses_vectors_of_another_width(library: Path) -> None:
    engine, index, _ = inputs(2)
    with pytest.raises(WattbitError, match=f"takes vectors of {D}, not {2 * D}"):
        driver(library).run(engine, index, np.zeros((2, 2 * D), np.int8))


def test_packets_are_headers_then_vectors() -> None:
    words = packets(np.array([1]), np.array([0x305]), np.arange(-4, 4, dtype=np.int8)[None])
    assert words.tobytes() == bytes([1, 5, 3, 0, 0, 0, 0, 0, 252, 253, 254, 255, 0, 1, 2, 3])


@pytest.mark.parametrize(
    ("engine", "x"),
    [
        ([256], np.zeros((1, 8), np.int8)),
        ([0], np.zeros((1, 7), np.int8)),
        ([0], np.zeros((1, 8), np.int16)),
        ([], np.zeros((0, 8), np.int8)),
        ([0, 0], np.zeros((1, 8), np.int8)),
    ],
)
def test_packets_refuse_what_the_shell_cannot_take(engine: list[int], x: Any) -> None:
    with pytest.raises(WattbitError):
        packets(np.array(engine, np.int64), np.array(engine, np.int64), x)
