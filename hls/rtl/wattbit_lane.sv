// One engine's surroundings: vectors and set indices wait for it, results wait whole for the writer.
//
// Engines keep the order of their vectors, so a queue of result addresses says where each result belongs.
//
// An engine whose weights are streamed is told, instead of a set index, whether a vector needs another expert than the
// one before, and that expert's index goes to its loader: as soon as the header is here, to be loaded ahead of its turn.
// Every launch loads afresh.
module wattbit_lane #(
  parameter bit STREAMED = 0,
  parameter int SETS  = 1,    // of the engine
  parameter int QUEUE = 32,   // 64-bit words of vectors that wait for the engine, a power of two
  parameter int WORDS = 8,    // 64-bit words of a vector
  parameter int SIMD  = 8,    // bytes a beat into the engine
  parameter int PE    = 8     // bytes a beat out of it
) (
  input  logic              clk,
  input  logic              rst_n,
  input  logic              start,

  input  logic [15:0]       header_set,
  input  logic [31:3]       header_addr,
  input  logic              header_valid,
  output logic              header_ready,
  input  logic [63:0]       data,
  input  logic              data_valid,
  output logic              data_ready,

  output logic [15:0]       engine_set,
  output logic              engine_set_valid,
  input  logic              engine_set_ready,
  output logic [15:0]       load_set,
  output logic              load_valid,
  input  logic              load_ready,
  output logic [SIMD*8-1:0] engine_in,
  output logic              engine_in_valid,
  input  logic              engine_in_ready,
  input  logic [PE*8-1:0]   engine_out,
  input  logic              engine_out_valid,
  output logic              engine_out_ready,

  output logic              result_whole,   // all words of the next result are here
  output logic [31:3]       result_addr,
  input  logic              result_take,    // the writer has its address
  output logic [63:0]       result,
  output logic              result_valid,
  input  logic              result_ready
);
  localparam int INSIDE = 12;               // vectors in the engine and behind it
  localparam int VECTORS_FLYING = 2 ** $clog2(QUEUE / WORDS + INSIDE);  // vectors between dispatch and writer
  localparam int DEPTH_OUT = 2 ** $clog2(2 * WORDS);

  localparam int SET_BITS = SETS > 2 ? $clog2(SETS) : 1;

  // Headers: all queues take one or none does.
  logic set_ready, addr_ready, load_room, addr_valid;
  logic [SET_BITS-1:0] vector_set, queued_set;
  assign engine_set = 16'(queued_set);
  assign header_ready = set_ready && addr_ready && load_room;
  wire header_taken = header_valid && header_ready;

  wattbit_fifo #(.WIDTH(SET_BITS), .DEPTH(VECTORS_FLYING)) set_queue (
    .clk, .rst_n,
    .s_data(vector_set), .s_valid(header_taken), .s_ready(set_ready),
    .m_data(queued_set), .m_valid(engine_set_valid), .m_ready(engine_set_ready)
  );
  wattbit_fifo #(.WIDTH(29), .DEPTH(VECTORS_FLYING)) addr_queue (
    .clk, .rst_n,
    .s_data(header_addr), .s_valid(header_taken), .s_ready(addr_ready),
    .m_data(result_addr), .m_valid(addr_valid), .m_ready(result_take)
  );

  if (STREAMED) begin : g_loads
    logic [SET_BITS-1:0] set, wanted;       // of the vector before, to be loaded
    logic known;                            // there was one in this launch
    wire fresh = !known || header_set[SET_BITS-1:0] != set;

    assign vector_set = SET_BITS'(fresh);
    assign load_set = 16'(wanted);

    always_ff @(posedge clk) begin
      if (header_taken) set <= header_set[SET_BITS-1:0];
      if (!rst_n || start) known <= 1'b0;
      else if (header_taken) known <= 1'b1;
    end

    wattbit_fifo #(.WIDTH(SET_BITS), .DEPTH(VECTORS_FLYING)) load_queue (
      .clk, .rst_n,
      .s_data(header_set[SET_BITS-1:0]), .s_valid(header_taken && fresh), .s_ready(load_room),
      .m_data(wanted), .m_valid(load_valid), .m_ready(load_ready)
    );
  end else begin : g_sets
    assign vector_set = header_set[SET_BITS-1:0];
    assign load_room = 1'b1;
    assign load_set = '0;
    assign load_valid = 1'b0;
    wire unused = &{1'b0, start, load_ready};
  end

  // Vectors in
  logic [63:0] word;
  logic word_valid, word_ready;
  logic [SIMD*8-1:0] in_beat;
  logic in_valid, in_ready;

  wattbit_fifo #(.WIDTH(64), .DEPTH(QUEUE)) vectors (
    .clk, .rst_n,
    .s_data(data), .s_valid(data_valid), .s_ready(data_ready),
    .m_data(word), .m_valid(word_valid), .m_ready(word_ready)
  );
  wattbit_unpack #(.BEATS(8 / SIMD), .BITS(SIMD*8)) unpack (
    .clk, .rst_n,
    .s_data(word), .s_valid(word_valid), .s_ready(word_ready),
    .m_data(in_beat), .m_valid(in_valid), .m_ready(in_ready)
  );
  wattbit_stall #(.WIDTH(SIMD*8)) stall_in (
    .clk,
    .s_data(in_beat), .s_valid(in_valid), .s_ready(in_ready),
    .m_data(engine_in), .m_valid(engine_in_valid), .m_ready(engine_in_ready)
  );

  // Results out
  logic [PE*8-1:0] out_beat;
  logic out_valid, out_ready;
  logic [63:0] packed_word;
  logic packed_valid, packed_ready;

  wattbit_stall #(.WIDTH(PE*8)) stall_out (
    .clk,
    .s_data(engine_out), .s_valid(engine_out_valid), .s_ready(engine_out_ready),
    .m_data(out_beat), .m_valid(out_valid), .m_ready(out_ready)
  );
  wattbit_pack #(.BEATS(8 / PE), .BITS(PE*8)) pack (
    .clk, .rst_n,
    .s_data(out_beat), .s_valid(out_valid), .s_ready(out_ready),
    .m_data(packed_word), .m_valid(packed_valid), .m_ready(packed_ready)
  );
  wattbit_fifo #(.WIDTH(64), .DEPTH(DEPTH_OUT)) results (
    .clk, .rst_n,
    .s_data(packed_word), .s_valid(packed_valid), .s_ready(packed_ready),
    .m_data(result), .m_valid(result_valid), .m_ready(result_ready)
  );

  // Whole results: those whose last word has been packed, less those the writer has taken.
  logic [15:0] words;                       // packed of the current result
  logic [7:0] whole;
  wire word_in = packed_valid && packed_ready;
  wire last_in = word_in && words == 16'(WORDS - 1);

  assign result_whole = whole != 0 && addr_valid;

  always_ff @(posedge clk) begin
    if (!rst_n) begin
      words <= '0;
      whole <= '0;
    end else begin
      if (word_in) words <= last_in ? '0 : words + 1'b1;
      whole <= whole + 8'(last_in) - 8'(result_take);
    end
  end
endmodule
