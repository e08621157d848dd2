/* decode.c: running a session: tokens of many sequences into passes, passes through the segments, logits, statistics.
 *
 * kv.c decides what a sequence holds and may reuse. This file makes the copies it asks for, and evaluates again what a
 * cut left incomplete before it evaluates new tokens. Nothing is allocated. Layer L3. */
#include "engine.h"

#include <math.h>

enum { SHORT_PASS = 8 }; /* tokens of a pass that memory bounds, as it does a single token's */

static const q_place *place_of(const lq_session *s, int32_t segment) {
    return &s->model->places[s->plan->segments[segment].device];
}

/* ------------------------------------------------------------------------------------------- copies */

static lq_status copy_state(lq_session *s, uint32_t from, uint32_t to) {
    for (int32_t i = 0; i < s->plan->n_segments; i++) {
        const uint64_t bytes = s->plan->segments[i].state_floats * sizeof(float);
        const q_place *at = place_of(s, i);
        if (bytes) Q_TRY(at->backend->copy(at->device, &s->states[i], to * bytes, &s->states[i], from * bytes, bytes));
    }
    return LQ_OK;
}

/* What kv.c noted before a pass. */
static lq_status copy_pages(lq_session *s) {
    q_kv *kv = &s->kv_book;
    lq_status st = LQ_OK;
    for (uint32_t i = 0; i < kv->n_copies && st == LQ_OK; i++) {
        const q_kv_copy *c = &kv->copies[i];
        const q_kv_pool *pool = &s->plan->kv[c->pool];
        const q_place *at = place_of(s, pool->segment);
        st = at->backend->copy(at->device, &s->kv[c->pool], c->to * pool->page_bytes, &s->kv[c->pool],
                               c->from * pool->page_bytes, pool->page_bytes);
    }
    kv->n_copies = 0;
    return st;
}

/* ------------------------------------------------------------------------------------------- passes */

/* Weight bytes, and the KV rows that so many positions see in every pool. */
static uint64_t kv_read(const lq_session *s, uint32_t length) {
    uint64_t n = 0;
    for (int32_t i = 0; i < s->plan->n_kv; i++) {
        const q_kv_pool *p = &s->plan->kv[i];
        const uint64_t seen = (uint64_t)p->window + (uint64_t)p->sink_tokens;
        const uint64_t tokens = p->window ? Q_MIN(length, seen) : length;
        n += tokens * (p->page_bytes / Q_KV_TOKENS);
    }
    return n;
}

/* One segment after the other; hidden rows pass from each to the next through `border`. */
static lq_status run_segments(lq_session *s, q_batch *b, bool decode) {
    const int32_t n = s->plan->n_segments;
    q_traffic sum = {0};
    for (int32_t i = 0; i < n; i++) {
        const q_backend *be = place_of(s, i)->backend;
        b->x = i > 0 ? s->border : NULL;
        b->y = i + 1 < n || s->plan->hidden ? s->border : NULL;
        Q_TRY(be->run(s->programs[i], b));
        Q_TRY(be->wait(s->programs[i]));
        const q_traffic t = be->traffic(s->programs[i]);
        sum.border_bytes += t.border_bytes;
        sum.border_seconds += t.border_seconds;
        sum.barriers += t.barriers;
    }
    s->stats.border_bytes = sum.border_bytes;
    s->stats.border_seconds = sum.border_seconds;
    if (decode) s->stats.decode_barriers += sum.barriers - s->barriers;
    s->barriers = sum.barriers;
    return LQ_OK;
}

/* Columns of this pass: those of the shares in order, as many as fit. Where a recurrent state is to be kept, a share
 * ends. */
