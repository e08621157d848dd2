/* gguf_write.c: the GGUF writer, version 3.
 *
 * Keys and tensors in the caller's order, each tensor's bytes padded to the alignment, the last one's too: the layout
 * that other tools write, so that the same keys and tensors give the same file. The header is made in one piece from
 * sizes computed before. commit reads the temporary back: its structure through the reader, its bytes by a hash that
 * ran along with the writing. Refuses what the reader would refuse. Layer L2. */
#include "gguf.h"

struct q_writer {
    const q_alloc *alloc;
    q_outfile *file;
    q_piece_sums hash;
    uint32_t n_meta, n_tensors, alignment;
    uint32_t at;       /* the tensor being written */
    uint64_t left;     /* its bytes that are missing */
    uint64_t *bytes;   /* of each tensor */
    uint64_t names;    /* a hash over names, types and shapes */
};

/* One tensor's description, the same from what was asked for and from what was read back. */
static uint64_t describe(uint64_t h, q_str name, int64_t type, uint32_t rank, const uint64_t *shape) {
    q_checksum r = {.lane = {h, 0, 0, 0}};
    q_checksum_add(&r, name.p, name.n);
    q_checksum_add(&r, &type, sizeof type);
    q_checksum_add(&r, shape, rank * sizeof *shape);
    return q_checksum_end(&r);
}

/* ------------------------------------------------------------------------------------------------ measuring */

typedef struct layout {
    uint64_t header; /* bytes up to the end of the tensor descriptions */
    uint64_t data_at, total;
    uint32_t alignment;
} layout;

static lq_status add(uint64_t *sum, uint64_t n) {
    if (q_add_overflow(*sum, n, sum) || *sum > INT64_MAX)
        return q_fail(LQ_E_LIMIT, "the file would have more than 2^63 bytes");
    return LQ_OK;
}

/* A number must say the same in the field that its type is written from and in the others, and fit the type. */
static lq_status check_number(const q_meta *m) {
    if (m->type == Q_META_F32 || m->type == Q_META_F64) return LQ_OK;
    const uint32_t bits = q_gguf_item_bytes(m->type) * 8;
    const bool is_signed =
        m->type == Q_META_I8 || m->type == Q_META_I16 || m->type == Q_META_I32 || m->type == Q_META_I64;
    const int64_t high = is_signed ? INT64_MAX >> (64 - bits) : INT64_MAX;
    bool ok = m->u == (uint64_t)m->i || (!is_signed && m->i == INT64_MAX && m->u > INT64_MAX);
    if (is_signed)
        ok = ok && m->i <= high && m->i >= -high - 1;
    else
        ok = ok && m->u <= (m->type == Q_META_BOOL ? 1 : UINT64_MAX >> (64 - bits));
    return ok ? LQ_OK : q_fail(LQ_E_ARG, "its value does not fit its type, or its i and u differ");
}

static lq_status measure_key(const q_meta *m, layout *l) {
    Q_TRY(q_gguf_check_name("key", m->key));
    if ((uint32_t)m->type > Q_META_F64) return q_fail(LQ_E_ARG, "value type %d does not exist", (int)m->type);
    Q_TRY(add(&l->header, 8 + m->key.n + 4));
    const uint32_t item = q_gguf_item_bytes(m->type);
    if (item) {
        Q_TRY(check_number(m));
        if (q_str_is(m->key, "general.alignment")) {
            if (m->type != Q_META_U32 || !q_is_pow2(m->u) || m->u > Q_LIMIT_ALIGNMENT)
                return q_fail(LQ_E_ARG, "must be a u32 and a power of two up to %d", Q_LIMIT_ALIGNMENT);
            l->alignment = (uint32_t)m->u;
        }
        if (q_str_is(m->key, "split.count") && m->u > 1)
            return q_fail(LQ_E_UNSUPPORTED, "split sets are read but not written");
        return add(&l->header, item);
    }
    if (m->type == Q_META_STRING) {
        if (m->s.n > Q_LIMIT_STRING) return q_fail(LQ_E_LIMIT, "more than %d bytes of text", Q_LIMIT_STRING);
        return add(&l->header, 8 + m->s.n);
    }
    if (m->item == Q_META_ARRAY || (uint32_t)m->item > Q_META_F64)
        return q_fail(LQ_E_ARG, "an array of items of type %d", (int)m->item);
    if (m->count > Q_LIMIT_ARRAY) return q_fail(LQ_E_LIMIT, "an array of more than %d items", Q_LIMIT_ARRAY);
    Q_TRY(add(&l->header, 12));
    if (m->item != Q_META_STRING) return add(&l->header, m->count * q_gguf_item_bytes(m->item));
    for (uint64_t i = 0; i < m->count; i++) {
        if (m->strs[i].n > Q_LIMIT_STRING) return q_fail(LQ_E_LIMIT, "more than %d bytes of text", Q_LIMIT_STRING);
        Q_TRY(add(&l->header, 8 + m->strs[i].n));
    }
    return LQ_OK;
}

