/* wide_avx2.c: the loops of wide.h in AVX2: sixteen lanes are two registers. No fused multiply-add:
 * products and sums round one by one, as in wide.c. Layer L2. */
#include "avx2.h"

#include "../../../libquant/wide.h"
#include "../split_codecs.h"

/* Sixteen lanes. */
typedef struct lanes {
    __m256 a, b;
} lanes;

Q_AVX2_INLINE lanes both(__m256 v) { return (lanes){v, v}; }
Q_AVX2_INLINE lanes load(const float *x) { return (lanes){_mm256_loadu_ps(x), _mm256_loadu_ps(x + 8)}; }
Q_AVX2_INLINE lanes plus(lanes x, lanes y) { return (lanes){_mm256_add_ps(x.a, y.a), _mm256_add_ps(x.b, y.b)}; }
Q_AVX2_INLINE lanes minus(lanes x, lanes y) { return (lanes){_mm256_sub_ps(x.a, y.a), _mm256_sub_ps(x.b, y.b)}; }
Q_AVX2_INLINE lanes times(lanes x, lanes y) { return (lanes){_mm256_mul_ps(x.a, y.a), _mm256_mul_ps(x.b, y.b)}; }
/* Limited and rounded. */
Q_AVX2_INLINE __m256 level8(__m256 v, __m256 lo, __m256 hi) {
    const __m256 shift = _mm256_set1_ps(12582912.0f);
    v = _mm256_min_ps(_mm256_max_ps(v, lo), hi);
    return _mm256_sub_ps(_mm256_add_ps(v, shift), shift);
}

Q_AVX2_INLINE __m256 book8(const q_wide_block *b, __m256 v) {
    __m256i c = _mm256_setzero_si256(); /* minus the borders below */
    Q_UNROLL for (int k = 0; k < 15; k++)
        c = _mm256_add_epi32(c, _mm256_castps_si256(_mm256_cmp_ps(v, _mm256_set1_ps(b->mid[k]), _CMP_GT_OQ)));
    c = _mm256_sub_epi32(_mm256_setzero_si256(), c);
    const __m256 low = _mm256_permutevar8x32_ps(_mm256_loadu_ps(b->book), c);
    const __m256 high = _mm256_permutevar8x32_ps(_mm256_loadu_ps(b->book + 8), c);
    return _mm256_blendv_ps(low, high, _mm256_castsi256_ps(_mm256_slli_epi32(c, 28))); /* bit 3 to the sign */
}

Q_AVX2_INLINE void sums_of(const q_wide_block *b, const q_wide_try *t, bool with_book, bool with_min,
                           q_wide_sums *out) {
    const float inv = t->s != 0.0f ? 1.0f / t->s : 0.0f;
    const lanes s = both(_mm256_set1_ps(t->s)), m = both(_mm256_set1_ps(t->m)), by = both(_mm256_set1_ps(inv));
    const __m256 lo = _mm256_set1_ps(b->lo), hi = _mm256_set1_ps(b->hi);
    const lanes zero = both(_mm256_setzero_ps());
    lanes rr = zero, ll = zero, rl = zero, rs = zero, ls = zero;
    const float *x = b->x + t->group * b->n, *w = b->w + t->group * b->n;
    for (int32_t i = 0; i < b->n; i += Q_WIDE_LANES) {
        const lanes xs = load(x + i), ws = load(w + i);
        lanes l = times(with_book ? xs : plus(xs, m), by);
        if (with_book) l = (lanes){book8(b, l.a), book8(b, l.b)};
        else l = (lanes){level8(l.a, lo, hi), level8(l.b, lo, hi)};
        const lanes r = minus(xs, minus(times(s, l), m)), wr = times(ws, r), wl = times(ws, l);
        rr = plus(rr, times(wr, r));
        ll = plus(ll, times(wl, l));
        rl = plus(rl, times(wr, l));
        if (!with_min) continue;
        rs = plus(rs, wr);
        ls = plus(ls, wl);
    }
    const __m256 none = _mm256_setzero_ps();
    const __m256 v[8] = {_mm256_add_ps(rr.a, rr.b), _mm256_add_ps(ll.a, ll.b), _mm256_add_ps(rl.a, rl.b),
                         _mm256_add_ps(rs.a, rs.b), _mm256_add_ps(ls.a, ls.b), none, none, none};
    _mm256_storeu_ps(&out->wrr, q_fold8(v));
}

Q_AVX2 static void sums(const q_wide_block *b, const q_wide_try *tries, int32_t n, q_wide_sums *out) {
    for (int32_t i = 0; b->with_book && i < n; i++) sums_of(b, &tries[i], true, false, &out[i]);
    for (int32_t i = 0; !b->with_book && b->with_min && i < n; i++) sums_of(b, &tries[i], false, true, &out[i]);
    for (int32_t i = 0; !b->with_book && !b->with_min && i < n; i++) sums_of(b, &tries[i], false, false, &out[i]);
}

