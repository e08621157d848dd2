/* attn_neon.c: attention's arithmetic in NEON, four keys or values to a register; ../attn.c is the rest. Layer L2. */
#include "neon.h"

#include "../attn.h"

/* n stored halves; n is a multiple of 4. */
static void widen(const uint8_t *from, int64_t n, float *to) {
    for (int64_t i = 0; i < n; i += 4) vst1q_f32(to + i, q_widen4(from + 2 * i));
}

/* The products of four keys. */
Q_NEON_INLINE float32x4_t four_keys(const float *q, const float *k, int64_t width) {
    float32x4_t acc[4][4], left[4];
    Q_UNROLL for (int j = 0; j < 16; j++) acc[j / 4][j % 4] = vdupq_n_f32(0);
    for (int64_t i = 0; i < width; i += 16) {
        Q_UNROLL for (int l = 0; l < 4; l++) {
            const float32x4_t a = vld1q_f32(q + i + 4 * l);
            Q_UNROLL for (int j = 0; j < 4; j++)
                acc[j][l] = vfmaq_f32(acc[j][l], a, vld1q_f32(k + j * width + i + 4 * l));
        }
    }
    Q_UNROLL for (int j = 0; j < 4; j++) left[j] = q_fold16(acc[j]);
    return q_fold4(left);
}

/* Lanes j .. j + 3 that lie in [from, to). */
Q_NEON_INLINE uint32x4_t lanes_in(int32_t j, int32_t from, int32_t to) {
    static const int32_t count[4] = {0, 1, 2, 3};
    const int32x4_t i = vaddq_s32(vdupq_n_s32(j), vld1q_s32(count));
    return vandq_u32(vcgeq_s32(i, vdupq_n_s32(from)), vcltq_s32(i, vdupq_n_s32(to)));
}

static float scores(const q_inst *s, const float *q, const float *k, int32_t from, int32_t to, float *score) {
    const float32x4_t scale = vdupq_n_f32(q_ref_or1(s->scale)), none = vdupq_n_f32(-INFINITY);
    float32x4_t top = none;
    for (int32_t j = 0; j < Q_KV_TOKENS; j += 4) {
        float32x4_t v = none;
        if (j < to && j + 4 > from) {
            v = vmulq_f32(scale, four_keys(q, k + j * s->x.width, s->x.width));
            if (s->softcap != 0) {
                float t[4];
                vst1q_f32(t, v);
                for (int i = 0; i < 4; i++) t[i] = q_ref_softcap(t[i], s->softcap);
                v = vld1q_f32(t);
            }
            v = vbslq_f32(lanes_in(j, from, to), v, none);
        }
        top = vmaxnmq_f32(top, v); /* a NaN is passed over here, and shows in the sums */
        vst1q_f32(score + j, v);
    }
    return vmaxnmvq_f32(top);
}

static void exps(float *x, float base, int32_t n) {
    for (int32_t i = 0; i < n; i += 4) vst1q_f32(x + i, q_exp4(vsubq_f32(vld1q_f32(x + i), vdupq_n_f32(base))));
}

/* V registers of values. */
Q_NEON_INLINE void some_values(int V, const float *p, const float *v, int64_t width, int32_t from, int32_t to, float a,
                               float b, float *acc) {
    float32x4_t part[16];
    Q_UNROLL for (int i = 0; i < V; i++) part[i] = vdupq_n_f32(0);
    for (int32_t j = from; j < to; j++) {
        const float32x4_t w = vdupq_n_f32(p[j]);
        Q_UNROLL for (int i = 0; i < V; i++) part[i] = vfmaq_f32(part[i], w, vld1q_f32(v + j * width + 4 * i));
    }
    Q_UNROLL for (int i = 0; i < V; i++)
        vst1q_f32(acc + 4 * i, vfmaq_n_f32(vmulq_n_f32(vld1q_f32(acc + 4 * i), a), part[i], b));
}

static void values(const float *p, const float *v, int64_t width, int32_t from, int32_t to, float a, float b,
                   float *acc) {
    int64_t d = 0;
    for (; d + 64 <= width; d += 64) some_values(16, p, v + d, width, from, to, a, b, acc + d);
    for (; d < width; d += 4) some_values(1, p, v + d, width, from, to, a, b, acc + d);
}

static const q_attn_isa isa = {4, widen, scores, exps, values};
Q_ATTN_STEP(attn_paged__neon, isa)
