/* test_draft.c: guessing tokens ahead changes no token, no byte of text and no logits, greedy or drawn, whoever guesses
 * and however many; what is guessed well is kept; the plan counts all of it, and nothing is allocated after open. */
#include "../libquant/engine.h"
#include "help_session.h"

#include <math.h>

enum { CONTEXT = 200, MOST = 60 };

static lq_ctx *ctx;
static lq_model *bytes_model, *pocket, *rounded; /* one byte a token; words; the same rounded to 2 bits */

static lq_model *open_tiny(tiny *t, const char *name) {
    char path[4096];
    lq_model *m = NULL;
    tiny_u32(t, "llama.context_length", CONTEXT);
    tiny_write(t, t_path(path, sizeof path, t_tmp(), name));
    ck_assert_msg(lq_model_open(ctx, path, NULL, &m) == LQ_OK, "%s", lq_error_detail());
    return m;
}

static void setup(void) {
    char path[4096];
    static tiny t;
    static const lq_allocator alloc = {live_alloc, live_free, NULL};
    const lq_options o = {.size = sizeof o, .threads = 2, .allocator = &alloc};
    ck_assert_msg(lq_open(&o, &ctx) == LQ_OK, "%s", lq_error_detail());
    tiny_init(&t, "q8_0");
    bytes_model = open_tiny(&t, "bytes.gguf");
    t_path(path, sizeof path, t_root(), "bench/data/pocket");
    const lq_model_options less = {.size = sizeof less, .load_as = "q2_k"};
    ck_assert_msg(lq_model_open(ctx, path, NULL, &pocket) == LQ_OK, "%s", lq_error_detail());
    ck_assert_msg(lq_model_open(ctx, path, &less, &rounded) == LQ_OK, "%s", lq_error_detail());
}
static void teardown(void) {
    lq_model_close(bytes_model);
    lq_model_close(pocket);
    lq_model_close(rounded);
    lq_close(ctx);
    ck_assert_uint_eq(live_bytes, 0);
}

static lq_session *open_session(lq_model *m, lq_session_options o) {
    if (!o.context) o.context = CONTEXT;
    return t_session(m, o);
}

typedef struct run {
    int32_t ids[MOST];
    char text[1 << 13];
    size_t n, bytes;
    uint32_t end, stop, calls;
    lq_stats stats;
} run;

static void by_steps(lq_session *s, uint32_t seq, const char *prompt, const lq_sampler *o, run *r) {
    int32_t ids[CONTEXT];
    size_t n = CONTEXT;
    const size_t live = live_bytes;
    lq_step_item t = {.size = sizeof t, .sequence = seq, .sampler = o};
    lq_stats before = {.size = sizeof before};
    memset(r, 0, sizeof *r);
    ck_assert_int_eq(lq_tokenize(s->model, prompt, strlen(prompt), LQ_TOKENIZE_BOS, ids, &n), LQ_OK);
    const size_t open_bytes = live_bytes;
    ck_assert_msg(lq_sync(s, seq, ids, n, n - 1) == LQ_OK, "%s", lq_error_detail());
    ck_assert_int_eq(lq_session_stats(s, &before), LQ_OK);
    while (!r->end) {
        ck_assert_msg(lq_step(s, &t, 1) == LQ_OK, "%s", lq_error_detail());
        ck_assert(t.n >= 1 || t.end);
        memcpy(r->ids + r->n, t.ids, t.n * sizeof *t.ids);
        memcpy(r->text + r->bytes, t.text, t.bytes);
        r->n += t.n, r->bytes += t.bytes, r->calls++;
        r->end = t.end, r->stop = t.stop;
    }
    ck_assert_uint_eq(live_bytes, open_bytes);
    ck_assert_uint_le(open_bytes, live + 65536);
    lq_seq_info info = {.size = sizeof info};
    ck_assert_int_eq(lq_seq_info_get(s, seq, &info), LQ_OK);
    ck_assert_uint_eq(info.length + info.dropped_in_all, n + r->n);
    r->stats.size = sizeof r->stats;
    ck_assert_int_eq(lq_session_stats(s, &r->stats), LQ_OK);
    r->stats.decode_tokens -= before.decode_tokens;
    r->stats.drafted -= before.drafted;
    r->stats.accepted -= before.accepted;
}

