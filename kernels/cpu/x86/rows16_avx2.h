/* rows16_avx2.h: what the AVX2 and AVX-VNNI products of packed weights (rows16.c, rows16_cards.c) with 8-bit
 * activations share. A format (rows16_formats_avx2.h) says how its codes and scales come out of a block; the loops over
 * few columns are here, those over many in panel_avx2.h, which a file includes next. Layer L2.
 *
 * matmul_rows16_avx2.c and matmul_rows16_avxvnni.c include it and differ in the instruction that multiplies bytes: each
 * defines Q_Y_TARGET, the target of all functions, and Q_Y_VNNI, whether that has vpdpbusd.
 *
 * Eight rows are in eight lanes, two registers to a panel: one broadcast of four activations feeds them, and nothing is
 * added across lanes. vpmaddubsw multiplies unsigned by signed bytes and adds pairs with saturation at 16 bits, so a
 * format says what its codes are:
 *   most > 0   unsigned, and `most` pairs of them with activations of 127 fit 16 bits together: 8 for codes of 4 bits,
 *              2 for 6. Scales are applied by the widening multiply-add that follows;
 *   most = 0   signed bytes: their magnitudes are multiplied with activations that take their signs. A pair fits
 *              (2 * 128 * 127), a second one would not.
 * vpdpbusd adds four products to 32 bits, exactly. It takes signed codes with 128 added, and what that and a bias add
 * is what sums begin with. */
#ifndef Q_ROWS16_AVX2_H
#define Q_ROWS16_AVX2_H

#include "../rows16.h"
#include "../rows16_cards.h"
#include "i8_avx2.h"

#define Q_Y __attribute__((target(Q_Y_TARGET)))
#define Q_Y_INLINE Q_PART Q_Y

enum {
    Q_Y_COLUMNS = 4,
    Q_Y_AHEAD = 4096 /* bytes ahead of a panel that are asked for */
};

typedef struct q_y_format {
    int bytes, units; /* of a block of the layout: bytes, and units of 32 weights */
    int head;         /* whole: bytes of a panel ahead of its blocks */
    int act;          /* units per block of activations: 1, or 8 as `units` */
    int span;         /* units whose codes share bytes, so that loops go by that many; 1 where `units` is below 8 */
    int most;         /* see above */
    int bias;         /* a code is a weight plus this; with integer scales even, at most 32, and a scale per 16 */
    int scales;       /* integer scales per unit: 0, 1 or 2 */
    bool whole;       /* one scale to a row, at the panel's head, and one to a column: one sum of integers to a row */
    int minima; /* 0; 1: of sums of activations alone; else times integers, as pairs of int16: 2 of a unit, 3 of two */

    /* Codes 4g .. 4g + 3 of unit `span` * i + u, u < span, of rows 8h .. 8h + 7 of the block at p. */
    __m256i (*codes)(const uint8_t *p, int i, int u, int g, int h);
    /* The integer scale of a unit's first (half 0) or last 16 weights, with scales 1 of all, twice as int16. */
    __m256i (*scale)(const uint8_t *p, int unit, int half, int h);
    /* Minima 2: of the unit's first and last 16 weights; 3: of units 2 * unit and 2 * unit + 1. */
    __m256i (*pair)(const uint8_t *p, int unit, int h);
    __m256 (*d)(const uint8_t *p, int unit, int h); /* of the block of activations that begins at the unit */
    __m256 (*dmin)(const uint8_t *p, int unit, int h);
} q_y_format;

/* ------------------------------------------------------------------------------------------- taking bytes apart */

