/* phases.c: which stages of a compiled plan go together between two barriers, for many columns and for few.
 *
 * For many columns a phase is a chain of stages that treat each column by itself, or the steps of a group. Which
 * columns an expert has is turned round by every thread for itself.
 *
 * For few columns a stage of a chain becomes each thread's own where what it writes is read by nobody but through the
 * view that it wrote, until that is written anew: then a copy in every thread is as good as one for all, and no barrier
 * is needed around it. This is judged by what each stage reads and writes, whatever the architecture. Quantized copies
 * are always each thread's own. What does not fit (a residual, pages) stays shared and keeps its barriers.
 * What threads do for themselves comes first in a phase, and reads nothing that the rest of the phase writes: where it
 * would, the phase is cut in two. KV_PUT and the ATTN behind it need no barrier in between when a thread stores the
 * keys of a block, or of a KV head, and then runs the queries that read it. Layer L2. */
#include "attn.h"
#include "program.h"

bool q_cpu_is_out(const q_inst *s) { return s->out || s->op == Q_OP_HEAD || s->op == Q_OP_SAMPLE; }

/* The way for few saves barriers, which cost more the more threads there are; what threads then do several times costs
 * a microsecond or two per layer and column (bench/SPEED.md). One thread needs none. */
enum { MOST_FEW = 4, THREADS_PER_FEW = 4 };

int32_t q_cpu_few_columns(uint32_t threads, int32_t columns) {
    if (threads < 2) return 0;
    const uint32_t few = Q_MAX(Q_MIN(threads / THREADS_PER_FEW, (uint32_t)MOST_FEW), 1u);
    return Q_MIN((int32_t)few, columns);
}

/* -------------------------------------------------------------------------------------- what is read and written */

/* Values [from, to) of a slot's columns. */
typedef struct extent {
    int32_t slot, from, to;
} extent;

static extent extent_of(const q_view *v) {
    return (extent){v->slot, v->offset, v->offset + (v->heads - 1) * v->stride + v->width};
}
static bool overlap(extent a, extent b) { return a.slot && a.slot == b.slot && a.from < b.to && b.from < a.to; }
static bool within(extent a, extent b) { return a.slot == b.slot && a.from >= b.from && a.to <= b.to; }

enum { READS = 5 };

/* What a stage reads of slots; absent ones have slot 0. */
static void reads_of(const q_program *p, const q_cpu_stage *t, extent out[READS]) {
    const q_inst *s = t->inst;
    memset(out, 0, READS * sizeof *out);
    if (t->makes >= 0) {
        const q_cpu_copy_key *k = &p->copies[t->makes].key;
        out[0] = (extent){t->from, k->offset, k->offset + (k->heads - 1) * k->stride + k->k};
        return;
    }
    if (t->routes >= 0) {
        out[0] = extent_of(&s->z);
        return;
    }
    const q_view *const views[READS] = {&s->x, &s->z, &s->v, &s->u, &s->y};
    for (int i = 0; i < READS; i++)
        if (views[i]->slot && (i < 4 || s->add)) out[i] = extent_of(views[i]);
}

static extent write_of(const q_cpu_stage *t) {
    return t->makes < 0 && t->routes < 0 && t->inst->y.slot ? extent_of(&t->inst->y) : (extent){0, 0, 0};
}

/* Do any of stages [a, b) read what any of [from, to) writes? */
static bool disturbed(const q_program *p, const q_cpu_stage *stages, int32_t a, int32_t b, int32_t from, int32_t to) {
    for (int32_t i = a; i < b; i++) {
        extent reads[READS];
        reads_of(p, &stages[i], reads);
        for (int32_t j = from; j < to; j++)
            for (int r = 0; r < READS; r++)
                if (overlap(reads[r], write_of(&stages[j]))) return true;
    }
    return false;
}

/* ------------------------------------------------------------------------------------------------ many columns */

/* The end of the chain or group that begins at stage `from`. */
static int32_t run_end(const q_cpu_stage *stages, int32_t from, int32_t end) {
    const q_cpu_stage *first = &stages[from];
    int32_t to = from + 1;
    if (first->columns) {
        const bool out = q_cpu_is_out(first->inst);
        while (to < end && stages[to].columns && !stages[to].gathers && q_cpu_is_out(stages[to].inst) == out) to++;
        return to;
    }
    const uint8_t group = first->inst->group;
    while (group && to < end && !stages[to].columns && stages[to].inst->group == group) to++;
    return to;
}

