"""The agent's protocol on the host: one reply a request, errors that end nothing, outputs of the design."""

import json
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from tests.board_stub import (
    CLOCK_MHZ,
    CYCLES_PER_PACKET,
    DIGEST,
    EXPERTS,
    TARGET,
    D,
    converse,
    load_stub,
    make_parts,
    stub_outputs,
)
from wattbit.arith import ExpertInts, forward
from wattbit.board.agent.session import PROTOCOL, Session, decode_array, encode_array
from wattbit.board.bundle import pack
from wattbit.errors import WattbitError
from wattbit.plan import ExpertId
from wattbit.tvm_schedules.compile import build
from wattbit.tvm_schedules.cores import host_core

RNG = np.random.default_rng(0)


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run folder with a bundle over the stub."""
    folder = tmp_path_factory.mktemp("run")
    pack(make_parts(folder), TARGET, folder / "bundle")
    return folder


@pytest.fixture
def session(run: Path) -> Session:
    return Session(run / "bundle", load_stub)


def ask(session: Session, *requests: dict[str, Any]) -> list[dict[str, Any]]:
    return [json.loads(line) for line in converse(session, *map(json.dumps, requests))]


def test_one_reply_a_request(session: Session) -> None:
    replies = ask(session, {"cmd": "hello"}, {"cmd": "load"}, {"cmd": "quit"}, {"cmd": "hello"})
    assert len(replies) == 3, "nothing is answered after quit"
    assert replies[0]["protocol"] == PROTOCOL and replies[0]["numpy"] == np.__version__
    assert replies[1]["design"] == DIGEST and replies[1]["clock_mhz"] == CLOCK_MHZ and replies[1]["engines"] == 2


def test_run_gives_every_vector_of_the_bundle(session: Session, run: Path) -> None:
    reply = ask(session, {"cmd": "load"}, {"cmd": "run", "engine": "fpga"})[1]
    with np.load(run / "export" / "vectors.npz") as known:
        assert (decode_array(reply["y"]) == known["y"][reply["rows"]]).all()
        assert reply["rows"] == list(range(len(known["y"])))
        assert reply["cycles"] == CYCLES_PER_PACKET * len(known["y"])
    assert reply["wall_s"] is None, "a virtual board has no time of its own"


def test_run_takes_vectors_of_the_host(session: Session) -> None:
    x = RNG.integers(-128, 128, (3, D)).astype(np.int8)
    request = {"cmd": "run", "experts": ["L0E1", "L0E4", "L0E1"], "x": encode_array(x)}
    reply = ask(session, {"cmd": "load"}, request)[1]
    assert (decode_array(reply["y"]) == stub_outputs(np.array([1, 0, 1]), np.array([0, 2, 0]), x)).all()


@pytest.mark.parametrize(
    ("request_", "message"),
    [
        (
            {"cmd": "fly"},
            "cmd must be one of hello, clock, load, run, latency, generate, idle, active, power, memory, quit, not fly",
        ),
        ([1], "cmd must be one of"),
        ({"cmd": "run", "speed": 3}, "run: got an unexpected keyword argument 'speed'"),
        ({"cmd": "idle"}, "idle: missing a required argument: 'seconds'"),
        ({"cmd": "run", "engine": "gpu"}, "engine must be fpga or arm, not gpu"),
        ({"cmd": "run", "engine": 3, "experts": [], "x": ""}, "engine must be fpga or arm, not 3"),
        ({"cmd": "run", "engine": "arm"}, "the bundle has no ARM kernels"),
        ({"cmd": "run", "experts": ["L7E7"], "x": encode_array(np.zeros((1, D), np.int8))}, "no expert L7E7"),
        ({"cmd": "run", "experts": ["L0E0"], "x": "AAAA"}, "not a base64 npy array"),
        ({"cmd": "run", "experts": ["L0E0"], "x": encode_array(np.zeros((1, D), np.int32))}, "int8 inputs"),
        ({"cmd": "active", "seconds": 1, "engine": "arm"}, "no ARM kernels"),
    ],
)
def test_a_bad_request_is_an_error_and_not_the_end(session: Session, request_: Any, message: str) -> None:
    _, refused, after = ask(session, {"cmd": "load"}, request_, {"cmd": "run"})
    assert message in refused["error"] and "cycles" in after


def test_what_is_no_json_is_an_error(session: Session) -> None:
    assert "not a JSON request" in json.loads(converse(session, "{")[0])["error"]


def test_nothing_runs_before_load(session: Session) -> None:
    assert all("send load first" in reply["error"] for reply in ask(session, {"cmd": "run"}, {"cmd": "power"}))


def test_an_altered_bundle_is_not_loaded(run: Path, tmp_path: Path) -> None:
    pack(make_parts(tmp_path), TARGET, tmp_path / "bundle")
    (tmp_path / "bundle" / "accel.hwh").write_text("")
    reply = ask(Session(tmp_path / "bundle", load_stub), {"cmd": "load"})[0]
    assert "accel.hwh in the bundle is truncated" in reply["error"]


def test_arrays_go_through_text() -> None:
    for array in (np.arange(6, dtype=np.int8).reshape(2, 3), np.zeros((0, 4), np.int8)):
        again = decode_array(encode_array(array))
        assert again.dtype == array.dtype and np.array_equal(again, array)


def test_standard_output_is_the_protocols_alone(run: Path) -> None:
    """The real program: what libraries print goes to standard error."""
    noisy = "import os, sys; from wattbit.board.agent import __main__ as m; h = m.Session.hello\n"
    noisy += "def hello(self): print('noise'); os.system('echo noise'); return h(self)\n"
    noisy += "m.COMMANDS['hello'] = hello; m.main()"
    done = subprocess.run(
        [sys.executable, "-c", noisy, str(run / "bundle")],
        input='{"cmd": "hello"}\n',
        capture_output=True,
        text=True,
        check=True,
    )
    assert json.loads(done.stdout)["protocol"] == PROTOCOL and done.stderr.count("noise") == 2


def test_a_window_after_another_run_has_the_bundles_vectors_again(session: Session) -> None:
    x = encode_array(np.zeros((3, D), np.int8))
    other: dict[str, Any] = {"cmd": "run", "experts": ["L0E1"] * 3, "x": x}
    active: dict[str, Any] = {"cmd": "active", "seconds": 1}
    _, first, again, _, second = ask(session, {"cmd": "load"}, active, active, other, active)
    assert first["packets"] == second["packets"] == 60
    assert first["cycles"] == second["cycles"] == CYCLES_PER_PACKET * 60 * first["launches"]
    assert [window["executed"] for window in (first, again, second)] == [1, 0, 1]


@pytest.mark.parametrize("cmd", ["run", "active"])
@pytest.mark.parametrize("engine", ["fpga", "arm"])
@pytest.mark.parametrize(
    ("experts", "x", "message"),
    [
        (["L0E0"], None, "experts and x go together"),
        (None, np.zeros((1, 8), np.int8), "experts and x go together"),
        ([], np.zeros((0, 8), np.int8), "experts and x go together"),
        (["L0E0"] * 2, np.zeros((3, 8), np.int8), r"2 experts need int8 inputs with a row for each, not int8 \[3, 8\]"),
        (["L0E0"], np.zeros((1, 8), np.float32), r"not float32 \[1, 8\]"),
    ],
)
def test_vectors_of_the_host_that_do_not_match_are_refused(
    session: Session, cmd: str, engine: str, experts: list[str] | None, x: NDArray[Any] | None, message: str
) -> None:
    session.load()
    fields: dict[str, Any] = {"engine": engine, "experts": experts, "x": None if x is None else encode_array(x)}
    with pytest.raises(WattbitError, match=message):
        session.run(**fields) if cmd == "run" else session.active(0.5, **fields)


def test_a_window_runs_vectors_of_the_host_and_the_next_one_the_bundles_own(session: Session) -> None:
    session.load()
    own = session.active(0.5)
    name = next(n for n, record in session.manifest["experts"].items() if record["engine"] is not None)
    x = encode_array(np.zeros((3, session.manifest["model"]["d_model"]), np.int8))
    given = session.active(0.5, experts=[name] * 3, x=x)
    assert given["packets"] == 3 < own["packets"]
    assert given["cycles"] / given["launches"] < own["cycles"] / own["launches"], "fewer packets, fewer cycles"
    again = session.active(0.5)
    assert (again["packets"], again["cycles"]) == (own["packets"], own["cycles"])


def test_arm_kernels_give_the_deployed_arithmetic(tmp_path: Path) -> None:
    """On this machine's own cores: agent == host."""
    target = replace(TARGET, core=host_core().name)
    parts = make_parts(tmp_path)
    build(parts.export, parts.allocation, target.core, tmp_path / "arm")
    pack(replace(parts, kernels=tmp_path / "arm"), target, tmp_path / "bundle")
    reply = ask(Session(tmp_path / "bundle", load_stub), {"cmd": "load"}, {"cmd": "run", "engine": "arm"})[1]
    y = decode_array(reply["y"])
    with np.load(parts.export / "vectors.npz") as known:
        for number in range(EXPERTS):
            ints = ExpertInts.load(parts.export / f"L0E{number}.npz")
            rows = known["expert"] == number
            assert (y[rows] == forward(ints, known["x"][rows])).all()
    with pytest.raises(WattbitError, match=f"the kernels are for {target.core}, virtual-z2 has cortex-a53"):
        pack(replace(parts, kernels=tmp_path / "arm"), TARGET, tmp_path / "other")


