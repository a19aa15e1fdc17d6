// AXI4 write master: a command (address, number of 64-bit words) writes that many words of a stream.
//
// Bursts end at multiples of BURST words, so none crosses 4 KB. `idle` says that every burst has its response.
module wattbit_writer #(
  parameter int BURST = 16    // words, a power of two
) (
  input  logic        clk,
  input  logic        rst_n,

  input  logic [31:3] cmd_addr,
  input  logic [15:0] cmd_words,
  input  logic        cmd_valid,
  output logic        cmd_ready,

  input  logic [63:0] s_data,
  input  logic        s_valid,
  output logic        s_ready,
  output logic        idle,
  output logic        error,     // a response was not OKAY

  output logic [31:0] awaddr,
  output logic [7:0]  awlen,
  output logic        awvalid,
  input  logic        awready,
  output logic [63:0] wdata,
  output logic        wlast,
  output logic        wvalid,
  input  logic        wready,
  input  logic [1:0]  bresp,
  input  logic        bvalid,
  output logic        bready
);
  localparam int BITS = $clog2(BURST);
  typedef logic [BITS:0] burst_t;

  logic [31:3] addr;
  logic [15:0] words_left;   // of the command, not yet announced on AW
  burst_t beats_left;        // of the announced burst, not yet on W
  logic [3:0] outstanding;   // bursts announced without response

  wire burst_t to_boundary = burst_t'(BURST) - burst_t'(addr[3+:BITS]);
  wire burst_t burst = words_left < 16'(to_boundary) ? burst_t'(words_left) : to_boundary;
  wire sent = wvalid && wready;
  wire drained = beats_left == 0 || (beats_left == 1 && sent);
  wire announce = words_left != 0 && drained && (!awvalid || awready) && outstanding != '1;

  assign cmd_ready = words_left == 0;
  assign idle = words_left == 0 && outstanding == 0;
  assign bready = 1'b1;
  assign error = bvalid && bresp[1];

  assign wdata = s_data;
  assign wvalid = s_valid && beats_left != 0;
  assign wlast = beats_left == 1;
  assign s_ready = wready && beats_left != 0;

  always_ff @(posedge clk) begin
    if (!rst_n) begin
      words_left <= '0;
      beats_left <= '0;
      outstanding <= '0;
      awvalid <= 1'b0;
    end else begin
      if (cmd_valid && cmd_ready) begin
        addr <= cmd_addr;
        words_left <= cmd_words;
      end
      if (announce) begin
        awaddr <= {addr, 3'b0};
        awlen <= 8'(burst) - 8'd1;
        addr <= addr + 29'(burst);
        words_left <= words_left - 16'(burst);
        beats_left <= burst;
      end else if (sent) beats_left <= beats_left - 1'b1;
      if (announce) awvalid <= 1'b1;
      else if (awready) awvalid <= 1'b0;
      outstanding <= outstanding + 4'(announce) - 4'(bvalid);
    end
  end

  wire unused = bresp[0];
endmodule
