/* stream.c: the stages of a model over many samples. See stream.h.
 *
 * A backend passes slot 1 alone between two programs. So the steps of the model's own plan are given another layout:
 * every slot becomes a part of slot 1, and what lives on behind a stage can be carried to the next. Of it only the
 * slots that are read again before they are written are kept per sample. Layer L3. */
#include "stream.h"

typedef struct stage {
    q_stage about;
    int32_t first, last; /* steps */
    uint64_t *live;      /* a bit per slot: what is carried into the stage */
    int32_t width;       /* floats per column of that */
} stage;

struct q_stream {
    lq_model *model;
    q_stream_options o;
    q_arena arena;
    q_plan *plan;        /* the model's own */
    q_inst *insts;       /* [plan->n_insts] in the layout of one slot */
    q_weight *weights;   /* [plan->n_insts] what w of products and of the embedding is */
    uint32_t *items;     /* [plan->n_insts] whose rows they are */
    int64_t *rows;       /* [plan->n_insts] the first of them */
    int32_t *offsets;    /* [n_slots] where a slot lies in slot 1 */
    int32_t total;       /* its width */
    stage *stages;       /* [n_stages + 1]: the last one is the end */
    uint32_t n_stages, at;
    int32_t widest;      /* floats per column that are carried, at most */
    float *memory;       /* [samples][window * widest], or: */
    q_scratch *file;
    float *carried;      /* [window][widest] one sample, where they lie in a file */
    float *wide;         /* [window][total] one sample on its way */
    int32_t *pos, *seq;
    uint32_t *pages;
};

/* ------------------------------------------------------------------------------------------------ stages */

static bool same_view(const q_view *a, const q_view *b) {
    return a->slot == b->slot && a->offset == b->offset && a->heads == b->heads && a->width == b->width &&
           a->stride == b->stride;
}

static bool has(const uint64_t *set, int32_t slot) { return slot && (set[slot / 64] >> (slot % 64) & 1); }
static void add(uint64_t *set, int32_t slot) { if (slot) set[slot / 64] |= (uint64_t)1 << (slot % 64); }

/* Slots that steps [from, end) of a layer read before they write all of them. */
static lq_status find_live(q_stream *s, stage *t, int32_t end) {
    const uint64_t words = ((uint64_t)s->plan->n_slots + 63) / 64;
    t->live = (uint64_t *)q_arena_new(&s->arena, words, sizeof *t->live);
    uint64_t *written = (uint64_t *)q_arena_new(&s->arena, words, sizeof *written);
    if (!t->live || !written) return LQ_E_NOMEM;
    for (int32_t i = t->first; i < end; i++) {
        const q_inst *p = &s->plan->insts[i];
        const int32_t reads[] = {p->x.slot, p->z.slot, p->v.slot, p->u.slot, p->add ? p->y.slot : 0};
        for (size_t r = 0; r < Q_COUNT(reads); r++)
            if (!has(written, reads[r])) add(t->live, reads[r]);
        if (p->y.slot && p->y.offset == 0 && p->y.heads * p->y.width == s->plan->slot_width[p->y.slot])
            add(written, p->y.slot);
    }
    if (!has(written, 1)) add(t->live, 1); /* what passes from layer to layer */
    for (int32_t slot = 1; slot < s->plan->n_slots; slot++)
        if (has(t->live, slot)) t->width += s->plan->slot_width[slot];
    s->widest = Q_MAX(s->widest, t->width);
    return LQ_OK;
}

static lq_status refuse(const q_inst *p) {
    return q_fail(LQ_E_UNSUPPORTED,
                  "layer %d has a step %s, whose inputs a calibration layer by layer cannot keep apart", p->layer,
                  q_ops[p->op].name);
}

static lq_status check_step(const q_inst *p) {
    if (p->op == Q_OP_MOE_GLU || p->op == Q_OP_MOE_DOWN || p->op == Q_OP_CONV || p->op == Q_OP_SCAN) return refuse(p);
    if (p->op == Q_OP_MATMUL && (p->w->matrices != 1 || p->x.heads != 1)) return refuse(p);
    return LQ_OK;
}

