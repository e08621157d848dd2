/* matmul_cards_avx2.c: products with 8-bit activations of the formats of model cards as they lie in rows: INT8 per row,
 * 4-bit and 8-bit groups with zero points, NF4, 4-bit floats. A format says how 32 weights of a row become signed
 * bytes, and what scales them.
 *
 * |w| is the unsigned operand (at most 128) and the activation takes the weight's sign: a pair is at most 32512 and
 * fits 16 bits. Layer L2. */
#include "i8_avx2.h"

#include "../../../libquant/formats/nf4_dq.c"
#include "../../../libquant/formats/nvfp4.c"

typedef struct card {
    bool whole;                                       /* one sum of integers, and one scale of activations, to a row */
    __m256i (*codes)(const uint8_t *row, int64_t u);  /* of unit u */
    float (*d)(const uint8_t *row, int64_t u);
    /* what minus a unit's sum of activations is taken times; NULL = 0 */
    float (*least)(const uint8_t *row, int64_t u);
    /* Integers of the first and the last 16 weights, 16 bits each, and d; NULL: they are 1, and the above says d. */
    uint32_t (*scale)(const uint8_t *row, int64_t u, float *d);
} card;

/* A unit of eight rows: codes, d, and where there are any least and scales, each twice as int16. */
enum { CARD_D = 256, CARD_LEAST = CARD_D + 32, CARD_SCALE = CARD_LEAST + 32, CARD_PANEL = CARD_SCALE + 64 };

Q_AVX2_PART const int8_t *card_acts(const card *f, const uint8_t *x, int64_t u, int64_t units) {
    return (const int8_t *)x + (f->whole ? 4 + 4 * units + 32 * u : 40 * u + 8);
}
Q_AVX2_PART __m256 card_da(const card *f, const uint8_t *x, int64_t u) {
    return _mm256_set1_ps(q_bits_f32(q_load32(x + (f->whole ? 0 : 40 * u))));
}
Q_AVX2_PART __m256i card_pairs(__m256i w, __m256i a, __m256i scale) {
    return _mm256_madd_epi16(_mm256_maddubs_epi16(_mm256_abs_epi8(w), _mm256_sign_epi8(a, w)), scale);
}
Q_AVX2_PART __m256i card_scale(const card *f, const uint8_t *row, int64_t u, float *d) {
    const uint32_t two = f->scale ? f->scale(row, u, d) : 0x00010001u;
    return _mm256_set_m128i(_mm_set1_epi16((short)(two >> 16)), _mm_set1_epi16((short)two));
}
Q_AVX2_PART __m256 card_add(__m256 d, __m256 da, __m256i sum, __m256 acc) {
    return _mm256_fmadd_ps(_mm256_mul_ps(d, da), _mm256_cvtepi32_ps(sum), acc);
}
Q_AVX2_PART __m256 card_8(float (*d)(const uint8_t *row, int64_t u), const uint8_t *const *row, int64_t u) {
    return _mm256_setr_ps(d(row[0], u), d(row[1], u), d(row[2], u), d(row[3], u), d(row[4], u), d(row[5], u),
                          d(row[6], u), d(row[7], u));
}
/* What minima take away, whose integer is minus the sum of a unit's activations. */
Q_AVX2_PART __m256 card_less(__m256 least, __m256 da, const uint8_t *x, int64_t u, __m256 acc) {
    const uint32_t sums = q_load32(x + 40 * u + 4);
    const float sum = (float)-((int16_t)(sums & 0xFFFFu) + (int16_t)(sums >> 16));
    return _mm256_fnmadd_ps(_mm256_mul_ps(least, da), _mm256_set1_ps(sum), acc);
}

