/* session.c: one timeline over a model: KV pages, batches, logits, statistics.
 *
 * All memory is allocated at open and measured beforehand to the byte; decoding allocates nothing. One sequence so far;
 * its pages are handed out in order. Layer L3. */
#include "engine.h"

#include <math.h>
#include <stdio.h>

enum { DEFAULT_BATCH = 512, MAX_BATCH = 65536, MAX_CONTEXT = 1 << 28, MAX_THREADS = 1024 };
enum { SHORT_PASS = 8 }; /* tokens of a pass that memory bounds, as it does a single token's */

lq_status q_session_shape_of(const lq_model *model, const lq_session_options *options, q_session_shape *out) {
    lq_session_options o;
    Q_TRY(q_struct_in(options, &o, sizeof o, "lq_session_options"));
    const uint32_t trained = (uint32_t)model->binding->hp.v[Q_HP_CONTEXT];
    q_session_shape s = {.context = o.context ? o.context : trained, .batch = o.batch ? o.batch : DEFAULT_BATCH,
                         .max_logits = o.max_logits ? o.max_logits : 1,
                         .threads = o.threads ? o.threads : model->ctx->threads};
    s.threads_prefill = o.threads_prefill ? o.threads_prefill : o.threads ? o.threads : model->ctx->threads_prefill;
    if (s.context > trained)
        return q_fail(LQ_E_CONTEXT, "a context of %u tokens was asked for; the model was trained for %u", s.context, trained);
    const uint32_t threads = Q_MAX(s.threads, s.threads_prefill);
    if (s.context > MAX_CONTEXT || s.batch > MAX_BATCH || threads > MAX_THREADS)
        return q_fail(LQ_E_ARG, "context %u, batch %u or threads %u is out of range (at most %d, %d, %d)", s.context,
                      s.batch, threads, MAX_CONTEXT, MAX_BATCH, MAX_THREADS);
    s.batch = Q_MIN(s.batch, s.context);
    if (s.max_logits > s.context)
        return q_fail(LQ_E_ARG, "max_logits %u exceeds the context %u", s.max_logits, s.context);
    if (o.activations && strcmp(o.activations, "f32") != 0 && strcmp(o.activations, "auto") != 0)
        return q_fail(LQ_E_ARG, "activations '%s' is not one of: auto, f32", o.activations);
    s.f32_activations = o.activations && strcmp(o.activations, "f32") == 0;
    *out = s;
    return LQ_OK;
}

/* Threads that a session holds. */
static uint32_t most_threads(const q_session_shape *s) { return Q_MAX(s->threads, s->threads_prefill); }

static const q_place *place_of(const lq_model *m, const q_segment *segment) { return &m->places[segment->device]; }
static const q_place *place_of_pool(const lq_model *m, const q_plan *p, int32_t pool) {
    return place_of(m, &p->segments[p->kv[pool].segment]);
}
static uint64_t state_bytes(const q_plan *p, const q_segment *segment) {
    return (uint64_t)p->seqs * segment->state_floats * sizeof(float);
}

/* Bytes a session holds besides KV pages, state and programs: arrays sized by the shape. */
static uint64_t border_bytes(const q_plan *p, const q_session_shape *s) {
    return p->n_segments > 1 ? (uint64_t)s->batch * (uint64_t)p->slot_width[1] * sizeof(float) : 0;
}
static uint64_t array_bytes(const q_plan *p, const q_session_shape *s) {
    const uint64_t pages = (s->context + Q_KV_TOKENS - 1) / Q_KV_TOKENS;
    return (uint64_t)s->max_logits * (uint64_t)p->vocab * sizeof(float) + (uint64_t)s->batch * 3 * sizeof(int32_t) +
           (uint64_t)p->n_kv * pages * sizeof(uint32_t) + border_bytes(p, s) + q_ref_sample_bytes((int64_t)p->vocab);
}

/* The arena holds the plan and nothing else yet. */
static lq_status measure(const lq_model *model, const q_plan *plan, const q_session_shape *shape, const q_arena *arena,
                         q_session_need *need) {
    memset(need, 0, sizeof *need);
    need->rest[0] = arena->used + array_bytes(plan, shape);
    for (int32_t i = 0; i < plan->n_kv; i++) {
        const q_place *p = place_of_pool(model, plan, i);
        need->kv[p - model->places] += p->backend->alloc_bytes(p->device, plan->kv[i].page_bytes * plan->kv[i].pages);
    }
    for (int32_t i = 0; i < plan->n_segments; i++) {
        const q_segment *segment = &plan->segments[i];
        const q_place *p = place_of(model, segment);
        q_need program;
        Q_TRY(p->backend->measure(p->device, plan, i, most_threads(shape), &program));
        need->rest[0] += program.host;
        need->locked += program.locked;
        need->rest[segment->device] += program.device;
        if (segment->state_floats)
            need->rest[segment->device] += p->backend->alloc_bytes(p->device, state_bytes(plan, segment));
        if (segment->state_floats && segment->device == 0 && model->ctx->placing.lock)
            need->locked += p->backend->alloc_bytes(p->device, state_bytes(plan, segment));
    }
    if (model->ctx->placing.lock) need->locked += need->kv[0];
    return LQ_OK;
}

