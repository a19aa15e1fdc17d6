// The engine of one width class: an expert y = requant(W2 . relu(requant(W1 . x))) on vectors of int8.
//
// `s_set` names the expert of each vector, `s_tdata` brings it in D/SIMD1 beats, element 0 in the low bits, and
// `m_tdata` returns it in D/PE2 beats. The hidden vector passes in beats of PE1 = SIMD2 elements.
//
// STREAMED, experts arrive on `w_tdata` in the order in which vectors need them, fc1 and then fc2, and s_set[0] says
// that a vector is the first of the next expert; it is 0 while vectors of one expert follow each other.

module engine_core #(
	int unsigned  VERSION,         // 1: DSP48E1, 2: DSP48E2
	bit           STREAMED = 0,
	int unsigned  SETS,
	int unsigned  D,
	int unsigned  H,
	int unsigned  WEIGHT_BITS,
	int unsigned  ACT_BITS,
	int unsigned  PE1,
	int unsigned  SIMD1,
	int unsigned  PE2,
	int unsigned  LANES1,
	int unsigned  LANES2,
	bit           LOGIC = 0,       // products in logic, not in DSP slices
	int unsigned  ACC1_BITS,
	int unsigned  ACC2_BITS,
	int unsigned  SHIFT1_MIN,
	int unsigned  SHIFT1_MAX,
	int unsigned  SHIFT2_MIN,
	int unsigned  SHIFT2_MAX,
	int unsigned  MULTIPLIER_BITS,
	parameter     WEIGHT1_FILE = "",
	parameter     WEIGHT2_FILE = "",
	parameter     REQUANT1_FILE = "",
	parameter     REQUANT2_FILE = ""
)(
	input	logic  clk,
	input	logic  rst_n,

	input	logic [15:0]  s_set,
	input	logic  s_set_valid,
	output	logic  s_set_ready,

	input	logic [63:0]  w_tdata,
	input	logic  w_tvalid,
	output	logic  w_tready,

	input	logic [SIMD1*8-1:0]  s_tdata,
	input	logic  s_tvalid,
	output	logic  s_tready,

	output	logic [PE2*8-1:0]  m_tdata,
	output	logic  m_tvalid,
	input	logic  m_tready
);
	uwire  set_room1, set_room2;
	assign	s_set_ready = set_room1 && set_room2;
	uwire  set_push = s_set_valid && s_set_ready;

	logic  fc2_next;                // beats are of fc2
	uwire  w_ready1, w_ready2, w_done1, w_done2;
	assign	w_tready = fc2_next? w_ready2 : w_ready1;
	always_ff @(posedge clk) begin
		if(!rst_n)                   fc2_next <= 0;
		else if(w_done1 || w_done2)  fc2_next <= w_done1;
	end

	uwire [SIMD1-1:0][ACT_BITS-1:0]  x;
	for(genvar  i = 0; i < SIMD1; i++)  assign  x[i] = s_tdata[8*i +: ACT_BITS];

	uwire [PE1*ACT_BITS-1:0]  hidden;
	uwire  hidden_valid, hidden_ready;
	engine_layer #(
		.VERSION(VERSION), .STREAMED(STREAMED), .SETS(SETS), .MW(D), .MH(H), .SIMD(SIMD1), .PE(PE1),
		.LANES(LANES1), .LOGIC(LOGIC), .WEIGHT_BITS(WEIGHT_BITS), .IN_BITS(ACT_BITS), .IN_SIGNED(1), .ACC_BITS(ACC1_BITS),
		.OUT_BITS(ACT_BITS), .OUT_SIGNED(0), .SHIFT_MIN(SHIFT1_MIN), .SHIFT_MAX(SHIFT1_MAX),
		.MULTIPLIER_BITS(MULTIPLIER_BITS), .WEIGHT_FILE(WEIGHT1_FILE), .REQUANT_FILE(REQUANT1_FILE)
	) fc1 (
		.clk, .rst_n, .s_set, .s_set_valid(set_push), .s_set_ready(set_room1),
		.w_tdata, .w_tvalid(w_tvalid && !fc2_next), .w_tready(w_ready1), .w_done(w_done1),
		.s_tdata(x), .s_tvalid, .s_tready,
		.m_tdata(hidden), .m_tvalid(hidden_valid), .m_tready(hidden_ready)
	);

	// fc1 fills one hidden vector while fc2 works through the one before.
	uwire [PE1*ACT_BITS-1:0]  h;
	uwire  h_valid, h_ready;
	fifo #(.DEPTH(H/PE1 > 2? H/PE1 : 2), .DATA_WIDTH(PE1*ACT_BITS)) between (
		.clk, .rst(!rst_n), .idat(hidden), .ivld(hidden_valid), .irdy(hidden_ready),
		.odat(h), .ovld(h_valid), .ordy(h_ready), .count(), .maxcount()
	);

	engine_layer #(
		.VERSION(VERSION), .STREAMED(STREAMED), .SETS(SETS), .MW(H), .MH(D), .SIMD(PE1), .PE(PE2),
		.LANES(LANES2), .LOGIC(LOGIC), .WEIGHT_BITS(WEIGHT_BITS), .IN_BITS(ACT_BITS), .IN_SIGNED(0), .ACC_BITS(ACC2_BITS),
		.OUT_BITS(8), .OUT_SIGNED(1), .SHIFT_MIN(SHIFT2_MIN), .SHIFT_MAX(SHIFT2_MAX),
		.MULTIPLIER_BITS(MULTIPLIER_BITS), .WEIGHT_FILE(WEIGHT2_FILE), .REQUANT_FILE(REQUANT2_FILE)
	) fc2 (
		.clk, .rst_n, .s_set, .s_set_valid(set_push), .s_set_ready(set_room2),
		.w_tdata, .w_tvalid(w_tvalid && fc2_next), .w_tready(w_ready2), .w_done(w_done2),
		.s_tdata(h), .s_tvalid(h_valid), .s_tready(h_ready),
		.m_tdata, .m_tvalid, .m_tready
	);

endmodule : engine_core
