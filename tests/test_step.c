/* test_step.c: lq_step: the tokens are those of a loop over lq_sample and lq_decode, for one sequence and for several
 * at once; texts end where a plain search says, whatever tokens a stop string lies across; nothing is allocated. */
#include "../libquant/engine.h"
#include "help_session.h"

enum { CONTEXT = 160, SEQS = 4, MOST = CONTEXT };

static lq_ctx *ctx;
static lq_model *model;    /* one byte a token */
static lq_model *pocket;   /* words */

static lq_model *open_tiny(const char *name, uint32_t eos) {
    static tiny t;
    char path[4096];
    lq_model *m = NULL;
    tiny_init(&t, "q8_0");
    tiny_u32(&t, "llama.context_length", CONTEXT);
    if (eos) tiny_u32(&t, "tokenizer.ggml.eos_token_id", eos);
    tiny_write(&t, t_path(path, sizeof path, t_tmp(), name));
    ck_assert_msg(lq_model_open(ctx, path, NULL, &m) == LQ_OK, "%s", lq_error_detail());
    return m;
}

static void setup(void) {
    char path[4096];
    static const lq_allocator alloc = {live_alloc, live_free, NULL};
    const lq_options o = {.size = sizeof o, .threads = 2, .allocator = &alloc};
    ck_assert_msg(lq_open(&o, &ctx) == LQ_OK, "%s", lq_error_detail());
    model = open_tiny("step.gguf", 0);
    t_path(path, sizeof path, t_root(), "bench/data/pocket");
    ck_assert_msg(lq_model_open(ctx, path, NULL, &pocket) == LQ_OK, "%s", lq_error_detail());
}
static void teardown(void) {
    lq_model_close(model);
    lq_model_close(pocket);
    lq_close(ctx);
    ck_assert_uint_eq(live_bytes, 0);
}

static size_t prompt_of(lq_model *m, uint64_t seed, int32_t *ids) {
    static const char *const texts[] = {"The ship was", "Once upon a time", "A short day at sea. A short day at",
                                        "She said"};
    size_t n = 64;
    const char *text = texts[seed % Q_COUNT(texts)];
    ck_assert_int_eq(lq_tokenize(m, text, strlen(text), LQ_TOKENIZE_BOS, ids, &n), LQ_OK);
    return n;
}

/* n tokens by lq_sample and lq_decode. */
static void by_hand(lq_session *s, uint32_t seq, const int32_t *prompt, size_t n, const lq_sampler *o, int32_t *ids,
                    size_t most) {
    ck_assert_int_eq(lq_sync(s, seq, prompt, n, n - 1), LQ_OK);
    for (size_t i = 0; i < most; i++) {
        ck_assert_int_eq(lq_sample(s, 0, o, &ids[i]), LQ_OK);
        if (i + 1 < most) ck_assert_int_eq(lq_decode(s, &(lq_item){seq, &ids[i], 1, 0}, 1), LQ_OK);
    }
}

/* What steps make of a sequence until it ends: ids and text. */
typedef struct run {
    int32_t ids[MOST];
    char text[1 << 14];
    size_t n, bytes;
    uint32_t end, stop, calls;
    uint64_t made_bytes;
} run;

static void take(run *r, const lq_step_item *t) {
    ck_assert(t->n >= 1 || t->end);
    memcpy(r->ids + r->n, t->ids, t->n * sizeof *t->ids);
    memcpy(r->text + r->bytes, t->text, t->bytes);
    r->n += t->n;
    r->bytes += t->bytes;
    r->end = t->end;
    r->stop = t->stop;
    r->made_bytes = t->made_bytes;
    r->calls++;
    ck_assert_uint_eq(t->made, r->n);
    ck_assert_uint_eq(t->made_bytes, r->bytes);
}

/* What is certain of a text so far: all but the beginning of a character, and of a stop string. */
static void check_certain(lq_model *m, const run *r, bool stops) {
    char text[1 << 14];
    size_t bytes = sizeof text;
    ck_assert_int_eq(lq_detokenize(m, r->ids, r->n, LQ_DETOKENIZE_MIDDLE | LQ_DETOKENIZE_STREAM, text, &bytes), LQ_OK);
    if (stops) ck_assert_uint_le(r->bytes, bytes);
    else ck_assert_uint_eq(r->bytes, bytes);
    ck_assert_int_eq(memcmp(r->text, text, r->bytes), 0);
}

