/* ref_sample_adjust.c: what changes logits before tokens are dropped: biases, the mask, penalties for repetition, DRY.
 * Owns no state; whoever gives the tokens before made sure that they are in the vocabulary. Layer L2. */
#include "ref_sample.h"

#include <float.h>

bool q_choice_adjusts(const lq_sampler *s) {
    return s->n_logit_bias || s->mask || (s->repeat_penalty != 0 && s->repeat_penalty != 1) ||
           s->frequency_penalty != 0 || s->presence_penalty != 0 || s->dry_multiplier != 0;
}

void q_choice_refresh(q_choice *c) {
    for (int64_t i = 0; i < q_wide_spans(c->n); i++) {
        if (c->sums[i] == 0) continue;
        const int64_t at = i * Q_WIDE_SPAN;
        (void)c->wide->peaks(c->x + at, Q_MIN(c->n - at, (int64_t)Q_WIDE_SPAN), NULL, &c->most[i]);
    }
}

/* A logit becomes v: never infinite, but for a mask, which stays one. */
static void put(q_choice *c, int32_t id, double v) {
    if (c->y[id] != -INFINITY) c->y[id] = (float)Q_MIN(Q_MAX(v, -(double)FLT_MAX), (double)FLT_MAX);
    c->sums[id / Q_WIDE_SPAN] = 1;
}

static void biases(q_choice *c) {
    for (uint32_t i = 0; i < c->s->n_logit_bias; i++) {
        const lq_logit_bias *b = &c->s->logit_bias[i];
        put(c, b->id, (double)c->y[b->id] + (double)b->bias);
        if (b->bias == -INFINITY) c->y[b->id] = -INFINITY;
    }
}

static lq_status mask(q_choice *c) {
    const lq_sampler *s = c->s;
    if (s->mask(s->mask_user, c->y, (size_t)c->n, c->in->ids, (size_t)c->in->count))
        return q_fail(LQ_E_CANCELLED, "the mask of the sampler ended the call");
    if (!c->wide->peaks(c->y, c->n, NULL, c->most))
        for (int64_t i = 0; i < c->n; i++)
            if (!(c->y[i] < INFINITY))
                return q_fail(LQ_E_NUMERIC, "the mask of the sampler left logit %lld at %g", (long long)i,
                              (double)c->y[i]);
    return LQ_OK;
}

/* The last n of the tokens before; 0 = all. */
static const int32_t *window(const q_choice *c, uint32_t last_n, int64_t *n) {
    *n = last_n && last_n < c->in->count ? last_n : c->in->count;
    return c->in->count ? c->in->ids + (c->in->count - *n) : NULL;
}

static void penalties(q_choice *c) {
    const lq_sampler *s = c->s;
    const double repeat = s->repeat_penalty == 0 ? 1 : (double)s->repeat_penalty;
    if (repeat == 1 && s->frequency_penalty == 0 && s->presence_penalty == 0) return;
    int64_t n;
    const int32_t *ids = window(c, s->penalty_last_n, &n);
    float *times = c->w; /* of the window's tokens alone: so it costs nothing to clear; exact to 2^24 */
    for (int64_t i = 0; i < n; i++) times[ids[i]] = 0;
    for (int64_t i = 0; i < n; i++) times[ids[i]] += 1;
    for (int64_t i = 0; i < n; i++) {
        const int32_t id = ids[i];
        if (times[id] == 0) continue; /* done */
        double v = c->y[id];
        v = v > 0 ? v / repeat : v * repeat;
        put(c, id, v - (double)times[id] * (double)s->frequency_penalty - (double)s->presence_penalty);
        times[id] = 0;
    }
}

/* ------------------------------------------------------------------------------------------------ DRY */

typedef struct texts {
    char own[Q_SAMPLE_PIECE], other[Q_SAMPLE_PIECE]; /* two tokens' */
} texts;

/* Do the tokens ids[0 .. n) end with these bytes? */
static bool ends_with(const q_choice *c, const int32_t *ids, int64_t n, const char *bytes, size_t left, char *piece) {
    while (left > 0 && n-- > 0) {
        const size_t has = c->in->piece(c->in->texts, ids[n], piece), some = Q_MIN(has, left);
        if (memcmp(piece + has - some, bytes + left - some, some) != 0) return false;
        left -= some;
    }
    return left == 0;
}

