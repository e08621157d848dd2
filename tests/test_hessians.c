/* test_hessians.c: lq_calibrate with Hessians: what it measures, on the model as it is and behind quantized matrices; that
 * neither threads, files for memory nor a killed process change a byte; and files of statistics that are none. */
#include "help_calibrate.h"

#include <math.h>

#include "../libquant/dense.h"
#include "../libquant/importance.h"

static bool has_dense(void) {
    q_dense *d;
    if (q_dense_open(A, &d) != LQ_OK) return false;
    q_dense_close(d);
    return true;
}
#define NEEDS_DENSE() \
    if (!has_dense()) T_SKIP("OpenBLAS is not installed (libopenblas0-pthread)")

static lq_calibrate_options options(const char *scheme) {
    return (lq_calibrate_options){.size = sizeof(lq_calibrate_options), .window = WINDOW, .hessians = 1, .scheme = scheme,
                                  .force = 1, .dataset = "text.txt"};
}
static const float *tensor(const q_directory *d, const char *name, uint64_t n) {
    const q_tensor *t = q_directory_tensor(d, q_str_of(name));
    ck_assert_msg(t != NULL, "no %s", name);
    ck_assert_uint_eq(t->shape[0] * t->rows, n);
    return (const float *)(const void *)t->data;
}

/* ---- what is measured */

START_TEST(a_hessian_agrees_with_float64) {
    NEEDS_DENSE();
    const lq_calibrate_options o = options(NULL);
    calibrated(in_tmp(1, "stats.gguf"), 2, &o);
    q_directory *m = directory(paths[0]), *d = directory(paths[1]);
    const float *embd = tensor(m, "token_embd.weight", WIDTH * VOCAB), *norm = tensor(m, "blk.0.attn_norm.weight", WIDTH);
    const double eps = q_directory_meta(m, "llama.attention.layer_norm_rms_epsilon")->f;
    static double want[WIDTH][WIDTH];
    memset(want, 0, sizeof want);
    for (int i = 0; i < CHUNKS * WINDOW; i++) {
        const float *x = embd + (i % WINDOW ? ids[i] : 1) * WIDTH;
        double square = 0, v[WIDTH];
        for (int j = 0; j < WIDTH; j++) square += (double)x[j] * x[j];
        for (int j = 0; j < WIDTH; j++) v[j] = x[j] / sqrt(square / WIDTH + eps) * norm[j];
        for (int r = 0; r < WIDTH; r++)
            for (int c = 0; c <= r; c++) want[r][c] += v[r] * v[c] * 2 / (CHUNKS * WINDOW);
    }
    const float *h = tensor(d, "blk.0.attn_q.weight.hessian", WIDTH * (WIDTH + 1) / 2);
    for (int r = 0; r < WIDTH; r++)
        for (int c = 0; c <= r; c++, h++)
            ck_assert_double_eq_tol((double)*h, want[r][c], 1e-5 * sqrt(want[r][r] * want[c][c]));
    q_directory_close(d);
    q_directory_close(m);
    q_importance *im; /* tensors with the same input share one */
    const q_importance_entry *q, *v, *down;
    ck_assert_msg(q_importance_open(A, NULL, paths[1], &im) == LQ_OK, "%s", lq_error_detail());
    ck_assert_int_eq(q_importance_find(im, q_str_of("blk.0.attn_q.weight"), WIDTH, 1, &q), LQ_OK);
    ck_assert_int_eq(q_importance_find(im, q_str_of("blk.0.attn_v.weight"), WIDTH, 1, &v), LQ_OK);
    ck_assert_int_eq(q_importance_find(im, q_str_of("blk.1.ffn_down.weight"), FFN, 1, &down), LQ_OK);
    ck_assert(q->hessian && v->hessian == q->hessian && down->hessian && down->hessian != q->hessian);
    float *out = (float *)malloc(FFN * (FFN + 1) / 2 * sizeof *out);
    ck_assert_msg(q_importance_hessian(im, down, out) == LQ_OK, "%s", lq_error_detail());
    free(out);
    q_importance_close(im);
}
END_TEST

