/* test_device.c: whole models on devices other than the processor, through the public API: the processor's logits, the
 * same bits run to run, layers shared between both, plans in bytes, and what is refused. Each test runs for every
 * device here; without one it is a skip that says so. Backends one operation at a time: test_backend.c. */
#include "help_session.h"

#include "../include/libquant.h"

#include <math.h>
#include <pthread.h>

T_ASAN_OPTIONS("detect_leaks=0") /* drivers keep what they allocate until the process ends */

enum { PROMPT = 100, VOCAB = 4096, LAYERS = 6, WIDTH = 256 };

static lq_ctx *ctx;
static char device[64]; /* the last one */

static void setup(void) {
    const lq_options o = {.size = sizeof o, .threads = 2};
    ck_assert_msg(lq_open(&o, &ctx) == LQ_OK, "%s", lq_error_detail());
    device[0] = 0;
    const uint32_t n = lq_device_count(ctx);
    lq_device_info info = {.size = sizeof info};
    if (n > 1 && lq_device_info_get(ctx, n - 1, &info) == LQ_OK) strcpy(device, info.name);
}
static void teardown(void) { lq_close(ctx); }

#define NEED_DEVICE \
    if (!device[0]) T_SKIP("%s: only the processor is here", __func__)

static lq_model *open_on(const char *path, const char *where, uint32_t layers) {
    const lq_model_options o = {.size = sizeof o, .device = where, .gpu_layers = layers};
    lq_model *m = NULL;
    ck_assert_msg(lq_model_open(ctx, path, &o, &m) == LQ_OK, "%s", lq_error_detail());
    return m;
}
static lq_model *pocket_on(const char *where, uint32_t layers) {
    char path[4096];
    return open_on(t_path(path, sizeof path, t_root(), "bench/data/pocket"), where, layers);
}
static lq_session *session(lq_model *m, uint32_t batch, const char *act) {
    const lq_session_options o = {
        .size = sizeof o, .batch = batch, .max_logits = 128, .activations = act, .no_reuse = 1};
    lq_session *s = NULL;
    ck_assert_msg(lq_session_open(m, &o, &s) == LQ_OK, "%s", lq_error_detail());
    return s;
}

static int32_t ids[PROMPT];
static const int32_t *prompt(void) {
    for (int i = 0; i < PROMPT; i++) ids[i] = i ? 300 + i * 37 % 3000 : 1;
    return ids;
}

/* The prompt in pieces of `piece` tokens, the logits of its last token. */
static void last_logits(lq_session *s, size_t piece, float *out) {
    prompt();
    for (size_t at = 0; at < PROMPT; at += piece) {
        const size_t n = PROMPT - at < piece ? PROMPT - at : piece;
        ck_assert_msg(t_decode(s, ids + at, n, n - 1) == LQ_OK, "%s", lq_error_detail());
    }
    const float *row;
    ck_assert_int_eq(lq_logits(s, 0, &row), LQ_OK);
    memcpy(out, row, VOCAB * sizeof *out);
}

/* The largest difference as a fraction of the largest logit. */
static double apart(const float *a, const float *b) {
    double worst = 0, top = 0;
    for (int i = 0; i < VOCAB; i++) {
        const double d = fabs((double)a[i] - (double)b[i]), size = fabs((double)b[i]);
        if (!(d <= worst)) worst = d; /* a NaN too */
        if (size > top) top = size;
    }
    return worst / top;
}

static float want[VOCAB], got[VOCAB], again[VOCAB];
static void processor_logits(const char *act) {
    lq_model *m = pocket_on(NULL, 0);
    lq_session *s = session(m, 128, act);
    last_logits(s, PROMPT, want);
    lq_session_close(s);
    lq_model_close(m);
}

START_TEST(logits_are_the_processors) {
    NEED_DEVICE;
    static const size_t pieces[] = {PROMPT, 1, 7, 33};
    processor_logits("f32");
    lq_model *m = pocket_on(device, 0);
    for (size_t i = 0; i < Q_COUNT(pieces); i++) {
        lq_session *s = session(m, 64, "f32");
        last_logits(s, pieces[i], got);
        const double d = apart(got, want);
        ck_assert_msg(d <= 2e-5, "pieces of %zu: %g", pieces[i], d);
        ck_assert_int_eq(lq_seq_truncate(s, 0, 0), LQ_OK); /* the same bits from the same session */
        last_logits(s, pieces[i], again);
        ck_assert_mem_eq(got, again, sizeof got);
        lq_session_close(s);
    }
    lq_model_close(m);
}
END_TEST

