/* help_spawn.c: see help_spawn.h. What a child says and what its shim reports are files named by its process id. */
#include "help_spawn.h"

#include <dirent.h>
#include <fcntl.h>
#include <signal.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

enum { OUT, ERR, REPORT };
static struct timespec begun;

/* Outside every folder that is disturbed. */
static const char *own_file(pid_t child, int which) {
    static char path[3][4200];
    static const char *const names[] = {"out", "err", "report"};
    snprintf(path[which], sizeof path[which], "%s/spawn-%ld.%s", t_tmp(), (long)child, names[which]);
    return path[which];
}

const char *spawn_built(const char *name) {
    static char path[4][4200];
    static unsigned next;
    char *p = path[next++ % 4];
    char self[4096];
    const ssize_t n = readlink("/proc/self/exe", self, sizeof self - 1);
    ck_assert_int_gt(n, 0);
    self[n] = 0;
    for (int i = 0; i < 2; i++) *strrchr(self, '/') = 0; /* build/tests/test_x */
    snprintf(p, sizeof path[0], "%s/%s", self, name);
    return p;
}

static char *slurp(const char *path, uint64_t *n) {
    FILE *f = fopen(path, "rb");
    *n = 0;
    if (!f) return NULL;
    struct stat st;
    ck_assert_int_eq(fstat(fileno(f), &st), 0);
    char *p = (char *)malloc((size_t)st.st_size + 1);
    *n = fread(p, 1, (size_t)st.st_size, f);
    p[*n] = 0;
    fclose(f);
    return p;
}

uint64_t spawn_hash(const char *path) {
    uint64_t n;
    char *p = slurp(path, &n);
    if (!p) return 0;
    const uint64_t h = q_fnv64(p, n);
    free(p);
    return h;
}

int spawn_entries(const char *folder, const char *but, char name[300]) {
    int n = 0;
    DIR *d = opendir(folder);
    ck_assert_ptr_nonnull(d);
    for (struct dirent *e; (e = readdir(d)) != NULL;) {
        if (strcmp(e->d_name, ".") == 0 || strcmp(e->d_name, "..") == 0) continue;
        if (but && strcmp(e->d_name, but) == 0) continue;
        snprintf(name, 300, "%s", e->d_name);
        n++;
    }
    closedir(d);
    return n;
}

static void set_number(const char *name, uint64_t v) {
    char text[32];
    snprintf(text, sizeof text, "%llu", (unsigned long long)v);
    if (v) setenv(name, text, 1);
}

static void set_environment(const disturb *d) {
    setenv("LD_PRELOAD", spawn_built("tests/shim_io.so"), 1);
    setenv("SHIM_PREFIX", d->prefix, 1);
    setenv("SHIM_REPORT", own_file(getpid(), REPORT), 1);
    if (d->calls) setenv("SHIM_CALLS", d->calls, 1);
    set_number("SHIM_FAIL", d->fail);
    set_number("SHIM_SHORT", d->shorten);
    set_number("SHIM_EINTR", d->interrupt);
    set_number("SHIM_KILL", d->kill);
    set_number("SHIM_ERROR", (uint64_t)d->error);
    set_number("SHIM_STAY", d->stay);
    set_number("SHIM_BYTE", d->byte > 0 ? (uint64_t)d->byte : 0);
    if (d->byte == 0) setenv("SHIM_BYTE", "0", 1);
    /* The sanitizer wants to be the first library, and its report of leaks must not hide what the program said. */
    const char *asan = getenv("ASAN_OPTIONS");
    char options[1024];
    snprintf(options, sizeof options, "%s%sverify_asan_link_order=0", asan ? asan : "", asan ? ":" : "");
    setenv("ASAN_OPTIONS", options, 1);
}

