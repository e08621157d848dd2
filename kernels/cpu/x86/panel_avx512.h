/* panel_avx512.h: AVX-512 VNNI products with 8-bit activations and more than a few columns, of rows as they lie in a
 * file (a q_z_format of i8_avx512.h says how codes come out of them) and of packed weights (rows16_avx512.h). Layer L2.
 *
 * Sixteen rows are unpacked into a panel, in which a register holds four consecutive codes of each row; two panels meet
 * six columns at a time: one broadcast of four activations feeds 32 rows, and nothing is added across. Twelve sums hide
 * the latency; what bounds the loops is instructions on 512 bits, of which there are two per cycle (or two that
 * multiply), so that scales, minima and biases are applied with as few of them as op.h's sums allow, and all else is
 * loads.
 *
 * Rows are taken in chunks of Q_Z_CHUNK weights: two panels of a chunk stay in the first cache while all columns pass,
 * and the same chunk of these columns in the second while the rows of a band pass. What a chunk has added waits in
 * memory for the next: the order of op.h, which goes along a row, is kept. */
#ifndef Q_PANEL_AVX512_H
#define Q_PANEL_AVX512_H

#include "i8_avx512.h"

enum {
    Q_Z_COLUMNS = 6,
    Q_Z_CHUNK = 512,            /* weights of a row at a time, and */
    Q_Z_UNITS = Q_Z_CHUNK / 32, /* units of them */
    Q_Z_PAIR = 2 * Q_Z_ROWS,    /* rows of two panels */
    Q_Z_BAND = 4,               /* pairs of panels that a chunk of the columns meets before the next chunk */
    Q_Z_SPAN = 86 * Q_Z_COLUMNS /* columns at a time, which with a band's sums take two thirds of a MiB */
};

/* ------------------------------------------------------------------------------------------------------- a panel */

/* A block of the panel: per unit 8 registers of codes, then its integer scales as int32 (as floats, where those are
 * exact); after the units pairs of minima as int16 (of the halves of a unit with two scales, else of two units), d,
 * dmin. With act 0 a block is a chunk. */
Q_VNNI_INLINE bool q_z_int_minima(const q_z_shape *f) { return f->minima && f->scales > 0; }
Q_VNNI_INLINE int64_t q_z_unit_bytes(const q_z_shape *f) { return 512 + 64 * f->scales; }
Q_VNNI_INLINE int64_t q_z_minima_at(const q_z_shape *f) { return f->units * q_z_unit_bytes(f); }
Q_VNNI_INLINE int64_t q_z_d_at(const q_z_shape *f) {
    return q_z_minima_at(f) + (q_z_int_minima(f) ? 32 * f->units * f->scales : 0);
}
Q_VNNI_INLINE int64_t q_z_block_bytes(const q_z_shape *f) { return q_z_d_at(f) + 64 + 64 * f->minima; }
Q_VNNI_INLINE int64_t q_z_panel_bytes(const q_z_shape *f) { return Q_Z_UNITS / f->units * q_z_block_bytes(f); }

Q_VNNI_INLINE void q_z_store_scale(const q_z_shape *f, uint8_t *to, __m512i scale) {
    _mm512_store_si512(to, f->exact ? _mm512_castps_si512(_mm512_cvtepi32_ps(scale)) : scale);
}

/* --------------------------------------------------------------------------------------------------- from rows */

/* The half at byte `at` of sixteen blocks, as floats. */
Q_VNNI_INLINE __m512 q_z_halves16(const uint8_t *const *p, int at) {
#define HALF(i) (short)q_load16(p[i] + at)
    return _mm512_cvtph_ps(_mm256_setr_epi16(HALF(0), HALF(1), HALF(2), HALF(3), HALF(4), HALF(5), HALF(6), HALF(7),
                                             HALF(8), HALF(9), HALF(10), HALF(11), HALF(12), HALF(13), HALF(14),
                                             HALF(15)));
#undef HALF
}

