/* test_engine.c: whole models through the public API: logits and perplexity against an independent float64 program,
 * the planned run against a straight loop, the same bits for any threads and chunks, limits, cancel, plans in bytes. */
#include "harness.h"
#include "help_model.h"

#include "../libquant/engine.h"

#include <jansson.h>
#include <math.h>
#include <pthread.h>
#include <unistd.h>

static lq_ctx *ctx;
static lq_model *model;

static void open_model(const char *isa) {
    char path[4096];
    const lq_options o = {.size = sizeof o, .threads = 2, .isa = isa};
    ck_assert_msg(lq_open(&o, &ctx) == LQ_OK, "%s", lq_error_detail());
    t_path(path, sizeof path, t_root(), "bench/data/pocket");
    ck_assert_msg(lq_model_open(ctx, path, NULL, &model) == LQ_OK, "%s", lq_error_detail());
}
static void setup(void) { open_model(NULL); }
static void setup_scalar(void) { open_model("scalar"); }
static void teardown(void) {
    lq_model_close(model);
    lq_close(ctx);
}
static lq_session *session(uint32_t context, uint32_t batch, uint32_t logits, uint32_t threads, const char *act) {
    const lq_session_options o = {.size = sizeof o, .context = context, .batch = batch, .max_logits = logits,
                                  .threads = threads, .activations = act, .no_reuse = 1};
    lq_session *s = NULL;
    ck_assert_msg(lq_session_open(model, &o, &s) == LQ_OK, "%s", lq_error_detail());
    return s;
}

/* ---- golden logits */

static json_t *goldens(void) {
    char path[4096];
    json_error_t e;
    json_t *g = json_load_file(t_path(path, sizeof path, t_root(), "tests/golden/logits.json"), 0, &e);
    ck_assert_msg(g != NULL, "%s", e.text);
    return g;
}

static size_t ints(const json_t *a, int32_t *out) {
    const size_t n = json_array_size(a);
    for (size_t i = 0; i < n; i++) out[i] = (int32_t)json_integer_value(json_array_get(a, i));
    return n;
}

/* The largest difference from the golden logits, as a fraction of the largest logit. */
static double worst_difference(const json_t *c, const char *act) {
    int32_t ids[256], positions[8], tokenized[256];
    const size_t n = ints(json_object_get(c, "prompt_ids"), ids), np = ints(json_object_get(c, "positions"), positions);
    const char *text = json_string_value(json_object_get(c, "text"));
    size_t got = Q_COUNT(tokenized);
    ck_assert_int_eq(lq_tokenize(model, text, strlen(text), LQ_TOKENIZE_BOS, tokenized, &got), LQ_OK);
    ck_assert_uint_eq(got, n);
    ck_assert_mem_eq(tokenized, ids, n * sizeof *ids);
    lq_session *s = session(256, 256, (uint32_t)n, 2, act);
    ck_assert_msg(t_decode(s, ids, n, 0) == LQ_OK, "%s", lq_error_detail());
    double worst = 0;
    for (size_t p = 0; p < np; p++) {
        const float *row;
        ck_assert_int_eq(lq_logits(s, (uint32_t)positions[p], &row), LQ_OK);
        const double top = json_number_value(json_array_get(json_object_get(c, "max_abs"), p));
        const json_t *want = json_array_get(json_object_get(c, "logits"), p);
        for (size_t i = 0; i < json_array_size(want); i++)
            worst = fmax(worst, fabs((double)row[7 + 43 * i] - json_number_value(json_array_get(want, i))) / top);
        int32_t best = 0, top5[5];
        for (int32_t i = 1; i < 4096; i++)
            if (row[i] > row[best]) best = i;
        ints(json_array_get(json_object_get(c, "top5"), p), top5);
        ck_assert_int_eq(best, top5[0]);
    }
    lq_session_close(s);
    return worst;
}

START_TEST(logits_match_float64_forward) {
    json_t *g = goldens();
    for (size_t i = 0; i < json_array_size(json_object_get(g, "cases")); i++) {
        const double d = worst_difference(json_array_get(json_object_get(g, "cases"), i), "f32");
        ck_assert_msg(d <= 2e-5, "case %zu: %g", i, d);
    }
    json_decref(g);
}
END_TEST

