/* test_calibrate_memory.c: a limit of memory for calibration: never more than it is taken, as the caller's allocator
 * counts; one that is too small is refused with the smallest that is not; and the bytes are the same. */
#include "help_calibrate.h"

#include "../libquant/dense.h"

enum { LONG = 320 };
static int32_t text[LONG];
static size_t beside; /* bytes of the model, and of what holds it */

/* The model is large enough for matrices to count more than names, the text for what its tokens carry. */
static void setup_counted(void) {
    static tiny t;
    uint64_t seed = 4;
    const lq_allocator hook = {live_alloc, live_free, NULL};
    const lq_options o = {.size = sizeof o, .threads = 2, .allocator = &hook};
    snprintf(folder, sizeof folder, "%s/calibrate-%ld", t_tmp(), (long)getpid());
    ck_assert_int_eq(mkdir(folder, 0777), 0);
    for (int i = 0; i < LONG; i++) text[i] = 3 + (int32_t)(t_rand(&seed) % (VOCAB - 3));
    tiny_init(&t, "f16");
    tiny_grow(&t, 256, 512, 2);
    tiny_write(&t, in_tmp(0, "model.gguf"));
    ck_assert_msg(lq_open(&o, &ctx) == LQ_OK, "%s", lq_error_detail());
    ck_assert_msg(lq_model_open(ctx, paths[0], NULL, &model) == LQ_OK, "%s", lq_error_detail());
    beside = live_bytes;
}

static lq_status run(uint32_t threads, const lq_calibrate_options *o, uint64_t *peak) {
    const lq_session_options so = {.size = sizeof so, .context = WINDOW, .threads = threads, .activations = "f32"};
    lq_session *s = NULL;
    live_peak = live_bytes;
    ck_assert_msg(lq_session_open(model, &so, &s) == LQ_OK, "%s", lq_error_detail());
    const lq_status st = lq_calibrate(s, text, LONG, in_tmp(1, "stats.gguf"), o, NULL);
    lq_session_close(s);
    ck_assert_uint_eq(live_bytes, beside);
    *peak = live_peak - beside;
    return st;
}

static void keeps_to_it(const char *scheme, uint32_t hessians, uint32_t threads) {
    lq_calibrate_options o = {.size = sizeof o, .window = WINDOW, .scheme = scheme, .hessians = hessians, .force = 1};
    const char *name = scheme ? scheme : "no scheme";
    uint64_t peak;
    ck_assert_msg(run(threads, &o, &peak) == LQ_OK, "%s: %s", name, lq_error_detail());
    const uint64_t want = hash_of(paths[1]), all = peak;
    o.max_ram = 1;
    ck_assert_int_eq(run(threads, &o, &peak), LQ_E_NOMEM);
    const char *at = strstr(lq_error_detail(), "at least ");
    ck_assert_msg(at != NULL, "%s", lq_error_detail());
    const uint64_t least = strtoull(at + strlen("at least "), NULL, 10);
    o.max_ram = least - 1;
    ck_assert_int_eq(run(threads, &o, &peak), LQ_E_NOMEM);
    const uint64_t limits[] = {least, all, all * 4 / 3};
    for (size_t i = 0; i < (T_SLOW ? 1 : Q_COUNT(limits)); i++) {
        o.max_ram = Q_MAX(limits[i], least);
        ck_assert_msg(run(threads, &o, &peak) == LQ_OK, "%s: %s", name, lq_error_detail());
        ck_assert_msg(peak <= o.max_ram, "%s, %u threads: %llu bytes taken, %llu allowed", name, threads,
                      (unsigned long long)peak, (unsigned long long)o.max_ram);
        ck_assert_uint_eq(hash_of(paths[1]), want);
        ck_assert_int_eq(files_in_tmp(), 2);
        if (i == 0) { /* the smallest limit is no guess, and without one the text lay in memory */
            /* how many of more threads have work at the same time is the system's affair */
            ck_assert_msg(threads > 1 || peak >= least * 3 / 4, "%s, %u threads: %llu bytes taken, %llu asked for",
                          name, threads, (unsigned long long)peak, (unsigned long long)least);
            ck_assert_uint_lt(peak, all);
        }
    }
}

START_TEST(with_factors) {
    if (!T_TSAN) keeps_to_it("awq+q4_0:rtn", 0, 1); /* which looks for races: several threads */
    keeps_to_it("smooth+q4_k", 0, 3);
}
END_TEST

static bool has_dense(void) {
    q_dense *d;
    if (q_dense_open(A, &d) != LQ_OK) return false;
    q_dense_close(d);
    return true;
}
START_TEST(with_hessians) {
    if (!has_dense()) T_SKIP("OpenBLAS is not installed (libopenblas0-pthread)");
    keeps_to_it("q4_0:gptq", 1, 3);
    if (T_TSAN) return;
    keeps_to_it(NULL, 1, 1);
    keeps_to_it("q4_k:gptq", 1, 1);
    keeps_to_it("awq+q4_0:gptq", 1, 2);
}
END_TEST

static Suite *make(void) {
    Suite *s = suite_create("calibrate_memory");
    TCase *c = tcase_create("calibrate_memory");
    tcase_set_timeout(c, 300);
    tcase_add_checked_fixture(c, setup_counted, teardown);
    tcase_add_test(c, with_factors);
    tcase_add_test(c, with_hessians);
    suite_add_tcase(s, c);
    return s;
}
HARNESS_MAIN(make)
