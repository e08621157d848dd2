/* smooth.c: inputs and weights share what is hard to round (Xiao et al., "SmoothQuant", arXiv:2211.10438).
 *
 * A few inputs of a matrix are far larger than the others, and what rounds the inputs of a token by one scale (formats
 * of 8 bits with a scale per row, INT8 directories) loses the small ones. s_j = sqrt(max|x_j| / max|W_j|) makes the
 * largest input and the largest weight of every column equal: alpha = 1/2, the paper's choice for Llama's kin too.
 * Maxima below 1e-5, of inputs that are never seen or columns of zeros, count as 1e-5. Layer L2. */
#include <math.h>

#include "../transform.h"

static lq_status scale(const q_transform_job *job, float *s) {
    const float least = 1e-5f;
    for (int64_t j = 0; j < job->k; j++) {
        const float ratio = fmaxf(job->max_abs[j], least) / fmaxf(job->weight_max[j], least);
        s[j] = fmaxf(sqrtf(ratio), least);
    }
    return LQ_OK;
}

const q_transform q_transform_smooth = {
    .name = "smooth", .about = "SmoothQuant: large inputs are divided, their weights multiplied", .scale = scale};
