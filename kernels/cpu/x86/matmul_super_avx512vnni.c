/* matmul_super_avx512vnni.c: products of the formats in super-blocks of 256 with 8-bit activations. What a format
 * consists of is here, the loops are in i8_avx512.h and panel_avx512.h. In a stream a lane holds four products of codes
 * below 64 and activations: at most 32004, so that scales can be applied by 16-bit multiply-adds (IQ4_XS's codes are
 * bytes, and use 32). Layer L2. */
#include "panel_avx512.h"

/* --------------------------------------------------------------------------------------------------- what is shared */

Q_VNNI_INLINE __m512i load512(const void *p) { return _mm512_loadu_si512(p); }
Q_VNNI_INLINE __m512i twice256(const void *p) { return _mm512_broadcast_i64x4(_mm256_loadu_si256((const __m256i *)p)); }
Q_VNNI_INLINE __m512i four128(__m128i v) { return _mm512_broadcast_i32x4(v); }

/* A byte for each half, or each quarter, of a register. */
Q_VNNI_INLINE __m512i halves(int a, int b) {
    return _mm512_inserti64x4(_mm512_set1_epi8((char)a), _mm256_set1_epi8((char)b), 1);
}
Q_VNNI_INLINE __m512i quarters(int a, int b, int c, int d) {
    return _mm512_setr_epi32(a, a, a, a, b, b, b, b, c, c, c, c, d, d, d, d);
}

/* Bytes a, b, c, d of sixteen to the lanes of their quarters, zero or sign extended to int16 in the lower half. */
Q_VNNI_INLINE __m512i place(__m512i bytes, int a, int b, int c, int d) {
    return _mm512_shuffle_epi8(bytes, _mm512_or_si512(quarters(a, b, c, d), _mm512_set1_epi32((int)0x80808000u)));
}
Q_VNNI_INLINE __m512i place_signed(__m512i bytes, int a, int b, int c, int d) {
    const __m512i where = _mm512_slli_epi32(quarters(a, b, c, d), 8);
    return _mm512_srai_epi16(_mm512_shuffle_epi8(bytes, _mm512_or_si512(where, _mm512_set1_epi32((int)0x80800080u))),
                             8);
}

/* Codes that have another bit worth `value` where a byte of `of` has one of `bits`. */
Q_VNNI_INLINE __m512i with_bit(__m512i codes, __m512i of, __m512i bits, int value) {
    return _mm512_mask_add_epi8(codes, _mm512_test_epi8_mask(of, bits), codes, _mm512_set1_epi8((char)value));
}

/* The eight scales, then the eight minima, of 6 bits, from the 12 bytes after d and dmin (Q4_K, Q5_K). */
Q_VNNI_INLINE __m128i scales6(const uint8_t *p) {
    const __m128i v = q_z_load128(p);
    const __m128i low = _mm_shuffle_epi8(v, _mm_setr_epi8(4, 5, 6, 7, 12, 13, 14, 15, 8, 9, 10, 11, 12, 13, 14, 15));
    const __m128i top = _mm_shuffle_epi8(v, _mm_setr_epi8(-1, -1, -1, -1, 4, 5, 6, 7, -1, -1, -1, -1, 8, 9, 10, 11));
    const __m128i mask = _mm_setr_epi32(0x3F3F3F3F, 0x0F0F0F0F, 0x3F3F3F3F, 0x0F0F0F0F);
    return _mm_or_si128(_mm_and_si128(_mm_srlv_epi32(low, _mm_setr_epi32(0, 0, 0, 4)), mask),
                        _mm_and_si128(_mm_srli_epi32(top, 2), _mm_set1_epi8(0x30)));
}

/* 16 bytes at `at` of sixteen blocks: lane r of v[i] = bytes 4i .. 4i + 3 of block r. */
Q_VNNI_INLINE void turned(const uint8_t *const *p, int at, __m512i v[4]) {
    Q_UNROLL for (int i = 0; i < 4; i++) v[i] = q_z_quad(p, i, at);
    q_transpose4(v);
}

/* ------------------------------------------------------------------------------------------------------ Q4_K, Q5_K */

/* 64 bytes of nibbles are units 4h, 4h + 2 in their low and 4h + 1, 4h + 3 in their high halves. */
static const uint8_t order_4k[16] = {0, 1, 4, 5, 2, 3, 6, 7, 8, 9, 12, 13, 10, 11, 14, 15};

