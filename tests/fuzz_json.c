/* fuzz_json.c: one text through both doors: the pull reader and the tree, and a tree through the flattening.
 *
 * The scanner is as strict as jansson or stricter: a text that it passes fails as a tree only for duplicate keys, reals
 * out of range and integers out of range; and what is a tree is always passed. */
#include "help_fuzz.h"

#include "../libquant/loaders/safetensors.h"

static void flatten(const json_t *tree, const char *prefix, bool scalars_only) {
    q_arena arena = {.alloc = &q_alloc_libc};
    q_hf_meta meta = {.alloc = &q_alloc_libc, .arena = &arena};
    const lq_status s = q_hf_flatten(&meta, tree, prefix, scalars_only);
    demand(s == LQ_OK || s == LQ_E_FORMAT || s == LQ_E_LIMIT);
    q_delete(&q_alloc_libc, meta.items);
    q_arena_free(&arena);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size) {
    uint8_t *text = (uint8_t *)fuzz_copy(data, size);
    q_json_reader r = {.data = text, .n = size, .what = "text"};
    const bool passed = q_json_skip(&r) == LQ_OK && q_json_end(&r) == LQ_OK;
    for (uint32_t flags = 0; flags < 2; flags++) {
        json_t *tree;
        if (q_json_parse(&q_alloc_libc, text, size, flags, "text", &tree) != LQ_OK) continue;
        demand(passed);
        flatten(tree, flags ? "tokenizer_config." : "", flags != 0);
        q_json_free(tree);
    }
    json_error_t e;
    json_t *lax = json_loadb((const char *)text, size, JSON_REJECT_DUPLICATES | JSON_DECODE_ANY, &e);
    json_decref(lax);
    if (passed && !lax) {
        const enum json_error_code code = json_error_code(&e);
        demand(code == json_error_duplicate_key || code == json_error_numeric_overflow);
    }
    free(text);
    return 0;
}
