/* match.c: longest-prefix search in a small set of byte strings (special tokens, user-defined pieces).
 *
 * A sorted array narrowed byte by byte: no pointers to chase, and a text without a match costs one table look-up per
 * byte. Strings are at most Q_LIMIT_SPECIAL bytes, which bounds the work per position. Layer L3. */
#include "tokenizer.h"

typedef struct q_match_item {
    q_str s;
    int32_t id;
} item;

static int compare(const item *a, const item *b) {
    const int c = memcmp(a->s.p, b->s.p, (size_t)Q_MIN(a->s.n, b->s.n));
    if (c) return c;
    if (a->s.n != b->s.n) return a->s.n < b->s.n ? -1 : 1;
    return a->id < b->id ? -1 : a->id > b->id;
}

/* Heap sort: the C library's qsort may allocate behind the allocator's back. */
static void sift_down(item *v, uint32_t i, uint32_t n) {
    const item x = v[i];
    for (uint32_t c; (c = 2 * i + 1) < n; i = c) {
        if (c + 1 < n && compare(&v[c], &v[c + 1]) < 0) c++;
        if (compare(&x, &v[c]) >= 0) break;
        v[i] = v[c];
    }
    v[i] = x;
}
static void sort(item *v, uint32_t n) {
    for (uint32_t i = n / 2; i-- > 0;) sift_down(v, i, n);
    for (uint32_t end = n; end-- > 1;) {
        const item x = v[0];
        v[0] = v[end];
        v[end] = x;
        sift_down(v, 0, end);
    }
}

lq_status q_match_build(const q_alloc *a, const q_str *pieces, const int32_t *ids, uint32_t n_ids, q_match *out) {
    q_match m = {.n = n_ids};
    for (uint32_t i = 0; i < n_ids; i++)
        if (pieces[ids[i]].n == 0 || pieces[ids[i]].n > Q_LIMIT_SPECIAL)
            return q_fail(LQ_E_LIMIT, "special token %d has %llu bytes; 1 to %d are supported", ids[i],
                          (unsigned long long)pieces[ids[i]].n, Q_LIMIT_SPECIAL);
    m.items = Q_NEW(a, item, n_ids);
    if (!m.items) return LQ_E_NOMEM;
    for (uint32_t i = 0; i < n_ids; i++) m.items[i] = (item){pieces[ids[i]], ids[i]};
    sort(m.items, n_ids);
    for (uint32_t i = 0, b = 0; b <= 256; b++) {
        while (i < n_ids && (uint8_t)m.items[i].s.p[0] < b) i++;
        m.first[b] = i;
    }
    *out = m;
    return LQ_OK;
}

void q_match_free(const q_alloc *a, q_match *m) {
    q_delete(a, m->items);
    *m = (q_match){0};
}

/* First of items[lo, hi), which share their first `depth` bytes and are longer, whose next byte is at least `byte`. */
static uint32_t lower_bound(const item *v, uint32_t lo, uint32_t hi, uint32_t depth, uint32_t byte) {
    while (lo < hi) {
        const uint32_t mid = lo + (hi - lo) / 2;
        if ((uint8_t)v[mid].s.p[depth] < byte) lo = mid + 1;
        else hi = mid;
    }
    return lo;
}

int32_t q_match_find(const q_match *m, const char *text, uint64_t n, uint32_t *length) {
    if (m->n == 0 || n == 0) return -1;
    const uint8_t *t = (const uint8_t *)text;
    uint32_t lo = m->first[t[0]], hi = m->first[t[0] + 1];
    int32_t best = -1;
    for (uint32_t depth = 1; lo < hi; depth++) {
        if (m->items[lo].s.n == depth) { /* sorted: the one that ends here comes first */
            best = m->items[lo].id;
            *length = depth;
            while (lo < hi && m->items[lo].s.n == depth) lo++;
        }
        if (depth == n) break;
        const uint32_t next = lower_bound(m->items, lo, hi, depth, t[depth] + 1u);
        lo = lower_bound(m->items, lo, next, depth, t[depth]);
        hi = next;
    }
    return best;
}
