/* pack.c: weights in the layout that the processor's kernels read best.
 *
 * Owns which weights are packed (those that the backend has a layout for and that it will multiply with), the one block
 * that holds them, when that is done, and the giving back of the file's pages behind them. What a layout is, the
 * backend knows. The file's bytes stay what everything else reads: the embedding, float32 sessions, checks.
 *
 * Kernels give the same bits with and without, so the first token need not wait: a model opens with the block reserved
 * and untouched, and sessions pack a part of the weights before each pass but their first, on their own threads, until
 * all are packed. One session packs at a time; the others see at their next pass what is ready, and give back the pages
 * that their last pass may have brought in again. A part is of whole weights: of one that is not ready, a pass would
 * bring all pages in again. A long pass gains more by packed weights than packing takes: all is packed before it. Where
 * memory lacks as the model or a session opens, the rest stays as it is, and the log says so. Layer L3. */
#include "engine.h"

enum { CHUNK = 1 << 20 /* bytes that a thread packs at a time, about */ };
/* Between two looks at whether the session was cancelled: so many bytes at most, and so many such stretches of all. */
enum { STRETCH = 32 << 20, STRETCHES = 64 };
/* A pass of a few tokens reads all weights once, and packing takes some ten times as long as reading: with a sixteenth
 * of the weights it lasts about half as long again. A longer pass may pack more. */
enum { PARTS = 16, PART_TOKENS = 16 };

typedef struct piece {
    uint32_t item;
    int32_t op;
    uint64_t at; /* where it begins in the block */
    int ready; /* all of it is packed (q_weight.packed_ready) */
} piece;

struct q_packing {
    atomic_bool busy;    /* somebody packs: what is his is below */
    atomic_bool stopped; /* for want of memory */
    atomic_uint done;    /* the first so many pieces are ready */
    uint32_t n;
    int64_t row;         /* of piece `done`: the first that is not packed; not 0 after a cancelled pass alone */
    uint64_t from;       /* bytes of all the weights, in the file's formats */
    _Atomic uint64_t left; /* and of those not packed */
    double seconds;      /* of packing so far */
    piece pieces[];
};

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
    int64_t first; /* row */
    bool mapped;   /* the weight's bytes are the file's: they leave memory as the layout fills it */
} job;

static void pack_rows(void *arg, int64_t begin, int64_t end, uint32_t thread) {
    const job *j = (const job *)arg;
    const uint64_t row_bytes = j->w->row_bytes;
    Q_UNUSED(thread);
    begin += j->first;
    end += j->first;
    j->backend->pack(j->device, j->op, j->w, begin, end, (void *)(uintptr_t)j->w->packed);
    if (j->mapped) q_file_give_back(j->w->data + (uint64_t)begin * row_bytes, (uint64_t)(end - begin) * row_bytes);
}

static int64_t rows_of(const q_weight *w) { return (int64_t)w->rows * Q_MAX(w->matrices, 1); }

/* Rows of about so many bytes, as many as pack() takes at a time. */
static int64_t rows_in(const q_weight *w, uint64_t bytes) {
    const uint64_t rows = bytes / Q_MAX(w->row_bytes, (uint64_t)1) / Q_PACK_ROWS;
    return (int64_t)Q_MIN(Q_MAX(rows, (uint64_t)1), (uint64_t)INT32_MAX) * Q_PACK_ROWS;
}

/* Who packs: a pool, or the threads of a session's program. */
typedef struct hands {
    q_pool *pool;
    q_program *program;
    const atomic_int *cancel;
} hands;

