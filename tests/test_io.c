/* test_io.c: file calls that come back short, are interrupted, or fail, in every command and in the writer itself.
 *
 * A command runs under shim_io.c, which counts its calls on the files of one folder, and then disturbs each of them in
 * turn (a dense sample where there are many). What must hold: short and interrupted calls change nothing that can be
 * seen; a failed call ends the command with exit code 4 and a message that names the file; the output is then what it
 * was before, no temporary is left, and the inputs are as they were. */
#include "harness.h"

#include <errno.h>
#include <sys/stat.h>
#include <unistd.h>

#include "../libquant/file.h"
#include "help_model.h"
#include "help_spawn.h"

/* Each call costs a process: the most that a sweep over the calls of one command does. */
#define MOST_RUNS (T_SLOW ? 40u : 260u)

static char base[1024], out_dir[1100], dst[1200], hf[1100], gguf[1200], text[1200];
static char lq[4200], self[4200];

typedef struct command {
    const char *name;
    char *argv[16];
    bool writes;     /* dst */
    bool old;        /* dst exists before, and is replaced */
    uint64_t calls;  /* undisturbed */
    uint64_t out_hash, dst_hash;
} command;
static const char old_content[] = "what was there before";

static void write_old(void) {
    FILE *f = fopen(dst, "wb");
    ck_assert_ptr_nonnull(f);
    fputs(old_content, f);
    fclose(f);
}

/* All inputs in one number. */
static uint64_t inputs(void) {
    static const char *const names[] = {"config.json", "model.safetensors", "tokenizer.model", "tokenizer_config.json"};
    uint64_t h = spawn_hash(gguf) ^ 3 * spawn_hash(text);
    char path[1300];
    for (size_t i = 0; i < Q_COUNT(names); i++) h = h * 31 + spawn_hash(t_path(path, sizeof path, hf, names[i]));
    return h;
}
static uint64_t inputs_hash;

static void setup(void) {
    snprintf(base, sizeof base, "%s/io-%ld", t_tmp(), (long)getpid());
    snprintf(lq, sizeof lq, "%s", spawn_built("lq"));
    snprintf(self, sizeof self, "%s", spawn_built("tests/test_io"));
    t_path(out_dir, sizeof out_dir, base, "out");
    t_path(dst, sizeof dst, out_dir, "new.gguf");
    t_path(hf, sizeof hf, base, "model");
    t_path(gguf, sizeof gguf, base, "f16.gguf");
    t_path(text, sizeof text, base, "text.txt");
    ck_assert_int_eq(mkdir(base, 0777), 0);
    ck_assert_int_eq(mkdir(out_dir, 0777), 0);
    ck_assert_int_eq(mkdir(hf, 0777), 0);
    static tiny t;
    tiny_init(&t, "f16");
    tiny_write(&t, gguf);
    tiny_write_hf(&t, hf);
    FILE *f = fopen(text, "wb");
    for (int i = 0; i < 300; i++) fprintf(f, "abc ");
    fclose(f);
    inputs_hash = inputs();
}

static void before(const command *c) {
    unlink(dst);
    if (c->old) write_old();
}

/* Nothing but dst, and that what it was or shall be. True when it is what it shall be. */
static bool check_files(const command *c, const outcome *o, const char *what) {
    char name[300];
    const int others = spawn_entries(out_dir, "new.gguf", name);
    const uint64_t h = spawn_hash(dst);
    /* What could not be removed, or was made by a call that said it had failed, may stay: nobody could help it. */
    if (!o->failed_unlink) ck_assert_msg(others == 0, "%s, %s: %s is left", c->name, what, name);
    ck_assert_msg(inputs() == inputs_hash, "%s, %s: an input was changed", c->name, what);
    if (!c->writes) {
        ck_assert_msg(h == 0, "%s, %s: it wrote", c->name, what);
        return true;
    }
    const uint64_t was = c->old ? q_fnv64(old_content, strlen(old_content)) : 0;
    ck_assert_msg(h == was || h == c->dst_hash, "%s, %s: the output is neither as it was nor complete (%s)", c->name,
                  what, o->said);
    return h == c->dst_hash;
}

