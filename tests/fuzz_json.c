/* fuzz_json.c: one text through both doors, the pull reader and the tree, and a tree through the flattening; beside
 * them jansson, an independent parser.
 *
 * The scanner is as strict as jansson or stricter: a text that it passes is refused by jansson only for duplicate keys,
 * reals and integers out of range. What is a tree is always passed, and equals jansson's. */
#include "help_fuzz.h"

#include <jansson.h>

#include "../libquant/loaders/safetensors.h"

static void flatten(const q_json *tree, const char *prefix, bool scalars_only) {
    q_arena arena = {.alloc = &q_alloc_libc};
    q_hf_meta meta = {.alloc = &q_alloc_libc, .arena = &arena};
    const lq_status s = q_hf_flatten(&meta, tree, prefix, scalars_only);
    demand(s == LQ_OK || s == LQ_E_FORMAT || s == LQ_E_LIMIT);
    q_delete(&q_alloc_libc, meta.items);
    q_arena_free(&arena);
}

static bool is_same_text(q_str a, const char *b, size_t n) { return a.n == n && memcmp(a.p, b, n) == 0; }

/* Ours and jansson's tree of one text. */
static bool is_same(const q_json *a, json_t *b) {
    const q_json *v = a->type >= Q_JSON_ARRAY ? a->first : NULL;
    switch (a->type) {
    case Q_JSON_NULL: return json_is_null(b);
    case Q_JSON_BOOL: return json_is_boolean(b) && json_is_true(b) == (a->i != 0);
    case Q_JSON_INTEGER: return json_is_integer(b) && json_integer_value(b) == a->i && json_number_value(b) == a->f;
    case Q_JSON_REAL: return json_is_real(b) && json_real_value(b) == a->f;
    case Q_JSON_STRING: return json_is_string(b) && is_same_text(a->s, json_string_value(b), json_string_length(b));
    case Q_JSON_ARRAY:
        if (!json_is_array(b) || json_array_size(b) != a->n) return false;
        for (size_t i = 0; v; v = v->next, i++)
            if (!is_same(v, json_array_get(b, i))) return false;
        return true;
    case Q_JSON_OBJECT:
        if (!json_is_object(b) || json_object_size(b) != a->n) return false;
        for (void *i = json_object_iter(b); v; v = v->next, i = json_object_iter_next(b, i))
            if (!i || !is_same_text(v->key, json_object_iter_key(i), json_object_iter_key_len(i)) ||
                !is_same(v, json_object_iter_value(i)))
                return false;
        return true;
    }
    return false;
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size) {
    uint8_t *text = (uint8_t *)fuzz_copy(data, size);
    q_json_reader r = {.data = text, .n = size, .what = "text"};
    const bool passed = q_json_skip(&r) == LQ_OK && q_json_end(&r) == LQ_OK;
    json_error_t e = {0};
    json_t *lax = json_loadb((const char *)text, size, JSON_REJECT_DUPLICATES | JSON_DECODE_ANY, &e);
    for (uint32_t flags = 0; flags < 2; flags++) {
        q_arena arena = {.alloc = &q_alloc_libc};
        const q_json *tree;
        if (q_json_parse(&arena, text, size, flags, "text", &tree) == LQ_OK) {
            demand(passed);
            demand(lax ? is_same(tree, lax) : flags != 0);
            flatten(tree, flags ? "tokenizer_config." : "", flags != 0);
        }
        q_arena_free(&arena);
    }
    json_decref(lax);
    if (passed && !lax) {
        const enum json_error_code code = json_error_code(&e);
        demand(code == json_error_duplicate_key || code == json_error_numeric_overflow);
    }
    free(text);
    return 0;
}
