"""The command line: help everywhere, one-line errors, doctor in two forms."""

import errno
import json
import os
import socket
import subprocess
import sys
from dataclasses import replace
from importlib import resources
from pathlib import Path

import click
import pytest
from click.testing import CliRunner

from wattbit.board.targets import load
from wattbit.cli import SECTIONS, main
from wattbit.errors import WattbitError
from wattbit.hls.vivado.toolchain import NEWEST, OLDEST
from wattbit.presets import run_config
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


def test_the_list_of_commands_has_each_once_and_its_first_sentence_whole() -> None:
    assert sorted(name for names in SECTIONS.values() for name in names) == sorted(main.commands)
    shown = "".join(run("--help").output.split())  # without blanks: lines are broken at hyphens too
    for name, command in main.commands.items():
        assert "".join([name, *command.get_short_help_str(10**6).split()]) in shown


def test_doctor_says_what_follows() -> None:
    record = json.loads(run("doctor", "--json").output)
    assert any(line.startswith("toolchains left:") for line in record["conclusions"])
    found = {finding["name"]: finding for finding in record["findings"]}
    assert found.keys() >= {"torch", "vivado", "qemu-aarch64"}
    assert f"{OLDEST} to {NEWEST}" in found["vivado"]["remedy"]
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


@pytest.mark.parametrize(
    ("content", "word"),
    [(b"\x7fELF" + bytes(range(256)) * 40, "corpus"), (b"too short\n", "corpus")],
    ids=["binary", "too short"],
)
def test_strange_corpus(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, content: bytes, word: str) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "corpus").mkdir()
    (tmp_path / "corpus" / "input.txt").write_bytes(content)
    fails_in_one_line(run("train", "--preset", "tiny", "--data", "corpus"), word)
    assert not (tmp_path / "runs").exists() or not list((tmp_path / "runs").iterdir())


def test_unknown_corpus(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    fails_in_one_line(run("train", "--preset", "tiny", "--data", "wikitext-9"), "wikitext-9", "wikitext-103")


@pytest.mark.parametrize("bits", [0, 9])
def test_unknown_width(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, bits: int) -> None:
    """A width that no preset has, in a run's own configuration."""
    monkeypatch.chdir(tmp_path)
    config = run_config("tiny", None, "virtual-z2", 0)
    search = config.settings["cotrain"]["search"] | {"weight_bits": [4, 8, bits]}
    strange = replace(config, settings=config.settings | {"cotrain": config.settings["cotrain"] | {"search": search}})
    folder = Run.create(tmp_path, strange).folder
    fails_in_one_line(run("stats", "--run", str(folder)), str(bits))
    assert not list(folder.glob("stages/*.json")), "found before anything is trained"


def test_a_file_in_the_place_of_the_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    Path("runs").touch()
    fails_in_one_line(run("train", "--preset", "tiny"), "a file lies in the place of a folder at runs", "move it")


@pytest.mark.parametrize("code", [errno.ENOSPC, errno.EACCES])
@pytest.mark.parametrize("name", [None, "here"])
def test_a_host_that_refuses_to_write(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, code: int, name: str | None
) -> None:
    def refuse(*_: object) -> None:
        raise OSError(code, os.strerror(code), name)

    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("wattbit.run.write_json", refuse)
    result = run("train", "--preset", "tiny")
    fails_in_one_line(result, "full" if code == errno.ENOSPC else "refused", name or ";")
    assert "None" not in result.stderr


def test_a_board_that_cannot_be_reached(tmp_path: Path) -> None:
    """As the stages reach it, by its TOML; the command line prints the message as it does any other."""
    text = (resources.files("wattbit.board") / "targets/pynq-z2.toml").read_text()
    with socket.socket() as taken:  # bound, but nobody listens: connections are refused
        taken.bind(("127.0.0.1", 0))
        address = f'host = "127.0.0.1"\nport = {taken.getsockname()[1]}'
        (tmp_path / "board.toml").write_text(text.replace('host = "pynq"', address))
        ssh = load(str(tmp_path / "board.toml")).ssh
        assert ssh is not None and ssh.connection().deadline_s <= 35
        with pytest.raises(WattbitError, match="cannot be reached"), replace(ssh.connection(), deadline_s=0.5):
            pass


def test_usage_errors_are_clicks_own() -> None:
    result = run("demo", "--preset", "huge")
    assert result.exit_code == 2 and "Usage:" in result.stderr and "huge" in result.stderr


@pytest.mark.parametrize("name", sorted(main.commands))
def test_a_seed_that_no_generator_takes_is_a_usage_error(name: str) -> None:
    seeds = [p for p in main.commands[name].params if p.name == "seed"]
    for seed in (-1, 2**64):
        for parameter in seeds:
            with pytest.raises(click.BadParameter, match="is not in the range"):
                parameter.type.convert(str(seed), parameter, None)


@pytest.mark.parametrize("host", ["", "-oProxyCommand=x", "a board"])
def test_what_is_no_host_is_refused_by_every_command(host: str) -> None:
    parameters = [option for command in main.commands.values() for option in command.params if "--host" in option.opts]
    assert len(parameters) >= 8
    for parameter in parameters:
        with pytest.raises(click.BadParameter, match="is no host; write it as for ssh"):
            parameter.type.convert(host, parameter, None)


def test_more_threads_than_cores() -> None:
    fails_in_one_line(run("calibrate", "--board", "pynq-z2", "--threads", "3"), "more than the 2 cores of pynq-z2")


def test_tune_says_where_it_cannot_write_before_its_work(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    result = run("tune", "--host", "localhost", "--out", str(tmp_path / "file" / "tilings.toml"))
    fails_in_one_line(result, "file cannot be written to", "give another --out")
    result = CliRunner(env={"WATTBIT_CACHE": str(tmp_path / "file")}).invoke(main, ["tune", "--host", "localhost"])
    fails_in_one_line(result, "file/tuned cannot be written to", "give another --out")


def test_the_package_is_a_program() -> None:
    done = subprocess.run([sys.executable, "-m", "wattbit", "--version"], capture_output=True, text=True, check=True)
    assert done.stdout == run("--version").output


def test_a_closed_pipe_is_quiet() -> None:
    program = str(Path(sys.executable).with_name("wattbit"))
    with subprocess.Popen([program, "doctor", "--json"], stdout=subprocess.PIPE, stderr=subprocess.PIPE) as process:
        assert process.stdout is not None and process.stderr is not None
        process.stdout.close()
        assert process.stderr.read() == b""
