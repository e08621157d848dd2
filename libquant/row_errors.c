/* row_errors.c: what a row lost when it was quantized: sums of squares, and values that are gone. See row_errors.h. Owns
 * nothing. Layer L3. */
#include "row_errors.h"

#include <math.h>

bool q_row_lost(const q_format *f, float x, float stored) {
    const float tolerance = f->weights == 1 ? 1.0f / 64 : 0.5f;
    return !isfinite(stored) || (fabsf(x) > 65504.0f && fabsf(x - stored) > tolerance * fabsf(x));
}

/* x * 0 is 0, and NaN for infinities and NaN: one pass without branches, in eight sums that the compiler vectorizes. */
bool q_row_finite(const float *x, uint64_t n) {
    float s[8] = {0};
    uint64_t j = 0;
    for (; j + 8 <= n; j += 8)
        for (int i = 0; i < 8; i++) s[i] += x[j + (uint64_t)i] * 0.0f;
    for (; j < n; j++) s[0] += x[j] * 0.0f;
    for (int i = 1; i < 8; i++) s[0] += s[i];
    return s[0] == 0.0f;
}

/* Eight sums each, which the compiler vectorizes. */
bool q_row_errors(const q_format *f, const float *x, const float *y, const float *im, uint64_t k, q_row_sums *sums) {
    enum { LANES = 8 };
    double error[LANES] = {0}, norm[LANES] = {0};
    float odd[LANES] = {0}; /* of values that are not finite, or beyond the halves */
    q_row_sums s = {0};
    bool lost = false;
    uint64_t j = 0;
    for (; j + LANES <= k; j += LANES)
        for (int i = 0; i < LANES; i++) {
            const double a = (double)x[j + (uint64_t)i], d = a - (double)y[j + (uint64_t)i];
            error[i] += d * d;
            norm[i] += a * a;
            odd[i] += y[j + (uint64_t)i] * 0.0f + (fabsf(x[j + (uint64_t)i]) > 65504.0f ? 1.0f : 0.0f);
        }
    for (; j < k; j++) {
        const double d = (double)x[j] - (double)y[j];
        error[0] += d * d;
        norm[0] += (double)x[j] * (double)x[j];
        lost |= q_row_lost(f, x[j], y[j]);
    }
    for (int i = 0; i < LANES; i++) {
        s.error += error[i];
        s.norm += norm[i];
        odd[0] += i ? odd[i] : 0;
    }
    for (j = 0; odd[0] != 0.0f && j < k; j++) lost |= q_row_lost(f, x[j], y[j]);
    for (j = 0; im && j < k; j++) {
        const double d = (double)x[j] - (double)y[j];
        s.weighted_error += (double)im[j] * d * d;
        s.weighted_norm += (double)im[j] * (double)x[j] * (double)x[j];
    }
    *sums = s;
    return !lost;
}
