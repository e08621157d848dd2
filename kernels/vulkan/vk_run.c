/* vk_run.c: runs a compiled segment: one upload, the recorded commands, one download.
 *
 * The parameter block is written where both reach it and copied by the first commands; logits, sampled tokens and
 * hidden rows come back through the same block. Batches of more than a few columns are handed to the device layer by
 * layer, so that a cancellation is obeyed: two ahead where two take less than a tenth of a second, by the latest such
 * batch, else one. Allocates nothing. Layer L2. */
#include "../ref/ref.h"
#include "vulkan.h"

static bool cancel_seen(const q_batch *b) { return b->cancel && __atomic_load_n(b->cancel, __ATOMIC_RELAXED) != 0; }

static lq_status check_batch(const q_program *p, const q_batch *b) {
    const q_plan *plan = p->plan;
    if (b->n < 1 || b->n > plan->columns || b->n_out < 0 || b->n_out > plan->outs || b->n_out > b->n)
        return q_fail(LQ_E_INTERNAL, "a batch of %d columns, %d wanted, for a plan of %d and %d", b->n, b->n_out,
                      plan->columns, plan->outs);
    if (b->n_seqs < 1 || b->n_seqs > plan->seqs)
        return q_fail(LQ_E_INTERNAL, "a batch of %d sequences for a plan of %d", b->n_seqs, plan->seqs);
    if (!b->x && (!b->ids || p->first > 0))
        return q_fail(LQ_E_INTERNAL, "a batch for the steps from %d on brings no hidden rows", p->first);
    if ((b->x || b->y) && plan->n_slots < 2)
        return q_fail(LQ_E_INTERNAL, "a batch of hidden rows for a plan without slots");
    if (b->tap) return q_fail(LQ_E_UNSUPPORTED, "the inputs of products are seen on the CPU alone");
    return LQ_OK;
}

static const q_vk_bucket *bucket_for(const q_program *p, int32_t n) {
    uint32_t i = 0;
    while (p->buckets[i].columns < n) i++;
    return &p->buckets[i];
}

/* ----------------------------------------------------------------------------------------------------- parameters */

/* The page tables of a sequence up to a position, pool by pool. */
static lq_status put_pages(const q_program *p, int32_t *block, const q_vk_params *head, int32_t seq, int32_t pos) {
    const q_batch *b = p->batch;
    const int32_t used = pos / Q_KV_TOKENS + 1;
    if (seq < 0 || seq >= b->n_seqs || pos < 0 || (p->plan->n_kv > 0 && used > head->page_stride))
        return q_fail(LQ_E_INTERNAL, "position %d of sequence %d lies outside a plan for %d", pos, seq,
                      p->plan->context);
    for (int32_t k = 0; k < p->plan->n_kv; k++) {
        if (p->plan->kv[k].segment != p->segment) continue;
        const uint64_t at = (uint64_t)head->pages_at + ((uint64_t)seq * (uint64_t)head->pools + (uint64_t)k) *
                                                           (uint64_t)head->page_stride;
        memcpy(block + at, b->seqs[seq].pages[k], (size_t)used * sizeof(uint32_t));
    }
    return LQ_OK;
}

static void put_sampler(q_program *p, int32_t *block, q_vk_params *head) {
    const lq_sampler *s = p->batch->sampler;
    p->refused = false;
    if (!s || !p->has_sample) return;
    p->refused = !(s->temperature >= 0 && s->temperature <= 3.4e38f && s->top_p >= 0 && s->top_p <= 1 &&
                   s->min_p >= 0 && s->min_p <= 1) || !q_sampler_is_plain(s);
    if (p->refused) return;
    head->sampling = 1;
    head->temperature = s->temperature;
    head->top_k = s->top_k > 0 ? (int32_t)Q_MIN((uint64_t)s->top_k, (uint64_t)INT32_MAX) : 0;
    head->top_p = s->top_p;
    head->min_p = s->min_p;
    for (int32_t o = 0; o < p->batch->n_out && p->batch->draw; o++) {
        /* rounded down to float's 24 bits: never 1 */
        const float u = (float)(uint32_t)(q_ref_uniform(s->seed, p->batch->draw[o]) * 0x1p24) * 0x1p-24f;
        memcpy(block + head->u_at + o, &u, sizeof u);
    }
}

/* The parameter block of the batch; slot 1 is reached from it. */
static lq_status put_params(q_program *p, const q_vk_bucket *bucket) {
    const q_batch *b = p->batch;
    const q_plan *plan = p->plan;
    int32_t *block = (int32_t *)(void *)(p->host.host + p->map.host_params);
    const q_vk_block_map *m = &bucket->map;
    q_vk_params head = {.n = b->n, .n_out = b->n_out, .n_seqs = b->n_seqs, .ids_at = b->ids ? m->ids : 0,
                        .pos_at = m->pos, .seq_at = m->seq, .out_at = m->out, .state_at = m->state,
                        .freqs_at = m->freqs,
                        .pages_at = m->pages, .pools = plan->n_kv,
                        .page_stride = (plan->context + Q_KV_TOKENS - 1) / Q_KV_TOKENS, .u_at = m->u};
    if (plan->n_slots > 1) {
        head.x_at = (int32_t)((p->slots[1] - p->map.params) / sizeof(float));
        head.x_column = plan->slot_width[1];
    }
    const size_t n = (size_t)b->n * sizeof(int32_t);
    if (b->ids) memcpy(block + m->ids, b->ids, n);
    memcpy(block + m->pos, b->pos, n);
    memcpy(block + m->seq, b->seq, n);
    if (b->n_out) memcpy(block + m->out, b->out, (size_t)b->n_out * sizeof(int32_t));
    for (int32_t i = 0; i < b->n_seqs; i++) {
        memcpy(block + m->state + i, &b->seqs[i].state, sizeof(int32_t));
        block[m->freqs + i] = plan->freq_tables > 1 ? (int32_t)b->seqs[i].freqs : 0;
    }
    for (int32_t c = 0; c < b->n; c++)
        if (c + 1 == b->n || b->seq[c + 1] != b->seq[c]) Q_TRY(put_pages(p, block, &head, b->seq[c], b->pos[c]));
    put_sampler(p, block, &head);
    memcpy(block, &head, sizeof head);
    p->traffic.bytes += (uint64_t)m->words * 4;
    return LQ_OK;
}

