// Products of matrices with a few tokens' vectors, shared out over threads: where the runtime meets the kernels.
#ifndef WATTBIT_MULTIPLY_H
#define WATTBIT_MULTIPLY_H
#include "weights.h"

enum { WB_CHUNK = WB_TOKENS_MAX };  // tokens that go through a layer together

// y [tokens, rows] = w x + bias, of x [tokens, depth] where w is float32, else of q [tokens, wb_x_stride(depth)] with a
// scale for each token. With w->multiplier the outputs are the integers yq [tokens, yq_stride] instead.
typedef struct {
    const linear *w;
    uint32_t tokens;
    const double *x, *scale;
    const int8_t *q;
    double *y;
    int8_t *yq;
    size_t yq_stride;
    int32_t *sums;  // scratch [tokens, rows]
    uint64_t start, bytes;  // of its weights among those of all products
} product;

// All products at once, shared out by the bytes of their weights. Their `sums` are set to parts of `scratch`, which
// holds as many words as they have outputs.
// -1 when a kernel fails.
int32_t wb_multiply(wb_pool *pool, product *products, uint32_t count, int32_t *scratch);
#endif
