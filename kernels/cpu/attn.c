/* attn.c: the way of queries through keys and values: which queries go together, which keys each may see, how blocks
 * merge, and how the blocks of few columns are shared out to threads. The arithmetic is its instruction set's (attn.h).
 * What attention over columns finds out of order, positions with gaps, it hands to the reference. Layer L2. */
#include "attn.h"

enum {
    MOST_QUERIES = 64,                 /* that go through a block together */
    AHEAD = 4,                         /* pages that memory is asked for before their turn (bench/SPEED.md) */
    VALUE_KEYS = 64,                   /* keys whose values go through at once as they come from memory: a value wider
                                          than an instruction set's registers takes several passes */
    GROUP = 8,                         /* that go through a product together */
    PAGES = Q_ATTN_KEYS / Q_KV_TOKENS  /* of a block */
};

bool q_attn_accepts(const q_inst *s) { return s->x.width % 16 == 0 && s->y.width % 16 == 0; }

int32_t q_attn_columns(int32_t queries_per_head) { return Q_MAX((int32_t)MOST_QUERIES / queries_per_head, 1); }

/* One query head of one column. */
typedef struct query {
    float *y;
    float m, l;               /* of the blocks so far: the largest score, the sum of exp(score - m) */
    float slope;
    int32_t head, pos;
    int32_t sinks;            /* positions [0, sinks) of the keys that it sees apart from the others */
    int32_t first, last;      /* and of the others */
    int32_t from, to;         /* those of either in the present block */
} query;

typedef struct tile {
    float *q;     /* [MOST_QUERIES][k width] */
    float *score; /* [MOST_QUERIES][Q_ATTN_KEYS] */
    float *part;  /* [MOST_QUERIES][v width]: weighted values of a block */
    float *acc;   /* [MOST_QUERIES][v width]: of the blocks so far */
    float *k, *v; /* a block of keys [page][k width][Q_KV_TOKENS] and values [Q_ATTN_KEYS][v width], widened */
    float *rows;  /* [Q_KV_TOKENS][k width]: the keys of a page on their way */
    float *pm, *pl, *fa, *fb; /* [MOST_QUERIES]: m and l of a block, factors of a merge */
    query *queries;
} tile;

static void lay_out(tile *t, const q_inst *s, q_ref_carve *carve) {
    const int64_t kw = s->x.width, vw = s->y.width;
    t->q = q_ref_take(carve, MOST_QUERIES * kw, sizeof(float));
    t->score = q_ref_take(carve, (int64_t)MOST_QUERIES * Q_ATTN_KEYS, sizeof(float));
    t->part = q_ref_take(carve, MOST_QUERIES * vw, sizeof(float));
    t->acc = q_ref_take(carve, MOST_QUERIES * vw, sizeof(float));
    t->k = q_ref_take(carve, Q_ATTN_KEYS * kw, sizeof(float));
    t->v = q_ref_take(carve, Q_ATTN_KEYS * vw, sizeof(float));
    t->rows = q_ref_take(carve, Q_KV_TOKENS * kw, sizeof(float));
    t->pm = q_ref_take(carve, MOST_QUERIES, sizeof(float));
    t->pl = q_ref_take(carve, MOST_QUERIES, sizeof(float));
    t->fa = q_ref_take(carve, MOST_QUERIES, sizeof(float));
    t->fb = q_ref_take(carve, MOST_QUERIES, sizeof(float));
    t->queries = q_ref_take(carve, MOST_QUERIES, sizeof(query));
}

uint64_t q_attn_scratch(const q_inst *s) {
    tile t;
    q_ref_carve carve = {NULL, 0};
    lay_out(&t, s, &carve);
    return Q_MAX((uint64_t)carve.used, (uint64_t)q_ref_attn_scratch(s));
}

/* ---------------------------------------------------------------------------------------------- keys and values */

/* Where the keys and values of one KV head and sequence come from: pages, or columns [column, ...) of the batch, whose
 * first one is at position base. */
typedef struct source {
    const q_attn_isa *isa;
    const q_inst *s;
    const q_exec *e;
    const uint32_t *pages; /* NULL: columns */
    const q_attn_form *k, *v; /* how pages are read; NULL: kernels/ref decodes them */
    int32_t kv, last;      /* last: no position that any query sees lies behind it */
    int64_t column, base;
    bool widened;          /* a block is brought into the tile first */
    bool sinks;            /* of what queries see, those that are apart are read at present */
} source;

