/* matmul_units_avx2.c: products with 8-bit activations of formats that have no kernel of their own shape: a format says
 * here how 32 weights become signed bytes with two scales and two minima, and the rest is shared.
 *
 * |w| is the unsigned operand (at most 128) and the activation takes the weight's sign: a pair is at most 32512, and
 * the widening multiply-add by the scale (of magnitude at most 255) keeps a block of 256 below 2^31. Layer L2. */
#include "i8_avx2.h"

/* 32 weights of a row: unit `sub` of block `block`. */
typedef struct unit {
    __m256i w;
    int16_t sc[2], mn[2]; /* of the first and the last 16 */
} unit;

/* What a format is: where its halves lie, and its units. */
typedef struct layout {
    int bytes, units; /* of a block */
    int d, dmin;      /* bytes of the halves in it; dmin -1 = no minima */
    unit (*get)(const uint8_t *p, int sub);
} layout;

/* A unit of the panel: 8 vectors of codes, two of scales (each twice), one of pairs of minima. Then d, dmin. */
enum { UNIT_SC = 256, UNIT_MN = UNIT_SC + 64, UNIT = UNIT_MN + 32 };
#define PANEL(units) ((units) * UNIT + 64)

/* Activations of unit `sub`, and the sums of its halves. A block of either kind begins d, sums, codes. */
Q_AVX2_INLINE const int8_t *codes_of(const uint8_t *x, int units, int sub) {
    return (const int8_t *)x + 4 + 4 * units + 32 * sub;
}
Q_AVX2_INLINE uint32_t sums_of(const uint8_t *x, int sub) { return q_load32(x + 4 + 4 * sub); }
Q_AVX2_INLINE float scale_of(const uint8_t *x) { return q_bits_f32(q_load32(x)); }
Q_AVX2_INLINE int64_t act_bytes(int units) { return 4 + 36 * units; }

Q_AVX2_INLINE __m256i pairs(__m256i w, __m256i a) {
    return _mm256_maddubs_epi16(_mm256_abs_epi8(w), _mm256_sign_epi8(a, w));
}

Q_AVX2_INLINE void one_of(const layout *f, const uint8_t *const *row, const uint8_t *x, int64_t blocks, __m256 *y) {
    __m256 acc = _mm256_setzero_ps();
    for (int64_t i = 0; i < blocks; i++, x += act_bytes(f->units)) {
        q_ahead(row, i, f->bytes);
        __m256i v[8];
        int32_t least[8];
        for (int r = 0; r < 8; r++) {
            __m256i total = _mm256_setzero_si256();
            least[r] = 0;
            Q_UNROLL for (int sub = 0; sub < f->units; sub++) {
                const unit u = f->get(row[r] + i * f->bytes, sub);
                const __m256i sc = _mm256_set_m128i(_mm_set1_epi16(u.sc[1]), _mm_set1_epi16(u.sc[0]));
                const __m256i p = pairs(u.w, q_load256(codes_of(x, f->units, sub)));
                total = _mm256_add_epi32(total, _mm256_madd_epi16(p, sc));
                if (f->dmin < 0) continue;
                const uint32_t sums = sums_of(x, sub);
                least[r] += u.mn[0] * (int16_t)(sums & 0xFFFFu) + u.mn[1] * (int16_t)(sums >> 16);
            }
            v[r] = total;
        }
        const __m256 da = _mm256_set1_ps(scale_of(x));
        acc = _mm256_fmadd_ps(_mm256_mul_ps(q_halves8(row, i * f->bytes + f->d), da), _mm256_cvtepi32_ps(q_across8(v)),
                              acc);
        if (f->dmin < 0) continue;
        const __m256 m = _mm256_mul_ps(q_halves8(row, i * f->bytes + f->dmin), da);
        acc = _mm256_fnmadd_ps(m, _mm256_cvtepi32_ps(q_load256(least)), acc);
    }
    *y = acc;
}

