/* quantize.h: from a model in any container to a GGUF file in the formats of a recipe.
 *
 * Streams: holds the source's metadata, a few rows per thread, two pieces of output (one is being written), and a
 * tensor's limits or Hessian, whatever the model's size. The bytes written do not depend on the number of threads.
 * Layer L3. */
#ifndef Q_QUANTIZE_H
#define Q_QUANTIZE_H

#include "bind.h"
#include "recipe.h"
#include "wide.h"

/* lq_quantize (libquant.h) with an allocator, a log, the default number of threads and loops for the processor at hand
 * (wide.h; NULL = for any, with the same results). `options` and `result` are whole structs of this build (api.c
 * converts); `result` may be NULL. `dst` may be NULL with dry_run. */
lq_status q_quantize_with(const q_wide *wide, const q_alloc *a, const q_log *log, uint32_t threads, const char *src,
                          const char *dst, const lq_quantize_options *options, lq_quantize_result *result);
static inline lq_status q_quantize(const q_alloc *a, const q_log *log, uint32_t threads, const char *src,
                                   const char *dst, const lq_quantize_options *options, lq_quantize_result *result) {
    return q_quantize_with(NULL, a, log, threads, src, dst, options, result);
}

/* Format and quantizer of item i of a binding; `importance`: calibration statistics are at hand. */
lq_status q_quantize_choose(const q_recipe *recipe, const q_binding *b, uint32_t i, bool importance,
                            q_recipe_choice *out);
/* The tensor's bits are the source's. */
bool q_quantize_copies(const q_bind_item *item, const q_recipe_choice *c);

#endif
