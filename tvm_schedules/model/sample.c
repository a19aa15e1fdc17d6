// The next token from logits.
#include "numeric.h"
#include "session.h"

#include <stdlib.h>

// SplitMix64 (Steele, Lea, Flood 2014): a uniform number in [0, 1).
static double uniform(uint64_t *state) {
    uint64_t z = *state += 0x9e3779b97f4a7c15;
    z = (z ^ (z >> 30)) * 0xbf58476d1ce4e5b9;
    z = (z ^ (z >> 27)) * 0x94d049bb133111eb;
    return (double)((z ^ (z >> 31)) >> 11) * 0x1p-53;
}

typedef struct { double logit; int32_t token; } candidate;

// The `limit` likeliest tokens, likeliest first, ties: the lower first; how many there are.
static int32_t likeliest(const double *logits, int32_t vocabulary, int32_t limit, candidate *found) {
    int32_t count = 0;
    for (int32_t token = 0; token < vocabulary; token++) {
        if (count == limit && !(logits[token] > found[count - 1].logit)) continue;
        int32_t place = count < limit ? count++ : count - 1;
        for (; place > 0 && logits[token] > found[place - 1].logit; place--) found[place] = found[place - 1];
        found[place] = (candidate){logits[token], token};
    }
    return count;
}

int32_t wb_sample(const double *logits, int32_t vocabulary, double temperature, int32_t top_k, uint64_t *state,
                  int32_t *token) {
    if (vocabulary < 1) return wb_fail("there are no logits to sample from");
    if (!(temperature >= 0 && temperature <= 1e6)) return wb_fail("temperature must be 0 to 1e6, not %g", temperature);
    if (top_k < 0) return wb_fail("top_k must be 0 or more, not %d", top_k);
    int32_t best = 0;
    for (int32_t i = 1; i < vocabulary; i++)
        if (logits[i] > logits[best]) best = i;
    *token = best;
    if (temperature == 0 || top_k == 1) return 0;
    int32_t limit = top_k && top_k < vocabulary ? top_k : vocabulary, count = limit;
    candidate *found = malloc((size_t)limit * sizeof *found);
    if (!found) return wb_fail("no memory for %d candidates", limit);
    if (limit < vocabulary) count = likeliest(logits, vocabulary, limit, found);
    else for (int32_t i = 0; i < vocabulary; i++) found[i] = (candidate){logits[i], i};
    double total = 0, top = logits[best];
    for (int32_t i = 0; i < count; i++) total += found[i].logit = wb_exp((found[i].logit - top) / temperature);
    double left = uniform(state) * total;
    int32_t i = 0;
    while (i < count - 1 && (left -= found[i].logit) >= 0) i++;
    *token = found[i].token;
    free(found);
    return 0;
}
