/* rows16_formats_avx512.h: how codes and scales of each packed format come out of its layout (rows16.h and
 * rows16_cards.h say where they lie): the records that the loops of rows16_avx512.h and panel_amx.h are made for.
 * Layer L2. */
#ifndef Q_ROWS16_FORMATS_AVX512_H
#define Q_ROWS16_FORMATS_AVX512_H

#include "../rows16_cards.h"
#include "rows16_avx512.h"

/* ---------------------------------------------------------------------------------- blocks of 32, two to a block */

Q_VNNI_INLINE __m512 q_p_d_pair(const uint8_t *p, int unit) { return q_p_halves(p + 32 * unit); }

Q_VNNI_INLINE __m512i q_p_codes_q4_0(const uint8_t *p, int i, int u, int g) {
    return q_p_nibbles(q_p_load(p + 64 + 256 * (i + u) + 64 * (g & 3)), g / 4);
}
static const q_p_format q_p_q4_0 = {.bytes = Q_ROWS16_Q4_0,
                                    .units = 2,
                                    .span = 1,
                                    .s = {.units = 1, .act = 1, .bias = 8},
                                    .codes = q_p_codes_q4_0,
                                    .d = q_p_d_pair};

Q_VNNI_INLINE __m512i q_p_codes_q8_0(const uint8_t *p, int i, int u, int g) {
    return _mm512_xor_si512(q_p_load(p + 64 + 512 * (i + u) + 64 * g), _mm512_set1_epi8((char)0x80));
}
static const q_p_format q_p_q8_0 = {.bytes = Q_ROWS16_Q8_0,
                                    .units = 2,
                                    .span = 1,
                                    .s = {.units = 1, .act = 1, .bias = 128},
                                    .codes = q_p_codes_q8_0,
                                    .d = q_p_d_pair};

Q_VNNI_INLINE __m512i q_p_codes_iq4_nl(const uint8_t *p, int i, int u, int g) {
    return q_z_iq4(q_p_codes_q4_0(p, i, u, g));
}
static const q_p_format q_p_iq4_nl = {.bytes = Q_ROWS16_Q4_0,
                                      .units = 2,
                                      .span = 1,
                                      .s = {.units = 1, .act = 1, .bias = 128},
                                      .codes = q_p_codes_iq4_nl,
                                      .d = q_p_d_pair};

/* Codes with `value` more where a byte of `of` has a bit of its `bit`-th. */
Q_VNNI_INLINE __m512i q_p_with_bit(__m512i codes, const uint8_t *of, int bit, int value) {
    const __mmask64 in = _mm512_test_epi8_mask(q_p_load(of), _mm512_set1_epi8((char)(1 << bit)));
    return _mm512_mask_add_epi8(codes, in, codes, _mm512_set1_epi8((char)value));
}

Q_VNNI_INLINE __m512i q_p_codes_q5_0(const uint8_t *p, int i, int u, int g) {
    const __m512i v = q_p_nibbles(q_p_load(p + 192 + 256 * (i + u) + 64 * (g & 3)), g / 4);
    return q_p_with_bit(v, p + 64 + 64 * (i + u), g, 16);
}
static const q_p_format q_p_q5_0 = {.bytes = Q_ROWS16_Q5_0,
                                    .units = 2,
                                    .span = 1,
                                    .s = {.units = 1, .act = 1, .bias = 16},
                                    .codes = q_p_codes_q5_0,
                                    .d = q_p_d_pair};

Q_VNNI_INLINE __m512 q_p_d_first(const uint8_t *p, int unit) { return q_p_halves(p + 0 * unit); }
Q_VNNI_INLINE __m512 q_p_d_second(const uint8_t *p, int unit) { return q_p_halves(p + 32 + 0 * unit); }

Q_VNNI_INLINE __m512i q_p_codes_q4_1(const uint8_t *p, int i, int u, int g) {
    return q_p_nibbles(q_p_load(p + 64 + 64 * (g & 3) + 0 * (i + u)), g / 4);
}
static const q_p_format q_p_q4_1 = {.bytes = Q_ROWS16_Q4_1,
                                    .units = 1,
                                    .span = 1,
                                    .s = {.units = 1, .act = 1, .minima = true},
                                    .codes = q_p_codes_q4_1,
                                    .d = q_p_d_first,
                                    .dmin = q_p_d_second};

