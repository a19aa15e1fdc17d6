"""The AXI shell around the engines: its top module, written for the engines at hand, and all files of the design.

Registers of the AXI4-Lite slave (32 bit):

    0x00 CTRL      bit 0 start, reads 0; bit 1 done, write 1 clears, start clears; bit 2 idle
    0x04 ID        0x57423031
    0x08 DIGEST    low 32 bits of the design's digest
    0x0C COUNT     packets of a launch, 20 bits
    0x10 IN_ADDR   first packet, a multiple of 8
    0x14 OUT_ADDR  first result, a multiple of 8
    0x18 CYCLES_LO, 0x1C CYCLES_HI   clock cycles of the last launch, start to done
    0x20 D_MODEL, 0x24 ENGINES
    0x28 ERROR     the first fault of the launch: 0 none, 1 no such engine, 2 AXI error response, 3 no such set
    0x2C STREAMS   engines whose weights are streamed
    0x40 + 8 * i WEIGHTS_ADDR    images of the experts of stream i, a multiple of 8, for best speed of 128
    0x44 + 8 * i WEIGHTS_STRIDE  bytes from one image to the next, read only

Stream i is that of the i-th engine with streamed weights; it reads them over the AXI4 master `m_axi_w<i>`. Packets and
results go over `m_axi_mem`.

A packet is a 64-bit header {48'b0, set, engine} and D int8; the result of packet i is D int8 at OUT_ADDR + i * D. A
packet with a fault leaves its result as it was; the launch always ends.
"""

import math
import shutil
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

from wattbit.errors import WattbitError
from wattbit.files import digest_json, read_json, sha256_file, write_json, write_text
from wattbit.hls.engine import RTL, EngineRtl

TOP = "wattbit_shell"
OWN_SOURCES = (
    "wattbit_fifo.sv",
    "wattbit_axil_regs.sv",
    "wattbit_reader.sv",
    "wattbit_writer.sv",
    "wattbit_dispatch.sv",
    "wattbit_unpack.sv",
    "wattbit_pack.sv",
    "wattbit_stall.sv",
    "wattbit_lane.sv",
    "wattbit_loader.sv",
    "wattbit_collect.sv",
    "wattbit_core.sv",
)
ENGINES_MAX = 255
WORD_BYTES = 8
QUEUE_VECTORS = 4
LUTRAM_WORDS, BRAM_WORDS = 64, 512  # deepest queue in LUT RAM, and what the block RAMs of a deeper one hold at least
LIST = "shell.json"


@dataclass(frozen=True)
class ShellRtl:
    """A whole design in one folder: what a simulator, a synthesiser or Vivado reads, and nothing else.

    folder: holds the files and their list, `shell.json`. sources: names in compile order, the top module last.
    memories: names of $readmemh files, which the sources name without a folder.
    streams: engines whose weights are streamed.
    digest: of the contents of all files.
    """

    folder: Path
    sources: tuple[str, ...]
    memories: tuple[str, ...]
    d_model: int
    engines: tuple[str, ...]
    streams: int
    digest: str
    top: str = TOP

    @property
    def masters(self) -> tuple[str, ...]:
        """The AXI4 masters: that of packets and results, and the read-only ones of the streams."""
        return "m_axi_mem", *(f"m_axi_w{i}" for i in range(self.streams))

    @classmethod
    def load(cls, folder: Path) -> Self:
        """The design in `folder`; raises WattbitError if a file is missing or differs from the list."""
        record = read_json(folder / LIST)
        for name, sha256 in (record["sources"] | record["memories"]).items():
            path = folder / name
            if not path.is_file() or sha256_file(path) != sha256:
                raise WattbitError(f"{path} is missing or not as built; delete {folder} and run `wattbit build`")
        return cls._of(folder, record)

    @classmethod
    def _of(cls, folder: Path, record: dict[str, Any]) -> Self:
        return cls(
            folder,
            tuple(record["order"]),
            tuple(record["memories"]),
            record["d_model"],
            tuple(record["engines"]),
            record["streams"],
            digest_json(record),
        )


