/* test_pack.c: weights packed when a model opens: the same bits as from the file, bytes as the plan says, nothing
 * packed where nothing reads it, and a model that runs on where there is no memory for packing. */
#include "harness.h"
#include "help_model.h"

#include "../libquant/engine.h"

#include <inttypes.h>
#include <sys/resource.h>
#include <unistd.h>

enum { TOKENS = 40, VOCAB_MOST = 4096 };
static const char *const formats[] = {"q4_0", "q8_0", "q4_1", "q5_0", "q5_1", "iq4_nl"};
static const char *const schemes[] = {"q4_k_m", "q5_k_m", "q3_k_m", "q2_k", "iq4_xs", "q6_k"};

static size_t live_bytes;
static void *count_alloc(void *user, size_t bytes, size_t align) {
    Q_UNUSED(user);
    __atomic_fetch_add(&live_bytes, bytes, __ATOMIC_RELAXED);
    return q_alloc_libc.alloc(NULL, bytes, align);
}
static void count_free(void *user, void *p, size_t bytes) {
    Q_UNUSED(user);
    __atomic_fetch_sub(&live_bytes, bytes, __ATOMIC_RELAXED);
    q_alloc_libc.free(NULL, p, bytes);
}
static char last_log[512];
static void keep_log(void *user, lq_log_level level, const char *message) {
    Q_UNUSED(user);
    if (level <= LQ_LOG_INFO) snprintf(last_log, sizeof last_log, "%s", message);
}

static lq_ctx *context(const char *isa, uint32_t threads) {
    static const lq_allocator hook = {count_alloc, count_free, NULL};
    const lq_options o = {.size = sizeof o, .threads = threads, .isa = isa, .allocator = &hook, .log = keep_log};
    lq_ctx *c;
    ck_assert_msg(lq_open(&o, &c) == LQ_OK, "%s", lq_error_detail());
    return c;
}
static lq_model *open_model(lq_ctx *c, const char *path, lq_model_options o) {
    lq_model *m;
    o.size = sizeof o;
    ck_assert_msg(lq_model_open(c, path, &o, &m) == LQ_OK, "%s", lq_error_detail());
    return m;
}
/* Bytes packed, and all that the plan counts but activations: other kernels have other scratch. */
static uint64_t packed(const lq_model *m, uint64_t *total) {
    lq_plan_info plan = {.size = sizeof plan};
    ck_assert_int_eq(lq_model_plan(m, NULL, &plan), LQ_OK);
    if (total) *total = plan.total - plan.activations;
    return plan.packed;
}

/* Logits of all tokens, evaluated `chunk` at a time. */
static void evaluate(lq_model *m, uint32_t threads, uint32_t chunk, const char *activations, float *logits) {
    const lq_session_options o = {
        .size = sizeof o, .context = 64, .max_logits = TOKENS, .threads = threads, .activations = activations};
    lq_model_info info = {.size = sizeof info};
    lq_session *s;
    lq_model_info_get(m, &info);
    ck_assert_msg(lq_session_open(m, &o, &s) == LQ_OK, "%s", lq_error_detail());
    for (uint32_t at = 0; at < TOKENS; at += chunk) {
        const uint32_t n = Q_MIN(chunk, TOKENS - at);
        int32_t ids[TOKENS];
        for (uint32_t i = 0; i < n; i++) ids[i] = (int32_t)(3 + (at + i) * 37 % 250);
        ck_assert_msg(lq_decode(s, ids, n, 0) == LQ_OK, "%s", lq_error_detail());
        for (uint32_t i = 0; i < n; i++) {
            const float *row;
            ck_assert_int_eq(lq_logits(s, i, &row), LQ_OK);
            memcpy(logits + (size_t)(at + i) * info.vocabulary, row, info.vocabulary * sizeof *row);
        }
    }
    lq_session_close(s);
}

static float want[TOKENS * VOCAB_MOST], got[TOKENS * VOCAB_MOST];