START_TEST(greedy_continuation_matches) {
    json_t *g = goldens();
    for (size_t k = 0; k < json_array_size(json_object_get(g, "cases")); k++) {
        const json_t *c = json_array_get(json_object_get(g, "cases"), k);
        int32_t ids[256], want[64], id;
        const size_t n = ints(json_object_get(c, "prompt_ids"), ids), m = ints(json_object_get(c, "greedy_ids"), want);
        lq_session *s = session(256, 256, 1, 2, "f32");
        const lq_sampler greedy = {.size = sizeof greedy};
        ck_assert_int_eq(t_decode(s, ids, n, n - 1), LQ_OK);
        for (size_t i = 0; i < m; i++) {
            ck_assert_int_eq(lq_sample(s, 0, &greedy, &id), LQ_OK);
            ck_assert_msg(id == want[i], "case %zu, token %zu: %d, not %d", k, i, id, want[i]);
            ck_assert_int_eq(t_decode(s, &id, 1, 0), LQ_OK);
        }
        lq_session_close(s);
    }
    json_decref(g);
}
END_TEST

/* ---- perplexity: values of the FP16 weights in float64 (an independent program) */

static int32_t *text_ids(const char *name, size_t *n) {
    char path[4096];
    uint8_t *data;
    uint64_t bytes;
    snprintf(path, sizeof path, "%s/bench/data/text/%s", t_root(), name);
    ck_assert_int_eq(q_file_slurp(&q_alloc_libc, path, 1 << 24, &data, &bytes), LQ_OK);
    *n = bytes + 1;
    int32_t *ids = malloc(*n * sizeof *ids);
    ck_assert_int_eq(lq_tokenize(model, (const char *)data, bytes, LQ_TOKENIZE_BOS, ids, n), LQ_OK);
    q_delete(&q_alloc_libc, data);
    return ids;
}

static const struct {
    const char *file;
    double ppl, se;
    size_t tokens;
} texts[] = {
    {"prose.txt", 40.36962, 0.7961, 41095},
    {"technical.txt", 37.55533, 0.7613, 41088},
    {"c.txt", 22.78526, 0.4773, 41124},
    {"python.txt", 28.36976, 0.5785, 41039},
};
START_TEST(f16_perplexity_matches_float64) {
    if (t_emulated()) T_SKIP("an emulator does not score %s", texts[_i].file);
    if (T_SLOW) T_SKIP("a slow build scores no text: %s", texts[_i].file);
    size_t n;
    int32_t *ids = text_ids(texts[_i].file, &n);
    ck_assert_msg(n == texts[_i].tokens || n == texts[_i].tokens + 1, "%zu tokens", n);
    lq_session *s = session(256, 256, 128, 2, NULL);
    const lq_eval_options o = {.size = sizeof o, .window = 256};
    lq_eval_result r = {.size = sizeof r};
    ck_assert_msg(lq_evaluate(s, ids, n, &o, &r) == LQ_OK, "%s", lq_error_detail());
    ck_assert_uint_eq(r.tokens, 20320);
    ck_assert_msg(fabs(r.ppl / texts[_i].ppl - 1) < 1e-3, "%s: %.5f, not %.5f", texts[_i].file, r.ppl, texts[_i].ppl);
    ck_assert_msg(fabs(r.ppl_se / texts[_i].se - 1) < 1e-2, "error %.4f, not %.4f", r.ppl_se, texts[_i].se);
    lq_session_close(s);
    free(ids);
}
END_TEST

START_TEST(compare_with_itself_is_zero) {
    if (t_emulated()) T_SKIP("an emulator does not score the same text twice");
    size_t n;
    int32_t *ids = text_ids("c.txt", &n);
    lq_session *a = session(256, 256, 128, 2, NULL), *b = session(256, 100, 128, 1, NULL);
    const lq_eval_options o = {.size = sizeof o, .window = 256, .max_tokens = 1024};
    lq_eval_result ref = {.size = sizeof ref}, r = {.size = sizeof r};
    ck_assert_int_eq(lq_compare(a, &b, 1, ids, n, &o, &ref, &r), LQ_OK);
    ck_assert_double_eq(r.kld_mean, 0);
    ck_assert_double_eq(r.kld_max, 0);
    ck_assert_double_eq(r.same_top, 1);
    ck_assert_double_eq(r.ppl_ratio, 1);
    ck_assert_double_eq(r.ppl, ref.ppl);
    ck_assert_uint_eq(r.tokens, 4 * 127);
    ck_assert_int_eq(lq_compare(a, &a, 1, ids, n, &o, NULL, &r), LQ_E_ARG);
    lq_session_close(a);
    lq_session_close(b);
    free(ids);
}
END_TEST

