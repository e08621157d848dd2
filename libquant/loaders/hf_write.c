/* hf_write.c: writes a Hugging Face directory: safetensors in shards, their index, and the files beside them.
 *
 * Everything goes into a temporary directory (q_outdir): first the side files and the index, then one shard after the
 * other as the tensors' bytes arrive. commit opens the whole with the reader, compares every file with a hash that ran
 * along, and renames the directory once. Refuses types that safetensors lacks, names that the reader would refuse, and side
 * files that are not plain names. Layer L2. */
#include "safetensors.h"

#include <stdio.h>

enum { NAME_BYTES = 56, PATH_BYTES = 4096, MAX_SIDE_FILES = 64, MAX_RANK = 8 };
#define SHARD_BYTES 5000000000u
static const char config_name[] = "config.json", written_name[] = "model.safetensors",
                  written_index_name[] = "model.safetensors.index.json", limit_key[] = "max_shard_size";

typedef struct shard {
    uint32_t first, end; /* tensors */
    uint64_t data;       /* their bytes */
    char name[NAME_BYTES];
    q_json_text header;  /* with its length in front and the padding behind it */
    q_piece_sums hash;
} shard;

typedef struct side_file {
    q_str name;
    q_piece_sums hash;
} side_file;

typedef struct hf_writer {
    const q_alloc *alloc;
    q_arena arena;       /* names of side files */
    const q_out_tensor *tensors; /* only while the writer opens */
    uint32_t n_tensors, n_shards, n_sides;
    uint64_t *bytes;     /* of each tensor */
    shard *shards;
    side_file sides[MAX_SIDE_FILES];
    uint64_t total;      /* of all files */
    q_outdir *dir;
    q_outfile *file;     /* the shard being written */
    uint32_t shard, at;  /* ... which, and its tensor */
    uint64_t left;       /* bytes of it that are missing */
} hf_writer;

/* ------------------------------------------------------------------------------------------------ what goes where */

static const struct {
    const char *type, *dtype;
    uint32_t bytes;
} types[] = {{"f32", "F32", 4}, {"f16", "F16", 2}, {"bf16", "BF16", 2}, {"u8", "U8", 1}, {"i8", "I8", 1},
             {"i16", "I16", 2}, {"i32", "I32", 4}, {"i64", "I64", 8}};

static int32_t type_of(const q_out_tensor *t) {
    const char *name = t->format ? t->format->name : t->type_name;
    for (size_t i = 0; name && i < Q_COUNT(types); i++)
        if (strcmp(types[i].type, name) == 0) return (int32_t)i;
    return -1;
}

static lq_status tensor_bytes(const q_out_tensor *t, uint64_t *bytes) {
    const int32_t type = type_of(t);
    if (type < 0)
        return q_fail(LQ_E_UNSUPPORTED, "safetensors has no element type for format %s",
                      t->format ? t->format->name : t->type_name ? t->type_name : "(none)");
    if (t->rank == 0 || t->rank > MAX_RANK) return q_fail(LQ_E_UNSUPPORTED, "%u dimensions", t->rank);
    if (t->name.n == 0 || t->name.n > 65535) return q_fail(LQ_E_ARG, "a name of %llu bytes", (unsigned long long)t->name.n);
    *bytes = types[type].bytes;
    for (uint32_t i = 0; i < t->rank; i++)
        if (t->shape[i] == 0 || q_mul_overflow(*bytes, t->shape[i], bytes) || *bytes > INT64_MAX)
            return q_fail(LQ_E_ARG, "dimension %u is zero, or the product overflows", i);
    return LQ_OK;
}

