/* fold_search.c: chooses factors of a stage's inputs, and clips of its weights, by what they do to the block's output.
 *
 * A loss is the squared distance between what the block adds to with its own weights and with the stage's quantized
 * under factors s: W is multiplied by s, quantized, decoded and divided by s, which is what the folded model computes.
 * The sums are formed in one order, so they do not depend on threads.
 *
 * Clipping: where a quantizer takes each group's scale from its largest weight, a smaller one may round the rest
 * better. Per row and group the largest magnitude is lowered to 0.95 ... 0.55 of itself; kept is the one with the least
 * e' H e, H the sum of outer products of the group's inputs over the same samples, e the error of the decoded weights.
 * A matrix keeps its clips only if the block's output is nearer with them. Quantizers that search for scales are not
 * helped. Layer L3. */
#include "fold_search.h"

#include <math.h>

enum { CLIPS = 10, CLIP_PARTS = 20 /* steps of 1/20 */, LANES = 32, MOST_GROUP = 256 };
#define UNCLIPPED 0x1p40f /* the largest limit that a file may have: no weight gets there */

typedef struct work {
    const q_fold_search *f;
    uint64_t k, floats;   /* floats of an output */
    float *want, *have;   /* outputs of the samples */
    float *gram;          /* [k][group] */
    uint64_t group;       /* for which it was formed; 0 = none */
    const float *s;       /* for clips; NULL = 1 */
} work;

static const q_bind_item *item_of(const q_fold_search *f, const q_fold_part *p) { return &f->binding->items[p->item]; }

/* ------------------------------------------------------------------------------------------------ losses */

static lq_status output_of(work *w, float *out) {
    return q_stream_try(w->f->stream, w->f->samples, w->f->step, out);
}

static double distance(const work *w) {
    double sum = 0;
    for (uint64_t i = 0; i < w->floats; i++) {
        const double d = (double)w->have[i] - (double)w->want[i];
        sum += d * d;
    }
    return sum / (double)Q_MAX(w->floats, (uint64_t)1);
}

/* A part as it will be quantized, in place of its own weights. Factoring a Hessian for every s would take hours: what
 * needs one is tried as rounding to nearest. */
static lq_status put(work *w, const q_fold_part *p, const float *s, const float *clip) {
    const q_quantizer *by =
        p->choice.quantizer->needs == Q_NEEDS_HESSIAN ? q_quantizer_find("rtn") : p->choice.quantizer;
    const q_imitation m = {.alloc = w->f->alloc, .binding = w->f->binding, .pool = w->f->pool, .item = item_of(w->f, p),
                           .format = p->choice.format, .quantizer = by, .diagonal = p->diagonal, .factors = s,
                           .clip = clip,
                           .group = clip ? q_fold_clip_group(w->f->transform, &p->choice) : 0};
    if (!by) return q_fail(LQ_E_INTERNAL, "there is no quantizer rtn");
    if (!p->weights) return LQ_OK; /* it stays as it is */
    Q_TRY(q_imitate(&m, p->weights, NULL));
    q_stream_replace(w->f->stream, p->item, p->weights);
    return LQ_OK;
}

static lq_status measure(work *w, double *out) {
    Q_TRY(output_of(w, w->have));
    *out = distance(w);
    return w->f->told(w->f->user);
}

static lq_status loss(void *user, const float *s, double *out) {
    work *w = (work *)user;
    for (uint32_t i = 0; i < w->f->n_parts; i++) Q_TRY(put(w, &w->f->parts[i], s, NULL));
    return measure(w, out);
}

/* ------------------------------------------------------------------------------------------------ factors */

/* The largest magnitude of each column over all parts. */
static lq_status column_maxima(const work *w, float *most) {
    for (uint32_t i = 0; i < w->f->n_parts; i++) {
        const q_fold_part *p = &w->f->parts[i];
        const q_bind_item *item = item_of(w->f, p);
        Q_TRY(q_bind_read(w->f->alloc, w->f->binding, item, 0, item->src->rows, p->weights));
        for (uint64_t r = 0; r < item->src->rows; r++)
            for (uint64_t j = 0; j < w->k; j++) most[j] = fmaxf(most[j], fabsf(p->weights[r * w->k + j]));
    }
    return LQ_OK;
}

