/* help_session.h: sessions for tests, that hold what their plan says, and sequences that are saved in memory. */
#ifndef HELP_SESSION_H
#define HELP_SESSION_H

#include "harness.h"
#include "help_model.h"

/* A context whose allocations are counted (live_bytes), and a tiny model of this context length. */
static inline void t_tiny_open(const char *name, uint64_t context, lq_ctx **ctx, lq_model **model) {
    static const lq_allocator alloc = {live_alloc, live_free, NULL};
    static tiny t;
    char path[4096];
    tiny_init(&t, "q8_0");
    tiny_u32(&t, "llama.context_length", context);
    tiny_write(&t, t_path(path, sizeof path, t_tmp(), name));
    const lq_options o = {.size = sizeof o, .threads = 2, .allocator = &alloc};
    ck_assert_msg(lq_open(&o, ctx) == LQ_OK, "%s", lq_error_detail());
    ck_assert_msg(lq_model_open(*ctx, path, NULL, model) == LQ_OK, "%s", lq_error_detail());
}

/* Of a model whose context counts: once it is open it holds what the plan says, to the byte. One thread where the
 * options have none. */
static inline lq_session *t_session(lq_model *m, lq_session_options o) {
    lq_session *s = NULL;
    lq_plan_info plan = {.size = sizeof plan};
    o.size = sizeof o;
    if (!o.threads) o.threads = 1;
    ck_assert_msg(lq_model_plan(m, &o, &plan) == LQ_OK, "%s", lq_error_detail());
    const size_t before = live_bytes;
    ck_assert_msg(lq_session_open(m, &o, &s) == LQ_OK, "%s", lq_error_detail());
    ck_assert_uint_eq(live_bytes - before, plan.kv + plan.activations);
    return s;
}

/* A sequence that was saved, and how much of it has been read. Writing fails behind `most` bytes. Free p. */
typedef struct t_saved {
    uint8_t *p;
    size_t n, at, most;
} t_saved;
static inline t_saved t_saved_new(void) {
    enum { MOST = 1 << 20 };
    const t_saved b = {.p = malloc(MOST), .most = MOST};
    ck_assert_ptr_nonnull(b.p);
    return b;
}
static inline int t_saved_put(void *user, const void *data, size_t n) {
    t_saved *b = user;
    if (n > b->most - b->n) return 1;
    memcpy(b->p + b->n, data, n);
    b->n += n;
    return 0;
}
static inline int t_saved_get(void *user, void *data, size_t n) {
    t_saved *b = user;
    if (n > b->n - b->at) return 1;
    memcpy(data, b->p + b->at, n);
    b->at += n;
    return 0;
}

#endif
