/* calibrate_layers.c: calibration layer by layer: of the inputs of each stage's products the sums of squares and, where they
 * are wanted, of outer products are kept; where the scheme names a transform, its factors and clips too (fold_search.c). With a
 * scheme the products are then quantized as lq_quantize will with this file, and what follows sees their results.
 *
 * Rows of a matrix that take a later stage's factors are tried and quantized without them: a row's scales scale along, but for
 * how they round when they are stored.
 *
 * One Hessian at a time is in memory. Each finished layer is kept beside the output (kept.c), from which the output is put
 * together at the end, and an interrupted call goes on. Sums are formed text chunk by text chunk, so neither threads nor
 * interruptions change a byte. Layer L3. */
#include "calibrate.h"

#include <math.h>
#include <stdio.h>

#include "dense.h"
#include "fold.h"
#include "fold_search.h"
#include "kept.h"
#include "quantize.h"

enum {
    SEARCH_TOKENS = 4096, /* by which a transform's losses are measured, from all over the text */
    SEARCH_LOSSES = 24,   /* about so many of them a stage, for the estimate of progress */
    MORE_KEYS = 4
};

/* Matrices with the same inputs. A matrix of which several products take rows is there once. */
typedef struct group {
    q_fold_part *parts;
    uint32_t n_parts;
    bool folds; /* the transform's factors are stored */
    bool clips; /* some part's weights are clipped */
} group;

typedef struct work {
    lq_session *session;
    lq_model *model;
    const q_alloc *alloc;
    const lq_calibrate_options *options;
    const char *dst;
    q_calibrate_text text;
    q_arena arena;
    int32_t *ids;       /* [chunks][window] */
    q_recipe *recipe;   /* NULL: no scheme */
    const q_transform *transform; /* NULL: none */
    q_folds folds;
    q_dense *dense;
    q_pool *pool;
    q_stream *stream;
    group *groups;      /* [stages] */
    uint64_t *bytes;    /* [layers] of its results */
    uint64_t widest;    /* the largest k */
    q_kept kept;
    q_kept_file *results; /* of the layer in work */
    float *h;           /* [k][k] of the largest k; then its triangle */
    float *sums;        /* [k] of squares */
    float *mean, *most; /* [k] of magnitudes */
    float *factors;     /* [k] */
    double *exact;      /* [2][k] sums of squares, of magnitudes */
    uint32_t samples;   /* for losses */
    uint8_t *embedding; /* quantized; NULL: the model's own */
    uint64_t done, total; /* progress, in units of arithmetic */
    uint64_t search_end;  /* when the stage's search is done */
    q_out_tensor *outs;
    uint32_t n_outs, entries;
    q_str dataset;
    q_meta meta[Q_CALIBRATE_KEYS + MORE_KEYS];
    uint32_t n_meta;
    q_writer *writer;
    uint64_t out_bytes;
} work;

static uint64_t triangle(uint64_t k) { return k * (k + 1) / 2; }
static uint64_t tokens(const work *w) { return (uint64_t)w->text.chunks * w->text.window; }
static uint32_t threads_of(const work *w) { return w->session->shape.threads_prefill; }
static const q_bind_item *item_of(const work *w, uint32_t i) { return &w->model->binding->items[i]; }
static uint64_t clip_floats(const work *w, const q_fold_part *p) {
    const q_tensor *t = item_of(w, p->item)->src;
    return t->rows * (t->shape[0] / q_fold_clip_group(w->transform, &p->choice));
}

/* ------------------------------------------------------------------------------------------------ progress */

/* A token's products and outer products, in thousands of multiplications. */
static uint64_t cost(const work *w, uint32_t stage) {
    const q_stage *g = q_stream_stage(w->stream, stage);
    uint64_t rows = 0;
    for (int32_t i = 0; i < g->n_products; i++) rows += (uint64_t)g->products[i].w->rows;
    return (uint64_t)g->k * (rows + (w->options->hessians ? (uint64_t)g->k / 2 : 0)) / 1000 + 1;
}
/* Of a loss: the stage, and those behind it up to the block's output. */
static uint64_t loss_cost(const work *w, uint32_t stage) { return 2 * cost(w, stage) * w->samples; }
static bool searches(const work *w, uint32_t stage) { return w->groups[stage].folds || w->groups[stage].clips; }
static uint64_t stage_cost(const work *w, uint32_t stage) {
    return cost(w, stage) * w->text.chunks + (searches(w, stage) ? SEARCH_LOSSES * loss_cost(w, stage) : 0);
}

static lq_status tell(work *w) {
    const lq_calibrate_options *o = w->options;
    char what[64];
    const uint32_t at = Q_MIN(q_stream_at(w->stream), q_stream_stages(w->stream) - 1);
    snprintf(what, sizeof what, "layer %d of %d", q_stream_stage(w->stream, at)->layer + 1, w->model->binding->layers);
    if (atomic_load(&w->session->cancel)) {
        atomic_store(&w->session->cancel, 0);
        return q_fail(LQ_E_CANCELLED, "cancelled; what is finished is kept beside %s", w->dst);
    }
    if (!o->progress || o->progress(o->user, w->done, w->total, what) == 0) return LQ_OK;
    return q_fail(LQ_E_CANCELLED, "cancelled by the progress callback; what is finished is kept beside %s", w->dst);
}
static lq_status after_run(void *user) {
    work *w = (work *)user;
    w->done += cost(w, q_stream_at(w->stream)) / 2;
    return tell(w);
}