static void same_run(const run *a, const run *b) {
    ck_assert_uint_eq(a->n, b->n);
    ck_assert_int_eq(memcmp(a->ids, b->ids, a->n * sizeof *a->ids), 0);
    ck_assert_uint_eq(a->bytes, b->bytes);
    ck_assert_int_eq(memcmp(a->text, b->text, a->bytes), 0);
    ck_assert(a->end == b->end && a->stop == b->stop);
    ck_assert_uint_eq(a->stats.last_logits_hash, b->stats.last_logits_hash);
    /* what was chosen last is evaluated already where it was guessed */
    ck_assert(b->stats.decode_tokens - a->stats.decode_tokens <= 1);
}

static const char *const texts[] = {"the sea, the sea, the sea, the", "Once upon a time", "a b a b a b a b a"};

static lq_sampler sampler_of(uint64_t seed) {
    return (lq_sampler){.size = sizeof(lq_sampler), .temperature = seed ? 0.3f * (float)seed : 0, .top_k = 50,
                        .seed = seed,
                        .max_tokens = 48, .ignore_eos = 1};
}

START_TEST(guesses_change_no_token) {
    static const uint32_t lengths[] = {1, 5, 16};
    lq_model *const models[] = {bytes_model, pocket};
    uint64_t kept = 0, wrong = 0;
    const uint64_t seeds = T_SLOW || t_emulated() ? 1 : 4;
    for (size_t m = 0; m < 2; m++) {
        lq_session *plain = open_session(models[m], (lq_session_options){0});
        for (uint32_t i = 0; i < 6; i++) {
            const lq_session_options o = {.ngram = i % 3 + 1, .draft_tokens = lengths[i % 3], .batch = i < 3 ? 0 : 3,
                                          .draft = i < 3 ? NULL : m ? rounded : models[m]};
            lq_session *s = open_session(models[m], o);
            for (uint64_t turn = 0; turn < seeds; turn++) {
                static run want, got;
                const uint64_t seed = (turn + i) % 4;
                const lq_sampler how = sampler_of(seed);
                by_steps(plain, 0, texts[seed % 3], &how, &want);
                by_steps(s, 0, texts[seed % 3], &how, &got);
                same_run(&want, &got);
                ck_assert_uint_eq(want.stats.drafted, 0);
                ck_assert_uint_le(got.stats.accepted, got.stats.drafted);
                ck_assert_uint_le(got.calls + got.stats.accepted, want.calls); /* each accepted token spares a pass */
                kept += got.stats.accepted;
                wrong += got.stats.drafted - got.stats.accepted;
            }
            lq_session_close(s);
        }
        lq_session_close(plain);
    }
    ck_assert_uint_gt(kept, 25 * seeds);
    ck_assert_uint_gt(wrong, 25 * seeds);
}
END_TEST

/* A model agrees with itself in everything, drawn or not; with the same rounded it mostly does. */
START_TEST(a_model_guesses_for_itself) {
    lq_session *self = open_session(pocket, (lq_session_options){.draft = pocket, .draft_tokens = 6});
    lq_session *other = open_session(pocket, (lq_session_options){.draft = rounded, .draft_tokens = 6});
    lq_session *plain = open_session(pocket, (lq_session_options){0});
    for (uint64_t seed = T_SLOW || t_emulated() ? 2 : 0; seed < 3; seed++) {
        static run want, a, b;
        const lq_sampler how = sampler_of(seed);
        by_steps(plain, 0, texts[seed], &how, &want);
        by_steps(self, 0, texts[seed], &how, &a);
        by_steps(other, 0, texts[seed], &how, &b);
        same_run(&want, &a);
        same_run(&want, &b);
        ck_assert_uint_eq(a.stats.accepted, a.stats.drafted);
        ck_assert_uint_gt(a.stats.accepted, 36);
        ck_assert_uint_gt(b.stats.accepted, 0);
        ck_assert_uint_lt(b.stats.accepted, b.stats.drafted);
    }
    lq_session_close(self);
    lq_session_close(other);
    lq_session_close(plain);
}
END_TEST

