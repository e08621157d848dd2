/* vk_program.c: compiles a segment of a plan: lays out its memory, writes the records of its steps, and records command
 * buffers for a few numbers of columns, which vk_run.c submits again and again.
 *
 * A program has one block of host memory for its tables, one of the device's own (parameter block, slots, records,
 * frequencies, scratch) and one that both reach (what is uploaded and downloaded). The function that lays a block out
 * also measures it, so that what was promised is what is allocated. Dispatches are recorded for the most columns of a
 * bucket; shaders leave early beyond the batch's. Layer L2. */
#include "vulkan.h"

#include <math.h>
#include <stdio.h>

static bool wants_out(const q_inst *s) { return s->out || s->op == Q_OP_HEAD || s->op == Q_OP_SAMPLE; }
static bool has_pages(const q_inst *s) { return s->op == Q_OP_KV_PUT || (s->op == Q_OP_ATTN && !s->z.slot); }
static bool has_state(const q_inst *s) { return s->op == Q_OP_CONV || s->op == Q_OP_SCAN; }
static const q_inst *step_of(const q_program *p, int32_t i) { return &p->plan->insts[p->first + i]; }
static int32_t steps_of(const q_program *p) { return p->last - p->first; }

/* Step i may run beside the one before it. */
static bool joins(const q_program *p, int32_t i) {
    return i > 0 && step_of(p, i)->group != 0 && step_of(p, i - 1)->group == step_of(p, i)->group;
}

/* ------------------------------------------------------------------------------------------------------- buckets */

static uint32_t bucket_columns(const q_plan *plan, int32_t columns[Q_VK_BUCKETS]) {
    static const int32_t usual[] = {1, Q_VK_ONE_COLUMNS, 64};
    uint32_t n = 0;
    for (size_t i = 0; i < Q_COUNT(usual); i++)
        if (usual[i] < plan->columns) columns[n++] = usual[i];
    columns[n++] = plan->columns;
    return n;
}

/* The end of the part that begins at step `from`: a layer, or all. Groups stay together. */
static int32_t part_end(const q_program *p, int32_t columns, int32_t from) {
    int32_t i = from + 1;
    if (columns <= Q_VK_ONE_COLUMNS) return steps_of(p);
    while (i < steps_of(p) && (step_of(p, i)->layer == step_of(p, i - 1)->layer || joins(p, i))) i++;
    return i;
}

static uint32_t parts_of(const q_program *p, int32_t columns) {
    uint32_t n = 0;
    for (int32_t i = 0; i < steps_of(p); i = part_end(p, columns, i)) n++;
    return n;
}

/* Arrays of the parameter block for a bucket, one after the other behind its head, each on 64 bytes. */
static lq_status map_block(const q_plan *plan, q_vk_bucket *b) {
    const uint64_t stride = ((uint64_t)plan->context + Q_KV_TOKENS - 1) / Q_KV_TOKENS;
    const struct {
        int32_t *at;
        uint64_t n;
    } arrays[] = {
        {&b->map.state, (uint64_t)plan->seqs}, {&b->map.ids, (uint64_t)b->columns}, {&b->map.pos, (uint64_t)b->columns},
        {&b->map.seq, (uint64_t)b->columns},   {&b->map.out, (uint64_t)b->outs},    {&b->map.u, (uint64_t)b->outs},
        {&b->map.freqs, (uint64_t)plan->seqs}, {&b->map.pages, 0},
    };
    uint64_t at = q_round_up(sizeof(q_vk_params) / 4, 16), pages;
    for (size_t i = 0; i < Q_COUNT(arrays); i++) {
        *arrays[i].at = (int32_t)at;
        at += q_round_up(arrays[i].n, 16);
        if (at > INT32_MAX) break;
    }
    if (at > INT32_MAX || q_mul_overflow((uint64_t)plan->seqs * (uint64_t)plan->n_kv, stride, &pages) ||
        pages > INT32_MAX - 16 - at)
        return q_fail(LQ_E_LIMIT, "%d sequences of %d positions have page tables of more than 2^31 entries", plan->seqs,
                      plan->context);
    b->map.words = (int32_t)(at + q_round_up(pages, 16));
    return LQ_OK;
}

/* -------------------------------------------------------------------------------------------------------- layout */

/* Pieces of a block, each Q_ALIGN-aligned; with base NULL only counted. A total that overflows stays at a number that
 * no allocator grants. */
