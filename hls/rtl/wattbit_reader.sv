// AXI4 read master: a command (address, number of 64-bit words) becomes that many words on a stream, in order.
//
// Bursts end at multiples of BURST words, so none crosses 4 KB. A burst is requested only when the buffer has room for
// all of it: rready is always 1, and DEPTH / BURST bursts are under way at once. Commands queue without a gap.
module wattbit_reader #(
  parameter int BURST = 16,   // words, a power of two; 16 is what an AXI3 port takes too
  parameter int DEPTH = 64    // words buffered, a power of two
) (
  input  logic        clk,
  input  logic        rst_n,

  input  logic [31:3] cmd_addr,
  input  logic [28:0] cmd_words,
  input  logic        cmd_valid,
  output logic        cmd_ready,

  output logic [63:0] m_data,
  output logic        m_valid,
  input  logic        m_ready,
  output logic        error,     // a response was not OKAY

  output logic [31:0] araddr,
  output logic [7:0]  arlen,
  output logic        arvalid,
  input  logic        arready,
  input  logic [63:0] rdata,
  input  logic [1:0]  rresp,
  input  logic        rlast,
  input  logic        rvalid,
  output logic        rready
);
  localparam int BITS = $clog2(BURST);
  typedef logic [BITS:0] burst_t;
  typedef logic [$clog2(DEPTH):0] fill_t;

  logic [31:3] addr;
  logic [28:0] words_left;
  fill_t reserved;  // words requested and not yet taken from the buffer

  wire burst_t to_boundary = burst_t'(BURST) - burst_t'(addr[3+:BITS]);
  wire burst_t burst = words_left < 29'(to_boundary) ? burst_t'(words_left) : to_boundary;
  wire request = words_left != 0 && (!arvalid || arready) && reserved <= fill_t'(DEPTH - BURST);
  wire taken = m_valid && m_ready;

  assign cmd_ready = words_left == 0;
  assign rready = 1'b1;
  assign error = rvalid && rresp[1];

  always_ff @(posedge clk) begin
    if (!rst_n) begin
      words_left <= '0;
      reserved <= '0;
      arvalid <= 1'b0;
    end else begin
      if (cmd_valid && cmd_ready) begin
        addr <= cmd_addr;
        words_left <= cmd_words;
      end
      if (request) begin
        araddr <= {addr, 3'b0};
        arlen <= 8'(burst) - 8'd1;
        addr <= addr + 29'(burst);
        words_left <= words_left - 29'(burst);
      end
      if (request) arvalid <= 1'b1;
      else if (arready) arvalid <= 1'b0;
      reserved <= reserved + (request ? fill_t'(burst) : '0) - fill_t'(taken);
    end
  end

  wattbit_fifo #(.WIDTH(64), .DEPTH(DEPTH)) buffer (
    .clk, .rst_n,
    .s_data(rdata), .s_valid(rvalid), .s_ready(),
    .m_data, .m_valid, .m_ready
  );

  wire unused = &{1'b0, rlast, rresp[0]};
endmodule
