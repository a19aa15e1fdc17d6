// See pool.h.
#define _GNU_SOURCE
#include "pool.h"

#include <pthread.h>
#include <sched.h>
#include <stdatomic.h>
#include <stdbool.h>
#include <stdlib.h>

enum { SPINS = 20000, PART_BYTES = 64 << 10 };

struct wb_pool {
    uint32_t threads;
    pthread_t *workers;
    pthread_mutex_t lock;  // of `sleeping`, and of what wakes them
    pthread_cond_t wake;
    uint32_t sleeping;
    wb_task *task;  // these change between runs only: whoever has taken a part of a run may read them
    void *context;
    uint32_t parts;
    _Atomic uint32_t untaken, unfinished;  // parts of this run
    atomic_bool stop;
};

static void pause_briefly(uint32_t spins) {
    if (spins % 64 == 63) sched_yield();
#if defined __x86_64__
    __builtin_ia32_pause();
#else
    __asm__ volatile("yield");
#endif
}

// A run waits for its parts, not for its threads: one that is descheduled before it takes a part holds up nobody.
static void take_parts(wb_pool *pool) {
    for (uint32_t left = atomic_load(&pool->untaken); left;) {
        if (!atomic_compare_exchange_weak(&pool->untaken, &left, left - 1)) continue;
        pool->task(pool->context, pool->parts - left);
        atomic_fetch_sub(&pool->unfinished, 1);
        left = atomic_load(&pool->untaken);
    }
}

static bool idle(wb_pool *pool) { return !atomic_load(&pool->untaken) && !atomic_load(&pool->stop); }

static void *work(void *argument) {
    wb_pool *pool = argument;
    while (!atomic_load(&pool->stop)) {
        for (uint32_t spins = 0; spins < SPINS && idle(pool); spins++) pause_briefly(spins);
        if (idle(pool)) {
            pthread_mutex_lock(&pool->lock);
            pool->sleeping++;
            while (idle(pool)) pthread_cond_wait(&pool->wake, &pool->lock);
            pool->sleeping--;
            pthread_mutex_unlock(&pool->lock);
        }
        take_parts(pool);
    }
    return NULL;
}

// Wake those that sleep, after what they wait for was stored.
static void wake(wb_pool *pool) {
    pthread_mutex_lock(&pool->lock);
    if (pool->sleeping) pthread_cond_broadcast(&pool->wake);
    pthread_mutex_unlock(&pool->lock);
}

static void end(wb_pool *pool, uint32_t started) {
    atomic_store(&pool->stop, true);
    wake(pool);
    for (uint32_t i = 0; i < started; i++) pthread_join(pool->workers[i], NULL);
    pthread_cond_destroy(&pool->wake);
    pthread_mutex_destroy(&pool->lock);
    free(pool->workers);
    free(pool);
}

wb_pool *wb_pool_create(uint32_t threads) {
    wb_pool *pool = calloc(1, sizeof *pool);
    pthread_t *workers = calloc(threads ? threads : 1, sizeof *workers);
    if (!pool || !workers || !threads) return free(pool), free(workers), NULL;
    pool->threads = threads;
    pool->workers = workers;
    pthread_mutex_init(&pool->lock, NULL);
    pthread_cond_init(&pool->wake, NULL);
    for (uint32_t i = 0; i + 1 < threads; i++)
        if (pthread_create(&workers[i], NULL, work, pool)) return end(pool, i), NULL;
    return pool;
}

void wb_pool_destroy(wb_pool *pool) {
    if (pool) end(pool, pool->threads - 1);
}

void wb_pool_run(wb_pool *pool, wb_task *task, void *context, uint32_t parts) {
    if (pool->threads == 1 || parts == 1) {
        for (uint32_t part = 0; part < parts; part++) task(context, part);
        return;
    }
    pool->task = task;
    pool->context = context;
    pool->parts = parts;
    atomic_store(&pool->unfinished, parts);
    atomic_store(&pool->untaken, parts);
    wake(pool);
    take_parts(pool);
    for (uint32_t spins = 0; atomic_load(&pool->unfinished); spins++) pause_briefly(spins);
}

uint32_t wb_pool_parts(const wb_pool *pool, uint64_t bytes) {
    if (!pool || pool->threads == 1) return 1;
    if (bytes / PART_BYTES < pool->threads) return (uint32_t)(bytes / PART_BYTES) + 1;
    uint32_t rounds = 1;
    while (bytes / pool->threads >> rounds >= PART_BYTES) rounds++;
    return rounds * pool->threads;
}

uint64_t wb_pool_start(const wb_pool *pool, uint32_t parts, uint32_t part, uint64_t units) {
    uint32_t in_round = pool && pool->threads < parts ? pool->threads : parts;
    uint32_t round = part / in_round, place = part % in_round;
    if (part >= parts) return units;
    uint64_t left = units >> round, taken = round + 1 == parts / in_round ? left : left - (left >> 1);
    return units - left + taken * place / in_round;
}

typedef struct {
    const wb_matrix *matrix;
    const int8_t *x;
    uint32_t tokens, parts;
    const wb_pool *pool;
    void *y;
    _Atomic int32_t status;
} multiplication;

static void multiply_part(void *context, uint32_t part) {
    multiplication *m = context;
    uint32_t rows = m->matrix->rows, unit = wb_row_unit(m->matrix->weight_bits), units = (rows + unit - 1) / unit;
    uint32_t first = (uint32_t)wb_pool_start(m->pool, m->parts, part, units) * unit;
    uint32_t last = (uint32_t)wb_pool_start(m->pool, m->parts, part + 1, units) * unit;
    if (first == last && m->parts > 1) return;
    if (last > rows) last = rows;
    int32_t status = m->matrix->group_size ? wb_gemm_grouped(m->matrix, m->x, m->tokens, first, last, m->y)
                                           : wb_gemm(m->matrix, m->x, m->tokens, first, last, m->y);
    if (status != WB_OK) atomic_store(&m->status, status);
}

static int32_t split(wb_pool *pool, const wb_matrix *matrix, const int8_t *x, uint32_t tokens, void *y) {
    if (!wb_row_unit(matrix->weight_bits)) return WB_NO_KERNEL;
    multiplication m = {matrix, x, tokens, wb_pool_parts(pool, wb_weight_bytes(matrix)), pool, y, WB_OK};
    if (m.parts == 1)
        multiply_part(&m, 0);
    else
        wb_pool_run(pool, multiply_part, &m, m.parts);
    return atomic_load(&m.status);
}

int32_t wb_pool_gemm(wb_pool *pool, const wb_matrix *matrix, const int8_t *x, uint32_t tokens, int32_t *y) {
    return matrix->group_size ? WB_MATRIX : split(pool, matrix, x, tokens, y);
}

int32_t wb_pool_gemm_grouped(wb_pool *pool, const wb_matrix *matrix, const int8_t *x, uint32_t tokens, float *y) {
    return matrix->group_size ? split(pool, matrix, x, tokens, y) : WB_MATRIX;
}
