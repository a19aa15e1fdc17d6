"""The netlist that goes to place and route, as a simulated accelerator: does it compute what the RTL computes?

A valid bitstream with wrong results has been seen (DSP slices that yosys inferred), so this is part of every build. The
netlist keeps its own bridge and ports: a wrapper with the shell's ports stands in for the processing system, so that
the simulated accelerator, its memory and its AXI checks serve the netlist as they serve the RTL.
"""

import re
from dataclasses import replace
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from wattbit.arith import Int8
from wattbit.errors import WattbitError
from wattbit.files import digest_json, sha256_file, write_text
from wattbit.hls.accelerator import Accelerator
from wattbit.hls.open.top import GP, TOP, gp_pins, hp_pins, masters, wire
from wattbit.hls.shell import ShellRtl
from wattbit.hls.synthesis import cell_library

MODEL = Path(__file__).parent / "rtl" / "block_ram.sv"
GP_ID = "12'hA5C"  # of every register access; it must come back with the answer
BLOCK_RAMS = {"RAMB18E1": (14, 1), "RAMB36E1": (15, 2)}  # bits of an address, units of 18 Kb
IGNORED = (  # parameters that change nothing where no output register, reset, cascade or error correction is used
    *("SIM_DEVICE", "RDADDR_COLLISION_HWCONFIG", "SIM_COLLISION_CHECK", "INIT_FILE", "SRVAL_A", "SRVAL_B"),
    *("DOA_REG", "DOB_REG", "INIT_A", "INIT_B", "WRITE_MODE_A", "WRITE_MODE_B"),
    *("RAM_EXTENSION_A", "RAM_EXTENSION_B", "EN_ECC_READ", "EN_ECC_WRITE"),
)
RANDOM_VECTORS = 4  # for each set of each engine, beside the extremes


def netlist_shell(shell: ShellRtl, netlist: Path, out: Path) -> ShellRtl:
    """The design of a netlist (Verilog of `wattbit_z7` with PS7's pins as its ports) with the ports of `shell`.

    Writes its files to the folder `out`. Raises WattbitError for a cell without a model.
    """
    text = netlist.read_text(encoding="utf-8")
    out.mkdir(parents=True, exist_ok=True)
    files = {
        MODEL.name: MODEL.read_text(encoding="utf-8"),
        "cells.v": cell_models(text),
        "netlist.v": text,
        f"{shell.top}.v": _wrapper(shell, text),
    }
    for name, content in files.items():
        write_text(out / name, content)
    digest = digest_json({name: sha256_file(out / name) for name in files})
    return replace(shell, folder=out, sources=tuple(files), memories=(), digest=digest)


def cell_models(netlist: str) -> str:
    """Verilog models of the cells that a netlist instantiates: yosys' own without their timing, ours of block RAMs."""
    used = set(re.findall(r"^  ([A-Z]\w*) ", netlist, re.M))
    models = [_block_ram(name) for name in BLOCK_RAMS if name in used]
    library = cell_library("cells_sim.v")
    found = {m[1]: m[0] for m in re.finditer(r"^module (\w+)\b.*?^endmodule", library, re.M | re.S)}
    if unknown := used - found.keys() - BLOCK_RAMS.keys():
        raise WattbitError(f"there is no model of {', '.join(sorted(unknown))}, so the netlist cannot be checked")
    text = "\n".join(found[name] for name in sorted(used - BLOCK_RAMS.keys()))
    text = re.sub(r"^\s*specify\b.*?\bendspecify\b", "", text, flags=re.M | re.S)
    text = re.sub(r"`ifdef YOSYS.*?`endif", "", text, flags=re.S)
    return "\n".join([text, *models])


