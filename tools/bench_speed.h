/* bench_speed.h: the timed runs that the two benchmarks share. Median of some repeats, on an open model. */
#ifndef BENCH_SPEED_H
#define BENCH_SPEED_H

#include "cli.h"

typedef struct bench_speed {
    uint32_t prefill_tokens, decode_tokens; /* after capping to the context */
    double prefill_per_s, decode_per_s;     /* tokens per second, median */
    double decode_bytes_per_s;              /* weight and KV bytes per second in the median run */
} bench_speed;

/* One prefill of `prefill` tokens and `decode` single tokens, each from an empty sequence, `repeat` times after a
 * warm-up. Tokens are arbitrary ids: speed does not depend on them. Capped to the trained context. */
int bench_speed_run(cli *c, lq_model *model, uint32_t prefill, uint32_t decode, uint32_t threads, uint32_t repeat,
                    bench_speed *out);

/* Bytes per second of a streaming read with `threads` threads over at least 256 MiB, less where `memory` is short; the
 * best of several passes. 0 = it could not be measured. *buffer = bytes used. bench/roof.c. */
double bench_roof(uint32_t threads, uint64_t memory, uint64_t *buffer);
/* How large a buffer to read where that much memory is free. */
uint64_t bench_roof_buffer(uint64_t memory);

#endif
