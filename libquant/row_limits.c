/* row_limits.c: limits of weights from an importance file. See row_limits.h. Layer L3. */
#include "row_limits.h"

#include <math.h>

bool q_limits_fit(const q_importance_entry *e, const q_recipe_choice *c, uint64_t k) {
    return e && e->clip && c->format->weights > 1 && c->quantizer->uses == Q_NEEDS_NONE &&
           e->clip->shape[0] * (uint64_t)c->format->weights == k;
}

uint64_t q_limits_bytes(const q_importance_entry *e, uint64_t rows) {
    return e ? 2 * q_new_bytes(e->clip->shape[0] * rows * sizeof(float)) : 0;
}

/* Row `r` of the file's is which of those that are read? */
static uint64_t row_of(const q_bind_item *named, const q_bind_item *read, uint64_t r) {
    return read->map == named->map ? r : q_bind_source_row(named, r);
}

lq_status q_limits_take(const q_alloc *a, const q_importance *im, const q_importance_entry *e, const q_bind_item *named,
                        const q_bind_item *read, q_limits *out) {
    *out = (q_limits){NULL, 0};
    if (!e) return LQ_OK;
    const uint64_t groups = e->clip->shape[0], rows = read->src->rows;
    float *all = (float *)q_new_raw(a, groups * rows, sizeof *all);
    float *most = (float *)q_new_raw(a, groups * rows, sizeof *most);
    const lq_status s = all && most ? q_importance_clip(im, e, rows, all) : LQ_E_NOMEM;
    for (uint64_t r = 0; r < rows && s == LQ_OK; r++) {
        const uint64_t to = row_of(named, read, r);
        const float by = read->rows ? read->rows[to] : 1.0f;
        for (uint64_t g = 0; g < groups; g++) most[to * groups + g] = all[r * groups + g] / by;
    }
    q_delete(a, all);
    if (s == LQ_OK) *out = (q_limits){most, groups};
    else q_delete(a, most);
    return s;
}

void q_limits_release(const q_alloc *a, q_limits *l) {
    q_delete(a, l->most);
    l->most = NULL;
}

void q_limits_clamp(const float *most, uint64_t groups, uint64_t k, uint64_t n, const float *x, float *y) {
    const uint64_t width = k / groups;
    for (uint64_t g = 0; g < n * groups; g++)
        for (uint64_t i = g * width; i < (g + 1) * width; i++) y[i] = fminf(fmaxf(x[i], -most[g]), most[g]);
}
