/* rows16_avx512.h: what the AVX-512 VNNI products of packed weights (rows16.c) with 8-bit activations share. A format
 * says how its codes and scales come out of a block; the loops are here. Layer L2.
 *
 * Sixteen rows are in the sixteen lanes: a register of codes holds four consecutive ones of each row, one broadcast of
 * four activations feeds it, and nothing is ever added across lanes. Weights are read as one stream, for more columns
 * two panels side by side, so that a broadcast feeds 32 rows and the panels stay in the caches for all columns. Codes
 * are unsigned bytes, weights plus `bias`, as i8_avx512.h explains. */
#ifndef Q_ROWS16_AVX512_H
#define Q_ROWS16_AVX512_H

#include "../rows16.h"
#include "i8_avx512.h"

enum {
    Q_P_COLUMNS = 6,      /* at a time: 2 x 6 sums and 2 x 6 totals are 24 of 32 registers */
    Q_P_AHEAD = 8192,     /* bytes ahead of a panel that are asked for */
    Q_P_BLOCK = 384 << 10 /* bytes of columns at a time */
};

typedef struct q_p_format {
    int bytes, units; /* of a block of the layout: bytes, and units of 32 weights */
    int head;         /* bytes ahead of the codes and their bits: all that scale, pair, d and dmin look at */
    int panel_from;   /* columns from which codes are unpacked first; 0 = never */
    int act;          /* units per block of activations: 1, or 8 as `units` */
    int span;         /* units whose codes share bytes, so that loops go by that many; 1 where `units` is 2 */
    int bias;         /* a code is a weight plus this */
    int scales;       /* integer scales per unit: 0, 1 or 2 */
    int minima; /* 0; 1: of sums of activations alone; else times integers, as pairs of int16: 2 of a unit, 3 of two */

    /* Codes 4g .. 4g + 3 of unit `span` * i + u, u < span, of the block at p. What depends on u is a constant. */
    __m512i (*codes)(const uint8_t *p, int i, int u, int g);
    /* The integer scale of a unit's first (half 0) or last 16 weights, with scales 1 of all. */
    __m512i (*scale)(const uint8_t *p, int unit, int half);
    /* Minima 2: of the unit's first and last 16 weights; 3: of units 2 * unit and 2 * unit + 1. */
    __m512i (*pair)(const uint8_t *p, int unit);
    __m512 (*d)(const uint8_t *p, int unit); /* of the block of activations that begins at the unit */
    __m512 (*dmin)(const uint8_t *p, int unit);
} q_p_format;

/* ------------------------------------------------------------------------------------------- taking bytes apart */

Q_VNNI_INLINE __m512i q_p_load(const uint8_t *p) { return _mm512_load_si512(p); }
Q_VNNI_INLINE __m512 q_p_halves(const uint8_t *p) {
    return _mm512_cvtph_ps(_mm256_load_si256((const __m256i *)(const void *)p));
}
/* Sixteen bytes to lanes. */
Q_VNNI_INLINE __m512i q_p_bytes(const uint8_t *p) {
    return _mm512_cvtepu8_epi32(_mm_load_si128((const __m128i *)(const void *)p));
}
Q_VNNI_INLINE __m512i q_p_signed(const uint8_t *p) {
    return _mm512_cvtepi8_epi32(_mm_load_si128((const __m128i *)(const void *)p));
}
/* The low (of even `which`) or high nibbles. */
Q_VNNI_INLINE __m512i q_p_nibbles(__m512i v, int which) { return which & 1 ? q_z_high4(v) : q_z_low4(v); }

/* ------------------------------------------------------------------------------------------------- unpacked codes */

/* Many columns take codes apart many times. From some number on, two panels are unpacked first, to blocks of a head as
 * it is and of codes as bytes, which stay in the second cache (`wide`). */
Q_VNNI_INLINE int q_p_block(const q_p_format *f, bool wide) { return wide ? f->head + 512 * f->units : f->bytes; }

Q_VNNI_INLINE __m512i q_p_codes(const q_p_format *f, bool wide, const uint8_t *p, int i, int u, int g) {
    return wide ? q_p_load(p + f->head + 512 * i + 64 * g) : f->codes(p, i, u, g);
}

Q_VNNI_INLINE void q_p_unpack(const q_p_format *f, const uint8_t *p, int64_t k, uint8_t *to) {
    for (int64_t b = 0; b < k / 32; b += f->units, p += f->bytes, to += q_p_block(f, true)) {
        memcpy(to, p, (size_t)f->head);
        for (int i = 0; i < f->units / f->span; i++)
            Q_UNROLL for (int u = 0; u < f->span; u++) Q_UNROLL for (int g = 0; g < 8; g++)
                _mm512_store_si512(to + f->head + 512 * (f->span * i + u) + 64 * g, f->codes(p, i, u, g));
    }
}

