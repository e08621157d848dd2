/* awq.c: weights of large inputs are rounded on a finer grid (Lin et al., "AWQ", arXiv:2306.00978).
 *
 * s = (mean|x|)^r, at least 1e-4 and then divided by the root of its largest times its smallest value, for r = 0, 0.05
 * ... 0.95; kept is the r under which the quantized block's output is nearest to the original one, the lowest of
 * equals. r = 0 is s = 1. Inputs that are never seen count as the smallest that is. Layer L2. */
#include <math.h>

#include "../transform.h"

enum { RATIOS = 20 };

static void at_ratio(const float *mean, int64_t k, int32_t ratio, float *s) {
    float least = 0.0f, lo = INFINITY, hi = 0.0f;
    for (int64_t j = 0; j < k; j++)
        if (mean[j] > 0.0f) least = least > 0.0f ? fminf(least, mean[j]) : mean[j];
    for (int64_t j = 0; j < k; j++) {
        s[j] = least > 0.0f ? fmaxf((float)pow((double)fmaxf(mean[j], least), (double)ratio / RATIOS), 1e-4f) : 1.0f;
        lo = fminf(lo, s[j]);
        hi = fmaxf(hi, s[j]);
    }
    const float middle = sqrtf(lo * hi);
    for (int64_t j = 0; j < k; j++) s[j] /= middle;
}

static lq_status scale(const q_transform_job *job, float *s) {
    int32_t best = 0;
    double least = 0;
    for (int32_t r = 0; r < RATIOS; r++) {
        double loss;
        at_ratio(job->mean_abs, job->k, r, s);
        Q_TRY(job->loss(job->user, s, &loss));
        if (r > 0 && !(loss < least)) continue; /* a loss that is not a number is no better */
        best = r;
        least = loss;
    }
    at_ratio(job->mean_abs, job->k, best, s);
    return LQ_OK;
}

const q_transform q_transform_awq = {.name = "awq",
                                     .about = "AWQ: scales and clipping by which a block's output changes least",
                                     .needs_loss = true, .clips = true, .scale = scale};
