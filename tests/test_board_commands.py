"""The boards' commands: one-line errors, a meter that is read, options that reach the benchmark."""

import os
import pty
import subprocess
import sys
import tempfile
import threading
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner, Result

from tests.board_stub import TARGET, make_parts
from tests.board_support import cache_or_skip
from wattbit.board import qemu, system
from wattbit.board.bundle import pack
from wattbit.board.connect import board
from wattbit.board.deploy import deploy
from wattbit.cli import main
from wattbit.commands.meter import Rail
from wattbit.presets import run_config
from wattbit.run import Run


def run(*arguments: str) -> Result:
    return CliRunner().invoke(main, list(arguments))


def fails_in_one_line(result: Result, *words: str) -> None:
    assert result.exit_code == 1, result.output
    line = result.stderr.strip().splitlines()[-1]
    assert line.startswith("wattbit: ")
    for word in words:
        assert word in line


def test_a_board_of_the_system_tier_has_no_version_to_go_back_to(tmp_path: Path) -> None:
    folder = Run.create(tmp_path / "runs", run_config("tiny", None, "virtual-z2-system", 0)).folder
    fails_in_one_line(run("rollback", "--run", str(folder)), "made anew each time", "--host")


def test_the_virtual_board_goes_back_to_the_version_before(tmp_path: Path) -> None:
    made = Run.create(tmp_path / "runs", run_config("tiny", None, "virtual-z2", 0))
    parts = make_parts(tmp_path / "made", "aarch64-linux-gnu-gcc")
    digests = []
    with board("virtual-z2", cache_or_skip(), made.path("board")) as connection:
        for top_k in (1, 2):
            digests.append(pack(replace(parts, top_k=top_k), TARGET, tmp_path / f"bundle{top_k}")["digest"])
            deploy(tmp_path / f"bundle{top_k}", connection)
    result = run("rollback", "--run", str(made.folder))
    assert result.exit_code == 0, result.output
    assert result.stdout == f"virtual-z2: from {digests[1]} back to {digests[0]}\n"


def test_a_rail_that_is_a_formula_cannot_be_watched() -> None:
    fails_in_one_line(run("meter", "--board", "virtual-z2"), "formula without a clock", "virtual-z2-system")
    fails_in_one_line(run("meter", "--board", "pynq-z2"), "no sensor that can be watched", "--meter")
    fails_in_one_line(run("meter", "--meter", "usb"), "a meter is named serial:DEVICE")


def test_an_external_meter_is_shown() -> None:
    master, slave = pty.openpty()

    def send() -> None:
        for _ in range(20):
            os.write(master, b"v=5.0 a=0.5\n")
            time.sleep(0.05)

    threading.Thread(target=send, daemon=True).start()
    result = run("meter", "--meter", f"serial:{os.ttyname(slave)}")
    assert result.exit_code == 0, result.output
    assert "watts, measured" in result.output and "2.5000" in result.output


def test_no_virtual_board_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WATTBIT_CACHE", str(tmp_path))
    fails_in_one_line(run("virtual-board", "stop"), "no virtual board runs", "virtual-board start")


def test_the_options_of_bench_reach_the_benchmark(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[Any] = []
    monkeypatch.setattr("wattbit.commands.bench.perform", lambda *_, **__: None)
    monkeypatch.setattr("wattbit.commands.bench.bundle_of", lambda run, progress: tmp_path)
    monkeypatch.chdir(tmp_path)
    folder = Run.create(tmp_path / "runs", run_config("tiny", None, "virtual-z2", 0)).folder

    class Opened:
        def __enter__(self) -> str:
            return "connection"

        def __exit__(self, *_: object) -> None: ...

    def bench(bundle: Path, connection: str, out: Path, progress: Any, vectors: Path, settings: Any) -> dict[str, Any]:
        seen.append((connection, out, settings))
        return {"summary": "the table"}

    monkeypatch.setattr("wattbit.board.connect.board", lambda *arguments: Opened())
    monkeypatch.setattr("wattbit.board.bench.bench", bench)
    result = run("bench", "--run", str(folder), "--meter", "tcp:m:1", "--window", "20", "--host", "me@pynq")
    assert result.exit_code == 0 and "the table" in result.output, result.output
    ((connection, out, settings),) = seen
    assert connection == "connection" and out == folder / "hosts" / "me@pynq"
    assert (settings.meter, settings.window_s, settings.width) == ("tcp:m:1", 20.0, 0.02)


def test_a_run_in_use_is_not_benchmarked(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("wattbit.commands.bench.perform", lambda *_, **__: None)
    monkeypatch.setattr("wattbit.commands.bench.bundle_of", None)
    monkeypatch.chdir(tmp_path)
    made = Run.create(tmp_path / "runs", run_config("tiny", None, "virtual-z2", 0))
    with made.lock():
        fails_in_one_line(run("bench", "--run", str(made.folder), "--window", "20"), "is in use by another command")


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (("bench", "--meter", "usb"), "a meter is named serial:DEVICE"),
        (("bench", "--board", "nowhere"), "there is no board 'nowhere'"),
        (("deploy", "--board", "nowhere"), "there is no board 'nowhere'"),
        (("generate", "def", "--board", "nowhere"), "there is no board 'nowhere'"),
        (("generate", ""), "the prompt has no tokens"),
    ],
)
def test_what_is_wrong_is_said_before_any_stage_runs(options: tuple[str, ...], words: str, tmp_path: Path) -> None:
    folder = Run.create(tmp_path / "runs", run_config("tiny", None, "virtual-z2", 0)).folder
    fails_in_one_line(run(*options, "--run", str(folder)), words)
    assert not (folder / "stages").exists()


def test_a_rails_bars_span_its_range() -> None:
    rail = Rail()
    for power_w in (1.0, 1.5, 2.0):
        rail.add(power_w)
    assert rail.bars() == " ▄█" and (rail.least_w, rail.greatest_w, rail.total_w) == (1.0, 2.0, 4.5)


def test_a_virtual_board_whose_start_is_interrupted_is_ended(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    servers: list[subprocess.Popen[str]] = []

    def start(_: object, **settings: Any) -> "subprocess.Popen[str]":
        servers.append(popen([sys.executable, "-c", "import time; time.sleep(1000)"], **settings))
        return servers[-1]

    def interrupt(*_: object) -> int:
        raise KeyboardInterrupt

    popen = subprocess.Popen
    monkeypatch.setattr(system, "ensure", lambda *_: tmp_path)
    monkeypatch.setattr(system.subprocess, "Popen", start)
    monkeypatch.setattr(system, "_port", interrupt)
    with pytest.raises(KeyboardInterrupt):
        system.Detached.start(tmp_path)
    (server,) = servers
    ended = server.poll() is not None
    server.kill()
    assert ended and not list(Path(tempfile.gettempdir()).glob("wattbit-board-*"))


def test_a_machine_that_cannot_start_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(FileNotFoundError, match="qemu-system-aarch64"), qemu.Machine(tmp_path, tmp_path / "disk"):
        pass
    assert not list(Path(tempfile.gettempdir()).glob("wattbit-qemu-*"))