START_TEST(score_all_counts_every_position) {
    size_t n;
    int32_t *ids = text_ids("c.txt", &n);
    lq_session *s = session(256, 256, 256, 2, NULL);
    const lq_eval_options o = {.size = sizeof o, .window = 128, .max_tokens = 512, .score_all = 1};
    lq_eval_result r = {.size = sizeof r};
    ck_assert_int_eq(lq_evaluate(s, ids, n, &o, &r), LQ_OK);
    ck_assert_uint_eq(r.tokens, 4 * 127);
    ck_assert_double_eq_tol(r.ppl, exp(r.nll), 1e-9);
    const lq_eval_options tooshort = {.size = sizeof tooshort, .window = 256};
    ck_assert_int_eq(lq_evaluate(s, ids, 255, &tooshort, &r), LQ_E_ARG);
    ck_assert_ptr_nonnull(strstr(lq_error_detail(), "256")); /* names the tokens required */
    lq_session_close(s);
    free(ids);
}
END_TEST

/* ---- the same bits, whatever the threads, the chunks, the batch */

static uint32_t hash_of(uint32_t batch, uint32_t threads, const size_t *cuts, const char *act) {
    size_t n;
    int32_t *ids = text_ids("prose.txt", &n);
    lq_session *s = session(256, batch, 1, threads, act);
    size_t done = 0;
    for (size_t i = 0; cuts[i]; i++) {
        ck_assert_int_eq(t_decode(s, ids + done, cuts[i], cuts[i] - 1), LQ_OK);
        done += cuts[i];
    }
    ck_assert_uint_eq(done, 200);
    ck_assert_uint_eq(lq_seq_length(s, 0), 200);
    lq_stats st = {.size = sizeof st};
    lq_session_stats(s, &st);
    lq_session_close(s);
    free(ids);
    return st.last_logits_hash;
}

START_TEST(same_bits_for_any_threads_and_chunks) {
    if (t_emulated()) T_SKIP("an emulator does not decode 200 tokens six times over");
    static const size_t whole[] = {200, 0}, thirds[] = {67, 67, 66, 0}, odd[] = {1, 31, 33, 64, 70, 1, 0};
    static const char *const acts[] = {"f32", NULL};
    const uint32_t want = hash_of(256, 1, whole, acts[_i]);
    ck_assert_uint_ne(want, 0);
    ck_assert_uint_eq(hash_of(256, 2, whole, acts[_i]), want);
    ck_assert_uint_eq(hash_of(256, 3, thirds, acts[_i]), want);
    ck_assert_uint_eq(hash_of(256, 2, odd, acts[_i]), want);
    ck_assert_uint_eq(hash_of(16, 2, odd, acts[_i]), want);
    ck_assert_uint_eq(hash_of(7, 4, whole, acts[_i]), want);
}
END_TEST

START_TEST(truncate_and_again_gives_the_same_bits) {
    size_t n;
    int32_t *ids = text_ids("prose.txt", &n);
    lq_session *s = session(256, 64, 1, 2, NULL);
    lq_stats st = {.size = sizeof st};
    ck_assert_int_eq(t_decode(s, ids, 90, 89), LQ_OK);
    lq_session_stats(s, &st);
    const uint32_t want = st.last_logits_hash;
    ck_assert_int_eq(t_decode(s, ids + 500, 60, 59), LQ_OK);
    ck_assert_int_eq(lq_seq_truncate(s, 0, 151), LQ_E_ARG);
    ck_assert_int_eq(lq_seq_truncate(s, 0, 33), LQ_OK);
    ck_assert_int_eq(t_decode(s, ids + 33, 57, 56), LQ_OK);
    lq_session_stats(s, &st);
    ck_assert_uint_eq(st.last_logits_hash, want);
    lq_session_close(s);
    free(ids);
}
END_TEST

/* ---- the planned run against a straight loop over the reference */

