/* panel_avx2.h: packed weights times more than a few columns, by AVX2 and AVX-VNNI. rows16_avx2.h, after which a
 * file includes it, says what a format is and how few columns go. Layer L2.
 *
 * Sixteen rows meet four columns at a time: two registers of weights and a broadcast of activations feed eight sums,
 * and what sums are added to waits in memory. Three ways to multiply bytes without saturation:
 *   UNSIGNED  codes by signed activations, `most` pairs to a sum of 16 bits (or vpdpbusd, to 32);
 *   SIGNED    codes less their bias by activations with 128 added, which are unsigned: `most` pairs of these fit as
 *             well, since `most` * 2 * 255 * bias < 2^15. What the 128 add depends on weights alone, and is what totals
 *             of a block begin with, for all columns;
 *   WORDS     both as int16, and vpmaddwd: for signed bytes without vpdpbusd. An integer scale is multiplied into the
 *             weights (127 * 32 fits).
 *
 * Rows are taken in chunks of Q_Y_CHUNK weights: a panel of a chunk, unpacked, stays in the first cache while all
 * columns pass, and the same chunk of these columns in the second while the panels of a band pass. What a chunk has
 * added waits in memory for the next: the order of op.h, which goes along a row, is kept. */
#ifndef Q_PANEL_AVX2_H
#define Q_PANEL_AVX2_H

enum {
    Q_Y_CHUNK = 256,            /* weights of a row at a time: a multiple of every block's */
    Q_Y_UNITS = Q_Y_CHUNK / 32, /* units of them */
    Q_Y_BAND = 8,               /* panels that a chunk of the columns meets before the next chunk */
    Q_Y_SPAN = 256              /* columns at a time: with a band's sums a quarter of a MiB */
};

typedef enum q_y_way { Q_Y_UNSIGNED, Q_Y_SIGNED, Q_Y_WORDS } q_y_way;
Q_Y_INLINE q_y_way q_y_way_of(const q_y_format *f) {
    return f->most && !f->bias ? Q_Y_UNSIGNED : f->most || Q_Y_VNNI ? Q_Y_SIGNED : Q_Y_WORDS;
}

/* Whether bytes are multiplied by vpdpbusd. With a scale per 16 weights it is slower: applying one takes vpmulld, two
 * instructions, where a sum of 16 bits takes one for scale and widening. */
Q_Y_INLINE bool q_y_by_fours(const q_y_format *f) { return Q_Y_VNNI && f->scales < 2; }

/* ------------------------------------------------------------------------------------------------- unpacked panels */

/* A block of the panel, of as many units as a block of activations, or all of a chunk: per unit 8 times the codes of
 * four weights of sixteen rows, then its integer scales; after the units what totals begin with, d, dmin, pairs of
 * minima. */
Q_Y_INLINE int q_y_run(const q_y_format *f) { return f->whole ? Q_Y_UNITS : f->act; }
Q_Y_INLINE int q_y_codes_bytes(const q_y_format *f) { return q_y_way_of(f) == Q_Y_WORDS ? 1024 : 512; }
Q_Y_INLINE int q_y_scales(const q_y_format *f) { return q_y_way_of(f) == Q_Y_WORDS ? 0 : f->scales; }
Q_Y_INLINE int q_y_unit_bytes(const q_y_format *f) { return q_y_codes_bytes(f) + 64 * q_y_scales(f); }
Q_Y_INLINE int q_y_pairs_of(const q_y_format *f) { return f->minima == 3 ? 4 : f->minima == 2 ? 8 : 0; }
Q_Y_INLINE int q_y_begin_at(const q_y_format *f) { return q_y_run(f) * q_y_unit_bytes(f); }
Q_Y_INLINE int q_y_d_at(const q_y_format *f) { return q_y_begin_at(f) + 64; }
Q_Y_INLINE int q_y_dmin_at(const q_y_format *f) { return q_y_d_at(f) + 64; }
Q_Y_INLINE int q_y_pairs_at(const q_y_format *f) { return q_y_dmin_at(f) + 64; }
Q_Y_INLINE int q_y_block_bytes(const q_y_format *f) { return q_y_pairs_at(f) + 64 * q_y_pairs_of(f); }
Q_Y_INLINE int q_y_panel_bytes(const q_y_format *f) { return Q_Y_UNITS / q_y_run(f) * q_y_block_bytes(f); }

