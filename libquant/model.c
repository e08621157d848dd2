/* model.c: contexts and models: opens the device, the directory, the binding and the text object, and resolves every
 * weight to bytes once. A weight is the file's own bytes where they can be used in place; vectors become float32, and
 * rows whose order differs between conventions are copied. Layer L3. */
#include "engine.h"

#include <math.h>
#include <stdio.h>

/* ------------------------------------------------------------------------------------------- structs with a size */

void q_struct_out(void *theirs, const void *ours, size_t our_size) {
    uint32_t size;
    memcpy(&size, theirs, sizeof size);
    const size_t n = Q_MIN((size_t)size, our_size);
    if (n > sizeof size) memcpy((char *)theirs + sizeof size, (const char *)ours + sizeof size, n - sizeof size);
    if (size > our_size) memset((char *)theirs + our_size, 0, size - our_size); /* fields of a newer caller */
}

lq_status q_struct_in(const void *theirs, void *ours, size_t our_size, const char *what) {
    memset(ours, 0, our_size);
    if (!theirs) return LQ_OK;
    uint32_t size;
    memcpy(&size, theirs, sizeof size);
    if (size < sizeof size || size > 4096)
        return q_fail(LQ_E_ARG, "%s.size is %u: set it to sizeof of the struct", what, size);
    memcpy(ours, theirs, Q_MIN((size_t)size, our_size));
    for (size_t i = our_size; i < size; i++)
        if (((const char *)theirs)[i])
            return q_fail(LQ_E_ARG, "%s sets a field that this version of libquant does not know", what);
    return LQ_OK;
}

/* ------------------------------------------------------------------------------------------- context */

lq_status q_ctx_open(const lq_options *options, lq_ctx **out) {
    lq_options o;
    Q_TRY(q_struct_in(options, &o, sizeof o, "lq_options"));
    if (Q_MAX(o.threads, o.threads_prefill) > 1024)
        return q_fail(LQ_E_ARG, "%u threads were asked for; at most 1024", Q_MAX(o.threads, o.threads_prefill));
    const q_alloc alloc = o.allocator ? *o.allocator : q_alloc_libc;
    if (!alloc.alloc || !alloc.free) return q_fail(LQ_E_ARG, "lq_options.allocator lacks a function");
    lq_ctx *ctx = Q_NEW(&alloc, lq_ctx, 1);
    if (!ctx) return LQ_E_NOMEM;
    ctx->alloc = alloc;
    ctx->log = (q_log){o.log, o.log_user};
    ctx->threads = o.threads ? o.threads : q_threads_default();
    ctx->threads_prefill = o.threads_prefill ? o.threads_prefill : ctx->threads;
    ctx->backend = q_backends[0];
    const q_device_options d = {.alloc = &ctx->alloc, .log = &ctx->log, .isa = o.isa, .threads = ctx->threads,
                                .placing = &ctx->placing};
    lq_status s = q_placing_choose(ctx, &o);
    if (s == LQ_OK) s = ctx->backend->open(0, &d, &ctx->device);
    if (s != LQ_OK) {
        q_ctx_close(ctx);
        return s;
    }
    *out = ctx;
    return LQ_OK;
}

void q_ctx_close(lq_ctx *ctx) {
    if (!ctx) return;
    const q_alloc alloc = ctx->alloc;
    if (ctx->device) ctx->backend->close(ctx->device);
    q_delete(&alloc, ctx);
}

uint32_t q_ctx_devices(const lq_ctx *ctx) {
    uint32_t n = 0;
    Q_UNUSED(ctx);
    for (uint32_t i = 0; i < q_backend_count(); i++) n += q_backends[i]->probe();
    return n;
}

