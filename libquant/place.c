/* place.c: which device runs which layers, and where the weights of those layers lie.
 *
 * Places are the processor and at most one other device. The device takes the last layers and the output; with all
 * layers it takes the embedding too, and then only ids go in and logits come out. Its weights are written into a few
 * blocks of its memory, whose sizes are known before the first is asked for. Refuses what does not fit, with the
 * numbers; never moves a layer elsewhere than the caller said. Layer L3. */
#include "engine.h"

#include <stdio.h>
#include <stdlib.h>

enum { ALIGN = 256, BLOCK = 1 << 30 };
enum { ON_HOST = 1, ON_DEVICE = 2 };

/* ------------------------------------------------------------------------------------------- which device */

const char *q_place_kinds(char *text, size_t n) {
    size_t used = 0;
    text[0] = 0;
    for (uint32_t i = 0; i < q_backend_count() && used < n; i++)
        used += (size_t)snprintf(text + used, n - used, "%s%s", i ? ", " : "", q_backends[i]->name);
    return text;
}

lq_status q_place_device(lq_ctx *ctx, const char *name, q_place *out) {
    const char *colon = strchr(name, ':');
    const size_t n = colon ? (size_t)(colon - name) : strlen(name);
    char *end = NULL;
    const unsigned long long index = colon ? strtoull(colon + 1, &end, 10) : 0;
    if (colon && (colon[1] < '0' || colon[1] > '9' || *end || index > 255))
        return q_fail(LQ_E_ARG, "device '%s' is not written as \"vulkan:0\"", name);
    for (uint32_t i = 0; i < q_backend_count(); i++) {
        const q_backend *be = q_backends[i];
        if (strlen(be->name) != n || strncmp(be->name, name, n) != 0) continue;
        const uint32_t present = be->probe();
        if (index >= present)
            return q_fail(LQ_E_UNSUPPORTED, "device '%s': %s has %u devices here", name, be->name, present);
        *out = (q_place){.backend = be};
        snprintf(out->name, sizeof out->name, "%s:%llu", be->name, index);
        if (be == ctx->backend) {
            out->device = ctx->device;
            return LQ_OK;
        }
        const q_device_options o = {.alloc = &ctx->alloc, .log = &ctx->log, .threads = ctx->threads};
        return be->open((uint32_t)index, &o, &out->device);
    }
    char names[64];
    return q_fail(LQ_E_ARG, "device '%s': this build knows %s", name, q_place_kinds(names, sizeof names));
}

lq_status q_place_open(lq_model *m, const lq_model_options *o) {
    const int32_t layers = m->binding->layers;
    m->places[0] = (q_place){.backend = m->ctx->backend, .device = m->ctx->device, .name = "cpu:0"};
    m->n_places = 1;
    m->device_from = layers + 1;
    m->plan_only = o->plan_only != 0;
    if (!o->device) {
        if (o->gpu_layers) return q_fail(LQ_E_ARG, "gpu_layers is %u, and no device is named", o->gpu_layers);
        return LQ_OK;
    }
    Q_TRY(q_place_device(m->ctx, o->device, &m->places[1]));
    if (m->places[1].device == m->ctx->device) return LQ_OK;
    m->n_places = 2;
    m->device_from = o->gpu_layers == 0 || o->gpu_layers >= (uint32_t)layers ? 0 : layers - (int32_t)o->gpu_layers;
    return LQ_OK;
}

int32_t q_place_of(const lq_model *m, int32_t layer) {
    if (m->n_places < 2) return 0;
    return layer >= m->device_from || m->device_from == 0 ? 1 : 0;
}

/* ------------------------------------------------------------------------------------------- which weights */

static void mark_role(const lq_model *m, uint8_t role, int32_t layer, uint8_t where, uint8_t *marks) {
    const q_bind_item *item = role ? q_bind_find(m->binding, role - 1, layer) : NULL;
    if (item) marks[item - m->binding->items] |= where;
}

static void mark_table(const lq_model *m, const q_layer_table *t, int32_t layer, uint8_t where, uint8_t *marks) {
    const int32_t L = layer < 0 || layer >= m->binding->layers ? -1 : layer;
    for (uint32_t i = 0; i < t->n; i++) {
        const uint8_t roles[] = {t->steps[i].w, t->steps[i].w2, t->steps[i].w3, t->steps[i].b, t->steps[i].b2};
        for (size_t j = 0; j < sizeof roles; j++) mark_role(m, roles[j], L, where, marks);
    }
}

