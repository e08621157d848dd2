/* safetensors.c: the container: 8 bytes of length, a JSON header of that length, and the tensors' bytes without gaps.
 *
 * Owns the reading and checking of that header. Refuses headers longer than the file or the limit, tensors that
 * overlap, leave holes or disagree with their shape, data beyond the last tensor, and element types that cannot be
 * kept. Reads no tensor data; what makes a model directory, and the loader's record, are in hf_dir.c. Layer L2. */
#include "safetensors.h"

/* Element types. Floats that the engine computes with carry a format; the others are kept, never computed with. Of
 * floats of less than 16 bits, which mean nothing without their scales, only that one is here of which hf_fp8.c makes
 * weights. */
static const struct {
    const char *dtype, *type_name;
    uint32_t bytes;
    bool format;
} dtypes[] = {
    {"F32", "f32", 4, true}, {"F16", "f16", 2, true}, {"BF16", "bf16", 2, true}, {"F64", "f64", 8, false},
    {"BOOL", "bool", 1, false}, {"U8", "u8", 1, false}, {"I8", "i8", 1, false}, {"U16", "u16", 2, false},
    {"I16", "i16", 2, false}, {"U32", "u32", 4, false}, {"I32", "i32", 4, false}, {"U64", "u64", 8, false},
    {"I64", "i64", 8, false}, {"F8_E4M3", "f8_e4m3", 1, false},
};

lq_status q_st_header_length(const uint8_t head[9], uint64_t size, uint64_t *n) {
    if (size < 8)
        return q_fail(LQ_E_TRUNCATED, "%llu bytes are too short for a safetensors file", (unsigned long long)size);
    const uint64_t length = q_load64(head);
    if (length > Q_LIMIT_JSON_HEADER)
        return q_fail(LQ_E_LIMIT, "the header length at byte 0 is %llu; the limit is %d", (unsigned long long)length,
                      Q_LIMIT_JSON_HEADER);
    if (length < 2 || length > size - 8)
        return q_fail(LQ_E_TRUNCATED, "the header length at byte 0 is %llu, but the file has %llu bytes after it",
                      (unsigned long long)length, (unsigned long long)(size - 8));
    if (head[8] != '{') return q_fail(LQ_E_FORMAT, "the header at byte 8 does not begin with '{'");
    *n = length;
    return LQ_OK;
}

/* ---- one tensor */

typedef struct entry {
    q_str dtype;
    uint64_t dims[8]; /* outermost first */
    uint32_t rank;
    uint64_t begin, end;
} entry;

static lq_status read_shape(q_json_reader *r, entry *e) {
    bool first = true, more;
    Q_TRY(q_json_expect(r, '['));
    for (;;) {
        Q_TRY(q_json_next(r, ']', &first, &more));
        if (!more) return LQ_OK;
        if (e->rank == Q_COUNT(e->dims))
            return q_fail(LQ_E_LIMIT, "more than %u dimensions", (unsigned)Q_COUNT(e->dims));
        Q_TRY(q_json_uint(r, &e->dims[e->rank++]));
    }
}

static lq_status read_offsets(q_json_reader *r, entry *e) {
    Q_TRY(q_json_expect(r, '['));
    Q_TRY(q_json_uint(r, &e->begin));
    Q_TRY(q_json_expect(r, ','));
    Q_TRY(q_json_uint(r, &e->end));
    return q_json_expect(r, ']');
}

static lq_status read_entry(q_json_reader *r, entry *e) {
    static const char *const fields[] = {"dtype", "shape", "data_offsets"};
    bool seen[Q_COUNT(fields)] = {false}, first = true, more;
    Q_TRY(q_json_expect(r, '{'));
    for (;;) {
        q_str key;
        Q_TRY(q_json_next(r, '}', &first, &more));
        if (!more) break;
        Q_TRY(q_json_key(r, &key));
        size_t f = 0;
        while (f < Q_COUNT(fields) && !q_str_is(key, fields[f])) f++;
        if (f == Q_COUNT(fields)) return q_fail(LQ_E_FORMAT, "unknown field '%.*s'", Q_STR_ARG(key));
        if (seen[f]) return q_fail(LQ_E_FORMAT, "duplicate field '%s'", fields[f]);
        seen[f] = true;
        Q_TRY(f == 0 ? q_json_string(r, &e->dtype) : f == 1 ? read_shape(r, e) : read_offsets(r, e));
    }
    for (size_t f = 0; f < Q_COUNT(fields); f++)
        if (!seen[f]) return q_fail(LQ_E_FORMAT, "the field '%s' is missing", fields[f]);
    return LQ_OK;
}