/* Codes 4g .. 4g + 3 of a unit, of eight rows, as the byte product takes them. */
Q_Y_INLINE void q_y_put_codes(const q_y_format *f, __m256i v, __m256i scale, uint8_t *unit, int g, int h) {
    const __m128i low = _mm_setr_epi8(-1, 0, -1, 1, -1, 4, -1, 5, -1, 8, -1, 9, -1, 12, -1, 13);
    const __m128i high = _mm_setr_epi8(-1, 2, -1, 3, -1, 6, -1, 7, -1, 10, -1, 11, -1, 14, -1, 15);
    if (q_y_way_of(f) != Q_Y_WORDS) {
        q_store256(unit + 64 * g + 32 * h, v);
        return;
    }
    const __m256i a = _mm256_srai_epi16(_mm256_shuffle_epi8(v, _mm256_broadcastsi128_si256(low)), 8);
    const __m256i b = _mm256_srai_epi16(_mm256_shuffle_epi8(v, _mm256_broadcastsi128_si256(high)), 8);
    q_store256(unit + 128 * g + 32 * h, f->scales ? _mm256_mullo_epi16(a, scale) : a);
    q_store256(unit + 128 * g + 64 + 32 * h, f->scales ? _mm256_mullo_epi16(b, scale) : b);
}

/* Unit `span` * i + u of the packed block at p, eight rows of it; what its weights times their scales add up to. */
Q_Y_INLINE __m256i q_y_unpack_unit(const q_y_format *f, const uint8_t *p, int i, int u, int h, uint8_t *unit) {
    const int pieces = f->scales == 2 ? 2 : 1, count = 8 / pieces;
    __m256i all = _mm256_setzero_si256();
    Q_UNROLL for (int half = 0; half < pieces; half++) {
        const __m256i sc = f->scales ? f->scale(p, f->span * i + u, half, h) : _mm256_set1_epi16(1);
        __m256i sum = _mm256_setzero_si256();
        Q_UNROLL for (int g = half * count; g < half * count + count; g++) {
            const __m256i v = _mm256_sub_epi8(f->codes(p, i, u, g, h), _mm256_set1_epi8((char)f->bias));
            sum = _mm256_add_epi16(sum, _mm256_maddubs_epi16(_mm256_set1_epi8(1), v));
            q_y_put_codes(f, v, sc, unit, g, h);
        }
        all = _mm256_add_epi32(all, _mm256_madd_epi16(sum, sc));
        if (q_y_scales(f))
            q_store256(unit + q_y_codes_bytes(f) + 64 * half + 32 * h,
                       q_y_by_fours(f) ? _mm256_srai_epi32(sc, 16) : sc);
    }
    return all;
}

/* What is said once of a block of the panel: unit `unit` of the packed block at p begins it. */
Q_Y_INLINE void q_y_unpack_ends(const q_y_format *f, const uint8_t *p, int unit, int h, uint8_t *block) {
    _mm256_store_ps((float *)(void *)(block + q_y_d_at(f) + 32 * h), f->d(p, unit, h));
    if (f->minima) _mm256_store_ps((float *)(void *)(block + q_y_dmin_at(f) + 32 * h), f->dmin(p, unit, h));
    for (int j = 0; j < q_y_pairs_of(f); j++) q_store256(block + q_y_pairs_at(f) + 64 * j + 32 * h, f->pair(p, j, h));
}

/* `units` units of a panel, of which p is the packed block, from a whole one on. */
Q_Y_INLINE void q_y_unpack(const q_y_format *f, const uint8_t *p, int units, uint8_t *block) {
    __m256i all[2] = {_mm256_setzero_si256(), _mm256_setzero_si256()};
    for (int n = 0, in = 0; n < units; p += f->bytes)
        for (int i = 0; i < f->units / f->span && n < units; i++)
            Q_UNROLL for (int u = 0; u < f->span; u++) {
                Q_UNROLL for (int h = 0; h < 2; h++) {
                    if (in == 0 && !f->whole) q_y_unpack_ends(f, p, f->span * i + u, h, block);
                    all[h] = _mm256_add_epi32(all[h], q_y_unpack_unit(f, p, i, u, h, block + in * q_y_unit_bytes(f)));
                }
                n++, in++;
                if (in < q_y_run(f) && n < units) continue;
                Q_UNROLL for (int h = 0; h < 2; h++) {
                    const __m256i less = _mm256_sub_epi32(_mm256_setzero_si256(), _mm256_slli_epi32(all[h], 7));
                    q_store256(block + q_y_begin_at(f) + 32 * h,
                               q_y_way_of(f) == Q_Y_SIGNED ? less : _mm256_setzero_si256());
                    all[h] = _mm256_setzero_si256();
                }
                in = 0, block += q_y_block_bytes(f);
            }
}

