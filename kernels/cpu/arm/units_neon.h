/* units_neon.h: products with 8-bit activations of every format that consists of integer codes. A format says here how
 * its scales and 32 of its codes are read; the rest is shared. Layer L2.
 *
 * matmul_units_neon.c, matmul_units_dotprod.c and matmul_units_i8mm.c include it and differ in the instruction that
 * multiplies bytes: each defines Q_UNITS_TARGET, the attribute of functions that contain it, and q_eight_rows(); the
 * first two also q_dot16(), the third takes the second's products of few columns.
 *
 * Rows lie in the lanes of registers, so that op.h's one float multiply-add per block is one instruction for four of
 * them. One or two columns are multiplied with four rows as they lie in the file. For more, up to 32 rows are unpacked
 * into panels of eight, which the second cache is meant to hold, and four columns after four pass all of them. The
 * integers of both are exact and so the same: 256 codes of magnitude at most 128 with scales of at most 64 stay below
 * 2^28, and a whole row under one scale below what op.h says. */
#ifndef Q_UNITS_NEON_H
#define Q_UNITS_NEON_H

#include "neon.h"

#include "../../../libquant/formats/nf4_dq.c"
#include "../../../libquant/formats/nvfp4.c"

#define Q_UNITS_INLINE Q_PART Q_UNITS_TARGET

enum {
    Q_UNITS_R = 4,          /* rows as they lie in the file */
    Q_UNITS_FEW = 2,        /* columns at most, with these */
    Q_UNITS_P = 8,          /* rows of a panel */
    Q_UNITS_C = 4,          /* columns that pass it together */
    Q_UNITS_PANELS = 4,     /* unpacked before columns pass */
    Q_UNITS_CODES = 256     /* bytes of a panel's unit: 32 codes of eight rows */
};

/* Scales and minima of the groups of 16 of a super-block. */
typedef struct q_units_head {
    int16_t sc[16], mn[16];
} q_units_head;

/* What a format is. Where a number of units is 0 the whole row is one block. */
typedef struct q_units {
    int bytes, units; /* of a block; units of 32 weights */
    int act_units;    /* units in a block of activations: 8, 1 or 0; no more than `units` */
    int d, dmin;      /* bytes of the halves in a block; dmin -1 = no minima */
    int scales;       /* that differ within a unit: 0 (all are 1, and all minima -1), 1 or 2 */
    void (*head)(const uint8_t *p, q_units_head *h); /* of a block, where there are scales */
    float (*scale)(const uint8_t *row, int64_t u);   /* d of unit u of a row, where no half has it; else NULL */
    int scale_units;                                 /* units that share it */
    int8x16x2_t (*codes)(const uint8_t *p, int unit);
    float (*least)(const uint8_t *p); /* dmin of a block, where no half has it (dmin is then 0); else NULL */
} q_units;

Q_NEON_INLINE int64_t q_units_of(int units, int64_t k) { return units ? units : k / 32; }

/* A panel: for each block of activations its units, then d of eight rows, then, if any, dmin. A unit: the codes, eight
 * of one row and eight of the next, four such pairs of rows, the next eight codes; then for each of its `scales` those
 * of eight rows, in 32 bits; then so the minima, in 16. */
Q_NEON_INLINE int64_t q_units_minima(const q_units *f) { return f->dmin >= 0 ? f->scales : 0; }
Q_NEON_INLINE int64_t q_units_bytes_of(const q_units *f) {
    return Q_UNITS_CODES + Q_UNITS_P * (4 * f->scales + 2 * q_units_minima(f));
}
Q_NEON_INLINE int64_t q_units_piece(const q_units *f, int64_t k) {
    return q_units_of(f->act_units, k) * q_units_bytes_of(f) + 4 * Q_UNITS_P * (1 + (f->dmin >= 0));
}
Q_NEON_INLINE int64_t q_units_panel(const q_units *f, int64_t k) {
    return k / 32 / q_units_of(f->act_units, k) * q_units_piece(f, k);
}

/* sum[c][h], lane i: the exact sum of row 4h + i with C columns, an even number, over 16 * pairs codes: w lies as in a
 * panel, a[c] as in activations. */
Q_UNITS_INLINE void q_eight_rows(int C, int pairs, const int8_t *w, const int8_t *const *a, int32x4_t sum[][2]);

Q_NEON_INLINE int8x16x2_t q_units_pair(int8x16_t a, int8x16_t b) {
    const int8x16x2_t v = {{a, b}};
    return v;
}
Q_NEON_INLINE int8x16x2_t q_units_load(const void *p) {
    return q_units_pair(vld1q_s8((const int8_t *)p), vld1q_s8((const int8_t *)p + 16));
}

/* Eight codes, twice. */
Q_NEON_INLINE int8x16_t q_units_low_twice(int8x16_t v) {
    return vreinterpretq_s8_s64(vdupq_laneq_s64(vreinterpretq_s64_s8(v), 0));
}
Q_NEON_INLINE int8x16_t q_units_high_twice(int8x16_t v) {
    return vreinterpretq_s8_s64(vdupq_laneq_s64(vreinterpretq_s64_s8(v), 1));
}
/* The first eight codes of both, and the last. */
Q_NEON_INLINE int8x16_t q_units_lows(int8x16_t a, int8x16_t b) {
    return vreinterpretq_s8_s64(vzip1q_s64(vreinterpretq_s64_s8(a), vreinterpretq_s64_s8(b)));
}
Q_NEON_INLINE int8x16_t q_units_highs(int8x16_t a, int8x16_t b) {
    return vreinterpretq_s8_s64(vzip2q_s64(vreinterpretq_s64_s8(a), vreinterpretq_s64_s8(b)));
}

