/* sample.c: choosing the next token of a session from a row of logits, and what the model itself thinks of it. The
 * definition of choosing is the operation SAMPLE's (op.h). Nothing is allocated for a session. Layer L3. */
#include "engine.h"

#include <math.h>

/* The row that a caller means. */
static lq_status row_of(const lq_session *s, const char *call, uint32_t *row) {
    if (*row == (uint32_t)LQ_ROW_LAST && s->n_logits) *row = s->n_logits - 1;
    if (*row < s->n_logits) return LQ_OK;
    return q_fail(LQ_E_ARG, "%s: row %d of the logits was asked for; the last lq_decode kept %u", call, (int32_t)*row,
                  s->n_logits);
}
static const float *logits_of(const lq_session *s, uint32_t row) {
    return s->logits + (uint64_t)row * (uint64_t)s->plan->vocab;
}

lq_status q_session_sample(lq_session *s, uint32_t row, const lq_sampler *sampler, int32_t *id) {
    Q_TRY(row_of(s, "lq_sample", &row));
    lq_sampler o;
    Q_TRY(q_struct_in(sampler, &o, sizeof o, "lq_sampler"));
    return q_ref_sample_row(logits_of(s, row), s->plan->vocab, &o, s->rows[row].tokens, id, s->sample_scratch);
}

lq_status q_sample_logits(const lq_model *model, const float *logits, size_t n, const lq_sampler *sampler,
                          const int32_t *ids, size_t count, uint64_t position, int32_t *id) {
    const q_alloc *a = model ? model->alloc : &q_alloc_libc;
    if (n == 0 || n > INT32_MAX) return q_fail(LQ_E_ARG, "lq_sample_logits: %zu logits", n);
    if (count > INT32_MAX || (count && !ids))
        return q_fail(LQ_E_ARG, "lq_sample_logits: %zu tokens at %p", count, (const void *)ids);
    lq_sampler o;
    Q_TRY(q_struct_in(sampler, &o, sizeof o, "lq_sampler"));
    void *scratch = q_new_raw(a, q_ref_sample_bytes((int64_t)n), 1);
    if (!scratch) return LQ_E_NOMEM;
    const lq_status s = q_ref_sample_row(logits, (int64_t)n, &o, position, id, scratch);
    q_delete(a, scratch);
    return s;
}

/* ------------------------------------------------------------------------------------------------ probabilities */

/* Of two tokens the less likely one comes later. */
static bool later(const lq_logprob *a, const lq_logprob *b) {
    return a->logprob < b->logprob || (a->logprob == b->logprob && a->id > b->id);
}

/* Into the place of the first of a heap of n, whose first is the latest of all. */
static void replace_first(lq_logprob *heap, size_t n, lq_logprob with) {
    size_t i = 0;
    for (size_t child = 1; child < n; child = 2 * i + 1) {
        if (child + 1 < n && later(&heap[child + 1], &heap[child])) child++;
        if (!later(&heap[child], &with)) break;
        heap[i] = heap[child];
        i = child;
    }
    heap[i] = with;
}

/* The n largest logits in order, as they are. */
static void largest(const float *logits, size_t vocab, lq_logprob *top, size_t n) {
    size_t have = 0;
    for (size_t i = 0; i < vocab && n; i++) {
        const lq_logprob t = {(int32_t)i, logits[i]};
        if (have == n) {
            if (later(&top[0], &t)) replace_first(top, n, t);
            continue;
        }
        size_t at = have++;
        for (; at > 0 && later(&t, &top[(at - 1) / 2]); at = (at - 1) / 2) top[at] = top[(at - 1) / 2];
        top[at] = t;
    }
    for (size_t left = n; left > 1; left--) {
        const lq_logprob last = top[left - 1];
        top[left - 1] = top[0];
        replace_first(top, left - 1, last);
    }
}

lq_status q_session_logprobs(lq_session *s, uint32_t row, int32_t id, float *logprob, lq_logprob *top, size_t n) {
    Q_TRY(row_of(s, "lq_logprobs", &row));
    const int32_t vocab = s->plan->vocab;
    if (logprob && (id < 0 || id >= vocab))
        return q_fail(LQ_E_ARG, "lq_logprobs: token %d is outside the vocabulary of %d", id, vocab);
    if (n > (size_t)vocab || (n && !top))
        return q_fail(LQ_E_ARG, "lq_logprobs: the %zu most likely of %d tokens, to %p", n, vocab, (const void *)top);
    const float *logits = logits_of(s, row);
    float best = logits[0];
    double sum = 0;
    for (int32_t i = 1; i < vocab; i++) best = logits[i] > best ? logits[i] : best;
    for (int32_t i = 0; i < vocab; i++) sum += (double)expf(logits[i] - best);
    const double all = (double)best + log(sum);
    largest(logits, (size_t)vocab, top, n);
    for (size_t i = 0; i < n; i++) top[i].logprob = (float)((double)top[i].logprob - all);
    if (logprob) *logprob = (float)((double)logits[id] - all);
    return LQ_OK;
}
