/* kv.c: pages of sequences: handed out, shared, copied before writing, left behind by windows, given back.
 *
 * The tree of prefixes is kv_tree.c's. Layer L3. */
#include "kv_tree.h"

/* Pages that the first tokens of a sequence lie in which windows do not leave behind. */
static uint64_t sink_pages(int32_t window, int32_t sink_tokens) {
    return window > 0 && sink_tokens > 0 ? ((uint64_t)sink_tokens + Q_KV_TOKENS - 1) / Q_KV_TOKENS : 0;
}

uint64_t q_kv_pool_pages(int32_t window, int32_t sink_tokens, uint64_t seqs, uint64_t context, uint64_t tokens,
                         uint64_t batch) {
    enum { BEHIND = 512 / Q_KV_TOKENS };
    const uint64_t each = (context + Q_KV_TOKENS - 1) / Q_KV_TOKENS;
    const uint64_t some = tokens / Q_KV_TOKENS + (tokens % Q_KV_TOKENS != 0);
    const uint64_t all = tokens ? Q_MIN(some, seqs * each) : seqs * each;
    if (window <= 0) return all;
    /* of window + n - 1 positions in a row, n of a pass, and n adds up to a batch over all sequences */
    const uint64_t seen = ((uint64_t)window + Q_KV_TOKENS - 2) / Q_KV_TOKENS + 2 + BEHIND;
    return Q_MIN(all, seqs * Q_MIN(seen + sink_pages(window, sink_tokens), each) + batch / Q_KV_TOKENS);
}

/* ------------------------------------------------------------------------------------------------ the block */

static void *take(uint8_t *base, uint64_t *used, uint64_t count, uint64_t item) {
    const uint64_t at = q_round_up(*used, 16);
    *used = at + count * item;
    return base ? base + at : NULL;
}

/* With a full pool each node owns a page of it. Without, texts leave windows behind: as many as sequences have,
 * twice. */
static uint32_t nodes_of(const q_plan *plan, uint32_t seqs, uint32_t pages) {
    uint64_t n = 2 * (uint64_t)seqs * pages;
    for (int32_t i = 0; i < plan->n_kv; i++)
        if (plan->kv[i].window <= 0) n = Q_MIN(n, plan->kv[i].pages);
    return (uint32_t)n;
}

static uint64_t lay_out(q_kv *kv, const q_plan *plan, uint32_t seqs, uint8_t *base) {
    uint64_t used = 0;
    const uint64_t n_kv = (uint64_t)plan->n_kv;
    kv->plan = plan;
    kv->n_seqs = seqs;
    kv->pages = (uint32_t)(((uint64_t)plan->context + Q_KV_TOKENS - 1) / Q_KV_TOKENS);
    kv->n_nodes = nodes_of(plan, seqs, kv->pages);
    for (kv->n_buckets = 16; kv->n_buckets < kv->n_nodes; kv->n_buckets *= 2) {}
    kv->seqs = take(base, &used, seqs, sizeof *kv->seqs);
    for (uint32_t i = 0; i < seqs; i++) {
        q_kv_seq none, *s = base ? &kv->seqs[i] : &none;
        s->ids = take(base, &used, (uint64_t)plan->context, sizeof *s->ids);
        s->nodes = take(base, &used, kv->pages, sizeof *s->nodes);
        s->low = take(base, &used, n_kv, sizeof *s->low);
        s->tables = take(base, &used, n_kv, sizeof *s->tables);
        for (uint64_t p = 0; p < n_kv; p++) {
            uint32_t *table = take(base, &used, kv->pages, sizeof *table);
            if (base) s->tables[p] = table;
        }
    }
    kv->books = take(base, &used, n_kv, sizeof *kv->books);
    for (uint64_t p = 0; p < n_kv; p++) {
        q_kv_book none, *b = base ? &kv->books[p] : &none;
        b->pages = take(base, &used, plan->kv[p].pages, sizeof *b->pages);
        b->free = take(base, &used, plan->kv[p].pages, sizeof *b->free);
        b->idle.links = take(base, &used, plan->kv[p].window > 0 ? plan->kv[p].pages : 0, sizeof *b->idle.links);
    }
    kv->nodes = take(base, &used, kv->n_nodes, sizeof *kv->nodes);
    kv->idle.links = take(base, &used, kv->n_nodes, sizeof *kv->idle.links);
    kv->buckets = take(base, &used, kv->n_buckets, sizeof *kv->buckets);
    kv->node_ids = take(base, &used, (uint64_t)kv->n_nodes * Q_KV_TOKENS, sizeof *kv->node_ids);
    kv->node_pages = take(base, &used, kv->n_nodes * n_kv, sizeof *kv->node_pages);
    const uint64_t states = (uint64_t)plan->states > seqs ? (uint64_t)plan->states - seqs : 0;
    kv->state_nodes = take(base, &used, states, sizeof *kv->state_nodes);
    kv->state_used = take(base, &used, states, sizeof *kv->state_used);
    kv->copies = take(base, &used, seqs * n_kv, sizeof *kv->copies);
    return q_round_up(used, 16);
}

