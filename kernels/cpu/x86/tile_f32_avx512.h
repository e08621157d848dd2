/* tile_f32_avx512.h: the product of decoded weight rows with float32 columns in AVX-512: six rows and four columns at a
 * time, one register per pair, which takes the multiply-adds of op.h's 16 lanes in their order. Bit-equal to
 * kernels/ref.
 *
 * A strip is six decoded rows, interleaved by 16 weights: the loop reads it from front to back, which the second cache
 * keeps up with, while four columns stay in the first. Ten loads for 24 multiply-adds. Layer L2. */
#ifndef Q_TILE_F32_AVX512_H
#define Q_TILE_F32_AVX512_H

#include "avx512.h"

enum { Q_STRIP_R = 6, Q_STRIP_C = 4, Q_STRIPS = 16, Q_STRIP_BYTES = 512 << 10 };

static inline int64_t q_strip_floats(int64_t k) { return (k + 15) / 16 * 16 * Q_STRIP_R; }

/* Strips that are decoded before the columns pass: as many as the second cache holds beside the columns. */
static inline int64_t q_strip_count(int64_t k) {
    const int64_t n = Q_STRIP_BYTES / (q_strip_floats(k) * (int64_t)sizeof(float));
    return Q_MIN(Q_MAX(n, (int64_t)1), (int64_t)Q_STRIPS);
}
static inline uint64_t q_strip_scratch(int64_t k) {
    return (uint64_t)(q_strip_count(k) * q_strip_floats(k)) * sizeof(float);
}

/* Sixteen weights of a row as floats; `n` of them exist, and the others are zero. */
typedef __m512 (*q_strip_load)(const uint8_t *p, __mmask16 in);

Q_AVX512_INLINE void q_strip_fill(q_strip_load load, int32_t bytes, const uint8_t *w, uint64_t row_bytes, int64_t rows,
                                  int64_t k, float *strip) {
    for (int64_t r = 0; r < Q_STRIP_R; r++) {
        const uint8_t *p = w + (uint64_t)Q_MIN(r, rows - 1) * row_bytes; /* rows past the last are it again */
        float *to = strip + 16 * r;
        for (int64_t i = 0; i < k; i += 16, to += 16 * Q_STRIP_R)
            _mm512_store_ps(to, load(p + i * bytes, q_mask16(k - i)));
    }
}

/* A strip times C columns. Column c's six products come as lanes 0 .. 5 of y[c]. */
Q_AVX512_INLINE void q_strip_block(int C, const float *strip, const float *const *x, int64_t k, __m256 *y) {
    enum { R = Q_STRIP_R };
    __m512 acc[32];
    Q_UNROLL for (int i = 0; i < 32; i++) acc[i] = _mm512_setzero_ps();
    int64_t i = 0;
    for (; i + 16 <= k; i += 16, strip += 16 * R) {
        __m512 u[Q_STRIP_C];
        Q_UNROLL for (int c = 0; c < C; c++) u[c] = _mm512_loadu_ps(x[c] + i);
        Q_UNROLL for (int r = 0; r < R; r++) {
            const __m512 w = _mm512_load_ps(strip + 16 * r);
            Q_UNROLL for (int c = 0; c < C; c++) acc[8 * c + r] = _mm512_fmadd_ps(w, u[c], acc[8 * c + r]);
        }
    }
    if (i < k) {
        const __mmask16 in = q_mask16(k - i);
        Q_UNROLL for (int c = 0; c < C; c++) {
            const __m512 u = _mm512_maskz_loadu_ps(in, x[c] + i);
            Q_UNROLL for (int r = 0; r < R; r++) { /* lanes past the end keep what they had: -0 + 0 would change it */
                const __m512 w = _mm512_load_ps(strip + 16 * r);
                acc[8 * c + r] = _mm512_mask_mov_ps(acc[8 * c + r], in, _mm512_fmadd_ps(w, u, acc[8 * c + r]));
            }
        }
    }
    Q_UNROLL for (int c = 0; c < C; c += 2) {
        const __m512 v = q_fold16(acc + 8 * c);
        y[c] = _mm512_castps512_ps256(v);
        if (c + 1 < C) y[c + 1] = _mm512_extractf32x8_ps(v, 1);
    }
}

/* Hand in `rows` (at most 8) products of column c. */
Q_AVX512_INLINE void q_strip_put(const q_mm *m, int64_t r, int64_t c, __m256 v, int64_t rows) {
    float *y = m->y + c * m->y_stride + r;
    const __mmask8 in = (__mmask8)q_mask16(rows);
    if (m->bias) v = _mm256_add_ps(v, _mm256_maskz_loadu_ps(in, m->bias + r));
    if (m->add) v = _mm256_add_ps(_mm256_maskz_loadu_ps(in, y), v);
    _mm256_mask_storeu_ps(y, in, v);
}