static void by_steps(lq_session *s, uint32_t seq, const int32_t *prompt, size_t n, const lq_sampler *o, run *r) {
    const size_t live = live_bytes;
    lq_step_item t = {.size = sizeof t, .sequence = seq, .sampler = o};
    memset(r, 0, sizeof *r);
    if (prompt) ck_assert_msg(lq_sync(s, seq, prompt, n, n - 1) == LQ_OK, "%s", lq_error_detail());
    while (!r->end) {
        ck_assert_msg(lq_step(s, &t, 1) == LQ_OK, "%s", lq_error_detail());
        take(r, &t);
        if (!r->end) check_certain(s->model, r, o->n_stop > 0);
    }
    ck_assert_uint_eq(live_bytes, live);
}

static lq_sampler warm(uint64_t seed, uint32_t most) {
    return (lq_sampler){.size = sizeof(lq_sampler), .temperature = seed ? 0.9f : 0, .top_k = 40, .seed = seed,
                        .max_tokens = most, .ignore_eos = 1};
}

START_TEST(tokens_are_those_of_sample_and_decode) {
    lq_model *const models[] = {model, pocket};
    for (size_t m = 0; m < 2; m++)
        for (uint64_t seed = 0; seed < 4; seed++) {
            lq_session *s = t_session(models[m], (lq_session_options){.context = CONTEXT});
            lq_session *hand = t_session(models[m], (lq_session_options){.context = CONTEXT});
            int32_t prompt[64], ids[40];
            static run r;
            const size_t n = prompt_of(models[m], seed, prompt);
            const lq_sampler o = warm(seed, 40);
            by_hand(hand, 0, prompt, n, &o, ids, 40);
            by_steps(s, 0, prompt, n, &o, &r);
            ck_assert_uint_eq(r.n, 40);
            ck_assert_uint_eq(r.end, LQ_END_LIMIT);
            ck_assert_int_eq(memcmp(r.ids, ids, sizeof ids), 0);
            lq_stats a = {.size = sizeof a}, b = {.size = sizeof b};
            ck_assert_int_eq(lq_session_stats(s, &a), LQ_OK);
            ck_assert_int_eq(lq_session_stats(hand, &b), LQ_OK);
            ck_assert_uint_eq(a.last_logits_hash, b.last_logits_hash);
            ck_assert_uint_eq(a.decode_tokens, b.decode_tokens);
            char text[4096];
            size_t bytes = sizeof text;
            ck_assert_int_eq(lq_detokenize(models[m], ids, 40, LQ_DETOKENIZE_MIDDLE, text, &bytes), LQ_OK);
            ck_assert_uint_eq(r.bytes, bytes);
            ck_assert_int_eq(memcmp(r.text, text, bytes), 0);
            lq_session_close(s);
            lq_session_close(hand);
        }
}
END_TEST

/* Several go on together as each does alone; forks, saved rows and rows that are gone make no difference. */
START_TEST(sequences_go_on_together_as_alone) {
    lq_session *s = t_session(pocket, (lq_session_options){.context = CONTEXT, .sequences = SEQS,
                                                              .max_logits = SEQS});
    lq_session *alone = t_session(pocket, (lq_session_options){.context = CONTEXT});
    lq_step_item items[SEQS];
    lq_sampler o[SEQS];
    static run want, got[SEQS];
    memset(got, 0, sizeof got);
    for (uint32_t i = 0; i < SEQS; i++) {
        int32_t prompt[64];
        const size_t n = prompt_of(pocket, i, prompt);
        o[i] = warm(i, 10 + 3 * i);
        items[i] = (lq_step_item){.size = sizeof *items, .sequence = SEQS - 1 - i, .sampler = &o[i]};
        /* the last one's row alone is kept: the others are evaluated again */
        ck_assert_int_eq(lq_sync(s, SEQS - 1 - i, prompt, n, i == 1 ? n : n - 1), LQ_OK);
    }
    for (uint32_t left = SEQS; left;) {
        for (uint32_t i = 0; i < left; i++) items[i].size = sizeof *items;
        ck_assert_msg(lq_step(s, items, left) == LQ_OK, "%s", lq_error_detail());
        for (uint32_t i = 0; i < left; i++) {
            const uint32_t who = SEQS - 1 - items[i].sequence;
            take(&got[who], &items[i]);
            const float *row;
            int32_t id;
            ck_assert_int_eq(lq_logits(s, items[i].row, &row), LQ_OK);
            ck_assert_int_eq(lq_sample(s, items[i].row, &o[who], &id), LQ_OK);
            ck_assert_int_eq(id, items[i].ids[0]);
        }
        for (uint32_t i = left; i-- > 0;)
            if (items[i].end) items[i] = items[--left];
    }
    for (uint32_t i = 0; i < SEQS; i++) {
        int32_t prompt[64];
        const size_t n = prompt_of(pocket, i, prompt);
        by_steps(alone, 0, prompt, n, &o[i], &want);
        ck_assert_uint_eq(want.n, got[i].n);
        ck_assert_int_eq(memcmp(want.ids, got[i].ids, want.n * sizeof *want.ids), 0);
        ck_assert_uint_eq(want.bytes, got[i].bytes);
        ck_assert_int_eq(memcmp(want.text, got[i].text, want.bytes), 0);
    }
    lq_session_close(s);
    lq_session_close(alone);
}
END_TEST

