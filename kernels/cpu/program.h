/* program.h: a compiled plan: what cpu.c makes and program.c runs. Layer L2. */
#ifndef Q_CPU_PROGRAM_H
#define Q_CPU_PROGRAM_H

#include "cpu.h"

/* Which vectors of which slot are quantized, and how. */
typedef struct q_cpu_copy_key {
    int32_t slot, offset, k, heads, stride;
    const q_act *act;
} q_cpu_copy_key;

/* The quantized columns of a slot, shared by all products that read it in this format. */
typedef struct q_cpu_copy {
    q_cpu_copy_key key;
    void (*quantize)(const float *x, int64_t n, void *dst);
    uint64_t head_bytes, column_bytes;
    uint8_t *data;
} q_cpu_copy;

/* A step of the plan, or the making of a quantized copy for it. */
typedef struct q_cpu_stage {
    int32_t step;
    int32_t makes; /* copy that this stage makes, -1 = the stage runs the step */
    int32_t reads; /* copy that the step's product reads, -1 = float32 */
    bool columns;  /* each column by itself: such stages follow one another without a barrier */
    bool gathers;  /* reads columns other than those it writes */
    const q_cpu_kernel *kernel; /* NULL = the reference */
    q_op_fn fn;    /* of steps that are no product */
} q_cpu_stage;

struct q_program {
    const q_alloc *alloc;
    const q_plan *plan;
    int32_t first, last; /* its segment's steps */
    q_pool *pool;
    uint8_t *data; /* the block of slots, copies and scratch */
    int32_t *first_stage; /* [last - first + 1] */
    q_cpu_stage *stages;
    int32_t n_stages;
    q_cpu_copy *copies;
    int32_t n_copies;
    float **slots;
    uint8_t **kv;
    float *state;
    uint64_t state_floats;
    uint8_t *scratch; /* of all threads */
    uint64_t scratch_bytes; /* of one thread */
    /* The run in progress. */
    const q_batch *batch;
    int stop[2]; /* what thread 0 saw at the latest two polls of `cancel` */
    bool cancelled;
    q_traffic traffic;
};

lq_status q_cpu_run(q_program *p, const q_batch *batch);

#endif
