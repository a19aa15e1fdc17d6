// Runs of many sizes, right after one another and after pauses in which threads fall asleep: each part is done once.
// And how work is cut: the parts are all of it, none is longer than the one before, and the last ones are short.
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

enum { RUNS = 20000, PARTS = 40, LONGEST_LAST = 128 << 10 };

static void count(void *done, uint32_t part) { ((int *)done)[part]++; }

static int cut(const wb_pool *pool, uint64_t bytes, uint64_t units) {
    uint32_t parts = wb_pool_parts(pool, bytes);
    uint64_t end = 0, before = units;
    for (uint32_t part = 0; part < parts; part++) {
        uint64_t start = wb_pool_start(pool, parts, part, units);
        uint64_t taken = wb_pool_start(pool, parts, part + 1, units) - start;
        if (start != end || taken > before + 1) return 1;  // + 1: whole units
        end = start + taken;
        before = taken;
    }
    return end != units || (pool && units == bytes && before > LONGEST_LAST);
}

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
    for (uint32_t threads = 0; threads < 9; threads++) {
        pool = threads ? wb_pool_create(threads) : NULL;
        for (uint64_t bytes = 1; bytes < (uint64_t)1 << 40; bytes += 1 + bytes / 3)
            for (uint64_t units = bytes; units; units /= 7)
                if (threads != 1 && cut(pool, bytes, units))
                    return printf("%u threads, %llu bytes in %llu units\n", threads, (unsigned long long)bytes,
                                  (unsigned long long)units), 1;
        wb_pool_destroy(pool);
    }
    return 0;
}