static lq_status find_stages(q_stream *s) {
    const q_plan *p = s->plan;
    s->stages = (stage *)q_arena_new(&s->arena, (uint64_t)p->n_insts + 1, sizeof *s->stages);
    if (!s->stages) return LQ_E_NOMEM;
    int32_t i = 0, end;
    bool stored = false; /* keys, by this stage */
    for (; i < p->n_insts && p->insts[i].layer < p->n_layers; i = end) {
        const q_inst *first = &p->insts[i];
        end = i + 1;
        Q_TRY(check_step(first));
        if (first->op == Q_OP_KV_PUT) stored = true;
        if (first->op == Q_OP_ATTN && !first->z.slot && !stored) return refuse(first);
        if (first->op != Q_OP_MATMUL) continue;
        while (end < p->n_insts && p->insts[end].op == Q_OP_MATMUL && same_view(&p->insts[end].x, &first->x)) {
            Q_TRY(check_step(&p->insts[end]));
            end++;
        }
        stored = false;
        s->stages[s->n_stages++] = (stage){.about = {first->layer, s->insts + i, end - i, first->w->k}, .first = i};
    }
    if (s->n_stages == 0) return q_fail(LQ_E_UNSUPPORTED, "the model has no products to measure");
    s->stages[s->n_stages].first = i;
    for (uint32_t t = 0; t <= s->n_stages; t++) { /* behind the last one slot 1 is left */
        stage *g = &s->stages[t];
        int32_t stop = g->first;
        if (t < s->n_stages) g->last = s->stages[t + 1].first;
        while (stop < i && p->insts[stop].layer == g->about.layer) stop++;
        Q_TRY(find_live(s, g, stop));
    }
    return LQ_OK;
}

/* ------------------------------------------------------------------------------------------- the layout of one slot */

static void move(const q_stream *s, q_view *v) {
    if (!v->slot) return;
    v->offset += s->offsets[v->slot];
    v->slot = 1;
}

/* The item that a weight or a range of its rows belongs to. */
static lq_status own_weight(q_stream *s, int32_t i, q_inst *p) {
    const lq_model *m = s->model;
    if ((p->op != Q_OP_MATMUL && p->op != Q_OP_EMBED) || !p->w) return LQ_OK;
    uint32_t item = 0;
    while (item < m->binding->n_items && m->weights[item].name != p->w->name) item++;
    if (item == m->binding->n_items) return q_fail(LQ_E_INTERNAL, "'%s' is no tensor of the model", p->w->name);
    s->items[i] = item;
    s->rows[i] = (int64_t)((uint64_t)(p->w->data - m->weights[item].data) / p->w->row_bytes);
    s->weights[i] = *p->w;
    s->weights[i].packed = NULL;
    s->weights[i].packed_ready = NULL;
    p->w = &s->weights[i];
    return LQ_OK;
}

static lq_status lay_out(q_stream *s) {
    const q_plan *p = s->plan;
    const uint64_t n = (uint64_t)p->n_insts;
    s->insts = (q_inst *)q_arena_new(&s->arena, n, sizeof *s->insts);
    s->weights = (q_weight *)q_arena_new(&s->arena, n, sizeof *s->weights);
    s->items = (uint32_t *)q_arena_new(&s->arena, n, sizeof *s->items);
    s->rows = (int64_t *)q_arena_new(&s->arena, n, sizeof *s->rows);
    s->offsets = (int32_t *)q_arena_new(&s->arena, (uint64_t)p->n_slots, sizeof *s->offsets);
    if (!s->insts || !s->weights || !s->items || !s->rows || !s->offsets) return LQ_E_NOMEM;
    for (int32_t i = 1; i < p->n_slots; i++) {
        s->offsets[i] = s->total;
        s->total += (int32_t)q_round_up((uint64_t)p->slot_width[i], 16);
    }
    for (int32_t i = 0; i < p->n_insts; i++) {
        q_inst *t = &s->insts[i];
        *t = p->insts[i];
        q_view *const views[] = {&t->y, &t->x, &t->z, &t->v, &t->u};
        for (size_t v = 0; v < Q_COUNT(views); v++) move(s, views[v]);
        t->kv_layer = 0; /* pages are those of one layer */
        Q_TRY(own_weight(s, i, t));
    }
    return LQ_OK;
}