/* Keys and values in half precision, as sessions have them unless told otherwise. */
START_TEST(half_precision_cache_is_close) {
    NEED_DEVICE;
    processor_logits("f32");
    lq_model *m = pocket_on(device, 0);
    lq_session *s = session(m, 64, NULL);
    last_logits(s, PROMPT, got);
    const double d = apart(got, want);
    ck_assert_msg(d > 0 && d <= 1e-2, "%g", d);
    lq_session_close(s);
    lq_model_close(m);
}
END_TEST

/* In every form the processor's logits, but for numbers that fall to the other side of a border; and a sequence that
 * one saved goes on in the other, where pages lie alike. */
START_TEST(keys_and_values_in_every_form) {
    NEED_DEVICE;
    static const char *const forms[][2] = {{"bf16", NULL}, {"q8_0", NULL}, {"q5_1", "f32"}, {"q4_0", NULL},
                                           {"f16", "q4_0"}};
    lq_model *const m[2] = {pocket_on(NULL, 0), pocket_on(device, 0)};
    t_saved saved = t_saved_new();
    for (size_t i = 0; i < Q_COUNT(forms); i++) {
        lq_session *s[2];
        for (int on = 0; on < 2; on++) {
            const lq_session_options o = {.size = sizeof o, .batch = 64, .activations = "f32", .no_reuse = 1,
                                          .kv_k = forms[i][0], .kv_v = forms[i][1]};
            ck_assert_msg(lq_session_open(m[on], &o, &s[on]) == LQ_OK, "%s", lq_error_detail());
            last_logits(s[on], 33, on ? got : want);
        }
        const double d = apart(got, want);
        ck_assert_msg(d > 0 && d <= 2e-3, "%s: %g", forms[i][0], d);
        for (int from = 0; from < 2; from++) {
            saved.n = saved.at = 0;
            ck_assert_int_eq(lq_seq_save(s[from], 0, t_saved_put, &saved), LQ_OK);
            ck_assert_msg(lq_seq_load(s[!from], 0, t_saved_get, &saved) == LQ_OK, "%s", lq_error_detail());
            for (int on = 0; on < 2; on++) {
                const float *row;
                ck_assert_msg(t_decode(s[on], ids, 1, 0) == LQ_OK, "%s", lq_error_detail());
                ck_assert_int_eq(lq_logits(s[on], 0, &row), LQ_OK);
                memcpy(on ? got : want, row, sizeof got);
            }
            const double e = apart(got, want);
            ck_assert_msg(e <= 2e-5, "%s, saved by %d: %g", forms[i][0], from, e);
        }
        for (int on = 0; on < 2; on++) lq_session_close(s[on]);
    }
    for (int on = 0; on < 2; on++) lq_model_close(m[on]);
    free(saved.p);
}
END_TEST

START_TEST(layers_are_shared_with_the_processor) {
    NEED_DEVICE;
    static const uint32_t layers[] = {1, 4, LAYERS - 1};
    processor_logits("f32");
    for (size_t i = 0; i < Q_COUNT(layers); i++) {
        lq_model *m = pocket_on(device, layers[i]);
        lq_plan_info plan = {.size = sizeof plan};
        ck_assert_int_eq(lq_model_plan(m, NULL, &plan), LQ_OK);
        ck_assert_str_eq(plan.device, device);
        ck_assert_uint_eq(plan.layers, LAYERS);
        ck_assert_uint_eq(plan.device_layers, layers[i]);
        ck_assert_uint_eq(plan.device_embedding, 0);
        ck_assert_uint_eq(plan.border_bytes, WIDTH * 4);
        lq_session *s = session(m, 64, "f32");
        last_logits(s, 33, got);
        const double d = apart(got, want);
        ck_assert_msg(d <= 2e-5, "%u layers: %g", layers[i], d);
        lq_stats st = {.size = sizeof st};
        ck_assert_int_eq(lq_session_stats(s, &st), LQ_OK);
        ck_assert_uint_eq(st.border_bytes, 2 * PROMPT * WIDTH * 4);
        ck_assert(st.border_seconds > 0);
        lq_session_close(s);
        lq_model_close(m);
    }
}
END_TEST

