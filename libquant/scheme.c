/* scheme.c: what users name: a recipe or a format, and what changes it: "q4_k_m", "q4_k_m:gptq", "awq+q4_k_m",
 * "q4_k_m+imatrix".
 *
 * Owns the grammar of these words (recipe.h shows it), and the sentence for a word that is none: with the nearest one
 * and a list of all. What a recipe says inside is recipe.c's. Layer L3. */
#include "recipe.h"

#include <stdio.h>

enum { LIMIT_SCHEME = 200 };

/* ---- names */

/* Recipes, then the formats that are not recipes too; NULL past the end. */
static const char *name_at(uint32_t i) {
    const uint32_t recipes = q_recipe_count();
    if (i < recipes) return q_recipe_name(i, NULL);
    i -= recipes;
    for (uint32_t f = 0; f < q_format_count(); f++) {
        bool seen = false;
        for (uint32_t r = 0; r < recipes; r++) seen |= strcmp(q_recipe_name(r, NULL), q_formats[f]->name) == 0;
        if (!seen && i-- == 0) return q_formats[f]->name;
    }
    return NULL;
}

static lq_status unknown(const char *word) {
    char list[1000] = "";
    const char *nearest = "";
    uint32_t least = UINT32_MAX;
    size_t n = 0;
    for (uint32_t i = 0; name_at(i); i++) {
        const uint32_t d = q_str_distance(q_str_of(word), name_at(i));
        if (d < least) {
            least = d;
            nearest = name_at(i);
        }
        n += (size_t)snprintf(list + n, sizeof list - n, " %s", name_at(i));
        n = Q_MIN(n, sizeof list - 1);
    }
    return q_fail(LQ_E_ARG, "there is no scheme or format '%.100s'; the nearest is %s; there are:%s", word, nearest,
                  list);
}

static lq_status no_quantizer(const char *word) {
    char list[200] = "";
    size_t n = 0;
    for (const q_quantizer *const *q = q_quantizers; *q; q++) {
        n += (size_t)snprintf(list + n, sizeof list - n, " %s", (*q)->name);
        n = Q_MIN(n, sizeof list - 1);
    }
    return q_fail(LQ_E_ARG, "there is no quantizer '%.100s'; there are:%s", word, list);
}

/* ---- words */

typedef struct words {
    char text[LIMIT_SCHEME + 1]; /* of the scheme, cut into the pieces below */
    char *base, *quantizer;
    const q_transform *transform;
    bool statistics;
} words;

static bool means_statistics(const char *word) {
    return strcmp(word, "imatrix") == 0 || strcmp(word, "importance") == 0;
}

/* A word that changes the recipe but is none; false = it is the recipe. */
static lq_status take_change(const char *scheme, const char *word, words *w, bool *taken) {
    const q_transform *t = q_transform_find(word);
    *taken = t || means_statistics(word);
    if (t && w->transform && t != w->transform)
        return q_fail(LQ_E_ARG, "scheme '%s' names two transforms: %s and %s", scheme, w->transform->name, t->name);
    if (t) w->transform = t;
    if (means_statistics(word)) w->statistics = true;
    return LQ_OK;
}

static lq_status two_names(const char *scheme, const char *a, const char *b) {
    char list[200] = "";
    size_t n = 0;
    for (const q_transform *const *t = q_transforms; *t; t++) {
        n += (size_t)snprintf(list + n, sizeof list - n, " %s", (*t)->name);
        n = Q_MIN(n, sizeof list - 1);
    }
    return q_fail(LQ_E_ARG, "scheme '%s' names two: '%s' and '%s'; what may be joined to one by '+' is: imatrix%s",
                  scheme, a, b, list);
}

static lq_status cut(const char *scheme, words *w) {
    memset(w, 0, sizeof *w);
    if (strlen(scheme) > LIMIT_SCHEME)
        return q_fail(LQ_E_ARG, "scheme '%.40s...' is longer than %d bytes", scheme, LIMIT_SCHEME);
    memcpy(w->text, scheme, strlen(scheme));
    for (char *word = w->text, *next; word; word = next) {
        next = strchr(word, '+');
        if (next) *next++ = 0;
        bool taken;
        Q_TRY(take_change(scheme, word, w, &taken));
        if (taken) continue;
        if (w->base) return two_names(scheme, w->base, word);
        w->base = word;
        w->quantizer = strchr(word, ':');
        if (w->quantizer) *w->quantizer++ = 0;
    }
    return w->base ? LQ_OK
                   : q_fail(LQ_E_ARG, "scheme '%s' names no recipe or format: add one by '+', as in %s+q4_k_m", scheme,
                            w->transform ? w->transform->name : "imatrix");
}

lq_status q_recipe_find(const q_alloc *a, const char *scheme, q_recipe **out) {
    words w;
    q_recipe *r;
    Q_TRY(cut(scheme, &w));
    const q_quantizer *q = w.quantizer ? q_quantizer_find(w.quantizer) : NULL;
    if (w.quantizer && !q) return no_quantizer(w.quantizer);
    Q_TRY(q_recipe_named(a, w.base, &r));
    if (!r) return unknown(w.base);
    if (w.statistics) q_recipe_demand_statistics(r);
    lq_status s = q ? q_recipe_set_quantizer(r, q) : LQ_OK;
    if (s == LQ_OK && w.transform) s = q_recipe_set_transform(r, w.transform);
    if (s != LQ_OK) {
        q_recipe_close(r);
        return s;
    }
    *out = r;
    return LQ_OK;
}