Q_AVX2_PART void card_one(const card *f, const uint8_t *const *row, const uint8_t *x, int64_t units, __m256 *y) {
    __m256 acc = _mm256_setzero_ps();
    __m256i v[8];
    float d[8];
    for (int r = 0; r < 8; r++) v[r] = _mm256_setzero_si256();
    for (int64_t u = 0; u < units; u++) {
        const __m256i a = q_load256(card_acts(f, x, u, units));
        Q_UNROLL for (int r = 0; r < 8; r++) {
            const __m256i p = card_pairs(f->codes(row[r], u), a, card_scale(f, row[r], u, &d[r]));
            v[r] = f->whole ? _mm256_add_epi32(v[r], p) : p;
        }
        if (!f->whole)
            acc = card_add(f->scale ? _mm256_loadu_ps(d) : card_8(f->d, row, u), card_da(f, x, u), q_across8(v), acc);
        if (f->least) acc = card_less(card_8(f->least, row, u), card_da(f, x, u), x, u, acc);
    }
    *y = f->whole ? card_add(card_8(f->d, row, 0), card_da(f, x, 0), q_across8(v), acc) : acc;
}

Q_AVX2_PART void card_unpack(const card *f, const uint8_t *const *row, int64_t units, uint8_t *panel) {
    for (int64_t u = 0; u < units; u++, panel += CARD_PANEL) {
        __m256i w[8];
        Q_UNROLL for (int r = 0; r < 8; r++) w[r] = f->codes(row[r], u);
        q_interleave8(w, panel);
        float *d = (float *)(void *)(panel + CARD_D);
        if (!f->scale) _mm256_storeu_ps(d, card_8(f->d, row, u));
        if (f->least) _mm256_storeu_ps((float *)(void *)(panel + CARD_LEAST), card_8(f->least, row, u));
        for (int r = 0; f->scale && r < 8; r++) {
            const uint32_t two = f->scale(row[r], u, &d[r]);
            q_store32(panel + CARD_SCALE + 4 * r, (two & 0xFFFFu) * 0x00010001u);
            q_store32(panel + CARD_SCALE + 32 + 4 * r, (two >> 16) * 0x00010001u);
        }
    }
}

Q_AVX2_PART void card_columns(const card *f, const uint8_t *panel, const uint8_t *const *x, int64_t units, __m256 *y) {
    enum { C = Q_I8_COLUMNS };
    __m256 acc[C];
    __m256i total[C];
    Q_UNROLL for (int c = 0; c < C; c++) acc[c] = _mm256_setzero_ps(), total[c] = _mm256_setzero_si256();
    for (int64_t u = 0; u < units; u++, panel += CARD_PANEL) {
        Q_UNROLL for (int g = 0; g < 8; g++) {
            const __m256i w = q_load256(panel + 32 * g);
            const __m256i scale = f->scale ? q_load256(panel + CARD_SCALE + 32 * (g / 4)) : _mm256_set1_epi16(1);
            Q_UNROLL for (int c = 0; c < C; c++) total[c] =
                _mm256_add_epi32(total[c], card_pairs(w, q_four(card_acts(f, x[c], u, units) + 4 * g), scale));
        }
        if (f->whole && u + 1 < units) continue;
        const __m256 d = _mm256_loadu_ps((const float *)(const void *)(panel + CARD_D));
        Q_UNROLL for (int c = 0; c < C; c++) {
            acc[c] = card_add(d, card_da(f, x[c], u), total[c], acc[c]);
            total[c] = _mm256_setzero_si256();
            if (f->least)
                acc[c] = card_less(_mm256_loadu_ps((const float *)(const void *)(panel + CARD_LEAST)),
                                   card_da(f, x[c], u), x[c], u, acc[c]);
        }
    }
    Q_UNROLL for (int c = 0; c < C; c++) y[c] = acc[c];
}

/* ------------------------------------------------------------------------------------------ what formats consist of */

Q_AVX2_PART __m256i i8_row_codes(const uint8_t *row, int64_t u) { return q_load256(row + 4 + 32 * u); }
Q_AVX2_PART float i8_row_d(const uint8_t *row, int64_t u) { return q_bits_f32(q_load32(row + 0 * u)); }

