/* lora_run.c: adapters that a model is run with, unmerged: y = W x + B (A x).
 *
 * Owns A and B of each matrix as float32, those of several adapters side by side (their ranks add up), with the scale
 * in B and B's rows in the order of GGUF, as the model's weights are. plan.c makes two small products of them, beside
 * the matrix's own and behind it; no kernel knows of adapters. Refuses matrices that something else than a product of
 * the layers reads. Layer L3. */
#include "engine.h"
#include "lora.h"

#include <math.h>

/* Does a step read this role otherwise than as the matrix of a MATMUL? */
static bool is_elsewhere(const q_arch *a, uint8_t role) {
    for (uint32_t k = 0; k < a->n_layer_kinds + 2; k++) {
        const q_layer_table *t = k == 0 ? &a->first : k == 1 ? &a->last : &a->layers[k - 2];
        for (uint32_t i = 0; i < t->n; i++) {
            const q_step *s = &t->steps[i];
            if ((s->w == role && s->op != Q_OP_MATMUL) || s->w2 == role || s->w3 == role) return true;
        }
    }
    return false;
}

static uint64_t rank_of(const q_lora_delta *d) {
    uint64_t n = 0;
    for (; d; d = d->next) n += d->rank;
    return n;
}

/* Floats of A and of B, each from a multiple of Q_ALIGN bytes. */
static uint64_t room(uint64_t floats) { return q_round_up(floats, Q_ALIGN / sizeof(float)); }

static lq_status fill(lq_model *m, uint32_t i, float *a, float *b) {
    const q_bind_item *item = &m->binding->items[i];
    const uint64_t k = item->src->shape[0], rows = item->src->rows, rank = rank_of(item->delta);
    uint64_t at = 0;
    for (const q_lora_delta *d = item->delta; d; at += d->rank, d = d->next) {
        memcpy(a + at * k, d->a, d->rank * k * sizeof *a);
        for (uint64_t r = 0; r < rows; r++) {
            const float *from = d->b + q_bind_source_row(item, r) * d->rank;
            for (uint32_t t = 0; t < d->rank; t++) {
                b[r * rank + at + t] = d->scale * from[t];
                if (!isfinite(b[r * rank + at + t]))
                    return q_fail(LQ_E_INCONSISTENT,
                                  "an adapter of tensor '%s' has values that are not finite under its scale",
                                  item->name.p);
            }
        }
    }
    const q_format *f32 = q_format_find("f32");
    m->adapters[i] = (q_adapter){{.format = f32, .data = (const uint8_t *)a, .row_bytes = k * sizeof *a,
                                  .rows = (int32_t)rank, .k = (int32_t)k, .matrices = 1, .name = item->name.p},
                                 {.format = f32, .data = (const uint8_t *)b, .row_bytes = rank * sizeof *b,
                                  .rows = (int32_t)rows, .k = (int32_t)rank, .matrices = 1, .name = item->name.p}};
    return LQ_OK;
}

/* One block for all. The deltas leave their items: whoever reads rows from now on reads the model's own. */
static lq_status make(lq_model *m) {
    q_binding *b = m->binding;
    uint64_t floats = 0, at = 0;
    for (uint32_t i = 0; i < b->n_items; i++) {
        const q_bind_item *item = &b->items[i];
        if (!item->delta) continue;
        if (is_elsewhere(b->arch, (uint8_t)(item->role + 1)))
            return q_fail(LQ_E_UNSUPPORTED,
                          "an adapter changes tensor '%s', which is no matrix of the layers: merge it (lq_quantize)",
                          item->name.p);
        floats += room(rank_of(item->delta) * item->src->shape[0]) + room(item->src->rows * rank_of(item->delta));
    }
    if (!floats) return LQ_OK;
    Q_TRY(q_memory_check("the adapters", floats * sizeof(float), 0));
    m->adapters = Q_NEW(m->alloc, q_adapter, b->n_items);
    m->adapter_data = (float *)q_new_placed(m->alloc, &m->ctx->placing, floats * sizeof(float), true);
    if (!m->adapters || !m->adapter_data) return LQ_E_NOMEM;
    m->adapter_bytes = floats * sizeof(float);
    if (m->ctx->placing.lock) m->locked += q_placed_bytes(&m->ctx->placing, m->adapter_bytes);
    for (uint32_t i = 0; i < b->n_items; i++) {
        q_bind_item *item = &b->items[i];
        if (!item->delta) continue;
        const uint64_t next = at + room(rank_of(item->delta) * item->src->shape[0]);
        Q_TRY(fill(m, i, m->adapter_data + at, m->adapter_data + next));
        at = next + room(item->src->rows * rank_of(item->delta));
        item->delta = NULL;
    }
    return LQ_OK;
}

lq_status q_adapters_open(lq_model *m, const lq_model_options *o) {
    q_loras *l = NULL;
    uint32_t adapted;
    if (!o->n_loras) return LQ_OK;
    Q_TRY(q_loras_open(m->alloc, &m->ctx->log, o->loras, o->lora_scales, o->n_loras, &l));
    lq_status s = q_loras_bind(l, m->binding, &adapted);
    if (s == LQ_OK) s = make(m);
    q_loras_close(l);
    return s;
}

uint64_t q_adapters_device_bytes(const lq_model *m) {
    const q_place *p = &m->places[1];
    return m->n_places > 1 && m->adapter_bytes ? p->backend->alloc_bytes(p->device, m->adapter_bytes) : 0;
}

lq_status q_adapters_write(lq_model *m) {
    const q_place *p = &m->places[1];
    if (m->n_places < 2 || !m->adapter_bytes) return LQ_OK;
    Q_TRY(p->backend->alloc(p->device, m->adapter_bytes, &m->adapter_block));
    Q_TRY(p->backend->write(p->device, &m->adapter_block, 0, m->adapter_data, m->adapter_bytes));
    for (uint32_t i = 0; i < m->binding->n_items; i++) {
        q_adapter *ad = &m->adapters[i];
        q_weight *const both[] = {&ad->a, &ad->b};
        for (size_t j = 0; ad->a.format && j < Q_COUNT(both); j++)
            both[j]->device = m->adapter_block.device + (uint64_t)(both[j]->data - (const uint8_t *)m->adapter_data);
    }
    return LQ_OK;
}

void q_adapters_close(lq_model *m) {
    q_delete(m->alloc, m->adapters);
    q_delete(m->alloc, m->adapter_data);
}

const q_adapter *q_adapter_of(const lq_model *m, const q_bind_item *item) {
    const q_adapter *a = m->adapters && item ? &m->adapters[item - m->binding->items] : NULL;
    return a && a->a.format ? a : NULL;
}
