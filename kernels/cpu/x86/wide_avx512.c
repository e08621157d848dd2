/* wide_avx512.c: the loops of wide.h in AVX-512: sixteen lanes are a register. No fused multiply-add:
 * products and sums round one by one, as in wide.c. Rows are decoded and rounded to nearest as with AVX2. Layer L2. */
#include "avx512.h"

#include "../../../libquant/wide.h"

/* Limited and rounded. */
Q_AVX512_INLINE __m512 level(__m512 v, __m512 lo, __m512 hi) {
    const __m512 shift = _mm512_set1_ps(12582912.0f);
    v = _mm512_min_ps(_mm512_max_ps(v, lo), hi);
    return _mm512_sub_ps(_mm512_add_ps(v, shift), shift);
}

/* Four halvings of sixteen levels. */
Q_AVX512_INLINE __m512 from_book(__m512 book, __m512 mid, __m512 v) {
    __m512i c =
        _mm512_maskz_set1_epi32(_mm512_cmp_ps_mask(v, _mm512_permutexvar_ps(_mm512_set1_epi32(7), mid), _CMP_GT_OQ), 8);
    Q_UNROLL for (int half = 4; half > 0; half /= 2) {
        const __m512 border = _mm512_permutexvar_ps(_mm512_add_epi32(c, _mm512_set1_epi32(half - 1)), mid);
        c = _mm512_mask_add_epi32(c, _mm512_cmp_ps_mask(v, border, _CMP_GT_OQ), c, _mm512_set1_epi32(half));
    }
    return _mm512_permutexvar_ps(c, book);
}

Q_AVX512_INLINE __m256 halves(__m512 v) {
    return _mm256_add_ps(_mm512_castps512_ps256(v), _mm512_extractf32x8_ps(v, 1));
}

Q_AVX512_INLINE void sums_of(const q_wide_block *b, const q_wide_try *t, bool with_book, bool with_min,
                             q_wide_sums *out) {
    const float inv = t->s != 0.0f ? 1.0f / t->s : 0.0f;
    const __m512 s = _mm512_set1_ps(t->s), m = _mm512_set1_ps(t->m), by = _mm512_set1_ps(inv);
    const __m512 lo = _mm512_set1_ps(b->lo), hi = _mm512_set1_ps(b->hi);
    const __m512 book = _mm512_loadu_ps(b->book), mid = _mm512_loadu_ps(b->mid);
    __m512 rr = _mm512_setzero_ps(), ll = rr, rl = rr, rs = rr, ls = rr;
    const float *x = b->x + t->group * b->n, *w = b->w + t->group * b->n;
    for (int32_t i = 0; i < b->n; i += Q_WIDE_LANES) {
        const __m512 xs = _mm512_loadu_ps(x + i), ws = _mm512_loadu_ps(w + i);
        const __m512 l = with_book ? from_book(book, mid, _mm512_mul_ps(xs, by))
                                   : level(_mm512_mul_ps(_mm512_add_ps(xs, m), by), lo, hi);
        const __m512 r = _mm512_sub_ps(xs, _mm512_sub_ps(_mm512_mul_ps(s, l), m));
        const __m512 wr = _mm512_mul_ps(ws, r), wl = _mm512_mul_ps(ws, l);
        rr = _mm512_add_ps(rr, _mm512_mul_ps(wr, r));
        ll = _mm512_add_ps(ll, _mm512_mul_ps(wl, l));
        rl = _mm512_add_ps(rl, _mm512_mul_ps(wr, l));
        if (!with_min) continue;
        rs = _mm512_add_ps(rs, wr);
        ls = _mm512_add_ps(ls, wl);
    }
    const __m256 none = _mm256_setzero_ps();
    const __m256 v[8] = {halves(rr), halves(ll), halves(rl), halves(rs), halves(ls), none, none, none};
    _mm256_storeu_ps(&out->wrr, q_fold8(v));
}

Q_AVX512 static void sums(const q_wide_block *b, const q_wide_try *tries, int32_t n, q_wide_sums *out) {
    for (int32_t i = 0; b->with_book && i < n; i++) sums_of(b, &tries[i], true, false, &out[i]);
    for (int32_t i = 0; !b->with_book && b->with_min && i < n; i++) sums_of(b, &tries[i], false, true, &out[i]);
    for (int32_t i = 0; !b->with_book && !b->with_min && i < n; i++) sums_of(b, &tries[i], false, false, &out[i]);
}