START_TEST(plan_equals_straight_loop) {
    enum { N = 37 };
    const q_session_shape shape = {.context = 64, .batch = 64, .max_logits = 64, .threads = 1, .seqs = 1,
                                   .f32_activations = true, .kv_k = q_kv_kind_find("f32"), .kv_v = q_kv_kind_find("f32")};
    q_arena arena = {.alloc = &q_alloc_libc};
    q_plan *p;
    ck_assert_int_eq(q_plan_build(model, &shape, &arena, &p), LQ_OK);
    float *slots[64] = {0};
    for (int32_t i = 1; i < p->n_slots; i++) slots[i] = calloc((size_t)p->slot_width[i] * N, sizeof(float));
    uint8_t *kv[4] = {0};
    uint32_t pages[2] = {1, 0}; /* any order of pages */
    const uint32_t *tables[4] = {pages, pages, pages, pages};
    for (int32_t i = 0; i < p->n_kv; i++) kv[i] = calloc(p->kv[i].pages, p->kv[i].page_bytes);
    int32_t ids[N], pos[N], seq[N] = {0}, out[1] = {N - 1};
    for (int i = 0; i < N; i++) {
        ids[i] = i == 0 ? 1 : 300 + 17 * i;
        pos[i] = i;
    }
    float *logits = calloc(4096, sizeof *logits);
    const q_seq_ref sr = {.pages = tables};
    const q_batch b = {.n = N, .ids = ids, .pos = pos, .seq = seq, .seqs = &sr, .n_seqs = 1, .n_out = 1, .out = out,
                       .logits = logits};
    size_t scratch = 0;
    for (int32_t i = 0; i < p->n_insts; i++) scratch = Q_MAX(scratch, q_ref_scratch(&p->insts[i], N));
    void *mem = aligned_alloc(64, q_round_up(scratch + 64, 64));
    const q_exec e = {.plan = p, .batch = &b, .slots = slots, .kv = kv, .scratch = mem, .scratch_bytes = scratch};
    for (int32_t i = 0; i < p->n_insts; i++)
        q_ops[p->insts[i].op].ref(&p->insts[i], &e, 0, q_op_units(&p->insts[i], N, 1));
    lq_session *s = session(64, 64, 1, 2, "f32");
    ck_assert_int_eq(t_decode(s, ids, N, N - 1), LQ_OK);
    const float *got;
    ck_assert_int_eq(lq_logits(s, 0, &got), LQ_OK);
    double num = 0, den = 0;
    for (int i = 0; i < 4096; i++) {
        num += pow((double)got[i] - (double)logits[i], 2);
        den += pow((double)logits[i], 2);
    }
    ck_assert_msg(num / den <= 1e-9, "NMSE %g", num / den);
    lq_session_close(s);
    for (int i = 0; i < 64; i++) free(slots[i]);
    for (int i = 0; i < 4; i++) free(kv[i]);
    free(logits);
    free(mem);
    q_arena_free(&arena);
}
END_TEST

/* ---- limits, cancel, arguments, bytes */

START_TEST(context_overflow_names_both_numbers) {
    lq_session *s = session(40, 16, 1, 1, NULL);
    int32_t ids[64];
    for (int i = 0; i < 64; i++) ids[i] = 5 + i;
    ck_assert_int_eq(t_decode(s, ids, 30, 29), LQ_OK);
    ck_assert_int_eq(t_decode(s, ids, 11, 10), LQ_E_CONTEXT);
    ck_assert_ptr_nonnull(strstr(lq_error_detail(), "11"));
    ck_assert_ptr_nonnull(strstr(lq_error_detail(), "40"));
    ck_assert_uint_eq(lq_seq_length(s, 0), 30); /* nothing was evaluated, nothing dropped */
    ck_assert_int_eq(t_decode(s, ids, 10, 9), LQ_OK);
    lq_session_close(s);
    const lq_session_options far = {.size = sizeof far, .context = 257};
    ck_assert_int_eq(lq_session_open(model, &far, &s), LQ_E_CONTEXT);
}
END_TEST

