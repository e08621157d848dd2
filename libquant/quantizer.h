/* quantizer.h: a way of choosing the bits of a matrix, given the format it must fill.
 *
 * One file libquant/quantizers/X.c and the line QUANTIZER(x) in quantizers.def. Pure and thread-safe: the caller splits
 * the rows. Uses a format's fit, nearest and emit alone, so any quantizer fills any format it accepts. Layer L1. */
#ifndef Q_QUANTIZER_H
#define Q_QUANTIZER_H

#include "format.h"

typedef enum { Q_NEEDS_NONE, Q_NEEDS_DIAGONAL, Q_NEEDS_HESSIAN } q_stats_kind;

typedef struct q_quant_job {
    const q_format *format;
    const float *x;         /* rows x k, finite */
    int64_t rows, k;        /* k is a multiple of the format's block */
    const float *diagonal;  /* [k] mean square of each input over calibration tokens, in any unit; NULL = none */
    const float *hessian;   /* [k][k]; NULL = none */
} q_quant_job;

typedef struct q_quantizer {
    const char *name;
    q_stats_kind needs;
    bool (*accepts)(const q_format *f);
    /* Write rows * row_bytes bytes. */
    lq_status (*quantize)(const q_quant_job *job, uint8_t *dst);
    q_stats_kind uses;      /* what it makes use of where it is at hand; at least `needs` */
} q_quantizer;

extern const q_quantizer *const q_quantizers[]; /* from quantizers.def */
const q_quantizer *q_quantizer_find(const char *name);

#endif
