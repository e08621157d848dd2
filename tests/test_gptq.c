/* test_gptq.c: the dense algebra behind Hessians against plain loops in double, and the quantizer gptq: less error in the
 * output than the others, bytes that depend on nothing but the matrix, and Hessians that are none. */
#include "harness.h"

#include <math.h>
#include <sys/resource.h>
#include <sys/wait.h>
#include <unistd.h>

#include "../libquant/dense.h"
#include "../libquant/quantizer.h"

static const q_alloc *const A = &q_alloc_libc;
enum { K = 768, ROWS = 37, SAMPLES = 1500 };

/* The library may be absent: then that is said, and the test has nothing to do. */
static q_dense *dense(void) {
    q_dense *d = NULL;
    const lq_status s = q_dense_open(A, &d);
    if (s == LQ_OK) return d;
    ck_assert_int_eq(s, LQ_E_UNSUPPORTED);
    ck_assert_msg(strstr(lq_error_detail(), "libopenblas0-pthread") != NULL, "%s", lq_error_detail());
    return NULL;
}
#define NEEDS_DENSE(d)      \
    q_dense *d = dense();   \
    if (!d) T_SKIP("OpenBLAS is not installed (libopenblas0-pthread)")

static q_pool *pool(uint32_t threads) {
    q_pool *p;
    ck_assert_int_eq(q_pool_open(A, threads, &p), LQ_OK);
    return p;
}

/* Inputs that go together, some much larger than others, as those of a model do. */
static float *inputs(int k, int n, uint64_t seed) {
    float *x = (float *)malloc((size_t)k * (size_t)n * sizeof *x);
    enum { SOURCES = 24 };
    float *mix = (float *)malloc((size_t)k * SOURCES * sizeof *mix);
    for (int i = 0; i < k * SOURCES; i++) mix[i] = t_normal(&seed);
    for (int r = 0; r < n; r++) {
        float s[SOURCES];
        for (int i = 0; i < SOURCES; i++) s[i] = t_normal(&seed);
        for (int j = 0; j < k; j++) {
            float v = 0.7f * t_normal(&seed);
            for (int i = 0; i < SOURCES; i++) v += 0.3f * s[i] * mix[j * SOURCES + i];
            x[r * k + j] = v * (j % 97 == 0 ? 8.0f : 0.5f + (float)(j % 7) * 0.2f);
        }
    }
    free(mix);
    return x;
}

/* The triangle of 2/n sum x x'. */
static float *hessian_of(const q_dense *d, const float *x, int k, int n) {
    float *h = (float *)calloc((size_t)k * (size_t)k, sizeof *h), *t = h;
    q_pool *p = pool(2);
    q_dense_gram(d, p, x, n, k, k, h);
    q_pool_close(p);
    for (int i = 0; i < k; i++)
        for (int j = 0; j <= i; j++) *t++ = h[i * k + j] * 2.0f / (float)n;
    return h;
}
static float at(const float *h, int i, int j) { return i >= j ? h[i * (i + 1) / 2 + j] : h[j * (j + 1) / 2 + i]; }

/* ---- dense algebra */

START_TEST(sums_of_outer_products) {
    NEEDS_DENSE(d);
    enum { N = 70, KK = 300 };
    float *x = inputs(KK, N, 1), *h = (float *)calloc(KK * KK, sizeof *h), *again = (float *)calloc(KK * KK, sizeof *h);
    q_pool *one = pool(1), *three = pool(3);
    q_dense_gram(d, one, x, N / 2, KK, KK, h);
    q_dense_gram(d, one, x + N / 2 * KK, N - N / 2, KK, KK, h);
    q_dense_gram(d, three, x, N / 2, KK, KK, again);
    q_dense_gram(d, three, x + N / 2 * KK, N - N / 2, KK, KK, again);
    ck_assert_int_eq(memcmp(h, again, KK * KK * sizeof *h), 0);
    for (int i = 0; i < KK; i++)
        for (int j = 0; j <= i; j++) {
            double want = 0, size = 0;
            for (int r = 0; r < N; r++) {
                want += (double)x[r * KK + i] * x[r * KK + j];
                size += fabs((double)x[r * KK + i] * x[r * KK + j]);
            }
            ck_assert_double_eq_tol((double)h[i * KK + j], want, 1e-6 * size);
        }
    q_pool_close(one);
    q_pool_close(three);
    q_dense_close(d);
    free(x), free(h), free(again);
}
END_TEST

