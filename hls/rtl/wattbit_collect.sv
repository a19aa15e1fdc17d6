// Takes whole results from the lanes in turn and hands them to the writer: a command, then the words. Lanes without one
// are passed over in a cycle.
module wattbit_collect #(
  parameter int ENGINES = 1,
  parameter int WORDS   = 8
) (
  input  logic                  clk,
  input  logic                  rst_n,

  input  logic [ENGINES-1:0]    lane_whole,
  input  logic [ENGINES*29-1:0] lane_addr,
  output logic [ENGINES-1:0]    lane_take,
  input  logic [ENGINES*64-1:0] lane_data,
  input  logic [ENGINES-1:0]    lane_valid,
  output logic [ENGINES-1:0]    lane_ready,

  output logic [31:3]           cmd_addr,
  output logic [15:0]           cmd_words,
  output logic                  cmd_valid,
  input  logic                  cmd_ready,
  output logic [63:0]           m_data,
  output logic                  m_valid,
  input  logic                  m_ready
);
  localparam int BITS = ENGINES > 1 ? $clog2(ENGINES) : 1;
  typedef logic [BITS-1:0] lane_t;

  lane_t lane;               // being written, or asked next
  logic [15:0] words_left;   // of its result; 0: choose a lane

  function automatic lane_t lowest(logic [ENGINES-1:0] lanes);
    lowest = '0;
    for (int i = ENGINES - 1; i >= 0; i--) if (lanes[i]) lowest = lane_t'(i);
  endfunction

  wire [ENGINES-1:0] ahead = lane_whole & ({ENGINES{1'b1}} << lane);
  wire choosing = words_left == 0;
  wire last = lane == lane_t'(ENGINES - 1);
  wire taken = cmd_valid && cmd_ready;

  assign cmd_addr = lane_addr[lane*29+:29];
  assign cmd_words = 16'(WORDS);
  assign cmd_valid = choosing && lane_whole[lane];
  assign m_data = lane_data[lane*64+:64];
  assign m_valid = !choosing && lane_valid[lane];

  always_comb begin
    lane_take = '0;
    lane_take[lane] = taken;
    lane_ready = '0;
    lane_ready[lane] = !choosing && m_ready;
  end

  always_ff @(posedge clk) begin
    if (!rst_n) begin
      lane <= '0;
      words_left <= '0;
    end else if (taken) words_left <= 16'(WORDS);
    else if (m_valid && m_ready) begin
      words_left <= words_left - 1'b1;
      if (words_left == 1) lane <= last ? '0 : lane + 1'b1;
    end else if (choosing && |lane_whole && !lane_whole[lane]) lane <= lowest(|ahead ? ahead : lane_whole);
  end
endmodule
