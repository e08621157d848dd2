/* test_kv.c: the pages of sequences, without a model: what would be stored is the hash of all tokens up to a position,
 * and whatever is done in whatever order, a sequence that adds a token must find the right hash at every position it
 * sees. */
#include "../libquant/kv.h"
#include "harness.h"

enum { CONTEXT = 400, SEQS = 5, BATCH = 70, POOLS = 3, MOST_PAGES = 200, STATES = SEQS + 3 };

typedef struct world {
    q_plan plan;
    q_kv_pool pools[POOLS];
    q_kv kv;
    void *block;
    uint64_t page[POOLS][MOST_PAGES][Q_KV_TOKENS]; /* what is stored */
    uint64_t state[STATES];
    int32_t ids[SEQS][CONTEXT]; /* what sequences are */
    uint32_t length[SEQS];
    uint64_t seed;
    uint64_t found, evaluated;
    bool fails; /* some passes are broken off */
} world;

static uint32_t roll(world *w, uint32_t n) {
    w->seed = w->seed * 6364136223846793005u + 1442695040888963407u;
    return (uint32_t)(w->seed >> 33) % n;
}

static uint64_t step(uint64_t before, int32_t id) { return (before ^ (uint64_t)(id + 1)) * 0x9E3779B97F4A7C15u + 1; }

/* h[n] is that of the first n tokens. */
static void hashes(const int32_t *ids, uint32_t n, uint64_t *h) {
    h[0] = 0;
    for (uint32_t i = 0; i < n; i++) h[i + 1] = step(h[i], ids[i]);
}

/* Its pages: the first ones, as far as sinks go, and those from low on. */
static bool has_page(const world *w, uint32_t seq, int32_t pool, uint32_t page) {
    const q_kv_seq *s = &w->kv.seqs[seq];
    const uint32_t sinks = ((uint32_t)w->pools[pool].sink_tokens + Q_KV_TOKENS - 1) / Q_KV_TOKENS;
    return page < s->top && (page < sinks || page >= s->low[pool]);
}

/* A token at `pos` finds its state, and keys at all the positions that it sees, its own among them. */
static void check_seen(const world *w, uint32_t seq, uint32_t pos, const uint64_t *h) {
    const q_kv_seq *s = &w->kv.seqs[seq];
    if (w->plan.states && pos > 0) ck_assert_uint_eq(w->state[seq], h[pos]);
    for (int32_t p = 0; p < w->plan.n_kv; p++) {
        const uint32_t window = (uint32_t)w->pools[p].window, from = window && pos >= window ? pos - window + 1 : 0;
        const uint32_t sinks = (uint32_t)w->pools[p].sink_tokens;
        bool right = true;
        for (uint32_t i = 0; i <= pos; i++) {
            if (i >= sinks && i < from) continue;
            right = right && has_page(w, seq, p, i / Q_KV_TOKENS);
            right = right && w->page[p][s->tables[p][i / Q_KV_TOKENS]][i % Q_KV_TOKENS] == h[i + 1];
        }
        ck_assert_msg(right, "pool %d: a token at %u does not find what it sees", p, pos);
    }
}

/* The windows of a pool, and tokens that stay in sight before them; -1 = no such pool. */
typedef struct sight {
    int32_t window, sink_tokens;
} sight;
static world *open_world(const sight *pools, uint64_t tokens, bool recurrent, uint64_t seed) {
    world *w = calloc(1, sizeof *w);
    ck_assert_ptr_nonnull(w);
    w->seed = seed;
    for (; w->plan.n_kv < POOLS && pools[w->plan.n_kv].window >= 0; w->plan.n_kv++) {
        const sight p = pools[w->plan.n_kv];
        const uint64_t pages = q_kv_pool_pages(p.window, p.sink_tokens, SEQS, CONTEXT, tokens, BATCH);
        ck_assert_uint_le(pages, MOST_PAGES);
        w->pools[w->plan.n_kv] = (q_kv_pool){.window = p.window, .sink_tokens = p.sink_tokens,
                                             .pages = (uint32_t)pages};
    }
    w->plan.kv = w->pools;
    w->plan.context = CONTEXT;
    w->plan.seqs = SEQS;
    w->plan.columns = BATCH;
    w->plan.states = recurrent ? STATES : 0;
    w->block = calloc(1, q_kv_bytes(&w->plan, SEQS));
    ck_assert_ptr_nonnull(w->block);
    q_kv_init(&w->kv, &w->plan, SEQS, true, w->block);
    return w;
}
static void close_world(world *w) {
    free(w->block);
    free(w);
}

