/* test_sampling.c: every field of lq_sampler: frequencies against a plain computation in double precision, each field
 * alone and many together; penalties and DRY by hand; what is refused; every instruction set chooses the same; and
 * through a session: its own tokens, the texts of tokens, log-probabilities. */
#include <math.h>

#include "harness.h"

#include "../include/libquant.h"
#include "../kernels/cpu/choose.h"
#include "../libquant/op.h"
#include "../libquant/wide.h"

enum { MOST = 9000, WORDS = 40, HISTORY = 60 };

/* ------------------------------------------------------------------------------------------------ a choice */

/* Texts of tokens: those of `pieces`, else "wN". */
static const char *const pieces[] = {"a", "b", "c:", "x\n", "<", "br>", "<br>", "d"};
static size_t piece(const void *texts, int32_t id, char out[Q_SAMPLE_PIECE]) {
    Q_UNUSED(texts);
    if ((size_t)id < Q_COUNT(pieces)) return (size_t)snprintf(out, 16, "%s", pieces[id]);
    return (size_t)snprintf(out, 16, "w%d", id);
}

static lq_status choose(const q_sample_in *with, int32_t *id) {
    static _Alignas(Q_ALIGN) uint8_t scratch[MOST * 24 + 4096];
    q_sample_in in = *with;
    ck_assert_uint_le(q_sample_bytes(in.n, in.count), sizeof scratch);
    memset(scratch, 0xA5, q_sample_bytes(in.n, in.count));
    in.scratch = scratch;
    if (!in.piece) in.piece = piece;
    return q_ref_sample_row(&in, id);
}

static int32_t chosen(const q_sample_in *in) {
    int32_t id = -7;
    ck_assert_msg(choose(in, &id) == LQ_OK, "%s", lq_error_detail());
    ck_assert(id >= 0 && id < in->n);
    return id;
}

/* ------------------------------------------------------------------------------------------------ the plain way */

typedef struct plain {
    int id;
    double x, p, key;
} plain;

static int by_key(const void *a, const void *b) {
    const plain *x = a, *y = b;
    if (x->key != y->key) return x->key > y->key ? -1 : 1;
    return x->id < y->id ? -1 : 1;
}
static void weigh(plain *t, int n, double temperature) {
    double best = -INFINITY, sum = 0;
    for (int i = 0; i < n; i++) best = fmax(best, t[i].x);
    for (int i = 0; i < n; i++) sum += t[i].p = exp((t[i].x - best) / temperature);
    for (int i = 0; i < n; i++) t[i].p /= sum;
}
/* Sorted by key, as few as have this much probability. */
static int as_few(plain *t, int n, double much) {
    double sum = 0;
    int kept = 0;
    qsort(t, (size_t)n, sizeof *t, by_key);
    while (kept < n && sum < much) sum += t[kept++].p;
    return kept;
}
static int likely_first(plain *t, int n) {
    for (int i = 0; i < n; i++) t[i].key = t[i].x;
    qsort(t, (size_t)n, sizeof *t, by_key);
    return n;
}

static void plain_penalties(const q_sample_in *in, double *x) {
    const lq_sampler *s = in->sampler;
    const int64_t from = s->penalty_last_n && s->penalty_last_n < in->count ? in->count - s->penalty_last_n : 0;
    for (int id = 0; id < in->n; id++) {
        int times = 0;
        for (int64_t i = from; i < in->count; i++) times += in->ids[i] == id;
        if (times == 0) continue;
        if (s->repeat_penalty != 0)
            x[id] = x[id] > 0 ? x[id] / (double)s->repeat_penalty : x[id] * (double)s->repeat_penalty;
        x[id] -= times * (double)s->frequency_penalty + (double)s->presence_penalty;
    }
}

static void plain_dry(const q_sample_in *in, double *x) {
    const lq_sampler *s = in->sampler;
    if (s->dry_multiplier == 0) return;
    const int64_t from = s->dry_last_n && s->dry_last_n < in->count ? in->count - s->dry_last_n : 0;
    const double base = s->dry_base != 0 ? (double)s->dry_base : 1.75;
    const int least = s->dry_allowed_length ? (int)s->dry_allowed_length : 2;
    int longest[WORDS] = {0};
    for (int64_t end = from; end + 1 < in->count; end++) { /* tokens up to `end` and up to the last one */
        int len = 0;
        while (end - len >= from && in->ids[end - len] == in->ids[in->count - 1 - len]) len++;
        longest[in->ids[end + 1]] = Q_MAX(longest[in->ids[end + 1]], len);
    }
    for (int id = 0; id < in->n; id++)
        if (longest[id] >= least) x[id] -= (double)s->dry_multiplier * pow(base, longest[id] - least);
}

