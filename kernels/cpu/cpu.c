/* cpu.c: the CPU backend: the vtable, how a plan is compiled, and memory. program.c runs what is compiled here,
 * choose.c says which kernel a step gets.
 *
 * Compiling turns the plan into stages (a step, or the quantization of a slot that products read in 8 bits), and lays
 * everything a run needs out in one block: the same function lays out with no base to measure, so that what was
 * promised is what is allocated. Refuses nothing that op.h describes: a step without a kernel of its own runs the
 * reference. Layer L2. */
#include "attn.h"
#include "choose.h"

#include <stdio.h>

struct q_device {
    const q_alloc *alloc;
    const q_log *log;
    q_isas isas; /* what its kernels may use */
    uint32_t threads;
    q_placing placing;
};

extern const q_backend q_backend_cpu;

/* Names of the reference functions, for kernel_name: "ref_norm". */
static const char *const ref_names[Q_OP_COUNT] = {
#define OP(name, fn, unit) [Q_OP_##name] = &#fn[2],
#include "../../libquant/ops.def"
#undef OP
};

/* -------------------------------------------------------------------------------------------------------- stages */

/* A product reads its input as it lies in the slot unless it wants it quantized, or in the order of its weight; experts
 * want it gathered. */
static bool reads_copy(const q_inst *s, const q_weight *w, const q_cpu_kernel *k) {
    return k && k->mm && (k->act || w->order || q_cpu_is_experts(s));
}

/* The form of x that a product with w then reads. */
static q_cpu_copy_key key_of(const q_inst *s, const q_weight *w, const q_act *act, int32_t routes) {
    /* An expert's columns may be few in any batch, so what few columns are not converted to is not for experts at
     * all. */
    q_cpu_copy_key k = {.slot = s->x.slot, .offset = s->x.offset, .k = w->k, .heads = 1, .stride = 0,
                        .act = act && routes >= 0 && act->from ? NULL : act, .order = w->order, .routes = routes};
    if ((s->op == Q_OP_MATMUL && s->x.heads > 1 && s->y.heads > 1) || s->op == Q_OP_MOE_DOWN) {
        k.heads = s->x.heads;
        k.stride = s->x.stride;
    }
    return k;
}
static bool same_key(const q_cpu_copy_key *a, const q_cpu_copy_key *b) {
    return a->slot == b->slot && a->offset == b->offset && a->k == b->k && a->heads == b->heads &&
           a->stride == b->stride && a->act == b->act && a->order == b->order && a->routes == b->routes;
}

static int32_t find_copy(const q_program *p, const q_cpu_copy_key *key) {
    for (int32_t i = 0; i < p->n_copies; i++)
        if (same_key(&p->copies[i].key, key)) return i;
    return -1;
}

static int32_t add_copy(q_program *p, const q_cpu_copy_key *key, q_isas isas) {
    const int32_t found = find_copy(p, key);
    if (found >= 0) return found;
    q_cpu_copy *c = &p->copies[p->n_copies];
    c->key = *key;
    c->quantize = key->act ? q_cpu_choose_quantize(key->act, isas) : NULL;
    c->head_bytes = key->act ? (uint64_t)q_act_bytes(key->act, key->k) : (uint64_t)key->k * sizeof(float);
    c->vectors = key->routes >= 0 ? p->routings[key->routes].used : key->heads;
    c->column_bytes = c->head_bytes * (uint64_t)c->vectors;
    return p->n_copies++;
}

static bool runs_step(const q_cpu_stage *t) { return t->makes < 0 && t->routes < 0; }

/* Did a stage made so far leave this copy in the state that a step now wants? */
static bool is_fresh(const q_program *p, const q_cpu_copy_key *key) {
    const q_cpu_way *w = &p->ways[Q_CPU_MANY];
    for (int32_t i = w->n_stages; i-- > 0;) {
        const q_cpu_stage *t = &w->stages[i];
        if (t->makes >= 0 && same_key(&p->copies[t->makes].key, key)) return true;
        if (t->routes >= 0 && t->routes == key->routes) return false;
        if (runs_step(t) && p->plan->insts[t->step].y.slot == key->slot) return false;
    }
    return false;
}

