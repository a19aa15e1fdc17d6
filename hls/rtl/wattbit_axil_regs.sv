// AXI4-Lite slave with the registers of a launch.
//
// A write of 1 to CTRL[0] while idle pulses `start`; `finished` ends the launch and sets done, which is the interrupt.
// The first fault of a launch stays in ERROR until the next start. CYCLES counts from start to finished.
module wattbit_axil_regs #(
  parameter logic [31:0] DIGEST  = 32'd0,
  parameter logic [31:0] D_MODEL = 32'd8,
  parameter int ENGINES = 1,
  parameter logic [ENGINES*32-1:0] CYCLES = '0,    // of a vector on each engine
  parameter logic [ENGINES*32-1:0] LOADS = '0,     // cycles of loading an expert of each engine
  parameter int STREAMS = 0,                       // engines whose weights are streamed
  parameter int PORTS = STREAMS > 0 ? STREAMS : 1,
  parameter logic [PORTS*32-1:0] STRIDES = '0      // bytes from one expert's image to the next
) (
  input  logic        clk,
  input  logic        rst_n,

  input  logic [11:0] awaddr,
  input  logic        awvalid,
  output logic        awready,
  input  logic [31:0] wdata,
  input  logic [3:0]  wstrb,
  input  logic        wvalid,
  output logic        wready,
  output logic [1:0]  bresp,
  output logic        bvalid,
  input  logic        bready,
  input  logic [11:0] araddr,
  input  logic        arvalid,
  output logic        arready,
  output logic [31:0] rdata,
  output logic [1:0]  rresp,
  output logic        rvalid,
  input  logic        rready,

  output logic        start,
  output logic [19:0] count,
  output logic [31:3] in_addr,
  output logic [31:3] out_addr,
  output logic [PORTS*29-1:0] weights_addr,
  input  logic        finished,
  input  logic [1:0]  fault,     // 0: none this cycle
  output logic        busy,
  output logic        irq
);
  localparam logic [31:0] ID = 32'h57423031;

  localparam logic [9:0] CTRL       = 10'h000 >> 2;
  localparam logic [9:0] ID_        = 10'h004 >> 2;
  localparam logic [9:0] DIGEST_    = 10'h008 >> 2;
  localparam logic [9:0] COUNT      = 10'h00C >> 2;
  localparam logic [9:0] IN_ADDR    = 10'h010 >> 2;
  localparam logic [9:0] OUT_ADDR   = 10'h014 >> 2;
  localparam logic [9:0] CYCLES_LO  = 10'h018 >> 2;
  localparam logic [9:0] CYCLES_HI  = 10'h01C >> 2;
  localparam logic [9:0] D_MODEL_   = 10'h020 >> 2;
  localparam logic [9:0] ENGINES_   = 10'h024 >> 2;
  localparam logic [9:0] ERROR      = 10'h028 >> 2;
  localparam logic [9:0] STREAMS_   = 10'h02C >> 2;
  localparam logic [9:0] WEIGHTS    = 10'h040 >> 2;         // of each stream: its address, its stride
  localparam logic [9:0] TIMES      = 10'(12'h800 >> 2);    // of each engine: its cycles, its load

  logic done;
  logic [1:0] error;
  logic [63:0] cycles;

  // Writes: address and data are held until both are there.
  logic [11:2] write_addr;
  logic [31:0] write_data;
  logic [3:0] write_strb;
  wire write = !awready && !wready && (!bvalid || bready);
  wire [31:0] write_mask = {{8{write_strb[3]}}, {8{write_strb[2]}}, {8{write_strb[1]}}, {8{write_strb[0]}}};
  wire write_ctrl = write && write_addr == CTRL && write_strb[0];

  assign bresp = 2'b00;

  always_ff @(posedge clk) begin
    if (!rst_n) begin
      awready <= 1'b1;
      wready <= 1'b1;
      bvalid <= 1'b0;
    end else begin
      if (awvalid && awready) begin
        awready <= 1'b0;
        write_addr <= awaddr[11:2];
      end
      if (wvalid && wready) begin
        wready <= 1'b0;
        write_data <= wdata;
        write_strb <= wstrb;
      end
      if (write) begin
        awready <= 1'b1;
        wready <= 1'b1;
        bvalid <= 1'b1;
      end else if (bready) bvalid <= 1'b0;
    end
  end

  function automatic logic [31:0] merged(logic [31:0] old);
    return (old & ~write_mask) | (write_data & write_mask);
  endfunction

  always_ff @(posedge clk) begin
    if (!rst_n) begin
      count <= '0;
      in_addr <= '0;
      out_addr <= '0;
      weights_addr <= '0;
    end else if (write) begin
      case (write_addr)
        COUNT: count <= 20'(merged({12'b0, count}));
        IN_ADDR: in_addr <= 29'(merged({in_addr, 3'b0}) >> 3);
        OUT_ADDR: out_addr <= 29'(merged({out_addr, 3'b0}) >> 3);
        default: ;
      endcase
      for (int i = 0; i < STREAMS; i++)
        if (write_addr == WEIGHTS + 10'(2 * i))
          weights_addr[29*i+:29] <= 29'(merged({weights_addr[29*i+:29], 3'b0}) >> 3);
    end
  end

  // Reads
  assign arready = !rvalid;
  assign rresp = 2'b00;

  always_ff @(posedge clk) begin
    if (!rst_n) rvalid <= 1'b0;
    else if (arvalid && arready) rvalid <= 1'b1;
    else if (rready) rvalid <= 1'b0;

    if (arvalid && arready) begin
      case (araddr[11:2])
        CTRL: rdata <= {29'b0, !busy, done, 1'b0};
        ID_: rdata <= ID;
        DIGEST_: rdata <= DIGEST;
        COUNT: rdata <= {12'b0, count};
        IN_ADDR: rdata <= {in_addr, 3'b0};
        OUT_ADDR: rdata <= {out_addr, 3'b0};
        CYCLES_LO: rdata <= cycles[31:0];
        CYCLES_HI: rdata <= cycles[63:32];
        D_MODEL_: rdata <= D_MODEL;
        ENGINES_: rdata <= ENGINES;
        ERROR: rdata <= {30'b0, error};
        STREAMS_: rdata <= STREAMS;
        default: rdata <= '0;
      endcase
      for (int i = 0; i < STREAMS; i++) begin
        if (araddr[11:2] == WEIGHTS + 10'(2 * i)) rdata <= {weights_addr[29*i+:29], 3'b0};
        if (araddr[11:2] == WEIGHTS + 10'(2 * i + 1)) rdata <= STRIDES[32*i+:32];
      end
      for (int i = 0; i < ENGINES; i++) begin
        if (araddr[11:2] == TIMES + 10'(2 * i)) rdata <= CYCLES[32*i+:32];
        if (araddr[11:2] == TIMES + 10'(2 * i + 1)) rdata <= LOADS[32*i+:32];
      end
    end
  end

  // The launch
  assign start = write_ctrl && write_data[0] && !busy;
  assign irq = done;

  always_ff @(posedge clk) begin
    if (!rst_n) begin
      busy <= 1'b0;
      done <= 1'b0;
      error <= 2'd0;
      cycles <= '0;
    end else if (start) begin
      busy <= 1'b1;
      done <= 1'b0;
      error <= 2'd0;
      cycles <= '0;
    end else begin
      if (busy) cycles <= cycles + 1'b1;
      if (busy && error == 2'd0) error <= fault;
      if (busy && finished) begin
        busy <= 1'b0;
        done <= 1'b1;
      end else if (write_ctrl && write_data[1]) done <= 1'b0;
    end
  end

  wire unused = &{1'b0, awaddr[1:0], araddr[1:0]};
endmodule
