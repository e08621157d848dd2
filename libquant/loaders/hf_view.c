/* hf_view.c: quantized Hugging Face directories: from the tensors of a file to views of the weights that they make up.
 *
 * Owns the choice of the kind by quantization_config.quant_method, and that configuration and tensors say the same:
 * refuses methods and fields that it does not know, tensors of a method that the configuration does not name, and a
 * method of which there is no tensor. What the tensors of a method mean is its kind's business. Layer L2. */
#include "hf_view.h"

#include <stdio.h>

static const char prefix[] = "quantization_config.";
enum { OWN, CLAIMED, VIEW }; /* state */
enum { LARGE = 1 << 20 /* bytes that are not taken for granted */ };

/* ------------------------------------------------------------------------------------------------ configuration */

const q_meta *q_hf_key(const q_hf_reader *r, const char *name) {
    char key[256];
    snprintf(key, sizeof key, "%s%s", prefix, name);
    return q_directory_meta(r->dir, key);
}

static bool under(q_str key, const char *name) {
    const size_t n = strlen(name);
    return key.n >= n && memcmp(key.p, name, n) == 0 && (key.n == n || key.p[n] == '.');
}

static const char *value_text(q_hf_reader *r, const q_meta *m) {
    if (m->type == Q_META_STRING) snprintf(r->text, sizeof r->text, "%.*s", (int)Q_MIN(m->s.n, (uint64_t)60), m->s.p);
    else if (m->type == Q_META_BOOL) snprintf(r->text, sizeof r->text, "%s", m->i ? "true" : "false");
    else if (m->type == Q_META_ARRAY) snprintf(r->text, sizeof r->text, "[%llu values]", (unsigned long long)m->count);
    else snprintf(r->text, sizeof r->text, "%.15g", m->f);
    return r->text;
}

lq_status q_hf_check_fields(q_hf_reader *r, const char *base, const q_hf_field *fields, size_t n) {
    const size_t skip = sizeof prefix - 1 + strlen(base);
    for (uint32_t i = 0; i < r->dir->n_meta; i++) {
        const q_meta *m = &r->dir->meta[i];
        if (m->key.n < skip || memcmp(m->key.p, prefix, sizeof prefix - 1) != 0 ||
            memcmp(m->key.p + sizeof prefix - 1, base, strlen(base)) != 0)
            continue;
        const q_str key = {m->key.p + skip, m->key.n - skip};
        size_t f = 0;
        while (f < n && !under(key, fields[f].name)) f++;
        if (q_str_is(key, "quant_method")) continue;
        if (f == n)
            return q_fail(LQ_E_UNSUPPORTED,
                          "config.json: the field '%.*s' is not understood, and could change what the "
                          "weights are",
                          Q_STR_ARG(m->key));
        if (fields[f].allowed && !q_listed(fields[f].allowed, q_str_of(value_text(r, m))))
            return q_fail(LQ_E_UNSUPPORTED, "config.json: the field '%.*s' is '%s'; this build supports %s",
                          Q_STR_ARG(m->key), r->text, fields[f].allowed);
    }
    return LQ_OK;
}

lq_status q_hf_integer(const q_hf_reader *r, const char *name, int64_t min, int64_t max, int64_t otherwise,
                       int64_t *out) {
    const q_meta *m = q_hf_key(r, name);
    *out = otherwise;
    if (!m && otherwise >= min) return LQ_OK;
    if (!m) return q_fail(LQ_E_INCONSISTENT, "config.json: the field '%s%s' is missing", prefix, name);
    if (m->type != Q_META_U64 && m->type != Q_META_I64)
        return q_fail(LQ_E_INCONSISTENT, "config.json: the field '%s%s' must be an integer", prefix, name);
    if (m->i < min || m->i > max)
        return q_fail(LQ_E_UNSUPPORTED, "config.json: the field '%s%s' is %lld, outside %lld to %lld", prefix, name,
                      (long long)m->i, (long long)min, (long long)max);
    *out = m->i;
    return LQ_OK;
}

lq_status q_hf_flag(const q_hf_reader *r, const char *name, bool otherwise, bool *out) {
    const q_meta *m = q_hf_key(r, name);
    *out = otherwise;
    if (!m) return LQ_OK;
    if (m->type != Q_META_BOOL)
        return q_fail(LQ_E_INCONSISTENT, "config.json: the field '%s%s' must be true or false", prefix, name);
    *out = m->i != 0;
    return LQ_OK;
}

bool q_hf_word(const q_hf_reader *r, const char *name, const char *word) {
    const q_meta *m = q_hf_key(r, name);
    return m && m->type == Q_META_STRING && q_str_is(m->s, word);
}

/* ------------------------------------------------------------------------------------------------ tensors */

bool q_hf_module(const q_tensor *t, const char *suffix, q_str *module) {
    const size_t n = strlen(suffix);
    if (t->name.n <= n || memcmp(t->name.p + t->name.n - n, suffix, n) != 0) return false;
    *module = (q_str){t->name.p, t->name.n - n};
    return true;
}

