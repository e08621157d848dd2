/* quantize.c: lq_quantize: choose a format per tensor, read rows, quantize, measure the error, write.
 *
 * Everything that can be refused is refused before the first weight is read: an output that is one of the inputs or
 * already there, a quantized source, formats that GGUF lacks, too little space. Then tensors stream through in file
 * order: a piece of rows is read and quantized by the pool, checked by decoding it back, and written by one of its threads
 * while the others are at the next piece. Rows are independent and sums of errors are kept per row, so neither bytes nor figures depend on the threads.
 * A weight or a result that is not finite is refused by tensor and row. An importance file is read whole before, and what
 * it has for each tensor is decided with the format; factors of a transform are put on rows as they are read (folding.h).
 * Layer L3. */
#include "quantize.h"

#include <math.h>
#include <stdio.h>

#include "dense.h"
#include "export.h"
#include "file_keys.h"
#include "folding.h"
#include "importance_check.h"
#include "row_limits.h"
#include "lora.h"
#include "recipe.h"
#include "row_errors.h"
#include "threads.h"

enum {
    SPAN_WEIGHTS = 1 << 14,             /* weights that a thread takes at a time */
    PIECE_PER_THREAD = 1 << 18,         /* weights per thread between two writes */
    PIECE_WEIGHTS = 1 << 20,            /* and at least this many */
    MAX_THREADS = 1024
};

typedef struct work {
    const q_alloc *alloc;
    const q_log *log;
    const q_wide *wide;
    const char *src, *dst;
    const lq_quantize_options *options;
    q_arena arena; /* names and keys */
    q_directory *dir;
    q_binding *binding;
    q_text *text;
    q_recipe *recipe;
    q_pool *pool;
    uint32_t threads;
    q_importance *importance; /* NULL: no file was given */
    q_loras *loras;           /* NULL: none were given */
    q_dense *dense;           /* held while a quantizer wants it: each of its calls would load the library anew */
    bool directory;           /* write a Hugging Face directory, not a GGUF file */
    const q_writer_kind *kind;
    const q_method *method; /* how a directory stores the matrices of the layers; NULL = as floats */
    const q_format *dtype;    /* of a directory's other tensors */
    uint32_t n_items;         /* the binding's; for a directory, whose config.json says the rest, those that are stored */
    q_bind_item *items;       /* [n_items] the binding's; for a directory under the source's names, rows as there */
    q_recipe_choice *choices; /* [n_items] */
    const q_importance_entry **entries; /* [n_items] what weighs the errors of a tensor; NULL = nothing does */
    const q_importance_entry **clips;   /* [n_items] what limits its weights; NULL = nothing does */
    q_out_tensor *outs;       /* [n_outs] a packed matrix has several */
    uint32_t n_outs;
    uint32_t *first_out;      /* [n_items] */
    q_meta *meta;
    uint32_t n_meta;
    q_writer *writer;
    lq_quantize_result result;
    uint64_t tensor_bytes, done;

    /* the piece in flight */
    const q_bind_item *item;
    const q_recipe_choice *choice;
    const q_importance_entry *entry;
    bool copy, measure;    /* measure: the rows are there, only their errors are wanted */
    bool passing;          /* the source, read once, would push everything else out of memory: its pages go as they were read */
    bool packed;           /* `out` holds the whole tensor, which is: */
    q_packed_matrix matrix; /* its order is that of all rows, packed or not */
    void *shared;           /* what a quantizer prepared of a Hessian; kept for the next tensor, which may have the same: */
    const q_quantizer *shared_by;
    const q_tensor *shared_of;
    const float *shared_factors;
    q_limits limits;        /* of the tensor's weights */
    uint64_t first_row, row_bytes;
    int64_t span_rows;      /* that a thread takes at a time */
    uint64_t span_floats;   /* room per thread: twice this many floats */
    float *floats;          /* [threads][2][span_floats] */
    uint8_t *out;           /* rows of the piece, or of a packed matrix */
    uint8_t *other, *late;  /* without a method: as large, the piece before it; late: it is yet to be written, by who comes first */
    uint64_t late_bytes;
    uint8_t *part, *scratch; /* of a packed matrix: what is stored, what the method keeps */
    q_row_sums *sums;         /* [rows of the piece] */
    q_trouble *troubles;    /* [threads] by rows */
} work;

/* ---- what is refused before any work */

static lq_status same_file(const work *w, const char *input) {
    bool same;
    Q_TRY(q_path_same(w->dst, input, &same));
    return !same ? LQ_OK : q_fail(LQ_E_ARG, "%s: the output is one of the inputs (%s)", w->dst, input);
}

/* The destination must not be the source under any name: a shard, a link, a side file of a directory. */
static lq_status check_destination(const work *w) {
    Q_TRY(same_file(w, w->src));
    if (w->options->importance) Q_TRY(same_file(w, w->options->importance));
    if (w->options->recipe) Q_TRY(same_file(w, w->options->recipe));
    Q_TRY(q_directory_spares(w->dir, w->dst));
    Q_TRY(q_loras_spare(w->loras, w->dst, w->directory));
    if (w->directory) {
        if (w->options->importance) Q_TRY(q_export_spares(w->dst, w->options->importance));
        if (w->options->recipe) Q_TRY(q_export_spares(w->dst, w->options->recipe));
        for (uint32_t i = 0; i < w->dir->n_files; i++)
            if (w->dir->files[i]) Q_TRY(q_export_spares(w->dst, q_file_path(w->dir->files[i])));
    }
    q_path_kind kind;
    Q_TRY(q_path_kind_of(w->dst, &kind));
    if (!w->options->dry_run && !w->options->force && kind != Q_PATH_NONE)
        return q_fail(LQ_E_ARG, "%s exists already; 'force' replaces it", w->dst);
    return LQ_OK;
}

