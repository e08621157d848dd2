/* test_quality.c: what each scheme costs on the bundled model must stay what it was measured to be: every scheme is
 * quantized, and all are scored in one sweep against the FP16 original. */
#include "harness.h"

#include "../include/libquant.h"

#include "../libquant/file.h"

/* Bounds on the mean KL divergence over the C text: what another engine's files of the same types, made without
 * importance, measure on the whole of it (f32, f16, bf16: by reasoning). */
static const struct {
    const char *scheme;
    double most;
} bounds[] = {
    {"f32", 0},
    {"f16", 0},
    {"bf16", 0.00003},
    {"q8_0", 0.000286},
    {"q6_k", 0.001305},
    {"q5_k_m", 0.003107},
    {"q5_1", 0.003579},
    {"q5_0", 0.004333},
    {"q4_k_m", 0.010508},
    {"q4_k_s", 0.011051},
    {"iq4_nl", 0.012554},
    {"q4_1", 0.013285},
    {"iq4_xs", 0.013357},
    {"q4_0", 0.016526},
    {"q3_k_m", 0.032621},
    {"q2_k", 0.146238},
};
enum { N = Q_COUNT(bounds), TOKENS = T_SLOW ? 2048 : 4096 };

static lq_session *open_session(lq_ctx *ctx, const char *path, lq_model **model) {
    const lq_session_options o = {.size = sizeof o, .context = 256, .max_logits = 128};
    lq_session *s = NULL;
    ck_assert_msg(lq_model_open(ctx, path, NULL, model) == LQ_OK, "%s", lq_error_detail());
    ck_assert_msg(lq_session_open(*model, &o, &s) == LQ_OK, "%s", lq_error_detail());
    return s;
}

START_TEST(every_scheme_costs_what_it_did) {
    lq_ctx *ctx;
    lq_model *models[N + 1];
    lq_session *sessions[N + 1];
    char src[4096], path[4096], name[64];
    ck_assert_int_eq(lq_open(NULL, &ctx), LQ_OK);
    size_t files = 0; /* a new scheme needs a bound */
    for (uint32_t i = 0; i < lq_scheme_count(); i++) {
        const char *description = "";
        lq_scheme_name(i, &description);
        files += strncmp(description, "Hugging Face directory", 22) != 0;
    }
    ck_assert_uint_eq(files, N);
    t_path(src, sizeof src, t_root(), "bench/data/pocket");
    for (size_t i = 0; i < N; i++) {
        snprintf(name, sizeof name, "%s.gguf", bounds[i].scheme);
        t_path(path, sizeof path, t_tmp(), name);
        const lq_quantize_options q = {.size = sizeof q, .scheme = bounds[i].scheme};
        ck_assert_msg(lq_quantize(ctx, src, path, &q, NULL) == LQ_OK, "%s", lq_error_detail());
        sessions[i] = open_session(ctx, path, &models[i]);
    }
    sessions[N] = open_session(ctx, src, &models[N]);

    uint8_t *text;
    uint64_t bytes;
    t_path(path, sizeof path, t_root(), "bench/data/text/c.txt");
    ck_assert_int_eq(q_file_slurp(&q_alloc_libc, path, 1 << 24, &text, &bytes), LQ_OK);
    size_t n = bytes + 1;
    int32_t *ids = malloc(n * sizeof *ids);
    ck_assert_int_eq(lq_tokenize(models[N], (const char *)text, bytes, LQ_TOKENIZE_BOS, ids, &n), LQ_OK);
    lq_eval_result ref = {.size = sizeof ref}, r[N];
    for (size_t i = 0; i < N; i++) r[i].size = sizeof r[i];
    const lq_eval_options o = {.size = sizeof o, .window = 256, .max_tokens = TOKENS};
    ck_assert_msg(lq_compare(sessions[N], sessions, N, ids, n, &o, &ref, r) == LQ_OK, "%s", lq_error_detail());
    for (size_t i = 0; i < N; i++) {
        printf("%-8s kld %.6f ppl ratio %.5f same top %.4f\n", bounds[i].scheme, r[i].kld_mean, r[i].ppl_ratio,
               r[i].same_top);
        ck_assert_msg(r[i].kld_mean <= bounds[i].most, "%s: KL divergence %g, was at most %g", bounds[i].scheme,
                      r[i].kld_mean, bounds[i].most);
        /* the log of the ratio estimates the divergence: text sampled from the model itself */
        ck_assert_msg(r[i].ppl_ratio < 1 + 3 * bounds[i].most + 0.003, "%s: ratio %g", bounds[i].scheme,
                      r[i].ppl_ratio);
    }
    for (size_t i = 0; i <= N; i++) {
        lq_session_close(sessions[i]);
        lq_model_close(models[i]);
    }
    q_delete(&q_alloc_libc, text);
    free(ids);
    lq_close(ctx);
}
END_TEST

static Suite *suite(void) {
    Suite *s = suite_create("quality");
    TCase *c = tcase_create("schemes");
    tcase_set_timeout(c, 1800);
    tcase_add_test(c, every_scheme_costs_what_it_did);
    suite_add_tcase(s, c);
    return s;
}
HARNESS_MAIN(suite)
