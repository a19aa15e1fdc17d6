#include "multiply.h"

#include "numeric.h"

#include <stdatomic.h>

static int8_t requant(const linear *w, uint32_t row, int32_t sum) {
    int64_t scaled = (int64_t)(int32_t)((uint32_t)sum + (uint32_t)w->sum_bias[row]) * w->multiplier[row];
    int64_t value = (scaled + ((int64_t)1 << (w->shift - 1))) >> w->shift;  // >> of a negative number rounds down
    return (int8_t)((value < w->low ? w->low : value > w->high ? w->high : value) - w->offset);
}

static void dense(const product *p, uint32_t first, uint32_t last) {
    const linear *w = p->w;
    const float *weights = (const float *)w->matrix.weights;
    for (uint32_t row = first; row < last; row++)
        for (uint32_t t = 0; t < p->tokens; t++) {
            double y = dot_float(weights + (size_t)row * w->depth, p->x + (size_t)t * w->depth, w->depth);
            p->y[(size_t)t * w->rows + row] = w->bias ? y + (double)w->bias[row] : y;
        }
}

static int32_t packed(const product *p, uint32_t first, uint32_t last) {
    const linear *w = p->w;
    bool grouped = w->matrix.group_size;
    int32_t status = grouped ? wb_gemm_grouped(&w->matrix, p->q, p->tokens, first, last, (float *)p->sums)
                             : wb_gemm(&w->matrix, p->q, p->tokens, first, last, p->sums);
    if (status != WB_OK) return status;
    for (uint32_t t = 0; t < p->tokens; t++) {
        const int32_t *sums = p->sums + (size_t)t * w->rows;
        const float *reals = (const float *)sums;
        double *y = p->y + (size_t)t * w->rows;
        if (w->multiplier) {
            for (uint32_t row = first; row < last; row++) p->yq[t * p->yq_stride + row] = requant(w, row, sums[row]);
            continue;
        }
        if (grouped)
            for (uint32_t row = first; row < last; row++) y[row] = (double)reals[row] * p->scale[t];
        else
            for (uint32_t row = first; row < last; row++) y[row] = sums[row] * (double)w->scale[row] * p->scale[t];
        if (w->bias)
            for (uint32_t row = first; row < last; row++) y[row] += (double)w->bias[row];
    }
    return WB_OK;
}

// What is not divided among threads: rows, and the bytes of their weights.
static uint32_t unit_rows(const linear *w) { return w->bits ? wb_row_unit(w->bits) : 1; }
static uint64_t unit_bytes(const linear *w) { return (uint64_t)unit_rows(w) * w->depth * (w->bits ? w->bits : 32) / 8; }
static uint32_t units(const linear *w) { return (w->rows + unit_rows(w) - 1) / unit_rows(w); }

typedef struct {
    const wb_pool *pool;
    const product *products;
    uint32_t count, parts;
    uint64_t bytes;
    _Atomic int32_t status;
} work;

// The first row of a product that lies at byte `at` of all weights or behind it.
static uint32_t row_at(const product *p, uint64_t at) {
    if (at <= p->start) return 0;
    if (at >= p->start + p->bytes) return p->w->rows;
    uint64_t size = unit_bytes(p->w), row = (at - p->start + size - 1) / size * unit_rows(p->w);
    return row < p->w->rows ? (uint32_t)row : p->w->rows;
}

static void part(void *context, uint32_t index) {
    work *all = context;
    uint64_t start = wb_pool_start(all->pool, all->parts, index, all->bytes);
    uint64_t end = wb_pool_start(all->pool, all->parts, index + 1, all->bytes);
    for (const product *p = all->products; p < all->products + all->count && p->start < end; p++) {
        if (p->start + p->bytes <= start) continue;
        uint32_t first = row_at(p, start), last = row_at(p, end);
        int32_t status = WB_OK;
        if (first == last) continue;
        if (p->w->bits)
            status = packed(p, first, last);
        else
            dense(p, first, last);
        if (status != WB_OK) atomic_store(&all->status, status);
    }
}

int32_t wb_multiply(wb_pool *pool, product *products, uint32_t count, int32_t *scratch) {
    uint64_t bytes = 0;
    for (uint32_t i = 0; i < count; i++) {
        product *p = &products[i];
        p->sums = scratch;
        scratch += (size_t)p->tokens * p->w->rows;
        p->start = bytes;
        p->bytes = units(p->w) * unit_bytes(p->w);
        bytes += p->bytes;
    }
    work all = {pool, products, count, wb_pool_parts(pool, bytes), bytes, WB_OK};
    wb_pool_run(pool, part, &all, all.parts);
    int32_t status = atomic_load(&all.status);
    return status == WB_OK ? 0 : wb_fail("a kernel failed: %s", wb_message(status));
}
