/* wide.c: the loops of wide.h for any processor: constant lengths over arrays, which compilers vectorize. Owns nothing,
 * refuses nothing. Layer L1. */
#include "wide.h"

#include <math.h>

enum { LANES = Q_WIDE_LANES };

/* Levels for a chunk of values under inv = 1 / s. */
Q_UNCHECKED static inline void levels_linear(const q_wide_block *b, const float *x, float inv, float m, float *l) {
    const float lo = b->lo, hi = b->hi;
    for (int i = 0; i < LANES; i++) {
        float v = (x[i] + m) * inv;
        v = v > lo ? v : lo;
        v = v < hi ? v : hi;
        l[i] = q_fit_round(v);
    }
}

Q_UNCHECKED static inline void levels_book(const q_wide_block *b, const float *x, float inv, float *l) {
    float v[LANES];
    int c[LANES] = {0};
    for (int i = 0; i < LANES; i++) v[i] = x[i] * inv;
    for (int k = 0; k < 15; k++) { /* in wide registers quicker than a bisection */
        const float border = b->mid[k];
        for (int i = 0; i < LANES; i++) c[i] += v[i] > border ? 1 : 0;
    }
    for (int i = 0; i < LANES; i++) l[i] = b->book[c[i]];
}

Q_UNCHECKED static inline float add_lanes(const float *a) {
    float b[8], c[4];
    for (int i = 0; i < 8; i++) b[i] = a[i] + a[i + 8];
    for (int i = 0; i < 4; i++) c[i] = b[i] + b[i + 4];
    return (c[0] + c[2]) + (c[1] + c[3]);
}

Q_UNCHECKED static void sums_of(const q_wide_block *b, const q_wide_try *t, q_wide_sums *out) {
    const float s = t->s, m = t->m, inv = s != 0.0f ? 1.0f / s : 0.0f;
    float rr[LANES] = {0}, ll[LANES] = {0}, rl[LANES] = {0}, rs[LANES] = {0}, ls[LANES] = {0};
    for (int at = t->group * b->n; at < (t->group + 1) * b->n; at += LANES) {
        const float *x = b->x + at, *w = b->w + at;
        float l[LANES], r[LANES], wr[LANES], wl[LANES];
        if (b->with_book) levels_book(b, x, inv, l);
        else levels_linear(b, x, inv, m, l);
        for (int i = 0; i < LANES; i++) {
            r[i] = x[i] - (s * l[i] - m);
            wr[i] = w[i] * r[i];
            wl[i] = w[i] * l[i];
        }
        for (int i = 0; i < LANES; i++) {
            rr[i] += wr[i] * r[i];
            ll[i] += wl[i] * l[i];
            rl[i] += wr[i] * l[i];
        }
        for (int i = 0; b->with_min && i < LANES; i++) {
            rs[i] += wr[i];
            ls[i] += wl[i];
        }
    }
    *out = (q_wide_sums){
        .wrr = add_lanes(rr), .wll = add_lanes(ll), .wrl = add_lanes(rl), .wr = add_lanes(rs), .wl = add_lanes(ls)};
}

static void any_sums(const q_wide_block *b, const q_wide_try *tries, int32_t n, q_wide_sums *out) {
    for (int32_t i = 0; i < n; i++) sums_of(b, &tries[i], &out[i]);
}

/* As fmaxf and fminf, which are calls, of numbers. */
static inline float larger(float a, float b) { return a > b ? a : b; }
static inline float smaller(float a, float b) { return a < b ? a : b; }

Q_UNCHECKED static void extremes_of(const float *x, int32_t n, float *lo, float *hi) {
    float l[LANES], h[LANES];
    for (int i = 0; i < LANES; i++) l[i] = h[i] = x[i];
    for (int at = LANES; at < n; at += LANES)
        for (int i = 0; i < LANES; i++) {
            l[i] = smaller(l[i], x[at + i]);
            h[i] = larger(h[i], x[at + i]);
        }
    for (int i = 0; i < 8; i++) l[i] = smaller(l[i], l[i + 8]);
    for (int i = 0; i < 8; i++) h[i] = larger(h[i], h[i + 8]);
    for (int i = 0; i < 4; i++) l[i] = smaller(l[i], l[i + 4]);
    for (int i = 0; i < 4; i++) h[i] = larger(h[i], h[i + 4]);
    *lo = smaller(smaller(l[0], l[1]), smaller(l[2], l[3]));
    *hi = larger(larger(h[0], h[1]), larger(h[2], h[3]));
}
static void any_extremes(const float *x, int32_t groups, int32_t n, float *lo, float *hi) {
    for (int32_t g = 0; g < groups; g++) extremes_of(x + g * n, n, &lo[g], &hi[g]);
}

Q_UNCHECKED static void any_multiply(const float *x, int32_t n, float by, float *y) {
    for (int at = 0; at < n; at += LANES)
        for (int i = 0; i < LANES; i++) y[at + i] = x[at + i] * by;
}