Q_VNNI_INLINE void place_4k(const uint8_t *p, q_z_block *to) {
    const __m128i both = scales6(p);
    const __m512i s = _mm512_broadcastq_epi64(both);
    to->scale[0] = place(s, 0, 0, 2, 2);
    to->scale[1] = place(s, 1, 1, 3, 3);
    to->scale[2] = place(s, 4, 4, 6, 6);
    to->scale[3] = place(s, 5, 5, 7, 7);
    to->minima = _mm256_cvtepu8_epi16(_mm_unpackhi_epi8(both, both));
}

Q_VNNI_INLINE void codes_q4_k(const uint8_t *const *p, int sub, __m512i v[8]) {
    Q_UNROLL for (int i = 0; i < 8; i++) {
        const __m512i b = q_z_quad(p, i & 3, 16 + 32 * (sub / 2) + 16 * (i / 4));
        v[i] = sub & 1 ? q_z_high4(b) : q_z_low4(b);
    }
}
Q_VNNI_INLINE void scale_q4_k(const uint8_t *const *p, __m512i sc[4], __m512i mn[4]) {
    const __m512i six = _mm512_set1_epi8(0x3F), two = _mm512_set1_epi8(0x30);
    __m512i v[4]; /* d and dmin, then the 12 bytes */
    turned(p, 0, v);
    sc[0] = _mm512_and_si512(v[1], six);
    sc[1] = _mm512_or_si512(q_z_low4(v[3]), _mm512_and_si512(_mm512_srli_epi32(v[1], 2), two));
    mn[0] = _mm512_and_si512(v[2], six);
    mn[1] = _mm512_or_si512(q_z_high4(v[3]), _mm512_and_si512(_mm512_srli_epi32(v[2], 2), two));
}
Q_VNNI_INLINE void block_q4_k(const uint8_t *p, q_z_block *to) {
    const __m512i a = load512(p + 16), b = load512(p + 80);
    to->codes[0] = q_z_low4(a);
    to->codes[1] = q_z_high4(a);
    to->codes[2] = q_z_low4(b);
    to->codes[3] = q_z_high4(b);
    place_4k(p, to);
}
static const q_z_format q4_k = {.s = {.units = 8, .act = 8, .scales = 1, .minima = true, .exact = 4},
                                .bytes = 144,
                                .d = 0,
                                .dmin = 2,
                                .codes = codes_q4_k,
                                .scale = scale_q4_k,
                                .block = block_q4_k,
                                .order = order_4k};
Q_Z_PRODUCT(matmul_q4_k_a8_256_32x6__avx512vnni, q4_k)

Q_VNNI_INLINE void codes_q5_k(const uint8_t *const *p, int sub, __m512i v[8]) {
    Q_UNROLL for (int i = 0; i < 8; i++) {
        const __m512i b = q_z_quad(p, i & 3, 48 + 32 * (sub / 2) + 16 * (i / 4)),
                      h = q_z_quad(p, i & 3, 16 + 16 * (i / 4));
        v[i] = with_bit(sub & 1 ? q_z_high4(b) : q_z_low4(b), h, _mm512_set1_epi8((char)(1 << sub)), 16);
    }
}
Q_VNNI_INLINE void block_q5_k(const uint8_t *p, q_z_block *to) {
    const __m512i a = load512(p + 48), b = load512(p + 112), h = twice256(p + 16);
    to->codes[0] = with_bit(q_z_low4(a), h, halves(1, 4), 16);
    to->codes[1] = with_bit(q_z_high4(a), h, halves(2, 8), 16);
    to->codes[2] = with_bit(q_z_low4(b), h, halves(16, 64), 16);
    to->codes[3] = with_bit(q_z_high4(b), h, halves(32, 128), 16);
    place_4k(p, to);
}
static const q_z_format q5_k = {.s = {.units = 8, .act = 8, .scales = 1, .minima = true},
                                .bytes = 176,
                                .d = 0,
                                .dmin = 2,
                                .codes = codes_q5_k,
                                .scale = scale_q4_k,
                                .block = block_q5_k,
                                .order = order_4k};
Q_Z_PRODUCT(matmul_q5_k_a8_256_32x6__avx512vnni, q5_k)

/* ------------------------------------------------------------------------------------------------------ Q2_K, Q3_K */

