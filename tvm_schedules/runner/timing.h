// Times kernels, and the memory that they read, on the machine that runs this. All data lies in one large block, so that
// what is read is not in a cache when it exceeds that.
#ifndef WATTBIT_TIMING_H
#define WATTBIT_TIMING_H
#include "pool.h"

// Seconds of each of `calls` products of `tokens` tokens: call i multiplies matrices[i % count].
void wb_time_gemm(wb_pool *pool, const wb_matrix *matrices, uint32_t count, const int8_t *x, uint32_t tokens, void *y,
                  uint32_t calls, double *seconds);

// Seconds of each of `calls` readings of `bytes` bytes, whole pages, call i from data[i] on: no kernel does less. A part
// of the work is read as so many streams at once, 1, 2 or 4; the work is cut into `parts` equal ones, 0: as a kernel's is.
void wb_time_read(wb_pool *pool, const uint8_t *const *data, size_t bytes, uint32_t streams, uint32_t parts,
                  uint32_t calls, double *seconds);
#endif
