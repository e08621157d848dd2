/* layer_steps.h: the steps between products that treat each column by itself, in the vocabulary of vec.h: EMBED NORM
 * HEADNORM GLU ROPE SCALE COPY ROUTE. Each keeps the order of op.h; functions such as e^x are vec.h's own, so GLU,
 * ROPE, a gated HEADNORM and soft caps differ from kernels/ref in the last places, the others in no bit. All shapes and
 * kinds are covered. layer_avx2.c, layer_avx512.c and layer_neon.c compile this text. Layer L2. */
#ifndef Q_LAYER_STEPS_H
#define Q_LAYER_STEPS_H

#include "../ref/ref.h"

extern const q_format q_format_f32;

/* A step's accepts() for everything, and its scratch. */
#define V_STEP(step, bytes)                                                  \
    bool V_NAME(step, _accepts)(const q_inst *s) {                           \
        Q_UNUSED(s);                                                         \
        return true;                                                         \
    }                                                                        \
    uint64_t V_NAME(step, _scratch)(const q_inst *s, int32_t columns) {      \
        Q_UNUSED(s);                                                         \
        Q_UNUSED(columns);                                                   \
        return (bytes);                                                      \
    }                                                                        \
    V_FN void V_NAME(step, )(const q_inst *s, const q_exec *e, int64_t begin, int64_t end)

/* ------------------------------------------------------------------------------------------------- NORM, HEADNORM */

/* A learned vector as float32: where it lies, or decoded into scratch; NULL when the step has none. */
static const float *v_learned(const q_weight *w, q_ref_carve *carve) {
    if (!w) return NULL;
    float *v = (float *)q_ref_take(carve, w->k, sizeof(float));
    if (w->format == &q_format_f32 && (uintptr_t)w->data % sizeof(float) == 0)
        return (const float *)(const void *)w->data;
    q_decode_row(w->format, w->data, w->k, v);
    return v;
}

V_IN float v_sum(const float *a, int64_t k) {
    v_f lane[V_PARTS];
    Q_UNROLL for (int p = 0; p < V_PARTS; p++) lane[p] = v_set(0);
    for (int64_t i = 0; i < k; i += 16)
        Q_UNROLL for (int p = 0; p < V_PARTS; p++)
            lane[p] = v_add(lane[p], v_get(a + i + p * V_N, k - i - p * V_N));
    return v_fold(lane);
}

V_IN float v_sum_sq_diff(const float *a, float mean, int64_t k) {
    v_f lane[V_PARTS];
    Q_UNROLL for (int p = 0; p < V_PARTS; p++) lane[p] = v_set(0);
    for (int64_t i = 0; i < k; i += 16)
        Q_UNROLL for (int p = 0; p < V_PARTS; p++) {
            const int64_t left = k - i - p * V_N;
            const v_f d = v_first(v_sub(v_get(a + i + p * V_N, left), v_set(mean)), left);
            lane[p] = v_fma(d, d, lane[p]);
        }
    return v_fold(lane);
}

/* What x - mean is multiplied with, and the mean. */
V_IN float v_norm_scale(const q_inst *s, const float *x, int64_t n, float *mean) {
    *mean = 0;
    if (s->kind == Q_NORM_LAYER) {
        *mean = v_sum(x, n) / (float)n;
        return 1.0f / sqrtf(v_sum_sq_diff(x, *mean, n) / (float)n + s->eps);
    }
    const float squares = v_dot(x, x, n);
    if (s->kind == Q_NORM_RMS) return 1.0f / sqrtf(squares / (float)n + s->eps);
    const float length = sqrtf(squares);
    return 1.0f / (length > s->eps ? length : s->eps);
}

typedef struct v_norm_with {
    const float *w, *b, *z; /* each may be NULL */
    bool add;
} v_norm_with;

V_IN void v_norm_part(const float *x, v_f mean, v_f r, v_norm_with t, float *y, int64_t i, int64_t n) {
    v_f v = v_mul(v_sub(v_get(x + i, n), mean), r);
    if (t.w) v = v_mul(v, v_get(t.w + i, n));
    if (t.b) v = v_add(v, v_get(t.b + i, n));
    if (t.z) v = v_mul(v, v_act(Q_ACT_SILU, v_get(t.z + i, n)));
    if (t.add) v = v_add(v_get(y + i, n), v);
    v_put(y + i, v, n);
}
V_IN void v_norm_run(const float *x, v_f mean, v_f r, v_norm_with t, float *y, int64_t n) {
    int64_t i = 0;
    for (; i + V_N <= n; i += V_N) v_norm_part(x, mean, r, t, y, i, V_N);
    if (i < n) v_norm_part(x, mean, r, t, y, i, n - i);
}

