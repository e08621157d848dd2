/* openblas.h: OpenBLAS's product of float32 matrices, for `lq bench kernels` to stand beside. Part of the program `lq`.
 *
 * The library is opened at run time; libquant opens it too, for Hessians (libquant/dense.h). OpenBLAS chooses its
 * kernels once, when it is loaded, by the processor's model number: a release older than the processor takes it for one
 * of 2004 and runs several times too slow. So it is told beforehand what this machine's instruction sets are worth, and
 * asked afterwards. */
#ifndef BENCH_OPENBLAS_H
#define BENCH_OPENBLAS_H

#include <string.h>

#include "kernels.h"

typedef struct bench_openblas {
    void *library;
    const char *core;   /* what it says that it runs: "SkylakeX" */
    const char *wanted; /* what this machine is worth; NULL = left to the library */
    void (*set_threads)(int n);
    void (*sgemm)(int order, int trans_a, int trans_b, int m, int n, int k, float alpha, const float *a, int lda,
                  const float *b, int ldb, float beta, float *c, int ldc);
} bench_openblas;

/* For kernels of these rungs and so many threads. LQ_E_UNSUPPORTED, with the reason as detail: it is not installed, or
 * cannot do that. Close it even then. */
lq_status bench_openblas_open(bench_openblas *b, q_isas isas, uint32_t threads);
void bench_openblas_close(bench_openblas *b);
static inline bool bench_openblas_is_wrong(const bench_openblas *b) {
    return b->wanted && strcmp(b->core, b->wanted) != 0;
}

/* Only tell it, in the environment, what this machine is worth, for who opens it later in this process. */
void bench_openblas_tell(void);

/* y = w x for float32 weights that lie in memory: one call per pass, as a program would call it for a prompt. */
lq_status bench_openblas_product(const bench_openblas *b, const bench_kernel_how *how, uint64_t memory,
                                 bench_kernel_time *out);

#endif
