/* lora_read.c: what the files of an adapter say: pairs of A and B by the matrix that they are for, and their factors.
 *
 * PEFT: adapter_config.json with alpha and rank (or one per pattern of module names), tensors
 * base_model.model.MODULE.lora_A.weight [rank, inputs] and .lora_B.weight [outputs, rank]; the factor is alpha / rank,
 * with use_rslora alpha / sqrt(rank). base_model_name_or_path is a name and no hash: it is not looked at. GGUF:
 * adapter.lora.alpha, tensors NAME.lora_a, NAME.lora_b; the factor is alpha / rank. Whatever would add anything else
 * (DoRA, biases, whole modules, embeddings, transposed weights, initializations that changed the base) is refused by
 * name, as is a field that nobody here knows. Layer L3. */
#include "lora.h"

#include <math.h>

enum { RANK_MOST = 1 << 16, FIELDS_MOST = 4096 /* two patterns for each of 126 layers' seven matrices, and some */ };

static q_str cut(q_str s, size_t front, size_t back) { return (q_str){s.p + front, s.n - front - back}; }

static lq_status join(q_arena *arena, q_str s, const char *end, q_str *out) {
    const size_t n = strlen(end);
    char *p = (char *)q_arena_new(arena, s.n + n + 1, 1);
    if (!p) return LQ_E_NOMEM;
    memcpy(p, s.p, (size_t)s.n);
    memcpy(p + s.n, end, n);
    *out = (q_str){p, s.n + n};
    return LQ_OK;
}

static bool is_number(const q_meta *m) {
    return m->type < Q_META_BOOL || m->type == Q_META_U64 || m->type == Q_META_I64 || m->type == Q_META_F64;
}

/* An alpha of 0 adds nothing; readers of GGUF files differ about it. */
static lq_status check_alpha(double alpha, const char *key) {
    if (isfinite(alpha) && alpha != 0) return LQ_OK;
    return q_fail(LQ_E_INCONSISTENT, "'%s' is %g: an adapter needs a finite alpha that is not 0", key, alpha);
}

/* A and B as they have to be to one another, whatever the matrix. */
static lq_status check_pair(const q_tensor *a, const q_tensor *b) {
    const q_tensor *const both[] = {a, b};
    for (size_t i = 0; i < Q_COUNT(both); i++) {
        if (!both[i]->format)
            return q_fail(LQ_E_UNSUPPORTED, "tensor '%.*s' has the type %s, which cannot be computed with",
                          Q_STR_ARG(both[i]->name), both[i]->type_name);
        if (both[i]->rank != 2)
            return q_fail(LQ_E_INCONSISTENT, "tensor '%.*s' has %u dimensions; it must be a matrix",
                          Q_STR_ARG(both[i]->name), both[i]->rank);
    }
    if (a->shape[1] == 0 || b->shape[0] == 0)
        return q_fail(LQ_E_INCONSISTENT, "tensor '%.*s' has rank 0", Q_STR_ARG(a->shape[1] ? b->name : a->name));
    if (a->shape[1] != b->shape[0])
        return q_fail(LQ_E_INCONSISTENT, "'%.*s' has rank %llu, '%.*s' %llu", Q_STR_ARG(a->name),
                      (unsigned long long)a->shape[1], Q_STR_ARG(b->name), (unsigned long long)b->shape[0]);
    if (a->shape[1] > RANK_MOST)
        return q_fail(LQ_E_LIMIT, "'%.*s' has rank %llu; at most %d", Q_STR_ARG(a->name),
                      (unsigned long long)a->shape[1], RANK_MOST);
    return LQ_OK;
}

/* Tensors of one convention: what stands before the target, and what behind it for A and B. */
typedef struct layout {
    const char *front, *a, *b;
} layout;