/* Scales and minima of sixteen blocks to their places in the panel. */
Q_VNNI_INLINE void q_z_unpack_scales(const q_z_format *f, const uint8_t *const *p, uint8_t *block) {
    const q_z_shape *s = &f->s;
    __m512i sc[4], mn[4];
    f->scale(p, sc, mn);
    Q_UNROLL for (int i = 0; i < s->units * s->scales; i++) {
        const __m512i v = _mm512_srai_epi32(_mm512_slli_epi32(sc[i / 4], 24 - 8 * ((unsigned)i & 3)), 24);
        q_z_store_scale(s, block + i / s->scales * q_z_unit_bytes(s) + 512 + 64 * (i % s->scales), v);
    }
    if (!q_z_int_minima(s)) return;
    const __m512i bytes = _mm512_set1_epi32(0x00FF00FF);
    Q_UNROLL for (int i = 0; i < s->units * s->scales / 2; i++) {
        const __m512i v = i & 1 ? _mm512_srli_epi32(mn[i / 2], 16) : mn[i / 2];
        const __m512i pair = _mm512_mask_blend_epi16(0xAAAAAAAAu, v, _mm512_slli_epi32(v, 8));
        _mm512_store_si512(block + q_z_minima_at(s) + 64 * i, _mm512_and_si512(pair, bytes));
    }
}

/* Blocks of sixteen rows. */
Q_VNNI_INLINE void q_z_unpack(const q_z_format *f, const uint8_t *const *row, int64_t blocks, uint8_t *panel) {
    for (int64_t i = 0; i < blocks; i++, panel += q_z_block_bytes(&f->s)) {
        const uint8_t *p[Q_Z_ROWS];
        for (int r = 0; r < Q_Z_ROWS; r++) p[r] = row[r] + i * f->bytes;
        for (int sub = 0; sub < f->s.units; sub++) {
            uint8_t *const unit = panel + sub * q_z_unit_bytes(&f->s);
            __m512i v[8];
            f->codes(p, sub, v);
            q_transpose4(v);
            q_transpose4(v + 4);
            Q_UNROLL for (int j = 0; j < 8; j++) _mm512_store_si512(unit + 64 * j, v[j]);
        }
        if (f->s.scales) q_z_unpack_scales(f, p, panel);
        _mm512_store_ps(panel + q_z_d_at(&f->s), q_z_halves16(p, f->d));
        if (f->s.minima) _mm512_store_ps(panel + q_z_d_at(&f->s) + 64, q_z_halves16(p, f->dmin));
    }
}

/* ------------------------------------------------------------------------------------------------ from activations */

/* What weights from `from` on meet in a column of k activations. */
Q_VNNI_INLINE int64_t q_z_act_at(const q_z_shape *f, int64_t k, int64_t from) {
    return f->act ? from / (32 * f->act) * (4 + 36 * f->act) : 4 + k / 8 + from;
}
/* Their sums. */
Q_VNNI_INLINE int64_t q_z_sums_at(const q_z_shape *f, int64_t from) {
    return f->act ? q_z_act_at(f, 0, from) + 4 : 4 + from / 8;
}

/* Beside the activations: what a unit of a column owes, made ready once for all rows. Of formats with a bias, what sums
 * begin with: minus the bias times the sums of activations, of a unit or of each half. Of formats with minima, what
 * these are multiplied with: sums of two units as int16, or minus the sum of a unit, as a float. In chunks:
 * [half][unit]; where a unit owes both, what sums begin with and then the floats. With act 0 one value of a chunk.
 * (Multiplications in the loops instead would compete with vpdpbusd for the two ports that have a multiplier.) */
Q_VNNI_INLINE bool q_z_owes_both(const q_z_shape *f) { return f->act == 1 && f->bias && f->minima; }
Q_VNNI_INLINE int64_t q_z_owed_bytes(const q_z_shape *f) { /* of a column */
    if (f->act == 0) return 4;
    if (q_z_owes_both(f)) return 8 * Q_Z_UNITS;
    return f->scales == 2 ? (f->bias ? 8 * Q_Z_UNITS : 0) : f->bias || f->minima ? 4 * Q_Z_UNITS : 0;
}

/* Sums of the activations of sixteen units; those after the last repeat it. */
Q_VNNI_INLINE __m512i q_z_sums16(const uint8_t *sums, int64_t units) {
#define SUMS(i) (int)q_load32(sums + Q_MIN((int64_t)(i), units - 1) * 40)
    return _mm512_setr_epi32(SUMS(0), SUMS(1), SUMS(2), SUMS(3), SUMS(4), SUMS(5), SUMS(6), SUMS(7), SUMS(8), SUMS(9),
                             SUMS(10), SUMS(11), SUMS(12), SUMS(13), SUMS(14), SUMS(15));
#undef SUMS
}

