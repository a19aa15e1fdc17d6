// A memory, AXI4 ports to it as the shell's masters see them, and the checks that AXI puts on those masters.
//
// Addresses outside the memory answer DECERR. A broken rule throws std::runtime_error with the cycle and the rule. The
// ports do not slow each other down.
#pragma once

#include <cstdint>
#include <cstdlib>
#include <cstring>
#include <deque>
#include <memory>
#include <stdexcept>
#include <string>

struct AxiAddress {
    bool valid;
    uint32_t address;
    uint8_t length, size, burst;
    bool operator==(const AxiAddress &) const = default;
};

struct AxiData {
    bool valid;
    uint64_t data;
    uint8_t strobe;
    bool last;
    bool operator==(const AxiData &) const = default;
};

// What the master drives.
struct AxiMaster {
    AxiAddress ar, aw;
    AxiData w;
    bool rready, bready;
};

// What the memory drives.
struct AxiSlave {
    bool arready, awready, wready;
    bool rvalid, rlast;
    uint64_t rdata;
    uint8_t rresp;
    bool bvalid;
    uint8_t bresp;
};

// A xorshift generator (Marsaglia 2003); seed 0 never stalls.
class Stalls {
public:
    explicit Stalls(uint32_t seed) : state(seed) {}
    bool operator()() {  // true once in four
        state ^= state << 13;
        state ^= state >> 17;
        state ^= state << 5;
        return state != 0 && (state >> 8 & 3) == 0;
    }

private:
    uint32_t state;
};

// Zeros that take room when they are written.
class Memory {
public:
    Memory(uint32_t base, uint32_t bytes) : base(base), bytes(bytes), content(std::calloc(bytes, 1), std::free) {
        if (!content) throw std::runtime_error("no room for " + std::to_string(bytes) + " bytes of memory");
    }

    uint8_t *data() { return static_cast<uint8_t *>(content.get()); }

    // Eight bytes, or null outside the memory.
    uint8_t *at(uint32_t address) {
        const uint32_t offset = address - base;
        return address >= base && offset + 8ull <= bytes ? data() + offset : nullptr;
    }

private:
    uint32_t base, bytes;
    std::unique_ptr<void, decltype(&std::free)> content;
};

class AxiPort {
public:
    uint32_t read_latency = 20;   // cycles from the address to the first beat
    uint32_t write_latency = 10;  // cycles from the last beat to the response

    AxiPort(Memory &memory, uint32_t stall_seed) : memory(memory), stall(stall_seed) {}

    const AxiSlave &outputs() const { return now; }

    // One rising edge, with what the master drove before it.
    void clock(const AxiMaster &master) {
        check(master);
        const bool read_done = now.rvalid && master.rready;
        const bool write_done = now.bvalid && master.bready;
        if (read_done && --reads.front().beats == 0) reads.pop_front();
        else if (read_done) reads.front().address += 8;
        if (write_done) responses.pop_front();
        if (master.ar.valid && now.arready) reads.push_back(burst(master.ar, read_latency));
        if (master.w.valid && now.wready) write_beat(master.w);
        if (master.aw.valid && now.awready) writes.push_back(burst(master.aw, 0));
        previous = master;
        was = now;
        ++cycle;
        drive(read_done, write_done);
    }

private:
    static constexpr size_t MAX_BURSTS = 8;  // of each direction under way

    struct Burst {
        uint32_t address, beats;
        uint64_t due;  // cycle from which it may answer
        uint8_t response;
    };

    Memory &memory;
    Stalls stall;
    uint64_t cycle = 0;
    AxiSlave now{}, was{};  // driven now, and at the edge before
    AxiMaster previous{};   // seen at the edge before
    std::deque<Burst> reads, writes, responses;

    Burst burst(const AxiAddress &a, uint32_t latency) const { return {a.address, a.length + 1u, cycle + latency, 0}; }

    void write_beat(const AxiData &w) {
        Burst &front = writes.front();
        require(w.last == (front.beats == 1), "WLAST is not on the last beat");
        uint8_t *target = memory.at(front.address);
        if (!target) front.response = 3;
        for (int i = 0; target && i < 8; ++i)
            if (w.strobe >> i & 1) target[i] = static_cast<uint8_t>(w.data >> 8 * i);
        front.address += 8;
        if (--front.beats) return;
        front.due = cycle + write_latency;
        responses.push_back(front);
        writes.pop_front();
    }

    // The outputs until the next edge. A valid stays until its ready.
    void drive(bool read_done, bool write_done) {
        now.arready = reads.size() < MAX_BURSTS && !stall();
        now.awready = writes.size() + responses.size() < MAX_BURSTS && !stall();
        now.wready = !writes.empty() && !stall();
        if (!now.rvalid || read_done) {
            now.rvalid = !reads.empty() && reads.front().due <= cycle && !stall();
            if (now.rvalid) {
                const uint8_t *source = memory.at(reads.front().address);
                now.rdata = 0;
                if (source) std::memcpy(&now.rdata, source, 8);
                now.rresp = source ? 0 : 3;
                now.rlast = reads.front().beats == 1;
            }
        }
        if (!now.bvalid || write_done) {
            now.bvalid = !responses.empty() && responses.front().due <= cycle && !stall();
            if (now.bvalid) now.bresp = responses.front().response;
        }
    }

    void check(const AxiMaster &m) const {
        require(!previous.ar.valid || was.arready || m.ar == previous.ar, "AR changed before ARREADY");
        require(!previous.aw.valid || was.awready || m.aw == previous.aw, "AW changed before AWREADY");
        require(!previous.w.valid || was.wready || m.w == previous.w, "W changed before WREADY");
        check(m.ar, "AR");
        check(m.aw, "AW");
    }

    void check(const AxiAddress &a, const std::string &channel) const {
        if (!a.valid) return;
        require(a.size == 3 && a.burst == 1, channel + " is not an INCR burst of 8 bytes a beat");
        require(a.address % 8 == 0, channel + " address is not a multiple of 8");
        require(a.address % 4096 + (a.length + 1u) * 8 <= 4096, channel + " burst crosses 4 KB");
    }

    void require(bool holds, const std::string &rule) const {
        if (!holds) throw std::runtime_error("AXI protocol, cycle " + std::to_string(cycle) + ": " + rule);
    }
};