static lq_status check_source(const work *w) {
    if (w->options->requantize) return LQ_OK;
    for (uint32_t i = 0; i < w->n_items; i++) {
        const q_bind_item *item = &w->binding->items[i];
        if (item->src->format->weights > 1 || item->src->view) /* a view of floats: FP8 */
            return q_fail(LQ_E_ARG, "%s is already quantized (tensor %.*s is %s), and quantizing again adds to its "
                          "error; 'requantize' allows it", w->src, Q_STR_ARG(item->name),
                          item->src->view ? w->dir->container : item->src->format->name);
    }
    return LQ_OK;
}

/* ---- formats */

bool q_quantize_copies(const q_bind_item *item, const q_recipe_choice *c) {
    if (item->src->view && item->src->view->order) return false; /* a GGUF file keeps inputs in their order */
    if (item->delta) return false;
    return item->src->format == c->format && !item->columns && !item->rows && (item->map == Q_MAP_SAME || item->map == Q_MAP_ROPE_PAIRS);
}

/* Matrices of the layers, which a method packs. */
static bool is_packed(const work *w, uint32_t i) {
    return w->method && w->items[i].layer >= 0 && w->items[i].src->rank > 1;
}

/* A method that stores other parameters than the format's has to choose them itself. */
static bool copies(const work *w, uint32_t i) {
    return q_quantize_copies(&w->items[i], &w->choices[i]) && !(is_packed(w, i) && w->method->refine);
}

/* What the importance file has for a tensor whose format was chosen. */
static lq_status choose_importance(work *w, uint32_t i) {
    const q_bind_item *item = &w->items[i];
    const q_recipe_choice *c = &w->choices[i];
    const uint64_t k = item->src->shape[0], rows = item->src->shape[1];
    if (w->importance) {
        const q_importance_entry *e;
        const lq_status st = q_importance_find(w->importance, w->binding->items[i].name, k, item->src->rows / rows, &e);
        if (st != LQ_OK) return q_fail_in(st, "%s", w->options->importance);
        /* Where every value has a scale of its own, or the bits are the source's, there is nothing to weigh. */
        const bool bits = c->format->weights > 1 && c->quantizer->uses != Q_NEEDS_NONE && !copies(w, i);
        w->entries[i] = bits ? e : NULL;
        w->clips[i] = q_recipe_transform(w->recipe) && !copies(w, i) && q_limits_fit(e, c, k) ? e : NULL;
        w->result.with_importance += bits && e;
        w->result.without_importance += bits && !e;
    }
    const bool enough = c->quantizer->needs == Q_NEEDS_NONE ||
                        (c->quantizer->needs == Q_NEEDS_DIAGONAL && w->entries[i]) ||
                        (c->quantizer->needs == Q_NEEDS_HESSIAN && w->entries[i] && w->entries[i]->hessian &&
                         w->entries[i]->inputs == k && item->src->rows == rows) ||
                        copies(w, i);
    if (enough) return LQ_OK;
    const bool hessian = c->quantizer->needs == Q_NEEDS_HESSIAN;
    return q_fail(LQ_E_ARG, "tensor %.*s: quantizer %s needs calibration statistics%s%s; `lq calibrate MODEL --text FILE -o "
                  "STATS%s` makes them", Q_STR_ARG(item->name), c->quantizer->name, hessian ? " with Hessians" : "",
                  w->importance ? ", which the file given has not for it" : "", hessian ? " --hessians" : "");
}

/* What the recipe says of a tensor. */
lq_status q_quantize_choose(const q_recipe *recipe, const q_binding *b, uint32_t i, bool importance, q_recipe_choice *out) {
    const q_bind_item *item = &b->items[i];
    const double heads = b->hp.v[Q_HP_HEADS], kv = b->hp.v[Q_HP_HEADS_KV];
    bool tied = true; /* no item plays the part of an output matrix */
    for (uint32_t r = 0; r < b->arch->n_weights; r++) {
        const q_bind_item *output = strcmp(b->arch->weights[r].role, "output") == 0 ? q_bind_find(b, (int32_t)r, -1) : NULL;
        tied &= !output || output->role != (int32_t)r;
    }
    const q_recipe_tensor about = {
        .name = item->name, .role = b->arch->weights[item->role].role, .layer = item->layer, .layers = b->layers,
        .gqa = kv >= 1 && heads >= kv ? (int32_t)(heads / kv) : 1, .rank = item->src->rank, .k = item->src->shape[0],
        .tied = tied, .importance = importance};
    Q_TRY(q_recipe_choose(recipe, &about, out));
    if (b->arch->weights[item->role].made) out->wanted = out->format = q_format_find("f32"); /* what every reader takes */
    return LQ_OK;
}