/* The stages give the sums that one pass through the model gives, to the bit, and others' tensors are all there. */
START_TEST(the_sums_are_those_of_a_whole_pass) {
    NEEDS_DENSE();
    lq_calibrate_options o = options(NULL);
    calibrated(in_tmp(1, "stats.gguf"), 3, &o);
    o.hessians = 0;
    calibrated(in_tmp(2, "plain.gguf"), 3, &o);
    q_directory *a = directory(paths[1]), *b = directory(paths[2]);
    ck_assert_uint_eq(b->n_tensors, 28);
    ck_assert_uint_eq(a->n_tensors, 28 + 8);
    for (uint32_t i = 0; i < b->n_tensors; i++) {
        const q_tensor *t = q_directory_tensor(a, b->tensors[i].name);
        ck_assert(t && t->bytes == b->tensors[i].bytes);
        ck_assert_msg(memcmp(t->data, b->tensors[i].data, t->bytes) == 0, "%.*s", Q_STR_ARG(t->name));
    }
    q_directory_close(a);
    q_directory_close(b);
}
END_TEST

static void quantized(const char *scheme, const char *stats, const char *dst) {
    const lq_quantize_options q = {.size = sizeof q, .scheme = scheme, .importance = stats, .force = 1, .threads = 2};
    ck_assert_msg(lq_quantize(ctx, paths[0], dst, &q, NULL) == LQ_OK, "%s", lq_error_detail());
}

/* Behind quantized matrices the inputs are those of the model that lq_quantize then makes. */
static const char *const schemes[] = {"q4_0:gptq", "gptq-4bit-g32-act"}; /* the second into a directory, of one */
START_TEST(with_a_scheme_the_inputs_are_those_of_the_result) {
    NEEDS_DENSE();
    if (_i) {
        static tiny t;
        close_model();
        tiny_init(&t, "f16");
        ck_assert_int_eq(mkdir(in_tmp(0, "source"), 0777), 0);
        tiny_write_hf(&t, paths[0]);
        open_model(paths[0]);
    }
    lq_calibrate_options o = options(schemes[_i]);
    calibrated(in_tmp(1, "stats.gguf"), 2, &o);
    quantized(schemes[_i], paths[1], in_tmp(2, _i ? "quantized" : "q4_0.gguf"));
    close_model();
    open_model(paths[2]);
    o.hessians = 0;
    o.scheme = NULL;
    calibrated(in_tmp(3, "of_result.gguf"), 2, &o);
    q_directory *a = directory(paths[1]), *b = directory(paths[3]);
    for (uint32_t i = 0; i < b->n_tensors; i++) {
        const q_tensor *t = &b->tensors[i];
        const float *want = (const float *)(const void *)t->data;
        char name[96];
        snprintf(name, sizeof name, "%.*s", Q_STR_ARG(t->name));
        const float *have = tensor(a, name, t->shape[0] * t->rows);
        for (uint64_t j = 0; j < t->shape[0]; j++)
            ck_assert_msg(fabsf(have[j] - want[j]) <= 1e-4f * want[j], "%s %d: %g, %g", name, (int)j, (double)have[j], (double)want[j]);
    }
    ck_assert(q_str_is(q_directory_meta(a, Q_HESSIAN_SCHEME)->s, schemes[_i]));
    q_directory_close(a);
    q_directory_close(b);
    if (_i) { /* some inputs have changed places, the same for all that read them */
        q_directory *d = directory(paths[2]);
        const char *const names[] = {"model.layers.1.self_attn.q_proj.weight", "model.layers.1.self_attn.v_proj.weight"};
        const int32_t *order[2];
        for (int i = 0; i < 2; i++) {
            const q_tensor *t = q_directory_tensor(d, q_str_of(names[i]));
            ck_assert(t && t->view && t->view->order);
            order[i] = t->view->order;
        }
        ck_assert_int_eq(memcmp(order[0], order[1], WIDTH * sizeof(int32_t)), 0);
        q_directory_close(d);
        for (int i = 0; i < 3; i += 2) {
            char inner[1024];
            snprintf(inner, sizeof inner, "%.1023s", paths[i]);
            t_files(inner, 1);
        }
    }
}
END_TEST

