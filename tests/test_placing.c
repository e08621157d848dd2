/* test_placing.c: how large blocks lie in memory: what is asked of the allocator and of the system, what plans say of
 * locked bytes, and what is refused. Asserts no speed. */
#include "harness.h"

#include "../libquant/engine.h"

#include <sys/resource.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <unistd.h>

/* The sanitizers' own library makes mlock do nothing. */
#if defined(__SANITIZE_ADDRESS__) || defined(__SANITIZE_THREAD__)
enum { LOCKS = 0 };
#else
enum { LOCKS = 1 };
#endif

static uint64_t status_kib(const char *key) {
    char line[256];
    unsigned long long kib = 0;
    FILE *f = fopen("/proc/self/status", "r");
    ck_assert_ptr_nonnull(f);
    while (fgets(line, sizeof line, f))
        if (strncmp(line, key, strlen(key)) == 0) sscanf(line + strlen(key), "%llu", &kib);
    fclose(f);
    return kib;
}

/* Are this address's pages advised to be huge? */
static bool asks_for_huge(const void *p) {
    char line[512];
    unsigned long long from, to;
    bool here = false, huge = false;
    FILE *f = fopen("/proc/self/smaps", "r");
    while (f && fgets(line, sizeof line, f)) {
        if (sscanf(line, "%llx-%llx ", &from, &to) == 2) here = from <= (uintptr_t)p && (uintptr_t)p < to;
        else if (here && strncmp(line, "VmFlags:", 8) == 0) huge = strstr(line, " hg") != NULL;
    }
    if (f) fclose(f);
    return huge;
}

typedef struct counted {
    size_t bytes, blocks;
} counted;
static void *count_alloc(void *user, size_t bytes, size_t align) {
    counted *c = (counted *)user;
    void *p = q_alloc_libc.alloc(NULL, bytes, align);
    if (p) __atomic_fetch_add(&c->bytes, bytes, __ATOMIC_RELAXED), __atomic_fetch_add(&c->blocks, 1, __ATOMIC_RELAXED);
    return p;
}
static void count_free(void *user, void *p, size_t bytes) {
    counted *c = (counted *)user;
    __atomic_fetch_sub(&c->bytes, bytes, __ATOMIC_RELAXED), __atomic_fetch_sub(&c->blocks, 1, __ATOMIC_RELAXED);
    q_alloc_libc.free(NULL, p, bytes);
}

static bool may_lock(void) {
    const q_placing how = {.lock = true};
    void *p = q_new_placed(&q_alloc_libc, &how, 4 << 20, false);
    q_delete(&q_alloc_libc, p);
    return p != NULL;
}

START_TEST(blocks_take_what_was_said_and_are_zeroed) {
    static const uint64_t sizes[] = {1, 4032, 4033, 100000, (1 << 20) - 1, 1 << 20, 5 << 20};
    const bool locks = may_lock();
    for (int mode = 0; mode < 8; mode++)
        for (size_t i = 0; i < Q_COUNT(sizes); i++) {
            const q_placing how = {
                .huge = mode & 1, .lock = (mode & 2) && locks, .nodes = mode & 4 ? q_memory_nodes("") : 0};
            counted c = {0};
            const q_alloc a = {count_alloc, count_free, &c};
            const uint64_t before = status_kib("VmLck:");
            uint8_t *p = (uint8_t *)q_new_placed(&a, &how, sizes[i], true);
            if (!p && how.nodes) continue; /* a system that does not interleave */
            ck_assert_msg(p != NULL, "%s", lq_error_detail());
            ck_assert_uint_eq((uintptr_t)p % (sizes[i] < 1 << 20 ? Q_ALIGN : 4096), 0);
            ck_assert_uint_eq(c.bytes, q_placed_bytes(&how, sizes[i]));
            if (how.lock && LOCKS) ck_assert_uint_eq((status_kib("VmLck:") - before) * 1024, c.bytes);
            uint64_t set = 0;
            for (uint64_t k = 0; k < sizes[i]; k++) set += p[k] != 0;
            ck_assert_uint_eq(set, 0);
            if (how.huge && sizes[i] >= 5 << 20 && q_memory_has_huge("") && !T_TSAN &&
                !t_emulated()) /* an emulator drops advice */
                ck_assert(asks_for_huge(p + (3 << 20)));
            memset(p, 1, sizes[i]);
            q_delete(&a, p);
            ck_assert_uint_eq(c.bytes, 0);
            ck_assert_uint_eq(status_kib("VmLck:"), before);
        }
    const q_placing none = {0};
    ck_assert_uint_eq(q_placed_bytes(&none, 100), 100 + Q_ALIGN);
    ck_assert_uint_eq(q_placed_bytes(&none, 1 << 20), (1 << 20) + 4096); /* large ones begin at a boundary */
    ck_assert_uint_gt(q_placed_bytes(&none, UINT64_MAX), 1ull << 62);
}
END_TEST