typedef struct carve {
    uint8_t *base;
    uint64_t used;
} carve;
static uint64_t place(carve *c, uint64_t count, uint64_t item) {
    uint64_t bytes;
    const uint64_t at = c->used;
    if (q_mul_overflow(count, item, &bytes) || bytes > UINT64_MAX / 8 || at > UINT64_MAX / 8) {
        c->used = UINT64_MAX / 4;
        return at;
    }
    c->used = at + q_round_up(bytes, Q_ALIGN);
    return at;
}
static void *take(carve *c, uint64_t count, uint64_t item) {
    const uint64_t at = place(c, count, item);
    return c->base ? c->base + at : NULL;
}

static uint64_t passes_of(const q_program *p, int32_t columns) {
    q_vk_pass pass[Q_VK_PASSES];
    uint64_t n = 0;
    for (int32_t i = 0; i < steps_of(p); i++) n += (uint64_t)q_vk_passes(p->plan, step_of(p, i), columns, pass);
    return n;
}

/* The program and its tables; `like` says for which plan and segment. */
static q_program *lay_out_tables(const q_program *like, carve *c) {
    const uint64_t n = (uint64_t)steps_of(like);
    int32_t columns[Q_VK_BUCKETS];
    uint64_t passes = 0, commands = 0;
    const uint32_t buckets = bucket_columns(like->plan, columns);
    for (uint32_t i = 0; i < buckets; i++) {
        passes += passes_of(like, columns[i]);
        commands += parts_of(like, columns[i]) + 3;
    }
    q_program *p = take(c, 1, sizeof *p);
    uint64_t *slots = take(c, (uint64_t)like->plan->n_slots, sizeof *slots);
    uint64_t *freqs = take(c, n, sizeof *freqs);
    uint64_t *scratch = take(c, n, sizeof *scratch);
    q_vk_name *names = take(c, n, sizeof *names);
    uint32_t *pipelines = take(c, passes, sizeof *pipelines);
    VkCommandBuffer *command = take(c, commands, sizeof *command);
    if (!p) return NULL; /* measured */
    *p = *like;
    p->slots = slots;
    p->freqs = freqs;
    p->scratch = scratch;
    p->names = names;
    p->pipelines = pipelines;
    p->commands = command;
    return p;
}

static void mark_slot(q_program *p, const q_view *v) {
    if (v->slot) p->slots[v->slot] = 0;
}

/* Slots that the segment touches; slot 1 first, because x_at reaches it from the parameter block. */
static void lay_out_slots(q_program *p, carve *c) {
    const q_plan *plan = p->plan;
    for (int32_t i = 0; i < plan->n_slots; i++) p->slots[i] = i == 1 ? 0 : UINT64_MAX;
    for (int32_t i = 0; i < steps_of(p); i++) {
        const q_inst *s = step_of(p, i);
        mark_slot(p, &s->y), mark_slot(p, &s->x), mark_slot(p, &s->z), mark_slot(p, &s->v), mark_slot(p, &s->u);
    }
    for (int32_t i = 1; i < plan->n_slots; i++)
        if (p->slots[i] == 0)
            p->slots[i] = place(c, (uint64_t)plan->columns * (uint64_t)plan->slot_width[i], sizeof(float));
}

static size_t freqs_bytes(const q_inst *s) {
    return (size_t)Q_MAX(s->freq_tables, 1) * (size_t)(s->rot / 2) * sizeof(float);
}

/* The frequencies of a ROPE step: those of an earlier one when they are the same numbers. */
static void lay_out_freqs(q_program *p, int32_t i, carve *c) {
    const q_inst *s = step_of(p, i);
    const size_t bytes = freqs_bytes(s);
    for (int32_t j = 0; j < i; j++) {
        const q_inst *t = step_of(p, j);
        if (!t->freqs || t->rot != s->rot || freqs_bytes(t) != bytes) continue;
        if (t->freqs != s->freqs && memcmp(t->freqs, s->freqs, bytes) != 0) continue;
        p->freqs[i] = p->freqs[j];
        return;
    }
    p->freqs[i] = place(c, bytes, 1);
}

/* Scratch is shared by steps that run one after the other. */
static void lay_out_scratch(q_program *p, carve *c) {
    const uint64_t from = c->used;
    uint64_t most = from;
    for (int32_t i = 0; i < steps_of(p); i++) {
        if (!joins(p, i)) c->used = from;
        p->scratch[i] = place(c, q_vk_scratch(p->plan, step_of(p, i), p->plan->columns), 1);
        most = Q_MAX(most, c->used);
    }
    c->used = most;
}

