/* test_calibrate.c: lq_calibrate: sums that agree with float64 arithmetic, that depend on nothing but model and text, the
 * file others read, what is refused, and that failures leave nothing. */
#include "harness.h"
#include "help_model.h"

#include <math.h>
#include <sys/stat.h>
#include <unistd.h>

#include "../libquant/importance.h"

static const q_alloc *const A = &q_alloc_libc;
enum { WIDTH = 64, VOCAB = 262, WINDOW = 16, TOKENS = 70 /* four windows and a rest */ };

static char folder[1024], paths[4][1400];
static lq_ctx *ctx;
static lq_model *model;
static int32_t ids[TOKENS];

static const char *in_tmp(int slot, const char *name) { return t_path(paths[slot], sizeof paths[slot], folder, name); }
static int files_in_tmp(void) { return t_files(folder, 0); }

static void open_tiny(const char *poisoned) {
    static tiny t;
    const lq_options o = {.size = sizeof o, .threads = 2};
    tiny_init(&t, "f32");
    t.poison_tensor = poisoned;
    t.poison = poisoned ? 1e38f : 0.0f;
    tiny_write(&t, in_tmp(0, "model.gguf"));
    ck_assert_msg(lq_open(&o, &ctx) == LQ_OK, "%s", lq_error_detail());
    ck_assert_msg(lq_model_open(ctx, in_tmp(0, "model.gguf"), NULL, &model) == LQ_OK, "%s", lq_error_detail());
}
static void close_tiny(void) {
    lq_model_close(model);
    lq_close(ctx);
}
static void setup(void) {
    uint64_t seed = 3;
    snprintf(folder, sizeof folder, "%s/calibrate-%ld", t_tmp(), (long)getpid());
    ck_assert_int_eq(mkdir(folder, 0777), 0);
    for (int i = 0; i < TOKENS; i++) ids[i] = 3 + (int32_t)(t_rand(&seed) % (VOCAB - 3));
    open_tiny(NULL);
}
static void teardown(void) {
    close_tiny();
    t_files(folder, 1);
}

static lq_session *session(uint32_t context, uint32_t batch, uint32_t threads) {
    const lq_session_options o = {.size = sizeof o, .context = context, .batch = batch, .threads = threads,
                                  .activations = "f32"};
    lq_session *s = NULL;
    ck_assert_msg(lq_session_open(model, &o, &s) == LQ_OK, "%s", lq_error_detail());
    return s;
}
static lq_calibrate_options options(void) {
    return (lq_calibrate_options){.size = sizeof(lq_calibrate_options), .window = WINDOW, .dataset = "text.txt"};
}
static lq_calibrate_result calibrated(const char *dst, uint32_t batch, uint32_t threads) {
    lq_session *s = session(WINDOW, batch, threads);
    const lq_calibrate_options o = options();
    lq_calibrate_result r = {.size = sizeof r};
    ck_assert_msg(lq_calibrate(s, ids, TOKENS, dst, &o, &r) == LQ_OK, "%s", lq_error_detail());
    lq_session_close(s);
    return r;
}
#define REFUSED(expr, code, ...)                                                                      \
    do {                                                                                              \
        ck_assert_int_eq((expr), (code));                                                             \
        const char *says_[] = {__VA_ARGS__};                                                          \
        for (size_t i_ = 0; i_ < Q_COUNT(says_); i_++)                                                \
            ck_assert_msg(strstr(lq_error_detail(), says_[i_]) != NULL, "'%s' does not say '%s'",     \
                          lq_error_detail(), says_[i_]);                                              \
    } while (0)

static q_directory *directory(const char *path) {
    const q_load_options o = {.alloc = A, .map = true};
    q_directory *d;
    ck_assert_msg(q_directory_open(path, &o, &d) == LQ_OK, "%s", lq_error_detail());
    return d;
}
static const float *tensor_data(const q_directory *d, const char *name, uint64_t n) {
    const q_tensor *t = q_directory_tensor(d, q_str_of(name));
    ck_assert_msg(t != NULL, "no %s", name);
    ck_assert_str_eq(t->format->name, "f32");
    ck_assert_uint_eq(t->shape[0], n);
    ck_assert_uint_eq(t->rows, 1);
    return (const float *)(const void *)t->data;
}

