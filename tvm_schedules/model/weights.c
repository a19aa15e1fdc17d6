#include "weights.h"

#include <stdarg.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

enum { VERSION = 1, LARGEST = 1 << 24 };
static const uint32_t layout[4] = {WB_MODEL_LAYOUT};

static _Thread_local char message[256];

const char *wb_model_error(void) { return message; }

int32_t wb_fail(const char *format, ...) {
    va_list arguments;
    va_start(arguments, format);
    vsnprintf(message, sizeof message, format, arguments);
    va_end(arguments);
    return -1;
}

static int by_name(const void *name, const void *entry) {
    return strncmp(name, ((const wb_tensor *)entry)->name, WB_NAME);
}

static const wb_tensor *find(const weights *w, const char *name) {
    return bsearch(name, w->table, w->config.tensors, sizeof *w->table, by_name);
}

// The bytes of a tensor that must be there with this kind and shape, else NULL.
static const void *need(const weights *w, const char *name, uint32_t kind, uint32_t rows, uint32_t depth) {
    const wb_tensor *t = find(w, name);
    if (!t) return wb_fail("the weights file lacks tensor %s", name), NULL;
    if (t->kind != kind || t->rows != rows || t->depth != depth)
        return wb_fail("tensor %s is of kind %u [%u, %u], not %u [%u, %u]", name, t->kind, t->rows, t->depth, kind,
                       rows, depth), NULL;
    if (kind == WB_PACKED && depth > WB_COLS_MAX)
        return wb_fail("tensor %s is deeper than %d", name, WB_COLS_MAX), NULL;
    wb_matrix m = {.weight_bits = t->bits, .rows = rows, .cols = depth};
    uint64_t bytes = kind == WB_PACKED ? wb_weight_bytes(&m) : (uint64_t)rows * depth * 4;
    if (!bytes) return wb_fail("tensor %s has %u bits, for which this library has no kernel", name, t->bits), NULL;
    if (t->bytes != bytes)
        return wb_fail("tensor %s has %llu bytes, not %llu", name, (unsigned long long)t->bytes,
                       (unsigned long long)bytes), NULL;
    return w->file + t->offset;
}

typedef struct { char text[WB_NAME]; } name;

__attribute__((format(printf, 1, 2)))
static name named(const char *format, ...) {
    name n;
    va_list arguments;
    va_start(arguments, format);
    vsnprintf(n.text, sizeof n.text, format, arguments);
    va_end(arguments);
    return n;
}

static const float *floats(const weights *w, name n, uint32_t rows, uint32_t depth) {
    return need(w, n.text, WB_FLOAT32, rows, depth);
}

// What a matrix may be: float32 or packed, packed only, or packed with its sums requantised.
enum form { ANY, PACKED, REQUANTISED };

static int32_t open_linear(const weights *w, linear *l, name n, uint32_t rows, uint32_t depth, enum form form) {
    const wb_tensor *t = find(w, n.text);
    bool packed = form != ANY || (t && t->kind == WB_PACKED);
    *l = (linear){.rows = rows, .depth = depth};
    l->matrix = (wb_matrix){.rows = rows, .cols = depth};
    l->matrix.weights = need(w, n.text, packed ? WB_PACKED : WB_FLOAT32, rows, depth);
    if (!l->matrix.weights) return -1;
    if (packed) {
        l->bits = l->matrix.weight_bits = t->bits;
        if (t->group && (t->group % 32 || depth % t->group))
            return wb_fail("tensor %s of depth %u has scales of %u columns", n.text, depth, t->group);
        if (form == REQUANTISED) {
            l->multiplier = need(w, named("%s.multiplier", n.text).text, WB_INT32, rows, 1);
            l->sum_bias = need(w, named("%s.sum_bias", n.text).text, WB_INT32, rows, 1);
            return l->multiplier && l->sum_bias ? 0 : -1;
        }
        l->matrix.group_size = t->group;
        name scale = named("%s.scale", n.text);
        uint64_t count = t->group ? wb_scale_count(&l->matrix) : rows;
        if (count > UINT32_MAX) return wb_fail("tensor %s has %llu scales", n.text, (unsigned long long)count);
        const float *scales = floats(w, scale, (uint32_t)count, 1);
        if (!scales) return -1;
        *(t->group ? &l->matrix.scales : &l->scale) = scales;
    }
    name bias = named("%s.bias", n.text);
    if (find(w, bias.text)) {
        l->bias = floats(w, bias, rows, 1);
        if (!l->bias) return -1;
    }
    return 0;
}

