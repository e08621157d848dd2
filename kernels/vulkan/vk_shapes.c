/* vk_shapes.c: the table of shaders, and how each operation is cut into passes, workgroups and scratch. The comment
 * that opens a shader says what its workgroup does; the numbers here follow it. Layer L2. */
#include "vk_shapes.h"

#include "roles.h"
#include "vk_shaders.inc" /* made by the Makefile: the words of each shader */

enum { SPEC_FORMAT, SPEC_COLUMNS, SPEC_ROLE, SPEC_KEYS, SPEC_VALUES };
enum { FORMAT = 1 << SPEC_FORMAT, COLUMNS = 1 << SPEC_COLUMNS, ROLE = 1 << SPEC_ROLE, KEYS = 1 << SPEC_KEYS,
       VALUES = 1 << SPEC_VALUES, NONE = 0 };

const q_vk_shader q_vk_shaders[Q_VK_SHADERS] = {
#define SHADER(name, tier, specialization) \
    {#name, q_vk_words_##name, sizeof q_vk_words_##name, tier, specialization},
#include "shaders.def"
#undef SHADER
};

/* ---------------------------------------------------------------------------------------------------------- passes */

typedef struct passes {
    const q_plan *plan;
    q_vk_pass *out;
    int32_t count;
    int32_t n; /* most columns that the step works on */
} passes;

static int32_t number_of(const q_format *f) {
    int32_t i = 0;
    while (q_formats[i] != f) i++;
    return i;
}

static int64_t ceil_div(int64_t a, int64_t b) { return (a + b - 1) / b; }

static q_vk_pass *pass(passes *p, int32_t shader, int32_t role, int64_t x, int64_t y, int64_t z) {
    q_vk_pass *t = &p->out[p->count++];
    *t = (q_vk_pass){.shader = shader, .groups = {(uint32_t)x, (uint32_t)y, (uint32_t)z}};
    t->spec[SPEC_ROLE] = role;
    return t;
}

/* Groups of one dimension, folded over x and y. */
static void fold(q_vk_pass *t, int64_t groups) {
    const int64_t y = ceil_div(groups, Q_VK_GROUPS);
    t->groups[1] = (uint32_t)y;
    t->groups[0] = (uint32_t)ceil_div(groups, y);
}

/* Threads of gemv that share a row: gemv.comp has the same. */
static int32_t row_threads(int32_t k) {
    int32_t t = 1;
    while (t < 32 && t * Q_UNIT < k) t *= 2;
    return t;
}

enum { MOST_WIDTH = 1024, MOST_EXPERTS = 1024 }; /* shared memory of attn and route: MOST in both */
enum { FEW = 8 }; /* columns up to which gemv is used */

static void product(passes *p, int32_t role, const q_format *format, int32_t k, int64_t rows, int32_t heads) {
    q_vk_pass *t;
    if (p->n > FEW) {
        t = pass(p, Q_VK_SHADER_matmul, role, ceil_div(rows, 64), ceil_div(p->n, 64), heads);
    } else {
        t = pass(p, Q_VK_SHADER_gemv, role, 1, 1, heads);
        t->spec[SPEC_COLUMNS] = p->n > 1 ? FEW : 1;
        fold(t, ceil_div(rows, 64 / row_threads(k)));
    }
    t->spec[SPEC_FORMAT] = number_of(format);
}

static bool has_adapter(const q_inst *s) { return s->op == Q_OP_MATMUL && s->lora_a && s->lora_b; }

static void matmul(passes *p, const q_inst *s) {
    const int32_t heads = s->x.heads > 1 ? s->x.heads : 1;
    const int64_t rows = (int64_t)s->y.heads * s->y.width / heads;
    product(p, Q_VK_MATMUL, s->w->format, s->w->k, rows, heads);
    if (!has_adapter(s)) return;
    product(p, Q_VK_LORA_A, s->lora_a->format, s->lora_a->k, s->lora_a->rows, heads);
    product(p, Q_VK_LORA_B, s->lora_b->format, s->lora_a->rows, rows, heads);
}

static void head(passes *p, const q_inst *s) { product(p, Q_VK_HEAD, s->w->format, s->w->k, s->w->rows, 1); }

static void embed(passes *p, const q_inst *s) {
    const q_weight *const table[] = {s->w, s->w2, s->w3};
    for (int32_t i = 0; i < 3; i++)
        if (table[i] || i == 0) /* the first pass takes rows of x too, which need no table */
            pass(p, Q_VK_SHADER_embed, i, ceil_div((int64_t)s->y.heads * s->y.width, 64 * Q_UNIT), p->n, 1)
                ->spec[SPEC_FORMAT] = table[i] ? number_of(table[i]->format) : 0;
}

/* Shaders that treat n values of each column one by one. */
static void each_value(passes *p, int32_t shader, int64_t n) { pass(p, shader, 0, ceil_div(n, 256), p->n, 1); }

static void glu(passes *p, const q_inst *s) { each_value(p, Q_VK_SHADER_glu, (int64_t)s->y.heads * s->y.width); }
static void scale(passes *p, const q_inst *s) { each_value(p, Q_VK_SHADER_scale, (int64_t)s->y.heads * s->y.width); }
static void copy(passes *p, const q_inst *s) { each_value(p, Q_VK_SHADER_copy, (int64_t)s->y.heads * s->y.width); }
static void rope(passes *p, const q_inst *s) {
    each_value(p, Q_VK_SHADER_rope, (int64_t)s->x.heads * (s->x.width - s->rot / 2));
}
static void put(passes *p, int32_t role, const q_kv_pool *pool, const q_format *format, int32_t width, int32_t sides) {
    pass(p, Q_VK_SHADER_kv_put, role, ceil_div((int64_t)pool->heads * width, 256), p->n, sides)->spec[SPEC_KEYS] =
        number_of(format);
}
/* Keys and values at once, where one pipeline does both. */
static void kv_put(passes *p, const q_inst *s) {
    const q_kv_pool *pool = &p->plan->kv[s->kv_group];
    const bool both = pool->v.width && pool->v.format == pool->k.format;
    const int32_t width = both ? Q_MAX(pool->k.width, pool->v.width) : pool->k.width;
    put(p, Q_VK_PUT_KEYS, pool, pool->k.format, width, both ? 2 : 1);
    if (pool->v.width && !both) put(p, Q_VK_PUT_VALUES, pool, pool->v.format, pool->v.width, 1);
}

static void norm(passes *p, const q_inst *s) {
    const int32_t heads = s->op == Q_OP_HEADNORM ? s->x.heads : 1;
    q_vk_pass *t = pass(p, Q_VK_SHADER_norm, s->w ? Q_VK_NORM_W : Q_VK_NORM_PLAIN, heads, p->n, 1);
    if (s->w) t->spec[SPEC_FORMAT] = number_of(s->w->format);
}

static void attn(passes *p, const q_inst *s) {
    const q_kv_pool *pool = s->z.slot ? NULL : &p->plan->kv[s->kv_group];
    const int32_t role = !pool ? Q_VK_ATTN_COLUMNS : pool->v.width ? Q_VK_ATTN_PAGES : Q_VK_ATTN_PREFIX;
    q_vk_pass *t = pass(p, Q_VK_SHADER_attn, role, s->x.heads, p->n, 1);
    if (s->w) t->spec[SPEC_FORMAT] = number_of(s->w->format);
    t->spec[SPEC_KEYS] = number_of(pool ? pool->k.format : q_format_find("f32"));
    t->spec[SPEC_VALUES] = pool ? number_of(q_kv_v_form(pool)->format) : t->spec[SPEC_KEYS];
}

static void route(passes *p, const q_inst *s) {
    product(p, Q_VK_ROUTE, s->w->format, s->w->k, s->n_expert, 1);
    pass(p, Q_VK_SHADER_route, 0, 1, p->n, 1);
}

static void experts(passes *p, const q_inst *s, int32_t role, const q_weight *w, int32_t used) {
    const int64_t groups = ceil_div(s->y.width, 64 / row_threads(w->k));
    pass(p, Q_VK_SHADER_moe, role, groups, p->n, used)->spec[SPEC_FORMAT] = number_of(w->format);
}
static void moe_glu(passes *p, const q_inst *s) {
    experts(p, s, Q_VK_EXPERT, s->w, s->n_used);
    if (s->w2) experts(p, s, Q_VK_EXPERT2, s->w2, s->n_used);
}
static void moe_down(passes *p, const q_inst *s) { experts(p, s, Q_VK_DOWN, s->w, 1); }

static void conv(passes *p, const q_inst *s) {
    pass(p, Q_VK_SHADER_conv, 0, ceil_div((int64_t)s->x.heads * s->x.width, 64), 1, 1)->spec[SPEC_FORMAT] =
        number_of(s->w->format);
}
static void scan(passes *p, const q_inst *s) {
    pass(p, Q_VK_SHADER_scan, 0, ceil_div(s->v.width, 64), s->v.heads, 1)->spec[SPEC_FORMAT] = number_of(s->w->format);
}

static void sample(passes *p, const q_inst *s) {
    Q_UNUSED(s);
    pass(p, Q_VK_SHADER_sample, 0, p->n, 1, 1);
}

typedef void (*op_passes)(passes *p, const q_inst *s);
static const op_passes by_op[Q_OP_COUNT] = {
    [Q_OP_EMBED] = embed,     [Q_OP_NORM] = norm,         [Q_OP_HEADNORM] = norm, [Q_OP_MATMUL] = matmul,
    [Q_OP_GLU] = glu,         [Q_OP_ROPE] = rope,         [Q_OP_KV_PUT] = kv_put, [Q_OP_ATTN] = attn,
    [Q_OP_ROUTE] = route,     [Q_OP_MOE_GLU] = moe_glu,   [Q_OP_CONV] = conv,     [Q_OP_SCAN] = scan,
    [Q_OP_MOE_DOWN] = moe_down, [Q_OP_SCALE] = scale,     [Q_OP_COPY] = copy,     [Q_OP_HEAD] = head,
    [Q_OP_SAMPLE] = sample,
};

/* Most columns that a step works on in a batch of at most this many. */
static int32_t step_columns(const q_plan *plan, const q_inst *s, int32_t columns) {
    const bool wanted = s->out || s->op == Q_OP_HEAD || s->op == Q_OP_SAMPLE;
    return wanted ? Q_MIN(columns, plan->outs) : columns;
}

int32_t q_vk_passes(const q_plan *plan, const q_inst *s, int32_t columns, q_vk_pass out[Q_VK_PASSES]) {
    passes p = {.plan = plan, .out = out, .n = step_columns(plan, s, columns)};
    if (p.n > 0 && by_op[s->op]) by_op[s->op](&p, s);
    return p.count;
}

uint64_t q_vk_scratch(const q_plan *plan, const q_inst *s, int32_t columns) {
    const uint64_t n = (uint64_t)step_columns(plan, s, columns);
    if (has_adapter(s)) return n * (uint64_t)Q_MAX(s->x.heads, 1) * (uint64_t)s->lora_a->rows * sizeof(float);
    if (s->op == Q_OP_ROUTE) return n * (uint64_t)s->n_expert * sizeof(float);
    return 0;
}

const char *q_vk_refuses(const q_inst *s) {
    if (s->op >= Q_OP_COUNT || !by_op[s->op]) return "unknown operation";
    if (s->op == Q_OP_ATTN && (s->x.width > MOST_WIDTH || s->y.width > MOST_WIDTH))
        return "attention with heads of more than 1024 values";
    if (s->op == Q_OP_ROUTE && s->n_expert > MOST_EXPERTS) return "more than 1024 experts";
    return NULL;
}