Q_AVX2_INLINE void unpack_of(const layout *f, const uint8_t *const *row, int64_t blocks, uint8_t *panel) {
    for (int64_t i = 0; i < blocks; i++, panel += PANEL(f->units)) {
        uint8_t *ends = panel + f->units * UNIT;
        for (int sub = 0; sub < f->units; sub++) {
            uint8_t *to = panel + sub * UNIT;
            __m256i w[8];
            for (int r = 0; r < 8; r++) {
                const unit u = f->get(row[r] + i * f->bytes, sub);
                w[r] = u.w;
                for (int g = 0; g < 2; g++) {
                    q_store16(to + UNIT_SC + 32 * g + 4 * r, (uint16_t)u.sc[g]);
                    q_store16(to + UNIT_SC + 32 * g + 4 * r + 2, (uint16_t)u.sc[g]);
                    q_store16(to + UNIT_MN + 4 * r + 2 * g, (uint16_t)u.mn[g]);
                }
            }
            q_interleave8(w, to);
        }
        _mm256_storeu_ps((float *)(void *)ends, q_halves8(row, i * f->bytes + f->d));
        if (f->dmin >= 0) _mm256_storeu_ps((float *)(void *)(ends + 32), q_halves8(row, i * f->bytes + f->dmin));
    }
}

Q_AVX2_INLINE void columns_of(const layout *f, const uint8_t *panel, const uint8_t *const *x, int64_t blocks,
                              __m256 *y) {
    enum { C = Q_I8_COLUMNS };
    __m256 acc[C];
    Q_UNROLL for (int c = 0; c < C; c++) acc[c] = _mm256_setzero_ps();
    for (int64_t i = 0; i < blocks; i++, panel += PANEL(f->units)) {
        const uint8_t *b[C];
        __m256i total[C], least[C];
        Q_UNROLL for (int c = 0; c < C; c++) {
            b[c] = x[c] + i * act_bytes(f->units);
            total[c] = least[c] = _mm256_setzero_si256();
        }
        for (int sub = 0; sub < f->units; sub++) {
            const uint8_t *u = panel + sub * UNIT;
            Q_UNROLL for (int g = 0; g < 8; g++) {
                const __m256i w = q_load256(u + 32 * g), sc = q_load256(u + UNIT_SC + 32 * (g / 4));
                Q_UNROLL for (int c = 0; c < C; c++) {
                    const __m256i p = pairs(w, q_four(codes_of(b[c], f->units, sub) + 4 * g));
                    total[c] = _mm256_add_epi32(total[c], _mm256_madd_epi16(p, sc));
                }
            }
            if (f->dmin < 0) continue;
            const __m256i mn = q_load256(u + UNIT_MN);
            Q_UNROLL for (int c = 0; c < C; c++) {
                const __m256i sums = _mm256_set1_epi32((int)sums_of(b[c], sub));
                least[c] = _mm256_add_epi32(least[c], _mm256_madd_epi16(mn, sums));
            }
        }
        const __m256 d = _mm256_loadu_ps((const float *)(const void *)(panel + f->units * UNIT));
        const __m256 dmin = _mm256_loadu_ps((const float *)(const void *)(panel + f->units * UNIT + 32));
        Q_UNROLL for (int c = 0; c < C; c++) {
            const __m256 da = _mm256_set1_ps(scale_of(b[c]));
            acc[c] = _mm256_fmadd_ps(_mm256_mul_ps(d, da), _mm256_cvtepi32_ps(total[c]), acc[c]);
            if (f->dmin >= 0) acc[c] = _mm256_fnmadd_ps(_mm256_mul_ps(dmin, da), _mm256_cvtepi32_ps(least[c]), acc[c]);
        }
    }
    Q_UNROLL for (int c = 0; c < C; c++) y[c] = acc[c];
}

/* ------------------------------------------------------------------------------------------ what formats consist of */

