/* bench_speed.h: the timed runs that the benchmarks share, on open models. */
#ifndef BENCH_SPEED_H
#define BENCH_SPEED_H

#include "../bench/rate.h"
#include "cli.h"

typedef struct bench_speed_options {
    uint32_t prefill, decode; /* tokens; capped to the trained context */
    uint32_t context;         /* tokens in the sequence before a decode begins */
    uint32_t threads, threads_prefill, repeat; /* repeat: at most BENCH_SAMPLES */
    cli_kv kv[2]; /* of each model */
    cli_rope rope;
} bench_speed_options;

typedef struct bench_speed {
    uint32_t prefill_tokens, decode_tokens; /* after capping */
    bench_rate prefill, decode;             /* tokens per second of each run */
    bench_rate start;                       /* of decodes from an empty sequence, each just before that one behind
                                               `context` tokens; none where context is 0 */
    double prefill_per_s, decode_per_s;     /* their medians */
    double decode_bytes_per_s;              /* weight and KV bytes per second at that median */
    /* The same runs by processor time: tokens per second that the processors really ran the threads. What other
     * programs take does not count, but for the caches and the memory that they share. */
    bench_rate prefill_cpu, decode_cpu;
    double prefill_share, decode_share; /* of the threads' time, how much the processors ran them: 1 = undisturbed */
    lq_plan_info plan; /* what ran where */
    lq_stats stats;    /* of the whole session, warm-up and all */
} bench_speed;

/* On each of `n` models (at most BENCH_MODELS): a warm-up, then `repeat` prefills from an empty sequence, then as many
 * decodes from `context` tokens on. The models take turns run by run, so that what disturbs the machine meets all of
 * them: out[i].decode.sample[k] of all i are a pair. So do decodes from the start: the ratio of .decode to .start is
 * what a long context costs. Tokens are arbitrary ids: speed does not depend on them. */
enum { BENCH_MODELS = 2 };
int bench_speed_run(cli *c, lq_model *const *models, size_t n, const bench_speed_options *o, bench_speed *out);

/* Bytes per second of a streaming read with `threads` threads over 512 MiB, less where `memory` is short; the best of
 * many passes. 0 = it could not be measured. *buffer = bytes used. bench/roof.c. */
double bench_roof(uint32_t threads, uint64_t memory, uint64_t *buffer);
/* How large a buffer to read where that much memory is free. */
uint64_t bench_roof_buffer(uint64_t memory);

#endif