/* ------------------------------------------------------------------------------------------------ quantizing */

/* Quantize a tensor as lq_quantize will: into float32 that means the same, or into rows of the format. */
static lq_status quantize(const work *w, const q_fold_part *p, const float *factors, const void *shared, float *out,
                          uint8_t *coded) {
    const q_imitation m = {.alloc = w->alloc, .binding = w->model->binding, .pool = w->pool, .item = item_of(w, p->item),
                           .format = p->choice.format, .quantizer = p->choice.quantizer, .diagonal = p->diagonal, .shared = shared,
                           .factors = factors, .clip = p->clip,
                           .group = p->clip ? q_fold_clip_group(w->transform, &p->choice) : 0};
    return q_imitate(&m, out, coded);
}

/* What a quantizer makes of a stage's Hessian serves all its matrices. */
typedef struct prepared {
    const q_quantizer *by;
    void *shared;
} prepared;

static void unprepare(const work *w, prepared *p) {
    if (p->by) p->by->release(w->alloc, p->shared);
    *p = (prepared){NULL, NULL};
}

static lq_status quantize_part(work *w, q_fold_part *p, const float *factors, prepared *h) {
    const q_bind_item *b = item_of(w, p->item);
    const q_quantizer *by = p->choice.quantizer;
    if (by->prepare && by != h->by) {
        const q_quant_stats s = {w->alloc, &w->model->ctx->log, w->pool, b->name.p, (int64_t)b->src->shape[0], w->h};
        unprepare(w, h);
        Q_TRY(by->prepare(&s, &h->shared));
        h->by = by;
    }
    Q_TRY(quantize(w, p, factors, by->prepare ? h->shared : NULL, p->weights, NULL));
    q_stream_replace(w->stream, p->item, p->weights);
    return LQ_OK;
}

/* Its weights stay as they are. */
static bool kept_as_is(const work *w, const group *g, const q_fold_part *p) {
    return !g->folds && !p->clip && q_quantize_copies(item_of(w, p->item), &p->choice);
}

static lq_status quantize_stage(work *w, uint32_t stage) {
    prepared h = {NULL, NULL};
    const group *g = &w->groups[stage];
    lq_status status = LQ_OK;
    for (uint32_t i = 0; i < g->n_parts && status == LQ_OK; i++)
        if (!kept_as_is(w, g, &g->parts[i])) status = quantize_part(w, &g->parts[i], g->folds ? w->factors : NULL, &h);
    unprepare(w, &h);
    return status;
}

static bool is_table(const work *w, uint32_t i) {
    const q_binding *b = w->model->binding;
    return strcmp(b->arch->weights[b->items[i].role].role, "token_embd") == 0;
}

/* Without statistics, as lq_quantize quantizes a table. */
static lq_status quantize_embedding(work *w) {
    const q_binding *b = w->model->binding;
    if (q_recipe_method(w->recipe, NULL)) return LQ_OK; /* a directory keeps its tables as they are */
    for (uint32_t i = 0; i < b->n_items; i++) {
        q_recipe_choice c;
        uint64_t row_bytes;
        if (!is_table(w, i)) continue;
        Q_TRY(q_quantize_choose(w->recipe, b, i, true, &c));
        if (q_quantize_copies(&b->items[i], &c)) continue;
        if (c.quantizer->needs != Q_NEEDS_NONE)
            return q_fail(LQ_E_ARG, "tensor %s: there are no calibration statistics of a table for quantizer %s", b->items[i].name.p,
                          c.quantizer->name);
        if (!q_row_bytes(c.format, b->items[i].src->shape[0], &row_bytes)) return LQ_E_INTERNAL;
        w->embedding = (uint8_t *)q_new_raw(w->alloc, b->items[i].src->rows, row_bytes);
        if (!w->embedding) return LQ_E_NOMEM;
        const q_fold_part p = {.item = i, .choice = c};
        Q_TRY(quantize(w, &p, NULL, NULL, NULL, w->embedding));
        q_stream_embed(w->stream, c.format, w->embedding);
    }
    return LQ_OK;
}

/* ------------------------------------------------------------------------------------------------ a stage */

/* A window's inputs. */
static void add_inputs(work *w, const float *x, int64_t stride, uint64_t k) {
    double *squares = w->exact, *magnitudes = w->exact + k;
    for (uint32_t c = 0; c < w->text.window; c++, x += stride)
        for (uint64_t j = 0; j < k; j++) {
            squares[j] += (double)x[j] * (double)x[j];
            magnitudes[j] += fabs((double)x[j]);
            w->most[j] = fmaxf(w->most[j], fabsf(x[j]));
        }
}