/* Devices are opened for as long as they are asked: a context does not hold what no model uses. */
lq_status q_ctx_device_info(const lq_ctx *ctx, uint32_t index, lq_device_info *info) {
    uint32_t at = index;
    for (uint32_t i = 0; i < q_backend_count(); i++) {
        const q_backend *be = q_backends[i];
        const uint32_t n = be->probe();
        if (at >= n) {
            at -= n;
            continue;
        }
        if (be == ctx->backend) {
            be->info(ctx->device, info);
            snprintf(info->placing, sizeof info->placing, "%s", ctx->placed);
            return LQ_OK;
        }
        const q_device_options o = {.alloc = &ctx->alloc, .log = &ctx->log, .threads = ctx->threads};
        q_device *dev;
        Q_TRY(be->open(at, &o, &dev));
        be->info(dev, info);
        be->close(dev);
        return LQ_OK;
    }
    char kinds[64];
    return q_fail(LQ_E_ARG, "there is no device %u among %u; this build knows %s", index, q_ctx_devices(ctx),
                  q_place_kinds(kinds, sizeof kinds));
}

/* ------------------------------------------------------------------------------------------- weights */

static lq_status vector_as_f32(lq_model *m, uint32_t i) {
    const q_bind_item *item = &m->binding->items[i];
    const uint64_t n = item->src->shape[0];
    float *v = (float *)q_new_raw(m->alloc, n, sizeof *v);
    if (!v) return LQ_E_NOMEM;
    m->owned[i] = v;
    Q_TRY(q_bind_read(m->alloc, m->binding, item, 0, 1, v));
    m->weights[i].format = q_format_find("f32");
    m->weights[i].data = (const uint8_t *)v;
    m->weights[i].row_bytes = n * sizeof *v;
    return LQ_OK;
}

/* The file's bytes cannot be used in place. */
static bool is_copied(const lq_model *m, uint32_t i) {
    const q_bind_item *item = &m->binding->items[i];
    return !item->src->data || item->map != Q_MAP_SAME;
}

/* Rows of a view are made as they are read: by all threads. */
typedef struct rows_job {
    const lq_model *m;
    const q_bind_item *item;
    uint8_t *out;
    _Atomic int failed; /* the status of some failure; LQ_OK = none */
} rows_job;

static void read_rows(void *arg, int64_t begin, int64_t end, uint32_t thread) {
    rows_job *j = (rows_job *)arg;
    Q_UNUSED(thread);
    if (atomic_load(&j->failed) != LQ_OK) return;
    const lq_status s = q_bind_read_raw(j->m->binding, j->item, (uint64_t)begin, (uint64_t)(end - begin),
                                        j->out + (uint64_t)begin * j->item->src->row_bytes);
    if (s != LQ_OK) atomic_store(&j->failed, s);
}

/* A failure is met again by this thread, which then has its sentence. */
static lq_status read_all(lq_model *m, q_pool *pool, const q_bind_item *item, uint8_t *out) {
    const q_tensor *t = item->src;
    rows_job j = {.m = m, .item = item, .out = out};
    if (!pool || !t->view) return q_bind_read_raw(m->binding, item, 0, t->rows, out);
    q_pool_for(pool, (int64_t)t->rows, (int64_t)Q_MAX(t->view->strip, (uint64_t)32), read_rows, &j);
    return atomic_load(&j.failed) == LQ_OK ? LQ_OK : q_bind_read_raw(m->binding, item, 0, t->rows, out);
}

/* check: somebody looks at the values, of a model that is opened for its plan alone too. */
static lq_status resolve_weight(lq_model *m, q_pool *pool, uint32_t i, bool check) {
    const q_bind_item *item = &m->binding->items[i];
    const q_tensor *t = item->src;
    q_weight *w = &m->weights[i];
    *w = (q_weight){.format = t->format, .data = t->data, .row_bytes = t->row_bytes, .k = (int32_t)t->shape[0],
                    .rows = (int32_t)t->shape[1], .matrices = (int32_t)t->shape[2], .name = item->name.p};
    if (w->matrices > 1) w->matrix_bytes = t->row_bytes * t->shape[1];
    const bool vector = m->binding->arch->weights[item->role].rows == 0;
    if (vector) return vector_as_f32(m, i);
    if (!is_copied(m, i)) return LQ_OK;
    w->order = t->view ? t->view->order : NULL;
    if (w->order && strcmp(m->binding->arch->weights[item->role].role, "token_embd") == 0)
        return q_fail(LQ_E_UNSUPPORTED, "tensor '%.*s' is a table of embeddings with its columns permuted (act-order)",
                      Q_STR_ARG(t->name));
    uint8_t *copy = (uint8_t *)q_new_placed(m->alloc, &m->ctx->placing, t->bytes, false);
    if (!copy) return LQ_E_NOMEM;
    m->owned[i] = copy;
    m->owned_bytes += t->bytes;
    w->data = copy;
    return m->plan_only && t->view && !check ? LQ_OK : read_all(m, pool, item, copy);
}

