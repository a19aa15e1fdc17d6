"""Several boards price what a policy draws, side by side; one that is lost leaves its work to the others."""

import base64
import json
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path
from typing import IO

import numpy as np
import pytest

from tests.board_support import cache_or_skip
from tests.policy_fakes import AdditiveMeter, make_problem, make_stats, make_workload
from wattbit.board.program import running
from wattbit.display import Display
from wattbit.errors import InfeasibleError, ToolError, WattbitError
from wattbit.metering import VISITS, BoardPool, Place, RemotePasses, metered
from wattbit.plan import Allocation, Cost, ExpertShape, Workload
from wattbit.policy.agent import AgentSettings, train
from wattbit.policy.cost.hybrid import HybridMeter
from wattbit.policy.cost.model import Prediction
from wattbit.policy.environment import AllocationEnv
from wattbit.policy.problem import Problem
from wattbit.policy.recorded import RecordedMeter
from wattbit.tvm_schedules.cores import host_core
from wattbit.tvm_schedules.host_meter import CoresMeter, build_library
from wattbit.tvm_schedules.visits import memory_for

STATS = make_stats(4)
LOAD = make_workload(STATS)
SETTINGS = AgentSettings(iterations=3, gate_draws=2, choice_draws=4, local=0.0)


def uniform(bits: int) -> Allocation:
    return Allocation.of(dict.fromkeys((s.expert for s in STATS), bits))


class Slow(AdditiveMeter):
    """Takes a while; counts how many are at it; fails from its `bad`-th call on."""

    at_once = most = 0
    lock = threading.Lock()

    def __init__(self, bad: int = 10**6) -> None:
        super().__init__()
        self.bad = bad

    def cost(self, allocation: Allocation, workload: Workload) -> Cost:
        with Slow.lock:
            Slow.at_once += 1
            Slow.most = max(Slow.most, Slow.at_once)
        time.sleep(0.02)
        with Slow.lock:
            Slow.at_once -= 1
        if self.calls >= self.bad:
            raise WattbitError("the board does not answer")
        if len(allocation.classes) == 1 and allocation.mean_bits == 6:
            raise InfeasibleError("too big")
        return super().cost(allocation, workload)


def test_boards_work_at_once_and_agree_with_one(tmp_path: Path) -> None:
    alone = train(AllocationEnv(make_problem(STATS, Slow(), latency_nats=0.1)), 0, SETTINGS)
    assert Slow.most == 1
    boards = {"a": Slow(), "b": Slow()}
    price = RecordedMeter(BoardPool(boards, Display()), "two", tmp_path / "prices.jsonl")
    both = train(AllocationEnv(make_problem(STATS, price, latency_nats=0.1)), 0, SETTINGS)
    assert Slow.most == 2 and min(board.calls for board in boards.values()) > 5
    assert (both.choice == alone.choice).all() and both.curve == alone.curve
    with pytest.raises(InfeasibleError, match="too big"):
        price.cost(uniform(6), LOAD)


def test_a_lost_board_leaves_its_work_and_without_any_the_search_stops_saved(tmp_path: Path) -> None:
    boards = {"a": Slow(bad=2), "b": Slow()}
    pool = BoardPool(boards, Display())
    price = RecordedMeter(pool, "two", tmp_path / "prices.jsonl", lambda _: None)
    costs = price.costs([uniform(bits) for bits in (2, 3, 4, 6, 8)], LOAD)
    assert [isinstance(cost, Cost) for cost in costs] == [True, True, True, False, True]
    boards["b"].bad = 0
    mixed = [Allocation.of({s.expert: (2, k)[s.expert.expert % 2] for s in STATS}) for k in (3, 4)]
    with pytest.raises(WattbitError, match=r"failed 3 times \(no board is left for 2 of 2: .*b: the board does not"):
        price.costs(mixed, LOAD)
    again = RecordedMeter(BoardPool({"a": Slow(), "b": Slow()}, Display()), "two", tmp_path / "prices.jsonl")
    before = sum(board.calls for board in boards.values())
    assert len(again.costs([*mixed, *map(uniform, (2, 3, 4, 6, 8))], LOAD)) == 7
    assert before == 4 and len((tmp_path / "prices.jsonl").read_text().splitlines()) == 1 + 7