/* From a square to its triangle, in place: row i of the triangle never begins behind row i of the square. */
static bool finish_hessian(work *w, uint64_t k) {
    const double scale = 2.0 / (double)tokens(w);
    float *out = w->h;
    bool finite = true;
    for (uint64_t i = 0; i < k; i++)
        for (uint64_t j = 0; j <= i; j++) *out++ = (float)((double)w->h[i * k + j] * scale);
    for (uint64_t i = 0; i < triangle(k); i++) finite &= isfinite(w->h[i]) != 0;
    return finite;
}

static lq_status measure(work *w, const q_stage *g) {
    const uint64_t k = (uint64_t)g->k;
    const float *x;
    int64_t stride;
    if (w->h) memset(w->h, 0, (size_t)(k * k) * sizeof *w->h);
    memset(w->exact, 0, (size_t)(2 * k) * sizeof *w->exact);
    memset(w->most, 0, (size_t)k * sizeof *w->most);
    for (uint32_t i = 0; i < w->text.chunks; i++) {
        Q_TRY(q_stream_input(w->stream, i, &x, &stride));
        if (w->h) q_dense_gram(w->dense, w->pool, x, w->text.window, stride, g->k, w->h);
        add_inputs(w, x, stride, k);
        w->done += cost(w, q_stream_at(w->stream)) - cost(w, q_stream_at(w->stream)) / 2;
        Q_TRY(tell(w));
    }
    bool finite = !w->h || finish_hessian(w, k);
    for (uint64_t i = 0; i < k; i++) {
        finite &= isfinite(w->sums[i] = (float)w->exact[i]) != 0;
        w->mean[i] = (float)(w->exact[k + i] / (double)tokens(w));
    }
    if (finite) return LQ_OK;
    return q_fail(LQ_E_NUMERIC, "the inputs of '%s' are not finite: the model's weights are damaged", g->products[0].w->name);
}

static lq_status after_loss(void *user) {
    work *w = (work *)user;
    w->done = Q_MIN(w->done + loss_cost(w, q_stream_at(w->stream)), w->search_end);
    return tell(w);
}

/* The transform's factors and clips of the stage, and its Hessian as inputs divided by those have it. */
static lq_status search_stage(work *w, uint32_t stage) {
    group *g = &w->groups[stage];
    const uint64_t k = (uint64_t)q_stream_stage(w->stream, stage)->k;
    if (!searches(w, stage)) return LQ_OK;
    w->search_end = w->done + SEARCH_LOSSES * loss_cost(w, stage);
    const q_fold_search f = {.alloc = w->alloc, .binding = w->model->binding, .pool = w->pool, .stream = w->stream,
                             .transform = w->transform, .samples = w->samples, .step = w->text.chunks / w->samples,
                             .window = w->text.window, .mean_abs = w->mean, .max_abs = w->most, .parts = g->parts,
                             .n_parts = g->n_parts, .told = after_loss, .user = w};
    Q_TRY(q_fold_search_run(&f, g->folds, w->factors));
    w->done = w->search_end;
    if (g->folds) Q_TRY(q_kept_write(w->results, w->factors, k * sizeof *w->factors));
    for (uint32_t i = 0; i < g->n_parts; i++)
        if (g->parts[i].clip) Q_TRY(q_kept_write(w->results, g->parts[i].clip, clip_floats(w, &g->parts[i]) * sizeof(float)));
    float *h = w->h;
    for (uint64_t i = 0; g->folds && h && i < k; i++)
        for (uint64_t j = 0; j <= i; j++, h++) *h = (float)((double)*h / ((double)w->factors[i] * (double)w->factors[j]));
    return LQ_OK;
}

static lq_status new_weights(work *w, const group *g) {
    for (uint32_t i = 0; i < g->n_parts; i++) {
        q_fold_part *p = &g->parts[i];
        const q_tensor *t = item_of(w, p->item)->src;
        p->diagonal = w->sums;
        if (kept_as_is(w, g, p)) continue;
        p->weights = (float *)q_new_raw(w->alloc, t->rows * t->shape[0], sizeof *p->weights);
        if (p->clips) p->clip = (float *)q_new_raw(w->alloc, clip_floats(w, p), sizeof *p->clip);
        if (!p->weights || (p->clips && !p->clip)) return LQ_E_NOMEM;
    }
    return LQ_OK;
}

static lq_status run_stage(work *w, uint32_t stage) {
    const q_stage *g = q_stream_stage(w->stream, stage);
    const uint64_t k = (uint64_t)g->k;
    const bool last = stage + 1 == q_stream_stages(w->stream); /* nobody sees what it gives */
    Q_TRY(measure(w, g));
    Q_TRY(q_kept_write(w->results, w->sums, k * sizeof *w->sums));
    if (w->h) Q_TRY(q_kept_write(w->results, w->h, triangle(k) * sizeof *w->h));
    if (w->recipe && (!last || w->transform)) {
        Q_TRY(q_importance_scale(item_of(w, w->groups[stage].parts[0].item)->name, w->sums, k)); /* as the file will be read */
        Q_TRY(new_weights(w, &w->groups[stage]));
        Q_TRY(search_stage(w, stage));
        if (!last) Q_TRY(quantize_stage(w, stage));
    }
    return last ? LQ_OK : q_stream_advance(w->stream, after_run, w);
}

