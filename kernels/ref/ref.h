/* ref.h: what the reference operations share: the stated sums, addresses of operands, activations, scratch, and
 * products of weight rows with float32 or 8-bit activations.
 *
 * kernels/ref is the definition of every operation (libquant/op.h has the words): scalar C without a target
 * attribute, correct before fast. Operands, weights and page tables were checked by whoever bound the plan; nothing is
 * refused here. Layer L2; other kernels may include this file. */
#ifndef Q_REF_H
#define Q_REF_H

#include <math.h>

#include "../../libquant/plan.h"

#define OP(name, fn, unit) void fn(const q_inst *s, const q_exec *e, int64_t begin, int64_t end);
#include "../../libquant/ops.def"
#undef OP

/* --------------------------------------------------------------------------------------------------- sums (op.h) */

enum { Q_REF_LANES = 16 };

static inline float q_ref_fold(float lane[Q_REF_LANES]) {
    for (int w = Q_REF_LANES / 2; w > 0; w /= 2)
        for (int l = 0; l < w; l++) lane[l] += lane[l + w];
    return lane[0];
}

static inline float q_ref_dot(const float *a, const float *b, int64_t k) {
    float lane[Q_REF_LANES] = {0};
    int64_t i = 0;
    for (; i + Q_REF_LANES <= k; i += Q_REF_LANES)
        for (int l = 0; l < Q_REF_LANES; l++) lane[l] = fmaf(a[i + l], b[i + l], lane[l]);
    for (int l = 0; i + l < k; l++) lane[l] = fmaf(a[i + l], b[i + l], lane[l]);
    return q_ref_fold(lane);
}

static inline float q_ref_sum(const float *a, int64_t k) {
    float lane[Q_REF_LANES] = {0};
    for (int64_t i = 0; i < k; i++) lane[i % Q_REF_LANES] += a[i];
    return q_ref_fold(lane);
}

/* The sum of (a - mean)^2. */
static inline float q_ref_sum_sq_diff(const float *a, float mean, int64_t k) {
    float lane[Q_REF_LANES] = {0};
    for (int64_t i = 0; i < k; i++) {
        const float d = a[i] - mean;
        lane[i % Q_REF_LANES] = fmaf(d, d, lane[i % Q_REF_LANES]);
    }
    return q_ref_fold(lane);
}

/* ---------------------------------------------------------------------------------------------- operands and units */

/* Head h of column c of a view. */
static inline float *q_ref_at(const q_exec *e, const q_view *v, int64_t c, int64_t h) {
    return e->slots[v->slot] + c * e->plan->slot_width[v->slot] + v->offset + h * v->stride;
}

/* Value i of a view's column, heads one after the other. */
static inline float *q_ref_flat(const q_exec *e, const q_view *v, int64_t c, int64_t i) {
    return q_ref_at(e, v, c, i / v->width) + i % v->width;
}

/* Columns that a step works on, and the column that its x is read at where a step of domain OUT gathers. */
static inline int64_t q_ref_columns(const q_inst *s, const q_exec *e) {
    return s->out ? e->batch->n_out : e->batch->n;
}
static inline int64_t q_ref_gather(const q_inst *s, const q_exec *e, int64_t c) {
    return s->out ? e->batch->out[c] : c;
}

/* ROPE's frequencies for a column, which may be a wanted one. */
static inline const float *q_ref_freqs(const q_inst *s, const q_exec *e, int64_t c) {
    const q_batch *b = e->batch;
    const bool second = s->freq_tables > 1 && b->seqs[b->seq[q_ref_gather(s, e, c)]].freqs == 1;
    return s->freqs + (second ? s->rot / 2 : 0);
}

static inline float q_ref_or1(float scale) { return scale == 0 ? 1.0f : scale; }

/* ------------------------------------------------------------------------------------------------------ functions */

static inline float q_ref_sigmoid(float x) { return 1.0f / (1.0f + expf(-x)); }
static inline float q_ref_softcap(float x, float cap) { return cap != 0 ? cap * tanhf(x / cap) : x; }
static inline float q_ref_softplus(float x) { return x > 20.0f ? x : log1pf(expf(x)); }