START_TEST(bad_arguments_are_refused) {
    lq_session *s = session(64, 16, 2, 1, NULL);
    int32_t ids[4] = {1, 2, 4096, 3};
    ck_assert_int_eq(t_decode(s, ids, 4, 3), LQ_E_ARG);
    ids[2] = -1;
    ck_assert_int_eq(t_decode(s, ids, 4, 3), LQ_E_ARG);
    ids[2] = 7;
    ck_assert_int_eq(t_decode(s, ids, 4, 5), LQ_E_ARG);
    ck_assert_int_eq(t_decode(s, ids, 4, 1), LQ_E_ARG); /* three rows, two kept */
    ck_assert_int_eq(t_decode(s, ids, 0, 0), LQ_E_ARG);
    ck_assert_int_eq(t_decode(NULL, ids, 1, 0), LQ_E_ARG);
    ck_assert_int_eq(t_decode(s, ids, 4, 4), LQ_OK); /* no logits wanted */
    const float *row = NULL;
    ck_assert_int_eq(lq_logits(s, 0, &row), LQ_E_ARG);
    ck_assert_ptr_null(row);
    ck_assert_int_eq(t_decode(s, ids, 4, 2), LQ_OK);
    ck_assert_int_eq(lq_logits(s, 1, &row), LQ_OK);
    ck_assert_int_eq(lq_logits(s, 2, &row), LQ_E_ARG);
    lq_session_close(s);
    lq_session_close(NULL);
    lq_model_close(NULL);
    lq_close(NULL);
    ck_assert_int_eq(lq_open(NULL, NULL), LQ_E_ARG);
    lq_ctx *c;
    const lq_options nosize = {0};
    ck_assert_int_eq(lq_open(&nosize, &c), LQ_E_ARG);
    const lq_options isa = {.size = sizeof isa, .isa = "sse9"};
    ck_assert_int_ne(lq_open(&isa, &c), LQ_OK);
    ck_assert_ptr_nonnull(strstr(lq_error_detail(), "sse9"));
    const lq_session_options act = {.size = sizeof act, .activations = "f8"};
    ck_assert_int_eq(lq_session_open(model, &act, &s), LQ_E_ARG);
}
END_TEST

START_TEST(older_and_newer_structs_are_understood) {
    struct {
        lq_model_info info;
        uint64_t later;
    } newer = {.info = {.size = sizeof newer}, .later = 99};
    ck_assert_int_eq(lq_model_info_get(model, &newer.info), LQ_OK);
    ck_assert_uint_eq(newer.info.size, sizeof newer);
    ck_assert_uint_eq(newer.later, 0); /* a field this library does not know reads as zero */
    ck_assert_uint_eq(newer.info.layers, 6);
    lq_model_info older;
    memset(&older, 0x55, sizeof older);
    older.size = offsetof(lq_model_info, layers);
    ck_assert_int_eq(lq_model_info_get(model, &older), LQ_OK);
    ck_assert_str_eq(older.architecture, "llama");
    ck_assert_uint_eq(older.layers, 0x55555555); /* beyond the caller's size: untouched */
    struct {
        lq_session_options o;
        uint64_t later;
    } opts = {.o = {.size = sizeof opts}, .later = 1};
    lq_session *s;
    ck_assert_int_eq(lq_session_open(model, &opts.o, &s), LQ_E_ARG); /* a wish we cannot know is not ignored */
}
END_TEST

START_TEST(cancel_stops_the_next_call_once) {
    lq_session *s = session(256, 256, 1, 2, NULL);
    int32_t ids[200];
    for (int i = 0; i < 200; i++) ids[i] = 5 + i;
    lq_session_cancel(s);
    ck_assert_int_eq(t_decode(s, ids, 200, 199), LQ_E_CANCELLED);
    ck_assert_uint_eq(lq_seq_length(s, 0), 0);
    ck_assert_int_eq(t_decode(s, ids, 200, 199), LQ_OK);
    lq_session_close(s);
}
END_TEST

static void *cancel_later(void *s) {
    const struct timespec wait = {.tv_nsec = 20000000};
    nanosleep(&wait, NULL);
    lq_session_cancel((lq_session *)s);
    return NULL;
}
START_TEST(cancel_from_another_thread) {
    lq_session *s = session(256, 256, 1, 1, "f32");
    int32_t ids[255];
    for (int i = 0; i < 255; i++) ids[i] = 5 + i;
    pthread_t th;
    ck_assert_int_eq(pthread_create(&th, NULL, cancel_later, s), 0);
    lq_status st = LQ_OK;
    for (int i = 0; i < 2000 && st == LQ_OK; i++) { /* far longer than the wait */
        lq_seq_truncate(s, 0, 0);
        st = t_decode(s, ids, 255, 254);
    }
    pthread_join(th, NULL);
    ck_assert_int_eq(st, LQ_E_CANCELLED);
    lq_session_close(s);
}
END_TEST

