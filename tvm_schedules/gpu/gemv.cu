// The products of a mixture's experts, each expert at a width of its own, with one token; see experts.h.
//
// Each warp owns a range of columns. It turns its inputs into integers of 30 bits, with one power of two for all of
// them, and these into four planes of signed bytes. A code in its place in a byte is an unsigned byte as it stands, so
// one AND decodes four weights (the last of a byte needs none, see `add`), and tensor cores multiply them with the four
// planes, exactly. Inputs below 2^-22 of a range's greatest lose bits; a number that is not finite makes the sums NaN.
// Codes are stored with an offset that makes them positive; the sum of the inputs takes it off.
//
// Weights come by bulk copies into the warp's ring in shared memory, a stage at a time, across tiles. The block's last
// warp adds what the others found and writes it, while these go on.
#include "experts.h"

constexpr int WORKERS = WARPS - 1, SLICES = SPLITS * WORKERS;
constexpr int GROUP_BLOCKS = GROUP ? GROUP / COLUMNS : 8;  // of columns; 8 limits no stage
constexpr int STAGES_MAX = 32;                             // of a warp's ring
constexpr int PLANES = 4 * COLUMNS;                        // bytes of a block of columns' inputs
constexpr int OWN = 4;                                     // of a lane's 8 rows, those whose sums it makes numbers
static_assert(!SPREAD || TOP_K <= 32);                     // a lane a slot

// Blocks of columns in a stage: 2 to 4 kB, and of one group
DEVICE constexpr int span(int bits) {
    int most = bits == 2 ? 8 : bits <= 4 ? 4 : 2;
    while (GROUP_BLOCKS % most) most /= 2;
    return most;
}
DEVICE constexpr int stage_bytes(int bits) { return span(bits) * ROWS * COLUMNS * bits / 8 + (GROUP ? 128 : 0); }

// Fixed-point inputs of a warp's range of columns
struct Inputs {
    char *planes;  // [block][q][plane][8 columns]
    float *sums;   // [block], of the integers
    float unit;    // what an integer 1 is worth
    float sum;
};

DEVICE Quad load_inputs(const unsigned short *row, int column, int depth) {
    if constexpr (WHOLE) return load_shared_by_all(reinterpret_cast<const Quad *>(row + column));
    unsigned words[4] = {};
    for (int i = 0; i < 8; ++i)
        if (column + i < depth) words[i / 2] |= unsigned(load_shared_by_all(row + column + i)) << 16 * (i % 2);
    return {words[0], words[1], words[2], words[3]};
}

// Loads columns 32 first .. 32 last - 1 of a row to where their planes will be. Returns the bits of the greatest size.
DEVICE unsigned gather(const unsigned short *row, int first, int last, int depth, int lane, char *planes) {
    unsigned most = 0;
#pragma unroll 4
    for (int i = lane; i < 4 * (last - first); i += 32) {
        const Quad found = load_inputs(row, 32 * first + 8 * i, depth);
        *reinterpret_cast<Quad *>(planes + 32 * i) = found;
        const unsigned words[4] = {found.x, found.y, found.z, found.w};
        for (unsigned word : words) most = max_of(most, max_of(word << 16 & 0x7FFF0000, word & 0x7FFF0000));
    }
    return max_of_lanes(most);
}

