"""The whole benchmark over a board that is a folder of this machine."""

import gzip
import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.board_stub import (
    CLOCK_MHZ,
    CYCLES_PER_PACKET,
    DIGEST,
    TARGET,
    D,
    FolderBoard,
    make_parts,
)
from wattbit.arith import ExpertInts, forward
from wattbit.board.agent.power import PowerModel
from wattbit.board.agent.session import PROTOCOL
from wattbit.board.bench import Settings, bench
from wattbit.board.bundle import pack
from wattbit.board.client import AgentClient
from wattbit.board.deploy import deploy
from wattbit.board.energy import evaluate
from wattbit.board.targets import Power
from wattbit.errors import ToolError, WattbitError
from wattbit.files import read_json
from wattbit.plan import Allocation, Measurement
from wattbit.shell import HEADER_BYTES
from wattbit.tvm_schedules.compile import build
from wattbit.tvm_schedules.cores import host_core


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run folder with a bundle over the stub."""
    folder = tmp_path_factory.mktemp("run")
    pack(make_parts(folder), TARGET, folder / "bundle")
    return folder


def test_bench_closes(run: Path, tmp_path: Path) -> None:
    board = FolderBoard(tmp_path / "home")
    steps: list[tuple[int, int]] = []
    result = bench(run / "bundle", board, tmp_path / "bench", lambda what, done, total: steps.append((done, total)))
    packets_, per_token = 60, 2
    assert result == read_json(tmp_path / "bench" / "bench.json")
    assert result["bit_exact"] and result["packets"] == packets_ and result["arm"] is None
    assert result["fpga"]["cycles_per_token"] == CYCLES_PER_PACKET * per_token
    assert result["fpga"]["ms_per_token"] == pytest.approx(CYCLES_PER_PACKET * per_token / CLOCK_MHZ / 1e3)
    assert result["fpga"]["provenance"] == result["energy"]["provenance"] == "simulated"
    assert result["energy"]["launches"] > result["energy"]["launches_executed"] == 1
    assert steps == sorted(steps) and steps[-1][0] == steps[-1][1]

    raw = json.loads(gzip.decompress((tmp_path / "bench" / "raw.json.gz").read_bytes()))
    measurement = Measurement.from_json(raw["measurements"][0])
    assert evaluate(measurement).net_j == result["energy"]["net_j"]
    model, launch_s = PowerModel(), CYCLES_PER_PACKET * packets_ / CLOCK_MHZ / 1e6
    with np.load(run / "export" / "vectors.npz") as known:
        narrow = int((known["expert"] % 2 == 0).sum())
    macs = {(4, 8): narrow * 2 * D * 8, (8, 8): (packets_ - narrow) * 2 * D * 8}
    moved_bits = packets_ * 8 * (HEADER_BYTES + 2 * D)
    net_w = model.launch_w(macs, launch_s, moved_bits) - model.idle_w
    assert result["energy"]["net_j"] == pytest.approx(net_w * 12, abs=2 * result["energy"]["net_half_j"])
    assert result["energy"]["net_mj_per_token"] == pytest.approx(
        net_w * launch_s / packets_ * per_token * 1e3, rel=0.05
    )


def test_bench_leaves_raw_samples_a_picture_and_a_table(run: Path, tmp_path: Path) -> None:
    out = tmp_path / "bench"
    result = bench(run / "bundle", FolderBoard(tmp_path / "home"), out)
    assert {path.name for path in out.iterdir()} == {"bench.json", "raw.json.gz", "power.png"}
    assert result["latency"]["fpga_us"] == {"p50": 0.2, "p95": 0.2, "p99": None}, "24 launches have no 99th percentile"
    assert result["latency"]["with_software_us"] is None, "a virtual board has no time of its own"
    assert result["throughput"]["tokens_per_s"] == pytest.approx(CLOCK_MHZ * 1e6 / CYCLES_PER_PACKET / 2)
    assert result["memory"]["expert_weight_bytes"] == 3 * (4 + 8) * 2 * D * 8 // 8
    assert result["energy"]["stopped"] == "interval" and result["energy"]["interval"] <= 0.02
    for words in ("60 vectors bit-exact", "mJ/token (simulated)", "simulated 5V: ", "pairs, ended by interval"):
        assert words in result["summary"]


def test_a_measurement_ends_when_its_time_is_up(run: Path, tmp_path: Path) -> None:
    settings = Settings(width=1e-9, budget_s=600)
    result = bench(run / "bundle", FolderBoard(tmp_path / "home"), tmp_path / "bench", settings=settings)
    energy = result["energy"]
    assert energy["stopped"] == "time" and energy["interval"] > 1e-9
    raw = json.loads(gzip.decompress((tmp_path / "bench" / "raw.json.gz").read_bytes()))
    (measurement,) = raw["measurements"]
    assert 500 < measurement["windows"][-1][2] - measurement["windows"][0][1] < 650
    assert energy["pairs"] == (len(measurement["windows"]) - 1) // 2 > Settings().pairs


@pytest.mark.parametrize(
    ("power", "reason"),
    [
        (Power("external"), "the board has no sensor; name an external meter with --meter"),
        (Power("none"), "its target asks for no energy figure (source none)"),
    ],
)
def test_without_a_sensor_there_is_no_energy_figure(tmp_path: Path, power: Power, reason: str) -> None:
    pack(make_parts(tmp_path), TARGET, tmp_path / "bundle", power=power)
    result = bench(tmp_path / "bundle", FolderBoard(tmp_path / "home"), tmp_path / "bench")
    assert result["energy"]["reason"] == reason and result["energy"]["net_mj_per_token"] is None
    assert f"none: {reason}" in result["summary"] and result["bit_exact"]
    assert not (tmp_path / "bench/power.png").exists()


def test_an_agent_of_another_version_is_refused(run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    board = FolderBoard(tmp_path / "home")
    place = deploy(run / "bundle", board)
    monkeypatch.setattr("wattbit.board.client.PROTOCOL", PROTOCOL + 1)
    with (
        pytest.raises(WattbitError, match=f"folder-board speaks protocol {PROTOCOL}, not {PROTOCOL + 1}; deploy again"),
        AgentClient(board, place),
    ):
        pass


def test_bench_names_the_expert_that_differs(tmp_path: Path) -> None:
    parts = make_parts(tmp_path)
    with np.load(parts.export / "vectors.npz") as known:
        arrays = dict(known)
    wrong = arrays["expert"] == 3
    arrays["y"][wrong, 0] += 1
    np.savez(parts.export / "vectors.npz", **arrays)
    pack(parts, TARGET, tmp_path / "bundle")
    with pytest.raises(WattbitError, match=rf"{wrong.sum()} of 60 outputs of fpga differ.*L0E3 \({wrong.sum()}\)"):
        bench(tmp_path / "bundle", FolderBoard(tmp_path / "home"), tmp_path / "bench")
    assert not (tmp_path / "bench" / "bench.json").exists()


def test_bench_counts_the_vectors(run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def without_the_last(self: AgentClient, cmd: str, **fields: Any) -> dict[str, Any]:
        reply = request(self, cmd, **fields)
        return reply | {"rows": reply["rows"][:-1]} if cmd == "run" else reply

    request = AgentClient.request
    monkeypatch.setattr(AgentClient, "request", without_the_last)
    with pytest.raises(WattbitError, match="fpga ran 59 of 60 vectors"):
        bench(run / "bundle", FolderBoard(tmp_path / "home"), tmp_path / "bench")


def test_bench_refuses_vectors_of_another_run(run: Path, tmp_path: Path) -> None:
    other = make_parts(tmp_path, seed=1).export / "vectors.npz"
    with pytest.raises(WattbitError, match="has other inputs than the bundle"):
        bench(run / "bundle", FolderBoard(tmp_path / "home"), tmp_path / "bench", vectors=other)


def test_an_agent_that_ends_is_an_error_with_its_last_words(run: Path, tmp_path: Path) -> None:
    board = FolderBoard(tmp_path / "home")
    place = deploy(run / "bundle", board)
    with AgentClient(board, place) as agent:
        agent.request("hello")
        agent._process.kill()
        agent._process.wait()
        for _ in range(2):  # a meter tries again
            with pytest.raises(
                ToolError, match="the agent on folder-board failed with exit status -9: no message; it ended; the"
            ):
                agent.request("hello")


@pytest.mark.slow
def test_a_board_without_logic_is_measured_on_its_cores(tmp_path: Path) -> None:
    """For real: this machine's own cores, its own time."""
    target = replace(TARGET, name="host", core=host_core().name, part=None, clock_mhz=None)
    parts = make_parts(tmp_path)
    allocation = Allocation.of({p.expert: p.precision.weight_bits for p in parts.allocation.placements}, engine="arm")
    build(parts.export, allocation, target.core, tmp_path / "arm")
    design = {"digest": DIGEST, "engines": []}
    cores = replace(
        parts, allocation=allocation, design=design, kernels=tmp_path / "arm", accelerator=None, toolchain="none"
    )
    pack(cores, target, tmp_path / "bundle", power=Power("none"))
    with np.load(parts.export / "vectors.npz") as known:
        arrays = dict(known)
    for number in set(arrays["expert"].tolist()):
        rows = arrays["expert"] == number
        arrays["y"][rows] = forward(ExpertInts.load(parts.export / f"L0E{number}.npz"), arrays["x"][rows])
    np.savez(parts.export / "vectors.npz", **arrays)
    settings = Settings(launches=120)
    result = bench(tmp_path / "bundle", FolderBoard(tmp_path / "home"), tmp_path / "bench", settings=settings)
    assert result["fpga"] is None and result["arm"]["provenance"] == "measured"
    assert result["latency"]["fpga_us"] is None and result["latency"]["launches"] == 120
    quantiles = list(result["latency"]["with_software_us"].values())
    assert quantiles == sorted(quantiles) and quantiles[0] > 0
    assert result["throughput"]["provenance"] == "measured" and result["memory"]["agent_peak_bytes"] > 1e6
    assert "us a launch (120; measured)" in result["summary"]
