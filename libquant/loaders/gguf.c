/* gguf.c: the GGUF reader, versions 2 and 3, single files and split sets.
 *
 * A file is walked twice by the same code: the first walk checks every count, string and range against the size of the
 * file and allocates nothing for its content; the second fills the arrays. All reading goes through one cursor whose
 * need(n) is the only bounds check. Refuses what the format forbids and what this build cannot name; gaps between
 * tensors only where the caller did not allow them. Strings and names point into the mapping, or into the one buffer
 * that holds the file's head when it is not mapped. Layer L2. */
#include "gguf.h"

#include <stdio.h>

typedef struct shard {
    q_file *file;
    uint8_t *own;         /* the file's head when it is not mapped */
    const uint8_t *bytes; /* the mapping or `own` */
    uint64_t have, size;  /* bytes readable there; bytes of the file */
    uint32_t version, n_meta, n_tensors;
    uint32_t alignment;
    uint64_t data_at;     /* offset of the tensor data */
    uint64_t gaps;        /* bytes that belong to nothing */
    uint64_t split_no, split_count, split_tensors; /* split_count 0: not part of a set */
    bool has_split_tensors;
} shard;

typedef struct gguf {
    q_directory dir; /* first: the owner is found from it */
    q_arena arena;
    shard *shards;
    uint32_t n_shards;
} gguf;

/* ------------------------------------------------------------------------------------------------ cursor */

typedef struct cursor {
    shard *s;
    const q_alloc *alloc;
    uint64_t at;
} cursor;

/* Without a mapping: make the first `end` bytes readable. Grows by doubling, later in steps, so that old and new buffer
 * together stay below twice the metadata and 64 MiB. Moves the buffer, which happens in the first walk alone. */
static lq_status load(cursor *c, uint64_t end) {
    enum { FIRST = 1 << 16, STEP = 48 << 20 };
    shard *s = c->s;
    uint64_t to = s->have < STEP ? s->have * 2 : s->have + STEP;
    to = Q_MAX(to, (uint64_t)FIRST);
    to = Q_MIN(Q_MAX(to, end), Q_MIN(s->size, (uint64_t)Q_LIMIT_METADATA));
    uint8_t *p = (uint8_t *)q_grow(c->alloc, s->own, s->have, to, 1);
    if (!p) return LQ_E_NOMEM;
    s->own = p;
    s->bytes = p;
    Q_TRY(q_file_read(s->file, s->have, p + s->have, to - s->have));
    s->have = to;
    return LQ_OK;
}

/* The next n bytes at *p, and step over them. */
static lq_status need(cursor *c, uint64_t n, const uint8_t **p) {
    shard *s = c->s;
    if (n > s->size - c->at)
        return q_fail(LQ_E_TRUNCATED, "%llu bytes at offset %llu reach beyond the end of the file (%llu bytes)",
                      (unsigned long long)n, (unsigned long long)c->at, (unsigned long long)s->size);
    const uint64_t end = c->at + n;
    if (end > Q_LIMIT_METADATA)
        return q_fail(LQ_E_LIMIT, "metadata goes on beyond offset %d: more than is accepted", Q_LIMIT_METADATA);
    if (end > s->have) Q_TRY(load(c, end));
    *p = s->bytes + c->at;
    c->at = end;
    return LQ_OK;
}

static lq_status need32(cursor *c, uint32_t *v) {
    const uint8_t *p;
    Q_TRY(need(c, 4, &p));
    *v = q_load32(p);
    return LQ_OK;
}

static lq_status need64(cursor *c, uint64_t *v) {
    const uint8_t *p;
    Q_TRY(need(c, 8, &p));
    *v = q_load64(p);
    return LQ_OK;
}

/* A string: its length against the file first, then against the limit. */
static lq_status need_str(cursor *c, q_str *s) {
    const uint64_t at = c->at;
    uint64_t n;
    Q_TRY(need64(c, &n));
    if (n <= c->s->size - c->at && n > Q_LIMIT_STRING)
        return q_fail(LQ_E_LIMIT, "the string at offset %llu has %llu bytes; at most %d are accepted",
                      (unsigned long long)at, (unsigned long long)n, Q_LIMIT_STRING);
    const uint8_t *p;
    Q_TRY(need(c, n, &p));
    *s = (q_str){(const char *)p, n};
    return LQ_OK;
}

