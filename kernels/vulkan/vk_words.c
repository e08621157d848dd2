/* vk_words.c: the words of a shader as a driver gets them: without the branches that its constants rule out.
 *
 * A shader that decodes weights holds the codec of every format, each behind "if (FORMAT_OF_W == its number)", and
 * drivers translate and inline all of them before they look which one is left: of the time to make a pipeline, nine
 * tenths. So what follows a comparison of a specialization constant with another number is left out here. Only that
 * form of SPIR-V is known (SPIR-V specification 1.5, section 3.32: no else, as glslc -O0 writes it, values in
 * variables); everything else passes as it is, and is right too. Layer L2. */
#include "vk_shapes.h"

enum { HEAD = 5, BOUND = 3 }; /* words before the first instruction; the one above all ids */
enum { OP_NAME = 5, OP_TYPE_VOID = 19, OP_TYPE_FORWARD_POINTER = 39, OP_CONSTANT = 43, OP_SPEC_CONSTANT_OP = 52,
       OP_DECORATE = 71, OP_IEQUAL = 170, OP_PHI = 245, OP_SELECTION_MERGE = 247, OP_LABEL = 248, OP_BRANCH = 249,
       OP_BRANCH_CONDITIONAL = 250, SPEC_ID = 1 };

typedef struct known {
    enum { UNKNOWN, NUMBER, NEVER, TYPE, GONE } what;
    int32_t value; /* of a NUMBER */
} known;

static uint32_t op(const uint32_t *w) { return w[0] & 0xFFFF; }
static const uint32_t *next_of(const uint32_t *w) { return w + (w[0] >> 16); }

static void learn(const uint32_t *w, const int32_t spec[Q_VK_SPECS], known *ids) {
    if (op(w) >= OP_TYPE_VOID && op(w) < OP_TYPE_FORWARD_POINTER) ids[w[1]].what = TYPE;
    if (op(w) == OP_DECORATE && w[2] == SPEC_ID && w[3] < Q_VK_SPECS) ids[w[1]] = (known){NUMBER, spec[w[3]]};
    if (op(w) == OP_CONSTANT && next_of(w) == w + 4) ids[w[2]] = (known){NUMBER, (int32_t)w[3]};
    if (op(w) != OP_SPEC_CONSTANT_OP || w[3] != OP_IEQUAL) return;
    const known a = ids[w[4]], b = ids[w[5]];
    if (a.what == NUMBER && b.what == NUMBER && a.value != b.value) ids[w[2]].what = NEVER;
}

/* A branch that is never taken: from its merge instruction to the label where both ways meet; NULL = something else. */
static const uint32_t *end_of_never(const uint32_t *w, const known *ids) {
    if (op(w) != OP_SELECTION_MERGE) return NULL;
    const uint32_t merge = w[1], *at = next_of(w);
    if (op(at) != OP_BRANCH_CONDITIONAL || at[3] != merge || ids[at[1]].what != NEVER) return NULL;
    while (op(at) != OP_LABEL || at[1] != merge) at = next_of(at);
    return op(next_of(at)) == OP_PHI ? NULL : at; /* a value that depends on the way taken */
}

static uint64_t cut(const q_vk_shader *shader, const int32_t spec[Q_VK_SPECS], known *ids, uint32_t *out) {
    const uint32_t *const begin = shader->words + HEAD, *const end =
                                                            shader->words + shader->bytes / sizeof *shader->words;
    for (const uint32_t *w = begin; w < end;) {
        const uint32_t *stop = end_of_never(w, ids);
        learn(w, spec, ids);
        if (!stop) w = next_of(w);
        for (; stop && w < stop; w = next_of(w)) /* what begins with a type gives a result; a label has none to lose */
            if (w[0] >> 16 > 2 && ids[w[1]].what == TYPE) ids[w[2]].what = GONE;
    }
    uint32_t *to = out;
    memcpy(to, shader->words, HEAD * sizeof *to);
    to += HEAD;
    for (const uint32_t *w = begin, *next; w < end; w = next) {
        const uint32_t *stop = end_of_never(w, ids);
        next = stop ? stop : next_of(w);
        if (stop) {
            *to++ = 2u << 16 | OP_BRANCH;
            *to++ = w[1];
        } else if (!((op(w) == OP_NAME || op(w) == OP_DECORATE) && ids[w[1]].what == GONE)) {
            memcpy(to, w, (size_t)(next - w) * sizeof *w);
            to += next - w;
        }
    }
    return (uint64_t)(to - out) * sizeof *out;
}

lq_status q_vk_words(const q_alloc *a, const q_vk_shader *shader, const int32_t spec[Q_VK_SPECS], uint32_t **words,
                     uint64_t *bytes) {
    known *ids = (known *)q_new(a, shader->words[BOUND], sizeof *ids);
    *words = (uint32_t *)q_new_raw(a, shader->bytes, 1);
    if (ids && *words) *bytes = cut(shader, spec, ids, *words);
    q_delete(a, ids);
    if (ids && *words) return LQ_OK;
    q_delete(a, *words);
    return LQ_E_NOMEM;
}
