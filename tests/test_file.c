/* test_file.c: reading files that are none, and outputs that appear whole or not at all. */
#include "harness.h"

#include <fcntl.h>
#include <signal.h>
#include <sys/mman.h>
#include <sys/resource.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <unistd.h>

#include "../libquant/file.h"

static const char *tmp_name(const char *name) {
    static char path[4][4096];
    static unsigned next;
    return t_path(path[next++ % 4], sizeof path[0], t_tmp(), name);
}
static void save(const char *path, const void *data, size_t n) {
    FILE *f = fopen(path, "wb");
    ck_assert_ptr_nonnull(f);
    if (n) ck_assert_uint_eq(fwrite(data, 1, n, f), n);
    ck_assert_int_eq(fclose(f), 0);
}
static bool exists(const char *path) {
    struct stat st;
    return lstat(path, &st) == 0;
}
/* The file's content is this text. */
static void holds(const char *path, const char *text) {
    uint8_t *p;
    uint64_t n;
    ck_assert_msg(q_file_slurp(&q_alloc_libc, path, 1 << 20, &p, &n) == LQ_OK, "%s", lq_error_detail());
    ck_assert_str_eq((const char *)p, text);
    ck_assert_uint_eq(n, strlen(text));
    q_delete(&q_alloc_libc, p);
}
static void detail_has(const char *words) {
    ck_assert_msg(strstr(lq_error_detail(), words) != NULL, "\"%s\" does not say \"%s\"", lq_error_detail(), words);
}
static size_t head_of(const char *path, void *buf, size_t n) {
    size_t got = n + 1;
    ck_assert_msg(q_path_head(path, buf, n, &got) == LQ_OK, "%s", lq_error_detail());
    return got;
}
static q_path_kind kind_of(const char *path) {
    q_path_kind kind;
    ck_assert_msg(q_path_kind_of(path, &kind) == LQ_OK, "%s", lq_error_detail());
    return kind;
}
static bool same(const char *a, const char *b) {
    bool is;
    ck_assert_msg(q_path_same(tmp_name(a), tmp_name(b), &is) == LQ_OK, "%s", lq_error_detail());
    return is;
}
static lq_status open_out(const char *path, uint64_t bytes, bool force, q_outfile **f) {
    return q_outfile_open(&q_alloc_libc, path, bytes, force, f);
}
static void write_text(q_outfile *f, const char *text) {
    ck_assert_msg(q_outfile_write(f, text, strlen(text)) == LQ_OK, "%s", lq_error_detail());
}

/* ---------------------------------------------------------------------------------------- reading */

START_TEST(test_read) {
    const char *path = tmp_name("read");
    save(path, "0123456789", 10);
    q_file *f;
    char buf[16] = {0};
    for (uint32_t flags = 0; flags <= Q_FILE_MAP; flags++) {
        ck_assert_int_eq(q_file_open(&q_alloc_libc, path, flags, &f), LQ_OK);
        ck_assert_str_eq(q_file_path(f), path);
        ck_assert_uint_eq(q_file_size(f), 10);
        ck_assert_int_eq(q_file_data(f) != NULL, flags == Q_FILE_MAP);
        if (flags) ck_assert_mem_eq(q_file_data(f), "0123456789", 10);
        ck_assert_int_eq(q_file_read(f, 3, buf, 7), LQ_OK);
        ck_assert_str_eq(buf, "3456789");
        ck_assert_int_eq(q_file_read(f, 10, buf, 0), LQ_OK);
        ck_assert_int_eq(q_file_read(f, 4, buf, 7), LQ_E_TRUNCATED);
        ck_assert_int_eq(q_file_read(f, UINT64_MAX, buf, 2), LQ_E_TRUNCATED);
        detail_has(path);
        ck_assert_int_eq(q_file_unchanged(f), LQ_OK);
        q_file_close(f);
    }
    save(path, "", 0);
    ck_assert_int_eq(q_file_open(&q_alloc_libc, path, Q_FILE_MAP, &f), LQ_OK);
    ck_assert_ptr_null(q_file_data(f));
    q_file_close(f);
    q_file_close(NULL);
    holds(path, "");
    save(path, "12345", 5);
    uint8_t *p = NULL;
    uint64_t n = 0;
    ck_assert_int_eq(q_file_slurp(&q_alloc_libc, path, 4, &p, &n), LQ_E_LIMIT);
    detail_has(path);
    ck_assert(p == NULL && n == 0);
    holds(path, "12345");
    ck_assert_uint_eq(head_of(path, buf, 4), 4);
    ck_assert_uint_eq(head_of(path, buf, 16), 5);
    ck_assert_uint_eq(head_of(tmp_name("none"), buf, 16), 0);
    ck_assert_uint_eq(head_of("/dev/zero", buf, 16), 0);
}
END_TEST

