/* matmul_units_avx512vnni.c: products of the formats in blocks of 32 with 8-bit activations. What a format consists of
 * is here, the loops are in i8_avx512.h and panel_avx512.h. Layer L2. */
#include "panel_avx512.h"

Q_VNNI_INLINE __m256i load256(const void *p) { return _mm256_loadu_si256((const __m256i *)p); }

/* The two blocks of a pair. */
#define BLOCK(bytes, odd) (row + Q_MIN(s + 2 * i + (odd), last) * (bytes))

/* 32 nibbles of each of two blocks: a quarter of low ones, a quarter of high ones. */
Q_VNNI_INLINE __m512i nibbles2(const uint8_t *a, const uint8_t *b) {
    const __m256i x = _mm256_broadcastsi128_si256(q_z_load128(a)), y = _mm256_broadcastsi128_si256(q_z_load128(b));
    const __m512i v = _mm512_inserti64x4(_mm512_castsi256_si512(x), y, 1);
    return q_z_low4(_mm512_srlv_epi64(v, _mm512_setr_epi64(0, 0, 4, 4, 0, 0, 4, 4)));
}
Q_VNNI_INLINE void nibble_codes(const uint8_t *const *p, int at, __m512i v[8]) {
    Q_UNROLL for (int i = 0; i < 4; i++) {
        const __m512i b = q_z_quad(p, i, at);
        v[i] = q_z_low4(b);
        v[4 + i] = q_z_high4(b);
    }
}

/* Codes that are 16 more where a bit is set. */
Q_VNNI_INLINE __m512i fifth(__m512i codes, uint64_t bits) {
    return _mm512_mask_add_epi8(codes, _cvtu64_mask64(bits), codes, _mm512_set1_epi8(16));
}
/* The fifth bits at `at`: the lower halves of words are the first, the upper the last 16 codes of a block. */
Q_VNNI_INLINE void fifth_codes(const uint8_t *const *p, int at, __m512i v[8]) {
    Q_UNROLL for (int i = 0; i < 4; i++) {
        uint64_t lo = 0, hi = 0;
        for (int q = 0; q < 4; q++) {
            const uint32_t h = q_load32(p[4 * q + i] + at);
            lo |= (uint64_t)(h & 0xFFFF) << 16 * q;
            hi |= (uint64_t)(h >> 16) << 16 * q;
        }
        v[i] = fifth(v[i], lo);
        v[4 + i] = fifth(v[4 + i], hi);
    }
}

/* ------------------------------------------------------------------------------------------------------------ Q8_0 */

Q_VNNI_INLINE __m512i from_signed(__m512i v) { return _mm512_xor_si512(v, _mm512_set1_epi8((char)0x80)); }

Q_VNNI_INLINE void codes_q8_0(const uint8_t *const *p, int sub, __m512i v[8]) {
    Q_UNUSED(sub);
    Q_UNROLL for (int i = 0; i < 8; i++) v[i] = from_signed(q_z_quad(p, i & 3, 2 + 16 * (i / 4)));
}
Q_VNNI_INLINE __m512i pair_q8_0(const uint8_t *row, int64_t s, int i, int64_t last, __m512i *scale) {
    Q_UNUSED(scale);
    return from_signed(
        _mm512_inserti64x4(_mm512_castsi256_si512(load256(BLOCK(34, 0) + 2)), load256(BLOCK(34, 1) + 2), 1));
}
static const q_z_format q8_0 = {.s = {.units = 1, .act = 1, .bias = 128},
                                .bytes = 34,
                                .d = 0,
                                .codes = codes_q8_0,
                                .pair = pair_q8_0};
Q_Z_PRODUCT(matmul_q8_0_a8_32_32x6__avx512vnni, q8_0)

/* ------------------------------------------------------------------------------------------------------ Q4_0, Q4_1 */

Q_VNNI_INLINE void codes_q4_0(const uint8_t *const *p, int sub, __m512i v[8]) {
    Q_UNUSED(sub);
    nibble_codes(p, 2, v);
}
Q_VNNI_INLINE __m512i pair_q4_0(const uint8_t *row, int64_t s, int i, int64_t last, __m512i *scale) {
    Q_UNUSED(scale);
    return nibbles2(BLOCK(18, 0) + 2, BLOCK(18, 1) + 2);
}
static const q_z_format q4_0 = {.s = {.units = 1, .act = 1, .bias = 8},
                                .bytes = 18,
                                .d = 0,
                                .codes = codes_q4_0,
                                .pair = pair_q4_0};