START_TEST(neither_threads_nor_files_for_memory_change_a_byte) {
    NEEDS_DENSE();
    lq_calibrate_options o = options("q4_0:gptq");
    calibrated(in_tmp(1, "one.gguf"), 1, &o);
    const uint64_t want = hash_of(paths[1]);
    for (uint32_t i = 2; i <= 3; i++) {
        o.max_ram = i == 2 ? smallest_ram(i, &o) : 0;
        calibrated(in_tmp(2, "other.gguf"), i, &o);
        ck_assert_uint_eq(hash_of(paths[2]), want);
        quantized("q4_0:gptq", paths[2], in_tmp(3 + (int)(i - 2), i == 2 ? "a.gguf" : "b.gguf"));
    }
    ck_assert_uint_eq(hash_of(paths[3]), hash_of(paths[4]));
    ck_assert_int_eq(files_in_tmp(), 5);
    o.max_ram = 1000;
    ck_assert_int_eq(calibrate(paths[2], 1, &o), LQ_E_NOMEM);
}
END_TEST

START_TEST(a_recipe_in_a_file_serves_as_well) {
    NEEDS_DENSE();
    lq_calibrate_options o = options("q4_0:gptq");
    FILE *f = fopen(in_tmp(3, "mine.txt"), "w");
    fputs("output q6_k\ntoken_embd q8_0\n* q4_0:gptq\n", f);
    fclose(f);
    o.recipe = paths[3];
    ck_assert_int_eq(calibrate(in_tmp(1, "stats.gguf"), 1, &o), LQ_E_ARG); /* both */
    o.scheme = NULL;
    calibrated(paths[1], 2, &o);
    const lq_quantize_options q = {.size = sizeof q, .recipe = paths[3], .importance = paths[1]};
    ck_assert_msg(lq_quantize(ctx, paths[0], in_tmp(2, "out.gguf"), &q, NULL) == LQ_OK, "%s", lq_error_detail());
    q_directory *d = directory(paths[1]);
    ck_assert(q_str_is(q_directory_meta(d, Q_HESSIAN_SCHEME)->s, "mine.txt"));
    q_directory_close(d);
}
END_TEST

static char warned[1024];
static void on_log(void *user, lq_log_level level, const char *message) {
    Q_UNUSED(user);
    if (level == LQ_LOG_WARN && strstr(message, "measured for scheme")) snprintf(warned, sizeof warned, "%s", message);
}

START_TEST(hessians_for_another_scheme_are_used_with_a_warning) {
    NEEDS_DENSE();
    const lq_options o = {.size = sizeof o, .threads = 2, .log = on_log};
    const lq_calibrate_options c = options("q4_0:gptq");
    lq_quantize_options q = {.size = sizeof q, .scheme = "q4_0:gptq", .importance = in_tmp(1, "stats.gguf")};
    lq_ctx *other;
    calibrated(paths[1], 2, &c);
    ck_assert_int_eq(lq_open(&o, &other), LQ_OK);
    warned[0] = 0;
    ck_assert_int_eq(lq_quantize(other, paths[0], in_tmp(2, "a.gguf"), &q, NULL), LQ_OK);
    ck_assert_str_eq(warned, "");
    q.scheme = "imatrix+q4_0:gptq"; /* other words, the same meaning */
    q.force = 1;
    ck_assert_int_eq(lq_quantize(other, paths[0], paths[2], &q, NULL), LQ_OK);
    ck_assert_str_eq(warned, "");
    q.scheme = "q5_0:gptq";
    ck_assert_int_eq(lq_quantize(other, paths[0], in_tmp(3, "b.gguf"), &q, NULL), LQ_OK);
    ck_assert_msg(strstr(warned, "q4_0:gptq, not q5_0:gptq") != NULL, "%s", warned);
    lq_close(other);
}
END_TEST

/* ---- what matrices of the same input share */

