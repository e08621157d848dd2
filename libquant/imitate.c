/* imitate.c: rows of a tensor through a quantizer and back, on all threads. See imitate.h.
 *
 * Owns nothing between two calls. What it makes does not depend on the threads: rows are independent. Layer L3. */
#include "imitate.h"

#include "row_limits.h"
#include "wide.h"

enum { SPAN = 1 << 14 }; /* weights that a thread takes at a time */

typedef struct job {
    const q_imitation *m;
    uint64_t k, row_bytes;
    float *diagonal; /* of the inputs divided by the factors */
    float *out;
    uint8_t *coded;
    lq_status *status; /* [threads] */
} job;

/* The weights that are quantized. */
static void reshape(const q_imitation *m, uint64_t k, int64_t begin, int64_t n, float *x) {
    for (uint64_t r = 0; r < (uint64_t)n; r++, x += k) {
        for (uint64_t j = 0; m->factors && j < k; j++) x[j] *= m->factors[j];
        if (m->clip) q_limits_clamp(m->clip + ((uint64_t)begin + r) * (k / m->group), k / m->group, k, 1, x, x);
    }
}

static lq_status some_rows(const job *j, int64_t begin, int64_t n) {
    const q_imitation *m = j->m;
    const q_alloc *a = m->alloc;
    const uint64_t k = j->k;
    float *x = j->out ? j->out + (uint64_t)begin * k : (float *)q_new_raw(a, (uint64_t)n * k, sizeof *x);
    uint8_t *rows = j->coded ? j->coded + (uint64_t)begin * j->row_bytes : (uint8_t *)q_new_raw(a, (uint64_t)n, j->row_bytes);
    lq_status status = x && rows ? q_bind_read(a, m->binding, m->item, (uint64_t)begin, (uint64_t)n, x) : LQ_E_NOMEM;
    if (status == LQ_OK) {
        const q_quant_job q = {m->format, x, n, (int64_t)k, m->factors && m->diagonal ? j->diagonal : m->diagonal, m->shared, a,
                               m->binding->wide};
        reshape(m, k, begin, n, x);
        status = m->quantizer->quantize(&q, rows);
    }
    const int32_t *order = m->quantizer->order ? m->quantizer->order(m->shared) : NULL;
    float *columns = order ? (float *)q_new_raw(a, k, sizeof *columns) : NULL;
    if (order && !columns) status = LQ_E_NOMEM;
    for (int64_t r = 0; r < n && status == LQ_OK && j->out; r++) {
        float *row = x + (uint64_t)r * k;
        q_wide_of(m->binding->wide)->decode(m->format, rows + (uint64_t)r * j->row_bytes, (int64_t)k, order ? columns : row);
        for (uint64_t i = 0; order && i < k; i++) row[order[i]] = columns[i];
        for (uint64_t i = 0; m->factors && i < k; i++) row[i] /= m->factors[i];
    }
    q_delete(a, columns);
    if (!j->out) q_delete(a, x);
    if (!j->coded) q_delete(a, rows);
    return status;
}

static void span(void *arg, int64_t begin, int64_t end, uint32_t thread) {
    const job *j = (const job *)arg;
    if (j->status[thread] == LQ_OK) j->status[thread] = some_rows(j, begin, end - begin);
}

static int64_t step_of(uint64_t k, const q_quantizer *q) {
    return (int64_t)Q_MAX(SPAN / Q_MAX(k, (uint64_t)1), (uint64_t)Q_MAX(q->rows, 1));
}

uint64_t q_imitate_bytes(const q_bind_item *item, const q_recipe_choice *c, uint32_t threads, bool coded) {
    const uint64_t k = item->src->shape[0], rows = Q_MIN((uint64_t)step_of(k, c->quantizer), item->src->rows);
    uint64_t row_bytes = 0;
    (void)q_row_bytes(c->format, k, &row_bytes); /* checked when it was chosen */
    const uint64_t own = q_new_bytes(rows * (coded ? k * sizeof(float) : row_bytes)) + q_bind_read_bytes(item, rows) +
                         (c->quantizer->quantize_bytes ? c->quantizer->quantize_bytes(c->format, k) : 0) +
                         (c->quantizer->order ? q_new_bytes(k * sizeof(float)) : 0);
    return threads * own + q_new_bytes(threads * sizeof(lq_status)) + q_new_bytes(k * sizeof(float));
}

lq_status q_imitate(const q_imitation *m, float *out, uint8_t *coded) {
    const uint32_t threads = q_pool_threads(m->pool);
    const q_tensor *t = m->item->src;
    job j = {.m = m, .k = t->shape[0], .out = out, .coded = coded};
    if (!q_row_bytes(m->format, j.k, &j.row_bytes))
        return q_fail(LQ_E_INTERNAL, "tensor %s: rows do not fit format %s", m->item->name.p, m->format->name);
    j.status = Q_NEW(m->alloc, lq_status, threads);
    j.diagonal = (float *)q_new_raw(m->alloc, j.k, sizeof *j.diagonal);
    lq_status status = j.status && j.diagonal ? LQ_OK : LQ_E_NOMEM;
    if (status == LQ_OK) {
        for (uint64_t i = 0; m->factors && m->diagonal && i < j.k; i++)
            j.diagonal[i] = m->diagonal[i] / (m->factors[i] * m->factors[i]);
        q_pool_for(m->pool, (int64_t)t->rows, step_of(j.k, m->quantizer), span, &j);
        for (uint32_t i = 0; i < threads && status == LQ_OK; i++)
            if (j.status[i] != LQ_OK) status = q_fail(j.status[i], "tensor %s could not be quantized", m->item->name.p);
    }
    q_delete(m->alloc, j.status);
    q_delete(m->alloc, j.diagonal);
    return status;
}
