/* test_budget.c: the context that a session has when nobody says, and the cap on its bytes: exactly what a plan says,
 * and not one less. */
#include <sys/resource.h>
#include <unistd.h>

#include "../libquant/engine.h"
#include "harness.h"
#include "help_model.h"

enum { TRAINED = 65536, VOCAB = 262 };

static lq_ctx *ctx;
static lq_model *model;

static void open_model(uint32_t trained) {
    char path[4096];
    static tiny t;
    tiny_init(&t, "q8_0");
    tiny_u32(&t, "llama.context_length", trained);
    tiny_write(&t, t_path(path, sizeof path, t_tmp(), "budget.gguf"));
    const lq_options o = {.size = sizeof o, .threads = 1};
    ck_assert_msg(lq_open(&o, &ctx) == LQ_OK, "%s", lq_error_detail());
    ck_assert_msg(lq_model_open(ctx, path, NULL, &model) == LQ_OK, "%s", lq_error_detail());
}
static void setup(void) { open_model(TRAINED); }
static void teardown(void) {
    lq_model_close(model);
    lq_close(ctx);
}

static lq_plan_info plan_of(lq_session_options o) {
    lq_plan_info p = {.size = sizeof p};
    o.size = sizeof o;
    ck_assert_msg(lq_model_plan(model, &o, &p) == LQ_OK, "%s", lq_error_detail());
    return p;
}
static uint64_t bytes_of(const lq_plan_info *p) { return p->kv + p->activations; }

static uint32_t opened_with(lq_session_options o) {
    lq_session *s;
    o.size = sizeof o;
    ck_assert_msg(lq_session_open(model, &o, &s) == LQ_OK, "%s", lq_error_detail());
    lq_session_info i = {.size = sizeof i};
    ck_assert_int_eq(lq_session_info_get(s, &i), LQ_OK);
    ck_assert_uint_eq(i.trained_context, (uint32_t)model->binding->hp.v[Q_HP_CONTEXT]);
    if (o.max_bytes) ck_assert_uint_le(i.kv_bytes + i.activation_bytes, o.max_bytes);
    lq_session_close(s);
    return i.context;
}
static const char *refused(lq_session_options o) {
    lq_session *s;
    o.size = sizeof o;
    ck_assert_int_eq(lq_session_open(model, &o, &s), LQ_E_NOMEM);
    return lq_error_detail();
}

START_TEST(a_cap_is_kept_to_the_byte) {
    const lq_session_options kinds[] = {{.context = 5000},
                                        {.context = 700, .sequences = 3, .batch = 64, .max_logits = 5}};
    for (size_t k = 0; k < Q_COUNT(kinds); k++) {
        lq_session_options o = kinds[k];
        const lq_plan_info p = plan_of(o);
        o.max_bytes = bytes_of(&p);
        ck_assert_uint_eq(opened_with(o), o.context);
        o.max_bytes--;
        char numbers[128];
        snprintf(numbers, sizeof numbers, "needs %llu bytes", (unsigned long long)bytes_of(&p));
        const char *said = refused(o), *at = strstr(said, "the longest context that fits is ");
        ck_assert_msg(strstr(said, numbers) != NULL, "%s", said);
        snprintf(numbers, sizeof numbers, "max_bytes is %llu ", (unsigned long long)o.max_bytes);
        ck_assert_msg(strstr(said, numbers) != NULL && at, "%s", said);
        o.context = (uint32_t)strtoul(at + strlen("the longest context that fits is "), NULL, 10);
        ck_assert_uint_gt(o.context, kinds[k].context - 40);
        ck_assert_uint_eq(opened_with(o), o.context);
        o.context++;
        (void)refused(o);
        o.max_bytes = 5000;
        ck_assert_ptr_nonnull(strstr(refused(o), "no context fits; a smaller batch needs less"));
    }
}
END_TEST

