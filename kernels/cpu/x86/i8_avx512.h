/* i8_avx512.h: what the AVX-512 VNNI products with 8-bit activations share. A format says how it is laid out and how
 * its codes come out of it; the loops are here. Layer L2.
 *
 * Codes are unsigned bytes, weights plus a constant (`bias`), because vpdpbusd multiplies unsigned by signed bytes and
 * adds four products to a 32-bit sum exactly: nothing saturates. The bias is taken back by what a sum begins with. Two
 * ways to the integers of op.h, with the same bits since integers are exact:
 *   few columns    Rows are read as one stream, as they lie in the file: a register holds 64 codes of one row, is
 *                  multiplied with up to four columns, and its lanes are added across, sixteen registers at once. Sums
 *                  and scales of sixteen rows are then turned, so that op.h's float multiply-adds are done with rows in
 *                  lanes. (Sixteen rows side by side would be sixteen short streams, which the hardware does not
 *                  foresee: bench/SPEED.md.)
 *   more columns   Sixteen rows are unpacked into a panel, in which a register holds four consecutive codes of each
 *                  row; two panels meet six columns at a time: one broadcast of four activations feeds 32 rows, and
 *                  nothing is added across. */
#ifndef Q_I8_AVX512_H
#define Q_I8_AVX512_H

#include "avx512.h"

#define Q_VNNI_TARGET Q_AVX512_TARGET ",avx512vnni"
#define Q_VNNI __attribute__((target(Q_VNNI_TARGET)))
#define Q_VNNI_INLINE static inline __attribute__((always_inline, target(Q_VNNI_TARGET)))

enum {
    Q_Z_ROWS = 16,
    Q_Z_COLUMNS = 6,
    Q_Z_PANEL_FROM = 5, /* columns from which unpacking pays */
    Q_Z_FEW = 4,        /* columns that a stream serves at a time */
    Q_Z_AHEAD = 8192    /* bytes ahead of the stream that are asked for: pages end a hardware prefetch */
};

/* Integer scales and minima of a unit: of its first and its last 16 weights. */
typedef struct q_z_scales {
    int16_t sc[2], mn[2];
} q_z_scales;

/* A block of 256 weights taken apart. */
typedef struct q_z_block {
    __m512i codes[4];
    __m512i scale[4]; /* of each lane of four products, as int16 in its lower half */
    __m256i minima;   /* of 16 weights each, as int16 */
} q_z_block;

typedef struct q_z_format {
    int bytes, units; /* of a block: bytes, and units of 32 weights */
    int act;          /* units per block of activations: 1 or 8 */
    int d, dmin;      /* bytes of the halves in a block; dmin -1 = no minima */
    int bias;         /* a code is a weight plus this */
    int scales;       /* integer scales per unit: 0, 1 or 2; with 0, minima are sums of activations */

    /* Panel: unit `sub` of sixteen blocks. Quarter q of v[i] is the first, of v[4 + i] the last 16 codes of block
     * 4q + i. */
    void (*codes)(const uint8_t *const *p, int sub, __m512i v[8]);
    q_z_scales (*scale)(const uint8_t *p, int sub); /* with scales > 0 */

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

Q_VNNI_INLINE int64_t q_z_act_bytes(const q_z_format *f) { return 4 + 36 * f->act; }

/* ------------------------------------------------------------------------------------------- taking bytes apart */

Q_VNNI_INLINE __m128i q_z_load128(const void *p) { return _mm_loadu_si128((const __m128i *)p); }
Q_VNNI_INLINE __m512i q_z_low4(__m512i v) { return _mm512_and_si512(v, _mm512_set1_epi8(15)); }
Q_VNNI_INLINE __m512i q_z_high4(__m512i v) { return q_z_low4(_mm512_srli_epi16(v, 4)); }

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
    const bool few = f->act == 1, minima = f->dmin >= 0;
    t->segments = k / (32 * f->act);
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
    if (f->dmin >= 0) memset(t->least_scale, 0, bytes);
    if (f->dmin >= 0 && f->act > 1) memset(t->least, 0, bytes);
}

