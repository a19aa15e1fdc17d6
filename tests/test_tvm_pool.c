// Runs of many sizes, right after one another and after pauses in which threads fall asleep: each part is done once.
#define _GNU_SOURCE
#include "pool.h"

#include <stdio.h>
#include <string.h>
#include <unistd.h>

// The pool's own products are not under test here.
uint32_t wb_row_unit(uint32_t bits) { return bits; }
uint64_t wb_weight_bytes(const wb_matrix *m) { return m->rows; }
int32_t wb_gemm(const wb_matrix *m, const int8_t *x, uint32_t n, uint32_t first, uint32_t last, int32_t *y) {
    return m && x && y && n && first < last;
}
int32_t wb_gemm_grouped(const wb_matrix *m, const int8_t *x, uint32_t n, uint32_t first, uint32_t last, float *y) {
    return m && x && y && n && first < last;
}

enum { RUNS = 20000, PARTS = 40 };

static void count(void *done, uint32_t part) { ((int *)done)[part]++; }

int main(void) {
    wb_pool *pool = wb_pool_create(4);
    for (uint32_t run = 0; run < RUNS; run++) {
        int done[PARTS] = {0};
        uint32_t parts = 1 + run % PARTS;
        wb_pool_run(pool, count, done, parts);
        for (uint32_t i = 0; i < PARTS; i++)
            if (done[i] != (i < parts)) return printf("run %u of %u parts did part %u %d times\n", run, parts, i, done[i]), 1;
        if (run % 5000 == 0) usleep(20000);
    }
    wb_pool_destroy(pool);
    return 0;
}
