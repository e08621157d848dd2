/* draft.c: guesses at the tokens that come next: what followed the same tokens before, or what a smaller model chooses.
 *
 * Guesses change how many passes a text takes, never the text: step.c evaluates them together and keeps those that the
 * sampler chooses. A draft model draws with the same seed and position as its model will, so that where their
 * distributions agree the draws mostly do. (Leviathan et al., "Fast Inference from Transformers via Speculative
 * Decoding", arXiv:2211.17192; looking a prompt up: Saxena, "Prompt Lookup Decoding", 2023.) Layer L3. */
#include "engine.h"

/* Where the last tokens occurred before, the longest match of at most `longest` and the latest of those: what followed
 * is repeated as often as it takes. A single token that occurred is no match, unless no more are asked for. */
uint32_t q_draft_lookup(const int32_t *ids, uint32_t n, uint32_t longest, uint32_t most, int32_t *out) {
    uint32_t best = Q_MIN(longest, 2u) - 1, at = 0;
    for (uint32_t e = n - 1; e > 0 && best < longest; e--) {
        if (ids[e - 1] != ids[n - 1]) continue;
        uint32_t same = 1;
        while (same < longest && same < e && ids[e - 1 - same] == ids[n - 1 - same]) same++;
        if (same > best) best = same, at = e;
    }
    for (uint32_t i = 0; at && i < most; i++) out[i] = at + i < n ? ids[at + i] : out[i - (n - at)];
    return at ? most : 0;
}

/* The draft model's choices behind n tokens of a sequence, which dropped others: how many, at most `most`. */
static lq_status ask(lq_session *d, uint32_t seq, const int32_t *ids, uint32_t n, uint64_t dropped,
                     const lq_sampler *o, uint32_t most, int32_t *out, uint32_t *count) {
    q_kv_seq *q = &d->kv_book.seqs[seq];
    lq_sampler own = *o; /* the caller's state is that of what is chosen; and a mask is asked about that alone */
    float mu = o->mirostat_mu ? *o->mirostat_mu : 0;
    uint32_t same = 0;
    if (o->mirostat_mu) own.mirostat_mu = &mu;
    own.mask = NULL;
    *count = 0;
    if (n >= d->shape.context) return LQ_OK;
    most = Q_MIN(most, d->shape.context - n);
    while (same < q->length && same + 1 < n && q->ids[same] == ids[same]) same++;
    q_kv_truncate(&d->kv_book, seq, same);
    q->dropped = dropped;
    lq_item t = {.sequence = seq, .ids = ids + same, .count = n - same, .logits_from = n - same - 1};
    for (uint32_t i = 0; i < most; i++) {
        const lq_status s = q_session_decode(d, &t, 1, false);
        if (s == LQ_E_CONTEXT) return LQ_OK; /* no room for its keys and values: what is guessed is enough */
        Q_TRY(s);
        Q_TRY(q_session_sample(d, 0, &own, &out[i]));
        if (out[i] == q_text_vocab(d->model->text)->eos && !o->ignore_eos) break; /* nobody evaluates it */
        *count = i + 1;
        t = (lq_item){.sequence = seq, .ids = &out[i], .count = 1};
    }
    return LQ_OK;
}

lq_status q_draft_guess(lq_session *s, uint32_t seq, const lq_sampler *o, uint32_t most, uint32_t *count) {
    q_kv_seq *q = &s->kv_book.seqs[seq];
    int32_t *out = q->ids + q->length; /* where they will be if they are right */
    *count = 0;
    if (most && s->shape.ngram) *count = q_draft_lookup(q->ids, q->length, s->shape.ngram, most, out);
    if (*count || !most || !s->draft) return LQ_OK;
    const double from = q_clock();
    const uint64_t bytes = s->draft->stats.decode_bytes;
    const lq_status st = ask(s->draft, seq, q->ids, q->length, q->dropped, o, most, out, count);
    s->stats.decode_seconds += q_clock() - from;
    s->stats.decode_bytes += s->draft->stats.decode_bytes - bytes;
    return st;
}

