/* hf_dir.c: a Hugging Face model directory: which files it consists of, and the loader's record; and that of an
 * adapter's directory, which is simpler: adapter_config.json and adapter_model.safetensors.
 *
 * config.json, then either model.safetensors or the shards that model.safetensors.index.json lists; beside them
 * tokenizer_config.json and tokenizer.model (or tokenizer.json) where present, and what describes quantized weights
 * where config.json does not: quantize_config.json of AutoGPTQ, quant_config.json of AutoAWQ. Other files,
 * generation_config.json among them, are not looked at. Refuses shard names that lead anywhere else, an index that
 * disagrees with the shards in any tensor or in the total size, and keys that become ambiguous when joined. Pickled
 * weights are never opened (loader.c says so). The container itself is safetensors.c's, metadata hf_config.c's,
 * quantized weights hf_view.c's. Layer L2. */
#include "hf_view.h"
#include "safetensors.h"

enum { PATH_BYTES = 4096, CONFIG_BYTES = 16 << 20, TOKENIZER_BYTES = 64 << 20 };
static const char config_name[] = "config.json", single_name[] = "model.safetensors",
                  index_name[] = "model.safetensors.index.json", tokenizer_config_name[] = "tokenizer_config.json",
                  adapter_config_name[] = "adapter_config.json", adapter_name[] = "adapter_model.safetensors";

typedef struct hf_dir {
    q_directory dir;
    const q_alloc *alloc;
    q_arena arena;
    q_st_list tensors;
    q_hf_meta meta;
    uint8_t *tokenizer;
    uint64_t header_bytes; /* of all files */
    q_tensor *seen;        /* the directory's tensors: those of the files, or views of several */
    q_hf_cache *cache;
    const char *beside;    /* the file that describes quantized weights, where config.json does not */
} hf_dir;

static lq_status join(char buf[PATH_BYTES], const char *dir, const char *name) {
    return q_path_join(buf, PATH_BYTES, dir, q_str_of(name));
}

static lq_status has_file(const char *dir, const char *name, bool *has) {
    char path[PATH_BYTES];
    q_path_kind kind;
    Q_TRY(join(path, dir, name));
    Q_TRY(q_path_kind_of(path, &kind));
    *has = kind == Q_PATH_FILE;
    return LQ_OK;
}

/* ------------------------------------------------------------------------------------------------ the shard index */

typedef struct index_entry {
    q_str tensor;
    uint32_t shard; /* as listed first; position in `shards` */
} index_entry;

enum { CELL_BITS = 12 };
typedef struct shard_index {
    const q_alloc *alloc;
    q_arena arena; /* escaped strings */
    uint8_t *text;
    index_entry *entries;
    uint64_t n, cap;
    uint32_t n_shards;
    bool has_total, has_map;
    uint64_t total;
    q_str shards[Q_LIMIT_SHARDS];
    uint32_t cells[1 << CELL_BITS]; /* hash table of shards: position + 1 */
} shard_index;
_Static_assert(1 << CELL_BITS >= 2 * Q_LIMIT_SHARDS, "the table always has free cells");

static void free_index(shard_index *x) {
    if (!x) return;
    const q_alloc *a = x->alloc;
    q_arena_free(&x->arena);
    q_delete(a, x->entries);
    q_delete(a, x->text);
    q_delete(a, x);
}

/* A plain name of a safetensors file: whatever it names lies in the directory itself. */
static lq_status check_shard_name(q_str name) {
    bool plain = q_str_ends(name, ".safetensors") && name.n <= 255 && name.p[0] != '.';
    for (uint64_t i = 0; plain && i < name.n; i++) {
        const unsigned char c = (unsigned char)name.p[i];
        plain = c >= 32 && c != 127 && c != '/' && c != '\\' && c != ':';
    }
    return plain ? LQ_OK : q_fail(LQ_E_FORMAT, "shard '%.*s' is not the plain name of a safetensors file",
                                  Q_STR_ARG(name));
}

/* The position of a shard, added when new. Hashed from a start that the file's author does not know, since a million
 * tensors may name a thousand shards. */
