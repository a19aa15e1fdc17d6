// Reads experts' images from DDR as they are asked for: image i lies at base + i * STRIDE, BEATS 64-bit words of it count.
//
// The bursts of an image are requested while the beats of the one before arrive, so the port idles only when `m_ready`
// holds it up.
module wattbit_loader #(
  parameter int BEATS  = 1,
  parameter int STRIDE = 1,   // 64-bit words
  parameter int AHEAD  = 128  // words requested ahead: the port is never idle up to that latency, less a burst
) (
  input  logic        clk,
  input  logic        rst_n,

  input  logic [31:3] base,
  input  logic [15:0] set,
  input  logic        set_valid,
  output logic        set_ready,

  output logic [63:0] m_data,
  output logic        m_valid,
  input  logic        m_ready,
  output logic        error,

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
  // index * STRIDE as a sum of shifts, which takes no DSP
  function automatic logic [28:0] offset(logic [28:0] index);
    offset = '0;
    for (int i = 0; i < 29; i++) if (((STRIDE >> i) & 1) != 0) offset += index << i;
  endfunction

  logic [31:3] cmd_addr;
  logic cmd_valid, cmd_ready;

  assign set_ready = !cmd_valid || cmd_ready;

  always_ff @(posedge clk) begin
    if (set_valid && set_ready) cmd_addr <= base + offset(29'(set));
    if (!rst_n) cmd_valid <= 1'b0;
    else if (set_ready) cmd_valid <= set_valid;
  end

  logic [63:0] beat;
  logic beat_valid, beat_ready;

  wattbit_reader #(.DEPTH(AHEAD)) reader (
    .clk, .rst_n,
    .cmd_addr, .cmd_words(29'(BEATS)), .cmd_valid, .cmd_ready,
    .m_data(beat), .m_valid(beat_valid), .m_ready(beat_ready), .error,
    .araddr, .arlen, .arvalid, .arready, .rdata, .rresp, .rlast, .rvalid, .rready
  );
  wattbit_stall #(.WIDTH(64)) stall (
    .clk,
    .s_data(beat), .s_valid(beat_valid), .s_ready(beat_ready),
    .m_data, .m_valid, .m_ready
  );
endmodule