/* --------------------------------------------------------------------------------------------------- their columns */

/* A chunk of a column: codes, then for each block its scale, then for each unit what minima are multiplied with: minus
 * its sum as a float, or pairs of sums as int16. */
Q_Y_INLINE int q_y_scales_at(const q_y_format *f) { return q_y_way_of(f) == Q_Y_WORDS ? 2 * Q_Y_CHUNK : Q_Y_CHUNK; }
Q_Y_INLINE int q_y_sums_at(const q_y_format *f) { return q_y_scales_at(f) + 4 * Q_Y_UNITS; }
Q_Y_INLINE int q_y_column_bytes(const q_y_format *f) { return q_y_sums_at(f) + 4 * Q_Y_UNITS; }

Q_Y_INLINE void q_y_take_codes(const q_y_format *f, const uint8_t *q, int n, uint8_t *to) {
    for (int i = 0; i < n; i += 32) {
        const __m256i v = q_load256(q + i);
        if (q_y_way_of(f) == Q_Y_WORDS) {
            q_store256(to + 2 * i, _mm256_cvtepi8_epi16(_mm256_castsi256_si128(v)));
            q_store256(to + 2 * i + 32, _mm256_cvtepi8_epi16(_mm256_extracti128_si256(v, 1)));
        } else {
            q_store256(to + i, q_y_way_of(f) == Q_Y_SIGNED ? _mm256_xor_si256(v, _mm256_set1_epi8((char)0x80)) : v);
        }
    }
}

/* Units `from` .. of the column at x, of k values. */
Q_Y_INLINE void q_y_take(const q_y_format *f, const uint8_t *x, int64_t k, int64_t from, int units, uint8_t *to) {
    const int bytes = 4 + 36 * f->act, step = q_y_way_of(f) == Q_Y_WORDS ? 64 : 32;
    if (f->whole) {
        q_y_take_codes(f, x + 4 + k / 8 + 32 * from, 32 * units, to);
        return;
    }
    x += from / f->act * bytes;
    for (int u = 0; u < units; u += f->act, x += bytes) {
        uint8_t *const sums = to + q_y_sums_at(f) + 4 * u;
        memcpy(to + q_y_scales_at(f) + 4 * (u / f->act), x, 4);
        q_y_take_codes(f, x + 4 + 4 * f->act, 32 * f->act, to + step * u);
        if (f->minima == 1) q_store32(sums, q_f32_bits((float)-((int16_t)q_load16(x + 4) + (int16_t)q_load16(x + 6))));
        if (f->minima == 2) memcpy(sums, x + 4, 32);
        if (f->minima == 3)
            _mm_storeu_si128((__m128i *)(void *)sums, _mm_hadd_epi16(q_load128(x + 4), q_load128(x + 20)));
    }
}

/* -------------------------------------------------------------------------------------------------------- products */

Q_Y_INLINE __m256 q_y_load_ps(const uint8_t *p) { return _mm256_load_ps((const float *)(const void *)p); }
Q_Y_INLINE __m256 q_y_spread_ps(const uint8_t *p) { return _mm256_broadcast_ss((const float *)(const void *)p); }

/* Pairs or fours of a word of activations and one of weights, added to the sum. */
Q_Y_INLINE __m256i q_y_step(const q_y_format *f, __m256i sum, __m256i w, __m256i a) {
#if Q_Y_VNNI
    return q_y_way_of(f) == Q_Y_SIGNED ? _mm256_dpbusd_avx_epi32(sum, a, w) : _mm256_dpbusd_avx_epi32(sum, w, a);
#else
    Q_UNUSED(f);
    return _mm256_add_epi32(sum, _mm256_madd_epi16(w, a));
#endif
}