/* ------------------------------------------------------------------------------------------------ opening */

static uint64_t sample_floats(const q_stream *s) { return (uint64_t)s->o.window * (uint64_t)s->widest; }
static uint64_t wide_floats(const q_stream *s) { return (uint64_t)s->o.window * (uint64_t)s->total; }
static uint64_t room_bytes(const q_stream *s, bool spool) {
    const uint64_t floats = sample_floats(s) * (spool ? 1 : s->o.samples);
    return q_new_bytes(floats * sizeof(float)) + q_new_bytes(wide_floats(s) * sizeof(float));
}

static lq_status make_tables(q_stream *s) {
    const uint64_t window = s->o.window, pages = (window + Q_KV_TOKENS - 1) / Q_KV_TOKENS;
    s->pos = (int32_t *)q_arena_new(&s->arena, window, sizeof *s->pos);
    s->seq = (int32_t *)q_arena_new(&s->arena, window, sizeof *s->seq);
    s->pages = (uint32_t *)q_arena_new(&s->arena, pages, sizeof *s->pages);
    if (!s->pos || !s->seq || !s->pages) return LQ_E_NOMEM;
    for (uint32_t i = 0; i < window; i++) s->pos[i] = (int32_t)i;
    for (uint32_t i = 0; i < pages; i++) s->pages[i] = i;
    return LQ_OK;
}

lq_status q_stream_room(q_stream *s, const char *spool) {
    const uint64_t sample = sample_floats(s);
    if (spool) Q_TRY(q_scratch_open(s->model->alloc, spool, s->o.samples * sample * sizeof(float), &s->file));
    Q_TRY(q_memory_check("what the samples carry from stage to stage", room_bytes(s, spool != NULL), 0));
    if (spool) s->carried = (float *)q_new_raw(s->model->alloc, sample, sizeof *s->carried);
    else s->memory = (float *)q_new_raw(s->model->alloc, sample * s->o.samples, sizeof *s->memory);
    s->wide = (float *)q_new(s->model->alloc, wide_floats(s), sizeof *s->wide);
    return (s->carried || s->memory) && s->wide ? LQ_OK : LQ_E_NOMEM;
}

static lq_status open_parts(q_stream *s) {
    const q_kv_kind *exact = q_kv_kind_find("f32");
    const q_session_shape shape = {.context = s->o.window, .batch = s->o.window, .max_logits = 1, .seqs = 1,
                                   .threads = s->o.threads, .threads_prefill = s->o.threads, .f32_activations = true,
                                   .kv_k = exact, .kv_v = exact, .rope = s->model->binding->rope};
    if (s->model->n_places > 1)
        return q_fail(LQ_E_UNSUPPORTED, "a model on %s cannot be calibrated: open it without a device",
                      s->model->places[1].name);
    Q_TRY(q_plan_build(s->model, &shape, &s->arena, &s->plan));
    Q_TRY(lay_out(s));
    Q_TRY(find_stages(s));
    return make_tables(s);
}

lq_status q_stream_open(lq_model *m, const q_stream_options *options, q_stream **out) {
    q_stream *s = Q_NEW(m->alloc, q_stream, 1);
    if (!s) return LQ_E_NOMEM;
    s->model = m;
    s->o = *options;
    s->arena.alloc = m->alloc;
    const lq_status status = open_parts(s);
    if (status != LQ_OK) {
        q_stream_close(s);
        return status;
    }
    *out = s;
    return LQ_OK;
}

