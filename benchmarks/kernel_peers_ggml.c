// Times ggml's mul_mat_id on the CPU: a few tokens, one expert of many, another one at each call. For kernel_peers.py.
#include <ggml-alloc.h>
#include <ggml-backend.h>
#include <ggml-cpu.h>
#include <ggml.h>
#include <stdbool.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

enum { SAMPLE_ROWS = 32 };

typedef struct {
    ggml_backend_t backend;
    struct ggml_context *weights_context, *context;
    ggml_backend_buffer_t weights_buffer, buffer;
    struct ggml_tensor *ids;
    struct ggml_cgraph *graph;
    int experts, tokens, next;  // next: the expert that comes next
} peer;

static ggml_backend_buffer_type_t repacking(void) {
    ggml_backend_reg_t registry = ggml_backend_cpu_reg();
    ggml_backend_dev_get_extra_bufts_t extra =
        (ggml_backend_dev_get_extra_bufts_t)ggml_backend_reg_get_proc_address(registry, "ggml_backend_dev_get_extra_bufts");
    ggml_backend_buffer_type_t *types = extra ? extra(ggml_backend_reg_dev_get(registry, 0)) : NULL;
    for (; types && *types; types++)
        if (strstr(ggml_backend_buft_name(*types), "REPACK")) return *types;
    return NULL;
}

// All experts' rows are repetitions of some random ones: the time does not depend on them.
static void fill(struct ggml_tensor *weights) {
    size_t cols = (size_t)weights->ne[0], row_bytes = ggml_row_size(weights->type, weights->ne[0]);
    float *sample = malloc(SAMPLE_ROWS * cols * sizeof *sample);
    for (size_t i = 0; i < SAMPLE_ROWS * cols; i++) sample[i] = (float)rand() / (float)RAND_MAX - 0.5f;
    char *rows = malloc(ggml_nbytes(weights)), *quantized = malloc(SAMPLE_ROWS * row_bytes);
    ggml_quantize_chunk(weights->type, sample, quantized, 0, SAMPLE_ROWS, (int64_t)cols, NULL);
    for (size_t at = 0; at < ggml_nbytes(weights); at += row_bytes)
        memcpy(rows + at, quantized + at / row_bytes % SAMPLE_ROWS * row_bytes, row_bytes);
    ggml_backend_tensor_set(weights, rows, 0, ggml_nbytes(weights));
    free(sample), free(rows), free(quantized);
}

void peer_close(peer *p) {
    if (p->buffer) ggml_backend_buffer_free(p->buffer);
    if (p->weights_buffer) ggml_backend_buffer_free(p->weights_buffer);
    if (p->context) ggml_free(p->context);
    if (p->weights_context) ggml_free(p->weights_context);
    ggml_backend_free(p->backend);
    free(p);
}

// NULL where ggml cannot run it so: a type that is not repacked, for example.
peer *peer_open(const char *type_name, int rows, int cols, int experts, int threads, int repack, int tokens) {
    peer *p = calloc(1, sizeof *p);
    p->backend = ggml_backend_cpu_init();
    p->experts = experts, p->tokens = tokens;
    ggml_backend_cpu_set_n_threads(p->backend, threads);
    struct ggml_init_params params = {16 * ggml_tensor_overhead() + ggml_graph_overhead(), NULL, true};
    p->weights_context = ggml_init(params);
    p->context = ggml_init(params);
    ggml_backend_buffer_type_t plain = ggml_backend_get_default_buffer_type(p->backend);
    ggml_backend_buffer_type_t kind = repack ? repacking() : plain;
    int type = 0;
    while (type < GGML_TYPE_COUNT && (!ggml_type_name(type) || strcmp(ggml_type_name(type), type_name))) type++;
    if (!kind || type == GGML_TYPE_COUNT) return peer_close(p), NULL;
    struct ggml_tensor *weights = ggml_new_tensor_3d(p->weights_context, type, cols, rows, experts);
    p->weights_buffer = ggml_backend_alloc_ctx_tensors_from_buft(p->weights_context, kind);
    struct ggml_tensor *x = ggml_new_tensor_3d(p->context, GGML_TYPE_F32, cols, 1, tokens);
    p->ids = ggml_new_tensor_2d(p->context, GGML_TYPE_I32, 1, tokens);
    struct ggml_tensor *y = ggml_mul_mat_id(p->context, weights, x, p->ids);
    p->graph = ggml_new_graph(p->context);
    ggml_build_forward_expand(p->graph, y);
    p->buffer = ggml_backend_alloc_ctx_tensors_from_buft(p->context, plain);
    if (!p->weights_buffer || !p->buffer || (repack && !weights->extra) || !ggml_backend_supports_op(p->backend, y))
        return peer_close(p), NULL;
    fill(weights);
    float *values = x->data;
    for (int i = 0; i < cols * tokens; i++) values[i] = (float)rand() / (float)RAND_MAX - 0.5f;
    return p;
}

void peer_time(peer *p, int calls, double *seconds) {
    for (int i = 0; i < calls; i++) {
        for (int t = 0; t < p->tokens; t++) ((int32_t *)p->ids->data)[t] = p->next;
        p->next = (p->next + 1) % p->experts;
        struct timespec start, end;
        clock_gettime(CLOCK_MONOTONIC, &start);
        enum ggml_status status = ggml_backend_graph_compute(p->backend, p->graph);
        clock_gettime(CLOCK_MONOTONIC, &end);
        double taken = (double)(end.tv_sec - start.tv_sec) + 1e-9 * (double)(end.tv_nsec - start.tv_nsec);
        seconds[i] = status == GGML_STATUS_SUCCESS ? taken : -1;
    }
}
