/* fold.c: finds in an architecture's step tables who can take factors of whose inputs.
 *
 * Content of a slot lives from the step that writes it to the next that does. Products that read the same content are a
 * group; whatever else reads it, or reads a part, refuses the group. A factor of an input is taken by its producer when
 * the input is linear in it, value by value: the weight of a norm, the rows of the matrix behind the linear side of a
 * GLU, or behind the values of attention where no two query heads share them. A weight that is used at any other place,
 * or is not known to be whole, is left alone. Layer L3. */
#include "fold.h"

typedef struct search {
    const q_binding *b;
    uint32_t *uses; /* [n_items] by steps of all layers */
    q_layer_table t; /* of the layer at hand */
    int32_t layer;
} search;

/* ---- steps and slots */

static const q_bind_item *item_of(const search *s, uint8_t role) {
    return role ? q_bind_find(s->b, role - 1, s->layer) : NULL;
}
static uint32_t index_of(const search *s, const q_bind_item *item) { return (uint32_t)(item - s->b->items); }
static double dim_of(const search *s, uint8_t d) { return q_dim_value(&s->b->hp, (q_dim)d, s->layer); }
static uint64_t width_of(const search *s, uint8_t slot) { return (uint64_t)dim_of(s, s->b->arch->slots[slot].width); }

/* plan.c makes no step where an optional weight is missing. */
static bool present(const search *s, const q_step *p) { return !(p->opt && p->w && !item_of(s, p->w)); }
static bool reads(const q_step *p, uint8_t slot) {
    return p->x == slot || p->z == slot || p->v == slot || p->u == slot || (p->add && p->y == slot);
}

/* The part is all of the slot, value by value in its order. */
static bool whole(const search *s, uint8_t slot, const q_part *part) {
    const double heads = part->heads ? dim_of(s, part->heads) : 1;
    const double width = part->width ? dim_of(s, part->width) : (double)width_of(s, slot);
    return dim_of(s, part->offset) == 0 && heads * width == (double)width_of(s, slot) &&
           (!part->stride || dim_of(s, part->stride) == width);
}
static bool one_head(const search *s, const q_part *part) { return !part->heads || dim_of(s, part->heads) == 1; }

/* The last step before i that writes the slot; -1 = none of this layer. */
static int32_t writer_of(const search *s, uint32_t i, uint8_t slot) {
    while (i-- > 0)
        if (s->t.steps[i].y == slot && present(s, &s->t.steps[i])) return (int32_t)i;
    return -1;
}
/* Where the content that step `writer` left is gone: behind the step that overwrites it, which may still read it. -1
 * wraps. */
static uint32_t end_of(const search *s, uint32_t writer, uint8_t slot) {
    for (uint32_t i = writer + 1; i < s->t.n; i++)
        if (s->t.steps[i].y == slot && present(s, &s->t.steps[i])) return i + 1;
    return s->t.n;
}

/* A table may read what was left in the slot before it. */
static bool enters(const q_layer_table *t, uint8_t slot) {
    for (uint32_t i = 0; i < t->n; i++) {
        if (reads(&t->steps[i], slot)) return true;
        if (t->steps[i].y == slot && !t->steps[i].opt) return false;
    }
    return false;
}
/* The content outlives the layer. */
static bool leaves(const search *s, uint32_t writer, uint8_t slot) {
    const q_arch *a = s->b->arch;
    for (uint32_t i = writer + 1; i < s->t.n; i++)
        if (s->t.steps[i].y == slot && present(s, &s->t.steps[i])) return false;
    for (uint32_t kind = 0; kind < a->n_layer_kinds; kind++)
        if (enters(&a->layers[kind], slot)) return true;
    return enters(&a->last, slot);
}

static void count_uses(search *s, const q_layer_table *t, int32_t layer) {
    s->layer = layer;
    s->t = *t;
    for (uint32_t i = 0; i < t->n; i++) {
        const q_step *p = &t->steps[i];
        const uint8_t roles[] = {p->w, p->w2, p->w3, p->b, p->b2};
        for (size_t r = 0; r < Q_COUNT(roles) && present(s, p); r++) {
            const q_bind_item *item = item_of(s, roles[r]);
            if (item) s->uses[index_of(s, item)]++;
        }
    }
}

static const q_layer_table *table_of(const q_binding *b, int32_t layer) {
    return &b->arch->layers[b->arch->layer_kind ? b->arch->layer_kind(&b->hp, layer) : 0];
}

