/* test_fold_search.c: calibration for schemes with a transform: what the file has, that the factors of awq bring the
 * bundled model's outputs nearer, and that neither threads, files for memory nor a killed process change a byte. */
#include "help_calibrate.h"

#include <math.h>

#include "../libquant/dense.h"
#include "../libquant/fold.h"
#include "../libquant/fold_search.h"
#include "../libquant/importance.h"
#include "../libquant/quantize.h"

static lq_calibrate_options options(const char *scheme) {
    return (lq_calibrate_options){.size = sizeof(lq_calibrate_options), .window = WINDOW, .scheme = scheme, .force = 1,
                                  .dataset = "text.txt"};
}
static const float *tensor(const q_directory *d, const char *name, uint64_t k, uint64_t rows) {
    const q_tensor *t = q_directory_tensor(d, q_str_of(name));
    ck_assert_msg(t != NULL, "no %s", name);
    ck_assert_uint_eq(t->shape[0], k);
    ck_assert_uint_eq(t->rows, rows);
    return (const float *)(const void *)t->data;
}
static bool has(const q_directory *d, const char *name) { return q_directory_tensor(d, q_str_of(name)) != NULL; }

/* ---- what the file has */

START_TEST(factors_and_clips_of_awq) {
    const lq_calibrate_options o = options("awq+q4_0:rtn");
    calibrated(in_tmp(1, "stats.gguf"), 2, &o);
    q_directory *d = directory(paths[1]);
    ck_assert(q_str_is(q_directory_meta(d, Q_FOLD_TRANSFORM)->s, "awq"));
    ck_assert(q_str_is(q_directory_meta(d, Q_HESSIAN_SCHEME)->s, "awq+q4_0:rtn"));
    static const struct { const char *name; uint64_t k, rows; bool folds; } has_[] = {
        {"attn_q", WIDTH, WIDTH, true}, {"attn_k", WIDTH, KV, false}, {"attn_v", WIDTH, KV, false},
        {"attn_output", WIDTH, WIDTH, false} /* query heads share values */, {"ffn_gate", WIDTH, FFN, true},
        {"ffn_up", WIDTH, FFN, false}, {"ffn_down", FFN, WIDTH, true}};
    for (int layer = 0; layer < 2; layer++)
        for (size_t i = 0; i < Q_COUNT(has_); i++) {
            char name[64];
            snprintf(name, sizeof name, "blk.%d.%s.weight.fold", layer, has_[i].name);
            ck_assert_int_eq(has(d, name), has_[i].folds);
            const float *s = has_[i].folds ? tensor(d, name, has_[i].k, 1) : NULL;
            for (uint64_t j = 0; s && j < has_[i].k; j++) ck_assert(s[j] > 0.0f && isfinite(s[j]));
            snprintf(name, sizeof name, "blk.%d.%s.weight.clip", layer, has_[i].name);
            const float *c = tensor(d, name, has_[i].k / 32, has_[i].rows);
            for (uint64_t j = 0; j < has_[i].k / 32 * has_[i].rows; j++) ck_assert(c[j] > 0.0f && c[j] <= 0x1p40f);
            snprintf(name, sizeof name, "blk.%d.%s.weight.hessian", layer, has_[i].name);
            ck_assert(!has(d, name));
        }
    q_directory_close(d);
}
END_TEST

static char warned[1024];
static void on_log(void *user, lq_log_level level, const char *message) {
    Q_UNUSED(user);
    if (level == LQ_LOG_WARN && strstr(message, "measured for scheme")) snprintf(warned, sizeof warned, "%s", message);
}