/* 32 nibbles in order: the low ones of 16 bytes, then the high ones. */
Q_AVX2_INLINE __m256i nibbles(const uint8_t *p) {
    const __m256i v = _mm256_srlv_epi32(q_twice128(p), _mm256_setr_epi32(0, 0, 0, 0, 4, 4, 4, 4));
    return _mm256_and_si256(v, _mm256_set1_epi8(15));
}

/* Bit i of 32 as byte i, 16 or 0. */
Q_AVX2_INLINE __m256i bits_as_16(uint32_t bits) {
    const __m256i which = _mm256_setr_epi8(0, 0, 0, 0, 0, 0, 0, 0, 1, 1, 1, 1, 1, 1, 1, 1, 2, 2, 2, 2, 2, 2, 2, 2, 3, 3,
                                           3, 3, 3, 3, 3, 3);
    const __m256i bit = _mm256_set1_epi64x((long long)0x8040201008040201u);
    const __m256i v = _mm256_and_si256(_mm256_shuffle_epi8(_mm256_set1_epi32((int)bits), which), bit);
    return _mm256_and_si256(_mm256_cmpeq_epi8(v, bit), _mm256_set1_epi8(16));
}

/* Scale, or minimum, `sub` of the eight in 12 bytes of a super-block (Q4_K, Q5_K). */
Q_AVX2_INLINE int16_t scale6(const uint8_t *p, int sub) {
    return (int16_t)(sub < 4 ? p[sub] & 63 : (p[sub + 4] & 15) | p[sub - 4] >> 6 << 4);
}
Q_AVX2_INLINE int16_t minimum6(const uint8_t *p, int sub) {
    return (int16_t)(sub < 4 ? p[sub + 4] & 63 : p[sub + 4] >> 4 | p[sub] >> 6 << 4);
}

/* The codebook of IQ4_NL and IQ4_XS. */
Q_AVX2_INLINE __m256i looked_up(__m256i index) {
    const __m128i t = _mm_setr_epi8(-127, -104, -83, -65, -49, -35, -22, -10, 1, 13, 25, 38, 53, 69, 89, 113);
    return _mm256_shuffle_epi8(_mm256_broadcastsi128_si256(t), index);
}

