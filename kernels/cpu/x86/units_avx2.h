/* units_avx2.h: how the formats of integer codes come apart in AVX2: 32 weights as signed bytes, with two scales and
 * two minima. Loops over them: matmul_units_avx2.c, matmul_units_avxvnni.c. Layer L2. */
#ifndef Q_UNITS_AVX2_H
#define Q_UNITS_AVX2_H

#include "i8_avx2.h"

/* 32 weights of a row: unit `sub` of block `block`. */
typedef struct q_unit {
    __m256i w;
    int16_t sc[2], mn[2]; /* of the first and the last 16 */
} q_unit;

/* What a format is: where its halves lie, and its units. */
typedef struct q_unit_format {
    int bytes, units; /* of a block */
    int act;          /* units per block of activations: 1 or 8 */
    int d, dmin;      /* bytes of the halves in a block; dmin -1 = no minima */
    int scales;       /* that differ in a unit: 0 (all are 1), 1 or 2 */
    int bias;         /* makes weights unsigned codes */
    q_unit (*get)(const uint8_t *p, int sub);
} q_unit_format;

/* Activations of unit `sub` of a block of `units`, and the sums of its halves. A block of either kind begins d, sums,
 * codes. */
Q_AVX2_PART const int8_t *q_unit_codes(const uint8_t *x, int units, int sub) {
    return (const int8_t *)x + 4 + 4 * units + 32 * sub;
}
Q_AVX2_PART uint32_t q_unit_sums(const uint8_t *x, int sub) { return q_load32(x + 4 + 4 * sub); }
Q_AVX2_PART float q_unit_scale(const uint8_t *x) { return q_bits_f32(q_load32(x)); }
Q_AVX2_PART int64_t q_unit_act_bytes(int units) { return 4 + 36 * units; }

/* 32 nibbles in order: the low ones of 16 bytes, then the high ones. */
Q_AVX2_PART __m256i q_unit_nibbles(const uint8_t *p) {
    const __m256i v = _mm256_srlv_epi32(q_twice128(p), _mm256_setr_epi32(0, 0, 0, 0, 4, 4, 4, 4));
    return _mm256_and_si256(v, _mm256_set1_epi8(15));
}

/* Bit i of 32 as byte i, 16 or 0. */
Q_AVX2_PART __m256i q_unit_bits_as_16(uint32_t bits) {
    const __m256i which = _mm256_setr_epi8(0, 0, 0, 0, 0, 0, 0, 0, 1, 1, 1, 1, 1, 1, 1, 1, 2, 2, 2, 2, 2, 2, 2, 2, 3, 3,
                                           3, 3, 3, 3, 3, 3);
    const __m256i bit = _mm256_set1_epi64x((long long)0x8040201008040201u);
    const __m256i v = _mm256_and_si256(_mm256_shuffle_epi8(_mm256_set1_epi32((int)bits), which), bit);
    return _mm256_and_si256(_mm256_cmpeq_epi8(v, bit), _mm256_set1_epi8(16));
}

/* Scale, or minimum, `sub` of the eight in 12 bytes of a super-block (Q4_K, Q5_K). */
Q_AVX2_PART int16_t q_unit_scale6(const uint8_t *p, int sub) {
    return (int16_t)(sub < 4 ? p[sub] & 63 : (p[sub + 4] & 15) | p[sub - 4] >> 6 << 4);
}
Q_AVX2_PART int16_t q_unit_minimum6(const uint8_t *p, int sub) {
    return (int16_t)(sub < 4 ? p[sub + 4] & 63 : p[sub + 4] >> 4 | p[sub] >> 6 << 4);
}

/* The codebook of IQ4_NL and IQ4_XS. */
Q_AVX2_PART __m256i q_unit_looked_up(__m256i index) {
    const __m128i t = _mm_setr_epi8(-127, -104, -83, -65, -49, -35, -22, -10, 1, 13, 25, 38, 53, 69, 89, 113);
    return _mm256_shuffle_epi8(_mm256_broadcastsi128_si256(t), index);
}