Q_AVX2 static void extremes(const float *x, int32_t groups, int32_t n, float *lo, float *hi) {
    for (int32_t g = 0; g < groups; g++, x += n) {
        lanes l = load(x), h = l;
        for (int32_t i = Q_WIDE_LANES; i < n; i += Q_WIDE_LANES) {
            const lanes v = load(x + i);
            l = (lanes){_mm256_min_ps(l.a, v.a), _mm256_min_ps(l.b, v.b)};
            h = (lanes){_mm256_max_ps(h.a, v.a), _mm256_max_ps(h.b, v.b)};
        }
        const __m256 l8 = _mm256_min_ps(l.a, l.b), h8 = _mm256_max_ps(h.a, h.b);
        lo[g] = q_least8(l8);
        hi[g] = q_most8(h8);
    }
}

Q_AVX2 static void multiply(const float *x, int32_t n, float by, float *y) {
    const __m256 b = _mm256_set1_ps(by);
    for (int32_t i = 0; i < n; i += 8) _mm256_storeu_ps(y + i, _mm256_mul_ps(_mm256_loadu_ps(x + i), b));
}

Q_AVX2 static bool codes(const float *x, int32_t n, float scale, float min, float lo, float hi, int32_t *to) {
    const __m256 s = _mm256_set1_ps(scale), m = _mm256_set1_ps(min), bottom = _mm256_set1_ps(lo),
                 top = _mm256_set1_ps(hi);
    const __m256 sign = _mm256_set1_ps(-0.0f), limit = _mm256_mul_ps(_mm256_set1_ps(0.499f), _mm256_andnot_ps(sign, s));
    __m256 far = _mm256_castsi256_ps(_mm256_set1_epi32(-1));
    for (int32_t i = 0; i < n; i += 8) {
        const __m256 v = _mm256_loadu_ps(x + i), l = level8(_mm256_div_ps(_mm256_add_ps(v, m), s), bottom, top);
        const __m256 off = _mm256_andnot_ps(sign, _mm256_sub_ps(v, _mm256_sub_ps(_mm256_mul_ps(s, l), m)));
        far = _mm256_and_ps(far, _mm256_cmp_ps(off, limit, _CMP_LT_OQ));
        _mm256_storeu_si256((__m256i *)(void *)(to + i), _mm256_cvtps_epi32(l));
    }
    return _mm256_movemask_ps(far) == 0xFF;
}

Q_AVX2 static bool all_finite(const float *x, int64_t n) {
    lanes sum = both(_mm256_setzero_ps());
    const lanes none = sum;
    int64_t i = 0;
    for (; i + Q_WIDE_LANES <= n; i += Q_WIDE_LANES) sum = plus(sum, times(load(x + i), none));
    bool all = _mm256_movemask_ps(_mm256_cmp_ps(_mm256_add_ps(sum.a, sum.b), none.a, _CMP_EQ_OQ)) == 0xFF;
    for (; i < n; i++) all = all && x[i] * 0.0f == 0.0f;
    return all;
}

Q_AVX2 static bool errors(const float *x, const float *y, int64_t n, double out[2]) {
    const __m256 sign = _mm256_set1_ps(-0.0f), most = _mm256_set1_ps(65504.0f), none = _mm256_setzero_ps();
    __m256d error[2] = {_mm256_setzero_pd(), _mm256_setzero_pd()}, norm[2] = {_mm256_setzero_pd(), _mm256_setzero_pd()};
    __m256 odd = none, large = none;
    for (int64_t j = 0; j + 8 <= n; j += 8) {
        const __m256 v = _mm256_loadu_ps(x + j), stored = _mm256_loadu_ps(y + j);
        odd = _mm256_add_ps(odd, _mm256_mul_ps(stored, none));
        large = _mm256_or_ps(large, _mm256_cmp_ps(_mm256_andnot_ps(sign, v), most, _CMP_GT_OQ));
        Q_UNROLL for (int i = 0; i < 2; i++) {
            const __m256d a = _mm256_cvtps_pd(i ? _mm256_extractf128_ps(v, 1) : _mm256_castps256_ps128(v));
            const __m256d b = _mm256_cvtps_pd(i ? _mm256_extractf128_ps(stored, 1) : _mm256_castps256_ps128(stored));
            const __m256d d = _mm256_sub_pd(a, b);
            error[i] = _mm256_add_pd(error[i], _mm256_mul_pd(d, d));
            norm[i] = _mm256_add_pd(norm[i], _mm256_mul_pd(a, a));
        }
    }
    double e[8], w[8];
    for (int i = 0; i < 2; i++) {
        _mm256_storeu_pd(e + 4 * i, error[i]);
        _mm256_storeu_pd(w + 4 * i, norm[i]);
    }
    for (int i = 0; i < 8; i++) {
        out[0] += e[i];
        out[1] += w[i];
    }
    return _mm256_movemask_ps(_mm256_or_ps(large, _mm256_cmp_ps(odd, none, _CMP_NEQ_UQ))) != 0;
}