static uint32_t fill(lq_session *s, uint32_t n_shares, q_batch *b) {
    uint32_t n = 0, n_out = 0;
    bool closed = false; /* a share ended before its rows: those of others would come before them */
    for (uint32_t i = 0; i < n_shares; i++) {
        q_share *h = &s->shares[i];
        const q_kv_seq *q = &s->kv_book.seqs[h->seq];
        h->taken = closed ? 0 : Q_MIN(h->end - q->stored, s->shape.batch - n);
        if (h->taken == 0) continue;
        const uint32_t stop = q_kv_stop(&s->kv_book, h->seq, h->taken);
        if (stop) h->taken = stop;
        closed = q->stored + h->taken < h->end && h->from < h->end;
        for (uint32_t j = 0; j < h->taken; j++, n++) {
            const uint32_t pos = q->stored + j;
            s->ids[n] = q->ids[pos];
            s->pos[n] = (int32_t)pos;
            s->seq[n] = b->n_seqs;
            if (pos < h->from || s->plan->hidden) continue;
            s->rows[s->n_logits + n_out] = (q_row){h->seq, q->dropped + pos + 1};
            s->out[n_out++] = (int32_t)n;
        }
        s->refs[b->n_seqs++] = (q_seq_ref){.pages = (const uint32_t *const *)q->tables, .state = h->seq,
                                           .freqs = q->freqs};
    }
    b->n = (int32_t)n;
    b->n_out = (int32_t)n_out;
    return n;
}

static lq_status prepare(lq_session *s, uint32_t n_shares) {
    q_kv *kv = &s->kv_book;
    kv->n_copies = 0;
    for (uint32_t i = 0; i < n_shares; i++) {
        const q_share *h = &s->shares[i];
        q_kv_seq *q = &kv->seqs[h->seq];
        if (h->taken == 0) continue;
        Q_TRY(q_kv_reserve(kv, h->seq, h->taken));
        if (q->restore < 0) continue;
        Q_TRY(copy_state(s, (uint32_t)q->restore, h->seq));
        q->restore = -1;
    }
    return copy_pages(s);
}

static void count(lq_session *s, const q_batch *b, uint32_t n_shares, double seconds, bool decode) {
    if (!decode) {
        s->stats.prefill_tokens += (uint64_t)b->n;
        s->stats.prefill_seconds += seconds;
        return;
    }
    s->stats.decode_tokens += (uint64_t)b->n;
    s->stats.decode_seconds += seconds;
    s->stats.decode_bytes += s->model->bytes_per_token;
    for (uint32_t i = 0; i < n_shares; i++)
        if (s->shares[i].taken) s->stats.decode_bytes += kv_read(s, s->kv_book.seqs[s->shares[i].seq].stored);
}

/* What a pass brought stays, whatever comes later. */
static lq_status settle(lq_session *s, uint32_t n_shares) {
    q_kv *kv = &s->kv_book;
    for (uint32_t i = 0; i < n_shares; i++) {
        q_share *h = &s->shares[i];
        if (h->taken == 0) continue;
        const uint32_t before = kv->seqs[h->seq].stored;
        q_kv_commit(kv, h->seq, h->taken);
        if (before < h->old) kv->seqs[h->seq].again += Q_MIN(h->taken, h->old - before);
        h->keep = Q_MAX(h->keep, kv->seqs[h->seq].stored);
        const int32_t kept = q_kv_keep_state(kv, h->seq);
        if (kept >= 0) Q_TRY(copy_state(s, h->seq, (uint32_t)kept));
    }
    return LQ_OK;
}

static lq_status pass(lq_session *s, uint32_t n_shares) {
    q_batch b = {.ids = s->ids, .pos = s->pos, .seq = s->seq, .seqs = s->refs, .out = s->out,
                 .logits = s->logits + (uint64_t)s->n_logits * (uint64_t)s->plan->vocab,
                 .cancel = (const int *)(const void *)s->cancelled, .tap = s->tap, .tap_user = s->tap_user};
    const uint32_t n = fill(s, n_shares, &b);
    const bool decode = n == (uint32_t)b.n_seqs || s->stepping; /* one token of each sequence, and what is guessed */
    b.threads = n > SHORT_PASS ? s->shape.threads_prefill : s->shape.threads;
    Q_TRY(prepare(s, n_shares));
    const double begin = q_clock();
    q_pack_before(s, n);
    Q_TRY(run_segments(s, &b, decode));
    q_pack_after(s);
    if (s->plan->hidden) Q_TRY(q_embed_rows(s, n_shares, s->border));
    Q_TRY(settle(s, n_shares));
    count(s, &b, n_shares, q_clock() - begin, decode);
    s->n_logits += (uint32_t)b.n_out;
    return LQ_OK;
}