/* The probability of each token; xtc: does it strike this time? */
static void plain_way(const q_sample_in *in, bool xtc, double *p) {
    const lq_sampler *s = in->sampler;
    plain t[WORDS];
    double x[WORDS];
    int n = (int)in->n;
    for (int i = 0; i < n; i++) x[i] = in->logits[i];
    for (uint32_t i = 0; i < s->n_logit_bias; i++) x[s->logit_bias[i].id] += (double)s->logit_bias[i].bias;
    plain_penalties(in, x);
    plain_dry(in, x);
    for (int i = 0; i < n; i++) t[i] = (plain){.id = i, .x = x[i]};
    n = likely_first(t, n);
    if (s->mirostat_tau != 0) {
        weigh(t, n, (double)s->temperature);
        int kept = 1;
        while (kept < n && -log2(t[kept].p) <= (double)*s->mirostat_mu) kept++;
        n = kept;
    }
    if (s->top_k && (int)s->top_k < n) n = (int)s->top_k;
    if (s->typical_p > 0 && s->typical_p < 1) {
        double entropy = 0;
        weigh(t, n, 1);
        for (int i = 0; i < n; i++) entropy -= t[i].p > 0 ? t[i].p * log(t[i].p) : 0;
        for (int i = 0; i < n; i++) t[i].key = -fabs(-log(t[i].p) - entropy);
        n = likely_first(t, as_few(t, n, (double)s->typical_p));
    }
    weigh(t, n, 1);
    if (s->top_p > 0 && s->top_p < 1) n = as_few(t, n, (double)s->top_p);
    weigh(t, n, 1);
    while (s->min_p > 0 && t[n - 1].p < (double)s->min_p * t[0].p) n--;
    weigh(t, n, 1);
    int above = 0;
    while (xtc && above < n && t[above].p >= (s->xtc_threshold > 0 ? (double)s->xtc_threshold : 0.1)) above++;
    const int skip = above > 1 ? above - 1 : 0;
    weigh(t + skip, n - skip, (double)s->temperature);
    for (int i = 0; i < in->n; i++) p[i] = 0;
    for (int i = skip; i < n; i++) p[t[i].id] = t[i].p;
}

/* Draws at many positions have these frequencies: Pearson's statistic, its distribution made normal by Wilson and
 * Hilferty; beyond 4 comes once in 30000. Tokens of which less than 5 are expected go together. */
static void same_frequencies(q_sample_in *in, const char *what, int number) {
    enum { DRAWS = T_SLOW ? 1000 : 4000 };
    const lq_sampler *s = in->sampler;
    double p[2][WORDS], rest = 0, x = 0;
    int count[WORDS] = {0}, rest_count = 0, df = -1;
    const float mu = s->mirostat_mu ? *s->mirostat_mu : 0;
    plain_way(in, false, p[0]);
    plain_way(in, true, p[1]);
    for (int i = 0; i < DRAWS; i++) {
        in->position = (uint64_t)i;
        count[chosen(in)]++;
        if (s->mirostat_mu) *s->mirostat_mu = mu;
    }
    for (int i = 0; i < in->n; i++) {
        const double e = DRAWS * (p[0][i] + (double)s->xtc_probability * (p[1][i] - p[0][i]));
        ck_assert_msg(e > 0 || count[i] == 0, "%s %d: token %d is not to be chosen, was %d times", what, number, i,
                      count[i]);
        if (e < 5) {
            rest += e;
            rest_count += count[i];
            continue;
        }
        x += (count[i] - e) * (count[i] - e) / e;
        df++;
    }
    if (rest >= 5) x += (rest_count - rest) * (rest_count - rest) / rest, df++;
    const double v = 2.0 / (9 * Q_MAX(df, 1)), z = (cbrt(x / Q_MAX(df, 1)) - (1 - v)) / sqrt(v);
    ck_assert_msg(df < 1 ? x < 1e-9 : z < 4, "%s %d: chi-square %.1f with %d degrees of freedom", what, number, x, df);
}

/* A row of logits and what came before; a few tokens come often, and end as they went on once. */
static void scene(q_sample_in *in, float *logits, int32_t *ids, uint64_t *seed) {
    for (int i = 0; i < WORDS; i++) logits[i] = 1.5f * t_normal(seed);
    for (int i = 0; i < HISTORY; i++) ids[i] = 8 + (int32_t)(t_rand(seed) % (i % 2 ? 6 : WORDS - 8));
    for (int i = 0; i < 6; i++) ids[HISTORY - 6 + i] = ids[20 + i];
    *in = (q_sample_in){.logits = logits, .n = WORDS, .ids = ids, .count = HISTORY};
}

