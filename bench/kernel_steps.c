/* kernel_steps.c: timing kernels of steps other than products: norms, attention and the like. See kernels.h.
 *
 * A step is laid out over slots and pages as a plan would, with the sizes of an 8-billion parameter Llama (attention's
 * are asked for), and run by one thread over all its units. An operation without a case here is refused by name. */
#include "kernels.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>

enum { EMBD = BENCH_KERNEL_VALUES, FF = 14336, HEADS = 32, HEAD = 128, EXPERTS = 8, USED = 2, TAPS = 4, SLOTS = 6 };

typedef struct bed {
    const q_cpu_kernel *k;
    q_inst s;
    q_plan plan;
    q_batch batch;
    q_exec e;
    q_kv_pool kv;
    q_seq_ref seq;
    const uint32_t *tables[1];
    uint32_t *pages;
    int32_t context;
    int32_t head, heads, kv_heads; /* of attention */
    int32_t widths[SLOTS];
    float *slots[SLOTS];
    uint8_t *pool[1];
    float *state; /* of CONV and SCAN */
    float vector[EMBD * TAPS];
    q_weight weight;
    int32_t *pos, *which;
    int64_t units;       /* of the whole step */
    int64_t part, at;    /* units of a call; where the next one begins */
    int64_t calls;       /* of a pass */
    double ops, bytes;   /* of the whole step */
} bed;

static q_view view(int32_t slot, int32_t heads, int32_t width) { return (q_view){slot, 0, heads, width, width}; }

static void vector_weight(bed *b, int32_t n) {
    for (int32_t i = 0; i < n; i++) b->vector[i] = 1;
    b->weight = (q_weight){.format = q_format_find("f32"), .data = (const uint8_t *)b->vector,
                           .row_bytes = (uint64_t)n * sizeof(float), .rows = 1, .k = n, .matrices = 1, .name = "w"};
    b->s.w = &b->weight;
}