static void add_phase(q_cpu_way *w, int32_t own, int32_t from, int32_t to, q_cpu_kind kind) {
    w->phases[w->n_phases++] = (q_cpu_phase){own, from, to, kind};
}

void q_cpu_phases_many(q_program *p) {
    q_cpu_way *w = &p->ways[Q_CPU_MANY];
    w->n_phases = 0;
    for (int32_t own = 0, to; own < w->n_stages; own = to) {
        int32_t from = own;
        while (w->stages[from].routes >= 0) from++; /* each thread for itself; what uses it follows */
        to = run_end(w->stages, from, w->n_stages);
        const bool attends = to - from == 1 && w->stages[from].kernel && w->stages[from].kernel->attn;
        add_phase(w, own, from, to, w->stages[from].columns ? Q_CPU_CHAIN : attends ? Q_CPU_TILES : Q_CPU_GROUP);
    }
}

/* ------------------------------------------------------------------------------------------------- few columns */

/* A router's matrix that is read by every thread should not have to come from memory for each. */
enum { MOST_ROUTE_BYTES = 256 << 10 };

static bool may_be_own(const q_inst *s) {
    if (s->add || (s->y.heads > 1 && s->y.stride != s->y.width)) return false;
    switch ((q_op)s->op) {
    case Q_OP_NORM:
    case Q_OP_HEADNORM:
    case Q_OP_GLU:
    case Q_OP_ROPE:
    case Q_OP_SCALE:
    case Q_OP_COPY: return true;
    case Q_OP_ROUTE: return s->w->row_bytes * (uint64_t)s->w->rows <= MOST_ROUTE_BYTES;
    default: return false;
    }
}

/* Is what stage i writes read through parts of its view alone, until it is written anew as a whole? What nobody reads
 * in this segment may be read after it. */
static bool is_own(const q_program *p, const q_cpu_way *w, int32_t i) {
    if (w->stages[i].makes >= 0 || w->stages[i].routes >= 0) return true;
    if (!w->stages[i].columns || !may_be_own(w->stages[i].inst)) return false;
    const extent y = write_of(&w->stages[i]);
    bool read = false;
    for (int32_t j = i + 1; j < w->n_stages; j++) {
        const q_cpu_stage *t = &w->stages[j];
        extent reads[READS];
        reads_of(p, t, reads);
        for (int r = 0; r < READS; r++) {
            if (!overlap(reads[r], y)) continue;
            if (!within(reads[r], y) || r == READS - 1) return false; /* the last one is a sum that goes on */
            read = true;
        }
        const extent next = write_of(t);
        if (!overlap(next, y)) continue;
        return read && within(y, next);
    }
    return read && y.slot != 1;
}

/* Does a read of stage i see a thread's own values? */
static bool sees_own(const q_cpu_way *w, int32_t i, extent read) {
    for (int32_t j = i; j-- > 0;)
        if (overlap(write_of(&w->stages[j]), read)) return w->stages[j].own;
    return false;
}

/* A view moves to the thread's own slot when the values that it reads lie there. */
static void rename_read(q_program *p, const q_cpu_way *w, int32_t i, extent read, int32_t *slot) {
    if (*slot && sees_own(w, i, read)) *slot += p->plan->n_slots;
}

/* Own slots come into use once all stages know where they write. Backwards, so that what a stage looks at before it
 * still has the names of the plan. */
static void rename_all(q_program *p, q_cpu_way *w) {
    for (int32_t i = w->n_stages; i-- > 0;) {
        q_cpu_stage *t = &w->stages[i];
        extent reads[READS];
        if (t->routes >= 0) continue; /* it reads what its step reads, whose operands have their new names */
        reads_of(p, t, reads);
        if (t->makes >= 0) {
            rename_read(p, w, i, reads[0], &t->from);
            continue;
        }
        q_inst *s = &p->insts[t->step - p->first];
        int32_t *const slots[] = {&s->x.slot, &s->z.slot, &s->v.slot, &s->u.slot};
        for (size_t r = 0; r < Q_COUNT(slots); r++) rename_read(p, w, i, reads[r], slots[r]);
        if (!t->own) continue;
        p->own_slots[s->y.slot] = true;
        s->y.slot += p->plan->n_slots;
    }
}

