/* kv_tree.h: the two halves of kv.h's book-keeping to one another: holders of pages, and nodes. Layer L3. */
#ifndef Q_KV_TREE_H
#define Q_KV_TREE_H

#include "kv.h"

void q_kv_tree_init(q_kv *kv);

/* A page that nobody holds: a free one, else the longest unused; -1 = every page is held. It has no holder yet; give:
 * nor will it get one. */
int32_t q_kv_take(q_kv *kv, int32_t pool);
void q_kv_give(q_kv *kv, int32_t pool, uint32_t page);
/* A node's page of this pool is its holders' alone from now on, or free. */
void q_kv_part(q_kv *kv, int32_t node, int32_t pool);
/* One sequence more needs it; one less. */
void q_kv_hold(q_kv *kv, int32_t pool, uint32_t page);
void q_kv_unhold(q_kv *kv, int32_t pool, uint32_t page);

/* The node of Q_KV_TOKENS ids behind `parent` (-1 = at the beginning); -1 = there is none. */
int32_t q_kv_child(const q_kv *kv, int32_t parent, const int32_t *ids);
/* A new one, without pages or references: its maker takes one at once. There is room for it: kv.c's number of nodes. */
int32_t q_kv_node_new(q_kv *kv, int32_t parent, const int32_t *ids);
void q_kv_ref(q_kv *kv, int32_t node);
void q_kv_unref(q_kv *kv, int32_t node);

static inline int32_t *q_kv_page_of(const q_kv *kv, int32_t node, int32_t pool) {
    return &kv->node_pages[(uint64_t)node * (uint64_t)kv->plan->n_kv + (uint64_t)pool];
}

#endif
