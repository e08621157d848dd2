/* test_overflow.c: what happens when a sequence is to become longer than its context: refused, stopped, or slid, and
 * then the logits are those of the text that is left, evaluated alone, to the last bit. */
#include "../libquant/engine.h"
#include "help_session.h"

enum { CONTEXT = 150, KEEP = 37, SEQS = 3, VOCAB = 262 };

static lq_ctx *ctx;
static lq_model *model;

static void setup(void) { t_tiny_open("overflow.gguf", CONTEXT, &ctx, &model); }
static void teardown(void) {
    lq_model_close(model);
    lq_close(ctx);
}

static lq_session *open_session(lq_session_options o) { return t_session(model, o); }

/* A text by the rule: one token after the other. */
typedef struct text {
    int32_t ids[CONTEXT];
    uint32_t n;
    uint64_t dropped;
} text;

static void push(text *t, int32_t id, uint32_t keep) {
    if (t->n == CONTEXT) {
        const uint32_t gone = (CONTEXT - keep + 1) / 2;
        memmove(t->ids + keep, t->ids + keep + gone, (CONTEXT - keep - gone) * sizeof *t->ids);
        t->n -= gone;
        t->dropped += gone;
    }
    t->ids[t->n++] = id;
}

typedef struct world {
    lq_session *s, *alone;
    text texts[SEQS];
    uint64_t seed, again, refused;
    uint32_t keep;
} world;

static uint32_t roll(world *w, uint32_t n) {
    w->seed = w->seed * 6364136223846793005u + 1442695040888963407u;
    return (uint32_t)(w->seed >> 33) % n;
}

static lq_seq_info info_of(lq_session *s, uint32_t seq) {
    lq_seq_info i = {.size = sizeof i};
    ck_assert_int_eq(lq_seq_info_get(s, seq, &i), LQ_OK);
    return i;
}

/* Row `row` of the session is what follows this text alone. */
static void check_row(world *w, uint32_t row, const text *t) {
    const float *got, *want;
    ck_assert_int_eq(lq_logits(w->s, row, &got), LQ_OK);
    ck_assert_int_eq(lq_seq_truncate(w->alone, 0, 0), LQ_OK);
    ck_assert_int_eq(t_decode(w->alone, t->ids, t->n, t->n - 1), LQ_OK);
    ck_assert_int_eq(lq_logits(w->alone, 0, &want), LQ_OK);
    ck_assert_msg(memcmp(got, want, VOCAB * sizeof *got) == 0, "a text of %u tokens: other bits than alone", t->n);
}

/* Tokens for several sequences, often more than there is room for, and now and then broken off. */
static void add(world *w) {
    static int32_t ids[SEQS][3 * CONTEXT];
    lq_item items[SEQS];
    text before[SEQS];
    size_t n = 0;
    memcpy(before, w->texts, sizeof before);
    for (uint32_t seq = 0; seq < SEQS; seq++) {
        if (roll(w, 3) == 0) continue;
        const uint32_t count = 1 + (roll(w, 3) ? roll(w, 3) : roll(w, roll(w, 4) ? CONTEXT / 2 : 3 * CONTEXT));
        int32_t at = 3 + (int32_t)roll(w, 2); /* texts are often alike */
        for (uint32_t i = 0; i < count; i++, at = (at * 31 + (int32_t)i) % VOCAB)
            push(&w->texts[seq], ids[n][i] = at, w->keep);
        items[n] = (lq_item){seq, ids[n], count, count - 1};
        n++;
    }
    if (n == 0) return;
    const bool cancel = roll(w, 12) == 0;
    if (cancel) lq_session_cancel(w->s);
    const lq_status st = lq_decode(w->s, items, n);
    if (cancel || st == LQ_E_CONTEXT) { /* before anything was done, or for want of room for all: nothing has changed */
        ck_assert_int_eq(st, cancel ? LQ_E_CANCELLED : LQ_E_CONTEXT);
        if (!cancel) ck_assert_ptr_nonnull(strstr(lq_error_detail(), "kv_tokens"));
        memcpy(w->texts, before, sizeof before);
        for (uint32_t seq = 0; seq < SEQS; seq++) {
            ck_assert_uint_eq(lq_seq_length(w->s, seq), w->texts[seq].n);
            ck_assert_uint_eq(info_of(w->s, seq).pending, 0);
        }
        w->refused += !cancel;
        return;
    }
    ck_assert_msg(st == LQ_OK, "%s", lq_error_detail());
    for (size_t i = 0; i < n; i++) {
        const uint32_t seq = items[i].sequence;
        const text *t = &w->texts[seq];
        const lq_seq_info info = info_of(w->s, seq);
        ck_assert_uint_eq(info.length, t->n);
        ck_assert_uint_eq(info.dropped, t->dropped - before[seq].dropped);
        ck_assert_uint_eq(info.dropped_in_all, t->dropped);
        ck_assert_uint_eq(info.refused, 0);
        if (info.dropped == 0) ck_assert_uint_eq(info.again, 0);
        w->again += info.again;
        check_row(w, (uint32_t)i, t);
    }
}