static lq_status find_shard(shard_index *x, q_str name, uint32_t *shard) {
    uint64_t h = (uint64_t)(uintptr_t)x * 0x9E3779B97F4A7C15u;
    for (uint64_t i = 0; i < name.n; i++) h = (h ^ (uint8_t)name.p[i]) * 1099511628211u;
    uint32_t c = (uint32_t)(h >> (64 - CELL_BITS));
    for (; x->cells[c]; c = (c + 1) % Q_COUNT(x->cells))
        if (q_str_eq(name, x->shards[x->cells[c] - 1])) {
            *shard = x->cells[c] - 1;
            return LQ_OK;
        }
    Q_TRY(check_shard_name(name));
    if (x->n_shards == Q_LIMIT_SHARDS) return q_fail(LQ_E_LIMIT, "more than %d shards", Q_LIMIT_SHARDS);
    *shard = x->n_shards++;
    x->shards[*shard] = name;
    x->cells[c] = x->n_shards;
    return LQ_OK;
}

static lq_status read_weight_map(shard_index *x, q_json_reader *r) {
    bool first = true, more;
    if (x->has_map) return q_fail(LQ_E_FORMAT, "duplicate key 'weight_map'");
    x->has_map = true;
    Q_TRY(q_json_expect(r, '{'));
    for (;;) {
        index_entry e;
        q_str shard;
        Q_TRY(q_json_next(r, '}', &first, &more));
        if (!more) return LQ_OK;
        Q_TRY(q_json_key(r, &e.tensor));
        Q_TRY(q_json_string(r, &shard));
        const lq_status s = find_shard(x, shard, &e.shard);
        if (s != LQ_OK) return q_fail_in(s, "tensor '%.*s'", Q_STR_ARG(e.tensor));
        if (x->n == Q_LIMIT_TENSORS) return q_fail(LQ_E_LIMIT, "more than %d tensors", Q_LIMIT_TENSORS);
        if (x->n == x->cap) {
            const uint64_t cap = x->cap ? x->cap * 2 : 64;
            index_entry *entries = (index_entry *)q_grow(x->alloc, x->entries, x->n, cap, sizeof *entries);
            if (!entries) return LQ_E_NOMEM;
            x->entries = entries;
            x->cap = cap;
        }
        x->entries[x->n++] = e;
    }
}

static lq_status read_index_metadata(shard_index *x, q_json_reader *r) {
    bool first = true, more;
    Q_TRY(q_json_expect(r, '{'));
    for (;;) {
        q_str key;
        Q_TRY(q_json_next(r, '}', &first, &more));
        if (!more) return LQ_OK;
        Q_TRY(q_json_key(r, &key));
        if (!q_str_is(key, "total_size")) {
            Q_TRY(q_json_skip(r));
            continue;
        }
        if (x->has_total) return q_fail(LQ_E_FORMAT, "duplicate key 'total_size'");
        x->has_total = true;
        const lq_status s = q_json_uint(r, &x->total);
        if (s != LQ_OK) return q_fail_in(s, "total_size");
    }
}

static lq_status read_index(shard_index *x, uint64_t n) {
    q_json_reader r = {.data = x->text, .n = n, .what = index_name, .arena = &x->arena};
    bool first = true, more;
    Q_TRY(q_json_expect(&r, '{'));
    for (;;) {
        q_str key;
        Q_TRY(q_json_next(&r, '}', &first, &more));
        if (!more) break;
        Q_TRY(q_json_key(&r, &key));
        Q_TRY(q_str_is(key, "weight_map") ? read_weight_map(x, &r)
              : q_str_is(key, "metadata") ? read_index_metadata(x, &r)
                                          : q_json_skip(&r));
    }
    Q_TRY(q_json_end(&r));
    return x->n ? LQ_OK : q_fail(LQ_E_FORMAT, "it has no 'weight_map' with tensors");
}

/* Shards in the order of their names, whatever the map's: positions in `order`, and back in `rank`. */
static void order_shards(const shard_index *x, uint32_t *order, uint32_t *rank) {
    for (uint32_t i = 0; i < x->n_shards; i++) {
        uint32_t j = i;
        for (; j > 0; j--) {
            const q_str a = x->shards[i], b = x->shards[order[j - 1]];
            const int c = memcmp(a.p, b.p, (size_t)Q_MIN(a.n, b.n));
            if (c > 0 || (c == 0 && a.n > b.n)) break;
            order[j] = order[j - 1];
        }
        order[j] = i;
    }
    for (uint32_t i = 0; i < x->n_shards; i++) rank[order[i]] = i;
}