/* Forks in the middle of a text, cuts, other calls between two steps. */
START_TEST(other_calls_between_steps) {
    lq_session *s = t_session(pocket, (lq_session_options){.context = CONTEXT, .sequences = 2, .max_logits = 2});
    int32_t prompt[64];
    const size_t n = prompt_of(pocket, 1, prompt);
    const lq_sampler o = warm(3, 24);
    static run want, r, r2;
    by_steps(s, 0, prompt, n, &o, &want);
    lq_step_item greedy = {.size = sizeof greedy};
    int32_t best;
    ck_assert_int_eq(lq_sync(s, 0, prompt, n, n - 1), LQ_OK);
    ck_assert_int_eq(lq_sample(s, 0, NULL, &best), LQ_OK);
    ck_assert_int_eq(lq_step(s, &greedy, 1), LQ_OK);
    ck_assert_int_eq(greedy.ids[0], best);
    lq_step_item t = {.size = sizeof t, .sampler = &o}, u = {.size = sizeof u, .sequence = 1, .sampler = &o};
    memset(&r, 0, sizeof r);
    ck_assert_int_eq(lq_sync(s, 0, prompt, n, n - 1), LQ_OK);
    for (int i = 0; i < 10; i++) {
        ck_assert_int_eq(lq_step(s, &t, 1), LQ_OK);
        take(&r, &t);
        lq_seq_info info = {.size = sizeof info};
        ck_assert_int_eq(lq_seq_info_get(s, 0, &info), LQ_OK);
        ck_assert_uint_eq(info.pending, 1);
        ck_assert_uint_eq(info.length, n + (size_t)i + 1);
    }
    ck_assert_int_eq(lq_seq_fork(s, 0, 1), LQ_OK); /* with what was held back */
    r2 = r;
    lq_session_cancel(s);
    const lq_step_item before = t;
    ck_assert_int_eq(lq_step(s, &t, 1), LQ_E_CANCELLED);
    ck_assert_int_eq(memcmp(&t, &before, sizeof t), 0);
    while (!r.end) {
        lq_step_item both[] = {t, u};
        ck_assert_int_eq(lq_step(s, both, 2), LQ_OK);
        take(&r, &both[0]);
        take(&r2, &both[1]);
    }
    ck_assert_int_eq(memcmp(r.ids, want.ids, want.n * sizeof *want.ids), 0);
    ck_assert_int_eq(memcmp(r2.ids, want.ids, want.n * sizeof *want.ids), 0);
    ck_assert_uint_eq(r2.bytes, want.bytes);
    ck_assert_int_eq(memcmp(r2.text, want.text, want.bytes), 0);
    /* a cut: the same tokens again, with a row that has to be made */
    ck_assert_int_eq(lq_seq_truncate(s, 0, (uint32_t)n + 7), LQ_OK);
    ck_assert_int_eq(lq_step(s, &t, 1), LQ_OK);
    ck_assert_uint_eq(t.made, 1);
    ck_assert_int_eq(t.ids[0], want.ids[7]);
    /* the token that waits is evaluated before those of lq_decode */
    ck_assert_int_eq(t_decode(s, want.ids + 8, 3, 2), LQ_OK);
    ck_assert_int_eq(lq_step(s, &t, 1), LQ_OK);
    ck_assert_int_eq(t.ids[0], want.ids[11]);
    lq_session_close(s);
}
END_TEST

