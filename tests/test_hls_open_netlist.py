"""The netlist's guards, the top module, and the bridge from the processing system to the registers."""

import sys
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.hls_shell_support import D, stubs
from wattbit.errors import WattbitError
from wattbit.hls.engine import RTL
from wattbit.hls.open import contents, netlist
from wattbit.hls.open.fasm import parse
from wattbit.hls.open.gates import cell_models, images, stimulus
from wattbit.hls.open.top import BRIDGE, TOP, black_boxes, masters, top
from wattbit.hls.shell import ShellRtl, build_shell
from wattbit.hls.simulate import FLAGS, verilator
from wattbit.processes import execute


@pytest.fixture
def shell(tmp_path: Path) -> ShellRtl:
    return build_shell(stubs(tmp_path / "stubs"), D, "0123456789abcdef", tmp_path / "shell")


def design(kind: str, parameters: Mapping[str, str], connections: Mapping[str, list[Any]] | None = None) -> Any:
    """yosys' JSON of a top module with one cell."""
    cell = {"type": kind, "parameters": parameters, "connections": connections or {}}
    return {"modules": {TOP: {"cells": {"shell.memory": cell}}}}


def width(bits: int) -> str:
    return f"{bits:032b}"


@pytest.mark.parametrize(
    ("kind", "parameters", "connections", "message"),
    [
        ("RAMB36E1", {"READ_WIDTH_A": width(9)}, {}, "RAMB36E1 shell.memory has words of 9 bits, which the open tools"),
        ("RAMB36E1", {"WRITE_WIDTH_B": width(1)}, {}, "words of 1 bits"),
        ("RAMB18E1", {"READ_WIDTH_A": width(18), "WRITE_WIDTH_A": width(18)}, {}, "reads and writes over port A"),
        ("RAMB18E1", {"READ_WIDTH_A": width(9)}, {"RSTRAMARSTRAM": [17]}, "uses a reset"),
        ("LUT2", {"INIT": "1x00"}, {}, "LUT2 shell.memory has undefined bits in INIT"),
        ("SRLC32E", {}, {}, "SRLC32E shell.memory is a cell that nextpnr cannot place"),
        ("LUT6_2", {}, {}, "LUT6_2 shell.memory is a cell"),
    ],
)
def test_what_the_open_tools_get_wrong_is_refused(
    kind: str, parameters: dict[str, str], connections: dict[str, list[Any]], message: str
) -> None:
    with pytest.raises(WattbitError, match=message):
        netlist.require(design(kind, parameters, connections))


def test_what_they_get_right_passes() -> None:
    netlist.require(design("RAMB36E1", {"READ_WIDTH_A": width(72), "WRITE_WIDTH_B": width(72)}, {"RSTRAMB": ["0"]}))
    netlist.require(design("RAMB18E1", {"READ_WIDTH_A": width(9), "WRITE_MODE_A": "READ_FIRST"}))
    netlist.require(design("LUT2", {"INIT": "1000"}))


def test_contents_of_block_rams_are_the_same_in_netlist_and_fasm() -> None:
    rng = np.random.default_rng(0)
    rows = {f"INIT_{i:02X}": "".join(rng.choice(["0", "1"], 256)) for i in range(128)}
    rows |= {f"INITP_{i:02X}": "".join(rng.choice(["0", "1"], 256)) for i in range(16)}
    small = {name: rows[name] for name in rows if int(name[-2:], 16) < (8 if name.startswith("INITP") else 64)}
    cells = {
        "a": {"type": "RAMB18E1", "parameters": small | {"INIT_A": "111", "SRVAL_A": "1"}},
        "b": {"type": "RAMB36E1", "parameters": rows},
        "c": {"type": "LUT2", "parameters": {"INIT_00": "1"}},
    }
    lines = [f"BRAM_L_X0Y5.RAMB18_Y1.{name}[255:0] = 256'b{bits}" for name, bits in small.items()]
    for half in range(2):  # even bits of the RAMB36E1, and odd ones
        for name, count in (("INIT", 64), ("INITP", 8)):
            stream = "".join(rows[f"{name}_{i:02X}"][::-1] for i in range(2 * count))[half::2]
            for i in range(count):
                bits = stream[256 * i : 256 * (i + 1)][::-1]
                lines.append(f"BRAM_R_X7Y5.RAMB18_Y{half}.{name}_{i:02X}[255:0] = 256'b{bits}")
    expected = contents.of_netlist(cells)
    assert expected.total() == 3 and contents.of_fasm(parse(lines)) == expected
    moved = lines[0].replace("INIT_00", "INIT_01"), lines[1].replace("INIT_01", "INIT_00")
    assert contents.of_fasm(parse([*moved, *lines[2:]])) != expected


