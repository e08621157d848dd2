/* units_neon.h: products with 8-bit activations of every format that consists of integer codes. A format says here how
 * its scales and 32 of its codes are read; the rest is shared. Layer L2.
 *
 * matmul_units_neon.c and matmul_units_dotprod.c include it and differ in the instruction that multiplies bytes: each
 * defines Q_UNITS_TARGET, the attribute of functions that contain it, and q_dot16().
 *
 * Four rows at a time, in the four lanes of a register, so that op.h's one float multiply-add per block is one vector
 * instruction. A column is multiplied with the rows as they lie in the file; from three columns on, four rows are
 * unpacked once into a panel, and up to four columns pass it together. The integers of both are exact and so the same:
 * 256 codes of magnitude at most 128 with scales of at most 64 stay below 2^28. */
#ifndef Q_UNITS_NEON_H
#define Q_UNITS_NEON_H

#include "neon.h"

#define Q_UNITS_INLINE static inline __attribute__((always_inline)) Q_UNITS_TARGET

/* sums[i] + four products of bytes that add up in lane i; which four is the instruction's affair. */
Q_UNITS_INLINE int32x4_t q_dot16(int32x4_t sums, int8x16_t w, int8x16_t a);

enum { Q_UNITS_R = 4, Q_UNITS_C = 4, Q_UNITS_PANEL_FROM = 3 /* columns from which a panel pays */ };

/* Scales and minima of the groups of 16 of a super-block. */
typedef struct q_units_head {
    int16_t sc[16], mn[16];
} q_units_head;

/* What a format is. */
typedef struct q_units {
    int bytes, units; /* of a block; units of 32 weights */
    int act_units;    /* units in a block of activations: 8 or 1, at most `units` */
    int d, dmin;      /* bytes of the halves in a block; dmin -1 = no minima */
    void (*head)(const uint8_t *p, q_units_head *h); /* NULL: all scales are 1, all minima -1 */
    int8x16x2_t (*codes)(const uint8_t *p, int unit);
} q_units;

/* A block of the panel: codes [unit][row][32], heads [row], d [row], dmin [row]. */
Q_NEON_INLINE int64_t q_units_at_head(const q_units *f) { return (int64_t)f->units * Q_UNITS_R * 32; }
Q_NEON_INLINE int64_t q_units_at_d(const q_units *f) {
    return q_units_at_head(f) + (f->head ? Q_UNITS_R * (int64_t)sizeof(q_units_head) : 0);
}
Q_NEON_INLINE int64_t q_units_panel(const q_units *f) {
    return q_units_at_d(f) + 2 * Q_UNITS_R * (int64_t)sizeof(float);
}

Q_NEON_INLINE int8x16x2_t q_units_pair(int8x16_t a, int8x16_t b) {
    const int8x16x2_t v = {{a, b}};
    return v;
}
Q_NEON_INLINE int8x16x2_t q_units_load(const void *p) {
    return q_units_pair(vld1q_s8((const int8_t *)p), vld1q_s8((const int8_t *)p + 16));
}

/* The half at byte `at` of each row. */
Q_NEON_INLINE float32x4_t q_units_halves(const uint8_t *const *row, int64_t at) {
    uint16_t h[Q_UNITS_R];
    Q_UNROLL for (int r = 0; r < Q_UNITS_R; r++) h[r] = q_load16(row[r] + at);
    return vcvt_f32_f16(vreinterpret_f16_u16(vld1_u16(h)));
}

/* Lane r = the sum of the lanes of v[r]. */
Q_NEON_INLINE int32x4_t q_units_across(const int32x4_t v[Q_UNITS_R]) {
    return vpaddq_s32(vpaddq_s32(v[0], v[1]), vpaddq_s32(v[2], v[3]));
}

/* Lane r = the minima of row r times the sums of a block of activations (d, sums, codes). */
Q_NEON_INLINE int32x4_t q_units_least(const q_units *f, const q_units_head *head, const uint8_t *x) {
    const int16_t *sum = (const int16_t *)(const void *)(x + sizeof(float));
    if (!f->head) return vdupq_n_s32(-(sum[0] + sum[1]));
    int32x4_t t[Q_UNITS_R];
    Q_UNROLL for (int r = 0; r < Q_UNITS_R; r++) {
        t[r] = vdupq_n_s32(0);
        Q_UNROLL for (int i = 0; i < 16; i += 4) t[r] = vmlal_s16(t[r], vld1_s16(head[r].mn + i), vld1_s16(sum + i));
    }
    return q_units_across(t);
}

