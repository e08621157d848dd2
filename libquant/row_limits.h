/* row_limits.h: how far the weights of a tensor may go: the limits of its groups that an importance file has, for rows
 * as they are read.
 *
 * Owns when limits are those of a format's own groups, and the order and unit that rows have meanwhile: a directory
 * keeps its own order, and a row may have been divided by another matrix's factor. Who chose them is fold_search.c.
 * Layer L3. */
#ifndef Q_ROW_LIMITS_H
#define Q_ROW_LIMITS_H

#include "bind.h"
#include "importance.h"
#include "recipe.h"

typedef struct q_limits {
    float *most;     /* [rows][groups] the largest magnitude; NULL = there are none */
    uint64_t groups; /* of a row */
} q_limits;

/* Has the entry (may be NULL) limits for the groups of the format that was chosen, and does the quantizer take scales
 * from the largest weight? Others they do not help. */
bool q_limits_fit(const q_importance_entry *e, const q_recipe_choice *c, uint64_t k);
/* What q_limits_take asks of the allocator meanwhile; e NULL = nothing. */
uint64_t q_limits_bytes(const q_importance_entry *e, uint64_t rows);
/* Those of an entry, none where it is NULL. `named`: the item of the binding, whose rows the file has in the order of
 * GGUF; `read`: the same as its rows will be read. Errors do not name the file. */
lq_status q_limits_take(const q_alloc *a, const q_importance *im, const q_importance_entry *e, const q_bind_item *named,
                        const q_bind_item *read, q_limits *out);
void q_limits_release(const q_alloc *a, q_limits *l);

/* n rows of k weights, each group's clamped to +-most[row][group]. x may be y. */
void q_limits_clamp(const float *most, uint64_t groups, uint64_t k, uint64_t n, const float *x, float *y);

#endif
