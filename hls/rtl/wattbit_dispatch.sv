// Splits the packet stream: a header (engine, set), then the words of one vector for that engine's lane.
//
// A vector whose header names no engine, or a set that the engine lacks, is dropped and reported. Its result slot stays
// as it was. A lane whose buffers are full holds up the packets behind it (head-of-line blocking).
module wattbit_dispatch #(
  parameter int ENGINES = 1,
  parameter int WORDS   = 8,                     // 64-bit words of a vector
  parameter logic [ENGINES*16-1:0] SETS = '0     // sets of each engine
) (
  input  logic               clk,
  input  logic               rst_n,
  input  logic               start,
  input  logic [19:0]        count,
  input  logic [31:3]        out_addr,
  output logic               idle,
  output logic               bad_engine,
  output logic               bad_set,
  output logic               accepted,           // a vector goes to a lane

  input  logic [63:0]        s_data,
  input  logic               s_valid,
  output logic               s_ready,

  output logic [15:0]        lane_set,
  output logic [31:3]        lane_addr,          // where the result goes
  output logic [ENGINES-1:0] lane_header_valid,
  input  logic [ENGINES-1:0] lane_header_ready,
  output logic [63:0]        lane_data,
  output logic [ENGINES-1:0] lane_data_valid,
  input  logic [ENGINES-1:0] lane_data_ready
);
  logic [19:0] packets_left;
  logic [15:0] words_left;           // of this packet's vector; 0: a header comes
  logic [ENGINES-1:0] lane;          // one-hot; 0: the vector is dropped

  wire in_header = words_left == 0;
  logic [ENGINES-1:0] named;         // the engine in the header, one-hot
  logic [ENGINES-1:0] known;         // the same if it has the set

  always_comb begin
    for (int i = 0; i < ENGINES; i++) begin
      named[i] = s_data[7:0] == 8'(i);
      known[i] = named[i] && s_data[23:8] < SETS[16*i+:16];
    end
  end

  wire header = in_header && s_valid && packets_left != 0;
  wire header_done = header && (known == 0 || |(known & lane_header_ready));
  wire word_done = !in_header && s_valid && (lane == 0 || |(lane & lane_data_ready));

  assign idle = packets_left == 0;
  assign bad_engine = header && named == 0;
  assign bad_set = header && named != 0 && known == 0;
  assign accepted = header_done && known != 0;
  assign s_ready = header_done || word_done;

  assign lane_set = s_data[23:8];
  assign lane_header_valid = header ? known : '0;
  assign lane_data = s_data;
  assign lane_data_valid = !in_header && s_valid ? lane : '0;

  always_ff @(posedge clk) begin
    if (!rst_n) begin
      packets_left <= '0;
      words_left <= '0;
    end else if (start) begin
      packets_left <= count;
      lane_addr <= out_addr;
    end else if (header_done) begin
      words_left <= 16'(WORDS);
      lane <= known;
      lane_addr <= lane_addr + 29'(WORDS);
    end else if (word_done) begin
      words_left <= words_left - 1'b1;
      if (words_left == 1) packets_left <= packets_left - 1'b1;
    end
  end
endmodule