/* The half at byte `at` of each of four rows. */
Q_NEON_INLINE float32x4_t q_units_halves(const uint8_t *const *row, int64_t at) {
    uint16_t h[Q_UNITS_R];
    Q_UNROLL for (int r = 0; r < Q_UNITS_R; r++) h[r] = q_load16(row[r] + at);
    return vcvt_f32_f16(vreinterpret_f16_u16(vld1_u16(h)));
}

/* d of unit u of four rows, which lies in block i. */
Q_NEON_INLINE float32x4_t q_units_d(const q_units *f, const uint8_t *const *row, int64_t i, int64_t u) {
    if (!f->scale) return q_units_halves(row, i * f->bytes + f->d);
    float v[Q_UNITS_R];
    Q_UNROLL for (int r = 0; r < Q_UNITS_R; r++) v[r] = f->scale(row[r], u);
    return vld1q_f32(v);
}

/* dmin of block i of four rows. */
Q_NEON_INLINE float32x4_t q_units_dmin(const q_units *f, const uint8_t *const *row, int64_t i) {
    if (!f->least) return q_units_halves(row, i * f->bytes + f->dmin);
    float v[Q_UNITS_R];
    Q_UNROLL for (int r = 0; r < Q_UNITS_R; r++) v[r] = f->least(row[r] + i * f->bytes);
    return vld1q_f32(v);
}

/* Lane r = the sum of the lanes of v[r]. */
Q_NEON_INLINE int32x4_t q_units_across(const int32x4_t v[Q_UNITS_R]) {
    return vpaddq_s32(vpaddq_s32(v[0], v[1]), vpaddq_s32(v[2], v[3]));
}

/* acc = fma(d * da, sum, acc); or -(d * da). */
Q_NEON_INLINE float32x4_t q_units_fma(float32x4_t acc, float32x4_t d, float da, int32x4_t sum) {
    return vfmaq_f32(acc, vmulq_n_f32(d, da), vcvtq_f32_s32(sum));
}
Q_NEON_INLINE float32x4_t q_units_fms(float32x4_t acc, float32x4_t d, float da, int32x4_t sum) {
    return vfmsq_f32(acc, vmulq_n_f32(d, da), vcvtq_f32_s32(sum));
}

/* A block of activations is d, sums, codes. */
Q_NEON_INLINE float q_units_da(const uint8_t *x) { return q_bits_f32(q_load32(x)); }
Q_NEON_INLINE const int16_t *q_units_sums(const uint8_t *x) {
    return (const int16_t *)(const void *)(x + sizeof(float));
}

/* ------------------------------------------------------------------------------------------------------ few columns */

#ifndef Q_UNITS_MANY_ALONE
/* sums[i] + four products of bytes that add up in lane i; which four is the instruction's affair. */
Q_UNITS_INLINE int32x4_t q_dot16(int32x4_t sums, int8x16_t w, int8x16_t a);

/* Lane r = the minima of row r times the sums of a block of activations. */
Q_NEON_INLINE int32x4_t q_units_least(const q_units *f, const q_units_head *head, const uint8_t *x) {
    const int16_t *sum = q_units_sums(x);
    if (!f->scales) return vdupq_n_s32(-(sum[0] + sum[1]));
    int32x4_t t[Q_UNITS_R];
    Q_UNROLL for (int r = 0; r < Q_UNITS_R; r++) {
        t[r] = vdupq_n_s32(0);
        Q_UNROLL for (int i = 0; i < 16; i += 4) t[r] = vmlal_s16(t[r], vld1_s16(head[r].mn + i), vld1_s16(sum + i));
    }
    return q_units_across(t);
}

Q_UNITS_INLINE int32x4_t q_units_add(int32x4_t total, int8x16x2_t w, int8x16x2_t a, const int16_t *sc, int scales) {
    if (!scales) return q_dot16(q_dot16(total, w.val[0], a.val[0]), w.val[1], a.val[1]);
    int32x4_t first = q_dot16(vdupq_n_s32(0), w.val[0], a.val[0]);
    if (scales == 1) return vmlaq_n_s32(total, q_dot16(first, w.val[1], a.val[1]), sc[0]);
    total = vmlaq_n_s32(total, first, sc[0]);
    return vmlaq_n_s32(total, q_dot16(vdupq_n_s32(0), w.val[1], a.val[1]), sc[1]);
}

/* C columns times four rows. */
Q_UNITS_INLINE void q_units_rows(const q_units *f, int C, const uint8_t *const *row, const uint8_t *const *x, int64_t k,
                                 float32x4_t *y) {
    const int units = (int)q_units_of(f->units, k), act = (int)q_units_of(f->act_units, k);
    float32x4_t acc[Q_UNITS_FEW];
    Q_UNROLL for (int c = 0; c < C; c++) acc[c] = vdupq_n_f32(0);
    int64_t at = 0; /* the block of activations */
    for (int64_t i = 0; i < k / 32 / units; i++) {
        q_units_head head[Q_UNITS_R];
        if (f->scales) Q_UNROLL for (int r = 0; r < Q_UNITS_R; r++) f->head(row[r] + i * f->bytes, &head[r]);
        float32x4_t d = q_units_d(f, row, i, i * units), dmin = d;
        if (f->dmin >= 0) dmin = q_units_dmin(f, row, i);
        for (int first = 0; first < units; first += act, at += 4 + 36 * act) {
            int32x4_t total[Q_UNITS_FEW][Q_UNITS_R];
            Q_UNROLL for (int j = 0; j < C * Q_UNITS_R; j++) total[j / Q_UNITS_R][j % Q_UNITS_R] = vdupq_n_s32(0);
            for (int u = first; u < first + act; u++) {
                int8x16x2_t a[Q_UNITS_FEW];
                Q_UNROLL for (int c = 0; c < C; c++) a[c] = q_units_load(x[c] + at + 4 + 4 * act + 32 * (u - first));
                Q_UNROLL for (int r = 0; r < Q_UNITS_R; r++) {
                    const int8x16x2_t w = f->codes(row[r] + i * f->bytes, u);
                    const int16_t *sc = f->scales ? head[r].sc + 2 * u : NULL;
                    Q_UNROLL for (int c = 0; c < C; c++) total[c][r] = q_units_add(total[c][r], w, a[c], sc, f->scales);
                }
            }
            if (f->scale && first && first % f->scale_units == 0) d = q_units_d(f, row, i, i * units + first);
            Q_UNROLL for (int c = 0; c < C; c++) {
                const float da = q_units_da(x[c] + at);
                acc[c] = q_units_fma(acc[c], d, da, q_units_across(total[c]));
                if (f->dmin >= 0) acc[c] = q_units_fms(acc[c], dmin, da, q_units_least(f, head, x[c] + at));
            }
        }
    }
    Q_UNROLL for (int c = 0; c < C; c++) y[c] = acc[c];
}