Q_AVX512 static void extremes(const float *x, int32_t groups, int32_t n, float *lo, float *hi) {
    for (int32_t g = 0; g < groups; g++, x += n) {
        __m512 l = _mm512_loadu_ps(x), h = l;
        for (int32_t i = Q_WIDE_LANES; i < n; i += Q_WIDE_LANES) {
            const __m512 v = _mm512_loadu_ps(x + i);
            l = _mm512_min_ps(l, v);
            h = _mm512_max_ps(h, v);
        }
        const __m256 l8 = _mm256_min_ps(_mm512_castps512_ps256(l), _mm512_extractf32x8_ps(l, 1));
        const __m256 h8 = _mm256_max_ps(_mm512_castps512_ps256(h), _mm512_extractf32x8_ps(h, 1));
        lo[g] = q_least8(l8);
        hi[g] = q_most8(h8);
    }
}

Q_AVX512 static void multiply(const float *x, int32_t n, float by, float *y) {
    const __m512 b = _mm512_set1_ps(by);
    for (int32_t i = 0; i < n; i += Q_WIDE_LANES) _mm512_storeu_ps(y + i, _mm512_mul_ps(_mm512_loadu_ps(x + i), b));
}

Q_AVX512 static bool codes(const float *x, int32_t n, float scale, float min, float lo, float hi, int32_t *to) {
    const __m512 s = _mm512_set1_ps(scale), m = _mm512_set1_ps(min), bottom = _mm512_set1_ps(lo),
                 top = _mm512_set1_ps(hi);
    const __m512 limit = _mm512_mul_ps(_mm512_set1_ps(0.499f), _mm512_abs_ps(s));
    __mmask16 far = 0xFFFF;
    for (int32_t i = 0; i < n; i += Q_WIDE_LANES) {
        const __m512 v = _mm512_loadu_ps(x + i), l = level(_mm512_div_ps(_mm512_add_ps(v, m), s), bottom, top);
        const __m512 off = _mm512_abs_ps(_mm512_sub_ps(v, _mm512_sub_ps(_mm512_mul_ps(s, l), m)));
        far = _mm512_mask_cmp_ps_mask(far, off, limit, _CMP_LT_OQ);
        _mm512_storeu_si512(to + i, _mm512_cvtps_epi32(l));
    }
    return far == 0xFFFF;
}

Q_AVX512 static bool all_finite(const float *x, int64_t n) {
    const __m512 none = _mm512_setzero_ps();
    __m512 sum = none;
    int64_t i = 0;
    for (; i + Q_WIDE_LANES <= n; i += Q_WIDE_LANES)
        sum = _mm512_add_ps(sum, _mm512_mul_ps(_mm512_loadu_ps(x + i), none));
    bool all = _mm512_cmp_ps_mask(sum, none, _CMP_EQ_OQ) == 0xFFFF;
    for (; i < n; i++) all = all && x[i] * 0.0f == 0.0f;
    return all;
}

Q_AVX512 static bool errors(const float *x, const float *y, int64_t n, double out[2]) {
    const __m256 sign = _mm256_set1_ps(-0.0f), most = _mm256_set1_ps(65504.0f), none = _mm256_setzero_ps();
    __m512d error = _mm512_setzero_pd(), norm = error;
    __m256 odd = none, large = none;
    for (int64_t j = 0; j + 8 <= n; j += 8) {
        const __m256 v = _mm256_loadu_ps(x + j), stored = _mm256_loadu_ps(y + j);
        const __m512d a = _mm512_cvtps_pd(v), d = _mm512_sub_pd(a, _mm512_cvtps_pd(stored));
        odd = _mm256_add_ps(odd, _mm256_mul_ps(stored, none));
        large = _mm256_or_ps(large, _mm256_cmp_ps(_mm256_andnot_ps(sign, v), most, _CMP_GT_OQ));
        error = _mm512_add_pd(error, _mm512_mul_pd(d, d));
        norm = _mm512_add_pd(norm, _mm512_mul_pd(a, a));
    }
    double e[8], w[8];
    _mm512_storeu_pd(e, error);
    _mm512_storeu_pd(w, norm);
    for (int i = 0; i < 8; i++) {
        out[0] += e[i];
        out[1] += w[i];
    }
    return _mm256_movemask_ps(_mm256_or_ps(large, _mm256_cmp_ps(odd, none, _CMP_NEQ_UQ))) != 0;
}

Q_AVX512 static void subtract(float *w, const float *e, int64_t n, const float *u, int64_t stride) {
    __m512 a = _mm512_loadu_ps(w), b = _mm512_loadu_ps(w + 16);
    for (int64_t i = 0; i < n; i++, u += stride) {
        const __m512 by = _mm512_set1_ps(e[i]);
        a = _mm512_sub_ps(a, _mm512_mul_ps(by, _mm512_loadu_ps(u)));
        b = _mm512_sub_ps(b, _mm512_mul_ps(by, _mm512_loadu_ps(u + 16)));
    }
    _mm512_storeu_ps(w, a);
    _mm512_storeu_ps(w + 16, b);
}