static void forget_weights(work *w, uint32_t stage) {
    for (uint32_t i = 0; i < w->groups[stage].n_parts; i++) {
        q_fold_part *p = &w->groups[stage].parts[i];
        q_delete(w->alloc, p->weights);
        q_delete(w->alloc, p->clip);
        p->weights = p->clip = NULL;
    }
}

static lq_status run_stages(work *w) {
    const uint32_t n = q_stream_stages(w->stream);
    for (uint32_t stage = q_stream_at(w->stream); stage < n; stage++) {
        const int32_t layer = q_stream_stage(w->stream, stage)->layer;
        const bool last = stage + 1 == n || q_stream_stage(w->stream, stage + 1)->layer != layer;
        if (!w->results) Q_TRY(q_kept_create(&w->kept, layer, w->bytes[layer], &w->results));
        const lq_status status = run_stage(w, stage);
        forget_weights(w, stage);
        Q_TRY(status);
        if (!last) continue;
        q_kept_file *results = w->results;
        w->results = NULL;
        Q_TRY(q_kept_commit(results));
        if (stage + 1 < n) Q_TRY(q_kept_save_rows(&w->kept, w->stream, w->text.chunks));
    }
    return LQ_OK;
}

/* ------------------------------------------------------------------------------------------------ the file */

/* What the file says of the scheme: a name, or that of a recipe's file without folders. */
static const char *scheme_name(const work *w) {
    const lq_calibrate_options *o = w->options;
    const char *slash = o->recipe ? strrchr(o->recipe, '/') : NULL;
    return o->scheme ? o->scheme : slash ? slash + 1 : o->recipe ? o->recipe : "";
}

/* What the recipe and the transform want of a stage's matrices. */
static lq_status plan_stage(work *w, uint32_t stage) {
    group *g = &w->groups[stage];
    const uint64_t k = (uint64_t)q_stream_stage(w->stream, stage)->k;
    const q_fold_group *f = w->transform ? q_folds_of(&w->folds, g->parts[0].item) : NULL;
    uint64_t floats = k + (w->options->hessians ? triangle(k) : 0);
    bool quantized = false;
    for (uint32_t i = 0; i < g->n_parts && w->recipe; i++) {
        q_fold_part *p = &g->parts[i];
        Q_TRY(q_quantize_choose(w->recipe, w->model->binding, p->item, true, &p->choice));
        if (p->choice.quantizer->needs == Q_NEEDS_HESSIAN && !w->options->hessians)
            return q_fail(LQ_E_ARG, "tensor %s: quantizer %s needs Hessians too (--hessians)", item_of(w, p->item)->name.p,
                          p->choice.quantizer->name);
        const bool copied = q_quantize_copies(item_of(w, p->item), &p->choice);
        quantized |= !copied;
        p->clips = w->transform && !copied && q_fold_clip_group(w->transform, &p->choice);
        g->clips |= p->clips;
        if (p->clips) floats += clip_floats(w, p);
    }
    g->folds = f && !f->refused && f->n_consumers == g->n_parts && quantized;
    if (g->folds) floats += k;
    if (f && f->refused && f->layer == 0) /* once, not for each layer */
        q_log_write(&w->model->ctx->log, LQ_LOG_INFO, "the inputs of %s have no factors: %s", item_of(w, g->parts[0].item)->name.p,
                    f->refused);
    w->bytes[q_stream_stage(w->stream, stage)->layer] += floats * sizeof(float);
    w->total += stage_cost(w, stage);
    return LQ_OK;
}

static lq_status list_parts(work *w) {
    const uint32_t n = q_stream_stages(w->stream);
    w->groups = (group *)q_arena_new(&w->arena, n, sizeof *w->groups);
    w->bytes = (uint64_t *)q_arena_new(&w->arena, (uint64_t)w->model->binding->layers, sizeof *w->bytes);
    if (!w->groups || !w->bytes) return LQ_E_NOMEM;
    if (w->transform) Q_TRY(q_folds_find(w->model->binding, &w->arena, &w->folds));
    for (uint32_t t = 0; t < n; t++) {
        const q_stage *g = q_stream_stage(w->stream, t);
        group *to = &w->groups[t];
        to->parts = (q_fold_part *)q_arena_new(&w->arena, (uint64_t)g->n_products, sizeof *to->parts);
        if (!to->parts) return LQ_E_NOMEM;
        for (int32_t i = 0; i < g->n_products; i++) {
            const uint32_t item = q_stream_item(w->stream, &g->products[i]);
            bool seen = false;
            for (uint32_t j = 0; j < to->n_parts; j++) seen |= to->parts[j].item == item;
            if (!seen) to->parts[to->n_parts++].item = item;
        }
        w->entries += to->n_parts;
        Q_TRY(plan_stage(w, t));
    }
    return LQ_OK;
}