/* A scheme is what it means, in whatever words. */
START_TEST(factors_for_another_scheme_are_used_with_a_warning) {
    static const struct {
        const char *scheme;
        bool same;
    } with[] = {{"awq+q4_0:rtn", true}, {"q4_0:rtn+awq", true}, {"imatrix+q4_0:rtn+awq", true}, {"awq+q4_0", false},
                {"awq+q4_1:rtn", false}};
    const lq_options o = {.size = sizeof o, .threads = 2, .log = on_log};
    const lq_calibrate_options c = options("awq+q4_0:rtn");
    lq_ctx *other;
    calibrated(in_tmp(1, "stats.gguf"), 2, &c);
    ck_assert_int_eq(lq_open(&o, &other), LQ_OK);
    for (size_t i = 0; i < Q_COUNT(with); i++) {
        const lq_quantize_options q = {.size = sizeof q, .scheme = with[i].scheme, .importance = paths[1], .force = 1};
        warned[0] = 0;
        ck_assert_msg(lq_quantize(other, paths[0], in_tmp(2, "out.gguf"), &q, NULL) == LQ_OK, "%s", lq_error_detail());
        ck_assert_msg((warned[0] == 0) == with[i].same, "%s: '%s'", with[i].scheme, warned);
    }
    lq_close(other);
}
END_TEST

/* smooth of the first inputs, whose magnitudes a plain loop finds; a quantizer that searches is not clipped for. */
START_TEST(factors_of_smooth) {
    const lq_calibrate_options o = options("smooth+q8_0");
    calibrated(in_tmp(1, "stats.gguf"), 2, &o);
    q_directory *m = directory(paths[0]), *d = directory(paths[1]);
    ck_assert(q_str_is(q_directory_meta(d, Q_FOLD_TRANSFORM)->s, "smooth"));
    ck_assert(!has(d, "blk.0.attn_q.weight.clip"));
    const float *embd = tensor(m, "token_embd.weight", WIDTH, VOCAB),
                *norm = tensor(m, "blk.0.attn_norm.weight", WIDTH, 1);
    const float *w[] = {tensor(m, "blk.0.attn_q.weight", WIDTH, WIDTH), tensor(m, "blk.0.attn_k.weight", WIDTH, KV),
                        tensor(m, "blk.0.attn_v.weight", WIDTH, KV)};
    const float *s = tensor(d, "blk.0.attn_q.weight.fold", WIDTH, 1);
    const double eps = q_directory_meta(m, "llama.attention.layer_norm_rms_epsilon")->f;
    double most[WIDTH] = {0};
    for (int i = 0; i < CHUNKS * WINDOW; i++) {
        const float *x = embd + (i % WINDOW ? ids[i] : 1) * WIDTH;
        double square = 0;
        for (int j = 0; j < WIDTH; j++) square += (double)x[j] * (double)x[j];
        for (int j = 0; j < WIDTH; j++)
            most[j] = fmax(most[j], fabs((double)x[j] / sqrt(square / WIDTH + eps) * (double)norm[j]));
    }
    for (int j = 0; j < WIDTH; j++) {
        double column = 0;
        for (int i = 0; i < 3; i++)
            for (int r = 0; r < (i ? KV : WIDTH); r++) column = fmax(column, fabs((double)w[i][r * WIDTH + j]));
        const double want = sqrt(fmax(most[j], 1e-5) / fmax(column, 1e-5));
        ck_assert_double_eq_tol((double)s[j], want, 2e-2 * want); /* the embedding is that of q8_0 */
    }
    q_directory_close(d);
    q_directory_close(m);
}
END_TEST

START_TEST(neither_threads_nor_files_for_memory_change_a_byte) {
    lq_calibrate_options o = options("awq+q4_1:rtn");
    calibrated(in_tmp(1, "one.gguf"), 1, &o);
    const uint64_t want = hash_of(paths[1]);
    for (uint32_t i = 2; i <= 3; i++) {
        o.max_ram = i == 2 ? smallest_ram(i, &o) : 0;
        calibrated(in_tmp(2, "other.gguf"), i, &o);
        ck_assert_uint_eq(hash_of(paths[2]), want);
    }
    ck_assert_int_eq(files_in_tmp(), 3);
    o.max_ram = 1000;
    ck_assert_int_eq(calibrate(paths[2], 1, &o), LQ_E_NOMEM);
}
END_TEST