/* Every count of the book-keeping, by counting. */
static void check_books(const world *w) {
    const q_kv *kv = &w->kv;
    for (int32_t p = 0; p < w->plan.n_kv; p++) {
        const q_kv_book *b = &kv->books[p];
        uint32_t holders[MOST_PAGES] = {0}, held = 0, idle = 0;
        for (uint32_t i = 0; i < SEQS; i++)
            for (uint32_t j = 0; j < kv->seqs[i].top; j++)
                if (has_page(w, i, p, j)) holders[kv->seqs[i].tables[p][j]]++;
        for (uint32_t i = 0; i < b->n; i++) {
            ck_assert_uint_eq(b->pages[i].holders, holders[i]);
            held += holders[i] > 0;
            idle += holders[i] == 0 && b->pages[i].node >= 0;
            const int32_t node = b->pages[i].node;
            if (node >= 0) ck_assert_int_eq(kv->node_pages[node * w->plan.n_kv + p], (int32_t)i);
        }
        ck_assert_uint_eq(b->held, held);
        ck_assert_uint_eq(b->n_free + held + idle, b->n);
        for (uint32_t i = 0; i < b->n_free; i++) ck_assert_uint_eq(holders[b->free[i]], 0);
    }
    uint32_t idle_nodes = 0, free_nodes = 0, refs = 0;
    for (int32_t i = kv->idle.oldest; i >= 0; i = kv->idle.links[i].newer, idle_nodes++)
        ck_assert_uint_eq(kv->nodes[i].refs, 0);
    for (int32_t i = kv->free_node; i >= 0; i = kv->nodes[i].next) free_nodes++;
    for (uint32_t i = 0; i < kv->n_nodes; i++) refs += kv->nodes[i].refs > 0;
    ck_assert_uint_eq(idle_nodes + free_nodes + refs, kv->n_nodes);
}

/* One pass over `n` tokens of a sequence, as decode.c makes it; with `fail` it is broken off in its middle. */
static void run_pass(world *w, uint32_t seq, uint32_t n, bool fail) {
    q_kv *kv = &w->kv;
    q_kv_seq *s = &kv->seqs[seq];
    const uint32_t stop = q_kv_stop(kv, seq, n);
    n = stop ? stop : n;
    ck_assert_msg(q_kv_reserve(kv, seq, n) == LQ_OK, "%s", lq_error_detail());
    if (s->restore >= 0) w->state[seq] = w->state[s->restore];
    s->restore = -1;
    for (uint32_t i = 0; i < kv->n_copies; i++) {
        const q_kv_copy *c = &kv->copies[i];
        memcpy(w->page[c->pool][c->to], w->page[c->pool][c->from], sizeof w->page[0][0]);
    }
    kv->n_copies = 0;
    uint64_t h[CONTEXT + 1];
    hashes(s->ids, s->stored + n, h);
    for (uint32_t pos = s->stored; pos < s->stored + n; pos++) {
        for (int32_t p = 0; p < w->plan.n_kv; p++)
            w->page[p][s->tables[p][pos / Q_KV_TOKENS]][pos % Q_KV_TOKENS] = h[pos + 1];
        if (pos == s->stored || pos + 1 == s->stored + n || pos % 16 == 0) check_seen(w, seq, pos, h);
        w->state[seq] = h[pos + 1];
        if (fail && pos == s->stored + n / 2) {
            q_kv_abandon(kv, seq);
            return;
        }
    }
    w->evaluated += n;
    q_kv_commit(kv, seq, n);
    const int32_t kept = q_kv_keep_state(kv, seq);
    if (kept >= 0) w->state[kept] = w->state[seq];
}

