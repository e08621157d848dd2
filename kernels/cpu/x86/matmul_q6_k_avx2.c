/* matmul_q6_k_avx2.c: products of Q6_K weights with 8-bit activations in blocks of 32. (Blocks of 256 would be a little
 * cheaper, and added half as much error again as rounding the weights to Q6_K does: bench/SPEED.md.)
 *
 * The stored code u = q + 32 is the unsigned operand: sum(sc q a) = sum(sc u a) - 32 sum(sc sum(a)), exact in integers.
 * A pair is at most 2 * 63 * 127 = 16002, so two pairs fit 16 bits (32004); times a signed byte of scale, two to an
 * int32, a unit's total stays below 2^27. Layer L2. */
#include "i8_avx2.h"

/* A block of the panel: 64 vectors of codes, 16 of scales (each twice), 8 of pairs of scales, d. */
enum {
    BYTES = 210,
    SCALES = 192,
    D = 208,
    PANEL_SC = 2048,
    PANEL_PAIR = PANEL_SC + 16 * 32,
    PANEL_D = PANEL_PAIR + 8 * 32,
    PANEL = PANEL_D + 32
};

/* Codes of the four units of 32 in half `half` of a block. */
Q_AVX2_INLINE void codes(const uint8_t *p, int half, __m256i u[4]) {
    const __m256i nibble = _mm256_set1_epi8(15), pair = _mm256_set1_epi8(0x30);
    const __m256i a = q_load256(p + 64 * half), b = q_load256(p + 64 * half + 32), h = q_load256(p + 128 + 32 * half);
    u[0] = _mm256_or_si256(_mm256_and_si256(a, nibble), _mm256_and_si256(_mm256_slli_epi16(h, 4), pair));
    u[1] = _mm256_or_si256(_mm256_and_si256(b, nibble), _mm256_and_si256(_mm256_slli_epi16(h, 2), pair));
    u[2] = _mm256_or_si256(_mm256_and_si256(_mm256_srli_epi16(a, 4), nibble), _mm256_and_si256(h, pair));
    u[3] = _mm256_or_si256(_mm256_and_si256(_mm256_srli_epi16(b, 4), nibble),
                           _mm256_and_si256(_mm256_srli_epi16(h, 2), pair));
}

/* int16 number j of each half to all of it. */
Q_AVX2_INLINE __m256i spread(__m256i v, int j) {
    return _mm256_shuffle_epi8(v, _mm256_set1_epi16((short)(0x0100 + 0x0202 * j)));
}

/* Sums of the halves of the eight units of activations that face a block, in order. */
Q_AVX2_INLINE __m256i sums_of(const q_a8_32 *b) {
    return _mm256_setr_epi32((int)q_load32(b[0].sum), (int)q_load32(b[1].sum), (int)q_load32(b[2].sum),
                             (int)q_load32(b[3].sum), (int)q_load32(b[4].sum), (int)q_load32(b[5].sum),
                             (int)q_load32(b[6].sum), (int)q_load32(b[7].sum));
}

Q_AVX2 static void one(const uint8_t *const *row, const uint8_t *x, int64_t blocks, __m256 *y) {
    const q_a8_32 *b = (const q_a8_32 *)(const void *)x;
    __m256 acc = _mm256_setzero_ps();
    for (int64_t i = 0; i < blocks; i++, b += 8) {
        q_ahead(row, i, BYTES);
        const __m256i sums = sums_of(b);
        __m256i sc[8], less[8];
        uint8_t turned[256]; /* vector j: what unit j owes to the offset of 32, row by row */
        for (int r = 0; r < 8; r++) {
            const __m128i bytes = q_load128(row[r] + i * BYTES + SCALES);
            /* Even scales to the lower half, odd ones to the upper: a unit of 32 has one of each. */
            sc[r] = _mm256_cvtepi8_epi16(
                _mm_shuffle_epi8(bytes, _mm_setr_epi8(0, 2, 4, 6, 8, 10, 12, 14, 1, 3, 5, 7, 9, 11, 13, 15)));
            less[r] = _mm256_madd_epi16(_mm256_cvtepi8_epi16(bytes), sums);
        }
        q_interleave8(less, turned);
        const __m256 d = q_halves8(row, i * BYTES + D);
        Q_UNROLL for (int half = 0; half < 2; half++) {
            __m256i v[4][8];
            for (int r = 0; r < 8; r++) {
                __m256i u[4];
                codes(row[r] + i * BYTES, half, u);
                Q_UNROLL for (int j = 0; j < 4; j++) {
                    const __m256i s = _mm256_maddubs_epi16(u[j], q_load256(b[4 * half + j].q));
                    v[j][r] = _mm256_madd_epi16(s, spread(sc[r], 4 * half + j));
                }
            }
            Q_UNROLL for (int j = 0; j < 4; j++) {
                const __m256i owed = _mm256_slli_epi32(q_load256(turned + 32 * (4 * half + j)), 5);
                const __m256i total = _mm256_sub_epi32(q_across8(v[j]), owed);
                acc = _mm256_fmadd_ps(_mm256_mul_ps(d, _mm256_set1_ps(b[4 * half + j].d)), _mm256_cvtepi32_ps(total),
                                      acc);
            }
        }
    }
    *y = acc;
}