/* Type and sizes. Dimensions of 0 make an empty tensor; they count as 1 in the overflow check, so that no partial
 * product can wrap either. */
static lq_status fill_tensor(const entry *e, q_tensor *t) {
    size_t d = 0;
    while (d < Q_COUNT(dtypes) && !q_str_is(e->dtype, dtypes[d].dtype)) d++;
    if (d == Q_COUNT(dtypes))
        return q_fail(LQ_E_UNSUPPORTED, "the element type '%.*s' is not supported", Q_STR_ARG(e->dtype));
    t->type_name = dtypes[d].type_name;
    t->format = dtypes[d].format ? q_format_find(dtypes[d].type_name) : NULL;
    t->rank = e->rank;
    t->rows = 1;
    uint64_t most = dtypes[d].bytes;
    for (uint32_t i = 0; i < Q_COUNT(t->shape); i++) {
        t->shape[i] = i < e->rank ? e->dims[e->rank - 1 - i] : 1;
        if (q_mul_overflow(most, t->shape[i] ? t->shape[i] : 1, &most))
            return q_fail(LQ_E_FORMAT, "the size of its shape overflows");
        if (i) t->rows *= t->shape[i];
    }
    t->row_bytes = t->shape[0] * dtypes[d].bytes;
    t->bytes = t->row_bytes * t->rows;
    if (e->end < e->begin)
        return q_fail(LQ_E_FORMAT, "data_offsets are reversed: %llu, %llu", (unsigned long long)e->begin,
                      (unsigned long long)e->end);
    if (e->end - e->begin != t->bytes)
        return q_fail(LQ_E_FORMAT, "data_offsets span %llu bytes; its shape and type '%s' need %llu",
                      (unsigned long long)(e->end - e->begin), dtypes[d].dtype, (unsigned long long)t->bytes);
    t->offset = e->begin; /* within the data, until the layout is known to be sound */
    return LQ_OK;
}

static lq_status add_tensor(q_json_reader *r, q_str name, uint32_t file, q_st_list *list) {
    entry e = {0};
    if (name.n == 0) return q_fail(LQ_E_FORMAT, "a tensor has an empty name");
    if (list->n == Q_LIMIT_TENSORS) return q_fail(LQ_E_LIMIT, "more than %d tensors", Q_LIMIT_TENSORS);
    if (list->n == list->cap) {
        const uint64_t cap = list->cap ? list->cap * 2 : 64;
        q_tensor *items = (q_tensor *)q_grow(list->alloc, list->items, list->n, cap, sizeof *items);
        if (!items) return LQ_E_NOMEM;
        list->items = items;
        list->cap = cap;
    }
    q_tensor *t = &list->items[list->n];
    *t = (q_tensor){.name = name, .file = file};
    lq_status s = read_entry(r, &e);
    if (s == LQ_OK) s = fill_tensor(&e, t);
    if (s != LQ_OK) return q_fail_in(s, "tensor '%.*s'", Q_STR_ARG(name));
    list->n++;
    return LQ_OK;
}

/* ---- "__metadata__": strings only; nothing in it is used, but a header that two readers see differently is refused */

static lq_status read_metadata(q_json_reader *r, const q_alloc *a) {
    struct {
        q_str *items;
        uint64_t n, cap;
    } keys = {0};
    bool first = true, more = true;
    lq_status s = q_json_expect(r, '{');
    while (s == LQ_OK) {
        q_str key, value;
        s = q_json_next(r, '}', &first, &more);
        if (s != LQ_OK || !more) break;
        if (keys.n == keys.cap) {
            const uint64_t cap = keys.cap ? keys.cap * 2 : 16;
            q_str *items = cap > Q_LIMIT_KEYS ? NULL : (q_str *)q_grow(a, keys.items, keys.n, cap, sizeof *items);
            if (!items) {
                s = cap > Q_LIMIT_KEYS ? q_fail(LQ_E_LIMIT, "more than %d entries", Q_LIMIT_KEYS) : LQ_E_NOMEM;
                break;
            }
            keys.items = items;
            keys.cap = cap;
        }
        s = q_json_key(r, &key);
        if (s == LQ_OK) s = q_json_string(r, &value);
        if (s == LQ_OK) keys.items[keys.n++] = key;
    }
    if (s == LQ_OK && keys.n) {
        q_index index = {0};
        s = q_index_build(a, keys.items, sizeof *keys.items, (uint32_t)keys.n, "key", &index);
        if (s == LQ_E_INCONSISTENT) s = LQ_E_FORMAT;
        q_delete(a, index.cells);
    }
    q_delete(a, keys.items);
    return s == LQ_OK ? s : q_fail_in(s, "__metadata__");
}

/* ---- the layout */