/* More layers on the device: more of its bytes, less of ours; what a session then says is what the plan said. */
START_TEST(plans_say_what_lies_where) {
    NEED_DEVICE;
    lq_plan_info before = {0};
    for (uint32_t n = 1; n <= LAYERS; n++) {
        lq_model *m = pocket_on(device, n);
        const lq_session_options o = {.size = sizeof o, .batch = 64, .max_logits = 128};
        lq_plan_info plan = {.size = sizeof plan};
        ck_assert_int_eq(lq_model_plan(m, &o, &plan), LQ_OK);
        ck_assert_uint_eq(plan.device_total,
                          plan.device_own + plan.device_weights + plan.device_kv + plan.device_activations);
        ck_assert_uint_ge(plan.device_memory, plan.device_kv + plan.device_activations);
        ck_assert_uint_gt(plan.device_weights, before.device_weights);
        ck_assert_uint_gt(plan.device_kv, before.device_kv);
        ck_assert_uint_ge(plan.device_kv, n * 2 * 2 * 64 * 2 * 256);
        ck_assert_uint_eq(plan.kv, (LAYERS - n) * 2 * 2 * 64 * 2 * 256);
        ck_assert_uint_eq(plan.device_embedding, n == LAYERS);
        lq_session *s = session(m, 64, NULL);
        lq_session_info info = {.size = sizeof info};
        ck_assert_int_eq(lq_session_info_get(s, &info), LQ_OK);
        ck_assert_uint_eq(info.device_kv_bytes, plan.device_kv);
        ck_assert_uint_eq(info.device_activation_bytes, plan.device_activations);
        ck_assert_uint_eq(info.kv_bytes, plan.kv);
        ck_assert_uint_eq(info.activation_bytes, plan.activations);
        lq_session_close(s);
        lq_model_close(m);
        before = plan;
    }
    char path[4096];
    const lq_model_options o = {.size = sizeof o, .device = device, .plan_only = 1};
    lq_model *m;
    lq_session *s = NULL;
    lq_plan_info plan = {.size = sizeof plan};
    t_path(path, sizeof path, t_root(), "bench/data/pocket");
    ck_assert_int_eq(lq_model_open(ctx, path, &o, &m), LQ_OK);
    ck_assert_int_eq(lq_model_plan(m, NULL, &plan), LQ_OK);
    ck_assert_uint_eq(plan.device_weights, before.device_weights);
    ck_assert_int_eq(lq_session_open(m, NULL, &s), LQ_E_ARG);
    ck_assert_ptr_null(s);
    lq_model_close(m);
}
END_TEST

START_TEST(tied_and_quantized_models_run) {
    NEED_DEVICE;
    static tiny t;
    static const char *const formats[] = {"q8_0", "q4_0", "f16"};
    for (size_t i = 0; i < 2 * Q_COUNT(formats); i++) {
        char path[4096];
        tiny_init(&t, formats[i / 2]);
        if (i % 2) tiny_drop_tensor(&t, "output.weight");
        tiny_write(&t, t_path(path, sizeof path, t_tmp(), "tiny.gguf"));
        float last[2][262];
        for (int on = 0; on < 2; on++) {
            lq_model *m = open_on(path, on ? device : NULL, 0);
            const lq_session_options o = {.size = sizeof o, .activations = "f32"};
            lq_session *s;
            const int32_t text[] = {1, 50, 60, 70, 80};
            const float *row;
            ck_assert_msg(lq_session_open(m, &o, &s) == LQ_OK, "%s", lq_error_detail());
            ck_assert_msg(t_decode(s, text, 5, 4) == LQ_OK, "%s", lq_error_detail());
            ck_assert_int_eq(lq_logits(s, 0, &row), LQ_OK);
            memcpy(last[on], row, sizeof last[on]);
            lq_session_close(s);
            lq_model_close(m);
        }
        for (int j = 0; j < 262; j++)
            ck_assert_msg(fabsf(last[0][j] - last[1][j]) <= 1e-4f * (1 + fabsf(last[0][j])), "%s: token %d: %g, not %g",
                          formats[i / 2], j, (double)last[1][j], (double)last[0][j]);
    }
}
END_TEST