START_TEST(texts_end_where_they_end) {
    lq_session *plain = open_session(pocket, (lq_session_options){.context = 60});
    lq_session *s = open_session(pocket, (lq_session_options){.context = 60, .draft = pocket, .draft_tokens = 16});
    static run all, want, got;
    lq_sampler how = sampler_of(2);
    how.max_tokens = 0;
    by_steps(plain, 0, texts[1], &how, &all);
    by_steps(s, 0, texts[1], &how, &got);
    ck_assert_uint_eq(got.end, LQ_END_CONTEXT);
    same_run(&all, &got);
    for (size_t at = 1; at + 6 < all.bytes; at += T_SLOW || t_emulated() ? 40 : 7) {
        char stop[8] = {0};
        memcpy(stop, all.text + at, 6);
        const char *const stops[] = {stop};
        how.stop = stops, how.n_stop = 1;
        by_steps(plain, 0, texts[1], &how, &want);
        by_steps(s, 0, texts[1], &how, &got);
        same_run(&want, &got);
        ck_assert_uint_eq(got.end, LQ_END_STOP);
    }
    how.n_stop = 0;
    for (how.max_tokens = 1; how.max_tokens < 12; how.max_tokens++) {
        by_steps(plain, 0, texts[1], &how, &want);
        by_steps(s, 0, texts[1], &how, &got);
        same_run(&want, &got);
        ck_assert_uint_eq(got.n, how.max_tokens);
    }
    /* and what was guessed and forgotten is not in the sequence: the next tokens are those of the text alone */
    const float *a, *b;
    ck_assert_int_eq(t_decode(plain, all.ids + 11, 3, 2), LQ_OK);
    ck_assert_int_eq(t_decode(s, all.ids + 11, 3, 2), LQ_OK);
    ck_assert_int_eq(lq_logits(plain, 0, &a), LQ_OK);
    ck_assert_int_eq(lq_logits(s, 0, &b), LQ_OK);
    ck_assert_int_eq(memcmp(a, b, 4096 * sizeof *a), 0);
    lq_session_close(plain);
    lq_session_close(s);
}
END_TEST

/* A mask that follows from the tokens before: which token may not come depends on how many there are. */
static int forbid(void *user, float *logits, size_t n, const int32_t *ids, size_t count) {
    uint64_t *asked = user;
    (*asked)++;
    for (size_t i = (count * 7 + (size_t)ids[count - 1]) % 3; i < n; i += 3) logits[i] = -INFINITY;
    return 0;
}

/* Whatever a sampler looks at: tokens before, a state of the caller's, a mask. */
START_TEST(guesses_change_no_choice) {
    lq_session *plain = open_session(pocket, (lq_session_options){0});
    lq_session *s = open_session(pocket, (lq_session_options){.draft = rounded, .ngram = 3, .draft_tokens = 7});
    uint64_t kept = 0;
    for (uint32_t i = 0; i < 4; i++) {
        static run want, got;
        uint64_t asked[2] = {0, 0};
        float mu[2] = {6, 6};
        lq_sampler how = sampler_of(i + 1);
        if (i == 0) how.repeat_penalty = 1.2f, how.frequency_penalty = 0.1f, how.penalty_last_n = 20;
        if (i == 1) how.dry_multiplier = 0.8f;
        if (i == 2) how.top_k = 0, how.temperature = 0.7f, how.mirostat_tau = 3, how.mirostat_mu = &mu[0];
        if (i == 3) how.mask = forbid, how.mask_user = &asked[0];
        by_steps(plain, 0, texts[i % 3], &how, &want);
        if (i == 2) how.mirostat_mu = &mu[1];
        how.mask_user = i == 3 ? &asked[1] : NULL;
        by_steps(s, 0, texts[i % 3], &how, &got);
        same_run(&want, &got);
        ck_assert(mu[0] == mu[1]);
        ck_assert_uint_eq(asked[0], asked[1]); /* once for each token, guessed or not */
        ck_assert_uint_eq(asked[0], i == 3 ? want.n : 0);
        if (i == 2) ck_assert(mu[0] != 6);
        kept += got.stats.accepted;
    }
    ck_assert_uint_gt(kept, 10);
    lq_session_close(plain);
    lq_session_close(s);
}
END_TEST

