/* hf_rows.c: rows of quantized directories: strips of rows that lie across the file, scales as halves, rows of codes in
 * groups.
 *
 * A strip is made whole, since reading one column of a file costs what reading many side by side does. Rows that are
 * then asked for one by one, by several threads, come from a cache of a few strips; each of its places has a lock,
 * under which a strip is made once and its rows are copied. Layer L2. */
#include <math.h>

#include "hf_view.h"

enum { PLACES = 64, STRIP_BYTES = 1 << 19 };

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

void q_hf_cache_empty(q_hf_cache *c) {
    for (uint32_t i = 0; i < c->n; i++) {
        place *p = &c->places[i];
        q_mutex_lock(&p->lock); /* another session of the model may be reading */
        q_delete(c->alloc, p->rows);
        p->rows = NULL;
        p->cap = 0;
        p->tensor = NULL;
        q_mutex_unlock(&p->lock);
    }
}

void q_hf_cache_close(q_hf_cache *c) {
    if (!c) return;
    q_hf_cache_empty(c);
    for (uint32_t i = 0; i < c->n; i++) q_mutex_close(&c->places[i].lock);
    q_delete(c->alloc, c);
}


/* The lock is held. */
static lq_status make_strip(const q_directory *dir, const q_tensor *t, const q_hf_strips *s, place *p, uint64_t strip) {
    const uint64_t first = strip * s->view.strip, n = Q_MIN(s->view.strip, t->rows - first), bytes = n * t->row_bytes;
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

static lq_status read_along(const q_directory *dir, const q_tensor *t, uint64_t first, uint64_t n, uint8_t *out) {
    const q_hf_strips *s = (const q_hf_strips *)t->view;
    for (uint64_t i = 0; i < n; i += s->view.strip)
        Q_TRY(s->fill(dir, t, first + i, Q_MIN(n - i, s->view.strip), out + i * t->row_bytes));
    return LQ_OK;
}

static lq_status read_across(const q_directory *dir, const q_tensor *t, uint64_t first, uint64_t n, uint8_t *out) {
    const q_hf_strips *s = (const q_hf_strips *)t->view;
    while (n) {
        const uint64_t strip = first / s->view.strip, at = strip * s->view.strip,
                       rows = Q_MIN(s->view.strip, t->rows - at);
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

lq_status q_hf_add_strips(q_hf_reader *r, q_str module, const q_tensor *part, const q_format *format, uint64_t k,
                          uint64_t rows, bool across, q_hf_strips *s) {
    uint64_t row_bytes = 0;
    (void)q_row_bytes(format, k, &row_bytes); /* q_hf_add refuses what does not fit */
    s->view.read = across ? read_across : read_along;
    s->cache = r->cache;
    s->view.strip = Q_MAX(STRIP_BYTES / Q_MAX(row_bytes, (uint64_t)1) / 32 * 32, (uint64_t)32);
    return q_hf_add(r, module, part, format, k, rows, &s->view);
}

/* ------------------------------------------------------------------------------------------------ scales */

static uint32_t scale_bytes(const q_tensor *t) { return strcmp(t->type_name, "f32") == 0 ? 4 : 2; }
static float scale_of(const q_tensor *t, const uint8_t *p) {
    return scale_bytes(t) == 4                  ? q_bits_f32(q_load32(p))
           : strcmp(t->type_name, "bf16") == 0 ? q_bf16_to_f32(q_load16(p))
                                                : q_half_to_f32(q_load16(p));
}

lq_status q_hf_check_scales(const q_hf_reader *r, const q_tensor *t) {
    if (strcmp(t->type_name, "f16") == 0) return LQ_OK;
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
        q_log_write(r->log, LQ_LOG_WARN,
                    "tensor '%.*s': scales are kept as halves, which changes them by up to %.2g of their "
                    "value",
                    Q_STR_ARG(t->name), most);
    return s;
}

enum { PIECE = 256 };

lq_status q_hf_floats(const q_directory *dir, const q_tensor *t, uint64_t first, uint64_t n, float *out) {
    const uint32_t size = scale_bytes(t);
    uint8_t piece[PIECE * 4];
    for (uint64_t i = 0; i < n; i += PIECE) {
        const uint64_t take = Q_MIN(n - i, (uint64_t)PIECE);
        Q_TRY(q_hf_bytes(dir, t, (first + i) * size, piece, take * size));
        for (uint64_t j = 0; j < take; j++) out[i + j] = scale_of(t, piece + j * size);
    }
    return LQ_OK;
}

lq_status q_hf_halves(const q_directory *dir, const q_tensor *t, uint64_t first, uint64_t n, uint16_t *out) {
    float piece[PIECE];
    if (strcmp(t->type_name, "f16") == 0) return q_hf_bytes(dir, t, first * 2, out, n * 2);
    for (uint64_t i = 0; i < n; i += PIECE) {
        const uint64_t take = Q_MIN(n - i, (uint64_t)PIECE);
        Q_TRY(q_hf_floats(dir, t, first + i, take, piece));
        for (uint64_t j = 0; j < take; j++) out[i + j] = q_f32_to_half(piece[j]);
    }
    return LQ_OK;
}

/* ------------------------------------------------------------------------------------------- codes in groups, order */

const q_format *q_hf_grouped(uint32_t bits, uint64_t in, uint64_t group) {
    static const char *const names[2][3] = {{"i4_g32", "i4_g64", "i4_g128"}, {"i8_g32", "i8_g64", "i8_g128"}};
    if (bits <= 4 && group == in) return q_format_find("i4_row");
    return q_format_find(names[bits > 4][group % 128 == 0 ? 2 : group % 64 == 0 ? 1 : 0]);
}

/* Bits that divide 32 lie within words. */
static inline void unpack_words(const uint32_t *words, uint64_t stride, uint64_t n, uint32_t bits, uint8_t *codes) {
    for (uint64_t i = 0; i < n; i += 32 / bits, words += stride)
        for (uint32_t j = 0; j < 32 / bits; j++) codes[i + j] = (uint8_t)(*words >> j * bits & ((1u << bits) - 1));
}

void q_hf_unpack(const uint32_t *words, uint64_t stride, uint64_t n, uint32_t bits, uint8_t *codes) {
    if (bits == 4) unpack_words(words, stride, n, 4, codes); /* constants, for the compiler */
    else if (bits == 8) unpack_words(words, stride, n, 8, codes);
    else if (bits == 2) unpack_words(words, stride, n, 2, codes);
    else for (uint64_t i = 0; i < n; i++) codes[i] = (uint8_t)q_hf_code(words, stride, 0, i, bits);
}

void q_hf_row(const q_format *f, uint64_t in, uint64_t group, const uint8_t *codes, const uint16_t *d, const uint8_t *z,
              uint8_t *out) {
    const uint64_t block = f->row_head ? in : (uint64_t)f->weights;
    const bool wide = f->bytes == f->weights + 4; /* i8: a byte per weight, code - 128 */
    for (uint64_t at = 0; at < in; at += block) {
        q_store16(out, d[at / group]);
        out[2] = z[at / group];
        out[3] = 0;
        out += 4;
        for (uint64_t i = 0; wide && i < block; i++) out[i] = codes[at + i] ^ 0x80;
        if (wide) out += block;
        for (const uint8_t *c = codes + at, *end = c + block; !wide && c < end; c += 32, out += 16)
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