/* Every listed tensor is in the file that the index says, none is listed twice, and none is missing from the list. */
static lq_status check_index(const shard_index *x, const uint32_t *rank, const hf_dir *h) {
    const q_tensor *t = h->tensors.items;
    uint8_t *listed = (uint8_t *)q_new(h->alloc, h->tensors.n, 1);
    if (!listed) return LQ_E_NOMEM;
    lq_status s = LQ_OK;
    uint64_t total = 0;
    for (uint64_t i = 0; s == LQ_OK && i < x->n; i++) {
        const index_entry *e = &x->entries[i];
        const int64_t at = q_index_find(&h->dir.tensor_index, t, sizeof *t, e->tensor);
        if (at < 0 || t[at].file != rank[e->shard])
            s = q_fail(LQ_E_FORMAT, "tensor '%.*s' is not in '%.*s', where the index puts it", Q_STR_ARG(e->tensor),
                       Q_STR_ARG(x->shards[e->shard]));
        else if (listed[at]) s = q_fail(LQ_E_FORMAT, "tensor '%.*s' is listed twice", Q_STR_ARG(e->tensor));
        else listed[at] = 1;
    }
    for (uint64_t i = 0; s == LQ_OK && i < h->tensors.n; i++) {
        total += t[i].bytes; /* cannot wrap: each file's tensors fit the file */
        if (!listed[i]) s = q_fail(LQ_E_FORMAT, "tensor '%.*s' is in a shard but not listed", Q_STR_ARG(t[i].name));
    }
    q_delete(h->alloc, listed);
    if (s == LQ_OK && x->has_total && x->total != total)
        s = q_fail(LQ_E_FORMAT, "total_size is %llu; the tensors have %llu bytes", (unsigned long long)x->total,
                   (unsigned long long)total);
    return s == LQ_OK ? s : q_fail_in(s, "%s", index_name);
}

/* ------------------------------------------------------------------------------------------------ weights */

static lq_status read_container(hf_dir *h, uint32_t file) {
    const q_file *f = h->dir.files[file];
    const uint64_t size = q_file_size(f);
    uint8_t head[9] = {0};
    uint64_t n = 0;
    Q_TRY(q_file_read(f, 0, head, Q_MIN(size, (uint64_t)sizeof head)));
    Q_TRY(q_st_header_length(head, size, &n));
    h->header_bytes += n;
    if (h->header_bytes > Q_LIMIT_METADATA)
        return q_fail(LQ_E_LIMIT, "the headers together exceed %d bytes", Q_LIMIT_METADATA);
    uint8_t *json = (uint8_t *)q_arena_new(&h->arena, n, 1); /* names point into it */
    if (!json) return LQ_E_NOMEM;
    Q_TRY(q_file_read(f, 8, json, n));
    return q_st_header(&h->arena, json, n, size - 8 - n, file, &h->tensors);
}

static lq_status add_file(hf_dir *h, const char *path, bool map) {
    const uint32_t i = h->dir.n_files;
    Q_TRY(q_file_open(h->alloc, path, map ? Q_FILE_MAP : 0, &h->dir.files[i]));
    h->dir.n_files++;
    const lq_status s = read_container(h, i);
    return s == LQ_OK ? s : q_fail_in(s, "%s", path);
}

static lq_status make_files(hf_dir *h, uint32_t n) {
    h->dir.files = (q_file **)q_arena_new(&h->arena, n, sizeof(q_file *));
    return h->dir.files ? LQ_OK : LQ_E_NOMEM;
}

/* All tensors are known: their index, which also finds duplicates, and where their bytes are. */
static lq_status seal_tensors(hf_dir *h) {
    h->dir.tensors = h->tensors.items;
    h->dir.n_tensors = (uint32_t)h->tensors.n;
    const lq_status s = q_index_build(h->alloc, h->tensors.items, sizeof(q_tensor), h->dir.n_tensors, "tensor",
                                      &h->dir.tensor_index);
    if (s != LQ_OK) return s == LQ_E_INCONSISTENT ? LQ_E_FORMAT : s;
    for (uint64_t i = 0; i < h->tensors.n; i++) {
        q_tensor *t = &h->tensors.items[i];
        const uint8_t *data = q_file_data(h->dir.files[t->file]);
        t->data = data ? data + t->offset : NULL;
    }
    return LQ_OK;
}

