"""Toolchain `vivado` against a stand-in that knows Vivado's commands: untested with Vivado itself, and on hardware."""

import re
import shutil
from dataclasses import replace
from pathlib import Path
from xml.etree import ElementTree

import pytest

from tests.hls_shell_support import stub, stubs
from tests.vivado_support import STUB, TIMING, UTILISATION, install, reports
from wattbit.board.overlay import FREQUENCY, handoff, with_clock
from wattbit.board.targets import known, load
from wattbit.errors import WattbitError
from wattbit.hls.shell import ShellRtl, build_shell
from wattbit.hls.simulate import verilator
from wattbit.hls.vivado.processor import processor
from wattbit.hls.vivado.reports import Timing, clock, last_error, timing, utilisation, version
from wattbit.hls.vivado.script import implementation, quote, synthesis
from wattbit.hls.vivado.toolchain import VivadoToolchain
from wattbit.hls.vivado.wrapper import ports, wrapper
from wattbit.plan import Target
from wattbit.processes import execute

LOGIC = [name for name in known() if load(name).target.part and load(name).ssh]
Z2, KV260 = load("pynq-z2").target, load("kv260").target


def top_of(shell: ShellRtl) -> str:
    return (shell.folder / f"{shell.top}.v").read_text(encoding="utf-8")


def streaming(folder: Path, engines: int) -> ShellRtl:
    """A shell of so many engines whose weights are streamed."""
    folder.mkdir(parents=True, exist_ok=True)
    engine = stub(folder / "rtl", 4, simd=8, pe=8)
    (folder / "images").touch()
    copies = [
        replace(
            engine, module=f"engine{i}", spec=replace(engine.spec, home="stream"), images=folder / "images", beats=4
        )
        for i in range(engines)
    ]
    return build_shell(copies, 64, "0123456789abcdef", folder / "shell")


@pytest.fixture
def shell(tmp_path: Path) -> ShellRtl:
    return build_shell(stubs(tmp_path / "rtl"), 64, "0123456789abcdef", tmp_path / "a folder {of $HOME}" / "shell")