/* An activation of q_kind; SWIGLU_CLAMP has two inputs: q_ref_glu1. */
static inline float q_ref_act(int kind, float x) {
    switch (kind) {
    case Q_ACT_SILU: return x / (1.0f + expf(-x));
    case Q_ACT_GELU: return 0.5f * x * (1.0f + erff(x * 0.70710678f));
    case Q_ACT_GELU_TANH: return 0.5f * x * (1.0f + tanhf(0.79788456f * (x + 0.044715f * x * x * x)));
    case Q_ACT_RELU: return x > 0 ? x : 0;
    case Q_ACT_RELU2: return x > 0 ? x * x : 0;
    case Q_ACT_SIGMOID: return q_ref_sigmoid(x);
    default: return x;
    }
}

/* act(x) * z, as GLU says. */
static inline float q_ref_glu1(const q_inst *s, float x, float z) {
    if (s->kind != Q_ACT_SWIGLU_CLAMP) return q_ref_act(s->kind, x) * z;
    const float a = x > s->limit ? s->limit : x;
    const float b = z > s->limit ? s->limit : z < -s->limit ? -s->limit : z;
    return a * q_ref_sigmoid(s->alpha * a) * (b + 1.0f);
}

/* The slope of ALiBi for query head h of an ATTN. */
float q_ref_alibi_slope(const q_inst *s, int64_t h);
/* What a query at `pos` of an ATTN over pages sees: positions [0, sinks), then [first, pos]. Between them is a gap, or
 * sinks is 0. */
typedef struct q_ref_sight {
    int64_t sinks, first;
} q_ref_sight;
static inline q_ref_sight q_ref_sees(const q_inst *s, int64_t pos) {
    const int64_t first = s->window > 0 && pos >= s->window ? pos - s->window + 1 : 0, sinks = s->sink_tokens;
    return sinks < first ? (q_ref_sight){Q_MAX(sinks, (int64_t)0), first} : (q_ref_sight){0, 0};
}

/* The draw of SAMPLE: a uniform number in [0, 1) from (seed, position) alone. */
double q_ref_uniform(uint64_t seed, uint64_t position);

/* --------------------------------------------------------------------------------------------------------- scratch */

/* Pieces of scratch, each Q_ALIGN-aligned. With base NULL only the size is counted, so that the function that lays out
 * a step's scratch also measures it. */
typedef struct q_ref_carve {
    uint8_t *base;
    size_t used;
} q_ref_carve;
static inline void *q_ref_take(q_ref_carve *c, int64_t count, size_t item) {
    const size_t at = c->used;
    Q_ASSUME(c->base); /* what is measured without one is never read or written */
    c->used += (size_t)q_round_up((uint64_t)count * item, Q_ALIGN);
    return c->base ? c->base + at : NULL;
}

/* --------------------------------------------------------------------------------------------------------- weights */

static inline const uint8_t *q_ref_row(const q_weight *w, int64_t matrix, int64_t row) {
    return w->data + (uint64_t)matrix * w->matrix_bytes + (uint64_t)row * w->row_bytes;
}

/* One value of row 0 of a matrix: biases and learned vectors, where a whole row would be waste. */
static inline float q_ref_value(const q_weight *w, int64_t matrix, int64_t i) {
    const q_format *f = w->format;
    const uint8_t *row = q_ref_row(w, matrix, 0);
    float y[Q_UNIT];
    if (f->weights == 1) {
        q_decode_row(f, row + i * f->bytes, 1, y);
        return y[0];
    }
    f->decode(row, (int)(i / f->weights), (int)(i % f->weights / Q_UNIT), y);
    return y[i % Q_UNIT];
}
static inline float q_ref_bias(const q_weight *b, int64_t matrix, int64_t i) {
    return b ? q_ref_value(b, matrix, i) : 0.0f;
}

