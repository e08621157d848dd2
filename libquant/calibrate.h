/* calibrate.h: what both ways of calibrating share: how a text is cut, and the names and keys of the file. Layer L3. */
#ifndef Q_CALIBRATE_H
#define Q_CALIBRATE_H

#include "engine.h"
#include "importance.h"

/* Chunks of `window` tokens; what does not fill one is left out. */
typedef struct q_calibrate_text {
    uint32_t window, chunks;
} q_calibrate_text;
/* LQ_E_ARG: a window that the session has no room for, a text too short, a token outside the vocabulary. */
lq_status q_calibrate_cut(const lq_session *s, const int32_t *ids, size_t count, const lq_calibrate_options *o,
                          q_calibrate_text *out);
/* Copy chunk i; its first token becomes BOS where the model wants one. */
void q_calibrate_chunk(const lq_session *s, const int32_t *ids, const q_calibrate_text *t, uint32_t i, int32_t *to);

enum { Q_CALIBRATE_KEYS = 5 /* at most */ };
/* *n of them; texts lie in `arena`. */
lq_status q_calibrate_keys(const lq_session *s, q_arena *arena, const q_str *dataset, const q_calibrate_text *t,
                           q_meta keys[Q_CALIBRATE_KEYS], uint32_t *n);
/* A tensor of n values, called `base` and `suffix`. */
lq_status q_calibrate_tensor(q_arena *arena, const char *base, const char *suffix, uint64_t n, q_out_tensor *out);

/* Before any work: LQ_E_INCONSISTENT names the first weight of the model that is not finite (calibrate_weights.c). */
lq_status q_calibrate_check_weights(lq_session *s, q_pool *pool);
/* What that asks of the allocator meanwhile. */
uint64_t q_calibrate_check_bytes(const lq_model *m, uint32_t threads);

/* With lq_calibrate_options.hessians, or a scheme that names a transform (calibrate_layers.c). */
lq_status q_calibrate_layers(lq_session *s, const int32_t *ids, size_t count, const char *dst,
                               const lq_calibrate_options *o, lq_calibrate_result *result);

#endif