/* By definition: the first byte at which one of the strings ends, and of those the longest. */
static size_t plain_search(const char *text, size_t n, const char *const *stop, uint32_t n_stop, uint32_t *which) {
    for (size_t end = 1; end <= n; end++) {
        size_t best = 0;
        for (uint32_t i = 0; i < n_stop; i++) {
            const size_t k = strlen(stop[i]);
            if (k > end || k <= best || memcmp(text + end - k, stop[i], k) != 0) continue;
            best = k;
            *which = i;
        }
        if (best) return end - best;
    }
    return SIZE_MAX;
}

START_TEST(stop_strings_end_texts_wherever_they_lie) {
    lq_model *const models[] = {model, pocket};
    uint64_t seed = 5;
    uint32_t across = 0;
    for (uint32_t round = 0; round < (T_SLOW || t_emulated() ? 16 : 60); round++) {
        lq_model *m = models[round % 2];
        lq_session *s = t_session(m, (lq_session_options){.context = CONTEXT});
        int32_t prompt[64];
        const size_t n = prompt_of(m, round, prompt);
        lq_sampler o = warm(round / 2, 50);
        static run all, r;
        char strings[3][40];
        const char *stop[3];
        by_steps(s, 0, prompt, n, &o, &all);
        for (uint32_t i = 0; i < 3; i++) { /* some of the text, and something that only begins as it does */
            const size_t at = t_rand(&seed) % (all.bytes - 1), want = 1 + t_rand(&seed) % 12;
            size_t k = Q_MIN(want, all.bytes - at);
            const char *nul = memchr(all.text + at, 0, k);
            if (nul) k = (size_t)(nul - (all.text + at));
            memcpy(strings[i], all.text + at, k);
            strings[i][k] = 0;
            if (i == 2 || k == 0) snprintf(strings[i] + k, 8, "\xC3");
            stop[i] = strings[i];
        }
        o.stop = stop;
        o.n_stop = 3;
        by_steps(s, 0, prompt, n, &o, &r);
        uint32_t which = 9;
        const size_t bytes = plain_search(all.text, all.bytes, stop, 3, &which);
        if (bytes == SIZE_MAX) {
            ck_assert_uint_eq(r.end, LQ_END_LIMIT);
            ck_assert_uint_eq(r.bytes, all.bytes);
        } else {
            ck_assert_uint_eq(r.end, LQ_END_STOP);
            ck_assert_uint_eq(r.stop, which);
            ck_assert_uint_eq(r.bytes, bytes);
            ck_assert_uint_eq(r.made_bytes, bytes);
            across += r.n > 1 && strlen(stop[which]) > 1;
        }
        ck_assert_int_eq(memcmp(r.text, all.text, r.bytes), 0);
        ck_assert_int_eq(memcmp(r.ids, all.ids, r.n * sizeof *r.ids), 0);
        ck_assert_uint_eq(lq_seq_length(s, 0), n + r.n); /* the tokens of the string are there */
        lq_session_close(s);
    }
    ck_assert_uint_gt(across, 2);
}
END_TEST