/* marks[item]: on which places a step reads it, when the device takes layers from `from` on. */
static void mark(lq_model *m, int32_t from, uint8_t *marks) {
    const q_arch *a = m->binding->arch;
    const int32_t layers = m->binding->layers, before = m->device_from;
    memset(marks, 0, m->binding->n_items);
    m->device_from = from;
    for (int32_t l = -1; l <= layers; l++) {
        const q_layer_table *t = l < 0         ? &a->first
                                 : l == layers ? &a->last
                                               : &a->layers[a->layer_kind ? a->layer_kind(&m->binding->hp, l) : 0];
        mark_table(m, t, l, q_place_of(m, l) ? ON_DEVICE : ON_HOST, marks);
    }
    m->device_from = before;
}

/* As model.c resolves it: vectors are float32. */
static uint64_t weight_bytes(const lq_model *m, uint32_t i) {
    const q_bind_item *item = &m->binding->items[i];
    const bool vector = m->binding->arch->weights[item->role].rows == 0;
    return vector ? item->src->shape[0] * sizeof(float) : q_item_bytes(m, i);
}

/* Blocks and the place of each weight in them, in the order of items. With `blocks` NULL only counted. */
static lq_status lay_out(const lq_model *m, const uint8_t *marks, q_spot *spots, uint64_t *blocks, uint32_t *n_blocks,
                         uint64_t *total) {
    const q_place *p = &m->places[1];
    const uint64_t most = p->backend->alloc_most(p->device), cap = Q_MIN(most, (uint64_t)BLOCK);
    uint64_t used = 0;
    uint32_t block = 0;
    *total = 0;
    for (uint32_t i = 0; i < m->binding->n_items; i++) {
        if (!(marks[i] & ON_DEVICE)) continue;
        const uint64_t bytes = q_round_up(weight_bytes(m, i), ALIGN);
        if (bytes > most)
            return q_fail(LQ_E_LIMIT, "tensor '%s' has %llu bytes, and %s can hold no more than %llu in one piece",
                          m->binding->items[i].name.p, (unsigned long long)bytes, p->name, (unsigned long long)most);
        if (used && used + bytes > cap) {
            if (blocks) blocks[block] = used;
            *total += p->backend->alloc_bytes(p->device, used);
            block++;
            used = 0;
        }
        if (spots) spots[i] = (q_spot){block, used};
        used += bytes;
    }
    if (used) {
        if (blocks) blocks[block] = used;
        *total += p->backend->alloc_bytes(p->device, used);
        block++;
    }
    *n_blocks = block;
    return LQ_OK;
}

/* ------------------------------------------------------------------------------------------- does it fit */

uint64_t q_place_memory(const q_place *p) {
    lq_device_info info = {.size = sizeof info};
    p->backend->info(p->device, &info);
    return info.memory;
}

/* The most layers whose weights fit into `have`. */
static int32_t layers_that_fit(lq_model *m, uint8_t *marks, uint64_t have) {
    for (int32_t from = m->device_from + 1; from <= m->binding->layers; from++) {
        uint32_t blocks;
        uint64_t total;
        mark(m, from, marks);
        if (lay_out(m, marks, NULL, NULL, &blocks, &total) == LQ_OK && total + q_adapters_device_bytes(m) <= have)
            return m->binding->layers - from;
    }
    return 0;
}

static lq_status too_much(lq_model *m, uint8_t *marks, uint64_t have) {
    char advice[64] = "no layer fits there";
    const int32_t fit = layers_that_fit(m, marks, have);
    if (fit > 0) snprintf(advice, sizeof advice, "gpu_layers %d would fit", fit);
    return q_fail(LQ_E_NOMEM,
                  "the weights of %d layers need %llu bytes (%.1f MiB) of %s, which has %llu (%.1f MiB): %s",
                  m->binding->layers - Q_MIN(m->device_from, m->binding->layers), (unsigned long long)m->device_weights,
                  (double)m->device_weights / 1048576.0, m->places[1].name, (unsigned long long)have,
                  (double)have / 1048576.0, advice);
}

/* ------------------------------------------------------------------------------------------- writing them */