static const char *type_name(const q_out_tensor *t) {
    return t->format ? t->format->name : t->type_name ? t->type_name : "(none)";
}

static lq_status tensor_bytes(const q_out_tensor *t, uint64_t *bytes) {
    Q_TRY(q_gguf_check_name("tensor name", t->name));
    const int64_t id = q_gguf_type_id(t->format, t->type_name);
    if (id < 0) return q_fail(LQ_E_UNSUPPORTED, "GGUF has no tensor type for format %s", type_name(t));
    if (t->rank == 0 || t->rank > Q_GGUF_RANK)
        return q_fail(LQ_E_UNSUPPORTED, "%u dimensions; GGUF has 1 to %d", t->rank, Q_GGUF_RANK);
    q_gguf_type type;
    Q_TRY(q_gguf_type_of((uint32_t)id, &type));
    if (t->shape[0] % type.weights)
        return q_fail(LQ_E_ARG, "a row of %llu is not a multiple of the block of %s", (unsigned long long)t->shape[0],
                      type.name);
    if (!q_gguf_row_bytes(&type, t->shape[0], bytes)) return q_fail(LQ_E_ARG, "the size of a row overflows");
    uint64_t weights = 1;
    for (uint32_t i = 0; i < t->rank; i++)
        if (t->shape[i] == 0 || q_mul_overflow(weights, t->shape[i], &weights) ||
            (i && q_mul_overflow(*bytes, t->shape[i], bytes)) || weights > INT64_MAX || *bytes > INT64_MAX)
            return q_fail(LQ_E_ARG, "dimension %u is zero, or the product overflows", i);
    return LQ_OK;
}

static lq_status measure_all(const q_meta *meta, uint32_t n_meta, const q_out_tensor *tensors, uint32_t n_tensors,
                             layout *l) {
    *l = (layout){.header = Q_GGUF_HEADER, .alignment = Q_GGUF_ALIGNMENT};
    if (n_meta > Q_LIMIT_KEYS) return q_fail(LQ_E_LIMIT, "%u keys; at most %d can be written", n_meta, Q_LIMIT_KEYS);
    if (n_tensors > Q_LIMIT_TENSORS)
        return q_fail(LQ_E_LIMIT, "%u tensors; at most %d can be written", n_tensors, Q_LIMIT_TENSORS);
    for (uint32_t i = 0; i < n_meta; i++) {
        const lq_status status = measure_key(&meta[i], l);
        if (status != LQ_OK) return q_fail_in(status, "key %u \"%.*s\"", i, Q_STR_ARG(meta[i].key));
    }
    for (uint32_t i = 0; i < n_tensors; i++) {
        uint64_t bytes;
        lq_status status = tensor_bytes(&tensors[i], &bytes);
        if (status == LQ_OK) status = add(&l->header, 8 + tensors[i].name.n + 4 + 8 * (uint64_t)tensors[i].rank + 12);
        if (status == LQ_OK) status = add(&l->total, q_round_up(bytes, l->alignment));
        if (status != LQ_OK) return q_fail_in(status, "tensor %u \"%.*s\"", i, Q_STR_ARG(tensors[i].name));
    }
    if (l->header > Q_LIMIT_METADATA)
        return q_fail(LQ_E_LIMIT, "%llu bytes of metadata; at most %d can be read again", (unsigned long long)l->header,
                      Q_LIMIT_METADATA);
    l->data_at = q_round_up(l->header, l->alignment);
    return add(&l->total, l->data_at);
}

static lq_status gguf_measure(const q_meta *meta, uint32_t n_meta, const q_out_tensor *tensors, uint32_t n_tensors,
                              uint64_t *bytes) {
    layout l;
    Q_TRY(measure_all(meta, n_meta, tensors, n_tensors, &l));
    *bytes = l.total;
    return LQ_OK;
}