/* A stage for a step, which so far does nothing. */
static q_cpu_stage blank_stage(const q_program *p, int32_t step) {
    return (q_cpu_stage){
        .step = step, .inst = &p->plan->insts[step], .makes = -1, .routes = -1, .reads = -1, .reads2 = -1, .uses = -1};
}

/* The routing that an experts' step with these kernels uses; -1: it is none, or one that the reference runs. */
static int32_t routing_of(q_program *p, const q_inst *s, const q_cpu_kernel *k, const q_cpu_kernel *k2) {
    if (!q_cpu_is_experts(s) || !k || !k->mm || (s->w2 && (!k2 || !k2->mm))) return -1;
    int32_t r = 0;
    const q_cpu_routing key = {s->z, s->n_used, s->w->matrices};
    while (r < p->n_routings && memcmp(&p->routings[r], &key, sizeof key) != 0) r++; /* it is of int32_t alone */
    if (r == p->n_routings) p->routings[p->n_routings++] = key;
    return r;
}

/* Did a stage made so far turn this routing round since the router wrote? */
static bool is_turned(const q_program *p, int32_t routing) {
    const q_cpu_way *w = &p->ways[Q_CPU_MANY];
    for (int32_t i = w->n_stages; i-- > 0;) {
        const q_cpu_stage *t = &w->stages[i];
        if (t->routes == routing) return true;
        if (runs_step(t) && t->inst->y.slot == p->routings[routing].z.slot) return false;
    }
    return false;
}

/* Stages that make what a step reads. */
static void make_inputs(q_program *p, int32_t step, q_isas isas) {
    const q_inst *s = &p->plan->insts[step];
    q_cpu_way *w = &p->ways[Q_CPU_MANY];
    const q_cpu_kernel *const kernels[] = {q_cpu_choose(s, isas, p->plan->f32_activations),
                                           q_cpu_choose2(s, isas, p->plan->f32_activations)};
    const q_weight *const weights[] = {s->w, s->w2};
    const int32_t routes = routing_of(p, s, kernels[0], kernels[1]);
    if (q_cpu_is_experts(s) && routes < 0) return;
    if (routes >= 0 && !is_turned(p, routes)) {
        q_cpu_stage t = blank_stage(p, step);
        t.routes = routes;
        t.columns = t.gathers = t.own = true;
        w->stages[w->n_stages++] = t;
    }
    for (size_t i = 0; i < Q_COUNT(kernels); i++) {
        if (!reads_copy(s, weights[i], kernels[i])) continue;
        const q_cpu_copy_key key = key_of(s, weights[i], kernels[i]->act, routes);
        if (is_fresh(p, &key)) continue;
        q_cpu_stage t = blank_stage(p, step);
        t.makes = add_copy(p, &key, isas);
        t.from = key.slot;
        t.columns = true;
        w->stages[w->n_stages++] = t;
    }
}

