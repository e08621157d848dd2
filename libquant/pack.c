/* pack.c: weights in the layout that the processor's kernels read best.
 *
 * Owns which weights are packed when a model opens (those that the backend has a layout for and that it will multiply
 * with), the one block that holds them, and the giving back of the file's pages behind them. What a layout is, the
 * backend knows. The file's bytes stay what everything else reads: the embedding, float32 sessions, checks. Where
 * memory lacks, nothing is packed, and the log says so. Layer L3. */
#include "engine.h"

enum { CHUNK = 1 << 20 /* bytes that a thread packs at a time, about */ };

/* The operation that multiplies with an item on the processor; -1 = none does. */
static int32_t product_of(const lq_model *m, const q_bind_item *item) {
    const q_arch *a = m->binding->arch;
    for (uint32_t k = 0; k < a->n_layer_kinds + 2; k++) {
        const q_layer_table *t = k == 0 ? &a->first : k == 1 ? &a->last : &a->layers[k - 2];
        const int32_t layer = item->layer >= 0 ? item->layer : k == 0 ? -1 : m->binding->layers;
        for (uint32_t i = 0; i < t->n; i++) {
            const q_step *s = &t->steps[i];
            const bool product =
                s->op == Q_OP_MATMUL || s->op == Q_OP_HEAD || s->op == Q_OP_MOE_GLU || s->op == Q_OP_MOE_DOWN;
            if (!product || q_place_of(m, layer) != 0) continue;
            /* a role that is tied to another stands for that one's tensor */
            const uint8_t roles[] = {s->w, s->w2};
            for (size_t j = 0; j < Q_COUNT(roles); j++)
                if (roles[j] && q_bind_find(m->binding, roles[j] - 1, item->layer) == item) return s->op;
        }
    }
    return -1;
}

typedef struct job {
    const q_backend *backend;
    q_device *device;
    q_op op;
    const q_weight *w;
    void *to;
    bool mapped; /* the weight's bytes are the file's: they leave memory as the layout fills it */
} job;

static void pack_rows(void *arg, int64_t begin, int64_t end, uint32_t thread) {
    const job *j = (const job *)arg;
    const uint64_t row_bytes = j->w->row_bytes;
    Q_UNUSED(thread);
    j->backend->pack(j->device, j->op, j->w, begin, end, j->to);
    if (j->mapped) q_file_give_back(j->w->data + (uint64_t)begin * row_bytes, (uint64_t)(end - begin) * row_bytes);
}

static int64_t rows_of(const q_weight *w) { return (int64_t)w->rows * Q_MAX(w->matrices, 1); }

static void pack_weight(q_pool *pool, const job *j) {
    const q_weight *w = j->w;
    const int64_t chunk =
        Q_MAX(CHUNK / (int64_t)Q_MAX(w->row_bytes, (uint64_t)1) / Q_PACK_ROWS, (int64_t)1) * Q_PACK_ROWS;
    q_pool_for(pool, rows_of(w), chunk, pack_rows, (void *)(uintptr_t)j);
}

/* A page fault brings neighbours too, of what was given back already. */
static void give_back_all(const lq_model *m, const uint64_t *bytes) {
    for (uint32_t i = 0; i < m->binding->n_items; i++) {
        const q_weight *w = &m->weights[i];
        if (bytes[i] && !m->owned[i]) q_file_give_back(w->data, (uint64_t)rows_of(w) * w->row_bytes);
    }
}

/* What each item takes of the block, 0 = it stays as it is; the sums for the plan. */
static void measure(lq_model *m, uint64_t *bytes, int32_t *ops, uint32_t *n) {
    const q_backend *be = m->ctx->backend;
    m->packed_bytes = m->packed_from = 0;
    *n = 0;
    for (uint32_t i = 0; i < m->binding->n_items; i++) {
        const int32_t op = product_of(m, &m->binding->items[i]);
        bytes[i] = op < 0 ? 0 : q_round_up(be->pack_bytes(m->ctx->device, (q_op)op, &m->weights[i]), Q_ALIGN);
        ops[i] = op;
        if (!bytes[i]) continue;
        ++*n;
        m->packed_bytes += bytes[i];
        if (!m->owned[i] && !q_load_as_bytes(m, i)) m->packed_from += m->binding->items[i].src->bytes;
    }
    m->packed_data = m->packed_bytes;
    if (*n) m->packed_bytes = q_placed_bytes(&m->ctx->placing, m->packed_data); /* with a header before the block */
}

static lq_status pack_all(lq_model *m, const uint64_t *bytes, const int32_t *ops, uint32_t n) {
    const double begin = q_clock();
    q_pool *pool;
    m->packed = (uint8_t *)q_new_placed(m->alloc, &m->ctx->placing, m->packed_data, false);
    if (!m->packed) return LQ_E_NOMEM;
    Q_TRY(q_pool_open(m->alloc, m->ctx->threads, &pool));
    uint64_t at = 0;
    for (uint32_t i = 0; i < m->binding->n_items; i++) {
        if (!bytes[i]) continue;
        const job j = {m->ctx->backend, m->ctx->device, (q_op)ops[i], &m->weights[i], m->packed + at, !m->owned[i]};
        pack_weight(pool, &j);
        m->weights[i].packed = m->packed + at;
        at += bytes[i];
    }
    q_pool_close(pool);
    give_back_all(m, bytes);
    q_log_write(&m->ctx->log, LQ_LOG_INFO, "packed %u weights to %.1f MiB in %.3f s", n,
                (double)m->packed_bytes / 1048576.0, q_clock() - begin);
    return LQ_OK;
}

lq_status q_pack_weights(lq_model *m) {
    uint32_t n = 0;
    uint64_t *bytes = Q_NEW(m->alloc, uint64_t, m->binding->n_items);
    int32_t *ops = Q_NEW(m->alloc, int32_t, m->binding->n_items);
    lq_status s = bytes && ops ? LQ_OK : LQ_E_NOMEM;
    if (s == LQ_OK) measure(m, bytes, ops, &n);
    if (s == LQ_OK && n && !m->plan_only) {
        if (q_memory_check("packing the weights", m->packed_bytes, q_pool_stacks(m->ctx->threads)) == LQ_OK) {
            s = pack_all(m, bytes, ops, n);
        } else {
            q_log_write(&m->ctx->log, LQ_LOG_WARN, "weights are read as they lie in the file, which is slower: %s",
                        lq_error_detail());
            m->packed_bytes = m->packed_from = 0;
        }
    }
    q_delete(m->alloc, bytes);
    q_delete(m->alloc, ops);
    return s;
}