/* All rows times C columns. */
Q_UNITS_INLINE void q_units_few(const q_units *f, int C, const q_mm *m) {
    const uint8_t *x[Q_UNITS_FEW];
    Q_UNROLL for (int c = 0; c < C; c++) x[c] = m->x + c * m->x_stride;
    for (int64_t r = 0; r < m->rows; r += Q_UNITS_R) {
        const uint8_t *row[Q_UNITS_R];
        float32x4_t y[Q_UNITS_FEW];
        for (int64_t i = 0; i < Q_UNITS_R; i++) /* rows that do not exist are the last one again */
            row[i] = m->w + (uint64_t)Q_MIN(r + i, m->rows - 1) * m->row_bytes;
        q_units_rows(f, C, row, x, m->k, y);
        Q_UNROLL for (int c = 0; c < C; c++) q_put4(m, r, c, y[c]);
    }
}
#endif

/* ----------------------------------------------------------------------------------------------------- many columns */

/* Of the unit that lies in `p`, block i of eight rows. */
Q_NEON_INLINE void q_units_unpack_unit(const q_units *f, const uint8_t *const *p, int unit, const q_units_head *head,
                                       uint8_t *to) {
    Q_UNROLL for (int r = 0; r < Q_UNITS_P; r += 2) {
        const int8x16x2_t a = f->codes(p[r], unit), b = f->codes(p[r + 1], unit);
        Q_UNROLL for (int h = 0; h < 2; h++) {
            int8_t *at = (int8_t *)to + Q_UNITS_CODES / 2 * h + 8 * r;
            vst1q_s8(at, q_units_lows(a.val[h], b.val[h]));
            vst1q_s8(at + Q_UNITS_CODES / 4, q_units_highs(a.val[h], b.val[h]));
        }
    }
    int32_t *sc = (int32_t *)(void *)(to + Q_UNITS_CODES);
    int16_t *mn = (int16_t *)(void *)(sc + Q_UNITS_P * f->scales);
    for (int g = 0; g < f->scales; g++)
        for (int r = 0; r < Q_UNITS_P; r++) {
            sc[Q_UNITS_P * g + r] = head[r].sc[2 * unit + g];
            if (f->dmin >= 0) mn[Q_UNITS_P * g + r] = head[r].mn[2 * unit + g];
        }
}

Q_NEON_INLINE void q_units_unpack(const q_units *f, const uint8_t *const *row, int64_t k, uint8_t *to) {
    const int units = (int)q_units_of(f->units, k), act = (int)q_units_of(f->act_units, k);
    for (int64_t i = 0; i < k / 32 / units; i++) {
        const uint8_t *p[Q_UNITS_P];
        q_units_head head[Q_UNITS_P];
        for (int r = 0; r < Q_UNITS_P; r++) p[r] = row[r] + i * f->bytes;
        for (int r = 0; f->scales && r < Q_UNITS_P; r++) f->head(p[r], &head[r]);
        float32x4_t d[2] = {q_units_d(f, row, i, i * units), q_units_d(f, row + 4, i, i * units)};
        for (int first = 0; first < units; first += act) {
            for (int u = first; u < first + act; u++, to += q_units_bytes_of(f)) q_units_unpack_unit(f, p, u, head, to);
            if (f->scale && first && first % f->scale_units == 0)
                for (int h = 0; h < 2; h++) d[h] = q_units_d(f, row + 4 * h, i, i * units + first);
            float *ends = (float *)(void *)to;
            vst1q_f32(ends, d[0]);
            vst1q_f32(ends + 4, d[1]);
            to += 4 * Q_UNITS_P;
            if (f->dmin < 0) continue;
            vst1q_f32(ends + 8, q_units_dmin(f, row, i));
            vst1q_f32(ends + 12, q_units_dmin(f, row + 4, i));
            to += 4 * Q_UNITS_P;
        }
    }
}

/* least[h], lane i: the minima of row 4h + i times the sums of a block of activations; its first unit in `panel`. */
Q_NEON_INLINE void q_units_least8(const q_units *f, int units, const uint8_t *panel, const int16_t *sum,
                                  int32x4_t least[2]) {
    if (!f->scales) {
        least[0] = least[1] = vdupq_n_s32(-(sum[0] + sum[1]));
        return;
    }
    least[0] = least[1] = vdupq_n_s32(0);
    for (int u = 0; u < units; u++) {
        const uint8_t *p = panel + u * q_units_bytes_of(f) + Q_UNITS_CODES + 4 * Q_UNITS_P * f->scales;
        const int16_t *mn = (const int16_t *)(const void *)p;
        Q_UNROLL for (int g = 0; g < f->scales; g++) {
            const int16_t s = (int16_t)(f->scales == 1 ? sum[2 * u] + sum[2 * u + 1] : sum[2 * u + g]);
            Q_UNROLL for (int h = 0; h < 2; h++)
                least[h] = vmlal_n_s16(least[h], vld1_s16(mn + Q_UNITS_P * g + 4 * h), s);
        }
    }
}

