/* test_kv_form.c: the formats that keys and values are kept in: where numbers lie in a page and how near they are to
 * what was stored, what happens to numbers that do not fit; and sessions that keep them so: their plan, their bits,
 * their logits, what they refuse. */
#include <math.h>

#include "help_kv.h"
#include "help_session.h"

enum { VOCAB = 262, CONTEXT = 256 };

/* --------------------------------------------------------------------------------------------------------- pages */

enum { HEADS = 2, LAYERS = 2, WIDTH = 96, PAGES = 3 };

typedef struct page {
    q_kv_pool pool;
    uint8_t *base, *keys, *values; /* of layer 1, head 1 in page 2 */
} page;

static page page_open(const q_kv_kind *kind, int32_t v_width) {
    page p = {.pool = {.layers = LAYERS, .heads = HEADS, .pages = PAGES}};
    t_kv_forms(&p.pool, kind->format->name, WIDTH, v_width);
    p.base = malloc(p.pool.page_bytes * PAGES);
    memset(p.base, 0x5A, p.pool.page_bytes * PAGES);
    p.keys = q_kv_k(&p.pool, p.base, 2, 1, 1);
    p.values = q_kv_v(&p.pool, p.base, 2, 1, 1);
    return p;
}

/* x times the orthonormal matrix whose element (i, j) is the parity of the ones that i and j share. */
static void turned(const float *x, int32_t n, int32_t turn, double *y) {
    for (int32_t at = 0; at < n; at += turn)
        for (int32_t i = 0; i < turn; i++) {
            y[at + i] = 0;
            for (int32_t j = 0; j < turn; j++)
                y[at + i] += (__builtin_parity((unsigned)(i & j)) ? -1.0 : 1.0) * (double)x[at + j] / sqrt(turn);
        }
}

/* How far a number may be from what its form makes of it. */
static double step_of(const char *name, const double *x, int32_t i) {
    double lo = 0, hi = 0;
    for (int32_t j = i / 32 * 32; j < i / 32 * 32 + 32; j++) lo = fmin(lo, x[j]), hi = fmax(hi, x[j]);
    if (strcmp(name, "f32") == 0) return 0;
    if (strcmp(name, "f16") == 0) return fabs(x[i]) * 0x1p-11;
    if (strcmp(name, "bf16") == 0) return fabs(x[i]) * 0x1p-8;
    if (strcmp(name, "q8_0") == 0) return fmax(-lo, hi) / 127 * 0.51;
    if (strcmp(name, "q5_1") == 0) return (hi - lo) / 31 * 0.55;
    ck_assert_str_eq(name, "q4_0");
    return fmax(-lo, hi) / 8 * 1.02; /* one end of the range has no level */
}

