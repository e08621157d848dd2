/* test_transforms.c: factors chosen before weights are quantized: smooth against a plain computation, awq against
 * losses whose least is known. What they do to a model: test_fold_search.c. */
#include "harness.h"

#include <math.h>

#include "../libquant/transform.h"

enum { K = 7 };
static const float mean[K] = {0.5f, 2.0f, 0.0f, 0.01f, 8.0f, 1.0f, 1e-30f};
static const float most[K] = {1.0f, 40.0f, 0.0f, 0.02f, 9.0f, 3.0f, 1e-30f};
static const float weight[K] = {0.1f, 0.2f, 0.3f, 0.0f, 4.0f, 1e-9f, 0.5f};

static const q_transform *named(const char *name) {
    const q_transform *t = q_transform_find(name);
    ck_assert_msg(t != NULL, "no transform %s", name);
    return t;
}

START_TEST(smooth_is_a_root_of_two_maxima) {
    const q_transform_job job = {
        .k = K, .mean_abs = mean, .max_abs = most, .weight_max = weight, .alloc = &q_alloc_libc};
    float s[K];
    ck_assert(!named("smooth")->needs_loss && !named("smooth")->clips);
    ck_assert_int_eq(named("smooth")->scale(&job, s), LQ_OK);
    for (int j = 0; j < K; j++) {
        const double x = fmax(most[j], 1e-5), w = fmax(weight[j], 1e-5), want = fmax(pow(x, 0.5) / pow(w, 0.5), 1e-5);
        ck_assert_double_eq_tol((double)s[j], want, 1e-6 * want);
    }
}
END_TEST

/* Losses by the ratio that s was made with: `at` is best. Every ratio is asked once, rising. */
typedef struct asked {
    int calls, best, fails;
    bool flat;
} asked;
static double ratio_of(const float *s) {
    return log((double)s[4] / (double)s[0]) / log((double)mean[4] / (double)mean[0]);
}
static lq_status loss(void *user, const float *s, double *out) {
    asked *a = (asked *)user;
    const double r = ratio_of(s);
    float lo = s[0], hi = s[0];
    for (int j = 0; j < K; j++) {
        ck_assert(isfinite(s[j]) && s[j] > 0.0f);
        lo = fminf(lo, s[j]);
        hi = fmaxf(hi, s[j]);
    }
    ck_assert_double_eq_tol((double)lo * (double)hi, 1, 1e-5); /* normalized */
    ck_assert_double_eq_tol(r, a->calls / 20.0, 1e-5);
    if (a->calls == a->fails) return q_fail(LQ_E_CANCELLED, "stop");
    *out = a->flat ? 1 : 1 + fabs(r - a->best / 20.0);
    a->calls++;
    return LQ_OK;
}

START_TEST(awq_takes_the_best_ratio) {
    for (int best = 0; best < 20; best++) {
        asked a = {.best = best, .fails = -1};
        const q_transform_job job = {.k = K, .mean_abs = mean, .max_abs = most, .weight_max = weight, .loss = loss,
                                     .user = &a,
                                     .alloc = &q_alloc_libc};
        float s[K];
        ck_assert_int_eq(named("awq")->scale(&job, s), LQ_OK);
        ck_assert_int_eq(a.calls, 20);
        ck_assert_double_eq_tol(ratio_of(s), best / 20.0, 1e-5);
    }
}
END_TEST

START_TEST(of_equal_ratios_the_lowest) {
    asked a = {.flat = true, .fails = -1};
    q_transform_job job = {.k = K, .mean_abs = mean, .loss = loss, .user = &a, .alloc = &q_alloc_libc};
    float s[K];
    ck_assert_int_eq(named("awq")->scale(&job, s), LQ_OK);
    for (int j = 0; j < K; j++) ck_assert(s[j] == 1.0f);
    a = (asked){.fails = 3};
    ck_assert_int_eq(named("awq")->scale(&job, s), LQ_E_CANCELLED); /* what a loss fails with is passed on */
}
END_TEST

static lq_status any(void *user, const float *s, double *out) {
    Q_UNUSED(user);
    for (int j = 0; j < K; j++) ck_assert(s[j] == 1.0f);
    *out = NAN;
    return LQ_OK;
}
START_TEST(inputs_that_are_always_zero) {
    static const float zero[K];
    const q_transform_job job = {
        .k = K, .mean_abs = zero, .max_abs = zero, .weight_max = zero, .loss = any, .alloc = &q_alloc_libc};
    float s[K];
    ck_assert_int_eq(named("awq")->scale(&job, s), LQ_OK);
    ck_assert_int_eq(named("smooth")->scale(&job, s), LQ_OK);
    for (int j = 0; j < K; j++) ck_assert(s[j] == 1.0f);
}
END_TEST

START_TEST(names) {
    ck_assert_ptr_null(q_transform_find("rotate"));
    for (const q_transform *const *t = q_transforms; *t; t++) {
        ck_assert_ptr_eq(q_transform_find((*t)->name), *t);
        ck_assert(strlen((*t)->about) > 0);
    }
}
END_TEST

static Suite *make(void) {
    Suite *s = suite_create("transforms");
    TCase *c = tcase_create("transforms");
    tcase_add_test(c, smooth_is_a_root_of_two_maxima);
    tcase_add_test(c, awq_takes_the_best_ratio);
    tcase_add_test(c, of_equal_ratios_the_lowest);
    tcase_add_test(c, inputs_that_are_always_zero);
    tcase_add_test(c, names);
    suite_add_tcase(s, c);
    return s;
}
HARNESS_MAIN(make)