Q_Y_INLINE __m256i q_y_load(const uint8_t *p) { return _mm256_load_si256((const __m256i *)(const void *)p); }
Q_Y_INLINE __m256 q_y_halves(const uint8_t *p) {
    return _mm256_cvtph_ps(_mm_load_si128((const __m128i *)(const void *)p));
}
Q_Y_INLINE __m256i q_y_twice(__m256i v) { /* int16 in the lower half of lanes to both */
    return _mm256_or_si256(_mm256_and_si256(v, _mm256_set1_epi32(0xFFFF)), _mm256_slli_epi32(v, 16));
}
/* Eight bytes to lanes, twice as int16. */
Q_Y_INLINE __m256i q_y_bytes(const uint8_t *p) {
    const __m256i v = _mm256_cvtepu8_epi32(_mm_loadl_epi64((const __m128i *)(const void *)p));
    return _mm256_or_si256(v, _mm256_slli_epi32(v, 16));
}
Q_Y_INLINE __m256i q_y_signed(const uint8_t *p) {
    return q_y_twice(_mm256_cvtepi8_epi32(_mm_loadl_epi64((const __m128i *)(const void *)p)));
}
/* The low (of even `which`) or high nibbles. */
Q_Y_INLINE __m256i q_y_nibbles(__m256i v, int which) {
    return _mm256_and_si256(which & 1 ? _mm256_srli_epi16(v, 4) : v, _mm256_set1_epi8(15));
}
Q_Y_INLINE __m256i q_y_spread(const uint8_t *p) { return _mm256_set1_epi32((int)q_load32(p)); }

/* Codes as the byte product takes them. */
Q_Y_INLINE __m256i q_y_codes(const q_y_format *f, const uint8_t *p, int i, int u, int g, int h) {
    const __m256i codes = f->codes(p, i, u, g, h);
    return Q_Y_VNNI && !f->most ? _mm256_xor_si256(codes, _mm256_set1_epi8((char)0x80)) : codes;
}
Q_Y_INLINE int q_y_bias(const q_y_format *f) { return Q_Y_VNNI && !f->most ? 128 : f->bias; }

/* ------------------------------------------------------------------------------------------------------- columns */

/* Pairs of int16 multiplied, both products added to the lane. */
#if Q_Y_VNNI
Q_Y_INLINE __m256i q_y_pairs(__m256i sum, __m256i a, __m256i b) { return _mm256_dpwssd_avx_epi32(sum, a, b); }
#else
Q_Y_INLINE __m256i q_y_pairs(__m256i sum, __m256i a, __m256i b) {
    return _mm256_add_epi32(sum, _mm256_madd_epi16(a, b));
}
#endif

#if Q_Y_VNNI
/* What sums of a unit begin with: minus the bias times the sums of activations, of the first 16, the last, or both. */
Q_Y_INLINE __m256i q_y_open(const q_y_format *f, const uint8_t *sums, bool first, bool second) {
    const uint32_t less = (uint16_t)-q_y_bias(f);
    if (!q_y_bias(f)) return _mm256_setzero_si256();
    return _mm256_madd_epi16(q_y_spread(sums),
                             _mm256_set1_epi32((int)((first ? less : 0) | (second ? less << 16 : 0))));
}

/* Unit `span` * i + u of rows 8h .. 8h + 7 (H halves from h0 on) times C columns, its scales applied, added to
 * total. */
