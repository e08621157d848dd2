/* api.c: the public functions: check arguments, call, convert. No logic of its own. Layer L4. */
#include <stdio.h>

#include "engine.h"
#include "quantize.h"

static lq_status null_arg(const char *fn) { return q_fail(LQ_E_ARG, "%s: a required argument is NULL", fn); }
#define NEED(cond) \
    do {           \
        if (!(cond)) return null_arg(__func__); \
    } while (0)

static lq_status size_check(uint32_t size, const char *what) {
    if (size >= 8 && size <= 4096) return LQ_OK;
    return q_fail(LQ_E_ARG, "%s.size is %u: set it to sizeof of the struct", what, size);
}

/* ------------------------------------------------------------------------------------------- version, context */

#define TEXT_(x) #x
#define TEXT(x) TEXT_(x)
uint32_t lq_version(void) { return LQ_VERSION_MAJOR * 10000 + LQ_VERSION_MINOR * 100 + LQ_VERSION_PATCH; }
const char *lq_version_string(void) {
    return TEXT(LQ_VERSION_MAJOR) "." TEXT(LQ_VERSION_MINOR) "." TEXT(LQ_VERSION_PATCH);
}

lq_status lq_open(const lq_options *options, lq_ctx **out) {
    NEED(out);
    return q_ctx_open(options, out);
}
void lq_close(lq_ctx *ctx) { q_ctx_close(ctx); }

uint32_t lq_device_count(const lq_ctx *ctx) { return ctx ? q_ctx_devices(ctx) : 0; }

lq_status lq_device_info_get(const lq_ctx *ctx, uint32_t index, lq_device_info *info) {
    NEED(ctx && info);
    Q_TRY(size_check(info->size, "lq_device_info"));
    lq_device_info i = {.size = sizeof i};
    Q_TRY(q_ctx_device_info(ctx, index, &i));
    q_struct_out(info, &i, sizeof i);
    return LQ_OK;
}

/* ------------------------------------------------------------------------------------------- formats, schemes */

uint32_t lq_format_count(void) { return q_format_count(); }

lq_status lq_format_info_get(uint32_t index, lq_format_info *info) {
    NEED(info);
    Q_TRY(size_check(info->size, "lq_format_info"));
    if (index >= q_format_count()) return q_fail(LQ_E_ARG, "there is no format %u", index);
    const q_format *f = q_formats[index];
    const lq_format_info i = {.block_weights = (uint32_t)f->weights, .block_bytes = (uint32_t)f->bytes,
                              .gguf_id = q_format_gguf_ids[index], .name = f->name,
                              .bits_per_weight = 8.0 * f->bytes / f->weights};
    q_struct_out(info, &i, sizeof i);
    return LQ_OK;
}

lq_status lq_format_find(const char *name, uint32_t *index) {
    NEED(name && index);
    for (uint32_t i = 0; i < q_format_count(); i++)
        if (strcmp(q_formats[i]->name, name) == 0) {
            *index = i;
            return LQ_OK;
        }
    return q_fail(LQ_E_UNSUPPORTED, "there is no format '%s'", name);
}

uint32_t lq_scheme_count(void) { return q_recipe_count(); }
const char *lq_scheme_name(uint32_t index, const char **description) { return q_recipe_name(index, description); }

/* ------------------------------------------------------------------------------------------- model */

lq_status lq_model_open(lq_ctx *ctx, const char *path, const lq_model_options *options, lq_model **out) {
    NEED(ctx && path && out);
    return q_model_open(ctx, path, options, out);
}
void lq_model_close(lq_model *model) { q_model_close(model); }

lq_status lq_model_info_get(const lq_model *model, lq_model_info *info) {
    NEED(model && info);
    Q_TRY(size_check(info->size, "lq_model_info"));
    lq_model_info i;
    q_model_info(model, &i);
    q_struct_out(info, &i, sizeof i);
    return LQ_OK;
}

lq_status lq_model_meta(const lq_model *model, const char *key, uint32_t index, const char **name, char *text,
                        size_t *n) {
    NEED(model && n && (text || *n == 0));
    return q_model_meta(model, key, index, name, text, n);
}

lq_status lq_model_tensor(const lq_model *model, uint32_t index, lq_tensor_info *info) {
    NEED(model && info);
    Q_TRY(size_check(info->size, "lq_tensor_info"));
    lq_tensor_info i;
    Q_TRY(q_model_tensor_info(model, index, &i));
    q_struct_out(info, &i, sizeof i);
    return LQ_OK;
}

lq_status lq_model_tensor_row(const lq_model *model, uint32_t index, uint64_t row, float *out) {
    NEED(model && out);
    return q_model_tensor_row(model, index, row, out);
}

