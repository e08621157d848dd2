/* attn_avx512.c: attention's arithmetic in AVX-512: a register is the 16 lanes of a product, or sixteen scores, or
 * sixteen values; ../attn.c is the rest. Layer L2. */
#include "avx512.h"

#include "../attn.h"

/* n stored halves; n is a multiple of 16. */
Q_AVX512 static void widen(const uint8_t *from, int64_t n, float *to) {
    for (int64_t i = 0; i < n; i += 16)
        _mm512_storeu_ps(to + i, _mm512_cvtph_ps(_mm256_loadu_si256((const __m256i *)(const void *)(from + 2 * i))));
}

/* The products of sixteen keys. */
Q_AVX512_INLINE __m512 sixteen_keys(const float *q, const float *k, int64_t width) {
    __m512 acc[16];
    Q_UNROLL for (int j = 0; j < 16; j++) acc[j] = _mm512_setzero_ps();
    for (int64_t i = 0; i < width; i += 16) {
        const __m512 a = _mm512_loadu_ps(q + i);
        Q_UNROLL for (int j = 0; j < 16; j++) acc[j] = _mm512_fmadd_ps(a, _mm512_loadu_ps(k + j * width + i), acc[j]);
    }
    return q_fold16(acc);
}

Q_AVX512 static float scores(const q_inst *s, const float *q, const float *k, int32_t from, int32_t to, float *score) {
    const __m512 scale = _mm512_set1_ps(q_ref_or1(s->scale)), none = _mm512_set1_ps(-INFINITY);
    __m512 top = none;
    for (int32_t j = 0; j < Q_KV_TOKENS; j += 16) {
        __m512 v = none;
        if (j < to && j + 16 > from) {
            v = _mm512_mul_ps(scale, sixteen_keys(q, k + j * s->x.width, s->x.width));
            if (s->softcap != 0) {
                float t[16];
                _mm512_storeu_ps(t, v);
                for (int i = 0; i < 16; i++) t[i] = q_ref_softcap(t[i], s->softcap);
                v = _mm512_loadu_ps(t);
            }
            v = _mm512_mask_mov_ps(none, (__mmask16)(q_mask16(to - j) & ~q_mask16(from - j)), v);
        }
        top = _mm512_max_ps(v, top); /* a NaN is passed over here, and shows in the sums */
        _mm512_storeu_ps(score + j, v);
    }
    return _mm512_reduce_max_ps(top);
}

Q_AVX512 static void exps(float *x, float base, int32_t n) {
    for (int32_t i = 0; i < n; i += 16)
        _mm512_storeu_ps(x + i, q_exp16(_mm512_sub_ps(_mm512_loadu_ps(x + i), _mm512_set1_ps(base))));
}

/* V registers of values. */
Q_AVX512_INLINE void some_values(int V, const float *p, const float *v, int64_t width, int32_t from, int32_t to,
                                 float a, float b, float *acc) {
    __m512 part[8];
    Q_UNROLL for (int i = 0; i < V; i++) part[i] = _mm512_setzero_ps();
    for (int32_t j = from; j < to; j++) {
        const __m512 w = _mm512_set1_ps(p[j]);
        Q_UNROLL for (int i = 0; i < V; i++)
            part[i] = _mm512_fmadd_ps(w, _mm512_loadu_ps(v + j * width + 16 * i), part[i]);
    }
    Q_UNROLL for (int i = 0; i < V; i++) {
        const __m512 old = _mm512_mul_ps(_mm512_loadu_ps(acc + 16 * i), _mm512_set1_ps(a));
        _mm512_storeu_ps(acc + 16 * i, _mm512_fmadd_ps(part[i], _mm512_set1_ps(b), old));
    }
}

Q_AVX512 static void values(const float *p, const float *v, int64_t width, int32_t from, int32_t to, float a, float b,
                            float *acc) {
    int64_t d = 0;
    for (; d + 128 <= width; d += 128) some_values(8, p, v + d, width, from, to, a, b, acc + d);
    for (; d + 64 <= width; d += 64) some_values(4, p, v + d, width, from, to, a, b, acc + d);
    for (; d < width; d += 16) some_values(1, p, v + d, width, from, to, a, b, acc + d);
}

static const q_attn_isa isa = {16, widen, scores, exps, values};
Q_ATTN_STEP(attn_paged__avx512, isa)
