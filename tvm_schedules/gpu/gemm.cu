// The products of a mixture's experts, each expert at a width of its own, with 2 to 64 tokens; see experts.h. Also:
//   TILES    tiles of 8 tokens that share one reading of the weights
//
// A lane copies the codes that it will need itself through its warp's ring in shared memory, spans of columns ahead, and
// multiplies them on tensor cores with float32 sums. Inputs and group scales take the same way: an ordinary load would
// wait for all copies that were asked for before it.
//
// Decoding: `packing.py` places a code in bits 0-7 of a 16-bit half. A bfloat16 with those bits alone is the number
// code * 2^-133, exactly, for the numbers below 2^-126 are evenly spaced and the first binade above them has the same
// step. So one AND decodes two weights. Inputs are multiplied by 2^80, so that products are ordinary float32 numbers;
// an input of 2^48 or more becomes infinite. Codes are stored with an offset that makes them positive: a fifth product,
// of ones, gives the sum of the inputs to take off.
#include "experts.h"

static_assert(THREADS % OUT == 0);
constexpr int TOKENS = 8 * TILES, SUMS = 2;  // SUMS: a lane's tokens of a tile
constexpr int STRIDE = ROWS + 4;             // of a token in the exchange between warps: no bank conflicts
constexpr float UNIT = 9007199254740992.0f;  // 2^53, of 2^133 / 2^80

// Copies eight inputs from this column on. Where depths are whole (WHOLE), every column is there.
DEVICE void copy_inputs(char *to, const unsigned short *row, int column, int depth) {
    if constexpr (WHOLE) {
        copy_async<16>(to, reinterpret_cast<const char *>(row + column));
    } else {
        unsigned words[4] = {};
        for (int i = 0; i < 8; ++i)
            if (column + i < depth) words[i / 2] |= unsigned(row[column + i]) << 16 * (i % 2);
        *reinterpret_cast<Quad *>(to) = {words[0], words[1], words[2], words[3]};
    }
}

// The scales of rows g, g + 8 .. of a row tile's group in shared memory
DEVICE void read_scales(const char *group, int g, float (&scale)[8]) {
    const Quad packed = *reinterpret_cast<const Quad *>(group + 16 * g);
    const unsigned *halves = &packed.x;
#pragma unroll
    for (int h = 0; h < 8; ++h) scale[h] = half_to_float(halves[h / 2] >> 16 * (h % 2));
}

// The factors of the rows of output `own` of a tile: UNIT, and where there is no group, the rows' scales
DEVICE Scales factors(const Arguments &a, const Slot &slot, int tile, int own) {
    Scales found = {{UNIT, UNIT}};
    for (int i = 0; !GROUP && i < (GATED ? 2 : 1); ++i) {
        const int out = tile * OUT + own, r = GATED ? 2 * out + i : out;
        if (r < a.rows) found.of[i] *= slot.row_scales[r];
    }
    return found;
}

// Moves the sums of a scale's columns into the totals [row / 8][token].
template <int BITS>
DEVICE void add(float (&sum)[4][4], float (&ones)[4], const float (&scale)[8], float (&total)[8][SUMS]) {
    constexpr float OFFSET = 1 << (BITS - 1);
#pragma unroll
    for (int h = 0; h < 8; ++h)
#pragma unroll
        for (int i = 0; i < SUMS; ++i) {
            float &part = sum[h / 2][2 * (h % 2) + i];
            total[h][i] += (part * place<BITS>(h) - OFFSET * ones[i]) * scale[h];
            part = 0;
        }
    for (int i = 0; i < 4; ++i) ones[i] = 0;
}