lq_status lq_model_plan(const lq_model *model, const lq_session_options *options, lq_plan_info *info) {
    NEED(model && info);
    Q_TRY(size_check(info->size, "lq_plan_info"));
    q_session_shape shape;
    Q_TRY(q_session_shape_of(model, options, &shape));
    lq_plan_info i = {.context = shape.context, .batch = shape.batch, .threads = shape.threads,
                      .threads_prefill = shape.threads_prefill, .sequences = shape.seqs, .kv_k = shape.kv_k->format->name, .kv_v = shape.kv_v->format->name};
    q_session_need need;
    Q_TRY(q_session_measure(model, &shape, &need));
    i.weights = q_weights_bytes(model);
    i.kv = need.kv[0];
    i.activations = need.rest[0];
    i.packed = model->packed_bytes;
    i.total = i.weights - model->packed_from + i.packed + i.kv + i.activations;
    i.locked = model->locked + need.locked;
    q_place_plan(model, &need, &i);
    q_struct_out(info, &i, sizeof i);
    return LQ_OK;
}

lq_status lq_quantize(lq_ctx *ctx, const char *src, const char *dst, const lq_quantize_options *options,
                      lq_quantize_result *result) {
    NEED(ctx && src && dst);
    lq_quantize_options o;
    Q_TRY(q_struct_in(options, &o, sizeof o, "lq_quantize_options"));
    if (result) Q_TRY(size_check(result->size, "lq_quantize_result"));
    lq_quantize_result r = {.size = sizeof r};
    Q_TRY(q_quantize_with(q_ctx_wide(ctx), &ctx->alloc, &ctx->log, o.threads ? o.threads : ctx->threads, src, dst, &o, &r));
    if (result) q_struct_out(result, &r, sizeof r);
    return LQ_OK;
}

/* ------------------------------------------------------------------------------------------- session */

lq_status lq_session_open(lq_model *model, const lq_session_options *options, lq_session **out) {
    NEED(model && out);
    return q_session_open(model, options, out);
}
void lq_session_close(lq_session *session) { q_session_close(session); }
void lq_session_cancel(lq_session *session) {
    if (session) atomic_store(&session->cancel, 1);
}

lq_status lq_session_info_get(const lq_session *s, lq_session_info *info) {
    NEED(s && info);
    Q_TRY(size_check(info->size, "lq_session_info"));
    lq_session_info i = {.context = s->shape.context, .batch = s->shape.batch, .max_logits = s->shape.max_logits,
                         .threads = s->shape.threads,
                         .trained_context = (uint32_t)s->model->binding->hp.v[Q_HP_CONTEXT],
                         .kv_bytes = s->need.kv[0], .activation_bytes = s->need.rest[0],
                         .device_kv_bytes = s->need.kv[1], .device_activation_bytes = s->need.rest[1],
                         .threads_prefill = s->shape.threads_prefill, .sequences = s->shape.seqs,
                         .kv_k = s->shape.kv_k->format->name, .kv_v = s->shape.kv_v->format->name};
    q_kv_tokens(&s->kv_book, &i.kv_tokens, &i.kv_free);
    i.overflow = q_overflow_name(s->shape.overflow);
    i.overflow_keep = s->shape.overflow_keep;
    i.rope_scaling = q_rope_name(s->shape.rope.kind);
    i.rope_factor = s->shape.rope.factor;
    i.rope_original = (uint32_t)s->shape.rope.original;
    q_struct_out(info, &i, sizeof i);
    return LQ_OK;
}

uint32_t lq_seq_length(const lq_session *s, uint32_t sequence) {
    return s && sequence < s->shape.seqs ? s->kv_book.seqs[sequence].length : 0;
}

lq_status lq_seq_truncate(lq_session *session, uint32_t sequence, uint32_t length) {
    NEED(session);
    return q_session_truncate(session, sequence, length);
}

lq_status lq_seq_fork(lq_session *session, uint32_t from, uint32_t to) {
    NEED(session);
    return q_session_fork(session, from, to);
}

lq_status lq_seq_save(lq_session *session, uint32_t sequence, lq_write_bytes write, void *user) {
    NEED(session && write);
    return q_session_save(session, sequence, write, user);
}

lq_status lq_seq_load(lq_session *session, uint32_t sequence, lq_read_bytes read, void *user) {
    NEED(session && read);
    return q_session_load(session, sequence, read, user);
}

lq_status lq_seq_info_get(const lq_session *session, uint32_t sequence, lq_seq_info *info) {
    NEED(session && info);
    Q_TRY(size_check(info->size, "lq_seq_info"));
    Q_TRY(q_session_has_seq(session, sequence));
    lq_seq_info i = {.size = sizeof i};
    q_session_seq_info(session, sequence, &i);
    q_struct_out(info, &i, sizeof i);
    return LQ_OK;
}

