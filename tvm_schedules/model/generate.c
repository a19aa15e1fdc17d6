// generate WEIGHTS THREADS COUNT TEMPERATURE TOP_K SEED TOKEN...: writes the prompt's continuation of COUNT tokens, one
// a line, each followed by a checksum of the logits that it was chosen from.
#define _DEFAULT_SOURCE
#include "../runner/matrix.h"
#include "model.h"

#include <fcntl.h>
#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/mman.h>
#include <sys/stat.h>

static uint64_t checksum(const double *logits, int32_t count) {  // FNV-1a
    const unsigned char *bytes = (const unsigned char *)logits;
    uint64_t sum = 0xcbf29ce484222325;
    for (size_t i = 0; i < (size_t)count * sizeof *logits; i++) sum = (sum ^ bytes[i]) * 0x100000001b3;
    return sum;
}

static int failed(const char *what) { return fprintf(stderr, "%s: %s\n", what, wb_model_error()), 1; }

int main(int count, char **words) {
    if (count < 8) return fprintf(stderr, "usage: %s WEIGHTS THREADS COUNT TEMPERATURE TOP_K SEED TOKEN...\n", *words), 2;
    if (wb_missing_feature())
        return fprintf(stderr, "built for %s: this CPU lacks %s\n", wb_core(), wb_missing_feature()), 1;
    int file = open(words[1], O_RDONLY);
    struct stat about;
    if (file < 0 || fstat(file, &about)) return perror(words[1]), 2;
    void *bytes = mmap(NULL, (size_t)about.st_size, PROT_READ, MAP_SHARED, file, 0);
    if (bytes == MAP_FAILED) return perror(words[1]), 2;
    wb_model *model;
    wb_session *session;
    if (wb_model_open(bytes, (uint64_t)about.st_size, atoi(words[2]), &model)) return failed(words[1]);
    if (wb_session_open(model, &session)) return failed(words[1]);
    int32_t vocabulary = wb_model_vocabulary(model), prompt = count - 7, token = 0;
    double *logits = malloc((size_t)vocabulary * sizeof *logits);
    int32_t *tokens = malloc((size_t)prompt * sizeof *tokens);
    if (!logits || !tokens) return perror("no memory"), 2;
    for (int32_t i = 0; i < prompt; i++) tokens[i] = atoi(words[7 + i]);
    uint64_t seed = strtoull(words[6], NULL, 10);
    if (wb_session_feed(session, tokens, prompt, logits)) return failed("prompt");
    for (int32_t left = atoi(words[3]); left > 0; left--) {
        if (wb_sample(logits, vocabulary, atof(words[4]), atoi(words[5]), &seed, &token)) return failed("sampling");
        printf("%" PRId32 " %016" PRIx64 "\n", token, checksum(logits, vocabulary));
        if (left > 1 && wb_session_feed(session, &token, 1, logits)) return failed("decoding");
    }
    free(tokens), free(logits);
    wb_session_close(session), wb_model_close(model);
    return 0;
}
