/* program.h: a compiled plan: what cpu.c and phases.c make and program.c runs.
 *
 * There are two ways through a segment. With many columns the threads share out everything: columns of the steps that
 * treat each column by itself, rows of products. With few columns these steps take less time than a barrier, so each
 * thread does them for itself, and only what products, attention and the residual hold is shared. Layer L2. */
#ifndef Q_CPU_PROGRAM_H
#define Q_CPU_PROGRAM_H

#include "cpu.h"

/* Which vectors of which slot are copied, and how: in another order, or quantized, or both. */
typedef struct q_cpu_copy_key {
    int32_t slot, offset, k, heads, stride;
    const q_act *act;     /* NULL = they stay float32 */
    const int32_t *order; /* of the weight's columns (q_weight); NULL = as they lie */
    /* -1; or which routing: the copy is gathered, a vector for each column and choice, where it says */
    int32_t routes;
} q_cpu_copy_key;

/* Which choices of a router: those of experts' steps with the same operand z. */
typedef struct q_cpu_routing {
    q_view z;
    int32_t used, matrices;
} q_cpu_routing;

/* Such choices turned round. Pair number c * used + i is choice i of column c; pairs have places, those of an expert
 * next to one another, ascending. Each thread has its own. */
typedef struct q_cpu_routes {
    int32_t active;  /* experts that were chosen */
    int32_t *expert; /* [active] which, ascending */
    int32_t *first;  /* [matrices + 1] the place of each expert's first pair */
    int32_t *place;  /* [pairs] */
    int32_t *pair;   /* [places] */
} q_cpu_routes;

/* The copied columns of a slot, shared by all products that read it in this form. */
typedef struct q_cpu_copy {
    q_cpu_copy_key key;
    void (*quantize)(const float *x, int64_t n, void *dst); /* with act */
    uint64_t head_bytes, column_bytes;
    int32_t vectors; /* of a column */
} q_cpu_copy;

/* Scratch of making one: a vector in its new order, on its way to being quantized. */
static inline uint64_t q_cpu_copy_scratch(const q_cpu_copy *c) {
    return c->key.act && c->key.order ? (uint64_t)c->key.k * sizeof(float) : 0;
}

/* A step of the plan, or what has to be made for it: a copy of its input, the columns of each expert. */
typedef struct q_cpu_stage {
    int32_t step;
    const q_inst *inst; /* that step's; its operands renamed where they are a thread's own */
    int32_t makes; /* copy that this stage makes, -1 = none */
    int32_t routes; /* routing that this stage turns round, -1 = none; with neither the stage runs the step */
    int32_t reads, reads2; /* copies that the step's products read, -1 = float32 */
    int32_t uses;  /* experts: the routing, -1 = the step is none of theirs */
    int32_t from;  /* slot that the copy is made of */
    bool columns;  /* each column by itself: such stages follow one another without a barrier */
    bool gathers;  /* reads columns other than those it writes */
    bool own;      /* every thread runs it for all columns, into memory of its own */
    const q_cpu_kernel *kernel, *kernel2; /* NULL = the reference; kernel2: of experts' w2 */
    const q_cpu_kernel *later, *later2; /* take their place when the weight is packed, with copies in the same form;
                                           NULL = the others stay */
    q_op_fn fn;    /* of steps that are no product; what follows one: MOE_GLU's GLU, HEAD's SCALE */
    q_combine_fn combine; /* of MOE_DOWN */
} q_cpu_stage;

typedef enum {
    Q_CPU_CHAIN, /* threads take columns through all its stages */
    Q_CPU_GROUP, /* the units of its stages, which are independent, as one range */
    Q_CPU_HEADS, /* KV_PUT, and the ATTN that reads it: a unit is all that reads one KV head */
    Q_CPU_BLOCKS, /* ATTN, perhaps behind its KV_PUT: a unit is a block of keys of a KV head */
    Q_CPU_TILES  /* ATTN: a unit is some columns of what reads one KV head */
} q_cpu_kind;

/* What lies between two barriers. */
typedef struct q_cpu_phase {
    int32_t own;      /* stages [own, from): each thread does all of them for itself first */
    int32_t from, to; /* stages whose units the threads then claim; may be none */
    q_cpu_kind kind;
} q_cpu_phase;

