/* bind.c: resolves an architecture's tables against a directory: hyper-parameters, weights, nothing missing, nothing
 * left over. What GGUF files have as tensors and config.json in words becomes tensors here. Reads no tensor data except
 * to compare tied weights, and RoPE's factors. Fails closed: an unknown architecture, configuration field or tensor is
 * refused by name. Layer L3. */
#include "bind.h"

#include <math.h>
#include <stdio.h>

#include "lora.h"
#include "wide.h"

enum { STRIP_BYTES = 1 << 16 /* of the file at a time */ };

/* config.json fields of every model that say nothing about the function. */
static const char *const hf_common[] = {
    "architectures", "model_type", "torch_dtype", "dtype", "transformers_version", "use_cache", "initializer_range",
    "pretraining_tp", "bos_token_id", "eos_token_id", "pad_token_id", "unk_token_id", "_name_or_path",
    "tie_word_embeddings", "is_decoder", "is_encoder_decoder", "return_dict", "output_attentions",
    "output_hidden_states", "torchscript", "use_bfloat16", "auto_map", "unsloth_version", "unsloth_fixed",
    /* wishes about generation, which older files keep here */
    "max_length", "max_sequence_length", "do_sample", "temperature", "top_p", "top_k",
};

/* Does a word of the list end the name? */
static bool ends_in_one(const char *list, q_str name) {
    q_str end;
    while (q_list_next(&list, &end))
        if (end.n && name.n >= end.n && memcmp(name.p + name.n - end.n, end.p, (size_t)end.n) == 0) return true;
    return false;
}

/* ------------------------------------------------------------------------------------------- which architecture */

static lq_status find_arch(const q_directory *dir, const q_arch **out) {
    q_str name;
    if (q_lora_is(dir))
        return q_fail(LQ_E_ARG,
                      "it is an adapter and no model: open the model that it is for, with this as its adapter");
    if (dir->names == Q_NAMES_GGUF) {
        const q_meta *m = q_directory_meta(dir, "general.architecture");
        if (!m || m->type != Q_META_STRING)
            return q_fail(LQ_E_INCONSISTENT, "the key 'general.architecture' is missing or not a string");
        name = m->s;
        for (const q_arch *const *a = q_archs; *a; a++)
            if (q_str_is(name, (*a)->name) || q_listed((*a)->aliases, name)) {
                *out = *a;
                return LQ_OK;
            }
    } else {
        const q_meta *m = q_directory_meta(dir, "architectures");
        if (!m || m->type != Q_META_ARRAY || m->item != Q_META_STRING || m->count != 1)
            return q_fail(LQ_E_INCONSISTENT, "config.json: 'architectures' is missing or is not a list of one name");
        name = m->strs[0];
        for (const q_arch *const *a = q_archs; *a; a++)
            if (q_listed((*a)->hf_classes, name)) {
                *out = *a;
                return LQ_OK;
            }
    }
    char known[256] = "";
    for (const q_arch *const *a = q_archs; *a; a++) {
        const size_t n = strlen(known);
        snprintf(known + n, sizeof known - n, "%s%s", n ? ", " : "", (*a)->name);
    }
    return q_fail(LQ_E_UNSUPPORTED, "architecture '%.*s' is not supported (this build knows: %s)", Q_STR_ARG(name),
                  known);
}

/* The full GGUF key of a table entry. */
static const char *gguf_key(const q_binding *b, const char *suffix, char *buf, size_t n) {
    if (suffix[0] == '=') return suffix + 1;
    const q_meta *m = q_directory_meta(b->dir, "general.architecture");
    if (m && m->type == Q_META_STRING) snprintf(buf, n, "%.*s.%s", (int)Q_MIN(m->s.n, (uint64_t)64), m->s.p, suffix);
    else snprintf(buf, n, "%s.%s", b->arch->name, suffix);
    return buf;
}

static const char *row_key(const q_binding *b, const char *gguf, const char *hf, char *buf, size_t n) {
    if (b->dir->names == Q_NAMES_GGUF) return gguf ? gguf_key(b, gguf, buf, n) : NULL;
    return hf;
}

/* ------------------------------------------------------------------------------------------- hyper-parameters */