static lq_status joined(char *buf, size_t cap, q_str module, const char *suffix, q_str *name) {
    const size_t n = strlen(suffix);
    if (module.n > cap - n) return q_fail(LQ_E_LIMIT, "the name '%.*s…' is too long", Q_STR_ARG(module));
    memcpy(buf, module.p, (size_t)module.n);
    memcpy(buf + module.n, suffix, n);
    *name = (q_str){buf, module.n + n};
    return LQ_OK;
}

const q_tensor *q_hf_part(const q_hf_reader *r, q_str module, const char *suffix) {
    char buf[1024];
    q_str name;
    return joined(buf, sizeof buf, module, suffix, &name) == LQ_OK ? q_directory_tensor(r->dir, name) : NULL;
}

lq_status q_hf_at(const q_hf_reader *r, lq_status s, const q_tensor *t) {
    return s == LQ_OK ? s : q_fail_in(s, "%s: tensor '%.*s'", q_file_path(r->dir->files[t->file]), Q_STR_ARG(t->name));
}

lq_status q_hf_need(q_hf_reader *r, q_str module, const char *suffix, const char *types, uint64_t k, uint64_t rows,
                    const q_tensor **out) {
    const q_tensor *t = q_hf_part(r, module, suffix);
    if (!t)
        return q_fail(LQ_E_INCONSISTENT, "tensor '%.*s%s' is missing, which %s needs", Q_STR_ARG(module), suffix,
                      r->kind->method);
    if (!q_listed(types, q_str_of(t->type_name)))
        return q_hf_at(r, q_fail(LQ_E_INCONSISTENT, "its type is %s, not %s", t->type_name, types), t);
    if (t->rank != (rows ? 2u : 1u) || t->shape[0] != k || t->rows != (rows ? rows : 1))
        return q_hf_at(r,
                       q_fail(LQ_E_INCONSISTENT, "its shape is %u-dimensional, %llu x %llu; %llu x %llu is needed",
                              t->rank, (unsigned long long)t->rows, (unsigned long long)t->shape[0],
                              (unsigned long long)(rows ? rows : 1), (unsigned long long)k),
                       t);
    q_hf_claim(r, t);
    *out = t;
    return LQ_OK;
}

void q_hf_claim(q_hf_reader *r, const q_tensor *part) {
    uint8_t *state = &r->state[part - r->dir->tensors];
    if (*state == OWN) *state = CLAIMED;
}

void q_hf_spare_activations(q_hf_reader *r, q_str module) {
    static const char *const names[] = {".input_scale", ".input_zero_point", ".input_global_scale",
                                        ".activation_scale"};
    for (size_t i = 0; i < Q_COUNT(names); i++) {
        const q_tensor *t = q_hf_part(r, module, names[i]);
        if (!t) continue;
        q_hf_claim(r, t);
        if (r->activations++ == 0) r->activation = t;
    }
}

lq_status q_hf_add(q_hf_reader *r, q_str module, const q_tensor *part, const q_format *format, uint64_t k,
                   uint64_t rows, const q_source *view) {
    char buf[1024];
    q_str name;
    uint64_t row_bytes, bytes;
    Q_TRY(joined(buf, sizeof buf, module, ".weight", &name));
    char *copy = q_arena_str(r->arena, name);
    if (!copy) return LQ_E_NOMEM;
    if (!q_row_bytes(format, k, &row_bytes) || q_mul_overflow(row_bytes, rows, &bytes) || bytes == 0)
        return q_hf_at(r,
                       q_fail(LQ_E_INCONSISTENT, "%llu x %llu weights do not make rows of %s", (unsigned long long)rows,
                              (unsigned long long)k, format->name),
                       part);
    const uint64_t i = (uint64_t)(part - r->dir->tensors);
    r->tensors[i] = (q_tensor){.name = {copy, name.n}, .format = format, .type_name = format->name, .rank = 2,
                               .shape = {k, rows, 1, 1, 1, 1, 1, 1}, .rows = rows, .row_bytes = row_bytes,
                               .bytes = bytes, .file = part->file, .view = view};
    r->state[i] = VIEW;
    r->views++;
    return LQ_OK;
}

lq_status q_hf_bytes(const q_directory *dir, const q_tensor *part, uint64_t offset, void *dst, uint64_t n) {
    uint64_t end;
    if (q_add_overflow(offset, n, &end) || end > part->bytes)
        return q_fail(LQ_E_INTERNAL, "%.*s: bytes beyond its end", Q_STR_ARG(part->name));
    const lq_status s = q_file_read(dir->files[part->file], part->offset + offset, dst, n);
    return s == LQ_OK ? s : q_fail_in(s, "%.*s", Q_STR_ARG(part->name));
}

