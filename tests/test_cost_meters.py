"""The meters that cost models are calibrated on: routing by its frequencies, kernels that run, launches that count."""

import ast
import base64
import json
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import IO, Any

import numpy as np
import pytest

from wattbit.board.agent.session import decode_array
from wattbit.board.carried import carried_files
from wattbit.board.launch_meter import LaunchMeter
from wattbit.board.rail_watch import RailWatch
from wattbit.board.targets import Power, load
from wattbit.display import Display
from wattbit.errors import InfeasibleError, WattbitError
from wattbit.hls.launches import cycles, launches, moved, timings
from wattbit.hls.planner import plan
from wattbit.hls.traffic import traffic
from wattbit.metering import VISITS, cost_model, planned_demand, search_meter
from wattbit.plan import Allocation, ExpertId, ExpertShape, PowerSample, Precision, Workload
from wattbit.policy.cost.calibration import Calibration, Errors, Origin
from wattbit.policy.cost.fitting import Fitted
from wattbit.tvm_schedules import host_meter as meters
from wattbit.tvm_schedules.cores import find_core, host_core
from wattbit.tvm_schedules.host_meter import CoresMeter, InstructionCounter, Weighed, expert_bytes, host_meter, routing
from wattbit.tvm_schedules.visits import mean_power_w, package_j

IDS = [ExpertId(layer, e) for layer in range(2) for e in range(4)]
SHARES = (0.4, 0.3, 0.2, 0.1)
SHAPE = ExpertShape(64, 96)


def workload(batch: int, top_k: int = 2, shares: tuple[float, ...] = SHARES) -> Workload:
    return Workload(1000, top_k, tuple((e, shares[e.expert]) for e in IDS), batch)


def uniform(bits: int) -> Allocation:
    return Allocation.of(dict.fromkeys(IDS, bits))


@pytest.mark.parametrize("batch", [1, 8, 64])
def test_batches_follow_the_frequencies(batch: int) -> None:
    found = routing(workload(batch))
    for layer in range(2):
        mine = found.counts[:, [i for i, e in enumerate(found.experts) if e.layer == layer]]
        assert (mine.sum(axis=1) == 2 * batch).all(), "each token takes two experts"
        assert mine.max() <= batch, "and different ones"
        np.testing.assert_allclose(mine.mean(axis=0) / batch / 2, SHARES, atol=0.08)
    again = routing(Workload(1000, 2, workload(batch).frequency, batch))
    assert np.array_equal(found.counts, again.counts)


def test_what_one_expert_cannot_take_goes_to_the_others() -> None:
    found = routing(workload(16, shares=(0.9, 0.1, 0.0, 0.0)))
    assert (found.counts[:, 0] == 16).all() and found.counts.sum() == len(found.counts) * 16 * 2 * 2
    with pytest.raises(WattbitError, match="5 of 4 experts a token cannot be routed"):
        routing(workload(1, top_k=5))


@pytest.fixture(scope="module")
def meter() -> Iterator[CoresMeter]:
    with host_meter(SHAPE, (2, 8), len(IDS), least_s=0.0) as found:
        yield found


def test_an_allocation_is_run_and_measured(meter: CoresMeter) -> None:
    cost = meter.cost(uniform(8), workload(4))
    assert cost.provenance == "measured" and cost.latency_s > 0
    assert cost.memory_bytes == 8 * expert_bytes(host_core(), 8, SHAPE)
    assert cost.energy_j is None or cost.energy_j > 0
    half = Allocation.of(dict.fromkeys(IDS[:4], 8), engine="host").placements
    on_host = CoresMeter(SHAPE, meter.core, meter.runner, "host", least_s=0.0)
    split = Allocation((*half, *Allocation.of(dict.fromkeys(IDS[4:], 8)).placements))
    assert on_host.cost(split, workload(4)).memory_bytes == cost.memory_bytes // 2
    with pytest.raises(WattbitError, match="wants any of these experts"):
        on_host.cost(uniform(8), workload(4))
    with pytest.raises(WattbitError, match="no frequency of L2E0"):
        meter.cost(Allocation.of({ExpertId(2, 0): 8}), workload(4))
    with pytest.raises(WattbitError, match="no kernel of 4 bits"):
        meter.cost(uniform(4), workload(4))


