/* roof.c: how fast this machine reads memory: the bound that decoding is measured against.
 *
 * Each thread reads its own part of one buffer, which lies in huge pages where the system gives them, as packed weights
 * do, and is too large for the caches. A pass reads a piece of it, the next one the piece behind: short enough that
 * some passes run undisturbed by other programs. How many streams at once a thread reads fastest, and whether asking
 * ahead helps, differs between machines (of two threads here by a third), so a few ways are tried first and the best of
 * them is measured. Of a cache line one word is added: a line comes as a whole, and arithmetic shall not be the bound.
 * Part of the program `lq`, not of the library, of which it uses the thread pool and memory. */
#include "../include/libquant_plugin.h"
#include "../tools/bench_speed.h"
#include "peak.h"

#include <stdlib.h>
#include <string.h>

enum { PASSES = 40, TRIES = 4, MAX_THREADS = 1024, LINE = 64, STREAMS = 8 };
#define PIECE ((uint64_t)32 << 20) /* bytes that all threads together read in a pass */
#define BUFFER_WANTED ((uint64_t)512 << 20) /* servers share 300 MiB of third cache */
#define BUFFER_LEAST ((uint64_t)8 << 20)

/* How a thread reads: so many streams side by side, each asked for so many bytes ahead. */
static const struct way {
    size_t streams, ahead;
} ways[] = {{1, 0}, {1, 4096}, {2, 0}, {2, 4096}, {4, 0}, {8, 0}};

typedef struct job {
    uint8_t *data;
    size_t lines;   /* per thread */
    size_t from, n; /* lines of each part that the pass reads */
    const struct way *way;
    uint64_t *sums; /* kept, so that the reads are not optimized away */
} job;

static uint64_t read_lines(const uint8_t *p, size_t n, const struct way *way) {
    const size_t part = n / way->streams * LINE;
    uint64_t sum[STREAMS] = {0};
    for (size_t i = 0; i + 4 * LINE <= part; i += 4 * LINE)
        for (size_t s = 0; s < way->streams; s++) {
            const uint8_t *at = p + s * part + i;
            for (size_t k = 0; k < 4; k++) {
                uint64_t word;
                if (way->ahead) __builtin_prefetch(at + k * LINE + way->ahead);
                memcpy(&word, at + k * LINE, sizeof word);
                sum[s] += word;
            }
        }
    for (size_t s = 1; s < STREAMS; s++) sum[0] += sum[s];
    return sum[0];
}

/* Every thread touches its own part first, so that its pages lie near it. */
static void touch(void *arg, uint32_t thread) {
    const job *j = arg;
    memset(j->data + thread * j->lines * LINE, 1, j->lines * LINE);
}

static void read_part(void *arg, uint32_t thread) {
    const job *j = arg;
    j->sums[thread] += read_lines(j->data + (thread * j->lines + j->from) * LINE, j->n, j->way);
}

/* A pass, of which the next begins where this one ends: bytes per second. */
static double pass(q_pool *pool, job *j) {
    const double begin = q_clock();
    q_pool_run(pool, read_part, j);
    const double rate = (double)(j->n * LINE) * q_pool_threads(pool) / (q_clock() - begin);
    j->from = j->from + 2 * j->n <= j->lines ? j->from + j->n : 0;
    return rate;
}

static const struct way *best_way(q_pool *pool, job *j) {
    const struct way *best = ways;
    double rate = 0;
    for (size_t i = 0; i < sizeof ways / sizeof *ways; i++)
        for (int k = 0; k < TRIES; k++) {
            j->way = &ways[i];
            const double r = pass(pool, j);
            if (r > rate) rate = r, best = &ways[i];
        }
    return best;
}

bool bench_read_rate(uint32_t threads, uint64_t buffer, uint32_t passes, bench_rate *out) {
    q_pool *pool = NULL;
    job j = {.data = q_new_raw(&q_alloc_libc, buffer, 1), .sums = calloc(threads, sizeof *j.sums)};
    *out = (bench_rate){0};
    if (j.data && j.sums && q_pool_open(&q_alloc_libc, threads, &pool) == LQ_OK) {
        q_memory_huge(j.data, buffer);
        j.lines = (size_t)buffer / LINE / threads;
        const size_t piece = (size_t)PIECE / LINE / threads;
        j.n = piece < j.lines ? piece : j.lines;
        q_pool_run(pool, touch, &j);
        j.way = best_way(pool, &j);
        for (uint32_t i = 0; i < passes && !cli_interrupted(); i++) bench_rate_add(out, pass(pool, &j));
        q_pool_close(pool);
    }
    q_delete(&q_alloc_libc, j.data);
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
