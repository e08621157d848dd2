/* hessians.c: calibration with Hessians: a text goes through the model layer by layer, and of the inputs of each stage's
 * products the sum of outer products is kept; with a scheme the products are then quantized as lq_quantize will with this
 * file, and what follows sees their results.
 *
 * One Hessian at a time is in memory. Each finished layer is kept beside the output (kept.c), from which the output is put
 * together at the end, and an interrupted call goes on. Sums are formed text chunk by text chunk, so neither threads nor
 * interruptions change a byte. Layer L3. */
#include "calibrate.h"

#include <math.h>
#include <stdio.h>

#include "dense.h"
#include "kept.h"
#include "quantize.h"
#include "stream.h"

/* A matrix whose inputs are measured; those of a stage share them. */
typedef struct part {
    uint32_t item;
    float *weights; /* while its stage runs: float32 [rows][k], quantized */
} part;

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
    q_dense *dense;
    q_pool *pool;
    q_stream *stream;
    part **parts;       /* [stages][products]; a matrix of which several products take rows is there once */
    uint32_t *n_parts;  /* [stages] */
    uint64_t *bytes;    /* [layers] of its results */
    q_kept kept;
    q_kept_file *results; /* of the layer in work */
    float *h;           /* [k][k] of the largest k; then its triangle */
    float *sums;        /* [k] of squares */
    double *exact;
    uint8_t *embedding; /* quantized; NULL: the model's own */
    uint64_t done, total; /* progress, in units of arithmetic */
    q_out_tensor *outs;
    uint32_t n_outs, entries;
    q_writer *writer;
    uint64_t out_bytes;
} work;

static uint64_t triangle(uint64_t k) { return k * (k + 1) / 2; }
static uint64_t tokens(const work *w) { return (uint64_t)w->text.chunks * w->text.window; }
static const q_bind_item *item_of(const work *w, uint32_t i) { return &w->model->binding->items[i]; }

/* ------------------------------------------------------------------------------------------------ progress */