START_TEST(each_field_alone) {
    static float mu;
    static const lq_logit_bias biases[] = {{3, 2.5f}, {7, -INFINITY}, {3, -0.5f}, {11, -1}};
    static const char *const breakers[] = {"\n"};
    const lq_sampler all[] = {
        {.temperature = 1},
        {.temperature = 0.6f},
        {.temperature = 2.5f},
        {.temperature = 1, .top_k = 5},
        {.temperature = 1, .top_k = 1},
        {.temperature = 1.4f, .top_k = 39},
        {.temperature = 1, .top_p = 0.8f},
        {.temperature = 3, .top_p = 0.5f},
        {.temperature = 1, .top_p = 0.999f},
        {.temperature = 1, .min_p = 0.1f},
        {.temperature = 4, .min_p = 0.02f},
        {.temperature = 1, .min_p = 1},
        {.temperature = 1, .typical_p = 0.5f},
        {.temperature = 0.7f, .typical_p = 0.9f},
        {.temperature = 1, .xtc_probability = 1},
        {.temperature = 1, .xtc_probability = 0.5f, .xtc_threshold = 0.05f},
        {.temperature = 1, .repeat_penalty = 1.3f},
        {.temperature = 1, .repeat_penalty = 0.7f, .penalty_last_n = 8},
        {.temperature = 1, .frequency_penalty = 0.4f},
        {.temperature = 1, .frequency_penalty = -0.3f},
        {.temperature = 1, .presence_penalty = 1.5f, .penalty_last_n = 20},
        {.temperature = 1, .dry_multiplier = 0.8f},
        {.temperature = 1, .dry_multiplier = 1, .dry_allowed_length = 1},
        {.temperature = 1, .dry_multiplier = 0.3f, .dry_base = 1.2f, .dry_last_n = 50, .dry_allowed_length = 3},
        {.temperature = 1, .dry_multiplier = 0.8f, .dry_breakers = breakers, .n_dry_breakers = 1},
        {.temperature = 1, .mirostat_tau = 3, .mirostat_mu = &mu},
        {.temperature = 0.8f, .mirostat_tau = 5, .mirostat_mu = &mu},
        {.temperature = 1, .n_logit_bias = 4, .logit_bias = biases},
    };
    uint64_t seed = 5;
    for (size_t i = 0; i < Q_COUNT(all); i++) {
        float logits[WORDS];
        int32_t ids[HISTORY];
        q_sample_in in;
        scene(&in, logits, ids, &seed);
        in.sampler = &all[i];
        mu = 1.2f * all[i].mirostat_tau;
        same_frequencies(&in, "field", (int)i);
    }
}
END_TEST

START_TEST(many_fields_together) {
    uint64_t seed = 99;
    for (int round = 0; round < (T_SLOW ? 20 : 80); round++) {
        float logits[WORDS], mu = 3;
        int32_t ids[HISTORY];
        q_sample_in in;
        lq_sampler s = {.temperature = 0.3f + (float)(t_rand(&seed) % 20) * 0.1f, .seed = t_rand(&seed)};
        const uint64_t bits = t_rand(&seed);
        scene(&in, logits, ids, &seed);
        const lq_logit_bias biases[] = {{(int32_t)(t_rand(&seed) % WORDS), 2}, {(int32_t)(t_rand(&seed) % WORDS), -3}};
        if (bits & 1) s.logit_bias = biases, s.n_logit_bias = 2;
        if (bits & 2) s.repeat_penalty = 1.1f, s.penalty_last_n = (uint32_t)(t_rand(&seed) % 70);
        if (bits & 4) s.frequency_penalty = 0.2f, s.presence_penalty = -0.4f;
        if (bits & 8) s.dry_multiplier = 0.5f, s.dry_last_n = (uint32_t)(t_rand(&seed) % 70);
        if (bits & 16) s.top_k = 1 + (uint32_t)(t_rand(&seed) % 30);
        if (bits & 32) s.typical_p = 0.55f + (float)(t_rand(&seed) % 40) * 0.01f;
        if (bits & 64) s.top_p = 0.55f + (float)(t_rand(&seed) % 40) * 0.01f;
        if (bits & 128) s.min_p = (float)(1 + t_rand(&seed) % 20) * 0.01f;
        if (bits & 256) s.xtc_probability = 0.5f, s.xtc_threshold = 0.08f;
        if (round % 8 == 7) {
            s.mirostat_tau = 2, s.mirostat_mu = &mu;
            s.top_k = 0, s.typical_p = s.top_p = s.min_p = s.xtc_probability = 0;
        }
        in.sampler = &s;
        same_frequencies(&in, "combination", round);
    }
}
END_TEST

/* ------------------------------------------------------------------------------------------------ by hand */

/* With these fields the logit of token `id` becomes `want`: greedy choice prefers it to one that is a little less
 * likely, and not to one that is a little more likely. */
static void becomes(const lq_sampler *s, const int32_t *ids, int64_t count, int32_t id, float logit, float want) {
    for (int more = 0; more < 2; more++) {
        float x[12];
        for (int i = 0; i < 12; i++) x[i] = -1e6f;
        x[id] = logit;
        x[11] = want + (more ? 1e-4f : -1e-4f) * Q_MAX(1.0f, fabsf(want));
        const int32_t got = chosen(&(q_sample_in){.logits = x, .n = 12, .sampler = s, .ids = ids, .count = count});
        ck_assert_msg(got == (more ? 11 : id), "token %d does not become %g but %s", id, (double)want,
                      more ? "more" : "less");
    }
}

