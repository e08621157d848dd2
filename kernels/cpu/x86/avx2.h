/* avx2.h: what the AVX2 kernels share: the target attribute, sums in the order of op.h, and the storing of results.
 *
 * Functions carry their target themselves, so that the files need no compiler flag of their own and the rest of the
 * library stays runnable on any x86-64. Layer L2. */
#ifndef Q_AVX2_H
#define Q_AVX2_H

#include <immintrin.h>

#include "../cpu.h"

#define Q_AVX2 __attribute__((target("avx2,fma,f16c")))
#define Q_AVX2_INLINE static inline __attribute__((always_inline, target("avx2,fma,f16c")))
#define Q_AVX2_PART Q_PART Q_AVX2

/* Unroll the next loop wholly: its bound is a constant of the inlined caller, its arrays are meant to be registers. */
#if defined(__clang__)
#define Q_UNROLL _Pragma("clang loop unroll(full)")
#else
#define Q_UNROLL _Pragma("GCC unroll 32")
#endif

/* Lane i of the result is the sum of the 8 lanes of v[i], added as op.h says: l and l+4, then l+2, then l+1. The first
 * of its four additions, lanes l and l+8, is that of the two accumulators. */
Q_AVX2_INLINE __m256 q_fold8(const __m256 v[8]) {
    __m256 a[4], b[2];
    Q_UNROLL for (int i = 0; i < 4; i++)
        a[i] = _mm256_add_ps(_mm256_permute2f128_ps(v[2 * i], v[2 * i + 1], 0x20),
                             _mm256_permute2f128_ps(v[2 * i], v[2 * i + 1], 0x31));
    /* a[i]: four lanes of v[2i], four of v[2i+1]; b[i]: two of each of v[4i], v[4i+2] | v[4i+1], v[4i+3] */
    Q_UNROLL for (int i = 0; i < 2; i++)
        b[i] = _mm256_add_ps(_mm256_shuffle_ps(a[2 * i], a[2 * i + 1], 0x44),
                             _mm256_shuffle_ps(a[2 * i], a[2 * i + 1], 0xEE));
    const __m256 c = _mm256_add_ps(_mm256_shuffle_ps(b[0], b[1], 0x88), _mm256_shuffle_ps(b[0], b[1], 0xDD));
    /* c: v0 v2 v4 v6 | v1 v3 v5 v7 */
    return _mm256_permutevar8x32_ps(c, _mm256_setr_epi32(0, 4, 1, 5, 2, 6, 3, 7));
}

/* The same of one vector. */
Q_AVX2_INLINE float q_fold1(__m256 v) {
    __m128 a = _mm_add_ps(_mm256_castps256_ps128(v), _mm256_extractf128_ps(v, 1));
    a = _mm_add_ps(a, _mm_movehl_ps(a, a));
    a = _mm_add_ss(a, _mm_shuffle_ps(a, a, 1));
    return _mm_cvtss_f32(a);
}

/* A mask whose first n of 8 lanes are set; n may lie outside 0 .. 8. */
Q_AVX2_INLINE __m256i q_mask8(int64_t n) {
    const int m = n < 0 ? 0 : n > 8 ? 8 : (int)n;
    return _mm256_cmpgt_epi32(_mm256_set1_epi32(m), _mm256_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7));
}

Q_AVX2_INLINE float q_least8(__m256 v) {
    __m128 a = _mm_min_ps(_mm256_castps256_ps128(v), _mm256_extractf128_ps(v, 1));
    a = _mm_min_ps(a, _mm_shuffle_ps(a, a, 0xB1));
    return _mm_cvtss_f32(_mm_min_ss(a, _mm_movehl_ps(a, a)));
}
Q_AVX2_INLINE float q_most8(__m256 v) {
    __m128 a = _mm_max_ps(_mm256_castps256_ps128(v), _mm256_extractf128_ps(v, 1));
    a = _mm_max_ps(a, _mm_shuffle_ps(a, a, 0xB1));
    return _mm_cvtss_f32(_mm_max_ss(a, _mm_movehl_ps(a, a)));
}

