// Router, experts wherever they run, and the gate-weighted sum of their outputs.
#include "numeric.h"
#include "session.h"

// The `active` experts with the largest chances, largest first, and their gates; ties: the lower expert.
static void choose(const wb_header *c, const double *chance, int32_t *chosen, double *gates) {
    double total = 0;
    for (uint32_t k = 0; k < c->active; k++) {
        int32_t best = -1;
        for (uint32_t e = 0; e < c->experts; e++) {
            int taken = 0;
            for (uint32_t i = 0; i < k; i++) taken |= chosen[i] == (int32_t)e;
            if (!taken && (best < 0 || chance[e] > chance[best])) best = (int32_t)e;
        }
        chosen[k] = best, gates[k] = chance[best];
        total += gates[k];
    }
    for (uint32_t k = 0; c->renormalize && k < c->active; k++) gates[k] /= total;
}

// Rows of (token, slot) sorted by expert: s->token, s->expert of each row and s->place of each (token, slot).
static void sort_rows(wb_session *s, uint32_t count) {
    const wb_header *c = &s->model->w.config;
    int32_t row = 0;
    for (uint32_t e = 0; e < c->experts; e++)
        for (uint32_t i = 0; i < count * c->active; i++)
            if (s->chosen[i] == (int32_t)e) {
                s->token[row] = (int32_t)(i / c->active), s->expert[row] = (int32_t)e;
                s->place[i] = row++;
            }
}

static int32_t route(wb_session *s, const layer *l, uint32_t count) {
    const wb_header *c = &s->model->w.config;
    product p = product_of(&l->router, &s->normed, count, s->chance);
    if (wb_multiply(s->model->pool, &p, 1, s->sums)) return -1;
    for (uint32_t t = 0; t < count; t++) {
        softmax(s->chance + t * c->experts, c->experts);
        choose(c, s->chance + t * c->experts, s->chosen + t * c->active, s->gates + t * c->active);
    }
    sort_rows(s, count);
    return 0;
}

// The rows from `first` on that go to the same expert.
static uint32_t run_length(const wb_session *s, uint32_t first, uint32_t rows) {
    uint32_t end = first + 1;
    while (end < rows && s->expert[end] == s->expert[first]) end++;
    return end - first;
}

typedef struct { wb_session *s; uint32_t rows; } rows_of;

// Input of `down` in one row: silu(gate) * up, as int8. Rows from rows_of.rows on are the shared expert's.
static void activate(void *context, uint32_t row) {
    const rows_of *all = context;
    wb_session *s = all->s;
    const wb_header *c = &s->model->w.config;
    bool shared = row >= all->rows;
    size_t width = shared ? c->shared_hidden : c->hidden, place = shared ? row - all->rows : row;
    size_t skipped = shared ? all->rows : 0;
    double *gate = s->gate + skipped * c->hidden + place * width;
    const double *up = s->up + skipped * c->hidden + place * width;
    int8_t *q = s->between + skipped * wb_x_stride(c->hidden) + place * wb_x_stride((uint32_t)width);
    for (size_t i = 0; i < width; i++) gate[i] = gate[i] / (1.0 + wb_exp(-gate[i])) * up[i];
    s->between_scale[row] = quantize(gate, width, q);
}

// s->out of all rows, and of the shared expert in the rows behind them.
static int32_t gated_experts(wb_session *s, const layer *l, uint32_t count) {
    const wb_header *c = &s->model->w.config;
    uint32_t rows = count * c->active, n = 0;
    size_t in = wb_x_stride(c->width), between = wb_x_stride(c->hidden);
    for (uint32_t row = 0; row < rows; row++) {
        memcpy(s->routed + row * in, s->normed.q + s->token[row] * in, in);
        s->routed_scale[row] = s->normed.scale[s->token[row]];
    }
    for (uint32_t first = 0, length; first < rows; first += length) {
        const expert *e = &l->experts[s->expert[first]];
        length = run_length(s, first, rows);
        product p = {.w = &e->gate, .tokens = length, .q = s->routed + first * in, .scale = s->routed_scale + first,
                     .y = s->gate + (size_t)first * c->hidden};
        s->products[n++] = p;
        p.w = &e->up, p.y = s->up + (size_t)first * c->hidden;
        s->products[n++] = p;
    }
    if (c->shared_hidden) {
        s->products[n++] = product_of(&l->shared.gate, &s->normed, count, s->gate + (size_t)rows * c->hidden);
        s->products[n++] = product_of(&l->shared.up, &s->normed, count, s->up + (size_t)rows * c->hidden);
    }
    if (wb_multiply(s->model->pool, s->products, n, s->sums)) return -1;
    wb_pool_run(s->model->pool, activate, &(rows_of){s, rows}, rows + (c->shared_hidden ? count : 0));
    n = 0;
    for (uint32_t first = 0, length; first < rows; first += length) {
        length = run_length(s, first, rows);
        s->products[n++] = (product){.w = &l->experts[s->expert[first]].down, .tokens = length,
                                     .q = s->between + first * between, .scale = s->between_scale + first,
                                     .y = s->out + (size_t)first * c->width};
    }
    if (c->shared_hidden)
        s->products[n++] = (product){.w = &l->shared.down, .tokens = count, .q = s->between + rows * between,
                                     .scale = s->between_scale + rows, .y = s->out + (size_t)rows * c->width};
    return wb_multiply(s->model->pool, s->products, n, s->sums);
}