START_TEST(penalties_by_hand) {
    const int32_t ids[] = {0, 0, 1, 2, 0};
    const lq_sampler repeat = {.repeat_penalty = 2}, counted = {.frequency_penalty = 0.5f, .presence_penalty = 0.25f};
    const lq_sampler late = {.frequency_penalty = 1, .penalty_last_n = 2},
                     every = {.repeat_penalty = 4, .frequency_penalty = 1};
    const lq_sampler one = {.repeat_penalty = 1};
    becomes(&repeat, ids, 5, 0, 3, 1.5f); /* once, however often it was there */
    becomes(&repeat, ids, 5, 1, -3, -6);
    becomes(&repeat, ids, 5, 3, 3, 3);
    becomes(&counted, ids, 5, 0, 3, 1.25f);
    becomes(&counted, ids, 5, 2, 3, 2.25f);
    becomes(&late, ids, 5, 0, 3, 2);
    becomes(&late, ids, 5, 1, 3, 3);
    becomes(&every, ids, 5, 0, 8, -1); /* 8 / 4 - 3 */
    becomes(&one, ids, 5, 0, 3, 3);
    becomes(&repeat, NULL, 0, 0, 3, 3);
    const lq_sampler huge = {.repeat_penalty = 3e38f, .frequency_penalty = 3e38f};
    const float x[] = {-3e38f, -INFINITY};
    ck_assert_int_eq(chosen(&(q_sample_in){.logits = x, .n = 2, .sampler = &huge, .ids = ids, .count = 2}), 0);
}
END_TEST

START_TEST(dry_by_hand) {
    const lq_sampler s = {.dry_multiplier = 1, .dry_base = 2};
    const int32_t ids[] = {8, 9, 10, 7, 8, 9, 10}; /* 7 followed 8 9 10 */
    becomes(&s, ids, 7, 7, 5, 5 - 2);              /* 2^(3 - 2) */
    becomes(&s, ids, 6, 10, 5, 4);
    becomes(&s, ids, 5, 9, 5, 5); /* one token alone is allowed */
    becomes(&s, ids, 7, 8, 5, 5);
    const lq_sampler less = {.dry_multiplier = 0.5f, .dry_allowed_length = 1},
                     late = {.dry_multiplier = 1, .dry_base = 2, .dry_last_n = 6};
    becomes(&less, ids, 5, 9, 5, 4.5f);
    becomes(&less, ids, 7, 7, 5, 5 - 0.5f * 1.75f * 1.75f);
    becomes(&late, ids, 7, 7, 5, 4); /* the window holds 9 10 of it */
    const int32_t same[] = {3, 3, 3, 3, 3};
    becomes(&s, same, 5, 3, 5, 5 - 4); /* four of them end one earlier */
    const int32_t two[] = {8, 9, 10, 7, 9, 10, 6, 8, 9, 10};
    becomes(&s, two, 10, 7, 5, 3);
    becomes(&s, two, 10, 6, 5, 4);
}
END_TEST

START_TEST(dry_stops_at_breakers) {
    static const char *const newline[] = {"\n"}, *const tag[] = {"?", "<br>"}, *const colon[] = {":"};
    lq_sampler s = {.dry_multiplier = 1, .dry_base = 2, .dry_breakers = newline, .n_dry_breakers = 1};
    const int32_t line[] = {8, 3, 9, 10, 7, 8, 3, 9, 10}; /* 3 has the newline: of four tokens two count */
    becomes(&s, line, 9, 7, 5, 4);
    s.n_dry_breakers = 0, s.dry_breakers = NULL;
    becomes(&s, line, 9, 7, 5, 1);
    s.n_dry_breakers = 2, s.dry_breakers = tag;
    const int32_t in_two[] = {8, 4, 5, 9, 10, 7, 8, 4, 5, 9, 10}; /* "<" "br>" */
    becomes(&s, in_two, 11, 7, 5, 4);
    const int32_t not [] = {8, 5, 4, 9, 10, 7, 8, 5, 4, 9, 10}; /* "br>" "<" is none */
    becomes(&s, not, 11, 7, 5, 5 - 8);
    const int32_t in_one[] = {8, 6, 9, 7, 8, 6, 9};
    becomes(&s, in_one, 7, 7, 5, 5);
    s.n_dry_breakers = 1, s.dry_breakers = colon;
    const int32_t itself[] = {8, 9, 10, 2, 8, 9, 10}; /* 2 is "c:", which may be said again */
    becomes(&s, itself, 7, 2, 5, 5);
}
END_TEST

static int bans_all_but(void *user, float *logits, size_t n, const int32_t *ids, size_t count) {
    const int32_t *only = user;
    ck_assert(n == 5 && count == 2 && ids[1] == 4);
    for (size_t i = 0; i < n; i++)
        if ((int32_t)i != *only) logits[i] = -INFINITY;
    return 0;
}
static int makes_nan(void *user, float *logits, size_t n, const int32_t *ids, size_t count) {
    Q_UNUSED(user)
    , Q_UNUSED(ids)
    , Q_UNUSED(count);
    logits[n - 1] = NAN;
    return 0;
}
static int refuses(void *user, float *logits, size_t n, const int32_t *ids, size_t count) {
    Q_UNUSED(user)
    , Q_UNUSED(ids)
    , Q_UNUSED(count)
    , Q_UNUSED(n);
    logits[0] = 100;
    return 1;
}