static bool is_number(const q_meta *m) { return m->type < Q_META_BOOL || m->type >= Q_META_U64; }

static lq_status read_hparam(q_binding *b, const q_hparam_row *r) {
    char buf[160];
    const char *key = row_key(b, r->gguf, r->hf, buf, sizeof buf);
    const q_meta *m = key ? q_directory_meta(b->dir, key) : NULL;
    const q_meta *also = r->hf_also && b->dir->names == Q_NAMES_HF ? q_directory_meta(b->dir, r->hf_also) : NULL;
    double v;
    if (m && also && m->f != also->f)
        return q_fail(LQ_E_INCONSISTENT, "the key '%s' is %g, '%s' %g", key, m->f, r->hf_also, also->f);
    if (!m && also) {
        m = also;
        key = r->hf_also;
    }
    if (m) {
        if (!is_number(m)) return q_fail(LQ_E_INCONSISTENT, "the key '%s' is not a single number", key);
        const bool is_float = m->type == Q_META_F32 || m->type == Q_META_F64;
        if (r->integer && is_float) return q_fail(LQ_E_INCONSISTENT, "the key '%s' must be an integer", key);
        v = m->f;
        if (!(v >= r->min && v <= r->max))
            return q_fail(LQ_E_INCONSISTENT, "the key '%s' is %g, outside %g to %g", key, v, r->min, r->max);
    } else if (r->optional) {
        v = r->same_as ? b->hp.v[r->same_as] : r->otherwise;
        if (r->over) {
            const double q = v / b->hp.v[r->over];
            if (q != floor(q))
                return q_fail(LQ_E_INCONSISTENT, "'%s' is not given and %g is not a multiple of %g", r->gguf, v,
                              b->hp.v[r->over]);
            v = q;
        }
    } else {
        return q_fail(LQ_E_INCONSISTENT, "the key '%s' is missing", key ? key : r->gguf);
    }
    b->hp.v[r->id] = v;
    return LQ_OK;
}

/* The value of a fixed row as text. */
static void meta_text(const q_meta *m, char *buf, size_t n) {
    if (m->type == Q_META_STRING) snprintf(buf, n, "%.*s", Q_STR_ARG(m->s));
    else if (m->type == Q_META_BOOL) snprintf(buf, n, "%s", m->i ? "true" : "false");
    else if (m->type == Q_META_ARRAY) snprintf(buf, n, "[%llu values]", (unsigned long long)m->count);
    else snprintf(buf, n, "%g", m->f);
}

static lq_status check_fixed(const q_binding *b, const q_fixed_row *r) {
    char buf[160], text[224];
    const char *key = row_key(b, r->gguf, r->hf, buf, sizeof buf);
    const q_meta *m = key ? q_directory_meta(b->dir, key) : NULL;
    if (!m) return LQ_OK;
    meta_text(m, text, sizeof text);
    if (q_listed(r->allowed, q_str_of(text))) return LQ_OK;
    return q_fail(LQ_E_UNSUPPORTED, "the key '%s' is '%s'; this build supports %s", key, text, r->allowed);
}

/* True when some table row of the architecture speaks of this key. */
static bool key_known(const q_binding *b, q_str key) {
    char buf[160];
    const q_arch *a = b->arch;
    for (uint32_t i = 0; i < a->n_hparams; i++) {
        const char *k = row_key(b, a->hparams[i].gguf, a->hparams[i].hf, buf, sizeof buf);
        if (k && q_str_is(key, k)) return true;
        if (a->hparams[i].hf_also && b->dir->names == Q_NAMES_HF && q_str_is(key, a->hparams[i].hf_also)) return true;
    }
    for (uint32_t i = 0; i < a->n_fixed; i++) {
        const char *k = row_key(b, a->fixed[i].gguf, a->fixed[i].hf, buf, sizeof buf);
        if (k && q_str_is(key, k)) return true;
    }
    const char *prefix = b->dir->names == Q_NAMES_GGUF ? gguf_key(b, "", buf, sizeof buf) : "";
    return a->rope_scaling && q_rope_key(b->dir, prefix, key);
}

