"""`wattbit board`: from a run to a bundle with a bitstream that `wattbit deploy` takes; what is wrong is one line.

The run is put together from stand-ins of its stages, and a stand-in of Vivado makes the bitstream: what is tried here
is the command, which joins them.
"""

import json
import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner

from tests.board_command_support import DIGEST, board_file, call, make_design, refused, result_of
from tests.board_stub import FolderBoard
from tests.vivado_support import clock_of, install, reports
from wattbit.board.agent.manifest import verify
from wattbit.board.bundle import make_bundle
from wattbit.board.deploy import deploy
from wattbit.board.targets import load
from wattbit.cli import main
from wattbit.commands import board as command
from wattbit.errors import WattbitError
from wattbit.files import write_json, write_text
from wattbit.hls.open.toolchain import OpenToolchain
from wattbit.pipeline import target
from wattbit.plan import Allocation
from wattbit.progress import silent
from wattbit.run import Run, cache_folder, tilings_file

pytest_plugins = ["tests.board_command_support"]


def test_a_bitstream_with_bundle_and_report(run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    install(tmp_path, monkeypatch)
    result = result_of(call("--toolchain", "vivado", "--json"))
    out = run.path("board", "pynq-z2", "vivado")
    manifest = verify(out / "bundle")
    assert manifest["digest"] == result["bundle"]
    assert (manifest["toolchain"], manifest["target"]["core"], manifest["power"]["source"]) == (
        *("vivado", "cortex-a9"),
        "external",
    )
    assert (out / "bundle" / "accel.bit").read_bytes() == (out / "wattbit.bit").read_bytes()
    text = (out / "report.md").read_text()
    assert "Not hardware-tested" in text
    assert re.search(r"^\| dsp \| \d+ \| 8 \| 64 \| 27 \|$", text, re.M), "planned, counted, used, there are"
    assert result["tokens_per_s"] == 100e6 / (800 * 2 * 2 / 8)
    assert f"{result['tokens_per_s']:,.0f} tokens/s" in text


def test_deploy_takes_it(run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(
        WattbitError, match=r"has no design that pynq-z2 \(xc7z020clg400-1, armv7\) can load; build one with"
    ):
        make_bundle(run.folder, target(run), run.path("bundle"))
    write_json(run.path("stages", "deploy.json"), {"key": "of an older bundle"})
    install(tmp_path, monkeypatch)
    result = result_of(call("--toolchain", "vivado", "--json"))
    assert run.record("deploy") is None, "the board has not got this one yet"
    manifest = make_bundle(run.folder, target(run), run.path("bundle"), power=load("pynq-z2").power)
    assert manifest["digest"] == result["bundle"]
    board = FolderBoard(tmp_path / "home")
    place = deploy(run.path("bundle"), board)
    assert verify(board.home / place)["toolchain"] == "vivado"
    write_json(run.path("stages", "deploy.json"), {"key": "of this bundle"})
    result_of(call("--toolchain", "vivado", "--json"))
    assert run.record("deploy"), "the same bundle need not go there again"


def test_deploy_takes_it_to_another_board_than_the_runs(
    run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    home = FolderBoard(tmp_path / "home")

    @contextmanager
    def connected(name: str, *_: object) -> Iterator[FolderBoard]:
        assert name == "pynq-z1"
        yield home

    monkeypatch.setattr("wattbit.board.connect.board", connected)
    monkeypatch.setattr("wattbit.tvm_schedules.compile.build", None)  # Z1 has Z2's cores: nothing to compile
    install(tmp_path, monkeypatch)
    refusal = CliRunner().invoke(main, ["deploy", "--board", "kv260"])
    assert "the run has no design that kv260 (xck26-sfvc784-2LV-c, aarch64) can load" in refused(refusal)
    result = result_of(call("--board", "pynq-z1", "--toolchain", "vivado", "--json"))
    done = CliRunner().invoke(main, ["deploy", "--board", "pynq-z1", "--json"])
    assert done.exit_code == 0, done.output
    place = json.loads(done.stdout)["places"]["pynq-z1"]
    manifest = verify(home.home / place)
    assert (manifest["toolchain"], manifest["target"]["name"], manifest["digest"]) == (
        *("vivado", "pynq-z1"),
        result["bundle"],
    )


def test_a_design_of_an_older_export_is_refused(run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    install(tmp_path, monkeypatch)
    result_of(call("--toolchain", "vivado", "--json"))
    write_json(run.path("export", "export.json"), {"model": {"top_k": 1}})
    with pytest.raises(
        WattbitError, match=r"exported again since its design for pynq-z2 was built; run `wattbit board"
    ):
        make_bundle(run.folder, target(run), run.path("bundle"))


def test_what_fails_half_way_resumes(run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    install(tmp_path, monkeypatch)
    monkeypatch.setenv("STUB_PLACEMENT_FAILS", "1")
    done = call("--toolchain", "vivado")
    out = run.path("board", "pynq-z2", "vivado")
    last = done.stderr.splitlines()[-1]
    assert done.exit_code == 1 and "[Place 30-487]" in last and f"its log is {out / 'implementation.log'}" in last
    assert not (out / "bundle").exists() and not (out.parent / "chosen.json").exists()
    monkeypatch.delenv("STUB_PLACEMENT_FAILS")
    (out / "calls.txt").unlink()
    first = result_of(call("--toolchain", "vivado", "--json"))
    assert "create_project" not in (out / "calls.txt").read_text()
    (out / "calls.txt").unlink()
    assert result_of(call("--toolchain", "vivado", "--json")) == first
    assert not (out / "calls.txt").exists()
    (out / "wattbit.bit").write_bytes(b"cut sh")
    result_of(call("--toolchain", "vivado", "--json"))
    assert (out / "wattbit.bit").read_bytes() == b"bitstream\n"


def test_an_interrupted_build_resumes(run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupt(*_: object) -> None:
        raise KeyboardInterrupt

    install(tmp_path, monkeypatch)
    with monkeypatch.context() as patch:
        patch.setattr("wattbit.hls.vivado.toolchain.timing", interrupt)
        done = call("--toolchain", "vivado")
    assert done.exit_code == 130 and "the same command resumes" in done.stderr
    assert not run.path("board", "pynq-z2", "chosen.json").exists()
    calls = run.path("board", "pynq-z2", "vivado", "calls.txt")
    calls.unlink()
    result_of(call("--toolchain", "vivado", "--json"))
    assert not calls.exists(), "what Vivado had done was kept"


def test_a_missed_clock_is_lowered_in_the_handoff(run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    install(tmp_path, monkeypatch)
    reports(tmp_path, monkeypatch, setup=-2.5, hold=0.01)
    result = result_of(call("--toolchain", "vivado", "--json"))
    bundle = run.path("board", "pynq-z2", "vivado") / "bundle"
    assert clock_of((bundle / "accel.hwh").read_text()) == 1000 / 13  # of 80 MHz that it could take
    assert verify(bundle)["clock_mhz"] == pytest.approx(1000 / 13), "which no board exceeds"
    assert result["tokens_per_s"] == pytest.approx(1e9 / 13 / 400)


def test_a_new_board_is_a_file(run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    planned: list[Any] = []

    def build_engines(export: Path, engines: Any, out: Path, _: object) -> None:
        planned.append(engines)
        write_json(out / "build.json", make_design(run, out) | {"plan": engines.to_json()})

    def build_kernels(export: Path, allocation: Allocation, core: str, out: Path, *_: object) -> None:
        write_json(out / "kernels.json", {"core": core})

    def verilate(shell: object, out: Path, arch: str) -> Path:
        out.mkdir(exist_ok=True)
        (out / arch).write_text(arch)
        return out / arch

    monkeypatch.setattr("wattbit.hls.build.build", build_engines)
    monkeypatch.setattr("wattbit.tvm_schedules.compile.build", build_kernels)
    monkeypatch.setattr("wattbit.hls.virtual.verilate", verilate)
    result = result_of(call("--board", board_file(tmp_path), "--toolchain", "virtual", "--json"))
    assert (planned[0].part, planned[0].clock_mhz) == ("xczu2cg-sbva484-1-e", 125.0)
    assert result["folder"] == "board/mine/virtual"
    manifest = verify(run.path("board", "mine", "virtual", "bundle"))
    assert (manifest["toolchain"], manifest["target"]["name"]) == ("virtual", "mine")
    assert (run.path("board", "mine", "virtual", "bundle") / f"accel-{DIGEST}.so").read_text() == "aarch64"
    again = result_of(call("--board", board_file(tmp_path), "--toolchain", "virtual", "--json"))
    assert again == result and len(planned) == 1
    result_of(call("--board", board_file(tmp_path, clock_mhz=100.0), "--toolchain", "virtual", "--json"))
    assert [engines.clock_mhz for engines in planned] == [125.0, 100.0], "another clock is another design"


def test_a_board_without_logic_gets_a_bundle_of_its_cores(
    run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def build_kernels(export: Path, allocation: Allocation, core: str, out: Path, *_: object) -> None:
        write_json(out / "kernels.json", {"core": core})

    monkeypatch.setattr("wattbit.tvm_schedules.compile.build", build_kernels)
    rpi4 = load("rpi4")
    with pytest.raises(WattbitError, match="build one with `wattbit board --board rpi4`"):
        make_bundle(run.folder, rpi4.target, run.path("bundle"))
    done = call("--board", "rpi4")
    assert done.exit_code == 0 and "4 cores run every expert, by kernels for cortex-a72" in done.stdout
    result = result_of(call("--board", "rpi4", "--json"))
    manifest = make_bundle(run.folder, rpi4.target, run.path("bundle"), power=rpi4.power)
    assert (manifest["digest"], manifest["toolchain"]) == (result["bundle"], "none")
    assert {one.engine for one in Allocation.from_json(manifest["allocation"]).placements} == {"arm"}
    assert manifest["arm"] and not [name for name in manifest["files"] if name.startswith("accel")]
    assert verify(run.path("bundle")) == manifest


def test_the_kernels_are_built_in_the_tilings_that_the_board_was_tuned_to(
    run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    built: list[Path | None] = []

    def build_kernels(
        export: Path, allocation: Allocation, core: str, out: Path, _: object, tilings: Path | None
    ) -> None:
        built.append(tilings)
        write_json(out / "kernels.json", {"core": core})

    def kernels(board: str) -> Path:
        return command.compiled(run, load(board).target, tmp_path / board, silent)

    monkeypatch.setattr("wattbit.tvm_schedules.compile.build", build_kernels)
    monkeypatch.setenv("WATTBIT_CACHE", str(tmp_path / "cache"))
    own = run.path("build", "arm")
    assert kernels("pynq-z2") == own and kernels("pynq-z1") == own, "a core that both have, tuned on neither"
    write_text(tilings_file("pynq-z1"), "of pynq-z1")
    write_text(tilings_file("rpi4"), "of rpi4")
    assert [kernels(board) for board in ("pynq-z2", "pynq-z1", "rpi4")] == [
        own,
        tmp_path / "pynq-z1" / "arm",
        tmp_path / "rpi4" / "arm",
    ]
    kernels("pynq-z1")
    assert built == [tilings_file("pynq-z1"), tilings_file("rpi4")], "once each"
    write_text(tilings_file("rpi4"), "of rpi4, tuned again")
    tilings_file("pynq-z1").unlink()
    assert kernels("rpi4") == tmp_path / "rpi4" / "arm" and kernels("pynq-z1") == own
    assert built[2:] == [tilings_file("rpi4")]


@pytest.mark.slow
def test_a_trained_model_becomes_a_bitstream(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The whole path, with nothing but open tools, and nothing standing in for anything but the board."""
    reason = OpenToolchain(cache_folder()).available(load("pynq-z2").target)
    if reason is not None:
        pytest.skip(f"toolchain open: {reason}")
    monkeypatch.chdir(tmp_path)
    arguments = ("--preset", "tiny", "--board", "pynq-z2", "--toolchain", "open", "--json")
    result = result_of(call(*arguments))
    run = Run.latest(Path("runs"))
    manifest = verify(run.path("board", "pynq-z2", "open", "bundle"))
    assert (manifest["toolchain"], manifest["digest"]) == ("open", result["bundle"])
    assert manifest["files"]["accel.bit"]["bytes"] > 4_045_564, "an xc7z020's frames and a header"
    assert "gate level" in run.path(*str(result["report"]).split("/")).read_text()
    make_bundle(run.folder, target(run), run.path("bundle"), power=load("pynq-z2").power)
    board = FolderBoard(tmp_path / "home")
    assert verify(board.home / deploy(run.path("bundle"), board))["digest"] == result["bundle"]
    assert result_of(call(*arguments)) == result
