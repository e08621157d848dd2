/* ref_norm.c: NORM and HEADNORM. Layer L2. */
#include "ref.h"

size_t q_ref_norm_scratch(const q_inst *s) {
    q_ref_carve carve = {NULL, 0};
    q_ref_take(&carve, s->w ? s->w->k : 0, sizeof(float));
    q_ref_take(&carve, s->b ? s->b->k : 0, sizeof(float));
    return carve.used;
}

/* A learned vector as float32; NULL when the step has none. */
static const float *learned(const q_weight *w, q_ref_carve *carve) {
    if (!w) return NULL;
    float *v = q_ref_take(carve, w->k, sizeof(float));
    q_decode_row(w->format, w->data, w->k, v);
    return v;
}

/* One vector: y = (x - mean) * r, then * w, + b, * silu(z), each rounded; w, b, z may be NULL. y may be x. */
static void norm(const q_inst *s, const float *x, const float *w, const float *b, const float *z, float *y,
                 int64_t n) {
    float mean = 0, r;
    if (s->kind == Q_NORM_LAYER) {
        mean = q_ref_sum(x, n) / (float)n;
        r = 1.0f / sqrtf(q_ref_sum_sq_diff(x, mean, n) / (float)n + s->eps);
    } else if (s->kind == Q_NORM_L2) {
        const float length = sqrtf(q_ref_dot(x, x, n));
        r = 1.0f / (length > s->eps ? length : s->eps);
    } else {
        r = 1.0f / sqrtf(q_ref_dot(x, x, n) / (float)n + s->eps);
    }
    for (int64_t i = 0; i < n; i++) {
        float v = (x[i] - mean) * r;
        if (w) v *= w[i];
        if (b) v += b[i];
        if (z) v *= q_ref_act(Q_ACT_SILU, z[i]);
        y[i] = s->add ? y[i] + v : v;
    }
}

void q_ref_norm(const q_inst *s, const q_exec *e, int64_t begin, int64_t end) {
    q_ref_carve carve = {e->scratch, 0};
    const float *w = learned(s->w, &carve), *b = learned(s->b, &carve);
    for (int64_t c = begin; c < end; c++)
        norm(s, q_ref_at(e, &s->x, q_ref_gather(s, e, c), 0), w, b, NULL, q_ref_at(e, &s->y, c, 0), s->x.width);
}

void q_ref_headnorm(const q_inst *s, const q_exec *e, int64_t begin, int64_t end) {
    q_ref_carve carve = {e->scratch, 0};
    const float *w = learned(s->w, &carve), *b = learned(s->b, &carve);
    const int64_t n = s->x.width, w_step = w && s->w->k > n ? n : 0, b_step = b && s->b->k > n ? n : 0;
    for (int64_t c = begin; c < end; c++)
        for (int64_t h = 0; h < s->x.heads; h++)
            norm(s, q_ref_at(e, &s->x, c, h), w ? w + h * w_step : NULL, b ? b + h * b_step : NULL,
                 s->z.slot ? q_ref_at(e, &s->z, c, h) : NULL, q_ref_at(e, &s->y, c, h), n);
}
