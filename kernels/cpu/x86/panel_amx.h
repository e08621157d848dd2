/* panel_amx.h: AMX products of packed weights with 8-bit activations and many columns. What a format consists of is a
 * q_p_format (rows16_avx512.h), what tiles do is amx.h. Layer L2.
 *
 * The sixteen rows of a panel are the columns of tile B, as the layout has them side by side in words of four codes;
 * sixteen columns of activations are the rows of tile A. The 16 x 16 sums are stored and scaled by AVX-512, sixteen
 * rows in the lanes, in op.h's order, some steps later: operations of tiles alternate with a few vector operations all
 * the way through a panel. Where a core is shared, operations of tiles that follow one another directly wait for each
 * other.
 *
 * Integer scales are multiplied into the codes when a panel is unpacked, so that one sum spans all weights of a block
 * of activations: sc * q is a signed byte, or below 2^13 and then two, 128 * high + low, in two planes whose sums are
 * added after. All of it is exact.
 *
 * Rows are taken in chunks of Q_T_CHUNK weights: a panel of a chunk stays in the first cache while all columns pass,
 * and the same chunk of the columns in the second while the rows of a band pass. The columns of a chunk are copied to
 * where no row of a tile crosses a cache line, which costs tiles more than anything else; what they bring beside codes
 * is put in lanes. What a chunk has added waits in memory for the next. Few columns go to the AVX-512 VNNI kernel of
 * the same layout. */
#ifndef Q_PANEL_AMX_H
#define Q_PANEL_AMX_H

#include "amx.h"
#include "rows16_formats_avx512.h"

enum {
    Q_T_CHUNK = 512,     /* weights of a row at a time */
    Q_T_BAND = 16,       /* panels that a chunk of the columns meets before the next chunk */
    Q_T_SPAN = 512,      /* columns at a time */
    Q_T_BLOCK = 256,     /* weights that share an integer sum, of formats with activations in blocks of 256 */
    Q_T_SUMS = 4 * Q_T_TILE,
    Q_T_TURNS = 4,       /* tiles of sums, of activations in blocks of 32 */
    Q_T_BEHIND = 5,      /* steps from such sums to what scales them: they were stored a step ago */
    Q_T_COLUMNS_AHEAD = 12 /* columns that are asked for before they are copied */
};

typedef struct q_t_format {
    const q_p_format *p;
    int planes;   /* 1, or, of activations in blocks of 256, 2: 128 * high + low */
    bool negated; /* one plane of codes times scales of which the largest, 128, is a byte as -128 alone */
    int from;     /* columns from which tiles are faster */
} q_t_format;

/* ------------------------------------------------------------------------------------------------------ unpacking */

/* A piece of an unpacked panel: 32 weights, or with activations in blocks of 256 as many. Words of codes, the low plane
 * then the high one; d; dmin where there are minima; pairs of integer minima where there are any. */
Q_VNNI_INLINE int64_t q_t_weights(const q_t_format *f) { return 32 * f->p->s.act; }
Q_VNNI_INLINE int64_t q_t_d_at(const q_t_format *f) { return f->planes * 16 * q_t_weights(f); }
Q_VNNI_INLINE int q_t_pairs(const q_t_format *f) {
    return f->p->s.minima ? 4 * f->p->s.scales : 0;
}
Q_VNNI_INLINE int64_t q_t_piece_bytes(const q_t_format *f) {
    return q_t_d_at(f) + 64 + (f->p->s.minima ? 64 : 0) + 64 * q_t_pairs(f);
}

/* Codes of four weights of each row times the row's scale (int32), to the planes at `to`. */
Q_VNNI_INLINE void q_t_scaled(const q_t_format *f, __m512i codes, __m512i scale, uint8_t *to) {
    if (f->negated) scale = _mm512_sub_epi32(_mm512_setzero_si512(), scale);
    const __m512i by = _mm512_mask_blend_epi16(0xAAAAAAAAu, scale, _mm512_slli_epi32(scale, 16));
    __m512i v[2] = {_mm512_srai_epi16(_mm512_slli_epi16(codes, 8), 8), _mm512_srai_epi16(codes, 8)}, high[2];
    Q_UNROLL for (int i = 0; i < 2; i++) {
        v[i] = _mm512_mullo_epi16(v[i], by);
        if (f->planes == 1) continue;
        high[i] = _mm512_srai_epi16(_mm512_add_epi16(v[i], _mm512_set1_epi16(64)), 7);
        v[i] = _mm512_sub_epi16(v[i], _mm512_slli_epi16(high[i], 7));
    }
    const __mmask64 odd = 0xAAAAAAAAAAAAAAAAu;
    _mm512_store_si512(to, _mm512_mask_blend_epi8(odd, v[0], _mm512_slli_epi16(v[1], 8)));
    if (f->planes == 2)
        _mm512_store_si512(to + 16 * q_t_weights(f),
                           _mm512_mask_blend_epi8(odd, high[0], _mm512_slli_epi16(high[1], 8)));
}