/* ------------------------------------------------------------------------------------------------ metadata */

static void set_integer(q_meta *m, int64_t i, uint64_t u, double f) {
    m->i = i;
    m->u = u;
    m->f = f;
}

/* A number of any type, in every form. */
static void set_number(q_meta *m, uint32_t type, const uint8_t *p) {
    const uint32_t n = q_gguf_item_bytes(type);
    uint64_t u = 0;
    memcpy(&u, p, n);
    if (type == Q_META_F32) {
        m->f = (double)q_bits_f32((uint32_t)u);
    } else if (type == Q_META_F64) {
        memcpy(&m->f, p, 8);
    } else if (type == Q_META_I8 || type == Q_META_I16 || type == Q_META_I32 || type == Q_META_I64) {
        const uint64_t sign = (uint64_t)1 << (n * 8 - 1);
        const int64_t i = (int64_t)((u ^ sign) - sign);
        set_integer(m, i, (uint64_t)i, (double)i);
    } else {
        set_integer(m, u > INT64_MAX ? INT64_MAX : (int64_t)u, u, (double)u);
    }
}

/* Key, type, and of an array its item type and count. */
static lq_status read_key(cursor *c, q_meta *m) {
    uint32_t type, item;
    Q_TRY(need_str(c, &m->key));
    lq_status status = q_gguf_check_name("key", m->key);
    if (status != LQ_OK) {
        m->key = (q_str){0}; /* not fit to be printed */
        return status;
    }
    const uint64_t key = (uint64_t)((const uint8_t *)m->key.p - c->s->bytes);
    status = need32(c, &type);
    m->key.p = (const char *)c->s->bytes + key; /* need may have moved the buffer */
    if (status != LQ_OK) return status;
    m->type = (q_meta_type)type;
    m->count = 1;
    if (type > Q_META_F64) return q_fail(LQ_E_FORMAT, "value type %u does not exist", type);
    if (type != Q_META_ARRAY) return LQ_OK;
    status = need32(c, &item);
    if (status == LQ_OK) status = need64(c, &m->count);
    m->key.p = (const char *)c->s->bytes + key;
    if (status != LQ_OK) return status;
    m->item = (q_meta_type)item;
    if (item == Q_META_ARRAY) return q_fail(LQ_E_FORMAT, "arrays of arrays are not allowed");
    if (item > Q_META_F64) return q_fail(LQ_E_FORMAT, "array item type %u does not exist", item);
    if (m->count > Q_LIMIT_ARRAY)
        return q_fail(LQ_E_LIMIT, "an array of %llu items; at most %d are accepted", (unsigned long long)m->count,
                      Q_LIMIT_ARRAY);
    return LQ_OK;
}

/* The value itself; strs has room for an array's strings, NULL in the first walk. */
static lq_status read_value(cursor *c, q_meta *m, q_str *strs) {
    if (m->type == Q_META_STRING) return need_str(c, &m->s);
    const bool array = m->type == Q_META_ARRAY;
    if (array && m->item == Q_META_STRING) {
        for (uint64_t i = 0; i < m->count; i++) {
            q_str s;
            const lq_status status = need_str(c, &s);
            if (status != LQ_OK) return q_fail_in(status, "item %llu", (unsigned long long)i);
            if (strs) strs[i] = s;
        }
        m->strs = strs;
        return LQ_OK;
    }
    const uint8_t *p;
    const uint32_t item = array ? m->item : m->type;
    Q_TRY(need(c, m->count * q_gguf_item_bytes(item), &p)); /* count <= Q_LIMIT_ARRAY: no overflow */
    for (uint64_t i = 0; item == Q_META_BOOL && i < m->count; i++)
        if (p[i] > 1) return q_fail(LQ_E_FORMAT, "%u is not a boolean (0 or 1)", p[i]);
    if (array)
        m->raw = p;
    else
        set_number(m, item, p);
    return LQ_OK;
}

