/* kv_form.h: how pages keep keys and values: pools, formats, and where in a page a number lies.
 *
 * A page holds Q_KV_TOKENS tokens of some layers. Layer after layer: the keys of every KV head, then its values. A key
 * and a value are rows of a tensor format, of their own each, encoded by its reference encoder (q_encode_row without a
 * search), so that what is stored depends on the numbers and their position alone.
 *
 * Values lie one after the other: row r is the value of token r. Keys lie side by side, because a vector of scores is
 * that of several keys: cell j of the key of token r is number j * Q_KV_TOKENS + r. A cell is a number in formats of
 * single weights, and a byte in formats of blocks: so the scales of Q_KV_TOKENS keys are neighbours, and their codes.
 *
 * What a form cannot hold, larger numbers and what is no number, is stored as bytes 0xFF: that number, or all of its
 * block, then decodes to NaN, which reaches the logits and is reported there. An infinity might not: times a negative
 * number it would only hide its key.
 *
 * A turned form stores H x for x. H is the orthonormal Hadamard matrix (Sylvester's order) of `turn` rows, applied to
 * each `turn` values in turn; it spreads outliers over all of them, so that four bits are enough (Ashkboos et al.,
 * QuaRot, arXiv:2404.00456). H is its own inverse and leaves products as they are: who reads keys turns the query
 * likewise, and who reads values turns the result back. In float32: log2(turn) times, x[2i] and x[2i + 1] become x[i] +
 * and - x[i + turn / 2]; then all times 1 / sqrt(turn). Layer L1. */
#ifndef Q_KV_FORM_H
#define Q_KV_FORM_H

#include "format.h"

enum {
    Q_KV_TOKENS = 32,      /* tokens per page */
    Q_KV_MOST_TURN = 128,
    Q_KV_MOST_BLOCK = 32   /* weights of a block of these formats */
};

/* What a name stands for. */
typedef struct q_kv_kind {
    const q_format *format;
    bool turned;
    float most;
} q_kv_kind;
extern const q_kv_kind q_kv_kinds[];
uint32_t q_kv_kind_count(void);
const q_kv_kind *q_kv_kind_find(const char *name); /* NULL when unknown */
/* All names, "f16, bf16, ...", into `text`. */
const char *q_kv_kind_names(char *text, size_t n);

/* How a pool keeps a key, or a value, of one head. */
typedef struct q_kv_form {
    const q_format *format;
    int32_t width;  /* numbers in it; of values 0: they are a prefix of the keys, in the form of these */
    int32_t turn;   /* a power of two that divides width; 0 = not turned */
    int32_t bytes;
    float most;     /* magnitude of a number that is kept */
} q_kv_form;
/* False where the format's blocks do not divide the width. */
bool q_kv_form_make(const q_kv_kind *kind, int32_t width, q_kv_form *out);
static inline int32_t q_kv_cell(const q_kv_form *f) { return f->format->weights == 1 ? f->format->bytes : 1; }

/* Pages for layers that share window, sinks, heads and forms. */
typedef struct q_kv_pool {
    int32_t layers, heads;
    q_kv_form k, v;
    int32_t window;        /* 0 = none */
    int32_t sink_tokens;   /* seen behind the window, as op.h says; 0 without one */
    uint64_t layer_bytes;  /* K and V of one layer in a page */
    uint64_t page_bytes;   /* layers * layer_bytes */
    uint32_t pages;        /* pages in the pool */
    int32_t segment;       /* whose layers they are */
} q_kv_pool;
/* layer_bytes and page_bytes, when the rest is there. */
void q_kv_pool_lay(q_kv_pool *pool);
/* The form that values are in. */
static inline const q_kv_form *q_kv_v_form(const q_kv_pool *p) { return p->v.width ? &p->v : &p->k; }

/* The keys of (page, layer, head), and its values: its keys where these are a prefix of those. */
static inline uint8_t *q_kv_k(const q_kv_pool *p, uint8_t *base, uint32_t page, int32_t layer, int32_t head) {
    return base + (uint64_t)page * p->page_bytes + (uint64_t)layer * p->layer_bytes +
           (uint64_t)head * Q_KV_TOKENS * (uint64_t)p->k.bytes;
}
static inline uint8_t *q_kv_v(const q_kv_pool *p, uint8_t *base, uint32_t page, int32_t layer, int32_t head) {
    if (p->v.width == 0) return q_kv_k(p, base, page, layer, head);
    return q_kv_k(p, base, page, layer, p->heads) + (uint64_t)head * Q_KV_TOKENS * (uint64_t)p->v.bytes;
}

#endif
