/* load_as.c: matrices quantized while a model opens: the float weights of a file used in a format of fewer bits at
 * once.
 *
 * Owns what lq_model_options.load_as means: which matrices it is about (those of the layers that products read; the
 * embedding, the output matrix, routers, norms and biases stay as they are stored), which format each gets (as a recipe
 * says, rounded to nearest), and the memory that holds them instead of the file's bytes. Rows are independent, so the
 * bits do not depend on the number of threads. Refuses a matrix that is already quantized, by name, and weights that
 * are not finite. Layer L3. */
#include "engine.h"
#include "quantize.h"

#include <math.h>
#include <stdio.h>

enum { SPAN_WEIGHTS = 1 << 14 /* that a thread takes at a time */ };

/* ------------------------------------------------------------------------------------------- which, and as what */

static bool is_product(uint8_t op) { return op == Q_OP_MATMUL || op == Q_OP_MOE_GLU || op == Q_OP_MOE_DOWN; }

/* Does a product of some layer read this role? */
static bool is_multiplied(const q_arch *a, int32_t role) {
    for (uint32_t k = 0; k < a->n_layer_kinds; k++)
        for (uint32_t i = 0; i < a->layers[k].n; i++) {
            const q_step *s = &a->layers[k].steps[i];
            if (is_product(s->op) && (s->w == role + 1 || s->w2 == role + 1)) return true;
        }
    return false;
}

/* A format as schemes and other libraries write it: nf4-dq is nf4_dq. Any other name is left as it is. */
static const char *known_name(const char *name, char *text, size_t n) {
    snprintf(text, n, "%s", name);
    for (char *p = text; *p; p++)
        if (*p == '-') *p = '_';
    return q_format_find(text) ? text : name;
}

/* Bits that rounding would not give: of a transform, of statistics. */
static lq_status cannot_choose(const char *scheme, const char *how, const char *instead) {
    return q_fail(
        LQ_E_ARG,
        "load_as: '%.100s' asks for %s, and while a model opens weights are rounded to nearest: name %s alone, "
        "or write the model first (`lq quantize MODEL OUTPUT --scheme %.100s`) and open that",
        scheme, how, instead, scheme);
}

static lq_status choose_one(lq_model *m, const q_recipe *recipe, const char *name, uint32_t i) {
    const q_binding *b = m->binding;
    const q_bind_item *item = &b->items[i];
    if (item->layer < 0 || b->arch->weights[item->role].rows == 0 || !is_multiplied(b->arch, item->role)) return LQ_OK;
    if (item->src->format->weights > 1)
        return q_fail(LQ_E_ARG,
                      "tensor '%s' is already quantized (%s), and quantizing again adds to its error: load the model "
                      "as it is stored",
                      item->name.p, item->src->format->name);
    q_recipe_choice c;
    Q_TRY(q_quantize_choose(recipe, b, i, false, &c));
    if (c.quantizer->needs != Q_NEEDS_NONE) return cannot_choose(name, c.quantizer->name, c.format->name);
    if (q_recipe_transform(recipe)) return cannot_choose(name, q_recipe_transform(recipe)->name, c.format->name);
    if (c.format != c.wanted)
        q_log_write(&m->ctx->log, LQ_LOG_WARN, "tensor '%s': rows of %llu weights do not fill blocks of %s; %s instead",
                    item->name.p, (unsigned long long)item->src->shape[0], c.wanted->name,
                    c.format->weights > 1 ? c.format->name : "as stored");
    m->as[i] = c.format->weights > 1 ? c.format : NULL;
    return LQ_OK;
}

lq_status q_load_as_choose(lq_model *m, const char *name) {
    char text[64];
    q_recipe *recipe;
    if (!name) return LQ_OK;
    const char *known = known_name(name, text, sizeof text);
    const q_format *f = q_format_find(known);
    if (f && f->weights == 1) return q_fail(LQ_E_ARG, "load_as: %s is not a quantized format", f->name);
    if (strpbrk(name, "+:"))
        return cannot_choose(name, "more than a scheme or format", "one");
    Q_TRY(q_recipe_find(m->alloc, known, &recipe));
    m->as = Q_NEW(m->alloc, const q_format *, m->binding->n_items);
    lq_status s = m->as ? LQ_OK : LQ_E_NOMEM;
    for (uint32_t i = 0; i < m->binding->n_items && s == LQ_OK; i++) s = choose_one(m, recipe, name, i);
    q_recipe_close(recipe);
    return s;
}

uint64_t q_load_as_bytes(const lq_model *m, uint32_t i) {
    const q_tensor *t = m->binding->items[i].src;
    uint64_t row_bytes;
    if (!m->as || !m->as[i] || !q_row_bytes(m->as[i], t->shape[0], &row_bytes)) return 0;
    return row_bytes * t->rows;
}

uint64_t q_item_bytes(const lq_model *m, uint32_t i) {
    const uint64_t bytes = q_load_as_bytes(m, i);
    return bytes ? bytes : m->binding->items[i].src->bytes;
}

/* ------------------------------------------------------------------------------------------- quantizing them */

typedef struct work {
    const q_weight *w; /* as it is stored */
    const q_format *format;
    const q_quantizer *quantizer;
    const q_wide *wide;
    uint8_t *out;
    uint64_t row_bytes;
    float *floats; /* [threads][span * k] */
    int64_t span;
    int64_t *bad; /* [threads] the lowest row with a weight that is not finite; -1 = none */
} work;

