/* matmul_units_avxvnni.c: products of all formats of integer codes with 8-bit activations by vpdpbusd in 256 bits: four
 * products of an unsigned and a signed byte added to a 32-bit sum, exactly. units_avx2.h says how formats come apart.
 *
 * From a few columns on two panels of eight rows meet four columns: a broadcast of four activations feeds sixteen rows.
 * Codes are unsigned, weights plus the format's bias, which is taken back by what a sum begins with. Fewer columns are
 * bound by memory and go to the kernel of AVX2, which has the same bits, since both have those of op.h. Layer L2. */
#include "units_avx2.h"

#define TARGET "avx2,fma,f16c,avxvnni"
#define VNNI __attribute__((target(TARGET)))
#define VNNI_INLINE Q_PART VNNI

enum { COLUMNS = 4, ROWS = 16, PANEL_FROM = Q_I8_PANEL_FROM, CODES = 256 };

/* A unit of a panel: 8 vectors of codes, the scales that it has as int32, pairs of minima where there are any. After
 * the units of a block: d, dmin. */
VNNI_INLINE int64_t unit_bytes(const q_unit_format *f) { return CODES + 32 * f->scales + 32 * (f->dmin >= 0); }
VNNI_INLINE int64_t block_bytes(const q_unit_format *f) {
    return f->units * unit_bytes(f) + 32 + 32 * (f->dmin >= 0);
}
VNNI_INLINE int64_t panel_bytes(const q_unit_format *f, int64_t k) { return k / (32 * f->units) * block_bytes(f); }

VNNI_INLINE void unpack(const q_unit_format *f, const uint8_t *const *row, int64_t blocks, uint8_t *panel) {
    const __m256i bias = _mm256_set1_epi8((char)f->bias);
    for (int64_t i = 0; i < blocks; i++) {
        for (int sub = 0; sub < f->units; sub++, panel += unit_bytes(f)) {
            __m256i w[8];
            uint8_t *const sc = panel + CODES, *const mn = sc + 32 * f->scales;
            Q_UNROLL for (int r = 0; r < 8; r++) {
                const q_unit u = f->get(row[r] + i * f->bytes, sub);
                w[r] = _mm256_add_epi8(u.w, bias);
                for (int g = 0; g < f->scales; g++) q_store32(sc + 32 * g + 4 * r, (uint32_t)(int32_t)u.sc[g]);
                if (f->dmin >= 0) q_store32(mn + 4 * r, (uint16_t)u.mn[0] | (uint32_t)(uint16_t)u.mn[1] << 16);
            }
            q_interleave8(w, panel);
        }
        _mm256_storeu_ps((float *)(void *)panel, q_halves8(row, i * f->bytes + f->d));
        if (f->dmin >= 0) _mm256_storeu_ps((float *)(void *)(panel + 32), q_halves8(row, i * f->bytes + f->dmin));
        panel += 32 + 32 * (f->dmin >= 0);
    }
}

VNNI_INLINE __m256i spread(const uint8_t *p) { return _mm256_set1_epi32((int)q_load32(p)); }
VNNI_INLINE __m256 floats(const uint8_t *p) { return _mm256_loadu_ps((const float *)(const void *)p); }

/* A piece of a unit, all of it or its codes `from` .. `to` of eight, of two panels times C columns. `sums`: where the
 * column's sums of this unit are; `halves` has bit 0 for the first and 1 for the last 16 weights. */
VNNI_INLINE void piece(const q_unit_format *f, int C, const uint8_t *const *unit, const uint8_t *const *x,
                       int64_t codes, int64_t sums, int from, int to, int halves, __m256i sum[2][COLUMNS]) {
    const uint32_t less = (uint16_t)-f->bias;
    const __m256i by = _mm256_set1_epi32((int)((halves & 1 ? less : 0) | (halves & 2 ? less << 16 : 0)));
    Q_UNROLL for (int c = 0; c < C; c++) {
        sum[0][c] = f->bias ? _mm256_madd_epi16(spread(x[c] + sums), by) : _mm256_setzero_si256();
        sum[1][c] = sum[0][c];
    }
    Q_UNROLL for (int g = from; g < to; g++) {
        const __m256i a = q_load256(unit[0] + 32 * g), b = q_load256(unit[1] + 32 * g);
        Q_UNROLL for (int c = 0; c < C; c++) {
            const __m256i v = spread(x[c] + codes + 4 * g);
            sum[0][c] = _mm256_dpbusd_avx_epi32(sum[0][c], a, v);
            sum[1][c] = _mm256_dpbusd_avx_epi32(sum[1][c], b, v);
        }
    }
}

/* acc = fma(d * da, total, acc); or -(d * da). */
VNNI_INLINE void settle(int C, const uint8_t *const *d, const uint8_t *const *x, int64_t act, bool minima,
                        const __m256i total[2][COLUMNS], __m256 acc[2][COLUMNS]) {
    Q_UNROLL for (int p = 0; p < 2; p++)
        Q_UNROLL for (int c = 0; c < C; c++) {
            const __m256 s = _mm256_mul_ps(floats(d[p]), _mm256_set1_ps(q_unit_scale(x[c] + act)));
            const __m256 t = _mm256_cvtepi32_ps(total[p][c]);
            acc[p][c] = minima ? _mm256_fnmadd_ps(s, t, acc[p][c]) : _mm256_fmadd_ps(s, t, acc[p][c]);
        }
}

