/* peak.c: the table of peak loops, and timing them on some threads. See peak.h. */
#include "peak.h"

#include <string.h>

#include "../include/libquant_plugin.h"

/* Short, so that some passes run between two interruptions by other programs; long against the start of threads. */
#define PASS_SECONDS 0.002

const bench_peak *bench_peak_at(size_t index) {
    const bench_peak *family = NULL;
    size_t scalar = 0;
    while (bench_peaks_scalar[scalar].kind) scalar++;
    if (index < scalar) return &bench_peaks_scalar[index];
#if defined(__x86_64__)
    family = bench_peaks_x86;
#elif defined(__aarch64__)
    family = bench_peaks_arm;
#endif
    for (index -= scalar; family && family->kind && index; index--) family++;
    return family && family->kind ? family : NULL;
}

const bench_peak *bench_peak_for(const char *kind, q_isa isa) {
    const bench_peak *best = NULL, *p;
    for (size_t i = 0; (p = bench_peak_at(i)); i++) {
        if (strcmp(p->kind, kind) != 0 || !p->present()) continue;
        for (int rung = 0; rung < Q_ISA_COUNT; rung++)
            if (q_isa_in(q_isa_with[isa], (q_isa)rung) && strcmp(q_isa_names[rung], p->isa) == 0) best = p;
    }
    return best;
}

typedef struct job {
    const bench_peak *peak;
    uint64_t turns;
} job;

static void run_pass(void *arg, uint32_t thread) {
    const job *j = arg;
    (void)thread;
    j->peak->run(j->turns);
}

static double time_pass(q_pool *pool, job *j) {
    const double begin = q_clock();
    q_pool_run(pool, run_pass, j);
    return q_clock() - begin;
}

bool bench_peak_rate(const bench_peak *peak, uint32_t threads, uint32_t passes, bench_rate *out) {
    q_pool *pool;
    job j = {peak, 1 << 14};
    *out = (bench_rate){0};
    if (q_pool_open(&q_alloc_libc, threads, &pool) != LQ_OK) return false;
    /* Doubled until even the better of some passes is long enough; this also lets the processor's clock rise. */
    for (double best = 0; best < PASS_SECONDS && j.turns < UINT64_MAX / 4;) {
        if (best > 0) j.turns *= 2;
        best = time_pass(pool, &j);
        for (int i = 0; i < 4; i++) {
            const double again = time_pass(pool, &j);
            best = again < best ? again : best;
        }
    }
    for (uint32_t i = 0; i < passes && !cli_interrupted(); i++) {
        const double seconds = time_pass(pool, &j);
        bench_rate_add(out, (double)j.turns * (double)peak->ops * threads / seconds);
    }
    q_pool_close(pool);
    return !cli_interrupted();
}
