"""The whole benchmark over a board that is a folder of this machine."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.board_stub import (
    CLOCK_MHZ,
    CYCLES_PER_PACKET,
    TARGET,
    D,
    FolderBoard,
    make_parts,
)
from wattbit.board.agent.power import PowerModel
from wattbit.board.bench import bench
from wattbit.board.bundle import pack
from wattbit.board.client import AgentClient
from wattbit.board.deploy import deploy
from wattbit.board.energy import evaluate
from wattbit.errors import ToolError, WattbitError
from wattbit.files import read_json
from wattbit.plan import Measurement
from wattbit.shell import HEADER_BYTES


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
    assert result["energy"]["launches"] > result["energy"]["launches_executed"] == 0
    assert steps == sorted(steps) and steps[-1][0] == steps[-1][1]

    measurement = Measurement.from_json(read_json(tmp_path / "bench" / "measurement.json"))
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
    assert not (tmp_path / "bench").exists()


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
        with pytest.raises(ToolError, match="the agent on folder-board ended"):
            agent.request("hello")
