/* attn_neon.c: attention over pages of binary16 or float32. Query heads that read the same KV head, of several columns,
 * go through the pages together: each block of keys and values is widened once for all of them.
 *
 * A query's own arithmetic never depends on its company: blocks lie at absolute positions, a key that the query may not
 * see has no term, and scores, weights and values are summed as op.h says. Only the exponential differs from
 * kernels/ref (q_exp4). Layer L2. */
#include "neon.h"

enum { MOST_COLUMNS = 8, MOST_QUERIES = 64 };

bool q_attn_paged__neon_accepts(const q_inst *s) {
    return s->kind == Q_ATTN_CAUSAL && !s->z.slot && s->x.width % 16 == 0 && s->y.width % 4 == 0;
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

uint64_t q_attn_paged__neon_scratch(const q_inst *s, int32_t columns) {
    Q_UNUSED(columns);
    tile t;
    q_ref_carve carve = {NULL, 0};
    lay_out(&t, s, &carve);
    return carve.used;
}

/* n stored values; n is a multiple of 4. */
Q_NEON_INLINE void widen(const uint8_t *from, int64_t n, int32_t value_bytes, float *to) {
    if (value_bytes == 4) {
        memcpy(to, from, sizeof(float) * (size_t)n);
        return;
    }
    for (int64_t i = 0; i < n; i += 4) vst1q_f32(to + i, q_widen4(from + 2 * i));
}

/* The products of four keys. */
Q_NEON_INLINE float32x4_t four_keys(const float *q, const float *k, int64_t width) {
    float32x4_t acc[4][4], left[4];
    Q_UNROLL for (int j = 0; j < 16; j++) acc[j / 4][j % 4] = vdupq_n_f32(0);
    for (int64_t i = 0; i < width; i += 16) {
        Q_UNROLL for (int l = 0; l < 4; l++) {
            const float32x4_t a = vld1q_f32(q + i + 4 * l);
            Q_UNROLL for (int j = 0; j < 4; j++)
                acc[j][l] = vfmaq_f32(acc[j][l], a, vld1q_f32(k + j * width + i + 4 * l));
        }
    }
    Q_UNROLL for (int j = 0; j < 4; j++) left[j] = q_fold16(acc[j]);
    return q_fold4(left);
}

/* Lanes j .. j + 3 that lie in [from, to). */
Q_NEON_INLINE uint32x4_t lanes_in(int32_t j, int32_t from, int32_t to) {
    static const int32_t count[4] = {0, 1, 2, 3};
    const int32x4_t i = vaddq_s32(vdupq_n_s32(j), vld1q_s32(count));
    return vandq_u32(vcgeq_s32(i, vdupq_n_s32(from)), vcltq_s32(i, vdupq_n_s32(to)));
}

/* Scores of keys [from, to) of the block, and their maximum; all of score[] is written, -infinity where there is no
 * key. */
Q_NEON_INLINE float scores(const q_inst *s, const query *q, const float *k, int32_t from, int32_t to, float *score) {
    const float32x4_t scale = vdupq_n_f32(q_ref_or1(s->scale)), none = vdupq_n_f32(-INFINITY);
    float32x4_t top = none;
    for (int32_t j = 0; j < Q_KV_TOKENS; j += 4) {
        float32x4_t v = none;
        if (j < to && j + 4 > from) {
            v = vmulq_f32(scale, four_keys(q->q, k + j * s->x.width, s->x.width));
            if (s->softcap != 0) {
                float t[4];
                vst1q_f32(t, v);
                for (int i = 0; i < 4; i++) t[i] = q_ref_softcap(t[i], s->softcap);
                v = vld1q_f32(t);
            }
            v = vbslq_f32(lanes_in(j, from, to), v, none);
        }
        top = vmaxnmq_f32(top, v); /* a NaN is passed over here, and shows in the sums */
        vst1q_f32(score + j, v);
    }
    return vmaxnmvq_f32(top);
}

/* Factors exp(a - top), exp(b - top) of a merge. */
Q_NEON_INLINE void factors(float a, float b, float top, float *fa, float *fb) {
    const float32x4_t e = q_exp4(vsetq_lane_f32(b - top, vdupq_n_f32(a - top), 1));
    *fa = vgetq_lane_f32(e, 0);
    *fb = vgetq_lane_f32(e, 1);
}

/* V registers of values at offset d: the block's weighted sum, merged into acc as acc * a + sum * b. */
Q_NEON_INLINE void values(int V, const float *p, const float *v, int64_t width, int32_t from, int32_t to, float a,
                          float b, float *acc) {
    float32x4_t part[16];
    Q_UNROLL for (int i = 0; i < V; i++) part[i] = vdupq_n_f32(0);
    for (int32_t j = from; j < to; j++) {
        const float32x4_t w = vdupq_n_f32(p[j]);
        Q_UNROLL for (int i = 0; i < V; i++) part[i] = vfmaq_f32(part[i], w, vld1q_f32(v + j * width + 4 * i));
    }
    Q_UNROLL for (int i = 0; i < V; i++)
        vst1q_f32(acc + 4 * i, vfmaq_n_f32(vmulq_n_f32(vld1q_f32(acc + 4 * i), a), part[i], b));
}

/* Keys [from, to) of the block in t for one query. */
Q_NEON_INLINE void take_block(const q_inst *s, const tile *t, query *q, int32_t from, int32_t to) {
    float p[Q_KV_TOKENS], a, b, l = 0;
    const float m = scores(s, q, t->k, from, to, p), top = m > q->m ? m : q->m;
    for (int32_t j = 0; j < Q_KV_TOKENS; j += 4)
        vst1q_f32(p + j, q_exp4(vsubq_f32(vld1q_f32(p + j), vdupq_n_f32(m))));
    for (int32_t j = from; j < to; j++) l += p[j];
    factors(q->m, m, top, &a, &b);
    q->l = fmaf(l, b, q->l * a);
    q->m = top;
    const int64_t width = s->y.width;
    int64_t d = 0;
    for (; d + 64 <= width; d += 64) values(16, p, t->v + d, width, from, to, a, b, q->acc + d);
    for (; d < width; d += 4) values(1, p, t->v + d, width, from, to, a, b, q->acc + d);
}

/* The queries of t, all reading KV head kv of one sequence. */
static void attend(const q_inst *s, const q_exec *e, const tile *t, int32_t n, int32_t kv,
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
            widen(k + j * k_row, s->x.width, bytes, t->k + j * s->x.width);
            widen(v + j * v_row, s->y.width, bytes, t->v + j * s->y.width);
        }
        for (int32_t i = 0; i < n; i++) {
            query *q = &t->queries[i];
            const int32_t from = Q_MAX(q->first - at, 0), to = Q_MIN(q->pos + 1 - at, (int32_t)Q_KV_TOKENS);
            if (from < to) take_block(s, t, q, from, to);
        }
    }
}