def _block_ram(name: str) -> str:
    """Wrapper of `wattbit_block_ram` with the primitive's name, parameters and pins."""
    address, units = BLOCK_RAMS[name]
    data, parity = (
        [f"{prefix}_{i:02X}" for i in range(count * units)] for prefix, count in (("INIT", 64), ("INITP", 8))
    )
    lanes = 2 * units  # bytes of one port
    clocks = "CLKARDCLK, CLKBWRCLK, ENARDEN, ENBWREN, REGCEAREGCE, REGCEB"
    resets = "RSTRAMARSTRAM, RSTRAMB, RSTREGARSTREG, RSTREGB"
    cascade = ", CASCADEINA, CASCADEINB, INJECTDBITERR, INJECTSBITERR" if units == 2 else ""
    pins = address if units == 1 else address + 1  # the highest bit of a RAMB36 is for cascades
    inverted = ("CLKARDCLK", "CLKBWRCLK", "ENARDEN", "ENBWREN", "RSTRAMARSTRAM", "RSTRAMB", "RSTREGARSTREG", "RSTREGB")
    unused = [*IGNORED, *(f"IS_{pin}_INVERTED" for pin in inverted)]
    contents = "".join(f"  parameter [255:0] {init} = 256'd0,\n" for init in data + parity)
    ignored = "".join(f"  parameter {parameter} = 0,\n" for parameter in unused)
    return f"""
module {name} #(
{contents}{ignored}  parameter RAM_MODE = "TDP",
  parameter READ_WIDTH_A = 0, READ_WIDTH_B = 0, WRITE_WIDTH_A = 0, WRITE_WIDTH_B = 0
) (
  input {clocks}, {resets}{cascade},
  input [{pins - 1}:0] ADDRARDADDR, ADDRBWRADDR,
  input [{8 * lanes - 1}:0] DIADI, DIBDI, input [{lanes - 1}:0] DIPADIP, DIPBDIP,
  input [{lanes - 1}:0] WEA, input [{2 * lanes - 1}:0] WEBWE,
  output [{8 * lanes - 1}:0] DOADO, DOBDO, output [{lanes - 1}:0] DOPADOP, DOPBDOP
);
  // "SDP": port A reads and port B writes, each over both ports' data pins
  localparam SIMPLE = RAM_MODE == "SDP";
  wire [63:0] out_a, out_b;
  wire [7:0] parity_out_a, parity_out_b;
  wattbit_block_ram #(
    .ADDRESS({address}),
    .DATA({{{", ".join(reversed(data))}}}),
    .PARITY({{{", ".join(reversed(parity))}}}),
    .READ_A(READ_WIDTH_A), .WRITE_A(WRITE_WIDTH_A), .READ_B(READ_WIDTH_B), .WRITE_B(WRITE_WIDTH_B)
  ) ram (
    .clk_a(CLKARDCLK), .clk_b(CLKBWRCLK), .en_a(ENARDEN), .en_b(ENBWREN),
    .addr_a(ADDRARDADDR[{address - 1}:0]), .addr_b(ADDRBWRADDR[{address - 1}:0]),
    .we_a(8'(WEA)), .we_b(8'(WEBWE)),
    .in_a(64'(DIADI)), .in_b(SIMPLE ? 64'({{DIBDI, DIADI}}) : 64'(DIBDI)),
    .parity_in_a(8'(DIPADIP)), .parity_in_b(SIMPLE ? 8'({{DIPBDIP, DIPADIP}}) : 8'(DIPBDIP)),
    .out_a, .out_b, .parity_out_a, .parity_out_b
  );
  assign DOADO = out_a[{8 * lanes - 1}:0];
  assign DOPADOP = parity_out_a[{lanes - 1}:0];
  assign DOBDO = SIMPLE ? out_a[{16 * lanes - 1}:{8 * lanes}] : out_b[{8 * lanes - 1}:0];
  assign DOPBDOP = SIMPLE ? parity_out_a[{2 * lanes - 1}:{lanes}] : parity_out_b[{lanes - 1}:0];
endmodule
"""


