/* ref_attn.c: rows of pages, KV_PUT and ATTN, paged and over the columns of the batch. A page table covers every
 * position that a column may see: nothing is checked here. Layer L2. */
#include "ref.h"

/* ------------------------------------------------------------------------------------------- rows of pages */

void q_ref_turn(float *x, int64_t n, int32_t turn) {
    float y[Q_KV_MOST_TURN];
    const int32_t half = turn / 2;
    const float scale = (float)(1.0 / sqrt((double)turn));
    for (int64_t at = 0; turn && at < n; at += turn, x += turn) {
        for (int32_t stage = 1; stage < turn; stage *= 2) {
            for (int32_t i = 0; i < half; i++) {
                y[2 * i] = x[i] + x[i + half];
                y[2 * i + 1] = x[i] - x[i + half];
            }
            memcpy(x, y, sizeof(float) * (size_t)turn);
        }
        for (int32_t i = 0; i < turn; i++) x[i] *= scale;
    }
}

/* Numbers that are encoded, and decoded, at once: whole blocks, whole turns; the last ones of a row may be fewer. */
enum { PIECE = Q_KV_MOST_TURN };
_Static_assert(PIECE % Q_KV_MOST_BLOCK == 0, "a piece is made of blocks");

/* What the form cannot hold becomes 0, and its cell or block of the encoded row is filled with 0xFF later. */
static bool leave_out(const q_kv_form *f, float *x, int32_t n, bool *out) {
    bool any = false;
    for (int32_t i = 0; i < n; i++) {
        out[i] = !(fabsf(x[i]) <= f->most);
        if (out[i]) x[i] = 0, any = true;
    }
    return any;
}

/* A row of the form from x; its cells go `cell_step` bytes apart. */
static void put_row(const q_kv_form *f, const float *x, int64_t cell_step, uint8_t *to) {
    const int32_t cell = q_kv_cell(f), block = f->format->weights, size = f->format->bytes;
    for (int32_t at = 0; at < f->width; at += PIECE, to += PIECE / block * size / cell * cell_step) {
        float part[PIECE];
        bool out[PIECE];
        uint8_t row[PIECE * sizeof(float)];
        const int32_t n = Q_MIN((int32_t)PIECE, f->width - at), bytes = n / block * size;
        memcpy(part, x + at, sizeof(float) * (size_t)n);
        q_ref_turn(part, n, f->turn);
        const bool some = leave_out(f, part, n, out);
        q_encode_row(f->format, part, NULL, false, n, row);
        for (int32_t i = 0; some && i < n; i++)
            if (out[i]) memset(row + i / block * size, 0xFF, (size_t)size);
        for (int32_t i = 0; i < bytes / cell; i++) memcpy(to + i * cell_step, row + i * cell, (size_t)cell);
    }
}

void q_ref_kv_put_row(const q_kv_form *k, const q_kv_form *v, int64_t row, const float *key, const float *value,
                      uint8_t *keys, uint8_t *values) {
    const int32_t cell = q_kv_cell(k);
    put_row(k, key, (int64_t)cell * Q_KV_TOKENS, keys + row * cell);
    if (v->width) put_row(v, value, q_kv_cell(v), values + row * v->bytes);
}

/* The first n numbers of a row. */
static void get_row(const q_kv_form *f, const uint8_t *from, int64_t cell_step, int64_t n, float *to) {
    const int32_t cell = q_kv_cell(f), piece_bytes = PIECE / f->format->weights * f->format->bytes;
    for (int64_t at = 0; at < n; at += PIECE, from += piece_bytes / cell * cell_step) {
        float part[PIECE];
        uint8_t row[PIECE * sizeof(float)];
        const int64_t some = Q_MIN((int64_t)PIECE, f->width - at), bytes = some / f->format->weights * f->format->bytes;
        for (int64_t i = 0; i < bytes / cell; i++) memcpy(row + i * cell, from + i * cell_step, (size_t)cell);
        q_decode_row(f->format, row, some, part);
        memcpy(to + at, part, sizeof(float) * (size_t)Q_MIN(some, n - at));
    }
}

void q_ref_kv_key(const q_kv_form *f, const uint8_t *keys, int64_t row, int64_t n, float *to) {
    const int32_t cell = q_kv_cell(f);
    get_row(f, keys + row * cell, (int64_t)cell * Q_KV_TOKENS, n, to);
}
void q_ref_kv_value(const q_kv_form *f, const uint8_t *values, int64_t row, int64_t n, float *to) {
    get_row(f, values + row * f->bytes, q_kv_cell(f), n, to);
}

