/* vec_avx2.h: the vocabulary of vec.h on AVX2: eight floats to a vector. Layer L2. */
#ifndef Q_VEC_AVX2_H
#define Q_VEC_AVX2_H

#include "../half_pi.h"
#include "avx2.h"

#define V_FN Q_AVX2
#define V_IN Q_AVX2_INLINE

typedef __m256 v_f;
enum { V_N = 8, V_PARTS = 2 };

V_IN v_f v_set(float x) { return _mm256_set1_ps(x); }
V_IN v_f v_load(const float *p) { return _mm256_loadu_ps(p); }
V_IN void v_store(float *p, v_f v) { _mm256_storeu_ps(p, v); }
V_IN v_f v_load_part(const float *p, int64_t n) { return _mm256_maskload_ps(p, q_mask8(n)); }
V_IN void v_store_part(float *p, v_f v, int64_t n) { _mm256_maskstore_ps(p, q_mask8(n), v); }
V_IN v_f v_first(v_f v, int64_t n) { return _mm256_and_ps(v, _mm256_castsi256_ps(q_mask8(n))); }

V_IN v_f v_add(v_f a, v_f b) { return _mm256_add_ps(a, b); }
V_IN v_f v_sub(v_f a, v_f b) { return _mm256_sub_ps(a, b); }
V_IN v_f v_mul(v_f a, v_f b) { return _mm256_mul_ps(a, b); }
V_IN v_f v_div(v_f a, v_f b) { return _mm256_div_ps(a, b); }
V_IN v_f v_fma(v_f a, v_f b, v_f c) { return _mm256_fmadd_ps(a, b, c); }
V_IN v_f v_neg(v_f a) { return _mm256_xor_ps(a, _mm256_set1_ps(-0.0f)); }
V_IN v_f v_abs(v_f a) { return _mm256_andnot_ps(_mm256_set1_ps(-0.0f), a); }
V_IN v_f v_sign(v_f size, v_f sign) {
    return _mm256_or_ps(v_abs(size), _mm256_and_ps(_mm256_set1_ps(-0.0f), sign));
}
V_IN v_f v_above(v_f a, v_f b, v_f yes, v_f no) {
    return _mm256_blendv_ps(no, yes, _mm256_cmp_ps(a, b, _CMP_GT_OQ));
}
V_IN v_f v_exp(v_f x) { return q_exp8(x); }
V_IN v_f v_swap(v_f x) { return _mm256_permute_ps(x, 0xB1); }

V_IN void v_transpose(v_f v[V_N]) {
    __m256 a[8], b[8];
    Q_UNROLL for (int i = 0; i < 8; i += 2) {
        a[i] = _mm256_unpacklo_ps(v[i], v[i + 1]);
        a[i + 1] = _mm256_unpackhi_ps(v[i], v[i + 1]);
    }
    Q_UNROLL for (int i = 0; i < 8; i += 4) /* b[i + q]: values q and q + 4 of four rows */
        Q_UNROLL for (int h = 0; h < 2; h++) {
            b[i + 2 * h] = _mm256_shuffle_ps(a[i + h], a[i + h + 2], 0x44);
            b[i + 2 * h + 1] = _mm256_shuffle_ps(a[i + h], a[i + h + 2], 0xEE);
        }
    Q_UNROLL for (int q = 0; q < 4; q++) {
        v[q] = _mm256_permute2f128_ps(b[q], b[q + 4], 0x20);
        v[q + 4] = _mm256_permute2f128_ps(b[q], b[q + 4], 0x31);
    }
}

V_IN float v_fold(const v_f lane[V_PARTS]) { return q_fold1(_mm256_add_ps(lane[0], lane[1])); }

/* Half of v_turn, in doubles. */
V_IN __m128 v_turn4(__m128 x, __m128 *r) {
    const __m256d a = _mm256_cvtps_pd(x);
    const __m256d n =
        _mm256_round_pd(_mm256_mul_pd(a, _mm256_set1_pd(Q_2_PI)), _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC);
    __m256d rest = _mm256_fnmadd_pd(n, _mm256_set1_pd(Q_PI_2), a);
    rest = _mm256_fnmadd_pd(n, _mm256_set1_pd(Q_PI_2_LOW), rest);
    *r = _mm256_cvtpd_ps(rest);
    const __m256d whole = _mm256_floor_pd(_mm256_mul_pd(n, _mm256_set1_pd(0.25)));
    return _mm256_cvtpd_ps(_mm256_fnmadd_pd(whole, _mm256_set1_pd(4.0), n));
}
V_IN v_f v_turn(v_f x, v_f *r) {
    __m128 lo, hi;
    const __m128 a = v_turn4(_mm256_castps256_ps128(x), &lo), b = v_turn4(_mm256_extractf128_ps(x, 1), &hi);
    *r = _mm256_set_m128(hi, lo);
    return _mm256_set_m128(b, a);
}

#endif