static int32_t open_gated(const weights *w, expert *e, name n, uint32_t hidden) {
    uint32_t width = w->config.width;
    if (open_linear(w, &e->gate, named("%s.gate", n.text), hidden, width, PACKED)) return -1;
    if (open_linear(w, &e->up, named("%s.up", n.text), hidden, width, PACKED)) return -1;
    return open_linear(w, &e->down, named("%s.down", n.text), width, hidden, PACKED);
}

static int32_t open_relu(const weights *w, expert *e, name n) {
    const wb_header *c = &w->config;
    if (open_linear(w, &e->up, named("%s.up", n.text), c->hidden, c->width, REQUANTISED)) return -1;
    if (open_linear(w, &e->down, named("%s.down", n.text), c->width, c->hidden, REQUANTISED)) return -1;
    const int32_t *integers = need(w, named("%s.integers", n.text).text, WB_INT32, 5, 1);
    if (!integers) return -1;
    e->up.shift = (uint32_t)integers[0], e->down.shift = (uint32_t)integers[1];
    e->x_exp = integers[2], e->y_exp = integers[3], e->act_bits = (uint32_t)integers[4];
    bool sane = e->up.shift - 1 < 31 && e->down.shift - 1 < 31 && e->act_bits - 1 < 8 && e->x_exp > -64 &&
                e->x_exp < 64 && e->y_exp > -64 && e->y_exp < 64;
    if (!sane) return wb_fail("tensor %s.integers is out of range", n.text);
    e->up.low = 0, e->up.high = (1 << e->act_bits) - 1, e->up.offset = WB_HIDDEN_OFFSET;
    e->down.low = -128, e->down.high = 127;
    return 0;
}

static int32_t open_layer(const weights *w, layer *l, uint32_t index) {
    const wb_header *c = &w->config;
    uint32_t queries = c->heads * c->head_width, keys = c->kv_heads * c->head_width;
    l->norm1 = floats(w, named("layers.%u.norm1", index), c->width, 1);
    l->norm2 = floats(w, named("layers.%u.norm2", index), c->width, 1);
    if (!l->norm1 || !l->norm2) return -1;
    if (open_linear(w, &l->q, named("layers.%u.q", index), queries, c->width, ANY)) return -1;
    if (open_linear(w, &l->k, named("layers.%u.k", index), keys, c->width, ANY)) return -1;
    if (open_linear(w, &l->v, named("layers.%u.v", index), keys, c->width, ANY)) return -1;
    if (open_linear(w, &l->o, named("layers.%u.o", index), c->width, queries, ANY)) return -1;
    if (c->qk_norm != QK_NORM_NONE) {
        bool head = c->qk_norm == QK_NORM_HEAD;
        l->q_norm = floats(w, named("layers.%u.q_norm", index), head ? c->head_width : queries, 1);
        l->k_norm = floats(w, named("layers.%u.k_norm", index), head ? c->head_width : keys, 1);
        if (!l->q_norm || !l->k_norm) return -1;
    }
    if (open_linear(w, &l->router, named("layers.%u.router", index), c->experts, c->width, ANY)) return -1;
    if (c->shared_hidden) {
        if (open_gated(w, &l->shared, named("layers.%u.shared", index), c->shared_hidden)) return -1;
        if (open_linear(w, &l->shared_router, named("layers.%u.shared.router", index), 1, c->width, ANY)) return -1;
        if (l->shared_router.bits) return wb_fail("tensor layers.%u.shared.router must be float32", index);
    }
    for (uint32_t i = 0; i < c->experts; i++) {
        name n = named("layers.%u.experts.%u", index, i);
        if (c->expert_kind == EXPERTS_GATED ? open_gated(w, &l->experts[i], n, c->hidden)
                                            : open_relu(w, &l->experts[i], n)) return -1;
    }
    return 0;
}

