/* test_ref_sample.c: choosing a token: the sets that top-k, top-p and min-p keep, exactly; frequencies under fixed
 * seeds; what is refused; and SAMPLE over a batch's wanted rows. */
#include <math.h>

#include "help_ref.h"

static lq_sampler knobs(float temperature, uint32_t top_k, float top_p, float min_p) {
    return (lq_sampler){.size = sizeof(lq_sampler), .temperature = temperature, .top_k = top_k, .top_p = top_p,
                        .min_p = min_p, .seed = 42};
}

static lq_status choose(const float *logits, int64_t n, const lq_sampler *s, uint64_t position, int32_t *id) {
    static _Alignas(Q_ALIGN) uint8_t scratch[1 << 18];
    ck_assert_uint_le(q_sample_bytes(n, 0), sizeof scratch);
    return q_ref_sample_row(&(q_sample_in){.logits = logits, .n = n, .sampler = s, .position = position,
                                           .scratch = scratch}, id);
}

static int32_t draw(const float *logits, int64_t n, const lq_sampler *s, uint64_t position) {
    int32_t id = -7;
    ck_assert_msg(choose(logits, n, s, position, &id) == LQ_OK, "%s", lq_error_detail());
    return id;
}

/* Bits of the ids seen in 3000 draws (n <= 64). */
static uint64_t seen(const float *logits, int64_t n, const lq_sampler *s) {
    uint64_t ids = 0;
    for (uint64_t p = 0; p < 3000; p++) ids |= (uint64_t)1 << draw(logits, n, s, p);
    return ids;
}

START_TEST(greedy_takes_the_lowest_of_the_largest) {
    const float logits[] = {1, 5, -2, 5, 5}, masked[] = {-INFINITY, -3, -INFINITY};
    const lq_sampler s = knobs(0, 0, 0, 0);
    ck_assert_int_eq(draw(logits, 5, &s, 3), 1);
    ck_assert_int_eq(draw(logits, 1, &s, 3), 0);
    ck_assert_int_eq(draw(masked, 3, &s, 0), 1);
}
END_TEST

START_TEST(refusals_leave_the_id) {
    const float good[] = {0, 1}, nan_[] = {0, NAN}, inf_[] = {INFINITY, 0}, none[] = {-INFINITY, -INFINITY};
    int32_t id = 77;
    for (int warm = 0; warm < 2; warm++) {
        const lq_sampler s = knobs((float)warm, 0, 0, 0);
        ck_assert_int_eq(choose(nan_, 2, &s, 0, &id), LQ_E_NUMERIC);
        ck_assert_int_eq(choose(inf_, 2, &s, 0, &id), LQ_E_NUMERIC);
        ck_assert_int_eq(choose(none, 2, &s, 0, &id), LQ_E_NUMERIC);
        ck_assert_int_eq(choose(good, 0, &s, 0, &id), LQ_E_ARG);
    }
    const lq_sampler bad[] = {knobs(-1, 0, 0, 0),   knobs(NAN, 0, 0, 0), knobs(INFINITY, 0, 0, 0),
                              knobs(1, 0, 1.1f, 0), knobs(1, 0, -1, 0),  knobs(1, 0, NAN, 0),
                              knobs(1, 0, 0, 1.5f), knobs(1, 0, 0, -0.1f)};
    for (size_t i = 0; i < Q_COUNT(bad); i++)
        ck_assert_int_eq(choose(good, 2, &bad[i], 0, &id), LQ_E_ARG);
    ck_assert_int_eq(id, 77);
}
END_TEST