/* The stage that runs a step, whose inputs are made. */
static q_cpu_stage make_step(q_program *p, int32_t step, q_isas isas) {
    const q_inst *s = &p->plan->insts[step];
    const bool f32 = p->plan->f32_activations;
    q_cpu_stage t = blank_stage(p, step);
    t.kernel = q_cpu_choose(s, isas, f32);
    t.kernel2 = q_cpu_choose2(s, isas, f32);
    t.columns = q_ops[s->op].unit == Q_UNIT_COLUMN || s->op == Q_OP_KV_PUT;
    t.gathers = s->out && (s->op == Q_OP_NORM || s->op == Q_OP_COPY);
    t.uses = routing_of(p, s, t.kernel, t.kernel2);
    if (q_cpu_is_experts(s) && t.uses < 0) t.kernel = t.kernel2 = NULL;
    t.fn = t.kernel && t.kernel->fn ? t.kernel->fn : q_ops[s->op].ref;
    if (t.kernel && t.kernel->mm && s->op == Q_OP_MOE_GLU) t.fn = q_cpu_choose_after(Q_OP_GLU, isas);
    if (t.kernel && t.kernel->mm && s->op == Q_OP_HEAD) t.fn = q_cpu_choose_after(Q_OP_SCALE, isas);
    if (s->op == Q_OP_MOE_DOWN) t.combine = q_cpu_choose_combine(isas);
    q_cpu_copy_key key;
    if (reads_copy(s, s->w, t.kernel)) key = key_of(s, s->w, t.kernel->act, t.uses), t.reads = find_copy(p, &key);
    if (reads_copy(s, s->w2, t.kernel2)) key = key_of(s, s->w2, t.kernel2->act, t.uses), t.reads2 = find_copy(p, &key);
    const q_inst second = q_cpu_second_of(s);
    const q_cpu_kernel *m = q_cpu_choose_meanwhile(s, t.kernel, isas, f32),
                       *m2 = q_cpu_choose_meanwhile(&second, t.kernel2, isas, f32);
    if (m) t.later = t.kernel, t.kernel = m;
    if (m2) t.later2 = t.kernel2, t.kernel2 = m2;
    p->waits |= m || m2;
    return t;
}

/* Stages of the plan in order. What the steps of a group read is all made before its first step. */
static void make_stages(q_program *p, q_isas isas) {
    const q_plan *plan = p->plan;
    q_cpu_way *w = &p->ways[Q_CPU_MANY];
    for (int32_t i = p->first; i < p->last; i++) {
        const q_inst *s = &plan->insts[i];
        const bool opens = i == p->first || s->group == 0 || plan->insts[i - 1].group != s->group;
        p->first_stage[i - p->first] = w->n_stages;
        for (int32_t m = i; opens && m < p->last && (m == i || (s->group && plan->insts[m].group == s->group)); m++)
            make_inputs(p, m, isas);
        w->stages[w->n_stages++] = make_step(p, i, isas);
    }
    p->first_stage[p->last - p->first] = w->n_stages;
}

/* --------------------------------------------------------------------------------------------------------- memory */

/* Pieces of a block, each Q_ALIGN-aligned; with base NULL only counted. A total that overflows stays at a number that
 * no allocator grants. */
typedef struct carve {
    uint8_t *base;
    uint64_t used;
} carve;
static void *take(carve *c, uint64_t count, uint64_t item) {
    uint64_t bytes;
    const uint64_t at = c->used;
    if (q_mul_overflow(count, item, &bytes) || bytes > UINT64_MAX / 8 || at > UINT64_MAX / 8) {
        c->used = UINT64_MAX / 4;
        return NULL;
    }
    c->used = at + q_round_up(bytes, Q_ALIGN);
    return c->base ? c->base + at : NULL;
}

