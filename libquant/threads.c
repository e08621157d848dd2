/* threads.c: the thread pool, its barrier and its work counter; locks; how many threads to use; processor features; the
 * clock.
 *
 * Owns every OS threading call of the library. A pool is one allocation; its workers live until it is closed, block all
 * signals (an embedder's handlers never run on them) and never call back into the embedder. Waiting is always for one
 * word to change: spin for some microseconds, because the next step of a plan is usually that near, then sleep on a
 * condition variable. A pool with more threads than CPUs does not spin: it would burn the slice of the thread that it
 * waits for. A run may have fewer threads than the pool: the others sleep through it, on a condition variable of their
 * own, and are woken by a run that has more again. Layer L0. */
#include "threads.h"

#include <errno.h>
#include <pthread.h>
#include <sched.h>
#include <signal.h>
#include <stdatomic.h>
#include <stdio.h>
#include <sys/auxv.h>
#include <sys/syscall.h>
#include <time.h>
#include <unistd.h>

enum { SPINS = 1500, MAX_THREADS = 1024, WORKER_STACK = 2 << 20, GUARD = 4096 };
/* The word of a run: its number, and in the low bits how many threads it has. */
enum { COUNT_BITS = 11, COUNT_MASK = (1 << COUNT_BITS) - 1 };

typedef struct worker {
    q_pool *pool;
    pthread_t id;
    uint32_t index;
} worker;

/* Words that different threads write live on cache lines of their own. */
struct q_pool {
    const q_alloc *alloc;
    uint32_t threads, started, spins;
    uint32_t running; /* threads of the current run */
    void (*fn)(void *arg, uint32_t thread);
    void *arg;
    pthread_mutex_t lock;
    pthread_cond_t woken, rejoin;
    _Alignas(64) _Atomic uint64_t run;     /* word of the current run: workers wait for it to change */
    atomic_bool stop;
    _Alignas(64) _Atomic uint64_t pending; /* workers still inside the current run */
    _Alignas(64) atomic_uint arrived;      /* at the barrier */
    _Alignas(64) _Atomic uint64_t phase;   /* barriers passed */
    _Alignas(64) atomic_uint sleepers;     /* that wait for `woken` */
    atomic_uint left_out;                  /* that wait for `rejoin` */
    _Alignas(64) _Atomic int64_t next;     /* the work counter */
    _Alignas(64) worker workers[];
};

static inline void pause_cpu(void) {
#if defined(__x86_64__) || defined(__i386__)
    __builtin_ia32_pause();
#elif defined(__aarch64__)
    __asm__ __volatile__("yield");
#endif
}

/* Wait until *word differs from `old`. A sleeper counts itself before its last look at the word, and a waker changes
 * the word before it looks at the count; both sequentially consistent, so one of the two sees the other. */
static void wait_change(q_pool *p, _Atomic uint64_t *word, uint64_t old) {
    for (uint32_t i = 0; i < p->spins; i++) {
        if (atomic_load_explicit(word, memory_order_acquire) != old) return;
        pause_cpu();
    }
    pthread_mutex_lock(&p->lock);
    atomic_fetch_add(&p->sleepers, 1);
    while (atomic_load(word) == old) pthread_cond_wait(&p->woken, &p->lock);
    atomic_fetch_sub(&p->sleepers, 1);
    pthread_mutex_unlock(&p->lock);
}

static void wake(q_pool *p, atomic_uint *sleepers, pthread_cond_t *cond) {
    if (atomic_load(sleepers) == 0) return;
    pthread_mutex_lock(&p->lock);
    pthread_cond_broadcast(cond);
    pthread_mutex_unlock(&p->lock);
}

/* Wait for a run after `seen` that has this worker. It cannot miss one, which would not end without it; it may miss any
 * number of those that leave it out. */