/* C columns times a panel. */
Q_UNITS_INLINE void q_units_columns(const q_units *f, int C, const uint8_t *panel, const uint8_t *const *x, int64_t k,
                                    float32x4_t y[][2]) {
    const int act = (int)q_units_of(f->act_units, k), act_bytes = 4 + 36 * act;
    const int parts = f->scales == 2 ? 2 : 1;
    float32x4_t acc[Q_UNITS_C][2];
    Q_UNROLL for (int c = 0; c < C; c++) acc[c][0] = acc[c][1] = vdupq_n_f32(0);
    for (int64_t i = 0, at = 0; i < k / 32 / act; i++, at += act_bytes, panel += q_units_piece(f, k)) {
        int32x4_t total[Q_UNITS_C][2];
        Q_UNROLL for (int c = 0; c < C; c++) total[c][0] = total[c][1] = vdupq_n_s32(0);
        for (int u = 0; u < act; u++) {
            const uint8_t *unit = panel + u * q_units_bytes_of(f);
            const int32_t *sc = (const int32_t *)(const void *)(unit + Q_UNITS_CODES);
            Q_UNROLL for (int g = 0; g < parts; g++) {
                const int8_t *a[Q_UNITS_C];
                int32x4_t sum[Q_UNITS_C][2];
                Q_UNROLL for (int c = 0; c < C; c++)
                    a[c] = (const int8_t *)x[c] + at + 4 + 4 * act + 32 * u + 16 * g;
                q_eight_rows(C, 2 / parts, (const int8_t *)unit + Q_UNITS_CODES / 2 * g, a, sum);
                Q_UNROLL for (int j = 0; j < 2 * C; j++) {
                    int32x4_t *to = &total[j / 2][j % 2];
                    if (f->scales) *to = vmlaq_s32(*to, sum[j / 2][j % 2], vld1q_s32(sc + Q_UNITS_P * g + j % 2 * 4));
                    else *to = vaddq_s32(*to, sum[j / 2][j % 2]);
                }
            }
        }
        const float *ends = (const float *)(const void *)(panel + act * q_units_bytes_of(f));
        Q_UNROLL for (int c = 0; c < C; c++) {
            const float da = q_units_da(x[c] + at);
            int32x4_t least[2];
            if (f->dmin >= 0) q_units_least8(f, act, panel, q_units_sums(x[c] + at), least);
            Q_UNROLL for (int h = 0; h < 2; h++) {
                acc[c][h] = q_units_fma(acc[c][h], vld1q_f32(ends + 4 * h), da, total[c][h]);
                if (f->dmin >= 0) acc[c][h] = q_units_fms(acc[c][h], vld1q_f32(ends + 8 + 4 * h), da, least[h]);
            }
        }
    }
    Q_UNROLL for (int j = 0; j < 2 * C; j++) y[j / 2][j % 2] = acc[j / 2][j % 2];
}

Q_UNITS_INLINE void q_units_many(const q_units *f, const q_mm *m) {
    uint8_t *const panels = (uint8_t *)m->scratch;
    const int64_t bytes = q_units_panel(f, m->k);
    for (int64_t r0 = 0; r0 < m->rows; r0 += Q_UNITS_PANELS * Q_UNITS_P) {
        const int64_t end = Q_MIN(m->rows, r0 + Q_UNITS_PANELS * Q_UNITS_P);
        for (int64_t r = r0; r < end; r += Q_UNITS_P) {
            const uint8_t *row[Q_UNITS_P];
            for (int64_t i = 0; i < Q_UNITS_P; i++) row[i] = m->w + (uint64_t)Q_MIN(r + i, m->rows - 1) * m->row_bytes;
            q_units_unpack(f, row, m->k, panels + (r - r0) / Q_UNITS_P * bytes);
        }
        for (int64_t c = 0; c < m->n; c += Q_UNITS_C) {
            const uint8_t *x[Q_UNITS_C];
            for (int64_t j = 0; j < Q_UNITS_C; j++) x[j] = m->x + Q_MIN(c + j, m->n - 1) * m->x_stride;
            for (int64_t r = r0; r < end; r += Q_UNITS_P) {
                float32x4_t y[Q_UNITS_C][2];
                q_units_columns(f, Q_UNITS_C, panels + (r - r0) / Q_UNITS_P * bytes, x, m->k, y);
                for (int64_t j = 0; j < Q_UNITS_C && c + j < m->n; j++) {
                    q_put4(m, r, c + j, y[j][0]);
                    if (m->rows - r > 4) q_put4(m, r + 4, c + j, y[j][1]);
                }
            }
        }
    }
}

/* Scratch; a plan for n columns also runs with fewer, which take none. */
Q_NEON_INLINE uint64_t q_units_scratch(const q_units *f, int64_t k, int64_t n) {
    return n <= Q_UNITS_FEW ? 0 : (uint64_t)(Q_UNITS_PANELS * q_units_panel(f, k));
}

/* ------------------------------------------------------------------------------------------ what formats consist of */

Q_NEON_INLINE uint8x16_t q_units_bytes(const uint8_t *p) { return vld1q_u8(p); }
/* Bits `shift` and up of each byte, cut by mask. */
Q_NEON_INLINE uint8x16_t q_units_cut(const uint8_t *p, int shift, uint8_t mask) {
    return vandq_u8(vshlq_u8(vld1q_u8(p), vdupq_n_s8((int8_t)-shift)), vdupq_n_u8(mask));
}
Q_NEON_INLINE int8x16_t q_units_signed(uint8x16_t v, uint8_t offset) {
    return vreinterpretq_s8_u8(vsubq_u8(v, vdupq_n_u8(offset)));
}