/* Every value finite: a damaged scale would otherwise surface as a strange answer. */
static lq_status check_values(const lq_model *m, uint32_t i) {
    const q_weight *w = &m->weights[i];
    float *row = (float *)q_new_raw(m->alloc, (uint64_t)w->k, sizeof *row);
    if (!row) return LQ_E_NOMEM;
    lq_status s = LQ_OK;
    const int64_t rows = (int64_t)w->rows * w->matrices;
    for (int64_t r = 0; r < rows && s == LQ_OK; r++) {
        q_decode_row(w->format, w->data + (uint64_t)r * w->row_bytes, w->k, row);
        for (int32_t j = 0; j < w->k && s == LQ_OK; j++)
            if (!isfinite(row[j]))
                s = q_fail(LQ_E_INCONSISTENT, "tensor '%s' has a value that is not finite in row %lld, column %d",
                           w->name, (long long)r, j);
    }
    q_delete(m->alloc, row);
    return s;
}

/* What the processor reads of the file's mapping stays there; copies and packed weights were locked when they were
 * made. Vectors lie in small blocks: a few kilobytes, not placed. */
static lq_status lock_weights(lq_model *m) {
    const q_placing *how = &m->ctx->placing;
    uint32_t mapped = 0;
    for (uint32_t i = 0; i < m->binding->n_items; i++) {
        const q_weight *w = &m->weights[i];
        const uint64_t as = q_load_as_bytes(m, i), bytes = q_item_bytes(m, i);
        if (!q_place_reads(m, i)) continue;
        if (m->owned[i] || as) {
            const bool vector = m->binding->arch->weights[m->binding->items[i].role].rows == 0;
            if (how->lock && !vector) m->locked += q_placed_bytes(how, bytes);
            continue;
        }
        if (w->packed) continue;
        mapped++;
        if (!how->lock) continue;
        m->locked += q_memory_lock_bytes(w->data, bytes);
        if (!m->plan_only) Q_TRY(q_memory_lock(w->data, bytes, w->name));
    }
    if (how->lock) m->locked += m->packed_bytes;
    if (how->nodes && mapped)
        q_log_write(
            &m->ctx->log, LQ_LOG_WARN,
            "numa: %u weights are read from the mapped file and lie where the system put them; no_mmap spreads them",
            mapped);
    return LQ_OK;
}

static lq_status resolve_one(lq_model *m, q_pool *pool, uint32_t i, bool check) {
    Q_TRY(resolve_weight(m, pool, i, check));
    if (check) Q_TRY(check_values(m, i));
    Q_TRY(q_load_as_weight(m, pool, i));
    return q_place_write(m, i);
}

static lq_status resolve_weights(lq_model *m, const lq_model_options *o) {
    const uint32_t n = m->binding->n_items;
    m->weights = Q_NEW(m->alloc, q_weight, n);
    m->owned = Q_NEW(m->alloc, void *, n);
    if (!m->weights || !m->owned) return LQ_E_NOMEM;
    Q_TRY(q_place_blocks(m));
    uint64_t copies = 0, passing = 0; /* those for the device alone are there one at a time */
    for (uint32_t i = 0; i < n; i++) {
        const uint64_t as = m->plan_only ? 0 : q_load_as_bytes(m, i),
                       copy = is_copied(m, i) ? m->binding->items[i].src->bytes : 0;
        const uint64_t bytes = as ? as : copy;
        if (as) passing = Q_MAX(passing, as + copy);
        if (q_place_keeps(m, i)) copies += bytes;
        else passing = Q_MAX(passing, bytes);
    }
    Q_TRY(q_memory_check("copying the weights", copies + passing, 0));
    Q_TRY(q_load_as_all(m, resolve_one, o->check_tensors != 0));
    if (m->dir->idle) m->dir->idle(m->dir);
    if (!o->no_pack) Q_TRY(q_pack_weights(m, o->pack_at_open != 0));
    Q_TRY(lock_weights(m));
    return q_place_finish(m);
}

