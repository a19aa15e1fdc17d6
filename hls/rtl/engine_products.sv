// Sums of products in logic, without DSP slices: what finn-rtllib's `mvu` does, with its ports and in fewer cycles.
//
// A weight is a sum of radix-4 Booth digits -2, -1, 0, 1, 2 (Booth 1951, MacSorley 1961), so a product is one selection
// of a, 2a or nothing for each digit, inverted for a negative one. What inverting lacks of negating, a 1 for each digit,
// is a carry into the next addition of that weight: every adder takes one, and the accumulator the last. Weights are
// narrow, so at 2 bits there is one digit -1, 0 or 1.

module engine_products #(
	int unsigned  PE,
	int unsigned  SIMD,              // a power of two
	int unsigned  WEIGHT_WIDTH,      // narrow-range weights
	int unsigned  ACTIVATION_WIDTH,
	int unsigned  ACCU_WIDTH,
	bit           SIGNED_ACTIVATIONS
)(
	input	logic  clk,
	input	logic  rst,

	input	logic  last,               // of a sum
	input	logic  zero,               // nothing to add
	input	logic [PE-1:0][SIMD-1:0][WEIGHT_WIDTH-1:0]  w,
	input	logic [SIMD-1:0][ACTIVATION_WIDTH-1:0]  a,

	output	logic  vld,
	output	logic [PE-1:0][ACCU_WIDTH-1:0]  p
);
	localparam int unsigned  DIGITS = (WEIGHT_WIDTH+1)/2;
	localparam int unsigned  LEVELS = $clog2(SIMD);
	localparam bit  SINGLE = DIGITS == 1;
	localparam int unsigned  DEPTH = 2 + !SINGLE + LEVELS;
	localparam int unsigned  A_WIDTH = ACTIVATION_WIDTH + !SIGNED_ACTIVATIONS;
	localparam int unsigned  P_WIDTH = A_WIDTH + (SINGLE? 0 : WEIGHT_WIDTH-1);  // of a product less its carry
	localparam int unsigned  TERM_WIDTH = A_WIDTH + !SINGLE;        // of a digit's

	// Stage 1: operands
	logic [PE-1:0][SIMD-1:0][WEIGHT_WIDTH-1:0]  w1;
	logic [SIMD-1:0][ACTIVATION_WIDTH-1:0]  a1;
	logic [DEPTH:1]  last_at;
	always_ff @(posedge clk) begin
		a1 <= a;
		if(zero)  w1 <= '0;
		else      w1 <= w;
		if(rst)  last_at <= '0;
		else     last_at <= DEPTH'({ last_at, last });
	end
	assign	vld = last_at[DEPTH];

	for(genvar  pe = 0; pe < PE; pe++) begin : genPE

		// Products less the lowest digit's carry
		uwire signed [P_WIDTH-1:0]  product[SIMD];
		uwire [SIMD-1:0]  carry;
		for(genvar  s = 0; s < SIMD; s++) begin : genProduct
			uwire signed [A_WIDTH-1:0]  x = $signed({ SIGNED_ACTIVATIONS && a1[s][ACTIVATION_WIDTH-1], a1[s] });
			uwire [2*DIGITS:0]  bits = $signed({ w1[pe][s], 1'b0 });
			for(genvar  d = 0; d < DIGITS; d++) begin : genDigit
				uwire  negative = bits[2*d+2];
				uwire  once = bits[2*d+1] ^ bits[2*d];
				uwire  twice = !SINGLE && (bits[2*d+1] == bits[2*d]) && (bits[2*d] != negative);
				uwire signed [TERM_WIDTH-1:0]  chosen = once? TERM_WIDTH'(x) : twice? TERM_WIDTH'(x <<< 1) : TERM_WIDTH'(0);
				uwire signed [TERM_WIDTH-1:0]  term = chosen ^ {TERM_WIDTH{negative}};

				// The sum so far, at the place of this digit, and the bits below
				localparam int unsigned  WIDTH = d == 0? TERM_WIDTH : P_WIDTH - 2*d;
				uwire signed [WIDTH-1:0]  sum;
				if(d == 0)  assign  sum = term;
				else begin : genSum
					uwire signed [WIDTH:0]  so_far = { WIDTH'(genDigit[d-1].sum >>> 2), 1'b1 };
					uwire signed [WIDTH:0]  now = { WIDTH'(term), negative };
					uwire signed [WIDTH:0]  both = so_far + now;
					assign	sum = both[WIDTH:1];
				end : genSum
			end : genDigit

			assign	carry[s] = genDigit[0].negative;
			uwire signed [P_WIDTH-1:0]  whole;
			assign	whole[P_WIDTH-1:2*(DIGITS-1)] = genDigit[DIGITS-1].sum;
			for(genvar  d = 0; d+1 < DIGITS; d++)  assign  whole[2*d +: 2] = genDigit[d].sum[1:0];
			assign	product[s] = whole;
		end : genProduct

		// Their sum, a level a cycle; each adder takes a carry
		for(genvar  l = 0; l <= LEVELS; l++) begin : genLevel
			localparam int unsigned  N = SIMD >> l;
			logic signed [P_WIDTH+l-1:0]  sum[N];
			logic [N-1:0]  open;  // carries that wait
			if(l > 0) begin : genAdd
				for(genvar  i = 0; i < N; i++) begin : genPair
					uwire signed [P_WIDTH+l:0]  x = { (P_WIDTH+l)'(genLevel[l-1].sum[2*i]), 1'b1 };
					uwire signed [P_WIDTH+l:0]  y = { (P_WIDTH+l)'(genLevel[l-1].sum[2*i+1]), genLevel[l-1].open[2*i] };
					uwire signed [P_WIDTH+l:0]  both = x + y;
					always_ff @(posedge clk) begin
						sum[i] <= both[P_WIDTH+l:1];
						open[i] <= genLevel[l-1].open[2*i+1];
					end
				end : genPair
			end : genAdd
			else if(SINGLE) begin : genWires
				assign	sum = product;
				assign	open = carry;
			end : genWires
			else begin : genRegisters
				always_ff @(posedge clk) begin
					sum <= product;
					open <= carry;
				end
			end : genRegisters
		end : genLevel

		// Accumulation; after the last of a sum, the next starts anew
		logic signed [ACCU_WIDTH-1:0]  total;
		uwire signed [ACCU_WIDTH:0]  so_far = { last_at[DEPTH]? ACCU_WIDTH'(0) : total, 1'b1 };
		uwire signed [ACCU_WIDTH:0]  now = { ACCU_WIDTH'(genLevel[LEVELS].sum[0]), genLevel[LEVELS].open[0] };
		uwire signed [ACCU_WIDTH:0]  both = so_far + now;
		always_ff @(posedge clk) begin
			if(rst)  total <= '0;
			else     total <= both[ACCU_WIDTH:1];
		end
		assign	p[pe] = total;
	end : genPE

endmodule : engine_products
