// A matrix-vector layer with its requantisation, for SETS weight sets: y = requant(W[set] . x).
//
// One set index a vector selects the weights and the requant words. finn-rtllib does the work: `memstream` holds the
// sets, `mvu_vvu_axi` multiplies, `requant_axi_decoupled` scales. A requant word is {shift - SHIFT_MIN, multiplier} for
// each of LANES lanes; the bias that makes it round half up, 2^(shift-1), is rebuilt here instead of being stored.
//
// Sums come every MW/SIMD cycles, so LANES may be fewer than PE: they take the PE sums in turn.
//
// STREAMED, a set arrives on `w_tdata`, its requant words first, then its weights; lanes of requant words are widened
// to a multiple of 4 bits, so that few of them fill whole beats.

module engine_layer #(
	int unsigned  VERSION,         // 1: DSP48E1, 2: DSP48E2
	bit           STREAMED,
	int unsigned  SETS,
	int unsigned  MW,              // inputs a vector
	int unsigned  MH,              // outputs a vector
	int unsigned  SIMD,            // inputs a beat
	int unsigned  PE,              // outputs a beat
	int unsigned  LANES,           // of requantisation, PE divided by a power of two
	bit           LOGIC,           // products in logic, not in DSP slices
	int unsigned  WEIGHT_BITS,
	int unsigned  IN_BITS,
	bit           IN_SIGNED,
	int unsigned  ACC_BITS,
	int unsigned  OUT_BITS,
	bit           OUT_SIGNED,
	int unsigned  SHIFT_MIN,
	int unsigned  SHIFT_MAX,       // > SHIFT_MIN
	int unsigned  MULTIPLIER_BITS,
	parameter     WEIGHT_FILE = "",
	parameter     REQUANT_FILE = ""
)(
	input	logic  clk,
	input	logic  rst_n,

	input	logic [15:0]  s_set,
	input	logic  s_set_valid,
	output	logic  s_set_ready,

	input	logic [63:0]  w_tdata,
	input	logic  w_tvalid,
	output	logic  w_tready,
	output	logic  w_done,             // this beat is the last of its set

	input	logic [SIMD*IN_BITS-1:0]  s_tdata,
	input	logic  s_tvalid,
	output	logic  s_tready,

	output	logic [PE*OUT_BITS-1:0]  m_tdata,
	output	logic  m_tvalid,
	input	logic  m_tready
);
	uwire  rst = !rst_n;

	// A set index goes to both memories, when both queues have room.
	uwire  weight_room, requant_room;
	assign	s_set_ready = weight_room && requant_room;
	uwire  set_push = s_set_valid && s_set_ready;

	// Beats: requant words, then weights
	logic  weights_next;
	uwire  weight_beat_ready, requant_beat_ready, requant_done;
	assign	w_tready = weights_next? weight_beat_ready : requant_beat_ready;
	always_ff @(posedge clk) begin
		if(rst)                          weights_next <= 0;
		else if(requant_done || w_done)  weights_next <= requant_done;
	end

	// Weights
	localparam int unsigned  WEIGHT_WIDTH = PE*SIMD*WEIGHT_BITS;
	localparam int unsigned  WEIGHT_STREAM = (WEIGHT_WIDTH+7)/8*8;
	uwire [WEIGHT_WIDTH-1:0]  weight_word;
	uwire  weight_valid, weight_ready;
	engine_memory #(
		.STREAMED(STREAMED), .SETS(SETS), .DEPTH((MW/SIMD)*(MH/PE)), .WIDTH(WEIGHT_WIDTH), .FILE(WEIGHT_FILE)
	) weights (
		.clk, .rst, .set(s_set), .set_valid(set_push), .set_ready(weight_room),
		.beat(w_tdata), .beat_valid(w_tvalid && weights_next), .beat_ready(weight_beat_ready), .filled(w_done),
		.word(weight_word), .valid(weight_valid), .ready(weight_ready)
	);

	// Products
	localparam int unsigned  IN_STREAM = (SIMD*IN_BITS+7)/8*8;
	localparam int unsigned  ACC_STREAM = (PE*ACC_BITS+7)/8*8;
	uwire [ACC_STREAM-1:0]  acc;
	uwire  acc_valid, acc_ready;
	mvu_vvu_axi #(
		.IS_MVU(1), .VERSION(VERSION), .MW(MW), .MH(MH), .PE(PE), .SIMD(SIMD),
		.ACTIVATION_WIDTH(IN_BITS), .SIGNED_ACTIVATIONS(IN_SIGNED),
		.WEIGHT_WIDTH(WEIGHT_BITS), .NARROW_WEIGHTS(1), .ACCU_WIDTH(ACC_BITS), .LOGIC(LOGIC)
	) mvu (
		.ap_clk(clk), .ap_clk2x(clk), .ap_rst_n(rst_n),
		.s_axis_weights_tdata(WEIGHT_STREAM'(weight_word)),
		.s_axis_weights_tvalid(weight_valid), .s_axis_weights_tready(weight_ready),
		.s_axis_input_tdata(IN_STREAM'(s_tdata)), .s_axis_input_tvalid(s_tvalid), .s_axis_input_tready(s_tready),
		.m_axis_output_tdata(acc), .m_axis_output_tvalid(acc_valid), .m_axis_output_tready(acc_ready)
	);

	// Sums, LANES at a time
	uwire [LANES*ACC_BITS-1:0]  sums;
	uwire  sums_valid, sums_ready;
	wattbit_unpack #(.BEATS(PE/LANES), .BITS(LANES*ACC_BITS)) unpack (
		.clk, .rst_n,
		.s_data(acc[PE*ACC_BITS-1:0]), .s_valid(acc_valid), .s_ready(acc_ready),
		.m_data(sums), .m_valid(sums_valid), .m_ready(sums_ready)
	);

	// Requant words, widened to the lanes {bias, shift, scale} that requant_axi_decoupled derives from ACC_BITS
	localparam int unsigned  SHIFT_BITS = $clog2(SHIFT_MAX-SHIFT_MIN+1);
	localparam int unsigned  USED_BITS = MULTIPLIER_BITS + SHIFT_BITS;
	localparam int unsigned  WORD_BITS = STREAMED? (USED_BITS+3)/4*4 : USED_BITS;
	localparam int unsigned  SCALE_BITS = ACC_BITS <= 18? 25 : 18;
	localparam int unsigned  BIAS_BITS = SCALE_BITS + ACC_BITS;
	localparam int unsigned  LANE_BITS = SCALE_BITS + SHIFT_BITS + BIAS_BITS;
	localparam int unsigned  PARAMS_STREAM = (LANES*LANE_BITS+7)/8*8;
	uwire [LANES*WORD_BITS-1:0]  requant_word;
	uwire  requant_valid, requant_ready;
	engine_memory #(
		.STREAMED(STREAMED), .SETS(SETS), .DEPTH(MH/LANES), .WIDTH(LANES*WORD_BITS), .FILE(REQUANT_FILE)
	) requants (
		.clk, .rst, .set(s_set), .set_valid(set_push), .set_ready(requant_room),
		.beat(w_tdata), .beat_valid(w_tvalid && !weights_next), .beat_ready(requant_beat_ready),
		.filled(requant_done),
		.word(requant_word), .valid(requant_valid), .ready(requant_ready)
	);

	uwire [LANES-1:0][LANE_BITS-1:0]  params;
	for(genvar  i = 0; i < LANES; i++) begin : genLane
		uwire [WORD_BITS-1:0]  word = requant_word[i*WORD_BITS +: WORD_BITS];
		uwire [SHIFT_BITS-1:0]  shift = word[MULTIPLIER_BITS +: SHIFT_BITS];
		assign	params[i] = {
			BIAS_BITS'(1) << (SHIFT_MIN-1 + shift), shift, SCALE_BITS'(word[MULTIPLIER_BITS-1:0])
		};
	end : genLane

	localparam int unsigned  SUMS_STREAM = (LANES*ACC_BITS+7)/8*8;
	localparam int unsigned  OUT_STREAM = (LANES*OUT_BITS+7)/8*8;
	uwire [OUT_STREAM-1:0]  results;
	uwire  results_valid, results_ready;
	requant_axi_decoupled #(
		.VERSION(VERSION), .K(ACC_BITS), .N(OUT_BITS), .C(MH), .PE(LANES),
		.SHIFT_MIN(SHIFT_MIN), .SHIFT_MAX(SHIFT_MAX), .SIGNED_OUT(OUT_SIGNED)
	) requant (
		.ap_clk(clk), .ap_rst_n(rst_n),
		.s_axis_tdata(SUMS_STREAM'(sums)), .s_axis_tvalid(sums_valid), .s_axis_tready(sums_ready),
		.s_params_tdata(PARAMS_STREAM'(params)), .s_params_tvalid(requant_valid), .s_params_tready(requant_ready),
		.m_axis_tdata(results), .m_axis_tvalid(results_valid), .m_axis_tready(results_ready)
	);
	wattbit_pack #(.BEATS(PE/LANES), .BITS(LANES*OUT_BITS)) pack (
		.clk, .rst_n,
		.s_data(results[LANES*OUT_BITS-1:0]), .s_valid(results_valid), .s_ready(results_ready),
		.m_data(m_tdata), .m_valid(m_tvalid), .m_ready(m_tready)
	);

endmodule : engine_layer
