/* row_errors.c: what a row lost when it was quantized: sums of squares, and values that are gone. See row_errors.h.
 * Owns nothing. Layer L3. */
#include "row_errors.h"

#include <math.h>

bool q_row_lost(const q_format *f, float x, float stored) {
    const float tolerance = f->weights == 1 ? 1.0f / 64 : 0.5f;
    return !isfinite(stored) || (fabsf(x) > 65504.0f && fabsf(x - stored) > tolerance * fabsf(x));
}

bool q_row_errors(const q_format *f, const q_wide *wide, const float *x, const float *y, const float *im, uint64_t k,
                  q_row_sums *sums) {
    q_row_sums s = {0};
    double both[2] = {0, 0};
    bool lost = false;
    const uint64_t whole = k / 8 * 8;
    const bool odd = wide->errors(x, y, (int64_t)whole, both);
    s.error = both[0];
    s.norm = both[1];
    for (uint64_t j = whole; j < k; j++) {
        const double d = (double)x[j] - (double)y[j];
        s.error += d * d;
        s.norm += (double)x[j] * (double)x[j];
        lost |= q_row_lost(f, x[j], y[j]);
    }
    for (uint64_t j = 0; odd && j < whole; j++) lost |= q_row_lost(f, x[j], y[j]);
    for (uint64_t j = 0; im && j < k; j++) {
        const double d = (double)x[j] - (double)y[j];
        s.weighted_error += (double)im[j] * d * d;
        s.weighted_norm += (double)im[j] * (double)x[j] * (double)x[j];
    }
    *sums = s;
    return !lost;
}