START_TEST(test_changed) {
    const char *path = tmp_name("changed");
    char buf[10];
    q_file *f;
    save(path, "0123456789", 10);
    ck_assert_int_eq(q_file_open(&q_alloc_libc, path, 0, &f), LQ_OK);
    ck_assert_int_eq(truncate(path, 5), 0);
    ck_assert_int_eq(q_file_read(f, 0, buf, 10), LQ_E_IO);
    detail_has("shorter");
    ck_assert_int_eq(q_file_unchanged(f), LQ_E_IO);
    q_file_close(f);

    save(path, "0123456789", 10); /* the same size, written again at another time */
    ck_assert_int_eq(q_file_open(&q_alloc_libc, path, 0, &f), LQ_OK);
    const struct timespec times[2] = {{1000, 0}, {1000, 1}};
    ck_assert_int_eq(utimensat(AT_FDCWD, path, times, 0), 0);
    ck_assert_int_eq(q_file_unchanged(f), LQ_E_IO);
    q_file_close(f);

    ck_assert_int_eq(q_file_open(&q_alloc_libc, path, 0, &f), LQ_OK);
    save(tmp_name("other"), "0123456789", 10);
    ck_assert_int_eq(rename(tmp_name("other"), path), 0);
    ck_assert_int_eq(q_file_unchanged(f), LQ_E_IO);
    detail_has("replaced");
    q_file_close(f);
    ck_assert_int_eq(q_file_open(&q_alloc_libc, path, 0, &f), LQ_OK);
    ck_assert_int_eq(unlink(path), 0);
    ck_assert_int_eq(q_file_unchanged(f), LQ_E_IO);
    q_file_close(f);
}
END_TEST

START_TEST(test_not_a_file) {
    q_file *f = NULL;
    ck_assert_int_eq(q_file_open(&q_alloc_libc, t_tmp(), 0, &f), LQ_E_FORMAT);
    detail_has("a directory");
    ck_assert_int_eq(mkfifo(tmp_name("fifo"), 0666), 0);
    ck_assert_int_eq(q_file_open(&q_alloc_libc, tmp_name("fifo"), Q_FILE_MAP, &f), LQ_E_FORMAT);
    detail_has("a FIFO");
    ck_assert_int_eq(q_file_open(&q_alloc_libc, "/dev/zero", 0, &f), LQ_E_FORMAT);
    detail_has("a device");
    ck_assert_int_eq(symlink("loop", tmp_name("loop")), 0);
    ck_assert_int_eq(q_file_open(&q_alloc_libc, tmp_name("loop"), 0, &f), LQ_E_IO);
    detail_has("loop");
    ck_assert_int_eq(q_file_open(&q_alloc_libc, tmp_name("none"), 0, &f), LQ_E_IO);
    detail_has("none");
    ck_assert_int_eq(q_file_open(&q_alloc_libc, "", 0, &f), LQ_E_ARG);
    ck_assert_int_eq(q_file_open(&q_alloc_libc, NULL, 0, &f), LQ_E_ARG);
    char longer[8192];
    memset(longer, 'x', sizeof longer - 1);
    longer[sizeof longer - 1] = 0;
    ck_assert_int_eq(q_file_open(&q_alloc_libc, longer, 0, &f), LQ_E_IO);
    ck_assert_ptr_null(f);
}
END_TEST