/* A block as products read it, and what they ask for meanwhile: its next page, or what the next block is made of. */
typedef struct block {
    const uint8_t *k[PAGES], *v[PAGES], *k_ahead[PAGES], *v_ahead[PAGES];
    void (*keys)(const q_attn_product *p);
    void (*values)(const q_attn_product *p);
    int64_t k_stride, v_stride;
    int64_t k_ahead_stride, v_ahead_stride;
    int32_t value_keys; /* whose values go through at once */
} block;

static const q_kv_pool *pool_of(const source *o) { return &o->e->plan->kv[o->s->kv_group]; }

static const uint8_t *k_of(const source *o, int64_t page) {
    return q_kv_k(pool_of(o), o->e->kv[o->s->kv_group], o->pages[page], o->s->kv_layer, o->kv);
}
static const uint8_t *v_of(const source *o, int64_t page) {
    return q_kv_v(pool_of(o), o->e->kv[o->s->kv_group], o->pages[page], o->s->kv_layer, o->kv);
}

/* A page's keys [width][Q_KV_TOKENS]; `rows`: room for as many numbers, by key. */
static void widen_keys(const source *o, const uint8_t *page, int64_t width, float *rows, float *to) {
    if (o->k) {
        o->k->widen_keys(page, width, to);
        return;
    }
    for (int64_t j = 0; j < Q_KV_TOKENS; j++) q_ref_kv_key(&pool_of(o)->k, page, j, width, rows + j * width);
    for (int64_t i = 0; i < width; i++)
        for (int64_t j = 0; j < Q_KV_TOKENS; j++) to[i * Q_KV_TOKENS + j] = rows[j * width + i];
}

/* The first `width` numbers of a page's values. */
static void widen_values(const source *o, const uint8_t *page, int64_t width, float *to) {
    const q_kv_form *form = &pool_of(o)->v;
    if (o->v && form->width == width) {
        o->v->widen_values(page, Q_KV_TOKENS * width, to);
        return;
    }
    for (int64_t j = 0; j < Q_KV_TOKENS; j++) {
        if (o->v) o->v->widen_values(page + j * form->bytes, width, to + j * width);
        else q_ref_kv_value(form, page, j, width, to + j * width);
    }
}

/* Page i of the block at `at` into the tile. */
static void bring_page(const source *o, const tile *t, int64_t at, int64_t i) {
    const int64_t kw = o->s->x.width, vw = o->s->y.width, page = at / Q_KV_TOKENS + i;
    float *k = t->k + i * Q_KV_TOKENS * kw, *v = t->v + i * Q_KV_TOKENS * vw;
    widen_keys(o, k_of(o, page), kw, t->rows, k);
    if (pool_of(o)->v.width) widen_values(o, v_of(o, page), vw, v);
    else o->isa->turn(k, vw, v); /* a prefix of the keys */
}

/* Keys and values of the columns at positions [lo, hi) of the block at `at` into the tile. */
static void bring_columns(const source *o, const tile *t, int64_t at, int64_t lo, int64_t hi) {
    const q_inst *s = o->s;
    const q_view *values = s->v.slot ? &s->v : &s->z;
    const int64_t kw = s->x.width, vw = s->y.width;
    for (int64_t j = lo; j < hi; j++) {
        const int64_t c = o->column + (at + j - o->base);
        const float *from = q_ref_at(o->e, &s->z, c, o->kv);
        float *k = t->k + j / Q_KV_TOKENS * Q_KV_TOKENS * kw + j % Q_KV_TOKENS;
        for (int64_t i = 0; i < kw; i++) k[i * Q_KV_TOKENS] = from[i];
        memcpy(t->v + j * vw, q_ref_at(o->e, values, c, o->kv), sizeof(float) * (size_t)vw);
    }
}