/* Names that the API lends out are terminated by NUL; those in a mapped file are not. */
static lq_status copy_names(lq_model *m) {
    m->names.alloc = m->alloc;
    m->meta_names = (const char **)q_arena_new(&m->names, m->dir->n_meta, sizeof *m->meta_names);
    m->tensor_names = (const char **)q_arena_new(&m->names, m->dir->n_tensors, sizeof *m->tensor_names);
    if (!m->meta_names || !m->tensor_names) return LQ_E_NOMEM;
    for (uint32_t i = 0; i < m->dir->n_meta; i++)
        if (!(m->meta_names[i] = q_arena_str(&m->names, m->dir->meta[i].key))) return LQ_E_NOMEM;
    for (uint32_t i = 0; i < m->dir->n_tensors; i++)
        if (!(m->tensor_names[i] = q_arena_str(&m->names, m->dir->tensors[i].name))) return LQ_E_NOMEM;
    return LQ_OK;
}

/* Weight bytes that one decoded token reads: of the embedding one row, unless it is the output matrix too. */
static uint64_t bytes_per_token(const lq_model *m) {
    const q_binding *b = m->binding;
    uint64_t n = m->adapter_bytes;
    for (uint32_t i = 0; i < b->n_items; i++) {
        const q_tensor *t = b->items[i].src;
        const bool table = strcmp(b->arch->weights[b->items[i].role].role, "token_embd") == 0;
        n += table ? t->row_bytes : q_item_bytes(m, i);
    }
    /* A tied output matrix is the embedding table, read whole. */
    for (uint32_t r = 0; r < b->arch->n_weights; r++) {
        const q_bind_item *item = b->arch->weights[r].tied ? q_bind_find(b, (int32_t)r, -1) : NULL;
        if (item && item->role != (int32_t)r) n += item->src->bytes;
    }
    return n;
}

/* ------------------------------------------------------------------------------------------- open and close */

static lq_status open_parts(lq_model *m, const char *path, const lq_model_options *o) {
    const q_load_options load = {.alloc = m->alloc, .log = &m->ctx->log, .map = !o->no_mmap};
    Q_TRY(q_directory_open(path, &load, &m->dir));
    Q_TRY(q_bind(m->alloc, &m->ctx->log, m->dir, &m->binding));
    m->binding->wide = q_ctx_wide(m->ctx);
    Q_TRY(q_text_open(m->alloc, &m->ctx->log, m->dir, &m->text));
    const int32_t tokens = q_text_vocab(m->text)->n;
    if ((double)tokens > m->binding->hp.v[Q_HP_VOCAB])
        return q_fail(LQ_E_INCONSISTENT, "the tokenizer has %d tokens, the embedding only %g rows", tokens,
                      m->binding->hp.v[Q_HP_VOCAB]);
    Q_TRY(q_place_open(m, o));
    Q_TRY(q_adapters_open(m, o));
    Q_TRY(q_load_as_choose(m, o->load_as));
    Q_TRY(resolve_weights(m, o));
    m->bytes_per_token = bytes_per_token(m);
    return copy_names(m);
}

lq_status q_model_open(lq_ctx *ctx, const char *path, const lq_model_options *options, lq_model **out) {
    lq_model_options o;
    Q_TRY(q_struct_in(options, &o, sizeof o, "lq_model_options"));
    lq_model *m = Q_NEW(&ctx->alloc, lq_model, 1);
    if (!m) return LQ_E_NOMEM;
    m->ctx = ctx;
    m->alloc = &ctx->alloc;
    lq_status s = open_parts(m, path, &o);
    if (s != LQ_OK) {
        if (!strstr(lq_error_detail(), path)) s = q_fail_in(s, "%s", path);
        q_model_close(m);
        return s;
    }
    *out = m;
    return LQ_OK;
}