lq_status q_place_blocks(lq_model *m) {
    const uint32_t n = m->binding->n_items;
    uint32_t n_blocks;
    if (m->n_places < 2) return LQ_OK;
    m->marks = Q_NEW(m->alloc, uint8_t, n);
    m->spots = Q_NEW(m->alloc, q_spot, n);
    uint64_t *sizes = Q_NEW(m->alloc, uint64_t, n);
    lq_status s = m->marks && m->spots && sizes ? LQ_OK : LQ_E_NOMEM;
    if (s == LQ_OK) mark(m, m->device_from, m->marks);
    if (s == LQ_OK) s = lay_out(m, m->marks, m->spots, sizes, &n_blocks, &m->device_weights);
    const uint64_t most = m->places[1].backend->alloc_most(m->places[1].device);
    if (s == LQ_OK && m->adapter_bytes > most)
        s = q_fail(LQ_E_LIMIT, "the adapters have %llu bytes, and %s can hold no more than %llu in one piece",
                   (unsigned long long)m->adapter_bytes, m->places[1].name, (unsigned long long)most);
    if (s == LQ_OK) m->device_weights += q_adapters_device_bytes(m);
    if (s == LQ_OK && !m->plan_only) {
        const uint64_t have = q_place_memory(&m->places[1]);
        if (m->device_weights > have) s = too_much(m, m->marks, have);
        else if (!(m->blocks = Q_NEW(m->alloc, q_buffer, n_blocks))) s = LQ_E_NOMEM;
        else m->n_blocks = n_blocks;
    }
    for (uint32_t i = 0; i < m->n_blocks && s == LQ_OK; i++)
        s = m->places[1].backend->alloc(m->places[1].device, sizes[i], &m->blocks[i]);
    if (s == LQ_OK && !m->plan_only) s = q_adapters_write(m);
    q_delete(m->alloc, sizes);
    return s;
}

bool q_place_keeps(const lq_model *m, uint32_t i) {
    return m->n_places < 2 || m->plan_only || (m->marks[i] & ON_HOST) || !m->marks[i];
}

bool q_place_reads(const lq_model *m, uint32_t i) {
    return m->n_places < 2 || (m->marks[i] & ON_HOST) || !m->marks[i];
}

lq_status q_place_write(lq_model *m, uint32_t i) {
    const q_place *p = &m->places[1];
    if (m->n_places < 2 || m->plan_only || !(m->marks[i] & ON_DEVICE)) return LQ_OK;
    q_weight *w = &m->weights[i];
    q_buffer *block = &m->blocks[m->spots[i].block];
    Q_TRY(p->backend->write(p->device, block, m->spots[i].at, w->data, weight_bytes(m, i)));
    w->device = block->device + m->spots[i].at;
    if (q_place_keeps(m, i) || !m->owned[i]) return LQ_OK;
    q_delete(m->alloc, m->owned[i]); /* a copy in our memory that only the device reads from now on */
    m->owned[i] = NULL;
    w->data = NULL;
    return LQ_OK;
}

lq_status q_place_finish(lq_model *m) {
    q_delete(m->alloc, m->marks);
    q_delete(m->alloc, m->spots);
    m->marks = NULL;
    m->spots = NULL;
    return m->n_places < 2 || m->plan_only ? LQ_OK : m->places[1].backend->flush(m->places[1].device);
}

void q_place_close(lq_model *m) {
    if (m->n_places < 2) return;
    const q_place *p = &m->places[1];
    for (uint32_t i = 0; i < m->n_blocks; i++)
        if (m->blocks[i].bytes) p->backend->free(p->device, &m->blocks[i]);
    if (m->adapter_block.bytes) p->backend->free(p->device, &m->adapter_block);
    q_delete(m->alloc, m->blocks);
    q_delete(m->alloc, m->marks);
    q_delete(m->alloc, m->spots);
    p->backend->close(p->device);
}

/* ------------------------------------------------------------------------------------------- saying so */

void q_place_plan(const lq_model *m, const q_session_need *need, lq_plan_info *info) {
    info->layers = (uint32_t)m->binding->layers;
    if (m->n_places < 2) return;
    const q_place *p = &m->places[1];
    snprintf(info->device, sizeof info->device, "%s", p->name);
    info->device_layers = (uint32_t)(m->binding->layers - Q_MIN(m->device_from, m->binding->layers));
    info->device_embedding = m->device_from == 0;
    info->device_weights = m->device_weights;
    info->device_kv = need->kv[1];
    info->device_activations = need->rest[1];
    const q_need held = p->backend->held(p->device);
    info->device_staging = held.host;
    info->total += held.host;
    info->device_own = held.device;
    info->device_total = info->device_own + info->device_weights + info->device_kv + info->device_activations;
    info->device_memory = q_place_memory(p);
    if (m->device_from > 0) info->border_bytes = (uint64_t)m->binding->hp.v[Q_HP_EMBD] * sizeof(float);
}