static bool is_integer(const q_meta *m) {
    return q_gguf_item_bytes(m->type) && m->type != Q_META_F32 && m->type != Q_META_F64 && m->type != Q_META_BOOL;
}

/* Keys that say how the container itself is to be read. */
static lq_status apply_key(shard *s, const q_meta *m) {
    if (q_str_is(m->key, "general.alignment")) {
        if (m->type != Q_META_U32) return q_fail(LQ_E_FORMAT, "must be a 32-bit unsigned integer");
        if (!q_is_pow2(m->u) || m->u > Q_LIMIT_ALIGNMENT)
            return q_fail(LQ_E_FORMAT, "%llu is not a power of two up to %d", (unsigned long long)m->u,
                          Q_LIMIT_ALIGNMENT);
        s->alignment = (uint32_t)m->u;
        return LQ_OK;
    }
    const bool no = q_str_is(m->key, "split.no"), count = q_str_is(m->key, "split.count");
    const bool tensors = q_str_is(m->key, "split.tensors.count");
    if (!no && !count && !tensors) return LQ_OK;
    if (!is_integer(m) || m->i < 0) return q_fail(LQ_E_FORMAT, "must be an integer that is not negative");
    if (no) s->split_no = m->u;
    if (count) s->split_count = m->u;
    if (tensors) s->split_tensors = m->u;
    s->has_split_tensors |= tensors;
    return LQ_OK;
}

/* All keys. The first walk has meta == NULL; the second fills it, with string arrays from the arena. */
static lq_status walk_meta(cursor *c, q_meta *meta, q_arena *arena) {
    for (uint32_t i = 0; i < c->s->n_meta; i++) {
        q_meta m = {0};
        const uint64_t at = c->at;
        lq_status status = read_key(c, &m);
        const uint64_t key = m.key.p ? (uint64_t)((const uint8_t *)m.key.p - c->s->bytes) : 0;
        q_str *strs = NULL;
        if (status == LQ_OK && meta && m.type == Q_META_ARRAY && m.item == Q_META_STRING) {
            strs = (q_str *)q_arena_new(arena, m.count, sizeof(q_str));
            if (!strs) status = m.count * sizeof(q_str) > arena->limit - arena->used ? LQ_E_LIMIT : LQ_E_NOMEM;
        }
        if (status == LQ_OK) status = read_value(c, &m, strs);
        if (m.key.p) m.key.p = (const char *)c->s->bytes + key;
        if (status == LQ_OK) status = apply_key(c->s, &m);
        if (status != LQ_OK)
            return q_fail_in(status, "key %u \"%.*s\" at offset %llu", i, Q_STR_ARG(m.key), (unsigned long long)at);
        if (meta) meta[i] = m;
    }
    return LQ_OK;
}

/* ------------------------------------------------------------------------------------------------ tensors */