static void bring_block(const source *o, const tile *t, int64_t at, int64_t lo, int64_t hi, block *b) {
    const int64_t kw = o->s->x.width, vw = o->s->y.width, from = lo / Q_KV_TOKENS, to = (hi - 1) / Q_KV_TOKENS + 1;
    const int64_t next = at / Q_KV_TOKENS + PAGES;
    b->keys = o->isa->forms[0].keys;
    b->values = o->isa->forms[0].values;
    b->k_stride = Q_KV_TOKENS * (int64_t)sizeof(float);
    b->v_stride = vw * (int64_t)sizeof(float);
    if (!o->pages) bring_columns(o, t, at, lo, hi);
    for (int64_t i = from; i < to; i++) {
        const bool more = o->pages && (next + i) * Q_KV_TOKENS <= o->last;
        if (o->pages) bring_page(o, t, at, i);
        b->k[i] = (const uint8_t *)(t->k + i * Q_KV_TOKENS * kw);
        b->v[i] = (const uint8_t *)(t->v + i * Q_KV_TOKENS * vw);
        b->k_ahead[i] = more ? k_of(o, next + i) : b->k[i];
        b->v_ahead[i] = more ? v_of(o, next + i) : b->v[i];
    }
}

/* Keys [lo, hi) of the block at `at`. */
static void open_block(const source *o, const tile *t, int64_t at, int64_t lo, int64_t hi, block *b) {
    const q_kv_pool *pool = pool_of(o);
    const int64_t page = at / Q_KV_TOKENS, from = lo / Q_KV_TOKENS, to = (hi - 1) / Q_KV_TOKENS + 1;
    b->value_keys = o->widened ? Q_ATTN_KEYS : VALUE_KEYS;
    b->k_ahead_stride = o->pages ? Q_KV_TOKENS * pool->k.bytes / pool->k.width : 0;
    b->v_ahead_stride = o->pages ? pool->v.bytes : 0;
    if (o->widened) {
        bring_block(o, t, at, lo, hi, b);
        return;
    }
    b->keys = o->k->keys;
    b->values = o->v->values;
    b->k_stride = b->k_ahead_stride;
    b->v_stride = pool->v.bytes;
    for (int64_t i = from; i < to; i++) b->k[i] = k_of(o, page + i), b->v[i] = v_of(o, page + i);
    for (int64_t i = from; i < to; i++) { /* keys, then values, then the next block's keys */
        const int64_t n = i + AHEAD, over = n - to;
        const bool more = (page + n) * Q_KV_TOKENS <= o->last;
        b->k_ahead[i] = n < to ? b->k[n] : b->v[Q_MIN(from + over, to - 1)];
        b->v_ahead[i] = n < to ? b->v[n] : more ? k_of(o, page + n) : b->v[i];
    }
}

/* -------------------------------------------------------------------------------------------------------- blocks */

/* The scores of queries [g, g + n) with page i. */
static void score_page(const q_inst *s, const tile *t, const block *b, int32_t g, int32_t n, int64_t i) {
    const q_attn_product p = {.a = t->q + (int64_t)g * s->x.width, .rows = n, .a_stride = s->x.width, .b = b->k + i,
                              .per = s->x.width, .b_stride = b->k_stride, .ahead = (g == 0 ? b->k_ahead : b->k) + i,
                              .ahead_stride = b->k_ahead_stride, .from = 0, .to = s->x.width, .width = Q_KV_TOKENS,
                              .c = t->score + (int64_t)g * Q_ATTN_KEYS + i * Q_KV_TOKENS, .c_stride = Q_ATTN_KEYS};
    b->keys(&p);
}

/* Weighted values of keys [from, to), of queries [g, g + n): beside what they have (more), or alone; of no keys: 0. */
static void add_values(const q_inst *s, const tile *t, const block *b, int32_t g, int32_t n, int32_t from, int32_t to,
                       bool more) {
    q_attn_product p = {.a = t->score + (int64_t)g * Q_ATTN_KEYS, .rows = n, .a_stride = Q_ATTN_KEYS, .b = b->v,
                        .per = Q_KV_TOKENS, .b_stride = b->v_stride, .ahead = g == 0 ? b->v_ahead : b->v,
                        .ahead_stride = b->v_ahead_stride, .more = more, .width = s->y.width,
                        .c = t->part + (int64_t)g * s->y.width, .c_stride = s->y.width};
    do {
        p.from = from;
        p.to = from = Q_MIN(to, from / b->value_keys * b->value_keys + b->value_keys);
        b->values(&p);
        p.more = true;
    } while (from < to);
}