/* ---- producers: why they cannot be one, or NULL and the item */

/* The matrix that alone writes what step `reader` alone reads of the slot. */
static const char *matrix_behind(const search *s, uint32_t reader, uint8_t slot, uint64_t k, uint32_t *producer) {
    const int32_t at = writer_of(s, reader, slot);
    const q_step *p = at < 0 ? NULL : &s->t.steps[at];
    if (!p || p->op != Q_OP_MATMUL || p->add || !whole(s, slot, &p->yp))
        return "what makes it is not the product of one matrix";
    for (uint32_t i = (uint32_t)at + 1, end = end_of(s, (uint32_t)at, slot); i < end; i++)
        if (i != reader && present(s, &s->t.steps[i]) && reads(&s->t.steps[i], slot))
            return "what makes it is read at another place too";
    if (leaves(s, (uint32_t)at, slot)) return "what makes it is read at another place too";
    const q_bind_item *w = item_of(s, p->w);
    if (!w || w->src->rank != 2 || p->w2 || p->w3) return "what makes it is not the product of one matrix";
    if (item_of(s, p->b)) return "the matrix that makes it has a bias";
    if (w->src->rows != k || dim_of(s, p->w_row) != 0) return "the matrix that makes it has other rows too";
    if (w->map != Q_MAP_SAME || s->uses[index_of(s, w)] != 1)
        return "the matrix that makes it is used at another place too";
    *producer = index_of(s, w);
    return NULL;
}

static const char *norm_takes(const search *s, const q_step *p, uint64_t k, uint32_t *producer) {
    const q_bind_item *w = item_of(s, p->w);
    if (!w) return "its norm has no weight";
    if (p->add || item_of(s, p->b)) return "its norm adds to something, or has a bias";
    if (w->src->rank != 1 || w->src->shape[0] != k) return "its norm's weight has another length";
    if (w->map != Q_MAP_SAME) return "its norm's weight is stored less one";
    if (s->uses[index_of(s, w)] != 1) return "its norm's weight is used at another place too";
    *producer = index_of(s, w);
    return NULL;
}

static const char *glu_takes(const search *s, uint32_t at, uint64_t k, uint32_t *producer) {
    const q_step *p = &s->t.steps[at];
    if (!p->z) return "it comes out of a function that is not linear";
    if (p->kind == Q_ACT_SWIGLU_CLAMP) return "its linear side is clamped";
    if (p->x == p->z || p->v || p->u || p->add || !whole(s, p->z, &p->zp))
        return "its linear side is part of something else";
    return matrix_behind(s, at, p->z, k, producer);
}

/* Values of attention go into every output of their head alike, weighted and added. */
static const char *attention_takes(const search *s, uint32_t at, uint64_t k, uint32_t *producer) {
    const q_step *p = &s->t.steps[at];
    const q_arch *a = s->b->arch;
    const double heads = dim_of(s, a->dim_kv_heads), width = dim_of(s, a->dim_v);
    uint32_t put = 0, puts = 0, reads_pages = 0;
    for (uint32_t i = 0; i < s->t.n; i++) {
        const q_step *q = &s->t.steps[i];
        if (q->op == Q_OP_ATTN) reads_pages++;
        if (q->op != Q_OP_KV_PUT) continue;
        put = i;
        puts++;
    }
    if (p->z || p->v || p->add || puts != 1 || put > at || reads_pages != 1)
        return "the attention before it is of another kind";
    const q_step *kv = &s->t.steps[put];
    if (!a->dim_v || !kv->z || kv->z == kv->x) return "attention's values are part of its keys";
    if (dim_of(s, p->yp.heads) != heads || dim_of(s, p->xp.heads) != heads) return "query heads share values";
    if (dim_of(s, p->yp.width) != width || dim_of(s, kv->zp.heads) != heads || dim_of(s, kv->zp.width) != width ||
        heads * width != (double)k || !whole(s, kv->z, &kv->zp))
        return "attention's values are of another width";
    return matrix_behind(s, put, kv->z, k, producer);
}

static const char *producer_of(const search *s, uint32_t at, uint8_t slot, uint64_t k, uint32_t *producer) {
    const q_step *p = &s->t.steps[at];
    if (!whole(s, slot, &p->yp)) return "what makes it makes a part";
    if (p->op == Q_OP_NORM) return norm_takes(s, p, k, producer);
    if (p->op == Q_OP_GLU) return glu_takes(s, at, k, producer);
    if (p->op == Q_OP_ATTN) return attention_takes(s, at, k, producer);
    return "what makes it has no weight to take the factors";
}