// Columns 32 first .. 32 last - 1 of a row as planes. meanwhile(): once they have come.
template <typename Meanwhile>
DEVICE void quantize(const unsigned short *row, int first, int last, int depth, int lane, Inputs &to,
                     const Meanwhile &meanwhile) {
    const unsigned most = gather(row, first, last, depth, lane, to.planes);
    meanwhile();
    const int count = 4 * (last - first);  // of eight columns
    const int exponent = most < 30u << 23 ? 30 : int(most >> 23);
    const float enlarge = bits_to_float(unsigned(283 - exponent) << 23);  // to less than 2^30
    to.unit = bits_to_float(exponent == 255 ? 0x7FC00000 : unsigned(exponent - 29) << 23);
    to.sum = 0;
#pragma unroll 1
    for (int i = lane; i - lane < count; i += 32) {
        float sum = 0;
        if (i < count) {
            Quad *own = reinterpret_cast<Quad *>(to.planes + 32 * i);
            const Quad found = *own;
            const unsigned words[4] = {found.x, found.y, found.z, found.w};
            unsigned planes[4][2] = {};
            for (int j = 0; j < 8; ++j) {
                const float scaled = bits_to_float(j % 2 ? words[j / 2] & 0xFFFF0000 : words[j / 2] << 16) * enlarge;
                sum += scaled;
                const unsigned digits = (unsigned(to_int(scaled)) + 0x00808080) ^ 0x00808080;  // signed bytes
                const int byte = j % 4 == 1 || j % 4 == 2 ? 3 - j % 4 : j % 4;                 // columns 0, 2, 1, 3
                for (int p = 0; p < 4; ++p) planes[p][j / 4] |= (digits >> 8 * p & 0xFF) << 8 * byte;
            }
            own[0] = {planes[0][0], planes[0][1], planes[1][0], planes[1][1]};
            own[1] = {planes[2][0], planes[2][1], planes[3][0], planes[3][1]};
        }
        to.sum += sum;
        if constexpr (GROUP) {
            sum += exchange(sum, 1);
            sum += exchange(sum, 2);
            if (lane % 4 == 0 && i < count) to.sums[i / 4] = sum;
        }
    }
    for (int other = 16; other; other /= 2) to.sum += exchange(to.sum, other);
    __syncwarp();
}

// The codes of a byte that the last of them is multiplied with together, for nothing masks the others out
template <int BITS>
DEVICE constexpr int together() {
    return 8 % BITS ? 1 : 8 / BITS;
}

// The rows' scales of output `own` of a tile: loads that nothing here waits for
DEVICE Scales row_scales(const Arguments &a, const Slot &slot, int tile, int own) {
    Scales found = {{1, 1}};
    for (int i = 0; !GROUP && i < (GATED ? 2 : 1); ++i) {
        const int out = tile * OUT + own, r = GATED ? 2 * out + i : out;
        found.of[i] = slot.row_scales[r < a.rows ? r : a.rows - 1];
    }
    return found;
}

// The scales of a lane's own rows, of g, g + 8 .. or where `upper` of g + 32, g + 40 .., of a row tile's group
DEVICE void read_scales(const char *group, int g, bool upper, float (&scale)[OWN]) {
    const Pair packed = *reinterpret_cast<const Pair *>(group + 16 * g + 8 * upper);
    const unsigned halves[2] = {packed.x, packed.y};
    for (int h = 0; h < OWN; ++h) scale[h] = half_to_float(halves[h / 2] >> 16 * (h % 2));
}

// What an integer 1 of the lower plane is worth in each of a lane's own rows
template <int BITS>
DEVICE void worths(float worth, bool upper, float (&each)[OWN]) {
#pragma unroll
    for (int h = 0; h < OWN; ++h) each[h] = worth * (upper ? place<BITS>(h + OWN) : place<BITS>(h));
}

// Adds the sums of two planes that a lane holds, as what they are worth, and takes the codes' offset off. upper: the
// lane's own rows are the last four of the eight.
template <int BITS>
DEVICE void add(int (&sum)[4][4], const float (&worth)[OWN], float offset, const float (&scale)[OWN], bool upper,
                float (&total)[OWN]) {
    constexpr int SHARE = together<BITS>();
    constexpr bool ONE = GROUP && GROUP <= 256;  // both planes' sums fit one integer: 256 codes of 255 times 2^15
    int own[OWN][2];
#pragma unroll
    for (int h = 0; h < OWN; ++h)
        for (int i = 0; i < 2; ++i)
            own[h][i] = upper ? sum[(h + OWN) / 2][2 * (h % 2) + i] : sum[h / 2][2 * (h % 2) + i];
    for (int m = 0; m < 4; ++m)
        for (int i = 0; i < 4; ++i) sum[m][i] = 0;
    if constexpr (ONE) {
#pragma unroll
        for (int h = 0; h < OWN; ++h) own[h][0] += own[h][1] << 8;
    }
#pragma unroll
    for (int h = SHARE - 1; h < OWN; h += SHARE)
        for (int other = h - SHARE + 1; other < h; ++other)
            for (int i = 0; i < (ONE ? 1 : 2); ++i) own[h][i] -= own[other][i];
#pragma unroll
    for (int h = 0; h < OWN; ++h) {
        const float value = float(own[h][0]) * worth[h] - offset;
        total[h] += (ONE ? value : float(own[h][1]) * (worth[h] * 256) + value) * scale[h];
    }
}

