/* attn.h: attention over pages of keys and values, or over the columns of a batch, as far as it is the same for every
 * instruction set. Query heads that read the same KV head, of several columns, go through its keys together, a
 * block of Q_ATTN_KEYS at a time. An instruction set brings the arithmetic: products of a few rows with a page, which
 * make scores (rows = queries, the page = keys side by side) and weighted values (rows = weights, the page = values),
 * and the softmax of a row. Products
 * come once per form of keys and values that an instruction set reads in place; pages of others are decoded by
 * kernels/ref into floats first.
 *
 * A query's own arithmetic never depends on its company: blocks lie at absolute positions, a key that the query may not
 * see has no term, and scores, weights and values are summed as op.h says. Only the exponential and the hyperbolic
 * tangent may differ from kernels/ref, by what avx2.h and neon.h say. Layer L2. */
#ifndef Q_CPU_ATTN_H
#define Q_CPU_ATTN_H

#include "cpu.h"

/* c[i][d] = the sum over k in [from, to) of a[i][k] * b[k][d], fma in ascending k, from 0 or (more) from what c holds.
 * Rows of b lie in pages of `per` rows, as their form (kv_form.h) has them. Of keys: k counts numbers of a key, d keys;
 * from = 0, to = per, width = Q_KV_TOKENS, more = false. Of values: k counts keys, d numbers of a value. */
typedef struct q_attn_product {
    const float *a;              /* [rows][a_stride] */
    int64_t rows, a_stride;
    const uint8_t *const *b;     /* the pages that hold rows [from, to) are read */
    int64_t per, b_stride;       /* bytes from a row to the next; unused of keys in blocks */
    /* What to ask the memory for while a page is read: another page, whose rows are ahead_stride bytes apart. */
    const uint8_t *const *ahead;
    int64_t ahead_stride;
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

/* What the arithmetic of a form depends on: the numbers of single weights, and how blocks of 32 lie. */
typedef enum { Q_CELLS_F32, Q_CELLS_F16, Q_CELLS_BF16 } q_attn_cells;
typedef enum { Q_BLOCKS_Q8_0, Q_BLOCKS_Q5_1, Q_BLOCKS_Q4_0 } q_attn_blocks;
static inline int64_t q_attn_cell_bytes(q_attn_cells f) { return f == Q_CELLS_F32 ? 4 : 2; }
static inline int64_t q_attn_block_bytes(q_attn_blocks f) {
    return f == Q_BLOCKS_Q8_0 ? 34 : f == Q_BLOCKS_Q5_1 ? 24 : 18;
}
/* Where in a block its codes begin. */
static inline int64_t q_attn_block_codes(q_attn_blocks f) { return f == Q_BLOCKS_Q5_1 ? 8 : 2; }

/* A form of keys and values that an instruction set reads in place. */
typedef struct q_attn_form {
    const q_format *format;
    void (*keys)(const q_attn_product *p);
    void (*values)(const q_attn_product *p);
    /* A page's keys as floats [width][Q_KV_TOKENS]; n numbers of values, which lie one behind the other. Multiples of
     * 16. */
    void (*widen_keys)(const uint8_t *page, int64_t width, float *to);
    void (*widen_values)(const uint8_t *from, int64_t n, float *to);
} q_attn_form;

struct q_attn_isa {
    int32_t lanes;  /* floats in a register: 4, 8 or 16 */
    int32_t direct; /* up to so many queries take numbers as they are stored; more have them widened first */
    const q_attn_form *forms; /* [n_forms] the first is of float32 */
    int32_t n_forms;
    /* Keys that lie side by side [n][Q_KV_TOKENS] one after the other [Q_KV_TOKENS][n]; n is a multiple of 16. */
    void (*turn)(const float *from, int64_t n, float *to);
    void (*hadamard)(float *x, int64_t n, int32_t turn); /* q_ref_turn, to the bit */
    /* The softmax of a row in two steps, so that of several rows none waits for its own largest score: scores as op.h
     * says and m; then weights and l. */
    void (*largest)(q_attn_row *r);
    void (*weigh)(q_attn_row *r);
    void (*exps)(float *x, int64_t n); /* x[i] = exp(x[i]); n is a multiple of 16 */
    void (*merge)(float *acc, const float *part, int64_t n, float a, float b); /* acc = acc * a + part * b */
    void (*finish)(float *y, const float *acc, int64_t n, float a, float b); /* y = acc * a * b */
};

/* Those of an instruction set that others stand on. */
void q_hadamard__avx2(float *x, int64_t n, int32_t turn);

bool q_attn_accepts(const q_inst *s);
uint64_t q_attn_scratch(const q_inst *s);
void q_attn_run(const q_attn_isa *isa, const q_inst *s, const q_exec *e, int64_t begin, int64_t end);
/* Heads of what an ATTN reads: of its pages, or of slots. */
static inline int32_t q_attn_kv_heads(const q_inst *s, const q_plan *plan) {
    return s->z.slot ? s->z.heads : plan->kv[s->kv_group].heads;
}
/* Columns that are best attended to together, where there are enough. */
int32_t q_attn_columns(int32_t queries_per_head);
/* The query heads that read KV head kv, of columns [begin, end). */
void q_attn_head(const q_attn_isa *isa, const q_inst *s, const q_exec *e, int64_t begin, int64_t end, int32_t kv);

/* Attention over pages for few columns, in units of a KV head and a block of keys. Units run in any order and on any
 * thread, each once, before the next step that is run so; whoever finishes a KV head merges its blocks in ascending
 * order. */
typedef struct q_attn_split {
    float *parts;      /* q_attn_split_floats of them, 64-aligned */
    uint32_t *done;    /* q_attn_split_counts of them, zero */
    /* KV_PUT of the same layer, whose keys and values are stored by who reads them; NULL = all are there */
    const q_inst *put;
    q_op_fn store;     /* its function */
} q_attn_split;
bool q_attn_splits(const q_inst *s);
/* What at most so many columns take. */
uint64_t q_attn_split_floats(const q_inst *s, const q_plan *plan, int32_t columns);
uint64_t q_attn_split_counts(const q_inst *s, const q_plan *plan, int32_t columns);
int64_t q_attn_split_units(const q_inst *s, const q_exec *e);
void q_attn_split_run(const q_attn_isa *isa, const q_inst *s, const q_exec *e, const q_attn_split *w, int64_t begin,
                      int64_t end);

#define KV_FORM(name, turned, most) extern const q_format q_format_##name;
#include "../../libquant/kv_forms.def"
#undef KV_FORM

/* What a line ATTENTION of kernels.def promises; the rest are the members of q_attn_isa. */
#define Q_ATTENTION(name, ...)                                                                       \
    const q_attn_isa q_##name##_isa = {__VA_ARGS__};                                                 \
    bool q_##name##_accepts(const q_inst *s) { return q_attn_accepts(s); }                           \
    uint64_t q_##name##_scratch(const q_inst *s, int32_t columns) {                                  \
        Q_UNUSED(columns);                                                                           \
        return q_attn_scratch(s);                                                                    \
    }                                                                                                \
    void q_##name(const q_inst *s, const q_exec *e, int64_t begin, int64_t end) {                    \
        q_attn_run(&q_##name##_isa, s, e, begin, end);                                               \
    }

#endif