/* ------------------------------------------------------------------------------------------------ the header */

/* Puts bytes into a buffer that measure_all has sized; each returns the place after them. */
static uint8_t *put(uint8_t *p, const void *data, uint64_t n) {
    if (n) memcpy(p, data, (size_t)n);
    return p + n;
}
static uint8_t *put32(uint8_t *p, uint32_t v) { return put(p, &v, 4); }
static uint8_t *put64(uint8_t *p, uint64_t v) { return put(p, &v, 8); }
static uint8_t *put_str(uint8_t *p, q_str s) { return put(put64(p, s.n), s.p, s.n); }

static uint8_t *put_number(uint8_t *p, const q_meta *m) {
    const float f = (float)m->f;
    if (m->type == Q_META_F32) return put(p, &f, 4);
    if (m->type == Q_META_F64) return put(p, &m->f, 8);
    return put(p, &m->u, q_gguf_item_bytes(m->type)); /* little-endian: the low bytes; i and u agree */
}

static uint8_t *put_key(uint8_t *p, const q_meta *m) {
    p = put32(put_str(p, m->key), (uint32_t)m->type);
    if (m->type == Q_META_STRING) return put_str(p, m->s);
    if (m->type != Q_META_ARRAY) return put_number(p, m);
    p = put64(put32(p, (uint32_t)m->item), m->count);
    if (m->item != Q_META_STRING) return put(p, m->raw, m->count * q_gguf_item_bytes(m->item));
    for (uint64_t i = 0; i < m->count; i++) p = put_str(p, m->strs[i]);
    return p;
}

static lq_status emit(q_writer *w, const void *data, uint64_t n) {
    Q_TRY(q_outfile_write(w->file, data, n));
    q_piece_sums_add(&w->hash, data, n);
    return LQ_OK;
}

static lq_status write_header(q_writer *w, const layout *l, const q_meta *meta, const q_out_tensor *tensors) {
    uint8_t *const buf = (uint8_t *)q_new(w->alloc, l->data_at, 1); /* zeroed: the padding */
    if (!buf) return LQ_E_NOMEM;
    uint8_t *p = put32(put(buf, "GGUF", 4), 3);
    p = put64(put64(p, w->n_tensors), w->n_meta);
    for (uint32_t i = 0; i < w->n_meta; i++) p = put_key(p, &meta[i]);
    uint64_t offset = 0;
    for (uint32_t i = 0; i < w->n_tensors; i++) {
        const q_out_tensor *t = &tensors[i];
        const int64_t id = q_gguf_type_id(t->format, t->type_name);
        p = put32(put_str(p, t->name), t->rank);
        p = put(p, t->shape, t->rank * sizeof t->shape[0]);
        p = put64(put32(p, (uint32_t)id), offset);
        offset += q_round_up(w->bytes[i], l->alignment);
        w->names = describe(w->names, t->name, id, t->rank, t->shape);
    }
    const lq_status status = p == buf + l->header
                                 ? emit(w, buf, l->data_at)
                                 : q_fail(LQ_E_INTERNAL, "the GGUF header came out other than measured");
    q_delete(w->alloc, buf);
    return status;
}

/* ------------------------------------------------------------------------------------------------ writing */

/* A tensor is complete: its padding, and on to the next. Tensors are never empty. */
static lq_status end_tensor(q_writer *w) {
    static const uint8_t zeros[256];
    uint64_t pad = q_round_up(w->bytes[w->at], w->alignment) - w->bytes[w->at];
    for (; pad; pad -= Q_MIN(pad, sizeof zeros)) Q_TRY(emit(w, zeros, Q_MIN(pad, sizeof zeros)));
    w->at++;
    w->left = w->at < w->n_tensors ? w->bytes[w->at] : 0;
    return LQ_OK;
}

static lq_status gguf_write(q_writer *w, const void *data, uint64_t n) {
    const uint8_t *p = (const uint8_t *)data;
    while (n) {
        if (w->at == w->n_tensors) return q_fail(LQ_E_ARG, "more tensor data than was announced");
        const uint64_t piece = Q_MIN(n, w->left);
        Q_TRY(emit(w, p, piece));
        p += piece;
        n -= piece;
        w->left -= piece;
        if (w->left == 0) Q_TRY(end_tensor(w));
    }
    return LQ_OK;
}

