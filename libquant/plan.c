/* plan.c: turns an architecture's step tables into a plan: views in slots, weights by pointer, page pools, numbers.
 *
 * Everything that a run needs is resolved here; nothing is looked up by name afterwards. Layer L3. */
#include "engine.h"

#include <math.h>

typedef struct builder {
    const lq_model *model;
    const q_arch *arch;
    const q_hparams *hp;
    const q_session_shape *shape;
    q_arena *arena;
    q_plan *plan;
    q_inst *insts;
    int32_t *slot_width;
    q_kv_pool *pools;
    q_segment *segments;
    q_inst *behind; /* the second products of adapters, until their group ends */
    int32_t n_behind, low_used; /* and how much of the last slot, which holds A x, the group has taken */
    bool *written; /* [n_slots] by the current segment: what it reads before that would have to cross its border */
} builder;

static int32_t dim(const builder *b, uint8_t d, int32_t layer) { return (int32_t)q_dim_value(b->hp, (q_dim)d, layer); }

/* A named hyper-parameter, or `otherwise` when the step names none or the model gives none. */
static double number(const builder *b, uint8_t hp, int32_t layer, double otherwise) {
    if (!hp) return otherwise;
    const double v = q_hp(b->hp, (q_hparam)hp, layer);
    return isnan(v) ? otherwise : v;
}

static q_view view_of(const builder *b, uint8_t slot, const q_part *part, int32_t layer) {
    if (!slot) return (q_view){0, 0, 0, 0, 0};
    q_view v = {.slot = slot, .heads = 1, .width = b->slot_width[slot]};
    if (part->heads) v.heads = dim(b, part->heads, layer);
    if (part->width) v.width = dim(b, part->width, layer);
    v.offset = dim(b, part->offset, layer);
    v.stride = part->stride ? dim(b, part->stride, layer) : v.width;
    return v;
}

static lq_status view_fits(const builder *b, const q_view *v, const q_step *s) {
    if (!v->slot) return LQ_OK;
    const int64_t end = v->offset + (int64_t)(v->heads - 1) * v->stride + v->width;
    if (v->width < 1 || v->heads < 1 || end > b->slot_width[v->slot])
        return q_fail(LQ_E_INTERNAL, "architecture '%s': a view of slot '%s' in a step %s leaves the slot", b->arch->name,
                      b->arch->slots[v->slot].name, q_ops[s->op].name);
    return LQ_OK;
}

static void shift(q_weight *w, uint64_t bytes) {
    if (w->data) w->data += bytes;
    if (w->device) w->device += bytes;
}

/* `rows` of a weight from `first` on: of a matrix rows, of a vector values; 0 = all. */
static lq_status part_of(const builder *b, const q_weight *w, bool vector, int32_t first, int32_t rows, const q_weight **out) {
    *out = w;
    const int64_t has = vector ? w->k : (int64_t)w->rows * w->matrices;
    if (rows == 0 || (first == 0 && rows == has)) return LQ_OK;
    if (first + rows > has || w->matrices > 1)
        return q_fail(LQ_E_INTERNAL, "rows %d to %d of '%s' were asked for", first, first + rows, w->name);
    q_weight *part = (q_weight *)q_arena_new(b->arena, 1, sizeof *part);
    if (!part) return LQ_E_NOMEM;
    *part = *w;
    if (vector) {
        shift(part, (uint64_t)first * sizeof(float));
        part->k = rows;
    } else {
        shift(part, (uint64_t)first * w->row_bytes);
        part->rows = rows;
    }
    part->packed_row += vector ? 0 : first; /* a packed layout is of the whole */
    *out = part;
    return LQ_OK;
}

/* The weight of a role at a layer, or a part of it; *out NULL when the model has none. */
static lq_status weight_of(const builder *b, uint8_t role, int32_t layer, int32_t first, int32_t rows,
                           const q_weight **out) {
    *out = NULL;
    if (!role) return LQ_OK;
    const q_bind_item *item = q_bind_find(b->model->binding, role - 1, layer);
    if (!item) return LQ_OK;
    const q_weight *w = &b->model->weights[item - b->model->binding->items];
    const bool vector = b->arch->weights[role - 1].rows == 0; /* a bias: its values go with the rows */
    return part_of(b, w, vector, first, rows, out);
}