static void finish(const q_inst *s, query *q) {
    float a = 1.0f;
    if (s->w) { /* a learned sink: a block of sum 1 without values */
        const float sink = q_ref_value(s->w, 0, q->head), top = sink > q->m ? sink : q->m;
        float b;
        factors(q->m, sink, top, &a, &b);
        q->l = fmaf(1.0f, b, q->l * a);
    }
    const float r = 1.0f / q->l;
    for (int64_t d = 0; d < s->y.width; d += 4)
        vst1q_f32(q->y + d, vmulq_n_f32(vmulq_n_f32(vld1q_f32(q->acc + d), a), r));
}

/* Heads [h0, h1), which share KV head kv, of columns [c0, c1), which share a sequence. */
static void heads(const q_inst *s, const q_exec *e, tile *t, int64_t c0, int64_t c1, int32_t h0, int32_t h1,
                  int32_t kv) {
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
            attend(s, e, t, n, kv, pages);
            for (int32_t i = 0; i < n; i++) finish(s, &t->queries[i]);
            n = 0;
        }
    }
}

void q_attn_paged__neon(const q_inst *s, const q_exec *e, int64_t begin, int64_t end) {
    tile t;
    q_ref_carve carve = {e->scratch, 0};
    lay_out(&t, s, &carve);
    const int32_t all = s->x.heads, share = all / e->plan->kv[s->kv_group].heads;
    for (int64_t u = begin; u < end;) {
        const int64_t c = u / all;
        const int32_t h = (int32_t)(u % all);
        if (h != 0 || end - u < all) { /* part of a column: up to the end of its KV head, or of the range */
            const int32_t kv = h / share, to = (int32_t)Q_MIN((int64_t)(kv + 1) * share, h + (end - u));
            heads(s, e, &t, c, c + 1, h, to, kv);
            u += to - h;
            continue;
        }
        int64_t c1 = c + 1;
        while (c1 < end / all && c1 - c < MOST_COLUMNS && e->batch->seq[c1] == e->batch->seq[c]) c1++;
        for (int32_t kv = 0; kv * share < all; kv++) heads(s, e, &t, c, c1, kv * share, (kv + 1) * share, kv);
        u = c1 * all;
    }
}