/* Without a context a cap chooses it: the largest power of two, and not below the floor. */
START_TEST(the_default_fits_the_cap) {
    for (uint32_t want = 4096; want < TRAINED; want *= 2) {
        const lq_plan_info p = plan_of((lq_session_options){.context = want}),
                           q = plan_of((lq_session_options){.context = 2 * want});
        ck_assert_uint_eq(opened_with((lq_session_options){.max_bytes = bytes_of(&p)}), want);
        ck_assert_uint_eq(plan_of((lq_session_options){.max_bytes = bytes_of(&q) - 1}).context, want);
        ck_assert_uint_eq(plan_of((lq_session_options){.max_bytes = bytes_of(&q)}).context, 2 * want);
        if (want != 4096) continue;
        const char *said = refused((lq_session_options){.max_bytes = bytes_of(&p) - 1});
        ck_assert_msg(strstr(said, "context 4096") && strstr(said, "the longest context that fits is 40"), "%s", said);
    }
    /* two sequences have half as much each; what all keep together bounds it too */
    const lq_plan_info p = plan_of((lq_session_options){.context = 16384, .sequences = 2});
    ck_assert_uint_eq(opened_with((lq_session_options){.sequences = 2, .max_bytes = bytes_of(&p)}), 16384);
    ck_assert_uint_eq(opened_with((lq_session_options){.kv_tokens = 5000}), 5000);
    const lq_session_options few = {.size = sizeof few, .kv_tokens = 4000};
    lq_session *s;
    ck_assert_int_eq(lq_session_open(model, &few, &s), LQ_E_ARG);
    /* an option that only a longer context has room for is not set aside */
    const char *said =
        refused((lq_session_options){.overflow = "slide", .overflow_keep = 40000, .max_bytes = bytes_of(&p)});
    ck_assert_msg(strstr(said, "context 65536") != NULL, "%s", said);
}
END_TEST

START_TEST(with_enough_memory_it_is_the_trained_one) {
    ck_assert_uint_eq(opened_with((lq_session_options){0}), TRAINED);
    teardown();
    open_model(300); /* and below the floor in any case */
    ck_assert_uint_eq(opened_with((lq_session_options){0}), 300);
    const lq_plan_info p = plan_of((lq_session_options){0});
    ck_assert_uint_eq(opened_with((lq_session_options){.max_bytes = bytes_of(&p)}), 300);
    (void)refused((lq_session_options){.max_bytes = bytes_of(&p) - 1});
}
END_TEST

/* Little address space: a shorter context, which then opens. */
START_TEST(the_default_fits_the_memory) {
    uint32_t before = TRAINED;
    if (q_address_space() != UINT64_MAX) T_SKIP("the address space is limited already");
    if (t_emulated()) T_SKIP("a limit of the address space is the emulator's");
    for (uint32_t want = TRAINED / 2; want >= 4096; want /= 2) {
        const lq_plan_info p = plan_of((lq_session_options){.context = want});
        FILE *f = fopen("/proc/self/statm", "r");
        unsigned long long pages = 0;
        ck_assert_int_eq(fscanf(f, "%llu", &pages), 1);
        fclose(f);
        const uint64_t mapped = pages * (uint64_t)sysconf(_SC_PAGESIZE), need = bytes_of(&p) + q_pool_stacks(1);
        if (mapped > (uint64_t)1 << 40) T_SKIP("the sanitizer needs the address space");
        const struct rlimit r = {mapped + need / 3 * 4 + (1 << 20), RLIM_INFINITY};
        const struct rlimit none = {RLIM_INFINITY, RLIM_INFINITY};
        ck_assert_int_eq(setrlimit(RLIMIT_AS, &r), 0);
        const uint32_t planned = plan_of((lq_session_options){0}).context, got = opened_with((lq_session_options){0});
        (void)setrlimit(RLIMIT_AS, &none);
        ck_assert_uint_eq(planned, got);
        ck_assert_uint_ge(got, 4096);
        ck_assert_uint_le(got, before);
        ck_assert_msg((got & (got - 1)) == 0, "%u is no power of two", got);
        before = got;
    }
    ck_assert_uint_le(before, 8192); /* with the 1 MiB of slack */
}
END_TEST

static Suite *suite(void) {
    Suite *s = suite_create("budget");
    TCase *t = tcase_create("context");
    tcase_add_checked_fixture(t, setup, teardown);
    tcase_set_timeout(t, 120);
    tcase_add_test(t, a_cap_is_kept_to_the_byte);
    tcase_add_test(t, the_default_fits_the_cap);
    tcase_add_test(t, with_enough_memory_it_is_the_trained_one);
    tcase_add_test(t, the_default_fits_the_memory);
    suite_add_tcase(s, t);
    return s;
}
HARNESS_MAIN(suite)
