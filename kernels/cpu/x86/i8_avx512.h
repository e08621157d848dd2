/* i8_avx512.h: what the AVX-512 VNNI products with 8-bit activations share. A format says how it is laid out and how
 * its codes come out of it; the loops are here and, for more columns, in panel_avx512.h. Layer L2.
 *
 * Codes are unsigned bytes, weights plus a constant (`bias`), because vpdpbusd multiplies unsigned by signed bytes and
 * adds four products to a 32-bit sum exactly: nothing saturates. The bias is taken back by what a sum begins with. Two
 * ways to the integers of op.h, with the same bits since integers are exact:
 *   few columns    Rows are read as one stream, as they lie in the file: a register holds 64 codes of one row, is
 *                  multiplied with up to four columns, and its lanes are added across, sixteen registers at once. Sums
 *                  and scales of sixteen rows are then turned, so that op.h's float multiply-adds are done with rows in
 *                  lanes. (Sixteen rows side by side would be sixteen short streams, which the hardware does not
 *                  foresee: bench/SPEED.md.)
 *   more columns   Rows are unpacked into panels (panel_avx512.h). */
#ifndef Q_I8_AVX512_H
#define Q_I8_AVX512_H

#include "avx512.h"

#define Q_VNNI_TARGET Q_AVX512_TARGET ",avx512vnni"
#define Q_VNNI __attribute__((target(Q_VNNI_TARGET)))
#define Q_VNNI_INLINE Q_PART Q_VNNI

enum {
    Q_Z_ROWS = 16,
    Q_Z_PANEL_FROM = 5, /* columns from which unpacking pays */
    Q_Z_FEW = 4,        /* columns that a stream serves at a time */
    Q_Z_AHEAD = 8192    /* bytes ahead of the stream that are asked for: pages end a hardware prefetch */
};

/* A block of 256 weights taken apart. */
typedef struct q_z_block {
    __m512i codes[4];
    __m512i scale[4]; /* of each lane of four products, as int16 in its lower half */
    __m256i minima;   /* of 16 weights each, as int16 */
} q_z_block;

/* What the loops over panels have to know of a format. */
typedef struct q_z_shape {
    int units;   /* of 32 weights to a block, which shares d */
    /* units per block of activations: 1, 8 as `units`; 0: a row is one block, and so is a row of weights */
    int act;
    int bias;    /* a code is a weight plus this */
    int scales;  /* integer scales per unit: 0, 1 or 2; with 0, minima are sums of activations */
    bool minima; /* are there any? */
    int exact;   /* units whose scaled sums add up to less than 2^24, so that floats have them exactly; 0 = none */
} q_z_shape;

typedef struct q_z_format {
    q_z_shape s;
    int bytes;   /* of a block */
    int d, dmin; /* bytes of the halves in it */

    /* Panel: unit `sub` of sixteen blocks. Quarter q of v[i] is the first, of v[4 + i] the last 16 codes of block
     * 4q + i. */
    void (*codes)(const uint8_t *const *p, int sub, __m512i v[8]);
    /* With scales > 0: lane r of sc[i] = four signed bytes, integer scales 4i .. 4i + 3 of block r; mn: unsigned, the
     * minima, where there are any. */
    void (*scale)(const uint8_t *const *p, __m512i sc[4], __m512i mn[4]);

    /* Stream with act 1, where a segment is a unit: codes of segments s + 2i and s + 2i + 1 of a row, `last` in the
     * place of later ones; s is a multiple of 16. With scales, *scale = an int16 in the lower half of each lane. */
    __m512i (*pair)(const uint8_t *row, int64_t s, int i, int64_t last, __m512i *scale);

    /* Stream with act 8, where a segment is a block. `order`: the groups of 16 activations in the order of its codes,
     * four to a register. `wide`: codes are bytes, too large for 16-bit multiply-adds; registers 0 and 1 share
     * scale[0], 2 and 3 scale[1], all as int32. */
    void (*block)(const uint8_t *p, q_z_block *b);
    const uint8_t *order;
    bool wide;
} q_z_format;

Q_VNNI_INLINE int64_t q_z_act_bytes(const q_z_format *f) { return 4 + 36 * f->s.act; }

/* ------------------------------------------------------------------------------------------- taking bytes apart */