void q_stream_close(q_stream *s) {
    if (!s) return;
    const q_alloc *a = s->model->alloc;
    q_delete(a, s->memory);
    q_delete(a, s->carried);
    q_delete(a, s->wide);
    q_scratch_close(s->file);
    q_arena_free(&s->arena);
    q_delete(a, s);
}

uint32_t q_stream_stages(const q_stream *s) { return s->n_stages; }
uint32_t q_stream_at(const q_stream *s) { return s->at; }
const q_stage *q_stream_stage(const q_stream *s, uint32_t i) { return &s->stages[i].about; }
uint32_t q_stream_item(const q_stream *s, const q_inst *product) { return s->items[product - s->insts]; }
uint64_t q_stream_bytes(const q_stream *s, bool spool) {
    return q_new_bytes(sizeof *s) + q_arena_bytes(&s->arena) + room_bytes(s, spool);
}

/* ------------------------------------------------------------------------------------------------ what is carried */

/* A sample's rows where they can be read, or will be written. */
static lq_status fetch(q_stream *s, uint32_t sample, uint64_t floats, float **out) {
    *out = s->memory ? s->memory + sample * sample_floats(s) : s->carried;
    if (s->memory || floats == 0) return LQ_OK;
    return q_scratch_read(s->file, sample * sample_floats(s) * sizeof(float), s->carried, floats * sizeof(float));
}
static lq_status put_back(q_stream *s, uint32_t sample, uint64_t floats) {
    if (s->memory) return LQ_OK;
    return q_scratch_write(s->file, sample * sample_floats(s) * sizeof(float), s->carried, floats * sizeof(float));
}

/* Between the columns of `wide` and rows of the slots that enter a stage. */
static void copy_rows(q_stream *s, const stage *t, float *rows, bool in) {
    const q_plan *p = s->plan;
    for (uint32_t c = 0; c < s->o.window; c++)
        for (int32_t slot = 1; slot < p->n_slots; slot++) {
            float *wide = s->wide + (uint64_t)c * (uint64_t)s->total + s->offsets[slot];
            const size_t n = (size_t)p->slot_width[slot];
            if (!has(t->live, slot)) continue;
            memcpy(in ? wide : rows, in ? rows : wide, n * sizeof *rows);
            rows += n;
        }
}

uint64_t q_stream_floats(const q_stream *s, uint32_t number) {
    return (uint64_t)s->o.window * (uint64_t)s->stages[number].width;
}

lq_status q_stream_save(q_stream *s, uint32_t sample, float *rows) {
    float *x;
    const uint64_t n = q_stream_floats(s, s->at);
    Q_TRY(fetch(s, sample, n, &x));
    memcpy(rows, x, (size_t)n * sizeof *rows);
    return LQ_OK;
}

lq_status q_stream_restore(q_stream *s, uint32_t number, uint32_t sample, const float *rows) {
    float *x;
    const uint64_t n = q_stream_floats(s, number);
    Q_TRY(fetch(s, sample, 0, &x));
    memcpy(x, rows, (size_t)n * sizeof *rows);
    return put_back(s, sample, n);
}

void q_stream_begin_at(q_stream *s, uint32_t number) { s->at = number; }

lq_status q_stream_input(q_stream *s, uint32_t sample, const float **x, int64_t *stride) {
    const stage *t = &s->stages[s->at];
    const q_view *v = &s->plan->insts[t->first].x; /* in the layout of slots */
    float *rows;
    Q_TRY(fetch(s, sample, q_stream_floats(s, s->at), &rows));
    int32_t before = 0;
    for (int32_t slot = 1; slot < v->slot; slot++)
        if (has(t->live, slot)) before += s->plan->slot_width[slot];
    *x = rows + before + v->offset;
    *stride = t->width;
    return LQ_OK;
}

/* ------------------------------------------------------------------------------------------------ running */