START_TEST(test_large_file) {
    const char *path = tmp_name("large");
    save(path, "", 0);
    if (truncate(path, ((off_t)3 << 40) + 7) != 0) T_SKIP("no sparse files of 3 TiB here");
    q_file *f;
    char buf[4] = {1, 1, 1, 1};
    ck_assert_int_eq(q_file_open(&q_alloc_libc, path, 0, &f), LQ_OK);
    ck_assert_uint_eq(q_file_size(f), ((uint64_t)3 << 40) + 7);
    ck_assert_int_eq(q_file_read(f, ((uint64_t)3 << 40) + 3, buf, 4), LQ_OK);
    ck_assert_int_eq(buf[3], 0);
    ck_assert_int_eq(q_file_read(f, ((uint64_t)3 << 40) + 4, buf, 4), LQ_E_TRUNCATED);
    q_file_close(f);
    unlink(path);
}
END_TEST

START_TEST(test_paths) {
    char buf[16];
    ck_assert_int_eq(q_path_join(buf, sizeof buf, "dir", q_str_of("name")), LQ_OK);
    ck_assert_str_eq(buf, "dir/name");
    ck_assert_int_eq(q_path_join(buf, sizeof buf, "dir/", q_str_of("name")), LQ_OK);
    ck_assert_str_eq(buf, "dir/name");
    ck_assert_int_eq(q_path_join(buf, sizeof buf, "", q_str_of("name")), LQ_OK);
    ck_assert_str_eq(buf, "name");
    ck_assert_int_eq(q_path_join(buf, sizeof buf, "12345678", q_str_of("123456")), LQ_OK); /* just fits */
    ck_assert_int_eq(q_path_join(buf, sizeof buf, "12345678", q_str_of("1234567")), LQ_E_LIMIT);
    ck_assert_int_eq(q_path_join(buf, sizeof buf, "d", (q_str){"a\0b", 3}), LQ_E_FORMAT);

    save(tmp_name("a"), "a", 1);
    save(tmp_name("b"), "a", 1);
    ck_assert_int_eq(symlink("a", tmp_name("soft")), 0);
    ck_assert_int_eq(link(tmp_name("a"), tmp_name("hard")), 0);
    ck_assert(same("a", "soft"));
    ck_assert(same("hard", "soft"));
    ck_assert(!same("a", "b"));
    ck_assert(!same("none", "none"));
    ck_assert_int_eq(kind_of(tmp_name("soft")), Q_PATH_FILE);
    ck_assert_int_eq(kind_of(t_tmp()), Q_PATH_DIR);
    ck_assert_int_eq(kind_of("/dev/null"), Q_PATH_OTHER);
    ck_assert_int_eq(kind_of(tmp_name("none")), Q_PATH_NONE);
    ck_assert_int_eq(kind_of(tmp_name("a/below")), Q_PATH_NONE);
    /* What the system cannot say is an error, not an answer. */
    q_path_kind kind;
    bool is_same;
    size_t got;
    ck_assert_int_eq(symlink("circle", tmp_name("circle")), 0);
    ck_assert_int_eq(q_path_kind_of(tmp_name("circle"), &kind), LQ_E_IO);
    detail_has("circle");
    ck_assert_int_eq(q_path_head(tmp_name("circle"), buf, 4, &got), LQ_E_IO);
    ck_assert_int_eq(q_path_same(tmp_name("a"), tmp_name("circle"), &is_same), LQ_E_IO);
    ck_assert_int_eq(q_path_same(tmp_name("circle"), tmp_name("a"), &is_same), LQ_E_IO);
}
END_TEST

/* ---------------------------------------------------------------------------------------- writing */

