/* test_kill_calibrate.c: a calibrate that is killed, at any moment of its whole duration, and the same command again.
 *
 * Under the final name is nothing or the complete file; beside it lie only files that begin with that name; the same
 * command goes on from finished layers, ends with the bytes of an undisturbed run and leaves nothing else. Some runs
 * that go on are killed as well. T_KILLS=200 in the environment says how many kills there are in all; without it they
 * take a few seconds. */
#include "harness.h"

#include <errno.h>
#include <signal.h>
#include <sys/stat.h>
#include <time.h>
#include <unistd.h>

#include "help_model.h"
#include "help_spawn.h"

enum { WIDTH = 256, LAYERS = 3, KINDS = 3, WITHOUT_OPENBLAS = 6 /* exit status */ };

static char base[1024], out_dir[1100], dst[1200], text[1200], src[1200], lq[4200];
static uint64_t src_hash, dst_hash;

/* Blocks of 256 fit, and there are layers to go on from. */
static void write_model(void) {
    static tiny t;
    tiny_init(&t, "f16");
    tiny_grow(&t, WIDTH, WIDTH, LAYERS);
    tiny_write(&t, src);
}

static void setup(void) {
    uint64_t seed = 11;
    snprintf(base, sizeof base, "%s/kill-calibrate-%ld", t_tmp(), (long)getpid());
    t_path(out_dir, sizeof out_dir, base, "out");
    t_path(dst, sizeof dst, out_dir, "stats.gguf");
    t_path(src, sizeof src, base, "src.gguf");
    t_path(text, sizeof text, base, "text.txt");
    snprintf(lq, sizeof lq, "%s", spawn_built("lq"));
    ck_assert_int_eq(mkdir(base, 0777), 0);
    ck_assert_int_eq(mkdir(out_dir, 0777), 0);
    write_model();
    src_hash = spawn_hash(src);
    FILE *f = fopen(text, "w");
    for (int i = 0; i < 200; i++) fputc("abc \n"[t_rand(&seed) % 5], f);
    ck_assert_int_eq(fclose(f), 0);
}
static void teardown(void) { t_remove(base); }

static void pause_for(double seconds) {
    const struct timespec t = {(time_t)seconds, (long)((seconds - (double)(time_t)seconds) * 1e9)};
    nanosleep(&t, NULL);
}

/* What lies in the output's folder besides the output. */
typedef struct left {
    int kept, temporary; /* files of finished layers and what goes into the next; files that were being written */
} left;
static left look(const char *what) {
    left l = {0, 0};
    DIR *d = opendir(out_dir);
    ck_assert_ptr_nonnull(d);
    for (const struct dirent *e; (e = readdir(d)) != NULL;) {
        const char *name = e->d_name;
        if (strcmp(name, ".") == 0 || strcmp(name, "..") == 0 || strcmp(name, "stats.gguf") == 0) continue;
        if (strncmp(name, "stats.gguf.", 11) == 0) l.kept++;
        else if (strncmp(name, ".stats.gguf.", 12) == 0) l.temporary++;
        else ck_abort_msg("%s: %s is left", what, name);
    }
    closedir(d);
    return l;
}

/* The command again, to its end; returns the seconds that it took. */
static double again(char *const argv[], const char *what) {
    outcome o;
    spawn_run(argv, NULL, &o);
    ck_assert_msg(o.code == 0, "%s: run again: exit %d: %s", what, o.code, o.said);
    const left l = look(what);
    ck_assert_msg(spawn_hash(dst) == dst_hash, "%s: run again: other bytes", what);
    ck_assert_msg(l.kept == 0 && l.temporary == 0, "%s: run again: %d kept files and %d temporaries are left", what,
                  l.kept, l.temporary);
    unlink(dst);
    return o.seconds;
}

/* Evenly over the run, and every fourth time near its end, where files are put together. */
static double moment(uint64_t *seed, double seconds) {
    const double u = (double)(t_rand(seed) >> 11) * 0x1p-53;
    return seconds * (t_rand(seed) % 4 ? u : 0.85 + 0.2 * u);
}

static int kills(void) {
    const char *all = getenv("T_KILLS");
    return all ? (atoi(all) + KINDS - 1) / KINDS : T_SLOW ? 4 : 6;
}

/* `keeps`: calibrations of this kind leave finished layers. Where the machine is slow or busy the few moments may miss
 * what they are for: then there are more of them, and after ten times as many the test says so. */