def build_shell(
    engines: Sequence[EngineRtl], d_model: int, digest: str, out: Path, queues: Sequence[int] | None = None
) -> ShellRtl:
    """Write the design of `engines`, engine i of the packets being engines[i], to the folder `out`.

    digest: hexadecimal, names the design; its low 32 bits are what the DIGEST register reads.
    queues: 64-bit words of vectors that may wait for each engine, powers of two of two vectors or more; `queue_words`
    by default.
    Raises WattbitError for a vector that is not whole 64-bit words, no or too many engines, two engines of one name,
    and two different files of one name.
    """
    if d_model % WORD_BYTES or not WORD_BYTES <= d_model <= 4088:
        raise WattbitError(f"d_model must be a multiple of {WORD_BYTES} from {WORD_BYTES} to 4088, not {d_model}")
    if not 1 <= len(engines) <= ENGINES_MAX:
        raise WattbitError(f"a shell takes 1 to {ENGINES_MAX} engines, not {len(engines)}")
    names = [engine.module for engine in engines]
    if len(set(names)) < len(names):
        raise WattbitError(f"two engines share a name in {', '.join(names)}; give each width class one engine")

    out.mkdir(parents=True, exist_ok=True)
    sources = [path for engine in engines for path in engine.sources] + [RTL / name for name in OWN_SOURCES]
    order = _gather(sources, out)
    memories = _gather([path for engine in engines for path in engine.memories], out)
    words = d_model // WORD_BYTES
    queues = queues or [queue_words(engine, words) for engine in engines]
    write_text(out / f"{TOP}.v", _top(engines, words, queues, int(digest, 16) & 0xFFFFFFFF))
    order.append(f"{TOP}.v")
    record = {
        "top": TOP,
        "d_model": d_model,
        "engines": names,
        "streams": sum(engine.spec.streamed for engine in engines),
        "order": order,
        "sources": {name: sha256_file(out / name) for name in order},
        "memories": {name: sha256_file(out / name) for name in memories},
    }
    write_json(out / LIST, record)
    return ShellRtl._of(out, record)


def queue_words(engine: EngineRtl, words: int) -> int:
    """64-bit words of vectors, of `words` each, that may wait for an engine.

    On the chip, QUEUE_VECTORS vectors. Streamed, as many as the engine computes while it loads an expert: the header
    that asks for the next one must be seen so early. What does not fit in LUT RAM gets a whole block RAM. The depths
    were found by simulation, see `benchmarks/fpga_fifos.py`.
    """
    vectors = QUEUE_VECTORS
    if engine.spec.streamed:
        vectors = max(vectors, math.ceil(engine.beats / engine.spec.cycles_per_vector(engine.shape)) + 1)
    depth = 2 ** (vectors * words - 1).bit_length()
    return depth if depth <= LUTRAM_WORDS else max(depth, BRAM_WORDS)


def _gather(paths: Sequence[Path], out: Path) -> list[str]:
    """Copy files to one folder; a file that several engines share is copied once."""
    found: dict[str, str] = {}
    for path in paths:
        sha256 = sha256_file(path)
        if found.setdefault(path.name, sha256) != sha256:
            raise WattbitError(f"two different files are called {path.name}, one of them {path}; rename one")
        shutil.copyfile(path, out / path.name)
    return list(found)


