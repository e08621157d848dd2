/* i8_avx2.h: what the AVX2 products with 8-bit activations share. Layer L2.
 *
 * Eight rows at a time, in the eight lanes of a register, so that op.h's one float multiply-add per block is one vector
 * instruction. Two ways to the integers below it, with the same bits since integers are exact:
 *   one      a column: a row's block lies along a register, is multiplied with the activations, and eight of these are
 *            added across (q_across8): reads the weights once, as they are in the file; for decode, bound by memory;
 *   columns  four columns: the rows are unpacked once into a panel, in which a register holds four consecutive weights
 *            of each row; one broadcast of four activations feeds all eight rows and nothing is added across.
 *
 * vpmaddubsw multiplies unsigned by signed bytes and adds pairs with saturation at 16 bits: each format says why its
 * pairs fit. Activations are within -127 .. 127. */
#ifndef Q_I8_AVX2_H
#define Q_I8_AVX2_H

#include "avx2.h"

enum { Q_I8_COLUMNS = 4, Q_I8_PANEL_FROM = 3 /* columns from which a panel pays */ };

typedef struct q_i8_kernel {
    int32_t weights;     /* per block of the format, and of the activations */
    int32_t panel_bytes; /* of a block of eight rows; a multiple of 32 */
    void (*one)(const uint8_t *const *row, const uint8_t *x, int64_t blocks, __m256 *y);
    void (*unpack)(const uint8_t *const *row, int64_t blocks, uint8_t *panel);
    void (*columns)(const uint8_t *panel, const uint8_t *const *x, int64_t blocks, __m256 *y);
} q_i8_kernel;

Q_AVX2_PART void q_i8_product(const q_i8_kernel *k, const q_mm *m) {
    const int64_t blocks = m->k / k->weights;
    for (int64_t r = 0; r < m->rows; r += 8) {
        const uint8_t *row[8];
        __m256 y[Q_I8_COLUMNS];
        for (int64_t i = 0; i < 8; i++) /* rows that do not exist are the last one again */
            row[i] = m->w + (uint64_t)Q_MIN(r + i, m->rows - 1) * m->row_bytes;
        int64_t c = 0;
        if (m->n >= Q_I8_PANEL_FROM) {
            k->unpack(row, blocks, (uint8_t *)m->scratch);
            for (; m->n - c >= 2; c += Q_I8_COLUMNS) {
                const uint8_t *x[Q_I8_COLUMNS];
                for (int64_t j = 0; j < Q_I8_COLUMNS; j++) x[j] = m->x + Q_MIN(c + j, m->n - 1) * m->x_stride;
                k->columns((const uint8_t *)m->scratch, x, blocks, y);
                for (int64_t j = 0; j < Q_I8_COLUMNS && c + j < m->n; j++) q_put8(m, r, c + j, y[j]);
            }
        }
        for (; c < m->n; c++) {
            k->one(row, m->x + c * m->x_stride, blocks, y);
            q_put8(m, r, c, y[0]);
        }
    }
}

/* PRODUCT's two functions. */
#define Q_I8_PRODUCT(name, kernel)                                                            \
    uint64_t q_##name##_scratch(int64_t k, int64_t n) {                                       \
        return n < Q_I8_PANEL_FROM ? 0 : (uint64_t)(k / kernel.weights) * (uint64_t)kernel.panel_bytes; \
    }                                                                                         \
    Q_AVX2 void q_##name(const q_mm *m) { q_i8_product(&kernel, m); }

Q_AVX2_PART __m256i q_load256(const void *p) { return _mm256_loadu_si256((const __m256i *)p); }
Q_AVX2_PART __m128i q_load128(const void *p) { return _mm_loadu_si128((const __m128i *)p); }
Q_AVX2_PART __m256i q_twice128(const void *p) { return _mm256_broadcastsi128_si256(q_load128(p)); }
Q_AVX2_PART void q_store256(void *p, __m256i v) { _mm256_storeu_si256((__m256i *)p, v); }

/* Ask for block i of the next eight rows, line by line: eight short rows side by side are no stream that the hardware
 * foresees (bench/SPEED.md). Beyond the matrix the request is void. */
Q_AVX2_PART void q_ahead(const uint8_t *const *row, int64_t i, int64_t bytes) {
    const uintptr_t next = 8 * (uintptr_t)(row[1] - row[0]);
    for (int64_t line = (i * bytes + 63) / 64 * 64; line < (i + 1) * bytes; line += 64)
        Q_UNROLL for (int r = 0; r < 8; r++)
            _mm_prefetch((const char *)((uintptr_t)row[r] + next + (uintptr_t)line), _MM_HINT_T0);
}