/* ---- what is measured */

START_TEST(sums_agree_with_float64) {
    /* The first layer's input is the normed embedding of each token; the first of a window is BOS. */
    const char *dst = in_tmp(1, "stats.gguf");
    calibrated(dst, WINDOW, 2);
    q_directory *m = directory(in_tmp(0, "model.gguf")), *d = directory(dst);
    const float *embd = (const float *)(const void *)q_directory_tensor(m, q_str_of("token_embd.weight"))->data;
    const float *norm = tensor_data(m, "blk.0.attn_norm.weight", WIDTH);
    const double eps = q_directory_meta(m, "llama.attention.layer_norm_rms_epsilon")->f;
    double want[WIDTH] = {0};
    for (int i = 0; i < TOKENS / WINDOW * WINDOW; i++) {
        const float *x = embd + (i % WINDOW ? ids[i] : 1) * WIDTH;
        double square = 0;
        for (int j = 0; j < WIDTH; j++) square += (double)x[j] * x[j];
        for (int j = 0; j < WIDTH; j++) {
            const double v = x[j] / sqrt(square / WIDTH + eps) * norm[j];
            want[j] += v * v;
        }
    }
    static const char *const roles[] = {"attn_q", "attn_k", "attn_v"}; /* all three read the same */
    for (size_t r = 0; r < Q_COUNT(roles); r++) {
        char name[64];
        snprintf(name, sizeof name, "blk.0.%s.weight.in_sum2", roles[r]);
        const float *sums = tensor_data(d, name, WIDTH);
        for (int j = 0; j < WIDTH; j++) ck_assert_double_eq_tol((double)sums[j], want[j], 1e-5 * want[j]);
        snprintf(name, sizeof name, "blk.0.%s.weight.counts", roles[r]);
        ck_assert_float_eq(tensor_data(d, name, 1)[0], (float)(TOKENS / WINDOW * WINDOW));
    }
    q_directory_close(d);
    q_directory_close(m);
}
END_TEST

START_TEST(the_file_is_what_other_engines_read) {
    const char *dst = in_tmp(1, "stats.gguf");
    const lq_calibrate_result r = calibrated(dst, WINDOW, 2);
    ck_assert_uint_eq(r.window, WINDOW);
    ck_assert_uint_eq(r.chunks, 4);
    ck_assert_uint_eq(r.tokens, 64);
    ck_assert_uint_eq(r.entries, 14);
    struct stat st;
    ck_assert_int_eq(stat(dst, &st), 0);
    ck_assert_uint_eq(r.bytes, (uint64_t)st.st_size);
    q_directory *d = directory(dst);
    ck_assert_uint_eq(d->n_tensors, 28);
    ck_assert(q_str_is(q_directory_meta(d, "general.type")->s, "imatrix"));
    const q_meta *sets = q_directory_meta(d, "imatrix.datasets");
    ck_assert(sets->type == Q_META_ARRAY && sets->item == Q_META_STRING && sets->count == 1);
    ck_assert(q_str_is(sets->strs[0], "text.txt"));
    ck_assert_uint_eq(q_directory_meta(d, "imatrix.chunk_count")->u, 4);
    ck_assert_uint_eq(q_directory_meta(d, "imatrix.chunk_size")->u, WINDOW);
    q_directory_close(d);
    q_importance *im;
    ck_assert_msg(q_importance_open(A, NULL, dst, &im) == LQ_OK, "%s", lq_error_detail());
    ck_assert_uint_eq(im->n_entries, 14);
    const q_importance_entry *e;
    ck_assert_int_eq(q_importance_find(im, q_str_of("blk.1.ffn_down.weight"), 96, 1, &e), LQ_OK);
    ck_assert_ptr_nonnull(e);
    q_importance_close(im);
}
END_TEST

static uint64_t hash_of(const char *path) {
    uint8_t *data;
    uint64_t n;
    ck_assert_int_eq(q_file_slurp(A, path, 1 << 24, &data, &n), LQ_OK);
    const uint64_t h = q_fnv64(data, n);
    q_delete(A, data);
    return h;
}