Q_Y_INLINE void q_y_unit(const q_y_format *f, int H, int h0, int C, const uint8_t *w, int i, int u,
                         const uint8_t *const *x, int64_t at, int in, __m256i total[2][Q_Y_COLUMNS]) {
    const int64_t sums = at + 4 + 4 * in, q = at + 4 + 4 * f->act + 32 * in;
    const int pieces = f->scales == 2 ? 2 : 1, count = 8 / pieces;
    Q_UNROLL for (int half = 0; half < pieces; half++) {
        __m256i sum[2][Q_Y_COLUMNS];
        Q_UNROLL for (int c = 0; c < C; c++)
            sum[0][c] = sum[1][c] = q_y_open(f, x[c] + sums, half == 0, half == pieces - 1);
        Q_UNROLL for (int g = half * count; g < half * count + count; g++) {
            __m256i v[2];
            Q_UNROLL for (int h = 0; h < H; h++) v[h] = q_y_codes(f, w, i, u, g, h0 + h);
            Q_UNROLL for (int c = 0; c < C; c++) {
                const __m256i a = q_y_spread(x[c] + q + 4 * g);
                Q_UNROLL for (int h = 0; h < H; h++) sum[h][c] = _mm256_dpbusd_avx_epi32(sum[h][c], v[h], a);
            }
        }
        Q_UNROLL for (int h = 0; h < H; h++) {
            const __m256i one = _mm256_set1_epi32(1), /* a scale is there twice as int16 */
                sc = f->scales ? _mm256_srai_epi32(f->scale(w, f->span * i + u, half, h0 + h), 16) : one;
            Q_UNROLL for (int c = 0; c < C; c++) total[h][c] =
                _mm256_add_epi32(total[h][c], f->scales ? _mm256_mullo_epi32(sum[h][c], sc) : sum[h][c]);
        }
    }
}
#else
/* What the bias takes away from a unit's sums, of the first 16, the last, or both. */
Q_Y_INLINE __m256i q_y_open(const q_y_format *f, const uint8_t *sums, int half, __m256i sc) {
    if (!f->bias) return _mm256_setzero_si256();
    if (!f->scales) return _mm256_madd_epi16(q_y_spread(sums), _mm256_set1_epi16((short)-f->bias));
    /* bias * sum in two equal parts, each of which fits 16 bits */
    const __m256i part = _mm256_set1_epi16((short)(-f->bias / 2 * (int16_t)q_load16(sums + 2 * half)));
    return _mm256_madd_epi16(part, sc);
}

/* Unit `span` * i + u of rows 8h .. 8h + 7 (H halves from h0 on) times C columns, its scales applied, added to
 * total. */
Q_Y_INLINE void q_y_unit(const q_y_format *f, int H, int h0, int C, const uint8_t *w, int i, int u,
                         const uint8_t *const *x, int64_t at, int in, __m256i total[2][Q_Y_COLUMNS]) {
    const int64_t sums = at + 4 + 4 * in, q = at + 4 + 4 * f->act + 32 * in;
    const int pieces = f->scales == 2 ? 2 : 1, most = f->most ? f->most : 1;
    Q_UNROLL for (int half = 0; half < pieces; half++) {
        __m256i sc[2], sum[2][Q_Y_COLUMNS];
        Q_UNROLL for (int h = 0; h < H; h++) sc[h] =
            f->scales ? f->scale(w, f->span * i + u, half, h0 + h) : _mm256_set1_epi16(1);
        Q_UNROLL for (int h = 0; h < H; h++) Q_UNROLL for (int c = 0; c < C; c++) total[h][c] =
            _mm256_add_epi32(total[h][c], q_y_open(f, x[c] + sums, half, sc[h]));
        const int first = half * 4, count = 8 / pieces;
        Q_UNROLL for (int g = 0; g < count; g++) {
            __m256i v[2];
            Q_UNROLL for (int h = 0; h < H; h++) {
                v[h] = q_y_codes(f, w, i, u, first + g, h0 + h);
                __asm__("" : "+x"(v[h]));
            }
            Q_UNROLL for (int c = 0; c < C; c++) {
                const __m256i a = q_y_spread(x[c] + q + 4 * (first + g));
                Q_UNROLL for (int h = 0; h < H; h++) {
                    const __m256i s = f->most ? _mm256_maddubs_epi16(v[h], a)
                                              : _mm256_maddubs_epi16(_mm256_abs_epi8(v[h]), _mm256_sign_epi8(a, v[h]));
                    sum[h][c] = g % most == 0 ? s : _mm256_add_epi16(sum[h][c], s);
                    __asm__("" : "+x"(sum[h][c]));
                    if (g % most == most - 1 || g == count - 1)
                        total[h][c] = _mm256_add_epi32(total[h][c], _mm256_madd_epi16(sum[h][c], sc[h]));
                }
            }
        }
    }
}
#endif