/* The half at byte `at` of each row. */
Q_AVX2_PART __m256 q_halves8(const uint8_t *const *row, int64_t at) {
    __m128i h = _mm_cvtsi32_si128(q_load16(row[0] + at));
    h = _mm_insert_epi16(h, q_load16(row[1] + at), 1);
    h = _mm_insert_epi16(h, q_load16(row[2] + at), 2);
    h = _mm_insert_epi16(h, q_load16(row[3] + at), 3);
    h = _mm_insert_epi16(h, q_load16(row[4] + at), 4);
    h = _mm_insert_epi16(h, q_load16(row[5] + at), 5);
    h = _mm_insert_epi16(h, q_load16(row[6] + at), 6);
    h = _mm_insert_epi16(h, q_load16(row[7] + at), 7);
    return _mm256_cvtph_ps(h);
}

#define Q_I8_PAIR(op, a, b) op(_mm256_unpacklo_epi64(a, b), _mm256_unpackhi_epi64(a, b))
Q_AVX2_PART __m256i q_shuffle32(__m256i a, __m256i b, const int odd) {
    const __m256 x = _mm256_castsi256_ps(a), y = _mm256_castsi256_ps(b);
    return _mm256_castps_si256(odd ? _mm256_shuffle_ps(x, y, 0xDD) : _mm256_shuffle_ps(x, y, 0x88));
}

/* Lane i = the sum of the 8 int32 of v[i]. */
Q_AVX2_PART __m256i q_across8(const __m256i v[8]) {
    __m256i a[4], b[2];
    Q_UNROLL for (int i = 0; i < 4; i++) a[i] = Q_I8_PAIR(_mm256_add_epi32, v[2 * i], v[2 * i + 1]);
    Q_UNROLL for (int i = 0; i < 2; i++)
        b[i] = _mm256_add_epi32(q_shuffle32(a[2 * i], a[2 * i + 1], 0), q_shuffle32(a[2 * i], a[2 * i + 1], 1));
    return _mm256_add_epi32(_mm256_permute2x128_si256(b[0], b[1], 0x20), _mm256_permute2x128_si256(b[0], b[1], 0x31));
}

/* Lane i = the sum of the 16 int16 of v[i], each of magnitude at most 4095: three additions fit. */
Q_AVX2_PART __m256i q_across8_i16(const __m256i v[8]) {
    __m256i a[4], b[2];
    Q_UNROLL for (int i = 0; i < 4; i++) a[i] = Q_I8_PAIR(_mm256_add_epi16, v[2 * i], v[2 * i + 1]);
    Q_UNROLL for (int i = 0; i < 2; i++)
        b[i] = _mm256_add_epi16(q_shuffle32(a[2 * i], a[2 * i + 1], 0), q_shuffle32(a[2 * i], a[2 * i + 1], 1));
    const __m256i c =
        _mm256_add_epi16(_mm256_permute2x128_si256(b[0], b[1], 0x20), _mm256_permute2x128_si256(b[0], b[1], 0x31));
    return _mm256_madd_epi16(c, _mm256_set1_epi16(1));
}

/* 32 bytes of each of eight rows to a panel: vector j holds bytes 4j .. 4j + 3 of every row. */
Q_AVX2_PART void q_interleave8(const __m256i v[8], uint8_t *panel) {
    __m256i a[8], b[8];
    Q_UNROLL for (int i = 0; i < 4; i++) {
        a[2 * i] = _mm256_unpacklo_epi32(v[2 * i], v[2 * i + 1]);
        a[2 * i + 1] = _mm256_unpackhi_epi32(v[2 * i], v[2 * i + 1]);
    }
    Q_UNROLL for (int i = 0; i < 2; i++) {
        b[4 * i] = _mm256_unpacklo_epi64(a[4 * i], a[4 * i + 2]);
        b[4 * i + 1] = _mm256_unpackhi_epi64(a[4 * i], a[4 * i + 2]);
        b[4 * i + 2] = _mm256_unpacklo_epi64(a[4 * i + 1], a[4 * i + 3]);
        b[4 * i + 3] = _mm256_unpackhi_epi64(a[4 * i + 1], a[4 * i + 3]);
    }
    Q_UNROLL for (int j = 0; j < 4; j++) {
        q_store256(panel + 32 * j, _mm256_permute2x128_si256(b[j], b[j + 4], 0x20));
        q_store256(panel + 32 * (j + 4), _mm256_permute2x128_si256(b[j], b[j + 4], 0x31));
    }
}

/* Four activations to every lane. */
Q_AVX2_PART __m256i q_four(const int8_t *q) { return _mm256_set1_epi32((int)q_load32(q)); }

#endif
