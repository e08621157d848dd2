/* threads.h: the thread pool, its barrier and its work counter; locks; the processor's features; the clock.
 *
 * All OS threading calls are in threads.c. A pool runs one function on all its threads (the caller's is thread 0);
 * workers spin briefly and then sleep between runs. Layer L0. */
#ifndef Q_THREADS_H
#define Q_THREADS_H

#include "memory.h"

typedef struct q_pool q_pool;

/* Threads to use by default: the affinity mask and the cgroup CPU quota counted; at least 1. */
uint32_t q_threads_default(void);

/* `threads` in [1, 1024]. One thread makes no OS thread. */
lq_status q_pool_open(const q_alloc *a, uint32_t threads, q_pool **out);
/* What q_pool_open asks of the allocator, in one block. */
uint64_t q_pool_bytes(uint32_t threads);
/* And of the system beside it: address space for the stacks of its workers. */
uint64_t q_pool_stacks(uint32_t threads);
void q_pool_close(q_pool *pool);
uint32_t q_pool_threads(const q_pool *pool);

/* Run fn(arg, thread) on every thread and return when all have returned. Not reentrant. */
void q_pool_run(q_pool *pool, void (*fn)(void *arg, uint32_t thread), void *arg);
/* The same on the first `threads` of them; the others sleep. Fewer than 1 count as 1, more than there are as all. */
void q_pool_run_on(q_pool *pool, uint32_t threads, void (*fn)(void *arg, uint32_t thread), void *arg);
/* Inside a run: how many threads it has. */
uint32_t q_pool_running(const q_pool *pool);

/* Inside a run: wait until every thread is here. Memory written before is visible after. */
void q_pool_barrier(q_pool *pool);

/* Inside a run: claim the next `step` of [0, total) from the shared counter; returns false when none is left.
 * Every thread calls it with the same numbers between two barriers; the barrier resets the counter. */
bool q_pool_claim(q_pool *pool, int64_t total, int64_t step, int64_t *begin, int64_t *end);
/* The same by claims that shrink towards the end, so that threads end together: `most`, and less where what is left is
 * fewer than two such claims for each thread; in multiples of `least` but for the last. */
bool q_pool_claim_some(q_pool *pool, int64_t total, int64_t most, int64_t least, int64_t *begin, int64_t *end);

/* Outside a run: fn(arg, begin, end, thread) over chunks of [0, total). */
void q_pool_for(q_pool *pool, int64_t total, int64_t step,
                void (*fn)(void *arg, int64_t begin, int64_t end, uint32_t thread), void *arg);

/* A lock for what threads of the embedder share, held for short. Opened where it lies; not to be moved. */
typedef struct q_mutex {
    _Alignas(16) unsigned char of_system[64];
} q_mutex;
lq_status q_mutex_open(q_mutex *m);
void q_mutex_close(q_mutex *m);
void q_mutex_lock(q_mutex *m);
void q_mutex_unlock(q_mutex *m);

/* What the system says this processor offers, as bits of its own numbering, in two words (Linux: AT_HWCAP, AT_HWCAP2);
 * 0 = it does not say. */
uint64_t q_hardware_bits(int word);

/* Ask the system to let this process use tile registers (AMX, x86), which it gives to no process unasked: true when it
 * does. What it grants holds for all threads of the process, those there and those created later, and for children
 * until they execute another program; it cannot be given back, and asking again changes nothing. Beside tiles working
 * it has one effect: signal frames may become 8 KiB larger, so the system refuses when a thread has an alternate signal
 * stack (sigaltstack) that is too small for that, and from then on refuses such stacks. */
bool q_permit_tiles(void);

/* Monotonic seconds. */
double q_clock(void);

#endif
