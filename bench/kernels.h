/* kernels.h: timing single rows of kernels/cpu/kernels.def: products, activation formats, other steps, samplers. Part
 * of the program `lq`. It includes the CPU backend's own header: a kernel is a record of that backend, and no plan that
 * a model needs would reach the rows that later ones hide. */
#ifndef BENCH_KERNELS_H
#define BENCH_KERNELS_H

#include "../kernels/cpu/cpu.h"
#include "rate.h"

typedef struct bench_kernels bench_kernels; /* threads, and memory for the weights of one format at a time */

/* `memory`: bytes that are free. */
lq_status bench_kernels_open(uint32_t threads, uint64_t memory, bench_kernels **out);
void bench_kernels_close(bench_kernels *b);

typedef struct bench_kernel_how {
    int64_t depth;    /* products: weights of a row; activation formats: values of a column */
    int32_t columns;
    int32_t context;  /* attention: keys that the last column sees */
    uint32_t passes;
    bool hot;         /* products: weights that stay in the caches, instead of many that come from memory */
    /* attention and storing: the format of keys and values (kv_forms.def), numbers of a head, query heads that share
     * one of keys */
    const char *kv;
    int32_t head, share;
} bench_kernel_how;
enum { BENCH_KERNEL_VALUES = 4096 /* of all query heads of a token */ };

typedef struct bench_kernel_time {
    double ops;        /* per pass; 0 = what bounds it is bytes */
    double bytes;      /* per pass: of weights, keys and values; where there are none, of what is read and written */
    bench_rate passes; /* passes per second */
    char shape[96];    /* "4096 deep; 8 columns" */
} bench_kernel_time;

/* LQ_E_CANCELLED when a signal came. Products run on all threads, each on rows of its own. */
lq_status bench_kernel_product(bench_kernels *b, const q_cpu_kernel *k, const q_format *format,
                               const bench_kernel_how *how, bench_kernel_time *out);
/* Activation formats and other steps run on one thread. LQ_E_UNSUPPORTED: an operation that has no case here yet. */
lq_status bench_kernel_activation(const q_cpu_kernel *k, const bench_kernel_how *how, bench_kernel_time *out);
lq_status bench_kernel_step(const q_cpu_kernel *k, const bench_kernel_how *how, bench_kernel_time *out);
/* With loops of wide.h: choosing a token as sampler `i` does; its name, NULL past the last. On one thread. */
const char *bench_kernel_sampler(uint32_t i);
lq_status bench_kernel_sample(const q_cpu_kernel *k, uint32_t i, const bench_kernel_how *how, bench_kernel_time *out);

/* For the files that implement these: repeat `pass` until how->passes are timed, or a second is over. `grow` makes a
 * pass do more; false = it cannot. */
lq_status bench_kernel_time_passes(void (*pass)(void *arg), bool (*grow)(void *arg), void *arg, uint32_t passes,
                                   bench_rate *out);
/* Values that no kernel takes a short cut for. */
void bench_kernel_fill(float *x, int64_t n);

#endif
