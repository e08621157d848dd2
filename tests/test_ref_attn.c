/* test_ref_attn.c: the reference's pages and attention, routing and experts against double-precision computations
 * written here from op.h. See test_ref.c for how each is run. */
#include <math.h>

#include "help_kv.h"
#include "help_ref.h"

/* ------------------------------------------------------------------------------------------------------ attention */

enum { KV_HEADS = 2, LAYERS = 2, KW = 24, VW = 20, PAST = 75, FRESH = 9, PAGES = 8 };

/* A stage with one pool of pages in a scrambled order, and K and V of positions 0 .. PAST + FRESH - 1 in layer 1, put
 * there by KV_PUT in two batches. Slots: 1 = q, 2 = y, 3 = k, 4 = v. */
typedef struct attn_fx {
    fx t;
    q_kv_pool pool;
    uint32_t page[3];
    const uint32_t *tables[1];
    int32_t pos[PAST + FRESH], seq[PAST + FRESH];
    float *k, *v; /* [position][KV_HEADS * width] */
    int heads, kw, vw;
} attn_fx;

static void put(attn_fx *a, int32_t first, int32_t n) {
    fx *t = &a->t;
    q_inst s = {.op = Q_OP_KV_PUT, .x = {3, 0, KV_HEADS, a->kw, a->kw}, .z = {4, 0, KV_HEADS, a->vw, a->vw},
                .kv_layer = 1};
    if (a->pool.v.width == 0) s.z = (q_view){0};
    t->batch.pos = a->pos + first, t->batch.n = n;
    t->slots[3] += first * t->width[3], t->slots[4] += first * t->width[4];
    fx_run(t, &s);
    t->slots[3] -= first * t->width[3], t->slots[4] -= first * t->width[4];
}

static void attn_init(attn_fx *a, int heads, bool latent) {
    memset(a, 0, sizeof *a);
    a->heads = heads, a->kw = KW, a->vw = latent ? 16 : VW;
    const int n = PAST + FRESH;
    fx_init(&a->t, n, (const int32_t[]){heads * a->kw, heads * a->vw, KV_HEADS * a->kw, KV_HEADS * a->vw}, 4);
    fx *t = &a->t;
    for (int c = 0; c < n; c++) a->pos[c] = c;
    a->pool = (q_kv_pool){.layers = LAYERS, .heads = KV_HEADS, .pages = PAGES};
    t_kv_forms(&a->pool, "f16", a->kw, latent ? 0 : a->vw);
    t->pool_bytes = PAGES * a->pool.page_bytes;
    t->pools[0] = malloc(t->pool_bytes);
    memset(t->pools[0], 0x7E, t->pool_bytes); /* NaN wherever nothing was put */
    a->page[0] = 5, a->page[1] = 0, a->page[2] = 7;
    a->tables[0] = a->page;
    t->plan.kv = &a->pool, t->plan.n_kv = 1;
    t->seqs[0].pages = a->tables;
    put(a, 0, PAST);
    put(a, PAST, FRESH);
    a->k = t->slots[3], a->v = t->slots[4];
    t->batch.n = FRESH, t->batch.pos = a->pos + PAST, t->batch.seq = a->seq;
}

static double rounded(float x) { return q_half_to_f32(q_f32_to_half(x)); }

static double slope_want(int h, int heads, double a) {
    int n = 1;
    while (n * 2 <= heads) n *= 2;
    return h < n ? pow(2, -a * (h + 1) / n) : pow(2, -a * (2 * (h - n) + 1) / (2 * n));
}