/* Many short calls side by side: a library whose callers get the same buffer gives something else now and then. */
START_TEST(callers_do_not_disturb_one_another) {
    NEEDS_DENSE(d);
    enum { N = 16, KK = 520, TURNS = T_SLOW ? 20 : 200 };
    float *x = inputs(KK, N, 4), *want = (float *)calloc(KK * KK, sizeof *want), *h = (float *)malloc(KK * KK * sizeof *h);
    q_pool *p = pool(4), *one = pool(1);
    q_dense_gram(d, one, x, N, KK, KK, want);
    for (int t = 0; t < TURNS; t++) {
        memset(h, 0, KK * KK * sizeof *h);
        q_dense_gram(d, p, x, N, KK, KK, h);
        ck_assert_int_eq(memcmp(h, want, KK * KK * sizeof *h), 0);
    }
    q_pool_close(p);
    q_pool_close(one);
    q_dense_close(d);
    free(x), free(want), free(h);
}
END_TEST

START_TEST(the_factor_of_an_inverse) {
    NEEDS_DENSE(d);
    enum { KK = 530 }; /* two tiles and a part */
    float *x = inputs(KK, 900, 2), *h = hessian_of(d, x, KK, 900);
    double *m = (double *)malloc(KK * KK * sizeof *m);
    float *u[2] = {(float *)malloc(KK * KK * sizeof *x), (float *)malloc(KK * KK * sizeof *x)};
    for (uint32_t t = 0; t < 2; t++) {
        bool definite;
        q_pool *p = pool(1 + 2 * t);
        for (int i = 0; i < KK; i++)
            for (int j = 0; j <= i; j++) m[i * KK + j] = (double)at(h, KK - 1 - i, KK - 1 - j) + (i == j);
        ck_assert_int_eq(q_dense_inverse_factor(d, A, p, m, KK, u[t], &definite), LQ_OK);
        ck_assert(definite);
        q_pool_close(p);
    }
    ck_assert_int_eq(memcmp(u[0], u[1], KK * KK * sizeof **u), 0);
    /* U A is then U'^-1, lower triangular with 1 / U_ii on the diagonal. */
    for (int i = 0; i < KK; i += 7) {
        for (int j = 0; j < i; j++) ck_assert(u[0][i * KK + j] == 0.0f);
        for (int j = i; j < KK; j += j == i ? 1 : 5) {
            double sum = 0;
            for (int l = i; l < KK; l++) sum += (double)u[0][i * KK + l] * ((double)at(h, l, j) + (l == j));
            ck_assert_double_eq_tol(sum, j == i ? 1 / (double)u[0][i * KK + i] : 0, 1e-3);
        }
    }
    for (int i = 0; i < KK; i++) m[i * KK + i] = i == 400 ? -1 : 1, memset(m + i * KK, 0, (size_t)i * sizeof *m);
    bool definite = true;
    q_pool *p = pool(1);
    ck_assert_int_eq(q_dense_inverse_factor(d, A, p, m, KK, u[0], &definite), LQ_OK);
    ck_assert(!definite);
    q_pool_close(p);
    q_dense_close(d);
    free(x), free(h), free(m), free(u[0]), free(u[1]);
}
END_TEST

/* In a process that has no room for it the library cannot be opened: the same as where it is not installed. */
START_TEST(without_openblas_the_package_is_named) {
#if defined(__SANITIZE_ADDRESS__) || defined(__SANITIZE_THREAD__)
    T_SKIP("a sanitizer needs the address space that this test takes away");
#else
    const pid_t child = fork();
    if (child == 0) {
        const struct rlimit none = {1 << 20, 1 << 20};
        q_dense *d;
        setrlimit(RLIMIT_AS, &none);
        _exit(q_dense_open(A, &d) == LQ_E_UNSUPPORTED && strstr(lq_error_detail(), "libopenblas0-pthread") ? 0 : 1);
    }
    int status;
    ck_assert_int_eq(waitpid(child, &status, 0), child);
    ck_assert(WIFEXITED(status) && WEXITSTATUS(status) == 0);
#endif
}
END_TEST

/* ---- the quantizer */

static char warned[512];
static void on_log(void *user, lq_log_level level, const char *message) {
    Q_UNUSED(user);
    if (level == LQ_LOG_WARN) snprintf(warned, sizeof warned, "%s", message);
}

static lq_status prepare(const float *h, int k, uint32_t threads, void **shared) {
    q_pool *p = pool(threads);
    const q_log log = {on_log, NULL};
    const q_quant_stats s = {A, &log, p, "blk.7.ffn_up.weight", k, h};
    warned[0] = 0;
    const lq_status st = q_quantizer_find("gptq")->prepare(&s, shared);
    q_pool_close(p);
    return st;
}

static uint64_t bytes_of(const q_format *f) {
    uint64_t n;
    ck_assert(q_row_bytes(f, K, &n));
    return n;
}

/* Rows in pieces of `step`. */
static void quantize(const char *quantizer, const q_format *f, const float *w, const float *diagonal, const void *shared, int step,
                     uint8_t *out) {
    for (int r = 0; r < ROWS; r += step) {
        const q_quant_job job = {f, w + r * K, Q_MIN(step, ROWS - r), K, diagonal, shared, A, NULL};
        ck_assert_int_eq(q_quantizer_find(quantizer)->quantize(&job, out + (uint64_t)r * bytes_of(f)), LQ_OK);
    }
}