static lq_status choose_factors(work *w, float *s) {
    float *most = Q_NEW(w->f->alloc, float, w->k);
    const q_transform_job job = {.k = (int64_t)w->k, .mean_abs = w->f->mean_abs, .max_abs = w->f->max_abs,
                                 .weight_max = most, .loss = w->f->transform->needs_loss ? loss : NULL, .user = w,
                                 .alloc = w->f->alloc};
    lq_status status = most ? column_maxima(w, most) : LQ_E_NOMEM;
    if (status == LQ_OK) status = w->f->transform->scale(&job, s);
    q_delete(w->f->alloc, most);
    for (uint64_t j = 0; j < w->k && status == LQ_OK; j++)
        if (!(s[j] > 0.0f && isfinite(s[j])))
            status = q_fail(LQ_E_NUMERIC, "transform %s: %g is no factor of input %llu of '%s'", w->f->transform->name,
                            (double)s[j], (unsigned long long)j, item_of(w->f, &w->f->parts[0])->name.p);
    return status;
}

/* ------------------------------------------------------------------------------------------------ clips */

uint64_t q_fold_clip_group(const q_transform *t, const q_recipe_choice *c) {
    const q_format *f = c->format;
    const bool takes_largest = c->quantizer->uses == Q_NEEDS_NONE;
    return t->clips && takes_largest && f->weights >= LANES && f->weights <= MOST_GROUP && !f->row_head
               ? (uint64_t)f->weights
               : 0;
}

/* Sums of outer products within groups of inputs, divided by the factors. */
typedef struct gram_job {
    const work *w;
    const float *x;
    int64_t stride;
} gram_job;
static void gram_groups(void *arg, int64_t begin, int64_t end, uint32_t thread) {
    const gram_job *g = (const gram_job *)arg;
    const work *w = g->w;
    const uint64_t n = w->group;
    Q_UNUSED(thread);
    for (uint64_t at = (uint64_t)begin * n; at < (uint64_t)end * n; at += n)
        for (uint64_t c = 0; c < w->f->window; c++) {
            const float *x = g->x + (int64_t)c * g->stride + at;
            for (uint64_t i = 0; i < n; i++) {
                float *row = w->gram + (at + i) * n;
                for (uint64_t j = 0; j < n; j += LANES)
                    for (uint64_t l = 0; l < LANES; l++) row[j + l] += x[i] * x[j + l];
            }
        }
}
static lq_status form_gram(work *w, uint64_t group) {
    gram_job g = {.w = w};
    if (w->group == group) return LQ_OK;
    w->group = group;
    memset(w->gram, 0, (size_t)(w->k * group) * sizeof *w->gram);
    for (uint32_t i = 0; i < w->f->samples; i++) {
        Q_TRY(q_stream_input(w->f->stream, i * w->f->step, &g.x, &g.stride));
        q_pool_for(w->f->pool, (int64_t)(w->k / group), 1, gram_groups, &g);
    }
    for (uint64_t i = 0; w->s && i < w->k; i++)
        for (uint64_t j = 0; j < group; j++) w->gram[i * group + j] /= w->s[i] * w->s[i / group * group + j];
    return LQ_OK;
}

/* e' H e. */
static float cost_of(const float *h, const float *e, uint64_t n) {
    float sum[MOST_GROUP] = {0}, total = 0;
    for (uint64_t i = 0; i < n; i++, h += n)
        for (uint64_t j = 0; j < n; j += LANES)
            for (uint64_t l = 0; l < LANES; l++) sum[j + l] += e[i] * h[j + l];
    for (uint64_t j = 0; j < n; j++) total += sum[j] * e[j];
    return total;
}

typedef struct clip_job {
    const work *w;
    const q_fold_part *part;
    lq_status *status; /* [threads] */
} clip_job;

/* The best magnitude of a group of scaled weights. */
static lq_status clip_group(const clip_job *c, const float *x, const float *h, float *out) {
    const q_format *f = c->part->choice.format;
    const uint64_t n = c->w->group;
    float most = 0.0f, least = 0.0f, clipped[MOST_GROUP], e[MOST_GROUP];
    uint8_t block[MOST_GROUP * 8];
    for (uint64_t j = 0; j < n; j++) most = fmaxf(most, fabsf(x[j]));
    *out = UNCLIPPED;
    for (int32_t i = 0; i < CLIPS && most > 0.0f; i++) {
        const float bound = most * (1.0f - (float)i / CLIP_PARTS);
        const q_quant_job q = {f, clipped, 1, (int64_t)n, NULL, NULL, c->w->f->alloc, c->w->f->binding->wide};
        for (uint64_t j = 0; j < n; j++) clipped[j] = fminf(fmaxf(x[j], -bound), bound);
        Q_TRY(c->part->choice.quantizer->quantize(&q, block));
        q_decode_row(f, block, (int64_t)n, e);
        for (uint64_t j = 0; j < n; j++) e[j] -= x[j];
        const float cost = cost_of(h, e, n);
        if (i > 0 && !(cost < least)) continue;
        least = cost;
        if (i > 0) *out = bound;
    }
    return LQ_OK;
}
static void clip_rows(void *arg, int64_t begin, int64_t end, uint32_t thread) {
    const clip_job *c = (const clip_job *)arg;
    const work *w = c->w;
    const uint64_t groups = w->k / w->group;
    for (uint64_t r = (uint64_t)begin; r < (uint64_t)end; r++) {
        float *x = c->part->weights + r * w->k; /* its own weights */
        for (uint64_t j = 0; w->s && j < w->k; j++) x[j] *= w->s[j];
        for (uint64_t g = 0; g < groups && c->status[thread] == LQ_OK; g++)
            c->status[thread] =
                clip_group(c, x + g * w->group, w->gram + g * w->group * w->group, &c->part->clip[r * groups + g]);
    }
}