lq_status lq_session_stats(const lq_session *session, lq_stats *stats) {
    NEED(session && stats);
    Q_TRY(size_check(stats->size, "lq_stats"));
    q_struct_out(stats, &session->stats, sizeof session->stats);
    return LQ_OK;
}

/* ------------------------------------------------------------------------------------------- text */

lq_status lq_tokenize(const lq_model *model, const char *text, size_t bytes, uint32_t flags, int32_t *ids, size_t *n) {
    NEED(model && n && (text || bytes == 0) && (ids || *n == 0));
    return q_text_tokenize(model->text, text, bytes, flags, ids, n);
}

lq_status lq_detokenize(const lq_model *model, const int32_t *ids, size_t count, uint32_t flags, char *text, size_t *n) {
    NEED(model && n && (ids || count == 0) && (text || *n == 0));
    return q_text_detokenize(model->text, ids, count, flags, text, n);
}

int32_t lq_token_find(const lq_model *model, const char *piece) {
    return model && piece ? q_text_find(model->text, piece) : -1;
}

/* ------------------------------------------------------------------------------------------- decode, sample, score */

lq_status lq_decode(lq_session *session, const lq_item *items, size_t n_items) {
    NEED(session && items);
    return q_session_decode(session, items, n_items, false);
}

lq_status lq_sync(lq_session *session, uint32_t sequence, const int32_t *ids, size_t count, size_t logits_from) {
    NEED(session && ids);
    return q_session_sync(session, sequence, ids, count, logits_from);
}

lq_status lq_logits(const lq_session *s, uint32_t row, const float **out) {
    NEED(s && out);
    if (row >= s->n_logits)
        return q_fail(LQ_E_ARG, "row %u of the logits was asked for; the last lq_decode kept %u", row, s->n_logits);
    *out = s->logits + (uint64_t)row * (uint64_t)s->plan->vocab;
    return LQ_OK;
}

lq_status lq_sample(lq_session *session, uint32_t row, const lq_sampler *sampler, int32_t *id) {
    NEED(session && id);
    return q_session_sample(session, row, sampler, id);
}

lq_status lq_sample_logits(const lq_model *model, const float *logits, size_t n, const lq_sampler *sampler,
                           const int32_t *ids, size_t count, uint64_t position, int32_t *id) {
    NEED(logits && id);
    return q_sample_logits(model, logits, n, sampler, ids, count, position, id);
}

lq_status lq_logprobs(lq_session *session, uint32_t row, int32_t id, float *logprob, lq_logprob *top, size_t n) {
    NEED(session);
    return q_session_logprobs(session, row, id, logprob, top, n);
}

lq_status lq_step(lq_session *session, lq_step_item *items, size_t n_items) {
    NEED(session && items);
    return q_session_step(session, items, n_items);
}

lq_status lq_embed(lq_session *session, const lq_item *items, size_t n_items, const lq_embed_options *options,
                   float *out) {
    NEED(session && items && out);
    return q_session_embed(session, items, n_items, options, out);
}

lq_status lq_evaluate(lq_session *session, const int32_t *ids, size_t count, const lq_eval_options *options,
                      lq_eval_result *result) {
    NEED(session && ids && result);
    Q_TRY(size_check(result->size, "lq_eval_result"));
    return q_evaluate(NULL, &session, 1, ids, count, options, NULL, result);
}

lq_status lq_compare(lq_session *reference, lq_session *const *candidates, size_t n_candidates, const int32_t *ids,
                     size_t count, const lq_eval_options *options, lq_eval_result *reference_result,
                     lq_eval_result *results) {
    NEED(reference && candidates && n_candidates && ids && results);
    for (size_t i = 0; i < n_candidates; i++) NEED(candidates[i]);
    Q_TRY(size_check(results[0].size, "lq_eval_result"));
    if (reference_result) Q_TRY(size_check(reference_result->size, "lq_eval_result"));
    return q_evaluate(reference, candidates, n_candidates, ids, count, options, reference_result, results);
}

lq_status lq_calibrate(lq_session *session, const int32_t *ids, size_t count, const char *dst,
                       const lq_calibrate_options *options, lq_calibrate_result *result) {
    NEED(session && ids && dst);
    if (result) Q_TRY(size_check(result->size, "lq_calibrate_result"));
    lq_calibrate_result r = {.size = sizeof r};
    Q_TRY(q_calibrate(session, ids, count, dst, options, &r));
    if (result) q_struct_out(result, &r, sizeof r);
    return LQ_OK;
}
