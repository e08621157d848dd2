/* cancel.c: let a model write until Ctrl-C or a time limit, and stop within one layer of either.
 *
 *     cc -std=c11 cancel.c $(pkg-config --cflags --libs libquant) -pthread -o cancel
 *     ./cancel MODEL PROMPT SECONDS
 *
 * lq_session_cancel is the one call that may come from a signal handler or another thread. What was generated before
 * stays valid: text is printed as it comes, and a cancelled run ends with exit code 0. */
#define _POSIX_C_SOURCE 200809L
#include <libquant.h>
#include <pthread.h>
#include <signal.h>
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

enum { MAX_IDS = 1 << 16, KEEP = 64 };

/* What the handler and the timer see; NULL while there is nothing to stop. */
static _Atomic(lq_session *) running;

static void stop(void) {
    lq_session *s = atomic_load(&running);
    if (s) lq_session_cancel(s);
}
static void on_interrupt(int number) {
    (void)number;
    stop();
}
static void *timer(void *seconds) {
    const double s = *(const double *)seconds;
    const struct timespec t = {.tv_sec = (time_t)s, .tv_nsec = (long)((s - (double)(time_t)s) * 1e9)};
    nanosleep(&t, NULL);
    stop();
    return NULL;
}

/* Print the bytes of the newest token. The tokens before it say how it joins on. */
static lq_status print_last(const lq_model *model, const int32_t *ids, size_t count) {
    char before[4096], all[4096];
    const size_t from = count > KEEP ? count - KEEP : 0;
    size_t n_before = sizeof before, n_all = sizeof all;
    const uint32_t flags = LQ_DETOKENIZE_STREAM | (from > 0 ? LQ_DETOKENIZE_MIDDLE : 0u);
    lq_status s = lq_detokenize(model, ids + from, count - 1 - from, flags, before, &n_before);
    if (s == LQ_OK) s = lq_detokenize(model, ids + from, count - from, flags, all, &n_all);
    if (s == LQ_OK && n_all > n_before) fwrite(all + n_before, 1, n_all - n_before, stdout);
    fflush(stdout);
    return s;
}

static lq_status generate(lq_model *model, lq_session *session, const char *prompt) {
    static int32_t ids[MAX_IDS];
    size_t n = MAX_IDS;
    lq_model_info info = {.size = sizeof info};
    lq_status s = lq_model_info_get(model, &info);
    if (s == LQ_OK) s = lq_tokenize(model, prompt, strlen(prompt), LQ_TOKENIZE_BOS, ids, &n);
    if (s == LQ_OK) s = lq_decode(session, &(lq_item){.ids = ids, .count = n, .logits_from = n - 1}, 1);
    while (s == LQ_OK && n < MAX_IDS) {
        s = lq_sample(session, 0, NULL, &ids[n]);
        if (s == LQ_OK) s = print_last(model, ids, ++n);
        /* A full context makes room: the oldest half of what followed the prompt is forgotten by starting over. */
        if (s == LQ_OK && lq_seq_length(session, 0) + 1 >= info.context) {
            const size_t keep = info.context / 2;
            memmove(ids, ids + n - keep, keep * sizeof *ids);
            n = keep;
            s = lq_seq_truncate(session, 0, 0);
            if (s == LQ_OK) s = lq_decode(session, &(lq_item){.ids = ids, .count = n, .logits_from = n - 1}, 1);
        } else if (s == LQ_OK) {
            s = lq_decode(session, &(lq_item){.ids = &ids[n - 1], .count = 1}, 1);
        }
    }
    return s;
}

int main(int argc, char **argv) {
    lq_ctx *ctx = NULL;
    lq_model *model = NULL;
    lq_session *session = NULL;
    pthread_t thread;
    if (argc != 4) return fprintf(stderr, "usage: cancel MODEL PROMPT SECONDS\n"), 2;
    double seconds = atof(argv[3]);

    lq_status s = lq_open(NULL, &ctx);
    if (s == LQ_OK) s = lq_model_open(ctx, argv[1], NULL, &model);
    if (s == LQ_OK) s = lq_session_open(model, NULL, &session);
    if (s == LQ_OK) {
        struct sigaction action = {.sa_handler = on_interrupt};
        atomic_store(&running, session);
        sigaction(SIGINT, &action, NULL);
        const int timed = pthread_create(&thread, NULL, timer, &seconds) == 0;
        s = generate(model, session, argv[2]);
        putchar('\n');
        fflush(stdout);
        signal(SIGINT, SIG_DFL); /* from here on there is no session to cancel */
        atomic_store(&running, NULL);
        if (timed) {
            pthread_cancel(thread);
            pthread_join(thread, NULL); /* it may be inside lq_session_cancel: wait before closing */
        }
    }
    if (s == LQ_E_CANCELLED) fprintf(stderr, "stopped\n");
    else if (s != LQ_OK) fprintf(stderr, "%s: %s\n", lq_status_name(s), lq_error_detail());
    lq_session_close(session);
    lq_model_close(model);
    lq_close(ctx);
    return s == LQ_OK || s == LQ_E_CANCELLED ? 0 : 1;
}