Q_UNCHECKED static bool any_codes(const float *x, int32_t n, float scale, float min, float lo, float hi,
                                  int32_t *codes) {
    const float limit = 0.499f * fabsf(scale);
    int near[LANES] = {0}, any = 0;
    for (int at = 0; at < n; at += LANES)
        for (int i = 0; i < LANES; i++) {
            float v = (x[at + i] + min) / scale;
            v = v > lo ? v : lo;
            v = v < hi ? v : hi;
            v = q_fit_round(v);
            codes[at + i] = (int32_t)v;
            near[i] |= fabsf(x[at + i] - (scale * v - min)) < limit ? 0 : 1;
        }
    for (int i = 0; i < LANES; i++) any |= near[i];
    return any == 0;
}

static bool any_encode(const q_format *f, const q_fit_in *in, int64_t n, uint8_t *row) {
    Q_UNUSED(f);
    Q_UNUSED(in);
    Q_UNUSED(n);
    Q_UNUSED(row);
    return false;
}

/* x * 0 is 0, and NaN for infinities and NaN: one pass without branches. */
Q_UNCHECKED static bool any_finite(const float *x, int64_t n) {
    float s[8] = {0};
    int64_t j = 0;
    for (; j + 8 <= n; j += 8)
        for (int i = 0; i < 8; i++) s[i] += x[j + i] * 0.0f;
    for (; j < n; j++) s[0] += x[j] * 0.0f;
    for (int i = 1; i < 8; i++) s[0] += s[i];
    return s[0] == 0.0f;
}

Q_UNCHECKED static bool any_errors(const float *x, const float *y, int64_t n, double sums[2]) {
    double error[8] = {0}, norm[8] = {0};
    float odd[8] = {0};
    for (int64_t j = 0; j + 8 <= n; j += 8)
        for (int i = 0; i < 8; i++) {
            const double a = (double)x[j + i], d = a - (double)y[j + i];
            error[i] += d * d;
            norm[i] += a * a;
            odd[i] += y[j + i] * 0.0f + (fabsf(x[j + i]) > 65504.0f ? 1.0f : 0.0f);
        }
    for (int i = 0; i < 8; i++) {
        sums[0] += error[i];
        sums[1] += norm[i];
        odd[0] += i ? odd[i] : 0;
    }
    return odd[0] != 0.0f;
}

Q_UNCHECKED static void any_subtract(float *w, const float *e, int64_t n, const float *u, int64_t stride) {
    float sum[Q_WIDE_COLUMNS]; /* stays at hand while the errors pass */
    memcpy(sum, w, sizeof sum);
    for (int64_t i = 0; i < n; i++, u += stride)
        for (int j = 0; j < Q_WIDE_COLUMNS; j++) sum[j] -= e[i] * u[j];
    memcpy(w, sum, sizeof sum);
}

Q_UNCHECKED static bool any_peaks(const float *x, int64_t n, float *y, float *most) {
    bool all = true;
    for (int64_t at = 0; at < n; at += Q_WIDE_SPAN) {
        const int64_t k = Q_MIN(n - at, (int64_t)Q_WIDE_SPAN);
        float m[LANES];
        int odd[LANES] = {0}, any = 0; /* what is not below infinity */
        int64_t j = 0;
        for (int i = 0; i < LANES; i++) m[i] = -INFINITY;
        for (; j + LANES <= k; j += LANES)
            for (int i = 0; i < LANES; i++) {
                const float v = x[at + j + i];
                m[i] = larger(m[i], v);
                odd[i] |= v < INFINITY ? 0 : 1;
            }
        for (; j < k; j++) {
            m[0] = larger(m[0], x[at + j]);
            odd[0] |= x[at + j] < INFINITY ? 0 : 1;
        }
        for (int i = 0; i < LANES; i++) any |= odd[i];
        for (int i = 1; i < LANES; i++) m[0] = larger(m[0], m[i]);
        most[at / Q_WIDE_SPAN] = m[0];
        all = all && any == 0;
        if (y) memcpy(y + at, x + at, (size_t)k * sizeof *y);
    }
    return all;
}

Q_UNCHECKED static void any_exps(const float *x, int64_t n, float best, float by, float *e, float *sums) {
    const float half = 0.5f * best;
    for (int64_t at = 0; at < n; at += Q_WIDE_SPAN) {
        const int64_t k = Q_MIN(n - at, (int64_t)Q_WIDE_SPAN);
        float sum[LANES] = {0};
        for (int64_t j = 0; j < k; j += LANES) {
            float v[LANES];
            const int64_t here = Q_MIN(k - j, (int64_t)LANES);
            for (int i = 0; i < LANES; i++) v[i] = i < here ? x[at + j + i] : -INFINITY;
            for (int i = 0; i < LANES; i++) v[i] = q_wide_exp((0.5f * v[i] - half) * by);
            for (int i = 0; i < LANES; i++) sum[i] += v[i];
            if (e) memcpy(e + at + j, v, (size_t)here * sizeof *e);
        }
        sums[at / Q_WIDE_SPAN] = add_lanes(sum);
    }
}

const q_wide q_wide_any = {any_sums,   any_extremes, any_multiply, any_codes, any_encode, q_decode_row,
                           any_finite, any_errors,   any_subtract, any_peaks, any_exps};
