/* matmul_cards_avx512vnni.c: products of packed weights (rows16_cards.c) in the formats of model cards with 8-bit
 * activations. All but one are records of rows16_formats_avx512.h, and formats that are packed into the same layout
 * share a product (kernels.def); INT8 per row with one scale per column has a loop of its own for a few columns, in
 * which the integers of a whole row are one sum, and panels like theirs for more. Layer L2. */
#include "rows16_formats_avx512.h"

Q_P_PRODUCT(matmul_i4_g32_a8_32_rows16__avx512vnni, q_p_i4_g32)
Q_P_PRODUCT(matmul_i4_g64_a8_32_rows16__avx512vnni, q_p_i4_g64)
Q_P_PRODUCT(matmul_i4_g128_a8_32_rows16__avx512vnni, q_p_i4_g128)
Q_P_PRODUCT(matmul_nf4_a8_32_rows16__avx512vnni, q_p_nf4)
Q_P_PRODUCT(matmul_fp4_a8_32_rows16__avx512vnni, q_p_fp4)
Q_P_PRODUCT(matmul_mxfp4_a8_32_rows16__avx512vnni, q_p_mxfp4)
Q_P_PRODUCT(matmul_nvfp4_a8_32_rows16__avx512vnni, q_p_nvfp4)
Q_P_PRODUCT(matmul_tq2_0_a8_256_rows16__avx512vnni, q_p_tq2_0)
Q_P_PRODUCT(matmul_i8_g_a8_32_rows16__avx512vnni, q_p_i8_g)

/* ------------------------------------------------------------------------------------------------------------ INT8 */

enum { I8_CHAINS = 4 /* sums of a lone column, so that none waits for the one before it */ };

/* Minus 128 times the sum of a column's activations: what its sums begin with. */
Q_VNNI_INLINE int32_t i8_begin(const uint8_t *x, int64_t k) {
    const int16_t *sum = (const int16_t *)(const void *)(x + 4);
    int32_t total = 0;
    for (int64_t i = 0; i < k / 16; i++) total += sum[i];
    return -128 * total;
}

/* P panels times C columns. */
Q_VNNI_INLINE void i8_columns(int P, int C, const uint8_t *const *panels, const uint8_t *const *x, int64_t k,
                              bool ahead, __m512 y[2][Q_P_COLUMNS]) {
    const int64_t codes = 4 + k / 8;
    const int chains = P * C == 1 ? I8_CHAINS : 1;
    __m512i sum[2][Q_P_COLUMNS][I8_CHAINS];
    Q_UNROLL for (int p = 0; p < P; p++) Q_UNROLL for (int c = 0; c < C; c++) {
        sum[p][c][0] = _mm512_set1_epi32(i8_begin(x[c], k));
        Q_UNROLL for (int j = 1; j < chains; j++) sum[p][c][j] = _mm512_setzero_si512();
    }
    for (int64_t i = 0; i < k; i += 32) {
        Q_UNROLL for (int g = 0; g < 8; g++) {
            __m512i v[2];
            Q_UNROLL for (int p = 0; p < P; p++) {
                const uint8_t *at = panels[p] + Q_ROWS16_I8_HEAD + 16 * i + 64 * g;
                if (ahead) _mm_prefetch((const char *)(uintptr_t)at + Q_P_AHEAD, _MM_HINT_T0);
                v[p] = _mm512_xor_si512(q_p_load(at), _mm512_set1_epi8((char)0x80));
            }
            Q_UNROLL for (int c = 0; c < C; c++) {
                const __m512i a = q_z_spread(x[c] + codes + i + 4 * g);
                Q_UNROLL for (int p = 0; p < P; p++) sum[p][c][g % chains] =
                    _mm512_dpbusd_epi32(sum[p][c][g % chains], v[p], a);
            }
        }
    }
    Q_UNROLL for (int p = 0; p < P; p++) Q_UNROLL for (int c = 0; c < C; c++) {
        Q_UNROLL for (int j = 1; j < chains; j++) sum[p][c][0] = _mm512_add_epi32(sum[p][c][0], sum[p][c][j]);
        const __m512 d = _mm512_load_ps((const float *)(const void *)panels[p]);
        const __m512 da = _mm512_set1_ps(q_bits_f32(q_load32(x[c])));
        y[p][c] = _mm512_fmadd_ps(_mm512_mul_ps(d, da), _mm512_cvtepi32_ps(sum[p][c][0]), _mm512_setzero_ps());
    }
}