static q_packed_matrix matrix_of(work *w, uint32_t i) {
    const q_tensor *t = w->items[i].src;
    q_packed_matrix m = {.name = t->name, .format = w->choices[i].format, .dtype = w->dtype, .k = t->shape[0], .rows = t->rows,
                         .data = w->out, .scratch = w->scratch, .alloc = w->alloc};
    (void)q_row_bytes(m.format, m.k, &m.row_bytes); /* checked when it was chosen */
    return m;
}

/* In a directory everything but the packed matrices has one type: the recipe's, or with a method the model's own of 16 bits. */
static lq_status choose_in_directory(work *w, uint32_t i) {
    const q_bind_item *item = &w->items[i];
    q_recipe_choice *c = &w->choices[i];
    if (is_packed(w, i)) {
        if (!q_method_takes(w->method, c->wanted))
            return q_fail(LQ_E_UNSUPPORTED, "tensor %.*s: method %s does not store %s; it stores %s", Q_STR_ARG(item->src->name),
                          w->method->name, c->wanted->name, w->method->formats);
        /* The configuration has one size of group for all: no falling back. */
        if (item->src->rank == 2 && c->format == c->wanted) return LQ_OK;
        return q_fail(LQ_E_UNSUPPORTED, "tensor %.*s: method %s cannot store it: its rows of %llu weights do not fill blocks of %s",
                      Q_STR_ARG(item->src->name), w->method->name, (unsigned long long)item->src->shape[0], c->wanted->name);
    }
    if (!w->method && item->src->rank > 1 && c->format->weights > 1)
        return q_fail(LQ_E_ARG, "scheme %s makes a GGUF file, and %s is a directory: name a file *.gguf",
                      w->options->scheme ? w->options->scheme : w->options->recipe, w->dst ? w->dst : "");
    if (w->method || item->src->rank == 1) c->format = w->dtype;
    c->wanted = c->format;
    c->quantizer = q_quantizer_find("rtn");
    return c->quantizer ? LQ_OK : LQ_E_INTERNAL;
}

/* The tensors that the output has for an item. */
static lq_status add_outs(work *w, uint32_t i) {
    const q_bind_item *item = &w->items[i];
    const uint32_t parts = is_packed(w, i) ? w->method->parts : 1;
    const q_packed_matrix m = matrix_of(w, i);
    w->first_out[i] = w->n_outs;
    for (uint32_t p = 0; p < parts; p++) {
        q_out_tensor *o = &w->outs[w->n_outs++];
        if (is_packed(w, i)) {
            Q_TRY(w->method->describe(&m, &w->arena, p, o));
        } else {
            *o = (q_out_tensor){.name = item->name, .format = w->choices[i].format, .rank = item->src->rank};
            memcpy(o->shape, item->src->shape, sizeof o->shape);
        }
        w->tensor_bytes += q_export_bytes(o);
    }
    return LQ_OK;
}

static lq_status settle_one(work *w, uint32_t i) {
    const q_bind_item *item = &w->items[i];
    const q_tensor *t = item->src;
    const q_recipe_choice *c = &w->choices[i];
    uint64_t row_bytes;
    if (c->quantizer->order && !copies(w, i) && !(is_packed(w, i) && w->method->ordered))
        return q_fail(LQ_E_ARG, "tensor %.*s: quantizer %s puts inputs in another order, which only directories of the method "
                      "gptq-act keep", Q_STR_ARG(item->name), c->quantizer->name);
    Q_TRY(choose_importance(w, i));
    if (!q_row_bytes(c->format, t->shape[0], &row_bytes))
        return q_fail(LQ_E_INTERNAL, "tensor %.*s: rows do not fit format %s", Q_STR_ARG(item->name), c->format->name);
    Q_TRY(add_outs(w, i));
    w->result.weights += t->shape[0] * t->rows;
    if (c->format != c->wanted) {
        w->result.fallbacks++;
        q_log_write(w->log, LQ_LOG_WARN, "tensor %.*s: rows of %llu weights do not fill blocks of %s; %s instead",
                    Q_STR_ARG(item->name), (unsigned long long)t->shape[0], c->wanted->name, c->format->name);
    }
    return LQ_OK;
}

static lq_status check_importance(const work *w) {
    const lq_quantize_options *o = w->options;
    const char *slash = o->recipe ? strrchr(o->recipe, '/') : NULL;
    const q_importance_check c = {.alloc = w->alloc, .log = w->log, .importance = w->importance, .path = o->importance,
                                  .src = w->src, .binding = w->binding, .loras = w->loras, .recipe = w->recipe,
                                  .scheme = o->scheme ? o->scheme : slash ? slash + 1 : o->recipe};
    return q_importance_suits(&c);
}

/* What a directory's other tensors are stored in: the type that the recipe gives to matrices; with a method the one of 16 bits
 * that the source has, or f16. */
static lq_status choose_dtype(work *w) {
    const q_binding *b = w->binding;
    w->dtype = q_format_find("f16");
    for (uint32_t i = 0; i < w->n_items; i++) {
        const q_tensor *t = b->items[i].src;
        if (t->rank == 1) continue;
        q_recipe_choice c;
        Q_TRY(q_quantize_choose(w->recipe, b, i, w->importance != NULL, &c));
        if (w->method && strcmp(t->format->name, "bf16") == 0) w->dtype = t->format;
        if (!w->method && c.format->weights == 1) w->dtype = c.format;
        break;
    }
    return LQ_OK;
}