/* {"name":{"dtype":"F16","shape":[2,3],"data_offsets":[0,12]}, safetensors' shapes begin with the slowest dimension. */
static void put_tensor(q_json_text *h, const q_out_tensor *t, uint64_t begin, uint64_t end) {
    q_json_put(h, ",");
    q_json_put_string(h, t->name);
    q_json_put(h, ":{\"dtype\":\"");
    q_json_put(h, types[type_of(t)].dtype);
    q_json_put(h, "\",\"shape\":[");
    for (uint32_t i = t->rank; i-- > 0;) {
        q_json_put_uint(h, t->shape[i]);
        if (i) q_json_put(h, ",");
    }
    q_json_put(h, "],\"data_offsets\":[");
    q_json_put_uint(h, begin);
    q_json_put(h, ",");
    q_json_put_uint(h, end);
    q_json_put(h, "]}");
}

static lq_status make_header(const hf_writer *w, shard *s) {
    q_json_text *h = &s->header;
    uint64_t at = 0;
    h->alloc = w->alloc;
    q_json_put(h, "01234567{\"__metadata__\":{\"format\":\"pt\"}");
    for (uint32_t i = s->first; i < s->end; at += w->bytes[i++]) put_tensor(h, &w->tensors[i], at, at + w->bytes[i]);
    q_json_put(h, "}");
    while (!h->failed && h->n % 8) q_json_put(h, " ");
    if (h->failed) return LQ_E_NOMEM;
    const uint64_t n = h->n - 8;
    if (n > Q_LIMIT_JSON_HEADER) return q_fail(LQ_E_LIMIT, "%s: a header of %llu bytes", s->name, (unsigned long long)n);
    memcpy(h->p, &n, 8);
    return LQ_OK;
}

/* X.weight.absmax and others belong to X.weight: some readers look for them in the same shard alone. */
static bool belongs(q_str part, q_str whole) {
    return part.n > whole.n && part.p[whole.n] == '.' && memcmp(part.p, whole.p, (size_t)whole.n) == 0;
}

/* Tensors go into shards in their order, as many as fit. */
static lq_status make_shards(hf_writer *w, uint64_t most) {
    w->shards = Q_NEW(w->alloc, shard, 1);
    if (!w->shards) return LQ_E_NOMEM;
    w->n_shards = 1;
    for (uint32_t i = 0, head = 0; i < w->n_tensors; i++) {
        shard *s = &w->shards[w->n_shards - 1];
        const bool part = i && belongs(w->tensors[i].name, w->tensors[head].name);
        if (!part) head = i;
        if (!part && s->data && (w->bytes[i] > most || s->data > most - w->bytes[i])) {
            if (w->n_shards == Q_LIMIT_SHARDS) return q_fail(LQ_E_LIMIT, "more than %d shards", Q_LIMIT_SHARDS);
            shard *more = (shard *)q_grow(w->alloc, w->shards, w->n_shards, w->n_shards + 1, sizeof *more);
            if (!more) return LQ_E_NOMEM;
            w->shards = more;
            s = &more[w->n_shards++];
            s->first = i;
        }
        s->end = i + 1;
        if (q_add_overflow(s->data, w->bytes[i], &s->data) || s->data > INT64_MAX)
            return q_fail(LQ_E_LIMIT, "a shard would have more than 2^63 bytes");
    }
    for (uint32_t i = 0; i < w->n_shards; i++) {
        shard *s = &w->shards[i];
        if (w->n_shards == 1) memcpy(s->name, written_name, sizeof written_name);
        else snprintf(s->name, sizeof s->name, "model-%05u-of-%05u.safetensors", i + 1, w->n_shards);
        Q_TRY(make_header(w, s));
        uint64_t whole;
        if (q_add_overflow(s->header.n, s->data, &whole) || q_add_overflow(w->total, whole, &w->total))
            return q_fail(LQ_E_LIMIT, "the files would have more than 2^64 bytes");
    }
    return LQ_OK;
}

