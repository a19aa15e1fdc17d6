// times CALLS [BITS ROWS COLS COLD_BYTES]...: for each product a line with the seconds of each of CALLS calls on one
// thread, one token each. Calls go through copies of the weights that fill COLD_BYTES; 0: all multiply the same.
#include "timing.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

enum { ALIGN = 64, FIELDS = 4 };

static int time_product(const uint32_t *numbers, uint32_t calls) {
    wb_matrix matrix = {numbers[0], numbers[1], numbers[2], 0, NULL, NULL};
    size_t bytes = (wb_weight_bytes(&matrix) + ALIGN - 1) / ALIGN * ALIGN, cold = numbers[3];
    if (!bytes) return fprintf(stderr, "no kernel of %u bits\n", numbers[0]), 1;
    uint32_t copies = cold > bytes ? (uint32_t)(cold / bytes) : 1;
    uint8_t *weights = aligned_alloc(ALIGN, bytes * copies);
    int8_t *x = calloc(wb_x_stride(matrix.cols), 1);
    int32_t *y = malloc(sizeof *y * matrix.rows);
    wb_matrix *matrices = malloc(sizeof *matrices * copies);
    double *seconds = malloc(sizeof *seconds * calls);
    if (!weights || !x || !y || !matrices || !seconds) return perror("cannot begin"), 2;
    memset(weights, 0x5a, bytes * copies);
    for (uint32_t i = 0; i < copies; i++) matrices[i] = matrix, matrices[i].weights = weights + i * bytes;
    wb_time_gemm(NULL, matrices, copies, x, 1, y, calls, seconds);
    for (uint32_t i = 0; i < calls; i++) printf("%.3e%c", seconds[i], i + 1 < calls ? ' ' : '\n');
    free(weights), free(x), free(y), free(matrices), free(seconds);
    return 0;
}

int main(int count, char **words) {
    if (count < 2 || (count - 2) % FIELDS) return fprintf(stderr, "usage: %s CALLS [4 numbers]...\n", words[0]), 2;
    const char *missing = wb_missing_feature();
    if (missing) return fprintf(stderr, "built for %s, needs %s, which this CPU lacks\n", wb_core(), missing), 1;
    uint32_t calls = (uint32_t)strtoul(words[1], NULL, 10), numbers[FIELDS];
    for (char **word = words + 2; word < words + count; word += FIELDS) {
        for (int i = 0; i < FIELDS; i++) numbers[i] = (uint32_t)strtoul(word[i], NULL, 10);
        int status = time_product(numbers, calls);
        if (status) return status;
    }
    return 0;
}