/* Pack whole weights until it was `bytes` of them, or they are all packed. */
static void pack_next(lq_model *m, const hands *h, uint64_t bytes) {
    q_packing *p = m->packing;
    const uint64_t stretch = Q_MIN(p->from / STRETCHES, (uint64_t)STRETCH);
    uint32_t done = atomic_load(&p->done);
    while (done < p->n && (bytes || p->row) && !(h->cancel && atomic_load(h->cancel))) {
        piece *it = &p->pieces[done];
        const q_weight *w = &m->weights[it->item];
        const int64_t rows = Q_MIN(rows_of(w) - p->row, rows_in(w, stretch));
        job j = {m->ctx->backend, m->ctx->device, (q_op)it->op, w, p->row, !m->owned[it->item]};
        if (h->pool) q_pool_for(h->pool, rows, rows_in(w, CHUNK), pack_rows, &j);
        else m->ctx->backend->work(h->program, rows, rows_in(w, CHUNK), pack_rows, &j);
        p->row += rows;
        atomic_fetch_sub(&p->left, (uint64_t)rows * w->row_bytes);
        bytes -= Q_MIN(bytes, (uint64_t)rows * w->row_bytes);
        if (p->row < rows_of(w)) continue;
        p->row = 0;
        __atomic_store_n(&it->ready, 1, __ATOMIC_RELEASE);
        atomic_store(&p->done, ++done);
    }
}

/* Pages of the file behind pieces [from, to). */
static void give_back(const lq_model *m, uint32_t from, uint32_t to) {
    for (uint32_t i = from; i < to; i++) {
        const uint32_t item = m->packing->pieces[i].item;
        const q_weight *w = &m->weights[item];
        if (!m->owned[item]) q_file_give_back(w->data, (uint64_t)rows_of(w) * w->row_bytes);
    }
}

/* A page fault brings neighbours too, of what was given back already. */
static void finish(lq_model *m) {
    give_back(m, 0, m->packing->n);
    q_log_write(&m->ctx->log, LQ_LOG_INFO, "packed %u weights to %.1f MiB in %.3f s", m->packing->n,
                (double)m->packed_bytes / 1048576.0, m->packing->seconds);
}

/* Which items are packed, where each goes in the block, and the sums for the plan. */
static void choose(lq_model *m) {
    const q_backend *be = m->ctx->backend;
    q_packing *p = m->packing;
    for (uint32_t i = 0; i < m->binding->n_items; i++) {
        q_weight *w = &m->weights[i];
        const int32_t op = product_of(m, &m->binding->items[i]);
        const uint64_t bytes = op < 0 ? 0 : q_round_up(be->pack_bytes(m->ctx->device, (q_op)op, w), Q_ALIGN);
        if (!bytes) continue;
        p->pieces[p->n++] = (piece){.item = i, .op = op, .at = m->packed_bytes};
        p->from += (uint64_t)rows_of(w) * w->row_bytes;
        m->packed_bytes += bytes;
        if (!m->owned[i] && !q_load_as_bytes(m, i)) m->packed_from += m->binding->items[i].src->bytes;
    }
    atomic_store(&p->left, p->from);
    m->packed_data = m->packed_bytes;
    if (p->n) m->packed_bytes = q_placed_bytes(&m->ctx->placing, m->packed_data); /* with a header before the block */
}

/* With plan_only the heads of layouts are there and nothing else: by them kernels are chosen, and their scratch is
 * measured, as if all were packed. */
static lq_status reserve(lq_model *m) {
    const q_packing *p = m->packing;
    m->packed = m->plan_only ? (uint8_t *)q_new(m->alloc, p->n, Q_ALIGN)
                             : (uint8_t *)q_new_placed(m->alloc, &m->ctx->placing, m->packed_data, false);
    if (!m->packed) return LQ_E_NOMEM;
    for (uint32_t i = 0; i < p->n; i++) {
        q_weight *w = &m->weights[p->pieces[i].item];
        w->packed = m->packed + (m->plan_only ? (uint64_t)i * Q_ALIGN : p->pieces[i].at);
        w->packed_ready = &p->pieces[i].ready;
        if (m->plan_only)
            m->ctx->backend->pack(m->ctx->device, (q_op)p->pieces[i].op, w, 0, 0, (void *)(uintptr_t)w->packed);
    }
    return LQ_OK;
}

static lq_status pack_now(lq_model *m) {
    const double begin = q_clock();
    hands h = {0};
    Q_TRY(q_pool_open(m->alloc, m->ctx->threads, &h.pool));
    pack_next(m, &h, UINT64_MAX);
    q_pool_close(h.pool);
    m->packing->seconds = q_clock() - begin;
    finish(m);
    return LQ_OK;
}

/* All of it is packed: nobody asks any more. */
static void settle_all(lq_model *m) {
    for (uint32_t i = 0; i < m->packing->n; i++) m->weights[m->packing->pieces[i].item].packed_ready = NULL;
}

