/* test_load_as.c: matrices quantized while a model opens: the bits that rounding to nearest gives, the same for any
 * number of threads, bytes as the plan says, and what is refused. */
#include "harness.h"
#include "help_model.h"

#include "../libquant/engine.h"


static lq_ctx *context(uint32_t threads) {
    static const lq_allocator hook = {live_alloc, live_free, NULL};
    const lq_options o = {.size = sizeof o, .threads = threads, .allocator = &hook};
    lq_ctx *c;
    ck_assert_msg(lq_open(&o, &c) == LQ_OK, "%s", lq_error_detail());
    return c;
}
static const char *pocket(char *path, size_t n) { return t_path(path, n, t_root(), "bench/data/pocket"); }
static lq_model *open_as(lq_ctx *c, const char *as, bool plan_only) {
    char path[4096];
    lq_model *m;
    const lq_model_options o = {.size = sizeof o, .load_as = as, .plan_only = plan_only, .no_pack = 1};
    ck_assert_msg(lq_model_open(c, pocket(path, sizeof path), &o, &m) == LQ_OK, "%s", lq_error_detail());
    return m;
}
static uint64_t weights(const lq_model *m) {
    lq_plan_info plan = {.size = sizeof plan};
    ck_assert_int_eq(lq_model_plan(m, NULL, &plan), LQ_OK);
    return plan.weights;
}

static const struct { const char *as, *format;
} names[] = {{"nf4", "nf4"},       {"nf4-dq", "nf4_dq"}, {"int8", "i8_row"},    {"i4_g64", "i4_g64"},
             {"i4_row", "i4_row"}, {"q4_0", "q4_0"},     {"i4-g128", "i4_g128"}};

/* What rounding to nearest does not give is refused by what it is, with what to name instead: nothing of a scheme is
 * dropped. */
static const struct { const char *as, *how, *instead; } more[] = {
    {"awq+q4_k_m", "more than a scheme", "name one alone"}, {"q4_k_m:gptq", "more than a scheme", "lq quantize"},
    {"q4_k_m+imatrix", "more than a scheme", "--scheme q4_k_m+imatrix"}, {"awq-4bit-g128", "awq", "i4_g128"},
    {"gptq-4bit-g128", "gptq", "i4_g128"}, {"gptq-4bit-g32-act", "gptq", "i4_g32"}};

START_TEST(only_rounding) {
    char source[4096];
    lq_ctx *c = context(1);
    lq_model *m = NULL;
    const lq_model_options o = {.size = sizeof o, .load_as = more[_i].as, .plan_only = 1};
    ck_assert_int_eq(lq_model_open(c, pocket(source, sizeof source), &o, &m), LQ_E_ARG);
    const char *said = lq_error_detail();
    ck_assert_msg(!m && strstr(said, more[_i].as) && strstr(said, more[_i].how) && strstr(said, more[_i].instead), "%s",
                  said);
    lq_close(c);
}
END_TEST

/* Every matrix of the layers has the named format (or its fall-back) and its reference encoder's bytes; nothing else
 * has. */
START_TEST(layers_are_quantized) {
    lq_ctx *c = context(2);
    lq_model *stored = open_as(c, NULL, false), *m = open_as(c, names[_i].as, false);
    uint32_t quantized = 0;
    for (uint32_t i = 0; i < m->binding->n_items; i++) {
        const q_bind_item *item = &m->binding->items[i];
        const q_weight *w = &m->weights[i], *from = &stored->weights[i];
        if (item->layer < 0 || item->src->rank < 2) {
            ck_assert_msg(w->format == from->format, "%s changed its format", w->name);
            continue;
        }
        const q_format *f = q_format_find(names[_i].format);
        while (w->k % f->weights) f = q_format_find(f->fallback);
        if (f->weights == 1) continue; /* its rows fill no block: as stored */
        ck_assert_msg(w->format == f, "%s is %s", w->name, w->format->name);
        float *row = (float *)malloc((size_t)w->k * sizeof *row);
        uint8_t *want = (uint8_t *)malloc((size_t)w->row_bytes);
        for (int32_t r = 0; r < w->rows; r += 7) {
            q_decode_row(from->format, from->data + (uint64_t)r * from->row_bytes, w->k, row);
            q_encode_row(f, row, NULL, false, w->k, want);
            ck_assert_msg(memcmp(want, w->data + (uint64_t)r * w->row_bytes, (size_t)w->row_bytes) == 0, "%s, row %d",
                          w->name, r);
        }
        free(row), free(want);
        quantized++;
    }
    ck_assert_uint_gt(quantized, 0);
    lq_model_close(m);
    lq_model_close(stored);
    lq_close(c);
    ck_assert_uint_eq(live_bytes, 0);
}
END_TEST