Q_AVX2 static void subtract(float *w, const float *e, int64_t n, const float *u, int64_t stride) {
    __m256 sum[Q_WIDE_COLUMNS / 8];
    Q_UNROLL for (int j = 0; j < Q_WIDE_COLUMNS / 8; j++) sum[j] = _mm256_loadu_ps(w + 8 * j);
    for (int64_t i = 0; i < n; i++, u += stride) {
        const __m256 by = _mm256_set1_ps(e[i]);
        Q_UNROLL for (int j = 0; j < Q_WIDE_COLUMNS / 8; j++)
            sum[j] = _mm256_sub_ps(sum[j], _mm256_mul_ps(by, _mm256_loadu_ps(u + 8 * j)));
    }
    Q_UNROLL for (int j = 0; j < Q_WIDE_COLUMNS / 8; j++) _mm256_storeu_ps(w + 8 * j, sum[j]);
}

/* ------------------------------------------------------------------------------------------------ choosing tokens */

/* Sixteen values from where there are n; others are minus infinity. */
Q_AVX2_INLINE lanes some(const float *x, int64_t n) {
    if (n >= Q_WIDE_LANES) return load(x);
    float v[Q_WIDE_LANES];
    for (int i = 0; i < Q_WIDE_LANES; i++) v[i] = i < n ? x[i] : -INFINITY;
    return load(v);
}
Q_AVX2_INLINE void put(float *y, int64_t n, lanes v) {
    if (n >= Q_WIDE_LANES) {
        _mm256_storeu_ps(y, v.a);
        _mm256_storeu_ps(y + 8, v.b);
        return;
    }
    float all[Q_WIDE_LANES];
    _mm256_storeu_ps(all, v.a);
    _mm256_storeu_ps(all + 8, v.b);
    memcpy(y, all, (size_t)n * sizeof *y);
}

Q_AVX2 static bool peaks(const float *x, int64_t n, float *y, float *most) {
    const __m256 infinite = _mm256_set1_ps(INFINITY);
    __m256 good = _mm256_castsi256_ps(_mm256_set1_epi32(-1));
    for (int64_t at = 0; at < n; at += Q_WIDE_SPAN) {
        const int64_t end = Q_MIN(n, at + Q_WIDE_SPAN);
        lanes m = both(_mm256_set1_ps(-INFINITY));
        for (int64_t j = at; j < end; j += Q_WIDE_LANES) {
            const lanes v = some(x + j, end - j);
            m = (lanes){_mm256_max_ps(m.a, v.a), _mm256_max_ps(m.b, v.b)};
            good = _mm256_and_ps(good, _mm256_and_ps(_mm256_cmp_ps(v.a, infinite, _CMP_LT_OQ),
                                                     _mm256_cmp_ps(v.b, infinite, _CMP_LT_OQ)));
            if (y) put(y + j, end - j, v);
        }
        most[at / Q_WIDE_SPAN] = q_most8(_mm256_max_ps(m.a, m.b));
    }
    return _mm256_movemask_ps(good) == 0xFF;
}

/* q_wide_exp of eight. */
Q_AVX2_INLINE __m256 exp_of(__m256 x) {
    const __m256 least = _mm256_set1_ps(-87.0f), shift = _mm256_set1_ps(12582912.0f);
    const __m256 v = _mm256_max_ps(x, least);
    const __m256 n = _mm256_sub_ps(_mm256_add_ps(_mm256_mul_ps(v, _mm256_set1_ps(1.44269504f)), shift), shift);
    const __m256 r = _mm256_sub_ps(_mm256_sub_ps(v, _mm256_mul_ps(n, _mm256_set1_ps(0.693359375f))),
                                   _mm256_mul_ps(n, _mm256_set1_ps(-2.12194440e-4f)));
    __m256 p = _mm256_add_ps(_mm256_mul_ps(r, _mm256_set1_ps(1.0f / 720)), _mm256_set1_ps(1.0f / 120));
    p = _mm256_add_ps(_mm256_mul_ps(p, r), _mm256_set1_ps(1.0f / 24));
    p = _mm256_add_ps(_mm256_mul_ps(p, r), _mm256_set1_ps(1.0f / 6));
    p = _mm256_add_ps(_mm256_mul_ps(p, r), _mm256_set1_ps(0.5f));
    p = _mm256_add_ps(_mm256_mul_ps(p, r), _mm256_set1_ps(1.0f));
    p = _mm256_add_ps(_mm256_mul_ps(p, r), _mm256_set1_ps(1.0f));
    const __m256i e = _mm256_add_epi32(_mm256_castps_si256(p), _mm256_slli_epi32(_mm256_cvtps_epi32(n), 23));
    return _mm256_and_ps(_mm256_castsi256_ps(e), _mm256_cmp_ps(x, least, _CMP_GT_OQ));
}