/* Any bytes, cut into tokens anywhere: characters whole, strings found. */
START_TEST(bytes_come_out_when_they_are_certain) {
    static const char *const words[] = {"a",    "b",        "ab", "\xC3\xA9", "\xE2\x82\xAC", "\xF0\x9F\x98\x80",
                                        "\xFF", "\xE2\x82", " "};
    static const char *const stops[] = {"abab", "ba\xE2\x82\xAC", "\x82\xAC\xF0", "aabb", "b", "\xA9\x61"};
    uint64_t seed = 1;
    for (uint32_t round = 0; round < 3000; round++) {
        char text[256], out[1024];
        size_t n = 0, at = 0, used = 0;
        uint32_t which = 0;
        int32_t stop = -1;
        while (n < 60) {
            const char *w = words[t_rand(&seed) % Q_COUNT(words)];
            memcpy(text + n, w, strlen(w));
            n += strlen(w);
        }
        const uint32_t n_stop = (uint32_t)(t_rand(&seed) % 5);
        const lq_sampler o = {.size = sizeof o, .stop = stops, .n_stop = n_stop};
        q_answer a = {.begun = true};
        const size_t want = plain_search(text, n, stops, n_stop, &which);
        while (at < n && stop < 0) {
            const size_t piece = 1 + t_rand(&seed) % 5, some = Q_MIN(piece, n - at);
            stop = q_answer_add(&a, &o, text + at, some, out, &used);
            at += some;
            const uint32_t open = q_text_incomplete((const uint8_t *)out, used);
            /* a character that is not whole will never be */
            ck_assert(stop >= 0 || open == 0 || (used < at && (text[used] & 0xC0) != 0x80));
            if (n_stop == 0) ck_assert_uint_eq(used, at - q_text_incomplete((const uint8_t *)text, at));
            if (want != SIZE_MAX) ck_assert_uint_le(used, want);
            ck_assert_uint_eq(a.bytes, used);
        }
        q_answer_end(&a, out, &used);
        ck_assert_int_eq(memcmp(out, text, used), 0);
        if (want == SIZE_MAX) ck_assert(stop == -1 && used == n);
        else ck_assert(stop == (int32_t)which && used == want);
    }
}
END_TEST

START_TEST(the_other_ends) {
    lq_session *s = t_session(model, (lq_session_options){.context = 40});
    int32_t prompt[64];
    static run r;
    const size_t n = prompt_of(model, 3, prompt);
    lq_sampler o = warm(7, 0);
    by_steps(s, 0, prompt, n, &o, &r);
    ck_assert_uint_eq(r.end, LQ_END_CONTEXT);
    ck_assert_uint_eq(r.n, 40 - n);
    ck_assert_uint_eq(lq_seq_length(s, 0), 40);
    lq_step_item t = {.size = sizeof t, .sampler = &o};
    ck_assert_int_eq(lq_step(s, &t, 1), LQ_OK); /* and still so */
    ck_assert(t.end == LQ_END_CONTEXT && t.n == 0 && t.bytes == 0);
    lq_session_close(s);
    /* the same model, whose fifth token now means the end */
    const int32_t fifth = r.ids[4];
    lq_model *other = open_tiny("eos.gguf", (uint32_t)fifth);
    s = t_session(other, (lq_session_options){.context = 40});
    o.ignore_eos = 0;
    uint32_t first = 0;
    while (r.ids[first] != fifth) first++;
    static run e;
    by_steps(s, 0, prompt, n, &o, &e);
    ck_assert_uint_eq(e.end, LQ_END_EOS);
    ck_assert_uint_eq(e.n, first);
    ck_assert_uint_eq(lq_seq_length(s, 0), n + first);
    ck_assert_int_eq(lq_step(s, &t, 1), LQ_OK);
    ck_assert(t.end == LQ_END_EOS && t.n == 0);
    o.ignore_eos = 1;
    by_steps(s, 0, prompt, n, &o, &e);
    ck_assert_uint_eq(e.end, LQ_END_CONTEXT);
    lq_session_close(s);
    lq_model_close(other);
}
END_TEST

/* Who stops a text, by a request to cancel or by asking no further, can still have what was held back. */
START_TEST(a_limit_that_is_reached_gives_what_was_held_back) {
    lq_session *s = t_session(model, (lq_session_options){.context = CONTEXT});
    int32_t prompt[64];
    static run whole, r;
    char string[64];
    const size_t n = prompt_of(model, 0, prompt);
    lq_sampler o = warm(11, 40);
    by_steps(s, 0, prompt, n, &o, &whole);
    ck_assert_uint_gt(whole.bytes, 20);
    snprintf(string, sizeof string, "%.20s\x01\x01", whole.text); /* begins as the text does, which never has its end */
    const char *const stops[] = {string};
    o.stop = stops, o.n_stop = 1;
    lq_step_item t = {.size = sizeof t, .sampler = &o};
    memset(&r, 0, sizeof r);
    ck_assert_int_eq(lq_sync(s, 0, prompt, n, n - 1), LQ_OK);
    for (int i = 0; i < 3; i++) {
        ck_assert_int_eq(lq_step(s, &t, 1), LQ_OK);
        take(&r, &t);
    }
    ck_assert_uint_eq(r.bytes, 0);
    lq_session_cancel(s);
    ck_assert_int_eq(lq_step(s, &t, 1), LQ_E_CANCELLED);
    o.max_tokens = r.n;
    ck_assert_int_eq(lq_step(s, &t, 1), LQ_OK);
    take(&r, &t);
    ck_assert(t.end == LQ_END_LIMIT && t.n == 0);
    char text[256];
    size_t bytes = sizeof text;
    ck_assert_int_eq(lq_detokenize(model, r.ids, r.n, LQ_DETOKENIZE_MIDDLE, text, &bytes), LQ_OK);
    ck_assert(bytes > 0 && r.bytes == bytes && memcmp(r.text, text, bytes) == 0);
    lq_session_close(s);
}
END_TEST