static void live(world *w, uint32_t operations) {
    for (uint32_t i = 0; i < operations; i++) {
        const uint32_t seq = roll(w, SEQS), to = roll(w, SEQS), what = roll(w, 20);
        const size_t before = live_bytes;
        if (what < 16) add(w);
        else if (what < 18) {
            ck_assert_int_eq(lq_seq_fork(w->s, seq, to), LQ_OK);
            w->texts[to] = w->texts[seq];
        } else {
            text *t = &w->texts[seq];
            t->n = roll(w, 2) ? roll(w, t->n + 1) : 0;
            if (t->n == 0) t->dropped = 0;
            ck_assert_int_eq(lq_seq_truncate(w->s, seq, t->n), LQ_OK);
        }
        ck_assert_uint_eq(live_bytes, before);
    }
}

START_TEST(a_slid_text_has_the_bits_of_one_alone) {
    static const struct {
        uint32_t keep, batch, no_reuse;
        uint64_t kv_tokens;
    } kinds[] = {{KEEP, 512, 0, 0}, {64, 7, 0, 0}, {CONTEXT - 1, 40, 0, 0}, {0, 512, 1, 0}, {KEEP, 48, 0, 2 * CONTEXT}};
    const uint32_t rounds = t_emulated() || T_TSAN ? 60 : T_SLOW ? 100 : 400;
    for (size_t k = 0; k < Q_COUNT(kinds); k++) {
        world w = {.seed = 5 + k, .keep = kinds[k].keep ? kinds[k].keep : 1}; /* the model wants a BOS token first */
        w.s = open_session((lq_session_options){.sequences = SEQS, .max_logits = SEQS, .overflow = "slide",
                                                .overflow_keep = kinds[k].keep, .batch = kinds[k].batch,
                                                .no_reuse = kinds[k].no_reuse, .kv_tokens = kinds[k].kv_tokens});
        lq_session_info info = {.size = sizeof info};
        ck_assert_int_eq(lq_session_info_get(w.s, &info), LQ_OK);
        ck_assert_str_eq(info.overflow, "slide");
        ck_assert_uint_eq(info.overflow_keep, w.keep);
        w.alone = open_session((lq_session_options){.no_reuse = 1});
        live(&w, rounds);
        if (w.keep < CONTEXT - 1) ck_assert_uint_gt(w.again, 0); /* else nothing is left to move */
        if (kinds[k].kv_tokens) ck_assert_uint_gt(w.refused, 0);
        lq_session_close(w.s);
        lq_session_close(w.alone);
    }
}
END_TEST

