/* lora.c: adapters on their model: which item of the binding each pair of A and B belongs to, and adding B A to its
 * rows.
 *
 * Owns A and B as float32, whatever their files have, and the order of B's rows: adapters and models come in both
 * conventions, and between the two the rows of some matrices are permuted (q_map). Refuses what no product of a layer
 * reads: embeddings, an output matrix that shares their weights, vectors, experts. Layer L3. */
#include "lora.h"

#include <math.h>
#include <stdio.h>

#include "export.h"
#include "file_keys.h"

enum { MOST = 64 /* adapters at once */, TILE = 256 };

typedef struct adapter {
    const char *path;
    float scale;
    q_directory *dir;
    q_lora_part *parts;
    uint32_t n_parts;
} adapter;

struct q_loras {
    const q_alloc *alloc;
    const q_log *log;
    q_arena arena;
    adapter *items;
    uint32_t n;
};

/* ------------------------------------------------------------------------------------------------ the sum */

void q_lora_add(const q_lora_delta *d, uint64_t row, float *y, uint64_t k) {
    for (; d; d = d->next) {
        const float *b = d->b + row * d->rank;
        for (uint64_t at = 0; at < k; at += TILE) {
            const uint64_t n = Q_MIN(k - at, (uint64_t)TILE);
            float sum[TILE] = {0};
            for (uint32_t r = 0; r < d->rank; r++) {
                const float *a = d->a + r * k + at, c = b[r];
                for (uint64_t i = 0; i < n; i++) sum[i] += c * a[i];
            }
            for (uint64_t i = 0; i < n; i++) y[at + i] += d->scale * sum[i];
        }
    }
}

uint32_t q_lora_count(const q_lora_delta *d) {
    uint32_t n = 0;
    for (; d; d = d->next) n++;
    return n;
}

/* ------------------------------------------------------------------------------------------------ opening */

static lq_status open_one(q_loras *l, adapter *x) {
    const q_load_options o = {.alloc = l->alloc, .log = l->log, .adapter = true};
    Q_TRY(q_directory_open(x->path, &o, &x->dir));
    const lq_status s = q_lora_read(&l->arena, x->dir, &x->parts, &x->n_parts);
    return s == LQ_OK ? s : q_fail_in(s, "%s", x->path);
}

lq_status q_loras_open(const q_alloc *a, const q_log *log, const char *const *paths, const float *scales, uint32_t n,
                       q_loras **out) {
    if (n > MOST) return q_fail(LQ_E_ARG, "%u adapters were given; at most %d", n, MOST);
    if (n && !paths) return q_fail(LQ_E_ARG, "%u adapters were given without their paths", n);
    for (uint32_t i = 0; i < n; i++) {
        if (!paths[i]) return q_fail(LQ_E_ARG, "adapter %u has no path", i);
        if (scales && !isfinite(scales[i]))
            return q_fail(LQ_E_ARG, "%s: the scale %g is not finite", paths[i], (double)scales[i]);
    }
    q_loras *l = Q_NEW(a, q_loras, 1);
    if (!l) return LQ_E_NOMEM;
    l->alloc = l->arena.alloc = a;
    l->log = log;
    l->items = (adapter *)q_arena_new(&l->arena, n, sizeof *l->items);
    lq_status s = l->items ? LQ_OK : LQ_E_NOMEM;
    for (uint32_t i = 0; i < n && s == LQ_OK; i++) {
        l->items[l->n++] = (adapter){.path = paths[i], .scale = scales ? scales[i] : 1};
        s = open_one(l, &l->items[i]);
    }
    if (s != LQ_OK) {
        q_loras_close(l);
        return s;
    }
    *out = l;
    return LQ_OK;
}

void q_loras_close(q_loras *l) {
    if (!l) return;
    for (uint32_t i = 0; i < l->n; i++) q_directory_close(l->items[i].dir);
    q_arena_free(&l->arena);
    q_delete(l->alloc, l);
}

uint32_t q_loras_count(const q_loras *l) { return l ? l->n : 0; }

lq_status q_loras_spare(const q_loras *l, const char *dst, bool directory) {
    for (uint32_t i = 0; i < q_loras_count(l); i++) {
        const q_directory *d = l->items[i].dir;
        Q_TRY(q_directory_spares(d, dst));
        for (uint32_t f = 0; directory && f < d->n_files; f++) Q_TRY(q_export_spares(dst, q_file_path(d->files[f])));
    }
    return LQ_OK;
}

/* ------------------------------------------------------------------------------------------------ which item */