/* The same statistics, in which every matrix has a Hessian of its own. */
static void unshare(const char *src, const char *dst) {
    static const char *const shared[][2] = {{"attn_k", "attn_q"}, {"attn_v", "attn_q"}, {"ffn_up", "ffn_gate"}};
    enum { MORE = 2 * Q_COUNT(shared) };
    q_directory *d = directory(src);
    q_out_tensor *out = (q_out_tensor *)calloc(d->n_tensors + MORE, sizeof *out);
    q_meta *meta = (q_meta *)calloc(d->n_meta, sizeof *meta);
    const q_tensor *of[MORE];
    char names[MORE][64];
    uint32_t n = 0, keys = 0;
    for (; n < d->n_tensors; n++) {
        const q_tensor *t = &d->tensors[n];
        out[n] = (q_out_tensor){.name = t->name, .format = t->format, .rank = t->rank};
        memcpy(out[n].shape, t->shape, sizeof t->shape);
    }
    for (uint32_t i = 0; i < MORE; i++, n++) {
        char from[64];
        snprintf(from, sizeof from, "blk.%u.%s.weight.hessian", i % 2, shared[i / 2][1]);
        snprintf(names[i], sizeof names[i], "blk.%u.%s.weight.hessian", i % 2, shared[i / 2][0]);
        of[i] = q_directory_tensor(d, q_str_of(from));
        ck_assert_ptr_nonnull(of[i]);
        ck_assert_ptr_null(q_directory_tensor(d, q_str_of(names[i])));
        out[n] = (q_out_tensor){.name = q_str_of(names[i]), .format = of[i]->format, .rank = of[i]->rank};
        memcpy(out[n].shape, of[i]->shape, sizeof of[i]->shape);
    }
    for (uint32_t i = 0; i < d->n_meta; i++)
        if (!q_str_is(d->meta[i].key, Q_HESSIAN_TENSORS) && !q_str_is(d->meta[i].key, Q_HESSIAN_OF)) meta[keys++] = d->meta[i];
    ck_assert_uint_eq(keys, d->n_meta - 2);
    q_writer *w;
    ck_assert_msg(q_writer_gguf.open(A, dst, true, meta, keys, out, n, &w) == LQ_OK, "%s", lq_error_detail());
    for (uint32_t i = 0; i < n; i++) {
        const q_tensor *t = i < d->n_tensors ? &d->tensors[i] : of[i - d->n_tensors];
        ck_assert_int_eq(q_writer_gguf.write(w, t->data, t->bytes), LQ_OK);
    }
    ck_assert_msg(q_writer_gguf.commit(w, NULL) == LQ_OK, "%s", lq_error_detail());
    free(out);
    free(meta);
    q_directory_close(d);
}

/* Matrices that are factored, by their double precision. */
static int factored[2];
static void *counting_alloc(void *user, size_t bytes, size_t align) {
    factored[0] += bytes == WIDTH * WIDTH * sizeof(double) + Q_ALIGN;
    factored[1] += bytes == FFN * FFN * sizeof(double) + Q_ALIGN;
    return live_alloc(user, bytes, align);
}
static void count_factors(const char *recipe, const char *stats, const char *dst) {
    const lq_allocator hook = {counting_alloc, live_free, NULL};
    const lq_options o = {.size = sizeof o, .threads = 1, .allocator = &hook};
    const lq_quantize_options q = {.size = sizeof q, .recipe = recipe, .importance = stats, .force = 1};
    lq_ctx *c;
    ck_assert_int_eq(lq_open(&o, &c), LQ_OK);
    memset(factored, 0, sizeof factored);
    ck_assert_msg(lq_quantize(c, paths[0], dst, &q, NULL) == LQ_OK, "%s", lq_error_detail());
    lq_close(c);
}

/* One Hessian in the file, and one factor of it, for Q, K and V and for gate and up; formats may differ. What comes out is what
 * comes of a copy for each. */
