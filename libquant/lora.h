/* lora.h: adapters of low rank (LoRA): which matrices of a model they change, and what they add: scale * B A.
 *
 * An adapter is a directory that PEFT writes or a GGUF file of general.type "adapter". All of it is read and checked
 * against the model before anything is done with it: a matrix that the model lacks, another shape, a rank that A, B and
 * the configuration do not agree about, values that are not finite, and every field that would make the function
 * another one than this sum are refused by name. Then each item of the binding knows its deltas, and whoever reads its
 * rows as floats (q_bind_read) has them added. Hu et al., "LoRA", arXiv:2106.09685. Layer L3. */
#ifndef Q_LORA_H
#define Q_LORA_H

#include "bind.h"

/* What one adapter adds to one matrix of rows x k. */
typedef struct q_lora_delta {
    const float *a; /* [rank][k] */
    const float *b; /* [rows][rank], in the order that the rows have in the base's file */
    uint32_t rank;
    float scale;    /* the caller's, times alpha / rank */
    struct q_lora_delta *next; /* of the next adapter; NULL = there is none */
} q_lora_delta;

/* y[k] += the deltas of a row, one after the other: sums over the rank in float32, ascending from 0, then y + scale *
 * sum. */
void q_lora_add(const q_lora_delta *d, uint64_t row, float *y, uint64_t k);

uint32_t q_lora_count(const q_lora_delta *d); /* of adapters; NULL = 0 */

typedef struct q_loras q_loras;
/* Open the containers and check what they say of themselves. `scales` NULL: all 1. NULL paths and a scale that is not
 * finite are LQ_E_ARG. */
lq_status q_loras_open(const q_alloc *a, const q_log *log, const char *const *paths, const float *scales, uint32_t n,
                       q_loras **out);
/* LQ_E_ARG when an output at `dst`, a file or a directory, would replace a file of theirs. */
lq_status q_loras_spare(const q_loras *l, const char *dst, bool directory);
/* Check them against the model and give its items their deltas, which live as long as `l`. An adapter whose scale is 0
 * adds nothing. *adapted: how many items have one now. */
lq_status q_loras_bind(q_loras *l, q_binding *b, uint32_t *adapted);
/* Keys for a file that they were merged into: libquant.lora.N.name and .scale, N counting on from those among meta[0 ..
 * *n). Two per adapter. */
lq_status q_loras_keys(const q_loras *l, q_arena *arena, q_meta *meta, uint32_t *n);
/* A sentence of the adapters that a model's keys say were merged into it, and then of those that will be, as these keys
 * will have them: "a scale 1, b scale 0.5"; "" = none. */
lq_status q_loras_list(q_arena *arena, const q_meta *meta, uint32_t n, const q_loras *l, char **out);
uint32_t q_loras_count(const q_loras *l); /* NULL = 0 */
void q_loras_close(q_loras *l);           /* NULL is fine */

/* ---- what the files of one say (lora_read.c) */

typedef struct q_lora_part {
    q_str target;          /* the matrix by the adapter's convention: "blk.0.attn_q.weight" */
    const q_tensor *a, *b; /* k x rank, rank x rows */
    double factor;         /* alpha / rank */
} q_lora_part;
/* *n parts in `arena`, at least one. */
lq_status q_lora_read(q_arena *arena, const q_directory *dir, q_lora_part **parts, uint32_t *n);
/* A key or field (nested in JSON) by which an adapter may say which base it is for: 16 hexadecimal digits, the
 * q_checksum of the bytes of the base's tensors in the order of its files. Ours, since there is no usual one; a
 * sentence tells the right one. */
#define Q_LORA_BASE_HASH "libquant.base.hash"
/* Is this directory an adapter, and no model? */
bool q_lora_is(const q_directory *dir);

#endif