/* The tensors of a stage; names of those that share the Hessian of the first. */
static lq_status list_outs(work *w, uint32_t stage, q_str *names, q_str *of, uint64_t *shared) {
    const group *g = &w->groups[stage];
    const uint64_t k = (uint64_t)q_stream_stage(w->stream, stage)->k;
    const q_str first = item_of(w, g->parts[0].item)->name;
    for (uint32_t i = 0; i < g->n_parts; i++) {
        const q_bind_item *item = item_of(w, g->parts[i].item);
        Q_TRY(q_calibrate_tensor(&w->arena, item->name.p, Q_IMPORTANCE_SUMS, k, &w->outs[w->n_outs++]));
        Q_TRY(q_calibrate_tensor(&w->arena, item->name.p, Q_IMPORTANCE_COUNTS, 1, &w->outs[w->n_outs++]));
        if (i == 0 || !w->options->hessians) continue;
        names[*shared] = item->name;
        of[(*shared)++] = first;
    }
    if (w->options->hessians)
        Q_TRY(q_calibrate_tensor(&w->arena, first.p, Q_IMPORTANCE_HESSIAN, triangle(k), &w->outs[w->n_outs++]));
    if (g->folds) Q_TRY(q_calibrate_tensor(&w->arena, first.p, Q_IMPORTANCE_FOLD, k, &w->outs[w->n_outs++]));
    for (uint32_t i = 0; i < g->n_parts; i++) {
        if (!g->parts[i].clips) continue;
        const q_bind_item *item = item_of(w, g->parts[i].item);
        q_out_tensor *o = &w->outs[w->n_outs++];
        Q_TRY(q_calibrate_tensor(&w->arena, item->name.p, Q_IMPORTANCE_CLIP, 0, o));
        o->rank = 2;
        o->shape[1] = item->src->rows;
        o->shape[0] = clip_floats(w, &g->parts[i]) / o->shape[1];
    }
    return LQ_OK;
}

/* Its tensors and keys. */
static lq_status describe_output(work *w) {
    const uint32_t stages = q_stream_stages(w->stream);
    w->dataset = q_str_of(w->options->dataset ? w->options->dataset : "");
    q_str *names = (q_str *)q_arena_new(&w->arena, w->entries, sizeof *names);
    q_str *of = (q_str *)q_arena_new(&w->arena, w->entries, sizeof *of);
    w->outs = (q_out_tensor *)q_arena_new(&w->arena, 3 * (uint64_t)w->entries + 2 * (uint64_t)stages, sizeof *w->outs);
    if (!names || !of || !w->outs) return LQ_E_NOMEM;
    uint64_t shared = 0;
    for (uint32_t t = 0; t < stages; t++) Q_TRY(list_outs(w, t, names, of, &shared));
    uint32_t n;
    Q_TRY(q_calibrate_keys(w->session, &w->arena, w->options->dataset ? &w->dataset : NULL, &w->text, w->meta, &n));
    q_meta *m = w->meta + n;
    if (w->options->hessians) {
        *m++ = (q_meta){.key = q_str_of(Q_HESSIAN_TENSORS), .type = Q_META_ARRAY, .item = Q_META_STRING, .strs = names,
                        .count = shared};
        *m++ = (q_meta){.key = q_str_of(Q_HESSIAN_OF), .type = Q_META_ARRAY, .item = Q_META_STRING, .strs = of, .count = shared};
    }
    *m++ = (q_meta){.key = q_str_of(Q_HESSIAN_SCHEME), .type = Q_META_STRING, .count = 1, .s = q_str_of(scheme_name(w))};
    if (w->transform)
        *m++ = (q_meta){.key = q_str_of(Q_FOLD_TRANSFORM), .type = Q_META_STRING, .count = 1, .s = q_str_of(w->transform->name)};
    w->n_meta = (uint32_t)(m - w->meta);
    return q_writer_gguf.measure(w->meta, w->n_meta, w->outs, w->n_outs, &w->out_bytes);
}

/* From the kept file to the output, as it was written there: `room` is for so many floats. */
static lq_status pass_on(work *w, q_kept_reader *r, float *room, uint64_t floats) {
    Q_TRY(q_kept_read(r, room, floats * sizeof *room));
    return q_writer_gguf.write(w->writer, room, floats * sizeof *room);
}

static lq_status pass_clips(work *w, q_kept_reader *r, const q_fold_part *p) {
    const uint64_t n = clip_floats(w, p);
    float *room = (float *)q_new_raw(w->alloc, n, sizeof *room);
    const lq_status status = room ? pass_on(w, r, room, n) : LQ_E_NOMEM;
    q_delete(w->alloc, room);
    return status;
}

static lq_status write_stage(work *w, q_kept_reader *r, uint32_t t) {
    const group *g = &w->groups[t];
    const uint64_t k = (uint64_t)q_stream_stage(w->stream, t)->k;
    const float count = (float)tokens(w);
    Q_TRY(q_kept_read(r, w->sums, k * sizeof *w->sums));
    for (uint32_t i = 0; i < g->n_parts; i++) {
        Q_TRY(q_writer_gguf.write(w->writer, w->sums, k * sizeof *w->sums));
        Q_TRY(q_writer_gguf.write(w->writer, &count, sizeof count));
    }
    if (w->h) Q_TRY(pass_on(w, r, w->h, triangle(k)));
    if (g->folds) Q_TRY(pass_on(w, r, w->factors, k));
    for (uint32_t i = 0; i < g->n_parts; i++)
        if (g->parts[i].clips) Q_TRY(pass_clips(w, r, &g->parts[i]));
    return LQ_OK;
}

