/* program.c: runs a compiled plan: one pool run per batch, in which all threads walk the phases together.
 *
 * A phase (phases.c) begins with what each thread does for itself, then its units are claimed: columns of a chain of
 * stages, units of the steps of a group, blocks of attention. What a unit computes never depends on who claims it, nor
 * on how many compute it, which is why the same bits come out for any number of threads. Whoever claims looks first
 * whether the batch is to be cancelled: then nobody claims any more, and all end together at the next barrier.
 * Allocates nothing, takes no lock but the pool's barrier. Layer L2. */
#include "attn.h"
#include "program.h"

#include <fenv.h>

enum {
    CHUNKS = 4,        /* claims that each thread makes of most of a phase: memory is asked anew at each (SPEED.md) */
    TILES = 8,         /* of attention to a prompt, for each thread, at least: they do not shrink towards the end */
    CHAIN_COLUMNS = 16 /* most columns that are taken through a chain at a time: their slots stay in the cache */
};

typedef q_cpu_lane lane;

static int64_t columns_of(const q_batch *b, const q_inst *s) { return q_cpu_is_out(s) ? b->n_out : b->n; }

static int64_t div_up(int64_t a, int64_t b) { return (a + b - 1) / b; }

/* ----------------------------------------------------------------------------------------------------- cancelling */

static bool cancel_seen(const q_batch *b) { return b->cancel && __atomic_load_n(b->cancel, __ATOMIC_RELAXED) != 0; }

/* Nothing needs to be done any more: all threads are between the same two barriers, so whoever sees the request there
 * names the same one, and behind it each of them finds that. */
static bool stops(const lane *l) {
    if (__atomic_load_n(&l->p->stop, __ATOMIC_RELAXED) != Q_CPU_GOES_ON) return true;
    if (!cancel_seen(l->e.batch)) return false;
    __atomic_store_n(&l->p->stop, l->turn, __ATOMIC_RELAXED);
    return true;
}

static bool claim(const lane *l, int64_t total, int64_t step, int64_t *begin, int64_t *end) {
    return !stops(l) && q_pool_claim(l->p->pool, total, step, begin, end);
}

static bool claim_some(const lane *l, int64_t total, int64_t most, int64_t least, int64_t *begin, int64_t *end) {
    return !stops(l) && q_pool_claim_some(l->p->pool, total, most, least, begin, end);
}

/* All threads wait for one another; false = they end here. Who is ahead may have named the next barrier already. */
static bool barrier(lane *l, uint32_t thread) {
    if (thread == 0) l->p->traffic.barriers++;
    q_pool_barrier(l->p->pool);
    return __atomic_load_n(&l->p->stop, __ATOMIC_RELAXED) > l->turn++;
}

/* ------------------------------------------------------------------------------------------------------- products */

void q_cpu_bias(const q_weight *b, int64_t matrix, int64_t r, int64_t rows, float *bias) {
    if (b->format->weights == 1) {
        q_decode_row(b->format, q_ref_row(b, matrix, 0) + r * b->format->bytes, rows, bias);
        return;
    }
    for (int64_t i = 0; i < rows; i++) bias[i] = q_ref_value(b, matrix, r + i);
}

void q_cpu_on_buffers(const lane *l, q_op_fn fn, const q_inst *s, float *const buffers[3], int32_t width, int64_t n) {
    const int32_t widths[3] = {0, width, width};
    q_plan plan = *l->e.plan;
    plan.slot_width = widths;
    plan.n_slots = (int32_t)Q_COUNT(widths);
    q_exec e = l->e;
    e.plan = &plan;
    e.slots = buffers;
    fn(s, &e, 0, n);
}

static void finish_head(const lane *l, const q_cpu_stage *t, const q_mm *m) {
    const q_inst *s = t->inst;
    if (q_ref_or1(s->scale) == 1.0f && s->softcap == 0) return;
    const q_view y = {1, 0, 1, (int32_t)m->rows, (int32_t)m->rows};
    const q_inst scale = {.op = Q_OP_SCALE, .y = y, .x = y, .scale = s->scale, .softcap = s->softcap};
    float *const buffers[] = {NULL, m->y, NULL};
    q_cpu_on_buffers(l, t->fn, &scale, buffers, (int32_t)m->y_stride, m->n);
}

