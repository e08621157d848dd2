/* act_avx2.c: the 8-bit activation formats, bit-equal to kernels/ref/act.c: the conversion instruction rounds as its
 * addition does (ties to even: run() sets the default rounding), and the largest magnitude is found on the bits, which
 * order as the values do and put infinity and NaN on top. Layer L2. */
#include "avx2.h"

Q_AVX2_INLINE __m256i magnitudes(const float *x, int64_t n) {
    const __m256i mask = _mm256_set1_epi32(0x7FFFFFFF);
    __m256i top = _mm256_setzero_si256();
    for (int64_t i = 0; i < n; i += 8)
        top = _mm256_max_epi32(top, _mm256_and_si256(mask, _mm256_castps_si256(_mm256_loadu_ps(x + i))));
    return top;
}

Q_AVX2_INLINE uint32_t largest(__m256i v) {
    __m128i m = _mm_max_epi32(_mm256_castsi256_si128(v), _mm256_extracti128_si256(v, 1));
    m = _mm_max_epi32(m, _mm_shuffle_epi32(m, 0x4E));
    m = _mm_max_epi32(m, _mm_shuffle_epi32(m, 0xB1));
    return (uint32_t)_mm_cvtsi128_si32(m);
}

Q_AVX2_INLINE __m256i codes8(const float *x, __m256 id) {
    return _mm256_cvtps_epi32(_mm256_mul_ps(_mm256_loadu_ps(x), id));
}

/* 32 values: codes to q, sums of 16 to sum[0], sum[1]. */
Q_AVX2_INLINE void codes32(const float *x, __m256 id, int16_t *sum, int8_t *q) {
    const __m256i a = _mm256_packs_epi32(codes8(x, id), codes8(x + 8, id));
    const __m256i b = _mm256_packs_epi32(codes8(x + 16, id), codes8(x + 24, id));
    /* Packing works within halves, which leaves groups of four in the order 0 2 4 6 1 3 5 7. */
    const __m256i c = _mm256_permutevar8x32_epi32(_mm256_packs_epi16(a, b), _mm256_setr_epi32(0, 4, 1, 5, 2, 6, 3, 7));
    _mm256_storeu_si256((__m256i *)(void *)q, c);
    const __m256i ones = _mm256_set1_epi16(1);
    __m256i s = _mm256_hadd_epi32(_mm256_madd_epi16(a, ones), _mm256_madd_epi16(b, ones)); /* a a b b | a a b b */
    __m128i t = _mm_add_epi32(_mm256_castsi256_si128(s), _mm256_extracti128_si256(s, 1));
    t = _mm_add_epi32(t, _mm_shuffle_epi32(t, 0xB1));
    sum[0] = (int16_t)_mm_cvtsi128_si32(t);
    sum[1] = (int16_t)_mm_extract_epi32(t, 2);
}

Q_AVX2_INLINE void block(const float *x, int weights, float *d_out, int16_t *sum, int8_t *q) {
    const uint32_t top = largest(magnitudes(x, weights));
    const float d = q_bits_f32(top) / 127.0f;
    if (top >= 0x7F800000u || d < 0x1p-126f) {
        *d_out = top >= 0x7F800000u ? q_bits_f32(0x7FC00000u) : 0.0f;
        memset(sum, 0, sizeof *sum * (size_t)(weights / 16));
        memset(q, 0, (size_t)weights);
        return;
    }
    const __m256 id = _mm256_set1_ps(1.0f / d);
    *d_out = d;
    for (int i = 0; i < weights; i += 32) codes32(x + i, id, sum + i / 16, q + i);
}

Q_AVX2 void q_act_a8_32__avx2(const float *x, int64_t n, void *dst) {
    q_a8_32 *b = (q_a8_32 *)dst;
    for (int64_t i = 0; i < n; i += 32, b++) block(x + i, 32, &b->d, b->sum, b->q);
}

Q_AVX2 void q_act_a8_256__avx2(const float *x, int64_t n, void *dst) {
    q_a8_256 *b = (q_a8_256 *)dst;
    for (int64_t i = 0; i < n; i += 256, b++) block(x + i, 256, &b->d, b->sum, b->q);
}

Q_AVX2 void q_act_a8_row__avx2(const float *x, int64_t n, void *dst) {
    int16_t *sum = (int16_t *)(void *)((uint8_t *)dst + sizeof(float));
    block(x, (int)n, (float *)dst, sum, (int8_t *)(sum + n / 16));
}
