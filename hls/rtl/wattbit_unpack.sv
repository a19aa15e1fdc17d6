// Splits 64-bit words into beats of BYTES bytes (1, 2, 4 or 8), lowest first.
module wattbit_unpack #(
  parameter int BYTES = 8
) (
  input  logic               clk,
  input  logic               rst_n,
  input  logic [63:0]        s_data,
  input  logic               s_valid,
  output logic               s_ready,
  output logic [BYTES*8-1:0] m_data,
  output logic               m_valid,
  input  logic               m_ready
);
  assign m_valid = s_valid;

  if (BYTES == 8) begin : g_same
    assign m_data = s_data;
    assign s_ready = m_ready;
    wire unused = &{1'b0, clk, rst_n};
  end else begin : g_split
    logic [$clog2(8/BYTES)-1:0] beat;

    assign m_data = s_data[beat*BYTES*8+:BYTES*8];
    assign s_ready = m_ready && &beat;

    always_ff @(posedge clk) begin
      if (!rst_n) beat <= '0;
      else if (m_valid && m_ready) beat <= beat + 1'b1;
    end
  end
endmodule
