/* peak.h: how fast this machine multiplies and adds: the roof of kernels that are bound by arithmetic.
 *
 * A row is a loop of nothing but multiply-adds on registers, one per instruction set and kind of number: what a kernel
 * made of those instructions cannot exceed. One file per family (peak_scalar.c, peak_x86.c, peak_arm.c); part of the
 * program `lq`, not of the library. */
#ifndef BENCH_PEAK_H
#define BENCH_PEAK_H

#include "../kernels/cpu/cpu.h"
#include "rate.h"

typedef struct bench_peak {
    const char *kind; /* "fp32", "int8": bytes into 32-bit sums, "bf16": pairs into float32 sums */
    const char *isa;  /* as isa.def calls it where the library has the rung */
    const char *how;  /* the instructions of one step */
    bool (*present)(void);
    uint64_t ops;     /* operations per turn of the loop: a multiply-add is two */
    void (*run)(uint64_t turns);
} bench_peak;

/* Rows of this machine's family, least first; NULL past the end. Rows that are not present are listed too. */
const bench_peak *bench_peak_at(size_t index);
/* The last peak of this kind on what a kernel of this rung may use; NULL when none. */
const bench_peak *bench_peak_for(const char *kind, q_isa isa);

/* Operations per second of `threads` threads together, in `passes` passes of some milliseconds. False: no memory or no
 * threads, or a signal came. */
bool bench_peak_rate(const bench_peak *peak, uint32_t threads, uint32_t passes, bench_rate *out);

/* Bytes per second of a streaming read of `buffer` bytes by `threads` threads together. bench/roof.c. */
bool bench_read_rate(uint32_t threads, uint64_t buffer, uint32_t passes, bench_rate *out);

/* Barriers, and runs of a pool that do nothing, per second of `threads` threads. bench/sync.c. */
bool bench_sync_rate(uint32_t threads, uint32_t passes, bench_rate *barriers, bench_rate *runs);

/* Independent sums in a loop: enough for the latency of the multiply-adds that a machine starts per cycle. */
#define BENCH_SUMS 12
#define BENCH_TIMES_12(STEP)                                                                                           \
    STEP(0) STEP(1) STEP(2) STEP(3) STEP(4) STEP(5) STEP(6) STEP(7) STEP(8) STEP(9) STEP(10) STEP(11)

extern const bench_peak bench_peaks_scalar[];
#if defined(__x86_64__)
extern const bench_peak bench_peaks_x86[];
#elif defined(__aarch64__)
extern const bench_peak bench_peaks_arm[];
#endif

#endif
