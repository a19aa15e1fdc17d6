// See expert.h.
#include "expert.h"

#include <stdlib.h>
#include <string.h>

enum { ALIGN = 64, HIDDEN_OFFSET = 128 };

// wattbit/tvm_schedules/packing.py writes it.
typedef struct {
    char magic[8];
    uint32_t layout_version, vector_bytes, group_rows, zero, weight_bits, act_bits, d_model, d_hidden, shift1, shift2;
    int32_t x_exp, h_exp, y_exp;
    uint32_t layer, expert, w1_bytes, w2_bytes;
    uint8_t reserved[52];
} wb_header;
_Static_assert(sizeof(wb_header) == 2 * ALIGN, "the header is 128 bytes");

typedef struct {
    wb_matrix matrix;
    uint32_t weights_bytes, shift;
    const int32_t *bias, *multiplier;
} layer;
typedef struct { const wb_header *header; layer first, second; } expert;

static size_t padded(size_t count, size_t unit) { return (count + unit - 1) / unit * unit; }

// The next section of the file, or NULL behind its end.
static const void *section(const void *file, size_t bytes, size_t *offset, size_t size) {
    if (*offset > bytes || padded(size, ALIGN) > bytes - *offset) return NULL;
    const void *start = (const char *)file + *offset;
    *offset += padded(size, ALIGN);
    return start;
}

static int32_t open_layer(layer *l, const void *file, size_t bytes, size_t *offset) {
    size_t channels = (size_t)l->matrix.rows * sizeof *l->bias;
    l->matrix.weights = section(file, bytes, offset, l->weights_bytes);
    l->bias = section(file, bytes, offset, channels);
    l->multiplier = section(file, bytes, offset, channels);
    if (!l->matrix.weights || !l->bias || !l->multiplier || l->shift < 1 || l->shift > 31) return WB_NOT_AN_EXPERT;
    return l->weights_bytes == wb_weight_bytes(&l->matrix) ? WB_OK : WB_NOT_AN_EXPERT;
}

static int32_t open_expert(expert *e, const void *file, size_t bytes) {
    const wb_header *h = file;
    size_t offset = sizeof *h;
    if (bytes < sizeof *h || (uintptr_t)file % ALIGN || memcmp(h->magic, "wattbitW", sizeof h->magic))
        return WB_NOT_AN_EXPERT;
    if (h->layout_version != WB_LAYOUT_VERSION || h->vector_bytes != WB_VECTOR_BYTES) return WB_LAYOUT;
    if (!wb_row_unit(h->weight_bits)) return WB_NO_KERNEL;
    if (h->group_rows != wb_row_unit(h->weight_bits)) return WB_LAYOUT;
    if (h->act_bits < 1 || h->act_bits > 8 || h->d_model - 1 >= WB_COLS_MAX || h->d_hidden - 1 >= WB_COLS_MAX)
        return WB_NOT_AN_EXPERT;
    e->header = h;
    e->first = (layer){{h->weight_bits, h->d_hidden, h->d_model, 0, NULL, NULL}, h->w1_bytes, h->shift1, NULL, NULL};
    e->second = (layer){{h->weight_bits, h->d_model, h->d_hidden, 0, NULL, NULL}, h->w2_bytes, h->shift2, NULL, NULL};
    int32_t status = open_layer(&e->first, file, bytes, &offset);
    if (status == WB_OK) status = open_layer(&e->second, file, bytes, &offset);
    return status == WB_OK && offset != bytes ? WB_NOT_AN_EXPERT : status;
}

// y [rows] = requant(sums [rows] + bias) - offset, clipped to lo..hi before the offset; >> of a negative number rounds
// down.
static void requant(const layer *l, const int32_t *sums, int32_t lo, int32_t hi, int32_t offset, int8_t *y) {
    for (uint32_t n = 0; n < l->matrix.rows; n++) {
        int64_t product = (int64_t)(int32_t)((uint32_t)sums[n] + (uint32_t)l->bias[n]) * l->multiplier[n];
        int64_t value = (product + ((int64_t)1 << (l->shift - 1))) >> l->shift;
        y[n] = (int8_t)((value < lo ? lo : value > hi ? hi : value) - offset);
    }
}

int32_t wb_expert_width(const void *file, size_t bytes) {
    expert e;
    int32_t status = open_expert(&e, file, bytes);
    return status == WB_OK ? (int32_t)e.header->d_model : -status;
}

// At most WB_TOKENS_MAX tokens. input and between hold as many rows of activations, 0 where these are padded.
static int32_t forward(const expert *e, const int8_t *x, uint32_t tokens, int8_t *input, int8_t *between, int32_t *sums,
                       int8_t *y) {
    uint32_t width = e->header->d_model, hidden = e->header->d_hidden;
    size_t input_bytes = wb_x_stride(width), hidden_bytes = wb_x_stride(hidden);
    for (uint32_t t = 0; t < tokens; t++) memcpy(input + t * input_bytes, x + (size_t)t * width, width);
    int32_t status = wb_gemm(&e->first.matrix, input, tokens, 0, hidden, sums);
    if (status != WB_OK) return status;
    int32_t hidden_max = (1 << e->header->act_bits) - 1;
    for (uint32_t t = 0; t < tokens; t++)
        requant(&e->first, sums + (size_t)t * hidden, 0, hidden_max, HIDDEN_OFFSET, between + t * hidden_bytes);
    status = wb_gemm(&e->second.matrix, between, tokens, 0, width, sums);
    if (status != WB_OK) return status;
    for (uint32_t t = 0; t < tokens; t++)
        requant(&e->second, sums + (size_t)t * width, -128, 127, 0, y + (size_t)t * width);
    return WB_OK;
}

int32_t wb_expert_forward(const void *file, size_t bytes, const int8_t *x, int64_t tokens, int8_t *y) {
    expert e;
    int32_t status = open_expert(&e, file, bytes);
    if (status != WB_OK || tokens < 1) return status;
    size_t width = e.header->d_model, hidden = e.header->d_hidden;
    size_t batch = tokens < WB_TOKENS_MAX ? (size_t)tokens : WB_TOKENS_MAX;
    size_t activations = batch * (wb_x_stride(e.header->d_model) + wb_x_stride(e.header->d_hidden));
    size_t sums = batch * (width > hidden ? width : hidden) * sizeof(int32_t);
    int8_t *memory = aligned_alloc(ALIGN, activations + padded(sums, ALIGN) + ALIGN);
    if (!memory) return WB_NO_MEMORY;
    memset(memory, 0, activations);
    int8_t *between = memory + batch * wb_x_stride(e.header->d_model);
    for (int64_t t = 0; t < tokens && status == WB_OK; t += WB_TOKENS_MAX) {
        int64_t count = tokens - t < WB_TOKENS_MAX ? tokens - t : WB_TOKENS_MAX;
        int64_t first = t * (int64_t)width;
        int32_t *words = (int32_t *)(memory + activations);
        status = forward(&e, x + first, (uint32_t)count, memory, between, words, y + first);
    }
    free(memory);
    return status;
}
