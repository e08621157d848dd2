/* test_embed.c: embeddings are those of an independent program, and the same bits for any batch, company, number of
 * threads and what was known before; the plan counts the session, and nothing is allocated after open. */
#include "help_session.h"

#include <jansson.h>
#include <math.h>

enum { WIDTH = 256, EVERY = 5, CONTEXT = 128 };

static lq_ctx *ctx;
static lq_model *model;
static json_t *cases;

static void setup(void) {
    char path[4096];
    static const lq_allocator alloc = {live_alloc, live_free, NULL};
    const lq_options o = {.size = sizeof o, .threads = 2, .allocator = &alloc};
    ck_assert_msg(lq_open(&o, &ctx) == LQ_OK, "%s", lq_error_detail());
    t_path(path, sizeof path, t_root(), "bench/data/pocket");
    ck_assert_msg(lq_model_open(ctx, path, NULL, &model) == LQ_OK, "%s", lq_error_detail());
    json_error_t e;
    json_t *g = json_load_file(t_path(path, sizeof path, t_root(), "tests/golden/embeddings.json"), 0, &e);
    ck_assert_msg(g != NULL, "%s", e.text);
    cases = json_incref(json_object_get(g, "cases"));
    json_decref(g);
}
static void teardown(void) {
    json_decref(cases);
    lq_model_close(model);
    lq_close(ctx);
    ck_assert_uint_eq(live_bytes, 0);
}

static lq_session *open_session(lq_session_options o) {
    o.embed = 1;
    if (!o.context) o.context = CONTEXT;
    if (!o.threads) o.threads = 2;
    return t_session(model, o);
}

static size_t ids_of(size_t i, int32_t *ids) {
    const json_t *a = json_object_get(json_array_get(cases, i), "prompt_ids");
    for (size_t j = 0; j < json_array_size(a); j++) ids[j] = (int32_t)json_integer_value(json_array_get(a, j));
    return json_array_size(a);
}

static const char *const names[] = {"mean", "last", "first"};

START_TEST(embeddings_are_those_of_another_program) {
    lq_session *s = open_session((lq_session_options){.activations = "f32"});
    ck_assert_uint_ge(json_array_size(cases), 2);
    for (size_t i = 0; i < json_array_size(cases); i++) {
        int32_t ids[CONTEXT];
        const lq_item item = {.ids = ids, .count = ids_of(i, ids)};
        for (uint32_t pooling = 0; pooling < 3; pooling++) {
            const json_t *c = json_object_get(json_array_get(cases, i), names[pooling]),
                         *values = json_object_get(c, "values");
            const double want = json_number_value(json_object_get(c, "length"));
            lq_embed_options o = {.size = sizeof o, .pooling = pooling};
            float out[WIDTH], raw[WIDTH];
            double length = 0, one = 0;
            ck_assert_msg(lq_embed(s, &item, 1, &o, out) == LQ_OK, "%s", lq_error_detail());
            o.no_normalize = 1;
            ck_assert_int_eq(lq_embed(s, &item, 1, &o, raw), LQ_OK);
            for (int k = 0; k < WIDTH; k++) length += (double)raw[k] * raw[k], one += (double)out[k] * out[k];
            ck_assert_double_eq_tol(sqrt(length), want, 2e-5 * want);
            ck_assert_double_eq_tol(one, 1, 1e-6);
            for (size_t k = 0; k < json_array_size(values); k++)
                ck_assert_double_eq_tol(out[EVERY * k], json_number_value(json_array_get(values, k)), 2e-6);
        }
    }
    lq_session_close(s);
}
END_TEST

/* Four texts, one of them long: together, apart, in small passes, with more threads, again. */
START_TEST(the_same_bits_in_any_company) {
    static const struct {
        uint32_t batch, threads, sequences, no_reuse;
    } ways[] = {{0, 1, 4, 0}, {7, 2, 4, 0}, {1, 1, 2, 0}, {33, 2, 1, 1}, {64, 2, 3, 0}};
    static float want[3][4][WIDTH], got[4][WIDTH];
    int32_t ids[4][CONTEXT];
    size_t n[4];
    for (size_t i = 0; i < 4; i++) {
        n[i] = i < json_array_size(cases) ? ids_of(i, ids[i]) : 3;
        if (i >= json_array_size(cases)) memcpy(ids[i], (int32_t[]){1, 9, 70}, 3 * sizeof **ids);
    }
    for (size_t j = n[3]; j < 100; j++) ids[3][j] = (int32_t)(5 + j * j % 4000);
    n[3] = 100;
    for (size_t w = 0; w < Q_COUNT(ways); w++) {
        lq_session *s = open_session((lq_session_options){.batch = ways[w].batch, .threads = ways[w].threads,
                                                          .sequences = ways[w].sequences,
                                                          .no_reuse = ways[w].no_reuse});
        const size_t live = live_bytes;
        for (uint32_t round = 0; round < 2; round++)
            for (uint32_t pooling = 0; pooling < 3; pooling++) {
                const lq_embed_options o = {.size = sizeof o, .pooling = pooling};
                for (size_t at = 0, some; at < 4; at += some) {
                    lq_item items[4];
                    some = Q_MIN((size_t)ways[w].sequences, 4 - at);
                    for (size_t i = 0; i < some; i++)
                        items[i] = (lq_item){.sequence = (uint32_t)(some - 1 - i), .ids = ids[at + i],
                                             .count = n[at + i]};
                    ck_assert_msg(lq_embed(s, items, some, &o, got[at]) == LQ_OK, "%s", lq_error_detail());
                }
                if (w == 0 && round == 0) memcpy(want[pooling], got, sizeof got);
                ck_assert_int_eq(memcmp(want[pooling], got, sizeof got), 0);
            }
        ck_assert_uint_eq(live_bytes, live);
        lq_stats t = {.size = sizeof t};
        ck_assert_int_eq(lq_session_stats(s, &t), LQ_OK);
        if (ways[w].no_reuse == 0) { /* the last token alone needs what is known of a text */
            lq_seq_info info = {.size = sizeof info};
            const lq_embed_options o = {.size = sizeof o, .pooling = LQ_POOL_LAST};
            ck_assert_int_eq(lq_embed(s, &(lq_item){.ids = ids[3], .count = 100}, 1, &o, got[3]), LQ_OK);
            ck_assert_int_eq(lq_seq_info_get(s, 0, &info), LQ_OK);
            ck_assert_uint_eq(info.cached, 96);
            ck_assert_int_eq(memcmp(want[1][3], got[3], sizeof got[3]), 0);
        }
        lq_session_close(s);
    }
}
END_TEST