/* Unit `span` * i + u of the block at p: its codes to `to`. */
Q_VNNI_INLINE void q_t_unpack_unit(const q_t_format *f, const uint8_t *p, int i, int u, uint8_t *to) {
    const q_p_format *pf = f->p;
    const int unit = pf->span * i + u;
    __m512i scale[2];
    if (pf->s.scales) scale[0] = scale[1] = pf->scale(p, unit, 0);
    if (pf->s.scales == 2) scale[1] = pf->scale(p, unit, 1);
    Q_UNROLL for (int g = 0; g < 8; g++) {
        __m512i v = pf->codes(p, i, u, g);
        if (pf->s.bias) v = _mm512_sub_epi8(v, _mm512_set1_epi8((char)pf->s.bias));
        if (pf->s.scales)
            q_t_scaled(f, v, scale[g / 4], to + 64 * g);
        else
            _mm512_store_si512(to + 64 * g, v);
    }
}

/* What scales the piece that begins at `unit` of the block at p. */
Q_VNNI_INLINE void q_t_unpack_head(const q_t_format *f, const uint8_t *p, int unit, uint8_t *piece) {
    uint8_t *to = piece + q_t_d_at(f);
    _mm512_store_ps((float *)(void *)to, f->p->d(p, unit));
    if (!f->p->s.minima) return;
    _mm512_store_ps((float *)(void *)(to + 64), f->p->dmin(p, unit));
    for (int j = 0; j < q_t_pairs(f); j++) _mm512_store_si512(to + 128 + 64 * j, f->p->pair(p, j));
}

/* `units` units of a panel, from the block at p on. */
Q_VNNI_INLINE void q_t_unpack(const q_t_format *f, const uint8_t *p, int64_t units, uint8_t *to) {
    const q_p_format *pf = f->p;
    for (int64_t b = 0; b < units; b += pf->units, p += pf->bytes) {
        if (pf->s.act > 1) q_t_unpack_head(f, p, 0, to);
        for (int i = 0; i < pf->units / pf->span; i++) {
            if (pf->units < 8 && b + i >= units) break; /* a last block that is not full */
            Q_UNROLL for (int u = 0; u < pf->span; u++) {
                const int unit = pf->span * i + u;
                if (pf->s.act > 1) {
                    q_t_unpack_unit(f, p, i, u, to + 512 * unit);
                } else {
                    q_t_unpack_head(f, p, unit, to);
                    q_t_unpack_unit(f, p, i, u, to);
                    to += q_t_piece_bytes(f);
                }
            }
        }
        if (pf->s.act > 1) to += q_t_piece_bytes(f);
    }
}

/* A piece of sixteen columns: codes as rows of tiles, of 32 or, one tile after the other, of 64 bytes; then for each
 * column d; with minima of sums of activations alone minus their sum, as a float; with integer minima sums in pairs of
 * int16. */
Q_VNNI_INLINE int64_t q_t_act_bytes(const q_t_format *f) { return 4 + 36 * f->p->s.act; }
Q_VNNI_INLINE int64_t q_t_da_at(const q_t_format *f) { return 16 * q_t_weights(f); }
Q_VNNI_INLINE int64_t q_t_columns_bytes(const q_t_format *f) {
    return q_t_da_at(f) + 64 + 64 * (f->p->s.minima && !f->p->s.scales ? 1 : q_t_pairs(f));
}