Q_VNNI_INLINE uint64_t q_p_wide_bytes(const q_p_format *f, int64_t k) {
    return (uint64_t)((k / 32 + f->units - 1) / f->units) * (uint64_t)q_p_block(f, true);
}

/* ------------------------------------------------------------------------------------------------------- columns */

/* What sums of a unit begin with: minus the bias times the sums of activations, of the first 16, the last, or both. */
Q_VNNI_INLINE __m512i q_p_open(const q_p_format *f, const uint8_t *sums, bool first, bool second) {
    const uint32_t less = (uint16_t)-f->bias;
    if (!f->bias) return _mm512_setzero_si512();
    return _mm512_madd_epi16(q_z_spread(sums),
                             _mm512_set1_epi32((int)((first ? less : 0) | (second ? less << 16 : 0))));
}

/* Unit `span` * i + u of P panels times C columns, its scales applied, to total (added, where there are scales). `at`:
 * the block of activations, `in`: the unit in it. */
Q_VNNI_INLINE void q_p_unit(const q_p_format *f, bool wide, int P, int C, const uint8_t *const *w, int i, int u,
                            const uint8_t *const *x, int64_t at, int in, __m512i total[2][Q_P_COLUMNS]) {
    const int64_t sums = at + 4 + 4 * in, q = at + 4 + 4 * f->act + 32 * in;
    const int pieces = f->scales == 2 ? 2 : 1, unit = wide ? i : f->span * i + u;
    Q_UNROLL for (int h = 0; h < pieces; h++) {
        __m512i sum[2][Q_P_COLUMNS];
        Q_UNROLL for (int c = 0; c < C; c++) {
            sum[0][c] = q_p_open(f, x[c] + sums, h == 0, h == pieces - 1);
            sum[1][c] = sum[0][c];
        }
        Q_UNROLL for (int g = h * 4; g < h * 4 + 8 / pieces; g++) {
            __m512i v[2];
            Q_UNROLL for (int p = 0; p < P; p++) v[p] = q_p_codes(f, wide, w[p], i, u, g);
            Q_UNROLL for (int c = 0; c < C; c++) {
                const __m512i a = q_z_spread(x[c] + q + 4 * g);
                Q_UNROLL for (int p = 0; p < P; p++) sum[p][c] = _mm512_dpbusd_epi32(sum[p][c], v[p], a);
            }
        }
        Q_UNROLL for (int p = 0; p < P; p++) {
            const __m512i sc = f->scales ? f->scale(w[p], unit, h) : _mm512_setzero_si512();
            Q_UNROLL for (int c = 0; c < C; c++) total[p][c] =
                f->scales ? _mm512_add_epi32(total[p][c], _mm512_mullo_epi32(sum[p][c], sc)) : sum[p][c];
        }
    }
}

/* What minima take away from the sums of a block of activations, which begins at `unit`. */
Q_VNNI_INLINE void q_p_least(const q_p_format *f, int P, int C, const uint8_t *const *w, int unit,
                             const uint8_t *const *x, int64_t at, __m512 acc[2][Q_P_COLUMNS]) {
    __m512i total[2][Q_P_COLUMNS];
    Q_UNROLL for (int p = 0; p < P; p++) Q_UNROLL for (int c = 0; c < C; c++) total[p][c] = _mm512_setzero_si512();
    if (f->minima == 3) Q_UNROLL for (int j = 0; j < 4; j++) {
            __m512i mn[2];
            Q_UNROLL for (int p = 0; p < P; p++) mn[p] = f->pair(w[p], j);
            Q_UNROLL for (int c = 0; c < C; c++) {
                const __m128i sums = _mm_hadd_epi16(q_z_load128(x[c] + at + 4), q_z_load128(x[c] + at + 20));
                const __m128i by[4] = {sums, _mm_bsrli_si128(sums, 4), _mm_bsrli_si128(sums, 8),
                                       _mm_bsrli_si128(sums, 12)};
                const __m512i two = _mm512_broadcastd_epi32(by[j]);
                Q_UNROLL for (int p = 0; p < P; p++) total[p][c] = _mm512_dpwssd_epi32(total[p][c], mn[p], two);
            }
        }
    for (int u = 0; f->minima < 3 && u < f->act; u++) {
        __m512i mn[2];
        Q_UNROLL for (int p = 0; p < P; p++) mn[p] = f->minima == 2 ? f->pair(w[p], unit + u) : _mm512_set1_epi16(-1);
        Q_UNROLL for (int c = 0; c < C; c++) {
            const __m512i s = q_z_spread(x[c] + at + 4 + 4 * u);
            Q_UNROLL for (int p = 0; p < P; p++) total[p][c] = _mm512_dpwssd_epi32(total[p][c], mn[p], s);
        }
    }
    Q_UNROLL for (int p = 0; p < P; p++) {
        const __m512 d = f->dmin(w[p], unit);
        Q_UNROLL for (int c = 0; c < C; c++) {
            const __m512 da = _mm512_set1_ps(q_bits_f32(q_load32(x[c] + at)));
            acc[p][c] = _mm512_fnmadd_ps(_mm512_mul_ps(d, da), _mm512_cvtepi32_ps(total[p][c]), acc[p][c]);
        }
    }
}