/* 32 nibbles in order (the low ones of 16 bytes, then the high ones), less a zero point. */
Q_AVX2_PART __m256i i4_at(const uint8_t *p, uint8_t zero) {
    const __m256i v = _mm256_srlv_epi32(q_twice128(p), _mm256_setr_epi32(0, 0, 0, 0, 4, 4, 4, 4));
    return _mm256_sub_epi8(_mm256_and_si256(v, _mm256_set1_epi8(15)), _mm256_set1_epi8((char)(zero & 31)));
}
#define I4_GROUPS(name, units)                                                              \
    Q_AVX2_PART __m256i name##_codes(const uint8_t *row, int64_t u) {                       \
        const uint8_t *p = row + u / (units) * (4 + 16 * (units));                          \
        return i4_at(p + 4 + 16 * (u % (units)), p[2]);                                     \
    }                                                                                       \
    Q_AVX2_PART float name##_d(const uint8_t *row, int64_t u) {                             \
        return q_half_to_f32(q_load16(row + u / (units) * (4 + 16 * (units))));             \
    }
I4_GROUPS(i4_g32, 1)
I4_GROUPS(i4_g64, 2)
I4_GROUPS(i4_g128, 4)
Q_AVX2_PART __m256i i4_row_codes(const uint8_t *row, int64_t u) { return i4_at(row + 4 + 16 * u, row[2]); }
Q_AVX2_PART float i4_row_d(const uint8_t *row, int64_t u) { return q_half_to_f32(q_load16(row + 0 * u)); }

/* 32 nibbles, of each byte the high one first, by a table. */
Q_AVX2_PART __m256i nibbles_at(const uint8_t *p, __m128i t) {
    const __m128i v = q_load128(p), low = _mm_and_si128(v, _mm_set1_epi8(15)),
                  high = _mm_and_si128(_mm_srli_epi16(v, 4), _mm_set1_epi8(15));
    const __m256i both = _mm256_set_m128i(_mm_unpackhi_epi8(high, low), _mm_unpacklo_epi8(high, low));
    return _mm256_shuffle_epi8(_mm256_broadcastsi128_si256(t), both);
}
/* The integers of nf4_levels.h. */
Q_AVX2_PART __m256i nf4_at(const uint8_t *p) {
    return nibbles_at(p, _mm_setr_epi8(-124, -86, -65, -49, -35, -23, -11, 0, 10, 20, 31, 42, 55, 70, 90, 124));
}
Q_AVX2_PART __m256i nf4_codes(const uint8_t *row, int64_t u) { return nf4_at(row + u / 2 * 36 + 4 + 16 * (u % 2)); }
Q_AVX2_PART float nf4_d(const uint8_t *row, int64_t u) {
    return q_bits_f32(q_load32(row + u / 2 * 36)) * q_float(NF4_SCALE);
}
Q_AVX2_PART __m256i nf4_dq_codes(const uint8_t *row, int64_t u) {
    return nf4_at(row + 4 + u / 8 * 136 + 8 + 16 * (u % 8));
}
Q_AVX2_PART float nf4_dq_d(const uint8_t *row, int64_t u) {
    return nf4_dq_absmax(row, (int)(u / 8), (int)(u % 8 / 2)) * q_float(NF4_SCALE);
}

/* FP4's integers, in the same order. */
Q_AVX2_PART __m256i fp4_codes(const uint8_t *row, int64_t u) {
    return nibbles_at(row + u / 2 * 36 + 4 + 16 * (u % 2),
                      _mm_setr_epi8(0, 1, 80, 120, 40, 60, 20, 30, 0, -1, -80, -120, -40, -60, -20, -30));
}
Q_AVX2_PART float fp4_d(const uint8_t *row, int64_t u) {
    return q_bits_f32(q_load32(row + u / 2 * 36)) * 0.008333333333333333f;
}

