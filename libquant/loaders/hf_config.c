/* hf_config.c: JSON objects as flat metadata: config.json and tokenizer_config.json.
 *
 * Refuses empty keys, keys that are too long or too many once joined; two that become equal are found by hf_dir.c.
 * Recurses at most Q_LIMIT_JSON_DEPTH deep, which the JSON scanner has checked. Layer L2. */
#include "safetensors.h"

#include <stdio.h>

/* The joined key while walking. */
typedef struct walk {
    q_hf_meta *meta;
    bool scalars_only;
    uint32_t n;
    char key[Q_HF_MAX_KEY];
} walk;

static lq_status add_value(walk *w, const q_json *v);

static lq_status push_key(walk *w, const char *name, uint64_t n, bool dot) {
    if (n == 0) return q_fail(LQ_E_FORMAT, "an empty key under '%.*s'", (int)Q_MIN(w->n, 200u), w->key);
    if (n + dot > sizeof w->key - w->n)
        return q_fail(LQ_E_LIMIT, "the key '%.*s%.*s…' is longer than %d bytes", (int)Q_MIN(w->n, 200u), w->key,
                      (int)Q_MIN(n, (uint64_t)40), name, Q_HF_MAX_KEY);
    if (dot) w->key[w->n++] = '.';
    memcpy(w->key + w->n, name, (size_t)n);
    w->n += (uint32_t)n;
    return LQ_OK;
}

static lq_status fail_key(const walk *w, lq_status s) {
    return q_fail_in(s, "key '%.*s'", (int)Q_MIN(w->n, 200u), w->key);
}

lq_status q_hf_add_meta(q_hf_meta *m, const q_meta *item) {
    if (m->n == Q_LIMIT_KEYS) return q_fail(LQ_E_LIMIT, "more than %d keys", Q_LIMIT_KEYS);
    if (m->n == m->cap) {
        const uint64_t cap = m->cap ? m->cap * 2 : 64;
        q_meta *items = (q_meta *)q_grow(m->alloc, m->items, m->n, cap, sizeof *items);
        if (!items) return LQ_E_NOMEM;
        m->items = items;
        m->cap = cap;
    }
    m->items[m->n++] = *item;
    return LQ_OK;
}

static lq_status new_meta(walk *w, q_meta_type type, q_meta **out) {
    q_hf_meta *m = w->meta;
    char *key = q_arena_str(m->arena, (q_str){w->key, w->n});
    if (!key) return LQ_E_NOMEM;
    const q_meta item = {.key = {key, w->n}, .type = type, .count = 1};
    const lq_status s = q_hf_add_meta(m, &item);
    if (s != LQ_OK) return s == LQ_E_LIMIT ? fail_key(w, s) : s;
    *out = &m->items[m->n - 1];
    return LQ_OK;
}

static lq_status copy_string(walk *w, const q_json *v, q_str *out) {
    const q_str s = v->s;
    if (s.n > Q_LIMIT_STRING) return fail_key(w, q_fail(LQ_E_LIMIT, "a string of %llu bytes", (unsigned long long)s.n));
    char *p = q_arena_str(w->meta->arena, s);
    if (!p) return LQ_E_NOMEM;
    *out = (q_str){p, s.n};
    return LQ_OK;
}

/* ---- arrays */

static bool all_of(const q_json *array, bool (*is)(const q_json *)) {
    for (const q_json *v = array->first; v; v = v->next)
        if (!is(v)) return false;
    return true;
}
static bool is_integer(const q_json *v) { return v->type == Q_JSON_INTEGER; }
static bool is_number(const q_json *v) { return v->type == Q_JSON_INTEGER || v->type == Q_JSON_REAL; }
static bool is_boolean(const q_json *v) { return v->type == Q_JSON_BOOL; }
static bool is_string(const q_json *v) { return v->type == Q_JSON_STRING; }
static bool is_natural(const q_json *v) { return is_integer(v) && v->i >= 0; }

