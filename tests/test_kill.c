/* test_kill.c: a quantize that is killed, interrupted, or has a rival for its output.
 *
 * Whatever the moment: under the final name is nothing or the complete file, and the same command run again gives the
 * bytes of an undisturbed run and leaves nothing else. The moments are drawn from a fixed seed and spread over the time
 * that the run before took; apart from that the shim kills in the place of each call, which meets every state of the
 * last phase. */
#include "harness.h"

#include <signal.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

#include "help_model.h"
#include "help_spawn.h"

#define KILLS (T_SLOW ? 30 : 200)

static char base[1024], out_dir[1100], dst[1200], temp[1200], src[1200], lq[4200];
static char *quantize[] = {lq, "quantize", src, dst, "-s", "q8_0", "-t", "1", NULL};
static char *quantize_force[] = {lq, "quantize", src, dst, "-s", "q8_0", "-t", "1", "--force", NULL};
static uint64_t src_hash, dst_hash;

/* Large enough that a run has a middle: some ten times what a process costs. */
static void setup(void) {
    static tiny t;
    snprintf(base, sizeof base, "%s/kill-%ld", t_tmp(), (long)getpid());
    t_path(out_dir, sizeof out_dir, base, "out");
    t_path(dst, sizeof dst, out_dir, "new.gguf");
    t_path(temp, sizeof temp, out_dir, ".new.gguf.lq-tmp");
    t_path(src, sizeof src, base, "src.gguf");
    snprintf(lq, sizeof lq, "%s", spawn_built("lq"));
    ck_assert_int_eq(mkdir(base, 0777), 0);
    ck_assert_int_eq(mkdir(out_dir, 0777), 0);
    tiny_init(&t, "f16");
    for (uint32_t i = t.n_meta; i-- > 0;)
        if (strncmp(t.meta[i].key.p, "tokenizer.", 10) == 0) t.meta[i] = t.meta[--t.n_meta];
    tiny_u32(&t, "llama.vocab_size", 1500);
    tiny_tensor(&t, "token_embd.weight")->shape[1] = 1500;
    tiny_tensor(&t, "output.weight")->shape[1] = 1500;
    tiny_write(&t, src);
    src_hash = spawn_hash(src);
    outcome o;
    spawn_run(quantize, NULL, &o);
    ck_assert_msg(o.code == 0, "%s", o.said);
    dst_hash = spawn_hash(dst);
    ck_assert(dst_hash != 0);
    unlink(dst);
}

/* Nothing but the destination, whole. */
static void complete(const char *what) {
    char name[300];
    ck_assert_msg(spawn_hash(dst) == dst_hash, "%s: other bytes", what);
    ck_assert_msg(spawn_entries(out_dir, "new.gguf", name) == 0, "%s: %s is left", what, name);
    ck_assert_msg(spawn_hash(src) == src_hash, "%s: the source was changed", what);
}

typedef enum { NOTHING, TEMPORARY, COMPLETE } state;

/* What a process that was killed has left; anything but these three is a failure. */
static state after_kill(const char *what) {
    char name[300] = "";
    const uint64_t h = spawn_hash(dst);
    const int others = spawn_entries(out_dir, "new.gguf", name);
    ck_assert_msg(h == 0 || h == dst_hash, "%s: half a file under the final name", what);
    ck_assert_msg(others == 0 || (others == 1 && strcmp(name, ".new.gguf.lq-tmp") == 0), "%s: %s is left", what, name);
    ck_assert_msg(spawn_hash(src) == src_hash, "%s: the source was changed", what);
    return h ? COMPLETE : others ? TEMPORARY : NOTHING;
}

/* The same command again: it starts clean, whatever lies there. Returns the seconds it took. */
static double again(const char *what) {
    outcome o;
    spawn_run(quantize_force, NULL, &o);
    ck_assert_msg(o.code == 0, "%s: run again: exit %d: %s", what, o.code, o.said);
    complete(what);
    unlink(dst);
    return o.seconds;
}

static void pause_for(double seconds) {
    const struct timespec t = {(time_t)seconds, (long)((seconds - (double)(time_t)seconds) * 1e9)};
    nanosleep(&t, NULL);
}

/* A moment of a run that takes this long: every second one late, where the file is flushed, read back and renamed. */
static double moment(uint64_t *seed, double seconds) {
    const double u = (double)(t_rand(seed) >> 11) * 0x1p-53;
    return seconds * (t_rand(seed) % 2 ? u : 0.7 + 0.35 * u);
}