lq_status q_hf_all(const q_hf_reader *r, const q_tensor *part, void **out) {
    /* a sparse file is cheap */
    if (part->bytes > LARGE) Q_TRY(q_hf_at(r, q_memory_check("reading it", part->bytes, 0), part));
    void *p = q_new_raw(r->alloc, part->bytes, 1);
    if (!p) return LQ_E_NOMEM;
    const lq_status s = q_hf_bytes(r->dir, part, 0, p, part->bytes);
    if (s == LQ_OK) *out = p;
    else q_delete(r->alloc, p);
    return s;
}

/* ---------------------------------------------------------------------------------------------- the whole directory */

/* Endings of the tensors that quantized weights are kept as. */
static const char *const endings[] = {
    ".qweight", ".qzeros", ".g_idx", ".scales", ".SCB", ".weight_format", ".absmax", ".quant_map", ".nested_absmax",
    ".nested_quant_map", ".weight_packed", ".weight_scale", ".weight_zero_point", ".weight_shape", ".weight_g_idx",
    ".weight_scale_inv", ".scaled_zeros", ".quant_state.bitsandbytes__nf4", ".quant_state.bitsandbytes__fp4",
};

static lq_status check_rest(const q_hf_reader *r) {
    q_str module;
    for (uint32_t i = 0; i < r->dir->n_tensors; i++) {
        const q_tensor *t = &r->dir->tensors[i];
        if (r->state[i] != OWN) continue;
        for (size_t e = 0; e < Q_COUNT(endings); e++) {
            if (!q_hf_module(t, endings[e], &module)) continue;
            if (!r->kind)
                return q_hf_at(r, q_fail(LQ_E_INCONSISTENT, "it is part of a quantized weight, but config.json has no "
                                         "quantization_config"), t);
            return q_hf_at(r, q_fail(LQ_E_INCONSISTENT, "it is not part of a weight of %s, the method that "
                                     "quantization_config names", r->kind->method), t);
        }
    }
    if (r->kind && r->views == 0)
        return q_fail(LQ_E_INCONSISTENT, "config.json: quantization_config says '%s', but no tensor is quantized so",
                      r->kind->method);
    return LQ_OK;
}

static lq_status find_kind(q_hf_reader *r) {
    bool any = false;
    for (uint32_t i = 0; i < r->dir->n_meta && !any; i++) any = under(r->dir->meta[i].key, "quantization_config");
    if (!any) return LQ_OK;
    const q_meta *m = q_hf_key(r, "quant_method");
    if (!m || m->type != Q_META_STRING)
        return q_fail(LQ_E_UNSUPPORTED, "config.json: 'quantization_config' has no quant_method");
    char known[128] = "";
    for (const q_hf_kind *const *k = q_hf_kinds; *k; k++) {
        const size_t n = strlen(known);
        if (q_str_is(m->s, (*k)->method)) r->kind = *k;
        snprintf(known + n, sizeof known - n, "%s%s", n ? ", " : "", (*k)->method);
    }
    return r->kind ? LQ_OK
                   : q_fail(LQ_E_UNSUPPORTED,
                            "config.json: quantization_config.quant_method is '%.*s'; this build "
                            "reads %s",
                            Q_STR_ARG(m->s), known);
}

static lq_status make_views(q_hf_reader *r, q_tensor **out, uint32_t *n) {
    const uint32_t count = r->dir->n_tensors;
    Q_TRY(find_kind(r));
    r->tensors = (q_tensor *)q_new_raw(r->alloc, count, sizeof *r->tensors);
    r->state = (uint8_t *)q_new(r->alloc, count, 1);
    if (!r->tensors || !r->state) return LQ_E_NOMEM;
    if (count) memcpy(r->tensors, r->dir->tensors, count * sizeof *r->tensors);
    if (r->kind) Q_TRY(r->kind->read(r));
    Q_TRY(check_rest(r));
    if (r->activations)
        q_log_write(r->log, LQ_LOG_WARN,
                    "%u tensors of fixed scales of activations ('%.*s'%s) are not used: they do not change the "
                    "weights, and inputs are kept as floats here, or rounded to 8 bits with scales taken from each "
                    "input itself",
                    r->activations, Q_STR_ARG(r->activation->name), r->activations > 1 ? " is the first" : "");
    uint32_t kept = 0;
    for (uint32_t i = 0; i < count; i++)
        if (r->state[i] != CLAIMED) r->tensors[kept++] = r->tensors[i];
    *n = kept;
    *out = r->tensors;
    r->tensors = NULL;
    return LQ_OK;
}

lq_status q_hf_views(const q_alloc *a, const q_log *log, q_arena *arena, q_directory *dir, q_hf_cache **cache,
                     q_tensor **out, uint32_t *n) {
    q_hf_reader r = {.alloc = a, .log = log, .arena = arena, .dir = dir};
    Q_TRY(q_hf_cache_open(a, cache));
    r.cache = *cache;
    const lq_status s = make_views(&r, out, n);
    if (r.kind) snprintf(dir->container, sizeof dir->container, "huggingface %.19s", r.kind->method);
    q_delete(a, r.tensors);
    q_delete(a, r.state);
    return s;
}