/* ------------------------------------------------------------------------------------------- calls */

static lq_status check_logits(const lq_session *s) {
    const uint64_t n = (uint64_t)s->n_logits * (uint64_t)s->plan->vocab;
    for (uint64_t i = 0; i < n; i++)
        if (!isfinite(s->logits[i]))
            return q_fail(LQ_E_NUMERIC,
                          "the logits are not finite (row %llu, token %llu): the model's weights are damaged",
                          (unsigned long long)(i / (uint64_t)s->plan->vocab),
                          (unsigned long long)(i % (uint64_t)s->plan->vocab));
    return LQ_OK;
}

lq_status q_session_has_seq(const lq_session *s, uint32_t seq) {
    if (seq < s->shape.seqs) return LQ_OK;
    return q_fail(LQ_E_ARG, "sequence %u: the session has %u, numbered from 0 (lq_session_options.sequences)", seq,
                  s->shape.seqs);
}

static lq_status check_ids(const lq_session *s, const int32_t *ids, size_t n) {
    for (size_t i = 0; i < n; i++)
        if (ids[i] < 0 || ids[i] >= s->plan->vocab)
            return q_fail(LQ_E_ARG, "lq_decode: token %zu is %d, outside the vocabulary of %d", i, ids[i],
                          s->plan->vocab);
    return LQ_OK;
}

static lq_status check_rows(const lq_session *s, uint64_t rows) {
    if (rows <= s->shape.max_logits || s->shape.embed) return LQ_OK;
    return q_fail(LQ_E_ARG, "lq_decode: %llu rows of logits were asked for, the session keeps %u (max_logits)",
                  (unsigned long long)rows, s->shape.max_logits);
}

uint32_t q_session_freqs(const lq_session *s, uint32_t length) {
    return s->plan->freq_tables > 1 && length > s->shape.rope.original;
}

static lq_status check_item(const lq_session *s, const lq_item *t, q_share *h) {
    Q_TRY(q_session_has_seq(s, t->sequence));
    const q_kv_seq *q = &s->kv_book.seqs[t->sequence];
    if (t->count == 0 || !t->ids) return q_fail(LQ_E_ARG, "lq_decode: no tokens");
    if (t->logits_from > t->count)
        return q_fail(LQ_E_ARG, "lq_decode: logits from token %zu of %zu", t->logits_from, t->count);
    *h = (q_share){.seq = t->sequence, .old = q->length, .keep = q->length, .restore = q->restore};
    Q_TRY(q_overflow_fit(&s->shape, q->length, t, h));
    h->freqs = q_session_freqs(s, h->end);
    h->cut = h->freqs != q->freqs ? 0 : h->dropped ? q_overflow_same(&s->shape, q->length) : UINT32_MAX;
    return check_ids(s, t->ids, t->count);
}

static lq_status check_items(lq_session *s, const lq_item *items, size_t n) {
    uint64_t rows = 0;
    if (n == 0) return q_fail(LQ_E_ARG, "lq_decode: no items");
    if (n > s->shape.seqs) return q_fail(LQ_E_ARG, "lq_decode: %zu items for %u sequences", n, s->shape.seqs);
    memset(s->count, 0, s->shape.seqs * sizeof *s->count);
    for (size_t i = 0; i < n; i++) {
        Q_TRY(check_item(s, &items[i], &s->shares[i]));
        rows += s->shares[i].end - s->shares[i].from;
        if (s->count[items[i].sequence]++)
            return q_fail(LQ_E_ARG, "lq_decode: item %zu is of sequence %u, as another before it", i,
                          items[i].sequence);
    }
    return check_rows(s, rows);
}

/* A sequence whose pages can be cut anywhere, and which others may find, goes back to the end of a page where the tree
 * knows more of what it is to become than the `same` tokens that it has. What it is to become is in q->ids. */
