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

static uint64_t weight_bytes(const linear *w) { return (uint64_t)w->rows * w->depth * (w->bits ? w->bits : 32) / 8; }

// Rows of a part of about so many bytes: whole units of the kernels.
static uint32_t part_rows(const linear *w, uint64_t part_bytes) {
    uint32_t unit = w->bits ? wb_row_unit(w->bits) : 1;
    uint64_t units = part_bytes * w->rows / (weight_bytes(w) + 1) / unit;
    return units > w->rows ? w->rows : units ? (uint32_t)units * unit : unit;
}

typedef struct { const product *products; _Atomic int32_t status; } work;

static void part(void *context, uint32_t index) {
    work *all = context;
    const product *p = all->products;
    for (; index >= p->parts; p++) index -= p->parts;
    uint32_t first = index * p->part_rows, last = first + p->part_rows;
    if (last > p->w->rows) last = p->w->rows;
    if (!p->w->bits) {
        dense(p, first, last);
        return;
    }
    int32_t status = packed(p, first, last);
    if (status != WB_OK) atomic_store(&all->status, status);
}

int32_t wb_multiply(wb_pool *pool, product *products, uint32_t count, int32_t *scratch) {
    uint64_t bytes = 0;
    uint32_t total = 0;
    for (uint32_t i = 0; i < count; i++) bytes += weight_bytes(products[i].w);
    for (uint32_t i = 0; i < count; i++) {
        product *p = &products[i];
        p->sums = scratch;
        scratch += (size_t)p->tokens * p->w->rows;
        p->part_rows = part_rows(p->w, bytes / wb_pool_parts(pool, bytes) + 1);
        p->parts = (p->w->rows + p->part_rows - 1) / p->part_rows;
        total += p->parts;
    }
    work all = {products, WB_OK};
    wb_pool_run(pool, part, &all, total);
    int32_t status = atomic_load(&all.status);
    return status == WB_OK ? 0 : wb_fail("a kernel failed: %s", wb_message(status));
}
