/* vec_avx512.h: the vocabulary of vec.h on AVX-512: sixteen floats to a vector. Layer L2. */
#ifndef Q_VEC_AVX512_H
#define Q_VEC_AVX512_H

#include "../half_pi.h"
#include "avx512.h"

#define V_FN Q_AVX512
#define V_IN Q_AVX512_INLINE

typedef __m512 v_f;
enum { V_N = 16, V_PARTS = 1 };

V_IN v_f v_set(float x) { return _mm512_set1_ps(x); }
V_IN v_f v_load(const float *p) { return _mm512_loadu_ps(p); }
V_IN void v_store(float *p, v_f v) { _mm512_storeu_ps(p, v); }
V_IN v_f v_load_part(const float *p, int64_t n) { return _mm512_maskz_loadu_ps(q_mask16(n), p); }
V_IN void v_store_part(float *p, v_f v, int64_t n) { _mm512_mask_storeu_ps(p, q_mask16(n), v); }
V_IN v_f v_first(v_f v, int64_t n) { return _mm512_maskz_mov_ps(q_mask16(n), v); }

V_IN v_f v_add(v_f a, v_f b) { return _mm512_add_ps(a, b); }
V_IN v_f v_sub(v_f a, v_f b) { return _mm512_sub_ps(a, b); }
V_IN v_f v_mul(v_f a, v_f b) { return _mm512_mul_ps(a, b); }
V_IN v_f v_div(v_f a, v_f b) { return _mm512_div_ps(a, b); }
V_IN v_f v_fma(v_f a, v_f b, v_f c) { return _mm512_fmadd_ps(a, b, c); }
V_IN v_f v_neg(v_f a) { return _mm512_xor_ps(a, _mm512_set1_ps(-0.0f)); }
V_IN v_f v_abs(v_f a) { return _mm512_andnot_ps(_mm512_set1_ps(-0.0f), a); }
V_IN v_f v_sign(v_f size, v_f sign) {
    return _mm512_or_ps(v_abs(size), _mm512_and_ps(_mm512_set1_ps(-0.0f), sign));
}
V_IN v_f v_above(v_f a, v_f b, v_f yes, v_f no) {
    return _mm512_mask_blend_ps(_mm512_cmp_ps_mask(a, b, _CMP_GT_OQ), no, yes);
}
V_IN v_f v_exp(v_f x) { return q_exp16(x); }
V_IN v_f v_swap(v_f x) { return _mm512_permute_ps(x, 0xB1); }

V_IN void v_transpose(v_f v[V_N]) {
    __m512i t[V_N];
    Q_UNROLL for (int i = 0; i < V_N; i++) t[i] = _mm512_castps_si512(v[i]);
    q_transpose16(t);
    Q_UNROLL for (int i = 0; i < V_N; i++) v[i] = _mm512_castsi512_ps(t[i]);
}

V_IN float v_fold(const v_f lane[V_PARTS]) { return q_fold1_512(lane[0]); }

/* Half of v_turn, in doubles. */
V_IN __m256 v_turn8(__m256 x, __m256 *r) {
    const __m512d a = _mm512_cvtps_pd(x);
    const __m512d n =
        _mm512_roundscale_pd(_mm512_mul_pd(a, _mm512_set1_pd(Q_2_PI)), _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC);
    __m512d rest = _mm512_fnmadd_pd(n, _mm512_set1_pd(Q_PI_2), a);
    rest = _mm512_fnmadd_pd(n, _mm512_set1_pd(Q_PI_2_LOW), rest);
    *r = _mm512_cvtpd_ps(rest);
    const __m512d whole = _mm512_roundscale_pd(_mm512_mul_pd(n, _mm512_set1_pd(0.25)),
                                               _MM_FROUND_TO_NEG_INF | _MM_FROUND_NO_EXC);
    return _mm512_cvtpd_ps(_mm512_fnmadd_pd(whole, _mm512_set1_pd(4.0), n));
}
V_IN v_f v_turn(v_f x, v_f *r) {
    __m256 lo, hi;
    const __m256 a = v_turn8(_mm512_castps512_ps256(x), &lo), b = v_turn8(_mm512_extractf32x8_ps(x, 1), &hi);
    *r = _mm512_insertf32x8(_mm512_castps256_ps512(lo), hi, 1);
    return _mm512_insertf32x8(_mm512_castps256_ps512(a), b, 1);
}

#endif