/* 32 nibbles in order, the low ones of 16 bytes, then the high ones, less an offset. */
Q_NEON_INLINE int8x16x2_t q_units_nibbles(const uint8_t *p, uint8_t offset) {
    const uint8x16_t v = vld1q_u8(p);
    return q_units_pair(q_units_signed(vandq_u8(v, vdupq_n_u8(15)), offset), q_units_signed(vshrq_n_u8(v, 4), offset));
}

/* The same with bit i of `high` as the fifth bit of code i. */
Q_NEON_INLINE int8x16x2_t q_units_fives(const uint8_t *p, uint32_t high, uint8_t offset) {
    static const uint8_t bit[16] = {1, 2, 4, 8, 16, 32, 64, 128, 1, 2, 4, 8, 16, 32, 64, 128};
    const uint8x16_t v = vld1q_u8(p), mask = vld1q_u8(bit), five = vdupq_n_u8(16);
    const uint8x16_t a = vcombine_u8(vdup_n_u8((uint8_t)high), vdup_n_u8((uint8_t)(high >> 8)));
    const uint8x16_t b = vcombine_u8(vdup_n_u8((uint8_t)(high >> 16)), vdup_n_u8((uint8_t)(high >> 24)));
    const uint8x16_t lo = vorrq_u8(vandq_u8(v, vdupq_n_u8(15)), vandq_u8(vtstq_u8(a, mask), five));
    const uint8x16_t hi = vorrq_u8(vshrq_n_u8(v, 4), vandq_u8(vtstq_u8(b, mask), five));
    return q_units_pair(q_units_signed(lo, offset), q_units_signed(hi, offset));
}

/* Codes of the codebook of IQ4_NL and IQ4_XS. */
Q_NEON_INLINE int8x16x2_t q_units_looked_up(const uint8_t *p) {
    static const int8_t book[16] = {-127, -104, -83, -65, -49, -35, -22, -10, 1, 13, 25, 38, 53, 69, 89, 113};
    const int8x16_t t = vld1q_s8(book);
    const uint8x16_t v = vld1q_u8(p);
    return q_units_pair(vqtbl1q_s8(t, vandq_u8(v, vdupq_n_u8(15))), vqtbl1q_s8(t, vshrq_n_u8(v, 4)));
}

/* Eight bytes as 16 numbers, each twice. */
Q_NEON_INLINE void q_units_twice(uint64_t bytes, int16_t *to) {
    const uint16x8_t v = vmovl_u8(vcreate_u8(bytes));
    vst1q_s16(to, vreinterpretq_s16_u16(vzip1q_u16(v, v)));
    vst1q_s16(to + 8, vreinterpretq_s16_u16(vzip2q_u16(v, v)));
}

/* The scales and minima in 12 bytes of Q4_K and Q5_K: six bits each, the last four of both in pieces. */
Q_NEON_INLINE void q_units_head6(const uint8_t *p, q_units_head *h) {
    const uint32_t a = q_load32(p + 4), b = q_load32(p + 8), c = q_load32(p + 12);
    q_units_twice((a & 0x3F3F3F3Fu) | (uint64_t)((c & 0x0F0F0F0Fu) | (a >> 2 & 0x30303030u)) << 32, h->sc);
    q_units_twice((b & 0x3F3F3F3Fu) | (uint64_t)((c >> 4 & 0x0F0F0F0Fu) | (b >> 2 & 0x30303030u)) << 32, h->mn);
}

/* 16 signed bytes as scales. */
Q_NEON_INLINE void q_units_scales8(int8x16_t v, q_units_head *h) {
    vst1q_s16(h->sc, vmovl_s8(vget_low_s8(v)));
    vst1q_s16(h->sc + 8, vmovl_high_s8(v));
}

Q_NEON_INLINE int8x16x2_t q8_0_codes(const uint8_t *p, int unit) {
    Q_UNUSED(unit);
    return q_units_load(p + 2);
}
Q_NEON_INLINE int8x16x2_t q4_0_codes(const uint8_t *p, int unit) {
    Q_UNUSED(unit);
    return q_units_nibbles(p + 2, 8);
}
Q_NEON_INLINE int8x16x2_t q4_1_codes(const uint8_t *p, int unit) {
    Q_UNUSED(unit);
    return q_units_nibbles(p + 4, 0);
}
Q_NEON_INLINE int8x16x2_t q5_0_codes(const uint8_t *p, int unit) {
    Q_UNUSED(unit);
    return q_units_fives(p + 6, q_load32(p + 2), 16);
}
Q_NEON_INLINE int8x16x2_t q5_1_codes(const uint8_t *p, int unit) {
    Q_UNUSED(unit);
    return q_units_fives(p + 8, q_load32(p + 4), 0);
}
Q_NEON_INLINE int8x16x2_t iq4_nl_codes(const uint8_t *p, int unit) {
    Q_UNUSED(unit);
    return q_units_looked_up(p + 2);
}

Q_NEON_INLINE void iq4_xs_head(const uint8_t *p, q_units_head *h) {
    const uint32_t high = q_load16(p + 2);
    for (uint32_t u = 0; u < 8; u++) {
        const uint32_t low = (uint32_t)p[4 + u / 2] >> (4 * (u & 1)) & 15u;
        h->sc[2 * u] = h->sc[2 * u + 1] = (int16_t)((int)(low | (high >> (2 * u) & 3u) << 4) - 32);
    }
}
Q_NEON_INLINE int8x16x2_t iq4_xs_codes(const uint8_t *p, int unit) { return q_units_looked_up(p + 8 + 16 * unit); }