static void add(world *w, uint32_t seq, const int32_t *ids, uint32_t n) {
    q_kv_seq *s = &w->kv.seqs[seq];
    const uint32_t old = s->length;
    ck_assert_uint_eq(old, w->length[seq]);
    const uint32_t found = q_kv_find(&w->kv, seq, ids, n), left = n - found;
    uint64_t missing;
    if (!q_kv_room(&w->kv, &seq, NULL, &left, 1, &missing)) {
        ck_assert_uint_gt(missing, 0);
        q_kv_truncate(&w->kv, seq, old);
        return;
    }
    w->found += found;
    memcpy(s->ids + s->length, ids + found, left * sizeof *ids);
    memcpy(w->ids[seq] + old, ids, n * sizeof *ids);
    s->length = w->length[seq] = old + n;
    const bool fail = w->fails && roll(w, 12) == 0;
    while (s->stored < s->length) {
        run_pass(w, seq, Q_MIN(s->length - s->stored, (uint32_t)BATCH), fail);
        if (!fail) continue;
        s->length = w->length[seq] = Q_MAX(s->stored, old + found);
        break;
    }
}

/* Texts that often begin alike: a few beginnings, and tokens of a small alphabet. */
static void some_ids(world *w, int32_t *ids, uint32_t n) {
    int32_t at = (int32_t)roll(w, 3);
    for (uint32_t i = 0; i < n; i++) {
        ids[i] = at;
        at = roll(w, 300) == 0 ? (int32_t)roll(w, 4) : (at * 5 + (int32_t)(i / 7)) % 11;
    }
}

/* `to` becomes what is saved of `from`, as seq_file.c does it; now and then the bytes turn out to be damaged. */
static void move(world *w, uint32_t from, uint32_t to) {
    const q_kv_seq *a = &w->kv.seqs[from];
    q_kv_seq *b = &w->kv.seqs[to];
    uint64_t missing;
    q_kv_truncate(&w->kv, to, w->length[to] = 0);
    if (!q_kv_room(&w->kv, &to, NULL, &a->length, 1, &missing)) return;
    memcpy(b->ids, a->ids, sizeof *a->ids * a->length);
    ck_assert_msg(q_kv_receive(&w->kv, to, a->stored) == LQ_OK, "%s", lq_error_detail());
    for (int32_t p = 0; p < w->plan.n_kv; p++)
        for (uint32_t j = 0; j < b->top; j++) {
            if (!q_kv_sees(&w->kv, p, a->stored, j)) continue;
            ck_assert(has_page(w, from, p, j) && has_page(w, to, p, j));
            memcpy(w->page[p][b->tables[p][j]], w->page[p][a->tables[p][j]], sizeof w->page[0][0]);
        }
    if (roll(w, 3) == 0) {
        q_kv_abandon(&w->kv, to);
        return;
    }
    w->state[to] = w->state[a->restore >= 0 ? (uint32_t)a->restore : from];
    q_kv_commit(&w->kv, to, a->stored);
    b->length = w->length[to] = a->length;
    memcpy(w->ids[to], w->ids[from], sizeof w->ids[to]);
}