def test_every_mth_price_is_real_side_by_side_as_one_by_one(tmp_path: Path) -> None:
    class Model(AdditiveMeter):
        def predict(self, allocation: Allocation, workload: Workload) -> Prediction:
            cost = self.cost(allocation, workload)
            return Prediction(Cost(1.3 * cost.latency_s, None, cost.memory_bytes, "modelled"), 0.1)

    random = np.random.default_rng(0)
    problem = make_problem(STATS, AdditiveMeter())
    asked = [problem.allocation(random.integers(0, 5, 8)) for _ in range(20)] * 2
    single = HybridMeter(Model(), AdditiveMeter(), 3, tmp_path / "one.jsonl")
    several = HybridMeter(Model(), BoardPool({"a": Slow(), "b": Slow()}, Display()), 3, tmp_path / "two.jsonl")
    costs = [single.cost(allocation, LOAD) for allocation in asked]
    assert several.costs(asked[:8], LOAD) + several.costs(asked[8:], LOAD) == costs
    assert (tmp_path / "one.jsonl").read_text() == (tmp_path / "two.jsonl").read_text()


class ThisMachine:
    """A board whose programs run here, as processes of their own."""

    def __init__(self, name: str) -> None:
        self.host, self.processes = name, list[subprocess.Popen[bytes]]()

    def start(self, args: list[str], stderr: IO[bytes], launch: bool = False) -> "subprocess.Popen[bytes]":
        command = [sys.executable, *args[1:]]
        self.processes.append(
            subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=stderr, cwd="/")
        )
        return self.processes[-1]

    def check(self, args: list[str], status: int, stderr: str) -> None:
        if status:
            raise ToolError(args, status, stderr)


@pytest.fixture(scope="module")
def library(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("kernels") / "kernels.so"
    build_library(host_core(), (2, 4, 8), path)
    return path


@pytest.fixture
def machines(library: Path) -> Iterator[tuple[list[ThisMachine], BoardPool]]:
    """Two agents' processes on this machine, each with a meter, and the pool of both."""
    found = [ThisMachine("first"), ThisMachine("second")]
    meters = {}
    with ExitStack() as stack:
        for machine in found:
            passes = RemotePasses(stack.enter_context(running(machine, VISITS)), machine.host)
            sent = base64.b64encode(library.read_bytes()).decode("ascii")
            passes.ask(library=sent, core=host_core().name, threads=1, memory=memory_for(2**20))
            meters[machine.host] = CoresMeter(ExpertShape(64, 96), host_core(), passes, least_s=0.05)
        yield found, BoardPool(meters, Display())


def test_two_boards_processes_measure_a_policys_draws(
    machines: tuple[list[ThisMachine], BoardPool], tmp_path: Path
) -> None:
    agents, pool = machines
    log = tmp_path / "prices.jsonl"
    price = RecordedMeter(pool, "two processes", log, lambda _: None)
    problem = Problem(STATS, price, LOAD, (2, 4, 8), latency_nats=0.1)
    assert problem.reference.provenance == "measured"
    found = train(AllocationEnv(problem), 0, SETTINGS)
    assert problem.fits(found.choice)
    kept = len(log.read_text().splitlines())
    agents[0].processes[0].kill()
    fresh = np.random.default_rng(5).integers(0, 3, (6, 8))
    problem.ask(fresh)
    assert all(problem.cost(choice).latency_s > 0 for choice in fresh)
    agents[1].processes[0].kill()
    with pytest.raises(WattbitError, match="no board is left for"):
        problem.ask(np.random.default_rng(6).integers(0, 3, (4, 8)))
    records = [json.loads(line) for line in log.read_text().splitlines()]
    assert len(records) > kept and all("cost" in record for record in records[1:])


@pytest.mark.slow
def test_two_virtual_boards_measure_side_by_side(tmp_path: Path) -> None:
    cache_or_skip()
    shape, display = ExpertShape(16, 32), Display()
    with ExitStack() as stack:
        meters = {
            f"virtual {number}": stack.enter_context(metered(Place("virtual-z2"), shape, (2, 4), 8, 1, display))
            for number in range(2)
        }
        pool = BoardPool(meters, display)
        costs = pool.costs([uniform(bits) for bits in (2, 4)], replace(LOAD, batch=1))
    assert [cost.provenance for cost in costs if isinstance(cost, Cost)] == ["simulated"] * 2