/* Name, shape and type of one tensor; *t is complete but for its place. */
static lq_status read_tensor(cursor *c, q_tensor *t, uint64_t *offset) {
    uint32_t rank, id;
    uint64_t weights = 1;
    const uint8_t *p;
    Q_TRY(need_str(c, &t->name));
    lq_status status = q_gguf_check_name("tensor name", t->name);
    if (status != LQ_OK) {
        t->name = (q_str){0}; /* not fit to be printed */
        return status;
    }
    const uint64_t name = (uint64_t)((const uint8_t *)t->name.p - c->s->bytes);
    status = need32(c, &rank);
    if (status == LQ_OK && (rank == 0 || rank > Q_GGUF_RANK))
        status = q_fail(LQ_E_FORMAT, "%u dimensions; 1 to %d are allowed", rank, Q_GGUF_RANK);
    if (status == LQ_OK) status = need(c, (uint64_t)rank * 8 + 12, &p);
    t->name.p = (const char *)c->s->bytes + name; /* need may have moved the buffer */
    if (status != LQ_OK) return status;
    t->rank = rank;
    for (uint32_t i = 0; i < Q_COUNT(t->shape); i++) {
        t->shape[i] = i < rank ? q_load64(p + 8 * (uint64_t)i) : 1;
        if (t->shape[i] == 0) return q_fail(LQ_E_FORMAT, "dimension %u is zero", i);
        if (t->shape[i] > INT64_MAX) return q_fail(LQ_E_FORMAT, "dimension %u is negative", i);
        if (q_mul_overflow(weights, t->shape[i], &weights) || weights > INT64_MAX)
            return q_fail(LQ_E_FORMAT, "the product of its dimensions overflows");
    }
    id = q_load32(p + 8 * (uint64_t)rank);
    *offset = q_load64(p + 8 * (uint64_t)rank + 4);
    q_gguf_type type;
    Q_TRY(q_gguf_type_of(id, &type));
    t->format = type.format;
    t->type_name = type.name;
    t->rows = weights / t->shape[0];
    if (t->shape[0] % type.weights)
        return q_fail(LQ_E_FORMAT, "a row of %llu is not a multiple of the %u weights in a block of %s",
                      (unsigned long long)t->shape[0], type.weights, type.name);
    if (!q_gguf_row_bytes(&type, t->shape[0], &t->row_bytes))
        return q_fail(LQ_E_FORMAT, "a row of %llu overflows what can be computed with",
                      (unsigned long long)t->shape[0]);
    if (q_mul_overflow(t->row_bytes, t->rows, &t->bytes) || t->bytes > INT64_MAX)
        return q_fail(LQ_E_FORMAT, "its size in bytes overflows");
    return LQ_OK;
}

/* Where the bytes lie: in the order of the names, each at the next aligned offset. *end: end of the one before. */
static lq_status place_tensor(shard *s, const q_tensor *t, uint64_t offset, uint64_t *end, bool gaps) {
    const uint64_t next = q_round_up(*end, s->alignment); /* *end <= INT64_MAX */
    if (offset % s->alignment)
        return q_fail(LQ_E_FORMAT, "its offset %llu is not a multiple of the alignment %u", (unsigned long long)offset,
                      s->alignment);
    if (offset < next)
        return q_fail(LQ_E_FORMAT, "its offset %llu overlaps the tensor before it or is out of order (%llu expected)",
                      (unsigned long long)offset, (unsigned long long)next);
    if (offset > next && !gaps)
        return q_fail(LQ_E_FORMAT, "%llu unused bytes lie before its offset %llu", (unsigned long long)(offset - next),
                      (unsigned long long)offset);
    s->gaps += offset - next;
    if (q_add_overflow(offset, t->bytes, end) || *end > INT64_MAX)
        return q_fail(LQ_E_FORMAT, "its offset %llu and size overflow", (unsigned long long)offset);
    return LQ_OK;
}

/* All tensors. tensors == NULL: only check. Once s->data_at is known, each is checked against the end of the file. */
static lq_status walk_tensors(cursor *c, q_tensor *tensors, uint32_t file, bool gaps, uint64_t *end) {
    shard *s = c->s;
    *end = 0;
    s->gaps = 0;
    for (uint32_t i = 0; i < s->n_tensors; i++) {
        q_tensor t = {0};
        uint64_t offset = 0;
        const uint64_t at = c->at;
        lq_status status = read_tensor(c, &t, &offset);
        if (status == LQ_OK) status = place_tensor(s, &t, offset, end, gaps);
        if (status == LQ_OK && s->data_at && (s->data_at > s->size || *end > s->size - s->data_at))
            status = q_fail(LQ_E_TRUNCATED,
                            "its %llu bytes at offset %llu reach beyond the end of the file (%llu bytes)",
                            (unsigned long long)t.bytes, (unsigned long long)(s->data_at + offset),
                            (unsigned long long)s->size);
        if (status != LQ_OK)
            return q_fail_in(status, "tensor %u \"%.*s\" described at offset %llu", i, Q_STR_ARG(t.name),
                             (unsigned long long)at);
        if (!tensors) continue;
        t.file = file;
        t.offset = s->data_at + offset;
        t.data = s->own ? NULL : s->bytes + t.offset;
        tensors[i] = t;
    }
    return LQ_OK;
}