START_TEST(masks_and_biases) {
    const float x[] = {1, 2, 3, 4, 5};
    const int32_t ids[] = {3, 4};
    int32_t only = 2, id = 77;
    const lq_logit_bias to_one = {1, 9}, never = {4, -INFINITY};
    lq_sampler s = {.mask = bans_all_but, .mask_user = &only};
    q_sample_in in = {.logits = x, .n = 5, .sampler = &s, .ids = ids, .count = 2};
    for (int i = 0; i < 2; i++) {
        ck_assert_int_eq(chosen(&in), 2);
        s.temperature = 50;
    }
    only = 9; /* nothing */
    ck_assert_int_eq(choose(&in, &id), LQ_E_NUMERIC);
    s.mask = makes_nan;
    ck_assert_int_eq(choose(&in, &id), LQ_E_NUMERIC);
    s.mask = refuses;
    ck_assert_int_eq(choose(&in, &id), LQ_E_CANCELLED);
    ck_assert(id == 77 && x[0] == 1);
    s = (lq_sampler){.logit_bias = &to_one, .n_logit_bias = 1};
    ck_assert_int_eq(chosen(&in), 1);
    s.logit_bias = &never;
    ck_assert_int_eq(chosen(&in), 3);
}
END_TEST

/* Two bits of surprise at the state 2.5: tokens of a half and a quarter are kept, the draw moves the state. */
START_TEST(mirostat_by_hand) {
    const float x[] = {logf(0.5f), logf(0.25f), logf(0.125f), logf(0.125f)};
    float mu = 2.5f;
    const lq_sampler s = {.temperature = 1, .mirostat_tau = 1.5f, .mirostat_eta = 0.2f, .mirostat_mu = &mu};
    bool seen[4] = {false};
    for (uint64_t at = 0; at < 200; at++) {
        mu = 2.5f;
        const int32_t id = chosen(&(q_sample_in){.logits = x, .n = 4, .sampler = &s, .position = at});
        ck_assert_int_lt(id, 2);
        ck_assert_double_lt(fabs((double)mu - (2.5 - 0.2 * (id + 1 - 1.5))), 1e-5);
        seen[id] = true;
    }
    ck_assert(seen[0] && seen[1]);
    mu = -3; /* the best one is always kept */
    ck_assert_int_eq(chosen(&(q_sample_in){.logits = x, .n = 4, .sampler = &s}), 0);
}
END_TEST

START_TEST(greedy_is_exact) {
    static float x[MOST];
    uint64_t seed = 8;
    for (int i = 0; i < MOST; i++) x[i] = t_normal(&seed);
    x[300] = x[299] = x[8000] = 20;
    const lq_sampler greedy = {.top_k = 40, .top_p = 0.9f, .min_p = 0.1f},
                     xtc = {.xtc_probability = 1, .xtc_threshold = 0.2f};
    const lq_sampler typical = {.typical_p = 0.01f};
    ck_assert_int_eq(chosen(&(q_sample_in){.logits = x, .n = MOST, .sampler = &greedy}), 299);
    /* of three the last stays */
    ck_assert_int_eq(chosen(&(q_sample_in){.logits = x, .n = MOST, .sampler = &xtc}), 8000);
    for (int i = 0; i < MOST; i++) x[i] = -10;
    x[10] = 5, x[700] = 4.8f;
    ck_assert_int_eq(chosen(&(q_sample_in){.logits = x, .n = MOST, .sampler = &xtc}), 700);
    const float y[] = {logf(0.6f), logf(0.2f), logf(0.2f)}; /* entropy 0.95 nats: 0.6 has 0.51, a fifth 1.61 */
    ck_assert_int_eq(chosen(&(q_sample_in){.logits = y, .n = 3, .sampler = &typical}), 0);
    const float z[] = {logf(0.4f), logf(0.3f), logf(0.3f)}; /* 1.09 nats: the likeliest has 0.92, the others 1.20 */
    ck_assert_int_eq(chosen(&(q_sample_in){.logits = z, .n = 3, .sampler = &typical}), 1);
}
END_TEST

/* ------------------------------------------------------------------------------------------------ what is refused */

