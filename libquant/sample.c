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

_Static_assert((int)Q_SAMPLE_PIECE >= (int)Q_LIMIT_PIECE, "a token's text has room");

/* The text of a token, for breakers of DRY. */
static size_t piece_of(const void *texts, int32_t id, char out[Q_SAMPLE_PIECE]) {
    size_t n = Q_SAMPLE_PIECE;
    const lq_status s = q_text_detokenize(texts, &id, 1, LQ_DETOKENIZE_SPECIAL | LQ_DETOKENIZE_MIDDLE, out, &n);
    return s == LQ_OK ? n : 0; /* of an id beyond the tokenizer's vocabulary: rows that pad the matrix */
}

/* The tokens before a row: those of its sequence, of which a slide may have dropped some. */
static lq_status history(const lq_session *s, const q_row *row, q_sample_in *in) {
    in->position = row->tokens;
    if (row->seq == UINT32_MAX) { /* it has become another text (q_session_changed) */
        const lq_sampler *o = in->sampler;
        if (!o->mask && o->repeat_penalty == 0 && o->frequency_penalty == 0 && o->presence_penalty == 0 &&
            o->dry_multiplier == 0)
            return LQ_OK;
        return q_fail(LQ_E_ARG, "lq_sample: penalties, DRY and masks want the tokens before these logits, and their "
                                "sequence has been changed since: choose first");
    }
    const q_kv_seq *q = &s->kv_book.seqs[row->seq];
    if (row->tokens < q->dropped || row->tokens - q->dropped > q->length)
        return q_fail(LQ_E_INTERNAL, "lq_sample: a row behind %llu tokens of sequence %u, which has %u",
                      (unsigned long long)row->tokens, row->seq, q->length);
    in->ids = q->ids;
    in->count = (int64_t)(row->tokens - q->dropped);
    return LQ_OK;
}

lq_status q_session_sample(lq_session *s, uint32_t row, const lq_sampler *sampler, int32_t *id) {
    Q_TRY(row_of(s, "lq_sample", &row));
    lq_sampler o;
    Q_TRY(q_struct_in(sampler, &o, sizeof o, "lq_sampler"));
    q_sample_in in = {.logits = logits_of(s, row), .n = s->plan->vocab, .sampler = &o, .piece = piece_of,
                      .texts = s->model->text, .wide = q_ctx_wide(s->model->ctx), .scratch = s->sample_scratch};
    Q_TRY(history(s, &s->rows[row], &in));
    return q_ref_sample_row(&in, id);
}

lq_status q_sample_logits(const lq_model *model, const float *logits, size_t n, const lq_sampler *sampler,
                          const int32_t *ids, size_t count, uint64_t position, int32_t *id) {
    const q_alloc *a = model ? model->alloc : &q_alloc_libc;
    if (n == 0 || n > INT32_MAX) return q_fail(LQ_E_ARG, "lq_sample_logits: %zu logits", n);
    if (count > INT32_MAX || (count && !ids))
        return q_fail(LQ_E_ARG, "lq_sample_logits: %zu tokens at %p", count, (const void *)ids);
    for (size_t i = 0; i < count; i++)
        if (ids[i] < 0 || (size_t)ids[i] >= n)
            return q_fail(LQ_E_ARG, "lq_sample_logits: token %zu is %d, outside the vocabulary of %zu", i, ids[i], n);
    lq_sampler o;
    Q_TRY(q_struct_in(sampler, &o, sizeof o, "lq_sampler"));
    q_sample_in in = {.logits = logits, .n = (int64_t)n, .sampler = &o, .ids = ids, .count = (int64_t)count,
                      .position = position};
    if (model) in.piece = piece_of, in.texts = model->text, in.wide = q_ctx_wide(model->ctx);
    in.scratch = q_new_raw(a, q_sample_bytes(in.n, in.count), 1);
    if (!in.scratch) return LQ_E_NOMEM;
    const lq_status s = q_ref_sample_row(&in, id);
    q_delete(a, in.scratch);
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
    const q_wide *wide = q_ctx_wide(s->model->ctx);
    float *spans = s->sample_scratch, best = -INFINITY;
    double sum = 0;
    (void)wide->peaks(logits, vocab, NULL, spans); /* lq_decode has seen that they are finite */
    for (int64_t i = 0; i < q_wide_spans(vocab); i++) best = Q_MAX(best, spans[i]);
    wide->exps(logits, vocab, best, 2, NULL, spans);
    for (int64_t i = 0; i < q_wide_spans(vocab); i++) sum += (double)spans[i];
    const double all = (double)best + log(sum);
    largest(logits, (size_t)vocab, top, n);
    for (size_t i = 0; i < n; i++) top[i].logprob = (float)((double)top[i].logprob - all);
    if (logprob) *logprob = (float)((double)logits[id] - all);
    return LQ_OK;
}