/* ------------------------------------------------------------------------------------------------ one file */

static const struct {
    char magic[4]; /* as the bytes stand in the file */
    const char *name;
} legacy[] = {{{'l', 'm', 'g', 'g'}, "GGML"}, {{'f', 'm', 'g', 'g'}, "GGMF"}, {{'t', 'j', 'g', 'g'}, "GGJT"},
              {{'a', 'l', 'g', 'g'}, "GGLA"}, {{'g', 'g', 'm', 'l'}, "GGML"}, {{'g', 'g', 'm', 'f'}, "GGMF"},
              {{'g', 'g', 'j', 't'}, "GGJT"}, {{'g', 'g', 'l', 'a'}, "GGLA"}, {{'G', 'G', 'M', 'L'}, "GGML"},
              {{'G', 'G', 'M', 'F'}, "GGMF"}, {{'G', 'G', 'J', 'T'}, "GGJT"}, {{'G', 'G', 'L', 'A'}, "GGLA"}};

static const char *legacy_name(const uint8_t *p) {
    for (size_t i = 0; i < Q_COUNT(legacy); i++)
        if (memcmp(p, legacy[i].magic, 4) == 0) return legacy[i].name;
    return NULL;
}

static lq_status read_header(cursor *c) {
    shard *s = c->s;
    const uint8_t *p;
    uint64_t n_tensors, n_meta;
    Q_TRY(need(c, 4, &p));
    if (legacy_name(p))
        return q_fail(LQ_E_FORMAT, "a file of the legacy format %s: convert it to GGUF first", legacy_name(p));
    if (memcmp(p, "GGUF", 4) != 0)
        return q_fail(LQ_E_FORMAT, "not a GGUF file: begins with %02x %02x %02x %02x", p[0], p[1], p[2], p[3]);
    Q_TRY(need32(c, &s->version));
    if (s->version != 2 && s->version != 3) {
        const uint32_t v = s->version;
        const bool big = v && (v & 0xFFFF) == 0;
        return q_fail(LQ_E_UNSUPPORTED, "GGUF version %u%s; versions 2 and 3 are read",
                      big ? __builtin_bswap32(v) : v, big ? " in big-endian order" : "");
    }
    Q_TRY(need64(c, &n_tensors));
    Q_TRY(need64(c, &n_meta));
    if (n_tensors > Q_LIMIT_TENSORS)
        return q_fail(LQ_E_LIMIT, "announces %llu tensors; at most %d are accepted", (unsigned long long)n_tensors,
                      Q_LIMIT_TENSORS);
    if (n_meta > Q_LIMIT_KEYS)
        return q_fail(LQ_E_LIMIT, "announces %llu keys; at most %d are accepted", (unsigned long long)n_meta,
                      Q_LIMIT_KEYS);
    s->n_tensors = (uint32_t)n_tensors;
    s->n_meta = (uint32_t)n_meta;
    return LQ_OK;
}

/* The first walk: everything the container promises, without allocating for its content. */
static lq_status validate(shard *s, const q_load_options *o) {
    cursor c = {s, o->alloc, 0};
    uint64_t end;
    s->alignment = Q_GGUF_ALIGNMENT;
    Q_TRY(read_header(&c));
    Q_TRY(walk_meta(&c, NULL, NULL));
    const uint64_t infos = c.at;
    Q_TRY(walk_tensors(&c, NULL, 0, o->allow_gaps, &end));
    s->data_at = q_round_up(c.at, s->alignment);
    if (s->n_tensors && (s->data_at > s->size || end > s->size - s->data_at)) {
        c.at = infos; /* once more, to name the tensor */
        return walk_tensors(&c, NULL, 0, o->allow_gaps, &end);
    }
    const uint64_t used = s->data_at + q_round_up(end, s->alignment);
    if (s->size > used) {
        if (!o->allow_gaps)
            return q_fail(LQ_E_FORMAT, "%llu unused bytes follow the last tensor, from offset %llu on",
                          (unsigned long long)(s->size - used), (unsigned long long)used);
        s->gaps += s->size - used;
    }
    if (s->gaps)
        q_log_write(o->log, LQ_LOG_WARN, "%s: %llu bytes belong to no tensor", q_file_path(s->file),
                    (unsigned long long)s->gaps);
    return LQ_OK;
}