Q_AVX2_PART q_unit q_unit_q4_1(const uint8_t *p, int sub) {
    Q_UNUSED(sub);
    return (q_unit){q_unit_nibbles(p + 4), {1, 1}, {-1, -1}};
}
Q_AVX2_PART q_unit q_unit_q5_0(const uint8_t *p, int sub) {
    Q_UNUSED(sub);
    const __m256i u = _mm256_or_si256(q_unit_nibbles(p + 6), q_unit_bits_as_16(q_load32(p + 2)));
    return (q_unit){_mm256_sub_epi8(u, _mm256_set1_epi8(16)), {1, 1}, {0, 0}};
}
Q_AVX2_PART q_unit q_unit_q5_1(const uint8_t *p, int sub) {
    Q_UNUSED(sub);
    return (q_unit){_mm256_or_si256(q_unit_nibbles(p + 8), q_unit_bits_as_16(q_load32(p + 4))), {1, 1}, {-1, -1}};
}
Q_AVX2_PART q_unit q_unit_iq4_nl(const uint8_t *p, int sub) {
    Q_UNUSED(sub);
    return (q_unit){q_unit_looked_up(q_unit_nibbles(p + 2)), {1, 1}, {0, 0}};
}
Q_AVX2_PART q_unit q_unit_iq4_xs(const uint8_t *p, int sub) {
    const int low = p[4 + sub / 2] >> (4 * (sub & 1)) & 15, high = q_load16(p + 2) >> (2 * sub) & 3;
    const int16_t sc = (int16_t)((low | high << 4) - 32);
    return (q_unit){q_unit_looked_up(q_unit_nibbles(p + 8 + 16 * sub)), {sc, sc}, {0, 0}};
}
Q_AVX2_PART q_unit q_unit_q2_k(const uint8_t *p, int sub) {
    const __m256i v = _mm256_srli_epi16(q_load256(p + 16 + 32 * (sub / 4)), 2 * (sub & 3));
    const uint8_t a = p[2 * sub], b = p[2 * sub + 1];
    return (q_unit){_mm256_and_si256(v, _mm256_set1_epi8(3)), {a & 15, b & 15}, {a >> 4, b >> 4}};
}
Q_AVX2_PART int16_t q_unit_scale_q3_k(const uint8_t *p, int j) {
    const int low = p[96 + (j & 7)] >> (4 * (j >> 3)) & 15, high = p[104 + (j & 3)] >> (2 * (j >> 2)) & 3;
    return (int16_t)((low | high << 4) - 32);
}
Q_AVX2_PART q_unit q_unit_q3_k(const uint8_t *p, int sub) {
    const __m256i two = _mm256_and_si256(_mm256_srli_epi16(q_load256(p + 32 + 32 * (sub / 4)), 2 * (sub & 3)),
                                         _mm256_set1_epi8(3));
    const __m256i third = _mm256_and_si256(_mm256_srli_epi16(q_load256(p), sub), _mm256_set1_epi8(1));
    const __m256i q = _mm256_or_si256(two, _mm256_slli_epi16(third, 2));
    const int16_t a = q_unit_scale_q3_k(p, 2 * sub), b = q_unit_scale_q3_k(p, 2 * sub + 1);
    return (q_unit){_mm256_sub_epi8(q, _mm256_set1_epi8(4)), {a, b}, {0, 0}};
}
Q_AVX2_PART q_unit q_unit_q5_k(const uint8_t *p, int sub) {
    const __m256i low = _mm256_and_si256(_mm256_srli_epi16(q_load256(p + 48 + 32 * (sub / 2)), 4 * (sub & 1)),
                                         _mm256_set1_epi8(15));
    const __m256i fifth = _mm256_and_si256(_mm256_srli_epi16(q_load256(p + 16), sub), _mm256_set1_epi8(1));
    const int16_t sc = q_unit_scale6(p + 4, sub), mn = q_unit_minimum6(p + 4, sub);
    return (q_unit){_mm256_or_si256(low, _mm256_slli_epi16(fifth, 4)), {sc, sc}, {mn, mn}};
}

Q_AVX2_PART q_unit q_unit_q8_0(const uint8_t *p, int sub) {
    Q_UNUSED(sub);
    return (q_unit){q_load256(p + 2), {1, 1}, {0, 0}};
}
Q_AVX2_PART q_unit q_unit_q4_0(const uint8_t *p, int sub) {
    Q_UNUSED(sub);
    return (q_unit){_mm256_sub_epi8(q_unit_nibbles(p + 2), _mm256_set1_epi8(8)), {1, 1}, {0, 0}};
}
Q_AVX2_PART q_unit q_unit_q4_k(const uint8_t *p, int sub) {
    const __m256i v = _mm256_srli_epi16(q_load256(p + 16 + 32 * (sub / 2)), 4 * (sub & 1));
    const int16_t sc = q_unit_scale6(p + 4, sub), mn = q_unit_minimum6(p + 4, sub);
    return (q_unit){_mm256_and_si256(v, _mm256_set1_epi8(15)), {sc, sc}, {mn, mn}};
}
Q_AVX2_PART q_unit q_unit_q6_k(const uint8_t *p, int sub) {
    const int half = sub / 4, unit = sub & 3;
    const __m256i low = _mm256_srli_epi16(q_load256(p + 64 * half + 32 * (unit & 1)), 2 * (unit & 2));
    const __m256i high = _mm256_srli_epi16(q_load256(p + 128 + 32 * half), 2 * unit);
    const __m256i u = _mm256_or_si256(_mm256_and_si256(low, _mm256_set1_epi8(15)),
                                      _mm256_slli_epi16(_mm256_and_si256(high, _mm256_set1_epi8(3)), 4));
    const int8_t *sc = (const int8_t *)p + 192 + 2 * sub;
    return (q_unit){_mm256_sub_epi8(u, _mm256_set1_epi8(32)), {sc[0], sc[1]}, {0, 0}};
}