/* The program and its tables. */
static q_program *lay_out_tables(const q_plan *plan, const q_segment *segment, uint32_t threads, carve *c) {
    q_program *p = take(c, 1, sizeof *p);
    const uint64_t n = (uint64_t)(segment->last - segment->first), slots = (uint64_t)plan->n_slots;
    const uint64_t ways = threads > 1 ? Q_CPU_WAYS : 1, few = ways - 1;
    int32_t *first_stage = take(c, n + 1, sizeof *first_stage);
    const uint64_t most_copies = 2 * n, most_stages = most_copies + 2 * n; /* two weights, a routing, and the step */
    q_cpu_stage *stages = take(c, most_stages * ways, sizeof *stages);
    q_cpu_phase *phases = take(c, most_stages * ways, sizeof *phases); /* each has a stage of its own at least */
    q_cpu_copy *copies = take(c, most_copies, sizeof *copies);
    q_cpu_routing *routings = take(c, n, sizeof *routings);
    float **shared_slots = take(c, slots, sizeof *shared_slots);
    uint8_t **shared = take(c, most_copies, sizeof *shared);
    uint8_t **kv = take(c, (uint64_t)plan->n_kv, sizeof *kv);
    q_cpu_thread *own = take(c, threads, sizeof *own);
    q_inst *insts = take(c, n * few, sizeof *insts);
    int32_t *widths = take(c, 2 * slots * few, sizeof *widths);
    bool *own_slots = take(c, slots * few, sizeof *own_slots);
    float **thread_slots = take(c, 2 * slots * few * threads, sizeof *thread_slots);
    uint8_t **thread_copies = take(c, most_copies * few * threads, sizeof *thread_copies);
    q_cpu_routes *routes = take(c, n * threads, sizeof *routes);
    if (!p) return NULL; /* measured */
    p->plan = plan;
    p->first = segment->first;
    p->last = segment->last;
    p->threads = threads;
    p->state_floats = segment->state_floats;
    p->first_stage = first_stage;
    for (uint64_t i = 0; i < ways; i++) {
        p->ways[i] = (q_cpu_way){.plan = *plan, .stages = stages + i * most_stages, .phases = phases + i * most_stages};
        if (i == Q_CPU_FEW) p->ways[i].plan.slot_width = widths, p->ways[i].plan.n_slots = 2 * plan->n_slots;
    }
    p->few = q_cpu_few_columns(threads, plan->columns);
    p->copies = copies;
    p->routings = routings;
    p->slots = shared_slots;
    p->shared = shared;
    p->kv = kv;
    p->own = own;
    p->insts = insts;
    p->few_widths = widths;
    p->own_slots = own_slots;
    for (uint64_t t = 0; own && t < threads; t++) {
        own[t].routes = routes + t * n;
        if (!few) continue;
        own[t].slots = thread_slots + t * 2 * slots;
        own[t].copies = thread_copies + t * most_copies;
    }
    return p;
}

/* Scratch of one thread for a stage with these kernels. A kernel may hand unusual cases to the reference. */
static uint64_t scratch_with(const q_cpu_stage *t, int32_t columns) {
    const q_inst *s = t->inst;
    const q_cpu_kernel *k = t->kernel;
    if (t->uses >= 0) return q_cpu_experts_scratch(t, columns);
    if (k && k->mm) {
        const uint64_t bias = s->b ? q_round_up((uint64_t)s->w->rows * sizeof(float), Q_ALIGN) : 0;
        return bias + k->mm_scratch(s->w->k, columns);
    }
    return Q_MAX(k ? k->scratch(s, columns) : 0, (uint64_t)q_ref_scratch(s, columns));
}

/* Whether its weights are packed or not, in any order. */
static uint64_t scratch_of(const q_cpu_stage *t, int32_t columns) {
    uint64_t most = 0;
    for (int mode = 0; mode < 4; mode++) {
        q_cpu_stage with = *t;
        if ((mode & 1) && t->later) with.kernel = t->later;
        if ((mode & 2) && t->later2) with.kernel2 = t->later2;
        most = Q_MAX(most, scratch_with(&with, columns));
    }
    return most;
}

/* Scratch, slots and copies of one thread. */
static void lay_out_thread(q_program *p, q_cpu_thread *t, carve *c) {
    const int32_t n = p->plan->n_slots;
    t->scratch = take(c, 1, p->scratch_bytes);
    for (int32_t i = 0; i < p->n_routings; i++) {
        q_ref_carve part = {NULL, 0};
        q_cpu_routes_open(&t->routes[i], &p->routings[i], Q_MAX(p->plan->columns, p->plan->outs), &part);
        part = (q_ref_carve){take(c, 1, part.used), 0};
        if (part.base) q_cpu_routes_open(&t->routes[i], &p->routings[i], Q_MAX(p->plan->columns, p->plan->outs), &part);
    }
    if (!p->few) return;
    for (int32_t i = 1; i < n; i++) {
        t->slots[i] = p->slots[i];
        if (p->own_slots[i])
            t->slots[n + i] = take(c, (uint64_t)p->few * (uint64_t)p->plan->slot_width[i], sizeof(float));
    }
    for (int32_t i = 0; i < p->n_copies; i++) t->copies[i] = take(c, (uint64_t)p->few, p->copies[i].column_bytes);
}