Q_VNNI_INLINE __m512i q_p_codes_q5_1(const uint8_t *p, int i, int u, int g) {
    return q_p_with_bit(q_p_codes_q4_1(p + 64, i, u, g), p + 64, g, 16);
}
static const q_p_format q_p_q5_1 = {.bytes = Q_ROWS16_Q5_1,
                                    .units = 1,
                                    .span = 1,
                                    .s = {.units = 1, .act = 1, .minima = true},
                                    .codes = q_p_codes_q5_1,
                                    .d = q_p_d_first,
                                    .dmin = q_p_d_second};

/* ------------------------------------------------------------------------------------------------ blocks of 256 */

Q_VNNI_INLINE __m512i q_p_codes_q4_k(const uint8_t *p, int i, int u, int g) {
    return q_p_nibbles(q_p_load(p + 320 + 512 * i + 64 * g), u);
}
Q_VNNI_INLINE __m512i q_p_scale_4k(const uint8_t *p, int unit, int half) {
    return q_p_bytes(p + 64 + 16 * unit + 0 * half);
}
Q_VNNI_INLINE __m512i q_p_pair_4k(const uint8_t *p, int unit) {
    return _mm512_or_si512(q_p_bytes(p + 192 + 32 * unit), _mm512_slli_epi32(q_p_bytes(p + 208 + 32 * unit), 16));
}
static const q_p_format q_p_q4_k = {.bytes = Q_ROWS16_Q4_K,
                                    .units = 8,
                                    .span = 2,
                                    .s = {.units = 8, .act = 8, .scales = 1, .minima = true, .exact = 4},
                                    .codes = q_p_codes_q4_k,
                                    .scale = q_p_scale_4k,
                                    .pair = q_p_pair_4k,
                                    .d = q_p_d_first,
                                    .dmin = q_p_d_second};

Q_VNNI_INLINE __m512i q_p_codes_q5_k(const uint8_t *p, int i, int u, int g) {
    return q_p_with_bit(q_p_codes_q4_k(p + 512, i, u, g), p + 320 + 64 * g, 2 * i + u, 16);
}
static const q_p_format q_p_q5_k = {.bytes = Q_ROWS16_Q5_K,
                                    .units = 8,
                                    .span = 2,
                                    .s = {.units = 8, .act = 8, .scales = 1, .minima = true},
                                    .codes = q_p_codes_q5_k,
                                    .scale = q_p_scale_4k,
                                    .pair = q_p_pair_4k,
                                    .d = q_p_d_first,
                                    .dmin = q_p_d_second};

/* Bits 2u of bytes. */
Q_VNNI_INLINE __m512i q_p_low2(__m512i v, int u) {
    const __m512i by[4] = {v, _mm512_srli_epi16(v, 2), _mm512_srli_epi16(v, 4), _mm512_srli_epi16(v, 6)};
    return _mm512_and_si512(by[u], _mm512_set1_epi8(3));
}

Q_VNNI_INLINE __m512i q_p_codes_q2_k(const uint8_t *p, int i, int u, int g) {
    return q_p_low2(q_p_load(p + 320 + 512 * i + 64 * g), u);
}
Q_VNNI_INLINE __m512i q_p_scale_q2_k(const uint8_t *p, int unit, int half) {
    return _mm512_and_si512(q_p_bytes(p + 64 + 32 * unit + 16 * half), _mm512_set1_epi32(15));
}
Q_VNNI_INLINE __m512i q_p_pair_q2_k(const uint8_t *p, int unit) {
    const __m512i a = q_p_bytes(p + 64 + 32 * unit), b = q_p_bytes(p + 80 + 32 * unit);
    return _mm512_or_si512(_mm512_srli_epi32(a, 4), _mm512_slli_epi32(_mm512_srli_epi32(b, 4), 16));
}
static const q_p_format q_p_q2_k = {.bytes = Q_ROWS16_Q2_K,
                                    .units = 8,
                                    .span = 4,
                                    .s = {.units = 8, .act = 8, .scales = 2, .minima = true, .exact = 8},
                                    .codes = q_p_codes_q2_k,
                                    .scale = q_p_scale_q2_k,
                                    .pair = q_p_pair_q2_k,
                                    .d = q_p_d_first,
                                    .dmin = q_p_d_second};

