// Threads that share work: each part of it is taken by whichever thread is free.
#ifndef WATTBIT_POOL_H
#define WATTBIT_POOL_H
#include "matrix.h"

typedef struct wb_pool wb_pool;
typedef void wb_task(void *context, uint32_t part);

// A pool of `threads` threads, the caller's own among them; NULL without memory or threads. Waiting threads spin for a
// moment, then sleep.
wb_pool *wb_pool_create(uint32_t threads);
void wb_pool_destroy(wb_pool *pool);

// Run task(context, part) for each part < parts; returns when all have ended. One thread at a time may call it.
void wb_pool_run(wb_pool *pool, wb_task *task, void *context, uint32_t parts);

// Into how many parts to cut work that reads so many bytes: rounds of a part for each thread, in which each round takes
// half of what is left and the last one all of it. So parts are long at first, for memory to be read at its full speed,
// and short at last, for the threads to end together (guided self-scheduling, Polychronopoulos and Kuck 1987, in
// rounds). One where there is one thread or no pool.
uint32_t wb_pool_parts(const wb_pool *pool, uint64_t bytes);

// Where part `part` of `parts` begins in work of so many units, and the part before ends; `units` for part == parts.
// `parts` is what wb_pool_parts said of the same pool.
uint64_t wb_pool_start(const wb_pool *pool, uint32_t parts, uint32_t part, uint64_t units);

// wb_gemm and wb_gemm_grouped of all rows, split over the pool's threads. `pool` may be NULL: this thread alone.
int32_t wb_pool_gemm(wb_pool *pool, const wb_matrix *matrix, const int8_t *x, uint32_t tokens, int32_t *y);
int32_t wb_pool_gemm_grouped(wb_pool *pool, const wb_matrix *matrix, const int8_t *x, uint32_t tokens, float *y);
#endif
