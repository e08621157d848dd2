/* hf_rows.c: rows of quantized directories: strips of rows that lie across the file, scales as halves, rows of the i4 formats.
 *
 * A strip is made whole, since reading one column of a file costs what reading many side by side does. Rows that are then
 * asked for one by one, by several threads, come from a cache of a few strips; each of its places has a lock, under which a
 * strip is made once and its rows are copied. Layer L2. */
#include <math.h>

#include "hf_view.h"

enum { PLACES = 8, STRIP_BYTES = 1 << 20 };

/* ------------------------------------------------------------------------------------------------ strips */

typedef struct place {
    q_mutex lock;
    const q_tensor *tensor; /* whose strip is here; NULL = none */
    uint64_t strip, cap;
    uint8_t *rows;
} place;

struct q_hf_cache {
    const q_alloc *alloc;
    uint32_t n; /* places that are open */
    place places[PLACES];
};

lq_status q_hf_cache_open(const q_alloc *a, q_hf_cache **out) {
    q_hf_cache *c = Q_NEW(a, q_hf_cache, 1);
    if (!c) return LQ_E_NOMEM;
    c->alloc = a;
    for (; c->n < PLACES; c->n++) {
        const lq_status s = q_mutex_open(&c->places[c->n].lock);
        if (s == LQ_OK) continue;
        q_hf_cache_close(c);
        return s;
    }
    *out = c;
    return LQ_OK;
}

void q_hf_cache_close(q_hf_cache *c) {
    if (!c) return;
    const q_alloc *a = c->alloc;
    for (uint32_t i = 0; i < c->n; i++) {
        q_mutex_close(&c->places[i].lock);
        q_delete(a, c->places[i].rows);
    }
    q_delete(a, c);
}

void q_hf_strips_init(const q_hf_reader *r, q_hf_strips *s, uint64_t row_bytes) {
    s->view.read = q_hf_read_strips;
    s->cache = r->cache;
    s->height = Q_MAX(STRIP_BYTES / Q_MAX(row_bytes, (uint64_t)1) / 32 * 32, (uint64_t)32);
}

/* The lock is held. */
static lq_status make_strip(const q_directory *dir, const q_tensor *t, const q_hf_strips *s, place *p, uint64_t strip) {
    const uint64_t first = strip * s->height, n = Q_MIN(s->height, t->rows - first), bytes = n * t->row_bytes;
    p->tensor = NULL;
    if (bytes > p->cap) {
        q_delete(s->cache->alloc, p->rows);
        p->rows = (uint8_t *)q_new_raw(s->cache->alloc, bytes, 1);
        p->cap = p->rows ? bytes : 0;
        if (!p->rows) return LQ_E_NOMEM;
    }
    Q_TRY(s->fill(dir, t, first, n, p->rows));
    p->tensor = t;
    p->strip = strip;
    return LQ_OK;
}

lq_status q_hf_read_strips(const q_directory *dir, const q_tensor *t, uint64_t first, uint64_t n, uint8_t *out) {
    const q_hf_strips *s = (const q_hf_strips *)t->view;
    while (n) {
        const uint64_t strip = first / s->height, at = strip * s->height, rows = Q_MIN(s->height, t->rows - at);
        const uint64_t take = Q_MIN(n, at + rows - first);
        lq_status status;
        if (take == rows) { /* all of it: straight to the caller */
            status = s->fill(dir, t, first, rows, out);
        } else {
            place *p = &s->cache->places[(strip + (uint64_t)(t - dir->tensors)) % PLACES];
            q_mutex_lock(&p->lock);
            status = p->tensor == t && p->strip == strip ? LQ_OK : make_strip(dir, t, s, p, strip);
            if (status == LQ_OK) memcpy(out, p->rows + (first - at) * t->row_bytes, (size_t)(take * t->row_bytes));
            q_mutex_unlock(&p->lock);
        }
        Q_TRY(status);
        first += take;
        out += take * t->row_bytes;
        n -= take;
    }
    return LQ_OK;
}

/* ------------------------------------------------------------------------------------------------ scales */

static float scale_of(const q_tensor *t, const uint8_t *p) {
    return t->row_bytes / Q_MAX(t->shape[0], (uint64_t)1) == 4 ? q_bits_f32(q_load32(p))
           : t->type_name[0] == 'b'                            ? q_bf16_to_f32(q_load16(p))
                                                               : q_half_to_f32(q_load16(p));
}
static uint32_t scale_bytes(const q_tensor *t) { return t->type_name[0] == 'f' && t->type_name[1] == '3' ? 4 : 2; }