START_TEST(numbers_lie_where_they_should) {
    for (uint32_t k = 0; k < q_kv_kind_count(); k++) {
        const char *name = q_kv_kinds[k].format->name;
        page p = page_open(&q_kv_kinds[k], 64);
        float x[WIDTH], v[WIDTH], got[WIDTH], plain[WIDTH];
        uint8_t row[WIDTH * 4], *before = malloc(p.pool.page_bytes * PAGES);
        double want[WIDTH];
        uint64_t seed = 7 + k;
        ck_assert_int_eq(p.pool.k.turn, q_kv_kinds[k].turned ? 32 : 0); /* 32 is what divides 96 */
        ck_assert_int_eq(p.pool.v.turn, q_kv_kinds[k].turned ? 64 : 0);
        memcpy(before, p.base, p.pool.page_bytes * PAGES);
        for (int i = 0; i < WIDTH; i++) x[i] = t_normal(&seed) * (i == 5 ? 20.0f : 1.0f), v[i] = t_normal(&seed);
        q_ref_kv_put_row(&p.pool.k, &p.pool.v, 13, x, v, p.keys, p.values);
        memcpy(plain, x, sizeof x);
        q_ref_turn(plain, WIDTH, p.pool.k.turn);
        q_encode_row(p.pool.k.format, plain, NULL, false, WIDTH, row);
        const int32_t cell = q_kv_cell(&p.pool.k);
        for (int32_t i = 0; i < p.pool.k.bytes; i++) {
            uint8_t *at = p.keys + (i / cell * Q_KV_TOKENS + 13) * cell + i % cell;
            ck_assert_msg(*at == row[i], "%s: byte %d of a key", name, i);
            *at = 0x5A;
        }
        memset(p.values + 13 * p.pool.v.bytes, 0x5A, (size_t)p.pool.v.bytes);
        ck_assert_msg(memcmp(before, p.base, p.pool.page_bytes * PAGES) == 0, "%s: more than a row was written", name);
        q_ref_kv_put_row(&p.pool.k, &p.pool.v, 13, x, v, p.keys, p.values);
        q_ref_kv_key(&p.pool.k, p.keys, 13, WIDTH, got);
        if (p.pool.k.turn) turned(x, WIDTH, p.pool.k.turn, want);
        else
            for (int i = 0; i < WIDTH; i++) want[i] = (double)x[i];
        for (int i = 0; i < WIDTH; i++)
            ck_assert_msg(fabs((double)got[i] - want[i]) <= step_of(name, want, i) + 1e-6,
                          "%s: number %d is %g, not %g", name, i, (double)got[i], want[i]);
        q_ref_kv_value(&p.pool.v, p.values, 13, 64, got);
        q_ref_turn(got, 64, p.pool.v.turn);
        for (int i = 0; i < 64; i++)
            ck_assert_msg(fabsf(got[i] - v[i]) < 0.7f, "%s: number %d of a value is %g, not %g", name, i,
                          (double)got[i], (double)v[i]);
        free(before);
        free(p.base);
    }
}
END_TEST

/* Numbers that a form cannot hold become NaN with their block, and nothing else does. */
START_TEST(what_does_not_fit_is_no_number) {
    static const float bad[] = {65520.0f, -1e9f, INFINITY, -INFINITY, NAN};
    for (uint32_t k = 0; k < q_kv_kind_count(); k++)
        for (size_t b = 0; b < Q_COUNT(bad); b++) {
            page p = page_open(&q_kv_kinds[k], 0);
            const int32_t block = p.pool.k.format->weights, spread = p.pool.k.turn ? p.pool.k.turn : block;
            float x[WIDTH], got[WIDTH];
            for (int i = 0; i < WIDTH; i++) x[i] = (float)(i % 7);
            x[40] = p.pool.k.turn ? bad[b] * 32 : bad[b]; /* of which a turn makes a sixth */
            const bool fits = fabsf(x[40]) <= q_kv_kinds[k].most;
            q_ref_kv_put_row(&p.pool.k, &p.pool.v, 31, x, NULL, p.keys, p.values);
            q_ref_kv_key(&p.pool.k, p.keys, 31, WIDTH, got);
            for (int i = 0; i < WIDTH; i++) {
                const bool lost = !fits && i / spread == 40 / spread;
                ck_assert_msg(isnan(got[i]) == lost, "%s: %g makes number %d %g", p.pool.k.format->name,
                              (double)x[40], i, (double)got[i]);
            }
            free(p.base);
        }
}
END_TEST

/* ------------------------------------------------------------------------------------------------------ sessions */

static lq_ctx *ctx;
static lq_model *model, *narrow, *loud; /* heads of 32, of 16; of 32 with keys beyond what halves hold */

static lq_model *open_model(tiny *t, const char *name) {
    char path[4096];
    lq_model *m;
    tiny_u32(t, "llama.context_length", CONTEXT);
    tiny_write(t, t_path(path, sizeof path, t_tmp(), name));
    ck_assert_msg(lq_model_open(ctx, path, NULL, &m) == LQ_OK, "%s", lq_error_detail());
    return m;
}

static void setup(void) {
    static tiny t;
    const lq_options o = {.size = sizeof o, .threads = 2};
    ck_assert_msg(lq_open(&o, &ctx) == LQ_OK, "%s", lq_error_detail());
    tiny_init(&t, "f32");
    narrow = open_model(&t, "narrow.gguf");
    tiny_init(&t, "f32");
    tiny_grow(&t, 128, 96, 2);
    model = open_model(&t, "wide.gguf");
    t.poison = 1e12f;
    t.poison_tensor = "blk.1.attn_k.weight";
    loud = open_model(&t, "loud.gguf");
}
static void teardown(void) {
    lq_model_close(model);
    lq_model_close(narrow);
    lq_model_close(loud);
    lq_close(ctx);
}