Q_NEON_INLINE void q2_k_head(const uint8_t *p, q_units_head *h) {
    const int8x16x2_t v = q_units_nibbles(p, 0);
    q_units_scales8(v.val[0], h);
    vst1q_s16(h->mn, vmovl_s8(vget_low_s8(v.val[1])));
    vst1q_s16(h->mn + 8, vmovl_high_s8(v.val[1]));
}
Q_NEON_INLINE int8x16x2_t q2_k_codes(const uint8_t *p, int unit) {
    const uint8_t *at = p + 16 + 32 * (unit / 4);
    const int shift = 2 * (unit & 3);
    return q_units_pair(vreinterpretq_s8_u8(q_units_cut(at, shift, 3)),
                        vreinterpretq_s8_u8(q_units_cut(at + 16, shift, 3)));
}

/* Low nibbles of eight bytes, low halves first; high pairs of four bytes, from their low bits up; less 32. */
Q_NEON_INLINE void q3_k_head(const uint8_t *p, q_units_head *h) {
    const uint64_t low = q_load64(p + 96);
    const uint32_t high = q_load32(p + 104);
    const uint64_t a = (low & 0x0F0F0F0F0F0F0F0Fu) |
                       ((uint64_t)(high >> 2 & 0x03030303u) << 32 | (high & 0x03030303u)) << 4;
    const uint64_t b = (low >> 4 & 0x0F0F0F0F0F0F0F0Fu) |
                       ((uint64_t)(high >> 6 & 0x03030303u) << 32 | (high >> 4 & 0x03030303u)) << 4;
    q_units_scales8(q_units_signed(vcombine_u8(vcreate_u8(a), vcreate_u8(b)), 32), h);
}
Q_NEON_INLINE int8x16x2_t q3_k_codes(const uint8_t *p, int unit) {
    const uint8_t *at = p + 32 + 32 * (unit / 4);
    const int shift = 2 * (unit & 3);
    const uint8x16_t a = q_units_cut(p, unit, 1), b = q_units_cut(p + 16, unit, 1);
    return q_units_pair(q_units_signed(vorrq_u8(q_units_cut(at, shift, 3), vshlq_n_u8(a, 2)), 4),
                        q_units_signed(vorrq_u8(q_units_cut(at + 16, shift, 3), vshlq_n_u8(b, 2)), 4));
}

Q_NEON_INLINE int8x16x2_t q4_k_codes(const uint8_t *p, int unit) {
    const uint8_t *at = p + 16 + 32 * (unit / 2);
    const int shift = 4 * (unit & 1);
    return q_units_pair(vreinterpretq_s8_u8(q_units_cut(at, shift, 15)),
                        vreinterpretq_s8_u8(q_units_cut(at + 16, shift, 15)));
}
Q_NEON_INLINE int8x16x2_t q5_k_codes(const uint8_t *p, int unit) {
    const uint8_t *at = p + 48 + 32 * (unit / 2);
    const int shift = 4 * (unit & 1);
    const uint8x16_t a = q_units_cut(p + 16, unit, 1), b = q_units_cut(p + 32, unit, 1);
    return q_units_pair(vreinterpretq_s8_u8(vorrq_u8(q_units_cut(at, shift, 15), vshlq_n_u8(a, 4))),
                        vreinterpretq_s8_u8(vorrq_u8(q_units_cut(at + 16, shift, 15), vshlq_n_u8(b, 4))));
}

Q_NEON_INLINE void q6_k_head(const uint8_t *p, q_units_head *h) {
    q_units_scales8(vld1q_s8((const int8_t *)p + 192), h);
}
Q_NEON_INLINE int8x16x2_t q6_k_codes(const uint8_t *p, int unit) {
    const uint8_t *low = p + 64 * (unit / 4) + 32 * (unit & 1), *high = p + 128 + 32 * (unit / 4);
    const int shift = 2 * (unit & 2), pair = 2 * (unit & 3);
    const uint8x16_t a = vshlq_n_u8(q_units_cut(high, pair, 3), 4), b = vshlq_n_u8(q_units_cut(high + 16, pair, 3), 4);
    return q_units_pair(q_units_signed(vorrq_u8(q_units_cut(low, shift, 15), a), 32),
                        q_units_signed(vorrq_u8(q_units_cut(low + 16, shift, 15), b), 32));
}

/* Ternary codes: two bits each, or digits to the base 3 (tq1_0.c). */
Q_NEON_INLINE int8x16x2_t tq2_0_codes(const uint8_t *p, int unit) {
    const uint8_t *at = p + 32 * (unit / 4);
    const int shift = 2 * (unit & 3);
    return q_units_pair(q_units_signed(q_units_cut(at, shift, 3), 1),
                        q_units_signed(q_units_cut(at + 16, shift, 3), 1));
}
Q_NEON_INLINE int8x16_t tq1_0_digits(uint8x16_t bytes, uint8x16_t by) {
    const uint8x16_t v = vmulq_u8(bytes, by), three = vdupq_n_u8(3);
    const uint8x8_t low = vshrn_n_u16(vmull_u8(vget_low_u8(v), vget_low_u8(three)), 8);
    return q_units_signed(vcombine_u8(low, vshrn_n_u16(vmull_high_u8(v, three), 8)), 1);
}
Q_NEON_INLINE int8x16x2_t tq1_0_codes(const uint8_t *p, int unit) {
    static const uint8_t power[6] = {1, 3, 9, 27, 81, 243},
                         last[16] = {1, 1, 1, 1, 3, 3, 3, 3, 9, 9, 9, 9, 27, 27, 27, 27};
    const bool few = unit >= 5;
    const int n = few ? 2 * (unit - 5) : unit;
    uint8x16_t a = vld1q_u8(p + (few ? 32 : 0)), b = vld1q_u8(p + (few ? 32 : 16));
    uint8x16_t by = vdupq_n_u8(power[few ? n + 1 : n]);
    if (unit == 7) b = vreinterpretq_u8_u32(vdupq_n_u32(q_load32(p + 48))), by = vld1q_u8(last);
    return q_units_pair(tq1_0_digits(a, vdupq_n_u8(power[n])), tq1_0_digits(b, by));
}

