/* rows16_avx512.h: what the AVX-512 VNNI products of packed weights (rows16.c) with 8-bit activations share. A format
 * says how its codes and scales come out of a block; the loops are here. Layer L2.
 *
 * Sixteen rows are in the sixteen lanes: a register of codes holds four consecutive ones of each row, one broadcast of
 * four activations feeds it, and nothing is ever added across lanes. Weights are read as one stream, for more columns
 * two panels side by side, so that a broadcast feeds 32 rows. From Q_P_PANEL_FROM columns on codes are unpacked first,
 * to the panels of panel_avx512.h, chunk by chunk: taking them apart for each six columns would take the time of
 * products. Codes are unsigned bytes, weights plus a bias, as i8_avx512.h explains. */
#ifndef Q_ROWS16_AVX512_H
#define Q_ROWS16_AVX512_H

#include "../rows16.h"
#include "panel_avx512.h"

enum {
    Q_P_COLUMNS = 6,     /* at a time: 2 x 6 sums and 2 x 6 totals are 24 of 32 registers */
    Q_P_AHEAD = 8192,    /* bytes ahead of a panel that are asked for */
    Q_P_PANEL_FROM = 24  /* columns from which unpacking pays */
};

typedef struct q_p_format {
    int bytes, units; /* of a block of the layout: bytes, and units of 32 weights */
    int span;         /* units whose codes share bytes, so that loops go by that many; 1 where `units` is below 8 */
    q_z_shape s;      /* of the panel it is unpacked to: blocks of as many units as the activations' */

    /* Codes 4g .. 4g + 3 of unit `span` * i + u, u < span, of the block at p. What depends on u is a constant. */
    __m512i (*codes)(const uint8_t *p, int i, int u, int g);
    /* The integer scale of a unit's first (half 0) or last 16 weights, with scales 1 of all. */
    __m512i (*scale)(const uint8_t *p, int unit, int half);
    /* Integer minima as pairs of int16, with two scales to a unit: of its first and last 16 weights; with one: of units
     * 2 * unit and 2 * unit + 1. */
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

/* ------------------------------------------------------------------------------------------------------- columns */

/* What sums of a unit begin with: minus the bias times the sums of activations, of the first 16, the last, or both. */
Q_VNNI_INLINE __m512i q_p_open(const q_p_format *f, const uint8_t *sums, bool first, bool second) {
    const uint32_t less = (uint16_t)-f->s.bias;
    if (!f->s.bias) return _mm512_setzero_si512();
    return _mm512_madd_epi16(q_z_spread(sums),
                             _mm512_set1_epi32((int)((first ? less : 0) | (second ? less << 16 : 0))));
}

/* Unit `span` * i + u of P panels times C columns, its scales applied, to total (added, where there are scales). `at`:
 * the block of activations, `in`: the unit in it. */
Q_VNNI_INLINE void q_p_unit(const q_p_format *f, int P, int C, const uint8_t *const *w, int i, int u,
                            const uint8_t *const *x, int64_t at, int in, __m512i total[2][Q_P_COLUMNS]) {
    const int64_t sums = at + 4 + 4 * in, q = at + 4 + 4 * f->s.act + 32 * in;
    const int pieces = f->s.scales == 2 ? 2 : 1, unit = f->span * i + u;
    Q_UNROLL for (int h = 0; h < pieces; h++) {
        __m512i sum[2][Q_P_COLUMNS];
        Q_UNROLL for (int c = 0; c < C; c++) {
            sum[0][c] = q_p_open(f, x[c] + sums, h == 0, h == pieces - 1);
            sum[1][c] = sum[0][c];
        }
        Q_UNROLL for (int g = h * 4; g < h * 4 + 8 / pieces; g++) {
            __m512i v[2];
            Q_UNROLL for (int p = 0; p < P; p++) v[p] = f->codes(w[p], i, u, g);
            Q_UNROLL for (int c = 0; c < C; c++) {
                const __m512i a = q_z_spread(x[c] + q + 4 * g);
                Q_UNROLL for (int p = 0; p < P; p++) sum[p][c] = _mm512_dpbusd_epi32(sum[p][c], v[p], a);
            }
        }
        Q_UNROLL for (int p = 0; p < P; p++) {
            const __m512i sc = f->s.scales ? f->scale(w[p], unit, h) : _mm512_setzero_si512();
            Q_UNROLL for (int c = 0; c < C; c++) total[p][c] =
                f->s.scales    ? _mm512_add_epi32(total[p][c], _mm512_mullo_epi32(sum[p][c], sc))
                : f->s.act > 1 ? _mm512_add_epi32(total[p][c], sum[p][c])
                               : sum[p][c];
        }
    }
}

/* What minima take away from the sums of a block of activations, which begins at `unit`. */
Q_VNNI_INLINE void q_p_least(const q_p_format *f, int P, int C, const uint8_t *const *w, int unit,
                             const uint8_t *const *x, int64_t at, __m512 acc[2][Q_P_COLUMNS]) {
    __m512i total[2][Q_P_COLUMNS];
    Q_UNROLL for (int p = 0; p < P; p++) Q_UNROLL for (int c = 0; c < C; c++) total[p][c] = _mm512_setzero_si512();
    if (f->s.scales == 1) Q_UNROLL for (int j = 0; j < 4; j++) {
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
    for (int u = 0; f->s.scales != 1 && u < f->s.act; u++) {
        __m512i mn[2];
        Q_UNROLL for (int p = 0; p < P; p++) mn[p] = f->s.scales ? f->pair(w[p], unit + u) : _mm512_set1_epi16(-1);
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
Q_VNNI_INLINE void q_p_act(const q_p_format *f, int P, int C, const uint8_t *const *w, int i, int u,
                           const uint8_t *const *x, int64_t at, bool ahead, __m512 acc[2][Q_P_COLUMNS]) {
    __m512i total[2][Q_P_COLUMNS];
    Q_UNROLL for (int p = 0; p < P; p++) Q_UNROLL for (int c = 0; c < C; c++) total[p][c] = _mm512_setzero_si512();
    const int unit = f->span * i + u;
    if (f->s.act == 1) q_p_unit(f, P, C, w, i, u, x, at, 0, total);
    for (int j = 0; f->s.act > 1 && j < f->s.act / f->span; j++) {
        if (ahead) q_p_ask(f, P, w, j);
        Q_UNROLL for (int v = 0; v < f->span; v++) q_p_unit(f, P, C, w, j, v, x, at, f->span * j + v, total);
    }
    Q_UNROLL for (int p = 0; p < P; p++) {
        const __m512 d = f->d(w[p], unit);
        Q_UNROLL for (int c = 0; c < C; c++) {
            const __m512 da = _mm512_set1_ps(q_bits_f32(q_load32(x[c] + at)));
            acc[p][c] = _mm512_fmadd_ps(_mm512_mul_ps(d, da), _mm512_cvtepi32_ps(total[p][c]), acc[p][c]);
        }
    }
    if (f->s.minima) q_p_least(f, P, C, w, unit, x, at, acc);
}

/* P panels from front to back times C columns. */
Q_VNNI_INLINE void q_p_columns(const q_p_format *f, int P, int C, const uint8_t *const *panels,
                               const uint8_t *const *x, int64_t k, bool ahead, __m512 acc[2][Q_P_COLUMNS]) {
    const int64_t units = k / 32, act_bytes = 4 + 36 * f->s.act;
    const uint8_t *w[2] = {panels[0], panels[1]};
    Q_UNROLL for (int p = 0; p < P; p++) Q_UNROLL for (int c = 0; c < C; c++) acc[p][c] = _mm512_setzero_ps();
    int64_t at = 0;
    for (int64_t b = 0; b < units; b += f->units) {
        if (f->s.act > 1) q_p_act(f, P, C, w, 0, 0, x, at, ahead, acc), at += act_bytes;
        for (int i = 0; f->s.act == 1 && i < f->units / f->span; i++) {
            if (f->units < 8 && b + i >= units) break; /* a last block that is not full */
            if (ahead) q_p_ask(f, P, w, i);
            Q_UNROLL for (int u = 0; u < f->span; u++, at += act_bytes) q_p_act(f, P, C, w, i, u, x, at, ahead, acc);
        }
        Q_UNROLL for (int p = 0; p < P; p++) w[p] += f->bytes;
    }
}

/* -------------------------------------------------------------------------------------------------------- products */

Q_VNNI_INLINE void q_p_some(const q_p_format *f, int P, int C, const q_mm *m, const uint8_t *const *panels,
                            int64_t r, int64_t c, bool ahead) {
    const uint8_t *x[Q_P_COLUMNS];
    __m512 y[2][Q_P_COLUMNS];
    Q_UNROLL for (int j = 0; j < C; j++) x[j] = m->x + Q_MIN(c + j, m->n - 1) * m->x_stride;
    q_p_columns(f, P, C, panels, x, m->k, ahead, y);
    Q_UNROLL for (int j = 0; j < C; j++) {
        if (c + j >= m->n) break;
        Q_UNROLL for (int p = 0; p < P; p++) q_z_put16(m, r + p * Q_PANEL, c + j, y[p][j]);
    }
}

/* A few columns of all rows. */
Q_VNNI_INLINE void q_p_few(const q_p_format *f, const q_mm *m) {
    const int64_t first = m->row / Q_PANEL, last = (m->row + m->rows + Q_PANEL - 1) / Q_PANEL;
    for (int64_t i = first; i < last; i += 2) {
        const uint8_t *panels[2] = {m->w + (uint64_t)i * m->row_bytes, m->w + (uint64_t)(i + 1) * m->row_bytes};
        const int64_t r = i * Q_PANEL - m->row;
        if (i + 1 == last) panels[1] = panels[0]; /* nothing of it is stored */
        for (int64_t c = 0, left; (left = m->n - c) > 0;) {
            if (left <= 2)
                q_p_some(f, 2, 2, m, panels, r, c, c == 0), c += 2;
            else if (left < 5 || left == 7 || left == 8)
                q_p_some(f, 2, 4, m, panels, r, c, c == 0), c += 4;
            else
                q_p_some(f, 2, 6, m, panels, r, c, c == 0), c += 6;
        }
    }
}

/* One column: one stream. Two panels side by side are two, and slower from memory. */
Q_VNNI_INLINE void q_p_one(const q_p_format *f, const q_mm *m) {
    for (int64_t i = m->row / Q_PANEL; i * Q_PANEL < m->row + m->rows; i++) {
        const uint8_t *const panel[2] = {m->w + (uint64_t)i * m->row_bytes, NULL};
        q_p_some(f, 1, 1, m, panel, i * Q_PANEL - m->row, 0, true);
    }
}

/* -------------------------------------------------------------------------------------------------- many columns */

/* Where packed rows lie for panel_avx512.h, `head` bytes into each panel. */
Q_VNNI_INLINE q_z_source q_p_source(const q_mm *m, int64_t head, int64_t bytes, int64_t weights) {
    return (q_z_source){.at = m->w + (uint64_t)(m->row / Q_PANEL) * m->row_bytes + head, .first = -(m->row % Q_PANEL),
                        .rows = Q_PANEL, .pitch = (int64_t)m->row_bytes, .bytes = bytes, .weights = weights};
}
/* Is there a second panel of a pair from row r on? Where there is none the first one serves, and is not stored. */
Q_VNNI_INLINE int64_t q_p_second(const q_mm *m, int64_t r) { return m->rows - r > Q_PANEL ? (int64_t)m->row_bytes : 0; }

/* A unit: codes, scales. */
Q_VNNI_INLINE void q_p_unpack_unit(const q_p_format *f, const uint8_t *p, int i, int u, uint8_t *to) {
    Q_UNROLL for (int g = 0; g < 8; g++) _mm512_store_si512(to + 64 * g, f->codes(p, i, u, g));
    Q_UNROLL for (int h = 0; h < f->s.scales; h++)
        q_z_store_scale(&f->s, to + 512 + 64 * h, f->scale(p, f->span * i + u, h));
}
/* What a block of the panel has after its units. */
Q_VNNI_INLINE void q_p_unpack_rest(const q_p_format *f, const uint8_t *p, int unit, uint8_t *to) {
    const int pairs = q_z_int_minima(&f->s) ? f->s.units * f->s.scales / 2 : 0;
    Q_UNROLL for (int j = 0; j < pairs; j++)
        _mm512_store_si512(to + q_z_minima_at(&f->s) + 64 * j, f->pair(p, j));
    _mm512_store_ps(to + q_z_d_at(&f->s), f->d(p, unit));
    if (f->s.minima) _mm512_store_ps(to + q_z_d_at(&f->s) + 64, f->dmin(p, unit));
}

Q_VNNI_INLINE void q_p_unpack_panel(const q_p_format *f, const uint8_t *p, int64_t units, uint8_t *to) {
    for (int64_t b = 0; b < units; b += f->units, p += f->bytes) {
        for (int i = 0; i < f->units / f->span; i++) {
            if (f->units < 8 && b + i >= units) break; /* a last block that is not full */
            Q_UNROLL for (int u = 0; u < f->span; u++) {
                const int unit = f->span * i + u;
                q_p_unpack_unit(f, p, i, u, to + (f->s.units > 1 ? unit * q_z_unit_bytes(&f->s) : 0));
                if (f->s.units > 1) continue;
                q_p_unpack_rest(f, p, unit, to);
                to += q_z_block_bytes(&f->s);
            }
        }
        if (f->s.units == 1) continue;
        q_p_unpack_rest(f, p, 0, to);
        to += q_z_block_bytes(&f->s);
    }
}

Q_VNNI_INLINE void q_p_unpack(const void *format, const q_mm *m, const q_z_piece *t, const uint8_t *at) {
    for (int64_t p = 0; p < 2; p++)
        q_p_unpack_panel((const q_p_format *)format, at + p * q_p_second(m, t->r), t->weights / 32, t->panel[p]);
}

Q_VNNI_INLINE void q_p_many(const q_p_format *f, const q_mm *m) {
    const q_z_source s = q_p_source(m, 0, f->bytes, 32 * f->units);
    q_z_many(&f->s, f, q_p_unpack, &s, m);
}

/* PACKED's two functions. A plan for n columns also runs with fewer. */
#define Q_P_PRODUCT(name, format)                                                                                      \
    Q_VNNI uint64_t q_##name##_scratch(int64_t k, int64_t n) {                                                         \
        Q_UNUSED(k);                                                                                                   \
        return n < Q_P_PANEL_FROM ? 0 : q_z_many_scratch(&format.s, n);                                                \
    }                                                                                                                  \
    Q_VNNI void q_##name(const q_mm *m) {                                                                              \
        if (m->n == 1)                                                                                                 \
            q_p_one(&format, m);                                                                                       \
        else if (m->n < Q_P_PANEL_FROM)                                                                                \
            q_p_few(&format, m);                                                                                       \
        else                                                                                                           \
            q_p_many(&format, m);                                                                                      \
    }

#endif