static lq_status find_clips(work *w, const q_fold_part *p) {
    const q_bind_item *item = item_of(w->f, p);
    const uint32_t threads = q_pool_threads(w->f->pool);
    clip_job c = {.w = w, .part = p, .status = Q_NEW(w->f->alloc, lq_status, threads)};
    lq_status status = c.status ? form_gram(w, q_fold_clip_group(w->f->transform, &p->choice)) : LQ_E_NOMEM;
    if (status == LQ_OK) status = q_bind_read(w->f->alloc, w->f->binding, item, 0, item->src->rows, p->weights);
    if (status == LQ_OK) q_pool_for(w->f->pool, (int64_t)item->src->rows, 4, clip_rows, &c);
    for (uint32_t t = 0; t < threads && status == LQ_OK; t++) status = c.status[t];
    q_delete(w->f->alloc, c.status);
    return status;
}

/* Clips that move the block's output away are undone. */
static lq_status choose_clips(work *w, const float *s) {
    double before, after;
    w->s = s;
    for (uint32_t i = 0; i < w->f->n_parts; i++) Q_TRY(put(w, &w->f->parts[i], s, NULL));
    Q_TRY(measure(w, &before));
    for (uint32_t i = 0; i < w->f->n_parts; i++) {
        const q_fold_part *p = &w->f->parts[i];
        if (!p->clip) continue;
        Q_TRY(find_clips(w, p));
        Q_TRY(put(w, p, s, p->clip));
        Q_TRY(measure(w, &after));
        if (after < before) {
            before = after;
            continue;
        }
        const uint64_t n = item_of(w->f, p)->src->rows * (w->k / w->group);
        for (uint64_t g = 0; g < n; g++) p->clip[g] = UNCLIPPED;
        Q_TRY(put(w, p, s, NULL));
    }
    return LQ_OK;
}

/* ------------------------------------------------------------------------------------------------ a stage */

static lq_status search(work *w, bool folds, float *s) {
    bool clips = false;
    for (uint32_t i = 0; i < w->f->n_parts; i++) clips |= w->f->parts[i].clip != NULL;
    for (uint64_t j = 0; j < w->k; j++) s[j] = 1.0f;
    if (clips || w->f->transform->needs_loss) Q_TRY(output_of(w, w->want));
    if (folds) Q_TRY(choose_factors(w, s));
    return clips ? choose_clips(w, folds ? s : NULL) : LQ_OK;
}

lq_status q_fold_search_run(const q_fold_search *f, bool folds, float *s) {
    const q_stage *stage = q_stream_stage(f->stream, q_stream_at(f->stream));
    work w = {.f = f, .k = (uint64_t)stage->k, .floats = q_stream_tried(f->stream) * f->samples};
    w.want = (float *)q_new_raw(f->alloc, w.floats, sizeof *w.want);
    w.have = (float *)q_new_raw(f->alloc, w.floats, sizeof *w.have);
    w.gram = (float *)q_new_raw(f->alloc, w.k * Q_MIN(w.k, (uint64_t)MOST_GROUP), sizeof *w.gram);
    const lq_status status = w.want && w.have && w.gram ? search(&w, folds, s) : LQ_E_NOMEM;
    q_delete(f->alloc, w.want);
    q_delete(f->alloc, w.have);
    q_delete(f->alloc, w.gram);
    return status;
}

uint64_t q_fold_search_bytes(const q_stream *stream, uint32_t samples, uint64_t k, uint32_t threads) {
    return 2 * q_new_bytes(q_stream_tried(stream) * samples * sizeof(float)) +
           q_new_bytes(k * Q_MIN(k, (uint64_t)MOST_GROUP) * sizeof(float)) + q_new_bytes(k * sizeof(float)) +
           q_new_bytes(threads * sizeof(lq_status));
}