/* Factors go by what tensors are stored in, and what tensors may have by whether there are factors. */
static lq_status fold(work *w) {
    const q_transform *t = q_recipe_transform(w->recipe);
    const q_folding f = {.log = w->log, .binding = w->binding, .transform = t, .scheme = w->options->scheme,
                         .importance = w->importance, .path = w->options->importance, .choices = w->choices, .items = w->items,
                         .arena = &w->arena};
    if (t) return q_folding_apply(&f);
    if (w->importance && w->importance->transform.n)
        q_log_write(w->log, LQ_LOG_WARN, "%s: its factors of %.*s are not used: the scheme names no transform", f.path,
                    Q_STR_ARG(w->importance->transform));
    return LQ_OK;
}

static lq_status choose_formats(work *w) {
    const q_binding *b = w->binding;
    w->choices = Q_NEW(w->alloc, q_recipe_choice, b->n_items);
    w->entries = Q_NEW(w->alloc, const q_importance_entry *, b->n_items);
    w->clips = Q_NEW(w->alloc, const q_importance_entry *, b->n_items);
    w->outs = Q_NEW(w->alloc, q_out_tensor, (uint64_t)b->n_items * (w->method ? Q_METHOD_PARTS : 1));
    w->first_out = Q_NEW(w->alloc, uint32_t, b->n_items);
    w->items = Q_NEW(w->alloc, q_bind_item, b->n_items);
    if (!w->choices || !w->entries || !w->clips || !w->outs || !w->first_out || !w->items) return LQ_E_NOMEM;
    memcpy(w->items, b->items, b->n_items * sizeof *w->items);
    for (uint32_t i = 0; i < w->n_items && w->directory; i++) {
        w->items[i].name = b->items[i].src->name;
        w->items[i].map = Q_MAP_SAME;
    }
    if (w->directory) Q_TRY(choose_dtype(w));
    for (uint32_t i = 0; i < w->n_items; i++) {
        Q_TRY(q_quantize_choose(w->recipe, b, i, w->importance != NULL, &w->choices[i]));
        if (w->directory) Q_TRY(choose_in_directory(w, i));
    }
    Q_TRY(fold(w));
    for (uint32_t i = 0; i < w->n_items; i++) Q_TRY(settle_one(w, i));
    if (w->importance) Q_TRY(check_importance(w));
    w->result.tensors = w->n_items;
    w->result.bits_per_weight = w->result.weights ? 8.0 * (double)w->tensor_bytes / (double)w->result.weights : 0;
    return LQ_OK;
}

/* ---- keys */

static lq_status directory_keys(work *w) {
    q_packed_matrix m = {.dtype = w->dtype, .alloc = w->alloc};
    for (uint32_t i = 0; i < w->n_items; i++) {
        if (!is_packed(w, i)) continue;
        if (m.format && m.format != w->choices[i].format)
            return q_fail(LQ_E_UNSUPPORTED, "tensor %.*s is %s, others are %s: method %s has one format for all",
                          Q_STR_ARG(w->items[i].src->name), w->choices[i].format->name, m.format->name, w->method->name);
        m.format = w->choices[i].format;
    }
    w->meta = Q_NEW(w->alloc, q_meta, Q_EXPORT_KEYS);
    if (!w->meta) return LQ_E_NOMEM;
    return q_export_keys(&w->arena, w->dir, w->dtype, w->method, &m, w->meta, &w->n_meta);
}

static lq_status collect_keys(work *w) {
    if (w->directory) return directory_keys(w);
    q_file_keys k = {.binding = w->binding, .log = w->log, .text = w->text, .src = w->src, .file_type = q_recipe_file_type(w->recipe),
                     .loras = w->loras};
    for (uint32_t i = 0; i < w->n_items; i++) k.quantized |= w->choices[i].format->weights > 1;
    if (w->result.with_importance || q_recipe_transform(w->recipe)) {
        k.importance = w->importance;
        k.importance_path = w->options->importance;
    }
    return q_file_keys_make(&k, &w->arena, &w->meta, &w->n_meta);
}

/* ---- a piece of rows */

/* The sentence for a row that is refused; LQ_OK when there is nothing to refuse. `stored` may be NULL. */
static lq_status check_row(const work *w, uint64_t row, uint64_t k, const float *x, const float *stored) {
    for (uint64_t j = 0; j < k; j++) {
        if (!isfinite(x[j]))
            return q_fail(LQ_E_INCONSISTENT, "tensor %.*s: the weight in row %llu, column %llu is not finite",
                          Q_STR_ARG(w->item->name), (unsigned long long)row, (unsigned long long)j);
        if (stored && q_row_lost(w->choice->format, x[j], stored[j]))
            return q_fail(LQ_E_NUMERIC, "tensor %.*s: the weight %g in row %llu, column %llu is too large for %s",
                          Q_STR_ARG(w->item->name), (double)x[j], (unsigned long long)row, (unsigned long long)j,
                          w->choice->format->name);
    }
    return LQ_OK;
}

