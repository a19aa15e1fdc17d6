// A 7-series block RAM as yosys uses one (Xilinx UG473): two ports without output registers, resets or cascades, which
// read what was there before a write. A word of WIDTH 9, 18, 36 or 72 has a parity bit for each 8 bits.
module wattbit_block_ram #(
  parameter int ADDRESS = 14,                        // bits of the address of a single bit
  parameter logic [2**ADDRESS-1:0] DATA = '0,
  parameter logic [2**ADDRESS/8-1:0] PARITY = '0,
  parameter int READ_A = 0, WRITE_A = 0, READ_B = 0, WRITE_B = 0   // widths; 0: not used
) (
  input  logic               clk_a, clk_b, en_a, en_b,
  input  logic [ADDRESS-1:0] addr_a, addr_b,
  input  logic [7:0]         we_a, we_b,
  input  logic [63:0]        in_a, in_b,
  input  logic [7:0]         parity_in_a, parity_in_b,
  output logic [63:0]        out_a, out_b,
  output logic [7:0]         parity_out_a, parity_out_b
);
  logic [2**ADDRESS-1:0] data = DATA;
  logic [2**ADDRESS/8-1:0] parity = PARITY;

  function automatic int bits(int width);            // of a word, without parity
    return width % 9 == 0 ? width / 9 * 8 : width;
  endfunction

  localparam int READ_A_BITS = bits(READ_A), READ_B_BITS = bits(READ_B);
  localparam int WRITE_A_BITS = bits(WRITE_A), WRITE_B_BITS = bits(WRITE_B);

  if (READ_A != 0) begin : g_read_a
    wire [ADDRESS-1:0] at = addr_a / READ_A_BITS;
    always_ff @(posedge clk_a) if (en_a) begin
      out_a <= 64'(data[at*READ_A_BITS+:READ_A_BITS]);
      if (READ_A_BITS >= 8) parity_out_a <= 8'(parity[at*(READ_A_BITS/8)+:(READ_A_BITS+7)/8]);
    end
  end
  if (READ_B != 0) begin : g_read_b
    wire [ADDRESS-1:0] at = addr_b / READ_B_BITS;
    always_ff @(posedge clk_b) if (en_b) begin
      out_b <= 64'(data[at*READ_B_BITS+:READ_B_BITS]);
      if (READ_B_BITS >= 8) parity_out_b <= 8'(parity[at*(READ_B_BITS/8)+:(READ_B_BITS+7)/8]);
    end
  end
  if (WRITE_A != 0) begin : g_write_a
    wire [ADDRESS-1:0] at = addr_a / WRITE_A_BITS;
    localparam int LANE = WRITE_A_BITS < 8 ? WRITE_A_BITS : 8;
    always_ff @(posedge clk_a) if (en_a) for (int i = 0; i < WRITE_A_BITS / LANE; i++) if (we_a[i]) begin
      data[at*WRITE_A_BITS+i*LANE+:LANE] <= in_a[i*LANE+:LANE];
      if (WRITE_A_BITS >= 8) parity[at*(WRITE_A_BITS/8)+i] <= parity_in_a[i];
    end
  end
  if (WRITE_B != 0) begin : g_write_b
    wire [ADDRESS-1:0] at = addr_b / WRITE_B_BITS;
    localparam int LANE = WRITE_B_BITS < 8 ? WRITE_B_BITS : 8;
    always_ff @(posedge clk_b) if (en_b) for (int i = 0; i < WRITE_B_BITS / LANE; i++) if (we_b[i]) begin
      data[at*WRITE_B_BITS+i*LANE+:LANE] <= in_b[i*LANE+:LANE];
      if (WRITE_B_BITS >= 8) parity[at*(WRITE_B_BITS/8)+i] <= parity_in_b[i];
    end
  end
endmodule