static lq_session *open_session(lq_model *m, const char *k, const char *v, uint32_t batch) {
    lq_session *s = NULL;
    const lq_session_options o = {.size = sizeof o, .kv_k = k, .kv_v = v, .batch = batch, .max_logits = CONTEXT};
    ck_assert_msg(lq_session_open(m, &o, &s) == LQ_OK, "%s", lq_error_detail());
    return s;
}

static const int32_t *text(void) {
    static int32_t ids[CONTEXT];
    for (int i = 0; i < CONTEXT; i++) ids[i] = 3 + i * 37 % 250;
    return ids;
}

static const float *evaluate(lq_session *s) {
    const float *y;
    ck_assert_msg(t_decode(s, text(), CONTEXT, 0) == LQ_OK, "%s", lq_error_detail());
    ck_assert_int_eq(lq_logits(s, 0, &y), LQ_OK);
    return y;
}

START_TEST(plan_has_every_byte) {
    for (uint32_t i = 0; i < q_kv_kind_count(); i++)
        for (uint32_t j = 0; j < q_kv_kind_count(); j++) {
            const q_format *k = q_kv_kinds[i].format, *v = q_kv_kinds[j].format;
            const lq_session_options o = {.size = sizeof o, .kv_k = k->name, .kv_v = v->name, .sequences = 3};
            lq_plan_info plan = {.size = sizeof plan};
            ck_assert_msg(lq_model_plan(model, &o, &plan) == LQ_OK, "%s", lq_error_detail());
            const uint64_t head = (uint64_t)(32 / k->weights * k->bytes + 32 / v->weights * v->bytes);
            ck_assert_uint_ge(plan.kv, 2 * 2 * 3 * CONTEXT * head); /* layers, KV heads, sequences */
            ck_assert_uint_lt(plan.kv, 2 * 2 * 3 * CONTEXT * head + 4096 + 3 * 32 * 2 * 2 * head);
            ck_assert_str_eq(plan.kv_k, k->name);
            ck_assert_str_eq(plan.kv_v, v->name);
        }
    const lq_session_options only_k = {.size = sizeof only_k, .kv_k = "q8_0"};
    lq_plan_info plan = {.size = sizeof plan};
    ck_assert_int_eq(lq_model_plan(model, &only_k, &plan), LQ_OK);
    ck_assert_str_eq(plan.kv_v, "q8_0");
}
END_TEST

/* Logits are near those of float32, by about twice what each format costs this model, whose attention is random and
 * sharp; and the same bits in passes of any size. */
START_TEST(logits_are_near) {
    static const struct { const char *k, *v; double far; } of[] = {
        {"f16", NULL, 3e-6}, {"bf16", NULL, 2e-4}, {"q8_0", NULL, 2e-3}, {"q5_1", "q8_0", 0.06}, {"q8_0", "q5_1", 0.02},
        {"q4_0", NULL, 0.3}, {"f32", "q4_0", 0.1}, {"q4_0", "f16", 0.3},
    };
    lq_session *exact = open_session(model, "f32", NULL, 0);
    const float *want = evaluate(exact);
    for (size_t i = 0; i < Q_COUNT(of); i++) {
        lq_session *s = open_session(model, of[i].k, of[i].v, 0), *other = open_session(model, of[i].k, of[i].v, 7);
        const float *got = evaluate(s), *again = evaluate(other);
        double far = 0, all = 0;
        for (int j = 0; j < CONTEXT * VOCAB; j++) {
            far += pow((double)got[j] - (double)want[j], 2);
            all += pow((double)want[j], 2);
        }
        ck_assert_msg(far > 0 && far < of[i].far * all, "%s %s: %g of the logits' squares", of[i].k,
                      of[i].v ? of[i].v : "", far / all);
        ck_assert_msg(memcmp(got, again, CONTEXT * VOCAB * sizeof *got) == 0, "%s: other bits in passes of 7", of[i].k);
        lq_session_close(s);
        lq_session_close(other);
    }
    lq_session_close(exact);
}
END_TEST