typedef struct job {
    lq_session *s;
    float out[VOCAB];
} job;
static void *work(void *arg) {
    job *j = (job *)arg;
    for (size_t at = 0; at < PROMPT; at += 20)
        if (t_decode(j->s, ids + at, 20, 19) != LQ_OK) return NULL;
    const float *row;
    if (lq_logits(j->s, 0, &row) == LQ_OK) memcpy(j->out, row, sizeof j->out);
    return NULL;
}
START_TEST(sessions_of_one_device_run_in_parallel) {
    NEED_DEVICE;
    static job jobs[2];
    pthread_t threads[2];
    prompt();
    lq_model *m = pocket_on(device, 4);
    for (int i = 0; i < 2; i++) jobs[i].s = session(m, 64, NULL);
    for (int i = 0; i < 2; i++) ck_assert_int_eq(pthread_create(&threads[i], NULL, work, &jobs[i]), 0);
    for (int i = 0; i < 2; i++) pthread_join(threads[i], NULL);
    ck_assert(jobs[0].out[5] != 0);
    ck_assert_mem_eq(jobs[0].out, jobs[1].out, sizeof jobs[0].out);
    for (int i = 0; i < 2; i++) lq_session_close(jobs[i].s);
    lq_model_close(m);
}
END_TEST

START_TEST(cancel_is_obeyed_and_the_session_goes_on) {
    NEED_DEVICE;
    lq_model *m = pocket_on(device, 3);
    lq_session *s = session(m, 128, NULL);
    last_logits(s, PROMPT, want);
    ck_assert_int_eq(lq_seq_truncate(s, 0, 0), LQ_OK);
    lq_session_cancel(s);
    ck_assert_int_eq(t_decode(s, prompt(), PROMPT, PROMPT - 1), LQ_E_CANCELLED);
    ck_assert_uint_eq(lq_seq_length(s, 0), 0);
    last_logits(s, PROMPT, got);
    ck_assert_mem_eq(got, want, sizeof got);
    lq_session_close(s);
    lq_model_close(m);
}
END_TEST

static void refuse(const char *where, uint32_t layers, lq_status status, const char *word) {
    char path[4096];
    const lq_model_options o = {.size = sizeof o, .device = where, .gpu_layers = layers};
    lq_model *m = NULL;
    t_path(path, sizeof path, t_root(), "bench/data/pocket");
    ck_assert_int_eq(lq_model_open(ctx, path, &o, &m), status);
    ck_assert_ptr_null(m);
    ck_assert_msg(strstr(lq_error_detail(), word) != NULL, "%s", lq_error_detail());
}

START_TEST(names_of_devices_are_checked) {
    refuse("abacus:0", 0, LQ_E_ARG, "this build knows cpu");
    refuse("cpu:", 0, LQ_E_ARG, "cpu:");
    refuse("cpu:x", 0, LQ_E_ARG, "cpu:x");
    refuse("cpu:-1", 0, LQ_E_ARG, "cpu:-1");
    refuse("cpu:1", 0, LQ_E_UNSUPPORTED, "1 devices");
    refuse("cpu:99999999999999999999", 0, LQ_E_ARG, "written");
    refuse(NULL, 3, LQ_E_ARG, "no device is named");
    lq_model *m = pocket_on("cpu", 0); /* by its name, too */
    lq_plan_info plan = {.size = sizeof plan};
    ck_assert_int_eq(lq_model_plan(m, NULL, &plan), LQ_OK);
    ck_assert_str_eq(plan.device, "");
    lq_model_close(m);
}
END_TEST

