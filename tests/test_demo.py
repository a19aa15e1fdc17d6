"""`wattbit demo` as a user runs it: all the way, once only, and on from where Ctrl-C stopped it."""

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner

from tests.board_support import cache_or_skip
from tests.temporary import left_in
from wattbit.cli import main
from wattbit.errors import WattbitError
from wattbit.files import read_json
from wattbit.pipeline import PIPELINE
from wattbit.progress import silent
from wattbit.run import Run

signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell's background jobs ignore it and so would ours
DEMO = [str(Path(sys.executable).with_name("wattbit")), "demo", "--preset", "tiny"]
METHODS = {"uniform8", "uniform4", "linear", "random", "exact", "dmpq"}
WORDS = {"measured", "simulated", "modelled"}
LIMIT_S = 900
# how far into a stage to interrupt it; longer where another part of it shall be hit: yosys and compilers at work
MOMENTS_S = {"stats": 0.2, "search": 0.1, "cotrain": 3.0, "build": 12.0, "controls": 8.0, "bench": 4.0, "report": 0.1}


@dataclass
class Place:
    """A working folder with a temporary folder of its own, so that whatever a command leaves there is seen."""

    folder: Path
    cache: Path

    @property
    def temporary(self) -> Path:
        return self.folder / "tmp"

    @property
    def run(self) -> Path:
        (found,) = (self.folder / "runs").iterdir()
        return found

    def start(self, *options: str) -> "subprocess.Popen[str]":
        self.temporary.mkdir(exist_ok=True)
        environment = os.environ | {"WATTBIT_CACHE": str(self.cache), "TMPDIR": str(self.temporary)}
        return subprocess.Popen(
            [*DEMO, *options],
            cwd=self.folder,
            env=environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            start_new_session=True,
        )

    def demo(self, *options: str) -> str:
        """What a demo that must succeed prints."""
        with self.start(*options) as process:
            stdout, stderr = process.communicate(timeout=LIMIT_S)
        assert process.returncode == 0, stderr
        return stdout

    def processes(self) -> list[str]:
        """Command lines of the living processes that work in this place or have its temporary folder."""
        found = []
        for process in Path("/proc").glob("[0-9]*"):
            try:
                told = (process / "cmdline").read_bytes() + (process / "environ").read_bytes()
            except OSError:
                continue  # it has ended
            if str(self.folder).encode() in told and process.name != str(os.getpid()):
                found.append((process / "cmdline").read_text().replace("\0", " "))
        return found

    def results(self) -> dict[str, Any]:
        cotrained = read_json(self.run / "cotrain/cotrain.json")["methods"]
        return {
            "perplexity": {name: method["perplexity_after"] for name, method in cotrained.items()},
            "allocation": read_json(self.run / "cotrain/allocation.json"),
            "design": read_json(self.run / "build/hls/build.json")["digest"],
            "cycles": read_json(self.run / "bench/bench.json")["fpga"]["cycles"],
        }


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Place:
    place = Place(tmp_path_factory.mktemp("demo"), cache_or_skip())
    assert "report.html" in place.demo()
    return place


def test_report_has_every_method(finished: Place) -> None:
    rows = {row["method"]: row for row in read_json(finished.run / "report/report.json")}
    assert set(rows) == METHODS
    for row in rows.values():
        assert row["perplexity"] > 1 and row["memory_bytes"] > 0 and row["cycles_per_token"] > 0
    page = (finished.run / "report/report.html").read_text()
    assert page.count('src="data:image/png;base64,') == 3, "the pictures are in the page"
    measured = read_json(finished.run / "bench/bench.json")
    assert measured["bit_exact"] and measured["packets"] > 0


def provenances(value: Any) -> Iterator[str]:
    if isinstance(value, dict):
        for name, inner in value.items():
            yield from [inner] if name == "provenance" else provenances(inner)
    elif isinstance(value, list):
        for inner in value:
            yield from provenances(inner)


def test_numbers_say_where_they_come_from(finished: Place) -> None:
    found = {word for path in finished.run.rglob("*.json") for word in provenances(read_json(path))}
    assert found <= WORDS
    assert {"simulated", "modelled"} <= found