uint64_t q_kv_bytes(const q_plan *plan, uint32_t seqs) {
    q_kv kv = {0};
    return lay_out(&kv, plan, seqs, NULL);
}

void q_kv_init(q_kv *kv, const q_plan *plan, uint32_t seqs, bool reuse, void *block) {
    *kv = (q_kv){.reuse = reuse};
    (void)lay_out(kv, plan, seqs, block);
    for (int32_t p = 0; p < plan->n_kv; p++) {
        q_kv_book *b = &kv->books[p];
        b->n = b->n_free = plan->kv[p].pages;
        b->window = plan->kv[p].window;
        b->sinks = (uint32_t)Q_MIN(sink_pages(b->window, plan->kv[p].sink_tokens), (uint64_t)kv->pages);
        b->idle.oldest = b->idle.newest = -1;
        for (uint32_t i = 0; i < b->n; i++) {
            b->free[i] = b->n - 1 - i; /* page 0 goes first */
            b->pages[i] = (q_kv_page){.node = -1};
        }
    }
    for (uint32_t i = 0; i < seqs; i++) {
        kv->seqs[i].restore = kv->seqs[i].root = -1;
        for (int32_t p = 0; p < plan->n_kv; p++) kv->seqs[i].low[p] = kv->books[p].sinks;
    }
    q_kv_tree_init(kv);
}

/* ------------------------------------------------------------------------------------------------ pages */

/* The first page behind the sinks that a token after `stored` others sees. */
static uint32_t first_seen(const q_kv_book *b, uint32_t stored) {
    if (b->window <= 0 || stored < (uint32_t)b->window) return b->sinks;
    return Q_MAX(b->sinks, (stored - (uint32_t)b->window + 1) / Q_KV_TOKENS);
}
bool q_kv_sees(const q_kv *kv, int32_t pool, uint32_t stored, uint32_t page) {
    const q_kv_book *b = &kv->books[pool];
    return page < b->sinks || page >= first_seen(b, stored);
}
/* Of the pages before s->top. */
static bool holds(const q_kv *kv, const q_kv_seq *s, int32_t pool, uint32_t at) {
    return at < kv->books[pool].sinks || at >= s->low[pool];
}
static uint32_t pages_of(uint32_t tokens) { return (tokens + Q_KV_TOKENS - 1) / Q_KV_TOKENS; }

static void release(q_kv *kv, q_kv_seq *s, int32_t pool, uint32_t at) { q_kv_unhold(kv, pool, s->tables[pool][at]); }

/* What lies before page `to` is left behind. */
static void slide(q_kv *kv, q_kv_seq *s, int32_t pool, uint32_t to) {
    for (; s->low[pool] < to; s->low[pool]++)
        if (s->low[pool] < s->top) release(kv, s, pool, s->low[pool]);
}

/* Pages from `to` on are given back, the last ones first. */
static void shrink(q_kv *kv, q_kv_seq *s, uint32_t to) {
    for (; s->top > to; s->top--)
        for (int32_t p = 0; p < kv->plan->n_kv; p++)
            if (holds(kv, s, p, s->top - 1)) release(kv, s, p, s->top - 1);
}