static lq_status make_index(const hf_writer *w, q_json_text *t) {
    uint64_t total = 0;
    t->alloc = w->alloc;
    for (uint32_t i = 0; i < w->n_tensors; i++) total += w->bytes[i];
    q_json_put(t, "{\n  \"metadata\": {\n    \"total_size\": ");
    q_json_put_uint(t, total);
    q_json_put(t, "\n  },\n  \"weight_map\": {");
    for (uint32_t s = 0; s < w->n_shards; s++)
        for (uint32_t i = w->shards[s].first; i < w->shards[s].end; i++) {
            q_json_put(t, i ? ",\n    " : "\n    ");
            q_json_put_string(t, w->tensors[i].name);
            q_json_put(t, ": \"");
            q_json_put(t, w->shards[s].name);
            q_json_put(t, "\"");
        }
    q_json_put(t, "\n  }\n}\n");
    return t->failed ? LQ_E_NOMEM : LQ_OK;
}

static void free_writer(hf_writer *w) {
    for (uint32_t i = 0; i < w->n_shards; i++) q_delete(w->alloc, w->shards[i].header.p);
    q_delete(w->alloc, w->shards);
    q_delete(w->alloc, w->bytes);
    q_arena_free(&w->arena);
    q_delete(w->alloc, w);
}

static lq_status check_side_file(const q_meta *m) {
    const q_str s = m->key;
    bool plain = s.n > 0 && s.n <= 255 && s.p[0] != '.' && !q_str_is(s, written_index_name);
    for (uint64_t i = 0; plain && i < s.n; i++) plain = (unsigned char)s.p[i] > 31 && s.p[i] != '/' && s.p[i] != 127;
    static const char end[] = ".safetensors";
    const uint64_t e = sizeof end - 1;
    if (plain && s.n >= e) plain = memcmp(s.p + s.n - e, end, e) != 0;
    return plain ? LQ_OK : q_fail(LQ_E_ARG, "'%.*s' is not the name of a file beside the weights", Q_STR_ARG(s));
}

static lq_status read_keys(hf_writer *w, const q_meta *meta, uint32_t n_meta, uint64_t *most) {
    bool config = false;
    *most = SHARD_BYTES;
    for (uint32_t i = 0; i < n_meta; i++) {
        if (q_str_is(meta[i].key, limit_key) && meta[i].type != Q_META_STRING) {
            *most = Q_MAX(meta[i].u, (uint64_t)1);
            continue;
        }
        if (meta[i].type != Q_META_STRING)
            return q_fail(LQ_E_ARG, "key %.*s: a directory's keys are files and their texts", Q_STR_ARG(meta[i].key));
        Q_TRY(check_side_file(&meta[i]));
        if (w->n_sides == MAX_SIDE_FILES) return q_fail(LQ_E_LIMIT, "more than %d files", MAX_SIDE_FILES);
        for (uint32_t k = 0; k < w->n_sides; k++)
            if (q_str_eq(w->sides[k].name, meta[i].key))
                return q_fail(LQ_E_ARG, "the file %.*s twice", Q_STR_ARG(meta[i].key));
        char *name = q_arena_str(&w->arena, meta[i].key);
        if (!name) return LQ_E_NOMEM;
        w->sides[w->n_sides++].name = q_str_of(name);
        config |= q_str_is(meta[i].key, config_name);
        if (q_add_overflow(w->total, meta[i].s.n, &w->total)) return q_fail(LQ_E_LIMIT, "the files are too long");
    }
    return config ? LQ_OK : q_fail(LQ_E_ARG, "a model's directory needs a %s", config_name);
}

/* All but the directory itself. */
static lq_status plan(const q_alloc *a, const q_meta *meta, uint32_t n_meta, const q_out_tensor *tensors,
                      uint32_t n_tensors, hf_writer **out) {
    uint64_t most;
    if (n_tensors > Q_LIMIT_TENSORS)
        return q_fail(LQ_E_LIMIT, "%u tensors; at most %d can be written", n_tensors, Q_LIMIT_TENSORS);
    hf_writer *w = Q_NEW(a, hf_writer, 1);
    if (!w) return LQ_E_NOMEM;
    w->alloc = w->arena.alloc = a;
    w->tensors = tensors;
    w->n_tensors = n_tensors;
    w->bytes = Q_NEW(a, uint64_t, n_tensors);
    lq_status s = w->bytes ? read_keys(w, meta, n_meta, &most) : LQ_E_NOMEM;
    for (uint32_t i = 0; s == LQ_OK && i < n_tensors; i++) {
        s = tensor_bytes(&tensors[i], &w->bytes[i]);
        if (s != LQ_OK) s = q_fail_in(s, "tensor %u \"%.*s\"", i, Q_STR_ARG(tensors[i].name));
    }
    if (s == LQ_OK) s = make_shards(w, most);
    q_json_text index = {0};
    if (s == LQ_OK && w->n_shards > 1) s = make_index(w, &index);
    w->total += index.n;
    q_delete(a, index.p);
    if (s != LQ_OK) {
        free_writer(w);
        return s;
    }
    *out = w;
    return LQ_OK;
}

