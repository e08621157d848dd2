/* ref_sample.h: a choice of a token while it is made: what the files of SAMPLE share. Layer L2. */
#ifndef Q_REF_SAMPLE_H
#define Q_REF_SAMPLE_H

#include "../../libquant/wide.h"
#include "ref.h"

typedef struct q_choice {
    const q_sample_in *in;
    const lq_sampler *s;
    const q_wide *wide;
    int64_t n;
    const float *x; /* [n] the logits: the caller's, or `y` once they are changed */
    float *y;       /* [n] */
    float *most;    /* [spans] the largest of each Q_WIDE_SPAN of x */
    float *sums;    /* [spans] of weights; or marks */
    float best;     /* the largest of what is kept */
    /* What is kept: all of x where kept < 0; else so many: */
    int64_t kept;
    int32_t *ids;   /* [n] ascending */
    float *key;     /* [n] their logits */
    float *w;       /* [n] weights; or, before there are any, counts of tokens */
    int32_t *work;  /* [n] numbers of kept ones, in another order */
    int32_t *match; /* [tokens before it] */
} q_choice;

/* ref_sample_adjust.c: biases, mask, penalties, DRY. x and `most` are right afterwards. */
lq_status q_choice_adjust(q_choice *c);
bool q_choice_adjusts(const lq_sampler *s);
/* Each span of x that has a mark in `sums` gets its largest anew. */
void q_choice_refresh(q_choice *c);

/* ref_sample_keep.c: each step takes from what is kept. */
void q_choice_top_k(q_choice *c);
void q_choice_typical(q_choice *c);
void q_choice_top_p(q_choice *c);
void q_choice_min_p(q_choice *c);
void q_choice_xtc(q_choice *c);
/* *log_total: the natural logarithm of the sum of all weights at the temperature. */
void q_choice_mirostat(q_choice *c, double *log_total);

/* Weights of x (or what is kept) at a temperature above 0, with `w` as well where there is a list; their sum. */
double q_choice_weigh(q_choice *c, float temperature);
/* What exps (wide.h) multiplies halves with. */
float q_choice_by(float temperature);
/* The draws: uniform in [0, 1). */
enum { Q_DRAW_TOKEN, Q_DRAW_XTC };
double q_choice_uniform(const q_choice *c, int stream);

#endif