/* softmax over keys [from, to] of one query, and those before that are sinks; half = K and V went through pages. */
static void attn_want(attn_fx *a, const q_inst *s, const float *q, int h, int pos, int from, int to, bool half,
                      bool prefix, double *y) {
    const int begin = half ? 0 : from;
    double score[PAST + FRESH], sum = 0;
    const int kv = h / (a->heads / KV_HEADS);
    const double sink = s->w ? fx_row(&a->t, s->w, 0, 0)[h] : -INFINITY;
    double top = sink;
    for (int p = begin; p <= to; p++) {
        if (p < from && p >= s->sink_tokens) continue;
        score[p] = 0;
        for (int i = 0; i < a->kw; i++) {
            const float k = a->k[p * KV_HEADS * a->kw + kv * a->kw + i];
            score[p] += q[i] * (half ? rounded(k) : k);
        }
        score[p] *= s->scale;
        if (s->softcap != 0) score[p] = s->softcap * tanh(score[p] / s->softcap);
        if (s->kind == Q_ATTN_ALIBI) score[p] -= slope_want(h, a->heads, s->alpha != 0 ? s->alpha : 8) * abs(p - pos);
        top = fmax(top, score[p]);
    }
    for (int i = 0; i < a->vw; i++) y[i] = 0;
    for (int p = begin; p <= to; p++) {
        if (p < from && p >= s->sink_tokens) continue;
        const double e = exp(score[p] - top);
        sum += e;
        for (int i = 0; i < a->vw; i++) {
            const float v = prefix ? a->k[(p * KV_HEADS + kv) * a->kw + i] : a->v[(p * KV_HEADS + kv) * a->vw + i];
            y[i] += e * (half ? rounded(v) : v);
        }
    }
    sum += exp(sink - top);
    for (int i = 0; i < a->vw; i++) y[i] /= sum;
}

START_TEST(kv_pages) {
    for (int latent = 0; latent < 2; latent++) {
        attn_fx a;
        attn_init(&a, 4, latent);
        const uint8_t *page = a.t.pools[0] + 7 * a.pool.page_bytes; /* position 70 = row 6 of the third page */
        const uint8_t *k = page + a.pool.layer_bytes + (1 * Q_KV_TOKENS * a.kw + 6) * 2;
        for (int i = 0; i < a.kw; i++)
            ck_assert_uint_eq(q_load16(k + 2 * Q_KV_TOKENS * i), q_f32_to_half(a.k[70 * KV_HEADS * a.kw + a.kw + i]));
        const uint8_t *v = page + a.pool.layer_bytes + KV_HEADS * Q_KV_TOKENS * a.kw * 2 + 6 * a.vw * 2;
        for (int i = 0; !latent && i < a.vw; i++)
            ck_assert_uint_eq(q_load16(v + 2 * i), q_f32_to_half(a.v[70 * KV_HEADS * a.vw + i]));
        for (uint64_t i = 0; i < a.pool.layer_bytes; i++) ck_assert_uint_eq(page[i], 0x7E); /* layer 0: not touched */
        fx_free(&a.t);
    }
}
END_TEST

/* Every combination of window, soft cap, ALiBi, learned sinks and latent values, with grouped heads, and of the windows
 * with sinks before them: in the same page, in another one, and such that some queries' windows reach them. */
START_TEST(attn_options) {
    for (int mask = 0; mask < 32; mask++)
        for (int heads = 4; heads <= 6; heads += 2) {
            attn_fx a;
            attn_init(&a, heads, (mask & 16) != 0);
            q_inst s = {.op = Q_OP_ATTN, .x = {1, 0, heads, a.kw, a.kw}, .y = {2, 0, heads, a.vw, a.vw}, .kv_layer = 1,
                        .scale = 0.3f};
            if (mask & 1) s.window = 37;
            s.sink_tokens = (int32_t[]){0, 5, 34, 43}[(mask / 2 + mask / 8 + heads / 2) % 4];
            if (mask & 2) s.softcap = 2.0f;
            if (mask & 4) s.kind = Q_ATTN_ALIBI, s.alpha = heads == 6 ? 4.0f : 0;
            if (mask & 8) s.w = fx_weight(&a.t, "f32", 1, heads, 1);
            ck_assert_int_eq(q_op_units(&s, FRESH, 0), FRESH * heads);
            fx_run(&a.t, &s);
            for (int c = 0; c < FRESH; c++)
                for (int h = 0; h < heads; h++) {
                    const int pos = PAST + c;
                    double want[KW];
                    attn_want(&a, &s, a.t.old[1] + (c * heads + h) * a.kw, h, pos, mask & 1 ? pos - 36 : 0, pos, true,
                              (mask & 16) != 0, want);
                    for (int i = 0; i < a.vw; i++) ck_near(*fx_at(&a.t, &s.y, c, h, i), want[i], 1e-5);
                }
            fx_free(&a.t);
        }
}
END_TEST

