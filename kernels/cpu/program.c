/* program.c: runs a compiled plan: one pool run per batch, in which all threads walk the stages together.
 *
 * Stages that need no barrier between them form a phase: a chain of stages that treat each column by itself (a thread
 * takes some columns through the whole chain), or the steps of a group (their units are claimed as one range). What a
 * unit computes never depends on who claims it, which is why the same bits come out for any number of threads.
 * Allocates nothing, takes no lock but the pool's barrier. Layer L2. */
#include "program.h"

#include <fenv.h>

enum {
    CHUNKS = 8,        /* claims that each thread makes of a phase, about: fewer wait less, more balance better */
    CHAIN_COLUMNS = 16 /* most columns that are taken through a chain at a time: their slots stay in the cache */
};

static const q_inst *step_of(const q_program *p, int32_t stage) { return &p->plan->insts[p->stages[stage].step]; }

static bool is_out(const q_inst *s) { return s->out || s->op == Q_OP_HEAD || s->op == Q_OP_SAMPLE; }

static int64_t columns_of(const q_program *p, const q_inst *s) { return is_out(s) ? p->batch->n_out : p->batch->n; }

/* The end of the phase that begins at stage `from`. */
static int32_t phase_end(const q_program *p, int32_t from, int32_t end) {
    const q_cpu_stage *first = &p->stages[from];
    int32_t to = from + 1;
    if (first->columns) {
        const bool out = is_out(step_of(p, from));
        while (to < end && p->stages[to].columns && !p->stages[to].gathers && is_out(step_of(p, to)) == out) to++;
        return to;
    }
    const uint8_t group = step_of(p, from)->group;
    while (group && to < end && !p->stages[to].columns && step_of(p, to)->group == group) to++;
    return to;
}

static int64_t div_up(int64_t a, int64_t b) { return (a + b - 1) / b; }

/* ------------------------------------------------------------------------------------------------------- products */

static void finish_head(const q_inst *s, const q_mm *m) {
    const float scale = q_ref_or1(s->scale);
    if (scale == 1.0f && s->softcap == 0) return;
    for (int64_t c = 0; c < m->n; c++)
        for (int64_t r = 0; r < m->rows; r++) {
            float *y = m->y + c * m->y_stride + r;
            *y = q_ref_softcap(scale * *y, s->softcap);
        }
}

/* Rows [begin, end) of a product step, head by head. */
static void run_product(const q_program *p, const q_cpu_stage *t, const q_exec *e, int64_t begin, int64_t end) {
    const q_inst *s = &p->plan->insts[t->step];
    const bool head = s->op == Q_OP_HEAD;
    const q_cpu_copy *copy = t->reads >= 0 ? &p->copies[t->reads] : NULL;
    q_mm m = {.format = s->w->format, .row_bytes = s->w->row_bytes, .k = s->w->k, .n = columns_of(p, s),
              .add = !head && s->add, .scratch = e->scratch};
    if (m.n == 0) return;
    float *bias = NULL;
    if (s->b) {
        bias = (float *)e->scratch;
        m.scratch = (uint8_t *)e->scratch + q_round_up((uint64_t)s->w->rows * sizeof(float), Q_ALIGN);
        for (int64_t r = begin; r < end; r++) bias[r - begin] = q_ref_bias(s->b, 0, r);
    }
    const int64_t width = head ? s->w->rows : s->y.width;
    for (int64_t r = begin; r < end; r += m.rows) {
        const int64_t h = r / width, xh = s->x.heads > 1 && !head && s->y.heads > 1 ? h : 0;
        m.rows = Q_MIN(end, (h + 1) * width) - r;
        m.w = q_ref_row(s->w, 0, r);
        m.bias = bias ? bias + (r - begin) : NULL;
        if (copy) {
            m.x = copy->data + (uint64_t)xh * copy->head_bytes;
            m.x_stride = (int64_t)copy->column_bytes;
        } else {
            m.x = (const uint8_t *)q_ref_at(e, &s->x, 0, xh);
            m.x_stride = (int64_t)sizeof(float) * p->plan->slot_width[s->x.slot];
        }
        m.y = head ? p->batch->logits + r : q_ref_at(e, &s->y, 0, h) + (r - h * width);
        m.y_stride = head ? p->plan->vocab : p->plan->slot_width[s->y.slot];
        t->kernel->mm(&m);
        if (head) finish_head(s, &m);
    }
}

