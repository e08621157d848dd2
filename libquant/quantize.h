/* quantize.h: from a model in any container to a GGUF file in the formats of a recipe.
 *
 * Streams: holds the source's metadata, a few rows per thread and one piece of output, whatever the model's size. The
 * bytes written do not depend on the number of threads. Layer L3. */
#ifndef Q_QUANTIZE_H
#define Q_QUANTIZE_H

#include "bind.h"

/* lq_quantize (libquant.h) with an allocator, a log and the default number of threads. `options` and `result` are
 * whole structs of this build (api.c converts); `result` may be NULL. `dst` may be NULL with dry_run. */
lq_status q_quantize(const q_alloc *a, const q_log *log, uint32_t threads, const char *src, const char *dst,
                     const lq_quantize_options *options, lq_quantize_result *result);

#endif