/* What minima take away from the sums of a block of activations, which begins at `unit`. */
Q_Y_INLINE void q_y_least(const q_y_format *f, int H, int h0, int C, const uint8_t *w, int unit,
                          const uint8_t *const *x, int64_t at, __m256 acc[2][Q_Y_COLUMNS]) {
    Q_UNROLL for (int h = 0; h < H; h++) {
        __m256i total[Q_Y_COLUMNS];
        Q_UNROLL for (int c = 0; c < C; c++) total[c] = _mm256_setzero_si256();
        if (f->minima == 3) Q_UNROLL for (int j = 0; j < 4; j++) {
                const __m256i mn = f->pair(w, j, h0 + h);
                Q_UNROLL for (int c = 0; c < C; c++) {
                    const __m128i sums = _mm_hadd_epi16(q_load128(x[c] + at + 4), q_load128(x[c] + at + 20));
                    const __m256i all = _mm256_broadcastsi128_si256(sums),
                                  by[4] = {_mm256_shuffle_epi32(all, 0x00), _mm256_shuffle_epi32(all, 0x55),
                                           _mm256_shuffle_epi32(all, 0xAA), _mm256_shuffle_epi32(all, 0xFF)};
                    total[c] = q_y_pairs(total[c], mn, by[j]);
                }
            }
        for (int u = 0; f->minima < 3 && u < f->act; u++) {
            const __m256i mn = f->minima == 2 ? f->pair(w, unit + u, h0 + h) : _mm256_set1_epi16(-1);
            Q_UNROLL for (int c = 0; c < C; c++) total[c] = q_y_pairs(total[c], mn, q_y_spread(x[c] + at + 4 + 4 * u));
        }
        const __m256 d = f->dmin(w, unit, h0 + h);
        Q_UNROLL for (int c = 0; c < C; c++) {
            const __m256 da = _mm256_set1_ps(q_bits_f32(q_load32(x[c] + at)));
            acc[h][c] = _mm256_fnmadd_ps(_mm256_mul_ps(d, da), _mm256_cvtepi32_ps(total[c]), acc[h][c]);
        }
    }
}

/* Ask for the bytes that lie Q_Y_AHEAD after those of n units, a few at a time: not all are wanted at once. */
Q_Y_INLINE void q_y_ask(const q_y_format *f, const uint8_t *w, int unit, int n) {
    const int lines = (f->bytes / f->units * n + 63) / 64;
    Q_UNROLL for (int line = 0; line < lines; line++)
        _mm_prefetch((const char *)(uintptr_t)w + Q_Y_AHEAD + 64 * (unit / n * lines + line), _MM_HINT_T0);
}
/* A span's at once, but of spans of four a unit's: as measured (bench/SPEED.md). */
Q_Y_INLINE void q_y_ask_in(const q_y_format *f, const uint8_t *w, int i, int u) {
    if (f->span == 4) q_y_ask(f, w, 4 * i + u, 1);
    else if (u == 0) q_y_ask(f, w, f->span * i, f->span);
}

/* A block of activations: unit `span` * i + u of the block at w, or, with act 8, all units from there on. */
Q_Y_INLINE void q_y_act(const q_y_format *f, int H, int h0, int C, const uint8_t *w, int i, int u,
                        const uint8_t *const *x, int64_t at, bool ahead, __m256 acc[2][Q_Y_COLUMNS]) {
    __m256i total[2][Q_Y_COLUMNS];
    Q_UNROLL for (int h = 0; h < H; h++) Q_UNROLL for (int c = 0; c < C; c++) total[h][c] = _mm256_setzero_si256();
    const int unit = f->span * i + u;
    if (f->act == 1) q_y_unit(f, H, h0, C, w, i, u, x, at, 0, total);
    for (int j = 0; f->act > 1 && j < f->act / f->span; j++) {
        Q_UNROLL for (int v = 0; v < f->span; v++) {
            if (ahead) q_y_ask_in(f, w, j, v);
            q_y_unit(f, H, h0, C, w, j, v, x, at, f->span * j + v, total);
        }
    }
    Q_UNROLL for (int h = 0; h < H; h++) {
        const __m256 d = f->d(w, unit, h0 + h);
        Q_UNROLL for (int c = 0; c < C; c++) {
            const __m256 da = _mm256_set1_ps(q_bits_f32(q_load32(x[c] + at)));
            acc[h][c] = _mm256_fmadd_ps(_mm256_mul_ps(d, da), _mm256_cvtepi32_ps(total[h][c]), acc[h][c]);
        }
    }
    if (f->minima) q_y_least(f, H, h0, C, w, unit, x, at, acc);
}