/* Bits 2j of 64 bytes are unit j in the lower and unit 4 + j in the upper half. */
static const uint8_t order_2k[16] = {0, 1, 8, 9, 2, 3, 10, 11, 4, 5, 12, 13, 6, 7, 14, 15};

Q_VNNI_INLINE __m512i low2(__m512i v, int shift) {
    return _mm512_and_si512(_mm512_srl_epi16(v, _mm_cvtsi32_si128(shift)), _mm512_set1_epi8(3));
}

Q_VNNI_INLINE void codes_q2_k(const uint8_t *const *p, int sub, __m512i v[8]) {
    Q_UNROLL for (int i = 0; i < 8; i++)
        v[i] = low2(q_z_quad(p, i & 3, 16 + 32 * (sub / 4) + 16 * (i / 4)), 2 * (sub & 3));
}
Q_VNNI_INLINE void scale_q2_k(const uint8_t *const *p, __m512i sc[4], __m512i mn[4]) {
    __m512i v[4];
    turned(p, 0, v);
    Q_UNROLL for (int i = 0; i < 4; i++) {
        sc[i] = q_z_low4(v[i]);
        mn[i] = q_z_high4(v[i]);
    }
}
Q_VNNI_INLINE void block_q2_k(const uint8_t *p, q_z_block *to) {
    const __m512i v = load512(p + 16);
    const __m128i b = q_z_load128(p), nibble = _mm_set1_epi8(15);
    const __m512i s = four128(_mm_and_si128(b, nibble));
    Q_UNROLL for (int j = 0; j < 4; j++) {
        to->codes[j] = low2(v, 2 * j);
        to->scale[j] = place(s, 2 * j, 2 * j + 1, 2 * j + 8, 2 * j + 9);
    }
    to->minima = _mm256_cvtepu8_epi16(_mm_and_si128(_mm_srli_epi16(b, 4), nibble));
}
static const q_z_format q2_k = {.s = {.units = 8, .act = 8, .scales = 2, .minima = true, .exact = 8},
                                .bytes = 84,
                                .d = 80,
                                .dmin = 82,
                                .codes = codes_q2_k,
                                .scale = scale_q2_k,
                                .block = block_q2_k,
                                .order = order_2k};
Q_Z_PRODUCT(matmul_q2_k_a8_256_32x6__avx512vnni, q2_k)

Q_VNNI_INLINE void codes_q3_k(const uint8_t *const *p, int sub, __m512i v[8]) {
    Q_UNROLL for (int i = 0; i < 8; i++) {
        const __m512i two = low2(q_z_quad(p, i & 3, 32 + 32 * (sub / 4) + 16 * (i / 4)), 2 * (sub & 3));
        v[i] = with_bit(two, q_z_quad(p, i & 3, 16 * (i / 4)), _mm512_set1_epi8((char)(1 << sub)), 4);
    }
}
/* Sixteen scales of 6 bits, less 32. */
Q_VNNI_INLINE __m128i scales_q3_k(const uint8_t *p) {
    const __m128i b = _mm_loadl_epi64((const __m128i *)(const void *)p), nibble = _mm_set1_epi8(15);
    const __m128i low = _mm_unpacklo_epi64(_mm_and_si128(b, nibble), _mm_and_si128(_mm_srli_epi16(b, 4), nibble));
    const __m128i high = _mm_srlv_epi32(_mm_set1_epi32((int)q_load32(p + 8)), _mm_setr_epi32(0, 2, 4, 6));
    return _mm_sub_epi8(_mm_or_si128(low, _mm_slli_epi16(_mm_and_si128(high, _mm_set1_epi8(3)), 4)), _mm_set1_epi8(32));
}
Q_VNNI_INLINE void scale_q3_k(const uint8_t *const *p, __m512i sc[4], __m512i mn[4]) {
    const __m512i two = _mm512_set1_epi8(0x30), middle = _mm512_set1_epi8(32);
    __m512i v[4]; /* the last four bytes, moved to the front, hold the upper bits; d is behind them */
    Q_UNUSED(mn);
    turned(p, 94, v);
    const __m512i a = _mm512_or_si512(_mm512_srli_epi32(v[0], 16), _mm512_slli_epi32(v[1], 16));
    const __m512i b = _mm512_or_si512(_mm512_srli_epi32(v[1], 16), _mm512_slli_epi32(v[2], 16));
    const __m512i h = _mm512_or_si512(_mm512_srli_epi32(v[2], 16), _mm512_slli_epi32(v[3], 16));
    sc[0] = _mm512_or_si512(q_z_low4(a), _mm512_and_si512(_mm512_slli_epi32(h, 4), two));
    sc[1] = _mm512_or_si512(q_z_low4(b), _mm512_and_si512(_mm512_slli_epi32(h, 2), two));
    sc[2] = _mm512_or_si512(q_z_high4(a), _mm512_and_si512(h, two));
    sc[3] = _mm512_or_si512(q_z_high4(b), _mm512_and_si512(_mm512_srli_epi32(h, 2), two));
    Q_UNROLL for (int i = 0; i < 4; i++) sc[i] = _mm512_sub_epi8(sc[i], middle);
}
Q_VNNI_INLINE void block_q3_k(const uint8_t *p, q_z_block *to) {
    const __m512i v = load512(p + 32), h = twice256(p), s = four128(scales_q3_k(p + 96));
    Q_UNROLL for (int j = 0; j < 4; j++) {
        to->codes[j] = with_bit(low2(v, 2 * j), h, halves(1 << j, 16 << j), 4);
        to->scale[j] = place_signed(s, 2 * j, 2 * j + 1, 2 * j + 8, 2 * j + 9);
    }
}
static const q_z_format q3_k = {.s = {.units = 8, .act = 8, .bias = 4, .scales = 2, .exact = 8},
                                .bytes = 110,
                                .d = 108,
                                .codes = codes_q3_k,
                                .scale = scale_q3_k,
                                .block = block_q3_k,
                                .order = order_2k};