/* A chunk of a column. */
Q_VNNI_INLINE void q_z_owe(const q_z_shape *f, const uint8_t *sums, int64_t units, uint8_t *to) {
    const bool halves = f->bias && f->scales == 2;
    const uint32_t by = (uint16_t)(f->bias ? -f->bias : f->act == 1 ? -1 : 1);
    const __m512i first = _mm512_set1_epi32((int)(halves ? by : by | by << 16)),
                  second = _mm512_set1_epi32((int)(by << 16));
    if (f->act == 0) {
        const __m512i v = _mm512_madd_epi16(_mm512_maskz_loadu_epi32(q_mask16(units), sums), first);
        q_store32(to, (uint32_t)_mm512_reduce_add_epi32(v));
        return;
    }
    if (f->act == 1) {
        const __m512i all = units == Q_Z_UNITS ? q_z_sums16(sums, Q_Z_UNITS) : q_z_sums16(sums, units);
        const __m512i v = _mm512_madd_epi16(all, first);
        _mm512_store_si512(to, f->bias ? v : _mm512_castps_si512(_mm512_cvtepi32_ps(v)));
        if (halves) _mm512_store_si512(to + 64, _mm512_madd_epi16(all, second));
        if (q_z_owes_both(f))
            _mm512_store_ps(to + 64, _mm512_cvtepi32_ps(_mm512_madd_epi16(all, _mm512_set1_epi16(-1))));
        return;
    }
    for (int64_t i = 0; i < units / 8; i++) {
        const __m256i eight = _mm256_loadu_si256((const __m256i *)(const void *)(sums + i * (4 + 36 * 8)));
        const __m256i v = _mm256_madd_epi16(eight, _mm512_castsi512_si256(first));
        if (f->bias)
            _mm256_store_si256((__m256i *)(void *)(to + 32 * i), v);
        else
            _mm_store_si128((__m128i *)(void *)(to + 32 * i),
                            _mm_packs_epi32(_mm256_castsi256_si128(v), _mm256_extracti128_si256(v, 1)));
        if (halves)
            _mm256_store_si256((__m256i *)(void *)(to + 64 + 32 * i),
                               _mm256_madd_epi16(eight, _mm512_castsi512_si256(second)));
    }
}

/* -------------------------------------------------------------------------------------------------------- products */

/* Two panels and up to six columns. */
typedef struct q_z_operands {
    const uint8_t *panel[2];
    const uint8_t *x[Q_Z_COLUMNS];
    const uint8_t *owed; /* of the first column */
    uintptr_t next;      /* bytes from a column to the one that its turn comes after */
} q_z_operands;

/* Sixteen times a unit's `from`-th to `to`-th four codes, of two panels and C columns, into sum. */
Q_VNNI_INLINE void q_z_multiply(int C, const uint8_t *const *unit, const q_z_operands *o, int64_t at, int from, int to,
                                __m512i sum[2][Q_Z_COLUMNS]) {
    Q_UNROLL for (int c = 0; from == 0 && c < C; c++)
        _mm_prefetch((const char *)((uintptr_t)o->x[c] + (uintptr_t)at + o->next), _MM_HINT_T0);
    Q_UNROLL for (int g = from; g < to; g++) {
        __m512i w0 = _mm512_load_si512(unit[0] + 64 * g), w1 = _mm512_load_si512(unit[1] + 64 * g);
        __asm__("" : "+v"(w0), "+v"(w1)); /* in registers, not read again for each column */
        Q_UNROLL for (int c = 0; c < C; c++) {
            const __m512i a = q_z_spread(o->x[c] + at + 4 * g);
            sum[0][c] = _mm512_dpbusd_epi32(sum[0][c], w0, a);
            sum[1][c] = _mm512_dpbusd_epi32(sum[1][c], w1, a);
        }
    }
}

/* The exact integers of a unit of two panels and C columns; with scales added to what `total` holds. With exact floats
 * as bits of float32, for which there are twice as many multipliers; `fresh`: total holds nothing yet. */
Q_VNNI_INLINE void q_z_unit(const q_z_shape *f, int C, const uint8_t *const *unit, const q_z_operands *o, int64_t codes,
                            int64_t owed, bool fresh, __m512i total[2][Q_Z_COLUMNS]) {
    const int pieces = f->scales == 2 ? 2 : 1;
    Q_UNROLL for (int g = 0; g < pieces; g++) {
        __m512i sum[2][Q_Z_COLUMNS];
        Q_UNROLL for (int c = 0; c < C; c++) sum[0][c] = sum[1][c] =
            f->bias ? q_z_spread(o->owed + c * q_z_owed_bytes(f) + 4 * Q_Z_UNITS * g + owed) : _mm512_setzero_si512();
        q_z_multiply(C, unit, o, codes, g * 4, g * 4 + 8 / pieces, sum);
        Q_UNROLL for (int p = 0; p < 2; p++) {
            const __m512i sc = f->scales ? _mm512_load_si512(unit[p] + 512 + 64 * g) : _mm512_setzero_si512();
            const __m512 scf = _mm512_castsi512_ps(sc);
            Q_UNROLL for (int c = 0; c < C; c++) {
                const __m512 v = _mm512_cvtepi32_ps(sum[p][c]), was = _mm512_castsi512_ps(total[p][c]);
                total[p][c] = !f->scales ? (f->act > 1 ? _mm512_add_epi32(total[p][c], sum[p][c]) : sum[p][c])
                              : !f->exact ? _mm512_add_epi32(total[p][c], _mm512_mullo_epi32(sum[p][c], sc))
                              : _mm512_castps_si512(fresh && g == 0 ? _mm512_mul_ps(v, scf)
                                                                    : _mm512_fmadd_ps(v, scf, was));
            }
        }
    }
}

