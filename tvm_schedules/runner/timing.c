// See timing.h.
#define _GNU_SOURCE
#include "timing.h"

#include <string.h>
#include <time.h>

enum { PAGE = 4096 };

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
    uint32_t parts;
} reading;

static void read_part(void *context, uint32_t part) {
    const reading *r = context;
    const words *from = (const words *)(r->data + wb_pool_start(r->pool, r->parts, part, r->pages) * PAGE);
    const words *end = (const words *)(r->data + wb_pool_start(r->pool, r->parts, part + 1, r->pages) * PAGE);
    words sums[4] = {0};
    for (; from < end; from += 4)
        for (int i = 0; i < 4; i++) sums[i] ^= from[i];
    sums[0] ^= sums[1] ^ sums[2] ^ sums[3];
    __asm__ volatile("" : : "m"(sums[0]));  // the sums are wanted
}

void wb_time_read(wb_pool *pool, const uint8_t *const *data, size_t bytes, uint32_t calls, double *seconds) {
    for (uint32_t i = 0; i < calls; i++) {
        reading r = {pool, data[i], bytes / PAGE, wb_pool_parts(pool, bytes)};
        double start = now();
        wb_pool_run(pool, read_part, &r, r.parts);
        seconds[i] = now() - start;
    }
}