lq_status q_session_measure(const lq_model *model, const q_session_shape *shape, q_session_need *need) {
    q_arena arena = {.alloc = model->alloc};
    q_plan *plan;
    lq_status s = q_plan_build(model, shape, &arena, &plan);
    if (s == LQ_OK) s = measure(model, plan, shape, &arena, need);
    q_arena_free(&arena);
    return s;
}

/* Refuse before the first allocation what the processor's memory or the device's cannot hold. */
static lq_status check_memory(const lq_session *s) {
    const lq_model *m = s->model;
    char what[80];
    snprintf(what, sizeof what, "a session with context %u and batch %u", s->shape.context, s->shape.batch);
    const uint64_t here = s->need.kv[0] + s->need.rest[0];
    Q_TRY(q_memory_check(what, here, q_pool_stacks(most_threads(&s->shape))));
    if (m->packing) {
        const uint64_t left = q_memory_physical("");
        q_pack_fits(s->model, left - Q_MIN(here, left));
    }
    if (m->n_places < 2) return LQ_OK;
    const uint64_t have = q_place_memory(&m->places[1]), need = s->need.kv[1] + s->need.rest[1];
    if (need <= have) return LQ_OK;
    return q_fail(LQ_E_NOMEM,
                  "%s needs %llu bytes (%.1f MiB) of %s beside the weights, which has %llu (%.1f MiB): a shorter context, a "
                  "smaller batch or fewer layers there need less",
                  what, (unsigned long long)need, (double)need / 1048576.0, m->places[1].name, (unsigned long long)have,
                  (double)have / 1048576.0);
}

static lq_status open_device_parts(lq_session *s) {
    const q_plan *p = s->plan;
    for (int32_t i = 0; i < p->n_kv; i++) {
        const q_place *at = place_of_pool(s->model, p, i);
        Q_TRY(at->backend->alloc(at->device, p->kv[i].page_bytes * p->kv[i].pages, &s->kv[i]));
    }
    for (int32_t i = 0; i < p->n_segments; i++) {
        const q_segment *segment = &p->segments[i];
        const q_place *at = place_of(s->model, segment);
        const bool has_state = segment->state_floats != 0;
        if (has_state) Q_TRY(at->backend->alloc(at->device, state_bytes(p, segment), &s->states[i]));
        Q_TRY(at->backend->compile(at->device, p, i, s->kv, has_state ? &s->states[i] : NULL, most_threads(&s->shape),
                                   &s->programs[i]));
    }
    return LQ_OK;
}

static lq_status open_parts(lq_session *s) {
    Q_TRY(q_plan_build(s->model, &s->shape, &s->arena, &s->plan));
    const q_plan *p = s->plan;
    Q_TRY(measure(s->model, p, &s->shape, &s->arena, &s->need));
    Q_TRY(check_memory(s));
    s->kv = (q_buffer *)q_arena_new(&s->arena, (uint64_t)p->n_kv, sizeof *s->kv);
    s->states = (q_buffer *)q_arena_new(&s->arena, (uint64_t)p->n_segments, sizeof *s->states);
    s->programs = (q_program **)q_arena_new(&s->arena, (uint64_t)p->n_segments, sizeof *s->programs);
    s->pages = (uint32_t **)q_arena_new(&s->arena, (uint64_t)p->n_kv, sizeof *s->pages);
    if (!s->kv || !s->states || !s->programs || !s->pages) return LQ_E_NOMEM;
    const uint64_t n_pages = (s->shape.context + Q_KV_TOKENS - 1) / Q_KV_TOKENS;
    for (int32_t i = 0; i < p->n_kv; i++) {
        s->pages[i] = (uint32_t *)q_arena_new(&s->arena, n_pages, sizeof **s->pages);
        if (!s->pages[i]) return LQ_E_NOMEM;
        for (uint32_t j = 0; j < n_pages; j++) s->pages[i][j] = j;
    }
    s->logits = (float *)q_new(s->alloc, (uint64_t)s->shape.max_logits * (uint64_t)p->vocab, sizeof *s->logits);
    s->pos = (int32_t *)q_arena_new(&s->arena, s->shape.batch, sizeof *s->pos);
    s->seq = (int32_t *)q_arena_new(&s->arena, s->shape.batch, sizeof *s->seq);
    s->out = (int32_t *)q_arena_new(&s->arena, s->shape.batch, sizeof *s->out);
    s->sample_scratch = q_new_raw(s->alloc, q_ref_sample_bytes((int64_t)p->vocab), 1);
    if (!s->logits || !s->pos || !s->seq || !s->out || !s->sample_scratch) return LQ_E_NOMEM;
    if (border_bytes(p, &s->shape) && !(s->border = (float *)q_new_raw(s->alloc, border_bytes(p, &s->shape), 1)))
        return LQ_E_NOMEM;
    return open_device_parts(s);
}

