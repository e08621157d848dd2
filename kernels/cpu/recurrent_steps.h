/* recurrent_steps.h: CONV and SCAN, the steps with state from token to token, in the vocabulary of vec.h: a vector is
 * neighbouring channels of CONV, neighbouring values of v in SCAN. Each value keeps its own order of op.h, so all but
 * CONV's SiLU is bit-equal to kernels/ref. Layer L2. */
#ifndef Q_RECURRENT_STEPS_H
#define Q_RECURRENT_STEPS_H

#include "../ref/ref.h"

static float *v_state_of(const q_inst *s, const q_exec *e, int64_t c) {
    return e->state + e->batch->seqs[e->batch->seq[c]].state * e->state_floats + s->state;
}

/* ------------------------------------------------------------------------------------------------------------ CONV */

enum { V_CHANNELS = 256 }; /* that are taken through all columns together: long runs, since columns lie far apart */

/* Rows of V_CHANNELS values each. */
typedef struct v_conv {
    float *taps;  /* [taps] */
    float *past;  /* [taps - 1] last inputs, oldest first; a ring that begins at `oldest` */
    float *bias, *in, *out;
    int64_t oldest;
} v_conv;

static void v_conv_open(v_conv *t, const q_inst *s, q_ref_carve *carve) {
    t->taps = (float *)q_ref_take(carve, (int64_t)s->taps * V_CHANNELS, sizeof(float));
    t->past = (float *)q_ref_take(carve, (int64_t)s->taps * V_CHANNELS, sizeof(float));
    t->bias = (float *)q_ref_take(carve, V_CHANNELS, sizeof(float));
    t->in = (float *)q_ref_take(carve, V_CHANNELS, sizeof(float));
    t->out = (float *)q_ref_take(carve, Q_MAX((int64_t)V_CHANNELS, s->taps), sizeof(float));
}
static uint64_t v_conv_bytes(const q_inst *s) {
    v_conv t;
    q_ref_carve carve = {NULL, 0};
    v_conv_open(&t, s, &carve);
    return carve.used;
}

/* Channels ch .. ch + n - 1: what they multiply with, and between columns of a sequence their past. */
static void v_conv_learn(v_conv *t, const q_inst *s, int64_t ch, int64_t n) {
    const bool floats = s->w->format == &q_format_f32 && ((uintptr_t)s->w->data | s->w->row_bytes) % sizeof(float) == 0;
    for (int64_t j = 0; j < n; j++) {
        const float *taps = (const float *)(const void *)q_ref_row(s->w, 0, ch + j);
        if (!floats) {
            q_decode_row(s->w->format, q_ref_row(s->w, 0, ch + j), s->taps, t->out);
            taps = t->out;
        }
        for (int64_t i = 0; i < s->taps; i++) t->taps[i * V_CHANNELS + j] = taps[i];
        if (s->b) t->bias[j] = q_ref_bias(s->b, 0, ch + j);
    }
}
static void v_conv_recall(v_conv *t, const q_inst *s, const float *state, int64_t n) {
    const int64_t past = s->taps - 1;
    for (int64_t j = 0; j < n; j++)
        for (int64_t i = 0; i < past; i++) t->past[i * V_CHANNELS + j] = state ? state[j * past + i] : 0;
    t->oldest = 0;
}
static void v_conv_keep(const v_conv *t, const q_inst *s, float *state, int64_t n) {
    const int64_t past = s->taps - 1;
    for (int64_t i = 0, at = t->oldest; i < past; i++, at = at + 1 == past ? 0 : at + 1)
        for (int64_t j = 0; j < n; j++) state[j * past + i] = t->past[at * V_CHANNELS + j];
}

/* A column: t->in to t->out. Lanes beyond the channels that exist hold what was there, and nobody reads them. */
V_FN static void v_conv_column(v_conv *t, const q_inst *s, int64_t n) {
    const int64_t past = s->taps - 1;
    for (int64_t j = 0; j < n; j += V_N) {
        v_f v = v_set(0);
        for (int64_t i = 0, at = t->oldest; i < past; i++, at = at + 1 == past ? 0 : at + 1)
            v = v_fma(v_load(t->taps + i * V_CHANNELS + j), v_load(t->past + at * V_CHANNELS + j), v);
        v = v_fma(v_load(t->taps + past * V_CHANNELS + j), v_load(t->in + j), v);
        if (s->b) v = v_add(v, v_load(t->bias + j));
        v_store(t->out + j, s->kind == Q_ACT_SILU ? v_act(Q_ACT_SILU, v) : v);
    }
    if (past == 0) return;
    memcpy(t->past + t->oldest * V_CHANNELS, t->in, (size_t)n * sizeof(float));
    t->oldest = t->oldest + 1 == past ? 0 : t->oldest + 1;
}

/* n values of a view's column from i on, to or from a row. */
static void v_gather(const q_exec *e, const q_view *v, int64_t c, int64_t i, int64_t n, float *row, bool back) {
    for (int64_t j = 0, run; j < n; j += run) {
        run = v_run(v, i + j, n - j);
        float *at = q_ref_flat(e, v, c, i + j);
        if (back) memcpy(at, row + j, (size_t)run * sizeof(float));
        else memcpy(row + j, at, (size_t)run * sizeof(float));
    }
}