static void run_copy(const q_program *p, const q_cpu_copy *c, int64_t begin, int64_t end) {
    for (int64_t col = begin; col < end; col++)
        for (int32_t h = 0; h < c->key.heads; h++)
            c->quantize(p->slots[c->key.slot] + col * p->plan->slot_width[c->key.slot] + c->key.offset +
                            (int64_t)h * c->key.stride,
                        c->key.k, c->data + (uint64_t)col * c->column_bytes + (uint64_t)h * c->head_bytes);
}

static void run_stage(const q_program *p, const q_cpu_stage *t, const q_exec *e, int64_t begin, int64_t end) {
    if (t->makes >= 0) run_copy(p, &p->copies[t->makes], begin, end);
    else if (t->kernel && t->kernel->mm) run_product(p, t, e, begin, end);
    else t->fn(&p->plan->insts[t->step], e, begin, end);
}

/* --------------------------------------------------------------------------------------------------------- phases */

static void run_chain(const q_program *p, int32_t from, int32_t to, const q_exec *e) {
    const int64_t n = columns_of(p, step_of(p, from)), threads = q_pool_threads(p->pool);
    const int64_t chunk = Q_MIN(Q_MAX(div_up(n, threads * 2), (int64_t)1), (int64_t)CHAIN_COLUMNS);
    for (int64_t b, end; q_pool_claim(p->pool, n, chunk, &b, &end);)
        for (int32_t i = from; i < to; i++) run_stage(p, &p->stages[i], e, b, end);
}

static int64_t units_of(const q_program *p, int32_t stage) {
    return q_op_units(step_of(p, stage), p->batch->n, p->batch->n_out);
}

/* Units that a claim takes: a multiple of the tiles of products; whole columns of attention, which share what they
 * read, unless there are too few, and then the query heads of a KV head. */
static int64_t chunk_of(const q_program *p, int32_t from, int32_t to) {
    const int64_t threads = q_pool_threads(p->pool);
    int64_t total = 0, tile = 1;
    for (int32_t i = from; i < to; i++) {
        const q_cpu_stage *t = &p->stages[i];
        const q_inst *s = step_of(p, i);
        const int64_t columns = columns_of(p, s);
        total += units_of(p, i);
        if (t->kernel && t->kernel->mm) tile = Q_MAX(tile, (int64_t)t->kernel->rows);
        if (s->op != Q_OP_ATTN) continue;
        const int32_t kv = s->z.slot ? s->z.heads : p->plan->kv[s->kv_group].heads;
        if (columns >= threads * 16) tile = (int64_t)s->x.heads * 8;
        else if (columns >= threads * 4) tile = s->x.heads;
        else tile = Q_MAX(s->x.heads / Q_MAX(kv, 1), 1);
    }
    const int64_t chunk = Q_MAX(div_up(total, threads * CHUNKS), (int64_t)1);
    return div_up(chunk, tile) * tile;
}

/* Independent steps: their units one after the other, each step's rounded up to whole chunks. */
static void run_group(const q_program *p, int32_t from, int32_t to, const q_exec *e) {
    const int64_t chunk = chunk_of(p, from, to);
    int64_t total = 0;
    for (int32_t i = from; i < to; i++) total += div_up(units_of(p, i), chunk) * chunk;
    for (int64_t b, end; q_pool_claim(p->pool, total, chunk, &b, &end);) {
        int64_t base = 0;
        for (int32_t i = from; i < to; i++) {
            const int64_t units = units_of(p, i), padded = div_up(units, chunk) * chunk;
            if (b < base + padded) {
                run_stage(p, &p->stages[i], e, b - base, Q_MIN(end - base, units));
                break;
            }
            base += padded;
        }
    }
}