/* A key of another prefix says nothing, unless it is ours with one bit flipped: its default would be taken instead. */
static lq_status check_prefix(const q_binding *b, q_str key, q_str prefix) {
    char whole[160];
    if (key.n <= prefix.n || key.n >= sizeof whole || !q_str_bit_off((q_str){key.p, prefix.n}, prefix)) return LQ_OK;
    memcpy(whole, key.p, (size_t)key.n);
    memcpy(whole, prefix.p, (size_t)prefix.n);
    if (!key_known(b, (q_str){whole, key.n})) return LQ_OK;
    return q_fail(LQ_E_INCONSISTENT, "the key '%.*s' is one bit away from '%.*s': the file is damaged", Q_STR_ARG(key),
                  (int)key.n, whole);
}

/* A key that could change the function and that nobody reads is refused, not ignored. */
static lq_status check_unknown_keys(const q_binding *b) {
    char prefix[96];
    gguf_key(b, "", prefix, sizeof prefix);
    const size_t n = strlen(prefix);
    for (uint32_t i = 0; i < b->dir->n_meta; i++) {
        const q_str key = b->dir->meta[i].key;
        if (b->dir->names == Q_NAMES_GGUF) {
            if (key.n < n || memcmp(key.p, prefix, n) != 0) {
                Q_TRY(check_prefix(b, key, q_str_of(prefix)));
                continue;
            }
        } else {
            /* The loader has looked at every key of a quantization. */
            static const char *const sides[] = {"tokenizer_config.", "quantization_config."};
            bool side = false;
            for (size_t j = 0; j < Q_COUNT(sides) && !side; j++)
                side = key.n >= strlen(sides[j]) && memcmp(key.p, sides[j], strlen(sides[j])) == 0;
            if (side) continue;
            bool common = q_listed(b->arch->hf_ignored, key);
            for (size_t j = 0; j < Q_COUNT(hf_common) && !common; j++) common = q_str_is(key, hf_common[j]);
            if (common) continue;
        }
        if (!key_known(b, key))
            return q_fail(LQ_E_UNSUPPORTED, "the %s '%.*s' is not understood, and could change what the model computes",
                          b->dir->names == Q_NAMES_GGUF ? "key" : "config.json field", Q_STR_ARG(key));
    }
    return LQ_OK;
}

static lq_status read_hparams(q_binding *b) {
    for (int i = 0; i < Q_HP_COUNT; i++) b->hp.v[i] = NAN;
    Q_TRY(check_unknown_keys(b));
    for (uint32_t i = 0; i < b->arch->n_fixed; i++) Q_TRY(check_fixed(b, &b->arch->fixed[i]));
    for (uint32_t i = 0; i < b->arch->n_hparams; i++) Q_TRY(read_hparam(b, &b->arch->hparams[i]));
    double *v = b->hp.v;
    if (v[Q_HP_VOCAB] < 0) { /* not given: the number of tokens */
        const q_meta *m = q_directory_meta(b->dir, "tokenizer.ggml.tokens");
        if (!m || m->type != Q_META_ARRAY || m->count == 0)
            return q_fail(LQ_E_INCONSISTENT, "the vocabulary's size is given neither by a key nor by a list of tokens");
        v[Q_HP_VOCAB] = (double)m->count;
    }
    if (v[Q_HP_HEADS_KV] > v[Q_HP_HEADS] || fmod(v[Q_HP_HEADS], v[Q_HP_HEADS_KV]) != 0)
        return q_fail(LQ_E_INCONSISTENT, "%g query heads cannot be shared by %g key/value heads", v[Q_HP_HEADS],
                      v[Q_HP_HEADS_KV]);
    if (v[Q_HP_ROT] > v[Q_HP_HEAD_K] || fmod(v[Q_HP_ROT], 2) != 0)
        return q_fail(LQ_E_INCONSISTENT, "%g rotary dimensions do not fit heads of %g", v[Q_HP_ROT], v[Q_HP_HEAD_K]);
    b->layers = (int32_t)v[Q_HP_LAYERS];
    char prefix[160];
    const int32_t rot = (int32_t)v[Q_HP_ROT];
    if (!b->arch->rope_scaling) return LQ_OK;
    Q_TRY(q_rope_read(b->dir, gguf_key(b, "", prefix, sizeof prefix), (uint32_t)v[Q_HP_CONTEXT], rot, &b->arena,
                      &b->rope));
    return b->dir->names == Q_NAMES_HF ? q_rope_make(&b->rope, v[Q_HP_ROPE_BASE], rot, &b->arena) : LQ_OK;
}