/* Column c of sixteen: a block of activations to its piece. */
Q_VNNI_INLINE void q_t_take(const q_t_format *f, const uint8_t *x, int c, uint8_t *to) {
    uint8_t *head = to + q_t_da_at(f) + 4 * c;
    q_store32(head, q_load32(x));
    if (f->p->s.act == 1) {
        _mm256_store_si256((__m256i *)(void *)(to + 32 * c),
                           _mm256_loadu_si256((const __m256i *)(const void *)(x + 8)));
        if (!f->p->s.minima) return;
        const int16_t *sum = (const int16_t *)(const void *)(x + 4);
        q_store32(head + 64, q_f32_bits((float)-(sum[0] + sum[1])));
        return;
    }
    Q_UNROLL for (int j = 0; j < 4; j++)
        _mm512_store_si512(to + Q_T_TILE * j + 64 * c, _mm512_loadu_si512(x + 36 + 64 * j));
    if (q_t_pairs(f) == 4) {
        const __m128i v = _mm_hadd_epi16(q_z_load128(x + 4), q_z_load128(x + 20));
        q_store32(head + 64, (uint32_t)_mm_extract_epi32(v, 0));
        q_store32(head + 128, (uint32_t)_mm_extract_epi32(v, 1));
        q_store32(head + 192, (uint32_t)_mm_extract_epi32(v, 2));
        q_store32(head + 256, (uint32_t)_mm_extract_epi32(v, 3));
    }
    if (q_t_pairs(f) == 8) Q_UNROLL for (int j = 0; j < 8; j++) q_store32(head + 64 + 64 * j, q_load32(x + 4 + 4 * j));
}

/* -------------------------------------------------------------------------------------------------------- products */

/* The exact integers of a column that stand at `sums`, as floats. While tiles multiply, one of the two ports for
 * vectors takes sums but no conversions, shifts or products. So an integer, below 2^22 in magnitude, is added to the
 * bits of 1.5 * 2^23, whose last bit is worth 1, and one to be counted 128 times to those of 1.5 * 2^30, whose last is
 * worth 128. All is exact up to the last sum, which rounds as a conversion does. */
Q_VNNI_INLINE __m512 q_t_integers(const q_t_format *f, const uint8_t *sums) {
    const __m512 one = _mm512_set1_ps(0x1.8p23f), many = _mm512_set1_ps(0x1.8p30f);
    const __m512 v = _mm512_castsi512_ps(_mm512_add_epi32(_mm512_castps_si512(one), _mm512_load_si512(sums)));
    if (f->negated) return _mm512_sub_ps(one, v);
    if (f->planes == 1) return _mm512_sub_ps(v, one);
    const __m512i high = _mm512_add_epi32(_mm512_castps_si512(many), _mm512_load_si512(sums + Q_T_TILE));
    return _mm512_add_ps(_mm512_sub_ps(_mm512_castsi512_ps(high), _mm512_set1_ps(0x1.8p30f + 0x1.8p23f)), v);
}

/* Part 0 .. 3 of a step with activations in blocks of 32: a piece of 32 weights times sixteen columns. Tiles of sums
 * take turns; what one has of Q_T_TURNS steps before is stored to `into`. */
#define Q_T_PART32(part, sum, a, b)                                                                                    \
    do {                                                                                                               \
        if (part == 0) Q_T_STORE(sum, into, 64);                                                                       \
        if (part == 0) Q_T_ZERO(sum);                                                                                  \
        if (part == 1) Q_T_LOAD(a, x, 32);                                                                             \
        if (part == 2) Q_T_LOAD(b, w, 64);                                                                             \
        if (part == 3) Q_T_MULTIPLY(sum, a, b);                                                                        \
    } while (0)
Q_VNNI_INLINE void q_t_part32(int turn, int part, const uint8_t *w, const uint8_t *x, uint8_t *into) {
    if (turn == 0) Q_T_PART32(part, 0, 4, 6);
    if (turn == 1) Q_T_PART32(part, 1, 5, 7);
    if (turn == 2) Q_T_PART32(part, 2, 4, 6);
    if (turn == 3) Q_T_PART32(part, 3, 5, 7);
}

/* Where the products of a panel have come to: step s, its piece of the panel, its piece of the columns. */
typedef struct q_t_way {
    const uint8_t *w, *x;
    int64_t s, piece;
} q_t_way;

/* The products of a step, while sums of Q_T_BEHIND steps before are scaled by what stands at `head` and `by`, and added
 * to acc. */