static q_segment *segment_of(const builder *b) { return &b->segments[b->plan->n_segments - 1]; }

static lq_status form_of(const q_kv_kind *kind, const char *what, int32_t width, q_kv_form *form) {
    if (q_kv_form_make(kind, width, form)) return LQ_OK;
    return q_fail(LQ_E_UNSUPPORTED, "%s in %s come in blocks of %d, which do not divide the model's %d per head: f16 fits any",
                  what, kind->format->name, kind->format->weights, width);
}

/* Page pool for the keys and values that `put` stores: shared by layers of the same shape that see the same positions on
 * one device. */
static lq_status pool_of(builder *b, int32_t layer, q_inst *put) {
    const int32_t heads = dim(b, b->arch->dim_kv_heads, layer), k = dim(b, b->arch->dim_k, layer),
                  v = dim(b, b->arch->dim_v, layer);
    int32_t i = 0;
    for (; i < b->plan->n_kv; i++) {
        const q_kv_pool *p = &b->pools[i];
        if (p->heads == heads && p->k.width == k && p->v.width == v && p->window == put->window &&
            p->sink_tokens == put->sink_tokens && p->segment == b->plan->n_segments - 1)
            break;
    }
    q_kv_pool *p = &b->pools[i];
    if (i == b->plan->n_kv) {
        b->plan->n_kv++;
        *p = (q_kv_pool){.heads = heads, .window = put->window, .sink_tokens = put->sink_tokens,
                         .segment = b->plan->n_segments - 1};
        Q_TRY(form_of(b->shape->kv_k, "keys", k, &p->k));
        if (v == 0 && b->shape->kv_v != b->shape->kv_k)
            return q_fail(LQ_E_UNSUPPORTED,
                          "this model's values are a part of its keys: both are kept as %s, or both as %s, not each by itself",
                          b->shape->kv_k->format->name, b->shape->kv_v->format->name);
        Q_TRY(form_of(b->shape->kv_v, "values", v, &p->v));
    }
    put->kv_layer = p->layers++;
    put->kv_group = i;
    return LQ_OK;
}

static lq_status rope_freqs(const builder *b, q_inst *t, const q_step *s, int32_t layer) {
    const double base = number(b, s->hp_base, layer, 10000.0);
    const int32_t tables = b->plan->freq_tables;
    t->rot = dim(b, s->rot, layer);
    float *f = (float *)q_arena_new(b->arena, (uint64_t)tables * ((uint64_t)t->rot / 2), sizeof *f);
    if (!f) return LQ_E_NOMEM;
    for (int32_t i = 0; i < tables; i++)
        t->mscale = q_rope_table(&b->shape->rope, base, t->rot, b->shape->context, i == 1, f + i * (t->rot / 2));
    t->freqs = f;
    t->freq_tables = tables;
    return LQ_OK;
}

/* Recurrent steps carry state from token to token: each gets its place in the sequence's state (layouts: op.h). */
static void recurrent_state(const builder *b, q_inst *t) {
    uint64_t *floats = &segment_of(b)->state_floats;
    t->state = (int64_t)*floats;
    if (t->op == Q_OP_CONV) {
        t->taps = t->w ? t->w->k : 1;
        *floats += (uint64_t)t->y.heads * (uint64_t)t->y.width * (uint64_t)(t->taps - 1);
    } else {
        *floats += (uint64_t)t->v.heads * (uint64_t)t->z.width * (uint64_t)t->v.width;
    }
}

/* Products must agree with their operands: a table with a wrong dimension fails here, not in a kernel. */
static lq_status check_product(const builder *b, const q_inst *t) {
    const bool head = t->op == Q_OP_HEAD;
    if (t->op != Q_OP_MATMUL && !head) return LQ_OK;
    const int64_t rows = head ? b->plan->vocab : (int64_t)t->y.heads * t->y.width;
    if (!t->w) return q_fail(LQ_E_INTERNAL, "architecture '%s': a product has no weight", b->arch->name);
    if (t->w->k != t->x.width || (int64_t)t->w->rows * t->w->matrices != rows)
        return q_fail(LQ_E_INTERNAL, "'%s' is %d x %d; its step in '%s' needs %d x %lld", t->w->name, t->w->k, t->w->rows,
                      b->arch->name, t->x.width, (long long)rows);
    return LQ_OK;
}