static uint32_t cut_for_tree(lq_session *s, uint32_t seq, uint32_t same, uint32_t from) {
    q_kv *kv = &s->kv_book;
    const uint32_t freqs = kv->seqs[seq].freqs;
    bool full = s->plan->states == 0 && kv->seqs[seq].root == q_kv_root(freqs); /* nothing is lost but the page */
    for (int32_t p = 0; p < s->plan->n_kv; p++) full = full && s->plan->kv[p].window <= 0;
    if (!full || same % Q_KV_TOKENS == 0 || q_kv_known(kv, freqs, kv->seqs[seq].ids, from) <= same) return same;
    same -= same % Q_KV_TOKENS;
    q_kv_truncate(kv, seq, same);
    return same;
}

static const char other_factors[] = "other factors of RoPE hold beyond the original context, and up to it";

/* There is room: what slides out goes, and what follows the first tokens of the sequence is as new as the item's. Keys
 * turned by another table are all new. */
static void begin_anew(lq_session *s, q_share *h, bool fresh) {
    q_kv *kv = &s->kv_book;
    q_kv_seq *q = &kv->seqs[h->seq];
    const uint64_t dropped = q->dropped + h->dropped;
    uint32_t same = h->cut;
    q->why_again = h->freqs != q->freqs ? other_factors : "the text slid to other positions";
    q_kv_truncate(kv, h->seq, same);
    if (h->freqs != q->freqs) q_kv_use_freqs(kv, h->seq, h->freqs);
    if (h->dropped) q_overflow_join(&s->shape, q->ids, h->old, h);
    else memmove(q->ids + h->old, h->ids, h->count * sizeof *q->ids);
    if (!fresh) same = cut_for_tree(s, h->seq, same, h->from);
    h->ids = q->ids + same;
    h->count = h->end - same;
    if (h->dropped) h->old = q_overflow_left(&s->shape, h->old, h->dropped);
    if (!fresh) q_kv_find(kv, h->seq, h->ids, h->from - Q_MIN(same, h->from));
    q->dropped = dropped;
    q->slid = h->dropped;
}

static lq_status no_room(const lq_session *s, uint64_t missing) {
    return q_fail(LQ_E_CONTEXT,
                  "the sequences would need %llu pages of %d tokens more than all have together (kv_tokens %llu)",
                  (unsigned long long)missing, Q_KV_TOKENS, (unsigned long long)s->shape.kv_tokens);
}

/* All items' tokens may be added: take from the tree what is there, and see whether the rest has room. */
static lq_status admit(lq_session *s, uint32_t n, bool fresh) {
    q_kv *kv = &s->kv_book;
    for (uint32_t i = 0; i < n; i++) {
        const q_share *h = &s->shares[i];
        q_kv_seq *q = &kv->seqs[h->seq];
        q->again = q->kept = q->reused = 0;
        q->slid = q->refused = 0;
        s->of[i] = h->seq;
        q->why_again = "a cut had gone back behind what was kept";
        s->cut[i] = h->cut;
        if (h->cut < UINT32_MAX) s->count[i] = h->end - h->cut;
        else s->count[i] = (uint32_t)h->count - (fresh ? 0 : q_kv_find(kv, h->seq, h->ids, h->from - h->old));
    }
    uint64_t missing;
    const bool room = q_kv_room(kv, s->of, s->cut, s->count, n, &missing);
    for (uint32_t i = 0; i < n; i++) {
        q_share *h = &s->shares[i];
        q_kv_seq *q = &kv->seqs[h->seq];
        if (!room) {
            if (h->cut == UINT32_MAX) q_kv_unfind(kv, h->seq, h->old, h->restore);
            continue;
        }
        if (h->cut < UINT32_MAX) begin_anew(s, h, fresh);
        const uint64_t begin = h->end - h->count, had = q->length - begin;
        memmove(q->ids + q->length, h->ids + had, (h->count - had) * sizeof *q->ids);
        h->keep = Q_MAX(h->old, q->length);
        q->length = h->end;
        q->refused = h->refused;
    }
    return room ? LQ_OK : no_room(s, missing);
}

/* A pass failed: sequences are what is finished of them. */
static void give_up(lq_session *s, uint32_t n) {
    for (uint32_t i = 0; i < n; i++) {
        const q_share *h = &s->shares[i];
        q_kv_seq *q = &s->kv_book.seqs[h->seq];
        if (h->taken) q_kv_abandon(&s->kv_book, h->seq);
        q->length = h->keep;
        if (h->keep >= s->shape.overflow_keep) continue;
        q->dropped -= h->dropped; /* nothing is there yet of what follows the gap */
        q->slid = 0;
    }
}