static uint64_t wait_run(q_pool *p, uint32_t index, uint64_t seen) {
    uint64_t word = seen;
    for (uint32_t i = 0; i < p->spins && word == seen; i++) {
        word = atomic_load_explicit(&p->run, memory_order_acquire);
        if (word == seen) pause_cpu();
    }
    if (word != seen && (word & COUNT_MASK) > index) return word;
    pthread_mutex_lock(&p->lock);
    for (;;) {
        word = atomic_load(&p->run);
        if (word != seen && (word & COUNT_MASK) > index) break;
        atomic_uint *count = word == seen ? &p->sleepers : &p->left_out;
        atomic_fetch_add(count, 1);
        if (atomic_load(&p->run) == word) pthread_cond_wait(word == seen ? &p->woken : &p->rejoin, &p->lock);
        atomic_fetch_sub(count, 1);
    }
    pthread_mutex_unlock(&p->lock);
    return word;
}

/* Begin a run of so many threads: its word, and all that it has awake. */
static void announce(q_pool *p, uint32_t threads) {
    const uint64_t before = atomic_load_explicit(&p->run, memory_order_relaxed);
    atomic_store(&p->run, (((before >> COUNT_BITS) + 1) << COUNT_BITS) | threads);
    wake(p, &p->sleepers, &p->woken);
    if (threads > (before & COUNT_MASK)) wake(p, &p->left_out, &p->rejoin);
}

static void *worker_main(void *arg) {
    const worker *w = (const worker *)arg;
    q_pool *p = w->pool;
    for (uint64_t seen = 0;;) {
        seen = wait_run(p, w->index, seen);
        if (atomic_load(&p->stop)) return NULL;
        p->fn(p->arg, w->index);
        if (atomic_fetch_sub(&p->pending, 1) == 1) wake(p, &p->sleepers, &p->woken);
    }
}

uint64_t q_pool_stacks(uint32_t threads) { return threads ? (uint64_t)(threads - 1) * (WORKER_STACK + GUARD) : 0; }
uint64_t q_pool_bytes(uint32_t threads) { return sizeof(q_pool) + (uint64_t)threads * sizeof(worker) + Q_ALIGN; }

lq_status q_pool_open(const q_alloc *a, uint32_t threads, q_pool **out) {
    if (threads < 1 || threads > MAX_THREADS)
        return q_fail(LQ_E_ARG, "%u threads: between 1 and %d are possible", threads, MAX_THREADS);
    q_pool *p = (q_pool *)q_new(a, q_pool_bytes(threads) - Q_ALIGN, 1);
    if (!p) return LQ_E_NOMEM;
    p->alloc = a;
    p->threads = p->running = threads;
    p->spins = threads <= q_threads_default() ? SPINS : 0;
    if (pthread_mutex_init(&p->lock, NULL) != 0) {
        q_delete(a, p);
        return q_fail(LQ_E_NOMEM, "the system has no room for another lock");
    }
    const bool woken = pthread_cond_init(&p->woken, NULL) == 0;
    if (!woken || pthread_cond_init(&p->rejoin, NULL) != 0) {
        if (woken) pthread_cond_destroy(&p->woken);
        pthread_mutex_destroy(&p->lock);
        q_delete(a, p);
        return q_fail(LQ_E_NOMEM, "the system has no room for another condition variable");
    }
    pthread_attr_t attr;
    sigset_t all, before;
    sigfillset(&all);
    int err = pthread_attr_init(&attr);
    if (err == 0) {
        pthread_attr_setstacksize(&attr, WORKER_STACK);
        pthread_sigmask(SIG_SETMASK, &all, &before);
        for (uint32_t i = 1; i < threads && err == 0; i++) {
            worker *w = &p->workers[i];
            w->pool = p;
            w->index = i;
            err = pthread_create(&w->id, &attr, worker_main, w);
            if (err == 0) p->started++;
        }
        pthread_sigmask(SIG_SETMASK, &before, NULL);
        pthread_attr_destroy(&attr);
    }
    if (err != 0) {
        const uint32_t started = p->started;
        q_pool_close(p);
        return q_fail(LQ_E_NOMEM, "the system refused thread %u of %u (error %d)", started + 2, threads, err);
    }
    *out = p;
    return LQ_OK;
}