/* Matrix by matrix: each has an importance of its own. */
static lq_status quantize_rows(const work *w, uint64_t first, uint64_t n, const float *x, uint8_t *out) {
    const uint64_t k = w->item->src->shape[0], rows = w->item->src->shape[1];
    for (uint64_t r = 0, end; r < n; r = end) {
        const uint64_t matrix = (first + r) / rows;
        end = Q_MIN(n, (matrix + 1) * rows - first);
        const q_quant_job job = {w->choice->format, x + r * k, (int64_t)(end - r), (int64_t)k,
                                 q_importance_of(w->entry, k, matrix), w->shared, w->alloc, w->wide};
        Q_TRY(w->choice->quantizer->quantize(&job, out + r * w->row_bytes));
    }
    if (w->packed && w->method->refine)
        for (uint64_t r = 0; r < n; r++) w->method->refine(&w->matrix, x + r * k, out + r * w->row_bytes);
    return LQ_OK;
}

/* Rows [begin, end) of the piece. On failure *bad is the row of the tensor. */
static lq_status do_rows(work *w, uint64_t begin, uint64_t end, float *x, float *y, uint64_t *bad) {
    const q_tensor *t = w->item->src;
    const uint64_t k = t->shape[0], n = end - begin, first = w->first_row + begin;
    uint8_t *out = w->out + (w->packed ? first : begin) * w->row_bytes;
    *bad = first;
    if (w->copy) {
        Q_TRY(q_bind_read_raw(w->binding, w->item, first, n, out));
        for (uint64_t r = 0; r < n; r++) {
            *bad = first + r;
            w->wide->decode(t->format, out + r * w->row_bytes, (int64_t)k, x);
            if (!w->wide->finite(x, (int64_t)k)) Q_TRY(check_row(w, *bad, k, x, NULL));
        }
        return LQ_OK;
    }
    Q_TRY(q_bind_read(w->alloc, w->binding, w->item, first, n, x));
    for (uint64_t r = 0; r < n; r++) {
        *bad = first + r;
        if (!w->wide->finite(x + r * k, (int64_t)k)) Q_TRY(check_row(w, *bad, k, x + r * k, NULL));
    }
    *bad = first;
    const q_limits *l = &w->limits;
    if (l->most) q_limits_clamp(l->most + first * l->groups, l->groups, k, n, x, y);
    if (!w->measure) Q_TRY(quantize_rows(w, first, n, l->most ? y : x, out));
    for (uint64_t r = 0; r < n; r++) {
        *bad = first + r;
        float *columns = w->matrix.order ? y + k : y;
        w->wide->decode(w->choice->format, out + r * w->row_bytes, (int64_t)k, columns);
        for (uint64_t j = 0; w->matrix.order && j < k; j++) y[w->matrix.order[j]] = columns[j];
        const float *im = q_importance_of(w->entry, k, (first + r) / t->shape[1]);
        if (!q_row_errors(w->choice->format, w->wide, x + r * k, y, im, k, &w->sums[begin + r]))
            Q_TRY(check_row(w, *bad, k, x + r * k, y));
    }
    return LQ_OK;
}

/* The piece before this one, if it is not yet in the file. */
static lq_status write_late(work *w) {
    const uint8_t *late = w->late;
    w->late = NULL;
    return late ? w->kind->write(w->writer, late, w->late_bytes) : LQ_OK;
}

/* Rows, and ahead of them, as span 0, the piece before. */
static void span(void *arg, int64_t begin, int64_t end, uint32_t thread) {
    work *w = (work *)arg;
    q_trouble *t = &w->troubles[thread];
    if (t->status != LQ_OK) return; /* a thread's spans ascend: its first failure is its lowest */
    float *x = w->floats + (uint64_t)thread * 2 * w->span_floats;
    uint64_t row = 0;
    begin -= w->span_rows;
    end -= w->span_rows;
    const lq_status st = begin < 0 ? write_late(w) : do_rows(w, (uint64_t)begin, (uint64_t)end, x, x + w->span_floats, &row);
    if (st != LQ_OK) q_trouble_note(t, st, row);
}

/* ---- all tensors */

static uint64_t span_rows(const q_quantizer *q, uint64_t k) {
    return Q_MAX(SPAN_WEIGHTS / Q_MAX(k, (uint64_t)1), Q_MAX((uint64_t)q->rows, (uint64_t)1));
}
static uint64_t piece_rows(const work *w, uint32_t i) {
    const q_tensor *t = w->binding->items[i].src;
    const uint64_t weights = Q_MAX((uint64_t)w->threads * PIECE_PER_THREAD, (uint64_t)PIECE_WEIGHTS);
    const uint64_t rows = weights / Q_MAX(t->shape[0], (uint64_t)1);
    return Q_MIN(t->rows, Q_MAX(rows, w->threads * (uint64_t)Q_MAX(w->choices[i].quantizer->rows, 1)));
}

/* While a tensor with a Hessian is quantized: its triangle, what the quantizer makes of it, and what it needs to do so and
 * for rows. */