/* Nobody else reads this page of the sequence afterwards. */
static lq_status own(q_kv *kv, q_kv_seq *s, int32_t pool, uint32_t at) {
    const uint32_t page = s->tables[pool][at];
    const q_kv_page *p = &kv->books[pool].pages[page];
    if (p->node < 0 && p->holders == 1) return LQ_OK;
    const int32_t fresh = q_kv_take(kv, pool);
    if (p->node < 0 && p->holders == 1) { /* its node has just made room */
        if (fresh >= 0) q_kv_give(kv, pool, (uint32_t)fresh);
        return LQ_OK;
    }
    if (fresh < 0 && p->holders == 1 && kv->books[pool].window > 0) { /* others are past it: only reuse loses it */
        q_kv_part(kv, p->node, pool);
        return LQ_OK;
    }
    if (fresh < 0) return q_fail(LQ_E_INTERNAL, "no page is left to copy to, in pool %d", pool);
    kv->copies[kv->n_copies++] = (q_kv_copy){pool, page, (uint32_t)fresh};
    q_kv_hold(kv, pool, (uint32_t)fresh);
    q_kv_unhold(kv, pool, page);
    s->tables[pool][at] = (uint32_t)fresh;
    return LQ_OK;
}

lq_status q_kv_reserve(q_kv *kv, uint32_t seq, uint32_t n) {
    q_kv_seq *s = &kv->seqs[seq];
    const int32_t n_kv = kv->plan->n_kv;
    if (s->stored % Q_KV_TOKENS)
        for (int32_t p = 0; p < n_kv; p++) Q_TRY(own(kv, s, p, s->stored / Q_KV_TOKENS));
    for (const uint32_t to = pages_of(s->stored + n); s->top < to; s->top++)
        for (int32_t p = 0; p < n_kv; p++) {
            const int32_t page = q_kv_take(kv, p);
            if (page < 0) {
                while (p-- > 0) release(kv, s, p, s->top);
                return q_fail(LQ_E_INTERNAL, "no page is left for token %u of sequence %u", s->top * Q_KV_TOKENS, seq);
            }
            q_kv_hold(kv, p, (uint32_t)page);
            s->tables[p][s->top] = (uint32_t)page;
        }
    return LQ_OK;
}

lq_status q_kv_receive(q_kv *kv, uint32_t seq, uint32_t stored) {
    q_kv_seq *s = &kv->seqs[seq];
    for (int32_t p = 0; p < kv->plan->n_kv; p++) s->low[p] = first_seen(&kv->books[p], stored);
    for (const uint32_t to = pages_of(stored); s->top < to; s->top++)
        for (int32_t p = 0; p < kv->plan->n_kv; p++) {
            if (!holds(kv, s, p, s->top)) continue;
            const int32_t page = q_kv_take(kv, p);
            if (page < 0) {
                while (p-- > 0)
                    if (holds(kv, s, p, s->top)) release(kv, s, p, s->top);
                shrink(kv, s, 0);
                return q_fail(LQ_E_INTERNAL, "no page is left for token %u of sequence %u", s->top * Q_KV_TOKENS, seq);
            }
            q_kv_hold(kv, p, (uint32_t)page);
            s->tables[p][s->top] = (uint32_t)page;
        }
    if (stored > 0) s->root = -3 - (int32_t)(kv->loaded++ % (INT32_MAX - 3));
    return LQ_OK;
}

/* ------------------------------------------------------------------------------------------------ room */

static uint32_t keeps(q_kv *kv, const q_kv_seq *s, uint32_t length);

/* A sequence as it would be after a cut to `length` tokens, as far as room depends on it. */
typedef struct shortened {
    uint32_t length, stored, top;
} shortened;
static shortened as_cut(q_kv *kv, const q_kv_seq *s, const uint32_t *cut) {
    shortened c = {s->length, s->stored, s->top};
    if (!cut || *cut >= s->length) return c;
    c.length = *cut;
    if (c.length < c.stored) c.top = pages_of(c.stored = keeps(kv, s, c.length));
    return c;
}
static const uint32_t *cut_of(const uint32_t *cuts, uint32_t i) { return cuts ? &cuts[i] : NULL; }

/* A page that a window had left behind is its node's, as long as nothing took it. */
static uint32_t page_at(q_kv *kv, const q_kv_seq *s, int32_t pool, uint32_t at) {
    return holds(kv, s, pool, at) ? s->tables[pool][at] : (uint32_t)*q_kv_page_of(kv, s->nodes[at], pool);
}

static void count_holder(q_kv_book *b, uint32_t page, bool more) {
    if (more) b->held += b->pages[page].holders++ == 0;
    else b->held -= --b->pages[page].holders == 0;
}

