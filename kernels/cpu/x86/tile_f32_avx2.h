/* tile_f32_avx2.h: the product of decoded weight rows with float32 columns: a tile of rows is decoded once for all
 * columns and then multiplied in the 16-lane order of op.h, two registers per (row, column). Bit-equal to kernels/ref:
 * a lane sees the same multiply-adds in the same order. Layer L2. */
#ifndef Q_TILE_F32_AVX2_H
#define Q_TILE_F32_AVX2_H

#include "avx2.h"

/* 3 x 2 (row, column) pairs take 12 of the 16 registers and leave four for operands: 10 loads for 12 multiply-adds. */
enum { Q_TILE_R = 3, Q_TILE_C = 2, Q_TILE_FLOATS = 6144, Q_TILE_ROWS = 12 };

static inline int64_t q_tile_padded(int64_t k) { return (k + 15) / 16 * 16; }

/* Rows of a tile: at most 24 KiB, so that it stays in the first cache while the columns pass. */
static inline int64_t q_tile_rows(int64_t k) {
    const int64_t r = Q_TILE_FLOATS / q_tile_padded(k) / Q_TILE_R * Q_TILE_R;
    return r < Q_TILE_R ? Q_TILE_R : r > Q_TILE_ROWS ? Q_TILE_ROWS : r;
}

static inline uint64_t q_tile_bytes(int64_t k) { return (uint64_t)(q_tile_rows(k) * q_tile_padded(k)) * sizeof(float); }

/* Eight lanes of a step. The weights are kept in registers: left alone, compilers read them again for each column. */
Q_AVX2_INLINE void q_tile_half(int R, int C, const float *w, int64_t ldw, const float *const *x, int64_t i,
                               __m256 *acc) {
    __m256 a[Q_TILE_R];
    Q_UNROLL for (int r = 0; r < R; r++) {
        a[r] = _mm256_loadu_ps(w + r * ldw);
        __asm__("" : "+x"(a[r]));
    }
    Q_UNROLL for (int c = 0; c < C; c++) {
        const __m256 u = _mm256_loadu_ps(x[c] + i);
        Q_UNROLL for (int r = 0; r < R; r++) acc[r * C + c] = _mm256_fmadd_ps(a[r], u, acc[r * C + c]);
    }
}

/* R rows (ldw floats apart) times C columns; fold[r * C + c] = the 8 lanes left of that pair. The tail of a k that is
 * no multiple of 16 is masked in x; w is padded with zeros. */
Q_AVX2_INLINE void q_tile_block(int R, int C, const float *w, int64_t ldw, const float *const *x, int64_t k,
                                __m256 *fold) {
    __m256 lo[Q_TILE_R * Q_TILE_C], hi[Q_TILE_R * Q_TILE_C];
    Q_UNROLL for (int i = 0; i < R * C; i++) lo[i] = hi[i] = _mm256_setzero_ps();
    int64_t i = 0;
    for (; i + 16 <= k; i += 16) {
        q_tile_half(R, C, w + i, ldw, x, i, lo);
        q_tile_half(R, C, w + i + 8, ldw, x, i + 8, hi);
    }
    if (i < k) {
        const __m256i m = q_mask8(k - i), n = q_mask8(k - i - 8);
        Q_UNROLL for (int c = 0; c < C; c++) {
            const __m256 u = _mm256_maskload_ps(x[c] + i, m), v = _mm256_maskload_ps(x[c] + i + 8, n);
            Q_UNROLL for (int r = 0; r < R; r++) {
                lo[r * C + c] = _mm256_fmadd_ps(_mm256_loadu_ps(w + r * ldw + i), u, lo[r * C + c]);
                hi[r * C + c] = _mm256_fmadd_ps(_mm256_loadu_ps(w + r * ldw + i + 8), v, hi[r * C + c]);
            }
        }
    }
    Q_UNROLL for (int j = 0; j < R * C; j++) fold[j] = _mm256_add_ps(lo[j], hi[j]);
}

Q_AVX2_INLINE const float *q_tile_column(const q_mm *m, int64_t c) {
    return (const float *)(const void *)(m->x + c * m->x_stride);
}