/* Of queries [g, g + n): the keys that all see go together, and those before and behind by themselves. */
static void values_of(const q_inst *s, const tile *t, const block *b, int32_t g, int32_t n) {
    int32_t from = 0, to = Q_ATTN_KEYS;
    for (int32_t i = g; i < g + n; i++) {
        from = Q_MAX(from, t->queries[i].from);
        to = Q_MIN(to, t->queries[i].to);
    }
    if (from >= to) {
        for (int32_t i = g; i < g + n; i++)
            if (t->queries[i].from < t->queries[i].to)
                add_values(s, t, b, i, 1, t->queries[i].from, t->queries[i].to, false);
        return;
    }
    bool before = false;
    for (int32_t i = g; i < g + n; i++) before = before || t->queries[i].from < from;
    for (int32_t i = g; before && i < g + n; i++) add_values(s, t, b, i, 1, t->queries[i].from, from, false);
    add_values(s, t, b, g, n, from, to, before);
    for (int32_t i = g; i < g + n; i++)
        if (t->queries[i].to > to) add_values(s, t, b, i, 1, to, t->queries[i].to, true);
}

/* Which keys of the block at `at` each of n queries sees, of its sinks or of the others, and [*lo, *hi) those that any
 * sees; false: none. */
static bool look_at(const tile *t, int32_t n, int64_t at, bool sinks, int32_t *lo, int32_t *hi) {
    *lo = Q_ATTN_KEYS;
    *hi = 0;
    for (int32_t i = 0; i < n; i++) {
        query *q = &t->queries[i];
        q->from = (int32_t)Q_MAX((sinks ? 0 : q->first) - at, (int64_t)0);
        q->to = (int32_t)Q_MIN((sinks ? q->sinks : q->last + 1) - at, (int64_t)Q_ATTN_KEYS);
        if (q->from >= q->to) continue;
        *lo = Q_MIN(*lo, q->from);
        *hi = Q_MAX(*hi, q->to);
    }
    return *lo < *hi;
}

/* Scores of queries [g, g + n) and the block at `at` become weights. */
static void softmax(const q_attn_isa *isa, const q_inst *s, const tile *t, int32_t g, int32_t n, int64_t at) {
    q_attn_row rows[GROUP];
    for (int32_t i = 0; i < n; i++) {
        const query *q = &t->queries[g + i];
        rows[i] = (q_attn_row){.score = t->score + (int64_t)(g + i) * Q_ATTN_KEYS, .from = q->from, .to = q->to,
                               .key = (int32_t)(at - q->pos), .scale = q_ref_or1(s->scale), .softcap = s->softcap,
                               .slope = q->slope};
        if (q->from < q->to) isa->largest(&rows[i]);
    }
    for (int32_t i = 0; i < n; i++) {
        if (rows[i].from >= rows[i].to) continue;
        isa->weigh(&rows[i]);
        t->pm[g + i] = rows[i].m;
        t->pl[g + i] = rows[i].l;
    }
}

/* The block at `at` for n queries: their pm, pl and part, where they see any key of it. */
static void take_block(const q_attn_isa *isa, const q_inst *s, const tile *t, const source *o, int32_t n, int64_t at) {
    int32_t lo, hi;
    block b;
    if (!look_at(t, n, at, o->sinks, &lo, &hi)) return;
    open_block(o, t, at, lo, hi, &b);
    for (int64_t page = lo / Q_KV_TOKENS; page * Q_KV_TOKENS < hi; page++)
        for (int32_t g = 0; g < n; g += GROUP) {
            const int32_t rows = Q_MIN((int32_t)GROUP, n - g);
            bool seen = false;
            for (int32_t i = g; i < g + rows; i++)
                seen = seen || (t->queries[i].from < (page + 1) * Q_KV_TOKENS && t->queries[i].to > page * Q_KV_TOKENS);
            if (seen) score_page(s, t, &b, g, rows, page);
        }
    for (int32_t g = 0; g < n; g += GROUP) softmax(isa, s, t, g, Q_MIN((int32_t)GROUP, n - g), at);
    for (int32_t g = 0; g < n; g += GROUP) values_of(s, t, &b, g, Q_MIN((int32_t)GROUP, n - g));
}

/* Bring the block of n queries into what they have of the blocks before. */
static void merge(const q_attn_isa *isa, const q_inst *s, const tile *t, int32_t n) {
    const int64_t vw = s->y.width;
    for (int32_t i = 0; i < n; i++) {
        query *q = &t->queries[i];
        t->fa[i] = t->fb[i] = 0;
        if (q->from >= q->to) continue;
        const float top = t->pm[i] > q->m ? t->pm[i] : q->m;
        t->fa[i] = q->m - top;
        t->fb[i] = t->pm[i] - top;
        q->m = top;
    }
    isa->exps(t->fa, MOST_QUERIES);
    isa->exps(t->fb, MOST_QUERIES);
    for (int32_t i = 0; i < n; i++) {
        query *q = &t->queries[i];
        if (q->from >= q->to) continue;
        q->l = fmaf(t->pl[i], t->fb[i], q->l * t->fa[i]);
        isa->merge(t->acc + i * vw, t->part + i * vw, vw, t->fa[i], t->fb[i]);
    }
}