def _wrapper(shell: ShellRtl, netlist: str) -> str:
    """The shell's ports on the netlist's PS7 pins: registers over GP0 with an id, masters from HP0 on."""
    text = (shell.folder / shell.sources[-1]).read_text(encoding="utf-8")
    header = text[text.index(f"module {shell.top}") : text.index(");") + 2]
    there = set(re.findall(r"^  (?:in|out)put (?:\[\d+:\d+\] )?ps7_(\w+);", netlist, re.M))
    pins = {"FCLKCLK": "{3'd0, aclk}", "FCLKRESETN": "{3'd0, aresetn}", "IRQF2P": "irqs"} | gp_pins()
    pins["MAXIGP0ACLK"] = "unused_clock"
    lines = []
    for i, (name, writes) in enumerate(masters(shell).items()):
        pins |= {pin: value for pin, value in hp_pins(i, name, writes).items() if value.startswith(name)}
        for channel in ("ar", "aw") if writes else ("ar",):
            lines.append(f"  assign {name}_{channel}len[7:4] = 4'd0;")
            lines.append(f"  assign {name}_{channel}size[2] = 1'b0;")
    connected = ",\n".join(f"    .ps7_{pin}({value})" for pin, value in sorted(pins.items()) if pin in there)
    driven = {
        **{f"{channel}id": GP_ID for channel in ("aw", "ar")},
        **{f"{channel}addr": f"{{20'h40000, s_axi_ctrl_{channel}addr}}" for channel in ("aw", "ar")},
        **{"arlen": "4'd0", "wlast": "1'b1"},
        **{
            name: f"s_axi_ctrl_{name}"
            for name in ("awvalid", "wdata", "wstrb", "wvalid", "bready", "arvalid", "rready")
        },
    }
    read = ("awready", "wready", "bresp", "bvalid", "arready", "rdata", "rresp", "rvalid")
    lines += [f"  assign g_{name} = {value};" for name, value in driven.items()]
    lines += [f"  assign s_axi_ctrl_{name} = g_{name};" for name in read]
    return f"""// Generated by wattbit: the netlist with the shell's ports.
{header}
  wire unused_clock;
  wire [19:0] irqs;
  assign irq = irqs[0];
{"".join(wire(f"g_{name}", bits) for name, bits in GP.items())}
{chr(10).join(lines)}

  {TOP} netlist (
{connected}
  );

  always @(posedge aclk) begin
    if (g_bvalid && g_bid != {GP_ID}) $fatal(1, "the answer to a write has another id");
    if (g_rvalid && (g_rid != {GP_ID} || !g_rlast)) $fatal(1, "the answer to a read has another id or length");
  end
endmodule
"""


def stimulus(shell: ShellRtl, seed: int = 0) -> tuple[NDArray[np.int64], NDArray[np.int64], Int8]:
    """Engines [N], sets [N] and inputs [N, D] for every set of every engine: both extremes, zero, and at random."""
    text = (shell.folder / shell.sources[-1]).read_text(encoding="utf-8")
    found = re.search(r"\.SETS\(\{(.*?)\}\)", text)
    if found is None:
        raise WattbitError(f"{shell.sources[-1]} does not say how many sets its engines have; build the design again")
    sets = [int(word.partition("'d")[2]) for word in reversed(found[1].split(","))]
    each = RANDOM_VECTORS + 3
    pairs = np.array([(engine, index) for engine, count in enumerate(sets) for index in range(count)]).repeat(each, 0)
    x = np.random.default_rng(seed).integers(-128, 128, (len(pairs), shell.d_model)).astype(np.int8)
    x[0::each], x[1::each], x[2::each] = -128, 127, 0
    return pairs[:, 0], pairs[:, 1], x


def images(shell: ShellRtl) -> list[Path]:
    """The files of the streamed engines' experts, which lie beside the design as `write_engine` left them."""
    folder = shell.folder.with_name("engines")
    files = [path for name in shell.engines if (path := folder / name / f"{name}.images").is_file()]
    if len(files) != shell.streams:
        raise WattbitError(
            f"{folder} has {len(files)} files of images, the design streams {shell.streams}; build again"
        )
    return files


def compare(shell: ShellRtl, rtl: Path, gates: Path) -> dict[str, int]:
    """One launch of `stimulus` through the libraries of the RTL and of the netlist: vectors, and cycles of each.

    Raises WattbitError if any result of the netlist differs from the RTL's.
    """
    engine, sets, x = stimulus(shell)
    results = []
    for library in (rtl, gates):
        with Accelerator(library, images=images(shell)) as accelerator:
            results.append(accelerator.run(engine, sets, x))
    (expected, cycles), (got, gate_cycles) = results
    wrong = np.flatnonzero((expected != got).any(axis=1))
    if len(wrong):
        first = wrong[0]
        raise WattbitError(
            f"gate-level simulation: {len(wrong)} of {len(x)} vectors differ from the RTL, the first for engine "
            f"{engine[first]}, set {sets[first]}; the bitstream of this netlist would compute wrong results"
        )
    return {"vectors": len(x), "rtl_cycles": cycles, "cycles": gate_cycles}
