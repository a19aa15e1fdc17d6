// From the processing system's AXI3 master (GP0) to the shell's AXI4-Lite slave.
//
// One burst at a time and each beat of it as an access of its own, with the burst's id given back. Both directions work
// side by side. An address is that of the burst plus four for every beat done: FIXED and WRAP bursts, which no processor
// sends to device memory, are treated as INCR.
module wattbit_gp_bridge #(
  parameter int ID_BITS = 12,
  parameter int ADDR_BITS = 12
) (
  input  logic                 clk,
  input  logic                 rst_n,

  input  logic [ID_BITS-1:0]   s_awid,
  input  logic [31:0]          s_awaddr,
  input  logic                 s_awvalid,
  output logic                 s_awready,
  input  logic [31:0]          s_wdata,
  input  logic [3:0]           s_wstrb,
  input  logic                 s_wlast,
  input  logic                 s_wvalid,
  output logic                 s_wready,
  output logic [ID_BITS-1:0]   s_bid,
  output logic [1:0]           s_bresp,
  output logic                 s_bvalid,
  input  logic                 s_bready,
  input  logic [ID_BITS-1:0]   s_arid,
  input  logic [31:0]          s_araddr,
  input  logic [3:0]           s_arlen,
  input  logic                 s_arvalid,
  output logic                 s_arready,
  output logic [ID_BITS-1:0]   s_rid,
  output logic [31:0]          s_rdata,
  output logic [1:0]           s_rresp,
  output logic                 s_rlast,
  output logic                 s_rvalid,
  input  logic                 s_rready,

  output logic [ADDR_BITS-1:0] m_awaddr,
  output logic                 m_awvalid,
  input  logic                 m_awready,
  output logic [31:0]          m_wdata,
  output logic [3:0]           m_wstrb,
  output logic                 m_wvalid,
  input  logic                 m_wready,
  input  logic [1:0]           m_bresp,
  input  logic                 m_bvalid,
  output logic                 m_bready,
  output logic [ADDR_BITS-1:0] m_araddr,
  output logic                 m_arvalid,
  input  logic                 m_arready,
  input  logic [31:0]          m_rdata,
  input  logic [1:0]           m_rresp,
  input  logic                 m_rvalid,
  output logic                 m_rready
);
  // Writes: address, then for every beat data out and response in, then one response
  typedef enum logic [1:0] {ADDRESS, BEAT, WAIT, RESPOND} write_t;
  write_t write;
  logic last;

  assign s_awready = rst_n && write == ADDRESS;
  assign s_wready = write == BEAT && !m_awvalid && !m_wvalid;
  assign m_bready = write == WAIT;
  assign s_bvalid = write == RESPOND;

  always_ff @(posedge clk) begin
    if (m_awready) m_awvalid <= 1'b0;
    if (m_wready) m_wvalid <= 1'b0;
    if (s_awready && s_awvalid) begin
      s_bid <= s_awid;
      m_awaddr <= s_awaddr[ADDR_BITS-1:0];
      s_bresp <= 2'b00;
      write <= BEAT;
    end
    if (s_wready && s_wvalid) begin
      m_wdata <= s_wdata;
      m_wstrb <= s_wstrb;
      last <= s_wlast;
      m_awvalid <= 1'b1;
      m_wvalid <= 1'b1;
      write <= WAIT;
    end
    if (m_bready && m_bvalid) begin
      s_bresp <= s_bresp | m_bresp;
      m_awaddr <= m_awaddr + ADDR_BITS'(4);
      write <= last ? RESPOND : BEAT;
    end
    if (s_bvalid && s_bready) write <= ADDRESS;
    if (!rst_n) begin
      write <= ADDRESS;
      m_awvalid <= 1'b0;
      m_wvalid <= 1'b0;
    end
  end

  // Reads: address, then every beat asked for and passed on
  typedef enum logic [1:0] {IDLE, ASK, TAKE} read_t;
  read_t read;
  logic [3:0] left;

  assign s_arready = rst_n && read == IDLE;
  assign m_arvalid = read == ASK;
  assign s_rvalid = read == TAKE && m_rvalid;
  assign m_rready = read == TAKE && s_rready;
  assign s_rdata = m_rdata;
  assign s_rresp = m_rresp;
  assign s_rlast = left == 0;

  always_ff @(posedge clk) begin
    if (s_arready && s_arvalid) begin
      s_rid <= s_arid;
      m_araddr <= s_araddr[ADDR_BITS-1:0];
      left <= s_arlen;
      read <= ASK;
    end
    if (m_arvalid && m_arready) read <= TAKE;
    if (s_rvalid && s_rready) begin
      m_araddr <= m_araddr + ADDR_BITS'(4);
      left <= left - 1'b1;
      read <= s_rlast ? IDLE : ASK;
    end
    if (!rst_n) read <= IDLE;
  end

  wire unused = &{1'b0, s_awaddr[31:ADDR_BITS], s_araddr[31:ADDR_BITS]};
endmodule
