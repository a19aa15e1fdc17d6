"""What a meter has said is on disk: a search that stops goes on without asking again."""

from pathlib import Path

import numpy as np
import pytest

from tests.policy_fakes import AdditiveMeter, make_problem, make_stats, make_workload
from wattbit.errors import InfeasibleError, WattbitError
from wattbit.plan import Allocation, Cost, Workload
from wattbit.policy.recorded import RETRIES, RecordedMeter

STATS = make_stats(4)
WORKLOAD = make_workload(STATS)


class Flaky(AdditiveMeter):
    """Fails at the calls of these numbers."""

    def __init__(self, *bad: int) -> None:
        super().__init__()
        self.bad = set(bad)

    def cost(self, allocation: Allocation, workload: Workload) -> Cost:
        cost = super().cost(allocation, workload)
        if self.calls in self.bad:
            raise WattbitError("the board does not answer")
        return cost


def allocation(bits: int) -> Allocation:
    return Allocation.of(dict.fromkeys((s.expert for s in STATS), bits))


def test_a_price_is_asked_for_once_even_by_another_process(tmp_path: Path) -> None:
    meter = AdditiveMeter()
    first = RecordedMeter(meter, "fake", tmp_path / "prices.jsonl")
    costs = [first.cost(allocation(bits), WORKLOAD) for bits in (2, 4, 2)]
    assert meter.calls == 2
    again = RecordedMeter(meter, "fake", tmp_path / "prices.jsonl")
    assert [again.cost(allocation(bits), WORKLOAD) for bits in (2, 4, 2)] == costs
    assert meter.calls == 2
    other = Workload(WORKLOAD.tokens, WORKLOAD.top_k, WORKLOAD.frequency, batch=1)
    again.cost(allocation(2), other)
    assert meter.calls == 3


def test_a_failure_is_retried_then_stops_and_the_search_goes_on_later(tmp_path: Path) -> None:
    waits: list[float] = []
    meter = Flaky(3, 5, 6, 7)
    recorded = RecordedMeter(meter, "fake", tmp_path / "prices.jsonl", waits.append)
    for bits in (2, 3, 4):  # the third call fails once
        recorded.cost(allocation(bits), WORKLOAD)
    assert len(waits) == 1
    with pytest.raises(WattbitError, match=r"failed 3 times \(the board does not answer\); 3 prices are kept in"):
        recorded.cost(allocation(8), WORKLOAD)
    assert len(waits) == 1 + RETRIES
    resumed = RecordedMeter(meter, "fake", tmp_path / "prices.jsonl", waits.append)
    calls = meter.calls
    for bits in (2, 3, 4, 8):
        resumed.cost(allocation(bits), WORKLOAD)
    assert meter.calls == calls + 1


def test_a_line_that_was_cut_off_is_measured_again(tmp_path: Path) -> None:
    path = tmp_path / "prices.jsonl"
    meter = AdditiveMeter()
    recorded = RecordedMeter(meter, "fake", path)
    kept, lost = (recorded.cost(allocation(bits), WORKLOAD) for bits in (2, 4))
    path.write_text(path.read_text()[:-9])
    again = RecordedMeter(meter, "fake", path)
    assert [again.cost(allocation(bits), WORKLOAD) for bits in (2, 4)] == [kept, lost]
    assert meter.calls == 3
    third = RecordedMeter(meter, "fake", path)
    assert third.cost(allocation(4), WORKLOAD) == lost
    assert meter.calls == 3


def test_what_does_not_fit_is_remembered_too(tmp_path: Path) -> None:
    class Full(AdditiveMeter):
        def cost(self, allocation: Allocation, workload: Workload) -> Cost:
            super().cost(allocation, workload)
            raise InfeasibleError("too big; use fewer bits")

    meter = Full()
    for _ in range(2):
        recorded = RecordedMeter(meter, "full", tmp_path / "prices.jsonl")
        with pytest.raises(InfeasibleError, match="too big"):
            recorded.cost(allocation(8), WORKLOAD)
    assert meter.calls == 1


def test_prices_of_another_meter_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "prices.jsonl"
    path.touch()  # of a run that was killed before its first price
    price = RecordedMeter(AdditiveMeter(), "board a", path)
    price.cost(allocation(4), WORKLOAD)
    with pytest.raises(WattbitError, match="holds prices of board a, not of board b"):
        RecordedMeter(AdditiveMeter(), "board b", tmp_path / "prices.jsonl")


@pytest.mark.parametrize(
    "line", ["{", "[]", '{"key": "a"}', '{"key": "a", "cost": 1}', '{"key": [], "not": ""}', "\xff"]
)
def test_a_file_of_something_else_is_refused(tmp_path: Path, line: str) -> None:
    (tmp_path / "prices.jsonl").write_bytes(line.encode("latin-1") + b"\n")
    with pytest.raises(WattbitError, match=r"prices.jsonl has a line that is no price; delete it to measure again"):
        RecordedMeter(AdditiveMeter(), "fake", tmp_path / "prices.jsonl")


def test_a_price_that_is_no_number_is_named() -> None:
    class Broken(AdditiveMeter):
        def cost(self, allocation: Allocation, workload: Workload) -> Cost:
            cost = super().cost(allocation, workload)
            return cost if self.calls == 1 else Cost(float("nan"), None, cost.memory_bytes, "measured")

    problem = make_problem(STATS, Broken())
    with pytest.raises(WattbitError, match="the meter's measured latency of nan s"):
        problem.reward(np.zeros(8, dtype=np.int64))