/* A text that grows and is given whole each time: what is left of it is known from the last time. */
START_TEST(sync_slides_too) {
    world w = {.seed = 3, .keep = KEEP};
    w.s = open_session((lq_session_options){.overflow = "slide", .overflow_keep = KEEP});
    w.alone = open_session((lq_session_options){.no_reuse = 1});
    int32_t ids[500];
    text t = {.n = 0};
    uint32_t n = 0;
    for (uint32_t i = 0; i < Q_COUNT(ids); i++) ids[i] = (int32_t)roll(&w, VOCAB);
    for (uint32_t turn = 0; n + 25 <= Q_COUNT(ids); turn++) {
        const uint64_t before = t.dropped;
        for (uint32_t i = 0; i < 25; i++) push(&t, ids[n++], KEEP);
        ck_assert_msg(lq_sync(w.s, 0, ids, n, n - 1) == LQ_OK, "%s", lq_error_detail());
        const lq_seq_info info = info_of(w.s, 0);
        ck_assert_uint_eq(info.length, t.n);
        ck_assert_uint_eq(info.dropped, t.dropped);
        ck_assert_uint_eq(info.dropped_in_all, t.dropped);
        if (t.dropped == before) ck_assert_uint_eq(info.cached, t.n - 25);
        else ck_assert_uint_ge(info.cached, KEEP / 32 * 32);
        check_row(&w, 0, &t);
    }
    ck_assert_uint_gt(t.dropped, 200);
    ck_assert_int_eq(lq_sync(w.s, 0, ids, 20, 19), LQ_OK); /* a shorter one has lost nothing */
    ck_assert_uint_eq(info_of(w.s, 0).dropped_in_all, 0);
    lq_session_close(w.s);
    lq_session_close(w.alone);
}
END_TEST

/* Draws differ though positions come again; so they do after a sequence was saved and loaded. */
START_TEST(draws_count_what_was_dropped) {
    lq_session *s = open_session((lq_session_options){.overflow = "slide", .overflow_keep = 8, .sequences = 2});
    const lq_sampler warm = {.size = sizeof warm, .temperature = 5.0f, .seed = 4};
    int32_t ids[CONTEXT + 1] = {3}, id, want;
    t_saved b = t_saved_new();
    for (uint32_t i = 1; i <= CONTEXT; i++) ids[i] = (int32_t)(i * 7 % VOCAB);
    ck_assert_int_eq(t_decode(s, ids, CONTEXT + 1, CONTEXT), LQ_OK);
    const float *row;
    ck_assert_int_eq(lq_logits(s, 0, &row), LQ_OK);
    ck_assert_int_eq(lq_sample_logits(NULL, row, VOCAB, &warm, NULL, 0, CONTEXT + 1, &want), LQ_OK);
    ck_assert_int_eq(lq_sample(s, 0, &warm, &id), LQ_OK);
    ck_assert_int_eq(id, want);
    ck_assert_int_eq(lq_seq_save(s, 0, t_saved_put, &b), LQ_OK);
    ck_assert_int_eq(lq_seq_load(s, 1, t_saved_get, &b), LQ_OK);
    ck_assert_uint_eq(info_of(s, 1).dropped_in_all, 71);
    ck_assert_int_eq(lq_seq_fork(s, 1, 0), LQ_OK);
    ck_assert_uint_eq(info_of(s, 0).dropped_in_all, 71);
    free(b.p);
    lq_session_close(s);
}
END_TEST