/* Is a copy made in its activation format for so many columns? And is it made at all? Otherwise they are read as they
 * lie. */
static bool is_converted(const q_cpu_copy *c, int64_t columns) { return c->key.act && columns >= c->key.act->from; }
static bool is_made(const q_cpu_copy *c, int64_t columns) {
    return c->key.order || c->key.routes >= 0 || is_converted(c, columns);
}

/* Rows [begin, end) of a product step, head by head. */
static void run_product(const lane *l, const q_cpu_stage *t, int64_t begin, int64_t end) {
    const q_exec *e = &l->e;
    const q_inst *s = t->inst;
    const bool head = s->op == Q_OP_HEAD;
    const int64_t n = columns_of(e->batch, s);
    const q_cpu_copy *copy = t->reads >= 0 && is_made(&l->p->copies[t->reads], n) ? &l->p->copies[t->reads] : NULL;
    const bool packed = t->kernel->layout != NULL;
    q_mm m = {.format = s->w->format,
              .row_bytes = packed ? q_layout_panel_bytes(t->kernel->layout, s->w->k) : s->w->row_bytes,
              .k = s->w->k, .n = n,
              .add = !head && s->add, .scratch = e->scratch};
    if (n == 0) return;
    float *bias = NULL;
    if (s->b) {
        bias = (float *)e->scratch;
        m.scratch = (uint8_t *)e->scratch + q_round_up((uint64_t)s->w->rows * sizeof(float), Q_ALIGN);
        q_cpu_bias(s->b, 0, begin, end - begin, bias);
    }
    const int64_t width = head ? s->w->rows : s->y.width;
    for (int64_t r = begin; r < end; r += m.rows) {
        const int64_t h = r / width, xh = s->x.heads > 1 && !head && s->y.heads > 1 ? h : 0;
        m.rows = Q_MIN(end, (h + 1) * width) - r;
        m.w = packed ? q_layout_panels(s->w) : q_ref_row(s->w, 0, r);
        m.row = s->w->packed_row + r;
        m.bias = bias ? bias + (r - begin) : NULL;
        if (copy) {
            m.x = l->copies[t->reads] + (uint64_t)xh * copy->head_bytes;
            m.x_stride = (int64_t)copy->column_bytes;
        } else {
            m.x = (const uint8_t *)q_ref_at(e, &s->x, 0, xh);
            m.x_stride = (int64_t)sizeof(float) * e->plan->slot_width[s->x.slot];
        }
        m.y = head ? e->batch->logits + r : q_ref_at(e, &s->y, 0, h) + (r - h * width);
        m.y_stride = head ? e->plan->vocab : e->plan->slot_width[s->y.slot];
        t->kernel->mm(&m);
        if (head) finish_head(l, t, &m);
    }
}

/* One vector of a copy. */
static void copy_vector(const lane *l, const q_cpu_copy *c, bool convert, const float *x, uint8_t *to) {
    const q_cpu_copy_key *k = &c->key;
    float *in_order = convert ? (float *)l->e.scratch : (float *)(void *)to;
    if (!convert && !k->order) memcpy(to, x, (size_t)k->k * sizeof(float));
    for (int32_t i = 0; k->order && i < k->k; i++) in_order[i] = x[k->order[i]];
    if (convert) c->quantize(k->order ? in_order : x, k->k, to);
}

static void run_copy(const lane *l, const q_cpu_stage *t, int64_t begin, int64_t end) {
    const q_cpu_copy *c = &l->p->copies[t->makes];
    const q_cpu_copy_key *k = &c->key;
    const float *slot = l->e.slots[t->from];
    const int64_t n = columns_of(l->e.batch, t->inst);
    const bool convert = is_converted(c, n);
    if (!is_made(c, n)) return;
    const int32_t *place = k->routes >= 0 ? l->own->routes[k->routes].place : NULL;
    for (int64_t col = begin; col < end; col++) {
        const uint8_t *first = NULL;
        for (int32_t i = 0; i < c->vectors; i++) {
            const int64_t at = col * c->vectors + i;
            uint8_t *to = l->copies[t->makes] + (uint64_t)(place ? place[at] : at) * c->head_bytes;
            const int64_t h = k->heads > 1 ? i : 0;
            if (h == i)
                copy_vector(l, c, convert, slot + col * l->e.plan->slot_width[t->from] + k->offset + h * k->stride, to);
            else memcpy(to, first, (size_t)c->head_bytes);
            if (i == 0) first = to;
        }
    }
}