/* Two panels, from front to back, times C columns. */
VNNI_INLINE void columns(const q_unit_format *f, int C, const uint8_t *const *panels, const uint8_t *const *x,
                         int64_t blocks, __m256 acc[2][COLUMNS]) {
    const int64_t bytes = unit_bytes(f);
    const uint8_t *unit[2] = {panels[0], panels[1]};
    Q_UNROLL for (int c = 0; c < C; c++) acc[0][c] = acc[1][c] = _mm256_setzero_ps();
    int64_t act = 0; /* the block of activations */
    for (int64_t i = 0; i < blocks; i++) {
        const uint8_t *const ends[2] = {unit[0] + f->units * bytes, unit[1] + f->units * bytes};
        for (int sub = 0; sub < f->units; sub += f->act, act += q_unit_act_bytes(f->act)) {
            const uint8_t *const first[2] = {unit[0], unit[1]};
            __m256i total[2][COLUMNS];
            if (f->scales || f->act > 1)
                Q_UNROLL for (int c = 0; c < C; c++) total[0][c] = total[1][c] = _mm256_setzero_si256();
            for (int u = 0; u < f->act; u++, unit[0] += bytes, unit[1] += bytes) {
                const int64_t codes = act + 4 + 4 * f->act + 32 * u, sums = act + 4 + 4 * u;
                const int pieces = f->scales == 2 ? 2 : 1;
                Q_UNROLL for (int g = 0; g < pieces; g++) {
                    __m256i sum[2][COLUMNS];
                    piece(f, C, unit, x, codes, sums, g * 4, g * 4 + 8 / pieces, pieces == 1 ? 3 : 1 << g, sum);
                    Q_UNROLL for (int p = 0; p < 2; p++) {
                        const __m256i sc = f->scales ? q_load256(unit[p] + CODES + 32 * g) : _mm256_setzero_si256();
                        Q_UNROLL for (int c = 0; c < C; c++) {
                            if (f->scales) sum[p][c] = _mm256_add_epi32(total[p][c], _mm256_mullo_epi32(sum[p][c], sc));
                            else if (f->act > 1) sum[p][c] = _mm256_add_epi32(total[p][c], sum[p][c]);
                            total[p][c] = sum[p][c];
                        }
                    }
                }
            }
            settle(C, ends, x, act, false, total, acc);
            if (f->dmin < 0) continue;
            Q_UNROLL for (int c = 0; c < C; c++) total[0][c] = total[1][c] = _mm256_setzero_si256();
            for (int u = 0; u < f->act; u++) {
                const int64_t at = u * bytes + CODES + 32 * f->scales;
                const __m256i a = q_load256(first[0] + at), b = q_load256(first[1] + at);
                Q_UNROLL for (int c = 0; c < C; c++) {
                    const __m256i s = spread(x[c] + act + 4 + 4 * u);
                    total[0][c] = _mm256_dpwssd_avx_epi32(total[0][c], a, s);
                    total[1][c] = _mm256_dpwssd_avx_epi32(total[1][c], b, s);
                }
            }
            const uint8_t *const least[2] = {ends[0] + 32, ends[1] + 32};
            settle(C, least, x, act, true, total, acc);
        }
        unit[0] = ends[0] + 32 + 32 * (f->dmin >= 0);
        unit[1] = ends[1] + 32 + 32 * (f->dmin >= 0);
    }
}

VNNI_INLINE void put(const q_unit_format *f, int C, const q_mm *m, const uint8_t *const *panels, int64_t r, int64_t c) {
    const uint8_t *x[COLUMNS];
    __m256 y[2][COLUMNS];
    Q_UNROLL for (int j = 0; j < C; j++) x[j] = m->x + Q_MIN(c + j, m->n - 1) * m->x_stride;
    columns(f, C, panels, x, m->k / (32 * f->units), y);
    Q_UNROLL for (int j = 0; j < C; j++) {
        if (c + j >= m->n) break;
        q_put8(m, r, c + j, y[0][j]);
        if (m->rows - r > 8) q_put8(m, r + 8, c + j, y[1][j]);
    }
}

VNNI_INLINE void many(const q_unit_format *f, const q_mm *m) {
    uint8_t *const space = (uint8_t *)m->scratch;
    const uint8_t *const panels[2] = {space, space + panel_bytes(f, m->k)};
    for (int64_t r = 0; r < m->rows; r += ROWS) {
        for (int64_t p = 0; p < 2; p++) {
            const uint8_t *row[8]; /* rows that do not exist are the last one again */
            for (int64_t i = 0; i < 8; i++)
                row[i] = m->w + (uint64_t)Q_MIN(r + 8 * p + i, m->rows - 1) * m->row_bytes;
            unpack(f, row, m->k / (32 * f->units), space + p * panel_bytes(f, m->k));
        }
        int64_t c = 0;
        for (; m->n - c > 2; c += COLUMNS) put(f, COLUMNS, m, panels, r, c);
        for (; c < m->n; c += 2) put(f, 2, m, panels, r, c);
    }
}

/* PRODUCT's two functions. A plan for n columns also runs with fewer. */
#define UNITS(name, form, bytes, units, act, d, dmin, scales, bias)                                              \
    VNNI uint64_t q_matmul_##name##_##form##_16x4__avxvnni_scratch(int64_t k, int64_t n) {                       \
        const uint64_t few = q_matmul_##name##_##form##_8x4__avx2_scratch(k, Q_MIN(n, (int64_t)PANEL_FROM - 1)); \
        return n < PANEL_FROM ? few : Q_MAX(few, 2 * (uint64_t)panel_bytes(&q_unit_format_##name, k));           \
    }                                                                                                            \
    VNNI void q_matmul_##name##_##form##_16x4__avxvnni(const q_mm *m) {                                          \
        if (m->n < PANEL_FROM)                                                                                   \
            q_matmul_##name##_##form##_8x4__avx2(m);                                                             \
        else                                                                                                     \
            many(&q_unit_format_##name, m);                                                                      \
    }
Q_UNITS_SHARED(UNITS)
Q_UNITS_OWN(UNITS)