/* Stages [a, b) treat columns by themselves; those before `first` and after `last` are threads' own. */
typedef struct chain {
    int32_t a, first, last, b; /* first = b, last = a - 1 where all are */
} chain;

static chain chain_at(const q_cpu_way *w, int32_t a) {
    chain c = {.a = a, .first = a, .b = a};
    while (c.b < w->n_stages && w->stages[c.b].columns) c.b++;
    while (c.first < c.b && w->stages[c.first].own) c.first++;
    c.last = c.b - 1;
    while (c.last >= c.first && w->stages[c.last].own) c.last--;
    if (c.first == c.b) c.last = a - 1;
    return c;
}

/* Threads' own stages, then what they claim; two phases where the one would disturb the other. */
static void add_phases(const q_program *p, q_cpu_way *w, int32_t own, int32_t from, int32_t to, q_cpu_kind kind) {
    if (own < from && disturbed(p, w->stages, own, from, from, to)) {
        add_phase(w, own, from, from, kind);
        own = from;
    }
    add_phase(w, own, from, to, kind);
}

static bool puts_then_attends(const q_program *p, const q_cpu_way *w, const chain *c) {
    if (c->first != c->last || c->last != c->b - 1 || c->b >= w->n_stages) return false;
    const q_cpu_stage *put = &w->stages[c->last], *attn = &w->stages[c->b];
    const q_inst *a = attn->inst, *k = put->inst;
    return k->op == Q_OP_KV_PUT && a->op == Q_OP_ATTN && !a->z.slot && a->kv_group == k->kv_group &&
           a->kv_layer == k->kv_layer && !disturbed(p, w->stages, c->a, c->b, c->b, c->b + 1);
}

static bool by_blocks(const q_cpu_stage *t) { return t->kernel && t->kernel->attn && q_attn_splits(t->inst); }

void q_cpu_phases_few(q_program *p) {
    const q_cpu_way *many = &p->ways[Q_CPU_MANY];
    q_cpu_way *w = &p->ways[Q_CPU_FEW];
    memcpy(w->stages, many->stages, (size_t)many->n_stages * sizeof *w->stages);
    w->n_stages = many->n_stages;
    w->n_phases = 0;
    for (int32_t i = 0; i < w->n_stages; i++) w->stages[i].own = is_own(p, w, i);
    for (int32_t a = 0; a < w->n_stages; a++) { /* between shared stages of a chain all are shared */
        if (!w->stages[a].columns) continue;
        const chain c = chain_at(w, a);
        for (int32_t i = c.first; i <= c.last; i++) w->stages[i].own = false;
        a = c.b;
    }
    for (int32_t i = 0; i < p->last - p->first; i++) p->insts[i] = p->plan->insts[p->first + i];
    for (int32_t i = 0; i < w->n_stages; i++)
        w->stages[i].inst = &p->insts[w->stages[i].step - p->first];
    rename_all(p, w);
    for (int32_t from = 0, to; from < w->n_stages; from = to) {
        const chain c = chain_at(w, from); /* empty where the stage is no column's */
        int32_t own = c.a;
        to = c.b;
        if (puts_then_attends(p, w, &c)) {
            add_phase(w, own, c.first, to + 1, by_blocks(&w->stages[to]) ? Q_CPU_BLOCKS : Q_CPU_HEADS);
            to++;
            continue;
        }
        for (int32_t i = c.first, end; i <= c.last; i = end) {
            end = run_end(w->stages, i, c.last + 1);
            add_phases(p, w, own, i, end, Q_CPU_CHAIN);
            own = end;
        }
        if (to < w->n_stages) to = run_end(w->stages, to, w->n_stages);
        const bool alone = to - c.b == 1 && by_blocks(&w->stages[c.b]);
        if (own < to) add_phases(p, w, own, c.b, to, alone ? Q_CPU_BLOCKS : Q_CPU_GROUP);
    }
}