Q_VNNI_INLINE __m128i q_z_load128(const void *p) { return _mm_loadu_si128((const __m128i *)p); }
Q_VNNI_INLINE __m512i q_z_low4(__m512i v) { return _mm512_and_si512(v, _mm512_set1_epi8(15)); }
Q_VNNI_INLINE __m512i q_z_high4(__m512i v) { return q_z_low4(_mm512_srli_epi16(v, 4)); }

/* Four bytes to every lane. */
Q_VNNI_INLINE __m512i q_z_spread(const uint8_t *p) { return _mm512_set1_epi32((int)q_load32(p)); }
Q_VNNI_INLINE __m512 q_z_spread_f32(const uint8_t *p) { return _mm512_set1_ps(q_bits_f32(q_load32(p))); }

/* 16 bytes at `at` of blocks i, 4 + i, 8 + i, 12 + i. */
Q_VNNI_INLINE __m512i q_z_quad(const uint8_t *const *p, int i, int at) {
    __m512i v = _mm512_castsi128_si512(q_z_load128(p[i] + at));
    v = _mm512_inserti32x4(v, q_z_load128(p[4 + i] + at), 1);
    v = _mm512_inserti32x4(v, q_z_load128(p[8 + i] + at), 2);
    return _mm512_inserti32x4(v, q_z_load128(p[12 + i] + at), 3);
}

/* The codebook of IQ4_NL and IQ4_XS plus 128, by codes below 16. */
Q_VNNI_INLINE __m512i q_z_iq4(__m512i codes) {
    const __m128i t = _mm_setr_epi8(1, 24, 45, 63, 79, 93, 106, 118, (char)129, (char)141, (char)153, (char)166,
                                    (char)181, (char)197, (char)217, (char)241);
    return _mm512_shuffle_epi8(_mm512_broadcast_i32x4(t), codes);
}

/* ------------------------------------------------------------------------------------------------- adding across */

/* The lower two lanes of each quarter: of a, the upper two: of b, as the sums of two. */
Q_VNNI_INLINE __m512i q_z_fold_pair(__m512i a, __m512i b) {
    return _mm512_add_epi32(_mm512_unpacklo_epi64(a, b), _mm512_unpackhi_epi64(a, b));
}
/* Lane i = the sum of the lanes of v[i]. */
Q_VNNI_INLINE __m512i q_z_across16(const __m512i *v) {
    __m512i a[8], b[4], c[2];
    Q_UNROLL for (int i = 0; i < 8; i++) a[i] = q_z_fold_pair(v[2 * i], v[2 * i + 1]);
    Q_UNROLL for (int i = 0; i < 4; i++) { /* each quarter: one of v[4i .. 4i + 3] */
        const __m512 x = _mm512_castsi512_ps(a[2 * i]), y = _mm512_castsi512_ps(a[2 * i + 1]);
        b[i] = _mm512_add_epi32(_mm512_castps_si512(_mm512_shuffle_ps(x, y, 0x88)),
                                _mm512_castps_si512(_mm512_shuffle_ps(x, y, 0xDD)));
    }
    Q_UNROLL for (int i = 0; i < 2; i++) c[i] = _mm512_add_epi32(_mm512_shuffle_i32x4(b[2 * i], b[2 * i + 1], 0x88),
                                                                 _mm512_shuffle_i32x4(b[2 * i], b[2 * i + 1], 0xDD));
    return _mm512_add_epi32(_mm512_shuffle_i32x4(c[0], c[1], 0x88), _mm512_shuffle_i32x4(c[0], c[1], 0xDD));
}

/* Lanes 2i and 2i + 1 = the sums of the lower and the upper half of v[i]. */
Q_VNNI_INLINE __m512i q_z_across8(const __m512i *v) {
    __m512i a[4], b[2];
    Q_UNROLL for (int i = 0; i < 4; i++) a[i] = q_z_fold_pair(v[2 * i], v[2 * i + 1]);
    Q_UNROLL for (int i = 0; i < 2; i++) {
        const __m512 x = _mm512_castsi512_ps(a[2 * i]), y = _mm512_castsi512_ps(a[2 * i + 1]);
        b[i] = _mm512_add_epi32(_mm512_castps_si512(_mm512_shuffle_ps(x, y, 0x88)),
                                _mm512_castps_si512(_mm512_shuffle_ps(x, y, 0xDD)));
    }
    const __m512i c = _mm512_add_epi32(_mm512_shuffle_i32x4(b[0], b[1], 0x88), _mm512_shuffle_i32x4(b[0], b[1], 0xDD));
    return _mm512_permutexvar_epi32(_mm512_setr_epi32(0, 4, 1, 5, 2, 6, 3, 7, 8, 12, 9, 13, 10, 14, 11, 15), c);
}