START_TEST(devices_are_listed) {
    lq_device_info info = {.size = sizeof info};
    ck_assert_int_eq(lq_device_info_get(ctx, 0, &info), LQ_OK);
    ck_assert_str_eq(info.name, "cpu:0");
    ck_assert_int_eq(lq_device_info_get(ctx, lq_device_count(ctx), &info), LQ_E_ARG);
    NEED_DEVICE;
    for (uint32_t i = 1; i < lq_device_count(ctx); i++) {
        if (lq_device_info_get(ctx, i, &info) != LQ_OK) continue; /* too old a driver, and it says so */
        ck_assert(strchr(info.name, ':') && info.description[0] && info.isa[0]);
        ck_assert_uint_gt(info.memory, 0);
    }
}
END_TEST

START_TEST(calibration_stays_on_the_processor) {
    NEED_DEVICE;
    char path[4096];
    lq_model *m = pocket_on(device, 0);
    lq_session *s = session(m, 64, "f32");
    ck_assert_int_eq(lq_calibrate(s, prompt(), PROMPT, t_path(path, sizeof path, t_tmp(), "x.gguf"), NULL, NULL),
                     LQ_E_UNSUPPORTED);
    lq_session_close(s);
    lq_model_close(m);
}
END_TEST

/* The processor's logits with adapters, whole and shared; their bytes are in the plan, before and after. */
START_TEST(adapters_run_there) {
    NEED_DEVICE;
    static const uint32_t layers[] = {0, 3};
    char path[4096], adapter[4096];
    const char *const paths[] = {t_path(adapter, sizeof adapter, t_root(), "tests/golden/lora")};
    lq_model_options o = {.size = sizeof o, .loras = paths, .n_loras = 1};
    t_path(path, sizeof path, t_root(), "bench/data/pocket");
    lq_model *m;
    for (size_t i = 0; i <= Q_COUNT(layers); i++) {
        lq_plan_info plan = {.size = sizeof plan}, bare = plan, before = plan;
        o.device = i ? device : NULL;
        o.gpu_layers = i ? layers[i - 1] : 0;
        ck_assert_msg(lq_model_open(ctx, path, &o, &m) == LQ_OK, "%s", lq_error_detail());
        lq_session *s = session(m, 64, "f32");
        last_logits(s, 33, i ? got : want);
        lq_session_close(s);
        ck_assert_int_eq(lq_model_plan(m, NULL, &plan), LQ_OK);
        lq_model_close(m);
        if (i == 0) continue;
        ck_assert_msg(apart(got, want) <= 2e-5, "%u layers: %g", layers[i - 1], apart(got, want));
        o.plan_only = 1;
        ck_assert_int_eq(lq_model_open(ctx, path, &o, &m), LQ_OK);
        ck_assert_int_eq(lq_model_plan(m, NULL, &before), LQ_OK);
        lq_model_close(m);
        o.plan_only = 0;
        m = pocket_on(device, layers[i - 1]);
        ck_assert_int_eq(lq_model_plan(m, NULL, &bare), LQ_OK);
        lq_model_close(m);
        ck_assert_uint_eq(plan.device_weights, before.device_weights);
        ck_assert_uint_gt(plan.device_weights, bare.device_weights);
    }
}
END_TEST

static Suite *suite(void) {
    Suite *s = suite_create("device");
    TCase *t = tcase_create("device");
    tcase_add_checked_fixture(t, setup, teardown);
    tcase_set_timeout(t, 300);
    tcase_add_test(t, logits_are_the_processors);
    tcase_add_test(t, half_precision_cache_is_close);
    tcase_add_test(t, keys_and_values_in_every_form);
    tcase_add_test(t, layers_are_shared_with_the_processor);
    tcase_add_test(t, plans_say_what_lies_where);
    tcase_add_test(t, tied_and_quantized_models_run);
    tcase_add_test(t, sessions_of_one_device_run_in_parallel);
    tcase_add_test(t, cancel_is_obeyed_and_the_session_goes_on);
    tcase_add_test(t, names_of_devices_are_checked);
    tcase_add_test(t, devices_are_listed);
    tcase_add_test(t, calibration_stays_on_the_processor);
    tcase_add_test(t, adapters_run_there);
    suite_add_tcase(s, t);
    return s;
}
HARNESS_MAIN(suite)