static lq_status open_shards(hf_dir *h, shard_index *x, const char *dir, bool map) {
    char path[PATH_BYTES];
    uint64_t n;
    Q_TRY(join(path, dir, index_name));
    Q_TRY(q_file_slurp(h->alloc, path, Q_LIMIT_JSON_HEADER, &x->text, &n));
    lq_status s = read_index(x, n);
    if (s != LQ_OK) return q_fail_in(s, "%s", path);
    uint32_t *order = (uint32_t *)q_arena_new(&h->arena, (uint64_t)x->n_shards * 2, sizeof *order);
    if (!order) return LQ_E_NOMEM;
    uint32_t *rank = order + x->n_shards;
    order_shards(x, order, rank);
    Q_TRY(make_files(h, x->n_shards));
    for (uint32_t i = 0; i < x->n_shards; i++) {
        const q_str name = x->shards[order[i]];
        Q_TRY(q_path_join(path, sizeof path, dir, name));
        q_path_kind kind;
        Q_TRY(q_path_kind_of(path, &kind));
        if (kind == Q_PATH_NONE)
            return q_fail(LQ_E_FORMAT, "%s/%s: shard '%.*s' is missing", dir, index_name, Q_STR_ARG(name));
        Q_TRY(add_file(h, path, map));
    }
    s = seal_tensors(h);
    if (s == LQ_OK) s = check_index(x, rank, h);
    return s == LQ_OK ? s : q_fail_in(s, "%s", dir);
}

/* `file`: the container that the caller named, or NULL. */
static lq_status open_weights(hf_dir *h, const char *dir, const char *file, bool map) {
    char path[PATH_BYTES];
    bool single, sharded, part = false;
    Q_TRY(has_file(dir, single_name, &single));
    Q_TRY(has_file(dir, index_name, &sharded));
    if (sharded) {
        shard_index *x = Q_NEW(h->alloc, shard_index, 1);
        if (!x) return LQ_E_NOMEM;
        x->alloc = x->arena.alloc = h->alloc;
        lq_status s = open_shards(h, x, dir, map);
        bool listed = false;
        for (uint32_t i = 0; i < x->n_shards; i++) listed = listed || q_str_is(x->shards[i], single_name);
        if (s == LQ_OK && single && !listed)
            s = q_fail(LQ_E_INCONSISTENT, "%s has both %s and an index that does not list it", dir, single_name);
        free_index(x);
        Q_TRY(s);
    } else {
        if (!single && !file)
            return q_fail(LQ_E_FORMAT, "%s has neither %s nor %s", dir, single_name, index_name);
        Q_TRY(make_files(h, 1));
        Q_TRY(join(path, dir, single_name));
        Q_TRY(add_file(h, single ? path : file, map));
        const lq_status s = seal_tensors(h);
        if (s != LQ_OK) return q_fail_in(s, "%s", single ? path : file);
    }
    for (uint32_t i = 0; file && !part && i < h->dir.n_files; i++)
        Q_TRY(q_path_same(file, q_file_path(h->dir.files[i]), &part));
    return file && !part ? q_fail(LQ_E_ARG, "%s is not part of the model in its directory", file) : LQ_OK;
}

/* ------------------------------------------------------------------------------------------------ configuration */

static lq_status read_config(hf_dir *h, const char *dir, const char *name, const char *prefix, bool scalars,
                             q_hf_meta *to) {
    char path[PATH_BYTES];
    uint8_t *text;
    uint64_t n;
    const q_json *root;
    q_arena tree = {.alloc = h->alloc};
    const bool side = *prefix != 0;
    Q_TRY(join(path, dir, name));
    Q_TRY(q_file_slurp(h->alloc, path, CONFIG_BYTES, &text, &n));
    /* A tokenizer without limit writes model_max_length as an integer of 31 digits. */
    lq_status s = q_json_parse(&tree, text, n, side ? Q_JSON_WIDE : 0, path, &root);
    const bool parsed = s == LQ_OK; /* its sentences name the file themselves */
    const uint64_t begin = to->n;
    if (parsed) s = q_hf_flatten(to, root, prefix, scalars);
    q_arena_free(&tree);
    q_delete(h->alloc, text);
    if (!parsed) return s;
    static const char reserved[] = "tokenizer_config";
    for (uint64_t i = begin; s == LQ_OK && !side && i < to->n; i++) {
        const q_str key = to->items[i].key;
        if (key.n >= sizeof reserved - 1 && memcmp(key.p, reserved, sizeof reserved - 1) == 0)
            s = q_fail(LQ_E_FORMAT, "the key '%.*s' belongs to another file", Q_STR_ARG(key));
    }
    return s == LQ_OK ? s : q_fail_in(s, "%s", path);
}