/* A text that slides: as by lq_sample and lq_decode, with and without guesses. */
START_TEST(texts_slide) {
    const lq_session_options o = {.context = 40, .overflow = "slide", .overflow_keep = 3};
    lq_session_options guessing = o;
    guessing.draft = pocket, guessing.ngram = 2;
    lq_session *hand = open_session(pocket, o), *plain = open_session(pocket, o), *s = open_session(pocket, guessing);
    static run want, got;
    for (uint64_t seed = 0; seed < 2; seed++) {
        int32_t ids[CONTEXT], id;
        size_t n = CONTEXT;
        lq_sampler how = sampler_of(seed);
        how.max_tokens = MOST;
        ck_assert_int_eq(lq_tokenize(pocket, texts[seed], strlen(texts[seed]), LQ_TOKENIZE_BOS, ids, &n), LQ_OK);
        ck_assert_int_eq(lq_sync(hand, 0, ids, n, n - 1), LQ_OK);
        by_steps(plain, 0, texts[seed], &how, &want);
        by_steps(s, 0, texts[seed], &how, &got);
        ck_assert_int_eq(memcmp(want.ids, got.ids, sizeof want.ids), 0);
        ck_assert_int_eq(memcmp(want.text, got.text, want.bytes), 0);
        ck_assert_uint_eq(want.stats.last_logits_hash, got.stats.last_logits_hash);
        ck_assert_uint_gt(got.stats.accepted, 20);
        for (uint32_t i = 0; i < MOST; i++) {
            ck_assert_int_eq(lq_sample(hand, 0, &how, &id), LQ_OK);
            ck_assert_int_eq(id, want.ids[i]);
            ck_assert_int_eq(lq_decode(hand, &(lq_item){.ids = &id, .count = 1}, 1), LQ_OK);
        }
        lq_seq_info a = {.size = sizeof a}, b = {.size = sizeof b};
        ck_assert_int_eq(lq_seq_info_get(hand, 0, &a), LQ_OK);
        ck_assert_int_eq(lq_seq_info_get(s, 0, &b), LQ_OK);
        ck_assert(a.length == b.length && a.dropped_in_all == b.dropped_in_all && a.dropped_in_all > 30);
    }
    lq_session_close(hand);
    lq_session_close(plain);
    lq_session_close(s);
}
END_TEST

/* Several sequences guess together, within one limit; a request to cancel leaves what was chosen. */
START_TEST(sequences_guess_together) {
    const lq_session_options o = {.sequences = 3, .max_logits = 3, .draft = rounded, .ngram = 3, .draft_tokens = 10,
                                  .batch = _i ? 4 : 0};
    lq_session *s = open_session(pocket, o), *plain = open_session(pocket, (lq_session_options){0});
    static run want[3], got[3];
    lq_sampler how[3];
    lq_step_item t[3];
    memset(got, 0, sizeof got);
    for (uint32_t i = 0; i < 3; i++) {
        int32_t ids[CONTEXT];
        size_t n = CONTEXT;
        how[i] = sampler_of(i);
        by_steps(plain, 0, texts[i], &how[i], &want[i]);
        ck_assert_int_eq(lq_tokenize(pocket, texts[i], strlen(texts[i]), LQ_TOKENIZE_BOS, ids, &n), LQ_OK);
        ck_assert_int_eq(lq_sync(s, i, ids, n, n), LQ_OK);
        t[i] = (lq_step_item){.size = sizeof *t, .sequence = i, .sampler = &how[i]};
    }
    for (uint32_t round = 0, left = 3; left; round++) {
        if (round % 4 == 3) {
            lq_session_cancel(s);
            ck_assert_int_eq(lq_step(s, t, left), LQ_E_CANCELLED);
        }
        ck_assert_msg(lq_step(s, t, left) == LQ_OK, "%s", lq_error_detail());
        for (uint32_t i = 0; i < left; i++) {
            run *r = &got[t[i].sequence];
            memcpy(r->ids + r->n, t[i].ids, t[i].n * sizeof *t[i].ids);
            memcpy(r->text + r->bytes, t[i].text, t[i].bytes);
            r->n += t[i].n, r->bytes += t[i].bytes;
            /* rows are those that its tokens were chosen from */
            for (uint32_t j = 0; j < t[i].n; j++) {
                int32_t id;
                ck_assert_int_eq(lq_sample(s, t[i].row + j, &how[t[i].sequence], &id), LQ_OK);
                ck_assert_int_eq(id, t[i].ids[j]);
            }
        }
        for (uint32_t i = left; i-- > 0;)
            if (t[i].end) t[i] = t[--left];
    }
    for (uint32_t i = 0; i < 3; i++) {
        ck_assert_uint_eq(want[i].n, got[i].n);
        ck_assert_int_eq(memcmp(want[i].ids, got[i].ids, want[i].n * sizeof *want[i].ids), 0);
        ck_assert_uint_eq(want[i].bytes, got[i].bytes);
        ck_assert_int_eq(memcmp(want[i].text, got[i].text, want[i].bytes), 0);
    }
    lq_session_close(s);
    lq_session_close(plain);
}
END_TEST

