"""Fetching the tools and keeping a build's steps: what fails says why in one line, what is done is not redone."""

import os
import time
from dataclasses import replace
from pathlib import Path

import pytest

from tests.hls_engine_support import Z2
from wattbit.errors import WattbitError
from wattbit.files import write_json
from wattbit.hls.open import tools
from wattbit.hls.open.route import followed, phase
from wattbit.hls.open.steps import once, run
from wattbit.hls.open.toolchain import OpenToolchain
from wattbit.plan import Target

KV260 = Target("kv260", "KV260", "aarch64", "a53", 4, 1333, 1.9e10, "xck26-sfvc784-2LV-c", 200.0, 117120)


def fake(folder: Path, name: str, script: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Put a program of this name first on PATH."""
    folder.mkdir(exist_ok=True)
    (folder / name).write_text(f"#!/bin/sh\n{script}\n")
    (folder / name).chmod(0o755)
    monkeypatch.setenv("PATH", f"{folder}:{os.environ['PATH']}")


def test_a_suite_that_cannot_be_reached_is_one_line_with_the_reason(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    script = """case "$*" in
  *indextargets*) echo 'Debian bookworm-security main http://mirror.invalid/debian-security/'
                  echo 'Debian bookworm main http://mirror.invalid/debian/';;
  *) echo 'E: Failed to fetch: no route to mirror' >&2; exit 100;;
esac"""
    fake(tmp_path / "bin", "apt-get", script, monkeypatch)
    reason = OpenToolchain(tmp_path / "cache").available(Z2)
    assert reason is not None and "\n" not in reason
    assert reason.startswith("nextpnr cannot be had from http://mirror.invalid/debian/ (forky: apt-get failed")
    assert "no route to mirror" in reason and "use toolchain virtual" in reason
    with pytest.raises(WattbitError, match="nextpnr cannot be had from"):
        tools.ensure(tmp_path / "cache")
    assert tools.find(tmp_path / "cache") is None


def test_the_mirror_is_that_of_this_machines_apt(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    fake(tmp_path / "bin", "apt-get", "echo 'Other stable main http://other.invalid/'", monkeypatch)
    with pytest.raises(WattbitError, match="apt has no Debian mirror"):
        tools.mirror()
    fake(tmp_path / "bin", "apt-get", "echo 'E: broken list' >&2; exit 100", monkeypatch)
    with pytest.raises(WattbitError, match="broken list; repair this machine's apt configuration"):
        tools.mirror()


def test_a_machine_without_apt_says_so(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    reason = tools.unreachable(tmp_path / "cache")
    assert reason == "apt-get is missing; the open tools are Debian packages and need its package apt"


def test_tools_in_the_cache_run_with_their_own_loader(tmp_path: Path) -> None:
    packages = [{"name": name, "version": f"{i}", "sha256": ""} for i, name in enumerate(tools.PACKAGES)]
    write_json(tools.path(tmp_path) / tools.LIST, packages)
    found = tools.find(tmp_path)
    assert found is not None and found.versions == {name: f"{i}" for i, name in enumerate(tools.PACKAGES)}
    command = found.command("xc7frames2bit", "--x", "y")
    assert command[0] == str(found.folder / tools.LOADER) and command[-3:-2] == [
        str(found.folder / "usr/bin/xc7frames2bit")
    ]
    assert found.environment()["PYTHONHOME"] == str(found.folder / "usr")


def test_a_part_without_open_tools_says_which_have_them(tmp_path: Path) -> None:
    reason = OpenToolchain(tmp_path).available(KV260)
    assert reason == "the open tools have no xck26-sfvc784-2LV-c, of Zynq only xc7z010 and xc7z020"


def test_a_simulated_board_gets_no_bitstream(tmp_path: Path) -> None:
    reason = OpenToolchain(tmp_path).available(replace(Z2, name="virtual-z2", arch="aarch64"))
    assert reason == "virtual-z2 is simulated, for no xc7z020clg400-1 has aarch64 cores; it loads no bitstream"


def test_progress_is_what_the_log_says_last() -> None:
    log = "Info: Packing constants..\n"
    assert phase("") == "" and phase(log) == "packing"
    log += "Info: Running main analytical placer, max placement attempts per cell = 9.\n"
    assert phase(log) == "placing"
    assert phase(log + "Info: Running router2...\n") == "routing"
    log += "Info:     iter=3 wires=165145 overused=185 overuse=190 archfail=NA\n"
    assert phase(log) == "routing, turn 3: 185 wires used twice"


def test_a_log_that_grows_is_followed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("wattbit.hls.open.route.LOOK_S", 0.01)
    told: list[str] = []
    with followed(tmp_path / "log", told.append):
        (tmp_path / "log").write_text("Info: Running router2...\n")
        while not told:
            time.sleep(0.01)
    assert told == ["routing"]


def test_a_step_is_done_once_for_its_inputs(tmp_path: Path) -> None:
    made = []

    def make(folder: Path) -> None:
        made.append(folder)
        (folder / "result").write_text(str(len(made)))

    assert once(tmp_path / "step", ["a"], make) == tmp_path / "step"
    once(tmp_path / "step", ["a"], make)
    assert (tmp_path / "step" / "result").read_text() == "1"
    once(tmp_path / "step", ["b"], make)
    assert (tmp_path / "step" / "result").read_text() == "2"


def test_a_step_that_fails_leaves_nothing_and_its_log_is_named(tmp_path: Path) -> None:
    log = tmp_path / "tool.log"
    script = "echo 'Info: fine'; echo 'ERROR: no bel left' >&2; echo 'Info: bye' >&2; exit 3"

    def make(folder: Path) -> None:
        (folder / "half").touch()
        run("nextpnr", ["sh", "-c", script], folder, log)

    with pytest.raises(
        WattbitError, match=rf"^nextpnr failed with exit status 3: ERROR: no bel left; its log is {log}$"
    ):
        once(tmp_path / "step", [], make)
    assert [path.name for path in tmp_path.iterdir()] == ["tool.log"]
    assert "Info: bye" in log.read_text()
