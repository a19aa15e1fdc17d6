// See timing.h.
#define _GNU_SOURCE
#include "timing.h"

#include <stdbool.h>
#include <time.h>

enum { PAGE = 4096, UNROLLED = 4 };

typedef uint64_t words __attribute__((vector_size(WB_VECTOR_BYTES)));

static double now(void) {
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return (double)t.tv_sec + 1e-9 * (double)t.tv_nsec;
}

void wb_time_gemm(wb_pool *pool, const wb_matrix *matrices, uint32_t count, const int8_t *x, uint32_t tokens, void *y,
                  uint32_t calls, double *seconds) {
    for (uint32_t i = 0; i < calls; i++) {
        const wb_matrix *matrix = &matrices[i % count];
        double start = now();
        int32_t status = matrix->group_size ? wb_pool_gemm_grouped(pool, matrix, x, tokens, y)
                                            : wb_pool_gemm(pool, matrix, x, tokens, y);
        seconds[i] = status == WB_OK ? now() - start : -1;
    }
}

typedef struct {
    const wb_pool *pool;
    const uint8_t *data;
    size_t pages;
    uint32_t streams, parts;
    bool equal;
} reading;

// Each stream takes as much of [from, end); what is left is read after them. Inlined, so that `streams` is a constant.
static inline __attribute__((always_inline)) void read_streams(const words *from, const words *end, uint32_t streams) {
    size_t each = (size_t)(end - from) / streams / UNROLLED * UNROLLED;
    words sums[UNROLLED] = {0};
    for (size_t k = 0; k < each; k += UNROLLED)
        for (uint32_t s = 0; s < streams; s++)
            for (int i = 0; i < UNROLLED; i++) sums[i] ^= from[s * each + k + i];
    for (from += streams * each; from < end; from += UNROLLED)
        for (int i = 0; i < UNROLLED; i++) sums[i] ^= from[i];
    for (int i = 1; i < UNROLLED; i++) sums[0] ^= sums[i];
    __asm__ volatile("" : : "m"(sums[0]));  // the sums are wanted
}

static const words *begin(const reading *r, uint32_t part) {
    size_t page = r->equal ? r->pages * part / r->parts : wb_pool_start(r->pool, r->parts, part, r->pages);
    return (const words *)(r->data + page * PAGE);
}

static void read_part(void *context, uint32_t part) {
    const reading *r = context;
    const words *from = begin(r, part), *end = begin(r, part + 1);
    if (r->streams == 4)
        read_streams(from, end, 4);
    else if (r->streams == 2)
        read_streams(from, end, 2);
    else
        read_streams(from, end, 1);
}

void wb_time_read(wb_pool *pool, const uint8_t *const *data, size_t bytes, uint32_t streams, uint32_t parts,
                  uint32_t calls, double *seconds) {
    for (uint32_t i = 0; i < calls; i++) {
        reading r = {pool, data[i], bytes / PAGE, streams, parts ? parts : wb_pool_parts(pool, bytes), parts > 0};
        double start = now();
        wb_pool_run(pool, read_part, &r, r.parts);
        seconds[i] = now() - start;
    }
}