/* Whether there would be room after cuts of some sequences is what there is after them. */
static void cut_some(world *w) {
    uint32_t seqs[SEQS], cuts[SEQS], counts[SEQS], n = 0;
    uint64_t before, after;
    for (uint32_t i = 0; i < SEQS; i++) {
        if (roll(w, 2)) continue;
        seqs[n] = i;
        cuts[n] = roll(w, 3) ? roll(w, w->length[i] + 1) : UINT32_MAX;
        counts[n] = roll(w, CONTEXT - Q_MIN(cuts[n], w->length[i]) + 1);
        n++;
    }
    const bool room = q_kv_room(&w->kv, seqs, cuts, counts, n, &before);
    check_books(w);
    for (uint32_t i = 0; i < n; i++) {
        if (cuts[i] >= w->length[seqs[i]]) continue;
        q_kv_truncate(&w->kv, seqs[i], w->length[seqs[i]] = cuts[i]);
    }
    ck_assert_int_eq(q_kv_room(&w->kv, seqs, NULL, counts, n, &after), room);
    ck_assert_uint_eq(before, after);
}

static void live(world *w, uint32_t operations) {
    int32_t ids[CONTEXT];
    for (uint32_t i = 0; i < operations; i++) {
        if (roll(w, 25) == 0) cut_some(w);
        const uint32_t seq = roll(w, SEQS), length = w->length[seq];
        switch (roll(w, 9)) {
        case 0:
        case 1:
            if (length) break;
            some_ids(w, ids, CONTEXT);
            add(w, seq, ids, 1 + roll(w, CONTEXT));
            break;
        case 2:
        case 3:
            some_ids(w, ids, CONTEXT);
            if (length < CONTEXT) add(w, seq, ids, 1 + roll(w, Q_MIN(CONTEXT - length, 90u)));
            break;
        case 4:
            some_ids(w, ids, 1);
            if (length < CONTEXT) add(w, seq, ids, 1);
            break;
        case 5: {
            const uint32_t back = roll(w, roll(w, 2) ? length + 1 : 40);
            w->length[seq] = length - Q_MIN(length, back);
            q_kv_truncate(&w->kv, seq, w->length[seq]);
            break;
        }
        case 6: w->length[seq] = 0;
            q_kv_truncate(&w->kv, seq, 0);
            break;
        case 7: {
            const uint32_t to = roll(w, SEQS);
            if (to != seq) move(w, seq, to);
            break;
        }
        default: {
            const uint32_t to = roll(w, SEQS);
            q_kv_fork(&w->kv, seq, to);
            if (to == seq) break;
            q_kv_seq *t = &w->kv.seqs[to];
            if (t->restore == (int32_t)seq) w->state[to] = w->state[seq], t->restore = -1;
            w->length[to] = length;
            memcpy(w->ids[to], w->ids[seq], sizeof w->ids[to]);
        }
        }
        for (uint32_t j = 0; j < SEQS; j++) {
            ck_assert_uint_eq(w->kv.seqs[j].length, w->length[j]);
            ck_assert_int_eq(memcmp(w->kv.seqs[j].ids, w->ids[j], w->length[j] * sizeof *ids), 0);
        }
        check_books(w);
    }
    for (uint32_t j = 0; j < SEQS; j++) q_kv_truncate(&w->kv, j, 0);
    for (int32_t p = 0; p < w->plan.n_kv; p++) ck_assert_uint_eq(w->kv.books[p].held, 0);
    check_books(w);
    ck_assert_uint_gt(w->found, w->evaluated / 150); /* beginnings were found again */
}

#define NONE {-1, 0}
static const sight full[POOLS] = {{0, 0}, NONE};

START_TEST(any_order) {
    static const sight pools[][POOLS] = {{{0, 0}, NONE}, {{0, 0}, {40, 0}, NONE}, {{33, 0}, {100, 0}, NONE},
                                         {{0, 0}, {0, 0}, {64, 0}}, {NONE}, {{0, 0}, {40, 70}, NONE},
                                         {{33, 5}, {100, 64}, {20, 0}}, {{20, 250}, NONE}};
    enum { ROUNDS = T_SLOW ? 500 : 700 };
    for (size_t i = 0; i < Q_COUNT(pools); i++)
        for (int kind = 0; kind < 4; kind++) {
            if (pools[i][0].window < 0 && kind < 2) continue; /* a plan has one or the other */
            world *w = open_world(pools[i], kind % 2 ? CONTEXT + 100 : 0, kind >= 2, 77 * i + (uint64_t)kind);
            w->fails = true;
            live(w, ROUNDS);
            close_world(w);
        }
}
END_TEST

