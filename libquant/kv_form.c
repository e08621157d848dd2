/* kv_form.c: the table of forms that keys and values are kept in, and the sizes of pages. Owns nothing. Layer L1. */
#include "kv_form.h"

#include <stdio.h>

#define KV_FORM(name, turned, most) extern const q_format q_format_##name;
#include "kv_forms.def"
#undef KV_FORM

#define KV_FORM(name, turned, most) {&q_format_##name, turned, most},
const q_kv_kind q_kv_kinds[] = {
#include "kv_forms.def"
};
#undef KV_FORM

uint32_t q_kv_kind_count(void) { return (uint32_t)Q_COUNT(q_kv_kinds); }

const q_kv_kind *q_kv_kind_find(const char *name) {
    for (uint32_t i = 0; name && i < q_kv_kind_count(); i++)
        if (strcmp(q_kv_kinds[i].format->name, name) == 0) return &q_kv_kinds[i];
    return NULL;
}

const char *q_kv_kind_names(char *text, size_t n) {
    size_t at = 0;
    text[0] = 0;
    for (uint32_t i = 0; i < q_kv_kind_count() && at < n; i++)
        at += (size_t)snprintf(text + at, n - at, "%s%s", i ? ", " : "", q_kv_kinds[i].format->name);
    return text;
}

bool q_kv_form_make(const q_kv_kind *kind, int32_t width, q_kv_form *out) {
    uint64_t bytes;
    *out = (q_kv_form){.format = kind->format, .width = width, .most = kind->most};
    if (!q_row_bytes(kind->format, (uint64_t)width, &bytes)) return false;
    out->bytes = (int32_t)bytes;
    if (kind->turned)
        for (out->turn = 1; out->turn < Q_KV_MOST_TURN && width % (2 * out->turn) == 0;) out->turn *= 2;
    return true;
}

void q_kv_pool_lay(q_kv_pool *pool) {
    const uint64_t each = (uint64_t)pool->k.bytes + (pool->v.width ? (uint64_t)pool->v.bytes : 0);
    pool->layer_bytes = (uint64_t)pool->heads * Q_KV_TOKENS * each;
    pool->page_bytes = (uint64_t)pool->layers * pool->layer_bytes;
}