/* What cut() would give back and hold again, in the counts of holders alone; or the other way round. */
static void pretend(q_kv *kv, int32_t pool, const q_kv_seq *s, const shortened *c, bool undo) {
    q_kv_book *b = &kv->books[pool];
    if (c->stored == s->stored) return;
    for (uint32_t j = c->top; j < s->top; j++)
        if (holds(kv, s, pool, j)) count_holder(b, s->tables[pool][j], undo);
    for (uint32_t j = first_seen(b, c->stored); j < Q_MIN(s->low[pool], c->top); j++)
        count_holder(b, page_at(kv, s, pool, j), !undo);
}

/* Of a page that is not full every holder that writes takes a copy, but the last. While they are counted `holders`
 * stands for those who are left. */
static uint64_t copies(q_kv *kv, int32_t pool, const uint32_t *seqs, const uint32_t *cuts, const uint32_t *counts,
                       uint32_t n) {
    uint64_t made = 0;
    for (int pass = 0; pass < 2; pass++)
        for (uint32_t i = 0; i < n; i++) {
            const q_kv_seq *s = &kv->seqs[seqs[i]];
            const shortened c = as_cut(kv, s, cut_of(cuts, i));
            if (c.length + counts[i] == c.stored || c.stored % Q_KV_TOKENS == 0) continue; /* not written to */
            q_kv_page *p = &kv->books[pool].pages[page_at(kv, s, pool, c.stored / Q_KV_TOKENS)];
            if (pass) p->holders++;
            else made += p->holders-- > 1;
        }
    return made;
}

/* Pages behind the sinks that nobody else holds: a window that moves on gives them back. */
static uint32_t own_pages(q_kv *kv, const q_kv_seq *s, int32_t pool, const shortened *c) {
    const q_kv_book *b = &kv->books[pool];
    uint32_t n = 0, low = s->low[pool];
    if (c->stored != s->stored) low = Q_MIN(low, first_seen(b, c->stored));
    for (uint32_t j = low; j < c->top; j++) n += b->pages[page_at(kv, s, pool, j)].holders == 1;
    return n;
}

/* Pages of a pool that n sequences take, at most, when so many tokens are added to each: one for each new page of
 * tokens; with a window no more than that shows of each, its sinks, and a pass. */
static uint64_t wanted(q_kv *kv, int32_t pool, const uint32_t *seqs, const uint32_t *cuts, const uint32_t *counts,
                       uint32_t n) {
    const q_kv_book *b = &kv->books[pool];
    uint64_t fresh = 0, seen = (uint64_t)kv->plan->columns / Q_KV_TOKENS;
    for (uint32_t i = 0; i < n; i++) {
        const q_kv_seq *s = &kv->seqs[seqs[i]];
        const shortened c = as_cut(kv, s, cut_of(cuts, i));
        const uint32_t to = pages_of(c.length + counts[i]);
        fresh += to - Q_MIN(to, c.top);
        if (b->window <= 0) continue;
        const uint32_t sinks = Q_MIN(to, b->sinks), held = own_pages(kv, s, pool, &c);
        const uint32_t shown = Q_MIN(to - sinks, (uint32_t)b->window / Q_KV_TOKENS + 3);
        seen += shown - Q_MIN(shown, held) + sinks - Q_MIN(sinks, c.top);
    }
    return copies(kv, pool, seqs, cuts, counts, n) + (b->window > 0 ? Q_MIN(fresh, seen) : fresh);
}

bool q_kv_room(q_kv *kv, const uint32_t *seqs, const uint32_t *cuts, const uint32_t *counts, uint32_t n,
               uint64_t *short_by) {
    *short_by = 0;
    for (int32_t p = 0; p < kv->plan->n_kv; p++) {
        for (int undo = 0; undo < 2; undo++) {
            if (undo) {
                const uint64_t want = wanted(kv, p, seqs, cuts, counts, n), have = kv->books[p].n - kv->books[p].held;
                if (want > have) *short_by = Q_MAX(*short_by, want - have);
            }
            for (uint32_t i = 0; cuts && i < n; i++) {
                const shortened c = as_cut(kv, &kv->seqs[seqs[i]], &cuts[i]);
                pretend(kv, p, &kv->seqs[seqs[i]], &c, undo);
            }
        }
    }
    return *short_by == 0;
}