static uint64_t hessian_bytes(const work *w, uint32_t i) {
    const q_quantizer *q = w->choices[i].quantizer;
    const uint64_t k = w->binding->items[i].src->shape[0];
    if (!q->prepare || !w->entries[i]) return 0;
    return q_new_bytes(k * (k + 1) / 2 * sizeof(float)) + q->prepare_bytes(k, w->threads) +
           (q->quantize_bytes ? w->threads * q->quantize_bytes(w->choices[i].format, k) : 0);
}
static void release_hessian(work *w) {
    if (w->shared) w->shared_by->release(w->alloc, w->shared);
    w->shared = NULL;
}
static lq_status prepare_hessian(work *w, uint32_t i) {
    const q_quantizer *q = w->choices[i].quantizer;
    const uint64_t k = w->item->src->shape[0];
    if (!q->prepare || w->copy) return LQ_OK;
    if (w->shared && w->shared_by == q && w->shared_of == w->entry->hessian && w->shared_factors == w->entry->factors)
        return LQ_OK;
    release_hessian(w);
    float *h = (float *)q_new_raw(w->alloc, k * (k + 1) / 2, sizeof *h);
    char *name = (char *)q_new(w->alloc, w->item->name.n + 1, 1);
    lq_status s = h && name ? q_importance_hessian(w->importance, w->entry, h) : LQ_E_NOMEM;
    if (s == LQ_E_INCONSISTENT) s = q_fail_in(s, "%s", w->options->importance);
    if (s == LQ_OK) {
        memcpy(name, w->item->name.p, (size_t)w->item->name.n);
        const q_quant_stats stats = {w->alloc, w->log, w->pool, name, (int64_t)k, h};
        w->shared_by = q;
        w->shared_of = w->entry->hessian;
        w->shared_factors = w->entry->factors;
        s = q->prepare(&stats, &w->shared);
    }
    q_delete(w->alloc, h);
    q_delete(w->alloc, name);
    return s;
}

static lq_status make_buffers(work *w) {
    uint64_t out = 0, rows = 0, hessian = 0, limits = 0, part = 0, scratch = 0;
    for (uint32_t i = 0; i < w->n_items; i++) {
        const q_tensor *t = w->items[i].src;
        uint64_t row_bytes;
        if (!q_row_bytes(w->choices[i].format, t->shape[0], &row_bytes)) return LQ_E_INTERNAL;
        const uint64_t n = piece_rows(w, i);
        hessian = Q_MAX(hessian, hessian_bytes(w, i));
        limits = Q_MAX(limits, q_limits_bytes(w->clips[i], t->rows));
        rows = Q_MAX(rows, n);
        out = Q_MAX(out, (is_packed(w, i) ? t->rows : n) * row_bytes);
        for (uint32_t p = 0; is_packed(w, i) && p < w->method->parts; p++)
            part = Q_MAX(part, q_export_bytes(&w->outs[w->first_out[i] + p]));
        if (is_packed(w, i) && w->method->scratch) {
            const q_packed_matrix m = matrix_of(w, i);
            scratch = Q_MAX(scratch, w->method->scratch(&m));
        }
        const uint64_t room = Q_MIN(span_rows(w->choices[i].quantizer, t->shape[0]), n);
        w->span_floats = Q_MAX(w->span_floats, Q_MAX(room, (uint64_t)2) * t->shape[0]); /* 2: a row in either order */
    }
    const uint64_t floats = (uint64_t)w->threads * 2 * w->span_floats * sizeof(float);
    const uint64_t writer = q_writer_bytes(w->result.bytes - w->tensor_bytes, w->result.bytes, w->threads);
    Q_TRY(q_memory_check("quantizing", floats + (w->method ? out : 2 * out) + part + scratch + hessian + limits + rows * sizeof(q_row_sums) +
                         w->threads * sizeof(q_trouble) + writer,
                         q_pool_stacks(w->threads)));
    w->floats = (float *)q_new_raw(w->alloc, (uint64_t)w->threads * 2, w->span_floats * sizeof(float));
    w->out = (uint8_t *)q_new_raw(w->alloc, out, 1);
    w->other = w->method ? NULL : (uint8_t *)q_new_raw(w->alloc, out, 1);
    w->part = (uint8_t *)q_new_raw(w->alloc, part, 1);
    w->scratch = (uint8_t *)q_new_raw(w->alloc, scratch, 1);
    w->sums = Q_NEW(w->alloc, q_row_sums, rows);
    w->troubles = Q_NEW(w->alloc, q_trouble, w->threads);
    return w->floats && w->out && (w->method || w->other) && w->part && w->scratch && w->sums && w->troubles ? LQ_OK : LQ_E_NOMEM;
}

static lq_status progress(const work *w) {
    if (!w->options->progress) return LQ_OK;
    char name[256];
    snprintf(name, sizeof name, "%.*s", w->item ? (int)Q_MIN(w->item->name.n, (uint64_t)255) : 0,
             w->item ? w->item->name.p : "");
    if (w->options->progress(w->options->user, w->done, w->result.weights, name) == 0) return LQ_OK;
    return q_fail(LQ_E_CANCELLED, "quantizing %s was cancelled; nothing was written", w->src);
}

static double relative(double error, double norm) { return norm > 0 ? sqrt(error / norm) : 0; }