/* ------------------------------------------------------------------------------------------- weights */

static void shape_text(const uint64_t *shape, uint32_t rank, char *buf, size_t n) {
    size_t used = 0;
    buf[0] = 0;
    for (uint32_t i = 0; i < rank && used + 24 < n; i++)
        used += (size_t)snprintf(buf + used, n - used, "%s%llu", i ? " x " : "", (unsigned long long)shape[i]);
}

static lq_status check_shape(const q_binding *b, const q_weight_row *r, int32_t layer, const q_tensor *t) {
    const uint8_t dims[3] = {r->k, r->rows, r->matrices};
    uint64_t want[3] = {1, 1, 1};
    uint32_t rank = 0;
    for (; rank < 3 && dims[rank]; rank++) want[rank] = (uint64_t)q_dim_value(&b->hp, (q_dim)dims[rank], layer);
    bool equal = true;
    for (uint32_t i = 0; i < 8; i++) equal = equal && t->shape[i] == (i < 3 ? want[i] : 1);
    char has[128], needs[128];
    shape_text(t->shape, t->rank, has, sizeof has);
    shape_text(want, rank, needs, sizeof needs);
    if (!equal)
        return q_fail(LQ_E_INCONSISTENT, "tensor '%.*s' has the shape %s; the hyper-parameters demand %s",
                      Q_STR_ARG(t->name), has, needs);
    if (!t->format)
        return q_fail(LQ_E_UNSUPPORTED, "tensor '%.*s' has the type %s, which cannot be computed with",
                      Q_STR_ARG(t->name), t->type_name);
    return LQ_OK;
}

static bool per_layer(const q_weight_row *r) { return strstr(r->gguf, "%d") != NULL; }

static void weight_name(const char *pattern, int32_t layer, char *buf, size_t n) {
    const char *at = strstr(pattern, "%d");
    if (!at) snprintf(buf, n, "%s", pattern);
    else snprintf(buf, n, "%.*s%d%s", (int)(at - pattern), pattern, layer, at + 2);
}

static lq_status missing(const q_binding *b, const char *name) {
    const q_tensor *best = NULL;
    uint32_t least = 6; /* further away is no misspelling */
    for (uint32_t i = 0; i < b->dir->n_tensors && i < 20000; i++) {
        const uint32_t d = b->tensor_item[i] >= 0 ? least : q_str_distance(b->dir->tensors[i].name, name);
        if (d < least) {
            least = d;
            best = &b->dir->tensors[i];
        }
    }
    if (best)
        return q_fail(LQ_E_INCONSISTENT, "tensor '%s' is missing; the file has '%.*s'", name, Q_STR_ARG(best->name));
    return q_fail(LQ_E_INCONSISTENT, "tensor '%s' is missing", name);
}

/* An absent or redundant output matrix must agree with what the configuration says about tying. */
static lq_status check_tied(const q_binding *b, const q_weight_row *r, const q_tensor *own, const q_tensor *shared) {
    if (b->dir->names != Q_NAMES_HF) return LQ_OK;
    const q_meta *m = q_directory_meta(b->dir, "tie_word_embeddings");
    const bool tied = m && m->type == Q_META_BOOL && m->i;
    if (!own && !tied)
        return q_fail(LQ_E_INCONSISTENT, "tensor '%s' is missing, and config.json does not say tie_word_embeddings",
                      r->hf);
    if (!own || !tied || !shared) return LQ_OK;
    bool equal = own->bytes == shared->bytes && own->format == shared->format;
    uint8_t x[4096], y[4096];
    for (uint64_t at = 0; equal && at < own->bytes; at += sizeof x) {
        const uint64_t n = Q_MIN(own->bytes - at, (uint64_t)sizeof x);
        Q_TRY(q_tensor_read(b->dir, own, at, x, n));
        Q_TRY(q_tensor_read(b->dir, shared, at, y, n));
        equal = memcmp(x, y, (size_t)n) == 0;
    }
    if (equal) return LQ_OK;
    return q_fail(LQ_E_INCONSISTENT, "config.json says tie_word_embeddings, but '%s' differs from the embedding",
                  r->hf);
}