lq_status q_session_open(lq_model *model, const lq_session_options *options, lq_session **out) {
    q_session_shape shape;
    if (model->plan_only) return q_fail(LQ_E_ARG, "the model was opened with plan_only: its weights are not on the device");
    Q_TRY(q_session_shape_of(model, options, &shape));
    lq_session *s = Q_NEW(model->alloc, lq_session, 1);
    if (!s) return LQ_E_NOMEM;
    s->model = model;
    s->alloc = model->alloc;
    s->arena.alloc = model->alloc;
    s->shape = shape;
    const lq_status st = open_parts(s);
    if (st != LQ_OK) {
        q_session_close(s);
        return st;
    }
    *out = s;
    return LQ_OK;
}

void q_session_close(lq_session *s) {
    if (!s) return;
    const q_plan *p = s->plan;
    for (int32_t i = 0; s->programs && i < p->n_segments; i++)
        if (s->programs[i]) place_of(s->model, &p->segments[i])->backend->release(s->programs[i]);
    for (int32_t i = 0; s->states && i < p->n_segments; i++) {
        const q_place *at = place_of(s->model, &p->segments[i]);
        if (s->states[i].bytes) at->backend->free(at->device, &s->states[i]);
    }
    for (int32_t i = 0; s->kv && i < p->n_kv; i++) {
        const q_place *at = place_of_pool(s->model, p, i);
        if (s->kv[i].bytes) at->backend->free(at->device, &s->kv[i]);
    }
    q_delete(s->alloc, s->logits);
    q_delete(s->alloc, s->border);
    q_delete(s->alloc, s->sample_scratch);
    q_arena_free(&s->arena);
    q_delete(s->alloc, s);
}

bool q_session_recurrent(const lq_session *s) {
    for (int32_t i = 0; i < s->plan->n_segments; i++)
        if (s->plan->segments[i].state_floats) return true;
    return false;
}

/* ------------------------------------------------------------------------------------------- decode */

/* Weight bytes, and the KV rows of `length` positions in every pool. */
static uint64_t bytes_read(const lq_session *s, uint32_t length) {
    uint64_t n = s->model->bytes_per_token;
    for (int32_t i = 0; i < s->plan->n_kv; i++) {
        const q_kv_pool *p = &s->plan->kv[i];
        const uint64_t tokens = p->window ? Q_MIN(length, (uint32_t)p->window) : length;
        n += tokens * (p->page_bytes / Q_KV_TOKENS);
    }
    return n;
}

/* One segment after the other; hidden rows pass from each to the next through `border`. */
static lq_status run_segments(lq_session *s, q_batch *b) {
    const int32_t n = s->plan->n_segments;
    q_traffic sum = {0};
    for (int32_t i = 0; i < n; i++) {
        const q_backend *be = place_of(s->model, &s->plan->segments[i])->backend;
        b->x = i > 0 ? s->border : NULL;
        b->y = i + 1 < n ? s->border : NULL;
        Q_TRY(be->run(s->programs[i], b));
        Q_TRY(be->wait(s->programs[i]));
        const q_traffic t = be->traffic(s->programs[i]);
        sum.border_bytes += t.border_bytes;
        sum.border_seconds += t.border_seconds;
        sum.barriers += t.barriers;
    }
    s->stats.border_bytes = sum.border_bytes;
    s->stats.border_seconds = sum.border_seconds;
    if (b->n == 1) s->stats.decode_barriers += sum.barriers - s->barriers;
    s->barriers = sum.barriers;
    return LQ_OK;
}