static lq_status lay_out_data(q_program *p) {
    const q_plan *plan = p->plan;
    const uint64_t outs = (uint64_t)Q_MIN(plan->outs, plan->columns);
    int32_t columns[Q_VK_BUCKETS];
    p->n_buckets = bucket_columns(plan, columns);
    for (uint32_t i = 0; i < p->n_buckets; i++) {
        p->buckets[i] = (q_vk_bucket){.columns = columns[i], .outs = Q_MIN(columns[i], plan->outs)};
        Q_TRY(map_block(plan, &p->buckets[i]));
    }
    for (int32_t i = 0; i < steps_of(p); i++) {
        p->has_head |= step_of(p, i)->op == Q_OP_HEAD;
        p->has_sample |= step_of(p, i)->op == Q_OP_SAMPLE;
    }
    const uint64_t params = (uint64_t)p->buckets[p->n_buckets - 1].map.words * 4;
    carve c = {NULL, 0};
    p->map.params = place(&c, params, 1);
    lay_out_slots(p, &c);
    p->map.records = place(&c, (uint64_t)steps_of(p), q_round_up(sizeof(q_vk_step), Q_ALIGN));
    for (int32_t i = 0; i < steps_of(p); i++)
        if (step_of(p, i)->freqs) lay_out_freqs(p, i, &c);
    lay_out_scratch(p, &c);
    p->map.device_bytes = c.used;
    c = (carve){NULL, 0};
    p->map.host_params = place(&c, params, 1);
    if (plan->n_slots > 1) /* rows that come in have been copied when rows go out */
        p->map.host_rows = place(&c, (uint64_t)plan->columns * (uint64_t)plan->slot_width[1], sizeof(float));
    p->map.host_logits = place(&c, p->has_head || p->has_sample ? outs * (uint64_t)plan->vocab : 0, sizeof(float));
    p->map.host_sampled = place(&c, p->has_sample ? outs : 0, sizeof(int32_t));
    p->map.host_bytes = c.used;
    return LQ_OK;
}

/* What the records have 32 bits for. */
static lq_status check_plan(const q_program *p) {
    const q_plan *plan = p->plan;
    for (int32_t i = 0; i < plan->n_kv; i++)
        if (plan->kv[i].segment == p->segment && plan->kv[i].page_bytes > INT32_MAX)
            return q_fail(LQ_E_UNSUPPORTED, "a page of keys and values of %llu bytes: shaders reach 2 GiB",
                          (unsigned long long)plan->kv[i].page_bytes);
    if (plan->segments[p->segment].state_floats > INT32_MAX)
        return q_fail(LQ_E_UNSUPPORTED, "a recurrent state of %llu floats: shaders reach 2^31",
                      (unsigned long long)plan->segments[p->segment].state_floats);
    for (int32_t i = 0; i < steps_of(p); i++) {
        const char *why = q_vk_supports(p->dev, step_of(p, i));
        if (why) return q_fail(LQ_E_UNSUPPORTED, "step %d (%s): %s", p->first + i, q_ops[step_of(p, i)->op].name, why);
    }
    return LQ_OK;
}

/* A program with its tables filled, and nothing of the device's taken. */
static lq_status make_program(q_device *dev, const q_plan *plan, int32_t segment, q_program **out, uint64_t *bytes) {
    const q_program like = {.dev = dev, .plan = plan, .segment = segment, .first = plan->segments[segment].first,
                            .last = plan->segments[segment].last};
    Q_TRY(q_vk_alive(dev));
    Q_TRY(check_plan(&like));
    carve c = {NULL, 0};
    lay_out_tables(&like, &c);
    *bytes = c.used;
    void *block = q_new(dev->alloc, c.used, 1);
    if (!block) return LQ_E_NOMEM;
    c = (carve){block, 0};
    q_program *p = lay_out_tables(&like, &c);
    Q_ASSUME(p && p->slots && p->freqs && p->scratch && p->names && p->pipelines && p->commands);
    const lq_status s = lay_out_data(p);
    if (s != LQ_OK) {
        q_delete(dev->alloc, block);
        return s;
    }
    *out = p;
    return LQ_OK;
}