/* bdot of op.h, and the rounding of its factors. w holds values that are so rounded. */
uint16_t q_ref_bf16(float v);
float q_ref_bdot(const float *w, const uint16_t *x, int64_t k);

/* A product of rows of w with vectors, as dot, idot or bdot (op.h): decode a row once, then multiply it with any number
 * of vectors. act is what q_ref_mul_act chose: NULL = the vectors are float32, else blocks of that q_act. */
typedef struct q_ref_mul {
    const q_act *act;
    const q_format *format;
    const int32_t *order;
    int64_t k, seg; /* seg: weights per exact integer sum */
    float *ordered; /* [k] a vector in the order of the weight's columns, on its way to being quantized */
    float *row;     /* [k] float32 row */
    int32_t *sq;    /* [k] sc * q */
    int32_t *mn;    /* [k / 16] */
    float *d;       /* [k / 32][2] */
} q_ref_mul;

/* The activation format that a weight is multiplied in when the kernel asks for `act`. */
const q_act *q_ref_mul_act(const q_act *act, const q_weight *w);
/* Most bytes of a vector that was made ready for a weight, whatever the activation format. */
static inline int64_t q_ref_vector_most(const q_weight *w) {
    const int64_t blocks = (int64_t)(w->k / 32 + 1) * 64;
    return w->order ? Q_MAX(blocks, (int64_t)w->k * (int64_t)sizeof(float)) : blocks;
}
/* Whether vectors are made ready before they are multiplied; how (x is as in its slot); and their bytes then. */
static inline bool q_ref_mul_copies(const q_ref_mul *m) { return m->act || m->order; }
void q_ref_mul_vector(const q_ref_mul *m, const float *x, void *to);
static inline int64_t q_ref_mul_bytes(const q_ref_mul *m) {
    return m->act ? q_act_bytes(m->act, m->k) : m->k * (int64_t)sizeof(float);
}
void q_ref_mul_open(q_ref_mul *m, const q_act *act, const q_weight *w, q_ref_carve *carve);
void q_ref_mul_row(q_ref_mul *m, const uint8_t *row);
float q_ref_mul_dot(const q_ref_mul *m, const void *x);

/* ROUTE in two parts: logits of some columns, whose sums a kernel may have its own way of, and the choice for one
 * column. */
typedef struct q_ref_route_scratch {
    float *row;           /* a row of w */
    float *logits;        /* [columns][n_expert] */
    float *value, *rank;  /* [n_expert]: what becomes the weight; what is compared, minus infinity = out */
    uint8_t *taken;
} q_ref_route_scratch;
void q_ref_route_open(q_ref_route_scratch *t, const q_inst *s, int64_t n, q_ref_carve *carve);
void q_ref_route_choose(const q_inst *s, q_ref_route_scratch *t, const float *logits, float *y);

/* Rows of pages (kv_form.h). Turn n numbers, `turn` at a time; 0 = leave them. Store key and value of token `row` of a
 * page; the first n numbers that they decode to. `keys`, `values`: those of a head (q_kv_k, q_kv_v). */
void q_ref_turn(float *x, int64_t n, int32_t turn);
void q_ref_kv_put_row(const q_kv_form *k, const q_kv_form *v, int64_t row, const float *key, const float *value,
                      uint8_t *keys, uint8_t *values);
void q_ref_kv_key(const q_kv_form *f, const uint8_t *keys, int64_t row, int64_t n, float *to);
void q_ref_kv_value(const q_kv_form *f, const uint8_t *values, int64_t row, int64_t n, float *to);

/* What each file of operations needs as scratch; q_ref_scratch asks the right one. */
size_t q_ref_norm_scratch(const q_inst *s);
size_t q_ref_matmul_scratch(const q_inst *s, int32_t n);
size_t q_ref_attn_scratch(const q_inst *s);
size_t q_ref_moe_scratch(const q_inst *s, int32_t n);
size_t q_ref_embed_scratch(const q_inst *s);
size_t q_ref_scan_scratch(const q_inst *s);

#endif