static void finish(const source *o, const tile *t, int32_t n) {
    const q_attn_isa *isa = o->isa;
    const q_inst *s = o->s;
    const int32_t v_turn = o->pages ? q_kv_v_form(pool_of(o))->turn : 0;
    for (int32_t i = 0; i < n; i++) {
        query *q = &t->queries[i];
        const float *acc = t->acc + (int64_t)i * s->y.width;
        float a = 1.0f;
        if (s->w) { /* a learned sink: a block of sum 1 without values */
            const float sink = q_ref_value(s->w, 0, q->head), top = sink > q->m ? sink : q->m;
            float x[16] = {q->m - top, sink - top};
            isa->exps(x, 16);
            a = x[0];
            q->l = fmaf(1.0f, x[1], q->l * a);
        }
        isa->finish(q->y, acc, s->y.width, a, 1.0f / q->l);
        if (v_turn) isa->hadamard(q->y, s->y.width, v_turn);
    }
}

/* ------------------------------------------------------------------------------------------------------- queries */

/* What the n queries of the tile, all of one KV head and sequence, read from, their sinks or the others: positions
 * [*first, o->last]. */
static void aim(const q_attn_isa *isa, const tile *t, source *o, int32_t n, bool sinks, int64_t *first) {
    *first = INT64_MAX;
    o->last = -1;
    o->sinks = sinks;
    for (int32_t i = 0; i < n; i++) {
        const query *q = &t->queries[i];
        *first = Q_MIN(*first, (int64_t)(sinks ? 0 : q->first));
        o->last = Q_MAX(o->last, sinks ? q->sinks - 1 : q->last);
    }
    o->widened = !o->pages || pool_of(o)->v.width == 0 || !o->k || !o->v;
    if (n > isa->direct && (o->k != isa->forms || o->v != isa->forms)) o->widened = true;
}

/* Nothing seen yet. */
static void start(const q_inst *s, const tile *t, int32_t n) {
    memset(t->fa, 0, MOST_QUERIES * sizeof(float));
    memset(t->fb, 0, MOST_QUERIES * sizeof(float));
    memset(t->acc, 0, (size_t)(n * s->y.width) * sizeof(float));
}

static void attend_to(const q_attn_isa *isa, const q_inst *s, const tile *t, source *o, int32_t n, bool sinks) {
    int64_t first;
    aim(isa, t, o, n, sinks, &first);
    for (int64_t at = first / Q_ATTN_KEYS * Q_ATTN_KEYS; at <= o->last; at += Q_ATTN_KEYS) {
        take_block(isa, s, t, o, n, at);
        merge(isa, s, t, n);
    }
}

static void attend(const q_attn_isa *isa, const q_inst *s, const tile *t, source *o, int32_t n) {
    start(s, t, n);
    if (s->sink_tokens > 0) attend_to(isa, s, t, o, n, true);
    attend_to(isa, s, t, o, n, false);
    finish(o, t, n);
}

/* Query i of the tile: head h of column c, which sees all columns of its sequence, or by its own position what op.h
 * says. */
static void add_query(const source *o, const tile *t, int32_t i, int64_t c, int32_t h) {
    const q_inst *s = o->s;
    const int32_t pos = o->e->batch->pos[c];
    query *q = &t->queries[i];
    memcpy(t->q + (int64_t)i * s->x.width, q_ref_at(o->e, &s->x, c, h), sizeof(float) * (size_t)s->x.width);
    *q = (query){.y = q_ref_at(o->e, &s->y, c, h), .m = -INFINITY, .head = h, .pos = pos, .first = (int32_t)o->base,
                 .last = o->last, .slope = s->kind == Q_ATTN_ALIBI ? q_ref_alibi_slope(s, h) : 0};
    if (!o->pages) return;
    if (pool_of(o)->k.turn) o->isa->hadamard(t->q + (int64_t)i * s->x.width, s->x.width, pool_of(o)->k.turn);
    const q_ref_sight sees = q_ref_sees(s, pos);
    q->sinks = (int32_t)sees.sinks;
    q->first = (int32_t)sees.first;
    q->last = pos;
}

