/* matmul_f32_avx2.c: products with float32 activations, for every format: a tile of weight rows is decoded to float32
 * once for all columns and then multiplied in the 16-lane order of op.h, two registers per (row, column). Rows of the
 * float formats are decoded by vector instructions; for one column binary16 is not stored but multiplied as it is read.
 *
 * Bit-equal to kernels/ref: a lane sees the same multiply-adds in the same order. Layer L2. */
#include "avx2.h"

/* 3 x 2 (row, column) pairs take 12 of the 16 registers and leave four for operands: 10 loads for 12 multiply-adds. */
enum { ROWS = 3, COLS = 2, TILE_FLOATS = 4096, TILE_ROWS = 12 };

static int64_t padded(int64_t k) { return (k + 15) / 16 * 16; }

/* Rows of a tile: about 16 KiB, so that it stays in the first cache while the columns pass. */
static int64_t tile_rows(int64_t k) {
    const int64_t r = TILE_FLOATS / padded(k) / ROWS * ROWS;
    return r < ROWS ? ROWS : r > TILE_ROWS ? TILE_ROWS : r;
}

static uint64_t tile_bytes(int64_t k) { return (uint64_t)(tile_rows(k) * padded(k)) * sizeof(float); }

/* Eight lanes of a step. The weights are kept in registers: left alone, compilers read them again for each column. */
Q_AVX2_INLINE void half(int R, int C, const float *w, int64_t ldw, const float *const *x, int64_t i, __m256 *acc) {
    __m256 a[ROWS];
    Q_UNROLL for (int r = 0; r < R; r++) {
        a[r] = _mm256_loadu_ps(w + r * ldw);
        __asm__("" : "+x"(a[r]));
    }
    Q_UNROLL for (int c = 0; c < C; c++) {
        const __m256 u = _mm256_loadu_ps(x[c] + i);
        Q_UNROLL for (int r = 0; r < R; r++) acc[r * C + c] = _mm256_fmadd_ps(a[r], u, acc[r * C + c]);
    }
}

/* R rows (ldw floats apart) times C columns; fold[r * C + c] = the 8 lanes left of that pair. The tail of a k that is no
 * multiple of 16 is masked in x; w is padded with zeros. */
Q_AVX2_INLINE void block(int R, int C, const float *w, int64_t ldw, const float *const *x, int64_t k, __m256 *fold) {
    __m256 lo[ROWS * COLS], hi[ROWS * COLS];
    Q_UNROLL for (int i = 0; i < R * C; i++) lo[i] = hi[i] = _mm256_setzero_ps();
    int64_t i = 0;
    for (; i + 16 <= k; i += 16) {
        half(R, C, w + i, ldw, x, i, lo);
        half(R, C, w + i + 8, ldw, x, i + 8, hi);
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

Q_AVX2_INLINE const float *column(const q_mm *m, int64_t c) {
    return (const float *)(const void *)(m->x + c * m->x_stride);
}

/* Rows r0 .. of a decoded tile times all columns. The tile has a multiple of ROWS rows; those past m->rows are zero. */
Q_AVX2 static void multiply(const q_mm *m, const float *tile, int64_t ldw, int64_t r0, int64_t rows) {
    int64_t c = 0;
    for (; c + COLS <= m->n; c += COLS) {
        const float *const x[COLS] = {column(m, c), column(m, c + 1)};
        for (int64_t r = 0; r < rows; r += ROWS) {
            __m256 v[8];
            float t[8];
            block(ROWS, COLS, tile + r * ldw, ldw, x, m->k, v);
            v[6] = v[7] = _mm256_setzero_ps();
            _mm256_storeu_ps(t, q_fold8(v));
            const int64_t some = Q_MIN((int64_t)ROWS, rows - r);
            for (int64_t i = 0; i < some; i++) {
                q_put1(m, r0 + r + i, c, t[2 * i]);
                q_put1(m, r0 + r + i, c + 1, t[2 * i + 1]);
            }
        }
    }
    if (c == m->n) return;
    const float *const x[1] = {column(m, c)};
    for (int64_t r = 0; r < rows; r += ROWS) {
        __m256 v[ROWS];
        block(ROWS, 1, tile + r * ldw, ldw, x, m->k, v);
        const int64_t some = Q_MIN((int64_t)ROWS, rows - r);
        for (int64_t i = 0; i < some; i++) q_put1(m, r0 + r + i, c, q_fold1(v[i]));
    }
}

typedef void (*widen_fn)(const q_format *f, const uint8_t *row, int64_t k, float *to);

Q_AVX2_INLINE void product(const q_mm *m, widen_fn widen) {
    const int64_t ldw = padded(m->k), step = tile_rows(m->k);
    float *tile = (float *)m->scratch;
    for (int64_t r0 = 0; r0 < m->rows; r0 += step) {
        const int64_t rows = Q_MIN(m->rows - r0, step), full = (rows + ROWS - 1) / ROWS * ROWS;
        for (int64_t r = 0; r < full; r++) {
            float *to = tile + r * ldw;
            int64_t have = 0;
            if (r < rows) {
                widen(m->format, m->w + (uint64_t)(r0 + r) * m->row_bytes, m->k, to);
                have = m->k;
            }
            memset(to + have, 0, (size_t)(ldw - have) * sizeof(float));
        }
        multiply(m, tile, ldw, r0, rows);
    }
}

/* ---- any format: its own decoder */

uint64_t q_matmul_any_f32_3x2__avx2_scratch(int64_t k, int64_t n) {
    Q_UNUSED(n);
    return tile_bytes(k);
}
Q_AVX2 void q_matmul_any_f32_3x2__avx2(const q_mm *m) { product(m, q_decode_row); }

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
    const float *x = column(m, 0);
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
    return tile_bytes(k);
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
    product(&rest, widen_f16);
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

uint64_t q_matmul_bf16_f32_3x2__avx2_scratch(int64_t k, int64_t n) {
    Q_UNUSED(n);
    return tile_bytes(k);
}
Q_AVX2 void q_matmul_bf16_f32_3x2__avx2(const q_mm *m) { product(m, widen_bf16); }

/* ---- float32 */

static void widen_f32(const q_format *f, const uint8_t *row, int64_t k, float *to) {
    Q_UNUSED(f);
    memcpy(to, row, (size_t)k * sizeof(float));
}

uint64_t q_matmul_f32_f32_3x2__avx2_scratch(int64_t k, int64_t n) {
    Q_UNUSED(n);
    return tile_bytes(k);
}
Q_AVX2 void q_matmul_f32_f32_3x2__avx2(const q_mm *m) { product(m, widen_f32); }