/* Threads of their own for long passes: the same bits, what was asked for in plan and session, and of a decoded token at most
 * five barriers a layer and one before the first. */
START_TEST(prefill_may_have_other_threads) {
    static const uint32_t counts[][2] = {{1, 1}, {1, 3}, {3, 1}, {2, 4}, {4, 2}};
    uint32_t want = 0;
    for (size_t i = 0; i < Q_COUNT(counts); i++) {
        const lq_session_options o = {.size = sizeof o, .context = 128, .batch = 32, .threads = counts[i][0],
                                      .threads_prefill = counts[i][1]};
        lq_session *s;
        int32_t ids[70];
        for (int k = 0; k < 70; k++) ids[k] = 9 + 3 * k;
        ck_assert_int_eq(lq_session_open(model, &o, &s), LQ_OK);
        ck_assert_int_eq(t_decode(s, ids, 67, 67), LQ_OK);
        for (int k = 67; k < 70; k++) ck_assert_int_eq(t_decode(s, ids + k, 1, 0), LQ_OK);
        lq_stats st = {.size = sizeof st};
        lq_plan_info plan = {.size = sizeof plan};
        lq_session_info info = {.size = sizeof info};
        ck_assert_int_eq(lq_session_stats(s, &st), LQ_OK);
        ck_assert_int_eq(lq_session_info_get(s, &info), LQ_OK);
        ck_assert_int_eq(lq_model_plan(model, &o, &plan), LQ_OK);
        if (i == 0) want = st.last_logits_hash;
        ck_assert_uint_eq(st.last_logits_hash, want);
        ck_assert(info.threads == counts[i][0] && info.threads_prefill == counts[i][1]);
        ck_assert(plan.threads == counts[i][0] && plan.threads_prefill == counts[i][1]);
        if (counts[i][0] > 1) ck_assert_uint_eq(st.decode_barriers, 3 * (5 * 6 + 1));
        lq_session_close(s);
    }
    /* Where a session says nothing the context does; a session's own `threads` holds for both. */
    lq_plan_info plan = {.size = sizeof plan};
    lq_session_options o = {.size = sizeof o};
    lq_ctx *c;
    lq_model *m;
    char path[4096];
    const lq_options co = {.size = sizeof co, .threads = 1, .threads_prefill = 2}, bad = {.size = sizeof bad, .threads_prefill = 1025};
    ck_assert_int_eq(lq_open(&bad, &c), LQ_E_ARG);
    ck_assert_int_eq(lq_open(&co, &c), LQ_OK);
    ck_assert_int_eq(lq_model_open(c, t_path(path, sizeof path, t_root(), "bench/data/pocket"), NULL, &m), LQ_OK);
    ck_assert_int_eq(lq_model_plan(m, NULL, &plan), LQ_OK);
    ck_assert(plan.threads == 1 && plan.threads_prefill == 2);
    o.threads = 3;
    ck_assert_int_eq(lq_model_plan(m, &o, &plan), LQ_OK);
    ck_assert(plan.threads == 3 && plan.threads_prefill == 3);
    o.threads_prefill = 1025;
    ck_assert_int_eq(lq_model_plan(m, &o, &plan), LQ_E_ARG);
    lq_model_close(m);
    lq_close(c);
}
END_TEST