Q_UNITS_INLINE int32x4_t q_units_add(int32x4_t total, int8x16x2_t w, int8x16x2_t a, const int16_t *sc) {
    if (!sc) return q_dot16(q_dot16(total, w.val[0], a.val[0]), w.val[1], a.val[1]);
    total = vmlaq_n_s32(total, q_dot16(vdupq_n_s32(0), w.val[0], a.val[0]), sc[0]);
    return vmlaq_n_s32(total, q_dot16(vdupq_n_s32(0), w.val[1], a.val[1]), sc[1]);
}

/* C columns times four rows, from the panel where they are packed, else from the rows as they lie. */
Q_UNITS_INLINE void q_units_columns(const q_units *f, int C, bool packed, const uint8_t *const *row,
                                    const uint8_t *panel, const uint8_t *const *x, int64_t blocks, float32x4_t *y) {
    const int64_t act_bytes = 4 + 36 * f->act_units;
    float32x4_t acc[Q_UNITS_C];
    Q_UNROLL for (int c = 0; c < C; c++) acc[c] = vdupq_n_f32(0);
    for (int64_t i = 0, at = 0; i < blocks; i++) {
        const uint8_t *p = panel + (packed ? i * q_units_panel(f) : 0);
        const float *ends = (const float *)(const void *)(p + q_units_at_d(f));
        const q_units_head *head = (const q_units_head *)(const void *)(p + q_units_at_head(f));
        q_units_head own[Q_UNITS_R];
        if (!packed && f->head) {
            Q_UNROLL for (int r = 0; r < Q_UNITS_R; r++) f->head(row[r] + i * f->bytes, &own[r]);
            head = own;
        }
        const float32x4_t d = packed ? vld1q_f32(ends) : q_units_halves(row, i * f->bytes + f->d);
        float32x4_t dmin = d;
        if (f->dmin >= 0) dmin = packed ? vld1q_f32(ends + Q_UNITS_R) : q_units_halves(row, i * f->bytes + f->dmin);
        for (int first = 0; first < f->units; first += f->act_units, at += act_bytes) {
            int32x4_t total[Q_UNITS_C][Q_UNITS_R];
            Q_UNROLL for (int j = 0; j < C * Q_UNITS_R; j++) total[j / Q_UNITS_R][j % Q_UNITS_R] = vdupq_n_s32(0);
            for (int u = 0; u < f->act_units; u++) {
                int8x16x2_t a[Q_UNITS_C];
                Q_UNROLL for (int c = 0; c < C; c++) a[c] = q_units_load(x[c] + at + 4 + 4 * f->act_units + 32 * u);
                Q_UNROLL for (int r = 0; r < Q_UNITS_R; r++) {
                    const int8x16x2_t w = packed ? q_units_load(p + 32 * (Q_UNITS_R * (first + u) + r))
                                                 : f->codes(row[r] + i * f->bytes, first + u);
                    const int16_t *sc = f->head ? head[r].sc + 2 * (first + u) : NULL;
                    Q_UNROLL for (int c = 0; c < C; c++) total[c][r] = q_units_add(total[c][r], w, a[c], sc);
                }
            }
            Q_UNROLL for (int c = 0; c < C; c++) {
                const float da = q_bits_f32(q_load32(x[c] + at));
                acc[c] = vfmaq_f32(acc[c], vmulq_n_f32(d, da), vcvtq_f32_s32(q_units_across(total[c])));
                if (f->dmin < 0) continue;
                const int32x4_t least = q_units_least(f, head, x[c] + at);
                acc[c] = vfmsq_f32(acc[c], vmulq_n_f32(dmin, da), vcvtq_f32_s32(least));
            }
        }
    }
    Q_UNROLL for (int c = 0; c < C; c++) y[c] = acc[c];
}

Q_NEON_INLINE void q_units_unpack(const q_units *f, const uint8_t *const *row, int64_t blocks, uint8_t *panel) {
    for (int64_t i = 0; i < blocks; i++, panel += q_units_panel(f)) {
        float *ends = (float *)(void *)(panel + q_units_at_d(f));
        q_units_head *head = (q_units_head *)(void *)(panel + q_units_at_head(f));
        for (int r = 0; r < Q_UNITS_R; r++) {
            const uint8_t *p = row[r] + i * f->bytes;
            for (int u = 0; u < f->units; u++) {
                const int8x16x2_t w = f->codes(p, u);
                int8_t *to = (int8_t *)panel + 32 * (Q_UNITS_R * u + r);
                vst1q_s8(to, w.val[0]);
                vst1q_s8(to + 16, w.val[1]);
            }
            if (f->head) f->head(p, &head[r]);
        }
        vst1q_f32(ends, q_units_halves(row, i * f->bytes + f->d));
        if (f->dmin >= 0) vst1q_f32(ends + Q_UNITS_R, q_units_halves(row, i * f->bytes + f->dmin));
    }
}