static lq_status index_meta(hf_dir *h, const char *dir, const char *name) {
    h->dir.meta = h->meta.items;
    h->dir.n_meta = (uint32_t)h->meta.n;
    q_delete(h->alloc, h->dir.meta_index.cells);
    h->dir.meta_index.cells = NULL;
    const lq_status s = q_index_build(h->alloc, h->meta.items, sizeof(q_meta), h->dir.n_meta, "joined key",
                                      &h->dir.meta_index);
    if (s == LQ_OK) return s;
    return q_fail_in(s == LQ_E_INCONSISTENT ? LQ_E_FORMAT : s, "%s/%s", dir, name);
}

/* `side` may be there, too. */
static lq_status read_configs(hf_dir *h, const char *dir, const char *name, const char *side) {
    bool has;
    Q_TRY(has_file(dir, name, &has));
    if (!has) return q_fail(LQ_E_FORMAT, "%s has no %s", dir, name);
    Q_TRY(read_config(h, dir, name, "", false, &h->meta));
    if (side) Q_TRY(has_file(dir, side, &has));
    if (side && has) Q_TRY(read_config(h, dir, side, "tokenizer_config.", true, &h->meta));
    return index_meta(h, dir, name);
}

/* ---------------------------------------------------------------------------------- quantization beside config.json */

/* Before config.json had quantization_config, the same object was a file of its own. */
static const char quantization[] = "quantization_config.";
static const struct {
    const char *file, *method; /* its quant_method, where it has none */
} beside[] = {{"quantize_config.json", "gptq"}, {"quant_config.json", "awq"}};

static bool has_quantization(const hf_dir *h) {
    for (uint64_t i = 0; i < h->meta.n; i++)
        if (q_str_begins(h->meta.items[i].key, quantization)) return true;
    return false;
}

static bool same_value(const q_meta *a, const q_meta *b) {
    /* lists say nothing of the weights */
    if (a->type == Q_META_ARRAY || b->type == Q_META_ARRAY) return a->type == b->type;
    if (a->type == Q_META_STRING || b->type == Q_META_STRING) return a->type == b->type && q_str_eq(a->s, b->s);
    return (a->type == Q_META_BOOL) == (b->type == Q_META_BOOL) && a->f == b->f && a->i == b->i;
}

/* config.json has the word, or the file that stands for it; where the other file says something else, that is told. */
static void tell_differences(const hf_dir *h, const q_log *log, const char *dir, const char *name,
                             const q_hf_meta *other) {
    uint32_t n = 0;
    q_str first = {0};
    for (uint64_t i = 0; i < other->n; i++) {
        const q_str key = other->items[i].key;
        const int64_t at = q_index_find(&h->dir.meta_index, h->meta.items, sizeof(q_meta), key);
        if (at < 0 || same_value(&h->meta.items[at], &other->items[i])) continue;
        if (n++ == 0) first = (q_str){key.p + sizeof quantization - 1, key.n - (sizeof quantization - 1)};
    }
    if (n)
        q_log_write(log, LQ_LOG_WARN, "%s/%s is not used: %s%s says otherwise in %u fields ('%.*s'), and holds", dir,
                    name, h->beside ? "" : "quantization_config in ", h->beside ? h->beside : config_name, n,
                    Q_STR_ARG(first));
}

/* Is there what such a file describes? */
static bool is_quantized(const hf_dir *h) {
    for (uint64_t i = 0; i < h->tensors.n; i++)
        if (q_str_ends(h->tensors.items[i].name, ".qweight")) return true;
    return false;
}