/* What lanes of four products begin with, so that the bias is gone in the end. */
Q_VNNI_INLINE __m512i q_z_begin(const q_z_format *f, __m512i codes) {
    const __m512i zero = _mm512_setzero_si512();
    return f->bias ? _mm512_sub_epi32(zero, _mm512_dpbusd_epi32(zero, _mm512_set1_epi8((char)f->bias), codes)) : zero;
}

Q_VNNI_INLINE void q_z_prepare(const q_z_format *f, const uint8_t *x, const q_z_stream *t) {
    if (f->act == 1) {
        for (int64_t s = 0; s < t->pitch; s += 2) {
            __m256i half[2] = {_mm256_setzero_si256(), _mm256_setzero_si256()};
            for (int64_t j = 0; j < 2; j++) {
                const q_a8_32 *b = (const q_a8_32 *)(const void *)x + s + j;
                const bool in = s + j < t->segments;
                if (in) half[j] = _mm256_loadu_si256((const __m256i *)(const void *)b->q);
                t->da[s + j] = in ? b->d : 0;
                if (f->dmin >= 0) t->owed[s + j] = in ? (float)-(b->sum[0] + b->sum[1]) : 0;
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
    if (f->units > 1) { /* two blocks */
        const int64_t b = s / f->units;
        const float lo = q_half_to_f32(q_load16(row + b * f->bytes + at));
        const float hi = q_half_to_f32(q_load16(row + Q_MIN(b + 1, last / f->units) * f->bytes + at));
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
            v[c][i] = _mm512_dpbusd_epi32(f->bias ? x->begin : _mm512_setzero_si512(), codes, x->codes);
            if (f->scales) v[c][i] = _mm512_madd_epi16(v[c][i], scale);
        }
    }
    const __m512 d = q_z_row_halves(f, row, s, last, f->d);
    Q_UNROLL for (int c = 0; c < C; c++) {
        _mm512_storeu_si512(t[c].sum + to, q_z_across8(v[c]));
        _mm512_storeu_ps(t[c].scale + to, _mm512_mul_ps(d, _mm512_loadu_ps(t[c].da + s)));
    }
    if (f->dmin < 0) return;
    const __m512 dmin = q_z_row_halves(f, row, s, last, f->dmin);
    Q_UNROLL for (int c = 0; c < C; c++)
        _mm512_storeu_ps(t[c].least_scale + to, _mm512_mul_ps(dmin, _mm512_loadu_ps(t[c].da + s)));
}

/* One row whose segments are units. */
Q_VNNI_INLINE void q_z_row(const q_z_format *f, int C, const uint8_t *row, int64_t r, const q_z_stream *t) {
    int64_t s = 0;
    for (; s + 16 <= t->segments; s += 16) {
        const uintptr_t ahead = (uintptr_t)row + (uintptr_t)(s / f->units * f->bytes) + Q_Z_AHEAD;
        for (int i = 0; i < 16 * f->bytes / f->units; i += 64) _mm_prefetch((const char *)ahead + i, _MM_HINT_T0);
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
        s[j] = _mm512_dpbusd_epi32(f->bias ? x->begin[j] : zero, b->codes[j], x->codes[j]);
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
                if (f->dmin >= 0) b.least[c][i] = _mm256_madd_epi16(block.minima, x->sums);
                b.da[c][i] = x->da;
            }
            b.d[i] = f->dmin >= 0 ? q_load32(p + f->d) : q_load16(p + f->d);
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
            if (f->dmin < 0) continue;
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
        if (f->dmin >= 0) q_z_turn(t->least_scale + s, t->pitch, least_scale);
        if (f->dmin >= 0 && f->act > 1) q_z_turn(t->least + s, t->pitch, least);
        for (int64_t j = 0; j < n; j++) {
            acc = _mm512_fmadd_ps(_mm512_castsi512_ps(scale[j]), _mm512_cvtepi32_ps(sum[j]), acc);
            if (f->dmin < 0) continue;
            const __m512 owed = f->act > 1 ? _mm512_cvtepi32_ps(least[j]) : _mm512_set1_ps(t->owed[s + j]);
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
    if (f->act > 1)
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

/* ----------------------------------------------------------------------------------------------------------- panel */

/* A unit of the panel: 8 registers of codes; then, of formats with integer scales, these as int32, and the minima as
 * pairs of int16. After the units of a block: d, dmin. */
Q_VNNI_INLINE bool q_z_int_minima(const q_z_format *f) { return f->dmin >= 0 && f->scales > 0; }
Q_VNNI_INLINE int64_t q_z_unit_bytes(const q_z_format *f) { return 512 + 64 * f->scales + 64 * q_z_int_minima(f); }
Q_VNNI_INLINE int64_t q_z_block_bytes(const q_z_format *f) {
    return f->units * q_z_unit_bytes(f) + 64 + 64 * (f->dmin >= 0);
}
Q_VNNI_INLINE int64_t q_z_panel_bytes(const q_z_format *f, int64_t k) {
    return k / (32 * f->units) * q_z_block_bytes(f);
}

Q_VNNI_INLINE void q_z_store_halves(const uint8_t *const *p, int at, uint8_t *to) {
    for (int r = 0; r < Q_Z_ROWS; r++) q_store32(to + 4 * r, q_f32_bits(q_half_to_f32(q_load16(p[r] + at))));
}

Q_VNNI_INLINE void q_z_unpack(const q_z_format *f, const uint8_t *const *row, int64_t blocks, uint8_t *panel) {
    for (int64_t i = 0; i < blocks; i++) {
        const uint8_t *p[Q_Z_ROWS];
        for (int r = 0; r < Q_Z_ROWS; r++) p[r] = row[r] + i * f->bytes;
        for (int sub = 0; sub < f->units; sub++, panel += q_z_unit_bytes(f)) {
            __m512i v[8];
            f->codes(p, sub, v);
            q_transpose4(v);
            q_transpose4(v + 4);
            Q_UNROLL for (int j = 0; j < 8; j++) _mm512_store_si512(panel + 64 * j, v[j]);
            for (int r = 0; f->scales && r < Q_Z_ROWS; r++) {
                const q_z_scales s = f->scale(p[r], sub);
                for (int g = 0; g < f->scales; g++) q_store32(panel + 512 + 64 * g + 4 * r, (uint32_t)(int32_t)s.sc[g]);
                if (q_z_int_minima(f))
                    q_store32(panel + 512 + 64 * f->scales + 4 * r,
                              (uint16_t)s.mn[0] | (uint32_t)(uint16_t)s.mn[1] << 16);
            }
        }
        q_z_store_halves(p, f->d, panel);
        if (f->dmin >= 0) q_z_store_halves(p, f->dmin, panel + 64);
        panel += 64 + 64 * (f->dmin >= 0);
    }
}

Q_VNNI_INLINE __m512i q_z_spread(const uint8_t *p) { return _mm512_set1_epi32((int)q_load32(p)); }

/* Sixteen times a unit's `from`-th to `to`-th four codes, of two panels and C columns, into sum. */
Q_VNNI_INLINE void q_z_multiply(int C, const uint8_t *const *unit, const uint8_t *const *x, int64_t at, int from,
                                int to, __m512i sum[2][Q_Z_COLUMNS]) {
    Q_UNROLL for (int g = from; g < to; g++) {
        const __m512i w0 = _mm512_load_si512(unit[0] + 64 * g), w1 = _mm512_load_si512(unit[1] + 64 * g);
        Q_UNROLL for (int c = 0; c < C; c++) {
            const __m512i a = q_z_spread(x[c] + at + 4 * g);
            sum[0][c] = _mm512_dpbusd_epi32(sum[0][c], w0, a);
            sum[1][c] = _mm512_dpbusd_epi32(sum[1][c], w1, a);
        }
    }
}

/* What sums begin with: minus the bias times the sums of activations, of the first 16, the last, or both. */
Q_VNNI_INLINE void q_z_open(const q_z_format *f, int C, const uint8_t *const *x, int64_t sums, bool first, bool second,
                            __m512i sum[2][Q_Z_COLUMNS]) {
    const uint32_t less = (uint16_t)-f->bias;
    const __m512i by = _mm512_set1_epi32((int)((first ? less : 0) | (second ? less << 16 : 0)));
    Q_UNROLL for (int c = 0; c < C; c++) {
        sum[0][c] = f->bias ? _mm512_madd_epi16(q_z_spread(x[c] + sums), by) : _mm512_setzero_si512();
        sum[1][c] = sum[0][c];
    }
}

/* Two panels, from front to back, times C columns. */
Q_VNNI_INLINE void q_z_columns(const q_z_format *f, int C, const uint8_t *const *panels, const uint8_t *const *x,
                               int64_t blocks, __m512 acc[2][Q_Z_COLUMNS]) {
    const uint8_t *unit[2] = {panels[0], panels[1]};
    const int64_t unit_bytes = q_z_unit_bytes(f);
    Q_UNROLL for (int c = 0; c < C; c++) acc[0][c] = acc[1][c] = _mm512_setzero_ps();
    int64_t act = 0; /* the block of activations */
    for (int64_t i = 0; i < blocks; i++) {
        const uint8_t *const ends[2] = {unit[0] + f->units * unit_bytes, unit[1] + f->units * unit_bytes};
        for (int sub = 0; sub < f->units; sub += f->act, act += q_z_act_bytes(f)) {
            __m512i total[2][Q_Z_COLUMNS];
            if (f->scales) Q_UNROLL for (int c = 0; c < C; c++) total[0][c] = total[1][c] = _mm512_setzero_si512();
            const uint8_t *const first[2] = {unit[0], unit[1]};
            for (int u = 0; u < f->act; u++, unit[0] += unit_bytes, unit[1] += unit_bytes) {
                const int64_t at = act + 4 + 4 * f->act + 32 * u, sums = act + 4 + 4 * u;
                const int pieces = f->scales == 2 ? 2 : 1;
                Q_UNROLL for (int g = 0; g < pieces; g++) {
                    __m512i sum[2][Q_Z_COLUMNS];
                    q_z_open(f, C, x, sums, g == 0, g == pieces - 1, sum);
                    q_z_multiply(C, unit, x, at, g * 4, g * 4 + 8 / pieces, sum);
                    Q_UNROLL for (int p = 0; p < 2; p++) {
                        const __m512i sc =
                            f->scales ? _mm512_load_si512(unit[p] + 512 + 64 * g) : _mm512_setzero_si512();
                        Q_UNROLL for (int c = 0; c < C; c++) {
                            if (f->scales) sum[p][c] = _mm512_add_epi32(total[p][c], _mm512_mullo_epi32(sum[p][c], sc));
                            total[p][c] = sum[p][c];
                        }
                    }
                }
            }
            Q_UNROLL for (int p = 0; p < 2; p++) {
                const __m512 d = _mm512_load_ps(ends[p]);
                Q_UNROLL for (int c = 0; c < C; c++) {
                    const __m512 da = _mm512_set1_ps(q_bits_f32(q_load32(x[c] + act)));
                    acc[p][c] = _mm512_fmadd_ps(_mm512_mul_ps(d, da), _mm512_cvtepi32_ps(total[p][c]), acc[p][c]);
                }
            }
            if (f->dmin < 0) continue;
            Q_UNROLL for (int c = 0; c < C; c++) total[0][c] = total[1][c] = _mm512_setzero_si512();
            for (int u = 0; u < f->act; u++) {
                __m512i mn[2];
                Q_UNROLL for (int p = 0; p < 2; p++) {
                    const uint8_t *at = first[p] + u * unit_bytes + 512 + 64 * f->scales;
                    mn[p] = q_z_int_minima(f) ? _mm512_load_si512(at) : _mm512_set1_epi16(-1);
                }
                Q_UNROLL for (int c = 0; c < C; c++) {
                    const __m512i s = q_z_spread(x[c] + act + 4 + 4 * u);
                    total[0][c] = _mm512_dpwssd_epi32(total[0][c], mn[0], s);
                    total[1][c] = _mm512_dpwssd_epi32(total[1][c], mn[1], s);
                }
            }
            Q_UNROLL for (int p = 0; p < 2; p++) {
                const __m512 d = _mm512_load_ps(ends[p] + 64);
                Q_UNROLL for (int c = 0; c < C; c++) {
                    const __m512 da = _mm512_set1_ps(q_bits_f32(q_load32(x[c] + act)));
                    acc[p][c] = _mm512_fnmadd_ps(_mm512_mul_ps(d, da), _mm512_cvtepi32_ps(total[p][c]), acc[p][c]);
                }
            }
        }
        unit[0] = ends[0] + 64 + 64 * (f->dmin >= 0);
        unit[1] = ends[1] + 64 + 64 * (f->dmin >= 0);
    }
}

Q_VNNI_INLINE void q_z_put(const q_z_format *f, int C, const q_mm *m, const uint8_t *const *panels, int64_t r,
                           int64_t c) {
    const uint8_t *x[Q_Z_COLUMNS];
    __m512 y[2][Q_Z_COLUMNS];
    Q_UNROLL for (int j = 0; j < C; j++) x[j] = m->x + Q_MIN(c + j, m->n - 1) * m->x_stride;
    q_z_columns(f, C, panels, x, m->k / (32 * f->units), y);
    Q_UNROLL for (int j = 0; j < C; j++) {
        if (c + j >= m->n) break;
        q_put16(m, r, c + j, y[0][j]);
        if (m->rows - r > Q_Z_ROWS) q_put16(m, r + Q_Z_ROWS, c + j, y[1][j]);
    }
}

Q_VNNI_INLINE void q_z_many(const q_z_format *f, const q_mm *m) {
    uint8_t *const space = (uint8_t *)m->scratch;
    const uint8_t *const panels[2] = {space, space + q_z_panel_bytes(f, m->k)};
    for (int64_t r = 0; r < m->rows; r += 2 * Q_Z_ROWS) {
        for (int64_t p = 0; p < 2; p++) {
            const uint8_t *row[Q_Z_ROWS]; /* rows that do not exist are the last one again */
            for (int64_t i = 0; i < Q_Z_ROWS; i++)
                row[i] = m->w + (uint64_t)Q_MIN(r + p * Q_Z_ROWS + i, m->rows - 1) * m->row_bytes;
            q_z_unpack(f, row, m->k / (32 * f->units), space + p * q_z_panel_bytes(f, m->k));
        }
        int64_t c = 0;
        for (; m->n - c > 2; c += Q_Z_COLUMNS) q_z_put(f, Q_Z_COLUMNS, m, panels, r, c);
        for (; c < m->n; c += 2) q_z_put(f, 2, m, panels, r, c);
    }
}

/* PRODUCT's two functions. A plan for n columns also runs with fewer. */
#define Q_Z_PRODUCT(name, format)                                                                                      \
    Q_VNNI uint64_t q_##name##_scratch(int64_t k, int64_t n) {                                                         \
        const uint64_t few = q_z_stream_scratch(&format, k, Q_MIN(n, (int64_t)Q_Z_PANEL_FROM - 1));                    \
        const uint64_t many = n < Q_Z_PANEL_FROM ? 0 : 2 * (uint64_t)q_z_panel_bytes(&format, k);                      \
        return Q_MAX(few, many);                                                                                       \
    }                                                                                                                  \
    Q_VNNI void q_##name(const q_mm *m) {                                                                              \
        if (m->n < Q_Z_PANEL_FROM)                                                                                     \
            q_z_few(&format, m);                                                                                       \
        else                                                                                                           \
            q_z_many(&format, m);                                                                                      \
    }

#endif