Q_Z_PRODUCT(matmul_q3_k_a8_256_32x6__avx512vnni, q3_k)

/* ---------------------------------------------------------------------------------------------------------- IQ4_XS */

/* 64 bytes of nibbles are the first 16 of four units in their low, the last 16 in their high halves. */
static const uint8_t order_4xs[16] = {0, 2, 4, 6, 1, 3, 5, 7, 8, 10, 12, 14, 9, 11, 13, 15};

Q_VNNI_INLINE void codes_iq4_xs(const uint8_t *const *p, int sub, __m512i v[8]) {
    Q_UNROLL for (int i = 0; i < 4; i++) {
        const __m512i b = q_z_quad(p, i, 8 + 16 * sub);
        v[i] = q_z_iq4(q_z_low4(b));
        v[4 + i] = q_z_iq4(q_z_high4(b));
    }
}
/* Nibbles, or pairs of bits, of the lowest 16 or 8 bits of each lane to its four bytes. */
Q_VNNI_INLINE __m512i spread4(__m512i v) {
    v = _mm512_and_si512(_mm512_or_si512(v, _mm512_slli_epi32(v, 8)), _mm512_set1_epi32(0x00FF00FF));
    return q_z_low4(_mm512_or_si512(v, _mm512_slli_epi32(v, 4)));
}
Q_VNNI_INLINE __m512i spread2(__m512i v) {
    v = _mm512_and_si512(_mm512_or_si512(v, _mm512_slli_epi32(v, 12)), _mm512_set1_epi32(0x000F000F));
    return _mm512_and_si512(_mm512_or_si512(v, _mm512_slli_epi32(v, 6)), _mm512_set1_epi8(3));
}
Q_VNNI_INLINE void scale_iq4_xs(const uint8_t *const *p, __m512i sc[4], __m512i mn[4]) {
    const __m512i middle = _mm512_set1_epi8(32);
    __m512i v[4]; /* d and the upper bits, then the lower */
    Q_UNUSED(mn);
    turned(p, 0, v);
    Q_UNROLL for (int i = 0; i < 2; i++) {
        const __m512i low = _mm512_and_si512(_mm512_srli_epi32(v[1], 16 * (unsigned)i), _mm512_set1_epi32(0xFFFF));
        const __m512i high = _mm512_and_si512(_mm512_srli_epi32(v[0], 16 + 8 * (unsigned)i), _mm512_set1_epi32(0xFF));
        sc[i] = _mm512_sub_epi8(_mm512_or_si512(spread4(low), _mm512_slli_epi32(spread2(high), 4)), middle);
    }
}
Q_VNNI_INLINE void block_iq4_xs(const uint8_t *p, q_z_block *to) {
    const __m512i a = load512(p + 8), b = load512(p + 72);
    const __m256i low =
        _mm256_srlv_epi32(_mm256_set1_epi32((int)q_load32(p + 4)), _mm256_setr_epi32(0, 4, 8, 12, 16, 20, 24, 28));
    const __m256i high =
        _mm256_srlv_epi32(_mm256_set1_epi32(q_load16(p + 2)), _mm256_setr_epi32(0, 2, 4, 6, 8, 10, 12, 14));
    const __m256i six = _mm256_or_si256(_mm256_and_si256(low, _mm256_set1_epi32(15)),
                                        _mm256_slli_epi32(_mm256_and_si256(high, _mm256_set1_epi32(3)), 4));
    const __m512i sc = _mm512_castsi256_si512(_mm256_sub_epi32(six, _mm256_set1_epi32(32)));
    to->codes[0] = q_z_iq4(q_z_low4(a));
    to->codes[1] = q_z_iq4(q_z_high4(a));
    to->codes[2] = q_z_iq4(q_z_low4(b));
    to->codes[3] = q_z_iq4(q_z_high4(b));
    to->scale[0] = _mm512_permutexvar_epi32(quarters(0, 1, 2, 3), sc);
    to->scale[1] = _mm512_permutexvar_epi32(quarters(4, 5, 6, 7), sc);
}
static const q_z_format iq4_xs = {.s = {.units = 8, .act = 8, .bias = 128, .scales = 1},
                                  .bytes = 136,
                                  .d = 0,
                                  .codes = codes_iq4_xs,
                                  .scale = scale_iq4_xs,
                                  .block = block_iq4_xs,
                                  .wide = true,
                                  .order = order_4xs};