/* acc = fma(d * da, total, acc), or of minima with the product negated. */
Q_VNNI_INLINE void q_z_apply(int C, const uint8_t *const *d, const uint8_t *const *x, int64_t act, bool minima,
                             __m512 total[2][Q_Z_COLUMNS], __m512 acc[2][Q_Z_COLUMNS]) {
    const __m512 d0 = _mm512_load_ps(d[0]), d1 = _mm512_load_ps(d[1]);
    Q_UNROLL for (int c = 0; c < C; c++) {
        const __m512 da = q_z_spread_f32(x[c] + act);
        Q_UNROLL for (int p = 0; p < 2; p++) {
            const __m512 s = _mm512_mul_ps(p ? d1 : d0, da);
            acc[p][c] =
                minima ? _mm512_fnmadd_ps(s, total[p][c], acc[p][c]) : _mm512_fmadd_ps(s, total[p][c], acc[p][c]);
        }
    }
}
Q_VNNI_INLINE void q_z_apply_int(int C, const uint8_t *const *d, const uint8_t *const *x, int64_t act, bool minima,
                                 __m512i total[2][Q_Z_COLUMNS], __m512 acc[2][Q_Z_COLUMNS]) {
    __m512 t[2][Q_Z_COLUMNS];
    Q_UNROLL for (int c = 0; c < C; c++) Q_UNROLL for (int p = 0; p < 2; p++) t[p][c] = _mm512_cvtepi32_ps(total[p][c]);
    q_z_apply(C, d, x, act, minima, t, acc);
}

/* Minima that are integers, of a block. */
Q_VNNI_INLINE void q_z_block_minima(const q_z_shape *f, int C, const uint8_t *const *minima, const q_z_operands *o,
                                    int64_t sums, int64_t owed, __m512i total[2][Q_Z_COLUMNS]) {
    Q_UNROLL for (int c = 0; c < C; c++) total[0][c] = total[1][c] = _mm512_setzero_si512();
    for (int i = 0; i < f->units * f->scales / 2; i++) {
        const __m512i m0 = _mm512_load_si512(minima[0] + 64 * i), m1 = _mm512_load_si512(minima[1] + 64 * i);
        Q_UNROLL for (int c = 0; c < C; c++) {
            const uint8_t *at = f->scales == 1 ? o->owed + c * q_z_owed_bytes(f) + owed : o->x[c] + sums;
            const __m512i s = q_z_spread(at + 4 * i);
            total[0][c] = _mm512_dpwssd_epi32(total[0][c], m0, s);
            total[1][c] = _mm512_dpwssd_epi32(total[1][c], m1, s);
        }
    }
}

/* What q_z_unit's totals are, as floats. */
Q_VNNI_INLINE void q_z_floats(const q_z_shape *f, int C, __m512i total[2][Q_Z_COLUMNS], __m512 t[2][Q_Z_COLUMNS]) {
    Q_UNROLL for (int c = 0; c < C; c++) Q_UNROLL for (int p = 0; p < 2; p++) t[p][c] =
        f->exact ? _mm512_castsi512_ps(total[p][c]) : _mm512_cvtepi32_ps(total[p][c]);
}

