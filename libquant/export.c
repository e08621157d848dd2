/* export.c: the parts of a Hugging Face directory that are not tensors.
 *
 * config.json is taken over text by text: members keep their order and spelling, numbers their digits; only the type of
 * the weights and the quantization are replaced. Files of the tokenizer and of generation are copied by name; anything
 * else in the source stays there. Layer L3. */
#include "export.h"

#include <stdlib.h>

enum { PATH_BYTES = 4096, CONFIG_BYTES = 16 << 20, SIDE_BYTES = 64 << 20 };

static const char *const side_files[] = {
    "tokenizer.model",        "tokenizer.json",   "tokenizer_config.json", "special_tokens_map.json",
    "added_tokens.json",      "vocab.json",       "merges.txt",            "chat_template.jinja",
    "generation_config.json", "chat_template.json"};
_Static_assert(Q_COUNT(side_files) < Q_EXPORT_KEYS, "config.json comes too");

/* ------------------------------------------------------------------------------------------------ whether and where */

static bool ends_in_gguf(const char *path) {
    static const char end[] = ".gguf";
    size_t n = strlen(path);
    while (n && path[n - 1] == '/') n--;
    return n >= sizeof end - 1 && memcmp(path + n - (sizeof end - 1), end, sizeof end - 1) == 0;
}

lq_status q_export_decide(const q_recipe *recipe, const char *scheme, const q_directory *dir, const char *src,
                          const char *dst, bool *directory) {
    const char *instead;
    *directory = q_recipe_method(recipe, &instead) != NULL;
    if (*directory && dst && ends_in_gguf(dst))
        return q_fail(LQ_E_UNSUPPORTED,
                      "scheme %s makes a Hugging Face directory, and %s names a GGUF file: leave out '.gguf'%s%s",
                      scheme, dst, instead ? ", or take the nearest scheme of GGUF files: " : "",
                      instead ? instead : "");
    if (!*directory && dst && !ends_in_gguf(dst)) {
        q_path_kind kind;
        const size_t n = strlen(dst);
        Q_TRY(q_path_kind_of(dst, &kind));
        *directory = kind == Q_PATH_DIR || (n && dst[n - 1] == '/');
    }
    const bool floats = strcmp(scheme, "f16") == 0 || strcmp(scheme, "bf16") == 0 || strcmp(scheme, "f32") == 0;
    if (*directory && dir->names != Q_NAMES_HF && !q_recipe_method(recipe, NULL) && !floats)
        return q_fail(LQ_E_ARG, "%s is a directory, and scheme %s makes a GGUF file: name a file *.gguf", dst, scheme);
    if (*directory && dir->names != Q_NAMES_HF)
        return q_fail(LQ_E_UNSUPPORTED,
                      "%s is a GGUF file: it has no config.json and no tokenizer's files, of which a Hugging "
                      "Face directory is made; quantize from the model's own directory",
                      src);
    return LQ_OK;
}

lq_status q_export_spares(const char *dst, const char *input) {
    char folder[PATH_BYTES];
    bool same;
    Q_TRY(q_path_parent(folder, sizeof folder, input));
    Q_TRY(q_path_same(dst, folder, &same));
    if (!same) Q_TRY(q_path_within(dst, input, &same));
    return !same ? LQ_OK : q_fail(LQ_E_ARG, "%s: the output is the directory of an input (%s)", dst, input);
}

/* ------------------------------------------------------------------------------------------------ config.json */

static const char *dtype_name(const q_format *f) {
    static const char *const names[][2] = {{"f32", "\"float32\""}, {"f16", "\"float16\""}, {"bf16", "\"bfloat16\""}};
    for (size_t i = 0; i < Q_COUNT(names); i++)
        if (strcmp(names[i][0], f->name) == 0) return names[i][1];
    return "\"float32\"";
}

static void put_member(q_json_text *t, q_str key, q_str value) {
    q_json_put(t, t->n ? ",\n  " : "{\n  ");
    q_json_put_string(t, key);
    q_json_put(t, ": ");
    q_json_put_bytes(t, value);
}