void q_ref_kv_put(const q_inst *s, const q_exec *e, int64_t begin, int64_t end) {
    const q_kv_pool *pool = &e->plan->kv[s->kv_group];
    uint8_t *base = e->kv[s->kv_group];
    for (int64_t u = begin; u < end; u++) {
        const int64_t c = u / pool->heads, row = e->batch->pos[c] % Q_KV_TOKENS;
        const int32_t h = (int32_t)(u % pool->heads);
        const uint32_t page = e->batch->seqs[e->batch->seq[c]].pages[s->kv_group][e->batch->pos[c] / Q_KV_TOKENS];
        q_ref_kv_put_row(&pool->k, &pool->v, row, q_ref_at(e, &s->x, c, h),
                         pool->v.width ? q_ref_at(e, &s->z, c, h) : NULL, q_kv_k(pool, base, page, s->kv_layer, h),
                         q_kv_v(pool, base, page, s->kv_layer, h));
    }
}

/* --------------------------------------------------------------------------------------------------- attention */

/* The running softmax of one query head, and the part of a block of keys. */
typedef struct attn_state {
    float m, l;  /* largest score so far, sum of exp(score - m) */
    float *acc;  /* [width] weighted values */
    float *part; /* [width] those of the block */
    float *k, *v; /* [Q_ATTN_KEYS][k width], [Q_ATTN_KEYS][width]: its keys and values, by position in the block */
    float *q;     /* [k width] the query, where keys are turned */
} attn_state;

static void lay_out(attn_state *t, const q_inst *s, q_ref_carve *carve) {
    t->acc = q_ref_take(carve, s->y.width, sizeof(float));
    t->part = q_ref_take(carve, s->y.width, sizeof(float));
    t->k = q_ref_take(carve, (int64_t)Q_ATTN_KEYS * s->x.width, sizeof(float));
    t->v = q_ref_take(carve, (int64_t)Q_ATTN_KEYS * s->y.width, sizeof(float));
    t->q = q_ref_take(carve, s->x.width, sizeof(float));
}

size_t q_ref_attn_scratch(const q_inst *s) {
    attn_state t;
    q_ref_carve carve = {NULL, 0};
    lay_out(&t, s, &carve);
    return carve.used;
}

float q_ref_alibi_slope(const q_inst *s, int64_t h) {
    int64_t n = 1;
    while (2 * n <= s->x.heads) n *= 2;
    const float a = s->alpha != 0 ? s->alpha : 8.0f;
    if (h < n) return exp2f(-a * (float)(h + 1) / (float)n);
    return exp2f(-a * (float)(2 * (h - n) + 1) / (float)(2 * n));
}

/* Bring in a part with largest score m and sum l; its values are part, NULL = none. */
static void merge(attn_state *t, float m, float l, const float *part, int64_t width) {
    const float top = m > t->m ? m : t->m, a = expf(t->m - top), b = expf(m - top);
    t->l = fmaf(l, b, t->l * a);
    for (int64_t i = 0; i < width; i++) t->acc[i] = part ? fmaf(part[i], b, t->acc[i] * a) : t->acc[i] * a;
    t->m = top;
}

/* The keys of a block in t->k and t->v that have a score; the block begins at position `at`, the query is at pos. */
static void block(attn_state *t, const q_inst *s, const bool *in, const float *q, int64_t h, int64_t at, int64_t pos) {
    float score[Q_ATTN_KEYS], lane[Q_REF_LANES] = {0}, m = -INFINITY;
    const float bias = s->kind == Q_ATTN_ALIBI ? q_ref_alibi_slope(s, h) : 0;
    for (int64_t j = 0; j < Q_ATTN_KEYS; j++) {
        if (!in[j]) continue;
        score[j] = 0;
        for (int64_t i = 0; i < s->x.width; i++) score[j] = fmaf(q[i], t->k[j * s->x.width + i], score[j]);
        score[j] = q_ref_softcap(q_ref_or1(s->scale) * score[j], s->softcap);
        if (s->kind == Q_ATTN_ALIBI) score[j] -= bias * fabsf((float)(at + j - pos));
        if (score[j] > m) m = score[j];
    }
    for (int64_t i = 0; i < s->y.width; i++) t->part[i] = 0;
    for (int64_t j = 0; j < Q_ATTN_KEYS; j++) {
        if (!in[j]) continue;
        const float p = expf(score[j] - m);
        lane[j % Q_REF_LANES] += p;
        for (int64_t i = 0; i < s->y.width; i++) t->part[i] = fmaf(p, t->v[j * s->y.width + i], t->part[i]);
    }
    merge(t, m, q_ref_fold(lane), t->part, s->y.width);
}

