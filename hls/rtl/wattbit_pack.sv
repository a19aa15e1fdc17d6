// Joins BEATS (a power of two) beats of BITS bits into words, lowest first.
module wattbit_pack #(
  parameter int BEATS = 1,
  parameter int BITS  = 64
) (
  input  logic                  clk,
  input  logic                  rst_n,
  input  logic [BITS-1:0]       s_data,
  input  logic                  s_valid,
  output logic                  s_ready,
  output logic [BEATS*BITS-1:0] m_data,
  output logic                  m_valid,
  input  logic                  m_ready
);
  if (BEATS == 1) begin : g_same
    assign m_data = s_data;
    assign m_valid = s_valid;
    assign s_ready = m_ready;
    wire unused = &{1'b0, clk, rst_n};
  end else begin : g_join
    logic [$clog2(BEATS)-1:0] beat;

    assign s_ready = !m_valid || m_ready;

    always_ff @(posedge clk) begin
      if (s_valid && s_ready) m_data <= {s_data, m_data[BEATS*BITS-1:BITS]};
      if (!rst_n) begin
        beat <= '0;
        m_valid <= 1'b0;
      end else begin
        if (s_valid && s_ready) beat <= beat + 1'b1;
        if (s_valid && s_ready && &beat) m_valid <= 1'b1;
        else if (m_ready) m_valid <= 1'b0;
      end
    end
  end
endmodule