/* What the columns of column c's sequence bring; false: their positions have gaps. */
static bool find_columns(source *o, int64_t c) {
    const q_batch *b = o->e->batch;
    int64_t from = c, to = c + 1;
    while (from > 0 && b->seq[from - 1] == b->seq[c]) from--;
    while (to < b->n && b->seq[to] == b->seq[c]) to++;
    o->column = from;
    o->base = b->pos[from];
    o->last = b->pos[to - 1];
    return o->last - o->base == to - 1 - from;
}

static const q_attn_form *form_of(const q_attn_isa *isa, const q_kv_form *f) {
    for (int32_t i = 0; i < isa->n_forms; i++)
        if (isa->forms[i].format == f->format) return &isa->forms[i];
    return NULL;
}

/* The pages of the sequence of column c. */
static void find_pages(source *o, int64_t c) {
    const q_batch *b = o->e->batch;
    o->pages = b->seqs[b->seq[c]].pages[o->s->kv_group];
    o->k = form_of(o->isa, &pool_of(o)->k);
    o->v = form_of(o->isa, q_kv_v_form(pool_of(o)));
}

/* Heads [h0, h1), which share KV head kv, of columns [c0, c1), which share a sequence. */
static void heads(const q_attn_isa *isa, const q_inst *s, const q_exec *e, const tile *t, int64_t c0, int64_t c1,
                  int32_t h0, int32_t h1, int32_t kv) {
    source o = {.isa = isa, .s = s, .e = e, .kv = kv};
    if (!s->z.slot) {
        find_pages(&o, c0);
    } else if (!find_columns(&o, c0)) {
        for (int64_t c = c0; c < c1; c++) q_ref_attn(s, e, c * s->x.heads + h0, c * s->x.heads + h1);
        return;
    }
    int32_t n = 0;
    for (int64_t c = c0; c < c1; c++) {
        for (int32_t h = h0; h < h1; h++) {
            add_query(&o, t, n, c, h);
            if (++n < MOST_QUERIES && (c + 1 < c1 || h + 1 < h1)) continue;
            attend(isa, s, t, &o, n);
            n = 0;
        }
    }
}

void q_attn_run(const q_attn_isa *isa, const q_inst *s, const q_exec *e, int64_t begin, int64_t end) {
    tile t;
    q_ref_carve carve = {e->scratch, 0};
    lay_out(&t, s, &carve);
    const int32_t all = s->x.heads, share = all / q_attn_kv_heads(s, e->plan);
    const int64_t most = q_attn_columns(share);
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
        while (c1 < end / all && c1 - c < most && e->batch->seq[c1] == e->batch->seq[c]) c1++;
        for (int32_t kv = 0; kv * share < all; kv++) heads(isa, s, e, &t, c, c1, kv * share, (kv + 1) * share, kv);
        u = c1 * all;
    }
}

void q_attn_head(const q_attn_isa *isa, const q_inst *s, const q_exec *e, int64_t begin, int64_t end, int32_t kv) {
    tile t;
    q_ref_carve carve = {e->scratch, 0};
    lay_out(&t, s, &carve);
    const int32_t share = s->x.heads / q_attn_kv_heads(s, e->plan);
    for (int64_t c = begin, c1; c < end; c = c1) {
        for (c1 = c + 1; c1 < end && e->batch->seq[c1] == e->batch->seq[c];) c1++;
        heads(isa, s, e, &t, c, c1, kv * share, (kv + 1) * share, kv);
    }
}

/* ------------------------------------------------------------------------------------------- shared out by blocks */

/* Columns [c0, c1) of one sequence. For each KV head every block that one of them sees is a unit of work: `sinks` of
 * them from the beginning on, as far as they are seen apart from the others, then those from block number `at` on. What
 * a unit finds, of all queries of the KV head, is a record: the weighted values [rows][v width], then the largest
 * scores and the sums of weights [rows] each. Records lie KV head after KV head. */
typedef struct run {
    int64_t c0, c1, at, rows;
    int32_t sinks, blocks; /* blocks: all of them; 1: there are no records, whoever takes the unit finishes it */
    int64_t record; /* floats */
    int64_t parts, done; /* where its records begin, and its counts of units done, DONE_STEP apart (q_attn_split) */
} run;

