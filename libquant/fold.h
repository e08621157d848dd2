/* fold.h: where factors of a product's inputs can go without changing what the model computes: columns of the matrices
 * that read a slot are multiplied by s, what writes the slot is divided by it.
 *
 * Owns the search for such partners in an architecture's step tables, and refuses all of which it is not sure. Knows
 * neither how s is chosen (transform.h) nor who stores it. Layer L3. */
#ifndef Q_FOLD_H
#define Q_FOLD_H

#include "bind.h"

enum { Q_FOLD_CONSUMERS = 8 };

/* Products of one layer that read the same input. */
typedef struct q_fold_group {
    int32_t layer;
    uint32_t n_consumers;
    uint32_t consumers[Q_FOLD_CONSUMERS]; /* items of the binding, in the order of steps; each once */
    uint32_t producer; /* item: a norm's weight, whose values are divided, or a matrix, whose rows are */
    uint64_t k;        /* inputs of the consumers; values or rows of the producer */
    const char *refused; /* why there is no producer, for "... cannot be folded: %s"; NULL = there is one */
} q_fold_group;

typedef struct q_folds {
    q_fold_group *groups; /* layer by layer, in the order of steps */
    uint32_t n_groups;
    uint32_t *of; /* private: [n_items] index of the group an item consumes, plus 1 */
} q_folds;

lq_status q_folds_find(const q_binding *b, q_arena *arena, q_folds *out);
/* The group that an item consumes; NULL = none. */
const q_fold_group *q_folds_of(const q_folds *f, uint32_t item);

#endif