START_TEST(fields_out_of_range) {
    static const lq_logit_bias outside = {5, 1}, negative = {-1, 1}, infinite = {0, INFINITY}, nan_ = {0, NAN};
    static const char *const empty[] = {"a", ""}, *const null[] = {NULL}, *const fine[] = {"a"};
    static char text[70];
    static const char *const longs[] = {text};
    static float mu = 3, odd_mu = NAN;
    memset(text, 'a', 65);
    const struct {
        const char *name;
        lq_sampler s;
    } bad[] = {
        {"temperature", {.temperature = NAN}},
        {"temperature", {.temperature = -1}},
        {"top_p", {.top_p = 1.1f}},
        {"min_p", {.min_p = -0.1f}},
        {"typical_p", {.typical_p = 2}},
        {"typical_p", {.typical_p = NAN}},
        {"xtc_probability", {.xtc_probability = 1.5f}},
        {"xtc_threshold", {.xtc_threshold = 0.6f}},
        {"repeat_penalty", {.repeat_penalty = -1}},
        {"repeat_penalty", {.repeat_penalty = INFINITY}},
        {"frequency_penalty", {.frequency_penalty = INFINITY}},
        {"presence_penalty", {.presence_penalty = NAN}},
        {"dry_multiplier", {.dry_multiplier = -1}},
        {"dry_base", {.dry_multiplier = 1, .dry_base = 0.5f}},
        {"dry_base", {.dry_base = -2}},
        {"mirostat_tau", {.temperature = 1, .mirostat_tau = -1, .mirostat_mu = &mu}},
        {"mirostat_eta", {.temperature = 1, .mirostat_tau = 1, .mirostat_eta = NAN, .mirostat_mu = &mu}},
        {"mirostat_mu", {.temperature = 1, .mirostat_tau = 1}},
        {"mirostat_mu", {.temperature = 1, .mirostat_tau = 1, .mirostat_mu = &odd_mu}},
        {"temperature 0", {.mirostat_tau = 1, .mirostat_mu = &mu}},
        {"top_k", {.temperature = 1, .mirostat_tau = 1, .mirostat_mu = &mu, .top_k = 3}},
        {"xtc", {.temperature = 1, .mirostat_tau = 1, .mirostat_mu = &mu, .xtc_probability = 1}},
        {"logit_bias[0]", {.logit_bias = &outside, .n_logit_bias = 1}},
        {"logit_bias[0]", {.logit_bias = &negative, .n_logit_bias = 1}},
        {"logit_bias[0]", {.logit_bias = &infinite, .n_logit_bias = 1}},
        {"logit_bias[0]", {.logit_bias = &nan_, .n_logit_bias = 1}},
        {"n_logit_bias", {.n_logit_bias = 1}},
        {"dry_breakers[1]", {.dry_multiplier = 1, .dry_breakers = empty, .n_dry_breakers = 2}},
        {"dry_breakers[0]", {.dry_multiplier = 1, .dry_breakers = null, .n_dry_breakers = 1}},
        {"dry_breakers[0]", {.dry_multiplier = 1, .dry_breakers = longs, .n_dry_breakers = 1}},
        {"n_dry_breakers", {.dry_multiplier = 1, .dry_breakers = fine, .n_dry_breakers = 65}},
        {"n_dry_breakers", {.dry_multiplier = 1, .n_dry_breakers = 1}},
    };
    const float x[] = {1, 2, 3};
    int32_t id = 77;
    for (size_t i = 0; i < Q_COUNT(bad); i++) {
        const q_sample_in in = {.logits = x, .n = 3, .sampler = &bad[i].s};
        ck_assert_msg(choose(&in, &id) == LQ_E_ARG, "case %d", (int)i);
        ck_assert_msg(strstr(lq_error_detail(), bad[i].name) != NULL, "case %d, %s: %s", (int)i, bad[i].name,
                      lq_error_detail());
    }
    ck_assert(id == 77 && mu == 3);
    lq_sampler s = {.size = sizeof s, .dry_multiplier = 1, .dry_breakers = fine, .n_dry_breakers = 1};
    ck_assert_int_eq(lq_sample_logits(NULL, x, 3, &s, NULL, 0, 0, &id), LQ_E_ARG); /* whose texts? */
    ck_assert_ptr_nonnull(strstr(lq_error_detail(), "model"));
    const int32_t ids[] = {0, 3};
    s = (lq_sampler){.size = sizeof s};
    ck_assert_int_eq(lq_sample_logits(NULL, x, 3, &s, ids, 2, 0, &id), LQ_E_ARG);
    ck_assert_ptr_nonnull(strstr(lq_error_detail(), "token 1 is 3"));
    ck_assert_int_eq(lq_sample_logits(NULL, x, 3, &s, NULL, 2, 0, &id), LQ_E_ARG);
    ck_assert_int_eq(lq_sample_logits(NULL, x, 3, &s, ids, 1, 0, &id), LQ_OK);
    ck_assert_int_eq(id, 2);
}
END_TEST

/* ------------------------------------------------------------------------------------------------ many tokens */

static lq_sampler odd_sampler(uint64_t *seed) {
    lq_sampler s = {.temperature = t_rand(seed) % 5 ? 0.8f : 0, .seed = t_rand(seed)};
    const uint64_t bits = t_rand(seed);
    if (bits & 1) s.top_k = 1 + (uint32_t)(t_rand(seed) % 400);
    if (bits & 2) s.top_p = 0.95f;
    if (bits & 4) s.min_p = 0.05f;
    if ((bits & 24) == 24) s.typical_p = 0.9f;
    if (bits & 32) s.repeat_penalty = 1.1f;
    if (bits & 64) s.dry_multiplier = 0.8f;
    if (bits & 128) s.xtc_probability = 0.5f;
    return s;
}

/* Rows of all kinds: spread out, flat, peaked, with ties and masks. */
static void odd_row(float *x, int n, int kind, uint64_t *seed) {
    for (int i = 0; i < n; i++) {
        x[i] = t_normal(seed) * (kind == 0 ? 3.0f : kind == 1 ? 0.01f : 8.0f);
        if (kind == 3) x[i] = floorf(x[i] / 4);
        if (kind == 4 && t_rand(seed) % 3) x[i] = -INFINITY;
        if (kind == 5) x[i] = 1;
    }
    if (kind == 4) x[n / 2] = 1;
}