/* The next item, under its GGUF name. */
static lq_status add_item(q_binding *b, int32_t role, int32_t layer, const q_tensor *t) {
    const q_weight_row *r = &b->arch->weights[role];
    char canonical[256];
    weight_name(r->gguf, layer, canonical, sizeof canonical);
    char *copy = q_arena_str(&b->arena, q_str_of(canonical));
    if (!copy) return LQ_E_NOMEM;
    b->items[b->n_items] =
        (q_bind_item){.name = q_str_of(copy), .role = role, .layer = layer, .src = t,
                      .map = b->dir->names == Q_NAMES_GGUF ? Q_MAP_SAME : r->map,
                      .map_heads = r->map_heads ? (int32_t)q_dim_value(&b->hp, (q_dim)r->map_heads, layer) : 1};
    b->by_role[role * b->layers + (layer < 0 ? 0 : layer)] = (int32_t)b->n_items++;
    return LQ_OK;
}

static lq_status bind_weight(q_binding *b, int32_t role, int32_t layer) {
    const q_weight_row *r = &b->arch->weights[role];
    const bool gguf = b->dir->names == Q_NAMES_GGUF;
    char name[256];
    if (!gguf && !r->hf) return LQ_OK; /* make_weights has its turn */
    weight_name(gguf ? r->gguf : r->hf, layer, name, sizeof name);
    const q_tensor *t = q_directory_tensor(b->dir, q_str_of(name));
    if (r->tied) {
        const int32_t shared = b->by_role[(r->tied - 1) * b->layers];
        Q_TRY(check_tied(b, r, t, shared < 0 ? NULL : b->items[shared].src));
        const q_meta *m = gguf ? NULL : q_directory_meta(b->dir, "tie_word_embeddings");
        if (!t || (m && m->i)) {
            if (t) b->tensor_item[t - b->dir->tensors] = shared;
            b->by_role[role * b->layers + (layer < 0 ? 0 : layer)] = shared;
            return LQ_OK;
        }
    }
    if (!t) return r->optional ? LQ_OK : missing(b, name);
    Q_TRY(check_shape(b, r, layer, t));
    Q_TRY(add_item(b, role, layer, t));
    b->tensor_item[t - b->dir->tensors] = (int32_t)b->n_items - 1;
    return LQ_OK;
}

/* The table's order is the file's order: what stands before the first per-layer row, the layers, the rest. */
static lq_status bind_weights(q_binding *b) {
    const q_arch *a = b->arch;
    int32_t first = 0, end = (int32_t)a->n_weights;
    while (first < end && !per_layer(&a->weights[first])) first++;
    int32_t last = end;
    while (last > first && !per_layer(&a->weights[last - 1])) last--;
    for (int32_t r = 0; r < first; r++) Q_TRY(bind_weight(b, r, -1));
    for (int32_t l = 0; l < b->layers; l++)
        for (int32_t r = first; r < last; r++) Q_TRY(bind_weight(b, r, l));
    for (int32_t r = last; r < end; r++) Q_TRY(bind_weight(b, r, -1));
    b->n_stored = b->n_items;
    return LQ_OK;
}

/* What config.json says and GGUF files have as tensors: float32 vectors that lie in memory. */
static lq_status make_weights(q_binding *b) {
    for (uint32_t r = 0; r < b->arch->n_weights && b->dir->names == Q_NAMES_HF; r++) {
        const q_weight_row *row = &b->arch->weights[r];
        const float *f = q_rope_made(&b->rope, row->made);
        if (!f) continue;
        q_tensor *t = (q_tensor *)q_arena_new(&b->arena, 1, sizeof *t);
        if (!t) return LQ_E_NOMEM;
        *t = (q_tensor){.format = q_format_find("f32"), .type_name = "f32", .rank = 1, .rows = 1, .file = UINT32_MAX,
                        .data = (const uint8_t *)f};
        for (size_t i = 0; i < Q_COUNT(t->shape); i++) t->shape[i] = i ? 1 : b->rope.n_factors;
        t->bytes = t->row_bytes = t->shape[0] * sizeof(float);
        Q_TRY(add_item(b, (int32_t)r, -1, t));
        t->name = b->items[b->n_items - 1].name;
        Q_TRY(check_shape(b, row, -1, t));
    }
    return LQ_OK;
}