/* Does a breaker end within the last of the tokens ids[0 .. n)? */
static bool breaks(const q_choice *c, const int32_t *ids, int64_t n, texts *t) {
    const size_t has = c->in->piece(c->in->texts, ids[n - 1], t->own);
    for (uint32_t b = 0; b < c->s->n_dry_breakers; b++) {
        const char *want = c->s->dry_breakers[b];
        const size_t bytes = strlen(want);
        for (size_t end = 1; end <= has; end++) {
            const size_t some = Q_MIN(end, bytes);
            if (t->own[end - 1] != want[bytes - 1]) continue;
            if (memcmp(t->own + end - some, want + bytes - some, some) != 0) continue;
            if (ends_with(c, ids, n - 1, want, bytes - some, t->other)) return true;
        }
    }
    return false;
}

/* At most `most` of the last tokens have no breaker ending in them. */
static int64_t unbroken(const q_choice *c, int64_t most, texts *t) {
    int64_t n = 0;
    while (n < most && !breaks(c, c->in->ids, c->in->count - n, t)) n++;
    return n;
}

static bool holds_breaker(const q_choice *c, int32_t id, texts *t) {
    const size_t has = c->in->piece(c->in->texts, id, t->own);
    for (uint32_t b = 0; b < c->s->n_dry_breakers; b++) {
        const size_t bytes = strlen(c->s->dry_breakers[b]);
        for (size_t at = 0; at + bytes <= has; at++)
            if (memcmp(t->own + at, c->s->dry_breakers[b], bytes) == 0) return true;
    }
    return false;
}

/* z[k]: how many of the last tokens are also those that end k tokens earlier: the Z-function of the tokens read
 * backwards (Gusfield, Algorithms on strings, 1997), linear in n. The largest but z[0]. */
static int64_t repeats(const int32_t *ids, int64_t n, int32_t *z) {
    int64_t from = 0, to = 0, most = 0;
    for (int64_t k = 1; k < n; k++) {
        int64_t len = k < to ? Q_MIN(to - k, (int64_t)z[k - from]) : 0;
        while (k + len < n && ids[n - 1 - len] == ids[n - 1 - k - len]) len++;
        if (k + len > to) {
            from = k;
            to = k + len;
        }
        z[k] = (int32_t)len;
        most = Q_MAX(most, len);
    }
    return most;
}

static void dry(q_choice *c) {
    const lq_sampler *s = c->s;
    int64_t n;
    const int32_t *ids = window(c, s->dry_last_n, &n);
    const int64_t least = s->dry_allowed_length ? s->dry_allowed_length : 2;
    const double base = s->dry_base == 0 ? 1.75 : (double)s->dry_base;
    if (s->dry_multiplier == 0 || n < 2) return;
    texts t;
    int64_t most = repeats(ids, n, c->match);
    if (most < least) return;
    if (s->n_dry_breakers) most = unbroken(c, most, &t);
    if (most < least) return;
    float *length = c->w; /* by token, of those that followed a repeat; below 2^24, or it does not matter */
    for (int64_t k = 1; k < n; k++) length[ids[n - k]] = 0;
    for (int64_t k = 1; k < n; k++)
        length[ids[n - k]] = Q_MAX(length[ids[n - k]], (float)Q_MIN((int64_t)c->match[k], most));
    for (int64_t k = 1; k < n; k++) {
        const int32_t id = ids[n - k];
        const double len = (double)length[id];
        length[id] = 0;
        if (len < (double)least || (s->n_dry_breakers && holds_breaker(c, id, &t))) continue;
        const double penalty = (double)s->dry_multiplier * pow(base, len - (double)least);
        put(c, id, (double)c->y[id] - Q_MIN(penalty, 2.0 * (double)FLT_MAX)); /* not infinite */
    }
}

lq_status q_choice_adjust(q_choice *c) {
    memset(c->sums, 0, (size_t)q_wide_spans(c->n) * sizeof *c->sums);
    biases(c);
    if (c->s->mask) Q_TRY(mask(c));
    penalties(c);
    dry(c);
    q_choice_refresh(c);
    return LQ_OK;
}