/* Words from .. to - 1 of a unit times C columns, in sums of 32 bits. Sums stay in their order, so that nothing is
 * spilt. */
Q_Y_INLINE void q_y_multiply(const q_y_format *f, int C, const uint8_t *unit, const uint8_t *x, int from, int to,
                             __m256i sum[2][Q_Y_COLUMNS]) {
    Q_UNROLL for (int g = from; g < to; g++) {
        __m256i w0 = q_y_load(unit + 64 * g), w1 = q_y_load(unit + 64 * g + 32);
        __asm__("" : "+x"(w0), "+x"(w1)); /* in registers, not read again for each column */
        Q_UNROLL for (int c = 0; c < C; c++) {
            const __m256i a = q_y_spread(x + c * q_y_column_bytes(f) + 4 * g);
            sum[0][c] = q_y_step(f, sum[0][c], w0, a);
            sum[1][c] = q_y_step(f, sum[1][c], w1, a);
            __asm__("" : "+x"(sum[0][c]), "+x"(sum[1][c]));
        }
    }
}

/* A unit times C columns, its scale applied, added to total. */
Q_Y_INLINE void q_y_unit_fours(const q_y_format *f, int C, const uint8_t *unit, const uint8_t *x,
                               __m256i total[2][Q_Y_COLUMNS]) {
    __m256i sum[2][Q_Y_COLUMNS];
    Q_UNROLL for (int c = 0; c < C; c++) sum[0][c] = sum[1][c] = _mm256_setzero_si256();
    q_y_multiply(f, C, unit, x, 0, 8, sum);
    Q_UNROLL for (int h = 0; h < 2; h++) {
        const __m256i sc = q_y_load(unit + q_y_codes_bytes(f) + 32 * h);
        Q_UNROLL for (int c = 0; c < C; c++) {
            total[h][c] = _mm256_add_epi32(total[h][c], _mm256_mullo_epi32(sum[h][c], sc));
            __asm__("" : "+m"(total[h][c]));
        }
    }
}

Q_Y_INLINE __m256i q_y_bytes_by(const q_y_format *f, __m256i w, __m256i a) {
    return q_y_way_of(f) == Q_Y_SIGNED ? _mm256_maddubs_epi16(a, w) : _mm256_maddubs_epi16(w, a);
}

/* Two words to a sum of 16 bits: no such sum waits, and totals of four columns stay in registers. */
Q_Y_INLINE void q_y_unit_two(const q_y_format *f, int C, const uint8_t *unit, const uint8_t *x,
                             __m256i total[2][Q_Y_COLUMNS]) {
    const int pieces = f->scales == 2 ? 2 : 1;
    Q_UNROLL for (int g = 0; g < 8; g += 2) {
        const uint8_t *const scale = unit + q_y_codes_bytes(f) + 64 * (g * pieces / 8);
        __m256i w[2][2];
        Q_UNROLL for (int i = 0; i < 4; i++) {
            w[i / 2][i % 2] = q_y_load(unit + 64 * (g + i / 2) + 32 * (i % 2));
            __asm__("" : "+x"(w[i / 2][i % 2]));
        }
        Q_UNROLL for (int c = 0; c < C; c++) {
            const __m256i a0 = q_y_spread(x + c * q_y_column_bytes(f) + 4 * g),
                          a1 = q_y_spread(x + c * q_y_column_bytes(f) + 4 * g + 4);
            Q_UNROLL for (int h = 0; h < 2; h++) {
                const __m256i sum = _mm256_add_epi16(q_y_bytes_by(f, w[0][h], a0), q_y_bytes_by(f, w[1][h], a1));
                const __m256i sc = f->scales ? q_y_load(scale + 32 * h) : _mm256_set1_epi16(1);
                total[h][c] = _mm256_add_epi32(total[h][c], _mm256_madd_epi16(sum, sc));
                __asm__("" : "+x"(total[h][c]));
            }
        }
    }
}