/* A chat goes on: all that was there is found, and a text that was cut is known until its room is needed. */
START_TEST(a_text_is_found_again) {
    world *w = open_world(full, 0, false, 1);
    int32_t ids[CONTEXT];
    some_ids(w, ids, CONTEXT);
    add(w, 0, ids, 333);
    ck_assert_uint_eq(w->found, 0);
    ck_assert_uint_eq(q_kv_known(&w->kv, 0, ids, CONTEXT), 320);
    q_kv_truncate(&w->kv, 0, w->length[0] = 0);
    add(w, 0, ids, 350);
    ck_assert_uint_eq(w->found, 320);
    add(w, 1, ids, 100);
    ck_assert_uint_eq(w->found, 320 + 96);
    ck_assert_int_eq(w->kv.seqs[1].miss, Q_KV_HIT);
    ids[3] = 100;
    add(w, 2, ids, 100);
    ck_assert_int_eq(w->kv.seqs[2].miss, Q_KV_NEW);
    close_world(w);
}
END_TEST

START_TEST(a_fork_takes_no_page) {
    world *w = open_world(full, 0, false, 2);
    int32_t ids[CONTEXT];
    some_ids(w, ids, CONTEXT);
    add(w, 0, ids, 300);
    const uint32_t held = w->kv.books[0].held;
    for (uint32_t i = 1; i < SEQS; i++) q_kv_fork(&w->kv, 0, i);
    ck_assert_uint_eq(w->kv.books[0].held, held);
    ck_assert_uint_eq(w->kv.n_copies, 0);
    memcpy(w->ids[1], ids, sizeof ids);
    w->length[1] = 300;
    add(w, 1, ids, 1); /* copies the page that is not full */
    ck_assert_uint_eq(w->kv.books[0].held, held + 1);
    close_world(w);
}
END_TEST

/* What no sequence holds makes room, the ends of texts before their beginnings. */
START_TEST(room_is_made) {
    world *w = open_world(full, CONTEXT, false, 3);
    int32_t ids[CONTEXT], other[CONTEXT];
    for (uint32_t i = 0; i < CONTEXT; i++) ids[i] = (int32_t)i, other[i] = (int32_t)(i + 500);
    add(w, 0, ids, 320);
    q_kv_truncate(&w->kv, 0, w->length[0] = 0);
    add(w, 1, other, 160);
    ck_assert_uint_eq(q_kv_known(&w->kv, 0, ids, CONTEXT), (13 - 5) * Q_KV_TOKENS);
    uint64_t missing;
    ck_assert(!q_kv_room(&w->kv, (const uint32_t[]){2}, NULL, (const uint32_t[]){300}, 1, &missing));
    ck_assert_uint_eq(missing, 10 - (13 - 5));
    close_world(w);
}
END_TEST

/* The first tokens stay, whatever a window leaves behind; their pages count once for those who share them, and come
 * back with a text that is found. */
