#include "session.h"

#include "numeric.h"

#include <stdlib.h>

int32_t wb_model_open(const void *file, uint64_t bytes, int32_t threads, wb_model **model) {
    *model = NULL;
    if (threads < 1 || threads > 256) return wb_fail("threads must be 1 to 256, not %d", threads);
    wb_model *m = calloc(1, sizeof *m);
    if (!m) return wb_fail("no memory for a model");
    if (weights_open(&m->w, file, bytes)) return wb_model_close(m), -1;
    m->pool = wb_pool_create((uint32_t)threads);
    if (!m->pool) return wb_model_close(m), wb_fail("%d threads cannot be started", threads);
    *model = m;
    return 0;
}

void wb_model_close(wb_model *model) {
    if (!model) return;
    wb_pool_destroy(model->pool);
    weights_close(&model->w);
    free(model->placed);
    free(model);
}

int32_t wb_model_vocabulary(const wb_model *model) { return (int32_t)model->w.config.vocabulary; }
int32_t wb_model_context(const wb_model *model) { return (int32_t)model->w.config.context; }

int32_t wb_model_place(wb_model *model, const uint8_t *placed, wb_elsewhere *run, void *context) {
    size_t count = (size_t)model->w.config.layers * model->w.config.experts;
    if (model->w.config.expert_kind != EXPERTS_RELU) return wb_fail("gated experts run on these cores only");
    uint8_t *copy = malloc(count);
    if (!copy) return wb_fail("no memory for %zu placements", count);
    free(model->placed);
    model->placed = memcpy(copy, placed, count);
    model->elsewhere = run, model->context = context;
    return 0;
}

// Zeroed memory at a multiple of WB_ALIGN that the session frees, or NULL and s->starved.
static void *memory(wb_session *s, uint64_t count, size_t size) {
    bool fits = count < (SIZE_MAX - 2 * WB_ALIGN) / size;
    char *block = fits ? calloc(((size_t)count * size + WB_ALIGN - 1) / WB_ALIGN * WB_ALIGN + WB_ALIGN, 1) : NULL;
    if (!block) return s->starved = true, NULL;
    s->memory[s->blocks++] = block;
    return block + (WB_ALIGN - (uintptr_t)block % WB_ALIGN) % WB_ALIGN;
}

static vectors some_vectors(wb_session *s, uint64_t count, size_t width) {
    vectors v = {.width = width};
    v.x = memory(s, count * width, sizeof *v.x);
    v.q = memory(s, count * wb_x_stride((uint32_t)width), 1);
    v.scale = memory(s, count, sizeof *v.scale);
    return v;
}

enum { BLOCKS = 64 };

int32_t wb_session_open(wb_model *model, wb_session **session) {
    const wb_header *c = &model->w.config;
    wb_session *s = calloc(1, sizeof *s);
    *session = NULL;
    if (!s || !(s->memory = calloc(BLOCKS, sizeof *s->memory))) return free(s), wb_fail("no memory for a session");
    s->model = model;
    // no size in a header is above 2^24, so that of these counts only the cache's can overflow
    uint64_t T = WB_CHUNK, N = T * c->active, queries = (uint64_t)c->heads * c->head_width, cache;
    uint64_t keys = (uint64_t)c->kv_heads * c->head_width;
    uint64_t hidden = N * c->hidden + T * c->shared_hidden, between = N * wb_x_stride(c->hidden);
    uint64_t sums[] = {2 * hidden, (N + T) * c->width, T * (queries + 2 * keys), T * c->experts, c->vocabulary};
    uint64_t most = 0;
    s->starved = __builtin_mul_overflow(c->layers * keys, (uint64_t)c->context, &cache);
    for (size_t i = 0; i < sizeof sums / sizeof *sums; i++) most = sums[i] > most ? sums[i] : most;
    s->keys = memory(s, cache, sizeof *s->keys);
    s->values = memory(s, cache, sizeof *s->values);
    s->stream = memory(s, T * c->width, sizeof *s->stream);
    s->normed = some_vectors(s, T, c->width);
    s->attended = some_vectors(s, T, (size_t)queries);
    s->q = memory(s, T * queries, sizeof *s->q);
    s->k = memory(s, T * keys, sizeof *s->k);
    s->v = memory(s, T * keys, sizeof *s->v);
    s->added = memory(s, T * c->width, sizeof *s->added);
    s->scores = memory(s, T * c->heads * c->context, sizeof *s->scores);
    s->chance = memory(s, T * c->experts, sizeof *s->chance);
    s->gates = memory(s, N, sizeof *s->gates);
    s->chosen = memory(s, N, sizeof *s->chosen);
    s->place = memory(s, N, sizeof *s->place);
    s->token = memory(s, N, sizeof *s->token);
    s->expert = memory(s, N, sizeof *s->expert);
    s->products = memory(s, 2 * (N + 1), sizeof *s->products);
    s->out = memory(s, (N + T) * c->width, sizeof *s->out);
    s->sums = memory(s, most, sizeof *s->sums);
    s->routed = memory(s, N * wb_x_stride(c->width), 1);
    s->between = memory(s, between + T * wb_x_stride(c->shared_hidden), 1);
    if (c->expert_kind == EXPERTS_GATED) {
        s->gate = memory(s, hidden, sizeof *s->gate);
        s->up = memory(s, hidden, sizeof *s->up);
        s->routed_scale = memory(s, N, sizeof *s->routed_scale);
        s->between_scale = memory(s, N + T, sizeof *s->between_scale);
    } else {
        s->outputs = memory(s, N * c->width, 1);
        s->sent = memory(s, N * c->width, 1);
        s->returned = memory(s, N * c->width, 1);
        s->sent_expert = memory(s, N, sizeof *s->sent_expert);
    }
    if (s->starved) return wb_session_close(s), wb_fail("no memory for a context of %u tokens", c->context);
    *session = s;
    return 0;
}