def _top(engines: Sequence[EngineRtl], words: int, queues: Sequence[int], digest: int) -> str:
    """The top module, in Verilog-2001: what a Vivado block design takes as a module, and infers its interfaces from."""
    n = len(engines)
    backwards = list(reversed(engines))  # a concatenation starts with the highest bits
    sets = ", ".join(f"16'd{len(engine.spec.experts)}" for engine in backwards)
    simd = ", ".join(f"8'd{engine.simd}" for engine in backwards)
    pe = ", ".join(f"8'd{engine.pe}" for engine in backwards)
    queue = ", ".join(f"16'd{words}" for words in reversed(queues))
    beats = ", ".join(f"32'd{engine.beats}" for engine in backwards)
    stride = ", ".join(f"32'd{engine.stride // WORD_BYTES}" for engine in backwards)
    streams = sum(engine.spec.streamed for engine in engines)
    ports = max(streams, 1)
    return f"""// Generated by wattbit: the shell around {n} engine{"s" * (n > 1)}.
module {TOP} (
  input  wire        aclk,
  input  wire        aresetn,
  output wire        irq,

  input  wire [11:0] s_axi_ctrl_awaddr,
  input  wire [2:0]  s_axi_ctrl_awprot,
  input  wire        s_axi_ctrl_awvalid,
  output wire        s_axi_ctrl_awready,
  input  wire [31:0] s_axi_ctrl_wdata,
  input  wire [3:0]  s_axi_ctrl_wstrb,
  input  wire        s_axi_ctrl_wvalid,
  output wire        s_axi_ctrl_wready,
  output wire [1:0]  s_axi_ctrl_bresp,
  output wire        s_axi_ctrl_bvalid,
  input  wire        s_axi_ctrl_bready,
  input  wire [11:0] s_axi_ctrl_araddr,
  input  wire [2:0]  s_axi_ctrl_arprot,
  input  wire        s_axi_ctrl_arvalid,
  output wire        s_axi_ctrl_arready,
  output wire [31:0] s_axi_ctrl_rdata,
  output wire [1:0]  s_axi_ctrl_rresp,
  output wire        s_axi_ctrl_rvalid,
  input  wire        s_axi_ctrl_rready,

  output wire [31:0] m_axi_mem_awaddr,
  output wire [7:0]  m_axi_mem_awlen,
  output wire [2:0]  m_axi_mem_awsize,
  output wire [1:0]  m_axi_mem_awburst,
  output wire [3:0]  m_axi_mem_awcache,
  output wire [2:0]  m_axi_mem_awprot,
  output wire        m_axi_mem_awvalid,
  input  wire        m_axi_mem_awready,
  output wire [63:0] m_axi_mem_wdata,
  output wire [7:0]  m_axi_mem_wstrb,
  output wire        m_axi_mem_wlast,
  output wire        m_axi_mem_wvalid,
  input  wire        m_axi_mem_wready,
  input  wire [1:0]  m_axi_mem_bresp,
  input  wire        m_axi_mem_bvalid,
  output wire        m_axi_mem_bready,
  output wire [31:0] m_axi_mem_araddr,
  output wire [7:0]  m_axi_mem_arlen,
  output wire [2:0]  m_axi_mem_arsize,
  output wire [1:0]  m_axi_mem_arburst,
  output wire [3:0]  m_axi_mem_arcache,
  output wire [2:0]  m_axi_mem_arprot,
  output wire        m_axi_mem_arvalid,
  input  wire        m_axi_mem_arready,
  input  wire [63:0] m_axi_mem_rdata,
  input  wire [1:0]  m_axi_mem_rresp,
  input  wire        m_axi_mem_rlast,
  input  wire        m_axi_mem_rvalid,
  output wire        m_axi_mem_rready{"".join(_weight_port(i) for i in range(streams))}
);
  // Every beat is 8 bytes of an incrementing burst; normal, non-cacheable, bufferable memory.
  assign m_axi_mem_awsize = 3'd3;
  assign m_axi_mem_awburst = 2'd1;
  assign m_axi_mem_awcache = 4'd3;
  assign m_axi_mem_awprot = 3'd0;
  assign m_axi_mem_wstrb = 8'hff;
  assign m_axi_mem_arsize = 3'd3;
  assign m_axi_mem_arburst = 2'd1;
  assign m_axi_mem_arcache = 4'd3;
  assign m_axi_mem_arprot = 3'd0;
{"".join(_weight_constants(i) for i in range(streams))}
  wire unused = &{{1'b0, s_axi_ctrl_awprot, s_axi_ctrl_arprot}};

  wire [{n * 8 - 1}:0] set;
  wire [{n * 64 - 1}:0] in;
  wire [{n * 64 - 1}:0] out;
  wire [{n - 1}:0] set_valid, set_ready, in_valid, in_ready, out_valid, out_ready;
  wire [{ports * 64 - 1}:0] weights;
  wire [{ports - 1}:0] weights_valid, weights_ready;

  wattbit_core #(
    .DIGEST(32'h{digest:08x}),
    .ENGINES({n}),
    .WORDS({words}),
    .SETS({{{sets}}}),
    .SIMD({{{simd}}}),
    .PE({{{pe}}}),
    .QUEUE({{{queue}}}),
    .BEATS({{{beats}}}),
    .STRIDE({{{stride}}}),
    .STREAMS({streams})
  ) core (
    .clk(aclk), .rst_n(aresetn), .irq(irq),
    .s_awaddr(s_axi_ctrl_awaddr), .s_awvalid(s_axi_ctrl_awvalid), .s_awready(s_axi_ctrl_awready),
    .s_wdata(s_axi_ctrl_wdata), .s_wstrb(s_axi_ctrl_wstrb),
    .s_wvalid(s_axi_ctrl_wvalid), .s_wready(s_axi_ctrl_wready),
    .s_bresp(s_axi_ctrl_bresp), .s_bvalid(s_axi_ctrl_bvalid), .s_bready(s_axi_ctrl_bready),
    .s_araddr(s_axi_ctrl_araddr), .s_arvalid(s_axi_ctrl_arvalid), .s_arready(s_axi_ctrl_arready),
    .s_rdata(s_axi_ctrl_rdata), .s_rresp(s_axi_ctrl_rresp),
    .s_rvalid(s_axi_ctrl_rvalid), .s_rready(s_axi_ctrl_rready),
    .m_awaddr(m_axi_mem_awaddr), .m_awlen(m_axi_mem_awlen),
    .m_awvalid(m_axi_mem_awvalid), .m_awready(m_axi_mem_awready),
    .m_wdata(m_axi_mem_wdata), .m_wlast(m_axi_mem_wlast),
    .m_wvalid(m_axi_mem_wvalid), .m_wready(m_axi_mem_wready),
    .m_bresp(m_axi_mem_bresp), .m_bvalid(m_axi_mem_bvalid), .m_bready(m_axi_mem_bready),
    .m_araddr(m_axi_mem_araddr), .m_arlen(m_axi_mem_arlen),
    .m_arvalid(m_axi_mem_arvalid), .m_arready(m_axi_mem_arready),
    .m_rdata(m_axi_mem_rdata), .m_rresp(m_axi_mem_rresp), .m_rlast(m_axi_mem_rlast),
    .m_rvalid(m_axi_mem_rvalid), .m_rready(m_axi_mem_rready),
{_weight_pins(streams)}
    .weights(weights), .weights_valid(weights_valid), .weights_ready(weights_ready),
    .engine_set(set), .engine_set_valid(set_valid), .engine_set_ready(set_ready),
    .engine_in(in), .engine_in_valid(in_valid), .engine_in_ready(in_ready),
    .engine_out(out), .engine_out_valid(out_valid), .engine_out_ready(out_ready)
  );
{"".join(_instance(i, engine, engines) for i, engine in enumerate(engines))}{"" if streams else NO_STREAM}endmodule
"""