START_TEST(neither_threads_nor_batches_change_a_byte) {
    calibrated(in_tmp(1, "one.gguf"), WINDOW, 1);
    const uint64_t want = hash_of(paths[1]);
    static const uint32_t batches[] = {WINDOW, 5, 1};
    for (uint32_t i = 0; i < 3; i++) {
        char name[32];
        snprintf(name, sizeof name, "%u.gguf", i);
        calibrated(in_tmp(2, name), batches[i], i + 1);
        ck_assert_uint_eq(hash_of(paths[2]), want);
    }
}
END_TEST

START_TEST(the_session_is_an_ordinary_one_afterwards) {
    lq_session *s = session(WINDOW, WINDOW, 1), *fresh = session(WINDOW, WINDOW, 1);
    const lq_calibrate_options o = options();
    ck_assert_int_eq(lq_calibrate(s, ids, TOKENS, in_tmp(1, "stats.gguf"), &o, NULL), LQ_OK);
    const uint64_t before = hash_of(paths[1]);
    ck_assert_int_eq(lq_seq_truncate(s, 0, 0), LQ_OK);
    const float *a, *b;
    ck_assert_int_eq(t_decode(s, ids, 8, 7), LQ_OK);
    ck_assert_int_eq(t_decode(fresh, ids, 8, 7), LQ_OK);
    ck_assert_int_eq(lq_logits(s, 0, &a), LQ_OK);
    ck_assert_int_eq(lq_logits(fresh, 0, &b), LQ_OK);
    ck_assert_mem_eq(a, b, VOCAB * sizeof *a);
    ck_assert_uint_eq(hash_of(paths[1]), before);
    lq_session_close(s);
    lq_session_close(fresh);
}
END_TEST

/* ---- what is refused */

START_TEST(texts_and_windows_that_do_not_do) {
    lq_session *s = session(32, 32, 1);
    const char *dst = in_tmp(1, "stats.gguf");
    lq_calibrate_options o = options();
    REFUSED(lq_calibrate(s, ids, WINDOW - 1, dst, &o, NULL), LQ_E_ARG, "15 tokens", "at least 16");
    o.max_tokens = 10;
    REFUSED(lq_calibrate(s, ids, TOKENS, dst, &o, NULL), LQ_E_ARG, "10 tokens");
    o = options();
    o.window = 33;
    REFUSED(lq_calibrate(s, ids, TOKENS, dst, &o, NULL), LQ_E_ARG, "33", "32");
    o.window = 1;
    REFUSED(lq_calibrate(s, ids, TOKENS, dst, &o, NULL), LQ_E_ARG, "windows of 1");
    o.window = 0; /* the trained context of 64, more than the session has */
    REFUSED(lq_calibrate(s, ids, TOKENS, dst, &o, NULL), LQ_E_ARG, "windows of 64");
    o = options();
    ids[69] = VOCAB;
    REFUSED(lq_calibrate(s, ids, TOKENS, dst, &o, NULL), LQ_E_ARG, "token 69 is 262");
    ids[69] = 3;
    o.size = 3;
    REFUSED(lq_calibrate(s, ids, TOKENS, dst, &o, NULL), LQ_E_ARG, "lq_calibrate_options");
    REFUSED(lq_calibrate(NULL, ids, TOKENS, dst, NULL, NULL), LQ_E_ARG, "lq_calibrate");
    lq_calibrate_result r = {.size = 1};
    REFUSED(lq_calibrate(s, ids, TOKENS, dst, NULL, &r), LQ_E_ARG, "lq_calibrate_result");
    ck_assert_int_eq(files_in_tmp(), 1);
    lq_session_close(s);
}
END_TEST