static lq_status write_output(work *w) {
    uint32_t t = 0, strays;
    uint64_t bytes;
    while (t < q_stream_stages(w->stream)) {
        const int32_t layer = q_stream_stage(w->stream, t)->layer;
        q_kept_reader r;
        Q_TRY(q_kept_open(&w->kept, layer, w->bytes[layer], &r));
        lq_status status = LQ_OK;
        for (; t < q_stream_stages(w->stream) && q_stream_stage(w->stream, t)->layer == layer && status == LQ_OK; t++)
            status = write_stage(w, &r, t);
        if (status != LQ_OK) {
            q_file_close(r.file);
            return status;
        }
        Q_TRY(q_kept_close(&r));
    }
    /* Others' work goes when all of this is read and written, but while the output's lock is ours. */
    q_kept_strays(&w->kept, &w->model->ctx->log, true, &strays, &bytes);
    q_writer *writer = w->writer;
    w->writer = NULL; /* commit frees it in every case */
    return q_writer_gguf.commit(writer, NULL);
}

/* ------------------------------------------------------------------------------------------------ what it depends on */

/* A recipe counts by its text. */
static lq_status hash_recipe(const work *w, uint64_t *h) {
    enum { MOST = 1 << 20 };
    uint8_t *text;
    uint64_t n;
    if (!w->options->recipe) return LQ_OK;
    Q_TRY(q_file_slurp(w->alloc, w->options->recipe, MOST, &text, &n));
    *h ^= q_fnv64(text, (size_t)n);
    q_delete(w->alloc, text);
    return LQ_OK;
}

/* What the results depend on: the model, the tokens, the options. */
static lq_status hash_inputs(work *w) {
    uint64_t h;
    Q_TRY(q_model_hash(w->model, &h));
    h = q_fnv64_mix(h, w->ids, (size_t)tokens(w) * sizeof *w->ids);
    Q_TRY(hash_recipe(w, &h));
    const char *scheme = scheme_name(w), *version = lq_version_string();
    h = q_fnv64_mix(h, &w->options->hessians, sizeof w->options->hessians);
    h = q_fnv64_mix(h, scheme, strlen(scheme));
    h = q_fnv64_mix(h, version, strlen(version));
    w->kept = (q_kept){.alloc = w->alloc, .dst = w->dst, .hash = q_fnv64_mix(h, &w->text, sizeof w->text)};
    return LQ_OK;
}

/* ------------------------------------------------------------------------------------------------ memory */

/* While all samples are embedded: a quantized table, as quantize_embedding makes it. */
static lq_status begin_bytes(const work *w, uint64_t *bytes) {
    Q_TRY(q_stream_begin_bytes(w->stream, bytes));
    const bool tables = w->recipe && !q_recipe_method(w->recipe, NULL);
    for (uint32_t i = 0; tables && i < w->model->binding->n_items; i++) {
        const q_bind_item *item = item_of(w, i);
        q_recipe_choice c;
        uint64_t row_bytes;
        if (!is_table(w, i)) continue;
        Q_TRY(q_quantize_choose(w->recipe, w->model->binding, i, true, &c));
        if (q_quantize_copies(item, &c) || !q_row_bytes(c.format, item->src->shape[0], &row_bytes)) continue;
        *bytes = Q_MAX(*bytes, q_imitate_bytes(item, &c, threads_of(w), true)) + q_new_bytes(item->src->rows * row_bytes);
    }
    return LQ_OK;
}

/* While a stage is measured, searched, quantized and run: weights and clips of its matrices; then the most of a search, with
 * what is tried or imitated in it, of a factor of the Hessian, with rows that are quantized by it, and of the run. */
static lq_status stage_bytes(const work *w, uint32_t t, uint64_t *bytes) {
    const group *g = &w->groups[t];
    const uint64_t k = (uint64_t)q_stream_stage(w->stream, t)->k;
    uint64_t parts = 0, imitated = 0, factored = 0, run;
    Q_TRY(q_stream_stage_bytes(w->stream, t, &run));
    for (uint32_t i = 0; i < g->n_parts && w->recipe; i++) {
        const q_fold_part *p = &g->parts[i];
        const q_tensor *src = item_of(w, p->item)->src;
        if (kept_as_is(w, g, p)) continue;
        parts += q_new_bytes(src->rows * src->shape[0] * sizeof(float));
        if (p->clips) parts += q_new_bytes(clip_floats(w, p) * sizeof(float));
        imitated = Q_MAX(imitated, q_imitate_bytes(item_of(w, p->item), &p->choice, threads_of(w), false));
        if (p->choice.quantizer->prepare) factored = Q_MAX(factored, p->choice.quantizer->prepare_bytes(k, threads_of(w)));
    }
    *bytes = Q_MAX(run, factored + imitated);
    if (searches(w, t))
        *bytes = Q_MAX(*bytes, q_fold_search_bytes(w->stream, w->samples, k, threads_of(w)) + Q_MAX(run, imitated));
    *bytes += parts;
    return LQ_OK;
}