enum { DONE_STEP = 16 }; /* a cache line */

static int64_t record_floats(const q_inst *s, int64_t rows) {
    return (int64_t)q_round_up((uint64_t)rows * (uint64_t)(s->y.width + 2), 16);
}

/* Position of the first key of unit i. */
static int64_t block_at(const run *r, int64_t i) { return (i < r->sinks ? i : r->at + i - r->sinks) * Q_ATTN_KEYS; }

static int64_t blocks_of(int64_t positions) { return (positions + Q_ATTN_KEYS - 1) / Q_ATTN_KEYS; }

/* Most blocks that so many columns in a row see. */
static int64_t most_blocks(const q_inst *s, const q_plan *plan, int64_t columns) {
    const int64_t all = blocks_of(plan->context), row = s->window + columns - 1;
    if (s->window <= 0) return all;
    const int64_t seen = blocks_of(row - 1) + 1, sinks = Q_MAX((int64_t)s->sink_tokens, (int64_t)0);
    if (sinks == 0) return Q_MIN(all, seen);
    /* where the first column's window reaches the sinks, it begins with them, and the last ones see them apart */
    return Q_MIN(all, blocks_of(sinks)) + Q_MIN(all, Q_MAX(seen, blocks_of(sinks + row)));
}

bool q_attn_splits(const q_inst *s) { return !s->z.slot; }

uint64_t q_attn_split_floats(const q_inst *s, const q_plan *plan, int32_t columns) {
    const int32_t kv = plan->kv[s->kv_group].heads;
    return (uint64_t)columns * (uint64_t)kv *
           (uint64_t)(most_blocks(s, plan, columns) * record_floats(s, s->x.heads / kv));
}

uint64_t q_attn_split_counts(const q_inst *s, const q_plan *plan, int32_t columns) {
    return (uint64_t)columns * (uint64_t)plan->kv[s->kv_group].heads * DONE_STEP;
}

/* The columns from r->c1 on that share a sequence; parts and done move on by what the run before takes. */
static bool next_run(const q_inst *s, const q_exec *e, run *r) {
    const q_batch *b = e->batch;
    const int64_t kv = q_attn_kv_heads(s, e->plan);
    if (r->c1 == b->n) return false;
    if (r->c1) r->parts += kv * r->blocks * r->record, r->done += kv * DONE_STEP;
    r->c0 = r->c1++;
    while (r->c1 < b->n && b->seq[r->c1] == b->seq[r->c0]) r->c1++;
    const int64_t sinks = q_ref_sees(s, b->pos[r->c1 - 1]).sinks;
    r->sinks = (int32_t)blocks_of(sinks);
    r->at = q_ref_sees(s, b->pos[r->c0]).first / Q_ATTN_KEYS;
    r->rows = (r->c1 - r->c0) * (s->x.heads / kv);
    r->record = record_floats(s, r->rows);
    const int64_t blocks = r->sinks + b->pos[r->c1 - 1] / Q_ATTN_KEYS - r->at + 1;
    r->blocks = blocks <= most_blocks(s, e->plan, r->c1 - r->c0) ? (int32_t)blocks : 1; /* more: positions have gaps */
    /* who reads sinks, with their pages' other keys, does not wait for who stores there */
    if (b->pos[r->c0] / Q_KV_TOKENS * Q_KV_TOKENS < sinks) r->blocks = 1;
    return true;
}

int64_t q_attn_split_units(const q_inst *s, const q_exec *e) {
    int64_t units = 0;
    for (run r = {0}; next_run(s, e, &r);) units += q_attn_kv_heads(s, e->plan) * r.blocks;
    return units;
}

/* Rows [row, row + n) of the run's queries into the tile. */
static void load_rows(const source *o, const tile *t, const run *r, int64_t row, int32_t n) {
    const int64_t share = r->rows / (r->c1 - r->c0);
    for (int32_t i = 0; i < n; i++)
        add_query(o, t, i, r->c0 + (row + i) / share, (int32_t)(o->kv * share + (row + i) % share));
}

/* The tile's part, pm and pl become rows from `row` on of the record of the run's block i. */
static void to_record(const q_inst *s, tile *t, const q_attn_split *w, const run *r, int32_t kv, int64_t i,
                      int64_t row) {
    float *record = w->parts + r->parts + ((int64_t)kv * r->blocks + i) * r->record;
    t->part = record + row * s->y.width;
    t->pm = record + r->rows * s->y.width + row;
    t->pl = t->pm + r->rows;
}