START_TEST(an_output_that_is_there_or_is_the_model) {
    lq_session *s = session(WINDOW, WINDOW, 1);
    lq_calibrate_options o = options();
    const char *dst = in_tmp(1, "stats.gguf"), *link_name = in_tmp(2, "link.gguf");
    calibrated(dst, WINDOW, 1);
    const uint64_t before = hash_of(dst), whole = hash_of(paths[0]);
    o.max_tokens = 32;
    REFUSED(lq_calibrate(s, ids, TOKENS, dst, &o, NULL), LQ_E_ARG, dst, "exists");
    ck_assert_uint_eq(hash_of(dst), before);
    o.force = 1;
    ck_assert_int_eq(lq_calibrate(s, ids, TOKENS, dst, &o, NULL), LQ_OK);
    ck_assert_uint_ne(hash_of(dst), before);
    ck_assert_int_eq(symlink(paths[0], link_name), 0);
    REFUSED(lq_calibrate(s, ids, TOKENS, paths[0], &o, NULL), LQ_E_ARG, paths[0], "one of the inputs");
    REFUSED(lq_calibrate(s, ids, TOKENS, link_name, &o, NULL), LQ_E_ARG, "one of the inputs");
    ck_assert_uint_eq(hash_of(paths[0]), whole);
    REFUSED(lq_calibrate(s, ids, TOKENS, in_tmp(3, "absent/stats.gguf"), &o, NULL), LQ_E_IO, "absent");
    lq_session_close(s);
}
END_TEST

/* Put a value into a tensor of the file, and open it. */
static void spoil(const char *name, uint64_t row, uint64_t column, float v) {
    close_tiny();
    q_directory *d = directory(paths[0]);
    const q_tensor *t = q_directory_tensor(d, q_str_of(name));
    ck_assert_msg(t != NULL, "no %s", name);
    const uint64_t at = (uint64_t)((const uint8_t *)t->data - q_file_data(d->files[0])) + (row * t->shape[0] + column) * sizeof v;
    q_directory_close(d);
    FILE *f = fopen(paths[0], "r+b");
    fseek(f, (long)at, SEEK_SET);
    fwrite(&v, sizeof v, 1, f);
    ck_assert_int_eq(fclose(f), 0);
    const lq_options o = {.size = sizeof o, .threads = 2};
    ck_assert_msg(lq_open(&o, &ctx) == LQ_OK, "%s", lq_error_detail());
    ck_assert_msg(lq_model_open(ctx, paths[0], NULL, &model) == LQ_OK, "%s", lq_error_detail());
}
static int must_not_begin(void *user, uint64_t done, uint64_t total, const char *what) {
    Q_UNUSED(user);
    ck_abort_msg("it began: %d of %d %s", (int)done, (int)total, what);
    return 0;
}

/* Before anything is measured, whatever calibration it is, and also where this text would never come by. */
START_TEST(weights_that_are_not_finite) {
    static const struct {
        const char *name;
        uint64_t row, column;
        float v;
        const char *place;
    } bad[] = {{"output.weight", 261, 63, NAN, "row 261, column 63"}, {"token_embd.weight", 2, 0, INFINITY, "row 2, column 0"},
               {"blk.1.ffn_down.weight", 63, 95, -INFINITY, "row 63, column 95"}, {"blk.0.attn_norm.weight", 0, 7, NAN, "row 0, column 7"}};
    for (size_t i = 0; i < Q_COUNT(bad); i++) {
        if (i) {
            close_tiny();
            open_tiny(NULL);
        }
        spoil(bad[i].name, bad[i].row, bad[i].column, bad[i].v);
        for (int layers = 0; layers < 2; layers++) {
            lq_session *s = session(WINDOW, WINDOW, 1 + (uint32_t)layers);
            lq_calibrate_options o = options();
            o.progress = must_not_begin;
            o.scheme = layers ? "awq+q4_0:rtn" : NULL;
            REFUSED(lq_calibrate(s, ids, TOKENS, in_tmp(1, "stats.gguf"), &o, NULL), LQ_E_INCONSISTENT, bad[i].name, bad[i].place,
                    "not finite");
            ck_assert_int_eq(files_in_tmp(), 1);
            lq_session_close(s);
        }
    }
    spoil(bad[3].name, bad[3].row, 2, NAN); /* of several, the first */
    lq_session *s = session(WINDOW, WINDOW, 2);
    const lq_calibrate_options o = options();
    REFUSED(lq_calibrate(s, ids, TOKENS, paths[1], &o, NULL), LQ_E_INCONSISTENT, bad[3].name, "row 0, column 2");
    lq_session_close(s);
}
END_TEST