/* tr((W - Q) H (W - Q)'), by the inputs themselves. */
static double error_of(const q_format *f, const float *w, const uint8_t *q, const float *x) {
    double sum = 0;
    float y[K];
    for (int r = 0; r < ROWS; r++) {
        q_decode_row(f, q + (uint64_t)r * bytes_of(f), K, y);
        for (int s = 0; s < SAMPLES; s += 3) {
            double e = 0;
            for (int j = 0; j < K; j++) e += (double)(w[r * K + j] - y[j]) * x[s * K + j];
            sum += e * e;
        }
    }
    return sum;
}

static float *weights(uint64_t seed) {
    float *w = (float *)malloc(ROWS * K * sizeof *w);
    for (int i = 0; i < ROWS * K; i++) w[i] = t_normal(&seed) * 0.05f;
    return w;
}

START_TEST(its_error_is_the_least) {
    NEEDS_DENSE(d);
    static const struct { const char *format; double most; } cases[] = {
        {"q4_k", 0.75}, {"q4_0", 0.75}, {"iq4_xs", 0.75}, {"iq4_nl", 0.75}, {"nf4", 0.75}, {"nf4_dq", 0.75}, {"i4_g128", 0.75},
        {"i8_row", 0.75}, {"q2_k", 0.8}, {"q3_k", 0.75}, {"q6_k", 0.75}, {"q8_0", 0.75}, {"i4_row", 0.75}};
    float *x = inputs(K, SAMPLES, 5), *h = hessian_of(d, x, K, SAMPLES), *w = weights(6), diagonal[K];
    for (int i = 0; i < K; i++) diagonal[i] = at(h, i, i);
    for (size_t c = 0; c < Q_COUNT(cases); c++) {
        const q_format *f = q_format_find(cases[c].format);
        uint8_t *out = (uint8_t *)malloc(ROWS * bytes_of(f));
        void *shared;
        ck_assert_int_eq(prepare(h, K, 2, &shared), LQ_OK);
        quantize("gptq", f, w, diagonal, shared, ROWS, out);
        const double gptq = error_of(f, w, out, x);
        quantize("rtn", f, w, NULL, NULL, ROWS, out);
        const double rtn = error_of(f, w, out, x);
        quantize("search", f, w, diagonal, NULL, ROWS, out);
        const double search = error_of(f, w, out, x);
        ck_assert_msg(gptq < cases[c].most * rtn && gptq < cases[c].most * search, "%s: gptq %g, search %g, rtn %g", f->name, gptq,
                      search, rtn);
        q_quantizer_find("gptq")->release(A, shared);
        free(out);
    }
    q_dense_close(d);
    free(x), free(h), free(w);
}
END_TEST

/* gptq_act: columns by falling diagonal, the same bytes in any pieces, and much less error than by rounding. */
START_TEST(columns_move_together) {
    NEEDS_DENSE(d);
    static const char *const names[] = {"i4_g32", "i4_g128", "q4_k", "i8_row"};
    const q_quantizer *act = q_quantizer_find("gptq_act");
    float *x = inputs(K, SAMPLES, 5), *h = hessian_of(d, x, K, SAMPLES), *w = weights(6), diagonal[K], y[K], back[K];
    for (int i = 0; i < K; i++) diagonal[i] = at(h, i, i);
    for (size_t c = 0; c < Q_COUNT(names); c++) {
        const q_format *f = q_format_find(names[c]);
        const uint64_t n = bytes_of(f);
        uint8_t *out = (uint8_t *)malloc(ROWS * n), *again = (uint8_t *)malloc(ROWS * n), *rounded = (uint8_t *)malloc(ROWS * n);
        void *shared;
        double error = 0, plain;
        ck_assert_int_eq(prepare(h, K, 2, &shared), LQ_OK);
        const int32_t *order = act->order(shared);
        for (int i = 1; i < K; i++) ck_assert(diagonal[order[i - 1]] >= diagonal[order[i]]);
        quantize("gptq_act", f, w, NULL, shared, ROWS, out);
        quantize("gptq_act", f, w, NULL, shared, 5, again);
        ck_assert_int_eq(memcmp(out, again, ROWS * n), 0);
        quantize("rtn", f, w, NULL, NULL, ROWS, rounded);
        plain = error_of(f, w, rounded, x);
        for (int r = 0; r < ROWS; r++) { /* in the order of inputs */
            q_decode_row(f, out + (uint64_t)r * n, K, y);
            for (int i = 0; i < K; i++) back[order[i]] = y[i];
            for (int s = 0; s < SAMPLES; s += 3) {
                double e = 0;
                for (int j = 0; j < K; j++) e += (double)(w[r * K + j] - back[j]) * x[s * K + j];
                error += e * e;
            }
        }
        ck_assert_msg(error < 0.75 * plain, "%s: %g, rounded %g", f->name, error, plain);
        act->release(A, shared);
        free(out), free(again), free(rounded);
    }
    q_dense_close(d);
    free(x), free(h), free(w);
}
END_TEST

