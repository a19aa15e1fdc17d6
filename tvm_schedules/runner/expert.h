// Runs whole experts on integers: GEMV, requant, GEMV, requant, as wattbit/arith.py defines them.
#ifndef WATTBIT_EXPERT_H
#define WATTBIT_EXPERT_H
#include "matrix.h"

// y [tokens, d_model] = the expert of x [tokens, d_model]. `file` is a packed expert of `bytes` bytes, mapped at a
// multiple of 64. No token or fewer: nothing is written. Safe in several threads at once.
int32_t wb_expert_forward(const void *file, size_t bytes, const int8_t *x, int64_t tokens, int8_t *y);

// d_model of a packed expert, or minus a wb_status.
int32_t wb_expert_width(const void *file, size_t bytes);
#endif