/* Packed and unpacked, for several threads and chunks, and in float32. */
static void check_same_bits(const char *path, const char *isa) {
    lq_ctx *c = context(isa, 2);
    lq_model *plain = open_model(c, path, (lq_model_options){.no_pack = 1}),
             *m = open_model(c, path, (lq_model_options){0});
    ck_assert_uint_eq(packed(plain, NULL), 0);
    evaluate(plain, 1, TOKENS, NULL, want);
    static const uint32_t chunks[] = {1, 2, 3, 5, 8, 16, TOKENS};
    for (size_t i = 0; i < Q_COUNT(chunks); i++) {
        memset(got, 0, sizeof got);
        evaluate(m, 1 + (uint32_t)i % 3, chunks[i], NULL, got);
        ck_assert_msg(memcmp(want, got, sizeof got) == 0, "%s, %s, chunks of %u: other bits", path, isa ? isa : "best",
                      chunks[i]);
    }
    evaluate(plain, 2, TOKENS, "f32", want);
    evaluate(m, 2, TOKENS, "f32", got);
    ck_assert_msg(memcmp(want, got, sizeof got) == 0, "%s, float32: other bits", path);
    lq_model_close(m);
    lq_model_close(plain);
    lq_close(c);
}

static const char *const rungs[] = {NULL, "avx2"};
static bool has_rung(const char *isa) {
    const lq_options o = {.size = sizeof o, .isa = isa};
    lq_ctx *c;
    if (lq_open(&o, &c) != LQ_OK) return false;
    lq_close(c);
    return true;
}

START_TEST(formats_give_the_bits_of_the_file) {
    static tiny t;
    char path[4096];
    tiny_init(&t, formats[_i]);
    if (_i & 1) tiny_drop_tensor(&t, "output.weight"); /* the embedding is the output matrix too */
    tiny_write(&t, t_path(path, sizeof path, t_tmp(), formats[_i]));
    for (size_t r = 0; r < Q_COUNT(rungs); r++)
        if (has_rung(rungs[r])) check_same_bits(path, rungs[r]);
}
END_TEST

static void pocket_in(const char *scheme, char *path, size_t n) {
    char source[4096];
    lq_ctx *c = context(NULL, 2);
    const lq_quantize_options o = {.size = sizeof o, .scheme = scheme, .force = 1};
    t_path(path, n, t_tmp(), scheme);
    ck_assert_msg(lq_quantize(c, t_path(source, sizeof source, t_root(), "bench/data/pocket"), path, &o, NULL) == LQ_OK,
                  "%s", lq_error_detail());
    lq_close(c);
}

START_TEST(schemes_give_the_bits_of_the_file) {
    char path[4096];
    if (t_emulated()) T_SKIP("an emulator does not evaluate %s in every packed layout", schemes[_i]);
    pocket_in(schemes[_i], path, sizeof path);
    for (size_t r = 0; r < Q_COUNT(rungs); r++)
        if (has_rung(rungs[r])) check_same_bits(path, rungs[r]);
}
END_TEST

START_TEST(the_plan_states_the_bytes) {
    char path[4096];
    pocket_in("q4_k_m", path, sizeof path);
    lq_ctx *c = context(NULL, 2);
    const size_t before = live_bytes;
    lq_model *m = open_model(c, path, (lq_model_options){.no_pack = 1});
    const size_t plain = live_bytes - before;
    uint64_t plain_total, total;
    ck_assert_uint_eq(packed(m, &plain_total), 0);
    lq_model_close(m);
    m = open_model(c, path, (lq_model_options){0});
    const uint64_t bytes = packed(m, &total);
    ck_assert_uint_eq(live_bytes - before, plain + bytes);
    if (bytes) { /* what was packed is counted once, in its new size, and the log tells of it */
        ck_assert_msg(strstr(last_log, "packed "), "%s", last_log);
        ck_assert_uint_lt(total, plain_total + bytes);
        ck_assert_uint_lt(total, plain_total + plain_total / 10);
    }
    lq_model_close(m);
    m = open_model(c, path, (lq_model_options){.plan_only = 1});
    ck_assert_uint_eq(packed(m, NULL), bytes);
    ck_assert_uint_eq(live_bytes - before, plain);
    lq_model_close(m);
    m = open_model(c, path, (lq_model_options){.no_mmap = 1}); /* bytes in our own memory stay beside the packed ones */
    uint64_t read_total;
    ck_assert_uint_eq(packed(m, &read_total), bytes);
    ck_assert_uint_eq(read_total, plain_total + bytes);
    lq_model_close(m);
    lq_close(c);
    ck_assert_uint_eq(live_bytes, 0);
}
END_TEST

