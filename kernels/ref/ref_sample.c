/* ref_sample.c: SAMPLE and the definition of choosing a token from a row of logits: its fields' ranges, the order of
 * its steps, the draw. Refuses logits that are not finite (minus infinity is a mask) and fields out of range. No state:
 * draws are functions of (seed, position). Layer L2. */
#include "ref_sample.h"

/* Lays the scratch out, or measures it. */
static void lay_out(q_choice *c, int64_t n, int64_t count, q_ref_carve *carve) {
    c->y = q_ref_take(carve, n, sizeof *c->y);
    c->most = q_ref_take(carve, q_wide_spans(n), sizeof *c->most);
    c->sums = q_ref_take(carve, q_wide_spans(n), sizeof *c->sums);
    c->ids = q_ref_take(carve, n, sizeof *c->ids);
    c->key = q_ref_take(carve, n, sizeof *c->key);
    c->w = q_ref_take(carve, n, sizeof *c->w);
    c->work = q_ref_take(carve, n, sizeof *c->work);
    c->match = q_ref_take(carve, count, sizeof *c->match);
}

size_t q_sample_bytes(int64_t n, int64_t count) {
    q_choice c;
    q_ref_carve carve = {0};
    lay_out(&c, n, count, &carve);
    return carve.used;
}

/* A uniform number in [0, 1) with 53 bits. Position and seed go through two rounds of the splitmix64 finalizer (Steele,
 * Lea, Flood: Fast splittable pseudorandom number generators, 2014), so that neighbours in either are unrelated. */
static uint64_t mix(uint64_t z) {
    z = (z ^ (z >> 30)) * 0xBF58476D1CE4E5B9u;
    z = (z ^ (z >> 27)) * 0x94D049BB133111EBu;
    return z ^ (z >> 31);
}
double q_ref_uniform(uint64_t seed, uint64_t position) {
    const uint64_t key = mix(seed + 0x9E3779B97F4A7C15u);
    return (double)(mix(key + (position + 1) * 0x9E3779B97F4A7C15u) >> 11) * 0x1p-53;
}
double q_choice_uniform(const q_choice *c, int stream) {
    return q_ref_uniform(c->s->seed + (uint64_t)stream * 0xD1B54A32D192ED03u, c->in->position);
}

/* ------------------------------------------------------------------------------------------------ fields */

static lq_status check_fields(const lq_sampler *s) {
    const float most = 3.4028234e38f;
    const struct {
        const char *name;
        float v, least, most;
    } fields[] = {
        {"temperature", s->temperature, 0, most},
        {"top_p", s->top_p, 0, 1},
        {"min_p", s->min_p, 0, 1},
        {"typical_p", s->typical_p, 0, 1},
        {"xtc_probability", s->xtc_probability, 0, 1},
        {"xtc_threshold", s->xtc_threshold, 0, 0.5f},
        {"repeat_penalty", s->repeat_penalty, 0, most},
        {"frequency_penalty", s->frequency_penalty, -most, most},
        {"presence_penalty", s->presence_penalty, -most, most},
        {"dry_multiplier", s->dry_multiplier, 0, most},
        {"dry_base", s->dry_base == 0 ? 1 : s->dry_base, 1, most},
        {"mirostat_tau", s->mirostat_tau, 0, most},
        {"mirostat_eta", s->mirostat_eta, 0, most},
    };
    for (size_t i = 0; i < Q_COUNT(fields); i++)
        if (!(fields[i].v >= fields[i].least && fields[i].v <= fields[i].most))
            return q_fail(LQ_E_ARG, "sampler: %s %g is not a finite number from %g to %g", fields[i].name,
                          (double)fields[i].v, (double)fields[i].least, (double)fields[i].most);
    return LQ_OK;
}

static lq_status check_mirostat(const lq_sampler *s) {
    if (s->mirostat_tau == 0) return LQ_OK;
    if (s->temperature == 0)
        return q_fail(LQ_E_ARG, "sampler: mirostat_tau with temperature 0, which leaves no choice");
    if (!s->mirostat_mu || !isfinite(*s->mirostat_mu))
        return q_fail(LQ_E_ARG, "sampler: mirostat_tau without a finite mirostat_mu: 2 * tau at the start of a text");
    if (s->top_k || (s->top_p > 0 && s->top_p < 1) || s->min_p > 0 || (s->typical_p > 0 && s->typical_p < 1) ||
        s->xtc_probability > 0)
        return q_fail(LQ_E_ARG, "sampler: mirostat_tau stands in the place of top_k, top_p, min_p, typical_p and xtc: "
                                "these have to be 0 with it");
    return LQ_OK;
}