/* Keys that a half cannot hold: an error, not a hidden key. In float32 there is room. */
START_TEST(overflow_is_told) {
    static const char *const small[] = {"f16", "q8_0", "q5_1", "q4_0"};
    for (size_t i = 0; i < Q_COUNT(small); i++) {
        lq_session *s = open_session(loud, small[i], NULL, 0);
        ck_assert_msg(t_decode(s, text(), 8, 7) == LQ_E_NUMERIC, "%s", small[i]);
        lq_session_close(s);
    }
    lq_session *s = open_session(loud, "bf16", NULL, 0);
    ck_assert_msg(t_decode(s, text(), 8, 7) == LQ_OK, "%s", lq_error_detail());
    lq_session_close(s);
}
END_TEST

START_TEST(refusals_say_what_to_do) {
    lq_session *s = NULL;
    lq_session_options o = {.size = sizeof o, .kv_k = "q3_k"};
    ck_assert_int_eq(lq_session_open(model, &o, &s), LQ_E_ARG);
    ck_assert_str_eq(lq_error_detail(), "kv_k 'q3_k' is not one of: f16, bf16, f32, q8_0, q5_1, q4_0");
    o.kv_k = NULL, o.kv_v = "";
    ck_assert_int_eq(lq_session_open(model, &o, &s), LQ_E_ARG);
    o.kv_v = "q8_0";
    ck_assert_int_eq(lq_session_open(narrow, &o, &s), LQ_E_UNSUPPORTED);
    ck_assert_str_eq(lq_error_detail(), "values in q8_0 come in blocks of 32, which do not divide the model's 16 per "
                                        "head: f16 fits any");
    ck_assert_ptr_null(s);
}
END_TEST

START_TEST(saved_sequences_know_their_format) {
    lq_session *s = open_session(model, "q8_0", "q4_0", 0), *same = open_session(model, "q8_0", "q4_0", 0);
    t_saved b = t_saved_new();
    ck_assert_int_eq(t_decode(s, text(), 100, 99), LQ_OK);
    ck_assert_int_eq(lq_seq_save(s, 0, t_saved_put, &b), LQ_OK);
    ck_assert_msg(lq_seq_load(same, 0, t_saved_get, &b) == LQ_OK, "%s", lq_error_detail());
    const float *x, *y;
    ck_assert_int_eq(t_decode(s, text() + 100, 1, 0), LQ_OK);
    ck_assert_int_eq(t_decode(same, text() + 100, 1, 0), LQ_OK);
    ck_assert_int_eq(lq_logits(s, 0, &x), LQ_OK);
    ck_assert_int_eq(lq_logits(same, 0, &y), LQ_OK);
    ck_assert(memcmp(x, y, VOCAB * sizeof *x) == 0);
    static const char *const other[][2] = {{"q4_0", "q8_0"}, {"q8_0", "q8_0"}, {"q4_0", "q4_0"}, {NULL, NULL}};
    for (size_t i = 0; i < Q_COUNT(other); i++) {
        lq_session *o = open_session(model, other[i][0], other[i][1], 0);
        b.at = 0;
        ck_assert_int_eq(lq_seq_load(o, 0, t_saved_get, &b), LQ_E_INCONSISTENT);
        lq_session_close(o);
    }
    lq_session_close(s);
    lq_session_close(same);
    free(b.p);
}
END_TEST

static Suite *suite(void) {
    Suite *s = suite_create("kv forms");
    TCase *pages = tcase_create("pages"), *sessions = tcase_create("sessions");
    tcase_add_test(pages, numbers_lie_where_they_should);
    tcase_add_test(pages, what_does_not_fit_is_no_number);
    tcase_add_checked_fixture(sessions, setup, teardown);
    tcase_add_test(sessions, plan_has_every_byte);
    tcase_add_test(sessions, logits_are_near);
    tcase_add_test(sessions, overflow_is_told);
    tcase_add_test(sessions, refusals_say_what_to_do);
    tcase_add_test(sessions, saved_sequences_know_their_format);
    suite_add_tcase(s, pages);
    suite_add_tcase(s, sessions);
    return s;
}
HARNESS_MAIN(suite)