/* The same; sums of 16 bits take `most` words, and totals stay in memory. */
Q_Y_INLINE void q_y_unit_many(const q_y_format *f, int C, const uint8_t *unit, const uint8_t *x,
                              __m256i total[2][Q_Y_COLUMNS]) {
    const int pieces = f->scales == 2 ? 2 : 1, count = 8 / pieces, most = Q_MIN(f->most, count);
    Q_UNROLL for (int from = 0; from < 8; from += most) {
        const uint8_t *const scale = unit + q_y_codes_bytes(f) + 64 * (from / count);
        __m256i sum[2][Q_Y_COLUMNS];
        Q_UNROLL for (int g = from; g < from + most; g++) {
            __m256i w0 = q_y_load(unit + 64 * g), w1 = q_y_load(unit + 64 * g + 32);
            __asm__("" : "+x"(w0), "+x"(w1));
            Q_UNROLL for (int c = 0; c < C; c++) {
                const __m256i a = q_y_spread(x + c * q_y_column_bytes(f) + 4 * g);
                const __m256i s0 = q_y_bytes_by(f, w0, a), s1 = q_y_bytes_by(f, w1, a);
                sum[0][c] = g == from ? s0 : _mm256_add_epi16(sum[0][c], s0);
                sum[1][c] = g == from ? s1 : _mm256_add_epi16(sum[1][c], s1);
                __asm__("" : "+x"(sum[0][c]), "+x"(sum[1][c]));
            }
        }
        Q_UNROLL for (int h = 0; h < 2; h++) {
            const __m256i sc = f->scales ? q_y_load(scale + 32 * h) : _mm256_set1_epi16(1);
            Q_UNROLL for (int c = 0; c < C; c++) {
                total[h][c] = _mm256_add_epi32(total[h][c], _mm256_madd_epi16(sum[h][c], sc));
                if (from + most < 8 || f->act > 1) __asm__("" : "+m"(total[h][c]));
            }
        }
    }
}

/* acc = fma(d * da, total, acc), or of minima with the product negated. Where minima are sums of activations alone,
 * both: `sums` are those of a unit, as floats. */
Q_Y_INLINE void q_y_apply(const q_y_format *f, int C, const uint8_t *block, bool minima, const uint8_t *da,
                          const uint8_t *sums, __m256i total[2][Q_Y_COLUMNS], __m256 acc[2][Q_Y_COLUMNS]) {
    Q_UNROLL for (int h = 0; h < 2; h++) {
        const __m256 dmin = q_y_load_ps(block + q_y_dmin_at(f) + 32 * h);
        const __m256 d = minima ? dmin : q_y_load_ps(block + q_y_d_at(f) + 32 * h);
        Q_UNROLL for (int c = 0; c < C; c++) {
            const int column = c * q_y_column_bytes(f);
            const __m256 a = q_y_spread_ps(da + column), s = _mm256_mul_ps(d, a), t = _mm256_cvtepi32_ps(total[h][c]);
            __m256 v = minima ? _mm256_fnmadd_ps(s, t, acc[h][c]) : _mm256_fmadd_ps(s, t, acc[h][c]);
            if (f->minima == 1) v = _mm256_fnmadd_ps(_mm256_mul_ps(dmin, a), q_y_spread_ps(sums + column), v);
            acc[h][c] = v;
        }
    }
}

/* What minima that are integers take away, of a block; x: what they are multiplied with. */
Q_Y_INLINE void q_y_minima(const q_y_format *f, int C, const uint8_t *block, const uint8_t *x, const uint8_t *da,
                           __m256 acc[2][Q_Y_COLUMNS]) {
    __m256i total[2][Q_Y_COLUMNS];
    Q_UNROLL for (int c = 0; c < C; c++) total[0][c] = total[1][c] = _mm256_setzero_si256();
    Q_UNROLL for (int j = 0; j < q_y_pairs_of(f); j++) {
        __m256i m0 = q_y_load(block + q_y_pairs_at(f) + 64 * j), m1 = q_y_load(block + q_y_pairs_at(f) + 64 * j + 32);
        __asm__("" : "+x"(m0), "+x"(m1));
        Q_UNROLL for (int c = 0; c < C; c++) {
            const __m256i s = q_y_spread(x + c * q_y_column_bytes(f) + 4 * j);
            total[0][c] = q_y_pairs(total[0][c], m0, s);
            total[1][c] = q_y_pairs(total[1][c], m1, s);
            __asm__("" : "+x"(total[0][c]), "+x"(total[1][c]));
        }
    }
    q_y_apply(f, C, block, true, da, NULL, total, acc);
}

/* A panel times C columns, `units` units of a chunk, added to acc, which stays in memory. With one scale to a row what
 * is added up are integers, whose bits acc holds. */
