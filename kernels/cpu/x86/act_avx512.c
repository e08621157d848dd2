/* act_avx512.c: the 8-bit activation formats, as act_avx2.c says it, sixteen values at a time. Codes
 * leave by the narrowing conversion; sums of bytes are exact with 128 added to each. Layer L2. */
#include "avx512.h"

Q_AVX512_INLINE __m128i codes16(const float *x, __m512 id) {
    return _mm512_cvtepi32_epi8(_mm512_cvtps_epi32(_mm512_mul_ps(_mm512_loadu_ps(x), id)));
}

Q_AVX512_INLINE void block(const float *x, int weights, float *d_out, int16_t *sum, int8_t *q) {
    const __m512i mask = _mm512_set1_epi32(0x7FFFFFFF);
    __m512i m = _mm512_setzero_si512();
    Q_UNROLL for (int i = 0; i < weights; i += 16)
        m = _mm512_max_epu32(m, _mm512_and_si512(mask, _mm512_castps_si512(_mm512_loadu_ps(x + i))));
    const uint32_t top = _mm512_reduce_max_epu32(m);
    const float d = q_bits_f32(top) / 127.0f;
    if (top >= 0x7F800000u || d < 0x1p-126f) {
        *d_out = top >= 0x7F800000u ? q_bits_f32(0x7FC00000u) : 0.0f;
        memset(sum, 0, sizeof *sum * (size_t)(weights / 16));
        memset(q, 0, (size_t)weights);
        return;
    }
    const __m512 id = _mm512_set1_ps(1.0f / d);
    *d_out = d;
    const __m256i zero = _mm256_setzero_si256();
    for (int i = 0; i < weights; i += 32) {
        const __m256i c = _mm256_set_m128i(codes16(x + i + 16, id), codes16(x + i, id));
        _mm256_storeu_si256((__m256i *)(void *)(q + i), c);
        __m256i s = _mm256_sad_epu8(_mm256_xor_si256(c, _mm256_set1_epi8(-128)), zero); /* of each eight */
        s = _mm256_add_epi64(s, _mm256_shuffle_epi32(s, 0x4E));
        sum[i / 16] = (int16_t)(_mm256_extract_epi16(s, 0) - 16 * 128);
        sum[i / 16 + 1] = (int16_t)(_mm256_extract_epi16(s, 8) - 16 * 128);
    }
}

Q_AVX512 void q_act_a8_32__avx512(const float *x, int64_t n, void *dst) {
    q_a8_32 *b = (q_a8_32 *)dst;
    for (int64_t i = 0; i < n; i += 32, b++) block(x + i, 32, &b->d, b->sum, b->q);
}

Q_AVX512 void q_act_a8_256__avx512(const float *x, int64_t n, void *dst) {
    q_a8_256 *b = (q_a8_256 *)dst;
    for (int64_t i = 0; i < n; i += 256, b++) block(x + i, 256, &b->d, b->sum, b->q);
}
