/* matmul_rows16_avx512vnni.c: products of packed weights with 8-bit activations. How codes and scales of a format come
 * out of its layout is here (rows16.h says where they lie), the loops are in rows16_avx512.h. Layer L2. */
#include "rows16_avx512.h"

/* ---------------------------------------------------------------------------------- blocks of 32, two to a block */

Q_VNNI_INLINE __m512 d_pair(const uint8_t *p, int unit) { return q_p_halves(p + 32 * unit); }

Q_VNNI_INLINE __m512i codes_q4_0(const uint8_t *p, int i, int u, int g) {
    return q_p_nibbles(q_p_load(p + 64 + 256 * (i + u) + 64 * (g & 3)), g / 4);
}
static const q_p_format q4_0 = {.bytes = Q_ROWS16_Q4_0,
                                .units = 2,
                                .span = 1,
                                .s = {.units = 1, .act = 1, .bias = 8},
                                .codes = codes_q4_0,
                                .d = d_pair};
Q_P_PRODUCT(matmul_q4_0_a8_32_rows16__avx512vnni, q4_0)

Q_VNNI_INLINE __m512i codes_q8_0(const uint8_t *p, int i, int u, int g) {
    return _mm512_xor_si512(q_p_load(p + 64 + 512 * (i + u) + 64 * g), _mm512_set1_epi8((char)0x80));
}
static const q_p_format q8_0 = {.bytes = Q_ROWS16_Q8_0,
                                .units = 2,
                                .span = 1,
                                .s = {.units = 1, .act = 1, .bias = 128},
                                .codes = codes_q8_0,
                                .d = d_pair};
Q_P_PRODUCT(matmul_q8_0_a8_32_rows16__avx512vnni, q8_0)

Q_VNNI_INLINE __m512i codes_iq4_nl(const uint8_t *p, int i, int u, int g) { return q_z_iq4(codes_q4_0(p, i, u, g)); }
static const q_p_format iq4_nl = {.bytes = Q_ROWS16_Q4_0,
                                  .units = 2,
                                  .span = 1,
                                  .s = {.units = 1, .act = 1, .bias = 128},
                                  .codes = codes_iq4_nl,
                                  .d = d_pair};
Q_P_PRODUCT(matmul_iq4_nl_a8_32_rows16__avx512vnni, iq4_nl)

/* Codes with `value` more where a byte of `of` has a bit of its `bit`-th. */
Q_VNNI_INLINE __m512i with_bit(__m512i codes, const uint8_t *of, int bit, int value) {
    const __mmask64 in = _mm512_test_epi8_mask(q_p_load(of), _mm512_set1_epi8((char)(1 << bit)));
    return _mm512_mask_add_epi8(codes, in, codes, _mm512_set1_epi8((char)value));
}

Q_VNNI_INLINE __m512i codes_q5_0(const uint8_t *p, int i, int u, int g) {
    const __m512i v = q_p_nibbles(q_p_load(p + 192 + 256 * (i + u) + 64 * (g & 3)), g / 4);
    return with_bit(v, p + 64 + 64 * (i + u), g, 16);
}
static const q_p_format q5_0 = {.bytes = Q_ROWS16_Q5_0,
                                .units = 2,
                                .span = 1,
                                .s = {.units = 1, .act = 1, .bias = 16},
                                .codes = codes_q5_0,
                                .d = d_pair};
Q_P_PRODUCT(matmul_q5_0_a8_32_rows16__avx512vnni, q5_0)

Q_VNNI_INLINE __m512 d_first(const uint8_t *p, int unit) { return q_p_halves(p + 0 * unit); }
Q_VNNI_INLINE __m512 d_second(const uint8_t *p, int unit) { return q_p_halves(p + 32 + 0 * unit); }

