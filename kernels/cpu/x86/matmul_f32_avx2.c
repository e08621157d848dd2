/* matmul_f32_avx2.c: products with float32 activations: of any format by its own decoder, and of the float formats,
 * whose rows are widened by vector instructions; for one column binary16 is not stored but multiplied as it is read.
 * Layer L2. */
#include "tile_f32_avx2.h"

/* ---- any format: its own decoder */

Q_TILE_PRODUCT(matmul_any_f32_3x2__avx2, q_decode_row)

/* ---- binary16 */

Q_AVX2 static void widen_f16(const q_format *f, const uint8_t *row, int64_t k, float *to) {
    Q_UNUSED(f);
    int64_t i = 0;
    for (; i + 8 <= k; i += 8)
        _mm256_storeu_ps(to + i, _mm256_cvtph_ps(_mm_loadu_si128((const __m128i *)(const void *)(row + 2 * i))));
    for (; i < k; i++) to[i] = q_half_to_f32(q_load16(row + 2 * i));
}

/* Four rows, which exist, times one column, without a tile. */
Q_AVX2 static void four_rows_f16(const q_mm *m, int64_t r0) {
    enum { R = 4 };
    const uint8_t *w = m->w + (uint64_t)r0 * m->row_bytes;
    const float *x = q_tile_column(m, 0);
    __m256 lo[R], hi[R];
    Q_UNROLL for (int r = 0; r < R; r++) lo[r] = hi[r] = _mm256_setzero_ps();
    for (int64_t i = 0; i < m->k; i += 16) {
        const __m256 u = _mm256_loadu_ps(x + i), v = _mm256_loadu_ps(x + i + 8);
        Q_UNROLL for (int r = 0; r < R; r++) {
            const uint8_t *p = w + (uint64_t)r * m->row_bytes + 2 * i;
            const __m256 a = _mm256_cvtph_ps(_mm_loadu_si128((const __m128i *)(const void *)p));
            const __m256 b = _mm256_cvtph_ps(_mm_loadu_si128((const __m128i *)(const void *)(p + 16)));
            lo[r] = _mm256_fmadd_ps(a, u, lo[r]);
            hi[r] = _mm256_fmadd_ps(b, v, hi[r]);
        }
    }
    Q_UNROLL for (int r = 0; r < R; r++) q_put1(m, r0 + r, 0, q_fold1(_mm256_add_ps(lo[r], hi[r])));
}

uint64_t q_matmul_f16_f32_3x2__avx2_scratch(int64_t k, int64_t n) {
    Q_UNUSED(n);
    return q_tile_bytes(k);
}
Q_AVX2 void q_matmul_f16_f32_3x2__avx2(const q_mm *m) {
    q_mm rest = *m;
    if (m->n == 1 && m->k % 16 == 0) {
        int64_t r = 0;
        for (; r + 4 <= m->rows; r += 4) four_rows_f16(m, r);
        rest.w += (uint64_t)r * m->row_bytes;
        rest.y += r;
        rest.bias = m->bias ? m->bias + r : NULL;
        rest.rows -= r;
    }
    q_tile_product(&rest, widen_f16);
}

/* ---- bfloat16 */

Q_AVX2 static void widen_bf16(const q_format *f, const uint8_t *row, int64_t k, float *to) {
    Q_UNUSED(f);
    int64_t i = 0;
    for (; i + 8 <= k; i += 8) {
        const __m256i h = _mm256_cvtepu16_epi32(_mm_loadu_si128((const __m128i *)(const void *)(row + 2 * i)));
        _mm256_storeu_ps(to + i, _mm256_castsi256_ps(_mm256_slli_epi32(h, 16)));
    }
    for (; i < k; i++) to[i] = q_bf16_to_f32(q_load16(row + 2 * i));
}

Q_TILE_PRODUCT(matmul_bf16_f32_3x2__avx2, widen_bf16)

/* ---- float32 */

static void widen_f32(const q_format *f, const uint8_t *row, int64_t k, float *to) {
    Q_UNUSED(f);
    memcpy(to, row, (size_t)k * sizeof(float));
}

Q_TILE_PRODUCT(matmul_f32_f32_3x2__avx2, widen_f32)
