/* matmul_rows16_avx512vnni.c: products of packed weights with 8-bit activations. How codes and scales of a format come
 * out of its layout is here (rows16.h says where they lie), the loops are in rows16_avx512.h. Layer L2. */
#include "rows16_avx512.h"

/* ---------------------------------------------------------------------------------- blocks of 32, two to a block */

Q_VNNI_INLINE __m512 d_pair(const uint8_t *p, int unit) { return q_p_halves(p + 32 * unit); }

Q_VNNI_INLINE __m512i codes_q4_0(const uint8_t *p, int i, int u, int g) {
    return q_p_nibbles(q_p_load(p + 64 + 256 * (i + u) + 64 * (g & 3)), g / 4);
}
static const q_p_format q4_0 = {
    .bytes = Q_ROWS16_Q4_0, .units = 2, .act = 1, .span = 1, .bias = 8, .codes = codes_q4_0, .d = d_pair};
Q_P_PRODUCT(matmul_q4_0_a8_32_rows16__avx512vnni, q4_0)

Q_VNNI_INLINE __m512i codes_q8_0(const uint8_t *p, int i, int u, int g) {
    return _mm512_xor_si512(q_p_load(p + 64 + 512 * (i + u) + 64 * g), _mm512_set1_epi8((char)0x80));
}
static const q_p_format q8_0 = {
    .bytes = Q_ROWS16_Q8_0, .units = 2, .act = 1, .span = 1, .bias = 128, .codes = codes_q8_0, .d = d_pair};
Q_P_PRODUCT(matmul_q8_0_a8_32_rows16__avx512vnni, q8_0)

/* ------------------------------------------------------------------------------------------------ blocks of 256 */

Q_VNNI_INLINE __m512 d_first(const uint8_t *p, int unit) { return q_p_halves(p + 0 * unit); }
Q_VNNI_INLINE __m512 d_second(const uint8_t *p, int unit) { return q_p_halves(p + 32 + 0 * unit); }

Q_VNNI_INLINE __m512i codes_q4_k(const uint8_t *p, int i, int u, int g) {
    return q_p_nibbles(q_p_load(p + 320 + 512 * i + 64 * g), u);
}
Q_VNNI_INLINE __m512i scale_4k(const uint8_t *p, int unit, int half) {
    return q_p_bytes(p + 64 + 16 * unit + 0 * half);
}
/* A unit's minimum is that of its first and of its last 16 weights. */
Q_VNNI_INLINE __m512i pair_4k(const uint8_t *p, int unit) {
    const __m512i v = q_p_bytes(p + 192 + 16 * unit);
    return _mm512_or_si512(v, _mm512_slli_epi32(v, 16));
}
static const q_p_format q4_k = {.bytes = Q_ROWS16_Q4_K,
                                .units = 8,
                                .act = 8,
                                .span = 2,
                                .scales = 1,
                                .minima = 2,
                                .codes = codes_q4_k,
                                .scale = scale_4k,
                                .pair = pair_4k,
                                .d = d_first,
                                .dmin = d_second};
Q_P_PRODUCT(matmul_q4_k_a8_256_rows16__avx512vnni, q4_k)
