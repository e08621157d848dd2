/* rtn.c: round to nearest: the format's closed-form scale, then the nearest code of every weight.
 *
 * The reference encoder: it owns nothing and looks at no statistics, is the fastest way to fill any format, and gives
 * the result that every other quantizer must beat. Rows are independent. Layer L2. */
#include "../quantizer.h"

static bool accepts(const q_format *f) {
    Q_UNUSED(f);
    return true;
}

static lq_status quantize(const q_quant_job *job, uint8_t *dst) {
    uint64_t row_bytes;
    if (job->k < 0 || !q_row_bytes(job->format, (uint64_t)job->k, &row_bytes))
        return q_fail(LQ_E_INTERNAL, "quantizer rtn: rows of %lld weights do not fit format %s", (long long)job->k,
                      job->format->name);
    for (int64_t r = 0; r < job->rows; r++)
        q_encode_row_of(job->format, &(q_fit_in){job->x + r * job->k, NULL, false, NULL, job->wide}, job->k,
                        dst + (uint64_t)r * row_bytes);
    return LQ_OK;
}

const q_quantizer q_quantizer_rtn = {
    .name = "rtn", .needs = Q_NEEDS_NONE, .accepts = accepts, .quantize = quantize, .uses = Q_NEEDS_NONE};