static uint64_t session_bytes(const lq_session *s) {
    enum { BLOCKS = 16 }; /* of which the plan does not count the headers */
    return s->need.kv[0] + s->need.rest[0] + q_arena_bytes(&s->arena) - s->arena.used + q_new_bytes(sizeof *s) + BLOCKS * Q_ALIGN;
}

/* All that is asked of the allocator at any time, at most, the session's included. */
static lq_status need_bytes(const work *w, bool spool, uint64_t *bytes) {
    enum { SMALL = 1 << 16 }; /* recipe, paths, records of files */
    const uint64_t k = w->widest;
    uint64_t most = q_calibrate_check_bytes(w->model, threads_of(w)), one, tensors = 0;
    Q_TRY(begin_bytes(w, &one));
    most = Q_MAX(most, one);
    for (uint32_t t = 0; t < q_stream_stages(w->stream); t++) {
        Q_TRY(stage_bytes(w, t, &one));
        most = Q_MAX(most, Q_MAX(one, q_new_bytes(q_stream_floats(w->stream, t) * sizeof(float)))); /* the latter is kept */
        for (uint32_t i = 0; i < w->groups[t].n_parts; i++)
            if (w->groups[t].parts[i].clips) most = Q_MAX(most, q_new_bytes(clip_floats(w, &w->groups[t].parts[i]) * sizeof(float)));
    }
    for (uint32_t i = 0; i < w->n_outs; i++) tensors += w->outs[i].shape[0] * w->outs[i].shape[1] * sizeof(float);
    most = Q_MAX(most, q_writer_bytes(w->out_bytes - tensors, w->out_bytes, 1));
    *bytes = session_bytes(w->session) + q_stream_bytes(w->stream, spool) + q_arena_bytes(&w->arena) +
             q_new_bytes(w->n_outs * sizeof(uint64_t)) + q_new_bytes(q_pool_bytes(threads_of(w))) +
             (w->options->hessians ? q_new_bytes(k * k * sizeof *w->h) + q_dense_open_bytes() : 0) +
             q_new_bytes(4 * k * sizeof *w->sums) + q_new_bytes(2 * k * sizeof *w->exact) + SMALL + most;
    return LQ_OK;
}

/* Room for all, where the limit allows in memory, else in a file. */
static lq_status make_room(work *w) {
    const uint64_t limit = w->options->max_ram, k = w->widest;
    uint64_t need, spooled;
    Q_TRY(need_bytes(w, false, &need));
    Q_TRY(need_bytes(w, true, &spooled));
    const bool spool = limit && need > limit;
    if (limit && Q_MIN(need, spooled) > limit)
        return q_fail(LQ_E_NOMEM, "calibrating needs at least %llu bytes of memory (%.1f MiB) beside the model's weights, with what "
                      "the text carries in a file; the limit is %llu", (unsigned long long)Q_MIN(need, spooled),
                      (double)Q_MIN(need, spooled) / 1048576.0, (unsigned long long)limit);
    Q_TRY(q_memory_check("calibrating", (spool ? spooled : need) - session_bytes(w->session), q_pool_stacks(threads_of(w))));
    Q_TRY(q_stream_room(w->stream, spool ? w->dst : NULL));
    if (w->options->hessians) w->h = (float *)q_new_raw(w->alloc, k * k, sizeof *w->h);
    w->sums = (float *)q_new_raw(w->alloc, 4 * k, sizeof *w->sums);
    w->exact = (double *)q_new_raw(w->alloc, 2 * k, sizeof *w->exact);
    if ((w->options->hessians && !w->h) || !w->sums || !w->exact) return LQ_E_NOMEM;
    w->mean = w->sums + k;
    w->most = w->mean + k;
    w->factors = w->most + k;
    return LQ_OK;
}

/* ------------------------------------------------------------------------------------------------ the run */

static lq_status open_stream(work *w) {
    const q_stream_options so = {.ids = w->ids, .samples = w->text.chunks, .window = w->text.window, .threads = threads_of(w),
                                 .cancel = (const int *)(const void *)&w->session->cancel};
    Q_TRY(q_stream_open(w->model, &so, &w->stream));
    for (uint32_t t = 0; t < q_stream_stages(w->stream); t++)
        w->widest = Q_MAX(w->widest, (uint64_t)q_stream_stage(w->stream, t)->k);
    return LQ_OK;
}

