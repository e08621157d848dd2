/* test_sessions.c: many sequences in one session: what is reused, what forks share, what is saved, loaded, damaged and
 * cut, and what limits say. Random lives of sessions: test_session_life.c. */
#include "help_session.h"

enum { CONTEXT = 300, VOCAB = 262 };

static lq_ctx *ctx;
static lq_model *model;

static void setup(void) { t_tiny_open("sessions.gguf", CONTEXT, &ctx, &model); }
static void teardown(void) {
    lq_model_close(model);
    lq_close(ctx);
}

static lq_session *open_session(lq_session_options o) { return t_session(model, o); }

typedef struct world {
    uint64_t seed;
} world;

static uint32_t roll(world *w, uint32_t n) {
    w->seed = w->seed * 6364136223846793005u + 1442695040888963407u;
    return (uint32_t)(w->seed >> 33) % n;
}

static void some_ids(world *w, int32_t *ids, uint32_t n) {
    int32_t at = 3 + (int32_t)roll(w, 2);
    for (uint32_t i = 0; i < n; i++) {
        ids[i] = at;
        at = roll(w, 250) == 0 ? (int32_t)roll(w, VOCAB) : (at * 31 + (int32_t)i) % VOCAB;
    }
}

/* A second turn evaluates what is new, and at most a page; a new sequence with the same beginning likewise. */
START_TEST(a_chat_goes_on_where_it_was) {
    lq_session *s = open_session((lq_session_options){.sequences = 3});
    world w = {.seed = 5};
    int32_t ids[CONTEXT];
    some_ids(&w, ids, CONTEXT);
    ck_assert_int_eq(lq_sync(s, 0, ids, 200, 199), LQ_OK);
    lq_stats t = {.size = sizeof t}, u = {.size = sizeof u};
    ck_assert_int_eq(lq_session_stats(s, &t), LQ_OK);
    ck_assert_int_eq(lq_sync(s, 0, ids, 230, 229), LQ_OK);
    ck_assert_int_eq(lq_session_stats(s, &u), LQ_OK);
    ck_assert_uint_eq(u.prefill_tokens - t.prefill_tokens, 30);
    lq_seq_info info = {.size = sizeof info};
    ck_assert_int_eq(lq_seq_info_get(s, 0, &info), LQ_OK);
    ck_assert_uint_eq(info.cached, 200);
    ck_assert_str_eq(info.miss, "there were fewer new tokens than a page has");
    ck_assert_int_eq(lq_sync(s, 1, ids, 230, 229), LQ_OK);
    ck_assert_int_eq(lq_seq_info_get(s, 1, &info), LQ_OK);
    ck_assert_uint_eq(info.cached, 224);
    ck_assert_str_eq(info.miss, "");
    ids[40] = (ids[40] + 1) % VOCAB; /* another text from here on */
    ck_assert_int_eq(lq_sync(s, 2, ids, 230, 229), LQ_OK);
    ck_assert_int_eq(lq_seq_info_get(s, 2, &info), LQ_OK);
    ck_assert_uint_eq(info.cached, 32);
    ck_assert_str_eq(info.miss, "no text that is kept goes on with these tokens");
    /* the same tokens again, and a beginning of them: nothing but what logits need */
    ck_assert_int_eq(lq_sync(s, 2, ids, 230, 229), LQ_OK);
    ck_assert_int_eq(lq_seq_info_get(s, 2, &info), LQ_OK);
    ck_assert_uint_eq(info.cached, 229);
    ck_assert_int_eq(lq_sync(s, 2, ids, 100, 100), LQ_OK);
    ck_assert_uint_eq(lq_seq_length(s, 2), 100);
    const float *row;
    ck_assert_int_eq(lq_logits(s, 0, &row), LQ_E_ARG);
    lq_session_close(s);
}
END_TEST

static uint64_t evaluated(const lq_session *s) {
    lq_stats t = {.size = sizeof t};
    ck_assert_int_eq(lq_session_stats(s, &t), LQ_OK);
    return t.prefill_tokens + t.decode_tokens;
}

/* The second turn of a long chat: 100 tokens more are 100 tokens to evaluate; and at most a page more where another
 * chat had the sequence meanwhile. The logits are those of the whole text in a session that reuses nothing. */