pid_t spawn_begin(char *const argv[], const disturb *d) {
    /* Check's own handler, which the child inherits, kills the whole group of the test: no signal before it is gone. */
    sigset_t some, before;
    sigemptyset(&some);
    sigaddset(&some, SIGINT);
    sigaddset(&some, SIGTERM);
    fflush(NULL);
    sigprocmask(SIG_BLOCK, &some, &before);
    clock_gettime(CLOCK_MONOTONIC, &begun);
    const pid_t pid = fork();
    if (pid) sigprocmask(SIG_SETMASK, &before, NULL);
    ck_assert_int_ge(pid, 0);
    if (pid) return pid;
    signal(SIGINT, SIG_DFL);
    signal(SIGTERM, SIG_DFL);
    sigprocmask(SIG_SETMASK, &before, NULL);
    const int in = open("/dev/null", O_RDONLY), made = O_WRONLY | O_CREAT | O_TRUNC,
              o = open(own_file(getpid(), OUT), made, 0666), e = open(own_file(getpid(), ERR), made, 0666);
    if (in < 0 || o < 0 || e < 0 || dup2(in, 0) < 0 || dup2(o, 1) < 0 || dup2(e, 2) < 0) _exit(96);
    for (int fd = 3; fd < 64; fd++) close(fd);
    if (d && d->prefix) set_environment(d);
    execv(argv[0], argv);
    _exit(95);
}

/* Calls on whose success nothing depends. */
static bool is_harmless(const char *call) {
    return strcmp(call, "close") == 0 || strcmp(call, "statvfs") == 0 || strcmp(call, "unlink") == 0;
}

static void read_report(pid_t pid, outcome *o) {
    FILE *f = fopen(own_file(pid, REPORT), "r");
    char line[4500];
    while (f && fgets(line, sizeof line, f)) {
        char call[32];
        unsigned long long n;
        line[strcspn(line, "\n")] = 0;
        if (sscanf(line, "calls %llu", &n) == 1) o->calls = n;
        if (sscanf(line, "failed %31s", call) != 1) continue;
        if (o->failures++ == 0 || (o->harmless && !is_harmless(call))) {
            o->harmless = is_harmless(call);
            snprintf(o->failed_call, sizeof o->failed_call, "%s", call);
            snprintf(o->failed_path, sizeof o->failed_path, "%s", line + strlen("failed ") + strlen(call) + 1);
        }
        o->failed_unlink |= strcmp(call, "unlink") == 0;
    }
    if (f) fclose(f);
}

void spawn_end(pid_t pid, outcome *o) {
    int rc;
    struct timespec now;
    memset(o, 0, sizeof *o);
    ck_assert_int_eq(waitpid(pid, &rc, 0), pid);
    clock_gettime(CLOCK_MONOTONIC, &now);
    o->seconds = (double)(now.tv_sec - begun.tv_sec) + 1e-9 * (double)(now.tv_nsec - begun.tv_nsec);
    o->code = WIFEXITED(rc) ? WEXITSTATUS(rc) : 128 + WTERMSIG(rc);
    uint64_t n;
    char *said = slurp(own_file(pid, ERR), &n);
    snprintf(o->said, sizeof o->said, "%s", said ? said : "");
    free(said);
    said = slurp(own_file(pid, OUT), &o->out_bytes);
    o->out_hash = said ? q_fnv64(said, o->out_bytes) : 0;
    free(said);
    read_report(pid, o);
    for (int i = OUT; i <= REPORT; i++) unlink(own_file(pid, i));
}

void spawn_run(char *const argv[], const disturb *d, outcome *o) { spawn_end(spawn_begin(argv, d), o); }

bool spawn_shim_works(const char *folder) {
    char path[4200];
    outcome o;
    disturb d = disturb_none(folder);
    d.fail = 1, d.error = 5 /* EIO */;
    snprintf(path, sizeof path, "%s", spawn_built("lq"));
    char *const argv[] = {path, "info", (char *)folder, NULL};
    spawn_run(argv, &d, &o);
    return o.failures == 1;
}