Q_VNNI_INLINE __m512 q_p_d_float(const uint8_t *p, int unit) {
    return _mm512_load_ps((const float *)(const void *)p + 0 * unit);
}
/* Sixteen signed scales. */
Q_VNNI_INLINE __m512i q_p_scale_signed(const uint8_t *p, int unit, int half) {
    return q_p_signed(p + 64 + 32 * unit + 16 * half);
}

Q_VNNI_INLINE __m512i q_p_codes_q3_k(const uint8_t *p, int i, int u, int g) {
    return q_p_with_bit(q_p_codes_q2_k(p + 512, i, u, g), p + 320 + 64 * g, 4 * i + u, 4);
}
static const q_p_format q_p_q3_k = {.bytes = Q_ROWS16_Q3_K,
                                    .units = 8,
                                    .span = 4,
                                    .s = {.units = 8, .act = 8, .bias = 4, .scales = 2, .exact = 8},
                                    .codes = q_p_codes_q3_k,
                                    .scale = q_p_scale_signed,
                                    .d = q_p_d_float};

/* Of 128 weights 16 words of nibbles, the first two units' in the low halves, and eight words of two more bits. */
Q_VNNI_INLINE __m512i q_p_codes_q6_k(const uint8_t *p, int i, int u, int g) {
    const __m512i four = q_p_nibbles(q_p_load(p + 320 + 1024 * i + 512 * (u & 1) + 64 * g), u / 2);
    const __m512i two = q_p_load(p + 2368 + 512 * i + 64 * g), in = _mm512_set1_epi8(0x30);
    const __m512i by[4] = {_mm512_slli_epi16(two, 4), _mm512_slli_epi16(two, 2), two, _mm512_srli_epi16(two, 2)};
    return _mm512_or_si512(four, _mm512_and_si512(by[u], in));
}
static const q_p_format q_p_q6_k = {.bytes = Q_ROWS16_Q6_K,
                                    .units = 8,
                                    .span = 4,
                                    .s = {.units = 1, .act = 1, .bias = 32, .scales = 2, .exact = 1},
                                    .codes = q_p_codes_q6_k,
                                    .scale = q_p_scale_signed,
                                    .d = q_p_d_float};

Q_VNNI_INLINE __m512i q_p_codes_iq4_xs(const uint8_t *p, int i, int u, int g) {
    return q_z_iq4(q_p_nibbles(q_p_load(p + 192 + 256 * (i + u) + 64 * (g & 3)), g / 4));
}
Q_VNNI_INLINE __m512i q_p_scale_iq4_xs(const uint8_t *p, int unit, int half) {
    return q_p_signed(p + 64 + 16 * unit + 0 * half);
}
static const q_p_format q_p_iq4_xs = {.bytes = Q_ROWS16_IQ4_XS,
                                      .units = 8,
                                      .span = 1,
                                      .s = {.units = 8, .act = 8, .bias = 128, .scales = 1},
                                      .codes = q_p_codes_iq4_xs,
                                      .scale = q_p_scale_iq4_xs,
                                      .d = q_p_d_float};

/* ------------------------------------------------------------------------------------------------- 4-bit groups */

enum { Q_P_ZERO = 32 /* code = q + Q_P_ZERO - z: unsigned for every z that a byte may hold in five bits */ };

