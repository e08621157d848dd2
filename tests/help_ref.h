/* help_ref.h: a small stage on which a test runs one reference operation: slots, weights, state, pools, and a run that
 * checks by itself that chunks of units give the bits of the whole. Everything has exactly its stated size. */
#ifndef HELP_REF_H
#define HELP_REF_H

#include "harness.h"

#include "../libquant/plan.h"

enum { FX_SLOTS = 6, FX_WEIGHTS = 8, FX_REGIONS = 12 };

typedef struct fx {
    uint64_t seed;
    float *slots[FX_SLOTS]; /* [1] .. */
    float *old[FX_SLOTS];   /* as they were before the last fx_run */
    int32_t width[FX_SLOTS];
    int32_t n_slots;
    q_weight weights[FX_WEIGHTS];
    float *decoded[FX_WEIGHTS];
    int n_weights;
    float *state;
    q_seq_ref seqs[4];
    uint8_t *pools[2];
    uint64_t pool_bytes;
    int32_t *defaults; /* pos, seq, out when a test sets none */
    q_plan plan;
    q_batch batch;
    q_exec e;
} fx;

/* n columns and `count` slots of these widths, numbered from 1, with random values. */
void fx_init(fx *t, int32_t n, const int32_t *widths, int32_t count);
void fx_free(fx *t);
/* A random weight in a format; kept by t. */
q_weight *fx_weight(fx *t, const char *format, int32_t rows, int32_t k, int32_t matrices);
/* A row of it as float32. */
const float *fx_row(fx *t, const q_weight *w, int32_t matrix, int32_t row);
/* Wanted rows of logits: columns 0 .. n_out - 1. */
void fx_logits(fx *t, int32_t vocab, int32_t n_out);
/* Zeroed recurrent state for each of `seqs` sequences. */
void fx_state(fx *t, int32_t seqs, int32_t floats);
/* Give t->e scratch of exactly the stated size for this step; the caller frees it. */
void *fx_scratch(fx *t, const q_inst *s);
/* Run all units at once; before, run them in ragged chunks, last chunk first, and compare every byte. */
void fx_run(fx *t, const q_inst *s);

static inline q_view fx_view(int32_t slot, int32_t offset, int32_t heads, int32_t width) {
    return (q_view){slot, offset, heads, width, width};
}
static inline float *fx_at(fx *t, const q_view *v, int32_t c, int32_t h, int32_t i) {
    return t->slots[v->slot] + c * t->width[v->slot] + v->offset + h * v->stride + i;
}

#define ck_near(got, want, tol)                                                                              \
    do {                                                                                                     \
        const double got_ = (got), want_ = (want);                                                           \
        ck_assert_msg(fabs(got_ - want_) <= (tol) * (1 + fabs(want_)), "%s: %.9g, wanted %.9g", #got, got_, want_); \
    } while (0)

#endif