Q_VNNI_INLINE void q_t_turn32(const q_t_format *f, int turn, const q_t_way *a, uint8_t *sums, bool scale,
                              const uint8_t *head, const uint8_t *by, __m512 acc[16]) {
    const uint8_t *from = sums + (turn + Q_T_BEHIND * (Q_T_TURNS - 1)) % Q_T_TURNS * Q_T_TILE;
    const __m512 d = scale ? _mm512_load_ps((const float *)(const void *)head) : _mm512_setzero_ps();
    const __m512 dmin = scale && f->p->s.minima ? _mm512_load_ps((const float *)(const void *)(head + 64)) : d;
    Q_UNROLL for (int part = 0; part < 4; part++) {
        q_t_part32(turn, part, a->w, a->x, sums + turn * Q_T_TILE);
        if (!scale) continue;
        Q_UNROLL for (int c = 4 * part; c < 4 * part + 4; c++) {
            const __m512 da = q_z_spread_f32(by + 4 * c);
            acc[c] = _mm512_fmadd_ps(_mm512_mul_ps(d, da), q_t_integers(f, from + 64 * c), acc[c]);
            if (f->p->s.minima)
                acc[c] = _mm512_fnmadd_ps(_mm512_mul_ps(dmin, da), q_z_spread_f32(by + 64 + 4 * c), acc[c]);
        }
    }
}

/* The same, and on to the next of `steps` steps. After the last it is done again, and what it gives is not read. */
Q_VNNI_INLINE void q_t_step32(const q_t_format *f, q_t_way *a, int64_t pieces, int64_t steps, uint8_t *sums, bool scale,
                              const uint8_t *head, const uint8_t *by, __m512 acc[16]) {
    switch (a->s % Q_T_TURNS) {
    case 0: q_t_turn32(f, 0, a, sums, scale, head, by, acc); break;
    case 1: q_t_turn32(f, 1, a, sums, scale, head, by, acc); break;
    case 2: q_t_turn32(f, 2, a, sums, scale, head, by, acc); break;
    default: q_t_turn32(f, 3, a, sums, scale, head, by, acc); break;
    }
    if (++a->s >= steps) return;
    a->x += q_t_columns_bytes(f);
    a->w += q_t_piece_bytes(f);
    if (++a->piece < pieces) return;
    a->piece = 0;
    a->w -= pieces * q_t_piece_bytes(f);
}

/* A step with activations in blocks of 256: a piece of 256 weights times two sixteens of columns. */
typedef struct q_t_step {
    const uint8_t *w, *x[2];
    float *to;  /* what its sums are added to, [column][row] */
    bool first; /* nothing is there yet */
} q_t_step;

/* One of 32 parts of the products of a step: tiles of 64 weights are loaded and multiplied. In the first eight, what
 * tiles have of the step before is stored to `into` ahead of new sums. */
Q_VNNI_INLINE void q_t_part256(const q_t_format *f, const q_t_step *s, int part, bool store, bool multiply,
                               uint8_t *into) {
    const int64_t at = Q_T_TILE * (part / 8);
    const bool begins = part < 8, two = f->planes == 2;
    store = store && begins;
    switch (part % 8) {
    case 0:
        if (multiply) Q_T_LOAD(6, s->w + at, 64);
        break;
    case 1:
        if (store) Q_T_STORE(0, into, 64);
        if (multiply) Q_T_LOAD(4, s->x[0] + at, 64);
        break;
    case 2:
        if (!multiply) break;
        if (begins) Q_T_ZERO(0);
        Q_T_MULTIPLY(0, 4, 6);
        break;
    case 3:
        if (store) Q_T_STORE(2, into + 2 * Q_T_TILE, 64);
        if (multiply) Q_T_LOAD(5, s->x[1] + at, 64);
        break;
    case 4:
        if (!multiply) break;
        if (begins) Q_T_ZERO(2);
        Q_T_MULTIPLY(2, 5, 6);
        break;
    case 5:
        if (store && two) Q_T_STORE(1, into + Q_T_TILE, 64);
        if (multiply && two) Q_T_LOAD(7, s->w + 4 * Q_T_TILE + at, 64);
        break;
    case 6:
        if (store && two) Q_T_STORE(3, into + 3 * Q_T_TILE, 64);
        if (!multiply || !two) break;
        if (begins) Q_T_ZERO(1);
        Q_T_MULTIPLY(1, 4, 7);
        break;
    default:
        if (!multiply || !two) break;
        if (begins) Q_T_ZERO(3);
        Q_T_MULTIPLY(3, 5, 7);
        break;
    }
}

/* What scales the rows of a piece of 256 weights. */
typedef struct q_t_head {
    __m512 d, dmin;
    __m512i pair[8];
} q_t_head;