START_TEST(matrices_of_the_same_input_share_a_hessian_and_its_factor) {
    NEEDS_DENSE();
    static const char *const own[] = {"attn_q", "attn_output", "ffn_gate", "ffn_down"};
    const lq_calibrate_options o = options(NULL);
    calibrated(in_tmp(1, "stats.gguf"), 2, &o);
    q_directory *d = directory(paths[1]);
    const q_meta *names = q_directory_meta(d, Q_HESSIAN_TENSORS), *of = q_directory_meta(d, Q_HESSIAN_OF);
    uint32_t hessians = 0;
    for (uint32_t i = 0; i < d->n_tensors; i++) hessians += strstr(d->tensors[i].name.p, ".hessian") != NULL;
    ck_assert_uint_eq(hessians, 2 * Q_COUNT(own));
    for (uint32_t i = 0; i < 2 * Q_COUNT(own); i++) {
        char name[64];
        snprintf(name, sizeof name, "blk.%u.%s.weight.hessian", i % 2, own[i / 2]);
        ck_assert_msg(q_directory_tensor(d, q_str_of(name)) != NULL, "no %s", name);
    }
    ck_assert(names && of && names->count == 6 && of->count == 6);
    for (uint32_t i = 0; i < 6; i++) /* attn_k and attn_v of attn_q, ffn_up of ffn_gate */
        ck_assert(strstr(of->strs[i].p, i % 3 < 2 ? "attn_q" : "ffn_gate") && names->strs[i].p[4] == of->strs[i].p[4]);
    q_directory_close(d);
    FILE *f = fopen(in_tmp(2, "mine.txt"), "w");
    fputs("output q8_0\ntoken_embd q8_0\nattn_v q5_0:gptq\n* q4_0:gptq\n", f);
    fclose(f);
    count_factors(paths[2], paths[1], in_tmp(3, "shared.gguf"));
    ck_assert_int_eq(factored[0], 2 * 3); /* Q, K, V; the output of attention; gate, up */
    ck_assert_int_eq(factored[1], 2);
    unshare(paths[1], in_tmp(4, "own.gguf"));
    count_factors(paths[2], paths[4], in_tmp(5, "own-out.gguf"));
    ck_assert_int_eq(factored[0], 2 * 6);
    q_directory *a = directory(paths[3]), *b = directory(paths[5]);
    ck_assert_uint_eq(a->n_tensors, b->n_tensors);
    for (uint32_t i = 0; i < a->n_tensors; i++) {
        ck_assert_uint_eq(a->tensors[i].bytes, b->tensors[i].bytes);
        ck_assert_mem_eq(a->tensors[i].data, b->tensors[i].data, a->tensors[i].bytes);
    }
    q_directory_close(a);
    q_directory_close(b);
}
END_TEST

/* ---- interruptions */

static int calls, kill_at, cancel_at;
static int progress(void *user, uint64_t done, uint64_t total, const char *what) {
    Q_UNUSED(user);
    ck_assert_uint_le(done, total);
    ck_assert(strncmp(what, "layer ", 6) == 0);
    calls++;
    if (calls == kill_at) raise(SIGKILL);
    return calls == cancel_at;
}

START_TEST(a_killed_run_goes_on_and_ends_with_the_same_bytes) {
    NEEDS_DENSE();
    lq_calibrate_options o = options("q4_0:gptq");
    o.progress = progress;
    calls = kill_at = cancel_at = 0;
    calibrated(in_tmp(1, "whole.gguf"), 1, &o);
    const uint64_t want = hash_of(paths[1]);
    const int all = calls, at[] = {2, all / 3, all * 2 / 3, all - 1};
    for (size_t i = 0; i < Q_COUNT(at); i++) {
        in_tmp(2, "stats.gguf");
        killed(paths[2], &o, &calls, &kill_at, at[i]);
        ck_assert_int_ne(access(paths[2], F_OK), 0); /* nothing under its name before it is complete */
        calls = kill_at = 0;
        calibrated(paths[2], 1, &o);
        ck_assert_uint_eq(hash_of(paths[2]), want);
        if (at[i] > all / 2) ck_assert_int_lt(calls, all); /* what was finished is not done again */
        unlink(paths[2]);
        ck_assert_int_eq(files_in_tmp(), 2); /* and then goes */
    }
}
END_TEST

/* Stop a calibration in its second half: files are kept. */
static void interrupted(const char *dst, lq_calibrate_options *o, int all) {
    cancel_at = all * 2 / 3;
    calls = 0;
    ck_assert_int_eq(calibrate(dst, 1, o), LQ_E_CANCELLED);
    cancel_at = 0;
}
static void write_text(const char *path, const char *text) {
    FILE *f = fopen(path, "w");
    ck_assert_ptr_nonnull(f);
    fputs(text, f);
    ck_assert_int_eq(fclose(f), 0);
}

/* Not used for another calibration, which says that it is there, and takes it away when it is complete; what only looks so
 * stays. */