/* Rows of slot 1 come in or go out. */
static void border(q_program *p, const float *from, float *to) {
    uint8_t *rows = p->host.host + p->map.host_rows;
    const uint64_t bytes = (uint64_t)p->batch->n * (uint64_t)p->plan->slot_width[1] * sizeof(float);
    const double begin = q_clock();
    if (from) memcpy(rows, from, (size_t)bytes);
    else memcpy(to, rows, (size_t)bytes);
    p->traffic.border_seconds += q_clock() - begin;
    p->traffic.border_bytes += bytes;
    p->traffic.bytes += bytes;
}

/* --------------------------------------------------------------------------------------------------------- running */

static lq_status finish(q_program *p, int i) {
    if (!p->busy[i]) return LQ_OK;
    Q_TRY(q_vk_wait(p->dev, p->fence[i]));
    p->busy[i] = false;
    return LQ_OK;
}

static lq_status finish_all(q_program *p) {
    const lq_status one = finish(p, 0), two = finish(p, 1);
    return one != LQ_OK ? one : two;
}

static lq_status submit(q_program *p, int i, uint32_t from, uint32_t to) {
    Q_TRY(q_vk_submit(p->dev, p->commands + from, to - from, p->fence[i]));
    p->busy[i] = true;
    return LQ_OK;
}

/* Commands [from, to), of which those of a layer at a time when somebody may cancel. */
static lq_status submit_all(q_program *p, const q_vk_bucket *b) {
    uint32_t from = b->first + (p->batch->x ? 0 : 1);
    const uint32_t steps = b->first + 2, end = b->first + b->n - 1, to = end + (p->batch->y ? 1 : 0);
    p->layers = end - steps;
    if (!p->batch->cancel || p->layers < 2) return submit(p, 0, from, to);
    for (uint32_t i = steps; i < end; i++) {
        const int turn = (int)((i - steps) & 1);
        Q_TRY(finish(p, turn));
        if (!p->brisk) Q_TRY(finish(p, turn ^ 1));
        if (cancel_seen(p->batch)) return q_fail(LQ_E_CANCELLED, "cancelled between two layers");
        const uint32_t next = i + 1 == end ? to : i + 1;
        Q_TRY(submit(p, turn, from, next));
        from = next;
    }
    return LQ_OK;
}

static lq_status start(q_program *p) {
    const q_vk_bucket *bucket = bucket_for(p, p->batch->n);
    if (p->batch->x) border(p, p->batch->x, NULL);
    if (p->has_sample && !p->has_head && p->batch->logits)
        memcpy(p->host.host + p->map.host_logits, p->batch->logits,
               (size_t)p->batch->n_out * (size_t)p->plan->vocab * sizeof(float));
    Q_TRY(put_params(p, bucket));
    return submit_all(p, bucket);
}

lq_status q_vk_run(q_program *p, const q_batch *batch) {
    Q_TRY(q_vk_alive(p->dev));
    Q_TRY(check_batch(p, batch));
    if (cancel_seen(batch)) return q_fail(LQ_E_CANCELLED, "cancelled before the first layer");
    Q_TRY(finish_all(p)); /* of a run whose wait failed */
    p->batch = batch;
    p->began = q_clock();
    const lq_status s = start(p);
    if (s == LQ_OK) return LQ_OK;
    p->batch = NULL;
    for (int i = 0; i < 2; i++) {
        if (p->busy[i]) q_vk_settle(p->dev, p->fence[i]);
        p->busy[i] = false;
    }
    return s;
}

static void take_results(q_program *p) {
    const q_batch *b = p->batch;
    const size_t logits = (size_t)b->n_out * (size_t)p->plan->vocab * sizeof(float);
    const size_t sampled = (size_t)b->n_out * sizeof(int32_t);
    if (b->y) border(p, NULL, b->y);
    if (p->has_head && b->logits && logits) {
        memcpy(b->logits, p->host.host + p->map.host_logits, logits);
        p->traffic.bytes += logits;
    }
    if (!p->has_sample || !b->sampler || !b->sampled || !sampled) return;
    if (p->refused) memset(b->sampled, 0xFF, sampled); /* -1 */
    else memcpy(b->sampled, p->host.host + p->map.host_sampled, sampled);
    p->traffic.bytes += sampled;
}

lq_status q_vk_wait_program(q_program *p) {
    if (!p->batch) return LQ_OK;
    Q_TRY(finish_all(p));
    if (p->layers > 1) p->brisk = q_clock() - p->began < 0.05 * p->layers;
    take_results(p);
    p->batch = NULL;
    return LQ_OK;
}

q_traffic q_vk_traffic(const q_program *p) { return p->traffic; }