/* Does a name follow a pattern with "%d" for a layer, or without? */
static bool follows(const char *pattern, q_str name, int32_t *layer) {
    const char *at = pattern ? strstr(pattern, "%d") : NULL;
    *layer = -1;
    if (!pattern || !at) return pattern && q_str_is(name, pattern);
    const size_t front = (size_t)(at - pattern);
    uint64_t i = front, v = 0;
    if (name.n < front || memcmp(name.p, pattern, front) != 0) return false;
    for (; i < name.n && i < front + 9 && name.p[i] >= '0' && name.p[i] <= '9'; i++)
        v = v * 10 + (uint64_t)(name.p[i] - '0');
    if (i == front || (name.p[front] == '0' && i > front + 1)) return false;
    *layer = (int32_t)v;
    return q_str_is((q_str){name.p + i, name.n - i}, at + 2);
}

static bool is_embedding(const q_arch *a, uint32_t role) {
    for (uint32_t i = 0; i < a->first.n; i++)
        if (a->first.steps[i].op == Q_OP_EMBED && a->first.steps[i].w == role + 1) return true;
    return false;
}

static lq_status find_item(const q_binding *b, q_names names, q_str target, q_bind_item **out) {
    const q_arch *a = b->arch;
    uint32_t role = 0;
    int32_t layer = -1;
    while (role < a->n_weights &&
           !follows(names == Q_NAMES_HF ? a->weights[role].hf : a->weights[role].gguf, target, &layer))
        role++;
    const q_bind_item *item = role < a->n_weights && layer < b->layers ? q_bind_find(b, (int32_t)role, layer) : NULL;
    if (!item) return q_fail(LQ_E_INCONSISTENT, "its target '%.*s' is no tensor of the model", Q_STR_ARG(target));
    if (is_embedding(a, role) || item->role != (int32_t)role)
        return q_fail(LQ_E_UNSUPPORTED, "its target '%.*s' is %s, which adapters here do not change", Q_STR_ARG(target),
                      item->role != (int32_t)role ? "the embedding too (tied weights)" : "a table of embeddings");
    if (a->weights[role].rows == 0 || item->src->rank != 2)
        return q_fail(LQ_E_UNSUPPORTED, "its target '%.*s' is not a single matrix", Q_STR_ARG(target));
    *out = &b->items[item - b->items];
    return LQ_OK;
}

static lq_status check_shape(const q_lora_part *p, const q_tensor *base) {
    if (p->a->shape[0] == base->shape[0] && p->b->shape[1] == base->rows) return LQ_OK;
    return q_fail(LQ_E_INCONSISTENT,
                  "'%.*s' and '%.*s' are for a matrix of %llu inputs and %llu outputs; '%.*s' has %llu and %llu",
                  Q_STR_ARG(p->a->name), Q_STR_ARG(p->b->name), (unsigned long long)p->a->shape[0],
                  (unsigned long long)p->b->shape[1], Q_STR_ARG(base->name), (unsigned long long)base->shape[0],
                  (unsigned long long)base->rows);
}

/* --------------------------------------------------------------------------------------- the base it says it is for */

static lq_status check_arch(const q_directory *d, const q_arch *a) {
    const q_meta *m = q_directory_meta(d, "general.architecture");
    if (d->names != Q_NAMES_GGUF) return LQ_OK;
    if (!m || m->type != Q_META_STRING)
        return q_fail(LQ_E_INCONSISTENT, "the key 'general.architecture' is missing or not a string");
    if (q_str_is(m->s, a->name) || q_listed(a->aliases, m->s)) return LQ_OK;
    return q_fail(LQ_E_INCONSISTENT, "the adapter is for the architecture '%.*s', the model is '%s'", Q_STR_ARG(m->s),
                  a->name);
}

static lq_status hash_base(const q_alloc *a, const q_directory *base, uint64_t *hash) {
    enum { PIECE = 1 << 20 };
    q_checksum h = {0};
    uint8_t *piece = (uint8_t *)q_new_raw(a, PIECE, 1);
    lq_status s = piece ? LQ_OK : LQ_E_NOMEM;
    for (uint32_t i = 0; i < base->n_tensors && s == LQ_OK; i++) {
        const q_tensor *t = &base->tensors[i];
        for (uint64_t at = 0; at < t->bytes && s == LQ_OK; at += PIECE) {
            const uint64_t n = Q_MIN(t->bytes - at, (uint64_t)PIECE);
            s = q_tensor_read(base, t, at, piece, n);
            if (s == LQ_OK) q_checksum_add(&h, piece, (size_t)n);
        }
    }
    q_delete(a, piece);
    if (s == LQ_OK) *hash = q_checksum_end(&h);
    return s;
}