static lq_status open_shard(shard *s, const char *path, const q_load_options *o) {
    Q_TRY(q_file_open(o->alloc, path, o->map ? Q_FILE_MAP : 0, &s->file));
    s->size = q_file_size(s->file);
    s->bytes = q_file_data(s->file);
    s->have = s->bytes ? s->size : 0;
    const lq_status status = validate(s, o);
    return status == LQ_OK ? LQ_OK : q_fail_in(status, "%s", path);
}

static void close_shard(const q_alloc *a, shard *s) {
    q_file_close(s->file);
    q_delete(a, s->own);
    *s = (shard){0};
}

/* ------------------------------------------------------------------------------------------------ split sets */

/* Length of "NAME" when the path is NAME-00001-of-00003.gguf, with both numbers; 0 otherwise. */
static size_t split_name(const char *path, uint32_t *number, uint32_t *count) {
    static const char form[] = "-#####-of-#####.gguf";
    const size_t n = strlen(path), tail = sizeof form - 1;
    if (n <= tail) return 0;
    uint32_t v[2] = {0, 0};
    for (size_t i = 0; i < tail; i++) {
        const char ch = path[n - tail + i];
        if (form[i] != '#' ? ch != form[i] : ch < '0' || ch > '9') return 0;
        if (form[i] == '#') v[i > 6] = v[i > 6] * 10 + (uint32_t)(ch - '0');
    }
    *number = v[0];
    *count = v[1];
    return n - tail;
}

/* Open the other shards of the set that shards[0] belongs to, and put all in order. */
static lq_status open_set(gguf *g, const char *path, const q_load_options *o) {
    const shard first = g->shards[0];
    const uint64_t count = first.split_count;
    uint32_t number, named;
    const size_t stem = split_name(path, &number, &named);
    if (count > Q_LIMIT_SHARDS)
        return q_fail(LQ_E_LIMIT, "%s: one of %llu shards; at most %d are accepted", path, (unsigned long long)count,
                      Q_LIMIT_SHARDS);
    if (!stem)
        return q_fail(LQ_E_INCONSISTENT, "%s: shard %llu of %llu, but it is not named NAME-%05llu-of-%05llu.gguf", path,
                      (unsigned long long)first.split_no + 1, (unsigned long long)count,
                      (unsigned long long)first.split_no + 1, (unsigned long long)count);
    if (named != count || number != first.split_no + 1 || number > count)
        return q_fail(LQ_E_INCONSISTENT, "%s: split.no %llu and split.count %llu contradict its name", path,
                      (unsigned long long)first.split_no, (unsigned long long)count);
    shard *all = Q_NEW(o->alloc, shard, count);
    char *name = (char *)q_new(o->alloc, strlen(path) + 1, 1);
    if (!all || !name) {
        q_delete(o->alloc, all);
        q_delete(o->alloc, name);
        return LQ_E_NOMEM;
    }
    q_delete(o->alloc, g->shards);
    g->shards = all;
    g->n_shards = (uint32_t)count;
    all[first.split_no] = first;
    lq_status status = LQ_OK;
    for (uint32_t i = 0; i < g->n_shards && status == LQ_OK; i++) {
        if (i == first.split_no) continue;
        snprintf(name, strlen(path) + 1, "%.*s-%05u-of-%05u.gguf", (int)stem, path, i + 1, g->n_shards);
        status = open_shard(&all[i], name, o);
        if (status != LQ_OK)
            q_fail_in(status, "shard %u of %u", i + 1, g->n_shards);
        else if (all[i].split_no != i || all[i].split_count != count)
            status = q_fail(LQ_E_INCONSISTENT, "%s says it is shard %llu of %llu, not %u of %u", name,
                            (unsigned long long)all[i].split_no + 1, (unsigned long long)all[i].split_count, i + 1,
                            g->n_shards);
    }
    q_delete(o->alloc, name);
    return status;
}