/* A token's products and outer products, in thousands of multiplications. */
static uint64_t cost(const work *w, uint32_t stage) {
    const q_stage *g = q_stream_stage(w->stream, stage);
    uint64_t rows = 0;
    for (int32_t i = 0; i < g->n_products; i++) rows += (uint64_t)g->products[i].w->rows;
    return (uint64_t)g->k * (rows + (uint64_t)g->k / 2) / 1000 + 1;
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

typedef struct job {
    const work *w;
    const q_bind_item *item;
    const q_recipe_choice *choice;
    const float *diagonal;
    const void *shared;
    uint64_t row_bytes;
    float *out;      /* [rows][k]: what the quantized rows decode to; or: */
    uint8_t *coded;  /* the rows themselves */
    int64_t span;
    lq_status *status; /* [threads] */
} job;

static lq_status some_rows(const job *j, int64_t begin, int64_t n) {
    const q_alloc *a = j->w->alloc;
    const uint64_t k = j->item->src->shape[0];
    float *x = j->out ? j->out + (uint64_t)begin * k : (float *)q_new_raw(a, (uint64_t)n * k, sizeof *x);
    uint8_t *rows = j->coded ? j->coded + (uint64_t)begin * j->row_bytes : (uint8_t *)q_new_raw(a, (uint64_t)n, j->row_bytes);
    lq_status status = x && rows ? q_bind_read(a, j->w->model->binding, j->item, (uint64_t)begin, (uint64_t)n, x) : LQ_E_NOMEM;
    if (status == LQ_OK) {
        const q_quant_job q = {j->choice->format, x, n, (int64_t)k, j->diagonal, j->shared, a};
        status = j->choice->quantizer->quantize(&q, rows);
    }
    for (int64_t r = 0; r < n && status == LQ_OK && j->out; r++)
        q_decode_row(j->choice->format, rows + (uint64_t)r * j->row_bytes, (int64_t)k, x + (uint64_t)r * k);
    if (!j->out) q_delete(a, x);
    if (!j->coded) q_delete(a, rows);
    return status;
}

static void span(void *arg, int64_t begin, int64_t end, uint32_t thread) {
    const job *j = (const job *)arg;
    if (j->status[thread] == LQ_OK) j->status[thread] = some_rows(j, begin, end - begin);
}

/* Quantize a tensor as lq_quantize will: into float32 that means the same, or into rows of the format. */
static lq_status quantize(work *w, uint32_t item, const q_recipe_choice *c, const float *diagonal, const void *shared, float *out,
                          uint8_t *coded) {
    enum { SPAN = 1 << 14 };
    const q_bind_item *b = item_of(w, item);
    const uint32_t threads = q_pool_threads(w->pool);
    job j = {.w = w, .item = b, .choice = c, .diagonal = diagonal, .shared = shared, .out = out, .coded = coded};
    if (!q_row_bytes(c->format, b->src->shape[0], &j.row_bytes))
        return q_fail(LQ_E_INTERNAL, "tensor %s: rows do not fit format %s", b->name.p, c->format->name);
    j.span = (int64_t)Q_MAX(SPAN / Q_MAX(b->src->shape[0], (uint64_t)1), (uint64_t)Q_MAX(c->quantizer->rows, 1));
    j.status = Q_NEW(w->alloc, lq_status, threads);
    if (!j.status) return LQ_E_NOMEM;
    q_pool_for(w->pool, (int64_t)b->src->rows, j.span, span, &j);
    lq_status status = LQ_OK;
    for (uint32_t t = 0; t < threads && status == LQ_OK; t++)
        if (j.status[t] != LQ_OK) status = q_fail(j.status[t], "tensor %s could not be quantized", b->name.p);
    q_delete(w->alloc, j.status);
    return status;
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

static lq_status quantize_part(work *w, part *p, prepared *h) {
    const q_bind_item *b = item_of(w, p->item);
    q_recipe_choice c;
    Q_TRY(q_quantize_choose(w->recipe, w->model->binding, p->item, true, &c));
    if (q_quantize_copies(b, &c)) return LQ_OK;
    p->weights = (float *)q_new_raw(w->alloc, b->src->rows * b->src->shape[0], sizeof *p->weights);
    if (!p->weights) return LQ_E_NOMEM;
    if (c.quantizer->prepare && c.quantizer != h->by) {
        const q_quant_stats s = {w->alloc, &w->model->ctx->log, w->pool, b->name.p, (int64_t)b->src->shape[0], w->h};
        unprepare(w, h);
        Q_TRY(c.quantizer->prepare(&s, &h->shared));
        h->by = c.quantizer;
    }
    Q_TRY(quantize(w, p->item, &c, w->sums, c.quantizer->prepare ? h->shared : NULL, p->weights, NULL));
    q_stream_replace(w->stream, p->item, p->weights);
    return LQ_OK;
}

static lq_status quantize_stage(work *w, uint32_t stage) {
    prepared h = {NULL, NULL};
    lq_status status = LQ_OK;
    for (uint32_t i = 0; i < w->n_parts[stage] && status == LQ_OK; i++) status = quantize_part(w, &w->parts[stage][i], &h);
    unprepare(w, &h);
    return status;
}

/* Without statistics, as lq_quantize quantizes a table. */
static lq_status quantize_embedding(work *w) {
    const q_binding *b = w->model->binding;
    if (q_recipe_method(w->recipe, NULL)) return LQ_OK; /* a directory keeps its tables as they are */
    for (uint32_t i = 0; i < b->n_items; i++) {
        q_recipe_choice c;
        uint64_t row_bytes;
        const bool table = strcmp(b->arch->weights[b->items[i].role].role, "token_embd") == 0;
        if (!table) continue;
        Q_TRY(q_quantize_choose(w->recipe, b, i, true, &c));
        if (q_quantize_copies(&b->items[i], &c)) continue;
        if (c.quantizer->needs != Q_NEEDS_NONE)
            return q_fail(LQ_E_ARG, "tensor %s: there are no calibration statistics of a table for quantizer %s", b->items[i].name.p,
                          c.quantizer->name);
        if (!q_row_bytes(c.format, b->items[i].src->shape[0], &row_bytes)) return LQ_E_INTERNAL;
        w->embedding = (uint8_t *)q_new_raw(w->alloc, b->items[i].src->rows, row_bytes);
        if (!w->embedding) return LQ_E_NOMEM;
        Q_TRY(quantize(w, i, &c, NULL, NULL, NULL, w->embedding));
        q_stream_embed(w->stream, c.format, w->embedding);
    }
    return LQ_OK;
}

/* ------------------------------------------------------------------------------------------------ a stage */

static lq_status measure(work *w, const q_stage *g) {
    const uint64_t k = (uint64_t)g->k;
    const float *x;
    int64_t stride;
    memset(w->h, 0, (size_t)(k * k) * sizeof *w->h);
    memset(w->exact, 0, (size_t)k * sizeof *w->exact);
    for (uint32_t i = 0; i < w->text.chunks; i++) {
        Q_TRY(q_stream_input(w->stream, i, &x, &stride));
        q_dense_gram(w->dense, w->pool, x, w->text.window, stride, g->k, w->h);
        for (uint32_t c = 0; c < w->text.window; c++)
            for (uint64_t j = 0; j < k; j++) w->exact[j] += (double)x[c * (uint64_t)stride + j] * (double)x[c * (uint64_t)stride + j];
        w->done += cost(w, q_stream_at(w->stream)) - cost(w, q_stream_at(w->stream)) / 2;
        Q_TRY(tell(w));
    }
    const double scale = 2.0 / (double)tokens(w);
    float *out = w->h; /* row i of the triangle never begins behind row i of the square */
    for (uint64_t i = 0; i < k; i++)
        for (uint64_t j = 0; j <= i; j++) *out++ = (float)((double)w->h[i * k + j] * scale);
    bool finite = true;
    for (uint64_t i = 0; i < triangle(k); i++) finite &= isfinite(w->h[i]) != 0;
    for (uint64_t i = 0; i < k; i++) finite &= isfinite(w->sums[i] = (float)w->exact[i]) != 0;
    if (finite) return LQ_OK;
    return q_fail(LQ_E_NUMERIC, "the inputs of '%s' are not finite: the model's weights are damaged", g->products[0].w->name);
}

static lq_status run_stage(work *w, uint32_t stage) {
    const q_stage *g = q_stream_stage(w->stream, stage);
    const uint64_t k = (uint64_t)g->k;
    Q_TRY(measure(w, g));
    Q_TRY(q_kept_write(w->results, w->sums, k * sizeof *w->sums));
    Q_TRY(q_kept_write(w->results, w->h, triangle(k) * sizeof *w->h));
    if (stage + 1 == q_stream_stages(w->stream)) return LQ_OK; /* nobody sees what it gives */
    if (w->recipe) {
        Q_TRY(q_importance_scale(item_of(w, w->parts[stage][0].item)->name, w->sums, k)); /* as the file will be read */
        Q_TRY(quantize_stage(w, stage));
    }
    return q_stream_advance(w->stream, after_run, w);
}

static void forget_weights(work *w, uint32_t stage) {
    for (uint32_t i = 0; i < w->n_parts[stage]; i++) {
        q_delete(w->alloc, w->parts[stage][i].weights);
        w->parts[stage][i].weights = NULL;
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

static lq_status list_parts(work *w) {
    const uint32_t n = q_stream_stages(w->stream);
    w->parts = (part **)q_arena_new(&w->arena, n, sizeof *w->parts);
    w->n_parts = (uint32_t *)q_arena_new(&w->arena, n, sizeof *w->n_parts);
    w->bytes = (uint64_t *)q_arena_new(&w->arena, (uint64_t)w->model->binding->layers, sizeof *w->bytes);
    if (!w->parts || !w->n_parts || !w->bytes) return LQ_E_NOMEM;
    for (uint32_t t = 0; t < n; t++) {
        const q_stage *g = q_stream_stage(w->stream, t);
        w->parts[t] = (part *)q_arena_new(&w->arena, (uint64_t)g->n_products, sizeof *w->parts[t]);
        if (!w->parts[t]) return LQ_E_NOMEM;
        for (int32_t i = 0; i < g->n_products; i++) {
            const uint32_t item = q_stream_item(w->stream, &g->products[i]);
            bool seen = false;
            for (uint32_t j = 0; j < w->n_parts[t]; j++) seen |= w->parts[t][j].item == item;
            if (!seen) w->parts[t][w->n_parts[t]++].item = item;
        }
        w->entries += w->n_parts[t];
        w->bytes[g->layer] += ((uint64_t)g->k + triangle((uint64_t)g->k)) * sizeof(float);
        w->total += cost(w, t) * w->text.chunks;
    }
    return LQ_OK;
}

static lq_status open_output(work *w) {
    const uint32_t stages = q_stream_stages(w->stream);
    const q_str dataset = q_str_of(w->options->dataset ? w->options->dataset : "");
    q_str *names = (q_str *)q_arena_new(&w->arena, w->entries, sizeof *names);
    q_str *of = (q_str *)q_arena_new(&w->arena, w->entries, sizeof *of);
    w->outs = (q_out_tensor *)q_arena_new(&w->arena, 2 * (uint64_t)w->entries + stages, sizeof *w->outs);
    if (!names || !of || !w->outs) return LQ_E_NOMEM;
    uint64_t shared = 0;
    for (uint32_t t = 0; t < stages; t++) {
        const uint64_t k = (uint64_t)q_stream_stage(w->stream, t)->k;
        const q_str first = item_of(w, w->parts[t][0].item)->name;
        for (uint32_t i = 0; i < w->n_parts[t]; i++) {
            const q_str name = item_of(w, w->parts[t][i].item)->name;
            Q_TRY(q_calibrate_tensor(&w->arena, name.p, Q_IMPORTANCE_SUMS, k, &w->outs[w->n_outs++]));
            Q_TRY(q_calibrate_tensor(&w->arena, name.p, Q_IMPORTANCE_COUNTS, 1, &w->outs[w->n_outs++]));
            if (i == 0) continue;
            names[shared] = name;
            of[shared++] = first;
        }
        Q_TRY(q_calibrate_tensor(&w->arena, first.p, Q_IMPORTANCE_HESSIAN, triangle(k), &w->outs[w->n_outs++]));
    }
    enum { MORE = 3 };
    q_meta meta[Q_CALIBRATE_KEYS + MORE];
    q_calibrate_keys(w->options->dataset ? &dataset : NULL, &w->text, meta);
    q_meta *m = meta + Q_CALIBRATE_KEYS;
    m[0] = (q_meta){.key = q_str_of(Q_HESSIAN_TENSORS), .type = Q_META_ARRAY, .item = Q_META_STRING, .strs = names, .count = shared};
    m[1] = (q_meta){.key = q_str_of(Q_HESSIAN_OF), .type = Q_META_ARRAY, .item = Q_META_STRING, .strs = of, .count = shared};
    m[2] = (q_meta){.key = q_str_of(Q_HESSIAN_SCHEME), .type = Q_META_STRING, .count = 1,
                    .s = q_str_of(scheme_name(w))};
    Q_TRY(q_writer_gguf.measure(meta, Q_COUNT(meta), w->outs, w->n_outs, &w->out_bytes));
    return q_writer_gguf.open(w->alloc, w->dst, w->options->force != 0, meta, Q_COUNT(meta), w->outs, w->n_outs, &w->writer);
}

static lq_status write_stage(work *w, q_kept_reader *r, uint32_t t) {
    const uint64_t k = (uint64_t)q_stream_stage(w->stream, t)->k;
    const float count = (float)tokens(w);
    Q_TRY(q_kept_read(r, w->sums, k * sizeof *w->sums));
    Q_TRY(q_kept_read(r, w->h, triangle(k) * sizeof *w->h));
    for (uint32_t i = 0; i < w->n_parts[t]; i++) {
        Q_TRY(q_writer_gguf.write(w->writer, w->sums, k * sizeof *w->sums));
        Q_TRY(q_writer_gguf.write(w->writer, &count, sizeof count));
    }
    return q_writer_gguf.write(w->writer, w->h, triangle(k) * sizeof *w->h);
}

static lq_status write_output(work *w) {
    uint32_t t = 0;
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
    q_writer *writer = w->writer;
    w->writer = NULL; /* commit frees it in every case */
    return q_writer_gguf.commit(writer);
}

/* ------------------------------------------------------------------------------------------------ the run */

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

static uint64_t mix(uint64_t h, const void *data, size_t n) { return h * 1099511628211u ^ q_fnv64(data, n); }

/* What the results depend on: hyper-parameters; tensors by name, kind and samples of their bytes; the tokens; the options. */
static lq_status hash_inputs(work *w) {
    const q_directory *d = w->model->dir;
    uint8_t sample[4096];
    uint64_t h = q_fnv64(w->ids, (size_t)tokens(w) * sizeof *w->ids);
    for (uint32_t i = 0; i < d->n_tensors; i++) {
        const q_tensor *t = &d->tensors[i];
        h = mix(h, t->name.p, (size_t)t->name.n);
        h = mix(h, t->shape, sizeof t->shape);
        h = mix(h, t->type_name, strlen(t->type_name));
        for (uint64_t at = 0; at < 3; at++) {
            const uint64_t n = Q_MIN((uint64_t)sizeof sample, t->bytes);
            Q_TRY(q_tensor_read(d, t, (t->bytes - n) / 2 * at, sample, n));
            h = mix(h, sample, (size_t)n);
        }
    }
    h = mix(h, w->model->binding->hp.v, sizeof w->model->binding->hp.v);
    for (uint32_t i = 0; i < w->model->binding->n_items; i++) { /* as they are used: load_as may have changed them */
        const char *as = w->model->weights[i].format->name;
        h = mix(h, as, strlen(as));
    }
    Q_TRY(hash_recipe(w, &h));
    const char *scheme = scheme_name(w), *version = lq_version_string();
    h = mix(h, scheme, strlen(scheme));
    h = mix(h, version, strlen(version));
    w->kept = (q_kept){.alloc = w->alloc, .dst = w->dst, .hash = mix(h, &w->text, sizeof w->text)};
    return LQ_OK;
}

/* Bytes besides what samples carry: the largest Hessian as it is summed and factored, and the weights of a stage. */
static uint64_t working_bytes(const work *w) {
    uint64_t most = 0;
    for (uint32_t t = 0; t < q_stream_stages(w->stream); t++) {
        const q_stage *g = q_stream_stage(w->stream, t);
        const uint64_t k = (uint64_t)g->k;
        uint64_t bytes = k * k * sizeof(float);
        if (w->recipe) bytes += k * k * (sizeof(float) + sizeof(double)) + w->session->shape.threads_prefill * k * 256 * sizeof(double);
        for (int32_t i = 0; i < g->n_products && w->recipe; i++) bytes += (uint64_t)g->products[i].w->rows * k * sizeof(float);
        most = Q_MAX(most, bytes);
    }
    return most;
}

static lq_status open_stream(work *w) {
    const uint64_t limit = w->options->max_ram;
    q_stream_options so = {.ids = w->ids, .samples = w->text.chunks, .window = w->text.window,
                           .threads = w->session->shape.threads_prefill, .cancel = (const int *)(const void *)&w->session->cancel,
                           .spool = limit ? w->dst : NULL}; /* where there is a limit, look first how much it is */
    Q_TRY(q_stream_open(w->model, &so, &w->stream));
    const uint64_t working = working_bytes(w), carried = q_stream_bytes(w->stream);
    if (limit && working > limit)
        return q_fail(LQ_E_NOMEM, "calibrating needs %llu bytes of memory beside what lies in a file; the limit is %llu",
                      (unsigned long long)working, (unsigned long long)limit);
    if (!limit || working + carried > limit) return LQ_OK;
    q_stream_close(w->stream);
    w->stream = NULL;
    so.spool = NULL;
    return q_stream_open(w->model, &so, &w->stream);
}

static lq_status prepare(work *w, const int32_t *ids, size_t count) {
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
    Q_TRY(q_dense_open(w->alloc, &w->dense));
    Q_TRY(q_pool_open(w->alloc, w->session->shape.threads_prefill, &w->pool));
    Q_TRY(open_stream(w));
    Q_TRY(list_parts(w));
    Q_TRY(hash_inputs(w));
    Q_TRY(open_output(w));
    uint64_t k = 0;
    for (uint32_t t = 0; t < q_stream_stages(w->stream); t++) k = Q_MAX(k, (uint64_t)q_stream_stage(w->stream, t)->k);
    Q_TRY(q_memory_check("calibrating", working_bytes(w), 0));
    w->h = (float *)q_new_raw(w->alloc, k * k, sizeof *w->h);
    w->sums = (float *)q_new_raw(w->alloc, k, sizeof *w->sums);
    w->exact = (double *)q_new_raw(w->alloc, k, sizeof *w->exact);
    return w->h && w->sums && w->exact ? LQ_OK : LQ_E_NOMEM;
}

static lq_status run(work *w, const int32_t *ids, size_t count) {
    bool found;
    Q_TRY(prepare(w, ids, count));
    Q_TRY(q_kept_restore(&w->kept, w->stream, w->text.chunks, w->bytes, &found));
    if (found) {
        const uint32_t at = q_stream_at(w->stream);
        for (uint32_t t = 0; t < at; t++) w->total -= cost(w, t) * w->text.chunks; /* what is left gives the estimate */
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
    for (uint32_t t = 0; w->stream && w->parts && t < q_stream_stages(w->stream); t++)
        if (w->parts[t]) forget_weights(w, t);
    q_writer_gguf.discard(w->writer);
    q_kept_discard(w->results);
    q_stream_close(w->stream);
    if (w->pool) q_pool_close(w->pool);
    q_dense_close(w->dense);
    q_recipe_close(w->recipe);
    q_delete(w->alloc, w->h);
    q_delete(w->alloc, w->sums);
    q_delete(w->alloc, w->exact);
    q_delete(w->alloc, w->embedding);
    q_arena_free(&w->arena);
}

lq_status q_calibrate_hessians(lq_session *s, const int32_t *ids, size_t count, const char *dst, const lq_calibrate_options *o,
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