// This warp's share of the products of tiles blockIdx.x, + gridDim.x ..: for each finish(tile, begin(tile), products)
// with products [tile of tokens][row / 8][token]. slice: which of `slices` shares of the spans. row: a token's inputs.
// used: tiles of tokens that are not empty.
template <int BITS, typename Begin, typename Finish>
DEVICE void multiply(const Arguments &a, const Slot &slot, int slice, int slices,
                     const unsigned short *const (&row)[TILES], int used, char *ring, const Begin &begin,
                     const Finish &finish) {
    constexpr int SPAN = BITS <= 4 && TILES == 1 && GROUP % 64 == 0 ? 2 : 1;
    constexpr int BYTES = ROWS * COLUMNS * BITS / 8, FULL = BITS / 2;  // of a block; 16-byte copies of a lane
    constexpr int INPUTS = 2 * COLUMNS * TOKENS;                       // bytes of a block's inputs
    constexpr int SCALES = SPAN * (BYTES + INPUTS);                    // where a span's group scales begin in its stage
    constexpr int STAGE = SCALES + (GROUP ? 128 : 0), STAGES = RING / STAGE;
    static_assert(STAGES > 1);
    const int lane = threadIdx.x % 32, g = lane / 4, q = lane % 4;
    const int blocks = (a.depth + COLUMNS - 1) / COLUMNS, spans = (blocks + SPAN - 1) / SPAN;
    const int groups = GROUP ? (a.depth + GROUP - 1) / GROUP : 1;
    const int mine = slice < spans ? (spans - slice + slices - 1) / slices : 0;
    const int tiles = (a.rows + ROWS - 1) / ROWS;

    // Copies run STAGES - 1 spans ahead, into the next tile where one ends.
    const long long span_step = (long long)slices * SPAN * BYTES;
    const long long tile_step = (long long)gridDim.x * blocks * BYTES - (mine - 1) * span_step;
    const char *from =
        reinterpret_cast<const char *>(slot.words) + ((long long)blockIdx.x * blocks + slice * SPAN) * BYTES;
    int to_fetch = mine * ((tiles - int(blockIdx.x) + int(gridDim.x) - 1) / int(gridDim.x)), fetched = 0;
    const char *const end = ring + STAGES * STAGE, *at = ring;
    char *to = ring;
    int fetch_tile = blockIdx.x;
    const auto fetch_weights = [&](int span, char *stage) {
#pragma unroll
        for (int j = 0; j < SPAN; ++j) {
            if (!WHOLE && (slice + span * slices) * SPAN + j >= blocks) break;
#pragma unroll
            for (int c = 0; c < FULL; ++c)
                copy_async<16>(stage + j * BYTES + 512 * c + 16 * lane, from + j * BYTES + 512 * c + 16 * lane);
            if constexpr (BITS % 2)
                copy_async<8>(stage + j * BYTES + 512 * FULL + 8 * lane, from + j * BYTES + 512 * FULL + 8 * lane);
        }
        if constexpr (GROUP) {
            const int group = (slice + span * slices) * SPAN * COLUMNS / GROUP;
            const unsigned short *own = scales_of(slot.group_scales, fetch_tile, groups, group) + 8 * g;
            if (q == 0) copy_async<16>(stage + SCALES + 16 * g, reinterpret_cast<const char *>(own));
        }
        fetch_tile += span + 1 == mine ? gridDim.x : 0;
        from += span + 1 == mine ? tile_step : span_step;
    };
    const auto fetch_inputs = [&](int span, char *stage) {
#pragma unroll
        for (int j = 0; j < SPAN; ++j)
#pragma unroll
            for (int n = 0; n < TILES; ++n)
                if (n < used)
                    copy_inputs(stage + SPAN * BYTES + j * INPUTS + 512 * n + 16 * lane, row[n],
                                ((slice + span * slices) * SPAN + j) * COLUMNS + 8 * q, a.depth);
    };
    const auto after = [&](int span) { return span + 1 == mine ? 0 : span + 1; };

    int early = 0;
    for (int k = 0; k < STAGES - 1 && k < to_fetch; ++k, early = after(early)) fetch_weights(early, ring + k * STAGE);
    wait_for_launch_before();  // the weights and the plan were there before; the inputs may not be
    for (int k = 0; k < STAGES - 1; ++k, to += STAGE) {
        if (to_fetch > 0) {
            fetch_inputs(fetched, to);
            fetched = after(fetched);
            --to_fetch;
        }
        copies_end();
    }
    for (int tile = blockIdx.x; tile < tiles; tile += gridDim.x) {
        float total[TILES][8][SUMS] = {}, sum[TILES][4][4] = {}, ones[TILES][4] = {};
        const Scales scale_of_rows = begin(tile);
#pragma unroll 1
        for (int s = 0; s < mine; ++s) {
            if (to_fetch > 0) {
                fetch_weights(fetched, to);
                fetch_inputs(fetched, to);
                fetched = after(fetched);
                --to_fetch;
            }
            copies_end();
            to = to + STAGE == end ? ring : to + STAGE;
            copies_wait<STAGES - 1>();
            __syncwarp();
#pragma unroll
            for (int j = 0; j < SPAN; ++j) {
                unsigned w[2 * BITS], x[TILES][4];
                read_words<BITS>(at + j * BYTES, lane, w);
#pragma unroll
                for (int n = 0; n < TILES; ++n)
                    if (n < used) {
                        const char *own = at + SPAN * BYTES + j * INPUTS + 512 * n + 16 * lane;
                        const Quad found = *reinterpret_cast<const Quad *>(own);
                        x[n][0] = enlarge(found.x), x[n][1] = enlarge(found.y);
                        x[n][2] = enlarge(found.z), x[n][3] = enlarge(found.w);
                    }
#pragma unroll
                for (int step = 0; step < 2; ++step) {
                    unsigned low[8], high[8], upper[BITS];
                    decode<BITS, 0x00010001>(w + step * BITS, low);
#pragma unroll
                    for (int i = 0; i < BITS; ++i) upper[i] = w[step * BITS + i] >> 8;
                    decode<BITS, 0x00010001>(upper, high);
#pragma unroll
                    for (int n = 0; n < TILES; ++n) {
                        if (n >= used) break;
                        const unsigned lower_x = x[n][2 * step], upper_x = x[n][2 * step + 1];
#pragma unroll
                        for (int m = 0; m < 4; ++m)
                            multiply_tile(sum[n][m], low[2 * m], low[2 * m + 1], high[2 * m], high[2 * m + 1], lower_x,
                                          upper_x);
                        multiply_tile(ones[n], 0x00010001, 0x00010001, 0x00010001, 0x00010001, lower_x, upper_x);
                    }
                }
            }
            if constexpr (GROUP) {
                float scale[8];
                read_scales(at + SCALES, g, scale);
#pragma unroll
                for (int n = 0; n < TILES; ++n) add<BITS>(sum[n], ones[n], scale, total[n]);
            }
            at = at + STAGE == end ? ring : at + STAGE;
        }
        if constexpr (!GROUP) {
            constexpr float SCALE[8] = {1, 1, 1, 1, 1, 1, 1, 1};
#pragma unroll
            for (int n = 0; n < TILES; ++n) add<BITS>(sum[n], ones[n], SCALE, total[n]);
        }
        finish(tile, scale_of_rows, total);
    }
    copies_wait<0>();
}