/* What attention by blocks shares; phases use it in turn. */
static void lay_out_attention(q_program *p, carve *c) {
    const q_cpu_way *w = &p->ways[Q_CPU_FEW];
    uint64_t floats = 0, counts = 0;
    for (int32_t i = 0; p->few && i < w->n_phases; i++) {
        if (w->phases[i].kind != Q_CPU_BLOCKS) continue;
        const q_inst *s = w->stages[w->phases[i].to - 1].inst;
        floats = Q_MAX(floats, q_attn_split_floats(s, p->plan, p->few));
        counts = Q_MAX(counts, q_attn_split_counts(s, p->plan, p->few));
    }
    p->attn_parts = take(c, floats, sizeof *p->attn_parts);
    p->attn_done = take(c, counts, sizeof *p->attn_done);
    p->attn_counts = counts;
}

/* Slots, copies and scratch. The tables of p are complete. */
static void lay_out_data(q_program *p, carve *c) {
    const q_plan *plan = p->plan;
    const q_cpu_way *w = &p->ways[Q_CPU_MANY];
    const int32_t columns = Q_MAX(plan->columns, plan->outs);
    for (int32_t i = 1; i < plan->n_slots; i++)
        p->slots[i] = take(c, (uint64_t)columns * (uint64_t)plan->slot_width[i], sizeof(float));
    for (int32_t i = 0; i < p->n_copies; i++) p->shared[i] = take(c, (uint64_t)columns, p->copies[i].column_bytes);
    p->scratch_bytes = 0;
    for (int32_t i = 0; i < w->n_stages; i++) {
        const q_cpu_stage *t = &w->stages[i];
        const uint64_t bytes = t->makes >= 0 ? q_cpu_copy_scratch(&p->copies[t->makes])
                                             : t->routes >= 0 ? 0 : scratch_of(t, columns);
        p->scratch_bytes = Q_MAX(p->scratch_bytes, bytes);
    }
    p->scratch_bytes = q_round_up(p->scratch_bytes, Q_ALIGN);
    lay_out_attention(p, c);
    for (uint32_t i = 0; i < p->threads; i++) lay_out_thread(p, &p->own[i], c);
}

/* A program with its tables filled; what its data will need in *data_bytes. */
static lq_status make_program(const q_device *dev, const q_plan *plan, int32_t segment, uint32_t threads,
                              q_program **out, uint64_t *table_bytes, uint64_t *data_bytes) {
    const q_segment *part = &plan->segments[segment];
    carve c = {NULL, 0};
    lay_out_tables(plan, part, threads, &c);
    *table_bytes = c.used;
    void *block = q_new(dev->alloc, c.used, 1);
    if (!block) return LQ_E_NOMEM;
    c = (carve){block, 0};
    q_program *p = lay_out_tables(plan, part, threads, &c);
    Q_ASSUME(p && p->first_stage && p->ways[Q_CPU_MANY].stages && p->own); /* laid out in a block */
    p->alloc = dev->alloc;
    make_stages(p, dev->isas);
    q_cpu_phases_many(p);
    if (p->few) {
        q_cpu_phases_few(p);
        for (int32_t i = 0; i < plan->n_slots; i++)
            p->few_widths[i] = p->few_widths[plan->n_slots + i] = plan->slot_width[i];
    }
    c = (carve){NULL, 0};
    lay_out_data(p, &c);
    *data_bytes = c.used;
    *out = p;
    return LQ_OK;
}

static lq_status cpu_measure(q_device *dev, const q_plan *plan, int32_t segment, uint32_t threads, q_need *need) {
    q_program *p;
    uint64_t tables, data;
    if (threads == 0) threads = dev->threads;
    Q_TRY(make_program(dev, plan, segment, threads, &p, &tables, &data));
    q_delete(dev->alloc, p);
    /* q_new puts a header before each block */
    const uint64_t placed = q_placed_bytes(&dev->placing, data);
    *need =
        (q_need){.host = tables + Q_ALIGN + placed + q_pool_bytes(threads), .locked = dev->placing.lock ? placed : 0};
    return LQ_OK;
}

static void cpu_release(q_program *p) {
    if (!p) return;
    q_pool_close(p->pool);
    q_delete(p->alloc, p->data);
    q_delete(p->alloc, p);
}

