// Splits words into BEATS (a power of two) beats of BITS bits, lowest first.
module wattbit_unpack #(
  parameter int BEATS = 1,
  parameter int BITS  = 64
) (
  input  logic                  clk,
  input  logic                  rst_n,
  input  logic [BEATS*BITS-1:0] s_data,
  input  logic                  s_valid,
  output logic                  s_ready,
  output logic [BITS-1:0]       m_data,
  output logic                  m_valid,
  input  logic                  m_ready
);
  assign m_valid = s_valid;

  if (BEATS == 1) begin : g_same
    assign m_data = s_data;
    assign s_ready = m_ready;
    wire unused = &{1'b0, clk, rst_n};
  end else begin : g_split
    logic [$clog2(BEATS)-1:0] beat;

    assign m_data = s_data[beat*BITS+:BITS];
    assign s_ready = m_ready && &beat;

    always_ff @(posedge clk) begin
      if (!rst_n) beat <= '0;
      else if (m_valid && m_ready) beat <= beat + 1'b1;
    end
  end
endmodule
