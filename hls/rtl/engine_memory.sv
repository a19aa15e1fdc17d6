// Sets of DEPTH words each: every set that enters the queue streams its whole set out once, in order.
//
// On the chip, `set` is the index of one of SETS sets. STREAMED, bit 0 of it says that the set is not the one before but
// the next that arrives as beats, see `engine_slots`.

module engine_memory #(
	bit           STREAMED,
	int unsigned  SETS,
	int unsigned  DEPTH,
	int unsigned  WIDTH,
	parameter     FILE = ""
)(
	input	logic  clk,
	input	logic  rst,

	input	logic [15:0]  set,
	input	logic  set_valid,
	output	logic  set_ready,

	input	logic [63:0]  beat,
	input	logic  beat_valid,
	output	logic  beat_ready,
	output	logic  filled,

	output	logic [WIDTH-1:0]  word,
	output	logic  valid,
	input	logic  ready
);
	if(STREAMED) begin : genStreamed
		engine_slots #(.DEPTH(DEPTH), .WIDTH(WIDTH)) slots (
			.clk, .rst, .fresh(set[0]), .fresh_valid(set_valid), .fresh_ready(set_ready),
			.beat, .beat_valid, .beat_ready, .filled, .word, .valid, .ready
		);
	end : genStreamed
	else begin : genChip
		assign	beat_ready = 0;
		assign	filled = 0;

		localparam int unsigned  SET_BITS = SETS > 2? $clog2(SETS) : 1;
		uwire [SET_BITS-1:0]  next;
		uwire  next_valid, next_ready;

		if(SETS > 1) begin : genQueue
			fifo #(.DEPTH(8), .DATA_WIDTH(SET_BITS)) queue (
				.clk, .rst, .idat(set[SET_BITS-1:0]), .ivld(set_valid), .irdy(set_ready),
				.odat(next), .ovld(next_valid), .ordy(next_ready), .count(), .maxcount()
			);
		end : genQueue
		else begin : genSingle
			// The only set repeats for ever.
			assign	next = 0;
			assign	next_valid = 1;
			assign	set_ready = 1;
		end : genSingle

		memstream #(.SETS(SETS), .DEPTH(DEPTH), .WIDTH(WIDTH), .INIT_FILE(FILE)) memory (
			.clk, .rst,
			.config_ce(1'b0), .config_we(1'b0), .config_address('0), .config_d0('0), .config_rack(), .config_q0(),
			.sidx(next), .svld(next_valid), .srdy(next_ready),
			.odat(word), .ovld(valid), .ordy(ready)
		);
	end : genChip

endmodule : engine_memory
