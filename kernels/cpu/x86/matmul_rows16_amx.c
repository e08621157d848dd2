/* matmul_rows16_amx.c: products of packed weights with 8-bit activations by AMX tiles. The formats are records of
 * rows16_formats_avx512.h; what is said here is in how many planes their codes times scales fit, and from how many
 * columns on tiles are faster than the AVX-512 VNNI kernel of the same layout (measured: bench/SPEED.md). Q6_K and
 * NVFP4, with two planes for each 32 weights, are not. INT8 per row with one scale per column has a loop of its own, in
 * which tiles hold the sums of a whole row. Layer L2. */
#include "panel_amx.h"

Q_T_PRODUCT(matmul_q8_0_a8_32_rows16__amx, matmul_q8_0_a8_32_rows16__avx512vnni,
            {.p = &q_p_q8_0, .planes = 1, .from = 64})
Q_T_PRODUCT(matmul_q4_0_a8_32_rows16__amx, matmul_q4_0_a8_32_rows16__avx512vnni,
            {.p = &q_p_q4_0, .planes = 1, .from = 64})
Q_T_PRODUCT(matmul_q4_1_a8_32_rows16__amx, matmul_q4_1_a8_32_rows16__avx512vnni,
            {.p = &q_p_q4_1, .planes = 1, .from = 64})
Q_T_PRODUCT(matmul_q5_0_a8_32_rows16__amx, matmul_q5_0_a8_32_rows16__avx512vnni,
            {.p = &q_p_q5_0, .planes = 1, .from = 64})
Q_T_PRODUCT(matmul_q5_1_a8_32_rows16__amx, matmul_q5_1_a8_32_rows16__avx512vnni,
            {.p = &q_p_q5_1, .planes = 1, .from = 64})
Q_T_PRODUCT(matmul_iq4_nl_a8_32_rows16__amx, matmul_iq4_nl_a8_32_rows16__avx512vnni,
            {.p = &q_p_iq4_nl, .planes = 1, .from = 64})
Q_T_PRODUCT(matmul_q4_k_a8_256_rows16__amx, matmul_q4_k_a8_256_rows16__avx512vnni,
            {.p = &q_p_q4_k, .planes = 2, .from = 64})
Q_T_PRODUCT(matmul_q5_k_a8_256_rows16__amx, matmul_q5_k_a8_256_rows16__avx512vnni,
            {.p = &q_p_q5_k, .planes = 2, .from = 64})
Q_T_PRODUCT(matmul_q2_k_a8_256_rows16__amx, matmul_q2_k_a8_256_rows16__avx512vnni,
            {.p = &q_p_q2_k, .planes = 1, .from = 48})
Q_T_PRODUCT(matmul_q3_k_a8_256_rows16__amx, matmul_q3_k_a8_256_rows16__avx512vnni,
            {.p = &q_p_q3_k, .planes = 1, .negated = true, .from = 32})
Q_T_PRODUCT(matmul_iq4_xs_a8_256_rows16__amx, matmul_iq4_xs_a8_256_rows16__avx512vnni,
            {.p = &q_p_iq4_xs, .planes = 2, .from = 96})
Q_T_PRODUCT(matmul_i4_g32_a8_32_rows16__amx, matmul_i4_g32_a8_32_rows16__avx512vnni,
            {.p = &q_p_i4_g32, .planes = 1, .from = 64})
Q_T_PRODUCT(matmul_i4_g64_a8_32_rows16__amx, matmul_i4_g64_a8_32_rows16__avx512vnni,
            {.p = &q_p_i4_g64, .planes = 1, .from = 64})
Q_T_PRODUCT(matmul_i4_g128_a8_32_rows16__amx, matmul_i4_g128_a8_32_rows16__avx512vnni,
            {.p = &q_p_i4_g128, .planes = 1, .from = 64})
Q_T_PRODUCT(matmul_nf4_a8_32_rows16__amx, matmul_nf4_a8_32_rows16__avx512vnni,
            {.p = &q_p_nf4, .planes = 1, .from = 64})
Q_T_PRODUCT(matmul_fp4_a8_32_rows16__amx, matmul_fp4_a8_32_rows16__avx512vnni,
            {.p = &q_p_fp4, .planes = 1, .from = 64})
Q_T_PRODUCT(matmul_mxfp4_a8_32_rows16__amx, matmul_mxfp4_a8_32_rows16__avx512vnni,
            {.p = &q_p_mxfp4, .planes = 1, .from = 64})