START_TEST(a_second_turn_evaluates_what_it_adds) {
    enum { ADDED = 100 };
    const uint32_t turn = t_emulated() || T_SLOW ? 1000 : 8000, all = turn + ADDED;
    static tiny t;
    char path[4096];
    lq_model *m;
    lq_session *s, *fresh;
    int32_t *ids = calloc(2 * (size_t)all, sizeof *ids);
    const float *got, *want;
    tiny_init(&t, "q8_0");
    tiny_u32(&t, "llama.context_length", all + 1);
    tiny_write(&t, t_path(path, sizeof path, t_tmp(), "long.gguf"));
    ck_assert_msg(lq_model_open(ctx, path, NULL, &m) == LQ_OK, "%s", lq_error_detail());
    const lq_session_options o = {.size = sizeof o, .threads = 1, .sequences = 2},
                             none = {.size = sizeof none, .threads = 1, .no_reuse = 1};
    ck_assert_int_eq(lq_session_open(m, &o, &s), LQ_OK);
    ck_assert_int_eq(lq_session_open(m, &none, &fresh), LQ_OK);
    for (uint32_t i = 0; i < 2 * all; i++) ids[i] = (int32_t)(3 + (i * 31 + i / 97) % 250);
    ck_assert_int_eq(lq_sync(s, 0, ids, turn, turn - 1), LQ_OK);
    uint64_t before = evaluated(s);
    ck_assert_int_eq(lq_sync(s, 0, ids, all, all - 1), LQ_OK);
    ck_assert_uint_eq(evaluated(s) - before, ADDED);
    ck_assert_int_eq(lq_sync(fresh, 0, ids, all, all - 1), LQ_OK);
    ck_assert_int_eq(lq_logits(s, 0, &got), LQ_OK);
    ck_assert_int_eq(lq_logits(fresh, 0, &want), LQ_OK);
    ck_assert_mem_eq(got, want, VOCAB * sizeof *got);
    /* the first turn again, another chat, and the second turn: in the other sequence, too */
    ck_assert_int_eq(lq_sync(s, 0, ids, turn, turn - 1), LQ_OK);
    ck_assert_int_eq(lq_sync(s, 0, ids + all + 5, 200, 199), LQ_OK);
    for (uint32_t seq = 0; seq < 2; seq++) {
        before = evaluated(s);
        ids[turn + 7] += 1 + (int32_t)seq; /* that nobody has said before */
        ck_assert_int_eq(lq_sync(s, seq, ids, all, all - 1), LQ_OK);
        ck_assert_uint_ge(evaluated(s) - before, ADDED);
        ck_assert_uint_le(evaluated(s) - before, ADDED + 32);
    }
    lq_session_close(s);
    lq_session_close(fresh);
    lq_model_close(m);
    free(ids);
}
END_TEST

/* Sixteen forks take no room until one of them goes on. */
START_TEST(forks_share_what_they_have) {
    lq_session *s = open_session((lq_session_options){.sequences = 17, .kv_tokens = 2 * CONTEXT});
    world w = {.seed = 6};
    int32_t ids[CONTEXT];
    some_ids(&w, ids, CONTEXT);
    ck_assert_int_eq(t_decode(s, ids, 250, 249), LQ_OK);
    lq_session_info a = {.size = sizeof a}, b = {.size = sizeof b};
    ck_assert_int_eq(lq_session_info_get(s, &a), LQ_OK);
    ck_assert_uint_eq(a.sequences, 17);
    ck_assert_uint_eq(a.kv_tokens, (2 * CONTEXT + 31) / 32 * 32);
    ck_assert_uint_eq(a.kv_free, a.kv_tokens - 256);
    for (uint32_t i = 1; i < 17; i++) ck_assert_int_eq(lq_seq_fork(s, 0, i), LQ_OK);
    ck_assert_int_eq(lq_session_info_get(s, &b), LQ_OK);
    ck_assert_uint_eq(b.kv_free, a.kv_free);
    ck_assert_int_eq(lq_decode(s, &(lq_item){.sequence = 3, .ids = ids, .count = 1}, 1), LQ_OK);
    ck_assert_int_eq(lq_session_info_get(s, &b), LQ_OK);
    ck_assert_uint_eq(b.kv_free, a.kv_free - 32);
    ck_assert_uint_eq(lq_seq_length(s, 3), 251);
    ck_assert_uint_eq(lq_seq_length(s, 4), 250);
    lq_session_close(s);
}
END_TEST

