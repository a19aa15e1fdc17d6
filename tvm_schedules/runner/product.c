// product BITS ROWS COLS GROUP_SIZE TOKENS THREADS REPEATS IN OUT: multiplies, as often as REPEATS says, the matrix in
// the file IN with the activations in it. IN holds weights, scales and x [TOKENS, x stride], each from a multiple of 64
// bytes; OUT gets y [TOKENS, ROWS], int32, or float32 with groups.
#include "pool.h"

#include <stdio.h>
#include <stdlib.h>

enum { ALIGN = 64 };

static size_t padded(size_t count) { return (count + ALIGN - 1) / ALIGN * ALIGN; }

int main(int count, char **words) {
    if (count != 10) return fprintf(stderr, "usage: %s and 9 arguments\n", words[0]), 2;
    const char *missing = wb_missing_feature();
    if (missing) return fprintf(stderr, "built for %s, needs %s, which this CPU lacks\n", wb_core(), missing), 1;
    uint32_t numbers[7];
    for (int i = 0; i < 7; i++) numbers[i] = (uint32_t)strtoul(words[1 + i], NULL, 10);
    wb_matrix matrix = {numbers[0], numbers[1], numbers[2], numbers[3], NULL, NULL};
    uint32_t tokens = numbers[4], threads = numbers[5], repeats = numbers[6];
    size_t weights = padded(wb_weight_bytes(&matrix)), scales = padded(wb_scale_count(&matrix) * sizeof(float));
    size_t x_bytes = tokens * wb_x_stride(matrix.cols), y_bytes = sizeof(int32_t) * tokens * matrix.rows;
    size_t bytes = weights + scales + x_bytes;
    uint8_t *in = aligned_alloc(ALIGN, padded(bytes));
    void *y = malloc(y_bytes);
    FILE *source = fopen(words[8], "rb"), *result = fopen(words[9], "wb");
    if (!in || !y || !source || !result) return perror("cannot begin"), 2;
    if (fread(in, 1, bytes, source) != bytes) return fprintf(stderr, "%s is cut short\n", words[8]), 1;
    matrix.weights = in;
    matrix.scales = (const float *)(in + weights);
    const int8_t *x = (const int8_t *)in + weights + scales;
    wb_pool *pool = threads > 1 ? wb_pool_create(threads) : NULL;
    int32_t status = WB_OK;
    for (uint32_t i = 0; i < repeats && status == WB_OK; i++)
        status = matrix.group_size ? wb_pool_gemm_grouped(pool, &matrix, x, tokens, y)
                                   : wb_pool_gemm(pool, &matrix, x, tokens, y);
    if (status != WB_OK) return fprintf(stderr, "%s\n", wb_message(status)), 1;
    wb_pool_destroy(pool);
    return fwrite(y, 1, y_bytes, result) == y_bytes && !fclose(result) ? 0 : 2;
}