START_TEST(test_output_appears_whole) {
    const char *path = tmp_name("out"), *temp = tmp_name(".out.lq-tmp");
    q_outfile *f;
    ck_assert_msg(open_out(path, 1 << 20, false, &f) == LQ_OK, "%s", lq_error_detail());
    ck_assert_str_eq(q_outfile_temp(f), temp);
    write_text(f, "hello ");
    write_text(f, "world");
    ck_assert_uint_eq(q_outfile_written(f), 11);
    ck_assert(!exists(path));
    ck_assert_int_eq(q_outfile_sync(f), LQ_OK);
    holds(temp, "hello world"); /* as long as written, though more was reserved */
    ck_assert_int_eq(q_outfile_commit(f), LQ_OK);
    ck_assert(!exists(temp));
    holds(path, "hello world");

    /* Kept without force, replaced with it, and only at commit. */
    ck_assert_int_eq(open_out(path, 0, false, &f), LQ_E_ARG);
    detail_has("exists");
    ck_assert(!exists(temp));
    ck_assert_int_eq(open_out(path, 0, true, &f), LQ_OK);
    write_text(f, "new");
    holds(path, "hello world");
    q_outfile_discard(f);
    ck_assert(!exists(temp));
    holds(path, "hello world");
    ck_assert_int_eq(open_out(path, 0, true, &f), LQ_OK);
    write_text(f, "new");
    ck_assert_int_eq(q_outfile_commit(f), LQ_OK);
    holds(path, "new");
    q_outfile_discard(NULL);

    /* Without a directory in the name; empty. */
    ck_assert_int_eq(chdir(t_tmp()), 0);
    ck_assert_int_eq(open_out("plain", 0, false, &f), LQ_OK);
    ck_assert_str_eq(q_outfile_temp(f), ".plain.lq-tmp");
    ck_assert_int_eq(q_outfile_commit(f), LQ_OK);
    holds("plain", "");
}
END_TEST

START_TEST(test_output_appears_meanwhile) {
    const char *path = tmp_name("race");
    q_outfile *f;
    ck_assert_int_eq(open_out(path, 0, false, &f), LQ_OK);
    write_text(f, "ours");
    save(path, "theirs", 6);
    ck_assert_int_eq(q_outfile_commit(f), LQ_E_ARG);
    holds(path, "theirs");
    ck_assert(!exists(tmp_name(".race.lq-tmp")));
}
END_TEST

START_TEST(test_output_refused) {
    q_outfile *f = NULL;
    ck_assert_int_eq(open_out(tmp_name("no/such/dir"), 0, false, &f), LQ_E_IO);
    detail_has("no/such/");
    save(tmp_name("file"), "x", 1);
    ck_assert_int_eq(open_out(tmp_name("file/below"), 0, false, &f), LQ_E_IO);
    ck_assert_int_eq(open_out(t_tmp(), 0, true, &f), LQ_E_ARG);
    ck_assert_int_eq(mkfifo(tmp_name("pipe"), 0666), 0);
    ck_assert_int_eq(open_out(tmp_name("pipe"), 0, true, &f), LQ_E_ARG);
    detail_has("a FIFO");
    ck_assert_int_eq(open_out("/dev/null", 0, true, &f), LQ_E_ARG);
    ck_assert_int_eq(open_out("", 0, true, &f), LQ_E_ARG);
    ck_assert_int_eq(open_out(NULL, 0, true, &f), LQ_E_ARG);
    ck_assert_int_eq(open_out(tmp_name("dir/"), 0, true, &f), LQ_E_ARG);
    ck_assert_int_eq(open_out(tmp_name(".."), 0, true, &f), LQ_E_ARG);
    /* A link that leads nowhere is something that exists. */
    ck_assert_int_eq(symlink("nowhere", tmp_name("dangling")), 0);
    ck_assert_int_eq(open_out(tmp_name("dangling"), 0, false, &f), LQ_E_ARG);
    /* What lies under the temporary's name and is no file stays. */
    ck_assert_int_eq(mkfifo(tmp_name(".t.lq-tmp"), 0666), 0);
    ck_assert_int_eq(open_out(tmp_name("t"), 0, false, &f), LQ_E_IO);
    ck_assert(exists(tmp_name(".t.lq-tmp")));
    ck_assert_int_eq(symlink("file", tmp_name(".u.lq-tmp")), 0);
    ck_assert_int_eq(open_out(tmp_name("u"), 0, false, &f), LQ_E_IO);
    holds(tmp_name("file"), "x");
    ck_assert_ptr_null(f);
    /* A name as long as names can be still has a temporary; a longer one is the system's to refuse. */
    char longer[300];
    memset(longer, 'n', sizeof longer);
    longer[255] = 0;
    ck_assert_msg(open_out(tmp_name(longer), 0, false, &f) == LQ_OK, "%s", lq_error_detail());
    write_text(f, "x");
    ck_assert_int_eq(q_outfile_commit(f), LQ_OK);
    holds(tmp_name(longer), "x");
    longer[255] = 'n', longer[256] = 0;
    ck_assert_int_eq(open_out(tmp_name(longer), 0, false, &f), LQ_E_IO);
}
END_TEST

