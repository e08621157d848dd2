/* matmul_units_avx2.c: products with 8-bit activations of formats that have no kernel of their own shape: units_avx2.h
 * says how their weights come apart.
 *
 * |w| is the unsigned operand (at most 128) and the activation takes the weight's sign: a pair is at most 32512, and
 * the widening multiply-add by the scale (of magnitude at most 255) keeps a block of 256 below 2^31. Layer L2. */
#include "units_avx2.h"

/* A unit of the panel: 8 vectors of codes, two of scales (each twice), one of pairs of minima. Then d, dmin. */
enum { UNIT_SC = 256, UNIT_MN = UNIT_SC + 64, UNIT = UNIT_MN + 32 };
#define PANEL(units) ((units) * UNIT + 64)

Q_AVX2_PART __m256i pairs(__m256i w, __m256i a) {
    return _mm256_maddubs_epi16(_mm256_abs_epi8(w), _mm256_sign_epi8(a, w));
}

Q_AVX2_PART void one_of(const q_unit_format *f, const uint8_t *const *row, const uint8_t *x, int64_t blocks,
                          __m256 *y) {
    __m256 acc = _mm256_setzero_ps();
    for (int64_t i = 0; i < blocks; i++, x += q_unit_act_bytes(f->units)) {
        q_ahead(row, i, f->bytes);
        __m256i v[8];
        int32_t least[8];
        for (int r = 0; r < 8; r++) {
            __m256i total = _mm256_setzero_si256();
            least[r] = 0;
            Q_UNROLL for (int sub = 0; sub < f->units; sub++) {
                const q_unit u = f->get(row[r] + i * f->bytes, sub);
                const __m256i sc = _mm256_set_m128i(_mm_set1_epi16(u.sc[1]), _mm_set1_epi16(u.sc[0]));
                const __m256i p = pairs(u.w, q_load256(q_unit_codes(x, f->units, sub)));
                total = _mm256_add_epi32(total, _mm256_madd_epi16(p, sc));
                if (f->dmin < 0) continue;
                const uint32_t sums = q_unit_sums(x, sub);
                least[r] += u.mn[0] * (int16_t)(sums & 0xFFFFu) + u.mn[1] * (int16_t)(sums >> 16);
            }
            v[r] = total;
        }
        const __m256 da = _mm256_set1_ps(q_unit_scale(x));
        acc = _mm256_fmadd_ps(_mm256_mul_ps(q_halves8(row, i * f->bytes + f->d), da), _mm256_cvtepi32_ps(q_across8(v)),
                              acc);
        if (f->dmin < 0) continue;
        const __m256 m = _mm256_mul_ps(q_halves8(row, i * f->bytes + f->dmin), da);
        acc = _mm256_fnmadd_ps(m, _mm256_cvtepi32_ps(q_load256(least)), acc);
    }
    *y = acc;
}

Q_AVX2_PART void unpack_of(const q_unit_format *f, const uint8_t *const *row, int64_t blocks, uint8_t *panel) {
    for (int64_t i = 0; i < blocks; i++, panel += PANEL(f->units)) {
        uint8_t *ends = panel + f->units * UNIT;
        for (int sub = 0; sub < f->units; sub++) {
            uint8_t *to = panel + sub * UNIT;
            __m256i w[8];
            for (int r = 0; r < 8; r++) {
                const q_unit u = f->get(row[r] + i * f->bytes, sub);
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

Q_AVX2_PART void columns_of(const q_unit_format *f, const uint8_t *panel, const uint8_t *const *x, int64_t blocks,
                            __m256 *y) {
    enum { C = Q_I8_COLUMNS };
    __m256 acc[C];
    Q_UNROLL for (int c = 0; c < C; c++) acc[c] = _mm256_setzero_ps();
    for (int64_t i = 0; i < blocks; i++, panel += PANEL(f->units)) {
        const uint8_t *b[C];
        __m256i total[C], least[C];
        Q_UNROLL for (int c = 0; c < C; c++) {
            b[c] = x[c] + i * q_unit_act_bytes(f->units);
            total[c] = least[c] = _mm256_setzero_si256();
        }
        for (int sub = 0; sub < f->units; sub++) {
            const uint8_t *u = panel + sub * UNIT;
            Q_UNROLL for (int g = 0; g < 8; g++) {
                const __m256i w = q_load256(u + 32 * g), sc = q_load256(u + UNIT_SC + 32 * (g / 4));
                Q_UNROLL for (int c = 0; c < C; c++) {
                    const __m256i p = pairs(w, q_four(q_unit_codes(b[c], f->units, sub) + 4 * g));
                    total[c] = _mm256_add_epi32(total[c], _mm256_madd_epi16(p, sc));
                }
            }
            if (f->dmin < 0) continue;
            const __m256i mn = q_load256(u + UNIT_MN);
            Q_UNROLL for (int c = 0; c < C; c++) {
                const __m256i sums = _mm256_set1_epi32((int)q_unit_sums(b[c], sub));
                least[c] = _mm256_add_epi32(least[c], _mm256_madd_epi16(mn, sums));
            }
        }
        const __m256 d = _mm256_loadu_ps((const float *)(const void *)(panel + f->units * UNIT));
        const __m256 dmin = _mm256_loadu_ps((const float *)(const void *)(panel + f->units * UNIT + 32));
        Q_UNROLL for (int c = 0; c < C; c++) {
            const __m256 da = _mm256_set1_ps(q_unit_scale(b[c]));
            acc[c] = _mm256_fmadd_ps(_mm256_mul_ps(d, da), _mm256_cvtepi32_ps(total[c]), acc[c]);
            if (f->dmin >= 0) acc[c] = _mm256_fnmadd_ps(_mm256_mul_ps(dmin, da), _mm256_cvtepi32_ps(least[c]), acc[c]);
        }
    }
    Q_UNROLL for (int c = 0; c < C; c++) y[c] = acc[c];
}

#define UNITS(name, form, bytes, units, act, d, dmin, scales, bias)                                                 \
    Q_AVX2 static void name##_one(const uint8_t *const *row, const uint8_t *x, int64_t blocks, __m256 *y) {         \
        one_of(&q_unit_format_##name, row, x, blocks, y);                                                           \
    }                                                                                                               \
    Q_AVX2 static void name##_unpack(const uint8_t *const *row, int64_t blocks, uint8_t *panel) {                   \
        unpack_of(&q_unit_format_##name, row, blocks, panel);                                                       \
    }                                                                                                               \
    Q_AVX2 static void name##_columns(const uint8_t *panel, const uint8_t *const *x, int64_t blocks, __m256 *y) {   \
        columns_of(&q_unit_format_##name, panel, x, blocks, y);                                                     \
    }                                                                                                               \
    static const q_i8_kernel name##_kernel = {32 * units, PANEL(units), name##_one, name##_unpack, name##_columns}; \
    Q_I8_PRODUCT(matmul_##name##_##form##_8x4__avx2, name##_kernel)
Q_UNITS_SHARED(UNITS)