/* With Hessians of the inputs as they are, not divided by the factors. */
START_TEST(hessians_beside_factors) {
    q_dense *dense;
    if (q_dense_open(A, &dense) != LQ_OK) T_SKIP("OpenBLAS is not installed (libopenblas0-pthread)");
    q_dense_close(dense);
    lq_calibrate_options o = options("awq+q4_0:gptq");
    ck_assert_int_eq(calibrate(in_tmp(1, "both.gguf"), 2, &o), LQ_E_ARG);
    ck_assert_msg(strstr(lq_error_detail(), "--hessians") != NULL, "%s", lq_error_detail());
    o.hessians = 1;
    calibrated(paths[1], 2, &o);
    q_directory *d = directory(paths[1]);
    const float *sums = tensor(d, "blk.0.attn_q.weight.in_sum2", WIDTH, 1);
    const float *h = tensor(d, "blk.0.attn_q.weight.hessian", WIDTH * (WIDTH + 1) / 2, 1);
    ck_assert(has(d, "blk.0.attn_q.weight.fold") && !has(d, "blk.0.attn_q.weight.clip"));
    for (int j = 0; j < WIDTH; j++)
        ck_assert_double_eq_tol((double)h[j * (j + 1) / 2 + j], (double)sums[j] * 2 / (CHUNKS * WINDOW),
                                1e-4 * (double)sums[j]);
    q_directory_close(d);
}
END_TEST

/* What follows sees the model that lq_quantize then makes: there inputs with factors are divided by them. Rows that
 * take later factors round their scales otherwise. */
START_TEST(the_inputs_are_those_of_the_result) {
    lq_calibrate_options o = options("awq+q4_0:rtn");
    calibrated(in_tmp(1, "stats.gguf"), 2, &o);
    const lq_quantize_options q = {.size = sizeof q, .scheme = "awq+q4_0:rtn", .importance = paths[1], .threads = 2};
    ck_assert_msg(lq_quantize(ctx, paths[0], in_tmp(2, "out.gguf"), &q, NULL) == LQ_OK, "%s", lq_error_detail());
    lq_model_close(model);
    lq_close(ctx);
    open_model(paths[2]);
    o.scheme = NULL;
    calibrated(in_tmp(3, "of_result.gguf"), 2, &o);
    q_directory *a = directory(paths[1]), *b = directory(paths[3]);
    static const struct {
        const char *name, *fold;
        uint64_t k;
    } inputs[] = {{"attn_q", "attn_q", WIDTH},
                  {"attn_v", "attn_q", WIDTH},
                  {"attn_output", NULL, WIDTH}, {"ffn_up", "ffn_gate", WIDTH},
                  {"ffn_down", "ffn_down", FFN}};
    for (int layer = 0; layer < 2; layer++)
        for (size_t i = 0; i < Q_COUNT(inputs); i++) {
            char name[96];
            const uint64_t k = inputs[i].k;
            snprintf(name, sizeof name, "blk.%d.%s.weight.in_sum2", layer, inputs[i].name);
            const float *want = tensor(a, name, k, 1), *have = tensor(b, name, k, 1);
            snprintf(name, sizeof name, "blk.%d.%s.weight.fold", layer, inputs[i].fold ? inputs[i].fold : "");
            const float *s = inputs[i].fold ? tensor(a, name, k, 1) : NULL;
            double sum = 0, off = 0;
            for (uint64_t j = 0; j < k; j++) {
                const double x = (double)have[j] * (s ? (double)s[j] * (double)s[j] : 1);
                sum += (double)want[j];
                off += fabs(x - (double)want[j]);
            }
            ck_assert_msg(off <= 5e-3 * sum, "layer %d, %s: inputs are off by %g of %g", layer, inputs[i].name, off,
                          sum);
        }
    q_directory_close(a);
    q_directory_close(b);
}
END_TEST