static bool done(const lq_session *s, uint32_t n_shares) {
    for (uint32_t i = 0; i < n_shares; i++)
        if (s->kv_book.seqs[s->shares[i].seq].stored < s->shares[i].end) return false;
    return true;
}

lq_status q_session_check_cancel(lq_session *s) {
    if (atomic_exchange(s->cancelled, 0)) return q_fail(LQ_E_CANCELLED, "cancelled by lq_session_cancel");
    return LQ_OK;
}

void q_session_hash(lq_session *s, uint32_t row) {
    const uint64_t n = (uint64_t)s->plan->vocab;
    s->stats.last_logits_hash = q_fnv32(s->logits + row * n, (size_t)n * sizeof(float));
}

/* All passes that the first n shares take. */
static lq_status run_shares(lq_session *s, uint32_t n) {
    lq_status st = LQ_OK;
    while (st == LQ_OK && !done(s, n)) st = pass(s, n);
    if (st != LQ_OK) give_up(s, n);
    /* A request that came too late for this call waits for the next one: only the call that obeyed takes it away. */
    if (st == LQ_E_CANCELLED) atomic_store(s->cancelled, 0);
    if (st == LQ_OK) st = check_logits(s);
    if (st != LQ_OK) {
        s->n_logits = 0;
        return st;
    }
    if (s->n_logits) q_session_hash(s, s->n_logits - 1);
    return LQ_OK;
}

void q_session_changed(lq_session *s, uint32_t seq) {
    s->answers[seq].begun = false;
    for (uint32_t i = 0; i < s->n_logits; i++)
        if (s->rows[i].seq == seq) s->rows[i].seq = UINT32_MAX;
}

lq_status q_session_decode(lq_session *s, const lq_item *items, size_t n, bool fresh) {
    Q_TRY(check_items(s, items, n));
    Q_TRY(q_session_check_cancel(s));
    s->n_logits = 0;
    for (size_t i = 0; i < n; i++) q_session_changed(s, items[i].sequence);
    Q_TRY(admit(s, (uint32_t)n, fresh));
    Q_TRY(run_shares(s, (uint32_t)n));
    return q_overflow_told(&s->shape, s->shares, (uint32_t)n);
}

lq_status q_session_add(lq_session *s, uint32_t n) {
    uint64_t missing;
    s->n_logits = 0;
    for (uint32_t i = 0; i < n; i++) {
        const uint32_t seq = s->shares[i].seq, freqs = q_session_freqs(s, s->shares[i].end);
        q_kv_seq *q = &s->kv_book.seqs[seq];
        const uint32_t length = q->length;
        const uint64_t dropped = q->dropped;
        q->why_again = freqs != q->freqs ? other_factors : "they waited since a cut, or since tokens were dropped";
        if (freqs == q->freqs) continue;
        q_kv_truncate(&s->kv_book, seq, 0); /* its text stays */
        q_kv_use_freqs(&s->kv_book, seq, freqs);
        q->length = length;
        q->dropped = dropped;
    }
    if (!q_kv_room(&s->kv_book, s->of, NULL, s->count, n, &missing)) return no_room(s, missing);
    for (uint32_t i = 0; i < n; i++) s->kv_book.seqs[s->shares[i].seq].length = s->shares[i].end;
    return run_shares(s, n);
}

lq_status q_session_run(lq_session *s, const int32_t *ids, size_t count, size_t logits_from) {
    q_kv_truncate(&s->kv_book, 0, 0);
    return q_session_decode(s, &(lq_item){.ids = ids, .count = count, .logits_from = logits_from}, 1, true);
}

/* Of the text that a share makes of nothing: how many of the first tokens, at most `most`, a sequence has already. */
static uint32_t same_tokens(const lq_session *s, const q_kv_seq *q, const q_share *h, uint32_t most) {
    const uint32_t keep = h->dropped ? s->shape.overflow_keep : most;
    uint32_t same = 0;
    while (same < most && q->ids[same] == h->ids[same + (same < keep ? 0 : h->dropped)]) same++;
    return same;
}