static int count_calls(void *user, uint64_t done, uint64_t total, const char *what) {
    Q_UNUSED(done);
    Q_UNUSED(total);
    Q_UNUSED(what);
    ++*(int *)user;
    return 0;
}
START_TEST(inputs_that_are_not_finite) {
    close_tiny();
    open_tiny("blk.0.ffn_up.weight"); /* what it makes overflows once it is squared */
    lq_session *s = session(WINDOW, WINDOW, 1);
    lq_calibrate_options o = options();
    int calls = 0;
    o.progress = count_calls;
    o.user = &calls;
    REFUSED(lq_calibrate(s, ids, TOKENS, in_tmp(1, "stats.gguf"), &o, NULL), LQ_E_NUMERIC, "blk.0.ffn_down.weight",
            "not finite");
    ck_assert_int_eq(calls, 1); /* by the first window */
    ck_assert_int_eq(files_in_tmp(), 1);
    lq_session_close(s);
}
END_TEST

/* ---- adapters */

static char warned[2048];
static void on_log(void *user, lq_log_level level, const char *message) {
    Q_UNUSED(user);
    if (level == LQ_LOG_WARN && strstr(message, "adapters")) snprintf(warned, sizeof warned, "%s", message);
}
/* What lq_quantize warns of. */
static const char *quantized(const char *src, const char *dst, const char *stats, const char *adapter, float scale) {
    const lq_options o = {.size = sizeof o, .threads = 2, .log = on_log};
    const lq_quantize_options q = {.size = sizeof q, .scheme = stats ? "q4_0" : "f16", .importance = stats, .loras = &adapter,
                                   .lora_scales = &scale, .n_loras = adapter != NULL, .force = 1};
    lq_ctx *c;
    warned[0] = 0;
    ck_assert_int_eq(lq_open(&o, &c), LQ_OK);
    ck_assert_msg(lq_quantize(c, src, dst, &q, NULL) == LQ_OK, "%s", lq_error_detail());
    lq_close(c);
    return warned;
}
/* Rank 1, on blk.0.attn_q. */
static void write_adapter(const char *path) {
    const q_meta meta[] = {{.key = q_str_of("general.architecture"), .type = Q_META_STRING, .count = 1, .s = q_str_of("llama")},
                           {.key = q_str_of("general.type"), .type = Q_META_STRING, .count = 1, .s = q_str_of("adapter")},
                           {.key = q_str_of("adapter.type"), .type = Q_META_STRING, .count = 1, .s = q_str_of("lora")},
                           {.key = q_str_of("adapter.lora.alpha"), .type = Q_META_F32, .count = 1, .f = 1}};
    const q_format *f32 = q_format_find("f32");
    const q_out_tensor out[] = {
        {.name = q_str_of("blk.0.attn_q.weight.lora_a"), .format = f32, .rank = 2, .shape = {WIDTH, 1, 1, 1, 1, 1, 1, 1}},
        {.name = q_str_of("blk.0.attn_q.weight.lora_b"), .format = f32, .rank = 2, .shape = {1, WIDTH, 1, 1, 1, 1, 1, 1}}};
    q_writer *w;
    float row[WIDTH];
    for (int i = 0; i < WIDTH; i++) row[i] = 0.01f * (float)(i % 7);
    ck_assert_msg(q_writer_gguf.open(A, path, true, meta, 4, out, 2, &w) == LQ_OK, "%s", lq_error_detail());
    for (int i = 0; i < 2; i++) ck_assert_int_eq(q_writer_gguf.write(w, row, sizeof row), LQ_OK);
    ck_assert_msg(q_writer_gguf.commit(w, NULL) == LQ_OK, "%s", lq_error_detail());
}

