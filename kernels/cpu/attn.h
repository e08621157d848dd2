/* attn.h: attention over pages of binary16 or float32, or over the columns of a batch, as far as it is the same for
 * every instruction set. Query heads that read the same KV head, of several columns, go through its keys together, a
 * block of Q_ATTN_KEYS at a time. An instruction set brings the arithmetic: products of a few rows with a page, which
 * make scores (rows = queries, the page = keys side by side) and weighted values (rows = weights, the page = values), and
 * the softmax of a row.
 *
 * A query's own arithmetic never depends on its company: blocks lie at absolute positions, a key that the query may not
 * see has no term, and scores, weights and values are summed as op.h says. Only the exponential and the hyperbolic
 * tangent may differ from kernels/ref, by what avx2.h and neon.h say. Layer L2. */
#ifndef Q_CPU_ATTN_H
#define Q_CPU_ATTN_H

#include "cpu.h"

/* c[i][d] = the sum over k in [from, to) of a[i][k] * b[k][d], fma in ascending k, from 0 or (more) from what c holds.
 * Rows of b lie in pages of `per` rows. */
typedef struct q_attn_product {
    const float *a;              /* [rows][a_stride] */
    int64_t rows, a_stride;
    const uint8_t *const *b;     /* the pages that hold rows [from, to) are read */
    int64_t per, b_stride;       /* bytes from a row to the next */
    /* What to ask the memory for while a page is read: another page, whose values have ahead_bytes and whose rows are
     * ahead_stride bytes apart. */
    const uint8_t *const *ahead;
    int64_t ahead_stride, ahead_bytes;
    int32_t value_bytes;         /* 2 = binary16, 4 = float32 */
    bool more;
    int64_t from, to, width;     /* width: values of a row of b, a multiple of 16 */
    float *c;
    int64_t c_stride;
} q_attn_product;

/* The scores of a query and keys [from, to) of a block, which become weights. */
typedef struct q_attn_row {
    float *score;      /* [Q_ATTN_KEYS], 64-aligned */
    int32_t from, to;  /* from < to */
    int32_t key;       /* position of score[0], less that of the query */
    float scale, softcap, slope; /* softcap, slope: 0 = none */
    float m, l;        /* out: the largest score, the sum of the weights */
} q_attn_row;

typedef struct q_attn_isa {
    int32_t lanes;  /* floats in a register: 4, 8 or 16 */
    int32_t direct; /* up to so many queries take halves as they are; more have them widened first */
    void (*widen)(const uint8_t *from, int64_t n, float *to); /* n halves, a multiple of 16 */
    void (*product)(const q_attn_product *p);
    void (*softmax)(q_attn_row *r);
    void (*exps)(float *x, int64_t n); /* x[i] = exp(x[i]); n is a multiple of 16 */
    void (*merge)(float *acc, const float *part, int64_t n, float a, float b); /* acc = acc * a + part * b */
} q_attn_isa;

bool q_attn_accepts(const q_inst *s);
uint64_t q_attn_scratch(const q_inst *s);
void q_attn_run(const q_attn_isa *isa, const q_inst *s, const q_exec *e, int64_t begin, int64_t end);
/* Columns that are best attended to together, where there are enough. */
int32_t q_attn_columns(int32_t queries_per_head);

/* STEP's three functions. */
#define Q_ATTN_STEP(name, isa)                                                                       \
    bool q_##name##_accepts(const q_inst *s) { return q_attn_accepts(s); }                           \
    uint64_t q_##name##_scratch(const q_inst *s, int32_t columns) {                                  \
        Q_UNUSED(columns);                                                                           \
        return q_attn_scratch(s);                                                                    \
    }                                                                                                \
    void q_##name(const q_inst *s, const q_exec *e, int64_t begin, int64_t end) {                    \
        q_attn_run(&isa, s, e, begin, end);                                                          \
    }

#endif
