// First-in first-out buffer: DEPTH words (a power of two) and an output register, two cycles from in to out.
module wattbit_fifo #(
  parameter int WIDTH = 64,
  parameter int DEPTH = 32
) (
  input  logic             clk,
  input  logic             rst_n,
  input  logic [WIDTH-1:0] s_data,
  input  logic             s_valid,
  output logic             s_ready,
  output logic [WIDTH-1:0] m_data,
  output logic             m_valid,
  input  logic             m_ready
);
  localparam int BITS = $clog2(DEPTH);
  logic [BITS:0] head;  // one bit more than an address: head - tail is the fill
  logic [BITS:0] tail;

  wire full = head == {~tail[BITS], tail[BITS-1:0]};
  wire push = s_valid && s_ready;
  wire fetch = head != tail && (!m_valid || m_ready);

  assign s_ready = !full;

  // Two branches, for an attribute that is chosen by a parameter reaches tools as a number padded to the longer word.
  if (DEPTH > 64) begin : deep
    (* ram_style = "block" *)
    logic [WIDTH-1:0] memory[DEPTH];
    always_ff @(posedge clk) begin
      if (push) memory[head[BITS-1:0]] <= s_data;
      if (fetch) m_data <= memory[tail[BITS-1:0]];
    end
  end else begin : shallow
    (* ram_style = "distributed" *)
    logic [WIDTH-1:0] memory[DEPTH];
    always_ff @(posedge clk) begin
      if (push) memory[head[BITS-1:0]] <= s_data;
      if (fetch) m_data <= memory[tail[BITS-1:0]];
    end
  end

  always_ff @(posedge clk) begin
    if (!rst_n) begin
      head <= '0;
      tail <= '0;
      m_valid <= 1'b0;
    end else begin
      if (push) head <= head + 1'b1;
      if (fetch) tail <= tail + 1'b1;
      if (fetch) m_valid <= 1'b1;
      else if (m_ready) m_valid <= 1'b0;
    end
  end
endmodule