void q_stream_embed(q_stream *s, const q_format *format, const uint8_t *data) {
    for (int32_t i = 0; i < s->plan->n_insts; i++) {
        q_weight *w = &s->weights[i];
        if (s->insts[i].op != Q_OP_EMBED) continue;
        w->format = format;
        w->data = data;
        (void)q_row_bytes(format, (uint64_t)w->k, &w->row_bytes); /* the caller made rows of it */
    }
}

void q_stream_replace(q_stream *s, uint32_t item, const float *data) {
    const stage *t = &s->stages[s->at];
    for (int32_t i = t->first; i < t->first + t->about.n_products; i++) {
        q_weight *w = &s->weights[i];
        if (s->items[i] != item) continue;
        w->format = q_format_find("f32");
        w->row_bytes = (uint64_t)w->k * sizeof(float);
        w->data = (const uint8_t *)(data + s->rows[i] * w->k);
        w->order = NULL; /* the rows are in the model's order */
    }
}

/* A plan of the steps of one stage, with the pages of one layer. */
typedef struct segment {
    q_plan plan;
    q_segment steps;
    q_kv_pool pool;
    int32_t widths[2];
    q_buffer kv;
    q_program *program;
} segment;

static void close_segment(const q_stream *s, segment *g) {
    const q_place *here = &s->model->places[0];
    if (g->program) here->backend->release(g->program);
    if (g->kv.bytes) here->backend->free(here->device, &g->kv);
}

static void plan_segment(q_stream *s, int32_t first, int32_t last, segment *g) {
    memset(g, 0, sizeof *g);
    g->plan = *s->plan;
    g->steps = (q_segment){.first = first, .last = last};
    g->widths[1] = s->total;
    g->plan.insts = s->insts;
    g->plan.slot_width = g->widths;
    g->plan.n_slots = 2;
    g->plan.segments = &g->steps;
    g->plan.n_segments = 1;
    g->plan.kv = &g->pool;
    g->plan.n_kv = 0;
    for (int32_t i = first; i < last; i++) {
        if (s->insts[i].op != Q_OP_KV_PUT) continue;
        g->pool = s->plan->kv[s->plan->insts[i].kv_group];
        g->pool.layers = 1;
        g->pool.page_bytes = g->pool.layer_bytes;
        g->pool.pages = (s->o.window + Q_KV_TOKENS - 1) / Q_KV_TOKENS; /* no page is used twice, whatever the window */
        g->pool.segment = 0;
        g->plan.n_kv = 1;
    }
    for (int32_t i = first; i < last; i++) s->insts[i].kv_group = 0;
}

static lq_status open_segment(q_stream *s, int32_t first, int32_t last, segment *g) {
    const q_place *here = &s->model->places[0];
    plan_segment(s, first, last, g);
    if (g->plan.n_kv) Q_TRY(here->backend->alloc(here->device, g->pool.page_bytes * g->pool.pages, &g->kv));
    return here->backend->compile(here->device, &g->plan, 0, &g->kv, NULL, s->o.threads, &g->program);
}

/* What open_segment takes. */
static lq_status segment_bytes(q_stream *s, int32_t first, int32_t last, uint64_t *bytes) {
    const q_place *here = &s->model->places[0];
    segment g;
    q_need need;
    plan_segment(s, first, last, &g);
    Q_TRY(here->backend->measure(here->device, &g.plan, 0, s->o.threads, &need));
    *bytes = need.host + need.device;
    if (g.plan.n_kv) *bytes += q_placed_bytes(&s->model->ctx->placing, g.pool.page_bytes * g.pool.pages);
    return LQ_OK;
}

static lq_status run_sample(q_stream *s, const segment *g, const int32_t *ids) {
    const q_place *here = &s->model->places[0];
    const uint32_t *const pages[] = {s->pages};
    const q_seq_ref seq = {.pages = pages};
    const q_batch b = {.n = (int32_t)s->o.window, .ids = ids, .x = ids ? NULL : s->wide, .y = s->wide, .pos = s->pos,
                       .seq = s->seq, .seqs = &seq, .n_seqs = 1, .cancel = s->o.cancel};
    Q_TRY(here->backend->run(g->program, &b));
    return here->backend->wait(g->program);
}