/* One pass: n tokens from position s->length on; logits for those from index `from` on. */
static lq_status pass(lq_session *s, const int32_t *ids, uint32_t n, uint32_t from) {
    for (uint32_t i = 0; i < n; i++) {
        s->pos[i] = (int32_t)(s->length + i);
        s->seq[i] = 0;
    }
    uint32_t n_out = 0;
    for (uint32_t i = from; i < n; i++) s->out[n_out++] = (int32_t)i;
    const q_seq_ref seq = {.pages = (const uint32_t *const *)s->pages};
    q_batch b = {.n = (int32_t)n, .ids = ids, .pos = s->pos, .seq = s->seq, .seqs = &seq, .n_seqs = 1,
                 .n_out = (int32_t)n_out, .out = s->out,
                 .logits = s->logits + (uint64_t)s->n_logits * (uint64_t)s->plan->vocab,
                 .threads = n > SHORT_PASS ? s->shape.threads_prefill : s->shape.threads,
                 .cancel = (const int *)(const void *)&s->cancel, .tap = s->tap, .tap_user = s->tap_user};
    const double begin = q_clock();
    q_pack_before(s, n);
    Q_TRY(run_segments(s, &b));
    q_pack_after(s);
    const double seconds = q_clock() - begin;
    s->length += n;
    s->n_logits += n_out;
    if (n == 1) {
        s->stats.decode_tokens++;
        s->stats.decode_seconds += seconds;
        s->stats.decode_bytes += bytes_read(s, s->length);
    } else {
        s->stats.prefill_tokens += n;
        s->stats.prefill_seconds += seconds;
    }
    return LQ_OK;
}

static lq_status check_logits(const lq_session *s) {
    const uint64_t n = (uint64_t)s->n_logits * (uint64_t)s->plan->vocab;
    for (uint64_t i = 0; i < n; i++)
        if (!isfinite(s->logits[i]))
            return q_fail(LQ_E_NUMERIC, "the logits are not finite (row %llu, token %llu): the model's weights are damaged",
                          (unsigned long long)(i / (uint64_t)s->plan->vocab), (unsigned long long)(i % (uint64_t)s->plan->vocab));
    return LQ_OK;
}

lq_status q_session_decode(lq_session *s, const int32_t *ids, size_t count, size_t from) {
    if (count == 0 || !ids) return q_fail(LQ_E_ARG, "lq_decode: no tokens");
    if (from > count) return q_fail(LQ_E_ARG, "lq_decode: logits from token %zu of %zu", from, count);
    if (count - from > s->shape.max_logits)
        return q_fail(LQ_E_ARG, "lq_decode: %zu rows of logits were asked for, the session keeps %u (max_logits)",
                      count - from, s->shape.max_logits);
    if (count > s->shape.context - s->length)
        return q_fail(LQ_E_CONTEXT, "%zu tokens after %u exceed the context of %u", count, s->length, s->shape.context);
    for (size_t i = 0; i < count; i++)
        if (ids[i] < 0 || ids[i] >= s->plan->vocab)
            return q_fail(LQ_E_ARG, "lq_decode: token %zu is %d, outside the vocabulary of %d", i, ids[i], s->plan->vocab);
    s->n_logits = 0;
    lq_status st = LQ_OK;
    for (size_t done = 0; done < count && st == LQ_OK;) {
        const size_t n = Q_MIN(count - done, (size_t)s->shape.batch);
        const size_t skip = from > done ? Q_MIN(from - done, n) : 0;
        st = pass(s, ids + done, (uint32_t)n, (uint32_t)skip);
        done += n;
    }
    /* A request that came too late for this call waits for the next one: only the call that obeyed takes it away. */
    if (st == LQ_E_CANCELLED) atomic_store(&s->cancel, 0);
    if (st == LQ_OK) st = check_logits(s);
    if (st != LQ_OK) {
        s->n_logits = 0;
        return st;
    }
    if (s->n_logits) {
        const uint64_t row = (uint64_t)s->plan->vocab;
        s->stats.last_logits_hash = q_fnv32(s->logits + (s->n_logits - 1) * row, (size_t)row * sizeof(float));
    }
    return LQ_OK;
}

/* ------------------------------------------------------------------------------------------- sample */

lq_status q_session_sample(lq_session *s, const lq_sampler *sampler, int32_t *id) {
    if (s->n_logits == 0) return q_fail(LQ_E_ARG, "lq_sample: the last lq_decode kept no logits");
    lq_sampler o;
    Q_TRY(q_struct_in(sampler, &o, sizeof o, "lq_sampler"));
    const uint64_t row = (uint64_t)s->plan->vocab;
    return q_ref_sample_row(s->logits + (s->n_logits - 1) * row, (int64_t)row, &o, s->length, id, s->sample_scratch);
}

lq_status q_sample_logits(const q_alloc *a, const float *logits, size_t n, const lq_sampler *sampler, uint64_t position,
                          int32_t *id) {
    if (n == 0 || n > INT32_MAX) return q_fail(LQ_E_ARG, "lq_sample_logits: %zu logits", n);
    lq_sampler o;
    Q_TRY(q_struct_in(sampler, &o, sizeof o, "lq_sampler"));
    void *scratch = q_new_raw(a, q_ref_sample_bytes((int64_t)n), 1);
    if (!scratch) return LQ_E_NOMEM;
    const lq_status s = q_ref_sample_row(logits, (int64_t)n, &o, position, id, scratch);
    q_delete(a, scratch);
    return s;
}