/* ---------------------------------------------------------------------------------------------------------- stream */

/* Two segments of a column made ready, with act 1. */
typedef struct q_z_two {
    __m512i codes, begin; /* begin: what sums begin with */
} q_z_two;

/* A block of a column made ready, with act 8. */
typedef struct q_z_eight {
    __m512i codes[4], begin[4]; /* in `order` */
    __m256i sums;               /* of 16 activations */
    float da;
} q_z_eight;

/* What a stream works with: a column made ready, and the sums and scales of sixteen rows, `pitch` to a row. */
typedef struct q_z_stream {
    int64_t segments, pitch;
    q_z_two *two;     /* act 1: [pitch / 2] */
    q_z_eight *eight; /* act 8: [segments] */
    float *da, *owed; /* act 1: [pitch] scales of the activations; what minima are multiplied with */
    int32_t *sum, *least;
    float *scale, *least_scale; /* times da */
} q_z_stream;

/* Sixteen of a row may begin at its last segment: they end in the next row, or in what is added here. */
Q_VNNI_INLINE int64_t q_z_stream_values(const q_z_stream *t) { return Q_Z_ROWS * t->pitch + 16; }

Q_VNNI_INLINE void q_z_lay_out(const q_z_format *f, int64_t k, q_z_stream *t, q_ref_carve *carve) {
    const bool few = f->s.act == 1, minima = f->s.minima;
    t->segments = k / (32 * f->s.act);
    t->pitch = few ? (int64_t)q_round_up((uint64_t)t->segments, 16) : t->segments;
    const int64_t all = q_z_stream_values(t);
    t->two = q_ref_take(carve, few ? t->pitch / 2 : 0, sizeof(q_z_two));
    t->eight = q_ref_take(carve, few ? 0 : t->segments, sizeof(q_z_eight));
    t->da = q_ref_take(carve, few ? t->pitch : 0, sizeof(float));
    t->owed = q_ref_take(carve, few && minima ? t->pitch : 0, sizeof(float));
    t->sum = q_ref_take(carve, all, sizeof(int32_t));
    t->scale = q_ref_take(carve, all, sizeof(float));
    t->least = q_ref_take(carve, !few && minima ? all : 0, sizeof(int32_t));
    t->least_scale = q_ref_take(carve, minima ? all : 0, sizeof(float));
}

/* Rows that a last tile lacks are zero. */
Q_VNNI_INLINE void q_z_clear(const q_z_format *f, const q_z_stream *t) {
    const size_t bytes = (size_t)q_z_stream_values(t) * 4;
    memset(t->sum, 0, bytes);
    memset(t->scale, 0, bytes);
    if (f->s.minima) memset(t->least_scale, 0, bytes);
    if (f->s.minima && f->s.act > 1) memset(t->least, 0, bytes);
}

/* What lanes of four products begin with, so that the bias is gone in the end. */
Q_VNNI_INLINE __m512i q_z_begin(const q_z_format *f, __m512i codes) {
    const __m512i zero = _mm512_setzero_si512();
    return f->s.bias ? _mm512_sub_epi32(zero, _mm512_dpbusd_epi32(zero, _mm512_set1_epi8((char)f->s.bias), codes))
                     : zero;
}

