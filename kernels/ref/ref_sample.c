/* ref_sample.c: SAMPLE and the definition of choosing a token from a row of logits. Refuses logits that are not finite
 * (minus infinity is a mask) and knobs out of range. No state: the draw is a function of (seed, position). Layer L2. */
#include "ref.h"

size_t q_ref_sample_bytes(int64_t n) { return (size_t)n * (sizeof(float) + sizeof(int32_t)); }

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

static lq_status check(const lq_sampler *s) {
    if (!(s->temperature >= 0) || s->temperature > 3.4e38f)
        return q_fail(LQ_E_ARG, "sampler: temperature %g is not a finite number from 0", (double)s->temperature);
    if (!(s->top_p >= 0 && s->top_p <= 1))
        return q_fail(LQ_E_ARG, "sampler: top_p %g is not within 0 .. 1", (double)s->top_p);
    if (!(s->min_p >= 0 && s->min_p <= 1))
        return q_fail(LQ_E_ARG, "sampler: min_p %g is not within 0 .. 1", (double)s->min_p);
    if (!q_sampler_is_plain(s))
        return q_fail(LQ_E_UNSUPPORTED, "sampler: of its fields this build knows temperature, top_k, top_p and min_p");
    return LQ_OK;
}

/* The lowest id among the largest. */
static lq_status largest(const float *logits, int64_t n, int32_t *id) {
    int64_t top = 0;
    if (n < 1 || n > INT32_MAX) return q_fail(LQ_E_ARG, "sampler: a row of %lld logits", (long long)n);
    for (int64_t i = 0; i < n; i++) {
        if (!(logits[i] < INFINITY)) return q_fail(LQ_E_NUMERIC, "logit %lld is not finite", (long long)i);
        if (logits[i] > logits[top]) top = i;
    }
    if (logits[top] == -INFINITY) return q_fail(LQ_E_NUMERIC, "all %lld logits are minus infinity", (long long)n);
    *id = (int32_t)top;
    return LQ_OK;
}

/* Order: descending logit, then ascending id. */
static bool before(const float *logits, int32_t a, int32_t b) {
    return logits[a] > logits[b] || (logits[a] == logits[b] && a < b);
}

static void sift(const float *logits, int32_t *heap, int64_t n, int64_t i) {
    const int32_t id = heap[i];
    for (;;) {
        int64_t child = 2 * i + 1;
        if (child >= n) break;
        if (child + 1 < n && before(logits, heap[child + 1], heap[child])) child++;
        if (!before(logits, heap[child], id)) break;
        heap[i] = heap[child];
        i = child;
    }
    heap[i] = id;
}

/* Move the first of the heap's n ids behind the other n - 1. */
static int32_t pop(const float *logits, int32_t *heap, int64_t n) {
    const int32_t id = heap[0];
    heap[0] = heap[n - 1];
    heap[n - 1] = id;
    sift(logits, heap, n - 1, 0);
    return id;
}

/* The last id, in order, that top_k and top_p keep. Only as many ids are put in order as it takes. */
static int32_t last_kept(const float *logits, const float *p, int64_t n, const lq_sampler *s, int32_t *heap) {
    const bool cut = s->top_p > 0 && s->top_p < 1;
    int64_t k = s->top_k > 0 && s->top_k < n ? s->top_k : n;
    double total = 0, sum = 0;
    for (int64_t i = 0; i < n; i++) heap[i] = (int32_t)i;
    for (int64_t i = n / 2 - 1; i >= 0; i--) sift(logits, heap, n, i);
    if (k == n) {
        for (int64_t i = 0; i < n; i++) total += (double)p[i];
    } else {
        for (int64_t i = 0; i < k; i++) total += (double)p[pop(logits, heap, n - i)];
        if (!cut) return heap[n - k];
    }
    int32_t id = 0;
    for (int64_t i = 0; i < k; i++) { /* the k best are in order already, at the end, or still in the heap */
        id = k == n ? pop(logits, heap, n - i) : heap[n - 1 - i];
        sum += (double)p[id];
        if (sum >= (double)s->top_p * total) break;
    }
    return id;
}

lq_status q_ref_sample_row(const float *logits, int64_t n, const lq_sampler *s, uint64_t position, int32_t *id,
                           void *scratch) {
    int32_t top = 0;
    Q_TRY(check(s));
    Q_TRY(largest(logits, n, &top));
    if (s->temperature == 0) {
        *id = top;
        return LQ_OK;
    }
    float *p = scratch;
    int32_t *heap = (int32_t *)(void *)(p + n);
    const double best = logits[top], t = s->temperature; /* double: a difference of floats may overflow */
    for (int64_t i = 0; i < n; i++) p[i] = expf((float)(logits[i] - best));
    if ((s->top_k > 0 && s->top_k < n) || (s->top_p > 0 && s->top_p < 1)) {
        const int32_t last = last_kept(logits, p, n, s, heap);
        for (int64_t i = 0; i < n; i++)
            if (before(logits, last, (int32_t)i)) p[i] = -1;
    }
    double total = 0, sum = 0;
    for (int64_t i = 0; i < n; i++) {
        p[i] = p[i] < s->min_p ? 0 : expf((float)((logits[i] - best) / t));
        total += (double)p[i];
    }
    const double u = q_ref_uniform(s->seed, position) * total;
    int32_t chosen = top;
    for (int64_t i = 0; i < n; i++) {
        if (p[i] == 0) continue;
        chosen = (int32_t)i; /* the last one when rounding leaves sum at u */
        sum += (double)p[i];
        if (sum > u) break;
    }
    *id = chosen;
    return LQ_OK;
}

void q_ref_sample(const q_inst *s, const q_exec *e, int64_t begin, int64_t end) {
    const q_batch *b = e->batch;
    Q_UNUSED(s);
    if (!b->sampler) return;
    const bool room = b->sampler->temperature == 0 || e->scratch_bytes >= q_ref_sample_bytes(e->plan->vocab);
    for (int64_t o = begin; o < end; o++) {
        const float *logits = b->logits + o * e->plan->vocab;
        b->sampled[o] = -1;
        if (room) (void)q_ref_sample_row(logits, e->plan->vocab, b->sampler, b->draw[o], &b->sampled[o], e->scratch);
    }
}