/* A draft model with a shorter context guesses as far as it reaches. */
START_TEST(a_short_draft_stops_guessing) {
    static tiny t;
    char path[4096];
    lq_model *shorter = NULL;
    tiny_init(&t, "q8_0");
    tiny_u32(&t, "llama.context_length", 48);
    tiny_write(&t, t_path(path, sizeof path, t_tmp(), "short.gguf"));
    ck_assert_int_eq(lq_model_open(ctx, path, NULL, &shorter), LQ_OK);
    lq_session *s = open_session(bytes_model, (lq_session_options){.draft = shorter});
    lq_session *plain = open_session(bytes_model, (lq_session_options){0});
    static run want, got;
    const lq_sampler how = sampler_of(1);
    by_steps(plain, 0, texts[0], &how, &want);
    by_steps(s, 0, texts[0], &how, &got);
    same_run(&want, &got);
    ck_assert_uint_gt(got.stats.accepted, 8);
    ck_assert_uint_lt(got.stats.drafted, 24);
    lq_session_close(s);
    lq_session_close(plain);
    lq_model_close(shorter);
}
END_TEST

START_TEST(lookups_find_the_longest_and_latest) {
    static const struct {
        int32_t ids[12];
        uint32_t n, longest, want, out[4];
    } cases[] = {
        {{1, 2, 3, 4, 5, 1, 2}, 7, 2, 4, {3, 4, 5, 1}},
        {{1, 2, 3, 1, 2, 4, 1, 2}, 8, 2, 4, {4, 1, 2, 4}}, /* the later one, and what it is repeats */
        {{9, 1, 2, 3, 1, 2, 4, 9, 1, 2}, 10, 3, 4, {3, 1, 2, 4}}, /* the longer one */
        {{1, 2, 3, 2}, 4, 2, 0, {0}},
        {{1, 2, 3, 2}, 4, 1, 4, {3, 2, 3, 2}},
        {{7, 7, 7}, 3, 3, 4, {7, 7, 7, 7}},
        {{7}, 1, 3, 0, {0}},
    };
    for (size_t i = 0; i < Q_COUNT(cases); i++) {
        int32_t out[4];
        ck_assert_uint_eq(q_draft_lookup(cases[i].ids, cases[i].n, cases[i].longest, 4, out), cases[i].want);
        for (uint32_t j = 0; j < cases[i].want; j++) ck_assert_int_eq(out[j], (int32_t)cases[i].out[j]);
    }
}
END_TEST

static void refused(lq_session_options o, lq_status status, const char *words) {
    lq_session *s = NULL;
    o.size = sizeof o;
    ck_assert_int_eq(lq_session_open(bytes_model, &o, &s), status);
    ck_assert_msg(strstr(lq_error_detail(), words) != NULL, "%s", lq_error_detail());
    lq_plan_info plan = {.size = sizeof plan};
    ck_assert_int_eq(lq_model_plan(bytes_model, &o, &plan), status);
}

START_TEST(what_cannot_guess_is_refused) {
    static tiny t;
    refused((lq_session_options){.draft = pocket}, LQ_E_INCONSISTENT,
            "vocabulary of 4096 tokens, the model one of 262");
    tiny_init(&t, "q8_0");
    t.pieces[260].p = "x";
    lq_model *m = open_tiny(&t, "x.gguf");
    refused((lq_session_options){.draft = m}, LQ_E_INCONSISTENT,
            "token 260 is 'b' of type 1 in the model, 'x' of type 1");
    lq_model_close(m);
    tiny_init(&t, "q8_0");
    tiny_u32(&t, "tokenizer.ggml.eos_token_id", 5);
    m = open_tiny(&t, "eos.gguf");
    refused((lq_session_options){.draft = m}, LQ_E_INCONSISTENT, "EOS 2 in the model, 1 and 5 in the draft model");
    lq_model_close(m);
    refused((lq_session_options){.draft_tokens = 3}, LQ_E_ARG, "neither ngram nor draft");
    refused((lq_session_options){.ngram = 3, .draft_tokens = 65}, LQ_E_ARG, "draft_tokens 65");
    refused((lq_session_options){.ngram = 33}, LQ_E_ARG, "ngram 33");
}
END_TEST

static Suite *suite(void) {
    Suite *s = suite_create("draft");
    TCase *t = tcase_create("draft");
    tcase_add_checked_fixture(t, setup, teardown);
    tcase_set_timeout(t, 600);
    tcase_add_test(t, guesses_change_no_token);
    tcase_add_test(t, a_model_guesses_for_itself);
    tcase_add_test(t, texts_end_where_they_end);
    tcase_add_test(t, guesses_change_no_choice);
    tcase_add_test(t, texts_slide);
    tcase_add_loop_test(t, sequences_guess_together, 0, 2);
    tcase_add_test(t, a_short_draft_stops_guessing);
    tcase_add_test(t, lookups_find_the_longest_and_latest);
    tcase_add_test(t, what_cannot_guess_is_refused);
    suite_add_tcase(s, t);
    return s;
}
HARNESS_MAIN(suite)