Q_Y_INLINE void q_y_tile(const q_y_format *f, int C, const uint8_t *block, const uint8_t *x, int units,
                         __m256 acc[2][Q_Y_COLUMNS]) {
    const int step = q_y_way_of(f) == Q_Y_WORDS ? 64 : 32;
    const bool fused = q_y_way_of(f) == Q_Y_WORDS || (q_y_by_fours(f) && !f->scales); /* one sum to a block */
    const bool two = !q_y_by_fours(f) && f->most == 2;
    for (int u = 0; u < units; u += q_y_run(f), block += q_y_block_bytes(f)) {
        const int n = f->whole ? units : f->act;
        const uint8_t *const da = x + q_y_scales_at(f) + 4 * (u / q_y_run(f));
        const uint8_t *const sums = x + q_y_sums_at(f) + 4 * u;
        __m256i total[2][Q_Y_COLUMNS];
        Q_UNROLL for (int h = 0; h < 2; h++) {
            const __m256i begin = q_y_load(block + q_y_begin_at(f) + 32 * h);
            Q_UNROLL for (int c = 0; c < C; c++) {
                total[h][c] = f->whole ? _mm256_add_epi32(begin, _mm256_castps_si256(acc[h][c])) : begin;
                if (!fused && !two && (f->act > 1 || f->most < 8)) __asm__("" : "+m"(total[h][c]));
            }
        }
        for (int i = 0; i < n; i++) {
            const uint8_t *const unit = block + i * q_y_unit_bytes(f), *const a = x + step * (u + i);
            if (fused) q_y_multiply(f, C, unit, a, 0, step / 4, total);
            else if (q_y_by_fours(f)) q_y_unit_fours(f, C, unit, a, total);
            else if (two) q_y_unit_two(f, C, unit, a, total);
            else q_y_unit_many(f, C, unit, a, total);
        }
        if (f->whole) {
            Q_UNROLL for (int h = 0; h < 2; h++)
                Q_UNROLL for (int c = 0; c < C; c++) acc[h][c] = _mm256_castsi256_ps(total[h][c]);
            return;
        }
        q_y_apply(f, C, block, false, da, sums, total, acc);
        if (f->minima > 1) q_y_minima(f, C, block, sums, da, acc);
        __asm__ volatile("" ::: "memory"); /* acc is not kept in registers that sums need */
    }
}

/* Hand in what four columns from c on have added up to, of the panel whose first row is r. */
Q_Y_INLINE void q_y_finish(const q_y_format *f, const q_mm *m, const uint8_t *panel, int64_t r, int64_t c,
                           __m256 acc[2][Q_Y_COLUMNS]) {
    for (int64_t j = 0; j < Q_Y_COLUMNS && c + j < m->n; j++)
        Q_UNROLL for (int h = 0; h < 2; h++) {
            const __m256 v = acc[h][j], da = q_y_spread_ps(m->x + (c + j) * m->x_stride);
            q_y_put(m, r + 8 * h, c + j, !f->whole ? v : _mm256_fmadd_ps(_mm256_mul_ps(f->d(panel, 0, h), da),
                    _mm256_cvtepi32_ps(_mm256_castps_si256(v)), _mm256_setzero_ps()));
        }
}

/* ------------------------------------------------------------------------------------------------------- the order */

typedef struct q_y_space {
    uint8_t *panel, *columns;
    __m256 (*acc)[2][Q_Y_COLUMNS]; /* [panel of the band][group of columns] */
    int64_t groups;
} q_y_space;

Q_Y_INLINE int64_t q_y_groups(int64_t n) { return (Q_MIN(n, (int64_t)Q_Y_SPAN) + Q_Y_COLUMNS - 1) / Q_Y_COLUMNS; }
Q_Y_INLINE uint64_t q_y_many_scratch(const q_y_format *f, int64_t n) {
    const uint64_t groups = (uint64_t)q_y_groups(n);
    return (uint64_t)q_y_panel_bytes(f) + Q_Y_COLUMNS * groups * (uint64_t)q_y_column_bytes(f) +
           Q_Y_BAND * groups * sizeof(__m256[2][Q_Y_COLUMNS]);
}

