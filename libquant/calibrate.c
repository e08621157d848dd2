/* calibrate.c: statistics over a text: how large each input of each matrix is, written as an importance file.
 *
 * Chunks of the text run as in evaluate.c, but no logits are asked for; a tap sees the input of every product and adds
 * up the squares, on the caller's thread and token after token, so that the sums depend neither on threads nor on how
 * chunks are cut into batches. The output is opened first, and all weights are looked at: what would prevent it is known
 * before the long part. Refuses steps whose inputs a tap does not tell apart (experts, matrices per head). Layer L3. */
#include "calibrate.h"

#include <math.h>

#include "lora.h"

enum { DEFAULT_WINDOW = 512 };

/* The inputs of one matrix. Matrices that share an input are kept apart: a file names tensors. */
typedef struct tally {
    const q_weight *weight;
    double *sums; /* [k] */
    uint64_t tokens;
} tally;

typedef struct work {
    lq_session *session;
    const q_alloc *alloc;
    const lq_calibrate_options *options;
    q_arena arena;
    int32_t *of_inst; /* [n_insts] the tally that a step adds to, -1 = none */
    tally *tallies;
    q_out_tensor *outs; /* two per tally: sums, counts */
    float *row;         /* the widest */
    int32_t *ids;       /* one chunk */
    uint32_t n_tallies;
    q_calibrate_text text;
    q_writer *writer;
    uint64_t bytes;
} work;

/* ------------------------------------------------------------------------------------------------ what is measured */

static lq_status add_tally(work *w, const q_inst *s, int32_t *out) {
    const q_weight *m = s->w;
    if (m->matrices != 1 || s->x.heads != 1)
        return q_fail(LQ_E_UNSUPPORTED, "'%s' has matrices with inputs of their own: these are not measured", m->name);
    for (uint32_t i = 0; i < w->n_tallies; i++)
        if (w->tallies[i].weight->name == m->name) { /* another range of its rows, with the same inputs */
            *out = -1;
            return LQ_OK;
        }
    tally *t = &w->tallies[w->n_tallies];
    t->weight = m;
    t->sums = (double *)q_arena_new(&w->arena, (uint64_t)m->k, sizeof *t->sums);
    if (!t->sums) return LQ_E_NOMEM;
    *out = (int32_t)w->n_tallies++;
    return LQ_OK;
}

static lq_status find_products(work *w) {
    const q_plan *p = w->session->plan;
    w->of_inst = (int32_t *)q_arena_new(&w->arena, (uint64_t)p->n_insts, sizeof *w->of_inst);
    w->tallies = (tally *)q_arena_new(&w->arena, (uint64_t)p->n_insts, sizeof *w->tallies);
    if (!w->of_inst || !w->tallies) return LQ_E_NOMEM;
    int32_t widest = 1;
    for (int32_t i = 0; i < p->n_insts; i++) {
        const q_inst *s = &p->insts[i];
        w->of_inst[i] = -1;
        if (s->op == Q_OP_MOE_GLU || s->op == Q_OP_MOE_DOWN)
            return q_fail(LQ_E_UNSUPPORTED, "the inputs of experts ('%s') are not measured", s->w->name);
        if (s->op != Q_OP_MATMUL) continue;
        Q_TRY(add_tally(w, s, &w->of_inst[i]));
        widest = Q_MAX(widest, s->w->k);
    }
    if (w->n_tallies == 0) return q_fail(LQ_E_UNSUPPORTED, "the model has no products to measure");
    w->row = (float *)q_arena_new(&w->arena, (uint64_t)widest, sizeof *w->row);
    return w->row ? LQ_OK : LQ_E_NOMEM;
}

/* All weights are finite, so inputs that are not come of weights far too large. Sums only grow: what would not fit the file
 * is known as soon as it is there. */
static lq_status check_sums(const work *w) {
    for (uint32_t i = 0; i < w->n_tallies; i++) {
        const tally *t = &w->tallies[i];
        for (int32_t j = 0; j < t->weight->k; j++)
            if (!isfinite((float)t->sums[j]))
                return q_fail(LQ_E_NUMERIC, "the inputs of '%s' are not finite (input %d): the model's weights are damaged",
                              t->weight->name, j);
    }
    return LQ_OK;
}

static void see(void *user, const q_inst *s, const float *x, int32_t n, int32_t stride) {
    work *w = (work *)user;
    const int32_t at = w->of_inst[s - w->session->plan->insts];
    if (at < 0) return;
    tally *t = &w->tallies[at];
    double *const sums = t->sums;
    const int32_t k = t->weight->k;
    for (int32_t c = 0; c < n; c++) {
        const float *row = x + (int64_t)c * stride;
        for (int32_t i = 0; i < k; i++) sums[i] += (double)row[i] * (double)row[i];
    }
    t->tokens += (uint64_t)n;
}