/* The same tensors of a GGUF file go where the keys are. */
static lq_status take_factors(q_binding *b) {
    const float *tensors[Q_MADE_KINDS] = {NULL};
    if (!b->arch->rope_scaling || b->dir->names != Q_NAMES_GGUF) return LQ_OK;
    for (uint32_t i = 0; i < b->n_items; i++) {
        const q_made made = b->arch->weights[b->items[i].role].made;
        if (made == Q_MADE_NOT) continue;
        float *f = (float *)q_arena_new(&b->arena, b->items[i].src->shape[0], sizeof *f);
        if (!f) return LQ_E_NOMEM;
        Q_TRY(q_bind_read(b->arena.alloc, b, &b->items[i], 0, 1, f));
        tensors[made] = f;
    }
    return q_rope_take(&b->rope, tensors, (int32_t)b->hp.v[Q_HP_ROT]);
}

static lq_status check_extra(const q_binding *b) {
    for (uint32_t i = 0; i < b->dir->n_tensors; i++)
        if (b->tensor_item[i] < 0 && !ends_in_one(b->arch->ignored_tensors, b->dir->tensors[i].name))
            return q_fail(LQ_E_UNSUPPORTED, "tensor '%.*s' is not part of the architecture '%s' as this build knows it",
                          Q_STR_ARG(b->dir->tensors[i].name), b->arch->name);
    return LQ_OK;
}

/* A GGUF source keeps its own order, so that a copy of it has the same layout. */
static lq_status file_order(q_binding *b) {
    if (b->dir->names != Q_NAMES_GGUF) return LQ_OK;
    q_bind_item *sorted = (q_bind_item *)q_arena_new(&b->arena, b->n_items, sizeof *sorted);
    int32_t *where = (int32_t *)q_arena_new(&b->arena, b->n_items, sizeof *where);
    if (!sorted || !where) return LQ_E_NOMEM;
    uint32_t n = 0;
    for (uint32_t i = 0; i < b->dir->n_tensors; i++) {
        const int32_t from = b->tensor_item[i];
        if (from < 0) continue;
        where[from] = (int32_t)n;
        sorted[n] = b->items[from];
        b->tensor_item[i] = (int32_t)n++;
    }
    const uint64_t cells = (uint64_t)b->arch->n_weights * (uint64_t)b->layers;
    for (uint64_t i = 0; i < cells; i++)
        if (b->by_role[i] >= 0) b->by_role[i] = where[b->by_role[i]];
    b->items = sorted;
    return LQ_OK;
}

lq_status q_bind(const q_alloc *a, const q_log *log, const q_directory *dir, q_binding **out) {
    Q_UNUSED(log);
    q_binding *b = Q_NEW(a, q_binding, 1);
    if (!b) return LQ_E_NOMEM;
    b->dir = dir;
    b->arena.alloc = a;
    lq_status s = find_arch(dir, &b->arch);
    if (s == LQ_OK) s = read_hparams(b);
    if (s == LQ_OK && (uint64_t)b->layers > dir->n_tensors)
        s = q_fail(LQ_E_INCONSISTENT, "%d layers cannot be made of %u tensors", b->layers, dir->n_tensors);
    if (s == LQ_OK) {
        const uint64_t cells = (uint64_t)b->arch->n_weights * (uint64_t)b->layers;
        b->items = (q_bind_item *)q_arena_new(&b->arena, (uint64_t)dir->n_tensors + Q_MADE_KINDS, sizeof *b->items);
        b->tensor_item = (int32_t *)q_arena_new(&b->arena, dir->n_tensors, sizeof *b->tensor_item);
        b->by_role = (int32_t *)q_arena_new(&b->arena, cells, sizeof *b->by_role);
        if (!b->items || !b->tensor_item || !b->by_role) s = LQ_E_NOMEM;
        if (s == LQ_OK) {
            for (uint32_t i = 0; i < dir->n_tensors; i++) b->tensor_item[i] = -1;
            for (uint64_t i = 0; i < cells; i++) b->by_role[i] = -1;
        }
    }
    if (s == LQ_OK) s = bind_weights(b);
    if (s == LQ_OK) s = check_extra(b);
    if (s == LQ_OK) s = file_order(b);
    if (s == LQ_OK) s = make_weights(b);
    if (s == LQ_OK) s = take_factors(b);
    if (s != LQ_OK) {
        q_binding_close(b);
        return s;
    }
    *out = b;
    return LQ_OK;
}