static void run_units(const lane *l, const q_cpu_stage *t, int64_t begin, int64_t end) {
    if (t->uses >= 0) q_cpu_run_experts(l, t, begin, end);
    else if (t->kernel && t->kernel->mm) run_product(l, t, begin, end);
    else t->fn(t->inst, &l->e, begin, end);
}

/* Columns [begin, end) of a stage that treats each by itself; KV_PUT has a unit per head in each. */
static void run_columns(const lane *l, const q_cpu_stage *t, int64_t begin, int64_t end) {
    const int64_t units = q_ops[t->inst->op].unit == Q_UNIT_COLUMN ? 1 : t->inst->x.heads;
    if (t->makes >= 0) run_copy(l, t, begin, end);
    else if (t->routes >= 0) q_cpu_route_columns(t->inst, &l->e, end, &l->own->routes[t->routes]); /* always of all */
    else run_units(l, t, begin * units, end * units);
}

/* --------------------------------------------------------------------------------------------------------- phases */

/* What each thread does for itself: all columns, into its own memory. */
static void run_own(const lane *l, const q_cpu_phase *f) {
    for (int32_t i = f->own; i < f->from; i++)
        run_columns(l, &l->stages[i], 0, columns_of(l->e.batch, l->stages[i].inst));
}

static void run_chain(const lane *l, const q_cpu_phase *f) {
    const int64_t n = columns_of(l->e.batch, l->stages[f->from].inst), threads = q_pool_running(l->p->pool);
    const int64_t chunk = Q_MIN(Q_MAX(div_up(n, threads * 2), (int64_t)1), (int64_t)CHAIN_COLUMNS);
    for (int64_t b, end; claim(l, n, chunk, &b, &end);)
        for (int32_t i = f->from; i < f->to; i++) run_columns(l, &l->stages[i], b, end);
}

static int64_t units_of(const lane *l, int32_t stage) {
    const q_cpu_stage *t = &l->stages[stage];
    return t->uses >= 0 ? q_cpu_experts_units(l, t) : q_op_units(t->inst, l->e.batch->n, l->e.batch->n_out);
}

/* The least that a claim of a phase takes: a tile of any of its products. */
static int64_t tile_of(const lane *l, const q_cpu_phase *f) {
    int64_t tile = 1;
    for (int32_t i = f->from; i < f->to; i++) {
        const q_cpu_stage *t = &l->stages[i];
        if (t->kernel && t->kernel->mm) tile = Q_MAX(tile, (int64_t)t->kernel->rows);
        if (t->kernel2) tile = Q_MAX(tile, (int64_t)t->kernel2->rows);
    }
    return tile;
}

/* A claim of most of a phase's units. */
static int64_t chunk_of(const lane *l, int64_t total, int64_t tile) {
    const int64_t chunk = Q_MAX(div_up(total, (int64_t)q_pool_running(l->p->pool) * CHUNKS), (int64_t)1);
    return div_up(chunk, tile) * tile;
}

/* Independent steps: their units one after the other, each step's rounded up to whole tiles. */
static void run_group(const lane *l, const q_cpu_phase *f) {
    const int64_t tile = tile_of(l, f);
    int64_t total = 0;
    for (int32_t i = f->from; i < f->to; i++) total += div_up(units_of(l, i), tile) * tile;
    const int64_t most = chunk_of(l, total, tile);
    for (int64_t b, end; claim_some(l, total, most, tile, &b, &end);) {
        int64_t base = 0;
        for (int32_t i = f->from; i < f->to && base < end; i++) {
            const int64_t units = units_of(l, i), from = Q_MAX(b - base, (int64_t)0), to = Q_MIN(end - base, units);
            if (from < to) run_units(l, &l->stages[i], from, to);
            base += div_up(units, tile) * tile;
        }
    }
}