static lq_status run_all(q_stream *s, const segment *g, const stage *from, const stage *to,
                         lq_status (*each)(void *user), void *user) {
    for (uint32_t i = 0; i < s->o.samples; i++) {
        float *rows;
        const int32_t *ids = from ? NULL : s->o.ids + (uint64_t)i * s->o.window;
        Q_TRY(fetch(s, i, from ? (uint64_t)s->o.window * (uint64_t)from->width : 0, &rows));
        if (from) copy_rows(s, from, rows, true);
        Q_TRY(run_sample(s, g, ids));
        copy_rows(s, to, rows, false);
        Q_TRY(put_back(s, i, (uint64_t)s->o.window * (uint64_t)to->width));
        if (each) Q_TRY(each(user));
    }
    return LQ_OK;
}

lq_status q_stream_begin(q_stream *s) {
    segment g;
    lq_status status = open_segment(s, 0, s->stages[0].first, &g);
    if (status == LQ_OK) status = run_all(s, &g, NULL, &s->stages[0], NULL, NULL);
    close_segment(s, &g);
    s->at = 0;
    return status;
}

uint64_t q_stream_tried(const q_stream *s) { return (uint64_t)s->o.window * (uint64_t)s->plan->slot_width[1]; }

static lq_status try_samples(q_stream *s, const segment *g, const stage *from, uint32_t samples, uint32_t step,
                             float *out) {
    const uint64_t width = (uint64_t)s->plan->slot_width[1];
    for (uint32_t i = 0; i < samples; i++) {
        float *rows;
        Q_TRY(fetch(s, i * step, (uint64_t)s->o.window * (uint64_t)from->width, &rows));
        copy_rows(s, from, rows, true);
        Q_TRY(run_sample(s, g, NULL));
        for (uint32_t c = 0; c < s->o.window; c++, out += width)
            memcpy(out, s->wide + (uint64_t)c * (uint64_t)s->total + s->offsets[1], (size_t)width * sizeof *out);
    }
    return LQ_OK;
}

/* Behind the step up to which a stage is tried. */
static int32_t try_end(const q_stream *s, uint32_t number) {
    const int32_t end = s->stages[s->n_stages].first;
    int32_t last = s->stages[number].first;
    while (last < end - 1 && s->plan->insts[last].y.slot != 1) last++;
    return last + 1;
}

lq_status q_stream_try(q_stream *s, uint32_t samples, uint32_t step, float *out) {
    segment g;
    const stage *t = &s->stages[s->at];
    lq_status status = open_segment(s, t->first, try_end(s, s->at), &g);
    if (status == LQ_OK) status = try_samples(s, &g, t, samples, step, out);
    close_segment(s, &g);
    return status;
}

lq_status q_stream_advance(q_stream *s, lq_status (*each)(void *user), void *user) {
    segment g;
    const stage *t = &s->stages[s->at];
    lq_status status = open_segment(s, t->first, t->last, &g);
    if (status == LQ_OK) status = run_all(s, &g, t, t + 1, each, user);
    close_segment(s, &g);
    if (status == LQ_OK) s->at++;
    return status;
}

lq_status q_stream_begin_bytes(q_stream *s, uint64_t *bytes) { return segment_bytes(s, 0, s->stages[0].first, bytes); }

lq_status q_stream_stage_bytes(q_stream *s, uint32_t number, uint64_t *bytes) {
    const stage *t = &s->stages[number];
    uint64_t tried;
    Q_TRY(segment_bytes(s, t->first, t->last, bytes));
    Q_TRY(segment_bytes(s, t->first, try_end(s, number), &tried));
    *bytes = Q_MAX(*bytes, tried);
    return LQ_OK;
}
