/* help_calibrate.h: a small model and a text of twenty windows and a rest, for tests of what lq_calibrate writes layer by layer.
 * One model, one folder, at most six files of it a program. */
#ifndef T_HELP_CALIBRATE_H
#define T_HELP_CALIBRATE_H

#include "harness.h"
#include "help_model.h"

#include <signal.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <unistd.h>

#include "../libquant/engine.h"

static const q_alloc *const A = &q_alloc_libc;
enum { WIDTH = 64, FFN = 96, KV = 32, VOCAB = 262, WINDOW = 16, TOKENS = 330, CHUNKS = 20 };

static char folder[1024], paths[6][1400];
static lq_ctx *ctx;
static lq_model *model;
static int32_t ids[TOKENS];

static inline const char *in_tmp(int slot, const char *name) { return t_path(paths[slot], sizeof paths[slot], folder, name); }
static inline int files_in_tmp(void) { return t_files(folder, 0); }

static char heard[1024]; /* the last warning */
static inline void hear(void *user, lq_log_level level, const char *message) {
    Q_UNUSED(user);
    if (level == LQ_LOG_WARN) snprintf(heard, sizeof heard, "%s", message);
}
static inline void open_model(const char *path) {
    const lq_options o = {.size = sizeof o, .threads = 3, .log = hear};
    ck_assert_msg(lq_open(&o, &ctx) == LQ_OK, "%s", lq_error_detail());
    ck_assert_msg(lq_model_open(ctx, path, NULL, &model) == LQ_OK, "%s", lq_error_detail());
}
static inline void close_model(void) {
    lq_model_close(model);
    lq_close(ctx);
}
/* The model is paths[0]. */
static inline void setup(void) {
    static tiny t;
    uint64_t seed = 3;
    snprintf(folder, sizeof folder, "%s/calibrate-%ld", t_tmp(), (long)getpid());
    ck_assert_int_eq(mkdir(folder, 0777), 0);
    for (int i = 0; i < TOKENS; i++) ids[i] = 3 + (int32_t)(t_rand(&seed) % (VOCAB - 3));
    tiny_init(&t, "f32");
    tiny_write(&t, in_tmp(0, "model.gguf"));
    open_model(paths[0]);
}
static inline void teardown(void) {
    close_model();
    t_files(folder, 1);
}

static inline lq_status calibrate(const char *dst, uint32_t threads, const lq_calibrate_options *o) {
    const lq_session_options so = {.size = sizeof so, .context = WINDOW, .threads = threads, .activations = "f32"};
    lq_session *s = NULL;
    ck_assert_msg(lq_session_open(model, &so, &s) == LQ_OK, "%s", lq_error_detail());
    const lq_status st = lq_calibrate(s, ids, TOKENS, dst, o, NULL);
    lq_session_close(s);
    return st;
}
static inline void calibrated(const char *dst, uint32_t threads, const lq_calibrate_options *o) {
    const lq_status st = calibrate(dst, threads, o);
    ck_assert_msg(st == LQ_OK, "%s", lq_error_detail());
}
static inline q_directory *directory(const char *path) {
    const q_load_options o = {.alloc = A, .map = true};
    q_directory *d;
    ck_assert_msg(q_directory_open(path, &o, &d) == LQ_OK, "%s", lq_error_detail());
    return d;
}
static inline uint64_t hash_of(const char *path) {
    uint8_t *data;
    uint64_t n;
    ck_assert_msg(q_file_slurp(A, path, 1 << 24, &data, &n) == LQ_OK, "%s", lq_error_detail());
    const uint64_t h = q_fnv64(data, n);
    q_delete(A, data);
    return h;
}

/* The smallest limit of memory that is let through, by what a refusal says. */
static inline uint64_t smallest_ram(uint32_t threads, const lq_calibrate_options *o) {
    lq_calibrate_options none = *o;
    none.max_ram = 1;
    ck_assert_int_eq(calibrate(in_tmp(5, "none.gguf"), threads, &none), LQ_E_NOMEM);
    const char *at = strstr(lq_error_detail(), "at least ");
    ck_assert_msg(at != NULL, "%s", lq_error_detail());
    return strtoull(at + strlen("at least "), NULL, 10);
}

/* A process of its own calibrates, and is killed by `progress` at call number `*kill_at` of those that `*calls` counts. */
static inline void killed(const char *dst, const lq_calibrate_options *o, int *calls, int *kill_at, int at) {
    int status;
    const pid_t child = fork();
    if (child == 0) {
        *calls = 0;
        *kill_at = at;
        calibrate(dst, 1, o);
        _exit(0);
    }
    ck_assert_int_eq(waitpid(child, &status, 0), child);
    ck_assert(WIFSIGNALED(status) && WTERMSIG(status) == SIGKILL);
}

#endif