/* What each operation works on; y is slot 1, x slot 2, z slot 3, v slot 4, u slot 5. */
static void lay_norm(bed *b, int32_t n) {
    b->s.y = view(1, 1, EMBD), b->s.x = view(2, 1, EMBD);
    b->s.eps = 1e-5f;
    vector_weight(b, EMBD);
    b->bytes = 8.0 * EMBD * n;
}
static void lay_headnorm(bed *b, int32_t n) {
    b->s.y = view(1, HEADS, HEAD), b->s.x = view(2, HEADS, HEAD);
    b->s.eps = 1e-5f;
    vector_weight(b, HEAD);
    b->bytes = 8.0 * EMBD * n;
}
static void lay_glu(bed *b, int32_t n) {
    b->s.y = view(1, 1, FF), b->s.x = view(2, 1, FF), b->s.z = view(3, 1, FF);
    b->s.kind = Q_ACT_SILU;
    b->bytes = 12.0 * FF * n;
}
static void lay_rope(bed *b, int32_t n) {
    b->s.y = view(1, HEADS, HEAD), b->s.x = view(2, HEADS, HEAD);
    b->s.rot = HEAD;
    bench_kernel_fill(b->vector, HEAD / 2);
    b->s.freqs = b->vector;
    b->bytes = 8.0 * EMBD * n;
}
static void lay_column(bed *b, int32_t n) { /* SCALE, COPY */
    b->s.y = view(1, 1, EMBD), b->s.x = view(2, 1, EMBD);
    b->s.scale = 0.5f;
    b->bytes = 8.0 * EMBD * n;
}
static void lay_embed(bed *b, int32_t n) { /* a row of floats, the same for all columns */
    b->s.y = view(1, 1, EMBD);
    vector_weight(b, EMBD);
    b->batch.ids = b->which;
    b->bytes = 8.0 * EMBD * n;
}
static void lay_route(bed *b, int32_t n) { /* one row of weights stands for all experts */
    b->s.y = view(1, 1, 4), b->s.x = view(2, 1, EMBD);
    b->s.n_expert = EXPERTS, b->s.n_used = USED;
    vector_weight(b, EMBD);
    b->weight.rows = EXPERTS;
    b->weight.row_bytes = 0;
    b->ops = 2.0 * EXPERTS * EMBD * n;
    b->bytes = 4.0 * EMBD * n;
}
static void lay_conv(bed *b, int32_t n) {
    b->s.y = view(1, 1, EMBD), b->s.x = view(2, 1, EMBD);
    b->s.kind = Q_ACT_SILU;
    b->s.taps = TAPS;
    vector_weight(b, EMBD * TAPS);
    b->weight.rows = EMBD, b->weight.k = TAPS, b->weight.row_bytes = TAPS * sizeof(float);
    b->e.state_floats = (uint64_t)EMBD * (TAPS - 1);
    b->ops = 2.0 * TAPS * EMBD * n;
    b->bytes = 8.0 * EMBD * n;
}
static void lay_scan(bed *b, int32_t n) {
    b->s.y = view(1, HEADS, HEAD), b->s.x = view(2, HEADS, HEAD), b->s.z = view(3, HEADS, HEAD);
    b->s.v = view(4, HEADS, HEAD), b->s.u = view(5, 1, 2 * HEADS);
    b->s.scale = 0.08838835f;
    vector_weight(b, HEADS);
    b->s.b = b->s.w;
    b->e.state_floats = (uint64_t)HEADS * HEAD * HEAD;
    b->ops = 7.0 * HEADS * HEAD * HEAD * n;
    b->bytes = 4.0 * (4 * EMBD + 2 * HEADS) * n;
}
static void lay_combine(bed *b, int32_t n) { /* the sum of MOE_DOWN alone; its products are lines of their own */
    b->s.y = view(1, 1, EMBD), b->s.x = view(2, USED, EMBD), b->s.z = view(3, 1, USED);
    b->s.n_used = USED;
    b->ops = 2.0 * USED * EMBD * n;
    b->bytes = 4.0 * (USED + 1) * EMBD * n;
}
static double token_bytes(const bed *b) { return (double)(b->kv_heads * (b->kv.k.bytes + b->kv.v.bytes)); }
static void lay_kv_put(bed *b, int32_t n) {
    b->s.x = view(2, b->kv_heads, b->head), b->s.z = view(3, b->kv_heads, b->head);
    b->bytes = (2.0 * 4 * b->kv_heads * b->head + token_bytes(b)) * n;
}
static void lay_attn(bed *b, int32_t n) {
    b->s.y = view(1, b->heads, b->head), b->s.x = view(2, b->heads, b->head);
    b->s.scale = 1 / sqrtf((float)b->head);
    for (int32_t c = 0; c < n; c++) b->ops += 2.0 * b->heads * (b->pos[c] + 1) * (b->head + b->head);
    b->bytes = token_bytes(b) * (b->pos[n - 1] + 1); /* each key and value once */
}

static const struct { q_op op; void (*lay)(bed *b, int32_t n); } cases[] = {
    {Q_OP_NORM, lay_norm}, {Q_OP_HEADNORM, lay_headnorm}, {Q_OP_GLU, lay_glu}, {Q_OP_ROPE, lay_rope},
    {Q_OP_SCALE, lay_column}, {Q_OP_COPY, lay_column}, {Q_OP_KV_PUT, lay_kv_put}, {Q_OP_ATTN, lay_attn},
    {Q_OP_EMBED, lay_embed}, {Q_OP_ROUTE, lay_route}, {Q_OP_CONV, lay_conv}, {Q_OP_SCAN, lay_scan},
    {Q_OP_MOE_DOWN, lay_combine},
};