lq_status q_hf_check_scales(const q_hf_reader *r, const q_tensor *t) {
    if (t->type_name[0] == 'f' && t->type_name[1] == '1') return LQ_OK;
    const uint32_t size = scale_bytes(t);
    double most = 0;
    void *all;
    Q_TRY(q_hf_all(r, t, &all));
    lq_status s = LQ_OK;
    for (uint64_t i = 0; i < t->bytes / size && s == LQ_OK; i++) {
        const float x = scale_of(t, (const uint8_t *)all + i * size), h = q_half_to_f32(q_f32_to_half(x));
        if (!isfinite(h)) s = q_hf_at(r, q_fail(LQ_E_NUMERIC, "the scale %g does not fit a half", (double)x), t);
        else if (x != h) most = fmax(most, fabs(((double)h - (double)x) / (double)x));
    }
    q_delete(r->alloc, all);
    if (s == LQ_OK && most > 0)
        q_log_write(r->log, LQ_LOG_WARN, "tensor '%.*s': scales are kept as halves, which changes them by up to %.2g of their "
                    "value", Q_STR_ARG(t->name), most);
    return s;
}

lq_status q_hf_halves(const q_directory *dir, const q_tensor *t, uint64_t first, uint64_t n, uint16_t *out) {
    const uint32_t size = scale_bytes(t);
    uint8_t piece[1024];
    if (t->type_name[0] == 'f' && size == 2) return q_hf_bytes(dir, t, first * 2, out, n * 2);
    for (uint64_t i = 0; i < n;) {
        const uint64_t take = Q_MIN(n - i, (uint64_t)(sizeof piece / size));
        Q_TRY(q_hf_bytes(dir, t, (first + i) * size, piece, take * size));
        for (uint64_t j = 0; j < take; j++) out[i + j] = q_f32_to_half(scale_of(t, piece + j * size));
        i += take;
    }
    return LQ_OK;
}

/* ------------------------------------------------------------------------------------------------ i4 rows, order */

const q_format *q_hf_i4(uint64_t in, uint64_t group) {
    return q_format_find(group == in        ? "i4_row"
                         : group % 128 == 0 ? "i4_g128"
                         : group % 64 == 0  ? "i4_g64"
                                            : "i4_g32");
}

void q_hf_i4_row(const q_format *f, uint64_t in, uint64_t group, const uint8_t *codes, const uint16_t *d, const uint8_t *z,
                 uint8_t *out) {
    const uint64_t block = f->row_head ? in : (uint64_t)f->weights;
    for (uint64_t at = 0; at < in; at += block) {
        q_store16(out, d[at / group]);
        out[2] = z[at / group];
        out[3] = 0;
        out += 4;
        for (const uint8_t *c = codes + at, *end = c + block; c < end; c += 32, out += 16)
            for (int i = 0; i < 16; i++) out[i] = (uint8_t)(c[i] | c[i + 16] << 4);
    }
}

static lq_status find_order(const q_hf_reader *r, const q_tensor *t, const uint8_t *raw, uint64_t in, uint64_t group,
                            const int32_t **order) {
    const uint64_t groups = in / group;
    const bool wide = t->bytes == in * 8;
    bool plain = true;
    int32_t *to = (int32_t *)q_arena_new(r->arena, in, sizeof *to);
    uint64_t *next = Q_NEW(r->alloc, uint64_t, groups); /* members so far */
    lq_status s = to && next ? LQ_OK : LQ_E_NOMEM;
    for (uint64_t i = 0; i < in && s == LQ_OK; i++) {
        const uint64_t g = wide ? q_load64(raw + i * 8) : q_load32(raw + i * 4);
        if (g >= groups)
            s = q_fail(LQ_E_INCONSISTENT, "input %llu is of group %lld; there are %llu", (unsigned long long)i,
                       wide ? (long long)g : (long long)(int32_t)g, (unsigned long long)groups);
        else if (next[g] == group)
            s = q_fail(LQ_E_INCONSISTENT, "group %llu has more than %llu inputs", (unsigned long long)g,
                       (unsigned long long)group);
        else {
            plain &= g == i / group;
            to[g * group + next[g]++] = (int32_t)i;
        }
    }
    q_delete(r->alloc, next);
    if (s == LQ_OK) *order = plain ? NULL : to;
    return s;
}

lq_status q_hf_order(const q_hf_reader *r, const q_tensor *g_idx, uint64_t in, uint64_t group, const int32_t **order) {
    void *raw;
    if (in > INT32_MAX) return q_hf_at(r, q_fail(LQ_E_LIMIT, "%llu inputs", (unsigned long long)in), g_idx);
    Q_TRY(q_hf_all(r, g_idx, &raw));
    const lq_status s = find_order(r, g_idx, (const uint8_t *)raw, in, group, order);
    q_delete(r->alloc, raw);
    return q_hf_at(r, s, g_idx);
}