/* Nothing but slot 1 crosses a border: a step that reads what an earlier segment left elsewhere is a fault of the table. */
static lq_status check_border(const builder *b, const q_inst *t) {
    const int32_t reads[] = {t->x.slot, t->z.slot, t->v.slot, t->u.slot, t->add ? t->y.slot : 0};
    for (size_t i = 0; i < Q_COUNT(reads) && b->plan->n_segments > 1; i++)
        if (reads[i] > 1 && !b->written[reads[i]])
            return q_fail(LQ_E_INTERNAL, "architecture '%s': %s of layer %d reads slot '%s' of another device", b->arch->name,
                          q_ops[t->op].name, t->layer, b->arch->slots[reads[i]].name);
    b->written[t->y.slot] = true;
    return LQ_OK;
}

/* The step is complete. */
static lq_status push(builder *b, const q_inst *t) {
    Q_TRY(check_product(b, t));
    Q_TRY(check_border(b, t));
    const q_place *place = &b->model->places[segment_of(b)->device];
    const char *reason = place->backend->supports(place->device, t);
    if (reason)
        return q_fail(LQ_E_UNSUPPORTED, "%s cannot run the step %s of layer %d: %s", place->name, q_ops[t->op].name, t->layer,
                      reason);
    b->insts[b->plan->n_insts++] = *t;
    segment_of(b)->last = b->plan->n_insts;
    return LQ_OK;
}

/* Groups of the steps that adapters bring, beyond those of tables. */
enum { BESIDE = 254, BEHIND = 255 };

/* What an adapter adds to the product t with rows from `first` on: T <- x [A] beside it, and once its group has ended
 * y += [B] T. */
static lq_status add_adapter(builder *b, q_inst *t, const q_adapter *ad, int32_t first) {
    const int32_t low = b->plan->n_slots - 1, rank = ad->a.rows;
    q_inst a = {.op = Q_OP_MATMUL, .out = t->out, .layer = t->layer, .x = t->x, .w = &ad->a, .scale = 1.0f,
                .y = {.slot = low, .offset = b->low_used, .heads = 1, .width = rank, .stride = rank}};
    if (!t->group && t->x.slot != t->y.slot) t->group = BESIDE;
    a.group = t->group;
    q_inst *c = &b->behind[b->n_behind++];
    *c = a;
    c->group = BEHIND;
    c->add = 1;
    c->x = a.y;
    c->y = t->y;
    Q_TRY(part_of(b, &ad->b, false, first, t->w->rows, &c->w));
    b->low_used += rank;
    b->slot_width[low] = Q_MAX(b->slot_width[low], b->low_used);
    return push(b, &a);
}

static lq_status end_group(builder *b) {
    for (int32_t i = 0; i < b->n_behind; i++) Q_TRY(push(b, &b->behind[i]));
    b->n_behind = b->low_used = 0;
    return LQ_OK;
}

/* In the place of HEAD, in a plan of hidden rows. */
static lq_status hidden_rows(builder *b, const q_inst *head) {
    q_inst t = {.op = Q_OP_COPY, .layer = head->layer, .x = head->x, .scale = 1.0f};
    t.y = (q_view){.slot = 1, .heads = 1, .width = b->slot_width[1], .stride = b->slot_width[1]};
    if (t.x.heads != 1 || t.x.width != t.y.width)
        return q_fail(LQ_E_UNSUPPORTED, "architecture '%s': hidden rows of %d values are no hidden rows of %d", b->arch->name,
                      t.x.width, t.y.width);
    return push(b, &t);
}