static lq_status check_base(const q_alloc *a, const q_directory *d, const q_directory *base) {
    const q_meta *m = q_directory_meta(d, Q_LORA_BASE_HASH);
    uint64_t hash;
    char text[24];
    if (!m) return LQ_OK;
    if (m->type != Q_META_STRING) return q_fail(LQ_E_INCONSISTENT, "the key '%s' is not a string", Q_LORA_BASE_HASH);
    Q_TRY(hash_base(a, base, &hash));
    snprintf(text, sizeof text, "%016llx", (unsigned long long)hash);
    if (q_str_is(m->s, text)) return LQ_OK;
    return q_fail(LQ_E_INCONSISTENT, "the adapter is for a base with the hash '%.*s' (%s); the model's is %s",
                  Q_STR_ARG(m->s), Q_LORA_BASE_HASH, text);
}

/* ------------------------------------------------------------------------------------------------ A and B */

/* All rows as float32; row i of `out` is row_of(i) of the tensor. */
static lq_status read_matrix(const q_alloc *a, const q_directory *d, const q_tensor *t, const q_bind_item *map,
                             bool back, float *out) {
    const uint64_t k = t->shape[0];
    uint8_t *raw = (uint8_t *)q_new_raw(a, t->row_bytes, 1);
    lq_status s = raw ? LQ_OK : LQ_E_NOMEM;
    for (uint64_t i = 0; i < t->rows && s == LQ_OK; i++) {
        const uint64_t other = map ? q_bind_source_row(map, i) : i;
        float *y = out + (back ? other : i) * k;
        s = q_tensor_read(d, t, (back ? i : other) * t->row_bytes, raw, t->row_bytes);
        if (s != LQ_OK) break;
        q_decode_row(t->format, raw, (int64_t)k, y);
        for (uint64_t j = 0; j < k && s == LQ_OK; j++)
            if (!isfinite(y[j]))
                s = q_fail(LQ_E_INCONSISTENT, "tensor '%.*s' has a value that is not finite in row %llu, column %llu",
                           Q_STR_ARG(t->name), (unsigned long long)(back ? i : other), (unsigned long long)j);
    }
    q_delete(a, raw);
    return s;
}

/* B of one convention for a base of the other: `map` says of each row in GGUF's order where Hugging Face has it. */
static lq_status read_delta(q_loras *l, const adapter *x, const q_lora_part *p, const q_binding *b, q_bind_item *item) {
    const q_weight_row *row = &b->arch->weights[item->role];
    const uint64_t k = p->a->shape[0], rank = p->a->shape[1], rows = p->b->shape[1];
    q_bind_item map = *item;
    map.map = row->map;
    const bool differ = x->dir->names != b->dir->names && row->map == Q_MAP_ROPE_PAIRS;
    float *fa = (float *)q_arena_new(&l->arena, rank * k, sizeof *fa),
          *fb = (float *)q_arena_new(&l->arena, rows * rank, sizeof *fb);
    q_lora_delta *d = (q_lora_delta *)q_arena_new(&l->arena, 1, sizeof *d);
    if (!fa || !fb || !d) return LQ_E_NOMEM;
    Q_TRY(read_matrix(l->alloc, x->dir, p->a, NULL, false, fa));
    Q_TRY(read_matrix(l->alloc, x->dir, p->b, differ ? &map : NULL, b->dir->names == Q_NAMES_HF, fb));
    *d = (q_lora_delta){.a = fa, .b = fb, .rank = (uint32_t)rank, .scale = (float)((double)x->scale * p->factor)};
    if (!isfinite(d->scale))
        return q_fail(LQ_E_INCONSISTENT, "'%.*s' has a scale that is not finite", Q_STR_ARG(p->a->name));
    if (x->scale == 0) return LQ_OK;
    q_lora_delta **at = &item->delta;
    while (*at) at = &(*at)->next;
    *at = d;
    return LQ_OK;
}

