/* evaluate.c: perplexity and KL divergence of sessions over a text, in one sweep.
 *
 * The protocol is the one llama.cpp made usual: chunks that do not overlap, the first token of each replaced by BOS, an
 * empty cache per chunk, the second half scored (`score_all`: every position, as papers do at 2048). Candidates and the
 * reference see a chunk one after the other, so that no logits are ever stored. Rows are scored in parallel and summed
 * in order: the result does not depend on the number of threads. Layer L3. */
#include "engine.h"

#include <math.h>
#include <stdlib.h>

/* What one scored position of one session leaves behind. */
typedef struct score {
    double nll, p; /* of the right token */
    double lse;    /* log of the sum of exp of the logits */
    float kld;     /* D(reference || this), 0 for the reference */
    int32_t top;   /* most likely token */
} score;

typedef struct sweep {
    const q_alloc *alloc;
    q_pool *pool;
    lq_session *const *sessions; /* [0] the reference where there is one */
    size_t n_sessions;
    bool has_reference;
    uint32_t window, first;      /* scored rows of a chunk: positions first .. window - 2 */
    uint64_t chunks;
    score *scores;               /* [n_sessions][chunks * rows] */
    int32_t *ids;                /* one chunk */
    /* the rows in progress */
    uint64_t chunk;
    size_t session;
} sweep;

static uint64_t rows_of(const sweep *w) { return w->window - 1 - w->first; }
static score *score_at(const sweep *w, size_t session, uint64_t chunk, uint64_t row) {
    return &w->scores[(session * w->chunks + chunk) * rows_of(w) + row];
}

/* log of the sum of exp, and the first largest entry. */
static double log_sum_exp(const float *x, int64_t n, int32_t *top) {
    int64_t best = 0;
    for (int64_t i = 1; i < n; i++)
        if (x[i] > x[best]) best = i;
    const float m = x[best];
    double sum = 0;
    for (int64_t i = 0; i < n; i++) sum += (double)expf(x[i] - m);
    *top = (int32_t)best;
    return (double)m + log(sum);
}

static double divergence(const float *p, double lse_p, const float *q, double lse_q, int64_t n) {
    const double shift = lse_p - lse_q;
    double sum = 0;
    for (int64_t i = 0; i < n; i++)
        sum += (double)expf((float)((double)p[i] - lse_p)) * ((double)p[i] - (double)q[i] - shift);
    return sum < 0 ? 0 : sum; /* rounding can leave a divergence of zero slightly below */
}

static void score_rows(void *arg, int64_t begin, int64_t end, uint32_t thread) {
    Q_UNUSED(thread);
    const sweep *w = (const sweep *)arg;
    const lq_session *s = w->sessions[w->session];
    const int64_t vocab = s->plan->vocab;
    for (int64_t r = begin; r < end; r++) {
        const float *x = s->logits + r * vocab;
        const int32_t right = w->ids[(int64_t)w->first + r + 1];
        score *c = score_at(w, w->session, w->chunk, (uint64_t)r);
        c->lse = log_sum_exp(x, vocab, &c->top);
        c->nll = c->lse - (double)x[right];
        c->p = exp(-c->nll);
        if (!w->has_reference || w->session == 0) continue;
        const float *ref = w->sessions[0]->logits + r * vocab;
        c->kld = (float)divergence(ref, score_at(w, 0, w->chunk, (uint64_t)r)->lse, x, c->lse, vocab);
    }
}

static lq_status run_chunk(sweep *w) {
    for (w->session = 0; w->session < w->n_sessions; w->session++) {
        lq_session *s = w->sessions[w->session];
        Q_TRY(q_session_run(s, w->ids, w->window - 1, w->first));
        q_pool_for(w->pool, (int64_t)rows_of(w), 8, score_rows, w);
    }
    return LQ_OK;
}

static int by_size(const void *a, const void *b) {
    const float x = *(const float *)a, y = *(const float *)b;
    return (x > y) - (x < y);
}

/* The smallest value that at least `q` of the n sorted values do not exceed. */
static double quantile(const float *sorted, uint64_t n, double q) {
    const double at = ceil(q * (double)n) - 1;
    return (double)sorted[at < 0 ? 0 : (uint64_t)at];
}

static void mean_and_error(double sum, double squares, double n, double *mean, double *error) {
    *mean = sum / n;
    const double var = squares / n - *mean * *mean;
    *error = n > 1 && var > 0 ? sqrt(var / (n - 1)) : 0;
}