/* All pages are one, of keys and values that their format holds. */
static void fill_pages(bed *b) {
    float row[BENCH_KERNEL_VALUES];
    bench_kernel_fill(row, b->head);
    for (int64_t j = 0; j < Q_KV_TOKENS; j++)
        for (int32_t h = 0; h < b->kv_heads; h++)
            q_ref_kv_put_row(&b->kv.k, &b->kv.v, j, row, row, q_kv_k(&b->kv, b->pool[0], 0, 0, h),
                             q_kv_v(&b->kv, b->pool[0], 0, 0, h));
    for (uint32_t i = 1; i < b->kv.pages; i++)
        memcpy(b->pool[0] + i * b->kv.page_bytes, b->pool[0], (size_t)b->kv.page_bytes);
}

/* Slots and pages for n columns at the end of the context. */
static lq_status lay_memory(bed *b, const bench_kernel_how *how, int32_t n) {
    const q_kv_kind *kind = q_kv_kind_find(how->kv);
    b->head = how->head;
    b->heads = EMBD / how->head;
    b->kv_heads = b->heads / how->share;
    b->kv = (q_kv_pool){.layers = 1, .heads = b->kv_heads, .pages = (uint32_t)((b->context - 1) / Q_KV_TOKENS + 1)};
    if (!kind || !q_kv_form_make(kind, b->head, &b->kv.k) || !q_kv_form_make(kind, b->head, &b->kv.v))
        return q_fail(LQ_E_ARG, "heads of %d numbers cannot be kept in '%s'", b->head, how->kv);
    q_kv_pool_lay(&b->kv);
    const q_placing placing = {.huge = q_memory_has_huge("")}; /* as a session's pages lie */
    b->pool[0] = (uint8_t *)q_new_placed(&q_alloc_libc, &placing, b->kv.pages * b->kv.page_bytes, true);
    b->pos = Q_NEW(&q_alloc_libc, int32_t, n);
    b->which = Q_NEW(&q_alloc_libc, int32_t, n);
    b->pages = Q_NEW(&q_alloc_libc, uint32_t, b->kv.pages);
    if (!b->pool[0] || !b->pos || !b->which || !b->pages) return LQ_E_NOMEM;
    fill_pages(b);
    for (int i = 1; i < SLOTS; i++) {
        b->slots[i] = Q_NEW(&q_alloc_libc, float, (int64_t)FF * n);
        if (!b->slots[i]) return LQ_E_NOMEM;
        bench_kernel_fill(b->slots[i], (int64_t)FF * n);
    }
    for (uint32_t i = 0; i < b->kv.pages; i++) b->pages[i] = b->kv.pages - 1 - i;
    for (int32_t c = 0; c < n; c++) b->pos[c] = b->context - n + c;
    b->tables[0] = b->pages;
    b->seq.pages = b->tables;
    b->batch = (q_batch){.n = n, .pos = b->pos, .seq = b->which, .seqs = &b->seq, .n_seqs = 1};
    b->plan = (q_plan){.insts = &b->s, .n_insts = 1, .n_layers = 1, .slot_width = b->widths, .n_slots = SLOTS,
                       .columns = n, .kv = &b->kv, .n_kv = 1, .context = b->context};
    b->e = (q_exec){.plan = &b->plan, .batch = &b->batch, .slots = b->slots, .kv = b->pool};
    return LQ_OK;
}

static void combine_columns(const bed *b, int64_t begin, int64_t end) {
    static const int32_t place[USED] = {0, 1};
    for (int64_t c = begin; c < end; c++)
        b->k->combine(b->slots[1] + c * EMBD, false, b->slots[2] + c * USED * EMBD, EMBD, place, b->slots[3], USED);
}

/* A step of many columns takes long: a call is a part of it; all of an attention, whose columns see different numbers
 * of keys. */
static void step_pass(void *arg) {
    bed *b = (bed *)arg;
    for (int64_t i = 0; i < b->calls; i++) {
        if (b->at + b->part > b->units) b->at = 0;
        if (b->k->combine) combine_columns(b, b->at, b->at + b->part);
        else b->k->fn(&b->s, &b->e, b->at, b->at + b->part);
        b->at += b->part;
    }
}

static bool step_grow(void *arg) {
    bed *b = (bed *)arg;
    if (b->part * 2 <= b->units) b->part *= 2;
    else b->calls *= 2;
    return b->calls < INT32_MAX;
}