// This warp's share of the products of tiles first_tile, + step ..: for each finish(products) with products [row / 8]
// of two planes a lane. first, last: its blocks of columns. inputs: where they are, or for down shall be.
template <int BITS, typename Finish>
DEVICE void multiply(const Arguments &a, const Slot &slot, int first_tile, int step, int first, int last, int pair,
                     Inputs &inputs, char *ring, Barrier *full, const Finish &finish) {
    constexpr int BYTES = ROWS * COLUMNS * BITS / 8, SPAN = span(BITS), STAGE = stage_bytes(BITS);
    constexpr int STAGES = RING / STAGE;
    static_assert(1 < STAGES && STAGES <= STAGES_MAX);
    constexpr float OFFSET = 1 << (BITS - 1);
    const int lane = threadIdx.x % 32, g = lane / 4, q = lane % 4;
    const int blocks = (a.depth + COLUMNS - 1) / COLUMNS, groups = GROUP ? (a.depth + GROUP - 1) / GROUP : 1;
    const int tiles = (a.rows + ROWS - 1) / ROWS;

    int fetch_tile = first_tile, fetch_block = first;
    const char *tile_words = reinterpret_cast<const char *>(slot.words) + (long long)fetch_tile * blocks * BYTES;
    const auto fetch = [&](int stage) {
        if (first >= last || fetch_tile >= tiles) return;
        const int size = (last - fetch_block < SPAN ? last - fetch_block : SPAN) * BYTES;
        if (is_one_of_warp()) {
            char *to = ring + stage * STAGE;
            expect(full + stage, size + (GROUP ? 128 : 0));
            copy_bulk(to, tile_words + (long long)fetch_block * BYTES, size, full + stage);
            if constexpr (GROUP) {
                const unsigned short *own = scales_of(slot.group_scales, fetch_tile, groups, fetch_block / GROUP_BLOCKS);
                copy_bulk(to + SPAN * BYTES, own, 128, full + stage);
            }
        }
        fetch_block += SPAN;
        if (fetch_block >= last) {
            fetch_block = first;
            fetch_tile += step;
            tile_words += (long long)step * blocks * BYTES;
        }
    };
    constexpr int BEFORE = DOWN && EARLY < STAGES ? EARLY : STAGES;
#pragma unroll 1
    for (int stage = 0; stage < BEFORE; ++stage) fetch(stage);
    if constexpr (DOWN) {
        wait_for_launch_before();
        quantize(a.inputs + (long long)pair * a.depth, first, last, a.depth, lane, inputs, [&] {
#pragma unroll 1
            for (int stage = BEFORE; stage < STAGES; ++stage) fetch(stage);
        });
    }
    const bool upper = q > 1;
    const float offset = q % 2 ? 0 : OFFSET * inputs.unit;
    float worth[OWN];
    worths<BITS>(q % 2 ? 65536 * inputs.unit : inputs.unit, upper, worth);

    int stage = 0, phase = 0;
    for (int tile = first_tile; tile < tiles; tile += step) {
        float total[OWN] = {};
        int sum[4][4] = {};
        for (int block = first; block < last; block += SPAN) {
            wait_for(full + stage, phase);
            const char *at = ring + stage * STAGE, *planes = inputs.planes + (block - first) * PLANES;
            const int end = last - block < SPAN ? last - block : SPAN;
            const auto multiply_block = [&](int j) {
                unsigned w[2 * BITS], low[8], high[8];
                read_words<BITS>(at + j * BYTES, lane, w);
                const Pair x = *reinterpret_cast<const Pair *>(planes + j * PLANES + 32 * q + 8 * (g % 4));
                decode<BITS, 0x01010101>(w, low);
                decode<BITS, 0x01010101>(w + BITS, high);
                constexpr int SHARE = together<BITS>();  // (no `if constexpr` without braces here: NVRTC 13.0 drops a loop)
                for (int i = SHARE - 1; SHARE > 1 && i < 8; i += SHARE)
                    low[i] = w[i / SHARE], high[i] = w[BITS + i / SHARE];
#pragma unroll
                for (int m = 0; m < 4; ++m)
                    multiply_bytes(sum[m], low[2 * m], low[2 * m + 1], high[2 * m], high[2 * m + 1], x.x, x.y);
            };
            if (end == SPAN) {
#pragma unroll
                for (int j = 0; j < SPAN; ++j) multiply_block(j);
            } else {
#pragma unroll 1
                for (int j = 0; j < end; ++j) multiply_block(j);
            }
            if constexpr (GROUP) {
                float scale[OWN], ones = 0;
                read_scales(at + SPAN * BYTES, g, upper, scale);
#pragma unroll
                for (int j = 0; j < SPAN; ++j)
                    if (j < end) ones += inputs.sums[block - first + j];
                add<BITS>(sum, worth, offset * ones, scale, upper, total);
            }
            __syncwarp();
            fetch(stage);
            phase ^= stage + 1 == STAGES;
            stage = stage + 1 == STAGES ? 0 : stage + 1;
        }
        if constexpr (!GROUP) {
            float scale[OWN];
            for (float &one : scale) one = 1;
            add<BITS>(sum, worth, offset * inputs.sum, scale, upper, total);
        }
        finish(total);
    }
}