static lq_status add_step(builder *b, const q_step *s, int32_t layer) {
    q_inst t = {.op = s->op, .kind = s->kind, .add = s->add, .out = s->out, .group = s->group, .renorm = s->renorm,
                .layer = layer};
    if (b->plan->hidden && s->op == Q_OP_SAMPLE) return LQ_OK;
    const int32_t L = layer < 0 || layer >= b->plan->n_layers ? -1 : layer;
    t.y = view_of(b, s->y, &s->yp, L);
    t.x = view_of(b, s->x, &s->xp, L);
    t.z = view_of(b, s->z, &s->zp, L);
    t.v = view_of(b, s->v, &s->vp, L);
    t.u = view_of(b, s->u, &s->up, L);
    const q_view *const views[] = {&t.y, &t.x, &t.z, &t.v, &t.u};
    for (size_t i = 0; i < Q_COUNT(views); i++) Q_TRY(view_fits(b, views[i], s));
    const int32_t first = dim(b, s->w_row, L), rows = s->op == Q_OP_MATMUL ? t.y.heads * t.y.width : 0;
    if (b->plan->hidden) t.out = 0;
    if (b->plan->hidden && s->op == Q_OP_HEAD) return hidden_rows(b, &t);
    Q_TRY(weight_of(b, s->w, L, first, rows, &t.w));
    Q_TRY(weight_of(b, s->b, L, first, rows, &t.b));
    Q_TRY(weight_of(b, s->w2, L, 0, 0, &t.w2));
    Q_TRY(weight_of(b, s->w3, L, 0, 0, &t.w3));
    Q_TRY(weight_of(b, s->b2, L, 0, 0, &t.b2));
    if (s->opt && s->w && !t.w) return LQ_OK; /* the model has no such step */
    t.eps = (float)number(b, s->hp_eps, L, 0);
    const double base = number(b, s->hp_scale, L, 1.0);
    t.scale = (float)((s->scale_pow != 0.0f ? pow(base, (double)s->scale_pow) : base) * (s->scale != 0.0f ? (double)s->scale : 1.0));
    t.softcap = (float)number(b, s->hp_softcap, L, 0);
    t.limit = (float)number(b, s->hp_limit, L, 0);
    t.alpha = (float)number(b, s->hp_alpha, L, 0);
    t.window = (int32_t)number(b, s->hp_window, L, 0);
    t.sink_tokens = t.window > 0 ? (int32_t)number(b, s->hp_sink_tokens, L, 0) : 0;
    t.n_expert = (int32_t)number(b, Q_HP_EXPERTS, L, 0);
    t.n_used = (int32_t)number(b, Q_HP_EXPERTS_USED, L, 0);
    t.n_groups = (int32_t)number(b, Q_HP_EXPERT_GROUPS, L, 0);
    t.n_groups_used = (int32_t)number(b, Q_HP_EXPERT_GROUPS_USED, L, 0);
    if (s->op == Q_OP_CONV || s->op == Q_OP_SCAN) recurrent_state(b, &t);
    if (s->op == Q_OP_ROPE) Q_TRY(rope_freqs(b, &t, s, L));
    if (s->op == Q_OP_KV_PUT) Q_TRY(pool_of(b, L, &t));
    if (s->op == Q_OP_ATTN && !s->z) { /* reads what this layer's KV_PUT stored */
        const q_inst *put = NULL;
        for (int32_t i = b->plan->n_insts - 1; i >= 0 && !put && b->insts[i].layer == layer; i--)
            if (b->insts[i].op == Q_OP_KV_PUT) put = &b->insts[i];
        if (!put) return q_fail(LQ_E_INTERNAL, "architecture '%s': ATTN without KV_PUT in its layer", b->arch->name);
        t.kv_group = put->kv_group;
        t.kv_layer = put->kv_layer;
        t.window = put->window;
        t.sink_tokens = put->sink_tokens;
        const int32_t turn = q_kv_v_form(&b->pools[t.kv_group])->turn;
        if (turn && t.y.width % turn)
            return q_fail(LQ_E_UNSUPPORTED, "values of %d are stored turned by %d, which does not divide them: keep them as f16",
                          t.y.width, turn);
    }
    const q_adapter *ad = s->op == Q_OP_MATMUL ? q_adapter_of(b->model, q_bind_find(b->model->binding, s->w - 1, L)) : NULL;
    if (ad) Q_TRY(add_adapter(b, &t, ad, first));
    Q_TRY(push(b, &t));
    return ad && !s->group ? end_group(b) : LQ_OK;
}