static lq_status time_step(bed *b, const bench_kernel_how *how, bench_kernel_time *out) {
    size_t i = 0;
    while (i < Q_COUNT(cases) && cases[i].op != b->k->op) i++;
    if (i == Q_COUNT(cases))
        return q_fail(LQ_E_UNSUPPORTED, "%s: there is no case for its operation yet (bench/kernel_steps.c)",
                      b->k->name);
    Q_TRY(lay_memory(b, how, how->columns));
    b->s.op = (uint8_t)b->k->op;
    cases[i].lay(b, how->columns);
    /* columns as far apart as in a model's slots: it matters to caches */
    const q_view *views[] = {&b->s.y, &b->s.x, &b->s.z, &b->s.v, &b->s.u};
    for (size_t v = 0; v < Q_COUNT(views); v++) b->widths[views[v]->slot] = views[v]->heads * views[v]->width;
    if (b->k->accepts && !b->k->accepts(&b->s))
        return q_fail(LQ_E_UNSUPPORTED, "%s refuses the step of bench/kernel_steps.c", b->k->name);
    b->e.state = Q_NEW(&q_alloc_libc, float, b->e.state_floats + 1);
    if (!b->e.state) return LQ_E_NOMEM;
    b->state = b->e.state;
    b->units = b->k->combine ? how->columns : q_op_units(&b->s, how->columns, 0);
    const q_op_unit unit = q_ops[b->k->op].unit; /* a channel's or a head's unit is all columns */
    b->part = unit == Q_UNIT_HEAD      ? 1
              : unit == Q_UNIT_CHANNEL ? 64
              : b->k->op == Q_OP_ATTN  ? b->units
                                       : b->units / how->columns;
    b->e.scratch_bytes = b->k->scratch ? (size_t)b->k->scratch(&b->s, how->columns) : 0;
    b->e.scratch = q_new(&q_alloc_libc, b->e.scratch_bytes + 1, 1);
    if (!b->e.scratch) return LQ_E_NOMEM;
    return bench_kernel_time_passes(step_pass, step_grow, b, how->passes, &out->passes);
}

lq_status bench_kernel_step(const q_cpu_kernel *k, const bench_kernel_how *how, bench_kernel_time *out) {
    bed *b = Q_NEW(&q_alloc_libc, bed, 1);
    if (!b) return LQ_E_NOMEM;
    b->k = k;
    b->calls = 1;
    b->context = how->context;
    bench_kernel_how capped = *how;
    capped.columns = Q_MIN(how->columns, how->context);
    const lq_status s = time_step(b, &capped, out);
    const double steps = b->units ? (double)(b->part * b->calls) / (double)b->units : 0; /* in a pass */
    out->ops = b->ops * steps;
    out->bytes = b->bytes * steps;
    int at = snprintf(out->shape, sizeof out->shape, "%d column%s", capped.columns, capped.columns == 1 ? "" : "s");
    if (k->op == Q_OP_ATTN)
        at += snprintf(out->shape + at, sizeof out->shape - (size_t)at, "; context %d", capped.context);
    const bool usual = strcmp(how->kv, "f16") == 0 && how->head == 128 && how->share == 4;
    if (!usual && (k->op == Q_OP_ATTN || k->op == Q_OP_KV_PUT))
        snprintf(out->shape + at, sizeof out->shape - (size_t)at, "; %d of %d to %s", how->share, how->head, how->kv);
    for (int i = 1; i < SLOTS; i++) q_delete(&q_alloc_libc, b->slots[i]);
    q_delete(&q_alloc_libc, b->pool[0]);
    q_delete(&q_alloc_libc, b->state);
    q_delete(&q_alloc_libc, b->pages);
    q_delete(&q_alloc_libc, b->pos);
    q_delete(&q_alloc_libc, b->which);
    q_delete(&q_alloc_libc, b->e.scratch);
    q_delete(&q_alloc_libc, b);
    return s;
}