Q_AVX2 static void unpack(const uint8_t *const *row, int64_t blocks, uint8_t *panel) {
    for (int64_t i = 0; i < blocks; i++, panel += PANEL) {
        for (int half = 0; half < 2; half++) {
            __m256i u[4][8];
            Q_UNROLL for (int r = 0; r < 8; r++) {
                __m256i v[4];
                codes(row[r] + i * BYTES, half, v);
                Q_UNROLL for (int j = 0; j < 4; j++) u[j][r] = v[j];
            }
            Q_UNROLL for (int j = 0; j < 4; j++) q_interleave8(u[j], panel + 1024 * half + 256 * j);
        }
        for (int r = 0; r < 8; r++) {
            const uint8_t *sc = row[r] + i * BYTES + SCALES;
            for (int j = 0; j < 16; j++) {
                const uint16_t s = (uint16_t)(sc[j] & 128u ? sc[j] | 0xFF00u : sc[j]);
                q_store16(panel + PANEL_SC + 32 * j + 4 * r, s);
                q_store16(panel + PANEL_SC + 32 * j + 4 * r + 2, s);
                q_store16(panel + PANEL_PAIR + 32 * (j / 2) + 4 * r + 2 * (j & 1), s);
            }
        }
        _mm256_storeu_ps((float *)(void *)(panel + PANEL_D), q_halves8(row, i * BYTES + D));
    }
}

Q_AVX2 static void columns(const uint8_t *panel, const uint8_t *const *x, int64_t blocks, __m256 *y) {
    enum { C = Q_I8_COLUMNS };
    __m256 acc[C];
    Q_UNROLL for (int c = 0; c < C; c++) acc[c] = _mm256_setzero_ps();
    for (int64_t i = 0; i < blocks; i++, panel += PANEL) {
        const __m256 d = _mm256_loadu_ps((const float *)(const void *)(panel + PANEL_D));
        for (int j = 0; j < 8; j++) {
            const q_a8_32 *b[C];
            __m256i total[C];
            const __m256i pair = q_load256(panel + PANEL_PAIR + 32 * j);
            Q_UNROLL for (int c = 0; c < C; c++) {
                b[c] = (const q_a8_32 *)(const void *)x[c] + 8 * i + j;
                const __m256i less = _mm256_madd_epi16(pair, _mm256_set1_epi32((int)q_load32(b[c]->sum)));
                total[c] = _mm256_sub_epi32(_mm256_setzero_si256(), _mm256_slli_epi32(less, 5));
            }
            Q_UNROLL for (int h = 0; h < 2; h++) { /* the two scales of a unit */
                const uint8_t *at = panel + 256 * j + 128 * h;
                const __m256i sc = q_load256(panel + PANEL_SC + 32 * (2 * j + h));
                Q_UNROLL for (int g = 0; g < 4; g += 2) {
                    const __m256i v = q_load256(at + 32 * g), w = q_load256(at + 32 * g + 32);
                    Q_UNROLL for (int c = 0; c < C; c++) {
                        const __m256i s =
                            _mm256_add_epi16(_mm256_maddubs_epi16(v, q_four(b[c]->q + 16 * h + 4 * g)),
                                             _mm256_maddubs_epi16(w, q_four(b[c]->q + 16 * h + 4 * g + 4)));
                        total[c] = _mm256_add_epi32(total[c], _mm256_madd_epi16(s, sc));
                    }
                }
            }
            Q_UNROLL for (int c = 0; c < C; c++) acc[c] =
                _mm256_fmadd_ps(_mm256_mul_ps(d, _mm256_set1_ps(b[c]->d)), _mm256_cvtepi32_ps(total[c]), acc[c]);
        }
    }
    Q_UNROLL for (int c = 0; c < C; c++) y[c] = acc[c];
}

static const q_i8_kernel kernel = {256, PANEL, one, unpack, columns};
Q_I8_PRODUCT(matmul_q6_k_a8_32_8x4__avx2, kernel)