static int32_t check_header(const wb_header *c, const void *file, uint64_t bytes) {
    if (bytes < sizeof *c || (uintptr_t)file % WB_ALIGN || memcmp(c->magic, "wattbitM", sizeof c->magic))
        return wb_fail("not a weights file of wattbit");
    if (c->version != VERSION) return wb_fail("the weights file has version %u, not %u", c->version, VERSION);
    if (c->bytes != bytes)
        return wb_fail("the weights file is truncated: %llu of %llu bytes", (unsigned long long)bytes,
                       (unsigned long long)c->bytes);
    for (int i = 0; i < 4; i++)
        if (c->layout[i] != layout[i])
            return wb_fail("the weights are packed in layout %u/%u/%u/%u, the kernels read %u/%u/%u/%u", c->layout[0],
                           c->layout[1], c->layout[2], c->layout[3], layout[0], layout[1], layout[2], layout[3]);
    const uint32_t sizes[] = {c->vocabulary, c->width, c->hidden, c->layers, c->heads, c->kv_heads, c->head_width,
                              c->experts, c->active, c->context};
    for (size_t i = 0; i < sizeof sizes / sizeof *sizes; i++)
        if (sizes[i] < 1 || sizes[i] > LARGEST) return wb_fail("the weights file has a size of %u", sizes[i]);
    if ((uint64_t)c->heads * c->head_width > LARGEST || c->heads % c->kv_heads || c->head_width % 2 ||
        c->active > c->experts || c->norm > NORM_RMS || c->expert_kind > EXPERTS_GATED || c->qk_norm > QK_NORM_HEAD ||
        c->shared_hidden > LARGEST)
        return wb_fail("the weights file describes no model that this library runs");
    if (c->tensors > (bytes - sizeof *c) / sizeof(wb_tensor)) return wb_fail("the weights file's table is cut off");
    return 0;
}

static int32_t check_table(const weights *w, uint64_t bytes) {
    for (uint32_t i = 0; i < w->config.tensors; i++) {
        const wb_tensor *t = &w->table[i];
        if (t->name[WB_NAME - 1] || (i && strncmp(t[-1].name, t->name, WB_NAME) >= 0))
            return wb_fail("entry %u of the weights file's table is out of order", i);
        if (t->offset % WB_ALIGN || t->offset > bytes || t->bytes > bytes - t->offset)
            return wb_fail("tensor %s lies outside the weights file", t->name);
    }
    return 0;
}

int32_t weights_open(weights *w, const void *file, uint64_t bytes) {
    *w = (weights){.file = file};
    if (check_header(file, file, bytes)) return -1;
    memcpy(&w->config, file, sizeof w->config);
    w->table = (const wb_tensor *)((const char *)file + sizeof w->config);
    if (check_table(w, bytes)) return -1;
    const wb_header *c = &w->config;
    w->embedding = floats(w, named("embedding"), c->vocabulary, c->width);
    w->norm = floats(w, named("norm"), c->width, 1);
    w->cos = floats(w, named("rope.cos"), c->context, c->head_width / 2);
    w->sin = floats(w, named("rope.sin"), c->context, c->head_width / 2);
    if (!w->embedding || !w->norm || !w->cos || !w->sin) return -1;
    name head = named("%s", find(w, "head") ? "head" : "embedding");
    if (open_linear(w, &w->head, head, c->vocabulary, c->width, ANY)) return -1;
    w->layers = calloc(c->layers, sizeof *w->layers);
    if (!w->layers) return wb_fail("no memory for %u layers", c->layers);
    for (uint32_t i = 0; i < c->layers; i++) {
        w->layers[i].experts = calloc(c->experts, sizeof *w->layers[i].experts);
        if (!w->layers[i].experts) return wb_fail("no memory for %u experts", c->experts);
        if (open_layer(w, &w->layers[i], i)) return -1;
    }
    return 0;
}

void weights_close(weights *w) {
    for (uint32_t i = 0; w->layers && i < w->config.layers; i++) free(w->layers[i].experts);
    free(w->layers);
    w->layers = NULL;
}