/* Two panels, from front to back, times C columns, with activations in blocks of 32; adds to `to`. */
Q_VNNI_INLINE void q_z_columns32(const q_z_shape *f, int C, const q_z_operands *o, int64_t blocks,
                                 __m512 to[2][Q_Z_COLUMNS]) {
    const uint8_t *block[2] = {o->panel[0], o->panel[1]};
    __m512 acc[2][Q_Z_COLUMNS], t[2][Q_Z_COLUMNS];
    Q_UNROLL for (int c = 0; c < C; c++) acc[0][c] = to[0][c], acc[1][c] = to[1][c];
    int64_t act = 0, owed = 0;
    for (int64_t i = 0; i < blocks; i++) {
        const uint8_t *const d[2] = {block[0] + q_z_d_at(f), block[1] + q_z_d_at(f)};
        const uint8_t *const dmin[2] = {d[0] + 64, d[1] + 64};
        for (int u = 0; u < f->units; u++, act += 40, owed += 4) {
            const uint8_t *const unit[2] = {block[0] + u * q_z_unit_bytes(f), block[1] + u * q_z_unit_bytes(f)};
            __m512i total[2][Q_Z_COLUMNS];
            Q_UNROLL for (int c = 0; c < C; c++) total[0][c] = total[1][c] = _mm512_setzero_si512();
            q_z_unit(f, C, unit, o, act + 8, owed, true, total);
            q_z_floats(f, C, total, t);
            q_z_apply(C, d, o->x, act, false, t, acc);
            if (!f->minima) continue;
            Q_UNROLL for (int c = 0; c < C; c++) t[0][c] = t[1][c] =
                q_z_spread_f32(o->owed + c * q_z_owed_bytes(f) + owed + (q_z_owes_both(f) ? 4 * Q_Z_UNITS : 0));
            q_z_apply(C, dmin, o->x, act, true, t, acc);
        }
        block[0] += q_z_block_bytes(f);
        block[1] += q_z_block_bytes(f);
    }
    Q_UNROLL for (int c = 0; c < C; c++) to[0][c] = acc[0][c], to[1][c] = acc[1][c];
}

/* The eight units of a block, their scales applied, as floats. Exact floats of fewer units wait in `t`; two of them are
 * added with one rounding, as an integer becomes a float. */
Q_VNNI_INLINE void q_z_total(const q_z_shape *f, int C, const uint8_t *const *block, const q_z_operands *o, int64_t act,
                             int64_t owed, __m512 t[2][Q_Z_COLUMNS]) {
    const int run = f->exact ? f->exact : 8;
    __m512i total[2][Q_Z_COLUMNS];
    Q_UNROLL for (int from = 0; from < 8; from += run) {
        Q_UNROLL for (int c = 0; c < C; c++) total[0][c] = total[1][c] = _mm512_setzero_si512();
        for (int u = from; u < from + run; u++) {
            const uint8_t *const unit[2] = {block[0] + u * q_z_unit_bytes(f), block[1] + u * q_z_unit_bytes(f)};
            q_z_unit(f, C, unit, o, act + 36 + 32 * u, owed + 4 * u, false, total);
        }
        if (from == 0) {
            q_z_floats(f, C, total, t);
            Q_UNROLL for (int c = 0; c < C && run < 8; c++) /* in memory, not in registers that sums need */
                __asm__("" : "+m"(t[0][c]), "+m"(t[1][c]));
        } else
            Q_UNROLL for (int c = 0; c < C; c++) Q_UNROLL for (int p = 0; p < 2; p++) t[p][c] =
                _mm512_add_ps(t[p][c], _mm512_castsi512_ps(total[p][c]));
    }
}

/* The same with activations in blocks of 256. Sums and totals fill the registers: acc stays in memory. */
Q_VNNI_INLINE void q_z_columns256(const q_z_shape *f, int C, const q_z_operands *o, int64_t blocks,
                                  __m512 acc[2][Q_Z_COLUMNS]) {
    const uint8_t *block[2] = {o->panel[0], o->panel[1]};
    for (int64_t i = 0, act = 0; i < blocks; i++, act += 4 + 36 * 8) {
        const uint8_t *const d[2] = {block[0] + q_z_d_at(f), block[1] + q_z_d_at(f)};
        __m512 t[2][Q_Z_COLUMNS];
        q_z_total(f, C, block, o, act, 32 * i, t);
        q_z_apply(C, d, o->x, act, false, t, acc);
        if (f->minima) {
            const uint8_t *const minima[2] = {block[0] + q_z_minima_at(f), block[1] + q_z_minima_at(f)};
            const uint8_t *const dmin[2] = {d[0] + 64, d[1] + 64};
            __m512i total[2][Q_Z_COLUMNS];
            q_z_block_minima(f, C, minima, o, act + 4, 32 * i, total);
            q_z_apply_int(C, dmin, o->x, act, true, total, acc);
        }
        __asm__ volatile("" ::: "memory"); /* and is not kept in registers that sums need */
        block[0] += q_z_block_bytes(f);
        block[1] += q_z_block_bytes(f);
    }
}