/* Q_P_ZERO - z of sixteen rows, in all four bytes of each lane. */
Q_VNNI_INLINE __m512i q_p_zeros_i4(const uint8_t *p) {
    const __m512i each = _mm512_broadcast_i32x4(_mm_setr_epi8(0, 0, 0, 0, 4, 4, 4, 4, 8, 8, 8, 8, 12, 12, 12, 12));
    return _mm512_sub_epi8(_mm512_set1_epi8(Q_P_ZERO), _mm512_shuffle_epi8(q_p_bytes(p + 32), each));
}
Q_VNNI_INLINE __m512i q_p_nibbles_of(const uint8_t *p, int unit, int g) {
    return q_p_nibbles(q_p_load(p + 64 + 256 * unit + 64 * (g & 3)), g / 4);
}
Q_VNNI_INLINE __m512i q_p_codes_i4(const uint8_t *p, int i, int u, int g) {
    return _mm512_add_epi8(q_p_nibbles_of(p, i + u, g), q_p_zeros_i4(p));
}
Q_VNNI_INLINE __m512 q_p_d_halves(const uint8_t *p, int unit) { return q_p_halves(p + 0 * unit); }

#define Q_P_I4(name, units_, layout)                                                                                   \
    static const q_p_format name = {.bytes = layout,                                                                   \
                                    .units = units_,                                                                   \
                                    .span = 1,                                                                         \
                                    .s = {.units = 1, .act = 1, .bias = Q_P_ZERO},                                     \
                                    .codes = q_p_codes_i4,                                                             \
                                    .d = q_p_d_halves};
Q_P_I4(q_p_i4_g32, 1, Q_ROWS16_I4_G32)
Q_P_I4(q_p_i4_g64, 2, Q_ROWS16_I4_G64)
Q_P_I4(q_p_i4_g128, 4, Q_ROWS16_I4_G128)
#undef Q_P_I4

/* ------------------------------------------------------------------------------------------------------------ NF4 */

/* The integers of nf4_levels.h plus 128. */
Q_VNNI_INLINE __m512i q_p_codes_nf4(const uint8_t *p, int i, int u, int g) {
    const __m128i t = _mm_setr_epi8(4, 42, 63, 79, 93, 105, 117, (char)128, (char)138, (char)148, (char)159, (char)170,
                                    (char)183, (char)198, (char)218, (char)252);
    return _mm512_shuffle_epi8(_mm512_broadcast_i32x4(t), q_p_nibbles_of(p, i + u, g));
}
Q_VNNI_INLINE __m512 q_p_d_nf4(const uint8_t *p, int unit) {
    return _mm512_mul_ps(_mm512_load_ps((const float *)(const void *)(p + 0 * unit)),
                         _mm512_set1_ps(0.008064516129032258f));
}
static const q_p_format q_p_nf4 = {.bytes = Q_ROWS16_NF4,
                                   .units = 2,
                                   .span = 1,
                                   .s = {.units = 1, .act = 1, .bias = 128},
                                   .codes = q_p_codes_nf4,
                                   .d = q_p_d_nf4};

/* ------------------------------------------------------------------------------------------------ FP4, 4-bit floats */

/* The integers of fp4.c plus 128. */
Q_VNNI_INLINE __m512i q_p_codes_fp4(const uint8_t *p, int i, int u, int g) {
    const __m128i t = _mm_setr_epi8((char)128, (char)129, (char)208, (char)248, (char)168, (char)188, (char)148,
                                    (char)158, (char)128, 127, 48, 8, 88, 68, 108, 98);
    return _mm512_shuffle_epi8(_mm512_broadcast_i32x4(t), q_p_nibbles_of(p, i + u, g));
}
Q_VNNI_INLINE __m512 q_p_d_fp4(const uint8_t *p, int unit) {
    return _mm512_mul_ps(_mm512_load_ps((const float *)(const void *)(p + 0 * unit)),
                         _mm512_set1_ps(0.008333333333333333f));
}
static const q_p_format q_p_fp4 = {.bytes = Q_ROWS16_NF4,
                                   .units = 2,
                                   .span = 1,
                                   .s = {.units = 1, .act = 1, .bias = 128},
                                   .codes = q_p_codes_fp4,
                                   .d = q_p_d_fp4};