def test_joules_of_a_pass_are_the_power_times_its_seconds(meter: CoresMeter, monkeypatch: pytest.MonkeyPatch) -> None:
    """A processor of 50 W, whose counter advances by the millisecond, while the clock advances 10 ms a repeat."""
    now_s = [0.0]

    def tick() -> float:
        now_s[0] += 0.01
        return now_s[0]

    module = "wattbit.tvm_schedules.visits"
    monkeypatch.setattr(f"{module}.time", SimpleNamespace(monotonic=tick))
    monkeypatch.setattr(f"{module}.package_j", lambda: {"intel-rapl:0": (50e-3 * round(now_s[0] / 1e-3), 1e9)})
    ask = ([8] * 8, 64, 96, [(i % 8, 1) for i in range(64)])
    seconds, joules = meter.runner.times(*ask, least_s=0.1)
    assert joules == pytest.approx(50 * sum(seconds))
    monkeypatch.setattr(f"{module}.package_j", lambda: {"intel-rapl:0": (7.0, 1e9)})
    assert meter.runner.times(*ask, least_s=0.1)[1] is None, "a counter that stands is no reading"


def test_the_program_for_a_board_answers_line_by_line(tmp_path: Path) -> None:
    """Over pipes, as `wattbit.board.program` runs it."""
    core, library = host_core(), tmp_path / "kernels.so"
    meters.build_library(core, (8,), library)
    first = {"library": base64.b64encode(library.read_bytes()).decode(), "core": core.name, "threads": 1, "memory": 0}
    ask = {"bits": [8, 8], "d_model": 64, "d_hidden": 96, "visits": [[0, 1], [1, 5], [0, 20]], "least_s": 0.0}
    lines = "".join(json.dumps(line) + "\n" for line in (first, ask, ask, ask | {"bits": [2, 2]}))
    code = "import sys; from wattbit.tvm_schedules.visits import main; sys.exit(main([]))"
    done = subprocess.run([sys.executable, "-c", code], input=lines, capture_output=True, text=True, check=True)
    ready, one, two, refused = (json.loads(line) for line in done.stdout.splitlines())
    assert ready == {"ready": core.name}
    for reply in (one, two):
        assert len(reply["seconds"]) == 3 and min(reply["seconds"]) > 0
    assert "no kernel of 2 bits" in refused["error"]


def test_what_goes_to_a_board_is_python_3_10() -> None:
    for path in carried_files([VISITS]).values():
        tree = ast.parse(path.read_text(encoding="utf-8"), feature_version=(3, 10))
        imported = {alias.name for node in tree.body if isinstance(node, ast.ImportFrom) for alias in node.names}
        assert not imported & {"Self", "StrEnum"}, path.name


def test_the_processors_counters(tmp_path: Path) -> None:
    assert package_j(tmp_path) is None
    for name, microjoules in (("intel-rapl:0", 5_000_000), ("intel-rapl:1", 7_000_000), ("intel-rapl:0:0", 1)):
        (tmp_path / name).mkdir()
        (tmp_path / name / "energy_uj").write_text(f"{microjoules}\n")
        (tmp_path / name / "max_energy_range_uj").write_text("8000000\n")
    before = package_j(tmp_path)
    assert before == {"intel-rapl:0": (5.0, 8.0), "intel-rapl:1": (7.0, 8.0)}
    (tmp_path / "intel-rapl:1" / "energy_uj").write_text("500000\n")
    after = package_j(tmp_path)
    assert mean_power_w(before, after, 3.0) == pytest.approx(0.5), "1.5 J, of a counter that began again at 8 J"
    assert mean_power_w(before, after, 0.019) is None, "fewer than 20 ticks"
    assert mean_power_w(before, None, 3.0) is None
    assert mean_power_w(before, before, 3.0) is None, "a counter that stands is no reading"
    (tmp_path / "intel-rapl:0" / "energy_uj").unlink()
    assert package_j(tmp_path) is None, "a package that cannot be read is no reading"


class Meter:
    """A power meter of fixed readings a call."""

    rail = "12V"

    def __init__(self, *readings: list[float]) -> None:
        self.readings = list(readings)

    def samples(self) -> list[PowerSample]:
        return [PowerSample(float(k), power_w) for k, power_w in enumerate(self.readings.pop(0))]


class Runner:
    def times(self, *_: object) -> tuple[list[float], float | None]:
        return [1e-3, 3e-3], None


def test_passes_are_weighed() -> None:
    weighed = Weighed(Runner(), Meter([99.0], [2.0, 4.0] * 3, [99.0], [2.0] * 4))
    assert weighed.times((), 64, 96, (), 3.0) == ([1e-3, 3e-3], pytest.approx(3.0 * 4e-3)), (
        "what was before is left out"
    )
    with pytest.raises(WattbitError, match=r"the rail 12V gave 4 readings in 3\.0 s, not 5; see to it"):
        weighed.times((), 64, 96, (), 3.0)