static void quantize_rows(void *arg, int64_t begin, int64_t end, uint32_t thread) {
    const work *j = (const work *)arg;
    const int64_t k = j->w->k;
    float *x = j->floats + (int64_t)thread * j->span * k;
    for (int64_t r = begin; r < end; r++) {
        float *row = x + (r - begin) * k;
        j->wide->decode(j->w->format, j->w->data + (uint64_t)r * j->w->row_bytes, k, row);
        if (!j->wide->finite(row, k)) { /* a thread's rows ascend */
            if (j->bad[thread] < 0) j->bad[thread] = r;
            return;
        }
    }
    const q_quant_job job = {.format = j->format, .x = x, .rows = end - begin, .k = k, .wide = j->wide};
    (void)j->quantizer->quantize(&job, j->out + (uint64_t)begin * j->row_bytes); /* the shapes fit: q_load_as_bytes */
}

static lq_status quantize(lq_model *m, q_pool *pool, uint32_t threads, work *j) {
    const int64_t rows = (int64_t)j->w->rows * j->w->matrices;
    int64_t bad = -1;
    j->span = Q_MAX(SPAN_WEIGHTS / Q_MAX(j->w->k, 1), 1);
    j->floats = (float *)q_new_raw(m->alloc, threads, (uint64_t)(j->span * j->w->k) * sizeof(float));
    j->bad = Q_NEW(m->alloc, int64_t, threads);
    lq_status s = j->floats && j->bad ? LQ_OK : LQ_E_NOMEM;
    for (uint32_t t = 0; t < threads && s == LQ_OK; t++) j->bad[t] = -1;
    if (s == LQ_OK) q_pool_for(pool, rows, j->span, quantize_rows, j);
    for (uint32_t t = 0; t < threads && s == LQ_OK; t++)
        if (j->bad[t] >= 0 && (bad < 0 || j->bad[t] < bad)) bad = j->bad[t];
    if (bad >= 0)
        s = q_fail(LQ_E_INCONSISTENT, "tensor '%s' has a value that is not finite in row %lld", j->w->name,
                   (long long)bad);
    q_delete(m->alloc, j->floats);
    q_delete(m->alloc, j->bad);
    return s;
}

lq_status q_load_as_weight(lq_model *m, q_pool *pool, uint32_t i) {
    const uint64_t bytes = q_load_as_bytes(m, i);
    q_weight *w = &m->weights[i];
    if (!bytes) return LQ_OK;
    work j = {.w = w, .format = m->as[i], .quantizer = q_quantizer_find("rtn"), .wide = q_ctx_wide(m->ctx)};
    if (!j.quantizer || !q_row_bytes(j.format, (uint64_t)w->k, &j.row_bytes))
        return q_fail(LQ_E_INTERNAL, "tensor '%s' cannot be loaded as %s", w->name, j.format->name);
    if (!m->plan_only) {
        j.out = (uint8_t *)q_new_placed(m->alloc, &m->ctx->placing, bytes, false);
        if (!j.out) return LQ_E_NOMEM;
        const lq_status s = quantize(m, pool, q_pool_threads(pool), &j);
        if (s != LQ_OK) {
            q_delete(m->alloc, j.out);
            return s;
        }
    }
    const q_tensor *t = m->binding->items[i].src;
    if (!m->owned[i] && t->data) q_file_give_back(t->data, t->bytes);
    q_delete(m->alloc, m->owned[i]); /* a copy in the order of GGUF */
    m->owned[i] = j.out;
    w->format = j.format;
    w->data = j.out;
    w->row_bytes = j.row_bytes;
    if (w->matrices > 1) w->matrix_bytes = j.row_bytes * (uint64_t)w->rows;
    return LQ_OK;
}

lq_status q_load_as_all(lq_model *m, lq_status (*each)(lq_model *m, q_pool *pool, uint32_t i, bool check), bool check) {
    const uint32_t n = m->binding->n_items;
    const double begin = q_clock();
    uint64_t from = 0, to = 0, done = 0;
    uint32_t count = 0, said = 0;
    q_pool *pool = NULL;
    for (uint32_t i = 0; i < n; i++) {
        const uint64_t bytes = q_load_as_bytes(m, i);
        if (!bytes) continue;
        from += m->binding->items[i].src->bytes;
        to += bytes;
        count++;
    }
    bool views = false;
    for (uint32_t i = 0; i < n && !views; i++) views = m->binding->items[i].src->view != NULL;
    if ((count || views) && !m->plan_only) Q_TRY(q_pool_open(m->alloc, m->ctx->threads, &pool));
    lq_status s = LQ_OK;
    for (uint32_t i = 0; i < n && s == LQ_OK; i++) {
        s = each(m, pool, i, check);
        done += q_load_as_bytes(m, i);
        if (!pool || !count || done * 4 / to == said) continue;
        said = (uint32_t)(done * 4 / to);
        q_log_write(&m->ctx->log, LQ_LOG_INFO, "quantizing: %u %% after %.2f s", 25 * said, q_clock() - begin);
    }
    if (pool) q_pool_close(pool);
    if (s == LQ_OK && count && !m->plan_only)
        q_log_write(&m->ctx->log, LQ_LOG_INFO,
                    "quantized %u matrices of the layers in %.3f s, %.1f MiB to %.1f MiB; the "
                    "embedding, the output and vectors are as stored",
                    count, q_clock() - begin, (double)from / 1048576.0, (double)to / 1048576.0);
    return s;
}