// Where the blocks of a launch are dealt to the slots by their widths (SPREAD): this block's slot, its number among the
// slot's blocks and how many these are. The longest block is as short as can be. lane s < TOP_K gives slot s's bits.
struct Deal {
    int slot, index, count;
};
DEVICE Deal deal(int bits, int tiles, int lane) {
    int widths[TOP_K], all = 0;
    for (int s = 0; s < TOP_K; ++s) all += widths[s] = given_by(bits, s);
    int most = tiles * all / int(gridDim.x);  // bits a block, at least
    unsigned good = 0;
    const auto blocks_of = [&](int s, int limit) {
        const int each = limit / widths[s];  // tiles a block
        return each ? (tiles + each - 1) / each : 1 << 20;
    };
    for (; !good; most += 32) {
        int needed = 0;
        for (int s = 0; s < TOP_K; ++s) needed += blocks_of(s, most + lane);
        good = lanes_where(needed <= int(gridDim.x));
    }
    most += first_of(good) - 32;
    int begin = 0;
    Deal found = {-1, 0, 1};
    for (int s = 0; s < TOP_K; ++s) {
        const int count = blocks_of(s, most);
        if (int(blockIdx.x) >= begin && int(blockIdx.x) < begin + count) found = {s, int(blockIdx.x) - begin, count};
        begin += count;
    }
    return found;
}

// The last block that reports a row tile adds all its parts, in one order whoever is last. A warp reports all the row
// tiles of its block together.
DEVICE void report(const Arguments &a, int first, int step, int tiles, int lane) {
    __threadfence();
    __syncwarp();
    for (; first < tiles; first += 32 * step) {
        const int own = first + lane * step;
        unsigned last = lanes_where(own < tiles && atomicAdd(a.arrived + own, 1) == TOP_K * SPLITS - 1);
        if (last) __threadfence();
        for (; last; last &= last - 1) add_parts<32>(a, first + first_of(last) * step, lane);
    }
}

