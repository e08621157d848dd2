/* neon.h: what the NEON kernels share: sums in the order of op.h, an exponential, and the storing of results.
 *
 * NEON is part of every AArch64: no function here needs a target attribute. Layer L2. */
#ifndef Q_NEON_H
#define Q_NEON_H

#include <arm_neon.h>

#include "../cpu.h"

#define Q_NEON_INLINE static inline __attribute__((always_inline))

/* Unroll the next loop wholly: its bound is a constant of the inlined caller, its arrays are meant to be registers. */
#if defined(__clang__)
#define Q_UNROLL _Pragma("clang loop unroll(full)")
#else
#define Q_UNROLL _Pragma("GCC unroll 32")
#endif

/* Op.h's 16 lanes are four registers, lanes 4i .. 4i + 3 in v[i]. This is its first two additions: lanes l and l + 8,
 * then l and l + 4. */
Q_NEON_INLINE float32x4_t q_fold16(const float32x4_t v[4]) {
    return vaddq_f32(vaddq_f32(v[0], v[2]), vaddq_f32(v[1], v[3]));
}

/* Lane i of the result is the sum of the four lanes of v[i], added as op.h says: l and l + 2, then l and l + 1. */
Q_NEON_INLINE float32x4_t q_fold4(const float32x4_t v[4]) {
    float32x4_t a[2]; /* a[i]: two lanes of v[2i], two of v[2i + 1] */
    Q_UNROLL for (int i = 0; i < 2; i++) {
        const float64x2_t p = vreinterpretq_f64_f32(v[2 * i]), q = vreinterpretq_f64_f32(v[2 * i + 1]);
        a[i] = vaddq_f32(vreinterpretq_f32_f64(vzip1q_f64(p, q)), vreinterpretq_f32_f64(vzip2q_f64(p, q)));
    }
    return vpaddq_f32(a[0], a[1]);
}

/* The same of one vector. */
Q_NEON_INLINE float q_fold1(float32x4_t v) {
    const float32x2_t a = vadd_f32(vget_low_f32(v), vget_high_f32(v));
    return vget_lane_f32(vpadd_f32(a, a), 0);
}

/* e^x for all floats: NaN stays, above 88.73 infinity, below -103.97 zero, subnormal results included. Normal results
 * are within one unit in the last place (tests/test_kernels.c tries a part of all floats).
 * x = n ln 2 + r with |r| <= ln 2 / 2; the polynomial is the Taylor series to r^7, whose remainder is below 6e-9. The
 * power of two is multiplied in as two factors, so that neither end needs a case of its own. */
Q_NEON_INLINE float32x4_t q_exp4(float32x4_t x) {
    x = vminq_f32(x, vdupq_n_f32(89.0f)); /* a NaN in either operand is returned */
    x = vmaxq_f32(x, vdupq_n_f32(-105.0f));
    const float32x4_t n = vrndnq_f32(vmulq_f32(x, vdupq_n_f32(1.44269504f)));
    float32x4_t r = vfmsq_f32(x, n, vdupq_n_f32(0x1.62e43p-1f));
    r = vfmsq_f32(r, n, vdupq_n_f32(-0x1.05c61p-29f));
    float32x4_t y = vdupq_n_f32(1.0f / 5040);
    y = vfmaq_f32(vdupq_n_f32(1.0f / 720), y, r);
    y = vfmaq_f32(vdupq_n_f32(1.0f / 120), y, r);
    y = vfmaq_f32(vdupq_n_f32(1.0f / 24), y, r);
    y = vfmaq_f32(vdupq_n_f32(1.0f / 6), y, r);
    y = vfmaq_f32(vdupq_n_f32(0.5f), y, r);
    y = vfmaq_f32(vdupq_n_f32(1.0f), y, r);
    y = vfmaq_f32(vdupq_n_f32(1.0f), y, r);
    const int32x4_t i = vcvtq_s32_f32(n), half = vshrq_n_s32(i, 1), rest = vsubq_s32(i, half);
    const int32x4_t one = vdupq_n_s32(127);
    const float32x4_t a = vreinterpretq_f32_s32(vshlq_n_s32(vaddq_s32(half, one), 23));
    const float32x4_t b = vreinterpretq_f32_s32(vshlq_n_s32(vaddq_s32(rest, one), 23));
    return vmulq_f32(vmulq_f32(y, a), b);
}

/* Four halves, of any alignment, and four floats as halves. */
Q_NEON_INLINE float32x4_t q_widen4(const uint8_t *p) {
    return vcvt_f32_f16(vreinterpret_f16_u8(vld1_u8(p)));
}
Q_NEON_INLINE void q_narrow4(uint8_t *p, float32x4_t v) { vst1_u8(p, vreinterpret_u8_f16(vcvt_f16_f32(v))); }

/* Hand in the product of row r and column c. */
Q_NEON_INLINE void q_put1(const q_mm *m, int64_t r, int64_t c, float v) {
    float *y = m->y + c * m->y_stride + r;
    if (m->bias) v += m->bias[r];
    *y = m->add ? *y + v : v;
}

/* Of rows r .. r + 3, as far as they exist. */
Q_NEON_INLINE void q_put4(const q_mm *m, int64_t r, int64_t c, float32x4_t v) {
    float *y = m->y + c * m->y_stride + r;
    if (m->rows - r >= 4) {
        if (m->bias) v = vaddq_f32(v, vld1q_f32(m->bias + r));
        if (m->add) v = vaddq_f32(vld1q_f32(y), v);
        vst1q_f32(y, v);
        return;
    }
    float t[4];
    vst1q_f32(t, v);
    for (int64_t i = 0; i < m->rows - r; i++) q_put1(m, r + i, c, t[i]);
}

#endif