void q_binding_close(q_binding *b) {
    if (!b) return;
    const q_alloc *a = b->arena.alloc;
    q_arena_free(&b->arena);
    q_delete(a, b);
}

const q_bind_item *q_bind_find(const q_binding *b, int32_t role, int32_t layer) {
    const int32_t i = b->by_role[role * b->layers + (layer < 0 || !per_layer(&b->arch->weights[role]) ? 0 : layer)];
    return i < 0 ? NULL : &b->items[i];
}

/* ------------------------------------------------------------------------------------------- reading with the map */

/* Row `r` of the GGUF tensor is which row of the source? Rotary pairs: Hugging Face keeps the two halves of a head
 * apart (i, i + d/2), GGUF interleaves them (2i, 2i + 1). */
uint64_t q_bind_source_row(const q_bind_item *item, uint64_t r) {
    if (item->map != Q_MAP_ROPE_PAIRS) return r;
    const uint64_t d = item->src->rows / (uint64_t)item->map_heads, head = r / d, i = r % d;
    return head * d + (i % 2) * (d / 2) + i / 2;
}

lq_status q_bind_read_raw(const q_binding *b, const q_bind_item *item, uint64_t first, uint64_t n, uint8_t *out) {
    const q_tensor *t = item->src;
    if (item->map == Q_MAP_PLUS_ONE || item->columns || item->rows || item->delta)
        return q_fail(LQ_E_INTERNAL, "tensor '%.*s' cannot be read raw", Q_STR_ARG(t->name));
    if (item->map == Q_MAP_SAME) return q_tensor_read(b->dir, t, first * t->row_bytes, out, n * t->row_bytes);
    for (uint64_t i = 0; i < n; i++)
        Q_TRY(q_tensor_read(b->dir, t, q_bind_source_row(item, first + i) * t->row_bytes, out + i * t->row_bytes,
                            t->row_bytes));
    return LQ_OK;
}

/* What a row of the item, or the values of a vector, are multiplied and divided by. */
static void apply_factors(const q_bind_item *item, uint64_t row, float *y) {
    const uint64_t k = item->src->shape[0];
    const bool vector = item->src->rank == 1;
    for (uint64_t j = 0; item->columns && j < k; j++) y[j] *= item->columns[j];
    for (uint64_t j = 0; item->rows && j < k; j++) y[j] /= item->rows[vector ? j : row];
}

/* Rows that follow one another in the file are asked for together. */
static uint64_t strip_of(const q_bind_item *item, uint64_t n) {
    const uint64_t fit = STRIP_BYTES / Q_MAX(item->src->row_bytes, (uint64_t)1);
    return item->map == Q_MAP_ROPE_PAIRS ? 1 : Q_MIN(Q_MAX(fit, (uint64_t)1), n);
}

uint64_t q_bind_read_bytes(const q_bind_item *item, uint64_t n) {
    const q_tensor *t = item->src;
    return (t->data ? 0 : q_new_bytes(strip_of(item, n) * t->row_bytes)) +
           (t->view && t->view->order ? q_new_bytes(t->shape[0] * sizeof(float)) : 0);
}