/* Keys and values of position p, as number j of the block. */
static void load_key(attn_state *t, const q_inst *s, const q_exec *e, const uint32_t *pages, int64_t p, int32_t kv) {
    const q_kv_pool *pool = &e->plan->kv[s->kv_group];
    const uint32_t page = pages[p / Q_KV_TOKENS];
    const int64_t row = p % Q_KV_TOKENS, j = p % Q_ATTN_KEYS;
    const uint8_t *k = q_kv_k(pool, e->kv[s->kv_group], page, s->kv_layer, kv);
    const uint8_t *v = q_kv_v(pool, e->kv[s->kv_group], page, s->kv_layer, kv);
    q_ref_kv_key(&pool->k, k, row, s->x.width, t->k + j * s->x.width);
    if (pool->v.width == 0) q_ref_kv_key(&pool->k, k, row, s->y.width, t->v + j * s->y.width);
    else q_ref_kv_value(&pool->v, v, row, s->y.width, t->v + j * s->y.width);
}

/* The keys at positions [from, to), for head h of column c, whose query is in t->q. */
static void over_span(attn_state *t, const q_inst *s, const q_exec *e, int64_t c, int64_t h, int64_t from, int64_t to) {
    const int32_t kv = (int32_t)(h / (s->x.heads / e->plan->kv[s->kv_group].heads));
    const uint32_t *pages = e->batch->seqs[e->batch->seq[c]].pages[s->kv_group];
    for (int64_t at = from / Q_ATTN_KEYS * Q_ATTN_KEYS; at < to; at += Q_ATTN_KEYS) {
        bool in[Q_ATTN_KEYS] = {false};
        for (int64_t p = Q_MAX(at, from); p < to && p < at + Q_ATTN_KEYS; p++) {
            load_key(t, s, e, pages, p, kv);
            in[p - at] = true;
        }
        block(t, s, in, t->q, h, at, e->batch->pos[c]);
    }
}

static void over_pages(attn_state *t, const q_inst *s, const q_exec *e, const float *q, int64_t c, int64_t h) {
    const int64_t pos = e->batch->pos[c];
    const q_ref_sight sees = q_ref_sees(s, pos);
    memcpy(t->q, q, sizeof(float) * (size_t)s->x.width);
    q_ref_turn(t->q, s->x.width, e->plan->kv[s->kv_group].k.turn);
    over_span(t, s, e, c, h, 0, sees.sinks);
    over_span(t, s, e, c, h, sees.first, pos + 1);
}

static void over_columns(attn_state *t, const q_inst *s, const q_exec *e, const float *q, int64_t c, int64_t h) {
    const q_batch *b = e->batch;
    const q_view *values = s->v.slot ? &s->v : &s->z;
    const int64_t kv = h / (s->x.heads / s->z.heads);
    int64_t n = c;
    while (n > 0 && b->seq[n - 1] == b->seq[c]) n--;
    while (n < b->n && b->seq[n] == b->seq[c]) {
        const int64_t at = b->pos[n] / Q_ATTN_KEYS * Q_ATTN_KEYS;
        bool in[Q_ATTN_KEYS] = {false};
        for (; n < b->n && b->seq[n] == b->seq[c] && b->pos[n] < at + Q_ATTN_KEYS; n++) {
            const int64_t j = b->pos[n] - at;
            memcpy(t->k + j * s->x.width, q_ref_at(e, &s->z, n, kv), sizeof(float) * (size_t)s->x.width);
            memcpy(t->v + j * s->y.width, q_ref_at(e, values, n, kv), sizeof(float) * (size_t)s->y.width);
            in[j] = true;
        }
        block(t, s, in, q, h, at, b->pos[c]);
    }
}

void q_ref_attn(const q_inst *s, const q_exec *e, int64_t begin, int64_t end) {
    attn_state t;
    q_ref_carve carve = {e->scratch, 0};
    lay_out(&t, s, &carve);
    for (int64_t u = begin; u < end; u++) {
        const int64_t c = u / s->x.heads, h = u % s->x.heads;
        const float *q = q_ref_at(e, &s->x, c, h);
        t.m = -INFINITY;
        t.l = 0;
        for (int64_t i = 0; i < s->y.width; i++) t.acc[i] = 0;
        if (s->z.slot) over_columns(&t, s, e, q, c, h);
        else over_pages(&t, s, e, q, c, h);
        if (s->w) merge(&t, q_ref_value(s->w, 0, h), 1.0f, NULL, s->y.width);
        float *y = q_ref_at(e, &s->y, c, h);
        const float r = 1.0f / t.l;
        for (int64_t i = 0; i < s->y.width; i++) y[i] = t.acc[i] * r;
        if (!s->z.slot) q_ref_turn(y, s->y.width, q_kv_v_form(&e->plan->kv[s->kv_group])->turn);
    }
}
