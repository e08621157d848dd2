/* test_memory.c: what memory the process may still use: RAM, its control groups (of machines made of files here), and
 * the limit of its address space; and the sentence when it is not enough. */
#include "harness.h"

#include <sys/resource.h>
#include <sys/stat.h>
#include <unistd.h>

#include "../libquant/threads.h"

static char root[1024];
static void new_root(void) {
    snprintf(root, sizeof root, "%s/machine-%d", t_tmp(), (int)getpid());
    ck_assert_int_eq(mkdir(root, 0700), 0);
}

/* A file below the root, with the folders that lead to it. */
static void put(const char *path, const char *text) {
    char full[2048];
    snprintf(full, sizeof full, "%s%s", root, path);
    for (char *p = full + strlen(root) + 1; (p = strchr(p, '/')); *p++ = '/') {
        *p = 0;
        mkdir(full, 0700);
    }
    FILE *f = fopen(full, "w");
    ck_assert_ptr_nonnull(f);
    fputs(text, f);
    ck_assert_int_eq(fclose(f), 0);
}
#define available() q_memory_physical(root)

START_TEST(ram_alone) {
    ck_assert_uint_eq(available(), UINT64_MAX); /* nothing is known */
    put("/proc/meminfo", "MemTotal:       9000 kB\nMemFree:        1000 kB\nMemAvailable:   5000 kB\n");
    ck_assert_uint_eq(available(), 5000 * 1024);
    put("/proc/self/cgroup", "0::/\n"); /* no limit at the root */
    ck_assert_uint_eq(available(), 5000 * 1024);
}
END_TEST

/* The least of all groups above us, not of the root's files alone. */
START_TEST(groups_of_version_2) {
    put("/proc/meminfo", "MemAvailable:   5000 kB\n");
    put("/proc/self/cgroup", "0::/a.slice/b.scope\n");
    put("/sys/fs/cgroup/a.slice/b.scope/memory.max", "max\n");
    put("/sys/fs/cgroup/a.slice/b.scope/memory.current", "1000\n");
    ck_assert_uint_eq(available(), 5000 * 1024);
    put("/sys/fs/cgroup/a.slice/memory.max", "3000000\n");
    put("/sys/fs/cgroup/a.slice/memory.current", "1200000\n");
    ck_assert_uint_eq(available(), 1800000);
    put("/sys/fs/cgroup/a.slice/b.scope/memory.max", "2000000\n");
    put("/sys/fs/cgroup/a.slice/b.scope/memory.current", "1999000\n");
    ck_assert_uint_eq(available(), 1000);
    /* Pages of files that were read, such as a model's, are not lost. */
    put("/sys/fs/cgroup/a.slice/b.scope/memory.stat",
        "anon 999000\nfile 1000000\nactive_file 400000\ninactive_file 600000\n");
    ck_assert_uint_eq(available(), 1001000);
    put("/sys/fs/cgroup/a.slice/b.scope/memory.current", "2500000\n"); /* the limit was lowered */
    put("/sys/fs/cgroup/a.slice/b.scope/memory.stat", "anon 2500000\n");
    ck_assert_uint_eq(available(), 0);
}
END_TEST

/* In a container: the path is the host's, the mount begins with our own group. */
START_TEST(a_containers_own_group_is_the_root) {
    put("/proc/self/cgroup", "0::/docker/0123456789abcdef\n");
    put("/sys/fs/cgroup/memory.max", "4000\n");
    put("/sys/fs/cgroup/memory.current", "1000\n");
    ck_assert_uint_eq(available(), 3000);
}
END_TEST

START_TEST(groups_of_version_1) {
    put("/proc/self/cgroup", "9:cpu,cpuacct:/x\n5:memory:/job/7\n1:name=systemd:/y\n");
    put("/sys/fs/cgroup/memory/memory.limit_in_bytes", "9223372036854771712\n"); /* none */
    put("/sys/fs/cgroup/memory/memory.usage_in_bytes", "123\n");
    put("/sys/fs/cgroup/memory/job/7/memory.limit_in_bytes", "10000\n");
    put("/sys/fs/cgroup/memory/job/7/memory.usage_in_bytes", "7000\n");
    put("/sys/fs/cgroup/memory/job/7/memory.stat",
        "cache 10\ninactive_file 9\ntotal_inactive_file 500\ntotal_active_file 20\n");
    ck_assert_uint_eq(available(), 3520);
    put("/sys/fs/cgroup/memory/job/memory.limit_in_bytes", "2000\n");
    put("/sys/fs/cgroup/memory/job/memory.usage_in_bytes", "1500\n");
    ck_assert_uint_eq(available(), 500);
}
END_TEST

START_TEST(limit_of_the_address_space) {
    if (t_emulated()) T_SKIP("an emulator does not limit the address space");
    if (q_address_space() != UINT64_MAX) T_SKIP("the address space is limited already");
    FILE *f = fopen("/proc/self/statm", "r");
    unsigned long long pages = 0;
    ck_assert_int_eq(fscanf(f, "%llu", &pages), 1);
    fclose(f);
    const uint64_t mapped = pages * (uint64_t)sysconf(_SC_PAGESIZE), more = 96u << 20;
    const struct rlimit r = {mapped + more, RLIM_INFINITY};
    if (mapped > (uint64_t)1 << 40) T_SKIP("the sanitizer needs the address space");
    ck_assert_int_eq(setrlimit(RLIMIT_AS, &r), 0);
    const uint64_t have = q_address_space();
    ck_assert_uint_le(have, more);
    ck_assert_uint_ge(have, more - (1 << 20));
    ck_assert_uint_le(q_memory_available(), have);
    ck_assert_int_eq(q_memory_check("a small thing", 1 << 20, 0), LQ_OK);
    ck_assert_int_eq(q_memory_check("a large thing", 97u << 20, 0), LQ_E_NOMEM);
    ck_assert_ptr_nonnull(strstr(lq_error_detail(), "a large thing needs 101711872 bytes of memory (97.0 MiB); "));
    ck_assert_ptr_nonnull(strstr(lq_error_detail(), " are available"));
    /* Stacks count as address space. */
    ck_assert_int_eq(q_memory_check("threads", 1 << 20, q_pool_stacks(64)), LQ_E_NOMEM);
    ck_assert_int_eq(q_memory_check("one thread", 1 << 20, q_pool_stacks(1)), LQ_OK);
    ck_assert_int_eq(q_memory_check("a sum beyond 64 bits", 1 << 20, UINT64_MAX), LQ_E_NOMEM);
}
END_TEST

static Suite *memory_suite(void) {
    Suite *s = suite_create("memory");
    TCase *t = tcase_create("available");
    tcase_add_checked_fixture(t, new_root, NULL);
    tcase_add_test(t, ram_alone);
    tcase_add_test(t, groups_of_version_2);
    tcase_add_test(t, a_containers_own_group_is_the_root);
    tcase_add_test(t, groups_of_version_1);
    tcase_add_test(t, limit_of_the_address_space);
    suite_add_tcase(s, t);
    return s;
}
HARNESS_MAIN(memory_suite)