static lq_status summarize(const sweep *w, size_t session, lq_eval_result *r) {
    const uint64_t n = w->chunks * rows_of(w);
    const score *s = score_at(w, session, 0, 0), *ref = w->has_reference ? w->scores : NULL;
    double sum = 0, squares = 0, error;
    for (uint64_t i = 0; i < n; i++) {
        sum += s[i].nll;
        squares += s[i].nll * s[i].nll;
    }
    *r = (lq_eval_result){.window = w->window, .tokens = n, .evaluated = w->chunks * (w->window - 1)};
    mean_and_error(sum, squares, (double)n, &r->nll, &error);
    r->ppl = exp(r->nll);
    r->ppl_se = r->ppl * error;
    if (!ref || session == 0) return LQ_OK;
    float *sorted = (float *)q_new_raw(w->alloc, n, sizeof *sorted);
    if (!sorted) return LQ_E_NOMEM;
    double k = 0, k2 = 0, same = 0, dp = 0, dp2 = 0, ref_sum = 0;
    for (uint64_t i = 0; i < n; i++) {
        const double d = s[i].p - ref[i].p;
        sorted[i] = s[i].kld;
        k += (double)s[i].kld;
        k2 += (double)s[i].kld * (double)s[i].kld;
        same += s[i].top == ref[i].top;
        dp += d;
        dp2 += d * d;
        ref_sum += ref[i].nll;
    }
    qsort(sorted, (size_t)n, sizeof *sorted, by_size);
    mean_and_error(k, k2, (double)n, &r->kld_mean, &r->kld_se);
    r->kld_median = quantile(sorted, n, 0.5);
    r->kld_p90 = quantile(sorted, n, 0.9);
    r->kld_p95 = quantile(sorted, n, 0.95);
    r->kld_p99 = quantile(sorted, n, 0.99);
    r->kld_p999 = quantile(sorted, n, 0.999);
    r->kld_max = (double)sorted[n - 1];
    r->same_top = same / (double)n;
    r->dp_mean = dp / (double)n;
    r->dp_rms = sqrt(dp2 / (double)n);
    r->ppl_ratio = exp(r->nll - ref_sum / (double)n);
    q_delete(w->alloc, sorted);
    return LQ_OK;
}

/* All sessions must be able to hold a chunk, over the same vocabulary. */
static lq_status check_sessions(const sweep *w) {
    const lq_session *a = w->sessions[0];
    const q_vocab *va = q_text_vocab(a->model->text);
    for (size_t i = 0; i < w->n_sessions; i++) {
        const lq_session *s = w->sessions[i];
        if (s->shape.embed) return q_fail(LQ_E_ARG, "session %zu was opened for lq_embed, and has no logits", i);
        if (s->shape.context < w->window - 1 || s->shape.max_logits < rows_of(w))
            return q_fail(LQ_E_ARG, "session %zu has context %u and max_logits %u; windows of %u tokens need %u and %llu", i,
                          s->shape.context, s->shape.max_logits, w->window, w->window - 1,
                          (unsigned long long)rows_of(w));
        const q_vocab *v = q_text_vocab(s->model->text);
        bool same = s->plan->vocab == a->plan->vocab && v->n == va->n && v->bos == va->bos && v->add_bos == va->add_bos;
        for (int32_t t = 0; same && v != va && t < v->n; t++) same = q_str_eq(v->pieces[t], va->pieces[t]);
        if (!same) return q_fail(LQ_E_INCONSISTENT, "model %zu has another vocabulary than the reference", i);
        for (size_t j = 0; j < i; j++)
            if (w->sessions[j] == s) return q_fail(LQ_E_ARG, "the same session was given twice");
    }
    return LQ_OK;
}