def test_the_change_to_yosys_list_of_block_rams_fits_its_version() -> None:
    text = netlist.block_rams()
    assert text.count("width 18 36 72;") == 2 and text.count("width mix 18 36;") == 1


def test_the_top_connects_every_port_of_the_shell_to_pins_that_ps7_has(shell: ShellRtl) -> None:
    text, boxes = top(shell), black_boxes()
    ps7 = text[text.index("PS7 ps7") : text.index("wattbit_gp_bridge")]
    pins = [line.strip().partition("(")[0].removeprefix(".") for line in ps7.splitlines() if line.startswith("    .")]
    assert len(pins) == len(set(pins)) > 100
    assert all(f" {pin}\n" in boxes or f" {pin},\n" in boxes for pin in pins)
    ports = (shell.folder / shell.sources[-1]).read_text().partition(");")[0].splitlines()
    for port in (line.split()[-1].rstrip(",") for line in ports if "put " in line):
        assert f".{port}(" in text


def test_more_masters_than_memory_ports_are_an_error(shell: ShellRtl) -> None:
    assert masters(shell) == {"m_axi_mem": True}
    assert masters(replace(shell, streams=3)) == {"m_axi_mem": True} | {f"m_axi_w{i}": False for i in range(3)}
    with pytest.raises(WattbitError, match="5 memory masters, a Zynq-7000 takes 4; stream fewer engines"):
        masters(replace(shell, streams=4))


def test_a_cell_without_a_model_is_an_error() -> None:
    with pytest.raises(WattbitError, match="there is no model of XORCY9"):
        cell_models("module wattbit_z7 (a);\n  LUT2 #(\n  ) a (\n  XORCY9 b (\n")
    models = cell_models("  LUT2 #(\n  RAMB18E1 #(\n")
    assert "module LUT2(" in models and "module RAMB18E1 #(" in models and "specify" not in models


def test_the_stimulus_reaches_every_set_of_every_engine(shell: ShellRtl) -> None:
    engine, index, x = stimulus(shell)
    assert {*zip(engine.tolist(), index.tolist(), strict=True)} == {(e, s) for e in range(3) for s in range(5)}
    assert x.min() == -128 and x.max() == 127 and x.shape == (len(engine), D)


def test_streamed_weights_that_are_not_beside_the_design_are_an_error(shell: ShellRtl) -> None:
    assert images(shell) == []
    with pytest.raises(WattbitError, match="has 0 files of images, the design streams 1; build again"):
        images(replace(shell, streams=1))


