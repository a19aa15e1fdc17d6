"""Several boards: work is spread, a failing board is dropped, nothing is done twice or left out."""

import threading
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from tests.board_stub import TARGET, FolderBoard, make_parts
from wattbit.board.bench import bench
from wattbit.board.bundle import pack
from wattbit.board.client import AgentClient
from wattbit.board.fleet import spread
from wattbit.errors import WattbitError


def test_work_is_spread_over_the_boards_and_comes_back_in_order() -> None:
    together = threading.Barrier(2, timeout=5)

    def work(job: int, board: str) -> tuple[int, str]:
        if job < 2:
            together.wait()  # both boards are at work at once
        return job * job, board

    results, failures = spread(range(6), ["a", "b"], work)
    assert [square for square, _ in results] == [0, 1, 4, 9, 16, 25] and failures == {}
    assert {board for _, board in results} == {"a", "b"}


def test_a_board_that_fails_is_dropped_and_its_work_given_to_the_others() -> None:
    tried: list[tuple[int, str]] = []

    def work(job: int, board: str) -> str:
        tried.append((job, board))
        if board == "b":
            time.sleep(0.3)  # the other board has nothing left to do by then, and waits
            raise WattbitError("b was unplugged")
        time.sleep(0.02)
        return board

    results, failures = spread(range(4), ["a", "b"], work)
    assert results == ["a"] * 4
    assert [str(error) for error in failures.values()] == ["b was unplugged"]
    assert sum(board == "b" for _, board in tried) == 1 and len(tried) == 5


def test_when_no_board_is_left_every_reason_is_said() -> None:
    def work(job: int, board: str) -> int:
        if job == 1:
            raise WattbitError(f"{board} is lost")
        return job

    with pytest.raises(WattbitError, match=r"no board is left for 1 of 2: .: . is lost; .: . is lost"):
        spread(range(2), ["a", "b"], work)
    with pytest.raises(WattbitError, match=r"^a is lost$"):
        spread(range(2), ["a"], work)


def test_a_bug_is_not_taken_for_a_lost_board() -> None:
    def work(job: int, board: str) -> int:
        raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        spread(range(2), ["a", "b"], work)


def test_benchmarks_go_on_without_the_board_that_failed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Two allocations, two boards, one of which loses its agent in the middle."""
    bundles = []
    for top_k in (1, 2):
        folder = tmp_path / f"run{top_k}"
        pack(replace(make_parts(folder), top_k=top_k), TARGET, folder / "bundle")
        bundles.append(folder / "bundle")
    boards = {}
    for name in ("a", "b"):
        boards[name] = FolderBoard(tmp_path / name)
        boards[name].host = name
    request = AgentClient.request
    waiting, begun = threading.Barrier(2, timeout=20), threading.Event()

    def failing(self: AgentClient, cmd: str, **fields: Any) -> dict[str, Any]:
        if cmd == "latency" and not begun.is_set():
            waiting.wait()  # both boards are at work by now
            begun.set()
            if self._connection.host == "b":
                self._process.kill()
        return request(self, cmd, **fields)

    monkeypatch.setattr(AgentClient, "request", failing)

    def work(bundle: Path, board: str) -> dict[str, Any]:
        return bench(bundle, boards[board], bundle.parent / board)

    results, failures = spread(bundles, ["a", "b"], work)
    assert [result["board"] for result in results] == ["a", "a"]
    assert [result["packets_per_token"] for result in results] == [1, 2], "each bundle's own, in order"
    assert list(failures) == ["b"] and "the agent on b failed" in str(failures["b"])
