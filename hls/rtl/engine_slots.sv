// The sets of a streamed engine's memory: one of DEPTH words is read while the next one arrives from DDR.
//
// Beats are the words, packed without gaps, word 0 in the low bits; ROW_WORDS words fill ROW_BEATS whole beats and are
// a row of the memory, so a beat is taken every cycle whatever WIDTH is. Two slots hold a set each, the third set waits
// until the first is no longer read. A word can be read as soon as its row is there.
//
// Every entry of the `fresh` queue streams a set out once, in order: the same set again, or (1) the next that arrives.

module engine_slots #(
	int unsigned  DEPTH,
	int unsigned  WIDTH
)(
	input	logic  clk,
	input	logic  rst,

	input	logic  fresh,
	input	logic  fresh_valid,
	output	logic  fresh_ready,

	input	logic [63:0]  beat,
	input	logic  beat_valid,
	output	logic  beat_ready,
	output	logic  filled,         // this beat is the last of its set

	output	logic [WIDTH-1:0]  word,
	output	logic  valid,
	input	logic  ready
);
	localparam int unsigned  LOWEST = WIDTH & (~WIDTH + 1);
	localparam int unsigned  UNIT = LOWEST > 64? 64 : LOWEST;  // greatest common divisor of WIDTH and 64
	localparam int unsigned  ROW_WORDS = 64/UNIT;
	localparam int unsigned  ROW_BEATS = WIDTH/UNIT;
	localparam int unsigned  ROW_WIDTH = 64*ROW_BEATS;
	localparam int unsigned  ROWS = (DEPTH + ROW_WORDS-1)/ROW_WORDS;
	typedef logic [$clog2(ROWS+1)-1:0]  row_t;
	typedef logic [$clog2(2*ROWS)-1:0]  addr_t;

	logic [ROW_WIDTH-1:0]  memory[2*ROWS];

	// Filling
	logic  fill_slot;
	row_t  fill_row;               // rows of the arriving set that are in the memory
	logic [1:0]  full;             // sets that are whole and still read, or yet to be
	uwire  row_whole;
	uwire [ROW_WIDTH-1:0]  row;

	assign	beat_ready = full != 2;
	uwire  beat_taken = beat_valid && beat_ready;
	assign	filled = row_whole && fill_row == row_t'(ROWS-1);

	if(ROW_BEATS == 1) begin : genBeat
		assign	row_whole = beat_taken;
		assign	row = beat;
	end : genBeat
	else begin : genBeats
		logic [ROW_WIDTH-65:0]  earlier;
		logic [$clog2(ROW_BEATS)-1:0]  beats;
		assign	row_whole = beat_taken && 32'(beats) == ROW_BEATS-1;
		assign	row = { beat, earlier };
		always_ff @(posedge clk) begin
			if(beat_taken)  earlier <= (ROW_WIDTH-64)'(row >> 64);
			if(rst)              beats <= 0;
			else if(beat_taken)  beats <= row_whole? 0 : beats + 1;
		end
	end : genBeats

	always_ff @(posedge clk) begin
		if(row_whole)  memory[fill_slot? addr_t'(ROWS) + addr_t'(fill_row) : addr_t'(fill_row)] <= row;
		if(rst) begin
			fill_slot <= 0;
			fill_row <= 0;
		end
		else if(row_whole) begin
			fill_slot <= fill_slot ^ filled;
			fill_row <= filled? 0 : fill_row + 1;
		end
	end

	// Reading: a set is left when the next entry of the queue is fresh.
	localparam int unsigned  SUB_BITS = ROW_WORDS > 1? $clog2(ROW_WORDS) : 1;
	typedef logic [SUB_BITS-1:0]  sub_t;

	uwire  next_fresh, next_valid, take;
	fifo #(.DEPTH(8), .DATA_WIDTH(1)) queue (
		.clk, .rst, .idat(fresh), .ivld(fresh_valid), .irdy(fresh_ready),
		.odat(next_fresh), .ovld(next_valid), .ordy(take), .count(), .maxcount()
	);

	logic  read_slot, reading;
	row_t  read_row;
	sub_t  read_sub;               // word of the row
	uwire  there = full != 0 || read_row < fill_row;
	uwire  fetch;
	uwire  row_end = read_sub == sub_t'(ROW_WORDS-1);
	uwire  set_end = read_row == row_t'(ROWS-1) && read_sub == sub_t'((DEPTH-1) % ROW_WORDS);
	uwire  leave = next_valid && take && next_fresh;
	assign	take = !reading || (fetch && set_end);

	always_ff @(posedge clk) begin
		if(rst) begin
			reading <= 0;
			read_slot <= 1;        // nothing, as a whole set: the first set is fresh and goes to slot 0
			full <= 1;
		end
		else begin
			if(take)  reading <= next_valid;
			read_slot <= read_slot ^ leave;
			full <= full + 2'(filled) - 2'(leave);
		end
		if(take) begin
			read_row <= 0;
			read_sub <= 0;
		end
		else if(fetch) begin
			read_row <= read_row + row_t'(row_end);
			read_sub <= row_end? 0 : read_sub + 1;
		end
	end

	// Memory to output: a row, then the word of it
	logic [ROW_WIDTH-1:0]  fetched;
	sub_t  fetched_sub;
	logic  fetched_valid;
	uwire  pass = !valid || ready;
	assign	fetch = reading && there && (!fetched_valid || pass);

	always_ff @(posedge clk) begin
		if(fetch) begin
			fetched <= memory[read_slot? addr_t'(ROWS) + addr_t'(read_row) : addr_t'(read_row)];
			fetched_sub <= read_sub;
		end
		if(pass)  word <= fetched[fetched_sub*WIDTH +: WIDTH];
		if(rst) begin
			fetched_valid <= 0;
			valid <= 0;
		end
		else begin
			if(pass)  valid <= fetched_valid;
			if(fetch)      fetched_valid <= 1;
			else if(pass)  fetched_valid <= 0;
		end
	end

endmodule : engine_slots