/* Bytes of a file's mapping that are in memory. */
static uint64_t resident(const char *path) {
    FILE *f = fopen("/proc/self/smaps", "r");
    char line[4400];
    uint64_t kib = 0, sum = 0;
    bool in = false;
    while (f && fgets(line, sizeof line, f)) {
        if (strchr(line, '-') && strchr(line, '-') < strchr(line, ' ')) in = strstr(line, path) != NULL;
        else if (in && sscanf(line, "Rss: %" SCNu64, &kib) == 1) sum += kib * 1024;
    }
    if (f) fclose(f);
    return sum;
}

/* What was packed is there once: of the file only what lies between is left, in whole pages. */
START_TEST(packed_weights_leave_the_file) {
    char path[4096];
    if (t_emulated()) T_SKIP("an emulator has a /proc of its own");
    pocket_in("q8_0", path, sizeof path);
    lq_ctx *c = context(NULL, 2);
    lq_model *m = open_model(c, path, (lq_model_options){0});
    lq_plan_info plan = {.size = sizeof plan};
    ck_assert_int_eq(lq_model_plan(m, NULL, &plan), LQ_OK);
    if (plan.packed) {
        const long page = sysconf(_SC_PAGESIZE);
        uint64_t pages = 0; /* that hold a byte of a packed weight, none of them in memory */
        for (uint32_t i = 0; i < m->binding->n_items; i++) {
            const q_weight *w = &m->weights[i];
            const uint64_t from = (uint64_t)(uintptr_t)w->data / (uint64_t)page;
            if (w->packed) pages += ((uint64_t)(uintptr_t)w->data + w->row_bytes * (uint64_t)w->rows - 1) / (uint64_t)page - from;
        }
        const uint64_t size = q_file_size(m->dir->files[0]);
        ck_assert_uint_gt(pages, 0);
        ck_assert_uint_le(resident(path), q_round_up(size, (uint64_t)page) - pages * (uint64_t)page);
    }
    lq_model_close(m);
    lq_close(c);
}
END_TEST

START_TEST(scalar_packs_nothing) {
    char path[4096];
    pocket_in("q4_0", path, sizeof path);
    lq_ctx *c = context("scalar", 1);
    lq_model *m = open_model(c, path, (lq_model_options){0});
    ck_assert_uint_eq(packed(m, NULL), 0);
    lq_model_close(m);
    lq_close(c);
}
END_TEST

/* The threads' stacks count as address space: many threads and a limit below that refuse packing, and nothing else. */
START_TEST(without_memory_the_file_is_read) {
    char path[4096];
    uint64_t mapped;
    FILE *f = fopen("/proc/self/statm", "r");
    unsigned long pages = 0;
    ck_assert(f && fscanf(f, "%lu", &pages) == 1);
    fclose(f);
    mapped = (uint64_t)pages * 4096;
    if (mapped > (uint64_t)1 << 33) T_SKIP("a sanitizer's address space cannot be limited");
    pocket_in("q4_0", path, sizeof path);
    lq_ctx *c = context(NULL, 200);
    lq_model *m = open_model(c, path, (lq_model_options){.plan_only = 1});
    const uint64_t bytes = packed(m, NULL);
    lq_model_close(m);
    const struct rlimit limit = {mapped + (256u << 20), mapped + (256u << 20)};
    ck_assert_int_eq(setrlimit(RLIMIT_AS, &limit), 0);
    m = open_model(c, path, (lq_model_options){0});
    ck_assert_uint_eq(packed(m, NULL), 0);
    if (bytes) ck_assert_msg(strstr(last_log, "packing the weights needs"), "%s", last_log);
    evaluate(m, 1, 8, NULL, got);
    lq_model_close(m);
    lq_close(c);
}
END_TEST

static Suite *suite(void) {
    Suite *s = suite_create("pack");
    TCase *c = tcase_create("pack");
    tcase_set_timeout(c, 600);
    /* Races of the threads that pack do not depend on the format. */
    tcase_add_loop_test(c, formats_give_the_bits_of_the_file, 0, T_TSAN ? 2 : (int)Q_COUNT(formats));
    tcase_add_loop_test(c, schemes_give_the_bits_of_the_file, 0, T_TSAN ? 1 : (int)Q_COUNT(schemes));
    tcase_add_test(c, the_plan_states_the_bytes);
    tcase_add_test(c, packed_weights_leave_the_file);
    tcase_add_test(c, scalar_packs_nothing);
    tcase_add_test(c, without_memory_the_file_is_read);
    suite_add_tcase(s, c);
    return s;
}
HARNESS_MAIN(suite)