Q_VNNI_INLINE void q_z_prepare(const q_z_format *f, const uint8_t *x, const q_z_stream *t) {
    if (f->s.act == 1) {
        for (int64_t s = 0; s < t->pitch; s += 2) {
            __m256i half[2] = {_mm256_setzero_si256(), _mm256_setzero_si256()};
            for (int64_t j = 0; j < 2; j++) {
                const q_a8_32 *b = (const q_a8_32 *)(const void *)x + s + j;
                const bool in = s + j < t->segments;
                if (in) half[j] = _mm256_loadu_si256((const __m256i *)(const void *)b->q);
                t->da[s + j] = in ? b->d : 0;
                if (f->s.minima) t->owed[s + j] = in ? (float)-(b->sum[0] + b->sum[1]) : 0;
            }
            const __m512i codes = _mm512_inserti64x4(_mm512_castsi256_si512(half[0]), half[1], 1);
            t->two[s / 2] = (q_z_two){codes, q_z_begin(f, codes)};
        }
        return;
    }
    for (int64_t s = 0; s < t->segments; s++) {
        const q_a8_256 *b = (const q_a8_256 *)(const void *)x + s;
        q_z_eight *to = &t->eight[s];
        to->da = b->d;
        to->sums = _mm256_loadu_si256((const __m256i *)(const void *)b->sum);
        for (int j = 0; j < 16; j++) memcpy((uint8_t *)to->codes + 16 * j, b->q + 16 * f->order[j], 16);
        for (int j = 0; j < 4; j++) to->begin[j] = q_z_begin(f, to->codes[j]);
    }
}

/* The half at byte `at` of sixteen segments of a row, as floats. */
Q_VNNI_INLINE __m512 q_z_row_halves(const q_z_format *f, const uint8_t *row, int64_t s, int64_t last, int at) {
    if (f->s.units > 1) { /* two blocks */
        const int64_t b = s / f->s.units;
        const float lo = q_half_to_f32(q_load16(row + b * f->bytes + at));
        const float hi = q_half_to_f32(q_load16(row + Q_MIN(b + 1, last / f->s.units) * f->bytes + at));
        return _mm512_mask_blend_ps(0xFF00, _mm512_set1_ps(lo), _mm512_set1_ps(hi));
    }
#define HALF(i) (short)q_load16(row + Q_MIN(s + i, last) * f->bytes + at)
    return _mm512_cvtph_ps(_mm256_setr_epi16(HALF(0), HALF(1), HALF(2), HALF(3), HALF(4), HALF(5), HALF(6), HALF(7),
                                             HALF(8), HALF(9), HALF(10), HALF(11), HALF(12), HALF(13), HALF(14),
                                             HALF(15)));
#undef HALF
}

/* Sixteen segments of a row, from s on, times C columns; those after `last` repeat it. */
Q_VNNI_INLINE void q_z_sixteen(const q_z_format *f, int C, const uint8_t *row, int64_t s, int64_t last, int64_t to,
                               const q_z_stream *t) {
    __m512i v[Q_Z_FEW][8];
    Q_UNROLL for (int i = 0; i < 8; i++) {
        __m512i scale;
        const __m512i codes = f->pair(row, s, i, last, &scale);
        Q_UNROLL for (int c = 0; c < C; c++) {
            const q_z_two *x = &t[c].two[s / 2 + i];
            v[c][i] = _mm512_dpbusd_epi32(f->s.bias ? x->begin : _mm512_setzero_si512(), codes, x->codes);
            if (f->s.scales) v[c][i] = _mm512_madd_epi16(v[c][i], scale);
        }
    }
    const __m512 d = q_z_row_halves(f, row, s, last, f->d);
    Q_UNROLL for (int c = 0; c < C; c++) {
        _mm512_storeu_si512(t[c].sum + to, q_z_across8(v[c]));
        _mm512_storeu_ps(t[c].scale + to, _mm512_mul_ps(d, _mm512_loadu_ps(t[c].da + s)));
    }
    if (!f->s.minima) return;
    const __m512 dmin = q_z_row_halves(f, row, s, last, f->dmin);
    Q_UNROLL for (int c = 0; c < C; c++)
        _mm512_storeu_ps(t[c].least_scale + to, _mm512_mul_ps(dmin, _mm512_loadu_ps(t[c].da + s)));
}

