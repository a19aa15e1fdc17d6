"""Engines of the shell's tests: they add the set's bias to every element, so that a test knows every result."""

from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from wattbit.hls.engine import EngineRtl
from wattbit.hls.engine_class import EngineClass
from wattbit.plan import ExpertId, ExpertShape, Precision

D = 64
SETS = 5


def stub(folder: Path, weight_bits: int, simd: int, pe: int, wait: int = 0, d_model: int = D) -> EngineRtl:
    """An engine that takes a vector and returns x + 3 * (weight_bits + set), `wait` cycles before each beat."""
    spec = EngineClass(Precision(weight_bits), 8, simd, pe, 8, tuple(ExpertId(0, i) for i in range(SETS)))
    name = spec.name
    folder.mkdir(parents=True, exist_ok=True)
    memory = folder / f"{name}_bias.hex"
    memory.write_text("\n".join(f"{3 * (weight_bits + i):02x}" for i in range(SETS)) + "\n")
    module = folder / f"{name}.sv"
    module.write_text(f"""
module {name} (
  input logic clk, rst_n,
  input logic [15:0] s_set, input logic s_set_valid, output logic s_set_ready,
  input logic [{simd * 8 - 1}:0] s_tdata, input logic s_tvalid, output logic s_tready,
  output logic [{pe * 8 - 1}:0] m_tdata, output logic m_tvalid, input logic m_tready
);
  localparam int D = {d_model}, SIMD = {simd}, PE = {pe}, WAIT = {wait};
  logic [D*8-1:0] vector;
  logic [7:0] bias[{SETS}];
  int got, waited, sent;
  initial $readmemh("{memory.name}", bias);
  assign s_tready = got != D;
  assign m_tvalid = got == D && waited == WAIT && s_set_valid;
  assign s_set_ready = m_tvalid && m_tready && sent == D - PE;
  always_comb for (int i = 0; i < PE; i++) m_tdata[8*i +: 8] = vector[8*i +: 8] + bias[s_set[2:0]];
  always_ff @(posedge clk)
    if (!rst_n) begin
      got <= 0;
      waited <= 0;
      sent <= 0;
    end else begin
      if (s_tvalid && s_tready) begin
        if (SIMD*8 == D*8) vector <= s_tdata;
        else vector <= {{s_tdata, vector[D*8-1:SIMD*8]}};
        got <= got + SIMD;
      end
      if (got == D && waited != WAIT) waited <= waited + 1;
      if (m_tvalid && m_tready) begin
        vector <= vector >> (8 * PE);
        waited <= 0;
        sent <= sent + PE;
      end
      if (s_set_ready && s_set_valid) begin
        got <= 0;
        sent <= 0;
      end
    end
endmodule
""")
    return EngineRtl(name, (module,), (memory,), spec, ExpertShape(d_model, 2 * d_model), 1)


def stubs(folder: Path) -> list[EngineRtl]:
    """Three engines of different widths and speeds: 16, 48 and 544 cycles a vector."""
    return [stub(folder, 2, simd=8, pe=8), stub(folder, 4, simd=4, pe=2), stub(folder, 8, simd=2, pe=1, wait=7)]


def expected(engine: NDArray[np.int64], sets: NDArray[np.int64], x: NDArray[np.int8]) -> NDArray[np.int8]:
    """What the stubs return: int8 [N, D], wrapping."""
    bias = 3 * (np.array([2, 4, 8])[engine] + sets)  # [N]
    return (x + bias[:, None]).astype(np.int8)
