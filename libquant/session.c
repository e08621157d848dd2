/* session.c: opening a session: its shape, what that takes, and its parts.
 *
 * All memory is allocated here and measured beforehand to the byte; decoding (decode.c) allocates nothing. Layer L3. */
#include "engine.h"

#include <stdio.h>

enum { DEFAULT_BATCH = 512, MAX_BATCH = 65536, MAX_CONTEXT = 1 << 28, MAX_THREADS = 1024, MAX_SEQS = 4096,
       DEFAULT_CHECKPOINTS = 4, MAX_CHECKPOINTS = 4096 };

static lq_status sequences_of(const lq_session_options *o, q_session_shape *s) {
    s->seqs = o->sequences ? o->sequences : 1;
    s->kv_tokens = o->kv_tokens;
    s->reuse = !o->no_reuse;
    s->checkpoints = !s->reuse ? 0 : o->checkpoints ? o->checkpoints : DEFAULT_CHECKPOINTS;
    if (s->seqs > MAX_SEQS || s->checkpoints > MAX_CHECKPOINTS || o->no_reuse > 1)
        return q_fail(LQ_E_ARG, "sequences %u, checkpoints %u or no_reuse %u is out of range (at most %d, %d, 1)",
                      s->seqs, s->checkpoints, o->no_reuse, MAX_SEQS, MAX_CHECKPOINTS);
    if (o->kv_tokens && o->kv_tokens < s->context)
        return q_fail(LQ_E_ARG, "kv_tokens %llu is less than the context of %u tokens: no sequence could be as long",
                      (unsigned long long)o->kv_tokens, s->context);
    if (q_kv_pool_pages(0, 0, s->seqs, s->context, 0, s->batch) > INT32_MAX / 2)
        return q_fail(LQ_E_ARG, "%u sequences of %u tokens have more than %d pages of keys and values", s->seqs,
                      s->context, INT32_MAX / 2);
    return LQ_OK;
}

static lq_status kind_of(const char *option, const char *name, const q_kv_kind **kind) {
    char names[80];
    *kind = q_kv_kind_find(name);
    return *kind ? LQ_OK : q_fail(LQ_E_ARG, "%s '%s' is not one of: %s", option, name, q_kv_kind_names(names, sizeof names));
}

static uint32_t trained_context(const lq_model *model) { return (uint32_t)model->binding->hp.v[Q_HP_CONTEXT]; }

lq_status q_session_shape_of(const lq_model *model, const lq_session_options *options, q_session_shape *out) {
    lq_session_options o;
    q_rope rope;
    Q_TRY(q_struct_in(options, &o, sizeof o, "lq_session_options"));
    Q_TRY(q_rope_choose(&model->binding->rope, &o, trained_context(model), &rope));
    const uint32_t usual = trained_context(model), longest = q_rope_longest(&rope, usual, o.rope_scaling != NULL);
    return q_budget_shape(model, &o, o.rope_scaling ? longest : usual, out);
}

static lq_status check_context(const lq_model *model, const lq_session_options *o, const q_session_shape *s) {
    const uint32_t trained = trained_context(model), longest = q_rope_longest(&s->rope, trained, o->rope_scaling != NULL);
    if (s->context <= longest) return LQ_OK;
    if (s->rope.kind != Q_ROPE_NONE && s->rope.original > 0)
        return q_fail(LQ_E_CONTEXT,
                      "a context of %u tokens was asked for; RoPE scaling '%s' by %g of the original %g tokens gives %u",
                      s->context, q_rope_name(s->rope.kind), s->rope.factor, s->rope.original, longest);
    return q_fail(LQ_E_CONTEXT,
                  "a context of %u tokens was asked for; the model was trained for %u (rope_scaling goes beyond)",
                  s->context, longest);
}

lq_status q_session_shape_with(const lq_model *model, const lq_session_options *o, uint32_t context,
                               q_session_shape *out) {
    q_session_shape s = {.context = context, .batch = o->batch ? o->batch : DEFAULT_BATCH,
                         .max_logits = o->max_logits ? o->max_logits : 1,
                         .threads = o->threads ? o->threads : model->ctx->threads};
    s.threads_prefill = o->threads_prefill ? o->threads_prefill : o->threads ? o->threads : model->ctx->threads_prefill;
    Q_TRY(q_rope_choose(&model->binding->rope, o, trained_context(model), &s.rope));
    Q_TRY(check_context(model, o, &s));
    const uint32_t threads = Q_MAX(s.threads, s.threads_prefill);
    if (s.context > MAX_CONTEXT || s.batch > MAX_BATCH || threads > MAX_THREADS)
        return q_fail(LQ_E_ARG, "context %u, batch %u or threads %u is out of range (at most %d, %d, %d)", s.context,
                      s.batch, threads, MAX_CONTEXT, MAX_BATCH, MAX_THREADS);
    Q_TRY(sequences_of(o, &s));
    Q_TRY(q_overflow_choose(model, o, &s));
    s.batch = (uint32_t)Q_MIN((uint64_t)s.batch, (uint64_t)s.context * s.seqs);
    if (s.max_logits > (uint64_t)s.context * s.seqs)
        return q_fail(LQ_E_ARG, "max_logits %u exceeds the context %u", s.max_logits, s.context);
    if (o->activations && strcmp(o->activations, "f32") != 0 && strcmp(o->activations, "auto") != 0)
        return q_fail(LQ_E_ARG, "activations '%s' is not one of: auto, f32", o->activations);
    s.f32_activations = o->activations && strcmp(o->activations, "f32") == 0;
    const char *usual = s.f32_activations ? "f32" : "f16";
    Q_TRY(kind_of("kv_k", o->kv_k ? o->kv_k : usual, &s.kv_k));
    Q_TRY(kind_of("kv_v", o->kv_v ? o->kv_v : o->kv_k ? o->kv_k : usual, &s.kv_v));
    Q_TRY(q_draft_shape(model, o, &s));
    Q_TRY(q_embed_shape(o, &s));
    s.embed = o->embed != 0;
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
    return (uint64_t)p->states * segment->state_floats * sizeof(float);
}