Q_VNNI_INLINE q_t_head q_t_read_head(const q_t_format *f, const uint8_t *w) {
    const uint8_t *at = w + q_t_d_at(f);
    q_t_head h;
    h.d = h.dmin = _mm512_load_ps((const float *)(const void *)at);
    if (f->p->s.minima) h.dmin = _mm512_load_ps((const float *)(const void *)(at + 64));
    Q_UNROLL for (int j = 0; j < q_t_pairs(f); j++) h.pair[j] = _mm512_load_si512(at + 128 + 64 * j);
    return h;
}

/* Column c of sixteen: the sums of a piece of 256 weights are scaled and added to `to`. `by`: what scales the
 * columns. */
Q_VNNI_INLINE void q_t_scale256(const q_t_format *f, const q_t_head *h, const uint8_t *by, int c, bool first,
                                const uint8_t *sums, float *to) {
    const __m512 da = q_z_spread_f32(by + 4 * c);
    __m512 acc = first ? _mm512_setzero_ps() : _mm512_load_ps(to + 16 * c);
    acc = _mm512_fmadd_ps(_mm512_mul_ps(h->d, da), q_t_integers(f, sums + 64 * c), acc);
    if (f->p->s.minima) {
        __m512i least = _mm512_setzero_si512();
        Q_UNROLL for (int j = 0; j < q_t_pairs(f); j++)
            least = _mm512_dpwssd_epi32(least, h->pair[j], q_z_spread(by + 64 + 64 * j + 4 * c));
        acc = _mm512_fnmadd_ps(_mm512_mul_ps(h->dmin, da), _mm512_cvtepi32_ps(least), acc);
    }
    _mm512_store_ps(to + 16 * c, acc);
}

/* The products of step `s`, while the sums of the step before are stored to `into`, and those of step `done`, which
 * stand at `from`, are scaled. */
Q_VNNI_INLINE void q_t_step256(const q_t_format *f, const q_t_step *s, const q_t_step *done, bool multiply, bool store,
                               bool scale, uint8_t *into, const uint8_t *from) {
    const q_t_head h = q_t_read_head(f, done->w);
    Q_UNROLL for (int part = 0; part < 32; part++) {
        const int i = part / 16;
        q_t_part256(f, s, part, store, multiply, into);
        if (scale)
            q_t_scale256(f, &h, done->x[i] + q_t_da_at(f), part % 16, done->first, from + 2 * i * Q_T_TILE,
                         done->to + 256 * i);
    }
}

/* ------------------------------------------------------------------------------------------------------- the order */

/* Where things lie in a kernel's scratch, which begins with the unpacked panel of a chunk. */
typedef struct q_t_space {
    int64_t sixteens; /* of columns of a span, in pairs */
    int64_t sums, x, acc, bytes;
} q_t_space;

Q_VNNI_INLINE q_t_space q_t_lay_out(const q_t_format *f, int64_t n) {
    const int64_t pieces = Q_T_CHUNK / q_t_weights(f);
    q_t_space s = {.sixteens = (Q_MIN(n, (int64_t)Q_T_SPAN) + 31) / 32 * 2};
    s.sums = pieces * q_t_piece_bytes(f);
    s.x = s.sums + 2 * Q_T_SUMS;                                   /* [sixteen][piece] */
    s.acc = s.x + s.sixteens * pieces * q_t_columns_bytes(f);      /* [panel of the band][sixteen][column][row] */
    s.bytes = s.acc + Q_T_BAND * s.sixteens * Q_T_TILE;
    return s;
}

/* Columns [c, end) in a chunk of weights. */
typedef struct q_t_part {
    uint8_t *panel, *sums, *x;
    int64_t c, end, from, weights;
    const uint8_t *next; /* of the next panel, in the layout */
    int64_t next_bytes;
} q_t_part;

/* Ask for bytes that are read soon, and for the places of rows r .. r + 31 of y, which are written soon. */
Q_VNNI_INLINE void q_t_ask(const uint8_t *p, int64_t bytes) {
    for (int64_t i = 0; i < bytes; i += 64) _mm_prefetch((const char *)p + i, _MM_HINT_T0);
}
Q_VNNI_INLINE void q_t_ask_results(const q_mm *m, int64_t r, int64_t c, int64_t end) {
    for (; c < end; c++) {
        const uintptr_t y = (uintptr_t)m->y + (uintptr_t)(c * m->y_stride + r) * sizeof(float);
        _mm_prefetch((const char *)y, _MM_HINT_T0);
        _mm_prefetch((const char *)y + 64, _MM_HINT_T0);
    }
}