/* One row whose segments are units. */
Q_VNNI_INLINE void q_z_row(const q_z_format *f, int C, const uint8_t *row, int64_t r, const q_z_stream *t) {
    int64_t s = 0;
    for (; s + 16 <= t->segments; s += 16) {
        const uintptr_t ahead = (uintptr_t)row + (uintptr_t)(s / f->s.units * f->bytes) + Q_Z_AHEAD;
        for (int i = 0; i < 16 * f->bytes / f->s.units; i += 64) _mm_prefetch((const char *)ahead + i, _MM_HINT_T0);
        q_z_sixteen(f, C, row, s, INT64_MAX, r * t->pitch + s, t);
    }
    if (s < t->segments) q_z_sixteen(f, C, row, s, t->segments - 1, r * t->pitch + s, t);
}

/* The exact sum of a block's products with its scales, over 16 lanes. */
Q_VNNI_INLINE __m512i q_z_scaled(const q_z_format *f, const q_z_block *b, const q_z_eight *x) {
    const __m512i zero = _mm512_setzero_si512();
    __m512i s[4];
    if (f->wide) {
        Q_UNROLL for (int j = 0; j < 2; j++) {
            s[j] = _mm512_dpbusd_epi32(_mm512_add_epi32(x->begin[2 * j], x->begin[2 * j + 1]), b->codes[2 * j],
                                       x->codes[2 * j]);
            s[j] = _mm512_dpbusd_epi32(s[j], b->codes[2 * j + 1], x->codes[2 * j + 1]);
            s[j] = _mm512_mullo_epi32(s[j], b->scale[j]);
        }
        return _mm512_add_epi32(s[0], s[1]);
    }
    Q_UNROLL for (int j = 0; j < 4; j++)
        s[j] = _mm512_dpbusd_epi32(f->s.bias ? x->begin[j] : zero, b->codes[j], x->codes[j]);
    __m512i total = _mm512_madd_epi16(s[0], b->scale[0]);
    Q_UNROLL for (int j = 1; j < 4; j++) total = _mm512_dpwssd_epi32(total, s[j], b->scale[j]);
    return total;
}

/* Rows whose segments are blocks, as one run of blocks: sixteen of them are added across, of whichever rows. */
Q_VNNI_INLINE void q_z_rows(const q_z_format *f, int C, const uint8_t *w, uint64_t row_bytes, int64_t rows,
                            const q_z_stream *t) {
    const int64_t segments = t->segments, total = rows * segments;
    const uint8_t *p = w;
    for (int64_t at = 0, s = 0; at < total; at += 16) {
        struct {
            __m512i v[Q_Z_FEW][16];
            __m256i least[Q_Z_FEW][16];
            uint32_t d[16]; /* d and dmin, one after the other in every format */
            float da[Q_Z_FEW][16];
        } b;
        const int64_t n = Q_MIN(total - at, (int64_t)16);
        if (n < 16) memset(&b, 0, sizeof b);
        for (int64_t i = 0; i < n; i++) {
            q_z_block block;
            Q_UNROLL for (int line = 0; line < f->bytes; line += 64)
                _mm_prefetch((const char *)(uintptr_t)p + Q_Z_AHEAD + line, _MM_HINT_T0);
            f->block(p, &block);
            Q_UNROLL for (int c = 0; c < C; c++) {
                const q_z_eight *x = &t[c].eight[s];
                b.v[c][i] = q_z_scaled(f, &block, x);
                if (f->s.minima) b.least[c][i] = _mm256_madd_epi16(block.minima, x->sums);
                b.da[c][i] = x->da;
            }
            b.d[i] = f->s.minima ? q_load32(p + f->d) : q_load16(p + f->d);
            p += f->bytes;
            if (++s == segments) {
                s = 0;
                w += row_bytes;
                p = w;
            }
        }
        const __m512i d = _mm512_loadu_si512(b.d);
        const __m512 scale = _mm512_cvtph_ps(_mm512_cvtepi32_epi16(d));
        const __m512 least_scale = _mm512_cvtph_ps(_mm512_cvtepi32_epi16(_mm512_srli_epi32(d, 16)));
        Q_UNROLL for (int c = 0; c < C; c++) {
            const __m512 da = _mm512_loadu_ps(b.da[c]);
            _mm512_storeu_si512(t[c].sum + at, q_z_across16(b.v[c]));
            _mm512_storeu_ps(t[c].scale + at, _mm512_mul_ps(scale, da));
            if (!f->s.minima) continue;
            __m512i least[8];
            Q_UNROLL for (int i = 0; i < 8; i++)
                least[i] = _mm512_inserti64x4(_mm512_castsi256_si512(b.least[c][2 * i]), b.least[c][2 * i + 1], 1);
            _mm512_storeu_si512(t[c].least + at, q_z_across8(least));
            _mm512_storeu_ps(t[c].least_scale + at, _mm512_mul_ps(least_scale, da));
        }
    }
}

