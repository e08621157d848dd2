/* matmul_q8_0_avx2.c: products of Q8_0 weights with 8-bit activations in blocks of 32.
 *
 * A weight may be -128, which has no negative in a byte: so |w| is the unsigned operand (128 at most) and the
 * activation takes the weight's sign; a pair is at most 2 * 128 * 127 = 32512. Sums of two pairs would not fit: each is
 * widened. Layer L2. */
#include "i8_avx2.h"

enum { BYTES = 34, PANEL_D = 256, PANEL = PANEL_D + 32 };

Q_AVX2_INLINE __m256i dot4(__m256i w, __m256i a) {
    return _mm256_madd_epi16(_mm256_maddubs_epi16(_mm256_abs_epi8(w), _mm256_sign_epi8(a, w)), _mm256_set1_epi16(1));
}

Q_AVX2 static void one(const uint8_t *const *row, const uint8_t *x, int64_t blocks, __m256 *y) {
    const q_a8_32 *b = (const q_a8_32 *)(const void *)x;
    __m256 acc = _mm256_setzero_ps();
    for (int64_t i = 0; i < blocks; i++, b++) {
        q_ahead(row, i, BYTES);
        const __m256i a = q_load256(b->q);
        __m256i v[8];
        Q_UNROLL for (int r = 0; r < 8; r++) v[r] = dot4(q_load256(row[r] + i * BYTES + 2), a);
        const __m256 d = _mm256_mul_ps(q_halves8(row, i * BYTES), _mm256_set1_ps(b->d));
        acc = _mm256_fmadd_ps(d, _mm256_cvtepi32_ps(q_across8(v)), acc);
    }
    *y = acc;
}

Q_AVX2 static void unpack(const uint8_t *const *row, int64_t blocks, uint8_t *panel) {
    for (int64_t i = 0; i < blocks; i++, panel += PANEL) {
        __m256i v[8];
        Q_UNROLL for (int r = 0; r < 8; r++) v[r] = q_load256(row[r] + i * BYTES + 2);
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
            Q_UNROLL for (int c = 0; c < C; c++) sum[c] = _mm256_add_epi32(sum[c], dot4(w, q_four(b[c]->q + 4 * g)));
        }
        const __m256 d = _mm256_loadu_ps((const float *)(const void *)(panel + PANEL_D));
        Q_UNROLL for (int c = 0; c < C; c++)
            acc[c] = _mm256_fmadd_ps(_mm256_mul_ps(d, _mm256_set1_ps(b[c]->d)), _mm256_cvtepi32_ps(sum[c]), acc[c]);
    }
    Q_UNROLL for (int c = 0; c < C; c++) y[c] = acc[c];
}

static const q_i8_kernel kernel = {32, PANEL, one, unpack, columns};
Q_I8_PRODUCT(matmul_q8_0_a8_32_8x4__avx2, kernel)
