/* file_keys.c: see file_keys.h. Names of files go in without their folders, so that files do not depend on where they
 * were made. Layer L3. */
#include "file_keys.h"

/* The tokenizer's keys, RoPE's, names, file type, version, importance. */
enum { EXTRA_KEYS = Q_TEXT_EXPORT_MAX + Q_ROPE_KEYS + 12 };

static q_meta key_u32(const char *key, uint32_t v) {
    q_meta m;
    memset(&m, 0, sizeof m);
    m.key = q_str_of(key);
    m.type = Q_META_U32;
    m.count = 1;
    m.u = v;
    m.i = v;
    m.f = v;
    return m;
}

static q_meta key_text(const char *key, q_str text) {
    return (q_meta){.key = q_str_of(key), .type = Q_META_STRING, .count = 1, .s = text};
}

const char *q_last_name(q_arena *arena, const char *path, const char *otherwise) {
    size_t end = strlen(path);
    while (end > 1 && path[end - 1] == '/') end--;
    size_t begin = end;
    while (begin > 0 && path[begin - 1] != '/') begin--;
    const q_str s = {path + begin, end - begin};
    if (s.n == 0 || q_str_is(s, ".") || q_str_is(s, "..") || q_str_is(s, "/")) return otherwise;
    char *name = q_arena_str(arena, s);
    /* File names are bytes, strings in GGUF are text: outside ASCII the container's check decides, control bytes go. */
    for (char *p = name; p && *p; p++)
        if ((unsigned char)*p < 0x20 || *p == 0x7F) *p = '_';
    return name;
}

/* Where the importance came from, in the keys that other engines use. */
static lq_status importance_keys(const q_file_keys *k, q_arena *arena, q_meta *out, uint32_t *n) {
    const q_importance *im = k->importance;
    const char *file = q_last_name(arena, k->importance_path, "importance");
    if (!file) return LQ_E_NOMEM;
    out[(*n)++] = key_text("quantize.imatrix.file", q_str_of(file));
    if (im->dataset.n) out[(*n)++] = key_text("quantize.imatrix.dataset", im->dataset);
    out[(*n)++] = key_u32("quantize.imatrix.entries_count", im->n_entries);
    if (im->chunks) out[(*n)++] = key_u32("quantize.imatrix.chunks_count", im->chunks);
    return LQ_OK;
}

/* The model's, as the source has them or as the standard wants them. */
static lq_status model_keys(const q_file_keys *k, q_arena *arena, q_meta *out, uint32_t cap, uint32_t *n) {
    const q_directory *dir = k->binding->dir;
    uint32_t more = 0;
    if (dir->names == Q_NAMES_GGUF) {
        memcpy(out, dir->meta, dir->n_meta * sizeof(q_meta));
        *n = dir->n_meta;
        return LQ_OK;
    }
    const char *name = q_last_name(arena, k->src, "model");
    if (!name) return LQ_E_NOMEM;
    Q_TRY(q_bind_export(k->binding, k->log, name, k->file_type < 0 ? 0 : (uint32_t)k->file_type, arena, out, cap, n));
    Q_TRY(q_text_export(k->text, arena, out + *n, cap - *n, &more));
    *n += more;
    return LQ_OK;
}

lq_status q_file_keys_make(const q_file_keys *k, q_arena *arena, q_meta **out, uint32_t *n_out) {
    const uint64_t cap =
        (uint64_t)k->binding->dir->n_meta + k->binding->arch->n_hparams + EXTRA_KEYS + 2 * q_loras_count(k->loras);
    q_meta *meta = *out = Q_NEW(arena->alloc, q_meta, cap);
    uint32_t all = 0, n = 0;
    bool has_type = false;
    if (!meta) return LQ_E_NOMEM;
    Q_TRY(model_keys(k, arena, meta, (uint32_t)cap, &all));
    for (uint32_t i = 0; i < all; i++) {
        const bool is_type = q_str_is(meta[i].key, "general.file_type");
        if (q_str_begins(meta[i].key, "split.") || q_str_begins(meta[i].key, "quantize.imatrix.") ||
            q_str_is(meta[i].key, "general.quantization_version"))
            continue;
        if (is_type && k->file_type < 0) continue;
        has_type |= is_type;
        meta[n++] = is_type ? key_u32("general.file_type", (uint32_t)k->file_type) : meta[i];
    }
    if (!has_type && k->file_type >= 0) meta[n++] = key_u32("general.file_type", (uint32_t)k->file_type);
    if (k->quantized) meta[n++] = key_u32("general.quantization_version", 2);
    Q_TRY(q_loras_keys(k->loras, arena, meta, &n));
    if (k->importance) Q_TRY(importance_keys(k, arena, meta, &n));
    *n_out = n;
    return LQ_OK;
}