class LocalBoard:
    """A board on which some Python code runs in place of the program that was sent."""

    host = "board"

    def __init__(self, code: str) -> None:
        self.code = code

    def start(self, args: list[str], stderr: IO[bytes], launch: bool = False) -> "subprocess.Popen[bytes]":
        assert launch, "sensors are read with the agent's rights"
        command = [sys.executable, "-c", self.code]
        return subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=stderr)

    def check(self, args: list[str], status: int, stderr: str) -> None:
        raise WattbitError("the board is gone")


def readings(code: str) -> list[float]:
    """What a rail watch gives of a program, until it has something to say."""
    found: list[float] = []
    with RailWatch(LocalBoard("import json, sys\nsys.stdin.readline(); sys.stdin.readline()\n" + code), RAIL) as watch:
        for _ in range(200):
            found += [sample.power_w for sample in watch.samples()]
            if len(found) == 2:
                break
            time.sleep(0.05)
    return found


RAIL = Power("hwmon", rail="12V")


def test_a_boards_rail_is_watched() -> None:
    line = 'print(json.dumps({"power_w": {"12V": %s, "other": 9}}), flush=True)\n'
    assert readings("".join(line % w for w in ("1.5", "None", "2.5")) + "sys.stdin.read()") == [1.5, 2.5]
    with pytest.raises(WattbitError, match="board: no sensor 12V"):
        readings('print(json.dumps({"error": "no sensor 12V"}), flush=True); sys.stdin.read()')
    with pytest.raises(WattbitError, match="the board is gone"):
        readings("")


