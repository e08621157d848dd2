/* sample.c: choosing the next token from a row of logits. The definition is the operation SAMPLE's (op.h). Layer L3. */
#include "engine.h"

lq_status q_session_sample(lq_session *s, uint32_t row, const lq_sampler *sampler, int32_t *id) {
    if (row == (uint32_t)LQ_ROW_LAST && s->n_logits) row = s->n_logits - 1;
    if (row >= s->n_logits)
        return q_fail(LQ_E_ARG, "lq_sample: row %d of the logits was asked for; the last lq_decode kept %u",
                      (int32_t)row, s->n_logits);
    lq_sampler o;
    Q_TRY(q_struct_in(sampler, &o, sizeof o, "lq_sampler"));
    const uint64_t vocab = (uint64_t)s->plan->vocab;
    return q_ref_sample_row(s->logits + row * vocab, (int64_t)vocab, &o, s->rows[row].tokens, id, s->sample_scratch);
}

lq_status q_sample_logits(const q_alloc *a, const float *logits, size_t n, const lq_sampler *sampler, uint64_t position,
                          int32_t *id) {
    if (n == 0 || n > INT32_MAX) return q_fail(LQ_E_ARG, "lq_sample_logits: %zu logits", n);
    lq_sampler o;
    Q_TRY(q_struct_in(sampler, &o, sizeof o, "lq_sampler"));
    void *scratch = q_new_raw(a, q_ref_sample_bytes((int64_t)n), 1);
    if (!scratch) return LQ_E_NOMEM;
    const lq_status s = q_ref_sample_row(logits, (int64_t)n, &o, position, id, scratch);
    q_delete(a, scratch);
    return s;
}