void q_pool_close(q_pool *p) {
    if (!p) return;
    atomic_store(&p->stop, true);
    announce(p, COUNT_MASK); /* more than any run has: nobody is left out */
    for (uint32_t i = 1; i <= p->started; i++) pthread_join(p->workers[i].id, NULL);
    pthread_cond_destroy(&p->rejoin);
    pthread_cond_destroy(&p->woken);
    pthread_mutex_destroy(&p->lock);
    q_delete(p->alloc, p);
}

uint32_t q_pool_threads(const q_pool *p) { return p->threads; }
uint32_t q_pool_running(const q_pool *p) { return p->running; }

void q_pool_run_on(q_pool *p, uint32_t threads, void (*fn)(void *arg, uint32_t thread), void *arg) {
    atomic_store_explicit(&p->next, 0, memory_order_relaxed);
    p->running = threads = Q_MAX(Q_MIN(threads, p->threads), 1u);
    if (threads == 1) {
        fn(arg, 0);
        return;
    }
    p->fn = fn;
    p->arg = arg;
    atomic_store(&p->pending, threads - 1);
    announce(p, threads);
    fn(arg, 0);
    for (uint64_t left; (left = atomic_load_explicit(&p->pending, memory_order_acquire)) != 0;)
        wait_change(p, &p->pending, left);
}

void q_pool_run(q_pool *p, void (*fn)(void *arg, uint32_t thread), void *arg) { q_pool_run_on(p, p->threads, fn, arg); }

void q_pool_barrier(q_pool *p) {
    if (p->running == 1) {
        atomic_store_explicit(&p->next, 0, memory_order_relaxed);
        return;
    }
    /* Read before arriving: once this thread is counted, the last one may move the phase on. */
    const uint64_t phase = atomic_load_explicit(&p->phase, memory_order_relaxed);
    if (atomic_fetch_add_explicit(&p->arrived, 1, memory_order_acq_rel) + 1 < p->running) {
        wait_change(p, &p->phase, phase);
        return;
    }
    atomic_store_explicit(&p->arrived, 0, memory_order_relaxed);
    atomic_store_explicit(&p->next, 0, memory_order_relaxed);
    atomic_fetch_add(&p->phase, 1);
    wake(p, &p->sleepers, &p->woken);
}

bool q_pool_claim_some(q_pool *p, int64_t total, int64_t most, int64_t least, int64_t *begin, int64_t *end) {
    int64_t at = atomic_load_explicit(&p->next, memory_order_relaxed), n;
    do {
        const int64_t left = total - at, share = Q_MIN(most, left / (2 * (int64_t)p->running)) / least * least;
        if (left <= 0) return false;
        n = Q_MIN(Q_MAX(share, least), left);
    } while (!atomic_compare_exchange_weak_explicit(&p->next, &at, at + n, memory_order_relaxed, memory_order_relaxed));
    *begin = at;
    *end = at + n;
    return true;
}

bool q_pool_claim(q_pool *p, int64_t total, int64_t step, int64_t *begin, int64_t *end) {
    return q_pool_claim_some(p, total, step, step, begin, end);
}

typedef struct for_job {
    q_pool *pool;
    int64_t total, step;
    void (*fn)(void *arg, int64_t begin, int64_t end, uint32_t thread);
    void *arg;
} for_job;

static void for_thread(void *arg, uint32_t thread) {
    const for_job *j = (const for_job *)arg;
    for (int64_t b, e; q_pool_claim(j->pool, j->total, j->step, &b, &e);) j->fn(j->arg, b, e, thread);
}

void q_pool_for(q_pool *p, int64_t total, int64_t step,
                void (*fn)(void *arg, int64_t begin, int64_t end, uint32_t thread), void *arg) {
    for_job j = {p, total, Q_MAX(step, (int64_t)1), fn, arg};
    if (total > 0) q_pool_run(p, for_thread, &j);
}

