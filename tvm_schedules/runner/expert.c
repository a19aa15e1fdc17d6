// See expert.h. Compiled with -DWB_KERNELS='K(bits, rows, depth) ...', WB_LAYOUT_VERSION, WB_VECTOR_BYTES and
// WB_GROUP_ROWS, it needs nothing of TVM's: the kernels' calling convention is declared here.
#include "expert.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

enum { ALIGN = 64, HIDDEN_OFFSET = 128 };

// DLPack's tensor and TVM's call convention (apache-tvm-ffi 0.1): a tensor is an argument of type 7.
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
enum { TENSOR = 7, CPU = 1, SIGNED = 0, UNSIGNED = 1 };

// wattbit/tvm_schedules/packing.py writes it.
typedef struct {
    char magic[8];
    uint32_t layout_version, vector_bytes, group_rows, zero, weight_bits, act_bits, d_model, d_hidden, shift1, shift2;
    int32_t x_exp, h_exp, y_exp;
    uint32_t layer, expert, w1_bytes, w2_bytes;
    uint8_t reserved[52];
} wb_header;
_Static_assert(sizeof(wb_header) == 2 * ALIGN, "the header is 128 bytes");

#define K(bits, rows, depth) kernel_function __tvm_ffi_wb_gemv_w##bits##_##rows##x##depth;
WB_KERNELS
#undef K
#define K(bits, rows, depth) {bits, rows, depth, __tvm_ffi_wb_gemv_w##bits##_##rows##x##depth},
static const struct { uint32_t bits, rows, depth; kernel_function *call; } kernels[] = {WB_KERNELS};
#undef K

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
    case WB_NO_KERNEL: return "no kernel of its width and shape in this library";
    case WB_NO_MEMORY: return "out of memory";
    case WB_KERNEL: return kernel_error;
    default: return "unknown status";
    }
}

