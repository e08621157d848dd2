/* kv_tree.c: the tree of prefixes: nodes by their tokens, and in which order nodes and pages make room.
 *
 * Nodes without references stand in a list in the order of their last use. A sequence lets go of its nodes from the
 * last to the first, and holds all before a node that it holds: so the oldest of the list never has children, and its
 * page can go. Windowed pools have a list of their own, of pages that are in a node and in no window. Layer L3. */
#include "kv_tree.h"

/* ------------------------------------------------------------------------------------------------ orders of use */

static void leave(q_kv_order *o, int32_t i) {
    const q_kv_link l = o->links[i];
    *(l.older >= 0 ? &o->links[l.older].newer : &o->oldest) = l.newer;
    *(l.newer >= 0 ? &o->links[l.newer].older : &o->newest) = l.older;
}
static void enter(q_kv_order *o, int32_t i) {
    o->links[i] = (q_kv_link){.older = o->newest, .newer = -1};
    *(o->newest >= 0 ? &o->links[o->newest].newer : &o->oldest) = i;
    o->newest = i;
}

void q_kv_ref(q_kv *kv, int32_t node) {
    if (kv->nodes[node].refs++ == 0) leave(&kv->idle, node);
}
void q_kv_unref(q_kv *kv, int32_t node) {
    if (--kv->nodes[node].refs == 0) enter(&kv->idle, node);
}

/* ------------------------------------------------------------------------------------------------ pages */

void q_kv_hold(q_kv *kv, int32_t pool, uint32_t page) {
    q_kv_book *b = &kv->books[pool];
    if (b->pages[page].holders++ > 0) return;
    b->held++;
    if (b->window > 0 && b->pages[page].node >= 0) leave(&b->idle, (int32_t)page);
}

void q_kv_give(q_kv *kv, int32_t pool, uint32_t page) {
    q_kv_book *b = &kv->books[pool];
    b->free[b->n_free++] = page;
}

void q_kv_unhold(q_kv *kv, int32_t pool, uint32_t page) {
    q_kv_book *b = &kv->books[pool];
    if (--b->pages[page].holders > 0) return;
    b->held--;
    if (b->pages[page].node < 0) q_kv_give(kv, pool, page);
    else if (b->window > 0) enter(&b->idle, (int32_t)page);
}

void q_kv_part(q_kv *kv, int32_t node, int32_t pool) {
    q_kv_book *b = &kv->books[pool];
    int32_t *page = q_kv_page_of(kv, node, pool);
    if (*page < 0) return;
    q_kv_page *p = &b->pages[*page];
    p->node = -1;
    if (p->holders == 0) {
        if (b->window > 0) leave(&b->idle, *page);
        q_kv_give(kv, pool, (uint32_t)*page);
    }
    *page = -1;
}

/* ------------------------------------------------------------------------------------------------ the tree */

static uint32_t hash_of(int32_t parent, const int32_t *ids) {
    return (q_fnv32(ids, Q_KV_TOKENS * sizeof *ids) ^ (uint32_t)(parent + 1) * 0x9E3779B1u) * 0x85EBCA6Bu;
}
static int32_t *bucket_of(const q_kv *kv, uint32_t hash) { return &kv->buckets[hash >> 7 & (kv->n_buckets - 1)]; }

static void drop(q_kv *kv, int32_t i) {
    q_kv_node *n = &kv->nodes[i];
    int32_t *at = bucket_of(kv, n->hash);
    while (*at != i) at = &kv->nodes[*at].next;
    *at = n->next;
    leave(&kv->idle, i);
    if (n->parent >= 0) kv->nodes[n->parent].children--;
    for (int32_t p = 0; p < kv->plan->n_kv; p++) q_kv_part(kv, i, p);
    if (n->state >= 0) {
        kv->state_nodes[(uint32_t)n->state - kv->n_seqs] = -1;
        kv->state_used[(uint32_t)n->state - kv->n_seqs] = 0;
    }
    n->next = kv->free_node;
    kv->free_node = i;
    kv->dropped++;
}

void q_kv_tree_init(q_kv *kv) {
    kv->idle.oldest = kv->idle.newest = kv->free_node = -1;
    for (uint32_t i = 0; i < kv->n_buckets; i++) kv->buckets[i] = -1;
    for (uint32_t i = kv->n_nodes; i-- > 0;) {
        kv->nodes[i].next = kv->free_node;
        kv->free_node = (int32_t)i;
    }
    for (int32_t i = (int32_t)kv->n_seqs; i < kv->plan->states; i++) kv->state_nodes[i - (int32_t)kv->n_seqs] = -1;
}

int32_t q_kv_take(q_kv *kv, int32_t pool) {
    q_kv_book *b = &kv->books[pool];
    while (b->n_free == 0) {
        if (b->window > 0 && b->idle.oldest >= 0) q_kv_part(kv, b->pages[b->idle.oldest].node, pool);
        else if (b->window <= 0 && kv->idle.oldest >= 0) drop(kv, kv->idle.oldest);
        else return -1; /* of a windowed pool all pages are held then, in nodes or not */
    }
    return (int32_t)b->free[--b->n_free];
}

int32_t q_kv_child(const q_kv *kv, int32_t parent, const int32_t *ids) {
    const uint32_t hash = hash_of(parent, ids);
    for (int32_t i = *bucket_of(kv, hash); i >= 0; i = kv->nodes[i].next)
        if (kv->nodes[i].hash == hash && kv->nodes[i].parent == parent &&
            memcmp(kv->node_ids + (uint64_t)i * Q_KV_TOKENS, ids, Q_KV_TOKENS * sizeof *ids) == 0)
            return i;
    return -1;
}

int32_t q_kv_node_new(q_kv *kv, int32_t parent, const int32_t *ids) {
    if (kv->free_node < 0) drop(kv, kv->idle.oldest);
    const int32_t i = kv->free_node;
    q_kv_node *n = &kv->nodes[i];
    kv->free_node = n->next;
    *n = (q_kv_node){.parent = parent, .hash = hash_of(parent, ids), .state = -1};
    n->next = *bucket_of(kv, n->hash);
    *bucket_of(kv, n->hash) = i;
    memcpy(kv->node_ids + (uint64_t)i * Q_KV_TOKENS, ids, Q_KV_TOKENS * sizeof *ids);
    for (int32_t p = 0; p < kv->plan->n_kv; p++) *q_kv_page_of(kv, i, p) = -1;
    if (parent >= 0) kv->nodes[parent].children++;
    enter(&kv->idle, i);
    return i;
}

uint32_t q_kv_known(q_kv *kv, uint32_t freqs, const int32_t *ids, uint32_t n) {
    uint32_t full = 0;
    for (int32_t at = q_kv_root(freqs); (full + 1) * Q_KV_TOKENS <= n; full++) {
        at = q_kv_child(kv, at, ids + (uint64_t)full * Q_KV_TOKENS);
        if (at < 0) break;
    }
    return kv->reuse ? full * Q_KV_TOKENS : 0;
}