START_TEST(killed_at_any_moment) {
    uint64_t seed = 6;
    int met[3] = {0}, killed = 0;
    double seconds = again("at first");
    /* A run that was faster than its moment is none; on a busy machine many are. */
    for (int i = 0; (killed < KILLS || met[TEMPORARY] == 0) && i < (met[TEMPORARY] ? 2 : 20) * KILLS; i++) {
        char what[64];
        outcome o;
        const pid_t pid = spawn_begin(quantize, NULL);
        const double at = moment(&seed, seconds);
        pause_for(at);
        kill(pid, SIGKILL);
        spawn_end(pid, &o);
        snprintf(what, sizeof what, "kill %d after %.1f of %.1f ms", i, at * 1e3, seconds * 1e3);
        ck_assert_msg(o.code == 128 + SIGKILL || o.code == 0, "%s: exit %d: %s", what, o.code, o.said);
        killed += o.code != 0;
        met[after_kill(what)]++;
        seconds = again(what);
    }
    printf("%d kills: %d times nothing, %d times a temporary, %d times the complete file\n", killed, met[NOTHING],
           met[TEMPORARY], met[COMPLETE]);
    ck_assert_msg(killed >= KILLS / 4 && met[TEMPORARY] > 0, "the moments missed the run: %d kills, %d temporaries",
                  killed, met[TEMPORARY]);
}
END_TEST

START_TEST(killed_at_every_call) {
    outcome o;
    int met[3] = {0};
    disturb d = disturb_none(out_dir);
    if (!spawn_shim_works(src)) T_SKIP("file calls cannot be disturbed in this build");
    d.shorten = 60000; /* writes in parts, so that their middles are met */
    spawn_run(quantize, &d, &o);
    ck_assert_msg(o.code == 0 && o.calls > 20, "exit %d, %d calls: %s", o.code, (int)o.calls, o.said);
    complete("undisturbed");
    const uint64_t calls = o.calls, step = T_SLOW ? 4 : 1;
    unlink(dst);
    for (d.kill = 1; d.kill <= calls; d.kill += d.kill + 20 < calls ? step : 1) {
        char what[64];
        spawn_run(quantize, &d, &o);
        snprintf(what, sizeof what, "kill at call %d of %d", (int)d.kill, (int)calls);
        ck_assert_msg(o.code == 128 + SIGKILL, "%s: exit %d", what, o.code);
        const state s = after_kill(what);
        met[s]++;
        if (s == COMPLETE || d.kill % 4 == 0) again(what);
        else if (s == TEMPORARY) { /* without --force too */
            spawn_run(quantize, NULL, &o);
            ck_assert_msg(o.code == 0, "%s: run again: exit %d: %s", what, o.code, o.said);
            complete(what);
            unlink(dst);
        }
    }
    ck_assert(met[NOTHING] > 0 && met[TEMPORARY] > 0 && met[COMPLETE] > 0);
}
END_TEST

/* A run that replaces a file and is killed has replaced it or not. */
START_TEST(killed_while_replacing) {
    static const char old[] = "what was there before";
    const uint64_t old_hash = q_fnv64(old, strlen(old));
    outcome o;
    disturb d = disturb_none(out_dir);
    if (!spawn_shim_works(src)) T_SKIP("file calls cannot be disturbed in this build");
    bool kept = false, replaced = false;
    d.calls = "write,fsync,rename,ftruncate,open,close";
    for (d.kill = 1;; d.kill++) {
        FILE *f = fopen(dst, "wb");
        fputs(old, f);
        fclose(f);
        spawn_run(quantize_force, &d, &o);
        if (o.code == 0) break;
        ck_assert_int_eq(o.code, 128 + SIGKILL);
        const uint64_t h = spawn_hash(dst);
        ck_assert_msg(h == old_hash || h == dst_hash, "kill at call %d: neither the old nor the new file", (int)d.kill);
        kept |= h == old_hash;
        replaced |= h == dst_hash;
    }
    ck_assert(kept && replaced);
    complete("at last");
}
END_TEST

/* Ended by a signal that can be caught, at any moment: nothing is left, or it was done before. `gap`: seconds until the
 * same signal comes again, < 0 for never; a second one may kill, and then the temporary stays for the next run. */
static void interrupted(int signal_number, double gap, int times) {
    uint64_t seed = (uint64_t)signal_number;
    double seconds = again("at first");
    int stopped = 0;
    for (int i = 0; i < times || (gap < 0 && stopped == 0 && i < 20 * times); i++) { /* some run is met in its middle */
        char what[64];
        outcome o;
        const pid_t pid = spawn_begin(quantize, NULL);
        const double at = moment(&seed, i < times ? seconds : seconds * 0.6);
        pause_for(at);
        kill(pid, signal_number);
        if (gap >= 0) {
            pause_for(gap);
            kill(pid, signal_number);
        }
        spawn_end(pid, &o);
        snprintf(what, sizeof what, "signal %d after %.1f of %.1f ms", signal_number, at * 1e3, seconds * 1e3);
        ck_assert_msg(o.code == 128 + signal_number || o.code == 0, "%s: exit %d: %s", what, o.code, o.said);
        const state s = after_kill(what);
        ck_assert_msg((o.code == 0) <= (s == COMPLETE), "%s: exit 0 without a file", what);
        if (strstr(o.said, "interrupted")) ck_assert_msg(s == NOTHING, "%s: it said so and left something", what);
        if (gap < 0) ck_assert_msg(s != TEMPORARY, "%s: a temporary is left", what);
        stopped += strstr(o.said, "interrupted") != NULL;
        seconds = again(what);
    }
    ck_assert_msg(gap >= 0 || stopped > 0, "no run of %d was stopped", times);
}