START_TEST(what_was_kept_for_something_else_goes_with_it) {
    NEEDS_DENSE();
    static const char *const others[] = {"stats.gguf.notes", "stats.gguf.0123456789abcdef.rows", "stats.gguf.0123456789abcdef.layer",
                                         "stats.gguf.0123456789ABCDEF.layer1", "other.gguf.0123456789abcdef.layer1"};
    lq_calibrate_options o = options("q4_0:gptq");
    char path[1400];
    o.progress = progress;
    calls = kill_at = cancel_at = 0;
    calibrated(in_tmp(1, "whole.gguf"), 1, &o);
    const int all = calls;
    ck_assert_str_eq(heard, "");
    interrupted(in_tmp(2, "stats.gguf"), &o, all);
    ck_assert_int_gt(files_in_tmp(), 2);
    for (size_t i = 0; i < Q_COUNT(others); i++) write_text(t_path(path, sizeof path, folder, others[i]), "a text of somebody's");
    write_text(t_path(path, sizeof path, folder, ".stats.gguf.0123456789abcdef.layer1.lq-tmp"), "what a killed process wrote");
    calls = 0;
    o.scheme = "q5_0:gptq"; /* another calibration begins anew */
    calibrated(paths[2], 1, &o);
    ck_assert_int_ge(calls, all);
    ck_assert_msg(strstr(heard, "stats.gguf") && strstr(heard, "3 files") && strstr(heard, "go when"), "'%s'", heard);
    ck_assert_int_eq(files_in_tmp(), 3 + (int)Q_COUNT(others)); /* the model, both results */
    for (size_t i = 0; i < Q_COUNT(others); i++) ck_assert_int_eq(access(t_path(path, sizeof path, folder, others[i]), F_OK), 0);
    heard[0] = 0;
    calibrated(paths[2], 1, &o);
    ck_assert_str_eq(heard, "");
}
END_TEST

START_TEST(what_was_kept_and_is_damaged_is_not_used) {
    NEEDS_DENSE();
    lq_calibrate_options o = options("q4_0:gptq");
    o.progress = progress;
    calls = kill_at = cancel_at = 0;
    calibrated(in_tmp(1, "whole.gguf"), 1, &o);
    const int all = calls;
    interrupted(in_tmp(2, "stats.gguf"), &o, all);
    DIR *d = opendir(folder);
    for (struct dirent *e; (e = readdir(d)) != NULL;) {
        char path[1400];
        snprintf(path, sizeof path, "%s/%s", folder, e->d_name);
        if (!strstr(e->d_name, ".rows")) continue;
        FILE *f = fopen(path, "r+b");
        fseek(f, 100, SEEK_SET);
        fputc(0x55, f);
        fclose(f);
    }
    closedir(d);
    calls = 0;
    calibrated(paths[2], 1, &o);
    ck_assert_int_ge(calls, all);
    ck_assert_uint_eq(hash_of(paths[2]), hash_of(paths[1]));
    ck_assert_int_eq(files_in_tmp(), 3);
}
END_TEST

/* ---- refusals */

#define REFUSED(expr, code, ...)                                                                      \
    do {                                                                                              \
        ck_assert_int_eq((expr), (code));                                                             \
        const char *says_[] = {__VA_ARGS__};                                                          \
        for (size_t i_ = 0; i_ < Q_COUNT(says_); i_++)                                                \
            ck_assert_msg(strstr(lq_error_detail(), says_[i_]) != NULL, "'%s' does not say '%s'",     \
                          lq_error_detail(), says_[i_]);                                              \
    } while (0)

START_TEST(what_is_refused) {
    NEEDS_DENSE();
    lq_calibrate_options o = options("q4_9:gptq");
    REFUSED(calibrate(in_tmp(1, "stats.gguf"), 1, &o), LQ_E_ARG, "q4_9");
    o = options("q4_0:gptq");
    o.hessians = 0;
    REFUSED(calibrate(paths[1], 1, &o), LQ_E_ARG, "Hessians");
    ck_assert_int_eq(files_in_tmp(), 1);
    o.scheme = NULL;
    calibrated(paths[1], 1, &o);
    lq_quantize_options q = {.size = sizeof q, .scheme = "q4_0:gptq"};
    REFUSED(lq_quantize(ctx, paths[0], in_tmp(2, "out.gguf"), &q, NULL), LQ_E_ARG, "attn_q", "gptq", "--hessians");
    q.importance = paths[1]; /* statistics, but no Hessians */
    REFUSED(lq_quantize(ctx, paths[0], paths[2], &q, NULL), LQ_E_ARG, "attn_q", "gptq", "--hessians");
}
END_TEST