/* Run it undisturbed but for counting; what comes out is the measure of all that follows. */
static void measure(command *c) {
    outcome o;
    const disturb d = disturb_none(base);
    before(c);
    spawn_run(c->argv, &d, &o);
    ck_assert_msg(o.code == 0 && o.calls > 0, "%s: exit %d, %llu calls: %s", c->name, o.code,
                  (unsigned long long)o.calls, o.said);
    c->calls = o.calls;
    c->out_hash = o.out_hash;
    c->dst_hash = spawn_hash(dst);
    ck_assert_int_eq(c->dst_hash != 0, c->writes);
    check_files(c, &o, "undisturbed");
}

static void invisible(const command *c, const disturb *d, const char *what) {
    outcome o;
    before(c);
    spawn_run(c->argv, d, &o);
    ck_assert_msg(o.code == 0, "%s, %s: exit %d: %s", c->name, what, o.code, o.said);
    ck_assert_msg(o.out_hash == c->out_hash, "%s, %s: it prints something else", c->name, what);
    ck_assert_msg(check_files(c, &o, what), "%s, %s: it writes something else", c->name, what);
}

/* Whether the message names the file at fault: by its path, or for a temporary by the path that it is for. */
static bool names_path(const outcome *o) {
    char path[4400];
    snprintf(path, sizeof path, "%s", o->failed_path);
    if (strstr(o->said, path)) return true;
    char *name = strrchr(path, '/');
    const size_t n = strlen(path);
    if (!name || name[1] != '.' || n < 7 || strcmp(path + n - 7, ".lq-tmp") != 0) return false;
    path[n - 7] = 0;
    memmove(name + 1, name + 2, strlen(name + 1));
    return strstr(o->said, path) != NULL;
}

/* One disturbed run in which some call fails. `code`: the exit code of an error. */
static void failing(const command *c, const disturb *d, int code, const char *what, uint64_t k) {
    outcome o;
    char where[256];
    before(c);
    spawn_run(c->argv, d, &o);
    snprintf(where, sizeof where, "%s (errno %d) at %llu: %s", what, d->error, (unsigned long long)k, o.failed_call);
    ck_assert_msg(o.code < 128, "%s, %s: ended by signal %d", c->name, where, o.code - 128);
    const bool complete = check_files(c, &o, where);
    if (o.failures == 0) { /* a limit on bytes that was not reached */
        ck_assert_msg(o.code == 0 && complete && d->byte >= 0, "%s, %s: exit %d: %s", c->name, where, o.code, o.said);
        return;
    }
    if (o.code == 0) { /* no file system has to be able to reserve space */
        const bool unsupported = d->error == EOPNOTSUPP && strcmp(o.failed_call, "fallocate") == 0;
        ck_assert_msg(o.harmless || unsupported, "%s, %s of %s went unnoticed", c->name, where, o.failed_path);
        ck_assert_msg(o.out_hash == c->out_hash && complete, "%s, %s: other results", c->name, where);
        return;
    }
    ck_assert_msg(o.code == code, "%s, %s of %s: exit %d, expected %d: %s", c->name, where, o.failed_path, o.code, code,
                  o.said);
    ck_assert_msg(names_path(&o), "%s, %s: the message does not name %s: %s", c->name, where, o.failed_path, o.said);
    /* Complete in spite of an error: the rename had happened, and the message says so. */
    ck_assert_msg(!c->writes || !complete || strstr(o.said, "is complete"), "%s, %s: written, and yet: %s", c->name,
                  where, o.said);
}

/* Every counted call of these kinds fails once, alone and with all that follow. */
static void fail_each(const command *c, const char *calls, int error, int code) {
    outcome o;
    disturb d = disturb_none(base);
    d.calls = calls;
    before(c);
    spawn_run(c->argv, &d, &o);
    const uint64_t n = o.calls;
    /* All of the first and the last ones, the rest at equal distances. */
    const uint64_t ends = MOST_RUNS / 3, step = n > MOST_RUNS ? (n - 2 * ends) / ends + 1 : 1;
    d.error = error;
    for (uint64_t k = 1; k <= n; k += k < ends || k + ends >= n ? 1 : step) {
        d.fail = k;
        d.stay = k % 2;
        failing(c, &d, code, "a failure", k);
    }
}