lq_status q_bind_read(const q_alloc *a, const q_binding *b, const q_bind_item *item, uint64_t first, uint64_t n,
                      float *out) {
    const q_tensor *t = item->src;
    const int32_t *order = t->view ? t->view->order : NULL;
    const q_wide *wide = q_wide_of(b->wide);
    const uint64_t strip = strip_of(item, n);
    uint8_t *rows = NULL;
    float *mixed = NULL;
    if (!t->data) {
        rows = (uint8_t *)q_new_raw(a, strip, t->row_bytes);
        if (!rows) return LQ_E_NOMEM;
    }
    if (order) {
        mixed = (float *)q_new_raw(a, t->shape[0], sizeof *mixed);
        if (!mixed) {
            q_delete(a, rows);
            return LQ_E_NOMEM;
        }
    }
    lq_status s = LQ_OK;
    for (uint64_t i = 0; i < n && s == LQ_OK; i++) {
        const uint64_t from = q_bind_source_row(item, first + i), at = from * t->row_bytes;
        const uint8_t *p = t->data ? t->data + at : rows + i % strip * t->row_bytes;
        if (!t->data && i % strip == 0) s = q_tensor_read(b->dir, t, at, rows, Q_MIN(strip, n - i) * t->row_bytes);
        float *y = out + i * t->shape[0];
        if (s == LQ_OK) wide->decode(t->format, p, (int64_t)t->shape[0], order ? mixed : y);
        for (uint64_t j = 0; order && s == LQ_OK && j < t->shape[0]; j++) y[order[j]] = mixed[j];
        if (item->delta && s == LQ_OK) q_lora_add(item->delta, from, y, t->shape[0]);
        if (item->map == Q_MAP_PLUS_ONE)
            for (uint64_t j = 0; j < t->shape[0]; j++) y[j] += 1.0f;
        if (s == LQ_OK) apply_factors(item, first + i, y);
    }
    q_delete(a, rows);
    q_delete(a, mixed);
    return s;
}

/* ------------------------------------------------------------------------------------------- keys for a new file */

static q_meta string_meta(const char *key, const char *value) {
    return (q_meta){.key = q_str_of(key), .type = Q_META_STRING, .count = 1, .s = q_str_of(value)};
}
static q_meta number_meta(const char *key, bool integer, double v) {
    q_meta m = {.key = q_str_of(key), .type = integer ? Q_META_U32 : Q_META_F32, .count = 1, .f = v};
    if (integer) {
        m.u = (uint64_t)v;
        m.i = (int64_t)v;
    }
    return m;
}

lq_status q_bind_export(const q_binding *b, const q_log *log, const char *model_name, uint32_t file_type,
                        q_arena *arena, q_meta *out, uint32_t cap, uint32_t *n) {
    const q_arch *a = b->arch;
    if (cap < a->n_hparams + 3 + Q_ROPE_KEYS)
        return q_fail(LQ_E_INTERNAL, "%u keys do not hold the hyper-parameters", cap);
    uint32_t k = 0;
    char *name = q_arena_str(arena, q_str_of(model_name));
    if (!name) return LQ_E_NOMEM;
    out[k++] = string_meta("general.architecture", a->name);
    out[k++] = string_meta("general.name", name);
    for (uint32_t i = 0; i < a->n_hparams; i++) {
        const q_hparam_row *r = &a->hparams[i];
        if (!r->gguf) continue;
        if (r->id == Q_HP_VOCAB) out[k++] = number_meta("general.file_type", true, (double)file_type);
        const double v = b->hp.v[r->id];
        double usual = r->same_as ? b->hp.v[r->same_as] : r->otherwise;
        if (r->over) usual /= b->hp.v[r->over];
        if (r->quiet && v == usual) continue;
        char buf[160];
        snprintf(buf, sizeof buf, "%s.%s", a->name, r->gguf);
        char *key = q_arena_str(arena, q_str_of(r->gguf[0] == '=' ? r->gguf + 1 : buf));
        if (!key) return LQ_E_NOMEM;
        out[k++] = number_meta(key, r->integer, v);
    }
    uint32_t more = 0;
    Q_TRY(q_rope_export(&b->rope, a->name, (uint32_t)b->hp.v[Q_HP_CONTEXT], log, arena, out + k, &more));
    *n = k + more;
    return LQ_OK;
}
