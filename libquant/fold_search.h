/* fold_search.h: what a transform makes of one stage of a stream: factors of its inputs, and how far weights are
 * clipped. Layer L3. */
#ifndef Q_FOLD_SEARCH_H
#define Q_FOLD_SEARCH_H

#include "imitate.h"
#include "stream.h"
#include "transform.h"

/* A matrix of the stage. */
typedef struct q_fold_part {
    uint32_t item;
    q_recipe_choice choice;
    const float *diagonal; /* [k] of its inputs, as the quantizer wants it */
    float *weights;        /* [rows][k] to work in, and in the end not of use */
    bool clips;            /* the transform says how far */
    float *clip;           /* [rows][groups], filled; NULL without */
} q_fold_part;

typedef struct q_fold_search {
    const q_alloc *alloc;
    const q_binding *binding;
    q_pool *pool;
    q_stream *stream;      /* the stage is its next one */
    const q_transform *transform;
    uint32_t samples, step, window; /* of the stream, by which losses are measured; tokens of each */
    const float *mean_abs, *max_abs; /* [k] */
    q_fold_part *parts;
    uint32_t n_parts;
    lq_status (*told)(void *user); /* after each loss; a status other than LQ_OK ends the search */
    void *user;
} q_fold_search;

/* s[k]; and where `folds` is false, nobody can take factors: they stay 1. */
lq_status q_fold_search_run(const q_fold_search *f, bool folds, float *s);
/* Weights of a part's block that share a magnitude; 0: it is not clipped. */
uint64_t q_fold_clip_group(const q_transform *t, const q_recipe_choice *c);
/* What a search asks of the allocator for a stage of k inputs, beside the parts', trying and imitating. */
uint64_t q_fold_search_bytes(const q_stream *stream, uint32_t samples, uint64_t k, uint32_t threads);
#endif