/* One value of a Hessian replaced; `row` and `column` of it. */
static void spoil(const char *path, const char *name, int row, int column, float v) {
    q_directory *d = directory(path);
    const q_tensor *t = q_directory_tensor(d, q_str_of(name));
    ck_assert_ptr_nonnull(t);
    const long offset = (long)((const uint8_t *)t->data - q_file_data(d->files[0])) + (row * (row + 1) / 2 + column) * 4L;
    q_directory_close(d);
    FILE *f = fopen(path, "r+b");
    fseek(f, offset, SEEK_SET);
    fwrite(&v, sizeof v, 1, f);
    fclose(f);
}

START_TEST(files_that_keep_no_order_are_refused) {
    NEEDS_DENSE();
    const lq_calibrate_options o = options(NULL);
    const lq_quantize_options q = {.size = sizeof q, .scheme = "q4_0:gptq_act", .importance = in_tmp(1, "stats.gguf")};
    calibrated(paths[1], 2, &o);
    REFUSED(lq_quantize(ctx, paths[0], in_tmp(2, "out.gguf"), &q, NULL), LQ_E_ARG, "attn_q", "gptq_act", "gptq-act keep");
}
END_TEST

START_TEST(values_that_no_hessian_has) {
    NEEDS_DENSE();
    static const struct { int row, column; float v; const char *says; } bad[] = {
        {5, 5, NAN, "no mean square of input 5"}, {5, 5, -1.0f, "no mean square of input 5"}, {9, 4, NAN, "of inputs 9 and 4"},
        {9, 4, 1e30f, "of inputs 9 and 4"}, {63, 0, INFINITY, "of inputs 63 and 0"}};
    const lq_calibrate_options o = options(NULL);
    for (size_t i = 0; i < Q_COUNT(bad); i++) {
        const lq_quantize_options q = {.size = sizeof q, .scheme = "q4_0:gptq", .importance = in_tmp(1, "stats.gguf")};
        calibrated(paths[1], 2, &o);
        spoil(paths[1], "blk.1.ffn_gate.weight.hessian", bad[i].row, bad[i].column, bad[i].v);
        REFUSED(lq_quantize(ctx, paths[0], in_tmp(2, "out.gguf"), &q, NULL), LQ_E_INCONSISTENT, "stats.gguf",
                "blk.1.ffn_gate.weight.hessian", bad[i].says);
        ck_assert_int_eq(files_in_tmp(), 2);
    }
}
END_TEST

static Suite *make(void) {
    Suite *s = suite_create("hessians");
    TCase *c = tcase_create("hessians");
    tcase_add_checked_fixture(c, setup, teardown);
    tcase_add_test(c, a_hessian_agrees_with_float64);
    tcase_add_test(c, the_sums_are_those_of_a_whole_pass);
    tcase_add_loop_test(c, with_a_scheme_the_inputs_are_those_of_the_result, 0, 2);
    tcase_add_test(c, files_that_keep_no_order_are_refused);
    tcase_add_test(c, neither_threads_nor_files_for_memory_change_a_byte);
    tcase_add_test(c, a_recipe_in_a_file_serves_as_well);
    tcase_add_test(c, hessians_for_another_scheme_are_used_with_a_warning);
    tcase_add_test(c, matrices_of_the_same_input_share_a_hessian_and_its_factor);
    tcase_add_test(c, a_killed_run_goes_on_and_ends_with_the_same_bytes);
    tcase_add_test(c, what_was_kept_for_something_else_goes_with_it);
    tcase_add_test(c, what_was_kept_and_is_damaged_is_not_used);
    tcase_add_test(c, what_is_refused);
    tcase_add_test(c, values_that_no_hessian_has);
    suite_add_tcase(s, c);
    return s;
}
HARNESS_MAIN(make)