/* Sixteen segments of each row, turned: lane r of to[j] belongs to row r. */
Q_VNNI_INLINE void q_z_turn(const void *from, int64_t pitch, __m512i to[16]) {
    Q_UNROLL for (int64_t r = 0; r < 16; r++) to[r] = _mm512_loadu_si512((const uint32_t *)from + r * pitch);
    q_transpose16(to);
}

/* op.h's multiply-adds of sixteen rows, segment after segment. */
Q_VNNI_INLINE __m512 q_z_finish(const q_z_format *f, const q_z_stream *t) {
    __m512 acc = _mm512_setzero_ps();
    for (int64_t s = 0; s < t->segments; s += 16) {
        const int64_t n = Q_MIN(t->segments - s, (int64_t)16);
        __m512i sum[16], scale[16], least[16], least_scale[16];
        q_z_turn(t->sum + s, t->pitch, sum);
        q_z_turn(t->scale + s, t->pitch, scale);
        if (f->s.minima) q_z_turn(t->least_scale + s, t->pitch, least_scale);
        if (f->s.minima && f->s.act > 1) q_z_turn(t->least + s, t->pitch, least);
        for (int64_t j = 0; j < n; j++) {
            acc = _mm512_fmadd_ps(_mm512_castsi512_ps(scale[j]), _mm512_cvtepi32_ps(sum[j]), acc);
            if (!f->s.minima) continue;
            const __m512 owed = f->s.act > 1 ? _mm512_cvtepi32_ps(least[j]) : _mm512_set1_ps(t->owed[s + j]);
            acc = _mm512_fnmadd_ps(_mm512_castsi512_ps(least_scale[j]), owed, acc);
        }
    }
    return acc;
}

Q_VNNI_INLINE uint64_t q_z_stream_scratch(const q_z_format *f, int64_t k, int64_t columns) {
    q_ref_carve carve = {NULL, 0};
    q_z_stream t;
    for (int64_t c = 0; c < columns; c++) q_z_lay_out(f, k, &t, &carve);
    return carve.used;
}

/* Sixteen rows, or what is left of them from r on, times columns c .. c + C - 1. */
Q_VNNI_INLINE void q_z_tile(const q_z_format *f, int C, const q_mm *m, int64_t r, int64_t c, const q_z_stream *t) {
    const int64_t rows = Q_MIN(m->rows - r, (int64_t)Q_Z_ROWS);
    const uint8_t *w = m->w + (uint64_t)r * m->row_bytes;
    for (int j = 0; rows < Q_Z_ROWS && j < C; j++) q_z_clear(f, &t[j]);
    if (f->s.act > 1)
        q_z_rows(f, C, w, m->row_bytes, rows, t);
    else
        for (int64_t i = 0; i < rows; i++) q_z_row(f, C, w + (uint64_t)i * m->row_bytes, i, t);
    for (int j = 0; j < C; j++) q_put16(m, r, c + j, q_z_finish(f, &t[j]));
}

Q_VNNI_INLINE void q_z_few(const q_z_format *f, const q_mm *m) {
    q_z_stream t[Q_Z_PANEL_FROM];
    q_ref_carve carve = {(uint8_t *)m->scratch, 0};
    for (int64_t c = 0; c < m->n; c++) {
        q_z_lay_out(f, m->k, &t[c], &carve);
        q_z_prepare(f, m->x + c * m->x_stride, &t[c]);
    }
    for (int64_t r = 0; r < m->rows; r += Q_Z_ROWS) {
        int64_t c = 0;
        for (; c + 4 <= m->n; c += 4) q_z_tile(f, 4, m, r, c, t + c);
        for (; c + 2 <= m->n; c += 2) q_z_tile(f, 2, m, r, c, t + c);
        if (c < m->n) q_z_tile(f, 1, m, r, c, t + c);
    }
}

#endif