Q_AVX2 static void exps(const float *x, int64_t n, float best, float by, float *e, float *sums) {
    const lanes half = both(_mm256_set1_ps(0.5f)), most = both(_mm256_set1_ps(0.5f * best));
    const lanes b = both(_mm256_set1_ps(by));
    for (int64_t at = 0; at < n; at += Q_WIDE_SPAN) {
        const int64_t end = Q_MIN(n, at + Q_WIDE_SPAN);
        lanes sum = both(_mm256_setzero_ps());
        for (int64_t j = at; j < end; j += Q_WIDE_LANES) {
            lanes v = times(minus(times(some(x + j, end - j), half), most), b);
            v = (lanes){exp_of(v.a), exp_of(v.b)};
            sum = plus(sum, v);
            if (e) put(e + j, end - j, v);
        }
        sums[at / Q_WIDE_SPAN] = q_fold1(_mm256_add_ps(sum.a, sum.b));
    }
}

/* ------------------------------------------------------------------------------------------------ decoding rows */

Q_AVX2 static void f16_widen(const q_format *f, const uint8_t *row, int64_t n, float *y) {
    int64_t i = 0;
    for (; i + 8 <= n; i += 8)
        _mm256_storeu_ps(y + i, _mm256_cvtph_ps(_mm_loadu_si128((const __m128i *)(const void *)(row + 2 * i))));
    if (i < n) q_decode_row(f, row + 2 * i, n - i, y + i);
}

Q_AVX2 static void bf16_widen(const q_format *f, const uint8_t *row, int64_t n, float *y) {
    int64_t i = 0;
    for (; i + 8 <= n; i += 8) {
        const __m256i v = _mm256_cvtepu16_epi32(_mm_loadu_si128((const __m128i *)(const void *)(row + 2 * i)));
        _mm256_storeu_ps(y + i, _mm256_castsi256_ps(_mm256_slli_epi32(v, 16)));
    }
    if (i < n) q_decode_row(f, row + 2 * i, n - i, y + i);
}

/* Beside the codec's: decoding rows of it takes as long as encoding them. (d * 1) * q is d * q. */
Q_AVX2 static void q8_0_row(const q_format *f, const uint8_t *row, int64_t n, float *y) {
    Q_UNUSED(f);
    for (; n >= q8_0_weights; n -= q8_0_weights, row += q8_0_bytes, y += q8_0_weights) {
        const __m256 d = _mm256_set1_ps(q_half_to_f32(q_load16(row)));
        Q_UNROLL for (int i = 0; i < q8_0_weights; i += 8) {
            const __m128i q = _mm_loadl_epi64((const __m128i *)(const void *)(row + 2 + i));
            _mm256_storeu_ps(y + i, _mm256_mul_ps(d, _mm256_cvtepi32_ps(_mm256_cvtepi8_epi32(q))));
        }
    }
}

#define ROW(name, target)                 \
    Q_SPLIT_WIDEN(name, wide_row, target) \
    extern const q_format q_format_##name;
Q_SPLIT_CODECS(ROW, Q_AVX2)
extern const q_format q_format_f16, q_format_bf16;

void q_wide_decode__avx2(const q_format *f, const uint8_t *row, int64_t n, float *y) {
#define ENTRY(name, target) {&q_format_##name, name##_wide_row},
    static const struct {
        const q_format *format;
        void (*widen)(const q_format *f, const uint8_t *row, int64_t n, float *y);
    } ways[] = {{&q_format_f16, f16_widen}, {&q_format_bf16, bf16_widen}, {&q_format_q8_0, q8_0_row},
                Q_SPLIT_CODECS(ENTRY, )};
#undef ENTRY
    for (size_t i = 0; i < Q_COUNT(ways); i++)
        if (ways[i].format == f) {
            ways[i].widen(f, row, n, y);
            return;
        }
    q_decode_row(f, row, n, y);
}

/* encode_avx2.c */
bool q_wide_encode__avx2(const q_format *f, const q_fit_in *in, int64_t n, uint8_t *row);
const q_wide q_wide__avx2 = {sums,       extremes, multiply, codes, q_wide_encode__avx2, q_wide_decode__avx2,
                             all_finite, errors,   subtract, peaks, exps};
