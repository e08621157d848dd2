/* test_pack.c: weights packed when a model opens, or part after part between the passes of its sessions: the same bits
 * as from the file, bytes as the plan says, nothing packed where nothing reads it, and a model that runs on where there
 * is no memory for packing. */
#include "harness.h"
#include "help_model.h"

#include "../kernels/cpu/cpu.h"
#include "../libquant/engine.h"

#include <inttypes.h>
#include <pthread.h>
#include <sys/resource.h>
#include <unistd.h>

extern const q_backend q_backend_cpu;

enum { TOKENS = 40, VOCAB_MOST = 4096 };
static const char *const formats[] = {"q4_0", "q8_0", "q4_1", "q5_0", "q5_1", "iq4_nl"};
static const char *const schemes[] = {"q4_k_m", "q5_k_m", "q3_k_m", "q2_k", "iq4_xs", "q6_k"};

static char last_log[512];
static bool quiet; /* several threads log */
static void keep_log(void *user, lq_log_level level, const char *message) {
    Q_UNUSED(user);
    if (level <= LQ_LOG_INFO && !quiet) snprintf(last_log, sizeof last_log, "%s", message);
}

static lq_ctx *context(const char *isa, uint32_t threads) {
    static const lq_allocator hook = {live_alloc, live_free, NULL};
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
        ck_assert_msg(t_decode(s, ids, n, 0) == LQ_OK, "%s", lq_error_detail());
        for (uint32_t i = 0; i < n; i++) {
            const float *row;
            ck_assert_int_eq(lq_logits(s, i, &row), LQ_OK);
            memcpy(logits + (size_t)(at + i) * info.vocabulary, row, info.vocabulary * sizeof *row);
        }
    }
    lq_session_close(s);
}

static float want[TOKENS * VOCAB_MOST], got[TOKENS * VOCAB_MOST];

/* Weights of the model that are packed, and those that will be. */
static uint32_t count_ready(const lq_model *m, uint32_t *all) {
    uint32_t ready = 0, n = 0;
    for (uint32_t i = 0; i < m->binding->n_items; i++) {
        n += m->weights[i].packed != NULL;
        ready += q_weight_ready(&m->weights[i]);
    }
    if (all) *all = n;
    return ready;
}