/* One vector. The usual case has a loop of its own, without a question per value. */
V_FN static void v_norm(const q_inst *s, const float *x, v_norm_with t, float *y, int64_t n) {
    float mean;
    const v_f r = v_set(v_norm_scale(s, x, n, &mean));
    if (t.w && !t.b && !t.z && !t.add) v_norm_run(x, v_set(mean), r, (v_norm_with){t.w, NULL, NULL, false}, y, n);
    else v_norm_run(x, v_set(mean), r, t, y, n);
}

V_STEP(norm_f32, q_ref_norm_scratch(s)) {
    q_ref_carve carve = {(uint8_t *)e->scratch, 0};
    const v_norm_with t = {v_learned(s->w, &carve), v_learned(s->b, &carve), NULL, s->add};
    for (int64_t c = begin; c < end; c++)
        v_norm(s, q_ref_at(e, &s->x, q_ref_gather(s, e, c), 0), t, q_ref_at(e, &s->y, c, 0), s->x.width);
}

V_STEP(headnorm_f32, q_ref_norm_scratch(s)) {
    q_ref_carve carve = {(uint8_t *)e->scratch, 0};
    const float *w = v_learned(s->w, &carve), *b = v_learned(s->b, &carve);
    const int64_t n = s->x.width, w_step = w && s->w->k > n ? n : 0, b_step = b && s->b->k > n ? n : 0;
    for (int64_t c = begin; c < end; c++)
        for (int64_t h = 0; h < s->x.heads; h++) {
            const v_norm_with t = {w ? w + h * w_step : NULL, b ? b + h * b_step : NULL,
                                   s->z.slot ? q_ref_at(e, &s->z, c, h) : NULL, s->add};
            v_norm(s, q_ref_at(e, &s->x, c, h), t, q_ref_at(e, &s->y, c, h), n);
        }
}

/* -------------------------------------------------------------------------------------------------------- MOE_DOWN */

V_FN void V_NAME(combine_f32, )(float *y, bool add, const float *value, int64_t n, const int32_t *place,
                                const float *weight, int64_t used) {
    for (int64_t r = 0; r < n; r += V_N) {
        v_f v = v_set(0);
        for (int64_t i = 0; i < used; i++) v = v_fma(v_set(weight[i]), v_get(value + place[i] * n + r, n - r), v);
        v_put(y + r, add ? v_add(v_get(y + r, n - r), v) : v, n - r);
    }
}

/* ------------------------------------------------------------------------------------------------------------- GLU */

V_IN v_f v_glu1(int kind, v_f x, v_f z, v_f limit, v_f alpha) {
    if (kind != Q_ACT_SWIGLU_CLAMP) return v_mul(v_act(kind, x), z);
    const v_f a = v_above(x, limit, limit, x), low = v_neg(limit);
    const v_f b = v_above(z, limit, limit, v_above(low, z, low, z));
    return v_mul(v_mul(a, v_sigmoid(v_mul(alpha, a))), v_add(b, v_set(1.0f)));
}

/* n values that lie one after the other; without z a plain activation. */
V_IN void v_glu_run(const q_inst *s, int kind, const float *x, const float *z, float *y, int64_t n) {
    const v_f limit = v_set(s->limit), alpha = v_set(s->alpha);
    int64_t i = 0;
    for (; i + V_N <= n; i += V_N) {
        const v_f a = v_load(x + i);
        v_store(y + i, z ? v_glu1(kind, a, v_load(z + i), limit, alpha) : v_act(kind, a));
    }
    if (i < n) {
        const v_f a = v_load_part(x + i, n - i);
        v_store_part(y + i, z ? v_glu1(kind, a, v_load_part(z + i, n - i), limit, alpha) : v_act(kind, a), n - i);
    }
}

/* Each kind has a function of its own: compiled without optimization all of them in one would take 4 MiB of stack,
 * since then no compiler lets inlined copies share their places, and a thread of the pool has 2 MiB. */
#define V_KINDS(row)                                                                                                \
    row(Q_ACT_SILU) row(Q_ACT_GELU) row(Q_ACT_GELU_TANH) row(Q_ACT_RELU) row(Q_ACT_RELU2) row(Q_ACT_SIGMOID)        \
    row(Q_ACT_SWIGLU_CLAMP) row(Q_ACT_NONE)
#define V_KIND(kind)                                                                                                \
    V_FN static void V_NAME(glu_##kind, )(const q_inst *s, const float *x, const float *z, float *y, int64_t n) {   \
        if (z) v_glu_run(s, kind, x, z, y, n);                                                                      \
        else v_glu_run(s, kind, x, NULL, y, n);                                                                     \
    }
V_KINDS(V_KIND)
#undef V_KIND