static lq_status take_beside(hf_dir *h, const q_log *log, const char *dir, size_t which, const q_hf_meta *other) {
    const char *name = beside[which].file;
    bool has_method = false;
    if (!is_quantized(h)) {
        q_log_write(log, LQ_LOG_WARN, "%s/%s is not used: no tensor is quantized", dir, name);
        return LQ_OK;
    }
    for (uint64_t i = 0; i < other->n; i++) {
        has_method |= q_str_is(other->items[i].key, "quantization_config.quant_method");
        Q_TRY(q_hf_add_meta(&h->meta, &other->items[i]));
    }
    if (!has_method) {
        const q_meta method = {.key = q_str_of("quantization_config.quant_method"), .type = Q_META_STRING, .count = 1,
                               .s = q_str_of(beside[which].method)};
        Q_TRY(q_hf_add_meta(&h->meta, &method));
    }
    h->beside = name;
    q_log_write(log, LQ_LOG_WARN, "%s has no quantization_config: it is read from %s/%s%s%s", config_name, dir, name,
                has_method ? "" : ", as of the method ", has_method ? "" : beside[which].method);
    return index_meta(h, dir, name);
}

static lq_status read_beside(hf_dir *h, const q_log *log, const char *dir) {
    lq_status s = LQ_OK;
    for (size_t i = 0; s == LQ_OK && i < Q_COUNT(beside); i++) {
        bool has;
        Q_TRY(has_file(dir, beside[i].file, &has));
        if (!has) continue;
        q_hf_meta other = {.alloc = h->alloc, .arena = &h->arena};
        s = read_config(h, dir, beside[i].file, quantization, false, &other);
        if (s != LQ_OK && s != LQ_E_NOMEM && (has_quantization(h) || !is_quantized(h))) {
            q_log_write(log, LQ_LOG_WARN, "%s is not used: %s", beside[i].file, lq_error_detail());
            s = LQ_OK;
        } else if (s == LQ_OK && has_quantization(h)) tell_differences(h, log, dir, beside[i].file, &other);
        else if (s == LQ_OK) s = take_beside(h, log, dir, i, &other);
        q_delete(h->alloc, other.items);
    }
    return s;
}

static void hf_idle(q_directory *dir) { q_hf_cache_empty(((hf_dir *)dir->owner)->cache); }

/* Weights in quantized form become one tensor each. */
static lq_status see_quantized(hf_dir *h, const q_log *log, const char *dir) {
    uint32_t n;
    lq_status s = q_hf_views(h->alloc, log, &h->arena, &h->dir, &h->cache, &h->seen, &n);
    if (s != LQ_OK && strstr(lq_error_detail(), dir)) return s;
    if (s != LQ_OK)
        return h->beside ? q_fail_in(s, "%s/%s, in the place of a quantization_config", dir, h->beside)
                         : q_fail_in(s, "%s", dir);
    h->dir.idle = hf_idle;
    h->dir.tensors = h->seen;
    h->dir.n_tensors = n;
    q_delete(h->alloc, h->dir.tensor_index.cells);
    h->dir.tensor_index.cells = NULL;
    s = q_index_build(h->alloc, h->seen, sizeof(q_tensor), n, "tensor", &h->dir.tensor_index);
    return s == LQ_OK ? s : q_fail_in(s == LQ_E_INCONSISTENT ? LQ_E_FORMAT : s, "%s", dir);
}

static lq_status read_tokenizer(hf_dir *h, const char *dir) {
    static const char *const names[] = {"tokenizer.model", "tokenizer.json"};
    for (size_t i = 0; i < Q_COUNT(names); i++) {
        bool has;
        Q_TRY(has_file(dir, names[i], &has));
        if (!has) continue;
        char path[PATH_BYTES];
        Q_TRY(join(path, dir, names[i]));
        Q_TRY(q_file_slurp(h->alloc, path, TOKENIZER_BYTES, &h->tokenizer, &h->dir.tokenizer_bytes));
        h->dir.tokenizer = h->tokenizer;
        h->dir.tokenizer_file = q_str_of(names[i]);
        break;
    }
    return LQ_OK;
}

/* ------------------------------------------------------------------------------------------------ the loader */