/* The integers of e2m1.h plus 12. */
Q_VNNI_INLINE __m512i q_p_codes_mxfp4(const uint8_t *p, int i, int u, int g) {
    const __m128i t = _mm_setr_epi8(12, 13, 14, 15, 16, 18, 20, 24, 12, 11, 10, 9, 8, 6, 4, 0);
    return _mm512_shuffle_epi8(_mm512_broadcast_i32x4(t), q_p_nibbles_of(p, i + u, g));
}
/* 2^(e - 128): below e = 2 it is subnormal. */
Q_VNNI_INLINE __m512 q_p_d_mxfp4(const uint8_t *p, int unit) {
    const __m512i e = q_p_bytes(p + 16 * unit);
    const __m512i v = _mm512_sub_epi32(_mm512_slli_epi32(e, 23), _mm512_set1_epi32(1 << 23));
    return _mm512_castsi512_ps(_mm512_mask_sllv_epi32(v, _mm512_cmplt_epi32_mask(e, _mm512_set1_epi32(2)),
                                                      _mm512_set1_epi32(1 << 21), e));
}
static const q_p_format q_p_mxfp4 = {.bytes = Q_ROWS16_MXFP4,
                                     .units = 4,
                                     .span = 1,
                                     .s = {.units = 1, .act = 1, .bias = 12},
                                     .codes = q_p_codes_mxfp4,
                                     .d = q_p_d_mxfp4};

Q_VNNI_INLINE __m512i q_p_codes_nvfp4(const uint8_t *p, int i, int u, int g) {
    return q_p_codes_mxfp4(p + 128, i, u, g);
}
Q_VNNI_INLINE __m512i q_p_scale_nvfp4(const uint8_t *p, int unit, int half) {
    return q_p_bytes(p + 64 + 32 * unit + 16 * half);
}
Q_VNNI_INLINE __m512 q_p_d_nvfp4(const uint8_t *p, int unit) {
    return _mm512_castsi512_ps(_mm512_slli_epi32(q_p_bytes(p + 16 * unit), 23));
}
static const q_p_format q_p_nvfp4 = {.bytes = Q_ROWS16_NVFP4,
                                     .units = 4,
                                     .span = 1,
                                     .s = {.units = 1, .act = 1, .bias = 12, .scales = 2, .exact = 1},
                                     .codes = q_p_codes_nvfp4,
                                     .scale = q_p_scale_nvfp4,
                                     .d = q_p_d_nvfp4};

/* --------------------------------------------------------------------------------------------------------- ternary */

Q_VNNI_INLINE __m512i q_p_codes_tq2_0(const uint8_t *p, int i, int u, int g) {
    return q_p_low2(q_p_load(p + 64 + 512 * i + 64 * g), u);
}
static const q_p_format q_p_tq2_0 = {.bytes = Q_ROWS16_TQ2_0,
                                     .units = 8,
                                     .span = 4,
                                     .s = {.units = 8, .act = 8, .bias = 1},
                                     .codes = q_p_codes_tq2_0,
                                     .d = q_p_d_float};

/* ---------------------------------------------------------------------------------------------------- 8-bit groups */

Q_VNNI_INLINE __m512i q_p_codes_i8_g(const uint8_t *p, int i, int u, int g) {
    return _mm512_xor_si512(q_p_load(p + 192 + 512 * (i + u) + 64 * g), _mm512_set1_epi8((char)0x80));
}
/* d * (128 - z). */
Q_VNNI_INLINE __m512 q_p_dmin_i8_g(const uint8_t *p, int unit) {
    const __m512i z = _mm512_sub_epi32(_mm512_set1_epi32(128), q_p_bytes(p + 128 + 16 * unit));
    return _mm512_mul_ps(q_p_d_pair(p, unit), _mm512_cvtepi32_ps(z));
}
static const q_p_format q_p_i8_g = {.bytes = Q_ROWS16_I8_G,
                                    .units = 4,
                                    .span = 1,
                                    .s = {.units = 1, .act = 1, .bias = 128, .minima = true},
                                    .codes = q_p_codes_i8_g,
                                    .d = q_p_d_pair,
                                    .dmin = q_p_dmin_i8_g};

#endif
