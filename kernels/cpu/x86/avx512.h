/* avx512.h: what the AVX-512 kernels share: target attributes, sixteen lanes added in the order of op.h, transposition,
 * and the storing of results. A register holds the 16 lanes of op.h's dot, so one accumulator is one product.
 *
 * Functions carry their target themselves (avx2.h says why). Layer L2. */
#ifndef Q_AVX512_H
#define Q_AVX512_H

#include "avx2.h"

#define Q_AVX512_TARGET "avx2,fma,f16c,avx512f,avx512bw,avx512vl,avx512dq"
#define Q_AVX512 __attribute__((target(Q_AVX512_TARGET)))
#define Q_AVX512_INLINE static inline __attribute__((always_inline, target(Q_AVX512_TARGET)))

/* A mask whose first n of 16 lanes are set; n may lie outside 0 .. 16. */
Q_AVX512_INLINE __mmask16 q_mask16(int64_t n) {
    return (__mmask16)(n <= 0 ? 0u : n >= 16 ? 0xFFFFu : (1u << n) - 1u);
}

/* Lane i of the result is the sum of the 16 lanes of v[i], added as op.h says: l and l+8, then l+4, l+2, l+1. */
Q_AVX512_INLINE __m512 q_fold16(const __m512 v[16]) {
    __m512 a[8], b[4], c[2];
    Q_UNROLL for (int i = 0; i < 8; i++) /* a[i]: eight lanes of v[i], eight of v[i+8] */
        a[i] = _mm512_add_ps(_mm512_shuffle_f32x4(v[i], v[i + 8], 0x44), _mm512_shuffle_f32x4(v[i], v[i + 8], 0xEE));
    Q_UNROLL for (int i = 0; i < 4; i++) /* b[i], by fours: v[i] v[i+8] v[i+4] v[i+12] */
        b[i] = _mm512_add_ps(_mm512_shuffle_f32x4(a[i], a[i + 4], 0x88), _mm512_shuffle_f32x4(a[i], a[i + 4], 0xDD));
    Q_UNROLL for (int i = 0; i < 2; i++) /* c[i], in each four: two of b[i], two of b[i+2] */
        c[i] = _mm512_add_ps(_mm512_shuffle_ps(b[i], b[i + 2], 0x44), _mm512_shuffle_ps(b[i], b[i + 2], 0xEE));
    const __m512 d = _mm512_add_ps(_mm512_shuffle_ps(c[0], c[1], 0x88), _mm512_shuffle_ps(c[0], c[1], 0xDD));
    /* d, in each four: v0 v2 v1 v3 of 0, 8, 4, 12 */
    return _mm512_permutexvar_ps(_mm512_setr_epi32(0, 2, 1, 3, 8, 10, 9, 11, 4, 6, 5, 7, 12, 14, 13, 15), d);
}

/* The same of one vector. */
Q_AVX512_INLINE float q_fold1_512(__m512 v) {
    return q_fold1(_mm256_add_ps(_mm512_castps512_ps256(v), _mm512_extractf32x8_ps(v, 1)));
}

/* e^x of n vectors, a constant up to 4, as q_exp8 (avx2.h): the same operations, so the same bits. They go step by step
 * together, which gains a few per cent of attention over long contexts (bench/SPEED.md). */