/* e^x for all floats: NaN stays, above 88.73 infinity, below -103.97 zero, subnormal results included. Normal results
 * are within one unit in the last place (0.94 over all floats; tests/test_kernels.c tries a part of them).
 * x = n ln 2 + r with |r| <= ln 2 / 2; the polynomial is the Taylor series to r^7, whose remainder is below 6e-9. The
 * power of two is multiplied in as two factors, so that neither end needs a case of its own. What would round to zero
 * is zero without being computed: a result below the normal ones takes the processor some hundred cycles, and
 * attention's masks are full of them. */
Q_AVX2_INLINE __m256 q_exp8(__m256 x) {
    const __m256 none = _mm256_cmp_ps(x, _mm256_set1_ps(-104.0f), _CMP_LT_OQ);
    /* constant first: a NaN in the second operand is returned */
    x = _mm256_andnot_ps(none, _mm256_min_ps(_mm256_set1_ps(89.0f), x));
    const __m256 n =
        _mm256_round_ps(_mm256_mul_ps(x, _mm256_set1_ps(1.44269504f)), _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC);
    __m256 r = _mm256_fnmadd_ps(n, _mm256_set1_ps(0x1.62e43p-1f), x);
    r = _mm256_fnmadd_ps(n, _mm256_set1_ps(-0x1.05c61p-29f), r);
    __m256 y = _mm256_set1_ps(1.0f / 5040);
    y = _mm256_fmadd_ps(y, r, _mm256_set1_ps(1.0f / 720));
    y = _mm256_fmadd_ps(y, r, _mm256_set1_ps(1.0f / 120));
    y = _mm256_fmadd_ps(y, r, _mm256_set1_ps(1.0f / 24));
    y = _mm256_fmadd_ps(y, r, _mm256_set1_ps(1.0f / 6));
    y = _mm256_fmadd_ps(y, r, _mm256_set1_ps(0.5f));
    y = _mm256_fmadd_ps(y, r, _mm256_set1_ps(1.0f));
    y = _mm256_fmadd_ps(y, r, _mm256_set1_ps(1.0f));
    const __m256i i = _mm256_cvtps_epi32(n), half = _mm256_srai_epi32(i, 1), rest = _mm256_sub_epi32(i, half);
    const __m256i one = _mm256_set1_epi32(127);
    const __m256 a = _mm256_castsi256_ps(_mm256_slli_epi32(_mm256_add_epi32(half, one), 23));
    const __m256 b = _mm256_castsi256_ps(_mm256_slli_epi32(_mm256_add_epi32(rest, one), 23));
    return _mm256_andnot_ps(none, _mm256_mul_ps(_mm256_mul_ps(y, a), b));
}

/* Hand in the product of row r and column c. */
Q_AVX2_INLINE void q_put1(const q_mm *m, int64_t r, int64_t c, float v) {
    float *y = m->y + c * m->y_stride + r;
    if (m->bias) v += m->bias[r];
    *y = m->add ? *y + v : v;
}

/* Of rows r .. r + 7, as far as they exist. */
Q_AVX2_INLINE void q_put8(const q_mm *m, int64_t r, int64_t c, __m256 v) {
    float *y = m->y + c * m->y_stride + r;
    if (m->rows - r >= 8) {
        if (m->bias) v = _mm256_add_ps(v, _mm256_loadu_ps(m->bias + r));
        if (m->add) v = _mm256_add_ps(_mm256_loadu_ps(y), v);
        _mm256_storeu_ps(y, v);
        return;
    }
    float t[8];
    _mm256_storeu_ps(t, v);
    for (int64_t i = 0; i < m->rows - r; i++) q_put1(m, r + i, c, t[i]);
}

#endif