/* A token gets the same bits alone and in a batch with others. */
START_TEST(attn_batch_independent) {
    attn_fx a;
    attn_init(&a, 4, false);
    q_inst s = {.op = Q_OP_ATTN, .x = {1, 0, 4, KW, KW}, .y = {2, 0, 4, VW, VW}, .kv_layer = 1, .scale = 0.2f};
    fx_run(&a.t, &s);
    float last[4 * VW];
    memcpy(last, a.t.slots[2] + (FRESH - 1) * 4 * VW, sizeof last);
    memcpy(a.t.slots[1], a.t.slots[1] + (FRESH - 1) * 4 * KW, 4 * KW * sizeof(float));
    a.t.batch.n = 1, a.t.batch.pos = a.pos + PAST + FRESH - 1;
    fx_run(&a.t, &s);
    ck_assert_mem_eq(a.t.slots[2], last, sizeof last);
    fx_free(&a.t);
}
END_TEST

/* Without pages: two sequences in one batch see all of themselves and nothing of one another. */
START_TEST(attn_over_columns) {
    enum { heads = 4, n = PAST + FRESH, cut = 40 };
    for (int mask = 0; mask < 8; mask++) {
        attn_fx a;
        attn_init(&a, heads, (mask & 4) != 0);
        a.t.plan.n_kv = 0;
        for (int c = 0; c < n; c++) a.seq[c] = c >= cut, a.pos[c] = c >= cut ? c - cut : c;
        a.t.batch.n = n, a.t.batch.pos = a.pos, a.t.batch.seq = a.seq;
        q_inst s = {.op = Q_OP_ATTN, .x = {1, 0, heads, KW, KW}, .y = {2, 0, heads, a.vw, a.vw},
                    .z = {3, 0, KV_HEADS, KW, KW}, .v = {4, 0, KV_HEADS, a.vw, a.vw}, .scale = 0.3f};
        if (mask & 1) s.kind = Q_ATTN_ALIBI;
        if (mask & 2) s.softcap = 2.0f;
        if (mask & 4) s.v = (q_view){0};
        fx_run(&a.t, &s);
        for (int c = 0; c < n; c += 3)
            for (int h = 0; h < heads; h++) {
                double want[KW];
                attn_want(&a, &s, a.t.old[1] + (c * heads + h) * KW, h, c, c >= cut ? cut : 0,
                          c >= cut ? n - 1 : cut - 1, false, (mask & 4) != 0, want);
                for (int i = 0; i < a.vw; i++) ck_near(*fx_at(&a.t, &s.y, c, h, i), want[i], 1e-5);
            }
        fx_free(&a.t);
    }
}
END_TEST

/* -------------------------------------------------------------------------------------------------------- routing */

/* A router whose logits are its input: w is the identity. */
static void route_logits(fx *t, q_inst *s, int n_expert, int n_used, const float *logits, int n) {
    float *eye = calloc((size_t)(n_expert * n_expert), sizeof(float));
    fx_init(t, n, (const int32_t[]){n_expert, 2 * n_used}, 2);
    memcpy(t->slots[1], logits, sizeof(float) * (size_t)(n * n_expert));
    for (int i = 0; i < n_expert; i++) eye[i * n_expert + i] = 1;
    *s = (q_inst){.op = Q_OP_ROUTE, .x = fx_view(1, 0, 1, n_expert), .y = fx_view(2, 0, 1, 2 * n_used),
                  .n_expert = n_expert, .n_used = n_used};
    q_weight *w = fx_weight(t, "f32", n_expert, n_expert, 1);
    memcpy((void *)(uintptr_t)w->data, eye, sizeof(float) * (size_t)(n_expert * n_expert));
    s->w = w;
    free(eye);
}

