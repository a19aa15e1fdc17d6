// The weights file: what wattbit/tvm_schedules/model/format.py writes, and the layers that it holds.
#ifndef WATTBIT_WEIGHTS_H
#define WATTBIT_WEIGHTS_H
#include "../runner/pool.h"

#include <stdbool.h>

enum { WB_ALIGN = 64, WB_NAME = 56, WB_HIDDEN_OFFSET = 128 };
enum { WB_FLOAT32, WB_INT32, WB_PACKED };  // kinds of tensors
enum { NORM_LAYER, NORM_RMS };
enum { EXPERTS_RELU, EXPERTS_GATED };
enum { QK_NORM_NONE, QK_NORM_WHOLE, QK_NORM_HEAD };

typedef struct {
    char magic[8];
    uint32_t version, layout[4], tensors;
    uint64_t bytes;
    double norm_eps;
    uint32_t vocabulary, width, hidden, layers, heads, kv_heads, head_width, experts, active, context;
    uint32_t norm, expert_kind, qk_norm, renormalize, shared_hidden;
    uint32_t reserved[13];
    uint8_t digest[32];
} wb_header;
_Static_assert(sizeof(wb_header) == 3 * WB_ALIGN, "the header is 192 bytes");

typedef struct {
    char name[WB_NAME];
    uint32_t kind, bits, rows, depth, group, reserved;
    uint64_t offset, bytes;
    uint8_t digest[32];
} wb_tensor;
_Static_assert(sizeof(wb_tensor) == 2 * WB_ALIGN, "an entry is 128 bytes");

// y = W x + bias. bits 0: W is float32, at matrix.weights. Else W is packed integers: with `multiplier` its sums are
// requantised to integers; with `scale` [rows] they are scaled to reals, or else by the groups' own scales.
typedef struct {
    uint32_t rows, depth, bits;
    wb_matrix matrix;
    const float *scale, *bias;
    const int32_t *multiplier, *sum_bias;
    uint32_t shift;
    int32_t low, high, offset;  // of a requant: clip, then subtract the offset
} linear;

typedef struct {
    linear up, down, gate;  // gate: of SwiGLU only
    int32_t x_exp, y_exp;   // of integer experts only
    uint32_t act_bits;
} expert;

typedef struct {
    const float *norm1, *norm2, *q_norm, *k_norm;
    linear q, k, v, o, router, shared_router;
    expert *experts, shared;
} layer;

typedef struct {
    wb_header config;
    const float *embedding, *norm, *cos, *sin;  // cos, sin [context, head_width / 2]
    linear head;
    layer *layers;
    const char *file;
    const wb_tensor *table;
} weights;

// Fills *w from a mapped file; 0, or -1 after wb_fail. What it points to lies in the file.
int32_t weights_open(weights *w, const void *file, uint64_t bytes);
void weights_close(weights *w);

// Sets what wb_model_error() says; returns -1.
__attribute__((format(printf, 1, 2))) int32_t wb_fail(const char *format, ...);
#endif