NO_STREAM = """
  assign weights_ready = 1'b0;
  wire unused_weights = &{1'b0, weights, weights_valid};
"""
WEIGHT_SIGNALS = (  # direction and bits of a weight port's signals, constants aside
    ("araddr", "output", 32),
    ("arlen", "output", 8),
    ("arvalid", "output", 1),
    ("arready", "input", 1),
    ("rdata", "input", 64),
    ("rresp", "input", 2),
    ("rlast", "input", 1),
    ("rvalid", "input", 1),
    ("rready", "output", 1),
)


def _weight_port(stream: int) -> str:
    signals = [*WEIGHT_SIGNALS, ("arsize", "output", 3), ("arburst", "output", 2)]
    signals += [("arcache", "output", 4), ("arprot", "output", 3)]
    widths = {1: "      "} | {bits: f"[{bits - 1}:0]".ljust(6) for bits in (2, 3, 4, 8, 32, 64)}
    return "".join(
        f",\n  {direction.ljust(6)} wire {widths[bits]} m_axi_w{stream}_{name}" for name, direction, bits in signals
    )


def _weight_constants(stream: int) -> str:
    constants = {"arsize": "3'd3", "arburst": "2'd1", "arcache": "4'd3", "arprot": "3'd0"}
    return "".join(f"  assign m_axi_w{stream}_{name} = {value};\n" for name, value in constants.items())


def _weight_pins(streams: int) -> str:
    """The core's weight ports, joined from those of all streams; with none, inputs are constant and outputs open."""
    pins = []
    for name, direction, bits in WEIGHT_SIGNALS:
        joined = ", ".join(f"m_axi_w{i}_{name}" for i in reversed(range(streams)))
        nothing = f"{bits}'d0" if direction == "input" else ""
        pins.append(f".w_{name}({{{joined}}})" if streams else f".w_{name}({nothing})")
    return "    " + ", ".join(pins) + ","


def _instance(i: int, engine: EngineRtl, engines: Sequence[EngineRtl]) -> str:
    weights = ""
    if engine.spec.streamed:
        stream = sum(before.spec.streamed for before in engines[:i])
        weights = (
            f"\n    .w_tdata(weights[{64 * stream} +: 64]), .w_tvalid(weights_valid[{stream}]), "
            f".w_tready(weights_ready[{stream}]),"
        )
    width_in, width_out = engine.simd * 8, engine.pe * 8
    rest = 64 - width_out
    padding = f"  assign out[{64 * i + width_out} +: {rest}] = {rest}'d0;\n" if rest else ""
    return f"""
{padding}  {engine.module} engine{i} (
    .clk(aclk), .rst_n(aresetn),
    .s_set(set[{8 * i} +: 8]), .s_set_valid(set_valid[{i}]), .s_set_ready(set_ready[{i}]),{weights}
    .s_tdata(in[{64 * i} +: {width_in}]), .s_tvalid(in_valid[{i}]), .s_tready(in_ready[{i}]),
    .m_tdata(out[{64 * i} +: {width_out}]), .m_tvalid(out_valid[{i}]), .m_tready(out_ready[{i}])
  );
"""