static lq_status hf_detect(const char *path, bool *mine) {
    q_path_kind kind;
    Q_TRY(q_path_kind_of(path, &kind));
    *mine = q_str_ends(q_str_of(path), ".safetensors");
    if (kind == Q_PATH_FILE) return LQ_OK;
    Q_TRY(has_file(path, config_name, mine));
    if (!*mine) return LQ_OK;
    Q_TRY(has_file(path, single_name, mine));
    return *mine ? LQ_OK : has_file(path, index_name, mine);
}

static void hf_close(q_directory *dir) {
    hf_dir *h = (hf_dir *)dir->owner;
    const q_alloc *a = h->alloc;
    for (uint32_t i = 0; i < dir->n_files; i++) q_file_close(dir->files[i]);
    q_arena_free(&h->arena);
    q_hf_cache_close(h->cache);
    q_delete(a, h->seen);
    q_delete(a, h->tensors.items);
    q_delete(a, h->meta.items);
    q_delete(a, h->tokenizer);
    q_delete(a, h);
}

static hf_dir *new_dir(const q_alloc *a, const char *container) {
    hf_dir *h = Q_NEW(a, hf_dir, 1);
    if (!h) return NULL;
    h->alloc = h->arena.alloc = h->tensors.alloc = h->meta.alloc = a;
    h->meta.arena = &h->arena;
    h->dir.owner = h;
    h->dir.names = Q_NAMES_HF;
    h->dir.alloc = a;
    memcpy(h->dir.container, container, strlen(container) + 1);
    return h;
}

/* All was read, or not. */
static lq_status give(hf_dir *h, lq_status s, q_directory **out) {
    if (s != LQ_OK) {
        q_delete(h->alloc, h->dir.meta_index.cells);
        q_delete(h->alloc, h->dir.tensor_index.cells);
        hf_close(&h->dir);
        return s;
    }
    *out = &h->dir;
    return LQ_OK;
}

static lq_status hf_open(const char *path, const q_load_options *options, q_directory **out) {
    char dir[PATH_BYTES];
    q_path_kind kind;
    Q_TRY(q_path_kind_of(path, &kind));
    const bool is_file = kind == Q_PATH_FILE;
    if (is_file) {
        bool has;
        Q_TRY(q_path_parent(dir, sizeof dir, path));
        Q_TRY(has_file(dir, config_name, &has));
        if (!has)
            return q_fail(LQ_E_FORMAT, "%s has no %s beside it, without which its tensors are not a model", path,
                          config_name);
    }
    hf_dir *h = new_dir(options->alloc, "huggingface");
    if (!h) return LQ_E_NOMEM;
    const char *where = is_file ? dir : path;
    lq_status s = read_configs(h, where, config_name, tokenizer_config_name);
    if (s == LQ_OK) s = open_weights(h, where, is_file ? path : NULL, options->map);
    if (s == LQ_OK) s = read_beside(h, options->log, where);
    if (s == LQ_OK) s = see_quantized(h, options->log, where);
    if (s == LQ_OK) s = read_tokenizer(h, where);
    return give(h, s, out);
}

const q_loader q_loader_safetensors = {"safetensors", hf_detect, hf_open, hf_close, false};

/* ------------------------------------------------------------------------------------------------ adapters */

static lq_status peft_detect(const char *path, bool *mine) {
    q_path_kind kind;
    Q_TRY(q_path_kind_of(path, &kind));
    *mine = false;
    if (kind != Q_PATH_DIR) return LQ_OK;
    Q_TRY(has_file(path, adapter_config_name, mine));
    return *mine ? has_file(path, adapter_name, mine) : LQ_OK;
}

static lq_status peft_open(const char *path, const q_load_options *options, q_directory **out) {
    char weights[PATH_BYTES];
    Q_TRY(join(weights, path, adapter_name));
    hf_dir *h = new_dir(options->alloc, "peft");
    if (!h) return LQ_E_NOMEM;
    lq_status s = read_configs(h, path, adapter_config_name, NULL);
    if (s == LQ_OK) s = make_files(h, 1);
    if (s == LQ_OK) s = add_file(h, weights, options->map);
    if (s == LQ_OK) {
        s = seal_tensors(h);
        if (s != LQ_OK) s = q_fail_in(s, "%s", weights);
    }
    return give(h, s, out);
}

const q_loader q_loader_peft = {"peft", peft_detect, peft_open, hf_close, true};