void q_kv_tokens(const q_kv *kv, uint64_t *all, uint64_t *free) {
    *all = *free = UINT64_MAX;
    for (int32_t p = 0; p < kv->plan->n_kv; p++) {
        const q_kv_book *b = &kv->books[p];
        if (b->window > 0) continue;
        *all = Q_MIN(*all, (uint64_t)b->n * Q_KV_TOKENS);
        *free = Q_MIN(*free, (uint64_t)(b->n - b->held) * Q_KV_TOKENS);
    }
    if (*all == UINT64_MAX) *all = *free = 0; /* there is no such pool */
}

/* ------------------------------------------------------------------------------------------------ sequences */

/* A full page of the sequence enters the tree, or gives way to the same one that is there. */
static void publish(q_kv *kv, q_kv_seq *s, uint32_t at) {
    const int32_t parent = at ? s->nodes[at - 1] : s->root;
    int32_t node = q_kv_child(kv, parent, s->ids + (uint64_t)at * Q_KV_TOKENS);
    if (node < 0) node = q_kv_node_new(kv, parent, s->ids + (uint64_t)at * Q_KV_TOKENS);
    q_kv_ref(kv, node);
    s->nodes[at] = node;
    for (int32_t p = 0; p < kv->plan->n_kv; p++) {
        if (!holds(kv, s, p, at)) continue; /* a window had left it behind before the text was loaded */
        const uint32_t mine = s->tables[p][at];
        int32_t *theirs = q_kv_page_of(kv, node, p);
        if (*theirs < 0) {
            *theirs = (int32_t)mine;
            kv->books[p].pages[mine].node = node;
        } else {
            q_kv_hold(kv, p, (uint32_t)*theirs);
            q_kv_unhold(kv, p, mine);
            s->tables[p][at] = (uint32_t)*theirs;
        }
    }
}

void q_kv_commit(q_kv *kv, uint32_t seq, uint32_t n) {
    q_kv_seq *s = &kv->seqs[seq];
    uint32_t full = s->stored / Q_KV_TOKENS;
    s->stored += n;
    s->length = Q_MAX(s->length, s->stored);
    for (; full < s->stored / Q_KV_TOKENS; full++) publish(kv, s, full);
    for (int32_t p = 0; p < kv->plan->n_kv; p++) slide(kv, s, p, first_seen(&kv->books[p], s->stored));
}

/* Are pages [from, to) of these nodes still theirs? */
static bool have_pages(const q_kv *kv, const int32_t *nodes, int32_t pool, uint32_t from, uint32_t to) {
    while (from < to && *q_kv_page_of(kv, nodes[from], pool) >= 0) from++;
    return from >= to;
}

/* Of the first `n` nodes of a sequence: how many pages, at most, may be the whole of it. */
static uint32_t usable(q_kv *kv, const int32_t *nodes, uint32_t n, q_kv_miss *miss) {
    const bool recurrent = kv->plan->states > 0;
    for (uint32_t m = n; m > 0; m--) {
        bool good = true;
        for (int32_t p = 0; p < kv->plan->n_kv && good; p++) {
            if (kv->books[p].window <= 0) continue; /* whoever is in the tree has its page of a full pool */
            const q_kv_book *b = &kv->books[p];
            good = have_pages(kv, nodes, p, 0, Q_MIN(b->sinks, m)) &&
                   have_pages(kv, nodes, p, first_seen(b, m * Q_KV_TOKENS), m);
            if (!good) *miss = Q_KV_WINDOW;
        }
        if (good && (!recurrent || kv->nodes[nodes[m - 1]].state >= 0)) return m;
        if (good) *miss = Q_KV_STATE;
    }
    return 0;
}

/* Hold pages [from, to) of its nodes. */
static void hold_nodes(q_kv *kv, q_kv_seq *s, int32_t pool, uint32_t from, uint32_t to) {
    for (uint32_t j = from; j < to; j++) {
        s->tables[pool][j] = (uint32_t)*q_kv_page_of(kv, s->nodes[j], pool);
        q_kv_hold(kv, pool, s->tables[pool][j]);
    }
}

static void restore_from(q_kv *kv, q_kv_seq *s, uint32_t pages) {
    if (kv->plan->states == 0) return;
    s->restore = -1; /* at the beginning a state is not read */
    if (pages == 0) return;
    s->restore = kv->nodes[s->nodes[pages - 1]].state;
    kv->state_used[(uint32_t)s->restore - kv->n_seqs] = ++kv->clock;
}

