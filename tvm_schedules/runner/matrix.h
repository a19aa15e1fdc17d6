// Products of packed matrices with int8 activations: the kernels of one core behind one interface.
// A library holds kernels of chosen widths; shapes are free. Everything here is safe in several threads at once.
#ifndef WATTBIT_MATRIX_H
#define WATTBIT_MATRIX_H
#include <stddef.h>
#include <stdint.h>

enum wb_status {
    WB_OK,
    WB_NOT_AN_EXPERT,
    WB_LAYOUT,
    WB_NO_KERNEL,
    WB_NO_MEMORY,
    WB_KERNEL,
    WB_MATRIX,  // a matrix whose fields no packer writes
    WB_RANGE,   // rows that do not start at a row unit, or end neither at one nor at the matrix's end
};

enum { WB_TOKENS_MAX = 16, WB_COLS_MAX = 1 << 15, WB_X_UNIT = 64 };

// weights: as `pack` of wattbit/tvm_schedules/packing.py orders them for this library's core, at a multiple of 64 bytes;
// they may be memory-mapped. group_size: columns that share a scale, a multiple of 32, or 0: then the products are
// int32 sums, and scales is NULL. scales: as `pack_scales` orders them.
typedef struct {
    uint32_t weight_bits, rows, cols, group_size;
    const uint8_t *weights;
    const float *scales;
} wb_matrix;

// Bytes from one token's activations to the next: cols padded to WB_X_UNIT. What lies beyond cols must be 0.
static inline size_t wb_x_stride(uint32_t cols) { return ((size_t)cols + WB_X_UNIT - 1) / WB_X_UNIT * WB_X_UNIT; }

// Ranges of rows start at multiples of this; 0 where the library has no kernel of this width.
uint32_t wb_row_unit(uint32_t weight_bits);

// The bytes of a matrix's weights and the number of its scales; 0 where the library has no kernel of its width.
uint64_t wb_weight_bytes(const wb_matrix *matrix);
uint64_t wb_scale_count(const wb_matrix *matrix);

// y [tokens, rows] = x [tokens, wb_x_stride(cols)] . weights^T for the rows first <= row < last; other rows of y are not
// touched. For a matrix without groups. x and y at multiples of 4 bytes.
int32_t wb_gemm(const wb_matrix *matrix, const int8_t *x, uint32_t tokens, uint32_t first, uint32_t last, int32_t *y);

// The same for a matrix with groups: y = sum over groups, from the first to the last and each step rounded to float32,
// of float32(int32 sum of the group's products) * scale.
int32_t wb_gemm_grouped(const wb_matrix *matrix, const int8_t *x, uint32_t tokens, uint32_t first, uint32_t last,
                        float *y);

// One token.
static inline int32_t wb_gemv(const wb_matrix *matrix, const int8_t *x, uint32_t first, uint32_t last, int32_t *y) {
    return wb_gemm(matrix, x, 1, first, last, y);
}
static inline int32_t wb_gemv_grouped(const wb_matrix *matrix, const int8_t *x, uint32_t first, uint32_t last,
                                      float *y) {
    return wb_gemm_grouped(matrix, x, 1, first, last, y);
}

// The core that the library was built for, and the first feature of it that this CPU lacks: NULL if it has them all.
// Ask before any other call: a kernel on a CPU without its feature ends the process.
const char *wb_core(void);
const char *wb_missing_feature(void);

// What a status means, in one line; for WB_KERNEL what the kernel said last in this thread.
const char *wb_message(int32_t status);
#endif