static bool killed_at_any_moment(const char *kind, char *const argv[], bool keeps) {
    const int most = kills();
    const bool few = getenv("T_KILLS") == NULL;
    uint64_t seed = 6;
    int killed = 0, done = 0, found = 0, torn = 0;
    double seconds = again(argv, "at first");
    for (int i = 0;; i++) { /* a run that was faster than its moment is none */
        const bool met = killed >= most / 2 && torn > 0 && (found > 0 || !keeps);
        if ((killed >= most || i >= 2 * most) && (met || !few || i >= 10 * most)) break;
        char what[96];
        outcome o;
        const pid_t pid = spawn_begin(argv, NULL);
        const double at = moment(&seed, seconds);
        pause_for(at);
        kill(pid, SIGKILL);
        spawn_end(pid, &o);
        snprintf(what, sizeof what, "%s: kill %d after %.1f of %.1f ms", kind, i, at * 1e3, seconds * 1e3);
        ck_assert_msg(o.code == 128 + SIGKILL || o.code == 0, "%s: exit %d: %s", what, o.code, o.said);
        const left l = look(what);
        const uint64_t h = spawn_hash(dst);
        ck_assert_msg(h == 0 || h == dst_hash, "%s: half a file under the final name", what);
        ck_assert_msg(h != 0 || o.code != 0, "%s: exit 0 without a file", what);
        ck_assert_msg(spawn_hash(src) == src_hash, "%s: the source was changed", what);
        killed += o.code != 0;
        done += h != 0 && o.code != 0;
        found += l.kept > 0 && o.code != 0;
        torn += l.temporary > 0 && o.code != 0;
        if (h) unlink(dst); /* kept files may lie there still: the next run makes use of them, or takes them away */
        if (t_rand(&seed) % 3 == 0) continue; /* what goes on is killed too */
        const double took = again(argv, what);
        if (l.kept == 0) seconds = took;
    }
    again(argv, "at last");
    printf("%s: %d kills of a running process (%.2f s undisturbed): behind %d lay kept parts, behind %d files being "
           "written, behind %d the complete file; no other bytes\n", kind, killed, seconds, found, torn, done);
    ck_assert_msg(keeps || found == 0, "%s: behind %d kills lay kept parts", kind, found);
    const bool met = killed >= most / 2 && torn > 0 && (found > 0) == keeps;
    ck_assert_msg(met || few, "the moments missed the run: %d kills, %d with kept parts", killed, found);
    return met;
}
#define KILLED_AT_ANY_MOMENT(kind, argv, keeps) \
    if (!killed_at_any_moment(kind, argv, keeps)) \
        T_SKIP("no kill met a file being written, or kept parts: the machine is too busy")

/* Undisturbed; false: OpenBLAS is not there. */
static bool first_run(char *const argv[]) {
    outcome o;
    spawn_run(argv, NULL, &o);
    if (o.code == WITHOUT_OPENBLAS) return false;
    ck_assert_msg(o.code == 0, "exit %d: %s", o.code, o.said);
    ck_assert((dst_hash = spawn_hash(dst)) != 0);
    unlink(dst);
    return true;
}

START_TEST(importance) {
    char *const argv[] = {lq, "calibrate", src, "--text", text, "-o", dst, "--ctx", "16", "-t", "1", NULL};
    ck_assert(first_run(argv));
    KILLED_AT_ANY_MOMENT("importance", argv, false);
}
END_TEST

START_TEST(hessians) {
    char *const argv[] = {lq, "calibrate", src, "--text", text, "-o", dst, "--ctx", "16", "-t", "1", "--hessians",
                          "--for", "q4_k_m:gptq", NULL};
    if (!first_run(argv)) T_SKIP("OpenBLAS is not installed (libopenblas0-pthread)");
    KILLED_AT_ANY_MOMENT("hessians for q4_k_m:gptq", argv, true);
}
END_TEST

START_TEST(factors) {
    char *const argv[] = {lq, "calibrate", src, "--text", text, "-o", dst, "--ctx", "16", "-t", "1", "--for",
                          "awq+q4_k_m", NULL};
    ck_assert(first_run(argv));
    KILLED_AT_ANY_MOMENT("factors for awq+q4_k_m", argv, true);
}
END_TEST

/* What other calibrations left: it goes only when this one has read and written all of its own, and where it cannot be
 * looked at or removed (it may be another user's) it stays, with a warning. */
START_TEST(strays) {
    static const char name[] = ".stats.gguf.0123456789abcdef.rows.lq-tmp";
    static const char *const calls[] = {"unlink", "open"};
    char *const argv[] = {lq, "calibrate", src, "--text", text, "-o", dst, "--ctx", "16", "-t", "1", "--for",
                          "awq+q4_k_m", NULL};
    char stray[1200], kept[1300];
    outcome o;
    if (!spawn_shim_works(base)) T_SKIP("file calls cannot be disturbed in this build");
    ck_assert(first_run(argv));
    t_path(stray, sizeof stray, out_dir, name);
    FILE *f = fopen(stray, "w");
    ck_assert(f && fputs("of another", f) >= 0 && fclose(f) == 0);
    for (size_t i = 0; i < Q_COUNT(calls); i++) {
        disturb d = disturb_none(stray);
        d.calls = calls[i];
        d.fail = 1;
        d.stay = true;
        d.error = EPERM;
        spawn_run(argv, &d, &o);
        ck_assert_msg(o.code == 0 && o.failures > 0, "%s: exit %d, %d failures: %s", calls[i], o.code,
                      (int)o.failures, o.said);
        ck_assert_msg(strstr(o.said, name) && strstr(o.said, "stays: "), "%s: %s", calls[i], o.said);
        ck_assert_int_eq(access(stray, F_OK), 0);
        ck_assert(spawn_hash(dst) == dst_hash);
        unlink(dst);
    }
    snprintf(kept, sizeof kept, "%s.", dst); /* the first layer, when the output is put together */
    disturb d = disturb_none(kept);
    d.calls = "open";
    d.fail = 1;
    d.error = EIO;
    spawn_run(argv, &d, &o);
    ck_assert_msg(o.code != 0 && o.failures == 1, "exit %d: %s", o.code, o.said);
    ck_assert_int_ne(access(dst, F_OK), 0);
    ck_assert_int_eq(access(stray, F_OK), 0);
    again(argv, "after a failure");
    ck_assert_int_ne(access(stray, F_OK), 0);
}
END_TEST

static Suite *suite(void) {
    Suite *s = suite_create("kill_calibrate");
    TCase *c = tcase_create("kill_calibrate");
    tcase_set_timeout(c, 1200);
    tcase_add_checked_fixture(c, setup, teardown);
    tcase_add_test(c, importance);
    tcase_add_test(c, hessians);
    tcase_add_test(c, factors);
    tcase_add_test(c, strays);
    suite_add_tcase(s, c);
    return s;
}

HARNESS_MAIN(suite)