/* Ask for what belongs to columns c .. end - 1 of the part: their places in rows r .. r + 15 of y, with `ends`; their
 * share of the next panel, which comes from memory. */
Q_VNNI_INLINE void q_t_ask_ahead(const q_mm *m, const q_t_part *t, int64_t r, int64_t c, int64_t end, bool ends) {
    const int64_t n = t->end - t->c, lines = t->next_bytes / 64;
    end = Q_MIN(end, t->end);
    if (ends) q_t_ask_results(m, r, c, end);
    for (int64_t i = lines * (c - t->c) / n; i < lines * (end - t->c) / n; i++)
        _mm_prefetch((const char *)t->next + 64 * i, _MM_HINT_T1);
}

/* The columns to their pieces; of those that a last pair of sixteens lacks, the last one again. */
Q_VNNI_INLINE void q_t_take_all(const q_t_format *f, const q_mm *m, const q_t_part *t) {
    const int64_t pieces = t->weights / q_t_weights(f);
    uint8_t *to = t->x;
    for (int64_t c = t->c; c < t->c + (t->end - t->c + 31) / 32 * 32; c++) {
        const uint8_t *x = m->x + Q_MIN(c, t->end - 1) * m->x_stride + t->from / q_t_weights(f) * q_t_act_bytes(f);
        const int column = (int)((c - t->c) & 15);
        q_t_ask(x + Q_T_COLUMNS_AHEAD * m->x_stride * (c + Q_T_COLUMNS_AHEAD < t->end), pieces * q_t_act_bytes(f));
        for (int64_t i = 0; i < pieces; i++)
            q_t_take(f, x + i * q_t_act_bytes(f), column, to + i * q_t_columns_bytes(f));
        if (column == 15) to += pieces * q_t_columns_bytes(f);
    }
}

/* A chunk of a panel, whose first row is r of y, times all columns of the part; to: what they add to, [column][row].
 * Activations in blocks of 32. */
Q_VNNI_INLINE void q_t_pass32(const q_t_format *f, const q_mm *m, const q_t_part *t, int64_t r, float *to) {
    const int64_t pieces = t->weights / q_t_weights(f), steps = (t->end - t->c + 15) / 16 * pieces;
    const bool ends = t->from + t->weights == m->k;
    q_t_way a = {t->panel, t->x, 0, 0};
    const uint8_t *by = t->x + q_t_da_at(f);
    __m512 acc[16];
    while (a.s < Q_T_BEHIND) q_t_step32(f, &a, pieces, steps, t->sums, false, t->panel, by, acc);
    for (int64_t c = t->c; c < t->end; c += 16, to += 256) {
        const uint8_t *head = t->panel + q_t_d_at(f);
        q_t_ask_ahead(m, t, r, c, c + 16, ends);
        Q_UNROLL for (int j = 0; j < 16; j++) acc[j] = t->from == 0 ? _mm512_setzero_ps() : _mm512_load_ps(to + 16 * j);
        for (int64_t i = 0; i < pieces; i++) {
            q_t_step32(f, &a, pieces, steps, t->sums, true, head, by, acc);
            head += q_t_piece_bytes(f);
            by += q_t_columns_bytes(f);
        }
        Q_UNROLL for (int j = 0; j < 16; j++) {
            if (!ends) _mm512_store_ps(to + 16 * j, acc[j]);
            else if (c + j < t->end) q_z_put16(m, r, c + j, acc[j]);
        }
    }
}