// Grid: (blocks that share the row tiles, slots, SPLITS); where SPREAD, (blocks that share all slots, 1, SPLITS).
KERNEL(gemv)(const Arguments a) {
    DYNAMIC_SHARED(shared, SHARED)  // rings, then the inputs' planes and sums
    alignas(16) __shared__ float sums[2][WORKERS][ROWS];  // two, in turns
    __shared__ Barrier full[WORKERS][STAGES_MAX];
    const int warp = same_in_warp(threadIdx.x / 32), lane = threadIdx.x % 32, g = lane / 4, q = lane % 4;
    const int split = blockIdx.z, tiles = (a.rows + ROWS - 1) / ROWS;
    if (warp < WORKERS) begin_barrier(&full[warp][lane]);
    barriers_begun();
    __syncwarp();

    // Each worker takes whole units of columns.
    const int unit = GROUP ? span(2) : 1, units = (a.depth + unit * COLUMNS - 1) / (unit * COLUMNS);
    const int blocks = (a.depth + COLUMNS - 1) / COLUMNS;
    const auto begin_of = [&](int worker) {
        const int block = int((long long)units * (split * WORKERS + worker) / SLICES) * unit;
        return block < blocks ? block : blocks;
    };
    const int first = begin_of(warp), last = begin_of(warp + 1), before = first - begin_of(0);
    Inputs inputs;
    inputs.planes = shared + WORKERS * RING + before * PLANES;
    inputs.sums = reinterpret_cast<float *>(shared + WORKERS * RING + (begin_of(WORKERS) - begin_of(0)) * PLANES) + before;

    // Up reads its inputs while the plan is being made. Down reads the plan and its first weights while up still runs.
    // What was written two launches ago is there.
    if constexpr (!DOWN) {
        if (warp < WORKERS) quantize(a.inputs, first, last, a.depth, lane, inputs, [] {});
        wait_for_launch_before();
    }
    let_next_launch_start();
    Slot slot;
    int pair, first_tile, step;
    if constexpr (SPREAD) {
        const int s = lane < TOP_K ? lane : 0;
        const long long *own = a.slots + 3 * s;
        const int bits = int(load_shared_by_all(own)), its_pair = load_shared_by_all(a.slot_pairs + s);
        const long long first_word = load_shared_by_all(own + 1), first_scale = load_shared_by_all(own + 2);
        const Deal dealt = deal(bits, tiles, lane);
        if (dealt.slot < 0) return;
        slot = slot_at(a, given_by(bits, dealt.slot), given_by(first_word, dealt.slot), given_by(first_scale, dealt.slot));
        pair = given_by(its_pair, dealt.slot), first_tile = dealt.index, step = dealt.count;
    } else {
        slot = slot_of(a, blockIdx.y);
        pair = load_shared_by_all(a.slot_pairs + blockIdx.y);
        // Slots begin with different blocks, for those with a tile more than others may share a multiprocessor.
        first_tile = (blockIdx.x + blockIdx.y * (tiles % gridDim.x)) % gridDim.x, step = gridDim.x;
    }
    if (warp == WORKERS) {
        const float weight = DOWN ? load_shared_by_all(a.weight + pair) : 0;
        Scales next[OUT / 32];
        for (int i = 0; i < OUT / 32; ++i) next[i] = row_scales(a, slot, first_tile, lane + 32 * i);
        if constexpr (DOWN) wait_for_launch_before();
        int turn = 0;
        for (int tile = first_tile; tile < tiles; tile += step, turn ^= 1) {
            Scales scales[OUT / 32];
            for (int i = 0; i < OUT / 32; ++i) scales[i] = next[i];
            if (tile + step < tiles)
                for (int i = 0; i < OUT / 32; ++i) next[i] = row_scales(a, slot, tile + step, lane + 32 * i);
            wait_at(1 + turn, THREADS);
            for (int i = 0; i < OUT / 32; ++i)
                put<WORKERS>(a, &sums[turn][0][0], ROWS, scales[i], tile, lane + 32 * i, split, pair, weight);
            if (tile + 2 * step < tiles) arrive_at(3 + turn, THREADS);
        }
        if constexpr (PARTS > 1) report(a, first_tile, step, tiles, lane);
        return;
    }
    int done = 0;
    const auto finish = [&](float(&total)[OWN]) {
        const int turn = done % 2;
#pragma unroll
        for (int h = 0; h < OWN; ++h) total[h] += exchange(total[h], 1);
        if (done++ > 1) wait_at(3 + turn, THREADS);  // the sums before were added
        if (q % 2 == 0)
#pragma unroll
            for (int h = 0; h < OWN; ++h) sums[turn][warp][8 * (h + 2 * q) + g] = total[h];
        arrive_at(1 + turn, THREADS);
    };
#define AT_WIDTH(b)                  \
    if constexpr ((WIDTHS >> b) & 1) \
        if (slot.bits == b)          \
            multiply<b>(a, slot, first_tile, step, first, last, pair, inputs, shared + warp * RING, full[warp], finish);
    AT_WIDTH(2)
    AT_WIDTH(3)
    AT_WIDTH(4)
    AT_WIDTH(6)
    AT_WIDTH(8)
}