BENCH = """
module bench (input logic clk);
  // Writes and reads back bursts of 1 to 16 beats, with random stalls on both sides.
  logic [31:0] random = 32'h2545F491;
  always @(posedge clk) begin
    random = random ^ (random << 13);
    random = random ^ (random >> 17);
    random = random ^ (random << 5);
  end

  logic rst_n = 0;
  logic [11:0] awid, arid, bid, rid, m_awaddr, m_araddr;
  logic [31:0] awaddr, araddr, wdata, rdata, m_wdata, m_rdata;
  logic [3:0] arlen, m_wstrb;
  logic awvalid = 0, awready, wlast, wvalid = 0, wready, bvalid, bready, arvalid = 0, arready, rlast, rvalid, rready;
  logic m_awvalid, m_awready, m_wvalid, m_wready, m_bvalid = 0, m_bready, m_arvalid, m_arready, m_rvalid = 0, m_rready;
  logic [1:0] bresp, rresp;
  wattbit_gp_bridge dut (
    .clk, .rst_n, .s_awid(awid), .s_awaddr(awaddr), .s_awvalid(awvalid), .s_awready(awready), .s_wdata(wdata),
    .s_wstrb(4'hf), .s_wlast(wlast), .s_wvalid(wvalid), .s_wready(wready), .s_bid(bid), .s_bresp(bresp),
    .s_bvalid(bvalid), .s_bready(bready), .s_arid(arid), .s_araddr(araddr), .s_arlen(arlen), .s_arvalid(arvalid),
    .s_arready(arready), .s_rid(rid), .s_rdata(rdata), .s_rresp(rresp), .s_rlast(rlast), .s_rvalid(rvalid),
    .s_rready(rready), .m_awaddr, .m_awvalid, .m_awready, .m_wdata, .m_wstrb, .m_wvalid, .m_wready, .m_bresp(2'b0),
    .m_bvalid, .m_bready, .m_araddr, .m_arvalid, .m_arready, .m_rdata, .m_rresp(2'b0), .m_rvalid, .m_rready
  );

  // The slave: a memory of words; address and data come in either order
  logic [31:0] memory[1024];
  logic have_aw = 0, have_w = 0;
  logic [11:0] at;
  logic [31:0] data;
  always @(posedge clk) begin
    m_awready <= random[0] && !have_aw && !(m_awvalid && m_awready);
    m_wready <= random[1] && !have_w && !(m_wvalid && m_wready);
    m_arready <= random[2] && !m_rvalid && !(m_arvalid && m_arready);
    if (m_awvalid && m_awready) begin have_aw <= 1; at <= m_awaddr; end
    if (m_wvalid && m_wready) begin have_w <= 1; data <= m_wdata; end
    if (have_aw && have_w && !m_bvalid) begin memory[at[11:2]] <= data; m_bvalid <= 1; end
    if (m_bvalid && m_bready) begin m_bvalid <= 0; have_aw <= 0; have_w <= 0; end
    if (m_arvalid && m_arready) begin m_rdata <= memory[m_araddr[11:2]]; m_rvalid <= 1; end
    else if (m_rready) m_rvalid <= 0;
  end

  // The master: a burst of writes, then the same burst of reads
  int bursts = 0, beat = 0, step = 0, cycle = 0, length;
  assign wdata = 32'(bursts * 1000 + beat);
  assign wlast = beat == length;
  assign bready = random[4];
  assign rready = random[5];
  always @(posedge clk) begin
    cycle <= cycle + 1;
    rst_n <= cycle > 4;
    if (cycle > 100000) $fatal(1, "stuck in step %0d", step);
    if (cycle > 8) case (step)
      0: begin
        length <= int'(random[11:8]);
        awaddr <= 32'h40000000 + 32'(random[19:14]) * 32;
        awid <= random[31:20];
        awvalid <= 1;
        beat <= 0;
        step <= 1;
      end
      1: if (awready) begin awvalid <= 0; wvalid <= 1; step <= 2; end
      2: if (wvalid && wready) begin
        beat <= beat + 1;
        if (wlast) begin wvalid <= 0; step <= 3; end
      end
      3: if (bvalid && bready) begin
        if (bid != awid || bresp != 0) $fatal(1, "write answer %h of %h", bid, awid);
        araddr <= awaddr;
        arid <= ~awid;
        arlen <= 4'(length);
        arvalid <= 1;
        beat <= 0;
        step <= 4;
      end
      4: if (arready) begin arvalid <= 0; step <= 5; end
      5: if (rvalid && rready) begin
        if (rid != arid || rdata != wdata || rlast != wlast) $fatal(1, "beat %0d is %h, not %h", beat, rdata, wdata);
        beat <= beat + 1;
        if (rlast) begin bursts <= bursts + 1; step <= bursts == 199 ? 6 : 0; end
      end
      default: begin $display("%0d bursts", bursts); $finish; end
    endcase
  end
endmodule
"""


def test_the_bridge_gives_back_bursts_and_ids(tmp_path: Path) -> None:
    (tmp_path / "bench.sv").write_text(BENCH)
    command, environment = verilator()
    command += [*FLAGS, "-MAKEFLAGS", f"PYTHON3={sys.executable}", "--top-module", "bench", "-Mdir", str(tmp_path)]
    built = execute(
        [*command, str(RTL / "bench_main.cpp"), str(BRIDGE), str(tmp_path / "bench.sv")], tmp_path, environment
    )
    assert built.returncode == 0, built.stderr
    done = execute([str(tmp_path / "Vbench")], tmp_path)
    assert done.returncode == 0 and "200 bursts" in done.stdout, done.stdout + done.stderr