/* KV_PUT and ATTN by KV head: the keys of all columns, then the queries that read them. */
static void run_heads(const lane *l, const q_cpu_phase *f) {
    const q_cpu_stage *put = &l->stages[f->from], *attn = put + 1;
    const int64_t n = l->e.batch->n, kv = q_attn_kv_heads(attn->inst, l->e.plan), all = attn->inst->x.heads;
    for (int64_t h, end; claim(l, kv, 1, &h, &end);) {
        for (int64_t c = 0; c < n; c++) run_units(l, put, c * kv + h, c * kv + h + 1);
        for (int64_t c = 0; c < n; c++) run_units(l, attn, c * all + h * (all / kv), c * all + (h + 1) * (all / kv));
    }
}

/* ATTN by blocks of keys, whose newest are stored by who reads them. */
static void run_blocks(const lane *l, const q_cpu_phase *f) {
    const q_cpu_stage *attn = &l->stages[f->to - 1], *put = f->to - f->from == 2 ? &l->stages[f->from] : NULL;
    const q_attn_split w = {.parts = l->p->attn_parts, .done = l->p->attn_done, .put = put ? put->inst : NULL,
                            .store = put ? put->fn : NULL};
    const int64_t total = q_attn_split_units(attn->inst, &l->e);
    for (int64_t b, end; claim_some(l, total, chunk_of(l, total, 1), 1, &b, &end);)
        q_attn_split_run(attn->kernel->attn, attn->inst, &l->e, &w, b, end);
}

/* ATTN of many columns. One KV head after the other, so that its keys stay in the caches while columns pass; of causal
 * attention the last columns, which see most, come first, so that what is left at the end is short. */
static void run_tiles(const lane *l, const q_cpu_phase *f) {
    const q_cpu_stage *t = &l->stages[f->from];
    const q_inst *s = t->inst;
    const int64_t n = l->e.batch->n, kv = q_attn_kv_heads(s, l->e.plan), threads = q_pool_running(l->p->pool);
    const int64_t most = q_attn_columns((int32_t)(s->x.heads / kv));
    const int64_t columns = threads > 1 ? Q_MIN(div_up(n * kv, threads * TILES), most) : most,
                  tiles = div_up(n, columns);
    for (int64_t u, end; claim(l, tiles * kv, 1, &u, &end);) {
        const int64_t c = (tiles - 1 - u % tiles) * columns;
        q_attn_head(t->kernel->attn, s, &l->e, c, Q_MIN(c + columns, n), (int32_t)(u / tiles));
    }
}

static void run_phase(const lane *l, const q_cpu_phase *f) {
    run_own(l, f);
    if (f->from == f->to) return;
    switch (f->kind) {
    case Q_CPU_CHAIN: run_chain(l, f); break;
    case Q_CPU_GROUP: run_group(l, f); break;
    case Q_CPU_HEADS: run_heads(l, f); break;
    case Q_CPU_BLOCKS: run_blocks(l, f); break;
    case Q_CPU_TILES: run_tiles(l, f); break;
    }
}

/* Show the inputs of the products in a phase to the batch's tap: on the caller's thread, while the others wait. */
static bool wants_tap(const lane *l, const q_cpu_phase *f) {
    if (!l->e.batch->tap) return false;
    for (int32_t i = f->from; i < f->to; i++)
        if (l->stages[i].makes < 0 && l->stages[i].inst->op == Q_OP_MATMUL) return true;
    return false;
}
static void call_tap(const lane *l, const q_cpu_phase *f) {
    const q_batch *b = l->e.batch;
    for (int32_t i = f->from; i < f->to; i++) {
        const q_inst *s = l->stages[i].inst;
        if (l->stages[i].makes >= 0 || s->op != Q_OP_MATMUL) continue;
        b->tap(b->tap_user, s, l->e.slots[s->x.slot] + s->x.offset, (int32_t)columns_of(b, s),
               l->e.plan->slot_width[s->x.slot]);
    }
}

/* One thread's way through the phases. Every thread takes the same turns: what they depend on is the same for all. */
static void walk(uint32_t thread, lane *l) {
    const q_cpu_way *w = l->p->way;
    for (int32_t i = 0; i < w->n_phases; i++) {
        const q_cpu_phase *f = &w->phases[i];
        if (wants_tap(l, f)) {
            if (thread == 0) call_tap(l, f);
            (void)stops(l);
            if (!barrier(l, thread)) return;
        }
        run_phase(l, f);
        if (i + 1 == w->n_phases || !barrier(l, thread)) return;
    }
}