START_TEST(sinks_stay) {
    enum { SINKS = 2, WINDOW = 3 }; /* pages */
    static const sight pools[POOLS] = {{2 * Q_KV_TOKENS + 1, SINKS * Q_KV_TOKENS - 9}, NONE};
    world *w = open_world(pools, 0, false, 4);
    int32_t ids[CONTEXT];
    for (uint32_t i = 0; i < CONTEXT; i++) ids[i] = (int32_t)i;
    for (uint32_t n = 0; n < 320; n += 32) add(w, 0, ids + n, 32);
    const q_kv_book *b = &w->kv.books[0];
    ck_assert_uint_eq(b->held, SINKS + WINDOW - 1); /* the next token's page is not there yet */
    ck_assert_uint_eq(w->kv.seqs[0].low[0], 320 / Q_KV_TOKENS - (WINDOW - 1));
    q_kv_fork(&w->kv, 0, 1);
    ck_assert_uint_eq(b->held, SINKS + WINDOW - 1);
    memcpy(w->ids[1], ids, sizeof ids), w->length[1] = 320;
    add(w, 1, ids + 100, 33); /* its window moves on by a page, its sinks are the other's too */
    ck_assert_uint_eq(b->held, SINKS + WINDOW - 1 + 2);
    q_kv_truncate(&w->kv, 0, w->length[0] = 0);
    q_kv_truncate(&w->kv, 1, w->length[1] = 0);
    ck_assert_uint_eq(b->held, 0);
    add(w, 2, ids, 320);
    ck_assert_uint_eq(w->found, 320);
    ck_assert_uint_eq(b->held, SINKS + WINDOW - 1);
    q_kv_truncate(&w->kv, 2, w->length[2] = 40); /* into its sinks, which are still there */
    ck_assert_uint_eq(w->kv.seqs[2].stored, 40);
    ck_assert_uint_eq(b->held, 2);
    add(w, 2, ids + 40, 1);
    close_world(w);
}
END_TEST

/* Sequences that are all as long as the context have room in a pool with a window, which holds far less; they need all
 * of what they are promised beside what is there for cuts. */
START_TEST(windows_have_room) {
    enum { LONG = 4000, N = 3, SINKS = 1000, WINDOW = 64, PIECE = 50 };
    const uint64_t pages = q_kv_pool_pages(WINDOW, SINKS, N, LONG, 0, PIECE);
    ck_assert_uint_eq(pages, q_kv_pool_pages(WINDOW, 0, N, LONG, 0, PIECE) + N * 32);
    ck_assert_uint_eq(q_kv_pool_pages(WINDOW, INT32_MAX, N, LONG, 0, PIECE), N * 125);
    const q_kv_pool pool = {.window = WINDOW, .sink_tokens = SINKS, .pages = (uint32_t)pages};
    const q_plan plan = {.kv = &pool, .n_kv = 1, .context = LONG, .seqs = N, .columns = PIECE};
    void *block = calloc(1, q_kv_bytes(&plan, N));
    q_kv kv;
    uint32_t most = 0;
    q_kv_init(&kv, &plan, N, true, block);
    for (uint32_t at = 0; at < LONG; at += PIECE)
        for (uint32_t i = 0; i < N; i++) {
            uint64_t missing;
            const uint32_t count = LONG - at;
            ck_assert(q_kv_room(&kv, &i, NULL, &count, 1, &missing)); /* all that may come yet */
            for (uint32_t j = at; j < at + PIECE; j++) kv.seqs[i].ids[j] = (int32_t)(j * N + i);
            ck_assert_msg(q_kv_reserve(&kv, i, PIECE) == LQ_OK, "%s", lq_error_detail());
            most = Q_MAX(most, kv.books[0].held);
            q_kv_commit(&kv, i, PIECE);
        }
    ck_assert_uint_gt(most, N * 32 + N * 2);
    free(block);
}
END_TEST

static Suite *suite(void) {
    Suite *s = suite_create("kv");
    TCase *t = tcase_create("pages");
    tcase_add_test(t, any_order);
    tcase_add_test(t, a_text_is_found_again);
    tcase_add_test(t, a_fork_takes_no_page);
    tcase_add_test(t, room_is_made);
    tcase_add_test(t, sinks_stay);
    tcase_add_test(t, windows_have_room);
    suite_add_tcase(s, t);
    return s;
}
HARNESS_MAIN(suite)