bool V_NAME(conv_f32, _accepts)(const q_inst *s) { return s->kind == Q_ACT_NONE || s->kind == Q_ACT_SILU; }
uint64_t V_NAME(conv_f32, _scratch)(const q_inst *s, int32_t columns) {
    Q_UNUSED(columns);
    return v_conv_bytes(s);
}
V_FN void V_NAME(conv_f32, )(const q_inst *s, const q_exec *e, int64_t begin, int64_t end) {
    const q_batch *b = e->batch;
    v_conv t;
    q_ref_carve carve = {(uint8_t *)e->scratch, 0};
    v_conv_open(&t, s, &carve);
    memset(e->scratch, 0, carve.used); /* lanes without a channel: numbers, which trap nowhere */
    for (int64_t ch = begin, n; ch < end; ch += n) {
        n = Q_MIN(end - ch, (int64_t)V_CHANNELS);
        v_conv_learn(&t, s, ch, n);
        for (int64_t c = 0; c < b->n; c++) {
            float *state = v_state_of(s, e, c) + ch * (s->taps - 1);
            if (c == 0 || b->seq[c] != b->seq[c - 1] || b->pos[c] == 0)
                v_conv_recall(&t, s, b->pos[c] ? state : NULL, n);
            v_gather(e, &s->x, c, ch, n, t.in, false);
            v_conv_column(&t, s, n);
            v_gather(e, &s->y, c, ch, n, t.out, true);
            if (c + 1 == b->n || b->seq[c + 1] != b->seq[c]) v_conv_keep(&t, s, state, n);
        }
    }
}

/* ------------------------------------------------------------------------------------------------------------ SCAN */

enum { V_COLUMNS = 4 }; /* vectors of v that go through the keys together */

typedef struct v_scan {
    const float *q, *k, *v;
    float decay, beta, scale;
    int64_t kw, vw;
} v_scan;

/* Values j .. j + n * V_N - 1 of v, `left` of which exist. The results go to a row of scratch: y may lie on v. */
V_IN void v_scan_part(const v_scan *t, float *state, float *row, int64_t j, int n, int64_t left) {
    v_f r[V_COLUMNS], out[V_COLUMNS];
    Q_UNROLL for (int p = 0; p < n; p++) r[p] = out[p] = v_set(0);
    for (int64_t i = 0; i < t->kw; i++)
        Q_UNROLL for (int p = 0; p < n; p++) {
            float *at = state + i * t->vw + j + p * V_N;
            const v_f kept = v_mul(v_get(at, left - p * V_N), v_set(t->decay));
            v_put(at, kept, left - p * V_N);
            r[p] = v_fma(kept, v_set(t->k[i]), r[p]);
        }
    Q_UNROLL for (int p = 0; p < n; p++)
        r[p] = v_mul(v_set(t->beta), v_sub(v_get(t->v + j + p * V_N, left - p * V_N), r[p]));
    for (int64_t i = 0; i < t->kw; i++)
        Q_UNROLL for (int p = 0; p < n; p++) {
            float *at = state + i * t->vw + j + p * V_N;
            const v_f kept = v_fma(v_set(t->k[i]), r[p], v_get(at, left - p * V_N));
            v_put(at, kept, left - p * V_N);
            out[p] = v_fma(kept, v_set(t->q[i]), out[p]);
        }
    Q_UNROLL for (int p = 0; p < n; p++)
        v_put(row + j + p * V_N, v_mul(v_set(t->scale), out[p]), left - p * V_N);
}

V_FN static void v_scan1(const v_scan *t, float *state, float *row) {
    int64_t j = 0;
    for (; j + V_COLUMNS * V_N <= t->vw; j += V_COLUMNS * V_N)
        v_scan_part(t, state, row, j, V_COLUMNS, V_COLUMNS * V_N);
    for (; j + V_N <= t->vw; j += V_N) v_scan_part(t, state, row, j, 1, V_N);
    if (j < t->vw) v_scan_part(t, state, row, j, 1, t->vw - j);
}

bool V_NAME(scan_f32, _accepts)(const q_inst *s) {
    Q_UNUSED(s);
    return true;
}
uint64_t V_NAME(scan_f32, _scratch)(const q_inst *s, int32_t columns) {
    Q_UNUSED(columns);
    return q_ref_scan_scratch(s);
}
V_FN void V_NAME(scan_f32, )(const q_inst *s, const q_exec *e, int64_t begin, int64_t end) {
    const int64_t heads = s->v.heads, size = (int64_t)s->z.width * s->v.width;
    float *row = (float *)e->scratch;
    for (int64_t h = begin; h < end; h++) {
        const float a = q_ref_value(s->w, 0, h), bias = q_ref_bias(s->b, 0, h);
        const int64_t hq = h / (heads / s->x.heads), hk = h / (heads / s->z.heads);
        for (int64_t c = 0; c < e->batch->n; c++) {
            float *state = v_state_of(s, e, c) + h * size;
            if (e->batch->pos[c] == 0) memset(state, 0, sizeof *state * (size_t)size);
            const v_scan t = {.q = q_ref_at(e, &s->x, c, hq), .k = q_ref_at(e, &s->z, c, hk),
                              .v = q_ref_at(e, &s->v, c, h), .kw = s->z.width, .vw = s->v.width,
                              .decay = expf(a * q_ref_softplus(*q_ref_flat(e, &s->u, c, h) + bias)),
                              .beta = q_ref_sigmoid(*q_ref_flat(e, &s->u, c, heads + h)),
                              .scale = q_ref_or1(s->scale)};
            v_scan1(&t, state, row);
            memcpy(q_ref_at(e, &s->y, c, h), row, (size_t)t.vw * sizeof(float));
        }
    }
}

#endif