/* ------------------------------------------------------------------------------------------------ the file */

lq_status q_calibrate_tensor(q_arena *arena, const char *base, const char *suffix, uint64_t n, q_out_tensor *out) {
    const size_t a = strlen(base), b = strlen(suffix);
    char *name = (char *)q_arena_new(arena, a + b + 1, 1);
    if (!name) return LQ_E_NOMEM;
    memcpy(name, base, a);
    memcpy(name + a, suffix, b);
    *out = (q_out_tensor){.name = {name, a + b}, .format = q_format_find("f32"), .rank = 1,
                          .shape = {n, 1, 1, 1, 1, 1, 1, 1}};
    return LQ_OK;
}

static q_meta number_key(const char *key, uint32_t v) {
    return (q_meta){.key = q_str_of(key), .type = Q_META_U32, .count = 1, .u = v, .i = v, .f = v};
}

lq_status q_calibrate_keys(const lq_session *s, q_arena *arena, const q_str *dataset, const q_calibrate_text *t,
                           q_meta keys[Q_CALIBRATE_KEYS], uint32_t *n) {
    const q_directory *d = s->model->dir;
    char *adapters;
    Q_TRY(q_loras_list(arena, d->meta, d->n_meta, NULL, &adapters));
    keys[0] = (q_meta){.key = q_str_of("general.type"), .type = Q_META_STRING, .count = 1, .s = q_str_of(Q_IMPORTANCE_TYPE)};
    keys[1] = (q_meta){.key = q_str_of(Q_IMPORTANCE_DATASETS), .type = Q_META_ARRAY, .item = Q_META_STRING, .strs = dataset,
                       .count = dataset ? 1 : 0};
    keys[2] = number_key(Q_IMPORTANCE_CHUNKS, t->chunks);
    keys[3] = number_key(Q_IMPORTANCE_CHUNK_SIZE, t->window);
    *n = 4;
    if (!adapters[0]) return LQ_OK;
    keys[(*n)++] = (q_meta){.key = q_str_of(Q_IMPORTANCE_ADAPTERS), .type = Q_META_STRING, .count = 1, .s = q_str_of(adapters)};
    return LQ_OK;
}

static lq_status open_output(work *w, const char *dst) {
    const lq_calibrate_options *o = w->options;
    Q_TRY(q_directory_spares(w->session->model->dir, dst));
    w->outs = (q_out_tensor *)q_arena_new(&w->arena, (uint64_t)w->n_tallies * 2, sizeof *w->outs);
    if (!w->outs) return LQ_E_NOMEM;
    for (uint32_t i = 0; i < w->n_tallies; i++) {
        const q_weight *m = w->tallies[i].weight;
        Q_TRY(q_calibrate_tensor(&w->arena, m->name, Q_IMPORTANCE_SUMS, (uint64_t)m->k, &w->outs[2 * i]));
        Q_TRY(q_calibrate_tensor(&w->arena, m->name, Q_IMPORTANCE_COUNTS, 1, &w->outs[2 * i + 1]));
    }
    const q_str dataset = q_str_of(o->dataset ? o->dataset : "");
    q_meta meta[Q_CALIBRATE_KEYS];
    uint32_t n;
    Q_TRY(q_calibrate_keys(w->session, &w->arena, o->dataset ? &dataset : NULL, &w->text, meta, &n));
    Q_TRY(q_writer_gguf.measure(meta, n, w->outs, w->n_tallies * 2, &w->bytes));
    return q_writer_gguf.open(w->alloc, dst, o->force != 0, meta, n, w->outs, w->n_tallies * 2, &w->writer);
}

static lq_status write_output(work *w) {
    for (uint32_t i = 0; i < w->n_tallies; i++) {
        const tally *t = &w->tallies[i];
        const float count = (float)t->tokens;
        for (int32_t j = 0; j < t->weight->k; j++) w->row[j] = (float)t->sums[j];
        Q_TRY(q_writer_gguf.write(w->writer, w->row, (uint64_t)t->weight->k * sizeof *w->row));
        Q_TRY(q_writer_gguf.write(w->writer, &count, sizeof count));
    }
    q_writer *writer = w->writer;
    w->writer = NULL; /* commit frees it in every case */
    return q_writer_gguf.commit(writer, NULL);
}

/* ------------------------------------------------------------------------------------------------ the run */

