/* transform.h: a way of choosing factors s of a product's inputs before its matrices are quantized: columns are
 * multiplied by s, what makes the inputs is divided by it (fold.h), so the function stays and the error of quantizing
 * does not.
 *
 * One file libquant/transforms/X.c and the line TRANSFORM(x) in transforms.def. Pure: what it wants to know of weights
 * and inputs it is given, and losses it asks for. Layer L1. */
#ifndef Q_TRANSFORM_H
#define Q_TRANSFORM_H

#include "base.h"
#include "memory.h"
#include "status.h"

typedef struct q_transform_job {
    int64_t k;
    const float *mean_abs, *max_abs; /* [k] of each input over the calibration tokens */
    const float *weight_max;         /* [k] largest magnitude in a column, over all matrices that read the input */
    /* Mean square error of the block's output when the matrices are quantized under s; NULL unless needs_loss. */
    lq_status (*loss)(void *user, const float *s, double *out);
    void *user;
    const q_alloc *alloc;
} q_transform_job;

typedef struct q_transform {
    const char *name;
    const char *about;  /* one line, for help */
    bool needs_loss;
    bool clips;         /* then the magnitude of each group of weights is searched for too, under the same loss */
    /* s[k], each finite and positive. */
    lq_status (*scale)(const q_transform_job *job, float *s);
} q_transform;

extern const q_transform *const q_transforms[]; /* from transforms.def */
const q_transform *q_transform_find(const char *name);

#endif