Q_UNITS_INLINE void q_units_product(const q_units *f, const q_mm *m) {
    const int64_t blocks = m->k / (32 * f->units);
    uint8_t *panel = (uint8_t *)m->scratch;
    for (int64_t r = 0; r < m->rows; r += Q_UNITS_R) {
        const uint8_t *row[Q_UNITS_R], *x[Q_UNITS_C];
        float32x4_t y[Q_UNITS_C];
        for (int64_t i = 0; i < Q_UNITS_R; i++) /* rows that do not exist are the last one again */
            row[i] = m->w + (uint64_t)Q_MIN(r + i, m->rows - 1) * m->row_bytes;
        int64_t c = 0;
        if (m->n >= Q_UNITS_PANEL_FROM) {
            q_units_unpack(f, row, blocks, panel);
            for (; m->n - c >= 2; c += Q_UNITS_C) {
                for (int64_t j = 0; j < Q_UNITS_C; j++) x[j] = m->x + Q_MIN(c + j, m->n - 1) * m->x_stride;
                q_units_columns(f, Q_UNITS_C, true, row, panel, x, blocks, y);
                for (int64_t j = 0; j < Q_UNITS_C && c + j < m->n; j++) q_put4(m, r, c + j, y[j]);
            }
        }
        for (; c < m->n; c++) {
            x[0] = m->x + c * m->x_stride;
            q_units_columns(f, 1, false, row, panel, x, blocks, y);
            q_put4(m, r, c, y[0]);
        }
    }
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

/* PRODUCT's two functions of each format, for kernels that end in `isa`. */
#define Q_UNITS_ROW(isa, name, act, ...)                                             \
    static const q_units name##_##isa##_units = {__VA_ARGS__, name##_codes};         \
    uint64_t q_matmul_##name##_##act##_4x4__##isa##_scratch(int64_t k, int64_t n) {  \
        const uint64_t block = (uint64_t)q_units_panel(&name##_##isa##_units);       \
        return n < Q_UNITS_PANEL_FROM ? 0 : (uint64_t)(k / (32 * name##_##isa##_units.units)) * block; \
    }                                                                                \
    Q_UNITS_TARGET void q_matmul_##name##_##act##_4x4__##isa(const q_mm *m) {        \
        q_units_product(&name##_##isa##_units, m);                                   \
    }

#define Q_UNITS_ROWS(isa)                                            \
    Q_UNITS_ROW(isa, q8_0, a8_32, 34, 1, 1, 0, -1, NULL)             \
    Q_UNITS_ROW(isa, q4_0, a8_32, 18, 1, 1, 0, -1, NULL)             \
    Q_UNITS_ROW(isa, q4_1, a8_32, 20, 1, 1, 0, 2, NULL)              \
    Q_UNITS_ROW(isa, q5_0, a8_32, 22, 1, 1, 0, -1, NULL)             \
    Q_UNITS_ROW(isa, q5_1, a8_32, 24, 1, 1, 0, 2, NULL)              \
    Q_UNITS_ROW(isa, iq4_nl, a8_32, 18, 1, 1, 0, -1, NULL)           \
    Q_UNITS_ROW(isa, iq4_xs, a8_256, 136, 8, 8, 0, -1, iq4_xs_head)  \
    Q_UNITS_ROW(isa, q2_k, a8_256, 84, 8, 8, 80, 82, q2_k_head)      \
    Q_UNITS_ROW(isa, q3_k, a8_256, 110, 8, 8, 108, -1, q3_k_head)    \
    Q_UNITS_ROW(isa, q4_k, a8_256, 144, 8, 8, 0, 2, q_units_head6)   \
    Q_UNITS_ROW(isa, q5_k, a8_256, 176, 8, 8, 0, 2, q_units_head6)   \
    Q_UNITS_ROW(isa, q6_k, a8_32, 210, 8, 1, 208, -1, q6_k_head)

#endif