static void run_thread(void *arg, uint32_t thread) {
    q_program *p = (q_program *)arg;
    const q_cpu_thread *own = &p->own[thread];
    const bool few = p->way == &p->ways[Q_CPU_FEW];
    lane l = {.p = p, .stages = p->way->stages, .own = own, .copies = few ? own->copies : p->shared,
                    .e = {.plan = &p->way->plan, .batch = p->batch, .slots = few ? own->slots : p->slots, .kv = p->kv,
                          .act = NULL, .state = p->state, .state_floats = p->state_floats, .scratch = own->scratch,
                          .scratch_bytes = (size_t)p->scratch_bytes}};
    /* The embedder's thread may round otherwise or flush subnormal numbers, which scales often are. */
    fenv_t before;
    fegetenv(&before);
    fesetenv(FE_DFL_ENV);
    walk(thread, &l);
    fesetenv(&before);
}

/* Rows of slot 1 come in or go out. */
static void border(q_program *p, const q_batch *b, float *slot, const float *from, float *to) {
    const uint64_t bytes = (uint64_t)b->n * (uint64_t)p->plan->slot_width[1] * sizeof(float);
    const double begin = q_clock();
    memcpy(from ? slot : to, from ? from : slot, (size_t)bytes);
    p->traffic.border_seconds += q_clock() - begin;
    p->traffic.border_bytes += bytes;
    p->traffic.bytes += bytes;
}

/* Kernels for packed weights take over as soon as those are there. */
static void take_packed(q_program *p) {
    p->waits = false;
    for (int i = 0; i < Q_CPU_WAYS; i++) {
        for (int32_t j = 0; j < p->ways[i].n_stages; j++) {
            q_cpu_stage *t = &p->ways[i].stages[j];
            if (t->later && q_weight_ready(t->inst->w)) t->kernel = t->later, t->later = NULL;
            if (t->later2 && q_weight_ready(t->inst->w2)) t->kernel2 = t->later2, t->later2 = NULL;
            p->waits |= t->later || t->later2;
        }
    }
}

lq_status q_cpu_run(q_program *p, const q_batch *batch) {
    const q_plan *plan = p->plan;
    if (batch->n < 1 || batch->n > plan->columns || batch->n_out < 0 || batch->n_out > plan->outs)
        return q_fail(LQ_E_INTERNAL, "a batch of %d columns, %d wanted, for a plan of %d and %d", batch->n,
                      batch->n_out, plan->columns, plan->outs);
    if (batch->n_seqs < 1 || batch->n_seqs > plan->seqs)
        return q_fail(LQ_E_INTERNAL, "a batch of %d sequences for a plan of %d", batch->n_seqs, plan->seqs);
    if (!batch->x && (!batch->ids || p->first > 0))
        return q_fail(LQ_E_INTERNAL, "a batch for the steps from %d on brings no hidden rows", p->first);
    if (cancel_seen(batch)) return q_fail(LQ_E_CANCELLED, "cancelled before the first layer");
    if (p->waits) take_packed(p);
    p->batch = batch;
    p->stop = Q_CPU_GOES_ON;
    /* A tap sees the inputs of products, which must then lie where all threads have them. */
    const uint32_t threads = batch->threads ? Q_MIN(batch->threads, p->threads) : p->threads;
    p->way = &p->ways[batch->n <= q_cpu_few_columns(threads, p->few) && !batch->tap ? Q_CPU_FEW : Q_CPU_MANY];
    if (batch->x) border(p, batch, p->slots[1], batch->x, NULL);
    q_pool_run_on(p->pool, threads, run_thread, p);
    p->batch = NULL;
    if (p->stop != Q_CPU_GOES_ON) { /* attention may have counted blocks of a head whose last nobody took */
        memset(p->attn_done, 0, (size_t)p->attn_counts * sizeof *p->attn_done);
        return q_fail(LQ_E_CANCELLED, "cancelled: the pass was not finished");
    }
    if (batch->y) border(p, batch, p->slots[1], NULL, batch->y);
    return LQ_OK;
}
