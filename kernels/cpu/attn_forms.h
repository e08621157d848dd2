/* attn_forms.h: the list `forms` of an instruction set's attention, which reads all forms of keys and values in place.
 *
 * A template: the file that includes it defines FORM_ISA, its name, FORM_TARGET and FORM_INLINE, the attributes of its
 * functions, and FORM_AT_ONCE(rows), whether its registers hold that many rows of products with blocks; it has rows and
 * widen_cells for single numbers, block_product, widen_block_keys, widen_block_values for blocks: inlined with a
 * constant for the form (attn.h), they become the functions of one. Layer L2. */
#ifndef FORM_ISA
#error "attn_forms.h: FORM_ISA, FORM_TARGET, FORM_INLINE and FORM_AT_ONCE come before it"
#endif

#define FORM_NAME_(isa, what, name) isa##_##what##_##name
#define FORM_NAME_OF(isa, what, name) FORM_NAME_(isa, what, name)
#define FORM_NAME(what, name) FORM_NAME_OF(FORM_ISA, what, name)

#define CELL_FORM(name, f)                                                                                      \
    FORM_TARGET static void FORM_NAME(product, name)(const q_attn_product *p) { rows(f, p); }                    \
    FORM_TARGET static void FORM_NAME(widen_values, name)(const uint8_t *from, int64_t n, float *to) {           \
        widen_cells(f, from, n, to);                                                                             \
    }                                                                                                            \
    FORM_TARGET static void FORM_NAME(widen_keys, name)(const uint8_t *page, int64_t width, float *to) {         \
        widen_cells(f, page, Q_KV_TOKENS * width, to);                                                           \
    }
#define BLOCK_FORM(name, f)                                                                                     \
    FORM_TARGET static void FORM_NAME(keys, name)(const q_attn_product *p) { FORM_NAME(blocks, of)(true, f, p); } \
    FORM_TARGET static void FORM_NAME(values, name)(const q_attn_product *p) { FORM_NAME(blocks, of)(false, f, p); } \
    FORM_TARGET static void FORM_NAME(widen_keys, name)(const uint8_t *page, int64_t width, float *to) {         \
        widen_block_keys(f, page, width, to);                                                                    \
    }                                                                                                            \
    FORM_TARGET static void FORM_NAME(widen_values, name)(const uint8_t *from, int64_t n, float *to) {           \
        widen_block_values(f, from, n, to);                                                                      \
    }
CELL_FORM(f32, Q_CELLS_F32)
CELL_FORM(f16, Q_CELLS_F16)
CELL_FORM(bf16, Q_CELLS_BF16)
/* Products with blocks, through a page of floats in the first cache where several passes over the rows would each make
 * the numbers anew. */
FORM_INLINE void FORM_NAME(blocks, of)(bool keys, q_attn_blocks f, const q_attn_product *p) {
    enum { WIDEST = 128 }; /* numbers of a key or value */
    const int64_t width = keys ? p->to : p->width;
    const bool gaps = !keys && p->b_stride * 32 != width * q_attn_block_bytes(f); /* between values */
    if (FORM_AT_ONCE(p->rows) || width > WIDEST || gaps || p->from == p->to) {
        block_product(keys, f, p);
        return;
    }
    _Alignas(64) float page[Q_KV_TOKENS * WIDEST];
    const uint8_t *floats = (const uint8_t *)page;
    q_attn_product w = *p;
    w.b = &floats;
    w.b_stride = (int64_t)sizeof(float) * p->width;
    if (keys) {
        widen_block_keys(f, p->b[0], width, page);
        FORM_NAME(product, f32)(&w);
        return;
    }
    for (int64_t at = p->from; at < p->to; at += w.to - w.from, w.more = true) {
        const int64_t i = at / p->per, first = i * p->per;
        w.from = at - first;
        w.to = Q_MIN(p->to - first, p->per);
        w.a = p->a + first;
        w.ahead = p->ahead + i;
        widen_block_values(f, p->b[i] + w.from * p->b_stride, (w.to - w.from) * width, page + w.from * width);
        FORM_NAME(product, f32)(&w);
    }
}
BLOCK_FORM(q8_0, Q_BLOCKS_Q8_0)
BLOCK_FORM(q5_1, Q_BLOCKS_Q5_1)
BLOCK_FORM(q4_0, Q_BLOCKS_Q4_0)

#define FORM_ROW(keys, values, name) \
    {&q_format_##name, FORM_NAME(keys, name), FORM_NAME(values, name), FORM_NAME(widen_keys, name), \
     FORM_NAME(widen_values, name)}
static const q_attn_form forms[] = {
    FORM_ROW(product, product, f32), FORM_ROW(product, product, f16), FORM_ROW(product, product, bf16),
    FORM_ROW(keys, values, q8_0),    FORM_ROW(keys, values, q5_1),    FORM_ROW(keys, values, q4_0),
};

#undef CELL_FORM
#undef BLOCK_FORM
#undef FORM_ROW
#undef FORM_NAME
#undef FORM_NAME_OF
#undef FORM_NAME_
#undef FORM_ISA
#undef FORM_TARGET
#undef FORM_INLINE
#undef FORM_AT_ONCE