static bool same_value(const q_meta *a, const q_meta *b) {
    if (a->type != b->type || a->item != b->item || a->count != b->count || a->i != b->i || a->u != b->u) return false;
    if (memcmp(&a->f, &b->f, sizeof a->f) != 0 || !q_str_eq(a->s, b->s)) return false;
    if (a->type != Q_META_ARRAY || a->count == 0) return true;
    if (a->item != Q_META_STRING) return memcmp(a->raw, b->raw, (size_t)(a->count * q_gguf_item_bytes(a->item))) == 0;
    for (uint64_t i = 0; i < a->count; i++)
        if (!q_str_eq(a->strs[i], b->strs[i])) return false;
    return true;
}

static bool is_split_key(q_str key) { return key.n > 6 && memcmp(key.p, "split.", 6) == 0; }

/* A later shard's keys must be among the first one's, with the same values: else they belong to different models. */
static lq_status compare_meta(const gguf *g, shard *s, const q_load_options *o) {
    q_arena arena = {.alloc = o->alloc, .limit = Q_LIMIT_METADATA};
    cursor c = {s, o->alloc, Q_GGUF_HEADER};
    q_index index = {0};
    q_meta *meta = (q_meta *)q_arena_new(&arena, s->n_meta, sizeof *meta);
    lq_status status = meta ? walk_meta(&c, meta, &arena) : LQ_E_NOMEM;
    if (status == LQ_OK) status = q_index_build(o->alloc, meta, sizeof *meta, s->n_meta, "key", &index);
    for (uint32_t i = 0; status == LQ_OK && i < s->n_meta; i++) {
        if (is_split_key(meta[i].key) || q_str_is(meta[i].key, "general.alignment")) continue;
        const int64_t k = q_index_find(&g->dir.meta_index, g->dir.meta, sizeof(q_meta), meta[i].key);
        if (k < 0 || !same_value(&g->dir.meta[k], &meta[i]))
            status = q_fail(LQ_E_INCONSISTENT, "key \"%.*s\" %s the first shard: a different model",
                            Q_STR_ARG(meta[i].key), k < 0 ? "is not in" : "differs from");
    }
    q_delete(o->alloc, index.cells);
    q_arena_free(&arena);
    return status == LQ_OK ? LQ_OK : q_fail_in(status, "%s", q_file_path(s->file));
}

/* ------------------------------------------------------------------------------------------------ directory */

/* Leave out the keys that speak of shards: the directory stands for the whole. */
static lq_status drop_split_keys(gguf *g, q_meta *meta) {
    uint32_t n = 0;
    for (uint32_t i = 0; i < g->dir.n_meta; i++)
        if (!is_split_key(meta[i].key)) meta[n++] = meta[i];
    q_delete(g->dir.alloc, g->dir.meta_index.cells);
    g->dir.meta_index = (q_index){0};
    g->dir.n_meta = n;
    return q_index_build(g->dir.alloc, meta, sizeof *meta, n, "key", &g->dir.meta_index);
}