START_TEST(every_instruction_set_chooses_the_same) {
    static const int lengths[] = {1, 2, 255, 256, 257, 1000, MOST};
    static float x[MOST];
    static int32_t ids[HISTORY];
    uint64_t seed = 17;
    int lines = 0;
    for (uint32_t k = 0; k < q_cpu_kernel_count(); k++) {
        const q_cpu_kernel *line = &q_cpu_kernels[k];
        if (!line->wide || !q_isa_present(line->isa)) continue;
        lines++;
        for (int round = 0; round < (T_SLOW ? 60 : 300); round++) {
            const int n = lengths[t_rand(&seed) % Q_COUNT(lengths)];
            odd_row(x, n, round % 6, &seed);
            for (int i = 0; i < HISTORY; i++) ids[i] = (int32_t)(t_rand(&seed) % (uint64_t)Q_MIN(n, 9));
            const lq_sampler s = odd_sampler(&seed);
            q_sample_in in = {
                .logits = x, .n = n, .sampler = &s, .ids = ids, .count = HISTORY, .position = t_rand(&seed)};
            const int32_t want = chosen(&in);
            in.wide = line->wide;
            const int32_t got = chosen(&in);
            ck_assert_msg(got == want, "%s: round %d, %d logits: %d, not %d", line->name, round, n, got, want);
        }
    }
    if (lines == 0) T_SKIP("no instruction set here has loops of its own");
}
END_TEST

/* What a long row's list leaves out is never what the sort of everything keeps. */
START_TEST(long_rows_keep_what_a_sort_keeps) {
    static float x[MOST];
    static plain t[MOST];
    uint64_t seed = 71;
    for (int round = 0; round < 40; round++) {
        const int n = round % 3 ? MOST : 700;
        const lq_sampler s = {.temperature = 40,
                              .top_k = round % 4 == 0 ? 300 : 0,
                              .top_p = round % 4 == 1 ? (round < 16 ? 0.97f : 0.7f) : 0,
                              .min_p = round % 4 == 2 ? 0.2f : 0,
                              .typical_p = round % 4 == 3 ? 0.5f : 0};
        odd_row(x, n, round / 4 % 4, &seed);
        for (int i = 0; i < n; i++) t[i] = (plain){.id = i, .x = x[i]};
        int kept = likely_first(t, n);
        weigh(t, n, 1);
        if (s.top_k) kept = 300;
        if (s.top_p > 0) kept = as_few(t, n, (double)s.top_p);
        while (s.min_p > 0 && t[kept - 1].p < (double)s.min_p * t[0].p * 0.99999) kept--;
        if (s.typical_p > 0) {
            double entropy = 0;
            for (int i = 0; i < n; i++) entropy -= t[i].p * log(t[i].p);
            for (int i = 0; i < n; i++) t[i].key = -fabs(-log(t[i].p) - entropy);
            kept = as_few(t, n, (double)s.typical_p);
        }
        int furthest = 0;
        for (uint64_t at = 0; at < 300; at++) {
            const int32_t id = chosen(&(q_sample_in){.logits = x, .n = n, .sampler = &s, .position = at});
            int rank = 0;
            while (t[rank].id != id) rank++;
            furthest = Q_MAX(furthest, rank);
        }
        /* 300 draws that are nearly even */
        ck_assert_msg(furthest <= kept + kept / 1000 && furthest >= kept * 9 / 10 - 2, "round %d: rank %d of %d", round,
                      furthest, kept);
    }
}
END_TEST

/* ------------------------------------------------------------------------------------------------ sessions */

static lq_ctx *ctx;
static lq_model *model;
static lq_session *session;
static void open_session(uint32_t sequences) {
    char path[4096];
    const lq_options o = {.size = sizeof o, .threads = 1};
    const lq_session_options so = {.size = sizeof so, .context = 128, .sequences = sequences, .max_logits = 4};
    t_path(path, sizeof path, t_root(), "bench/data/pocket");
    ck_assert_int_eq(lq_open(&o, &ctx), LQ_OK);
    ck_assert_msg(lq_model_open(ctx, path, NULL, &model) == LQ_OK, "%s", lq_error_detail());
    ck_assert_int_eq(lq_session_open(model, &so, &session), LQ_OK);
}
static void close_session(void) {
    lq_session_close(session);
    lq_model_close(model);
    lq_close(ctx);
}

static size_t tokens_of(const char *text, int32_t *ids, size_t n) {
    ck_assert_int_eq(lq_tokenize(model, text, strlen(text), LQ_TOKENIZE_BOS, ids, &n), LQ_OK);
    return n;
}