Q_Y_INLINE const uint8_t *q_y_at(const q_y_format *f, const q_mm *m, int64_t panel, int64_t from) {
    return m->w + (uint64_t)panel * m->row_bytes + (f->whole ? f->head : 0) + from / f->units * f->bytes;
}

/* Units `from` .. of panels begin .. end - 1 times columns c .. to - 1. */
Q_Y_INLINE void q_y_band(const q_y_format *f, const q_mm *m, const q_y_space *s, int64_t begin, int64_t end, int64_t c,
                         int64_t to, int64_t from) {
    const int64_t all = m->k / 32;
    const int units = (int)Q_MIN(all - from, (int64_t)Q_Y_UNITS);
    const bool first = from == 0, last = from + units == all;
    const int64_t groups = q_y_groups(to - c), lines = f->bytes * Q_Y_UNITS / f->units / 64;
    for (int64_t j = 0; j < Q_Y_COLUMNS * groups; j++) /* columns that do not exist are the last one again */
        q_y_take(f, m->x + Q_MIN(c + j, m->n - 1) * m->x_stride, m->k, from, units,
                 s->columns + j * q_y_column_bytes(f));
    for (int64_t i = begin; i < end; i++) {
        /* What comes next is in this band, else with its next chunk, else the next band. */
        const bool below = i + 1 < end;
        const uint8_t *const next = q_y_at(f, m, below || last ? i + 1 : begin, below ? from : last ? 0 : from + units);
        q_y_unpack(f, q_y_at(f, m, i, from), units, s->panel);
        for (int64_t g = 0; g < groups; g++) {
            __m256(*const acc)[Q_Y_COLUMNS] = s->acc[(i - begin) * s->groups + g];
            const uint8_t *const x = s->columns + Q_Y_COLUMNS * g * q_y_column_bytes(f);
            for (int64_t line = g * lines / groups; line < (g + 1) * lines / groups; line++)
                _mm_prefetch((const char *)((uintptr_t)next + 64 * (uintptr_t)line), _MM_HINT_T1);
            if (first) memset(acc, 0, sizeof s->acc[0]);
            if (to - c - Q_Y_COLUMNS * g > 2) q_y_tile(f, Q_Y_COLUMNS, s->panel, x, units, acc);
            else q_y_tile(f, 2, s->panel, x, units, acc);
            if (last)
                q_y_finish(f, m, m->w + (uint64_t)i * m->row_bytes, i * Q_PANEL - m->row, c + Q_Y_COLUMNS * g, acc);
        }
    }
}

Q_Y_INLINE void q_y_many(const q_y_format *f, const q_mm *m) {
    const int64_t from = m->row / Q_PANEL, panels = (m->row + m->rows + Q_PANEL - 1) / Q_PANEL - from;
    const int64_t bands = (panels + Q_Y_BAND - 1) / Q_Y_BAND;
    q_y_space s = {.panel = (uint8_t *)m->scratch, .groups = q_y_groups(m->n)};
    s.columns = s.panel + q_y_panel_bytes(f);
    s.acc = (void *)(s.columns + Q_Y_COLUMNS * s.groups * q_y_column_bytes(f));
    for (int64_t c = 0; c < m->n; c += Q_Y_SPAN)
        for (int64_t b = 0; b < bands; b++)
            for (int64_t u = 0; u < m->k / 32; u += Q_Y_UNITS)
                q_y_band(f, m, &s, from + panels * b / bands, from + panels * (b + 1) / bands, c,
                         Q_MIN(c + Q_Y_SPAN, m->n), u);
}

/* --------------------------------------------------------------------------------------------------- the product */

/* Columns from which its products are faster (bench/SPEED.md). */
Q_Y_INLINE int q_y_many_from(const q_y_format *f) { return Q_Y_VNNI && !f->scales ? 24 : 12; }

/* PACKED's two functions. */
#define Q_Y_PRODUCT(name, format)                                                                                      \
    Q_Y uint64_t q_##name##_scratch(int64_t k, int64_t n) {                                                            \
        Q_UNUSED(k);                                                                                                   \
        return n < q_y_many_from(&format) ? 0 : q_y_many_scratch(&format, n);                                          \
    }                                                                                                                  \
    Q_Y void q_##name(const q_mm *m) { q_y_many_from(&format) <= m->n ? q_y_many(&format, m) : q_y_few(&format, m); }

#endif
