/* kv.h: which pages of the KV pools hold what: the sequences of a session, the tree of the prefixes that they share,
 * and what nobody needs but may be wanted again.
 *
 * Book-keeping alone: numbers of pages, never their bytes, which are the backend's. A page of Q_KV_TOKENS tokens that
 * is full belongs to a node of the tree, named by its tokens and all before them; sequences with the same beginning
 * hold the same pages. What is in a page depends on those tokens and their positions alone, so who finds a page may use
 * it. A page that is not full belongs to the sequences that hold it, and is copied before one of several writes to it.
 * Pages that no sequence holds stay in the tree until room is needed: the longest unused go first, the ends of texts
 * before their beginnings. All memory is one block whose size is known beforehand. One thread at a time. Layer L3. */
#ifndef Q_KV_H
#define Q_KV_H

#include "memory.h"
#include "plan.h"

/* Some of many things, by number, in the order of their last use. */
typedef struct q_kv_link {
    int32_t older, newer; /* -1 = there is none */
} q_kv_link;
typedef struct q_kv_order {
    q_kv_link *links; /* of all of them; of those that are in it alone they mean anything */
    int32_t oldest, newest;
} q_kv_order;

typedef struct q_kv_page {
    uint32_t holders; /* sequences that need it */
    int32_t node;     /* whose tokens it holds; -1 = those of its holders */
} q_kv_page;

typedef struct q_kv_book {
    q_kv_page *pages;
    uint32_t *free;
    uint32_t n, n_free, held; /* held: with a holder */
    int32_t window;
    uint32_t sinks;      /* pages at the beginning of a sequence that a window does not leave behind */
    q_kv_order idle; /* of a windowed pool: pages that are in a node and have no holder */
} q_kv_book;

typedef struct q_kv_node {
    int32_t parent;       /* below 0: a text begins here, -1 or the root of one that was loaded */
    int32_t next;         /* in the same bucket, or among the free */
    uint32_t refs;        /* sequences that it is part of: those are its parent's too */
    uint32_t children;
    uint32_t hash;
    int32_t state;        /* number of the recurrent state behind its last token, -1 = not kept */
} q_kv_node;

/* Why no more tokens were found in the tree than were. */
typedef enum { Q_KV_HIT, Q_KV_OFF, Q_KV_SHORT, Q_KV_INSIDE, Q_KV_NEW, Q_KV_WINDOW, Q_KV_STATE } q_kv_miss;

typedef struct q_kv_seq {
    uint32_t length;      /* tokens */
    uint32_t stored;      /* the first so many of them have their keys, values and state; the others are evaluated
                             when tokens are added: length > stored after a cut to where something is gone */
    uint32_t top;         /* pages that its tables hold */
    int32_t *ids;         /* [context] */
    int32_t *nodes;       /* [pages of a sequence]: of its full pages */
    uint32_t **tables;    /* [n_kv][pages of a sequence] */
    uint32_t *low;        /* [n_kv] the first page behind the sinks that it holds: windows leave earlier ones behind */
    uint32_t kept, reused; /* in the last call: tokens that it had already; that were found in the tree */
    uint32_t again;        /* and that were evaluated anew after a cut */
    const char *why_again; /* static storage */
    uint64_t slid, refused; /* in the last call: tokens that overflow.c dropped; that it did not take */
    uint64_t dropped;      /* of this text so far */
    q_kv_miss miss;
    uint32_t freqs;       /* the table of ROPE's frequencies that its keys are turned by: 0 or 1 */
    int32_t root;         /* what its first node has for a parent: q_kv_root of that table, or a number of its own for
                             a text that was loaded, whose pages no other text is to find */
    int32_t restore;      /* number of the state that its own must become before the next pass, -1 = it is right */
} q_kv_seq;

typedef struct q_kv_copy {
    int32_t pool;
    uint32_t from, to; /* pages */
} q_kv_copy;