/* Reads or writes end with an error at a byte: at 64 places, among them the first and the last. */
static void fail_at_byte(const command *c, const char *call, int error, uint64_t bytes) {
    disturb d = disturb_none(base);
    const uint64_t places = T_SLOW ? 8 : 64;
    d.calls = call;
    d.error = error;
    for (uint64_t i = 0; i < places; i++) {
        d.byte = (int64_t)(i + 1 == places ? bytes - 1 : bytes * i / places);
        failing(c, &d, 4, "the end of the medium", (uint64_t)d.byte);
    }
}

static void all_short_and_interrupted(const command *c) {
    static const uint64_t lengths[] = {3, 100, 5000};
    for (size_t i = 0; i < Q_COUNT(lengths); i++) {
        disturb d = disturb_none(base);
        d.shorten = lengths[i];
        invisible(c, &d, "short");
    }
    for (uint64_t n = 2; n < 6; n++) {
        disturb d = disturb_none(base);
        d.interrupt = n;
        invisible(c, &d, "interrupted");
        d.shorten = 1000;
        invisible(c, &d, "short and interrupted");
    }
}

#define ARGS(...) {lq, __VA_ARGS__, NULL}
#define SHIM_OR_SKIP()                                                                        \
    if (!spawn_shim_works(base)) T_SKIP("file calls cannot be disturbed in this build")

static void disturb_all(command *c) {
    measure(c);
    all_short_and_interrupted(c);
    fail_each(c, NULL, EIO, 4);
    fail_at_byte(c, "read", EIO, 1000);
}

START_TEST(quantize_a_directory) {
    command c = {.name = "quantize a directory", .writes = true,
                 .argv = ARGS("quantize", hf, dst, "-s", "q8_0", "-t", "1")};
    SHIM_OR_SKIP();
    disturb_all(&c);
    fail_at_byte(&c, "read", EIO, 300000);
}
END_TEST

START_TEST(quantize_a_file_over_another) {
    command c = {.name = "quantize --force", .writes = true, .old = true,
                 .argv = ARGS("quantize", gguf, dst, "-s", "q4_0", "-t", "1", "--force")};
    SHIM_OR_SKIP();
    disturb_all(&c);
}
END_TEST

START_TEST(calibrate_a_file) {
    command c = {.name = "calibrate", .writes = true, .old = true,
                 .argv = ARGS("calibrate", gguf, "--text", text, "-o", dst, "-t", "1", "--force")};
    SHIM_OR_SKIP();
    disturb_all(&c);
}
END_TEST

/* The statistics of one matrix of the tiny model, in the oldest form: read in the smallest pieces. */
static void write_statistics(const char *path) {
    static const char name[] = "blk.0.attn_q.weight";
    const int32_t entries = 1, length = sizeof name - 1, calls = 3, values = 64;
    FILE *f = fopen(path, "wb");
    ck_assert_ptr_nonnull(f);
    fwrite(&entries, 4, 1, f);
    fwrite(&length, 4, 1, f);
    fwrite(name, 1, sizeof name - 1, f);
    fwrite(&calls, 4, 1, f);
    fwrite(&values, 4, 1, f);
    for (int i = 0; i < values; i++) fwrite(&(float){(float)i}, 4, 1, f);
    ck_assert_int_eq(fclose(f), 0);
}

START_TEST(quantize_by_importance) {
    char stats[1300];
    write_statistics(t_path(stats, sizeof stats, base, "imatrix.dat"));
    command c = {.name = "quantize --importance", .writes = true,
                 .argv = ARGS("quantize", gguf, dst, "-s", "q4_0", "-t", "1", "--importance", stats)};
    SHIM_OR_SKIP();
    disturb_all(&c);
}
END_TEST

START_TEST(no_space) {
    command c = {.name = "no space", .writes = true, .argv = ARGS("quantize", gguf, dst, "-s", "q8_0", "-t", "1")};
    static const int errors[] = {ENOSPC, EDQUOT, EFBIG};
    SHIM_OR_SKIP();
    measure(&c);
    struct stat st;
    ck_assert_int_eq(stat(dst, &st), 0);
    for (size_t i = 0; i < Q_COUNT(errors); i++) {
        fail_at_byte(&c, "write", errors[i], (uint64_t)st.st_size);
        fail_each(&c, "write,ftruncate,fallocate,fsync,rename", errors[i], 4);
    }
    /* A file system that cannot reserve, or has no locks. */
    fail_each(&c, "fallocate", EOPNOTSUPP, 4);
    fail_each(&c, "flock", ENOLCK, 4);
}
END_TEST

