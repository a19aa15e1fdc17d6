// The shell without its engines: registers, memory master, dispatch, one lane for each engine, collection.
//
// A launch reads COUNT packets from IN_ADDR on, sends each vector to its engine, and writes the result of packet i to
// OUT_ADDR + i * 8 * WORDS, in whatever order the engines finish. Engine streams are padded to 64 bits a lane. The
// weights of engines with BEATS come over a read master each; stream 0 is that of the first such engine.
module wattbit_core #(
  parameter logic [31:0] DIGEST = 32'd0,
  parameter int ENGINES = 1,
  parameter int WORDS = 8,                          // 64-bit words of a vector
  parameter logic [ENGINES*16-1:0] SETS = '0,       // of each engine, engine 0 in the lowest bits
  parameter logic [ENGINES*8-1:0] SIMD = '0,        // bytes a beat into each engine
  parameter logic [ENGINES*8-1:0] PE = '0,          // bytes a beat out of each engine
  parameter logic [ENGINES*32-1:0] CYCLES = '0,     // clock cycles of a vector on each engine
  parameter logic [ENGINES*16-1:0] QUEUE = '0,      // words of vectors that wait for each engine, powers of two
  parameter logic [ENGINES*32-1:0] BEATS = '0,      // 64-bit words of an expert's image; 0: weights are on the chip
  parameter logic [ENGINES*32-1:0] STRIDE = '0,     // 64-bit words from one image to the next
  parameter int AHEAD = 128,                        // 64-bit words that a stream requests ahead, a power of two
  parameter int STREAMS = 0,                        // engines with BEATS
  parameter int PORTS = STREAMS > 0 ? STREAMS : 1
) (
  input  logic                  clk,
  input  logic                  rst_n,
  output logic                  irq,

  input  logic [11:0]           s_awaddr,
  input  logic                  s_awvalid,
  output logic                  s_awready,
  input  logic [31:0]           s_wdata,
  input  logic [3:0]            s_wstrb,
  input  logic                  s_wvalid,
  output logic                  s_wready,
  output logic [1:0]            s_bresp,
  output logic                  s_bvalid,
  input  logic                  s_bready,
  input  logic [11:0]           s_araddr,
  input  logic                  s_arvalid,
  output logic                  s_arready,
  output logic [31:0]           s_rdata,
  output logic [1:0]            s_rresp,
  output logic                  s_rvalid,
  input  logic                  s_rready,

  output logic [31:0]           m_awaddr,
  output logic [7:0]            m_awlen,
  output logic                  m_awvalid,
  input  logic                  m_awready,
  output logic [63:0]           m_wdata,
  output logic                  m_wlast,
  output logic                  m_wvalid,
  input  logic                  m_wready,
  input  logic [1:0]            m_bresp,
  input  logic                  m_bvalid,
  output logic                  m_bready,
  output logic [31:0]           m_araddr,
  output logic [7:0]            m_arlen,
  output logic                  m_arvalid,
  input  logic                  m_arready,
  input  logic [63:0]           m_rdata,
  input  logic [1:0]            m_rresp,
  input  logic                  m_rlast,
  input  logic                  m_rvalid,
  output logic                  m_rready,

  output logic [PORTS*32-1:0]   w_araddr,
  output logic [PORTS*8-1:0]    w_arlen,
  output logic [PORTS-1:0]      w_arvalid,
  input  logic [PORTS-1:0]      w_arready,
  input  logic [PORTS*64-1:0]   w_rdata,
  input  logic [PORTS*2-1:0]    w_rresp,
  input  logic [PORTS-1:0]      w_rlast,
  input  logic [PORTS-1:0]      w_rvalid,
  output logic [PORTS-1:0]      w_rready,

  output logic [ENGINES*16-1:0] engine_set,
  output logic [ENGINES-1:0]    engine_set_valid,
  input  logic [ENGINES-1:0]    engine_set_ready,
  output logic [ENGINES*64-1:0] engine_in,
  output logic [ENGINES-1:0]    engine_in_valid,
  input  logic [ENGINES-1:0]    engine_in_ready,
  input  logic [ENGINES*64-1:0] engine_out,
  input  logic [ENGINES-1:0]    engine_out_valid,
  output logic [ENGINES-1:0]    engine_out_ready,
  output logic [PORTS*64-1:0]   weights,            // of each stream's engine
  output logic [PORTS-1:0]      weights_valid,
  input  logic [PORTS-1:0]      weights_ready
);
  // Streams among the engines before engine i
  function automatic int stream(int engine);
    stream = 0;
    for (int i = 0; i < engine; i++) if (BEATS[32*i+:32] != 0) stream++;
  endfunction

  function automatic logic [PORTS*32-1:0] strides();
    strides = '0;
    for (int i = 0; i < ENGINES; i++) if (BEATS[32*i+:32] != 0) strides[32*stream(i)+:32] = 8 * STRIDE[32*i+:32];
  endfunction

  // Registers
  logic start, finished, busy;
  logic [19:0] count;
  logic [31:3] in_addr, out_addr;
  logic [PORTS*29-1:0] weights_addr;
  logic [1:0] fault;

  wattbit_axil_regs #(
    .DIGEST(DIGEST), .D_MODEL(WORDS * 8), .ENGINES(ENGINES), .CYCLES(CYCLES), .LOADS(BEATS), .STREAMS(STREAMS),
    .STRIDES(strides())
  ) regs (
    .clk, .rst_n,
    .awaddr(s_awaddr), .awvalid(s_awvalid), .awready(s_awready),
    .wdata(s_wdata), .wstrb(s_wstrb), .wvalid(s_wvalid), .wready(s_wready),
    .bresp(s_bresp), .bvalid(s_bvalid), .bready(s_bready),
    .araddr(s_araddr), .arvalid(s_arvalid), .arready(s_arready),
    .rdata(s_rdata), .rresp(s_rresp), .rvalid(s_rvalid), .rready(s_rready),
    .start, .count, .in_addr, .out_addr, .weights_addr, .finished, .fault, .busy, .irq
  );

  // count * (WORDS + 1) as a sum of shifts, which takes no DSP
  function automatic logic [28:0] packet_words(logic [28:0] packets);
    packet_words = '0;
    for (int i = 0; i < 29; i++) if ((((WORDS + 1) >> i) & 1) != 0) packet_words += packets << i;
  endfunction

  // Packets in
  logic [63:0] packet;
  logic packet_valid, packet_ready;
  logic read_error, write_error;

  wattbit_reader reader (
    .clk, .rst_n,
    .cmd_addr(in_addr), .cmd_words(packet_words(29'(count))), .cmd_valid(start), .cmd_ready(),
    .m_data(packet), .m_valid(packet_valid), .m_ready(packet_ready), .error(read_error),
    .araddr(m_araddr), .arlen(m_arlen), .arvalid(m_arvalid), .arready(m_arready),
    .rdata(m_rdata), .rresp(m_rresp), .rlast(m_rlast), .rvalid(m_rvalid), .rready(m_rready)
  );

  logic dispatched, bad_engine, bad_set, accepted;
  logic [15:0] lane_set;
  logic [31:3] lane_addr;
  logic [63:0] lane_data;
  logic [ENGINES-1:0] header_valid, header_ready, data_valid, data_ready;

  wattbit_dispatch #(.ENGINES(ENGINES), .WORDS(WORDS), .SETS(SETS)) dispatch (
    .clk, .rst_n, .start, .count, .out_addr, .idle(dispatched), .bad_engine, .bad_set, .accepted,
    .s_data(packet), .s_valid(packet_valid), .s_ready(packet_ready),
    .lane_set, .lane_addr, .lane_header_valid(header_valid), .lane_header_ready(header_ready),
    .lane_data, .lane_data_valid(data_valid), .lane_data_ready(data_ready)
  );

  // Lanes
  logic [ENGINES-1:0] result_whole, result_take, result_valid, result_ready;
  logic [ENGINES*29-1:0] result_addr;
  logic [ENGINES*64-1:0] result;
  logic [PORTS-1:0] load_error;

  if (STREAMS == 0) begin : g_no_stream
    assign {w_araddr, w_arlen, w_arvalid, w_rready, weights, weights_valid, load_error} = '0;
    wire unused = &{1'b0, weights_addr, w_arready, w_rdata, w_rresp, w_rlast, w_rvalid, weights_ready};
  end

  for (genvar i = 0; i < ENGINES; i++) begin : g_lane
    localparam int LANE_SIMD = int'(SIMD[8*i+:8]);
    localparam int LANE_PE = int'(PE[8*i+:8]);
    localparam int LANE_BEATS = int'(BEATS[32*i+:32]);
    logic [LANE_SIMD*8-1:0] lane_in;
    logic [15:0] load_set;
    logic load_valid, load_ready;

    assign engine_in[64*i+:64] = 64'(lane_in);

    wattbit_lane #(
      .STREAMED(LANE_BEATS != 0), .SETS(int'(SETS[16*i+:16])), .QUEUE(int'(QUEUE[16*i+:16])),
      .WORDS(WORDS), .SIMD(LANE_SIMD), .PE(LANE_PE)
    ) lane (
      .clk, .rst_n, .start,
      .header_set(lane_set), .header_addr(lane_addr),
      .header_valid(header_valid[i]), .header_ready(header_ready[i]),
      .data(lane_data), .data_valid(data_valid[i]), .data_ready(data_ready[i]),
      .engine_set(engine_set[16*i+:16]), .engine_set_valid(engine_set_valid[i]), .engine_set_ready(engine_set_ready[i]),
      .load_set, .load_valid, .load_ready,
      .engine_in(lane_in), .engine_in_valid(engine_in_valid[i]), .engine_in_ready(engine_in_ready[i]),
      .engine_out(engine_out[64*i+:LANE_PE*8]), .engine_out_valid(engine_out_valid[i]),
      .engine_out_ready(engine_out_ready[i]),
      .result_whole(result_whole[i]), .result_addr(result_addr[29*i+:29]), .result_take(result_take[i]),
      .result(result[64*i+:64]), .result_valid(result_valid[i]), .result_ready(result_ready[i])
    );

    if (LANE_BEATS != 0) begin : g_stream
      localparam int S = stream(i);
      wattbit_loader #(.BEATS(LANE_BEATS), .STRIDE(int'(STRIDE[32*i+:32])), .AHEAD(AHEAD)) loader (
        .clk, .rst_n,
        .base(weights_addr[29*S+:29]), .set(load_set), .set_valid(load_valid), .set_ready(load_ready),
        .m_data(weights[64*S+:64]), .m_valid(weights_valid[S]), .m_ready(weights_ready[S]), .error(load_error[S]),
        .araddr(w_araddr[32*S+:32]), .arlen(w_arlen[8*S+:8]), .arvalid(w_arvalid[S]), .arready(w_arready[S]),
        .rdata(w_rdata[64*S+:64]), .rresp(w_rresp[2*S+:2]), .rlast(w_rlast[S]),
        .rvalid(w_rvalid[S]), .rready(w_rready[S])
      );
    end else begin : g_chip
      assign load_ready = 1'b0;
      wire unused = &{1'b0, load_set, load_valid};
    end
  end

  // Results out
  logic [31:3] write_addr;
  logic [15:0] write_words;
  logic write_cmd_valid, write_cmd_ready;
  logic [63:0] write_data;
  logic write_valid, write_ready, write_idle;

  wattbit_collect #(.ENGINES(ENGINES), .WORDS(WORDS)) collect (
    .clk, .rst_n,
    .lane_whole(result_whole), .lane_addr(result_addr), .lane_take(result_take),
    .lane_data(result), .lane_valid(result_valid), .lane_ready(result_ready),
    .cmd_addr(write_addr), .cmd_words(write_words), .cmd_valid(write_cmd_valid), .cmd_ready(write_cmd_ready),
    .m_data(write_data), .m_valid(write_valid), .m_ready(write_ready)
  );

  wattbit_writer writer (
    .clk, .rst_n,
    .cmd_addr(write_addr), .cmd_words(write_words), .cmd_valid(write_cmd_valid), .cmd_ready(write_cmd_ready),
    .s_data(write_data), .s_valid(write_valid), .s_ready(write_ready), .idle(write_idle), .error(write_error),
    .awaddr(m_awaddr), .awlen(m_awlen), .awvalid(m_awvalid), .awready(m_awready),
    .wdata(m_wdata), .wlast(m_wlast), .wvalid(m_wvalid), .wready(m_wready),
    .bresp(m_bresp), .bvalid(m_bvalid), .bready(m_bready)
  );

  // The end: every packet dispatched, every accepted vector taken by the writer, every write answered
  logic [15:0] flying;

  always_ff @(posedge clk) begin
    if (!rst_n) flying <= '0;
    else flying <= flying + 16'(accepted) - 16'(|result_take);
  end

  assign finished = busy && dispatched && flying == 0 && write_idle;
  assign fault = read_error || write_error || |load_error ? 2'd2 : bad_engine ? 2'd1 : bad_set ? 2'd3 : 2'd0;
endmodule
