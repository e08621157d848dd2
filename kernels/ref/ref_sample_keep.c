/* ref_sample_keep.c: which tokens may be chosen: top-k, typical, top-p, min-p, XTC, mirostat. Owns no state.
 *
 * Most tokens of a large vocabulary are far from being chosen, so a list of those that may be is made as late and as
 * short as possible: by a threshold that the largest logits of spans of tokens give. Layer L2. */
#include "ref_sample.h"

#include <float.h>

/* ------------------------------------------------------------------------------------------------ lists */

/* All with a logit of at least t, which is not minus infinity, become the list. */
static void gather(q_choice *c, float t) {
    int64_t kept = 0;
    for (int64_t at = 0; at < c->n; at += Q_WIDE_SPAN) {
        if (!(c->most[at / Q_WIDE_SPAN] >= t)) continue;
        const int64_t end = Q_MIN(c->n, at + Q_WIDE_SPAN);
        for (int64_t i = at; i < end; i++) { /* without a branch: about every tenth is kept */
            c->ids[kept] = (int32_t)i;
            c->key[kept] = c->x[i];
            kept += c->x[i] >= t ? 1 : 0;
        }
    }
    c->kept = kept;
}

/* Keep those of the list with keep[number] != 0; one at least has it. */
static void filter(q_choice *c, const int32_t *keep) {
    int64_t kept = 0;
    c->best = -INFINITY;
    for (int64_t i = 0; i < c->kept; i++)
        if (keep[i]) {
            c->ids[kept] = c->ids[i];
            c->key[kept] = c->key[i];
            c->best = Q_MAX(c->best, c->key[i]);
            kept++;
        }
    c->kept = kept;
}

/* Order: descending key, then ascending number, which is ascending id. */
static bool before(const float *key, int32_t a, int32_t b) { return key[a] > key[b] || (key[a] == key[b] && a < b); }

static void sift(const float *key, int32_t *heap, int64_t n, int64_t i) { /* the last in order on top */
    const int32_t it = heap[i];
    for (int64_t child = 2 * i + 1; child < n; child = 2 * i + 1) {
        if (child + 1 < n && before(key, heap[child], heap[child + 1])) child++;
        if (!before(key, it, heap[child])) break;
        heap[i] = heap[child];
        i = child;
    }
    heap[i] = it;
}
static void heap_sort(const float *key, int32_t *p, int64_t n) {
    for (int64_t i = n / 2; i-- > 0;) sift(key, p, n, i);
    for (int64_t left = n - 1; left > 0; left--) {
        const int32_t last = p[left];
        p[left] = p[0];
        p[0] = last;
        sift(key, p, left, 0);
    }
}

/* Numbers before p[at] in order go before it; its place afterwards. */
static int64_t partition(const float *key, int32_t *p, int64_t n, int64_t at) {
    const int32_t pivot = p[at];
    int64_t first = 0;
    p[at] = p[n - 1];
    for (int64_t i = 0; i + 1 < n; i++) {
        const int32_t it = p[i];
        if (!before(key, it, pivot)) continue;
        p[i] = p[first];
        p[first++] = it;
    }
    p[n - 1] = p[first];
    p[first] = pivot;
    return first;
}

/* How many of the first numbers in order it takes for weights (NULL: of 1 each) to reach `target`: all n where they
 * never do. p, [n] all numbers, then begins with those. Linear in n but for what hostile logits can make of it, which
 * is n log n: partitions that stay one-sided give way to sorting. */
static int64_t prefix(const float *key, const float *w, int32_t *p, int64_t n, double target) {
    int64_t lo = 0, hi = n, rounds = 0;
    double sum = 0; /* of [0, lo) */
    while (hi - lo > 24 && rounds++ < 64) {
        const int64_t at = partition(key, p + lo, hi - lo, (int64_t)((uint64_t)(hi - lo) * 5 / 8)) + lo;
        double here = w ? 0 : (double)(at - lo);
        for (int64_t i = lo; w && i < at; i++) here += (double)w[p[i]];
        if (at > lo && sum + here >= target) {
            hi = at;
            continue;
        }
        sum += here + (w ? (double)w[p[at]] : 1);
        if (sum >= target) return at + 1;
        lo = at + 1;
    }
    heap_sort(key, p + lo, hi - lo);
    for (; lo < hi && (lo == 0 || sum < target); lo++) sum += w ? (double)w[p[lo]] : 1;
    return lo;
}

/* Keep the first numbers in the order of `order` whose weights reach `target`. */
static void keep_prefix(q_choice *c, const float *order, const float *w, double target) {
    for (int64_t i = 0; i < c->kept; i++) c->work[i] = (int32_t)i;
    const int64_t n = prefix(order, w, c->work, c->kept, target);
    if (n == c->kept) return;
    int32_t last = c->work[0]; /* of what is kept, in order */
    for (int64_t i = 1; i < n; i++)
        if (before(order, last, c->work[i])) last = c->work[i];
    const float edge = order[last];
    for (int64_t i = 0; i < c->kept; i++) c->work[i] = order[i] > edge || (order[i] == edge && i <= last) ? 1 : 0;
    filter(c, c->work);
}

/* ------------------------------------------------------------------------------------------------ steps */

