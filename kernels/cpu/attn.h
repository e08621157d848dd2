/* attn.h: attention over pages of binary16 or float32, as far as it is the same for every instruction set. Query
 * heads that read the same KV head, of several columns, go through the pages together: each block of keys and values is
 * widened once for all of them. An instruction set brings the arithmetic.
 *
 * A query's own arithmetic never depends on its company: blocks lie at absolute positions, a key that the query may not
 * see has no term, and scores, weights and values are summed as op.h says. Only the exponential may differ from
 * kernels/ref, by what its own file says. Layer L2. */
#ifndef Q_CPU_ATTN_H
#define Q_CPU_ATTN_H

#include "cpu.h"

typedef struct q_attn_isa {
    int32_t lanes; /* floats in a register; value widths are multiples of it, key widths of 16 */
    /* n stored halves to floats; n is a multiple of lanes or of 16. */
    void (*widen)(const uint8_t *from, int64_t n, float *to);
    /* Scores of the query and keys [from, to) of a block, scaled and capped as s says, and their maximum, which passes
     * over NaN. All Q_KV_TOKENS of score are written, minus infinity where there is no key. */
    float (*scores)(const q_inst *s, const float *q, const float *k, int32_t from, int32_t to, float *score);
    /* x[i] = exp(x[i] - base), n of them; n is a multiple of lanes. */
    void (*exps)(float *x, float base, int32_t n);
    /* acc = acc * a + (the sum of p[j] times value j, j in [from, to)) * b. */
    void (*values)(const float *p, const float *v, int64_t width, int32_t from, int32_t to, float a, float b,
                   float *acc);
} q_attn_isa;

bool q_attn_accepts(const q_attn_isa *isa, const q_inst *s);
uint64_t q_attn_scratch(const q_inst *s);
void q_attn_run(const q_attn_isa *isa, const q_inst *s, const q_exec *e, int64_t begin, int64_t end);

/* STEP's three functions. */
#define Q_ATTN_STEP(name, isa)                                                                       \
    bool q_##name##_accepts(const q_inst *s) { return q_attn_accepts(&isa, s); }                     \
    uint64_t q_##name##_scratch(const q_inst *s, int32_t columns) {                                  \
        Q_UNUSED(columns);                                                                           \
        return q_attn_scratch(s);                                                                    \
    }                                                                                                \
    void q_##name(const q_inst *s, const q_exec *e, int64_t begin, int64_t end) {                    \
        q_attn_run(&isa, s, e, begin, end);                                                          \
    }

#endif