static lq_status report(const work *w, uint32_t i, const q_row_sums *sums) {
    if (!w->options->report) return LQ_OK;
    const q_bind_item *item = &w->items[i];
    char *name = (char *)q_new(w->alloc, item->name.n + 1, 1);
    if (!name) return LQ_E_NOMEM;
    memcpy(name, item->name.p, (size_t)item->name.n);
    const uint64_t k = item->src->shape[0];
    const q_recipe_choice *c = &w->choices[i];
    uint64_t bytes = 0;
    for (uint32_t p = w->first_out[i], end = i + 1 < w->n_items ? w->first_out[i + 1] : w->n_outs; p < end; p++)
        bytes += q_export_bytes(&w->outs[p]);
    const double rel_error = relative(sums->error, sums->norm);
    const lq_tensor_report r = {
        .size = (uint32_t)sizeof r, .name = name, .from = item->src->format->name, .to = c->format->name,
        .wanted = c->wanted->name, .weights = k * item->src->rows, .bytes = bytes,
        .rel_error = rel_error, .importance = w->entries[i] != NULL,
        .quantizer = copies(w, i) ? "" : c->quantizer->name,
        .weighted_error = sums->weighted_norm > 0 ? relative(sums->weighted_error, sums->weighted_norm) : rel_error,
        .bits_per_weight = k ? 8.0 * (double)bytes / (double)(k * item->src->rows) : 0, .adapters = q_lora_count(item->delta),
        .transform = item->columns || item->rows || w->clips[i] ? q_recipe_transform(w->recipe)->name : ""};
    w->options->report(w->options->user, &r);
    q_delete(w->alloc, name);
    return LQ_OK;
}

/* All rows of the item, piece by piece: quantized, and unless they are packed, written; their errors. */
static lq_status do_tensor(work *w, q_row_sums *sums) {
    const q_tensor *t = w->item->src;
    const uint64_t k = t->shape[0], n = piece_rows(w, (uint32_t)(w->item - w->items));
    memset(sums, 0, sizeof *sums);
    for (uint64_t row = 0; row < t->rows; row += n) {
        Q_TRY(progress(w));
        const uint64_t rows = Q_MIN(n, t->rows - row);
        w->first_row = row;
        w->span_rows = (int64_t)Q_MIN(span_rows(w->choice->quantizer, k), n);
        q_pool_for(w->pool, w->span_rows + (int64_t)rows, w->span_rows, span, w);
        Q_TRY(q_trouble_first(w->troubles, w->threads));
        for (uint64_t r = 0; r < rows && !w->copy; r++) {
            sums->error += w->sums[r].error;
            sums->norm += w->sums[r].norm;
            sums->weighted_error += w->sums[r].weighted_error;
            sums->weighted_norm += w->sums[r].weighted_norm;
        }
        if (!w->packed) {
            w->late = w->out;
            w->late_bytes = rows * w->row_bytes;
            if (w->method) Q_TRY(write_late(w)); /* there is one buffer, for whole matrices */
            else w->out = w->other, w->other = w->late;
        }
        if (!w->measure) w->done += rows * k;
    }
    return LQ_OK;
}

static lq_status write_parts(work *w, uint32_t i) {
    for (uint32_t p = 0; p < w->method->parts; p++) {
        Q_TRY(w->method->pack(&w->matrix, p, w->part));
        Q_TRY(w->kind->write(w->writer, w->part, q_export_bytes(&w->outs[w->first_out[i] + p])));
    }
    return LQ_OK;
}

static lq_status write_tensor(work *w, uint32_t i) {
    w->item = &w->items[i];
    w->choice = &w->choices[i];
    w->entry = w->entries[i];
    w->copy = copies(w, i);
    w->packed = is_packed(w, i);
    w->measure = false;
    w->matrix = matrix_of(w, i);
    if (!q_row_bytes(w->choice->format, w->item->src->shape[0], &w->row_bytes)) return LQ_E_INTERNAL;
    q_row_sums sums;
    Q_TRY(prepare_hessian(w, i));
    if (w->choice->quantizer->order && !w->copy) w->matrix.order = w->choice->quantizer->order(w->shared);
    const lq_status limited = q_limits_take(w->alloc, w->importance, w->clips[i], &w->binding->items[i], w->item, &w->limits);
    if (limited != LQ_OK) return q_fail_in(limited, "%s", w->options->importance);
    Q_TRY(do_tensor(w, &sums));
    q_limits_release(w->alloc, &w->limits);
    if (w->packed) {
        if (w->method->settle) Q_TRY(w->method->settle(&w->matrix, &w->measure));
        if (w->measure) {
            w->copy = false;
            Q_TRY(do_tensor(w, &sums));
        }
        Q_TRY(write_parts(w, i));
    }
    if (w->passing) q_tensor_let_go(w->dir, w->item->src);
    return report(w, i, &sums);
}

static lq_status write_file(work *w) {
    uint64_t source = 0;
    Q_TRY(make_buffers(w));
    for (uint32_t i = 0; i < w->dir->n_files; i++) source += w->dir->files[i] ? q_file_size(w->dir->files[i]) : 0;
    w->passing = source + w->result.bytes > q_memory_available();
    Q_TRY(q_pool_open(w->alloc, w->threads, &w->pool));
    Q_TRY(w->kind->open(w->alloc, w->dst, w->options->force != 0, w->meta, w->n_meta, w->outs, w->n_outs, &w->writer));
    for (uint32_t i = 0; i < w->n_items; i++) Q_TRY(write_tensor(w, i));
    Q_TRY(write_late(w));
    Q_TRY(progress(w));
    for (uint32_t i = 0; i < w->dir->n_files; i++)
        if (w->dir->files[i]) Q_TRY(q_file_unchanged(w->dir->files[i]));
    q_writer *writer = w->writer;
    w->writer = NULL; /* commit frees it in every case */
    return w->kind->commit(writer, w->pool);
}