/* A saved text goes on with the same bits, in another session too; other texts do not find what was loaded. */
START_TEST(a_saved_text_goes_on) {
    lq_session *s = open_session((lq_session_options){0}), *t = open_session((lq_session_options){.sequences = 3});
    world w = {.seed = 8};
    int32_t ids[CONTEXT];
    const float *want, *got;
    t_saved b = t_saved_new();
    some_ids(&w, ids, CONTEXT);
    ck_assert_int_eq(t_decode(s, ids, 140, 140), LQ_OK);
    ck_assert_int_eq(lq_seq_save(s, 0, t_saved_put, &b), LQ_OK);
    ck_assert_int_eq(t_decode(s, ids + 140, 60, 59), LQ_OK);
    ck_assert_int_eq(lq_logits(s, 0, &want), LQ_OK);
    ck_assert_int_eq(lq_seq_load(t, 1, t_saved_get, &b), LQ_OK);
    ck_assert_uint_eq(lq_seq_length(t, 1), 140);
    ck_assert_int_eq(lq_seq_fork(t, 1, 2), LQ_OK);
    for (uint32_t seq = 1; seq < 3; seq++) {
        ck_assert_int_eq(lq_decode(t, &(lq_item){seq, ids + 140, 60, 59}, 1), LQ_OK);
        ck_assert_int_eq(lq_logits(t, 0, &got), LQ_OK);
        ck_assert_int_eq(memcmp(got, want, VOCAB * sizeof *got), 0);
    }
    lq_seq_info info = {.size = sizeof info};
    ck_assert_int_eq(lq_sync(t, 0, ids, 140, 139), LQ_OK);
    ck_assert_int_eq(lq_seq_info_get(t, 0, &info), LQ_OK);
    ck_assert_uint_eq(info.cached, 0);
    lq_stats st = {.size = sizeof st};
    ck_assert_int_eq(lq_session_stats(t, &st), LQ_OK);
    ck_assert_uint_eq(st.prefill_tokens, 60 + 60 + 140);
    lq_session_close(s);
    lq_session_close(t);
    free(b.p);
}
END_TEST

/* Whatever happens to the bytes: an error that says what, and an empty sequence. */
START_TEST(damaged_sequences_are_refused) {
    lq_session *s = open_session((lq_session_options){0}), *shorter = open_session((lq_session_options){.context = 64}),
               *f32 = open_session((lq_session_options){.activations = "f32"});
    world w = {.seed = 9};
    int32_t ids[CONTEXT];
    t_saved b = t_saved_new();
    some_ids(&w, ids, CONTEXT);
    ck_assert_int_eq(t_decode(s, ids, 70, 70), LQ_OK);
    ck_assert_int_eq(lq_seq_save(s, 0, t_saved_put, &b), LQ_OK);
    ck_assert_int_eq(lq_seq_load(shorter, 0, t_saved_get, &b), LQ_E_CONTEXT);
    b.at = 0;
    ck_assert_int_eq(lq_seq_load(f32, 0, t_saved_get, &b), LQ_E_INCONSISTENT);
    for (size_t i = 0, at = 0; i < 400; i++, at += i < 80 ? 1 : 1 + roll(&w, (uint32_t)(b.n / 200))) {
        const size_t place = at % b.n;
        const uint8_t bit = (uint8_t)(1u << roll(&w, 8));
        b.p[place] ^= bit;
        b.at = 0;
        const lq_status st = lq_seq_load(s, 0, t_saved_get, &b);
        ck_assert_msg(st == LQ_E_FORMAT || st == LQ_E_INCONSISTENT, "byte %zu: %s %s", place, lq_status_name(st),
                      lq_error_detail());
        ck_assert_uint_eq(lq_seq_length(s, 0), 0);
        b.p[place] ^= bit;
    }
    const size_t all = b.n;
    for (b.n = 0; b.n < all; b.n += b.n < 60 ? 1 : 997) {
        b.at = 0;
        ck_assert_int_eq(lq_seq_load(s, 0, t_saved_get, &b), LQ_E_TRUNCATED);
    }
    b.n = all, b.at = 0;
    ck_assert_int_eq(lq_seq_load(s, 0, t_saved_get, &b), LQ_OK);
    ck_assert_uint_eq(lq_seq_length(s, 0), 70);
    b.n = 0, b.most = 5000;
    ck_assert_int_eq(lq_seq_save(s, 0, t_saved_put, &b), LQ_E_IO);
    ck_assert_uint_eq(lq_seq_length(s, 0), 70);
    lq_session_close(s);
    lq_session_close(shorter);
    lq_session_close(f32);
    free(b.p);
}
END_TEST

/* Room for what all sequences can have: the last holder of a page that is not full needs no copy of it. */
START_TEST(forks_fill_their_context) {
    lq_session *s = open_session((lq_session_options){.sequences = 2, .context = 64});
    const int32_t ids[64] = {3, 40, 5, 60, 7};
    ck_assert_int_eq(lq_decode(s, &(lq_item){0, ids, 10, 9}, 1), LQ_OK);
    ck_assert_int_eq(lq_seq_fork(s, 0, 1), LQ_OK);
    const lq_item both[] = {{0, ids, 54, 54}, {1, ids + 1, 54, 54}};
    ck_assert_msg(lq_decode(s, both, 2) == LQ_OK, "%s", lq_error_detail());
    lq_session_close(s);
    s = open_session((lq_session_options){.kv_tokens = UINT64_MAX});
    ck_assert_int_eq(t_decode(s, ids, 64, 63), LQ_OK);
    const int32_t wrong[] = {3, 40, VOCAB};
    ck_assert_int_eq(lq_sync(s, 0, wrong, 3, 2), LQ_E_ARG); /* and nothing is cut */
    ck_assert_uint_eq(lq_seq_length(s, 0), 64);
    lq_session_cancel(s);
    ck_assert_int_eq(lq_sync(s, 0, ids, 20, 20), LQ_E_CANCELLED); /* though nothing would be evaluated */
    ck_assert_uint_eq(lq_seq_length(s, 0), 64);
    lq_session_close(s);
}
END_TEST