static bool before(const q_tensor *a, const q_tensor *b) {
    return a->offset < b->offset || (a->offset == b->offset && a->bytes < b->bytes);
}

/* Stable merge sort over positions: headers made elsewhere may be in any order, and hostile ones in the worst. */
static void sort_positions(const q_tensor *t, uint32_t n, uint32_t *order, uint32_t *spare) {
    for (uint32_t i = 0; i < n; i++) order[i] = i;
    uint32_t *from = order, *to = spare;
    for (uint64_t width = 1; width < n; width *= 2) {
        for (uint64_t lo = 0; lo < n; lo += 2 * width) {
            const uint64_t mid = Q_MIN(lo + width, (uint64_t)n), hi = Q_MIN(lo + 2 * width, (uint64_t)n);
            uint64_t a = lo, b = mid;
            for (uint64_t k = lo; k < hi; k++) {
                const bool left = a < mid && (b >= hi || !before(&t[from[b]], &t[from[a]]));
                to[k] = left ? from[a++] : from[b++];
            }
        }
        uint32_t *swap = from;
        from = to;
        to = swap;
    }
    if (from != order) memcpy(order, from, n * sizeof *order);
}

static lq_status order_by_offset(const q_alloc *a, q_tensor *t, uint32_t n) {
    uint32_t i = 1;
    while (i < n && !before(&t[i], &t[i - 1])) i++;
    if (i >= n) return LQ_OK;
    uint32_t *order = (uint32_t *)q_new_raw(a, (uint64_t)n * 2, sizeof *order);
    q_tensor *sorted = (q_tensor *)q_new_raw(a, n, sizeof *sorted);
    if (order && sorted) {
        sort_positions(t, n, order, order + n);
        for (i = 0; i < n; i++) sorted[i] = t[order[i]];
        memcpy(t, sorted, n * sizeof *t);
    }
    const lq_status s = order && sorted ? LQ_OK : LQ_E_NOMEM;
    q_delete(a, order);
    q_delete(a, sorted);
    return s;
}

/* Together the tensors are the data, byte for byte: nothing overlaps, nothing hides between or behind them. Only when
 * that holds but for the end of the file was the file cut short. */
static lq_status check_layout(const q_tensor *t, uint32_t n, uint64_t data_bytes) {
    uint64_t at = 0;
    for (uint32_t i = 0; i < n; i++) {
        if (t[i].offset < at)
            return q_fail(LQ_E_FORMAT, "tensors '%.*s' and '%.*s' overlap", Q_STR_ARG(t[i - 1].name),
                          Q_STR_ARG(t[i].name));
        if (t[i].offset > at)
            return q_fail(LQ_E_FORMAT, "tensor '%.*s': %llu unused bytes before it", Q_STR_ARG(t[i].name),
                          (unsigned long long)(t[i].offset - at));
        at += t[i].bytes; /* = its data_offsets' end */
    }
    if (at > data_bytes)
        return q_fail(LQ_E_TRUNCATED, "tensor '%.*s' ends at byte %llu of the data, of which the file has %llu",
                      Q_STR_ARG(t[n - 1].name), (unsigned long long)at, (unsigned long long)data_bytes);
    if (at < data_bytes)
        return q_fail(LQ_E_FORMAT, "%llu bytes after the last tensor belong to none",
                      (unsigned long long)(data_bytes - at));
    return LQ_OK;
}

lq_status q_st_header(q_arena *arena, const uint8_t *json, uint64_t n, uint64_t data_bytes, uint32_t file,
                      q_st_list *list) {
    q_json_reader r = {.data = json, .n = n, .base = 8, .what = "header", .arena = arena};
    const uint64_t begin = list->n;
    bool first = true, more, metadata = false;
    Q_TRY(q_json_expect(&r, '{'));
    for (;;) {
        q_str name;
        Q_TRY(q_json_next(&r, '}', &first, &more));
        if (!more) break;
        Q_TRY(q_json_key(&r, &name));
        if (q_str_is(name, "__metadata__")) {
            if (metadata) return q_fail(LQ_E_FORMAT, "duplicate key '__metadata__'");
            metadata = true;
            Q_TRY(read_metadata(&r, list->alloc));
        } else {
            Q_TRY(add_tensor(&r, name, file, list));
        }
    }
    Q_TRY(q_json_end(&r));
    const uint32_t count = (uint32_t)(list->n - begin);
    q_tensor *own = count ? list->items + begin : NULL; /* an empty list may have no memory yet */
    if (count) Q_TRY(order_by_offset(list->alloc, own, count));
    Q_TRY(check_layout(own, count, data_bytes));
    for (uint32_t i = 0; i < count; i++) own[i].offset += 8 + n;
    return LQ_OK;
}
