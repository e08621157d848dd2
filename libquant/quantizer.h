/* quantizer.h: a way of choosing the bits of a matrix, given the format it must fill.
 *
 * One file libquant/quantizers/X.c and the line QUANTIZER(x) in quantizers.def. Pure and thread-safe: the caller splits
 * the rows. Uses a format's fit, nearest and emit alone, so any quantizer fills any format it accepts. Layer L1. */
#ifndef Q_QUANTIZER_H
#define Q_QUANTIZER_H

#include "format.h"
#include "log.h"
#include "threads.h"

typedef enum { Q_NEEDS_NONE, Q_NEEDS_DIAGONAL, Q_NEEDS_HESSIAN } q_stats_kind;

/* The Hessian of a matrix's error: 2/n times the sum of x x' over n calibration inputs x, in any unit. Symmetric: its lower
 * triangle row after row, k * (k + 1) / 2 finite values with no negative one on the diagonal. */
typedef struct q_quant_stats {
    const q_alloc *alloc;
    const q_log *log;
    q_pool *pool;
    const char *name;       /* the tensor's, for messages */
    int64_t k;
    const float *hessian;
} q_quant_stats;

typedef struct q_quant_job {
    const q_format *format;
    const float *x;         /* rows x k, finite */
    int64_t rows, k;        /* k is a multiple of the format's block */
    const float *diagonal;  /* [k] mean square of each input over calibration tokens, in any unit; NULL = none */
    const void *shared;     /* what prepare made of the matrix's Hessian */
    const q_alloc *alloc;   /* for what the rows need meanwhile */
    const struct q_wide *wide; /* as q_fit_in.wide */
} q_quant_job;

typedef struct q_quantizer {
    const char *name;
    q_stats_kind needs;
    bool (*accepts)(const q_format *f);
    /* Write rows * row_bytes bytes. */
    lq_status (*quantize)(const q_quant_job *job, uint8_t *dst);
    q_stats_kind uses;      /* what it makes use of where it is at hand; at least `needs` */
    int32_t rows;           /* it is fastest with so many at a time; the bytes do not depend on it */
    /* Where it needs the Hessian: what all rows of a matrix share, and other matrices with the same inputs, whatever their
     * format. Made once, outside the pool's runs, and then only read. */
    lq_status (*prepare)(const q_quant_stats *stats, void **shared);
    void (*release)(const q_alloc *a, void *shared); /* NULL is fine */
    /* What one call asks of the allocator at most, at any time: quantize; prepare by so many threads, and what it leaves.
     * NULL = nothing. */
    uint64_t (*quantize_bytes)(const q_format *f, uint64_t k);
    uint64_t (*prepare_bytes)(uint64_t k, uint32_t threads);
    /* Column i of the rows it writes is input order[i] of the k, the same for all matrices that share; lives as long as
     * `shared`. NULL: columns stay where they are. Only what keeps the order beside the rows can hold such rows. */
    const int32_t *(*order)(const void *shared);
} q_quantizer;

extern const q_quantizer *const q_quantizers[]; /* from quantizers.def */
const q_quantizer *q_quantizer_find(const char *name);

#endif