lq_status q_vk_measure(q_device *dev, const q_plan *plan, int32_t segment, uint32_t threads, q_need *need) {
    q_program *p;
    uint64_t tables, device = 0, host = 0;
    Q_UNUSED(threads);
    Q_TRY(make_program(dev, plan, segment, &p, &tables));
    lq_status s = q_vk_memory_takes(dev, p->map.device_bytes, &device);
    if (s == LQ_OK) s = q_vk_memory_takes(dev, p->map.host_bytes, &host);
    q_delete(dev->alloc, p);
    if (s == LQ_OK) *need = (q_need){.host = tables + Q_ALIGN, .device = device + host};
    return s;
}

/* ------------------------------------------------------------------------------------------------------- records */

static void put_address(uint32_t to[2], uint64_t address) {
    to[0] = (uint32_t)address;
    to[1] = (uint32_t)(address >> 32);
}

/* The five numbers of a view, whose names begin alike. */
#define VIEW(name)                                                                                                  \
    if (s->name.slot) {                                                                                             \
        put_address(r->name##_base, at + p->slots[s->name.slot] + (uint64_t)s->name.offset * sizeof(float));         \
        r->name##_column = p->plan->slot_width[s->name.slot];                                                        \
        r->name##_heads = s->name.heads;                                                                             \
        r->name##_width = s->name.width;                                                                             \
        r->name##_stride = s->name.stride;                                                                           \
    }
static void put_views(const q_program *p, const q_inst *s, q_vk_step *r) {
    const uint64_t at = p->device.address;
    VIEW(y)
    VIEW(x)
    VIEW(z)
    VIEW(v)
    VIEW(u)
}
#undef VIEW

static lq_status put_weight(const q_weight *w, uint32_t base[2]) {
    if (!w) return LQ_OK;
    if (w->device == 0) return q_fail(LQ_E_INTERNAL, "tensor \"%s\" is not on the device", w->name ? w->name : "?");
    put_address(base, w->device);
    return LQ_OK;
}

static lq_status put_weights(const q_inst *s, q_vk_step *r) {
    Q_TRY(put_weight(s->w, r->w_base));
    Q_TRY(put_weight(s->w2, r->w2_base));
    Q_TRY(put_weight(s->w3, r->w3_base));
    Q_TRY(put_weight(s->lora_a, r->lora_a_base));
    Q_TRY(put_weight(s->lora_b, r->lora_b_base));
    Q_TRY(put_weight(s->b, r->b));
    Q_TRY(put_weight(s->b2, r->b2));
    if (s->w) {
        put_address(r->w_matrix, s->w->matrix_bytes);
        r->w_row = (int32_t)s->w->row_bytes;
        r->w_rows = s->w->rows;
        r->w_k = s->w->k;
        r->w_matrices = s->w->matrices;
    }
    if (s->w2) {
        put_address(r->w2_matrix, s->w2->matrix_bytes);
        r->w2_row = (int32_t)s->w2->row_bytes;
        r->w2_rows = s->w2->rows;
        r->w2_k = s->w2->k;
    }
    if (s->w3) {
        r->w3_row = (int32_t)s->w3->row_bytes;
        r->w3_k = s->w3->k;
    }
    if (s->lora_a) {
        r->lora_a_row = (int32_t)s->lora_a->row_bytes;
        r->lora_a_rows = s->lora_a->rows;
        r->lora_a_k = s->lora_a->k;
    }
    if (s->lora_b) {
        r->lora_b_row = (int32_t)s->lora_b->row_bytes;
        r->lora_b_k = s->lora_b->k;
    }
    if (s->b) {
        r->b_row = (int32_t)(s->b->matrix_bytes / sizeof(float));
        r->b_k = s->b->k;
    }
    if (s->b2) r->b2_row = (int32_t)(s->b2->matrix_bytes / sizeof(float));
    return LQ_OK;
}

static float or1(float x) { return x == 0 ? 1.0f : x; }

static void put_numbers(const q_program *p, const q_inst *s, q_vk_step *r) {
    r->kind = s->kind;
    r->add = s->add;
    r->renorm = s->renorm;
    r->eps = s->eps;
    r->scale = or1(s->scale);
    r->softcap = s->softcap;
    r->limit = s->limit;
    r->alpha = s->op == Q_OP_ATTN && s->alpha == 0 ? 8.0f : s->alpha;
    r->mscale = or1(s->mscale);
    r->lora_scale = s->lora_scale;
    r->window = s->window;
    r->sink_tokens = s->sink_tokens;
    r->rot = s->rot;
    r->n_expert = s->n_expert;
    r->n_used = s->n_used;
    r->n_groups = s->n_groups;
    r->n_groups_used = s->n_groups_used;
    r->taps = s->taps;
    r->state_floats = (int32_t)p->plan->segments[p->segment].state_floats;
    r->vocab = p->plan->vocab;
    r->out_columns = wants_out(s);
    r->gathers = s->out && (s->op == Q_OP_NORM || s->op == Q_OP_COPY);
}

/* What the numbers of a turn are multiplied with (kv_form.h). */
static float turned_by(const q_kv_form *f) { return f->turn ? (float)(1.0 / sqrt((double)f->turn)) : 1.0f; }

static void put_pages(const q_program *p, const q_inst *s, const q_buffer *kv, q_vk_step *r) {
    const q_kv_pool *pool = &p->plan->kv[s->kv_group];
    const int32_t keys = pool->heads * Q_KV_TOKENS * pool->k.bytes;
    put_address(r->kv, kv[s->kv_group].device + (uint64_t)s->kv_layer * pool->layer_bytes);
    r->kv_pool = s->kv_group;
    r->kv_page = (int32_t)pool->page_bytes;
    r->kv_v_at = pool->v.width ? keys : 0;
    r->kv_heads = pool->heads;
    r->kv_k_width = pool->k.width;
    r->kv_k_bytes = pool->k.bytes;
    r->kv_k_turn = pool->k.turn;
    r->kv_k_by = turned_by(&pool->k);
    r->kv_k_most = pool->k.most;
    r->kv_v_width = pool->v.width;
    r->kv_v_bytes = pool->v.bytes;
    r->kv_v_turn = q_kv_v_form(pool)->turn;
    r->kv_v_by = turned_by(q_kv_v_form(pool));
    r->kv_v_most = pool->v.most;
}

static lq_status put_record(const q_program *p, int32_t i, const q_buffer *kv, const q_buffer *state, q_vk_step *r) {
    const q_inst *s = step_of(p, i);
    memset(r, 0, sizeof *r);
    put_views(p, s, r);
    Q_TRY(put_weights(s, r));
    put_numbers(p, s, r);
    if (has_pages(s)) put_pages(p, s, kv, r);
    if (has_state(s)) {
        if (!state) return q_fail(LQ_E_INTERNAL, "step %d has a recurrent state, which is not there", p->first + i);
        put_address(r->state, state->device + (uint64_t)s->state * sizeof(float));
    }
    if (s->freqs) put_address(r->freqs, p->device.address + p->freqs[i]);
    put_address(r->logits, p->host.address + p->map.host_logits);
    put_address(r->sampled, p->host.address + p->map.host_sampled);
    put_address(r->scratch, p->device.address + p->scratch[i]);
    return LQ_OK;
}

/* Records and frequencies go up by way of staging, many at a time. */
static lq_status upload_records(q_program *p, const q_buffer *kv, const q_buffer *state) {
    enum { RECORD = (sizeof(q_vk_step) + Q_ALIGN - 1) / Q_ALIGN * Q_ALIGN, MANY = 16 };
    uint8_t batch[MANY * RECORD];
    memset(batch, 0, sizeof batch);
    for (int32_t from = 0; from < steps_of(p); from += MANY) {
        const int32_t n = Q_MIN(steps_of(p) - from, (int32_t)MANY);
        for (int32_t i = 0; i < n; i++) {
            q_vk_step r;
            Q_TRY(put_record(p, from + i, kv, state, &r));
            memcpy(batch + i * RECORD, &r, sizeof r);
        }
        Q_TRY(q_vk_upload(p->dev, p->device.buffer, p->map.records + (uint64_t)from * RECORD, batch,
                          (uint64_t)n * RECORD));
    }
    for (int32_t i = 0; i < steps_of(p); i++) {
        const q_inst *s = step_of(p, i);
        bool again = !s->freqs || s->rot < 2;
        for (int32_t j = 0; j < i && !again; j++) again = step_of(p, j)->freqs && p->freqs[j] == p->freqs[i];
        if (!again)
            Q_TRY(q_vk_upload(p->dev, p->device.buffer, p->freqs[i], s->freqs, freqs_bytes(s)));
    }
    return LQ_OK;
}

/* ------------------------------------------------------------------------------------------------------ commands */

static lq_status begin(const q_program *p, VkCommandBuffer c) {
    const VkCommandBufferBeginInfo info = {.sType = VK_STRUCTURE_TYPE_COMMAND_BUFFER_BEGIN_INFO};
    Q_TRY(q_vk_result(p->dev, p->dev->vk.BeginCommandBuffer(c, &info), "BeginCommandBuffer"));
    q_vk_barrier(p->dev, c, false);
    return LQ_OK;
}

static lq_status end(const q_program *p, VkCommandBuffer c) {
    return q_vk_result(p->dev, p->dev->vk.EndCommandBuffer(c), "EndCommandBuffer");
}

/* Commands that copy between the block of both and the device's own. */
static lq_status record_copy(const q_program *p, VkCommandBuffer c, bool up, uint64_t from, uint64_t to, uint64_t n) {
    const VkBufferCopy region = {.srcOffset = from, .dstOffset = to, .size = n};
    const VkBuffer host = p->host.buffer, device = p->device.buffer;
    Q_TRY(begin(p, c));
    if (n) p->dev->vk.CmdCopyBuffer(c, up ? host : device, up ? device : host, 1, &region);
    if (!up) q_vk_barrier(p->dev, c, true);
    return end(p, c);
}

static lq_status record_pass(q_program *p, VkCommandBuffer c, int32_t i, const q_vk_pass *pass) {
    q_device *dev = p->dev;
    q_vk_push push;
    VkPipeline pipeline;
    for (int d = 0; d < 3; d++)
        if (pass->groups[d] == 0 || pass->groups[d] > dev->most_groups[d])
            return q_fail(LQ_E_INTERNAL, "step %d (%s) wants %u workgroups", p->first + i,
                          q_ops[step_of(p, i)->op].name, pass->groups[d]);
    Q_TRY(q_vk_pipeline_take(dev, pass, &p->pipelines[p->n_pipelines], &pipeline));
    p->n_pipelines++;
    put_address(push.step, p->device.address + p->map.records +
                               (uint64_t)i * q_round_up(sizeof(q_vk_step), Q_ALIGN));
    put_address(push.params, p->device.address + p->map.params);
    dev->vk.CmdBindPipeline(c, VK_PIPELINE_BIND_POINT_COMPUTE, pipeline);
    dev->vk.CmdPushConstants(c, dev->layout, VK_SHADER_STAGE_COMPUTE_BIT, 0, sizeof push, &push);
    dev->vk.CmdDispatch(c, pass->groups[0], pass->groups[1], pass->groups[2]);
    return LQ_OK;
}

/* Steps [from, to). Between two that are not of one group, and between two passes of one, stands a barrier. */
static lq_status record_steps(q_program *p, VkCommandBuffer c, int32_t columns, int32_t from, int32_t to) {
    Q_TRY(begin(p, c));
    for (int32_t i = from; i < to; i++) {
        q_vk_pass pass[Q_VK_PASSES];
        const int32_t n = q_vk_passes(p->plan, step_of(p, i), columns, pass);
        for (int32_t k = 0; k < n; k++) {
            if (k > 0 || (i > from && !joins(p, i))) q_vk_barrier(p->dev, c, false);
            Q_TRY(record_pass(p, c, i, &pass[k]));
        }
    }
    q_vk_barrier(p->dev, c, true);
    return end(p, c);
}

static lq_status record_bucket(q_program *p, q_vk_bucket *b) {
    const uint64_t rows =
        p->plan->n_slots > 1 ? (uint64_t)b->columns * (uint64_t)p->plan->slot_width[1] * sizeof(float) : 0;
    const uint64_t slot = rows ? p->slots[1] : 0;
    VkCommandBuffer *c = p->commands + b->first;
    Q_TRY(record_copy(p, *c++, true, p->map.host_rows, slot, rows));
    Q_TRY(record_copy(p, *c++, true, p->map.host_params, p->map.params, (uint64_t)b->map.words * 4));
    for (int32_t i = 0, to; i < steps_of(p); i = to) {
        to = part_end(p, b->columns, i);
        Q_TRY(record_steps(p, *c++, b->columns, i, to));
    }
    return record_copy(p, *c, false, slot, p->map.host_rows, rows);
}

static lq_status record_all(q_program *p) {
    q_device *dev = p->dev;
    const VkCommandPoolCreateInfo pool = {.sType = VK_STRUCTURE_TYPE_COMMAND_POOL_CREATE_INFO,
                                          .queueFamilyIndex = dev->family};
    const VkFenceCreateInfo fence = {.sType = VK_STRUCTURE_TYPE_FENCE_CREATE_INFO};
    VkCommandBufferAllocateInfo info = {.sType = VK_STRUCTURE_TYPE_COMMAND_BUFFER_ALLOCATE_INFO,
                                        .level = VK_COMMAND_BUFFER_LEVEL_PRIMARY};
    uint32_t n = 0;
    for (uint32_t i = 0; i < p->n_buckets; i++) {
        p->buckets[i].first = n;
        p->buckets[i].n = parts_of(p, p->buckets[i].columns) + 3;
        n += p->buckets[i].n;
    }
    for (int i = 0; i < 2; i++)
        Q_TRY(q_vk_result(dev, dev->vk.CreateFence(dev->handle, &fence, NULL, &p->fence[i]), "CreateFence"));
    Q_TRY(q_vk_result(dev, dev->vk.CreateCommandPool(dev->handle, &pool, NULL, &p->pool), "CreateCommandPool"));
    info.commandPool = p->pool;
    info.commandBufferCount = n;
    Q_TRY(q_vk_result(dev, dev->vk.AllocateCommandBuffers(dev->handle, &info, p->commands), "AllocateCommandBuffers"));
    for (uint32_t i = 0; i < p->n_buckets; i++) Q_TRY(record_bucket(p, &p->buckets[i]));
    return LQ_OK;
}

/* ------------------------------------------------------------------------------------------------ compile, release */

static void name_kernels(q_program *p) {
    for (int32_t i = 0; i < steps_of(p); i++) {
        const q_inst *s = step_of(p, i);
        q_vk_pass pass[Q_VK_PASSES];
        const bool some = q_vk_passes(p->plan, s, p->plan->columns, pass) > 0;
        const char *shader = some ? q_vk_shaders[pass[0].shader].name : "nothing";
        char *text = p->names[i].text;
        if (s->w) snprintf(text, sizeof p->names[i].text, "%s_%s__vulkan", shader, s->w->format->name);
        else snprintf(text, sizeof p->names[i].text, "%s__vulkan", shader);
    }
}

const char *q_vk_kernel_name(const q_program *p, int32_t i) {
    return i < p->first || i >= p->last ? "" : p->names[i - p->first].text;
}

static lq_status fill_program(q_program *p, const q_buffer *kv, const q_buffer *state) {
    Q_TRY(q_vk_memory_open(p->dev, Q_VK_LOCAL, p->map.device_bytes, &p->device));
    Q_TRY(q_vk_memory_open(p->dev, Q_VK_HOST, p->map.host_bytes, &p->host));
    memset(p->host.host, 0, (size_t)p->map.host_bytes);
    Q_TRY(upload_records(p, kv, state));
    Q_TRY(record_all(p));
    name_kernels(p);
    return q_vk_flush(p->dev);
}

lq_status q_vk_compile(q_device *dev, const q_plan *plan, int32_t segment, const q_buffer *kv, const q_buffer *state,
                       uint32_t threads, q_program **out) {
    q_program *p;
    uint64_t bytes;
    Q_UNUSED(threads);
    Q_TRY(make_program(dev, plan, segment, &p, &bytes));
    const lq_status s = fill_program(p, kv, state);
    if (s != LQ_OK) {
        q_vk_release(p);
        return s;
    }
    *out = p;
    return LQ_OK;
}

void q_vk_release(q_program *p) {
    if (!p) return;
    q_device *dev = p->dev;
    q_vk_settle_staging(dev); /* its records may still be on their way */
    for (int i = 0; i < 2; i++)
        if (p->busy[i]) q_vk_settle(dev, p->fence[i]);
    for (int i = 0; i < 2; i++)
        if (p->fence[i]) dev->vk.DestroyFence(dev->handle, p->fence[i], NULL);
    if (p->pool) dev->vk.DestroyCommandPool(dev->handle, p->pool, NULL);
    for (uint32_t i = 0; i < p->n_pipelines; i++) q_vk_pipeline_give(dev, p->pipelines[i]);
    q_vk_memory_close(dev, &p->host);
    q_vk_memory_close(dev, &p->device);
    q_delete(dev->alloc, p);
}
