// What the parts of the runtime share: a model, and a session's state and scratch memory.
#ifndef WATTBIT_SESSION_H
#define WATTBIT_SESSION_H
#include "model.h"
#include "multiply.h"

#include <stdbool.h>

struct wb_model {
    weights w;
    wb_pool *pool;
    uint8_t *placed;  // [layers, experts], NULL when all experts run here
    wb_elsewhere *elsewhere;
    void *context;
};

// Vectors in rows, and the same as int8 with a scale each for packed matrices. Padding of q is always 0.
typedef struct {
    double *x, *scale;
    int8_t *q;
    size_t width;
} vectors;

// The product of a matrix and such vectors.
static inline product product_of(const linear *w, const vectors *v, uint32_t count, double *y) {
    return (product){.w = w, .tokens = count, .x = v->x, .q = v->q, .scale = v->scale, .y = y};
}

struct wb_session {
    wb_model *model;
    uint32_t position;
    float *keys, *values;        // [layers, kv_heads, context, head_width]
    double *stream;              // [T, width], T = WB_CHUNK
    vectors normed, attended;    // [T, width], [T, heads * head_width]
    double *q, *k, *v, *added;   // [T, heads * head_width], 2 of [T, kv_heads * head_width], [T, width]
    double *scores;              // [T * heads, context]
    double *chance, *gates;      // [T, experts], [T, active]
    int32_t *chosen, *place;     // [T, active] experts, and the row of each in the next ones
    int32_t *token, *expert;     // [N] of each row, sorted by expert, N = T * active
    product *products;
    int32_t *sums;               // scratch of products
    double *gate, *up, *out;     // [N, hidden] and [T, shared_hidden] behind it, both, [N + T, width]
    int8_t *routed, *between;    // inputs of rows [N, width padded]; of `down` [N, hidden padded], [T, shared padded]
    double *routed_scale, *between_scale;  // [N], [N + T]
    int8_t *outputs, *sent, *returned;     // integer experts: [N, width]
    int32_t *sent_expert;        // [N]
    void **memory;               // everything above, to be freed
    uint32_t blocks;
    bool starved;
};

void quantize_vectors(const vectors *v, uint32_t count);

// Adds attention's output to the stream of `count` tokens that begin at the session's position; -1 on failure.
int32_t wb_attend(wb_session *s, uint32_t layer, uint32_t count);

// Adds the mixture's output; -1 on failure.
int32_t wb_mix(wb_session *s, uint32_t layer, uint32_t count);

// v.x = norm of x [count, width], and v.q.
void wb_norm(const wb_session *s, const float *weight, const double *x, uint32_t count, const vectors *v);
#endif