START_TEST(interrupted_once) {
    interrupted(SIGINT, -1, T_SLOW ? 10 : 40);
    interrupted(SIGTERM, -1, T_SLOW ? 10 : 40);
}
END_TEST

START_TEST(interrupted_twice) {
    interrupted(SIGINT, 0, T_SLOW ? 5 : 20);
    interrupted(SIGINT, 0.002, T_SLOW ? 5 : 20);
    interrupted(SIGTERM, 0.002, T_SLOW ? 5 : 20);
}
END_TEST

/* Start one and stop it in the middle: it holds the lock. */
static pid_t begin_and_stop(char *const argv[]) {
    for (;;) {
        const pid_t pid = spawn_begin(argv, NULL);
        struct stat st;
        int rc;
        for (int i = 0; i < 100000 && (stat(temp, &st) != 0 || st.st_size == 0); i++) pause_for(0.0001);
        kill(pid, SIGSTOP);
        ck_assert_int_eq(waitpid(pid, &rc, WUNTRACED), pid);
        if (WIFSTOPPED(rc) && stat(temp, &st) == 0) return pid;
        ck_assert(WIFSTOPPED(rc) || (WIFEXITED(rc) && WEXITSTATUS(rc) == 0)); /* it was faster: once more */
        if (WIFSTOPPED(rc)) {
            kill(pid, SIGKILL);
            waitpid(pid, &rc, 0);
        }
        unlink(dst);
    }
}

START_TEST(second_process) {
    outcome first, second;
    for (int i = 0; i < 2; i++) {
        char *const *argv = i ? quantize_force : quantize;
        pid_t pid = begin_and_stop(argv);
        spawn_run(argv, NULL, &second);
        ck_assert_msg(second.code == 7, "exit %d: %s", second.code, second.said);
        ck_assert_msg(strstr(second.said, dst) && strstr(second.said, "being written"), "%s", second.said);
        ck_assert_int_eq(access(temp, F_OK), 0);
        kill(pid, SIGCONT);
        spawn_end(pid, &first);
        ck_assert_msg(first.code == 0, "exit %d: %s", first.code, first.said);
        complete("the first of two");
        unlink(dst);
        /* The lock ends with its holder. */
        pid = begin_and_stop(argv);
        kill(pid, SIGKILL);
        spawn_end(pid, &first);
        ck_assert_int_eq(after_kill("a killed holder"), TEMPORARY);
        again("after a killed holder");
    }
}
END_TEST

/* Many at once, who start together: each is told what happened to it, and the file is one of them's. */
START_TEST(many_processes) {
    enum { MANY = 6 };
    for (int round = 0; round < (T_SLOW ? 3 : 10); round++) {
        pid_t pids[MANY];
        int done = 0;
        for (int i = 0; i < MANY; i++) pids[i] = spawn_begin(round % 2 ? quantize_force : quantize, NULL);
        for (int i = 0; i < MANY; i++) {
            outcome o;
            spawn_end(pids[i], &o);
            const bool told = (o.code == 7 && strstr(o.said, "being written")) ||
                              (o.code == 2 && round % 2 == 0 && strstr(o.said, "exists"));
            ck_assert_msg(o.code == 0 || told, "exit %d: %s", o.code, o.said);
            done += o.code == 0;
        }
        ck_assert_msg(done >= 1 && (round % 2 || done == 1), "%d of %d say that they wrote it", done, (int)MANY);
        complete("many at once");
        unlink(dst);
    }
}
END_TEST

static Suite *suite(void) {
    Suite *s = suite_create("kill");
    TCase *c = tcase_create("kill");
    tcase_set_timeout(c, 600);
    tcase_add_checked_fixture(c, setup, NULL);
    tcase_add_test(c, killed_at_any_moment);
    tcase_add_test(c, killed_at_every_call);
    tcase_add_test(c, killed_while_replacing);
    tcase_add_test(c, interrupted_once);
    tcase_add_test(c, interrupted_twice);
    tcase_add_test(c, second_process);
    tcase_add_test(c, many_processes);
    suite_add_tcase(s, c);
    return s;
}

HARNESS_MAIN(suite)
