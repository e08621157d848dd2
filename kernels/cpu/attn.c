/* attn.c: the way of queries through pages: which ones go together, which keys each may see, how blocks merge. The
 * arithmetic on a block is its instruction set's (attn.h). Layer L2. */
#include "attn.h"

enum { MOST_COLUMNS = 8, MOST_QUERIES = 64, MOST_LANES = 16 };

bool q_attn_accepts(const q_attn_isa *isa, const q_inst *s) {
    return s->kind == Q_ATTN_CAUSAL && !s->z.slot && s->x.width % 16 == 0 && s->y.width % isa->lanes == 0;
}

/* One query head of one column. */
typedef struct query {
    const float *q;
    float *y, *acc; /* acc: [width] weighted values so far */
    float m, l;     /* largest score so far, sum of exp(score - m) */
    int32_t head, first, pos; /* sees keys first .. pos */
} query;

typedef struct tile {
    float *k, *v; /* [Q_KV_TOKENS][k width], [Q_KV_TOKENS][v width]: a block of keys and values */
    float *acc;   /* [MOST_QUERIES][v width] */
    query *queries;
} tile;

static void lay_out(tile *t, const q_inst *s, q_ref_carve *carve) {
    t->k = q_ref_take(carve, (int64_t)Q_KV_TOKENS * s->x.width, sizeof(float));
    t->v = q_ref_take(carve, (int64_t)Q_KV_TOKENS * s->y.width, sizeof(float));
    t->acc = q_ref_take(carve, (int64_t)MOST_QUERIES * s->y.width, sizeof(float));
    t->queries = q_ref_take(carve, MOST_QUERIES, sizeof(query));
}

uint64_t q_attn_scratch(const q_inst *s) {
    tile t;
    q_ref_carve carve = {NULL, 0};
    lay_out(&t, s, &carve);
    return carve.used;
}

/* Factors exp(a - top), exp(b - top) of a merge. */
static void factors(const q_attn_isa *isa, float a, float b, float top, float *fa, float *fb) {
    float e[MOST_LANES] = {a, b};
    for (int i = 2; i < isa->lanes; i++) e[i] = top;
    isa->exps(e, top, isa->lanes);
    *fa = e[0];
    *fb = e[1];
}

/* Keys [from, to) of the block in t for one query. */
static void take_block(const q_attn_isa *isa, const q_inst *s, const tile *t, query *q, int32_t from, int32_t to) {
    float p[Q_KV_TOKENS], a, b, l = 0;
    const float m = isa->scores(s, q->q, t->k, from, to, p), top = m > q->m ? m : q->m;
    isa->exps(p, m, Q_KV_TOKENS);
    for (int32_t j = from; j < to; j++) l += p[j];
    factors(isa, q->m, m, top, &a, &b);
    q->l = fmaf(l, b, q->l * a);
    q->m = top;
    isa->values(p, t->v, s->y.width, from, to, a, b, q->acc);
}

static void widen(const q_attn_isa *isa, const uint8_t *from, int64_t n, int32_t value_bytes, float *to) {
    if (value_bytes == 4) memcpy(to, from, sizeof(float) * (size_t)n);
    else isa->widen(from, n, to);
}