static void put(const char *root, const char *path, const char *text) {
    char full[1024];
    snprintf(full, sizeof full, "%s/%s", root, path);
    for (char *slash = strchr(full + 1, '/'); slash; slash = strchr(slash + 1, '/')) {
        *slash = 0;
        mkdir(full, 0700);
        *slash = '/';
    }
    FILE *f = fopen(full, "w");
    ck_assert_ptr_nonnull(f);
    fputs(text, f);
    fclose(f);
}

START_TEST(the_system_is_read) {
    static const struct { const char *list; uint64_t nodes;
    } lists[] = {
        {"0", 1},  {"0-1", 3}, {"0,2-3,5", 0x2D}, {"1", 2}, {"0-127", UINT64_MAX},
        {"70", 0}, {"", 0},    {"3-1", 0},        {"x", 0},
    };
    static const char *const thp = "sys/kernel/mm/transparent_hugepage/enabled";
    char root[512], text[128];
    snprintf(root, sizeof root, "%s/placing", t_tmp());
    for (size_t i = 0; i < Q_COUNT(lists); i++) {
        snprintf(text, sizeof text, "Name:\tx\nMems_allowed:\tff\nMems_allowed_list:\t%s\n", lists[i].list);
        put(root, "proc/self/status", text);
        ck_assert_msg(q_memory_nodes(root) == lists[i].nodes, "'%s'", lists[i].list);
    }
    ck_assert(!q_memory_has_huge("/nowhere"));
    put(root, thp, "always madvise [never]\n");
    ck_assert(!q_memory_has_huge(root));
    put(root, thp, "always [madvise] never\n");
    ck_assert(q_memory_has_huge(root));
    ck_assert_uint_eq(q_memory_nodes("/nowhere"), 0);
    ck_assert_uint_ne(q_memory_nodes(""), 0);
}
END_TEST

static lq_status open_with(const char *huge, const char *numa, uint32_t lock, const lq_allocator *hook, lq_ctx **c) {
    const lq_options o = {
        .size = sizeof o, .threads = 2, .huge_pages = huge, .numa = numa, .lock = lock, .allocator = hook};
    return lq_open(&o, c);
}

/* The model in every placing: the same bits, bytes as planned, locked what was said, nothing left. */
START_TEST(placing_changes_no_bit_and_keeps_the_plan) {
    static const struct { const char *huge, *numa; uint32_t lock, no_mmap, no_pack;
    } modes[] = {
        {"off", NULL, 0, 0, 0},   {NULL, "off", 0, 1, 0}, {NULL, "auto", 1, 0, 0},
        {"off", "auto", 1, 0, 1}, {NULL, NULL, 1, 1, 1},
    };
    const bool locks = may_lock();
    char path[4096];
    uint32_t want = 0;
    t_path(path, sizeof path, t_root(), "bench/data/pocket");
    for (size_t i = 0; i < Q_COUNT(modes); i++) {
        counted count = {0};
        const lq_allocator hook = {count_alloc, count_free, &count};
        lq_ctx *c;
        lq_model *m;
        lq_session *s;
        const uint32_t lock = modes[i].lock && locks;
        const uint64_t before = status_kib("VmLck:");
        ck_assert_msg(open_with(modes[i].huge, modes[i].numa, lock, &hook, &c) == LQ_OK, "%s", lq_error_detail());
        lq_device_info d = {.size = sizeof d};
        ck_assert_int_eq(lq_device_info_get(c, 0, &d), LQ_OK);
        ck_assert((strstr(d.placing, "; locked") != NULL) == (lock != 0));
        ck_assert(strncmp(d.placing, "huge pages ", 11) == 0);
        const lq_model_options mo = {.size = sizeof mo, .no_mmap = modes[i].no_mmap, .no_pack = modes[i].no_pack};
        ck_assert_msg(lq_model_open(c, path, &mo, &m) == LQ_OK, "%s", lq_error_detail());
        const lq_session_options so = {.size = sizeof so, .context = 128, .batch = 32};
        lq_plan_info plan = {.size = sizeof plan};
        ck_assert_int_eq(lq_model_plan(m, &so, &plan), LQ_OK);
        const size_t model_bytes = count.bytes;
        ck_assert_msg(lq_session_open(m, &so, &s) == LQ_OK, "%s", lq_error_detail());
        const size_t used = count.bytes - model_bytes, promised = plan.kv + plan.activations;
        ck_assert_msg(used >= promised && used - promised < 96 * 1024, "%zu used, %zu promised", used, promised);
        if (!lock) ck_assert_uint_eq(plan.locked, 0);
        if (lock && LOCKS) { /* parts of a mapping may share their first and last pages */
            const uint64_t now = (status_kib("VmLck:") - before) * 1024;
            ck_assert_msg(now <= plan.locked && plan.locked - now < 64 * 8192, "%llu locked, %llu planned",
                          (unsigned long long)now, (unsigned long long)plan.locked);
            ck_assert_uint_gt(plan.locked, 13 << 20);
        }
        const int32_t ids[] = {5, 900, 77, 31, 8};
        const size_t open_bytes = count.bytes;
        ck_assert_int_eq(t_decode(s, ids, 4, 4), LQ_OK);
        ck_assert_int_eq(t_decode(s, ids + 4, 1, 0), LQ_OK);
        ck_assert_uint_eq(count.bytes, open_bytes);
        lq_stats st = {.size = sizeof st};
        ck_assert_int_eq(lq_session_stats(s, &st), LQ_OK);
        if (i == 0) want = st.last_logits_hash;
        ck_assert_uint_eq(st.last_logits_hash, want);
        lq_session_close(s);
        lq_model_close(m);
        lq_close(c);
        ck_assert_uint_eq(count.bytes, 0);
        ck_assert_uint_eq(count.blocks, 0);
        ck_assert_uint_eq(status_kib("VmLck:"), before);
    }
}
END_TEST