static void vector_of(q_weight *w, const float *v) {
    memcpy((void *)(uintptr_t)w->data, v, sizeof(float) * (size_t)w->k);
}

START_TEST(route_kinds) {
    const float logits[2 * 5] = {1, 3, 2, -1, 0.5f, 0, 0, -2, 0, 0}; /* the second: ties */
    const int ids[2][3] = {{1, 2, 0}, {0, 1, 3}};
    for (int kind = Q_ROUTE_SOFTMAX; kind <= Q_ROUTE_SIGMOID; kind++)
        for (int mask = 0; mask < 4; mask++) {
            fx t;
            q_inst s;
            route_logits(&t, &s, 5, 3, logits, 2);
            s.kind = (uint8_t)kind, s.renorm = (mask & 1) != 0, s.scale = mask & 2 ? 2.5f : 0;
            fx_run(&t, &s);
            for (int c = 0; c < 2; c++) {
                double w[3], all = 0, chosen = 0, sum = 0;
                for (int i = 0; i < 5; i++) all += exp(logits[5 * c + i]);
                for (int i = 0; i < 3; i++) chosen += exp(logits[5 * c + ids[c][i]]);
                for (int i = 0; i < 3; i++) {
                    const double l = logits[5 * c + ids[c][i]];
                    w[i] = kind == Q_ROUTE_SOFTMAX ? exp(l) / all : kind == Q_ROUTE_SOFTMAX_TOP ? exp(l) / chosen
                                                                                                : 1 / (1 + exp(-l));
                    sum += w[i];
                }
                for (int i = 0; i < 3; i++) {
                    ck_assert_float_eq(t.slots[2][6 * c + i], (float)ids[c][i]);
                    ck_near(t.slots[2][6 * c + 3 + i], w[i] / (mask & 1 ? sum : 1) * (mask & 2 ? 2.5 : 1), 1e-6);
                }
            }
            fx_free(&t);
        }
}
END_TEST

/* A selection bias moves the choice and not the weights; a router bias moves both. */
START_TEST(route_biases) {
    const float logits[4] = {0, 1, 2, 3}, b2[4] = {1, 0, 0, -1}, b[4] = {10, 0, 0, 0};
    fx t;
    q_inst s;
    route_logits(&t, &s, 4, 2, logits, 1);
    s.kind = Q_ROUTE_SIGMOID;
    q_weight *w2 = fx_weight(&t, "f32", 1, 4, 1), *w1 = fx_weight(&t, "f32", 1, 4, 1);
    vector_of(w2, b2), vector_of(w1, b);
    s.b2 = w2;
    fx_run(&t, &s); /* 0.5 + 1, 0.73, 0.88, 0.95 - 1 */
    ck_assert(t.slots[2][0] == 0 && t.slots[2][1] == 2);
    ck_near(t.slots[2][2], 0.5, 1e-6);
    ck_near(t.slots[2][3], 1 / (1 + exp(-2)), 1e-6);
    s.b2 = NULL, s.b = w1;
    fx_run(&t, &s);
    ck_assert(t.slots[2][0] == 0 && t.slots[2][1] == 3);
    ck_near(t.slots[2][2], 1 / (1 + exp(-10)), 1e-6);
    fx_free(&t);
}
END_TEST

