/* plan.h: a compiled model: resolved steps, slots, page pools; and the batch that a plan is run with.
 *
 * A plan is made once by L3 when a session opens and handed whole to a backend, which may rewrite it into whatever it
 * replays. After that only batches cross. Layer L1. */
#ifndef Q_PLAN_H
#define Q_PLAN_H

#include "kv_form.h"
#include "op.h"

/* Consecutive steps on one device. Between two segments nothing lives on but slot 1: borders lie where layers end. */
typedef struct q_segment {
    int32_t first, last;   /* steps [first, last) */
    int32_t device;        /* whatever L3 numbers devices by */
    uint64_t state_floats; /* recurrent state per sequence of its steps */
} q_segment;

typedef struct q_plan {
    const q_inst *insts;
    int32_t n_insts, n_layers;
    const int32_t *slot_width; /* [n_slots] floats per column; [0] unused */
    int32_t n_slots;
    int32_t columns;           /* most columns of a batch */
    int32_t outs;              /* most wanted columns of a batch */
    int32_t vocab;
    const q_kv_pool *kv;
    int32_t n_kv;
    const q_segment *segments;
    int32_t n_segments;        /* at least 1; together they are all steps in order */
    int32_t seqs;              /* most sequences of a batch */
    int32_t states;            /* recurrent states that are kept: one per sequence and checkpoints; 0 = no step has any */
    int32_t context;           /* most positions of a sequence */
    int32_t freq_tables;       /* of steps ROPE, 1 or 2 */
    bool f32_activations;      /* never quantize activations */
    bool hidden;               /* there is no HEAD: what it would read is copied to slot 1 for all columns, as q_batch.y */
} q_plan;

/* One sequence as a batch refers to it. */
typedef struct q_seq_ref {
    const uint32_t *const *pages; /* [pool][position / Q_KV_TOKENS] -> page; covers all positions of the batch */
    uint32_t state;               /* number of its recurrent state, below q_plan.states */
    uint32_t freqs;               /* which of two tables of ROPE's frequencies is its own: 0 or 1 */
} q_seq_ref;

typedef struct q_batch {
    int32_t n;              /* columns, 1 .. plan->columns */
    const int32_t *ids;     /* [n] token ids in [0, vocab), or NULL with x */
    const float *x;         /* [n][width of slot 1]: what slot 1 holds before the first step; NULL = ids say it */
    float *y;               /* [n][width of slot 1]: receives slot 1 after the last step; NULL = not wanted */
    const int32_t *pos;     /* [n] absolute positions; columns of one sequence are consecutive and ascending */
    const int32_t *seq;     /* [n] index into seqs */
    const q_seq_ref *seqs;
    int32_t n_seqs;
    int32_t n_out;          /* wanted columns, 0 .. plan->outs */
    const int32_t *out;     /* [n_out] ascending column numbers */
    float *logits;          /* [n_out][vocab] */
    const lq_sampler *sampler; /* SAMPLE: one for all wanted rows, NULL = no sampling */
    const uint64_t *draw;   /* SAMPLE: [n_out] position that keys the generator */
    int32_t *sampled;       /* SAMPLE: [n_out] */
    uint32_t threads;       /* CPU: at most so many of the program's; 0 = all */
    const int *cancel;      /* looked at (atomically) as the run goes on; non-zero = stop; may be NULL */
    /* Called on the caller's thread before each MATMUL with its float input (`x` view): calibration and tests. */
    void (*tap)(void *user, const q_inst *s, const float *x, int32_t n, int32_t stride);
    void *tap_user;
} q_batch;

#endif