/* ---- groups */

/* Adds the matrix of a step that reads the slot; says why that cannot be. */
static const char *consume(const search *s, const q_step *p, uint8_t slot, q_fold_group *g, uint32_t *times) {
    const q_bind_item *w = p->op == Q_OP_MATMUL ? item_of(s, p->w) : NULL;
    if (!w || p->x != slot || p->z || p->v || p->u || (p->add && p->y == slot))
        return "something else than products reads it too";
    uint32_t i = 0;
    while (i < g->n_consumers && g->consumers[i] != index_of(s, w)) i++;
    if (i == Q_FOLD_CONSUMERS) return "more matrices than 8 read it";
    if (i == g->n_consumers) g->consumers[g->n_consumers++] = index_of(s, w);
    times[i]++;
    if (p->w2 || p->w3 || w->src->rank != 2 || w->src->shape[0] != g->k || !whole(s, slot, &p->xp) ||
        !one_head(s, &p->xp))
        return "a matrix reads a part of it, or there are several";
    return NULL;
}

/* The group whose first product is step `first`. */
static void find_group(const search *s, uint32_t first, q_fold_group *g) {
    const uint8_t slot = s->t.steps[first].x;
    const int32_t writer = writer_of(s, first, slot);
    uint32_t times[Q_FOLD_CONSUMERS] = {0};
    const char *why = NULL;
    *g = (q_fold_group){.layer = s->layer, .k = width_of(s, slot)};
    for (uint32_t i = (uint32_t)(writer + 1), end = end_of(s, (uint32_t)writer, slot); i < end; i++) {
        const q_step *p = &s->t.steps[i];
        const char *no = present(s, p) && reads(p, slot) ? consume(s, p, slot, g, times) : NULL;
        if (!why) why = no;
    }
    for (uint32_t i = 0; i < g->n_consumers && !why; i++)
        if (times[i] != s->uses[g->consumers[i]]) why = "a matrix that reads it is used at another place too";
    if (!why && writer < 0) why = "it comes from before the layer";
    if (!why && leaves(s, (uint32_t)writer, slot)) why = "it is read after the layer too";
    g->refused = why ? why : producer_of(s, (uint32_t)writer, slot, g->k, &g->producer);
}

/* An earlier product of the layer reads the same content. */
static bool grouped(const search *s, uint32_t i) {
    const uint8_t slot = s->t.steps[i].x;
    for (uint32_t j = (uint32_t)(writer_of(s, i, slot) + 1); j < i; j++)
        if (s->t.steps[j].op == Q_OP_MATMUL && s->t.steps[j].x == slot && present(s, &s->t.steps[j])) return true;
    return false;
}

lq_status q_folds_find(const q_binding *b, q_arena *arena, q_folds *out) {
    search s = {.b = b};
    uint64_t most = 0;
    memset(out, 0, sizeof *out);
    for (int32_t l = 0; l < b->layers; l++) most += table_of(b, l)->n;
    s.uses = (uint32_t *)q_arena_new(arena, b->n_items, sizeof *s.uses);
    out->groups = (q_fold_group *)q_arena_new(arena, most, sizeof *out->groups);
    out->of = (uint32_t *)q_arena_new(arena, b->n_items, sizeof *out->of);
    if (!s.uses || !out->groups || !out->of) return LQ_E_NOMEM;
    count_uses(&s, &b->arch->first, -1);
    count_uses(&s, &b->arch->last, -1);
    for (int32_t l = 0; l < b->layers; l++) count_uses(&s, table_of(b, l), l);
    for (s.layer = 0; s.layer < b->layers; s.layer++) {
        s.t = *table_of(b, s.layer);
        for (uint32_t i = 0; i < s.t.n; i++) {
            const q_step *p = &s.t.steps[i];
            if (p->op != Q_OP_MATMUL || !present(&s, p) || grouped(&s, i)) continue;
            q_fold_group *g = &out->groups[out->n_groups++];
            find_group(&s, i, g);
            for (uint32_t c = 0; c < g->n_consumers; c++)
                if (!out->of[g->consumers[c]]) out->of[g->consumers[c]] = out->n_groups;
        }
    }
    return LQ_OK;
}

const q_fold_group *q_folds_of(const q_folds *f, uint32_t item) {
    return f->of[item] ? &f->groups[f->of[item] - 1] : NULL;
}