START_TEST(kept_sets) {
    /* probabilities .15 .5 .05 .3 */
    const float l[] = {logf(.15f), logf(.5f), logf(.05f), logf(.3f)};
    const struct {
        uint32_t k;
        float p, m;
        uint64_t want;
    } cases[] = {
        {0, 0, 0, 0xF},      {1, 0, 0, 0x2},      {2, 0, 0, 0xA},     {3, 0, 0, 0xB},     {4, 0, 0, 0xF},
        {99, 0, 0, 0xF},
        {0, .4f, 0, 0x2},    {0, .7f, 0, 0xA},    {0, .9f, 0, 0xB},   {0, 1, 0, 0xF},     {0, 1e-6f, 0, 0x2},
        {0, 0, .5f, 0xA},    {0, 0, .2f, 0xB},    {0, 0, 1, 0x2},     {0, 0, .05f, 0xF},
        {3, .83f, 0, 0xA},   /* of .95: .5 + .3 is .842 of what top-k left */
        {0, .83f, 0, 0xB},   {3, .99f, .5f, 0xA}, {0, .9f, .7f, 0x2},
    };
    for (size_t i = 0; i < Q_COUNT(cases); i++) {
        const lq_sampler s = knobs(1, cases[i].k, cases[i].p, cases[i].m);
        ck_assert_msg(seen(l, 4, &s) == cases[i].want, "case %d: kept %x, wanted %x", (int)i, (unsigned)seen(l, 4, &s),
                      (unsigned)cases[i].want);
    }
}
END_TEST

START_TEST(ties_keep_the_lower_ids) {
    const float l[] = {0, 2, 2, 2, 0, 2};
    lq_sampler s = knobs(1, 2, 0, 0);
    ck_assert_uint_eq(seen(l, 6, &s), 0x6);
    s = knobs(1, 5, 0, 0);
    ck_assert_uint_eq(seen(l, 6, &s), 0x2F);
    const float flat[4] = {0};
    s = knobs(1, 0, .5f, 0);
    ck_assert_uint_eq(seen(flat, 4, &s), 0x3);
    s = knobs(1, 0, .51f, 0);
    ck_assert_uint_eq(seen(flat, 4, &s), 0x7);
}
END_TEST

START_TEST(masked_ids_are_never_chosen) {
    const float l[] = {-INFINITY, 0, -INFINITY, 0, -INFINITY};
    const lq_sampler all[] = {knobs(1, 0, 0, 0), knobs(50, 0, 0, 0), knobs(1, 4, 0, 0), knobs(1, 0, .9999f, 0)};
    for (size_t i = 0; i < Q_COUNT(all); i++) ck_assert_uint_eq(seen(l, 5, &all[i]), 0xA);
}
END_TEST

/* Extreme temperatures neither overflow nor lose the best. */
START_TEST(temperature_extremes) {
    const float l[] = {-3e38f, 1e30f, 3e38f, 3e38f};
    const lq_sampler cold = knobs(1e-38f, 0, 0, 0), hot = knobs(3e38f, 0, 0, 0);
    ck_assert_uint_eq(seen(l, 4, &cold), 0xC);
    ck_assert_uint_eq(seen(l, 4, &hot), 0xF);
}
END_TEST

/* Pearson's statistic against expected probabilities; 3 degrees of freedom: 16.3 is passed once in 1000. */
static double chi_square(const int *count, const double *p, int n, int total) {
    double x = 0;
    for (int i = 0; i < n; i++) x += (count[i] - p[i] * total) * (count[i] - p[i] * total) / (p[i] * total);
    return x;
}

START_TEST(frequencies) {
    enum { draws = 20000 };
    const float l[] = {0.2f, -1, 1.1f, 0};
    for (int t = 0; t < 3; t++)
        for (int by_seed = 0; by_seed < 2; by_seed++) { /* neighbours in position, and in seed, are independent */
            const double temperature = t == 0 ? 0.5 : t;
            double p[4], sum = 0;
            int count[4] = {0}, pairs[4] = {0}, before = 0;
            for (int i = 0; i < 4; i++) sum += p[i] = exp(l[i] / temperature);
            for (int i = 0; i < 4; i++) p[i] /= sum;
            lq_sampler s = knobs((float)temperature, 0, 0, 0);
            for (int i = 0; i < draws; i++) {
                s.seed = by_seed ? (uint64_t)i : 42;
                const int id = draw(l, 4, &s, by_seed ? 9 : (uint64_t)i) == 2;
                count[draw(l, 4, &s, by_seed ? 9 : (uint64_t)i)]++;
                pairs[2 * before + id]++;
                before = id;
            }
            ck_assert_double_lt(chi_square(count, p, 4, draws), 16.3);
            const double two[] = {(1 - p[2]) * (1 - p[2]), (1 - p[2]) * p[2], p[2] * (1 - p[2]), p[2] * p[2]};
            ck_assert_double_lt(chi_square(pairs, two, 4, draws), 16.3);
        }
}
END_TEST