Q_AVX2_PART q_unit q_unit_tq2_0(const uint8_t *p, int sub) {
    const __m256i v = _mm256_srli_epi16(q_load256(p + 32 * (sub / 4)), 2 * (sub & 3));
    return (q_unit){_mm256_sub_epi8(_mm256_and_si256(v, _mm256_set1_epi8(3)), _mm256_set1_epi8(1)), {1, 1}, {0, 0}};
}
/* 16 bytes times `by`, 16-bit powers of three, less what passes 256: what they have of thirds, less 1. */
Q_AVX2_PART __m128i q_unit_digits(__m128i bytes, __m256i by) {
    const __m256i low = _mm256_set1_epi16(255);
    const __m256i v = _mm256_and_si256(_mm256_mullo_epi16(_mm256_cvtepu8_epi16(bytes), by), low);
    const __m256i q = _mm256_srli_epi16(_mm256_mullo_epi16(v, _mm256_set1_epi16(3)), 8);
    const __m128i packed = _mm_packus_epi16(_mm256_castsi256_si128(q), _mm256_extracti128_si256(q, 1));
    return _mm_sub_epi8(packed, _mm_set1_epi8(1));
}
Q_AVX2_PART q_unit q_unit_tq1_0(const uint8_t *p, int sub) {
    static const int16_t power[6] = {1, 3, 9, 27, 81, 243};
    const int n = sub < 5 ? sub : 2 * (sub - 5);
    __m128i a = q_load128(p + (sub < 5 ? 0 : 32)), b = q_load128(p + (sub < 5 ? 16 : 32));
    __m256i by_a = _mm256_set1_epi16(power[n]), by_b = _mm256_set1_epi16(power[sub < 5 ? n : n + 1]);
    if (sub == 7) { /* the last 16: four digits of four bytes */
        b = _mm_set1_epi32((int)q_load32(p + 48));
        by_b = _mm256_setr_epi16(1, 1, 1, 1, 3, 3, 3, 3, 9, 9, 9, 9, 27, 27, 27, 27);
    }
    return (q_unit){_mm256_set_m128i(q_unit_digits(b, by_b), q_unit_digits(a, by_a)), {1, 1}, {0, 0}};
}

/* DO(format, activations, what its record holds) for those without a kernel of their own shape in AVX2, and for the
 * others. */
#define Q_UNITS_SHARED(DO)                      \
    DO(q4_1, a8_32, 20, 1, 1, 0, 2, 0, 0)       \
    DO(q5_0, a8_32, 22, 1, 1, 0, -1, 0, 16)     \
    DO(q5_1, a8_32, 24, 1, 1, 0, 2, 0, 0)       \
    DO(iq4_nl, a8_32, 18, 1, 1, 0, -1, 0, 128)  \
    DO(iq4_xs, a8_256, 136, 8, 8, 0, -1, 1, 128) \
    DO(q2_k, a8_256, 84, 8, 8, 80, 82, 2, 0)    \
    DO(q3_k, a8_256, 110, 8, 8, 108, -1, 2, 4)  \
    DO(q5_k, a8_256, 176, 8, 8, 0, 2, 1, 0)     \
    DO(tq1_0, a8_256, 54, 8, 8, 52, -1, 0, 1)   \
    DO(tq2_0, a8_256, 66, 8, 8, 64, -1, 0, 1)
#define Q_UNITS_OWN(DO)                      \
    DO(q8_0, a8_32, 34, 1, 1, 0, -1, 0, 128) \
    DO(q4_0, a8_32, 18, 1, 1, 0, -1, 0, 8)   \
    DO(q4_k, a8_256, 144, 8, 8, 0, 2, 1, 0)  \
    DO(q6_k, a8_32, 210, 8, 1, 208, -1, 2, 32)

#define Q_UNIT_FORMAT(name, form, bytes, units, act, d, dmin, scales, bias) \
    static const q_unit_format q_unit_format_##name = {bytes, units, act, d, dmin, scales, bias, q_unit_##name};
Q_UNITS_SHARED(Q_UNIT_FORMAT)
Q_UNITS_OWN(Q_UNIT_FORMAT)

#endif