/* What model cards name: INT8 per row, 4-bit and 8-bit groups with zero points, NF4, 4-bit floats. */
Q_NEON_INLINE int8x16x2_t i8_row_codes(const uint8_t *p, int unit) { return q_units_load(p + 4 + 32 * unit); }
Q_NEON_INLINE float i8_row_scale(const uint8_t *row, int64_t u) {
    Q_UNUSED(u);
    return q_bits_f32(q_load32(row));
}

Q_NEON_INLINE int8x16x2_t i4_codes(const uint8_t *p, int unit) { return q_units_nibbles(p + 4 + 16 * unit, p[2] & 31); }

Q_NEON_INLINE int8x16x2_t i8_codes(const uint8_t *p, int unit) { return q_units_load(p + 4 + 32 * unit); }
Q_NEON_INLINE float i8_least(const uint8_t *p) { return q_half_to_f32(q_load16(p)) * (float)(128 - p[2]); }

/* 32 nibbles, of each byte the high one first, by a table. */
Q_NEON_INLINE int8x16x2_t high_first(const int8_t book[16], const uint8_t *p) {
    const int8x16_t t = vld1q_s8(book);
    const uint8x16_t v = vld1q_u8(p), low = vandq_u8(v, vdupq_n_u8(15)), high = vshrq_n_u8(v, 4);
    return q_units_pair(vqtbl1q_s8(t, vzip1q_u8(high, low)), vqtbl1q_s8(t, vzip2q_u8(high, low)));
}
/* The integers of nf4_levels.h. */
Q_NEON_INLINE int8x16x2_t nf4_looked_up(const uint8_t *p) {
    static const int8_t book[16] = {-124, -86, -65, -49, -35, -23, -11, 0, 10, 20, 31, 42, 55, 70, 90, 124};
    return high_first(book, p);
}
Q_NEON_INLINE int8x16x2_t nf4_codes(const uint8_t *p, int unit) { return nf4_looked_up(p + 4 + 16 * unit); }
Q_NEON_INLINE float nf4_scale(const uint8_t *row, int64_t u) {
    return q_bits_f32(q_load32(row + u / 2 * 36)) * q_float(NF4_SCALE);
}
/* Its rows begin with four bytes that belong to no block. */
Q_NEON_INLINE int8x16x2_t nf4_dq_codes(const uint8_t *p, int unit) { return nf4_looked_up(p + 4 + 8 + 16 * unit); }
Q_NEON_INLINE float nf4_dq_scale(const uint8_t *row, int64_t u) {
    return nf4_dq_absmax(row, (int)(u / 8), (int)(u % 8 / 2)) * q_float(NF4_SCALE);
}

Q_NEON_INLINE int8x16x2_t fp4_codes(const uint8_t *p, int unit) {
    static const int8_t book[16] = {0, 1, 80, 120, 40, 60, 20, 30, 0, -1, -80, -120, -40, -60, -20, -30};
    return high_first(book, p + 4 + 16 * unit);
}
Q_NEON_INLINE float fp4_scale(const uint8_t *row, int64_t u) {
    return q_bits_f32(q_load32(row + u / 2 * 36)) * 0.008333333333333333f;
}

/* The integers of e2m1.h by 16 codes. */
Q_NEON_INLINE int8x16_t e2m1_of(uint8x16_t codes) {
    static const int8_t book[16] = {0, 1, 2, 3, 4, 6, 8, 12, 0, -1, -2, -3, -4, -6, -8, -12};
    return vqtbl1q_s8(vld1q_s8(book), codes);
}
Q_NEON_INLINE int8x16x2_t mxfp4_codes(const uint8_t *p, int unit) {
    const uint8x16_t v = vld1q_u8(p + 1 + 0 * unit);
    return q_units_pair(e2m1_of(vandq_u8(v, vdupq_n_u8(15))), e2m1_of(vshrq_n_u8(v, 4)));
}
Q_NEON_INLINE float mxfp4_scale(const uint8_t *row, int64_t u) {
    const uint32_t e = row[17 * u];
    return q_bits_f32(e < 2 ? 2097152u << e : (e - 1) << 23);
}
/* of each eight bytes the low nibbles, then the high ones */
Q_NEON_INLINE int8x16x2_t nvfp4_codes(const uint8_t *p, int unit) {
    const uint8x16_t v = vld1q_u8(p + 4 + 16 * unit), low = vandq_u8(v, vdupq_n_u8(15)), high = vshrq_n_u8(v, 4);
    return q_units_pair(e2m1_of(vcombine_u8(vget_low_u8(low), vget_low_u8(high))),
                        e2m1_of(vcombine_u8(vget_high_u8(low), vget_high_u8(high))));
}
Q_NEON_INLINE float nvfp4_scale(const uint8_t *row, int64_t u) {
    const uint8_t *p = row + u / 2 * 36 + 2 * (u % 2);
    int sc[2];
    return nvfp4_scales(p[0], p[1], sc);
}
Q_NEON_INLINE void nvfp4_head(const uint8_t *p, q_units_head *h) {
    for (int u = 0; u < 2; u++) {
        int sc[2];
        (void)nvfp4_scales(p[2 * u], p[2 * u + 1], sc);
        h->sc[2 * u] = (int16_t)sc[0];
        h->sc[2 * u + 1] = (int16_t)sc[1];
    }
}