static lq_status add_table(builder *b, const q_layer_table *table, int32_t layer) {
    const int32_t place = q_place_of(b->model, layer);
    if (b->plan->n_segments == 0 || segment_of(b)->device != place) {
        const int32_t at = b->plan->n_insts;
        b->segments[b->plan->n_segments++] = (q_segment){.first = at, .last = at, .device = place};
        memset(b->written, 0, sizeof *b->written * (size_t)b->plan->n_slots);
    }
    for (uint32_t i = 0; i < table->n; i++) {
        if (i && table->steps[i].group != table->steps[i - 1].group) Q_TRY(end_group(b));
        Q_TRY(add_step(b, &table->steps[i], layer));
    }
    return end_group(b);
}

static const q_layer_table *layer_table(const builder *b, int32_t layer) {
    return &b->arch->layers[b->arch->layer_kind ? b->arch->layer_kind(b->hp, layer) : 0];
}

static lq_status build(builder *b) {
    const q_session_shape *shape = b->shape;
    q_plan *p = b->plan;
    const q_arch *a = b->arch;
    uint64_t steps = (uint64_t)a->first.n + a->last.n;
    for (int32_t l = 0; l < p->n_layers; l++) steps += layer_table(b, l)->n;
    const uint64_t products = b->model->adapters ? steps : 0; /* at most, with adapters, which bring two more each */
    b->insts = (q_inst *)q_arena_new(b->arena, steps + 2 * products, sizeof *b->insts);
    b->behind = (q_inst *)q_arena_new(b->arena, products, sizeof *b->behind);
    b->slot_width = (int32_t *)q_arena_new(b->arena, (uint64_t)p->n_slots, sizeof *b->slot_width);
    b->pools = (q_kv_pool *)q_arena_new(b->arena, (uint64_t)p->n_layers, sizeof *b->pools);
    b->segments = (q_segment *)q_arena_new(b->arena, (uint64_t)p->n_layers + 2, sizeof *b->segments);
    b->written = (bool *)q_arena_new(b->arena, (uint64_t)p->n_slots, sizeof *b->written);
    if (!b->insts || !b->behind || !b->slot_width || !b->pools || !b->segments || !b->written) return LQ_E_NOMEM;
    for (uint32_t i = 1; i < a->n_slots; i++) /* widths may differ by layer: a slot holds the widest */
        for (int32_t l = -1; l < p->n_layers; l++) b->slot_width[i] = Q_MAX(b->slot_width[i], dim(b, a->slots[i].width, l));
    Q_TRY(add_table(b, &a->first, -1));
    for (int32_t l = 0; l < p->n_layers; l++) Q_TRY(add_table(b, layer_table(b, l), l));
    Q_TRY(add_table(b, &a->last, p->n_layers));
    for (int32_t i = 0; i < p->n_kv; i++) {
        q_kv_pool_lay(&b->pools[i]);
        b->pools[i].pages = (uint32_t)q_kv_pool_pages(b->pools[i].window, b->pools[i].sink_tokens, shape->seqs,
                                                      shape->context, shape->kv_tokens, shape->batch);
    }
    for (int32_t i = 0; i < p->n_segments; i++)
        if (b->segments[i].state_floats) p->states = (int32_t)(shape->seqs + shape->checkpoints);
    p->insts = b->insts;
    p->slot_width = b->slot_width;
    p->kv = b->pools;
    p->segments = b->segments;
    return LQ_OK;
}

lq_status q_plan_build(const lq_model *model, const q_session_shape *shape, q_arena *arena, q_plan **out) {
    q_plan *p = (q_plan *)q_arena_new(arena, 1, sizeof *p);
    if (!p) return LQ_E_NOMEM;
    const q_binding *bind = model->binding;
    p->n_layers = bind->layers;
    p->n_slots = (int32_t)bind->arch->n_slots + (model->adapters != NULL);
    p->columns = (int32_t)shape->batch;
    p->seqs = (int32_t)shape->seqs;
    p->outs = (int32_t)Q_MIN(Q_MAX(q_session_rows(shape), 1u), shape->batch);
    p->vocab = (int32_t)bind->hp.v[Q_HP_VOCAB];
    p->context = (int32_t)shape->context;
    p->freq_tables = q_rope_tables(&shape->rope, shape->context);
    p->f32_activations = shape->f32_activations;
    p->hidden = shape->embed;
    builder b = {.model = model, .arch = bind->arch, .hp = &bind->hp, .shape = shape, .arena = arena, .plan = p};
    Q_TRY(build(&b));
    *out = p;
    return LQ_OK;
}