/* Packed at open, between passes and not at all, for several threads and chunks, and in float32. */
static void check_same_bits(const char *path, const char *isa) {
    lq_ctx *c = context(isa, 2);
    lq_model *plain = open_model(c, path, (lq_model_options){.no_pack = 1}),
             *m = open_model(c, path, (lq_model_options){.pack_at_open = 1});
    uint32_t all;
    ck_assert_uint_eq(packed(plain, NULL), 0);
    ck_assert_uint_eq(count_ready(m, &all), all);
    evaluate(plain, 1, TOKENS, NULL, want);
    static const uint32_t chunks[] = {1, 2, 3, 5, 8, 16, TOKENS};
    for (size_t i = 0; i < Q_COUNT(chunks); i++) {
        memset(got, 0, sizeof got);
        evaluate(m, 1 + (uint32_t)i % 3, chunks[i], NULL, got);
        ck_assert_msg(memcmp(want, got, sizeof got) == 0, "%s, %s, chunks of %u: other bits", path, isa ? isa : "best",
                      chunks[i]);
        if (T_SLOW && i % 3) continue;
        lq_model *later = open_model(c, path, (lq_model_options){0});
        ck_assert_uint_eq(packed(later, NULL), packed(m, NULL));
        ck_assert_uint_eq(count_ready(later, NULL), 0);
        memset(got, 0, sizeof got);
        evaluate(later, 1 + (uint32_t)i * 3 % 8, chunks[i], NULL, got);
        ck_assert_msg(memcmp(want, got, sizeof got) == 0, "%s, %s, chunks of %u, packed in between: other bits", path,
                      isa ? isa : "best", chunks[i]);
        if (chunks[i] < 3) ck_assert_uint_eq(count_ready(later, NULL), all); /* passes enough */
        if (chunks[i] == TOKENS) ck_assert_uint_eq(count_ready(later, NULL), 0);
        lq_model_close(later);
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
    m = open_model(c, path, (lq_model_options){.pack_at_open = 1});
    const uint64_t bytes = packed(m, &total);
    ck_assert_uint_eq(live_bytes - before, plain + bytes);
    if (bytes) { /* what was packed is counted once, in its new size, and the log tells of it */
        ck_assert_msg(strstr(last_log, "packed "), "%s", last_log);
        ck_assert_uint_lt(total, plain_total + bytes);
        ck_assert_uint_lt(total, plain_total + plain_total / 10);
    }
    lq_model_close(m);
    /* the block is there from the start, and a list of what is to be done */
    m = open_model(c, path, (lq_model_options){0});
    uint64_t later_total;
    ck_assert_uint_eq(packed(m, &later_total), bytes);
    ck_assert_uint_eq(later_total, total);
    ck_assert_uint_eq(live_bytes - before, plain + bytes + q_pack_list_bytes(m));
    lq_model_close(m);
    m = open_model(c, path, (lq_model_options){.plan_only = 1});
    ck_assert_uint_eq(packed(m, NULL), bytes);
    ck_assert_uint_eq(live_bytes - before, plain + q_pack_list_bytes(m));
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

/* What was packed is there once: of the file only what lies between is left, in whole pages. So also when other
 * sessions have read the file meanwhile. */
START_TEST(packed_weights_leave_the_file) {
    char path[4096];
    if (t_emulated()) T_SKIP("an emulator has a /proc of its own");
    pocket_in("q8_0", path, sizeof path);
    lq_ctx *c = context(NULL, 2);
    lq_model *m = open_model(c, path, (lq_model_options){.pack_at_open = _i == 0});
    const lq_session_options so = {.size = sizeof so, .context = 64};
    lq_session *s[2];
    const int32_t id = 5;
    for (int i = 0; i < 2; i++) ck_assert_int_eq(lq_session_open(m, &so, &s[i]), LQ_OK);
    /* the second one starts when the first has packed, and stops before it is done */
    for (int i = 0; i < 20 && _i; i++) {
        ck_assert_int_eq(t_decode(s[0], &id, 1, 1), LQ_OK);
        if (i >= 3 && i < 7) ck_assert_int_eq(t_decode(s[1], &id, 1, 1), LQ_OK);
    }
    lq_plan_info plan = {.size = sizeof plan};
    ck_assert_int_eq(lq_model_plan(m, NULL, &plan), LQ_OK);
    if (plan.packed) {
        const long page = sysconf(_SC_PAGESIZE);
        uint64_t pages = 0; /* that hold a byte of a packed weight, none of them in memory */
        const q_bind_item *table = q_bind_find(m->binding, 0, -1);
        const uint32_t embedding = (uint32_t)(table - m->binding->items); /* rows of tokens are read */
        for (uint32_t i = 0; i < m->binding->n_items; i++) {
            const q_weight *w = &m->weights[i];
            const uint64_t from = (uint64_t)(uintptr_t)w->data / (uint64_t)page;
            if (w->packed && i != embedding)
                pages += ((uint64_t)(uintptr_t)w->data + w->row_bytes * (uint64_t)w->rows - 1) / (uint64_t)page - from;
        }
        const uint64_t size = q_file_size(m->dir->files[0]);
        ck_assert_uint_gt(pages, 0);
        ck_assert_uint_le(resident(path), q_round_up(size, (uint64_t)page) - pages * (uint64_t)page);
    }
    for (int i = 0; i < 2; i++) lq_session_close(s[i]);
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

/* ------------------------------------------------------------------------------------------------ as sessions run */

static lq_session *open_session(lq_model *m, uint32_t threads, const char *activations) {
    const lq_session_options o = {
        .size = sizeof o, .context = 256, .max_logits = 1, .threads = threads, .activations = activations};
    lq_session *s;
    ck_assert_msg(lq_session_open(m, &o, &s) == LQ_OK, "%s", lq_error_detail());
    return s;
}
static void decode(lq_session *s, uint32_t n) {
    int32_t ids[256];
    for (uint32_t i = 0; i < n; i++) ids[i] = (int32_t)(3 + (lq_seq_length(s, 0) + i) * 37 % 250);
    ck_assert_msg(t_decode(s, ids, n, n - 1) == LQ_OK, "%s", lq_error_detail());
}
/* Steps that kernels for packed weights run. */
static uint32_t count_kernels(const lq_session *s) {
    uint32_t n = 0;
    for (int32_t i = 0; i < s->plan->n_insts; i++)
        n += strstr(q_backend_cpu.kernel_name(s->programs[0], i), "_rows16__") != NULL;
    return n;
}

START_TEST(passes_pack_part_after_part) {
    char path[4096];
    pocket_in("q4_k_m", path, sizeof path);
    lq_ctx *c = context(NULL, 2);
    lq_model *m = open_model(c, path, (lq_model_options){0});
    if (packed(m, NULL) == 0) T_SKIP("nothing is packed for this processor");
    ck_assert_msg(strstr(last_log, "are packed to"), "%s", last_log);
    uint32_t all, before = 0, parts = 0, passes = 0;
    lq_session *floats = open_session(m, 1, "f32"), *s = open_session(m, 2, NULL);
    for (int i = 0; i < 3; i++) decode(floats, 1); /* it reads nothing packed */
    ck_assert_uint_eq(count_ready(m, &all), 0);
    decode(s, 200);
    ck_assert_uint_eq(count_ready(m, NULL), 0); /* the first token does not wait */
    ck_assert_uint_eq(count_kernels(s), 0);
    const size_t bytes = live_bytes;
    for (; before < all; passes++) {
        decode(s, 1);
        const uint32_t ready = count_ready(m, NULL);
        ck_assert_uint_gt(ready, before);
        ck_assert_uint_ge(count_kernels(s), ready);
        parts += ready > before;
        before = ready;
    }
    ck_assert_uint_gt(parts, 4);
    ck_assert_uint_le(passes, 16);
    ck_assert_uint_eq(live_bytes, bytes);
    ck_assert_msg(strstr(last_log, "packed "), "%s", last_log);
    const uint32_t steps = count_kernels(s);
    lq_session_close(s);
    s = open_session(m, 1, NULL); /* finds all of it there */
    decode(s, 1);
    ck_assert_uint_eq(count_kernels(s), steps);
    lq_session_close(s);
    lq_session_close(floats);
    lq_model_close(m);
    m = open_model(c, path, (lq_model_options){0}); /* a long prompt gains more than packing takes */
    s = open_session(m, 2, NULL);
    lq_session_cancel(s);
    const int32_t id = 5;
    ck_assert_int_eq(t_decode(s, &id, 1, 0), LQ_E_CANCELLED);
    decode(s, 255);
    ck_assert_uint_eq(count_ready(m, NULL), all);
    ck_assert_uint_eq(count_kernels(s), steps);
    lq_session_close(s);
    lq_model_close(m);
    lq_close(c);
    ck_assert_uint_eq(live_bytes, 0);
}
END_TEST

/* Memory that a session finds taken: what is packed stays so, the rest is read from the file. */
START_TEST(packing_stops_where_memory_lacks) {
    char path[4096];
    pocket_in("q4_k_m", path, sizeof path);
    lq_ctx *c = context(NULL, 2);
    lq_model *plain = open_model(c, path, (lq_model_options){.no_pack = 1}),
             *m = open_model(c, path, (lq_model_options){0});
    if (packed(m, NULL) == 0) T_SKIP("nothing is packed for this processor");
    lq_session *s[] = {open_session(plain, 1, NULL), open_session(m, 1, NULL)};
    uint32_t some = 0, all;
    for (int i = 0; i < 30; i++) {
        lq_stats st[2] = {{.size = sizeof st[0]}, {.size = sizeof st[1]}};
        for (int k = 0; k < 2; k++) decode(s[k], 1), lq_session_stats(s[k], &st[k]);
        ck_assert_uint_eq(st[0].last_logits_hash, st[1].last_logits_hash);
        if (i < 6) continue;
        if (i == 6) q_pack_fits(m, UINT64_MAX), q_pack_fits(m, 1000), some = count_ready(m, &all);
        ck_assert_uint_eq(count_ready(m, NULL), some);
    }
    ck_assert_uint_gt(some, 0);
    ck_assert_uint_lt(some, all);
    ck_assert_msg(strstr(last_log, "packing them needs"), "%s", last_log);
    for (int k = 0; k < 2; k++) lq_session_close(s[k]);
    lq_model_close(m);
    lq_model_close(plain);
    lq_close(c);
}
END_TEST

typedef struct reader {
    lq_session *s;
    uint32_t steps, hashes[TOKENS];
} reader;
static void *read_on(void *arg) {
    reader *r = (reader *)arg;
    for (uint32_t i = 0; i < r->steps; i++) {
        int32_t id = (int32_t)(3 + i * 37 % 250);
        lq_stats st = {.size = sizeof st};
        if (t_decode(r->s, &id, 1, 0) != LQ_OK || lq_session_stats(r->s, &st) != LQ_OK) return arg;
        r->hashes[i] = st.last_logits_hash;
    }
    return NULL;
}

/* Sessions of one model on threads of their own while it is packed: each sees the bits of the file. */
START_TEST(sessions_run_while_one_packs) {
    enum { READERS = 3 };
    char path[4096];
    pocket_in("q4_k_m", path, sizeof path);
    lq_ctx *c = context(NULL, 2);
    lq_model *m = open_model(c, path, (lq_model_options){.no_pack = 1});
    static reader want_of, r[READERS];
    want_of = (reader){.s = open_session(m, 1, NULL), .steps = TOKENS};
    ck_assert_ptr_null(read_on(&want_of));
    lq_session_close(want_of.s);
    lq_model_close(m);
    quiet = true;
    for (int round = 0; round < (T_SLOW ? 2 : 6); round++) {
        pthread_t thread[READERS];
        uint32_t all;
        m = open_model(c, path, (lq_model_options){0});
        for (int i = 0; i < READERS; i++) {
            r[i] = (reader){.s = open_session(m, 1 + (uint32_t)(i & 1), NULL), .steps = TOKENS};
            ck_assert_int_eq(pthread_create(&thread[i], NULL, read_on, &r[i]), 0);
        }
        for (int i = 0; i < READERS; i++) {
            void *failed;
            ck_assert_int_eq(pthread_join(thread[i], &failed), 0);
            ck_assert_ptr_null(failed);
            ck_assert_msg(memcmp(r[i].hashes, want_of.hashes, sizeof want_of.hashes) == 0, "session %d: other bits", i);
        }
        ck_assert_uint_eq(count_ready(m, &all), all);
        for (int i = 0; i < READERS; i++) lq_session_close(r[i].s);
        lq_model_close(m);
    }
    quiet = false;
    lq_close(c);
}
END_TEST

/* Until a weight is packed, a kernel that reads the same activations runs: every packed kernel has one on its rung. */
START_TEST(packed_kernels_have_one_for_the_meantime) {
    for (uint32_t i = 0; i < q_cpu_kernel_count(); i++) {
        const q_cpu_kernel *k = &q_cpu_kernels[i];
        bool has = !k->layout;
        for (uint32_t j = 0; j < q_cpu_kernel_count() && !has; j++) {
            const q_cpu_kernel *o = &q_cpu_kernels[j];
            has = o->mm && !o->layout && o->act == k->act && strcmp(o->format, k->format) == 0 &&
                  q_isa_in(q_isa_with[k->isa], o->isa);
        }
        ck_assert_msg(has, "%s has none", k->name);
    }
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
    tcase_add_loop_test(c, packed_weights_leave_the_file, 0, 2);
    tcase_add_test(c, scalar_packs_nothing);
    tcase_add_test(c, without_memory_the_file_is_read);
    tcase_add_test(c, passes_pack_part_after_part);
    tcase_add_test(c, packing_stops_where_memory_lacks);
    tcase_add_test(c, sessions_run_while_one_packs);
    tcase_add_test(c, packed_kernels_have_one_for_the_meantime);
    suite_add_tcase(s, c);
    return s;
}
HARNESS_MAIN(suite)