/* The second walk: arrays for what the first one accepted. */
static lq_status build(gguf *g, const q_load_options *o) {
    q_directory *d = &g->dir;
    uint64_t n_tensors = 0;
    for (uint32_t i = 0; i < g->n_shards; i++) n_tensors += g->shards[i].n_tensors;
    if (n_tensors > Q_LIMIT_TENSORS)
        return q_fail(LQ_E_LIMIT, "%llu tensors in all shards; at most %d are accepted", (unsigned long long)n_tensors,
                      Q_LIMIT_TENSORS);
    for (uint32_t i = 0; i < g->n_shards; i++)
        if (g->n_shards > 1 && g->shards[i].has_split_tensors && g->shards[i].split_tensors != n_tensors)
            return q_fail(LQ_E_INCONSISTENT, "%s: split.tensors.count is %llu, but the set has %llu tensors",
                          q_file_path(g->shards[i].file), (unsigned long long)g->shards[i].split_tensors,
                          (unsigned long long)n_tensors);
    q_meta *meta = (q_meta *)q_arena_new(&g->arena, g->shards[0].n_meta, sizeof *meta);
    q_tensor *tensors = meta ? (q_tensor *)q_arena_new(&g->arena, n_tensors, sizeof *tensors) : NULL;
    q_file **files = tensors ? (q_file **)q_arena_new(&g->arena, g->n_shards, sizeof *files) : NULL;
    if (!files) return LQ_E_NOMEM;
    d->meta = meta;
    d->tensors = tensors;
    d->files = files;
    d->n_files = g->n_shards;
    for (uint32_t i = 0; i < g->n_shards; i++) {
        shard *s = &g->shards[i];
        cursor c = {s, o->alloc, Q_GGUF_HEADER};
        uint64_t end;
        files[i] = s->file;
        Q_TRY(walk_meta(&c, i == 0 ? meta : NULL, &g->arena));
        Q_TRY(walk_tensors(&c, tensors + d->n_tensors, i, o->allow_gaps, &end));
        d->n_tensors += s->n_tensors;
    }
    d->n_meta = g->shards[0].n_meta;
    Q_TRY(q_index_build(o->alloc, meta, sizeof *meta, d->n_meta, "key", &d->meta_index));
    Q_TRY(q_index_build(o->alloc, tensors, sizeof *tensors, d->n_tensors, "tensor", &d->tensor_index));
    for (uint32_t i = 1; i < g->n_shards; i++) Q_TRY(compare_meta(g, &g->shards[i], o));
    return g->n_shards > 1 ? drop_split_keys(g, meta) : LQ_OK;
}

static void gguf_close(q_directory *dir) {
    gguf *g = (gguf *)dir->owner;
    const q_alloc *a = dir->alloc;
    for (uint32_t i = 0; i < g->n_shards; i++) close_shard(a, &g->shards[i]);
    q_delete(a, g->shards);
    q_arena_free(&g->arena);
    q_delete(a, g);
}

static lq_status gguf_open(const char *path, const q_load_options *o, q_directory **out) {
    gguf *g = Q_NEW(o->alloc, gguf, 1);
    if (!g) return LQ_E_NOMEM;
    g->dir.alloc = o->alloc;
    g->dir.owner = g;
    g->dir.loader = &q_loader_gguf;
    g->dir.names = Q_NAMES_GGUF;
    g->arena = (q_arena){.alloc = o->alloc, .limit = Q_LIMIT_METADATA};
    g->shards = Q_NEW(o->alloc, shard, 1);
    if (!g->shards) {
        q_delete(o->alloc, g);
        return LQ_E_NOMEM;
    }
    g->n_shards = 1;
    lq_status status = open_shard(&g->shards[0], path, o);
    if (status == LQ_OK && g->shards[0].split_count > 1) status = open_set(g, path, o);
    if (status == LQ_OK) {
        status = build(g, o);
        if (status != LQ_OK) q_fail_in(status, "%s", path);
    }
    if (status != LQ_OK) {
        q_directory_close(&g->dir);
        return status;
    }
    snprintf(g->dir.container, sizeof g->dir.container, "gguf v%u", g->shards[0].version);
    *out = &g->dir;
    return LQ_OK;
}

/* A name that ends in .gguf is enough: opening then says what is wrong with the content. */
static lq_status gguf_detect(const char *path, bool *mine) {
    uint8_t magic[4];
    size_t got;
    const size_t n = strlen(path);
    if (n > 5 && memcmp(path + n - 5, ".gguf", 5) == 0) {
        q_path_kind kind;
        Q_TRY(q_path_kind_of(path, &kind));
        *mine = kind == Q_PATH_FILE;
        return LQ_OK;
    }
    Q_TRY(q_path_head(path, magic, 4, &got));
    *mine = got == 4 && (memcmp(magic, "GGUF", 4) == 0 || legacy_name(magic));
    return LQ_OK;
}

const q_loader q_loader_gguf = {"gguf", gguf_detect, gguf_open, gguf_close, true};