def test_instructions_are_counted_once_each(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[tuple[tuple[int, ...], int]] = []

    def counted(core: Any, widths: tuple[int, ...], shapes: Any, tokens: int) -> dict[int, list[int]]:
        asked.append((widths, tokens))
        return {bits: [rows * depth * tokens // 16 * bits for rows, depth in shapes] for bits in widths}

    monkeypatch.setattr(meters, "instructions", counted)
    core = find_core("cortex-a53")
    own = CoresMeter(SHAPE, core, InstructionCounter(core, (2, 4), 1000.0), provenance="simulated")
    costs = [own.cost(uniform(bits), workload(1)) for bits in (2, 4, 2)]
    assert asked == [((2, 4), 1)] and costs[0] == costs[2] and 2 * costs[0].latency_s == costs[1].latency_s
    expected = 1000 * 2 * 2 * 2 * (SHAPE.weights // 2 // 16 * 2) / 1e9
    assert costs[0].latency_s == pytest.approx(expected) and costs[0].provenance == "simulated"


class Agent:
    """Takes 100 cycles a launch and 7 a packet; keeps what it was asked."""

    def __init__(self, clock: float | None = 100.0) -> None:
        self.clock, self.asked = clock, []  # type: ignore[var-annotated]

    def request(self, cmd: str, **fields: Any) -> dict[str, Any]:
        if cmd == "load":
            return {"clock_mhz": self.clock}
        if cmd == "power":  # a rail that takes 2 W, and 1 W more from 10 s on, where the window begins
            times_s = [9.5 + 0.02 * k for k in range(200)]
            return {"samples": [(t, 2.0 + (t >= 10.0) + 0.01 * (-1) ** k) for k, t in enumerate(times_s)]}
        if cmd == "active":
            return {"start_s": 10.0, "end_s": 10.0 + fields["seconds"]}
        self.asked.append(fields)
        assert decode_array(fields["x"]).shape == (len(fields["experts"]), SHAPE.d_model)
        return {"cycles": 200 + 7 * len(fields["experts"])}


def test_launches_are_the_routings() -> None:
    agent, allocation, load_ = Agent(), uniform(4), workload(8)
    manifest = {
        "allocation_digest": allocation.digest,
        "toolchain": "virtual",
        "model": {"d_model": SHAPE.d_model, "d_hidden": SHAPE.d_hidden},
        "experts": {str(e): {"bits": [4, 8]} for e in IDS},
        "power": {"source": "none"},
    }
    found = LaunchMeter(agent, manifest, routing)
    cost = found.cost(allocation, load_)
    per_batch = 200 + 7 * 2 * 2 * 8
    assert cost.latency_s == pytest.approx(per_batch / 1e8 * 1000 / 8) and cost.provenance == "simulated"
    assert cost.energy_j is None and cost.memory_bytes == 8 * SHAPE.weights // 2
    counts = routing(load_).counts[0].astype(int)
    assert [agent.asked[0]["experts"].count(str(e)) for e in IDS] == counts.tolist()
    physical = LaunchMeter(agent, manifest | {"toolchain": "vivado"}, routing)
    assert physical.cost(allocation, load_).provenance == "measured"
    weighed = LaunchMeter(agent, manifest | {"power": {"source": "simulated"}}, routing).cost(allocation, load_)
    assert weighed.energy_j == pytest.approx(3.0 * cost.latency_s, rel=1e-3), (
        "the mean power of the windows, idle included"
    )
    with pytest.raises(WattbitError, match="design of another allocation"):
        found.cost(uniform(8), load_)
    with pytest.raises(WattbitError, match="no design in programmable logic"):
        LaunchMeter(Agent(None), manifest, routing)


class TestPlans:
    """What a plan is asked for."""

    target = load("pynq-z2").target
    shape = ExpertShape(64, 128)

    def test_packets_and_bytes_are_all_there(self) -> None:
        allocation, loaded = Allocation.of({e: (2, 8)[e.expert % 2] for e in IDS}), workload(8)
        planned, found = plan(allocation, self.shape, self.target, loaded), routing(workload(8))
        packets = launches(planned, found.experts, found.counts)
        assert sum(len(engine) for engine, _ in packets) == found.counts.sum()
        assert len(packets) == 2 * len(found.counts)
        what = moved(planned, found.experts, found.counts)
        assert what.products == pytest.approx(8 * 2 * 2 * self.shape.weights)
        assert what.read_bytes == 0, "all on the chip"
        assert 8 * 2 < what.bit_products / what.products < 8 * 8
        assert cycles(planned, packets) == pytest.approx(sum(cycles(planned, [one]) for one in packets))
        assert all(timing.load == 0 for timing in timings(planned))

    def test_the_planned_demand_is_the_planners(self) -> None:
        demand, loaded = planned_demand(self.shape, self.target), workload(16)
        planned = plan(uniform(4), self.shape, self.target, loaded)
        theta = np.array([1e-8, 0.0])
        seconds = float(demand.work(uniform(4), loaded).binding(theta) @ theta)
        assert seconds == pytest.approx(planned.latency_s)
        assert demand.memory_bytes(uniform(4)) > 8 * self.shape.weights // 2
        small = planned_demand(ExpertShape(512, 2048), load("pynq-z1").target)
        many = Allocation.of({ExpertId(0, e): b for e, b in enumerate((2, 3, 4, 5, 6, 7, 8))})
        shares = tuple((ExpertId(0, e), 1 / 7) for e in range(7))
        with pytest.raises(InfeasibleError, match="pynq-z1 cannot hold the allocation"):
            small.work(many, Workload(10, 2, shares, 1))

    def test_one_designs_constants_price_others_less_surely(self, tmp_path: Path) -> None:
        demand = planned_demand(self.shape, self.target)
        exact = Fitted(demand.names, np.array([1e-8, 1e-6]), np.zeros((2, 2)), 1e-4, 20)
        settings = {"shape": [64, 128], "target": self.target.to_json()}
        errors = Errors(10, 0.0, 0.0, 0.0, 1.0)
        origin = Origin("fpga", "pynq-z2", "board", "launches", settings)
        found = Calibration(origin, "measured", "2026-01-01", exact, None, errors, None)
        said = cost_model(found, self.shape).predict(uniform(4), workload(16))
        assert said.cost.provenance == "modelled" and 0.03 < said.latency_relative < 0.1
        found.save(tmp_path / "fpga.json")
        opened = search_meter(tmp_path / "fpga.json", 4, self.shape, 8, tmp_path / "log.jsonl", Display())
        with pytest.raises(WattbitError, match="is of engines, which no search can build"), opened:
            pass

    def test_expected_reads_are_those_of_the_reached(self) -> None:
        shape, loaded = ExpertShape(256, 512), workload(1)
        planned, sampled = plan(uniform(8), shape, self.target, loaded), traffic(loaded)
        what = moved(planned, sampled.experts, sampled.counts)
        assert any(spec.streamed for spec in planned.classes)
        assert 0 < what.read_bytes <= 1.05 * 4 * (shape.weights + 8 * 768), "two experts in each of two layers"


def test_memory_of_an_expert() -> None:
    core, precision = find_core("cortex-a53"), Precision(4)
    packed = expert_bytes(core, precision.weight_bits, ExpertShape(64, 128))
    assert packed == 64 * 128 + 8 * (64 + 128)