START_TEST(limits_are_told) {
    int32_t ids[CONTEXT] = {3, 4, 5};
    lq_session *s = open_session((lq_session_options){.sequences = 3, .kv_tokens = CONTEXT, .max_logits = 2});
    const lq_item two[] = {{0, ids, 3, 2}, {0, ids, 3, 2}};
    ck_assert_int_eq(lq_decode(s, two, 2), LQ_E_ARG);
    ck_assert_ptr_nonnull(strstr(lq_error_detail(), "item 1 is of sequence 0"));
    ck_assert_int_eq(lq_decode(s, &(lq_item){3, ids, 3, 2}, 1), LQ_E_ARG);
    ck_assert_ptr_nonnull(strstr(lq_error_detail(), "sequence 3: the session has 3"));
    ck_assert_int_eq(lq_seq_fork(s, 0, 7), LQ_E_ARG);
    ck_assert_int_eq(lq_seq_truncate(s, 1, 1), LQ_E_ARG);
    ck_assert_int_eq(lq_decode(s, &(lq_item){0, ids, 200, 200}, 1), LQ_OK);
    ids[0] = 9;
    ck_assert_int_eq(lq_decode(s, &(lq_item){1, ids, 200, 200}, 1), LQ_E_CONTEXT); /* all together */
    ck_assert_ptr_nonnull(strstr(lq_error_detail(), "kv_tokens 300"));
    ck_assert_uint_eq(lq_seq_length(s, 1), 0);
    ck_assert_int_eq(lq_seq_truncate(s, 0, 0), LQ_OK);
    ck_assert_int_eq(lq_decode(s, &(lq_item){1, ids, 200, 200}, 1), LQ_OK);
    lq_session_close(s);
    const lq_session_options few = {.size = sizeof few, .kv_tokens = 10};
    const lq_session_options many = {.size = sizeof many, .sequences = 5000};
    ck_assert_int_eq(lq_session_open(model, &few, &s), LQ_E_ARG);
    ck_assert_int_eq(lq_session_open(model, &many, &s), LQ_E_ARG);
}
END_TEST

/* A row is drawn for its own sequence and place. */
START_TEST(rows_are_those_of_their_sequences) {
    lq_session *s = open_session((lq_session_options){.sequences = 2, .max_logits = 2});
    const int32_t ids[] = {3, 40, 5, 60, 7};
    const lq_sampler warm = {.size = sizeof warm, .temperature = 1.5f, .seed = 9};
    const lq_item items[] = {{1, ids, 5, 4}, {0, ids, 2, 1}};
    ck_assert_int_eq(lq_decode(s, items, 2), LQ_OK);
    for (uint32_t row = 0; row < 2; row++) {
        const float *logits;
        int32_t got, want;
        ck_assert_int_eq(lq_logits(s, row, &logits), LQ_OK);
        ck_assert_int_eq(lq_sample_logits(NULL, logits, VOCAB, &warm, NULL, 0, row == 0 ? 5 : 2, &want), LQ_OK);
        ck_assert_int_eq(lq_sample(s, row, &warm, &got), LQ_OK);
        ck_assert_int_eq(got, want);
        if (row == 1) ck_assert_int_eq(lq_sample(s, (uint32_t)LQ_ROW_LAST, &warm, &got), LQ_OK);
        ck_assert_int_eq(got, want);
    }
    int32_t id;
    ck_assert_int_eq(lq_sample(s, 2, &warm, &id), LQ_E_ARG);
    lq_session_close(s);
}
END_TEST

static Suite *suite(void) {
    Suite *s = suite_create("sessions");
    TCase *t = tcase_create("sequences");
    tcase_add_checked_fixture(t, setup, teardown);
    tcase_set_timeout(t, 120);
    tcase_add_test(t, a_chat_goes_on_where_it_was);
    tcase_add_test(t, a_second_turn_evaluates_what_it_adds);
    tcase_add_test(t, forks_share_what_they_have);
    tcase_add_test(t, a_saved_text_goes_on);
    tcase_add_test(t, damaged_sequences_are_refused);
    tcase_add_test(t, forks_fill_their_context);
    tcase_add_test(t, limits_are_told);
    tcase_add_test(t, rows_are_those_of_their_sequences);
    suite_add_tcase(s, t);
    return s;
}
HARNESS_MAIN(suite)
