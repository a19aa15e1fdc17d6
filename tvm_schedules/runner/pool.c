// See pool.h.
#define _GNU_SOURCE
#include "pool.h"

#include <pthread.h>
#include <sched.h>
#include <stdatomic.h>
#include <stdbool.h>
#include <stdlib.h>

enum { SPINS = 20000, PART_BYTES = 64 << 10, PARTS_PER_THREAD = 8 };

struct wb_pool {
    uint32_t threads;
    pthread_t *workers;
    pthread_mutex_t lock;  // of `sleeping`, and of what wakes them
    pthread_cond_t wake;
    uint32_t sleeping;
    bool stop;  // this and what follows changes before `turn` does, and workers read it after
    wb_task *task;
    void *context;
    uint32_t parts;
    _Atomic uint32_t turn, next, working;  // runs so far, the next part, workers that have not ended this run
};

static void pause_briefly(uint32_t spins) {
    if (spins % 64 == 63) sched_yield();
#if defined __x86_64__
    __builtin_ia32_pause();
#else
    __asm__ volatile("yield");
#endif
}

static void take_parts(wb_pool *pool) {
    for (uint32_t part; (part = atomic_fetch_add(&pool->next, 1)) < pool->parts;) pool->task(pool->context, part);
}

static void *work(void *argument) {
    wb_pool *pool = argument;
    for (uint32_t seen = 0;; seen++) {
        for (uint32_t spins = 0; spins < SPINS && atomic_load(&pool->turn) == seen; spins++) pause_briefly(spins);
        if (atomic_load(&pool->turn) == seen) {
            pthread_mutex_lock(&pool->lock);
            pool->sleeping++;
            while (atomic_load(&pool->turn) == seen) pthread_cond_wait(&pool->wake, &pool->lock);
            pool->sleeping--;
            pthread_mutex_unlock(&pool->lock);
        }
        if (pool->stop) return NULL;
        take_parts(pool);
        atomic_fetch_sub(&pool->working, 1);
    }
}

// Start all workers' next turn.
static void begin(wb_pool *pool) {
    pthread_mutex_lock(&pool->lock);
    atomic_fetch_add(&pool->turn, 1);
    if (pool->sleeping) pthread_cond_broadcast(&pool->wake);
    pthread_mutex_unlock(&pool->lock);
}

static void end(wb_pool *pool, uint32_t started) {
    pool->stop = true;
    begin(pool);
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
    pool->task = task;
    pool->context = context;
    pool->parts = parts;
    atomic_store(&pool->next, 0);
    atomic_store(&pool->working, pool->threads - 1);
    begin(pool);
    take_parts(pool);
    for (uint32_t spins = 0; atomic_load(&pool->working); spins++) pause_briefly(spins);
}

typedef struct {
    const wb_matrix *matrix;
    const int8_t *x;
    uint32_t tokens, part_rows;
    void *y;
    _Atomic int32_t status;
} multiplication;

static void multiply_part(void *context, uint32_t part) {
    multiplication *m = context;
    uint32_t first = part * m->part_rows, rows = m->matrix->rows - first;
    uint32_t last = first + (rows < m->part_rows ? rows : m->part_rows);
    int32_t status = m->matrix->group_size ? wb_gemm_grouped(m->matrix, m->x, m->tokens, first, last, m->y)
                                           : wb_gemm(m->matrix, m->x, m->tokens, first, last, m->y);
    if (status != WB_OK) atomic_store(&m->status, status);
}

static int32_t split(wb_pool *pool, const wb_matrix *matrix, const int8_t *x, uint32_t tokens, void *y) {
    multiplication m = {matrix, x, tokens, matrix->rows, y, WB_OK};
    uint32_t unit = wb_row_unit(matrix->weight_bits), parts = 1;
    size_t bytes = wb_weight_bytes(matrix);
    if (pool && pool->threads > 1 && unit) {
        uint32_t groups = (matrix->rows + unit - 1) / unit, most = pool->threads * PARTS_PER_THREAD;
        parts = (uint32_t)(bytes / PART_BYTES < most ? bytes / PART_BYTES + 1 : most);
        m.part_rows = (groups + parts - 1) / parts * unit;
        parts = (matrix->rows + m.part_rows - 1) / m.part_rows;
    }
    if (parts == 1)
        multiply_part(&m, 0);
    else
        wb_pool_run(pool, multiply_part, &m, parts);
    return atomic_load(&m.status);
}

int32_t wb_pool_gemm(wb_pool *pool, const wb_matrix *matrix, const int8_t *x, uint32_t tokens, int32_t *y) {
    return matrix->group_size ? WB_MATRIX : split(pool, matrix, x, tokens, y);
}

int32_t wb_pool_gemm_grouped(wb_pool *pool, const wb_matrix *matrix, const int8_t *x, uint32_t tokens, float *y) {
    return matrix->group_size ? split(pool, matrix, x, tokens, y) : WB_MATRIX;
}
