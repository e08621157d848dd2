/* vec_neon.h: the vocabulary of vec.h on NEON: four floats to a vector. Layer L2. */
#ifndef Q_VEC_NEON_H
#define Q_VEC_NEON_H

#include "../half_pi.h"
#include "neon.h"

#define V_FN
#define V_IN Q_NEON_INLINE

typedef float32x4_t v_f;
enum { V_N = 4, V_PARTS = 4 };

V_IN v_f v_set(float x) { return vdupq_n_f32(x); }
V_IN v_f v_load(const float *p) { return vld1q_f32(p); }
V_IN void v_store(float *p, v_f v) { vst1q_f32(p, v); }
V_IN v_f v_load_part(const float *p, int64_t n) {
    float t[V_N] = {0};
    for (int64_t i = 0; i < V_N && i < n; i++) t[i] = p[i];
    return vld1q_f32(t);
}
V_IN void v_store_part(float *p, v_f v, int64_t n) {
    float t[V_N];
    vst1q_f32(t, v);
    for (int64_t i = 0; i < V_N && i < n; i++) p[i] = t[i];
}
V_IN v_f v_first(v_f v, int64_t n) {
    float t[V_N];
    vst1q_f32(t, v);
    return v_load_part(t, n);
}

V_IN v_f v_add(v_f a, v_f b) { return vaddq_f32(a, b); }
V_IN v_f v_sub(v_f a, v_f b) { return vsubq_f32(a, b); }
V_IN v_f v_mul(v_f a, v_f b) { return vmulq_f32(a, b); }
V_IN v_f v_div(v_f a, v_f b) { return vdivq_f32(a, b); }
V_IN v_f v_fma(v_f a, v_f b, v_f c) { return vfmaq_f32(c, a, b); }
V_IN v_f v_neg(v_f a) { return vnegq_f32(a); }
V_IN v_f v_abs(v_f a) { return vabsq_f32(a); }
V_IN v_f v_sign(v_f size, v_f sign) { return vbslq_f32(vdupq_n_u32(0x80000000u), sign, size); }
V_IN v_f v_above(v_f a, v_f b, v_f yes, v_f no) { return vbslq_f32(vcgtq_f32(a, b), yes, no); }
V_IN v_f v_exp(v_f x) { return q_exp4(x); }
V_IN v_f v_swap(v_f x) { return vrev64q_f32(x); }

V_IN float v_fold(const v_f lane[V_PARTS]) { return q_fold1(q_fold16(lane)); }

/* Half of v_turn, in doubles. */
V_IN float32x2_t v_turn2(float32x2_t x, float32x2_t *r) {
    const float64x2_t a = vcvt_f64_f32(x), n = vrndnq_f64(vmulq_f64(a, vdupq_n_f64(Q_2_PI)));
    float64x2_t rest = vfmsq_f64(a, n, vdupq_n_f64(Q_PI_2));
    rest = vfmsq_f64(rest, n, vdupq_n_f64(Q_PI_2_LOW));
    *r = vcvt_f32_f64(rest);
    const float64x2_t whole = vrndmq_f64(vmulq_f64(n, vdupq_n_f64(0.25)));
    return vcvt_f32_f64(vfmsq_f64(n, whole, vdupq_n_f64(4.0)));
}
V_IN v_f v_turn(v_f x, v_f *r) {
    float32x2_t lo, hi;
    const float32x2_t a = v_turn2(vget_low_f32(x), &lo), b = v_turn2(vget_high_f32(x), &hi);
    *r = vcombine_f32(lo, hi);
    return vcombine_f32(a, b);
}

#endif