void q_model_close(lq_model *m) {
    if (!m) return;
    const uint32_t n = m->binding ? m->binding->n_items : 0;
    for (uint32_t i = 0; i < n && m->owned; i++) q_delete(m->alloc, m->owned[i]);
    q_place_close(m);
    q_adapters_close(m);
    q_delete(m->alloc, m->weights);
    q_delete(m->alloc, m->owned);
    q_delete(m->alloc, (void *)m->as);
    q_delete(m->alloc, m->packed);
    q_delete(m->alloc, m->packing);
    q_arena_free(&m->names);
    q_text_close(m->text);
    q_binding_close(m->binding);
    q_directory_close(m->dir);
    q_delete(m->alloc, m);
}

/* ------------------------------------------------------------------------------------------- information */

void q_model_info(const lq_model *m, lq_model_info *info) {
    const q_binding *b = m->binding;
    const double *hp = b->hp.v;
    const q_rope *rope = &b->rope;
    const q_vocab *v = q_text_vocab(m->text);
    *info = (lq_model_info){.layers = (uint32_t)hp[Q_HP_LAYERS], .heads = (uint32_t)hp[Q_HP_HEADS],
                            .heads_kv = (uint32_t)hp[Q_HP_HEADS_KV], .head_dim = (uint32_t)hp[Q_HP_HEAD_K],
                            .embedding = (uint32_t)hp[Q_HP_EMBD], .feed_forward = (uint32_t)hp[Q_HP_FF],
                            .vocabulary = (uint32_t)hp[Q_HP_VOCAB], .context = (uint32_t)hp[Q_HP_CONTEXT],
                            .rope_scaling = q_rope_name(rope->kind),
                            .rope_factor = rope->factor, .rope_original = (uint32_t)rope->original,
                            .longest_context = q_rope_longest(rope, (uint32_t)hp[Q_HP_CONTEXT], false),
                            .tensors = m->dir->n_tensors, .bos = v->bos, .eos = v->eos, .add_bos = v->add_bos};
    snprintf(info->architecture, sizeof info->architecture, "%s", b->arch->name);
    snprintf(info->container, sizeof info->container, "%s", m->dir->container);
    const q_meta *name = q_directory_meta(m->dir, b->dir->names == Q_NAMES_GGUF ? "general.name" : "_name_or_path");
    if (name && name->type == Q_META_STRING)
        snprintf(info->name, sizeof info->name, "%.*s", (int)Q_MIN(name->s.n, (uint64_t)63), name->s.p);
    const q_meta *ft = q_directory_meta(m->dir, "general.file_type");
    const char *scheme = ft ? q_recipe_by_file_type(ft->u) : NULL;
    if (b->dir->names == Q_NAMES_GGUF && scheme) snprintf(info->file_scheme, sizeof info->file_scheme, "%s", scheme);
    for (uint32_t i = 0; i < m->dir->n_tensors; i++) {
        info->parameters += m->dir->tensors[i].shape[0] * m->dir->tensors[i].rows;
        info->weight_bytes += m->dir->tensors[i].bytes;
    }
    info->bytes_per_token = m->bytes_per_token;
    info->bits_per_weight = info->parameters ? 8.0 * (double)info->weight_bytes / (double)info->parameters : 0;
}