@pytest.fixture
def vivado(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    return install(tmp_path, monkeypatch)


@pytest.mark.parametrize("name", LOGIC)
def test_every_board_builds(name: str, shell: ShellRtl, vivado: Path, tmp_path: Path) -> None:
    target = load(name).target
    built = VivadoToolchain().build(shell, target, tmp_path / "out")
    assert (built.toolchain, built.part) == ("vivado", target.part)
    assert target.clock_mhz and built.clock_mhz <= target.clock_mhz * (1 + 1e-6)
    assert built.bit and built.bit.is_file() and built.hwh and built.hwh.is_file()
    assert built.utilisation == {"lut": 12345, "ff": 23456, "dsp": 64, "bram18": 29}
    assert built.tool_versions == {"vivado": "2023.2"} and not built.hardware_tested
    calls = (tmp_path / "out" / "calls.txt").read_text()
    assert f"create_project -force -part {target.part}" in calls
    assert "write_bitstream -force wattbit.bit" in calls


@pytest.mark.parametrize("target", [Z2, KV260], ids=lambda target: target.name)
@pytest.mark.parametrize(
    ("streams", "memory_ports", "expected"), [(1, 4, [1, 1]), (3, 4, [1, 1, 1, 1]), (6, 4, [2, 2, 2, 1]), (2, 1, [3])]
)
def test_weight_masters_share_the_memory_ports(
    target: Target, streams: int, memory_ports: int, expected: list[int], vivado: Path, tmp_path: Path
) -> None:
    shell = streaming(tmp_path / "streaming", streams)
    VivadoToolchain().build(shell, replace(target, memory_ports=memory_ports), tmp_path / "out")
    script = (tmp_path / "out" / "synthesis.tcl").read_text()
    shares = [int(n) for n in re.findall(r"NUM_SI \{(\d+)\} CONFIG\.NUM_MI \{1\}\] \[get_bd_cells memory", script)]
    assert shares == expected
    assert set(re.findall(r"wattbit_0/(m_axi_\w+)\]", script)) == set(shell.masters)


def test_a_finished_step_is_not_redone(
    shell: ShellRtl, vivado: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = tmp_path / "out"
    monkeypatch.setenv("STUB_PLACEMENT_FAILS", "1")
    with pytest.raises(
        WattbitError, match=r"implementation failed.*\[Place 30-487\].*its log is .*implementation\.log"
    ):
        VivadoToolchain().build(shell, Z2, out)
    monkeypatch.delenv("STUB_PLACEMENT_FAILS")
    (out / "calls.txt").unlink()
    built = VivadoToolchain().build(shell, Z2, out)
    calls = (out / "calls.txt").read_text()
    assert "place_design" in calls and "create_project" not in calls, "synthesis was kept"
    (out / "calls.txt").unlink()
    assert VivadoToolchain().build(shell, Z2, out) == built
    assert not (out / "calls.txt").exists(), "all was kept"
    VivadoToolchain().build(shell, replace(Z2, clock_mhz=80.0), out)
    assert "create_project" in (out / "calls.txt").read_text(), "another clock is another design"


def test_synthesis_that_fails_gives_the_last_error_of_its_run(
    shell: ShellRtl, vivado: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("STUB_SYNTHESIS_FAILS", "1")
    with pytest.raises(
        WattbitError, match=r"synthesis failed with exit status 1: ERROR: \[Synth 8-439\].*log is "
    ) as error:
        VivadoToolchain().build(shell, Z2, tmp_path / "out")
    assert len(str(error.value).splitlines()) == 1
    assert not (tmp_path / "out" / "synthesised.dcp").exists()


def test_a_part_that_vivado_lacks_is_its_last_error(shell: ShellRtl, vivado: Path, tmp_path: Path) -> None:
    with pytest.raises(
        WattbitError, match=r"ERROR: \[Coretcl 2-106\] Specified part could not be found.*synthesis\.log"
    ):
        VivadoToolchain().build(shell, replace(Z2, part="xc7z999clg400-1"), tmp_path / "out")


def test_the_last_error_is_that_of_the_first_log_that_has_one(tmp_path: Path) -> None:
    run, log = tmp_path / "runme.log", tmp_path / "vivado.log"
    log.write_text("ERROR: [A 1-1] first\nERROR: [A 1-2] last\nINFO: ERROR: none\nERROR-free\n")
    assert last_error((run, log)) == "ERROR: [A 1-2] last"
    run.write_text("ERROR: [B 2-2] cause\n")
    assert last_error((run, log)) == "ERROR: [B 2-2] cause"
    assert last_error(()) == "no ERROR in its log"


def test_missed_setup_lowers_the_clock_and_missed_hold_is_refused(
    shell: ShellRtl, vivado: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    reports(tmp_path, monkeypatch, setup=-2.5, hold=0.01)
    built = VivadoToolchain().build(shell, Z2, tmp_path / "late")
    assert (built.fmax_mhz, built.clock_mhz) == (80.0, 1000 / 13)
    reports(tmp_path, monkeypatch, setup=1.0, hold=-0.05)
    with pytest.raises(WattbitError, match=r"hold requirements are missed by 0\.05 ns.*timing\.rpt"):
        VivadoToolchain().build(shell, Z2, tmp_path / "hold")


@pytest.mark.parametrize(("setup", "fmax_mhz", "divisor"), [(0.05, 189.3, 8), (0.0, 187.5, 8), (-0.3, 177.5, 9)])
def test_slack_is_of_the_clock_that_the_ps_delivers(
    setup: float,
    fmax_mhz: float,
    divisor: int,
    shell: ShellRtl,
    vivado: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """A KV260 that is asked for 200 MHz gives 187.5: a slack of -0.3 ns is of 5.333 ns, and the next clock is 166.7."""
    reports(tmp_path, monkeypatch, setup=setup, hold=0.05)
    built = VivadoToolchain().build(shell, replace(KV260, clock_mhz=200.0), tmp_path / "out")
    assert built.fmax_mhz == fmax_mhz
    assert built.clock_mhz == pytest.approx(1499.985 / divisor)
    assert built.hwh
    values = {
        p.get("NAME"): p.get("VALUE")
        for p in ElementTree.fromstring(with_clock(built.hwh.read_text(), built.clock_mhz)).iter("PARAMETER")
    }
    assert float(values[FREQUENCY] or "") == pytest.approx(built.clock_mhz), "what is set is what is reported"


def test_a_handoff_without_a_clock_is_refused() -> None:
    for text in ("", "<A/>", handoff("xc7z020clg400-1", 50.0)):
        with pytest.raises(WattbitError, match="names no PSU__CRL_APB__PL0_REF_CTRL__ACT_FREQMHZ with its dividers"):
            clock(text, processor(str(KV260.part)))
    assert clock(handoff("xc7z020clg400-1", 66.0), processor("xc7z020clg400-1")) == (62.5, 1000.0)


@pytest.mark.parametrize("found", ["2019.1", "2022.1", "2031.1"])
def test_another_version_is_refused(found: str, vivado: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("STUB_VERSION", found)
    reason = VivadoToolchain().available(Z2)
    assert reason and f"Vivado {found} is not among the supported versions" in reason
    monkeypatch.setenv("STUB_VERSION", "2022.2")
    assert VivadoToolchain().available(Z2) is None


def test_a_missing_vivado_and_a_foreign_part_are_said(
    shell: ShellRtl, vivado: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert "virtual-z2 is simulated" in (VivadoToolchain().available(load("virtual-z2").target) or "")
    assert "xcvc1902 is neither" in (VivadoToolchain().available(replace(Z2, part="xcvc1902")) or "")
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(WattbitError, match=r"vivado is not on PATH; install Vivado 2022\.2 to 2025\.2"):
        VivadoToolchain().build(shell, Z2, tmp_path / "out")


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ("place_design -fast", "has no option -fast"),
        ("plase_design", 'invalid command name "plase_design"'),
        ("report_utilization -file", "option -file lacks its value"),
        ("connect_bd_net [get_bd_pins wattbit_0/irq]", "takes 2 to 999 arguments"),
        ("create_bd_cell -type ip -vlnv xilinx.com:ip:axi_dma:7.1 dma", "there is no IP"),
        ("set_property -dict [list CONFIG.PCW_USE_S_AXI_HP0 {1}] [get_bd_cells control]", "has no setting"),
        ("set_property -dict [list CONFIG.NUM_SLAVES {1}] [get_bd_cells control]", "has no setting"),
        ("connect_bd_net [get_bd_pins control/aclk2] [get_bd_pins wattbit_0/aclk]", "has no pin aclk2"),
        ("puts {", "missing close-brace"),
    ],
)
def test_the_stand_in_refuses_what_vivado_would(
    wrong: str, message: str, shell: ShellRtl, vivado: Path, tmp_path: Path
) -> None:
    out = tmp_path / "out"
    VivadoToolchain().build(shell, Z2, out)
    script = (out / "synthesis.tcl").read_text().replace("validate_bd_design\n", f"{wrong}\nvalidate_bd_design\n")
    (out / "wrong.tcl").write_text(script)
    done = execute(["tclsh", str(STUB), "wrong.tcl"], out)
    assert done.returncode == 1 and message in done.stderr


@pytest.mark.parametrize("line", ["memory0/M00_AXI", "control/aclk", "wattbit_0/aresetn", "-offset"])
def test_the_stand_in_misses_every_connection(line: str, shell: ShellRtl, vivado: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    VivadoToolchain().build(shell, KV260, out)
    lines = (out / "synthesis.tcl").read_text().splitlines()
    (out / "wrong.tcl").write_text("\n".join(text for text in lines if line not in text))
    assert execute(["tclsh", str(STUB), "wrong.tcl"], out).returncode == 1


def test_the_wrapper_is_verilog_with_the_shells_ports(tmp_path: Path) -> None:
    shell = streaming(tmp_path, 2)
    text = wrapper(top_of(shell), shell.top)
    assert ports(text) == ports(top_of(shell))
    assert f"ASSOCIATED_BUSIF {':'.join(('s_axi_ctrl', *shell.masters))}, ASSOCIATED_RESET aresetn" in text
    kinds = re.findall(r'PROTOCOL (\w+), READ_WRITE_MODE (\w+)" \*\)\n  \w+ +wire \[\d+:0\] (\w+)_araddr', text)
    assert kinds == [
        ("AXI4LITE", "READ_WRITE", "s_axi_ctrl"),
        ("AXI4", "READ_WRITE", "m_axi_mem"),
        ("AXI4", "READ_ONLY", "m_axi_w0"),
        ("AXI4", "READ_ONLY", "m_axi_w1"),
    ]


def test_the_wrapper_compiles_with_the_shell(shell: ShellRtl) -> None:
    (shell.folder / "wattbit_vivado.v").write_text(wrapper(top_of(shell), shell.top))
    command, environment = verilator()
    command += ["--lint-only", "-Wno-lint", "-Wno-fatal", "--top-module", "wattbit_vivado", *shell.sources]
    done = execute([*command, "wattbit_vivado.v"], shell.folder, environment)
    assert done.returncode == 0, done.stderr
    assert not [line for line in done.stderr.splitlines() if "wattbit_vivado.v" in line]


def test_what_is_no_shell_is_refused() -> None:
    with pytest.raises(WattbitError, match="no port aclk, aresetn, irq"):
        ports("module other (\n  input wire clk\n);\nendmodule\n")


def test_words_are_quoted_for_tcl(tmp_path: Path) -> None:
    if shutil.which("tclsh") is None:
        pytest.skip("tclsh is not installed (Debian package tcl)")
    word = 'a b{c}$d[e]"f;g#h\\i'
    (tmp_path / "x.tcl").write_text(f"puts -nonewline [lindex [list {quote(word)}] 0]\n")
    assert execute(["tclsh", "x.tcl"], tmp_path).stdout == word


def test_scripts_are_the_same_for_the_same_design() -> None:
    arguments = (processor("xc7z020clg400-1"), "xc7z020clg400-1", 100.0, ["m_axi_mem"], 4, [Path("a.v")])
    assert synthesis(*arguments) == synthesis(*arguments)
    assert implementation().endswith("write_bitstream -force wattbit.bit\n")


def test_reports_are_read() -> None:
    assert timing(TIMING.format(setup=-0.642, hold=0.043)) == Timing(-0.642, 0.043)
    assert Timing(-0.642, 0.043).fmax_mhz(200.0) == pytest.approx(1000 / 5.642)
    for site in ("Slice", "CLB"):
        assert utilisation(UTILISATION.format(slice=site))["lut"] == 12345
    assert version("vivado v2024.1.2 (64-bit)\nTool Version Limit: 2024.05\n") == "2024.1"
    assert version("Vivado v2022.2 (64-bit)") == "2022.2"
    assert version("bash: vivado: not found") is None


@pytest.mark.parametrize(
    "report", ["", "    WNS(ns)      TNS(ns)      WHS(ns)\n   ----\n         NA           NA           NA\n"]
)
def test_a_report_without_figures_is_refused(report: str) -> None:
    with pytest.raises(WattbitError, match="timing report has no slack"):
        timing(report)
    with pytest.raises(WattbitError, match="has no row Slice LUTs or CLB LUTs"):
        utilisation(report)