lq_status q_calibrate_cut(const lq_session *s, const int32_t *ids, size_t count, const lq_calibrate_options *o,
                          q_calibrate_text *out) {
    const uint32_t trained = (uint32_t)s->model->binding->hp.v[Q_HP_CONTEXT];
    const uint32_t window = o->window ? o->window : Q_MIN(trained, (uint32_t)DEFAULT_WINDOW);
    if (window < 2 || window > s->shape.context)
        return q_fail(LQ_E_ARG, "windows of %u tokens: must be 2 to %u, the context of the session", window, s->shape.context);
    const uint64_t tokens = o->max_tokens ? Q_MIN((uint64_t)count, o->max_tokens) : count;
    if (tokens < window)
        return q_fail(LQ_E_ARG, "the text has %llu tokens; at least %u are required", (unsigned long long)tokens, window);
    if (tokens / window > UINT32_MAX) return q_fail(LQ_E_LIMIT, "the text has more than 2^32 chunks");
    for (size_t i = 0; i < count; i++)
        if (ids[i] < 0 || ids[i] >= s->plan->vocab)
            return q_fail(LQ_E_ARG, "token %zu is %d, outside the vocabulary", i, ids[i]);
    *out = (q_calibrate_text){window, (uint32_t)(tokens / window)};
    return LQ_OK;
}

void q_calibrate_chunk(const lq_session *s, const int32_t *ids, const q_calibrate_text *t, uint32_t i, int32_t *to) {
    const q_vocab *v = q_text_vocab(s->model->text);
    memcpy(to, ids + (uint64_t)i * t->window, t->window * sizeof *ids);
    if (v->add_bos && v->bos >= 0) to[0] = v->bos;
}

static lq_status run_text(work *w, const int32_t *ids) {
    const lq_calibrate_options *o = w->options;
    const uint32_t window = w->text.window;
    const uint64_t total = (uint64_t)w->text.chunks * window;
    for (uint32_t chunk = 0; chunk < w->text.chunks; chunk++) {
        const uint64_t done = (uint64_t)chunk * window;
        if (o->progress && o->progress(o->user, done, total, "tokens"))
            return q_fail(LQ_E_CANCELLED, "cancelled by the progress callback");
        q_calibrate_chunk(w->session, ids, &w->text, chunk, w->ids);
        Q_TRY(q_session_run(w->session, w->ids, window, window));
        Q_TRY(check_sums(w));
    }
    if (o->progress) o->progress(o->user, total, total, "tokens");
    return LQ_OK;
}

static lq_status check_weights(const work *w) {
    q_pool *pool;
    Q_TRY(q_pool_open(w->alloc, w->session->shape.threads_prefill, &pool));
    const lq_status s = q_calibrate_check_weights(w->session, pool);
    q_pool_close(pool);
    return s;
}

static lq_status run(work *w, const int32_t *ids, size_t count, const char *dst) {
    Q_TRY(q_calibrate_cut(w->session, ids, count, w->options, &w->text));
    w->ids = (int32_t *)q_arena_new(&w->arena, w->text.window, sizeof *w->ids);
    if (!w->ids) return LQ_E_NOMEM;
    Q_TRY(find_products(w));
    Q_TRY(open_output(w, dst));
    Q_TRY(check_weights(w));
    w->session->tap = see;
    w->session->tap_user = w;
    const lq_status s = run_text(w, ids);
    w->session->tap = NULL;
    return s == LQ_OK ? write_output(w) : s;
}

lq_status q_calibrate(lq_session *s, const int32_t *ids, size_t count, const char *dst, const lq_calibrate_options *options,
                      lq_calibrate_result *result) {
    const double begin = q_clock();
    lq_calibrate_options o;
    if (s->model->n_places > 1)
        return q_fail(LQ_E_UNSUPPORTED, "a model on %s cannot be calibrated: the inputs of its products are seen on the "
                      "processor alone; open it without a device", s->model->places[1].name);
    if (s->model->adapters)
        return q_fail(LQ_E_UNSUPPORTED, "a model with adapters cannot be calibrated: merge them first (lq_quantize)");
    Q_TRY(q_struct_in(options, &o, sizeof o, "lq_calibrate_options"));
    if (o.scheme && o.recipe) return q_fail(LQ_E_ARG, "lq_calibrate: either a scheme or a recipe file, not both");
    if (o.hessians || o.scheme || o.recipe || o.max_ram) return q_calibrate_layers(s, ids, count, dst, &o, result);
    work w = {.session = s, .alloc = s->alloc, .options = &o, .arena = {.alloc = s->alloc}};
    const lq_status st = run(&w, ids, count, dst);
    q_writer_gguf.discard(w.writer);
    q_arena_free(&w.arena);
    if (st != LQ_OK) return st;
    *result = (lq_calibrate_result){.size = sizeof *result, .window = w.text.window, .chunks = w.text.chunks,
                                    .entries = w.n_tallies, .tokens = (uint64_t)w.text.chunks * w.text.window, .bytes = w.bytes,
                                    .seconds = q_clock() - begin};
    return LQ_OK;
}