static lq_status bind_one(q_loras *l, const adapter *x, q_binding *b) {
    uint64_t floats = 0;
    Q_TRY(check_arch(x->dir, b->arch));
    for (uint32_t i = 0; i < x->n_parts; i++) {
        const q_lora_part *p = &x->parts[i];
        q_bind_item *item;
        Q_TRY(find_item(b, x->dir->names, p->target, &item));
        Q_TRY(check_shape(p, item->src));
        /* no overflow: at most 2^16 times what files have */
        floats += p->a->shape[1] * (p->a->shape[0] + p->b->shape[1]);
    }
    Q_TRY(check_base(l->alloc, x->dir, b->dir));
    Q_TRY(q_memory_check("the adapter", floats * sizeof(float), 0));
    for (uint32_t i = 0; i < x->n_parts; i++) {
        q_bind_item *item;
        Q_TRY(find_item(b, x->dir->names, x->parts[i].target, &item));
        Q_TRY(read_delta(l, x, &x->parts[i], b, item));
    }
    if (x->scale == 0) q_log_write(l->log, LQ_LOG_WARN, "%s: its scale is 0, so it adds nothing", x->path);
    return LQ_OK;
}

lq_status q_loras_bind(q_loras *l, q_binding *b, uint32_t *adapted) {
    *adapted = 0;
    for (uint32_t i = 0; i < q_loras_count(l); i++) {
        const lq_status s = bind_one(l, &l->items[i], b);
        if (s != LQ_OK) return q_fail_in(s, "%s", l->items[i].path);
    }
    for (uint32_t i = 0; i < b->n_items; i++) *adapted += b->items[i].delta != NULL;
    return LQ_OK;
}

/* ----------------------------------------------------------------------------------------- what a file says of them */

static const char key_format[] = "libquant.lora.%u.%s";

static lq_status add_key(q_arena *arena, uint32_t i, const char *what, const q_meta *value, q_meta *out) {
    char key[64];
    snprintf(key, sizeof key, key_format, i, what);
    const char *copy = q_arena_str(arena, q_str_of(key));
    if (!copy) return LQ_E_NOMEM;
    *out = *value;
    out->key = q_str_of(copy);
    return LQ_OK;
}

lq_status q_loras_keys(const q_loras *l, q_arena *arena, q_meta *meta, uint32_t *n) {
    uint32_t first = 0;
    int32_t has;
    for (uint32_t i = 0; i < *n; i++)
        if (follows("libquant.lora.%d.name", meta[i].key, &has) || follows("libquant.lora.%d.scale", meta[i].key, &has))
            first = Q_MAX(first, (uint32_t)has + 1);
    for (uint32_t i = 0; i < q_loras_count(l); i++) {
        const char *last = q_last_name(arena, l->items[i].path, "adapter");
        if (!last) return LQ_E_NOMEM;
        const q_meta name = {.type = Q_META_STRING, .count = 1, .s = q_str_of(last)};
        const q_meta scale = {.type = Q_META_F32, .count = 1, .f = (double)l->items[i].scale};
        Q_TRY(add_key(arena, first + i, "name", &name, &meta[(*n)++]));
        Q_TRY(add_key(arena, first + i, "scale", &scale, &meta[(*n)++]));
    }
    return LQ_OK;
}

/* The key of an adapter's name or scale. */
static const q_meta *key_of(const q_meta *meta, uint32_t n, uint32_t i, const char *what) {
    char key[64];
    snprintf(key, sizeof key, key_format, i, what);
    for (uint32_t m = 0; m < n; m++)
        if (q_str_is(meta[m].key, key)) return &meta[m];
    return NULL;
}

lq_status q_loras_list(q_arena *arena, const q_meta *meta, uint32_t n, const q_loras *l, char **out) {
    enum { SHOWN = 200 }; /* bytes of a name */
    const uint64_t room = ((uint64_t)MOST + q_loras_count(l)) * (SHOWN + 32) + 1;
    char *text = *out = (char *)q_arena_new(arena, room, 1);
    if (!text) return LQ_E_NOMEM;
    size_t at = 0;
    for (uint32_t i = 0; i < MOST; i++) { /* as many as one call merges; they are counted from 0 */
        const q_meta *name = key_of(meta, n, i, "name"), *scale = key_of(meta, n, i, "scale");
        if (!name || name->type != Q_META_STRING) break;
        at += (size_t)snprintf(text + at, room - at, "%s%.*s scale %g", at ? ", " : "",
                               (int)Q_MIN(name->s.n, (uint64_t)SHOWN), name->s.p, scale ? scale->f : 1.0);
    }
    for (uint32_t i = 0; i < q_loras_count(l); i++) {
        const char *last = q_last_name(arena, l->items[i].path, "adapter");
        if (!last) return LQ_E_NOMEM;
        at += (size_t)snprintf(text + at, room - at, "%s%.*s scale %g", at ? ", " : "", SHOWN, last,
                               (double)l->items[i].scale);
    }
    return LQ_OK;
}