START_TEST(test_read_only_directory) {
    q_outfile *f;
    /* /proc refuses new files to everyone. */
    ck_assert_int_eq(open_out("/proc/self/out", 0, false, &f), LQ_E_IO);
    detail_has("/proc/self/");
    if (geteuid() == 0) T_SKIP("permissions do not bind root");
    ck_assert_int_eq(mkdir(tmp_name("closed"), 0555), 0);
    ck_assert_int_eq(open_out(tmp_name("closed/out"), 0, false, &f), LQ_E_IO);
}
END_TEST

START_TEST(test_no_space) {
    q_outfile *f;
    static const uint64_t sizes[] = {(uint64_t)1 << 60, UINT64_MAX};
    for (size_t i = 0; i < Q_COUNT(sizes); i++) {
        ck_assert_int_eq(open_out(tmp_name("absurd"), sizes[i], false, &f), LQ_E_IO);
        detail_has("absurd needs");
        ck_assert(!exists(tmp_name("absurd")) && !exists(tmp_name(".absurd.lq-tmp")));
    }
    /* A limit on file sizes refuses up front and on the way, and never raises its signal. */
    const struct rlimit limit = {1 << 20, 1 << 20};
    ck_assert_int_eq(setrlimit(RLIMIT_FSIZE, &limit), 0);
    ck_assert_int_eq(open_out(tmp_name("limited"), (1 << 20) + 1, false, &f), LQ_E_IO);
    ck_assert_int_eq(open_out(tmp_name("limited"), 0, false, &f), LQ_OK);
    static char zeros[1 << 19];
    ck_assert_int_eq(q_outfile_write(f, zeros, sizeof zeros), LQ_OK);
    ck_assert_int_eq(q_outfile_write(f, zeros, sizeof zeros), LQ_OK);
    ck_assert_int_eq(q_outfile_write(f, zeros, 1), LQ_E_IO);
    q_outfile_discard(f);
    ck_assert(!exists(tmp_name("limited")) && !exists(tmp_name(".limited.lq-tmp")));
}
END_TEST

/* Another process opens the same output and reports what it got. */
static int other_writer(const char *path) {
    const pid_t pid = fork();
    ck_assert_int_ge(pid, 0);
    if (pid == 0) {
        q_outfile *g;
        const lq_status status = open_out(path, 0, true, &g);
        _exit(status == LQ_OK ? 0 : status == LQ_E_BUSY ? 1 : 2);
    }
    int rc;
    ck_assert_int_eq(waitpid(pid, &rc, 0), pid);
    ck_assert(WIFEXITED(rc));
    return WEXITSTATUS(rc);
}

START_TEST(test_second_writer) {
    const char *path = tmp_name("shared");
    q_outfile *f, *g;
    ck_assert_int_eq(open_out(path, 0, true, &f), LQ_OK);
    write_text(f, "first");
    ck_assert_int_eq(other_writer(path), 1);
    ck_assert_int_eq(open_out(path, 0, true, &g), LQ_E_BUSY); /* and within one process */
    detail_has("shared");
    ck_assert_int_eq(q_outfile_commit(f), LQ_OK);
    holds(path, "first");
    ck_assert_int_eq(other_writer(path), 0); /* which died without commit */
    ck_assert(exists(tmp_name(".shared.lq-tmp")));
    ck_assert_int_eq(open_out(path, 0, true, &f), LQ_OK);
    write_text(f, "second");
    ck_assert_int_eq(q_outfile_commit(f), LQ_OK);
    holds(path, "second");
}
END_TEST