Q_VNNI_INLINE void i8_some(int P, int C, const q_mm *m, const uint8_t *const *panels, int64_t r, int64_t c,
                           bool ahead) {
    const uint8_t *x[Q_P_COLUMNS];
    __m512 y[2][Q_P_COLUMNS];
    Q_UNROLL for (int j = 0; j < C; j++) x[j] = m->x + Q_MIN(c + j, m->n - 1) * m->x_stride;
    i8_columns(P, C, panels, x, m->k, ahead, y);
    Q_UNROLL for (int j = 0; j < C; j++) {
        if (c + j >= m->n) break;
        Q_UNROLL for (int p = 0; p < P; p++) q_z_put16(m, r + p * Q_PANEL, c + j, y[p][j]);
    }
}

/* One column: one stream. A few: two panels side by side. */
Q_VNNI_INLINE void i8_few(const q_mm *m) {
    const int64_t first = m->row / Q_PANEL, last = (m->row + m->rows + Q_PANEL - 1) / Q_PANEL;
    for (int64_t i = first; i < last; i += m->n == 1 ? 1 : 2) {
        const uint8_t *panels[2] = {m->w + (uint64_t)i * m->row_bytes, m->w + (uint64_t)(i + 1) * m->row_bytes};
        const int64_t r = i * Q_PANEL - m->row;
        if (i + 1 == last) panels[1] = panels[0]; /* nothing of it is stored */
        if (m->n == 1) i8_some(1, 1, m, panels, r, 0, true);
        for (int64_t c = 0, left; m->n > 1 && (left = m->n - c) > 0;) {
            if (left <= 2) i8_some(2, 2, m, panels, r, c, c == 0), c += 2;
            else if (left < 5) i8_some(2, 4, m, panels, r, c, c == 0), c += 4;
            else i8_some(2, 6, m, panels, r, c, c == 0), c += 6;
        }
    }
}

static const q_z_shape i8 = {.units = Q_Z_UNITS, .act = 0, .bias = 128};

/* Codes of a chunk, and the rows' scales after where those of a whole chunk end. */
Q_VNNI_INLINE void i8_unpack(const void *format, const q_mm *m, const q_z_piece *t, const uint8_t *at) {
    Q_UNUSED(format);
    for (int64_t p = 0; p < 2; p++, at += q_p_second(m, t->r)) {
        const uint8_t *head = at - t->from / 32 * Q_ROWS16_I8_ROW - Q_ROWS16_I8_HEAD;
        for (int64_t i = 0; i < t->weights / 4; i++)
            _mm512_store_si512(t->panel[p] + 64 * i,
                               _mm512_xor_si512(q_p_load(at + 64 * i), _mm512_set1_epi8((char)0x80)));
        _mm512_store_si512(t->panel[p] + q_z_d_at(&i8), q_p_load(head));
    }
}

Q_VNNI uint64_t q_matmul_i8_row_a8_row_rows16__avx512vnni_scratch(int64_t k, int64_t n) {
    Q_UNUSED(k);
    return n < Q_P_PANEL_FROM ? 0 : q_z_many_scratch(&i8, n);
}

Q_VNNI void q_matmul_i8_row_a8_row_rows16__avx512vnni(const q_mm *m) {
    const q_z_source s = q_p_source(m, Q_ROWS16_I8_HEAD, Q_ROWS16_I8_ROW, 32);
    if (m->n < Q_P_PANEL_FROM) i8_few(m);
    else q_z_many(&i8, NULL, i8_unpack, &s, m);
}
