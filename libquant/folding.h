/* folding.h: a transform's factors, from calibration statistics onto the weights that are to be quantized.
 *
 * Owns whether factors fit the model: for which group of products (fold.h), by whom they are taken back, and that a
 * producer stored in 16 bits takes back what it can hold. Says once per kind what cannot be folded. Layer L3. */
#ifndef Q_FOLDING_H
#define Q_FOLDING_H

#include "fold.h"
#include "importance.h"
#include "recipe.h"

typedef struct q_folding {
    const q_log *log;
    const q_binding *binding;
    const q_transform *transform; /* of the scheme */
    const char *scheme;           /* for messages; NULL = a recipe's file */
    q_importance *importance;     /* NULL: no file was given */
    const char *path;             /* of it */
    const q_recipe_choice *choices; /* [n_items] what items are stored in */
    q_bind_item *items;           /* [n_items] columns and rows are set where they have factors */
    q_arena *arena;               /* keeps the factors */
} q_folding;

/* After this the importance is that of the items as they are read. LQ_E_ARG: no factors, or those of another transform.
 * LQ_E_INCONSISTENT: factors that are not about this model, or for inputs that nobody can divide. */
lq_status q_folding_apply(const q_folding *f);

#endif