/* Ask for the bytes that lie Q_P_AHEAD after those of a span, span by span, so that not all are wanted at once. */
Q_VNNI_INLINE void q_p_ask(const q_p_format *f, int P, const uint8_t *const *w, int i) {
    const int lines = (f->bytes / f->units * f->span + 63) / 64;
    Q_UNROLL for (int p = 0; p < P; p++) Q_UNROLL for (int line = 0; line < lines; line++)
        _mm_prefetch((const char *)(uintptr_t)w[p] + Q_P_AHEAD + 64 * (i * lines + line), _MM_HINT_T0);
}

/* A block of activations: unit `span` * i + u of the block at w (unpacked: unit i), or, with act 8, all units from
 * there on. */
Q_VNNI_INLINE void q_p_act(const q_p_format *f, bool wide, int P, int C, const uint8_t *const *w, int i, int u,
                           const uint8_t *const *x, int64_t at, bool ahead, __m512 acc[2][Q_P_COLUMNS]) {
    __m512i total[2][Q_P_COLUMNS];
    Q_UNROLL for (int p = 0; p < P; p++) Q_UNROLL for (int c = 0; c < C; c++) total[p][c] = _mm512_setzero_si512();
    const int unit = wide ? i : f->span * i + u;
    if (f->act == 1) q_p_unit(f, wide, P, C, w, i, u, x, at, 0, total);
    for (int j = 0; wide && f->act > 1 && j < f->act; j++) q_p_unit(f, true, P, C, w, j, 0, x, at, j, total);
    for (int j = 0; !wide && f->act > 1 && j < f->act / f->span; j++) {
        if (ahead) q_p_ask(f, P, w, j);
        Q_UNROLL for (int v = 0; v < f->span; v++) q_p_unit(f, false, P, C, w, j, v, x, at, f->span * j + v, total);
    }
    Q_UNROLL for (int p = 0; p < P; p++) {
        const __m512 d = f->d(w[p], unit);
        Q_UNROLL for (int c = 0; c < C; c++) {
            const __m512 da = _mm512_set1_ps(q_bits_f32(q_load32(x[c] + at)));
            acc[p][c] = _mm512_fmadd_ps(_mm512_mul_ps(d, da), _mm512_cvtepi32_ps(total[p][c]), acc[p][c]);
        }
    }
    if (f->minima) q_p_least(f, P, C, w, unit, x, at, acc);
}

/* P panels from front to back times C columns. */
Q_VNNI_INLINE void q_p_columns(const q_p_format *f, bool wide, int P, int C, const uint8_t *const *panels,
                               const uint8_t *const *x, int64_t k, bool ahead, __m512 acc[2][Q_P_COLUMNS]) {
    const int64_t units = k / 32, act_bytes = 4 + 36 * f->act;
    const uint8_t *w[2] = {panels[0], panels[1]};
    Q_UNROLL for (int p = 0; p < P; p++) Q_UNROLL for (int c = 0; c < C; c++) acc[p][c] = _mm512_setzero_ps();
    int64_t at = 0;
    for (int64_t b = 0; b < units; b += f->units) {
        if (f->act > 1) q_p_act(f, wide, P, C, w, 0, 0, x, at, ahead, acc), at += act_bytes;
        for (int i = 0; wide && f->act == 1 && i < f->units; i++, at += act_bytes) {
            if (f->units == 2 && b + i >= units) break; /* a last block that is not full */
            q_p_act(f, true, P, C, w, i, 0, x, at, false, acc);
        }
        for (int i = 0; !wide && f->act == 1 && i < f->units / f->span; i++) {
            if (f->units == 2 && b + i >= units) break;
            if (ahead) q_p_ask(f, P, w, i);
            Q_UNROLL for (int u = 0; u < f->span; u++, at += act_bytes)
                q_p_act(f, false, P, C, w, i, u, x, at, ahead, acc);
        }
        Q_UNROLL for (int p = 0; p < P; p++) w[p] += q_p_block(f, wide);
    }
}

