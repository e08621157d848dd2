/* column_neon.c: the operations that treat each column by itself: NORM (root mean square), GLU with SiLU, KV_PUT. Sums
 * are in the lanes of op.h, so NORM and KV_PUT are bit-equal to kernels/ref; GLU has an exponential of its own
 * (q_exp4). What a kernel here does not cover its accepts() refuses: the reference then runs. Layer L2. */
#include "neon.h"

/* ---- NORM */

bool q_norm_f32__neon_accepts(const q_inst *s) { return s->kind == Q_NORM_RMS && !s->b; }

uint64_t q_norm_f32__neon_scratch(const q_inst *s, int32_t columns) {
    Q_UNUSED(columns);
    return (uint64_t)s->x.width * sizeof(float);
}

Q_NEON_INLINE float sum_of_squares(const float *x, int64_t n) {
    float32x4_t lane[4];
    float tail[16] = {0};
    Q_UNROLL for (int q = 0; q < 4; q++) lane[q] = vdupq_n_f32(0);
    for (int64_t i = 0; i < n; i += 16) {
        const float *from = x + i;
        if (n - i < 16) from = (const float *)memcpy(tail, from, (size_t)(n - i) * sizeof(float));
        Q_UNROLL for (int q = 0; q < 4; q++) {
            const float32x4_t v = vld1q_f32(from + 4 * q);
            lane[q] = vfmaq_f32(lane[q], v, v);
        }
    }
    return q_fold1(q_fold16(lane));
}

void q_norm_f32__neon(const q_inst *s, const q_exec *e, int64_t begin, int64_t end) {
    const int64_t n = s->x.width;
    float *w = NULL;
    if (s->w) {
        w = (float *)e->scratch;
        q_decode_row(s->w->format, s->w->data, n, w);
    }
    for (int64_t c = begin; c < end; c++) {
        const float *x = q_ref_at(e, &s->x, q_ref_gather(s, e, c), 0);
        float *y = q_ref_at(e, &s->y, c, 0);
        const float r = 1.0f / sqrtf(sum_of_squares(x, n) / (float)n + s->eps);
        int64_t i = 0;
        for (; i + 4 <= n; i += 4) {
            float32x4_t v = vmulq_n_f32(vld1q_f32(x + i), r);
            if (w) v = vmulq_f32(v, vld1q_f32(w + i));
            if (s->add) v = vaddq_f32(vld1q_f32(y + i), v);
            vst1q_f32(y + i, v);
        }
        for (; i < n; i++) {
            float v = x[i] * r;
            if (w) v *= w[i];
            y[i] = s->add ? y[i] + v : v;
        }
    }
}

/* ---- GLU: x / (1 + e^-x) * z */

bool q_glu_f32__neon_accepts(const q_inst *s) {
    return s->kind == Q_ACT_SILU && s->x.heads == 1 && s->y.heads == 1 && s->z.slot && s->z.heads == 1;
}

uint64_t q_glu_f32__neon_scratch(const q_inst *s, int32_t columns) {
    Q_UNUSED(s);
    Q_UNUSED(columns);
    return 0;
}

Q_NEON_INLINE float32x4_t silu(float32x4_t x) {
    return vdivq_f32(x, vaddq_f32(vdupq_n_f32(1.0f), q_exp4(vnegq_f32(x))));
}

void q_glu_f32__neon(const q_inst *s, const q_exec *e, int64_t begin, int64_t end) {
    const int64_t n = s->y.width;
    for (int64_t c = begin; c < end; c++) {
        const float *x = q_ref_at(e, &s->x, c, 0), *z = q_ref_at(e, &s->z, c, 0);
        float *y = q_ref_at(e, &s->y, c, 0);
        int64_t i = 0;
        for (; i + 4 <= n; i += 4) vst1q_f32(y + i, vmulq_f32(silu(vld1q_f32(x + i)), vld1q_f32(z + i)));
        if (i < n) { /* the same instructions on a copy: a value's bits do not depend on where it stands */
            const size_t bytes = (size_t)(n - i) * sizeof(float);
            float a[4] = {0}, b[4] = {0};
            memcpy(a, x + i, bytes);
            memcpy(b, z + i, bytes);
            vst1q_f32(a, vmulq_f32(silu(vld1q_f32(a)), vld1q_f32(b)));
            memcpy(y + i, a, bytes);
        }
    }
}

/* ---- KV_PUT */

bool q_kv_put_paged__neon_accepts(const q_inst *s) {
    Q_UNUSED(s);
    return true;
}

uint64_t q_kv_put_paged__neon_scratch(const q_inst *s, int32_t columns) {
    Q_UNUSED(s);
    Q_UNUSED(columns);
    return 0;
}

Q_NEON_INLINE void narrow(const float *x, int32_t n, int32_t value_bytes, uint8_t *to) {
    if (value_bytes == 4) {
        memcpy(to, x, sizeof(float) * (size_t)n);
        return;
    }
    int32_t i = 0;
    for (; i + 4 <= n; i += 4) q_narrow4(to + 2 * i, vld1q_f32(x + i));
    for (; i < n; i++) q_store16(to + 2 * i, q_f32_to_half(x[i]));
}

void q_kv_put_paged__neon(const q_inst *s, const q_exec *e, int64_t begin, int64_t end) {
    const q_kv_pool *pool = &e->plan->kv[s->kv_group];
    uint8_t *base = e->kv[s->kv_group];
    const int32_t bytes = pool->value_bytes;
    for (int64_t u = begin; u < end; u++) {
        const int64_t c = u / pool->heads;
        const int32_t h = (int32_t)(u % pool->heads), pos = e->batch->pos[c], row = pos % Q_KV_TOKENS;
        const uint32_t page = e->batch->seqs[e->batch->seq[c]].pages[s->kv_group][pos / Q_KV_TOKENS];
        narrow(q_ref_at(e, &s->x, c, h), pool->k_width, bytes,
               q_kv_k(pool, base, page, s->kv_layer, h) + (int64_t)row * pool->k_width * bytes);
        if (pool->v_width)
            narrow(q_ref_at(e, &s->z, c, h), pool->v_width, bytes,
                   q_kv_v(pool, base, page, s->kv_layer, h) + (int64_t)row * pool->v_width * bytes);
    }
}