// The last block that reports a row tile adds all its parts, in one order whoever is last.
DEVICE void report(const Arguments &a, int tile, int *is_last) {
    __threadfence();
    __syncthreads();
    if (threadIdx.x == 0) *is_last = atomicAdd(a.arrived + tile, 1) == int(gridDim.y) * SPLITS - 1;
    __syncthreads();
    if (!*is_last) return;
    __threadfence();
    add_parts<THREADS>(a, tile, threadIdx.x);
}

// Grid: (blocks that share the row tiles, slots, SPLITS).
KERNEL(gemm)(const Arguments a) {
    DYNAMIC_SHARED(rings, SHARED)
    alignas(8) __shared__ float sums[2][8][WARPS][STRIDE];  // two, in turns: one barrier a tile is enough
    __shared__ int pairs[TOKENS];
    __shared__ float weights[TOKENS];
    __shared__ int is_last;
    const int warp = threadIdx.x / 32, lane = threadIdx.x % 32, g = lane / 4, q = lane % 4;
    const int slot_index = blockIdx.y, split = blockIdx.z, tiles = (a.rows + ROWS - 1) / ROWS;

    // Down reads the plan, which was made two launches ago, and its first weights while up still runs.
    if constexpr (!DOWN) wait_for_launch_before();
    let_next_launch_start();
    const Slot slot = slot_of(a, slot_index);
    int turn = 0;
    for (int t0 = 0; t0 < a.tokens; t0 += TOKENS) {
        if (threadIdx.x < TOKENS) {
            const int t = t0 + threadIdx.x;
            const int pair = t < a.tokens ? load_shared_by_all(a.slot_pairs + slot_index * a.tokens + t) : -1;
            pairs[threadIdx.x] = pair;
            if constexpr (DOWN) weights[threadIdx.x] = pair < 0 ? 0.0f : load_shared_by_all(a.weight + pair);
        }
        __syncthreads();
        if (slot.bits == 0 || pairs[0] < 0) break;
        const bool is_end = t0 + TOKENS >= a.tokens;
        const unsigned short *row[TILES];
        int used = 0;
#pragma unroll
        for (int n = 0; n < TILES; ++n) {  // where there is no token, another's inputs give products that no one reads
            const int pair = pairs[8 * n + g];
            row[n] = a.inputs + (pair < 0 ? 0 : (long long)(DOWN ? pair : pair / TOP_K) * a.depth);
            used += pairs[8 * n] >= 0;
        }
        const auto begin = [&](int tile) { return factors(a, slot, tile, threadIdx.x % OUT); };
        const auto finish = [&](int tile, const Scales &scale, const float(&total)[TILES][8][SUMS]) {
#pragma unroll
            for (int n = 0; n < TILES; ++n) {
                if (n >= used) break;
                turn ^= 1;
#pragma unroll
                for (int h = 0; h < 8; ++h)
#pragma unroll
                    for (int i = 0; i < SUMS; ++i) sums[turn][2 * q + i][warp][8 * h + g] = total[n][h][i];
                __syncthreads();
                for (int token = threadIdx.x / OUT; token < 8; token += THREADS / OUT) {
                    const int pair = pairs[8 * n + token];
                    if (pair >= 0)
                        put<WARPS>(a, &sums[turn][token][0][0], STRIDE, scale, tile, threadIdx.x % OUT, split, pair,
                                   weights[8 * n + token]);
                }
            }
            if constexpr (PARTS > 1)
                if (is_end) report(a, tile, &is_last);
        };
        const int slice = split * WARPS + warp;
#define AT_WIDTH(b)                  \
    if constexpr ((WIDTHS >> b) & 1) \
        if (slot.bits == b)          \
            multiply<b>(a, slot, slice, SPLITS * WARPS, row, used, rings + warp * RING, begin, finish);
        AT_WIDTH(2)
        AT_WIDTH(3)
        AT_WIDTH(4)
        AT_WIDTH(6)
        AT_WIDTH(8)
        if (is_end) return;
        __syncthreads();  // pairs may be overwritten
    }
    wait_for_launch_before();
    for (int tile = blockIdx.x; PARTS > 1 && tile < tiles; tile += gridDim.x)  // no more tokens: nothing new
        report(a, tile, &is_last);
}