def test_what_is_done_is_not_redone(finished: Place) -> None:
    before = {path: path.stat().st_mtime_ns for path in finished.run.rglob("*") if path.is_file()}
    answer = json.loads(finished.demo("--json"))
    assert answer["stage"] == "report" and len(answer["result"]["rows"]) == len(METHODS)
    assert {path: path.stat().st_mtime_ns for path in before if path.name != ".lock"} == {
        path: at for path, at in before.items() if path.name != ".lock"
    }


def test_deploy_says_where_the_bundle_is(finished: Place) -> None:
    said = CliRunner().invoke(main, ["deploy", "--run", str(finished.run)])
    board, place = said.stdout.rstrip("\n").split(": ")
    assert board == "virtual-z2", said.output
    assert (finished.run / "board" / place / "manifest.json").read_bytes() == (
        finished.run / "bundle/manifest.json"
    ).read_bytes()
    told = json.loads(CliRunner().invoke(main, ["deploy", "--run", str(finished.run), "--json"]).stdout)
    assert (told["stage"], told["result"]["place"]) == ("deploy", place)


def test_nothing_is_left_behind(finished: Place) -> None:
    assert hidden(finished.run) == []
    assert left_in(finished.temporary) == []
    assert finished.processes() == []


def hidden(run: Path) -> list[Path]:
    """Temporary files and folders in a run folder; what the board's own user keeps there is not ours."""
    mine = (path for path in run.rglob(".*") if run / "board" not in path.parents or path.name.startswith(".incoming"))
    return [path for path in mine if path.name != ".lock"]


@pytest.mark.parametrize(
    ("file", "maker", "stage"),
    [
        ("model/float.safetensors", "train", "stats"),
        ("cotrain/model.safetensors", "cotrain", "export"),
        ("export/L0E0.npz", "export", "build"),
        ("export/vectors.npz", "export", "bench"),
        ("bundle/vectors.npz", "deploy", "bench"),
    ],
)
def test_a_truncated_file_is_made_again(finished: Place, tmp_path: Path, file: str, maker: str, stage: str) -> None:
    """The stage that made it is pending again; one that meets it before that names it and the remedy in one line."""
    shutil.copytree(finished.run, tmp_path / finished.run.name)
    run = Run.open(tmp_path / finished.run.name)
    assert PIPELINE.pending("report", run) == []
    os.truncate(run.path(file), 100)
    assert [pending.name for pending in PIPELINE.pending("report", run)] == [maker]
    with pytest.raises(WattbitError, match=rf"{Path(file).name}.*;"):
        PIPELINE.stages[stage].work(run, silent)


@pytest.mark.slow
@pytest.mark.parametrize("terminal", [True, False], ids=["terminal", "process"])
def test_interrupted_in_every_stage(finished: Place, tmp_path: Path, terminal: bool) -> None:
    """terminal: Ctrl-C goes to all processes of the foreground; else the signal goes to wattbit alone."""
    place = Place(tmp_path, finished.cache)
    missed = [name for name in PIPELINE.stages if not interrupt(place, name, terminal)]
    assert not missed, "these stages ended before they could be interrupted"
    place.demo()
    assert place.results() == finished.results()
    assert hidden(place.run) == []


def interrupt(place: Place, stage: str, terminal: bool) -> bool:
    """Start the demo and interrupt it in the stage; whether it was in it. The laws of an interrupted command hold."""
    with place.start() as process:
        deadline = time.monotonic() + LIMIT_S
        started = place.folder / "runs" / "*" / "stages" / f"{stage}.started"
        while not list(place.folder.glob(str(started.relative_to(place.folder)))):
            assert process.poll() is None, process.stderr and process.stderr.read()
            assert time.monotonic() < deadline
            time.sleep(0.02)
        time.sleep(MOMENTS_S.get(stage, 0.5))
        (os.killpg if terminal else os.kill)(process.pid, signal.SIGINT)
        _, stderr = process.communicate(timeout=30)
    hit = not (place.run / "stages" / f"{stage}.json").exists()
    assert process.returncode == 130, f"{stage}: {stderr}"
    assert stderr.splitlines()[-1] == "wattbit: interrupted; the same command resumes from here", f"{stage}: {stderr}"
    assert "Traceback" not in stderr
    deadline = time.monotonic() + 5
    while place.processes() and time.monotonic() < deadline:
        time.sleep(0.1)
    assert place.processes() == [], stage
    assert hidden(place.run) == [], stage
    assert left_in(place.temporary) == [], stage
    for path in place.run.rglob("*.json"):
        json.loads(path.read_text())
    return hit
