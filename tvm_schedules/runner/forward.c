// forward EXPERT X Y: reads a packed expert and int8 inputs [tokens, d_model], writes int8 outputs of the same shape.
#include "expert.h"

#include <stdio.h>
#include <stdlib.h>

// A whole file at a multiple of 64 bytes.
static void *read_file(const char *path, size_t *bytes) {
    FILE *stream = fopen(path, "rb");
    if (!stream) return NULL;
    fseek(stream, 0, SEEK_END);
    *bytes = (size_t)ftell(stream);
    rewind(stream);
    void *data = aligned_alloc(64, (*bytes + 64) / 64 * 64);
    if (data && fread(data, 1, *bytes, stream) != *bytes) data = NULL;
    fclose(stream);
    return data;
}

int main(int count, char **names) {
    size_t expert_bytes, x_bytes;
    if (count != 4) return fprintf(stderr, "usage: %s EXPERT X Y\n", names[0]), 2;
    void *expert = read_file(names[1], &expert_bytes), *x = read_file(names[2], &x_bytes);
    if (!expert || !x) return perror("cannot read the expert or x"), 2;
    int32_t width = wb_expert_width(expert, expert_bytes);
    if (width <= 0) return fprintf(stderr, "%s: %s\n", names[1], wb_message(-width)), 1;
    int8_t *y = malloc(x_bytes + 1);
    if (!y) return perror("no memory for y"), 2;
    int32_t status = wb_expert_forward(expert, expert_bytes, x, (int64_t)x_bytes / width, y);
    if (status != WB_OK) return fprintf(stderr, "%s: %s\n", names[1], wb_message(status)), 1;
    FILE *out = fopen(names[3], "wb");
    if (!out || fwrite(y, 1, x_bytes, out) != x_bytes || fclose(out)) return perror(names[3]), 2;
    return 0;
}