/* Blocks [begin, end) of the run for all its queries of a KV head, into their records. */
static void take_blocks(const q_attn_isa *isa, const q_inst *s, tile *t, source *o, const q_attn_split *w,
                        const run *r, int64_t begin, int64_t end) {
    for (int64_t row = 0, first; row < r->rows; row += MOST_QUERIES) {
        const int32_t n = (int32_t)Q_MIN(r->rows - row, (int64_t)MOST_QUERIES);
        load_rows(o, t, r, row, n);
        for (int64_t i = begin, to; i < end;) {
            to = i < r->sinks ? Q_MIN(end, (int64_t)r->sinks) : end;
            aim(isa, t, o, n, i < r->sinks, &first);
            o->last = Q_MIN(o->last, (int32_t)block_at(r, to - 1) + Q_ATTN_KEYS - 1); /* the next block is another's */
            for (; i < to; i++) {
                to_record(s, t, w, r, o->kv, i, row);
                take_block(isa, s, t, o, n, block_at(r, i));
            }
        }
    }
}

/* All records of a KV head, in ascending order as op.h says, into its queries' results. */
static void merge_records(const q_attn_isa *isa, const q_inst *s, tile *t, const source *o, const q_attn_split *w,
                          const run *r) {
    for (int64_t row = 0; row < r->rows; row += MOST_QUERIES) {
        const int32_t n = (int32_t)Q_MIN(r->rows - row, (int64_t)MOST_QUERIES);
        load_rows(o, t, r, row, n);
        start(s, t, n);
        for (int64_t i = 0; i < r->blocks; i++) {
            int32_t lo, hi;
            if (!look_at(t, n, block_at(r, i), i < r->sinks, &lo, &hi)) continue;
            to_record(s, t, w, r, o->kv, i, row);
            merge(isa, s, t, n);
        }
        finish(o, t, n);
    }
}

/* Units [begin, end) of a KV head. Who stores a key is who reads its block. */
static void run_blocks(const q_attn_isa *isa, const q_inst *s, const q_exec *e, const q_attn_split *w, const run *r,
                       int32_t kv, int64_t begin, int64_t end) {
    tile t;
    q_ref_carve carve = {e->scratch, 0};
    lay_out(&t, s, &carve);
    const int64_t kv_heads = q_attn_kv_heads(s, e->plan), share = s->x.heads / kv_heads;
    for (int64_t c = r->c0; w->put && c < r->c1; c++) {
        const int64_t i = e->batch->pos[c] / Q_ATTN_KEYS - r->at + r->sinks;
        if (r->blocks == 1 || (i >= begin && i < end))
            w->store(w->put, e, c * kv_heads + kv, c * kv_heads + kv + 1);
    }
    if (r->blocks == 1) {
        heads(isa, s, e, &t, r->c0, r->c1, (int32_t)(kv * share), (int32_t)((kv + 1) * share), kv);
        return;
    }
    source o = {.isa = isa, .s = s, .e = e, .kv = kv};
    find_pages(&o, r->c0);
    take_blocks(isa, s, &t, &o, w, r, begin, end);
    uint32_t *done = w->done + r->done + (int64_t)kv * DONE_STEP;
    if (__atomic_add_fetch(done, (uint32_t)(end - begin), __ATOMIC_ACQ_REL) < (uint32_t)r->blocks) return;
    __atomic_store_n(done, 0, __ATOMIC_RELAXED); /* for the next layer, behind a barrier */
    merge_records(isa, s, &t, &o, w, r);
}

void q_attn_split_run(const q_attn_isa *isa, const q_inst *s, const q_exec *e, const q_attn_split *w, int64_t begin,
                      int64_t end) {
    const int64_t kv_heads = q_attn_kv_heads(s, e->plan);
    int64_t base = 0;
    for (run r = {0}; base < end && next_run(s, e, &r); base += kv_heads * r.blocks) {
        const int64_t stop = Q_MIN(end - base, kv_heads * r.blocks);
        for (int64_t u = Q_MAX(begin - base, (int64_t)0), next; u < stop; u = next) {
            const int64_t kv = u / r.blocks;
            next = Q_MIN(stop, (kv + 1) * r.blocks);
            run_blocks(isa, s, e, w, &r, (int32_t)kv, u - kv * r.blocks, next - kv * r.blocks);
        }
    }
}
