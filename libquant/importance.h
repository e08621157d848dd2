/* importance.h: importance files: how much each input of each matrix matters, measured over a calibration text.
 *
 * Reads the GGUF form that lq_calibrate and other engines write (general.type "imatrix") and the binary form that came
 * before it ("imatrix.dat"). Knows nothing of models: who asks for a tensor says what shape it has. Layer L3. */
#ifndef Q_IMPORTANCE_H
#define Q_IMPORTANCE_H

#include "loader.h"

/* The keys and tensors of the GGUF form. Of a tensor NAME with `inputs` columns, for each of its matrices (experts;
 * usually one): NAME.in_sum2 float32 [inputs, matrices], the sum of squares of each input; NAME.counts float32
 * [1, matrices], over how many tokens. As everywhere in GGUF, trailing dimensions of 1 may be left out. */
#define Q_IMPORTANCE_TYPE "imatrix"
#define Q_IMPORTANCE_DATASETS "imatrix.datasets"
#define Q_IMPORTANCE_CHUNKS "imatrix.chunk_count"
#define Q_IMPORTANCE_CHUNK_SIZE "imatrix.chunk_size"
#define Q_IMPORTANCE_SUMS ".in_sum2"
#define Q_IMPORTANCE_COUNTS ".counts"
/* What we add, and other engines pass over: NAME.hessian float32 [inputs * (inputs + 1) / 2], 2/n times the sum of x x'
 * over the n inputs x, its lower triangle row after row. Tensors with the same inputs share one: that of OF[i] is also
 * that of TENSORS[i]. With SCHEME the inputs are those of a model whose earlier matrices were quantized so, else of the
 * model. */
#define Q_IMPORTANCE_HESSIAN ".hessian"
#define Q_HESSIAN_TENSORS "libquant.hessian.tensors"
#define Q_HESSIAN_OF "libquant.hessian.of"
#define Q_HESSIAN_SCHEME "libquant.hessian.scheme"
/* The adapters that were merged into the model that was measured (q_loras_list); absent: none, or nobody knows. */
#define Q_IMPORTANCE_ADAPTERS "libquant.imatrix.adapters"
/* Of a transform (transform.h), whose name is the key: NAME.fold float32 [inputs], finite and positive, the factors of
 * the columns of tensor NAME and of all that read the same input, under the name of the first; NAME.clip float32
 * [groups, rows], the largest magnitude that weights of a group may keep, after those factors and before a row is
 * divided by what it takes of others' (bind.h); rows in the order of GGUF files; 2^40 where all may be kept. */
#define Q_IMPORTANCE_FOLD ".fold"
#define Q_IMPORTANCE_CLIP ".clip"
#define Q_FOLD_TRANSFORM "libquant.fold.transform"

typedef struct q_importance_entry {
    q_str name;         /* of the tensor in GGUF files */
    uint64_t inputs, matrices; /* imatrix.dat does not tell experts apart: one matrix of all values */
    float *values;      /* [matrices][inputs], scaled so that the largest of a matrix is 1 (or all are 0) */
    bool *seen;         /* [matrices]; false: no token came by, its values mean nothing */
    bool matched;       /* q_importance_find returned it */
    const q_tensor *hessian; /* NULL = none */
    const q_tensor *fold, *clip; /* NULL = none; a fold stands with the first of the tensors that share it alone */
    const float *factors; /* [inputs] what its columns were multiplied by (q_importance_refit); NULL = nothing */
} q_importance_entry;

typedef struct q_importance {
    q_importance_entry *entries; /* order of the file */
    uint32_t n_entries;
    uint32_t chunks;    /* 0 = the file does not say */
    q_str dataset;      /* the first text it names; empty = none */
    q_str scheme;       /* for which its Hessians were measured; empty = the model as it is */
    q_str adapters;     /* merged into the model that was measured; empty = none */
    q_str transform;    /* whose factors and limits it has; empty = none, and then it has neither */
    q_directory *dir;   /* with Hessians, factors or limits: where they are read from, one at a time; else NULL */
    /* private */
    const q_alloc *alloc;
    q_arena arena;
    q_index index;
} q_importance;

/* Errors name the file and the tensor: LQ_E_FORMAT, _TRUNCATED, _LIMIT, _UNSUPPORTED (a model, an unknown tensor),
 * _INCONSISTENT (a value that is negative or not finite, sums without counts, a duplicate). */
lq_status q_importance_open(const q_alloc *a, const q_log *log, const char *path, q_importance **out);
void q_importance_close(q_importance *im); /* NULL is fine */

/* The entry of a tensor with that many inputs and matrices; *out NULL when there is none, or none that is of use.
 * LQ_E_INCONSISTENT when the entry has another length. */
lq_status q_importance_find(q_importance *im, q_str name, uint64_t inputs, uint64_t matrices,
                            const q_importance_entry **out);
/* The importance of the inputs of one matrix; NULL without an entry, or where no token came by. */
const float *q_importance_of(const q_importance_entry *e, uint64_t inputs, uint64_t matrix);
/* Read its Hessian, inputs * (inputs + 1) / 2 values. LQ_E_INCONSISTENT when it cannot be one: a value that is not
 * finite, or one that is larger than its row and column allow. */
lq_status q_importance_hessian(const q_importance *im, const q_importance_entry *e, float *out);
/* Read the factors of its fold, inputs of them, and its limits, those of all groups of a row and so row after row, for
 * that many rows. LQ_E_INCONSISTENT: one that is not finite, not positive (a limit may be 0), or beyond 2^-40 to 2^40;
 * other rows. Limits: `out` NULL checks the shape alone. */
lq_status q_importance_fold(const q_importance *im, const q_importance_entry *e, float *out);
lq_status q_importance_clip(const q_importance *im, const q_importance_entry *e, uint64_t rows, float *out);
/* The entry of that name, where there is one, is from now on about inputs that are divided by s[inputs], which has to
 * stay; q_importance_find has said that it has so many. */
lq_status q_importance_refit(q_importance *im, q_str name, const float *s);
/* Check the sums of squares of one matrix and scale them as entries have them; `name` is for messages. */
lq_status q_importance_scale(q_str name, float *values, uint64_t inputs);

#endif