static lq_status prepare(work *w, const int32_t *ids, size_t count) {
    const lq_calibrate_options *o = w->options;
    bool same = false;
    Q_TRY(q_directory_spares(w->model->dir, w->dst));
    if (w->options->recipe) Q_TRY(q_path_same(w->dst, w->options->recipe, &same));
    if (same) return q_fail(LQ_E_ARG, "%s: the output is one of the inputs (%s)", w->dst, w->options->recipe);
    Q_TRY(q_calibrate_cut(w->session, ids, count, w->options, &w->text));
    if (w->options->scheme) Q_TRY(q_recipe_find(w->alloc, w->options->scheme, &w->recipe));
    if (w->options->recipe) Q_TRY(q_recipe_read(w->alloc, w->options->recipe, &w->recipe));
    w->ids = (int32_t *)q_arena_new(&w->arena, tokens(w), sizeof *w->ids);
    if (!w->ids) return LQ_E_NOMEM;
    for (uint32_t i = 0; i < w->text.chunks; i++)
        q_calibrate_chunk(w->session, ids, &w->text, i, w->ids + (uint64_t)i * w->text.window);
    w->transform = w->recipe ? q_recipe_transform(w->recipe) : NULL;
    if (!o->hessians && !w->transform && w->recipe)
        return q_fail(LQ_E_ARG, "%s names no transform (as awq+q4_k_m does): without Hessians (--hessians) nothing is measured "
                      "for a scheme; leave it out", scheme_name(w));
    if (!o->hessians && !w->transform)
        return q_fail(LQ_E_ARG, "a limit of memory is for calibration with Hessians (--hessians) or for a scheme with a transform");
    w->samples = Q_MAX(Q_MIN(SEARCH_TOKENS / w->text.window, w->text.chunks), (uint32_t)1);
    if (o->hessians) Q_TRY(q_dense_open(w->alloc, &w->dense));
    Q_TRY(q_pool_open(w->alloc, threads_of(w), &w->pool));
    Q_TRY(open_stream(w));
    Q_TRY(list_parts(w));
    Q_TRY(hash_inputs(w));
    Q_TRY(describe_output(w));
    Q_TRY(make_room(w));
    return q_writer_gguf.open(w->alloc, w->dst, o->force != 0, w->meta, w->n_meta, w->outs, w->n_outs, &w->writer);
}

/* What lies there for other options is told before hours are spent, since it may be these that are wrong. */
static void tell_strays(const work *w) {
    uint32_t n;
    uint64_t bytes;
    q_kept_strays(&w->kept, &w->model->ctx->log, false, &n, &bytes);
    if (n)
        q_log_write(&w->model->ctx->log, LQ_LOG_WARN, "%s: an interrupted calibration of another model, text or other options left %u "
                    "files beside it (%.1f MiB): they are not used, and go when this one is complete", w->dst, n,
                    (double)bytes / 1048576.0);
}

/* What reading a quantized directory keeps: memory that is not wanted any more. */
static void let_idle(const work *w) {
    if (w->model->dir->idle) w->model->dir->idle(w->model->dir);
}

static lq_status run(work *w, const int32_t *ids, size_t count) {
    bool found;
    Q_TRY(prepare(w, ids, count));
    tell_strays(w);
    Q_TRY(q_calibrate_check_weights(w->session, w->pool));
    let_idle(w);
    Q_TRY(q_kept_restore(&w->kept, w->stream, w->text.chunks, w->bytes, &found));
    if (found) {
        const uint32_t at = q_stream_at(w->stream);
        for (uint32_t t = 0; t < at; t++) w->total -= stage_cost(w, t); /* what is left gives the estimate */
        q_log_write(&w->model->ctx->log, LQ_LOG_INFO, "%s: goes on at layer %d of %d", w->dst,
                    q_stream_stage(w->stream, at)->layer + 1, w->model->binding->layers);
    } else {
        if (w->recipe) Q_TRY(quantize_embedding(w));
        Q_TRY(q_stream_begin(w->stream));
        q_delete(w->alloc, w->embedding); /* nothing reads it any more */
        w->embedding = NULL;
    }
    Q_TRY(tell(w));
    Q_TRY(run_stages(w));
    Q_TRY(write_output(w));
    return q_kept_remove(&w->kept, w->model->binding->layers);
}

static void release(work *w) {
    for (uint32_t t = 0; w->stream && w->groups && t < q_stream_stages(w->stream); t++)
        forget_weights(w, t);
    q_writer_gguf.discard(w->writer);
    q_kept_discard(w->results);
    q_stream_close(w->stream);
    let_idle(w);
    if (w->pool) q_pool_close(w->pool);
    q_dense_close(w->dense);
    q_recipe_close(w->recipe);
    q_delete(w->alloc, w->h);
    q_delete(w->alloc, w->sums);
    q_delete(w->alloc, w->exact);
    q_delete(w->alloc, w->embedding);
    q_arena_free(&w->arena);
}

lq_status q_calibrate_layers(lq_session *s, const int32_t *ids, size_t count, const char *dst, const lq_calibrate_options *o,
                               lq_calibrate_result *result) {
    const double begin = q_clock();
    work w = {.session = s, .model = s->model, .alloc = s->alloc, .options = o, .dst = dst, .arena = {.alloc = s->alloc}};
    const lq_status status = run(&w, ids, count);
    if (status == LQ_E_CANCELLED) atomic_store(&s->cancel, 0);
    if (status == LQ_OK)
        *result = (lq_calibrate_result){.size = sizeof *result, .window = w.text.window, .chunks = w.text.chunks,
                                        .entries = w.entries, .tokens = tokens(&w), .bytes = w.out_bytes,
                                        .seconds = q_clock() - begin};
    release(&w);
    return status;
}