/* Statistics know which adapters the model had that they are of; whatever else is quantized by them is told. */
START_TEST(statistics_beside_adapters) {
    char adapter[1400], merged[1400], out[1400];
    const char *plain = in_tmp(1, "plain.gguf"), *tuned = in_tmp(2, "tuned.gguf");
    t_path(adapter, sizeof adapter, folder, "my-adapter.gguf");
    t_path(merged, sizeof merged, folder, "merged.gguf");
    t_path(out, sizeof out, folder, "out.gguf");
    write_adapter(adapter);
    calibrated(plain, WINDOW, 2);
    ck_assert_str_eq(quantized(paths[0], out, plain, NULL, 1), "");
    quantized(paths[0], out, plain, adapter, 0.5f);
    ck_assert_msg(strstr(warned, "plain.gguf") && strstr(warned, "without adapters") && strstr(warned, "my-adapter.gguf scale 0.5"),
                  "'%s'", warned);
    ck_assert_str_eq(quantized(paths[0], merged, NULL, adapter, 0.5f), "");
    close_tiny();
    const lq_options o = {.size = sizeof o, .threads = 2};
    ck_assert_int_eq(lq_open(&o, &ctx), LQ_OK);
    ck_assert_msg(lq_model_open(ctx, merged, NULL, &model) == LQ_OK, "%s", lq_error_detail());
    calibrated(tuned, WINDOW, 2);
    ck_assert_str_eq(quantized(merged, out, tuned, NULL, 1), ""); /* what was measured */
    ck_assert_str_eq(quantized(paths[0], out, tuned, adapter, 0.5f), ""); /* the same function */
    quantized(paths[0], out, tuned, adapter, 1);
    ck_assert_msg(strstr(warned, "scale 0.5, and") && strstr(warned, "scale 1;"), "'%s'", warned);
    quantized(paths[0], out, tuned, NULL, 1);
    ck_assert_msg(strstr(warned, "tuned.gguf") && strstr(warned, "are: none"), "'%s'", warned);
}
END_TEST

/* ---- what is left behind */

typedef struct seen {
    uint32_t calls, cancel_at;
    uint64_t done, total;
} seen;
static int on_progress(void *user, uint64_t done, uint64_t total, const char *what) {
    seen *s = (seen *)user;
    ck_assert_uint_le(done, total);
    ck_assert_uint_ge(done, s->done);
    ck_assert_str_eq(what, "tokens");
    s->done = done;
    s->total = total;
    return ++s->calls == s->cancel_at;
}

START_TEST(cancelling_leaves_nothing) {
    lq_session *s = session(WINDOW, WINDOW, 1);
    lq_calibrate_options o = options();
    const char *dst = in_tmp(1, "stats.gguf");
    o.progress = on_progress;
    for (uint32_t at = 1; at <= 4; at++) {
        seen v = {.cancel_at = at};
        o.user = &v;
        lq_calibrate_result r = {.size = sizeof r};
        ck_assert_int_eq(lq_calibrate(s, ids, TOKENS, dst, &o, &r), LQ_E_CANCELLED);
        ck_assert_uint_eq(v.calls, at);
        ck_assert_uint_eq(r.entries, 0);
        ck_assert_int_eq(files_in_tmp(), 1);
    }
    lq_session_cancel(s);
    ck_assert_int_eq(lq_calibrate(s, ids, TOKENS, dst, NULL, NULL), LQ_E_ARG); /* refused: not the call that obeys */
    seen v = {0};
    o.user = &v;
    ck_assert_int_eq(lq_calibrate(s, ids, TOKENS, dst, &o, NULL), LQ_E_CANCELLED);
    ck_assert_int_eq(files_in_tmp(), 1);
    v = (seen){0};
    ck_assert_int_eq(lq_calibrate(s, ids, TOKENS, dst, &o, NULL), LQ_OK);
    ck_assert_uint_eq(v.calls, 5);
    ck_assert_uint_eq(v.done, 64);
    ck_assert_uint_eq(v.total, 64);
    lq_session_close(s);
}
END_TEST

static Suite *suite(void) {
    Suite *s = suite_create("calibrate");
    TCase *t = tcase_create("calibrate");
    tcase_add_checked_fixture(t, setup, teardown);
    tcase_add_test(t, sums_agree_with_float64);
    tcase_add_test(t, the_file_is_what_other_engines_read);
    tcase_add_test(t, neither_threads_nor_batches_change_a_byte);
    tcase_add_test(t, the_session_is_an_ordinary_one_afterwards);
    tcase_add_test(t, texts_and_windows_that_do_not_do);
    tcase_add_test(t, an_output_that_is_there_or_is_the_model);
    tcase_add_test(t, weights_that_are_not_finite);
    tcase_add_test(t, inputs_that_are_not_finite);
    tcase_add_test(t, statistics_beside_adapters);
    tcase_add_test(t, cancelling_leaves_nothing);
    suite_add_tcase(s, t);
    return s;
}
HARNESS_MAIN(suite)