typedef struct q_kv {
    const q_plan *plan;
    uint32_t n_seqs, pages; /* pages: of a sequence that is as long as the context */
    bool reuse;
    q_kv_seq *seqs;
    q_kv_book *books;     /* [n_kv] */
    q_kv_node *nodes;
    uint32_t n_nodes, n_buckets;
    int32_t free_node;
    q_kv_order idle;      /* nodes without refs, children always older than their parents */
    int32_t *buckets;
    int32_t *node_ids;    /* [n_nodes][Q_KV_TOKENS] */
    int32_t *node_pages;  /* [n_nodes][n_kv], -1 = gone */
    int32_t *state_nodes; /* [plan->states - n_seqs]: whose it is, -1 = nobody's */
    uint64_t *state_used, clock;
    q_kv_copy *copies;    /* [n_seqs][n_kv]: to be made before the next pass, in order */
    uint32_t n_copies;
    uint64_t dropped;     /* nodes so far that had to make room */
    uint32_t loaded;      /* texts so far */
} q_kv;

/* Pages of a pool for these numbers of sequences, tokens and columns of a pass: with a window what lies in it, the
 * sinks, and some more so that a text may be cut back a little. */
uint64_t q_kv_pool_pages(int32_t window, int32_t sink_tokens, uint64_t seqs, uint64_t context, uint64_t tokens,
                         uint64_t batch);

/* Does a token after `stored` others see anything of this page in a pool? What sinks lie in is always seen. */
bool q_kv_sees(const q_kv *kv, int32_t pool, uint32_t stored, uint32_t page);

/* Bytes of the book-keeping for a plan; make it in a zeroed block of so many. */
uint64_t q_kv_bytes(const q_plan *plan, uint32_t seqs);
void q_kv_init(q_kv *kv, const q_plan *plan, uint32_t seqs, bool reuse, void *block);

/* The sequence holds all its tokens' keys and values, and ends with a full page: take from the tree what continues it
 * as ids do, at most n tokens. Returns how many. `ids` may lie where they will be. */
uint32_t q_kv_find(q_kv *kv, uint32_t seq, const int32_t *ids, uint32_t n);
/* Take back what was found, right behind it: `length` and `restore` are what they were. */
void q_kv_unfind(q_kv *kv, uint32_t seq, uint32_t length, int32_t restore);
/* How many of n tokens a new sequence would find, in the tree of texts whose keys are turned by this table. */
uint32_t q_kv_known(q_kv *kv, uint32_t freqs, const int32_t *ids, uint32_t n);
static inline int32_t q_kv_root(uint32_t freqs) { return -1 - (int32_t)freqs; }
/* An empty sequence is to have keys of this table. */
void q_kv_use_freqs(q_kv *kv, uint32_t seq, uint32_t freqs);

/* Tokens that pools without a window keep, and those of them that no sequence holds: by the pool with the fewest. */
void q_kv_tokens(const q_kv *kv, uint64_t *all, uint64_t *free);
/* May so many tokens be added to each of n sequences at once, each being cut to `cuts` tokens before (NULL: none is; no
 * less than its length: it is not)? `short_by`: pages that are missing. Nothing is changed. */
bool q_kv_room(q_kv *kv, const uint32_t *seqs, const uint32_t *cuts, const uint32_t *counts, uint32_t n,
               uint64_t *short_by);
/* Pages of its own for the next n tokens; copies are noted in kv->copies. */
lq_status q_kv_reserve(q_kv *kv, uint32_t seq, uint32_t n);
/* They are written: ids are there, at their positions. */
void q_kv_commit(q_kv *kv, uint32_t seq, uint32_t n);
/* Pages for `stored` tokens of an empty sequence, as they lie when a text was loaded; ids are there. Then commit. */
lq_status q_kv_receive(q_kv *kv, uint32_t seq, uint32_t stored);
/* They are not: what a pass left behind is not to be read. */
void q_kv_abandon(q_kv *kv, uint32_t seq);
/* Tokens until the next full page at whose end a state should be kept, if the sequence gets n; 0 = none. */
uint32_t q_kv_stop(const q_kv *kv, uint32_t seq, uint32_t n);
/* The state behind `stored` tokens, which is a full page, is to be kept: the number it gets, -1 = there is none. */
int32_t q_kv_keep_state(q_kv *kv, uint32_t seq);

/* Shorten to `length` tokens, at most its length. What cannot be kept is evaluated anew when tokens are added. */
void q_kv_truncate(q_kv *kv, uint32_t seq, uint32_t length);
/* `to` becomes what `from` is. */
void q_kv_fork(q_kv *kv, uint32_t from, uint32_t to);

#endif