/* What fits is taken, its logits are there, and the call says that it was not all. */
START_TEST(a_stop_is_told) {
    world w = {.keep = 0};
    w.s = open_session((lq_session_options){.overflow = "stop", .sequences = 2, .max_logits = 4});
    w.alone = open_session((lq_session_options){.no_reuse = 1});
    text t = {.n = CONTEXT};
    for (uint32_t i = 0; i < CONTEXT; i++) t.ids[i] = (int32_t)(i * 5 % VOCAB);
    int32_t more[CONTEXT + 9];
    memcpy(more, t.ids + CONTEXT - 3, 3 * sizeof *more);
    for (uint32_t i = 3; i < CONTEXT + 9; i++) more[i] = 9;
    ck_assert_int_eq(t_decode(w.s, t.ids, CONTEXT - 3, CONTEXT - 4), LQ_OK);
    const lq_item items[] = {{0, more, 10, 2}, {1, t.ids, 4, 3}};
    ck_assert_int_eq(lq_decode(w.s, items, 2), LQ_E_CONTEXT);
    ck_assert_ptr_nonnull(strstr(lq_error_detail(), "context of 150 tokens: 7 of 10 new ones were not taken"));
    ck_assert_uint_eq(lq_seq_length(w.s, 0), CONTEXT);
    ck_assert_uint_eq(info_of(w.s, 0).refused, 7);
    ck_assert_uint_eq(lq_seq_length(w.s, 1), 4);
    ck_assert_uint_eq(info_of(w.s, 1).refused, 0);
    check_row(&w, 0, &t); /* of the one token of the first item that was asked for and taken */
    t.n = 4;
    check_row(&w, 1, &t);
    ck_assert_int_eq(lq_decode(w.s, &(lq_item){0, more, 1, 0}, 1), LQ_E_CONTEXT); /* nothing more fits */
    const float *row;
    ck_assert_int_eq(lq_logits(w.s, 0, &row), LQ_E_ARG);
    ck_assert_uint_eq(info_of(w.s, 0).refused, 1);
    t.n = CONTEXT;
    memcpy(more, t.ids, sizeof t.ids);
    ck_assert_int_eq(lq_sync(w.s, 1, more, CONTEXT + 9, CONTEXT - 1), LQ_E_CONTEXT);
    ck_assert_uint_eq(info_of(w.s, 1).refused, 9);
    check_row(&w, 0, &t);
    lq_session_close(w.s);
    lq_session_close(w.alone);
}
END_TEST

typedef struct stopper {
    lq_session *s;
    uint32_t passes;
    int32_t layer;
} stopper;
static void stop_in_pass(void *user, const q_inst *t, const float *x, int32_t n, int32_t stride) {
    stopper *p = user;
    Q_UNUSED(x), Q_UNUSED(n), Q_UNUSED(stride);
    if (t->layer < p->layer && p->passes-- == 0) lq_session_cancel(p->s);
    p->layer = t->layer;
}

/* Cancelled in some pass: what slid out is gone, and of the new tokens those of finished passes are there. */
START_TEST(a_broken_slide_keeps_what_was_finished) {
    int32_t ids[3 * CONTEXT];
    world w = {.seed = 2};
    w.alone = open_session((lq_session_options){.no_reuse = 1});
    for (uint32_t i = 0; i < Q_COUNT(ids); i++) ids[i] = (int32_t)roll(&w, VOCAB);
    static const uint32_t had[] = {CONTEXT, 100, 20, 5}; /* the first of these leaves old tokens behind the gap */
    for (size_t k = 0; k < Q_COUNT(had); k++)
        for (uint32_t passes = 0; passes < 5; passes++) {
            w.s = open_session((lq_session_options){.overflow = "slide", .overflow_keep = KEEP, .batch = 16});
            ck_assert_int_eq(t_decode(w.s, ids, had[k], had[k]), LQ_OK);
            stopper p = {.s = w.s, .passes = passes, .layer = INT32_MAX};
            w.s->tap = stop_in_pass, w.s->tap_user = &p;
            const uint32_t more = k == 0 ? 40 : 2 * CONTEXT;
            ck_assert_int_eq(t_decode(w.s, ids + had[k], more, more), LQ_E_CANCELLED);
            w.s->tap = NULL;
            const lq_seq_info info = info_of(w.s, 0);
            text t = {.n = 0};
            for (uint32_t i = 0; i < had[k] + more; i++) push(&t, ids[i], KEEP);
            if (info.dropped == 0) ck_assert_uint_lt(info.length, KEEP); /* no gap yet: the first of all tokens */
            else ck_assert_uint_eq(info.dropped, t.dropped);
            ck_assert_uint_eq(info.dropped_in_all, info.dropped);
            const uint32_t same = Q_MIN(had[k], (uint32_t)KEEP);
            if (k == 0) ck_assert_uint_ge(info.length, CONTEXT - 57); /* all that was left of the old ones */
            else ck_assert_uint_eq(info.length, same + 16 * passes);
            for (size_t i = (size_t)info.length + info.dropped; i < had[k] + more; i += 50) { /* go on */
                const size_t n = Q_MIN(had[k] + more - i, (size_t)50);
                ck_assert_msg(t_decode(w.s, ids + i, n, n - 1) == LQ_OK, "%s", lq_error_detail());
            }
            check_row(&w, 0, &t);
            lq_session_close(w.s);
        }
    lq_session_close(w.alone);
}
END_TEST

