/* budget.c: how long the contexts of a session are when nobody says, and the cap on its bytes.
 *
 * The rule for the default: the trained context where it fits, else the largest power of two that does, at least
 * min(4096, trained). It fits where three quarters of the memory that is left beside the weights hold the session: of
 * the processor's, with what control groups and RLIMIT_AS leave, and of the model's device; all of max_bytes where that
 * is given. Powers of two, so that a little more or less free memory is no other context; a quarter is left, since
 * others live here too. Below that floor there is no default: what it lacks is told as the session opens. Layer L3. */
#include "engine.h"

#include <stdio.h>

enum { FLOOR = 4096 };

uint64_t q_weights_bytes(const lq_model *m) {
    uint64_t n = 0;
    for (uint32_t t = 0; t < m->dir->n_tensors; t++) n += m->dir->tensors[t].bytes;
    for (uint32_t t = 0; t < m->binding->n_items; t++) {
        const uint64_t as = q_load_as_bytes(m, t);
        if (as) n += q_placed_bytes(&m->ctx->placing, as) - m->binding->items[t].src->bytes;
    }
    return n + (m->adapters ? q_placed_bytes(&m->ctx->placing, m->adapter_bytes) : 0);
}

static uint64_t all_of(const q_session_need *n) { return n->kv[0] + n->kv[1] + n->rest[0] + n->rest[1]; }

/* Bytes that a session may have: by the cap, of memory here, of address space, of the device's memory. */
typedef struct budget {
    uint64_t cap, here, space, there;
} budget;

static uint64_t share_of(uint64_t have, uint64_t taken) {
    return have == UINT64_MAX ? have : (have - Q_MIN(have, taken)) / 4 * 3;
}

/* Weights that memory is still to hold: those of a mapped file are pages that the system may take back, so that they
 * count as free whether they are there or not; and what is packed later. */
static uint64_t weights_to_come(const lq_model *m) {
    const uint64_t all = q_weights_bytes(m) - m->packed_from + m->packed_bytes;
    if (m->plan_only) return all;
    const uint64_t here = m->owned_bytes + (m->packing ? 0 : m->packed_bytes);
    return all - Q_MIN(all, here);
}

static budget budget_of(const lq_model *m, const lq_session_options *o) {
    budget b = {.cap = o->max_bytes ? o->max_bytes : UINT64_MAX, .there = UINT64_MAX};
    b.here = share_of(q_memory_physical(""), weights_to_come(m));
    b.space = share_of(q_address_space(), m->plan_only ? m->packed_bytes : 0);
    if (m->n_places > 1) b.there = share_of(q_place_memory(&m->places[1]), m->plan_only ? m->device_weights : 0);
    return b;
}

static lq_status fits(const lq_model *m, const q_session_shape *s, const budget *b, bool *yes) {
    q_session_need n;
    Q_TRY(q_session_measure(m, s, &n));
    const uint64_t here = n.kv[0] + n.rest[0], stacks = q_pool_stacks(Q_MAX(s->threads, s->threads_prefill));
    *yes = all_of(&n) <= b->cap && here <= b->here && here + stacks <= b->space && n.kv[1] + n.rest[1] <= b->there;
    return LQ_OK;
}

/* The longest context below one that is too long for the cap; 0 = none. */
static uint32_t longest(const lq_model *m, const lq_session_options *o, uint32_t too_long) {
    const budget cap = {o->max_bytes, UINT64_MAX, UINT64_MAX, UINT64_MAX};
    const uint32_t seqs = Q_MAX(o->sequences, 1u), rows = o->max_logits / seqs + (o->max_logits % seqs != 0);
    uint32_t none = Q_MAX(rows, Q_MAX(o->overflow_keep + 1, 1u)) - 1; /* what other options leave no room for */
    for (uint32_t most = too_long; none + 1 < most;) {
        const uint32_t middle = none + (most - none) / 2;
        q_session_shape s;
        bool yes;
        if (q_session_shape_with(m, o, middle, &s) != LQ_OK || fits(m, &s, &cap, &yes) != LQ_OK) return 0;
        if (yes) none = middle;
        else most = middle;
    }
    q_session_shape s;
    bool yes = false;
    if (none == 0 || q_session_shape_with(m, o, none, &s) != LQ_OK || fits(m, &s, &cap, &yes) != LQ_OK) return 0;
    return yes ? none : 0;
}

static lq_status keep_cap(const lq_model *m, const lq_session_options *o, const q_session_shape *s) {
    q_session_need n;
    if (!o->max_bytes) return LQ_OK;
    Q_TRY(q_session_measure(m, s, &n));
    const uint64_t all = all_of(&n);
    if (all <= o->max_bytes) return LQ_OK;
    char advice[80] = "no context fits; a smaller batch needs less";
    const uint32_t least = longest(m, o, s->context);
    if (least) snprintf(advice, sizeof advice, "the longest context that fits is %u tokens", least);
    return q_fail(LQ_E_NOMEM,
                  "a session with context %u and batch %u needs %llu bytes (%.1f MiB), and max_bytes is %llu "
                  "(%.1f MiB): %s",
                  s->context, s->batch, (unsigned long long)all, (double)all / 1048576.0,
                  (unsigned long long)o->max_bytes, (double)o->max_bytes / 1048576.0, advice);
}

lq_status q_budget_shape(const lq_model *m, const lq_session_options *o, uint32_t trained, q_session_shape *out) {
    if (o->context) {
        Q_TRY(q_session_shape_with(m, o, o->context, out));
        return keep_cap(m, o, out);
    }
    const budget b = budget_of(m, o);
    const uint32_t floor = Q_MIN((uint32_t)FLOOR, trained);
    uint32_t at = trained;
    if (o->kv_tokens >= floor) at = (uint32_t)Q_MIN((uint64_t)at, o->kv_tokens);
    Q_TRY(q_session_shape_with(m, o, at, out));
    for (;;) {
        bool yes;
        q_session_shape less;
        Q_TRY(fits(m, out, &b, &yes));
        if (yes || at == floor) break;
        uint32_t power = 1;
        while (power < at - power) power *= 2; /* the largest below `at` */
        at = Q_MAX(power, floor);
        if (q_session_shape_with(m, o, at, &less) != LQ_OK) break; /* other options want more */
        *out = less;
    }
    return keep_cap(m, o, out);
}