/* What the tokens of a step may make certain, with what was held back before. */
static uint64_t text_bytes(const lq_model *m, const q_session_shape *s) {
    return q_session_rows(s) * (uint64_t)q_text_longest(m->text) + (uint64_t)s->max_logits * Q_HELD;
}
static uint64_t sum_bytes(const q_plan *p, const q_session_shape *s) {
    return s->embed ? s->seqs * (uint64_t)p->slot_width[1] * sizeof(double) : 0;
}

/* Arrays of a pass and of a call, behind the plan in its arena. */
static lq_status new_arrays(lq_session *s) {
    const q_session_shape *shape = &s->shape;
    s->kv = (q_buffer *)q_arena_new(&s->arena, (uint64_t)s->plan->n_kv, sizeof *s->kv);
    s->states = (q_buffer *)q_arena_new(&s->arena, (uint64_t)s->plan->n_segments, sizeof *s->states);
    s->programs = (q_program **)q_arena_new(&s->arena, (uint64_t)s->plan->n_segments, sizeof *s->programs);
    s->ids = (int32_t *)q_arena_new(&s->arena, shape->batch, sizeof *s->ids);
    s->pos = (int32_t *)q_arena_new(&s->arena, shape->batch, sizeof *s->pos);
    s->seq = (int32_t *)q_arena_new(&s->arena, shape->batch, sizeof *s->seq);
    s->out = (int32_t *)q_arena_new(&s->arena, shape->batch, sizeof *s->out);
    s->refs = (q_seq_ref *)q_arena_new(&s->arena, shape->seqs, sizeof *s->refs);
    s->shares = (q_share *)q_arena_new(&s->arena, shape->seqs, sizeof *s->shares);
    s->of = (uint32_t *)q_arena_new(&s->arena, shape->seqs, sizeof *s->of);
    s->count = (uint32_t *)q_arena_new(&s->arena, shape->seqs, sizeof *s->count);
    s->cut = (uint32_t *)q_arena_new(&s->arena, shape->seqs, sizeof *s->cut);
    s->rows = (q_row *)q_arena_new(&s->arena, q_session_rows(shape), sizeof *s->rows);
    s->answers = (q_answer *)q_arena_new(&s->arena, shape->seqs, sizeof *s->answers);
    s->text = (char *)q_arena_new(&s->arena, text_bytes(s->model, shape), 1);
    s->items = (lq_item *)q_arena_new(&s->arena, shape->embed ? shape->seqs : 0, sizeof *s->items);
    s->sums = (double *)q_arena_new(&s->arena, sum_bytes(s->plan, shape), 1);
    const bool pass = s->kv && s->states && s->programs && s->ids && s->pos && s->seq && s->out && s->refs,
               call = s->shares && s->of && s->count && s->cut && s->rows && s->answers && s->text && s->items;
    return pass && call && s->sums ? LQ_OK : LQ_E_NOMEM;
}

/* Bytes of the blocks that new_blocks makes; 0 = it makes none. */
static uint64_t logits_bytes(const lq_session *s) {
    return q_session_rows(&s->shape) * (uint64_t)s->plan->vocab * sizeof(float);
}
static uint64_t border_bytes(const lq_session *s) {
    const uint64_t bytes = (uint64_t)s->shape.batch * (uint64_t)s->plan->slot_width[1] * sizeof(float);
    return s->plan->n_segments > 1 || s->shape.embed ? bytes : 0;
}
static uint64_t transfer_bytes(const lq_session *s) {
    for (int32_t i = 0; i < s->plan->n_segments; i++)
        if (!place_of(s->model, &s->plan->segments[i])->backend->host_memory) return Q_TRANSFER_BYTES;
    return 0;
}
static uint64_t block_bytes(uint64_t bytes) { return bytes ? q_new_bytes(bytes) : 0; }

