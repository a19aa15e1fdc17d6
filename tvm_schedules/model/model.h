// Decodes a whole Mixture-of-Experts model from one mapped weights file: no PyTorch, no TVM, no Python.
//
// The arithmetic, which wattbit/models/decode.py and gated.py state for PyTorch: whatever is not an integer is computed
// in IEEE double, without contraction and in an order that depends on neither core nor threads, so that all builds give
// the same bits; exp is our own. Keys and values are kept as float32. Packed matrices see activations as int8 and give
// exact int32 sums.
#ifndef WATTBIT_MODEL_H
#define WATTBIT_MODEL_H
#include <stdint.h>

typedef struct wb_model wb_model;      // a weights file and its threads
typedef struct wb_session wb_session;  // one sequence: its keys, values and scratch memory

// Every function that returns int32_t returns 0, or -1 and then wb_model_error() says why, in one line.
const char *wb_model_error(void);

// `file` is a whole weights file of `bytes` bytes at a multiple of 64 that outlives the model.
int32_t wb_model_open(const void *file, uint64_t bytes, int32_t threads, wb_model **model);
void wb_model_close(wb_model *model);
int32_t wb_model_vocabulary(const wb_model *model);
int32_t wb_model_context(const wb_model *model);

// Runs the experts `expert` [rows] of a layer, which are not on these cores, on inputs x [rows, d_model]: their outputs
// y [rows, d_model]. Returns 0, or anything else to end the call of wb_session_feed.
typedef int32_t wb_elsewhere(void *context, int32_t layer, int32_t rows, const int32_t *expert, const int8_t *x,
                             int8_t *y);
// placed [layers, experts]: 1 where an expert runs elsewhere. Only for experts of integers (ReLU).
int32_t wb_model_place(wb_model *model, const uint8_t *placed, wb_elsewhere *run, void *context);

int32_t wb_session_open(wb_model *model, wb_session **session);
void wb_session_close(wb_session *session);
int32_t wb_session_position(const wb_session *session);

// Takes tokens [count] in; logits [vocabulary] of the last one. What is fed at once and what one by one is the same.
int32_t wb_session_feed(wb_session *session, const int32_t *tokens, int32_t count, double *logits);

// A token from logits [vocabulary]: the likeliest when temperature is 0, else one drawn from softmax(logits /
// temperature) over the top_k likeliest (0: over all). `state` is the seed, and is moved on. Ties: the lower token.
int32_t wb_sample(const double *logits, int32_t vocabulary, double temperature, int32_t top_k, uint64_t *state,
                  int32_t *token);
#endif
