/* sync.c: what it costs that threads wait for one another: a barrier, and a run of the thread pool. Part of the program
 * `lq`, not of the library, of which it uses the thread pool alone. */
#include "../include/libquant_plugin.h"
#include "peak.h"

enum { BARRIERS = 2000, RUNS = 500 };

static void pass_barriers(void *arg, uint32_t thread) {
    q_pool *pool = arg;
    (void)thread;
    for (int i = 0; i < BARRIERS; i++) q_pool_barrier(pool);
}

static void do_nothing(void *arg, uint32_t thread) {
    (void)arg;
    (void)thread;
}

bool bench_sync_rate(uint32_t threads, uint32_t passes, bench_rate *barriers, bench_rate *runs) {
    q_pool *pool;
    *barriers = *runs = (bench_rate){0};
    if (q_pool_open(&q_alloc_libc, threads, &pool) != LQ_OK) return false;
    q_pool_run(pool, pass_barriers, pool);
    for (uint32_t i = 0; i < passes && !cli_interrupted(); i++) {
        double begin = q_clock();
        q_pool_run(pool, pass_barriers, pool);
        bench_rate_add(barriers, BARRIERS / (q_clock() - begin));
        begin = q_clock();
        for (int k = 0; k < RUNS; k++) q_pool_run(pool, do_nothing, NULL);
        bench_rate_add(runs, RUNS / (q_clock() - begin));
    }
    q_pool_close(pool);
    return !cli_interrupted();
}
