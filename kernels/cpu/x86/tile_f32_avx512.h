/* tile_f32_avx512.h: rows of weights as they lie in the file times a few float32 columns, in AVX-512: one register per
 * pair, which takes the multiply-adds of op.h's 16 lanes in their order. Bit-equal to kernels/ref.
 *
 * Rows are widened as they are read: up to four columns wait for memory alone, and more come in parts of four, of which
 * the later ones find the rows in the first caches. Layer L2. */
#ifndef Q_TILE_F32_AVX512_H
#define Q_TILE_F32_AVX512_H

#include "avx512.h"

enum { Q_STRIP_C = 4, Q_STRIP_MOST = 6 /* rows */ };

/* Sixteen weights of a row as floats; `n` of them exist, and the others are zero. */
typedef __m512 (*q_strip_load)(const uint8_t *p, __mmask16 in);

/* Hand in `rows` (at most 8) products of column c. */
Q_AVX512_INLINE void q_strip_put(const q_mm *m, int64_t r, int64_t c, __m256 v, int64_t rows) {
    float *y = m->y + c * m->y_stride + r;
    const __mmask8 in = (__mmask8)q_mask16(rows);
    if (m->bias) v = _mm256_add_ps(v, _mm256_maskz_loadu_ps(in, m->bias + r));
    if (m->add) v = _mm256_add_ps(_mm256_maskz_loadu_ps(in, y), v);
    _mm256_mask_storeu_ps(y, in, v);
}

/* R rows times C columns from r0 and c0 on: products of column c come to lie in lanes 0 .. R - 1. Rows past the last
 * are it again. `ask`: for the rows that come next, at the same place. */
Q_AVX512_INLINE void q_strip_block(int R, int C, int32_t bytes, q_strip_load load, bool ask, const q_mm *m, int64_t r0,
                                   int64_t c0) {
    const uint8_t *w[Q_STRIP_MOST];
    const float *x[Q_STRIP_C];
    __m512 acc[8 * Q_STRIP_C];
    Q_UNROLL for (int i = 0; i < 8 * Q_STRIP_C; i++) acc[i] = _mm512_setzero_ps();
    Q_UNROLL for (int r = 0; r < R; r++) w[r] = m->w + (uint64_t)Q_MIN(r0 + r, m->rows - 1) * m->row_bytes;
    Q_UNROLL for (int c = 0; c < C; c++) x[c] = (const float *)(const void *)(m->x + (c0 + c) * m->x_stride);
    int64_t i = 0;
    for (; i + 16 <= m->k; i += 16) {
        __m512 u[Q_STRIP_C];
        Q_UNROLL for (int c = 0; c < C; c++) u[c] = _mm512_loadu_ps(x[c] + i);
        Q_UNROLL for (int r = 0; r < R; r++) {
            if (ask && i * bytes % 64 == 0)
                _mm_prefetch((const char *)((uintptr_t)w[r] + (uintptr_t)(i * bytes) + (uintptr_t)R * m->row_bytes),
                             _MM_HINT_T0);
            const __m512 v = load(w[r] + i * bytes, 0xFFFF);
            Q_UNROLL for (int c = 0; c < C; c++) acc[8 * c + r] = _mm512_fmadd_ps(v, u[c], acc[8 * c + r]);
        }
    }
    if (i < m->k) { /* lanes past the end keep what they had: -0 + 0 would change it */
        const __mmask16 in = q_mask16(m->k - i);
        Q_UNROLL for (int r = 0; r < R; r++) {
            const __m512 v = load(w[r] + i * bytes, in);
            Q_UNROLL for (int c = 0; c < C; c++)
                acc[8 * c + r] = _mm512_mask3_fmadd_ps(v, _mm512_maskz_loadu_ps(in, x[c] + i), acc[8 * c + r], in);
        }
    }
    Q_UNROLL for (int c = 0; c < C; c += 2) {
        const __m512 v = q_fold16(acc + 8 * c);
        q_strip_put(m, r0, c0 + c, _mm512_castps512_ps256(v), Q_MIN(m->rows - r0, (int64_t)R));
        if (c + 1 < C) q_strip_put(m, r0, c0 + c + 1, _mm512_extractf32x8_ps(v, 1), Q_MIN(m->rows - r0, (int64_t)R));
    }
}

/* Some columns, in parts of nearly one size. */
Q_AVX512_INLINE void q_strip_product(const q_mm *m, int32_t bytes, q_strip_load load) {
    enum { R = Q_STRIP_MOST };
    const int64_t parts = (m->n + Q_STRIP_C - 1) / Q_STRIP_C;
    if (m->n == 1) {
        for (int64_t r = 0; r < m->rows; r += 4) q_strip_block(4, 1, bytes, load, true, m, r, 0);
        return;
    }
    for (int64_t r = 0; r < m->rows; r += R)
        for (int64_t part = 0; part < parts; part++) {
            const int64_t c = m->n * part / parts, columns = m->n * (part + 1) / parts - c;
            if (columns == 4 && part == 0) q_strip_block(R, 4, bytes, load, true, m, r, c);
            else if (columns == 4) q_strip_block(R, 4, bytes, load, false, m, r, c);
            else if (columns == 3) q_strip_block(R, 3, bytes, load, part == 0, m, r, c);
            else q_strip_block(R, 2, bytes, load, part == 0, m, r, c);
        }
}

#endif