static lq_status cpu_compile(q_device *dev, const q_plan *plan, int32_t segment, const q_buffer *kv,
                             const q_buffer *state, uint32_t threads, q_program **out) {
    q_program *p;
    uint64_t tables, data;
    if (threads == 0) threads = dev->threads;
    Q_TRY(make_program(dev, plan, segment, threads, &p, &tables, &data));
    for (int32_t i = 0; i < plan->n_kv; i++) p->kv[i] = kv[i].host;
    p->state = state ? state->host : NULL;
    lq_status status = LQ_OK;
    p->data = q_new_placed(dev->alloc, &dev->placing, data, true);
    if (!p->data) status = LQ_E_NOMEM;
    if (status == LQ_OK) {
        carve c = {p->data, 0};
        lay_out_data(p, &c);
        status = q_pool_open(dev->alloc, threads, &p->pool);
    }
    if (status != LQ_OK) {
        cpu_release(p);
        return status;
    }
    *out = p;
    return LQ_OK;
}

/* --------------------------------------------------------------------------------------------------------- vtable */

static uint32_t cpu_probe(void) { return 1; }

static lq_status cpu_open(uint32_t index, const q_device_options *options, q_device **out) {
    const q_alloc *alloc = options && options->alloc ? options->alloc : &q_alloc_libc;
    q_isas isas;
    if (index != 0) return q_fail(LQ_E_ARG, "there is one CPU device, number 0, and no number %u", index);
    Q_TRY(q_isa_choose(options ? options->isa : NULL, &isas));
    q_device *dev = Q_NEW(alloc, q_device, 1);
    if (!dev) return LQ_E_NOMEM;
    dev->alloc = alloc;
    dev->log = options ? options->log : NULL;
    dev->isas = isas;
    dev->threads = options && options->threads ? options->threads : q_threads_default();
    if (options && options->placing) dev->placing = *options->placing;
    char names[64];
    q_isa_text(isas, names, sizeof names);
    q_log_write(dev->log, LQ_LOG_DEBUG, "cpu:0 runs %s kernels on %u threads", names, dev->threads);
    *out = dev;
    return LQ_OK;
}

static void cpu_close(q_device *dev) {
    if (dev) q_delete(dev->alloc, dev);
}

static void cpu_info(const q_device *dev, lq_device_info *info) {
    char brand[64];
    q_cpu_brand(brand, sizeof brand);
    info->threads = dev->threads;
    snprintf(info->name, sizeof info->name, "cpu:0");
    q_isa_text(dev->isas, info->isa, sizeof info->isa);
    snprintf(info->description, sizeof info->description, "%.60s, %.31s", brand[0] ? brand : "CPU", info->isa);
    info->memory = q_memory_available();
}

static q_need cpu_held(const q_device *dev) {
    Q_UNUSED(dev);
    return (q_need){0};
}

static uint64_t cpu_alloc_most(const q_device *dev) {
    Q_UNUSED(dev);
    return UINT64_MAX / 4;
}
static uint64_t cpu_alloc_bytes(const q_device *dev, uint64_t bytes) { /* the header of a block alone is not counted */
    return dev->placing.lock || dev->placing.nodes ? q_placed_bytes(&dev->placing, bytes) : bytes;
}

static lq_status cpu_alloc(q_device *dev, uint64_t bytes, q_buffer *out) {
    void *p = q_new_placed(dev->alloc, &dev->placing, bytes, true);
    if (!p) return LQ_E_NOMEM;
    *out = (q_buffer){.host = p, .device = (uint64_t)(uintptr_t)p, .bytes = bytes};
    return LQ_OK;
}

static void cpu_free(q_device *dev, q_buffer *buffer) {
    q_delete(dev->alloc, buffer->host);
    *buffer = (q_buffer){0};
}

static lq_status check_range(const q_buffer *b, uint64_t offset, uint64_t n) {
    if (n <= b->bytes && offset <= b->bytes - n) return LQ_OK;
    return q_fail(LQ_E_INTERNAL, "%llu bytes at %llu lie outside a buffer of %llu bytes", (unsigned long long)n,
                  (unsigned long long)offset, (unsigned long long)b->bytes);
}

