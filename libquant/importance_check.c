/* importance_check.c: see importance_check.h. Schemes are compared by what they give to the model's tensors, not by
 * their words; adapters by their names and scales, in their order. Layer L3. */
#include "importance_check.h"

#include <stdio.h>

#include "quantize.h"

/* ---- the scheme */

/* Does the recipe give this model's tensors what a scheme's words do? Words that are none are another file's name. */
static lq_status means_the_same(const q_importance_check *c, const char *words, bool *same) {
    q_recipe *theirs;
    *same = false;
    if (q_recipe_find(c->alloc, words, &theirs) != LQ_OK) return LQ_OK;
    lq_status s = LQ_OK;
    *same = q_recipe_transform(theirs) == q_recipe_transform(c->recipe);
    for (uint32_t i = 0; i < c->binding->n_items && s == LQ_OK && *same; i++) {
        q_recipe_choice a, b;
        s = q_quantize_choose(theirs, c->binding, i, true, &a);
        if (s == LQ_OK) s = q_quantize_choose(c->recipe, c->binding, i, true, &b);
        *same = s == LQ_OK && a.format == b.format && a.quantizer == b.quantizer;
    }
    q_recipe_close(theirs);
    return s;
}

static lq_status check_scheme(const q_importance_check *c) {
    const q_importance *im = c->importance;
    bool same = q_str_is(im->scheme, c->scheme);
    if (!im->dir || !im->scheme.n) return LQ_OK;
    if (!same) Q_TRY(means_the_same(c, im->scheme.p, &same)); /* a copy, with a NUL */
    if (same) return LQ_OK;
    q_log_write(c->log, LQ_LOG_WARN,
                "%s: it was measured for scheme %.*s, not %s: its inputs are those behind matrices "
                "quantized so%s",
                c->path, Q_STR_ARG(im->scheme), c->scheme,
                im->transform.n ? ", its factors and clips were chosen for it" : "");
    return LQ_OK;
}

/* ---- adapters */

static lq_status check_adapters(const q_importance_check *c) {
    const q_directory *dir = c->binding->dir;
    q_arena arena = {.alloc = c->alloc};
    char *merged, list[256];
    Q_TRY(q_loras_list(&arena, dir->meta, dir->n_meta, c->loras, &merged));
    const q_str measured = c->importance->adapters;
    if (!q_str_is(measured, merged) && (measured.n || q_loras_count(c->loras))) {
        snprintf(list, sizeof list, "%.*s", (int)Q_MIN(measured.n, sizeof list - 1), measured.n ? measured.p : "");
        q_log_write(c->log, LQ_LOG_WARN,
                    "%s: it was measured %s%s, and the adapters of this model are: %s; its inputs are others. "
                    "Merge first (`lq quantize --lora ADAPTER -s f16`), then calibrate and quantize what that gives",
                    c->path, measured.n ? "on a model with merged adapters: " : "without adapters, as far as it says",
                    list, merged[0] ? merged : "none");
    }
    q_arena_free(&arena);
    return LQ_OK;
}

/* ---- the model */

lq_status q_importance_suits(const q_importance_check *c) {
    const q_importance *im = c->importance;
    uint32_t extra = 0, first = 0;
    for (uint32_t i = im->n_entries; i-- > 0;) {
        if (im->entries[i].matched) continue;
        extra++;
        first = i;
    }
    if (extra == im->n_entries)
        return q_fail(LQ_E_INCONSISTENT, "%s is for another model: none of its %u entries is for a tensor of %s (the "
                      "first: %.*s)", c->path, im->n_entries, c->src, Q_STR_ARG(im->entries[0].name));
    Q_TRY(check_scheme(c));
    Q_TRY(check_adapters(c));
    if (extra)
        q_log_write(c->log, LQ_LOG_WARN, "%s: %u of its %u entries are for no tensor of the model (the first: %.*s)",
                    c->path, extra, im->n_entries, Q_STR_ARG(im->entries[first].name));
    return LQ_OK;
}