START_TEST(limits_are_told) {
    int32_t ids[2 * CONTEXT] = {3, 4};
    lq_session *s = open_session((lq_session_options){.max_logits = CONTEXT});
    ck_assert_int_eq(t_decode(s, ids, 100, 100), LQ_OK);
    ck_assert_int_eq(t_decode(s, ids, 51, 51), LQ_E_CONTEXT);
    ck_assert_ptr_nonnull(strstr(lq_error_detail(), "51 tokens after 100 exceed the context of 150"));
    ck_assert_uint_eq(lq_seq_length(s, 0), 100);
    ck_assert_int_eq(lq_sync(s, 0, ids, 151, 151), LQ_E_CONTEXT);
    ck_assert_uint_eq(lq_seq_length(s, 0), 100);
    lq_session_close(s);
    s = open_session((lq_session_options){.max_logits = CONTEXT, .overflow = "slide", .overflow_keep = 50});
    ck_assert_int_eq(t_decode(s, ids, 100, 100), LQ_OK);
    ck_assert_int_eq(t_decode(s, ids, 60, 49), LQ_E_CONTEXT); /* token 50 finds the context full */
    ck_assert_ptr_nonnull(strstr(lq_error_detail(), "before token 50 of these"));
    ck_assert_uint_eq(lq_seq_length(s, 0), 100);
    ck_assert_int_eq(t_decode(s, ids, 60, 50), LQ_OK);
    ck_assert_uint_eq(lq_seq_length(s, 0), 110);
    ck_assert_int_eq(t_decode(s, ids, 2 * CONTEXT, 2 * CONTEXT), LQ_OK); /* no logits */
    ck_assert_int_eq(t_decode(s, ids, SIZE_MAX, SIZE_MAX), LQ_E_ARG);
    lq_session_close(s);
    const lq_session_options bad[] = {{.size = sizeof *bad, .overflow = "Slide"},
                                      {.size = sizeof *bad, .overflow = ""},
                                      {.size = sizeof *bad, .overflow_keep = 1},
                                      {.size = sizeof *bad, .overflow = "stop", .overflow_keep = 1},
                                      {.size = sizeof *bad, .overflow = "slide", .overflow_keep = CONTEXT},
                                      {.size = sizeof *bad, .overflow = "slide", .context = 1, .overflow_keep = 1}};
    for (size_t i = 0; i < Q_COUNT(bad); i++) {
        ck_assert_int_eq(lq_session_open(model, &bad[i], &s), LQ_E_ARG);
        ck_assert_ptr_nonnull(strstr(lq_error_detail(), "overflow"));
    }
    s = open_session((lq_session_options){.overflow = "slide", .context = 1});
    for (int i = 0; i < 3; i++) ck_assert_int_eq(t_decode(s, ids, 2, 1), LQ_OK);
    ck_assert_uint_eq(info_of(s, 0).dropped_in_all, 5);
    lq_session_close(s);
}
END_TEST

static Suite *suite(void) {
    Suite *s = suite_create("overflow");
    TCase *t = tcase_create("policies");
    tcase_add_checked_fixture(t, setup, teardown);
    tcase_set_timeout(t, 120);
    tcase_add_test(t, a_slid_text_has_the_bits_of_one_alone);
    tcase_add_test(t, sync_slides_too);
    tcase_add_test(t, draws_count_what_was_dropped);
    tcase_add_test(t, a_stop_is_told);
    tcase_add_test(t, a_broken_slide_keeps_what_was_finished);
    tcase_add_test(t, limits_are_told);
    suite_add_tcase(s, t);
    return s;
}
HARNESS_MAIN(suite)