/* What a Hessian needs is there, or is missed before the first weight is read. */
static lq_status check_dense(work *w) {
    bool wanted = false;
    for (uint32_t i = 0; i < w->n_items; i++)
        wanted |= w->choices[i].quantizer->prepare && w->entries[i] && !copies(w, i);
    return wanted ? q_dense_open(w->alloc, &w->dense) : LQ_OK;
}

static lq_status run(work *w) {
    const lq_quantize_options *o = w->options;
    if (!o || (!o->scheme && !o->recipe)) return q_fail(LQ_E_ARG, "quantize: no scheme was given");
    if (o->scheme && o->recipe) return q_fail(LQ_E_ARG, "quantize: either a scheme or a recipe file, not both");
    if (!w->dst && !o->dry_run) return q_fail(LQ_E_ARG, "quantize: no destination was given");
    if (w->threads == 0 || w->threads > MAX_THREADS)
        return q_fail(LQ_E_ARG, "quantize: %u threads are outside 1 to %d", w->threads, MAX_THREADS);
    Q_TRY(o->recipe ? q_recipe_read(w->alloc, o->recipe, &w->recipe) : q_recipe_find(w->alloc, o->scheme, &w->recipe));
    if (q_recipe_demands_statistics(w->recipe) && !o->importance)
        return q_fail(LQ_E_ARG, "scheme %s wants calibration statistics: make them from a text with lq_calibrate (`lq calibrate "
                      "MODEL --text FILE -o STATS`) and give them as 'importance'", o->scheme);
    /* Unmapped: the pages of a source larger than memory would count as ours. */
    const q_load_options load = {.alloc = w->alloc, .log = w->log, .map = false, .allow_gaps = false};
    Q_TRY(q_directory_open(w->src, &load, &w->dir));
    Q_TRY(q_export_decide(w->recipe, o->scheme ? o->scheme : o->recipe, w->dir, w->src, w->dst, &w->directory));
    w->kind = w->directory ? &q_writer_huggingface : &q_writer_gguf;
    w->method = q_recipe_method(w->recipe, NULL);
    if (o->n_loras) Q_TRY(q_loras_open(w->alloc, w->log, o->loras, o->lora_scales, o->n_loras, &w->loras));
    if (w->dst) Q_TRY(check_destination(w));
    Q_TRY(q_bind(w->alloc, w->log, w->dir, &w->binding));
    w->binding->wide = w->wide;
    w->n_items = w->directory ? w->binding->n_stored : w->binding->n_items;
    Q_TRY(check_source(w));
    Q_TRY(q_loras_bind(w->loras, w->binding, &w->result.adapted));
    if (o->importance) Q_TRY(q_importance_open(w->alloc, w->log, o->importance, &w->importance));
    Q_TRY(choose_formats(w));
    Q_TRY(check_dense(w));
    if (w->dir->names != Q_NAMES_GGUF && !w->directory) Q_TRY(q_text_open(w->alloc, w->log, w->dir, &w->text));
    Q_TRY(collect_keys(w));
    Q_TRY(w->kind->measure(w->meta, w->n_meta, w->outs, w->n_outs, &w->result.bytes));
    if (!o->dry_run) return write_file(w);
    for (uint32_t i = 0; i < w->n_items; i++) Q_TRY(report(w, i, &(q_row_sums){0}));
    return LQ_OK;
}

static void release(work *w) {
    if (w->kind) w->kind->discard(w->writer);
    release_hessian(w);
    q_limits_release(w->alloc, &w->limits);
    q_dense_close(w->dense);
    if (w->pool) q_pool_close(w->pool);
    q_delete(w->alloc, w->floats);
    q_delete(w->alloc, w->out);
    q_delete(w->alloc, w->other);
    q_delete(w->alloc, w->sums);
    q_delete(w->alloc, w->troubles);
    q_delete(w->alloc, w->choices);
    q_delete(w->alloc, (void *)w->entries);
    q_delete(w->alloc, (void *)w->clips);
    q_delete(w->alloc, w->outs);
    q_delete(w->alloc, w->first_out);
    q_delete(w->alloc, w->items);
    q_delete(w->alloc, w->part);
    q_delete(w->alloc, w->scratch);
    q_delete(w->alloc, w->meta);
    if (w->text) q_text_close(w->text);
    q_binding_close(w->binding);
    if (w->dir) q_directory_close(w->dir);
    q_recipe_close(w->recipe);
    q_importance_close(w->importance);
    q_loras_close(w->loras);
    q_arena_free(&w->arena);
}

lq_status q_quantize_with(const q_wide *wide, const q_alloc *a, const q_log *log, uint32_t threads, const char *src, const char *dst,
                          const lq_quantize_options *options, lq_quantize_result *result) {
    const double begin = q_clock();
    work w;
    memset(&w, 0, sizeof w);
    w.alloc = a;
    w.log = log;
    w.wide = q_wide_of(wide);
    w.src = src;
    w.dst = dst;
    w.options = options;
    w.arena.alloc = a;
    w.threads = options && options->threads ? options->threads : threads ? threads : q_threads_default();
    const lq_status st = run(&w);
    release(&w);
    if (st == LQ_OK && result) {
        w.result.size = result->size;
        *result = w.result;
        result->seconds = q_clock() - begin;
    }
    return st;
}