uint32_t q_kv_find(q_kv *kv, uint32_t seq, const int32_t *ids, uint32_t n) {
    q_kv_seq *s = &kv->seqs[seq];
    const uint32_t base = s->stored / Q_KV_TOKENS;
    s->reused = 0;
    s->miss = kv->reuse ? n < Q_KV_TOKENS ? Q_KV_SHORT : Q_KV_NEW : Q_KV_OFF;
    if (s->miss == Q_KV_NEW && (s->stored != s->length || s->stored % Q_KV_TOKENS)) s->miss = Q_KV_INSIDE;
    if (s->miss != Q_KV_NEW) return 0;
    uint32_t full = base;
    for (int32_t at = base ? s->nodes[base - 1] : s->root; (full - base + 1) * Q_KV_TOKENS <= n; full++) {
        at = q_kv_child(kv, at, ids + (uint64_t)(full - base) * Q_KV_TOKENS);
        if (at < 0) break;
        s->nodes[full] = at;
    }
    if (n - (full - base) * Q_KV_TOKENS < Q_KV_TOKENS) s->miss = Q_KV_HIT;
    if (full == base) return 0;
    const uint32_t m = usable(kv, s->nodes, full, &s->miss);
    if (m <= base) return 0;
    shrink(kv, s, base);
    for (uint32_t j = base; j < m; j++) q_kv_ref(kv, s->nodes[j]);
    for (int32_t p = 0; p < kv->plan->n_kv; p++) {
        const uint32_t from = first_seen(&kv->books[p], m * Q_KV_TOKENS);
        slide(kv, s, p, from);
        hold_nodes(kv, s, p, base, Q_MIN(kv->books[p].sinks, m));
        hold_nodes(kv, s, p, Q_MAX(from, base), m);
    }
    s->top = m;
    s->reused = (m - base) * Q_KV_TOKENS;
    memmove(s->ids + s->length, ids, s->reused * sizeof *ids); /* they may be where they belong */
    s->stored = s->length = m * Q_KV_TOKENS;
    restore_from(kv, s, m);
    return s->reused;
}

/* How many of the first `length` tokens stay as they are. */
static uint32_t keeps(q_kv *kv, const q_kv_seq *s, uint32_t length) {
    q_kv_miss why;
    const uint32_t full = length / Q_KV_TOKENS;
    bool all = kv->plan->states == 0 || length == 0;
    for (int32_t p = 0; p < kv->plan->n_kv && all; p++) {
        const q_kv_book *b = &kv->books[p];
        const uint32_t end = Q_MIN(s->low[p], pages_of(length)); /* pages that it left behind, and would need again */
        all = have_pages(kv, s->nodes, p, first_seen(b, length), end);
    }
    return all ? length : usable(kv, s->nodes, full, &why) * Q_KV_TOKENS;
}

/* Its first `stored` tokens stay, which are there. */
static void cut(q_kv *kv, q_kv_seq *s, uint32_t stored) {
    const uint32_t top = pages_of(stored), full = stored / Q_KV_TOKENS;
    shrink(kv, s, top);
    for (int32_t p = 0; p < kv->plan->n_kv; p++) {
        const uint32_t from = first_seen(&kv->books[p], stored);
        hold_nodes(kv, s, p, from, Q_MIN(s->low[p], top));
        s->low[p] = Q_MIN(s->low[p], from);
    }
    for (uint32_t j = s->stored / Q_KV_TOKENS; j > full; j--) q_kv_unref(kv, s->nodes[j - 1]);
    s->stored = stored;
}

void q_kv_truncate(q_kv *kv, uint32_t seq, uint32_t length) {
    q_kv_seq *s = &kv->seqs[seq];
    s->kept = s->reused = s->again = 0;
    s->miss = Q_KV_HIT;
    if (length < s->stored) {
        cut(kv, s, keeps(kv, s, length));
        restore_from(kv, s, s->stored / Q_KV_TOKENS);
    }
    if (s->stored == 0) s->root = q_kv_root(s->freqs);
    if (length == 0) s->dropped = 0;
    s->length = length;
}

void q_kv_use_freqs(q_kv *kv, uint32_t seq, uint32_t freqs) {
    kv->seqs[seq].freqs = freqs;
    kv->seqs[seq].root = q_kv_root(freqs);
}

