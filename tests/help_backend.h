/* help_backend.h: a stage on which a backend runs plans of single steps, seen through its table of functions alone.
 *
 * All operands of a plan are parts of slot 1 (few pass through another slot), so that a batch's x is what every step
 * reads and its y all that every step wrote. st_check runs a batch by kernels/ref and by a program and compares: what a
 * step owns within op.h's bound, pages, state, logits and tokens, and that nothing else changed by a bit. Owns the
 * numbers of a plan, its weights in memory and a device's copy of them. */
#ifndef HELP_BACKEND_H
#define HELP_BACKEND_H

#include "harness.h"

#include "../libquant/backend.h"

enum { ST_STEPS = 160, ST_WEIGHTS = 320, ST_REGIONS = 400, ST_POOLS = 3, ST_COLUMNS = 65, ST_OUTS = 9, ST_SEQS = 3,
       ST_SLOTS = 4 };

/* An allocator that counts; safe for threads. */
typedef struct st_count {
    long bytes, blocks, calls;
    long fail_at; /* the number of the call that is refused; 0 = none */
} st_count;
q_alloc st_counting(st_count *c);

/* What a part of slot 1 holds before a run. */
typedef enum {
    ST_PLAIN,  /* about normal */
    ST_MILD,   /* one column normal, one with outliers, zero, signs, subnormal numbers among normal ones, in turns */
    ST_WILD,   /* and one enormous, one tiny */
    ST_SMALL,  /* normal, of length below 1 */
    ST_BITS,   /* infinities, NaN, subnormal numbers, the edges of binary16 */
    ST_EDGES,  /* arguments at which exponentials end */
    ST_GRID,   /* eighths, so that sums with weights of ST_W_GRID are exact in any order */
    ST_CHOICE, /* a router's result: ids and weights */
    ST_NOISE   /* ids and weights that no router wrote */
} st_fill;

/* What weights look like. */
typedef enum {
    ST_W_NORMAL,
    ST_W_BYTES, /* every code of the format that its scale makes finite */
    ST_W_TINY,  /* scales that are subnormal halves */
    ST_W_ODD,   /* some rows zero, some a thousandth, some thirty times as large */
    ST_W_GRID   /* quarters, for formats of floats; every fifth row repeats the one before */
} st_weights;

typedef struct st_region {
    int32_t offset, floats;
    st_fill fill;
    int32_t n_used, n_expert;
} st_region;

typedef struct st {
    uint64_t seed;
    q_inst insts[ST_STEPS];
    int32_t n_insts;
    q_weight weights[ST_WEIGHTS];
    uint8_t *blocks[ST_WEIGHTS]; /* the whole tensor that a weight is a part of */
    uint64_t sizes[ST_WEIGHTS];
    int32_t n_weights;
    float *freqs[ST_STEPS];
    int32_t n_freqs;
    st_region regions[ST_REGIONS];
    int32_t n_regions;
    int32_t widths[ST_SLOTS];
    q_kv_pool pools[ST_POOLS];
    int32_t state_owner[ST_STEPS], state_floats_of[ST_STEPS], n_states;
    q_segment segments[2];
    int32_t past;    /* position at which the first sequence goes on */
    bool by_ids;     /* slot 1 comes from ids: only what steps own is compared */
    lq_sampler *sampler;
    q_plan plan;
} st;

/* A plan to which steps are added; every pool and slot is there when st_ready is called. */
void st_open(st *t, uint64_t seed);
void st_free(st *t);
/* Parts of slot 1, each at an odd place. */
q_view st_in(st *t, int32_t heads, int32_t width, int32_t stride, st_fill fill);
q_view st_choice(st *t, int32_t n_used, int32_t n_expert, st_fill fill);
q_view st_out(st *t, int32_t heads, int32_t width, int32_t stride);
q_weight *st_weight(st *t, const char *format, int32_t rows, int32_t k, int32_t matrices, st_weights look);
q_weight *st_vector(st *t, int32_t n, int32_t matrices, float middle, float spread);
const float *st_angles(st *t, int32_t rot, float base);
int64_t st_state(st *t, int32_t floats); /* of the step that is added next */
q_kv_pool *st_pool(st *t, int32_t layers, int32_t heads, int32_t k_width, int32_t v_width, const char *k_form,
                   const char *v_form, int32_t window);
q_inst *st_add(st *t, q_inst s);
/* Complete the plan: layers of a few steps, one segment. groups: steps of a layer do not depend on one another. */
void st_ready(st *t, bool groups);

/* An open device. */
typedef struct st_device {
    const q_backend *be;
    uint32_t index;
    q_device *dev;
    st_count count;
    q_alloc alloc;
} st_device;
void st_device_open(st_device *d, const q_backend *be, uint32_t index);
void st_device_close(st_device *d);
/* Run `fn` on every device of every backend; the devices are opened and closed here, and must leave nothing. */
void st_each_device(void (*fn)(st_device *d, void *user), void *user);
/* The processor once per instruction set that it has, but for the least, which is nearly kernels/ref itself, and the
 * last. */
void st_each_rung(void (*fn)(st_device *d, void *user), void *user);

/* A plan compiled for a device. */
typedef struct st_program {
    st *t;
    st_device *d;
    int32_t segment;
    q_inst insts[ST_STEPS];
    q_weight weights[ST_WEIGHTS];
    q_plan plan;
    q_buffer data, kv[ST_POOLS], state;
    q_program *program;
} st_program;
/* Weights written, pages and state allocated, the segment compiled, and the host's bytes compared with measure. */
void st_compile(st_program *p, st *t, st_device *d, int32_t segment);
void st_release(st_program *p);

/* A batch and all that it points to; results lie here. */
typedef struct st_batch {
    q_batch b;
    int turn;
    int32_t ids[ST_COLUMNS], pos[ST_COLUMNS], seq[ST_COLUMNS], out[ST_OUTS], sampled[ST_OUTS];
    uint64_t draw[ST_OUTS];
    uint32_t *pages[ST_SEQS][ST_POOLS];
    const uint32_t *tables[ST_SEQS][ST_POOLS];
    q_seq_ref seqs[ST_SEQS];
    float *x, *y, *logits, *state, *state_before;
    uint8_t *kv[ST_POOLS], *kv_before[ST_POOLS];
} st_batch;
/* n columns of up to three sequences, n_out of them wanted; `turn` varies values and positions. */
void st_batch_open(st_batch *b, st *t, int32_t n, int32_t n_out, int turn);
void st_batch_free(st_batch *b);

/* By the definition; y, logits, sampled, kv and state of the batch are its results. */
void st_reference(st *t, st_batch *b);
/* By the program, from the same beginning; the status of run or wait. */
lq_status st_run(st_program *p, st_batch *b);
/* Compare what two batches hold: op.h's bounds, or bit by bit. */
void st_compare(const st *t, const st_batch *want, const st_batch *got, const char *who);
bool st_same(const st *t, const st_batch *a, const st_batch *b);
/* A run of the program on a batch like `want`, compared with what st_reference wrote there: one serves many
 * programs. */
void st_check_against(st_program *p, const st_batch *want);
/* All of it for one batch: reference, run, comparison. */
void st_check(st_program *p, int32_t n, int32_t n_out, int turn);

/* |a - b|^2 / |b|^2; what is not finite must be alike in both (else infinity). */
double st_nmse(const float *a, const float *b, int64_t n, int64_t stride);

#endif
