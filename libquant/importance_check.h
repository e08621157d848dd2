/* importance_check.h: does an importance file suit the model, the adapters and the scheme that it is used for?
 *
 * Refuses a file for another model, and says in the log what else does not fit. Layer L3. */
#ifndef Q_IMPORTANCE_CHECK_H
#define Q_IMPORTANCE_CHECK_H

#include "bind.h"
#include "importance.h"
#include "lora.h"
#include "recipe.h"

typedef struct q_importance_check {
    const q_alloc *alloc;
    const q_log *log;
    const q_importance *importance; /* every tensor of the model has been asked for */
    const char *path;               /* of it */
    const char *src;                /* path of the model */
    const q_binding *binding;       /* of the model */
    const q_loras *loras;           /* that are merged into it; NULL = none */
    const q_recipe *recipe;
    const char *scheme;             /* its name, or that of its file without folders */
} q_importance_check;

/* LQ_E_INCONSISTENT: no entry is for a tensor of the model. */
lq_status q_importance_suits(const q_importance_check *c);

#endif
