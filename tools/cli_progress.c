/* cli_progress.c: progress of a long call on standard error, and the signals that stop one.
 *
 * A terminal gets a bar with the time left; anything else one plain line per ten seconds. NO_COLOR and TERM=dumb are
 * honoured. The signal state is the program's only mutable global: a handler has no other way to reach it. */
#include "cli.h"

#include <signal.h>
#include <stdatomic.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <time.h>
#include <unistd.h>

double cli_clock(void) {
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return (double)t.tv_sec + (double)t.tv_nsec * 1e-9;
}

/* ------------------------------------------------------------------------------------------------ signals */

enum { MAX_WATCHED = 256 };
static volatile sig_atomic_t stop_signal;
static _Atomic(lq_session *) watched[MAX_WATCHED];
static atomic_int in_handler;

/* SA_RESETHAND: the second signal finds the default action and kills. */
static void on_signal(int number) {
    atomic_fetch_add(&in_handler, 1);
    stop_signal = number;
    for (size_t i = 0; i < MAX_WATCHED; i++) {
        lq_session *s = atomic_load(&watched[i]);
        if (s) lq_session_cancel(s);
    }
    atomic_fetch_sub(&in_handler, 1);
}

void cli_signals(void) {
    struct sigaction a;
    memset(&a, 0, sizeof a);
    sigemptyset(&a.sa_mask);
    a.sa_handler = on_signal;
    a.sa_flags = (int)SA_RESETHAND; /* and no SA_RESTART: a blocked read ends */
    sigaction(SIGINT, &a, NULL);
    sigaction(SIGTERM, &a, NULL);
    a.sa_handler = SIG_IGN;
    a.sa_flags = 0;
    sigaction(SIGPIPE, &a, NULL);
    sigaction(SIGXFSZ, &a, NULL); /* a file size limit is a failed write, not a death */
}

int cli_interrupted(void) { return stop_signal; }

void cli_watch(lq_session *const *sessions, size_t count) {
    for (size_t i = 0; i < count && i < MAX_WATCHED; i++) atomic_store(&watched[i], sessions[i]);
    /* A signal that came before the sessions were known still has to stop them. */
    if (stop_signal) {
        for (size_t i = 0; i < count; i++) lq_session_cancel(sessions[i]);
    }
}

void cli_unwatch(void) {
    for (size_t i = 0; i < MAX_WATCHED; i++) atomic_store(&watched[i], NULL);
    /* A handler on another thread may have read a pointer just before: let it finish with the session. */
    while (atomic_load(&in_handler)) {
        const struct timespec t = {.tv_nsec = 100000};
        nanosleep(&t, NULL);
    }
}

/* ------------------------------------------------------------------------------------------------ progress */

void cli_progress_begin(cli_progress *p, const char *label) {
    const char *term = getenv("TERM"), *no_color = getenv("NO_COLOR");
    memset(p, 0, sizeof *p);
    p->label = label;
    p->start = cli_clock();
    p->terminal = isatty(STDERR_FILENO) && term && strcmp(term, "dumb") != 0;
    p->color = p->terminal && !(no_color && no_color[0]);
}

static void time_left(char *buf, size_t n, double seconds) {
    if (seconds < 100) snprintf(buf, n, "%.0f s", seconds);
    else if (seconds < 6000) snprintf(buf, n, "%.0f min", seconds / 60);
    else snprintf(buf, n, "%.1f h", seconds / 3600);
}

static void draw_bar(cli_progress *p, double part, const char *left, const char *what) {
    struct winsize w;
    int columns = ioctl(STDERR_FILENO, TIOCGWINSZ, &w) == 0 && w.ws_col > 0 ? w.ws_col : 80;
    if (columns > 120) columns = 120;
    const int width = columns > 70 ? 30 : 10, filled = (int)(part * width + 0.5);
    const int room = columns - 1 - ((int)strlen(p->label) + width + 9 + (int)strlen(left) + 7);
    char bar[40];
    memset(bar, '#', (size_t)filled);
    memset(bar + filled, '.', (size_t)(width - filled));
    bar[width] = 0;
    fprintf(stderr, "\r%s [%s%s%s] %3.0f%%  %s left  %.*s\033[K", p->label, p->color ? "\033[32m" : "", bar,
            p->color ? "\033[0m" : "", part * 100, left, room > 0 ? room : 0, what ? cli_safe(what).s : "");
    fflush(stderr);
    p->shown = true;
}

int cli_progress_update(void *user, uint64_t done, uint64_t total, const char *what) {
    cli_progress *p = user;
    const double now = cli_clock(), since = now - (p->last > 0 ? p->last : p->start);
    if (since >= (p->terminal ? 0.1 : 10.0) && total > 0) {
        const double part = done < total ? (double)done / (double)total : 1.0;
        char left[32] = "?";
        if (done > 0) time_left(left, sizeof left, (now - p->start) * (1 - part) / part);
        p->last = now;
        if (p->terminal) draw_bar(p, part, left, what);
        else fprintf(stderr, "%s: %.0f%%, %s left\n", p->label, part * 100, left);
    }
    return cli_interrupted() != 0;
}

void cli_progress_clear(cli_progress *p) {
    if (p->shown) {
        fputs("\r\033[K", stderr);
        fflush(stderr);
        p->shown = false;
    }
}
