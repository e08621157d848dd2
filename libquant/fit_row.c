/* fit_row.c: the fits that fit.c's blocks do not cover: one scale for any number of weights, a scale with a zero point,
 * and scales that are chosen from a few.
 *
 * The first two try scales around the closed-form one, solve the least squares for the codes that each gives, and keep
 * what leaves the least weighted error once it is stored; the reference stays where nothing is better. Never a
 * parameter that is not finite. Layer L1. */
#include "fit.h"

#include <float.h>

#include "wide.h"

enum { POLISH = 4, ZERO_STEPS = 20 };

static double weight_of(const q_fit_in *in, int64_t i) {
    if (!in->weight) return 1;
    return in->weight[i] > 0.0f && in->weight[i] <= FLT_MAX ? (double)in->weight[i] : 0;
}

/* Weighted error of d * (q - zero), q in lo .. hi; in *best_d the scale that suits these codes best. */
static double error_at(const q_fit_in *in, int64_t n, float d, float zero, float lo, float hi, double *best_d) {
    const double inv = d != 0.0f ? 1.0 / (double)d : 0;
    double error = 0, xl = 0, ll = 0;
    for (int64_t i = 0; i < n; i++) {
        double v = (double)in->x[i] * inv + (double)zero;
        v = v > (double)lo ? v : (double)lo;
        v = v < (double)hi ? v : (double)hi;
        const double l = (double)(q_fit_round((float)v) - zero), r = (double)in->x[i] - (double)d * l;
        const double w = weight_of(in, i);
        error += w * r * r;
        xl += w * (double)in->x[i] * l;
        ll += w * l * l;
    }
    *best_d = ll > 0 ? xl / ll : (double)d;
    return error;
}

static float as_half(double d) { return q_half_to_f32(q_fit_half((float)fmax(-70000.0, fmin(70000.0, d)))); }

/* From scale d on: take it where it is better than *best, and try the scale that suits its codes. */
static void descend(const q_fit_in *in, int64_t n, bool half, double d, float zero, float lo, float hi, double *best,
                    float *best_d, float *best_zero) {
    double before = HUGE_VAL;
    for (int turn = 0; turn < POLISH; turn++) {
        double next;
        const float stored = half ? as_half(d) : (float)d;
        const double e = error_at(in, n, stored, zero, lo, hi, &next);
        if (e < *best) {
            *best = e;
            *best_d = stored;
            *best_zero = zero;
        }
        if (!(e < before) || !(fabs(next) <= (double)FLT_MAX)) return;
        before = e;
        d = next;
    }
}

float q_fit_row(const q_shape *s, const q_fit_in *in, int64_t n) {
    float top = 0.0f, zero = 0.0f;
    double unused;
    if (n % Q_WIDE_LANES == 0 && n > 0) {
        float lo, hi;
        q_wide_of(in->wide)->extremes(in->x, 1, (int32_t)n, &lo, &hi);
        top = fmaxf(-lo, hi);
    } else {
        for (int64_t i = 0; i < n; i++) top = fmaxf(top, fabsf(in->x[i]));
    }
    float d = top / s->reference;
    if (!(d > 0.0f && d <= FLT_MAX)) return 0.0f;
    if (!in->search) return d;
    double best = error_at(in, n, d, 0.0f, (float)s->lo, (float)s->hi, &unused);
    for (int32_t k = 0; k <= s->steps; k++) {
        const double level = (double)s->from + (double)(s->to - s->from) * k / s->steps;
        descend(in, n, false, (double)top / level, 0.0f, (float)s->lo, (float)s->hi, &best, &d, &zero);
    }
    return d;
}

void q_fit_zero(const q_fit_in *in, int64_t n, int32_t levels, uint8_t head[4]) {
    double lo = 0, hi = 0, unused; /* the range is widened to zero, which then has a code of its own */
    const float top = (float)levels;
    for (int64_t i = 0; i < n; i++) {
        lo = fmin(lo, (double)in->x[i]);
        hi = fmax(hi, (double)in->x[i]);
    }
    float d = as_half((hi - lo) / levels), zero = (float)((levels + 1) / 2);
    /* also where d is cut to a half */
    if (d != 0.0f) zero = (float)q_fit_round_to((float)(-lo * levels / (hi - lo)), 0, levels);
    if (in->search && d != 0.0f) {
        /* many levels: little is worth cutting */
        const double from = levels > 15 ? 0.94 : 0.6, to = levels > 15 ? 1.01 : 1.1;
        double best = error_at(in, n, d, zero, 0.0f, top, &unused);
        for (int k = 0; k <= ZERO_STEPS; k++) {
            const double step = (hi - lo) / levels * (from + (to - from) * k / ZERO_STEPS);
            /* clips both ends alike */
            const float middle = (float)q_fit_round_to((float)((levels - (hi + lo) / step) / 2), 0, levels);
            for (float z = fmaxf(middle - 1, 0.0f); z <= fminf(middle + 1, top); z++)
                descend(in, n, true, step, z, 0.0f, top, &best, &d, &zero);
        }
    }
    q_store16(head, q_f32_to_half(d));
    head[2] = (uint8_t)zero;
    head[3] = 0;
}

int32_t q_fit_nearest_zero(const q_grid *grid, int32_t top, float x, float *value) {
    const int32_t zero = grid->mn[0];
    int32_t code = grid->d != 0.0f ? q_fit_round_to(x / grid->d + (float)zero, 0, top) : Q_MIN(zero, top);
    *value = grid->d * (float)(code - zero);
    /* division and sum have rounded */
    for (int32_t c = Q_MAX(code - 1, 0), last = Q_MIN(code + 1, top); c <= last; c++) {
        const float other = grid->d * (float)(c - zero);
        if (fabs((double)x - (double)other) < fabs((double)x - (double)*value)) {
            code = c;
            *value = other;
        }
    }
    return code;
}

int32_t q_fit_choose(const q_shape *s, const float *x, const float *weight, int32_t n, const float *scales,
                     int32_t count) {
    const q_fit_in in = {.x = x, .weight = weight, .search = true};
    double best = HUGE_VAL, total = 0;
    float mid[15];
    int32_t chosen = 0;
    for (int32_t k = 0; k < 15; k++) mid[k] = (q_fit_level(s, k) + q_fit_level(s, k + 1)) * 0.5f;
    for (int32_t i = 0; i < n; i++) total += weight_of(&in, i);
    for (int32_t j = 0; j < count; j++) {
        const float inv = scales[j] != 0.0f ? 1.0f / scales[j] : 0.0f;
        double error = 0;
        for (int32_t i = 0; i < n; i++) {
            const float v = x[i] * inv;
            int32_t c = v > mid[7] ? 8 : 0; /* bisection without branches */
            c += v > mid[c + 3] ? 4 : 0;
            c += v > mid[c + 1] ? 2 : 0;
            c += v > mid[c] ? 1 : 0;
            const double r = (double)x[i] - (double)scales[j] * (double)q_fit_level(s, c);
            error += (total > 0 ? weight_of(&in, i) : 1) * r * r;
        }
        if (error < best) best = error, chosen = j;
    }
    return chosen;
}