static lq_status hf_measure(const q_meta *meta, uint32_t n_meta, const q_out_tensor *tensors, uint32_t n_tensors,
                            uint64_t *bytes) {
    hf_writer *w;
    Q_TRY(plan(&q_alloc_libc, meta, n_meta, tensors, n_tensors, &w));
    *bytes = w->total;
    free_writer(w);
    return LQ_OK;
}

/* ------------------------------------------------------------------------------------------------ writing */

static lq_status open_file(const hf_writer *w, q_str name, uint64_t bytes, q_outfile **out) {
    char path[PATH_BYTES];
    Q_TRY(q_path_join(path, sizeof path, q_outdir_temp(w->dir), name));
    return q_outfile_open(w->alloc, path, bytes, false, out);
}

/* A whole small file. */
static lq_status write_side_file(hf_writer *w, q_str name, const void *data, uint64_t n, q_piece_sums *hash) {
    q_outfile *f;
    Q_TRY(open_file(w, name, n, &f));
    const lq_status s = q_outfile_write(f, data, n);
    if (s != LQ_OK) {
        q_outfile_discard(f);
        return s;
    }
    q_piece_sums_add(hash, data, n);
    return q_outfile_commit(f);
}

static lq_status emit(hf_writer *w, const void *data, uint64_t n) {
    q_piece_sums_add(&w->shards[w->shard].hash, data, n);
    return q_outfile_write(w->file, data, n);
}

static lq_status begin_shard(hf_writer *w) {
    const shard *s = &w->shards[w->shard];
    Q_TRY(open_file(w, q_str_of(s->name), s->header.n + s->data, &w->file));
    w->at = s->first;
    w->left = s->first < s->end ? w->bytes[s->first] : 0;
    return emit(w, s->header.p, s->header.n);
}

static lq_status end_shard(hf_writer *w) {
    q_outfile *f = w->file;
    w->file = NULL; /* commit frees it in every case */
    Q_TRY(q_outfile_commit(f));
    return ++w->shard < w->n_shards ? begin_shard(w) : LQ_OK;
}

static lq_status hf_write(q_writer *writer, const void *data, uint64_t n) {
    hf_writer *w = (hf_writer *)(void *)writer;
    const uint8_t *p = (const uint8_t *)data;
    while (n) {
        if (!w->file || w->at == w->shards[w->shard].end) return q_fail(LQ_E_ARG, "more tensor data than was announced");
        const uint64_t piece = Q_MIN(n, w->left);
        Q_TRY(emit(w, p, piece));
        p += piece;
        n -= piece;
        w->left -= piece;
        if (w->left) continue;
        if (++w->at < w->shards[w->shard].end) w->left = w->bytes[w->at];
        else if (w->shard + 1 < w->n_shards) Q_TRY(end_shard(w));
    }
    return LQ_OK;
}

static void hf_discard(q_writer *writer) {
    if (!writer) return;
    hf_writer *w = (hf_writer *)(void *)writer;
    q_outfile_discard(w->file);
    q_outdir_discard(w->dir);
    free_writer(w);
}