/* Show the inputs of the products in a phase to the batch's tap: on the caller's thread, while the others wait. */
static bool wants_tap(const q_program *p, int32_t from, int32_t to) {
    if (!p->batch->tap) return false;
    for (int32_t i = from; i < to; i++)
        if (p->stages[i].makes < 0 && step_of(p, i)->op == Q_OP_MATMUL) return true;
    return false;
}
static void call_tap(const q_program *p, int32_t from, int32_t to) {
    for (int32_t i = from; i < to; i++) {
        const q_inst *s = step_of(p, i);
        if (p->stages[i].makes >= 0 || s->op != Q_OP_MATMUL) continue;
        p->batch->tap(p->batch->tap_user, s, p->slots[s->x.slot] + s->x.offset, (int32_t)columns_of(p, s),
                      p->plan->slot_width[s->x.slot]);
    }
}

static bool cancel_seen(const q_batch *b) { return b->cancel && __atomic_load_n(b->cancel, __ATOMIC_RELAXED) != 0; }

/* One thread's way through stages [first, last). Every thread takes the same turns: what they depend on is the same for
 * all, and a cancellation is what thread 0 saw before the barrier at a layer's end. Two cells take turns for it,
 * because a fast thread 0 may reach the next layer's end while another still reads this one's. */
static void walk(q_program *p, uint32_t thread, const q_exec *e) {
    const int32_t end = p->n_stages;
    uint32_t polls = 0;
    for (int32_t from = 0, to; from < end; from = to) {
        to = phase_end(p, from, end);
        if (wants_tap(p, from, to)) {
            if (thread == 0) call_tap(p, from, to);
            q_pool_barrier(p->pool);
        }
        if (p->stages[from].columns) run_chain(p, from, to, e);
        else run_group(p, from, to, e);
        if (to == end) break;
        const bool poll = p->batch->cancel && step_of(p, to)->layer != step_of(p, to - 1)->layer;
        if (poll && thread == 0) p->stop[polls & 1] = cancel_seen(p->batch);
        q_pool_barrier(p->pool);
        if (poll && p->stop[polls++ & 1]) {
            if (thread == 0) p->cancelled = true;
            return;
        }
    }
}

static void run_thread(void *arg, uint32_t thread) {
    q_program *p = (q_program *)arg;
    const q_exec e = {.plan = p->plan, .batch = p->batch, .slots = p->slots, .kv = p->kv, .act = NULL,
                      .state = p->state, .state_floats = p->state_floats,
                      .scratch = p->scratch + thread * p->scratch_bytes, .scratch_bytes = (size_t)p->scratch_bytes};
    /* The embedder's thread may round otherwise or flush subnormal numbers, which scales often are. */
    fenv_t before;
    fegetenv(&before);
    fesetenv(FE_DFL_ENV);
    walk(p, thread, &e);
    fesetenv(&before);
}

/* Rows of slot 1 come in or go out. */
static void border(q_program *p, float *slot, const float *from, float *to) {
    const uint64_t bytes = (uint64_t)p->batch->n * (uint64_t)p->plan->slot_width[1] * sizeof(float);
    const double begin = q_clock();
    memcpy(from ? slot : to, from ? from : slot, (size_t)bytes);
    p->traffic.border_seconds += q_clock() - begin;
    p->traffic.border_bytes += bytes;
    p->traffic.bytes += bytes;
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
    p->batch = batch;
    p->cancelled = false;
    if (batch->x) border(p, p->slots[1], batch->x, NULL);
    q_pool_run(p->pool, run_thread, p);
    if (batch->y && !p->cancelled) border(p, p->slots[1], NULL, batch->y);
    p->batch = NULL;
    return p->cancelled ? q_fail(LQ_E_CANCELLED, "cancelled between two layers") : LQ_OK;
}