/* -------------------------------------------------------------------------------------------------------- products */

/* Hand in row r .. r + 15 of column c; r may begin before the first row that is wanted. */
Q_VNNI_INLINE void q_p_put(const q_mm *m, int64_t r, int64_t c, __m512 v) {
    const __mmask16 in = (__mmask16)(q_mask16(m->rows - r) & ~q_mask16(-r));
    float *y = m->y + c * m->y_stride + r;
    if (m->bias) v = _mm512_add_ps(v, _mm512_maskz_loadu_ps(in, m->bias + r));
    if (m->add) v = _mm512_add_ps(_mm512_maskz_loadu_ps(in, y), v);
    _mm512_mask_storeu_ps(y, in, v);
}

Q_VNNI_INLINE void q_p_some(const q_p_format *f, bool wide, int P, int C, const q_mm *m, const uint8_t *const *panels,
                            int64_t r, int64_t c, bool ahead) {
    const uint8_t *x[Q_P_COLUMNS];
    __m512 y[2][Q_P_COLUMNS];
    Q_UNROLL for (int j = 0; j < C; j++) x[j] = m->x + Q_MIN(c + j, m->n - 1) * m->x_stride;
    q_p_columns(f, wide, P, C, panels, x, m->k, ahead, y);
    Q_UNROLL for (int j = 0; j < C; j++) {
        if (c + j >= m->n) break;
        Q_UNROLL for (int p = 0; p < P; p++) q_p_put(m, r + p * Q_PANEL, c + j, y[p][j]);
    }
}

/* Columns c .. end - 1 of all rows. */
Q_VNNI_INLINE void q_p_some_columns(const q_p_format *f, bool wide, const q_mm *m, int64_t begin, int64_t end) {
    const int64_t first = m->row / Q_PANEL, last = (m->row + m->rows + Q_PANEL - 1) / Q_PANEL;
    for (int64_t i = first; i < last; i += 2) {
        const uint8_t *panels[2] = {m->w + (uint64_t)i * m->row_bytes, m->w + (uint64_t)(i + 1) * m->row_bytes};
        const int64_t r = i * Q_PANEL - m->row;
        if (i + 1 == last) panels[1] = panels[0]; /* nothing of it is stored */
        for (int p = 0; wide && p < 2; p++) {
            uint8_t *to = (uint8_t *)m->scratch + (uint64_t)p * q_p_wide_bytes(f, m->k);
            q_p_unpack(f, panels[p], m->k, to);
            panels[p] = to;
        }
        for (int64_t c = begin, left; (left = end - c) > 0;) {
            const bool ahead = !wide && c == 0;
            if (left <= 2)
                q_p_some(f, wide, 2, 2, m, panels, r, c, ahead), c += 2;
            else if (left < 5 || left == 7 || left == 8)
                q_p_some(f, wide, 2, 4, m, panels, r, c, ahead), c += 4;
            else
                q_p_some(f, wide, 2, 6, m, panels, r, c, ahead), c += 6;
        }
    }
}

/* One column: one stream. Two panels side by side are two, and slower from memory. */
Q_VNNI_INLINE void q_p_one(const q_p_format *f, const q_mm *m) {
    for (int64_t i = m->row / Q_PANEL; i * Q_PANEL < m->row + m->rows; i++) {
        const uint8_t *const panel[2] = {m->w + (uint64_t)i * m->row_bytes, NULL};
        q_p_some(f, false, 1, 1, m, panel, i * Q_PANEL - m->row, 0, true);
    }
}

/* Columns in blocks that stay in the second cache while all rows pass by. */
Q_VNNI_INLINE void q_p_product(const q_p_format *f, const q_mm *m) {
    const int64_t block = Q_MAX(Q_P_BLOCK / m->x_stride / Q_P_COLUMNS, (int64_t)1) * Q_P_COLUMNS;
    if (m->n == 1) {
        q_p_one(f, m);
    } else if (f->panel_from && m->n >= f->panel_from) {
        for (int64_t c = 0; c < m->n; c += block) q_p_some_columns(f, true, m, c, Q_MIN(c + block, m->n));
    } else {
        for (int64_t c = 0; c < m->n; c += block) q_p_some_columns(f, false, m, c, Q_MIN(c + block, m->n));
    }
}

/* PACKED's two functions. */
#define Q_P_PRODUCT(name, format)                                                                                      \
    Q_VNNI uint64_t q_##name##_scratch(int64_t k, int64_t n) {                                                         \
        return format.panel_from && n >= format.panel_from ? 2 * q_p_wide_bytes(&format, k) : 0;                       \
    }                                                                                                                  \
    Q_VNNI void q_##name(const q_mm *m) { q_p_product(&format, m); }

#endif