/* ---- interruptions */

static int calls, kill_at;
static uint64_t last_done;
static int progress(void *user, uint64_t done, uint64_t total, const char *what) {
    Q_UNUSED(user);
    Q_UNUSED(what);
    ck_assert_uint_le(done, total);
    ck_assert_uint_ge(done, last_done);
    last_done = done;
    if (++calls == kill_at) raise(SIGKILL);
    return 0;
}
START_TEST(a_killed_run_goes_on_and_ends_with_the_same_bytes) {
    lq_calibrate_options o = options("awq+q4_0:rtn");
    o.progress = progress;
    calibrated(in_tmp(1, "whole.gguf"), 1, &o);
    const uint64_t want = hash_of(paths[1]);
    const int all = calls, at[] = {all / 4, all * 2 / 3, all - 1};
    for (size_t i = 0; i < Q_COUNT(at); i++) {
        in_tmp(2, "stats.gguf");
        last_done = 0;
        killed(paths[2], &o, &calls, &kill_at, at[i]);
        calls = kill_at = 0;
        calibrated(paths[2], 1, &o);
        ck_assert_uint_eq(hash_of(paths[2]), want);
        if (at[i] > all / 2) ck_assert_int_lt(calls, all);
        unlink(paths[2]);
        ck_assert_int_eq(files_in_tmp(), 2);
    }
}
END_TEST

/* ---- what the factors are worth */

/* The distance of a block's output from the original one, by the searched factors and clips, beside that without. */
typedef struct beside {
    uint32_t stages;
    double without, with;
} beside;
static lq_status nothing(void *user) {
    Q_UNUSED(user);
    return LQ_OK;
}
static double distance(q_stream *s, const float *want, float *have, uint64_t n) {
    double sum = 0;
    ck_assert_int_eq(q_stream_try(s, 1, 1, have), LQ_OK);
    for (uint64_t i = 0; i < n; i++) sum += ((double)have[i] - (double)want[i]) * ((double)have[i] - (double)want[i]);
    return sum;
}
static void search_stage(lq_model *m, q_pool *pool, q_stream *s, const q_folds *folds, const q_recipe *recipe,
                         beside *out) {
    const q_stage *g = q_stream_stage(s, q_stream_at(s));
    const uint64_t n = q_stream_tried(s), k = (uint64_t)g->k;
    q_fold_part parts[4] = {{0}};
    float *want = (float *)malloc(n * sizeof *want), *have = (float *)malloc(n * sizeof *have);
    float *mean = (float *)calloc(3 * k, sizeof *mean), *f = mean + 2 * k;
    const float *x;
    int64_t stride;
    ck_assert_int_eq(q_stream_try(s, 1, 1, want), LQ_OK);
    ck_assert_int_eq(q_stream_input(s, 0, &x, &stride), LQ_OK);
    const uint64_t window = 64;
    for (uint64_t c = 0; c < window; c++)
        for (uint64_t j = 0; j < k; j++) mean[j] += fabsf(x[c * (uint64_t)stride + j]) / (float)window;
    for (int32_t i = 0; i < g->n_products; i++) {
        q_fold_part *p = &parts[i];
        p->item = q_stream_item(s, &g->products[i]);
        const q_bind_item *item = &m->binding->items[p->item];
        ck_assert_int_eq(q_quantize_choose(recipe, m->binding, p->item, true, &p->choice), LQ_OK);
        p->weights = (float *)malloc(item->src->rows * k * sizeof(float));
        p->clips = true;
        p->clip = (float *)malloc(item->src->rows * (k / 128) * sizeof(float));
    }
    const q_fold_search search = {.alloc = A, .binding = m->binding, .pool = pool, .stream = s,
                                  .transform = q_transform_find("awq"), .samples = 1, .step = 1,
                                  .window = (uint32_t)window, .mean_abs = mean, .max_abs = mean, .parts = parts,
                                  .n_parts = (uint32_t)g->n_products, .told = nothing};
    const q_fold_group *group = q_folds_of(folds, parts[0].item);
    ck_assert(group != NULL);
    ck_assert_int_eq(q_fold_search_run(&search, !group->refused, f), LQ_OK);
    for (int32_t with = 1; with >= 0; with--) {
        for (int32_t i = 0; i < g->n_products; i++) {
            const q_fold_part *p = &parts[i];
            const q_imitation im = {.alloc = A, .binding = m->binding, .pool = pool,
                                    .item = &m->binding->items[p->item], .format = p->choice.format,
                                    .quantizer = p->choice.quantizer, .factors = with ? f : NULL,
                                    .clip = with ? p->clip : NULL, .group = 128};
            ck_assert_int_eq(q_imitate(&im, p->weights, NULL), LQ_OK);
            q_stream_replace(s, p->item, p->weights);
        }
        *(with ? &out->with : &out->without) += log(distance(s, want, have, n));
    }
    out->stages++;
    ck_assert_int_eq(q_stream_advance(s, NULL, NULL), LQ_OK);
    for (int32_t i = 0; i < g->n_products; i++) {
        free(parts[i].weights);
        free(parts[i].clip);
    }
    free(mean);
    free(want);
    free(have);
}