static lq_status rewrite(q_arena *arena, const uint8_t *text, uint64_t n, const q_format *dtype, const q_method *method,
                         const q_packed_matrix *m, q_json_text *out) {
    q_json_reader r = {.data = text, .n = n, .what = "config.json", .arena = arena};
    bool first = true, more, has_dtype = false;
    const q_str type = q_str_of(dtype_name(dtype));
    Q_TRY(q_json_expect(&r, '{'));
    for (;;) {
        q_str key;
        Q_TRY(q_json_next(&r, '}', &first, &more));
        if (!more) break;
        Q_TRY(q_json_key(&r, &key));
        while (r.at < n && (text[r.at] == ' ' || text[r.at] == '\n' || text[r.at] == '\r' || text[r.at] == '\t'))
            r.at++;
        const uint64_t begin = r.at;
        Q_TRY(q_json_skip(&r));
        const bool is_dtype = q_str_is(key, "torch_dtype") || q_str_is(key, "dtype");
        if (q_str_is(key, "quantization_config") || (is_dtype && has_dtype)) continue;
        put_member(out, key, is_dtype ? type : (q_str){(const char *)text + begin, r.at - begin});
        has_dtype |= is_dtype;
    }
    Q_TRY(q_json_end(&r));
    if (!has_dtype) put_member(out, q_str_of("torch_dtype"), type);
    if (method) {
        put_member(out, q_str_of("quantization_config"), q_str_of(""));
        method->config(m, out);
    }
    q_json_put(out, "\n}\n");
    return out->failed ? LQ_E_NOMEM : LQ_OK;
}

/* ------------------------------------------------------------------------------------------------ files */

static lq_status add_file(q_arena *arena, const char *name, const void *text, uint64_t n, q_meta *out) {
    char *copy = (char *)q_arena_new(arena, n + 1, 1);
    if (!copy) return LQ_E_NOMEM;
    memcpy(copy, text, (size_t)n);
    *out = (q_meta){.key = q_str_of(name), .type = Q_META_STRING, .count = 1, .s = {copy, n}};
    return LQ_OK;
}

lq_status q_export_keys(q_arena *arena, const q_directory *dir, const q_format *dtype, const q_method *method,
                        const q_packed_matrix *m, q_meta *out, uint32_t *n) {
    char folder[PATH_BYTES], path[PATH_BYTES];
    uint8_t *text;
    uint64_t bytes;
    *n = 0;
    Q_TRY(q_path_parent(folder, sizeof folder, q_file_path(dir->files[0])));
    Q_TRY(q_path_join(path, sizeof path, folder, q_str_of("config.json")));
    Q_TRY(q_file_slurp(arena->alloc, path, CONFIG_BYTES, &text, &bytes));
    q_json_text config = {.alloc = arena->alloc};
    lq_status s = rewrite(arena, text, bytes, dtype, method, m, &config);
    if (s == LQ_OK) s = add_file(arena, "config.json", config.p, config.n, &out[(*n)++]);
    q_delete(arena->alloc, config.p);
    q_delete(arena->alloc, text);
    for (size_t i = 0; s == LQ_OK && i < Q_COUNT(side_files); i++) {
        q_path_kind kind;
        s = q_path_join(path, sizeof path, folder, q_str_of(side_files[i]));
        if (s == LQ_OK) s = q_path_kind_of(path, &kind);
        if (s != LQ_OK || kind != Q_PATH_FILE) continue;
        s = q_file_slurp(arena->alloc, path, SIDE_BYTES, &text, &bytes);
        if (s != LQ_OK) break;
        s = add_file(arena, side_files[i], text, bytes, &out[(*n)++]);
        q_delete(arena->alloc, text);
    }
    return s;
}

uint64_t q_export_bytes(const q_out_tensor *t) {
    uint64_t bytes = 0, rows = 1;
    for (uint32_t i = 1; i < t->rank; i++) rows *= t->shape[i];
    if (t->format) (void)q_row_bytes(t->format, t->shape[0], &bytes);
    else bytes = t->shape[0] * (strtoull(t->type_name + 1, NULL, 10) / 8); /* "i32" */
    return bytes * rows;
}
