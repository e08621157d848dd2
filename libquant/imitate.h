/* imitate.h: what becomes of a tensor's weights when lq_quantize quantizes them, without writing a file. Layer L3. */
#ifndef Q_IMITATE_H
#define Q_IMITATE_H

#include "bind.h"
#include "recipe.h"
#include "threads.h"

typedef struct q_imitation {
    const q_alloc *alloc;
    const q_binding *binding;
    q_pool *pool;
    const q_bind_item *item;
    const q_format *format;
    const q_quantizer *quantizer;
    const float *diagonal;  /* [k] of the inputs as they are; NULL = none */
    const void *shared;     /* what the quantizer prepared */
    /* [k] columns are multiplied by these before, and what they decode to is divided; NULL = none */
    const float *factors;
    const float *clip;      /* [rows][k / group] the largest magnitude after the factors; NULL = any */
    uint64_t group;
} q_imitation;

/* Into float32 [rows][k] that means the same, or into rows of the format: the other is NULL. */
lq_status q_imitate(const q_imitation *m, float *out, uint8_t *coded);

/* What that asks of the allocator meanwhile, on so many threads. */
uint64_t q_imitate_bytes(const q_bind_item *item, const q_recipe_choice *c, uint32_t threads, bool coded);

#endif