lq_status q_model_meta(const lq_model *m, const char *key, uint32_t index, const char **name, char *text, size_t *n) {
    const q_meta *v = NULL;
    if (key) v = q_directory_meta(m->dir, key);
    else if (index < m->dir->n_meta) v = &m->dir->meta[index];
    if (!v) return q_fail(LQ_E_ARG, "there is no metadata key %s", key ? key : "at that index");
    char number[64];
    q_str s = q_str_of(number);
    if (v->type == Q_META_STRING) s = v->s;
    else if (v->type == Q_META_BOOL) snprintf(number, sizeof number, "%s", v->i ? "true" : "false");
    else if (v->type == Q_META_ARRAY) snprintf(number, sizeof number, "[%llu values]", (unsigned long long)v->count);
    else if (v->type == Q_META_F32 || v->type == Q_META_F64) snprintf(number, sizeof number, "%.9g", v->f);
    else if (v->type == Q_META_U64) snprintf(number, sizeof number, "%llu", (unsigned long long)v->u);
    else snprintf(number, sizeof number, "%lld", (long long)v->i);
    if (s.p == number) s.n = strlen(number);
    const size_t cap = *n;
    *n = (size_t)s.n + 1;
    if (cap < *n) return q_fail(LQ_E_ARG, "the value needs %zu bytes, the buffer has %zu", *n, cap);
    memcpy(text, s.p, (size_t)s.n);
    text[s.n] = 0;
    if (name) *name = m->meta_names[v - m->dir->meta];
    return LQ_OK;
}

lq_status q_model_tensor_info(const lq_model *m, uint32_t index, lq_tensor_info *info) {
    if (index >= m->dir->n_tensors)
        return q_fail(LQ_E_ARG, "tensor %u was asked for; the model has %u", index, m->dir->n_tensors);
    const q_tensor *t = &m->dir->tensors[index];
    const int32_t item = m->binding->tensor_item[index];
    *info = (lq_tensor_info){.rank = t->rank, .bytes = t->bytes, .name = m->tensor_names[index],
                             .role = item < 0 ? "" : m->binding->arch->weights[m->binding->items[item].role].role,
                             .format = t->type_name};
    memcpy(info->shape, t->shape, sizeof info->shape);
    return LQ_OK;
}

lq_status q_model_tensor_row(const lq_model *m, uint32_t index, uint64_t row, float *out) {
    if (index >= m->dir->n_tensors)
        return q_fail(LQ_E_ARG, "tensor %u was asked for; the model has %u", index, m->dir->n_tensors);
    const q_tensor *t = &m->dir->tensors[index];
    if (row >= t->rows || !t->format)
        return q_fail(LQ_E_ARG, "row %llu of tensor '%s' cannot be decoded (%llu rows of %s)", (unsigned long long)row,
                      m->tensor_names[index], (unsigned long long)t->rows, t->type_name);
    const q_bind_item plain = {.src = t, .map = Q_MAP_SAME, .map_heads = 1};
    return q_bind_read(m->alloc, m->binding, &plain, row, 1, out);
}

/* ------------------------------------------------------------------------------------------- which model it is */

lq_status q_model_hash(lq_model *m, uint64_t *hash) {
    *hash = atomic_load(&m->hash); /* several sessions that ask at once find the same */
    if (*hash) return LQ_OK;
    const q_directory *d = m->dir;
    uint8_t sample[4096];
    uint64_t h = q_rope_hash(&m->binding->rope, q_fnv64(m->binding->hp.v, sizeof m->binding->hp.v));
    for (uint32_t i = 0; i < d->n_tensors; i++) {
        const q_tensor *t = &d->tensors[i];
        h = q_fnv64_mix(h, t->name.p, (size_t)t->name.n);
        h = q_fnv64_mix(h, t->shape, sizeof t->shape);
        h = q_fnv64_mix(h, t->type_name, strlen(t->type_name));
        for (uint64_t at = 0; at < 3; at++) { /* its beginning, middle and end */
            const uint64_t n = Q_MIN((uint64_t)sizeof sample, t->bytes);
            Q_TRY(q_tensor_read(d, t, (t->bytes - n) / 2 * at, sample, n));
            h = q_fnv64_mix(h, sample, (size_t)n);
        }
    }
    for (uint32_t i = 0; i < m->binding->n_items; i++) { /* load_as may have changed them */
        const char *as = m->weights[i].format->name;
        h = q_fnv64_mix(h, as, strlen(as));
    }
    if (m->adapter_data) h = q_fnv64_mix(h, m->adapter_data, (size_t)m->adapter_bytes);
    *hash = h ? h : 1;
    atomic_store(&m->hash, *hash);
    return LQ_OK;
}