/* All pairs, with their factors still to come. */
static lq_status find_pairs(q_arena *arena, const q_directory *dir, const layout *l, q_lora_part **parts, uint32_t *n) {
    *n = 0;
    *parts = (q_lora_part *)q_arena_new(arena, dir->n_tensors, sizeof **parts);
    if (!*parts) return LQ_E_NOMEM;
    for (uint32_t i = 0; i < dir->n_tensors; i++) {
        const q_tensor *t = &dir->tensors[i];
        const bool is_a = q_str_ends(t->name, l->a), is_b = q_str_ends(t->name, l->b);
        /* The dot that ends what stands before and the one that begins what stands behind are two. */
        if (!q_str_begins(t->name, l->front) || (!is_a && !is_b) ||
            t->name.n < strlen(l->front) + strlen(is_a ? l->a : l->b))
            return q_fail(LQ_E_UNSUPPORTED,
                          "tensor '%.*s' is not one of %s...%s and %s: it would add something else than these do",
                          Q_STR_ARG(t->name), l->front, l->a, l->b);
        q_lora_part p = {.target = cut(t->name, strlen(l->front), strlen(is_a ? l->a : l->b))};
        q_str other;
        Q_TRY(join(arena, cut(t->name, 0, strlen(is_a ? l->a : l->b)), is_a ? l->b : l->a, &other));
        const q_tensor *o = q_directory_tensor(dir, other);
        if (!o) return q_fail(LQ_E_INCONSISTENT, "tensor '%.*s' has no '%.*s'", Q_STR_ARG(t->name), Q_STR_ARG(other));
        if (!is_a) continue;
        p.a = t;
        p.b = o;
        Q_TRY(check_pair(p.a, p.b));
        (*parts)[(*n)++] = p;
    }
    return *n ? LQ_OK : q_fail(LQ_E_INCONSISTENT, "the adapter has no tensors: it touches nothing");
}

/* ------------------------------------------------------------------------------------------------ GGUF */

static lq_status is_word(const q_directory *dir, const char *key, const char *word) {
    const q_meta *m = q_directory_meta(dir, key);
    if (!m || m->type != Q_META_STRING)
        return q_fail(LQ_E_INCONSISTENT, "the key '%s' is missing or not a string", key);
    if (q_str_is(m->s, word)) return LQ_OK;
    return q_fail(LQ_E_UNSUPPORTED, "the key '%s' is '%.*s'; an adapter has '%s'", key, Q_STR_ARG(m->s), word);
}

static lq_status read_gguf(q_arena *arena, const q_directory *dir, q_lora_part **parts, uint32_t *n) {
    static const char alpha[] = "adapter.lora.alpha";
    static const char *const known[] = {"adapter.type", alpha, "adapter.lora.task_name", "adapter.lora.prompt_prefix"};
    static const layout names = {"", ".lora_a", ".lora_b"};
    Q_TRY(is_word(dir, "general.type", "adapter"));
    Q_TRY(is_word(dir, "adapter.type", "lora"));
    for (uint32_t i = 0; i < dir->n_meta; i++) {
        bool found = !q_str_begins(dir->meta[i].key, "adapter.");
        for (size_t j = 0; j < Q_COUNT(known); j++) found |= q_str_is(dir->meta[i].key, known[j]);
        if (!found)
            return q_fail(LQ_E_UNSUPPORTED, "the key '%.*s' is not understood, and could change what the adapter does",
                          Q_STR_ARG(dir->meta[i].key));
    }
    const q_meta *m = q_directory_meta(dir, alpha);
    if (!m || !is_number(m)) return q_fail(LQ_E_INCONSISTENT, "the key '%s' is missing or not a number", alpha);
    Q_TRY(check_alpha(m->f, alpha));
    Q_TRY(find_pairs(arena, dir, &names, parts, n));
    for (uint32_t i = 0; i < *n; i++) (*parts)[i].factor = m->f / (double)(*parts)[i].a->shape[1];
    return LQ_OK;
}

/* ------------------------------------------------------------------------------------------------ PEFT */