void q_kv_unfind(q_kv *kv, uint32_t seq, uint32_t length, int32_t restore) {
    q_kv_seq *s = &kv->seqs[seq];
    if (s->length == length) return; /* nothing was found */
    cut(kv, s, length);
    s->length = length;
    s->restore = restore;
    s->reused = 0;
}

void q_kv_abandon(q_kv *kv, uint32_t seq) {
    q_kv_seq *s = &kv->seqs[seq];
    const uint32_t length = s->length;
    shrink(kv, s, pages_of(s->stored));
    for (int32_t p = 0; p < kv->plan->n_kv && s->stored == 0; p++) s->low[p] = first_seen(&kv->books[p], 0);
    if (s->stored == 0) s->root = q_kv_root(s->freqs);
    if (kv->plan->states == 0 || s->stored == 0) return;
    /* its state went on: back to the last one that was kept */
    q_kv_miss why;
    const uint32_t full = usable(kv, s->nodes, s->stored / Q_KV_TOKENS, &why);
    if (full * Q_KV_TOKENS < s->stored) q_kv_truncate(kv, seq, full * Q_KV_TOKENS);
    else restore_from(kv, s, full);
    s->length = length;
}

void q_kv_fork(q_kv *kv, uint32_t from, uint32_t to) {
    if (from == to) return;
    q_kv_truncate(kv, to, 0);
    const q_kv_seq *a = &kv->seqs[from];
    q_kv_seq *b = &kv->seqs[to];
    b->length = a->length;
    b->stored = a->stored;
    b->top = pages_of(a->stored);
    b->root = a->root;
    b->freqs = a->freqs;
    b->dropped = a->dropped;
    memcpy(b->ids, a->ids, a->length * sizeof *a->ids);
    const uint32_t full = a->stored / Q_KV_TOKENS;
    for (uint32_t j = 0; j < full; j++) {
        b->nodes[j] = a->nodes[j];
        q_kv_ref(kv, b->nodes[j]);
    }
    for (int32_t p = 0; p < kv->plan->n_kv; p++) {
        b->low[p] = a->low[p];
        for (uint32_t j = 0; j < b->top; j++) {
            if (!holds(kv, b, p, j)) continue;
            b->tables[p][j] = a->tables[p][j];
            q_kv_hold(kv, p, b->tables[p][j]);
        }
    }
    b->restore = a->restore >= 0 ? a->restore : kv->plan->states > 0 && a->stored > 0 ? (int32_t)from : -1;
}

/* ------------------------------------------------------------------------------------------------ recurrent state */

uint32_t q_kv_stop(const q_kv *kv, uint32_t seq, uint32_t n) {
    if ((uint32_t)kv->plan->states <= kv->n_seqs) return 0;
    const uint32_t stored = kv->seqs[seq].stored, end = (stored + n) / Q_KV_TOKENS * Q_KV_TOKENS;
    return end > stored ? end - stored : 0;
}

int32_t q_kv_keep_state(q_kv *kv, uint32_t seq) {
    const q_kv_seq *s = &kv->seqs[seq];
    if (!kv->reuse || (uint32_t)kv->plan->states <= kv->n_seqs || s->stored == 0 || s->stored % Q_KV_TOKENS) return -1;
    q_kv_node *node = &kv->nodes[s->nodes[s->stored / Q_KV_TOKENS - 1]];
    if (node->state >= 0) return -1; /* the same is kept already */
    uint32_t oldest = UINT32_MAX;
    for (uint32_t i = 0; i < (uint32_t)kv->plan->states - kv->n_seqs; i++) {
        bool waited = false; /* for it: who does would get another */
        for (uint32_t j = 0; j < kv->n_seqs; j++) waited = waited || kv->seqs[j].restore == (int32_t)(kv->n_seqs + i);
        if (!waited && (oldest == UINT32_MAX || kv->state_used[i] < kv->state_used[oldest])) oldest = i;
    }
    if (oldest == UINT32_MAX) return -1;
    if (kv->state_nodes[oldest] >= 0) kv->nodes[kv->state_nodes[oldest]].state = -1;
    kv->state_nodes[oldest] = s->nodes[s->stored / Q_KV_TOKENS - 1];
    kv->state_used[oldest] = ++kv->clock;
    node->state = (int32_t)(kv->n_seqs + oldest);
    return node->state;
}
