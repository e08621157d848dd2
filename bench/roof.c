/* roof.c: how fast this machine reads memory: the bound that decoding is measured against.
 *
 * Each thread sums its own part of one buffer that is too large for the caches, in cache-line steps. A pass reads a piece
 * of it, the next one the piece behind: short enough that some passes run undisturbed by other programs. Part of the
 * program `lq`, not of the library, of which it uses the thread pool alone. */
#include "../include/libquant_plugin.h"
#include "../tools/bench_speed.h"
#include "peak.h"

#include <stdlib.h>
#include <string.h>

typedef uint64_t line __attribute__((vector_size(64), may_alias));

enum { PASSES = 40, MAX_THREADS = 1024 };
#define PIECE ((uint64_t)32 << 20) /* bytes that all threads together read in a pass */
#define BUFFER_WANTED ((uint64_t)256 << 20)
#define BUFFER_LEAST ((uint64_t)8 << 20)

typedef struct job {
    line *data;
    size_t lines;   /* per thread */
    size_t from, n; /* lines of each part that the pass reads */
    uint64_t *sums; /* kept, so that the reads are not optimized away */
} job;

static uint64_t sum_lines(const line *p, size_t n) {
    line a = {0}, b = {0}, c = {0}, d = {0};
    size_t i = 0;
    for (; i + 4 <= n; i += 4) {
        a += p[i], b += p[i + 1], c += p[i + 2], d += p[i + 3];
    }
    a += b + c + d;
    uint64_t r = 0;
    for (int k = 0; k < 8; k++) r += a[k];
    return r;
}

/* Every thread touches its own part first, so that its pages lie near it. */
static void touch(void *arg, uint32_t thread) {
    const job *j = arg;
    memset(j->data + thread * j->lines, 1, j->lines * sizeof(line));
}

static void read_part(void *arg, uint32_t thread) {
    const job *j = arg;
    j->sums[thread] += sum_lines(j->data + thread * j->lines + j->from, j->n);
}

bool bench_read_rate(uint32_t threads, uint64_t buffer, uint32_t passes, bench_rate *out) {
    q_pool *pool = NULL;
    job j = {.data = aligned_alloc(4096, (size_t)(buffer & ~(uint64_t)4095)), .sums = calloc(threads, sizeof *j.sums)};
    *out = (bench_rate){0};
    if (j.data && j.sums && q_pool_open(&q_alloc_libc, threads, &pool) == LQ_OK) {
        j.lines = (size_t)(buffer & ~(uint64_t)4095) / sizeof(line) / threads;
        const size_t piece = (size_t)PIECE / sizeof(line) / threads;
        j.n = piece < j.lines ? piece : j.lines;
        q_pool_run(pool, touch, &j);
        for (uint32_t i = 0; i < passes && !cli_interrupted(); i++) {
            const double begin = q_clock();
            q_pool_run(pool, read_part, &j);
            bench_rate_add(out, (double)(j.n * sizeof(line)) * threads / (q_clock() - begin));
            j.from = j.from + 2 * j.n <= j.lines ? j.from + j.n : 0;
        }
        q_pool_close(pool);
    }
    free(j.data);
    free(j.sums);
    return out->n == passes;
}

uint64_t bench_roof_buffer(uint64_t memory) {
    uint64_t bytes = BUFFER_WANTED;
    while (bytes > memory / 4 && bytes > BUFFER_LEAST) bytes /= 2;
    return bytes;
}

double bench_roof(uint32_t threads, uint64_t memory, uint64_t *buffer) {
    bench_rate r;
    if (threads < 1) threads = 1;
    if (threads > MAX_THREADS) threads = MAX_THREADS;
    const uint64_t bytes = bench_roof_buffer(memory);
    const bool done = bench_read_rate(threads, bytes, PASSES, &r);
    *buffer = done ? bytes : 0;
    return done ? bench_rate_max(&r) : 0; /* disturbances only make it slower */
}