/* A way of running the segment (phases.c). Slots beyond the plan's are a thread's own. */
typedef struct q_cpu_way {
    q_plan plan;
    q_cpu_stage *stages;
    q_cpu_phase *phases;
    int32_t n_stages, n_phases;
} q_cpu_way;

/* The memory of one thread. */
typedef struct q_cpu_thread {
    float **slots;     /* of the way for few columns: those of the plan, then its own */
    uint8_t **copies;  /* its own */
    q_cpu_routes *routes;
    uint8_t *scratch;
} q_cpu_thread;

enum { Q_CPU_MANY, Q_CPU_FEW, Q_CPU_WAYS };

struct q_program {
    const q_alloc *alloc;
    const q_plan *plan;
    int32_t first, last; /* its segment's steps */
    uint32_t threads;
    q_pool *pool;
    uint8_t *data; /* the block of slots, copies and scratch */
    int32_t *first_stage; /* [last - first + 1], of the way for many columns */
    q_cpu_way ways[Q_CPU_WAYS];
    int32_t few;          /* most columns of a batch that goes the other way; 0 = none does */
    bool waits;           /* some stage has a kernel for later */
    q_inst *insts;        /* [last - first] of the way for few */
    int32_t *few_widths;  /* [2 * n_slots] */
    bool *own_slots;      /* [n_slots] which have one of each thread's own */
    q_cpu_copy *copies;
    int32_t n_copies;
    q_cpu_routing *routings;
    int32_t n_routings;
    float **slots;
    uint8_t **shared;     /* [n_copies] their data, on the way for many */
    uint8_t **kv;
    float *state;
    uint64_t state_floats;
    q_cpu_thread *own;    /* [threads] */
    uint64_t scratch_bytes; /* of one thread */
    float *attn_parts;    /* of Q_CPU_BLOCKS (attn.h) */
    uint32_t *attn_done;  /* [attn_counts] zero between runs */
    uint64_t attn_counts;
    /* The run in progress. */
    const q_batch *batch;
    const q_cpu_way *way;
    int32_t stop; /* the barrier behind which all threads end, since one of them saw a request to cancel; atomic */
    _Alignas(64) q_traffic traffic; /* counted by thread 0 on the way: in a line of its own */
};
#define Q_CPU_GOES_ON INT32_MAX /* q_program.stop where nobody saw any */

/* One thread in a run. */
typedef struct q_cpu_lane {
    q_program *p;
    int32_t turn; /* barriers that it has passed */
    const q_cpu_stage *stages;
    const q_cpu_thread *own;
    q_exec e;
    uint8_t *const *copies;
} q_cpu_lane;

bool q_cpu_is_out(const q_inst *s);
static inline bool q_cpu_is_experts(const q_inst *s) { return s->op == Q_OP_MOE_GLU || s->op == Q_OP_MOE_DOWN; }
/* Values [r, r + rows) of row `matrix` of a bias. */
void q_cpu_bias(const q_weight *b, int64_t matrix, int64_t r, int64_t rows, float *bias);
/* A step on n columns of buffers instead of slots: buffer i is slot i, of `width` floats per column. */
void q_cpu_on_buffers(const q_cpu_lane *l, q_op_fn fn, const q_inst *s, float *const buffers[3], int32_t width,
                      int64_t n);

/* experts.c. What one thread needs to turn choices round; doing it, for the step s. */
void q_cpu_routes_open(q_cpu_routes *r, const q_cpu_routing *key, int32_t columns, q_ref_carve *carve);
void q_cpu_route_columns(const q_inst *s, const q_exec *e, int64_t n, q_cpu_routes *r);
/* Units of an experts' step in this run, their work, and scratch for it. */
int64_t q_cpu_experts_units(const q_cpu_lane *l, const q_cpu_stage *t);
void q_cpu_run_experts(const q_cpu_lane *l, const q_cpu_stage *t, int64_t begin, int64_t end);
uint64_t q_cpu_experts_scratch(const q_cpu_stage *t, int32_t columns);
/* Batches of up to so many columns go the way for few, of at most `columns`, when so many threads run. */
int32_t q_cpu_few_columns(uint32_t threads, int32_t columns);
/* Phases of the stages of the way for many columns. */
void q_cpu_phases_many(q_program *p);
/* The way for few columns, made from the other; the stages, phases, insts, widths and own_slots have room. */
void q_cpu_phases_few(q_program *p);

lq_status q_cpu_run(q_program *p, const q_batch *batch);

#endif