START_TEST(plan_states_the_bytes_and_decode_allocates_nothing) {
    const lq_allocator hook = {live_alloc, live_free, NULL};
    const lq_options o = {.size = sizeof o, .threads = 2, .allocator = &hook};
    char path[4096];
    lq_ctx *c;
    lq_model *m;
    ck_assert_int_eq(lq_open(&o, &c), LQ_OK);
    ck_assert_int_eq(lq_model_open(c, t_path(path, sizeof path, t_root(), "bench/data/pocket"), NULL, &m), LQ_OK);
    const lq_session_options so = {.size = sizeof so, .context = 256, .batch = 64};
    lq_plan_info plan = {.size = sizeof plan};
    ck_assert_int_eq(lq_model_plan(m, &so, &plan), LQ_OK);
    ck_assert_uint_eq(plan.kv, 6 * 2 * 2 * 64 * 2 * 256); /* layers, K and V, KV heads, width, half, tokens */
    ck_assert_uint_eq(plan.weights, 6819072 * 2);
    const size_t before = live_bytes;
    lq_session *s;
    ck_assert_int_eq(lq_session_open(m, &so, &s), LQ_OK);
    ck_assert_uint_eq(live_bytes - before, plan.kv + plan.activations);
    int32_t ids[100];
    for (int i = 0; i < 100; i++) ids[i] = 5 + i;
    const size_t open_bytes = live_bytes;
    ck_assert_int_eq(t_decode(s, ids, 100, 99), LQ_OK);
    ck_assert_int_eq(t_decode(s, ids, 1, 0), LQ_OK);
    ck_assert_uint_eq(live_bytes, open_bytes);
    lq_session_close(s);
    lq_model_close(m);
    lq_close(c);
    ck_assert_uint_eq(live_bytes, 0);
}
END_TEST

START_TEST(metadata_and_tensors_are_readable) {
    lq_model_info info = {.size = sizeof info};
    ck_assert_int_eq(lq_model_info_get(model, &info), LQ_OK);
    ck_assert_uint_eq(info.parameters, 6819072);
    ck_assert_uint_eq(info.vocabulary, 4096);
    ck_assert_uint_eq(info.context, 256);
    ck_assert_int_eq(info.bos, 1);
    ck_assert_uint_eq(info.add_bos, 1);
    char text[64];
    size_t n = sizeof text;
    ck_assert_int_eq(lq_model_meta(model, "hidden_size", 0, NULL, text, &n), LQ_OK);
    ck_assert_str_eq(text, "256");
    ck_assert_uint_eq(n, 4);
    n = 2;
    ck_assert_int_eq(lq_model_meta(model, "hidden_size", 0, NULL, text, &n), LQ_E_ARG);
    ck_assert_uint_eq(n, 4);
    n = sizeof text;
    ck_assert_int_eq(lq_model_meta(model, "no.such.key", 0, NULL, text, &n), LQ_E_ARG);
    uint64_t bytes = 0;
    bool saw = false;
    for (uint32_t i = 0; i < info.tensors; i++) {
        lq_tensor_info t = {.size = sizeof t};
        ck_assert_int_eq(lq_model_tensor(model, i, &t), LQ_OK);
        bytes += t.bytes;
        if (strcmp(t.role, "ffn_down") == 0) saw = t.shape[0] == 768 && t.shape[1] == 256 && strcmp(t.format, "f16") == 0;
        float row[768];
        ck_assert_int_eq(lq_model_tensor_row(model, i, 0, row), LQ_OK);
        ck_assert(isfinite(row[0]));
    }
    ck_assert(saw);
    ck_assert_uint_eq(bytes, info.weight_bytes);
    lq_tensor_info t = {.size = sizeof t};
    ck_assert_int_eq(lq_model_tensor(model, info.tensors, &t), LQ_E_ARG);
}
END_TEST

START_TEST(sessions_run_in_parallel) {
    size_t n;
    int32_t *ids = text_ids("python.txt", &n);
    lq_session *a = session(256, 64, 1, 2, NULL), *b = session(256, 64, 1, 2, NULL);
    lq_stats sa = {.size = sizeof sa}, sb = {.size = sizeof sb};
    for (int i = 0; i < 4; i++) {
        ck_assert_int_eq(t_decode(a, ids + 50 * i, 50, 49), LQ_OK);
        ck_assert_int_eq(t_decode(b, ids + 50 * i, 50, 49), LQ_OK);
    }
    lq_session_stats(a, &sa);
    lq_session_stats(b, &sb);
    ck_assert_uint_eq(sa.last_logits_hash, sb.last_logits_hash);
    ck_assert_uint_eq(sa.prefill_tokens, 200);
    lq_session_close(a);
    lq_session_close(b);
    free(ids);
}
END_TEST

