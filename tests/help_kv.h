/* help_kv.h: pools of pages for tests: their forms, and something in them. */
#ifndef HELP_KV_H
#define HELP_KV_H

#include "harness.h"

#include "../kernels/ref/ref.h"

/* The pool's keys and values are of these widths (v 0: a prefix of the keys) and kept in these formats; layers and
 * heads are there. */
static inline void t_kv_forms_of(q_kv_pool *p, const q_kv_kind *keys, const q_kv_kind *values, int32_t k, int32_t v) {
    ck_assert(q_kv_form_make(keys, k, &p->k));
    ck_assert(q_kv_form_make(values, v, &p->v));
    q_kv_pool_lay(p);
}
static inline void t_kv_forms(q_kv_pool *p, const char *name, int32_t k, int32_t v) {
    t_kv_forms_of(p, q_kv_kind_find(name), q_kv_kind_find(name), k, v);
}

/* One key and value of every token of every page, numbers from `draw`. */
static inline void t_kv_fill(const q_kv_pool *p, uint8_t *base, float (*draw)(uint64_t *seed), uint64_t *seed) {
    float key[1024], value[1024];
    ck_assert_int_le(p->k.width, 1024);
    for (uint32_t page = 0; page < p->pages; page++)
        for (int32_t at = 0; at < p->layers * p->heads * Q_KV_TOKENS; at++) {
            const int32_t layer = at / (p->heads * Q_KV_TOKENS), head = at / Q_KV_TOKENS % p->heads;
            for (int32_t i = 0; i < p->k.width; i++) key[i] = draw(seed);
            for (int32_t i = 0; i < p->v.width; i++) value[i] = draw(seed);
            q_ref_kv_put_row(&p->k, &p->v, at % Q_KV_TOKENS, key, value, q_kv_k(p, base, page, layer, head),
                             q_kv_v(p, base, page, layer, head));
        }
}

#endif