START_TEST(sessions_give_their_own_tokens) {
    static const char *const breakers[] = {"\n", ",", "."};
    int32_t ids[100], got, want;
    open_session(3);
    const size_t n = tokens_of("one day a cat and a dog, one day a cat and a dog\none day a cat", ids, 100);
    lq_model_info info = {.size = sizeof info};
    ck_assert_int_eq(lq_model_info_get(model, &info), LQ_OK);
    ck_assert_int_eq(lq_decode(session, &(lq_item){.sequence = 1, .ids = ids, .count = n, .logits_from = n - 3}, 1),
                     LQ_OK);
    int other = 0;
    for (uint32_t row = 0; row < 3; row++)
        for (uint64_t seed = 0; seed < 40; seed++) {
            const lq_sampler s = {.size = sizeof s,
                                  .temperature = 1.5f,
                                  .repeat_penalty = 1.5f,
                                  .dry_multiplier = 4,
                                  .seed = seed,
                                  .dry_breakers = breakers,
                                  .n_dry_breakers = seed % 2 ? 3 : 0};
            const float *logits;
            const size_t before = n - 2 + row;
            ck_assert_int_eq(lq_logits(session, row, &logits), LQ_OK);
            ck_assert_int_eq(lq_sample_logits(model, logits, info.vocabulary, &s, ids, before, before, &want), LQ_OK);
            ck_assert_msg(lq_sample(session, row, &s, &got) == LQ_OK, "%s", lq_error_detail());
            ck_assert_int_eq(got, want);
            ck_assert_int_eq(lq_sample_logits(model, logits, info.vocabulary, &s, ids, before - 9, before, &want),
                             LQ_OK);
            other += got != want;
        }
    ck_assert_int_gt(other, 0); /* the tokens matter */
    const lq_sampler warm = {.size = sizeof warm, .temperature = 1};
    ck_assert_int_eq(lq_seq_fork(session, 1, 2), LQ_OK);
    ck_assert_int_eq(lq_sample(session, 0, &warm, &got), LQ_OK);
    ck_assert_int_eq(lq_seq_fork(session, 0, 1), LQ_OK); /* the rows' sequence is another text now */
    ck_assert_int_eq(lq_sample(session, 0, &warm, &got), LQ_OK);
    const lq_sampler repeat = {.size = sizeof repeat, .repeat_penalty = 2};
    ck_assert_int_eq(lq_sample(session, 0, &repeat, &got), LQ_E_ARG);
    ck_assert_ptr_nonnull(strstr(lq_error_detail(), "changed since"));
    close_session();
}
END_TEST

START_TEST(log_probabilities) {
    static lq_logprob top[1 << 17];
    int32_t ids[100], best;
    float one;
    open_session(1);
    const size_t n = tokens_of("Once upon a time", ids, 100);
    lq_model_info info = {.size = sizeof info};
    ck_assert_int_eq(lq_model_info_get(model, &info), LQ_OK);
    ck_assert_int_eq(lq_decode(session, &(lq_item){.ids = ids, .count = n, .logits_from = n - 2}, 1), LQ_OK);
    const size_t vocabulary = info.vocabulary;
    double sum = 0;
    ck_assert_int_eq(lq_logprobs(session, 1, -1, NULL, top, vocabulary), LQ_OK);
    for (size_t i = 0; i < vocabulary; i++) {
        ck_assert(top[i].id >= 0 && (size_t)top[i].id < vocabulary && top[i].logprob <= 0);
        if (i) ck_assert(top[i - 1].logprob > top[i].logprob || top[i - 1].id < top[i].id);
        sum += exp((double)top[i].logprob);
    }
    ck_assert_double_lt(fabs(sum - 1), 1e-5);
    ck_assert_int_eq(lq_sample(session, 1, NULL, &best), LQ_OK);
    ck_assert_int_eq(best, top[0].id);
    const lq_logprob fourth = top[3];
    ck_assert_int_eq(lq_logprobs(session, (uint32_t)LQ_ROW_LAST, fourth.id, &one, top, 4), LQ_OK);
    ck_assert(one == fourth.logprob && top[3].id == fourth.id && top[3].logprob == one);
    const float *logits;
    ck_assert_int_eq(lq_logits(session, 1, &logits), LQ_OK);
    for (size_t i = 1; i < 4; i++)
        ck_assert_double_lt(
            fabs((double)(top[0].logprob - top[i].logprob) - (double)(logits[top[0].id] - logits[top[i].id])), 1e-4);
    one = 5;
    ck_assert_int_eq(lq_logprobs(session, 2, 0, &one, NULL, 0), LQ_E_ARG);
    ck_assert_int_eq(lq_logprobs(session, 0, -1, &one, NULL, 0), LQ_E_ARG);
    ck_assert_int_eq(lq_logprobs(session, 0, (int32_t)vocabulary, &one, NULL, 0), LQ_E_ARG);
    ck_assert_int_eq(lq_logprobs(session, 0, 0, NULL, top, vocabulary + 1), LQ_E_ARG);
    ck_assert_int_eq(lq_logprobs(session, 0, 0, NULL, NULL, 3), LQ_E_ARG);
    ck_assert(one == 5);
    close_session();
}
END_TEST

static Suite *suite(void) {
    Suite *s = suite_create("sampling");
    TCase *c = tcase_create("sampling");
    const TTest *const tests[] = {each_field_alone,
                                  many_fields_together,
                                  penalties_by_hand,
                                  dry_by_hand,
                                  dry_stops_at_breakers,
                                  masks_and_biases,
                                  mirostat_by_hand,
                                  greedy_is_exact,
                                  fields_out_of_range,
                                  every_instruction_set_chooses_the_same,
                                  long_rows_keep_what_a_sort_keeps,
                                  sessions_give_their_own_tokens,
                                  log_probabilities};
    for (size_t i = 0; i < Q_COUNT(tests); i++) tcase_add_test(c, tests[i]);
    suite_add_tcase(s, c);
    return s;
}
HARNESS_MAIN(suite)