START_TEST(route_groups) {
    /* groups of 3; sums of their two best sigmoids order them 3 2 1 0, though the largest logit is in group 0 */
    const float logits[12] = {4, -9, -9, 0, 0.1f, -9, 1, 1, -9, 2, 1.5f, -9};
    fx t;
    q_inst s;
    route_logits(&t, &s, 12, 3, logits, 1);
    s.kind = Q_ROUTE_SIGMOID, s.n_groups = 4, s.n_groups_used = 2;
    fx_run(&t, &s);
    ck_assert(t.slots[2][0] == 9 && t.slots[2][1] == 10 && t.slots[2][2] == 6);
    s.n_groups_used = 4;
    fx_run(&t, &s);
    ck_assert(t.slots[2][0] == 0 && t.slots[2][1] == 9 && t.slots[2][2] == 10);
    fx_free(&t);
}
END_TEST

/* Logits that are not numbers still choose ids of the table, each once. */
START_TEST(route_nan) {
    const float logits[6] = {NAN, NAN, NAN, NAN, NAN, NAN};
    for (int kind = Q_ROUTE_SOFTMAX; kind <= Q_ROUTE_SIGMOID; kind++) {
        fx t;
        q_inst s;
        route_logits(&t, &s, 6, 4, logits, 1);
        s.kind = (uint8_t)kind, s.n_groups = 3, s.n_groups_used = 2;
        fx_run(&t, &s);
        for (int i = 0; i < 4; i++) {
            ck_assert(t.slots[2][i] >= 0 && t.slots[2][i] < 6);
            for (int j = 0; j < i; j++) ck_assert_float_ne(t.slots[2][i], t.slots[2][j]);
        }
        fx_free(&t);
    }
}
END_TEST

/* -------------------------------------------------------------------------------------------------------- experts */

enum { E = 5, USED = 2, COLS = 6 };

/* Route slot: ids and weights that repeat experts across columns. */
static void fill_route(float *z) {
    for (int c = 0; c < COLS; c++) {
        z[c * 2 * USED] = (float)((3 * c + 1) % E), z[c * 2 * USED + 1] = (float)((3 * c + 4) % E);
        z[c * 2 * USED + 2] = 0.6f - 0.1f * (float)c, z[c * 2 * USED + 3] = 0.3f;
    }
}

static double expert_dot(fx *t, const q_weight *w, const q_weight *b, int e, int r, const float *x) {
    double v = b ? fx_row(t, b, e, 0)[r] : 0;
    for (int i = 0; i < w->k; i++) v += (double)fx_row(t, w, e, r)[i] * x[i];
    return v;
}

START_TEST(moe_glu_options) {
    enum { k = 64, ff = 7 };
    for (int mask = 0; mask < 8; mask++) { /* gate weight, biases, 8-bit activations */
        fx t;
        fx_init(&t, COLS, (const int32_t[]){k, USED * ff, 2 * USED}, 3);
        fill_route(t.slots[3]);
        q_inst s = {.op = Q_OP_MOE_GLU, .kind = mask == 3 ? Q_ACT_SWIGLU_CLAMP : Q_ACT_SILU, .limit = 2, .alpha = 1.5f,
                    .x = fx_view(1, 0, 1, k), .y = fx_view(2, 0, USED, ff), .z = fx_view(3, 0, 1, 2 * USED),
                    .n_used = USED, .n_expert = E, .w = fx_weight(&t, mask & 4 ? "q8_0" : "f16", ff, k, E)};
        if (mask & 1) s.w2 = fx_weight(&t, "q4_1", ff, k, E);
        if (mask & 2) s.b = fx_weight(&t, "f32", 1, ff, E);
        if ((mask & 3) == 3) s.b2 = fx_weight(&t, "f32", 1, ff, E);
        t.e.act = mask & 4 ? &q_act_a8_32 : NULL;
        ck_assert_int_eq(q_op_units(&s, COLS, 0), ff);
        fx_run(&t, &s);
        double err = 0, ref = 0;
        for (int c = 0; c < COLS; c++)
            for (int i = 0; i < USED; i++)
                for (int r = 0; r < ff; r++) {
                    const int e = (int)t.old[3][c * 2 * USED + i];
                    double g = expert_dot(&t, s.w, s.b, e, r, t.old[1] + c * k);
                    double z = s.w2 ? expert_dot(&t, s.w2, s.b2, e, r, t.old[1] + c * k) : 1, want;
                    if (s.kind == Q_ACT_SILU) want = g / (1 + exp(-g)) * z;
                    else g = fmin(g, 2), want = g / (1 + exp(-1.5 * g)) * (fmax(-2, fmin(2, z)) + 1);
                    const double y = t.slots[2][(c * USED + i) * ff + r];
                    if (!t.e.act) ck_near(y, want, 3e-5);
                    err += (y - want) * (y - want), ref += want * want;
                }
        ck_assert_double_lt(err, ref * (t.e.act ? 2e-3 : 1e-10));
        fx_free(&t);
    }
}
END_TEST