Q_VNNI_INLINE __m512i codes_q4_1(const uint8_t *p, int i, int u, int g) {
    return q_p_nibbles(q_p_load(p + 64 + 64 * (g & 3) + 0 * (i + u)), g / 4);
}
static const q_p_format q4_1 = {.bytes = Q_ROWS16_Q4_1,
                                .units = 1,
                                .span = 1,
                                .s = {.units = 1, .act = 1, .minima = true},
                                .codes = codes_q4_1,
                                .d = d_first,
                                .dmin = d_second};
Q_P_PRODUCT(matmul_q4_1_a8_32_rows16__avx512vnni, q4_1)

Q_VNNI_INLINE __m512i codes_q5_1(const uint8_t *p, int i, int u, int g) {
    return with_bit(codes_q4_1(p + 64, i, u, g), p + 64, g, 16);
}
static const q_p_format q5_1 = {.bytes = Q_ROWS16_Q5_1,
                                .units = 1,
                                .span = 1,
                                .s = {.units = 1, .act = 1, .minima = true},
                                .codes = codes_q5_1,
                                .d = d_first,
                                .dmin = d_second};
Q_P_PRODUCT(matmul_q5_1_a8_32_rows16__avx512vnni, q5_1)

/* ------------------------------------------------------------------------------------------------ blocks of 256 */

Q_VNNI_INLINE __m512i codes_q4_k(const uint8_t *p, int i, int u, int g) {
    return q_p_nibbles(q_p_load(p + 320 + 512 * i + 64 * g), u);
}
Q_VNNI_INLINE __m512i scale_4k(const uint8_t *p, int unit, int half) {
    return q_p_bytes(p + 64 + 16 * unit + 0 * half);
}
Q_VNNI_INLINE __m512i pair_4k(const uint8_t *p, int unit) {
    return _mm512_or_si512(q_p_bytes(p + 192 + 32 * unit), _mm512_slli_epi32(q_p_bytes(p + 208 + 32 * unit), 16));
}
static const q_p_format q4_k = {.bytes = Q_ROWS16_Q4_K,
                                .units = 8,
                                .span = 2,
                                .s = {.units = 8, .act = 8, .scales = 1, .minima = true, .exact = 4},
                                .codes = codes_q4_k,
                                .scale = scale_4k,
                                .pair = pair_4k,
                                .d = d_first,
                                .dmin = d_second};
Q_P_PRODUCT(matmul_q4_k_a8_256_rows16__avx512vnni, q4_k)

Q_VNNI_INLINE __m512i codes_q5_k(const uint8_t *p, int i, int u, int g) {
    return with_bit(codes_q4_k(p + 512, i, u, g), p + 320 + 64 * g, 2 * i + u, 16);
}
static const q_p_format q5_k = {.bytes = Q_ROWS16_Q5_K,
                                .units = 8,
                                .span = 2,
                                .s = {.units = 8, .act = 8, .scales = 1, .minima = true},
                                .codes = codes_q5_k,
                                .scale = scale_4k,
                                .pair = pair_4k,
                                .d = d_first,
                                .dmin = d_second};
Q_P_PRODUCT(matmul_q5_k_a8_256_rows16__avx512vnni, q5_k)

/* Bits 2u of bytes. */
Q_VNNI_INLINE __m512i low2(__m512i v, int u) {
    const __m512i by[4] = {v, _mm512_srli_epi16(v, 2), _mm512_srli_epi16(v, 4), _mm512_srli_epi16(v, 6)};
    return _mm512_and_si512(by[u], _mm512_set1_epi8(3));
}