/* Opening with plan_only says the bytes that opening then takes: what the plan adds to the weights is what is
 * allocated, less the file's bytes behind it. */
START_TEST(plan_is_use) {
    lq_ctx *c = context(2);
    const size_t before = live_bytes;
    lq_model *m = open_as(c, NULL, false);
    const uint64_t stored = weights(m), plain = live_bytes - before;
    uint64_t own = 0; /* copies of rows in the order of GGUF, which the quantized ones replace */
    lq_model_close(m);
    m = open_as(c, "i4_g64", true);
    const uint64_t planned = weights(m);
    lq_model_close(m);
    m = open_as(c, "i4_g64", false);
    uint64_t from = 0, to = 0, blocks = 0;
    for (uint32_t i = 0; i < m->binding->n_items; i++) {
        const uint64_t bytes = q_load_as_bytes(m, i);
        if (!bytes) continue;
        from += m->binding->items[i].src->bytes, to += bytes, blocks++;
        if (m->binding->items[i].map != Q_MAP_SAME) own += m->binding->items[i].src->bytes + Q_ALIGN;
    }
    ck_assert_uint_eq(weights(m), planned);
    ck_assert_uint_eq(planned, stored - from + to + blocks * Q_ALIGN);
    const uint64_t table = q_round_up(m->binding->n_items * sizeof(void *), 1) + Q_ALIGN; /* of formats */
    ck_assert_uint_eq(live_bytes - before, plain - own + to + blocks * Q_ALIGN + table);
    lq_model_close(m);
    lq_close(c);
}
END_TEST

START_TEST(refusals) {
    char path[4096], source[4096];
    lq_ctx *c = context(1);
    lq_model *m;
    lq_model_options o = {.size = sizeof o, .load_as = "nf5"};
    ck_assert_int_eq(lq_model_open(c, pocket(source, sizeof source), &o, &m), LQ_E_ARG);
    ck_assert_msg(strstr(lq_error_detail(), "nf5"), "%s", lq_error_detail());
    o.load_as = "f16";
    ck_assert_int_eq(lq_model_open(c, source, &o, &m), LQ_E_ARG);
    const lq_quantize_options q = {.size = sizeof q, .scheme = "q8_0", .force = 1};
    ck_assert_int_eq(lq_quantize(c, source, t_path(path, sizeof path, t_tmp(), "q8_0.gguf"), &q, NULL), LQ_OK);
    o.load_as = "nf4";
    ck_assert_int_eq(lq_model_open(c, path, &o, &m), LQ_E_ARG);
    ck_assert_msg(strstr(lq_error_detail(), "already quantized") && strstr(lq_error_detail(), "blk.0"), "%s",
                  lq_error_detail());
    lq_close(c);
    ck_assert_uint_eq(live_bytes, 0);
}
END_TEST

static Suite *suite(void) {
    Suite *s = suite_create("load_as");
    TCase *t = tcase_create("load_as");
    tcase_add_loop_test(t, layers_are_quantized, 0, (int)Q_COUNT(names));
    tcase_add_loop_test(t, only_rounding, 0, (int)Q_COUNT(more));
    tcase_add_test(t, plan_is_use);
    tcase_add_test(t, refusals);
    suite_add_tcase(s, t);
    return s;
}
HARNESS_MAIN(suite)