void q_choice_top_k(q_choice *c) {
    const int64_t k = c->s->top_k, spans = q_wide_spans(c->n);
    if (k == 0 || k >= c->n) return;
    float t = -FLT_MAX;
    if (k <= spans) { /* k spans have one each that is no less than the k-th largest of their largest */
        for (int64_t i = 0; i < spans; i++) c->work[i] = (int32_t)i;
        (void)prefix(c->most, NULL, c->work, spans, (double)k);
        t = c->most[c->work[0]];
        for (int64_t i = 1; i < k; i++) t = Q_MIN(t, c->most[c->work[i]]);
        t = Q_MAX(t, -FLT_MAX);
    }
    gather(c, t);
    if (c->kept > k) keep_prefix(c, c->key, NULL, (double)k);
}

/* -ln p - mean(-ln p) is mean(d) - d for d = logit - best, the mean weighted by p. */
void q_choice_typical(q_choice *c) {
    const double p = c->s->typical_p;
    double total, mean = 0;
    if (!(p > 0 && p < 1)) return;
    if (c->kept < 0) gather(c, -FLT_MAX);
    total = q_choice_weigh(c, 1);
    for (int64_t i = 0; i < c->kept; i++) mean += (double)c->w[i] * ((double)c->key[i] - (double)c->best);
    mean /= total;
    float *near = c->y; /* nobody reads x any more: what is kept is in the list */
    for (int64_t i = 0; i < c->kept; i++)
        near[i] = -(float)fabs((double)c->key[i] - (double)c->best - mean);
    keep_prefix(c, near, c->w, p * total);
}

void q_choice_top_p(q_choice *c) {
    const double p = c->s->top_p;
    if (!(p > 0 && p < 1)) return;
    double total = q_choice_weigh(c, 1);
    /* A list that is long enough: as far down as it takes, or as min_p, the next step, lets anything live. */
    const float floor = c->s->min_p > 0 ? (float)((double)c->best + log((double)c->s->min_p)) : -FLT_MAX;
    for (double depth = 4; c->kept < 0; depth *= 2) { /* below 87 nothing weighs anything */
        const float t = depth < 100 ? Q_MAX((float)Q_MAX((double)c->best - depth, -(double)FLT_MAX), floor) : floor;
        gather(c, t);
        if (q_choice_weigh(c, 1) < p * total * 1.00001 && t > floor) c->kept = -1;
    }
    keep_prefix(c, c->key, c->w, p * total);
}

void q_choice_min_p(q_choice *c) {
    if (!(c->s->min_p > 0)) return;
    const float t = (float)((double)c->best + log((double)c->s->min_p));
    if (c->kept < 0) {
        gather(c, t);
        return;
    }
    for (int64_t i = 0; i < c->kept; i++) c->work[i] = c->key[i] >= t ? 1 : 0;
    filter(c, c->work);
}

/* Of the list's tokens with at least `least` weight the number of the last in order; how many there are. */
static int64_t above(const q_choice *c, double least, int64_t *last) {
    int64_t n = 0;
    for (int64_t i = 0; i < c->kept; i++) {
        if ((double)c->w[i] < least) continue;
        if (n++ == 0 || before(c->key, (int32_t)*last, (int32_t)i)) *last = i;
    }
    return n;
}

void q_choice_xtc(q_choice *c) {
    const lq_sampler *s = c->s;
    if (!(s->xtc_probability > 0) || q_choice_uniform(c, Q_DRAW_XTC) >= (double)s->xtc_probability) return;
    const bool all = c->kept < 0;
    const double least = (s->xtc_threshold > 0 ? (double)s->xtc_threshold : 0.1) * q_choice_weigh(c, 1);
    int64_t last = 0;
    if (all) { /* a few candidates, for a while */
        if (least > 1) return;
        gather(c, (float)Q_MAX((double)c->best + log(least) - 0.01, -(double)FLT_MAX));
        (void)q_choice_weigh(c, 1);
    }
    const int64_t n = above(c, least, &last);
    if (n > 1 && !all) {
        for (int64_t i = 0; i < c->kept; i++) c->work[i] = (double)c->w[i] < least || i == last ? 1 : 0;
        filter(c, c->work);
    }
    if (!all) return;
    if (n > 1) {
        if (c->x != c->y) memcpy(c->y, c->x, (size_t)c->n * sizeof *c->y);
        c->x = c->y;
        memset(c->sums, 0, (size_t)q_wide_spans(c->n) * sizeof *c->sums);
        for (int64_t i = 0; i < c->kept; i++) {
            if ((double)c->w[i] < least || i == last) continue;
            c->y[c->ids[i]] = -INFINITY;
            c->sums[c->ids[i] / Q_WIDE_SPAN] = 1;
        }
        q_choice_refresh(c);
        c->best = -INFINITY;
        for (int64_t i = 0; i < q_wide_spans(c->n); i++) c->best = Q_MAX(c->best, c->most[i]);
    }
    c->kept = -1;
}

/* -log2 p <= mu is logit >= best + temperature * (ln total - mu ln 2). */
void q_choice_mirostat(q_choice *c, double *log_total) {
    const double mu = *c->s->mirostat_mu;
    *log_total = log(q_choice_weigh(c, c->s->temperature));
    const double t = (double)c->best + 2.0 / (double)q_choice_by(c->s->temperature) * (*log_total - mu * log(2));
    if (t <= -(double)FLT_MAX) return;
    gather(c, (float)Q_MIN(t, (double)c->best));
}