static lq_status add_strings(walk *w, const q_json *array) {
    const uint64_t n = array->n;
    q_meta *m;
    Q_TRY(new_meta(w, Q_META_ARRAY, &m));
    q_str *strs = (q_str *)q_arena_new(w->meta->arena, n, sizeof *strs);
    if (!strs) return LQ_E_NOMEM;
    m->item = Q_META_STRING;
    m->count = n;
    m->strs = strs;
    for (const q_json *v = array->first; v; v = v->next) Q_TRY(copy_string(w, v, strs++));
    return LQ_OK;
}

static lq_status add_numbers(walk *w, const q_json *array) {
    const uint64_t n = array->n;
    const q_meta_type item = all_of(array, is_boolean)   ? Q_META_BOOL
                             : all_of(array, is_natural) ? Q_META_U64
                             : all_of(array, is_integer) ? Q_META_I64
                                                         : Q_META_F64;
    const size_t size = item == Q_META_BOOL ? 1 : 8;
    q_meta *m;
    Q_TRY(new_meta(w, Q_META_ARRAY, &m));
    uint8_t *raw = (uint8_t *)q_arena_new(w->meta->arena, n, size);
    if (!raw) return LQ_E_NOMEM;
    m->item = item;
    m->count = n;
    m->raw = raw;
    for (const q_json *v = array->first; v; v = v->next, raw += size) {
        if (item == Q_META_BOOL) *raw = v->i != 0;
        else memcpy(raw, item == Q_META_F64 ? (const void *)&v->f : (const void *)&v->i, 8);
    }
    return LQ_OK;
}

static lq_status add_array(walk *w, const q_json *array) {
    if (w->scalars_only) return LQ_OK;
    if (array->n > Q_LIMIT_ARRAY)
        return fail_key(w, q_fail(LQ_E_LIMIT, "an array of more than %d elements", Q_LIMIT_ARRAY));
    if (all_of(array, is_string)) return add_strings(w, array);
    if (all_of(array, is_number) || all_of(array, is_boolean)) return add_numbers(w, array);
    uint64_t i = 0;
    for (const q_json *v = array->first; v; v = v->next) {
        char name[24];
        const int len = snprintf(name, sizeof name, "%llu", (unsigned long long)i++);
        const uint32_t n = w->n;
        Q_TRY(push_key(w, name, (size_t)len, true));
        Q_TRY(add_value(w, v));
        w->n = n;
    }
    return LQ_OK;
}

/* ---- members */

static lq_status add_members(walk *w, const q_json *object, bool dot) {
    for (const q_json *v = object->first; v; v = v->next) {
        const uint32_t n = w->n;
        Q_TRY(push_key(w, v->key.p, v->key.n, dot));
        Q_TRY(add_value(w, v));
        w->n = n;
    }
    return LQ_OK;
}

static lq_status add_value(walk *w, const q_json *v) {
    if (v->type == Q_JSON_NULL) return LQ_OK;
    if (v->type == Q_JSON_OBJECT) return add_members(w, v, true);
    if (v->type == Q_JSON_ARRAY) return add_array(w, v);
    const bool negative = is_integer(v) && v->i < 0;
    const q_meta_type type = is_string(v)               ? Q_META_STRING
                             : is_boolean(v)            ? Q_META_BOOL
                             : v->type == Q_JSON_REAL   ? Q_META_F64
                             : negative                 ? Q_META_I64
                                                        : Q_META_U64;
    q_meta *m;
    Q_TRY(new_meta(w, type, &m));
    if (type == Q_META_STRING) return copy_string(w, v, &m->s);
    m->i = v->i;
    m->u = negative ? 0 : (uint64_t)v->i;
    m->f = v->f;
    return LQ_OK;
}

lq_status q_hf_flatten(q_hf_meta *meta, const q_json *root, const char *prefix, bool scalars_only) {
    walk w = {.meta = meta, .scalars_only = scalars_only};
    if (*prefix) Q_TRY(push_key(&w, prefix, strlen(prefix), false));
    return add_members(&w, root, false);
}