V_FN static void v_glu(const q_inst *s, const float *x, const float *z, float *y, int64_t n) {
    switch (s->kind) {
#define V_KIND(kind) \
    case kind: V_NAME(glu_##kind, )(s, x, z, y, n); break;
        V_KINDS(V_KIND)
#undef V_KIND
    default: break;
    }
}

V_STEP(glu_f32, 0) {
    const int64_t n = (int64_t)s->y.heads * s->y.width;
    for (int64_t c = begin; c < end; c++)
        for (int64_t i = 0, run; i < n; i += run) {
            run = v_run(&s->x, i, v_run(&s->y, i, n - i));
            if (s->z.slot) run = v_run(&s->z, i, run);
            v_glu(s, q_ref_flat(e, &s->x, c, i), s->z.slot ? q_ref_flat(e, &s->z, c, i) : NULL,
                  q_ref_flat(e, &s->y, c, i), run);
        }
}

/* ----------------------------------------------------------------------------------------------- SCALE, COPY, EMBED */

V_IN v_f v_scale1(v_f x, v_f scale, v_f gate, v_f cap, bool capped) {
    const v_f v = v_mul(v_mul(scale, x), gate);
    return capped ? v_mul(cap, v_tanh(v_div(v, cap))) : v;
}
V_IN void v_scale_run(const q_inst *s, bool capped, bool add, float gate, const float *x, float *y, int64_t n) {
    const v_f scale = v_set(q_ref_or1(s->scale)), g = v_set(gate), cap = v_set(s->softcap);
    for (int64_t i = 0, left; i < n; i += V_N) {
        left = n - i;
        const v_f v = v_scale1(v_get(x + i, left), scale, g, cap, capped);
        v_put(y + i, add ? v_add(v_get(y + i, left), v) : v, left);
    }
}

V_STEP(scale_f32, 0) {
    const int64_t n = (int64_t)s->y.heads * s->y.width;
    for (int64_t c = begin; c < end; c++) {
        const float gate = s->z.slot ? q_ref_sigmoid(*q_ref_at(e, &s->z, c, 0)) : 1.0f;
        for (int64_t i = 0, run; i < n; i += run) {
            run = v_run(&s->x, i, v_run(&s->y, i, n - i));
            const float *x = q_ref_flat(e, &s->x, c, i);
            float *y = q_ref_flat(e, &s->y, c, i);
            if (s->softcap != 0) v_scale_run(s, true, s->add, gate, x, y, run);
            else v_scale_run(s, false, s->add, gate, x, y, run);
        }
    }
}

V_STEP(copy_f32, 0) {
    const bool spread = s->x.heads == 1 && s->x.width == s->y.width; /* one head into all */
    const int64_t n = (int64_t)s->y.heads * s->y.width;
    for (int64_t c = begin; c < end; c++)
        for (int64_t i = 0, run; i < n; i += run) {
            run = spread ? s->y.width : v_run(&s->x, i, v_run(&s->y, i, n - i));
            const float *x = q_ref_flat(e, &s->x, q_ref_gather(s, e, c), spread ? 0 : i);
            float *y = q_ref_flat(e, &s->y, c, i);
            if (x != y) memmove(y, x, (size_t)run * sizeof(float));
        }
}

/* y = row * scale, or y += row. */
V_IN void v_take_row(const float *row, int64_t n, const float *scale, float *y) {
    for (int64_t i = 0, left; i < n; i += V_N) {
        left = n - i;
        const v_f v = v_get(row + i, left);
        v_put(y + i, scale ? v_mul(v, v_set(*scale)) : v_add(v_get(y + i, left), v), left);
    }
}

static void v_spread(const q_inst *s, const q_exec *e, int64_t c, const float *from) {
    const int64_t n = (int64_t)s->y.heads * s->y.width;
    for (int64_t i = 0, run; i < n; i += run) {
        run = v_run(&s->y, i, n - i);
        memcpy(q_ref_flat(e, &s->y, c, i), from + i, (size_t)run * sizeof(float));
    }
}

V_STEP(embed_any, q_ref_embed_scratch(s)) {
    if (!e->batch->ids) {
        for (int64_t c = begin; c < end; c++) v_spread(s, e, c, e->batch->x + c * e->plan->slot_width[1]);
        return;
    }
    const float scale = q_ref_or1(s->scale);
    const q_weight *more[] = {s->w2, s->w3};
    q_ref_carve carve = {(uint8_t *)e->scratch, 0};
    float *row = (float *)q_ref_take(&carve, s->w->k, sizeof(float));
    float *tmp = (float *)q_ref_take(&carve, s->w->k, sizeof(float));
    for (int64_t c = begin; c < end; c++) {
        q_decode_row(s->w->format, q_ref_row(s->w, 0, e->batch->ids[c]), s->w->k, row);
        if (scale != 1.0f) v_take_row(row, s->w->k, &scale, row);
        for (int i = 0; i < 2; i++) {
            if (!more[i]) continue;
            q_decode_row(more[i]->format, q_ref_row(more[i], 0, i ? 0 : e->batch->pos[c]), s->w->k, tmp);
            v_take_row(tmp, s->w->k, NULL, row);
        }
        v_spread(s, e, c, row);
    }
}

/* ------------------------------------------------------------------------------------------------------------ ROPE */

/* Cosines and sines of one position, times mscale: [half] each; for PAIRS the cosine twice and the sine with both
 * signs, as the values lie. A column's table serves all its heads. Computed anew in each step: sharing it among the
 * steps of a batch would save less than a thousandth of a prompt's time (bench/SPEED.md). */
V_FN static void v_rope_table(const q_inst *s, const float *freqs, float pos, float *cosine, float *sine) {
    const int64_t half = s->rot / 2;
    const v_f scale = v_set(q_ref_or1(s->mscale));
    for (int64_t i = 0; i < half; i += V_N) {
        v_f si, co;
        v_sincos(v_mul(v_set(pos), v_get(freqs + i, half - i)), &si, &co);
        si = v_mul(si, scale), co = v_mul(co, scale);
        if (s->kind != Q_ROPE_PAIRS) {
            v_put(sine + i, si, half - i);
            v_put(cosine + i, co, half - i);
            continue;
        }
        float a[V_N], b[V_N];
        v_store(a, si);
        v_store(b, co);
        for (int64_t j = 0; j < V_N && j < half - i; j++) {
            const int64_t at = 2 * (i + j);
            sine[at] = -a[j], sine[at + 1] = a[j];
            cosine[at] = cosine[at + 1] = b[j];
        }
    }
}

V_IN void v_rope_pairs(const float *x, const float *cosine, const float *sine, float *y, int64_t n) {
    for (int64_t i = 0, left; i < n; i += V_N) {
        left = n - i;
        const v_f v = v_get(x + i, left);
        v_put(y + i, v_add(v_mul(v, v_get(cosine + i, left)), v_mul(v_swap(v), v_get(sine + i, left))), left);
    }
}

V_IN void v_rope_halves(const float *x, const float *cosine, const float *sine, float *y, int64_t half) {
    for (int64_t i = 0, left; i < half; i += V_N) {
        left = half - i;
        const v_f a = v_get(x + i, left), b = v_get(x + half + i, left);
        const v_f co = v_get(cosine + i, left), si = v_get(sine + i, left);
        v_put(y + i, v_sub(v_mul(a, co), v_mul(b, si)), left);
        v_put(y + half + i, v_add(v_mul(a, si), v_mul(b, co)), left);
    }
}

V_STEP(rope_f32, 2 * q_round_up((uint64_t)s->rot * sizeof(float), Q_ALIGN)) {
    q_ref_carve carve = {(uint8_t *)e->scratch, 0};
    float *cosine = (float *)q_ref_take(&carve, s->rot, sizeof(float));
    float *sine = (float *)q_ref_take(&carve, s->rot, sizeof(float));
    const int64_t rest = s->x.width - s->rot;
    for (int64_t c = begin; c < end; c++) {
        v_rope_table(s, q_ref_freqs(s, e, c), (float)e->batch->pos[q_ref_gather(s, e, c)], cosine, sine);
        for (int64_t h = 0; h < s->x.heads; h++) {
            const float *x = q_ref_at(e, &s->x, c, h);
            float *y = q_ref_at(e, &s->y, c, h);
            if (s->kind == Q_ROPE_PAIRS) v_rope_pairs(x, cosine, sine, y, s->rot);
            else v_rope_halves(x, cosine, sine, y, s->rot / 2);
            if (rest > 0 && x != y) memmove(y + s->rot, x + s->rot, (size_t)rest * sizeof(float));
        }
    }
}

/* ----------------------------------------------------------------------------------------------------------- ROUTE */

V_STEP(route_f32, q_ref_moe_scratch(s, columns)) {
    q_ref_route_scratch t;
    q_ref_carve carve = {(uint8_t *)e->scratch, 0};
    q_ref_route_open(&t, s, end - begin, &carve);
    for (int64_t x = 0; x < s->n_expert; x++) {
        q_decode_row(s->w->format, q_ref_row(s->w, 0, x), s->w->k, t.row);
        const float b = q_ref_bias(s->b, 0, x);
        for (int64_t c = begin; c < end; c++) {
            float v = v_dot(t.row, q_ref_at(e, &s->x, c, 0), s->w->k);
            if (s->b) v += b;
            t.logits[(c - begin) * s->n_expert + x] = v;
        }
    }
    for (int64_t c = begin; c < end; c++)
        q_ref_route_choose(s, &t, t.logits + (c - begin) * s->n_expert, q_ref_at(e, &s->y, c, 0));
}

#endif
