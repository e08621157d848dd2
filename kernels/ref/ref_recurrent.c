/* ref_recurrent.c: CONV and SCAN, the operations with state from token to token. Columns of one sequence are
 * consecutive. Layer L2. */
#include "ref.h"

static float *state_of(const q_inst *s, const q_exec *e, int64_t c) {
    return e->state + e->batch->seqs[e->batch->seq[c]].state * e->state_floats + s->state;
}

void q_ref_conv(const q_inst *s, const q_exec *e, int64_t begin, int64_t end) {
    const int64_t past = s->taps - 1;
    for (int64_t ch = begin; ch < end; ch++) {
        const float b = q_ref_bias(s->b, 0, ch);
        float *w = e->scratch;
        q_decode_row(s->w->format, q_ref_row(s->w, 0, ch), s->taps, w);
        for (int64_t c = 0; c < e->batch->n; c++) {
            float *old = state_of(s, e, c) + ch * past, v = 0;
            if (e->batch->pos[c] == 0) memset(old, 0, sizeof *old * (size_t)past);
            const float x = *q_ref_flat(e, &s->x, c, ch);
            for (int64_t t = 0; t < past; t++) v = fmaf(w[t], old[t], v);
            v = fmaf(w[past], x, v);
            if (s->b) v += b;
            *q_ref_flat(e, &s->y, c, ch) = q_ref_act(s->kind, v);
            for (int64_t t = 0; t + 1 < past; t++) old[t] = old[t + 1];
            if (past > 0) old[past - 1] = x;
        }
    }
}

size_t q_ref_scan_scratch(const q_inst *s) {
    q_ref_carve carve = {NULL, 0};
    q_ref_take(&carve, s->op == Q_OP_CONV ? s->taps : s->v.width, sizeof(float));
    return carve.used;
}

/* One token of one head; state [k][v], r of v width. */
static void scan1(const q_inst *s, float *state, const float *q, const float *k, const float *v, float decay,
                  float beta, float *r, float *y) {
    const int64_t kw = s->z.width, vw = s->v.width;
    for (int64_t j = 0; j < vw; j++) r[j] = 0;
    for (int64_t i = 0; i < kw; i++)
        for (int64_t j = 0; j < vw; j++) {
            state[i * vw + j] *= decay;
            r[j] = fmaf(state[i * vw + j], k[i], r[j]);
        }
    for (int64_t j = 0; j < vw; j++) r[j] = beta * (v[j] - r[j]);
    for (int64_t i = 0; i < kw; i++)
        for (int64_t j = 0; j < vw; j++) state[i * vw + j] = fmaf(k[i], r[j], state[i * vw + j]);
    for (int64_t j = 0; j < vw; j++) {
        float out = 0;
        for (int64_t i = 0; i < kw; i++) out = fmaf(state[i * vw + j], q[i], out);
        r[j] = q_ref_or1(s->scale) * out;
    }
    for (int64_t j = 0; j < vw; j++) y[j] = r[j]; /* after all reads: y may lie on v */
}

void q_ref_scan(const q_inst *s, const q_exec *e, int64_t begin, int64_t end) {
    const int64_t heads = s->v.heads, size = (int64_t)s->z.width * s->v.width;
    for (int64_t h = begin; h < end; h++) {
        const float a = q_ref_value(s->w, 0, h), bias = q_ref_bias(s->b, 0, h);
        const int64_t hq = h / (heads / s->x.heads), hk = h / (heads / s->z.heads);
        for (int64_t c = 0; c < e->batch->n; c++) {
            float *state = state_of(s, e, c) + h * size;
            if (e->batch->pos[c] == 0) memset(state, 0, sizeof *state * (size_t)size);
            const float decay = expf(a * q_ref_softplus(*q_ref_flat(e, &s->u, c, h) + bias));
            const float beta = q_ref_sigmoid(*q_ref_flat(e, &s->u, c, heads + h));
            scan1(s, state, q_ref_at(e, &s->x, c, hq), q_ref_at(e, &s->z, c, hk), q_ref_at(e, &s->v, c, h), decay, beta,
                  e->scratch, q_ref_at(e, &s->y, c, h));
        }
    }
}