Q_T_PRODUCT(matmul_tq2_0_a8_256_rows16__amx, matmul_tq2_0_a8_256_rows16__avx512vnni,
            {.p = &q_p_tq2_0, .planes = 1, .from = 24})
Q_T_PRODUCT(matmul_i8_g_a8_32_rows16__amx, matmul_i8_g_a8_32_rows16__avx512vnni,
            {.p = &q_p_i8_g, .planes = 1, .from = 64})

/* ------------------------------------------------------------------------------------------------------------ INT8 */

enum {
    I8_FROM = 16,    /* columns from which tiles are used */
    I8_CHUNK = 1024, /* weights of a row at a time: two panels stay in the first cache */
    I8_BAND = 8      /* pairs of panels that a chunk of the columns meets before the next */
};

/* Columns [c, end) and a chunk of weights, in steps of 64, of which the last may be half full. */
typedef struct i8_part {
    uint8_t *tail, *x, *sums;
    int64_t c, end, from, weights, steps;
} i8_part;

/* 64 weights of two panels times two sixteens of columns: sums by [panel][sixteen]. */
Q_VNNI_INLINE void i8_step(const uint8_t *b0, const uint8_t *b1, const uint8_t *a0, const uint8_t *a1) {
    Q_T_LOAD(4, a0, 64);
    Q_T_LOAD(6, b0, 64);
    Q_T_MULTIPLY(0, 4, 6);
    Q_T_LOAD(7, b1, 64);
    Q_T_MULTIPLY(2, 4, 7);
    Q_T_LOAD(5, a1, 64);
    Q_T_MULTIPLY(1, 5, 6);
    Q_T_MULTIPLY(3, 5, 7);
}

/* The same of a chunk, added to the sums of those before. */
Q_VNNI_INLINE void i8_sums(const i8_part *t, const uint8_t *const *codes, const uint8_t *x, uint8_t *sums) {
    if (t->from == 0) {
        Q_T_ZERO(0);
        Q_T_ZERO(1);
        Q_T_ZERO(2);
        Q_T_ZERO(3);
    } else {
        Q_T_LOAD(0, sums, 64);
        Q_T_LOAD(1, sums + Q_T_TILE, 64);
        Q_T_LOAD(2, sums + 2 * Q_T_TILE, 64);
        Q_T_LOAD(3, sums + 3 * Q_T_TILE, 64);
    }
    const uint8_t *x1 = x + t->steps * Q_T_TILE;
    const int64_t whole = t->weights / 64;
    for (int64_t i = 0; i < whole * Q_T_TILE; i += Q_T_TILE) i8_step(codes[0] + i, codes[1] + i, x + i, x1 + i);
    if (whole < t->steps) i8_step(t->tail, t->tail + Q_T_TILE, x + whole * Q_T_TILE, x1 + whole * Q_T_TILE);
    Q_T_STORE(0, sums, 64);
    Q_T_STORE(1, sums + Q_T_TILE, 64);
    Q_T_STORE(2, sums + 2 * Q_T_TILE, 64);
    Q_T_STORE(3, sums + 3 * Q_T_TILE, 64);
}

/* The codes of a chunk of all columns to tiles, [sixteen][step]; of those that a last pair of sixteens lacks, the last
 * one again. */
Q_VNNI_INLINE void i8_take(const q_mm *m, const i8_part *t) {
    const int64_t whole = t->weights / 64;
    uint8_t *to = t->x;
    for (int64_t c = t->c; c < t->c + (t->end - t->c + 31) / 32 * 32; c++) {
        const uint8_t *x = m->x + Q_MIN(c, t->end - 1) * m->x_stride + 4 + m->k / 8 + t->from;
        q_t_ask(m->x + Q_MIN(c + 4, t->end - 1) * m->x_stride + 4 + m->k / 8 + t->from, t->weights);
        for (int64_t i = 0; i < whole; i++) _mm512_store_si512(to + i * Q_T_TILE, _mm512_loadu_si512(x + 64 * i));
        if (whole < t->steps)
            _mm512_store_si512(to + whole * Q_T_TILE, _mm512_maskz_loadu_epi8(0xFFFFFFFFu, x + 64 * whole));
        to += ((c - t->c) & 15) == 15 ? (t->steps - 1) * Q_T_TILE + 64 : 64;
    }
}

