// Double arithmetic that gives the same bits on every core: compile with -ffp-contract=off and without -ffast-math.
#ifndef WATTBIT_NUMERIC_H
#define WATTBIT_NUMERIC_H
#include <math.h>
#include <stddef.h>
#include <stdint.h>
#include <string.h>

enum { LANES = 16 };  // partial sums of every long sum: element i goes to sum i % LANES, the sums are added as a tree

static inline double add_lanes(double *lane) {
    for (size_t half = LANES / 2; half; half /= 2)
        for (size_t j = 0; j < half; j++) lane[j] += lane[j + half];
    return lane[0];
}

// Nearest integer, ties to even, for |x| < 2^51.
static inline double round_even(double x) { return (x + 0x1.8p52) - 0x1.8p52; }

// 2^k for |k| < 1000.
static inline double power_of_two(int32_t k) {
    uint64_t bits = (uint64_t)(int64_t)(k + 1023) << 52;
    double power;
    memcpy(&power, &bits, sizeof power);
    return power;
}

// e^x with a relative error below 2e-16 and a clamp at +-708: x = k ln 2 + r, then the Taylor series of r.
static inline double wb_exp(double x) {
    const double shift = 0x1.8p52, ln2_high = 0x1.62e42fefa0000p-1, ln2_low = 0x1.cf79abc9e3b39p-40;
    x = x > 708.0 ? 708.0 : x < -708.0 ? -708.0 : x;
    double shifted = x * 0x1.71547652b82fep0 + shift, k = shifted - shift;
    double r = (x - k * ln2_high) - k * ln2_low;
    double p = 1.0 / 6227020800;
    p = p * r + 1.0 / 479001600;
    p = p * r + 1.0 / 39916800;
    p = p * r + 1.0 / 3628800;
    p = p * r + 1.0 / 362880;
    p = p * r + 1.0 / 40320;
    p = p * r + 1.0 / 5040;
    p = p * r + 1.0 / 720;
    p = p * r + 1.0 / 120;
    p = p * r + 1.0 / 24;
    p = p * r + 1.0 / 6;
    p = p * r + 0.5;
    p = p * r + 1.0;
    p = p * r + 1.0;
    uint64_t bits;
    memcpy(&bits, &shifted, sizeof bits);  // its low bits are k
    bits = (bits + 1023) << 52;
    double power;
    memcpy(&power, &bits, sizeof power);
    return p * power;
}

static inline double dot_float(const float *a, const double *b, size_t count) {
    double lane[LANES] = {0};
    size_t i = 0;
    for (; i + LANES <= count; i += LANES)
        for (size_t j = 0; j < LANES; j++) lane[j] += (double)a[i + j] * b[i + j];
    for (size_t j = 0; i + j < count; j++) lane[j] += (double)a[i + j] * b[i + j];
    return add_lanes(lane);
}

// Sum of (x - mean)^2.
static inline double sum_squares(const double *x, double mean, size_t count) {
    double lane[LANES] = {0};
    size_t i = 0;
    for (; i + LANES <= count; i += LANES)
        for (size_t j = 0; j < LANES; j++) lane[j] += (x[i + j] - mean) * (x[i + j] - mean);
    for (size_t j = 0; i + j < count; j++) lane[j] += (x[i + j] - mean) * (x[i + j] - mean);
    return add_lanes(lane);
}

static inline double sum(const double *x, size_t count) {
    double lane[LANES] = {0};
    size_t i = 0;
    for (; i + LANES <= count; i += LANES)
        for (size_t j = 0; j < LANES; j++) lane[j] += x[i + j];
    for (size_t j = 0; i + j < count; j++) lane[j] += x[i + j];
    return add_lanes(lane);
}

// x = softmax(x)
static inline void softmax(double *x, size_t count) {
    double top = x[0];
    for (size_t i = 1; i < count; i++) top = x[i] > top ? x[i] : top;
    for (size_t i = 0; i < count; i++) x[i] = wb_exp(x[i] - top);
    double total = sum(x, count);
    for (size_t i = 0; i < count; i++) x[i] /= total;
}

// q = x / scale as int8 in -127..127 with the scale that the largest |x| asks for; returns the scale.
static inline double quantize(const double *x, size_t count, int8_t *q) {
    double top = 0;
    for (size_t i = 0; i < count; i++) top = fabs(x[i]) > top ? fabs(x[i]) : top;
    double factor = top > 0 ? 127.0 / top : 0;
    for (size_t i = 0; i < count; i++) q[i] = (int8_t)(int32_t)round_even(x[i] * factor);
    return top / 127.0;
}

// q = x / 2^exponent as signed integers of so many bits. x is rounded to float32 first, as PyTorch's quantizers see it.
static inline void quantize_fixed(const double *x, size_t count, int32_t exponent, uint32_t bits, int8_t *q) {
    double factor = power_of_two(-exponent), low = -(double)(1 << (bits - 1)), high = -low - 1;
    for (size_t i = 0; i < count; i++) {
        double v = round_even((double)(float)x[i] * factor);
        q[i] = (int8_t)(int32_t)(v < low ? low : v > high ? high : v);
    }
}
#endif