Q_VNNI_INLINE __m512i codes_q2_k(const uint8_t *p, int i, int u, int g) {
    return low2(q_p_load(p + 320 + 512 * i + 64 * g), u);
}
Q_VNNI_INLINE __m512i scale_q2_k(const uint8_t *p, int unit, int half) {
    return _mm512_and_si512(q_p_bytes(p + 64 + 32 * unit + 16 * half), _mm512_set1_epi32(15));
}
Q_VNNI_INLINE __m512i pair_q2_k(const uint8_t *p, int unit) {
    const __m512i a = q_p_bytes(p + 64 + 32 * unit), b = q_p_bytes(p + 80 + 32 * unit);
    return _mm512_or_si512(_mm512_srli_epi32(a, 4), _mm512_slli_epi32(_mm512_srli_epi32(b, 4), 16));
}
static const q_p_format q2_k = {.bytes = Q_ROWS16_Q2_K,
                                .units = 8,
                                .span = 4,
                                .s = {.units = 8, .act = 8, .scales = 2, .minima = true, .exact = 8},
                                .codes = codes_q2_k,
                                .scale = scale_q2_k,
                                .pair = pair_q2_k,
                                .d = d_first,
                                .dmin = d_second};
Q_P_PRODUCT(matmul_q2_k_a8_256_rows16__avx512vnni, q2_k)

Q_VNNI_INLINE __m512 d_float(const uint8_t *p, int unit) {
    return _mm512_load_ps((const float *)(const void *)p + 0 * unit);
}
/* Sixteen signed scales. */
Q_VNNI_INLINE __m512i scale_signed(const uint8_t *p, int unit, int half) {
    return q_p_signed(p + 64 + 32 * unit + 16 * half);
}

Q_VNNI_INLINE __m512i codes_q3_k(const uint8_t *p, int i, int u, int g) {
    return with_bit(codes_q2_k(p + 512, i, u, g), p + 320 + 64 * g, 4 * i + u, 4);
}
static const q_p_format q3_k = {.bytes = Q_ROWS16_Q3_K,
                                .units = 8,
                                .span = 4,
                                .s = {.units = 8, .act = 8, .bias = 4, .scales = 2, .exact = 8},
                                .codes = codes_q3_k,
                                .scale = scale_signed,
                                .d = d_float};
Q_P_PRODUCT(matmul_q3_k_a8_256_rows16__avx512vnni, q3_k)

/* Of 128 weights 16 words of nibbles, the first two units' in the low halves, and eight words of two more bits. */
Q_VNNI_INLINE __m512i codes_q6_k(const uint8_t *p, int i, int u, int g) {
    const __m512i four = q_p_nibbles(q_p_load(p + 320 + 1024 * i + 512 * (u & 1) + 64 * g), u / 2);
    const __m512i two = q_p_load(p + 2368 + 512 * i + 64 * g), in = _mm512_set1_epi8(0x30);
    const __m512i by[4] = {_mm512_slli_epi16(two, 4), _mm512_slli_epi16(two, 2), two, _mm512_srli_epi16(two, 2)};
    return _mm512_or_si512(four, _mm512_and_si512(by[u], in));
}
static const q_p_format q6_k = {.bytes = Q_ROWS16_Q6_K,
                                .units = 8,
                                .span = 4,
                                .s = {.units = 1, .act = 1, .bias = 32, .scales = 2, .exact = 1},
                                .codes = codes_q6_k,
                                .scale = scale_signed,
                                .d = d_float};
Q_P_PRODUCT(matmul_q6_k_a8_32_rows16__avx512vnni, q6_k)

Q_VNNI_INLINE __m512i codes_iq4_xs(const uint8_t *p, int i, int u, int g) {
    return q_z_iq4(q_p_nibbles(q_p_load(p + 192 + 256 * (i + u) + 64 * (g & 3)), g / 4));
}
Q_VNNI_INLINE __m512i scale_iq4_xs(const uint8_t *p, int unit, int half) {
    return q_p_signed(p + 64 + 16 * unit + 0 * half);
}
static const q_p_format iq4_xs = {.bytes = Q_ROWS16_IQ4_XS,
                                  .units = 8,
                                  .span = 1,
                                  .s = {.units = 8, .act = 8, .bias = 128, .scales = 1},
                                  .codes = codes_iq4_xs,
                                  .scale = scale_iq4_xs,
                                  .d = d_float};
Q_P_PRODUCT(matmul_iq4_xs_a8_256_rows16__avx512vnni, iq4_xs)
