/* calibrate_weights.c: before a calibration: are all weights of the model finite?
 *
 * One that is not would be found by lq_quantize, after the hours that calibration may take, or show as inputs that are
 * not finite, without a place. Vectors, the embedding's rows that the text does not use, and the output's matrix count,
 * since they will be quantized too. Refuses the first by tensor and row, whatever the threads. Layer L3. */
#include "calibrate.h"

#include <math.h>

enum { SPAN = 1 << 14 }; /* weights that a thread takes at a time */

typedef struct check {
    const lq_model *model;
    const q_bind_item *item;
    uint64_t floats; /* room per thread */
    float *rows;     /* [threads][floats] */
    q_trouble *troubles; /* [threads] by rows */
} check;

static uint64_t span_rows(const q_tensor *t) {
    return Q_MIN(t->rows, Q_MAX(SPAN / Q_MAX(t->shape[0], (uint64_t)1), (uint64_t)1));
}

/* LQ_E_INCONSISTENT at the first weight that is not finite; *row is the row in work. */
static lq_status check_rows(const check *c, uint64_t begin, uint64_t end, float *x, uint64_t *row) {
    const lq_model *m = c->model;
    const uint64_t k = c->item->src->shape[0];
    const q_wide *wide = q_ctx_wide(m->ctx);
    Q_TRY(q_bind_read(m->alloc, m->binding, c->item, begin, end - begin, x));
    for (*row = begin; *row < end; ++*row, x += k) {
        if (wide->finite(x, (int64_t)k)) continue;
        uint64_t column = 0;
        while (column + 1 < k && isfinite(x[column])) column++;
        return q_fail(LQ_E_INCONSISTENT, "tensor %.*s: the weight in row %llu, column %llu is not finite",
                      Q_STR_ARG(c->item->name), (unsigned long long)*row, (unsigned long long)column);
    }
    return LQ_OK;
}

static void span(void *arg, int64_t begin, int64_t end, uint32_t thread) {
    const check *c = (const check *)arg;
    q_trouble *t = &c->troubles[thread];
    if (t->status != LQ_OK) return; /* a thread's spans ascend: its first place is its lowest */
    uint64_t row = (uint64_t)begin;
    const lq_status st = check_rows(c, (uint64_t)begin, (uint64_t)end, c->rows + thread * c->floats, &row);
    if (st != LQ_OK) q_trouble_note(t, st, row);
}

static lq_status check_item(check *c, q_pool *pool) {
    const uint32_t threads = q_pool_threads(pool);
    const q_tensor *t = c->item->src;
    memset(c->troubles, 0, threads * sizeof *c->troubles);
    q_pool_for(pool, (int64_t)t->rows, (int64_t)span_rows(t), span, c);
    return q_trouble_first(c->troubles, threads);
}

static uint64_t floats_of(const lq_model *m) {
    uint64_t most = 0;
    for (uint32_t i = 0; i < m->binding->n_items; i++) {
        const q_tensor *t = m->binding->items[i].src;
        most = Q_MAX(most, span_rows(t) * t->shape[0]);
    }
    return most;
}

uint64_t q_calibrate_check_bytes(const lq_model *m, uint32_t threads) {
    uint64_t reading = 0;
    for (uint32_t i = 0; i < m->binding->n_items; i++)
        reading = Q_MAX(reading, q_bind_read_bytes(&m->binding->items[i], span_rows(m->binding->items[i].src)));
    return q_new_bytes(threads * floats_of(m) * sizeof(float)) + q_new_bytes(threads * sizeof(q_trouble)) +
           threads * reading;
}

lq_status q_calibrate_check_weights(lq_session *s, q_pool *pool) {
    const lq_model *m = s->model;
    const uint32_t threads = q_pool_threads(pool);
    check c = {.model = m, .floats = floats_of(m)};
    c.rows = (float *)q_new_raw(m->alloc, threads * c.floats, sizeof *c.rows);
    c.troubles = Q_NEW(m->alloc, q_trouble, threads);
    lq_status status = c.rows && c.troubles ? LQ_OK : LQ_E_NOMEM;
    for (uint32_t i = 0; i < m->binding->n_items && status == LQ_OK; i++) {
        c.item = &m->binding->items[i];
        status = check_item(&c, pool);
        if (status != LQ_OK || !atomic_load(&s->cancel)) continue;
        atomic_store(&s->cancel, 0);
        status = q_fail(LQ_E_CANCELLED, "cancelled while the model's weights were checked");
    }
    q_delete(m->alloc, c.rows);
    q_delete(m->alloc, c.troubles);
    return status;
}