static lq_status new_blocks(lq_session *s) {
    const q_plan *p = s->plan;
    const uint64_t logits = logits_bytes(s), border = border_bytes(s), transfer = transfer_bytes(s);
    s->kv_block = q_new(s->alloc, q_kv_bytes(p, s->shape.seqs), 1);
    s->sample_scratch = q_new_raw(s->alloc, q_sample_bytes(p->vocab, p->context), 1);
    if (!s->kv_block || !s->sample_scratch) return LQ_E_NOMEM;
    if (logits && !(s->logits = (float *)q_new(s->alloc, logits, 1))) return LQ_E_NOMEM;
    if (border && !(s->border = (float *)q_new_raw(s->alloc, border, 1))) return LQ_E_NOMEM;
    if (transfer && !(s->transfer = (uint8_t *)q_new_raw(s->alloc, transfer, 1))) return LQ_E_NOMEM;
    q_kv_init(&s->kv_book, p, s->shape.seqs, s->shape.reuse, s->kv_block);
    return LQ_OK;
}

/* What a session takes of the allocator besides KV pages, state, programs and a draft. All that will be in the arena
 * is there. */
static uint64_t own_bytes(const lq_session *s) {
    return q_new_bytes(sizeof *s) + q_arena_bytes(&s->arena) + q_new_bytes(q_kv_bytes(s->plan, s->shape.seqs)) +
           q_new_bytes(q_sample_bytes(s->plan->vocab, s->plan->context)) + block_bytes(logits_bytes(s)) +
           block_bytes(border_bytes(s)) + block_bytes(transfer_bytes(s));
}

/* A buffer of a place: what it takes there, and for the processor what its block takes beyond that. */
static uint64_t need_buffer(const lq_model *m, const q_place *p, uint64_t bytes, q_session_need *need) {
    const uint64_t takes = p->backend->alloc_bytes(p->device, bytes);
    if (p == &m->places[0]) need->rest[0] += q_placed_bytes(&m->ctx->placing, bytes) - takes;
    return takes;
}

/* The plan and the arrays are there, and nothing else yet. */
static lq_status measure(const lq_session *s, q_session_need *need) {
    const lq_model *model = s->model;
    const q_plan *plan = s->plan;
    memset(need, 0, sizeof *need);
    need->rest[0] = own_bytes(s);
    for (int32_t i = 0; i < plan->n_kv; i++) {
        const q_place *p = place_of_pool(model, plan, i);
        need->kv[p - model->places] += need_buffer(model, p, plan->kv[i].page_bytes * plan->kv[i].pages, need);
    }
    for (int32_t i = 0; i < plan->n_segments; i++) {
        const q_segment *segment = &plan->segments[i];
        const q_place *p = place_of(model, segment);
        q_need program;
        Q_TRY(p->backend->measure(p->device, plan, i, most_threads(&s->shape), &program));
        need->rest[0] += program.host;
        need->locked += program.locked;
        need->rest[segment->device] += program.device;
        if (segment->state_floats)
            need->rest[segment->device] += need_buffer(model, p, state_bytes(plan, segment), need);
        if (segment->state_floats && segment->device == 0 && model->ctx->placing.lock)
            need->locked += p->backend->alloc_bytes(p->device, state_bytes(plan, segment));
    }
    if (model->ctx->placing.lock) need->locked += need->kv[0];
    return q_draft_measure(plan, &s->shape, need);
}

/* The plan, the arrays, and what all of it will take. */
static lq_status plan_parts(lq_session *s) {
    Q_TRY(q_plan_build(s->model, &s->shape, &s->arena, &s->plan));
    Q_TRY(new_arrays(s));
    return measure(s, &s->need);
}

lq_status q_session_measure(const lq_model *model, const q_session_shape *shape, q_session_need *need) {
    lq_session s = {.model = (lq_model *)(uintptr_t)model, /* which is only read */
                    .alloc = model->alloc, .arena.alloc = model->alloc, .shape = *shape};
    const lq_status st = plan_parts(&s);
    if (st == LQ_OK) *need = s.need;
    q_arena_free(&s.arena);
    return st;
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

/* What tells the model from others goes with saved sequences. Where reading it allocates, since weights are decoded from
 * what others quantized, it is read now: an open session allocates nothing. */
static lq_status know_model(const lq_session *s) {
    const q_directory *d = s->model->dir;
    uint64_t hash;
    for (uint32_t i = 0; i < d->n_tensors; i++)
        if (d->tensors[i].view) return q_model_hash(s->model, &hash);
    return LQ_OK;
}

static lq_status open_parts(lq_session *s) {
    Q_TRY(plan_parts(s));
    Q_TRY(check_memory(s));
    Q_TRY(new_blocks(s));
    Q_TRY(open_device_parts(s));
    Q_TRY(know_model(s));
    return q_draft_open(s);
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
    s->cancelled = &s->cancel;
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
    q_session_close(s->draft);
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
    q_delete(s->alloc, s->transfer);
    q_delete(s->alloc, s->kv_block);
    q_delete(s->alloc, s->sample_scratch);
    q_arena_free(&s->arena);
    q_delete(s->alloc, s);
}