/* Sixteen values from where there are n; others are minus infinity. */
Q_AVX512_INLINE __m512 some(const float *x, int64_t n) {
    return n >= Q_WIDE_LANES ? _mm512_loadu_ps(x) : _mm512_mask_loadu_ps(_mm512_set1_ps(-INFINITY), q_mask16(n), x);
}

Q_AVX512 static bool peaks(const float *x, int64_t n, float *y, float *most) {
    const __m512 infinite = _mm512_set1_ps(INFINITY);
    __mmask16 good = 0xFFFF;
    for (int64_t at = 0; at < n; at += Q_WIDE_SPAN) {
        const int64_t end = Q_MIN(n, at + Q_WIDE_SPAN);
        __m512 m = _mm512_set1_ps(-INFINITY), other = m; /* two chains */
        for (int64_t j = at; j < end; j += 2 * Q_WIDE_LANES) {
            const __m512 v = some(x + j, end - j), w = some(x + j + Q_WIDE_LANES, end - j - Q_WIDE_LANES);
            m = _mm512_max_ps(m, v);
            other = _mm512_max_ps(other, w);
            good &= _mm512_cmp_ps_mask(v, infinite, _CMP_LT_OQ) & _mm512_cmp_ps_mask(w, infinite, _CMP_LT_OQ);
            if (y) _mm512_mask_storeu_ps(y + j, q_mask16(end - j), v);
            if (y) _mm512_mask_storeu_ps(y + j + Q_WIDE_LANES, q_mask16(end - j - Q_WIDE_LANES), w);
        }
        m = _mm512_max_ps(m, other);
        most[at / Q_WIDE_SPAN] =
            q_most8(_mm256_max_ps(_mm512_castps512_ps256(m), _mm512_extractf32x8_ps(m, 1)));
    }
    return good == 0xFFFF;
}

/* q_wide_exp of sixteen. */
Q_AVX512_INLINE __m512 exp_of(__m512 x) {
    const __m512 least = _mm512_set1_ps(-87.0f), shift = _mm512_set1_ps(12582912.0f);
    const __m512 v = _mm512_max_ps(x, least);
    const __m512 n = _mm512_sub_ps(_mm512_add_ps(_mm512_mul_ps(v, _mm512_set1_ps(1.44269504f)), shift), shift);
    const __m512 r = _mm512_sub_ps(_mm512_sub_ps(v, _mm512_mul_ps(n, _mm512_set1_ps(0.693359375f))),
                                   _mm512_mul_ps(n, _mm512_set1_ps(-2.12194440e-4f)));
    __m512 p = _mm512_add_ps(_mm512_mul_ps(r, _mm512_set1_ps(1.0f / 720)), _mm512_set1_ps(1.0f / 120));
    p = _mm512_add_ps(_mm512_mul_ps(p, r), _mm512_set1_ps(1.0f / 24));
    p = _mm512_add_ps(_mm512_mul_ps(p, r), _mm512_set1_ps(1.0f / 6));
    p = _mm512_add_ps(_mm512_mul_ps(p, r), _mm512_set1_ps(0.5f));
    p = _mm512_add_ps(_mm512_mul_ps(p, r), _mm512_set1_ps(1.0f));
    p = _mm512_add_ps(_mm512_mul_ps(p, r), _mm512_set1_ps(1.0f));
    const __m512i e = _mm512_add_epi32(_mm512_castps_si512(p), _mm512_slli_epi32(_mm512_cvtps_epi32(n), 23));
    return _mm512_maskz_mov_ps(_mm512_cmp_ps_mask(x, least, _CMP_GT_OQ), _mm512_castsi512_ps(e));
}

Q_AVX512 static void exps(const float *x, int64_t n, float best, float by, float *e, float *sums) {
    const __m512 half = _mm512_set1_ps(0.5f), most = _mm512_set1_ps(0.5f * best), b = _mm512_set1_ps(by);
    for (int64_t at = 0; at < n; at += Q_WIDE_SPAN) {
        const int64_t end = Q_MIN(n, at + Q_WIDE_SPAN);
        __m512 sum = _mm512_setzero_ps();
        for (int64_t j = at; j < end; j += Q_WIDE_LANES) {
            const __m512 v =
                exp_of(_mm512_mul_ps(_mm512_sub_ps(_mm512_mul_ps(some(x + j, end - j), half), most), b));
            sum = _mm512_add_ps(sum, v);
            if (e) _mm512_mask_storeu_ps(e + j, q_mask16(end - j), v);
        }
        sums[at / Q_WIDE_SPAN] = q_fold1_512(sum);
    }
}

void q_wide_decode__avx2(const q_format *f, const uint8_t *row, int64_t n, float *y);
bool q_wide_encode__avx2(const q_format *f, const q_fit_in *in, int64_t n, uint8_t *row);
const q_wide q_wide__avx512 = {sums,       extremes, multiply, codes, q_wide_encode__avx2, q_wide_decode__avx2,
                               all_finite, errors,   subtract, peaks, exps};
