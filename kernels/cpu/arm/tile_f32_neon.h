/* tile_f32_neon.h: the product of decoded weight rows with float32 columns: a tile of rows is decoded once for all
 * columns and then multiplied in the 16-lane order of op.h, four registers per (row, column). Bit-equal to kernels/ref:
 * a lane sees the same multiply-adds in the same order. Layer L2. */
#ifndef Q_TILE_F32_NEON_H
#define Q_TILE_F32_NEON_H

#include "neon.h"

/* 2 x 3 (row, column) pairs take 24 of the 32 registers and leave eight for operands: 5 loads for 6 multiply-adds. */
enum { Q_TILE_R = 2, Q_TILE_C = 3, Q_TILE_FLOATS = 6144, Q_TILE_ROWS = 12 };

static inline int64_t q_tile_padded(int64_t k) { return (k + 15) / 16 * 16; }

/* Rows of a tile: at most 24 KiB, so that it stays in the first cache while the columns pass; a multiple of four. */
static inline int64_t q_tile_rows(int64_t k) {
    const int64_t r = Q_TILE_FLOATS / q_tile_padded(k) / 4 * 4;
    return r < 4 ? 4 : r > Q_TILE_ROWS ? Q_TILE_ROWS : r;
}

static inline uint64_t q_tile_bytes(int64_t k) { return (uint64_t)(q_tile_rows(k) * q_tile_padded(k)) * sizeof(float); }

/* R rows, C columns, 16 lanes of a step. */
Q_NEON_INLINE void q_tile_step(int R, int C, const float *w, int64_t ldw, const float *const *x, int64_t i,
                               float32x4_t *acc) {
    Q_UNROLL for (int q = 0; q < 4; q++) {
        float32x4_t a[Q_TILE_R];
        Q_UNROLL for (int r = 0; r < R; r++) a[r] = vld1q_f32(w + r * ldw + 4 * q);
        Q_UNROLL for (int c = 0; c < C; c++) {
            const float32x4_t u = vld1q_f32(x[c] + i + 4 * q);
            Q_UNROLL for (int r = 0; r < R; r++) {
                float32x4_t *to = &acc[4 * (r * C + c) + q];
                *to = vfmaq_f32(*to, a[r], u);
            }
        }
    }
}

/* R rows (ldw floats apart) times C columns; fold[r * C + c] = the four lanes left of that pair. The tail of a k that
 * is no multiple of 16 is copied to where zeros follow; w is padded with zeros. */
Q_NEON_INLINE void q_tile_block(int R, int C, const float *w, int64_t ldw, const float *const *x, int64_t k,
                                float32x4_t *fold) {
    float32x4_t acc[4 * Q_TILE_R * Q_TILE_C];
    Q_UNROLL for (int i = 0; i < 4 * R * C; i++) acc[i] = vdupq_n_f32(0);
    int64_t i = 0;
    for (; i + 16 <= k; i += 16) q_tile_step(R, C, w + i, ldw, x, i, acc);
    if (i < k) {
        float tail[Q_TILE_C][16] = {{0}};
        const float *from[Q_TILE_C];
        for (int c = 0; c < C; c++) {
            memcpy(tail[c], x[c] + i, (size_t)(k - i) * sizeof(float));
            from[c] = tail[c];
        }
        q_tile_step(R, C, w + i, ldw, from, 0, acc);
    }
    Q_UNROLL for (int j = 0; j < R * C; j++) fold[j] = q_fold16(acc + 4 * j);
}

Q_NEON_INLINE const float *q_tile_column(const q_mm *m, int64_t c) {
    return (const float *)(const void *)(m->x + c * m->x_stride);
}

/* C columns from c on times the rows of a tile. */
Q_NEON_INLINE void q_tile_columns(int C, const q_mm *m, const float *tile, int64_t ldw, int64_t r0, int64_t rows,
                                  int64_t c) {
    const float *x[Q_TILE_C];
    for (int j = 0; j < C; j++) x[j] = q_tile_column(m, c + j);
    for (int64_t r = 0; r < rows; r += 4) {
        float32x4_t left[Q_TILE_C][4], v[Q_TILE_R * Q_TILE_C];
        Q_UNROLL for (int i = 0; i < 4; i += Q_TILE_R) {
            q_tile_block(Q_TILE_R, C, tile + (r + i) * ldw, ldw, x, m->k, v);
            Q_UNROLL for (int j = 0; j < Q_TILE_R * C; j++) left[j % C][i + j / C] = v[j];
        }
        Q_UNROLL for (int j = 0; j < C; j++) q_put4(m, r0 + r, c + j, q_fold4(left[j]));
    }
}

/* Rows r0 .. of a decoded tile, a multiple of four, times all columns; those past m->rows are zero. */
static void q_tile_multiply(const q_mm *m, const float *tile, int64_t ldw, int64_t r0, int64_t rows) {
    int64_t c = 0;
    for (; c + Q_TILE_C <= m->n; c += Q_TILE_C) q_tile_columns(Q_TILE_C, m, tile, ldw, r0, rows, c);
    for (; c < m->n; c++) q_tile_columns(1, m, tile, ldw, r0, rows, c);
}

typedef void (*q_tile_widen)(const q_format *f, const uint8_t *row, int64_t k, float *to);

Q_NEON_INLINE void q_tile_product(const q_mm *m, q_tile_widen widen) {
    const int64_t ldw = q_tile_padded(m->k), step = q_tile_rows(m->k);
    float *tile = (float *)m->scratch;
    for (int64_t r0 = 0; r0 < m->rows; r0 += step) {
        const int64_t rows = Q_MIN(m->rows - r0, step), full = (rows + 3) / 4 * 4;
        for (int64_t r = 0; r < full; r++) {
            float *to = tile + r * ldw;
            int64_t have = 0;
            if (r < rows) {
                widen(m->format, m->w + (uint64_t)(r0 + r) * m->row_bytes, m->k, to);
                have = m->k;
            }
            memset(to + have, 0, (size_t)(ldw - have) * sizeof(float));
        }
        q_tile_multiply(m, tile, ldw, r0, full);
    }
}

/* PRODUCT's two functions, for rows that `widen` decodes. */
#define Q_TILE_PRODUCT(name, widen)                     \
    uint64_t q_##name##_scratch(int64_t k, int64_t n) { \
        Q_UNUSED(n);                                    \
        return q_tile_bytes(k);                         \
    }                                                   \
    void q_##name(const q_mm *m) { q_tile_product(m, widen); }

#endif
