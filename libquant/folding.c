/* folding.c: see folding.h. A factor leaves no trace in the file: columns times s here, values divided by s there.
 * Layer L3. */
#include "folding.h"

#include <math.h>
#include <stdio.h>

static lq_status no_factors(const q_folding *f, const char *has) {
    return q_fail(LQ_E_ARG,
                  "%s %s wants the factors of %s, which are chosen with a text: `lq calibrate MODEL --text FILE %s %s "
                  "-o STATS` makes them, to be given as 'importance'%s%s%s",
                  f->scheme ? "scheme" : "the", f->scheme ? f->scheme : "recipe", f->transform->name,
                  f->scheme ? "--for" : "--recipe", f->scheme ? f->scheme : "RECIPE", f->path ? "; " : "",
                  f->path ? f->path : "", has);
}

static lq_status check_transform(const q_folding *f) {
    char has[128];
    if (!f->importance) return no_factors(f, "");
    const q_str of = f->importance->transform;
    if (!of.n) return no_factors(f, " has none");
    if (q_str_is(of, f->transform->name)) return LQ_OK;
    snprintf(has, sizeof has, " has those of %.*s", (int)Q_MIN(of.n, (uint64_t)64), of.p);
    return no_factors(f, has);
}

/* What the producer stores is w' = w / s, rounded where it has 16 bits: then s becomes w / w', so that nothing changes
 * but by the arithmetic. A weight that would be lost so keeps its value, rounded. */
static lq_status round_norm(const q_folding *f, const q_fold_group *g, float *s) {
    const q_bind_item *norm = &f->binding->items[g->producer];
    const q_format *format = f->choices[g->producer].format;
    const q_alloc *a = f->arena->alloc;
    uint64_t bytes;
    if (format->weights != 1 || !q_row_bytes(format, g->k, &bytes))
        return q_fail(LQ_E_INTERNAL, "tensor %.*s: a vector in blocks", Q_STR_ARG(norm->name));
    float *w = (float *)q_new_raw(a, g->k, 2 * sizeof *w), *stored = w ? w + g->k : NULL;
    uint8_t *row = (uint8_t *)q_new_raw(a, bytes, 1);
    lq_status status = w && row ? q_bind_read(a, f->binding, norm, 0, 1, w) : LQ_E_NOMEM;
    for (int again = 0; again < 2 && status == LQ_OK; again++) {
        for (uint64_t i = 0; i < g->k; i++) stored[i] = w[i] / s[i];
        q_encode_row(format, stored, NULL, false, (int64_t)g->k, row);
        q_decode_row(format, row, (int64_t)g->k, stored);
        for (uint64_t i = 0; i < g->k; i++) {
            const float exact = w[i] / stored[i];
            if (w[i] == 0.0f) continue; /* the input is 0 */
            s[i] = isfinite(exact) && exact >= 0x1p-41f && exact <= 0x1p41f ? exact : 1.0f;
        }
    }
    q_delete(a, w);
    q_delete(a, row);
    return status;
}

static lq_status fold_group(const q_folding *f, const q_importance_entry *e, const q_fold_group *g) {
    q_bind_item *producer = &f->items[g->producer];
    float *s = (float *)q_arena_new(f->arena, g->k, sizeof *s);
    if (!s) return LQ_E_NOMEM;
    Q_TRY(q_importance_fold(f->importance, e, s));
    if (producer->src->rank == 1) Q_TRY(round_norm(f, g, s));
    producer->rows = s;
    for (uint32_t c = 0; c < g->n_consumers; c++) {
        const q_str name = f->binding->items[g->consumers[c]].name;
        const q_importance_entry *same; /* refused unless it is of as many inputs as there are factors */
        Q_TRY(q_importance_find(f->importance, name, g->k, 1, &same));
        f->items[g->consumers[c]].columns = s;
        Q_TRY(q_importance_refit(f->importance, name, s));
    }
    return LQ_OK;
}

/* What the file has of an item's inputs and weights. */
static lq_status fold_item(const q_folding *f, const q_folds *folds, uint32_t i) {
    const q_bind_item *item = &f->binding->items[i];
    const q_fold_group *g = q_folds_of(folds, i);
    const q_importance_entry *e;
    Q_TRY(q_importance_find(f->importance, item->name, item->src->shape[0], item->src->rows / item->src->shape[1], &e));
    if (e && e->clip) Q_TRY(q_importance_clip(f->importance, e, item->src->rows, NULL));
    if (!e || !e->fold) return LQ_OK;
    if (!g)
        return q_fail(LQ_E_INCONSISTENT, "tensor \"%.*s\": no product of a layer has inputs of its own there",
                      Q_STR_ARG(e->fold->name));
    if (g->refused)
        return q_fail(LQ_E_INCONSISTENT, "tensor \"%.*s\": these factors cannot be folded: %s",
                      Q_STR_ARG(e->fold->name), g->refused);
    if (g->consumers[0] != i)
        return q_fail(LQ_E_INCONSISTENT, "tensor \"%.*s\": factors of these inputs go by the name of %.*s",
                      Q_STR_ARG(e->fold->name), Q_STR_ARG(f->binding->items[g->consumers[0]].name));
    return fold_group(f, e, g);
}

/* Entries of no tensor are passed over elsewhere; not if they would change others. */
static lq_status check_unmatched(const q_importance *im) {
    for (uint32_t i = 0; i < im->n_entries; i++) {
        const q_importance_entry *e = &im->entries[i];
        const q_tensor *t = e->fold ? e->fold : e->clip;
        if (t && !e->matched)
            return q_fail(LQ_E_INCONSISTENT, "tensor \"%.*s\" is for no tensor of the model", Q_STR_ARG(t->name));
    }
    return LQ_OK;
}

static const char *role_of(const q_folding *f, const q_fold_group *g) {
    return f->binding->arch->weights[f->binding->items[g->consumers[0]].role].role;
}

/* Of each kind of group once: how many have no factors, and why. */
static lq_status tell(const q_folding *f, const q_folds *folds) {
    bool *told = (bool *)q_arena_new(f->arena, folds->n_groups, sizeof *told);
    if (!told) return LQ_E_NOMEM;
    for (uint32_t i = 0; i < folds->n_groups; i++) {
        const q_fold_group *g = &folds->groups[i];
        uint32_t n = 0;
        if (told[i] || !g->n_consumers || f->items[g->consumers[0]].columns) continue;
        for (uint32_t j = i; j < folds->n_groups; j++) {
            const q_fold_group *h = &folds->groups[j];
            if (told[j] || !h->n_consumers || f->items[h->consumers[0]].columns || role_of(f, g) != role_of(f, h) ||
                g->refused != h->refused)
                continue;
            told[j] = true;
            n++;
        }
        q_log_write(f->log, LQ_LOG_INFO, "transform %s: inputs of %s in %u of %d layers stay as they are: %s",
                    f->transform->name, role_of(f, g), n, f->binding->layers,
                    g->refused ? g->refused : "the file has no factors of them");
    }
    return LQ_OK;
}

lq_status q_folding_apply(const q_folding *f) {
    q_folds folds;
    Q_TRY(check_transform(f));
    Q_TRY(q_folds_find(f->binding, f->arena, &folds));
    lq_status s = LQ_OK;
    for (uint32_t i = 0; i < f->binding->n_items && s == LQ_OK; i++) s = fold_item(f, &folds, i);
    if (s == LQ_OK) s = check_unmatched(f->importance);
    if (s != LQ_OK) return q_fail_in(s, "%s", f->path);
    return tell(f, &folds);
}