static lq_status cpu_write(q_device *dev, q_buffer *dst, uint64_t offset, const void *src, uint64_t n) {
    Q_UNUSED(dev);
    Q_TRY(check_range(dst, offset, n));
    if (n) memcpy((uint8_t *)dst->host + offset, src, (size_t)n);
    return LQ_OK;
}

static lq_status cpu_flush(q_device *dev) { /* write returns when all is there */
    Q_UNUSED(dev);
    return LQ_OK;
}

static lq_status cpu_read(q_device *dev, const q_buffer *src, uint64_t offset, void *dst, uint64_t n) {
    Q_UNUSED(dev);
    Q_TRY(check_range(src, offset, n));
    if (n) memcpy(dst, (const uint8_t *)src->host + offset, (size_t)n);
    return LQ_OK;
}

static lq_status cpu_copy(q_device *dev, q_buffer *dst, uint64_t to, const q_buffer *src, uint64_t from, uint64_t n) {
    Q_UNUSED(dev);
    Q_TRY(check_range(dst, to, n));
    Q_TRY(check_range(src, from, n));
    if (n) memmove((uint8_t *)dst->host + to, (const uint8_t *)src->host + from, (size_t)n);
    return LQ_OK;
}

static uint64_t cpu_pack_bytes(q_device *dev, q_op op, const q_weight *w) {
    const q_cpu_layout *l = q_cpu_layout_for(op, w, dev->isas);
    return l ? q_layout_bytes(l, w) : 0;
}

static void cpu_pack(q_device *dev, q_op op, const q_weight *w, int64_t begin, int64_t end, void *to) {
    const q_cpu_layout *l = q_cpu_layout_for(op, w, dev->isas);
    if (l) q_layout_pack(l, w, begin, end, to);
}

static const char *cpu_supports(const q_device *dev, const q_inst *s) {
    Q_UNUSED(dev);
    return s->op < Q_OP_COUNT ? NULL : "unknown operation";
}

static lq_status cpu_wait(q_program *program) { /* run returns when all is done */
    Q_UNUSED(program);
    return LQ_OK;
}

static void cpu_work(q_program *p, int64_t total, int64_t step,
                     void (*fn)(void *arg, int64_t begin, int64_t end, uint32_t thread), void *arg) {
    q_pool_for(p->pool, total, step, fn, arg);
}

static const q_wide *cpu_wide(const q_device *dev) { return q_cpu_choose_wide(dev->isas); }

static q_traffic cpu_traffic(const q_program *program) { return program->traffic; }

static const char *cpu_kernel_name(const q_program *p, int32_t i) {
    if (i < p->first || i >= p->last) return "";
    const q_cpu_stage *t = &p->ways[Q_CPU_MANY].stages[p->first_stage[i - p->first]];
    while (!runs_step(t)) t++; /* what is made for the step and its group comes first */
    return t->kernel ? t->kernel->name : ref_names[p->plan->insts[i].op];
}

const q_backend q_backend_cpu = {
    .name = "cpu",
    .host_memory = true,
    .probe = cpu_probe,
    .open = cpu_open,
    .close = cpu_close,
    .info = cpu_info,
    .held = cpu_held,
    .alloc_most = cpu_alloc_most,
    .alloc_bytes = cpu_alloc_bytes,
    .alloc = cpu_alloc,
    .free = cpu_free,
    .write = cpu_write,
    .flush = cpu_flush,
    .read = cpu_read,
    .copy = cpu_copy,
    .pack_bytes = cpu_pack_bytes,
    .pack = cpu_pack,
    .supports = cpu_supports,
    .measure = cpu_measure,
    .compile = cpu_compile,
    .release = cpu_release,
    .run = q_cpu_run,
    .wait = cpu_wait,
    .traffic = cpu_traffic,
    .work = cpu_work,
    .wide = cpu_wide,
    .kernel_name = cpu_kernel_name,
};