START_TEST(moe_down_options) {
    enum { ff = 32, rows = 6 };
    for (int mask = 0; mask < 8; mask++) { /* bias, add, 8-bit activations */
        fx t;
        fx_init(&t, COLS, (const int32_t[]){USED * ff, rows, 2 * USED}, 3);
        fill_route(t.slots[3]);
        q_inst s = {.op = Q_OP_MOE_DOWN, .x = fx_view(1, 0, USED, ff), .y = fx_view(2, 0, 1, rows),
                    .z = fx_view(3, 0, 1, 2 * USED), .n_used = USED, .n_expert = E, .add = (mask & 2) != 0,
                    .w = fx_weight(&t, mask & 4 ? "q5_0" : "f32", rows, ff, E)};
        if (mask & 1) s.b = fx_weight(&t, "f32", 1, rows, E);
        t.e.act = mask & 4 ? &q_act_a8_32 : NULL;
        fx_run(&t, &s);
        double err = 0, ref = 0;
        for (int c = 0; c < COLS; c++)
            for (int r = 0; r < rows; r++) {
                double want = 0;
                for (int i = 0; i < USED; i++) {
                    const float *z = t.old[3] + c * 2 * USED + i;
                    want += z[USED] * expert_dot(&t, s.w, s.b, (int)z[0], r, t.old[1] + (c * USED + i) * ff);
                }
                if (s.add) want += t.old[2][c * rows + r];
                const double y = t.slots[2][c * rows + r];
                if (!t.e.act) ck_near(y, want, 1e-5);
                err += (y - want) * (y - want), ref += want * want;
            }
        ck_assert_double_lt(err, ref * (t.e.act ? 2e-3 : 1e-11));
        fx_free(&t);
    }
}
END_TEST

/* Ids that no router wrote stay inside the table. */
START_TEST(moe_bad_ids) {
    fx t;
    fx_init(&t, COLS, (const int32_t[]){USED * 32, 4, 2 * USED}, 3);
    fill_route(t.slots[3]);
    t.slots[3][0] = NAN, t.slots[3][1] = -3, t.slots[3][4] = 1e30f, t.slots[3][5] = INFINITY;
    q_inst s = {.op = Q_OP_MOE_DOWN, .x = fx_view(1, 0, USED, 32), .y = fx_view(2, 0, 1, 4),
                .z = fx_view(3, 0, 1, 2 * USED), .n_used = USED, .n_expert = E, .w = fx_weight(&t, "f32", 4, 32, E)};
    fx_run(&t, &s);
    for (int r = 0; r < 4; r++) ck_assert(isfinite(t.slots[2][r]));
    fx_free(&t);
}
END_TEST

static Suite *suite(void) {
    Suite *s = suite_create("ref_attn");
    TCase *c = tcase_create("ops");
    const TTest *const tests[] = {kv_pages, attn_options, attn_batch_independent, attn_over_columns, route_kinds,
                                  route_biases, route_groups, route_nan, moe_glu_options, moe_down_options,
                                  moe_bad_ids};
    for (size_t i = 0; i < Q_COUNT(tests); i++) tcase_add_test(c, tests[i]);
    suite_add_tcase(s, c);
    return s;
}
HARNESS_MAIN(suite)