/* Four products of bytes added to each lane. */
Q_Y_INLINE __m256i q_y_four(__m256i sum, __m256i v, __m256i a) {
#if Q_Y_VNNI
    return _mm256_dpbusd_avx_epi32(sum, v, a);
#else
    const __m256i two = _mm256_maddubs_epi16(_mm256_abs_epi8(v), _mm256_sign_epi8(a, v));
    return _mm256_add_epi32(sum, _mm256_madd_epi16(two, _mm256_set1_epi16(1)));
#endif
}

/* What a column's sums begin with. */
Q_Y_INLINE int32_t q_y_whole_begin(const q_y_format *f, const uint8_t *x, int64_t k) {
    int32_t sum = 0;
    for (int64_t i = 0; q_y_bias(f) && i < k / 16; i++) sum += (int16_t)q_load16(x + 4 + 2 * i);
    return -q_y_bias(f) * sum;
}

/* A format with one scale to a row: rows 8h .. 8h + 7 (H halves from h0 on), signed codes, times C columns. The row's
 * sums of activations and then its codes follow the column's scale. */
Q_Y_INLINE void q_y_whole(const q_y_format *f, int H, int h0, int C, int64_t k, const uint8_t *panel,
                          const uint8_t *const *x, bool ahead, __m256 acc[2][Q_Y_COLUMNS]) {
    const int64_t q = 4 + k / 8;
    const uint8_t *w = panel + f->head;
    __m256i sum[2][Q_Y_COLUMNS][2]; /* of a lone column by turns, so that none waits for the one before it */
    Q_UNROLL for (int h = 0; h < H; h++) Q_UNROLL for (int c = 0; c < C; c++) {
        sum[h][c][0] = _mm256_set1_epi32(q_y_whole_begin(f, x[c], k));
        sum[h][c][1] = _mm256_setzero_si256();
    }
    for (int64_t i = 0; i < k; i += 32, w += f->bytes)
        Q_UNROLL for (int g = 0; g < 8; g++) {
            __m256i v[2];
            if (ahead) _mm_prefetch((const char *)(uintptr_t)w + Q_Y_AHEAD + 64 * g, _MM_HINT_T0);
            Q_UNROLL for (int h = 0; h < H; h++) v[h] = q_y_codes(f, w, 0, 0, g, h0 + h);
            Q_UNROLL for (int c = 0; c < C; c++) {
                const __m256i a = q_y_spread(x[c] + q + i + 4 * g);
                Q_UNROLL for (int h = 0; h < H; h++) sum[h][c][C == 1 ? g & 1 : 0] =
                    q_y_four(sum[h][c][C == 1 ? g & 1 : 0], v[h], a);
            }
        }
    Q_UNROLL for (int h = 0; h < H; h++) {
        const __m256 d = f->d(panel, 0, h0 + h);
        Q_UNROLL for (int c = 0; c < C; c++) {
            const __m256 da = _mm256_set1_ps(q_bits_f32(q_load32(x[c])));
            const __m256i all = C == 1 ? _mm256_add_epi32(sum[h][c][0], sum[h][c][1]) : sum[h][c][0];
            acc[h][c] = _mm256_fmadd_ps(_mm256_mul_ps(d, da), _mm256_cvtepi32_ps(all), _mm256_setzero_ps());
        }
    }
}

