/* matmul_f32_avx2.c: products with float32 activations, and these brought into the order for them: of the float
 * formats, widened by vector instructions, and of any other by its own decoder.
 *
 * Many columns go lane by lane (lanes_f32.h). Up to four are multiplied as rows are read, without a tile: memory is
 * then what is waited for. Layer L2. */
#include "tile_f32_avx2.h"

#define L_VECTORS 2 /* 16 rows and 6 columns in 12 registers: 8 loads for 12 multiply-adds */
#define L_COLUMNS 6
#define L_TIMES_TILES(DO) DO(3) DO(4) DO(5) DO(6)
#include "vec_avx2.h"

#include "../vec.h"

#include "../lanes_f32.h"

Q_AVX2 void q_act_lanes__avx2(const float *x, int64_t n, void *dst) { l_arrange(x, n, (float *)dst); }

/* ---- any format: its own decoder */

Q_TILE_PRODUCT(matmul_any_f32_3x2__avx2, q_decode_row)

/* ---- weights as they are stored: eight of them as floats, and one */

Q_AVX2_INLINE __m256 eight_f16(const uint8_t *p) {
    return _mm256_cvtph_ps(_mm_loadu_si128((const __m128i *)(const void *)p));
}
Q_AVX2_INLINE float one_f16(const uint8_t *p) { return q_half_to_f32(q_load16(p)); }
Q_AVX2_INLINE __m256 eight_bf16(const uint8_t *p) {
    const __m256i h = _mm256_cvtepu16_epi32(_mm_loadu_si128((const __m128i *)(const void *)p));
    return _mm256_castsi256_ps(_mm256_slli_epi32(h, 16));
}
Q_AVX2_INLINE float one_bf16(const uint8_t *p) { return q_bf16_to_f32(q_load16(p)); }
Q_AVX2_INLINE __m256 eight_f32(const uint8_t *p) { return _mm256_loadu_ps((const float *)(const void *)p); }
Q_AVX2_INLINE float one_f32(const uint8_t *p) { return q_bits_f32(q_load32(p)); }

typedef __m256 (*load_fn)(const uint8_t *p);

/* ---- few columns */

enum { FEW = 4 };

/* R rows from r0 on, which exist, times C columns from c0 on; k is a multiple of 16. The rows that come R later are
 * asked for where `ask` says so. */
Q_AVX2_INLINE void rows_times(int R, int C, int bytes, load_fn load, bool ask, const q_mm *m, int64_t r0, int64_t c0) {
    const uint8_t *w = m->w + (uint64_t)r0 * m->row_bytes;
    const float *x[2];
    __m256 lo[6], hi[6];
    Q_UNROLL for (int c = 0; c < C; c++) x[c] = q_tile_column(m, c0 + c);
    Q_UNROLL for (int i = 0; i < R * C; i++) lo[i] = hi[i] = _mm256_setzero_ps();
    for (int64_t i = 0; i < m->k; i += 16)
        Q_UNROLL for (int r = 0; r < R; r++) {
            const uint8_t *p = w + (uint64_t)r * m->row_bytes + bytes * i;
            const __m256 a = load(p), b = load(p + 8 * bytes);
            if (ask && i * bytes % 64 == 0)
                _mm_prefetch((const char *)((uintptr_t)p + (uintptr_t)R * m->row_bytes), _MM_HINT_T0);
            Q_UNROLL for (int c = 0; c < C; c++) {
                lo[r * C + c] = _mm256_fmadd_ps(a, _mm256_loadu_ps(x[c] + i), lo[r * C + c]);
                hi[r * C + c] = _mm256_fmadd_ps(b, _mm256_loadu_ps(x[c] + i + 8), hi[r * C + c]);
            }
        }
    Q_UNROLL for (int r = 0; r < R; r++)
        Q_UNROLL for (int c = 0; c < C; c++)
            q_put1(m, r0 + r, c0 + c, q_fold1(_mm256_add_ps(lo[r * C + c], hi[r * C + c])));
}

/* One column by fours of rows, more by twos of columns and threes of rows. Returns how many rows are done. */
Q_AVX2_INLINE int64_t few_columns(int bytes, load_fn load, const q_mm *m) {
    int64_t r = 0;
    if (m->k % 16 != 0) return 0;
    if (m->n == 1)
        for (; r + 4 <= m->rows; r += 4) rows_times(4, 1, bytes, load, true, m, r, 0);
    else
        for (; r + 3 <= m->rows; r += 3) {
            rows_times(3, 2, bytes, load, true, m, r, 0);
            if (m->n == 3) rows_times(3, 1, bytes, load, false, m, r, 2);
            if (m->n == 4) rows_times(3, 2, bytes, load, false, m, r, 2);
        }
    return r;
}

Q_AVX2_INLINE q_mm rows_from(const q_mm *m, int64_t r) {
    q_mm rest = *m;
    rest.w += (uint64_t)r * m->row_bytes;
    rest.y += r;
    rest.bias = m->bias ? m->bias + r : NULL;
    rest.rows -= r;
    return rest;
}

/* ---- PRODUCT's two functions, for weights of so many bytes */

#define FLOATS(name, bytes)                                                                         \
    Q_AVX2 static void widen_##name(const q_format *f, const uint8_t *row, int64_t k, float *to) {  \
        Q_UNUSED(f);                                                                                \
        int64_t i = 0;                                                                              \
        for (; i + 8 <= k; i += 8) _mm256_storeu_ps(to + i, eight_##name(row + bytes * i));          \
        for (; i < k; i++) to[i] = one_##name(row + bytes * i);                                     \
    }                                                                                               \
    Q_AVX2_INLINE __m256 upto8_##name(const uint8_t *row, int64_t i, int64_t n) {                    \
        if (n >= 8) return eight_##name(row + bytes * i);                                            \
        float t[8] = {0};                                                                           \
        for (int64_t j = 0; j < n; j++) t[j] = one_##name(row + bytes * (i + j));                   \
        return _mm256_loadu_ps(t);                                                                  \
    }                                                                                               \
    uint64_t q_matmul_##name##_f32_16x6__avx2_scratch(int64_t k, int64_t n) {                     \
        return n < q_act_lanes.from ? q_tile_bytes(k) : l_scratch(k);                               \
    }                                                                                               \
    Q_AVX2 void q_matmul_##name##_f32_16x6__avx2(const q_mm *m) {                                 \
        if (m->n >= q_act_lanes.from) {                                                             \
            l_product(m, upto8_##name, NULL);                                                        \
            return;                                                                                 \
        }                                                                                           \
        const q_mm rest = rows_from(m, m->n <= FEW ? few_columns(bytes, eight_##name, m) : 0);       \
        q_tile_product(&rest, widen_##name);                                                        \
    }

FLOATS(f16, 2)
FLOATS(bf16, 2)
FLOATS(f32, 4)