lq_status q_session_sync(lq_session *s, uint32_t seq, const int32_t *ids, size_t count, size_t logits_from) {
    q_share h = {.seq = seq};
    Q_TRY(q_session_has_seq(s, seq));
    if (count == 0 || !ids) return q_fail(LQ_E_ARG, "lq_sync: no tokens");
    if (logits_from > count) return q_fail(LQ_E_ARG, "lq_sync: logits from token %zu of %zu", logits_from, count);
    Q_TRY(q_overflow_fit(&s->shape, 0, &(lq_item){seq, ids, count, logits_from}, &h));
    Q_TRY(check_rows(s, h.end - h.from));
    Q_TRY(check_ids(s, ids, count));
    Q_TRY(q_session_check_cancel(s));
    q_kv_seq *q = &s->kv_book.seqs[seq];
    uint32_t same = same_tokens(s, q, &h, Q_MIN(h.from, q->length));
    q_kv_truncate(&s->kv_book, seq, same);
    if (h.dropped) q_overflow_join(&s->shape, q->ids, 0, &h);
    else memmove(q->ids, ids, h.count * sizeof *ids);
    same = cut_for_tree(s, seq, same, h.from);
    s->n_logits = 0;
    q_session_changed(s, seq);
    lq_status st = LQ_OK;
    const uint32_t freqs = q->freqs;
    q->dropped = h.dropped;
    if (same < h.end)
        st = q_session_decode(s, &(lq_item){.sequence = seq, .ids = q->ids + same, .count = h.end - same,
                                            .logits_from = h.from - same}, 1, false);
    if (st != LQ_OK && q->length < s->shape.overflow_keep) q->dropped = 0;
    q->kept = q->freqs == freqs ? same - Q_MIN(same, q->again) : 0;
    q->slid = q->dropped;
    q->refused = h.refused;
    return st == LQ_OK ? q_overflow_told(&s->shape, &h, 1) : st;
}

lq_status q_session_truncate(lq_session *s, uint32_t seq, uint32_t length) {
    Q_TRY(q_session_has_seq(s, seq));
    const uint32_t has = s->kv_book.seqs[seq].length;
    if (length > has) return q_fail(LQ_E_ARG, "sequence %u has %u tokens and cannot be cut to %u", seq, has, length);
    q_kv_truncate(&s->kv_book, seq, length);
    s->n_logits = 0;
    q_session_changed(s, seq);
    return LQ_OK;
}

lq_status q_session_fork(lq_session *s, uint32_t from, uint32_t to) {
    Q_TRY(q_session_has_seq(s, from));
    Q_TRY(q_session_has_seq(s, to));
    if (from == to) return LQ_OK;
    q_session_changed(s, to);
    s->answers[to] = s->answers[from];
    q_kv_fork(&s->kv_book, from, to);
    q_kv_seq *q = &s->kv_book.seqs[to];
    if (q->restore != (int32_t)from) return LQ_OK;
    q->restore = -1;
    const lq_status st = copy_state(s, from, to);
    if (st != LQ_OK) q_kv_truncate(&s->kv_book, to, 0);
    return st;
}

void q_session_seq_info(const lq_session *s, uint32_t seq, lq_seq_info *info) {
    static const char *const why[] = {
        [Q_KV_HIT] = "",
        [Q_KV_OFF] = "reuse is switched off (no_reuse)",
        [Q_KV_INSIDE] = "the sequence did not end with a full page",
        [Q_KV_SHORT] = "there were fewer new tokens than a page has",
        [Q_KV_NEW] = "no text that is kept goes on with these tokens",
        [Q_KV_WINDOW] = "keys and values of a sliding window had made room for others",
        [Q_KV_STATE] = "no recurrent state is kept from behind these tokens",
    };
    const q_kv_seq *q = &s->kv_book.seqs[seq];
    info->length = q->length;
    info->pending = q->length - q->stored;
    info->cached = q->kept + q->reused;
    info->again = q->again;
    info->miss = why[q->miss];
    info->why_again = q->again ? q->why_again : "";
    info->dropped = q->slid;
    info->dropped_in_all = q->dropped;
    info->refused = q->refused;
}
