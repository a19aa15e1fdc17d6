// Wires on a chip. In simulation with +stall, a stream that halts at random and keeps its valid until ready.
module wattbit_stall #(
  parameter int WIDTH = 64
) (
  input  logic             clk,
  input  logic [WIDTH-1:0] s_data,
  input  logic             s_valid,
  output logic             s_ready,
  output logic [WIDTH-1:0] m_data,
  output logic             m_valid,
  input  logic             m_ready
);
  logic open;

`ifdef VERILATOR
  logic stalling;
  initial begin
    stalling = $test$plusargs("stall") != 0;
    open = 1'b1;
  end
  always_ff @(posedge clk) if (stalling) open <= (m_valid && !m_ready) || ($urandom & 3) != 0;
`else
  assign open = 1'b1;
  wire unused = clk;
`endif

  assign m_data = s_data;
  assign m_valid = s_valid && open;
  assign s_ready = m_ready && open;
endmodule
