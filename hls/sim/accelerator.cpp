// The simulated accelerator: the Verilated shell between a memory and its register port, behind a C interface.
//
// A failure (a broken AXI rule, an assertion of the design, a missing memory) ends the simulation: wb_run returns -1,
// wb_read all ones, and wb_error says what happened.
#include <cstdio>
#include <deque>
#include <memory>
#include <stdexcept>
#include <string>

#include "Vwattbit_shell.h"
#include "axi_memory.h"
#include "streams.h"
#include "verilated.h"

namespace {

constexpr int RESET_CYCLES = 16;
constexpr int PATIENCE = 1000;  // cycles that a register access may take

// What the master of stream i drives: it reads only.
#define WEIGHTS(i)                                                                                                \
    , AxiMaster {                                                                                                 \
        {shell->m_axi_w##i##_arvalid != 0, shell->m_axi_w##i##_araddr, shell->m_axi_w##i##_arlen,                 \
         shell->m_axi_w##i##_arsize, shell->m_axi_w##i##_arburst},                                                \
            {}, {}, shell->m_axi_w##i##_rready != 0, true                                                         \
    }

class Accelerator {
public:
    Memory memory;
    std::deque<AxiPort> ports;  // of packets and results, then those of the streams
    uint64_t cycles = 0;        // since reset

    Accelerator(uint32_t base, uint32_t bytes, uint32_t seed)
        : memory(base, bytes), context(std::make_unique<VerilatedContext>()) {
        for (uint32_t i = 0; i <= STREAMS; ++i) ports.emplace_back(memory, seed + i * (seed != 0));
        const char *arguments[] = {"wattbit", "+stall"};
        context->commandArgs(seed ? 2 : 1, arguments);
        context->randSeed(static_cast<int>(seed & 0x7fffffff) | 1);
        context->randReset(seed ? 2 : 0);  // registers wake up at random, or at 0
        shell = std::make_unique<Vwattbit_shell>(context.get());
        shell->aresetn = 0;
        shell->s_axi_ctrl_arvalid = 0;
        shell->s_axi_ctrl_awvalid = 0;
        shell->s_axi_ctrl_wvalid = 0;
        shell->s_axi_ctrl_bready = 1;
        shell->s_axi_ctrl_rready = 1;
        for (int i = 0; i < RESET_CYCLES; ++i) step();
        shell->aresetn = 1;
        cycles = 0;
    }

    ~Accelerator() {
        if (shell) shell->final();
    }

    void step() {
        const AxiSlave &slave = ports[0].outputs();
        shell->m_axi_mem_arready = slave.arready;
        shell->m_axi_mem_awready = slave.awready;
        shell->m_axi_mem_wready = slave.wready;
        shell->m_axi_mem_rvalid = slave.rvalid;
        shell->m_axi_mem_rdata = slave.rdata;
        shell->m_axi_mem_rresp = slave.rresp;
        shell->m_axi_mem_rlast = slave.rlast;
        shell->m_axi_mem_bvalid = slave.bvalid;
        shell->m_axi_mem_bresp = slave.bresp;
#define DRIVE(i)                                                  \
    shell->m_axi_w##i##_arready = ports[i + 1].outputs().arready; \
    shell->m_axi_w##i##_rvalid = ports[i + 1].outputs().rvalid;   \
    shell->m_axi_w##i##_rdata = ports[i + 1].outputs().rdata;     \
    shell->m_axi_w##i##_rresp = ports[i + 1].outputs().rresp;     \
    shell->m_axi_w##i##_rlast = ports[i + 1].outputs().rlast;
        FOR_STREAMS(DRIVE)
        shell->aclk = 0;
        shell->eval();
        const AxiMaster masters[] = {packets_and_results() FOR_STREAMS(WEIGHTS)};
        awready = shell->s_axi_ctrl_awready;
        wready = shell->s_axi_ctrl_wready;
        arready = shell->s_axi_ctrl_arready;
        shell->aclk = 1;
        shell->eval();
        context->timeInc(1);
        for (size_t i = 0; shell->aresetn && i < ports.size(); ++i) ports[i].clock(masters[i]);
        ++cycles;
    }

    uint32_t read(uint32_t offset) {
        shell->s_axi_ctrl_araddr = offset;
        shell->s_axi_ctrl_arvalid = 1;
        for (int i = 0; i < PATIENCE; ++i) {
            step();
            if (arready) shell->s_axi_ctrl_arvalid = 0;
            if (shell->s_axi_ctrl_rvalid) {
                const uint32_t value = shell->s_axi_ctrl_rdata;
                step();
                return value;
            }
        }
        throw std::runtime_error("the register port does not answer a read of " + std::to_string(offset));
    }

    void write(uint32_t offset, uint32_t value) {
        shell->s_axi_ctrl_awaddr = offset;
        shell->s_axi_ctrl_awvalid = 1;
        shell->s_axi_ctrl_wdata = value;
        shell->s_axi_ctrl_wstrb = 15;
        shell->s_axi_ctrl_wvalid = 1;
        for (int i = 0; i < PATIENCE; ++i) {
            step();
            if (awready) shell->s_axi_ctrl_awvalid = 0;
            if (wready) shell->s_axi_ctrl_wvalid = 0;
            if (shell->s_axi_ctrl_bvalid) {
                step();
                return;
            }
        }
        throw std::runtime_error("the register port does not answer a write of " + std::to_string(offset));
    }

    bool run(uint64_t max_cycles) {
        for (uint64_t i = 0; i < max_cycles && !shell->irq; ++i) step();
        return shell->irq;
    }

private:
    std::unique_ptr<VerilatedContext> context;
    std::unique_ptr<Vwattbit_shell> shell;
    bool awready = false, wready = false, arready = false;  // of the register port at the last edge

    AxiMaster packets_and_results() const {
        const Vwattbit_shell &s = *shell;
        return {
            {s.m_axi_mem_arvalid != 0, s.m_axi_mem_araddr, s.m_axi_mem_arlen, s.m_axi_mem_arsize, s.m_axi_mem_arburst},
            {s.m_axi_mem_awvalid != 0, s.m_axi_mem_awaddr, s.m_axi_mem_awlen, s.m_axi_mem_awsize, s.m_axi_mem_awburst},
            {s.m_axi_mem_wvalid != 0, s.m_axi_mem_wdata, s.m_axi_mem_wstrb, s.m_axi_mem_wlast != 0},
            s.m_axi_mem_rready != 0,
            s.m_axi_mem_bready != 0,
        };
    }
};

// What wb_open returns: an accelerator, or why there is none.
struct Handle {
    std::unique_ptr<Accelerator> accelerator;
    std::string error;
};

// Do `action` unless an earlier one failed; a failure is kept as text, for exceptions stay on this side of C.
template <typename Value, typename Action>
Value guarded(void *opaque, Value failed, Action action) {
    auto *handle = static_cast<Handle *>(opaque);
    if (!handle->error.empty()) return failed;
    try {
        return action(*handle->accelerator);
    } catch (const std::exception &problem) {
        handle->error = problem.what();
        return failed;
    }
}

}  // namespace

// Verilator's ways to end a program, which a library must not do.
void vl_finish(const char *file, int line, const char *) {
    throw std::runtime_error(std::string("$finish at ") + file + ":" + std::to_string(line));
}
void vl_stop(const char *file, int line, const char *) {
    throw std::runtime_error(std::string("assertion failed at ") + file + ":" + std::to_string(line));
}
void vl_fatal(const char *file, int line, const char *, const char *message) {
    throw std::runtime_error(std::string(message) + " at " + file + ":" + std::to_string(line));
}

#pragma GCC visibility push(default)
extern "C" {

// mem_bytes of memory from mem_base on, and the design out of reset. stall_seed != 0: random stalls on all streams, and
// random contents of all registers before reset.
void *wb_open(uint32_t mem_base, uint32_t mem_bytes, uint32_t stall_seed) {
    auto *handle = new Handle;
    try {
        handle->accelerator = std::make_unique<Accelerator>(mem_base, mem_bytes, stall_seed);
    } catch (const std::exception &problem) {
        handle->error = problem.what();
    }
    return handle;
}

void wb_close(void *handle) { delete static_cast<Handle *>(handle); }

// Empty while all is well. Valid until wb_close.
const char *wb_error(void *handle) { return static_cast<Handle *>(handle)->error.c_str(); }

uint8_t *wb_memory(void *handle) {
    return guarded(handle, static_cast<uint8_t *>(nullptr), [](Accelerator &a) { return a.memory.data(); });
}

// Cycles since reset.
uint64_t wb_cycles(void *handle) {
    return guarded(handle, uint64_t{0}, [](Accelerator &a) { return a.cycles; });
}

// One AXI4-Lite transaction each.
uint32_t wb_read(void *handle, uint32_t offset) {
    return guarded(handle, ~uint32_t{0}, [=](Accelerator &a) { return a.read(offset); });
}
void wb_write(void *handle, uint32_t offset, uint32_t value) {
    guarded(handle, 0, [=](Accelerator &a) { return a.write(offset, value), 0; });
}

// Advance until the interrupt (1) or for max_cycles (0).
int wb_run(void *handle, uint64_t max_cycles) {
    return guarded(handle, -1, [=](Accelerator &a) { return a.run(max_cycles) ? 1 : 0; });
}

// Cycles from a read address to its first beat, and from the last beat of a write to its response.
void wb_set_latency(void *handle, uint32_t read, uint32_t write) {
    guarded(handle, 0, [=](Accelerator &a) {
        for (AxiPort &port : a.ports) {
            port.read_latency = read;
            port.write_latency = write;
        }
        return 0;
    });
}

}  // extern "C"
#pragma GCC visibility pop