/* ------------------------------------------------------------------------------------- the draft model's session */

lq_session_options q_draft_options(const q_session_shape *s) {
    const uint32_t trained = (uint32_t)s->draft->binding->hp.v[Q_HP_CONTEXT];
    return (lq_session_options){.size = sizeof(lq_session_options), .context = Q_MIN(s->context, trained),
                                .batch = s->batch, .threads = s->threads, .threads_prefill = s->threads_prefill,
                                .activations = s->f32_activations ? "f32" : NULL, .sequences = s->seqs,
                                .no_reuse = !s->reuse, .kv_tokens = s->kv_tokens, .checkpoints = s->checkpoints,
                                .kv_k = s->kv_k->format->name, .kv_v = s->kv_v->format->name};
}

/* The guesses are tokens of the model: both vocabularies have to be the same. */
static lq_status check_draft(const lq_model *m, const lq_model *draft) {
    const double a = m->binding->hp.v[Q_HP_VOCAB], b = draft->binding->hp.v[Q_HP_VOCAB];
    if (a != b)
        return q_fail(LQ_E_INCONSISTENT, "the draft model has a vocabulary of %.0f tokens, the model one of %.0f", b,
                      a);
    Q_TRY(q_text_same(m->text, draft->text));
    if (draft->n_places < 2) return LQ_OK;
    if (m->n_places == 2 && strcmp(m->places[1].name, draft->places[1].name) == 0) return LQ_OK;
    return q_fail(LQ_E_UNSUPPORTED, "the draft model is on %s: it has to be on the processor or where the model is",
                  draft->places[1].name);
}

lq_status q_draft_shape(const lq_model *m, const lq_session_options *o, q_session_shape *s) {
    enum { DEFAULT_DRAFTS = 8, MOST_DRAFTS = 64, LONGEST = 32 };
    s->ngram = o->ngram;
    s->draft = o->draft;
    s->drafts = !o->ngram && !o->draft ? 0 : o->draft_tokens ? o->draft_tokens : DEFAULT_DRAFTS;
    if (o->draft_tokens > MOST_DRAFTS || o->ngram > LONGEST)
        return q_fail(LQ_E_ARG, "draft_tokens %u or ngram %u is out of range (at most %d, %d)", o->draft_tokens,
                      o->ngram, MOST_DRAFTS, LONGEST);
    if (o->draft_tokens && !s->drafts)
        return q_fail(LQ_E_ARG, "draft_tokens is %u, and neither ngram nor draft says how to guess them",
                      o->draft_tokens);
    return s->draft ? check_draft(m, s->draft) : LQ_OK;
}

lq_status q_draft_measure(const q_plan *p, const q_session_shape *s, q_session_need *need) {
    if (s->drafts && p->states > 0)
        return q_fail(LQ_E_UNSUPPORTED,
                      "ngram and draft: a recurrent state cannot go back behind guesses that were wrong");
    if (!s->draft) return LQ_OK;
    q_session_shape shape;
    q_session_need own;
    const lq_session_options o = q_draft_options(s);
    Q_TRY(q_session_shape_of(s->draft, &o, &shape));
    Q_TRY(q_session_measure(s->draft, &shape, &own));
    for (int i = 0; i < Q_PLACES; i++) need->kv[i] += own.kv[i], need->rest[i] += own.rest[i];
    need->locked += own.locked;
    return LQ_OK;
}

lq_status q_draft_open(lq_session *s) {
    if (!s->shape.draft) return LQ_OK;
    const lq_session_options o = q_draft_options(&s->shape);
    Q_TRY(q_session_open(s->shape.draft, &o, &s->draft));
    s->draft->cancelled = &s->cancel;
    return LQ_OK;
}