/* The same with one scale to a row and one to a column: what is added up are the integers, whose bits acc holds. */
Q_VNNI_INLINE void q_z_columns_whole(const q_z_shape *f, int C, const q_z_operands *o, int64_t units,
                                     __m512 acc[2][Q_Z_COLUMNS]) {
    __m512i sum[2][Q_Z_COLUMNS];
    Q_UNROLL for (int c = 0; c < C; c++) Q_UNROLL for (int p = 0; p < 2; p++) sum[p][c] =
        _mm512_add_epi32(_mm512_castps_si512(acc[p][c]), q_z_spread(o->owed + c * q_z_owed_bytes(f)));
    for (int64_t u = 0; u < units; u++) {
        const uint8_t *const unit[2] = {o->panel[0] + 512 * u, o->panel[1] + 512 * u};
        q_z_multiply(C, unit, o, 32 * u, 0, 8, sum);
    }
    Q_UNROLL for (int c = 0; c < C; c++) Q_UNROLL for (int p = 0; p < 2; p++) acc[p][c] =
        _mm512_castsi512_ps(sum[p][c]);
}

/* And, after the last of them, the floats of op.h; x: the columns' scales. */
Q_VNNI_INLINE void q_z_finish_whole(const q_z_shape *f, int C, const q_z_operands *o, const uint8_t *const *x,
                                    __m512 acc[2][Q_Z_COLUMNS]) {
    const uint8_t *const d[2] = {o->panel[0] + q_z_d_at(f), o->panel[1] + q_z_d_at(f)};
    __m512 t[2][Q_Z_COLUMNS];
    Q_UNROLL for (int c = 0; c < C; c++) Q_UNROLL for (int p = 0; p < 2; p++) {
        t[p][c] = _mm512_cvtepi32_ps(_mm512_castps_si512(acc[p][c]));
        acc[p][c] = _mm512_setzero_ps();
    }
    q_z_apply(C, d, x, 0, false, t, acc);
}

Q_VNNI_INLINE void q_z_columns(const q_z_shape *f, int C, const q_z_operands *o, int64_t units,
                               __m512 acc[2][Q_Z_COLUMNS]) {
    if (f->act == 0)
        q_z_columns_whole(f, C, o, units, acc);
    else if (f->act == 1)
        q_z_columns32(f, C, o, units / f->units, acc);
    else
        q_z_columns256(f, C, o, units / f->units, acc);
}

/* ------------------------------------------------------------------------------------------------------- the order */

/* Where the rows of a product lie: in runs of `rows`, `pitch` bytes from one to the next, in blocks of `weights`. */
typedef struct q_z_source {
    const uint8_t *at;    /* the first run */
    int64_t first;        /* its first row: 0, or before the first that is wanted */
    int64_t rows, pitch;
    int64_t bytes, weights; /* of a block */
} q_z_source;

/* What is multiplied at a time: `weights` of each row, starting with `from`, of two panels of rows from r on, times
 * columns from c to end. */
typedef struct q_z_piece {
    uint8_t *panel[2];
    const uint8_t *owed;           /* by columns */
    __m512 (*acc)[2][Q_Z_COLUMNS]; /* by groups of columns */
    int64_t r, c, end, from, weights;
    uintptr_t next; /* where the weights of the next piece begin */
} q_z_piece;

/* Unpacks the weights of two panels of a piece, whose first row's are at `at`, into piece->panel. */
typedef void (*q_z_unpacker)(const void *format, const q_mm *m, const q_z_piece *t, const uint8_t *at);

/* Ask for the places of y that a group of columns will add to. */
Q_VNNI_INLINE void q_z_ask_results(int C, const q_mm *m, const q_z_piece *t, int64_t c) {
    for (int64_t j = 0; j < C && c + j < m->n; j++) {
        const uintptr_t y = (uintptr_t)(m->y + (c + j) * m->y_stride + t->r);
        _mm_prefetch((const char *)y, _MM_HINT_T0);
        _mm_prefetch((const char *)(y + 64), _MM_HINT_T0);
    }
}

/* Ask for the weights of the next piece, as large a part of them as of the columns will have passed at `c`. */
Q_VNNI_INLINE int64_t q_z_ask_weights(const q_z_source *s, const q_z_piece *t, int64_t asked, int64_t c) {
    const uintptr_t bytes = (uintptr_t)(Q_Z_CHUNK / s->weights * s->bytes / s->rows); /* a row's share of a run */
    for (; asked < Q_Z_PAIR && asked * (t->end - t->c) < Q_Z_PAIR * (c - t->c); asked++) {
        const uintptr_t row = t->next + (uintptr_t)(asked / s->rows * s->pitch) + (uintptr_t)(asked % s->rows) * bytes;
        for (uintptr_t i = 0; i < bytes; i += 64) _mm_prefetch((const char *)(row + i), _MM_HINT_T1);
    }
    return asked;
}