START_TEST(a_block_is_nearer_under_factors) {
    char path[1200];
    int32_t text[64];
    lq_model *pocket;
    q_pool *pool;
    q_stream *s;
    q_recipe *recipe;
    q_folds folds;
    q_arena arena = {.alloc = A};
    uint64_t seed = 5;
    snprintf(path, sizeof path, "%s/bench/data/pocket", t_root());
    ck_assert_msg(lq_model_open(ctx, path, NULL, &pocket) == LQ_OK, "%s", lq_error_detail());
    for (int i = 0; i < 64; i++) text[i] = 3 + (int32_t)(t_rand(&seed) % 4000);
    const q_stream_options o = {.ids = text, .samples = 1, .window = 64, .threads = 2};
    ck_assert_msg(q_stream_open(pocket, &o, &s) == LQ_OK, "%s", lq_error_detail());
    ck_assert_msg(q_stream_room(s, NULL) == LQ_OK, "%s", lq_error_detail());
    ck_assert_int_eq(q_pool_open(A, 2, &pool), LQ_OK);
    ck_assert_int_eq(q_recipe_find(A, "awq+i4_g128:rtn", &recipe), LQ_OK);
    ck_assert_int_eq(q_folds_find(pocket->binding, &arena, &folds), LQ_OK);
    ck_assert_int_eq(q_stream_begin(s), LQ_OK);
    beside b = {0, 0, 0};
    while (b.stages < 4) search_stage(pocket, pool, s, &folds, recipe, &b); /* a layer */
    ck_assert_msg(b.with < b.without - 4 * 0.1, "log of the squared distance %g, not below %g", b.with / 4,
                  b.without / 4);
    q_recipe_close(recipe);
    q_stream_close(s);
    q_pool_close(pool);
    q_arena_free(&arena);
    lq_model_close(pocket);
}
END_TEST

static Suite *make(void) {
    Suite *s = suite_create("fold_search");
    TCase *c = tcase_create("fold_search");
    tcase_add_checked_fixture(c, setup, teardown);
    tcase_add_test(c, factors_and_clips_of_awq);
    tcase_add_test(c, factors_for_another_scheme_are_used_with_a_warning);
    tcase_add_test(c, factors_of_smooth);
    tcase_add_test(c, neither_threads_nor_files_for_memory_change_a_byte);
    tcase_add_test(c, hessians_beside_factors);
    tcase_add_test(c, the_inputs_are_those_of_the_result);
    tcase_add_test(c, a_killed_run_goes_on_and_ends_with_the_same_bytes);
    tcase_add_test(c, a_block_is_nearer_under_factors);
    suite_add_tcase(s, c);
    return s;
}
HARNESS_MAIN(make)