/* 32 nibbles in order, by the integers of e2m1.h. */
Q_AVX2_PART __m256i e2m1_of(__m256i v) {
    const __m128i t = _mm_setr_epi8(0, 1, 2, 3, 4, 6, 8, 12, 0, -1, -2, -3, -4, -6, -8, -12);
    return _mm256_shuffle_epi8(_mm256_broadcastsi128_si256(t), _mm256_and_si256(v, _mm256_set1_epi8(15)));
}
Q_AVX2_PART __m256i mxfp4_codes(const uint8_t *row, int64_t u) {
    return e2m1_of(_mm256_srlv_epi32(q_twice128(row + 17 * u + 1), _mm256_setr_epi32(0, 0, 0, 0, 4, 4, 4, 4)));
}
Q_AVX2_PART float mxfp4_d(const uint8_t *row, int64_t u) {
    const uint32_t e = row[17 * u];
    return q_bits_f32(e < 2 ? 2097152u << e : (e - 1) << 23);
}
Q_AVX2_PART __m256i nvfp4_codes(const uint8_t *row, int64_t u) {
    const __m256i v = _mm256_permute4x64_epi64(q_twice128(row + u / 2 * 36 + 4 + 16 * (u % 2)), 0x50); /* 0 0 1 1 */
    return e2m1_of(_mm256_srlv_epi64(v, _mm256_setr_epi64x(0, 4, 0, 4)));
}
Q_AVX2_PART uint32_t nvfp4_scale(const uint8_t *row, int64_t u, float *d) {
    const uint8_t *p = row + u / 2 * 36 + 2 * (u % 2);
    int sc[2];
    *d = nvfp4_scales(p[0], p[1], sc);
    return (uint32_t)sc[0] | (uint32_t)sc[1] << 16;
}

#define I8_GROUPS(name, units)                                                              \
    Q_AVX2_PART __m256i name##_codes(const uint8_t *row, int64_t u) {                       \
        return q_load256(row + u / (units) * (4 + 32 * (units)) + 4 + 32 * (u % (units)));  \
    }                                                                                       \
    Q_AVX2_PART float name##_d(const uint8_t *row, int64_t u) {                             \
        return q_half_to_f32(q_load16(row + u / (units) * (4 + 32 * (units))));             \
    }                                                                                       \
    Q_AVX2_PART float name##_least(const uint8_t *row, int64_t u) {                         \
        const uint8_t *p = row + u / (units) * (4 + 32 * (units));                          \
        return q_half_to_f32(q_load16(p)) * (float)(128 - p[2]);                            \
    }
I8_GROUPS(i8_g32, 1)
I8_GROUPS(i8_g64, 2)
I8_GROUPS(i8_g128, 4)

#define CARD(name, act, whole) CARD_OF(name, act, whole, name##_d, NULL, NULL)
#define CARD_OF(name, act, whole, d, least, scale)                                                                     \
    Q_AVX2 static void name##_one(const uint8_t *const *row, const uint8_t *x, int64_t units, __m256 *y) {           \
        const card f = {whole, name##_codes, d, least, scale};                                                \
        card_one(&f, row, x, units, y);                                                                              \
    }                                                                                                                \
    Q_AVX2 static void name##_unpack(const uint8_t *const *row, int64_t units, uint8_t *panel) {                     \
        const card f = {whole, name##_codes, d, least, scale};                                                \
        card_unpack(&f, row, units, panel);                                                                          \
    }                                                                                                                \
    Q_AVX2 static void name##_columns(const uint8_t *panel, const uint8_t *const *x, int64_t units, __m256 *y) {     \
        const card f = {whole, name##_codes, d, least, scale};                                                \
        card_columns(&f, panel, x, units, y);                                                                        \
    }                                                                                                                \
    static const q_i8_kernel name##_kernel = {32, CARD_PANEL, name##_one, name##_unpack, name##_columns};            \
    Q_I8_PRODUCT(matmul_##name##_##act##_8x4__avx2, name##_kernel)

CARD(i8_row, a8_row, true)
CARD(i4_g32, a8_32, false)
CARD(i4_g64, a8_32, false)
CARD(i4_g128, a8_32, false)
CARD(i4_row, a8_32, false)
CARD(nf4, a8_32, false)
CARD(nf4_dq, a8_32, false)
CARD(fp4, a8_32, false)
CARD(mxfp4, a8_32, false)
CARD_OF(nvfp4, a8_32, false, NULL, NULL, nvfp4_scale)
CARD_OF(i8_g32, a8_32, false, i8_g32_d, i8_g32_least, NULL)
CARD_OF(i8_g64, a8_32, false, i8_g64_d, i8_g64_least, NULL)
CARD_OF(i8_g128, a8_32, false, i8_g128_d, i8_g128_least, NULL)