/* Hand in rows r .. r + 15 of column c, as far as they are wanted; r may lie before the first. */
Q_VNNI_INLINE void q_z_put16(const q_mm *m, int64_t r, int64_t c, __m512 v) {
    const __mmask16 in = (__mmask16)(q_mask16(m->rows - r) & ~q_mask16(-r));
    float *y = m->y + c * m->y_stride + r;
    if (m->bias) v = _mm512_add_ps(v, _mm512_maskz_loadu_ps(in, m->bias + r));
    if (m->add) v = _mm512_add_ps(_mm512_maskz_loadu_ps(in, y), v);
    _mm512_mask_storeu_ps(y, in, v);
}

Q_VNNI_INLINE void q_z_put(const q_z_shape *f, int C, const q_mm *m, const q_z_piece *t, int64_t c) {
    q_z_operands o = {.panel = {t->panel[0], t->panel[1]}, .owed = t->owed + (c - t->c) * q_z_owed_bytes(f),
                      .next = (uintptr_t)(Q_Z_COLUMNS * m->x_stride)};
    const uint8_t *x[Q_Z_COLUMNS];
    __m512(*acc)[Q_Z_COLUMNS] = t->acc[(c - t->c) / Q_Z_COLUMNS];
    const int64_t at = q_z_act_at(f, m->k, t->from);
    const bool last = t->from + t->weights == m->k;
    Q_UNROLL for (int j = 0; j < C; j++) {
        x[j] = m->x + Q_MIN(c + j, m->n - 1) * m->x_stride;
        o.x[j] = x[j] + at;
    }
    if (t->from == 0) Q_UNROLL for (int j = 0; j < C; j++) acc[0][j] = acc[1][j] = _mm512_setzero_ps();
    if (last) q_z_ask_results(C, m, t, c);
    q_z_columns(f, C, &o, t->weights / 32, acc);
    if (last && f->act == 0) q_z_finish_whole(f, C, &o, x, acc);
    for (int j = 0; last && j < C && c + j < m->n; j++) {
        q_z_put16(m, t->r, c + j, acc[0][j]);
        if (m->rows - t->r > Q_Z_ROWS) q_z_put16(m, t->r + Q_Z_ROWS, c + j, acc[1][j]);
    }
}

/* Two panels of rows times all columns of the piece. */
Q_VNNI_INLINE void q_z_pass(const q_z_shape *f, const q_z_source *s, const q_mm *m, const q_z_piece *t) {
    int64_t asked = 0;
    for (int64_t c = t->c; c < t->end;) {
        const int64_t left = t->end - c, C = left > 4 ? Q_Z_COLUMNS : left > 2 ? 4 : 2;
        asked = q_z_ask_weights(s, t, asked, c + C);
        if (C == Q_Z_COLUMNS)
            q_z_put(f, Q_Z_COLUMNS, m, t, c);
        else if (C == 4)
            q_z_put(f, 4, m, t, c);
        else
            q_z_put(f, 2, m, t, c);
        c += C;
    }
}

Q_VNNI_INLINE const uint8_t *q_z_at(const q_z_source *s, int64_t row, int64_t from) {
    return s->at + (row - s->first) / s->rows * s->pitch + from / s->weights * s->bytes;
}

/* Where the piece after t begins: below it in its band, else with the band's next chunk, else with the next band. */
Q_VNNI_INLINE uintptr_t q_z_next(const q_z_source *s, const q_mm *m, const q_z_piece *t, int64_t band, int64_t end) {
    const bool below = t->r + Q_Z_PAIR < end, chunk = t->from + t->weights < m->k;
    const int64_t row = below || !chunk ? t->r + Q_Z_PAIR : band;
    return (uintptr_t)q_z_at(s, row, below ? t->from : chunk ? t->from + Q_Z_CHUNK : 0);
}

/* The columns of a piece, from t->from on, times rows `band` .. end - 1. */
Q_VNNI_INLINE void q_z_band(const q_z_shape *f, const void *format, q_z_unpacker unpack, const q_z_source *s,
                            const q_mm *m, q_z_piece t, int64_t band, int64_t end, uint8_t *owed, int64_t groups) {
    for (int64_t c = t.c; c < t.end && q_z_owed_bytes(f); c++)
        q_z_owe(f, m->x + c * m->x_stride + q_z_sums_at(f, t.from), t.weights / 32,
                owed + (c - t.c) * q_z_owed_bytes(f));
    for (t.r = band; t.r < end; t.r += Q_Z_PAIR, t.acc += groups) {
        unpack(format, m, &t, q_z_at(s, t.r, t.from));
        t.next = q_z_next(s, m, &t, band, end);
        q_z_pass(f, s, m, &t);
    }
}

