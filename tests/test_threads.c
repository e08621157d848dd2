/* test_threads.c: the pool as its users see it: every thread runs, barriers separate, claims cover each unit once.
 * Meant to be run under ThreadSanitizer too; asserts no timing. */
#include "harness.h"

#include "../libquant/threads.h"

#include <signal.h>
#include <stdatomic.h>
#include <unistd.h>

static q_pool *open_pool(uint32_t threads) {
    q_pool *p = NULL;
    ck_assert_int_eq(q_pool_open(&q_alloc_libc, threads, &p), LQ_OK);
    ck_assert_uint_eq(q_pool_threads(p), threads);
    return p;
}

static void mark(void *arg, uint32_t thread) { ((int *)arg)[thread]++; }

START_TEST(every_thread_runs_each_time) {
    for (uint32_t threads = 1; threads <= 5; threads++) {
        q_pool *p = open_pool(threads);
        int count[6] = {0};
        for (int i = 0; i < 200; i++) q_pool_run(p, mark, count);
        for (uint32_t t = 0; t < 6; t++) ck_assert_int_eq(count[t], t < threads ? 200 : 0);
        q_pool_close(p);
    }
}
END_TEST

/* Each round, every thread writes its own cell, and after the barrier reads everybody's: plain memory, so a barrier
 * that lets a thread through early shows as a wrong value, and as a race under TSan. */
enum { ROUNDS = 300, MOST = 6 };
typedef struct rounds {
    q_pool *pool;
    int cell[2][MOST];
    atomic_int wrong;
} rounds;
static void play(void *arg, uint32_t thread) {
    rounds *r = (rounds *)arg;
    const uint32_t n = q_pool_threads(r->pool);
    for (int i = 0; i < ROUNDS; i++) {
        r->cell[i & 1][thread] = i;
        q_pool_barrier(r->pool);
        for (uint32_t t = 0; t < n; t++)
            if (r->cell[i & 1][t] != i) atomic_fetch_add(&r->wrong, 1);
    }
}
START_TEST(barrier_separates) {
    for (uint32_t threads = 1; threads <= MOST; threads++) {
        rounds r = {.pool = open_pool(threads)};
        for (int again = 0; again < 3; again++) q_pool_run(r.pool, play, &r);
        ck_assert_int_eq(atomic_load(&r.wrong), 0);
        q_pool_close(r.pool);
    }
}
END_TEST

/* Runs of any number of threads, in an order that leaves workers out for one run and for many, and takes them in again:
 * each has exactly the first ones, and its barriers wait for no others. */
typedef struct some {
    q_pool *pool;
    int count[MOST];
    atomic_int here, wrong;
} some;
static void meet(void *arg, uint32_t thread) {
    some *s = (some *)arg;
    const int n = (int)q_pool_running(s->pool);
    for (int i = 1; i <= 3; i++) {
        atomic_fetch_add(&s->here, 1);
        q_pool_barrier(s->pool);
        if (atomic_load(&s->here) != i * n) atomic_fetch_add(&s->wrong, 1);
        q_pool_barrier(s->pool);
    }
    s->count[thread]++;
}
START_TEST(a_run_may_have_fewer_threads) {
    for (uint32_t threads = 1; threads <= MOST; threads++) {
        some s = {.pool = open_pool(threads)};
        int want[MOST] = {0};
        uint64_t seed = 5;
        for (int i = 0; i < 400; i++) {
            seed = seed * 6364136223846793005u + 1442695040888963407u;
            const uint32_t n = i % 3 == 0 ? (uint32_t)(seed >> 33) % (threads + 2) : i < 200 ? 1 : threads;
            const uint32_t has = Q_MAX(Q_MIN(n, threads), 1u);
            atomic_store(&s.here, 0);
            q_pool_run_on(s.pool, n, meet, &s);
            ck_assert_uint_eq(q_pool_running(s.pool), has);
            for (uint32_t t = 0; t < has; t++) want[t]++;
            ck_assert_int_eq(memcmp(s.count, want, sizeof want), 0);
        }
        ck_assert_int_eq(atomic_load(&s.wrong), 0);
        q_pool_close(s.pool);
    }
}
END_TEST

/* Several claim phases in one run, with different totals and steps: each unit is done exactly once. */
static const struct { int64_t total, step, least; } phases[] = { /* least 0: claims of one size */
    {1, 1, 0}, {7, 3, 0}, {0, 4, 0}, {100, 1, 0}, {33, 64, 0}, {257, 16, 0},
    {1, 1, 1}, {0, 8, 4}, {299, 64, 16}, {40, 64, 16}, {300, 12, 1}};