static void refused(lq_status got, lq_status want, const char *words) {
    ck_assert_msg(got == want, "%s: %s", words, lq_status_name(got));
    ck_assert_msg(strstr(lq_error_detail(), words) != NULL, "%s", lq_error_detail());
}

START_TEST(what_cannot_be_is_refused) {
    lq_session *s = open_session((lq_session_options){.sequences = 2}), *plain = NULL, *none = NULL;
    const lq_session_options po = {.size = sizeof po, .context = CONTEXT};
    ck_assert_int_eq(lq_session_open(model, &po, &plain), LQ_OK);
    int32_t ids[CONTEXT + 1] = {1, 5, 6};
    float out[2 * WIDTH];
    const lq_item items[] = {{.ids = ids, .count = 3}, {.sequence = 1, .ids = ids, .count = 2}, {.sequence = 2}};
    lq_embed_options o = {.size = sizeof o, .pooling = 3};
    refused(lq_embed(plain, items, 1, NULL, out), LQ_E_ARG, "lq_session_options.embed");
    refused(lq_embed(s, items, 1, &o, out), LQ_E_ARG, "pooling 3");
    refused(lq_embed(s, items, 3, NULL, out), LQ_E_ARG, "3 items for 2");
    refused(lq_embed(s, items + 2, 1, NULL, out), LQ_E_ARG, "sequence 2");
    refused(lq_embed(s, items, 0, NULL, out), LQ_E_ARG, "no items");
    refused(lq_embed(s, &(lq_item){.ids = ids}, 1, NULL, out), LQ_E_ARG, "no tokens");
    refused(lq_embed(s, &(lq_item){.ids = ids, .count = CONTEXT + 1}, 1, NULL, out), LQ_E_CONTEXT,
            "exceed the context");
    ids[2] = 4096;
    refused(lq_embed(s, items, 1, NULL, out), LQ_E_ARG, "outside the vocabulary");
    ck_assert_int_eq(lq_embed(s, items + 1, 1, NULL, out), LQ_OK);
    lq_step_item t = {.size = sizeof t, .sequence = 1};
    const float *row;
    lq_eval_result r = {.size = sizeof r};
    refused(lq_step(s, &t, 1), LQ_E_ARG, "no logits");
    refused(lq_evaluate(s, ids, 9, &(lq_eval_options){.size = sizeof(lq_eval_options), .window = 4}, &r), LQ_E_ARG,
            "no logits");
    ck_assert_int_eq(lq_logits(s, 0, &row), LQ_E_ARG);
    lq_session_options wrong = {.size = sizeof wrong, .embed = 1, .overflow = "slide"};
    refused(lq_session_open(model, &wrong, &none), LQ_E_ARG, "embed goes with overflow 'error'");
    wrong = (lq_session_options){.size = sizeof wrong, .embed = 1, .ngram = 2};
    refused(lq_session_open(model, &wrong, &none), LQ_E_ARG, "no tokens to guess");
    wrong = (lq_session_options){.size = sizeof wrong, .embed = 2};
    refused(lq_session_open(model, &wrong, &none), LQ_E_ARG, "embed is 2");
    lq_session_cancel(s);
    ck_assert_int_eq(lq_embed(s, items + 1, 1, NULL, out), LQ_E_CANCELLED);
    lq_session_close(s);
    lq_session_close(plain);
}
END_TEST

static Suite *suite(void) {
    Suite *s = suite_create("embed");
    TCase *t = tcase_create("embed");
    tcase_add_checked_fixture(t, setup, teardown);
    tcase_set_timeout(t, 600);
    tcase_add_test(t, embeddings_are_those_of_another_program);
    tcase_add_test(t, the_same_bits_in_any_company);
    tcase_add_test(t, what_cannot_be_is_refused);
    suite_add_tcase(s, t);
    return s;
}
HARNESS_MAIN(suite)
