/* search.c: search each block's parameters for the least weighted squared error, then take the nearest codes.
 *
 * The search itself is the format's (fit with `search`); what is decided here is how much each weight's error counts.
 * With the mean square of the inputs (job->diagonal) weight i of a row counts im_i * (1 + x_i^2 / sigma2)^p with
 * p = 2^(2 - bits): 1 at two bits per weight, 1/2 at three, 1/4 at four. The first factor is what the error does to the
 * output. The second keeps the large weights of a block from being pulled towards zero, the more so the fewer levels
 * there are. On the bundled model this gives q2_k a mean KL divergence 1 to 2 % below that of p = 1/2, the usual choice
 * for every format, and 3 to 5 % below p = 0; in the others the three differ by less than 2 %. Without statistics the
 * format's own default applies. Rows are independent. Layer L2. */
#include <math.h>

#include "../quantizer.h"

static bool accepts(const q_format *f) { return f->weights <= Q_MAX_BLOCK; }

static double sum_squares(const float *x, int64_t n) {
    double s = 0;
    for (int64_t i = 0; i < n; i++) s += (double)x[i] * (double)x[i];
    return s;
}

/* One row with importance. sigma2 is the mean square of the row, for super-blocks twice that of the super-block: it
 * keeps small weights from being ignored, and a super-block has enough weights for an estimate of its own. */
static void encode_weighted(const q_quant_job *job, const float *x, uint8_t *row) {
    const q_format *f = job->format;
    const float *im = job->diagonal;
    const int64_t k = job->k;
    const bool super = f->weights == Q_MAX_BLOCK;
    const double row_sigma2 = super ? 0 : sum_squares(x, k) / (double)k;
    const uint8_t *head = f->row_head ? row : NULL;
    /* what a row shares is weighed by the inputs alone */
    if (head) f->head(&(q_fit_in){x, im, true, NULL, job->wide}, k, row);
    row += f->row_head;
    const int32_t roots = 8 * f->bytes / f->weights - 2; /* square roots round alike everywhere, pow does not */
    for (int64_t at = 0; at < k; at += f->weights, row += f->bytes) {
        float w[Q_MAX_BLOCK];
        int32_t codes[Q_MAX_BLOCK];
        const double sigma2 = super ? 2 * sum_squares(x + at, f->weights) / f->weights : row_sigma2;
        const double inverse = sigma2 > 0 ? 1 / sigma2 : 0;
        double total = 0;
        for (int32_t j = 0; j < f->weights; j++) {
            double v = 1 + (double)x[at + j] * (double)x[at + j] * inverse;
            for (int32_t r = 0; r < roots; r++) v = sqrt(v);
            w[j] = (float)((double)im[at + j] * v);
            total += (double)w[j];
        }
        /* A block whose inputs were never seen (all weights 0) has no best fit: the format's default is a guess. */
        const bool usable = total > 0 && isfinite((float)total);
        const q_fit_in in = {x + at, usable ? w : NULL, true, head, job->wide};
        q_grid grid;
        memset(&grid, 0, sizeof grid);
        f->fit(&in, &grid);
        q_format_codes(f, job->wide, &grid, x + at, codes);
        f->emit(&grid, codes, row);
    }
}

static lq_status quantize(const q_quant_job *job, uint8_t *dst) {
    const q_format *f = job->format;
    uint64_t row_bytes;
    if (job->k < 0 || !q_row_bytes(f, (uint64_t)job->k, &row_bytes))
        return q_fail(LQ_E_INTERNAL, "quantizer search: rows of %lld weights do not fit format %s", (long long)job->k,
                      f->name);
    /* A format of single weights has nothing to search: every value has its own scale. */
    const bool weighted = job->diagonal && f->weights > 1;
    for (int64_t r = 0; r < job->rows; r++) {
        const float *x = job->x + r * job->k;
        uint8_t *row = dst + (uint64_t)r * row_bytes;
        if (weighted)
            encode_weighted(job, x, row);
        else
            q_encode_row_of(f, &(q_fit_in){x, NULL, f->weights > 1, NULL, job->wide}, job->k, row);
    }
    return LQ_OK;
}

const q_quantizer q_quantizer_search = {
    .name = "search", .needs = Q_NEEDS_NONE, .accepts = accepts, .quantize = quantize, .uses = Q_NEEDS_DIAGONAL};
