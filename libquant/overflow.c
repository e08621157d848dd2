/* overflow.c: what happens to tokens for which a sequence's context has no room: LQ_E_CONTEXT, a stop, or a slide.
 *
 * `slide` is defined for tokens that come one by one: where one finds the context of C tokens full, half of the
 * C - keep tokens behind the first `keep` ones are dropped (rounded up, the oldest). Many tokens in one call come to
 * the same text, whatever the cuts between calls; but only what is left at the end is evaluated. Keys depend on
 * positions, so what moved is evaluated again. Owns the policy and the text; decode.c the passes. Refuses logits of
 * tokens before the last drop of a call, which would be of a text that is gone. Nothing is allocated. Layer L3. */
#include "engine.h"

static const char *const policies[] = {[Q_OVERFLOW_ERROR] = "error", [Q_OVERFLOW_STOP] = "stop",
                                    [Q_OVERFLOW_SLIDE] = "slide"};

const char *q_overflow_name(q_overflow policy) { return policies[policy]; }

lq_status q_overflow_choose(const lq_model *m, const lq_session_options *o, q_session_shape *s) {
    uint32_t i = 0;
    while (o->overflow && i < Q_COUNT(policies) && strcmp(o->overflow, policies[i]) != 0) i++;
    if (i == Q_COUNT(policies)) return q_fail(LQ_E_ARG, "overflow '%s' is not one of: error, stop, slide", o->overflow);
    s->overflow = (q_overflow)i;
    if (s->overflow != Q_OVERFLOW_SLIDE && o->overflow_keep)
        return q_fail(LQ_E_ARG, "overflow_keep %u goes with overflow 'slide' alone", o->overflow_keep);
    if (s->overflow != Q_OVERFLOW_SLIDE) return LQ_OK;
    lq_model_info info;
    q_model_info(m, &info);
    s->overflow_keep = o->overflow_keep ? o->overflow_keep : info.add_bos && s->context > 1;
    if (s->overflow_keep >= s->context)
        return q_fail(LQ_E_ARG, "overflow_keep %u leaves nothing of a context of %u tokens to slide", s->overflow_keep,
                      s->context);
    return LQ_OK;
}

/* Tokens that one slide drops. */
static uint32_t slide_of(const q_session_shape *s) { return (s->context - s->overflow_keep + 1) / 2; }

lq_status q_overflow_fit(const q_session_shape *s, uint32_t length, const lq_item *t, q_share *h) {
    const uint64_t all = length + (uint64_t)t->count, from = length + (uint64_t)t->logits_from;
    h->ids = t->ids;
    h->count = t->count;
    if (t->count <= s->context - length) {
        h->end = (uint32_t)all;
        h->from = (uint32_t)from;
        return LQ_OK;
    }
    if (s->overflow == Q_OVERFLOW_ERROR)
        return q_fail(LQ_E_CONTEXT, "%zu tokens after %u exceed the context of %u", t->count, length, s->context);
    if (t->count > PTRDIFF_MAX / sizeof *t->ids)
        return q_fail(LQ_E_ARG, "lq_decode: no array has %zu tokens", t->count);
    if (s->overflow == Q_OVERFLOW_STOP) {
        h->count = s->context - length;
        h->refused = t->count - h->count;
        h->end = s->context;
        h->from = (uint32_t)Q_MIN(from, (uint64_t)h->end);
        return LQ_OK;
    }
    h->dropped = (all - s->context + slide_of(s) - 1) / slide_of(s) * slide_of(s);
    /* the token of the item that finds the context full for the last time */
    const uint64_t last = s->context - length + h->dropped - slide_of(s);
    if (t->logits_from < last)
        return q_fail(LQ_E_CONTEXT,
                      "%zu tokens after %u exceed the context of %u, so that %llu slide out of it, the last ones "
                      "before token %llu of these: logits from token %zu on would be of texts that are gone "
                      "(logits_from)",
                      t->count, length, s->context, (unsigned long long)h->dropped, (unsigned long long)last,
                      t->logits_from);
    h->end = (uint32_t)(all - h->dropped);
    h->from = (uint32_t)(from - h->dropped);
    return LQ_OK;
}

uint32_t q_overflow_same(const q_session_shape *s, uint32_t length) { return Q_MIN(s->overflow_keep, length); }

void q_overflow_join(const q_session_shape *s, int32_t *ids, uint32_t length, const q_share *h) {
    const uint64_t keep = s->overflow_keep, moved = keep + h->dropped; /* what stood there now stands at `keep` */
    const int32_t *more = h->ids;
    uint64_t at = length;
    if (at < keep) { /* some of the new ones are among the first */
        memcpy(ids + at, more, (keep - at) * sizeof *ids);
        more += keep - at;
        at = keep;
    }
    if (at > moved) memmove(ids + keep, ids + moved, (at - moved) * sizeof *ids);
    else more += moved - at;
    at = Q_MAX(at, moved) - h->dropped;
    memmove(ids + at, more, (h->end - at) * sizeof *ids);
}

uint32_t q_overflow_left(const q_session_shape *s, uint32_t length, uint64_t dropped) {
    const uint64_t moved = s->overflow_keep + dropped;
    return length > moved ? (uint32_t)(length - dropped) : q_overflow_same(s, length);
}

lq_status q_overflow_told(const q_session_shape *s, const q_share *shares, uint32_t n) {
    for (uint32_t i = 0; i < n; i++)
        if (shares[i].refused)
            return q_fail(LQ_E_CONTEXT,
                          "sequence %u stopped at its context of %u tokens: %llu of %llu new ones were not taken",
                          shares[i].seq, s->context, (unsigned long long)shares[i].refused,
                          (unsigned long long)(shares[i].refused + shares[i].count));
    return LQ_OK;
}