static lq_status check_lists(const q_sample_in *in) {
    const lq_sampler *s = in->sampler;
    if (s->n_logit_bias && !s->logit_bias) return q_fail(LQ_E_ARG, "sampler: n_logit_bias %u at NULL", s->n_logit_bias);
    for (uint32_t i = 0; i < s->n_logit_bias; i++) {
        const lq_logit_bias *b = &s->logit_bias[i];
        if (b->id < 0 || b->id >= in->n)
            return q_fail(LQ_E_ARG, "sampler: logit_bias[%u] is of token %d, outside the vocabulary of %lld", i, b->id,
                          (long long)in->n);
        if (!(b->bias < INFINITY))
            return q_fail(LQ_E_ARG, "sampler: logit_bias[%u], of token %d, is %g", i, b->id, (double)b->bias);
    }
    if (s->n_dry_breakers == 0) return LQ_OK;
    if (s->n_dry_breakers > Q_DRY_BREAKERS || !s->dry_breakers)
        return q_fail(LQ_E_ARG, "sampler: n_dry_breakers %u; there may be %d", s->n_dry_breakers, Q_DRY_BREAKERS);
    for (uint32_t i = 0; i < s->n_dry_breakers; i++) {
        const size_t n = s->dry_breakers[i] ? strlen(s->dry_breakers[i]) : 0;
        if (n == 0 || n > Q_DRY_BREAKER)
            return q_fail(LQ_E_ARG, "sampler: dry_breakers[%u] has %zu bytes, not 1 to %d", i, n, Q_DRY_BREAKER);
    }
    if (s->dry_multiplier != 0 && !in->piece)
        return q_fail(LQ_E_ARG, "sampler: dry_breakers without a model: texts of tokens are not known");
    return LQ_OK;
}

static lq_status check(const q_sample_in *in) {
    Q_TRY(check_fields(in->sampler));
    Q_TRY(check_mirostat(in->sampler));
    if (in->n < 1 || in->n > INT32_MAX) return q_fail(LQ_E_ARG, "sampler: a row of %lld logits", (long long)in->n);
    return check_lists(in);
}

/* ------------------------------------------------------------------------------------------------ the draw */

/* Temperatures below make no difference: logits that differ do so by more. */
float q_choice_by(float temperature) { return 2.0f / Q_MAX(temperature, 1e-37f); }

double q_choice_weigh(q_choice *c, float temperature) {
    const int64_t n = c->kept < 0 ? c->n : c->kept;
    double total = 0;
    const float by = q_choice_by(temperature);
    if (c->kept < 0) c->wide->exps(c->x, n, c->best, by, NULL, c->sums);
    else c->wide->exps(c->key, n, c->best, by, c->w, c->sums);
    for (int64_t i = 0; i < q_wide_spans(n); i++) total += (double)c->sums[i];
    return total;
}

/* The lowest id among the largest. */
static int32_t greedy(const q_choice *c) {
    int64_t i = 0;
    if (c->kept >= 0) {
        while (c->key[i] != c->best) i++;
        return c->ids[i];
    }
    while (c->most[i / Q_WIDE_SPAN] != c->best) i += Q_WIDE_SPAN;
    while (c->x[i] != c->best) i++;
    return (int32_t)i;
}

/* The first, in order of ids, at which the running sum of weights exceeds u times their total; the last one that weighs
 * something where rounding leaves the sum at it. */
static int64_t drawn(q_choice *c, float temperature, double u) {
    const int64_t n = c->kept < 0 ? c->n : c->kept, spans = q_wide_spans(n);
    const double target = u * q_choice_weigh(c, temperature);
    double sum = 0;
    int64_t span = -1, chosen = -1;
    float local[Q_WIDE_SPAN], again;
    for (int64_t i = 0; i < spans && !(span >= 0 && sum > target); i++) {
        if (c->sums[i] == 0) continue;
        span = i;
        sum += (double)c->sums[i];
    }
    Q_ASSUME(span >= 0); /* the best one weighs 1 */
    sum -= (double)c->sums[span];
    const int64_t from = span * Q_WIDE_SPAN, here = Q_MIN(n - from, (int64_t)Q_WIDE_SPAN);
    const float *w = c->kept < 0 ? local : c->w + from;
    if (c->kept < 0) c->wide->exps(c->x + from, here, c->best, q_choice_by(temperature), local, &again);
    for (int64_t i = 0; i < here && !(chosen >= 0 && sum > target); i++) {
        if (w[i] == 0) continue;
        chosen = from + i;
        sum += (double)w[i];
    }
    return chosen;
}

