// Causal attention with rotary positions (arXiv 2104.09864), grouped queries (arXiv 2305.13245) and a cache.
#include "numeric.h"
#include "session.h"

static void normalize(double *x, uint32_t count, const float *weight, double eps) {
    double factor = 1.0 / sqrt(sum_squares(x, 0, count) / count + eps);
    for (uint32_t i = 0; i < count; i++) x[i] = x[i] * factor * (double)weight[i];
}

// Optional norm and rotary position of the heads x [heads * head_width] of one token.
static void prepare(const weights *w, double *x, uint32_t heads, const float *weight, uint32_t position) {
    const wb_header *c = &w->config;
    uint32_t half = c->head_width / 2;
    const float *cosine = w->cos + (size_t)position * half, *sine = w->sin + (size_t)position * half;
    if (c->qk_norm == QK_NORM_WHOLE) normalize(x, heads * c->head_width, weight, c->norm_eps);
    for (uint32_t h = 0; h < heads; h++, x += c->head_width) {
        if (c->qk_norm == QK_NORM_HEAD) normalize(x, c->head_width, weight, c->norm_eps);
        for (uint32_t i = 0; i < half; i++) {
            double a = x[i], b = x[i + half], cos = (double)cosine[i], sin = (double)sine[i];
            x[i] = a * cos - b * sin, x[i + half] = b * cos + a * sin;
        }
    }
}

static size_t cache_place(const wb_header *c, uint32_t layer, uint32_t head, uint32_t position) {
    return (((size_t)layer * c->kv_heads + head) * c->context + position) * c->head_width;
}

static void store(const wb_session *s, uint32_t layer, uint32_t t) {
    const wb_header *c = &s->model->w.config;
    for (uint32_t h = 0; h < c->kv_heads; h++)
        for (uint32_t i = 0; i < c->head_width; i++) {
            size_t to = cache_place(c, layer, h, s->position + t) + i, from = (t * c->kv_heads + h) * c->head_width + i;
            s->keys[to] = (float)s->k[from], s->values[to] = (float)s->v[from];
        }
}

enum { BLOCK = 32 };  // elements of a value that are summed over all positions together, in registers

static inline void add_scaled(double *sums, double factor, const float *x, uint32_t count) {
    for (uint32_t i = 0; i < count; i++) sums[i] += factor * (double)x[i];
}

typedef struct { const wb_session *s; uint32_t layer; } place;

static void one_head(void *context, uint32_t item) {
    const place *p = context;
    const wb_session *s = p->s;
    const wb_header *c = &s->model->w.config;
    uint32_t t = item / c->heads, head = item % c->heads, width = c->head_width, seen = s->position + t + 1;
    size_t first = cache_place(c, p->layer, head / (c->heads / c->kv_heads), 0);
    const float *keys = s->keys + first, *values = s->values + first;
    double *scores = s->scores + (size_t)item * c->context, factor = 1.0 / sqrt(width);
    double *y = s->attended.x + (size_t)item * width;
    for (uint32_t j = 0; j < seen; j++)
        scores[j] = dot_float(keys + (size_t)j * width, s->q + (size_t)item * width, width) * factor;
    softmax(scores, seen);
    for (uint32_t i = 0; i < width; i += BLOCK) {
        double sums[BLOCK] = {0};
        uint32_t block = width - i < BLOCK ? width - i : BLOCK;
        if (block == BLOCK)
            for (uint32_t j = 0; j < seen; j++) add_scaled(sums, scores[j], values + (size_t)j * width + i, BLOCK);
        else
            for (uint32_t j = 0; j < seen; j++) add_scaled(sums, scores[j], values + (size_t)j * width + i, block);
        memcpy(y + i, sums, block * sizeof *y);
    }
}

int32_t wb_attend(wb_session *s, uint32_t layer_index, uint32_t count) {
    const weights *w = &s->model->w;
    const wb_header *c = &w->config;
    const layer *l = &w->layers[layer_index];
    product qkv[] = {product_of(&l->q, &s->normed, count, s->q), product_of(&l->k, &s->normed, count, s->k),
                     product_of(&l->v, &s->normed, count, s->v)};
    if (wb_multiply(s->model->pool, qkv, 3, s->sums)) return -1;
    for (uint32_t t = 0; t < count; t++) {
        prepare(w, s->q + (size_t)t * l->q.rows, c->heads, l->q_norm, s->position + t);
        prepare(w, s->k + (size_t)t * l->k.rows, c->kv_heads, l->k_norm, s->position + t);
        store(s, layer_index, t);
    }
    wb_pool_run(s->model->pool, one_head, &(place){s, layer_index}, count * c->heads);
    quantize_vectors(&s->attended, count);
    product out = product_of(&l->o, &s->attended, count, s->added);
    if (wb_multiply(s->model->pool, &out, 1, s->sums)) return -1;
    for (size_t i = 0; i < (size_t)count * c->width; i++) s->stream[i] += s->added[i];
    return 0;
}
