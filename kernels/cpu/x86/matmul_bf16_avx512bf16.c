/* matmul_bf16_avx512bf16.c: products of BF16 weights with activations in BF16 by vdpbf16ps, whose sixteen lanes are
 * those of op.h's bdot: one register per pair of a row and a column.
 *
 * Many columns: six rows are copied into a strip, interleaved by 32 weights, which the loop reads from front to back
 * while four columns stay in the first cache: ten loads for 24 pairs. Few columns read six rows where they lie, and ask
 * for the next six. k is a multiple of 32. Layer L2. */
#include "avx512.h"

#define TARGET Q_AVX512_TARGET ",avx512bf16"
#define BF16 __attribute__((target(TARGET)))
#define BF16_INLINE static inline __attribute__((always_inline, target(TARGET)))

enum { ROWS = 6, COLUMNS = 4, STRIPS = 32, STRIP_SPACE = 512 << 10, LINE = 64 };

static int64_t strip_bytes(int64_t k) { return 2 * k * ROWS; }

/* Strips that are copied before the columns pass: as many as the second cache holds beside the columns. */
static int64_t strip_count(int64_t k) {
    return Q_MIN(Q_MAX(STRIP_SPACE / strip_bytes(k), (int64_t)1), (int64_t)STRIPS);
}

/* Six rows from r on; those past the last are it again. */
BF16_INLINE void six_rows(const q_mm *m, int64_t r, const uint8_t *row[ROWS]) {
    Q_UNROLL for (int64_t i = 0; i < ROWS; i++) row[i] = m->w + (uint64_t)Q_MIN(r + i, m->rows - 1) * m->row_bytes;
}

BF16_INLINE void copy(const uint8_t *const row[ROWS], int64_t k, uint8_t *strip) {
    for (int64_t at = 0; at < 2 * k; at += LINE, strip += LINE * ROWS)
        Q_UNROLL for (int r = 0; r < ROWS; r++)
            _mm512_store_si512(strip + LINE * r, _mm512_loadu_si512(row[r] + at));
}

/* Column c's six products come as lanes 0 .. 5 of y[c]. A row's next weights lie `step` bytes on; `ahead` bytes on are
 * those to ask for, 0 = none. */
BF16_INLINE void block(int C, const uint8_t *const row[ROWS], int64_t step, uint64_t ahead, const uint8_t *const *x,
                       int64_t k, __m256 *y) {
    __m512 acc[8 * COLUMNS];
    Q_UNROLL for (int i = 0; i < 8 * COLUMNS; i++) acc[i] = _mm512_setzero_ps();
    for (int64_t i = 0, w = 0; i < 2 * k; i += LINE, w += step) {
        __m512bh u[COLUMNS];
        Q_UNROLL for (int c = 0; c < C; c++) u[c] = (__m512bh)_mm512_loadu_si512(x[c] + i);
        Q_UNROLL for (int r = 0; r < ROWS; r++) {
            const __m512bh v = (__m512bh)_mm512_loadu_si512(row[r] + w);
            if (ahead) _mm_prefetch((const char *)((uintptr_t)row[r] + (uintptr_t)w + ahead), _MM_HINT_T0);
            Q_UNROLL for (int c = 0; c < C; c++) acc[8 * c + r] = _mm512_dpbf16_ps(acc[8 * c + r], v, u[c]);
        }
    }
    Q_UNROLL for (int c = 0; c < C; c += 2) {
        const __m512 v = q_fold16(acc + 8 * c);
        y[c] = _mm512_castps512_ps256(v);
        if (c + 1 < C) y[c + 1] = _mm512_extractf32x8_ps(v, 1);
    }
}

/* Hand in what exists of six products of each of C columns. */
BF16_INLINE void put(int C, const q_mm *m, int64_t r, int64_t c0, const __m256 *y) {
    const __mmask8 in = (__mmask8)q_mask16(Q_MIN(m->rows - r, (int64_t)ROWS));
    Q_UNROLL for (int c = 0; c < C; c++) {
        float *to = m->y + (c0 + c) * m->y_stride + r;
        __m256 v = y[c];
        if (m->bias) v = _mm256_add_ps(v, _mm256_maskz_loadu_ps(in, m->bias + r));
        if (m->add) v = _mm256_add_ps(_mm256_maskz_loadu_ps(in, to), v);
        _mm256_mask_storeu_ps(to, in, v);
    }
}

BF16_INLINE void columns_at(int C, const q_mm *m, int64_t c0, const uint8_t *x[COLUMNS]) {
    Q_UNROLL for (int c = 0; c < C; c++) x[c] = m->x + (c0 + c) * m->x_stride;
}

/* Strips of the rows from r0 on, times C columns. */
BF16_INLINE void strips_times(int C, const q_mm *m, const uint8_t *strips, int64_t r0, int64_t c0) {
    const int64_t count = strip_count(m->k);
    const uint8_t *x[COLUMNS];
    columns_at(C, m, c0, x);
    for (int64_t s = 0, r = r0; s < count && r < m->rows; s++, r += ROWS) {
        const uint8_t *row[ROWS];
        __m256 y[COLUMNS];
        Q_UNROLL for (int i = 0; i < ROWS; i++) row[i] = strips + s * strip_bytes(m->k) + LINE * i;
        block(C, row, LINE * ROWS, 0, x, m->k, y);
        put(C, m, r, c0, y);
    }
}

BF16_INLINE void many(const q_mm *m) {
    uint8_t *strips = (uint8_t *)m->scratch;
    const int64_t count = strip_count(m->k);
    for (int64_t r0 = 0; r0 < m->rows; r0 += count * ROWS) {
        for (int64_t s = 0, r = r0; s < count && r < m->rows; s++, r += ROWS) {
            const uint8_t *row[ROWS];
            six_rows(m, r, row);
            copy(row, m->k, strips + s * strip_bytes(m->k));
        }
        int64_t c = 0;
        for (; c + 4 <= m->n; c += 4) strips_times(4, m, strips, r0, c);
        for (; c + 2 <= m->n; c += 2) strips_times(2, m, strips, r0, c);
        if (c < m->n) strips_times(1, m, strips, r0, c);
    }
}

/* Up to four columns. */
BF16_INLINE void few(int C, const q_mm *m) {
    const uint8_t *x[COLUMNS];
    columns_at(C, m, 0, x);
    for (int64_t r = 0; r < m->rows; r += ROWS) {
        const uint8_t *row[ROWS];
        __m256 y[COLUMNS];
        six_rows(m, r, row);
        block(C, row, LINE, ROWS * m->row_bytes, x, m->k, y);
        put(C, m, r, 0, y);
    }
}

uint64_t q_matmul_bf16_a_bf16_6x4__avx512bf16_scratch(int64_t k, int64_t n) {
    return n > COLUMNS ? (uint64_t)(strip_count(k) * strip_bytes(k)) : 0;
}

BF16 void q_matmul_bf16_a_bf16_6x4__avx512bf16(const q_mm *m) {
    switch (m->n) {
    case 1: few(1, m); return;
    case 2: few(2, m); return;
    case 3: few(3, m); return;
    case 4: few(4, m); return;
    default: many(m);
    }
}

BF16 void q_act_a_bf16__avx512bf16(const float *x, int64_t n, void *dst) {
    uint8_t *to = (uint8_t *)dst;
    for (int64_t i = 0; i < n; i += 32) {
        const __m512bh v = _mm512_cvtne2ps_pbh(_mm512_loadu_ps(x + i + 16), _mm512_loadu_ps(x + i));
        _mm512_storeu_si512(to + 2 * i, (__m512i)v);
    }
}