Q_AVX512_INLINE void q_strip_columns(int C, const q_mm *m, const float *strips, int64_t r0, int64_t c0) {
    const int64_t count = q_strip_count(m->k);
    const float *x[Q_STRIP_C];
    Q_UNROLL for (int c = 0; c < C; c++) x[c] = (const float *)(const void *)(m->x + (c0 + c) * m->x_stride);
    for (int64_t s = 0, r = r0; s < count && r < m->rows; s++, r += Q_STRIP_R) {
        __m256 y[Q_STRIP_C];
        q_strip_block(C, strips + s * q_strip_floats(m->k), x, m->k, y);
        Q_UNROLL for (int c = 0; c < C; c++) q_strip_put(m, r, c0 + c, y[c], Q_MIN(m->rows - r, (int64_t)Q_STRIP_R));
    }
}

/* `bytes` of a stored weight, and how 16 of them are read. */
Q_AVX512_INLINE void q_strip_product(const q_mm *m, int32_t bytes, q_strip_load load) {
    float *strips = (float *)m->scratch;
    const int64_t count = q_strip_count(m->k);
    for (int64_t r0 = 0; r0 < m->rows; r0 += count * Q_STRIP_R) {
        for (int64_t s = 0, r = r0; s < count && r < m->rows; s++, r += Q_STRIP_R)
            q_strip_fill(load, bytes, m->w + (uint64_t)r * m->row_bytes, m->row_bytes, m->rows - r, m->k,
                         strips + s * q_strip_floats(m->k));
        int64_t c = 0;
        for (; c + 4 <= m->n; c += 4) q_strip_columns(4, m, strips, r0, c);
        for (; c + 2 <= m->n; c += 2) q_strip_columns(2, m, strips, r0, c);
        if (c < m->n) q_strip_columns(1, m, strips, r0, c);
    }
}

/* One column: rows straight from the file, four at a time; the next four are asked for at the same place. */
Q_AVX512_INLINE void q_strip_one(const q_mm *m, int32_t bytes, q_strip_load load) {
    enum { R = 4 };
    const float *x = (const float *)(const void *)m->x;
    for (int64_t r0 = 0; r0 < m->rows; r0 += R) {
        const uint8_t *w[R];
        __m512 acc[16];
        Q_UNROLL for (int r = 0; r < 16; r++) acc[r] = _mm512_setzero_ps();
        Q_UNROLL for (int r = 0; r < R; r++) w[r] = m->w + (uint64_t)Q_MIN(r0 + r, m->rows - 1) * m->row_bytes;
        int64_t i = 0;
        for (; i + 16 <= m->k; i += 16) {
            const __m512 u = _mm512_loadu_ps(x + i);
            Q_UNROLL for (int r = 0; r < R; r++) {
                if (i % 32 == 0)
                    _mm_prefetch((const char *)((uintptr_t)w[r] + (uintptr_t)(i * bytes) + R * m->row_bytes),
                                 _MM_HINT_T0);
                acc[r] = _mm512_fmadd_ps(load(w[r] + i * bytes, 0xFFFF), u, acc[r]);
            }
        }
        if (i < m->k) {
            const __mmask16 in = q_mask16(m->k - i);
            const __m512 u = _mm512_maskz_loadu_ps(in, x + i);
            Q_UNROLL for (int r = 0; r < R; r++) {
                const __m512 w16 = load(w[r] + i * bytes, in);
                acc[r] = _mm512_mask_mov_ps(acc[r], in, _mm512_fmadd_ps(w16, u, acc[r]));
            }
        }
        q_strip_put(m, r0, 0, _mm512_castps512_ps256(q_fold16(acc)), Q_MIN(m->rows - r0, (int64_t)R));
    }
}

/* PRODUCT's two functions. */
#define Q_STRIP_PRODUCT(name, bytes, load)                                                                             \
    uint64_t q_##name##_scratch(int64_t k, int64_t n) { return n > 1 ? q_strip_scratch(k) : 0; }                       \
    Q_AVX512 void q_##name(const q_mm *m) {                                                                            \
        if (m->n == 1)                                                                                                 \
            q_strip_one(m, bytes, load);                                                                               \
        else                                                                                                           \
            q_strip_product(m, bytes, load);                                                                           \
    }

#endif