def test_the_time_of_the_cores_is_of_warm_passes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """By a clock that the kernels move: 100 s to open them, 10 s an expert at first, then 1 s, and once a minute."""
    now_s = [0.0]
    opened: list[Path] = []

    class Kernels:
        def __init__(self, folder: Path) -> None:
            now_s[0] += 100
            opened.append(folder)
            self.calls = 0

        def forward(self, expert: ExpertId, x: NDArray[np.int8]) -> NDArray[np.int8]:
            self.calls += 1
            now_s[0] += 10 if self.calls <= EXPERTS else 60 if self.calls == 2 * EXPERTS else 1
            return x

    parts = make_parts(tmp_path)
    (tmp_path / "arm").mkdir()
    (tmp_path / "arm/kernels.json").write_text(json.dumps({"core": TARGET.core}))
    pack(replace(parts, kernels=tmp_path / "arm", toolchain="vivado"), TARGET, tmp_path / "bundle")
    monkeypatch.setattr("wattbit.tvm_schedules.boardside.Kernels", Kernels)
    monkeypatch.setattr("wattbit.board.agent.session.time", SimpleNamespace(monotonic=lambda: now_s[0]))
    monkeypatch.setenv("WATTBIT_PART", "xc7z020")
    session = Session(tmp_path / "bundle", load_stub)
    session.load()
    assert len(opened) == 1 and now_s == [100]
    assert [session.run("arm")["wall_s"] for _ in range(2)] == [EXPERTS, EXPERTS]
    session.load()
    assert len(opened) == 1, "what resets an accelerator opens nothing again"


def test_an_agent_at_work_ends_when_its_host_goes_away(run: Path) -> None:
    """Nothing is left running on a board: not even a window that has an hour to go."""
    busy = "import time; from wattbit.board.agent import __main__ as m\n"
    busy += "def hello(self): print('at work', flush=True); time.sleep(3600)\n"
    busy += "m.COMMANDS['hello'] = hello; m.GRACE_S = 0.2; m.main()"
    with subprocess.Popen(
        [sys.executable, "-c", busy, str(run / "bundle")],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    ) as agent:
        assert agent.stdin is not None and agent.stderr is not None
        agent.stdin.write('{"cmd": "hello"}\n')
        agent.stdin.flush()
        assert agent.stderr.readline() == "at work\n"
        agent.stdin.close()
        assert agent.wait(20) == 1