// Sends the rows of experts that run elsewhere there, and puts what comes back into s->outputs.
static int32_t integer_experts_elsewhere(wb_session *s, uint32_t layer_index, uint32_t rows) {
    const wb_header *c = &s->model->w.config;
    const uint8_t *placed = s->model->placed + (size_t)layer_index * c->experts;
    size_t padded = wb_x_stride(c->width), width = c->width;
    int32_t sent = 0;
    for (uint32_t row = 0; row < rows; row++)
        if (placed[s->expert[row]]) {
            s->sent_expert[sent] = s->expert[row];
            memcpy(s->sent + (size_t)sent++ * width, s->routed + row * padded, width);
        }
    if (!sent) return 0;
    if (s->model->elsewhere(s->model->context, (int32_t)layer_index, sent, s->sent_expert, s->sent, s->returned))
        return wb_fail("the experts of layer %u that run elsewhere failed", layer_index);
    for (uint32_t row = rows; row-- > 0;)
        if (placed[s->expert[row]]) memcpy(s->outputs + row * width, s->returned + (size_t)--sent * width, width);
    return 0;
}

static int32_t integer_experts(wb_session *s, uint32_t layer_index, uint32_t count) {
    const weights *w = &s->model->w;
    const wb_header *c = &w->config;
    const layer *l = &w->layers[layer_index];
    const uint8_t *placed = s->model->placed ? s->model->placed + (size_t)layer_index * c->experts : NULL;
    uint32_t rows = count * c->active, n = 0;
    size_t in = wb_x_stride(c->width), between = wb_x_stride(c->hidden), width = c->width;
    product *down = s->products + rows;
    for (uint32_t row = 0; row < rows; row++) {
        const expert *e = &l->experts[s->expert[row]];
        quantize_fixed(s->normed.x + (size_t)s->token[row] * width, width, e->x_exp, e->act_bits, s->routed + row * in);
    }
    for (uint32_t first = 0, length; first < rows; first += length) {
        const expert *e = &l->experts[s->expert[first]];
        length = run_length(s, first, rows);
        if (placed && placed[s->expert[first]]) continue;
        s->products[n] = (product){.w = &e->up, .tokens = length, .q = s->routed + first * in,
                                   .yq = s->between + first * between, .yq_stride = between};
        down[n++] = (product){.w = &e->down, .tokens = length, .q = s->between + first * between,
                              .yq = s->outputs + first * width, .yq_stride = width};
    }
    if (wb_multiply(s->model->pool, s->products, n, s->sums)) return -1;
    if (wb_multiply(s->model->pool, down, n, s->sums)) return -1;
    if (placed && integer_experts_elsewhere(s, layer_index, rows)) return -1;
    for (uint32_t row = 0; row < rows; row++) {
        double factor = power_of_two(l->experts[s->expert[row]].y_exp);
        for (size_t i = 0; i < width; i++) s->out[row * width + i] = s->outputs[row * width + i] * factor;
    }
    return 0;
}

static void combine(wb_session *s, const layer *l, uint32_t count) {
    const wb_header *c = &s->model->w.config;
    size_t width = c->width, rows = (size_t)count * c->active;
    for (uint32_t t = 0; t < count; t++) {
        double *y = s->added + t * width;
        memset(y, 0, width * sizeof *y);
        for (uint32_t k = 0; k < c->active; k++) {
            size_t slot = (size_t)t * c->active + k;
            const double *out = s->out + (size_t)s->place[slot] * width, gate = s->gates[slot];
            for (size_t i = 0; i < width; i++) y[i] += gate * out[i];
        }
        if (c->shared_hidden) {
            const double *out = s->out + (rows + t) * width;
            const float *router = (const float *)l->shared_router.matrix.weights;
            double gate = 1.0 / (1.0 + wb_exp(-dot_float(router, s->normed.x + t * width, width)));
            for (size_t i = 0; i < width; i++) y[i] += gate * out[i];
        }
        for (size_t i = 0; i < width; i++) s->stream[t * width + i] += y[i];
    }
}

int32_t wb_mix(wb_session *s, uint32_t layer_index, uint32_t count) {
    const layer *l = &s->model->w.layers[layer_index];
    bool gated = s->model->w.config.expert_kind == EXPERTS_GATED;
    if (route(s, l, count)) return -1;
    if (gated ? gated_experts(s, l, count) : integer_experts(s, layer_index, count)) return -1;
    combine(s, l, count);
    return 0;
}