/* The queries of t, all reading KV head kv of one sequence. */
static void attend(const q_attn_isa *isa, const q_inst *s, const q_exec *e, const tile *t, int32_t n, int32_t kv,
                   const uint32_t *pages) {
    const q_kv_pool *pool = &e->plan->kv[s->kv_group];
    const int32_t bytes = pool->value_bytes;
    const int64_t k_row = pool->k_width * bytes, v_row = (pool->v_width ? pool->v_width : pool->k_width) * bytes;
    int32_t first = t->queries[0].first, last = t->queries[0].pos;
    for (int32_t i = 1; i < n; i++) {
        first = Q_MIN(first, t->queries[i].first);
        last = Q_MAX(last, t->queries[i].pos);
    }
    for (int32_t at = first / Q_KV_TOKENS * Q_KV_TOKENS; at <= last; at += Q_KV_TOKENS) {
        const uint32_t page = pages[at / Q_KV_TOKENS];
        const uint8_t *k = q_kv_k(pool, e->kv[s->kv_group], page, s->kv_layer, kv);
        const uint8_t *v = q_kv_v(pool, e->kv[s->kv_group], page, s->kv_layer, kv);
        const int32_t lo = Q_MAX(first - at, 0), hi = Q_MIN(last + 1 - at, (int32_t)Q_KV_TOKENS);
        for (int32_t j = lo; j < hi; j++) {
            widen(isa, k + j * k_row, s->x.width, bytes, t->k + j * s->x.width);
            widen(isa, v + j * v_row, s->y.width, bytes, t->v + j * s->y.width);
        }
        for (int32_t i = 0; i < n; i++) {
            query *q = &t->queries[i];
            const int32_t from = Q_MAX(q->first - at, 0), to = Q_MIN(q->pos + 1 - at, (int32_t)Q_KV_TOKENS);
            if (from < to) take_block(isa, s, t, q, from, to);
        }
    }
}

static void finish(const q_attn_isa *isa, const q_inst *s, query *q) {
    float a = 1.0f;
    if (s->w) { /* a learned sink: a block of sum 1 without values */
        const float sink = q_ref_value(s->w, 0, q->head), top = sink > q->m ? sink : q->m;
        float b;
        factors(isa, q->m, sink, top, &a, &b);
        q->l = fmaf(1.0f, b, q->l * a);
    }
    const float r = 1.0f / q->l;
    for (int64_t d = 0; d < s->y.width; d++) q->y[d] = q->acc[d] * a * r;
}

/* Heads [h0, h1), which share KV head kv, of columns [c0, c1), which share a sequence. */
static void heads(const q_attn_isa *isa, const q_inst *s, const q_exec *e, tile *t, int64_t c0, int64_t c1, int32_t h0,
                  int32_t h1, int32_t kv) {
    const q_batch *b = e->batch;
    const uint32_t *pages = b->seqs[b->seq[c0]].pages[s->kv_group];
    int32_t n = 0;
    for (int64_t c = c0; c < c1; c++) {
        for (int32_t h = h0; h < h1; h++) {
            const int32_t pos = b->pos[c];
            query *q = &t->queries[n];
            *q = (query){.q = q_ref_at(e, &s->x, c, h), .y = q_ref_at(e, &s->y, c, h), .acc = t->acc + n * s->y.width,
                         .m = -INFINITY, .l = 0, .head = h, .pos = pos,
                         .first = s->window > 0 && pos >= s->window ? pos - s->window + 1 : 0};
            memset(q->acc, 0, (size_t)s->y.width * sizeof(float));
            if (++n < MOST_QUERIES && (c + 1 < c1 || h + 1 < h1)) continue;
            attend(isa, s, e, t, n, kv, pages);
            for (int32_t i = 0; i < n; i++) finish(isa, s, &t->queries[i]);
            n = 0;
        }
    }
}

void q_attn_run(const q_attn_isa *isa, const q_inst *s, const q_exec *e, int64_t begin, int64_t end) {
    tile t;
    q_ref_carve carve = {e->scratch, 0};
    lay_out(&t, s, &carve);
    const int32_t all = s->x.heads, share = all / e->plan->kv[s->kv_group].heads;
    for (int64_t u = begin; u < end;) {
        const int64_t c = u / all;
        const int32_t h = (int32_t)(u % all);
        if (h != 0 || end - u < all) { /* part of a column: up to the end of its KV head, or of the range */
            const int32_t kv = h / share, to = (int32_t)Q_MIN((int64_t)(kv + 1) * share, h + (end - u));
            heads(isa, s, e, &t, c, c + 1, h, to, kv);
            u += to - h;
            continue;
        }
        int64_t c1 = c + 1;
        while (c1 < end / all && c1 - c < MOST_COLUMNS && e->batch->seq[c1] == e->batch->seq[c]) c1++;
        for (int32_t kv = 0; kv * share < all; kv++) heads(isa, s, e, &t, c, c1, kv * share, (kv + 1) * share, kv);
        u = c1 * all;
    }
}