void wb_session_close(wb_session *session) {
    if (!session) return;
    for (uint32_t i = 0; i < session->blocks; i++) free(session->memory[i]);
    free(session->memory);
    free(session);
}

int32_t wb_session_position(const wb_session *session) { return (int32_t)session->position; }

void quantize_vectors(const vectors *v, uint32_t count) {
    for (uint32_t t = 0; t < count; t++)
        v->scale[t] = quantize(v->x + t * v->width, v->width, v->q + t * wb_x_stride((uint32_t)v->width));
}

void wb_norm(const wb_session *s, const float *weight, const double *x, uint32_t count, const vectors *v) {
    const wb_header *c = &s->model->w.config;
    for (uint32_t t = 0; t < count; t++, x += c->width) {
        double mean = c->norm == NORM_LAYER ? sum(x, c->width) / c->width : 0;
        double factor = 1.0 / sqrt(sum_squares(x, mean, c->width) / c->width + c->norm_eps);
        for (uint32_t i = 0; i < c->width; i++) v->x[t * c->width + i] = (x[i] - mean) * factor * (double)weight[i];
    }
    quantize_vectors(v, count);
}

// Takes up to WB_CHUNK tokens through all layers.
static int32_t feed_chunk(wb_session *s, const int32_t *tokens, uint32_t count) {
    const weights *w = &s->model->w;
    uint32_t width = w->config.width;
    for (uint32_t t = 0; t < count; t++)
        for (uint32_t i = 0; i < width; i++)
            s->stream[t * width + i] = (double)w->embedding[(size_t)tokens[t] * width + i];
    for (uint32_t i = 0; i < w->config.layers; i++) {
        wb_norm(s, w->layers[i].norm1, s->stream, count, &s->normed);
        if (wb_attend(s, i, count)) return -1;
        wb_norm(s, w->layers[i].norm2, s->stream, count, &s->normed);
        if (wb_mix(s, i, count)) return -1;
    }
    s->position += count;
    return 0;
}

int32_t wb_session_feed(wb_session *s, const int32_t *tokens, int32_t count, double *logits) {
    const weights *w = &s->model->w;
    uint32_t room = w->config.context - s->position;
    if (count < 1) return wb_fail("a prompt needs at least one token");
    if ((uint32_t)count > room)
        return wb_fail("%d tokens after %u overflow the context of %u; shorten the prompt", count, s->position,
                       w->config.context);
    for (int32_t i = 0; i < count; i++)
        if (tokens[i] < 0 || (uint32_t)tokens[i] >= w->config.vocabulary)
            return wb_fail("token %d is not in the vocabulary of %u; encode the prompt with the model's own",
                           tokens[i], w->config.vocabulary);
    uint32_t taken = 0;
    for (int32_t i = 0; i < count; i += (int32_t)taken) {
        taken = count - i < WB_CHUNK ? (uint32_t)(count - i) : WB_CHUNK;
        if (feed_chunk(s, tokens + i, taken)) return -1;
    }
    wb_norm(s, w->norm, s->stream + (taken - 1) * w->config.width, 1, &s->normed);
    product head = product_of(&w->head, &s->normed, 1, logits);
    return wb_multiply(s->model->pool, &head, 1, s->sums);
}
