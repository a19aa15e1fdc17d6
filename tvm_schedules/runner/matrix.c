// See matrix.h. Compiled with -DWB_WIDTHS='W(bits, group_rows, zero) ...' and -DWB_KERNELS='K(bits, tokens, grouped)
// ...' with the most tokens first, it needs nothing of TVM's: the kernels' calling convention is declared here.
#include "matrix.h"

#include <stdbool.h>
#include <stdio.h>
#include <string.h>

enum { ALIGN = 64, GROUP_MIN = 32, GROUP_ROWS_MAX = 128, TILE_MAX = 8, CACHED_BYTES = 128 << 10 };

// DLPack's tensor and TVM's call convention (apache-tvm-ffi 0.1): an int is an argument of type 1, a tensor of 7.
typedef struct {
    void *data;
    struct { int32_t type, id; } device;
    int32_t ndim;
    struct { uint8_t code, bits; uint16_t lanes; } dtype;
    int64_t *shape, *strides;
    uint64_t byte_offset;
} tensor;
typedef struct { int32_t type; uint32_t zero; union { int64_t integer; void *pointer; } value; } argument;
typedef int32_t kernel_function(void *self, const argument *arguments, int32_t count, argument *result);
enum { INT = 1, TENSOR = 7, CPU = 1, SIGNED = 0, UNSIGNED = 1, FLOAT = 2 };

static const struct width { uint32_t bits, group_rows, zero; } widths[] = {
#define W(bits, group_rows, zero) {bits, group_rows, zero},
    WB_WIDTHS
#undef W
};
#define W(bits, group_rows, zero) _Static_assert(group_rows <= GROUP_ROWS_MAX, "larger groups than `multiply` keeps");
WB_WIDTHS
#undef W

#define K(bits, tokens, grouped)                                             \
    kernel_function __tvm_ffi_wb_gemm_w##bits##_t##tokens##_g##grouped;      \
    _Static_assert(tokens <= TILE_MAX, "more tokens than `multiply` keeps");
WB_KERNELS
#undef K
static const struct kernel { uint32_t bits, tokens, grouped; kernel_function *call; } kernels[] = {
#define K(bits, tokens, grouped) {bits, tokens, grouped, __tvm_ffi_wb_gemm_w##bits##_t##tokens##_g##grouped},
    WB_KERNELS
#undef K
};

static __thread char kernel_error[256];

// The one symbol that a kernel imports; hidden, so that a TVM in the same process does not take its place.
__attribute__((visibility("hidden")))
void TVMFFIErrorSetRaisedFromCStrParts(const char *kind, const char **parts, int32_t count) {
    size_t used = (size_t)snprintf(kernel_error, sizeof kernel_error, "%s: ", kind);
    for (int32_t i = 0; i < count && used < sizeof kernel_error; i++)
        if (parts[i]) used += (size_t)snprintf(kernel_error + used, sizeof kernel_error - used, "%s", parts[i]);
}

const char *wb_message(int32_t status) {
    switch (status) {
    case WB_OK: return "no error";
    case WB_NOT_AN_EXPERT: return "not a whole packed expert";
    case WB_LAYOUT: return "packed in another layout than the kernels read";
    case WB_NO_KERNEL: return "no kernel of its width in this library";
    case WB_NO_MEMORY: return "out of memory";
    case WB_KERNEL: return kernel_error;
    case WB_MATRIX: return "not a matrix as the packer writes it: misaligned, empty, too deep or in odd groups";
    case WB_RANGE: return "rows that are not whole units of the matrix's rows";
    default: return "unknown status";
    }
}

static size_t padded(size_t count, size_t unit) { return (count + unit - 1) / unit * unit; }

static const struct width *find_width(uint32_t bits) {
    for (size_t i = 0; i < sizeof widths / sizeof *widths; i++)
        if (widths[i].bits == bits) return &widths[i];
    return NULL;
}

// Columns and bytes of a row in one block: 8 / gcd(bits, 8) quads, see layout.py.
static uint32_t block_cols(uint32_t bits) { return bits == 8 ? 4 : bits == 4 ? 8 : bits % 2 ? 32 : 16; }
static uint32_t block_row_bytes(uint32_t bits) { return block_cols(bits) * bits / 8; }

