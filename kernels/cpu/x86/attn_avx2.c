/* attn_avx2.c: attention's arithmetic in AVX2, eight keys or values to a register; attn.c is the rest. Layer L2. */
#include "avx2.h"

#include "../attn.h"

/* n stored halves; n is a multiple of 8. */
Q_AVX2 static void widen(const uint8_t *from, int64_t n, float *to) {
    for (int64_t i = 0; i < n; i += 8)
        _mm256_storeu_ps(to + i, _mm256_cvtph_ps(_mm_loadu_si128((const __m128i *)(const void *)(from + 2 * i))));
}

/* Four keys: the 8 lanes left of each product. */
Q_AVX2_INLINE void four_keys(const float *q, const float *k, int64_t width, __m256 *fold) {
    __m256 lo[4], hi[4];
    Q_UNROLL for (int j = 0; j < 4; j++) lo[j] = hi[j] = _mm256_setzero_ps();
    for (int64_t i = 0; i < width; i += 16) {
        const __m256 a = _mm256_loadu_ps(q + i), b = _mm256_loadu_ps(q + i + 8);
        Q_UNROLL for (int j = 0; j < 4; j++) {
            lo[j] = _mm256_fmadd_ps(a, _mm256_loadu_ps(k + j * width + i), lo[j]);
            hi[j] = _mm256_fmadd_ps(b, _mm256_loadu_ps(k + j * width + i + 8), hi[j]);
        }
    }
    Q_UNROLL for (int j = 0; j < 4; j++) fold[j] = _mm256_add_ps(lo[j], hi[j]);
}

Q_AVX2 static float scores(const q_inst *s, const float *q, const float *k, int32_t from, int32_t to, float *score) {
    const __m256 scale = _mm256_set1_ps(q_ref_or1(s->scale)), none = _mm256_set1_ps(-INFINITY);
    __m256 top = none;
    for (int32_t j = 0; j < Q_KV_TOKENS; j += 8) {
        __m256 v = none;
        if (j < to && j + 8 > from) {
            __m256 f[8];
            four_keys(q, k + j * s->x.width, s->x.width, f);
            four_keys(q, k + (j + 4) * s->x.width, s->x.width, f + 4);
            v = _mm256_mul_ps(scale, q_fold8(f));
            if (s->softcap != 0) {
                float t[8];
                _mm256_storeu_ps(t, v);
                for (int i = 0; i < 8; i++) t[i] = q_ref_softcap(t[i], s->softcap);
                v = _mm256_loadu_ps(t);
            }
            const __m256i in = _mm256_andnot_si256(q_mask8(from - j), q_mask8(to - j));
            v = _mm256_blendv_ps(none, v, _mm256_castsi256_ps(in));
        }
        top = _mm256_max_ps(v, top); /* a NaN is passed over here, and shows in the sums */
        _mm256_storeu_ps(score + j, v);
    }
    __m128 m = _mm_max_ps(_mm256_castps256_ps128(top), _mm256_extractf128_ps(top, 1));
    m = _mm_max_ps(m, _mm_movehl_ps(m, m));
    return _mm_cvtss_f32(_mm_max_ss(m, _mm_shuffle_ps(m, m, 1)));
}

Q_AVX2 static void exps(float *x, float base, int32_t n) {
    for (int32_t i = 0; i < n; i += 8)
        _mm256_storeu_ps(x + i, q_exp8(_mm256_sub_ps(_mm256_loadu_ps(x + i), _mm256_set1_ps(base))));
}

/* V registers of values. */
Q_AVX2_INLINE void some_values(int V, const float *p, const float *v, int64_t width, int32_t from, int32_t to, float a,
                               float b, float *acc) {
    __m256 part[8];
    Q_UNROLL for (int i = 0; i < V; i++) part[i] = _mm256_setzero_ps();
    for (int32_t j = from; j < to; j++) {
        const __m256 w = _mm256_set1_ps(p[j]);
        Q_UNROLL for (int i = 0; i < V; i++)
            part[i] = _mm256_fmadd_ps(w, _mm256_loadu_ps(v + j * width + 8 * i), part[i]);
    }
    Q_UNROLL for (int i = 0; i < V; i++) {
        const __m256 old = _mm256_mul_ps(_mm256_loadu_ps(acc + 8 * i), _mm256_set1_ps(a));
        _mm256_storeu_ps(acc + 8 * i, _mm256_fmadd_ps(part[i], _mm256_set1_ps(b), old));
    }
}

Q_AVX2 static void values(const float *p, const float *v, int64_t width, int32_t from, int32_t to, float a, float b,
                          float *acc) {
    int64_t d = 0;
    for (; d + 64 <= width; d += 64) some_values(8, p, v + d, width, from, to, a, b, acc + d);
    for (; d < width; d += 8) some_values(1, p, v + d, width, from, to, a, b, acc + d);
}

static const q_attn_isa isa = {8, widen, scores, exps, values};
Q_ATTN_STEP(attn_paged__avx2, isa)
