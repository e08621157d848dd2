/* choose.c: the table of kernels, and which of them a step gets: of those that fit, the last line of kernels.def. Layer
 * L2. */
#include "choose.h"

const q_cpu_kernel q_cpu_kernels[] = {
#define PRODUCT(weight, activation, isa_, rows_, name_)                                                       \
    {.name = #name_, .op = Q_OP_MATMUL, .format = #weight, .act = Q_CPU_ACT_##activation, .isa = Q_ISA_##isa_, \
     .rows = rows_, .mm = q_##name_, .mm_scratch = q_##name_##_scratch},
#define PACKED(weight, activation, isa_, rows_, layout_, name_)                                                \
    {.name = #name_, .op = Q_OP_MATMUL, .format = #weight, .act = Q_CPU_ACT_##activation, .layout = &q_##layout_, \
     .isa = Q_ISA_##isa_, .rows = rows_, .mm = q_##name_, .mm_scratch = q_##name_##_scratch},
#define STEP(op_, isa_, name_)                                                                        \
    {.name = #name_, .op = Q_OP_##op_, .format = "any", .isa = Q_ISA_##isa_, .fn = q_##name_,         \
     .scratch = q_##name_##_scratch, .accepts = q_##name_##_accepts},
#define ATTENTION(isa_, name_)                                                                        \
    {.name = #name_, .op = Q_OP_ATTN, .format = "any", .isa = Q_ISA_##isa_, .fn = q_##name_,          \
     .scratch = q_##name_##_scratch, .accepts = q_##name_##_accepts, .attn = &q_##name_##_isa},
#define ACTIVATION(activation, isa_, name_)                                                            \
    {.name = #name_, .op = Q_OP_COUNT, .act = Q_CPU_ACT_##activation, .isa = Q_ISA_##isa_, .quantize = q_##name_},
#define COMBINE(isa_, name_) {.name = #name_, .op = Q_OP_MOE_DOWN, .isa = Q_ISA_##isa_, .combine = q_##name_},
#define WIDE(isa_, name_) {.name = #name_, .op = Q_OP_COUNT, .isa = Q_ISA_##isa_, .wide = &q_##name_},
#include "kernels.def"
};
uint32_t q_cpu_kernel_count(void) { return (uint32_t)Q_COUNT(q_cpu_kernels); }

static bool is_product(const q_inst *s) {
    return s->w && (q_cpu_is_experts(s) || ((s->op == Q_OP_MATMUL || s->op == Q_OP_HEAD) && !(s->lora_a && s->lora_b)));
}

/* `packed` is the layout that the weight has, or will have. */
static bool fits(const q_cpu_kernel *k, const q_inst *s, const q_cpu_layout *packed, q_isas isas,
                 bool f32_activations) {
    if (!q_isa_in(isas, k->isa) || k->quantize || k->combine || k->wide) return false;
    if (!k->mm) return k->op == s->op && (!k->accepts || k->accepts(s));
    if (!is_product(s)) return false;
    if (strcmp(k->format, "any") != 0 && strcmp(k->format, s->w->format->name) != 0) return false;
    if (k->layout && k->layout != packed) return false;
    return !k->act || ((!f32_activations || k->act->lanes) && q_act_fits(k->act, s->w->k));
}

static const q_cpu_kernel *last_fit(const q_inst *s, const q_cpu_layout *packed, q_isas isas, bool f32_activations) {
    for (size_t i = Q_COUNT(q_cpu_kernels); i-- > 0;)
        if (fits(&q_cpu_kernels[i], s, packed, isas, f32_activations)) return &q_cpu_kernels[i];
    return NULL;
}

const q_cpu_layout *q_cpu_layout_for(q_op op, const q_weight *w, q_isas isas) {
    const q_inst s = {.op = (uint8_t)op, .w = w};
    for (size_t i = Q_COUNT(q_cpu_kernels); i-- > 0;)
        if (fits(&q_cpu_kernels[i], &s, q_cpu_kernels[i].layout, isas, false)) return q_cpu_kernels[i].layout;
    return NULL;
}

const q_cpu_kernel *q_cpu_choose_meanwhile(const q_inst *s, const q_cpu_kernel *k, q_isas isas, bool f32_activations) {
    if (!k || !k->layout || !s->w->packed_ready) return NULL;
    for (size_t i = Q_COUNT(q_cpu_kernels); i-- > 0;) {
        const q_cpu_kernel *m = &q_cpu_kernels[i];
        if (m->mm && m->act == k->act && fits(m, s, NULL, isas, f32_activations)) return m;
    }
    return NULL;
}

const q_cpu_kernel *q_cpu_choose(const q_inst *s, q_isas isas, bool f32_activations) {
    if (!is_product(s)) return last_fit(s, NULL, isas, f32_activations);
    if (!s->w->packed_ready) return last_fit(s, q_layout_of(s->w), isas, f32_activations);
    const q_cpu_kernel *k = last_fit(s, q_cpu_layout_for((q_op)s->op, s->w, isas), isas, f32_activations);
    if (!k || !k->layout || q_cpu_choose_meanwhile(s, k, isas, f32_activations)) return k;
    return last_fit(s, NULL, isas, f32_activations);
}

void (*q_cpu_choose_quantize(const q_act *act, q_isas isas))(const float *, int64_t, void *) {
    for (size_t i = Q_COUNT(q_cpu_kernels); i-- > 0;)
        if (q_cpu_kernels[i].quantize && q_cpu_kernels[i].act == act && q_isa_in(isas, q_cpu_kernels[i].isa))
            return q_cpu_kernels[i].quantize;
    return act->quantize;
}

q_combine_fn q_cpu_choose_combine(q_isas isas) { /* there is one for every machine */
    size_t i = Q_COUNT(q_cpu_kernels) - 1;
    while (!q_cpu_kernels[i].combine || !q_isa_in(isas, q_cpu_kernels[i].isa)) i--;
    return q_cpu_kernels[i].combine;
}

const q_wide *q_cpu_choose_wide(q_isas isas) {
    for (size_t i = Q_COUNT(q_cpu_kernels); i-- > 0;)
        if (q_cpu_kernels[i].wide && q_isa_in(isas, q_cpu_kernels[i].isa)) return q_cpu_kernels[i].wide;
    return NULL;
}

q_inst q_cpu_second_of(const q_inst *s) {
    q_inst second = *s;
    second.w = s->w2;
    return second;
}

const q_cpu_kernel *q_cpu_choose2(const q_inst *s, q_isas isas, bool f32_activations) {
    if (!q_cpu_is_experts(s) || !s->w2) return NULL;
    const q_inst second = q_cpu_second_of(s);
    return q_cpu_choose(&second, isas, f32_activations);
}

q_op_fn q_cpu_choose_after(q_op op, q_isas isas) {
    const q_inst s = {.op = (uint8_t)op};
    const q_cpu_kernel *k = q_cpu_choose(&s, isas, false);
    return k && k->fn ? k->fn : q_ops[op].ref;
}
