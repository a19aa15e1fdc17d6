"""A benchmark that was interrupted goes on where it was: nothing measured is lost, figures are as undisturbed."""

import gzip
import json
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, cast

import pytest

from tests.board_stub import TARGET, FolderBoard, load_stub, make_parts
from wattbit.board import weigh
from wattbit.board.agent.logic import Logic
from wattbit.board.agent.session import Session
from wattbit.board.bench import Settings, bench
from wattbit.board.bundle import pack
from wattbit.board.client import AgentClient
from wattbit.board.journal import Journal
from wattbit.board.meters import ClockTie
from wattbit.board.weigh import Weighing
from wattbit.errors import ToolError, WattbitError
from wattbit.plan import PowerSample


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("run")
    pack(make_parts(folder), TARGET, folder / "bundle")
    return folder


def kill_at(monkeypatch: pytest.MonkeyPatch, command: str, number: int) -> None:
    """The agent dies in the `number`th request of a command."""
    request, left = AgentClient.request, [number]

    def killed(self: AgentClient, cmd: str, **fields: Any) -> dict[str, Any]:
        if cmd == command:
            left[0] -= 1
            if not left[0]:
                self._process.kill()
                self._process.wait()
        return request(self, cmd, **fields)

    monkeypatch.setattr(AgentClient, "request", killed)


@pytest.mark.parametrize(
    ("command", "number", "kept"),
    [("run", 1, []), ("latency", 1, ["fpga"]), ("active", 4, ["fpga", "latency", *["pair"] * 3])],
)
def test_an_agent_that_dies_costs_the_step_that_it_was_in(
    run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, command: str, number: int, kept: list[str]
) -> None:
    board, out = FolderBoard(tmp_path / "home"), tmp_path / "bench"
    undisturbed = bench(run / "bundle", board, tmp_path / "other")
    with monkeypatch.context() as patched:
        kill_at(patched, command, number)
        with pytest.raises(
            ToolError, match=r"the agent on folder-board failed with exit status -9: .*; it ended; the same"
        ):
            bench(run / "bundle", board, out)
    entries = [json.loads(line) for line in (out / "journal.jsonl").read_text().splitlines()][1:]
    assert [entry["kind"] for entry in entries] == kept
    result = bench(run / "bundle", board, out)
    raw = json.loads(gzip.decompress((out / "raw.json.gz").read_bytes()))
    measured = [window for measurement in raw["measurements"] for window in measurement["windows"]]
    for entry in entries:
        assert all(window in measured for window in entry.get("windows", []))
    assert {name: result[name] for name in ("fpga", "latency", "memory")} == {
        name: undisturbed[name] for name in ("fpga", "latency", "memory")
    }
    energy, other = result["energy"], undisturbed["energy"]
    assert energy["segments"] == len(raw["measurements"]) == (2 if "pair" in kept else 1)
    halves = energy["net_mj_per_token_half"] + other["net_mj_per_token_half"]
    assert abs(energy["net_mj_per_token"] - other["net_mj_per_token"]) <= halves