Q_Z_PRODUCT(matmul_q4_0_a8_32_32x6__avx512vnni, q4_0)

Q_VNNI_INLINE void codes_q4_1(const uint8_t *const *p, int sub, __m512i v[8]) {
    Q_UNUSED(sub);
    nibble_codes(p, 4, v);
}
Q_VNNI_INLINE __m512i pair_q4_1(const uint8_t *row, int64_t s, int i, int64_t last, __m512i *scale) {
    Q_UNUSED(scale);
    return nibbles2(BLOCK(20, 0) + 4, BLOCK(20, 1) + 4);
}
static const q_z_format q4_1 = {.s = {.units = 1, .act = 1, .minima = true},
                                .bytes = 20,
                                .d = 0,
                                .dmin = 2,
                                .codes = codes_q4_1,
                                .pair = pair_q4_1};
Q_Z_PRODUCT(matmul_q4_1_a8_32_32x6__avx512vnni, q4_1)

/* ------------------------------------------------------------------------------------------------------ Q5_0, Q5_1 */

Q_VNNI_INLINE uint64_t bits2(const uint8_t *a, const uint8_t *b) { return q_load32(a) | (uint64_t)q_load32(b) << 32; }

Q_VNNI_INLINE void codes_q5_0(const uint8_t *const *p, int sub, __m512i v[8]) {
    Q_UNUSED(sub);
    nibble_codes(p, 6, v);
    fifth_codes(p, 2, v);
}
Q_VNNI_INLINE __m512i pair_q5_0(const uint8_t *row, int64_t s, int i, int64_t last, __m512i *scale) {
    Q_UNUSED(scale);
    const uint8_t *a = BLOCK(22, 0), *b = BLOCK(22, 1);
    return fifth(nibbles2(a + 6, b + 6), bits2(a + 2, b + 2));
}
static const q_z_format q5_0 = {.s = {.units = 1, .act = 1, .bias = 16},
                                .bytes = 22,
                                .d = 0,
                                .codes = codes_q5_0,
                                .pair = pair_q5_0};
Q_Z_PRODUCT(matmul_q5_0_a8_32_32x6__avx512vnni, q5_0)

Q_VNNI_INLINE void codes_q5_1(const uint8_t *const *p, int sub, __m512i v[8]) {
    Q_UNUSED(sub);
    nibble_codes(p, 8, v);
    fifth_codes(p, 4, v);
}
Q_VNNI_INLINE __m512i pair_q5_1(const uint8_t *row, int64_t s, int i, int64_t last, __m512i *scale) {
    Q_UNUSED(scale);
    const uint8_t *a = BLOCK(24, 0), *b = BLOCK(24, 1);
    return fifth(nibbles2(a + 8, b + 8), bits2(a + 4, b + 4));
}
static const q_z_format q5_1 = {.s = {.units = 1, .act = 1, .minima = true},
                                .bytes = 24,
                                .d = 0,
                                .dmin = 2,
                                .codes = codes_q5_1,
                                .pair = pair_q5_1};
Q_Z_PRODUCT(matmul_q5_1_a8_32_32x6__avx512vnni, q5_1)

/* ---------------------------------------------------------------------------------------------------------- IQ4_NL */

Q_VNNI_INLINE void codes_iq4_nl(const uint8_t *const *p, int sub, __m512i v[8]) {
    Q_UNUSED(sub);
    nibble_codes(p, 2, v);
    Q_UNROLL for (int i = 0; i < 8; i++) v[i] = q_z_iq4(v[i]);
}
Q_VNNI_INLINE __m512i pair_iq4_nl(const uint8_t *row, int64_t s, int i, int64_t last, __m512i *scale) {
    Q_UNUSED(scale);
    return q_z_iq4(nibbles2(BLOCK(18, 0) + 2, BLOCK(18, 1) + 2));
}
static const q_z_format iq4_nl = {.s = {.units = 1, .act = 1, .bias = 128},
                                  .bytes = 18,
                                  .d = 0,
                                  .codes = codes_iq4_nl,
                                  .pair = pair_iq4_nl};
Q_Z_PRODUCT(matmul_iq4_nl_a8_32_32x6__avx512vnni, iq4_nl)