/* DO(isa, name, activations, what its record holds). */
#define Q_UNITS_FORMATS(DO, isa)                                                      \
    DO(isa, q8_0, a8_32, 34, 1, 1, 0, -1, 0, NULL, NULL, 0, q8_0_codes, NULL)               \
    DO(isa, q4_0, a8_32, 18, 1, 1, 0, -1, 0, NULL, NULL, 0, q4_0_codes, NULL)               \
    DO(isa, q4_1, a8_32, 20, 1, 1, 0, 2, 0, NULL, NULL, 0, q4_1_codes, NULL)                \
    DO(isa, q5_0, a8_32, 22, 1, 1, 0, -1, 0, NULL, NULL, 0, q5_0_codes, NULL)               \
    DO(isa, q5_1, a8_32, 24, 1, 1, 0, 2, 0, NULL, NULL, 0, q5_1_codes, NULL)                \
    DO(isa, iq4_nl, a8_32, 18, 1, 1, 0, -1, 0, NULL, NULL, 0, iq4_nl_codes, NULL)           \
    DO(isa, iq4_xs, a8_256, 136, 8, 8, 0, -1, 1, iq4_xs_head, NULL, 0, iq4_xs_codes, NULL)  \
    DO(isa, q2_k, a8_256, 84, 8, 8, 80, 82, 2, q2_k_head, NULL, 0, q2_k_codes, NULL)        \
    DO(isa, q3_k, a8_256, 110, 8, 8, 108, -1, 2, q3_k_head, NULL, 0, q3_k_codes, NULL)      \
    DO(isa, q4_k, a8_256, 144, 8, 8, 0, 2, 1, q_units_head6, NULL, 0, q4_k_codes, NULL)     \
    DO(isa, q5_k, a8_256, 176, 8, 8, 0, 2, 1, q_units_head6, NULL, 0, q5_k_codes, NULL)     \
    DO(isa, q6_k, a8_32, 210, 8, 1, 208, -1, 2, q6_k_head, NULL, 0, q6_k_codes, NULL)       \
    DO(isa, i8_row, a8_row, 0, 0, 0, 0, -1, 0, NULL, i8_row_scale, 1, i8_row_codes, NULL)   \
    DO(isa, i4_g32, a8_32, 20, 1, 1, 0, -1, 0, NULL, NULL, 0, i4_codes, NULL)               \
    DO(isa, i4_g64, a8_32, 36, 2, 1, 0, -1, 0, NULL, NULL, 0, i4_codes, NULL)               \
    DO(isa, i4_g128, a8_32, 68, 4, 1, 0, -1, 0, NULL, NULL, 0, i4_codes, NULL)              \
    DO(isa, i4_row, a8_32, 0, 0, 1, 0, -1, 0, NULL, NULL, 0, i4_codes, NULL)                \
    DO(isa, nf4, a8_32, 36, 2, 1, 0, -1, 0, NULL, nf4_scale, 2, nf4_codes, NULL)            \
    DO(isa, nf4_dq, a8_32, 136, 8, 1, 0, -1, 0, NULL, nf4_dq_scale, 2, nf4_dq_codes, NULL)  \
    DO(isa, fp4, a8_32, 36, 2, 1, 0, -1, 0, NULL, fp4_scale, 2, fp4_codes, NULL)            \
    DO(isa, mxfp4, a8_32, 17, 1, 1, 0, -1, 0, NULL, mxfp4_scale, 1, mxfp4_codes, NULL)      \
    DO(isa, nvfp4, a8_32, 36, 2, 1, 0, -1, 2, nvfp4_head, nvfp4_scale, 1, nvfp4_codes, NULL) \
    DO(isa, tq1_0, a8_256, 54, 8, 8, 52, -1, 0, NULL, NULL, 0, tq1_0_codes, NULL)           \
    DO(isa, tq2_0, a8_256, 66, 8, 8, 64, -1, 0, NULL, NULL, 0, tq2_0_codes, NULL)           \
    DO(isa, i8_g32, a8_32, 36, 1, 1, 0, 0, 0, NULL, NULL, 0, i8_codes, i8_least)      \
    DO(isa, i8_g64, a8_32, 68, 2, 1, 0, 0, 0, NULL, NULL, 0, i8_codes, i8_least)      \
    DO(isa, i8_g128, a8_32, 132, 4, 1, 0, 0, 0, NULL, NULL, 0, i8_codes, i8_least)

#define Q_UNITS_RECORD(isa, name, act, ...) static const q_units name##_##isa##_units = {__VA_ARGS__};

/* PRODUCT's two functions of each format, for kernels that end in `isa`. */
#define Q_UNITS_ROW(isa, name, act, ...)                                            \
    uint64_t q_matmul_##name##_##act##_8x4__##isa##_scratch(int64_t k, int64_t n) { \
        return q_units_scratch(&name##_##isa##_units, k, n);                        \
    }                                                                               \
    Q_UNITS_TARGET void q_matmul_##name##_##act##_8x4__##isa(const q_mm *m) {       \
        if (m->n == 1) q_units_few(&name##_##isa##_units, 1, m);                    \
        else if (m->n == 2) q_units_few(&name##_##isa##_units, 2, m);               \
        else q_units_many(&name##_##isa##_units, m);                                \
    }

#define Q_UNITS_ROWS(isa)                \
    Q_UNITS_FORMATS(Q_UNITS_RECORD, isa) \
    Q_UNITS_FORMATS(Q_UNITS_ROW, isa)

#endif