static void free_writer(q_writer *w) {
    q_delete(w->alloc, w->bytes);
    q_delete(w->alloc, w);
}

static void gguf_discard(q_writer *w) {
    if (!w) return;
    q_outfile_discard(w->file);
    free_writer(w);
}

static lq_status check_duplicates(const q_alloc *a, const q_meta *meta, uint32_t n_meta, const q_out_tensor *tensors,
                                  uint32_t n_tensors) {
    _Static_assert(offsetof(q_out_tensor, name) == 0, "the index reads a q_str at the start of each item");
    q_index index;
    Q_TRY(q_index_build(a, meta, sizeof *meta, n_meta, "key", &index));
    q_delete(a, index.cells);
    Q_TRY(q_index_build(a, tensors, sizeof *tensors, n_tensors, "tensor", &index));
    q_delete(a, index.cells);
    return LQ_OK;
}

static lq_status gguf_open(const q_alloc *a, const char *path, bool force, const q_meta *meta, uint32_t n_meta,
                           const q_out_tensor *tensors, uint32_t n_tensors, q_writer **out) {
    layout l;
    Q_TRY(measure_all(meta, n_meta, tensors, n_tensors, &l));
    Q_TRY(check_duplicates(a, meta, n_meta, tensors, n_tensors));
    q_writer *w = Q_NEW(a, q_writer, 1);
    if (!w) return LQ_E_NOMEM;
    w->alloc = a;
    w->n_meta = n_meta;
    w->n_tensors = n_tensors;
    w->alignment = l.alignment;
    w->bytes = Q_NEW(a, uint64_t, n_tensors);
    lq_status status = w->bytes ? LQ_OK : LQ_E_NOMEM;
    for (uint32_t i = 0; i < n_tensors && status == LQ_OK; i++) status = tensor_bytes(&tensors[i], &w->bytes[i]);
    if (status == LQ_OK) status = q_outfile_open(a, path, l.total, force, &w->file);
    if (status == LQ_OK) status = write_header(w, &l, meta, tensors);
    if (status != LQ_OK) {
        gguf_discard(w);
        return status;
    }
    w->left = n_tensors ? w->bytes[0] : 0;
    *out = w;
    return LQ_OK;
}

/* ------------------------------------------------------------------------------------------------ reading back */

/* The temporary through the reader: what we wrote is a file that opens, with the same keys and tensors. */
static lq_status check_structure(const q_writer *w, const char *path) {
    const q_load_options o = {.alloc = w->alloc};
    q_directory *d;
    const lq_status status = q_loader_gguf.open(path, &o, &d);
    if (status == LQ_E_NOMEM) return status;
    if (status != LQ_OK) return q_fail_in(LQ_E_IO, "what was written cannot be read back"); /* whatever it became */
    uint64_t names = 0;
    bool same = d->n_meta == w->n_meta && d->n_tensors == w->n_tensors;
    for (uint32_t i = 0; i < d->n_tensors && same; i++) {
        const q_tensor *t = &d->tensors[i];
        names = describe(names, t->name, q_gguf_type_id(t->format, t->type_name), t->rank, t->shape);
        same = t->bytes == w->bytes[i];
    }
    same = same && names == w->names;
    q_directory_close(d);
    return same ? LQ_OK : q_fail(LQ_E_IO, "%s: keys or tensors read back differ from those written", path);
}

static lq_status gguf_commit(q_writer *w, q_pool *pool) {
    lq_status status = LQ_OK;
    if (w->at < w->n_tensors)
        status = q_fail(LQ_E_ARG, "tensor %u of %u misses %llu of its bytes", w->at, w->n_tensors,
                        (unsigned long long)w->left);
    if (status == LQ_OK) status = q_outfile_sync(w->file);
    if (status == LQ_OK) status = check_structure(w, q_outfile_temp(w->file));
    if (status == LQ_OK) status = q_read_back(w->alloc, pool, q_outfile_temp(w->file), &w->hash);
    if (status != LQ_OK) {
        gguf_discard(w);
        return status;
    }
    status = q_outfile_commit(w->file); /* frees the file in every case */
    free_writer(w);
    return status;
}

const q_writer_kind q_writer_gguf = {"gguf", ".gguf", gguf_measure, gguf_open, gguf_write, gguf_commit, gguf_discard};