Q_VNNI_INLINE int64_t q_z_groups(int64_t columns) {
    return (Q_MIN(columns, (int64_t)Q_Z_SPAN) + Q_Z_COLUMNS - 1) / Q_Z_COLUMNS;
}
Q_VNNI_INLINE int64_t q_z_all_owed_bytes(const q_z_shape *f, int64_t groups) {
    return (groups * Q_Z_COLUMNS * q_z_owed_bytes(f) + 63) / 64 * 64;
}

Q_VNNI_INLINE void q_z_many(const q_z_shape *f, const void *format, q_z_unpacker unpack, const q_z_source *s,
                            const q_mm *m) {
    const int64_t panel = q_z_panel_bytes(f), groups = q_z_groups(m->n);
    const int64_t pairs = (m->rows - s->first + Q_Z_PAIR - 1) / Q_Z_PAIR, bands = (pairs + Q_Z_BAND - 1) / Q_Z_BAND;
    uint8_t *const space = (uint8_t *)m->scratch, *const owed = space + 2 * panel;
    q_z_piece t = {.panel = {space, space + panel}, .owed = owed};
    t.acc = (void *)(owed + q_z_all_owed_bytes(f, groups));
    for (t.c = 0; t.c < m->n; t.c = t.end) {
        t.end = Q_MIN(t.c + Q_Z_SPAN, m->n);
        for (int64_t b = 0; b < bands; b++) {
            const int64_t band = s->first + pairs * b / bands * Q_Z_PAIR;
            const int64_t end = Q_MIN(s->first + pairs * (b + 1) / bands * Q_Z_PAIR, m->rows);
            for (t.from = 0; t.from < m->k; t.from += Q_Z_CHUNK) {
                t.weights = Q_MIN(m->k - t.from, (int64_t)Q_Z_CHUNK);
                q_z_band(f, format, unpack, s, m, t, band, end, owed, groups);
            }
        }
    }
}

Q_VNNI_INLINE uint64_t q_z_many_scratch(const q_z_shape *f, int64_t n) {
    const int64_t groups = q_z_groups(n);
    return (uint64_t)(2 * q_z_panel_bytes(f) + q_z_all_owed_bytes(f, groups)) +
           (uint64_t)(Q_Z_BAND * groups) * sizeof(__m512[2][Q_Z_COLUMNS]);
}

/* ------------------------------------------------------------------------------------------------ rows of a file */

Q_VNNI_INLINE void q_z_unpack_rows(const void *format, const q_mm *m, const q_z_piece *t, const uint8_t *at) {
    const q_z_format *f = (const q_z_format *)format;
    for (int64_t p = 0; p < 2; p++) {
        const uint8_t *row[Q_Z_ROWS]; /* rows that do not exist are the last one again */
        for (int64_t i = 0; i < Q_Z_ROWS; i++)
            row[i] = at + Q_MIN(p * Q_Z_ROWS + i, m->rows - 1 - t->r) * (int64_t)m->row_bytes;
        q_z_unpack(f, row, t->weights / (32 * f->s.units), t->panel[p]);
    }
}

Q_VNNI_INLINE void q_z_many_rows(const q_z_format *f, const q_mm *m) {
    const q_z_source s = {.at = m->w, .rows = 1, .pitch = (int64_t)m->row_bytes, .bytes = f->bytes,
                          .weights = 32 * f->s.units};
    q_z_many(&f->s, f, q_z_unpack_rows, &s, m);
}

/* PRODUCT's two functions. A plan for n columns also runs with fewer. */
#define Q_Z_PRODUCT(name, format)                                                                                      \
    Q_VNNI uint64_t q_##name##_scratch(int64_t k, int64_t n) {                                                         \
        const uint64_t few = q_z_stream_scratch(&format, k, Q_MIN(n, (int64_t)Q_Z_PANEL_FROM - 1));                    \
        return n < Q_Z_PANEL_FROM ? few : Q_MAX(few, q_z_many_scratch(&format.s, n));                                  \
    }                                                                                                                  \
    Q_VNNI void q_##name(const q_mm *m) {                                                                              \
        if (m->n < Q_Z_PANEL_FROM)                                                                                     \
            q_z_few(&format, m);                                                                                       \
        else                                                                                                           \
            q_z_many_rows(&format, m);                                                                                 \
    }

#endif