Q_AVX512_INLINE void q_exps16(int n, __m512 *x) {
    static const float c[] = {1.0f / 720, 1.0f / 120, 1.0f / 24, 1.0f / 6, 0.5f, 1.0f, 1.0f};
    __m512 k[4], y[4];
    __mmask16 some[4];
    Q_UNROLL for (int i = 0; i < n; i++) x[i] = _mm512_min_ps(_mm512_set1_ps(89.0f), x[i]);
    Q_UNROLL for (int i = 0; i < n; i++) some[i] = _mm512_cmp_ps_mask(x[i], _mm512_set1_ps(-104.0f), _CMP_NLT_UQ);
    Q_UNROLL for (int i = 0; i < n; i++) k[i] = _mm512_mul_ps(x[i], _mm512_set1_ps(1.44269504f));
    Q_UNROLL for (int i = 0; i < n; i++)
        k[i] = _mm512_roundscale_ps(k[i], _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC);
    Q_UNROLL for (int i = 0; i < n; i++) x[i] = _mm512_fnmadd_ps(k[i], _mm512_set1_ps(0x1.62e43p-1f), x[i]);
    Q_UNROLL for (int i = 0; i < n; i++) x[i] = _mm512_fnmadd_ps(k[i], _mm512_set1_ps(-0x1.05c61p-29f), x[i]);
    Q_UNROLL for (int i = 0; i < n; i++) y[i] = _mm512_set1_ps(1.0f / 5040);
    Q_UNROLL for (size_t j = 0; j < Q_COUNT(c); j++)
        Q_UNROLL for (int i = 0; i < n; i++) y[i] = _mm512_fmadd_ps(y[i], x[i], _mm512_set1_ps(c[j]));
    /* times 2^k, rounded once */
    Q_UNROLL for (int i = 0; i < n; i++) x[i] = _mm512_maskz_scalef_ps(some[i], y[i], k[i]);
}

Q_AVX512_INLINE __m512 q_exp16(__m512 x) {
    q_exps16(1, &x);
    return x;
}

/* Four by four 32-bit values within each quarter: lane q of v[j] becomes element j of what lane q of v[0 .. 3] held. */
Q_AVX512_INLINE void q_transpose4(__m512i v[4]) {
    const __m512i a = _mm512_unpacklo_epi32(v[0], v[1]), b = _mm512_unpackhi_epi32(v[0], v[1]);
    const __m512i c = _mm512_unpacklo_epi32(v[2], v[3]), d = _mm512_unpackhi_epi32(v[2], v[3]);
    v[0] = _mm512_unpacklo_epi64(a, c);
    v[1] = _mm512_unpackhi_epi64(a, c);
    v[2] = _mm512_unpacklo_epi64(b, d);
    v[3] = _mm512_unpackhi_epi64(b, d);
}

/* Lane r of v[j] becomes lane j of v[r]. */
Q_AVX512_INLINE void q_transpose16(__m512i v[16]) {
    Q_UNROLL for (int i = 0; i < 4; i++) q_transpose4(v + 4 * i);
    Q_UNROLL for (int j = 0; j < 4; j++) {
        const __m512i a = _mm512_shuffle_i32x4(v[j], v[j + 4], 0x88), b = _mm512_shuffle_i32x4(v[j], v[j + 4], 0xDD);
        const __m512i c = _mm512_shuffle_i32x4(v[j + 8], v[j + 12], 0x88);
        const __m512i d = _mm512_shuffle_i32x4(v[j + 8], v[j + 12], 0xDD);
        v[j] = _mm512_shuffle_i32x4(a, c, 0x88);
        v[j + 8] = _mm512_shuffle_i32x4(a, c, 0xDD);
        v[j + 4] = _mm512_shuffle_i32x4(b, d, 0x88);
        v[j + 12] = _mm512_shuffle_i32x4(b, d, 0xDD);
    }
}

/* Hand in the products of rows r .. r + 15 and column c, as far as the rows exist. */
Q_AVX512_INLINE void q_put16(const q_mm *m, int64_t r, int64_t c, __m512 v) {
    float *y = m->y + c * m->y_stride + r;
    const __mmask16 in = q_mask16(m->rows - r);
    if (m->bias) v = _mm512_add_ps(v, _mm512_maskz_loadu_ps(in, m->bias + r));
    if (m->add) v = _mm512_add_ps(_mm512_maskz_loadu_ps(in, y), v);
    _mm512_mask_storeu_ps(y, in, v);
}

#endif