static lq_status prepare(sweep *w, const int32_t *ids, size_t count, const lq_eval_options *o) {
    const uint32_t trained = (uint32_t)w->sessions[0]->model->binding->hp.v[Q_HP_CONTEXT];
    const uint32_t most = Q_MAX(trained, w->sessions[0]->shape.context); /* RoPE scaling */
    w->window = o->window ? o->window : Q_MIN(trained, 512u);
    if (w->window < 4 || w->window > most)
        return q_fail(LQ_E_ARG, "windows of %u tokens: must be 4 to %u, the trained context", w->window, most);
    w->first = o->score_all ? 0 : w->window / 2;
    const uint64_t tokens = o->max_tokens ? Q_MIN((uint64_t)count, o->max_tokens) : count;
    w->chunks = tokens / w->window;
    if (w->chunks == 0)
        return q_fail(LQ_E_ARG, "the text has %llu tokens; at least %u are required", (unsigned long long)tokens, w->window);
    Q_TRY(check_sessions(w));
    for (size_t i = 0; i < count; i++)
        if (ids[i] < 0 || ids[i] >= w->sessions[0]->plan->vocab)
            return q_fail(LQ_E_ARG, "token %zu is %d, outside the vocabulary", i, ids[i]);
    uint64_t cells;
    if (q_mul_overflow(w->chunks * rows_of(w), w->n_sessions, &cells)) return q_fail(LQ_E_NOMEM, "too many tokens to score");
    uint64_t bytes;
    if (q_mul_overflow(cells, sizeof *w->scores, &bytes)) bytes = UINT64_MAX;
    Q_TRY(q_memory_check("scoring the text", bytes, q_pool_stacks(w->sessions[0]->shape.threads_prefill)));
    w->scores = (score *)q_new(w->alloc, cells, sizeof *w->scores);
    w->ids = (int32_t *)q_new_raw(w->alloc, w->window, sizeof *w->ids);
    if (!w->scores || !w->ids) return LQ_E_NOMEM;
    return q_pool_open(w->alloc, w->sessions[0]->shape.threads_prefill, &w->pool);
}

static lq_status sweep_text(sweep *w, const int32_t *ids, const lq_eval_options *o) {
    const q_vocab *v = q_text_vocab(w->sessions[0]->model->text);
    const uint64_t per_chunk = (uint64_t)w->window * w->n_sessions;
    for (w->chunk = 0; w->chunk < w->chunks; w->chunk++) {
        if (o->progress && o->progress(o->user, w->chunk * per_chunk, w->chunks * per_chunk, "tokens"))
            return q_fail(LQ_E_CANCELLED, "cancelled by the progress callback");
        memcpy(w->ids, ids + w->chunk * w->window, w->window * sizeof *ids);
        if (v->add_bos && v->bos >= 0) w->ids[0] = v->bos;
        Q_TRY(run_chunk(w));
    }
    if (o->progress) o->progress(o->user, w->chunks * per_chunk, w->chunks * per_chunk, "tokens");
    return LQ_OK;
}

lq_status q_evaluate(lq_session *reference, lq_session *const *candidates, size_t n, const int32_t *ids, size_t count,
                     const lq_eval_options *options, lq_eval_result *reference_result, lq_eval_result *results) {
    lq_eval_options o;
    Q_TRY(q_struct_in(options, &o, sizeof o, "lq_eval_options"));
    if (n == 0 || n > 1024) return q_fail(LQ_E_ARG, "%zu sessions to evaluate: must be 1 to 1024", n);
    const size_t shift = reference ? 1 : 0;
    sweep w = {.alloc = candidates[0]->alloc, .n_sessions = n + shift, .has_reference = reference != NULL};
    lq_session **all = (lq_session **)q_new(w.alloc, w.n_sessions, sizeof *all);
    lq_eval_result *mine = (lq_eval_result *)q_new(w.alloc, w.n_sessions, sizeof *mine);
    lq_status s = all && mine ? LQ_OK : LQ_E_NOMEM;
    if (s == LQ_OK) {
        if (reference) all[0] = reference;
        for (size_t i = 0; i < n; i++) all[i + shift] = candidates[i];
        w.sessions = all;
        s = prepare(&w, ids, count, &o);
    }
    if (s == LQ_OK) s = sweep_text(&w, ids, &o);
    for (size_t i = 0; i < w.n_sessions && s == LQ_OK; i++) s = summarize(&w, i, &mine[i]);
    if (s == LQ_OK) {
        if (reference && reference_result) q_struct_out(reference_result, &mine[0], sizeof mine[0]);
        for (size_t i = 0; i < n; i++) {
            char *at = (char *)results + i * results[0].size; /* an older caller's structs are smaller */
            memcpy(at, &results[0].size, sizeof results[0].size);
            q_struct_out(at, &mine[i + shift], sizeof mine[0]);
        }
    }
    if (w.pool) q_pool_close(w.pool);
    q_delete(w.alloc, w.scores);
    q_delete(w.alloc, w.ids);
    q_delete(w.alloc, all);
    q_delete(w.alloc, mine);
    return s;
}
