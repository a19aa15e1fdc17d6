"""The command line: help everywhere, one-line errors, doctor in two forms."""

import json
from pathlib import Path

import click
import pytest
from click.testing import CliRunner

from wattbit.cli import main
from wattbit.run import Run, RunConfig

STAGES = {"doctor", "train", "stats", "search", "cotrain", "export", "build", "deploy", "bench", "report", "demo"}


def run(*arguments: str) -> "click.testing.Result":  # type: ignore[name-defined]
    return CliRunner().invoke(main, list(arguments))


def test_every_stage_is_a_command() -> None:
    assert set(main.commands) >= STAGES


@pytest.mark.parametrize("name", sorted(main.commands))
def test_every_command_and_option_has_help(name: str) -> None:
    command = main.commands[name]
    assert command.help, f"`wattbit {name}` has no help"
    for parameter in command.params:
        if isinstance(parameter, click.Option):
            assert parameter.help, f"`wattbit {name} {parameter.opts[0]}` has no help"
    shown = run(name, "--help")
    assert shown.exit_code == 0
    assert command.help.split(".")[0].split()[0] in shown.output


def test_doctor_says_what_follows() -> None:
    record = json.loads(run("doctor", "--json").output)
    assert any(line.startswith("toolchains left:") for line in record["conclusions"])
    assert {finding["name"] for finding in record["findings"]} >= {"torch", "vivado", "qemu-aarch64"}
    assert "toolchains left" in run("doctor").output


def fails_in_one_line(result: "click.testing.Result", *words: str) -> None:  # type: ignore[name-defined]
    assert result.exit_code == 1, result.output
    line = result.stderr.strip().splitlines()[-1]
    assert line.startswith("wattbit: ")
    for word in words:
        assert word in line


def test_no_run_folder(tmp_path: Path) -> None:
    fails_in_one_line(run("stats", "--run", str(tmp_path)), "is no run folder", "wattbit train")


def test_run_folder_of_another_model(tmp_path: Path) -> None:
    config = RunConfig("demo", None, "virtual-z2", 0, {})
    made = Run.create(tmp_path, config)
    moved = made.folder.rename(tmp_path / "0123456789abcdef")
    fails_in_one_line(run("stats", "--run", str(moved)), "run folder of another model")


def test_unknown_board(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    fails_in_one_line(run("train", "--board", "pynq-z9"), "pynq-z9", "pynq-z2")
    assert not list(tmp_path.iterdir()), "a refused command leaves nothing behind"


def test_empty_corpus(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "corpus").mkdir()
    fails_in_one_line(run("train", "--preset", "tiny", "--data", str(tmp_path / "corpus")), "corpus")