Q_Z_PRODUCT(matmul_iq4_xs_a8_256_32x6__avx512vnni, iq4_xs)

/* ------------------------------------------------------------------------------------------------------------ Q6_K */

/* 64 bytes of nibbles are units 0, 1 of a half in their low and 2, 3 in their high halves; two more bits of each unit
 * are in turn bits 0, 2, 4, 6 of 32 bytes. */
Q_VNNI_INLINE void codes_q6_k(const uint8_t *const *p, int sub, __m512i v[8]) {
    const int half = sub / 4, unit = sub & 3;
    Q_UNROLL for (int i = 0; i < 8; i++) {
        const __m512i b = q_z_quad(p, i & 3, 64 * half + 32 * (unit & 1) + 16 * (i / 4));
        const __m512i h = q_z_quad(p, i & 3, 128 + 32 * half + 16 * (i / 4));
        v[i] = _mm512_or_si512(unit & 2 ? q_z_high4(b) : q_z_low4(b), _mm512_slli_epi16(low2(h, 2 * unit), 4));
    }
}
Q_VNNI_INLINE void scale_q6_k(const uint8_t *const *p, __m512i sc[4], __m512i mn[4]) {
    Q_UNUSED(mn);
    turned(p, 192, sc);
}
Q_VNNI_INLINE __m512i pair_q6_k(const uint8_t *row, int64_t s, int i, int64_t last, __m512i *scale) {
    const uint8_t *p = row + Q_MIN(s / 8 + i / 4, last / 8) * 210;
    const int half = i / 2 & 1, j = i & 3;
    const __m512i b = load512(p + 64 * half), h = twice256(p + 128 + 32 * half), two = _mm512_set1_epi8(0x30);
    const __m512i left = _mm512_setr_epi64(4, 4, 4, 4, 2, 2, 2, 2), right = _mm512_setr_epi64(0, 0, 0, 0, 2, 2, 2, 2);
    *scale = place_signed(four128(q_z_load128(p + 192)), 4 * j, 4 * j + 1, 4 * j + 2, 4 * j + 3);
    if (i & 1) return _mm512_or_si512(q_z_high4(b), _mm512_and_si512(_mm512_srlv_epi64(h, right), two));
    return _mm512_or_si512(q_z_low4(b), _mm512_and_si512(_mm512_sllv_epi64(h, left), two));
}
static const q_z_format q6_k = {.s = {.units = 8, .act = 1, .bias = 32, .scales = 2, .exact = 1},
                                .bytes = 210,
                                .d = 208,
                                .codes = codes_q6_k,
                                .scale = scale_q6_k,
                                .pair = pair_q6_k};
Q_Z_PRODUCT(matmul_q6_k_a8_32_32x6__avx512vnni, q6_k)