START_TEST(test_killed_writer) {
    const char *path = tmp_name("killed");
    int ready[2];
    ck_assert_int_eq(pipe(ready), 0);
    const pid_t pid = fork();
    ck_assert_int_ge(pid, 0);
    if (pid == 0) {
        q_outfile *f;
        if (open_out(path, 0, false, &f) != LQ_OK) _exit(1);
        if (q_outfile_write(f, "half of something longer", 24) != LQ_OK || q_outfile_sync(f) != LQ_OK) _exit(1);
        if (write(ready[1], "x", 1) != 1) _exit(1);
        for (;;) pause();
    }
    char byte;
    ck_assert_int_eq(read(ready[0], &byte, 1), 1);
    ck_assert_int_eq(kill(pid, SIGKILL), 0);
    ck_assert_int_eq(waitpid(pid, NULL, 0), pid);
    ck_assert(!exists(path));
    holds(tmp_name(".killed.lq-tmp"), "half of something longer");
    q_outfile *f;
    ck_assert_int_eq(open_out(path, 0, false, &f), LQ_OK);
    holds(tmp_name(".killed.lq-tmp"), "");
    write_text(f, "whole");
    ck_assert_int_eq(q_outfile_commit(f), LQ_OK);
    holds(path, "whole");
}
END_TEST

/* How many of a file's pages lie in memory. */
static int resident(const char *path, size_t bytes) {
    unsigned char pages[64];
    const size_t page = (size_t)sysconf(_SC_PAGESIZE);
    const int fd = open(path, O_RDONLY);
    void *p = mmap(NULL, bytes, PROT_READ, MAP_SHARED, fd, 0);
    ck_assert(fd >= 0 && p != MAP_FAILED && bytes / page <= sizeof pages && mincore(p, bytes, pages) == 0);
    int n = 0;
    for (size_t i = 0; i < bytes / page; i++) n += pages[i] & 1;
    munmap(p, bytes);
    close(fd);
    return n;
}

/* What is let go leaves the system's memory, and reads as before. */
START_TEST(test_let_go) {
    enum { BYTES = 1 << 18 };
    static uint8_t data[BYTES], back[BYTES];
    const char *path = tmp_name("read-once");
    uint64_t seed = 1;
    q_file *f;
    for (int i = 0; i < BYTES; i++) data[i] = (uint8_t)t_rand(&seed);
    save(path, data, BYTES);
    const int fd = open(path, O_RDONLY);
    ck_assert(fd >= 0 && fsync(fd) == 0 && close(fd) == 0);
    ck_assert_int_eq(q_file_open(&q_alloc_libc, path, 0, &f), LQ_OK);
    ck_assert_int_eq(q_file_read(f, 0, back, BYTES), LQ_OK);
    ck_assert_int_gt(resident(path, BYTES), 0);
    q_file_let_go(f, BYTES, 10); /* nothing there */
    q_file_let_go(f, 0, UINT64_MAX);
    const int left = resident(path, BYTES);
    const int here = open(path, O_RDONLY);
    ck_assert(here >= 0 && posix_fadvise(here, 0, 0, POSIX_FADV_DONTNEED) == 0 && close(here) == 0);
    const int kept = resident(path, BYTES); /* by file systems in memory */
    memset(back, 0, BYTES);
    ck_assert_int_eq(q_file_read(f, 0, back, BYTES), LQ_OK);
    ck_assert(memcmp(data, back, BYTES) == 0);
    q_file_close(f);
    if (kept) T_SKIP("file: this file system keeps its pages (%d of them)", kept);
    ck_assert_int_eq(left, 0);
}
END_TEST

static Suite *suite(void) {
    Suite *s = suite_create("file");
    TCase *c = tcase_create("file");
    tcase_add_test(c, test_read);
    tcase_add_test(c, test_changed);
    tcase_add_test(c, test_not_a_file);
    tcase_add_test(c, test_large_file);
    tcase_add_test(c, test_let_go);
    tcase_add_test(c, test_paths);
    tcase_add_test(c, test_output_appears_whole);
    tcase_add_test(c, test_output_appears_meanwhile);
    tcase_add_test(c, test_output_refused);
    tcase_add_test(c, test_read_only_directory);
    tcase_add_test(c, test_no_space);
    tcase_add_test(c, test_second_writer);
    tcase_add_test(c, test_killed_writer);
    suite_add_tcase(s, c);
    return s;
}

HARNESS_MAIN(suite)
