// Drives one engine from a text file and writes what it returns, one line a beat: cycle and hexadecimal data.
//
// +NAME_in=FILE holds a line a vector: its set index, then its BEATS_IN data words, all hexadecimal.
// +NAME_vectors=N ends the run after N vectors. +stall=SEED (not 0) stalls all streams at random. +NAME_weights=FILE
// holds the beats of a streamed engine's experts, a line each, in the order in which they are needed.

module engine_bench #(
	parameter     NAME = "",
	int unsigned  WIDTH_IN,
	int unsigned  WIDTH_OUT,
	int unsigned  BEATS_IN,
	int unsigned  BEATS_OUT,
	bit           STREAMED
)(
	input	logic  clk,
	output	logic  rst_n,
	output	logic  done,

	output	logic [15:0]  s_set,
	output	logic  s_set_valid,
	input	logic  s_set_ready,

	output	logic [WIDTH_IN-1:0]  s_tdata,
	output	logic  s_tvalid,
	input	logic  s_tready,

	output	logic [63:0]  w_tdata,
	output	logic  w_tvalid,
	input	logic  w_tready,

	input	logic [WIDTH_OUT-1:0]  m_tdata,
	input	logic  m_tvalid,
	output	logic  m_tready
);
	localparam longint unsigned  PATIENCE = 1000000;  // cycles without an output before the run is given up

	string  path;
	int  sets, data, weights, out, got;
	logic [31:0]  random = 0;
	int unsigned  vectors = 0, cycle = 0, last_out = 0, beat_in = 0, set_in = 0, vector_in = 0, beats_out = 0;
	logic [31:0]  set_word;
	logic [WIDTH_IN-1:0]  word;
	logic [63:0]  weight;

	initial begin
		got = $value$plusargs({NAME, "_vectors=%d"}, vectors);
		got = $value$plusargs("stall=%d", random);
		got = $value$plusargs({NAME, "_in=%s"}, path);
		sets = $fopen(path, "r");
		data = $fopen(path, "r");
		if(STREAMED) begin
			got = $value$plusargs({NAME, "_weights=%s"}, path);
			weights = $fopen(path, "r");
		end
		got = $value$plusargs({NAME, "_out=%s"}, path);
		out = $fopen(path, "w");
		rst_n = 0;
		done = 0;
		s_set_valid = 0;
		s_tvalid = 0;
		w_tvalid = 0;
		m_tready = 0;
	end

	// One beat in four of each stream is followed by a stall of up to 63 cycles; state 0 of the generator (xorshift,
	// Marsaglia 2003) lets all pass.
	int unsigned  hold[4];
	function automatic logic go(input int  stream);
		random ^= random << 13;
		random ^= random >> 17;
		random ^= random << 5;
		if(hold[stream] > 0)            hold[stream]--;
		else if(random[9:8] == 2'b11)   hold[stream] = random[21:16];
		return  hold[stream] == 0;
	endfunction : go

	always @(posedge clk) begin
		cycle <= cycle + 1;
		rst_n <= cycle > 8;
		if(cycle > 16 && !done) begin
			m_tready <= go(0);
			if(!s_set_valid || s_set_ready) begin
				s_set_valid <= 0;
				if(set_in < vectors && go(1)) begin
					got = $fscanf(sets, "%h", set_word);
					for(int unsigned  i = 0; i < BEATS_IN; i++)  got = $fscanf(sets, "%h", word);
					s_set <= set_word[15:0];
					s_set_valid <= 1;
					set_in <= set_in + 1;
				end
			end
			if(!s_tvalid || s_tready) begin
				s_tvalid <= 0;
				if(vector_in < vectors && go(2)) begin
					if(beat_in == 0)  got = $fscanf(data, "%h", word);
					got = $fscanf(data, "%h", word);
					s_tdata <= word;
					s_tvalid <= 1;
					beat_in <= beat_in == BEATS_IN-1? 0 : beat_in + 1;
					if(beat_in == BEATS_IN-1)  vector_in <= vector_in + 1;
					if(beat_in == 0)  $fwrite(out, "in %0d\n", cycle);
				end
			end
			if(STREAMED && (!w_tvalid || w_tready)) begin
				w_tvalid <= 0;
				if(go(3) && $fscanf(weights, "%h", weight) == 1) begin
					w_tdata <= weight;
					w_tvalid <= 1;
				end
			end
			if(m_tvalid && m_tready) begin
				$fwrite(out, "out %0d %h\n", cycle, m_tdata);
				beats_out <= beats_out + 1;
				last_out <= cycle;
				if(beats_out == vectors*BEATS_OUT-1) begin
					$fclose(out);
					done <= 1;
				end
			end
			if(vectors == 0)  done <= 1;
			if(cycle - last_out > PATIENCE) begin
				$display("%s: no output for %0d cycles after %0d beats", NAME, cycle - last_out, beats_out);
				$fatal;
			end
		end
	end

endmodule : engine_bench