static lq_status write_first_files(hf_writer *w, const q_meta *meta, uint32_t n_meta) {
    uint32_t k = 0;
    for (uint32_t i = 0; i < n_meta; i++)
        if (meta[i].type == Q_META_STRING) {
            Q_TRY(write_side_file(w, meta[i].key, meta[i].s.p, meta[i].s.n, &w->sides[k].hash));
            k++;
        }
    if (w->n_shards > 1) {
        q_json_text index = {0};
        q_piece_sums unused = {0}; /* the reader compares the index with the shards, name by name */
        lq_status s = make_index(w, &index);
        if (s == LQ_OK) s = write_side_file(w, q_str_of(written_index_name), index.p, index.n, &unused);
        q_delete(w->alloc, index.p);
        Q_TRY(s);
    }
    return begin_shard(w);
}

static lq_status hf_open_writer(const q_alloc *a, const char *path, bool force, const q_meta *meta, uint32_t n_meta,
                                const q_out_tensor *tensors, uint32_t n_tensors, q_writer **out) {
    hf_writer *w;
    _Static_assert(offsetof(q_out_tensor, name) == 0, "the index reads a q_str at the start of each item");
    q_index index;
    Q_TRY(q_index_build(a, tensors, sizeof *tensors, n_tensors, "tensor", &index));
    q_delete(a, index.cells);
    Q_TRY(plan(a, meta, n_meta, tensors, n_tensors, &w));
    lq_status s = q_outdir_open(a, path, w->total, force, config_name, &w->dir);
    if (s == LQ_OK) s = write_first_files(w, meta, n_meta);
    w->tensors = NULL;
    if (s != LQ_OK) {
        hf_discard((q_writer *)(void *)w);
        return s;
    }
    *out = (q_writer *)(void *)w;
    return LQ_OK;
}

/* ------------------------------------------------------------------------------------------------ reading back */

static lq_status read_back_file(const hf_writer *w, q_pool *pool, q_str name, const q_piece_sums *hash) {
    char path[PATH_BYTES];
    Q_TRY(q_path_join(path, sizeof path, q_outdir_temp(w->dir), name));
    return q_read_back(w->alloc, pool, path, hash);
}

/* The directory through the reader: headers, index and configuration are what it takes. Then every byte. */
static lq_status check(const hf_writer *w, q_pool *pool) {
    const q_load_options o = {.alloc = w->alloc};
    q_directory *d;
    const lq_status s = q_loader_safetensors.open(q_outdir_temp(w->dir), &o, &d);
    if (s == LQ_E_NOMEM) return s;
    if (s != LQ_OK) return q_fail_in(LQ_E_IO, "what was written cannot be read back");
    q_delete(w->alloc, d->meta_index.cells); /* q_directory_close's part */
    q_delete(w->alloc, d->tensor_index.cells);
    q_loader_safetensors.close(d);
    for (uint32_t i = 0; i < w->n_sides; i++) Q_TRY(read_back_file(w, pool, w->sides[i].name, &w->sides[i].hash));
    for (uint32_t i = 0; i < w->n_shards; i++) Q_TRY(read_back_file(w, pool, q_str_of(w->shards[i].name), &w->shards[i].hash));
    return LQ_OK;
}

static lq_status hf_commit(q_writer *writer, q_pool *pool) {
    hf_writer *w = (hf_writer *)(void *)writer;
    lq_status s = LQ_OK;
    if (!w->file || w->shard + 1 < w->n_shards || w->at < w->shards[w->shard].end)
        s = q_fail(LQ_E_ARG, "tensor %u of %u misses %llu of its bytes", w->at, w->n_tensors, (unsigned long long)w->left);
    if (s == LQ_OK) s = end_shard(w);
    if (s == LQ_OK) s = check(w, pool);
    if (s != LQ_OK) {
        hf_discard(writer);
        return s;
    }
    s = q_outdir_commit(w->dir); /* frees the directory in every case */
    free_writer(w);
    return s;
}

const q_writer_kind q_writer_huggingface = {"huggingface", "", hf_measure, hf_open_writer, hf_write, hf_commit, hf_discard};