START_TEST(mapped_and_read_models_are_the_same) {
    static tiny t;
    char path[4096];
    tiny_init(&t, "q8_0");
    tiny_write(&t, t_path(path, sizeof path, t_tmp(), "read.gguf"));
    uint32_t hash[2];
    for (uint32_t i = 0; i < 2; i++) {
        const lq_model_options o = {.size = sizeof o, .no_mmap = i};
        lq_model *m;
        lq_session *s;
        const int32_t ids[] = {1, 50, 60, 70};
        lq_stats st = {.size = sizeof st};
        ck_assert_msg(lq_model_open(ctx, path, &o, &m) == LQ_OK, "%s", lq_error_detail());
        ck_assert_int_eq(lq_session_open(m, NULL, &s), LQ_OK);
        if (i) ck_assert_int_eq(truncate(path, 100), 0); /* a model that was read does not need its file */
        ck_assert_msg(t_decode(s, ids, 4, 3) == LQ_OK, "%s", lq_error_detail());
        lq_session_stats(s, &st);
        hash[i] = st.last_logits_hash;
        lq_session_close(s);
        lq_model_close(m);
    }
    ck_assert_uint_eq(hash[0], hash[1]);
}
END_TEST

START_TEST(tied_model_runs) {
    static tiny t;
    char path[4096];
    tiny_init(&t, "q8_0");
    tiny_drop_tensor(&t, "output.weight");
    tiny_write(&t, t_path(path, sizeof path, t_tmp(), "tied.gguf"));
    lq_model *m;
    ck_assert_msg(lq_model_open(ctx, path, NULL, &m) == LQ_OK, "%s", lq_error_detail());
    lq_session *s;
    ck_assert_int_eq(lq_session_open(m, NULL, &s), LQ_OK);
    const int32_t ids[] = {1, 50, 60};
    ck_assert_msg(t_decode(s, ids, 3, 2) == LQ_OK, "%s", lq_error_detail());
    lq_model_info info = {.size = sizeof info};
    lq_model_info_get(m, &info);
    lq_tensor_info e = {.size = sizeof e};
    lq_model_tensor(m, 0, &e); /* the table is read whole as output, and one row of it as embedding */
    ck_assert_uint_eq(info.bytes_per_token, info.weight_bytes + e.bytes / e.shape[1]);
    lq_session_close(s);
    lq_model_close(m);
}
END_TEST

static Suite *suite(void) {
    Suite *s = suite_create("engine");
    TCase *c = tcase_create("scalar");
    tcase_add_checked_fixture(c, setup_scalar, teardown);
    tcase_set_timeout(c, 900);
    tcase_add_test(c, logits_match_float64_forward);
    tcase_add_test(c, plan_equals_straight_loop);
    suite_add_tcase(s, c);
    c = tcase_create("best isa");
    tcase_add_checked_fixture(c, setup, teardown);
    tcase_set_timeout(c, 900);
    tcase_add_test(c, logits_match_float64_forward);
    tcase_add_test(c, greedy_continuation_matches);
    tcase_add_loop_test(c, f16_perplexity_matches_float64, 0, (int)Q_COUNT(texts));
    tcase_add_test(c, compare_with_itself_is_zero);
    tcase_add_test(c, score_all_counts_every_position);
    tcase_add_loop_test(c, same_bits_for_any_threads_and_chunks, 0, 2);
    tcase_add_test(c, truncate_and_again_gives_the_same_bits);
    tcase_add_test(c, plan_equals_straight_loop);
    tcase_add_test(c, context_overflow_names_both_numbers);
    tcase_add_test(c, bad_arguments_are_refused);
    tcase_add_test(c, older_and_newer_structs_are_understood);
    tcase_add_test(c, cancel_stops_the_next_call_once);
    tcase_add_test(c, cancel_from_another_thread);
    tcase_add_test(c, prefill_may_have_other_threads);
    tcase_add_test(c, plan_states_the_bytes_and_decode_allocates_nothing);
    tcase_add_test(c, metadata_and_tensors_are_readable);
    tcase_add_test(c, sessions_run_in_parallel);
    tcase_add_test(c, mapped_and_read_models_are_the_same);
    tcase_add_test(c, tied_model_runs);
    suite_add_tcase(s, c);
    return s;
}
HARNESS_MAIN(suite)