static uint64_t list_bytes(const lq_model *m) { return sizeof(q_packing) + m->binding->n_items * sizeof(piece); }
uint64_t q_pack_list_bytes(const lq_model *m) {
    const uint64_t heads = m->packing && m->plan_only && m->packed ? q_new_bytes(m->packing->n * (uint64_t)Q_ALIGN) : 0;
    return heads + (m->packing ? q_new_bytes(list_bytes(m)) : 0);
}

lq_status q_pack_weights(lq_model *m, bool now) {
    const uint64_t bytes = list_bytes(m);
    m->packing = (q_packing *)q_new(m->alloc, bytes, 1);
    if (!m->packing) return LQ_E_NOMEM;
    choose(m);
    bool later = false;
    lq_status s = LQ_OK;
    if (m->packing->n) {
        const uint64_t stacks = q_pool_stacks(m->ctx->threads);
        if (m->plan_only || q_memory_check("packing the weights", m->packed_bytes, stacks) == LQ_OK) {
            s = reserve(m);
            later = s == LQ_OK && !now && !m->ctx->placing.lock; /* locking the block has touched all of it */
            if (s == LQ_OK && !later && !m->plan_only) s = pack_now(m);
            if (s == LQ_OK && !later) settle_all(m);
        } else {
            q_log_write(&m->ctx->log, LQ_LOG_WARN, "weights are read as they lie in the file, which is slower: %s",
                        lq_error_detail());
            m->packed_bytes = m->packed_from = 0;
        }
    }
    if (m->plan_only) return s;
    if (later) {
        q_log_write(&m->ctx->log, LQ_LOG_INFO, "%u weights are packed to %.1f MiB as sessions run", m->packing->n,
                    (double)m->packed_bytes / 1048576.0);
        return s;
    }
    q_delete(m->alloc, m->packing);
    m->packing = NULL;
    return s;
}

void q_pack_fits(lq_model *m, uint64_t memory) {
    q_packing *p = m->packing;
    if (!p || atomic_load(&p->stopped)) return;
    const double left = (double)atomic_load(&p->left) / (double)p->from * (double)m->packed_data;
    if (left <= (double)memory || atomic_exchange(&p->stopped, true)) return;
    q_log_write(
        &m->ctx->log, LQ_LOG_WARN,
        "%u of %u weights are read as they lie in the file, which is slower: packing them needs %.1f MiB of memory; "
        "%.1f MiB are available",
        p->n - atomic_load(&p->done), p->n, left / 1048576.0, (double)memory / 1048576.0);
}

/* The session's program on the processor; NULL = all of it runs elsewhere. */
static q_program *program_of(const lq_session *s) {
    for (int32_t i = 0; i < s->plan->n_segments; i++)
        if (s->plan->segments[i].device == 0) return s->programs[i];
    return NULL;
}

void q_pack_before(lq_session *s, uint32_t tokens) {
    lq_model *m = s->model;
    q_packing *p = m->packing;
    const bool first = s->passes++ == 0;
    if (!p || s->shape.f32_activations || atomic_load(&p->stopped) || atomic_load(&p->done) == p->n) return;
    const uint64_t parts = Q_MIN((tokens + PART_TOKENS - 1) / PART_TOKENS, (uint32_t)PARTS);
    const hands h = {.program = program_of(s), .cancel = s->cancelled};
    if ((first && parts < PARTS) || !h.program || atomic_exchange(&p->busy, true)) return;
    const double begin = q_clock();
    if (atomic_load(&p->done) < p->n) {
        pack_next(m, &h, parts == PARTS ? UINT64_MAX : (p->from + PARTS - 1) / PARTS * parts);
        p->seconds += q_clock() - begin;
        if (atomic_load(&p->done) == p->n) finish(m);
    }
    atomic_store(&p->busy, false);
}

void q_pack_after(lq_session *s) {
    const q_packing *p = s->model->packing;
    const uint32_t done = p && !s->shape.f32_activations ? atomic_load(&p->done) : 0;
    if (s->packed == done) return;
    give_back(s->model, s->packed, done);
    s->packed = done;
}