def test_what_another_bundle_left_is_not_taken_up(run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    board, out = FolderBoard(tmp_path / "home"), tmp_path / "bench"
    with monkeypatch.context() as patched:
        kill_at(patched, "active", 2)
        with pytest.raises(ToolError):
            bench(run / "bundle", board, out)
    result = bench(run / "bundle", board, out, settings=Settings(window_s=10.0))
    assert result["energy"]["segments"] == 1 and result["energy"]["active_s"] == pytest.approx(10.0)


def test_an_accelerator_that_hangs_is_reset_and_the_next_measurement_is_fine(
    run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    loads = []

    def loader(bundle: Path, manifest: dict[str, Any]) -> Logic:
        loads.append(bundle)
        logic = load_stub(bundle, manifest)
        logic.driver._timeout_s = 0.1
        return logic

    session = Session(run / "bundle", loader)
    session.load()
    before = session.run()
    (tmp_path / "wattbit-hang").touch()
    with pytest.raises(WattbitError, match=r"did not finish 60 packets in 0\.1 s.*the design was loaded again"):
        session.run()
    (tmp_path / "wattbit-hang").unlink()
    assert session.run() == before and len(loads) == 2
    assert session.active(1.0)["launches"] > 0


def test_a_hang_during_the_benchmark_is_tried_once_more(
    run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    request, failed = AgentClient.request, []

    def hung(self: AgentClient, cmd: str, **fields: Any) -> dict[str, Any]:
        if cmd in ("run", "active", "latency") and cmd not in failed:
            failed.append(cmd)
            raise WattbitError("folder-board: the accelerator did not finish")
        return request(self, cmd, **fields)

    monkeypatch.setattr(AgentClient, "request", hung)
    result = bench(run / "bundle", FolderBoard(tmp_path / "home"), tmp_path / "bench")
    assert failed == ["run", "latency", "active"] and result["bit_exact"] and result["energy"]["pairs"] >= 5


class FakeAgent:
    """An agent whose windows take no time, on a clock of its own, with a sensor given as a function of time."""

    def __init__(self, power_w: Callable[[float], float]) -> None:
        self.now_s = 1000.0
        self._power_w = power_w
        self._samples: list[tuple[float, float]] = []

    def request(self, cmd: str, seconds: float = 0.0, **_: Any) -> dict[str, Any]:
        if cmd == "clock":
            return {"time_s": self.now_s}
        if cmd == "power":
            taken, self._samples = self._samples, []
            return {"samples": taken, "rail": "rail", "provenance": "simulated"}
        start_s = self.now_s
        self.now_s += seconds
        extra_w = 0.5 * (cmd == "active")
        self._samples += [
            (start_s + step / 10 + 0.05, self._power_w(start_s + step / 10) + extra_w)
            for step in range(int(seconds * 10))
        ]
        reply = {"start_s": start_s, "end_s": self.now_s, "conditions": {}}
        return reply | {"packets": 2, "launches": 10, "executed": 1, "cycles": 100}


MANIFEST: dict[str, Any] = {
    "power": {"source": "hwmon", "settle_s": 1.0},
    "toolchain": "vivado",
    "model": {"layers": 1, "top_k": 2},
    "target": {"name": "board"},
    "allocation_digest": "0" * 16,
}


def weighing(tmp_path: Path, agent: FakeAgent, settings: Settings = Settings()) -> Weighing:  # noqa: B008
    return Weighing(Journal(tmp_path / "journal.jsonl", {}), cast(AgentClient, agent), MANIFEST, settings)


def wobble(time_s: float) -> float:
    return 2.0 + 0.002 * (round(time_s * 10) % 7)


class StuckAgent(FakeAgent):
    """Its sensor stands still from 1110 s on."""

    def request(self, cmd: str, seconds: float = 0.0, **fields: Any) -> dict[str, Any]:
        reply = super().request(cmd, seconds, **fields)
        self._samples = [(time_s, power_w if time_s < 1110 else 2.0) for time_s, power_w in self._samples]
        return reply


def test_a_sensor_that_stands_still_ends_the_measurement_and_spoils_nothing(tmp_path: Path) -> None:
    with pytest.raises(
        WattbitError, match=r"the power sensor rail stands still or is lost: the window .* 1 distinct updates"
    ):
        weighing(tmp_path, StuckAgent(wobble)).run(lambda pair: None)
    kept = Journal(tmp_path / "journal.jsonl", {}).all("pair")
    assert 1 <= len(kept) < 6
    mended = weighing(tmp_path, FakeAgent(wobble))
    mended.run(lambda pair: None)
    assert mended.pairs[: len(kept)] == kept and len(mended.pairs) > len(kept)


class FakeMeter:
    """An external meter on this machine's clock, which is 500 s ahead of the board's."""

    rail = "csv:meter"

    def __init__(self, agent: FakeAgent) -> None:
        self._agent = agent

    def __enter__(self) -> "FakeMeter":
        return self

    def __exit__(self, *_: object) -> None: ...

    def samples(self) -> list[PowerSample]:
        taken = self._agent.request("power")["samples"]
        return [PowerSample(time_s + 500.0, power_w) for time_s, power_w in taken]


class LateMeter(FakeMeter):
    """Its readings are written every `lag_s`."""

    def __init__(self, agent: FakeAgent, lag_s: float) -> None:
        super().__init__(agent)
        self._lag_s = lag_s
        self._unwritten: list[PowerSample] = []

    def samples(self) -> list[PowerSample]:
        self._unwritten += super().samples()
        written_s = 500.0 + self._agent.now_s // self._lag_s * self._lag_s
        count = sum(sample.time_s <= written_s for sample in self._unwritten)
        written, self._unwritten = self._unwritten[:count], self._unwritten[count:]
        return written


def metered(monkeypatch: pytest.MonkeyPatch, agent: FakeAgent, meter: FakeMeter) -> None:
    """The agent's clock is the only one."""
    monkeypatch.setattr(weigh, "open_meter", lambda name: meter)
    monkeypatch.setattr(time, "monotonic", lambda: agent.now_s + 500.0)
    monkeypatch.setattr(time, "sleep", lambda seconds: agent.request("idle", seconds=seconds))


def test_an_external_meters_readings_are_put_on_the_boards_clock(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    agent = FakeAgent(wobble)
    metered(monkeypatch, agent, FakeMeter(agent))
    weighed = weighing(tmp_path, agent, Settings(meter="csv:meter"))
    weighed.run(lambda pair: None)
    assert weighed.energy is not None and weighed.energy.net_j == pytest.approx(0.5 * 12, abs=0.1)
    assert weighed.energy.rail == "csv:meter" and weighed.energy.provenance == "measured"


def test_a_pair_is_kept_once_the_meter_has_come_to_its_end(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    agent = FakeAgent(wobble)
    metered(monkeypatch, agent, LateMeter(agent, 4.7))
    weighed = weighing(tmp_path, agent, Settings(meter="csv:meter"))
    weighed.run(lambda pair: None)
    assert all(pair["samples"][-1][0] >= pair["windows"][-1][2] for pair in weighed.pairs)
    assert weighed.energy is not None and weighed.energy.net_j == pytest.approx(0.5 * 12, abs=0.1)


def test_a_meter_that_comes_too_late_is_said_and_nothing_of_it_kept(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    agent = FakeAgent(wobble)
    metered(monkeypatch, agent, LateMeter(agent, 1e6))
    weighed = weighing(tmp_path, agent, Settings(meter="csv:meter"))
    with pytest.raises(WattbitError, match=r"csv:meter has no reading of the window's end after 5 s; let its software"):
        weighed.run(lambda pair: None)
    assert not weighed.pairs


def test_readings_that_overlap_where_two_pairs_tie_the_clocks_are_dropped(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The offset of every other pair is 0.15 s more: the first reading of the next one is before the last of it."""
    agent, asked = FakeAgent(wobble), [0]

    def tie(board_time: Callable[[], float]) -> ClockTie:
        asked[0] += 1
        return ClockTie(500.0 - 0.15 * (asked[0] % 2), 0.15)

    metered(monkeypatch, agent, FakeMeter(agent))
    monkeypatch.setattr(ClockTie, "of", tie)
    weighed = weighing(tmp_path, agent, Settings(meter="csv:meter"))
    weighed.run(lambda pair: None)
    (measurement,) = weighed.measurements()
    times_s = [sample.time_s for sample in measurement.samples]
    assert times_s == sorted(set(times_s)) and len(times_s) < sum(len(pair["samples"]) for pair in weighed.pairs)
    assert weighed.energy is not None and weighed.energy.net_j == pytest.approx(0.5 * 12, abs=0.15)


def test_a_meter_is_not_put_to_a_virtual_board(tmp_path: Path) -> None:
    virtual = MANIFEST | {"toolchain": "virtual"}
    with pytest.raises(WattbitError, match="a meter sees nothing of a virtual board"):
        Weighing(Journal(tmp_path / "j", {}), cast(AgentClient, FakeAgent(wobble)), virtual, Settings(meter="csv:x"))


@pytest.fixture
def journal(tmp_path: Path) -> Iterator[Journal]:
    made = Journal(tmp_path / "journal.jsonl", {"bundle": "x"})
    made.add("fpga", cycles=3)
    made.add("pair", number=1)
    yield made


def test_a_journal_is_read_back_without_a_line_that_was_cut_short(journal: Journal, tmp_path: Path) -> None:
    path = tmp_path / "journal.jsonl"
    path.write_bytes(path.read_bytes() + b'{"kind": "pair", "numb')
    again = Journal(path, {"bundle": "x"})
    assert again.entries == journal.entries and again.find("fpga") == {"kind": "fpga", "cycles": 3}
    again.add("pair", number=2)
    assert [entry["number"] for entry in Journal(path, {"bundle": "x"}).all("pair")] == [1, 2]


def test_a_journal_of_something_else_starts_anew(journal: Journal, tmp_path: Path) -> None:
    assert Journal(tmp_path / "journal.jsonl", {"bundle": "y"}).entries == []


def test_a_damaged_journal_is_said(journal: Journal, tmp_path: Path) -> None:
    path = tmp_path / "journal.jsonl"
    path.write_bytes(b"{]\n" + path.read_bytes())
    with pytest.raises(WattbitError, match=r"journal\.jsonl is damaged .*delete it to measure anew"):
        Journal(path, {"bundle": "x"})


def test_a_full_disk_here_keeps_what_was_written(
    journal: Journal, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(descriptor: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("os.fsync", full)
    with pytest.raises(WattbitError, match=r"journal\.jsonl cannot be written: .*No space left"):
        journal.add("pair", number=2)
    monkeypatch.undo()
    assert [entry["number"] for entry in Journal(tmp_path / "journal.jsonl", {"bundle": "x"}).all("pair")] == [1]