START_TEST(what_cannot_be_is_said) {
    lq_ctx *c = NULL;
    ck_assert_int_eq(open_with("maybe", NULL, 0, NULL, &c), LQ_E_ARG);
    ck_assert_int_eq(open_with(NULL, "far", 0, NULL, &c), LQ_E_ARG);
    ck_assert_ptr_nonnull(strstr(lq_error_detail(), "interleave"));
    ck_assert_ptr_null(c);
    ck_assert_int_eq(open_with("on", "interleave", 0, NULL, &c), q_memory_has_huge("") ? LQ_OK : LQ_E_UNSUPPORTED);
    lq_close(c);
    ck_assert_int_eq(open_with("auto", "auto", 0, NULL, &c), LQ_OK);
    lq_close(c);
}
END_TEST

/* A user who may lock nothing is told which limit it was. */
START_TEST(the_limit_of_locked_memory_is_named) {
    if (!LOCKS) T_SKIP("under this sanitizer mlock does nothing");
    fflush(NULL);
    const pid_t child = fork();
    if (child == 0) {
        const struct rlimit none = {0, 0};
        const q_placing how = {.lock = true};
        if (setrlimit(RLIMIT_MEMLOCK, &none) != 0 || (geteuid() == 0 && setuid(65534) != 0)) _exit(77);
        if (q_new_placed(&q_alloc_libc, &how, 1 << 20, false)) _exit(1);
        if (!strstr(lq_error_detail(), "RLIMIT_MEMLOCK is 0 bytes") || !strstr(lq_error_detail(), "ulimit -l"))
            _exit(2);
        _exit(q_memory_lock(&none, sizeof none, "a tensor") == LQ_E_NOMEM && strstr(lq_error_detail(), "a tensor") ? 0
                                                                                                                   : 3);
    }
    int status = 0;
    ck_assert_int_eq(waitpid(child, &status, 0), child);
    ck_assert(WIFEXITED(status));
    if (WEXITSTATUS(status) == 77) T_SKIP("the limit cannot be set here");
    ck_assert_int_eq(WEXITSTATUS(status), 0);
}
END_TEST

static Suite *suite(void) {
    Suite *s = suite_create("placing");
    TCase *t = tcase_create("placing");
    tcase_set_timeout(t, 120);
    tcase_add_test(t, blocks_take_what_was_said_and_are_zeroed);
    tcase_add_test(t, the_system_is_read);
    tcase_add_test(t, placing_changes_no_bit_and_keeps_the_plan);
    tcase_add_test(t, what_cannot_be_is_said);
    tcase_add_test(t, the_limit_of_locked_memory_is_named);
    suite_add_tcase(s, t);
    return s;
}
HARNESS_MAIN(suite)