/* Fields of adapter_config.json, and what is below them. allowed: texts of values, "" = an empty list; NULL = it says
 * nothing about the sum, or is read below. `null` and {} are left out by the loader. A field that is not here may be
 * false or empty: a feature that is not used. */
static const struct {
    const char *name, *allowed;
} fields[] = {{"peft_type", "LORA"},
              {"bias", "none"}, {"fan_in_fan_out", "false"}, {"use_dora", "false"}, {"lora_bias", "false"},
              {"modules_to_save", ""}, {"trainable_token_indices", ""}, {"target_parameters", ""},
              {"layer_replication", ""},
              /* others change the base itself, or stand on one that was changed */
              {"init_lora_weights", "true,false,gaussian,orthogonal,eva"},
              {"r", NULL}, {"lora_alpha", NULL}, {"use_rslora", "true,false"}, {"rank_pattern", NULL},
              {"alpha_pattern", NULL},
              {"auto_mapping", NULL}, {"base_model_name_or_path", NULL}, {"revision", NULL}, {"task_type", NULL},
              {"inference_mode", NULL},
              {"target_modules", NULL}, {"exclude_modules", NULL}, {"lora_dropout", NULL},
              {"layers_to_transform", NULL},
              {"layers_pattern", NULL}, {"loftq_config", NULL}, {"eva_config", NULL}, {"corda_config", NULL},
              {"runtime_config", NULL},
              {"megatron_core", NULL}, {"qalora_group_size", NULL}, {"peft_version", NULL},
              {"ensure_weight_tying", "true,false"},
              {Q_LORA_BASE_HASH, NULL}};

static bool below(q_str key, const char *name) {
    const size_t n = strlen(name);
    return q_str_begins(key, name) && (key.n == n || key.p[n] == '.');
}

static q_str text_of(const q_meta *m) {
    if (m->type == Q_META_STRING) return m->s;
    if (m->type == Q_META_BOOL) return q_str_of(m->i ? "true" : "false");
    if (m->type == Q_META_ARRAY) return q_str_of(m->count ? "a list" : "");
    return q_str_of("a number");
}

static lq_status check_fields(const q_directory *dir) {
    if (dir->n_meta > FIELDS_MOST)
        return q_fail(LQ_E_LIMIT, "adapter_config.json has %u fields; at most %d are looked at", dir->n_meta,
                      FIELDS_MOST);
    for (uint32_t i = 0; i < dir->n_meta; i++) {
        const q_meta *m = &dir->meta[i];
        const q_str text = text_of(m);
        size_t f = 0;
        while (f < Q_COUNT(fields) && !below(m->key, fields[f].name)) f++;
        if (f == Q_COUNT(fields)) {
            if (text.n == 0 || q_str_is(text, "false")) continue;
            return q_fail(LQ_E_UNSUPPORTED,
                          "the field '%.*s' is not understood, and could change what the adapter does",
                          Q_STR_ARG(m->key));
        }
        if (fields[f].allowed && !q_listed(fields[f].allowed, text))
            return q_fail(LQ_E_UNSUPPORTED, "the field '%.*s' is '%.*s'; this build supports '%s'", Q_STR_ARG(m->key),
                          Q_STR_ARG(text), fields[f].allowed);
    }
    static const char *const needed[] = {"peft_type",      "r",       "lora_alpha", "use_rslora", "bias",
                                         "fan_in_fan_out", "use_dora"};
    return q_directory_check_keys(dir, needed, Q_COUNT(needed));
}

static lq_status number_field(const q_meta *m, const char *key, bool whole, double *out) {
    if (!m || !is_number(m) || (whole && (m->type == Q_META_F64 || m->type == Q_META_F32)))
        return q_fail(LQ_E_INCONSISTENT, "the field '%s' is missing or not %s", key, whole ? "an integer" : "a number");
    *out = m->f;
    return LQ_OK;
}