START_TEST(info) {
    command c = {.name = "info", .argv = ARGS("info", gguf, "--json")}, d = {.name = "info", .argv = ARGS("info", hf)};
    SHIM_OR_SKIP();
    disturb_all(&c);
    disturb_all(&d);
}
END_TEST

START_TEST(run) {
    command c = {.name = "run", .argv = ARGS("run", gguf, "-p", "abc", "-n", "8", "-t", "1", "--temp", "0")},
            d = {.name = "run of a directory", .argv = ARGS("run", hf, "-p", "abc", "-n", "2", "-t", "1")};
    SHIM_OR_SKIP();
    disturb_all(&c);
    disturb_all(&d);
}
END_TEST

START_TEST(eval) {
    command c = {.name = "eval", .argv = ARGS("eval", gguf, "--text", text, "-t", "1")},
            d = {.name = "eval --against", .argv = ARGS("eval", gguf, "--text", text, "--against", hf, "-t", "1")};
    SHIM_OR_SKIP();
    disturb_all(&c);
    disturb_all(&d);
}
END_TEST

START_TEST(memory_for_a_mapping) {
    command c = {.name = "run", .argv = ARGS("run", gguf, "-p", "abc", "-n", "1", "-t", "1")};
    SHIM_OR_SKIP();
    measure(&c);
    fail_each(&c, "mmap", ENOMEM, 5);
    fail_each(&c, "mmap", ENODEV, 4);
}
END_TEST

/* The writer without a model around it: this program, started again. */
static int write_something(const char *path, const char *how) {
    q_outfile *f;
    const q_alloc *a = &q_alloc_libc;
    lq_status status = q_outfile_open(a, path, 10000, strcmp(how, "force") == 0, &f);
    static char block[1500];
    for (int i = 0; i < 6 && status == LQ_OK; i++) {
        memset(block, 'a' + i, sizeof block);
        status = q_outfile_write(f, block, sizeof block);
        if (status == LQ_OK && i == 3) status = q_outfile_sync(f);
        if (status != LQ_OK) q_outfile_discard(f);
    }
    if (status == LQ_OK) status = q_outfile_commit(f);
    if (status != LQ_OK) fprintf(stderr, "%s\n", lq_error_detail());
    return status == LQ_OK ? 0 : status == LQ_E_IO ? 4 : 70;
}

START_TEST(the_writer) {
    command c = {.name = "writer", .writes = true, .argv = {self, "write", dst, "new", NULL}},
            d = {.name = "writer, --force", .writes = true, .old = true, .argv = {self, "write", dst, "force", NULL}};
    static const int errors[] = {EIO, ENOSPC, EDQUOT};
    SHIM_OR_SKIP();
    measure(&c);
    measure(&d);
    all_short_and_interrupted(&c);
    all_short_and_interrupted(&d);
    for (size_t i = 0; i < Q_COUNT(errors); i++) {
        fail_each(&c, "open,write,fsync,ftruncate,fallocate,rename", errors[i], 4);
        fail_each(&d, "open,write,fsync,ftruncate,fallocate,rename", errors[i], 4);
        fail_at_byte(&c, "write", errors[i], 9000);
    }
    fail_each(&c, NULL, EIO, 4);
    fail_each(&d, NULL, EIO, 4);
}
END_TEST

static Suite *suite(void) {
    Suite *s = suite_create("io");
    TCase *c = tcase_create("io");
    tcase_set_timeout(c, 300);
    tcase_add_checked_fixture(c, setup, NULL);
    tcase_add_test(c, quantize_a_directory);
    tcase_add_test(c, quantize_a_file_over_another);
    tcase_add_test(c, calibrate_a_file);
    tcase_add_test(c, quantize_by_importance);
    tcase_add_test(c, no_space);
    tcase_add_test(c, info);
    tcase_add_test(c, run);
    tcase_add_test(c, eval);
    tcase_add_test(c, memory_for_a_mapping);
    tcase_add_test(c, the_writer);
    suite_add_tcase(s, c);
    return s;
}

int main(int argc, char **argv) {
    if (argc == 4 && strcmp(argv[1], "write") == 0) return write_something(argv[2], argv[3]);
    SRunner *r = srunner_create(suite());
    srunner_run_all(r, CK_NORMAL);
    const int failures = srunner_ntests_failed(r);
    srunner_free(r);
    return failures ? 1 : 0;
}
