/* ref_attn.c: KV_PUT and ATTN, paged and over the columns of the batch. A page table covers every position that a
 * column may see: nothing is checked here. Layer L2. */
#include "ref.h"

static void store(const float *x, int64_t n, int32_t value_bytes, uint8_t *to) {
    if (value_bytes == 4) memcpy(to, x, sizeof(float) * (size_t)n);
    else
        for (int64_t i = 0; i < n; i++) q_store16(to + 2 * i, q_f32_to_half(x[i]));
}

void q_ref_kv_put(const q_inst *s, const q_exec *e, int64_t begin, int64_t end) {
    const q_kv_pool *pool = &e->plan->kv[s->kv_group];
    for (int64_t u = begin; u < end; u++) {
        const int64_t c = u / pool->heads, row = e->batch->pos[c] % Q_KV_TOKENS;
        const int32_t h = (int32_t)(u % pool->heads);
        const uint32_t page = e->batch->seqs[e->batch->seq[c]].pages[s->kv_group][e->batch->pos[c] / Q_KV_TOKENS];
        uint8_t *to = q_kv_k(pool, e->kv[s->kv_group], page, s->kv_layer, h);
        store(q_ref_at(e, &s->x, c, h), pool->k_width, pool->value_bytes, to + row * pool->k_width * pool->value_bytes);
        if (pool->v_width == 0) continue;
        to = q_kv_v(pool, e->kv[s->kv_group], page, s->kv_layer, h);
        store(q_ref_at(e, &s->z, c, h), pool->v_width, pool->value_bytes, to + row * pool->v_width * pool->value_bytes);
    }
}

/* The running softmax of one query head. */
typedef struct attn_state {
    float m, l;  /* largest score so far, sum of exp(score - m) */
    float *acc;  /* [width] weighted values */
    float *part; /* [width] those of the current block */
    float *k, *v; /* [Q_KV_TOKENS][k width], [Q_KV_TOKENS][width]: keys and values of a block as float32 */
} attn_state;

static void lay_out(attn_state *t, const q_inst *s, q_ref_carve *carve) {
    t->acc = q_ref_take(carve, s->y.width, sizeof(float));
    t->part = q_ref_take(carve, s->y.width, sizeof(float));
    t->k = q_ref_take(carve, (int64_t)Q_KV_TOKENS * s->x.width, sizeof(float));
    t->v = q_ref_take(carve, (int64_t)Q_KV_TOKENS * s->y.width, sizeof(float));
}

size_t q_ref_attn_scratch(const q_inst *s) {
    attn_state t;
    q_ref_carve carve = {NULL, 0};
    lay_out(&t, s, &carve);
    return carve.used;
}

static float slope(const q_inst *s, int64_t h) {
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

/* Keys 0 .. n-1 of a block, already in t->k and t->v; the first has position key, the query position pos. */
static void block(attn_state *t, const q_inst *s, const float *q, int64_t h, int64_t n, int64_t key, int64_t pos) {
    float score[Q_KV_TOKENS] = {0}, m = -INFINITY, l = 0;
    const float bias = s->kind == Q_ATTN_ALIBI ? slope(s, h) : 0;
    for (int64_t j = 0; j < n; j++) {
        score[j] = q_ref_softcap(q_ref_or1(s->scale) * q_ref_dot(q, t->k + j * s->x.width, s->x.width), s->softcap);
        if (s->kind == Q_ATTN_ALIBI) score[j] -= bias * fabsf((float)(key + j - pos));
        if (score[j] > m) m = score[j];
    }
    for (int64_t i = 0; i < s->y.width; i++) t->part[i] = 0;
    for (int64_t j = 0; j < n; j++) {
        const float p = expf(score[j] - m);
        l += p;
        for (int64_t i = 0; i < s->y.width; i++) t->part[i] = fmaf(p, t->v[j * s->y.width + i], t->part[i]);
    }
    merge(t, m, l, t->part, s->y.width);
}

static void widen(const uint8_t *from, int64_t n, int32_t value_bytes, float *to) {
    if (value_bytes == 4) memcpy(to, from, sizeof(float) * (size_t)n);
    else
        for (int64_t i = 0; i < n; i++) to[i] = q_half_to_f32(q_load16(from + 2 * i));
}

static void over_pages(attn_state *t, const q_inst *s, const q_exec *e, const float *q, int64_t c, int64_t h) {
    const q_kv_pool *pool = &e->plan->kv[s->kv_group];
    const int64_t pos = e->batch->pos[c], first = s->window > 0 && pos >= s->window ? pos - s->window + 1 : 0;
    const int32_t kv = (int32_t)(h / (s->x.heads / pool->heads)), vw = pool->v_width ? pool->v_width : pool->k_width;
    const uint32_t *pages = e->batch->seqs[e->batch->seq[c]].pages[s->kv_group];
    for (int64_t at = first; at <= pos;) {
        const int64_t row = at % Q_KV_TOKENS, n = Q_MIN(Q_KV_TOKENS - row, pos + 1 - at);
        const uint32_t page = pages[at / Q_KV_TOKENS];
        const int32_t bytes = pool->value_bytes;
        const uint8_t *k = q_kv_k(pool, e->kv[s->kv_group], page, s->kv_layer, kv) + row * pool->k_width * bytes;
        const uint8_t *v = q_kv_v(pool, e->kv[s->kv_group], page, s->kv_layer, kv) + row * vw * bytes;
        for (int64_t j = 0; j < n; j++) {
            widen(k + j * pool->k_width * bytes, s->x.width, bytes, t->k + j * s->x.width);
            widen(v + j * vw * bytes, s->y.width, bytes, t->v + j * s->y.width);
        }
        block(t, s, q, h, n, at, pos);
        at += n;
    }
}

static void over_columns(attn_state *t, const q_inst *s, const q_exec *e, const float *q, int64_t c, int64_t h) {
    const q_batch *b = e->batch;
    const q_view *values = s->v.slot ? &s->v : &s->z;
    const int64_t kv = h / (s->x.heads / s->z.heads);
    int64_t at = c;
    while (at > 0 && b->seq[at - 1] == b->seq[c]) at--;
    while (at < b->n && b->seq[at] == b->seq[c]) {
        const int64_t key = b->pos[at];
        int64_t n = 0;
        for (; at < b->n && n < Q_KV_TOKENS && b->seq[at] == b->seq[c]; at++, n++) {
            if (b->pos[at] / Q_KV_TOKENS != key / Q_KV_TOKENS) break;
            memcpy(t->k + n * s->x.width, q_ref_at(e, &s->z, at, kv), sizeof(float) * (size_t)s->x.width);
            memcpy(t->v + n * s->y.width, q_ref_at(e, values, at, kv), sizeof(float) * (size_t)s->y.width);
        }
        block(t, s, q, h, n, key, b->pos[c]);
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
    }
}