static size_t row_bytes(const wb_matrix *m) {
    return padded(m->cols, block_cols(m->weight_bits)) / block_cols(m->weight_bits) * block_row_bytes(m->weight_bits);
}

uint32_t wb_row_unit(uint32_t weight_bits) {
    const struct width *width = find_width(weight_bits);
    return width ? width->group_rows : 0;
}

uint64_t wb_weight_bytes(const wb_matrix *m) {
    const struct width *width = find_width(m->weight_bits);
    return width ? (uint64_t)padded(m->rows, width->group_rows) * row_bytes(m) : 0;
}

uint64_t wb_scale_count(const wb_matrix *m) {
    const struct width *width = find_width(m->weight_bits);
    return width && m->group_size ? (uint64_t)padded(m->rows, width->group_rows) * (m->cols / m->group_size) : 0;
}

// What all calls on one range of a matrix share.
typedef struct {
    const wb_matrix *matrix;
    const struct width *width;
    uint32_t depth_groups;
    size_t x_stride;
} product;

static int32_t open_product(product *p, const wb_matrix *m, uint32_t first, uint32_t last, bool grouped) {
    *p = (product){m, find_width(m->weight_bits), grouped ? m->cols / m->group_size : 1, wb_x_stride(m->cols)};
    if (!p->width) return WB_NO_KERNEL;
    if (!m->rows || !m->cols || m->cols > WB_COLS_MAX || !m->weights || (uintptr_t)m->weights % ALIGN) return WB_MATRIX;
    uint32_t unit = p->width->group_rows;
    return first % unit || last > m->rows || (last % unit && last != m->rows) ? WB_RANGE : WB_OK;
}

// Each depth group's sum of activations times the layout's zero [tokens, depth_groups].
static void sum_activations(const product *p, const int8_t *x, uint32_t tokens, int32_t *sums) {
    uint32_t depth = p->matrix->group_size ? p->matrix->group_size : p->matrix->cols;
    for (uint32_t t = 0; t < tokens; t++)
        for (uint32_t g = 0; g < p->depth_groups; g++) {
            const int8_t *from = x + t * p->x_stride + (size_t)g * depth;
            int32_t sum = 0;
            if (p->width->zero)
                for (uint32_t k = 0; k < depth; k++) sum += from[k];
            sums[t * p->depth_groups + g] = sum * (int32_t)p->width->zero;
        }
}

static const struct kernel *find_kernel(uint32_t bits, uint32_t tokens, bool grouped) {
    for (size_t i = 0; i < sizeof kernels / sizeof *kernels; i++)
        if (kernels[i].bits == bits && kernels[i].tokens <= tokens && kernels[i].grouped == grouped) return &kernels[i];
    return NULL;
}

// One kernel call: whole row groups from number `group` on, to y [kernel's tokens, y_rows] at the first of these rows.
static int32_t call(const product *p, const struct kernel *kernel, const int8_t *x, uint32_t group, uint32_t groups,
                    const int32_t *zero_sums, void *y, int64_t y_rows) {
    const wb_matrix *m = p->matrix;
    size_t group_bytes = p->width->group_rows * row_bytes(m), scales = (size_t)p->width->group_rows * p->depth_groups;
    int64_t blocks = (int64_t)(row_bytes(m) / block_row_bytes(m->weight_bits) / p->depth_groups), one = 1;
    int64_t tokens = kernel->tokens, quads = (int64_t)p->x_stride / 4;
    int64_t sizes[5] = {tokens * quads, (int64_t)(groups * group_bytes), tokens * p->depth_groups,
                        (int64_t)(groups * scales), tokens * y_rows};
    tensor tensors[5] = {
        {(void *)x, {CPU, 0}, 1, {SIGNED, 32, 1}, &sizes[0], &one, 0},
        {(void *)(m->weights + group * group_bytes), {CPU, 0}, 1, {UNSIGNED, 8, 1}, &sizes[1], &one, 0},
        {(void *)zero_sums, {CPU, 0}, 1, {SIGNED, 32, 1}, &sizes[2], &one, 0},
        {kernel->grouped ? (void *)(m->scales + group * scales) : NULL, {CPU, 0}, 1, {FLOAT, 32, 1}, &sizes[3], &one, 0},
        {y, {CPU, 0}, 1, {kernel->grouped ? FLOAT : SIGNED, 32, 1}, &sizes[4], &one, 0},
    };
    const int64_t integers[5] = {groups, p->depth_groups, blocks, quads, y_rows};
    argument arguments[10], result = {0};
    int32_t count = 0;
    for (int i = 0; i < 5; i++) arguments[count++] = (argument){INT, 0, {.integer = integers[i]}};
    for (int i = 0; i < 5; i++)
        if (i != 3 || kernel->grouped) arguments[count++] = (argument){TENSOR, 0, {.pointer = &tensors[i]}};
    return kernel->call(NULL, arguments, count, &result) ? WB_KERNEL : WB_OK;
}