START_TEST(bytes_depend_on_the_matrix_alone) {
    NEEDS_DENSE(d);
    float *x = inputs(K, 200, 8), *h = hessian_of(d, x, K, 200), *w = weights(9);
    const q_format *f = q_format_find("q4_k");
    const uint64_t n = ROWS * bytes_of(f);
    uint8_t *want = (uint8_t *)malloc(n), *out = (uint8_t *)malloc(n);
    static const int steps[] = {ROWS, 1, 5, 16};
    for (uint32_t i = 0; i < Q_COUNT(steps); i++) {
        void *shared;
        ck_assert_int_eq(prepare(h, K, 1 + i % 3, &shared), LQ_OK);
        quantize("gptq", f, w, NULL, shared, steps[i], i ? out : want);
        if (i) ck_assert_int_eq(memcmp(out, want, n), 0);
        q_quantizer_find("gptq")->release(A, shared);
    }
    q_dense_close(d);
    free(x), free(h), free(w), free(want), free(out);
}
END_TEST

START_TEST(dead_inputs_get_no_weight) {
    NEEDS_DENSE(d);
    float *x = inputs(K, 200, 10), *w = weights(11), y[K];
    for (int r = 0; r < 200; r++) x[r * K + 33] = x[r * K + 500] = 0.0f;
    float *h = hessian_of(d, x, K, 200);
    const q_format *f = q_format_find("i4_g128");
    uint8_t *out = (uint8_t *)malloc(ROWS * bytes_of(f));
    void *shared;
    w[33] = 100.0f; /* would spoil the scale of its block */
    ck_assert_int_eq(prepare(h, K, 1, &shared), LQ_OK);
    quantize("gptq", f, w, NULL, shared, ROWS, out);
    q_decode_row(f, out, K, y);
    ck_assert(y[33] == 0.0f && y[500] == 0.0f);
    for (int j = 0; j < K; j++) ck_assert(fabsf(y[j]) < 1.0f);
    q_quantizer_find("gptq")->release(A, shared);
    q_dense_close(d);
    free(x), free(h), free(w), free(out);
}
END_TEST

START_TEST(what_is_not_positive_definite) {
    NEEDS_DENSE(d);
    enum { KK = 64 };
    float h[KK * (KK + 1) / 2];
    void *shared = NULL;
    for (int i = 0; i < KK; i++) /* pairs with eigenvalues 2.05 and -0.05 */
        for (int j = 0; j <= i; j++) h[i * (i + 1) / 2 + j] = i == j ? 1.0f : i / 2 == j / 2 ? 1.05f : 0.0f;
    ck_assert_int_eq(prepare(h, KK, 1, &shared), LQ_OK);
    ck_assert_msg(strstr(warned, "blk.7.ffn_up.weight") && strstr(warned, "0.1 of the mean"), "%s", warned);
    q_quantizer_find("gptq")->release(A, shared);
    for (int i = 0; i < KK; i++) /* an eigenvalue of -62 */
        for (int j = 0; j <= i; j++) h[i * (i + 1) / 2 + j] = i == j ? 1.0f : -1.0f;
    ck_assert_int_eq(prepare(h, KK, 1, &shared), LQ_E_NUMERIC);
    ck_assert_msg(strstr(lq_error_detail(), "blk.7.ffn_up.weight"), "%s", lq_error_detail());
    memset(h, 0, sizeof h); /* nothing was ever seen: all inputs are dead */
    ck_assert_int_eq(prepare(h, KK, 1, &shared), LQ_OK);
    q_quantizer_find("gptq")->release(A, shared);
    q_dense_close(d);
}
END_TEST

static Suite *make(void) {
    Suite *s = suite_create("gptq");
    TCase *c = tcase_create("gptq");
    tcase_add_test(c, sums_of_outer_products);
    tcase_add_test(c, callers_do_not_disturb_one_another);
    tcase_add_test(c, the_factor_of_an_inverse);
    tcase_add_test(c, without_openblas_the_package_is_named);
    tcase_add_test(c, its_error_is_the_least);
    tcase_add_test(c, columns_move_together);
    tcase_add_test(c, bytes_depend_on_the_matrix_alone);
    tcase_add_test(c, dead_inputs_get_no_weight);
    tcase_add_test(c, what_is_not_positive_definite);
    suite_add_tcase(s, c);
    return s;
}
HARNESS_MAIN(make)