static int32_t draw(q_choice *c, float temperature) {
    const int64_t i = drawn(c, temperature, q_choice_uniform(c, Q_DRAW_TOKEN));
    return c->kept < 0 ? (int32_t)i : c->ids[i];
}

/* The state moves only when a token was chosen. */
static int32_t draw_mirostat(q_choice *c) {
    const lq_sampler *s = c->s;
    double log_total;
    q_choice_mirostat(c, &log_total);
    const int32_t id = draw(c, s->temperature);
    const double d = 0.5 * ((double)c->x[id] - (double)c->best) * (double)q_choice_by(s->temperature);
    const double surprise = (log_total - d) / log(2);
    const double eta = s->mirostat_eta == 0 ? 0.1 : (double)s->mirostat_eta;
    const double mu = (double)*s->mirostat_mu - eta * (surprise - (double)s->mirostat_tau);
    *s->mirostat_mu = (float)Q_MIN(Q_MAX(mu, -1e30), 1e30);
    return id;
}

/* ------------------------------------------------------------------------------------------------ the whole */

/* Logits that may be chosen from: copied where they will be changed, the largest of each span known. */
static lq_status begin(q_choice *c) {
    const bool copy = q_choice_adjusts(c->s);
    if (!c->wide->peaks(c->x, c->n, copy ? c->y : NULL, c->most))
        for (int64_t i = 0; i < c->n; i++)
            if (!(c->x[i] < INFINITY)) return q_fail(LQ_E_NUMERIC, "logit %lld is not finite", (long long)i);
    if (copy) {
        c->x = c->y;
        Q_TRY(q_choice_adjust(c));
    }
    c->best = -INFINITY;
    for (int64_t i = 0; i < q_wide_spans(c->n); i++) c->best = Q_MAX(c->best, c->most[i]);
    if (c->best == -INFINITY)
        return q_fail(LQ_E_NUMERIC, "all %lld logits are minus infinity: nothing is left to choose from",
                      (long long)c->n);
    return LQ_OK;
}

lq_status q_ref_sample_row(const q_sample_in *in, int32_t *id) {
    const lq_sampler *s = in->sampler;
    Q_TRY(check(in));
    q_choice c = {.in = in, .s = s, .wide = q_wide_of(in->wide), .n = in->n, .x = in->logits, .kept = -1};
    q_ref_carve carve = {.base = in->scratch};
    lay_out(&c, in->n, in->count, &carve);
    Q_TRY(begin(&c));
    if (s->mirostat_tau != 0) {
        *id = draw_mirostat(&c);
        return LQ_OK;
    }
    const bool drops_best = (s->typical_p > 0 && s->typical_p < 1) || s->xtc_probability > 0;
    if (s->temperature != 0 || drops_best) {
        q_choice_top_k(&c);
        q_choice_typical(&c);
        q_choice_top_p(&c);
        q_choice_min_p(&c);
        q_choice_xtc(&c);
    }
    *id = s->temperature == 0 ? greedy(&c) : draw(&c, s->temperature);
    return LQ_OK;
}

void q_ref_sample(const q_inst *s, const q_exec *e, int64_t begin, int64_t end) {
    const q_batch *b = e->batch;
    Q_UNUSED(s);
    if (!b->sampler) return;
    const bool can = q_sampler_is_plain(b->sampler) && e->scratch_bytes >= q_sample_bytes(e->plan->vocab, 0);
    for (int64_t o = begin; o < end; o++) {
        const q_sample_in in = {.logits = b->logits + o * e->plan->vocab, .n = e->plan->vocab, .sampler = b->sampler,
                                .position = b->draw[o], .scratch = e->scratch};
        b->sampled[o] = -1;
        if (can) (void)q_ref_sample_row(&in, &b->sampled[o]);
    }
}