typedef struct claims {
    q_pool *pool;
    atomic_int done[Q_COUNT(phases)][300];
    atomic_int wrong; /* sizes that were not promised */
} claims;
static bool next(claims *c, size_t i, int64_t *b, int64_t *e) {
    const int64_t total = phases[i].total, most = phases[i].step, least = phases[i].least;
    if (!least) return q_pool_claim(c->pool, total, most, b, e);
    if (!q_pool_claim_some(c->pool, total, most, least, b, e)) return false;
    const int64_t n = *e - *b, left = total - *b, many = 2 * (int64_t)q_pool_running(c->pool);
    bool ok = n > 0 && n <= left && *b % least == 0 && (n % least == 0 || n == left);
    ok = ok && n <= Q_MAX(Q_MIN(most, left / many), least); /* neither more than a share of what is left */
    ok = ok && (n == left || n + least > Q_MIN(most, left / many)); /* nor less */
    if (!ok) atomic_fetch_add(&c->wrong, 1);
    return true;
}
static void take(void *arg, uint32_t thread) {
    claims *c = (claims *)arg;
    Q_UNUSED(thread);
    for (size_t i = 0; i < Q_COUNT(phases); i++) {
        for (int64_t b, e; next(c, i, &b, &e);)
            for (int64_t u = b; u < e; u++) atomic_fetch_add(&c->done[i][u], 1);
        q_pool_barrier(c->pool);
    }
}
START_TEST(claims_cover_each_unit_once) {
    for (uint32_t threads = 1; threads <= 4; threads++) {
        claims *c = (claims *)calloc(1, sizeof *c);
        c->pool = open_pool(threads);
        for (int again = 1; again <= 20; again++) {
            q_pool_run(c->pool, take, c);
            for (size_t i = 0; i < Q_COUNT(phases); i++)
                for (int64_t u = 0; u < 300; u++)
                    ck_assert_int_eq(atomic_load(&c->done[i][u]), u < phases[i].total ? again : 0);
        }
        ck_assert_int_eq(atomic_load(&c->wrong), 0);
        q_pool_close(c->pool);
        free(c);
    }
}
END_TEST

static void add_range(void *arg, int64_t begin, int64_t end, uint32_t thread) {
    int64_t *sums = (int64_t *)arg;
    for (int64_t i = begin; i < end; i++) sums[thread] += i;
}
START_TEST(for_covers_the_range) {
    for (uint32_t threads = 1; threads <= 4; threads++) {
        q_pool *p = open_pool(threads);
        int64_t sums[4] = {0};
        q_pool_for(p, 1000, 7, add_range, sums);
        q_pool_for(p, 0, 7, add_range, sums);
        q_pool_for(p, 10, 0, add_range, sums); /* a step of 0 is 1 */
        ck_assert_int_eq(sums[0] + sums[1] + sums[2] + sums[3], 999 * 1000 / 2 + 45);
        q_pool_close(p);
    }
}
END_TEST

START_TEST(bad_counts_are_refused) {
    q_pool *p = NULL;
    ck_assert_int_eq(q_pool_open(&q_alloc_libc, 0, &p), LQ_E_ARG);
    ck_assert_int_eq(q_pool_open(&q_alloc_libc, 1025, &p), LQ_E_ARG);
    ck_assert_ptr_null(p);
    q_pool_close(NULL);
    ck_assert_uint_ge(q_threads_default(), 1);
}
END_TEST

typedef struct counted {
    size_t bytes, blocks;
} counted;
static void *count_alloc(void *user, size_t bytes, size_t align) {
    counted *c = (counted *)user;
    c->bytes += bytes;
    c->blocks++;
    return q_alloc_libc.alloc(NULL, bytes, align);
}
static void count_free(void *user, void *p, size_t bytes) {
    ((counted *)user)->bytes -= bytes;
    q_alloc_libc.free(NULL, p, bytes);
}
START_TEST(a_pool_is_one_block_of_the_stated_size) {
    for (uint32_t threads = 1; threads <= 4; threads++) {
        counted c = {0};
        const q_alloc a = {count_alloc, count_free, &c};
        q_pool *p = NULL;
        ck_assert_int_eq(q_pool_open(&a, threads, &p), LQ_OK);
        ck_assert_uint_eq(c.bytes, q_pool_bytes(threads));
        ck_assert_uint_eq(c.blocks, 1);
        q_pool_close(p);
        ck_assert_uint_eq(c.bytes, 0);
    }
}
END_TEST

/* A signal to the process must be handled on a thread of the embedder's, not on a worker. */
static _Thread_local int is_worker;
static atomic_int handled_by_worker, handled;
static void on_signal(int sig) {
    Q_UNUSED(sig);
    atomic_fetch_add(&handled, 1);
    if (is_worker) atomic_fetch_add(&handled_by_worker, 1);
}
static void note_worker(void *arg, uint32_t thread) {
    Q_UNUSED(arg);
    is_worker = thread != 0;
}
START_TEST(workers_take_no_signals) {
    q_pool *p = open_pool(3);
    q_pool_run(p, note_worker, NULL);
    struct sigaction act, old;
    memset(&act, 0, sizeof act);
    act.sa_handler = on_signal;
    sigaction(SIGUSR1, &act, &old);
    for (int i = 0; i < 20; i++) kill(getpid(), SIGUSR1);
    sigaction(SIGUSR1, &old, NULL);
    ck_assert_int_ge(atomic_load(&handled), 1);
    ck_assert_int_eq(atomic_load(&handled_by_worker), 0);
    q_pool_close(p);
}
END_TEST

START_TEST(clock_goes_forward) {
    const double a = q_clock(), b = q_clock();
    ck_assert(b >= a);
}
END_TEST

static Suite *suite(void) {
    Suite *s = suite_create("threads");
    TCase *t = tcase_create("threads");
    tcase_add_test(t, every_thread_runs_each_time);
    tcase_add_test(t, barrier_separates);
    tcase_add_test(t, a_run_may_have_fewer_threads);
    tcase_add_test(t, claims_cover_each_unit_once);
    tcase_add_test(t, for_covers_the_range);
    tcase_add_test(t, bad_counts_are_refused);
    tcase_add_test(t, a_pool_is_one_block_of_the_stated_size);
    tcase_add_test(t, workers_take_no_signals);
    tcase_add_test(t, clock_goes_forward);
    suite_add_tcase(s, t);
    return s;
}
HARNESS_MAIN(suite)