Q_AVX2_INLINE unit q4_1_unit(const uint8_t *p, int sub) {
    Q_UNUSED(sub);
    return (unit){nibbles(p + 4), {1, 1}, {-1, -1}};
}
Q_AVX2_INLINE unit q5_0_unit(const uint8_t *p, int sub) {
    Q_UNUSED(sub);
    const __m256i u = _mm256_or_si256(nibbles(p + 6), bits_as_16(q_load32(p + 2)));
    return (unit){_mm256_sub_epi8(u, _mm256_set1_epi8(16)), {1, 1}, {0, 0}};
}
Q_AVX2_INLINE unit q5_1_unit(const uint8_t *p, int sub) {
    Q_UNUSED(sub);
    return (unit){_mm256_or_si256(nibbles(p + 8), bits_as_16(q_load32(p + 4))), {1, 1}, {-1, -1}};
}
Q_AVX2_INLINE unit iq4_nl_unit(const uint8_t *p, int sub) {
    Q_UNUSED(sub);
    return (unit){looked_up(nibbles(p + 2)), {1, 1}, {0, 0}};
}
Q_AVX2_INLINE unit iq4_xs_unit(const uint8_t *p, int sub) {
    const int low = p[4 + sub / 2] >> (4 * (sub & 1)) & 15, high = q_load16(p + 2) >> (2 * sub) & 3;
    const int16_t sc = (int16_t)((low | high << 4) - 32);
    return (unit){looked_up(nibbles(p + 8 + 16 * sub)), {sc, sc}, {0, 0}};
}
Q_AVX2_INLINE unit q2_k_unit(const uint8_t *p, int sub) {
    const __m256i v = _mm256_srli_epi16(q_load256(p + 16 + 32 * (sub / 4)), 2 * (sub & 3));
    const uint8_t a = p[2 * sub], b = p[2 * sub + 1];
    return (unit){_mm256_and_si256(v, _mm256_set1_epi8(3)), {a & 15, b & 15}, {a >> 4, b >> 4}};
}
Q_AVX2_INLINE int16_t q3_k_scale(const uint8_t *p, int j) {
    const int low = p[96 + (j & 7)] >> (4 * (j >> 3)) & 15, high = p[104 + (j & 3)] >> (2 * (j >> 2)) & 3;
    return (int16_t)((low | high << 4) - 32);
}
Q_AVX2_INLINE unit q3_k_unit(const uint8_t *p, int sub) {
    const __m256i two = _mm256_and_si256(_mm256_srli_epi16(q_load256(p + 32 + 32 * (sub / 4)), 2 * (sub & 3)),
                                         _mm256_set1_epi8(3));
    const __m256i third = _mm256_and_si256(_mm256_srli_epi16(q_load256(p), sub), _mm256_set1_epi8(1));
    const __m256i q = _mm256_or_si256(two, _mm256_slli_epi16(third, 2));
    return (unit){
        _mm256_sub_epi8(q, _mm256_set1_epi8(4)), {q3_k_scale(p, 2 * sub), q3_k_scale(p, 2 * sub + 1)}, {0, 0}};
}
Q_AVX2_INLINE unit q5_k_unit(const uint8_t *p, int sub) {
    const __m256i low = _mm256_and_si256(_mm256_srli_epi16(q_load256(p + 48 + 32 * (sub / 2)), 4 * (sub & 1)),
                                         _mm256_set1_epi8(15));
    const __m256i fifth = _mm256_and_si256(_mm256_srli_epi16(q_load256(p + 16), sub), _mm256_set1_epi8(1));
    const int16_t sc = scale6(p + 4, sub), mn = minimum6(p + 4, sub);
    return (unit){_mm256_or_si256(low, _mm256_slli_epi16(fifth, 4)), {sc, sc}, {mn, mn}};
}

#define UNITS(name, act, bytes, units, d, dmin)                                                                      \
    Q_AVX2 static void name##_one(const uint8_t *const *row, const uint8_t *x, int64_t blocks, __m256 *y) {          \
        const layout f = {bytes, units, d, dmin, name##_unit};                                                       \
        one_of(&f, row, x, blocks, y);                                                                               \
    }                                                                                                                \
    Q_AVX2 static void name##_unpack(const uint8_t *const *row, int64_t blocks, uint8_t *panel) {                    \
        const layout f = {bytes, units, d, dmin, name##_unit};                                                       \
        unpack_of(&f, row, blocks, panel);                                                                           \
    }                                                                                                                \
    Q_AVX2 static void name##_columns(const uint8_t *panel, const uint8_t *const *x, int64_t blocks, __m256 *y) {    \
        const layout f = {bytes, units, d, dmin, name##_unit};                                                       \
        columns_of(&f, panel, x, blocks, y);                                                                         \
    }                                                                                                                \
    static const q_i8_kernel name##_kernel = {32 * units, PANEL(units), name##_one, name##_unpack, name##_columns};  \
    Q_I8_PRODUCT(matmul_##name##_##act##_8x4__avx2, name##_kernel)

UNITS(q4_1, a8_32, 20, 1, 0, 2)
UNITS(q5_0, a8_32, 22, 1, 0, -1)
UNITS(q5_1, a8_32, 24, 1, 0, 2)
UNITS(iq4_nl, a8_32, 18, 1, 0, -1)
UNITS(iq4_xs, a8_256, 136, 8, 0, -1)
UNITS(q2_k, a8_256, 84, 8, 80, 82)
UNITS(q3_k, a8_256, 110, 8, 108, -1)
UNITS(q5_k, a8_256, 176, 8, 0, 2)