/* -------------------------------------------------------------------------------------------------------- products */

/* Hand in rows r .. r + 7 of column c; r may begin before the first row that is wanted. */
Q_Y_INLINE void q_y_put(const q_mm *m, int64_t r, int64_t c, __m256 v) {
    if (r >= m->rows || r <= -8) return;
    if (r >= 0) {
        q_put8(m, r, c, v);
        return;
    }
    float t[8];
    _mm256_storeu_ps(t, v);
    for (int64_t i = -r; i < 8 && r + i < m->rows; i++) q_put1(m, r + i, c, t[i]);
}

/* Rows 8 h0 .. of a panel, from front to back, times C columns from c on. */
Q_Y_INLINE void q_y_some(const q_y_format *f, int H, int h0, int C, const q_mm *m, const uint8_t *panel, int64_t r,
                         int64_t c, bool ahead) {
    const int64_t units = m->k / 32, act_bytes = 4 + 36 * f->act;
    const uint8_t *x[Q_Y_COLUMNS], *w = panel;
    __m256 acc[2][Q_Y_COLUMNS];
    Q_UNROLL for (int j = 0; j < C; j++) x[j] = m->x + Q_MIN(c + j, m->n - 1) * m->x_stride;
    Q_UNROLL for (int h = 0; h < H; h++) Q_UNROLL for (int j = 0; j < C; j++) acc[h][j] = _mm256_setzero_ps();
    if (f->whole) q_y_whole(f, H, h0, C, m->k, panel, x, ahead, acc);
    int64_t at = 0;
    for (int64_t b = 0; !f->whole && b < units; b += f->units, w += f->bytes) {
        if (f->act > 1) q_y_act(f, H, h0, C, w, 0, 0, x, at, ahead, acc), at += act_bytes;
        for (int i = 0; f->act == 1 && i < f->units / f->span; i++) {
            if (f->units < 8 && b + i >= units) break;
            Q_UNROLL for (int u = 0; u < f->span; u++, at += act_bytes) {
                if (ahead) q_y_ask_in(f, w, i, u);
                q_y_act(f, H, h0, C, w, i, u, x, at, ahead, acc);
            }
        }
    }
    Q_UNROLL for (int j = 0; j < C; j++) {
        if (c + j >= m->n) break;
        Q_UNROLL for (int h = 0; h < H; h++) q_y_put(m, r + 8 * (h0 + h), c + j, acc[h][j]);
    }
}

/* Columns of one panel whose first row is r. Both halves at once keep more byte products under way, but with integer
 * scales there are too many sums for sixteen registers. */
Q_Y_INLINE void q_y_panel(const q_y_format *f, const q_mm *m, const uint8_t *panel, int64_t r) {
    int64_t c = 0;
    for (; Q_Y_VNNI && !f->scales && m->n - c > 2; c += 4) q_y_some(f, 2, 0, 4, m, panel, r, c, c == 0);
    for (; m->n - c > 2; c += 4) {
        q_y_some(f, 1, 0, 4, m, panel, r, c, c == 0);
        q_y_some(f, 1, 1, 4, m, panel, r, c, false);
    }
    if (c < m->n) q_y_some(f, 2, 0, 2, m, panel, r, c, c == 0);
}

/* Few columns. */
Q_Y_INLINE void q_y_few(const q_y_format *f, const q_mm *m) {
    for (int64_t i = m->row / Q_PANEL; i * Q_PANEL < m->row + m->rows; i++) {
        const uint8_t *const panel = m->w + (uint64_t)i * m->row_bytes;
        const int64_t r = i * Q_PANEL - m->row;
        if (m->n == 1) q_y_some(f, 2, 0, 1, m, panel, r, 0, true);
        else q_y_panel(f, m, panel, r);
    }
}

#endif