/* Activations in blocks of 256: products are two steps ahead of what scales them. */
Q_VNNI_INLINE void q_t_pass256(const q_t_format *f, const q_mm *m, const q_t_part *t, int64_t r, float *to) {
    const int64_t pieces = t->weights / q_t_weights(f), sixteen = pieces * q_t_columns_bytes(f);
    const int64_t steps = (t->end - t->c + 31) / 32 * pieces;
    const bool ends = t->from + t->weights == m->k;
    q_t_step now = {t->panel, {t->x, t->x + sixteen}, to, t->from == 0}, before = now, done = now;
    for (int64_t s = 0, piece = 0, begun = t->c, c = t->c; s < steps + 2; s++) {
        uint8_t *const into = t->sums + (~s & 1) * Q_T_SUMS, *const from = t->sums + (s & 1) * Q_T_SUMS;
        if (piece == 0 && begun < t->end) q_t_ask_ahead(m, t, r, begun, begun + 32, ends), begun += 32;
        if (s >= 2 && s < steps)
            q_t_step256(f, &now, &done, true, true, true, into, from);
        else
            q_t_step256(f, &now, &done, s < steps, s >= 1 && s <= steps, s >= 2, into, from);
        if (ends && s >= 2 && done.w == t->panel + (pieces - 1) * q_t_piece_bytes(f))
            for (const int64_t end = Q_MIN(c + 32, t->end), c0 = c; c < end; c++)
                q_z_put16(m, r, c, _mm512_load_ps(done.to + 16 * (c - c0)));
        done = before;
        before = now;
        if (++piece < pieces) {
            now = (q_t_step){now.w + q_t_piece_bytes(f),
                             {now.x[0] + q_t_columns_bytes(f), now.x[1] + q_t_columns_bytes(f)}, now.to, false};
        } else {
            piece = 0;
            now.x[0] = now.x[1] + q_t_columns_bytes(f);
            now = (q_t_step){t->panel, {now.x[0], now.x[0] + sixteen}, now.to + 512, t->from == 0};
        }
    }
}

/* A chunk of panels begin .. end - 1. */
Q_VNNI_INLINE void q_t_band(const q_t_format *f, const q_mm *m, q_t_part *t, int64_t begin, int64_t end, float *acc,
                            int64_t pitch) {
    q_t_take_all(f, m, t);
    for (int64_t i = begin; i < end; i++, acc += pitch) {
        const uint8_t *w = m->w + (uint64_t)i * m->row_bytes + t->from / 32 / f->p->units * f->p->bytes;
        t->next = w + m->row_bytes;
        t->next_bytes = i + 1 < end ? t->weights / 32 / f->p->units * f->p->bytes : 0;
        q_t_unpack(f, w, t->weights / 32, t->panel);
        if (f->p->s.act > 1)
            q_t_pass256(f, m, t, i * Q_PANEL - m->row, acc);
        else
            q_t_pass32(f, m, t, i * Q_PANEL - m->row, acc);
    }
}

Q_VNNI_INLINE void q_t_product(const q_t_format *f, const q_mm *m) {
    const int64_t first = m->row / Q_PANEL, last = (m->row + m->rows + Q_PANEL - 1) / Q_PANEL;
    const q_t_space s = q_t_lay_out(f, m->n);
    const q_t_config shapes = q_t_shapes(f->p->s.act == 1 ? 32 : 64);
    uint8_t *const scratch = (uint8_t *)m->scratch;
    q_t_part t = {.panel = scratch, .sums = scratch + s.sums, .x = scratch + s.x};
    Q_T_BEGIN(&shapes);
    for (; t.c < m->n; t.c = t.end) {
        t.end = Q_MIN(t.c + Q_T_SPAN, m->n);
        for (int64_t band = first; band < last; band += Q_T_BAND)
            for (t.from = 0; t.from < m->k; t.from += Q_T_CHUNK) {
                t.weights = Q_MIN(m->k - t.from, (int64_t)Q_T_CHUNK);
                q_t_band(f, m, &t, band, Q_MIN(band + Q_T_BAND, last), (float *)(void *)(scratch + s.acc),
                         s.sixteens * 256);
            }
    }
    Q_T_END();
}

/* PACKED's two functions. A plan for n columns also runs with fewer. */
#define Q_T_PRODUCT(name, few, ...)                                                                                    \
    static const q_t_format name##_format = __VA_ARGS__;                                                               \
    Q_VNNI uint64_t Q_T_NAME(name##_scratch)(int64_t k, int64_t n) {                                                   \
        const uint64_t less = q_##few##_scratch(k, Q_MIN(n, (int64_t)name##_format.from - 1));                         \
        return n < name##_format.from ? less : Q_MAX(less, (uint64_t)q_t_lay_out(&name##_format, n).bytes);            \
    }                                                                                                                  \
    Q_VNNI void Q_T_NAME(name)(const q_mm *m) {                                                                        \
        if (m->n < name##_format.from)                                                                                 \
            q_##few(m);                                                                                                \
        else                                                                                                           \
            q_t_product(&name##_format, m);                                                                            \
    }

#endif
