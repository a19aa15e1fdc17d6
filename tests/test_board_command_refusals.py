"""What `wattbit board` refuses, in one line and with nothing half-written."""

import re
from pathlib import Path

import pytest

from tests.board_command_support import board_file, call, refused
from tests.vivado_support import install
from wattbit.hls import rtllib
from wattbit.run import Run

pytest_plugins = ["tests.board_command_support"]


def test_bad_input_is_one_line(run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    assert "there is no board 'pynq-z9'; known are aup-zu3, kv260" in refused(call("--board", "pynq-z9"))
    assert "rpi4 has no programmable logic; leave out the" in refused(call("--board", "rpi4", "--toolchain", "virtual"))
    assert "toolchain must be one of vivado, open, virtual, not 'quartus'" in refused(call("--toolchain", "quartus"))
    assert "vivado is not on PATH; install Vivado" in refused(call("--toolchain", "vivado"))
    every = refused(call())
    assert "no toolchain can build for pynq-z2 here: not vivado: vivado is not on PATH" in every
    assert "not virtual: there is no C++ compiler for x86_64 and aarch64; run `apt-get install g++-x86" in every
    assert "runs/none is no run folder" in refused(call("--run", "runs/none"))
    assert call("--run", str(run.folder), "--seed", "1").exit_code == 2


def test_an_unknown_part_is_refused_before_any_work(run: Run, tmp_path: Path) -> None:
    line = refused(call("--board", board_file(tmp_path, part="xc7k325tffg900-2"), "--toolchain", "virtual"))
    assert "part xc7k325tffg900-2 is neither Zynq-7000 (xc7z...) nor Zynq UltraScale+" in line
    assert not run.path("board", "mine").exists()


def test_a_model_that_does_not_fit_says_why_and_by_how_much(run: Run, tmp_path: Path) -> None:
    line = refused(call("--board", board_file(tmp_path, lut=1000), "--toolchain", "virtual"))
    assert "the model does not fit xczu2cg-sbva484-1-e, of whose logic toolchain virtual takes 12%: lut: " in line
    assert " of 125;" in line, "an eighth of 1000 LUTs: the preset's share"
    assert not run.path("board", "mine").exists()


def test_a_width_outside_2_to_8_is_refused(run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = run.path("cotrain", "allocation.json")
    path.write_text(path.read_text().replace("w8a8", "w9a8"))
    install(tmp_path, monkeypatch)
    line = refused(call("--toolchain", "vivado"))
    assert "weight_bits must be one of 2, 3, 4, 5, 6, 7, 8, not 9" in line


def test_a_finn_that_a_patch_does_not_fit_is_refused(run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(rtllib, "PATCHES", (rtllib.Patch("mvu/mvu.sv", "no such text", ""),))
    line = refused(call("--board", board_file(tmp_path), "--toolchain", "virtual"))
    assert re.search(r"finn-plus [\d.]+: the patch 'no such text' of mvu/mvu.sv fits 0 times instead of 1", line)
    assert not run.path("board", "mine", "chosen.json").exists()


def test_an_operator_without_rtl_form_is_refused(run: Run, tmp_path: Path) -> None:
    line = refused(call("--board", board_file(tmp_path), "--toolchain", "virtual"))
    assert re.search(r"expert_L\dE\d.onnx: node gate is a Sigmoid, which has no RTL form", line)


def test_an_altered_design_is_refused(run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    install(tmp_path, monkeypatch)
    path = run.path("build", "hls", "shell", "wattbit_shell.v")
    text = path.read_text()
    path.write_text(text.replace("Generated", "generated"))
    assert "is missing or not as built" in refused(call("--toolchain", "vivado"))