typedef struct {
    kernel_function *call;
    uint32_t rows, depth, zero, shift;
    const void *weights;
    uint32_t weights_bytes;
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

static int32_t open_layer(layer *l, const void *file, size_t bytes, size_t *offset, uint32_t bits) {
    l->weights = section(file, bytes, offset, l->weights_bytes);
    l->bias = section(file, bytes, offset, (size_t)l->rows * sizeof *l->bias);
    l->multiplier = section(file, bytes, offset, (size_t)l->rows * sizeof *l->multiplier);
    if (!l->weights || !l->bias || !l->multiplier || l->shift < 1 || l->shift > 31) return WB_NOT_AN_EXPERT;
    for (size_t i = 0; i < sizeof kernels / sizeof *kernels; i++)
        if (kernels[i].bits == bits && kernels[i].rows == l->rows && kernels[i].depth == l->depth)
            l->call = kernels[i].call;
    return l->call ? WB_OK : WB_NO_KERNEL;
}

static int32_t open_expert(expert *e, const void *file, size_t bytes) {
    const wb_header *h = file;
    size_t offset = sizeof *h;
    if (bytes < sizeof *h || (uintptr_t)file % ALIGN || memcmp(h->magic, "wattbitW", sizeof h->magic))
        return WB_NOT_AN_EXPERT;
    if (h->layout_version != WB_LAYOUT_VERSION || h->vector_bytes != WB_VECTOR_BYTES || h->group_rows != WB_GROUP_ROWS)
        return WB_LAYOUT;
    if (h->act_bits < 1 || h->act_bits > 8 || h->zero > 128) return WB_NOT_AN_EXPERT;
    e->header = h;
    e->first = (layer){.rows = h->d_hidden, .depth = h->d_model, .zero = h->zero, .shift = h->shift1,
                       .weights_bytes = h->w1_bytes};
    e->second = (layer){.rows = h->d_model, .depth = h->d_hidden, .zero = h->zero, .shift = h->shift2,
                        .weights_bytes = h->w2_bytes};
    int32_t status = open_layer(&e->first, file, bytes, &offset, h->weight_bits);
    if (status == WB_OK) status = open_layer(&e->second, file, bytes, &offset, h->weight_bits);
    return status == WB_OK && offset != bytes ? WB_NOT_AN_EXPERT : status;
}

static argument tensor_argument(tensor *t) { return (argument){TENSOR, 0, {.pointer = t}}; }

// sums [rows padded] = weights . x, for x [depth padded] that is 0 beyond depth.
static int32_t gemv(const layer *l, const int8_t *x, int32_t *sums) {
    int64_t depth = (int64_t)padded(l->depth, WB_VECTOR_BYTES), rows = (int64_t)padded(l->rows, WB_GROUP_ROWS);
    int64_t weights_bytes = l->weights_bytes, one = 1;
    _Alignas(ALIGN) int32_t zero_sum = 0;
    for (uint32_t k = 0; k < l->depth; k++) zero_sum += x[k];
    zero_sum *= (int32_t)l->zero;
    tensor tensors[4] = {
        {(void *)x, {CPU, 0}, 1, {SIGNED, 8, 1}, &depth, &one, 0},
        {(void *)l->weights, {CPU, 0}, 1, {UNSIGNED, 8, 1}, &weights_bytes, &one, 0},
        {&zero_sum, {CPU, 0}, 1, {SIGNED, 32, 1}, &one, &one, 0},
        {sums, {CPU, 0}, 1, {SIGNED, 32, 1}, &rows, &one, 0},
    };
    argument arguments[4], result = {0};
    for (int i = 0; i < 4; i++) arguments[i] = tensor_argument(&tensors[i]);
    return l->call(NULL, arguments, 4, &result) ? WB_KERNEL : WB_OK;
}

// y = requant(sums + bias) - offset, clipped to lo..hi before the offset; >> of a negative number rounds down.
static void requant(const layer *l, const int32_t *sums, int32_t lo, int32_t hi, int32_t offset, int8_t *y) {
    for (uint32_t n = 0; n < l->rows; n++) {
        int64_t product = (int64_t)(sums[n] + l->bias[n]) * l->multiplier[n];
        int64_t value = (product + ((int64_t)1 << (l->shift - 1))) >> l->shift;
        y[n] = (int8_t)((value < lo ? lo : value > hi ? hi : value) - offset);
    }
}

int32_t wb_expert_width(const void *file, size_t bytes) {
    expert e;
    int32_t status = open_expert(&e, file, bytes);
    return status == WB_OK ? (int32_t)e.header->d_model : -status;
}

int32_t wb_expert_forward(const void *file, size_t bytes, const int8_t *x, int64_t tokens, int8_t *y) {
    expert e;
    int32_t status = open_expert(&e, file, bytes);
    if (status != WB_OK) return status;
    size_t width = e.header->d_model, hidden = e.header->d_hidden;
    size_t input_bytes = padded(width, ALIGN), hidden_bytes = padded(hidden, ALIGN);
    size_t widest = padded(width > hidden ? width : hidden, ALIGN);
    int8_t *memory = aligned_alloc(ALIGN, input_bytes + hidden_bytes + widest * sizeof(int32_t));
    if (!memory) return WB_NO_MEMORY;
    int8_t *input = memory, *between = memory + input_bytes;
    int32_t *sums = (int32_t *)(between + hidden_bytes);
    memset(memory, 0, input_bytes + hidden_bytes);
    int32_t hidden_max = (1 << e.header->act_bits) - 1;
    for (int64_t t = 0; t < tokens && status == WB_OK; t++) {
        memcpy(input, x + t * (int64_t)width, width);
        status = gemv(&e.first, input, sums);
        if (status != WB_OK) break;
        requant(&e.first, sums, 0, hidden_max, HIDDEN_OFFSET, between);
        status = gemv(&e.second, between, sums);
        requant(&e.second, sums, -128, 127, 0, y + t * (int64_t)width);
    }
    free(memory);
    return status;
}