/* Hand in n rows of a column, n at most 8, or 4. */
Q_AVX2_INLINE void q_tile_put(const q_mm *m, int64_t r, int64_t c, __m256 v, int64_t n) {
    if (n == 8) {
        q_put8(m, r, c, v);
        return;
    }
    float t[8];
    _mm256_storeu_ps(t, v);
    for (int64_t i = 0; i < n; i++) q_put1(m, r + i, c, t[i]);
}
Q_AVX2_INLINE void q_tile_put4(const q_mm *m, int64_t r, int64_t c, __m128 v, int64_t n) {
    if (n == 4) {
        float *y = m->y + c * m->y_stride + r;
        if (m->bias) v = _mm_add_ps(v, _mm_loadu_ps(m->bias + r));
        if (m->add) v = _mm_add_ps(_mm_loadu_ps(y), v);
        _mm_storeu_ps(y, v);
        return;
    }
    float t[4];
    _mm_storeu_ps(t, v);
    for (int64_t i = 0; i < n; i++) q_put1(m, r + i, c, t[i]);
}

/* Rows r0 .. of a decoded tile times all columns. The tile has a multiple of Q_TILE_R rows; those past m->rows are
 * zero. */
Q_AVX2 static void q_tile_multiply(const q_mm *m, const float *tile, int64_t ldw, int64_t r0, int64_t rows) {
    /* What is left of the products of a column with the rows of the tile: eight are folded together. */
    __m256 left[Q_TILE_C][Q_TILE_ROWS];
    for (int c = 0; c < Q_TILE_C; c++)
        for (int r = 0; r < Q_TILE_ROWS; r++) left[c][r] = _mm256_setzero_ps();
    int64_t c = 0;
    for (; c + Q_TILE_C <= m->n; c += Q_TILE_C) {
        const float *const x[Q_TILE_C] = {q_tile_column(m, c), q_tile_column(m, c + 1)};
        for (int64_t r = 0; r < rows; r += Q_TILE_R) {
            __m256 v[Q_TILE_R * Q_TILE_C];
            q_tile_block(Q_TILE_R, Q_TILE_C, tile + r * ldw, ldw, x, m->k, v);
            Q_UNROLL for (int i = 0; i < Q_TILE_R; i++) {
                left[0][r + i] = v[2 * i];
                left[1][r + i] = v[2 * i + 1];
            }
        }
        int64_t r = 0;
        for (; rows - r > 4; r += 8)
            for (int i = 0; i < Q_TILE_C; i++)
                q_tile_put(m, r0 + r, c + i, q_fold8(left[i] + r), Q_MIN(rows - r, (int64_t)8));
        if (r >= rows) continue;
        __m256 both[8]; /* the last four rows of both columns */
        Q_UNROLL for (int i = 0; i < 4; i++) {
            both[i] = left[0][r + i];
            both[i + 4] = left[1][r + i];
        }
        const __m256 y = q_fold8(both);
        q_tile_put4(m, r0 + r, c, _mm256_castps256_ps128(y), rows - r);
        q_tile_put4(m, r0 + r, c + 1, _mm256_extractf128_ps(y, 1), rows - r);
    }
    if (c == m->n) return;
    const float *const x[1] = {q_tile_column(m, c)};
    for (int64_t r = 0; r < rows; r += Q_TILE_R) {
        __m256 v[Q_TILE_R];
        q_tile_block(Q_TILE_R, 1, tile + r * ldw, ldw, x, m->k, v);
        const int64_t some = Q_MIN((int64_t)Q_TILE_R, rows - r);
        for (int64_t i = 0; i < some; i++) q_put1(m, r0 + r + i, c, q_fold1(v[i]));
    }
}

typedef void (*q_tile_widen)(const q_format *f, const uint8_t *row, int64_t k, float *to);

Q_AVX2_INLINE void q_tile_product(const q_mm *m, q_tile_widen widen) {
    const int64_t ldw = q_tile_padded(m->k), step = q_tile_rows(m->k);
    float *tile = (float *)m->scratch;
    for (int64_t r0 = 0; r0 < m->rows; r0 += step) {
        const int64_t rows = Q_MIN(m->rows - r0, step), full = (rows + Q_TILE_R - 1) / Q_TILE_R * Q_TILE_R;
        for (int64_t r = 0; r < full; r++) {
            float *to = tile + r * ldw;
            int64_t have = 0;
            if (r < rows) {
                widen(m->format, m->w + (uint64_t)(r0 + r) * m->row_bytes, m->k, to);
                have = m->k;
            }
            memset(to + have, 0, (size_t)(ldw - have) * sizeof(float));
        }
        q_tile_multiply(m, tile, ldw, r0, rows);
    }
}

/* PRODUCT's two functions, for rows that `widen` decodes. */
#define Q_TILE_PRODUCT(name, widen)                                \
    uint64_t q_##name##_scratch(int64_t k, int64_t n) {            \
        Q_UNUSED(n);                                               \
        return q_tile_bytes(k);                                    \
    }                                                              \
    Q_AVX2 void q_##name(const q_mm *m) { q_tile_product(m, widen); }

#endif