/* The system's lock lies in the bytes of ours. */
_Static_assert(sizeof(pthread_mutex_t) <= sizeof(q_mutex) && _Alignof(pthread_mutex_t) <= _Alignof(q_mutex),
               "q_mutex has no room for a pthread_mutex_t");
static pthread_mutex_t *of_system(q_mutex *m) { return (pthread_mutex_t *)(void *)m->of_system; }

lq_status q_mutex_open(q_mutex *m) {
    if (pthread_mutex_init(of_system(m), NULL) != 0)
        return q_fail(LQ_E_NOMEM, "the system has no room for another lock");
    return LQ_OK;
}
void q_mutex_close(q_mutex *m) { pthread_mutex_destroy(of_system(m)); }
void q_mutex_lock(q_mutex *m) { pthread_mutex_lock(of_system(m)); }
void q_mutex_unlock(q_mutex *m) { pthread_mutex_unlock(of_system(m)); }

uint64_t q_hardware_bits(int word) { return getauxval(word ? AT_HWCAP2 : AT_HWCAP); }

bool q_permit_tiles(void) {
#if defined(__x86_64__) && defined(SYS_arch_prctl)
    enum { REQUEST = 0x1023 /* ARCH_REQ_XCOMP_PERM, since Linux 5.16 */, TILE_DATA = 18 };
    return syscall(SYS_arch_prctl, REQUEST, TILE_DATA) == 0;
#else
    return false;
#endif
}

double q_clock(void) {
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return (double)t.tv_sec + 1e-9 * (double)t.tv_nsec;
}

/* ---- how many threads: CPUs in the affinity mask, bounded by the CPU quota of every control group above us */

static uint32_t affinity_count(void) {
    cpu_set_t sets[8]; /* 8192 CPUs */
    memset(sets, 0, sizeof sets);
    if (sched_getaffinity(0, sizeof sets, sets) == 0) {
        const int n = CPU_COUNT_S(sizeof sets, sets);
        if (n > 0) return (uint32_t)n;
    }
    const long n = sysconf(_SC_NPROCESSORS_ONLN);
    return n > 0 ? (uint32_t)n : 1;
}

static bool read_line(const char *path, char *line, size_t n) {
    FILE *f = fopen(path, "re");
    if (!f) return false;
    const bool ok = fgets(line, (int)n, f) != NULL;
    fclose(f);
    return ok;
}

/* CPUs that quota / period allow, rounded up; `limit` when there is no quota. */
static uint32_t bounded(long long quota, long long period, uint32_t limit) {
    if (quota <= 0 || period <= 0) return limit;
    const long long cpus = quota / period + (quota % period != 0);
    return cpus < (long long)limit ? (uint32_t)cpus : limit;
}

static void group_quota(const char *folder, int version, void *arg) {
    uint32_t *limit = (uint32_t *)arg;
    char file[1500], line[128];
    long long quota, period;
    if (version == 2) {
        snprintf(file, sizeof file, "%s/cpu.max", folder);
        if (read_line(file, line, sizeof line) && sscanf(line, "%lld %lld", &quota, &period) == 2)
            *limit = bounded(quota, period, *limit);
        return; /* "max 100000": no quota */
    }
    snprintf(file, sizeof file, "%s/cpu.cfs_quota_us", folder);
    if (!read_line(file, line, sizeof line) || sscanf(line, "%lld", &quota) != 1) return;
    snprintf(file, sizeof file, "%s/cpu.cfs_period_us", folder);
    if (!read_line(file, line, sizeof line) || sscanf(line, "%lld", &period) != 1) return;
    *limit = bounded(quota, period, *limit);
}

uint32_t q_threads_default(void) {
    uint32_t limit = Q_MIN(affinity_count(), (uint32_t)MAX_THREADS);
    q_groups_visit("", "cpu", group_quota, &limit);
    return Q_MAX(limit, 1u);
}
