/* matmul_q4_0_avx2.c: products of Q4_0 weights with 8-bit activations in blocks of 32.
 *
 * The stored nibble u = q + 8 is the unsigned operand: sum(q a) = sum(u a) - 8 sum(a), exact in integers. A pair is at
 * most 2 * 15 * 127 = 3810, so the eight pairs of a lane of a block fit 16 bits too (30480). Layer L2. */
#include "i8_avx2.h"

enum { BYTES = 18, PANEL_D = 256, PANEL = PANEL_D + 32 };

/* The 32 nibbles of a block, in order. */
Q_AVX2_INLINE __m256i nibbles(const uint8_t *p) {
    const __m256i v = _mm256_srlv_epi32(q_twice128(p), _mm256_setr_epi32(0, 0, 0, 0, 4, 4, 4, 4));
    return _mm256_and_si256(v, _mm256_set1_epi8(15));
}

Q_AVX2_INLINE __m256i offset(const q_a8_32 *b) { return _mm256_set1_epi32(8 * (b->sum[0] + b->sum[1])); }

Q_AVX2 static void one(const uint8_t *const *row, const uint8_t *x, int64_t blocks, __m256 *y) {
    const q_a8_32 *b = (const q_a8_32 *)(const void *)x;
    __m256 acc = _mm256_setzero_ps();
    for (int64_t i = 0; i < blocks; i++, b++) {
        q_ahead(row, i, BYTES);
        const __m256i a = q_load256(b->q);
        __m256i v[8];
        Q_UNROLL for (int r = 0; r < 8; r++) v[r] = _mm256_maddubs_epi16(nibbles(row[r] + i * BYTES + 2), a);
        const __m256 d = _mm256_mul_ps(q_halves8(row, i * BYTES), _mm256_set1_ps(b->d));
        acc = _mm256_fmadd_ps(d, _mm256_cvtepi32_ps(_mm256_sub_epi32(q_across8_i16(v), offset(b))), acc);
    }
    *y = acc;
}

Q_AVX2 static void unpack(const uint8_t *const *row, int64_t blocks, uint8_t *panel) {
    for (int64_t i = 0; i < blocks; i++, panel += PANEL) {
        __m256i v[8];
        Q_UNROLL for (int r = 0; r < 8; r++) v[r] = nibbles(row[r] + i * BYTES + 2);
        q_interleave8(v, panel);
        _mm256_storeu_ps((float *)(void *)(panel + PANEL_D), q_halves8(row, i * BYTES));
    }
}

Q_AVX2 static void columns(const uint8_t *panel, const uint8_t *const *x, int64_t blocks, __m256 *y) {
    enum { C = Q_I8_COLUMNS };
    __m256 acc[C];
    Q_UNROLL for (int c = 0; c < C; c++) acc[c] = _mm256_setzero_ps();
    for (int64_t i = 0; i < blocks; i++, panel += PANEL) {
        const q_a8_32 *b[C];
        __m256i sum[C];
        Q_UNROLL for (int c = 0; c < C; c++) {
            b[c] = (const q_a8_32 *)(const void *)x[c] + i;
            sum[c] = _mm256_setzero_si256();
        }
        Q_UNROLL for (int g = 0; g < 8; g++) {
            const __m256i w = q_load256(panel + 32 * g);
            Q_UNROLL for (int c = 0; c < C; c++)
                sum[c] = _mm256_add_epi16(sum[c], _mm256_maddubs_epi16(w, q_four(b[c]->q + 4 * g)));
        }
        const __m256 d = _mm256_loadu_ps((const float *)(const void *)(panel + PANEL_D));
        Q_UNROLL for (int c = 0; c < C; c++) {
            const __m256i s = _mm256_sub_epi32(_mm256_madd_epi16(sum[c], _mm256_set1_epi16(1)), offset(b[c]));
            acc[c] = _mm256_fmadd_ps(_mm256_mul_ps(d, _mm256_set1_ps(b[c]->d)), _mm256_cvtepi32_ps(s), acc[c]);
        }
    }
    Q_UNROLL for (int c = 0; c < C; c++) y[c] = acc[c];
}

static const q_i8_kernel kernel = {32, PANEL, one, unpack, columns};
Q_I8_PRODUCT(matmul_q4_0_a8_32_8x4__avx2, kernel)