/* PEFT takes a pattern for a regular expression that ends the module's name after a dot or alone. */
static bool ends_module(q_str pattern, q_str module) {
    const bool whole = pattern.p[0] == '^';
    if (whole) pattern = cut(pattern, 1, 0);
    if (pattern.n > module.n) return false;
    const uint64_t at = module.n - pattern.n;
    if (at && (whole || module.p[at - 1] != '.')) return false;
    for (uint64_t i = 0; i < pattern.n; i++)
        if (pattern.p[i] != '.' && pattern.p[i] != module.p[at + i]) return false;
    return true;
}

/* The value of rank_pattern or alpha_pattern for a module: the first that fits, or what stands for all. */
static lq_status by_pattern(const q_directory *dir, const char *table, q_str module, double *value) {
    static const char plain[] = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789_-.";
    const size_t n = strlen(table);
    for (uint32_t i = 0; i < dir->n_meta; i++) {
        const q_meta *m = &dir->meta[i];
        if (!below(m->key, table) || m->key.n < n + 2) continue;
        const q_str pattern = cut(m->key, n + 1, 0);
        for (uint64_t c = pattern.p[0] == '^'; c < pattern.n; c++)
            if (!memchr(plain, pattern.p[c], sizeof plain - 1))
                return q_fail(LQ_E_UNSUPPORTED,
                              "the field '%s' has the pattern '%.*s'; this build knows names and ends of names", table,
                              Q_STR_ARG(pattern));
        if (!ends_module(pattern, module)) continue;
        return number_field(m, table, false, value);
    }
    return LQ_OK;
}

static lq_status read_peft(q_arena *arena, const q_directory *dir, q_lora_part **parts, uint32_t *n) {
    static const layout names = {"base_model.model.", ".lora_A.weight", ".lora_B.weight"};
    double rank, alpha;
    Q_TRY(check_fields(dir));
    if (!q_directory_meta(dir, "peft_type")) return q_fail(LQ_E_INCONSISTENT, "the field 'peft_type' is missing");
    Q_TRY(number_field(q_directory_meta(dir, "r"), "r", true, &rank));
    Q_TRY(number_field(q_directory_meta(dir, "lora_alpha"), "lora_alpha", false, &alpha));
    const q_meta *m = q_directory_meta(dir, "use_rslora");
    const bool root = m && m->i;
    if (!(rank >= 1)) return q_fail(LQ_E_INCONSISTENT, "the field 'r' is %g: an adapter has at least rank 1", rank);
    Q_TRY(check_alpha(alpha, "lora_alpha"));
    Q_TRY(find_pairs(arena, dir, &names, parts, n));
    for (uint32_t i = 0; i < *n; i++) {
        q_lora_part *p = &(*parts)[i];
        double r = rank, al = alpha;
        Q_TRY(by_pattern(dir, "rank_pattern", p->target, &r));
        Q_TRY(by_pattern(dir, "alpha_pattern", p->target, &al));
        Q_TRY(check_alpha(al, "alpha_pattern"));
        if (r != (double)p->a->shape[1])
            return q_fail(LQ_E_INCONSISTENT, "tensor '%.*s' has rank %llu; adapter_config.json says %g",
                          Q_STR_ARG(p->a->name), (unsigned long long)p->a->shape[1], r);
        p->factor = al / (root ? sqrt(r) : r);
        Q_TRY(join(arena, p->target, ".weight", &p->target));
    }
    return LQ_OK;
}

bool q_lora_is(const q_directory *dir) {
    if (dir->names == Q_NAMES_HF) return strcmp(dir->container, "peft") == 0;
    const q_meta *m = q_directory_meta(dir, "general.type");
    return m && m->type == Q_META_STRING && q_str_is(m->s, "adapter");
}

lq_status q_lora_read(q_arena *arena, const q_directory *dir, q_lora_part **parts, uint32_t *n) {
    return dir->names == Q_NAMES_HF ? read_peft(arena, dir, parts, n) : read_gguf(arena, dir, parts, n);
}