/* The results of a pair of panels, rows r .. r + 31, and columns c .. c + 31. */
Q_VNNI_INLINE void i8_put(const q_mm *m, const i8_part *t, const uint8_t *const *panels, int64_t r, int64_t c,
                          const uint8_t *sums) {
    for (int64_t j = 0; j < Q_MIN(t->end - c, (int64_t)32); j++) {
        const uint8_t *at = sums + j / 16 * Q_T_TILE + 64 * (j & 15);
        const __m512 da = q_z_spread_f32(m->x + (c + j) * m->x_stride);
        for (int p = 0; p < 2; p++) {
            const __m512 d = _mm512_load_ps((const float *)(const void *)panels[p]);
            const __m512 sum = _mm512_cvtepi32_ps(_mm512_load_si512(at + 2 * p * Q_T_TILE));
            q_z_put16(m, r + p * Q_PANEL, c + j, _mm512_fmadd_ps(_mm512_mul_ps(d, da), sum, _mm512_setzero_ps()));
        }
    }
}

/* A chunk of the pair of panels that begins with panel i of `last`. */
Q_VNNI_INLINE void i8_pair(const q_mm *m, const i8_part *t, int64_t i, int64_t last, uint8_t *sums) {
    const uint8_t *panels[2] = {m->w + (uint64_t)i * m->row_bytes, m->w + (uint64_t)(i + 1) * m->row_bytes};
    if (i + 1 == last) panels[1] = panels[0]; /* nothing of it is stored */
    const uint8_t *codes[2];
    const bool ends = t->from + t->weights == m->k;
    for (int p = 0; p < 2; p++) {
        codes[p] = panels[p] + Q_ROWS16_I8_HEAD + 16 * t->from;
        if (t->weights % 64) memcpy(t->tail + p * Q_T_TILE, codes[p] + t->weights / 64 * Q_T_TILE, Q_T_TILE / 2);
    }
    for (int64_t c = t->c; c < t->end; c += 32, sums += 4 * Q_T_TILE) {
        if (ends) q_t_ask_results(m, i * Q_PANEL - m->row, c, Q_MIN(c + 32, t->end));
        i8_sums(t, codes, t->x + (c - t->c) * t->steps * 64, sums);
        if (ends) i8_put(m, t, panels, i * Q_PANEL - m->row, c, sums);
    }
}

/* Scratch: the tails of two panels, columns, sums of pairs of panels. */
Q_VNNI_INLINE int64_t i8_columns(int64_t n) { return (Q_MIN(n, (int64_t)Q_T_SPAN) + 31) / 32 * 32; }
Q_VNNI_INLINE int64_t i8_bytes(int64_t n) {
    return 2 * Q_T_TILE + i8_columns(n) * (I8_CHUNK + I8_BAND * 2 * Q_T_BYTES);
}

Q_VNNI_INLINE void i8_product(const q_mm *m) {
    const int64_t first = m->row / Q_PANEL, last = (m->row + m->rows + Q_PANEL - 1) / Q_PANEL;
    const q_t_config shapes = q_t_shapes(64);
    uint8_t *const scratch = (uint8_t *)m->scratch;
    i8_part t = {.tail = scratch, .x = scratch + 2 * Q_T_TILE};
    t.sums = t.x + i8_columns(m->n) * I8_CHUNK;
    memset(t.tail, 0, 2 * Q_T_TILE);
    Q_T_BEGIN(&shapes);
    for (; t.c < m->n; t.c = t.end) {
        t.end = Q_MIN(t.c + Q_T_SPAN, m->n);
        for (int64_t band = first; band < last; band += 2 * I8_BAND)
            for (t.from = 0; t.from < m->k; t.from += I8_CHUNK) {
                t.weights = Q_MIN(m->k - t.from, (int64_t)I8_CHUNK);
                t.steps = (t.weights + 63) / 64;
                i8_take(m, &t);
                for (int64_t i = band; i < Q_MIN(band + 2 * I8_BAND, last); i += 2)
                    i8_pair(m, &t, i, last, t.sums + (i - band) / 2 * i8_columns(m->n) * 2 * Q_T_BYTES);
            }
    }
    Q_T_END();
}

Q_VNNI uint64_t Q_T_NAME(matmul_i8_row_a8_row_rows16__amx_scratch)(int64_t k, int64_t n) {
    const uint64_t few = q_matmul_i8_row_a8_row_rows16__avx512vnni_scratch(k, Q_MIN(n, (int64_t)I8_FROM - 1));
    return n < I8_FROM ? few : Q_MAX(few, (uint64_t)i8_bytes(n));
}

Q_VNNI void Q_T_NAME(matmul_i8_row_a8_row_rows16__amx)(const q_mm *m) {
    if (m->n < I8_FROM)
        q_matmul_i8_row_a8_row_rows16__avx512vnni(m);
    else
        i8_product(m);
}
