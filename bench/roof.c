/* roof.c: how fast this machine reads memory: the bound that decoding is measured against.
 *
 * Each thread sums its own part of one buffer that is too large for the caches, in cache-line steps; the best of the
 * passes counts, since disturbances only make it slower. Part of the program `lq`, not of the library. */
#include "../tools/bench_speed.h"

#include <pthread.h>
#include <stdatomic.h>
#include <stdlib.h>
#include <string.h>

typedef uint64_t line __attribute__((vector_size(64), may_alias));

enum { PASSES = 5, MAX_THREADS = 1024 };
#define BUFFER_WANTED ((uint64_t)256 << 20)
#define BUFFER_LEAST ((uint64_t)8 << 20)

typedef struct reader {
    pthread_t id;
    pthread_barrier_t *barrier;
    line *from;
    size_t lines;
    uint64_t sum; /* kept, so that the reads are not optimized away */
} reader;

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

/* Touch the part first, so that its pages lie near this thread; then one pass per pair of barriers. */
static void *read_part(void *arg) {
    reader *r = arg;
    memset(r->from, 1, r->lines * sizeof(line));
    for (int pass = 0; pass < PASSES; pass++) {
        pthread_barrier_wait(r->barrier);
        r->sum += sum_lines(r->from, r->lines);
        pthread_barrier_wait(r->barrier);
    }
    return NULL;
}

/* Fewer threads than asked for would wait at the barrier for ever, so all are started before any may read; the gate
 * lets them go, or home when one is missing. */
typedef struct gate {
    pthread_mutex_t lock;
    pthread_cond_t open;
    int state; /* 0 = wait, 1 = go, -1 = give up */
} gate;

typedef struct start {
    reader *reader;
    gate *gate;
} start;

static void *wait_and_read(void *arg) {
    const start *s = arg;
    pthread_mutex_lock(&s->gate->lock);
    while (s->gate->state == 0) pthread_cond_wait(&s->gate->open, &s->gate->lock);
    const bool go = s->gate->state > 0;
    pthread_mutex_unlock(&s->gate->lock);
    return go ? read_part(s->reader) : NULL;
}

static double time_passes(pthread_barrier_t *barrier, uint64_t bytes) {
    double best = 0;
    for (int pass = 0; pass < PASSES; pass++) {
        pthread_barrier_wait(barrier);
        const double begin = cli_clock();
        pthread_barrier_wait(barrier);
        const double rate = (double)bytes / (cli_clock() - begin);
        if (rate > best) best = rate;
    }
    return best;
}

static double run_readers(reader *readers, start *starts, uint32_t threads, line *buffer, uint64_t bytes) {
    gate g = {PTHREAD_MUTEX_INITIALIZER, PTHREAD_COND_INITIALIZER, 0};
    pthread_barrier_t barrier;
    uint32_t started = 0;
    double best = 0;
    const size_t lines = bytes / sizeof(line) / threads;
    if (pthread_barrier_init(&barrier, NULL, threads + 1) != 0) return 0;
    for (; started < threads; started++) {
        reader *r = &readers[started];
        *r = (reader){.barrier = &barrier, .from = buffer + started * lines, .lines = lines};
        starts[started] = (start){r, &g};
        if (pthread_create(&r->id, NULL, wait_and_read, &starts[started]) != 0) break;
    }
    pthread_mutex_lock(&g.lock);
    g.state = started == threads ? 1 : -1;
    pthread_cond_broadcast(&g.open);
    pthread_mutex_unlock(&g.lock);
    if (started == threads) best = time_passes(&barrier, lines * sizeof(line) * threads);
    for (uint32_t i = 0; i < started; i++) pthread_join(readers[i].id, NULL);
    pthread_barrier_destroy(&barrier);
    return best;
}

double bench_roof(uint32_t threads, uint64_t memory, uint64_t *buffer) {
    uint64_t bytes = BUFFER_WANTED;
    if (threads < 1) threads = 1;
    if (threads > MAX_THREADS) threads = MAX_THREADS;
    while (bytes > memory / 4 && bytes > BUFFER_LEAST) bytes /= 2;
    line *data = aligned_alloc(4096, bytes);
    reader *readers = calloc(threads, sizeof *readers);
    start *starts = calloc(threads, sizeof *starts);
    double best = 0;
    if (data && readers && starts) best = run_readers(readers, starts, threads, data, bytes);
    free(data);
    free(readers);
    free(starts);
    *buffer = best > 0 ? bytes : 0;
    return best;
}