// All tokens on some whole row groups, with the largest kernels that fit; y is at row 0 of the first token.
static int32_t multiply(const product *p, const int8_t *x, uint32_t tokens, uint32_t group, uint32_t groups,
                        const int32_t *zero_sums, int32_t *y, bool grouped) {
    uint32_t rows = p->matrix->rows, unit = p->width->group_rows;
    bool partial = (group + groups) * unit > rows;  // the last group's padding must not be written to y
    for (uint32_t t = 0; t < tokens;) {
        const struct kernel *kernel = find_kernel(p->matrix->weight_bits, tokens - t, grouped);
        if (!kernel) return WB_NO_KERNEL;
        const int8_t *from = x + t * p->x_stride;
        const int32_t *sums = zero_sums + t * p->depth_groups;
        int32_t *to = y + (size_t)t * rows;
        uint32_t whole = groups - partial;
        int32_t status = whole ? call(p, kernel, from, group, whole, sums, to + (size_t)group * unit, rows) : WB_OK;
        if (partial && status == WB_OK) {
            int32_t last[TILE_MAX * GROUP_ROWS_MAX];
            uint32_t row = (group + whole) * unit;
            status = call(p, kernel, from, group + whole, 1, sums, last, unit);
            for (uint32_t i = 0; i < kernel->tokens; i++)
                memcpy(to + (size_t)i * rows + row, last + i * unit, (rows - row) * sizeof *to);
        }
        if (status != WB_OK) return status;
        t += kernel->tokens;
    }
    return WB_OK;
}

// int32 and float32 results are moved alike: y is either.
static int32_t run(const wb_matrix *m, const int8_t *x, uint32_t tokens, uint32_t first, uint32_t last, int32_t *y,
                   bool grouped) {
    product p;
    int32_t status = open_product(&p, m, first, last, grouped);
    if (status != WB_OK) return status;
    int32_t zero_sums[WB_TOKENS_MAX * (WB_COLS_MAX / GROUP_MIN)];
    uint32_t unit = p.width->group_rows, end = (last + unit - 1) / unit;
    size_t group_bytes = unit * row_bytes(m);
    for (uint32_t done = 0; done < tokens; done += WB_TOKENS_MAX) {
        uint32_t batch = tokens - done < WB_TOKENS_MAX ? tokens - done : WB_TOKENS_MAX;
        const int8_t *from = x + done * p.x_stride;
        sum_activations(&p, from, batch, zero_sums);
        // several kernel calls read the same weights: let them find these in the cache
        uint32_t step = batch == 1 ? end : (uint32_t)(CACHED_BYTES / group_bytes) + 1;
        for (uint32_t group = first / unit; group < end; group += step) {
            uint32_t groups = end - group < step ? end - group : step;
            status = multiply(&p, from, batch, group, groups, zero_sums, y + (size_t)done * m->rows, grouped);
            if (status != WB_OK) return status;
        }
    }
    return WB_OK;
}

int32_t wb_gemm(const wb_matrix *m, const int8_t *x, uint32_t tokens, uint32_t first, uint32_t last, int32_t *y) {
    return m->group_size ? WB_MATRIX : run(m, x, tokens, first, last, y, false);
}

int32_t wb_gemm_grouped(const wb_matrix *m, const int8_t *x, uint32_t tokens, uint32_t first, uint32_t last, float *y) {
    if (!m->group_size || m->group_size % GROUP_MIN || m->cols % m->group_size || !m->scales) return WB_MATRIX;
    return run(m, x, tokens, first, last, (int32_t *)y, true);
}