static void refused(lq_session *s, lq_step_item *t, size_t n, const char *words) {
    const lq_status st = lq_step(s, t, n);
    ck_assert_msg(st == LQ_E_ARG, "%s: %s", words, lq_status_name(st));
    ck_assert_msg(strstr(lq_error_detail(), words) != NULL, "%s", lq_error_detail());
}

START_TEST(errors_say_what) {
    lq_session *s = t_session(model, (lq_session_options){.sequences = 3, .max_logits = 2});
    int32_t prompt[64];
    const size_t n = prompt_of(model, 0, prompt);
    char huge[600];
    memset(huge, 'x', sizeof huge - 1);
    huge[sizeof huge - 1] = 0;
    const char *const none[] = {"end", NULL}, *const empty[] = {""}, *const long_one[] = {huge};
    lq_step_item t[3] = {{.size = sizeof *t}, {.size = sizeof *t, .sequence = 1}, {.size = sizeof *t, .sequence = 2}};
    refused(s, t, 1, "sequence 0 is empty");
    for (uint32_t i = 0; i < 3; i++) ck_assert_int_eq(lq_sync(s, i, prompt, n, n - 1), LQ_OK);
    refused(s, t, 0, "no items");
    refused(s, t, 3, "max_logits");
    t[1].sequence = 0;
    refused(s, t, 2, "item 1 is of sequence 0");
    t[1].sequence = 7;
    refused(s, t, 2, "the session has 3");
    t[1] = (lq_step_item){.size = 8, .sequence = 1};
    refused(s, t, 2, "of item 1 is 8");
    t[0].size = 8;
    refused(s, t, 1, "lq_step_item.size");
    t[0].size = sizeof *t;
    lq_sampler o = {.size = sizeof o, .stop = none, .n_stop = 2};
    t[0].sampler = &o;
    refused(s, t, 1, "stop string 1 is empty");
    o.stop = empty, o.n_stop = 1;
    refused(s, t, 1, "stop string 0 is empty");
    o.stop = long_one;
    refused(s, t, 1, "more than 512 bytes");
    o.stop = NULL;
    refused(s, t, 1, "array is NULL");
    o.stop = none, o.n_stop = 1000;
    refused(s, t, 1, "at most 256");
    o = (lq_sampler){.size = sizeof o, .temperature = -1};
    refused(s, t, 1, "temperature");
    o = (lq_sampler){.size = sizeof o, .ignore_eos = 2};
    refused(s, t, 1, "ignore_eos");
    ck_assert_int_eq(lq_step(NULL, t, 1), LQ_E_ARG);
    lq_session_close(s);
}
END_TEST

static Suite *suite(void) {
    Suite *s = suite_create("step");
    TCase *t = tcase_create("step");
    tcase_add_checked_fixture(t, setup, teardown);
    tcase_set_timeout(t, 600);
    tcase_add_test(t, tokens_are_those_of_sample_and_decode);
    tcase_add_test(t, sequences_go_on_together_as_alone);
    tcase_add_test(t, other_calls_between_steps);
    tcase_add_test(t, stop_strings_end_texts_wherever_they_lie);
    tcase_add_test(t, bytes_come_out_when_they_are_certain);
    tcase_add_test(t, the_other_ends);
    tcase_add_test(t, a_limit_that_is_reached_gives_what_was_held_back);
    tcase_add_test(t, errors_say_what);
    suite_add_tcase(s, t);
    return s;
}
HARNESS_MAIN(suite)