static const float *sort_logits;
static int by_order(const void *a, const void *b) {
    const int32_t x = *(const int32_t *)a, y = *(const int32_t *)b;
    if (sort_logits[x] != sort_logits[y]) return sort_logits[x] < sort_logits[y] ? 1 : -1;
    return x < y ? -1 : 1;
}

/* A real vocabulary's size, with many ties: no draw leaves the set that a full sort gives. */
START_TEST(large_rows) {
    enum { n = 5000 };
    static float l[n];
    static int32_t order[n], rank[n];
    uint64_t seed = 3;
    double total = 0, sum = 0;
    for (int i = 0; i < n; i++) l[i] = floorf(t_normal(&seed) * 20) / 10, order[i] = i;
    sort_logits = l;
    qsort(order, n, sizeof order[0], by_order);
    for (int i = 0; i < n; i++) rank[order[i]] = i, total += exp(l[i]);
    int in_p = 0;
    while (sum < 0.6 * total) sum += exp(l[order[in_p++]]);
    const lq_sampler by_k = knobs(1, 40, 0, 0), by_p = knobs(1, 0, 0.6f, 0);
    int most_k = 0, most_p = 0;
    for (uint64_t p = 0; p < 600; p++) {
        most_k = Q_MAX(most_k, rank[draw(l, n, &by_k, p)]);
        most_p = Q_MAX(most_p, rank[draw(l, n, &by_p, p)]);
    }
    ck_assert_int_eq(most_k, 39);
    ck_assert_int_le(most_p, in_p);
    ck_assert_int_ge(most_p, in_p - in_p / 50);
}
END_TEST

START_TEST(op_over_rows) {
    enum { vocab = 9, rows = 4 };
    fx t;
    fx_init(&t, rows, (const int32_t[]){1}, 1);
    fx_logits(&t, vocab, rows);
    for (int i = 0; i < rows * vocab; i++) t.batch.logits[i] = t_normal(&t.seed);
    t.batch.logits[2 * vocab + 5] = NAN;
    const uint64_t at[rows] = {5, 6, 7, 1000000};
    int32_t got[rows] = {9, 9, 9, 9};
    const lq_sampler s = knobs(0.8f, 5, 0.9f, 0);
    const q_inst inst = {.op = Q_OP_SAMPLE, .x = {0, 0, 1, vocab, vocab}};
    t.batch.draw = at, t.batch.sampled = got, t.batch.sampler = &s;
    ck_assert_int_eq(q_op_units(&inst, rows, rows), rows);
    fx_run(&t, &inst);
    for (int o = 0; o < rows; o++)
        ck_assert_int_eq(got[o], o == 2 ? -1 : draw(t.batch.logits + o * vocab, vocab, &s, at[o]));
    t.batch.sampler = NULL, got[0] = 9;
    fx_run(&t, &inst);
    ck_assert_int_eq(got[0], 9);
    fx_free(&t);
}
END_TEST

static Suite *suite(void) {
    Suite *s = suite_create("ref_sample");
    TCase *c = tcase_create("sample");
    const TTest *const tests[] = {greedy_takes_the_lowest_of_the_largest, refusals_leave_the_id, kept_sets,
                                  ties_keep_the_lower_ids, masked_ids_are_never_chosen, temperature_extremes,
                                  frequencies, large_rows, op_over_rows};
    for (size_t i = 0; i < Q_COUNT(tests); i++) tcase_add_test(c, tests[i]);
    suite_add_tcase(s, c);
    return s;
}
HARNESS_MAIN(suite)
